"""What a node must remember: one SQLAlchemy model for SQLite and PostgreSQL, one class a subject.

Everything here is durable when a method returns: SQLite runs in WAL mode with synchronous=FULL, so
a commit is on disk before it is answered. That is what "a token is spent for good" rests on
(PROTOCOLS.md section 3). Every writing transaction takes its lock at once (BEGIN IMMEDIATE, on
PostgreSQL a table lock), so no other process comes between a check and the write that it allows.

The schema is made by the migrations in `clients/migrations`, run when a store is opened that is not
at their head. Times are RFC 3339 text in UTC, as in signed objects.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    Row,
    Select,
    String,
    Table,
    Text,
    bindparam,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from federation.errors import (
    Conflict,
    IntegrityError,
    NotFound,
    NotKept,
    Unavailable,
    UsageError,
)
from federation.objects import utc_text
from protocols.books import BatchId, StoredAnswer, TokenId
from protocols.errors import ProtocolError
from protocols.row_key_books import REFUSALS_MAX, Attempt, StoredReply

HEAD = "0012"  # the newest migration; a test holds it to the scripts
BUSY_TIMEOUT_S = 30  # how long a command waits for another one's transaction

# --- model ----------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """The tables of one node."""


class RegistryRow(Base):
    """A registry snapshot of which the home has a copy."""

    __tablename__ = "registry"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    region: Mapped[str] = mapped_column(String(200))
    as_of: Mapped[str] = mapped_column(String(10))
    rows: Mapped[int] = mapped_column(BigInteger)
    file: Mapped[str] = mapped_column(String(200))  # inside the home's data/
    added: Mapped[str] = mapped_column(String(32))
    current: Mapped[bool]


class DatasetRow(Base):
    """A registered dataset: where it came from and its local snapshot."""

    __tablename__ = "dataset"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    source: Mapped[dict[str, Any]] = mapped_column(JSON)
    columns: Mapped[list[list[str]]] = mapped_column(JSON)  # [name, type] in the file's order
    rows: Mapped[int] = mapped_column(BigInteger)
    unknown: Mapped[int] = mapped_column(BigInteger)  # codes not in the registry, kept out
    checked_against: Mapped[str] = mapped_column(String(64))  # digest of the registry
    snapshot: Mapped[str] = mapped_column(String(64))  # SHA-256 of the file
    file: Mapped[str] = mapped_column(String(200))
    added: Mapped[str] = mapped_column(String(32))


class EntryRow(Base):
    """The catalogue's words on a dataset: the draft, and what was signed last."""

    __tablename__ = "catalogue"

    dataset: Mapped[str] = mapped_column(
        String(64), ForeignKey("dataset.name", ondelete="CASCADE"), primary_key=True
    )
    draft: Mapped[dict[str, Any]] = mapped_column(JSON)
    envelope: Mapped[bytes | None] = mapped_column(LargeBinary)
    digest: Mapped[str | None] = mapped_column(String(64))
    published: Mapped[str | None] = mapped_column(String(32))


class JobRow(Base):
    """A manifest that this node has seen, and its own organisation's word on it."""

    __tablename__ = "job"

    manifest: Mapped[str] = mapped_column(String(64), primary_key=True)
    job: Mapped[str] = mapped_column(String(64), index=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    seen: Mapped[str] = mapped_column(String(32))
    decision: Mapped[str | None] = mapped_column(String(16))


class ApprovalRow(Base):
    """An approval, refusal or withdrawal that this node has seen; kept for good."""

    __tablename__ = "approval"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    manifest: Mapped[str] = mapped_column(String(64), index=True)
    org: Mapped[str] = mapped_column(String(32))
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    seen: Mapped[str] = mapped_column(String(32))


class ExposureRow(Base):
    """Tokens that one attempt of a job may spend, or has spent, on a dataset."""

    __tablename__ = "exposure"

    manifest: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bank: Mapped[str] = mapped_column(Text)  # several that opened sums together: with commas
    dataset: Mapped[str] = mapped_column(String(64))  # outlives the dataset: no foreign key
    tokens: Mapped[int] = mapped_column(BigInteger)
    customers_min: Mapped[int] = mapped_column(BigInteger)
    salt: Mapped[bytes] = mapped_column(LargeBinary)  # of the snapshot digest in the run record
    opened: Mapped[str] = mapped_column(String(32))
    closed: Mapped[str | None] = mapped_column(String(32))


class BatchKey:
    """The columns that name a batch of tokens (protocols/books.py)."""

    manifest: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    querier: Mapped[str] = mapped_column(String(32), primary_key=True)
    matrix: Mapped[str] = mapped_column(String(200), primary_key=True)
    batch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class SpentRow(BatchKey, Base):
    """A token that this node spent as querier."""

    __tablename__ = "spent"

    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # in its batch
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    message: Mapped[bytes | None] = mapped_column(LargeBinary)  # in flight, until it is answered


class GrantedRow(BatchKey, Base):
    """A batch of tokens that this node granted, and for which request."""

    __tablename__ = "granted"

    digest: Mapped[bytes] = mapped_column(LargeBinary)


class AnswerRow(BatchKey, Base):
    """A query that this node answered: an equal one gets these bytes, another one nothing."""

    __tablename__ = "answer"

    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    payload: Mapped[bytes] = mapped_column(LargeBinary)


class AttemptKey:
    """The columns that name an attempt to agree on row keys (protocols/row_key_books.py)."""

    bank: Mapped[str] = mapped_column(String(32), primary_key=True)
    department: Mapped[str] = mapped_column(String(32), primary_key=True)
    snapshot: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class ReplyRow(AttemptKey, Base):
    """The one reply that this node, as bank, may send in an attempt."""

    __tablename__ = "row_key_reply"

    m: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hello: Mapped[bytes] = mapped_column(LargeBinary)
    customers: Mapped[bytes] = mapped_column(LargeBinary)  # digest of the list
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    made: Mapped[str | None] = mapped_column(String(32))  # erased with the audit window


class AttemptRow(AttemptKey, Base):
    """An attempt that this node, as department, opened: one m, and one reply, if any."""

    __tablename__ = "row_key_attempt"

    m: Mapped[int] = mapped_column(BigInteger)
    reply: Mapped[bytes | None] = mapped_column(LargeBinary)  # digest
    refused: Mapped[bool]


class DecoyRow(Base):
    """A decoy that stands beside a customer for ever (PROTOCOLS.md section 0)."""

    __tablename__ = "decoy"

    arrival: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # 0, 1, 2 ...
    k: Mapped[int]
    owner: Mapped[bytes] = mapped_column(LargeBinary(18))
    decoy: Mapped[bytes] = mapped_column(LargeBinary(18))


class NonceRow(Base):
    """A nonce that must not come again before it expires."""

    __tablename__ = "nonce"

    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    nonce: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires: Mapped[str] = mapped_column(String(32), index=True)


class AuditRow(Base):
    """An entry of this node's audit log (clients/audit.py); triggers refuse to change one."""

    __tablename__ = "audit_entry"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    leaf: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32))  # of the leaf, for the tree


