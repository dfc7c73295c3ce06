"""Three banks and two departments fit one scorecard; their statistics open as sums only."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from federation.channel import in_process
from federation.errors import LianmoError, PartyLost
from federation.ledger import What
from federation.objects import ScorecardParameters
from federation.tables import BankData
from federation.tasks.local import LocalRun, local_manifest, local_seeds, run_job_in_process
from federation.tasks.messages import PointsTables
from federation.tasks.model import ScorecardResult
from tests.federation.scorecard_data import World, make_world

NAMES = ("bank-a", "bank-b", "bank-c")


@cache
def world() -> World:
    return make_world(rows=2600, customers=2400)


def banks() -> dict[str, BankData]:
    bank, share = world().bank, np.arange(world().bank.customers) % 5
    found = {}
    for name, take in zip(NAMES, ([0, 1], [2, 3], [4]), strict=True):
        rows = np.flatnonzero(np.isin(share, take))
        found[name] = BankData(
            cover_rows=bank.cover_rows,
            positions=bank.positions[rows],
            codes=bank.codes[rows],
            columns=[column.take(rows) for column in bank.columns],
            labels=bank.labels[rows],
        )
    return found


@cache
def run(**parameters: object) -> LocalRun[Any, Any]:
    of = ScorecardParameters.model_validate(parameters)
    manifest = local_manifest(banks(), world().departments, of)
    orgs = [*NAMES, *world().departments]
    return run_job_in_process(banks(), world().departments, manifest, local_seeds(orgs, 5))


def results(**parameters: object) -> list[ScorecardResult]:
    return list(run(**parameters).results.values())


def test_all_banks_hold_the_same_scorecard() -> None:
    first, *others = results(openings=1)
    for other in others:
        assert [f.name for f in other.model.features] == [f.name for f in first.model.features]
        for mine, theirs in zip(first.model.features, other.model.features, strict=True):
            np.testing.assert_array_equal(mine.points_of_bins(), theirs.points_of_bins())
        assert other.model.base_points == first.model.base_points
    assert any(f.owner in world().departments and f.coefficient for f in first.model.features)


@pytest.mark.parametrize("openings", [0, 2])
def test_it_is_about_as_good_as_one_bank_with_all_customers(openings: int) -> None:
    found = results(openings=openings)
    labels = np.concatenate([item.labels[item.test] for item in found])
    scores = np.concatenate([item.scores[item.test] for item in found if item.scores is not None])
    shared = roc_auc_score(labels, -scores)
    whole = world().run(openings=openings).result
    assert whole.scores is not None
    pooled = roc_auc_score(whole.labels[whole.test], -whole.scores[whole.test])
    # other hold-outs: some 700 test rows each
    assert shared > pooled - 0.04, (shared, pooled)
    alone = np.concatenate([item.alone_scores[item.test] for item in found])
    assert shared > roc_auc_score(labels, -alone)


def test_departments_tell_statistics_to_all_banks_and_every_disclosure_is_declared() -> None:
    ledgers = run(openings=1).ledgers
    for org in world().departments:
        entries = ledgers[org].entries()
        for what in (What.BIN_COUNTS, What.QUERY_SUMS, What.SCORE_OPENING):
            assert {e.to for e in entries if e.what is what and e.source == org} == set(NAMES)
    for org in NAMES:
        others = {e.source for e in ledgers[org].entries() if e.what is What.BANK_TOTALS}
        assert others == set(NAMES)


def test_a_bank_that_wants_another_model_than_the_others_is_refused() -> None:
    of = ScorecardParameters(openings=0)
    manifest = local_manifest(banks(), world().departments, of)
    orgs = [*NAMES, *world().departments]
    links = in_process(orgs)
    victim = next(iter(world().departments))
    fine = links["bank-c"][victim].send

    def send(stage: str, message: object) -> None:
        if isinstance(message, PointsTables):
            points = message.points.copy()
            points[0] += 1
            message = PointsTables(points)
        fine(stage, message)

    links["bank-c"][victim].send = send  # type: ignore[method-assign] - the attack
    with pytest.raises(LianmoError, match="different models") as caught:
        run_job_in_process(
            banks(), world().departments, manifest, local_seeds(orgs, 5), channels=links
        )
    assert not isinstance(caught.value, PartyLost)
