"""Arithmetic of the two rings of the linear query, exact, in float64 (PROTOCOLS.md section 3).

Inner ring   Z_q[x]/(x^2048 + 1), q = 65537 * 163841 * 786433 = 2^52.9. Every product has one factor
             with small coefficients, so it is computed over the integers by a complex transform,
             the large factor cut into two halves of 27 bits, and reduced modulo q at the end: half
             the time of transforms modulo the primes. R[x]/(x^2048 + 1) is C[x]/(x^1024 - i); eight
             transforms run side by side in the lanes.
Outer ring   Z_P[x]/(x^8192 + 1), P = q * four primes of 22 bits = 2^140.5, by number-theoretic
             transforms modulo the seven primes. With p < 2^22 - 2^14 an inner product of 2048
             centred residues stays below 2^53: float64 multiplication, addition and BLAS are exact,
             and the result is the same on every machine.

A residue is "centred" in [-(p-1)/2, (p-1)/2]; a transform's levels are numbered from 0, so that
`forward(0, k)` leaves 2^k polynomials of degree 8192 / 2^k (a partly transformed polynomial).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocols.kernels import inlined, kernel

Floats = NDArray[np.float64]

INNER = 2048
OUTER, OUTER_LEVELS = 8192, 13
Q_PRIMES = (786433, 163841, 65537)
Q = 786433 * 163841 * 65537
EXTRA_PRIMES = (4079617, 4046849, 3850241, 3735553)
EXTRA = 4079617 * 4046849 * 3850241 * 3735553  # P' of the protocol
PRIMES = Q_PRIMES + EXTRA_PRIMES
P = Q * EXTRA

_HALF, _LEVELS, LANES = INNER // 2, 10, 8
_ROUND = 6755399441055744.0  # 1.5 * 2^52: (x + it) - it is x rounded to the nearest integer
_UNIT = 1.0 / _HALF  # exact
_OVER_Q = 1.0 / Q
_CUT = 27  # bits of the lower half of a residue modulo q


# ------------------------------------------------------------------------------ outer ring


@dataclass(frozen=True, slots=True)
class Prime:
    """One prime with its powers of the 16384th root of unity, in bit-reversed order."""

    p: int
    roots: Floats = field(repr=False)
    inverse_roots: Floats = field(repr=False)

    @property
    def bits(self) -> int:
        return self.p.bit_length()

    @property
    def inverse(self) -> float:
        return 1.0 / self.p

    def centre(self, x: int) -> float:
        x %= self.p
        return float(x - self.p if 2 * x > self.p else x)


@cache
def outer_primes() -> tuple[Prime, ...]:
    """The seven primes of P with their tables, made at first use."""
    order = [int(format(i, f"0{OUTER_LEVELS}b")[::-1], 2) for i in range(OUTER)]
    return tuple(_prime(p, np.array(order)) for p in PRIMES)


def _prime(p: int, order: NDArray[np.int64]) -> Prime:
    generator = next(
        pow(g, (p - 1) // (2 * OUTER), p)
        for g in range(2, 100)
        if pow(g, (p - 1) // 2, p) == p - 1  # a non-residue's power has order exactly 2 * OUTER
    )
    return Prime(p, _powers(generator, p)[order], _powers(pow(generator, -1, p), p)[order])


def _powers(base: int, p: int) -> Floats:
    powers = np.ones(OUTER, np.int64)
    for k in range(OUTER_LEVELS):  # doubling: the second half is the first times base^(2^k)
        powers[1 << k : 2 << k] = powers[: 1 << k] * pow(base, 1 << k, p) % p
    return np.where(2 * powers > p, powers - p, powers).astype(np.float64)


@inlined
def reduce(x: float, p: float, pinv: float) -> float:
    """A centred residue of x (up to one unit at the very ends), |x| < 2^51 p."""
    return x - ((x * pinv + _ROUND) - _ROUND) * p


@inlined
def canonical(x: float, p: float, pinv: float) -> np.int32:
    """The residue of x in [0, p), as an integer."""
    v = reduce(x, p, pinv)
    return np.int32(v if v >= 0 else v + p)


@inlined
def _forward_last(a: Floats, r1: Floats, r2: Floats, r3: Floats, p: float, pinv: float) -> None:
    """The last three levels at once: butterflies are too short there to vectorise along them."""
    for i in range(r1.size):
        o, w = 8 * i, r1[i]
        a4, a5 = reduce(a[o + 4] * w, p, pinv), reduce(a[o + 5] * w, p, pinv)
        a6, a7 = reduce(a[o + 6] * w, p, pinv), reduce(a[o + 7] * w, p, pinv)
        b0, b1, b4, b5 = a[o] + a4, a[o + 1] + a5, a[o] - a4, a[o + 1] - a5
        b2, b3, b6, b7 = a[o + 2] + a6, a[o + 3] + a7, a[o + 2] - a6, a[o + 3] - a7
        u, v = r2[2 * i], r2[2 * i + 1]
        b2, b3 = reduce(b2 * u, p, pinv), reduce(b3 * u, p, pinv)
        b6, b7 = reduce(b6 * v, p, pinv), reduce(b7 * v, p, pinv)
        c0, c1, c2, c3 = b0 + b2, b1 + b3, b0 - b2, b1 - b3
        c4, c5, c6, c7 = b4 + b6, b5 + b7, b4 - b6, b5 - b7
        c1, c3 = reduce(c1 * r3[4 * i], p, pinv), reduce(c3 * r3[4 * i + 1], p, pinv)
        c5, c7 = reduce(c5 * r3[4 * i + 2], p, pinv), reduce(c7 * r3[4 * i + 3], p, pinv)
        a[o], a[o + 1], a[o + 2], a[o + 3] = c0 + c1, c0 - c1, c2 + c3, c2 - c3
        a[o + 4], a[o + 5], a[o + 6], a[o + 7] = c4 + c5, c4 - c5, c6 + c7, c6 - c7


@inlined
def _backward_last(a: Floats, r1: Floats, r2: Floats, r3: Floats, p: float, pinv: float) -> None:
    """Undoes `_forward_last` up to the factor 8."""
    for i in range(r1.size):
        o, u, v, w = 8 * i, r2[2 * i], r2[2 * i + 1], r1[i]
        a0, a1, a2, a3 = a[o], a[o + 1], a[o + 2], a[o + 3]
        a4, a5, a6, a7 = a[o + 4], a[o + 5], a[o + 6], a[o + 7]
        b0, b1 = a0 + a1, reduce((a0 - a1) * r3[4 * i], p, pinv)
        b2, b3 = a2 + a3, reduce((a2 - a3) * r3[4 * i + 1], p, pinv)
        b4, b5 = a4 + a5, reduce((a4 - a5) * r3[4 * i + 2], p, pinv)
        b6, b7 = a6 + a7, reduce((a6 - a7) * r3[4 * i + 3], p, pinv)
        c0, c1 = b0 + b2, b1 + b3
        c2, c3 = reduce((b0 - b2) * u, p, pinv), reduce((b1 - b3) * u, p, pinv)
        c4, c5 = b4 + b6, b5 + b7
        c6, c7 = reduce((b4 - b6) * v, p, pinv), reduce((b5 - b7) * v, p, pinv)
        a[o], a[o + 1], a[o + 2], a[o + 3] = c0 + c4, c1 + c5, c2 + c6, c3 + c7
        a[o + 4], a[o + 5] = reduce((c0 - c4) * w, p, pinv), reduce((c1 - c5) * w, p, pinv)
        a[o + 6], a[o + 7] = reduce((c2 - c6) * w, p, pinv), reduce((c3 - c7) * w, p, pinv)


@kernel
def forward(a: Floats, roots: Floats, p: float, pinv: float, low: int, high: int) -> None:
    """Levels low..high-1 of the negacyclic transform, in place; |a| grows by p/2 a level."""
    last = a.size >> high == 1 and high - low >= 3
    if last:
        high -= 3
    if (high - low) % 2:
        t = a.size >> (low + 1)
        for i in range(1 << low):
            w, k = roots[(1 << low) + i], 2 * i * t
            x, y = a[k : k + t], a[k + t : k + 2 * t]
            for j in range(t):
                u, v = x[j], reduce(y[j] * w, p, pinv)
                x[j] = u + v
                y[j] = u - v
        low += 1
    for level in range(
        low, high, 2
    ):  # two levels in one pass over memory; slices let LLVM vectorise
        m, t = 1 << level, a.size >> (level + 2)
        for i in range(m):
            w1, w2, w3 = roots[m + i], roots[2 * m + 2 * i], roots[2 * m + 2 * i + 1]
            k = 4 * i * t
            a0, a1 = a[k : k + t], a[k + t : k + 2 * t]
            a2, a3 = a[k + 2 * t : k + 3 * t], a[k + 3 * t : k + 4 * t]
            for j in range(t):
                x0, x1 = a0[j], a1[j]
                y2, y3 = reduce(a2[j] * w1, p, pinv), reduce(a3[j] * w1, p, pinv)
                y0, y1 = x0 + y2, reduce((x1 + y3) * w2, p, pinv)
                z0, z1 = x0 - y2, reduce((x1 - y3) * w3, p, pinv)
                a0[j] = y0 + y1
                a1[j] = y0 - y1
                a2[j] = z0 + z1
                a3[j] = z0 - z1
    if last:
        n = a.size // 8
        _forward_last(a, roots[n : 2 * n], roots[2 * n : 4 * n], roots[4 * n : 8 * n], p, pinv)


@inlined
def _backward_levels(
    a: Floats,
    roots: Floats,
    p: float,
    pinv: float,
    part: int,
    first: int,
    steps: int,
    low: int,
    high: int,
) -> None:
    """Levels high-1..low on one of the 2^first parts, `steps` levels after the last reduction."""
    for level in range(high - 1, low - 1, -1):
        m, t = 1 << (level - first), a.size >> (level - first + 1)
        squeeze = (
            high - 1 - level + steps
        ) % 6 == 5  # sums double a level: 2^6 p times a root fits
        for i in range(m):
            w, k = roots[(1 << level) + part * m + i], 2 * i * t
            x, y = a[k : k + t], a[k + t : k + 2 * t]
            if squeeze:
                for j in range(t):
                    u, v = x[j], y[j]
                    x[j] = reduce(u + v, p, pinv)
                    y[j] = reduce((u - v) * w, p, pinv)
            else:
                for j in range(t):
                    u, v = x[j], y[j]
                    x[j] = u + v
                    y[j] = reduce((u - v) * w, p, pinv)


@kernel
def backward(a: Floats, roots: Floats, p: float, pinv: float, low: int, high: int) -> None:
    """Undoes `forward(low, high)` up to the factor 2^(high - low); `roots` are the inverse ones.

    Part by part as long as a part is whole, so that it stays in L1.
    """
    cut = min(high, max(low, 2))
    size = a.size >> 2
    if cut >= 2:
        last = 3 if a.size >> high == 1 and high - cut >= 3 else 0
        for part in range(4):
            x = a[part * size : (part + 1) * size]
            if last:
                n = a.size // 8
                r1, r2, r3 = roots[n : 2 * n], roots[2 * n : 4 * n], roots[4 * n : 8 * n]
                i, j = part * (n // 4), (part + 1) * (n // 4)
                _backward_last(x, r1[i:j], r2[2 * i : 2 * j], r3[4 * i : 4 * j], p, pinv)
            _backward_levels(x, roots, p, pinv, part, 2, last, cut, high - last)
        _backward_levels(a, roots, p, pinv, 0, 0, high - cut, low, cut)
    else:
        _backward_levels(a, roots, p, pinv, 0, 0, 0, low, high)


@kernel
def _centre(a: Floats, p: float, pinv: float) -> None:
    for j in range(a.size):
        a[j] = reduce(a[j], p, pinv)


def transform(prime: Prime, coefficients: NDArray[np.int8]) -> Floats:
    """All levels of a small polynomial's transform, centred."""
    out = coefficients.astype(np.float64)
    forward(out, prime.roots, float(prime.p), prime.inverse, 0, OUTER_LEVELS)
    _centre(out, float(prime.p), prime.inverse)
    return out


