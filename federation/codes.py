"""Unified social credit codes (GB 32100-2015): valid or the reason why not, one or a million.

    1     registering authority    2     kind of organisation    3-8   region, digits
    9-17  subject code with its own check character (GB 11714)   18    check character

The alphabet leaves out I, O, S, V and Z, which look like digits or each other; they are refused
with that reason, as are lower case and full-width forms: a code repaired by guessing may be that of
another enterprise. The first two characters are not checked against the list of authorities, as
amendments add to it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # imported where a table is read: every command would pay half a second
    import pandas as pd
    import pyarrow as pa

CODE_LENGTH = 18
ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"  # GB 32100-2015 table 4: values 0 to 30
LOOK_ALIKES = "IOSVZ"
WEIGHTS = np.array([pow(3, k, 31) for k in range(17)])  # GB 32100-2015 section 5.2
SUBJECT_WEIGHTS = np.array([3, 7, 9, 10, 5, 8, 4, 2])  # GB 11714-1997, characters 9 to 16
SUBJECT_CHECKS = "0123456789X"  # 10 is X
BLOCK = 1 << 16  # rows worked on at once: bounds the memory, not the result

Codes: TypeAlias = NDArray[np.bytes_]
"""Shape (rows,), dtype S18."""
Column: TypeAlias = "NDArray[np.generic] | pd.Series[str] | list[str]"


class CodeFault(IntEnum):
    """What is wrong with a code: the first that applies, in this order."""

    NONE = 0
    MISSING = 1
    SPACE = 2
    FULL_WIDTH = 3
    LENGTH = 4
    LOWER_CASE = 5
    LOOK_ALIKE = 6
    CHARACTER = 7
    REGION = 8
    SUBJECT_CHECK = 9
    CHECK = 10

    @property
    def reason(self) -> str:
        return _REASONS[self]


_REASONS = {
    CodeFault.NONE: "valid",
    CodeFault.MISSING: "no code",
    CodeFault.SPACE: "spaces in or around the code",
    CodeFault.FULL_WIDTH: "full-width characters: type them in half width",
    CodeFault.LENGTH: f"not {CODE_LENGTH} characters",
    CodeFault.LOWER_CASE: "lower-case letters: codes are in upper case",
    CodeFault.LOOK_ALIKE: "one of I, O, S, V, Z, which no code contains: 1, 0, 5, U or 2 is meant?",
    CodeFault.CHARACTER: "a character that no code contains",
    CodeFault.REGION: "characters 3 to 8, the region, are not all digits",
    CodeFault.SUBJECT_CHECK: "check character 17, of the subject code (GB 11714), does not match",
    CodeFault.CHECK: "check character 18 does not match",
}


class InvalidCode(ValueError):
    """The text is not a credit code; the message has the reason, never the text."""

    def __init__(self, fault: CodeFault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class CreditCode(str):
    """A valid code. Raises InvalidCode."""

    __slots__ = ()

    def __new__(cls, text: str) -> CreditCode:
        if fault := fault_of(text):
            raise InvalidCode(fault)
        return super().__new__(cls, text)


def fault_of(text: str) -> CodeFault:
    """One code, step by step as the standard reads. Only the first 19 characters are looked at."""
    text = text[: CODE_LENGTH + 1]
    if not text:
        return CodeFault.MISSING
    if any(character.isspace() for character in text):
        return CodeFault.SPACE
    if any("\uff01" <= character <= "\uff5e" for character in text):
        return CodeFault.FULL_WIDTH
    if len(text) != CODE_LENGTH:
        return CodeFault.LENGTH
    if any("a" <= character <= "z" for character in text):
        return CodeFault.LOWER_CASE
    if any(character in LOOK_ALIKES for character in text):
        return CodeFault.LOOK_ALIKE
    if any(character not in ALPHABET for character in text):
        return CodeFault.CHARACTER
    if not all("0" <= character <= "9" for character in text[2:8]):
        return CodeFault.REGION
    subject = sum(int(c, 36) * int(w) for c, w in zip(text[8:16], SUBJECT_WEIGHTS, strict=True))
    if text[16] != SUBJECT_CHECKS[-subject % 11]:
        return CodeFault.SUBJECT_CHECK
    total = sum(ALPHABET.index(c) * int(w) for c, w in zip(text[:17], WEIGHTS, strict=True))
    if text[17] != ALPHABET[-total % 31]:
        return CodeFault.CHECK
    return CodeFault.NONE


def faults_of(column: Column) -> NDArray[np.uint8]:
    """`fault_of` of every row, shape (rows,), without a Python step a row.

    column: text as pandas, list or numpy array (S, U or object); missing cells are `MISSING`.
    Raises TypeError if cells are not text (a code read as a number has lost its zeros).
    """
    return np.concatenate([np.zeros(0, np.uint8), *map(_faults, _code_points(column))])


def codes_of(column: Column) -> Codes:
    """The column as valid codes. Raises InvalidCode with the first row's reason."""
    faults = faults_of(column)
    if faults.any():
        raise InvalidCode(CodeFault(int(faults[np.argmax(faults != 0)])))
    if isinstance(column, np.ndarray) and column.dtype.kind in "SU":
        return column.astype(f"S{CODE_LENGTH}")
    return np.asarray(column, dtype=object).astype(f"S{CODE_LENGTH}")


# --- arrays


