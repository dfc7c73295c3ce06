"""A home with an audit log and some history, for tests of the log and attacks on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clients.audit import CHECKPOINT_FILE, AuditLog
from clients.home import Home
from clients.store import Reservation, Store
from federation.audit import Action, Check, Result, exposure_scope
from federation.errors import RefusalCode, Refused
from federation.objects import Decision, Usage

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SUBJECT = "91310115Y71126484T"  # a credit code, which no leaf may show
CANARY = "canary-of-a-value"
JOBS = tuple(digit * 64 for digit in "123")


Sql = str | tuple[str | int | bytes, ...]  # a statement, or one with its values


@dataclass
class LoggedNode:
    """One organisation with its log."""

    home: Home
    store: Store
    log: AuditLog

    @property
    def database(self) -> Path:
        return self.home.path / "state.db"

    @property
    def checkpoint_file(self) -> Path:
        return self.home.log / CHECKPOINT_FILE

    def reserve(self, job: str, tokens: int, now: datetime = NOW, attempt: int = 1) -> None:
        """As the gate lets an attempt in."""
        wanted = Reservation(job, attempt, "bank_a", "payments", tokens, 1000, bytes(32))
        with self.log.together(now):
            assert self.store.exposure.reserve(wanted, 1000, now) is not None
            self.log.append(
                Action.ATTEMPT,
                job,
                now,
                actor=Usage.RUN,
                outcome=Result.ADMITTED,
                job=job,
                attempt=attempt,
                scope=exposure_scope("bank_a", "payments"),
                amount=tokens,
            )

    def spend(self, job: str, tokens: int, now: datetime = NOW, attempt: int = 1) -> None:
        """As the gate closes it."""
        with self.log.together(now):
            assert self.store.exposure.close(job, attempt, tokens, now)
            self.log.append(
                Action.ATTEMPT_CLOSED, job, now, job=job, attempt=attempt, amount=tokens
            )

    def decide(self, job: str, decision: Decision, now: datetime = NOW) -> None:
        """As an approver does."""
        actions = {Decision.APPROVE: Action.JOB_APPROVED, Decision.REFUSE: Action.JOB_REFUSED}
        with self.log.together(now):
            self.store.jobs.put(job, "a-job", b"{}", now)
            self.store.jobs.set_decision(job, decision.value)
            self.log.append(actions[decision], "d" * 64, now, actor=Usage.APPROVE, job=job)

    def history(self) -> None:
        """Nine entries, a minute apart."""
        self.decide(JOBS[0], Decision.APPROVE, NOW)
        self.reserve(JOBS[0], 12, NOW + timedelta(minutes=1))
        self.spend(JOBS[0], 7, NOW + timedelta(minutes=2))
        for minute, subject in ((3, SUBJECT), (4, CANARY)):
            now = NOW + timedelta(minutes=minute)
            self.log.append(Action.DATA_ADDED, "a" * 64, now, subject=subject.encode())
        error = Refused(f"because of {CANARY}", code=RefusalCode.FIELD_LEVEL)
        now = NOW + timedelta(minutes=5)
        self.log.refused(JOBS[1], 1, Check.CATALOGUE, error, now)
        self.reserve(JOBS[2], 20, NOW + timedelta(minutes=6))
        self.decide(JOBS[1], Decision.REFUSE, NOW + timedelta(minutes=7))

    def sql(self, *statements: Sql, drop: bool = True) -> None:
        """What an administrator of the database can do, triggers dropped or not."""
        with closing(sqlite3.connect(self.database)) as connection, connection:
            if drop:
                for table in ("audit_entry", "audit_checkpoint"):
                    for change in ("update", "delete"):
                        connection.execute(f"DROP TRIGGER IF EXISTS {table}_no_{change}")
            for statement in statements:
                words, *values = (statement,) if isinstance(statement, str) else statement
                connection.execute(str(words), values)


@contextmanager
def make_node(folder: Path, org: str = "tax", kind: str = "department") -> Iterator[LoggedNode]:
    """A new home with a store and an empty log."""
    home = Home.create(
        folder / org,
        org=org,
        kind=kind,
        name=org,
        uscc="91330106Y71047292M",
        region="厦门",
        now=NOW - timedelta(days=1),
    )
    with reopened(home) as node:
        yield node


@contextmanager
def reopened(home: Home) -> Iterator[LoggedNode]:
    """The same home, as a process that starts now sees it."""
    store = Store.open(home.database_url)
    try:
        yield LoggedNode(home, store, AuditLog(home, store))
    finally:
        store.close()
