"""What a bundle for auditors is made of: a zip file without compression (clients/replay.py).

manifest.json, record.json, escrow.*   as they were signed
transcript/PEER.jsonl                  the index of all frames
frames/PEER/NUMBER                     frames of the draw, or all that were received
open/...                               seed, secrets and data of a party, for a full replay
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients import audited
from clients.attempts import RECORD, SEED, AttemptFolder, first_seed
from clients.home import Home
from clients.runner import pair_seeds
from clients.store import Jobs, Store
from clients.transcripts import StoredTranscript
from federation.channel import read_frame
from federation.envelope import Envelope
from federation.errors import IntegrityError, NotFound
from federation.objects import CoverKind, JobManifest, RunRecord
from federation.registry import Cover
from federation.replay import Account, Opened
from federation.tables import BankData, CategoryColumn, Column, DepartmentData, NumberColumn
from federation.tasks.cover import CoverRows
from federation.transcript import Frame
from protocols.streams import SEED_BYTES

MAX_MEMBER = 4 << 30
_MEMBER = re.compile(r"[a-z0-9_.-]+(/[a-z0-9_.-]+){0,2}")


@dataclass(frozen=True, slots=True)
class BundleTranscript:
    """A transcript with the frames that a bundle holds."""

    by_peer: Mapping[str, Sequence[Frame]] = field(repr=False)
    bodies: Mapping[tuple[str, int], bytes] = field(repr=False)

    def peers(self) -> Sequence[str]:
        """With whom there was a channel."""
        return sorted(self.by_peer)

    def frames(self, peer: str) -> Sequence[Frame]:
        """All frames of a channel."""
        return self.by_peer.get(peer, ())

    def body(self, peer: str, number: int) -> bytes | None:
        """A frame's bytes, if the bundle has them."""
        return self.bodies.get((peer, number))


@dataclass(frozen=True, slots=True)
class Bundle:
    """One party's account of one attempt, as it was handed over."""

    manifest: JobManifest
    account: Account
    opened: Opened | None = field(default=None, repr=False)

    @property
    def org(self) -> str:
        """Whose account it is."""
        return self.account.record.org


Data = Callable[[RunRecord], tuple[BankData | DepartmentData, CoverRows | None]]


def gate_data(home: Home, store: Store, now: Callable[[], datetime], to: str) -> Data:
    """A party's data of a run, from its gate."""
    from clients.gate import Gate

    def data(record: RunRecord) -> tuple[BankData | DepartmentData, CoverRows | None]:
        admission = Gate(home, store, now).reopen(record, to)
        manifest = admission.job.manifest
        if home.org == manifest.bank:
            cover = None
            if manifest.cover.kind is not CoverKind.REGISTRY:
                made = admission.cover
                cover = CoverRows(made.registry, made.positions.astype(np.int32))
            return admission.bank_data(), cover
        return admission.department_data(_cover_given(home, manifest, record)), None

    return data


def _cover_given(home: Home, manifest: JobManifest, record: RunRecord) -> Cover | None:
    """The rows that the bank named to this department in that attempt."""
    if (kind := manifest.cover.kind) is CoverKind.REGISTRY:
        return None
    folder = AttemptFolder.of(home.runs(manifest.job), record.manifest, record.attempt)
    stored = StoredTranscript.of(folder.path)
    for number, frame in enumerate(stored.frames(manifest.bank)):
        if frame.kind == CoverRows.__name__ and (body := stored.body(manifest.bank, number)):
            rows = read_frame(body, CoverRows)[1]
            return Cover(kind, rows.registry, rows.positions.astype(np.int64))
    raise NotFound("this node does not have the bank's list of rows any more", party=home.org)


def recorded_attempt(
    home: Home, store: Store, job: str, attempt: int | None
) -> tuple[AttemptFolder, JobManifest]:
    """An attempt of this node that has a record, by default the last one; raises NotFound."""
    runs = home.runs(job)
    found: list[tuple[int, AttemptFolder, JobManifest]] = []
    for known in Jobs(store).of_name(job):
        manifest = Envelope.from_json(known.envelope).unverified(JobManifest)
        for number in range(1, manifest.limits.attempts + 1):
            folder = AttemptFolder.of(runs, manifest.digest(), number)
            if (folder.path / RECORD).is_file() and attempt in (None, number):
                found.append((number, folder, manifest))
    if not found:
        what = f"no attempt of {job} was recorded here" if attempt is None else "no such attempt"
        raise NotFound(what, party=home.org)
    _, folder, manifest = found[-1]
    return folder, manifest


def opened_members(
    home: Home, manifest: JobManifest, record: RunRecord, folder: AttemptFolder, opens: Data
) -> dict[str, bytes]:
    """Everything that the party's program ran on, for its full replay."""
    data, cover = opens(record)
    members = {f"open/{SEED}": (folder.path / SEED).read_bytes()}
    rounds = manifest.task == "scorecard" and manifest.scorecard.openings > 0
    if rounds and isinstance(data, DepartmentData):  # only then: it is the same for all jobs
        members["open/rounding"] = home.rounding_secret()
    if (first := first_seed(folder.path.parent, record.manifest)) and record.attempt > 1:
        members["open/first"] = first
    for peer, secret in pair_seeds(home, manifest, record.attempt).items():
        members[f"open/pairs/{peer}"] = secret
    for part, state in audited.copied_checkpoints(folder.path).items():
        members[f"open/before/{part}.state"] = state
    members |= _data_members(data)
    if cover is not None:
        members["open/cover.npz"] = _npz(registry=_bytes(cover.registry), rows=cover.positions)
    return members


