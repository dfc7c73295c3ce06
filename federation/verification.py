"""A question about one enterprise under its grant: request, answer, and the provider's order of
checks (GOVERNANCE.md, Order of checks at the provider).

Request   signed by the verifier's request key, sealed to the provider with the grant it rests on
Checks    1 to 10 are here and pure: what was opened, trust store, facts, time in; `Asked` or
          `Denied` out, the first failure wins. 11 to 14 need the database, the log and the data:
          clients/verification.py. They are the same for every channel: a kind of request says
          which granted fields it touches (`items`) and what else it asks of them (`require`)
Answer    signed by the provider's answer key over the request's digest, sealed to the verifier;
          a refusal is one word, whatever the reason
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Generic, Literal, Protocol, Self, TypeVar

from pydantic import StringConstraints, model_validator

from federation import grants
from federation.audit import Check, Reason, Receipt
from federation.catalogue import Assurance, Dataset, Period, Question
from federation.catalogue import Field as CatalogueField
from federation.enquiry import Answered, Comparison
from federation.envelope import Content, Envelope
from federation.errors import IntegrityError, LianmoError, RefusalCode, Refused
from federation.grants import (
    BySubject,
    Channel,
    Grant,
    GrantItem,
    Nonce,
    Said,
    State,
    StatusList,
    VerifiedSubject,
    heard,
    state_of,
)
from federation.objects import (
    Base64,
    Count,
    Date,
    Digest,
    FieldName,
    KeyId,
    Name,
    ObjectName,
    OrgId,
    Purpose,
    SignedObject,
    Time,
    Usage,
    Uscc,
    utc_time,
)
from federation.trust import CLOCK_SKEW, TrustStore

WINDOW = timedelta(seconds=120)  # between a request's birth and its end, and of two clocks
NONCE_KEPT = 3 * WINDOW  # at least 2x the window

A = TypeVar("A", bound="Asking")


class Denied(Refused):
    """A check said no: which one and why, for the provider's own log only."""

    def __init__(self, check: Check, reason: Reason, what: str) -> None:
        super().__init__(what, code=_OUTWARD.get(check, RefusalCode.CONSENT_INVALID))
        self.check, self.reason = check, reason


_OUTWARD = {
    Check.SEALED: RefusalCode.SPEC_INVALID,
    Check.ENVELOPE: RefusalCode.SPEC_INVALID,
    Check.PURPOSE: RefusalCode.PURPOSE_NOT_ALLOWED,
    Check.POLICY: RefusalCode.DECLINED,
    Check.BUDGET: RefusalCode.INSUFFICIENT_BUDGET,
    Check.VALUE: RefusalCode.UNFULFILLABLE,
}

# --- objects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a field asks of the grants that open it."""

    min_assurance: Assurance
    max_days: int  # of the grant
    retention_days: int  # of what the bank learns


class Asking(SignedObject):
    """What every request to a provider says; the channels' requests add what they ask."""

    channel: Channel
    request: Nonce
    grant: Digest
    verifier: OrgId
    provider: OrgId
    subject: Uscc
    purpose: Purpose
    created: Time
    expires: Time
    nonce: Nonce
    reply_key: KeyId

    @property
    def org(self) -> str:
        """Who has to have signed it."""
        return self.verifier

    def items(self, grant: Grant) -> tuple[GrantItem, ...]:
        """What it touches of what was granted at this provider; raises Denied (8)."""
        raise NotImplementedError

    def require(self, item: GrantItem, offered: CatalogueField) -> None:
        """What it asks of a field is in the grant and in the catalogue; raises Denied (8)."""
        raise NotImplementedError

    def conditions(self, offered: CatalogueField) -> Conditions | None:
        """What the field asks of a grant on this channel; None: it is not offered there."""
        if (said := offered.enquiry) is None:
            return None
        return Conditions(said.min_assurance, said.max_days, said.retention_days)


class OneField(Asking):
    """One question about one field; its kinds say on which channels, and what else goes with it."""

    dataset: ObjectName
    field: FieldName
    op: Question
    comparison: Comparison | None = None  # with compare and count
    arg: Name | None = None  # the threshold, or the text to compare with
    period: Period = "current"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        on_cut = self.op in (Question.COMPARE, Question.COUNT)
        if (self.comparison is not None) != on_cut:
            raise ValueError(
                "compare and count need `comparison`, ge or lt, and only they have one"
            )
        if (self.arg is not None) != (on_cut or self.op is Question.EQUALS):
            raise ValueError("compare, count and equals need `arg`, and only they have one")
        return self

    def items(self, grant: Grant) -> tuple[GrantItem, ...]:
        """The one field it asks about."""
        if (item := grant.item(self.provider, self.dataset, self.field)) is None:
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, "the field is not granted")
        return (item,)

    def require(self, item: GrantItem, offered: CatalogueField) -> None:
        """Operation, period and threshold are granted and offered."""
        enquiry = offered.enquiry
        if enquiry is None or self.op not in enquiry.ops or self.period not in enquiry.periods:
            what = "operation or period is not offered for this field"
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, what)
        if self.op not in item.ops or self.period not in item.periods:
            what = "operation or period is not granted for this field"
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, what)
        if self.op in (Question.COMPARE, Question.COUNT):
            if self.arg not in enquiry.grid:
                raise Denied(Check.QUESTION, Reason.OFF_GRID, "the threshold is not on the grid")
            if self.arg not in item.thresholds:
                raise Denied(Check.QUESTION, Reason.NOT_GRANTED, "the threshold is not granted")


