"""Oblivious key-value store: a band of random rows for every key, solved by elimination.

A key selects a random half of 256 neighbouring rows of the store; their XOR is the key's value.
Keys that come in the order of where their bands start make a band matrix, so building is linear in
time (RB-OKVS, ePrint 2023/903; ribbon filters, arXiv 2103.02515). Rows that no equation fixes are
uniform, so the store shows the values it was built for and nothing else.

Size         a store of n keys cannot be built if the backlog of keys that wait for a free row
             outgrows the band. Keys arrive at rate 1 / (1 + e) a row and one leaves a row, so
             P(backlog > w) decays as exp(-theta w) with (exp(theta) - 1) / theta = 1 + e; a union
             over n keys and 2^-40 give theta. Measured failure rates are 5 to 7 bits better
             (prototype, widths 48 to 80). All in integers and fractions: two libraries' logarithms
             may differ by one row, and the number of rows is what two parties approve.
Cheating     a store of m rows can hold more than n keys, by elimination over many: at most m by
             any known way. The values are hashes of 64 bits (`most_keys` in set_oprf.py).

Hashes are rows of eight 32-bit words: words 0-1 the value, 2-3 where the band starts, 4-7 what it
selects (128 bits, stretched to 256: the stretch matters for the failure rate only).
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, factorial

import numpy as np
from numpy.typing import NDArray

from protocols.kernels import inlined, kernel
from protocols.streams import Stream

Words = NDArray[np.uint64]
Hashes = NDArray[np.uint32]

BAND = 256
FAILURE_BITS = 40
ROWS_MAX = 2**24 - 1  # a band's start is 40 bits scaled by the rows in 64: beyond, it overflows
LN2 = Fraction(693_147_181, 1_000_000_000)  # rounded up
LOG_UNIT = 32  # bits behind the point of `log2`

GROUP, RING = 4, 128  # decoding: rows of a table of 16 sums, tables kept


def rows_for(keys: int) -> int:
    """Rows of a store for up to `keys` > 0 keys. More than `ROWS_MAX` do not work."""
    theta = LN2 * (FAILURE_BITS + Fraction(log2(keys, up=True), 1 << LOG_UNIT)) / BAND
    # (exp(theta) - 1) / theta; theta is below 0.2 and the tail of the series below 2^-100
    stretch = sum((theta**k / factorial(k + 1) for k in range(20)), Fraction(0))
    return ceil(keys * stretch) + BAND


def log2(x: int, *, up: bool) -> int:
    """log2(x) in units of 2^-32, rounded up or down: by repeated squaring, in integers."""
    whole = x.bit_length() - 1
    mantissa, out = (x << 64) >> whole, 0  # exact below 2^64
    for _ in range(LOG_UNIT):
        mantissa = (mantissa * mantissa + up * ((1 << 64) - 1)) >> 64
        bit = mantissa >> 65
        mantissa = (mantissa + up * bit) >> bit
        out = 2 * out + bit
    return (whole << LOG_UNIT) + out + up


def build(hashes: Hashes, rows: int, size: int, stream: Stream) -> Words | None:
    """A store of `rows` rows in which every key has its value, then uniform rows up to `size`.

    None if there is none: a key twice, or a failure of 2^-40 that other hashes mend.
    """
    ordered, _ = by_start(hashes, rows)
    solvable, line, value = _eliminate(ordered, rows)
    if not solvable:
        return None
    store = stream.words(size + BAND)  # the substitution reads one band beyond the last pivot
    _substitute(line, value, store)
    return store[:size]


# --- kernels


@inlined
def _pair(h: Hashes, i: int) -> np.uint64:
    return (np.uint64(h[i]) << np.uint64(32)) | np.uint64(h[i + 1])


@inlined
def _start(h: Hashes, rows: int) -> np.int64:
    """40 bits scaled to 0 .. rows - BAND."""
    return np.int64(((_pair(h, 2) >> np.uint64(24)) * np.uint64(rows - BAND + 1)) >> np.uint64(40))


@inlined
def _stretch(x: np.uint64) -> np.uint64:
    """splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def _band(h: Hashes) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    a, b = _pair(h, 4), _pair(h, 6)
    return a, b, _stretch(a ^ np.uint64(0x9E3779B97F4A7C15)), _stretch(b + a)


@kernel
def by_start(hashes: Hashes, rows: int) -> tuple[Hashes, NDArray[np.uint32]]:
    """The hashes sorted by the start of the band, and where each came from (counting sort)."""
    n = hashes.shape[0]
    place = np.zeros(rows + 1, np.uint32)
    for i in range(n):
        place[_start(hashes[i], rows) + 1] += np.uint32(1)
    for row in range(rows):
        place[row + 1] += place[row]
    ordered, origin = np.empty((n, 8), np.uint32), np.empty(n, np.uint32)
    for i in range(n):
        s = _start(hashes[i], rows)
        p = place[s]
        place[s] = p + np.uint32(1)
        origin[p] = i
        for w in range(8):
            ordered[p, w] = hashes[i, w]
    return ordered, origin


