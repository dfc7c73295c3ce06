"""A scorecard that was cut off goes on from its last finished step, and nothing is told twice.

Because all that a step asks follows from the job (`Party.lasting`), the model after a crash is that
of an undisturbed run, bit for bit, wherever the crash was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TypeVar

import numpy as np
import pytest

from federation.channel import Channel, in_process
from federation.errors import IntegrityError
from federation.ledger import What
from federation.objects import JobManifest
from federation.tables import NumberColumn
from federation.tasks import steps
from federation.tasks.checkpoints import CheckpointBook, MemoryCheckpointBook
from federation.tasks.local import LocalScorecard, local_seeds, run_scorecard_in_process
from federation.tasks.messages import Direction, PointsTables
from federation.tasks.model_files import model_to_json
from federation.tasks.plan import plan_of
from federation.tasks.scorecard_steps import CURVATURE, ROW_KEYS, opening_name, queries, schedule
from protocols import sealed
from protocols.linear_query import Query
from tests.federation.scorecard_data import World, make_world

BANK, ORGS = "bank", ("bank", "dept_0", "dept_1")
SMALL = {"openings": 2, "evaluation": True, "min_cohort": 20, "max_bins": 8}
M = TypeVar("M")
STEPS = 7  # row keys, binning, counts, curvature, two openings, points


class Crash(RuntimeError):
    """The party's node ends here."""


class CrashingBook(MemoryCheckpointBook):
    """The node ends while the result of a step is kept: before it is, or right after it was."""

    def __init__(self, step: int, *, is_kept: bool) -> None:
        super().__init__()
        self._part, self._is_kept = f"step-{step:02d}", is_kept

    def save(self, state: bytes, part: str = "") -> None:
        if part == self._part and not self._is_kept:
            raise Crash
        super().save(state, part)
        if part == steps.INDEX and self._part in self._parts:
            raise Crash

    def on_disk(self) -> MemoryCheckpointBook:
        """What the next process finds."""
        book = MemoryCheckpointBook()
        book._parts = dict(self._parts)
        return book


@dataclasses.dataclass
class Attempt:
    """What all parties of one attempt sent and entered, up to its end."""

    sent: list[tuple[str, object]]
    run: LocalScorecard | None

    def of(self, kind: type[M]) -> list[M]:
        return [message for _, message in self.sent if isinstance(message, kind)]


Send = Callable[[str, object], None]


def instead(channel: Channel, told: Callable[[object], object]) -> None:
    """Send something else than the program says."""
    real: Send = channel.send
    channel.__dict__["send"] = lambda stage, message: real(stage, told(message))


def watched(links: Mapping[str, Mapping[str, Channel]]) -> list[tuple[str, object]]:
    sent: list[tuple[str, object]] = []

    def keep(me: str, message: object) -> object:
        sent.append((me, message))
        return message

    for me, peers in links.items():
        for channel in peers.values():
            instead(channel, partial(keep, me))
    return sent


def attempt(
    world: World, manifest: JobManifest, number: int, books: Mapping[str, CheckpointBook]
) -> Attempt:
    links = in_process(ORGS)
    sent, run = watched(links), None
    with contextlib.suppress(Crash):
        run = run_scorecard_in_process(
            world.bank,
            world.departments,
            manifest,
            local_seeds(ORGS, number),
            attempt=number,
            checkpoints=books,
            first_seeds=local_seeds(ORGS, 1),
            channels=links,
        )
    return Attempt(sent, run)


def small() -> World:
    return make_world(rows=240, customers=200)


@cache
def undisturbed() -> LocalScorecard:
    run = attempt(small(), small().manifest(**SMALL), 1, {}).run
    assert run is not None
    assert len(run.result.openings) == SMALL["openings"]
    return run


def crash_and_go_on(org: str, step: int, *, is_kept: bool) -> tuple[Attempt, Attempt]:
    world, manifest = small(), small().manifest(**SMALL)
    crashing = CrashingBook(step, is_kept=is_kept)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    first = attempt(world, manifest, 1, books | {org: crashing})
    assert first.run is None
    return first, attempt(world, manifest, 2, books | {org: crashing.on_disk()})


def require_same_model(run: LocalScorecard | None) -> LocalScorecard:
    assert run is not None
    before, after = undisturbed().result, run.result
    assert model_to_json(after.model) == model_to_json(before.model)
    np.testing.assert_array_equal(after.scores, before.scores)
    np.testing.assert_array_equal(after.test, before.test)
    assert [item.gain for item in after.openings] == [item.gain for item in before.openings]
    for org, part in run.parts.items():
        assert part.digest() == undisturbed().parts[org].digest()
    return run


