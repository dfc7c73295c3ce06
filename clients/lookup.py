"""One enterprise's value out of a snapshot, for the gate: opened once, then found by its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.store import StoredDataset
from federation.catalogue import Dataset, Field, FieldType, Level, Operation
from federation.codes import Codes
from federation.errors import RefusalCode, Refused
from federation.tables import CategoryColumn, Column


@dataclass(frozen=True, slots=True)
class OneValue:
    """What a snapshot holds of one field of one enterprise."""

    value: float | str | None = field(repr=False)  # None: no record, or an empty cell
    snapshot: str  # its digest
    as_of: str


@dataclass(frozen=True, slots=True)
class OneRow:
    """What a snapshot holds of some features of one enterprise: columns of one row."""

    columns: tuple[Column, ...] = field(repr=False)
    is_known: bool = field(repr=False)  # whether there is a record
    snapshot: str  # its digest
    as_of: str


class Snapshot(Protocol):
    """What the gate has opened (`clients.sources.OpenSnapshot`)."""

    def codes(self, key: str) -> Codes:
        """The credit codes, in the order of the rows."""

    def column(self, name: str, kind: FieldType) -> Column:
        """A field, in the order of the rows."""


class Lookup:
    """One snapshot under the entry that describes it; columns are read when first asked for."""

    def __init__(self, source: Snapshot, stored: StoredDataset, entry: Dataset) -> None:
        self._source, self._entry = source, entry
        self.snapshot, self.catalogue = stored.snapshot, entry.digest()
        self._types = dict(stored.columns)
        self._key = stored.columns[0][0]
        self._columns: dict[str, Column] = {}

    def value(self, column: str, subject: str) -> OneValue:
        """One cell; raises Refused for a column that is not open to questions."""
        kind = self._open(column)
        if column not in self._columns:
            self._columns[column] = self._source.column(column, kind)
        if (place := self._place(subject)) is None:
            return OneValue(None, self.snapshot, self._entry.as_of)
        cell = _cell(self._columns[column], place)
        return OneValue(cell, self.snapshot, self._entry.as_of)

    def row(self, columns: Sequence[str], subject: str) -> OneRow:
        """One row of features that are open to scoring; no record is missing in all of them.

        Raises Refused for a column that is not open to scoring.
        """
        kinds = {said.name: said for said in self._entry.fields}
        found = []
        for name in columns:
            said = kinds.get(name)
            if (
                said is None
                or not said.is_feature
                or Operation.SCORE not in said.ops
                or said.level in (Level.L4, Level.L5)
                or self._types.get(name) != said.type.value
            ):
                what = f"field {name} is not open to scores"
                raise Refused(what, code=RefusalCode.FIELD_LEVEL)
            if name not in self._columns:
                self._columns[name] = self._source.column(name, said.type)
            found.append(self._columns[name])
        place = self._place(subject)
        row = np.array([-1 if place is None else place], np.int64)
        taken = tuple(column.take(row) for column in found)
        return OneRow(taken, place is not None, self.snapshot, self._entry.as_of)

    def _place(self, subject: str) -> int | None:
        codes, rows = self._sorted
        place = int(np.searchsorted(codes, code := np.bytes_(subject.encode())))
        return int(rows[place]) if place < len(codes) and codes[place] == code else None

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        codes = self._source.codes(self._key)
        rows = np.argsort(codes, kind="stable")
        return codes[rows], rows

    def _open(self, column: str) -> FieldType:
        for said in self._entry.fields:
            if _serves(said, column) and self._types.get(column) == said.type.value:
                return said.type
        text = "the column is not open to questions on one enterprise"
        raise Refused(text, code=RefusalCode.FIELD_LEVEL)


def _serves(said: Field, column: str) -> bool:
    """Whether a question on this field may read that column."""
    if said.enquiry is None or Operation.VERIFY not in said.ops:
        return False
    return column in (said.enquiry.columns or (said.name,))


def _cell(column: Column, row: int) -> Any:
    if isinstance(column, CategoryColumn):
        place = int(column.codes[row])
        return None if place < 0 else column.categories[place]
    value = float(column.values[row])
    return None if np.isnan(value) else value