class VerificationRequest(OneField):
    """A question to be answered now, on the channels `verify` and `query`."""

    kind: ClassVar[str] = "verification-request"

    channel: Literal[Channel.VERIFY, Channel.QUERY]


class Answer(SignedObject):
    """A provider's word on a request; of a refusal everything that may be missing is."""

    kind: ClassVar[str] = "verification-answer"

    org: OrgId  # the provider
    verifier: OrgId
    request: Digest
    created: Time
    result: Answered
    value: Name | None = None  # a band or value, on the channel `query`
    as_of: Date | None = None  # of the dataset
    normaliser: ObjectName | None = None
    catalogue: Digest | None = None
    uses_left: Count | None = None
    log: Annotated[str, StringConstraints(max_length=200)] | None = None  # its origin
    entry: Count | None = None  # of the intent

    @model_validator(mode="after")
    def _refusals_say_nothing(self) -> Self:
        if (self.value is not None) != (self.result is Answered.VALUE):
            raise ValueError("a value goes with the result `value`")
        told = (self.as_of, self.catalogue, self.uses_left, self.log, self.entry)
        if self.result is Answered.REFUSED:
            if any(item is not None for item in (*told, self.normaliser)):
                raise ValueError("a refusal says nothing but that it is one")
        elif any(item is None for item in told):
            raise ValueError("an answer says what it rests on")
        return self


class Ask(Content):
    """What is sealed to the provider."""

    called: ClassVar[str] = "a request with its grant"

    request: Envelope
    grant: BySubject


class Reply(Content):
    """What is sealed to the verifier."""

    called: ClassVar[str] = "an answer"

    answer: Envelope
    receipt: Receipt | None = None  # of the answer's entry; none of a refusal
    extra: Base64 = ""  # what a channel adds to its answer


# --- the provider's rules and facts ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """A provider's own settings; they can only narrow what grants and catalogue allow."""

    me: str
    issuers: Mapping[str, Assurance]  # who may certify enterprises' keys, and how far
    status_max_age: timedelta = timedelta(minutes=10)
    deny_verifiers: frozenset[str] = frozenset()
    deny_fields: frozenset[str] = frozenset()  # as `dataset/field`
    deny_purposes: frozenset[str] = frozenset()
    deny_channels: frozenset[str] = frozenset()


class Facts(Protocol):
    """What a provider remembers; every answer is its own, not the coordinator's."""

    def nonce_seen(self, verifier: str, nonce: str) -> bool:
        """Whether this verifier has used it."""

    def entry(self, dataset: str) -> Dataset | None:
        """The own catalogue entry in force."""

    def events(self, grant: str) -> Sequence[Said]:
        """What was said since; verified when it came in."""

    def status(self) -> StatusList | None:
        """The newest status list, verified when it came in."""


class Standing(Protocol):
    """Who takes part in the network (federation/network.py)."""

    def require_active(self, org: str, now: datetime) -> None:
        """Raises Refused for an organisation that is suspended or out of assessment."""


@dataclass(frozen=True, slots=True)
class Granted:
    """One granted field that a request touches, with the entry it is offered in."""

    item: GrantItem
    entry: Dataset
    offered: CatalogueField


@dataclass(frozen=True, slots=True)
class Asked(Generic[A]):
    """A request that passed checks 1 to 10."""

    request: A
    digest: str
    grant: Grant
    grant_digest: str
    bundle: BySubject = field(repr=False)
    consent: VerifiedSubject[Grant] = field(repr=False)
    places: tuple[Granted, ...]


# --- the order of checks --------------------------------------------------------------------------


@dataclass(slots=True)
class Progress:
    """What is known of a request when a check says no: for the refusal's entry and its nonce."""

    digest: str | None = None
    verifier: str | None = None  # once its signature holds
    nonce: str | None = None
    grant: str | None = None


