"""The report on boosted trees: what it says follows from the run, and shows nobody's own row."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import plotly.graph_objects as go
import pytest

from federation import tree_plots, trees_facts
from federation.report import Report, render_html, report_json, report_of_trees
from federation.tasks.local import LocalTrees
from federation.tasks.trees_fit import Tree
from federation.tasks.trees_model import TreesModel
from tests.federation.test_report import Page
from tests.federation.trees_data import TreesWorld, make_trees_world

SETTINGS: dict[str, object] = {"trees": 4, "min_cohort": 10, "validation": "0.2", "patience": 3}


@cache
def ran() -> tuple[TreesWorld, LocalTrees]:
    world = make_trees_world(departments=2)
    return world, world.run(**SETTINGS)


@cache
def report() -> Report:
    world, run = ran()
    return report_of_trees(
        run.result,
        world.bank,
        world.manifest(**SETTINGS),
        created="2026-11-23T12:00:00Z",
        pooled=run.result.margins,
        is_lab=True,
    )


def facts() -> trees_facts.TreesFacts:
    found = report().trees
    assert found is not None
    return found


def test_shares_of_gain_are_of_the_model_and_add_up() -> None:
    world, run = ran()
    assert sum(facts().owners.values()) == pytest.approx(1)
    assert sum(item.gain for item in facts().importance) == pytest.approx(1)
    assert sum(item.gain for item in facts().shapes) == pytest.approx(1)
    splits = sum(split is not None for tree in run.result.model.trees for split in tree.splits)
    assert sum(item.splits for item in facts().importance) == splits
    assert sum(sum(item.splits.values()) for item in facts().shapes) == splits
    assert sum(item.leaves for item in facts().leaves) == sum(t.leaves for t in facts().shapes)
    assert set(facts().owners) == {"bank", *world.departments}


def test_the_learning_curve_is_that_of_the_models_first_trees() -> None:
    world, run = ran()
    model, test = run.result.model, run.result.test
    assert [item.trees for item in facts().learning] == list(range(len(model.trees) + 1))
    goes_left = model.by_columns(world.columns)
    margins = np.full(world.bank.customers, model.base)
    for tree in model.trees[:2]:
        margins = margins + tree.values[tree.leaf_of(goes_left, len(margins))]
    p = 1 / (1 + np.exp(-margins[test] / 4096))
    bad = run.result.labels[test]
    loss = -np.mean(np.where(bad > 0, np.log(p), np.log(1 - p)))
    assert facts().learning[2].test == pytest.approx(loss)
    last = run.result.history[len(model.trees) - 1]  # the fit's own, in steps of 2^-20
    assert facts().learning[-1].train == pytest.approx(last.train, abs=1e-5)
    assert last.validation is not None
    assert facts().learning[-1].validation == pytest.approx(last.validation, abs=1e-5)
    quality = report().assessment
    assert quality is not None
    assert facts().learning[-1].auc == pytest.approx(quality.joint.auc.value, abs=0.01)


def test_every_open_threshold_is_listed_in_words_and_no_other() -> None:
    _, run = ran()
    said = {(item.owner, f"{item.feature} {item.goes_left}") for item in facts().thresholds}
    theirs = {(org, f"{n} {w}") for org, part in run.parts.items() for n, w in part.describe()}
    assert said == theirs
    assert facts().bits_a_customer == {org: len(p.thresholds) for org, p in run.parts.items()}


def test_typical_decisions_add_up_and_are_means_over_a_cohort() -> None:
    world, run = ran()
    low = {item.name: item.points for item in facts().typical}
    assert low["High risk"] < low["Middle"] < low["Low risk"]
    for case in facts().typical:
        assert case.customers >= world.manifest(**SETTINGS).trees.min_cohort
        total = case.start + sum(part.points for part in case.parts) + case.others
        assert case.points == pytest.approx(total)
        worst = min(case.parts, key=lambda part: part.points)
        assert (case.reasons[0] == worst.name) if worst.points < 0 else not case.reasons
    scores = run.result.model.points(run.result.margins[run.result.test])
    ranked = np.sort(scores)
    assert low["High risk"] == pytest.approx(ranked[: len(ranked) // 5].mean(), abs=25)
    assert case.start == pytest.approx(report().intercept)


def expected_by_hand(tree: Tree, at: int, leaf_of: np.ndarray) -> float:
    """Mean leaf over the customers at or below a node, by following children one by one."""
    leaves, todo = [], [at]
    while todo:
        node = todo.pop()
        if tree.splits[node] is None:
            leaves.append(node)
        else:
            todo += [int(tree.left[node]), int(tree.right[node])]
    counts = np.array([(leaf_of == leaf).sum() for leaf in leaves])
    return float((counts * tree.values[leaves]).sum() / max(counts.sum(), 1))


def contributions_by_hand(
    model: TreesModel, world: TreesWorld, train: np.ndarray, row: int
) -> np.ndarray:
    goes_left = model.by_columns(world.columns)
    total = np.zeros(len(model.features))
    for tree in model.trees:
        leaf_of = tree.leaf_of(goes_left, len(train))[train]
        at, here = 0, expected_by_hand(tree, 0, leaf_of)
        while (split := tree.splits[at]) is not None:
            at = int(tree.left[at] if goes_left(split)[row] else tree.right[at])
            there = expected_by_hand(tree, at, leaf_of)
            total[split.feature] += there - here
            here = there
    return total


def test_reason_codes_are_path_contributions_counted_by_hand() -> None:
    """From what the bank has: its columns, opened bits, and its customers' leaves."""
    world, run = ran()
    result = run.result
    train = ~(result.test | result.validation)
    own = {("bank", column.name): column for column in world.bank.columns}
    told = result.model.by_bits(own, result.bits)
    fast = result.model.contributions(told, world.bank.customers)
    depth = max(tree.depth for tree in result.model.trees)
    for row in (0, 17, 101, 359):
        slow = contributions_by_hand(result.model, world, train, row)
        # each node's mean is rounded to a step of 2^-12, and so are those it is made of
        np.testing.assert_allclose(fast[row], slow, atol=(depth + 1) * len(result.model.trees))
        reasons = result.model.reason_codes(fast[row : row + 1], 3)[0]
        by_hand = [result.model.features[i].name for i in np.argsort(-slow)[:3] if slow[i] > 16]
        assert list(reasons[: len(by_hand)]) == by_hand


