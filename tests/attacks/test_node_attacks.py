"""Attacks on a node by who carries its orders: a coordinator that repeats, withholds and delays.

Each shows what was won before the defence was there; see GOVERNANCE.md, T1, T4 and T6.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.runner import Admission, Outcome
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