class AuditSaltRow(Base):
    """What opens an entry's commitment; without this row the commitment says nothing."""

    __tablename__ = "audit_salt"

    seq: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("audit_entry.seq"), primary_key=True, autoincrement=False
    )
    salt: Mapped[bytes] = mapped_column(LargeBinary(32))
    subject: Mapped[bytes] = mapped_column(LargeBinary)


class CheckpointRow(Base):
    """A checkpoint that this node's log key signed."""

    __tablename__ = "audit_checkpoint"

    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    note: Mapped[str] = mapped_column(Text)


class ConsentRow(Base):
    """A signed grant of federation/grants.py: given, held, or met in a request."""

    __tablename__ = "consent"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    part: Mapped[str] = mapped_column(String(16))  # given (by us), held (for us), met (at us)
    subject: Mapped[str] = mapped_column(String(18), index=True)
    bundle: Mapped[bytes] = mapped_column(LargeBinary)
    uses: Mapped[int] = mapped_column(BigInteger, default=0)  # counted where it is met
    last_use: Mapped[str | None] = mapped_column(String(32))
    added: Mapped[str] = mapped_column(String(32))


class ConsentEventRow(Base):
    """A pause, resumption or revocation; who said it is part of the bundle, and was verified."""

    __tablename__ = "consent_event"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    consent: Mapped[str] = mapped_column(String(64), index=True)  # may come before the grant
    subject: Mapped[str | None] = mapped_column(String(18))  # None: the platform
    bundle: Mapped[bytes] = mapped_column(LargeBinary)
    seen: Mapped[str] = mapped_column(String(32))


class StatusListRow(Base):
    """The newest status list of an issuer; an older one never takes its place."""

    __tablename__ = "status_list"

    org: Mapped[str] = mapped_column(String(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)


class SubjectSaltRow(Base):
    """Whom scopes are about; without this row a scope says nothing (clients/consent.py)."""

    __tablename__ = "subject_salt"

    subject: Mapped[str] = mapped_column(String(18), primary_key=True)
    salt: Mapped[bytes] = mapped_column(LargeBinary(32))


class LeakRow(Base):
    """What all verifiers together were told of one (subject, field, period)."""

    __tablename__ = "leak"

    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    millibits: Mapped[int] = mapped_column(BigInteger)
    snapshot: Mapped[str] = mapped_column(String(64))  # the basis that `known` is about
    known: Mapped[dict[str, Any]] = mapped_column(JSON)


class CutsRow(Base):
    """Which cut points of a field were asked for about one subject, in this order."""

    __tablename__ = "cuts"

    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    cuts: Mapped[list[int]] = mapped_column(JSON)


class UseRow(Base):
    """A receipt of a use of the own grant, as a provider sent it."""

    __tablename__ = "consent_use"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    consent: Mapped[str] = mapped_column(String(64), index=True)
    notice: Mapped[bytes] = mapped_column(LargeBinary)
    added: Mapped[str] = mapped_column(String(32))


class UseOutboxRow(Base):
    """A use that its subject has not been told of with a cosigned receipt yet."""

    __tablename__ = "use_outbox"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    said: Mapped[dict[str, Any]] = mapped_column(JSON)  # of `Use`, what the entry does not say
    sent: Mapped[str | None] = mapped_column(String(32))  # with a receipt that is not cosigned


class EnquiryRow(Base):
    """A question that this home, as verifier, has put, and what came back."""

    __tablename__ = "enquiry"

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(32), unique=True)
    request: Mapped[str] = mapped_column(String(64), unique=True)  # digest
    question: Mapped[bytes] = mapped_column(LargeBinary)  # the signed request
    created: Mapped[str] = mapped_column(String(32))
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)  # the signed answer
    receipt: Mapped[bytes | None] = mapped_column(LargeBinary)
    result: Mapped[str | None] = mapped_column(String(16))  # None: none came
    # whose cosigned receipt is still to come
    due_from: Mapped[str | None] = mapped_column(String(64), index=True)


