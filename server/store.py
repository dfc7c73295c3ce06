"""The coordinator's database: what was said by whom, envelopes as they came, and where jobs are.

SQLite (WAL) by default, PostgreSQL by URL; one model for both, changed by server/migrations. What
stands here opens no data: an owner's gate believes the envelopes, never these rows.

Writes are serial: `Store.write` holds a lock, because the state of a job moves under several
requests at once and one coordinator is one process. SQLite is told so with BEGIN IMMEDIATE: a
transaction that first reads and then writes would otherwise fail when another process wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts INTEGER keys alone


class UtcTime(sa.TypeDecorator[datetime]):
    """Times in UTC; SQLite keeps no zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC)


class Base(DeclarativeBase):
    """Named constraints, so that a migration can name them on both databases."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class OrganisationRow(Base):
    """An organisation that showed its card; whether it is admitted is the trust store's word."""

    __tablename__ = "organisations"

    org: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    card_digest: Mapped[str] = mapped_column(sa.String(64))
    node_id: Mapped[str] = mapped_column(sa.String(20))  # unsigned 64 bit: too big for BIGINT
    registered: Mapped[datetime] = mapped_column(UtcTime)
    last_seen: Mapped[datetime | None] = mapped_column(UtcTime)


class CatalogueRow(Base):
    """The newest entry of a dataset, as its owner signed it."""

    __tablename__ = "catalogue"

    org: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    dataset: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(sa.String(64))
    updated: Mapped[datetime] = mapped_column(UtcTime)
    envelope: Mapped[bytes] = mapped_column(sa.LargeBinary)


class JobRow(Base):
    """A job; `number` orders the list and is what cursors hold."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(sa.String(64), unique=True)
    manifest_digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    envelope: Mapped[bytes] = mapped_column(sa.LargeBinary)
    status: Mapped[str] = mapped_column(sa.String(16), index=True)
    message: Mapped[str] = mapped_column(sa.Text, default="")
    attempt: Mapped[int] = mapped_column(sa.Integer, default=0)
    run_id: Mapped[str | None] = mapped_column(sa.String(20))
    started: Mapped[datetime | None] = mapped_column(UtcTime)
    created: Mapped[datetime] = mapped_column(UtcTime)
    updated: Mapped[datetime] = mapped_column(UtcTime)


class JobPartyRow(Base):
    """Who is named in a job, and so may see it."""

    __tablename__ = "job_parties"

    org: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    job_number: Mapped[int] = mapped_column(sa.ForeignKey("jobs.number"), primary_key=True)


class ApprovalRow(Base):
    """One organisation's word on a job; an organisation may approve and later withdraw."""

    __tablename__ = "approvals"
    __table_args__ = (sa.UniqueConstraint("manifest_digest", "digest"),)

    number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=True)
    manifest_digest: Mapped[str] = mapped_column(sa.ForeignKey("jobs.manifest_digest"), index=True)
    org: Mapped[str] = mapped_column(sa.String(32))
    digest: Mapped[str] = mapped_column(sa.String(64))
    decision: Mapped[str] = mapped_column(sa.String(16))
    envelope: Mapped[bytes] = mapped_column(sa.LargeBinary)
    created: Mapped[datetime] = mapped_column(UtcTime)


class RecordRow(Base):
    """A party's signed run record of one attempt."""

    __tablename__ = "run_records"
    __table_args__ = (sa.UniqueConstraint("manifest_digest", "attempt", "org"),)

    number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=True)
    manifest_digest: Mapped[str] = mapped_column(sa.ForeignKey("jobs.manifest_digest"), index=True)
    org: Mapped[str] = mapped_column(sa.String(32))
    attempt: Mapped[int] = mapped_column(sa.Integer)
    outcome: Mapped[str] = mapped_column(sa.String(16))
    envelope: Mapped[bytes] = mapped_column(sa.LargeBinary)
    receipt: Mapped[bytes | None] = mapped_column(sa.LargeBinary)  # from the party's audit log


