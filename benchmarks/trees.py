"""Boosted trees over two owners' features against XGBoost `hist` on pooled plaintext, in one run.

    python -m benchmarks.trees [ROWS] [BANK_FEATURES] [DEPARTMENT_FEATURES] [TREES] [DEPTH]

From aligned tables to the model: agreement, bins, commitments, tokens, every query and opening, all
frames serialised. Row keys (the alignment) and the bank's own model for comparison are shown apart.
Both sides get raw numbers, 32 bins, equal depth, rate and rounds; AUC is of customers that neither
has seen. XGBoost is not a dependency: `pip install '.[bench]'`; without it scikit-learn's histogram
trees stand in.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from federation.codes import code_for_row
from federation.objects import TreesParameters
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks import boosting
from federation.tasks.local import LocalTrees, local_manifest, local_seeds, run_trees_in_process
from federation.tasks.party import Progress
from federation.warm import warm
from protocols.streams import Randomness

BANK, DEPARTMENT = "bank", "tax"
APART = ("row keys", "alone")
UNSEEN = 50_000


def draw(rng: np.random.Generator, rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated numbers, a tenth of some missing, and labels that need interactions."""
    factors = rng.normal(size=(rows, 5))
    mixing = np.random.default_rng(7).normal(size=(5, features)) * 0.6
    x = factors @ mixing + rng.normal(size=(rows, features))
    weights = np.random.default_rng(8).normal(size=features) * 0.35
    margin = x @ weights + 0.8 * x[:, 0] * (x[:, features // 2] > 0) - 2.2
    margin += 0.5 * np.abs(x[:, features - 1])
    bad = rng.random(rows) < 1 / (1 + np.exp(-margin))
    x[:, ::4][rng.random((rows, len(range(0, features, 4)))) < 0.1] = np.nan
    return x, bad.astype(np.uint8)


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    rows: int = 100_000
    bank_features: int = 20
    department_features: int = 20
    trees: int = 5
    depth: int = 5
    cover: int = 0  # rows of the registry; the customers alone by default
    hessians: bool = True
    thresholds: int = 126
    joint_trees: int | None = None
    repeat: int = 1
    bins: int = 32
    departments: int = 1  # who share the department's features

    @property
    def names(self) -> tuple[str, ...]:
        """Of the departments."""
        more = range(1, self.departments)
        return (DEPARTMENT, *(f"{DEPARTMENT}{i}" for i in more))

    @property
    def parameters(self) -> TreesParameters:
        """Without a hold-out: AUC is of other customers."""
        return TreesParameters(
            trees=self.trees,
            max_depth=self.depth,
            hessians=self.hessians,
            thresholds=self.thresholds,
            joint_trees=self.joint_trees,
            max_bins=self.bins,
            hold_out="0.0",
        )


@dataclass(frozen=True)
class Measured:
    """Seconds, and AUC of unseen customers."""

    run: LocalTrees
    queries: int
    exposure: float
    total_s: float  # the least of all runs, as the reference's
    cpu_s: float  # least of both parties, without what stands apart
    pair_ratios: tuple[float, ...]  # each run against the reference right after it
    pooled_s: float
    is_equal: bool  # the same growth on pooled plaintext gives the same margins
    auc: float
    alone_auc: float
    reference: str
    reference_s: float
    reference_cpu_s: float
    reference_auc: float


def measure(setting: Setting) -> Measured:
    """Run both sides."""
    features = setting.bank_features + setting.department_features
    rows, cover = setting.rows, max(setting.rows, setting.cover)
    everybody, bad = draw(np.random.default_rng(1), cover, features)
    at = np.sort(np.random.default_rng(4).choice(cover, rows, replace=False)).astype(np.int64)
    x, bad = everybody[at], bad[at]
    codes = np.sort(code_for_row(7, np.arange(cover)).astype("S18"))
    names = [f"x{i}" for i in range(features)]
    own, theirs = names[: setting.bank_features], names[setting.bank_features :]
    columns = {name: everybody[:, i] for i, name in enumerate(names)}
    bank = BankData(cover, at, codes[at], [NumberColumn(n, columns[n][at]) for n in own], bad)
    owner = {n: setting.names[i % setting.departments] for i, n in enumerate(theirs)}
    departments = {
        org: DepartmentData([NumberColumn(n, columns[n]) for n in theirs if owner[n] == org], codes)
        for org in setting.names
    }
    manifest = local_manifest({"bank": bank}, departments, setting.parameters)
    plan = boosting.plan_of(manifest)
    warm()
    x_new, bad_new = draw(np.random.default_rng(2), UNSEEN, features)
    runs: list[tuple[LocalTrees, float, float]] = []
    references = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(setting.repeat):
            clock = Apart()
            run, _, cpu = timed(
                lambda clock=clock: run_trees_in_process(
                    bank, departments, manifest, 1, executor=pool, report=clock.note
                )
            )
            runs.append((run, clock.whole_s - apart(run), cpu - clock.cpu_s))
            references.append(plain(x, bad, x_new, setting))
        run, total, _ = min(runs, key=lambda item: item[1])
        key = local_seeds([BANK], 1)[BANK]
        pooled, pooled_s, _ = timed(
            lambda: boosting.fit_pooled(
                BANK,
                bank,
                departments,
                setting.parameters,
                train=np.ones(rows, bool),
                vmax=manifest.query.vmax,
                randomness=Randomness(key, bytes.fromhex(manifest.digest()), 0),
                coins=run.result.coins,
                executor=pool,
            )
        )
    new = {(owner.get(n, BANK), n): NumberColumn(n, x_new[:, i]) for i, n in enumerate(names)}
    joint, alone = run.result.model, run.result.alone
    reference, seconds, _, predicted = min(references, key=lambda item: item[1])
    pairs = zip(runs, references, strict=True)
    return Measured(
        run=run,
        queries=plan.tokens,
        exposure=plan.exposure(rows),
        total_s=total,
        cpu_s=min(cpu for _, _, cpu in runs),
        pair_ratios=tuple(sorted(ours[1] / other[1] for ours, other in pairs)),
        pooled_s=pooled_s,
        is_equal=np.array_equal(pooled.margins, run.result.margins),
        auc=roc_auc_score(bad_new, joint.margins(joint.by_columns(new), UNSEEN)),
        alone_auc=roc_auc_score(bad_new, alone.margins(alone.by_columns(new), UNSEEN)),
        reference=reference,
        reference_s=seconds,
        reference_cpu_s=min(busy for _, _, busy, _ in references),
        reference_auc=roc_auc_score(bad_new, predicted),
    )


def apart(run: LocalTrees) -> float:
    """Seconds of what is not from aligned tables to the model; who is first waits for the other."""
    ends = [run.result.seconds, *(part.seconds for part in run.parts.values())]
    return sum(max(seconds.get(name, 0.0) for seconds in ends) for name in APART)


class Apart:
    """CPU seconds of the process while any party is in a stage that stands apart.

    Both parties are in theirs at about the same time, or alone.
    """

    def __init__(self) -> None:
        self.began_s, self.cpu_s = time.perf_counter(), 0.0
        self._inside: set[tuple[str, str]] = set()
        self._since = 0.0
        self._lock = threading.Lock()

    @property
    def whole_s(self) -> float:
        """Wall seconds since the start."""
        return time.perf_counter() - self.began_s

    def note(self, org: str, progress: Progress) -> None:
        """A party's progress."""
        if progress.stage not in APART:
            return
        with self._lock:
            was, at = bool(self._inside), (org, progress.stage)
            (self._inside.add if progress.step == 0 else self._inside.discard)(at)
            if not was and self._inside:
                self._since = time.process_time()
            elif was and not self._inside:
                self.cpu_s += time.process_time() - self._since


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def plain(
    x: np.ndarray, bad: np.ndarray, x_new: np.ndarray, setting: Setting
) -> tuple[str, float, float, np.ndarray]:
    """Name, wall and CPU seconds of the pooled reference, and what it says of the unseen."""
    parameters = setting.parameters
    rate, l2 = float(parameters.learning_rate), float(parameters.l2)
    try:
        import xgboost
    except ImportError:
        model = HistGradientBoostingClassifier(
            max_iter=setting.trees,
            max_depth=setting.depth,
            max_bins=setting.bins,
            learning_rate=rate,
            l2_regularization=l2,
            max_leaf_nodes=None,
        )
        _, seconds, busy = timed(lambda: model.fit(x, bad))
        return "scikit-learn", seconds, busy, model.predict_proba(x_new)[:, 1]
    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_bin": setting.bins,
        "max_depth": setting.depth,
        "eta": rate,
        "lambda": l2,
        "min_child_weight": float(parameters.min_child_weight),
        "base_score": float(bad.mean()),
    }

    def train(threads: int) -> Any:
        table = xgboost.DMatrix(x, bad, nthread=threads)
        return xgboost.train({**settings, "nthread": threads}, table, setting.trees)

    # One thread as well: on a busy machine two wait for each other. The fastest is the reference.
    runs = [timed(lambda n=n: train(n)) for n in (1, os.cpu_count() or 1)]
    booster, seconds, busy = min(runs, key=lambda item: item[1])
    return "XGBoost", seconds, busy, booster.predict(xgboost.DMatrix(x_new))


def show(setting: Setting, found: Measured) -> None:
    """Where the time went, at both ends, and what crossed."""
    result = found.run.result
    print(f"{setting}")
    print(f"{found.queries} queries, exposure {found.exposure:.4f}, {os.cpu_count()} cores")
    print(f"total      {found.total_s:7.3f} s wall; {found.cpu_s:.3f} s CPU of all parties")
    for name, seconds in (
        (BANK, result.seconds),
        (DEPARTMENT, found.run.parts[DEPARTMENT].seconds),
    ):
        print(f"  {name:6}" + "  ".join(f"{stage} {s:.3f}" for stage, s in seconds.items()))
    sent, received = sum(result.sent_bytes.values()), sum(result.received_bytes.values())
    print(f"  {sent / 1e6:.1f} MB to the department, {received / 1e6:.1f} MB back")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  {peak:.0f} MiB at most, all parties, tables and references in one process")
    print(f"pooled     {found.pooled_s:7.3f} s, the same growth; equal margins: {found.is_equal}")
    print(
        f"{found.reference:10} {found.reference_s:7.3f} s wall, {found.reference_cpu_s:.3f} s CPU"
    )
    print(
        f"AUC        joint {found.auc:.4f}, {found.reference} {found.reference_auc:.4f}, the bank "
        f"alone {found.alone_auc:.4f}; {result.thresholds} thresholds open"
    )
    print(
        f"ratio      {found.total_s / found.reference_s:7.1f} (target 8), by CPU "
        f"{found.cpu_s / found.reference_cpu_s:.1f}; pairs "
        + " ".join(f"{ratio:.1f}" for ratio in found.pair_ratios)
    )


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table."""
    setting = Setting(repeat=6)
    found = measure(setting)
    note = (
        f"target 8 x and 8 s; median of {len(found.pair_ratios)} pairs "
        f"{statistics.median(found.pair_ratios):.1f} x, by CPU "
        f"{found.cpu_s / found.reference_cpu_s:.1f} x; CPU {found.reference} "
        f"{found.reference_cpu_s:.2f} s, ours {found.cpu_s:.2f} s; AUC {found.auc:.4f}, "
        f"{found.reference} {found.reference_auc:.4f}, the bank alone {found.alone_auc:.4f}"
    )
    return [
        {
            "name": "trees_total",
            "value": round(found.total_s, 3),
            "unit": "s wall, all parties",
            "reference": round(found.reference_s, 3),
            "ratio": round(found.total_s / found.reference_s, 2),
            "rows": setting.rows,
            "note": note,
        }
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "bank_features", "department_features", "trees", "depth"):
        parser.add_argument(name, nargs="?", type=int, default=getattr(Setting, name))
    parser.add_argument("--cover", type=int, default=0, help="rows of the registry")
    parser.add_argument("--gradients-alone", dest="hessians", action="store_false")
    parser.add_argument("--thresholds", type=int, default=126)
    parser.add_argument("--joint-trees", type=int)
    parser.add_argument("--repeat", type=int, default=1)
    asked = Setting(**vars(parser.parse_args()))
    show(asked, measure(asked))
