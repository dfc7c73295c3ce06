"""Three banks and two departments grow one model; their statistics open as sums only."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from federation.channel import in_process
from federation.errors import LianmoError, PartyLost, UsageError
from federation.ledger import What
from federation.objects import TreesParameters
from federation.tables import BankData
from federation.tasks.local import LocalRun, local_manifest, local_seeds, run_job_in_process
from protocols.linear_query import Answer
from tests.federation.trees_data import SMALL, TreesWorld, make_trees_world

NAMES = ("bank-a", "bank-b", "bank-c")


def part_of(bank: BankData, rows: NDArray[np.int64]) -> BankData:
    return BankData(
        cover_rows=bank.cover_rows,
        positions=bank.positions[rows],
        codes=bank.codes[rows],
        columns=[column.take(rows) for column in bank.columns],
        labels=bank.labels[rows],
    )


def banks_of(world: TreesWorld) -> dict[str, BankData]:
    """Unequal banks of one world's customers."""
    share = np.arange(world.bank.customers) % 5
    return {
        name: part_of(world.bank, np.flatnonzero(np.isin(share, take)))
        for name, take in zip(NAMES, ([0, 1], [2, 3], [4]), strict=True)
    }


@cache
def world() -> TreesWorld:
    return make_trees_world()


@cache
def run(**parameters: object) -> LocalRun[Any, Any]:
    return grown(world(), **parameters)


def grown(of: TreesWorld, **parameters: object) -> LocalRun[Any, Any]:
    """One model of three banks."""
    banks = banks_of(of)
    asked = TreesParameters.model_validate({**SMALL, **parameters})
    manifest = local_manifest(banks, of.departments, asked)
    seeds = local_seeds([*banks, *of.departments], 3)
    return run_job_in_process(banks, of.departments, manifest, seeds)


def test_all_banks_grow_the_same_trees() -> None:
    results = list(run().results.values())
    for other in results[1:]:
        assert other.model.base == results[0].model.base
        for mine, theirs in zip(results[0].model.trees, other.model.trees, strict=True):
            assert mine.splits == theirs.splits
            np.testing.assert_array_equal(mine.values, theirs.values)
    assert any(split is not None for tree in results[0].model.trees for split in tree.splits)


def test_the_banks_together_are_about_as_good_as_one_bank_with_all_customers() -> None:
    large = make_trees_world(2500, 2000)
    shared = list(grown(large, trees=6).results.values())
    whole = large.run(trees=6).result
    # 600 rows are held out, other ones in each: a standard error of 0.025 in the difference, and
    # of a third of it over all rows
    held_out = [(item.labels[item.test], item.margins[item.test]) for item in shared]
    assert auc(*held_out) > auc((whole.labels[whole.test], whole.margins[whole.test])) - 0.06
    everybody = [(item.labels, item.margins) for item in shared]
    assert auc(*everybody) > auc((whole.labels, whole.margins)) - 0.025
    assert min(auc(one) for one in held_out) > 0.7


def auc(*parts: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> float:
    labels, margins = (np.concatenate(found) for found in zip(*parts, strict=True))
    return float(roc_auc_score(labels, margins))


def test_scores_of_new_customers_need_the_bits_and_are_those_of_training() -> None:
    for name, item in run().results.items():
        data = banks_of(world())[name]
        own = {(name, column.name): column for column in data.columns}
        found = item.model.margins(item.model.by_bits(own, item.bits), data.customers)
        np.testing.assert_array_equal(found, item.margins)


def test_every_disclosure_is_declared_and_sums_are_over_all_banks() -> None:
    ledgers = run().ledgers
    for org in NAMES:
        entries = {(e.source, e.to, e.what) for e in ledgers[org].entries()}
        assert {(other, org, What.BANK_TOTALS) for other in NAMES if other != org} <= entries
    for org in world().departments:
        told = {e.to for e in ledgers[org].entries() if e.what is What.QUERY_SUMS}
        assert told == set(NAMES)


def test_two_banks_are_refused_with_the_reason() -> None:
    banks = dict(list(banks_of(world()).items())[:2])
    with pytest.raises(UsageError, match="reads the other's part"):
        local_manifest(banks, world().departments, TreesParameters.model_validate(SMALL))


def test_a_department_that_answers_one_bank_otherwise_ends_the_job() -> None:
    """A residue that was changed in one bank's answer is a wrong sum for all of them."""
    banks = banks_of(world())
    manifest = local_manifest(
        banks, world().departments, TreesParameters.model_validate({**SMALL, "trees": 1})
    )
    orgs = [*banks, *world().departments]
    links = in_process(orgs)
    cheat = next(iter(world().departments))
    fine = links[cheat]["bank-b"].send

    def send(stage: str, message: object) -> None:
        if isinstance(message, Answer) and stage == "trees":
            w = message.w.copy()
            w[6] ^= 0x04  # bit 50: far above the rounding
            message = Answer(message.context, message.batch, message.index, w)
        fine(stage, message)

    links[cheat]["bank-b"].send = send  # type: ignore[method-assign] - the attack
    with pytest.raises(LianmoError) as caught:
        run_job_in_process(
            banks, world().departments, manifest, local_seeds(orgs, 3), channels=links
        )
    assert not isinstance(caught.value, PartyLost)


def test_a_bank_that_loses_a_department_tells_the_others_at_which_stage() -> None:
    banks = banks_of(world())
    of = TreesParameters.model_validate({**SMALL, "trees": 1})
    manifest = local_manifest(banks, world().departments, of)
    orgs = [*banks, *world().departments]
    links, told = in_process(orgs), list[str]()
    lost = next(iter(world().departments))
    fine, stop = links["bank-b"][lost].receive, links["bank-b"]["bank-a"].stop

    def receive(stage: str, kind: type[object]) -> object:
        if stage == "counts":
            raise PartyLost("no frame", party=lost)
        return fine(stage, kind)

    def tell(stage: str, code: str) -> None:
        told.append(stage)
        stop(stage, code)

    links["bank-b"][lost].receive = receive  # type: ignore[method-assign, assignment] - the fault
    links["bank-b"]["bank-a"].stop = tell  # type: ignore[method-assign] - looks
    with pytest.raises(PartyLost):
        run_job_in_process(
            banks, world().departments, manifest, local_seeds(orgs, 3), channels=links
        )
    assert told == ["counts"]
