"""Boosted trees over two owners' features against XGBoost `hist` on pooled plaintext, in one run.

    python -m benchmarks.trees [ROWS] [BANK_FEATURES] [DEPARTMENT_FEATURES] [TREES] [DEPTH]

From aligned tables to the model: agreement, bins, commitments, tokens, every query and opening, all
frames serialised. Row keys are alignment and shown apart (--align runs them; otherwise both ends
are given the same random keys). Both sides get raw numbers, 32 bins, equal depth, rate and rounds;
AUC is of customers that neither has seen. XGBoost is not a dependency: `pip install '.[bench]'`.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.metrics import roc_auc_score

from federation.objects import TreesParameters
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks import boosting, vertical
from federation.tasks.local import local_seeds
from federation.tasks.trees_local import LocalTrees, local_trees_manifest, run_trees_in_process
from protocols import labels
from protocols.streams import Randomness, digest
from protocols.warm import warm

BANK, DEPARTMENT = "bank", "tax"


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


def skip_alignment(rows: int) -> None:
    """Both ends get the same random row keys: what alignment would leave."""
    keys = np.frombuffer(np.random.default_rng(3).bytes(16 * rows), np.uint8).reshape(rows, 16)
    cover = digest(labels.COVER_DIGEST, rows)
    vertical.ask_row_keys = lambda party, data: (  # type: ignore[assignment]  # a stand-in
        cover,
        dict.fromkeys(party.manifest.departments, keys[data.positions]),
    )
    vertical.give_row_keys = lambda party, data: (cover, keys)  # type: ignore[assignment]  # a stand-in


def main(
    rows: int,
    bank_features: int,
    department_features: int,
    trees: int,
    depth: int,
    *,
    align: bool = False,
    hessians: bool = True,
    thresholds: int = 126,
    joint_trees: int | None = None,
    repeat: int = 1,
) -> None:
    """Run both and print what they took."""
    features = bank_features + department_features
    x, bad = draw(np.random.default_rng(1), rows, features)
    x_new, bad_new = draw(np.random.default_rng(2), 50_000, features)
    codes = np.array([f"{i:018d}" for i in range(rows)], "S18")
    own = [NumberColumn(f"own_{i}", x[:, i]) for i in range(bank_features)]
    theirs = [NumberColumn(f"far_{i}", x[:, i]) for i in range(bank_features, features)]
    bank = BankData(rows, np.arange(rows), codes, own, bad)
    departments = {DEPARTMENT: DepartmentData(theirs, codes)}
    parameters = TreesParameters(
        trees=trees,
        max_depth=depth,
        hessians=hessians,
        thresholds=thresholds,
        joint_trees=joint_trees,
        hold_out="0.0",
    )
    manifest = local_trees_manifest(bank, departments, parameters)
    plan = boosting.plan_of(manifest)
    print(
        f"{rows} rows, {bank_features} + {department_features} features, {trees} trees of {depth}"
    )
    print(f"{plan.tokens} queries, exposure {plan.exposure(rows):.4f}, {os.cpu_count()} cores")
    warm()
    if not align:
        skip_alignment(rows)
    total, cpu, run = np.inf, 0.0, None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(repeat):
            began, busy = time.perf_counter(), time.process_time()
            latest = run_trees_in_process(bank, departments, manifest, 1, executor=pool)
            seconds = time.perf_counter() - began
            apart = sum(latest.result.seconds.get(name, 0.0) for name in ("row keys", "alone"))
            if seconds - apart < total:
                total, run, cpu = seconds - apart, latest, time.process_time() - busy
        if run is None:
            raise SystemExit("nothing was run")
        show(run, total, cpu)
        began = time.perf_counter()
        randomness = Randomness(local_seeds([BANK], 1)[BANK], bytes.fromhex(manifest.digest()), 0)
        pooled = boosting.fit_pooled(
            BANK,
            bank,
            departments,
            parameters,
            train=np.ones(rows, bool),
            vmax=manifest.query.vmax,
            randomness=randomness,
            executor=pool,
        )
        pooled_s = time.perf_counter() - began
    equal = np.array_equal(pooled.margins, run.result.margins)
    print(f"pooled     {pooled_s:7.3f} s with the same growth; equal margins: {equal}")
    new = {(BANK, c.name): NumberColumn(c.name, x_new[:, i]) for i, c in enumerate(own)}
    new |= {
        (DEPARTMENT, c.name): NumberColumn(c.name, x_new[:, bank_features + i])
        for i, c in enumerate(theirs)
    }
    result = run.result
    joint = roc_auc_score(bad_new, result.model.margins(result.model.by_columns(new), len(bad_new)))
    alone = roc_auc_score(bad_new, result.alone.margins(result.alone.by_columns(new), len(bad_new)))
    print(
        f"AUC        {joint:.4f} joint, {alone:.4f} the bank alone, {result.thresholds} thresholds"
    )
    try:
        import xgboost
    except ImportError:
        print("xgboost is not installed: pip install '.[bench]'")
        return
    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_bin": 32,
        "max_depth": depth,
        "eta": float(parameters.learning_rate),
        "lambda": float(parameters.l2),
        "min_child_weight": float(parameters.min_child_weight),
        "base_score": float(bad.mean()),
    }
    best = np.inf
    # One thread as well: on a busy machine two wait for each other. The fastest is the reference.
    for threads in (1, os.cpu_count()) * max(repeat, 3):
        began, busy = time.perf_counter(), time.process_time()
        table = xgboost.DMatrix(x, bad, nthread=threads)
        booster = xgboost.train({**settings, "nthread": threads}, table, trees)
        seconds = time.perf_counter() - began
        if seconds < best:
            best, cpu = seconds, time.process_time() - busy
    theirs_auc = roc_auc_score(bad_new, booster.predict(xgboost.DMatrix(x_new)))
    print(f"XGBoost    {best:7.3f} s wall, {cpu:.3f} s CPU, AUC {theirs_auc:.4f}")
    print(f"ratio      {total / best:7.1f} (target 8)")


def show(run: LocalTrees, total: float, cpu: float) -> None:
    """Where the time went, at both ends, and what crossed."""
    print(
        f"total      {total:7.3f} s wall, row keys and the bank's own model apart; {cpu:.3f} s CPU"
    )
    for name, seconds in (
        ("bank", run.result.seconds),
        *((o, p.seconds) for o, p in run.parts.items()),
    ):
        print(f"  {name:10}" + "  ".join(f"{k} {v:.3f}" for k, v in seconds.items()))
    sent, received = sum(run.result.sent_bytes.values()), sum(run.result.received_bytes.values())
    print(f"  {sent / 1e6:.1f} MB to the department, {received / 1e6:.1f} MB back")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {
        "rows": 100_000, "bank_features": 20, "department_features": 20, "trees": 5, "depth": 5,
    }  # fmt: skip
    for name, default in defaults.items():
        parser.add_argument(name, nargs="?", type=int, default=default)
    parser.add_argument("--align", action="store_true")
    parser.add_argument("--gradients-alone", dest="hessians", action="store_false")
    parser.add_argument("--thresholds", type=int, default=126)
    parser.add_argument("--joint-trees", type=int)
    parser.add_argument("--repeat", type=int, default=1)
    main(**vars(parser.parse_args()))
