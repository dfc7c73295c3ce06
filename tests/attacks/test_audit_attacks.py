"""Attacks on the audit log by who may write the database, the files, or both with the key.

What each can do, and which check finds it (GOVERNANCE.md, acceptance tests 33 to 37, 41). Without
witnesses an attacker who holds the log key and every file wins at the node itself; the receipts
that others keep are then what shows it, and the test says so.
"""

from __future__ import annotations

import base64
import gzip
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from clients.audit import AuditLog
from federation.audit import (
    Action,
    AuditEntry,
    Receipt,
    require_one_history,
    verify_receipt,
)
from federation.errors import IntegrityError
from protocols import merkle
from tests.clients.audit_log import (
    CANARY,
    JOBS,
    NOW,
    SUBJECT,
    LoggedNode,
    Sql,
    make_node,
    reopened,
)

LATER = NOW + timedelta(hours=1)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LoggedNode]:
    with make_node(tmp_path) as made:
        made.history()
        yield made


def problems(node: LoggedNode) -> tuple[str, ...]:
    with reopened(node.home) as again:
        return again.log.verify().problems


def leaf(node: LoggedNode, place: int, **changes: object) -> bytes:
    """An entry rewritten."""
    changed = node.log.entry(place).model_dump() | changes
    return AuditEntry.model_validate(changed).payload()


def overwrite(place: int, content: bytes) -> Sql:
    """With the column of hashes in step."""
    statement = "UPDATE audit_entry SET leaf = ?, hash = ? WHERE seq = ?"
    return statement, content, merkle.leaf_hash(content), place


def insert(place: int, content: bytes) -> Sql:
    return "INSERT INTO audit_entry VALUES (?, ?, ?)", place, content, merkle.leaf_hash(content)


# --- the database alone ---------------------------------------------------------------------------


def edit(node: LoggedNode) -> list[Sql]:
    """Fewer tokens spent than really were, hash column and all."""
    return [overwrite(3, leaf(node, 3, amount=1))]


def edit_leaf_only(node: LoggedNode) -> list[Sql]:
    return [("UPDATE audit_entry SET leaf = ? WHERE seq = 6", leaf(node, 6, attempt=2))]


def edit_hash_only(node: LoggedNode) -> list[Sql]:
    return ["UPDATE audit_entry SET hash = zeroblob(32) WHERE seq = 6"]


def delete(node: LoggedNode) -> list[Sql]:
    """A refusal never happened."""
    return [
        "DELETE FROM audit_entry WHERE seq = 6",
        "UPDATE audit_entry SET seq = seq - 1 WHERE seq > 6",
    ]


def delete_leaving_a_gap(node: LoggedNode) -> list[Sql]:
    return ["DELETE FROM audit_entry WHERE seq = 6"]


def insert_in_the_middle(node: LoggedNode) -> list[Sql]:
    return [
        "UPDATE audit_entry SET seq = -seq - 1 WHERE seq >= 7",
        "UPDATE audit_entry SET seq = -seq WHERE seq < 0",
        insert(7, leaf(node, 6, object="e" * 64)),
    ]


def insert_at_the_end(node: LoggedNode) -> list[Sql]:
    """Well chained, only not signed."""
    last = node.log.entry(8)
    before = merkle.leaf_hash(last.payload()).hex()
    return [insert(9, leaf(node, 8, seq=9, tick=last.tick + 1, prev_hash=before))]


def swap(node: LoggedNode) -> list[Sql]:
    return [
        "UPDATE audit_entry SET seq = 99 WHERE seq = 4",
        "UPDATE audit_entry SET seq = 4 WHERE seq = 5",
        "UPDATE audit_entry SET seq = 5 WHERE seq = 99",
    ]


def truncate(node: LoggedNode) -> list[Sql]:
    return ["DELETE FROM audit_entry WHERE seq >= 6"]


def truncate_with_checkpoints(node: LoggedNode) -> list[Sql]:
    """A whole and properly signed log, only shorter: the file remembers the longer one."""
    return [
        "DELETE FROM audit_entry WHERE seq >= 6",
        "DELETE FROM audit_checkpoint WHERE size > 6",
        ("DELETE FROM exposure WHERE manifest = ?", JOBS[2]),
        "UPDATE job SET decision = NULL WHERE decision = 'refuse'",
    ]


