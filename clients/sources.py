"""From a table to a validated local snapshot: CSV, Parquet, or a query over a database.

Nothing enters that is not understood: every code is checked, every cell of a number column is a
number, every label is 0 or 1. What is wrong is listed by row and column, never by value, and then
nothing is kept. Enterprises that the registry does not know are counted and left out.

Two passes, both over blocks of rows, so memory does not grow with the table: the first reads the
source once, cleans the text and looks at every column (a query would not answer twice alike); the
second gives the columns their types and writes the snapshot. Only the gate reads snapshots.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from federation.catalogue import FieldType
from federation.codes import CODE_LENGTH, CodeFault, Codes, faults_of
from federation.errors import IntegrityError, Unavailable, UsageError
from federation.objects import FieldName
from federation.tables import CategoryColumn, Column, NumberColumn

if TYPE_CHECKING:
    from federation.registry import Registry

BLOCK_ROWS = 1 << 16
BLOCK_BYTES = 8 << 20
STAGING = ".staging-"  # a folder of this name that nobody works in is left from a crash
SHOWN = 20  # problems listed; the rest is counted
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "\\N", "#N/A")  # "none" is a category
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
DIGITS_OF_A_NUMBER = 15  # a float64 holds no more; longer ones are codes
MOSTLY = 0.9  # of a column's cells are numbers: then the others are mistakes
CATEGORY_LENGTH = 200  # characters; longer text is no category
MANY_CATEGORIES = 10_000
FIELD_NAME = re.compile(r"^[^\s\x00-\x1f]{1,64}$")  # federation.objects.FieldName


class Source(BaseModel):
    """Where a dataset comes from and how it is to be read; kept so that it can be read again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = None
    url: Annotated[str | None, Field(repr=False)] = None  # may hold a password; or env:NAME
    query: str | None = None
    key: str
    label: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    missing: tuple[str, ...] = ()
    numbers: tuple[FieldName, ...] = ()
    categories: tuple[FieldName, ...] = ()
    drop: tuple[str, ...] = ()
    rename: Mapping[str, FieldName] = {}

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.file is None) == (self.url is None) or (self.url is None) != (self.query is None):
            raise ValueError("give a file, or a URL and a query")
        if both := set(self.numbers) & set(self.categories):
            raise ValueError(f"number and category at once: {', '.join(sorted(both))}")
        return self

    @property
    def title(self) -> str:
        """How messages name it; a URL stays out of them."""
        return Path(self.file).name if self.file is not None else "the query's result"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong where; never the value. Row 0 means the column as a whole."""

    row: int
    column: str
    what: str

    def __str__(self) -> str:
        where = [f"row {self.row:,}"] if self.row else []
        where += [f"column {self.column}"] if self.column else []
        return f"{', '.join(where)}: {self.what}" if where else self.what


class BadTable(UsageError):
    """The table cannot be used as it is: the first problems and how many there are."""

    def __init__(self, title: str, problems: Sequence[Problem], total: int) -> None:
        lines = [f"{total:,} problem{'s' * (total != 1)} in {title}", *map(str, problems)]
        if total > len(problems):
            lines.append(f"... and {total - len(problems):,} more")
        super().__init__("\n  ".join(lines), todo="nothing was stored")
        self.problems, self.total = tuple(problems), total


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A validated table on disk, not yet under its name."""

    path: Path
    digest: str  # SHA-256 of the file
    columns: tuple[tuple[str, FieldType], ...]  # the key first
    rows: int
    unknown: int  # rows of enterprises that the registry does not list, left out
    notes: tuple[str, ...]  # what a person should look at


