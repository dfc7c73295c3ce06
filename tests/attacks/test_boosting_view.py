"""What a department sees of boosted trees, and what it could try.

F1, F2, F7 (CRYPTO_REVIEW.md). That an amplified row shows its label where openings are not checked
is run in test_linear_query_attacks.py; here the job refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from federation import wire
from federation.channel import Channel, QueueTransport, in_process
from federation.errors import IntegrityError
from federation.review import EXPOSURE_REFUSES
from federation.tasks import boosting, vertical
from federation.tasks.local import LocalTrees
from federation.tasks.trees_columns import Plain
from federation.tasks.trees_grow import Gradients, Node
from protocols import linear_query, rlwe
from protocols.linear_query import Layout, Query
from protocols.packing import unpack
from protocols.parameters import Q_BITS
from protocols.ring import Q
from tests.federation.trees_data import TreesWorld, make_trees_world


class Tap:
    """A transport that keeps what its owner receives."""

    def __init__(self, inner: QueueTransport) -> None:
        self._inner, self.frames = inner, list[bytes]()

    def send(self, frame: bytes) -> None:
        self._inner.send(frame)

    def receive(self, timeout_s: float) -> bytes:
        frame = self._inner.receive(timeout_s)
        self.frames.append(frame)
        return frame

    def close(self) -> None:
        self._inner.close()


def view(world: TreesWorld, **parameters: object) -> tuple[LocalTrees, list[bytes]]:
    """A run, and what `tax` received from the bank."""
    channels = in_process(["bank", *world.departments])
    inner = channels["tax"]["bank"]._transport
    assert isinstance(inner, QueueTransport)
    tap = Tap(inner)
    channels["tax"]["bank"] = Channel("tax", "bank", tap)
    return world.run(channels=channels, **parameters), tap.frames


def body(frame: bytes) -> bytes:
    size = int.from_bytes(frame[:8], "big")
    return frame[8 + size + 8 + 8 + 8 :]


def kind(frame: bytes) -> str:
    raw = body(frame)
    name: str = json.loads(raw[8 : 8 + int.from_bytes(raw[4:8], "big")])["type"]
    return name


def schedule(frames: list[bytes]) -> list[tuple[str, int]]:
    """Types and sizes; of thresholds the type alone, as they are what the ledger lists."""
    return [(kind(f), 0 if kind(f) == "Thresholds" else len(f)) for f in frames]


def queries(frames: list[bytes], rows: int) -> list[NDArray[np.int64]]:
    asked = [wire.decode(body(frame), Query) for frame in frames if kind(frame) == "Query"]
    return [unpack(query.b, Q_BITS, rows, Q) for query in asked]


@pytest.mark.parametrize("growth", [{}, {"growth": "leaf", "max_leaves": 5}])
def test_other_customers_labels_and_trees_give_frames_of_the_same_sizes_in_the_same_order(
    growth: dict[str, object],
) -> None:
    mine = make_trees_world()
    other = make_trees_world(labels_seed=5, customers_seed=7)
    first, before = view(mine, **growth)
    second, after = view(other, **growth)
    assert [t.splits for t in first.result.model.trees] != [
        t.splits for t in second.result.model.trees
    ]
    assert schedule(before) == schedule(after)


def test_trees_that_end_at_once_look_like_full_ones() -> None:
    world = make_trees_world()
    _, full = view(world)
    stumps, short = view(world, min_gain="1000")
    assert all(tree.leaves == 1 for tree in stumps.result.model.trees)
    assert schedule(full) == schedule(short)


def test_queries_are_uniform_whatever_node_they_ask_for() -> None:
    world = make_trees_world(2048, 1200)
    _, frames = view(world, trees=1, hessians=False, min_cohort=200)
    asked = queries(frames, 2048)
    assert len(asked) == 5
    customers = np.zeros(2048, bool)
    customers[world.bank.positions] = True
    for b in asked:  # the last ones are padding, v = 0
        # 16 classes of 128 rows; a false alarm in one of a million queries.
        assert stats.chisquare(np.bincount(b * 16 // Q, minlength=16)).pvalue > 1e-6
        assert stats.ks_2samp(b[customers] / Q, b[~customers] / Q).pvalue > 1e-6


def centre(x: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(2 * (x % Q) > Q, x % Q - Q, x % Q)


class Amplifier(linear_query.Department):
    """Counts the first customer's row a thousand times more: into one bin, and out of the next."""

    factor = 1000
    victim = 0

    def prepare(self) -> None:
        if self._hint is not None:
            return
        super().prepare()
        assert self._hint is not None
        rows = self.layout.rows
        column = np.zeros((1, rows), np.int32)
        column[0, self.victim] = self.factor
        blocks = rlwe.transformed_blocks(rlwe.public_blocks(self._coins, rows, None), None)
        layout = Layout(rows, (), (self.factor,))
        shift = rlwe.hint(layout, np.zeros((0, rows), np.uint8), column, blocks, None)[0]
        self._hint[0] = centre(self._hint[0] + shift)
        self._hint[1] = centre(self._hint[1] - shift)

    def _sums(self, b: NDArray[np.int64]) -> NDArray[np.int64]:
        out = super()._sums(b)
        shift = self.factor * int(b[self.victim])
        out[0], out[1] = (int(out[0]) + shift) % Q, (int(out[1]) - shift) % Q
        return out


