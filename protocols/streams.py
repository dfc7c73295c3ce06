"""Randomness as an argument: one master seed a party and job, one labelled stream a draw.

Every draw is `HKDF(master, job, attempt, peer, stage, step, column, digest of the step's inputs)`
(PROTOCOLS.md sections 3 and 6). The digest of the inputs is the rule that matters most: a stage
that is run again with other values after a crash must never reuse a pad (CRYPTO_REVIEW.md F3, F4).
A replay with the same seed, labels and inputs gives the same bytes.

Construction  HKDF-SHA256 (RFC 5869) for the key of a stream; AES-256-CTR from counter 0 for its
              bytes. A key serves one stream and is used from its start once, so the counter never
              repeats under a key.
Encoding      length-prefixed, so no two label tuples share an encoding.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

SEED_BYTES = 32
EVERYBODY = (
    "*"  # the peer of a draw that serves all departments at once (the bank's s, e and requests)
)
_ZEROS = bytes(1 << 20)


def encode(*parts: bytes | str | int) -> bytes:
    """Length-prefixed concatenation: injective, whatever the parts contain.

    Integers are written as 8 bytes, big-endian, signed.
    """
    out = []
    for part in parts:
        if isinstance(part, int):
            raw = part.to_bytes(8, "big", signed=True)
        else:
            raw = part.encode() if isinstance(part, str) else bytes(part)
        out += [len(raw).to_bytes(8, "big"), raw]
    return b"".join(out)


def digest(*parts: bytes | str | int) -> bytes:
    """SHA-256 over the length-prefixed parts."""
    return hashlib.sha256(encode(*parts)).digest()


class Stream:
    """Endless pseudo-random bytes under one 32-byte key, read from the start, in order."""

    def __init__(self, key: bytes) -> None:
        if len(key) != SEED_BYTES:
            raise ValueError(f"a stream key has {SEED_BYTES} bytes")
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._cipher.update(bytes(count))

    def words(self, *shape: int) -> NDArray[np.uint64]:
        """The next uniform 64-bit words (little-endian), in C order."""
        count = math.prod(shape)
        out = np.empty(count + 2, "<u8")  # the cipher asks for room for a block behind its bytes
        view = out.view(np.uint8).data
        for start in range(0, 8 * count, len(_ZEROS)):
            size = min(len(_ZEROS), 8 * count - start)
            self._cipher.update_into(memoryview(_ZEROS)[:size], view[start:])
        return out[:count].reshape(shape).astype(np.uint64, copy=False)


@dataclass(frozen=True, slots=True)
class Randomness:
    """All of one party's draws in one attempt of one job."""

    master: bytes = field(
        repr=False
    )  # 32 bytes from the system's CSPRNG, stored by the party, erased later
    job: bytes  # digest of the manifest
    attempt: int

    def __post_init__(self) -> None:
        if len(self.master) != SEED_BYTES:
            raise ValueError(f"a master seed has {SEED_BYTES} bytes")

    def key(
        self,
        label: bytes,
        *,
        peer: str = EVERYBODY,
        stage: str = "",
        step: int | str = 0,
        column: int | str = 0,
        inputs: bytes = b"",
    ) -> bytes:
        """32 bytes for exactly this draw; `inputs` digests all values that the draw protects."""
        info = encode(label, self.job, self.attempt, peer, stage, step, column, inputs)
        return HKDF(SHA256(), SEED_BYTES, salt=None, info=info).derive(self.master)

    def stream(
        self,
        label: bytes,
        *,
        peer: str = EVERYBODY,
        stage: str = "",
        step: int | str = 0,
        column: int | str = 0,
        inputs: bytes = b"",
    ) -> Stream:
        """The stream under `key(...)` of the same arguments."""
        return Stream(
            self.key(label, peer=peer, stage=stage, step=step, column=column, inputs=inputs)
        )