class ScoreRow(Base):
    """A score that this bank has asked departments' parts for; no `score`: it was refused."""

    __tablename__ = "score"

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(32), unique=True)
    job: Mapped[str] = mapped_column(String(64), index=True)
    manifest: Mapped[str] = mapped_column(String(64))
    consent: Mapped[str] = mapped_column(String(64), index=True)
    created: Mapped[str] = mapped_column(String(32), index=True)
    requests: Mapped[dict[str, Any]] = mapped_column(JSON)  # signed, by department
    answers: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # signed, with their receipts
    score: Mapped[bytes | None] = mapped_column(LargeBinary)  # signed
    points: Mapped[int | None]
    due_from: Mapped[str | None] = mapped_column(String(64), index=True)  # as of a question


class WatchRow(Base):
    """A watch: at the provider one that it keeps, at the bank one that it has asked for."""

    __tablename__ = "watch"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)  # of the request
    part: Mapped[str] = mapped_column(String(8))  # kept, asked
    consent: Mapped[str] = mapped_column(String(64), index=True)
    request: Mapped[bytes] = mapped_column(LargeBinary)  # the payload
    created: Mapped[str] = mapped_column(String(32))
    snapshot: Mapped[str | None] = mapped_column(String(64))  # last looked at; None: look again
    holds: Mapped[bool]
    last_alert: Mapped[str | None] = mapped_column(String(32))
    ended: Mapped[str | None] = mapped_column(String(32))  # why
    end_entry: Mapped[int | None] = mapped_column(BigInteger)  # at the provider: of its log
    # at the bank: what the provider has said to the end
    end_reply: Mapped[bytes | None] = mapped_column(LargeBinary)


class AlertRow(Base):
    """An alert: at the provider until the bank has taken it and after, at the bank as it came."""

    __tablename__ = "alert"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    watch: Mapped[str] = mapped_column(String(64), index=True)
    notice: Mapped[bytes] = mapped_column(LargeBinary)
    created: Mapped[str] = mapped_column(String(32), index=True)
    taken: Mapped[str | None] = mapped_column(String(32))  # by the bank
    due_from: Mapped[str | None] = mapped_column(String(64), index=True)  # at the bank, the same


class IdempotencyRow(Base):
    """The answer to a POST on the local API, under the caller's key; no status: it is served."""

    __tablename__ = "local_idempotency"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    content_type: Mapped[str] = mapped_column(String(80))
    created: Mapped[str] = mapped_column(String(32), index=True)


def table_of(kind: type[Base]) -> Table:
    """The rows' table, for statements where the mapping of objects costs more than it gives."""
    return cast(Table, kind.__table__)


_DATASET = select(table_of(DatasetRow)).where(table_of(DatasetRow).c.name == bindparam("name"))
_ENTRY = select(table_of(EntryRow)).where(table_of(EntryRow).c.dataset == bindparam("dataset"))


# --- store ----------------------------------------------------------------------------------------


class Store:
    """One node's database; safe to use from several threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._joint = threading.local()
        self.registries = Registries(self)
        self.datasets = Datasets(self)
        self.entries = Entries(self)
        self.jobs = Jobs(self)
        self.exposure = Exposure(self)
        self.decoys = StickyDecoys(self)
        self.spent = SqlSpentBook(self)
        self.answers = SqlAnswerBook(self)
        self.replies = SqlReplyBook(self)
        self.attempts = SqlAttemptBook(self)
        self.nonces = Nonces(self)

    @classmethod
    def open(cls, url: str) -> Store:
        """The store at a SQLAlchemy URL, brought to the newest schema.

        Raises UsageError for a URL that means nothing, Unavailable if nothing answers there and
        Conflict if a newer release wrote it.
        """
        engine = _engine(url)
        try:
            _migrate(engine)
        except OperationalError as error:
            engine.dispose()
            place = f"the {engine.dialect.name} database"
            todo = "check `database_url`, that the server runs and that the disk has room"
            raise Unavailable(f"{place} cannot be opened", todo=todo) from error
        except BaseException as error:
            engine.dispose()
            if type(error) is DatabaseError:
                raise _damaged(error) from error
            raise
        return cls(engine)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def forget_journal(self) -> None:
        """SQLite: no copy of what was deleted stays in the write-ahead log."""
        if self._engine.dialect.name == "sqlite":
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for all that this thread reads and writes in the block: all or nothing.

        For clients/audit.py: a change of state and the log's entry of it must not come apart.
        """
        if self.is_together:
            raise RuntimeError("a transaction inside a transaction")
        with _told("written"), Session(self._engine) as session, session.begin():
            _begin(session.connection(), writes=True)
            self._joint.session = session
            try:
                yield
            finally:
                self._joint.session = None

    @property
    def is_together(self) -> bool:
        """Whether this thread is inside of `together`."""
        return getattr(self._joint, "session", None) is not None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One transaction for all that this thread reads in the block, as it was at its start."""
        with self.reading() as session:
            before = getattr(self._joint, "reader", None)
            self._joint.reader = session
            try:
                yield
            finally:
                self._joint.reader = before

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads."""
        if self.is_together:
            yield self._joint.session
            return
        if (reader := getattr(self._joint, "reader", None)) is not None:
            yield reader
            return
        with _told("read"), Session(self._engine) as session, session.begin():
            _begin(session.connection(), writes=False)
            yield session

    def row(self, statement: Select[Any], **values: object) -> Row[Any] | None:
        """The first row of a statement on tables."""
        with self.reading() as session:
            return session.connection().execute(statement, values).first()

    @contextmanager
    def writing(self, *tables: type[Base]) -> Iterator[Session]:
        """A transaction that holds the write lock from its start, and is on disk when it ends."""
        if self.is_together:
            self._lock(self._joint.session, tables)
            yield self._joint.session
            self._joint.session.flush()
            return
        with _told("written"), Session(self._engine) as session, session.begin():
            _begin(session.connection(), writes=True)
            self._lock(session, tables)
            yield session

    def _lock(self, session: Session, tables: Sequence[type[Base]]) -> None:
        if self._engine.dialect.name == "postgresql":
            for table in tables:
                session.execute(
                    text(f'LOCK TABLE "{table.__tablename__}" IN SHARE ROW EXCLUSIVE MODE')
                )


