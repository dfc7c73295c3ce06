"""`python -m federation.warm` compiles every kernel once into numba's cache on disk.

Those of `protocols/`, and those of the tasks: so that no job, and no two parties of one machine at
once, compile anything.
"""

from __future__ import annotations

import numpy as np

from federation.objects import TreesParameters
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks.boosting import fit_pooled
from protocols import warm as protocols_warm
from protocols.streams import SEED_BYTES, Randomness


def warm() -> None:
    """Compile, or load from the cache, every kernel of both packages."""
    protocols_warm.warm()
    rows = 400
    values = np.arange(rows, dtype=np.float64)
    codes = np.array([b"%018d" % i for i in range(rows)])
    labels = (np.arange(rows) % 3 == 0).astype(np.uint8)
    positions = np.arange(rows, dtype=np.int64)
    fit_pooled(
        "bank",
        BankData(rows, positions, codes, [NumberColumn("a", values)], labels),
        {"department": DepartmentData([NumberColumn("b", values % 50)], codes)},
        TreesParameters(trees=1, max_depth=2),
        train=np.ones(rows, bool),
        randomness=Randomness(bytes(SEED_BYTES), bytes(32), 0),
    )


if __name__ == "__main__":
    warm()
