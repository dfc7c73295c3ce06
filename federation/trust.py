"""Whose signature this is: the organisations that this node trusts, with their keys.

Nothing that a coordinator says enters here: cards come from officers who compared fingerprints,
and newer cards of the same organisation only under the same admin key, or one that replaced it
rightly. A signature counts if its key stands in a card here, belongs to the expected organisation,
has exactly the expected usage, was valid when the object was made and is valid now, and is neither
on hold nor revoked.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from federation import certificates
from federation.envelope import Envelope, Signature
from federation.errors import Conflict, IntegrityError, NotFound, Refused
from federation.objects import (
    Card,
    KeyRecord,
    KeyStatus,
    OrgKind,
    SignedObject,
    Usage,
    utc_time,
)
from federation.possession import is_proven
from federation.profile import CryptoProfile, profile

T = TypeVar("T", bound=SignedObject)

_PROPOSERS = frozenset({OrgKind.BANK, OrgKind.GUARANTOR})

CLOCK_SKEW = timedelta(seconds=120)  # that we forgive between two organisations' clocks


@dataclass(frozen=True, slots=True)
class Verified(Generic[T]):
    """An object and who signed it."""

    object: T
    org: str
    key_id: str  # of the first signature
    digest: str
    key_ids: tuple[str, ...]
    holders: tuple[str, ...]  # the persons or services, as the organisation's card names them


@dataclass(frozen=True, slots=True)
class _Known:
    """A card that verified, with what is looked up in it."""

    envelope: Envelope
    card: Card
    certificate: bytes = field(repr=False)  # DER


class TrustStore:
    """The cards that this node believes; never changes, `with_card` makes another one."""

    def __init__(self, cards: Iterable[Envelope] = ()) -> None:
        self._known: dict[str, _Known] = {}
        self._keys: dict[str, tuple[Card, KeyRecord]] = {}
        for envelope in cards:
            self._admit(envelope)

    # --- cards ------------------------------------------------------------------------------------

    def with_card(
        self, envelope: Envelope, *, compared: str | None = None, decided: str | None = None
    ) -> TrustStore:
        """The store with one more card, or with a newer one of an organisation it knows.

        compared: id of a new admin key whose fingerprint a person compared. decided: of one that
        the founders decided on; then the old admin key must have signed the card as well.
        Raises IntegrityError if the card does not verify, Conflict if it contradicts another.
        Whether a first card is really that organisation's is for the caller to ask a person.
        """
        grown = TrustStore()
        grown._known, grown._keys = dict(self._known), dict(self._keys)
        grown._admit(envelope, compared, decided)
        return grown

    def __contains__(self, org: object) -> bool:
        return org in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def card(self, org: str) -> Card:
        """The card of an organisation; raises NotFound if this node does not trust one."""
        return self._of(org).card

    def envelope(self, org: str) -> Envelope:
        """The same as it was signed."""
        return self._of(org).envelope

    # --- what others need of a card ---------------------------------------------------------------

    def tls_ca(self, org: str) -> str:
        """The organisation's authority for TLS, PEM."""
        return self.card(org).ca_certificate

    def org_of_tls_certificate(self, der: bytes) -> str | None:
        """Whose connection that is: the very certificate of a card, whatever name is in it."""
        for org, known in self._known.items():
            if known.certificate == der:
                return org
        return None

    def mask_key(self, org: str) -> bytes:
        """The organisation's X25519 key for pairwise masks, SPKI DER."""
        return base64.b64decode(self._active(org, Usage.MASK).spki)

    def is_signed_by(
        self, org: str, usage: Usage, message: bytes, signature: bytes, now: datetime
    ) -> bool:
        """Whether a key of that use, active and in force now, signed exactly these bytes.

        For protocols that frame their own messages; objects go through `verify`.
        """
        if org not in self:
            return False
        card = self.card(org)
        suite = profile(card.profile)
        return any(
            suite.is_signature(key.alg, base64.b64decode(key.spki), message, signature)
            for key in card.of_usage(usage)
            if _is_in_force(key, now)
        )

    def node_key(self, org: str) -> str:
        """The organisation's key for Flower, PEM."""
        self._active(org, Usage.NODE)
        if (key := self.card(org).node_key) is None:
            raise NotFound("its card names no key for a node", party=org)
        return key

    # --- signatures -------------------------------------------------------------------------------

    def verify(
        self,
        envelope: Envelope,
        kind: type[T],
        usage: Usage,
        now: datetime,
        org: str | None = None,
    ) -> Verified[T]:
        """The object, if all its signatures are good ones of one organisation for that use.

        An object that names an `org` must be signed by that one; `org` asks for one besides.
        Raises IntegrityError, or Refused where a key may not be used (now, or for this).
        """
        if now.tzinfo is None:
            raise ValueError("a time without a zone")
        found = envelope.unverified(kind)
        signers = [self._signer(signature) for signature in envelope.signatures]
        if len({record.key_id for _, record in signers}) != len(signers):
            raise IntegrityError(f"the {kind.kind} has two signatures of one key")
        expected = {card.org for card, _ in signers} | {getattr(found, "org", None), org} - {None}
        if len(expected) != 1:
            names = ", ".join(sorted(filter(None, expected)))
            raise IntegrityError(f"the {kind.kind} is signed for another organisation ({names})")
        made = _made(found)
        if made > now + CLOCK_SKEW:
            todo = "compare both clocks with `lianmo doctor`"
            raise IntegrityError(f"the {kind.kind} is from the future", todo=todo)
        for (card, record), signature in zip(signers, envelope.signatures, strict=True):
            _require_usage(card, record, usage)
            # before any date: of an altered object nothing is believed
            _require_signature(profile(card.profile), record, signature, envelope, card.org)
            _require_in_force(card, record, made, now)
        first = signers[0]
        return Verified(
            object=found,
            org=first[0].org,
            key_id=first[1].key_id,
            digest=hashlib.sha256(envelope.payload).hexdigest(),
            key_ids=tuple(record.key_id for _, record in signers),
            holders=tuple(dict.fromkeys(record.holder for _, record in signers)),
        )

    # --- inside -----------------------------------------------------------------------------------

    def _of(self, org: str) -> _Known:
        if org not in self._known:
            todo = f"get its card, compare the fingerprint, then `lianmo org trust {org}.json`"
            raise NotFound("not in this node's trust store", party=org, todo=todo)
        return self._known[org]

    def _active(self, org: str, usage: Usage) -> KeyRecord:
        keys = self.card(org).of_usage(usage)
        if not keys:
            todo = f"ask {org} for a newer card"
            raise Refused(f"its card has no active {usage} key", party=org, todo=todo)
        return keys[-1]

    def _signer(self, signature: Signature) -> tuple[Card, KeyRecord]:
        if signature.keyid not in self._keys:
            todo = "trust the card of its organisation first: `lianmo org trust`"
            raise IntegrityError("signed with a key that no trusted card has", todo=todo)
        return self._keys[signature.keyid]

    def _admit(
        self, envelope: Envelope, compared: str | None = None, decided: str | None = None
    ) -> None:
        card, leaf = verify_card(envelope)
        if old := self._known.get(card.org):
            if old.card == card:
                return
            if card.admin.key_id != compared:
                signed = {signature.keyid for signature in envelope.signatures}
                _require_admin(old.card, card, decided, signed)
            _require_successor(old.card, card)
        for key in card.keys:
            owner = self._keys[key.key_id][0].org if key.key_id in self._keys else card.org
            if owner != card.org:
                raise Conflict(f"its card has a key that belongs to {owner}", party=card.org)
        self._require_one_name(card)
        self._known[card.org] = _Known(envelope, card, leaf)
        self._keys |= {key.key_id: (card, key) for key in card.keys}

    def _require_one_name(self, card: Card) -> None:
        """One legal person proposes under one name: a second one would have an exposure budget of
        its own on every dataset."""
        for known in self._known.values():
            kinds = {known.card.org_kind, card.org_kind}
            if known.card.uscc == card.uscc and known.card.org != card.org and kinds <= _PROPOSERS:
                what = f"its card names the legal person that {known.card.org} is"
                raise Conflict(what, party=card.org, todo="one of the two names has to go")


