"""Binning, weight of evidence and information value (PROTOCOLS.md section 7, first paragraph).

Pre-bins    made by a feature's owner without any label, over all rows that it has: quantile edges
            for numbers, the most frequent categories for text, missing apart. No bin holds fewer
            than `min_cohort` rows, so no opened count can be about fewer than that many enterprises
            of the cover (it can be about few *customers*: the ledger says so).
Groups      made by the label owner from customers and bads of every pre-bin: what is too small, has
            no good or no bad, or cannot be told from its neighbour is merged.
WOE         ln(goods / bads) of a group against the whole, positive is better than average, shrunk a
            little towards nought, rounded to 0.05 and kept as an integer number of such steps.

The same functions serve departments, the bank's own columns and the pooled comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from federation.tables import CategoryColumn, Column, NumberColumn
from protocols.kernels import exact_kernel

MAX_BINS = 64  # pre-bins of a feature, the missing bin among them

WOE_STEP = 0.05
WOE_LIMIT = 63  # steps: 6 bits and a sign; exp(3.15) is 23 times the average odds
WOE_BITS = 7
# Rows of the average kind that every group is given. On 1,000 rows it takes about a tenth off the
# WOE of the smallest groups; on 30,000 it is not felt.
SMOOTHING = 4.0
# Neighbours whose bad rates differ by less than this chi-square (1 degree of freedom) are one
# group. Chosen on hold-out rows (docs/adr/0003): more merging costs up to 0.015 of AUC on 1,000
# rows with many categories, less lets 32 pre-bins of 3,000 rows overfit.
ALIKE_NUMBERS = 1.5
ALIKE_CATEGORIES = 0.5
# Two last groups this different (p = 1e-7) stay two though one of them is pure.
CLEARLY_APART = 28.0
# A chosen edge may move by this part of a bin's rows to be a round number.
EDGE_SLACK = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBins:
    """The pre-bins of one feature: which bin a value falls into, for ever.

    A number x falls into bin i when edges[i-1] <= x < edges[i]; a category into its place in
    `categories`, or into `other`. `missing` may be a bin of its own (the last) or a shared one.
    """

    name: str
    numeric: bool
    edges: NDArray[np.float64] = field(repr=False)  # ascending, finite; empty for text
    categories: tuple[str, ...] = field(repr=False)  # one a bin; empty for numbers
    other: int  # bin of a category that is not listed; for numbers the missing bin
    missing: int
    bins: int

    def __post_init__(self) -> None:
        own = len(self.edges) + 1 if self.numeric else len(self.categories)
        if self.edges.ndim != 1 or (self.categories if self.numeric else len(self.edges)):
            raise ValueError("edges are for numbers, categories for text")
        if not np.isfinite(self.edges).all() or (np.diff(self.edges) <= 0).any():
            raise ValueError("edges must be finite and ascending")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("a category is listed twice")
        if not max(own, 1) <= self.bins <= min(own + 2, MAX_BINS):
            raise ValueError(f"{self.bins} bins do not fit their definition")
        if not (0 <= self.other < self.bins and 0 <= self.missing < self.bins):
            raise ValueError("a bin that does not exist")

    def assign(self, column: Column) -> NDArray[np.uint8]:
        """The bin of every row; ValueError if the column is of the other kind."""
        if isinstance(column, NumberColumn) != self.numeric:
            raise ValueError(f"{self.name}: numbers and text do not fit the same bins")
        if isinstance(column, NumberColumn):
            found = np.searchsorted(self.edges, column.values, side="right").astype(np.uint8)
            found[np.isnan(column.values)] = self.missing
            return found
        place = {category: i for i, category in enumerate(self.categories)}
        table = [place.get(category, self.other) for category in column.categories]
        # The last entry serves code -1, missing.
        return np.array([*table, self.missing], np.uint8)[column.codes]

    def labels(self) -> tuple[str, ...]:
        """A short text for every bin, as reports print it."""
        if self.numeric:
            at = [_number(edge) for edge in self.edges]
            texts = [f"{low} to < {high}" for low, high in pairwise(at)]
            texts = [f"< {at[0]}", *texts, f">= {at[-1]}"] if at else ["any value"]
        else:
            texts = [category or "(empty)" for category in self.categories]
        texts += [""] * (self.bins - len(texts))
        if not self.numeric and (self.other != self.missing or not texts[self.other]):
            texts[self.other] = _joined(texts[self.other], "other")
        texts[self.missing] = _joined(texts[self.missing], "missing")
        return tuple(texts)

    @property
    def is_missing_apart(self) -> bool:
        """Whether missing values have a bin of their own."""
        return self.missing == self.bins - 1 and self.missing >= self._own

    @property
    def _own(self) -> int:
        return len(self.edges) + 1 if self.numeric else len(self.categories)


def rows_of_cohort(min_cohort: int, rows: int, customers_min: int) -> int:
    """Rows that a bin needs, so that it holds `min_cohort` customers if they are spread evenly.

    Its owner does not know who is a customer. A bin of `min_cohort` rows of a whole registry would
    hold hardly any, and the sums that a job opens, of a few known numbers each, say which ones.
    """
    return max(min_cohort, -(-min_cohort * rows // max(customers_min, 1)))


def pre_bin(column: Column, max_bins: int, min_rows: int) -> FeatureBins:
    """The owner's bins of a column: at most `max_bins` and the missing bin, `min_rows` in each.

    A column without enough distinct values ends as one bin; the fit drops it later, with a note.
    """
    if isinstance(column, NumberColumn):
        return _bins_of_numbers(column, max_bins, min_rows)
    return _bins_of_text(column, max_bins, min_rows)


def _bins_of_numbers(column: NumberColumn, max_bins: int, min_rows: int) -> FeatureBins:
    values = column.values
    known = np.sort(values[~np.isnan(values)])
    edges = distinct = np.array([])
    upto = np.zeros(1, np.int64)
    if known.size:
        firsts = np.empty(known.size + 1, np.int64)
        upto = firsts[: _runs(known, firsts) + 1]  # rows below each distinct value, and all
        distinct = known[upto[:-1]]
        edges = _edges(distinct, upto, max_bins)
        edges = without_small_bins(edges, _sizes(edges, distinct, upto), max_bins, min_rows)
    own = len(edges) + 1
    missing, bins = own, own + 1
    if values.size - known.size < min_rows:
        # Too few to be shown apart: they count with the largest bin, which they change least.
        missing, bins = int(np.argmax(_sizes(edges, distinct, upto))), own
    elif known.size < min_rows:
        edges, missing, bins = np.array([]), 0, 1
    return FeatureBins(column.name, True, edges, (), missing, missing, bins)


def _bins_of_text(column: CategoryColumn, max_bins: int, min_rows: int) -> FeatureBins:
    codes = column.codes
    counts = np.bincount(codes[codes >= 0], minlength=len(column.categories))
    absent = int((codes < 0).sum())
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], column.categories[i]))
    kept = [i for i in order if counts[i] >= min_rows]
    if len(kept) > max_bins or len(kept) < np.count_nonzero(counts):
        kept = kept[: max_bins - 1]
    rest = int(counts.sum() - counts[kept].sum()) if kept else int(counts.sum())
    names = tuple(column.categories[i] for i in kept)
    bins, last = len(kept), max(len(kept) - 1, 0)
    other = missing = last
    if rest >= min_rows or not kept:
        other = missing = bins
        bins += 1
    if absent >= min_rows and (kept or rest >= min_rows):
        missing = bins
        bins += 1
        if rest < min_rows:
            # Categories that nobody could name are unknown like a missing value.
            other = missing
    return FeatureBins(column.name, False, np.array([]), names, other, missing, bins)


@exact_kernel
def _runs(values: NDArray[np.float64], firsts: NDArray[np.int64]) -> int:
    """Where each distinct one of the sorted values begins, and the end; how many there are."""
    found = 0
    for i in range(values.size):
        if i == 0 or values[i] != values[i - 1]:
            firsts[found] = i
            found += 1
    firsts[found] = values.size
    return found


def _edges(
    distinct: NDArray[np.float64], upto: NDArray[np.int64], bins: int
) -> NDArray[np.float64]:
    """Edges of about equally full bins; a value with a bin's worth of rows gets its own.

    upto: rows below each distinct value, and all of them.
    """
    heavy, starts = np.zeros(distinct.size, bool), np.empty(distinct.size, np.int64)
    count, target = _starts(upto, bins, heavy, starts)
    below, slack = upto[1:], EDGE_SLACK * max(target, 1)
    edges = []
    for start in map(int, starts[:count]):
        low, high = start - 1, start
        if not heavy[low] and not heavy[high]:
            # No single value matters here, so a rounder edge near by serves as well and shows less.
            ends = [math.ceil(below[low] - slack), math.ceil(below[low] + slack)]
            reach = np.searchsorted(below, ends)  # integers among integers: nothing is converted
            low = min(int(reach[0]), int(low))
            high = max(min(int(reach[1]), distinct.size - 1), int(high))
            stop = np.flatnonzero(heavy[low : high + 1])
            if stop.size:
                low, high = start - 1, start
        edges.append(round_between(float(distinct[low]), float(distinct[high])))
    return np.unique(np.array(edges))


@exact_kernel
def _starts(
    upto: NDArray[np.int64], bins: int, heavy: NDArray[np.bool_], starts: NDArray[np.int64]
) -> tuple[int, float]:
    """Marks the heavy values; the first value of every bin but the first, and rows of a bin."""
    while True:  # each round makes at least one value heavy, at most `bins` rounds
        alone, rest = 0, upto[-1]
        for i in range(heavy.size):
            if heavy[i]:
                alone += 1
                rest -= upto[i + 1] - upto[i]
        target = rest / max(bins - alone, 1)
        more = 0
        if alone < bins:
            for i in range(heavy.size):
                if not heavy[i] and upto[i + 1] - upto[i] >= target:
                    heavy[i] = True
                    more += 1
        if more == 0:
            break
    found, light, before = 0, 0, -1.0
    for i in range(heavy.size):
        rows = 0 if heavy[i] else upto[i + 1] - upto[i]
        light += rows
        bucket = np.floor((light - rows / 2) / max(target, 1.0))
        if i > 0 and (heavy[i] or heavy[i - 1] or bucket > before):
            starts[found] = i
            found += 1
        before = bucket
    return found, target


def _sizes(
    edges: NDArray[np.float64], distinct: NDArray[np.float64], upto: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows in each bin; upto: rows below each distinct value, and all of them."""
    below = upto[np.searchsorted(distinct, edges, side="left")]
    return np.diff(np.concatenate([[0], below, upto[-1:]]))


