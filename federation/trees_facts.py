"""What a report says of boosted trees: who mattered, how they learned, how they look, what is open.

Figures of many customers only. Of single decisions it shows *typical* ones: means over at least
`min_cohort` held-out customers of like risk, in whose place nobody can be put.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation import evaluation
from federation.objects import TreesParameters
from federation.tables import BankData
from federation.tasks.fit import SCORE_BITS
from federation.tasks.trees_fit import Tree
from federation.tasks.trees_grow import Integers
from federation.tasks.trees_model import TreesModel, TreesResult, describe

ONE = 1 << SCORE_BITS
TYPICAL = (("High risk", 0.95), ("Middle", 0.50), ("Low risk", 0.05))  # quantiles of risk
MANY = 50  # customers whose mean is shown, where there are enough
SHOWN_PARTS = 8  # features of a typical decision; the rest in one sum


@dataclass(frozen=True, slots=True)
class Importance:
    """A feature and what its splits did."""

    name: str
    owner: str
    gain: float  # share of all gain
    splits: int
    thresholds: int  # distinct ones, over all trees


@dataclass(frozen=True, slots=True)
class Learned:
    """After so many trees: log loss a customer, and AUC on the held-out ones."""

    trees: int
    joint: bool  # whether the last of them could ask departments
    train: float
    validation: float | None
    test: float | None
    auc: float | None
    auc_alone: float | None  # of the bank's own model with as many trees


@dataclass(frozen=True, slots=True)
class Shape:
    """One tree."""

    number: int
    depth: int
    leaves: int
    smallest: int  # customers in its smallest leaf
    gain: float  # share of all gain
    splits: Mapping[str, int]  # by owner


@dataclass(frozen=True, slots=True)
class LeavesAtDepth:
    """Leaves of all trees at one depth."""

    depth: int
    leaves: int
    customers: int  # on average in one of them
    smallest: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """One that the trees use; of a department it is open to the bank for every customer."""

    owner: str
    feature: str
    goes_left: str
    splits: int
    gain: float  # share of all gain


@dataclass(frozen=True, slots=True)
class Part:
    """What one feature did to a score, in points."""

    name: str
    owner: str
    points: float


@dataclass(frozen=True, slots=True)
class Typical:
    """The mean decision over customers of like risk."""

    name: str
    customers: int
    start: float  # points that everybody starts from
    points: float
    parts: tuple[Part, ...]  # largest first
    others: float  # all other features together
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TreesFacts:
    """All of it."""

    growth: str  # in words
    cap: int  # distinct thresholds of a department's feature, at most
    kept: int  # trees in the model
    grown: int  # before early stopping took some back
    importance: tuple[Importance, ...]  # most gain first
    owners: Mapping[str, float]  # shares of gain
    learning: tuple[Learned, ...]
    shapes: tuple[Shape, ...]
    leaves: tuple[LeavesAtDepth, ...]
    thresholds: tuple[Threshold, ...]
    bits_a_customer: Mapping[str, int]  # opened, by department
    typical: tuple[Typical, ...]


def facts_of(result: TreesResult, data: BankData, parameters: TreesParameters) -> TreesFacts:
    """The bank's, from its own columns and the bits that were opened to it."""
    model = result.model
    return TreesFacts(
        growth=growth_in_words(parameters),
        cap=parameters.thresholds,
        kept=len(model.trees),
        grown=len(result.history),
        importance=_importance(model),
        owners=_shares(model.importance_by_owner()),
        learning=_learning(result, data),
        shapes=tuple(_shape(model, number) for number in range(len(model.trees))),
        leaves=_leaves(model.trees),
        thresholds=_thresholds(model),
        bits_a_customer=dict(result.thresholds),
        typical=_typical(result, data, parameters),
    )


def growth_in_words(parameters: TreesParameters) -> str:
    """How trees were grown, for a person."""
    size = (
        f"leaf by leaf to {parameters.max_leaves} leaves"
        if parameters.growth == "leaf"
        else f"level by level to depth {parameters.max_depth}"
    )
    asked = "gradients and hessians" if parameters.hessians else "gradients alone"
    joint = parameters.joint_trees or parameters.trees
    later = f" for the first {joint} trees" if joint < parameters.trees else ""
    return (
        f"{size}, learning rate {parameters.learning_rate}, at least {parameters.min_cohort} "
        f"customers a leaf; departments are asked for {asked}{later}"
    )


def _shares(gains: Mapping[str, float]) -> dict[str, float]:
    total = max(sum(gains.values()), 1e-12)
    return {name: gain / total for name, gain in gains.items()}


def _importance(model: TreesModel) -> tuple[Importance, ...]:
    gains = model.importance()
    total = max(float(gains.sum()), 1e-12)
    splits = [split for tree in model.trees for split in tree.splits if split is not None]
    uses = np.bincount([s.feature for s in splits], minlength=len(model.features))
    distinct = np.bincount([s.feature for s in set(splits)], minlength=len(model.features))
    found = [
        Importance(feature.name, feature.owner, float(gain) / total, int(used), int(cuts))
        for feature, gain, used, cuts in zip(model.features, gains, uses, distinct, strict=True)
    ]
    return tuple(sorted(found, key=lambda item: -item.gain))


def _depths(tree: Tree) -> NDArray[np.int64]:
    """Of every node; children come after their parents."""
    depth = np.zeros(len(tree.splits), np.int64)
    for at, split in enumerate(tree.splits):
        if split is not None:
            depth[[tree.left[at], tree.right[at]]] = depth[at] + 1
    return depth


def _is_leaf(tree: Tree) -> NDArray[np.bool_]:
    return np.array([split is None for split in tree.splits])


