"""Who takes part in the network: its charter, the founders' decisions, and what follows from them.

Charter    names the founders with their admin keys and how many of them decide (k of n, more than
           half); signed by all of them. A home pins one
Decision   admit, suspend, resume or exit of one organisation, in a chain of its own (`sequence`,
           `prev`); each deciding founder signs the same payload, so one envelope has k signatures
Bulletin   one founder's word on the newest decision and card of each organisation it knows of; its
           node signs one every few seconds
Standing   what a home knows from these. `require_active` is asked by everything that deals with
           another organisation

Security   two decisions with one sequence need a founder who signs both, as 2k > n. Whoever carries
           the documents can withhold a decision, and forge none. He cannot withhold one for long:
           of any n - k + 1 founders one has signed it, and no bulletin of that one fits a home that
           lacks it. So an organisation is active only while n - k + 1 founders said within
           `stale_s` that nothing newer is known to them; one founder alone can block nobody
Not here   whether an assessment was done well: the evidence is named by its digest
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from federation.envelope import Envelope, Signature, parse
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    RefusalCode,
    Refused,
)
from federation.identity import key_id
from federation.objects import (
    Base64,
    Card,
    Count,
    Digest,
    Name,
    ObjectName,
    OrgId,
    OrgKind,
    Part,
    SignedObject,
    Text,
    Time,
    Usage,
    Uscc,
    utc_text,
    utc_time,
)
from federation.profile import profile
from federation.trust import CLOCK_SKEW, TrustStore, Verified

FOUNDERS_MAX = 32
STALE_S = 600  # GOVERNANCE.md, T: no fresh word within 10 minutes, and a node stops
EFFECTIVE_MAX = timedelta(days=30)  # how far ahead a decision may be dated
ASSESSMENT_MAX = timedelta(days=3 * 366)
MAX_BUNDLE = 2 << 20  # as a body of the coordinator's API

T = TypeVar("T", bound=SignedObject)


# --- objects --------------------------------------------------------------------------------------


class Founder(Part):
    """An organisation that decides, with the key that it decides with."""

    org: OrgId
    admin_spki: Base64

    @property
    def key_id(self) -> str:
        """As signatures name the key."""
        return key_id(base64.b64decode(self.admin_spki))


class Charter(SignedObject):
    """What the founders agreed on; its digest is what every member compares."""

    kind: ClassVar[str] = "charter"

    network: Name
    founders: Annotated[tuple[Founder, ...], Field(min_length=1, max_length=FOUNDERS_MAX)]
    quorum: Annotated[int, Field(ge=1, le=FOUNDERS_MAX)]
    profile: ObjectName = "intl"
    stale_s: Annotated[int, Field(ge=60, le=7 * 86400)] = STALE_S
    created: Time

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.founders)
        if len({f.org for f in self.founders}) != count:
            raise ValueError("each founder stands once in a charter")
        if len({f.key_id for f in self.founders}) != count:
            raise ValueError("each founder has a key of its own")
        if not count < 2 * self.quorum <= 2 * count:
            raise ValueError("the quorum is more than half of the founders, and at most all")
        return self

    def fingerprint(self) -> str:
        """What officers read to each other: the charter's digest in groups of four."""
        return grouped(self.digest())


class Act(StrEnum):
    """What is decided."""

    ADMIT = "admit"  # also again: a new assessment, or a new admin key
    SUSPEND = "suspend"
    RESUME = "resume"
    EXIT = "exit"


class Assessment(Part):
    """What an organisation was examined for before it was admitted (GOVERNANCE.md, Objects)."""

    security: Name  # what was found, e.g. the level of protection that it holds
    authorisation: Name  # what allows it to take part
    evidence_digest: Digest  # SHA-256 of the report
    assessor: Name
    valid_until: Time


