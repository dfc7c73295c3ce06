"""The doctor finds what is wrong and changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clients.doctor import State, _clock, examine
from clients.home import Home
from federation.identity import KEY_LIFE
from tests.federation.parties import CODES


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
    assert {item.check for item in found if item.state is State.OK} == {"versions", "files", "keys"}
    assert all(item.todo for item in found if item.state is not State.OK)
    assert {"trust", "coordinator", "relay"} <= {i.check for i in found if i.state is State.FAILED}
    after = {file: file.stat().st_mtime_ns for file in home.path.rglob("*")}
    assert {k: v for k, v in after.items() if k.name != "node.lock"} == before


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
