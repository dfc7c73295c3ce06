"""The messages of a scorecard job that are not a primitive's own: one dataclass an arrow.

Arrays of decisions are integers: WOE in steps of 0.05, directions in 8 bits, whole points.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.tasks.binning import WOE_LIMIT, FeatureBins
from federation.tasks.fit import DIRECTION_LIMIT

DIGEST_BYTES = 32
POINTS_LIMIT = 1 << 15
SHIFT_LIMIT = 30


def _require_digest(*values: bytes) -> None:
    if any(len(value) != DIGEST_BYTES for value in values):
        raise ValueError("a digest has 32 bytes")


@dataclass(frozen=True, slots=True)
class Commitments:
    """Each party to all others, first: salted hashes of seed, nonce and its data."""

    seed: bytes
    nonce: bytes
    data: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _require_digest(self.seed, self.nonce, *self.data)


@dataclass(frozen=True, slots=True)
class OpenedNonce:
    """Each party to all others, when all commitments are in."""

    nonce: bytes

    def __post_init__(self) -> None:
        _require_digest(self.nonce)


@dataclass(frozen=True, slots=True)
class Agreed:
    """Each party to all others: what it saw from everybody, so that none told two stories."""

    digest: bytes

    def __post_init__(self) -> None:
        _require_digest(self.digest)


@dataclass(frozen=True, slots=True)
class Rows:
    """Department to bank: the cover that its gate gave it, and its key for this bank's row keys."""

    rows: int
    digest: bytes  # of the codes in order
    oprf_key: bytes  # empty without a VOPRF

    def __post_init__(self) -> None:
        _require_digest(self.digest)


@dataclass(frozen=True, slots=True, eq=False)
class Definitions:
    """Department to bank: the pre-bins of every field, in the manifest's order."""

    features: tuple[FeatureBins, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """Department to department: how many bins each of its features has, no more."""

    bins: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class WoeTables:
    """Bank to department: WOE steps of every pre-bin, and which features take part."""

    woe: NDArray[np.int8] = field(repr=False)  # (columns of the one-hot matrix,)
    kept: NDArray[np.uint8] = field(repr=False)  # (features,) 0 or 1

    def __post_init__(self) -> None:
        wide = self.woe.astype(np.int64)
        if wide.ndim != 1 or self.kept.ndim != 1 or np.abs(wide).max(initial=0) > WOE_LIMIT:
            raise ValueError("WOE tables beyond their limits")
        if self.kept.max(initial=0) > 1:
            raise ValueError("a feature takes part or not")


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """Querying department to bank: its opened but still masked sums, and its squares."""

    masked: NDArray[np.int64] = field(repr=False)  # (queries, columns of the queried one) mod q
    squares: NDArray[np.int64] = field(repr=False)  # (features,) of its own levels over its records

    def __post_init__(self) -> None:
        if self.masked.ndim != 2 or self.squares.ndim != 1:
            raise ValueError("sums between departments of a wrong shape")


@dataclass(frozen=True, slots=True, eq=False)
class Correlations:
    """Department to bank: of its own features over its records, in hundredths."""

    hundredths: NDArray[np.int8] = field(repr=False)  # (pairs,) j < l, row by row

    def __post_init__(self) -> None:
        wide = self.hundredths.astype(np.int64)
        if wide.ndim != 1 or np.abs(wide).max(initial=0) > 100:
            raise ValueError("correlations beyond one")


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """Bank to department: a direction to open, or that nothing more is opened.

    Of one size whatever it says: score = sum coefficient * WOE steps / 2^shift, in logits.
    """

    open: NDArray[np.uint8]  # (1,) 1 if a score is to be sealed
    coefficients: NDArray[np.int8] = field(repr=False)  # (features,)
    shift: NDArray[np.int8]  # (1,)

    def __post_init__(self) -> None:
        wide = self.coefficients.astype(np.int64)
        if wide.ndim != 1 or np.abs(wide).max(initial=0) > DIRECTION_LIMIT:
            raise ValueError("a direction beyond 8 bits")
        if self.open.shape != (1,) or self.open[0] > 1:
            raise ValueError("a score is to be sealed or not")
        if self.shift.shape != (1,) or abs(int(self.shift[0])) > SHIFT_LIMIT:
            raise ValueError("a direction's scale is out of range")

    @property
    def is_open(self) -> bool:
        """Whether a score is to be sealed."""
        return bool(self.open[0])

    @property
    def scale(self) -> float:
        """2^shift."""
        return 2.0 ** int(self.shift[0])


@dataclass(frozen=True, slots=True, eq=False)
class PointsTables:
    """Bank to department: points of every pre-bin."""

    points: NDArray[np.int32] = field(repr=False)  # (columns of the one-hot matrix,)

    def __post_init__(self) -> None:
        if (
            self.points.ndim != 1
            or np.abs(self.points.astype(np.int64)).max(initial=0) >= POINTS_LIMIT
        ):
            raise ValueError("points beyond their limits")


@dataclass(frozen=True, slots=True)
class Finished:
    """Bank to department: the job is done; both ends have seen the same frames."""

    digest: bytes  # of the department's part of the model

    def __post_init__(self) -> None:
        _require_digest(self.digest)