class MemberDecision(SignedObject):
    """What the founders decide on one organisation, next in that organisation's chain."""

    kind: ClassVar[str] = "member-decision"

    charter: Digest
    act: Act
    org: OrgId
    org_kind: OrgKind
    uscc: Uscc
    admin_spki: Base64  # of the card that is meant
    assessment: Assessment | None = None
    sequence: Annotated[int, Field(ge=1, lt=1 << 53)]
    prev: Digest | None = None  # of the decision before it
    created: Time
    effective: Time
    reason: Text = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        created, effective = utc_time(self.created), utc_time(self.effective)
        if (self.act is Act.ADMIT) != (self.assessment is not None):
            raise ValueError("an admission, and only an admission, has an assessment")
        if self.assessment is not None:
            until = utc_time(self.assessment.valid_until)
            if not created < until <= created + ASSESSMENT_MAX:
                raise ValueError("an assessment ends after the admission, and within three years")
        if self.act is not Act.ADMIT and not self.reason:
            raise ValueError("a suspension, its end and an exit have a reason")
        if (self.sequence == 1) != (self.prev is None):
            raise ValueError("every decision but the first names the one before it")
        if not created <= effective <= created + EFFECTIVE_MAX:
            raise ValueError("a decision takes effect when it is made or within 30 days")
        return self

    @property
    def fingerprint(self) -> str:
        """Of the card's admin key, as officers compare it."""
        return grouped(hashlib.sha256(base64.b64decode(self.admin_spki)).hexdigest())


class Head(Part):
    """The newest that a founder knows of one organisation."""

    org: OrgId
    sequence: Count  # 0: no decision
    decision: Digest | None = None
    card: Count = 0  # its serial; 0: no card


class Bulletin(SignedObject):
    """A founder's word that nothing newer is known to it."""

    kind: ClassVar[str] = "bulletin"

    charter: Digest
    org: OrgId
    created: Time
    heads: Annotated[tuple[Head, ...], Field(max_length=4096)]


class Bundle(BaseModel):
    """Documents of a network on their way, as a file or through a coordinator: nobody's word.

    `decisions` may lack signatures yet; who has all of the kind before it takes them in any order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: Literal["lianmo-network"] = "lianmo-network"
    charter: Envelope | None = None
    decisions: Annotated[tuple[Envelope, ...], Field(max_length=4096)] = ()
    bulletins: Annotated[tuple[Envelope, ...], Field(max_length=4096)] = ()

    def to_json(self) -> bytes:
        """The bytes of the file."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True)) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Bundle:
        """The bundle in these bytes; raises IntegrityError for anything else."""
        if len(data) > MAX_BUNDLE:
            raise IntegrityError(f"documents of a network have at most {MAX_BUNDLE} bytes")
        try:
            return cls.model_validate(parse(data.rstrip(b"\n")))
        except ValidationError:
            raise IntegrityError("not documents of a network") from None


def grouped(digest: str) -> str:
    """Hexadecimal digits as people read them to each other."""
    return "-".join(digest[i : i + 4] for i in range(0, len(digest), 4))


# --- signatures -----------------------------------------------------------------------------------


def check_charter(envelope: Envelope) -> Charter:
    """The charter, if every founder signed it; raises IntegrityError, or Refused where this node
    does not have the network's cryptography. Whether it is the right one is for people to compare.
    """
    charter = envelope.unverified(Charter)
    keys = {f.key_id: (f.org, base64.b64decode(f.admin_spki)) for f in charter.founders}
    signed = _signers(envelope, keys, charter.profile, "charter")
    if missing := [f.org for f in charter.founders if f.org not in signed]:
        todo = "each founder runs `lianmo network sign` on it"
        what = f"the charter is not signed by {', '.join(missing)}"
        raise IntegrityError(what, party=missing[0], todo=todo)
    return charter


def merged(one: Envelope, other: Envelope) -> Envelope:
    """One payload with the signatures of both; ValueError if the payloads differ.

    One key's signature is kept once: Ed25519 is deterministic, so an honest key has only one.
    """
    if (one.payload_type, one.payload) != (other.payload_type, other.payload):
        raise ValueError("two payloads")
    by_key: dict[str, Signature] = {}
    for signature in (*one.signatures, *other.signatures):
        by_key.setdefault(signature.keyid, signature)
    return one.model_copy(update={"signatures": tuple(by_key[key] for key in sorted(by_key))})