def check_asked(
    content: bytes,
    sender: str,
    kind: type[A],
    *,
    trust: TrustStore,
    policy: Policy,
    facts: Facts,
    now: datetime,
    standing: Standing | None = None,
    progress: Progress | None = None,
) -> Asked[A]:
    """Checks 2 to 10 on what a sender's frame held (1 is `sealing.unseal`); raises Denied."""
    progress = progress or Progress()
    with _check(Check.ENVELOPE):  # 2
        ask = Ask.from_bytes(content)
        progress.digest = hashlib.sha256(ask.request.payload).hexdigest()
        found = ask.request.unverified(kind)
        progress.grant = found.grant
    if utc_time(found.created) > now + WINDOW:  # before 3, which judges keys at that time
        raise Denied(Check.FRESH, Reason.CLOCK, "the request is from the future")
    with _check(Check.VERIFIER):  # 3
        if found.verifier != sender:
            raise IntegrityError("the request is another organisation's than its sender's")
        trust.verify(ask.request, kind, Usage.REQUEST, now, org=sender)
        if standing is not None:
            standing.require_active(sender, now)
    progress.verifier, progress.nonce = found.verifier, found.nonce
    _require_fresh(found, facts, now)  # 4
    with _check(Check.GRANT):  # 5
        consent = grants.verify_by_subject(ask.grant, Grant, trust, policy.issuers, now)
        if consent.digest != found.grant:
            raise IntegrityError("the request rests on another grant than the one it brings")
        _require_names(consent.object, policy.me, trust)
    places = require_granted(found, consent, policy, facts, now)
    grant = consent.object
    return Asked(found, progress.digest, grant, consent.digest, ask.grant, consent, places)


def require_granted(
    found: Asking,
    consent: VerifiedSubject[Grant],
    policy: Policy,
    facts: Facts,
    now: datetime,
) -> tuple[Granted, ...]:
    """The rest of check 5, and 6 to 10: also for a request that is kept, as a watch is.

    Grant, catalogue and the site's own policy may say something else than when it came. Raises
    Denied.
    """
    with _check(Check.GRANT):
        grant = grants.require_grant(consent)
        _require_assurance(found, grant, policy.me, facts)
        _require_titles(grant, policy.me, facts)
    _require_parties(found, grant, policy.me)  # 6
    places = _places(found, grant, facts)
    _require_purpose(found, grant, places)  # 7
    _require_questions(found, grant, places)  # 8
    require_in_force(grant, consent, policy, facts, now)  # 9
    _require_policy(found, places, policy)  # 10
    return places


def require_in_force(
    grant: Grant,
    consent: VerifiedSubject[Grant],
    policy: Policy,
    facts: Facts,
    now: datetime,
) -> None:
    """Check 9: the time, the subject's own events, and a status list that is not too old."""
    status = facts.status()
    if status is None or not (
        utc_time(status.created) <= now + CLOCK_SKEW
        and now < utc_time(status.next_update)
        and now - utc_time(status.created) <= policy.status_max_age
    ):
        what = "there is no status list that is fresh enough"
        raise Denied(Check.IN_FORCE, Reason.STALE_STATUS, what)
    if consent.certificate is not None and consent.certificate[:32] in status.certificates:
        what = "the certificate of the subject's key is revoked"
        raise Denied(Check.IN_FORCE, Reason.REVOKED, what)
    events = heard(grant, facts.events(consent.digest), status.certificates)
    # uses are counted and debited together, at 11
    state = state_of(grant, events, now)
    if state is not State.ACTIVE:
        reason = _NOT_ACTIVE[state]
        raise Denied(Check.IN_FORCE, reason, f"the grant is {state}")


_NOT_ACTIVE = {
    State.PENDING: Reason.NOT_YET,
    State.PAUSED: Reason.PAUSED,
    State.REVOKED: Reason.REVOKED,
    State.EXPIRED: Reason.EXPIRED,
    State.EXHAUSTED: Reason.USES,
}


def _require_fresh(found: Asking, facts: Facts, now: datetime) -> None:
    made, end = utc_time(found.created), utc_time(found.expires)
    if not timedelta(0) < end - made <= WINDOW:
        raise Denied(Check.FRESH, Reason.CLOCK, "a request lives at most 120 s")
    if abs(now - made) > WINDOW or now >= end + WINDOW:
        raise Denied(Check.FRESH, Reason.CLOCK, "the request's time is not ours")
    if facts.nonce_seen(found.verifier, found.nonce):
        raise Denied(Check.FRESH, Reason.REPLAYED, "the request's nonce came before")


def _require_assurance(found: Asking, grant: Grant, me: str, facts: Facts) -> None:
    for item in grant.items:
        entry = facts.entry(item.dataset) if item.provider == me else None
        offered = _offered(entry, item.field)
        said = found.conditions(offered) if offered is not None else None
        if said is not None and not grant.assurance.suffices(said.min_assurance):
            what = f"assurance {grant.assurance}, the field asks for {said.min_assurance}"
            raise Denied(Check.GRANT, Reason.ASSURANCE, what)


