"""The doctor finds what is wrong and changes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from clients.audit import AuditLog
from clients.doctor import Finding, State, _clock, examine
from clients.home import Home
from clients.store import opened
from federation.audit import Action
from federation.identity import KEY_LIFE
from tests.federation.parties import CODES


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there to be waited for."""
    monkeypatch.setattr("clients.doctor.RELAY_S", 0.2)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(
        tmp_path / "tax",
        org="tax",
        kind="department",
        name="Tax bureau",
        uscc=CODES[0],
        region="厦门",
        coordinator_url="https://127.0.0.1:1",
        relay_address="127.0.0.1:1",
    )


def findings(home: Home, now: datetime | None = None) -> dict[str, State]:
    return {item.check: item.state for item in examine(home, now or datetime.now(UTC))}


def test_a_home_alone_in_the_world_is_told_what_it_lacks(home: Home) -> None:
    before = {file: file.stat().st_mtime_ns for file in home.path.rglob("*")}
    found = list(examine(home, datetime.now(UTC)))
    good = {item.check for item in found if item.state is State.OK}
    assert good >= {"versions", "files", "disk", "database", "certificate", "keys"}
    assert all(item.todo for item in found if item.state is not State.OK)
    assert {"trust", "coordinator", "relay"} <= {i.check for i in found if i.state is State.FAILED}
    after = {file: file.stat().st_mtime_ns for file in home.path.rglob("*")}
    assert {k: v for k, v in after.items() if k.name != "node.lock"} == before


def test_a_platform_is_not_sent_to_itself(tmp_path: Path) -> None:
    platform = Home.create(
        tmp_path / "platform",
        org="platform",
        kind="platform",
        name="Platform",
        uscc=CODES[0],
        region="厦门",
        coordinator_url="https://127.0.0.1:1",
        hosts=("127.0.0.1",),
    )
    found = next(i for i in examine(platform, datetime.now(UTC)) if i.check == "coordinator")
    assert found.state is State.FAILED
    assert "`lianmo coordinator start`" in found.todo


def test_a_key_file_that_others_may_read_is_found(home: Home) -> None:
    (home.path / "keys" / "run.pem").chmod(0o644)
    assert findings(home)["files"] is State.FAILED


def test_keys_that_end_soon_are_a_warning_and_ended_ones_a_failure(home: Home) -> None:
    made = datetime.now(UTC)
    assert findings(home, made + KEY_LIFE - timedelta(days=10))["keys"] is State.WARNING
    assert findings(home, made + KEY_LIFE + timedelta(days=1))["keys"] is State.FAILED


@pytest.mark.parametrize(
    ("ahead_s", "state"),
    [(0, State.OK), (-2, State.OK), (4, State.WARNING), (-9, State.FAILED), (60, State.FAILED)],
)
def test_a_wrong_clock_is_found(ahead_s: float, state: State) -> None:
    now = datetime(2026, 11, 23, 12, 0, 0, 500_000, tzinfo=UTC) + timedelta(seconds=ahead_s)
    assert _clock("Mon, 23 Nov 2026 12:00:00 GMT", now).state is state
    assert _clock("", now).state is State.WARNING


def told(home: Home, check: str, now: datetime | None = None) -> Finding:
    (found,) = [i for i in examine(home, now or datetime.now(UTC)) if i.check == check]
    return found


def test_a_disk_with_little_room_is_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((10**10, State.OK), (10**9, State.WARNING), (10**6, State.FAILED)):
        monkeypatch.setattr(
            "clients.doctor.shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free)
        )
        found = told(home, "disk")
        assert found.state is state
        assert bool(found.todo) == (state is not State.OK)


def test_a_database_that_is_damaged_or_behind_its_log_is_found(home: Home) -> None:
    with opened(home.database_url) as store:
        AuditLog(home, store).append(Action.CARD_TRUSTED, "a" * 64, datetime.now(UTC))
    assert told(home, "database").state is State.OK
    assert "it fits the audit log's" in told(home, "database").text
    early = told(home, "database", datetime.now(UTC) - timedelta(days=1))
    assert (early.state, "set the clock" in early.todo) == (State.FAILED, True)
    with closing(sqlite3.connect(home.path / "state.db")) as connection, connection:
        for change in ("update", "delete"):
            connection.execute(f"DROP TRIGGER audit_entry_no_{change}")
        connection.execute("DELETE FROM audit_entry")
    assert told(home, "database").state is State.FAILED
    assert "lianmo audit verify" in told(home, "database").todo
    (home.path / "state.db").write_bytes(b"no database " * 400)
    assert told(home, "database").state is State.FAILED
    assert "backup" in told(home, "database").todo


def test_a_certificate_that_is_none_is_found(home: Home) -> None:
    (home.path / "tls.crt").write_text("nothing")
    assert told(home, "certificate").state is State.FAILED
    assert "lianmo org renew tls" in told(home, "certificate").todo