def _signers(
    envelope: Envelope, keys: Mapping[str, tuple[str, bytes]], suite_name: str, what: str
) -> tuple[str, ...]:
    """The founders whose keys signed, each once; raises IntegrityError for any other signature."""
    suite = profile(suite_name)
    alg, message = suite.algorithm(Usage.ADMIN), envelope.pae()
    found: list[str] = []
    for signature in envelope.signatures:
        if signature.keyid not in keys:
            raise IntegrityError(f"the {what} is signed with a key that is no founder's")
        org, spki = keys[signature.keyid]
        if signature.alg != alg or not suite.is_signature(alg, spki, message, signature.sig):
            raise IntegrityError(f"a signature of the {what} does not hold", party=org)
        if org in found:
            raise IntegrityError(f"the {what} is signed twice by one founder", party=org)
        found.append(org)
    return tuple(found)


# --- standing -------------------------------------------------------------------------------------

_NEXT: Mapping[Act | None, frozenset[Act]] = {
    None: frozenset({Act.ADMIT}),
    Act.ADMIT: frozenset({Act.ADMIT, Act.SUSPEND, Act.EXIT}),
    Act.RESUME: frozenset({Act.ADMIT, Act.SUSPEND, Act.EXIT}),
    Act.SUSPEND: frozenset({Act.RESUME, Act.EXIT}),
    Act.EXIT: frozenset({Act.ADMIT, Act.EXIT}),  # again: on an earlier day
}


@dataclass(frozen=True, slots=True)
class Link:
    """A decision at its place in a chain; `void` says why it does not count, if it does not."""

    decision: MemberDecision
    digest: str
    envelope: Envelope = field(repr=False)
    signers: tuple[str, ...] = ()
    void: LianmoError | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """An organisation's place in the network at one moment."""

    org: str
    state: Literal["active", "suspended", "exited", "unknown"]
    decision: MemberDecision | None
    assessment: Assessment | None
    why: str = ""  # in one line, where it is not active


