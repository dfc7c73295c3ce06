"""Bins that hold for any column: ties, outliers, nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from federation import wire
from federation.tables import CategoryColumn, Column, NumberColumn
from federation.tasks.binning import (
    MAX_BINS,
    WOE_LIMIT,
    FeatureBins,
    group,
    information_value,
    offsets,
    pre_bin,
    round_between,
    weight_of_evidence,
)


def numbers(values: object) -> NumberColumn:
    return NumberColumn("x", np.asarray(values, np.float64))


def text(values: list[str | None]) -> CategoryColumn:
    categories = tuple(sorted({v for v in values if v is not None}))
    place = {category: i for i, category in enumerate(categories)}
    codes = np.array([-1 if v is None else place[v] for v in values], np.int32)
    return CategoryColumn("x", codes, categories)


def sizes(column: Column, made: FeatureBins) -> NDArray[np.int64]:
    return np.bincount(made.assign(column), minlength=made.bins)


number_columns = st.builds(
    lambda values, repeats: numbers(np.repeat(np.array(values, np.float64), repeats)),
    st.lists(
        st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -1.0, 7.0]),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 40),
)
text_columns = st.builds(
    lambda values, repeats: text(values * repeats),
    st.lists(st.none() | st.text("abcd", max_size=3), min_size=1, max_size=40),
    st.integers(1, 20),
)


@settings(max_examples=120, deadline=None)
@given(number_columns | text_columns, st.integers(2, 63), st.integers(1, 60))
def test_every_row_of_any_column_has_a_bin_and_no_bin_is_small(
    column: Column, max_bins: int, min_rows: int
) -> None:
    made = pre_bin(column, max_bins, min_rows)
    counts = sizes(column, made)
    assert counts.sum() == column.rows
    assert made.bins <= max_bins + 1 <= MAX_BINS
    assert counts.min() >= min(min_rows, column.rows)
    assert len(made.labels()) == made.bins
    assert all(made.labels())


@settings(max_examples=60, deadline=None)
@given(number_columns | text_columns)
def test_bins_survive_the_wire(column: Column) -> None:
    made = pre_bin(column, 8, 2)
    again = wire.decode(wire.encode(made), FeatureBins)
    np.testing.assert_array_equal(again.assign(column), made.assign(column))


def test_equal_values_share_a_bin_and_a_frequent_value_has_its_own() -> None:
    rng = np.random.default_rng(1)
    values = np.where(rng.random(4000) < 0.6, 0.0, rng.exponential(100, 4000))
    column = numbers(values)
    made = pre_bin(column, 16, 50)
    bins = made.assign(column)
    of_nought = np.unique(bins[values == 0])
    assert len(of_nought) == 1
    assert (values[bins == of_nought[0]] == 0).all()
    assert made.bins >= 10  # the rest is still told apart


def test_outliers_and_infinities_move_no_edge() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=2000)
    wild = values.copy()
    wild[np.argmax(values)], wild[np.argmin(values)] = np.inf, -1e300
    np.testing.assert_array_equal(
        pre_bin(numbers(values), 10, 50).edges, pre_bin(numbers(wild), 10, 50).edges
    )


def test_integers_with_few_values_keep_one_bin_each() -> None:
    values = np.repeat([-2, -1, 0, 1, 2, 3], [100, 300, 900, 200, 100, 60])
    made = pre_bin(numbers(values), 32, 50)
    np.testing.assert_array_equal(made.edges, [-1, 0, 1, 2, 3])


def test_edges_have_few_digits() -> None:
    values = np.random.default_rng(3).lognormal(10, 1, 20_000)
    made = pre_bin(numbers(values), 32, 50)
    digits = [len(f"{edge:.12g}".replace(".", "").strip("0")) for edge in made.edges]
    assert max(digits) <= 4
    counts = sizes(numbers(values), made)
    assert counts.max() < 2 * 20_000 / 32


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_round_edge_separates_its_neighbours(low: float, high: float) -> None:
    if low < high:
        edge = round_between(low, high)
        assert np.isfinite(edge)
        assert low < edge <= high or not (np.isfinite(low) and np.isfinite(high))


def test_few_missing_rows_are_not_shown_apart() -> None:
    values = np.concatenate([np.arange(1000.0), np.full(10, np.nan)])
    made = pre_bin(numbers(values), 8, 50)
    assert not made.is_missing_apart
    assert pre_bin(numbers(np.concatenate([values, np.full(50, np.nan)])), 8, 50).is_missing_apart


def test_a_constant_and_an_empty_column_end_as_one_bin() -> None:
    assert pre_bin(numbers(np.full(500, 3.0)), 8, 50).bins == 1
    assert pre_bin(numbers(np.full(500, np.nan)), 8, 50).bins <= 2
    assert pre_bin(text([None] * 500), 8, 50).bins == 1
    assert pre_bin(text(["a"] * 500), 8, 50).bins == 1


def test_unknown_categories_fall_where_rare_ones_do() -> None:
    column = text(["a"] * 300 + ["b"] * 200 + ["c"] * 40 + ["d"] * 30 + [None] * 60)
    made = pre_bin(column, 8, 50)
    assert made.categories == ("a", "b")
    new = made.assign(text(["z", None, "a"]))
    assert new.tolist() == [made.other, made.missing, 0]
    assert made.labels()[made.other] == "other"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("edges", np.array([2.0, 1.0])),
        ("edges", np.array([1.0, np.inf])),
        ("missing", 9),
        ("other", -1),
        ("bins", 1),
        ("bins", 9),
        ("categories", ("a",)),
    ],
)
def test_a_definition_that_does_not_fit_is_refused(change: str, value: object) -> None:
    good = {"edges": np.array([1.0, 2.0]), "categories": (), "other": 3, "missing": 3, "bins": 4}
    FeatureBins("x", True, **good)  # type: ignore[arg-type]  # as a peer would send it
    with pytest.raises(ValueError, match=r"."):
        FeatureBins("x", True, **(good | {change: value}))  # type: ignore[arg-type]  # see above


# --- groups ---------------------------------------------------------------------------------------


def definition(bins: int, missing_apart: bool = False) -> FeatureBins:
    edges = np.arange(1.0, bins - (1 if missing_apart else 0))
    last = bins - 1
    return FeatureBins("x", True, edges, (), last, last, bins)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.floats(0, 1)), min_size=1, max_size=33),
    st.integers(5, 100),
    st.booleans(),
)
def test_no_group_is_small_or_without_goods_or_bads(
    rows: list[tuple[int, float]], min_cohort: int, monotone: bool
) -> None:
    n = np.array([count for count, _ in rows], np.int64)
    b = np.array([round(count * share) for count, share in rows], np.int64)
    made = group(definition(len(n), len(n) > 2), n, b, min_cohort=min_cohort, monotone=monotone)
    assert made.customers.sum() == n.sum()
    assert made.bads.sum() == b.sum()
    assert np.abs(made.woe).max() <= WOE_LIMIT
    if len(made.woe) > 1:
        assert made.customers.min() >= min_cohort
    if len(made.woe) > 3:  # two that are clearly apart may be pure, and a missing group beside them
        assert ((made.bads > 0) & (made.bads < made.customers)).all()


def test_monotone_groups_run_one_way() -> None:
    n = np.full(6, 1000, np.int64)
    b = np.array([50, 120, 80, 300, 200, 500], np.int64)
    made = group(definition(6), n, b, min_cohort=50, monotone=True)
    assert (np.diff(made.bads / made.customers) > 0).all()


def test_noise_stays_harmless() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        n = np.full(20, 1_000, np.int64)
        made = group(definition(20), n, rng.binomial(n, 0.2), min_cohort=50)
        assert made.iv < 0.02
        assert np.abs(made.woe).max() <= 9  # 0.45: what 1,000 rows at 20 % show by chance


def test_a_feature_that_separates_is_kept_and_its_woe_does_not_say_that_a_group_is_pure() -> None:
    n = np.array([400, 100], np.int64)
    pure = group(definition(2), n, np.array([20, 100]), min_cohort=50)
    nearly = group(definition(2), n, np.array([20, 99]), min_cohort=50)
    assert len(pure.woe) == 2
    assert pure.woe.tolist() == nearly.woe.tolist()


def test_a_pure_group_that_chance_can_make_is_merged() -> None:
    n = np.array([900, 60], np.int64)
    assert len(group(definition(2), n, np.array([30, 0]), min_cohort=50).woe) == 1


def test_neighbours_join_only_neighbours() -> None:
    n = np.full(5, 500, np.int64)
    b = np.array([100, 20, 100, 20, 100], np.int64)
    made = group(definition(5), n, b, min_cohort=50)
    assert made.of_bin.tolist() == [0, 1, 2, 3, 4]


def test_woe_is_positive_where_bads_are_rare_and_tends_to_the_plain_formula() -> None:
    n, b = np.array([100_000, 100_000], np.int64), np.array([1_000, 9_000], np.int64)
    woe = weight_of_evidence(n, b)
    plain = np.log((n - b) / b) - np.log((n - b).sum() / b.sum())
    np.testing.assert_allclose(woe * 0.05, plain, atol=0.026)
    assert woe[0] > 0 > woe[1]
    assert information_value(n, b, woe) == pytest.approx(0.96, abs=0.02)


def test_offsets_number_the_columns() -> None:
    assert offsets([definition(3), definition(5)]).tolist() == [0, 3, 8]
