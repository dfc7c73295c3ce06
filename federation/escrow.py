"""The bank's seed in the hands of auditors: a threshold of them opens its queries, and nobody else
(PROTOCOLS.md section 6, CRYPTO_REVIEW.md R6).

before the run  The bank commits to its seed, shares it (Shamir) among the manifest's auditors, each
                share encrypted to that auditor's card (HPKE, RFC 9180) for this very manifest,
                attempt and place, and adds the list of its customers, encrypted under the seed.
                It signs this escrow; every department checks and keeps it, or answers nothing.
afterwards      `threshold` auditors hand their shares on; whoever combines them has the seed, holds
                it against the commitment, reads the customers and derives every s and e.
Departments see ciphertexts of fixed sizes: the list is one bit a row of the cover.

Checked by      department: signature, manifest, attempt, commitment, auditors and their keys, sizes
whom            one auditor: that its own share decrypts, for this job alone
                a threshold of them: that the seed is the committed one, then every other share
Not covered     A bank that deals wrong shares is found when they are combined, not before: a check
                at the start would need auditors online, or shares that prove themselves in public
                (docs/adr/0010). A share that does not fit is a finding by itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations
from typing import Annotated, ClassVar, Protocol, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from pydantic import Field, model_validator

from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, NotFound, Refused
from federation.identity import PrivateKey
from federation.objects import (
    Base64,
    Count,
    Digest,
    JobManifest,
    KeyId,
    OrgId,
    Part,
    SignedObject,
    Time,
    Usage,
    utc_text,
)
from federation.trust import TrustStore
from protocols import labels, shamir
from protocols.errors import ProtocolError
from protocols.streams import Randomness, digest, encode

# RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_TAG_BYTES = 16
_ONCE = bytes(12)  # AES-GCM's nonce under a key that encrypts one list in all its life

Bools = NDArray[np.bool_]


class SealedShare(Part):
    """One auditor's share, which only its ENCRYPT key opens."""

    org: OrgId
    index: Annotated[int, Field(ge=1, le=255)]
    key_id: KeyId
    sealed: Base64


class Escrow(SignedObject):
    """A bank's word before the first token: its seed is with these auditors. Signed with RUN."""

    kind: ClassVar[str] = "escrow"

    manifest: Digest
    attempt: Count
    org: OrgId  # the bank
    threshold: Annotated[int, Field(ge=2, le=255)]
    seed: Digest  # the commitment that all parties got
    customers: Digest  # of the encrypted list
    shares: Annotated[tuple[SealedShare, ...], Field(min_length=2, max_length=64)]
    created: Time

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({item.org for item in self.shares}) != len(self.shares):
            raise ValueError("one share an auditor")
        if [item.index for item in self.shares] != list(range(1, len(self.shares) + 1)):
            raise ValueError("shares are numbered from 1")
        if self.threshold > len(self.shares):
            raise ValueError("the threshold is more than there are auditors")
        return self


class HandedShare(SignedObject):
    """An auditor's share, handed on to the one who replays. Signed with the auditor's RUN key."""

    kind: ClassVar[str] = "escrow-share"

    escrow: Digest
    org: OrgId
    index: Annotated[int, Field(ge=1, le=255)]
    to: OrgId
    sealed: Base64  # to the receiver's ENCRYPT key
    nonce: Digest  # of this auditor, drawn now: part of the coins that choose what is opened
    created: Time


@dataclass(frozen=True, slots=True)
class SealedSeed:
    """Bank to every department, with the commitments: a signed escrow and the encrypted list."""

    escrow: bytes
    customers: bytes = field(repr=False)


class Desk(Protocol):
    """Where a party program deposits or checks an escrow."""

    def deposit(self, randomness: Randomness, customers: Bools) -> SealedSeed:
        """Bank: seal its seed to the auditors of the manifest."""

    def accept(self, given: SealedSeed, seed: bytes) -> None:
        """Department: check and keep it; raises if it is not what the manifest asks for."""


# --- before the run -------------------------------------------------------------------------------


def seed_commitment(randomness: Randomness, org: str) -> bytes:
    """What a party says of its seed before the run; the salt follows from the seed."""
    salt = randomness.key(labels.SEED_COMMITMENT)
    return digest(labels.SEED_COMMITMENT, org, randomness.master, salt)


