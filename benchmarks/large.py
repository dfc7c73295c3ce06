"""A registry cover of a million: boosted trees with a process for each party, over the real relay.

    python -m benchmarks.large [COVER] [CUSTOMERS] [BANK_FEATURES] [DEPARTMENT_FEATURES]

Minutes, so not in the default run; `python -m benchmarks large` adds it. Peaks are those of the
parties' own processes. DESIGN.md promises 3 times a party's table and one batch of tokens; an
interpreter with its libraries, `IDLE`, comes on top. AUC tells that the model is one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.trees import BANK, DEPARTMENT, draw
from clients import lab_processes
from clients.lab_table import Split
from federation.codes import code_for_row
from federation.objects import TreesParameters
from federation.registry import Registry
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks import boosting
from federation.tasks.local import local_manifest
from federation.warm import warm
from protocols.linear_query import (
    Layout,
    Parameters,
    reply_size_bytes,
    request_size_bytes,
)

IDLE = """
import clients.lab_processes, federation.warm
federation.warm.warm()
print(clients.lab_processes._peak_bytes())
"""


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    cover: int = 1_000_000
    customers: int = 50_000
    bank_features: int = 20
    department_features: int = 20
    trees: int = 10
    depth: int = 4


@dataclass(frozen=True)
class Measured:
    """What one run took."""

    seconds: float
    row_keys_s: float
    size_bytes: int
    peaks: dict[str, int]
    tables: dict[str, int]
    batch_bytes: int
    idle_bytes: int
    tokens: int
    auc: float

    def allowed(self, org: str) -> int:
        """What DESIGN.md promises: 3 tables and a batch, beside the libraries."""
        return 3 * self.tables[org] + self.batch_bytes + self.idle_bytes


def measure(setting: Setting) -> Measured:
    """One run."""
    warm()
    cover, features = setting.cover, setting.bank_features + setting.department_features
    everybody, bad = draw(np.random.default_rng(1), cover, features)
    rng = np.random.default_rng(4)
    at = np.sort(rng.choice(cover, setting.customers, replace=False)).astype(np.int64)
    codes = np.sort(code_for_row(7, np.arange(cover)).astype("S18"))
    names = [f"x{i}" for i in range(features)]
    columns = [NumberColumn(n, np.ascontiguousarray(everybody[:, i])) for i, n in enumerate(names)]
    del everybody
    own, theirs = columns[: setting.bank_features], columns[setting.bank_features :]
    bank = BankData(cover, at, codes[at], [c.take(at) for c in own], bad[at])
    departments = {DEPARTMENT: DepartmentData(theirs, codes)}
    parameters = TreesParameters(trees=setting.trees, max_depth=setting.depth)
    manifest = local_manifest({BANK: bank}, departments, parameters)
    parts = Split(
        "large", BANK, bank, departments, Registry(codes, date(2026, 1, 1), "city"), {}, (), at
    )
    said = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True)
    began = time.perf_counter()
    run = lab_processes.run(parts, manifest, 1, lambda stage, step, steps: None)
    seconds = time.perf_counter() - began
    result, plan = run.result, boosting.plan_of(manifest)
    unseen = result.test
    return Measured(
        seconds=seconds,
        row_keys_s=result.seconds["row keys"],
        size_bytes=run.size_bytes,
        peaks=dict(run.peak_bytes),
        tables={
            BANK: sum(c.values.nbytes for c in bank.columns) + bank.codes.nbytes,
            DEPARTMENT: sum(c.values.nbytes for c in theirs) + codes.nbytes,
        },
        batch_bytes=_batch_bytes(plan.query, cover, setting.department_features, plan.tokens),
        idle_bytes=int(said.stdout.split()[-1]),
        tokens=plan.tokens,
        auc=roc_auc_score(result.labels[unseen], result.margins[unseen]),
    )


def _batch_bytes(query: Parameters, rows: int, features: int, tokens: int) -> int:
    """Of the largest batch of tokens: the request, and the reply at the most bins."""
    batch = min(tokens, query.batch_tokens)
    columns = Layout(rows, (33,) * features).columns
    return request_size_bytes(query, batch) + reply_size_bytes(query, columns, batch)


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table: 20 + 20 features, then 40 at the department."""
    found = []
    for setting in (Setting(), Setting(bank_features=5, department_features=40)):
        one = measure(setting)
        features = f"{setting.bank_features} + {setting.department_features}"
        note = (
            f"{features} features, {setting.customers} customers, {setting.trees} trees of depth "
            f"{setting.depth}, {one.tokens} tokens, {one.size_bytes / 1e9:.2f} GB carried, "
            f"row keys {one.row_keys_s:.1f} s of it, AUC {one.auc:.3f}"
        )
        found.append(_row("large", one.seconds, "s wall, all", 0.0, 0.0, setting.cover, note))
        for org, peak in one.peaks.items():
            allowed = one.allowed(org)
            note = (
                f"{features} features; its table {one.tables[org] / 1e6:.0f} MB, a batch "
                f"{one.batch_bytes / 1e6:.0f} MB, libraries {one.idle_bytes / 1e6:.0f} MB; "
                "reference: 3 tables, batch and libraries"
            )
            row = _row(
                f"large_memory_{org}",
                peak / 1e6,
                "MB peak",
                allowed / 1e6,
                peak / allowed,
                setting.cover,
                note,
            )
            found.append(row)
    return found


def _row(
    name: str, value: float, unit: str, reference: float, ratio: float, count: int, note: str
) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "reference": round(reference, 1),
        "ratio": round(ratio, 3),
        "rows": count,
        "note": note,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cover", "customers", "bank_features", "department_features"):
        parser.add_argument(name, nargs="?", type=int, default=getattr(Setting, name))
    found = measure(Setting(**vars(parser.parse_args())))
    print(
        f"{found.seconds:.1f} s wall, row keys {found.row_keys_s:.1f} s of it; AUC {found.auc:.3f}"
    )
    print(f"{found.tokens} tokens, {found.size_bytes / 1e9:.2f} GB between the parties")
    for name, peak in found.peaks.items():
        print(f"{name:6} {peak / 1e6:6.0f} MB peak, promised {found.allowed(name) / 1e6:6.0f} MB")