# ------------------------------------------------------------------------------ inner ring


@cache
def twiddles() -> tuple[Floats, Floats]:
    """cos and sin of the roots that split x^1024 - i level by level."""
    angles = [0.25]  # of a full turn, exact in binary
    table = np.zeros(_HALF, np.complex128)
    m = 1
    while m < _HALF:
        table[m : 2 * m] = np.exp(2j * np.pi * np.array(angles) / 2)
        angles = [half for f in angles for half in (f / 2, f / 2 + 0.5)]
        m *= 2
    return np.ascontiguousarray(table.real), np.ascontiguousarray(table.imag)


@inlined
def _complex_levels(
    re: Floats, im: Floats, cos: Floats, sin: Floats, part: int, first: int, low: int, high: int
) -> None:
    """Levels low..high-1 on one of the 2^first parts of a transform."""
    for level in range(low, high):
        m, t = 1 << (level - first), re.size >> (level - first + 1)
        for i in range(m):
            w = (1 << level) + part * m + i
            k, wr, wi = 2 * i * t, cos[w], sin[w]
            a, b = re[k : k + t], im[k : k + t]
            c, d = re[k + t : k + 2 * t], im[k + t : k + 2 * t]
            for j in range(t):
                xr, xi = c[j] * wr - d[j] * wi, c[j] * wi + d[j] * wr
                ar, ai = a[j], b[j]
                a[j], b[j], c[j], d[j] = ar + xr, ai + xi, ar - xr, ai - xi


