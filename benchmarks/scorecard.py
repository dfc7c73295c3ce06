"""A scorecard of 60,000 customers and 40 features against scikit-learn on pooled plaintext.

    python -m benchmarks.scorecard

From aligned tables to report data, all parties in one process, with serialised messages. Row keys
(the alignment) are timed apart, as everywhere.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from federation.codes import code_for_row
from federation.objects import ScorecardParameters
from federation.tables import BankData, Column, DepartmentData, NumberColumn
from federation.tasks.local import local_manifest, local_seeds, run_scorecard_in_process
from federation.tasks.model import fit_pooled
from protocols.warm import warm

ROWS, FEATURES = 60_000, 20
ALIGNMENT = "row keys"


def draw(seed: int = 1) -> tuple[BankData, dict[str, DepartmentData]]:
    """A bank and a department with 20 features each; three common factors."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(ROWS, 3))
    values = rng.normal(size=(ROWS, 2 * FEATURES)) + factors @ rng.normal(size=(3, 2 * FEATURES))
    logit = values @ rng.normal(size=2 * FEATURES) * 0.15
    logit -= np.quantile(logit, 0.85)
    bad = (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.uint8)
    codes = np.sort(code_for_row(7, np.arange(ROWS)).astype("S18"))

    def columns(first: int) -> list[Column]:
        return [NumberColumn(f"x{i}", values[:, i]) for i in range(first, first + FEATURES)]

    bank = BankData(ROWS, np.arange(ROWS), codes, columns(0), bad)
    return bank, {"department": DepartmentData(columns(FEATURES), codes)}


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table."""
    warm()
    bank, departments = draw()
    manifest = local_manifest({"bank": bank}, departments, ScorecardParameters(openings=2))
    seeds = local_seeds(["bank", *departments], 1)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        run = run_scorecard_in_process(bank, departments, manifest, seeds, executor=pool)
    total = time.perf_counter() - began
    alignment = run.result.seconds.get(ALIGNMENT, 0.0)
    test = run.result.test
    pooled = fit_pooled(run.result, "bank", bank, departments, manifest.scorecard)
    x = np.column_stack([c.values for c in (*bank.columns, *departments["department"].columns)])
    began = time.perf_counter()
    plain = LogisticRegression(max_iter=200).fit(x[~test], bank.labels[~test])
    reference = time.perf_counter() - began
    if run.result.scores is None:
        raise SystemExit("the job opens its evaluation")
    bad = bank.labels[test]
    joint = roc_auc_score(bad, -run.result.scores[test])
    same_bins = roc_auc_score(bad, -pooled.log_odds[test])
    raw = roc_auc_score(bad, plain.predict_proba(x[test])[:, 1])
    note = f"AUC joint {joint:.4f}, pooled {same_bins:.4f}; scikit-learn on raw values {raw:.4f}"

    def row(name: str, value: float, against: float, text: str) -> dict[str, Any]:
        return {
            "name": name,
            "value": round(value, 3),
            "unit": "s wall, all parties",
            "reference": round(against, 3),
            "ratio": round(value / against, 2),
            "rows": ROWS,
            "note": text,
        }

    return [
        row("scorecard_total", total - alignment, reference, f"target 10 s; {note}"),
        row("alignment", alignment, 10.0, "row keys of the same job; reference: 10 s"),
    ]


if __name__ == "__main__":
    for item in rows():
        print(item)
