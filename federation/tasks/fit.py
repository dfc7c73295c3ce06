"""Penalised logistic regression whose inputs come in as sums (PROTOCOLS.md section 7, scorecard).

The model is the log odds of a *good* customer: intercept + sum of coefficient * WOE. The bank has
its own WOE columns row by row; of the departments' it has sums over customers and, where openings
are approved, one rounded score a customer along a direction that it chose.

    curvature   the Hessian in one coordinate system for all features, put together from what was
                opened: exact for the bank, bank against department and each single feature;
                coarse within a department; population correlations between departments
    step        Newton's step with that curvature, a *direction* for the departments' coefficients
    refit       exact fit of the bank's columns and all opened directions, penalised on the
                coefficients that these imply, so that it is the pooled penalised fit on a subspace

Replay  Whatever enters a query must come out bit for bit when an auditor repeats the run. Columns
        are integers; probabilities are read from a table of 2^-24 steps; gradient and Hessian are
        sums of integers below 2^53, exact in float64 in any order; small systems are solved by an
        elimination of elementwise operations, without a threaded library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from federation.tasks.binning import WOE_STEP
from federation.tasks.secure_sum import Pool
from protocols.streams import Stream

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

P_BITS = 24  # probabilities are multiples of 2^-24
W_BITS = 16  # weights in a Hessian, so that its sums stay below 2^53 for a million rows
SCORE_BITS = 12  # scores are looked up in steps of 2^-12 logit
SCORE_LIMIT = 16  # logits; p = 1e-7
LOSS_BITS = 24  # of a log loss that is summed over banks
SUM_BOUND = 1 << 54
COEFFICIENT_BITS = 20  # of a logit a WOE step
DIRECTION_LIMIT = 127  # 8 bits a coefficient
# Share of a feature's variance that no other may explain: coarse correlations cannot tell more.
MIN_TOLERANCE = 0.02
RIDGE, RIDGE_PER_FEATURE = 0.1, 10.0
STEP_LIMIT = 2.5  # of a coefficient on WOE, in a step that nobody will check
SHRINKAGES = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


# --- exact pieces ---------------------------------------------------------------------------------


@cache
def _sigmoid_table() -> Integers:
    at = np.arange(-SCORE_LIMIT << SCORE_BITS, (SCORE_LIMIT << SCORE_BITS) + 1)
    # No entry lies within 1e-7 of a rounding boundary (tested), so that the last bit of the
    # machine's exp, some 1e-9 of a step here, does not matter.
    return np.rint(2.0**P_BITS / (1.0 + np.exp(-at / 2.0**SCORE_BITS))).astype(np.int64)


def probability(scores: Integers) -> Integers:
    """Of a good customer, in steps of 2^-24; scores in steps of 2^-12 logit."""
    limit = SCORE_LIMIT << SCORE_BITS
    return _sigmoid_table()[np.clip(scores, -limit, limit) + limit]


def quantise(numerator: Integers, denominator: int, stream: Stream) -> Integers:
    """numerator / denominator, rounded up or down at random with the right expectation."""
    if not 0 < denominator < 1 << 31:
        raise ValueError("the denominator has at most 31 bits: products with 32 more must fit")
    draws = (stream.words(numerator.size) >> np.uint64(32)).astype(np.int64)
    whole, rest = np.divmod(numerator, denominator)
    return whole + (draws * denominator < rest << 32).astype(np.int64)


def solve(matrix: Floats, right: Floats) -> Floats | None:
    """x with matrix x = right, for a symmetric positive definite matrix; None if it is not."""
    a, b = matrix.copy(), right.copy()
    size, floor = len(b), 1e-10 * np.abs(np.diagonal(matrix))
    for k in range(size):
        if not a[k, k] > floor[k]:
            return None
        factor = a[k + 1 :, k] / a[k, k]
        a[k + 1 :, k + 1 :] -= np.multiply.outer(factor, a[k, k + 1 :])
        b[k + 1 :] -= factor * b[k]
    for k in range(size - 1, -1, -1):
        b[k] /= a[k, k]
        b[:k] -= a[:k, k] * b[k]
    return b


def _solve_columns(matrix: Floats, right: Floats) -> Floats:
    """`solve` for every column; a matrix that is not definite gets a small ridge."""
    ridge = np.diag(1e-6 * np.diagonal(matrix) + 1e-9)
    columns = [solve(matrix + ridge, column) for column in right.T]
    return (
        np.array([np.zeros(len(matrix)) if x is None else x for x in columns])
        .reshape(right.shape[::-1])
        .T
    )


def _repaired(exact: Floats, coarse: Floats) -> Floats:
    """A covariance from two sources, shrunk until it is positive definite: first what `coarse` adds
    (rounded, or of another population), then all that is off the diagonal."""
    diagonal = np.diag(np.diagonal(exact))
    floor, nought = MIN_TOLERANCE * diagonal, np.zeros(len(exact))
    for keep in SHRINKAGES:
        tried = exact + keep * coarse
        if solve(tried - floor, nought) is not None:
            return tried
    for keep in SHRINKAGES:
        tried = diagonal + keep * (exact - diagonal)
        if solve(tried - floor, nought) is not None:
            return tried
    return diagonal


# --- the exact fit on columns that one has --------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A fitted linear score: coefficients on real columns, and the rows' scores."""

    intercept: float
    coefficients: Floats
    scores: Integers = field(repr=False)  # (rows,) in steps of 2^-12 logit
    objective: float  # log loss summed over rows, plus the penalty


