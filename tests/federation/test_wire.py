"""Frames carry exactly the message that was asked for, or nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from federation import wire
from protocols.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Inner:
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Outer:
    count: int
    flag: bool
    raw: bytes
    text: str
    inner: tuple[Inner, ...]
    small: NDArray[np.uint8] = field(repr=False)
    wide: NDArray[np.int64] = field(repr=False)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


@dataclass(frozen=True, slots=True)
class Other:
    count: int


def outer(count: int = 3) -> Outer:
    inner = (Inner("a", -(1 << 62)), Inner("税", 1 << 60))
    small, wide = np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([-1, 1 << 60])
    return Outer(count, True, b"\x00\xff", "text", inner, small, wide)


def equal(one: Outer, other: Outer) -> bool:
    plain = [f for f in Outer.__slots__ if f not in ("small", "wide")]
    return all(getattr(one, f) == getattr(other, f) for f in plain) and all(
        np.array_equal(getattr(one, f), getattr(other, f)) for f in ("small", "wide")
    )


def test_a_message_comes_back_as_it_was_and_equal_messages_give_equal_bytes() -> None:
    data = wire.encode(outer())
    assert equal(wire.decode(data, Outer), outer())
    assert data == wire.encode(outer())


def test_another_message_type_is_refused_even_when_its_fields_fit() -> None:
    with pytest.raises(ProtocolError, match="expected Other"):
        wire.decode(wire.encode(outer()), Other)


def test_the_type_s_own_validation_speaks_as_a_protocol_error() -> None:
    data = wire.encode(outer()).replace(b'"count":"3"', b'"count":"-"')
    with pytest.raises(ProtocolError):
        wire.decode(data, Outer)
    short = wire.encode(outer(30)).replace(b'"count":"30"', b'"count":"-9"')
    with pytest.raises(ProtocolError, match="count is negative"):
        wire.decode(short, Outer)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"dtype":"|u1"', b'"dtype":"|i1"'),
        (b'"shape":[2,3]', b'"shape":[3,3]'),
        (b'"shape":[2,3]', b'"shape":[2,2]'),
        (b'"flag":true', b'"flag":null'),
        (b'"size":2', b'"size":9'),
        (b'"text":"text"', b'"tex_":"text"'),
        (b'"count":"3"', b'"count": 3 '),
    ],
)
def test_a_changed_header_is_refused(before: bytes, after: bytes) -> None:
    data = wire.encode(outer())
    assert before in data
    with pytest.raises(ProtocolError):
        wire.decode(data.replace(before, after), Outer)


@given(st.data())
def test_cut_longer_or_random_frames_are_refused_by_name(data: st.DataObject) -> None:
    frame = wire.encode(outer())
    cut = data.draw(st.integers(0, len(frame) - 1))
    tail = data.draw(st.binary(min_size=1, max_size=9))
    for bad in (frame[:cut], frame + tail, tail, wire.MAGIC + tail):
        with pytest.raises(ProtocolError):
            wire.decode(bad, Outer)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_bit_never_gives_anything_but_a_message_or_a_protocol_error(
    at: int, change: int
) -> None:
    frame = bytearray(wire.encode(outer()))
    frame[at % len(frame)] ^= change
    with contextlib.suppress(ProtocolError):
        assert isinstance(wire.decode(bytes(frame), Outer), Outer)