class EventRow(Base):
    """What happened to a job, in order; of a stage's progress only the newest stays."""

    __tablename__ = "events"
    # A number must never come back: `after=N` would miss the event that has it.
    __table_args__ = (sa.Index("ix_events_job", "job", "number"), {"sqlite_autoincrement": True})

    number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(sa.ForeignKey("jobs.job"))
    at: Mapped[datetime] = mapped_column(UtcTime)
    kind: Mapped[str] = mapped_column(sa.String(16))
    org: Mapped[str | None] = mapped_column(sa.String(32))
    status: Mapped[str | None] = mapped_column(sa.String(16))
    stage: Mapped[str | None] = mapped_column(sa.String(200))
    text: Mapped[str] = mapped_column(sa.Text, default="")
    progress: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)


class IdempotencyRow(Base):
    """The answer to a POST, kept under the caller's key. Without a status it is in progress."""

    __tablename__ = "idempotency"

    org: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[int | None] = mapped_column(sa.Integer)
    content_type: Mapped[str] = mapped_column(sa.String(80), default="")
    body: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    created: Mapped[datetime] = mapped_column(UtcTime, index=True)


class GrantEventRow(Base):
    """A pause, resumption or revocation, as a subject signed it."""

    __tablename__ = "grant_events"

    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    sender: Mapped[str] = mapped_column(sa.String(32), index=True)
    # of the subject's key, by its digest, and whose it is; None: the platform
    certificate: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    issuer: Mapped[str | None] = mapped_column(sa.String(32), index=True)
    consent: Mapped[str] = mapped_column(sa.String(64), index=True)  # the grant's digest
    bundle: Mapped[bytes] = mapped_column(sa.LargeBinary)
    created: Mapped[datetime] = mapped_column(UtcTime)


class CertificateRevocationRow(Base):
    """A certificate of a subject's keys that its issuer has taken back."""

    __tablename__ = "certificate_revocations"

    certificate: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    org: Mapped[str | None] = mapped_column(sa.String(32))  # its issuer
    envelope: Mapped[bytes] = mapped_column(sa.LargeBinary)
    created: Mapped[datetime] = mapped_column(UtcTime)


class StatusListRow(Base):
    """The newest status list of the platform."""

    __tablename__ = "status_lists"

    org: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(sa.BigInteger)
    envelope: Mapped[bytes] = mapped_column(sa.LargeBinary)
    created: Mapped[datetime] = mapped_column(UtcTime)


class NoticeRow(Base):
    """A sealed receipt until its subject fetches it."""

    __tablename__ = "notices"
    __table_args__ = (sa.Index("ix_notices_mailbox", "mailbox", "number"),)

    number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=True)
    mailbox: Mapped[str] = mapped_column(sa.String(32))
    sender: Mapped[str] = mapped_column(sa.String(32))
    sealed: Mapped[bytes] = mapped_column(sa.LargeBinary)
    created: Mapped[datetime] = mapped_column(UtcTime)


class Store:
    """The database behind governance; opening it brings the schema up to date."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(
            url,
            hide_parameters=True,  # of a failed statement: they would stand in the log
            pool_pre_ping=not url.startswith("sqlite"),
        )
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_settings)
            event.listen(self.engine, "begin", _sqlite_begin)
        self._lock = threading.RLock()
        migrate(self.engine)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction at a time; committed at the end of the block, rolled back on an error.

        What was given to `after_commit` runs then, still under the lock.
        """
        with self._lock:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
            for action in session.info.pop(_AFTER, ()):
                action()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; rows stay usable after the block."""
        engine = self.engine.execution_options(read_only=True)
        with Session(engine, expire_on_commit=False) as session:
            yield session

    def forget_unfinished(self) -> None:
        """At the start: a POST that a crash cut off has no answer, so it may be tried again."""
        with self.write() as session:
            session.execute(sa.delete(IdempotencyRow).where(IdempotencyRow.status.is_(None)))

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


_AFTER = "after commit"


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Do this once the transaction is on disk, in the order of the calls."""
    session.info.setdefault(_AFTER, []).append(action)


def _sqlite_settings(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; see _sqlite_begin
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=10000", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    is_read = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if is_read else "BEGIN IMMEDIATE")


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to the newest revision; nothing happens when it is there."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
