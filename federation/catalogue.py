"""The catalogue: what an organisation says about a dataset and each of its fields (GOVERNANCE.md,
Objects).

An entry is signed by the owner and published; a manifest names it by digest, so a job sees exactly
the levels, purposes and bounds that its approvers saw. The entry describes, it holds no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

import pydantic
from pydantic import StringConstraints, model_validator

from federation.errors import RefusalCode, Refused
from federation.objects import (
    Count,
    Date,
    DecimalText,
    Digest,
    FieldName,
    Name,
    ObjectName,
    OrgId,
    Part,
    Purpose,
    Role,
    SignedObject,
    Text,
    Time,
    Usage,
)

# Levels and purposes are an approver's word: who may only propose or operate cannot lower a level.
CATALOGUE_USAGE = Usage.APPROVE


NormaliserName = Literal["text-1", "name-1", "person-1", "address-1"]


class FieldType(StrEnum):
    """What a column is; only numbers and categories can be features."""

    NUMBER = "number"
    CATEGORY = "category"
    LABEL = "label"  # 0 or 1, 1 = bad; a dataset has at most one
    KEY = "key"  # the credit code; every dataset has exactly one


class Level(StrEnum):
    """How sensitive a field is (GOVERNANCE.md, Levels of fields)."""

    L1 = "L1"  # public
    L2 = "L2"  # internal
    L3 = "L3"  # sensitive or trade secret: train or verify only
    L4 = "L4"  # important
    L5 = "L5"  # core: never in a job


class Operation(StrEnum):
    """What a field may be used for."""

    TRAIN = "train"
    SCORE = "score"
    VERIFY = "verify"


class Question(StrEnum):
    """What may be asked about one enterprise (GOVERNANCE.md, Consent)."""

    EXISTS = "exists"  # whether there is a record
    EQUALS = "equals"  # whether a text is the recorded one, after the field's normaliser
    COMPARE = "compare"  # whether a number is at least (or below) a threshold of the grid
    COUNT = "count"  # whether there are at least so many in a period, on the grid
    BAND = "band"  # which cell of the grid a number lies in; on the channel `query`
    VALUE = "value"  # the value itself; on the channel `query`


class Assurance(StrEnum):
    """Who vouches that the enterprise itself granted; later ones are stronger."""

    A1 = "A1"  # the platform attests a real-name click; a compromised platform can forge it
    A2 = "A2"  # an officer's key that was issued at onboarding
    A3 = "A3"  # the enterprise's own seal or licence certificate

    def suffices(self, least: Assurance) -> bool:
        """Whether this is at least that."""
        return self.value >= least.value


MAX_DAYS = 90  # of a grant, where a field says nothing else
RETENTION_DAYS = 180  # of an answer or score at a bank, where a field says nothing else

Period = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,15}$")]


class Enquiry(Part):
    """What may be asked of a field about one enterprise that has granted it."""

    ops: Annotated[tuple[Question, ...], pydantic.Field(min_length=1, max_length=6)]
    # Cut points, ascending: the only thresholds. k of them leak at most log2(k + 1) bits of a
    # value, however many questions are asked by whomever.
    grid: Annotated[tuple[DecimalText, ...], pydantic.Field(max_length=256)] = ()
    # Over all verifiers, for each enterprise and period; a yes or no counts as one bit.
    bits_budget: Annotated[int, pydantic.Field(ge=0, le=4096)] = 4
    min_assurance: Assurance = Assurance.A3
    periods: Annotated[tuple[Period, ...], pydantic.Field(min_length=1, max_length=64)] = (
        "current",
    )
    columns: Annotated[tuple[FieldName, ...], pydantic.Field(max_length=64)] = ()  # one a period
    normaliser: NormaliserName = "text-1"  # federation/normalise.py
    no_record: bool = False  # whether "no record", a fact of its own, may be answered
    max_days: Annotated[int, pydantic.Field(ge=1, le=90)] = MAX_DAYS  # of a grant
    retention_days: Annotated[int, pydantic.Field(ge=0, le=3650)] = RETENTION_DAYS  # of an answer

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for listed in (self.ops, self.grid, self.periods, self.columns):
            if len(set(listed)) != len(listed):
                raise ValueError("operations, cut points, periods and columns are listed once each")
        if [Decimal(a) for a in self.grid] != sorted(Decimal(a) for a in self.grid):
            raise ValueError("the grid's cut points ascend")
        on_grid = {Question.COMPARE, Question.COUNT, Question.BAND} & set(self.ops)
        if bool(on_grid) != bool(self.grid):
            raise ValueError("a grid goes with compare, count and band, and these with a grid")
        # A text that is compared for equality has no cells: the two together would narrow a cell.
        if on_grid and {Question.EQUALS, Question.VALUE} & set(self.ops):
            raise ValueError("a field on a grid is not asked for equality or its value")
        if len(self.periods) > 1 and len(self.columns) != len(self.periods):
            raise ValueError("of several periods each names its column")
        if len(self.columns) > len(self.periods):
            raise ValueError("there are more columns than periods")
        return self

    def column(self, field: str, period: str) -> str:
        """Where the value of a period stands; ValueError for a period that is not offered."""
        place = self.periods.index(period)
        return self.columns[place] if self.columns else field


class Field(Part):
    """One column of a dataset."""

    name: FieldName
    type: FieldType
    unit: Text = ""
    level: Level = Level.L3
    trade_secret: bool = True
    description: Text = ""
    ops: tuple[Operation, ...] = (Operation.TRAIN,)
    purposes: tuple[Purpose, ...] = (Purpose.CREDIT_MODEL_TRAINING,)
    min_cohort: Annotated[int, pydantic.Field(ge=5)] = 50  # customers in a bin that a job opens
    enquiry: Enquiry | None = None  # what `verify` means here

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.ops)) != len(self.ops) or len(set(self.purposes)) != len(self.purposes):
            raise ValueError("operations and purposes are listed once each")
        if self.enquiry is not None and Operation.VERIFY not in self.ops:
            raise ValueError("`enquiry` goes with the operation `verify`")
        if self.enquiry is not None:
            self._require_enquiry(self.enquiry)
        return self

    def _require_enquiry(self, enquiry: Enquiry) -> None:
        if self.level in (Level.L4, Level.L5):
            raise ValueError(f"a field of level {self.level} is not asked about")
        if Question.VALUE in enquiry.ops and self.level is Level.L3:
            raise ValueError("of a field of level L3 no value is given out")
        least = Assurance.A3 if self.trade_secret else Assurance.A2
        if self.level is Level.L3 and not enquiry.min_assurance.suffices(least):
            raise ValueError(f"such a field asks for {least} at least")
        if enquiry.grid and self.type is not FieldType.NUMBER:
            raise ValueError("only numbers have a grid")
        if Question.EQUALS in enquiry.ops and self.type is not FieldType.CATEGORY:
            raise ValueError("only texts are asked for equality")

    @property
    def is_feature(self) -> bool:
        """Whether a job can ask for it by name."""
        return self.type in (FieldType.NUMBER, FieldType.CATEGORY)


class Dataset(SignedObject):
    """One dataset as its owner publishes it."""

    kind: ClassVar[str] = "dataset"

    name: ObjectName
    title: Name
    owner: OrgId
    region: Name
    legal_basis: Name
    update_frequency: Name
    provenance: Name
    as_of: Date
    rows: Count  # records that the registry knows, exact: it is not row-level
    fields: tuple[Field, ...]
    created: Time
    previous: Digest | None = None

    @model_validator(mode="after")
    def _one_key_and_names_once(self) -> Self:
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise ValueError("each field is named once")
        types = [field.type for field in self.fields]
        if types.count(FieldType.KEY) != 1 or types.count(FieldType.LABEL) > 1:
            raise ValueError("a dataset has exactly one key and at most one label")
        if not self.features and FieldType.LABEL not in types:
            raise ValueError("a dataset without features and label serves nobody")
        for field in self.fields:
            for column in field.enquiry.columns if field.enquiry else ():
                if column not in names or self.field(column).type is not field.type:
                    raise ValueError("a period's column is a field of the same type")
                self._require_as_open(field, self.field(column))
        asked = [
            column
            for field in self.fields
            if field.enquiry
            for column in field.enquiry.columns or (field.name,)
        ]
        # two grids over one column cut finer than either, and each has a budget of its own
        if len(set(asked)) != len(asked):
            raise ValueError("a column is asked about through one field")
        return self

    def _require_as_open(self, field: Field, column: Field) -> None:
        """A question reads the column under the field's conditions: it must not ask for more."""
        if column.level > field.level or (column.trade_secret and not field.trade_secret):
            raise ValueError("a period's column is more sensitive than the field asked about")

    @property
    def org(self) -> str:
        """Whose signature an entry needs; the trust store holds every envelope to this name."""
        return self.owner

    def field(self, name: str) -> Field:
        """The field of that name; KeyError if there is none."""
        return {field.name: field for field in self.fields}[name]

    def title_of(self, field: Field) -> str:
        """The field as an enterprise reads of it before it signs; the owner's words."""
        return (field.description or f"{self.title}: {field.name}")[:200]

    @property
    def features(self) -> tuple[Field, ...]:
        """The fields a job can ask for, in the entry's order."""
        return tuple(field for field in self.fields if field.is_feature)

    @property
    def label(self) -> Field | None:
        """The column that says who turned bad; a bank's job takes it without naming it."""
        return next((field for field in self.fields if field.type is FieldType.LABEL), None)