def without_small_bins(
    edges: NDArray[np.float64], rows: NDArray[np.int64], max_bins: int, min_rows: int
) -> NDArray[np.float64]:
    """Drops edges until no bin has fewer than `min_rows` rows and at most `max_bins` are left.

    rows: in each bin to begin with.
    """
    sizes, kept = list(rows), list(edges)
    while kept and (min(sizes) < min_rows or len(sizes) > max_bins):
        at = int(np.argmin(sizes))
        to_left = at == len(sizes) - 1 or (at > 0 and sizes[at - 1] <= sizes[at + 1])
        edge = at - 1 if to_left else at
        sizes[edge : edge + 2] = [sizes[edge] + sizes[edge + 1]]
        del kept[edge]
    return np.array(kept, np.float64)


def round_between(low: float, high: float) -> float:
    """The number with the fewest digits in (low, high]; infinite ends stand for "beyond the rest".

    An edge is a figure about the data, so it is given no more digits than it needs.
    """
    if math.isinf(low) and math.isinf(high):
        return 0.0
    if math.isinf(high):
        high = low + max(abs(low), 1.0)
    if math.isinf(low):
        low = high - max(abs(high), 1.0)
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(high - low)):
        return high if math.isfinite(high) else 0.0
    exponent = math.floor(math.log10(high - low)) + 1
    exact_low, exact_high = Decimal(low), Decimal(high)
    for digits in range(exponent, exponent - 20, -1):
        step = Decimal(1).scaleb(digits)
        candidate = exact_high // step * step
        if candidate > exact_high:  # Decimal's // cuts towards zero
            candidate -= step
        if exact_low < candidate and low < float(candidate) <= high:
            return float(candidate)
    return high


