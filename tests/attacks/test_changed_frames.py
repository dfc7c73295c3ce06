"""A frame that is changed on its way, or repeated, ends a job of trees with a name and a stage.

Between real nodes TLS refuses such frames before a program sees them (tests/attacks/
test_relay_attacks.py). Here a program is given them as if its peer had sent them: what it does then
must not depend on anybody's good will.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

import numpy as np
import pytest

from federation.channel import Channel, QueueTransport, in_process
from federation.errors import IntegrityError
from tests.federation.trees_data import make_trees_world

ORGS = ("bank", "tax")
Change = Callable[[bytes], list[bytes]]


def replayed(frame: bytes) -> list[bytes]:
    return [frame, frame]


def truncated(frame: bytes) -> list[bytes]:
    return [frame[:-1]]


def emptied(frame: bytes) -> list[bytes]:
    return [b""]


def flipped(frame: bytes) -> list[bytes]:
    """One bit, in the last value that the frame carries."""
    at = np.flatnonzero(np.frombuffer(frame, np.uint8))[-1]
    return [frame[:at] + bytes([frame[at] ^ 0x01]) + frame[at + 1 :]]


def out_of_range(frame: bytes) -> list[bytes]:
    """The last packed values as large as their bits allow."""
    return [frame[:-64] + b"\xff" * 64]


class Meddler(QueueTransport):
    """Changes the first frame of a stage."""

    def __init__(
        self,
        outgoing: queue.Queue[bytes],
        incoming: queue.Queue[bytes],
        stage: str,
        change: Change,
    ) -> None:
        super().__init__(outgoing, incoming)
        self._head = len(stage).to_bytes(8, "big") + stage.encode()
        self._change, self.changed = change, 0

    def send(self, frame: bytes) -> None:
        if self.changed or not frame.startswith(self._head):
            super().send(frame)
            return
        self.changed += 1
        for one in self._change(frame):
            super().send(one)


def channels(
    sender: str, stage: str, change: Change
) -> tuple[dict[str, dict[str, Channel]], Meddler]:
    """As `in_process`, with a meddler on what one party sends."""
    there, back = queue.Queue[bytes](), queue.Queue[bytes]()
    other = ORGS[1 - ORGS.index(sender)]
    meddler = Meddler(there, back, stage, change)
    links = in_process(ORGS)
    links[sender][other] = Channel(sender, other, meddler)
    links[other][sender] = Channel(other, sender, QueueTransport(back, there))
    return links, meddler


FROM_BANK = ("row keys", "tokens", "counts", "trees")
FROM_TAX = ("row keys", "binning", "tokens", "counts", "trees")


@pytest.mark.parametrize("change", [replayed, truncated, emptied])
@pytest.mark.parametrize(
    ("sender", "stage"),
    [*(("bank", stage) for stage in FROM_BANK), *(("tax", stage) for stage in FROM_TAX)],
)
def test_a_repeated_or_shortened_frame_ends_the_job_with_a_named_error(
    sender: str, stage: str, change: Change
) -> None:
    links, meddler = channels(sender, stage, change)
    with pytest.raises(IntegrityError) as caught:
        make_trees_world().run(channels=links, trees=1)
    assert meddler.changed == 1
    assert caught.value.party in ORGS
    assert caught.value.stage
    assert caught.value.todo


@pytest.mark.parametrize("change", [flipped, out_of_range])
@pytest.mark.parametrize(
    ("sender", "stage"),
    [
        ("bank", "tokens"),
        ("bank", "counts"),
        ("tax", "tokens"),
        ("tax", "counts"),
        ("tax", "trees"),
    ],
)
def test_a_frame_with_another_value_ends_the_job_before_a_model_is_made(
    sender: str, stage: str, change: Change
) -> None:
    """The bank's checks of what is opened catch what has a lawful form (CRYPTO_REVIEW.md R5)."""
    links, meddler = channels(sender, stage, change)
    with pytest.raises(IntegrityError) as caught:
        make_trees_world().run(channels=links, trees=1)
    assert meddler.changed == 1
    assert caught.value.party in ORGS
    assert caught.value.stage
