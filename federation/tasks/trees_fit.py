"""Boosting: one tree after the other on the logistic loss of being bad. Pure.

    margin    log odds of a *bad* customer = base + sum of the trees' leaves
    tree      gradients and hessians of the customers that take part, quantised once a tree
    leaf      Newton's value from the exact sums of its customers, which the bank holds

Replay  margins and leaves are integers in steps of 2^-12 logit, probabilities and losses come from
        tables, gradients are integers: everything that enters a query is the same bit for bit when
        an auditor runs it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache

import numpy as np
from numpy.typing import NDArray

from federation.objects import TreesParameters
from federation.tasks.fit import P_BITS, SCORE_BITS, SCORE_LIMIT, probability, quantise
from federation.tasks.secure_sum import WIDE
from federation.tasks.trees_columns import Columns
from federation.tasks.trees_grow import Bools, Gradients, Integers, Node, Rules, Split, grow
from protocols.streams import Stream

LOSS_BITS = 20  # losses are summed in steps of 2^-20
WEIGHT_BITS = 8

Draw = Callable[[str, int], Stream]  # (purpose, tree) -> the stream of that draw


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """One finished tree, its nodes in the order in which they came to be; node 0 is the root."""

    splits: tuple[Split | None, ...]  # None: a leaf
    left: NDArray[np.int32] = field(repr=False)
    right: NDArray[np.int32] = field(repr=False)
    values: Integers = field(repr=False)  # of leaves, in steps of 2^-12 logit; else nought
    expected: Integers = field(repr=False)  # mean of the leaves below over training customers
    customers: Integers = field(repr=False)  # that the tree was grown on
    gains: NDArray[np.float64] = field(repr=False)  # of each split

    @property
    def leaves(self) -> int:
        """How many."""
        return sum(split is None for split in self.splits)

    @property
    def depth(self) -> int:
        """Splits on the longest path."""
        depth = np.zeros(len(self.splits), np.int64)
        for at, split in enumerate(self.splits):
            if split is not None:
                depth[[self.left[at], self.right[at]]] = depth[at] + 1
        return int(depth.max())

    def leaf_of(self, goes_left: Callable[[Split], Bools], rows: int) -> NDArray[np.int32]:
        """The leaf of every row; goes_left: (rows,) for a split."""
        at = np.zeros(rows, np.int32)
        for number, split in enumerate(self.splits):
            if split is not None:
                here = at == number
                left = goes_left(split)
                at[here & left] = self.left[number]
                at[here & ~left] = self.right[number]
        return at


@dataclass(frozen=True, slots=True)
class Step:
    """The losses after a tree, a customer."""

    train: float
    validation: float | None
    asked: bool  # whether departments were asked


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What boosting leaves."""

    base: int  # margin without any tree, in steps of 2^-12
    trees: tuple[Tree, ...]
    margins: Integers = field(repr=False)  # (customers,)
    history: tuple[Step, ...]  # of all trees that were grown, also of those dropped again


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a `TreesParameters`, as growth uses them."""

    rules: Rules
    rate: float
    rows: float
    features: float
    bad_weight: int  # in steps of 2^-8

    @classmethod
    def of(cls, parameters: TreesParameters) -> Settings:
        """Decimals as floats."""
        rules = Rules(
            max_depth=parameters.max_depth,
            max_leaves=min(parameters.max_leaves, 1 << parameters.max_depth),
            by_leaf=parameters.growth == "leaf",
            l2=float(parameters.l2),
            min_child_weight=float(parameters.min_child_weight),
            min_cohort=parameters.min_cohort,
            min_gain=float(parameters.min_gain),
            ask_customers=parameters.ask_customers,
        )
        return cls(
            rules,
            float(parameters.learning_rate),
            float(parameters.row_sample),
            float(parameters.feature_sample),
            max(1, round(Decimal(parameters.bad_weight) * (1 << WEIGHT_BITS))),
        )


def boost(
    columns: Columns,
    labels: NDArray[np.uint8],
    train: Bools,
    validation: Bools,
    parameters: TreesParameters,
    vmax: int,
    draw: Draw,
    *,
    before: Callable[[int, bool], None] = lambda tree, more: None,
    after: Callable[[Sequence[Tree]], None] = lambda trees: None,
    done: Sequence[Tree] = (),
) -> Fitted:
    """All trees; labels and masks are of all customers, 1 = bad.

    train and validation do not overlap. before: called ahead of every tree that may ask
    departments, and once with False if they are not asked to the end. after: with each new tree,
    all so far. done: trees of an earlier attempt, which are taken as they are.
    """
    settings = Settings.of(parameters)
    joint = parameters.joint_trees or parameters.trees
    weights = np.where(labels > 0, settings.bad_weight, 1 << WEIGHT_BITS).astype(np.int64)
    pool = columns.pool

    def over_banks(what: str, *values: int) -> list[int]:
        return list(map(int, pool.integers(f"trees {what}", np.array(values, np.int64), WIDE)))

    bads, goods, watched_weight, weight = over_banks(
        "weights",
        int(weights[train & (labels > 0)].sum()),
        int(weights[train & (labels == 0)].sum()),
        int(weights[validation].sum()),
        int(weights[train].sum()),
    )
    base = _base(bads, goods)
    margins = np.full(len(labels), base, np.int64)
    trees: list[Tree] = []
    history: list[Step] = []
    best = 0
    (best_loss,) = over_banks("loss", _loss(margins, labels, weights, validation))
    for number in range(parameters.trees):
        asks = number < joint
        if parameters.patience and number - best >= parameters.patience:
            if asks:
                before(number, False)
            break
        if number < len(done):
            trees.append(done[number])
            margins += trees[-1].values[_leaves(trees[-1], columns, len(labels))]
        else:
            if asks:
                before(number, True)
            active = train & _sample(len(labels), settings.rows, draw, "rows", number)
            most = None if len(pool.members) == 1 else max(settings.bad_weight, 1 << WEIGHT_BITS)
            gradients = _gradients(margins, labels, weights, active, vmax, draw, number, most)
            features = len(columns.grid.features)
            sampled = _sample(features, settings.features, draw, "features", number)
            columns.start(gradients, sampled, asks)
            nodes = grow(columns, gradients, settings.rules)
            columns.finish()
            trees.append(_finish(nodes, settings.rate))
            for node in nodes:
                if node.split is None:
                    margins[node.rows] += trees[-1].values[node.number]
        watched, lost = over_banks(
            "loss",
            _loss(margins, labels, weights, validation),
            _loss(margins, labels, weights, train),
        )
        if not parameters.patience or watched < best_loss:
            best, best_loss = number + 1, watched
        part = watched / watched_weight if watched_weight else None
        scale = float(1 << LOSS_BITS)
        history.append(
            Step(lost / max(weight, 1) / scale, None if part is None else part / scale, asks)
        )
        if number >= len(done):
            after(trees)
    kept = trees[:best]
    for tree in trees[best:]:
        margins -= tree.values[_leaves(tree, columns, len(labels))]
    return Fitted(base, tuple(kept), margins, tuple(history))


def validation_part(train: Bools, share: float, draw: Draw) -> Bools:
    """A part of the training customers, drawn at random, that only decides when to stop."""
    return (
        train & ~_sample(len(train), 1 - share, draw, "validation", 0) if share else train & False
    )


# --- pieces ---------------------------------------------------------------------------------------


def _leaves(tree: Tree, columns: Columns, rows: int) -> NDArray[np.int32]:
    everybody = np.arange(rows, dtype=np.int64)
    return tree.leaf_of(lambda split: columns.goes_left(split, everybody), rows)


def _sample(count: int, share: float, draw: Draw, purpose: str, number: int) -> Bools:
    """A random part, of exactly that share and at least one."""
    taken = np.ones(count, bool)
    if share < 1:
        order = np.argsort(draw(purpose, number).words(count), kind="stable")
        taken[order[max(1, round(share * count)) :]] = False
    return taken


def _base(bads: int, goods: int) -> int:
    odds = max(bads, 0.5) / max(goods, 0.5)
    # A log of a ratio, rounded to 2^-12: no machine's last bit matters short of a tie.
    return int(np.rint(np.log(odds) * (1 << SCORE_BITS)))


def _gradients(
    margins: Integers,
    labels: NDArray[np.uint8],
    weights: Integers,
    active: Bools,
    vmax: int,
    draw: Draw,
    number: int,
    heaviest: int | None,
) -> Gradients:
    """heaviest: a customer's largest weight, which the scale has to allow for where several banks
    must have the same one; None: it is that of the largest value here."""
    one = 1 << P_BITS
    p = probability(margins)
    exact_g = np.where(active, ((p - labels.astype(np.int64) * one) * weights) >> WEIGHT_BITS, 0)
    exact_h = np.where(active, (((p * (one - p)) >> P_BITS) * weights) >> WEIGHT_BITS, 0)
    if heaviest is None:
        largest = max(int(np.abs(exact_g).max()), 1), max(int(exact_h.max()), 1)
    else:  # |p - y| < 1 and p (1 - p) <= 1/4
        whole = (one * heaviest) >> WEIGHT_BITS
        largest = max(whole, 1), max(whole // 4, 1)
    return Gradients(
        quantise(exact_g * vmax, largest[0], draw("gradients", number)),
        quantise(exact_h * vmax, largest[1], draw("hessians", number)),
        active,
        largest[0] / vmax / one,
        largest[1] / vmax / one,
        exact_g,
        exact_h,
        1 / one,
    )


@cache
def _losses() -> Integers:
    at = np.arange(-SCORE_LIMIT << SCORE_BITS, (SCORE_LIMIT << SCORE_BITS) + 1)
    table: Integers = np.rint(np.logaddexp(0.0, at / 2.0**SCORE_BITS) * (1 << LOSS_BITS)).astype(
        np.int64
    )
    return table


def _loss(margins: Integers, labels: NDArray[np.uint8], weights: Integers, part: Bools) -> int:
    """Weighted log loss over a part of the customers, in steps of 2^-20 times 2^-8."""
    limit = SCORE_LIMIT << SCORE_BITS
    against = np.where(labels > 0, -margins, margins)[part]
    return int((_losses()[np.clip(against, -limit, limit) + limit] * weights[part]).sum())


def _finish(nodes: list[Node], rate: float) -> Tree:
    count = len(nodes)
    values, expected = np.zeros(count, np.int64), np.zeros(count, np.int64)
    customers = np.array([node.customers for node in nodes], np.int64)
    for node in reversed(nodes):  # children come after their parents
        at = node.number
        if node.split is None:
            values[at] = int(np.rint(node.weight * rate * (1 << SCORE_BITS)))
            expected[at] = values[at]
        else:
            sides = np.array([node.left, node.right])
            total = int((expected[sides] * customers[sides]).sum())
            expected[at] = round(total / max(int(customers[at]), 1))
    return Tree(
        tuple(node.split for node in nodes),
        np.array([node.left for node in nodes], np.int32),
        np.array([node.right for node in nodes], np.int32),
        values,
        expected,
        customers,
        np.array([node.gain for node in nodes], np.float64),
    )