@dataclass(frozen=True, slots=True)
class CardDesk:
    """An escrow by the keys in organisations' cards."""

    manifest: JobManifest
    attempt: int
    trust: TrustStore
    now: Callable[[], datetime]
    key: PrivateKey | None = field(default=None, repr=False)  # the bank's RUN key
    keep: Callable[[SealedSeed], None] = lambda given: None  # durable before it returns

    def deposit(self, randomness: Randomness, customers: Bools) -> SealedSeed:
        """Bank: seal its seed to the auditors of the manifest; raises if one has no key."""
        if self.key is None:
            raise RuntimeError("a bank without a key to sign its escrow")
        rule, bank = self.manifest.audit, self.manifest.bank
        stream = randomness.stream(labels.ESCROW_SHARES)
        places = range(1, len(rule.auditors) + 1)
        parts = shamir.split(randomness.master, rule.threshold, places, stream)
        sealed = []
        for index, auditor in enumerate(rule.auditors, start=1):
            spki, key_id = encrypt_key(self.trust, auditor)
            info = self._info(auditor, index)
            text = base64.b64encode(seal_to(spki, parts[index], info)).decode()
            sealed.append(SealedShare(org=auditor, index=index, key_id=key_id, sealed=text))
        listed = _list_cipher(randomness).encrypt(_ONCE, np.packbits(customers).tobytes(), None)
        escrow = Escrow(
            manifest=self.manifest.digest(),
            attempt=self.attempt,
            org=bank,
            threshold=rule.threshold,
            seed=seed_commitment(randomness, bank).hex(),
            customers=hashlib.sha256(listed).hexdigest(),
            shares=tuple(sealed),
            created=utc_text(self.now()),
        )
        given = SealedSeed(sign(escrow, self.key).to_json(), listed)
        self.keep(given)
        return given

    def accept(self, given: SealedSeed, seed: bytes) -> None:
        """Department: raises Refused or IntegrityError for an escrow that would open nothing."""
        escrow = read(given, self.manifest, self.attempt, self.trust, self.now())
        if not hmac.compare_digest(bytes.fromhex(escrow.seed), seed):
            raise IntegrityError("the escrow is of another seed", party=escrow.org)
        for share in escrow.shares:
            if share.key_id != encrypt_key(self.trust, share.org)[1]:
                todo = f"compare the cards of {share.org}, then start the job again"
                what = f"the escrow is sealed to a key of {share.org} that is not in force here"
                raise Refused(what, party=escrow.org, todo=todo)
        self.keep(given)

    def _info(self, auditor: str, index: int) -> bytes:
        return _share_info(self.manifest.digest(), self.attempt, auditor, index)


