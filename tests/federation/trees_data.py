"""A small city for boosted trees: numbers with gaps, a category, an effect that needs both owners.

world = make_trees_world()
run = world.run(trees=2)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from federation.channel import Channel
from federation.objects import JobManifest, TreesParameters
from federation.tables import BankData, CategoryColumn, Column, DepartmentData, NumberColumn
from federation.tasks import boosting
from federation.tasks.boosting import PooledTrees
from federation.tasks.local import LocalTrees, local_manifest, local_seeds, run_trees_in_process
from federation.tasks.trees_model import TreesResult
from protocols.streams import Randomness

SMALL: dict[str, object] = {
    "trees": 2,
    "max_depth": 3,
    "min_cohort": 15,
    "max_bins": 8,
    "ask_customers": 40,
}


@dataclass(frozen=True)
class TreesWorld:
    bank: BankData
    departments: dict[str, DepartmentData]

    def manifest(self, **parameters: object) -> JobManifest:
        """Small trees, unless the parameters say otherwise."""
        made = TreesParameters.model_validate({**SMALL, **parameters})
        return local_manifest({"bank": self.bank}, self.departments, made)

    def run(
        self,
        manifest: JobManifest | None = None,
        *,
        seed: int = 0,
        channels: dict[str, dict[str, Channel]] | None = None,
        **parameters: object,
    ) -> LocalTrees:
        manifest = manifest or self.manifest(**parameters)
        return run_trees_in_process(self.bank, self.departments, manifest, seed, channels=channels)

    def pooled(
        self, result: TreesResult | None = None, *, seed: int = 0, **parameters: object
    ) -> PooledTrees:
        """The same trees in the clear: of a run's own customers, or of all."""
        manifest = self.manifest(**parameters)
        everybody = np.ones(self.bank.customers, bool)
        return boosting.fit_pooled(
            "bank",
            self.bank,
            self.departments,
            manifest.trees,
            train=~(result.test | result.validation) if result else everybody,
            validation=result.validation if result else None,
            vmax=manifest.query.vmax,
            randomness=Randomness(
                local_seeds(["bank"], seed)["bank"], bytes.fromhex(manifest.digest()), 0
            ),
            coins=result.coins if result else b"",
        )

    @property
    def columns(self) -> dict[tuple[str, str], Column]:
        """All columns of the bank's customers, by (owner, name)."""
        found: dict[tuple[str, str], Column] = {("bank", c.name): c for c in self.bank.columns}
        for org, data in self.departments.items():
            found |= {(org, c.name): c.take(self.bank.positions) for c in data.columns}
        return found


@cache
def make_trees_world(
    rows: int = 500,
    customers: int = 360,
    *,
    departments: int = 1,
    seed: int = 0,
    labels_seed: int = 0,
    customers_seed: int = 0,
) -> TreesWorld:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3 + 2 * departments))
    kind = rng.integers(0, 4, rows).astype(np.int32)
    margin = 1.2 * x[:, 0] + 1.5 * x[:, 3] + 1.2 * (x[:, 3] > 0) * x[:, 1] + 0.8 * (kind == 2) - 0.5
    x[:, 3:][rng.random((rows, 2 * departments)) < 0.1] = np.nan
    draw = np.random.default_rng((labels_seed, 1)).random(rows)
    bad = (draw < 1 / (1 + np.exp(-margin))).astype(np.uint8)
    codes = np.array([f"{i:018d}" for i in range(rows)], "S18")
    chosen = np.random.default_rng((customers_seed, 2)).choice(rows, customers, replace=False)
    at = np.sort(chosen).astype(np.int64)
    own = [NumberColumn(f"own_{i}", x[at, i]) for i in range(3)]
    bank = BankData(rows, at, codes[at], own, bad[at])
    others = {}
    for d in range(departments):
        numbers: list[Column] = [
            NumberColumn(f"far_{d}{i}", x[:, 3 + 2 * d + i].copy()) for i in range(2)
        ]
        if d == 0:
            numbers.append(CategoryColumn("kind", kind, ("a", "b", "c", "d")))
        others[("tax", "court")[d]] = DepartmentData(numbers, codes)
    return TreesWorld(bank, others)


def bad_rate_by(values: NDArray[np.float64], margins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean margin over tenths of a feature, in its order."""
    order = np.argsort(values)
    return np.array([part.mean() for part in np.array_split(margins[order], 10)])
