"""Bit packing: integers of a fixed width, back to back, as bytes (how linear queries travel).

64 values of `bits` bits fill exactly `bits` little-endian 64-bit words; a shorter last group is
filled up with zeros, and a reader refuses anything else, so that equal values have one encoding
only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ProtocolError
from protocols.kernels import kernel

GROUP = 64


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed values."""
    return -(-count // GROUP) * bits * 8


def pack(values: NDArray[np.int64] | NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Flat non-negative integers below 2^bits (bits <= 63), in C order, as bytes."""
    words = np.zeros(packed_bytes(values.size, bits) // 8, np.uint64)
    _pack(values.reshape(-1), bits, words)
    return words.astype("<u8", copy=False).view(np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int, count: int, limit: int) -> NDArray[np.int64]:
    """The `count` values; ProtocolError for a wrong size, a value >= limit or a non-zero tail."""
    if packed.dtype != np.uint8 or packed.shape != (packed_bytes(count, bits),):
        what = f"{packed.shape} of {packed.dtype}"
        raise ProtocolError(
            f"packed values: expected {packed_bytes(count, bits)} bytes, got {what}"
        )
    words = words_of(packed)
    values = np.empty(-(-count // GROUP) * GROUP, np.int64)
    largest = _unpack(words, bits, values)
    if largest >= limit or values[count:].any():
        raise ProtocolError("packed values: a value is out of range")
    return values[:count]


def words_of(packed: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The bytes as words that a kernel takes; without a copy where they are writable."""
    # writable: numba would compile another variant for read-only arrays
    return np.require(packed, requirements=["C", "W"]).view("<u8").astype(np.uint64, copy=False)


@kernel
def unpack_centred(
    words: NDArray[np.uint64],
    start: int,
    stop: int,
    bits: int,
    modulus: int,
    rows: NDArray[np.float64],
) -> int:
    """Rows start..stop of packed residues, centred; returns the largest before centring.

    rows: (n, size), size a multiple of 64.
    """
    values, largest = np.empty(rows.shape[1], np.int64), 0
    each = values.size // GROUP * bits
    for b in range(start, stop):
        largest = max(largest, _unpack(words[b * each : (b + 1) * each], bits, values))
        for j in range(values.size):
            v = values[j]
            rows[b, j] = v - modulus if 2 * v > modulus else v
    return largest


@kernel
def _pack(
    values: NDArray[np.int64] | NDArray[np.int32], bits: int, words: NDArray[np.uint64]
) -> None:
    word, used, at = np.uint64(0), 0, 0
    for i in range(values.size):
        value = np.uint64(values[i])
        word |= value << np.uint64(used)
        used += bits
        if used >= 64:
            words[at] = word
            at += 1
            used -= 64
            # bits - used of the value are written; a shift by 64 would be undefined, hence the two
            # steps
            word = (value >> np.uint64(bits - used - 1)) >> np.uint64(1)
    if used > 0:
        words[at] = word


@kernel
def _unpack(words: NDArray[np.uint64], bits: int, values: NDArray[np.int64]) -> int:
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    largest, at, used = np.uint64(0), 0, 0
    for i in range(values.size):
        value = words[at] >> np.uint64(used)
        used += bits
        if used >= 64:
            used -= 64
            at += 1
            if used > 0:
                value |= words[at] << np.uint64(bits - used)
        value &= mask
        largest = max(largest, value)
        values[i] = np.int64(value)
    return int(largest)