def verify_card(envelope: Envelope) -> tuple[Card, bytes]:
    """A card that proves itself, and its TLS certificate (DER); says nothing on who made it.

    Raises IntegrityError; Refused for a profile of cryptography that this node does not have.
    """
    card = envelope.unverified(Card)
    suite = profile(card.profile)
    for key in card.keys:
        _require_key(suite, key, card.org)
    _require_certificates(card)
    made = utc_time(card.created)
    by_id = {key.key_id: key for key in card.keys}
    signed: set[str] = set()
    for signature in envelope.signatures:
        record = by_id.get(signature.keyid)
        if record is None or record.key_id in signed:
            raise IntegrityError("the card has a signature that is not its own", party=card.org)
        # The admin key that this very card replaces vouches for the one in its place.
        is_leaving = record.usage is Usage.ADMIN and record.since == card.created
        is_good = record.status is KeyStatus.ACTIVE or is_leaving
        if not is_good or not _is_in_force(record, made):
            raise IntegrityError("the card is signed with a key not in force", party=card.org)
        _require_signature(suite, record, signature, envelope, card.org)
        signed.add(record.key_id)
    required = {
        key.key_id
        for key in card.keys
        if key.status is KeyStatus.ACTIVE
        and key.alg == suite.algorithm(Usage.ADMIN)
        and (key.usage is Usage.ADMIN or not is_proven(suite, card.org, key))
    }
    if not required <= signed:
        what = "the card is not signed by its admin key and each of its signing keys"
        raise IntegrityError(what, party=card.org)
    return card, certificates.der(card.tls_certificate)


def _require_key(suite: CryptoProfile, key: KeyRecord, org: str) -> None:
    if key.alg != suite.algorithm(key.usage):
        what = f"this node has no {key.alg} profile for {key.usage} keys"
        raise Refused(what, party=org, todo=f"{suite.name} uses {suite.algorithm(key.usage)}")
    if not suite.is_key(key.alg, base64.b64decode(key.spki)):
        raise IntegrityError(f"the {key.usage} key is no safe {key.alg} key", party=org)