@kernel
def _complex_forward(re: Floats, im: Floats, cos: Floats, sin: Floats) -> None:
    """In place; after two levels part by part, so that a part of eight transforms stays in L1."""
    _complex_levels(re, im, cos, sin, 0, 0, 0, 2)
    size = re.size // 4
    for part in range(4):
        x, y = re[part * size : (part + 1) * size], im[part * size : (part + 1) * size]
        _complex_levels(x, y, cos, sin, part, 2, 2, _LEVELS)


@inlined
def _complex_levels_back(
    re: Floats, im: Floats, cos: Floats, sin: Floats, part: int, first: int, low: int, high: int
) -> None:
    for level in range(high - 1, low - 1, -1):
        m, t = 1 << (level - first), re.size >> (level - first + 1)
        for i in range(m):
            w = (1 << level) + part * m + i
            k, wr, wi = 2 * i * t, cos[w], sin[w]
            a, b = re[k : k + t], im[k : k + t]
            c, d = re[k + t : k + 2 * t], im[k + t : k + 2 * t]
            for j in range(t):
                ar, ai = a[j] + c[j], b[j] + d[j]
                xr, xi = a[j] - c[j], b[j] - d[j]
                a[j], b[j], c[j], d[j] = ar, ai, xr * wr + xi * wi, xi * wr - xr * wi