def fit_logistic(
    columns: Floats,
    steps: Floats,
    goods: NDArray[np.bool_],
    penalty: Floats,
    start: tuple[float, Floats] | None = None,
    pool: Pool | None = None,
) -> Fit:
    """Minimise log loss + b' penalty b / 2 with a free intercept, by Newton's method.

    columns: (rows, k) integers held as floats; column j stands for columns[:, j] * steps[j].
    penalty: (k, k), positive semidefinite, on the coefficients of the real columns. pool: the banks
    whose rows are fitted together; scores and columns are those of one.
    """
    rows, k = columns.shape
    y = goods.astype(np.int64) << P_BITS
    everybody = total(pool, "rows", np.array([goods.sum(), rows], np.float64))
    base = float(everybody[0] / everybody[1])
    b = np.zeros(k + 1)
    b[0] = math.log(base / (1 - base))
    if start is not None:
        b[0], b[1:] = start[0], start[1]
    scale = np.concatenate([[1.0], steps])
    padded = np.column_stack([np.ones(rows), columns])
    ridge = np.zeros((k + 1, k + 1))
    ridge[1:, 1:] = penalty

    def at(b: Floats) -> tuple[Floats, Integers, float]:
        fixed = np.rint(b * scale * 2.0**COEFFICIENT_BITS)
        drop = COEFFICIENT_BITS - SCORE_BITS
        scores = ((padded @ fixed).astype(np.int64) + (1 << (drop - 1))) >> drop
        exact = fixed / 2.0**COEFFICIENT_BITS / scale
        lost = log_loss(scores, goods)
        if pool is not None and len(pool.members) > 1:
            steps_ = np.rint(np.array([lost]) * 2.0**LOSS_BITS)
            lost = float(total(pool, "loss", steps_)[0]) / 2.0**LOSS_BITS
        return exact, scores, lost + float(exact @ ridge @ exact) / 2

    b, scores, objective = at(b)
    for _ in range(40):
        p = probability(scores)
        slope = total(pool, "gradient", padded.T @ (y - p).astype(np.float64))
        gradient = slope / 2.0**P_BITS * scale - ridge @ b
        w = (p * ((1 << P_BITS) - p)) >> (2 * P_BITS - W_BITS)
        hessian = total(pool, "hessian", (padded.T * w.astype(np.float64)) @ padded) / 2.0**W_BITS
        hessian = hessian * np.multiply.outer(scale, scale) + ridge
        hessian[np.diag_indices(k + 1)] += 1e-6 * (1.0 + np.diagonal(hessian))
        step = solve(hessian, gradient)
        if step is None:
            raise RuntimeError("a sum of squares is not positive definite")
        better = None
        for halving in range(12):
            tried = at(b + step / 2**halving)
            if tried[2] < objective:
                better = tried
                break
        if better is None or objective - better[2] < 1e-9 * (1.0 + abs(objective)):
            if better is not None:
                b, scores, objective = better
            break
        b, scores, objective = better
    return Fit(float(b[0]), b[1:], scores, objective)


def total(pool: Pool | None, what: str, sums: Floats) -> Floats:
    """Exact sums (integers below 2^53) over all banks; of one bank they are its own."""
    if pool is None or len(pool.members) == 1:
        return sums
    return pool.integers(f"fit {what}", sums.astype(np.int64), SUM_BOUND).astype(np.float64)


