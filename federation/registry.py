"""Registry snapshots and covers: which rows a job runs over (PROTOCOLS.md section 0).

A registry snapshot is the sorted list of all enterprises' codes on a day, public, named by its
digest. A cover is a sorted list of its positions that contains the bank's customers:

    registry    all of them: a department learns nothing about who is a customer
    decoy:k     customers among k times as many: 1/k each, to a department without other knowledge
    customers   exactly the customers, as in other vertical systems

Decoys are sticky (CRYPTO_REVIEW.md F11): with fresh ones for every job, the customers are what ten
covers have in common. So the bank keeps its `Decoys`, extends them, and removes nobody, neither a
decoy nor a customer who left.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field
from datetime import date
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from federation.codes import CODE_LENGTH, CodeFault, Codes, faults_of
from federation.errors import IntegrityError, UsageError
from federation.objects import CoverKind, RegistrySnapshot
from protocols import labels
from protocols.row_keys import row_words
from protocols.streams import digest

if TYPE_CHECKING:  # a quarter of a second of every command that never reads a CSV
    import pandas as pd

CODE_DTYPE = f"S{CODE_LENGTH}"
MAGIC = b"lianmo-registry/1\n"
ROWS_MAX = 100_000_000  # more than twice the market entities of a large country's biggest province
HEADER_MAX = 4096
# With most of the registry in the cover already, free decoys run out and little is saved.
LARGEST_COVER = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Registry:
    """A snapshot: `codes` are valid, sorted and unique. Two are the same if their digests are."""

    codes: Codes = field(repr=False)
    as_of: date
    region: str
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        if self.codes.dtype != CODE_DTYPE or self.codes.ndim != 1 or not len(self.codes):
            raise IntegrityError(f"a registry of shape {self.codes.shape}, {self.codes.dtype}")
        if not np.all(self.codes[:-1] < self.codes[1:]):
            raise IntegrityError("the codes of a registry are sorted, each once")
        if faults_of(self.codes).any():
            raise IntegrityError("a registry holds valid codes only")
        day, count = self.as_of.isoformat(), len(self.codes)
        parts = (labels.REGISTRY, day, self.region, count, self.codes.tobytes())
        object.__setattr__(self, "digest", digest(*parts))

    def __len__(self) -> int:
        return len(self.codes)

    def positions(self, codes: Codes) -> NDArray[np.int64]:
        """The place of every code in the registry, -1 where it is not in it. Shape as asked."""
        order = np.argsort(codes, kind="stable")  # sorted look-ups stay in the processor's cache
        asked = codes[order].astype(CODE_DTYPE)
        found = np.searchsorted(self.codes, asked)
        hit = self.codes[np.minimum(found, len(self.codes) - 1)] == asked
        # A longer text may equal a code once it is cut to its length.
        if codes.dtype.itemsize > CODE_LENGTH:
            hit &= codes[order] == asked
        out = np.empty(len(codes), np.int64)
        out[order] = np.where(hit, found, -1)
        return out

    def described(self) -> RegistrySnapshot:
        """As a manifest names it."""
        return RegistrySnapshot(
            digest=self.digest.hex(),
            rows=len(self),
            region=self.region,
            as_of=self.as_of.isoformat(),
        )


def read_registry(path: Path, as_of: date, region: str, column: str | None = None) -> Registry:
    """A registry from a text file, one code a line, or from one column of a CSV file.

    Repeated codes count once. Raises UsageError with the rows (from 1) and reasons of faulty codes.
    """
    texts = _column_of_csv(path, column) if column else _lines(path)
    faults = faults_of(texts)
    if faults.any():
        at = np.flatnonzero(faults)[:5]
        shown = "; ".join(f"row {i + 1}: {CodeFault(int(faults[i])).reason}" for i in at)
        count = np.count_nonzero(faults)
        raise UsageError(
            f"{count:,} of {len(faults):,} codes in {path.name} are not valid: {shown}",
            todo="correct the file; nothing was stored",
        )
    if not len(faults):
        raise UsageError(f"{path.name} holds no codes")  # a CSV file with its header only
    return Registry(np.unique(np.asarray(texts, dtype=object).astype(CODE_DTYPE)), as_of, region)


def save_registry(registry: Registry, path: Path) -> None:
    """One file: a line of format, a line of JSON, the codes compressed. All of it or nothing."""
    header = {
        "as_of": registry.as_of.isoformat(),
        "region": registry.region,
        "rows": len(registry),
        "digest": registry.digest.hex(),
    }
    content = MAGIC + json.dumps(header, ensure_ascii=False).encode() + b"\n"
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content + zlib.compress(registry.codes.tobytes(), level=6))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_registry(path: Path) -> Registry:
    """The registry of a file, its properties and digest checked again. IntegrityError if not."""
    with path.open("rb") as file:
        magic, line = file.readline(len(MAGIC)), file.readline(HEADER_MAX)
        body = file.read()
    try:
        if magic != MAGIC:
            raise ValueError("not a registry file of this version")
        header = json.loads(line)
        rows, size = int(header["rows"]), int(header["rows"]) * CODE_LENGTH
        if not 0 < rows <= ROWS_MAX:
            raise ValueError(f"{rows} rows")
        unpacking = zlib.decompressobj()
        raw = unpacking.decompress(body, size + 1)  # bounded: the size is known
        if len(raw) != size or not unpacking.eof or unpacking.unused_data:
            raise ValueError(f"not the {rows} codes that it declares")
        codes = np.frombuffer(raw, CODE_DTYPE)
        registry = Registry(codes, date.fromisoformat(header["as_of"]), str(header["region"]))
        declared = bytes.fromhex(header["digest"])
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise IntegrityError(f"{path.name} is damaged: {error}") from error
    if registry.digest != declared:
        raise IntegrityError(f"{path.name} is damaged: its digest does not match")
    return registry


def _lines(path: Path) -> list[str]:
    return _text(path).replace("\r\n", "\n").rstrip("\n").split("\n")


def _column_of_csv(path: Path, column: str) -> pd.Series[str]:
    import pandas as pd

    try:
        table = pd.read_csv(StringIO(_text(path)), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise UsageError(f"{path.name} is not a CSV file: {type(error).__name__}") from error
    if column not in table.columns:
        raise UsageError(f"{path.name} has no column {column}")
    return table[column]


def _text(path: Path) -> str:
    raw = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise UsageError(f"{path.name} is neither UTF-8 nor GB18030")


# --- covers


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """The rows of a job, in ascending order of registry position."""

    kind: CoverKind
    registry: bytes  # its digest
    positions: NDArray[np.int64] = field(repr=False)  # shape (rows,), strictly ascending
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        rows = self.positions
        if rows.dtype != np.int64 or rows.ndim != 1 or not len(rows) or rows[0] < 0:
            raise IntegrityError(f"a cover of shape {rows.shape}, {rows.dtype}")
        if not np.all(rows[:-1] < rows[1:]):
            raise IntegrityError("the rows of a cover ascend, each once")
        content = rows.astype("<i8", copy=False).tobytes()
        object.__setattr__(
            self, "digest", digest(labels.COVER, self.kind.value, self.registry, content)
        )

    def __len__(self) -> int:
        return len(self.positions)

    def require_on(self, registry: Registry) -> None:
        """What a department checks before it uses a bank's cover. Raises IntegrityError."""
        if self.registry != registry.digest:
            raise IntegrityError("the cover belongs to another registry snapshot")
        if self.positions[-1] >= len(registry):
            raise IntegrityError(f"a row beyond the {len(registry)} of the registry")
        if self.kind is CoverKind.REGISTRY and len(self) != len(registry):
            raise IntegrityError(f"cover {len(self)} rows, registry {len(registry)}")

    def rows_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the cover that are these registry positions, -1 where it has none."""
        found = np.minimum(np.searchsorted(self.positions, positions), len(self) - 1)
        return np.where(self.positions[found] == positions, found, -1)


def registry_cover(registry: Registry) -> Cover:
    """Every enterprise of the snapshot."""
    return Cover(CoverKind.REGISTRY, registry.digest, np.arange(len(registry)))


def customers_cover(registry: Registry, customers: Codes) -> Cover:
    """Customers only. UsageError if one is not on the registry."""
    positions = _require_positions(registry, customers)
    return Cover(CoverKind.CUSTOMERS, registry.digest, np.unique(positions))


def decoy_cover(registry: Registry, decoys: Decoys) -> Cover:
    """Everybody whom the bank ever had in a cover, as far as the registry still lists them."""
    positions = registry.positions(decoys.members())
    return Cover(CoverKind.DECOY, registry.digest, np.unique(positions[positions >= 0]))


# --- decoys


@dataclass(frozen=True, slots=True, eq=False)
class Decoys:
    """Which decoys each customer brought along, secret, kept by the bank for ever.

    One pair a row: `decoys[i]` came with customer `owners[i]`. In order of arrival.
    """

    k: int
    owners: Codes = field(repr=False)  # shape (pairs,)
    decoys: Codes = field(repr=False)  # shape (pairs,), each once and none an owner on arrival

    def __post_init__(self) -> None:
        if self.k < 2 or self.owners.shape != self.decoys.shape:
            raise ValueError(f"decoy:{self.k}, shapes {self.owners.shape}, {self.decoys.shape}")

    def members(self) -> Codes:
        """Customers, past and present, and decoys, sorted."""
        return np.unique(np.concatenate([self.owners, self.decoys]))


def no_decoys(k: int) -> Decoys:
    """Where a bank starts."""
    return Decoys(k, np.zeros(0, CODE_DTYPE), np.zeros(0, CODE_DTYPE))


def extend_decoys(stored: Decoys, registry: Registry, customers: Codes, key: bytes) -> Decoys:
    """`stored` and, for every customer it does not know, k more members of the cover.

    The decoys of a customer are the codes at PRF(key, code, 1), PRF(key, code, 2), ... on today's
    registry, leaving out whoever is in the cover. A new customer who is there already, as
    somebody's decoy, brings k decoys instead of k-1: each arrival adds k members, whoever it is.
    `key`: a secret of the bank, the same for ever. Raises UsageError if the registry is too small.
    """
    customers = np.unique(customers)
    _require_positions(registry, customers)
    new = customers[~np.isin(customers, stored.owners)]
    need = np.where(np.isin(new, stored.decoys), stored.k, stored.k - 1)
    taken = np.zeros(len(registry), np.bool_)
    present = registry.positions(np.concatenate([stored.members(), new]))
    taken[present[present >= 0]] = True
    if np.count_nonzero(taken) + need.sum() > LARGEST_COVER * len(registry):
        raise UsageError(
            f"decoy:{stored.k} for {len(customers):,} customers needs more than "
            f"{LARGEST_COVER:.0%} of {len(registry):,} enterprises",
            todo="use the cover `registry`, or a smaller k",
        )
    drawing = digest(labels.DECOY, key)
    owners, decoys, counter = [stored.owners], [stored.decoys], 0
    while need.any():
        counter += 1
        short = np.flatnonzero(need)
        drawn = (row_words(drawing, new[short], counter) % np.uint64(len(registry))).astype(
            np.int64
        )
        # Of customers who draw the same code, the first in order of codes gets it.
        first = np.zeros(len(drawn), np.bool_)
        first[np.unique(drawn, return_index=True)[1]] = True
        accepted = first & ~taken[drawn]
        taken[drawn[accepted]] = True
        need[short[accepted]] -= 1
        owners.append(new[short[accepted]])
        decoys.append(registry.codes[drawn[accepted]])
    return Decoys(stored.k, np.concatenate(owners), np.concatenate(decoys))


def _require_positions(registry: Registry, customers: Codes) -> NDArray[np.int64]:
    positions = registry.positions(customers)
    if missing := np.count_nonzero(positions < 0):
        raise UsageError(
            f"{missing:,} of {len(customers):,} customers are not on the registry of "
            f"{registry.as_of}",
            todo="leave them out, or use a later snapshot",
        )
    return positions
