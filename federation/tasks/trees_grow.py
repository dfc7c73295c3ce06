"""Growing one tree from sums over bins (PROTOCOLS.md section 7, "Boosted trees"). Pure.

A node's candidates are all splits of all features of all owners; what a split would put to the left
is a sum of the node's gradients and hessians over bins. `choose_split` is the one step that turns
these sums into a decision: a mode that keeps them as shares between bank and department replaces it
and nothing else.

Splits    ordered features: bins up to `cut` go left; a category: it goes left, all others right;
          a missing bin of its own goes to the better side
Rounds    one call of `sums` a round, then one of `open`; both happen also when there is nothing to
          do, so that their number says nothing about the tree
Replay    sums are integers; the rest is elementwise, in a fixed order, without a threaded library
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocols.kernels import exact_kernel, kernel

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST_GAIN = 1e-9
SAME = 1 - 1e-9  # a threshold that is open wins over a new one that is not better than this


@dataclass(frozen=True, slots=True)
class Feature:
    """What growth has to know of a feature."""

    owner: str
    name: str
    bins: int
    ordered: bool
    missing: int | None = None  # the bin that holds nothing but missing values
    direction: int = 0  # 1: the risk never falls with the feature, -1: it never rises

    @property
    def values(self) -> int:
        """How many bins stand in an order."""
        return self.bins - (self.missing is not None)


@dataclass(frozen=True, slots=True, order=True)
class Split:
    """One candidate; `feature` counts through all owners' features."""

    feature: int
    cut: int
    missing_left: bool = False

    def left_bins(self, feature: Feature) -> Bools:
        """Which bins of the feature go left."""
        at = np.arange(feature.bins)
        left: Bools = at <= self.cut if feature.ordered else at == self.cut
        if not feature.ordered:
            return left
        if feature.missing is not None:
            left[feature.missing] = self.missing_left
        return left

    def is_possible(self, feature: Feature) -> bool:
        """Whether it is a split of this feature, written in the one way that counts it once."""
        if not feature.ordered:
            # Of two categories, the first against the second is all there is.
            return 0 <= self.cut < (feature.bins if feature.bins > 2 else feature.bins - 1) and (
                not self.missing_left
            )
        if feature.missing is None:
            return 0 <= self.cut < feature.bins - 1 and not self.missing_left
        last = feature.values - 1  # after it: all known values against missing
        return 0 <= self.cut < last or (self.cut == last >= 0 and not self.missing_left)