def log_loss(scores: Integers, goods: NDArray[np.bool_]) -> float:
    """Summed over the rows."""
    real = scores / 2.0**SCORE_BITS
    return float(np.logaddexp(0.0, np.where(goods, -real, real)).sum())


# --- what is fitted from sums ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class RemoteFeature:
    """A department's feature in the fit: WOE steps of each of its pre-bins, and where these are."""

    owner: str
    name: str
    columns: slice  # of the owner's one-hot matrix
    woe: Integers = field(repr=False)  # (bins,) steps

    def moment(self, sums: Mapping[str, Integers], power: int = 1) -> float:
        """Sum over the rows of v * WOE^power, from opened column sums of v."""
        return float((sums[self.owner][self.columns] * self.woe**power).sum()) * WOE_STEP**power


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """One opened direction: what the departments were sent and what their sum was a customer."""

    coefficients: Integers  # (remote features,) -127..127, of a WOE step
    shift: int  # value = sum coefficient * step / 2^shift
    steps: Integers = field(repr=False)  # (train rows,) in steps of the resolution

    def implied(self) -> Floats:
        """Coefficients on WOE that a coefficient of 1 on this score stands for."""
        return self.coefficients / 2.0**self.shift / WOE_STEP


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """Where the fit stands."""

    intercept: float
    own: Floats
    remote: Floats
    scores: Integers = field(repr=False)  # of the train rows; opened scores are rounded
    objective: float


