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
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.audit import Receipt
from federation.catalogue import Question
from federation.envelope import Content, Envelope
from federation.grants import Channel
from federation.objects import (
    Count,
    Date,
    Digest,
    Name,
    ObjectName,
    OrgId,
    SignedObject,
    Time,
)
from federation.verification import OneField

DEBOUNCE_MAX_S = 90 * 86_400


class Severity(StrEnum):
    """How the bank wants an alert to be taken; the provider passes it on."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class WatchRequest(OneField):
    """A question to be asked again and again, whose yes is an alert."""

    kind: ClassVar[str] = "watch"

    channel: Literal[Channel.WATCH]
    op: Literal[Question.EXISTS, Question.COMPARE, Question.COUNT]
    rule: ObjectName  # the bank's own name of it
    severity: Severity = Severity.WARNING
    debounce_s: Annotated[int, Field(ge=0, le=DEBOUNCE_MAX_S)] = 86_400  # between two alerts


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


class AlertNotice(Content):
    """What is sealed to the bank."""

    called: ClassVar[str] = "an alert with its receipt"

    alert: Envelope
    receipt: Receipt
