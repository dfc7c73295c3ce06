"""A job's last state as files in this home, for its next attempt (federation/tasks/checkpoints).

It holds what the party alone may know (a bank: who is held out, opened bits; a department: its row
keys), so it is as secret as a key. It outlives this party's own success, since another party may
crash after that and need a new attempt; `clients/retention.py` says when it goes.
"""

from __future__ import annotations

from pathlib import Path

from federation import keyring


class FileCheckpointBook:
    """One job's state; each part whole or not there."""

    def __init__(self, path: Path) -> None:
        """path: of the state without a part's name; the parts are beside it."""
        self._path = path

    def load(self, part: str = "") -> bytes | None:
        """What was saved last; None if nothing was."""
        file = self._file(part)
        return file.read_bytes() if file.is_file() else None

    def save(self, state: bytes, part: str = "") -> None:
        """On disk before this returns."""
        keyring.write(self._file(part), state, keyring.SECRET_MODE)

    def _file(self, part: str) -> Path:
        return self._path.with_suffix(f".{part}.state") if part else self._path