class Grid:
    """All candidates of all features as arrays of shape (features, bins, 2): cut, missing left."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        count, widest = len(self.features), max((f.bins for f in self.features), default=1)
        starts = np.cumsum([0, *(f.bins for f in self.features)])
        self.columns = int(starts[-1])
        self.starts = starts.astype(np.int64)
        self._at = np.full((count, widest), self.columns)
        self._missing = np.full(count, self.columns)
        self.valid = np.zeros((count, widest, 2), bool)
        self._values = np.zeros((count, widest), bool)
        self._ordered = np.array([f.ordered for f in self.features], bool)[:, None]
        self.direction = np.array([f.direction for f in self.features], np.int64)[:, None, None]
        for i, item in enumerate(self.features):
            self._at[i, : item.bins] = starts[i] + np.arange(item.bins)
            self._values[i, : item.bins] = True
            if item.missing is not None and item.ordered:
                self._missing[i] = starts[i] + item.missing
                self._values[i, item.missing] = False
            for cut in range(item.bins):
                for side in (False, True):
                    self.valid[i, cut, int(side)] = Split(i, cut, side).is_possible(item)

    def left(self, sums: Floats) -> Floats:
        """(k, columns) sums over bins as (k, features, bins, 2) sums over what goes left."""
        padded = np.concatenate([sums, np.zeros((len(sums), 1))], axis=1)
        cells = padded[:, self._at]
        run = np.where(self._ordered, np.cumsum(cells * self._values, axis=2), cells)
        return np.stack([run, run + padded[:, self._missing][:, :, None]], axis=3)

    def split(self, flat: int) -> Split:
        """The candidate at a place of the flattened arrays."""
        feature, cut, side = np.unravel_index(flat, self.valid.shape)
        return Split(int(feature), int(cut), bool(side))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a tree may look like."""

    max_depth: int
    max_leaves: int
    by_leaf: bool
    l2: float
    min_child_weight: float
    min_cohort: int
    min_gain: float
    ask_customers: int = 0  # departments are not asked about nodes with fewer


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Of all customers for one tree; nought where a customer takes no part in it."""

    g: Integers = field(repr=False)  # in steps of g_step
    h: Integers = field(repr=False)
    active: Bools = field(repr=False)
    g_step: float
    h_step: float
    exact_g: Integers = field(repr=False)  # before quantisation, in steps of exact_step
    exact_h: Integers = field(repr=False)
    exact_step: float

    def totals(self, rows: Integers) -> Integers:
        """Over these customers: g, h, how many take part, exact g, exact h."""
        out = np.zeros(5, np.int64)
        _totals(rows, self.g, self.h, self.active, self.exact_g, self.exact_h, out)
        return out


@kernel
def _totals(
    rows: Integers,
    g: Integers,
    h: Integers,
    active: Bools,
    exact_g: Integers,
    exact_h: Integers,
    out: Integers,
) -> None:
    for i in range(rows.size):
        r = rows[i]
        out[0] += g[r]
        out[1] += h[r]
        out[2] += active[r]
        out[3] += exact_g[r]
        out[4] += exact_h[r]


@dataclass(slots=True, eq=False)
class Node:
    """A node while its tree grows."""

    rows: Integers = field(repr=False)  # all customers in it, those that take no part included
    depth: int
    number: int  # in the finished tree
    g: int  # of the customers that take part, as are the next two
    h: int
    customers: int
    weight: float  # what it would say as a leaf
    low: float = -np.inf  # bounds of what its leaves may say, from monotone splits above
    high: float = np.inf
    sums: Integers | None = field(default=None, repr=False)  # (3, columns)
    cells: Integers | None = field(default=None, repr=False)  # sums over what is open, see Columns
    cells_of: int = -1  # as of so many openings
    is_asked: bool = True  # whether departments are, in a tree that asks
    split: Split | None = None  # None: a leaf
    gain: float = 0.0
    left: int = -1
    right: int = -1


@dataclass(frozen=True, slots=True)
class Choice:
    """The best split of a node."""

    split: Split
    gain: float


class Columns(Protocol):
    """What a tree grows on: sums over bins, and who goes left, whoever owns the feature."""

    @property
    def grid(self) -> Grid:
        """All features' candidates."""

    def sums(self, nodes: Sequence[Node]) -> list[Integers]:
        """One round: (3, columns) g, h, customers over each node; nought where nobody was asked."""

    def totals(self, groups: Sequence[Integers]) -> list[Integers]:
        """`Gradients.totals` of each group of customers, over all banks."""

    def prepare(self, nodes: Sequence[Node]) -> None:
        """What `candidates` of these nodes will need, in one step."""

    def candidates(self, node: Node) -> Floats:
        """(3, features, bins, 2): g, h and customers of what each split puts to the left."""

    def allowed(self, pending: Collection[Split] = ()) -> Bools:
        """Which candidates a node may take; a feature at its cap has its open ones only.

        pending: splits that are chosen and not open yet; they count for the cap.
        """

    def known(self) -> Bools:
        """Which of them need nothing to be opened."""

    def open(self, splits: Sequence[Split]) -> None:
        """End of a round: open what is new among these."""

    def goes_left(self, split: Split, rows: Integers) -> Bools:
        """For an open split: which of these customers."""

    def check_sibling(self, node: Node) -> None:
        """Sums that came by subtraction must be possible ones; raises ProtocolError."""

    def confirm(self, node: Node, split: Split, left: Integers) -> None:
        """Note whether the open bits fit the answers. left: `Gradients.totals` of who goes left."""