def require_usable(
    entry: Dataset,
    fields: Sequence[str],
    *,
    role: Role,
    purpose: Purpose,
    min_cohort: int,
    operation: Operation = Operation.TRAIN,
) -> None:
    """What the entry allows is enough for these fields in this job; raises Refused.

    Pure, so that `job new`, the review, the coordinator and the gate all judge alike. A bank's
    label is judged with its features: the job uses it although no manifest lists it.
    """
    known = {field.name: field for field in entry.fields}
    wanted = []
    for name in fields:
        if name not in known:
            text = f"dataset {entry.name} has no field {name}"
            raise Refused(text, code=RefusalCode.UNFULFILLABLE, party=entry.owner)
        if not known[name].is_feature:
            text = f"field {name} is the {known[name].type} of {entry.name}, not a feature"
            raise Refused(text, code=RefusalCode.SPEC_INVALID, party=entry.owner)
        wanted.append(known[name])
    if role is Role.BANK:
        if entry.label is None:
            text = f"dataset {entry.name} has no label"
            raise Refused(text, code=RefusalCode.UNFULFILLABLE, party=entry.owner)
        wanted.append(entry.label)
    for field in wanted:
        if field.level is Level.L5:
            text = f"field {field.name} is core data (L5) and never part of a job"
            raise Refused(text, code=RefusalCode.FIELD_LEVEL, party=entry.owner)
        if operation not in field.ops:
            text = f"field {field.name} is not open to {operation}"
            raise Refused(text, code=RefusalCode.FIELD_LEVEL, party=entry.owner)
        if purpose not in field.purposes:
            text = f"field {field.name} does not serve the purpose {purpose}"
            raise Refused(text, code=RefusalCode.PURPOSE_NOT_ALLOWED, party=entry.owner)
        if min_cohort < field.min_cohort:
            text = f"min_cohort {min_cohort}, field {field.name} asks for {field.min_cohort}"
            raise Refused(text, code=RefusalCode.SPEC_INVALID, party=entry.owner)