@contextmanager
def snapshot(
    source: Source,
    registry: Registry,
    folder: Path,
    types: Mapping[str, FieldType] | None = None,
) -> Iterator[Snapshot]:
    """The source as a checked snapshot in a folder of its own, which is gone when the block ends.

    The caller moves the file to its place inside the block: whatever fails before leaves nothing.
    types: of a registered dataset that is read again; they stay, and its columns must be there.
    Raises BadTable, UsageError for a source that cannot be read as asked, Unavailable for a
    database that does not answer.
    """
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))  # 0700
    try:
        yield _Reading(source, registry, types or {}).into(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# --- reading with checks --------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """What the first pass saw of one column's cells."""

    cells: int = 0  # not missing
    numbers: int = 0
    long: bool = False  # digits that a float64 would lose
    padded: bool = False  # leading zeros
    shortest: int = 1 << 30
    longest: int = 0


class _Problems:
    """The first problems by row, and how many there are; bounded whatever the table is like."""

    def __init__(self) -> None:
        self.total = 0
        self._first: dict[str, list[Problem]] = {}

    def add(self, row: int, column: str, what: str) -> None:
        self.total += 1
        kept = self._first.setdefault(column, [])
        if len(kept) < SHOWN or row < kept[-1].row:
            kept.append(Problem(row, column, what))
            kept.sort()
            del kept[SHOWN:]

    def add_rows(self, rows: NDArray[np.int64], column: str, what: str) -> None:
        for row in rows[:SHOWN]:
            self.add(int(row), column, what)
        self.total += max(0, len(rows) - SHOWN)

    def stop_if_any(self, title: str) -> None:
        if self.total:
            first = sorted(item for kept in self._first.values() for item in kept)[:SHOWN]
            raise BadTable(title, first, self.total)


class _Reading:
    """One reading of one source."""

    def __init__(self, source: Source, registry: Registry, types: Mapping[str, FieldType]) -> None:
        self.source, self.registry, self.before = source, registry, types
        self.problems = _Problems()
        self.notes: list[str] = []
        self.seen: dict[str, _Seen] = {}
        self.table: _Table
        missing = [*MISSING, *source.missing]
        self._missing = pa.array(list(dict.fromkeys(missing)), pa.string())

    def into(self, staging: Path) -> Snapshot:
        raw = staging / "raw.parquet"
        with _table(self.source, self.problems) as self.table:
            names = self._names(self.table.names)
            codes = self._first_pass(names, raw)
        keep = self._check_codes(codes)
        types = self._types(names)
        done = staging / "snapshot.parquet"
        self._second_pass(raw, done, types, codes, keep)
        self.problems.stop_if_any(self.source.title)
        rows, unknown = int(keep.sum()), int(len(keep) - keep.sum())
        columns = ((self.source.key, FieldType.KEY), *types.items())
        return Snapshot(done, _file_digest(done), columns, rows, unknown, tuple(self.notes))

    def _names(self, found: Sequence[str]) -> dict[int, str]:
        """Place and name of every column that is kept, as they will be called."""
        source, names = self.source, {}
        for place, text in enumerate(found):
            name = unicodedata.normalize("NFC", text.removeprefix("\ufeff").strip())
            if name in source.drop:
                continue
            names[place] = source.rename.get(name, name)
        if source.key not in names.values():  # before any message that names what may be data
            what = f"{source.title} has no column {source.key}"
            raise UsageError(what, todo="check --key and that the first line has the names")
        for place, name in names.items():
            if name and not FIELD_NAME.match(name):
                what = "a name has 1 to 64 characters and no spaces; change it with --rename"
                self.problems.add(0, f"{place + 1}", what)
        for place, name in list(names.items()):
            if self.before and name and name not in self.before:
                self.notes.append(f"column {name} is new: left out; add the dataset again for it")
                del names[place]
        for name, count in Counter(names.values()).items():
            if name and count > 1:
                self.problems.add(0, name, f"the name stands {count} times in the header")
        wanted = [*filter(None, [source.label]), *source.numbers, *source.categories]
        wanted += [name for name, kind in self.before.items() if kind is not FieldType.KEY]
        for name in dict.fromkeys(wanted):
            if name not in names.values():
                self.problems.add(0, name, "there is no such column")
        self.problems.stop_if_any(source.title)
        return names

    def _first_pass(self, names: Mapping[int, str], raw: Path) -> Codes:
        """Clean the text into `raw`, look at every column, and return the codes of all rows."""
        keep = [place for place, name in names.items() if name != self.source.key]
        key = next(place for place, name in names.items() if name == self.source.key)
        self.seen = {names[place] or f"#{place + 1}": _Seen() for place in keep}
        schema = pa.schema([(name, pa.string()) for name in self.seen])
        codes: list[Codes] = []
        rows = 0
        _private(raw)
        with pq.ParquetWriter(raw, schema, compression="lz4", use_dictionary=False) as writer:
            for block in self.table.blocks():
                codes.append(self._codes(block[key], rows))
                cells = []
                for place, (name, seen) in zip(keep, self.seen.items(), strict=True):
                    cells.append(clean := _clean(block[place], self._missing))
                    if name not in self.before:
                        _look(clean, seen)
                writer.write_batch(pa.record_batch(cells, schema=schema))
                rows += len(block[key])
        if not rows:
            raise UsageError(f"{self.source.title} has no rows", todo="nothing was stored")
        return np.concatenate(codes)

    def _codes(self, cells: pa.Array, start: int) -> Codes:
        faults = faults_of(cells)
        out = np.zeros(len(cells), f"S{CODE_LENGTH}")
        good = faults == 0
        out[good] = np.asarray(cells.filter(pa.array(good)).to_numpy(zero_copy_only=False), "S")
        for fault in np.unique(faults[~good]):
            rows = self._rows(np.flatnonzero(faults == fault) + start)
            self.problems.add_rows(rows, self.source.key, CodeFault(int(fault)).reason)
        return out

    def _rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.table.row_numbers(indices)

    def _check_codes(self, codes: Codes) -> NDArray[np.bool_]:
        """Which rows are kept: every code once, and those that the registry lists."""
        valid = np.flatnonzero(codes != b"")
        order = valid[np.argsort(codes[valid], kind="stable")]
        again = np.sort(order[1:][codes[order[1:]] == codes[order[:-1]]])
        what = "the code stands in an earlier row"
        self.problems.add_rows(self._rows(again), self.source.key, what)
        keep = np.zeros(len(codes), np.bool_)
        keep[valid] = self.registry.positions(codes[valid]) >= 0
        if len(valid) == len(codes) and not keep.any():
            what = "none of the codes is in the registry snapshot"
            self.problems.add(0, self.source.key, what)
        return keep

    def _types(self, names: Mapping[int, str]) -> dict[str, FieldType]:
        """The type of every column that is kept, but the key's."""
        types: dict[str, FieldType] = {}
        for name, seen in self.seen.items():
            if name not in names.values():  # a column without a name
                if seen.cells:
                    self.problems.add(0, name.removeprefix("#"), "the column has no name")
            elif (kind := self._type(name, seen)) is not None:
                types[name] = kind
        if not types:
            what = "there is no column beside the key that holds anything"
            self.problems.add(0, "", what)
        return types

    def _type(self, name: str, seen: _Seen) -> FieldType | None:
        if name in self.before:
            return self.before[name]
        if name == self.source.label:
            return FieldType.LABEL
        if name in self.source.numbers:
            return FieldType.NUMBER
        if name in self.source.categories:
            return FieldType.CATEGORY
        if not seen.cells:
            self.notes.append(f"column {name} is empty: left out")
            return None
        share = seen.numbers / seen.cells
        if share <= 1 - MOSTLY:
            return FieldType.CATEGORY
        if share < MOSTLY:
            what = f"{share:.0%} of the cells are numbers: say --number {name} or --category {name}"
            self.problems.add(0, name, what)
            return None
        if seen.long or (seen.padded and seen.shortest == seen.longest):
            self.notes.append(f"column {name} holds codes of digits: kept as text")
            return FieldType.CATEGORY
        return FieldType.NUMBER

    def _second_pass(
        self,
        raw: Path,
        done: Path,
        types: Mapping[str, FieldType],
        codes: Codes,
        keep: NDArray[np.bool_],
    ) -> None:
        schema = pa.schema(
            [
                pa.field(self.source.key, pa.binary(CODE_LENGTH), nullable=False),
                *(pa.field(name, _ARROW[kind]) for name, kind in types.items()),
            ]
        )
        categories: dict[str, set[str]] = {}
        bad = 0
        _private(done)
        with (
            pq.ParquetWriter(done, schema, compression="zstd") as writer,
            pq.ParquetFile(raw) as file,
        ):
            start = 0
            for batch in file.iter_batches(BLOCK_ROWS, columns=list(types)):
                stop = start + batch.num_rows
                columns: list[pa.Array] = [_code_array(codes[start:stop])]
                for name, kind in types.items():
                    columns.append(self._typed(batch.column(name), name, kind, start))
                    if kind is FieldType.CATEGORY:
                        _collect(categories.setdefault(name, set()), columns[-1])
                kept = pa.record_batch(columns, schema=schema).filter(pa.array(keep[start:stop]))
                if kind_of_label := self.source.label:
                    bad += int(pc.sum(kept.column(kind_of_label)).as_py() or 0)
                writer.write_batch(kept)
                start = stop
        _flush(done)
        for name, found in categories.items():
            if len(found) > MANY_CATEGORIES:
                text = (
                    f"more than {MANY_CATEGORIES:,} different values: an identifier or free text?"
                )
                self.notes.append(f"column {name} has {text}")
        if self.source.label and bad in (0, int(keep.sum())):
            self.notes.append(f"column {self.source.label}: all labels are the same")

    def _typed(self, cells: pa.Array, name: str, kind: FieldType, start: int) -> pa.Array:
        if kind is FieldType.CATEGORY:
            if not pc.all(pc.string_is_ascii(cells), min_count=0).as_py():
                cells = pc.utf8_normalize(cells, form="NFC")
            long = pc.fill_null(pc.greater(pc.utf8_length(cells), CATEGORY_LENGTH), False)
            self._report(long, name, f"text of more than {CATEGORY_LENGTH} characters", start)
            return cells
        values, wrong = _numbers(cells)
        if kind is FieldType.NUMBER:
            self._report(wrong, name, "not a number", start)
            return values
        self._report(pc.is_null(cells), name, "no label", start)
        known = pc.is_in(values, value_set=pa.array([0.0, 1.0]))
        self._report(pc.and_(pc.is_valid(cells), pc.invert(known)), name, "not 0 or 1", start)
        return pc.cast(pc.if_else(known, values, None), pa.uint8())

    def _report(self, wrong: pa.Array, name: str, what: str, start: int) -> None:
        at = np.flatnonzero(np.asarray(wrong)) + start
        if len(at):
            self.problems.add_rows(self._rows(at), name, what)


_ARROW = {
    FieldType.NUMBER: pa.float64(),
    FieldType.CATEGORY: pa.string(),
    FieldType.LABEL: pa.uint8(),
}


def _clean(cells: pa.Array, missing: pa.Array) -> pa.Array:
    """Text without spaces around it; whatever means "missing" is null."""
    trimmed = pc.utf8_trim_whitespace(cells)
    return pc.if_else(pc.is_in(trimmed, value_set=missing), pa.scalar(None, pa.string()), trimmed)


def _look(cells: pa.Array, seen: _Seen) -> None:
    """What a block tells about its column's type."""
    filled = len(cells) - cells.null_count
    seen.cells += filled
    if not filled:
        return
    _, wrong = _numbers(cells)
    numbers = filled - int(pc.sum(wrong).as_py() or 0)
    seen.numbers += numbers
    if not numbers:
        return
    lengths = pc.min_max(pc.binary_length(cells)).as_py()
    seen.shortest = min(seen.shortest, lengths["min"])
    seen.longest = max(seen.longest, lengths["max"])
    if lengths["max"] > DIGITS_OF_A_NUMBER and not seen.long:
        digits = rf"^[0-9]{{{DIGITS_OF_A_NUMBER + 1},}}$"
        seen.long = bool(pc.any(pc.match_substring_regex(cells, digits)).as_py())
    if lengths["max"] > 1 and not seen.padded:
        seen.padded = bool(pc.any(pc.match_substring_regex(cells, "^0[0-9]")).as_py())


def _numbers(cells: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The cells as float64 (null where missing or wrong), and which ones are wrong."""
    try:
        values = pc.cast(cells, pa.float64())
        fits = cells  # every cell was read, "inf" and "nan" too
    except pa.ArrowInvalid:
        fits = pc.if_else(pc.match_substring_regex(cells, NUMBER), cells, None)
        values = pc.cast(pc.utf8_ltrim(fits, "+"), pa.float64())
    values = pc.if_else(pc.is_finite(values), values, None)
    return values, pc.and_(pc.is_valid(cells), pc.is_null(values))


def _collect(found: set[str], cells: pa.Array) -> None:
    if len(found) <= MANY_CATEGORIES:
        found.update(pc.unique(cells).to_pylist())


def _code_array(codes: Codes) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(codes))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(CODE_LENGTH), len(codes), [None, buffer])


def _private(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the three kinds of source --------------------------------------------------------------------


@dataclass(slots=True)
class _Table:
    """A table being read: its header, its blocks of text columns, and how its rows are numbered."""

    names: list[str]
    blocks: Callable[[], Iterator[list[pa.Array]]]
    first_row: int = 1
    unfit: list[int] = field(default_factory=list)  # numbers of rows that are in no block
    empty: list[int] = field(default_factory=list)

    def row_numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """As a person finds them: in a file with a header line, the first record is row 2."""
        return _row_numbers(indices, self.first_row, [*self.unfit, *self.empty])


def _row_numbers(
    indices: NDArray[np.int64], first_row: int, skipped: Sequence[int]
) -> NDArray[np.int64]:
    gaps = np.array(sorted(skipped), np.int64)
    before = gaps - first_row - np.arange(len(gaps))  # rows that were not skipped before each
    return indices + first_row + np.searchsorted(before, indices, side="right")


@contextmanager
def _table(source: Source, problems: _Problems) -> Iterator[_Table]:
    if source.file is None:
        with _query(source) as table:
            yield table
        return
    path = Path(source.file)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        what = f"cannot read {path}: {(error.strerror or 'error').lower()}"
        raise UsageError(what) from None
    if head == b"PAR1":
        with _parquet(path) as table:
            yield table
    elif head == b"PK\x03\x04" or head == b"\xd0\xcf\x11\xe0":
        raise UsageError(f"{path.name} is a workbook", todo="save the sheet as CSV (UTF-8)")
    else:
        with _csv(source, path, problems) as table:
            yield table


@contextmanager
def _csv(source: Source, path: Path, problems: _Problems) -> Iterator[_Table]:
    packed = path.suffix == ".gz"
    encoding = _encoding(source, path, packed)
    with _open(path, packed) as file:
        head = codecs.getreader(encoding)(file, "strict").read(1 << 16)
    delimiter = source.delimiter or _delimiter(head, source, path)
    names = next(csv.reader(StringIO(head), delimiter=delimiter), [])
    unfit: list[int] = []
    empty: list[int] = []

    def skip(row: Any) -> str:
        unfit.append(row.number)
        if row.text.strip():
            what = f"{row.actual_columns} cells, the header has {row.expected_columns}"
            problems.add(row.number, "", what)
        return "skip"

    def blocks() -> Iterator[list[pa.Array]]:
        # own names: a header with a name twice is reported as such, not by the parser
        own = [str(place) for place in range(len(names))]
        try:
            with pa.input_stream(str(path), compression="gzip" if packed else None) as stream:
                reader = pa_csv.open_csv(
                    stream,
                    pa_csv.ReadOptions(
                        block_size=BLOCK_BYTES,
                        encoding=encoding,
                        column_names=own,
                        skip_rows_after_names=1,
                        use_threads=False,  # row numbers in `skip` need order
                    ),
                    pa_csv.ParseOptions(
                        delimiter=delimiter,
                        newlines_in_values=True,
                        ignore_empty_lines=False,
                        invalid_row_handler=skip,
                    ),
                    pa_csv.ConvertOptions(
                        column_types=dict.fromkeys(own, pa.string()),
                        strings_can_be_null=False,
                        quoted_strings_can_be_null=False,
                    ),
                )
                start = 0
                for batch in reader:
                    blank = _blank(batch)
                    rows = _row_numbers(np.flatnonzero(blank) + start, 2, unfit)
                    empty.extend(rows.tolist())
                    start += batch.num_rows
                    if not blank.all():
                        yield batch.filter(pa.array(~blank)).columns
        except pa.ArrowInvalid:  # its text quotes the cell
            todo = "check quotes and delimiter; nothing was stored"
            raise UsageError(f"{path.name} is not valid CSV", todo=todo) from None

    yield _Table(names, blocks, first_row=2, unfit=unfit, empty=empty)


def _blank(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    """Rows without any content: empty lines, or nothing but delimiters."""
    blank = np.ones(batch.num_rows, np.bool_)
    for cells in batch.columns:
        if not blank.any():
            break
        blank &= np.asarray(pc.equal(pc.utf8_trim_whitespace(cells), ""))
    return blank


def _open(path: Path, packed: bool) -> IO[bytes]:
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _encoding(source: Source, path: Path, packed: bool) -> str:
    """The encoding that the whole file has: the one asked for, else UTF-8, else GB18030."""
    try:
        with _open(path, packed) as file:
            head = file.read(4)
    except _BAD_GZIP:
        raise _damaged(path) from None
    if source.encoding is not None:
        try:
            candidates = [codecs.lookup(source.encoding).name]
        except LookupError:
            raise UsageError("there is no such encoding", todo="try utf-8 or gb18030") from None
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        candidates = ["utf-16"]
    else:
        candidates = ["utf-8", "gb18030"]
    for encoding in candidates:
        quotes = _quotes(path, packed, encoding)
        if quotes is not None and quotes % 2:  # the parser would take the rest for one cell
            todo = "close every quoted cell; nothing was stored"
            raise UsageError(f"{path.name} has an odd number of quotes", todo=todo)
        if quotes is not None:
            return encoding
    todo = "save it as UTF-8, or give --encoding"
    raise UsageError(f"{path.name} is not in {' or '.join(candidates)}", todo=todo)


def _quotes(path: Path, packed: bool, encoding: str) -> int | None:
    """How many quote characters there are, None if the file is no text of that encoding."""
    decoder, count = codecs.getincrementaldecoder(encoding)("strict"), 0
    try:
        with _open(path, packed) as file:
            while block := file.read(1 << 20):
                text = decoder.decode(block)
                if "\x00" in text:
                    return None
                count += text.count('"')
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    except _BAD_GZIP:
        raise _damaged(path) from None
    return count


_BAD_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path.name} is damaged", todo="export it again; nothing was stored")


def _delimiter(head: str, source: Source, path: Path) -> str:
    """The one of comma, semicolon, tab and bar under which the header has the key."""
    fitting = []
    for delimiter in ",;\t|":
        header = next(csv.reader(StringIO(head), delimiter=delimiter), [])
        names = {name.removeprefix("\ufeff").strip() for name in header}
        if source.key in {source.rename.get(name, name) for name in names}:
            fitting.append((len(header), delimiter))
    if not fitting:
        todo = "check --key, --delimiter and that the first line has the columns' names"
        raise UsageError(f"{path.name} has no column {source.key} in its first line", todo=todo)
    return max(fitting)[1]


@contextmanager
def _parquet(path: Path) -> Iterator[_Table]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names

            def blocks() -> Iterator[list[pa.Array]]:
                for batch in file.iter_batches(BLOCK_ROWS):
                    yield [
                        _text(column, name)
                        for column, name in zip(batch.columns, names, strict=True)
                    ]

            yield _Table(list(names), blocks)
    except pa.ArrowInvalid:
        raise _damaged(path) from None


def _text(cells: pa.Array, name: str) -> pa.Array:
    """Any plain column as text, so that all sources take the same way."""
    kind = cells.type
    if pa.types.is_dictionary(kind):
        cells, kind = cells.dictionary_decode(), kind.value_type
    if pa.types.is_boolean(kind):
        cells = pc.cast(cells, pa.uint8())
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        what = f"column {name} holds neither numbers nor text"
        raise UsageError(what, todo=f"leave it out with --drop {name}")
    return pc.cast(cells, pa.string())


@contextmanager
def _query(source: Source) -> Iterator[_Table]:
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    address = source.url or ""
    if address.startswith("env:"):
        address = os.environ.get(address.removeprefix("env:"), "")
    try:
        url = make_url(address)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise UsageError("there is no SQLite file at that URL")  # SQLite would make one
        engine = create_engine(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError):
        todo = "give a SQLAlchemy URL such as postgresql+psycopg://user@host/database, or env:NAME"
        raise UsageError("the database URL cannot be used", todo=todo) from None
    try:
        try:
            connection = engine.connect()
        except SQLAlchemyError as error:
            what = f"the {engine.dialect.name} database does not let us in ({_reason(error)})"
            raise Unavailable(what) from None
        with connection:
            result = connection.execution_options(stream_results=True, max_row_buffer=BLOCK_ROWS)
            rows = result.execute(text(source.query or ""))
            names = list(rows.keys())

            def blocks() -> Iterator[list[pa.Array]]:
                while block := rows.fetchmany(BLOCK_ROWS):
                    columns = zip(*block, strict=True)
                    yield [_values(cells, name) for cells, name in zip(columns, names, strict=True)]

            yield _Table(names, blocks)
    except SQLAlchemyError as error:  # its text holds the query, and may hold data
        raise UsageError(f"the query failed ({_reason(error)})") from None
    finally:
        engine.dispose()


def _reason(error: Exception) -> str:
    origin = getattr(error, "orig", None)
    state = getattr(origin, "sqlstate", None) or getattr(origin, "sqlite_errorname", None)
    return f"{type(error).__name__}, {state}" if state else type(error).__name__


def _values(cells: Sequence[object], name: str) -> pa.Array:
    try:
        found = pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # SQLite's columns may mix types
        found = pa.array([None if cell is None else _word(cell) for cell in cells], pa.string())
    return _text(found, name)


def _word(cell: object) -> str:
    return str(int(cell)) if isinstance(cell, bool) else str(cell)


# --- for the gate ---------------------------------------------------------------------------------


class OpenSnapshot:
    """A snapshot that is what was registered; hands out whole columns, one at a time."""

    def __init__(self, path: Path, digest: str) -> None:
        """Raises IntegrityError if the file is not the one that was registered."""
        todo = "read its source again with `lianmo data refresh`"
        if not path.is_file():
            raise IntegrityError("the dataset's snapshot is gone", todo=todo)
        # Held open: a running job keeps its data when the dataset is refreshed or removed.
        self._file = pa.OSFile(str(path), "rb")
        found = hashlib.sha256()
        while block := self._file.read(1 << 20):
            found.update(block)
        if found.hexdigest() != digest:
            raise IntegrityError("the dataset's snapshot was changed on disk", todo=todo)

    def codes(self, key: str) -> Codes:
        """The credit codes, in the order of the rows; shape (rows,), S18."""
        parts = [
            np.frombuffer(chunk.buffers()[1], f"S{CODE_LENGTH}")[chunk.offset :][: len(chunk)]
            for chunk in self._column(key).chunks
        ]
        return np.concatenate([np.zeros(0, f"S{CODE_LENGTH}"), *parts])

    def column(self, name: str, kind: FieldType) -> Column:
        """A feature, in the order of the rows."""
        cells = self._column(name)
        if kind is FieldType.NUMBER:
            return NumberColumn(name, cells.to_numpy(zero_copy_only=False).astype(np.float64))
        words = cells.combine_chunks().dictionary_encode()
        if isinstance(words, pa.ChunkedArray):
            words = words.combine_chunks()
        categories = np.asarray(words.dictionary.to_pylist(), dtype=object)
        order = np.argsort(categories)
        place = np.empty(len(order) + 1, np.int32)
        place[order] = np.arange(len(order))
        place[-1] = -1
        codes = pc.fill_null(words.indices, len(order)).to_numpy(zero_copy_only=False)
        return CategoryColumn(name, place[codes], tuple(categories[order]))

    def labels(self, name: str) -> NDArray[np.uint8]:
        """The labels, 1 = bad, in the order of the rows."""
        cells: NDArray[np.uint8] = self._column(name).to_numpy(zero_copy_only=False)
        return cells.astype(np.uint8)

    def _column(self, name: str) -> pa.ChunkedArray:
        return pq.ParquetFile(self._file).read(columns=[name]).column(0)
