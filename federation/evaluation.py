"""How good a score is, and how sure one may be of it: pure functions over labels and scores.

`bad` is 1 for a bad customer and 0 for a good one. `risk` grows with the risk; a score in points
grows the other way and enters as -points. Point estimates are scikit-learn's and SciPy's.

Uncertainty  AUC and differences of AUC on the same rows: DeLong, DeLong and Clarke-Pearson (1988)
             with the midranks of Sun and Xu (2014). KS, whose distribution has no handy form:
             bootstrap within the classes. Both speak of the sample of test rows only, not of
             another draw of the training rows, nor of another year.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

CONFIDENCE = 0.95
_Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
_BOOTSTRAP_DRAWS = 400
_CURVE_POINTS = 201


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Discrimination:
    """How well a score tells bad from good."""

    rows: int
    bads: int
    auc: Interval
    gini: float  # 2 AUC - 1
    ks: Interval
    ks_threshold: float  # risk from which on a customer is called bad where KS is reached


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two scores of the same customers: the second minus the first."""

    auc: Interval
    ks: Interval
    p_value: float  # two-sided, of equal AUC


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve, thinned: no step of it can be told to be one customer's."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CumulativeShares:
    """Which share of the goods and of the bads lies at or below a score: the KS plot."""

    score: tuple[float, ...]
    goods: tuple[float, ...]
    bads: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Band:
    """Customers whose score lies in [low, high); the last band of a table includes `high`."""

    low: float
    high: float
    rows: int
    bads: int

    @property
    def bad_rate(self) -> float:
        """Share of bads, NaN for an empty band."""
        return self.bads / self.rows if self.rows else math.nan


@dataclass(frozen=True, slots=True)
class CalibrationBand:
    """Customers of similar predicted risk: what was expected of them and what came."""

    rows: int
    expected: float  # mean predicted probability
    observed: Interval  # bad rate, Wilson interval


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether predicted probabilities are bad rates."""

    bands: tuple[CalibrationBand, ...]
    brier: float
    log_loss: float
    error: float  # mean absolute gap between expected and observed, weighted by rows


@dataclass(frozen=True, slots=True)
class StabilityBand:
    """One band of the score in both populations."""

    low: float
    high: float
    expected: float  # share of the first population
    actual: float  # share of the second
    contribution: float


@dataclass(frozen=True, slots=True)
class PopulationStability:
    """The population stability index with its parts; below 0.1 is read as stable, above 0.25 as
    shifted."""

    index: float
    bands: tuple[StabilityBand, ...]


@dataclass(frozen=True, slots=True)
class GainsRow:
    """One slice of the customers, the riskiest first."""

    rows: int
    bads: int
    captured: float  # share of all bads in this slice and those before it
    lift: float  # bad rate of this slice over that of all


def discrimination(bad: ArrayLike, risk: ArrayLike, *, seed: int = 0) -> Discrimination:
    """AUC, Gini and KS of a score; ValueError unless both classes occur."""
    y, x = _classes(bad), _finite(risk)
    fpr, tpr, thresholds = roc_curve(y, x, drop_intermediate=False)
    best = int(np.argmax(tpr - fpr))
    ks = float(tpr[best] - fpr[best])
    auc = float(roc_auc_score(y, x))
    return Discrimination(
        rows=len(y),
        bads=int(y.sum()),
        auc=_normal_interval(auc, float(_delong_covariance(y, x[None, :])[0, 0]), 0.0, 1.0),
        gini=2 * auc - 1,
        ks=_bootstrap_interval(ks, _bootstrap_ks(y, x[None, :], seed)[:, 0], 0.0, 1.0),
        # `roc_curve` begins with a threshold of infinity; a constant score has no better one
        ks_threshold=float(thresholds[best]) if np.isfinite(thresholds[best]) else float(x.max()),
    )


def compare(bad: ArrayLike, before: ArrayLike, after: ArrayLike, *, seed: int = 0) -> Comparison:
    """What the risk `after` tells better than `before`, on the same rows."""
    y, risks = _classes(bad), np.stack([_finite(before), _finite(after)])
    covariance = _delong_covariance(y, risks)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    gain = float(roc_auc_score(y, risks[1]) - roc_auc_score(y, risks[0]))
    draws = _bootstrap_ks(y, risks, seed)
    p_value = 1.0 if gain == 0 else math.nan
    if gain and variance > 0:
        p_value = 2 * float(stats.norm.sf(abs(gain) / math.sqrt(variance)))
    return Comparison(
        auc=_normal_interval(gain, variance, -1.0, 1.0),
        ks=_bootstrap_interval(
            ks_statistic(y, risks[1]) - ks_statistic(y, risks[0]),
            draws[:, 1] - draws[:, 0],
            -1.0,
            1.0,
        ),
        p_value=p_value,
    )


def auc_statistic(bad: ArrayLike, risk: ArrayLike) -> float:
    """The AUC alone."""
    return float(roc_auc_score(_classes(bad), _finite(risk)))


def ks_statistic(bad: ArrayLike, risk: ArrayLike) -> float:
    """The Kolmogorov-Smirnov distance of the two classes' scores, where bads score higher."""
    fpr, tpr, _ = roc_curve(_classes(bad), _finite(risk), drop_intermediate=False)
    return float(np.max(tpr - fpr))


