"""The catalogue: what an organisation says about a dataset and each of its fields (GOVERNANCE.md,
Objects).

An entry is signed by the owner and published; a manifest names it by digest, so a job sees exactly
the levels, purposes and bounds that its approvers saw. The entry describes, it holds no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, ClassVar, Self

import pydantic
from pydantic import model_validator

from federation.errors import RefusalCode, Refused
from federation.objects import (
    Count,
    Date,
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

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.ops)) != len(self.ops) or len(set(self.purposes)) != len(self.purposes):
            raise ValueError("operations and purposes are listed once each")
        return self

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
        return self

    @property
    def org(self) -> str:
        """Whose signature an entry needs; the trust store holds every envelope to this name."""
        return self.owner

    def field(self, name: str) -> Field:
        """The field of that name; KeyError if there is none."""
        return {field.name: field for field in self.fields}[name]

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