def _require_certificates(card: Card) -> None:
    try:
        spki = certificates.leaf_spki(card.org, card.ca_certificate, card.tls_certificate)
    except ValueError as error:
        raise IntegrityError(str(error), party=card.org) from None
    if base64.b64encode(spki).decode() not in {key.spki for key in card.of_usage(Usage.TLS)}:
        what = "the TLS certificate is not that of an active tls key"
        raise IntegrityError(what, party=card.org)
    if card.node_key is not None:
        lines = card.node_key.splitlines()
        inside = "".join(lines[1:-1])
        if lines[0] != "-----BEGIN PUBLIC KEY-----" or inside not in {
            key.spki for key in card.keys if key.usage is Usage.NODE
        }:
            raise IntegrityError("the node key is not the card's node key", party=card.org)


def _require_admin(old: Card, new: Card, decided: str | None, signed: set[str]) -> None:
    """The same admin key, or one that it signed for and that the founders decided on."""
    if new.admin.key_id == old.admin.key_id:
        return
    if new.admin.key_id == decided and old.admin.key_id in signed:
        return
    what = "the card has another admin key than the one this node trusts"
    todo = "somebody may pretend to be them: compare the new fingerprint over another channel"
    raise Conflict(what, party=new.org, todo=todo)


def _require_successor(old: Card, new: Card) -> None:
    """A newer card continues the older one: nothing is forgotten and nothing revived."""
    if new.serial <= old.serial:
        raise Conflict("this node has a card as new or newer", party=new.org)
    if new.uscc != old.uscc or new.org_kind != old.org_kind:
        raise Conflict("the card names another legal person", party=new.org)
    fresh: Mapping[str, KeyRecord] = {key.key_id: key for key in new.keys}
    for key in old.keys:
        # old signatures must stay attributable, so keys end by revocation, not by omission
        kept = fresh.get(key.key_id)
        fixed = {"usage", "alg", "spki", "not_before", "not_after"}
        if kept is None or kept.model_dump(include=fixed) != key.model_dump(include=fixed):
            raise Conflict("the newer card leaves out or changes a key", party=new.org)
        if kept.status not in _AFTER[key.status]:
            raise Conflict(f"the newer card revives a {key.status} key", party=new.org)


_AFTER = {
    KeyStatus.ACTIVE: frozenset(KeyStatus),
    KeyStatus.HOLD: frozenset(KeyStatus),
    KeyStatus.RETIRED: frozenset({KeyStatus.RETIRED, KeyStatus.REVOKED}),
    KeyStatus.REVOKED: frozenset({KeyStatus.REVOKED}),
}


def _require_usage(card: Card, record: KeyRecord, usage: Usage) -> None:
    if record.usage is not usage:
        what = f"signed with a {record.usage} key where a {usage} key is needed"
        raise IntegrityError(what, party=card.org)


def _require_in_force(card: Card, record: KeyRecord, made: datetime, now: datetime) -> None:
    usage = record.usage
    # of a retired key: when it signed; of the others its word on that counts for nothing
    moment = made if record.status is KeyStatus.RETIRED else now
    if record.since is not None and moment >= utc_time(record.since):
        if record.status is KeyStatus.RETIRED:
            raise Refused(f"the {usage} key of the signature was replaced", party=card.org)
        state = "on hold" if record.status is KeyStatus.HOLD else "revoked"
        raise Refused(f"the {usage} key of the signature is {state}", party=card.org)
    # made: one clock, the signer's; now: another clock than that of `not_before`
    if not _is_in_force(record, made) or not (
        # nothing is taken from a date of others: there is no day before the first of the year 1
        utc_time(record.not_before) <= now + CLOCK_SKEW and now < utc_time(record.not_after)
    ):
        todo = f"ask {card.org} for a newer card"
        raise Refused(
            f"the {usage} key of the signature is not in force", party=card.org, todo=todo
        )


def _is_in_force(record: KeyRecord, moment: datetime) -> bool:
    return utc_time(record.not_before) <= moment < utc_time(record.not_after)


def _require_signature(
    suite: CryptoProfile, record: KeyRecord, signature: Signature, envelope: Envelope, org: str
) -> None:
    if signature.alg != record.alg:
        what = f"the key signs with {record.alg}; this node has no {signature.alg} profile for it"
        raise IntegrityError(what, party=org)
    spki = base64.b64decode(record.spki)
    if not suite.is_signature(record.alg, spki, envelope.pae(), signature.sig):
        raise IntegrityError("the signature does not hold", party=org)


def _made(found: SignedObject) -> datetime:
    """When the signer says it signed: `created`, or `ended` of a record of what ended."""
    for name in ("created", "ended"):
        if isinstance(text := getattr(found, name, None), str):
            return utc_time(text)
    raise IntegrityError(f"a {found.kind} without a time proves nothing")