def choose_split(
    node: Node,
    candidates: Floats,
    grid: Grid,
    allowed: Bools,
    known: Bools,
    gradients: Gradients,
    rules: Rules,
) -> Choice | None:
    """The split of a node that gains most (XGBoost's gain, bounded weights), or None.

    Of equal gains the one that needs no opening wins, then the first.
    """
    found = _best(
        candidates,
        allowed,
        known,
        grid.direction,
        np.array([gradients.g_step, gradients.h_step, 1.0]),
        np.array([node.g, node.h, node.customers], np.float64),
        # half a customer of tolerance: a department's counts are estimates, and checked once open
        np.array([rules.min_child_weight - 1e-9, rules.min_cohort - 0.5]),
        rules.l2,
        node.low,
        node.high,
    )
    best, top, cheap, cheap_gain = found
    if not top > max(rules.min_gain, LEAST_GAIN):
        return None
    if cheap_gain >= top * SAME:
        return Choice(grid.split(cheap), cheap_gain)
    return Choice(grid.split(best), top)


@exact_kernel
def _best(
    candidates: Floats,
    allowed: Bools,
    known: Bools,
    direction: Integers,
    steps: Floats,
    node: Floats,
    least: Floats,
    l2: float,
    low: float,
    high: float,
) -> tuple[int, float, int, float]:
    """Place and gain of the best allowed candidate, and of the best that needs no opening.

    Places are in the flattened arrays; the first of equals; a gain of minus infinity: none.
    """
    _, features, bins, sides = candidates.shape
    g, h, customers = node[0] * steps[0], node[1] * steps[1], node[2] * steps[2]
    _, own = _weigh(g, h, l2, low, high)
    best, top, cheap, cheap_top = 0, -np.inf, 0, -np.inf
    for f in range(features):
        for c in range(bins):
            for side in range(sides):
                if not allowed[f, c, side]:
                    continue
                hl, nl = candidates[1, f, c, side] * steps[1], candidates[2, f, c, side] * steps[2]
                hr, nr = h - hl, customers - nl
                if not (hl >= least[0] and hr >= least[0] and nl >= least[1] and nr >= least[1]):
                    continue
                gl = candidates[0, f, c, side] * steps[0]
                left, gain_left = _weigh(gl, hl, l2, low, high)
                right, gain_right = _weigh(g - gl, hr, l2, low, high)
                if not direction[f, 0, 0] * (right - left) >= 0:
                    continue
                gain = (gain_left + gain_right - own) / 2
                at = (f * bins + c) * sides + side
                if gain > top:
                    best, top = at, gain
                if known[f, c, side] and gain > cheap_top:
                    cheap, cheap_top = at, gain
    return best, top, cheap, cheap_top


@exact_kernel
def _weigh(g: float, h: float, l2: float, low: float, high: float) -> tuple[float, float]:
    """Best weight within the bounds, and twice what it takes off the loss."""
    curvature = max(h + l2, 1e-12)
    weight = min(max(-g / curvature, low), high)
    return weight, -(2 * g * weight + curvature * weight * weight)


# --- growth ---------------------------------------------------------------------------------------


def grow(columns: Columns, gradients: Gradients, rules: Rules) -> list[Node]:
    """All nodes of one tree, the root first; those without a split are its leaves."""
    return _Growth(columns, gradients, rules).run()


