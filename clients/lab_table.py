"""One table on one machine, split by columns among the parties that a specification names.

The specification is JSON (data/README.md describes it): `target` with its `positive` value,
`parties` with their columns and rows, `columns` with their types, `missing_value`. Only `target`
and `parties` are needed; a column without a type is numeric if all its cells are. A mistake is
reported with the column and the row (from 0, as in the hold-out file), never with a cell.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sklearn.model_selection import train_test_split

from federation.codes import code_for_row
from federation.errors import UsageError
from federation.registry import Registry
from federation.tables import BankData, CategoryColumn, Column, DepartmentData, NumberColumn

ROWS_MAX = 1_000_000  # codes of invented enterprises reach no further
HOLD_OUT = 0.3
REGION = "Lab"

# Besides the empty field, which always means missing. In text columns these may be categories.
MARKS = frozenset({"na", "n/a", "#n/a", "nan", "null", "none", "nil", "?", "-", "."})
# Beyond any real figure: keeps the order of rows and lets a mean of two values stay finite.
LARGEST = 1e300


# --- specification --------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class RowRule(_Part):
    """Rows whose number's remainder is in a list."""

    row_number_mod: Annotated[int, Field(ge=1)]
    remainders: Annotated[tuple[int, ...], Field(alias="in", min_length=1)]


class PartySpec(_Part):
    """One party: its columns, and the rows that it has records of."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    name: str | None = None
    role: Literal["bank", "department"] | None = None
    label: bool | None = None
    rows: Literal["all"] | RowRule = "all"
    columns: tuple[str, ...] | None = None

    @property
    def is_bank(self) -> bool:
        """Whether it holds customers and labels."""
        return self.role == "bank" if self.role is not None else bool(self.label)

    def has_row(self, rows: int) -> NDArray[np.bool_]:
        """Which of the table's rows the party has."""
        if self.rows == "all":
            return np.ones(rows, bool)
        numbers = np.arange(rows) % self.rows.row_number_mod
        return np.isin(numbers, self.rows.remainders)


class ColumnSpec(_Part):
    """One column of the table."""

    name: str
    type: Literal["integer", "ordinal", "categorical", "real", "target"] | None = None
    owner: str | tuple[str, ...] | None = None


class CodeRule(_Part):
    """Which invented enterprises stand behind the rows."""

    dataset_number: Annotated[int, Field(ge=0, le=9)] = 0


Mark: TypeAlias = str | int | float


class Spec(_Part):
    """How a table is split; see the module's text."""

    name: str = "table"
    target: str
    positive: bool | int | float | str | None = None
    missing_value: Mark | tuple[Mark, ...] | None = None
    parties: Annotated[tuple[PartySpec, ...], Field(min_length=1)]
    columns: tuple[ColumnSpec, ...] = ()
    code_rule: CodeRule = CodeRule()

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        for what, names in (
            ("party", [party.id for party in self.parties]),
            ("column", [column.name for column in self.columns]),
        ):
            if twice := _repeated(names):
                raise ValueError(f"{what} {twice} is described twice")
        return self

    @property
    def missing(self) -> frozenset[str]:
        """Texts that the specification declares to mean "missing"."""
        said = self.missing_value
        marks = said if isinstance(said, tuple) else () if said is None else (said,)
        texts = {str(mark).strip() for mark in marks if mark != "empty field"}
        return frozenset(texts | {""})

    def columns_of(self, party: PartySpec) -> tuple[str, ...]:
        """A party's columns: its own list, or what names it as owner. Never the target of a bank,
        which may list it or not."""
        if party.columns is not None:
            names = party.columns
        else:
            names = tuple(
                c.name
                for c in self.columns
                if party.id == c.owner or (isinstance(c.owner, tuple) and party.id in c.owner)
            )
        return tuple(n for n in names if not (party.is_bank and n == self.target))

    def type_of(self, name: str) -> str | None:
        """A column's declared type, if any."""
        return next((column.type for column in self.columns if column.name == name), None)

    def banks(self) -> tuple[PartySpec, ...]:
        """The banks, in the order of the specification."""
        return tuple(party for party in self.parties if party.is_bank)


