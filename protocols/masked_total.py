"""Masked total: one number of each department, of which only the sum opens (PROTOCOLS.md section 7,
Scoring).

Goal         the bank learns p_1 + ... + p_k of one session, and of no department more than that
Steps        each pair of departments derives one uniform word of the session from the secret that
             the two share; the one that sorts first adds it, the other takes it off (the pairwise
             masks of Bonawitz et al. 2017, section 4, without drop-outs). B adds up
Security     any k - 1 of the k masked numbers are uniform and independent of the p_i, for who does
             not know the pairs' secrets. A session serves once: the same mask under two values of
             one p_i shows their difference, so whoever calls this keeps the sessions
Not covered  k = 1, where the sum is the number; B together with k - 1 departments, which know it
             from the sum; a department that masks another number than its own
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols import labels
from protocols.streams import encode

MODULUS = 1 << 64


def mask(me: str, shared: Mapping[str, bytes], session: bytes) -> int:
    """One department's mask of a session; all departments' masks add up to 0 modulo `MODULUS`.

    shared: the secret that it shares with each other department.
    """
    total = 0
    for peer, secret in shared.items():
        first, second = sorted((me, peer))
        info = encode(labels.SCORE_PAIR, session, first, second)
        word = int.from_bytes(HKDF(SHA256(), 8, salt=None, info=info).derive(secret), "big")
        total += word if me == first else -word
    return total % MODULUS


def masked(number: int, me: str, shared: Mapping[str, bytes], session: bytes) -> int:
    """What a department sends in the place of its number."""
    return (number + mask(me, shared, session)) % MODULUS


def opened(numbers: Iterable[int]) -> int:
    """The bank: the signed sum of all departments' numbers, each sent masked."""
    total = sum(numbers) % MODULUS
    return total - MODULUS if total >= MODULUS // 2 else total
