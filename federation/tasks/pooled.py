"""What several banks do together around a task over departments (PROTOCOLS.md section 7).

    bins      pre-bins of the banks' own features, over all banks' customers: quantiles by bisection
              on sums, text by hashed places; nobody tells its values
    share     a department's answers to several banks, of which only the sum opens
    declare   what the sums over banks disclose

At least three banks with the same fields; the set is frozen for the job, and a bank that is lost
ends the attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from federation.errors import UsageError
from federation.ledger import What
from federation.objects import CoverKind, DeclaredDisclosure, JobManifest
from federation.tables import CategoryColumn, Column, NumberColumn
from federation.tasks.binning import FeatureBins, without_small_bins
from federation.tasks.secure_sum import Pool
from protocols.secagg_books import MIN_PARTIES

Integers = NDArray[np.int64]
PLACES = 1 << 12  # that texts are hashed to; two of a few dozen meet with 2^-3 at most, and merge
STEPS = 32  # of bisection: the bits of a float32
SUM_BITS = 64


def require_agreed(manifest: JobManifest) -> None:
    """Several banks fit together; raises UsageError. One bank always does."""
    banks = manifest.banks
    if len(banks) == 1:
        return
    if len(banks) < MIN_PARTIES:
        todo = "find a third bank, or let each bank train with the departments by itself"
        text = f"{len(banks)} banks: of two, each reads the other's part in every sum"
        raise UsageError(text, todo=todo)
    if len({manifest.party(org).fields for org in banks}) != 1:
        raise UsageError("banks that train together bring the same fields, in the same order")
    if manifest.cover.kind is not CoverKind.REGISTRY:
        todo = "use the cover `registry`, which says nothing of any bank's customers"
        raise UsageError("several banks have no smaller cover in common", todo=todo)
    if manifest.audit.auditors:
        todo = "leave the auditors out, or let each bank train by itself"
        raise UsageError("escrowed seeds are for jobs of one bank", todo=todo)


def totals_of_bins(fields: int, max_bins: int) -> int:
    """Numbers that `shared_bins` opens, at most."""
    return fields * (STEPS * (max_bins - 1) + PLACES + 2 * max_bins + 4)


def declare(manifest: JobManifest, totals: int) -> tuple[DeclaredDisclosure, ...]:
    """Between all pairs of banks; nothing where there is one."""
    return tuple(
        DeclaredDisclosure(source=one, to=other, what=What.BANK_TOTALS, count=totals, bits=SUM_BITS)
        for one in manifest.banks
        for other in manifest.banks
        if one != other
    )


def shared_bins(
    pool: Pool, columns: Sequence[Column], max_bins: int, min_rows: int, most: int
) -> tuple[FeatureBins, ...]:
    """Pre-bins of the banks' own columns, the same at every bank. most: customers of one bank."""
    numbers = [column for column in columns if isinstance(column, NumberColumn)]
    made = {item.name: item for item in _of_numbers(pool, numbers, max_bins, min_rows, most)}
    for column in columns:
        if isinstance(column, CategoryColumn):
            made[column.name] = _of_text(pool, column, max_bins, min_rows, most)
    return tuple(made[column.name] for column in columns)


def _of_numbers(
    pool: Pool, columns: Sequence[NumberColumn], max_bins: int, min_rows: int, most: int
) -> list[FeatureBins]:
    """Quantiles of all banks' values together, found by bisection over the order of float32."""
    if not columns:
        return []
    ordered = [np.sort(_order(c.values[~np.isnan(c.values)])) for c in columns]
    missing = np.array([np.isnan(c.values).sum() for c in columns])
    known = pool.integers("bins known", np.array([len(one) for one in ordered]), most)
    absent = pool.integers("bins missing", missing, most)
    wanted = np.ceil(np.arange(1, max_bins)[None, :] * known[:, None] / max_bins).astype(np.int64)
    low = np.full(wanted.shape, -(1 << 31), np.int64)
    high = np.full(wanted.shape, (1 << 31) - 1, np.int64)
    for step in range(STEPS):  # invariant: fewer than wanted are below low, enough are up to high
        middle = (low + high) >> 1
        upto = np.stack(
            [np.searchsorted(o, m, "right") for o, m in zip(ordered, middle, strict=True)]
        )
        total = pool.integers(f"bins step {step}", upto, most)
        enough = total >= wanted
        high, low = np.where(enough, middle, high), np.where(enough, low, middle + 1)
    found = []
    for j, column in enumerate(columns):
        # An edge is the first value that belongs to the bin above it.
        edges = np.unique(_value(high[j] + 1)) if known[j] else np.array([])
        edges = edges[np.isfinite(edges)]
        values = np.sort(column.values[~np.isnan(column.values)])
        below = np.searchsorted(values, edges, side="left")
        sizes = np.diff(np.concatenate([[0], below, [len(values)]]))
        padded = np.zeros(max_bins, np.int64)
        padded[: len(sizes)] = sizes
        rows = pool.integers(f"bins rows {j}", padded, most)[: len(sizes)]
        edges = without_small_bins(edges, rows, max_bins, min_rows)
        own = len(edges) + 1
        if absent[j] < min_rows:
            found.append(FeatureBins(column.name, True, edges, (), own - 1, own - 1, own))
        elif known[j] < min_rows:
            found.append(FeatureBins(column.name, True, np.array([]), (), 0, 0, 1))
        else:
            found.append(FeatureBins(column.name, True, edges, (), own, own, own + 1))
    return found


def _order(values: NDArray[np.float64]) -> Integers:
    """Integers of 32 bits in the order of the values as float32."""
    bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _value(order: Integers) -> NDArray[np.float64]:
    """The reverse; beyond the largest float32: infinite or not a number."""
    bits = np.where(order < 0, (-order) | 0x80000000, order).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        return bits.view(np.float32).astype(np.float64)


def _of_text(
    pool: Pool, column: CategoryColumn, max_bins: int, min_rows: int, most: int
) -> FeatureBins:
    """Of the most frequent places; a text that a bank does not have is there by its place alone."""
    places = [place(column.name, text) for text in column.categories]
    counts = np.zeros(PLACES + 1, np.int64)
    codes = np.bincount(column.codes[column.codes >= 0], minlength=len(places))
    np.add.at(counts, np.array(places, np.int64), codes)
    counts[PLACES] = (column.codes < 0).sum()
    total = pool.integers(f"bins text {column.name}", counts, most)
    absent, total = int(total[PLACES]), total[:PLACES]
    order = sorted(range(PLACES), key=lambda i: (-total[i], i))
    kept = [i for i in order if total[i] >= max(min_rows, 1)][: max_bins - 1]
    if not kept:
        return FeatureBins(column.name, False, np.array([]), (), 0, 0, 1)
    names = dict(zip(reversed(places), reversed(column.categories), strict=True))
    texts = tuple(names.get(i, f"#{i}") for i in kept)
    rest, bins = int(total.sum() - total[kept].sum()), len(kept)
    other = missing = bins - 1
    if rest >= min_rows:
        other = missing = bins
        bins += 1
    if absent >= min_rows:
        missing, bins = bins, bins + 1
    return FeatureBins(column.name, False, np.array([]), texts, other, missing, bins)


def place(name: str, text: str) -> int:
    """Where a text of a field is hashed to; public, and the same at every bank."""
    content = f"lianmo/v1/place\x00{name}\x00{text}".encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % PLACES