@kernel
def _eliminate(hashes: Hashes, rows: int) -> tuple[bool, Words, Words]:
    """Row echelon form of the band matrix, one line a pivot; false if a line vanishes."""
    line, value = np.zeros((rows, 4), np.uint64), np.zeros(rows, np.uint64)
    none, one = np.uint64(0), np.uint64(1)
    for i in range(hashes.shape[0]):
        s, v = _start(hashes[i], rows), _pair(hashes[i], 0)
        a, b, c, d = _band(hashes[i])
        while True:
            while a == none:
                if b | c | d == none:
                    return False, line, value
                a, b, c, d = b, c, d, none
                s += 64
            down = none
            while (a >> down) & one == none:
                down += one
            if down:
                up = np.uint64(64) - down
                a, b, c, d = (
                    (a >> down) | (b << up),
                    (b >> down) | (c << up),
                    (c >> down) | (d << up),
                    d >> down,
                )
                s += np.int64(down)
            if line[s, 0] == none:
                line[s, 0], line[s, 1], line[s, 2], line[s, 3], value[s] = a, b, c, d, v
                break
            a ^= line[s, 0]
            b ^= line[s, 1]
            c ^= line[s, 2]
            d ^= line[s, 3]
            v ^= value[s]
    return True, line, value


@kernel
def _substitute(line: Words, value: Words, store: Words) -> None:
    for s in range(line.shape[0] - 1, -1, -1):
        if line[s, 0]:
            store[s] = np.uint64(0)
            v = value[s]
            for w in range(4):
                bits = line[s, w]
                for k in range(64):
                    selected = np.uint64(0) - ((bits >> np.uint64(k)) & np.uint64(1))
                    v ^= store[s + 64 * w + k] & selected
            store[s] = v


@kernel
def decode(
    rows: Words,
    count: int,
    table: Words,
    with_table: bool,
    hashes: Hashes,
    origin: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    """XOR of each key's rows, plus the table's code word of its value; shape (keys, 8).

    rows: (at least count, 4). hashes, origin: of `by_start`; out is in the original order, 64-bit
    words as low and high half. Tables of all sums of 4 rows move along with the bands.
    """
    out = np.empty((hashes.shape[0], 8), np.uint32)
    ring = np.zeros((RING * 16, 4), np.uint64)
    ready, last, four = np.int64(0), np.uint64(RING - 1), np.uint64(15)
    for i in range(hashes.shape[0]):
        first = _start(hashes[i], count)
        group, shift = first // GROUP, np.uint64(first % GROUP)
        if ready < group:
            ready = group
        while ready <= group + BAND // GROUP:
            t = (ready % RING) * 16
            for bit in range(GROUP):
                for v in range(1 << bit):
                    for k in range(4):
                        ring[t + (1 << bit) + v, k] = ring[t + v, k] ^ rows[GROUP * ready + bit, k]
            ready += 1
        x0 = x1 = x2 = x3 = carry = np.uint64(0)
        slot = np.uint64(group)
        for selected in _band(hashes[i]):
            bits = (selected << shift) | carry
            carry = (selected >> np.uint64(1)) >> (np.uint64(63) - shift)
            for n in range(16):
                r = ((slot & last) << np.uint64(4)) + ((bits >> np.uint64(4 * n)) & four)
                x0 ^= ring[r, 0]
                x1 ^= ring[r, 1]
                x2 ^= ring[r, 2]
                x3 ^= ring[r, 3]
                slot += np.uint64(1)
        r = ((slot & last) << np.uint64(4)) + carry
        x0 ^= ring[r, 0]
        x1 ^= ring[r, 1]
        x2 ^= ring[r, 2]
        x3 ^= ring[r, 3]
        if with_table:
            bits = _pair(hashes[i], 0)
            for n in range(8):
                byte = (bits >> np.uint64(8 * n)) & np.uint64(255)
                x0 ^= table[n, byte, 0]
                x1 ^= table[n, byte, 1]
                x2 ^= table[n, byte, 2]
                x3 ^= table[n, byte, 3]
        o = origin[i]
        out[o, 0], out[o, 1] = np.uint32(x0), np.uint32(x0 >> np.uint64(32))
        out[o, 2], out[o, 3] = np.uint32(x1), np.uint32(x1 >> np.uint64(32))
        out[o, 4], out[o, 5] = np.uint32(x2), np.uint32(x2 >> np.uint64(32))
        out[o, 6], out[o, 7] = np.uint32(x3), np.uint32(x3 >> np.uint64(32))
    return out