@kernel
def _complex_backward(re: Floats, im: Floats, cos: Floats, sin: Floats) -> None:
    """Undoes `_complex_forward` up to the factor 1024."""
    size = re.size // 4
    for part in range(4):
        x, y = re[part * size : (part + 1) * size], im[part * size : (part + 1) * size]
        _complex_levels_back(x, y, cos, sin, part, 2, 2, _LEVELS)
    _complex_levels_back(re, im, cos, sin, 0, 0, 0, 2)


@kernel
def split_transform(
    a: NDArray[np.int64], start: int, stop: int, cos: Floats, sin: Floats, out: Floats
) -> None:
    """Blocks start..stop of centred integers (blocks, 2048) -> transforms of both halves.

    out: (blocks, 4, 1024): real and imaginary part of the upper half, then of the lower one.
    """
    bias, mask = 1 << (_CUT - 1), (1 << _CUT) - 1
    for k in range(start, stop):
        for j in range(_HALF):
            x, y = a[k, j] + bias, a[k, j + _HALF] + bias
            out[k, 0, j], out[k, 1, j] = x >> _CUT, y >> _CUT
            out[k, 2, j], out[k, 3, j] = (x & mask) - bias, (y & mask) - bias
        _complex_forward(out[k, 0], out[k, 1], cos, sin)
        _complex_forward(out[k, 2], out[k, 3], cos, sin)


