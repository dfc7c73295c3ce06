"""What went over a party's channels, frame by frame: what a run record's digests stand for.

A record holds one running digest a direction and peer. The transcript beside it lists every frame
by stage, kind, size and SHA-256, so that two ends can find the first frame in which they differ,
and keeps the bytes of what was *received*: those are all that a replay needs besides the party's
own seed and data, since what it sent follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from federation.channel import chain
from federation.errors import IntegrityError
from federation.objects import RunRecord


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a channel, without its bytes."""

    is_sent: bool
    stage: str
    kind: str  # of the message
    size: int
    digest: bytes


class Transcript(Protocol):
    """All frames of one party in one attempt."""

    def peers(self) -> Sequence[str]:
        """With whom there was a channel."""

    def frames(self, peer: str) -> Sequence[Frame]:
        """All frames of a channel, in the order in which this party saw them."""

    def body(self, peer: str, number: int) -> bytes | None:
        """The bytes of `frames(peer)[number]`, if they were kept."""


@dataclass(slots=True)
class MemoryTranscript:
    """A recorder (`federation.channel`) and transcript for parties in one process."""

    by_peer: dict[str, list[Frame]] = field(default_factory=dict)
    bodies: dict[tuple[str, int], bytes] = field(default_factory=dict, repr=False)

    def note(
        self, peer: str, is_sent: bool, stage: str, kind: str, digest: bytes, frame: bytes
    ) -> None:
        """Keep one frame: its digest, and its bytes if they were received."""
        frames = self.by_peer.setdefault(peer, [])
        if not is_sent:
            self.bodies[peer, len(frames)] = frame
        frames.append(Frame(is_sent, stage, kind, len(frame), digest))

    def peers(self) -> Sequence[str]:
        """With whom there was a channel."""
        return sorted(self.by_peer)

    def frames(self, peer: str) -> Sequence[Frame]:
        """All frames of a channel."""
        return self.by_peer.get(peer, [])

    def body(self, peer: str, number: int) -> bytes | None:
        """A received frame's bytes."""
        return self.bodies.get((peer, number))


def digest_of(frames: Sequence[Frame], *, is_sent: bool) -> bytes:
    """The running digest of a direction, as in `Traffic` and run records."""
    found = bytes(32)
    for frame in frames:
        if frame.is_sent == is_sent:
            found = chain(found, frame.digest)
    return found


def require_recorded(transcript: Transcript, record: RunRecord) -> None:
    """The transcript is the one that its party signed; raises IntegrityError."""
    signed = {peer: (sent, received) for peer, sent, received in record.transcript}
    if unknown := set(transcript.peers()) - signed.keys():
        what = f"its transcript has a channel to {min(unknown)}, its record has none"
        raise IntegrityError(what, party=record.org)
    for peer, said in signed.items():
        frames = transcript.frames(peer)
        found = tuple(digest_of(frames, is_sent=side).hex() for side in (True, False))
        if found != said:
            what = f"its transcript with {peer} is not the one that it signed"
            raise IntegrityError(what, party=record.org)


def differences(
    records: Mapping[str, RunRecord], transcripts: Mapping[str, Transcript]
) -> list[tuple[str, str, str]]:
    """(party, peer, where) of every direction in which two signed accounts contradict each other.

    What a failed attempt sent last its peer may not have taken any more: with transcripts at hand
    that is no contradiction; with records alone only attempts that succeeded are compared.
    """
    found = []
    for me, record in sorted(records.items()):
        for peer, sent, _ in record.transcript:
            theirs = records.get(peer)
            got = {org: into for org, _, into in theirs.transcript} if theirs else {}
            if theirs is None or got.get(me) == sent:
                continue
            where = _where(transcripts.get(me), transcripts.get(peer), me, peer)
            is_whole = record.outcome == theirs.outcome == "succeeded"
            if where is None and not is_whole and me in transcripts and peer in transcripts:
                continue
            if where is not None or is_whole:
                found.append((me, peer, where or "the digests of their records"))
    return found


def _where(ours: Transcript | None, theirs: Transcript | None, me: str, peer: str) -> str | None:
    """The first frame that one sent and the other got otherwise."""
    if ours is None or theirs is None:
        return None
    sent = [frame for frame in ours.frames(peer) if frame.is_sent]
    got = [frame for frame in theirs.frames(me) if not frame.is_sent]
    for number, (one, other) in enumerate(zip(sent, got, strict=False)):
        if one.digest != other.digest:
            return f"frame {number} ({one.kind}, stage {one.stage})"
    if len(got) > len(sent):
        extra = got[len(sent)]
        return f"frame {len(sent)} ({extra.kind}, stage {extra.stage}), which was never sent"
    return None