class JointFit:
    """The bank's side of the fit, without any word about how sums are obtained.

    own: (train rows, k) WOE steps of the bank's kept features; remote: the departments' kept ones,
    owner by owner.
    """

    def __init__(
        self,
        own: Integers,
        goods: NDArray[np.bool_],
        remote: Sequence[RemoteFeature],
        penalty: float,
        resolution: float,
        pool: Pool | None = None,
        largest: Sequence[int] = (),
    ) -> None:
        """pool: the banks that fit together. largest: the scale of each own column, which has to be
        the same at all of them; of one bank it is that of its rows."""
        self._pool, self._largest = pool, tuple(largest)
        self.own, self.goods, self.remote = own.astype(np.float64), goods, tuple(remote)
        self.penalty, self.resolution = penalty, resolution
        self.opened: list[Opened] = []
        k = own.shape[1]
        steps, ridge = np.full(k, WOE_STEP), penalty * np.eye(k)
        alone = fit_logistic(self.own, steps, goods, ridge, pool=pool)
        self.alone = alone
        self.now = Coefficients(
            alone.intercept,
            alone.coefficients,
            np.zeros(len(remote)),
            alone.scores,
            alone.objective,
        )
        self._hessian: Floats | None = None

    def alone_here(self) -> Fit:
        """The fit of the own columns on own rows, whoever else there is: for comparison."""
        if self._pool is None or len(self._pool.members) == 1:
            return self.alone
        k = self.own.shape[1]
        if len(np.unique(self.goods)) < 2:
            return self.alone
        return fit_logistic(self.own, np.full(k, WOE_STEP), self.goods, self.penalty * np.eye(k))

    # what is asked

    def residuals(self, vmax: int, stream: Stream) -> Integers:
        """v of the gradient: (label of good - p) * vmax."""
        p = probability(self.now.scores)
        y = self.goods.astype(np.int64) << P_BITS
        return quantise((y - p) * vmax, 1 << P_BITS, stream)

    def weights(self, vmax: int, stream: Stream) -> Integers:
        """v of the curvature: 4 p (1 - p) * vmax."""
        return quantise(self._weights() * 4 * vmax, 1 << P_BITS, stream)

    def weighted_column(self, column: int, vmax: int, stream: Stream) -> Integers:
        """v of the bank-department blocks: 4 p (1 - p) * x * vmax / max |x|."""
        x = self.own[:, column].astype(np.int64)
        return quantise(self._weights() * 4 * x * vmax, self.largest(column) << P_BITS, stream)

    def largest(self, column: int) -> int:
        """The scale of `weighted_column`, in WOE steps."""
        if self._largest:
            return self._largest[column]
        return max(int(np.abs(self.own[:, column]).max(initial=0)), 1)

    def _total(self, what: str, sums: Floats) -> Floats:
        return total(self._pool, what, sums)

    def _weights(self) -> Integers:
        p = probability(self.now.scores)
        return (p * ((1 << P_BITS) - p)) >> P_BITS

    # curvature

    def set_curvature(
        self,
        weights: Mapping[str, Integers],
        weighted: Sequence[Mapping[str, Integers]],
        vmax: int,
        counts: Mapping[str, Integers],
        within: Mapping[tuple[int, int], float],
        population: Mapping[tuple[int, int], float],
    ) -> None:
        """Put the Hessian together, at the bank's own fit.

        weights, weighted, counts: opened sums of the queries of these names. within: sum of
        p (1 - p) x_j x_l for pairs of remote features of one owner. population: correlations over
        the cover of all pairs that `within` lacks.

        A population correlation r is not the correlation under the weights p (1 - p), which favour
        the customers in the middle of the bank's own score. Given the bank's columns the weights
        are constant, so what they change goes through these: of cov(x_j, x_l) = G_j' V G_l + rest
        only V, the bank's own covariance, differs, and the rest keeps its correlation.
        """
        k, m = self.own.shape[1], len(self.remote)
        h = np.zeros((1 + k + m, 1 + k + m))
        own = np.column_stack([np.ones(len(self.own)), self.own])
        w = np.floor(self._weights() / 2.0 ** (P_BITS - W_BITS))  # exact sums, see the top
        scale = np.concatenate([[1.0], np.full(k, WOE_STEP)])
        square = np.multiply.outer(scale, scale)
        h[: 1 + k, : 1 + k] = self._total("curvature", (own.T * w) @ own) / 2.0**W_BITS * square
        flat = self._total("products", own.T @ own) * square
        rows = float(flat[0, 0])
        unit = 1.0 / (4 * vmax)
        mean, variance = np.zeros(m), np.zeros(m)  # of the remote features, unweighted
        for j, feature in enumerate(self.remote):
            at = 1 + k + j
            h[0, at] = h[at, 0] = feature.moment(weights) * unit
            h[at, at] = max(feature.moment(weights, 2) * unit, 1e-9)
            for c, sums in enumerate(weighted):
                factor = unit * self.largest(c) * WOE_STEP
                h[1 + c, at] = h[at, 1 + c] = feature.moment(sums) * factor
            mean[j] = feature.moment(counts) / rows
            variance[j] = max(feature.moment(counts, 2) / rows - mean[j] ** 2, 0.0)
        total = h[0, 0]
        weighted_mean = h[0] / total
        centred = h / total - np.multiply.outer(weighted_mean, weighted_mean)
        v = centred[1 : 1 + k, 1 : 1 + k]
        flat_mean = flat[0, 1:] / rows
        flat_v = flat[1:, 1:] / rows - np.multiply.outer(flat_mean, flat_mean)
        gain = _solve_columns(v, centred[1 : 1 + k, 1 + k :])  # G: (k, m)
        through, flat_through = gain.T @ v @ gain, gain.T @ flat_v @ gain
        spread = np.sqrt(np.maximum(variance, 1e-9))
        rest = np.maximum(np.diagonal(centred)[1 + k :] - np.diagonal(through), 1e-9)
        flat_rest = np.maximum(variance - np.diagonal(flat_through), 1e-2 * variance + 1e-9)
        residual = np.diag(rest)
        for (j, other), value in within.items():
            means = weighted_mean[1 + k + j] * weighted_mean[1 + k + other]
            residual[j, other] = residual[other, j] = value / total - means - through[j, other]
        coarse = np.zeros_like(residual)
        for (j, other), correlation in population.items():
            r = correlation * spread[j] * spread[other] - flat_through[j, other]
            r = max(-1.0, min(1.0, r / math.sqrt(flat_rest[j] * flat_rest[other])))
            coarse[j, other] = coarse[other, j] = r * math.sqrt(rest[j] * rest[other])
        remote = weighted_mean[1 + k :]
        fixed = (through + np.multiply.outer(remote, remote)) * total
        repaired = _repaired(residual + RIDGE * np.diag(rest), coarse)
        # What the customers' information (sum of p (1 - p)) cannot tell apart must not be inverted
        # either; with few bads this ridge is what keeps the first step in reach.
        ridge = np.diag(rest) * RIDGE_PER_FEATURE * m / max(total, 1e-9)
        h[1 + k :, 1 + k :] = fixed + (repaired + ridge) * total
        self._hessian = h

    def _ridge(self) -> Floats:
        ridge = np.full(1 + self.own.shape[1] + len(self.remote), self.penalty)
        ridge[0] = 1e-6
        return np.diag(ridge)

    # steps

    def gradient(self, residuals: Mapping[str, Integers], vmax: int) -> Floats:
        """Of the penalised log likelihood, for the departments' coefficients."""
        sums = np.array([feature.moment(residuals) / vmax for feature in self.remote])
        return sums - self.penalty * self.now.remote

    def newton(self, gradient: Floats) -> Floats:
        """Newton's step for all coefficients: intercept, own, remote."""
        if self._hessian is None:
            raise RuntimeError("newton comes after set_curvature")
        k = self.own.shape[1]
        p = probability(self.now.scores)
        y = self.goods.astype(np.int64) << P_BITS
        r = (y - p).astype(np.float64)
        full = np.empty(1 + k + len(self.remote))
        slope = self._total("slope", np.concatenate([[r.sum()], self.own.T @ r])) / 2.0**P_BITS
        full[0] = slope[0]
        full[1 : 1 + k] = slope[1:] * WOE_STEP - self.penalty * self.now.own
        full[1 + k :] = gradient
        step = solve(self._hessian + self._ridge(), full)
        if step is None:
            raise RuntimeError("the repaired curvature is not positive definite")
        return step

    @property
    def information(self) -> float:
        """Sum of p (1 - p) over the training customers at the bank's own fit."""
        return float(self._hessian[0, 0]) if self._hessian is not None else 0.0

    def promise(self, gradient: Floats, step: Floats) -> float:
        """The gain in log loss that a quadratic model expects of a step."""
        return float(gradient @ step[1 + self.own.shape[1] :]) / 2

    def take(self, step: Floats) -> None:
        """Go a step without opening it; the scores stay those of the bank's own fit.

        It is shortened so that no coefficient of a department exceeds `STEP_LIMIT`: WOE that stands
        alone has 1, and far beyond it coarse correlations have been inverted, not effects found.
        """
        k, now = self.own.shape[1], self.now
        step = step * min(
            1.0, STEP_LIMIT / max(float(np.abs(step[1 + k :]).max(initial=0.0)), 1e-9)
        )
        self.now = Coefficients(
            now.intercept + float(step[0]),
            now.own + step[1 : 1 + k],
            now.remote + step[1 + k :],
            now.scores,
            math.nan,
        )

    def direction(self, step: Floats, spread: float) -> tuple[Integers, int]:
        """The departments' part of a step as 8-bit integers, and the power of two that gives its
        score a standard deviation of about `spread` over the customers."""
        k = self.own.shape[1]
        remote = step[1 + k :]
        largest = float(np.abs(remote).max(initial=0.0))
        if largest == 0.0 or self._hessian is None:
            return np.zeros(len(remote), np.int64), 0
        coefficients = np.rint(remote / largest * DIRECTION_LIMIT).astype(np.int64)
        mean = self._hessian[0] / self._hessian[0, 0]
        covariance = self._hessian / self._hessian[0, 0] - np.multiply.outer(mean, mean)
        part = covariance[1 + k :, 1 + k :] / WOE_STEP**2
        sd = math.sqrt(max(float(coefficients @ part @ coefficients), 1e-9))
        return coefficients, round(math.log2(sd / spread))

    def refit(self, opened: Opened) -> float:
        """Fit own features and all opened directions exactly; the gain in the objective."""
        self.opened.append(opened)
        k = self.own.shape[1]
        columns = np.column_stack([self.own, *(o.steps.astype(np.float64) for o in self.opened)])
        steps = np.concatenate([np.full(k, WOE_STEP), np.full(len(self.opened), self.resolution)])
        implied = np.array([o.implied() for o in self.opened])  # (openings, remote)
        penalty = np.zeros((columns.shape[1], columns.shape[1]))
        penalty[:k, :k] = self.penalty * np.eye(k)
        penalty[k:, k:] = self.penalty * implied @ implied.T
        fit = fit_logistic(columns, steps, self.goods, penalty, pool=self._pool)
        before = self.now.objective
        remote = fit.coefficients[k:] @ implied
        self.now = Coefficients(
            fit.intercept, fit.coefficients[:k], remote, fit.scores, fit.objective
        )
        return before - fit.objective
