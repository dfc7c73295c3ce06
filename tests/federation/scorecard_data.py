"""A city in small: one bank, a few departments, columns of every awkward kind.

world = make_world(rows=1500, customers=1200)
run = world.run(openings=1)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from federation.channel import Channel
from federation.objects import JobManifest, ScorecardParameters
from federation.tables import BankData, CategoryColumn, Column, DepartmentData, NumberColumn
from federation.tasks.local import (
    LocalScorecard,
    local_manifest,
    local_seeds,
    run_scorecard_in_process,
)

# Quick, and enough to tell parties apart: without row keys a run takes a fraction of a second.
SUMS_ONLY = {"openings": 0, "evaluation": False}


@dataclass(frozen=True)
class World:
    bank: BankData
    departments: dict[str, DepartmentData]

    def manifest(self, **parameters: object) -> JobManifest:
        return local_manifest(
            {"bank": self.bank}, self.departments, ScorecardParameters.model_validate(parameters)
        )

    def run(
        self,
        manifest: JobManifest | None = None,
        *,
        seed: int = 0,
        channels: dict[str, dict[str, Channel]] | None = None,
        **parameters: object,
    ) -> LocalScorecard:
        manifest = manifest or self.manifest(**parameters)
        seeds = local_seeds(["bank", *self.departments], seed)
        return run_scorecard_in_process(
            self.bank, self.departments, manifest, seeds, channels=channels
        )


@cache
def make_world(
    rows: int = 1500,
    customers: int = 1200,
    *,
    departments: int = 2,
    own: int = 3,
    bad_rate: float = 0.25,
    seed: int = 0,
    labels_seed: int = 0,
    customers_seed: int = 0,
) -> World:
    """Correlated features with missing values, outliers, ties, text, a constant and a duplicate."""
    rng = np.random.default_rng(seed)
    count = own + 5 * departments
    common = rng.normal(size=(rows, 2))
    x = 0.7 * common @ rng.normal(size=(2, count)) + rng.normal(size=(rows, count))
    risk = x @ rng.normal(size=count) * 0.5
    dice = np.random.default_rng(labels_seed).random(rows)
    cut = np.quantile(risk + np.log(dice / (1 - dice)), 1 - bad_rate)
    labels = (risk + np.log(dice / (1 - dice)) > cut).astype(np.uint8)
    codes = np.array([f"{i:018d}" for i in range(rows)], "S18")
    chosen = np.random.default_rng(customers_seed).permutation(rows)[:customers]
    positions = np.sort(chosen).astype(np.int64)
    whole: list[Column] = [NumberColumn(f"own_{j}", x[:, j]) for j in range(own)]
    bank = BankData(
        rows,
        positions,
        codes[positions],
        [column.take(positions) for column in whole],
        labels[positions],
    )
    theirs = {
        f"dept_{d}": DepartmentData(_columns(x[:, own + 5 * d :][:, :5], rng), codes)
        for d in range(departments)
    }
    return World(bank, theirs)


def _columns(x: NDArray[np.float64], rng: np.random.Generator) -> list[Column]:
    rows = len(x)
    wild = x[:, 0].copy()
    wild[rng.integers(rows, size=3)] = [np.inf, -np.inf, 1e300]
    unknown = np.where(rng.random(rows) < 0.15, np.nan, x[:, 1])
    tied = np.where(x[:, 2] < 0.3, 0.0, np.round(x[:, 2], 1))
    codes = np.clip(np.floor(x[:, 3] + 3), 0, 5).astype(np.int32)
    codes[rng.random(rows) < 0.1] = -1
    return [
        NumberColumn("wild", wild),
        NumberColumn("unknown", unknown),
        NumberColumn("tied", tied),
        CategoryColumn("kind", codes, ("a", "b", "c", "d", "e", "f")),
        NumberColumn("again", unknown.copy()),
        NumberColumn("constant", np.full(rows, 3.0)),
    ]