@contextmanager
def _told(what: str) -> Iterator[None]:
    """A database's failure in this node's words: what it says itself may hold a statement."""
    try:
        yield
    except OperationalError as error:
        todo = "see that its disk has room and that it runs; `lianmo doctor` says more"
        kind = NotKept if what == "written" else Unavailable
        raise kind(f"the database cannot be {what}", todo=todo) from error
    except DatabaseError as error:
        if type(error) is not DatabaseError:
            raise  # a constraint, a wrong statement: our bug
        raise _damaged(error) from error


def _damaged(error: DatabaseError) -> IntegrityError:
    """Of a file that is no database, or no longer one."""
    todo = "stop the node, then restore the newest backup; `lianmo audit verify` compares it"
    return IntegrityError(f"the database is damaged ({type(error.orig).__name__})", todo=todo)


@contextmanager
def opened(url: str) -> Iterator[Store]:
    """The store at a URL for the length of a block; see `Store.open`."""
    store = Store.open(url)
    try:
        yield store
    finally:
        store.close()


def _engine(url: str) -> Engine:
    todo = (
        "give `database_url` as in sqlite:////var/lib/lianmo/state.db or postgresql+psycopg://..."
    )
    try:
        parsed = make_url(url)
        engine = create_engine(
            parsed,
            pool_pre_ping=parsed.get_backend_name() != "sqlite",
            hide_parameters=True,  # an error's text would show them, and it goes into the log
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise UsageError("the database URL cannot be used", todo=todo) from error
    if engine.dialect.name == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            _private_file(Path(parsed.database))
        event.listen(engine, "connect", _prepare_sqlite)
    elif engine.dialect.name != "postgresql":
        name = engine.dialect.name
        raise UsageError(f"state is kept in SQLite or PostgreSQL, not in {name}", todo=todo)
    return engine


def _private_file(path: Path) -> None:
    """Make the file, readable by its owner alone; one that is there is not even opened.

    Closing any descriptor of it would drop every lock that SQLite holds on it in this process
    (POSIX): another process would then take itself for the last one, and remove a journal in use.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        what = f"{path} cannot be opened: {error.strerror}"
        raise Unavailable(what, todo="check `database_url` and the rights on the folder") from error


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # the driver's own idea of transactions is in the way
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits of a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    # from the first write on: what a changed row leaves behind is not found by who erases it later
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin(connection: Connection, *, writes: bool) -> None:
    """What SQLite's driver was told to leave to us; no event, which every statement would pay."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        if _revision(connection) == HEAD:  # every start but the first: Alembic is not even imported
            return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
    )
    with engine.begin() as connection:
        _begin(connection, writes=True)
        if connection.dialect.name == "postgresql":  # two processes may start at once
            connection.execute(select(func.pg_advisory_xact_lock(0x6C69616E)))
        found = _revision(connection)
        if found is not None and found > HEAD:
            what = f"the database is of a newer release (schema {found}, this one knows {HEAD})"
            raise Conflict(what, todo="install that release")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


# --- registry and datasets ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredRegistry:
    """A registry snapshot of which the home has a copy."""

    digest: str
    region: str
    as_of: str
    rows: int
    file: str
    added: str


class Registries:
    """The registry snapshots; one of them is the current one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, registry: StoredRegistry) -> None:
        """Make this the current one; the older ones stay known for their runs' records."""
        with self._store.writing(RegistryRow) as session:
            for row in session.scalars(select(RegistryRow).where(RegistryRow.current)):
                row.current = False
            session.flush()
            session.merge(RegistryRow(**_values(registry), current=True))

    def current(self) -> StoredRegistry:
        """The snapshot that jobs run over; NotFound if there is none."""
        with self._store.reading() as session:
            row = session.scalar(select(RegistryRow).where(RegistryRow.current))
            if row is None:
                todo = "add one with `lianmo registry add FILE`"
                raise NotFound("there is no registry snapshot yet", todo=todo)
            return StoredRegistry(row.digest, row.region, row.as_of, row.rows, row.file, row.added)


@dataclass(frozen=True, slots=True)
class StoredDataset:
    """A registered dataset: where it came from and its local snapshot."""

    name: str
    source: Mapping[str, Any] = field(repr=False)  # a database URL may hold a password
    columns: tuple[tuple[str, str], ...]
    rows: int
    unknown: int
    checked_against: str  # digest of the registry snapshot
    snapshot: str
    file: str
    added: str


