"""One interface between two parties of a job, carried in this process or over the relay.

A party program sends and receives typed messages under the name of a stage. A `Channel` turns them
into frames (stage, number, message), keeps a running digest of all frames of each direction (the
transcript of the run record) and counts bytes. What carries the frames is a `Transport`: here a
queue, in `clients/relay_client.py` mutually authenticated TLS through the relay. The frames are
the same bytes on both.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from federation import wire
from federation.errors import PartyLost
from protocols.errors import ProtocolError
from protocols.streams import encode

M = TypeVar("M")
R = TypeVar("R")


class Transport(Protocol):
    """Ordered, reliable frames to and from one peer; sealed where they leave the process."""

    def send(self, frame: bytes) -> None:
        """Hand over one frame; may wait while the peer is slow (back-pressure)."""

    def receive(self, timeout_s: float) -> bytes:
        """The next frame; raises TimeoutError, or PartyLost when the peer is gone for good."""

    def close(self) -> None:
        """No more frames."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A party's last word to the others: its program ended early. A coarse code, no reason."""

    stage: str
    code: str

    def __post_init__(self) -> None:
        # a peer's words, which go into this party's log and onto its operator's terminal
        if not re.fullmatch(r"[A-Za-z_-]{1,32}", self.code):
            raise ValueError("a code is a word")
        if len(self.stage) > 200 or not self.stage.isprintable():
            raise ValueError("a stage is a short text")


class Recorder(Protocol):
    """Who keeps what a channel carried, for a replay (`federation/transcript.py`)."""

    def note(
        self, peer: str, is_sent: bool, stage: str, kind: str, digest: bytes, frame: bytes
    ) -> None:
        """One frame: before it leaves, or before the program sees it. digest: its SHA-256."""


@dataclass(slots=True)
class Traffic:
    """What one channel carried, by stage; the digests chain every frame of a direction."""

    sent_bytes: dict[str, int] = field(default_factory=dict)
    received_bytes: dict[str, int] = field(default_factory=dict)
    sent_digest: bytes = bytes(32)
    received_digest: bytes = bytes(32)
    frames: int = 0


class Channel:
    """Typed messages to and from one peer, in step: both sides name the same stage."""

    def __init__(
        self,
        me: str,
        peer: str,
        transport: Transport,
        *,
        timeout_s: float = 600.0,
        recorder: Recorder | None = None,
    ) -> None:
        self.me, self.peer, self.traffic = me, peer, Traffic()
        self._transport, self._timeout_s = transport, timeout_s
        self._recorder = recorder
        self._sent = self._received = 0

    def send(self, stage: str, message: object) -> None:
        """Send a message of a dataclass type; `stage` names where in the task we are."""
        frame = _frame(stage, self._sent, message)
        self._sent += 1
        traffic = self.traffic
        known = self._note(True, stage, type(message).__name__, frame)
        traffic.sent_digest = chain(traffic.sent_digest, known)
        traffic.sent_bytes[stage] = traffic.sent_bytes.get(stage, 0) + len(frame)
        traffic.frames += 1
        self._transport.send(frame)

    def receive(self, stage: str, kind: type[M], timeout_s: float | None = None) -> M:
        """The next message, which must be a `kind` of this very stage.

        timeout_s: of this message; else as the channel waits. Raises PartyLost if the peer stopped
        or stays silent, ProtocolError if it is out of step.
        """
        waits = self._timeout_s if timeout_s is None else timeout_s
        try:
            frame = self._transport.receive(waits)
        except TimeoutError:
            todo = "ask its operator to run `lianmo doctor`; a new attempt goes on from here"
            what = f"no message for {waits:.0f} s"
            raise PartyLost(what, party=self.peer, stage=stage, todo=todo) from None
        named, number, body = _parse(frame)
        if named == _STOPPED:
            word = wire.decode(body, Stopped)
            todo = f"the reason is in the log of {self.peer}'s node"
            what = f"stopped ({word.code})"
            raise PartyLost(what, party=self.peer, stage=word.stage, todo=todo)
        if named != stage or number != self._received:
            raise ProtocolError(f"out of step: expected a message of stage {stage}")
        self._received += 1
        traffic = self.traffic
        known = self._note(False, stage, kind.__name__, frame)
        traffic.received_digest = chain(traffic.received_digest, known)
        traffic.received_bytes[stage] = traffic.received_bytes.get(stage, 0) + len(frame)
        traffic.frames += 1
        return wire.decode(body, kind)

    def stop(self, stage: str, code: str) -> None:
        """Tell the peer that this party's program ended early, so that it need not wait."""
        self._transport.send(_frame(_STOPPED, 0, Stopped(stage, code)))

    def close(self) -> None:
        """No more messages."""
        self._transport.close()

    def _note(self, is_sent: bool, stage: str, kind: str, frame: bytes) -> bytes:
        known = hashlib.sha256(frame).digest()
        if self._recorder is not None:
            self._recorder.note(self.peer, is_sent, stage, kind, known, frame)
        return known


