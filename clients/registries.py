"""The home's copies of registry snapshots: public lists, kept as files, one of them current."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from clients.home import Home
from clients.store import Store, StoredRegistry
from federation.errors import IntegrityError
from federation.objects import utc_text
from federation.registry import Registry, load_registry, save_registry


def data_folder(home: Home) -> Path:
    """Where snapshots lie, of the registry and of datasets; nobody else reads there."""
    folder = home.path / "data"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def add(home: Home, store: Store, registry: Registry, now: datetime) -> StoredRegistry:
    """Keep a snapshot and make it the one that jobs run over."""
    digest = registry.digest.hex()
    path = data_folder(home) / f"registry-{digest[:16]}"
    if not path.exists():
        save_registry(registry, path)
    stored = StoredRegistry(
        digest=digest,
        region=registry.region,
        as_of=registry.as_of.isoformat(),
        rows=len(registry),
        file=path.name,
        added=utc_text(now),
    )
    store.registries.put(stored)
    return stored


def current(home: Home, store: Store) -> Registry:
    """The snapshot that jobs run over, checked again from its file.

    Raises NotFound if there is none, IntegrityError if the file is not what was added.
    """
    stored = store.registries.current()
    todo = "add it again with `lianmo registry add FILE`"
    try:
        registry = load_registry(data_folder(home) / stored.file)
    except FileNotFoundError:
        raise IntegrityError("the registry snapshot's file is gone", todo=todo) from None
    if registry.digest.hex() != stored.digest:
        raise IntegrityError("the registry snapshot's file is another one", todo=todo)
    return registry