def test_the_page_is_whole_and_says_what_the_figures_say() -> None:
    world, _ = ran()
    html = render_html(report())
    page = Page(html)
    for text in ("Joint boosted trees", "Learning curve", "Thresholds", "Typical decisions"):
        assert text in page.text
    for org in world.departments:
        assert org in page.text
    assert "far_00" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    drawn = json.loads(next(s for s in page.scripts if s.startswith('{"')))
    assert set(drawn) <= set(ids)
    assert {"importance", "losses", "aucs", "leaves", "roc", "calibration"} <= set(drawn)
    for tag, attributes in page.tags:
        assert "src" not in attributes, tag
        assert not (attributes.get("href") or "#").startswith("http")
    assert not any(code in html for code in world.bank.codes.astype(str)[:50])


@pytest.mark.parametrize("name", ["importance", "losses", "aucs", "leaves"])
def test_every_figure_is_valid_and_has_data(name: str) -> None:
    drawn = tree_plots.figures(report(), facts())[name]
    figure = go.Figure(drawn)
    assert any(len(trace.y) for trace in figure.data)
    assert figure.layout.xaxis.title.text


def test_the_json_has_the_same_figures_and_no_nan() -> None:
    body = json.loads(json.dumps(report_json(report()), allow_nan=False))
    assert body["task"] == "trees"
    assert body["trees"] == facts().kept
    assert body["thresholds"] == dict(facts().bits_a_customer)
    assert body["exposure"] == pytest.approx(report().exposure.value)
    assert len(body["report"]["trees"]["learning"]) == facts().kept + 1
    assert not math.isnan(body["joint"]["auc"])


def test_without_a_hold_out_the_page_claims_nothing() -> None:
    world = make_trees_world(departments=1)
    manifest = world.manifest(hold_out="0.0")
    result = world.run(manifest).result
    made = report_of_trees(result, world.bank, manifest, created="2026-11-23T12:00:00Z")
    page = Page(render_html(made))
    assert "No customers of both kinds were held out" in page.text
    assert report_json(made)["joint"] is None
