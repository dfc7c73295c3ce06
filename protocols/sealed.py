"""Sealed columns: the bank opens one integer a row, on its own customers' rows only.

PROTOCOLS.md section 2. A department sends a column over the whole cover; the bank has row keys of
its customers only: the rest stays closed, and the department does not learn which rows those are.

    sealed[i] = clip(value[i]) + trunc32(AES_K(x_i) xor x_i) + mask[i]   mod 2^32
    K         = SHA-256(step, department, nonce)[:16],  x_i = H(rowkey, job)
    mask      = sum over peers of +- the pair's stream; all masks of a step sum to zero

Steps        D seal, B open_sum
Security     pads: one AES key a column, from a nonce that depends on its values (F4, F17);
             masks: a department's part is hidden from the bank unless it works together with all
             the other departments
Not covered  what the sum tells (openings are declared, rounded and counted: `bits_per_opening`); a
             department that seals something else than it should
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log2

import numpy as np
from numpy.typing import NDArray

from protocols import labels
from protocols.errors import ParameterError, ProtocolError
from protocols.row_keys import ROW_KEY_BYTES, aes_hash, row_words
from protocols.streams import Randomness, digest, encode

NONCE_BYTES = 32
SUM_BOUND = 2**31  # sums are opened as signed 32-bit integers


# --- what a column is about


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The declared values of one department, in steps of the resolution: low <= value <= high."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the range {self.low} to {self.high} holds fewer than two values")

    def bits(self, departments: int = 1) -> float:
        """Bits that one opened sum of `departments` values can tell of a row, at most."""
        return log2(departments * (self.high - self.low) + 1)

    def clip(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        return np.clip(values.astype(np.int64), self.low, self.high)


@dataclass(frozen=True, slots=True)
class Step:
    """What every column of one sum must agree on; all of it enters the keys and the masks.

    A step that is repeated with other values, or without a department that vanished, needs another
    `attempt`: under an equal step the masks cancel between the two columns (F4).
    """

    job: bytes  # digest of the manifest
    attempt: int
    bank: str
    departments: tuple[str, ...]  # everyone whose value is in the sum, in ascending order
    cover: bytes  # digest of the row list
    stage: str
    step: int
    column: int
    values: ValueRange

    def __post_init__(self) -> None:
        if not self.departments or list(self.departments) != sorted(set(self.departments)):
            raise ValueError("departments are named once each, in ascending order")
        bound = len(self.departments) * max(abs(self.values.low), abs(self.values.high))
        if bound >= SUM_BOUND:
            raise ParameterError(
                f"{len(self.departments)} values of {self.values.low} to {self.values.high} can "
                f"exceed 2^31: lower the range or raise the resolution"
            )

    def encode(self) -> bytes:
        """Injective."""
        return encode(
            self.job,
            self.attempt,
            self.bank,
            encode(*self.departments),
            self.cover,
            self.stage,
            self.step,
            self.column,
            self.values.low,
            self.values.high,
        )


def bits_per_opening(step: Step) -> float:
    """For the ledger: bits a row that the bank learns at most when it opens this step."""
    return step.values.bits(len(step.departments))


# --- messages


@dataclass(frozen=True, slots=True, eq=False)
class SealedColumn:
    """Department to bank: one sealed integer for every row of the cover."""

    step: Step
    department: str
    nonce: NDArray[np.uint8] = field(repr=False)  # shape (32,)
    values: NDArray[np.uint32] = field(repr=False)  # shape (rows,)

    def __post_init__(self) -> None:
        if self.department not in self.step.departments:
            raise ProtocolError("a column of a department that the step does not name")
        if self.nonce.dtype != np.uint8 or self.nonce.shape != (NONCE_BYTES,):
            raise ProtocolError(f"nonce: shape {self.nonce.shape}, dtype {self.nonce.dtype}")
        if self.values.dtype != np.uint32 or self.values.ndim != 1:
            raise ProtocolError(f"values: shape {self.values.shape}, dtype {self.values.dtype}")

    def digest(self) -> bytes:
        """For the transcript: the bank drops the rows that it cannot open and keeps this (F12)."""
        parts = (self.step.encode(), self.department, self.nonce.tobytes(), _bytes(self.values))
        return digest(labels.COLUMN_KEY, *parts)


@dataclass(frozen=True, slots=True, eq=False)
class OpenedSum:
    """Bank: the sum on each of its rows, in steps of the resolution.

    A row outside what the departments can have sealed is not `valid` and holds 0: treat it as
    missing, and show no reaction to single rows, or a department that spoils one learns from it
    whether it is a customer's (CRYPTO_REVIEW.md question 5).
    """

    values: NDArray[np.int32] = field(repr=False)  # shape (rows,)
    valid: NDArray[np.bool_] = field(repr=False)  # shape (rows,)


# --- parties


class Department:
    """Seals columns for one bank in one job.

    row_keys: `keys_of_job`, shape (rows, 16), in the order of the cover. pair_seeds: the 32 bytes
    shared with every other department of the job; a step may be of fewer. Steps follow from the
    manifest, never from a message: whom a step leaves out does not mask it. `sealed` holds the
    digests of the columns sealed so far, by step; the caller stores it *before* it sends a column,
    as a node that forgets it after a crash would open the difference of two columns.
    """

    def __init__(
        self,
        name: str,
        row_keys: NDArray[np.uint8],
        randomness: Randomness,
        pair_seeds: Mapping[str, bytes],
        sealed: Mapping[bytes, bytes] | None = None,
    ) -> None:
        _require_row_keys(row_keys)
        self.sealed = dict(sealed or {})
        self._name = name
        self._row_keys = row_keys
        self._randomness = randomness
        self._pair_seeds = dict(pair_seeds)

    def seal(self, step: Step, values: NDArray[np.integer]) -> SealedColumn:
        """The column, sealed and masked; the same values again give the same bytes.

        values: shape (rows,), in steps of the resolution, clipped here to the step's range.
        Raises ProtocolError if the step was sealed with other values.
        """
        if (step.job, step.attempt) != (self._randomness.job, self._randomness.attempt):
            raise ValueError("the step belongs to another job or attempt")
        if values.shape != (len(self._row_keys),):
            raise ValueError(f"cover {len(self._row_keys)} rows, column {values.shape}")
        clipped = step.values.clip(values).astype(np.uint32)  # mod 2^32: two's complement
        seeds = {p: s for p, s in self._pair_seeds.items() if p in step.departments}
        mask = zero_sum_mask(step, self._name, seeds, len(clipped))
        of_these_values = digest(_bytes(clipped))
        if self.sealed.setdefault(digest(step.encode()), of_these_values) != of_these_values:
            raise ProtocolError(
                f"stage {step.stage}, step {step.step}, column {step.column} was sealed with other "
                f"values: a repeat needs a new attempt"
            )
        nonce = self._randomness.key(
            labels.COLUMN_NONCE,
            peer=step.bank,
            stage=step.stage,
            step=step.step,
            column=step.column,
            inputs=digest(step.encode(), of_these_values),
        )
        pad = _pad(_column_key(step, self._name, nonce), self._row_keys)
        return SealedColumn(step, self._name, np.frombuffer(nonce, np.uint8), clipped + pad + mask)


def zero_sum_mask(
    step: Step, name: str, pair_seeds: Mapping[str, bytes], rows: int
) -> NDArray[np.uint32]:
    """This department's mask, shape (rows,); those of all the step's departments sum to zero.

    A step of one department has no mask. Raises ProtocolError if the seeds are not those of exactly
    the other departments of the step: masks of unequal sets of peers would not cancel.
    """
    peers = set(step.departments) - {name}
    if name not in step.departments or set(pair_seeds) != peers:
        raise ProtocolError(
            f"{len(pair_seeds)} pair seeds for a step of {len(step.departments)} departments, "
            f"or of others than these"
        )
    mask = np.zeros(rows, np.uint32)
    for peer in sorted(peers):
        # Not bound to the values, which the peer does not know: hence the attempt, and `sealed`.
        pair = Randomness(pair_seeds[peer], step.job, step.attempt)
        stream = pair.stream(
            labels.ZERO_SUM_MASK,
            peer=step.bank,
            stage=step.stage,
            step=step.step,
            column=step.column,
            inputs=digest(step.encode(), *sorted((name, peer))),
        )
        words = np.frombuffer(stream.bytes(4 * rows), "<u4").astype(np.uint32, copy=False)
        mask += words if name < peer else -words
    return mask


def open_sum(
    step: Step,
    columns: Sequence[SealedColumn],
    row_keys: Mapping[str, NDArray[np.uint8]],
    rows: NDArray[np.int64],
) -> OpenedSum:
    """Bank: the departments' sum on the rows that it has keys of (PROTOCOLS.md section 2).

    rows: the customers' places in the cover. row_keys: by department, `keys_of_job` of those rows,
    shape (rows, 16). Raises ProtocolError unless there is one column of each of the step's
    departments, all of this very step and of equal length.
    """
    by_name = {column.department: column for column in columns}
    if len(by_name) != len(columns) or set(by_name) != set(step.departments):
        raise ProtocolError(
            f"{len(columns)} columns, {len(by_name)} departments, {len(step.departments)} expected"
        )
    if any(column.step != step for column in columns):
        raise ProtocolError("a column was sealed for another step")
    if len({len(column.values) for column in columns}) != 1:
        raise ProtocolError("columns of unequal length")
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(columns[0].values):
        raise ValueError(f"rows beyond a cover of {len(columns[0].values)}")
    total = np.zeros(len(rows), np.uint32)
    for name, column in by_name.items():
        _require_row_keys(row_keys[name])
        if len(row_keys[name]) != len(rows):
            raise ValueError(f"{len(rows)} rows, {len(row_keys[name])} row keys")
        key = _column_key(step, name, column.nonce.tobytes())
        total += column.values[rows] - _pad(key, row_keys[name])
    opened = total.view(np.int32)
    count = len(columns)
    valid = (opened >= count * step.values.low) & (opened <= count * step.values.high)
    return OpenedSum(np.where(valid, opened, np.int32(0)), valid)


# --- rounding


def round_scores(
    scores: NDArray[np.float64],
    resolution: float,
    codes: NDArray[np.bytes_],
    direction: bytes,
    secret: bytes,
) -> NDArray[np.int64]:
    """Scores in steps of `resolution`, rounded up or down at random with the right expectation.

    The draw depends on the department's `secret` (32 bytes, kept with its table), the row's code
    and `direction` (digest of what the score was computed with) alone: the same score in any job,
    attempt or cover gives the same bits, so that repeats do not average the rounding away.
    """
    if not resolution > 0 or not np.all(np.isfinite(scores)):
        raise ValueError("scores are finite and the resolution is positive")
    if scores.ndim != 1 or scores.shape != codes.shape:
        raise ValueError(f"scores {scores.shape}, codes {codes.shape}")
    without_job = Randomness(secret, job=b"", attempt=0)
    key = without_job.key(labels.ROUNDING, step=float(resolution).hex(), inputs=digest(direction))[
        :16
    ]
    uniform = (row_words(key, codes) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.floor(scores / resolution + uniform).astype(np.int64)


# --- helpers


def _column_key(step: Step, department: str, nonce: bytes) -> bytes:
    return digest(labels.COLUMN_KEY, step.encode(), department, nonce)[:16]


def _pad(key: bytes, row_keys: NDArray[np.uint8]) -> NDArray[np.uint32]:
    low = np.ascontiguousarray(aes_hash(key, row_keys)[:, :4])
    return low.view("<u4").reshape(-1).astype(np.uint32, copy=False)


def _bytes(values: NDArray[np.uint32]) -> bytes:
    return values.astype("<u4", copy=False).tobytes()


def _require_row_keys(keys: NDArray[np.uint8]) -> None:
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != ROW_KEY_BYTES:
        raise ValueError(f"row keys: shape {keys.shape}, dtype {keys.dtype}")
