"""Consent: what an enterprise allows to be asked about it, and what became of that (GOVERNANCE.md,
Consent: the grant).

Terms        what a bank drafts and an enterprise reads; the notice is a function of the terms, so
             that what was shown can be written again by anybody from what was signed
Grant        the terms with who signed them; pauses, resumptions and the revocation follow as signed
             events, and the state is a pure function of these and the clock
Subject      an enterprise's key is known by its card, which it signs itself, and a certificate on
             that card by somebody whom the *provider* lists in its own settings (ADR 11)
Status list  the platform's word on which events there are; it counts at a provider once every one
             of them is there, and without a fresh one the provider refuses. So nobody can make a
             revocation up, nor hold the list back; who signs it can leave an event out of it, until
             the event is handed to the provider itself
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, ClassVar, Generic, Self, TypeVar

from pydantic import Field, StringConstraints, ValidationError, model_validator

from federation import canonical
from federation.audit import Receipt
from federation.catalogue import Assurance, Period, Question
from federation.envelope import Content, Envelope, parse
from federation.errors import IntegrityError, Refused
from federation.objects import (
    AlgorithmName,
    Base64,
    Count,
    DecimalText,
    Digest,
    FieldName,
    KeyId,
    Name,
    ObjectName,
    OrgId,
    OrgKind,
    Part,
    Purpose,
    SignedObject,
    Time,
    Usage,
    Uscc,
    utc_time,
)
from federation.profile import profile
from federation.trust import CLOCK_SKEW, TrustStore

GRANT_LIFE = timedelta(days=90)
GRANT_BEGINS = timedelta(days=7)  # at the latest after it was signed
EVENT_KEPT = GRANT_LIFE + GRANT_BEGINS  # after that an event is on no grant that still holds
CERTIFICATE_LIFE = timedelta(days=366)
MAX_FILE = 1 << 17
LAST_EVENT = (1 << 31) - 1
MAX_LISTED = 14_000  # entries of each sort: together below the 1 MiB of a signed object

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
T = TypeVar("T", bound=SignedObject)


class Channel(StrEnum):
    """What a grant is good for; exactly one."""

    VERIFY = "verify"  # match or no match
    QUERY = "query"  # a band or value
    SCORE = "score"  # this enterprise's part of a joint model's score
    WATCH = "watch"  # an alert when a rule starts to hold


_OPS = {
    Channel.VERIFY: {Question.EXISTS, Question.EQUALS, Question.COMPARE, Question.COUNT},
    Channel.QUERY: {Question.BAND, Question.VALUE},
    Channel.SCORE: set[Question](),
    Channel.WATCH: {Question.EXISTS, Question.COMPARE, Question.COUNT},
}

# Of questions every purpose may be one; a model that is trained scores and watches nobody, and whom
# a bank decides on it does not follow.
SERVES = {
    Channel.VERIFY: frozenset(Purpose),
    Channel.QUERY: frozenset(Purpose),
    Channel.SCORE: frozenset({Purpose.CREDIT_DECISION, Purpose.POST_LOAN_MONITORING}),
    Channel.WATCH: frozenset({Purpose.POST_LOAN_MONITORING}),
}


class Capacity(StrEnum):
    """In which capacity somebody signs for the enterprise."""

    LEGAL_REPRESENTATIVE = "legal-representative"
    AUTHORISED_OFFICER = "authorised-officer"
    ENTERPRISE_SEAL = "enterprise-seal"


class Language(StrEnum):
    """Of the notice that was shown."""

    ZH = "zh"
    EN = "en"


class GrantItem(Part):
    """One field of one provider, and what may be asked of it."""

    provider: OrgId
    dataset: ObjectName
    field: FieldName
    title: Name  # as the notice shows it
    ops: Annotated[tuple[Question, ...], Field(max_length=6)] = ()  # none: a part of a score
    periods: Annotated[tuple[Period, ...], Field(min_length=1, max_length=64)] = ("current",)
    thresholds: Annotated[tuple[DecimalText, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for listed in (self.ops, self.periods, self.thresholds):
            if len(set(listed)) != len(listed):
                raise ValueError("operations, periods and thresholds are listed once each")
        if self.thresholds and not {Question.COMPARE, Question.COUNT} & set(self.ops):
            raise ValueError("thresholds go with the operations compare and count")
        return self


class NamedOrg(Part):
    """An organisation as the notice names it."""

    org: OrgId
    name: Name


class Terms(SignedObject):
    """A draft: all that an enterprise agrees to, not signed by anybody."""

    kind: ClassVar[str] = "grant-terms"

    subject: Uscc
    grantee: OrgId
    purpose: Purpose
    channel: Channel
    items: Annotated[tuple[GrantItem, ...], Field(min_length=1, max_length=64)]
    model: Digest | None = None  # of the joint model, with the channel `score`
    names: Annotated[tuple[NamedOrg, ...], Field(max_length=65)]
    retain_answer_days: Annotated[int, Field(ge=0, le=3650)] = 30
    max_uses: Annotated[int, Field(ge=1, le=10_000)] = 1
    min_interval_s: Annotated[int, Field(ge=0, le=90 * 86400)] = 0
    not_before: Time
    expires: Time
    notice_lang: Language = Language.ZH
    notice_digest: Digest
    nonce: Nonce

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        life = utc_time(self.expires) - utc_time(self.not_before)
        if not timedelta(0) < life <= GRANT_LIFE:
            raise ValueError(f"a grant lives at most {GRANT_LIFE.days} days")
        places = [(item.provider, item.dataset, item.field) for item in self.items]
        if len(set(places)) != len(places):
            raise ValueError("each field is granted once")
        if not all(set(item.ops) <= _OPS[self.channel] for item in self.items):
            has = ", ".join(sorted(_OPS[self.channel])) or "none: `lianmo model draft` drafts it"
            raise ValueError(f"the channel {self.channel} has other operations ({has})")
        if self.channel is not Channel.SCORE and not all(item.ops for item in self.items):
            raise ValueError("each field is granted for some operation, as in `FIELD:exists`")
        if (self.model is not None) != (self.channel is Channel.SCORE):
            raise ValueError("`model` goes with the channel score, and only with it")
        named = [party.org for party in self.names]
        if sorted(named) != sorted({self.grantee, *self.providers}):
            raise ValueError("the notice names the grantee and each provider, once")
        return self

    @property
    def providers(self) -> tuple[str, ...]:
        """Whom the grant opens, in order of appearance."""
        return tuple(dict.fromkeys(item.provider for item in self.items))

    def item(self, provider: str, dataset: str, field: str) -> GrantItem | None:
        """What was granted on a field; None if nothing was."""
        wanted = (provider, dataset, field)
        return next((i for i in self.items if (i.provider, i.dataset, i.field) == wanted), None)


class Grant(Terms):
    """Terms that an enterprise has agreed to."""

    kind: ClassVar[str] = "grant"

    created: Time
    signer: KeyId
    capacity: Capacity
    assurance: Assurance

    @model_validator(mode="after")
    def _begins_soon(self) -> Self:
        """Else a revocation could be forgotten before the grant begins."""
        if utc_time(self.not_before) - utc_time(self.created) > GRANT_BEGINS:
            raise ValueError(f"a grant begins at most {GRANT_BEGINS.days} days after its signature")
        return self


class Change(StrEnum):
    """What can happen to a grant."""

    PAUSE = "pause"
    RESUME = "resume"
    REVOKE = "revoke"


class GrantEvent(SignedObject):
    """The subject's later word on its grant; numbers grow, so that nobody can reorder them."""

    kind: ClassVar[str] = "grant-event"

    grant: Digest
    change: Change
    number: Annotated[int, Field(ge=1, le=LAST_EVENT)]
    created: Time
    effective: Time

    @model_validator(mode="after")
    def _not_backdated(self) -> Self:
        if utc_time(self.effective) < utc_time(self.created):
            raise ValueError("an event takes effect when it was made, or later")
        return self