class Standing:
    """Who takes part, as far as one home knows; never changes.

    Without a charter (`Standing(trust)`) every organisation whose card is trusted does.
    """

    def __init__(
        self,
        trust: TrustStore,
        charter: Envelope | None = None,
        decisions: Iterable[Envelope] = (),
        bulletins: Iterable[Envelope] = (),
    ) -> None:
        """Raises IntegrityError for a charter that is none. A decision that does not count stays
        as a void link, and its organisation is not active until the founders decide again."""
        self.trust = trust
        self._envelope = charter
        self.charter = None if charter is None else check_charter(charter)
        self.charter_digest = "" if self.charter is None else self.charter.digest()
        self._chains: dict[str, list[Link]] = {}
        self._keys: dict[str, tuple[str, bytes]] = {}
        self._voting: dict[str, list[tuple[datetime, str]]] = {}  # founder: (from, key id)
        self._words: list[tuple[datetime, Bulletin, Mapping[str, Head]]] = []
        if self.charter is None:
            return
        for founder in self.charter.founders:
            self._give_vote(founder.org, founder.admin_spki, utc_time(self.charter.created))
        for envelope in sorted(decisions, key=_order):
            self._enter(envelope)
        for envelope in bulletins:
            word = self.check_bulletin(envelope).object
            heads = {head.org: head for head in word.heads}
            self._words.append((utc_time(word.created), word, heads))

    # --- who takes part ---------------------------------------------------------------------------

    def require_active(self, org: str, now: datetime) -> None:
        """Raises Refused, with party, reason and next step, unless `org` takes part now."""
        if org not in self.trust:
            todo = f"get its card, compare the fingerprint, then `lianmo org trust {org}.json`"
            raise _refused("its card is not trusted here", org, todo)
        if self.charter is None:
            return
        member = self.member(org, now)
        if member.state != "active":
            todo = f"ask the founders of {self.charter.network}; `lianmo network show {org}`"
            raise _refused(member.why, org, todo)
        if member.decision is None or not _is_card(member.decision, self.trust.card(org)):
            todo = "ask a founder which fingerprint is right before you believe either"
            raise _refused("the founders admitted another card than the one here", org, todo)
        if member.assessment is None or now >= utc_time(member.assessment.valid_until):
            until = member.assessment.valid_until if member.assessment else "ever"
            todo = f"it is assessed again, and founders run `lianmo network propose admit {org}`"
            raise _refused(f"its assessment ended on {until[:10]}", org, todo)
        if self.confirmed_by(org, now) < self.words_needed(now):
            todo = "see that founders' nodes run and the coordinator answers: `lianmo network sync`"
            limit = self.charter.stale_s
            what = f"too few founders confirmed its standing in the last {limit} s"
            raise _refused(what, org, todo)

    def member(self, org: str, now: datetime) -> Member:
        """An organisation's place, by the last decision on it that is in effect."""
        chain = self._chains.get(org, [])
        name = "the network" if self.charter is None else self.charter.network
        in_effect = [link for link in chain if utc_time(link.decision.effective) <= now]
        if not in_effect:
            why = f"it was never admitted to {name}"
            if chain:
                why = f"its admission to {name} begins on {chain[0].decision.effective}"
            return Member(org, "unknown", None, None, why)
        last = in_effect[-1]
        admitted = [x.decision for x in in_effect if x.decision.act is Act.ADMIT and not x.void]
        assessment = admitted[-1].assessment if admitted else None
        if last.void is not None:
            why = f"the last decision on it does not count: {last.void.what}"
            return Member(org, "unknown", last.decision, assessment, why)
        if last.decision.act in (Act.SUSPEND, Act.EXIT):
            state: Literal["suspended", "exited"] = (
                "suspended" if last.decision.act is Act.SUSPEND else "exited"
            )
            done = "suspended from" if state == "suspended" else "left"
            why = f"{done} {name} since {last.decision.effective} ({last.decision.reason})"
            if state == "suspended":
                why = f"it is {why}"
            return Member(org, state, last.decision, assessment, why)
        return Member(org, "active", last.decision, assessment)

    def members(self) -> tuple[str, ...]:
        """Every organisation on which there is a decision."""
        return tuple(sorted(self._chains))

    def chain(self, org: str) -> tuple[Link, ...]:
        """All decisions on an organisation, the first first."""
        return tuple(self._chains.get(org, ()))

    def active(self, now: datetime) -> frozenset[str]:
        """Every trusted organisation that takes part now."""
        found = set()
        for org in self.trust:
            try:
                self.require_active(org, now)
            except Refused:
                continue
            found.add(org)
        return frozenset(found)

    # --- founders ---------------------------------------------------------------------------------

    def founders(self, now: datetime) -> tuple[str, ...]:
        """Who decides now: the charter's founders without those suspended or gone."""
        if self.charter is None:
            return ()
        return tuple(f.org for f in self.charter.founders if self._may_vote(f.org, now))

    def words_needed(self, now: datetime) -> int:
        """How many founders must have confirmed: one of so many has signed every decision."""
        if self.charter is None:
            return 0
        return max(1, len(self.founders(now)) - self.charter.quorum + 1)

    def confirmed_by(self, org: str, now: datetime) -> int:
        """How many founders said lately that they know of nothing newer about `org`."""
        if self.charter is None:
            return 0
        oldest = now - timedelta(seconds=self.charter.stale_s)
        founders = self.founders(now)
        return len(
            {
                word.org
                for made, word, heads in self._words
                if word.org in founders
                and oldest <= made <= now + CLOCK_SKEW
                and self._knows(heads.get(org))
            }
        )

    def knows_all(self, word: Bulletin) -> bool:
        """Whether this home has all that a founder knew."""
        return all(self._knows(head) for head in word.heads)

    def heads(self) -> tuple[Head, ...]:
        """What a founder with this home's knowledge says in a bulletin."""
        return tuple(
            Head(
                org=org,
                sequence=len(chain := self._chains.get(org, [])),
                decision=chain[-1].digest if chain else None,
                card=self.trust.card(org).serial if org in self.trust else 0,
            )
            for org in sorted({*self._chains, *self.trust})
        )

    def with_decision(self, envelope: Envelope) -> Standing:
        """The standing with one more decision, in the order in which they were made."""
        known = [link.envelope for org in self._chains for link in self._chains[org]]
        grown = Standing(self.trust, self._envelope)
        grown._words = self._words
        for each in sorted((*known, envelope), key=_order):
            grown._enter(each)
        return grown

    # --- checks of new documents ------------------------------------------------------------------

    def check_decision(self, envelope: Envelope) -> tuple[MemberDecision, tuple[str, ...]]:
        """A decision that may come next, and the founders who signed it so far.

        Raises IntegrityError, Conflict or Refused; that there are too few signatures is for
        `require_quorum`.
        """
        decision = envelope.unverified(MemberDecision)
        charter = self._charter()
        if decision.charter != self.charter_digest:
            raise IntegrityError("the decision is of another charter", party=decision.org)
        signers = _signers(envelope, self._keys, charter.profile, "decision")
        self.require_next(decision)
        made = utc_time(decision.created)
        for signature, org in zip(envelope.signatures, signers, strict=True):
            if not self._may_vote(org, made):
                what = "signed a decision while it was suspended or gone"
                raise _refused(what, org, "the other founders decide")
            self._require_voting_key(org, signature.keyid, made)
        return decision, signers

    def require_quorum(self, decision: MemberDecision, signers: Sequence[str]) -> None:
        """Raises Refused if fewer founders signed than the charter asks for."""
        quorum = self._charter().quorum
        if len(signers) < quorum:
            what = f"{len(signers)} of {quorum} founders signed to {decision.act} it"
            raise _refused(what, decision.org, "more founders run `lianmo network sign`")

    def check_bulletin(self, envelope: Envelope) -> Verified[Bulletin]:
        """A founder's word, signed with its node's witness key; how old it is, is not asked."""
        word = envelope.unverified(Bulletin)
        if word.charter != self.charter_digest:
            raise IntegrityError("the bulletin is of another charter", party=word.org)
        if word.org not in {founder.org for founder in self._charter().founders}:
            raise IntegrityError("a bulletin of somebody who is no founder", party=word.org)
        made = utc_time(word.created)
        return self.trust.verify(envelope, Bulletin, Usage.WITNESS, made, org=word.org)

    def place(self, org: str) -> tuple[int, str | None]:
        """Sequence and `prev` of the next decision on an organisation."""
        chain = self._chains.get(org, [])
        return len(chain) + 1, chain[-1].digest if chain else None

    # --- inside -----------------------------------------------------------------------------------

    def _charter(self) -> Charter:
        if self.charter is None:
            todo = "get the charter from a founder, then `lianmo network join FILE`"
            raise NotFound("this home has joined no network", todo=todo)
        return self.charter

    def _knows(self, head: Head | None) -> bool:
        """Whether this home has all that a founder knew about one organisation."""
        if head is None:
            return True
        chain, org = self._chains.get(head.org, []), head.org
        if head.sequence > len(chain):
            return False
        if head.sequence and chain[head.sequence - 1].digest != head.decision:
            return False
        return head.card <= (self.trust.card(org).serial if org in self.trust else 0)

    def _enter(self, envelope: Envelope) -> None:
        """Put a decision at its place; one that does not count stays there as void."""
        decision = envelope.unverified(MemberDecision)
        digest = hashlib.sha256(envelope.payload).hexdigest()
        signers: tuple[str, ...] = ()
        void: LianmoError | None = None
        try:
            decision, signers = self.check_decision(envelope)
            self.require_quorum(decision, signers)
        except LianmoError as error:
            void = error
        self._chains.setdefault(decision.org, []).append(
            Link(decision, digest, envelope, signers, void)
        )
        if void is None and decision.act is Act.ADMIT and decision.org in self._voting:
            self._give_vote(decision.org, decision.admin_spki, utc_time(decision.effective))

    def _give_vote(self, org: str, spki_text: str, since: datetime) -> None:
        spki = base64.b64decode(spki_text)
        self._keys[key_id(spki)] = org, spki
        self._voting.setdefault(org, []).append((since, key_id(spki)))
        self._voting[org].sort()

    def _require_voting_key(self, org: str, key: str, made: datetime) -> None:
        """The key that the founder decided with at that time, and that its card has not ended."""
        turns = [item for since, item in self._voting[org] if since <= made] or [
            self._voting[org][0][1]
        ]
        if turns[-1] != key:
            raise _refused("signed with an admin key that was replaced", org, "sign again")
        if org not in self.trust:
            return
        for record in self.trust.card(org).keys:
            if record.key_id == key and (
                (record.since is not None and made >= utc_time(record.since))
                or made >= utc_time(record.not_after)
            ):
                raise _refused("signed with an admin key that had ended", org, "sign again")

    def _may_vote(self, org: str, moment: datetime) -> bool:
        """A founder whose assessment ended may: or nobody could assess anybody any more."""
        last = [
            link.decision.act
            for link in self._chains.get(org, [])
            if link.void is None and utc_time(link.decision.effective) <= moment
        ][-1:]
        return org in self._voting and last not in ([Act.SUSPEND], [Act.EXIT])

    def require_next(self, decision: MemberDecision) -> None:
        """Raises Conflict or Refused unless it may follow the last decision on its organisation."""
        chain, org = self._chains.get(decision.org, []), decision.org
        sequence, prev = self.place(org)
        if decision.sequence < sequence:
            raise Conflict(f"decision {decision.sequence} on it is another one here", party=org)
        if decision.sequence > sequence:
            todo = "get all documents: `lianmo network sync`"
            raise Conflict(f"decision {sequence} on it is not here yet", party=org, todo=todo)
        if decision.prev != prev:
            raise Conflict("the decision follows another one than the last here", party=org)
        if chain and decision.created < chain[-1].decision.created:
            raise IntegrityError("the decision is dated before the last one", party=org)
        counted = [link.decision for link in chain if link.void is None]
        before = counted[-1] if counted else None
        if decision.act not in _NEXT[before.act if before else None]:
            state = "was never admitted" if before is None else f"the last word was {before.act}"
            raise Conflict(f"cannot {decision.act} it: {state}", party=org)
        if before is None:
            return
        if (decision.uscc, decision.org_kind) != (before.uscc, before.org_kind):
            raise Conflict("the decision names another legal person", party=org)
        if decision.act is not Act.ADMIT and decision.admin_spki != before.admin_spki:
            raise Conflict("the decision names another card than the admission", party=org)
        if decision.act is Act.SUSPEND and org in self._voting:
            left = set(self.founders(utc_time(decision.effective))) - {org}
            if len(left) < self._charter().quorum:
                todo = "the others found a network of their own, or each distrusts its card"
                what = "without it too few founders would be left to decide anything"
                raise _refused(what, org, todo)