def date_back(node: LoggedNode) -> list[Sql]:
    return [overwrite(8, leaf(node, 8, time="2026-11-01T00:00:00Z"))]


def forget_checkpoints(node: LoggedNode) -> list[Sql]:
    return ["DELETE FROM audit_checkpoint"]


def forge_checkpoint(node: LoggedNode) -> list[Sql]:
    note = node.log.checkpoint().to_text().replace("\n9\n", "\n8\n")
    return [("INSERT OR REPLACE INTO audit_checkpoint VALUES (9, ?)", note)]


def lose_all(node: LoggedNode) -> list[Sql]:
    return ["DELETE FROM audit_entry", "DELETE FROM audit_checkpoint"]


@pytest.mark.parametrize("table", ["audit_entry", "audit_checkpoint"])
@pytest.mark.parametrize("words", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid + 99"])
def test_a_mistake_does_not_change_the_log(node: LoggedNode, table: str, words: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        node.sql(words.format(table), drop=False)
    assert problems(node) == ()


@pytest.mark.parametrize(
    "attack",
    [
        *(edit, edit_leaf_only, edit_hash_only, delete, delete_leaving_a_gap),
        *(insert_in_the_middle, insert_at_the_end, swap, truncate, truncate_with_checkpoints),
        *(date_back, forget_checkpoints, forge_checkpoint, lose_all),
    ],
)
def test_who_changes_the_log_by_sql_is_found(
    node: LoggedNode, attack: Callable[[LoggedNode], list[Sql]]
) -> None:
    """Tests 33, 34 (at the node itself) and 37, triggers dropped."""
    statements = attack(node)
    node.sql("PRAGMA foreign_keys = OFF", *statements)
    assert problems(node)
    with reopened(node.home) as again, pytest.raises(IntegrityError):
        again.log.require_sound(LATER)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE exposure SET tokens = 0",
        ("DELETE FROM exposure WHERE manifest = ?", JOBS[0]),
        "UPDATE exposure SET bank = 'bank_b'",
        "UPDATE exposure SET dataset = 'other'",
        "UPDATE exposure SET closed = 'x'",
        ("UPDATE exposure SET manifest = ? WHERE manifest = ?", JOBS[1], JOBS[2]),
        "UPDATE job SET decision = 'approve'",
        "UPDATE job SET decision = NULL",
        "DELETE FROM job",
        "UPDATE audit_salt SET subject = x'00'",
        "UPDATE audit_salt SET seq = 3 WHERE seq = 4",
    ],
)
def test_who_changes_what_counts_by_sql_is_found_by_the_log(
    node: LoggedNode, statement: Sql
) -> None:
    """T13 and test 43: uses and decisions follow from the log, whatever the tables say."""
    assert problems(node) == ()
    node.sql(statement)
    assert problems(node)


def test_nothing_is_signed_on_top_of_a_log_that_was_changed(node: LoggedNode) -> None:
    node.sql(*truncate_with_checkpoints(node))
    before = node.checkpoint_file.read_bytes()
    with reopened(node.home) as again, pytest.raises(IntegrityError):
        again.log.append(Action.CARD_TRUSTED, "a" * 64, LATER)
    assert node.checkpoint_file.read_bytes() == before


# --- the files ------------------------------------------------------------------------------------


def test_a_checkpoint_file_that_is_gone_or_another_one_is_found(node: LoggedNode) -> None:
    note = node.checkpoint_file.read_text()
    node.checkpoint_file.unlink()
    assert any("gone" in text for text in problems(node))
    for wrong in ("", note.replace("tax", "tex"), note.replace("\n9\n", "\n8\n"), "x" * 70_000):
        node.checkpoint_file.write_text(wrong)
        assert any("not signed" in text for text in problems(node))
        with reopened(node.home) as again, pytest.raises(IntegrityError):
            again.log.append(Action.CARD_TRUSTED, "a" * 64, LATER)
    node.checkpoint_file.write_text(note)
    assert problems(node) == ()