class _Growth:
    def __init__(self, columns: Columns, gradients: Gradients, rules: Rules) -> None:
        self.columns, self.gradients, self.rules = columns, gradients, rules
        rows = np.arange(len(gradients.g), dtype=np.int64)
        self.nodes: list[Node] = []
        (totals,) = columns.totals([rows])
        self._add(rows, totals, 0, -np.inf, np.inf)

    def run(self) -> list[Node]:
        (root,) = self.nodes
        root.is_asked = root.customers >= self.rules.ask_customers
        (root.sums,) = self.columns.sums([root])
        if self.rules.by_leaf:
            self.by_leaf(root)
        else:
            self.by_depth(root)
        return self.nodes

    def by_depth(self, root: Node) -> None:
        """All nodes of a level in one round."""
        level, pairs = [root], list[tuple[Node, Node, Node]]()
        for _ in range(self.rules.max_depth):
            if pairs:
                self._fill(pairs)
            chosen = self._choose_level(level)
            self.columns.open([choice.split for _, choice in chosen])
            found = self._divide_all(chosen)
            pairs = [pair for pair in found if pair]
            level = [child for _, left, right in pairs for child in (left, right)]
            if not level:
                break

    def by_leaf(self, root: Node) -> None:
        """The leaf that gains most is split, one a round."""
        waiting = [(root, self._choose(root, self.columns.allowed()))]
        for rounds_left in range(self.rules.max_leaves - 2, -1, -1):
            allowed = self.columns.allowed()
            # An earlier opening may have brought a feature to its cap.
            waiting = [
                (node, one if allowed[_place(one.split)] else self._choose(node, allowed))
                for node, one in waiting
                if one
            ]
            able = [(node, one) for node, one in waiting if one]
            if not able:
                break
            node, choice = max(able, key=lambda item: item[1].gain)  # the first of equals
            self.columns.open([choice.split])
            (pair,) = self._divide_all([(node, choice)])
            waiting = [(other, one) for other, one in able if other is not node]
            if rounds_left:
                self._fill([pair] if pair else [])
                for child in pair[1:] if pair else ():
                    waiting.append((child, self._choose(child, self.columns.allowed())))

    def _choose_level(self, level: list[Node]) -> list[tuple[Node, Choice]]:
        """The nodes' choices within the caps: who gains most comes first."""
        allowed = self.columns.allowed()
        self.columns.prepare([node for node in level if self._may_split(node)])
        found = [(node, self._choose(node, allowed)) for node in level]
        wishes = sorted(((node, one) for node, one in found if one), key=lambda item: -item[1].gain)
        pending: set[Split] = set()
        chosen = []
        for node, wish in wishes:
            allowed = self.columns.allowed(pending)
            choice = wish if allowed[_place(wish.split)] else self._choose(node, allowed)
            if choice:
                pending.add(choice.split)
                chosen.append((node, choice))
        return chosen

    def _may_split(self, node: Node) -> bool:
        return node.customers >= 2 * self.rules.min_cohort and node.depth < self.rules.max_depth

    def _choose(self, node: Node, allowed: Bools) -> Choice | None:
        if not self._may_split(node):
            return None
        columns, known = self.columns, self.columns.known()
        return choose_split(
            node,
            columns.candidates(node),
            columns.grid,
            allowed if node.is_asked else allowed & known,
            known,
            self.gradients,
            self.rules,
        )

    def _divide_all(
        self, chosen: Sequence[tuple[Node, Choice]]
    ) -> list[tuple[Node, Node, Node] | None]:
        """Split every node by its choice, now open; their children's totals come in one step."""
        sides = [self._sides(node, choice) for node, choice in chosen]
        totals = self.columns.totals([rows for pair in sides for rows in pair])
        return [
            self._divide(node, choice, sides[i], (totals[2 * i], totals[2 * i + 1]))
            for i, (node, choice) in enumerate(chosen)
        ]

    def _sides(self, node: Node, choice: Choice) -> tuple[Integers, Integers]:
        return _sides(node.rows, self.columns.goes_left(choice.split, node.rows))

    def _divide(
        self,
        node: Node,
        choice: Choice,
        sides: tuple[Integers, Integers],
        totals: tuple[Integers, Integers],
    ) -> tuple[Node, Node, Node] | None:
        """Split a node by an open choice; by another open one if a child is too small.

        Counts of a department's bins are estimates until a threshold is open.
        """
        columns, refused = self.columns, list[Split]()
        while not all(self._is_large(of) for of in totals):
            refused.append(choice.split)
            known = columns.known() & columns.allowed()
            for split in refused:
                known[_place(split)] = False
            other = self._choose(node, known)
            if other is None:
                return None
            choice, sides = other, self._sides(node, other)
            left, right = columns.totals(sides)
            totals = left, right
        return self._accept(node, choice, sides, totals)

    def _is_large(self, totals: Integers) -> bool:
        _, h, customers, _, _ = map(int, totals)
        weight, rules = h * self.gradients.h_step, self.rules
        return customers >= rules.min_cohort and weight >= rules.min_child_weight - 1e-9

    def _accept(
        self,
        node: Node,
        choice: Choice,
        sides: tuple[Integers, Integers],
        totals: tuple[Integers, Integers],
    ) -> tuple[Node, Node, Node]:
        self.columns.confirm(node, choice.split, totals[0])
        node.split, node.gain = choice.split, choice.gain
        left, right = (
            self._add(rows, of, node.depth + 1, node.low, node.high)
            for rows, of in zip(sides, totals, strict=True)
        )
        node.left, node.right = left.number, right.number
        direction = self.columns.grid.features[choice.split.feature].direction
        if direction:
            middle = (left.weight + right.weight) / 2
            below, above = (left, right) if direction > 0 else (right, left)
            below.high, above.low = middle, middle
            for child in (left, right):
                child.weight = float(np.clip(child.weight, child.low, child.high))
        return node, left, right

    def _add(self, rows: Integers, totals: Integers, depth: int, low: float, high: float) -> Node:
        of = self.gradients
        g, h, customers, exact_g, exact_h = map(int, totals)
        curvature = max(exact_h * of.exact_step + self.rules.l2, 1e-12)
        weight = float(np.clip(-exact_g * of.exact_step / curvature, low, high))
        node = Node(rows, depth, len(self.nodes), g, h, customers, weight, low, high)
        self.nodes.append(node)
        return node

    def _fill(self, pairs: Sequence[tuple[Node, Node, Node]]) -> None:
        """Ask for the left children; the right ones are what is left of their parents.

        A bin of a small node holds few customers, and sums of few known numbers say which ones. So
        of a pair with a small child, neither is asked: the other one would give it away. Both grow
        on with what is known without asking.
        """
        for parent, left, right in pairs:
            smaller = min(left.customers, right.customers)
            left.is_asked = parent.is_asked and smaller >= self.rules.ask_customers
            right.is_asked = left.is_asked
        asked = self.columns.sums([left for _, left, _ in pairs])
        for (parent, left, right), sums in zip(pairs, asked, strict=True):
            if parent.sums is None:
                raise RuntimeError("a node is split before its sums are known")
            left.sums, right.sums = sums, parent.sums - sums
            if right.is_asked:
                self.columns.check_sibling(right)
            parent.sums = None


def _sides(rows: Integers, goes_left: Bools) -> tuple[Integers, Integers]:
    """The rows that go left, and the others, in their order."""
    sides = np.empty_like(rows)
    count = _part(rows, goes_left, sides)
    return sides[:count], sides[count:][::-1].copy()


@kernel
def _part(rows: Integers, goes_left: Bools, sides: Integers) -> int:
    """Who goes left from the front, the others from the back; how many go left."""
    left, right = 0, rows.size
    for i in range(rows.size):  # both places are written, one is kept: no branch to guess
        goes = int(goes_left[i])
        sides[left], sides[right - 1] = rows[i], rows[i]
        left += goes
        right -= 1 - goes
    return left


def _place(split: Split) -> tuple[int, int, int]:
    return split.feature, split.cut, int(split.missing_left)
