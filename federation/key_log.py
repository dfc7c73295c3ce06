"""What changed in the cards that a home believes, line by line (GOVERNANCE.md, T9).

`trust/changes.jsonl` holds one line a card that was taken: whose, when, on whose word, and which
keys came, ended or changed. Beside it the audit log has the card's digest; this is what a person
reads when a fingerprint or a date does not fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation.errors import IntegrityError
from federation.objects import Card, Digest, KeyId, KeyStatus, OrgId, Time, Usage, utc_text


class KeyChange(BaseModel):
    """One key that came, or whose status changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: KeyId
    usage: Usage
    holder: str
    before: KeyStatus | None = None  # None: it was not there
    after: KeyStatus


class CardChange(BaseModel):
    """One card that was taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: Time
    org: OrgId
    serial: int
    card: Digest
    how: str  # by hand, through the coordinator, here
    keys: Annotated[tuple[KeyChange, ...], Field(max_length=256)]


class KeyLog:
    """The file of one home; appended to by node, coordinator and commands."""

    def __init__(self, home: Path) -> None:
        self._file = home / "trust" / "changes.jsonl"

    def add(self, old: Card | None, new: Card, how: str, now: datetime) -> None:
        """Note that `new` was taken in place of `old`."""
        change = CardChange(
            at=utc_text(now),
            org=new.org,
            serial=new.serial,
            card=new.digest(),
            how=how,
            keys=tuple(_changes(old, new)),
        )
        line = change.model_dump_json().encode() + b"\n"
        handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, line)  # at once: two writers' lines do not mix
            os.fsync(handle)
        finally:
            os.close(handle)

    def of(self, org: str | None = None) -> list[CardChange]:
        """All changes, or those of one organisation, the first first."""
        if not self._file.is_file():
            return []
        lines = self._file.read_text(encoding="utf-8").splitlines()
        try:
            found = [CardChange.model_validate(json.loads(line)) for line in lines if line]
        except (ValueError, ValidationError):
            todo = "restore trust/ from a backup; `lianmo audit show` has the digests"
            raise IntegrityError("trust/changes.jsonl cannot be read", todo=todo) from None
        return [change for change in found if org in (None, change.org)]


def _changes(old: Card | None, new: Card) -> Iterator[KeyChange]:
    before = {} if old is None else {key.key_id: key.status for key in old.keys}
    for key in new.keys:
        if before.get(key.key_id) is not key.status:
            yield KeyChange(
                key_id=key.key_id,
                usage=key.usage,
                holder=key.holder,
                before=before.get(key.key_id),
                after=key.status,
            )