@dataclass(frozen=True, slots=True)
class Said:
    """An event, and whose word it proved to be when it came in."""

    event: GrantEvent
    subject: str | None  # None: the platform
    assurance: Assurance
    certificate: str | None  # its digest


class State(StrEnum):
    """What a grant is worth at a moment."""

    PENDING = "pending"
    ACTIVE = "active"
    PAUSED = "paused"
    REVOKED = "revoked"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"


def heard(grant: Grant, said: Iterable[Said], revoked: Collection[str]) -> list[GrantEvent]:
    """Of what was said on a grant, what counts: the subject's own word, for A1 the platform's.

    A resumption opens what was closed, so it needs a proof as strong as the grant's, and one that
    nobody took back: a weaker issuer could make itself a key of any enterprise's, and a thief keeps
    the old one. Whoever pauses or revokes may be weaker. revoked: a status list's certificates.
    """
    return [
        one.event
        for one in said
        if (one.subject == grant.subject)
        or (one.subject is None and grant.assurance is Assurance.A1)
        if one.event.change is not Change.RESUME
        or (
            one.assurance.suffices(grant.assurance)
            and (one.certificate is None or one.certificate[:32] not in revoked)
        )
    ]


def state_of(grant: Grant, events: Iterable[GrantEvent], now: datetime, *, uses: int = 0) -> State:
    """The state that follows from the subject's verified events and the uses.

    A revocation is final whatever came after it; of pauses and resumptions that are in effect, the
    highest number counts, and of two with one number the pause.
    """
    done = [event for event in events if utc_time(event.effective) <= now]
    if any(event.change is Change.REVOKE for event in done):
        return State.REVOKED
    if now >= utc_time(grant.expires):
        return State.EXPIRED
    if uses >= grant.max_uses:
        return State.EXHAUSTED
    last = max(done, key=lambda e: (e.number, e.change is Change.PAUSE), default=None)
    if last is not None and last.change is Change.PAUSE:
        return State.PAUSED
    return State.PENDING if now < utc_time(grant.not_before) else State.ACTIVE


