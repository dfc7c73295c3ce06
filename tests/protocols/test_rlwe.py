"""Both encryptions, with the secrets of both sides and big integers."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest

from protocols import rlwe
from protocols.errors import ProtocolError
from protocols.parameters import Layout, request_ciphertexts, slots
from protocols.ring import EXTRA, EXTRA_PRIMES, INNER, OUTER, PRIMES, Q_PRIMES, P, Q
from protocols.sampling import centred_binomial, residues, ternary, uniform_mod_q
from protocols.streams import Stream

TOKENS, GROUP, GROUPS = 11, 4, 2
KEEP = GROUP * slots(TOKENS)
COINS = rlwe.JointCoins(bytes(32), b"manifest", 1, "bank", "bins")


def stream(name: str) -> Stream:
    return Stream(hashlib.sha256(name.encode()).digest())


@dataclasses.dataclass
class Exchange:
    """One batch seen from both sides."""

    hint: np.ndarray
    secrets: np.ndarray
    outer: np.ndarray
    key: list[np.ndarray]
    public_key: np.ndarray
    request: np.ndarray
    randomness: rlwe.ReplyRandomness

    def reply(self, randomness: rlwe.ReplyRandomness) -> tuple[np.ndarray, np.ndarray]:
        return rlwe.evaluate(
            self.hint, COINS, 0, self.public_key, self.request, TOKENS, GROUP, randomness, None
        )

    def phase(self, wanted: np.ndarray, others: np.ndarray, places: list[int]) -> np.ndarray:
        """c0 + c1 s in the centred big integers modulo P, at some of the wanted places."""
        c0, c1 = whole(wanted[:, :, places]), whole(others)
        out = np.empty(c0.shape, object)
        for g in range(GROUPS):
            for k, place in enumerate(places):
                rotated = np.concatenate([c1[g, place::-1], -c1[g, :place:-1]])
                value = (c0[g, k] + rotated @ self.outer.astype(object)) % P
                out[g, k] = value - P if 2 * value > P else value
        return out


def whole(x: np.ndarray) -> np.ndarray:
    """Residues (7, ...) -> integers modulo P."""
    total = np.zeros(x.shape[1:], object)
    for p, part in zip(PRIMES, x, strict=True):
        total += part.astype(object) * pow(P // p, -1, p) % p * (P // p)
    return total % P


@pytest.fixture(scope="module")
def exchange() -> Exchange:
    h = uniform_mod_q(stream("h"), GROUPS * GROUP * INNER).reshape(-1, INNER)
    outer, secrets = ternary(stream("outer"), OUTER), ternary(stream("secrets"), TOKENS, INNER)
    key = rlwe.outer_key(outer)
    errors = centred_binomial(stream("errors"), request_ciphertexts(TOKENS, GROUP), OUTER)
    key_error = centred_binomial(stream("key error"), OUTER)
    size = GROUPS * KEEP
    mu = [residues(stream(f"mu{p}"), size, p).reshape(GROUPS, KEEP) for p in Q_PRIMES]
    f = [residues(stream(f"f{p}"), size, p).reshape(GROUPS, KEEP) for p in EXTRA_PRIMES]
    return Exchange(
        hint=np.where(2 * h > Q, h - Q, h),
        secrets=secrets,
        outer=outer,
        key=key,
        public_key=rlwe.public_key(COINS, 0, key, key_error),
        request=rlwe.encrypt_secrets(COINS, 0, key, errors, secrets, GROUP, None),
        randomness=rlwe.ReplyRandomness(
            ternary(stream("u"), GROUPS, OUTER),
            centred_binomial(stream("e2"), GROUPS, OUTER),
            np.stack(mu),
            np.stack(f),
        ),
    )


def unmasked(randomness: rlwe.ReplyRandomness) -> rlwe.ReplyRandomness:
    return dataclasses.replace(
        randomness, mu=np.zeros_like(randomness.mu), f=np.zeros_like(randomness.f)
    )


PLACES = [i + slots(TOKENS) * j for j in (0, 3) for i in (0, 5, TOKENS - 1)]


def test_noise_before_masking_is_below_its_bound(exchange: Exchange) -> None:
    phase = exchange.phase(*exchange.reply(unmasked(exchange.randomness)), PLACES)
    products = exchange.hint.astype(object) @ exchange.secrets.T.astype(object)
    bound = INNER * GROUP * (Q // 2) * 21 + 2 * OUTER * 21
    for g in range(GROUPS):
        for k, place in enumerate(PLACES):
            column, token = g * GROUP + place // slots(TOKENS), place % slots(TOKENS)
            noise = (phase[g, k] - EXTRA * products[column, token]) % P
            noise = min(noise, P - noise)
            assert 1 << 50 < noise <= bound
    assert bound < EXTRA >> 13


def test_mask_is_p_mu_plus_the_same_centred_f_modulo_every_prime(exchange: Exchange) -> None:
    bare, _ = exchange.reply(unmasked(exchange.randomness))
    masked, _ = exchange.reply(exchange.randomness)
    r = (whole(masked) - whole(bare)) % P
    f = np.zeros(r.shape, object)
    for p, part in zip(EXTRA_PRIMES, exchange.randomness.f, strict=True):
        f += part.astype(object) * pow(EXTRA // p, -1, p) % p * (EXTRA // p)
    f %= EXTRA
    f = np.where(2 * f > EXTRA, f - EXTRA, f)
    mu = exchange.randomness.masks().astype(object)
    assert ((r - (EXTRA * mu + f)) % P == 0).all()


def test_bank_opens_inner_products_plus_mask_within_the_stated_error(exchange: Exchange) -> None:
    products = exchange.hint.astype(object) @ exchange.secrets.T.astype(object)
    masks = exchange.randomness.masks().reshape(-1, slots(TOKENS))[:, :TOKENS]
    for bits in (33, 40, 48):
        halves = [rlwe.round_residues(x, bits) for x in exchange.reply(exchange.randomness)]
        y = rlwe.open_reply(*halves, exchange.key, bits, None)
        error = (y.reshape(-1, slots(TOKENS))[:, :TOKENS] - products - masks) % Q
        worst = max(min(int(e), Q - int(e)) for e in error.flat)
        assert worst <= 1 + 513 * Q / 2.0**bits
        assert bits == 48 or worst > Q >> (bits - 2)  # the rounding is there, not less


def test_rounding_residues_agrees_with_big_integers() -> None:
    flat = np.stack([residues(stream(f"r{p}"), 500, p) for p in PRIMES]).astype(np.int32)
    flat[:, 0] = 0
    flat[:, 1] = [p - 1 for p in PRIMES]  # -1: rounds to 0 modulo 2^bits
    for bits in (33, 40, 48):
        expected = [(2 * int(v) * 2**bits + P) // (2 * P) % 2**bits for v in whole(flat)]
        assert rlwe.round_residues(flat, bits).tolist() == expected


def test_public_key_is_an_encryption_of_zero_under_the_public_half(exchange: Exchange) -> None:
    planes = rlwe.request_planes(exchange.public_key, 1)[:, 0]
    error = centred_binomial(stream("key error"), OUTER)
    for prime, s, pk0 in zip(rlwe.outer_primes(), exchange.key, planes, strict=True):
        a = rlwe._public_key_half(COINS, 0, prime.p)
        left = (pk0 + a.astype(np.int64) * s.astype(np.int64)) % prime.p
        right = -rlwe.transform(prime, error).astype(np.int64) % prime.p
        np.testing.assert_array_equal(left, right)


def test_threads_and_blas_order_do_not_change_a_byte(exchange: Exchange) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = exchange.reply(exchange.randomness)
    with ThreadPoolExecutor(3) as pool:
        threaded = rlwe.evaluate(
            exchange.hint,
            COINS,
            0,
            exchange.public_key,
            exchange.request,
            TOKENS,
            GROUP,
            exchange.randomness,
            pool,
        )
    for a, b in zip(alone, threaded, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("change", ["size", "residue"])
def test_malformed_request_is_refused(exchange: Exchange, change: str) -> None:
    bad = exchange.request.copy()
    if change == "size":
        bad = bad[:-8]
    else:
        bad[:4096] = 255  # residues above their prime
    with pytest.raises(ProtocolError):
        dataclasses.replace(exchange, request=bad).reply(exchange.randomness)


def test_every_field_of_the_joint_coins_changes_every_public_polynomial() -> None:
    changed = {
        "seed": bytes(31) + b"\1",
        "manifest": b"manifest2",
        "attempt": 2,
        "querier": "bank2",
        "matrix": "bins2",
    }
    seen = {COINS.context(), COINS.stream(b"label").bytes(16)}
    for name, value in changed.items():
        other = dataclasses.replace(COINS, **{name: value})
        seen |= {other.context(), other.stream(b"label").bytes(16)}
    for name in ("batch", "prime", "index"):
        seen.add(COINS.stream(b"label", **{name: 1}).bytes(16))
    # moving a byte from one field to the next must not collide
    seen.add(rlwe.JointCoins(bytes(32), b"manifest", 1, "bankb", "ins").context())
    assert len(seen) == 2 + 2 * len(changed) + 3 + 1


def test_hints_of_wide_integer_columns_are_linear_in_the_column() -> None:
    rows = 3000
    rng = np.random.default_rng(5)
    integers = rng.integers(-(1 << 24), 1 << 24, (2, rows)).astype(np.int32)
    integers[0, :2] = [1 << 24, -(1 << 24)]
    integers[1] = integers[0] // 3
    layout = Layout(rows, (), (1 << 24, 1 << 23))
    no_bins = np.zeros((0, rows), np.uint8)
    blocks = rlwe.transformed_blocks(rlwe.public_blocks(COINS, rows, None), None)
    h = rlwe.hint(layout, no_bins, integers, blocks, None).astype(object)
    units = Layout(rows, (), (1,))
    total = np.zeros((2, INNER), object)
    for bit in range(25):  # sum of the hints of the bits, with the sign
        for c in range(2):
            part = (np.sign(integers[c]) * (np.abs(integers[c]) >> bit & 1)).astype(np.int32)
            total[c] += rlwe.hint(units, no_bins, part[None], blocks, None)[0].astype(object) << bit
    assert ((h - total) % Q == 0).all()
    assert math.log2(np.abs(h).max()) < 52


def test_a_hint_summed_in_pieces_is_the_same_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 5000
    integers = np.random.default_rng(6).integers(-300, 301, (3, rows)).astype(np.int32)
    layout, no_bins = Layout(rows, (), (300,) * 3), np.zeros((0, rows), np.uint8)
    blocks = rlwe.transformed_blocks(rlwe.public_blocks(COINS, rows, None), None)
    whole_hint = rlwe.hint(layout, no_bins, integers, blocks, None)
    monkeypatch.setattr(rlwe, "_DIGIT_BLOCKS", 1)
    np.testing.assert_array_equal(rlwe.hint(layout, no_bins, integers, blocks, None), whole_hint)