# --- groups, WOE, IV ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """One feature after merging: the group of every pre-bin and the figures of every group."""

    of_bin: NDArray[np.int64] = field(repr=False)  # (bins,)
    customers: NDArray[np.int64] = field(repr=False)  # (groups,)
    bads: NDArray[np.int64] = field(repr=False)  # (groups,)
    woe: NDArray[np.int64] = field(repr=False)  # (groups,) in steps of WOE_STEP
    iv: float

    def woe_of_bins(self) -> NDArray[np.int64]:
        """WOE steps of every pre-bin, the form in which an owner receives them."""
        return self.woe[self.of_bin]


def group(
    bins: FeatureBins,
    customers: NDArray[np.int64],
    bads: NDArray[np.int64],
    *,
    min_cohort: int,
    monotone: bool = False,
) -> Groups:
    """Merge the pre-bins of a feature by the customers and bads in them; WOE and IV of the result.

    Numbers keep their order and join neighbours only; categories join whom they resemble, which is
    a neighbour in the order of their bad rates. A separate missing bin stands outside that order.
    """
    missing = bins.missing if bins.numeric and bins.is_missing_apart else None
    order = [i for i in range(bins.bins) if i != missing]
    if not bins.numeric:
        share = bads.sum() / max(customers.sum(), 1)
        rate = (bads + SMOOTHING * share) / (customers + SMOOTHING)
        order.sort(key=lambda i: (float(rate[i]), i))
    runs = [_Run([i], int(customers[i]), int(bads[i])) for i in order]
    _merge_small(runs, min_cohort)
    _merge_similar(runs, ALIKE_NUMBERS if bins.numeric else ALIKE_CATEGORIES)
    if monotone and bins.numeric:
        _merge_reversals(runs)
    if missing is not None:
        alone = _Run([missing], int(customers[missing]), int(bads[missing]))
        # What is left of the others may itself be one run with hardly anybody in it.
        if alone.is_small(min_cohort) or runs[0].customers < min_cohort:
            # So few customers show nothing of their own: they go where they change least.
            whole = _Run([], int(customers.sum()), int(bads.sum()))
            like = alone if alone.customers else whole
            runs[min(range(len(runs)), key=lambda i: runs[i].difference(like))].take(alone)
        else:
            runs.append(alone)
    of_bin = np.empty(bins.bins, np.int64)
    for number, run in enumerate(runs):
        of_bin[run.bins] = number
    n = np.array([run.customers for run in runs], np.int64)
    b = np.array([run.bads for run in runs], np.int64)
    woe = weight_of_evidence(n, b)
    return Groups(of_bin, n, b, woe, information_value(n, b, woe))