# --- subjects -------------------------------------------------------------------------------------


class SubjectKey(Part):
    """A public key of an enterprise; fewer fields than an organisation's, as pages write it too."""

    key_id: KeyId  # SHA-256 of the SPKI, its first 16 bytes
    usage: Usage
    alg: AlgorithmName
    spki: Base64  # DER
    not_before: Time
    not_after: Time

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if hashlib.sha256(base64.b64decode(self.spki)).hexdigest()[:32] != self.key_id:
            raise ValueError("the key id is not that of the key")
        life = utc_time(self.not_after) - utc_time(self.not_before)
        if not timedelta(0) < life <= CERTIFICATE_LIFE:
            raise ValueError(f"a key lives at most {CERTIFICATE_LIFE.days} days")
        return self


class SubjectCard(SignedObject):
    """An enterprise's own keys, signed with its grant key; proves possession, not identity."""

    kind: ClassVar[str] = "subject-card"

    subject: Uscc
    name: Name  # for display; the identity is `subject`
    profile: ObjectName = "intl"
    created: Time
    keys: Annotated[tuple[SubjectKey, ...], Field(min_length=1, max_length=8)]

    @model_validator(mode="after")
    def _one_grant_key(self) -> Self:
        if [key.usage for key in self.keys].count(Usage.GRANT) != 1:
            raise ValueError("a subject's card has exactly one grant key")
        if len({key.key_id for key in self.keys}) != len(self.keys):
            raise ValueError("each key stands once in a card, with one usage")
        return self

    def key(self, usage: Usage) -> SubjectKey | None:
        """The key for that use, if there is one."""
        return next((key for key in self.keys if key.usage is usage), None)

    def fingerprint(self) -> str:
        """What the enterprise and the issuer compare: of the whole card, in groups of four."""
        text = self.digest()
        return "-".join(text[i : i + 4] for i in range(0, 64, 4))


class SubjectCertificate(SignedObject):
    """An issuer's word: these keys are that enterprise's."""

    kind: ClassVar[str] = "subject-certificate"

    org: OrgId  # the issuer
    card: Digest
    subject: Uscc
    assurance: Assurance
    created: Time
    not_before: Time
    not_after: Time

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        life = utc_time(self.not_after) - utc_time(self.not_before)
        if not timedelta(0) < life <= CERTIFICATE_LIFE:
            raise ValueError(f"a certificate lives at most {CERTIFICATE_LIFE.days} days")
        if self.assurance is Assurance.A1:
            raise ValueError("A1 is the platform's own signature: it certifies no key")
        return self


