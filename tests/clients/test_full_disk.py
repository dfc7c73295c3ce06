"""A disk without room, a home that may only be read, a database that is held: each is told, what
was there stays, and nothing counts as sent that is not on disk."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event

from clients.attempts import AttemptFolder, DisclosureLog
from clients.checkpoints import FileCheckpointBook
from clients.store import Reservation, Store
from federation.errors import NotKept
from federation.ledger import Disclosure, Ledger, What
from protocols.books import BatchId, StoredAnswer, TokenId

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
WANTED = Reservation("a" * 64, 0, "bank-a", "payments", 30, 1000, bytes(32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path / 'state.db'}")
    yield store
    store.close()


def test_a_full_database_says_so_and_keeps_what_was_there(store: Store) -> None:
    """A size-limited store; every book fails closed: nothing is sent that is not on disk."""
    most: list[int] = []

    def limit(connection: sqlite3.Connection, record: object, proxy: object) -> None:
        most.append(most[0] if most else connection.execute("PRAGMA page_count").fetchone()[0] + 8)
        connection.execute(f"PRAGMA max_page_count = {most[0]}")

    event.listen(store._engine, "checkout", limit)
    tokens = [TokenId(BatchId(bytes(32), 1, "bank-a", "bins", 0), number) for number in range(50)]

    def spend_all() -> None:
        for token in tokens:
            store.spent.spend(token, bytes(32), bytes(4000))

    with pytest.raises(NotKept, match="cannot be written"):
        spend_all()
    event.remove(store._engine, "checkout", limit)
    kept = [store.spent.digest(token) is not None for token in tokens]
    assert True in kept
    assert kept == sorted(kept, reverse=True)  # all before the one that failed, none after
    assert store.spent.tokens(bytes(32).hex(), 1) == sum(kept)
    with store.writing() as session:  # the same connection may still have its limit
        session.connection().exec_driver_sql("PRAGMA max_page_count = 1000000")
    spend_all()
    assert store.spent.tokens(bytes(32).hex(), 1) == len(tokens)


def test_a_home_that_may_only_be_read_is_told_before_anything_is_sent(store: Store) -> None:
    def read_only(connection: sqlite3.Connection, record: object, proxy: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    event.listen(store._engine, "checkout", read_only)
    token = TokenId(BatchId(bytes(32), 1, "bank-a", "bins", 0), 0)
    with pytest.raises(NotKept, match="cannot be written"):
        store.answers.record(token, StoredAnswer(bytes(32), b"w"))
    event.remove(store._engine, "checkout", read_only)
    assert store.answers.answered(token) is None


def test_a_database_that_another_process_holds_is_told_after_the_wait(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(connection: sqlite3.Connection, record: object, proxy: object) -> None:
        connection.execute("PRAGMA busy_timeout = 50")

    event.listen(store._engine, "checkout", impatient)
    path = str(store._engine.url.database)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotKept, match="cannot be written"):
            store.exposure.reserve(WANTED, 100, NOW)
        other.execute("ROLLBACK")
    assert store.exposure.reserve(WANTED, 100, NOW) is not None


@pytest.mark.parametrize("part", ["", "step-03"])
def test_a_state_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    book = FileCheckpointBook(tmp_path / "job.state")
    book.save(b"before", part)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(NotKept, match="no space left"):
        book.save(b"after", part)
    monkeypatch.undo()
    assert book.load(part) == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_down_is_not_disclosed(tmp_path: Path) -> None:
    """A folder that is gone stands for a disk that takes nothing."""
    folder = AttemptFolder(tmp_path / "attempt")
    declared = Disclosure("tax", "bank-a", What.QUERY_SUMS, 8, 20)
    ledger = Ledger("tax", [declared], DisclosureLog(folder).keep)
    with pytest.raises(NotKept, match="cannot be written"):
        ledger.reveal("tax", "bank-a", What.QUERY_SUMS, 8, 20)
    assert ledger.entries() == ()
    folder.make()
    ledger.reveal("tax", "bank-a", What.QUERY_SUMS, 8, 20)
    assert folder.disclosed() == ("start", (declared,))
    with (folder.path / "disclosed.jsonl").open("a") as file:
        file.write('{"stage": "co')  # a crash in the middle of a line
    assert folder.disclosed() == ("start", (declared,))
