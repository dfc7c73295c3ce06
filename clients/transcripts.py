"""A party's transcript as files of its attempt's folder (federation/transcript.py).

    transcript/PEER.jsonl   a line a frame: direction, stage, kind, size, SHA-256
    transcript/PEER.frames  the received frames themselves, one after the other; only of a job whose
                            manifest names auditors, who may want to see them

Lines are with the system before a frame leaves or is acted on, so a killed process loses none.
What auditors may see costs disk: a query has 53 bits a row of the cover, 6.6 MB for a million rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from federation import keyring
from federation.errors import IntegrityError
from federation.transcript import Frame, digest_of

FOLDER = "transcript"
_PEER = re.compile(r"[a-z][a-z0-9_-]{1,31}")


class FileRecorder:
    """Keeps what an attempt's channels carry; a `federation.channel.Recorder`."""

    def __init__(self, attempt: Path, *, keeps_bodies: bool) -> None:
        self._folder, self._keeps_bodies = attempt / FOLDER, keeps_bodies

    def note(
        self, peer: str, is_sent: bool, stage: str, kind: str, digest: bytes, frame: bytes
    ) -> None:
        """One frame; raises NotKept."""
        self._folder.mkdir(mode=keyring.DIRECTORY_MODE, exist_ok=True)
        if self._keeps_bodies and not is_sent:  # first: a line says that its bytes are there
            _append(self._folder / f"{peer}.frames", frame)
        line = [is_sent, stage, kind, len(frame), digest.hex()]
        _append(self._folder / f"{peer}.jsonl", json.dumps(line).encode() + b"\n")


def _append(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        handle = os.open(path, flags, keyring.SECRET_MODE)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
        finally:
            os.close(handle)
    except OSError as error:
        raise keyring.not_kept(path, error) from None


@dataclass(frozen=True, slots=True)
class StoredTranscript:
    """What a recorder left; a `federation.transcript.Transcript`."""

    folder: Path
    by_peer: Mapping[str, Sequence[Frame]] = field(repr=False)
    starts: Mapping[str, Sequence[int]] = field(repr=False)  # of received frames, in the file

    @classmethod
    def of(cls, attempt: Path) -> StoredTranscript:
        """An attempt's transcript, empty if nothing was ever sent or received."""
        folder = attempt / FOLDER
        found = {
            path.stem: parse_lines(path.read_bytes(), path.stem)
            for path in sorted(folder.glob("*.jsonl"))
        }
        starts = {
            peer: [0, *accumulate(0 if frame.is_sent else frame.size for frame in frames)]
            for peer, frames in found.items()
        }
        return cls(folder, found, starts)

    def peers(self) -> Sequence[str]:
        """With whom there was a channel."""
        return sorted(self.by_peer)

    def frames(self, peer: str) -> Sequence[Frame]:
        """All frames of a channel."""
        return self.by_peer.get(peer, ())

    def signed(self) -> tuple[tuple[str, str, str], ...]:
        """As a run record has it: of an attempt that could not count by itself any more."""
        return tuple(
            (
                peer,
                digest_of(self.frames(peer), is_sent=True).hex(),
                digest_of(self.frames(peer), is_sent=False).hex(),
            )
            for peer in self.peers()
        )

    def body(self, peer: str, number: int) -> bytes | None:
        """A received frame's bytes; None if they were not kept, or are erased by now."""
        frame, path = self.frames(peer)[number], self.folder / f"{peer}.frames"
        if frame.is_sent or not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(self.starts[peer][number])
            found = file.read(frame.size)
        return found if len(found) == frame.size else None


def lines_of(frames: Sequence[Frame]) -> bytes:
    """The index of a channel, as files and bundles have it."""
    lines = ([f.is_sent, f.stage, f.kind, f.size, f.digest.hex()] for f in frames)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def parse_lines(data: bytes, peer: str) -> tuple[Frame, ...]:
    """The frames of an index; raises IntegrityError. A last line cut off by a crash is none."""
    if not _PEER.fullmatch(peer):
        raise IntegrityError("a transcript with somebody who is no organisation")
    found = []
    for line in data.split(b"\n")[:-1]:
        try:
            is_sent, stage, kind, size, digest = json.loads(line)
            made = Frame(bool(is_sent), str(stage), str(kind), int(size), bytes.fromhex(digest))
        except (ValueError, TypeError):
            raise IntegrityError(f"the transcript with {peer} is not well formed") from None
        if len(made.digest) != 32 or made.size < 0 or len(made.stage) > 200:
            raise IntegrityError(f"the transcript with {peer} is not well formed")
        found.append(made)
    return tuple(found)