def weight_of_evidence(customers: NDArray[np.int64], bads: NDArray[np.int64]) -> NDArray[np.int64]:
    """ln of the goods-to-bads odds of every group over those of all, in steps of WOE_STEP.

    A group counts as if it had at least one good and one bad: the table goes to the feature's
    owner, who must not read from it that all customers among some enterprises turned bad, or none.
    """
    total, bad = max(int(customers.sum()), 1), int(bads.sum())
    good = total - bad
    goods, bads = np.maximum(customers - bads, 1), np.maximum(bads, 1)
    odds = (goods + SMOOTHING * max(good, 0.5) / total) / (bads + SMOOTHING * max(bad, 0.5) / total)
    steps = np.rint(np.log(odds * max(bad, 0.5) / max(good, 0.5)) / WOE_STEP)
    limited: NDArray[np.int64] = np.clip(steps, -WOE_LIMIT, WOE_LIMIT).astype(np.int64)
    return limited


def information_value(
    customers: NDArray[np.int64], bads: NDArray[np.int64], woe: NDArray[np.int64]
) -> float:
    """Sum over the groups of (share of goods - share of bads) times WOE."""
    goods = customers - bads
    share = goods / max(int(goods.sum()), 1) - bads / max(int(bads.sum()), 1)
    return float((share * woe).sum() * WOE_STEP)