def read(
    given: SealedSeed, manifest: JobManifest, attempt: int, trust: TrustStore, now: datetime
) -> Escrow:
    """A bank's escrow, if it is signed and of this manifest and attempt; raises IntegrityError."""
    envelope = Envelope.from_json(given.escrow)
    escrow = trust.verify(envelope, Escrow, Usage.RUN, now, manifest.bank).object
    if (escrow.manifest, escrow.attempt) != (manifest.digest(), attempt):
        raise IntegrityError("the escrow is of another job or attempt", party=escrow.org)
    rule = manifest.audit
    if (escrow.threshold, tuple(item.org for item in escrow.shares)) != (
        rule.threshold,
        rule.auditors,
    ):
        raise IntegrityError("the escrow is not with the manifest's auditors", party=escrow.org)
    wanted = _SUITE_OVERHEAD + shamir.SHARE_BYTES
    if any(len(base64.b64decode(item.sealed)) != wanted for item in escrow.shares):
        raise IntegrityError("a share of the escrow has another size", party=escrow.org)
    size = -(-manifest.cover.rows // 8) + _TAG_BYTES
    if len(given.customers) != size or not hmac.compare_digest(
        hashlib.sha256(given.customers).hexdigest(), escrow.customers
    ):
        raise IntegrityError("the escrow has another list of customers", party=escrow.org)
    return escrow


# --- afterwards -----------------------------------------------------------------------------------


def own_share(escrow: Escrow, me: str, key: PrivateKey) -> tuple[int, bytes]:
    """Auditor: (index, share); raises IntegrityError if it does not open for this very job."""
    found = [item for item in escrow.shares if item.org == me]
    if not found:
        raise NotFound("the escrow has no share of this organisation", party=me)
    (item,) = found
    if item.key_id != key.key_id:
        todo = "restore the key that the escrow names from its backup"
        raise NotFound("the share is sealed to another key of this organisation", todo=todo)
    info = _share_info(escrow.manifest, escrow.attempt, me, item.index)
    try:
        share = open_sealed(key, base64.b64decode(item.sealed), info)
        shamir.require_share(share)
    except (IntegrityError, ProtocolError):
        what, todo = f"the share that it sealed to {me} is none of this job", "tell the others"
        raise IntegrityError(what, party=escrow.org, todo=todo) from None
    return item.index, share


def hand_on(
    escrow: Escrow, me: str, key: PrivateKey, to: str, trust: TrustStore, now: datetime
) -> HandedShare:
    """Auditor: the own share, sealed to the auditor who replays; to be signed."""
    if to not in {item.org for item in escrow.shares}:
        raise Refused(f"{to} is no auditor of this job", party=me)
    index, share = own_share(escrow, me, key)
    sealed = seal_to(encrypt_key(trust, to)[0], share, _handed_info(escrow.digest(), me, to))
    return HandedShare(
        escrow=escrow.digest(),
        org=me,
        index=index,
        to=to,
        sealed=base64.b64encode(sealed).decode(),
        nonce=secrets.token_hex(32),
        created=utc_text(now),
    )


def take(
    escrow: Escrow, given: Envelope, me: str, key: PrivateKey, trust: TrustStore, now: datetime
) -> tuple[HandedShare, bytes]:
    """The auditor who replays: a share that was handed on; raises IntegrityError, naming whose."""
    handed = trust.verify(given, HandedShare, Usage.RUN, now).object
    if handed.escrow != escrow.digest():
        raise IntegrityError("the share is of another job or attempt", party=handed.org)
    places = {item.org: item.index for item in escrow.shares}
    if places.get(handed.org) != handed.index:
        raise IntegrityError("the share has another auditor's place", party=handed.org)
    if handed.to != me:
        raise IntegrityError(f"the share is sealed to {handed.to}", party=handed.org)
    info = _handed_info(handed.escrow, handed.org, me)
    try:
        share = open_sealed(key, base64.b64decode(handed.sealed), info)
        shamir.require_share(share)
    except (IntegrityError, ProtocolError):
        raise IntegrityError("the share does not open", party=handed.org) from None
    return handed, share


def recover(escrow: Escrow, shares: Mapping[str, bytes]) -> Randomness:
    """The bank's draws, from the shares by auditor; raises IntegrityError, naming who is wrong.

    With more than `threshold` shares any of them may be wrong: those that agree with the seed's
    commitment decide, and the rest is named.
    """
    if len(shares) < escrow.threshold:
        what = f"{len(shares)} shares, {escrow.threshold} are needed"
        raise NotFound(what, party=escrow.org, todo="ask another auditor for `lianmo audit share`")
    places = {item.org: item.index for item in escrow.shares}
    for some in combinations(sorted(shares), escrow.threshold):
        try:
            master = shamir.combine({places[org]: shares[org] for org in some})
        except ProtocolError:
            continue
        found = Randomness(master, bytes.fromhex(escrow.manifest), escrow.attempt)
        if seed_commitment(found, escrow.org).hex() == escrow.seed:
            _require_dealt(escrow, found, shares)
            return found
    who = ", ".join(sorted(shares))
    what = f"the shares of {who} do not give the seed that it committed to"
    todo = "ask the other auditors: shares that agree show who gave a wrong one"
    raise IntegrityError(what, party=escrow.org, todo=todo)


def _require_dealt(escrow: Escrow, found: Randomness, shares: Mapping[str, bytes]) -> None:
    """Every share is the one that follows from the seed: sharing has no other randomness."""
    stream = found.stream(labels.ESCROW_SHARES)
    places = [item.index for item in escrow.shares]
    dealt = shamir.split(found.master, escrow.threshold, places, stream)
    for item in escrow.shares:
        if item.org in shares and not hmac.compare_digest(shares[item.org], dealt[item.index]):
            what = f"{item.org} handed on another share than follows from the seed"
            raise IntegrityError(what, party=f"{item.org} or {escrow.org}")


def customers(given: SealedSeed, found: Randomness, rows: int) -> Bools:
    """Which rows of the cover are the bank's customers, as it said before the run."""
    try:
        packed = _list_cipher(found).decrypt(_ONCE, given.customers, None)
    except InvalidTag:
        raise IntegrityError("the list of customers does not open with its seed") from None
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    if bits[rows:].any():
        raise IntegrityError("the list of customers goes beyond the cover")
    return bits[:rows].astype(bool)


# --- to one organisation --------------------------------------------------------------------------


def encrypt_key(trust: TrustStore, org: str) -> tuple[bytes, str]:
    """(public key, key id) of the organisation's ENCRYPT key; raises Refused if it has none."""
    records = trust.card(org).of_usage(Usage.ENCRYPT)
    if not records:
        todo = f"ask {org} for a newer card"
        raise Refused("its card has no active encrypt key", party=org, todo=todo)
    return base64.b64decode(records[-1].spki), records[-1].key_id


def seal_to(spki: bytes, message: bytes, info: bytes) -> bytes:
    """The message, for the holder of that X25519 key alone."""
    return _SUITE.encrypt(message, X25519PublicKey.from_public_bytes(spki[-32:]), info)


def open_sealed(key: PrivateKey, sealed: bytes, info: bytes) -> bytes:
    """The message; raises IntegrityError if it is not for this key and purpose."""
    if not isinstance(key.secret, X25519PrivateKey):
        raise TypeError(f"a {key.usage} key opens nothing")
    try:
        return _SUITE.decrypt(sealed, key.secret, info)
    except (InvalidTag, ValueError):
        raise IntegrityError("it is sealed to another key, or for another purpose") from None


_SUITE_OVERHEAD = 32 + _TAG_BYTES  # HPKE's encapsulated key, and the tag


def _share_info(manifest: str, attempt: int, auditor: str, index: int) -> bytes:
    return encode(labels.ESCROW_SHARE, bytes.fromhex(manifest), attempt, auditor, index)


def _handed_info(escrow: str, sender: str, to: str) -> bytes:
    return encode(labels.ESCROW_HANDED, bytes.fromhex(escrow), sender, to)


def _list_cipher(randomness: Randomness) -> AESGCM:
    return AESGCM(randomness.key(labels.ESCROW_CUSTOMERS))
