"""One question about one value: what it costs, what earlier answers imply, what the answer is
(GOVERNANCE.md, Consent).

The grid's k cut points divide the numbers into k + 1 cells, and every question on a grid asks about
whole cells: `ge c` and `lt c` are one question and its opposite, `gt` and `le` do not exist (with
`ge` they would single out a value on a cut point). So no sequence of questions, by whomever, says
more of a value than its cell.

`Known` is what all verifiers together were told of a (subject, field, period) on one `basis`. What
follows from it is answered from it and costs nothing; anything else costs its worst case, before
the value is read, so that the cost does not depend on the answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any

import rfc8785

from federation.catalogue import Enquiry, Question
from federation.normalise import normalise

BIT = 1000  # costs are counted in thousandths of a bit
VALUE_BITS = 64  # what a whole value counts as


class Comparison(StrEnum):
    """At least, or below; the only two (see above)."""

    GE = "ge"
    LT = "lt"


class Answered(StrEnum):
    """The words of an answer."""

    MATCH = "match"
    NO_MATCH = "no_match"
    NO_RECORD = "no_record"
    REFUSED = "refused"
    VALUE = "value"  # on the channel `query`


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that its grant and the catalogue allow."""

    op: Question
    grid: tuple[str, ...] = ()
    comparison: Comparison = Comparison.GE
    threshold: str | None = None  # one of the grid
    text: str | None = field(default=None, repr=False)  # normalised; for `equals`
    token: str | None = None  # stands for the text in what is kept

    @property
    def cells(self) -> int:
        """How many cells the grid has."""
        return len(self.grid) + 1

    @property
    def cut(self) -> int:
        """Which cell begins at the threshold."""
        return self.grid.index(self.threshold or "") + 1


@dataclass(frozen=True, slots=True)
class Told:
    """An answer: a word, and with `value` a band or value."""

    word: Answered
    text: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Known:
    """What was told so far: the cells that are left, whether there is a record, texts tried."""

    low: int = 0
    high: int | None = None  # None: the last cell
    exists: bool | None = None
    texts: Mapping[str, bool] = field(default_factory=dict)
    is_told: bool = False  # the whole value was

    def to_plain(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Known:
        """As it was kept."""
        return cls(**plain)

    def implied(self, asked: Asked) -> Told | None:
        """The answer that follows from earlier ones, or None."""
        if self.exists is False:
            none = Answered.NO_MATCH if asked.op is Question.EXISTS else Answered.NO_RECORD
            return Told(none)
        if asked.op is Question.EXISTS:
            return Told(Answered.MATCH) if self.exists else None
        if asked.op is Question.EQUALS:
            if (tried := self.texts.get(asked.token or "")) is not None:
                return _word(tried)
            return Told(Answered.NO_MATCH) if True in self.texts.values() else None
        if asked.op in (Question.COMPARE, Question.COUNT):
            high = asked.cells - 1 if self.high is None else self.high
            if self.low >= asked.cut:
                return _word(asked.comparison is Comparison.GE)
            if high < asked.cut:
                return _word(asked.comparison is Comparison.LT)
            return None
        if asked.op is Question.BAND and self.high == self.low:
            return Told(Answered.VALUE, band(asked.grid, self.low))
        return None

    def cost(self, asked: Asked) -> int:
        """What an answer may tell at most, in thousandths of a bit; 0 if it is implied."""
        if self.implied(asked) is not None or (asked.op is Question.VALUE and self.is_told):
            return 0
        if asked.op is Question.VALUE:
            return VALUE_BITS * BIT
        if asked.op is Question.BAND:
            high = asked.cells - 1 if self.high is None else self.high
            return math.ceil(BIT * math.log2(max(2, high - self.low + 1)))
        return BIT

    def with_told(self, asked: Asked, told: Told) -> Known:
        """What is known after this answer too."""
        if told.word is Answered.REFUSED:
            return self
        if told.word is Answered.NO_RECORD:
            return replace(self, exists=False)
        if asked.op is Question.EXISTS:
            return replace(self, exists=told.word is Answered.MATCH)
        there = replace(self, exists=True)
        is_match = told.word is Answered.MATCH
        if asked.op is Question.EQUALS:
            return replace(there, texts={**self.texts, asked.token or "": is_match})
        if asked.op in (Question.COMPARE, Question.COUNT):
            high = asked.cells - 1 if self.high is None else self.high
            if is_match == (asked.comparison is Comparison.GE):
                return replace(there, low=max(self.low, asked.cut), high=high)
            return replace(there, high=min(high, asked.cut - 1))
        if asked.op is Question.BAND:
            cell = _cell_of_band(asked.grid, told.text or "")
            return replace(there, low=cell, high=cell)
        return replace(there, is_told=True)


def basis(snapshot: str, column: str, said: Enquiry) -> str:
    """Names what earlier answers hold for: these data, this column of them, these cells, this rule.

    An owner may publish another grid over the same data; the third cell is then another one, and
    what was told of the old one implies nothing.
    """
    return hashlib.sha256(
        rfc8785.dumps([snapshot, column, list(said.grid), said.normaliser])
    ).hexdigest()


def evaluate(asked: Asked, value: float | str | None, rule: str) -> Told:
    """The answer to a question about this value; None is no record. `rule`: of equality."""
    if asked.op is Question.EXISTS:
        return _word(value is not None)
    if value is None:
        return Told(Answered.NO_RECORD)
    if asked.op is Question.EQUALS:
        try:
            return _word(normalise(rule, str(value)) == asked.text)
        except ValueError:  # the record holds no text that could be equal
            return Told(Answered.NO_MATCH)
    if asked.op is Question.VALUE:
        return Told(Answered.VALUE, plain_text(value))
    cell = cell_of(asked.grid, _number(value))
    if asked.op is Question.BAND:
        return Told(Answered.VALUE, band(asked.grid, cell))
    return _word((cell >= asked.cut) == (asked.comparison is Comparison.GE))


def cell_of(grid: Sequence[str], value: Decimal) -> int:
    """The cell that a number lies in: how many cut points are not above it."""
    return sum(Decimal(cut) <= value for cut in grid)


def band(grid: Sequence[str], cell: int) -> str:
    """A cell in words: `[100000, 500000)`, open ends as `-inf` and `inf`."""
    low = grid[cell - 1] if cell else "-inf"
    return f"[{low}, {grid[cell] if cell < len(grid) else 'inf'})"


def plain_text(value: float | str) -> str:
    """A value as an answer holds it."""
    return value if isinstance(value, str) else format(_number(value), "f")


def is_bisection(thresholds: Sequence[int]) -> bool:
    """Whether the last three cut points asked for close in on something, each step shorter."""
    if len(thresholds) < 3:
        return False
    a, b, c = thresholds[-3:]
    return len({a, b, c}) == 3 and abs(c - b) < abs(b - a)


def _cell_of_band(grid: Sequence[str], text: str) -> int:
    return [band(grid, cell) for cell in range(len(grid) + 1)].index(text)


def _number(value: float | str) -> Decimal:
    number = Decimal(repr(float(value)))
    return number.quantize(Decimal(1)) if number == number.to_integral_value() else number


def _word(is_match: bool) -> Told:
    return Told(Answered.MATCH if is_match else Answered.NO_MATCH)