class Datasets:
    """The registered datasets."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, dataset: StoredDataset, draft: Mapping[str, Any], *, replace: bool) -> str | None:
        """Register a dataset with its draft entry; returns the file of the snapshot it replaces.

        Raises Conflict if it exists and `replace` is off, NotFound if it should and does not.
        """
        values = _values(dataset)
        values |= {"source": dict(dataset.source), "columns": [list(c) for c in dataset.columns]}
        with self._store.writing(DatasetRow, EntryRow) as session:
            old = session.get(DatasetRow, dataset.name)
            if old is not None and not replace:
                todo = f"`lianmo data refresh {dataset.name}` reads its source again"
                raise Conflict(f"dataset {dataset.name} exists already", todo=todo)
            if old is None and replace:
                raise _no_dataset(dataset.name)
            before = old.file if old is not None else None
            session.merge(DatasetRow(**values))
            session.flush()
            if (entry := session.get(EntryRow, dataset.name)) is None:
                session.add(EntryRow(dataset=dataset.name, draft=dict(draft)))
            else:
                entry.draft = dict(draft)
            return before

    def get(self, name: str) -> StoredDataset:
        """One dataset; NotFound if it was not registered."""
        if (row := self._store.row(_DATASET, name=name)) is None:
            raise _no_dataset(name)
        return _dataset(row)

    def all(self) -> tuple[StoredDataset, ...]:
        """All datasets, by name."""
        with self._store.reading() as session:
            return tuple(
                map(_dataset, session.scalars(select(DatasetRow).order_by(DatasetRow.name)))
            )

    def remove(self, name: str) -> str:
        """Forget a dataset and its entry, never its exposure; returns its snapshot's file."""
        with self._store.writing(DatasetRow, EntryRow) as session:
            if (row := session.get(DatasetRow, name)) is None:
                raise _no_dataset(name)
            file = row.file
            if (entry := session.get(EntryRow, name)) is not None:
                session.delete(entry)
                session.flush()
            session.delete(row)
            return file


def _dataset(row: DatasetRow | Row[Any]) -> StoredDataset:
    return StoredDataset(
        name=row.name,
        source=row.source,
        columns=tuple((name, kind) for name, kind in row.columns),
        rows=row.rows,
        unknown=row.unknown,
        checked_against=row.checked_against,
        snapshot=row.snapshot,
        file=row.file,
        added=row.added,
    )


def _no_dataset(name: str) -> NotFound:
    return NotFound(f"there is no dataset {name}", todo="`lianmo data list` shows what there is")


