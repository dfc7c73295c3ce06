"""Row keys: what both ways of agreeing on them have in common (PROTOCOLS.md section 1).

A row key is 16 pseudo-random bytes that the department can compute for every code of the registry
and the bank holds for its own customers only. How they came about (`oprf.py` now, a set OPRF for
large lists later) is invisible behind `RowKeys`; the rest works on arrays of shape (rows, 16).

Not covered  a row key opens every job of its snapshot: both sides work with the job's keys
             (`keys_of_job`), and the department erases the key's seed with the audit window
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocols import labels
from protocols.streams import encode

ROW_KEY_BYTES = 16
CODE_BYTES_MAX = 24  # of a code in `row_words`: a fixed-length input, so that CBC-MAC is a PRF


class RowKeys(Protocol):
    """Either party after the agreement: the department for any code, the bank for its customers."""

    def row_keys(
        self, codes: NDArray[np.bytes_], executor: Executor | None = None
    ) -> NDArray[np.uint8]:
        """Shape (codes, 16), in the order asked."""
        ...


def keys_of_job(row_keys: NDArray[np.uint8], job: bytes) -> NDArray[np.uint8]:
    """`H(rowkey, job)` of every row, shape (rows, 16): the keys that one job's columns use."""
    return _hash_rows(row_keys, encode(labels.ROW_KEY_OF_JOB, job))


def tags(row_keys: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`H(rowkey, "tag")`, shape (rows, 16): safe to publish, unlike any prefix of the key (F17)."""
    return _hash_rows(row_keys, encode(labels.ROW_KEY_TAG))


def row_words(key: bytes, codes: NDArray[np.bytes_], counter: int = 0) -> NDArray[np.uint64]:
    """PRF(key, code, counter) of every row: 64 uniform bits, by the code, not by its position.

    AES-CBC-MAC over exactly two blocks, code padded with zeros, then counter. Codes hold no zeros.
    """
    if codes.dtype.itemsize > CODE_BYTES_MAX:
        raise ValueError(f"codes have at most {CODE_BYTES_MAX} bytes")
    blocks = np.zeros((len(codes), 32), np.uint8)
    width = codes.dtype.itemsize
    blocks[:, :width] = np.ascontiguousarray(codes).view(np.uint8).reshape(-1, width)
    blocks[:, CODE_BYTES_MAX:] = np.frombuffer(counter.to_bytes(8, "big"), np.uint8)
    mac = _aes_ecb(key, _aes_ecb(key, blocks[:, :16]) ^ blocks[:, 16:])
    return np.ascontiguousarray(mac[:, :8]).view("<u8").reshape(-1).astype(np.uint64, copy=False)


def aes_hash(key: bytes, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`AES_key(x) xor x` of every row x, shape (rows, 16): correlation-robust for one key a use."""
    return _aes_ecb(key, rows) ^ rows


def _aes_ecb(key: bytes, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # ECB is the point: one block cipher call a row, each row its own input, nothing is "encrypted".
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    out = cipher.update(np.ascontiguousarray(blocks).data.cast("B") if blocks.size else b"")
    return np.frombuffer(out, np.uint8).reshape(blocks.shape)


def _hash_rows(rows: NDArray[np.uint8], prefix: bytes) -> NDArray[np.uint8]:
    if rows.ndim != 2 or rows.shape[1] != ROW_KEY_BYTES or rows.dtype != np.uint8:
        raise ValueError(f"row keys have shape (rows, {ROW_KEY_BYTES}) and dtype uint8")
    start, raw = hashlib.sha256(prefix), rows.tobytes()
    out = bytearray(len(raw))  # a list of a million digests would take four times as much
    for at in range(0, len(raw), ROW_KEY_BYTES):
        row = start.copy()
        row.update(raw[at : at + ROW_KEY_BYTES])
        out[at : at + ROW_KEY_BYTES] = row.digest()[:ROW_KEY_BYTES]
    return np.frombuffer(out, np.uint8).reshape(-1, ROW_KEY_BYTES)
