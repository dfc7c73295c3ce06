"""Watches: a bank is told when a rule on the published grid starts to hold for a borrower
(GOVERNANCE.md, Objects: Watch / Alert).

Watch   a request like any other, under a grant of the channel `watch`: one question of the grant
        that shall not be answered now but whenever its answer turns to yes. Signing up costs a use
        and the question's bits; whether the rule holds on that day is not told
Alert   the provider's signed word that the rule started to hold: which watch, when, on data of
        which day; never a value. Each costs a use, so the grant's number of uses bounds them
Taken   the bank's signed receipt of an alert; without it the provider sends the alert again
End     the bank's signed word that it wants no more. It needs no grant in force, costs nothing and
        comes as often as it has to: the provider looks no more, and says so with a receipt
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from federation.audit import Action, Receipt, Result, verify_receipt
from federation.catalogue import Question
from federation.envelope import Content, Envelope
from federation.errors import IntegrityError
from federation.grants import Channel
from federation.objects import (
    Count,
    Date,
    Digest,
    KeyId,
    Name,
    ObjectName,
    OrgId,
    SignedObject,
    Time,
    Usage,
)
from federation.trust import TrustStore
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


# --- the end of a watch ---------------------------------------------------------------------------


class WatchEnd(SignedObject):
    """A bank to a provider: look no more.

    It has neither nonce nor a short life: it names one watch, which ends once, so an old one that
    comes again changes nothing.
    """

    kind: ClassVar[str] = "watch-end"

    verifier: OrgId
    provider: OrgId
    watch: Digest
    created: Time
    reply_key: KeyId

    @property
    def org(self) -> str:
        """Who has to have signed it."""
        return self.verifier


class WatchEnded(SignedObject):
    """The provider's word on it; without `entry` it keeps no such watch of this bank."""

    kind: ClassVar[str] = "watch-ended"

    org: OrgId
    verifier: OrgId
    end: Digest
    created: Time
    log: Name | None = None  # its origin
    entry: Count | None = None  # of the end

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.log is None) != (self.entry is None):
            raise ValueError("`log` and `entry` go together")
        return self


class EndNotice(Content):
    """What is sealed to the provider."""

    called: ClassVar[str] = "the end of a watch"

    end: Envelope


class EndReply(Content):
    """What is sealed to the bank."""

    called: ClassVar[str] = "an answer to the end of a watch"

    ended: Envelope
    receipt: Receipt | None = None


def is_alert(content: bytes) -> bool:
    """Whether what was sealed is an alert: its canonical form begins like nothing else's."""
    return content.startswith(b'{"alert":')


def is_end(content: bytes) -> bool:
    """Whether it is the end of a watch."""
    return content.startswith(b'{"end":')


def check_end(content: bytes, sender: str, me: str, trust: TrustStore, now: datetime) -> WatchEnd:
    """The end, if its sender has signed it for us; raises LianmoError."""
    signed = EndNotice.from_bytes(content).end
    found = trust.verify(signed, WatchEnd, Usage.REQUEST, now, org=sender).object
    if found.provider != me:
        raise IntegrityError("the end is to another organisation", party=sender)
    return found


def check_ended(
    content: bytes, end: WatchEnd, grant: str, trust: TrustStore, now: datetime
) -> EndReply:
    """The provider's answer to this end: proven by its log, or that it keeps no such watch."""
    reply, provider = EndReply.from_bytes(content), end.provider
    found = trust.verify(reply.ended, WatchEnded, Usage.ANSWER, now, org=provider).object
    if found.end != end.digest() or found.verifier != end.verifier:
        raise IntegrityError("the answer is to another end", party=provider)
    if found.entry is None:
        return reply.model_copy(update={"receipt": None})
    if reply.receipt is None:
        raise IntegrityError("the end of a watch without a receipt", party=provider)
    proven = verify_receipt(reply.receipt, trust)
    entry = proven.entry
    fits = entry.action is Action.WATCH_ENDED and entry.outcome is Result.DONE
    fits = fits and (proven.org, proven.origin, entry.seq) == (provider, found.log, found.entry)
    if not fits or (entry.object, entry.job) != (end.watch, grant):
        raise IntegrityError("the receipt is of another end", party=provider)
    return reply