class CertificateRevocation(SignedObject):
    """The issuer's later word: these keys are not, or no longer."""

    kind: ClassVar[str] = "certificate-revocation"

    org: OrgId
    certificate: Digest
    created: Time


class BySubject(Part):
    """A grant or event with what proves whose signature it is; goes as it is into files.

    Without card and certificate it is the platform that signed: assurance A1.
    """

    signed: Envelope
    card: Envelope | None = None
    certificate: Envelope | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.card is None) != (self.certificate is None):
            raise ValueError("card and certificate go together")
        return self

    @property
    def digest(self) -> str:
        """Of what is signed."""
        return hashlib.sha256(self.signed.payload).hexdigest()

    @property
    def proof_digest(self) -> str:
        """Of all of it, what proves whose word it is included: the name of an event. Under the
        digest of what is signed alone somebody else's signature could take the place of its own."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def said(self, subject: str | None) -> Said:
        """The event in it, by whom it proved to be; IntegrityError if it is none."""
        event = self.signed.unverified(GrantEvent)
        if self.certificate is None:
            return Said(event, subject, Assurance.A1, None)
        word = self.certificate.unverified(SubjectCertificate)
        return Said(event, subject, word.assurance, word.digest())

    def to_json(self) -> bytes:
        """The bytes of the file."""
        return canonical.dumps(self.model_dump(mode="json", by_alias=True)) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> BySubject:
        """What is in these bytes, verified by nobody; IntegrityError for anything else."""
        if len(data) > MAX_FILE:
            raise IntegrityError(f"a signed grant has at most {MAX_FILE} bytes")
        try:
            return cls.model_validate(parse(data.rstrip(b"\n")))
        except ValidationError:
            raise IntegrityError("not a signed grant or event") from None


@dataclass(frozen=True, slots=True)
class VerifiedSubject(Generic[T]):
    """An object, and the enterprise that signed it (or the platform in its place)."""

    object: T
    digest: str
    subject: str | None  # None: the platform signed, it does not say for whom
    assurance: Assurance
    key_id: str
    certificate: str | None  # its digest
    encrypt: bytes | None  # SPKI of the enterprise's key for what is sealed to it


Issuers = Mapping[str, Assurance]
"""Who may certify enterprises' keys, and up to which assurance: a provider's own setting."""


def verify_card(card: Envelope) -> SubjectCard:
    """A subject's card that proves itself; says nothing on whose it is."""
    found = card.unverified(SubjectCard)
    suite = profile(found.profile)
    for key in found.keys:
        if key.alg != suite.algorithm(key.usage) or not suite.is_key(key.alg, _spki(key)):
            raise IntegrityError(f"the {key.usage} key of a subject's card is no safe key")
    grant = found.key(Usage.GRANT)
    if grant is None or [signature.keyid for signature in card.signatures] != [grant.key_id]:
        raise IntegrityError("a subject's card is signed with its own grant key")
    _require_signature(card, grant)
    return found


def verify_by_subject(
    given: BySubject, kind: type[T], trust: TrustStore, issuers: Issuers, now: datetime
) -> VerifiedSubject[T]:
    """The object, if its subject's certified key (or, for A1, the platform) has signed it.

    Raises IntegrityError, NotFound for an issuer that is not trusted, Refused for one that may not
    certify that much or a key out of force.
    """
    if given.card is None or given.certificate is None:
        signed = trust.verify(given.signed, kind, Usage.GRANT, now)
        if trust.card(signed.org).org_kind is not OrgKind.PLATFORM:
            raise Refused("only the platform attests in a subject's place", party=signed.org)
        return VerifiedSubject(
            signed.object, signed.digest, None, Assurance.A1, signed.key_id, None, None
        )
    card = verify_card(given.card)
    word = trust.verify(given.certificate, SubjectCertificate, Usage.CERTIFY, now)
    said, issuer = word.object, word.org
    if issuer not in issuers or not issuers[issuer].suffices(said.assurance):
        raise Refused("this issuer may not certify enterprises' keys here", party=issuer)
    if said.card != card.digest() or said.subject != card.subject:
        raise IntegrityError("the certificate is of another card", party=issuer)
    key, found = card.key(Usage.GRANT), given.signed.unverified(kind)
    made = utc_time(getattr(found, "created", ""))
    if [signature.keyid for signature in given.signed.signatures] != [key.key_id if key else ""]:
        raise IntegrityError(f"the {kind.kind} is not signed with the subject's grant key")
    if key is None:
        raise RuntimeError("a verified card has a grant key")
    _require_signature(given.signed, key)
    if made > now + CLOCK_SKEW:
        raise IntegrityError(f"the {kind.kind} is from the future")
    for moment in (made, now):
        if not (_is_in_force(said, moment) and _is_in_force(key, moment)):
            raise Refused("the subject's key is not in force", party=issuer)
    sealing = card.key(Usage.ENCRYPT)
    return VerifiedSubject(
        found,
        given.digest,
        card.subject,
        said.assurance,
        key.key_id,
        word.digest,
        _spki(sealing) if sealing else None,
    )