def _order(envelope: Envelope) -> tuple[str, str, int]:
    decision = envelope.unverified(MemberDecision)
    return decision.created, decision.org, decision.sequence


def _is_card(decision: MemberDecision, card: Card) -> bool:
    return (
        card.admin.spki == decision.admin_spki
        and card.uscc == decision.uscc
        and card.org_kind is decision.org_kind
    )


def _refused(what: str, party: str, todo: str) -> Refused:
    return Refused(what, code=RefusalCode.UNFULFILLABLE, party=party, todo=todo)


# --- making ---------------------------------------------------------------------------------------


def make_decision(
    standing: Standing,
    act: Act,
    card: Card,
    now: datetime,
    *,
    reason: str = "",
    assessment: Assessment | None = None,
    effective: datetime | None = None,
) -> MemberDecision:
    """The next decision on the organisation of a card; raises Conflict or Refused if it may not
    come next."""
    sequence, prev = standing.place(card.org)
    decision = MemberDecision(
        charter=standing.charter_digest,
        act=act,
        org=card.org,
        org_kind=card.org_kind,
        uscc=card.uscc,
        admin_spki=card.admin.spki,
        assessment=assessment,
        sequence=sequence,
        prev=prev,
        created=utc_text(now),
        effective=utc_text(effective or now),
        reason=reason,
    )
    standing.require_next(decision)
    return decision


def make_bulletin(standing: Standing, org: str, now: datetime) -> Bulletin:
    """What a founder's node signs every few seconds."""
    return Bulletin(
        charter=standing.charter_digest, org=org, created=utc_text(now), heads=standing.heads()
    )


def confirmed_admin(standing: Standing, org: str, now: datetime) -> str | None:
    """The admin key (id) that the founders admitted an organisation with."""
    decision = standing.member(org, now).decision if standing.charter else None
    if decision is None:
        return None
    return key_id(base64.b64decode(decision.admin_spki))
