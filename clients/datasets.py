"""The organisation's own datasets: registered, read again, described and published.

A dataset is registered as a whole or not at all. Its snapshot is in place and on disk before the
database names it; a crash in between leaves a file that nobody names, and the next command removes
it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clients import registries
from clients.audit import AuditLog
from clients.home import Home, explain
from clients.sources import STAGING, Source, snapshot
from clients.store import Store, StoredDataset
from federation import keyring
from federation.audit import Action
from federation.catalogue import CATALOGUE_USAGE, Dataset, Field, FieldType
from federation.envelope import Envelope, sign
from federation.errors import Conflict, LianmoError, Refused, UsageError
from federation.identity import PrivateKey
from federation.objects import ObjectName, utc_text
from federation.persons import distinct, needed_for_entry

EVERY = "*"  # in the place of a field's name: every field
# What the owner has to say itself before an entry can be signed.
OWN_WORDS = ("title", "legal_basis", "update_frequency", "provenance")


def register(
    home: Home,
    store: Store,
    name: str,
    source: Source,
    now: datetime,
    *,
    as_of: str | None = None,
    region: str | None = None,
) -> tuple[StoredDataset, tuple[str, ...]]:
    """Read a source for the first time; returns the dataset and notes for a person.

    Raises Conflict if the name is taken, BadTable if the table has problems; nothing is kept then.
    """
    try:
        TypeAdapter(ObjectName).validate_python(name)
    except ValidationError:
        what = "a dataset's name is lower case letters, digits, `_`, `.` and `-`, at most 64"
        raise UsageError(what) from None
    if any(known.name == name for known in store.datasets.all()):
        todo = f"`lianmo data refresh {name}` reads its source again"
        raise Conflict(f"dataset {name} exists already", todo=todo)
    return _read(home, store, name, source, now, before=None, as_of=as_of, region=region)


def refresh(
    home: Home, store: Store, name: str, now: datetime, *, as_of: str | None = None
) -> tuple[StoredDataset, tuple[str, ...]]:
    """Read a dataset's source again; columns keep their types, and a failure changes nothing."""
    before = store.datasets.get(name)
    source = Source.model_validate(before.source)
    return _read(home, store, name, source, now, before=before, as_of=as_of, region=None)


def remove(home: Home, store: Store, name: str, now: datetime) -> None:
    """Forget a dataset with its snapshot; what it was asked before still counts."""
    audit = AuditLog(home, store)
    with _alone(home, store), audit.together(now):
        stored = store.datasets.get(name)
        store.datasets.remove(name)
        _log(audit, Action.DATA_REMOVED, stored, now)


def _log(audit: AuditLog, action: Action, stored: StoredDataset, now: datetime) -> None:
    """An entry on a snapshot; its name and digest, which could be guessed at, as a commitment."""
    subject = f"dataset {stored.name} {stored.snapshot}".encode()
    audit.append(action, stored.checked_against, now, subject=subject)


def _read(
    home: Home,
    store: Store,
    name: str,
    source: Source,
    now: datetime,
    *,
    before: StoredDataset | None,
    as_of: str | None,
    region: str | None,
) -> tuple[StoredDataset, tuple[str, ...]]:
    registry = registries.current(home, store)
    types = {column: FieldType(kind) for column, kind in before.columns} if before else None
    with _alone(home, store) as folder, snapshot(source, registry, folder, types) as made:
        file = f"{name}-{made.digest[:16]}.parquet"
        stored = StoredDataset(
            name=name,
            source=source.model_dump(mode="json"),
            columns=tuple((column, kind.value) for column, kind in made.columns),
            rows=made.rows,
            unknown=made.unknown,
            checked_against=registry.digest.hex(),
            snapshot=made.digest,
            file=file,
            added=utc_text(now),
        )
        draft = dict(store.entries.get(name).draft) if before else _first_draft(home, stored)
        draft |= {"as_of": as_of or now.date().isoformat(), "rows": made.rows}
        if region is not None:
            draft["region"] = region
        made.path.replace(folder / file)
        _flush_folder(folder)
        audit = AuditLog(home, store)
        with audit.together(now):
            store.datasets.put(stored, draft, replace=before is not None)
            _log(audit, Action.DATA_REFRESHED if before else Action.DATA_ADDED, stored, now)
    return stored, made.notes


def _first_draft(home: Home, stored: StoredDataset) -> dict[str, Any]:
    return {
        "title": stored.name,
        "region": home.own().region,
        "fields": [
            Field(name=name, type=FieldType(kind)).model_dump(mode="json")
            for name, kind in stored.columns
        ],
    }


@contextmanager
def _alone(home: Home, store: Store) -> Iterator[Path]:
    """The data folder to oneself, without what crashes left before or removals left now."""
    folder = registries.data_folder(home)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            todo = "wait for it to end"
            raise Conflict("another command is changing this home's data", todo=todo) from None
        _sweep(folder, store)
        try:
            yield folder
        except LianmoError:
            # What was not registered goes at once; if the database is away, next time.
            with suppress(LianmoError):
                _sweep(folder, store)
            raise
        _sweep(folder, store)
    finally:
        os.close(descriptor)  # and with it the lock


