"""Frames between party and relay: what is written is read, and nothing else is."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.relay_frame import MAX_FRAME, MAX_PAYLOAD, Address, Frame, Kind, Report
from protocols.errors import ProtocolError

addresses = st.builds(
    Address,
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
    st.from_regex(r"[a-z][a-z0-9_-]{1,31}", fullmatch=True),
)
numbers = st.integers(1, 2**64 - 1)
reports = st.builds(Report, st.binary(min_size=8, max_size=8), numbers, numbers, numbers)
data = st.builds(Frame, st.just(Kind.DATA), addresses, numbers, st.binary(min_size=1, max_size=100))
acks = st.builds(Frame, st.just(Kind.ACK), addresses, numbers)
others = st.builds(
    Frame,
    st.sampled_from([Kind.SYN, Kind.PROBE, Kind.STATE, Kind.GONE]),
    addresses,
    numbers,
    reports.map(Report.encode),
)
frames = st.one_of(data, acks, others)
EXAMPLE = Frame(Kind.DATA, Address(bytes(32), 1, "tax"), 1, b"sealed")


@given(frames)
def test_a_frame_is_read_as_it_was_written(frame: Frame) -> None:
    assert Frame.decode(frame.encode()) == frame


@given(frames, st.sampled_from(["bank", "tax-bureau", "x" * 32]))
def test_the_receiver_gets_the_same_frame_with_the_senders_name(frame: Frame, org: str) -> None:
    address = replace(frame.address, party=org)
    assert Frame.decode(Frame.decode(frame.encode()).forwarded(org)) == replace(
        frame, address=address
    )


@given(reports)
def test_a_report_is_read_as_it_was_written(report: Report) -> None:
    assert Report.decode(report.encode()) == report


@given(st.binary(max_size=200))
def test_no_other_bytes_are_a_frame(garbage: bytes) -> None:
    try:
        frame = Frame.decode(garbage)
    except ProtocolError:
        return
    assert frame.encode() == garbage


@given(frames, st.data())
def test_a_changed_frame_is_read_as_what_it_is_or_not_at_all(
    frame: Frame, choice: st.DataObject
) -> None:
    changed = bytearray(frame.encode())
    changed[choice.draw(st.integers(0, len(changed) - 1))] ^= choice.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        assert Frame.decode(bytes(changed)).encode() == bytes(changed)


@pytest.mark.parametrize(
    "payload", [b"", bytes(MAX_PAYLOAD + 1)], ids=["nothing", "more than a frame may hold"]
)
def test_a_payload_of_a_wrong_size_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        Frame.decode(replace(EXAMPLE, payload=payload).encode())


def test_the_largest_frame_fits() -> None:
    largest = replace(
        EXAMPLE, payload=bytes(MAX_PAYLOAD), address=replace(EXAMPLE.address, party="x" * 32)
    )
    assert len(largest.encode()) <= MAX_FRAME
    assert Frame.decode(largest.encode()) == largest


@pytest.mark.parametrize(
    ("manifest", "attempt", "party"),
    [
        (bytes(31), 1, "tax"),
        (bytes(32), -1, "tax"),
        (bytes(32), 2**32, "tax"),
        (bytes(32), 1, "Tax"),
        (bytes(32), 1, "tax\n"),
        (bytes(32), 1, ""),
        (bytes(32), 1, "x" * 33),
    ],
)
def test_an_address_that_is_none_does_not_exist(manifest: bytes, attempt: int, party: str) -> None:
    with pytest.raises(ValueError, match="a channel's address"):
        Address(manifest, attempt, party)


def test_a_frame_does_not_show_its_content() -> None:
    assert "sealed" not in repr(EXAMPLE)
