"""Attacks on a node by who carries its orders: a coordinator that repeats, withholds and delays.

Each shows what was won before the defence was there; see GOVERNANCE.md, T1, T4 and T6.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from clients.runner import Admission, Outcome
from federation.errors import PartyLost
from federation.objects import JobManifest
from federation.tasks.party import Party
from tests.clients.test_runner import BANK, TAX, City, train


@pytest.fixture
def city(tmp_path: Path) -> City:
    return City(tmp_path)


def test_another_attempt_or_job_does_not_round_a_score_anew(city: City) -> None:
    """Three attempts of every manifest, and any number of manifests: their mean would be exact."""
    secrets: list[bytes] = []

    def program(party: Party, admission: Admission) -> Outcome:
        secrets.append(party.rounding)
        return Outcome(b"{}")

    city.program = program
    for order in (city.order(1), city.order(2), city.order(1, job="another")):
        assert train(city.runner(TAX), order).state == "succeeded"
    assert len(secrets) == 3
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 32
    assert city.homes[BANK].rounding_secret() != secrets[0]
    assert (city.homes[TAX].path / "keys" / "rounding.secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["withdrawn", "too long"])
def test_a_coordinator_that_says_go_on_keeps_no_job_alive(city: City, how: str) -> None:
    """Acceptance test 22 with a hostile coordinator: this board says "running" for ever."""
    limits = city.order().manifest.unverified(JobManifest).limits
    limits = limits.model_copy(update={"wall_time_s": 1 if how == "too long" else 3600})
    stages = 0

    def program(party: Party, admission: Admission) -> Outcome:
        nonlocal stages
        while True:
            stages += 1
            city.gates[TAX].withdrawn = how == "withdrawn"
            with party.at(f"stage {stages}"):
                time.sleep(0.05)

    city.program = program
    runner = city.runner(TAX)
    assert train(runner, city.order(limits=limits)).state == "stopped"
    assert stages == 1 if how == "withdrawn" else stages < 40


def test_a_program_that_waits_for_its_peer_is_woken_when_the_job_is_withdrawn(city: City) -> None:
    def program(party: Party, admission: Admission) -> Outcome:
        city.gates[TAX].withdrawn = True
        while not closed.wait(0.01):
            pass
        raise PartyLost("cut", party=BANK)

    closed = threading.Event()
    city.program = program
    told: list[str] = []

    def close(job: object) -> None:
        told.append("closed")
        closed.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clients.runner._Job.close", close)
        assert train(city.runner(TAX), city.order()).state == "stopped"
    assert told


def test_an_old_attempt_neither_comes_back_after_a_restart_nor_counts(city: City) -> None:
    """Admitted first and refused after, it would have reserved its tokens and never closed them."""
    order = city.order(attempt=3)
    assert train(city.runner(TAX), order).state == "succeeded"
    older = order.model_copy(update={"attempt": 1})
    assert train(city.runner(TAX), older).state == "refused"  # another process than before
    assert city.gates[TAX].admitted == [3]
