"""Which cryptography a network speaks: one profile a network, chosen by name, never negotiated.

`intl` is Ed25519 (signatures), X25519 (masks, encryption), P-256 (TLS) and P-384 (Flower's node
keys). A profile with SM2, SM3 and SM4 can stand beside it; a node without it says so by name.
The algorithm of a signature follows from the key's record alone: what an envelope claims is
compared with it, so `none` or an HMAC under a public key has no way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from federation.errors import Refused
from federation.objects import Usage

# The encodings of the eight points of small order, which accept a signature for every message, and
# the non-canonical encodings of the same (Chalkias et al. 2020, table 1); sign bit cleared.
_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)
# The u-coordinates of small order on Curve25519 and its twist (RFC 7748, section 6.1; sign bit
# cleared): nothing can be sealed to such a key, and with it every agreed secret is zero.
_SMALL_ORDER_U = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


class CryptoProfile(Protocol):
    """What identities, envelopes and the trust store need of a suite of algorithms."""

    @property
    def name(self) -> str:
        """As it stands in cards."""

    def algorithm(self, usage: Usage) -> str:
        """The one algorithm of keys for that use."""

    def is_key(self, alg: str, spki: bytes) -> bool:
        """Whether these bytes are a safe public key of that algorithm, in its only encoding."""

    def is_signature(self, alg: str, spki: bytes, message: bytes, signature: bytes) -> bool:
        """Whether the signature holds; False for an algorithm that does not sign."""


class Intl:
    """The international profile."""

    name = "intl"
    _other: Mapping[Usage, str] = {
        Usage.ENCRYPT: "X25519",
        Usage.MASK: "X25519",
        Usage.NODE: "P-384",
        Usage.TLS: "P-256",
    }

    def algorithm(self, usage: Usage) -> str:
        """The one algorithm of keys for that use."""
        return self._other.get(usage, "Ed25519")

    def is_key(self, alg: str, spki: bytes) -> bool:
        """Whether these bytes are a safe public key of that algorithm, in its only encoding."""
        try:
            key = load_der_public_key(spki)
        except (ValueError, UnsupportedAlgorithm):
            return False
        if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
            return False  # a compressed point, say: the same key under another id
        if isinstance(key, Ed25519PublicKey):
            raw = bytearray(key.public_bytes_raw())
            raw[31] &= 0x7F
            return alg == "Ed25519" and bytes(raw) not in _SMALL_ORDER
        if isinstance(key, X25519PublicKey):
            raw = bytearray(key.public_bytes_raw())
            raw[31] &= 0x7F
            return alg == "X25519" and bytes(raw) not in _SMALL_ORDER_U
        if isinstance(key, EllipticCurvePublicKey):
            return alg == {"secp256r1": "P-256", "secp384r1": "P-384"}.get(key.curve.name)
        return False

    def is_signature(self, alg: str, spki: bytes, message: bytes, signature: bytes) -> bool:
        """Whether the signature holds; False for an algorithm that does not sign."""
        if alg != "Ed25519" or not self.is_key(alg, spki):
            return False
        try:
            Ed25519PublicKey.from_public_bytes(spki[-32:]).verify(signature, message)
        except InvalidSignature:
            return False
        return True


PROFILES: Mapping[str, CryptoProfile] = {"intl": Intl()}


def profile(name: str) -> CryptoProfile:
    """The profile of that name; raises Refused where this node does not have it."""
    if name not in PROFILES:
        todo = "all organisations of one network use the same profile"
        raise Refused(f"this node has no {name} profile", todo=todo)
    return PROFILES[name]
