"""An organisation's keys and its card: made here, certified by its own admin key.

A card is self-certified: its first copy is accepted by whoever compared the fingerprint of the
admin key out of band, every later one must be signed by that same key. Each active signing key in
a card signs the card too, which proves that the organisation has the private half. Keys that do
not sign are proven where they are used: `tls` and `node` at each connection, `mask` and `encrypt`
because without them nothing opens; the trust store refuses a key that another organisation has.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from federation import certificates
from federation.errors import IntegrityError
from federation.objects import Card, KeyRecord, OrgKind, Usage, utc_text

Secret = Ed25519PrivateKey | X25519PrivateKey | ec.EllipticCurvePrivateKey

KEY_LIFE = timedelta(days=365)

_EVERYBODY = (
    Usage.ADMIN,
    Usage.APPROVE,
    Usage.RUN,
    Usage.LOG,
    Usage.WITNESS,
    Usage.ENCRYPT,
    Usage.NODE,
    Usage.TLS,
)
# What an organisation never does it has no key for.
USAGES: Mapping[OrgKind, tuple[Usage, ...]] = {
    OrgKind.DEPARTMENT: (*_EVERYBODY, Usage.ANSWER, Usage.MASK, Usage.CERTIFY),
    OrgKind.UTILITY: (*_EVERYBODY, Usage.ANSWER, Usage.MASK),
    OrgKind.GUARANTOR: (*_EVERYBODY, Usage.PROPOSE, Usage.REQUEST, Usage.ANSWER, Usage.MASK),
    OrgKind.BANK: (*_EVERYBODY, Usage.PROPOSE, Usage.REQUEST, Usage.MASK),
    OrgKind.PLATFORM: (*_EVERYBODY, Usage.GRANT, Usage.CERTIFY, Usage.MASK),
    # RUN: what it replayed, and the shares of escrows that it hands on
    OrgKind.AUDITOR: (
        Usage.ADMIN,
        Usage.RUN,
        Usage.LOG,
        Usage.WITNESS,
        Usage.ENCRYPT,
        Usage.TLS,
    ),
    OrgKind.ENTERPRISE: (Usage.ADMIN, Usage.GRANT, Usage.ENCRYPT, Usage.TLS),
}


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key with its one usage."""

    usage: Usage
    secret: Secret = field(repr=False)

    @classmethod
    def generate(cls, usage: Usage) -> PrivateKey:
        """A new key of the algorithm that the usage has in the profile `intl`."""
        if usage in (Usage.MASK, Usage.ENCRYPT):
            return cls(usage, X25519PrivateKey.generate())
        if usage is Usage.NODE:
            return cls(usage, ec.generate_private_key(ec.SECP384R1()))
        if usage is Usage.TLS:
            return cls(usage, ec.generate_private_key(ec.SECP256R1()))
        return cls(usage, Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, usage: Usage, data: bytes) -> PrivateKey:
        """The key of a file; raises IntegrityError if the file holds no key of ours."""
        try:
            secret = load_pem_private_key(data, None)
        except (ValueError, TypeError):
            what = f"the file of the {usage} key holds no private key"
            raise IntegrityError(what, todo="restore it from a backup") from None
        if not isinstance(secret, Secret):
            raise IntegrityError(f"the file of the {usage} key holds another kind of key")
        return cls(usage, secret)

    def pem(self) -> bytes:
        """PKCS #8, not encrypted: for a file of mode 0600."""
        return self.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def alg(self) -> str:
        """The algorithm's name, as in key records."""
        if isinstance(self.secret, ec.EllipticCurvePrivateKey):
            return {"secp256r1": "P-256", "secp384r1": "P-384"}[self.secret.curve.name]
        return "Ed25519" if isinstance(self.secret, Ed25519PrivateKey) else "X25519"

    @property
    def spki(self) -> bytes:
        """The public key, DER."""
        return self.secret.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def key_id(self) -> str:
        """The id under which others know the public key."""
        return key_id(self.spki)

    @property
    def public_pem(self) -> str:
        """The public key as Flower stores and compares node keys."""
        return (
            self.secret.public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature; TypeError for keys that are not for signing."""
        if not isinstance(self.secret, Ed25519PrivateKey):
            raise TypeError(f"a {self.usage} key does not sign objects")
        return self.secret.sign(message)

    def agree(self, peer_spki: bytes) -> bytes:
        """X25519 with a peer's public key: 32 bytes to derive from, never to use as they are."""
        if not isinstance(self.secret, X25519PrivateKey):
            raise TypeError(f"a {self.usage} key does not agree on secrets")
        return self.secret.exchange(X25519PublicKey.from_public_bytes(peer_spki[-32:]))


@dataclass(frozen=True, slots=True)
class Keys:
    """All private halves of one organisation."""

    by_usage: Mapping[Usage, PrivateKey]
    authority: PrivateKey  # P-256, issues the TLS certificates and is nothing else


def key_id(spki: bytes) -> str:
    """SHA-256 of the public key, its first 16 bytes."""
    return hashlib.sha256(spki).hexdigest()[:32]


def generate(kind: OrgKind) -> Keys:
    """New keys for every usage that such an organisation has."""
    return Keys(
        {usage: PrivateKey.generate(usage) for usage in USAGES[kind]},
        PrivateKey.generate(Usage.TLS),
    )


def make_card(
    keys: Keys,
    *,
    org: str,
    name: str,
    org_kind: OrgKind,
    uscc: str,
    region: str,
    now: datetime,
    hosts: Sequence[str] = (),
    holder: str = "",
) -> Card:
    """The first card of an organisation with these keys, not yet signed."""
    until = now + KEY_LIFE
    tls, authority = keys.by_usage[Usage.TLS].secret, keys.authority.secret
    if not isinstance(tls, ec.EllipticCurvePrivateKey) or not isinstance(
        authority, ec.EllipticCurvePrivateKey
    ):
        raise TypeError("TLS keys are on P-256")
    leaf = certificates.issue(org, tls, authority, hosts=hosts, now=now, until=until)
    node = keys.by_usage.get(Usage.NODE)
    return Card(
        org=org,
        name=name,
        org_kind=org_kind,
        uscc=uscc,
        region=region,
        created=utc_text(now),
        keys=tuple(
            KeyRecord(
                key_id=key.key_id,
                usage=usage,
                alg=key.alg,
                spki=base64.b64encode(key.spki).decode(),
                holder=holder or f"{org} {usage}",
                not_before=utc_text(now),
                not_after=utc_text(until),
            )
            for usage, key in keys.by_usage.items()
        ),
        ca_certificate=certificates.pem(certificates.new_authority(org, authority, now)),
        tls_certificate=certificates.pem(leaf),
        node_key=node.public_pem if node else None,
    )


def card_signers(keys: Mapping[Usage, PrivateKey]) -> tuple[PrivateKey, ...]:
    """Who signs a card: the admin key first, then each signing key for its own possession."""
    signing = [key for key in keys.values() if isinstance(key.secret, Ed25519PrivateKey)]
    return tuple(sorted(signing, key=lambda key: (key.usage is not Usage.ADMIN, key.usage)))


def is_fingerprint(card: Card, text: str) -> bool:
    """Whether a person's transcript of a fingerprint is the card's: case and groups do not matter,
    every one of the 64 digits does."""
    digits = "".join(c for c in text.lower() if c not in " -:\t\n")
    return hmac.compare_digest(digits.encode(), card.fingerprint().replace("-", "").encode())
