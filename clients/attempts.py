"""What one attempt of a job leaves in its folder as it goes, so that a crash leaves no gap.

    seed              on disk before anything is drawn from it (PROTOCOLS.md section 6)
    begun.json        what was let in, and when
    disclosed.jsonl   every entry of the ledger, before it counts
    output.salt       of the digest of this party's part of the model in the run record
    record.json ...   at the end: the signed record, its receipt, the reply

The folder is named by the manifest's digest and the attempt, since names of jobs can come again:
`runs/JOB/DIGEST-ATTEMPT/`. `clients/retention.py` says how long each file stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation import keyring
from federation.ledger import Disclosure, What
from protocols.streams import encode

SEED, BEGUN, DISCLOSED, SALT = "seed", "begun.json", "disclosed.jsonl", "output.salt"
RECORD, RECEIPT, REPLY = "record.json", "receipt.json", "reply.json"
_NAME = re.compile(r"([0-9a-f]{16})-(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Begun:
    """What was let in."""

    fab_sha256: str
    snapshot: str  # salted digest, as in the run record
    started: str


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """One attempt's files."""

    path: Path

    @classmethod
    def of(cls, job: Path, manifest: str, attempt: int) -> AttemptFolder:
        """The folder in a job's folder; `make` makes it."""
        return cls(job / f"{manifest[:16]}-{attempt}")

    @property
    def number(self) -> int:
        """Which attempt it is."""
        return int(self.path.name.rpartition("-")[2])

    @property
    def was_begun(self) -> bool:
        """Whether anything was ever drawn for it."""
        return (self.path / SEED).exists()

    def make(self) -> None:
        """Raises NotKept if it cannot be."""
        try:
            self.path.mkdir(mode=keyring.DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise keyring.not_kept(self.path, error) from None

    def write(self, name: str, content: bytes) -> None:
        """Whole, or not there; raises NotKept."""
        keyring.write(self.path / name, content, keyring.SECRET_MODE)

    def begin(self, about: Begun) -> None:
        """What a record needs if this process does not live to write one."""
        plain = {name: getattr(about, name) for name in Begun.__dataclass_fields__}
        self.write(BEGUN, json.dumps(plain).encode())

    def begun(self) -> Begun | None:
        """What was let in; None if the crash came before that was written."""
        try:
            return Begun(**json.loads((self.path / BEGUN).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def disclosed(self) -> tuple[str, tuple[Disclosure, ...]]:
        """(stage of the last entry, entries summed up) of an attempt, whatever became of it."""
        try:
            lines = (self.path / DISCLOSED).read_text(encoding="utf-8").splitlines()
        except OSError:
            return "start", ()
        stage, entries = "start", []
        for line in lines:
            try:
                plain = json.loads(line)
                stage, what = str(plain.pop("stage")), What(plain.pop("what"))
                entries.append(Disclosure(what=what, **plain))
            except (ValueError, TypeError, KeyError):
                break  # the last line, cut off: its entry did not happen yet
        return stage, summed(entries)


class DisclosureLog:
    """Appends the ledger's entries to the attempt's folder.

    A line is with the system before the entry counts, so a killed process loses none; single rows'
    are on the disk as well, so a power cut loses none of these. Queries stand in the token books.
    """

    def __init__(self, folder: AttemptFolder) -> None:
        self._path = folder.path / DISCLOSED
        self.stage = "start"

    def keep(self, entry: Disclosure) -> None:
        """One more entry; raises NotKept."""
        plain: dict[str, Any] = {"stage": self.stage} | {
            name: getattr(entry, name) for name in Disclosure.__dataclass_fields__
        }
        line = json.dumps(plain).encode() + b"\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            handle = os.open(self._path, flags, keyring.SECRET_MODE)
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(28, "no space left on device")
                if entry.per_enterprise:
                    os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise keyring.not_kept(self._path, error) from None


def summed(entries: Iterable[Disclosure]) -> tuple[Disclosure, ...]:
    """Entries of one kind and direction as one, in the order of their first."""
    totals: dict[tuple[object, ...], Disclosure] = {}
    for item in entries:
        key = (item.source, item.to, item.what)
        before = totals.get(key)
        count = item.count + (before.count if before else 0)
        totals[key] = Disclosure(
            item.source, item.to, item.what, count, item.bits, item.per_enterprise
        )
    return tuple(totals.values())


def queries(me: str, banks: Sequence[str], entries: Iterable[Disclosure]) -> int:
    """Tokens that these entries stand for: a bank's go to all departments at once, and what several
    banks ask a department is one statistic."""
    counts = [item for item in entries if item.what is What.QUERIES]
    if me in banks:
        return max((item.count for item in counts if item.source == me), default=0)
    mine = [item for item in counts if item.to == me]
    asked = max((item.count for item in mine if item.source in banks), default=0)
    return asked + sum(item.count for item in mine if item.source not in banks)


def all_of(job: Path, manifest: str) -> list[AttemptFolder]:
    """All attempts of one manifest, the first first."""
    found = [
        AttemptFolder(path)
        for path in job.glob(f"{manifest[:16]}-*")
        if path.is_dir() and _NAME.fullmatch(path.name)
    ]
    return sorted(found, key=lambda item: item.number)


def first_seed(job: Path, manifest: str) -> bytes:
    """Seed of the manifest's first attempt here; empty if there was none."""
    for folder in all_of(job, manifest):
        if folder.was_begun:
            return (folder.path / SEED).read_bytes()
    return b""


def output_digest(salt: bytes, model: bytes) -> str:
    """Of a party's part of the model, for its run record.

    A department's part is a short table of points: without the salt, which stays with the attempt,
    others could try tables until the digest fits. Shown with the salt, it proves the part.
    """
    return hashlib.sha256(encode(b"lianmo/v1/output", salt, model)).hexdigest()
