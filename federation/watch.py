"""Watches: a bank is told when a rule on the published grid starts to hold for a borrower
(GOVERNANCE.md, Objects: Watch / Alert).

Watch   a request like any other, under a grant of the channel `watch`: one question of the grant
        that shall not be answered now but whenever its answer turns to yes. Signing up costs a use
        and the question's bits; whether the rule holds on that day is not told
Alert   the provider's signed word that the rule started to hold: which watch, when, on data of
        which day; never a value. Each costs a use, so the grant's number of uses bounds them
Taken   the bank's signed receipt of an alert; without it the provider sends the alert again
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

import rfc8785
from pydantic import Field, ValidationError, model_validator

from federation.audit import Check, Reason, Receipt
from federation.catalogue import Field as CatalogueField
from federation.catalogue import Period, Question
from federation.enquiry import Comparison
from federation.envelope import Envelope, parse
from federation.errors import IntegrityError
from federation.grants import Channel, Grant, GrantItem
from federation.objects import (
    Count,
    Date,
    Digest,
    FieldName,
    Name,
    ObjectName,
    OrgId,
    Part,
    SignedObject,
    Time,
)
from federation.verification import Asking, Denied

DEBOUNCE_MAX_S = 90 * 86_400


class Severity(StrEnum):
    """How the bank wants an alert to be taken; the provider passes it on."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class WatchRequest(Asking):
    """A question to be asked again and again, whose yes is an alert."""

    kind: ClassVar[str] = "watch"

    channel: Literal[Channel.WATCH]
    rule: ObjectName  # the bank's own name of it
    severity: Severity = Severity.WARNING
    debounce_s: Annotated[int, Field(ge=0, le=DEBOUNCE_MAX_S)] = 86_400  # between two alerts
    dataset: ObjectName
    field: FieldName
    op: Literal[Question.EXISTS, Question.COMPARE, Question.COUNT]
    comparison: Comparison | None = None
    arg: Name | None = None
    period: Period = "current"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        on_cut = self.op in (Question.COMPARE, Question.COUNT)
        if (self.comparison is not None) != on_cut or (self.arg is not None) != on_cut:
            raise ValueError("`comparison` and `arg` go with compare and count")
        return self

    def items(self, grant: Grant) -> tuple[GrantItem, ...]:
        """The one field it asks about."""
        if (item := grant.item(self.provider, self.dataset, self.field)) is None:
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, "the field is not granted")
        return (item,)

    def require(self, item: GrantItem, offered: CatalogueField) -> None:
        """Operation, period and threshold are granted and offered."""
        said = offered.enquiry
        if said is None or self.op not in said.ops or self.period not in said.periods:
            what = "operation or period is not offered for this field"
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, what)
        if self.op not in item.ops or self.period not in item.periods:
            what = "operation or period is not granted for this field"
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, what)
        if self.arg is not None and self.arg not in said.grid:
            raise Denied(Check.QUESTION, Reason.OFF_GRID, "the threshold is not on the grid")
        if self.arg is not None and self.arg not in item.thresholds:
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, "the threshold is not granted")


class Alert(SignedObject):
    """A provider to a bank: the rule of this watch started to hold."""

    kind: ClassVar[str] = "alert"

    org: OrgId  # the provider
    verifier: OrgId
    watch: Digest
    grant: Digest
    rule: ObjectName
    severity: Severity
    created: Time
    as_of: Date  # of the dataset
    uses_left: Count
    log: Name  # its origin
    entry: Count  # of the intent


class AlertTaken(SignedObject):
    """The bank's receipt; `wanted`: whether the watch shall go on."""

    kind: ClassVar[str] = "alert-taken"

    org: OrgId
    alert: Digest
    created: Time
    wanted: bool = True


class AlertNotice(Part):
    """What is sealed to the bank."""

    alert: Envelope
    receipt: Receipt

    def to_bytes(self) -> bytes:
        """As it is sealed."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_bytes(cls, data: bytes) -> AlertNotice:
        """What was sealed; IntegrityError for anything else."""
        try:
            return cls.model_validate(parse(data))
        except ValidationError:
            raise IntegrityError("not an alert with its receipt") from None