_STOPPED = "\x00stopped"


def _frame(stage: str, number: int, message: object) -> bytes:
    """`encode(stage, number, wire.encode(message))`, with one copy of a long message."""
    pieces = wire.pieces(message)
    size = sum(memoryview(piece).nbytes for piece in pieces)
    return b"".join((encode(stage, number), size.to_bytes(8, "big"), *pieces))


def read_frame(frame: bytes, kind: type[M]) -> tuple[str, M]:
    """(stage, message) of a recorded frame; raises ProtocolError if it is of another kind."""
    stage, _, body = _parse(frame)
    return stage, wire.decode(body, kind)


def chain(before: bytes, frame: bytes) -> bytes:
    """A direction's digest after one more frame, given by its SHA-256."""
    return hashlib.sha256(before + frame).digest()


def _parse(frame: bytes) -> tuple[str, int, memoryview]:
    """The three length-prefixed parts of a frame."""
    parts, at, whole = [], 0, memoryview(frame)
    for _ in range(3):
        size = int.from_bytes(frame[at : at + 8], "big")
        if at + 8 + size > len(frame):
            raise ProtocolError("frame cut short")
        parts.append(whole[at + 8 : at + 8 + size])
        at += 8 + size
    if at != len(frame) or len(parts[1]) != 8 or len(parts[0]) > 200:
        raise ProtocolError("frame with a wrong layout")
    try:
        stage = bytes(parts[0]).decode()
        return stage, int.from_bytes(parts[1], "big", signed=True), parts[2]
    except UnicodeDecodeError as error:
        raise ProtocolError("stage is not text") from error


# --- in this process ------------------------------------------------------------------------------


class QueueTransport:
    """One end of a pair of queues."""

    def __init__(self, outgoing: queue.Queue[bytes], incoming: queue.Queue[bytes]) -> None:
        self._outgoing, self._incoming = outgoing, incoming

    def send(self, frame: bytes) -> None:
        self._outgoing.put(frame)

    def receive(self, timeout_s: float) -> bytes:
        try:
            return self._incoming.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None

    def close(self) -> None:
        """Nothing to release."""


def in_process(parties: Sequence[str]) -> dict[str, dict[str, Channel]]:
    """A channel between every two parties: `channels[me][peer]`."""
    queues = {(a, b): queue.Queue[bytes]() for a in parties for b in parties if a != b}
    return {
        me: {
            peer: Channel(me, peer, QueueTransport(queues[me, peer], queues[peer, me]))
            for peer in parties
            if peer != me
        }
        for me in parties
    }


def run_in_process(programs: Mapping[str, Callable[[], R]]) -> dict[str, R]:
    """Run every party's program in a thread of its own; the results by party.

    A party that fails is expected to have told the others (`Channel.stop`); the first failure that
    is not the mere echo of another party's is raised.
    """
    results: dict[str, R] = {}
    failures: dict[str, BaseException] = {}

    def run(party: str, program: Callable[[], R]) -> None:
        try:
            results[party] = program()
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failures[party] = error

    threads = [
        threading.Thread(target=run, args=item, name=item[0], daemon=True)
        for item in programs.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        causes = [e for e in failures.values() if not isinstance(e, PartyLost)]
        raise (causes or list(failures.values()))[0]
    return results
