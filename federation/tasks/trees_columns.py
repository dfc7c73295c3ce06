"""What trees grow on: one view of all owners' features as sums over bins (`trees_grow.Columns`).

Own features are counted here. Of a department's the bank has the sums that it asked for, and
besides, for ever, the bits of the thresholds that are open: these cut a feature into *cells*, and
about cells everything is known without asking. What was not asked (customers always, hessians in a
gradient-only job, everything in a tree that asks nobody) is spread within a cell in proportion to
what is known of its bins; a candidate that is open is a union of cells, so it is always exact.

The same code serves the job and the pooled comparison; only `Remote` differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from federation.tasks.secure_sum import WIDE, Alone, Pool
from federation.tasks.trees_grow import (
    Bools,
    Feature,
    Floats,
    Gradients,
    Grid,
    Integers,
    Node,
    Split,
)
from protocols.kernels import kernel, spread

Codes = NDArray[np.uint8]


class Remote(Protocol):
    """The departments, as a tree sees them."""

    def ask(self, gradients: Gradients, nodes: Sequence[Node]) -> Callable[[], list[Integers]]:
        """Start a round: sums of g and h over the nodes; the result collects the answers.

        (2, columns of all departments) a node; h is nought if it is not asked.
        """

    def check(self, sums: Integers, g: int, h: int) -> None:
        """Whether (2, columns) can be sums of a node with these totals; raises ProtocolError."""

    def open(self, splits: Sequence[Split]) -> list[Bools]:
        """End a round: which customers go left, for each of these new thresholds."""

    def finish(self) -> None:
        """Go through the rounds that the tree did not need."""


class Columns:
    """All features of a job, the bank's first, over the bank's customers."""

    def __init__(
        self,
        own: Sequence[Feature],
        codes: Codes,
        remote: Remote | None = None,
        theirs: Sequence[Feature] = (),
        counts: Integers | None = None,
        *,
        cap: int = 0,
        hessians: bool = True,
        pool: Pool | None = None,
        executor: Executor | None = None,
    ) -> None:
        """codes: (own features, customers) bins. counts: training customers of their columns.

        pool: the banks that grow the trees together; every sum is then over all of them.
        """
        self.grid = Grid([*own, *theirs])
        self.opened: dict[Split, Bools] = {}
        self.surprises = 0  # open bits that do not fit the answers; no party is shown a reaction
        self._own, self._remote, self._cap, self._hessians = len(own), remote, cap, hessians
        self._executor, self.pool = executor, pool or Alone("")
        self._openings = 0  # how often cells were made
        customers = codes.shape[1]
        self._codes = np.concatenate([codes, np.zeros((len(theirs), customers), np.uint8)])
        self._split = int(self.grid.starts[len(own)])  # columns before are the bank's
        known = self.grid.valid.copy()
        known[len(own) :] = False
        self._known, self._open_count = known, np.zeros(len(known), np.int64)
        self._counted: set[Split] = set()  # open for their owner, not here; they may be asked again
        shares = np.zeros(self.grid.columns - self._split) if counts is None else counts
        self._counts = shares.astype(np.float64)
        self._cells = [np.zeros(f.bins, np.int64) for f in theirs]
        self._index_cells()
        self._asks, self._sampled = False, np.ones(len(self.grid.features), bool)
        self._gradients: Gradients | None = None

    # a tree

    def start(self, gradients: Gradients, sampled: Bools, asks: bool) -> None:
        """The next tree: its gradients, its features, and whether departments are asked."""
        self._gradients, self._sampled = gradients, sampled
        self._asks = asks and self._remote is not None

    def finish(self) -> None:
        """The tree is grown."""
        if self._asks and self._remote is not None:
            self._remote.finish()

    @property
    def _now(self) -> Gradients:
        if self._gradients is None:
            raise RuntimeError("no tree was started")
        return self._gradients

    # for growth

    def sums(self, nodes: Sequence[Node]) -> list[Integers]:
        """(3, columns): g, h and customers of each node; nought where nobody was asked."""
        collect, asked = None, [node for node in nodes if node.is_asked]
        if self._asks and self._remote is not None:
            collect = self._remote.ask(self._now, asked)
        found = []
        for node in nodes:
            own = self._count(node.rows, range(self._own))
            sums = np.zeros((3, self.grid.columns), np.int64)
            for f in range(self._own):
                start, stop = self.grid.starts[f : f + 2]
                sums[:, start:stop] = own[f][: stop - start].T
            found.append(sums)
        if found and self._split:
            own_sums = np.stack([sums[:, : self._split] for sums in found])
            for sums, total in zip(found, self._together("own sums", own_sums), strict=True):
                sums[:, : self._split] = total
        if collect is not None:
            answers = iter(collect())
            for node, sums in zip(nodes, found, strict=True):
                if node.is_asked:
                    sums[:2, self._split :] = next(answers)
        return found

    def totals(self, groups: Sequence[Integers]) -> list[Integers]:
        """`Gradients.totals` of each group of customers, over all banks."""
        if not groups:
            return []
        own = np.stack([self._now.totals(rows) for rows in groups])
        return list(self._together("totals", own))

    def _together(self, what: str, values: Integers) -> Integers:
        return self.pool.integers(f"tree {what}", values, WIDE)

    def check_sibling(self, node: Node) -> None:
        """What came by subtraction must be possible; raises ProtocolError."""
        if self._asks and self._remote is not None and node.sums is not None:
            self._remote.check(node.sums[:2, self._split :], node.g, node.h)

    def candidates(self, node: Node) -> Floats:
        """(3, features, bins, 2): g, h and customers of what each split puts to the left."""
        if node.sums is None:
            raise RuntimeError("a node's sums come before its candidates")
        sums = node.sums.astype(np.float64)
        if self._split < self.grid.columns:
            self._spread_over_bins(node, sums[:, self._split :])
        return self.grid.left(sums)

    def allowed(self, pending: Collection[Split] = ()) -> Bools:
        """Which candidates a node may take; a feature at its cap has its open ones only."""
        mask = self._known.copy()
        if self._asks:
            new = {split for split in pending if not self._known[_place(split)]} | self._counted
            used = self._open_count.copy()
            for split in new:
                used[split.feature] += 1
                mask[_place(split)] = True
            free = (used < self._cap) & (np.arange(len(used)) >= self._own)
            mask[free] = self.grid.valid[free]
        mask[~self._sampled] = False
        return mask

    def known(self) -> Bools:
        """Which candidates need nothing to be opened."""
        return self._known.copy()

    def open(self, splits: Sequence[Split]) -> None:
        """End of a round: open what is new among these."""
        new = [s for s in dict.fromkeys(splits) if s.feature >= self._own and s not in self.opened]
        if not self._asks or self._remote is None:
            if new:
                raise RuntimeError("a tree that asks nobody opens nothing")
            return
        for split, bits in zip(new, self._remote.open(new), strict=True):
            self._take(split, bits)
        if new:
            self._index_cells()

    def restore(self, opened: Mapping[Split, Bools], counted: Collection[Split]) -> None:
        """What an earlier attempt opened; counted: by their owners also those that got lost."""
        for split, bits in opened.items():
            self._take(split, bits)
        self._counted = {split for split in counted if split not in self.opened}
        self._index_cells()

    def _take(self, split: Split, bits: Bools) -> None:
        self.opened[split] = bits
        self._counted.discard(split)
        self._known[_place(split)] = True
        self._open_count[split.feature] += 1
        self._cut(split, bits)

    def goes_left(self, split: Split, rows: Integers) -> Bools:
        """For a known split: which of these customers."""
        if split.feature >= self._own:
            return self.opened[split][rows]
        left = split.left_bins(self.grid.features[split.feature])
        goes: Bools = left[self._codes[split.feature, rows]]
        return goes

    def confirm(self, node: Node, split: Split, left: Integers) -> None:
        """Compare the open bits with the answers; a difference is counted and shown to nobody.

        A reaction would tell a department that spoils one row whether it is a customer's.
        """
        asked = self._asks and node.is_asked
        if not asked or split.feature < self._own or node.sums is None:
            return
        start, stop = self.grid.starts[split.feature : split.feature + 2]
        bins = split.left_bins(self.grid.features[split.feature])
        said = node.sums[:2, start:stop][:, bins].sum(axis=1)
        self.surprises += int(said[0] != left[0])
        if self._hessians:
            self.surprises += int(said[1] != left[1])

    # cells

    def _cut(self, split: Split, bits: Bools) -> None:
        """Cut a feature's cells by a new threshold, for bins and for customers."""
        at = split.feature - self._own
        left = split.left_bins(self.grid.features[split.feature]).astype(np.int64)
        finer = 2 * self._cells[at] + left
        names = np.unique(finer)
        place = np.zeros(2 * int(self._cells[at].max()) + 2, np.uint8)
        place[names] = np.arange(len(names))
        self._cells[at] = place[finer].astype(np.int64)
        # Bits that fit no bin fall to the first cell: candidates' sums are then a little off.
        self._codes[split.feature] = place[2 * self._codes[split.feature].astype(np.int64) + bits]

    def _index_cells(self) -> None:
        """Cells of all departments' features in one row of numbers, and each column's."""
        self._openings += 1
        sizes = [int(cells.max()) + 1 for cells in self._cells]
        starts = np.cumsum([0, *sizes]).astype(np.int64)
        self._cell_starts, self._cell_count = starts, int(starts[-1])
        parts = [cells + start for cells, start in zip(self._cells, starts, strict=False)]
        self._cell_of = np.concatenate([*parts, np.zeros(0, np.int64)])
        self._cell_counts = self._over_cells(self._counts)

    def _over_cells(self, columns: Floats) -> Floats:
        return np.bincount(self._cell_of, columns, self._cell_count).astype(np.float64)

    def _spread_over_bins(self, node: Node, sums: Floats) -> None:
        """Fill (3, their columns) in place with what was not asked."""
        if node.cells is None or node.cells_of != self._openings:
            self.prepare([node])
        if node.cells is None:
            raise RuntimeError("a node without cells")
        cells = node.cells.astype(np.float64)
        share = _share(self._counts, self._cell_counts, self._cell_of)
        asked = self._asks and node.is_asked
        if not asked:
            sums[0] = cells[0][self._cell_of] * share
        if not (asked and self._hessians):
            sums[1] = cells[1][self._cell_of] * share
            sums[2] = cells[2][self._cell_of] * share
        else:
            # Within a cell customers are where the hessians are.
            weights = self._over_cells(sums[1])
            by_weight = _share(sums[1], weights, self._cell_of)
            even = weights[self._cell_of] == 0
            sums[2] = cells[2][self._cell_of] * np.where(even, share, by_weight)

    def prepare(self, nodes: Sequence[Node]) -> None:
        """The nodes' sums over the cells of what is open, in one step."""
        wide = [f for f in range(len(self._cells)) if np.diff(self._cell_starts)[f] > 1]
        if not nodes or self._split == self.grid.columns:
            return
        made = np.empty((len(nodes), 3, self._cell_count), np.int64)
        for cells, node in zip(made, nodes, strict=True):
            cells[:] = np.array([[node.g], [node.h], [node.customers]])
        at = [slice(*self._cell_starts[f : f + 2]) for f in wide]
        if wide:
            own = np.empty((len(nodes), 3, sum(s.stop - s.start for s in at)), np.int64)
            for part, node in zip(own, nodes, strict=True):
                tables = self._count(node.rows, [self._own + f for f in wide])
                sizes = [s.stop - s.start for s in at]
                part[:] = np.concatenate(
                    [table[:size].T for table, size in zip(tables, sizes, strict=True)], axis=1
                )
            places = np.concatenate([np.arange(s.start, s.stop) for s in at])
            made[:, :, places] = self._together("cells", own)
        for cells, node in zip(made, nodes, strict=True):
            node.cells, node.cells_of = cells, self._openings

    def _count(self, rows: Integers, features: Sequence[int]) -> NDArray[np.int64]:
        """(features, 256, 3): g, h and customers of each code over the rows that take part."""
        now = self._now
        rows = rows[now.active[rows]]
        return count(self._codes, list(features), rows, now.g[rows], now.h[rows], self._executor)


