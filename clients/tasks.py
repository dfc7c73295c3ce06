"""Which program a manifest's task is, at this party; and what of its result is kept as files."""

from __future__ import annotations

from typing import cast

from clients import gate
from clients.runner import Admission, Outcome
from federation.objects import Role
from federation.tasks.party import Party


def run_task(party: Party, admission: Admission) -> Outcome:
    """Run this party's side of the job's task on what the gate hands out."""
    opened = cast(gate.Admission, admission)
    if party.manifest.party(party.me).role is Role.BANK:
        return _bank(party, opened)
    return _department(party, opened)


def _bank(party: Party, opened: gate.Admission) -> Outcome:
    raise NotImplementedError


def _department(party: Party, opened: gate.Admission) -> Outcome:
    raise NotImplementedError
