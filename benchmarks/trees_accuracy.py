"""Test AUC of joint trees beside XGBoost `hist` on pooled plaintext with equal settings.

    python -m benchmarks.trees_accuracy [--seeds N] [--jobs]

Data sets: the public card data of examples/city, the small public German credit data, and a made-up
set with interactions and missing values. 30 trees, depth 5, learning rate 0.2, L2 1, the mean over
the seeds' hold-outs. By default the joint trees are grown in the clear, which gives the very trees
of a job (tests hold that); `--jobs` runs the encrypted job for every seed. XGBoost is not a
dependency: `pip install '.[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from benchmarks.trees import draw
from clients import lab, lab_trees
from clients.lab_table import Split, read_spec, read_table, split
from federation.objects import TreesParameters
from federation.tables import CategoryColumn, Column
from federation.tasks import boosting
from federation.tasks.local import local_seeds
from protocols.streams import Randomness

DATA = Path(__file__).parent.parent / "examples/city/data"
TARGET = 0.003
SETTINGS: dict[str, Any] = {"trees": 30, "max_depth": 5, "learning_rate": "0.2"}
BINS = (32, 256)  # XGBoost's: as ours, and its own default


def data_sets(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, table and specification of each."""
    for name, file in (("card", "credit_card_default.csv.gz"), ("german", "german_credit.csv")):
        yield name, DATA / file, DATA / f"{file.split('.')[0]}.json"
    x, bad = draw(np.random.default_rng(5), 20_000, 16)
    names = [f"x{i}" for i in range(16)]
    pd.DataFrame(x, columns=names).assign(bad=bad).to_csv(folder / "made.csv", index=False)
    parties = [
        {"id": "bank", "role": "bank", "columns": names[:8]},
        {"id": "tax", "role": "department", "columns": names[8:]},
    ]
    (folder / "made.json").write_text(json.dumps({"target": "bad", "parties": parties}))
    yield "made up", folder / "made.csv", folder / "made.json"


def measure(table: Path, spec: Path, seeds: int, *, jobs: bool) -> dict[str, list[float]]:
    """AUC by model, one a seed."""
    found: dict[str, list[float]] = {}
    whole, described = read_table(table), read_spec(spec)
    for seed in range(seeds):
        parts = split(whole, described, seed=seed)
        bad, test = parts.bank_data.labels, parts.bank_data.test
        if test is None:
            raise RuntimeError("the lab draws a hold-out")
        scores = {f"XGBoost {n}": xgboost_of(parts, n) for n in BINS}
        free = lab_trees.parameters_for(SETTINGS)
        usual = TreesParameters.model_validate(SETTINGS)  # a job's defaults
        for name, parameters in (("joint", free), ("a job's limits", usual)):
            if jobs and name == "joint":
                done = lab.try_table(table, spec, task="trees", settings=SETTINGS, seed=seed)
                quality = done.report.assessment
                if quality is None:
                    raise RuntimeError("a lab run has a hold-out")
                found.setdefault(name, []).append(quality.joint.auc.value)
                continue
            scores[name] = clear(parts, parameters, seed)
        for name, risk in scores.items():
            found.setdefault(name, []).append(float(roc_auc_score(bad[test], risk[test])))
    return found


def clear(parts: Split, parameters: TreesParameters, seed: int) -> np.ndarray:
    """Margins of a job's trees, grown in the clear."""
    manifest = lab_trees.manifest_of(parts, parameters)
    if parts.bank_data.test is None:
        raise RuntimeError("the lab draws a hold-out")
    master = local_seeds(parts.organisations, seed)[parts.bank]
    return boosting.fit_pooled(
        parts.bank,
        parts.bank_data,
        parts.departments,
        manifest.trees,
        train=~parts.bank_data.test.astype(bool),
        vmax=manifest.query.vmax,
        customers_min=manifest.limits.customers_min,
        randomness=Randomness(master, bytes.fromhex(manifest.digest()), 0),
    ).margins


def xgboost_of(parts: Split, bins: int) -> np.ndarray:
    """What XGBoost says of every customer, trained on those that are not held out."""
    import xgboost

    at = parts.bank_data.positions
    columns = [*parts.bank_data.columns]
    for data in parts.departments.values():
        columns += [column.take(at) for column in data.columns]
    x = np.column_stack([numbers(column) for column in columns])
    kinds = ["c" if isinstance(column, CategoryColumn) else "q" for column in columns]
    bad, test = parts.bank_data.labels, np.asarray(parts.bank_data.test, bool)

    def table(rows: np.ndarray) -> Any:
        return xgboost.DMatrix(x[rows], bad[rows], feature_types=kinds, enable_categorical=True)

    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_bin": bins,
        "max_depth": SETTINGS["max_depth"],
        "eta": float(SETTINGS["learning_rate"]),
        "base_score": float(bad[~test].mean()),
        "max_cat_to_onehot": 100,  # one category against all others, as ours
    }
    model = xgboost.train(settings, table(~test), SETTINGS["trees"])
    return np.asarray(model.predict(table(np.ones(len(bad), bool))))


def numbers(column: Column) -> np.ndarray:
    """A column as XGBoost takes it; missing is not a number."""
    if isinstance(column, CategoryColumn):
        return np.where(column.codes < 0, np.nan, column.codes.astype(np.float64))
    return column.values


def main() -> None:
    """A table on the terminal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", action="store_true")
    asked = parser.parse_args()
    print(
        f"{'mean test AUC':16}" + "".join(f"{n:>16}" for n in ("joint", "a job's limits")), end=""
    )
    print("".join(f"{f'XGBoost {n}':>16}" for n in BINS) + f"{'joint - 32':>14}")
    with tempfile.TemporaryDirectory() as name:
        for title, table, spec in data_sets(Path(name)):
            found = measure(table, spec, asked.seeds, jobs=asked.jobs)
            means = {model: float(np.mean(values)) for model, values in found.items()}
            order = ("joint", "a job's limits", *(f"XGBoost {n}" for n in BINS))
            gap = means["joint"] - means[f"XGBoost {BINS[0]}"]
            spread = np.std(np.subtract(found["joint"], found[f"XGBoost {BINS[0]}"]))
            print(
                f"{title:16}"
                + "".join(f"{means[model]:16.4f}" for model in order)
                + f"{gap:+10.4f} (sd {spread:.4f}; target {TARGET})"
            )


if __name__ == "__main__":
    main()
