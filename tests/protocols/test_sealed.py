"""Sealed columns open to the sum of the clipped values, on the bank's rows, and to nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocols.errors import ParameterError, ProtocolError
from protocols.sealed import (
    Department,
    OpenedSum,
    SealedColumn,
    Step,
    ValueRange,
    bits_per_opening,
    open_sum,
    round_scores,
    zero_sum_mask,
)
from protocols.streams import Randomness, digest

ROWS = 40
NAMES = ("court", "tax", "utilities", "works")
CUSTOMERS = np.array([3, 4, 17, 38])


def step(departments: tuple[str, ...] = NAMES[:3], **changes: Any) -> Step:
    full = Step(
        job=digest("job"),
        attempt=1,
        bank="bank_a",
        departments=departments,
        cover=digest("cover"),
        stage="openings",
        step=2,
        column=0,
        values=ValueRange(-16, 15),
    )
    return replace(full, **changes)


def seeds(name: str, departments: tuple[str, ...]) -> dict[str, bytes]:
    return {p: digest(*sorted((name, p))) for p in departments if p != name}


def keys(name: str) -> NDArray[np.uint8]:
    return np.random.default_rng(NAMES.index(name)).integers(0, 256, (ROWS, 16), np.uint8)


def department(name: str, departments: tuple[str, ...], attempt: int = 1) -> Department:
    randomness = Randomness(digest("seed", name), digest("job"), attempt)
    return Department(name, keys(name), randomness, seeds(name, departments))


def values(seed: int, low: int = -16, high: int = 15) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(low, high, ROWS, endpoint=True)


def sealed(s: Step, columns: list[NDArray[np.int64]]) -> list[SealedColumn]:
    pairs = zip(s.departments, columns, strict=True)
    return [department(name, s.departments, s.attempt).seal(s, column) for name, column in pairs]


def opened(s: Step, columns: list[SealedColumn]) -> OpenedSum:
    return open_sum(s, columns, {name: keys(name)[CUSTOMERS] for name in s.departments}, CUSTOMERS)


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_bank_opens_exactly_the_sum_of_the_clipped_values(count: int, seed: int) -> None:
    s = step(NAMES[:count])
    columns = [values(seed + i, -40, 40) for i in range(count)]
    result = opened(s, sealed(s, columns))
    assert result.valid.all()
    expected = np.sum([c.clip(-16, 15) for c in columns], axis=0)[CUSTOMERS]
    np.testing.assert_array_equal(result.values, expected)


@given(st.integers(2, 4), st.integers(0, 200), st.integers(0, 9))
def test_masks_of_all_departments_sum_to_zero(count: int, rows: int, column: int) -> None:
    s = step(NAMES[:count], column=column)
    masks = [zero_sum_mask(s, n, seeds(n, s.departments), rows) for n in s.departments]
    np.testing.assert_array_equal(np.sum(masks, axis=0, dtype=np.uint32), np.zeros(rows, np.uint32))
    for mask in masks:
        assert rows < 20 or len(np.unique(mask)) > rows // 2


def test_one_department_alone_needs_no_mask() -> None:
    assert not zero_sum_mask(step(("tax",)), "tax", {}, 5).any()


def test_without_the_row_keys_a_row_does_not_open() -> None:
    s = step(("tax",))
    columns = sealed(s, [values(1)])
    strangers = np.array([0, 1, 2])
    result = open_sum(s, columns, {"tax": keys("tax")[CUSTOMERS[:3]]}, strangers)
    assert not result.valid.any()
    assert not result.values.any()


def test_a_missing_department_leaves_the_others_closed() -> None:
    s = step()
    columns = sealed(s, [values(i) for i in range(3)])
    fewer = step(NAMES[:2])
    relabelled = [replace(c, step=fewer) for c in columns[:2]]
    assert not opened(fewer, relabelled).valid.any()


def test_the_same_values_give_the_same_bytes_after_a_restart() -> None:
    s = step()
    first, again = (sealed(s, [values(i) for i in range(3)]) for _ in range(2))
    assert [c.digest() for c in first] == [c.digest() for c in again]


def test_columns_of_equal_values_share_no_pad() -> None:
    # Every field of the step, and the values themselves, change all sealed bytes.
    base = step(("tax",))
    steps = [
        base,
        step(("tax",), bank="bank_b"),
        step(("tax",), cover=digest("another")),
        step(("tax",), stage="scoring"),
        step(("tax",), step=3),
        step(("tax",), column=1),
        step(("tax",), values=ValueRange(-16, 16)),
    ]
    columns = [sealed(s, [values(1)])[0].values for s in steps]
    columns += [sealed(base, [values(1) + (np.arange(ROWS) == 7)])[0].values]
    columns += [sealed(step(("tax",), attempt=2), [values(1)])[0].values]
    for i, one in enumerate(columns):
        for other in columns[:i]:
            assert not np.any(one == other)


def test_sealed_values_and_digests_cover_every_part_of_the_message() -> None:
    (column,) = sealed(step(("tax",)), [values(1)])
    altered = [
        replace(column, values=column.values ^ np.uint32(1)),
        replace(column, nonce=column.nonce ^ np.uint8(1)),
        replace(column, step=step(("tax",), step=3)),
    ]
    assert len({c.digest() for c in [column, *altered]}) == 4


# --- refusals


def test_a_step_is_never_sealed_with_other_values() -> None:
    s, d = step(), department("tax", NAMES[:3])
    first = d.seal(s, values(1))
    with pytest.raises(ProtocolError, match="needs a new attempt"):
        d.seal(s, values(2))
    assert d.seal(s, values(1)).digest() == first.digest()
    after_restart = Department(
        "tax",
        keys("tax"),
        Randomness(digest("seed", "tax"), digest("job"), 1),
        seeds("tax", s.departments),
        d.sealed,
    )
    with pytest.raises(ProtocolError, match="needs a new attempt"):
        after_restart.seal(s, values(2))


@pytest.mark.parametrize("peers", [(), ("court",), ("court", "works"), ("court", "tax")])
def test_a_mask_without_the_seed_of_a_peer_is_refused(peers: tuple[str, ...]) -> None:
    s, randomness = step(), Randomness(digest("seed"), digest("job"), 1)
    d = Department("tax", keys("tax"), randomness, {p: digest(p) for p in peers})
    with pytest.raises(ProtocolError, match="pair seeds"):
        d.seal(s, values(1))
    assert not d.sealed


def test_a_mask_with_the_seed_of_another_peer_is_refused() -> None:
    with pytest.raises(ProtocolError, match="3 pair seeds for a step of 3 departments"):
        zero_sum_mask(step(), "tax", seeds("tax", NAMES), 5)


def test_departments_that_take_different_peers_for_the_steps_open_nothing() -> None:
    s = step()
    columns = sealed(s, [values(i) for i in range(3)])
    columns[1] = department("tax", NAMES[:3]).seal(step(("tax", "utilities")), values(1))
    with pytest.raises(ProtocolError, match="another step"):
        opened(s, columns)
    assert not opened(s, [columns[0], replace(columns[1], step=s), columns[2]]).valid.any()


def test_a_step_of_fewer_departments_than_the_job_has_opens_to_their_sum() -> None:
    s = step(("court", "utilities"))
    columns = [department(n, NAMES[:3]).seal(s, values(i)) for i, n in enumerate(s.departments)]
    np.testing.assert_array_equal(opened(s, columns).values, (values(0) + values(1))[CUSTOMERS])


def test_a_department_that_the_step_does_not_name_does_not_seal() -> None:
    with pytest.raises(ProtocolError, match="pair seeds"):
        department("works", NAMES).seal(step(), values(1))


def test_another_job_or_attempt_or_length_is_refused() -> None:
    d = department("tax", NAMES[:3])
    for other in [step(attempt=2), step(job=digest("other"))]:
        with pytest.raises(ValueError, match="another job or attempt"):
            d.seal(other, values(1))
    with pytest.raises(ValueError, match="cover 40 rows"):
        d.seal(step(), values(1)[1:])
    assert not d.sealed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:2], "2 columns, 2 departments, 3 expected"),
        (lambda c: [c[0], c[1], c[1]], "3 columns, 2 departments"),
        (lambda c: [*c, c[0]], "4 columns, 3 departments"),
        (lambda c: [c[0], c[1], replace(c[2], step=step(step=3))], "another step"),
        (lambda c: [c[0], c[1], replace(c[2], step=step(attempt=2))], "another step"),
        (lambda c: [c[0], c[1], replace(c[2], values=c[2].values[1:])], "unequal length"),
    ],
)
def test_an_incomplete_or_mixed_set_of_columns_is_refused(
    change: Callable[[list[SealedColumn]], list[SealedColumn]], message: str
) -> None:
    s = step()
    columns = sealed(s, [values(i) for i in range(3)])
    with pytest.raises(ProtocolError, match=message):
        opened(s, change(columns))


def test_an_altered_row_is_missing_and_the_others_stay() -> None:
    s = step(("tax",))
    (column,) = sealed(s, [values(1)])
    spoilt = column.values.copy()
    spoilt[17] += np.uint32(1000)
    result = opened(s, [replace(column, values=spoilt)])
    assert result.valid.tolist() == [True, True, False, True]
    assert result.values[2] == 0


def test_messages_of_the_wrong_form_do_not_exist() -> None:
    nonce, column = np.zeros(32, np.uint8), np.zeros(ROWS, np.uint32)
    with pytest.raises(ProtocolError, match="does not name"):
        SealedColumn(step(), "works", nonce, column)
    with pytest.raises(ProtocolError, match="nonce"):
        SealedColumn(step(), "tax", nonce[1:], column)
    malformed: list[Any] = [column.astype(np.int64), column.reshape(2, -1)]
    for bad in malformed:
        with pytest.raises(ProtocolError, match="values"):
            SealedColumn(step(), "tax", nonce, bad)
    for departments in [(), ("tax", "tax"), ("tax", "court")]:
        with pytest.raises(ValueError, match="ascending"):
            step(departments)


def test_sums_that_could_wrap_are_refused() -> None:
    step(NAMES[:2], values=ValueRange(-(2**30) + 1, 0))
    for values_ in [ValueRange(-(2**30), 0), ValueRange(0, 2**30), ValueRange(-1, 2**40)]:
        with pytest.raises(ParameterError, match="exceed"):
            step(NAMES[:2], values=values_)
    with pytest.raises(ValueError, match="fewer than two"):
        ValueRange(3, 3)


def test_extremes_of_the_range_open_without_wrapping() -> None:
    s = step(NAMES[:2], values=ValueRange(-(2**30) + 1, 2**30 - 1))
    for bound in (s.values.low, s.values.high):
        columns = sealed(s, [np.full(ROWS, bound), np.full(ROWS, bound)])
        assert set(opened(s, columns).values.tolist()) == {2 * bound}


def test_no_value_is_in_a_repr() -> None:
    s = step(("tax",))
    (column,) = sealed(s, [values(1)])
    shown = repr([column, opened(s, [column]), department("tax", ("tax",))])
    assert "array" not in shown


# --- rounding


CODES = np.array([b"%018d" % i for i in range(20_000)])
SECRET = bytes(32)


def test_bits_of_an_opening_count_the_values_that_the_sum_can_take() -> None:
    assert bits_per_opening(step(("tax",))) == 5  # +-4 logits at 0.25: 32 values
    assert bits_per_opening(step(NAMES[:2], values=ValueRange(0, 1))) == pytest.approx(np.log2(3))


@settings(max_examples=20)
@given(st.floats(-30, 30), st.sampled_from([0.25, 0.1, 1.0]))
def test_rounding_is_unbiased_and_to_a_neighbour(score: float, resolution: float) -> None:
    scores = np.full(len(CODES), score)
    rounded = round_scores(scores, resolution, CODES, b"direction", SECRET)
    exact = score / resolution
    assert np.all(np.abs(rounded - exact) <= 1)
    # 20,000 draws of variance at most 1/4: six standard deviations.
    assert abs(rounded.mean() - exact) < 6 * 0.5 / np.sqrt(len(CODES))


def test_rounding_of_a_row_depends_on_its_code_direction_resolution_and_secret_alone() -> None:
    scores = np.random.default_rng(1).normal(size=len(CODES))
    base = round_scores(scores, 0.25, CODES, b"direction", SECRET)
    turned = round_scores(scores[::-1], 0.25, CODES[::-1], b"direction", SECRET)
    np.testing.assert_array_equal(turned[::-1], base)
    some = round_scores(scores[5:9], 0.25, CODES[5:9], b"direction", SECRET)
    np.testing.assert_array_equal(some, base[5:9])
    for other in [
        round_scores(scores, 0.25, CODES, b"another", SECRET),
        round_scores(scores, 0.25, CODES, b"direction", bytes([1]) * 32),
    ]:
        assert 0.2 < np.mean(other != base) < 0.5  # two independent draws differ in 2 p (1 - p)


def test_rounding_refuses_what_is_not_a_number() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            round_scores(np.array([bad]), 0.25, CODES[:1], b"", SECRET)
    with pytest.raises(ValueError, match="resolution"):
        round_scores(np.zeros(1), 0.0, CODES[:1], b"", SECRET)
    with pytest.raises(ValueError, match="codes"):
        round_scores(np.zeros(2), 0.25, CODES[:1], b"", SECRET)
