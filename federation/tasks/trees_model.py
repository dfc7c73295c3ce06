"""Boosted trees as a model of several owners: one part each, scores and reasons.

The bank's part is the trees: which threshold of whom at which node, leaves, expected values. A
department's part is its list of thresholds, in the order in which they were opened. A path that
mixes owners has no partial sums, so what crosses at a decision is the applicant's bit for each of
the department's thresholds (PROTOCOLS.md, "Scoring").

    margin   log odds of being *bad*, in steps of 2^-12: base + the leaf of every tree
    points   base_score + pdo / ln 2 * (-margin - ln base_odds), rounded: more are better

Reasons   Along a decision's path every split moves the expected margin from that of the node to
          that of the child it takes; the move is credited to the split's feature. Expected values
          are the leaves' means over the customers that the tree was grown on, which the bank knows.
          These path contributions (Saabas 2014) add up to the margin exactly. They are not Shapley
          values: of features that say the same, the one that is split first is credited more
          (Lundberg et al. 2020), and nothing of a department is needed beyond the opened bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.ledger import Disclosure
from federation.objects import TreesParameters
from federation.tables import Column
from federation.tasks.binning import FeatureBins
from federation.tasks.fit import SCORE_BITS
from federation.tasks.trees_fit import Step, Tree
from federation.tasks.trees_grow import Bools, Feature, Integers, Split
from protocols import labels
from protocols.errors import ProtocolError
from protocols.streams import digest, encode

ONE = 1 << SCORE_BITS


def feature_of(owner: str, definition: FeatureBins, parameters: TreesParameters) -> Feature:
    """What growth has to know of a feature."""
    name = definition.name
    direction = int(name in parameters.increasing) - int(name in parameters.decreasing)
    missing = definition.missing if definition.is_missing_apart and definition.numeric else None
    ordered = definition.numeric
    return Feature(owner, name, definition.bins, ordered, missing, direction if ordered else 0)


def describe(definition: FeatureBins, feature: Feature, split: Split) -> str:
    """What goes left at a split, in the report's words."""
    names = definition.labels()
    if not feature.ordered:
        return f"is {names[split.cut]}"
    if feature.missing is not None and split.cut == feature.values - 1:
        return "is known"
    edge = f"< {definition.edges[split.cut]:.12g}"
    return f"{edge} or missing" if split.missing_left else edge


