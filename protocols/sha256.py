"""SHA-256 of many short messages at once, equal to hashlib's (FIPS 180-4).

`hashlib` spends most of a short message on the call; here one compiled loop works on `LANES`
messages side by side, 13 million a second and core. A message is one block that all share (taken
in once, `midstate`) and at most 52 bytes of its own, so that two compressions make a digest.

Words are unsigned 32-bit integers in the standard's (big-endian) order. Nothing here depends on
secret values in its branches or addresses.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from protocols.kernels import inlined, kernel

Words = NDArray[np.uint32]

BLOCK_BYTES = 64
OWN_WORDS_MAX = 13  # of a message's own block: the rest is the padding bit and the length
LANES = 32  # two vectors of 512 bits in flight

_SCHEDULE = 64 * LANES  # places of the message schedule, then 68 each of the sequences a and e
_A, _E = _SCHEDULE, _SCHEDULE + 68 * LANES


def midstate(block: bytes) -> Words:
    """The state after the shared block of 64 bytes."""
    if len(block) != BLOCK_BYTES:
        raise ValueError(f"a block has {BLOCK_BYTES} bytes, not {len(block)}")
    words = np.frombuffer(block, ">u4").astype(np.uint32)[None]
    state: Words = _digests(_START, _ROUND, words, np.empty((1, 0), np.uint32), 0)[0]
    return state


def sha256_rows(start: Words, head: Words, tail: Words) -> Words:
    """SHA-256(shared block | head | tail) of every row, shape (rows, 8).

    start: the shared block's `midstate`. head, tail: (rows, words), together at most 13 words.
    """
    if len(head) != len(tail) or head.shape[1] + tail.shape[1] > OWN_WORDS_MAX:
        raise ValueError(f"heads {head.shape} and tails {tail.shape}")
    return _digests(start, _ROUND, head, tail, 1)


# --- constants: fractional parts of the roots of the first primes, in integers


def _cube_root(x: int) -> int:
    low, high = 0, 1 << (x.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= x else (low, middle - 1)
    return low


_PRIMES = [p for p in range(2, 312) if all(p % d for d in range(2, isqrt(p) + 1))]
_ROUND = np.array([_cube_root(p << 96) & 0xFFFFFFFF for p in _PRIMES], np.uint32)
_START = np.array([isqrt(p << 64) & 0xFFFFFFFF for p in _PRIMES[:8]], np.uint32)


# --- kernels


@inlined
def _rotate(x: np.uint32, n: int) -> np.uint32:
    return (x >> np.uint32(n)) | (x << np.uint32(32 - n))


@kernel
def _compress(s: Words, start: Words, constants: Words) -> None:
    """64 rounds in all lanes; afterwards places 64..67 of `a` and `e` hold the working variables.

    The eight variables are two sequences: a round computes a[r + 4] and e[r + 4] from the four
    before each. Indices are unsigned, or LLVM does not vectorise for fear of a wrap-around.
    """
    row = np.uint64(LANES)
    for r in range(4):
        for lane in range(LANES):
            s[_A + r * LANES + lane] = start[3 - r]
            s[_E + r * LANES + lane] = start[7 - r]
    for r in range(16, 64):
        for lane in range(LANES):
            i = np.uint64(r * LANES) + np.uint64(lane)
            x, y = s[i - np.uint64(15) * row], s[i - np.uint64(2) * row]
            u = _rotate(x, 7) ^ _rotate(x, 18) ^ (x >> np.uint32(3))
            v = _rotate(y, 17) ^ _rotate(y, 19) ^ (y >> np.uint32(10))
            s[i] = s[i - np.uint64(16) * row] + u + s[i - np.uint64(7) * row] + v
    for r in range(64):
        k = constants[r]
        for lane in range(LANES):
            i = np.uint64(r * LANES) + np.uint64(lane)
            a0, e0 = np.uint64(_A) + i, np.uint64(_E) + i
            a, b, c, d = s[a0 + np.uint64(3) * row], s[a0 + np.uint64(2) * row], s[a0 + row], s[a0]
            e, f, g, h = s[e0 + np.uint64(3) * row], s[e0 + np.uint64(2) * row], s[e0 + row], s[e0]
            choice, majority = (e & f) ^ (~e & g), (a & b) ^ (a & c) ^ (b & c)
            t = h + (_rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)) + choice + k + s[i]
            s[e0 + np.uint64(4) * row] = d + t
            s[a0 + np.uint64(4) * row] = (
                t + (_rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)) + majority
            )


@kernel
def _digests(start: Words, constants: Words, head: Words, tail: Words, blocks: int) -> Words:
    """`blocks` were taken in before; a row of 16 words is a whole block and gets no padding."""
    rows, own = tail.shape[0], head.shape[1] + tail.shape[1]
    out = np.empty((rows, 8), np.uint32)
    s = np.zeros(_SCHEDULE + 2 * 68 * LANES, np.uint32)
    for first in range(0, rows, LANES):
        for lane in range(LANES):
            i = min(first + lane, rows - 1)
            for w in range(head.shape[1]):
                s[w * LANES + lane] = head[i, w]
            for w in range(tail.shape[1]):
                s[(head.shape[1] + w) * LANES + lane] = tail[i, w]
            if own < 16:
                s[own * LANES + lane] = np.uint32(0x80000000)
                for w in range(own + 1, 15):
                    s[w * LANES + lane] = np.uint32(0)
                s[15 * LANES + lane] = np.uint32(512 * blocks + 32 * own)
        _compress(s, start, constants)
        for lane in range(min(LANES, rows - first)):
            for w in range(4):
                out[first + lane, w] = s[_A + (67 - w) * LANES + lane] + start[w]
                out[first + lane, 4 + w] = s[_E + (67 - w) * LANES + lane] + start[4 + w]
    return out
