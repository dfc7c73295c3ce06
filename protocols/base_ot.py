"""Base oblivious transfers: the sender has two keys of each, the receiver the one it chose.

Masny and Rindal, "Endemic oblivious transfer" (ePrint 2019/706), on ristretto255: the receiver
speaks first, with two points a transfer of which it knows the logarithm of one only, as the other
goes into a hash to the group; the sender answers with one point for all transfers.

    receiver  r_1-c random,  r_c = a G - H(i, c, r_1-c)
    sender    y G,           key_b = KDF(i, b, r_0, r_1, y G, y (r_b + H(i, b, r_1-b)))
    receiver                 key_c = KDF(..., a y G)

Security     the pair of points is uniform whatever c: choices are hidden for ever. An active
             receiver lacks one key a transfer under gap-CDH and a random oracle (one y serves all
             transfers, and a simulator that recognises the right query needs a DDH oracle).
Not covered  an active sender may bias the keys: they only mask strings that it chose
"""

from __future__ import annotations

import hashlib

import numpy as np
import rbcl
from numpy.typing import NDArray

from protocols import labels
from protocols.errors import ProtocolError
from protocols.streams import Stream, digest, encode

POINT_BYTES, KEY_BYTES = 32, 16
IDENTITY = bytes(POINT_BYTES)


class Receiver:
    """Chooses; its points depend on the stream alone, so a restarted party sends the same again."""

    def __init__(self, identity: bytes, choices: NDArray[np.uint8], stream: Stream) -> None:
        """identity: what is common to all transfers before the sender speaks."""
        self._choices: list[int] = choices.tolist()
        self._logarithms, points = [], []
        for i, c in enumerate(self._choices):
            other = _from_hash(stream.bytes(64))
            self._logarithms.append(_scalar(stream.bytes(64)))
            mine = _subtract(_multiply_base(self._logarithms[-1]), _hashed(identity, i, c, other))
            points.append(mine + other if c == 0 else other + mine)
        self.points = _array(points).reshape(-1, 2, POINT_BYTES)

    def keys(self, session: bytes, sender: bytes) -> NDArray[np.uint8]:
        """The chosen keys, shape (transfers, 16). ProtocolError for an invalid point."""
        require_point(sender)
        keys = []
        for i, (c, a) in enumerate(zip(self._choices, self._logarithms, strict=True)):
            shared = _multiply(a, sender)
            keys.append(_key(session, i, c, self.points[i].tobytes(), sender, shared))
        return _array(keys).reshape(-1, KEY_BYTES)


class Sender:
    """Holds both keys of every transfer: `keys`, shape (transfers, 2, 16); `point` goes out."""

    def __init__(
        self, identity: bytes, session: bytes, points: NDArray[np.uint8], stream: Stream
    ) -> None:
        """points: shape (transfers, 2, 32), the receiver's. ProtocolError if one is invalid."""
        y = _scalar(stream.bytes(64))
        self.point = _multiply_base(y)
        keys = []
        for i, pair in enumerate(points):
            halves = [require_point(half.tobytes()) for half in pair]
            for b in (0, 1):
                # The identity comes out for an r_b that was chosen so: nobody honest does.
                sum_ = require_point(_add(halves[b], _hashed(identity, i, b, halves[1 - b])))
                shared = _multiply(y, sum_)
                keys.append(_key(session, i, b, pair.tobytes(), self.point, shared))
        self.keys = _array(keys).reshape(-1, 2, KEY_BYTES)


def require_point(point: bytes) -> bytes:
    """The point, if it is one, canonically encoded and not the identity; else ProtocolError.

    Before any use: rbcl's addition returns zeros for an invalid encoding instead of raising, and
    libsodium 1.0.18 ignores the top bit, which RFC 9496 section 4.3.1 does not.
    """
    valid = len(point) == POINT_BYTES and rbcl.crypto_core_ristretto255_is_valid_point(point)
    if not valid or point == IDENTITY or point[-1] & 0x80:
        raise ProtocolError("an element is not a point of the group, or its identity")
    return point


def _hashed(identity: bytes, index: int, branch: int, other: bytes) -> bytes:
    wide = hashlib.sha512(encode(labels.BASE_OT_POINT, identity, index, branch, other)).digest()
    return _from_hash(wide)


def _key(
    session: bytes, index: int, branch: int, points: bytes, sender: bytes, shared: bytes
) -> bytes:
    return digest(labels.BASE_OT_KEY, session, index, branch, points, sender, shared)[:KEY_BYTES]


# --- ristretto255 of libsodium; every point that came from outside went through `require_point`


def _scalar(wide: bytes) -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_scalar_reduce(wide))


def _from_hash(wide: bytes) -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_from_hash(wide))


def _multiply(scalar: bytes, point: bytes) -> bytes:
    return bytes(rbcl.crypto_scalarmult_ristretto255(scalar, point))


def _multiply_base(scalar: bytes) -> bytes:
    return bytes(rbcl.crypto_scalarmult_ristretto255_base(scalar))


def _add(p: bytes, q: bytes) -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_add(p, q))


def _subtract(p: bytes, q: bytes) -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_sub(p, q))


def _array(rows: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).copy()