@dataclass(frozen=True, slots=True, eq=False)
class TreesModel:
    """The bank's part, with which of whose thresholds it uses."""

    bank: str
    features: tuple[Feature, ...]  # of all owners, the bank's first
    definitions: tuple[FeatureBins, ...] = field(repr=False)
    base: int  # margin without any tree, in steps
    trees: tuple[Tree, ...]
    thresholds: Mapping[str, tuple[Split, ...]]  # by department, in the order of their opening
    base_score: int
    base_odds: int
    pdo: int

    # scores

    def margins(self, goes_left: Callable[[Split], Bools], rows: int) -> Integers:
        """(rows,) in steps; goes_left: (rows,) for each split that the trees use."""
        total = np.full(rows, self.base, np.int64)
        for tree in self.trees:
            total += tree.values[tree.leaf_of(goes_left, rows)]
        return total

    def score(self, columns: Mapping[tuple[str, str], Column], rows: int) -> Integers:
        """Points of every row, given all used columns by (owner, name): with all data at hand."""
        return self.points(self.margins(self.by_columns(columns), rows))

    def by_columns(self, columns: Mapping[tuple[str, str], Column]) -> Callable[[Split], Bools]:
        """Who goes left, from columns by (owner, name)."""
        codes: dict[int, NDArray[np.uint8]] = {}

        def goes_left(split: Split) -> Bools:
            at = split.feature
            if at not in codes:
                feature = self.features[at]
                codes[at] = self.definitions[at].assign(columns[feature.owner, feature.name])
            left: Bools = split.left_bins(self.features[at])[codes[at]]
            return left

        return goes_left

    def by_bits(
        self, own: Mapping[tuple[str, str], Column], bits: Mapping[str, Bools]
    ) -> Callable[[Split], Bools]:
        """Who goes left, from the bank's columns and each department's (rows, thresholds) bits."""
        mine = self.by_columns(own)
        for org, splits in self.thresholds.items():
            if bits[org].ndim != 2 or bits[org].shape[1] != len(splits):
                raise ProtocolError(f"{org} gave bits of other thresholds than the model's")
        place = {
            split: (org, i)
            for org, splits in self.thresholds.items()
            for i, split in enumerate(splits)
        }

        def goes_left(split: Split) -> Bools:
            if self.features[split.feature].owner == self.bank:
                return mine(split)
            org, at = place[split]
            column: Bools = bits[org][:, at]
            return column

        return goes_left

    def points(self, margins: Integers) -> Integers:
        """Whole points of margins in steps."""
        factor = self.pdo / math.log(2)
        offset = self.base_score - factor * math.log(self.base_odds)
        return np.rint(offset - factor * margins / ONE).astype(np.int64)

    def log_odds(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of being good, for a score in points."""
        factor = self.pdo / math.log(2)
        return np.asarray((points - self.base_score) / factor + math.log(self.base_odds))

    # reasons

    @property
    def expected(self) -> int:
        """The margin that contributions start from, in steps."""
        return self.base + sum(int(tree.expected[0]) for tree in self.trees)

    def contributions(self, goes_left: Callable[[Split], Bools], rows: int) -> Integers:
        """(rows, features) in steps of the margin; with `expected` they add up to it exactly."""
        total = np.zeros((rows, len(self.features)), np.int64)
        for tree in self.trees:
            at = np.zeros(rows, np.int64)
            for number, split in enumerate(tree.splits):
                if split is None:
                    continue
                here = at == number
                left = goes_left(split)
                for child, side in ((tree.left[number], left), (tree.right[number], ~left)):
                    move = int(tree.expected[child] - tree.expected[number])
                    total[here & side, split.feature] += move
                    at[here & side] = child
        return total

    def reason_codes(self, contributions: Integers, count: int) -> list[tuple[str, ...]]:
        """For every row the features that raise its risk most, the worst first."""
        order = np.argsort(-contributions, axis=1, kind="stable")[:, :count]
        return [
            tuple(self.features[j].name for j in row if raised[j] > 0)
            for row, raised in zip(order, contributions, strict=True)
        ]

    # for reports

    def importance(self) -> NDArray[np.float64]:
        """(features,) total gain of each feature's splits."""
        total = np.zeros(len(self.features))
        for tree in self.trees:
            for split, gain in zip(tree.splits, tree.gains, strict=True):
                if split is not None:
                    total[split.feature] += gain
        return total

    def importance_by_owner(self) -> dict[str, float]:
        """Total gain by owner."""
        found: dict[str, float] = {}
        for feature, gain in zip(self.features, self.importance(), strict=True):
            found[feature.owner] = found.get(feature.owner, 0.0) + float(gain)
        return found

    def digest(self) -> bytes:
        """Over everything that scores."""
        parts: list[bytes | str | int] = [labels.MODEL_DIGEST, self.bank, self.base]
        for feature, definition in zip(self.features, self.definitions, strict=True):
            parts += [feature.owner, definition_digest(definition)]
        for org, splits in self.thresholds.items():
            parts.append(part_digest(org, self.definitions_of(org), self.own_numbers(org, splits)))
        for tree in self.trees:
            splits_text = encode(*(part for split in tree.splits for part in _split(split)))
            shape = (tree.left.astype("<i4"), tree.right.astype("<i4"), tree.values.astype("<i8"))
            parts += [splits_text, *(array.tobytes() for array in shape)]
        return digest(*parts)

    def definitions_of(self, org: str) -> tuple[FeatureBins, ...]:
        """Bins of one owner's features."""
        pairs = zip(self.features, self.definitions, strict=True)
        return tuple(definition for feature, definition in pairs if feature.owner == org)

    def own_numbers(self, org: str, splits: Sequence[Split]) -> tuple[Split, ...]:
        """Splits of one owner with features counted among its own."""
        first = [feature.owner for feature in self.features].index(org)
        return tuple(Split(s.feature - first, s.cut, s.missing_left) for s in splits)


def _split(split: Split | None) -> tuple[int, int, int]:
    return (-1, 0, 0) if split is None else (split.feature, split.cut, int(split.missing_left))


def definition_digest(definition: FeatureBins) -> bytes:
    """Of a feature's bins."""
    return digest(
        labels.MODEL_DIGEST,
        definition.name,
        definition.edges.astype("<f8").tobytes(),
        *definition.categories,
        definition.other,
        definition.missing,
        definition.bins,
    )


def part_digest(org: str, definitions: Sequence[FeatureBins], splits: Sequence[Split]) -> bytes:
    """Of a department's part, the same at the bank and at its owner."""
    lines = [part for split in splits for part in _split(split)]
    return digest(labels.MODEL_DIGEST, org, *map(definition_digest, definitions), *lines)


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class TreesResult:
    """What the bank has at the end."""

    model: TreesModel
    margins: Integers = field(repr=False)  # (customers,) log odds of being bad, in steps of 2^-12
    scores: Integers = field(repr=False)  # (customers,) points
    bits: Mapping[str, Bools] = field(repr=False)  # (customers, thresholds) by department
    labels: NDArray[np.uint8] = field(repr=False)  # (customers,) 1 = bad
    test: Bools = field(repr=False)  # (customers,) held out
    validation: Bools = field(repr=False)  # (customers,) decided when to stop
    history: tuple[Step, ...]
    alone: TreesModel  # the same on the bank's own features
    alone_scores: Integers = field(repr=False)  # (customers,)
    thresholds: Mapping[str, int]  # opened, by department; (bits a customer)
    notes: tuple[str, ...]
    tokens: int  # queries that each department answered, padding included
    commitments: tuple[bytes, ...]
    seconds: Mapping[str, float]  # by stage
    sent_bytes: Mapping[str, int]  # by stage, all peers
    received_bytes: Mapping[str, int]
    disclosures: tuple[Disclosure, ...]
    coins: bytes = field(default=b"", repr=False)  # public ones, that all its draws are bound to

    def digest(self) -> bytes:
        """Of the model, for the run record."""
        return self.model.digest()


@dataclass(frozen=True, slots=True, eq=False)
class TreesPart:
    """What a department has at the end: its own thresholds."""

    org: str
    definitions: tuple[FeatureBins, ...] = field(repr=False)
    thresholds: tuple[Split, ...]  # features count among its own; in the order of their opening
    tokens: int  # queries that it answered
    commitments: tuple[bytes, ...]
    seconds: Mapping[str, float]
    disclosures: tuple[Disclosure, ...]

    def bits(self, columns: Sequence[Column]) -> Bools:
        """(rows, thresholds): what an authorised decision needs of this department."""
        codes = [d.assign(column) for d, column in zip(self.definitions, columns, strict=True)]
        found = np.zeros((len(codes[0]), len(self.thresholds)), bool)
        for i, split in enumerate(self.thresholds):
            feature = self.feature(split.feature)
            found[:, i] = split.left_bins(feature)[codes[split.feature]]
        return found

    def feature(self, at: int) -> Feature:
        """One of its features as growth sees it, without directions."""
        return feature_of(self.org, self.definitions[at], TreesParameters())

    def describe(self) -> tuple[tuple[str, str], ...]:
        """Each threshold in words: the feature, and what goes left."""
        return tuple(
            (
                self.definitions[split.feature].name,
                describe(self.definitions[split.feature], self.feature(split.feature), split),
            )
            for split in self.thresholds
        )

    def digest(self) -> bytes:
        """Of its part, for the run record; the bank computes the same."""
        return part_digest(self.org, self.definitions, self.thresholds)
