"""Answers to several banks of which only the sum opens (PROTOCOLS.md section 7, hybrid)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ParameterError, ProtocolError
from protocols.linear_query import Bank, Department, decode
from protocols.parameters import choose_parameters
from protocols.ring import Q

from .query_parties import Setting, setting


def with_banks(parties: Setting, names: list[str]) -> list[tuple[Bank, Department]]:
    """Every bank with tokens of the same department, parameters for the sum of all."""
    customers, tokens = parties.layout.rows * len(names), parties.parameters.tokens
    parties.parameters = choose_parameters(
        parties.layout, customers=customers, vmax=100, tokens=tokens, banks=len(names)
    )
    pairs = []
    for name in names:
        bank = parties.bank(seed=name.encode(), name=name)
        department = parties.department(querier=name)
        request = bank.request_tokens()
        bank.accept_tokens("tax", parties.layout, department.grant_tokens(request))
        pairs.append((bank, department))
    return pairs


@settings(deadline=None, max_examples=8)
@given(rows=st.integers(1, 3000), banks=st.integers(2, 5), seed=st.integers(0, 99))
def test_the_sum_of_all_banks_opens_exactly(rows: int, banks: int, seed: int) -> None:
    parties = setting(rows, (4, 7), tokens=2, seed=seed)
    names = [f"bank{i}" for i in range(banks)]
    pairs = with_banks(parties, names)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        vectors = [rng.integers(-100, 101, rows) for _ in names]
        total = np.zeros(parties.layout.columns, np.int64)
        for (bank, department), v in zip(pairs, vectors, strict=True):
            answer = department.answer_shared(bank.query(v), names)
            total = (total + bank.unmask("tax", answer)) % Q
        expected = parties.plain(np.sum(vectors, axis=0))
        np.testing.assert_array_equal(decode(parties.parameters, total), expected)


def test_one_bank_or_all_but_one_open_nothing() -> None:
    """Without the share each bank reads its own sums, and so does the sum of any two."""
    parties, names = setting(rows=900, bins=(16,), tokens=2), ["a", "b", "c"]
    pairs = with_banks(parties, names)
    v = np.ones(900, np.int64)
    plainly = [bank.unmask("tax", dep.answer(bank.query(v))) for bank, dep in pairs]
    for residues in plainly:  # the attack wins: every bank has the counts
        np.testing.assert_array_equal(decode(parties.parameters, residues), parties.plain(v))
    shared = [bank.unmask("tax", dep.answer_shared(bank.query(v), names)) for bank, dep in pairs]
    for few in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        residues = sum(shared[i] for i in few) % Q
        opened = decode(parties.parameters, residues)
        assert np.count_nonzero(opened == len(few) * parties.plain(v)) <= 1
        assert np.abs(opened).max() > 900 * len(few)  # uniform, not a little off


def test_a_token_is_answered_in_one_way_only() -> None:
    parties, names = setting(rows=50), ["a", "b", "c"]
    (bank, department), *_ = with_banks(parties, names)
    query = bank.query(np.ones(50, np.int64))
    first = department.answer_shared(query, names)
    assert department.answer_shared(query, names).w.tobytes() == first.w.tobytes()
    for other in (department.answer, department.answer_masked):
        with pytest.raises(ProtocolError, match="spent"):
            other(query)


@pytest.mark.parametrize("names", [["a"], ["b", "c"], ["a", "a", "b"]])
def test_banks_that_are_too_few_or_others_are_refused(names: list[str]) -> None:
    parties = setting(rows=50)
    (bank, department), *_ = with_banks(parties, ["a", "b", "c"])
    with pytest.raises(ParameterError, match="two or more"):
        department.answer_shared(bank.query(np.ones(50, np.int64)), names)
