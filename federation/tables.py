"""What a gate hands to a party program: columns in memory, already lined up with the job's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class NumberColumn:
    """Numbers; NaN is missing."""

    name: str
    values: NDArray[np.float64] = field(repr=False)  # (rows,)

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.values)

    def take(self, rows: NDArray[np.int64]) -> NumberColumn:
        """The given rows, in the given order; row -1 gives a missing value."""
        return NumberColumn(self.name, np.where(rows >= 0, self.values[rows], np.nan))


@dataclass(frozen=True, slots=True)
class CategoryColumn:
    """Text or codes: an index into `categories`, which are sorted; -1 is missing."""

    name: str
    codes: NDArray[np.int32] = field(repr=False)  # (rows,)
    categories: tuple[str, ...] = field(repr=False)

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.codes)

    def take(self, rows: NDArray[np.int64]) -> CategoryColumn:
        """The given rows, in the given order; row -1 gives a missing value."""
        codes = np.where(rows >= 0, self.codes[rows], -1).astype(np.int32)
        return CategoryColumn(self.name, codes, self.categories)


Column = NumberColumn | CategoryColumn


@dataclass(frozen=True, slots=True)
class DepartmentData:
    """A department's approved columns over the cover; a row without a record is missing in all."""

    columns: Sequence[Column]
    codes: NDArray[np.bytes_] = field(repr=False)  # (cover,) S18, the registry's codes in order

    @property
    def rows(self) -> int:
        """Cover rows."""
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class BankData:
    """The bank's customers: where they stand in the cover, their features and labels."""

    cover_rows: int
    positions: NDArray[np.int64] = field(repr=False)  # (customers,) rows of the cover, ascending
    codes: NDArray[np.bytes_] = field(repr=False)  # (customers,) S18, in the order of positions
    columns: Sequence[Column]  # the bank's own features, one value a customer
    labels: NDArray[np.uint8] = field(repr=False)  # (customers,) 1 = bad
    test: NDArray[np.bool_] | None = field(default=None, repr=False)  # hold-out; None: drawn

    @property
    def customers(self) -> int:
        """How many customers."""
        return len(self.positions)
