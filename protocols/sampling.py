"""The distributions of the linear query, drawn from labelled streams with integers alone.

A replay audit must reproduce every draw bit for bit on other machines, so nothing here calls the C
library's exp or log, whose last bit differs between versions (PROTOCOLS.md section 3, "no libm in
what must replay").

uniform mod p       52 bits of a word, redrawn from the same stream beyond the last multiple of p:
                    exact
ternary             floor(3 w / 2^64) - 1, further than 2^-63 from uniform nowhere
centred binomial    21 coins against 21: variance 10.5 (sigma 3.24), |e| <= 21
discrete Gaussian   Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy"
                    (2020), algorithms 1 to 3 with t = sigma: exact, integers below 2^63
Not covered         constant time: the Gaussian's running time depends on its value, as rejection
                    sampling's does
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.kernels import inlined, kernel
from protocols.ring import Q_PRIMES, Q
from protocols.streams import Stream

ERROR_BOUND = 21  # B_e of PROTOCOLS.md section 3: coins a side of the centred binomial
ERROR_VARIANCE = 10.5  # sigma_e^2 = 42 / 4
GAUSSIAN_LIMIT = 7 << 25  # largest sigma: 13^2 sigma^2 stays below 2^63

_WORDS_EACH = 48  # words that a Gaussian draw takes, generously: 28 on average


def centred_residues(stream: Stream, count: int, modulus: int) -> NDArray[np.float64]:
    """Uniform residues modulo a number below 2^22, as floats in [-(p-1)/2, (p-1)/2]."""
    out = np.empty(count)
    rejected = _centred(stream.words(count), modulus, (1 << 52) // modulus * modulus, out)
    while (
        rejected
    ):  # 2^-30 of all draws; the replacements follow in the same stream, in order of place
        bad = np.flatnonzero(np.isnan(out))
        again = np.empty(bad.size)
        rejected = _centred(stream.words(bad.size), modulus, (1 << 52) // modulus * modulus, again)
        out[bad] = again
    return out


def residues(stream: Stream, count: int, modulus: int) -> NDArray[np.int64]:
    """Uniform integers in [0, modulus), modulus below 2^22."""
    centred = centred_residues(stream, count, modulus).astype(np.int64)
    return np.where(centred < 0, centred + modulus, centred)


def uniform_mod_q(stream: Stream, count: int) -> NDArray[np.int64]:
    """Uniform integers in [0, q): a residue for each prime of q, put together."""
    total = np.zeros(count, np.int64)
    for p in Q_PRIMES:  # Chinese remainders: three terms below q each
        total += residues(stream, count, p) * pow(Q // p, -1, p) % p * (Q // p)
    return total % Q


def ternary(stream: Stream, *shape: int) -> NDArray[np.int8]:
    """Uniform in {-1, 0, 1}."""
    out = np.empty(shape, np.int8)
    _ternary(stream.words(*shape).reshape(-1), out.reshape(-1))
    return out


def centred_binomial(stream: Stream, *shape: int) -> NDArray[np.int8]:
    """Sum of 21 coins minus the sum of 21 coins."""
    out = np.empty(shape, np.int8)
    _centred_binomial(stream.words(*shape).reshape(-1), out.reshape(-1))
    return out


def discrete_gaussian(stream: Stream, count: int, sigma: int) -> NDArray[np.int64]:
    """Integers x with probability proportional to exp(-x^2 / (2 sigma^2)), sigma an integer."""
    if not 1 <= sigma <= GAUSSIAN_LIMIT:
        raise ValueError(f"sigma {sigma} is outside 1..{GAUSSIAN_LIMIT}")
    out = np.empty(count, np.int64)
    tape = stream.words(_WORDS_EACH * (count + 16))
    done, used = _discrete_gaussian(tape, sigma, out)
    while done < count:  # the draw that ran out of words starts again with the same ones and more
        tape = np.concatenate([tape[used:], stream.words(_WORDS_EACH * (count - done + 16))])
        more, used = _discrete_gaussian(tape, sigma, out[done:])
        done += more
    return out


@kernel
def _centred(words: NDArray[np.uint64], modulus: int, limit: int, out: NDArray[np.float64]) -> int:
    p, pinv, rejected = np.float64(modulus), 1.0 / np.float64(modulus), 0
    for i in range(words.size):
        x = np.int64(words[i] >> np.uint64(12))
        f = np.float64(x)
        # the nearest multiple of p, by adding and taking away 1.5 * 2^52; all of it exact below
        # 2^53
        out[i] = f - ((f * pinv + 6755399441055744.0) - 6755399441055744.0) * p
        rejected += int(x >= limit)
    if rejected:
        for i in range(words.size):
            if np.int64(words[i] >> np.uint64(12)) >= limit:
                out[i] = np.nan
    return rejected


@kernel
def _ternary(words: NDArray[np.uint64], out: NDArray[np.int8]) -> None:
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(words.size):
        upper, lower = words[i] >> half, words[i] & low
        third = (np.uint64(3) * upper + ((np.uint64(3) * lower) >> half)) >> half
        out[i] = np.int8(third) - np.int8(1)


@inlined
def _ones(x: np.uint64) -> np.uint64:
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@kernel
def _centred_binomial(words: NDArray[np.uint64], out: NDArray[np.int8]) -> None:
    mask = np.uint64((1 << 21) - 1)
    for i in range(words.size):
        heads = _ones(words[i] & mask)
        tails = _ones((words[i] >> np.uint64(21)) & mask)
        out[i] = np.int8(heads) - np.int8(tails)


@kernel
def _below(tape: NDArray[np.uint64], at: int, bound: int) -> tuple[int, int]:
    """A uniform integer in [0, bound) and the next place; a place past the end: tape too short."""
    b = np.uint64(bound)
    limit = np.uint64(0xFFFFFFFFFFFFFFFF) - np.uint64(0xFFFFFFFFFFFFFFFF) % b
    while at < tape.size:
        word = tape[at]
        at += 1
        if word < limit:
            return int(word % b), at
    return 0, at + 1


@kernel
def _bernoulli_exp(
    tape: NDArray[np.uint64], at: int, numerator: int, denominator: int
) -> tuple[bool, int]:
    """True with probability exp(-numerator/denominator), 0 <= numerator <= denominator."""
    k = 0
    while True:  # the first failure comes at trial k with an odd k with that probability
        k += 1
        value, at = _below(tape, at, denominator * k)
        if at > tape.size or value >= numerator:
            return k % 2 == 1, at


@kernel
def _discrete_gaussian(
    tape: NDArray[np.uint64], sigma: int, out: NDArray[np.int64]
) -> tuple[int, int]:
    """Fills `out` as far as the tape reaches: (draws done, words that they took)."""
    at, used, done = 0, 0, 0
    while done < out.size:
        # discrete Laplace of scale sigma: y = u + sigma * v
        y, at = _below(tape, at, sigma)
        keep, at = _bernoulli_exp(tape, at, y, sigma)
        if at > tape.size:
            break
        if not keep:
            continue
        tail = True
        while tail and at <= tape.size:
            tail, at = _bernoulli_exp(tape, at, 1, 1)
            if tail:
                y += sigma
        sign, at = _below(tape, at, 2)
        if at > tape.size:
            break
        if (sign == 1 and y == 0) or y > 14 * sigma:  # beyond: 2^-141, and would overflow
            continue
        # accepted with probability exp(-(y - sigma)^2 / (2 sigma^2))
        numerator, denominator = (y - sigma) * (y - sigma), 2 * sigma * sigma
        accept = True
        while accept and numerator > denominator and at <= tape.size:
            accept, at = _bernoulli_exp(tape, at, 1, 1)
            numerator -= denominator
        if accept:
            accept, at = _bernoulli_exp(tape, at, numerator, denominator)
        if at > tape.size:
            break
        if accept:
            out[done] = -y if sign == 1 else y
            done += 1
            used = at
    return done, used
