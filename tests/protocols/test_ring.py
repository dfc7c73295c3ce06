"""The kernels against big integers and schoolbook arithmetic in Python."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import ring
from protocols.errors import ProtocolError
from protocols.packing import pack, packed_bytes, unpack
from protocols.ring import INNER, OUTER, PRIMES, P, Q
from protocols.sampling import (
    ERROR_BOUND,
    ERROR_VARIANCE,
    GAUSSIAN_LIMIT,
    centred_binomial,
    discrete_gaussian,
    residues,
    ternary,
    uniform_mod_q,
)
from protocols.streams import Stream


def stream(name: str) -> Stream:
    return Stream(hashlib.sha256(name.encode()).digest())


def test_primes_are_what_the_exactness_argument_needs() -> None:
    assert math.prod(PRIMES) == P
    assert Q * 1025 < 1 << 63  # sums of b, reduced every 1024 rows
    assert Q < 1 << 53
    for p in PRIMES:
        assert all(p % d for d in range(2, math.isqrt(p) + 1))
        assert p % (2 * OUTER) == 1
        assert 2048 * ((p + 1) // 2) ** 2 + p < 1 << 53  # an inner product of 2048 residues


# ------------------------------------------------------------------------------ outer ring


@pytest.mark.parametrize("number", range(len(PRIMES)))
def test_transform_evaluates_at_the_odd_powers_of_the_root(number: int) -> None:
    prime = ring.outer_primes()[number]
    p = prime.p
    coefficients = ternary(stream("polynomial"), OUTER)
    image = ring.transform(prime, coefficients)
    root = int(prime.roots[1 << (ring.OUTER_LEVELS - 1)]) % p  # a primitive 16384th root
    known = set()
    for k in range(1, 2 * OUTER, 2):
        x = pow(root, k, p)
        if k in (1, 2 * OUTER - 1, OUTER + 1, OUTER - 1):
            powers = [1]
            for _ in range(OUTER - 1):
                powers.append(powers[-1] * x % p)
            known.add(sum(int(c) * w for c, w in zip(coefficients, powers, strict=True)) % p)
    assert known <= {int(x) % p for x in image}


@pytest.mark.parametrize("number", [0, 2, 3])
def test_pointwise_product_is_the_negacyclic_product(number: int) -> None:
    prime = ring.outer_primes()[number]
    a = residues(stream("a"), OUTER, prime.p)
    terms = [(3, 1), (17, -1), (5000, 1), (8191, -1)]  # a sparse polynomial: schoolbook is cheap
    b = np.zeros(OUTER, np.int8)
    expected = np.zeros(OUTER, object)
    for power, sign in terms:
        b[power] = sign
        expected += sign * np.concatenate([-a[OUTER - power :], a[: OUTER - power]])
    x = a.astype(np.float64)
    ring.forward(x, prime.roots, float(prime.p), prime.inverse, 0, ring.OUTER_LEVELS)
    x = x % prime.p * (ring.transform(prime, b) % prime.p) % prime.p
    ring.backward(x, prime.inverse_roots, float(prime.p), prime.inverse, 0, ring.OUTER_LEVELS)
    got = [int(v) * pow(OUTER, -1, prime.p) % prime.p for v in x]
    assert got == [int(v) % prime.p for v in expected]


@settings(deadline=None)  # the first call loads a kernel
@given(low=st.integers(0, 12), levels=st.integers(0, 13))
def test_backward_undoes_any_levels_of_forward(low: int, levels: int) -> None:
    high = min(13, low + levels)
    prime = ring.outer_primes()[3]
    original = residues(stream("x"), OUTER, prime.p).astype(np.float64)
    x = original.copy()
    ring.forward(x, prime.roots, float(prime.p), prime.inverse, low, high)
    x %= prime.p
    ring.backward(x, prime.inverse_roots, float(prime.p), prime.inverse, low, high)
    np.testing.assert_array_equal(x % prime.p, original * (1 << (high - low)) % prime.p)


# ------------------------------------------------------------------------------ inner ring


def negacyclic(a: list[int], b: list[int]) -> list[int]:
    """Schoolbook product modulo x^n + 1, b sparse."""
    n, out = len(a), [0] * len(a)
    for j, y in enumerate(b):
        if y:
            for i, x in enumerate(a):
                place, sign = (i + j, 1) if i + j < n else (i + j - n, -1)
                out[place] += sign * x * y
    return out


def blocks_of(name: str, count: int) -> np.ndarray:
    x = uniform_mod_q(stream(name), count * INNER).reshape(count, INNER)
    return np.where(2 * x > Q, x - Q, x)


def transformed(blocks: np.ndarray) -> np.ndarray:
    out = np.empty((blocks.shape[0], 4, INNER // 2))
    ring.split_transform(blocks, 0, blocks.shape[0], *ring.twiddles(), out)
    return out


def test_encryption_is_a_s_plus_e_plus_delta_v_in_big_integers() -> None:
    rows, delta = 2048 + 700, Q >> 20
    blocks = blocks_of("a", 2)
    secret = ternary(stream("s"), INNER)
    secret[40:] = 0  # schoolbook is cheap with a sparse secret
    error = centred_binomial(stream("e"), rows)
    v = np.random.default_rng(0).integers(-500_000, 500_000, rows)
    out = np.empty(rows, np.int64)
    public = ring.lanes(transformed(blocks))
    ring.encrypt(public, 0, 1, secret, error, v, delta, *ring.twiddles(), out)
    products = [negacyclic([int(x) for x in a], [int(x) for x in secret]) for a in blocks]
    flat = [x for product in products for x in product][:rows]
    expected = [(x + int(e) + delta * int(y)) % Q for x, e, y in zip(flat, error, v, strict=True)]
    assert out.tolist() == expected


def test_hint_times_secret_is_the_column_sum_of_a_s() -> None:
    rows = 2048 + 1500
    rng = np.random.default_rng(1)
    blocks, secret = blocks_of("a", 2), ternary(stream("dense"), INNER)
    bins = rng.integers(0, 11, rows).astype(np.uint8)
    digits = rng.integers(-128, 129, (3, rows)).astype(np.int16)
    out, integer_out = np.empty((11, INNER), np.int64), np.empty((3, INNER), np.int64)
    ta = transformed(blocks)
    assert ring.hint_of_feature(ta, bins, *ring.twiddles(), out) < 1e-3
    assert ring.hint_of_digits(ta, digits, *ring.twiddles(), integer_out) < 1e-3
    zero = np.zeros(rows, np.int64)
    product = np.empty(rows, np.int64)
    ring.encrypt(
        ring.lanes(ta), 0, 1, secret, zero.astype(np.int8), zero, 1, *ring.twiddles(), product
    )
    matrix = np.concatenate([bins == np.arange(11)[:, None], digits]).astype(object)
    expected = [int(x) % Q for x in matrix @ product.astype(object)]
    hints = np.concatenate([out, integer_out]).astype(object)
    assert [int(x) % Q for x in hints @ secret.astype(object)] == expected


@pytest.mark.parametrize("rows", [1, 2, 1023, 1024, 1025, 5000])
def test_sums_of_b_are_exact_at_the_largest_values(rows: int) -> None:
    b = np.full(rows, Q - 1, np.int64)
    bins, starts = np.array([[0] * rows, [1] * rows], np.uint8), np.array([0, 2])
    out = np.empty(4, np.int64)
    whole = rows * (Q - 1) % Q
    ring.bin_sums(b, bins, starts, 0, rows, out)
    assert out.tolist() == [whole, 0, 0, whole]
    ring.bin_sums(b, bins, starts, rows // 2, rows, out)
    assert out.tolist() == [
        (rows - rows // 2) * (Q - 1) % Q,
        0,
        0,
        (rows - rows // 2) * (Q - 1) % Q,
    ]
    bound = 1 << 24
    for entry in (bound, -bound, 1):
        column = np.full(rows, entry, np.int32)
        assert ring.integer_sum(b, column, bound) == entry * rows * (Q - 1) % Q


@settings(deadline=None)  # the first call loads a kernel
@given(st.lists(st.integers(0, (1 << 48) - 1), min_size=1, max_size=20), st.integers(33, 48))
def test_scaling_to_q_rounds_like_big_integers(values: list[int], bits: int) -> None:
    values = [v % (1 << bits) for v in values] + [0, 1, (1 << bits) - 1, 1 << (bits - 1)]
    array = np.array(values, np.int64)
    ring.scale_to_q(array, bits)
    assert array.tolist() == [((v * Q + (1 << (bits - 1))) >> bits) % Q for v in values]


# ------------------------------------------------------------------------------ packing


@settings(deadline=None)  # the first call loads a kernel
@given(bits=st.integers(1, 63), count=st.integers(0, 200), seed=st.integers(0, 1 << 30))
def test_packing_round_trips_and_packs_back_to_back(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, count)
    packed = pack(values, bits)
    assert packed.size == packed_bytes(count, bits)
    np.testing.assert_array_equal(unpack(packed, bits, count, 1 << bits), values)
    whole = sum(int(v) << (bits * i) for i, v in enumerate(values))
    assert packed.tobytes() == whole.to_bytes(packed.size, "little")


def test_unpacking_refuses_other_sizes_large_values_and_a_filled_tail() -> None:
    packed = pack(np.arange(10), 5)
    with pytest.raises(ProtocolError, match="expected 40 bytes"):
        unpack(packed[:-1], 5, 10, 32)
    with pytest.raises(ProtocolError, match="out of range"):
        unpack(packed, 5, 10, 9)
    with pytest.raises(ProtocolError, match="out of range"):
        unpack(packed, 5, 9, 32)  # the tenth value is the tail's
    with pytest.raises(ProtocolError):
        unpack(packed.astype(np.int8), 5, 10, 32)  # type: ignore[arg-type]  # the point


# ------------------------------------------------------------------------------ samplers


def test_uniform_residues_fill_their_range_evenly() -> None:
    x = residues(stream("uniform"), 200_000, 65537)
    assert x.min() == 0
    assert x.max() == 65536
    counts = np.bincount(x * 64 // 65537, minlength=64)
    chi_square = float(((counts - 3125.0) ** 2 / 3125.0).sum())
    assert chi_square < 130  # 63 degrees of freedom: 2^-20


def test_small_samplers_have_their_moments() -> None:
    t = ternary(stream("ternary"), 300_000)
    assert np.bincount(t + 1).tolist() == pytest.approx([100_000] * 3, rel=0.015)
    e = centred_binomial(stream("binomial"), 300_000).astype(float)
    assert np.abs(e).max() <= ERROR_BOUND
    assert e.mean() == pytest.approx(0, abs=0.03)
    assert e.var() == pytest.approx(ERROR_VARIANCE, rel=0.02)


@pytest.mark.parametrize("sigma", [1, 3, 1000, GAUSSIAN_LIMIT])
def test_discrete_gaussian_has_mean_variance_and_tail(sigma: int) -> None:
    count = 100_000
    x = discrete_gaussian(stream("gaussian"), count, sigma) / sigma
    assert x.mean() == pytest.approx(0, abs=0.02)
    assert x.var() == pytest.approx(1, rel=0.03)
    assert 3.5 < np.abs(x).max() < 6.5
    assert (x**4).mean() == pytest.approx(3, rel=0.06)


def test_discrete_gaussian_fits_its_probabilities() -> None:
    sigma, count = 4, 200_000
    x = discrete_gaussian(stream("chi-square"), count, sigma)
    places = np.arange(-12, 13)
    weights = np.exp(-(np.arange(-60, 61) ** 2) / (2 * sigma**2))
    expected = count * np.exp(-(places**2) / (2 * sigma**2)) / weights.sum()
    counts = np.array([(x == place).sum() for place in places])
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 72  # 25 places: 2^-20


def plain_gaussian(source: Stream, count: int, sigma: int) -> list[int]:
    """Canonne, Kamath and Steinke (2020), algorithms 1 to 3, word for word, in big integers."""

    def below(bound: int) -> int:
        while True:
            word = int(source.words(1)[0])
            if word < (2**64 - 1) // bound * bound:
                return word % bound

    def bernoulli_exp(gamma: Fraction) -> bool:
        while gamma > 1:
            if not bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while below(gamma.denominator * k) < gamma.numerator:
            k += 1
        return k % 2 == 1

    drawn = []
    while len(drawn) < count:
        u = below(sigma)
        if not bernoulli_exp(Unreduced(u, sigma)):
            continue
        y = u
        while bernoulli_exp(Fraction(1)):
            y += sigma
        sign = below(2)
        if sign == 1 and y == 0:
            continue
        if bernoulli_exp(Unreduced((y - sigma) ** 2, 2 * sigma**2)):
            drawn.append(-y if sign else y)
    return drawn


class Unreduced(Fraction):
    """A fraction that keeps its terms: the draw depends on them."""

    def __new__(cls, numerator: int, denominator: int) -> Unreduced:
        self = super().__new__(cls, numerator, denominator)
        self._numerator, self._denominator = numerator, denominator
        return self

    def __sub__(self, other: object) -> Unreduced:
        assert other == 1
        return Unreduced(self._numerator - self._denominator, self._denominator)


@pytest.mark.parametrize("sigma", [1, 5, 10_485_997])
def test_discrete_gaussian_follows_the_paper_word_for_word(sigma: int) -> None:
    drawn = discrete_gaussian(stream("paper"), 40, sigma)
    assert drawn.tolist() == plain_gaussian(stream("paper"), 40, sigma)


def test_discrete_gaussian_known_answer() -> None:
    """Replays depend on these values: a change here is a new version of the protocol."""
    drawn = discrete_gaussian(Stream(bytes(range(32))), 8, 10_485_997)
    assert drawn.tolist() == [
        -176029, -10956483, 3519465, 12464766, 19932441, -4018511, 20011769, -3961927,
    ]  # fmt: skip


def test_discrete_gaussian_does_not_depend_on_how_words_arrive() -> None:
    long = discrete_gaussian(stream("tape"), 5000, 77)
    assert long[:3].tolist() == discrete_gaussian(stream("tape"), 3, 77).tolist()