def _require_names(grant: Grant, me: str, trust: TrustStore) -> None:
    """The notice called the parties by the names in their cards; the bank has drafted it."""
    for party in grant.names:
        if party.org in (me, grant.grantee) and party.name != trust.card(party.org).name:
            raise IntegrityError("the notice names a party otherwise than its card")


def _require_titles(grant: Grant, me: str, facts: Facts) -> None:
    """The notice called this provider's fields what the provider calls them.

    One that showed a field as something else was not about it, whatever was signed.
    """
    for item in grant.items:
        entry = facts.entry(item.dataset) if item.provider == me else None
        offered = _offered(entry, item.field)
        if entry is not None and offered is not None and item.title != entry.title_of(offered):
            raise IntegrityError("the notice names a field otherwise than its owner")


def _require_parties(found: Asking, grant: Grant, me: str) -> None:
    if grant.grantee != found.verifier:
        raise Denied(Check.PARTIES, Reason.GRANTEE, "the grant is another organisation's")
    if found.provider != me or me not in grant.providers:
        raise Denied(Check.PARTIES, Reason.PROVIDER, "the grant does not name this provider")
    if grant.subject != found.subject:
        raise Denied(Check.PARTIES, Reason.SUBJECT, "the grant is another enterprise's")


def _places(found: Asking, grant: Grant, facts: Facts) -> tuple[Granted, ...]:
    """The fields a request touches; what is not there is refused as 8, but 7 comes first."""
    places = []
    for item in found.items(grant):
        entry = facts.entry(item.dataset)
        offered = _offered(entry, item.field)
        if entry is None or offered is None or found.conditions(offered) is None:
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, "the field is not offered")
        places.append(Granted(item, entry, offered))
    return tuple(places)


def _offered(entry: Dataset | None, name: str) -> CatalogueField | None:
    if entry is None:
        return None
    return next((field for field in entry.fields if field.name == name), None)


def _require_purpose(found: Asking, grant: Grant, places: Sequence[Granted]) -> None:
    if found.purpose is not grant.purpose:
        what = "the request's purpose is not the grant's"
        raise Denied(Check.PURPOSE, Reason.PURPOSE_NOT_ALLOWED, what)
    if found.purpose not in grants.SERVES[found.channel]:
        what = f"the channel {found.channel} does not serve the purpose {found.purpose}"
        raise Denied(Check.PURPOSE, Reason.PURPOSE_NOT_ALLOWED, what)
    if any(found.purpose not in place.offered.purposes for place in places):
        what = "the field does not serve this purpose"
        raise Denied(Check.PURPOSE, Reason.PURPOSE_NOT_ALLOWED, what)


def _require_questions(found: Asking, grant: Grant, places: Sequence[Granted]) -> None:
    if found.channel is not grant.channel:
        what = f"the grant is for {grant.channel}, the request for {found.channel}"
        raise Denied(Check.QUESTION, Reason.CHANNEL, what)
    life = utc_time(grant.expires) - utc_time(grant.not_before)
    for place in places:
        said = found.conditions(place.offered)
        if said is None or (
            life > timedelta(days=said.max_days) or grant.retain_answer_days > said.retention_days
        ):
            what = "the grant lasts longer, or its answers are kept longer, than the field allows"
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, what)
        found.require(place.item, place.offered)


def _require_policy(found: Asking, places: Sequence[Granted], policy: Policy) -> None:
    denied = (
        found.verifier in policy.deny_verifiers
        or found.purpose in policy.deny_purposes
        or found.channel in policy.deny_channels
    )
    named = {f"{place.entry.name}/{place.offered.name}" for place in places}
    if denied or named & policy.deny_fields:
        raise Denied(Check.POLICY, Reason.DECLINED, "this site's own policy says no")


@contextmanager
def _check(check: Check, reason: Reason = Reason.SIGNER) -> Iterator[None]:
    """Errors of a library function become this check's; `reason` is for a key or issuer that may
    not, an object that does not hold together is `INTEGRITY`."""
    try:
        yield
    except Denied:
        raise
    except LianmoError as error:
        code = Reason.INTEGRITY if isinstance(error, IntegrityError) else reason
        raise Denied(check, code, error.what) from None


# --- the verifier's side --------------------------------------------------------------------------


def check_answer(
    content: bytes, request: VerificationRequest | Asking, trust: TrustStore, now: datetime
) -> tuple[Answer, Reply]:
    """The provider's answer to this very request; raises IntegrityError or Refused otherwise."""
    reply = Reply.from_bytes(content)
    found = trust.verify(reply.answer, Answer, Usage.ANSWER, now, org=request.provider).object
    if found.request != request.digest() or found.verifier != request.verifier:
        what = "the answer is to another request"
        raise IntegrityError(what, party=request.provider)
    return found, reply