def require_grant(found: VerifiedSubject[Grant]) -> Grant:
    """The grant, if it says of itself what its signature proves; raises IntegrityError."""
    grant = found.object
    if grant.assurance is not found.assurance:
        said = f"{grant.assurance}, its signature proves {found.assurance}"
        raise IntegrityError(f"the grant claims {said}")
    if grant.signer != found.key_id or (found.subject or grant.subject) != grant.subject:
        raise IntegrityError("the grant is signed by another subject than it names")
    digest = notice_digest(grant, grant.notice_lang)
    if not hmac.compare_digest(digest, grant.notice_digest):
        raise IntegrityError("the grant was signed under another notice than its terms'")
    return grant


def _is_in_force(said: SubjectCertificate | SubjectKey, moment: datetime) -> bool:
    # the skew goes to our side: a date of others may be the calendar's first
    return utc_time(said.not_before) <= moment + CLOCK_SKEW and moment < utc_time(said.not_after)


def _spki(key: SubjectKey) -> bytes:
    return base64.b64decode(key.spki)


def _require_signature(envelope: Envelope, key: SubjectKey) -> None:
    signature = envelope.signatures[0]
    suite = profile("intl")
    if signature.alg != key.alg or not suite.is_signature(
        key.alg, _spki(key), envelope.pae(), signature.sig
    ):
        raise IntegrityError("the subject's signature does not hold")


# --- status lists ---------------------------------------------------------------------------------

Listed = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class StatusList(SignedObject):
    """Which events (with their proofs) and revoked certificates there are, by the first 16 bytes of
    their digests.

    Digests, and not a bitmap: whoever drafts a grant cannot know a free place in one, and whether
    an event is the subject's is judged where the grant is known, at the provider (ADR 11, 17).
    """

    kind: ClassVar[str] = "status-list"

    org: OrgId  # the platform
    sequence: Count  # grows with every list: an older one is a rollback
    created: Time
    next_update: Time
    events: Annotated[tuple[Listed, ...], Field(max_length=MAX_LISTED)]
    certificates: Annotated[tuple[Listed, ...], Field(max_length=MAX_LISTED)]  # revoked ones

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        for entries in (self.events, self.certificates):
            if list(entries) != sorted(set(entries)):
                raise ValueError("the entries are sorted, each once")
        return self


# --- what the subject is told ---------------------------------------------------------------------


class Use(SignedObject):
    """A provider to the subject: one use of its grant."""

    kind: ClassVar[str] = "grant-use"

    org: OrgId  # the provider
    created: Time
    grant: Digest
    request: Digest
    answer: Digest
    verifier: OrgId
    purpose: Purpose
    channel: Channel
    dataset: ObjectName
    field: FieldName
    op: Question | None = None
    period: Period | None = None
    result: Name  # the word of the answer


class UseNotice(Content):
    """A use with the proof that it stands in the provider's log."""

    called: ClassVar[str] = "a receipt of a use"

    use: Envelope
    receipt: Receipt


# --- the notice -----------------------------------------------------------------------------------

