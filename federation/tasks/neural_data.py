"""A bank's columns as a network's inputs, alike at every bank of a job. Pure, without PyTorch.

    number      sign(x) log(1 + |x|), then standardised by the mean and deviation over all banks'
                training customers; missing is 0 with a flag of its own beside it
    category    hashed into one of `buckets - 1` places, 0 is missing: no bank has to tell which
                texts occur in its table

The logarithm bounds every finite value by 710, so that secure sums have room for any table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.errors import UsageError
from federation.tables import CategoryColumn, Column, NumberColumn
from federation.tasks.secure_sum import Pool

LARGEST = 710.0  # log of the largest float
PRIVATE_LARGEST = 32.0  # with a budget: log of 8e13; larger values count as this
STEPS = 2.0**50  # that a sum's range is told in: fine for any number of customers
DEVIATION_MIN = 1e-6

Floats32 = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a network reads of customers."""

    numbers: Floats32 = field(repr=False)  # (customers, 2 x numbers): values, then missing flags
    categories: Indices = field(repr=False)  # (customers, categories), each below `buckets`

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Inputs:
        """Some of the customers."""
        return Inputs(self.numbers[rows], self.categories[rows])

    @property
    def rows(self) -> int:
        """How many customers."""
        return len(self.numbers)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Mean and deviation of the transformed numbers, over all banks."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def numbers_of(columns: Sequence[Column], categories: Sequence[str]) -> NDArray[np.float64]:
    """(customers, numbers), transformed; NaN is missing. UsageError for a column of text."""
    found = []
    for column in columns:
        if column.name in categories:
            continue
        if not isinstance(column, NumberColumn):
            todo = "name it among the categories"
            raise UsageError(f"field {column.name} is not a number", todo=todo)
        values = np.where(np.isfinite(column.values), column.values, np.nan)
        found.append(np.sign(values) * np.log1p(np.abs(values)))
    rows = columns[0].rows if columns else 0
    return np.stack(found, axis=1) if found else np.zeros((rows, 0))


def categories_of(columns: Sequence[Column], categories: Sequence[str], buckets: int) -> Indices:
    """(customers, categories): where each text is hashed to."""
    by_name = {column.name: column for column in columns}
    found = []
    for name in categories:
        column = by_name[name]
        if isinstance(column, CategoryColumn):
            places = [bucket(name, text, buckets) for text in column.categories]
            found.append(np.array([*places, 0], np.int64)[column.codes])
        else:
            texts, where = np.unique(column.values, return_inverse=True)
            places = [0 if np.isnan(x) else bucket(name, f"{x:.12g}", buckets) for x in texts]
            found.append(np.array(places, np.int64)[where])
    rows = columns[0].rows if columns else 0
    return np.stack(found, axis=1) if found else np.zeros((rows, 0), np.int64)


def bucket(field_name: str, text: str, buckets: int) -> int:
    """1 .. buckets - 1; public, and the same at every bank."""
    name = f"lianmo/v1/bucket\x00{field_name}\x00{text}".encode()
    return 1 + int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % (buckets - 1)


def scaling_over(pool: Pool, numbers: NDArray[np.float64], customers_max: int) -> Scaling:
    """Of all banks' training customers, from three secure sums in one."""
    known = np.where(np.isnan(numbers), 0.0, numbers)
    sums = np.stack(
        [(~np.isnan(numbers)).sum(axis=0), known.sum(axis=0), (known**2).sum(axis=0)]
    ).astype(np.float64)
    most = LARGEST**2 * customers_max
    total = pool.reals("scaling", sums, most, most / STEPS)
    count = np.maximum(total[0], 1.0)
    mean = total[1] / count
    variance = np.maximum(total[2] / count - mean**2, 0.0)
    return Scaling(mean, np.maximum(np.sqrt(variance), DEVIATION_MIN))


def private_moments(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """What a noisy scaling is made of: (sums, how far one customer can move them, L2).

    sums: customers; then known, values and squares of each number, in units of PRIVATE_LARGEST.
    """
    known = ~np.isnan(numbers)
    values = np.clip(np.where(known, numbers, 0.0) / PRIVATE_LARGEST, -1.0, 1.0)
    parts = [known.sum(axis=0), values.sum(axis=0), (values**2).sum(axis=0)]
    sums = np.concatenate([[len(numbers)], *parts]).astype(np.float64)
    return sums, float(np.sqrt(1 + 3 * numbers.shape[1]))


def private_scaling(sums: NDArray[np.float64]) -> tuple[Scaling, int]:
    """(scaling, customers) from noisy totals of `private_moments`."""
    customers, rest = sums[0], sums[1:].reshape(3, -1)
    count = np.maximum(rest[0], 1.0)
    mean = np.clip(rest[1] / count, -1.0, 1.0)
    variance = np.clip(rest[2] / count - mean**2, 1e-6, 1.0)
    scaling = Scaling(mean * PRIVATE_LARGEST, np.sqrt(variance) * PRIVATE_LARGEST)
    return scaling, max(round(float(customers)), 1)


def inputs_of(numbers: NDArray[np.float64], categories: Indices, scaling: Scaling) -> Inputs:
    """Standardised numbers with their missing flags, and the categories' places."""
    missing = np.isnan(numbers)
    values = np.where(missing, 0.0, (numbers - scaling.mean) / scaling.deviation)
    both = np.concatenate([np.clip(values, -10.0, 10.0), missing], axis=1)
    return Inputs(both.astype(np.float32), categories)