def _values(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """The catalogue's words on a dataset: the draft, and what was signed last."""

    dataset: str
    draft: Mapping[str, Any]
    envelope: bytes | None = field(repr=False)
    digest: str | None
    published: str | None


class Entries:
    """Drafts and signed catalogue entries of the own datasets."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, dataset: str) -> StoredEntry:
        """The entry of a dataset; NotFound if there is no such dataset."""
        if (row := self._store.row(_ENTRY, dataset=dataset)) is None:
            raise _no_dataset(dataset)
        return StoredEntry(row.dataset, row.draft, row.envelope, row.digest, row.published)

    def set_draft(self, dataset: str, draft: Mapping[str, Any]) -> None:
        """Change the draft; what was signed stays in force until the next publishing."""
        with self._store.writing(EntryRow) as session:
            if (row := session.get(EntryRow, dataset)) is None:
                raise _no_dataset(dataset)
            row.draft = dict(draft)

    def set_signed(self, dataset: str, envelope: bytes, digest: str, now: datetime) -> None:
        """Put a signed entry in force: from here on the gate takes no other digest."""
        with self._store.writing(EntryRow) as session:
            if (row := session.get(EntryRow, dataset)) is None:
                raise _no_dataset(dataset)
            row.envelope, row.digest, row.published = envelope, digest, utc_text(now)


# --- jobs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A manifest that this node has seen, the words on it, and its own."""

    manifest: str
    job: str
    envelope: bytes = field(repr=False)
    seen: str
    decision: str | None
    approvals: tuple[bytes, ...] = field(repr=False)


class Jobs:
    """This node's own copies of manifests and of every word on them.

    The coordinator's copies are for convenience; a refusal or withdrawal that this node has seen
    once cannot be taken back by not delivering it any more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, manifest: str, job: str, envelope: bytes, now: datetime) -> None:
        """Keep a manifest; a second time is nothing."""
        with self._store.writing(JobRow) as session:
            if session.get(JobRow, manifest) is None:
                row = JobRow(manifest=manifest, job=job, envelope=envelope, seen=utc_text(now))
                session.add(row)

    def put_approval(
        self, digest: str, manifest: str, org: str, envelope: bytes, now: datetime
    ) -> None:
        """Keep an approval, refusal or withdrawal; a second time is nothing."""
        with self._store.writing(ApprovalRow) as session:
            if session.get(ApprovalRow, digest) is None:
                seen = utc_text(now)
                row = ApprovalRow(
                    digest=digest, manifest=manifest, org=org, envelope=envelope, seen=seen
                )
                session.add(row)

    def set_decision(self, manifest: str, decision: str) -> None:
        """Remember the own organisation's word; NotFound if the manifest was never kept."""
        with self._store.writing(JobRow) as session:
            if (row := session.get(JobRow, manifest)) is None:
                raise NotFound("there is no such job", todo="`lianmo job list` shows what there is")
            row.decision = decision

    def get(self, manifest: str) -> StoredJob:
        """A manifest with all words on it; NotFound if it was never kept."""
        with self._store.reading() as session:
            if (row := session.get(JobRow, manifest)) is None:
                raise NotFound("there is no such job", todo="`lianmo job list` shows what there is")
            return _job(session, row)

    def of_name(self, job: str) -> tuple[StoredJob, ...]:
        """All manifests under one job name, the first seen first."""
        with self._store.reading() as session:
            query = select(JobRow).where(JobRow.job == job).order_by(JobRow.seen, JobRow.manifest)
            return tuple(_job(session, row) for row in session.scalars(query))

    def all(self) -> tuple[StoredJob, ...]:
        """All manifests, the first seen first."""
        with self._store.reading() as session:
            query = select(JobRow).order_by(JobRow.seen, JobRow.manifest)
            return tuple(_job(session, row) for row in session.scalars(query))

    def approvals(self, manifest: str) -> tuple[bytes, ...]:
        """Every word on a manifest that this node has seen, the first seen first."""
        with self._store.reading() as session:
            return _approvals(session, manifest)


def _approvals(session: Session, manifest: str) -> tuple[bytes, ...]:
    query = select(ApprovalRow).where(ApprovalRow.manifest == manifest)
    rows = session.scalars(query.order_by(ApprovalRow.seen, ApprovalRow.digest))
    return tuple(row.envelope for row in rows)


def _job(session: Session, row: JobRow) -> StoredJob:
    words = _approvals(session, row.manifest)
    return StoredJob(row.manifest, row.job, row.envelope, row.seen, row.decision, words)


# --- exposure -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one attempt of a job may spend on a dataset.

    bank: who opens; of a job of several banks all of them, in order, with commas between.
    customers_min: of all of them together.
    """

    manifest: str
    attempt: int
    bank: str
    dataset: str
    tokens: int
    customers_min: int
    salt: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Spending:
    """What one attempt counts with now."""

    manifest: str
    attempt: int
    bank: str
    dataset: str
    tokens: int
    is_closed: bool


class Exposure:
    """Tokens per (bank, dataset), over all its snapshots and for good (PROTOCOLS.md section 3).

    An attempt reserves the tokens it declares before it sees data; when it ends, `close` lowers the
    entry to what was spent or burnt. An attempt that crashed and was never closed counts in full.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def tokens(self, bank: str, dataset: str) -> int:
        """Spent, burnt or reserved so far."""
        with self._store.reading() as session:
            return _tokens(session, bank, dataset)

    def weighed(self, bank: str, dataset: str, customers_min: int) -> int:
        """The same, as tokens of a job with `customers_min` customers, rounded up."""
        with self._store.reading() as session:
            return math.ceil(_weighed(session, bank, dataset, customers_min))

    def reserve(self, wanted: Reservation, most: int, now: datetime) -> Reservation | None:
        """Enter the attempt if all tokens of (bank, dataset) stay at most `most`, else None.

        Each counts over the customers of its own job: 100 tokens on 2,000 customers show as much as
        1,000 on 20,000, and a bank's newest claim does not make its earlier questions smaller.
        The same attempt again (a resume) gets its first entry back and is not counted twice.
        Raises Conflict for one that is over: its masks and tokens are used, whatever became of the
        files that say so.
        """
        with self._store.writing(ExposureRow) as session:
            row = session.get(ExposureRow, (wanted.manifest, wanted.attempt))
            if row is not None and row.closed is not None:
                raise Conflict("this attempt is over", todo="it takes a new one")
            if row is not None:
                return Reservation(
                    row.manifest,
                    row.attempt,
                    row.bank,
                    row.dataset,
                    row.tokens,
                    row.customers_min,
                    row.salt,
                )
            before = _weighed(session, wanted.bank, wanted.dataset, wanted.customers_min)
            if before + wanted.tokens > most:
                return None
            session.add(ExposureRow(**_values(wanted), opened=utc_text(now)))
            return wanted

    def salt(self, manifest: str, attempt: int) -> bytes | None:
        """Of the snapshot digest in the attempt's record; None if it was never let in."""
        with self._store.reading() as session:
            row = session.get(ExposureRow, (manifest, attempt))
            return None if row is None else row.salt

    def close(self, manifest: str, attempt: int, tokens: int, now: datetime) -> bool:
        """The attempt is over and spent or burnt so many; never raises an entry, never reopens.

        Returns whether it was open until now.
        """
        with self._store.writing(ExposureRow) as session:
            row = session.get(ExposureRow, (manifest, attempt))
            if row is None or row.closed is not None:
                return False
            if not 0 <= tokens <= row.tokens:
                raise RuntimeError(f"attempt {attempt} used {tokens} tokens, {row.tokens} declared")
            row.tokens, row.closed = tokens, utc_text(now)
            return True

    def all(self) -> tuple[Spending, ...]:
        """Every attempt that counts, the first opened first."""
        with self._store.reading() as session:
            rows = session.scalars(
                select(ExposureRow).order_by(
                    ExposureRow.opened, ExposureRow.manifest, ExposureRow.attempt
                )
            )
            return tuple(
                Spending(r.manifest, r.attempt, r.bank, r.dataset, r.tokens, r.closed is not None)
                for r in rows
            )


def _weighed(session: Session, bank: str, dataset: str, customers_min: int) -> Fraction:
    """Of several banks the one that has seen most."""
    query = select(ExposureRow.customers_min, func.sum(ExposureRow.tokens))
    most = Fraction(0)
    for name in bank.split(","):
        mine = query.where(_saw(name), ExposureRow.dataset == dataset)
        rows = session.execute(mine.group_by(ExposureRow.customers_min)).all()
        found = sum((Fraction(int(n) * customers_min, low) for low, n in rows), Fraction(0))
        most = max(most, found)
    return most


def _tokens(session: Session, bank: str, dataset: str) -> int:
    query = select(func.coalesce(func.sum(ExposureRow.tokens), 0))
    mine = (query.where(_saw(name), ExposureRow.dataset == dataset) for name in bank.split(","))
    return max(int(session.scalar(rows) or 0) for rows in mine)


def _saw(bank: str) -> ColumnElement[bool]:
    """Rows of jobs in which the bank took part, by itself or with others."""
    return ("," + ExposureRow.bank + ",").contains(f",{bank},", autoescape=True)


# --- token books ----------------------------------------------------------------------------------


class SqlSpentBook:
    """The querier's book of spent tokens (protocols/books.py, SpentBook)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def digest(self, token: TokenId) -> bytes | None:
        """The digest that the token was spent on, or None."""
        with self._store.reading() as session:
            row = session.get(SpentRow, _token_key(token))
            return None if row is None else row.digest

    def spend(self, token: TokenId, digest: bytes, message: bytes) -> None:
        """Durable; the same digest again changes nothing, another raises ProtocolError."""
        with self._store.writing(SpentRow) as session:
            row = session.get(SpentRow, _token_key(token))
            if row is None:
                session.add(SpentRow(**_token_key(token), digest=digest, message=message))
            elif row.digest != digest:
                raise ProtocolError("the token is spent on another query")

    def message(self, token: TokenId) -> bytes | None:
        """The bytes in flight, until answered."""
        with self._store.reading() as session:
            row = session.get(SpentRow, _token_key(token))
            return None if row is None else row.message

    def answered(self, token: TokenId) -> None:
        """Forget the bytes in flight; the digest stays."""
        with self._store.writing(SpentRow) as session:
            if (row := session.get(SpentRow, _token_key(token))) is not None:
                row.message = None

    def tokens(self, manifest: str, attempt: int) -> int:
        """How many tokens an attempt spent from here, on all matrices together."""
        mine = (SpentRow.manifest == manifest, SpentRow.attempt == attempt)
        with self._store.reading() as session:
            return session.scalar(select(func.count()).select_from(SpentRow).where(*mine)) or 0


class SqlAnswerBook:
    """The department's book of batches and answers (protocols/books.py, AnswerBook)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def grant(self, batch: BatchId, digest: bytes) -> None:
        """Durable; the same digest again changes nothing, another raises ProtocolError."""
        with self._store.writing(GrantedRow) as session:
            row = session.get(GrantedRow, _batch_key(batch))
            if row is None:
                session.add(GrantedRow(**_batch_key(batch), digest=digest))
            elif row.digest != digest:
                raise ProtocolError("the batch was granted for another request")

    def answered(self, token: TokenId) -> StoredAnswer | None:
        """The token's answer, if it was ever spent."""
        with self._store.reading() as session:
            row = session.get(AnswerRow, _token_key(token))
            return None if row is None else StoredAnswer(row.digest, row.payload)

    def record(self, token: TokenId, answer: StoredAnswer) -> None:
        """Durable; raises ProtocolError if the token has another answer."""
        with self._store.writing(AnswerRow) as session:
            row = session.get(AnswerRow, _token_key(token))
            if row is None:
                content = {"digest": answer.digest, "payload": answer.payload}
                session.add(AnswerRow(**_token_key(token), **content))
            elif (row.digest, row.payload) != (answer.digest, answer.payload):
                raise ProtocolError("the token has another answer")

    def tokens(self, manifest: str, attempt: int) -> int:
        """How many tokens an attempt spent here, all queriers together.

        The shares that several banks get of one statistic are one equation, and count once.
        """
        mine = (AnswerRow.manifest == manifest, AnswerRow.attempt == attempt)
        one = select(AnswerRow.matrix, AnswerRow.batch, AnswerRow.place).where(*mine).distinct()
        with self._store.reading() as session:
            return session.scalar(select(func.count()).select_from(one.subquery())) or 0


def _batch_key(batch: BatchId) -> dict[str, Any]:
    return {
        "manifest": batch.manifest.hex(),
        "attempt": batch.attempt,
        "querier": batch.querier,
        "matrix": batch.matrix,
        "batch": batch.batch,
    }


def _token_key(token: TokenId) -> dict[str, Any]:
    return _batch_key(token.batch) | {"place": token.index}


# --- books of row keys ----------------------------------------------------------------------------


class SqlReplyBook:
    """The bank's book of replies (protocols/row_key_books.py, ReplyBook)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def replied(self, attempt: Attempt) -> StoredReply | None:
        """The attempt's reply, if there ever was one."""
        with self._store.reading() as session:
            row = session.get(ReplyRow, _attempt_key(attempt) | {"m": attempt.m})
            return None if row is None else StoredReply(row.hello, row.customers, row.payload)

    def record(self, attempt: Attempt, reply: StoredReply) -> None:
        """Durable. An equal reply again changes nothing, another raises ProtocolError."""
        key = _attempt_key(attempt) | {"m": attempt.m}
        with self._store.writing(ReplyRow) as session:
            row = session.get(ReplyRow, key)
            if row is None:
                made = utc_text(datetime.now(UTC))
                session.add(ReplyRow(**key, **_values(reply), made=made))
            elif StoredReply(row.hello, row.customers, row.payload) != reply:
                raise ProtocolError("the attempt was answered otherwise")


class SqlAttemptBook:
    """The department's book of attempts (protocols/row_key_books.py, AttemptBook)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, attempt: Attempt, approved: int) -> None:
        """Durable, before the hello leaves; ProtocolError if the attempt may not be opened."""
        with self._store.writing(AttemptRow) as session:
            rows = _of_pair(session, attempt.pair)
            row = _require_open(rows, attempt)
            before = _given(other for other in rows if other is not row)
            if before + attempt.m > approved:
                raise ProtocolError(
                    f"{attempt.m:,} row keys asked, {before:,} given before, {approved:,} approved"
                )
            if row is None:
                key = _attempt_key(attempt)
                session.add(AttemptRow(**key, m=attempt.m, reply=None, refused=False))

    def take(self, attempt: Attempt, reply: bytes) -> None:
        """Durable, before the reply is looked at; ProtocolError if it may not be."""
        with self._store.writing(AttemptRow) as session:
            row = _require_open(_of_pair(session, attempt.pair), attempt)
            if row is None:
                raise ProtocolError(f"attempt {attempt.number} was not opened")
            if row.reply not in (None, reply):
                raise ProtocolError(f"attempt {attempt.number} took another reply")
            row.reply = reply

    def refuse(self, attempt: Attempt) -> None:
        """Durable, before the refusal is visible: the attempt is closed and gives no keys."""
        with self._store.writing(AttemptRow) as session:
            row = session.get(AttemptRow, _attempt_key(attempt))
            if row is None or row.m != attempt.m:
                raise RuntimeError(f"attempt {attempt.number} was not opened")
            row.refused = True

    def given(self, pair: tuple[str, str, bytes]) -> int:
        """Sum of m over the pair's attempts that took a reply and did not refuse it."""
        with self._store.reading() as session:
            return _given(_of_pair(session, pair))


def _of_pair(session: Session, pair: tuple[str, str, bytes]) -> Sequence[AttemptRow]:
    bank, department, snapshot = pair
    query = select(AttemptRow).where(AttemptRow.bank == bank, AttemptRow.department == department)
    return session.scalars(query.where(AttemptRow.snapshot == snapshot.hex())).all()


def _given(rows: Iterable[AttemptRow]) -> int:
    return sum(row.m for row in rows if row.reply is not None and not row.refused)


def _require_open(rows: Sequence[AttemptRow], attempt: Attempt) -> AttemptRow | None:
    """The attempt's row, None if it has none yet; ProtocolError if it is over or must not begin."""
    if (refusals := sum(row.refused for row in rows)) >= REFUSALS_MAX:
        raise ProtocolError(f"{refusals} attempts were refused: a person has to look")
    if any(row.number > attempt.number for row in rows):
        raise ProtocolError(f"attempt {attempt.number} is over, a later one was opened")
    row = next((row for row in rows if row.number == attempt.number), None)
    if row is not None and row.m != attempt.m:
        raise ProtocolError(f"attempt {attempt.number} was opened for another number")
    if row is not None and row.refused:
        raise ProtocolError(f"attempt {attempt.number} is closed")
    return row


def _attempt_key(attempt: Attempt) -> dict[str, Any]:
    return {
        "bank": attempt.bank,
        "department": attempt.department,
        "snapshot": attempt.snapshot.hex(),
        "number": attempt.number,
    }


# --- decoys and nonces ----------------------------------------------------------------------------


class StickyDecoys:
    """The bank's decoys, as (customer, decoy) in order of arrival: never removed, never redrawn."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self) -> tuple[int | None, list[tuple[bytes, bytes]]]:
        """The k of `decoy:k`, None before the first, and all pairs."""
        with self._store.reading() as session:
            rows = session.scalars(select(DecoyRow).order_by(DecoyRow.arrival)).all()
            return (rows[0].k if rows else None), [(row.owner, row.decoy) for row in rows]

    def extend(self, k: int, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep all pairs, of which the first are those stored already; raises Conflict if not.

        One k for ever: covers of two sizes have little more than the customers in common.
        """
        with self._store.writing(DecoyRow) as session:
            rows = session.scalars(select(DecoyRow).order_by(DecoyRow.arrival)).all()
            before = [(row.owner, row.decoy) for row in rows]
            if (rows and rows[0].k != k) or list(pairs[: len(before)]) != before:
                todo = "use the same k as before, or the cover `registry`"
                raise Conflict("the decoys chosen before are others", todo=todo)
            session.add_all(
                DecoyRow(arrival=at, k=k, owner=owner, decoy=decoy)
                for at, (owner, decoy) in enumerate(pairs)
                if at >= len(before)
            )


class Nonces:
    """Nonces seen, so that nothing signed counts twice; they survive a restart."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def use(self, scope: str, nonce: str, expires: datetime, now: datetime) -> bool:
        """Whether it was unused; from now until `expires` it is used. Expired ones are dropped."""
        with self._store.writing(NonceRow) as session:
            for old in session.scalars(select(NonceRow).where(NonceRow.expires < utc_text(now))):
                session.delete(old)
            session.flush()
            if session.get(NonceRow, (scope, nonce)) is not None:
                return False
            session.add(NonceRow(scope=scope, nonce=nonce, expires=utc_text(expires)))
            return True
