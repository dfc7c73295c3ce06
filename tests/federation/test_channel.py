"""Channels keep two programs in step, count what they carry and say who is gone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from federation.channel import Channel, QueueTransport, in_process, run_in_process
from federation.errors import PartyLost
from protocols.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Word:
    text: str


@dataclass(frozen=True, slots=True)
class Number:
    value: int


def test_both_ends_agree_on_the_transcript_of_what_was_said() -> None:
    ends = in_process(["bank", "tax"])
    bank, tax = ends["bank"]["tax"], ends["tax"]["bank"]
    bank.send("one", Word("a"))
    bank.send("two", Word("b"))
    tax.send("one", Number(5))
    assert tax.receive("one", Word) == Word("a")
    assert tax.receive("two", Word) == Word("b")
    assert bank.receive("one", Number) == Number(5)
    assert bank.traffic.sent_digest == tax.traffic.received_digest != bytes(32)
    assert bank.traffic.received_digest == tax.traffic.sent_digest != bytes(32)
    assert bank.traffic.sent_bytes == tax.traffic.received_bytes
    assert set(bank.traffic.sent_bytes) == {"one", "two"}


def test_a_message_of_another_stage_or_type_is_out_of_step() -> None:
    ends = in_process(["bank", "tax"])
    ends["bank"]["tax"].send("later", Word("a"))
    with pytest.raises(ProtocolError, match="out of step"):
        ends["tax"]["bank"].receive("now", Word)
    ends["tax"]["bank"].send("now", Word("a"))
    with pytest.raises(ProtocolError, match="expected Number"):
        ends["bank"]["tax"].receive("now", Number)


def test_a_repeated_frame_is_out_of_step() -> None:
    ends = in_process(["bank", "tax"])
    transport = ends["bank"]["tax"]._transport
    assert isinstance(transport, QueueTransport)
    ends["bank"]["tax"].send("now", Word("a"))
    frame = transport._outgoing.get()
    transport._outgoing.put(frame)
    transport._outgoing.put(frame)
    assert ends["tax"]["bank"].receive("now", Word) == Word("a")
    with pytest.raises(ProtocolError, match="out of step"):
        ends["tax"]["bank"].receive("now", Word)


def test_a_party_that_stops_is_named_with_its_stage_and_without_its_reason() -> None:
    ends = in_process(["bank", "tax"])
    ends["tax"]["bank"].stop("binning", "failed")
    with pytest.raises(PartyLost, match=r"tax, stage binning: stopped \(failed\)"):
        ends["bank"]["tax"].receive("tokens", Word)


def test_a_silent_party_is_named() -> None:
    transport = in_process(["bank", "tax"])["bank"]["tax"]._transport
    channel = Channel("bank", "tax", transport, timeout_s=0.01)
    with pytest.raises(PartyLost, match="tax, stage tokens: no message"):
        channel.receive("tokens", Word)


def test_garbage_between_the_parties_is_a_protocol_error() -> None:
    ends = in_process(["bank", "tax"])
    for frame in (b"", b"\xff" * 40, bytes(24), bytes(7) + b"\x01a" + bytes(16)):
        ends["bank"]["tax"]._transport.send(frame)
        with pytest.raises(ProtocolError):
            ends["tax"]["bank"].receive("now", Word)


def test_the_cause_is_raised_and_not_its_echo_at_the_other_party() -> None:
    ends = in_process(["bank", "tax"])

    def tax() -> None:
        ends["tax"]["bank"].stop("binning", "failed")
        raise ValueError("the cause")

    def bank() -> None:
        ends["bank"]["tax"].receive("binning", Word)

    with pytest.raises(ValueError, match="the cause"):
        run_in_process({"bank": bank, "tax": tax})
