"""What travels between a party and the relay: an address, a kind, numbers and bytes.

A frame is addressed (manifest digest, attempt, party): `party` is the receiver on the way to the
relay and the sender on the way from it. The relay reads the header and never more. Order, credit
and repetition are settled between the two ends (`clients/relay_line.py`); the relay may lose,
repeat or delay frames and may be restarted at any time.

    DATA   number          a piece of the ends' TLS stream
    ACK    consumed        gives the sender credit
    SYN    received        "I connected, or miss a frame": the other end asks with PROBE
    PROBE  last sent       "what have you got?", with a token and the last number sent
    STATE  received        the answer to PROBE, which repeats its token and number
    GONE   received        "this end is closed and takes nothing more"

PROBE travels behind the frames it asks about, on a path that keeps order: an answer that does not
count them proves that they were lost. Nothing is resent on a guess.

No protobuf: nothing to generate, and a payload is not encoded again at each hop.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass, field

from protocols.errors import ProtocolError

METHOD = "/lianmo.Relay/Stream"
WELCOME = ("lianmo-relay", "1")  # metadata of a stream whose sender is admitted
VERSION = 1
CHUNK = 1 << 19  # bytes of a message in one DATA frame, before TLS; 1 MiB is no faster
MAX_PAYLOAD = CHUNK + (1 << 16)  # TLS 1.3 adds 22 bytes to each record of 16 KiB
WINDOW = 8 << 20  # unconsumed bytes of one channel and direction
MAX_FRAME = MAX_PAYLOAD + 256

_HEADER = struct.Struct(">BB32sIQB")
_REPORT = struct.Struct(">8sQQQ")
_PARTY = re.compile(rb"[a-z][a-z0-9_-]{1,31}")  # objects.OrgId


class Kind(enum.IntEnum):
    """What a frame says."""

    DATA, ACK, SYN, PROBE, STATE, GONE = range(6)


@dataclass(frozen=True, slots=True)
class Address:
    """One channel, seen from one end: the job, its attempt, the other party."""

    manifest: bytes  # digest, 32 bytes
    attempt: int
    party: str

    def __post_init__(self) -> None:
        if len(self.manifest) != 32 or not 0 <= self.attempt < 1 << 32:
            raise ValueError("a channel's address has a 32-byte digest and a 32-bit attempt")
        if not _PARTY.fullmatch(self.party.encode()):
            raise ValueError("a channel's address names an organisation")


@dataclass(frozen=True, slots=True)
class Report:
    """The payload of every frame but DATA and ACK: where the sender of the frame stands."""

    epoch: bytes  # 8 random bytes of this end's state; other bytes: the state was lost
    consumed: int = 0
    token: int = 0  # of the PROBE asked or answered
    mark: int = 0  # last number sent when it was asked

    def encode(self) -> bytes:
        return _REPORT.pack(self.epoch, self.consumed, self.token, self.mark)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Report:
        return cls(*_REPORT.unpack(payload))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, taken apart."""

    kind: Kind
    address: Address
    number: int
    payload: bytes | memoryview = field(default=b"", repr=False)

    def encode(self) -> bytes:
        return _header(self.kind, self.address, self.number) + self.payload

    def report(self) -> Report:
        return Report.decode(self.payload)

    @classmethod
    def decode(cls, data: bytes) -> Frame:
        """The frame in `data`; raises ProtocolError for anything that `encode` does not write."""
        if not _HEADER.size < len(data) <= MAX_FRAME:
            raise ProtocolError("a frame of a wrong size")
        version, kind, manifest, attempt, number, length = _HEADER.unpack_from(data)
        start = _HEADER.size + length
        party = data[_HEADER.size : start]
        if version != VERSION or kind > max(Kind) or not _PARTY.fullmatch(party):
            raise ProtocolError("a frame with a wrong header")
        if len(data) - start not in _SIZES[kind] or (number == 0 and kind == Kind.DATA):
            raise ProtocolError("a frame with a wrong payload")
        address = Address(manifest, attempt, party.decode())
        return cls(Kind(kind), address, number, memoryview(data)[start:])

    def forwarded(self, sender: str) -> bytes:
        """The same frame as its receiver gets it: `sender` in place of the receiver."""
        address = Address(self.address.manifest, self.address.attempt, sender)
        return _header(self.kind, address, self.number) + self.payload


_SIZES = {kind: range(_REPORT.size, _REPORT.size + 1) for kind in Kind}
_SIZES |= {Kind.DATA: range(1, MAX_PAYLOAD + 1), Kind.ACK: range(1)}


def _header(kind: Kind, address: Address, number: int) -> bytes:
    party = address.party.encode()
    fields = (VERSION, kind, address.manifest, address.attempt, number, len(party))
    return _HEADER.pack(*fields) + party
