"""Small-field VOLE: the bank has rows U, V, the department Delta and W = V + Delta U, in GF(16).

Steps        from all-but-one seeds (seed_trees.py): stream r_x for every x of GF(16), U = sum r_x,
             V = sum x r_x; the department lacks r_Delta and has W = sum (x + Delta) r_x. The bank
             sends U + C(P), its store P in the code C (hermitian.py) under the one-time pad U; the
             department adds Delta times that: Q = V + Delta C(P), row by row, one Delta a column.
Check        the bank shows 128 random binary sums of (P, V), weights from a hash of all that it
             sent (Fiat-Shamir), each hidden by one further random row: rows that are no code words
             pass with 2^-128 a guess of the columns where Delta happens to fit (SoftSpokenOT,
             ePrint 2022/192, section 4.2; OOS, ePrint 2016/933).

Symbols are handled as bit planes: plane 4 j + b holds bit b of column j of all rows, 64 rows a
word, so that a whole column takes one pass with nothing but XOR; rows are four words (212 of 256
bits), as the store's sums want them. All multiplications by Delta take the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from protocols.hermitian import COLUMNS, FIELD, FIELD_BITS, ROW_WORDS
from protocols.kernels import kernel, spread
from protocols.streams import Stream

Words = NDArray[np.uint64]

PLANES = COLUMNS * FIELD_BITS  # 212
CHECKS = 128  # random sums, and as many rows that hide them
TILE = 512  # rows transposed at once; the number of rows is a multiple
CHUNK = 512  # words of a plane expanded at a time: 16 streams of 16 KiB stay in the L2 cache


def padded(rows: int) -> int:
    """Rows with those that hide the check, rounded up to whole tiles."""
    return -(-(rows + CHECKS) // TILE) * TILE


def send(
    seeds: Sequence[Sequence[bytes]], codewords: Words, executor: Executor | None = None
) -> tuple[Words, Words]:
    """Bank: its rows V, shape (rows, 4), and the correction U + C(P), shape (212, rows / 64)."""
    masked = _rows_to_planes(codewords)
    words = masked.shape[1]
    planes, correction = np.zeros((64 * ROW_WORDS, words), np.uint64), np.empty_like(masked)

    def work(start: int, stop: int) -> None:
        for j in range(start, stop):
            own = slice(FIELD_BITS * j, FIELD_BITS * (j + 1))
            _expand(seeds[j], 0, masked[own], planes[own], correction[own])

    spread(executor, COLUMNS, work)
    return _planes_to_rows(planes), correction[:PLANES]


def receive(
    seeds: Sequence[Sequence[bytes | None]],
    delta: NDArray[np.uint8],
    correction: Words,
    executor: Executor | None = None,
) -> Words:
    """Department: its rows Q = V + Delta C(P), shape (rows, 4)."""
    planes = np.zeros((64 * ROW_WORDS, correction.shape[1]), np.uint64)

    def work(start: int, stop: int) -> None:
        for j in range(start, stop):
            own, d = slice(FIELD_BITS * j, FIELD_BITS * (j + 1)), int(delta[j])
            by_multiple = [seeds[j][x ^ d] for x in range(FIELD)]  # the missing one times zero
            _expand(by_multiple, d, correction[own], planes[own], None)

    spread(executor, COLUMNS, work)
    return _planes_to_rows(planes)


def random_sums(seed: bytes, messages: Words, rows: Words, count: int) -> tuple[Words, Words]:
    """128 random binary sums of messages and rows, each plus one of the rows after `count`.

    seed: 32 bytes, the hash of all that was sent. Shapes (128,) and (128, 4).
    """
    weights = np.frombuffer(Stream(seed).bytes(CHECKS // 8 * count), np.uint8).copy()
    buckets = _buckets(weights.reshape(count, CHECKS // 8), messages, rows)
    values = np.arange(256)
    by_bit = [np.bitwise_xor.reduce(buckets[:, values >> b & 1 == 1], axis=1) for b in range(8)]
    sums = np.stack(by_bit, axis=1).reshape(CHECKS, ROW_WORDS + 1)
    hidden = slice(count, count + CHECKS)
    return sums[:, ROW_WORDS] ^ messages[hidden], sums[:, :ROW_WORDS] ^ rows[hidden]


def _expand(
    seeds: Sequence[bytes | None],
    delta: int,
    masked: Words,
    out: Words,
    correction: Words | None,
) -> None:
    """One column: out = sum x r_x + delta masked; correction, if wanted, = masked + sum r_x.

    A missing stream counts as zero. masked, out, correction: shape (4, words).
    """
    streams = [None if seed is None else _stream(seed) for seed in seeds]
    words = out.shape[1]
    for start in range(0, words, CHUNK):
        width = min(CHUNK, words - start)
        leaves = np.zeros((FIELD, FIELD_BITS, width), np.uint64)
        total = np.empty((FIELD_BITS, width), np.uint64)
        for x, stream in enumerate(streams):
            if stream is not None:
                zeros = memoryview(_ZEROS)[: 8 * FIELD_BITS * width]
                stream.update_into(zeros, leaves[x].reshape(-1).view(np.uint8).data)
        _fold(leaves, np.uint64(delta), masked, out, start, total)
        if correction is not None:
            now = slice(start, start + width)
            np.bitwise_xor(total, masked[:, now], out=correction[:, now])


_ZEROS = bytes(8 * FIELD_BITS * CHUNK)


def _stream(seed: bytes) -> CipherContext:
    """AES-128-CTR from 0: a seed serves one column of one session."""
    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()


# --- kernels


@kernel
def _halve(even: Words, odd: Words, kept: Words, total: Words) -> None:
    for w in range(even.shape[0]):
        kept[w] ^= odd[w]
        total[w] = even[w] ^ odd[w]


@kernel
def _fold(
    leaves: Words, delta: np.uint64, masked: Words, out: Words, offset: int, total: Words
) -> None:
    """total = sum r_x, out = sum x r_x + delta masked, on bit planes; spoils `leaves`.

    Streams are halved four times: the odd ones of round b are those with bit b of x set. Products
    by z^b are shifts of planes, reduced by z^4 = z + 1.
    """
    width, step = total.shape[1], 64
    part = np.empty((4, 4, step), np.uint64)  # part[b, p]: plane p of the sum of r_x with bit b set
    power = np.empty((7, step), np.uint64)
    for start in range(0, width, step):
        size = min(step, width - start)
        stop, first = start + size, offset + start
        for p in range(4):
            for b in range(4):
                chosen = np.uint64(0) - ((delta >> np.uint64(b)) & np.uint64(1))
                for w in range(size):
                    part[b, p, w] = masked[p, first + w] & chosen
            for b in range(4):
                for i in range(8 >> b):
                    even, odd = leaves[2 * i, p, start:stop], leaves[2 * i + 1, p, start:stop]
                    _halve(even, odd, part[b, p, :size], leaves[i, p, start:stop])
            total[p, start:stop] = leaves[0, p, start:stop]
        power[:] = 0
        for b in range(4):
            for p in range(4):
                for w in range(size):
                    power[b + p, w] ^= part[b, p, w]
        for w in range(size):
            out[0, first + w] = power[0, w] ^ power[4, w]
            out[1, first + w] = power[1, w] ^ power[4, w] ^ power[5, w]
            out[2, first + w] = power[2, w] ^ power[5, w] ^ power[6, w]
            out[3, first + w] = power[3, w] ^ power[6, w]


@kernel
def _transpose_tile(t: Words) -> None:
    """Eight 64 x 64 bit matrices side by side, t[row * 8 + matrix]."""
    mask = np.uint64(0x00000000FFFFFFFF)
    j = 32
    while j:
        shift = np.uint64(j)
        for k in range(64):
            if k & j == 0:
                for lane in range(8):
                    x, y = t[k * 8 + lane], t[(k + j) * 8 + lane]
                    d = ((x >> shift) ^ y) & mask
                    t[(k + j) * 8 + lane] = y ^ d
                    t[k * 8 + lane] = x ^ (d << shift)
        j >>= 1
        mask ^= mask << np.uint64(j)


@kernel
def _planes_to_rows(planes: Words) -> Words:
    rows = np.empty((planes.shape[1] * 64, 4), np.uint64)
    t = np.empty(512, np.uint64)
    for word in range(0, planes.shape[1], 8):
        for g in range(4):
            for p in range(64):
                for lane in range(8):
                    t[p * 8 + lane] = planes[g * 64 + p, word + lane]
            _transpose_tile(t)
            for p in range(64):
                for lane in range(8):
                    rows[(word + lane) * 64 + p, g] = t[p * 8 + lane]
    return rows


@kernel
def _rows_to_planes(rows: Words) -> Words:
    planes = np.empty((256, rows.shape[0] // 64), np.uint64)
    t = np.empty(512, np.uint64)
    for word in range(0, planes.shape[1], 8):
        for g in range(4):
            for p in range(64):
                for lane in range(8):
                    t[p * 8 + lane] = rows[(word + lane) * 64 + p, g]
            _transpose_tile(t)
            for p in range(64):
                for lane in range(8):
                    planes[g * 64 + p, word + lane] = t[p * 8 + lane]
    return planes


@kernel
def _buckets(weights: NDArray[np.uint8], messages: Words, rows: Words) -> Words:
    """buckets[k, v]: sum of the rows (and messages) whose weight has v as byte k.

    1,024 rows at a time, so that they stay in the cache for all sixteen bytes.
    """
    buckets = np.zeros((16, 256, 5), np.uint64)
    n = weights.shape[0]
    for start in range(0, n, 1024):
        for k in range(16):
            table = buckets[k]
            for i in range(start, min(start + 1024, n)):
                v = weights[i, k]
                table[v, 0] ^= rows[i, 0]
                table[v, 1] ^= rows[i, 1]
                table[v, 2] ^= rows[i, 2]
                table[v, 3] ^= rows[i, 3]
                table[v, 4] ^= messages[i]
    return buckets
