"""An auditor recomputes a job: what an honest one gives, and what the parts refuse."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from federation import escrow
from federation.errors import NotFound
from federation.objects import CoverKind
from federation.replay import (
    check_accounts,
    check_queries,
    queries_of,
    replay,
)
from federation.tasks import scorecard as scorecard_task
from federation.tasks.checkpoints import MemoryCheckpointBook
from tests.federation.audited import AuditedJob, audited
from tests.federation.scorecard_data import SUMS_ONLY, make_world
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


class Crashing(MemoryCheckpointBook):
    """Its party dies when it would keep its fourth step."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 8  # two writes a step

    def save(self, state: bytes, part: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the process is gone")
        super().save(state, part)


def test_every_attempt_of_a_resumed_job_replays_by_itself() -> None:
    world = make_world(rows=700, customers=500)
    manifest = world.manifest(**SUMS_ONLY)
    books: dict[str, MemoryCheckpointBook] = {
        "bank": MemoryCheckpointBook(),
        "dept_0": Crashing(),
        "dept_1": MemoryCheckpointBook(),
    }
    first = audited(world.bank, world.departments, manifest, books=books, is_failing=True)
    assert isinstance(first.error, RuntimeError)
    second = audited(world.bank, world.departments, manifest, books=books, attempt=1)
    assert any(second.before["dept_0"].values())
    frames = {}
    for job in (first, second):
        assert check_accounts(job.manifest, job.accounts) == []
        done = {
            org: replay(job.manifest, account, job.opened(org))
            for org, account in job.accounts.items()
            if not (job is first and org == "dept_0")  # what stopped it is not in its program
        }
        assert [one.findings for one in done.values() if one.findings] == []
        frames[job is second] = done["bank"].frames
    # the second went on from what was held: without that state its replay deviates
    lost = dataclasses.replace(second.opened("bank"), before={})
    assert replay(second.manifest, second.accounts["bank"], lost).findings != ()
    found = second.recovered("audit-a", "audit-b")
    rows = escrow.customers(second.escrows["dept_1"], found, 700)
    account = second.accounts["dept_1"]
    every = range(len(queries_of(account, "bank")))
    audit = check_queries(second.manifest, account, found, rows, every)
    assert audit.findings == ()
    assert 0 < audit.total < second.manifest.limits.tokens


def test_a_job_over_the_customers_alone_replays_with_its_list_of_rows() -> None:
    world = make_world(rows=500, customers=500)
    manifest = world.manifest(**SUMS_ONLY)
    rule = manifest.cover.model_copy(update={"kind": CoverKind.CUSTOMERS})
    manifest = manifest.model_copy(update={"cover": rule})
    manifest = manifest.model_copy(update={"disclosures": scorecard_task.declare(manifest)})
    job = audited(world.bank, world.departments, manifest)
    for org, account in job.accounts.items():
        assert account.transcript.frames(account.transcript.peers()[0])[0].kind in (
            "CoverRows",
            "Commitments",
        )
        assert replay(job.manifest, account, job.opened(org)).findings == ()
    without = dataclasses.replace(job.opened("bank"), cover=None)
    with pytest.raises(NotFound, match=r"bank.*no cover"):
        replay(job.manifest, job.accounts["bank"], without)
