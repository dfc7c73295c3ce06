"""Twenty rounds of the fault campaign; `make faults` runs 500. See campaign.py for what must hold.

Ten with real processes in one small federation, ten in one process. Each is named by its seed, and
`make faults FAULTS=1 SEED=...` repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults import in_process
from tests.faults.campaign import Campaign
from tests.faults.plans import KINDS, plan_of
from tests.faults.world import World

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

# Chosen so that together they have every kind of fault and every sort of victim.
REAL = (1, 6, 9, 12, 13, 16, 18, 32, 38, 46)
IN_PROCESS = (17, 100, 101, 102, 103, 104, 105, 107, 109, 110)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with World(tmp_path_factory.mktemp("world")) as world:
        campaign = Campaign(world)
        assert campaign.calibrate().problems == []
        assert campaign.usual_auc > 0.75
        yield campaign


@pytest.mark.parametrize("seed", REAL)
def test_whatever_fails_the_job_ends_well_and_nothing_is_lost(
    campaign: Campaign, seed: int
) -> None:
    found = campaign.run(seed)
    assert found.problems == [], str(found)


@pytest.mark.parametrize("seed", IN_PROCESS)
def test_whatever_fails_in_one_process_the_model_is_that_of_an_undisturbed_job(seed: int) -> None:
    line, problems = in_process.run(seed)
    assert problems == [], line


def test_the_rounds_of_every_day_have_every_kind_of_fault() -> None:
    plans = [plan_of(seed) for seed in REAL]
    assert {plan.kind for plan in plans} >= KINDS.keys() - {"none"}
    assert {in_process.plan_of(seed).kind for seed in IN_PROCESS} == set(in_process.KINDS)
    assert os.name == "posix"  # signals and limits of processes
