"""Checks of the bank on every opening of a linear query (PROTOCOLS.md section 3).

Without them a department that adds A times one row to one bin and takes it from another reads that
row's membership and label from which split wins, one row a query, unseen (CRYPTO_REVIEW.md F7). The
first query of a job is v = 1: its openings are the counts n_c that all later ones are checked
against. A failure ends the job with one coarse code; the error carries column numbers and no value.

They bound A, they do not end it: a department that answers every query as if its matrix had 11 in
place of a 1, taken from a bin that holds ten more good and bad customers, gives sums that fit
together. That is seen by the replay of its answers against the committed matrix, not here
(tests/attacks/test_small_cells.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ProtocolError
from protocols.parameters import Layout


def check_counts(layout: Layout, counts: NDArray[np.int64], customers: int) -> None:
    """The opening of v = 1: no negative count, every feature's bins hold all customers."""
    check_opening(layout, counts, total=customers, customers=customers, low=0, high=1)


def check_opening(
    layout: Layout,
    opened: NDArray[np.int64],
    *,
    total: int,
    customers: int,
    low: int,
    high: int,
    counts: NDArray[np.int64] | None = None,
    tolerance: int = 0,
) -> None:
    """One opening of v, low <= v <= high on `customers` rows, zero elsewhere, sum `total`.

    The bins of each feature sum to `total`; low n_c <= opened_c <= high n_c, with n_c from `counts`
    (the opening of v = 1), else at most `customers`. For residuals low = -vmax and high = vmax, for
    hessians 0 and hmax. tolerance: of declared noise, a column. Raises ProtocolError.
    """
    if opened.shape != (layout.columns,):
        raise ProtocolError(f"{layout.columns} opened values expected, got {opened.shape}")
    start = 0
    for feature, count in enumerate(layout.bins):
        bins = opened[start : start + count]
        if abs(int(bins.sum()) - total) > tolerance * count:
            raise ProtocolError(f"the bins of feature {feature} do not sum to the total")
        start += count
    one_hot = opened[:start]
    rows = np.full(start, customers, np.int64) if counts is None else counts[:start]
    if counts is None:  # n_c may be anything up to `customers`
        below, above = min(low, 0) * rows, max(high, 0) * rows
    else:
        below, above = low * rows, high * rows
    bad = np.flatnonzero((one_hot < below - tolerance) | (one_hot > above + tolerance))
    if bad.size:
        raise ProtocolError(f"column {bad[0]} is beyond what its rows allow")
    largest = max(abs(low), abs(high)) * customers
    room = largest * np.array(layout.integer_bounds, np.int64) + tolerance
    bad = np.flatnonzero(np.abs(opened[start:]) > room)
    if bad.size:
        raise ProtocolError(f"integer column {bad[0]} is beyond what the rows allow")


def check_children(
    parent: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> None:
    """A node's histogram is the sum of its children's. Raises ProtocolError."""
    if not np.array_equal(parent, left + right):
        raise ProtocolError("a node's histogram is not the sum of its children's")
