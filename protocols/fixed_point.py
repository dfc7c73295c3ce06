"""Real vectors as bounded integers for a modular sum: clip, scale, round at random.

`x / resolution` becomes its floor or the next integer, at random with the right expectation, so
that the sum over parties is unbiased. The draw follows from the party's seed and the values: a
repeat gives the same bits, other values are rounded afresh (PROTOCOLS.md sections 4 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

import numpy as np
from numpy.typing import NDArray

from protocols import labels
from protocols.errors import ParameterError
from protocols.streams import Randomness, digest


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Values clipped to [-clip, clip], in steps of `resolution`."""

    clip: float
    resolution: float

    def __post_init__(self) -> None:
        if not (isfinite(self.clip) and self.clip > 0 and self.resolution > 0):
            raise ValueError("clip and resolution are positive and finite")
        if not self.clip / self.resolution < 2**52:
            raise ParameterError(
                f"{self.clip:g} in steps of {self.resolution:g} is beyond the 52 bits of a float: "
                f"raise the resolution"
            )

    @property
    def bound(self) -> int:
        """Largest absolute value of an encoded entry: what a secure sum must leave room for."""
        return ceil(self.clip / self.resolution)

    def encode(
        self, values: NDArray[np.floating], randomness: Randomness, *, stage: str, step: int
    ) -> NDArray[np.int64]:
        """Integers of at most `bound`, same shape. ValueError unless all values are finite."""
        exact = np.ascontiguousarray(values, "<f8")
        if not np.all(np.isfinite(exact)):
            raise ValueError("values are finite")
        scaled = np.clip(exact, -self.clip, self.clip) / self.resolution
        inputs = digest(self.clip.hex(), self.resolution.hex(), exact.tobytes())
        stream = randomness.stream(labels.SECAGG_ROUNDING, stage=stage, step=step, inputs=inputs)
        uniform = (stream.words(*scaled.shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        low: NDArray[np.float64] = np.floor(scaled)
        # Not floor(scaled + uniform): that sum itself rounds, and a full step may come out beyond
        # the bound.
        up = uniform < scaled - low
        encoded: NDArray[np.int64] = low.astype(np.int64) + up
        return encoded

    def decode(self, total: NDArray[np.int64]) -> NDArray[np.float64]:
        """A sum of encoded vectors as real numbers."""
        return total.astype(np.float64) * self.resolution
