"""Sealed to one organisation: HPKE (RFC 9180, base mode) from node to node, one size class at a
time (GOVERNANCE.md, Objects and checks).

Suite     DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, of `cryptography`
Info      version, kind, sender and the recipient key's id: a frame that is carried elsewhere, or
          under another name, does not open. Who wrote it is the inner signature's question
Size      the content is filled up to whole KiB, and to a class of its kind: what is inside shows
          neither in the length of a question nor in that of an answer
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from federation.errors import IntegrityError
from federation.identity import PrivateKey, key_id
from protocols.streams import encode

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
VERSION = b"lianmo/v1/sealed"
STEP = 1024
KEY_BYTES = 16  # of the recipient key's id, in front of the frame
OVERHEAD = KEY_BYTES + 32 + 16  # key id, encapsulated key, tag
MAX_SEALED = 256 * STEP

ASK, ANSWER, USE = "ask", "answer", "use"  # kinds
RECEIPTS, PROOFS = "receipts", "proofs"
# what is usual fits, nothing is smaller
LEAST = {ASK: 12 * STEP, ANSWER: 8 * STEP, USE: 8 * STEP, RECEIPTS: 4 * STEP, PROOFS: 52 * STEP}


def seal(kind: str, content: bytes, *, sender: str, recipient: bytes) -> bytes:
    """The content for the holder of an X25519 key (SPKI, DER); ValueError if it is too large."""
    framed = len(content).to_bytes(4, "big") + content
    size = max(LEAST[kind], -(-len(framed) // STEP) * STEP)
    if size + OVERHEAD > MAX_SEALED:
        raise ValueError(f"sealed content has at most {MAX_SEALED - OVERHEAD} bytes")
    name = key_id(recipient)
    public = X25519PublicKey.from_public_bytes(recipient[-32:])
    sealed = SUITE.encrypt(framed.ljust(size, b"\0"), public, info=_info(kind, sender, name))
    return bytes.fromhex(name) + sealed


def is_receipts(sealed: bytes) -> bool:
    """Whether a frame asks for receipts: it has their size, which no question has."""
    return len(sealed) == LEAST[RECEIPTS] + OVERHEAD


def unseal(kind: str, sealed: bytes, *, sender: str, key: PrivateKey) -> bytes:
    """The content, if this very sender's frame of this kind is sealed to this key.

    Raises IntegrityError for anything else, always with the same words.
    """
    size = len(sealed) - OVERHEAD
    wrong = IntegrityError("a sealed message does not open")
    if not isinstance(key.secret, X25519PrivateKey):
        raise TypeError("sealed messages are opened with an encrypt key")
    if not LEAST[kind] <= size <= MAX_SEALED - OVERHEAD or size % STEP:
        raise wrong
    if sealed[:KEY_BYTES].hex() != key.key_id:
        raise wrong
    try:
        framed = SUITE.decrypt(sealed[KEY_BYTES:], key.secret, info=_info(kind, sender, key.key_id))
    except (InvalidTag, ValueError):
        raise wrong from None
    length = int.from_bytes(framed[:4], "big")
    if length > len(framed) - 4 or framed[4 + length :].strip(b"\0"):
        raise wrong
    return framed[4 : 4 + length]


def _info(kind: str, sender: str, name: str) -> bytes:
    return encode(VERSION, kind, sender, name)
