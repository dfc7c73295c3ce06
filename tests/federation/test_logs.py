"""One line an event, on stderr and in a file of the home that is turned over."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from federation.logs import EventFile, EventFormatter


def event(text: str, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("clients.runner", logging.INFO, __file__, 1, text, (), None)
    record.__dict__.update(extra)
    return record


def make(file: Path, size: int = 1 << 20) -> EventFile:
    handler = EventFile(file, size=size, kept=2)
    handler.setFormatter(EventFormatter())
    return handler


def test_an_event_is_one_line_for_its_owner_s_eyes(tmp_path: Path) -> None:
    handler = make(tmp_path / "node.log")
    handler.emit(event("attempt begun\nwith a second line", job="a-job", stage="row keys"))
    handler.close()
    text = (tmp_path / "node.log").read_text()
    assert text.count("\n") == 1
    assert "attempt begun with a second line job=a-job stage='row keys'" in text
    assert stat.S_IMODE((tmp_path / "node.log").stat().st_mode) == 0o600


def test_the_file_is_turned_over_and_the_oldest_goes(tmp_path: Path) -> None:
    handler = make(tmp_path / "node.log", size=500)
    for number in range(40):
        handler.emit(event("attempt begun", attempt=number))
    handler.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["node.log", "node.log.1", "node.log.2"]
    assert all(path.stat().st_size <= 500 for path in tmp_path.iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    assert "attempt=39" in (tmp_path / "node.log").read_text()


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = make(tmp_path / "gone" / "node.log")
    handler.emit(event("attempt begun"))
    handler.close()
    assert "Traceback" not in capsys.readouterr().err