def _place(split: Split) -> tuple[int, int, int]:
    return split.feature, split.cut, int(split.missing_left)


def _share(part: Floats, whole: Floats, cell_of: Integers) -> Floats:
    return np.asarray(part / np.maximum(whole, 1e-300)[cell_of])


def count(
    codes: Codes,
    features: Sequence[int],
    rows: Integers,
    g: Integers,
    h: Integers,
    executor: Executor | None = None,
) -> NDArray[np.int64]:
    """(features, 256, 3): sums of g, of h and the number of rows by code; g, h in rows' order."""
    out = np.zeros((len(features), 256, 3), np.int64)

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            _count(codes[features[i]], rows, g, h, out[i])

    spread(executor if len(rows) > 5000 else None, len(features), work)
    return out


@kernel
def _count(codes: Codes, rows: Integers, g: Integers, h: Integers, out: NDArray[np.int64]) -> None:
    for i in range(rows.size):
        c = codes[rows[i]]
        out[c, 0] += g[i]
        out[c, 1] += h[i]
        out[c, 2] += 1


class Plain:
    """The departments with their bins in the clear: for the pooled comparison."""

    def __init__(
        self,
        first: int,
        features: Sequence[Feature],
        codes: Codes,
        *,
        hessians: bool,
        executor: Executor | None = None,
    ) -> None:
        """first: how many features the bank has itself. codes: (features, customers) bins."""
        self._first, self._features, self._codes = first, features, codes
        self._hessians, self._executor = hessians, executor

    def ask(self, gradients: Gradients, nodes: Sequence[Node]) -> Callable[[], list[Integers]]:
        """Sums in the clear."""
        found = []
        for node in nodes:
            rows = node.rows[gradients.active[node.rows]]
            g, h = gradients.g[rows], gradients.h[rows]
            tables = count(self._codes, range(len(self._codes)), rows, g, h, self._executor)
            parts = [t[: f.bins, :2].T for t, f in zip(tables, self._features, strict=True)]
            sums = np.concatenate([*parts, np.zeros((2, 0), np.int64)], axis=1)
            sums[1] *= self._hessians
            found.append(sums)
        return lambda: found

    def check(self, sums: Integers, g: int, h: int) -> None:
        """Own sums need no check."""

    def open(self, splits: Sequence[Split]) -> list[Bools]:
        """Bits from the bins."""
        found = []
        for split in splits:
            at = split.feature - self._first
            found.append(split.left_bins(self._features[at])[self._codes[at]])
        return found

    def finish(self) -> None:
        """No schedule to keep."""
