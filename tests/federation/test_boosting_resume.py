"""A job of boosted trees that was cut off goes on from its last finished tree."""

from __future__ import annotations

import numpy as np
import pytest

from federation.errors import IntegrityError
from federation.tasks.checkpoints import MemoryCheckpointBook
from federation.tasks.local import LocalTrees, run_trees_in_process
from federation.tasks.trees_fit import Tree
from federation.tasks.trees_plan import COUNT_QUERIES, plan_of
from tests.federation.trees_data import TreesWorld, make_trees_world

TREES = 4


class Crash(RuntimeError):
    """The bank's node ends here."""


class CrashingBook(MemoryCheckpointBook):
    """Keeps every state; the node ends right after the last one."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.kept: list[bytes] = []
        self._states = states

    def save(self, state: bytes, part: str = "") -> None:
        super().save(state, part)
        self.kept.append(state)
        if len(self.kept) == self._states:
            raise Crash


def crash_and_go_on(
    world: TreesWorld, *, lost: int = 0, **parameters: object
) -> tuple[list[bytes], LocalTrees]:
    """The bank crashes after two trees, loses `lost` of them, and both go on in attempt 1."""
    manifest = world.manifest(trees=TREES, **parameters)
    crashing, theirs = CrashingBook(2), MemoryCheckpointBook()
    books = {"bank": crashing, "tax": theirs}
    with pytest.raises(Crash):
        run_trees_in_process(world.bank, world.departments, manifest, 1, checkpoints=books)
    mine = MemoryCheckpointBook()
    mine.save(crashing.kept[1 - lost])
    run = run_trees_in_process(
        world.bank,
        world.departments,
        manifest,
        1,
        attempt=1,
        checkpoints={"bank": mine, "tax": theirs},
    )
    return crashing.kept, run


def same(a: Tree, b: Tree) -> bool:
    return a.splits == b.splits and np.array_equal(a.values, b.values)


@pytest.mark.parametrize(
    ("lost", "parameters"), [(0, {}), (1, {"growth": "leaf", "max_leaves": 5, "thresholds": 1})]
)
def test_finished_trees_are_taken_as_they_are_and_only_the_rest_is_asked(
    lost: int, parameters: dict[str, object]
) -> None:
    world = make_trees_world()
    whole = world.run(world.manifest(trees=TREES, **parameters), seed=1)
    _, run = crash_and_go_on(world, lost=lost, **parameters)
    done, result = 2 - lost, run.result
    for before, after in zip(whole.result.model.trees[:done], result.model.trees, strict=False):
        assert same(before, after)
    assert len(result.model.trees) == TREES
    plan = plan_of(world.manifest(trees=TREES, **parameters))
    assert result.tokens == COUNT_QUERIES + (TREES - done) * plan.queries_a_tree
    np.testing.assert_array_equal(result.test, whole.result.test)
    np.testing.assert_array_equal(
        result.model.score(world.columns, world.bank.customers), result.scores
    )
    assert result.notes == ()


def test_the_caps_count_over_all_attempts_also_what_the_bank_lost() -> None:
    world = make_trees_world()
    _, run = crash_and_go_on(world, lost=1, thresholds=1)
    opened = [split.feature for split in run.parts["tax"].thresholds]
    assert max(opened.count(feature) for feature in set(opened)) == 1


def test_a_state_of_nobody_and_a_department_without_its_own_start_nothing_halfway() -> None:
    world = make_trees_world()
    manifest = world.manifest(trees=TREES)
    states, _ = crash_and_go_on(world)
    torn = MemoryCheckpointBook()
    torn.save(states[1][:-5])
    with pytest.raises(IntegrityError):
        run_trees_in_process(
            world.bank, world.departments, manifest, 1, attempt=2, checkpoints={"bank": torn}
        )
    mine = MemoryCheckpointBook()
    mine.save(states[1])
    run = run_trees_in_process(
        world.bank, world.departments, manifest, 1, attempt=2, checkpoints={"bank": mine}
    )
    assert run.result.tokens == manifest.limits.tokens