_VALUE = np.full(128, -1, np.int8)  # of a character in the alphabet
_VALUE[[ord(c) for c in ALPHABET]] = range(len(ALPHABET))
_BASE_36 = np.zeros(128, np.int8)  # GB 11714: A is 10 and Z is 35, gaps included
_BASE_36[[ord(c) for c in ALPHABET]] = [int(c, 36) for c in ALPHABET]
_SUBJECT_CHECK = np.frombuffer(SUBJECT_CHECKS.encode(), np.uint8)
_CHECK = np.frombuffer(ALPHABET.encode(), np.uint8)
# What str.isspace says, so that both validators agree.
_SPACES = np.array([c for c in range(0x3001) if chr(c).isspace()], np.uint32)


def _code_points(column: Column) -> list[NDArray[np.uint32]]:
    """Blocks of shape (rows, 19): zero behind the end, 19 characters where there are more."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "SU":
        return [_fixed(column[at : at + BLOCK]) for at in range(0, len(column), BLOCK)]
    import pyarrow as pa

    try:
        text = pa.array(column, type=pa.string(), from_pandas=True)
    except (TypeError, ValueError) as error:  # pyarrow's own are subclasses of these
        raise TypeError("the codes are not all text") from error
    return [_sliced(text[at : at + BLOCK]) for at in range(0, len(text), BLOCK)]


def _fixed(rows: NDArray[np.generic]) -> NDArray[np.uint32]:
    width = CODE_LENGTH + 1
    if rows.dtype.kind == "S":  # as Latin-1: whatever is not ASCII is no character of a code
        raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1).astype(np.uint32)
    else:
        raw = np.ascontiguousarray(rows).view(np.uint32).reshape(len(rows), -1)
    points = np.zeros((len(rows), width), np.uint32)
    points[:, : raw.shape[1]] = raw[:, :width]
    return points


def _sliced(text: pa.Array) -> NDArray[np.uint32]:
    import pyarrow.compute as pc

    width = CODE_LENGTH + 1
    # A text may hold zero characters, which numpy would take for its end.
    clean = pc.replace_substring(pc.fill_null(text, ""), "\x00", "?")
    cut = pc.utf8_slice_codeunits(clean, 0, width)
    rows = np.asarray(cut.to_numpy(zero_copy_only=False), dtype=f"U{width}")
    return rows.view(np.uint32).reshape(-1, width)


def _faults(points: NDArray[np.uint32]) -> NDArray[np.uint8]:
    used = points != 0
    length = np.where(used.any(1), points.shape[1] - np.argmax(used[:, ::-1], 1), 0)
    narrow = np.where(points[:, :CODE_LENGTH] < 128, points[:, :CODE_LENGTH], 0).astype(np.uint8)
    value = _VALUE[narrow].astype(np.int32)
    subject = _BASE_36[narrow[:, 8:16]].astype(np.int32) @ SUBJECT_WEIGHTS.astype(np.int32)
    total = value[:, :17] @ WEIGHTS.astype(np.int32)
    region = narrow[:, 2:8]
    checks = {
        CodeFault.MISSING: length == 0,
        CodeFault.SPACE: np.any(np.isin(points, _SPACES), axis=1),
        CodeFault.FULL_WIDTH: np.any((points >= 0xFF01) & (points <= 0xFF5E), axis=1),
        CodeFault.LENGTH: length != CODE_LENGTH,
        CodeFault.LOWER_CASE: np.any((narrow >= ord("a")) & (narrow <= ord("z")), axis=1),
        CodeFault.LOOK_ALIKE: np.any(np.isin(narrow, [ord(c) for c in LOOK_ALIKES]), axis=1),
        CodeFault.CHARACTER: np.any(value < 0, axis=1),
        CodeFault.REGION: np.any((region < ord("0")) | (region > ord("9")), axis=1),
        CodeFault.SUBJECT_CHECK: narrow[:, 16] != _SUBJECT_CHECK[-subject % 11],
        CodeFault.CHECK: narrow[:, 17] != _CHECK[-total % 31],
    }
    return np.select(list(checks.values()), [np.uint8(fault) for fault in checks], np.uint8(0))


# --- codes for public data sets


REGIONS = b"110105 120104 310115 320102 330106 370102 420106 440305 510104 610113"


def code_for_row(dataset_number: int, rows: NDArray[np.integer]) -> Codes:
    """Codes of invented enterprises for the rows of a public data set (its README has the rule).

    dataset_number: one digit. rows: row numbers from 0, below 1,000,000, which all get codes of
    their own.
    """
    if not 0 <= dataset_number <= 9:
        raise ValueError("a data set number is one digit")
    if len(rows) and not 0 <= rows.min() <= rows.max() < 1_000_000:
        raise ValueError("row numbers are 0 to 999,999")
    scattered = (7919 * rows.astype(np.int64) + 104729) % 1_000_000
    text = np.zeros((len(rows), CODE_LENGTH), np.uint8)
    text[:, :2] = np.frombuffer(b"91", np.uint8)
    regions = np.frombuffer(REGIONS.replace(b" ", b""), np.uint8).reshape(-1, 6)
    text[:, 2:8] = regions[scattered // 1000 % 10]
    text[:, 8] = ord("Y")
    text[:, 9] = ord("0") + dataset_number
    text[:, 10:16] = ord("0") + scattered[:, None] // 10 ** np.arange(5, -1, -1) % 10
    subject = _BASE_36[text[:, 8:16]].astype(np.int32) @ SUBJECT_WEIGHTS.astype(np.int32)
    text[:, 16] = _SUBJECT_CHECK[-subject % 11]
    total = _VALUE[text[:, :17]].astype(np.int32) @ WEIGHTS.astype(np.int32)
    text[:, 17] = _CHECK[-total % 31]
    return text.view(f"S{CODE_LENGTH}").reshape(-1)
