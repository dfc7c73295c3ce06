"""Shamir's sharing of one 32-byte secret: any `threshold` shares give it back, fewer tell nothing.

A. Shamir, "How to share a secret" (1979), over the integers modulo P = 2^256 + 297, the least prime
above 2^256: one polynomial a secret, no blocks. Why not pycryptodome's: it draws its coefficients
from the system, so that a party that comes back after a crash could not send the shares that it
sent before, and no replay or known answer is possible; it takes secrets of 16 bytes, so that a
secret is two sharings whose halves can be mixed; and it is about 100 times slower, 4 s of a
coordinator's time at 50 parties.

Not covered  a dealer or holder who lies: compare the secret with something public
             time that does not depend on the values: Python's integers
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from protocols.errors import ProtocolError
from protocols.streams import Stream

P = (1 << 256) + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_DRAW_BYTES = 49  # a coefficient is this many bytes mod P: 2^-135 from uniform


def split(
    secret: bytes, threshold: int, indices: Iterable[int], stream: Stream
) -> dict[int, bytes]:
    """The share of each index, 33 bytes; indices are distinct and at least 1."""
    places = list(indices)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a shared secret has {SECRET_BYTES} bytes")
    if len(set(places)) != len(places) or not all(0 < x < P for x in places):
        raise ValueError("indices are distinct and at least 1")
    if not 2 <= threshold <= len(places):
        raise ValueError(f"threshold {threshold} of {len(places)} shares")
    drawn = [int.from_bytes(stream.bytes(_DRAW_BYTES)) % P for _ in range(threshold - 1)]
    coefficients = [*drawn, int.from_bytes(secret)]  # the highest power first
    shares = {}
    for x in places:
        value = 0
        for coefficient in coefficients:  # Horner's rule
            value = (value * x + coefficient) % P
        shares[x] = value.to_bytes(SHARE_BYTES)
    return shares


def require_share(share: bytes) -> None:
    """ProtocolError unless the bytes are a residue modulo P."""
    if len(share) != SHARE_BYTES or int.from_bytes(share) >= P:
        raise ProtocolError("a share is out of range")


def weights(indices: Sequence[int]) -> tuple[int, ...]:
    """Lagrange's weights at 0 for these indices: the same for every secret shared over them."""
    if len(set(indices)) != len(indices) or not all(0 < x < P for x in indices):
        raise ProtocolError("shares with equal indices, or out of range")
    out = []
    for x in indices:
        above = below = 1
        for other in indices:
            if other != x:
                above, below = above * other % P, below * (other - x) % P
        out.append(above * pow(below, -1, P) % P)
    return tuple(out)


def combine(shares: Mapping[int, bytes], at: Sequence[int] | None = None) -> bytes:
    """The secret from exactly `threshold` shares by index; `at`: their `weights`, if at hand.

    Raises ProtocolError if a share is out of range or the result is no secret of 32 bytes. Wrong
    shares give another secret: compare it with its commitment.
    """
    for share in shares.values():
        require_share(share)
    factors = weights(list(shares)) if at is None else at
    total = sum(
        factor * int.from_bytes(share)
        for factor, share in zip(factors, shares.values(), strict=True)
    )
    secret = total % P
    if secret >= 1 << 256:
        raise ProtocolError("the shares do not give a secret")
    return secret.to_bytes(SECRET_BYTES)
