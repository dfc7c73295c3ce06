"""How fast this machine is at a job's work: a few small jobs, measured once and kept.

The jobs run on made-up tables, all parties in this process, as the lab does it. What each stage
took is laid out over the terms that it grows with (`federation.estimate.work_of`), none of them
negative. It is good for machines like this one; where parties have one each, they are faster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from federation.codes import code_for_row
from federation.estimate import Speeds, usual_bins, work_of
from federation.objects import JobManifest, ScorecardParameters, TreesParameters, utc_text
from federation.package import package_sha256
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks.local import (
    local_manifest,
    local_seeds,
    run_scorecard_in_process,
    run_trees_in_process,
)
from protocols.warm import warm

FILE = "speeds.json"
LEAST_S = 0.002  # a stage that took less counts as much


@dataclass(frozen=True, slots=True)
class Shape:
    """A small job: rows, customers, fields of the bank and of each department; trees, depth."""

    rows: int
    customers: int
    own: int
    theirs: tuple[int, ...]
    trees: int = 0  # 0: a scorecard
    depth: int = 0


SHAPES = (
    Shape(3_000, 2_000, 2, (2,), 1, 2),
    Shape(20_000, 15_000, 4, (4,), 2, 3),
    Shape(30_000, 5_000, 2, (12,), 2, 3),
    Shape(4_000, 3_000, 6, (4,), 12, 3),
    Shape(40_000, 30_000, 8, (8,), 1, 4),
    Shape(1_000, 800, 2, (2,), 1, 2),  # row keys one curve point at a time
    Shape(3_000, 2_000, 2, (2, 2)),
    Shape(20_000, 15_000, 6, (4, 3)),
    Shape(30_000, 5_000, 2, (10,)),
    Shape(6_000, 4_000, 10, (3, 5)),
    Shape(1_000, 800, 2, (2, 2)),
)


def calibrate(now: datetime, told: Callable[[int, int], None] = lambda done, of: None) -> Speeds:
    """Run the small jobs, each twice, and take the faster; some ten seconds."""
    warm()
    found: dict[str, dict[str, list[tuple[tuple[float, ...], float]]]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, shape in enumerate(SHAPES):
            told(number, len(SHAPES))
            manifest, best = _measure(shape, pool)
            bins = {org: usual_bins(manifest, org) for org in manifest.departments}
            for stage, terms in work_of(manifest, bins).items():
                took = best.get(stage.split(" by ")[0], 0.0)
                found.setdefault(manifest.task, {}).setdefault(stage, []).append((terms, took))
    told(len(SHAPES), len(SHAPES))
    seconds = {
        task: {stage: _fit(seen) for stage, seen in stages.items()}
        for task, stages in found.items()
    }
    return Speeds(seconds, utc_text(now))


def load(home: Path) -> Speeds | None:
    """What was measured here before; None if nothing was, or by another package or machine."""
    try:
        plain = json.loads((home / FILE).read_bytes())
        if (plain["package"], plain["cores"]) != (package_sha256(), os.cpu_count()):
            return None
        seconds = {
            str(task): {str(stage): tuple(map(float, terms)) for stage, terms in stages.items()}
            for task, stages in plain["seconds"].items()
        }
        return Speeds(seconds, str(plain["measured"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it can be measured again


def save(home: Path, speeds: Speeds) -> None:
    """Beside the home's other files."""
    plain = {
        "package": package_sha256(),
        "cores": os.cpu_count(),
        "measured": speeds.measured,
        "seconds": {task: dict(stages) for task, stages in speeds.seconds.items()},
    }
    (home / FILE).write_text(json.dumps(plain, indent=1) + "\n")


# --- pieces ---------------------------------------------------------------------------------------


def _measure(shape: Shape, pool: ThreadPoolExecutor) -> tuple[JobManifest, Mapping[str, float]]:
    """The manifest, and seconds of the bank's stages in the faster of two runs."""
    bank, departments = made_up(shape)
    if shape.trees:
        parameters = TreesParameters(trees=shape.trees, max_depth=shape.depth, min_cohort=20)
        manifest = local_manifest({"bank": bank}, departments, parameters)
    else:
        manifest = local_manifest({"bank": bank}, departments, ScorecardParameters(min_cohort=20))
    runs: list[Mapping[str, float]] = []
    for seed in (1, 2):
        seeds = local_seeds([manifest.bank, *departments], seed)
        if shape.trees:
            trees = run_trees_in_process(bank, departments, manifest, seeds, executor=pool)
            runs.append(trees.result.seconds)
        else:
            card = run_scorecard_in_process(bank, departments, manifest, seeds, executor=pool)
            runs.append(card.result.seconds)
    stages = set(runs[0]) & set(runs[1])
    return manifest, {stage: min(run[stage] for run in runs) for stage in stages}


def made_up(shape: Shape) -> tuple[BankData, dict[str, DepartmentData]]:
    """Numbers that tell something of the label."""
    rng = np.random.default_rng(shape.rows)
    fields = shape.own + sum(shape.theirs)
    x = rng.normal(size=(fields, shape.rows))
    bad = rng.random(shape.rows) < 1 / (1 + np.exp(1 - 0.8 * x.sum(axis=0) / fields**0.5))
    codes = np.sort(code_for_row(7, np.arange(shape.rows)).astype("S18"))
    at = np.sort(rng.choice(shape.rows, shape.customers, replace=False)).astype(np.int64)
    own = [NumberColumn(f"own_{i}", x[i, at]) for i in range(shape.own)]
    bank = BankData(shape.rows, at, codes[at], own, bad[at].astype(np.uint8))
    return bank, dict(_departments(shape, x, codes))


def _departments(
    shape: Shape, x: np.ndarray, codes: np.ndarray
) -> Iterator[tuple[str, DepartmentData]]:
    first = shape.own
    for number, count in enumerate(shape.theirs):
        columns = [NumberColumn(f"far_{i}", x[i].copy()) for i in range(first, first + count)]
        yield f"department-{number}", DepartmentData(columns, codes)
        first += count


def _fit(seen: list[tuple[tuple[float, ...], float]]) -> tuple[float, ...]:
    """Seconds a unit of each term: least squares of relative errors, nothing below zero."""
    terms = np.array([item for item, _ in seen], np.float64)
    took = np.maximum([seconds for _, seconds in seen], LEAST_S)
    scale = np.maximum(terms.max(axis=0), 1e-300)  # terms of very different sizes
    found, _ = nnls(terms / scale / took[:, None], np.ones(len(took)))
    return tuple(float(value) for value in found / scale)