# --- a crash anywhere -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("org", "step"),
    [(org, step) for org in ORGS[:2] for step in range(STEPS)] + [("dept_1", 3), ("dept_1", 5)],
)
def test_a_crash_before_a_step_is_kept_costs_that_step_and_changes_nothing(
    org: str, step: int
) -> None:
    manifest = small().manifest(**SMALL)
    plan, names = plan_of(manifest), schedule(plan_of(manifest))
    first, second = crash_and_go_on(org, step, is_kept=False)
    run = require_same_model(second.run)
    # Of the finished steps nothing is asked again, and nothing is entered again.
    left = names[step:]
    extra = CURVATURE in left  # pairs of features: a matrix and a query of its own
    assert run.result.tokens == sum(queries(plan, name) for name in left) + extra
    happened = {entry.what for entry in run.ledgers[BANK].entries()}
    assert (What.ROW_KEYS in happened) == (step == 0)
    assert (What.BIN_DEFINITIONS in happened) == (step <= 1)
    assert (What.WOE_TABLES in happened) == (step <= 2)
    # What a step used up in the first attempt is used for nothing else in the second.
    columns = [*first.of(sealed.SealedColumn), *second.of(sealed.SealedColumn)]
    assert {column.step.attempt for column in columns} <= {1, 2}
    assert len({(c.department, c.nonce.tobytes()) for c in columns}) == len(columns)
    spent: dict[bytes, set[bytes]] = {}
    for query in (*first.of(Query), *second.of(Query)):
        token = query.context.tobytes() + bytes([query.batch, query.index])
        spent.setdefault(token, set()).add(query.b.tobytes())
    assert {len(bodies) for bodies in spent.values()} == {1}


@pytest.mark.parametrize(("org", "step"), [(BANK, 3), ("dept_0", 4), ("dept_1", 6)])
def test_a_crash_after_a_step_is_kept_costs_at_most_what_others_had_not_finished(
    org: str, step: int
) -> None:
    _, second = crash_and_go_on(org, step, is_kept=True)
    require_same_model(second.run)


def test_two_crashes_are_two_attempts_more() -> None:
    world, manifest = small(), small().manifest(**SMALL)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    one, two = CrashingBook(2, is_kept=True), CrashingBook(5, is_kept=False)
    books["dept_1"] = two  # keeps the first attempt's steps as well
    assert attempt(world, manifest, 1, books | {BANK: one}).run is None
    books[BANK] = one.on_disk()
    assert attempt(world, manifest, 2, books).run is None
    books["dept_1"] = two.on_disk()
    run = require_same_model(attempt(world, manifest, 3, books).run)
    assert run.result.tokens == queries(plan_of(manifest), opening_name(1))


def test_all_attempts_together_disclose_single_rows_once_and_queries_as_often_as_asked() -> None:
    first, second = crash_and_go_on(BANK, 5, is_kept=False)
    opened = [len(a.of(sealed.SealedColumn)) for a in (first, second)]
    # Two departments; opening 1 was cut off and is sealed again, to the same values.
    assert opened == [2 * 2, 2 * 2]
    assert second.run is not None
    customers = small().manifest(**SMALL).limits.customers_max
    entries = {e.what: e for e in second.run.ledgers["dept_0"].entries()}
    assert entries[What.SCORE_OPENING].count == customers
    assert entries[What.EVALUATION_OPENING].count == customers


def test_a_repeated_opening_has_the_same_values_under_another_pad() -> None:
    first, second = crash_and_go_on(BANK, 5, is_kept=False)
    of_the_first = first.of(Direction)[-2:]
    of_the_second = second.of(Direction)
    for before, after in zip(of_the_first, of_the_second, strict=True):
        np.testing.assert_array_equal(before.coefficients, after.coefficients)
        assert before.shift == after.shift
    a, b = first.of(sealed.SealedColumn)[-2:], second.of(sealed.SealedColumn)[:2]
    sent = {column.values.tobytes() for column in [*a, *b]}
    assert len(sent) == 4


# --- parties that do not keep to it ---------------------------------------------------------------


class Forgetful(MemoryCheckpointBook):
    """Says that nothing is there."""

    def load(self, part: str = "") -> bytes | None:
        return None