def _shape(model: TreesModel, number: int) -> Shape:
    tree = model.trees[number]
    owners = [model.features[split.feature].owner for split in tree.splits if split is not None]
    total = max(float(model.importance().sum()), 1e-12)
    gain = sum(
        float(g) for split, g in zip(tree.splits, tree.gains, strict=True) if split is not None
    )
    return Shape(
        number=number + 1,
        depth=tree.depth,
        leaves=tree.leaves,
        smallest=int(tree.customers[_is_leaf(tree)].min()),
        gain=gain / total,
        splits={org: owners.count(org) for org in dict.fromkeys(f.owner for f in model.features)},
    )


def _leaves(trees: tuple[Tree, ...]) -> tuple[LeavesAtDepth, ...]:
    if not trees:
        return ()
    depth = np.concatenate([_depths(tree)[_is_leaf(tree)] for tree in trees])
    customers = np.concatenate([tree.customers[_is_leaf(tree)] for tree in trees])
    return tuple(
        LeavesAtDepth(
            int(at),
            int((depth == at).sum()),
            round(float(customers[depth == at].mean())),
            int(customers[depth == at].min()),
        )
        for at in np.unique(depth)
    )


def _thresholds(model: TreesModel) -> tuple[Threshold, ...]:
    total = max(float(model.importance().sum()), 1e-12)
    uses: dict[tuple[int, int, bool], tuple[int, float]] = {}
    for tree in model.trees:
        for split, gain in zip(tree.splits, tree.gains, strict=True):
            if split is not None:
                key = (split.feature, split.cut, split.missing_left)
                count, sum_ = uses.get(key, (0, 0.0))
                uses[key] = count + 1, sum_ + float(gain)
    found = []
    for org, splits in model.thresholds.items():
        for split in splits:
            feature, definition = model.features[split.feature], model.definitions[split.feature]
            count, gain = uses.get((split.feature, split.cut, split.missing_left), (0, 0.0))
            words = describe(definition, feature, split)
            found.append(Threshold(org, feature.name, words, count, gain / total))
    return tuple(sorted(found, key=lambda item: (item.owner, item.feature, -item.gain)))


def _learning(result: TreesResult, data: BankData) -> tuple[Learned, ...]:
    """Before the first tree, and after each."""
    own = {(result.model.bank, column.name): column for column in data.columns}
    rows = data.customers
    sides = (result.model.by_bits(own, result.bits), result.alone.by_columns(own))
    margins = [np.full(rows, model.base, np.int64) for model in (result.model, result.alone)]
    test = result.test
    parts = (~test & ~result.validation, result.validation, test)
    is_told = len(np.unique(result.labels[test])) == 2
    found = []
    for number in range(len(result.model.trees) + 1):
        if number:
            models = (result.model, result.alone)
            for total, model, goes_left in zip(margins, models, sides, strict=True):
                if number <= len(model.trees):
                    tree = model.trees[number - 1]
                    total += tree.values[tree.leaf_of(goes_left, rows)]
        losses = [_log_loss(margins[0], result.labels, part) for part in parts]
        aucs = [
            evaluation.auc_statistic(result.labels[test], total[test].astype(np.float64))
            if is_told
            else None
            for total in margins
        ]
        joint = number > 0 and result.history[number - 1].asked
        found.append(Learned(number, joint, losses[0] or 0.0, losses[1], losses[2], *aucs))
    return tuple(found)


def _log_loss(
    margins: Integers, labels: NDArray[np.uint8], part: NDArray[np.bool_]
) -> float | None:
    if not part.any():
        return None
    against = np.where(labels[part] > 0, -margins[part], margins[part]) / ONE
    return float(np.logaddexp(0.0, against).mean())


def _typical(
    result: TreesResult, data: BankData, parameters: TreesParameters
) -> tuple[Typical, ...]:
    model = result.model
    who = np.flatnonzero(result.test if result.test.any() else np.ones(data.customers, bool))
    count = max(parameters.min_cohort, min(MANY, len(who) // 10))
    if len(who) < 3 * count or not model.trees:
        return ()
    ranked = who[np.argsort(result.margins[who], kind="stable")]
    found = []
    for name, quantile in TYPICAL:
        first = min(max(round(quantile * len(ranked)) - count // 2, 0), len(ranked) - count)
        rows = np.sort(ranked[first : first + count])
        own = {(model.bank, column.name): column.take(rows) for column in data.columns}
        bits = {org: opened[rows] for org, opened in result.bits.items()}
        moved = model.contributions(model.by_bits(own, bits), count).mean(axis=0)
        found.append(_mean_of(name, model, moved, count, parameters.reason_codes))
    return tuple(found)


def _mean_of(
    name: str, model: TreesModel, moved: NDArray[np.float64], count: int, reason_codes: int
) -> Typical:
    """moved: (features,) mean contributions in steps of the margin."""
    factor = model.pdo / math.log(2)
    points = -factor * moved / ONE
    start = model.base_score - factor * (math.log(model.base_odds) + model.expected / ONE)
    order = np.argsort(-np.abs(points), kind="stable")
    shown = [i for i in order[:SHOWN_PARTS] if points[i] != 0]
    reasons = model.reason_codes(np.rint(moved).astype(np.int64)[None, :], reason_codes)
    return Typical(
        name=name,
        customers=count,
        start=start,
        points=start + float(points.sum()),
        parts=tuple(
            Part(model.features[i].name, model.features[i].owner, float(points[i])) for i in shown
        ),
        others=float(points.sum() - points[shown].sum()),
        reasons=reasons[0],
    )
