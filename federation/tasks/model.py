"""A scorecard: points for every bin of every feature, and what they were made from.

    log odds of a good customer = intercept + sum of coefficient * WOE
    points = base_score + pdo / ln 2 * (log odds - ln base_odds), rounded to whole points a bin

More points are better. The part that belongs to no feature is `base_points`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from federation.errors import UsageError
from federation.ledger import Disclosure
from federation.objects import ScorecardParameters
from federation.tables import BankData, Column, DepartmentData
from federation.tasks.binning import WOE_STEP, FeatureBins, Groups
from federation.tasks.fit import fit_logistic
from protocols import labels
from protocols.streams import digest


@dataclass(frozen=True, slots=True)
class Bin:
    """One group of pre-bins, over the training customers."""

    label: str
    customers: int
    bads: int
    woe: float
    points: int

    @property
    def goods(self) -> int:
        """Customers that are not bad."""
        return self.customers - self.bads


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """A feature of the model; one that takes no part has coefficient 0 and says why."""

    owner: str
    name: str
    iv: float
    coefficient: float
    bins: tuple[Bin, ...]
    note: str  # why it takes no part, or empty
    definition: FeatureBins = field(repr=False)
    groups: Groups = field(repr=False)

    @property
    def is_used(self) -> bool:
        """Whether the feature moves the score."""
        return self.coefficient != 0

    @property
    def points(self) -> NDArray[np.int64]:
        """Of every group."""
        return np.array([item.points for item in self.bins], np.int64)

    def points_of_bins(self) -> NDArray[np.int64]:
        """Of every pre-bin: what the owner needs to score."""
        return self.points[self.groups.of_bin]

    def points_of(self, column: Column) -> NDArray[np.int64]:
        """Of every row of the feature's column."""
        return self.points_of_bins()[self.definition.assign(column)]


