"""Growth of trees in the clear: every rule of a split holds in every tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from federation.objects import TreesParameters
from federation.tables import BankData, NumberColumn
from federation.tasks import boosting
from federation.tasks.trees_columns import Columns, Plain
from federation.tasks.trees_grow import Feature, Gradients, Grid, Node, Rules, Split, choose_split
from federation.warm import warm
from protocols.streams import Randomness
from tests.federation.trees_data import bad_rate_by, make_trees_world

ROWS = 2000
RULES = Rules(3, 8, False, 1.0, 0.0, 5, 0.0)
FEATURES = (
    Feature("bank", "a", 5, True, missing=4),
    Feature("bank", "b", 3, False),
    Feature("tax", "c", 4, True),
    Feature("tax", "d", 6, True, missing=5, direction=1),
)


def gradients_of(rng: np.random.Generator, rows: int, active: float = 1.0) -> Gradients:
    part = rng.random(rows) < active
    g = np.where(part, rng.integers(-500, 501, rows), 0).astype(np.int64)
    h = np.where(part, rng.integers(1, 500, rows), 0).astype(np.int64)
    return Gradients(g, h, part, 1 / 500, 1 / 2000, g, h, 1 / 500)


def columns_of(codes: np.ndarray, *, hessians: bool = True, cap: int = 50) -> Columns:
    own, theirs = codes[:2], codes[2:]
    counts = [
        np.bincount(column, minlength=f.bins)
        for column, f in zip(theirs, FEATURES[2:], strict=True)
    ]
    plain = Plain(2, FEATURES[2:], theirs, hessians=hessians)
    total = np.concatenate(counts).astype(np.int64)
    return Columns(FEATURES[:2], own, plain, FEATURES[2:], total, cap=cap, hessians=hessians)


def root_of(gradients: Gradients) -> Node:
    rows = np.arange(len(gradients.g), dtype=np.int64)
    g, h, customers, _, _ = gradients.totals(rows).tolist()
    return Node(rows, 0, 0, g, h, customers, 0.0)


def draw_codes(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.stack([rng.integers(0, f.bins, rows) for f in FEATURES]).astype(np.uint8)


@given(seed=st.integers(0, 10**6), rows=st.integers(20, 300))
@settings(max_examples=25, deadline=None)
def test_the_chosen_split_is_the_best_of_all_tried_one_by_one(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    codes, gradients = draw_codes(rng, rows), gradients_of(rng, rows)
    columns, root = columns_of(codes), root_of(gradients)
    columns.start(gradients, np.ones(4, bool), True)
    (root.sums,) = columns.sums([root])
    g, h = gradients.g * gradients.g_step, gradients.h * gradients.h_step

    def part(rows: np.ndarray) -> tuple[float, float]:
        weight = -g[rows].sum() / (h[rows].sum() + RULES.l2)
        return weight, g[rows].sum() ** 2 / (h[rows].sum() + RULES.l2)

    best, everybody = 0.0, np.ones(rows, bool)
    for f, feature in enumerate(FEATURES):
        for cut in range(feature.bins):
            for side in (False, True):
                split = Split(f, cut, side)
                if not split.is_possible(feature):
                    continue
                left = split.left_bins(feature)[codes[f]]
                if min(left.sum(), (~left).sum()) < RULES.min_cohort:
                    continue
                (wl, gain_l), (wr, gain_r) = part(left), part(~left)
                if feature.direction * (wr - wl) < 0:
                    continue
                best = max(best, (gain_l + gain_r - part(everybody)[1]) / 2)
    # Exact counts are known of own features; a department's are estimated, so leave them out.
    free = Rules(3, 8, False, 1.0, 0.0, 0, 0.0)
    found = choose_split(
        root,
        columns.candidates(root),
        columns.grid,
        columns.allowed(),
        columns.known(),
        gradients,
        free,
    )
    if best > 1e-6:
        assert found is not None
        assert found.gain >= best - 1e-9


def test_every_way_to_split_bins_has_one_name() -> None:
    for feature in (*FEATURES, Feature("tax", "two", 2, False), Feature("tax", "one", 1, True)):
        seen = set()
        for cut in range(feature.bins):
            for side in (False, True):
                split = Split(0, cut, side)
                if split.is_possible(feature):
                    left = split.left_bins(feature)
                    assert left.any()
                    assert not left.all()
                    key = min(left.tobytes(), (~left).tobytes())
                    assert key not in seen
                    seen.add(key)


def test_what_is_open_is_known_exactly_without_asking() -> None:
    rng = np.random.default_rng(3)
    codes, gradients = draw_codes(rng, ROWS), gradients_of(rng, ROWS, 0.8)
    columns = columns_of(codes, hessians=False)
    columns.start(gradients, np.ones(4, bool), True)
    splits = [Split(2, 1), Split(3, 2, True), Split(3, 0)]
    for split in splits:
        columns.open([split])
    columns.start(gradients, np.ones(4, bool), False)
    node = root_of(gradients)
    (node.sums,) = columns.sums([node])
    found = columns.candidates(node)
    allowed = columns.allowed()
    assert allowed[2:].sum() == len(splits)
    for split in splits:
        left = split.left_bins(FEATURES[split.feature])[codes[split.feature]] & gradients.active
        exact = gradients.g[left].sum(), gradients.h[left].sum(), left.sum()
        at = split.feature, split.cut, int(split.missing_left)
        np.testing.assert_allclose(found[(slice(None), *at)], exact, atol=1e-6)


def test_a_feature_at_its_cap_has_its_open_thresholds_only() -> None:
    rng = np.random.default_rng(4)
    columns = columns_of(draw_codes(rng, ROWS), cap=2)
    columns.start(gradients_of(rng, ROWS), np.ones(4, bool), True)
    columns.open([Split(3, 1)])
    assert columns.allowed()[3].sum() == columns.grid.valid[3].sum()
    assert columns.allowed([Split(3, 2)])[3].sum() == 2
    columns.open([Split(3, 2)])
    assert columns.allowed()[3].sum() == 2
    assert columns.allowed()[2].sum() == columns.grid.valid[2].sum()


def test_left_sums_are_sums_over_the_left_bins() -> None:
    grid = Grid(FEATURES)
    sums = np.random.default_rng(5).integers(-9, 9, (3, grid.columns)).astype(float)
    left = grid.left(sums)
    for f, feature in enumerate(FEATURES):
        for cut, side in np.argwhere(grid.valid[f]):
            bins = Split(f, int(cut), bool(side)).left_bins(feature)
            start, stop = grid.starts[f : f + 2]
            expected = sums[:, start:stop][:, bins].sum(axis=1)
            np.testing.assert_allclose(left[:, f, cut, side], expected)


# --- whole models ---------------------------------------------------------------------------------


def fit(x: np.ndarray, bad: np.ndarray, **parameters: object) -> boosting.PooledTrees:
    columns = [NumberColumn(f"x{i}", x[:, i]) for i in range(x.shape[1])]
    codes = np.array([f"{i:018d}" for i in range(len(x))], "S18")
    bank = BankData(len(x), np.arange(len(x)), codes, columns, bad.astype(np.uint8))
    made = TreesParameters.model_validate({"trees": 10, "min_cohort": 20, **parameters})
    validation = np.zeros(len(x), bool)
    if float(made.validation):
        validation[::4] = True
    return boosting.fit_pooled(
        "bank",
        bank,
        {},
        made,
        train=~validation,
        validation=validation,
        randomness=Randomness(bytes(32), b"job", 0),
    )


def wavy(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Risk that rises with x0, but not everywhere; x1 matters where it is missing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 3))
    margin = x[:, 0] + 1.5 * np.sin(4 * x[:, 0]) - 0.5
    gone = rng.random(ROWS) < 0.2
    bad = rng.random(ROWS) < 1 / (1 + np.exp(-margin - 2.0 * gone))
    x[gone, 1] = np.nan
    return x, bad


@pytest.mark.parametrize("growth", ["depth", "leaf"])
def test_no_leaf_is_smaller_than_the_cohort_and_no_tree_larger_than_allowed(growth: str) -> None:
    x, bad = wavy()
    found = fit(x, bad, growth=growth, max_depth=4, max_leaves=7, min_cohort=60)
    for tree in found.fitted.trees:
        leaves = [n for n, split in zip(tree.customers, tree.splits, strict=True) if split is None]
        assert min(leaves) >= 60
        assert sum(leaves) == ROWS
        assert tree.depth <= 4
        assert tree.leaves <= (7 if growth == "leaf" else 16)


def test_losses_fall_and_missing_goes_to_the_better_side() -> None:
    x, bad = wavy()
    found = fit(x, bad)
    losses = [step.train for step in found.fitted.history]
    assert losses == sorted(losses, reverse=True)
    p = 1 / (1 + np.exp(-found.margins / 4096))
    assert losses[-1] == pytest.approx(log_loss(bad, p), abs=1e-4)
    gone = np.isnan(x[:, 1])
    assert found.margins[gone].mean() > found.margins[~gone].mean() + 4096


@pytest.mark.parametrize("name", ["increasing", "decreasing"])
def test_a_monotone_feature_moves_the_risk_one_way_only(name: str) -> None:
    x, bad = wavy()
    x[:, 1:] = 0.0
    sign = 1 if name == "increasing" else -1
    x[:, 0] *= sign
    free = fit(x, bad, trees=20)
    assert (np.diff(bad_rate_by(sign * x[:, 0], free.margins)) < 0).any()
    bound = fit(x, bad, trees=20, **{name: ("x0",)})
    order = np.argsort(sign * x[:, 0])
    assert (np.diff(bound.margins[order]) >= 0).all()


def test_early_stopping_keeps_the_best_trees_and_watches_the_held_out_part_alone() -> None:
    x, bad = wavy()
    noise = np.random.default_rng(1).permutation(bad)
    found = fit(x, noise, trees=40, validation="0.25", patience=2)
    assert len(found.fitted.trees) < 10
    assert len(found.fitted.history) == len(found.fitted.trees) + 2
    tried = [step.validation for step in found.fitted.history]
    assert len(found.fitted.trees) in (0, int(np.argmin(tried)) + 1)


def test_a_heavier_class_raises_the_risk_of_everybody() -> None:
    x, bad = wavy()
    light, heavy = fit(x, bad), fit(x, bad, bad_weight="4")
    assert heavy.margins.mean() > light.margins.mean() + 2000


def test_the_same_seed_grows_the_same_trees_and_sampling_is_of_the_seed() -> None:
    x, bad = wavy()
    part = {"row_sample": "0.5", "feature_sample": "0.4"}
    first, again = fit(x, bad, **part), fit(x, bad, **part)
    np.testing.assert_array_equal(first.margins, again.margins)
    assert {int(t.customers[0]) for t in first.fitted.trees} == {ROWS // 2}
    used = [{s.feature for s in tree.splits if s} for tree in first.fitted.trees]
    assert max(map(len, used)) == 1
    assert len(set.union(*used)) > 1


def test_later_trees_grow_on_what_is_open_and_ask_nobody() -> None:
    world = make_trees_world()
    few = world.pooled(trees=12, joint_trees=2)
    none = world.pooled(trees=2)
    assert [step.asked for step in few.fitted.history] == [True] * 2 + [False] * 10
    assert few.fitted.history[-1].train < none.fitted.history[-1].train - 0.02
    early = {s for tree in few.fitted.trees[:2] for s in tree.splits if s and s.feature >= 3}
    late = {s for tree in few.fitted.trees[2:] for s in tree.splits if s and s.feature >= 3}
    assert late
    assert late <= early


def test_warming_compiles_all_that_trees_need() -> None:
    from federation.tasks import binning, trees_columns, trees_grow, vertical

    def variants() -> dict[str, int]:
        return {
            f"{module.__name__}.{name}": len(thing.signatures)
            for module in (binning, trees_columns, trees_grow, vertical)
            for name, thing in vars(module).items()
            if hasattr(thing, "signatures")
        }

    warm()
    before = variants()
    assert sum(before.values()) >= 7  # one is called by another kernel alone
    world = make_trees_world()
    world.run(trees=2)
    world.run(trees=1, growth="leaf", hessians=False)
    assert variants() == before
