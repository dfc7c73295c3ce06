"""What each side of a scorecard keeps of a finished step (`steps.py`), and how steps are called.

The result is all that later steps need of it; what follows from a result by computation alone
(WOE, fits, a department's bins) is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.tasks.messages import Definitions, Shape
from federation.tasks.plan import Plan

ROW_KEYS, BINNING, COUNTS, CURVATURE, POINTS = (
    "row keys",
    "binning",
    "counts",
    "curvature",
    "points",
)


def opening_name(number: int) -> str:
    """The step of one opening, its residual query included."""
    return f"opening {number}"


def schedule(plan: Plan) -> tuple[str, ...]:
    """All steps, the same at all parties."""
    openings = (opening_name(number) for number in range(plan.openings))
    return (ROW_KEYS, BINNING, COUNTS, CURVATURE, *openings, POINTS)


def queries(plan: Plan, name: str) -> int:
    """Of the bank on a department's bins, in one step."""
    if name == COUNTS:
        return 2
    if name == CURVATURE:
        return 2 + plan.bank_fields
    return 1 if name.startswith("opening") and name != opening_name(0) else 0


# --- the bank's -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class CustomerKeys:
    """Row keys of the bank's customers, by department in the manifest's order."""

    cover: bytes
    keys: NDArray[np.uint8] = field(repr=False)  # (departments, customers, 16), or (0, 0, 16)


@dataclass(frozen=True, slots=True, eq=False)
class AllDefinitions:
    """Every department's pre-bins, in the manifest's order."""

    departments: tuple[Definitions, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Opened sums: a row a query, the columns of all departments one after the other."""

    values: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Curvature:
    """Everything that a first step for all coefficients needs."""

    opened: Sums
    within: NDArray[np.int64] = field(repr=False)  # (pairs, 2) places among the kept features
    within_values: NDArray[np.float64] = field(repr=False)
    population: NDArray[np.int64] = field(repr=False)
    population_values: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class OneOpening:
    """A direction, and the rounded score of each customer along it."""

    is_open: bool
    coefficients: NDArray[np.int64] = field(repr=False)
    shift: int
    values: NDArray[np.int32] = field(repr=False)  # (customers,), none if nothing was opened
    invalid: int  # rows that no department can have sealed so


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The departments' points of each customer; none without an evaluation."""

    values: NDArray[np.int32] = field(repr=False)


# --- a department's -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class CoverKeys:
    """A row key for each row of the cover; none where nothing is opened."""

    cover: bytes
    keys: NDArray[np.uint8] = field(repr=False)  # (rows, 16)


@dataclass(frozen=True, slots=True, eq=False)
class AllCoverKeys:
    """Of every bank of the job, in the manifest's order."""

    banks: tuple[CoverKeys, ...]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Of the departments that this one asks, in the plan's order."""

    asked: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A step of which a department keeps nothing but that it is done."""

    sealed: bool