_PURPOSES = {
    Language.ZH: {
        Purpose.CREDIT_MODEL_TRAINING: "训练信用模型",
        Purpose.CREDIT_DECISION: "审批您的信贷申请",
        Purpose.POST_LOAN_MONITORING: "贷后风险监测",
    },
    Language.EN: {
        Purpose.CREDIT_MODEL_TRAINING: "training a credit model",
        Purpose.CREDIT_DECISION: "deciding on your application for credit",
        Purpose.POST_LOAN_MONITORING: "watching for risks while your loan runs",
    },
}
_CHANNELS = {
    Language.ZH: {
        Channel.VERIFY: "银行提问，数据单位只回答“是”或“否”，不提供数据本身",
        Channel.QUERY: "数据单位向银行提供所列数值或所在区间",
        Channel.SCORE: "数据单位参与计算联合模型评分，银行看到总分和原因；"
        "模型为决策树或只有一家数据单位时，还能看出所列各项处于哪个区间",
        Channel.WATCH: "所列情况出现时，数据单位通知银行，不提供数据本身",
    },
    Language.EN: {
        Channel.VERIFY: "the bank asks, the data holder answers yes or no, never the data",
        Channel.QUERY: "the data holder gives the bank the listed value or its range",
        Channel.SCORE: "the data holder adds its part to a joint score; "
        "the bank sees the total and the reasons; "
        "with a model of trees or a single data holder also in which range each item lies",
        Channel.WATCH: "the data holder tells the bank when what is listed happens, never the data",
    },
}
_QUESTIONS = {
    Language.ZH: {
        Question.EXISTS: "是否有记录",
        Question.EQUALS: "是否与银行所填一致",
        Question.COMPARE: "是否达到",
        Question.COUNT: "次数是否达到",
        Question.BAND: "处于哪个区间",
        Question.VALUE: "数值",
    },
    Language.EN: {
        Question.EXISTS: "whether there is a record",
        Question.EQUALS: "whether it is what the bank has",
        Question.COMPARE: "whether it reaches",
        Question.COUNT: "whether the number of times reaches",
        Question.BAND: "in which range it lies",
        Question.VALUE: "the value",
    },
}


def notice(terms: Terms, lang: Language) -> str:
    """The plain-language notice of these terms; the signing page writes the same (console test)."""
    names = {party.org: party.name for party in terms.names}
    bank, zh = names[terms.grantee], lang is Language.ZH
    lines = (
        [
            f"授权书：{bank}",
            f"企业统一社会信用代码：{terms.subject}",
            f"用途：{_PURPOSES[lang][terms.purpose]}，不得用于其他用途",
            f"方式：{_CHANNELS[lang][terms.channel]}",
            "内容：",
        ]
        if zh
        else [
            f"Authorisation for {bank}",
            f"Enterprise (credit code): {terms.subject}",
            f"Purpose: {_PURPOSES[lang][terms.purpose]}, and nothing else",
            f"How: {_CHANNELS[lang][terms.channel]}",
            "What:",
        ]
    )
    for number, item in enumerate(terms.items, 1):
        asked = ("、" if zh else ", ").join(_QUESTIONS[lang][op] for op in item.ops)
        parts = [names[item.provider], item.title]
        parts += [asked] if asked else []
        parts += [" / ".join(item.thresholds)] if item.thresholds else []
        latest = "最新一期" if zh else "the latest period"
        periods = [latest if period == "current" else period for period in item.periods]
        parts += [("期间 " if zh else "for ") + ", ".join(periods)]
        lines.append(f"{number}. " + ("；" if zh else "; ").join(parts))
    times, days = terms.max_uses, terms.retain_answer_days
    begin, end = terms.not_before[:10], terms.expires[:10]
    lines += (
        [
            f"次数：每家数据单位最多 {times} 次",
            f"有效期：{begin} 至 {end}",
            f"银行保存答案：最多 {days} 天",
            "您可以随时暂停或撤销，并可查看每一次使用的凭证。不签署不影响您的其他业务。",
        ]
        if zh
        else [
            f"How often: at most {times} times at each data holder",
            f"Valid: {begin} to {end}",
            f"The bank keeps the answers for at most {days} days",
            "You can pause or revoke at any time and see a receipt of every use. "
            "You may decline without any effect on your other business.",
        ]
    )
    return "\n".join(lines) + "\n"


def notice_digest(terms: Terms, lang: Language) -> str:
    """SHA-256 of the notice, UTF-8."""
    return hashlib.sha256(notice(terms, lang).encode()).hexdigest()
