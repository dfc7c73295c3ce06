"""What a peer or a coordinator can put into frames and answers, and who might be hurt by it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
from numpy.typing import NDArray

from clients.home import Home
from federation import wire
from federation.api import Event, Problem, error_of
from federation.channel import Stopped, in_process
from federation.errors import Conflict, PartyLost
from federation.tasks.messages import Definitions
from federation.trust import TrustStore
from protocols.errors import ProtocolError
from tests.federation.parties import CODES


@dataclass(frozen=True, slots=True)
class Numbers:
    x: NDArray[np.float64]


def frame(name: str, fields: dict[str, Any], body: bytes = b"") -> bytes:
    header = rfc8785.dumps({"type": name, "fields": fields})
    return wire.MAGIC + len(header).to_bytes(4, "big") + header + body


@pytest.mark.parametrize("shape", [[0, 1 << 39, 1 << 39], [1 << 39, 0, 1 << 39, 1 << 39]])
def test_an_array_without_bytes_and_with_endless_axes_is_a_protocol_error(shape: list[int]) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(frame("Numbers", {"x": {"dtype": "<f8", "shape": shape}}), Numbers)


def test_what_a_message_s_own_check_did_not_expect_is_a_protocol_error() -> None:
    bins = {"name": "a", "numeric": True, "edges": {"dtype": "<f8", "shape": []}, "categories": []}
    bins |= {"other": "0", "missing": "0", "bins": "2"}
    data = frame("Definitions", {"features": [bins]}, np.float64(1).tobytes())
    with pytest.raises(ProtocolError):
        wire.decode(data, Definitions)


@pytest.mark.parametrize(
    ("stage", "code"),
    [("fit", "\x1b[2J"), ("a\nb", "LOST"), ("s" * 201, "LOST"), ("fit", "A" * 33)],
)
def test_a_last_word_is_a_word(stage: str, code: str) -> None:
    """It goes into this party's log, and onto its operator's terminal."""
    with pytest.raises(ValueError, match=r"a code is|a stage is"):
        Stopped(stage, code)
    channels = in_process(["a", "b"])
    channels["b"]["a"].stop("fit", "LOST")
    with pytest.raises(PartyLost, match="LOST"):
        channels["a"]["b"].receive("fit", Numbers)


def test_text_of_a_coordinator_moves_no_cursor() -> None:
    """Else it could paint over the review that an approver is about to sign."""
    evil = "\x1b[1A\x1b[2K\u202egood\r"
    event = Event.model_validate_json(
        Event.model_construct(
            number=1, at="2026-01-01T00:00:00Z", kind="status", text=evil
        ).model_dump_json()
    )
    error = error_of(Problem(title="t", status=409, detail=evil, todo=evil), party=evil)
    for text in (event.text, error.what, error.todo):
        assert text.isprintable()
        assert "good" in text


def test_one_legal_person_is_not_trusted_as_two_banks(tmp_path: Path) -> None:
    """Under a second name it had a second exposure budget on every dataset (T7, T23)."""
    cards = []
    for org, kind, code in (("bank-a", "bank", 0), ("bank-b", "bank", 0), ("city", "platform", 0)):
        home = Home.create(
            tmp_path / org,
            org=org,
            kind=kind,
            name=org,
            uscc=CODES[code],
            region="厦门",
            now=datetime.now(UTC),
        )
        cards.append(home.card())
    store = TrustStore([cards[0], cards[2]])  # a bank's own platform is no second bank
    with pytest.raises(Conflict, match="legal person"):
        store.with_card(cards[1])
