"""How good a score is over several banks' customers, without one score leaving its bank.

Every bank counts its goods and bads in the same narrow bands of log odds; only the sum over the
banks is opened. AUC and KS of the sum are those of the scores rounded to bands: with ties inside a
band split evenly, off by less than the bands' width allows (a test holds it to scikit-learn's).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.tasks.secure_sum import Pool

Integers = NDArray[np.int64]
BANDS, LIMIT = 512, 8.0  # of log odds within +- LIMIT; the outer bands hold the rest


@dataclass(frozen=True, slots=True)
class Bands:
    """Goods and bads by band of rising risk; of one bank, or of all together."""

    goods: Integers = field(repr=False)  # (BANDS,)
    bads: Integers = field(repr=False)

    @property
    def auc(self) -> float:
        """NaN unless both classes occur."""
        goods, bads = self.goods.astype(np.float64), self.bads.astype(np.float64)
        if not goods.sum() or not bads.sum():
            return float("nan")
        below = np.cumsum(goods) - goods / 2
        return float((bads * below).sum() / (goods.sum() * bads.sum()))

    @property
    def ks(self) -> float:
        """NaN unless both classes occur."""
        if not self.goods.sum() or not self.bads.sum():
            return float("nan")
        goods = np.cumsum(self.goods) / self.goods.sum()
        bads = np.cumsum(self.bads) / self.bads.sum()
        return float(np.abs(goods - bads).max())


def bands_of(log_odds: NDArray[np.float64], labels: NDArray[np.uint8]) -> Bands:
    """Of customers with these log odds of being bad."""
    place = ((np.clip(log_odds, -LIMIT, LIMIT) + LIMIT) / (2 * LIMIT) * BANDS).astype(np.int64)
    place = np.minimum(place, BANDS - 1)
    counted = [np.bincount(place[labels == k], minlength=BANDS) for k in (0, 1)]
    return Bands(counted[0].astype(np.int64), counted[1].astype(np.int64))


def over_banks(pool: Pool, own: Bands, customers_max: int, what: str = "evaluation") -> Bands:
    """The same over all banks of the pool."""
    total = pool.integers(what, np.stack([own.goods, own.bads]), customers_max)
    return Bands(total[0], total[1])
