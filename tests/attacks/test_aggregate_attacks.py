"""What tables, replies and noise show where they are drawn badly (CRYPTO_REVIEW.md F2, F4, F9).

Each attack wins with one defence off, and loses with it on.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from federation.tasks.binning import WOE_LIMIT, weight_of_evidence
from protocols import rlwe
from protocols.linear_query import Department
from protocols.packing import unpack
from protocols.ring import OUTER
from protocols.sampling import discrete_gaussian
from protocols.streams import Stream

from ..protocols.query_parties import setting

Integers = NDArray[np.int64]

# --- F2: WOE tables that go to a department -------------------------------------------------------


def exact_woe(customers: Integers, bads: Integers) -> NDArray[np.float64]:
    """Not rounded, as any textbook has it."""
    goods = customers - bads
    return np.log((goods / bads) / (goods.sum() / bads.sum()))


def newcomer(before: NDArray[np.float64], after: NDArray[np.float64]) -> int:
    """A department's guess at the bin of one firm that is new this month.

    The totals move all bins by the same; the newcomer's moves by more.
    """
    moved = after - before
    return int(np.argmax(np.abs(moved - np.median(moved))))


def months(seed: int) -> tuple[Integers, Integers, int]:
    rng = np.random.default_rng(seed)
    customers = rng.integers(800, 1200, 12).astype(np.int64)
    bads = (customers * rng.uniform(0.1, 0.4, 12)).astype(np.int64)
    return customers, bads, int(rng.integers(12))


def test_exact_tables_show_goods_to_bads_and_where_a_single_newcomer_is() -> None:
    named = 0
    for seed in range(60):
        customers, bads, at = months(seed)
        before = exact_woe(customers, bads)
        more = np.eye(12, dtype=np.int64)[at]
        named += newcomer(before, exact_woe(customers + more, bads + more)) == at
    assert named == 60
    customers, bads, _ = months(0)
    ratio = Fraction(math.exp(before_ratio(customers, bads))).limit_denominator(10**6)
    goods = customers - bads
    assert ratio == Fraction(int(goods[0] * bads[1]), int(bads[0] * goods[1]))


def before_ratio(customers: Integers, bads: Integers) -> float:
    woe = exact_woe(customers, bads)
    return float(woe[0] - woe[1])


def test_tables_in_steps_hardly_ever_move_with_a_newcomer() -> None:
    named = seen = 0
    for seed in range(200):
        customers, bads, at = months(seed)
        before = weight_of_evidence(customers, bads).astype(np.float64)
        more = np.eye(12, dtype=np.int64)[at]
        after = weight_of_evidence(customers + more, bads + more).astype(np.float64)
        assert np.abs(after).max() <= WOE_LIMIT
        seen += int((after != before).any())
        named += int((after != before).any() and newcomer(before, after) == at)
    assert named <= seen <= 60  # by chance 1 of 12; a bin moves where its value is near a half step
    assert named < 200 * 0.25


# --- F4: replies whose randomness does not know its batch -----------------------------------------


class Forgetful(Department):
    """Draws by label alone, as the first prototype did."""

    def _stream(self, label: bytes, batch: int, column: int, inputs: bytes) -> Stream:
        return super()._stream(label, 0, column, b"")


def difference_of_replies(cls: type[Department], seed: bytes) -> tuple[Integers, int]:
    """c1 of two batches, subtracted: what a bank can do with what it got. And its modulus."""
    parties = setting(rows=2500, tokens=16)
    bank, department = parties.bank(), parties.department(cls, seed)
    department.commit()
    bits = parties.parameters.reply_bits
    groups = -(-parties.layout.columns // parties.parameters.columns_per_reply)
    halves = []
    for _ in range(2):
        reply = department.grant_tokens(bank.request_tokens(8))
        halves.append(unpack(reply.others, bits, groups * OUTER, 1 << bits))
    return ((halves[0] - halves[1]) % (1 << bits))[: (groups - 1) * OUTER], 1 << bits


@pytest.mark.parametrize(("cls", "wins"), [(Forgetful, True), (Department, False)])
def test_equal_randomness_in_two_batches_leaves_the_hint_alone(
    cls: type[Department], wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With u and e2 cancelled, what is left is a known linear map of the hint, for every seed.

    The other half of the defence, a public key for each batch, is off in both cases.
    """
    whole = rlwe._public_key_half
    monkeypatch.setattr(rlwe, "_public_key_half", lambda coins, batch, p: whole(coins, 0, p))
    (one, modulus), (other, _) = (difference_of_replies(cls, seed) for seed in (b"one", b"other"))
    apart = (one - other) % modulus
    assert bool((np.minimum(apart, modulus - apart) <= 4).all()) is wins


# --- F9: noise with an edge -----------------------------------------------------------------------


def test_noise_with_an_edge_tells_some_signs_for_certain_and_ours_none() -> None:
    """M^T e shifts each answer by x; who sees a value that only a positive x can give knows it."""
    delta, count = 1 << 27, 40_000
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], count)
    x = signs * (delta // 6000)
    edge = delta // 4
    uniform = rng.integers(-edge, edge + 1, count) + x
    certain = np.abs(uniform) > edge
    assert certain.sum() >= 10
    assert (np.sign(uniform[certain]) == signs[certain]).all()
    sigma = delta // 24
    ours = discrete_gaussian(Stream(bytes(32)), count, sigma) + x
    # log odds of x > 0 against x < 0, given the value
    odds = 2.0 * np.abs(ours) * abs(int(x[0])) / float(sigma) ** 2
    assert odds.max() < 0.06