@kernel
def lanes(transformed: Floats) -> Floats:
    """(blocks, 4, 1024) -> (groups of 8 blocks, 4, 1024 * 8): the layout of `encrypt`."""
    out = np.zeros((-(-transformed.shape[0] // LANES), 4, _HALF * LANES))
    for k in range(transformed.shape[0]):
        for r in range(4):
            for j in range(_HALF):
                out[k // LANES, r, j * LANES + k % LANES] = transformed[k, r, j]
    return out


@inlined
def _join(upper: int, lower: int) -> int:
    """(2^27 upper + lower) mod q, about centred; the integers wrap, their difference is small."""
    k = int(np.rint((np.float64(upper) * 134217728.0 + np.float64(lower)) * _OVER_Q))
    return (upper << _CUT) + lower - k * Q


@kernel
def encrypt(
    blocks: Floats,
    start: int,
    stop: int,
    secret: NDArray[np.int8],
    error: NDArray[np.int8],
    v: NDArray[np.int64],
    delta: int,
    cos: Floats,
    sin: Floats,
    out: NDArray[np.int64],
) -> None:
    """Groups start..stop (of 8 blocks) of b = a s + e + delta v mod q, row by row; a as `lanes`."""
    sr, si = secret[:_HALF].astype(np.float64), secret[_HALF:].astype(np.float64)
    _complex_forward(sr, si, cos, sin)
    w, products = np.empty((4, _HALF * LANES)), np.empty((2, _HALF * LANES), np.int64)
    for g in range(start, stop):
        for j in range(_HALF):
            for x in range(j * LANES, j * LANES + LANES):
                for r in range(0, 4, 2):
                    w[r, x] = blocks[g, r, x] * sr[j] - blocks[g, r + 1, x] * si[j]
                    w[r + 1, x] = blocks[g, r, x] * si[j] + blocks[g, r + 1, x] * sr[j]
        _complex_backward(w[0], w[1], cos, sin)
        _complex_backward(w[2], w[3], cos, sin)
        for r in range(2):
            upper, lower, joined = w[r], w[2 + r], products[r]
            for k in range(_HALF * LANES):
                joined[k] = _join(int(np.rint(upper[k] * _UNIT)), int(np.rint(lower[k] * _UNIT)))
        for lane in range(LANES):
            at = (g * LANES + lane) * INNER
            for j in range(min(INNER, v.size - at)):
                product = products[j // _HALF, j % _HALF * LANES + lane]
                b = product + error[at + j] + delta * v[at + j]
                # both large terms are within q/2 (parameters.py: limb_max < 2^(t-1)); a division
                # would cost as much as the transform
                b += Q if b < 0 else 0
                out[at + j] = b - Q if b >= Q else b


@inlined
def _accumulate(acc: Floats, re: Floats, im: Floats, block: Floats) -> None:
    for j in range(_HALF):
        hr, hi, lr, li = block[0, j], block[1, j], block[2, j], block[3, j]
        for x in range(j * LANES, j * LANES + LANES):
            u, v = re[x], im[x]
            acc[0, x] += u * hr - v * hi
            acc[1, x] += u * hi + v * hr
            acc[2, x] += u * lr - v * li
            acc[3, x] += u * li + v * lr


@kernel
def _unload(acc: Floats, cos: Floats, sin: Floats, out: NDArray[np.int64]) -> float:
    """Accumulated transforms -> reversed coefficients mod q, centred. Returns the worst error."""
    _complex_backward(acc[0], acc[1], cos, sin)
    _complex_backward(acc[2], acc[3], cos, sin)
    worst = 0.0
    for j in range(INNER):
        r, k = (0, j) if j < _HALF else (1, j - _HALF)
        for lane in range(out.shape[0]):
            u, v = acc[r, k * LANES + lane] / _HALF, acc[2 + r, k * LANES + lane] / _HALF
            worst = max(worst, max(abs(u - np.rint(u)), abs(v - np.rint(v))))
            h = _join(int(np.rint(u)), int(np.rint(v)))
            if j == 0:
                out[lane, 0] = h
            else:
                out[lane, INNER - j] = -h
    return worst


@kernel
def hint_of_feature(
    transformed: Floats, bins: NDArray[np.uint8], cos: Floats, sin: Floats, out: NDArray[np.int64]
) -> float:
    """Hints of one feature's one-hot columns: out[c] = reversed sum_k P_{c,k} a_k mod q, centred.

    P_{c,k} = sum over rows i of block k with bins[i] == c of x^-i. out: (bins, 2048). Returns the
    largest distance from an integer before rounding.
    """
    worst, size, rows = 0.0, _HALF * LANES, bins.size
    re, im = np.empty(size + 1), np.empty(size + 1)  # the last place takes the rows of other lanes
    for first in range(0, out.shape[0], LANES):
        acc = np.zeros((4, size))
        for k in range(transformed.shape[0]):
            re[:], im[:] = 0.0, 0.0
            at, count = k * INNER, min(rows - k * INNER, INNER)
            c = np.int64(bins[at]) - first
            re[c if 0 <= c < LANES else size] = 1.0
            # x^-i = -x^(2048-i), the imaginary part while 2048 - i >= 1024
            for i in range(1, min(count, _HALF + 1)):
                c = np.int64(bins[at + i]) - first
                im[(_HALF - i) * LANES + c if 0 <= c < LANES else size] = -1.0
            for i in range(_HALF + 1, count):
                c = np.int64(bins[at + i]) - first
                re[(INNER - i) * LANES + c if 0 <= c < LANES else size] = -1.0
            _complex_forward(re[:size], im[:size], cos, sin)
            _accumulate(acc, re, im, transformed[k])
        last = min(first + LANES, out.shape[0])
        worst = max(worst, _unload(acc, cos, sin, out[first:last]))
    return worst


@kernel
def hint_of_digits(
    transformed: Floats, digits: NDArray[np.int16], cos: Floats, sin: Floats, out: NDArray[np.int64]
) -> float:
    """As `hint_of_feature`, for up to 8 columns of small integers. digits: (columns, rows)."""
    size, columns, rows = _HALF * LANES, digits.shape[0], digits.shape[1]
    re, im, acc = np.empty(size), np.empty(size), np.zeros((4, size))
    for k in range(transformed.shape[0]):
        re[:], im[:] = 0.0, 0.0
        at, count = k * INNER, min(rows - k * INNER, INNER)
        for lane in range(columns):
            re[lane] = digits[lane, at]
            for i in range(1, min(count, _HALF + 1)):
                im[(_HALF - i) * LANES + lane] = -np.float64(digits[lane, at + i])
            for i in range(_HALF + 1, count):
                re[(INNER - i) * LANES + lane] = -np.float64(digits[lane, at + i])
        _complex_forward(re, im, cos, sin)
        _accumulate(acc, re, im, transformed[k])
    return _unload(acc, cos, sin, out)


# ------------------------------------------------------------------------------ sums of b


_SUM_ROWS = 512  # a block of b that stays in L1 while every feature passes over it


@kernel
def bin_sums(
    b: NDArray[np.int64],
    bins: NDArray[np.uint8],
    starts: NDArray[np.int64],
    first: int,
    last: int,
    out: NDArray[np.int64],
) -> None:
    """out[starts[f] + c] = sum of b[i] over rows first..last with bins[f, i] == c, mod q.

    b: values in [0, q). Brought near nought after every block: 2 q + 512 q < 2^63. Two
    accumulators, so that equal neighbours do not wait.
    """
    x, y = np.zeros(out.size, np.int64), np.zeros(out.size, np.int64)
    for low in range(first, last, _SUM_ROWS):
        high = min(last, low + _SUM_ROWS)
        for f in range(bins.shape[0]):
            row, part, to_x, to_y = bins[f, low:high], b[low:high], x[starts[f] :], y[starts[f] :]
            pairs = (high - low) // 2
            for k in range(pairs):
                i = np.uint64(2 * k)
                j = i + np.uint64(1)
                to_x[np.uint64(row[i])] += part[i]
                to_y[np.uint64(row[j])] += part[j]
            if (high - low) % 2:
                to_x[np.uint64(row[high - low - 1])] += part[high - low - 1]
        for c in range(out.size):  # an estimate of the quotient, off by one at most
            x[c] -= np.int64(np.float64(x[c]) * _OVER_Q) * Q
            y[c] -= np.int64(np.float64(y[c]) * _OVER_Q) * Q
    for c in range(out.size):
        out[c] = (x[c] + y[c]) % Q


@kernel
def integer_sum(b: NDArray[np.int64], column: NDArray[np.int32], bound: int) -> int:
    """sum_i column[i] b[i] mod q, |column| <= bound <= 2^24; b cut into two halves of 27 bits."""
    step = (1 << 35) // bound  # so that a sum of bound * 2^27 stays below 2^62
    mask, total = (1 << _CUT) - 1, 0
    for low in range(0, b.size, step):
        upper, lower = 0, 0
        for i in range(low, min(b.size, low + step)):
            upper += np.int64(column[i]) * (b[i] >> _CUT)
            lower += np.int64(column[i]) * (b[i] & mask)
        upper %= Q
        for _ in range(3):
            upper = (upper << 9) % Q  # 53 + 9 bits
        total = (total + upper + lower % Q) % Q
    return total


# ------------------------------------------------------------------------------ exact scaling

_FRACTION = 32


def reciprocals(primes: tuple[int, ...]) -> NDArray[np.uint64]:
    """(2, primes): the 64 bits of 1/p behind the point, and the next 32."""
    whole = [(1 << (64 + _FRACTION)) // p for p in primes]
    return np.array([[w >> _FRACTION for w in whole], [w & 0xFFFFFFFF for w in whole]], np.uint64)


@inlined
def fraction(z: int, upper: np.uint64, lower: np.uint64) -> np.uint64:
    """z / p modulo 1 in units of 2^-64, z in [0, p); integers only, so equal on every machine."""
    return np.uint64(z) * upper + ((np.uint64(z) * lower) >> np.uint64(_FRACTION))


@kernel
def scale_to_q(values: NDArray[np.int64], bits: int) -> None:
    """round(value q / 2^bits) mod q, in place; 32 < bits < 53, values in [0, 2^bits)."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    q0, q1 = np.uint64(Q & 0xFFFFFFFF), np.uint64(Q >> 32)
    flat = values.reshape(-1)
    for i in range(flat.size):
        y = np.uint64(flat[i])
        y0, y1 = y & mask, y >> half
        low, middle, high = y0 * q0, y1 * q0 + y0 * q1, y1 * q1
        total = low + (middle << half)
        high += (middle >> half) + np.uint64(total < low)
        rounded = total + (np.uint64(1) << np.uint64(bits - 1))
        high += np.uint64(rounded < total)
        scaled = (high << np.uint64(64 - bits)) | (rounded >> np.uint64(bits))
        flat[i] = np.int64(scaled) % Q


assert math.prod(PRIMES) == P  # noqa: S101  # the written constants agree, whoever edits them