@dataclass(frozen=True, slots=True, eq=False)
class ScorecardModel:
    """A finished scorecard."""

    features: tuple[Feature, ...]
    intercept: float  # log odds of a good customer with WOE nought everywhere
    base_points: int
    base_score: int
    base_odds: int
    pdo: int

    def score(self, columns: Mapping[tuple[str, str], Column], rows: int) -> NDArray[np.int64]:
        """Points of every row, given all used columns by (owner, name)."""
        total = np.full(rows, self.base_points, np.int64)
        for feature in self.features:
            if feature.is_used:
                total += feature.points_of(columns[feature.owner, feature.name])
        return total

    def of(self, owner: str) -> tuple[Feature, ...]:
        """One owner's features."""
        return tuple(feature for feature in self.features if feature.owner == owner)

    def log_odds(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of being good, for a score in points."""
        factor = self.pdo / math.log(2)
        return np.asarray((points - self.base_score) / factor + math.log(self.base_odds))

    def digest(self) -> bytes:
        """Over everything that scores: definitions, groups and points."""
        parts: list[bytes | str | int] = [labels.MODEL_DIGEST, self.base_points]
        for feature in self.features:
            points = feature.points_of_bins()
            parts.append(part_digest(feature.owner, feature.definition, points))
        return digest(*parts)


def part_digest(owner: str, definition: FeatureBins, points: NDArray[np.int64]) -> bytes:
    """Of one feature's part of a model, the same at the bank and at its owner."""
    return digest(
        labels.MODEL_DIGEST,
        owner,
        definition.name,
        definition.edges.astype("<f8").tobytes(),
        *definition.categories,
        definition.other,
        definition.missing,
        definition.bins,
        points.astype("<i8").tobytes(),
    )


@dataclass(frozen=True, slots=True)
class Draft:
    """A feature on its way into a model."""

    owner: str
    definition: FeatureBins = field(repr=False)
    groups: Groups = field(repr=False)
    note: str  # empty if it takes part

    @property
    def is_kept(self) -> bool:
        """Whether the fit uses it."""
        return not self.note


def draft(owner: str, definition: FeatureBins, groups: Groups, min_iv: float) -> Draft:
    """Decide whether a feature takes part in the fit."""
    note = ""
    if len(groups.woe) < 2 or not groups.woe.any():
        note = "all customers look alike in it"
    elif groups.iv < min_iv:
        note = f"its information value is below {min_iv:g}"
    return Draft(owner, definition, groups, note)


def build(
    drafts: Sequence[Draft],
    intercept: float,
    coefficients: Sequence[float],
    parameters: ScorecardParameters,
) -> ScorecardModel:
    """The scorecard of fitted coefficients, one for each kept draft in order."""
    factor = parameters.pdo / math.log(2)
    offset = parameters.base_score - factor * math.log(parameters.base_odds)
    left = iter(coefficients)
    features = []
    for item in drafts:
        coefficient = float(next(left)) if item.is_kept else 0.0
        groups = item.groups
        points = np.rint(factor * coefficient * groups.woe * WOE_STEP).astype(np.int64)
        names = group_labels(item.definition, groups)
        rows = zip(names, groups.customers, groups.bads, groups.woe, points, strict=True)
        bins = tuple(
            Bin(name, int(n), int(b), round(int(w) * WOE_STEP, 2), int(p))
            for name, n, b, w, p in rows
        )
        features.append(
            Feature(
                item.owner,
                item.definition.name,
                groups.iv,
                coefficient,
                bins,
                item.note,
                item.definition,
                groups,
            )
        )
    return ScorecardModel(
        tuple(features),
        intercept,
        round(offset + factor * intercept),
        parameters.base_score,
        parameters.base_odds,
        parameters.pdo,
    )


def group_labels(definition: FeatureBins, groups: Groups) -> tuple[str, ...]:
    """What each group is called in a report."""
    names = definition.labels()
    out = []
    for number in range(len(groups.woe)):
        bins = np.flatnonzero(groups.of_bin == number)
        own = [
            int(i) for i in bins if not (definition.is_missing_apart and i == definition.missing)
        ]
        if definition.numeric and len(own) > 1:
            low = "" if own[0] == 0 else f"{definition.edges[own[0] - 1]:.12g}"
            high = "" if own[-1] == len(definition.edges) else f"{definition.edges[own[-1]]:.12g}"
            text = f"{low} to < {high}" if low and high else f"< {high}" if high else f">= {low}"
            text = text if low or high else "any value"
            rest = [names[i] for i in bins if int(i) not in own]
            shared = not definition.is_missing_apart and definition.missing in own
            out.append(", ".join([text, *rest, *(["missing"] if shared else [])]))
        else:
            out.append(", ".join(names[i] for i in bins))
    return tuple(out)


# --- reasons --------------------------------------------------------------------------------------


def reason_codes(
    model: ScorecardModel, points: Mapping[str, NDArray[np.int64]], count: int
) -> list[tuple[str, ...]]:
    """For every row the features that cost it most, the costliest first.

    points: of each row, by feature name. A cost is the distance to what the training customers got
    on average, so that a feature which is bad for nearly everybody is no one's reason.
    """
    used = [feature for feature in model.features if feature.is_used and feature.name in points]
    if not used or count == 0:
        return [() for _ in range(len(next(iter(points.values()), np.array([]))))]
    cost = np.stack([_average_points(feature) - points[feature.name] for feature in used], axis=1)
    order = np.argsort(-cost, axis=1, kind="stable")[:, :count]
    return [
        tuple(used[j].name for j in row if costs[j] > 0)
        for row, costs in zip(order, cost, strict=True)
    ]


def _average_points(feature: Feature) -> float:
    customers = feature.groups.customers
    return float((customers * feature.points).sum() / max(int(customers.sum()), 1))


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """One opening of training scores."""

    gain: float  # in log loss, summed over the training customers
    invalid: int  # customers whose opened value was outside what departments can have sealed


@dataclass(frozen=True, slots=True, eq=False)
class ScorecardResult:
    """What the bank has at the end."""

    model: ScorecardModel
    scores: NDArray[np.int64] | None = field(repr=False)  # (customers,) points; None: not opened
    labels: NDArray[np.uint8] = field(repr=False)  # (customers,) 1 = bad
    test: NDArray[np.bool_] = field(repr=False)  # (customers,) held out
    alone: ScorecardModel  # the same functions on the bank's own features
    alone_scores: NDArray[np.int64] = field(repr=False)  # (customers,)
    openings: tuple[Opening, ...]
    notes: tuple[str, ...]
    tokens: int  # queries that each department answered, those with v = 0 among them
    commitments: tuple[bytes, ...]
    seconds: Mapping[str, float]  # by stage
    sent_bytes: Mapping[str, int]  # by stage, all peers
    received_bytes: Mapping[str, int]
    disclosures: tuple[Disclosure, ...]

    def digest(self) -> bytes:
        """Of the model, for the run record."""
        return self.model.digest()


@dataclass(frozen=True, slots=True, eq=False)
class PartFeature:
    """A department's feature in the finished model."""

    definition: FeatureBins
    woe: NDArray[np.int64] = field(repr=False)  # of every pre-bin, in steps
    points: NDArray[np.int64] = field(repr=False)  # of every pre-bin
    is_kept: bool


@dataclass(frozen=True, slots=True, eq=False)
class DepartmentPart:
    """What a department has at the end: its own part of the scorecard."""

    org: str
    features: tuple[PartFeature, ...]
    tokens: int  # queries that it answered, other departments' included
    openings: int
    commitments: tuple[bytes, ...]
    seconds: Mapping[str, float]
    disclosures: tuple[Disclosure, ...]

    def digest(self) -> bytes:
        """Of its part, for the run record; the bank computes the same."""
        parts = (part_digest(self.org, item.definition, item.points) for item in self.features)
        return digest(labels.MODEL_DIGEST, *parts)


# --- the pooled comparison ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class PooledFit:
    """What one would get with all columns in one place."""

    model: ScorecardModel
    scores: NDArray[np.int64] = field(repr=False)  # (customers,) points
    log_odds: NDArray[np.float64] = field(repr=False)  # (customers,) before rounding to points


class Fitted(Protocol):
    """What the comparison needs of a finished scorecard; a `ScorecardResult` is one."""

    @property
    def model(self) -> ScorecardModel:
        """Whose bins and WOE are taken over."""

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(customers,) 1 = bad."""

    @property
    def test(self) -> NDArray[np.bool_]:
        """(customers,) held out."""


def fit_pooled(
    result: Fitted,
    bank_org: str,
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    parameters: ScorecardParameters,
) -> PooledFit:
    """Plaintext: logistic regression on the same bins, WOE and penalty, with all columns at hand.

    For the laboratory and for tests, which hold all parties' data; no party of a job can call it.
    """
    columns = pooled_columns(bank_org, bank, departments)
    drafts = [Draft(f.owner, f.definition, f.groups, f.note) for f in result.model.features]
    kept = [item for item in drafts if item.is_kept]
    if not kept:
        raise UsageError("no feature takes part in the model")
    woe = np.column_stack(
        [
            item.groups.woe_of_bins()[
                item.definition.assign(columns[item.owner, item.definition.name])
            ]
            for item in kept
        ]
    ).astype(np.float64)
    train = ~result.test
    fit = fit_logistic(
        woe[train],
        np.full(len(kept), WOE_STEP),
        result.labels[train] == 0,
        float(parameters.penalty) * np.eye(len(kept)),
    )
    model = build(drafts, fit.intercept, fit.coefficients.tolist(), parameters)
    log_odds = fit.intercept + woe @ (fit.coefficients * WOE_STEP)
    return PooledFit(model, model.score(columns, bank.customers), log_odds)


def pooled_columns(
    bank_org: str, bank: BankData, departments: Mapping[str, DepartmentData]
) -> dict[tuple[str, str], Column]:
    """All columns of the bank's customers, by (owner, name)."""
    columns = {(bank_org, column.name): column for column in bank.columns}
    for org, data in departments.items():
        columns |= {(org, column.name): column.take(bank.positions) for column in data.columns}
    return columns