def roc(bad: ArrayLike, risk: ArrayLike) -> Curve:
    """The ROC curve at evenly spaced false positive rates."""
    fpr, tpr, _ = roc_curve(_classes(bad), _finite(risk))
    x = np.linspace(0.0, 1.0, _CURVE_POINTS)
    y = np.interp(x, fpr, tpr)
    y[0] = 0.0
    return Curve(_floats(x), _floats(y))


def cumulative_shares(bad: ArrayLike, score: ArrayLike) -> CumulativeShares:
    """Both classes' cumulative shares over evenly spaced scores."""
    y, x = _classes(bad), _finite(score)
    grid = np.linspace(x.min(), x.max(), _CURVE_POINTS)
    goods, bads = np.sort(x[y == 0]), np.sort(x[y == 1])
    return CumulativeShares(
        _floats(grid),
        _floats(np.searchsorted(goods, grid, side="right") / len(goods)),
        _floats(np.searchsorted(bads, grid, side="right") / len(bads)),
    )


def round_edges(score: ArrayLike, *, bands: int = 12) -> tuple[float, ...]:
    """Edges at round numbers that cover all scores in at most `bands` bands of equal width."""
    x = _finite(score)
    low, high = float(x.min()), float(x.max())
    width = 10.0 ** math.floor(math.log10(max((high - low) / bands, 1e-9)))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = width * factor
        first = math.floor(low / step)
        last = math.floor(high / step) + 1
        if last - first <= bands:
            return tuple(round(step * i, 10) for i in range(first, last + 1))
    raise RuntimeError("no round width fits")


def bands(bad: ArrayLike, score: ArrayLike, edges: Sequence[float]) -> tuple[Band, ...]:
    """Customers and bads in each band of the score; scores beyond the edges join the outer ones."""
    y, which = np.asarray(bad), _band_of(_finite(score), edges)
    rows = np.bincount(which, minlength=len(edges) - 1)
    bads = np.bincount(which, weights=y, minlength=len(edges) - 1)
    return tuple(
        Band(float(low), float(high), int(n), int(b))
        for low, high, n, b in zip(edges, edges[1:], rows, bads, strict=False)
    )


def calibration(bad: ArrayLike, probability: ArrayLike, *, bands: int = 10) -> Calibration:
    """Expected against observed bad rates, in bands of about equally many customers."""
    y, p = np.asarray(bad, dtype=np.int64), _finite(probability)
    if p.min() < 0 or p.max() > 1:
        raise ValueError("probabilities lie between 0 and 1")
    edges = _quantile_edges(p, bands)
    which = _band_of(p, edges)
    found = []
    for band in range(len(edges) - 1):
        rows = int(np.count_nonzero(which == band))
        if rows:
            bads = int(y[which == band].sum())
            interval = stats.binomtest(bads, rows).proportion_ci(CONFIDENCE, method="wilson")
            observed = Interval(bads / rows, float(interval.low), float(interval.high))
            found.append(CalibrationBand(rows, float(p[which == band].mean()), observed))
    gaps = sum(band.rows * abs(band.expected - band.observed.value) for band in found)
    return Calibration(
        bands=tuple(found),
        brier=float(brier_score_loss(y, p)),
        log_loss=float(log_loss(y, p, labels=[0, 1])),
        error=gaps / len(y),
    )


def population_stability(
    expected: ArrayLike, actual: ArrayLike, *, bands: int = 10
) -> PopulationStability:
    """How far the distribution of `actual` scores has moved from `expected`: sum over bands of
    (a - e) ln(a / e), bands at the quantiles of `expected`."""
    first, second = _finite(expected), _finite(actual)
    edges = _quantile_edges(first, bands)
    e_count = np.bincount(_band_of(first, edges), minlength=len(edges) - 1)
    a_count = np.bincount(_band_of(second, edges), minlength=len(edges) - 1)
    # Half a customer more in each band: an empty one would make the index infinite.
    e = (e_count + 0.5) / (len(first) + 0.5 * len(e_count))
    a = (a_count + 0.5) / (len(second) + 0.5 * len(a_count))
    parts = (a - e) * np.log(a / e)
    found = tuple(
        StabilityBand(float(edges[i]), float(edges[i + 1]), float(e[i]), float(a[i]), float(part))
        for i, part in enumerate(parts)
    )
    return PopulationStability(float(parts.sum()), found)


