"""Signatures and keys as an attacker would bend them: acceptance test 47 of GOVERNANCE.md.

The classes are Wycheproof's for Ed25519 and X25519 (special values, truncated, with garbage,
malleable, invalid encodings, points of small order), made here from a fresh key; the vectors of
RFC 8032 and RFC 9180 are in test_carriers.py. SM2 and SM3 belong to a profile that is not built:
what names them is refused by name.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation import sealing
from federation.errors import Refused
from federation.identity import PrivateKey
from federation.objects import Usage
from federation.profile import profile

INTL = profile("intl")
L = 2**252 + 27742317777372353535851937790883648493  # the group's order (RFC 8032, section 5.1)
P = 2**255 - 19
MESSAGE = b"a grant"
SIGNER = Ed25519PrivateKey.generate()
SPKI = SIGNER.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
GOOD = SIGNER.sign(MESSAGE)
R, S = GOOD[:32], int.from_bytes(GOOD[32:], "little")
EDGES = [0, 1, L - 1, L, P]


def number(value: int) -> bytes:
    return (value % 2**256).to_bytes(32, "little")


def flipped(place: int) -> bytes:
    raw = bytearray(GOOD)
    raw[place // 8] ^= 1 << place % 8
    return bytes(raw)


BENT = {
    "special values": [number(r) + number(s) for r in EDGES for s in EDGES],
    "truncated": [GOOD[:size] for size in (0, 1, 31, 32, 33, 62, 63)],
    "with garbage": [GOOD + b"\0", b"\0" + GOOD, R + b"\0" + GOOD[32:], GOOD + SPKI[-32:]],
    "malleable": [R + number(S + k * L) for k in (1, 2, 4, 8)]
    + [R + number(S + 2**bit) for bit in (253, 254, 255)]
    + [R + number(S + P), R + number(-S), R + number(L - S)],
    "invalid encoding": [flipped(bit) for bit in (0, 1, 7, 8, 31, 63, 127, 247, 254, 255, 256, 500)]
    + [bytes(64), b"\xff" * 64, GOOD[32:] + R],
}


def ordinates() -> list[int]:
    """y of the eight points of small order on edwards25519, from the curve's own equation.

    Twice a point of order 8 has y = 0, so y^2 = -x^2 there, and d y^4 + 2 y^2 - 1 = 0.
    """
    d = -121665 * pow(121666, -1, P) % P
    roots = [(-1 + sign * root(1 + d)) * pow(d, -1, P) % P for sign in (1, -1)]
    square = next(value for value in roots if pow(value, (P - 1) // 2, P) == 1)
    return [0, 1, P - 1, root(square), P - root(square)]


def root(value: int) -> int:
    """A square root modulo p (RFC 8032, section 5.1.3)."""
    found = pow(value, (P + 3) // 8, P)
    if found * found % P != value % P:
        found = found * pow(2, (P - 1) // 4, P) % P
    assert found * found % P == value % P
    return found


def test_a47_the_signature_itself_holds_and_for_its_message_alone() -> None:
    assert INTL.is_signature("Ed25519", SPKI, MESSAGE, GOOD)
    assert not INTL.is_signature("Ed25519", SPKI, MESSAGE + b" ", GOOD)
    other = Ed25519PrivateKey.generate().public_key()
    spki = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert not INTL.is_signature("Ed25519", spki, MESSAGE, GOOD)


@pytest.mark.parametrize("how", BENT)
def test_a47_no_bent_signature_holds(how: str) -> None:
    for signature in BENT[how]:
        assert signature != GOOD
        assert not INTL.is_signature("Ed25519", SPKI, MESSAGE, signature), signature.hex()


def test_a47_a_point_of_small_order_is_no_key() -> None:
    """Under such a key one signature holds for every message."""
    prefix = SPKI[:-32]
    assert INTL.is_key("Ed25519", SPKI)
    spellings = [y + more for y in ordinates() for more in (0, P) if y + more < 2**255]
    for point in [number(y | sign << 255) for y in spellings for sign in (0, 1)]:
        assert not INTL.is_key("Ed25519", prefix + point), point.hex()
        forged = number(1) + bytes(32)
        assert not INTL.is_signature("Ed25519", prefix + point, MESSAGE, forged)


def test_a47_nothing_is_sealed_to_a_point_of_small_order() -> None:
    """The shared secret would be zero, whoever sends; RFC 7748, section 6.1, and RFC 9180."""
    good = PrivateKey.generate(Usage.ENCRYPT).spki
    assert INTL.is_key("X25519", good)
    on_montgomery = [(1 + y) * pow(1 - y, -1, P) % P for y in ordinates() if y != 1]
    for u in [*on_montgomery, P, P + 1, P - 1]:
        spki = good[:-32] + number(u)
        assert not INTL.is_key("X25519", spki), u
        with pytest.raises(ValueError, match=r"HPKE|key"):
            sealing.seal(sealing.ASK, b"x", sender="bank-a", recipient=spki)


@pytest.mark.parametrize("alg", ["SM2", "sm2", "none", "HS256", "Ed448", "P-256", ""])
def test_a47_an_algorithm_that_is_not_the_profiles_signs_nothing(alg: str) -> None:
    assert not INTL.is_key(alg, SPKI)
    assert not INTL.is_signature(alg, SPKI, MESSAGE, GOOD)


def test_a47_what_belongs_to_the_sm_profile_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="no sm profile"):
        profile("sm")
    assert profile("intl").name == "intl"