def test_a_department_that_amplifies_a_customers_row_ends_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_trees_world()
    monkeypatch.setattr(vertical.linear_query, "Department", Amplifier)
    monkeypatch.setattr(Amplifier, "victim", int(world.bank.positions[0]))
    with pytest.raises(IntegrityError, match=r"tax: column . is beyond what its rows allow"):
        world.run(hold_out="0.0")


def test_amplifying_another_row_changes_nothing_and_shows_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_trees_world()
    outside = np.setdiff1d(np.arange(world.bank.cover_rows), world.bank.positions)
    honest, before = view(world)
    monkeypatch.setattr(vertical.linear_query, "Department", Amplifier)
    monkeypatch.setattr(Amplifier, "victim", int(outside[0]))
    run, after = view(world)
    np.testing.assert_array_equal(run.result.margins, honest.result.margins)
    assert schedule(before) == schedule(after)


def test_offers_stay_within_the_budget_of_openings() -> None:
    """What more openings would show: test_exposure_attack.py."""
    parameters = make_trees_world().manifest(trees=200).trees
    for offer in boosting.offers(parameters, 10_000):
        assert offer.exposure <= EXPOSURE_REFUSES


def named_by_their_sums(customers: int, bins: int = 20) -> float:
    """Share of a node's bins of one or two customers whose members follow from g and h alone."""
    rng = np.random.default_rng(2)
    g, h = rng.integers(-511, 512, customers), rng.integers(1, 512, customers)
    of = rng.integers(0, bins, customers)
    sums = {(int(g[i]), int(h[i])): {(i,)} for i in range(customers)}
    for i in range(customers):
        for j in range(i):
            sums.setdefault((int(g[i] + g[j]), int(h[i] + h[j])), set()).add((j, i))
    small = [tuple(np.flatnonzero(of == c)) for c in range(bins) if 1 <= (of == c).sum() <= 2]
    found = [sums[int(g[list(m)].sum()), int(h[list(m)].sum())] == {m} for m in small]
    return sum(found) / bins


def test_sums_of_a_small_node_name_its_customers_so_departments_are_not_asked_about_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert named_by_their_sums(40) > 0.4
    assert named_by_their_sums(200) == 0.0
    asked, ask = list[int](), Plain.ask

    def watch(self: Plain, gradients: Gradients, nodes: Sequence[Node]) -> object:
        asked.extend(node.customers for node in nodes)
        return ask(self, gradients, nodes)

    monkeypatch.setattr(Plain, "ask", watch)
    world = make_trees_world(3000, 2400)
    fitted = world.pooled(trees=3, max_depth=5, ask_customers=200).fitted
    assert min(asked) >= 200
    assert len(asked) < sum(len(t.splits) for t in fitted.trees) // 2
    smaller = [
        min(tree.customers[tree.left[at]], tree.customers[tree.right[at]])
        for tree in fitted.trees
        for at, split in enumerate(tree.splits)
        if split
    ]
    assert min(smaller) < 200
