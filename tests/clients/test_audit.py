"""The log of a node: durable, whole, and the tables follow from it."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError

from clients.audit import AuditLog
from clients.cli.main import call
from clients.store import Reservation, Store
from federation.audit import Action, LogState, Receipt, Result, commit, verify_receipt
from federation.envelope import sign
from federation.errors import IntegrityError, NotFound, Refused, Unavailable
from federation.objects import Decision, RunRecord, Usage, utc_text
from tests.clients.audit_log import CANARY, JOBS, NOW, SUBJECT, LoggedNode, make_node, reopened
from tests.clients.test_store import postgresql  # noqa: F401 - a fixture


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LoggedNode]:
    with make_node(tmp_path) as made:
        made.history()
        yield made


def test_every_entry_is_under_a_signed_checkpoint_when_it_is_written(node: LoggedNode) -> None:
    entries = node.log.entries()
    assert [entry.seq for entry in entries] == list(range(9))
    assert entries[0].action is Action.LOG_BEGUN
    assert node.log.checkpoint().checkpoint.size == 9
    assert node.checkpoint_file.read_text() == node.log.checkpoint().to_text()
    found = node.log.verify()
    assert (found.problems, found.entries, found.erased) == ((), 9, 0)


def test_the_state_follows_from_the_log(node: LoggedNode) -> None:
    """Test 43."""
    state = LogState.of(node.log.entries())
    rows = {(item.manifest, item.attempt): item.tokens for item in node.store.exposure.all()}
    assert {key: item.tokens for key, item in state.exposure.items()} == rows
    assert rows == {(JOBS[0], 1): 7, (JOBS[2], 1): 20}
    assert state.decisions == {JOBS[0]: "approve", JOBS[1]: "refuse"}


def test_a_change_and_its_entry_are_stored_both_or_neither(node: LoggedNode) -> None:
    before = node.log.checkpoint()

    def crash() -> None:
        with node.log.together(NOW):
            node.store.jobs.put(JOBS[2], "another", b"{}", NOW)
            node.store.jobs.set_decision(JOBS[2], Decision.APPROVE.value)
            node.log.append(Action.JOB_APPROVED, "a" * 64, NOW, job=JOBS[2])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    with pytest.raises(NotFound):
        node.store.jobs.get(JOBS[2])
    assert node.log.checkpoint() == before
    node.log.append(Action.CARD_TRUSTED, "a" * 64, NOW)  # and the log goes on where it was
    assert node.log.verify().problems == ()


def test_a_crash_before_the_checkpoint_s_file_is_written_is_no_tampering(node: LoggedNode) -> None:
    old = node.checkpoint_file.read_text()
    node.log.append(Action.CARD_TRUSTED, "a" * 64, NOW + timedelta(hours=1))
    node.checkpoint_file.write_text(old)
    assert node.log.verify().problems == ()
    node.log.append(Action.CARD_TRUSTED, "b" * 64, NOW + timedelta(hours=1))
    assert node.checkpoint_file.read_text() == node.log.checkpoint().to_text()


def test_a_clock_set_back_dates_nothing_back_and_admits_nothing(node: LoggedNode) -> None:
    """T14; within two minutes it is only a clock that was corrected."""
    last = node.log.entries()[-1]
    early = NOW - timedelta(days=1)
    entry = node.log.append(Action.CARD_TRUSTED, "a" * 64, early)
    assert (entry.time, entry.tick) == (last.time, last.tick + 1)
    assert node.log.verify().problems == ()
    node.log.require_clock(NOW + timedelta(minutes=7) - timedelta(seconds=119))
    with pytest.raises(Refused, match="clock"):
        node.log.require_clock(NOW + timedelta(minutes=7) - timedelta(seconds=121))


def test_many_writers_make_one_chain(node: LoggedNode) -> None:
    def write(place: int) -> None:
        with reopened(node.home) as other:
            for _ in range(5):
                other.log.append(Action.CARD_TRUSTED, f"{place:064x}", NOW + timedelta(hours=1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    found = node.log.verify()
    assert (found.problems, found.entries) == ((), 29)


def test_threads_that_share_a_log_make_one_chain(node: LoggedNode) -> None:
    def write(_: int) -> bytes:
        entry = node.log.append(Action.CARD_TRUSTED, "a" * 64, NOW + timedelta(hours=1))
        return node.log.receipt(entry.seq).to_json()

    with ThreadPoolExecutor(4) as pool:
        receipts = [Receipt.from_json(data) for data in pool.map(write, range(12))]
    trust = node.home.trust()
    assert {verify_receipt(item, trust).entry.seq for item in receipts} == set(range(9, 21))
    assert node.log.verify().problems == ()


def test_what_was_there_before_the_log_is_carried_into_it(tmp_path: Path) -> None:
    with make_node(tmp_path) as node:
        for job, tokens in zip(JOBS[:2], (5, 9), strict=True):
            wanted = Reservation(job, 1, "bank_a", "payments", tokens, 1000, bytes(32))
            node.store.exposure.reserve(wanted, 1000, NOW)
        node.store.exposure.close(JOBS[0], 1, 3, NOW)
        node.store.jobs.put(JOBS[0], "a-job", b"{}", NOW)
        node.store.jobs.set_decision(JOBS[0], "withdraw")
        node.log.require_sound(NOW)
        found = node.log.entries()[1:]
        assert {entry.outcome for entry in found} == {Result.CARRIED}
        assert [entry.amount for entry in found] == [3, 3, 9, None]


def test_a_receipt_verifies_at_another_party_with_no_database(
    node: LoggedNode, tmp_path: Path
) -> None:
    with make_node(tmp_path / "other", "bank_a", "bank") as bank:
        bank.home.trust_card(node.home.card())
        for seq in range(9):
            receipt = Receipt.from_json(node.log.receipt(seq).to_json())
            assert verify_receipt(receipt, bank.home.trust()).entry == node.log.entry(seq)
    with pytest.raises(NotFound):
        node.log.receipt(9)


def test_the_receipt_of_a_run_is_about_its_signed_record(node: LoggedNode) -> None:
    record = RunRecord(
        job="a-job",
        manifest=JOBS[0],
        org="tax",
        attempt=1,
        package_sha256="a" * 64,
        fab_sha256="a" * 64,
        run_config_sha256="a" * 64,
        snapshot="a" * 64,
        commitments=(),
        transcript=(),
        disclosures=(),
        tokens=7,
        output=None,
        outcome="failed",
        stage=CANARY,
        started=utc_text(NOW),
        ended=utc_text(NOW),
    )
    signed = sign(record, node.home.key(Usage.RUN))
    receipt = node.log.ran(signed, NOW + timedelta(minutes=9))
    found = verify_receipt(receipt, node.home.trust()).entry
    assert (found.action, found.outcome) == (Action.RUN_RECORDED, Result.FAILED)
    assert (found.object, found.job, found.attempt) == (record.digest(), JOBS[0], 1)


def test_an_erased_salt_leaves_a_commitment_that_says_nothing(node: LoggedNode) -> None:
    """Test 42: the tree verifies, old receipts too, and no copy of the salt is in any file."""
    with sqlite3.connect(node.database) as connection:
        query = "SELECT salt, subject FROM audit_salt WHERE seq = 4"
        salt, subject = connection.execute(query).fetchone()
    connection.close()
    assert subject == SUBJECT.encode()
    assert node.log.entry(4).subject == commit(salt, subject)
    receipt = node.log.receipt(4)
    assert node.log.erase_salts([4, 4, 77], NOW + timedelta(hours=1)) == 1
    assert set(node.log.subjects()) == {5}
    found = node.log.verify()
    assert (found.problems, found.erased) == ((), 1)
    assert verify_receipt(receipt, node.home.trust()).entry == node.log.entry(4)
    assert node.log.entries()[-1].action is Action.SALT_ERASED
    node.store.close()
    for file in node.home.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert salt not in content, file.name
            assert subject not in content, file.name


def test_a_full_disk_is_said_and_the_log_stays_whole(node: LoggedNode) -> None:
    with node.store.reading() as session:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()

    @event.listens_for(node.store._engine, "begin")  # a database that must not grow
    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for _ in range(200):
            node.log.append(Action.CARD_TRUSTED, "a" * 64, NOW + timedelta(hours=1))

    with pytest.raises(Unavailable, match="cannot be written"):
        fill()
    with reopened(node.home) as again:
        assert again.log.verify().problems == ()


def test_a_process_that_hangs_in_the_log_stops_the_others_for_a_while_only(
    node: LoggedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.audit.BUSY_TIMEOUT_S", 0.1)
    with (node.home.log / ".audit.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="holds the audit log"):
            node.log.append(Action.CARD_TRUSTED, "a" * 64, NOW + timedelta(hours=1))
    node.log.append(Action.CARD_TRUSTED, "a" * 64, NOW + timedelta(hours=1))


def test_the_log_is_the_same_on_postgresql(
    tmp_path: Path,
    postgresql: str,  # noqa: F811 - the fixture
    request: pytest.FixtureRequest,
) -> None:
    with make_node(tmp_path) as made:
        store = Store.open(postgresql)
        request.addfinalizer(store.close)
        node = LoggedNode(made.home, store, AuditLog(made.home, store))
        node.history()
        assert node.log.verify().problems == ()
        with ThreadPoolExecutor(3) as pool:
            digests = [f"{n:064x}" for n in range(6)]
            list(pool.map(lambda d: node.log.append(Action.CARD_TRUSTED, d, NOW), digests))
        assert node.log.erase_salts([4], NOW) == 1
        found = node.log.verify()
        assert (found.problems, found.entries, found.erased) == ((), 16, 1)
        for statement in ("DELETE FROM audit_entry", "TRUNCATE audit_checkpoint"):
            with pytest.raises(DBAPIError, match="append-only"), store.writing() as session:
                session.execute(text(statement))
        with store.writing() as session:
            session.execute(text("UPDATE exposure SET tokens = 0"))
        assert node.log.verify().problems


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def at_home(
    node: LoggedNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> LoggedNode:
    monkeypatch.setenv("LIANMO_HOME", str(node.home.path))
    capsys.readouterr()
    return node


def test_show_lists_what_was_asked_for(
    at_home: LoggedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["audit", "show", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 9
    assert call(["audit", "show", "--since", "2026-11-23T12:06:00Z", "--json"]) == 0
    assert [item["seq"] for item in json.loads(capsys.readouterr().out)] == [7, 8]
    assert call(["audit", "show", "--job", JOBS[2][:12], "--json"]) == 0
    assert [item["seq"] for item in json.loads(capsys.readouterr().out)] == [7]
    assert call(["audit", "show"]) == 0
    shown = capsys.readouterr().out
    assert "catalogue, FIELD_LEVEL" in shown
    assert "job-approved" in shown
    assert call(["audit", "show", "--since", "yesterday"]) == 2


def test_verify_says_that_nobody_else_has_seen_the_log(
    at_home: LoggedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["audit", "verify", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["ok"], found["entries"], found["status"]) == (True, 9, "uncosigned")
    assert "uncosigned" in captured.err


def test_verify_ends_with_4_and_names_what_is_wrong(
    at_home: LoggedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    at_home.sql("UPDATE exposure SET tokens = 0")
    assert call(["audit", "verify"]) == 4
    shown = capsys.readouterr().out
    assert "exposure" in shown
    assert "20 tokens, open in the log" in shown


def test_a_receipt_is_verified_with_no_home_by_a_card_file(
    at_home: LoggedNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card, receipt = tmp_path / "card.json", tmp_path / "receipt.json"
    assert call(["org", "card", "--out", str(card)]) == 0
    assert call(["audit", "receipt", "2", "--out", str(receipt)]) == 0
    assert call(["audit", "verify", "--receipt", str(receipt)]) == 0
    monkeypatch.setenv("LIANMO_HOME", str(tmp_path / "nowhere"))

    def away(*arguments: object, **options: object) -> None:
        raise AssertionError("neither a network nor a database is needed")

    monkeypatch.setattr("socket.socket", away)  # test 38
    monkeypatch.setattr("clients.store.Store.open", away)
    capsys.readouterr()
    assert call(["receipt", "verify", str(receipt), "--card", str(card), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["verified"], found["status"], found["seq"]) == (True, "uncosigned", 2)
    assert "uncosigned" in captured.err
    assert at_home.home.own().fingerprint() in captured.err
    assert call(["receipt", "verify", str(receipt)]) == 5  # no home, no cards
    assert call(["receipt", "show", str(receipt), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is False
    changed = json.loads(receipt.read_bytes())
    changed["proof"] = changed["proof"].replace("index 2", "index 3")
    receipt.write_text(json.dumps(changed))
    assert call(["receipt", "verify", str(receipt), "--card", str(card)]) == 4
    assert call(["receipt", "verify", str(tmp_path / "none"), "--card", str(card)]) == 2


def test_a_receipt_about_another_object_is_told(
    at_home: LoggedNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, receipt = tmp_path / "card.json", tmp_path / "receipt.json"
    assert call(["org", "card", "--out", str(card)]) == 0
    assert call(["audit", "receipt", "0", "--out", str(receipt)]) == 0  # of the own card
    assert call(["receipt", "verify", str(receipt), "--object", str(card)]) == 0
    assert call(["audit", "receipt", "1", "--out", str(receipt)]) == 0
    assert call(["receipt", "verify", str(receipt), "--object", str(card)]) == 4


def test_salts_are_erased_by_number_or_age(
    at_home: LoggedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["audit", "erase-salt"]) == 2
    assert call(["audit", "erase-salt", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"erased": 1}
    assert call(["audit", "erase-salt", "--before", "2026-11-24"]) == 0
    assert at_home.log.subjects() == {}
    assert call(["audit", "show"]) == 0
    assert "(erased)" in capsys.readouterr().out


def test_a_node_does_not_serve_on_a_log_that_does_not_fit(node: LoggedNode) -> None:
    node.log.require_sound(NOW)
    node.sql("UPDATE job SET decision = 'approve' WHERE decision = 'refuse'")
    with pytest.raises(IntegrityError, match="approve in the database, refuse in the log"):
        AuditLog(node.home, node.store).require_sound(NOW)


def test_the_log_key_is_the_one_of_the_card(node: LoggedNode) -> None:
    assert isinstance(node.home.key(Usage.LOG).secret, Ed25519PrivateKey)
    assert node.log.receipt(0).key_id == node.home.own().of_usage(Usage.LOG)[0].key_id
