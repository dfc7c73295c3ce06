"""Labelled randomness: equal labels give equal bytes, any other label gives unrelated ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.streams import Randomness, Stream, digest, encode

PARTS = st.lists(
    st.one_of(st.binary(max_size=9), st.text(max_size=9), st.integers(-(2**63), 2**63 - 1))
)


def test_reading_in_pieces_gives_the_same_stream() -> None:
    key = bytes(range(32))
    whole = Stream(key).bytes(3_000_000)
    pieces = Stream(key)
    assert pieces.bytes(5) + pieces.bytes(2_999_995) == whole
    words = Stream(key).words(375_000)
    assert words.astype("<u8").tobytes() == whole


def test_the_stream_is_aes_256_ctr_from_counter_zero() -> None:
    # NIST AESAVS KAT, CTR of the all-zero key at counter 0 = AES-256 ECB of the zero block
    assert Stream(bytes(32)).bytes(16).hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize(
    "change",
    [
        {"peer": "tax"},
        {"stage": "b"},
        {"step": 1},
        {"step": "0"},
        {"column": 1},
        {"inputs": b"x"},
    ],
)
def test_each_label_of_a_draw_changes_every_byte_stream(change: dict[str, str]) -> None:
    randomness = Randomness(bytes(32), b"job", 1)
    assert randomness.key(b"l", **change) != randomness.key(b"l")  # type: ignore[arg-type]
    assert randomness.key(b"l") != Randomness(bytes(32), b"job", 2).key(b"l")
    assert randomness.key(b"l") != Randomness(bytes(32), b"jo", 1).key(b"l")
    assert randomness.key(b"l") == Randomness(bytes(32), b"job", 1).key(b"l")


def test_a_master_seed_is_not_shown() -> None:
    assert "master" not in repr(Randomness(b"s" * 32, b"job", 1))


@given(PARTS, PARTS)
def test_the_encoding_of_labels_is_injective(
    one: list[bytes | str | int], other: list[bytes | str | int]
) -> None:
    def plain(parts: list[bytes | str | int]) -> list[bytes]:
        return [
            p.to_bytes(8, "big", signed=True)
            if isinstance(p, int)
            else p.encode()
            if isinstance(p, str)
            else p
            for p in parts
        ]

    assert (encode(*one) == encode(*other)) == (plain(one) == plain(other))
    assert (digest(*one) == digest(*other)) == (plain(one) == plain(other))


def test_words_look_uniform() -> None:
    words = Stream(bytes(32)).words(1 << 16)
    bits = np.unpackbits(words.view(np.uint8)).mean()
    assert abs(bits - 0.5) < 4 * 0.5 / np.sqrt(words.size * 64)
