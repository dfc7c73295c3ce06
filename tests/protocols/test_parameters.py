"""The four conditions of PROTOCOLS.md section 3, the sizes and the limbs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ParameterError
from protocols.parameters import Layout, Parameters, check_parameters, choose_parameters
from protocols.ring import Q

REFERENCE = Layout(100_000, (32,) * 20)


def test_example_of_the_protocols_page() -> None:
    """t = 26 and vmax 511 allow n_c up to 65,664."""
    parameters = Parameters(t_bits=26, reply_bits=41, vmax=511, tokens=100)
    check_parameters(parameters, REFERENCE, customers=65_664)
    with pytest.raises(ParameterError, match="lower vmax"):
        check_parameters(parameters, REFERENCE, customers=65_665)


def test_counts_from_the_count_query_replace_the_worst_case() -> None:
    parameters = Parameters(t_bits=26, reply_bits=41, vmax=511, tokens=100)
    sums = np.full(640, 60_000)
    check_parameters(parameters, REFERENCE, customers=100_000, column_sums=sums)
    sums[7] = 97_000
    with pytest.raises(ParameterError, match="lower vmax"):
        check_parameters(parameters, REFERENCE, customers=100_000, column_sums=sums)
    wider = dataclasses.replace(parameters, t_bits=27)
    check_parameters(wider, REFERENCE, customers=100_000, column_sums=sums)


def test_chosen_parameters_are_the_tightest() -> None:
    parameters = choose_parameters(REFERENCE, customers=100_000, vmax=511, tokens=200)
    check_parameters(parameters, REFERENCE, customers=100_000)
    for field in ("t_bits", "reply_bits"):
        less = dataclasses.replace(parameters, **{field: getattr(parameters, field) - 1})
        with pytest.raises(ParameterError):
            check_parameters(less, REFERENCE, customers=100_000)
    assert parameters.limbs == 1
    assert parameters.columns_per_reply == 4
    assert parameters.batch_limit == 2048


def test_each_condition_refuses_with_the_figure_to_change() -> None:
    good = choose_parameters(REFERENCE, customers=1000, vmax=100, tokens=60)
    many = dataclasses.replace(good, tokens=100_000_000)
    with pytest.raises(ParameterError, match=r"nats of the matrix.*fewer tokens than 100000000"):
        check_parameters(many, REFERENCE, customers=1000)
    with pytest.raises(ParameterError, match="nats of the matrix"):
        check_parameters(good, REFERENCE, customers=1000, tokens_before=100_000_000)
    few_rows = Layout(200, (), (1 << 12,))
    with pytest.raises(ParameterError, match=r"one row.*narrower integer columns"):
        check_parameters(good, few_rows, customers=1, integer_squares=[1])
    coarse = dataclasses.replace(good, reply_bits=33)
    with pytest.raises(ParameterError, match="raise reply_bits 33"):
        check_parameters(coarse, REFERENCE, customers=1000)
    with pytest.raises(ParameterError, match="shared by 60 banks"):
        check_parameters(dataclasses.replace(good, banks=60), REFERENCE, customers=1000)


def test_several_banks_share_the_noise() -> None:
    one = choose_parameters(REFERENCE, customers=1000, vmax=100, tokens=60)
    five = choose_parameters(REFERENCE, customers=1000, vmax=100, tokens=60, banks=5)
    assert five.reply_bits > one.reply_bits
    assert five.sigma_f == pytest.approx(five.delta / 24 / 5**0.5, abs=1)


@pytest.mark.parametrize("group", [0, 1, 3, 2048, 8192])
def test_a_reply_shared_by_fewer_than_two_columns_is_refused(group: int) -> None:
    with pytest.raises(ParameterError, match="power of two from 2"):
        Parameters(t_bits=25, reply_bits=40, vmax=1, tokens=1, columns_per_reply=group)


@pytest.mark.parametrize(
    ("rows", "bins", "bounds"),
    [
        (0, (2,), ()),
        (10, (65,), ()),
        (10, (0,), ()),
        (10, (), ()),
        (10, (), (0,)),
        (10, (), (1 << 25,)),
    ],
)
def test_layouts_out_of_range_are_refused(
    rows: int, bins: tuple[int, ...], bounds: tuple[int, ...]
) -> None:
    with pytest.raises(ParameterError):
        Layout(rows, bins, bounds)


def test_a_large_v_is_split_into_limbs_where_one_query_would_not_do() -> None:
    layout = Layout(100_000, (), (49,) * 10)
    parameters = choose_parameters(layout, customers=100_000, vmax=63, tokens=3)
    assert parameters.limbs > 1
    assert parameters.tokens == 3 * parameters.limbs
    one = dataclasses.replace(parameters, limbs=1, tokens=3)
    with pytest.raises(ParameterError, match="use more limbs"):
        check_parameters(one, layout, customers=100_000)


@settings(deadline=None)
@given(
    vmax=st.integers(1, 1 << 30),
    limbs=st.integers(1, 5),
    values=st.lists(st.integers(-(1 << 30), 1 << 30), min_size=1, max_size=20),
)
def test_limbs_join_to_the_sum_and_keep_their_bound(
    vmax: int, limbs: int, values: list[int]
) -> None:
    parameters = Parameters(t_bits=40, reply_bits=48, vmax=vmax, tokens=1, limbs=limbs)
    v = np.clip(np.array([*values, 1 << 40, -(1 << 40)]), -vmax, vmax)
    parts = parameters.split(v)
    assert all(np.abs(part).max() <= parameters.limb_max for part in parts)
    np.testing.assert_array_equal(parameters.join(parts), v)


def test_values_beyond_vmax_are_not_split() -> None:
    parameters = Parameters(t_bits=25, reply_bits=40, vmax=100, tokens=1, limbs=2)
    with pytest.raises(ParameterError, match="beyond vmax 100"):
        parameters.split(np.array([0, -101]))


def test_no_parameters_for_a_job_that_would_open_the_rows() -> None:
    with pytest.raises(ParameterError, match="fewer tokens"):
        choose_parameters(REFERENCE, customers=100_000, vmax=1 << 12, tokens=1 << 24)


def test_delta_is_the_rounded_down_share_of_q() -> None:
    parameters = choose_parameters(REFERENCE, customers=1000, vmax=1, tokens=1)
    assert parameters.delta == Q >> parameters.t_bits
    assert parameters.sigma_f <= parameters.delta / 24 < parameters.sigma_f + 1
