"""10,000 malformed frames to every parser that takes a peer's bytes: a named error, each time.

Genuine frames of every message that a scorecard job really sends, with bits, lengths, types and
shapes changed. What reads them may give a message or raise ProtocolError; nothing else, and nothing
that the sender merely claims takes memory.
"""

from __future__ import annotations

import json
import random
import resource
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from federation import wire
from federation.channel import Channel, in_process
from federation.errors import PartyLost
from federation.relay_frame import Address, Frame, Kind, Report
from protocols.errors import ProtocolError
from protocols.streams import encode
from tests.federation.scorecard_data import make_world
from tests.system.hostile_input import mutated, seeded

MESSAGES, CHANNEL_FRAMES, RELAY_FRAMES = 6_000, 2_000, 2_000
GROWTH_BYTES = 200 << 20  # genuine messages of a small job have up to some megabytes


@dataclass
class Seen:
    """A message as it was received, and what it was asked for as."""

    kind: type[Any]
    data: bytes


@cache
def genuine() -> list[Seen]:
    """One message of each kind and size that a job with two departments sends."""
    found: dict[tuple[str, int], Seen] = {}

    class Watching(Channel):
        def receive(self, stage: str, kind: type[Any], timeout_s: float | None = None) -> Any:
            message = super().receive(stage, kind, timeout_s)
            data = wire.encode(message)
            found.setdefault((kind.__name__, len(data) >> 14), Seen(kind, data))
            return message

    world = make_world(600, 500, own=1)
    channels: dict[str, dict[str, Channel]] = {
        me: {peer: Watching(me, peer, item._transport) for peer, item in peers.items()}
        for me, peers in in_process(["bank", *world.departments]).items()
    }
    world.run(channels=channels, openings=1)
    return [item for item in found.values() if len(item.data) < 1 << 18]


def reshaped(draw: random.Random, data: bytes) -> bytes:
    """The header rewritten in canonical JSON with one value of it another one: deeper than bits."""
    import rfc8785

    size = int.from_bytes(data[4:8], "big")
    header = json.loads(data[8 : 8 + size])
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(header)
    node, key = draw.choice(places)
    node[key] = draw.choice(
        (
            *(None, True, -1, 0, 1 << 39, 1 << 52, "", "-0", "1e3", "9" * 30, "\u0000", [], {}),
            *([1 << 20, 1 << 20], [0, 1 << 39, 1 << 39], [-1], [[[[]]]], "<f8", "|O", "<U8", ">i8"),
            {"dtype": "<i8", "shape": [1 << 38]},
            {"size": 1 << 39},
        )
    )
    text = rfc8785.dumps(header)
    return data[:4] + len(text).to_bytes(4, "big") + text + data[8 + size :]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_no_malformed_message_is_anything_but_a_message_or_a_protocol_error() -> None:
    draw, said = seeded(1), Counter[str]()
    kinds = genuine()
    assert len({item.kind for item in kinds}) > 12
    before = peak_bytes()
    for _ in range(MESSAGES):
        item = draw.choice(kinds)
        change = reshaped if draw.random() < 0.5 else mutated
        data = change(draw, item.data)
        try:
            wire.decode(data, item.kind)
            said["a message"] += 1
        except ProtocolError:
            said["a protocol error"] += 1
    assert said["a protocol error"] > MESSAGES / 2
    assert said["a message"] > 0  # some changes say something else, and are well formed
    assert peak_bytes() - before < GROWTH_BYTES


class Fixed:
    """A transport on which one frame has arrived."""

    def __init__(self, frame: bytes) -> None:
        self._frame = frame

    def send(self, frame: bytes) -> None:
        """Nobody listens."""

    def receive(self, timeout_s: float) -> bytes:
        return self._frame

    def close(self) -> None:
        """Nothing to release."""


def test_no_malformed_frame_of_a_channel_is_anything_else_either() -> None:
    draw = seeded(2)
    small = [item for item in genuine() if len(item.data) < 1 << 16]
    said = Counter[str]()
    for _ in range(CHANNEL_FRAMES):
        item = draw.choice(small)
        stage = draw.choice(("counts", "\x00stopped", "x" * 300, "税"))
        parts = (stage, draw.choice((0, 1, -1)), item.data)
        frame = encode(*parts)
        try:
            Channel("tax", "bank", Fixed(mutated(draw, frame))).receive("counts", item.kind)
            said["a message"] += 1
        except (ProtocolError, PartyLost) as error:
            said[type(error).__name__] += 1
    assert said["ProtocolError"] > CHANNEL_FRAMES * 0.8


def test_no_malformed_relay_frame_is_anything_else_either() -> None:
    draw, said = seeded(3), Counter[str]()
    address = Address(np.arange(32, dtype=np.uint8).tobytes(), 3, "tax-bureau")
    good = [
        Frame(kind, address, 5, Report(bytes(8), 1, 2, 3).encode()).encode()
        for kind in (Kind.SYN, Kind.PROBE, Kind.STATE, Kind.GONE)
    ] + [
        Frame(Kind.DATA, address, 9, b"payload").encode(),
        Frame(Kind.ACK, address, 3).encode(),
    ]
    for _ in range(RELAY_FRAMES):
        data = mutated(draw, draw.choice(good))
        try:
            found = Frame.decode(data)
            said["a frame"] += 1
            assert found.encode() == data  # nothing is read in two ways
            if found.kind not in (Kind.DATA, Kind.ACK):
                found.report()
        except ProtocolError:
            said["a protocol error"] += 1
    assert said["a protocol error"] > RELAY_FRAMES / 2