def read_spec(path: Path) -> Spec:
    """The specification in a JSON file; UsageError with what is wrong and where."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path.name} is not UTF-8 text") from None
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{path.name} is not JSON{where}") from None
    return parse_spec(plain, path.name)


def parse_spec(plain: Any, name: str = "the specification") -> Spec:
    """The specification in plain data; UsageError with what is wrong and where."""
    if not isinstance(plain, dict):
        raise UsageError(f"{name} must be one JSON object with `target` and `parties`")
    try:
        spec = Spec.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ").lower()
        raise UsageError(f"{name}{f', {place}' if place else ''}: {what}") from None
    _require_owners(spec)
    return spec


def _require_owners(spec: Spec) -> None:
    """Every column has one owner; banks may hold the same columns, each for its own rows."""
    if not spec.banks():
        raise UsageError("no party has the role bank: somebody must hold the labels")
    owners: dict[str, PartySpec] = {}
    for party in spec.parties:
        names = spec.columns_of(party)
        if twice := _repeated(names):
            raise UsageError(f"{party.id} lists column {twice} twice")
        for name in names:
            if name == spec.target:
                raise UsageError(f"column {name} is the target and cannot be {party.id}'s feature")
            other = owners.setdefault(name, party)
            if other is not party and not (other.is_bank and party.is_bank):
                raise UsageError(f"column {name} has two owners: {other.id} and {party.id}")
    for column in spec.columns:
        if column.owner is None or column.name == spec.target:
            continue
        said = {column.owner} if isinstance(column.owner, str) else set(column.owner)
        has = {party.id for party in spec.parties if column.name in spec.columns_of(party)}
        if has and has != said:
            raise UsageError(
                f"column {column.name} is listed by {', '.join(sorted(has))}, "
                f"but its owner is said to be {', '.join(sorted(said))}"
            )
    targets = [column.name for column in spec.columns if column.type == "target"]
    if targets and targets != [spec.target]:
        raise UsageError(f"the target is {spec.target}, but {targets[0]} has the type target")


# --- table ----------------------------------------------------------------------------------------


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (also compressed) or Parquet file; cells of CSV as text, exactly as written."""
    name = path.name.lower()
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet or name.endswith((".parquet", ".pq")):
            table: pd.DataFrame = pq.read_table(path).to_pandas(date_as_object=False)
        else:
            table = _read_csv(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from None
    except (pd.errors.ParserError, pa.ArrowException, EOFError, zlib.error) as error:
        line = re.search(r"line (\d+)", str(error))
        where = f", line {line[1]}" if line else ""
        raise UsageError(f"{path.name} is not a readable table{where}") from None
    if twice := _repeated([str(column) for column in table.columns]):
        raise UsageError(f"{path.name} has two columns named {twice}")
    if not len(table):
        raise UsageError(f"{path.name} has no rows")
    if len(table) > ROWS_MAX:
        raise UsageError(
            f"{path.name} has {len(table):,} rows; the lab takes at most {ROWS_MAX:,}",
            todo="take a sample of the rows",
        )
    table.columns = pd.Index([str(column) for column in table.columns])
    return table.reset_index(drop=True)


def _read_csv(path: Path) -> pd.DataFrame:
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    encoding = _encoding(raw, path.name)
    first = raw.split(b"\n", 1)[0]
    separator = next((sep for sep in (",", ";", "\t") if sep.encode() in first), ",")
    try:
        frame: pd.DataFrame = pd.read_csv(
            io.BytesIO(raw),
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            encoding=encoding,
            sep=separator,
            skipinitialspace=True,
            header=None,  # taken by hand: pandas would rename a column that is named twice
        )
    except pd.errors.EmptyDataError:
        raise UsageError(f"{path.name} is empty") from None
    header = [str(cell).strip() for cell in frame.iloc[0]]
    frame = frame.iloc[1:].fillna("")  # a line with fewer cells than the header
    frame.columns = pd.Index(header)
    return frame


def _encoding(raw: bytes, name: str) -> str:
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    raise UsageError(f"{name} is neither UTF-8 nor GB18030 text")


def column_of(name: str, cells: pd.Series, kind: str | None, missing: frozenset[str]) -> Column:
    """One column as a party program takes it.

    kind: the declared type. Numbers where all cells are, or where a number is declared; else text.
    """
    if isinstance(cells.dtype, pd.CategoricalDtype):
        cells = cells.astype(cells.cat.categories.dtype)
    if pd.api.types.is_bool_dtype(cells.dtype):
        cells = cells.astype("Float64")
    if pd.api.types.is_datetime64_any_dtype(cells.dtype):
        return NumberColumn(name, _numbers((cells - pd.Timestamp(0, tz=cells.dt.tz)).dt.days))
    if pd.api.types.is_numeric_dtype(cells.dtype):
        if kind != "categorical":
            return NumberColumn(name, _numbers(cells, missing))
        cells = cells.map(lambda value: f"{value:.15g}", na_action="ignore")
    text = cells.map(lambda value: unicodedata.normalize("NFC", str(value)).strip(), "ignore")
    text = text.astype(object).where(text.notna(), "")
    absent = text.isin(missing).to_numpy()
    marked = absent | text.str.lower().isin(MARKS).to_numpy()
    numbers = pd.to_numeric(text.where(~marked), errors="coerce")
    wrong = numbers.isna().to_numpy() & ~marked
    values = _numbers(numbers, missing)
    if kind in ("integer", "real"):
        if wrong.any():
            raise UsageError(
                f"column {name}, row {int(np.argmax(wrong))}: declared {kind}, but not a number",
                todo="declare it categorical, or name the mark in `missing_value`",
            )
        return NumberColumn(name, values)
    if not wrong.any():  # all numbers, so the marks among them mean missing
        if kind != "categorical":
            return NumberColumn(name, values)
        absent = marked
    codes, categories = pd.factorize(text.where(~absent), sort=True)
    return CategoryColumn(name, codes.astype(np.int32), tuple(str(c) for c in categories))


def _numbers(cells: pd.Series, missing: frozenset[str] = frozenset()) -> NDArray[np.float64]:
    values = np.asarray(cells.to_numpy(dtype=np.float64, na_value=np.nan))
    marks = [number for mark in missing if (number := _float(mark)) is not None]
    values = np.where(np.isin(values, marks), np.nan, values)
    clipped: NDArray[np.float64] = np.clip(values, -LARGEST, LARGEST)
    return clipped


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def labels_of(cells: pd.Series, spec: Spec) -> NDArray[np.uint8]:
    """1 where the target has its positive value; UsageError unless it has two values, both
    present in every row."""
    name = spec.target
    column = column_of(name, cells, None, spec.missing)
    if isinstance(column, NumberColumn):
        absent = np.isnan(column.values)
        found = [f"{value:.15g}" for value in np.unique(column.values[~absent])]
        texts = np.array([f"{value:.15g}" for value in column.values])
    else:
        absent, found = column.codes < 0, list(column.categories)
        texts = np.array([*column.categories, ""])[column.codes]
    if absent.any():
        count, first = int(absent.sum()), int(np.argmax(absent))
        raise UsageError(f"target {name} is missing in {count:,} rows, the first is row {first}")
    if len(found) > 2:
        raise UsageError(f"target {name} has {len(found):,} different values; it must have two")
    positive = _text_of(spec.positive)
    if positive is None:
        if not set(found) <= {"0", "1"}:
            todo = "name the value that means bad as `positive` in the specification"
            raise UsageError(f"target {name} is not 0 and 1", todo=todo)
        positive = "1"
    if len(found) < 2:
        raise UsageError(f"target {name} has one value only: there is nothing to learn")
    if positive not in found:
        raise UsageError(f"no row of target {name} has the value that `positive` names")
    return np.asarray(texts == positive, dtype=np.uint8)


def _text_of(value: bool | int | float | str | None) -> str | None:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        number = _float(value)
        return value.strip() if number is None else f"{number:.15g}"
    return None if value is None else f"{value:.15g}"


# --- split ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What each party would have: the very input of the party programs."""

    job: str  # what to call the run
    bank: str
    bank_data: BankData
    departments: dict[str, DepartmentData]
    registry: Registry
    names: dict[str, str]  # for display, by organisation
    notes: tuple[str, ...]  # what was left out, for a person
    rows: NDArray[np.int64] = field(repr=False)  # the table's row of each customer, in order

    @property
    def organisations(self) -> tuple[str, ...]:
        """The bank, then the departments."""
        return self.bank, *self.departments


def split(
    table: pd.DataFrame,
    spec: Spec,
    *,
    bank: str | None = None,
    hold_out: Sequence[int] | None = None,
    seed: int = 0,
) -> Split:
    """The parties' data: the cover is all rows, the customers are the bank's.

    bank: its rows only; without it the first bank with all rows. hold_out: row numbers from 0;
    without it a stratified 30 %, drawn with `seed`.
    """
    orgs = _organisations(spec)
    holder = _bank(spec, bank)
    used = [holder, *(party for party in spec.parties if not party.is_bank)]
    _require_columns(table, spec, used)
    labels = labels_of(table[spec.target], spec)
    codes = code_for_row(spec.code_rule.dataset_number, np.arange(len(table)))
    order = np.argsort(codes)
    registry = Registry(codes[order], date(2000, 1, 1), REGION)
    is_customer = holder.has_row(len(table)) if bank is not None else np.ones(len(table), bool)
    at = np.flatnonzero(is_customer[order])  # positions in the cover
    rows = order[at]
    notes = []
    bank_columns = _columns(table, spec, holder)
    if not bank_columns:
        notes.append(f"{holder.id} has no columns: its own score is the same for everybody")
    departments: dict[str, DepartmentData] = {}
    for party in used[1:]:
        columns = _columns(table, spec, party)
        if not columns:
            notes.append(f"{party.id} has no columns and is left out")
            continue
        there = np.where(party.has_row(len(table)), np.arange(len(table)), -1)[order]
        taken = [column.take(there) for column in columns]
        departments[orgs[party.id]] = DepartmentData(taken, registry.codes)
    if not departments:
        raise UsageError("no department has a column: there is nothing to join")
    notes += _notes(table, spec, used)
    test = _hold_out(labels[rows], rows, len(table), hold_out, seed)
    bank_data = BankData(
        cover_rows=len(table),
        positions=at,
        codes=registry.codes[at],
        columns=[column.take(rows) for column in bank_columns],
        labels=labels[rows],
        test=test,
    )
    return Split(
        job=_job(spec.name),
        bank=orgs[holder.id],
        bank_data=bank_data,
        departments=departments,
        registry=registry,
        names={orgs[party.id]: party.name or party.id for party in used},
        notes=tuple(notes),
        rows=rows,
    )


def read_hold_out(path: Path) -> list[int]:
    """Row numbers from 0, one a line; UsageError with the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path.name} is not UTF-8 text") from None
    numbers = []
    for number, line in enumerate(lines, start=1):
        if text := line.strip():
            if not re.fullmatch(r"[0-9]{1,9}", text):
                raise UsageError(f"{path.name}, line {number}: not a row number")
            numbers.append(int(text))
    return numbers


def _bank(spec: Spec, wanted: str | None) -> PartySpec:
    banks = spec.banks()
    if wanted is None:
        return banks[0]
    for party in banks:
        if wanted in (party.id, _org(party.id)):
            return party
    raise UsageError(f"no bank {wanted}; the specification has {', '.join(p.id for p in banks)}")


def _organisations(spec: Spec) -> dict[str, str]:
    """The parties' ids in the form that signed objects allow."""
    orgs = {party.id: _org(party.id) for party in spec.parties}
    if twice := _repeated(list(orgs.values())):
        raise UsageError(f"two parties would both be called {twice}; give them other ids")
    return orgs


def _org(name: str) -> str:
    text = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")
    text = text if re.match(r"[a-z].", text) else f"p_{text}"
    return text[:32]


def _job(name: str) -> str:
    return f"lab-{re.sub(r'[^a-z0-9_.-]+', '-', name.lower())}"[:64].rstrip("-")


def field_name(column: str) -> str:
    """A column's name in the form that signed objects allow."""
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", "_", unicodedata.normalize("NFC", column).strip())
    return text[:64] or "_"


def _require_columns(table: pd.DataFrame, spec: Spec, used: Sequence[PartySpec]) -> None:
    present = set(table.columns)
    if spec.target not in present:
        raise UsageError(f"the table has no column {spec.target}, the target")
    for party in used:
        for name in spec.columns_of(party):
            if name not in present:
                raise UsageError(f"the table has no column {name}, which {party.id} lists")


def _columns(table: pd.DataFrame, spec: Spec, party: PartySpec) -> list[Column]:
    names = spec.columns_of(party)
    if twice := _repeated([field_name(name) for name in names]):
        raise UsageError(f"{party.id} has two columns that would be called {twice}; rename one")
    made = [column_of(n, table[n], spec.type_of(n), spec.missing) for n in names]
    return [_renamed(column, field_name(column.name)) for column in made]


def _renamed(column: Column, name: str) -> Column:
    if isinstance(column, NumberColumn):
        return NumberColumn(name, column.values)
    return CategoryColumn(name, column.codes, column.categories)


def _notes(table: pd.DataFrame, spec: Spec, used: Sequence[PartySpec]) -> Iterator[str]:
    owned = {name for party in used for name in spec.columns_of(party)}
    idle = [name for name in table.columns if name not in owned | {spec.target}]
    if idle:
        shown = ", ".join(idle[:5]) + (", ..." if len(idle) > 5 else "")
        yield f"{len(idle)} columns have no owner here and are left out: {shown}"


def _hold_out(
    labels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    table_rows: int,
    wanted: Sequence[int] | None,
    seed: int,
) -> NDArray[np.bool_]:
    """Which customers are held out, in their order."""
    if wanted is None:
        bads = int(labels.sum())
        if min(bads, len(labels) - bads) < 2:
            raise UsageError(
                f"{bads:,} bad of {len(labels):,} customers: "
                "at least two of each class are needed, to train and to test"
            )
        # Drawn over the rows in the table's order, so that it does not depend on the codes.
        order = np.argsort(rows)
        size = max(2, round(HOLD_OUT * len(labels)))
        _, drawn = train_test_split(
            order, test_size=size, random_state=seed, stratify=labels[order]
        )
        test = np.zeros(len(labels), bool)
        test[drawn] = True
    else:
        beyond = [number for number in wanted if number >= table_rows]
        if beyond:
            raise UsageError(
                f"hold-out row {beyond[0]:,} is beyond the table's last row {table_rows - 1:,}"
            )
        test = np.isin(rows, np.asarray(wanted, dtype=np.int64))
    for part, name in ((labels[test], "hold-out"), (labels[~test], "training")):
        if len(part) == 0:
            raise UsageError(f"no {name} rows are left")
        if part.min() == part.max():
            which = "bad" if part[0] else "good"
            raise UsageError(f"all {len(part):,} {name} rows are {which}: both classes are needed")
    return test


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