def gains(bad: ArrayLike, risk: ArrayLike, *, slices: int = 10) -> tuple[GainsRow, ...]:
    """The gains and lift table: the customers in equal slices, the riskiest first.

    Customers of equal risk share their bads evenly over the slices that they fall into, so that
    the table does not depend on the order of rows.
    """
    y, x = _classes(bad), _finite(risk)
    levels, index = np.unique(-x, return_inverse=True)
    rate = np.bincount(index, weights=y) / np.bincount(index, minlength=len(levels))
    expected = rate[np.sort(index)]  # of the customers in the order of falling risk
    found, captured, total = [], 0.0, float(y.sum())
    for part in np.array_split(expected, min(slices, len(y))):
        captured += float(part.sum())
        lift = float(part.mean()) / (total / len(y))
        found.append(GainsRow(len(part), round(float(part.sum())), captured / total, lift))
    return tuple(found)


def information_value(goods: ArrayLike, bads: ArrayLike) -> float:
    """IV of a feature from the goods and bads in its bins; half a customer in each empty cell."""
    g, b = np.asarray(goods, dtype=np.float64), np.asarray(bads, dtype=np.float64)
    filled = g + b > 0
    g, b = np.maximum(g[filled], 0.5), np.maximum(b[filled], 0.5)
    share_g, share_b = g / g.sum(), b / b.sum()
    return float(np.sum((share_b - share_g) * np.log(share_b / share_g)))


def plain(value: Any) -> Any:
    """A result as JSON: dataclasses as objects, tuples as lists, NaN and infinities as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


# --- helpers --------------------------------------------------------------------------------------


def _classes(bad: ArrayLike) -> NDArray[np.int64]:
    y = np.asarray(bad, dtype=np.int64)
    if y.ndim != 1 or not np.isin(y, (0, 1)).all() or y.min(initial=1) == y.max(initial=0):
        raise ValueError("labels must be 0 and 1, and both must occur")
    return y


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError("scores must be finite numbers, at least one")
    return x


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _quantile_edges(x: NDArray[np.float64], bands: int) -> NDArray[np.float64]:
    edges: NDArray[np.float64] = np.unique(np.quantile(x, np.linspace(0, 1, bands + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0]])


def _band_of(x: NDArray[np.float64], edges: Sequence[float] | NDArray[np.float64]) -> NDArray[Any]:
    inner = np.asarray(edges, dtype=np.float64)[1:-1]
    return np.searchsorted(inner, x, side="right")


def _normal_interval(value: float, variance: float, low: float, high: float) -> Interval:
    if not math.isfinite(variance):  # a class of one customer: anything may be true
        return Interval(value, low, high)
    half = _Z * math.sqrt(max(variance, 0.0))
    return Interval(value, max(low, value - half), min(high, value + half))


def _bootstrap_interval(
    value: float, draws: NDArray[np.float64], low: float, high: float
) -> Interval:
    # KS is a maximum, so a redrawn sample overstates it: the draws give the spread, not the centre.
    spread = np.quantile(draws, (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)) - draws.mean()
    return Interval(
        value, max(low, value + min(0.0, spread[0])), min(high, value + max(0.0, spread[1]))
    )


def _delong_covariance(y: NDArray[np.int64], risks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of the AUCs of several scores on the same rows; risks: (scores, rows)."""
    bads, goods = risks[:, y == 1], risks[:, y == 0]
    m, n = bads.shape[1], goods.shape[1]
    both = stats.rankdata(np.concatenate([bads, goods], axis=1), axis=1)
    of_bads = (both[:, :m] - stats.rankdata(bads, axis=1)) / n  # P(good below this bad)
    of_goods = 1.0 - (both[:, m:] - stats.rankdata(goods, axis=1)) / m
    if m < 2 or n < 2:
        return np.full((len(risks), len(risks)), math.nan)
    return np.atleast_2d(np.cov(of_bads) / m + np.cov(of_goods) / n)


def _bootstrap_ks(
    y: NDArray[np.int64], risks: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """KS of several scores over redrawn customers, drawn alike for all; (draws, scores)."""
    rng = np.random.default_rng(seed)
    bads, goods = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    levels = [np.unique(risk, return_inverse=True) for risk in risks]
    found = np.empty((_BOOTSTRAP_DRAWS, len(risks)))
    for draw in range(_BOOTSTRAP_DRAWS):
        some_bads = rng.choice(bads, len(bads))
        some_goods = rng.choice(goods, len(goods))
        for i, (values, index) in enumerate(levels):
            b = np.cumsum(np.bincount(index[some_bads], minlength=len(values))) / len(bads)
            g = np.cumsum(np.bincount(index[some_goods], minlength=len(values))) / len(goods)
            found[draw, i] = max(0.0, float(np.max(g - b)))
    return found
