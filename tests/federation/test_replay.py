"""An auditor recomputes a job: what an honest one gives, and what the parts refuse."""

from __future__ import annotations

from functools import cache

import numpy as np

from federation import escrow
from federation.replay import (
    check_accounts,
    check_queries,
    queries_of,
    replay,
)
from tests.federation.audited import AuditedJob, audited
from tests.federation.scorecard_data import make_world
from tests.federation.trees_data import make_trees_world


@cache
def scorecard() -> AuditedJob:
    world = make_world(rows=700, customers=500)
    return audited(world.bank, world.departments, world.manifest(openings=1))


@cache
def trees() -> AuditedJob:
    world = make_trees_world()
    return audited(world.bank, world.departments, world.manifest())


def test_an_honest_job_replays_without_a_finding_from_every_side() -> None:
    for job in (scorecard(), trees()):
        assert check_accounts(job.manifest, job.accounts) == []
        for org, account in job.accounts.items():
            done = replay(job.manifest, account, job.opened(org))
            assert done.findings == ()
            sent = [f for p in account.transcript.peers() for f in account.transcript.frames(p)]
            assert done.frames == sum(frame.is_sent for frame in sent) > 10


def test_two_auditors_open_every_query_without_a_label() -> None:
    for job in (scorecard(), trees()):
        found = job.recovered("audit-a", "audit-c")
        bank = job.data["bank"]
        for org in job.manifest.departments:
            account = job.accounts[org]
            given = job.escrows[org]
            rows = escrow.customers(given, found, job.manifest.cover.rows)
            np.testing.assert_array_equal(np.flatnonzero(rows), bank.positions)
            every = range(len(queries_of(account, "bank")))
            audit = check_queries(job.manifest, account, found, rows, every)
            assert audit.findings == ()
            assert audit.total == job.manifest.limits.tokens == len(every)
