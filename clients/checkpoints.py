"""A job's last state as one file in this home, for its next attempt (federation/tasks/checkpoints).

It holds what the party alone may know (a bank: who is held out, opened bits), so it is as secret as
a key, and it goes when the job has succeeded.
"""

from __future__ import annotations

from pathlib import Path

from federation import keyring


class FileCheckpointBook:
    """One job's state; whole or not there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """What was saved last; None if nothing was."""
        return self._path.read_bytes() if self._path.is_file() else None

    def save(self, state: bytes) -> None:
        """On disk before this returns."""
        keyring.write(self._path, state, keyring.SECRET_MODE)

    def forget(self) -> None:
        """The job needs it no more."""
        self._path.unlink(missing_ok=True)
