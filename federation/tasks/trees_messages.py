"""The messages of a job of boosted trees that are not a primitive's own: one dataclass an arrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.tasks.trees_grow import Split


@dataclass(frozen=True, slots=True)
class NextTree:
    """Bank to department, before every tree that the schedule has: it comes, or none does."""

    more: bool


@dataclass(frozen=True, slots=True)
class StartAt:
    """Bank to department, with the thresholds it has of it: the tree that it goes on with."""

    tree: int


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """Bank to department, at the end of every round: what to open; mostly nothing.

    Before the first tree: department to bank, what it ever opened in this job, and back, what the
    bank still has of that.
    """

    features: NDArray[np.uint16] = field(repr=False)  # among the department's
    cuts: NDArray[np.uint8] = field(repr=False)
    missing_left: NDArray[np.uint8] = field(repr=False)  # 0 or 1

    def __post_init__(self) -> None:
        shapes = {self.features.shape, self.cuts.shape, self.missing_left.shape}
        if len(shapes) != 1 or self.features.ndim != 1 or self.missing_left.max(initial=0) > 1:
            raise ValueError("thresholds of unequal length")

    @classmethod
    def of(cls, splits: Sequence[Split]) -> Thresholds:
        """Splits whose features count among the department's."""
        return cls(
            np.array([split.feature for split in splits], np.uint16),
            np.array([split.cut for split in splits], np.uint8),
            np.array([split.missing_left for split in splits], np.uint8),
        )

    def splits(self) -> tuple[Split, ...]:
        """The same as growth names them."""
        rows = zip(self.features, self.cuts, self.missing_left, strict=True)
        return tuple(Split(int(f), int(c), bool(m)) for f, c, m in rows)
