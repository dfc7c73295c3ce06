"""A job's state is in its home, for its owner's eyes, and gone when the job is done."""

from __future__ import annotations

import stat
from pathlib import Path

from clients.checkpoints import FileCheckpointBook


def test_the_last_state_comes_back_in_another_process_and_can_be_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "job.state"
    book = FileCheckpointBook(file)
    assert book.load() is None
    book.save(b"one tree")
    book.save(b"two trees")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert FileCheckpointBook(file).load() == b"two trees"
    book.forget()
    book.forget()
    assert book.load() is None
    assert list(tmp_path.iterdir()) == []