def test_a_bank_that_says_it_lost_everything_gets_no_other_direction_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has asked for its openings; in a new attempt it would like to see other scores."""
    world, manifest = small(), small().manifest(**SMALL)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    assert attempt(world, manifest, 1, books).run is not None
    # The same direction on another scale: other rounded values.
    monkeypatch.setattr("federation.tasks.scorecard_bank.DIRECTION_SPREAD", 0.5)
    with pytest.raises(IntegrityError, match="more openings over all attempts"):
        attempt(world, manifest, 2, books | {BANK: Forgetful()})


def test_without_the_count_over_attempts_the_bank_would_have_seen_twice_as_many_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, manifest = small(), small().manifest(**SMALL)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    assert attempt(world, manifest, 1, books).run is not None
    monkeypatch.setattr("federation.tasks.scorecard_bank.DIRECTION_SPREAD", 0.5)
    monkeypatch.setattr(steps.Opened, "require", lambda self, what, of, most: None)
    second = attempt(world, manifest, 2, books | {BANK: Forgetful()})
    assert len(second.of(sealed.SealedColumn)) >= 4


def test_a_bank_that_lost_its_state_in_earnest_gets_the_same_model_again() -> None:
    world, manifest = small(), small().manifest(**SMALL)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    assert attempt(world, manifest, 1, books).run is not None
    second = attempt(world, manifest, 2, books | {BANK: MemoryCheckpointBook()})
    run = require_same_model(second.run)
    assert run.result.tokens == manifest.limits.tokens


def test_a_finished_job_can_be_finished_again_by_who_had_not_noticed() -> None:
    """The bank ends after all departments succeeded: the next attempt asks nothing."""
    world, manifest = small(), small().manifest(**SMALL)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    assert attempt(world, manifest, 1, books).run is not None
    second = attempt(world, manifest, 2, books)
    run = require_same_model(second.run)
    assert run.result.tokens == 0
    assert not second.of(Query)
    assert not second.of(PointsTables)
    assert {ledger.entries() for ledger in run.ledgers.values()} == {()}


def test_who_tells_two_stories_of_its_steps_stops_the_job() -> None:
    world, manifest = small(), small().manifest(**SMALL)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    assert attempt(world, manifest, 1, books).run is not None
    links = in_process(ORGS)
    nothing = steps.Held(())
    instead(links[BANK]["dept_1"], lambda m: nothing if isinstance(m, steps.Held) else m)
    with pytest.raises(IntegrityError, match="heard of other finished steps"):
        run_scorecard_in_process(
            world.bank,
            world.departments,
            manifest,
            local_seeds(ORGS, 2),
            attempt=2,
            checkpoints=books,
            first_seeds=local_seeds(ORGS, 1),
            channels=links,
        )


@pytest.mark.parametrize("attempts", [(2,), (-1,), (1,) * (STEPS + 1)])
def test_steps_that_there_cannot_have_been_are_refused(attempts: tuple[int, ...]) -> None:
    world, manifest = small(), small().manifest(**SMALL)
    links = in_process(ORGS)
    held = steps.Held(attempts)
    for channel in links["dept_0"].values():
        instead(channel, lambda m: held if isinstance(m, steps.Held) else m)
    with pytest.raises(IntegrityError, match="there cannot have been"):
        run_scorecard_in_process(
            world.bank,
            world.departments,
            manifest,
            local_seeds(ORGS, 2),
            attempt=2,
            channels=links,
        )


# --- states that are of no use --------------------------------------------------------------------


def test_other_data_begins_anew() -> None:
    world, manifest = small(), small().manifest(**SMALL)
    books: dict[str, CheckpointBook] = {name: MemoryCheckpointBook() for name in ORGS}
    assert attempt(world, manifest, 1, books).run is not None
    data = world.departments["dept_0"]
    first = data.columns[0]
    assert isinstance(first, NumberColumn)
    columns = [NumberColumn(first.name, first.values[::-1].copy()), *data.columns[1:]]
    changed = dataclasses.replace(data, columns=columns)
    departments = world.departments | {"dept_0": changed}
    for name in ORGS[1:]:  # other scores than those of before would be openings beyond the cap
        books[name] = _without_openings(books[name])
    second = attempt(World(world.bank, departments), manifest, 2, books)
    assert second.run is not None
    assert second.run.result.tokens == manifest.limits.tokens


def _without_openings(book: CheckpointBook) -> MemoryCheckpointBook:
    assert isinstance(book, MemoryCheckpointBook)
    copy = MemoryCheckpointBook()
    copy._parts = {k: v for k, v in book._parts.items() if k != steps.OPENED}
    return copy


def test_a_damaged_result_is_made_again_with_what_follows_it() -> None:
    world, manifest = small(), small().manifest(**SMALL)
    books = {name: MemoryCheckpointBook() for name in ORGS}
    assert attempt(world, manifest, 1, books).run is not None
    place = schedule(plan_of(manifest)).index(opening_name(1))
    books["dept_1"].save(b"torn", f"step-{place:02d}")
    second = attempt(world, manifest, 2, books)
    run = require_same_model(second.run)
    assert run.result.tokens == queries(plan_of(manifest), opening_name(1))
    assert {e.what for e in run.ledgers[BANK].entries()} >= {What.SCORE_OPENING}
    assert ROW_KEYS not in {e.what for e in run.ledgers[BANK].entries()}