@dataclass(slots=True)
class _Run:
    """Pre-bins that are one group so far."""

    bins: list[int]
    customers: int
    bads: int

    def take(self, other: _Run) -> None:
        self.bins += other.bins
        self.customers += other.customers
        self.bads += other.bads

    def is_small(self, min_cohort: int) -> bool:
        return self.customers < min_cohort or self.bads == 0 or self.bads == self.customers

    def difference(self, other: _Run) -> float:
        """Chi-square of the two bad rates being one; nought where there is nothing to compare."""
        n, b = self.customers + other.customers, self.bads + other.bads
        if min(self.customers, other.customers) == 0 or b in (0, n):
            return 0.0
        gap = self.bads * other.customers - other.bads * self.customers
        return gap * gap * n / (self.customers * other.customers * b * (n - b))


def _merge_small(runs: list[_Run], min_cohort: int) -> None:
    while len(runs) > 1:
        small = [i for i, run in enumerate(runs) if run.is_small(min_cohort)]
        if not small:
            return
        if (
            len(runs) == 2
            and min(run.customers for run in runs) >= min_cohort
            and runs[0].difference(runs[1]) >= CLEARLY_APART
        ):
            # A feature that separates: merging would lose it. A pure group's WOE does not tell
            # that it is pure (`weight_of_evidence`).
            return
        at = min(small, key=lambda i: (runs[i].customers, i))
        sides = [i for i in (at - 1, at) if 0 <= i < len(runs) - 1]
        _join(runs, min(sides, key=lambda i: runs[i].difference(runs[i + 1])))


def _merge_similar(runs: list[_Run], threshold: float) -> None:
    while len(runs) > 1:
        gaps = [a.difference(b) for a, b in pairwise(runs)]
        at = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[at] >= threshold:
            return
        _join(runs, at)


def _merge_reversals(runs: list[_Run]) -> None:
    """Pool adjacent violators, in the direction that the bad rate takes on the whole."""
    rates = np.array([run.bads / max(run.customers, 1) for run in runs])
    weights = np.array([run.customers for run in runs], np.float64)
    place = np.arange(len(runs)) - (weights @ np.arange(len(runs))) / max(weights.sum(), 1)
    rising = float((weights * place * rates).sum()) >= 0
    while len(runs) > 1:
        for i, (a, b) in enumerate(pairwise(runs)):
            gap = b.bads * a.customers - a.bads * b.customers
            if (gap < 0) == rising and gap != 0:
                _join(runs, i)
                break
        else:
            return


def _join(runs: list[_Run], at: int) -> None:
    runs[at].take(runs.pop(at + 1))


def _number(value: float) -> str:
    return f"{value:.12g}"


def _joined(text: str, more: str) -> str:
    return f"{text}, {more}" if text else more


def offsets(features: Sequence[FeatureBins]) -> NDArray[np.int64]:
    """Where every feature's bins begin among all columns of the one-hot matrix, and their total."""
    return np.concatenate([[0], np.cumsum([f.bins for f in features])]).astype(np.int64)
