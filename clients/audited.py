"""What a node keeps while it runs a job whose manifest names auditors (federation/escrow.py).

    escrow.json, escrow.rows   the bank's sealed seed and list, at every party
    before/PART.state          what the attempt took up from an earlier one, for its replay
    committed.json             what all parties committed to, for the record; of every job

Without auditors the first two are not written, and nobody can open the bank's queries afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from clients.home import Home
from federation import keyring
from federation.escrow import CardDesk, Desk, SealedSeed
from federation.objects import Committed, JobManifest, Usage
from federation.tasks.checkpoints import CheckpointBook

ESCROW, ROWS, BEFORE = "escrow.json", "escrow.rows", "before"
COMMITTED = "committed.json"


def desk(
    home: Home, manifest: JobManifest, attempt: int, now: Callable[[], datetime], folder: Path
) -> Desk | None:
    """Where the attempt deposits or checks the escrow; None where the manifest asks for none."""
    if not manifest.audit.auditors:
        return None
    is_bank = home.org == manifest.bank

    def keep(given: SealedSeed) -> None:
        keyring.write(folder / ROWS, given.customers, keyring.SECRET_MODE)
        keyring.write(folder / ESCROW, given.escrow, keyring.SECRET_MODE)

    key = home.key(Usage.RUN) if is_bank else None
    return CardDesk(manifest, attempt, home.trust(), now, key, keep)


def kept_escrow(folder: Path) -> SealedSeed | None:
    """The attempt's escrow; None if there was none."""
    if not (folder / ESCROW).is_file() or not (folder / ROWS).is_file():
        return None
    return SealedSeed((folder / ESCROW).read_bytes(), (folder / ROWS).read_bytes())


class CommittedLog(list[Committed]):
    """What was committed to, on disk before the attempt goes on: a crash must not lose it."""

    def __init__(self, attempt: Path) -> None:
        super().__init__()
        self._path = attempt / COMMITTED

    def append(self, item: Committed) -> None:
        """One more; raises NotKept."""
        super().append(item)
        lines = [one.model_dump(mode="json") for one in self]
        keyring.write(self._path, json.dumps(lines).encode(), keyring.SECRET_MODE)


def kept_commitments(attempt: Path) -> tuple[Committed, ...]:
    """Those of an attempt, whatever became of it."""
    try:
        return tuple(
            Committed.model_validate(one) for one in json.loads((attempt / COMMITTED).read_bytes())
        )
    except (OSError, ValueError):
        return ()


class CopiedCheckpoints:
    """A checkpoint book that copies what an attempt begins with: the task overwrites it."""

    def __init__(self, inner: CheckpointBook, attempt: Path) -> None:
        self._inner, self._folder = inner, attempt / BEFORE
        self._seen = set[str]()

    def load(self, part: str = "") -> bytes | None:
        """What was saved last; None if nothing was."""
        found = self._inner.load(part)
        if part not in self._seen and found is not None:
            self._folder.mkdir(mode=keyring.DIRECTORY_MODE, exist_ok=True)
            keyring.write(self._folder / f"{part}.state", found, keyring.SECRET_MODE)
        self._seen.add(part)
        return found

    def save(self, state: bytes, part: str = "") -> None:
        """On disk before this returns."""
        self._seen.add(part)
        self._inner.save(state, part)


def copied_checkpoints(attempt: Path) -> dict[str, bytes]:
    """What the attempt began with, by part."""
    return {path.stem: path.read_bytes() for path in (attempt / BEFORE).glob("*.state")}