def test_an_old_backup_of_the_database_is_found(node: LoggedNode, tmp_path: Path) -> None:
    """Test 59, for the node alone: what was spent since would not count."""
    node.store.close()
    shutil.copy(node.database, tmp_path / "backup.db")
    with reopened(node.home) as again:
        again.reserve(JOBS[1], 30, LATER)
    for extra in ("-wal", "-shm"):
        Path(f"{node.database}{extra}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", node.database)
    assert any("10 entries, there are 9" in text for text in problems(node))


# --- the key as well ------------------------------------------------------------------------------


def rewritten(node: LoggedNode) -> None:
    """The owner starts its log anew, with its own key, and leaves the refusal out."""
    node.sql(
        "PRAGMA foreign_keys = OFF",
        *("DELETE FROM audit_entry", "DELETE FROM audit_salt", "DELETE FROM audit_checkpoint"),
    )
    node.checkpoint_file.unlink()
    with reopened(node.home) as again:
        again.log.require_sound(LATER)
        while len(again.log.entries()) < 9:
            again.log.append(Action.CARD_TRUSTED, "a" * 64, LATER)


def test_a_history_written_anew_with_the_key_is_shown_by_any_receipt_from_before(
    node: LoggedNode,
) -> None:
    """Test 35. At the node all looks well: this is what `uncosigned` means."""
    kept = Receipt.from_json(node.log.receipt(6).to_json())
    rewritten(node)
    assert problems(node) == ()
    with reopened(node.home) as again:
        with pytest.raises(IntegrityError, match="not the one that the receipt shows"):
            again.log.require_holds(kept)
        new = Receipt.from_json(again.log.receipt(6).to_json())
    trust = node.home.trust()
    assert new.tlog_proof().signed.checkpoint.size == kept.tlog_proof().signed.checkpoint.size
    pair = [verify_receipt(item, trust) for item in (kept, new)]  # both are properly signed
    with pytest.raises(IntegrityError, match="two histories"):
        require_one_history(pair)


def test_a_log_that_only_grew_holds_every_earlier_receipt(node: LoggedNode) -> None:
    kept = node.log.receipt(6)
    node.reserve(JOBS[1], 30, LATER)
    node.log.require_holds(kept)
    with reopened(node.home) as again:
        again.log.require_holds(kept)


# --- what a leaf tells ----------------------------------------------------------------------------


def test_no_leaf_receipt_or_checkpoint_shows_a_value_or_a_credit_code(node: LoggedNode) -> None:
    """Test 41: the canary and the subject, in the usual disguises."""
    node.log.append(Action.DATA_REFRESHED, "a" * 64, LATER, subject=f"{SUBJECT} {CANARY}".encode())
    shown = [entry.payload() for entry in node.log.entries()]
    shown += [node.log.receipt(entry.seq).to_json() for entry in node.log.entries()]
    shown += [item + base64.b64decode(Receipt.from_json(item).leaf) for item in shown[10:]]
    shown.append(node.checkpoint_file.read_bytes())
    for text in (SUBJECT, CANARY):
        raw = text.encode()
        disguises = [raw, raw.hex().encode(), text.encode("utf-16-le"), gzip.compress(raw)[10:-8]]
        disguises += [base64.b64encode(bytes(pad) + raw)[4:-4] for pad in (0, 1, 2)]
        for content in shown:
            assert not [item for item in disguises if item in content]


def test_who_knows_the_subject_cannot_find_its_entry_without_the_salt(node: LoggedNode) -> None:
    """One subject, three entries, three commitments: nothing links them (test 42)."""
    for _ in range(3):
        node.log.append(Action.DATA_REFRESHED, "a" * 64, LATER, subject=SUBJECT.encode())
    seen = [entry.subject for entry in node.log.entries() if entry.subject is not None]
    assert len(set(seen)) == len(seen) == 5


def test_a_second_log_object_sees_what_the_first_appended(node: LoggedNode) -> None:
    other = AuditLog(node.home, node.store)
    other.append(Action.CARD_TRUSTED, "a" * 64, LATER)
    node.log.append(Action.CARD_TRUSTED, "b" * 64, LATER)
    assert problems(node) == ()