def _data_members(data: BankData | DepartmentData) -> dict[str, bytes]:
    arrays: dict[str, Any] = {"codes": data.codes}
    if isinstance(data, BankData):
        arrays |= {"positions": data.positions, "labels": data.labels}
        if data.test is not None:
            arrays["test"] = data.test
    about: list[list[Any]] = []
    for number, column in enumerate(data.columns):
        if isinstance(column, CategoryColumn):
            arrays[f"c{number}"] = column.codes
            about.append([column.name, list(column.categories)])
        else:
            arrays[f"c{number}"] = column.values
            about.append([column.name, None])
    plain = {"columns": about, "rows": data.cover_rows if isinstance(data, BankData) else 0}
    return {"open/data.json": json.dumps(plain).encode(), "open/data.npz": _npz(**arrays)}


def opened_of(members: Mapping[str, bytes]) -> Opened | None:
    """The same, of a bundle; None if it has none of it. Raises IntegrityError."""
    if f"open/{SEED}" not in members:
        return None
    try:
        about, arrays = json.loads(members["open/data.json"]), _arrays(members["open/data.npz"])
        columns: list[Column] = []
        for number, (name, categories) in enumerate(about["columns"]):
            values = arrays[f"c{number}"]
            if categories is None:
                columns.append(NumberColumn(str(name), values.astype(np.float64)))
            else:
                texts = tuple(str(text) for text in categories)
                columns.append(CategoryColumn(str(name), values.astype(np.int32), texts))
        data: BankData | DepartmentData
        if "positions" in arrays:
            test = arrays.get("test")
            data = BankData(
                int(about["rows"]),
                arrays["positions"],
                arrays["codes"],
                columns,
                arrays["labels"],
                test,
            )
        else:
            data = DepartmentData(columns, arrays["codes"])
        _require_sound(data)
        cover = None
        if "open/cover.npz" in members:
            listed = _arrays(members["open/cover.npz"])
            cover = CoverRows(listed["registry"].tobytes(), listed["rows"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise IntegrityError("the opened part of the bundle is not well formed") from None
    secrets_ = {
        name: content
        for name, content in members.items()
        if name in (f"open/{SEED}", "open/first", "open/rounding") or name.startswith("open/pairs/")
    }
    if any(len(content) != SEED_BYTES for content in secrets_.values()):
        raise IntegrityError("the opened part of the bundle has a secret of another length")
    return Opened(
        seed=members[f"open/{SEED}"],
        data=data,
        first_seed=members.get("open/first", b""),
        pair_seeds=_below(members, "open/pairs/"),
        rounding=members.get("open/rounding", b""),
        before={
            name.removesuffix(".state"): state
            for name, state in _below(members, "open/before/").items()
        },
        cover=cover,
    )


def _require_sound(data: BankData | DepartmentData) -> None:
    """The programs take these for granted, as the gate makes them; ValueError otherwise."""
    rows = len(data.codes)
    if data.codes.dtype != np.dtype("S18") or data.codes.ndim != 1:
        raise ValueError("codes of another form")
    for column in data.columns:
        values = column.codes if isinstance(column, CategoryColumn) else column.values
        if values.shape != (rows,):
            raise ValueError("a column of another length")
        if (
            isinstance(column, CategoryColumn)
            and ((column.codes < -1) | (column.codes >= max(len(column.categories), 1))).any()
        ):
            raise ValueError("a category that is not listed")
    if isinstance(data, BankData):
        sides: list[tuple[NDArray[Any], type[np.generic]]] = [
            (data.positions, np.int64),
            (data.labels, np.uint8),
        ]
        sides += [(data.test, np.bool_)] if data.test is not None else []
        if any(side.shape != (rows,) or side.dtype != kind for side, kind in sides):
            raise ValueError("customers, labels and hold-out of several lengths")
        inside = rows == 0 or 0 <= int(data.positions[0]) <= int(data.positions[-1])
        if not inside or (np.diff(data.positions) <= 0).any():
            raise ValueError("customers in no order")
        if rows and int(data.positions[-1]) >= data.cover_rows:
            raise ValueError("customers beyond the cover")


def _below(members: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    return {n.removeprefix(folder): body for n, body in members.items() if n.startswith(folder)}


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _arrays(data: bytes) -> dict[str, Any]:
    """What `_npz` wrote; ValueError for anything that would be more than its bytes."""
    return {name.removesuffix(".npy"): _array(content) for name, content in unzipped(data).items()}


def _array(content: bytes) -> Any:
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    size = math.prod(shape) * dtype.itemsize
    if is_fortran or dtype.hasobject or size != len(content) - file.tell():
        raise ValueError("an array of another size")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape).copy()


def _bytes(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)


def frame_name(peer: str, number: int) -> str:
    """The member that holds a frame."""
    return f"frames/{peer}/{number:07d}"


def frame_place(name: str) -> tuple[str, int]:
    """The frame that a member holds; raises IntegrityError."""
    _, peer, number = name.split("/") if name.count("/") == 2 else ("", "", "")
    if not number.isdigit():
        raise IntegrityError("the bundle has a frame without a place")
    return peer, int(number)


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip file of them; equal members give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)  # without a time: equal bytes
    return buffer.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """All members; stored ones only, so that a small file cannot become a large one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = file.infolist()
            if len({item.filename for item in infos}) != len(infos):
                raise IntegrityError("the bundle has two members of one name")
            for item in infos:
                if item.compress_type != zipfile.ZIP_STORED or item.file_size > MAX_MEMBER:
                    raise IntegrityError("the bundle has a member that is compressed or too large")
                if not _MEMBER.fullmatch(item.filename):
                    raise IntegrityError("the bundle has a member with a strange name")
            return {item.filename: file.read(item) for item in infos}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError):
        raise IntegrityError("not a bundle, or damaged on the way") from None