def _sweep(folder: Path, store: Store) -> None:
    named = {dataset.file for dataset in store.datasets.all()}
    for path in folder.iterdir():
        if path.name.startswith(STAGING):
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".parquet" and path.name not in named:
            path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- catalogue ------------------------------------------------------------------------------------


def describe(
    store: Store,
    name: str,
    words: Mapping[str, str],
    fields: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Change a dataset's draft entry: its own words, and those of single fields; all or nothing.

    Raises UsageError for a field that is not there or a value that is not one of the choices.
    """
    draft = dict(store.entries.get(name).draft)
    draft |= words
    known = {field["name"]: dict(field) for field in draft["fields"]}
    if EVERY in fields:  # the words on single fields come after those on all
        every = dict.fromkeys(known, fields[EVERY])
        fields = {
            name: {**every.get(name, {}), **fields.get(name, {})} for name in {**every, **fields}
        }
    for field, changes in fields.items():
        if field == EVERY:
            continue
        if field not in known:
            what = f"dataset {name} has no field {field}"
            raise UsageError(what, todo=f"`lianmo catalogue show {name}` lists them")
        try:
            changed = Field.model_validate(known[field] | dict(changes))
        except ValidationError as error:
            raise UsageError(f"field {field}: {explain(error)}") from None
        known[field] = changed.model_dump(mode="json")
    draft["fields"] = list(known.values())
    store.entries.set_draft(name, draft)
    return draft


def sign_entry(
    home: Home, store: Store, name: str, now: datetime, key: PrivateKey | None = None
) -> Envelope:
    """Sign the draft and put it in force: from here on the gate takes this entry and no other.

    key: of a person; default: the home's. Where the entry has, or had, fields of level L3 or above,
    the first person's signature waits in the home for a second person's on the same entry, and
    nothing is in force before; `is_in_force` tells. An entry that says what the signed one says is
    not signed again. Raises UsageError if the owner has not said enough about the dataset.
    """
    stored = store.entries.get(name)
    missing = [word for word in OWN_WORDS if not stored.draft.get(word)]
    if missing:
        options = " ".join(f"--{word.replace('_', '-')} ..." for word in missing)
        todo = f"`lianmo catalogue set {name} {options}`"
        raise UsageError(f"dataset {name} has no {', '.join(missing)}".replace("_", " "), todo=todo)
    content = dict(stored.draft) | {"name": name, "owner": home.org}
    before = Envelope.from_json(stored.envelope) if stored.envelope is not None else None
    old = before.unverified(Dataset) if before is not None else None
    waiting = _waiting(home, name)
    try:
        if before is not None and old is not None and _says(content, old):
            return before
        half = waiting.unverified(Dataset) if waiting is not None else None
        if half is None or half.previous != stored.digest or not _says(content, half):
            waiting = None  # signed before the draft was changed: that signature is on other words
        fresh = Dataset.model_validate(
            content | {"created": utc_text(now), "previous": stored.digest}
        )
    except ValidationError as error:
        raise UsageError(f"the entry of dataset {name}: {explain(error)}") from None
    signing, trust = key or home.key(CATALOGUE_USAGE), home.trust()
    envelope = sign(fresh, signing) if waiting is None else _joined(waiting, signing)
    try:
        signed = trust.verify(envelope, Dataset, CATALOGUE_USAGE, now, home.org)
    except Refused:
        # one of the two keys is not in force on that entry: revoked since, or younger than it; then
        # this person is the first one to sign it anew
        envelope = sign(fresh, signing)
        signed = trust.verify(envelope, Dataset, CATALOGUE_USAGE, now, home.org)
    half = signed.object
    if distinct(signed.holders) < needed_for_entry(half, old):
        _pending(home, name).parent.mkdir(mode=keyring.DIRECTORY_MODE, exist_ok=True)
        keyring.write(_pending(home, name), envelope.to_json(), keyring.SECRET_MODE)
        return envelope
    audit = AuditLog(home, store)
    with audit.together(now):
        store.entries.set_signed(name, envelope.to_json(), half.digest(), now)
        audit.append(Action.CATALOGUE_SIGNED, half.digest(), now, actor=CATALOGUE_USAGE)
    _pending(home, name).unlink(missing_ok=True)
    return envelope


def _joined(waiting: Envelope, key: PrivateKey) -> Envelope:
    """What waits, with this signature too."""
    envelope = sign(waiting.unverified(Dataset), key)
    new = {item.keyid for item in envelope.signatures}
    kept = tuple(item for item in waiting.signatures if item.keyid not in new)
    return envelope.model_copy(update={"signatures": kept + envelope.signatures})


def is_in_force(store: Store, envelope: Envelope) -> bool:
    """Whether the gate takes this entry: not before enough persons have signed it."""
    entry = envelope.unverified(Dataset)
    return store.entries.get(entry.name).digest == entry.digest()


def _says(content: Mapping[str, Any], entry: Dataset) -> bool:
    """Whether a draft says what the entry says."""
    again = {**content, "created": entry.created, "previous": entry.previous}
    return Dataset.model_validate(again) == entry


def _pending(home: Home, name: str) -> Path:
    """Where an entry waits for a second person's signature."""
    return home.path / "pending" / f"{name}.entry.json"


def _waiting(home: Home, name: str) -> Envelope | None:
    file = _pending(home, name)
    return Envelope.from_json(file.read_bytes()) if file.is_file() else None
