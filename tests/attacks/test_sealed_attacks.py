"""CRYPTO_REVIEW.md F4, F12: what a repeated stage tells, what one key for all banks opens.

Each attack wins with its defence off and loses with it on.
"""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from protocols.errors import ProtocolError
from protocols.oprf import Department as KeyOwner
from protocols.oprf import KeyPair, key_for
from protocols.row_keys import keys_of_job
from protocols.sealed import (
    Department,
    SealedColumn,
    Step,
    ValueRange,
    _column_key,
    _pad,
    open_sum,
    round_scores,
)
from protocols.streams import EVERYBODY, Randomness, digest

ROWS = 200
RNG = np.random.default_rng(3)
KEYS = RNG.integers(0, 256, (ROWS, 16), np.uint8)
BEFORE = RNG.integers(-16, 16, ROWS)
AFTER = np.where(RNG.random(ROWS) < 0.1, BEFORE + 1, BEFORE).clip(-16, 15)  # late corrections
ALONE = Step(
    job=digest("job"),
    attempt=1,
    bank="bank_a",
    departments=("tax",),
    cover=digest("cover"),
    stage="openings",
    step=0,
    column=0,
    values=ValueRange(-16, 15),
)
TOGETHER = replace(ALONE, departments=("court", "tax"))


class UnboundRandomness(Randomness):
    """The defence off: draws forget the digest of the values that they protect."""

    def key(
        self,
        label: bytes,
        *,
        peer: str = EVERYBODY,
        stage: str = "",
        step: int | str = 0,
        column: int | str = 0,
        inputs: bytes = b"",
    ) -> bytes:
        return Randomness.key(self, label, peer=peer, stage=stage, step=step, column=column)


def seal_and_crash(
    kind: type[Randomness], step: Step, values: NDArray[np.int64], attempt: int = 1
) -> SealedColumn:
    """A department that starts from its seed and forgets afterwards what it sealed."""
    randomness = kind(digest("seed"), step.job, attempt)
    seeds = {peer: digest("pair") for peer in step.departments if peer != "tax"}
    return Department("tax", KEYS, randomness, seeds).seal(replace(step, attempt=attempt), values)


def difference(one: SealedColumn, other: SealedColumn) -> NDArray[np.int32]:
    """What anybody who sees both columns computes, without any key."""
    return (other.values - one.values).view(np.int32)


def test_a_pad_that_forgets_its_values_shows_what_changed_on_every_row_of_the_cover() -> None:
    columns = [seal_and_crash(UnboundRandomness, ALONE, v) for v in (BEFORE, AFTER)]
    np.testing.assert_array_equal(difference(*columns), AFTER - BEFORE)


def test_a_pad_bound_to_its_values_shows_nothing_of_the_change() -> None:
    seen = difference(*[seal_and_crash(Randomness, ALONE, v) for v in (BEFORE, AFTER)])
    # Not one row is recognisable: neither the difference nor "unchanged".
    assert not np.any(seen == AFTER - BEFORE)
    assert len(np.unique(seen)) == ROWS
    changed = np.abs(seen[AFTER != BEFORE].astype(float)).mean()
    unchanged = np.abs(seen[AFTER == BEFORE].astype(float)).mean()
    assert 0.5 < changed / unchanged < 2


def unmasked_difference(one: SealedColumn, other: SealedColumn) -> NDArray[np.int32]:
    """The bank, which has the row keys: the difference without the pads."""
    plain = [
        c.values - _pad(_column_key(c.step, c.department, c.nonce.tobytes()), KEYS)
        for c in (one, other)
    ]
    return (plain[1] - plain[0]).view(np.int32)


def test_a_department_that_forgets_what_it_sealed_opens_its_own_part_of_a_sum_to_the_bank() -> None:
    # Masks cannot be bound to the values: the peer does not know them.
    columns = [seal_and_crash(Randomness, TOGETHER, v) for v in (BEFORE, AFTER)]
    np.testing.assert_array_equal(unmasked_difference(*columns), AFTER - BEFORE)


def test_a_department_that_remembers_refuses_and_a_new_attempt_has_new_masks() -> None:
    randomness = Randomness(digest("seed"), TOGETHER.job, 1)
    first = Department("tax", KEYS, randomness, {"court": digest("pair")})
    column = first.seal(TOGETHER, BEFORE)
    restarted = Department("tax", KEYS, randomness, {"court": digest("pair")}, first.sealed)
    with pytest.raises(ProtocolError, match="new attempt"):
        restarted.seal(TOGETHER, AFTER)
    repeated = seal_and_crash(Randomness, TOGETHER, AFTER, attempt=2)
    seen = unmasked_difference(column, repeated)
    assert not np.any(seen == AFTER - BEFORE)
    assert len(np.unique(seen)) == ROWS


def test_columns_of_one_step_share_no_pad() -> None:
    columns = [
        seal_and_crash(Randomness, replace(ALONE, column=c), BEFORE).values for c in range(4)
    ]
    for i, one in enumerate(columns):
        assert not any(np.any(one == other) for other in columns[:i])


# --- F12: one key for all banks


def rows_that_open(key_of_a: KeyPair, key_of_b: KeyPair) -> int:
    """Bank A relays what the department sealed for bank B and tries its own row keys on it."""
    codes = np.array([b"%018d" % i for i in range(12)])
    ours, theirs = (
        keys_of_job(
            KeyOwner(key, 1, Randomness(bytes(32), ALONE.job, 1)).row_keys(codes), ALONE.job
        )
        for key in (key_of_a, key_of_b)
    )
    step = replace(ALONE, bank="bank_b")
    column = Department("tax", theirs, Randomness(bytes(32), step.job, 1), {}).seal(
        step, BEFORE[:12]
    )
    opened = open_sum(step, [column], {"tax": ours}, np.arange(12))
    return int(np.count_nonzero(opened.valid & (opened.values == BEFORE[:12])))


def test_under_one_key_for_all_banks_a_bank_opens_what_was_sealed_for_another() -> None:
    one = key_for(digest("tax"), "everybody", digest("snapshot"))
    assert rows_that_open(one, one) == 12


def test_under_a_key_for_each_bank_it_opens_nothing() -> None:
    keys = [key_for(digest("tax"), bank, digest("snapshot")) for bank in ("bank_a", "bank_b")]
    assert rows_that_open(*keys) == 0


# --- repeated openings of a score


SCORES = RNG.normal(size=ROWS)
CODES = np.array([b"%018d" % i for i in range(ROWS)])


def error_after_averaging(secrets: list[bytes]) -> float:
    """The bank asks for the same direction in many jobs and averages what it opens."""
    rounded = [round_scores(SCORES, 0.25, CODES, b"direction", secret) for secret in secrets]
    return float(np.abs(np.mean(rounded, axis=0) * 0.25 - SCORES).mean())


def test_rounding_that_is_drawn_anew_for_every_job_averages_away() -> None:
    assert error_after_averaging([digest(job) for job in range(400)]) < 0.01


def test_rounding_that_repeats_its_bits_tells_once_what_it_tells() -> None:
    once = error_after_averaging([digest(0)])
    assert once > 0.05
    assert error_after_averaging([digest(0)] * 400) == pytest.approx(once)
