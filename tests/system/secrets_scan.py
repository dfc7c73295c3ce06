"""Looks for a value in files, captured bytes and memory of processes, in its usual disguises."""

from __future__ import annotations

import base64
import contextlib
import gzip
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

CHUNK = 2 << 20
OVERLAP = 256  # a pattern across two chunks is found
UNPACKED = 4 << 20  # of one compressed stream
_PACKED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")


def disguises(value: float | str) -> list[bytes]:
    """A value as text and as a machine's number; text also in hex and base64.

    UTF-16 and UTF-32 are the same text between zeros, which `found_in` leaves out.
    """
    found: list[bytes] = []
    texts = {str(value)}
    if isinstance(value, float):
        found += [struct.pack("<d", value), struct.pack(">d", value)]
        if value.is_integer():
            texts = {str(int(value))}
            found += [struct.pack("<q", int(value)), struct.pack(">q", int(value))]
    for text in texts:
        raw = text.encode()
        found += [raw, raw.hex().encode(), raw.hex().upper().encode()]
        # whatever stands before it: cut to the characters that depend on the value alone
        found += [base64.b64encode(bytes(pad) + raw)[4:-4] for pad in range(3)]
    # Memory is full of zeros: a pattern that begins with some is many times slower to look for.
    return [form.strip(b"\x00") for form in found]


def found_in(content: bytes, patterns: Mapping[str, Iterable[bytes]]) -> set[str]:
    """Which of the named patterns stand in the bytes, or in what is compressed in them."""
    dense = content.translate(None, b"\x00") if b"\x00" in content else b""
    found = {n for n, forms in patterns.items() if _any(forms, content) or _any(forms, dense)}
    view = memoryview(content)
    for match in _PACKED.finditer(content):
        start = match.start()
        packer = zlib.decompressobj(31 if content[start] == 0x1F else 15)
        with contextlib.suppress(zlib.error):  # most of what looks like a stream is none
            unpacked = packer.decompress(view[start : start + 256], UNPACKED)
            unpacked += packer.decompress(view[start + 256 : start + UNPACKED], UNPACKED)
            found |= {name for name, forms in patterns.items() if _any(forms, unpacked)}
    return found


def _any(forms: Iterable[bytes], content: bytes) -> bool:
    return any(form in content for form in forms)


def memory(pid: int) -> Iterator[bytes]:
    """Everything that a process can write to and read: heap, stacks, anonymous and shared memory.

    Left out are mappings that it cannot write, which are files of the release.
    """
    with Path(f"/proc/{pid}/mem").open("rb", 0) as source:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split(maxsplit=5)
            if not rights.startswith("rw"):
                continue
            start, end = (int(word, 16) for word in place.split("-"))
            for at in range(start, end, CHUNK):
                with contextlib.suppress(OSError, OverflowError, ValueError):
                    source.seek(at)
                    piece = source.read(min(CHUNK + OVERLAP, end - at))
                    if piece.count(0) < len(piece):
                        yield piece


def found_in_memory(pid: int, patterns: Mapping[str, Iterable[bytes]]) -> set[str]:
    """Which of the named patterns stand in a process's memory."""
    found: set[str] = set()
    for piece in memory(pid):
        found |= found_in(piece, {n: f for n, f in patterns.items() if n not in found})
    return found


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for file in Path(f"/proc/{one}/task").glob("*/children"):
                found += [int(word) for word in file.read_text().split()]
    return found


def packed(text: str) -> bytes:
    """For the scanner's own test."""
    return b"before" + gzip.compress(b"-" * 100 + text.encode()) + b"after"
