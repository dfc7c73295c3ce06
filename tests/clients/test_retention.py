"""What a replay audit needs stays for its window, and then is erased, and that is logged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from clients.attempts import AttemptFolder, Begun
from clients.audit import AuditLog
from clients.home import Home
from clients.retention import Retention
from clients.store import AnswerRow, ReplyRow, Reservation, Store
from federation.api import TrainReply
from federation.audit import Action
from federation.objects import utc_text
from protocols.books import BatchId, StoredAnswer, TokenId
from protocols.row_key_books import Attempt, StoredReply
from tests.federation.parties import CODES, NOW

MANIFEST, OTHER = "ab" * 32, "cd" * 32
WINDOW = timedelta(days=180)


@dataclass
class Node:
    home: Home
    store: Store
    audit: AuditLog

    @property
    def retention(self) -> Retention:
        return Retention(self.home, self.store, self.audit)

    @property
    def runs(self) -> Path:
        return self.home.runs("a-job")

    def attempt(
        self, manifest: str, number: int, ended: datetime, *, is_open: bool = False
    ) -> Path:
        folder = AttemptFolder.of(self.runs, manifest, number)
        folder.make()
        folder.write("seed", bytes(32))
        folder.begin(Begun("0" * 64, "1" * 64, utc_text(ended)))
        folder.write("disclosed.jsonl", b"")
        folder.write("reply.json", TrainReply(state="succeeded").model_dump_json().encode())
        (folder.path / "transcript").mkdir()
        (folder.path / "transcript" / "bank-a.jsonl").write_text("{}")
        for name in ("report.json", "record.json"):
            folder.write(name, b"{}")
            (self.runs / name).write_bytes(b"{}")
        for name in ("state", "step-00.state", "opened.state"):
            (self.runs / f"{manifest[:16]}.{name}").write_bytes(b"secret")
        wanted = Reservation(manifest, number, "bank-a", "filings", 8, 200, bytes(32))
        with self.audit.together(ended):
            self.store.exposure.reserve(wanted, 100, ended)
            if not is_open:
                self.store.exposure.close(manifest, number, 4, ended)
        token = TokenId(BatchId(bytes.fromhex(manifest), number, "bank-a", "bins", 0), 0)
        self.store.answers.record(token, StoredAnswer(bytes(32), b"answer"))
        return folder.path

    def rows(self, kind: type) -> int:
        with self.store.reading() as session:
            return session.scalar(select(func.count()).select_from(kind)) or 0


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    home = Home.create(
        tmp_path / "tax", org="tax", kind="department", name="tax", uscc=CODES[1], region="厦门"
    )
    store = Store.open(home.database_url)
    yield Node(home, store, AuditLog(home, store))
    store.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_within_the_window_only_the_state_of_a_finished_job_goes(node: Node) -> None:
    folder = node.attempt(MANIFEST, 1, NOW)
    assert node.retention.erase(NOW + timedelta(hours=1)) == []
    before = names(folder)
    (item,) = node.retention.erase(NOW + timedelta(days=2))
    assert item.what == "state for a next attempt"
    assert names(folder) == before
    assert not list(node.runs.glob("*.state"))
    assert node.rows(AnswerRow) == 1


def test_after_the_window_seeds_transcripts_and_answers_go_and_proofs_stay(node: Node) -> None:
    folder = node.attempt(MANIFEST, 1, NOW)
    later = node.attempt(OTHER, 1, NOW + timedelta(days=170))
    spent = node.store.exposure.tokens("bank-a", "filings")
    before = node.audit.verify().problems
    found = node.retention.erase(NOW + WINDOW + timedelta(days=1))
    assert sum(item.amount for item in found) > 0
    proofs = {"record.json", "reply.json", "begun.json", "disclosed.jsonl", "report.json"}
    assert names(folder) == proofs
    assert (later / "seed").exists()
    assert node.rows(AnswerRow) == 1
    assert node.store.exposure.tokens("bank-a", "filings") == spent
    assert node.audit.verify().problems == before


def test_what_is_erased_is_in_the_log_and_a_dry_run_touches_nothing(node: Node) -> None:
    node.attempt(MANIFEST, 1, NOW)
    when = NOW + WINDOW + timedelta(days=1)
    before, entries = set(node.runs.rglob("*")), len(node.audit.entries())
    shown = node.retention.due(when)
    assert (set(node.runs.rglob("*")), len(node.audit.entries())) == (before, entries)
    assert node.retention.erase(when) == shown
    logged = [entry for entry in node.audit.entries() if entry.action is Action.ERASED]
    assert [entry.amount for entry in logged] == [item.amount for item in shown]
    assert {entry.job for entry in logged} == {MANIFEST}
    assert node.retention.erase(when) == []


def test_an_attempt_that_may_still_go_on_keeps_its_answers(node: Node) -> None:
    node.attempt(MANIFEST, 1, NOW, is_open=True)
    node.retention.erase(NOW + WINDOW + timedelta(days=1))
    assert node.rows(AnswerRow) == 1


def test_after_the_years_of_the_logs_nothing_is_left_but_results_and_the_count(node: Node) -> None:
    folder = node.attempt(MANIFEST, 1, NOW)
    node.retention.erase(NOW + timedelta(days=5 * 365 + 1))
    assert not folder.exists()
    assert (node.runs / "report.json").exists()
    assert node.store.exposure.tokens("bank-a", "filings") == 4


def test_replies_for_row_keys_go_with_the_window_also_those_of_an_older_release(node: Node) -> None:
    attempt = Attempt("bank-a", "tax", bytes(32), 100, 1)
    node.store.replies.record(attempt, StoredReply(bytes(32), bytes(32), b"reply"))
    with node.store.writing(ReplyRow) as session:
        row = session.scalars(select(ReplyRow)).one()
        row.made = None
    node.retention.erase(NOW)  # dates it
    node.retention.erase(NOW + timedelta(days=179))
    assert node.rows(ReplyRow) == 1
    node.retention.erase(NOW + timedelta(days=181))
    assert node.rows(ReplyRow) == 0
