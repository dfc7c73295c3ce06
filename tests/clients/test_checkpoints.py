"""A job's state is in its home, for its owner's eyes, whole and in parts."""

from __future__ import annotations

import stat
from pathlib import Path

from clients.checkpoints import FileCheckpointBook


def test_the_last_state_comes_back_in_another_process(tmp_path: Path) -> None:
    file = tmp_path / "job.state"
    book = FileCheckpointBook(file)
    assert book.load() is None
    book.save(b"one tree")
    book.save(b"two trees")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert FileCheckpointBook(file).load() == b"two trees"
    book.save(b"a part", "step-03")
    assert book.load("step-03") == b"a part"
    assert book.load() == b"two trees"
    assert len(list(tmp_path.iterdir())) == 2  # nothing half written is left
