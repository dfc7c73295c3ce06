"""A scorecard over several owners' columns is the pooled one, and shows what it said it would."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from federation.errors import LianmoError, Refused, UsageError
from federation.ledger import What
from federation.objects import ScorecardParameters
from federation.tables import NumberColumn
from federation.tasks import fit, scorecard
from federation.tasks.binning import WOE_STEP
from federation.tasks.fit import fit_logistic, probability, quantise, solve
from federation.tasks.local import LocalScorecard
from federation.tasks.model import pooled_columns
from federation.tasks.plan import plan_of
from protocols.streams import Stream
from tests.federation.scorecard_data import SUMS_ONLY, World, make_world

BANK = "bank"


def auc(run: LocalScorecard, scores: NDArray[np.generic]) -> float:
    """Over all customers: small tests have too few test rows to compare on."""
    return float(roc_auc_score(run.result.labels == 0, scores))


def pooled(world: World, run: LocalScorecard) -> scorecard.PooledFit:
    parameters = world.manifest().parameters
    return scorecard.fit_pooled(run.result, BANK, world.bank, world.departments, parameters)


def points(world: World, run: LocalScorecard) -> NDArray[np.int64]:
    columns = pooled_columns(BANK, world.bank, world.departments)
    return run.result.model.score(columns, world.bank.customers)


@pytest.fixture(scope="module")
def opened() -> tuple[World, LocalScorecard]:
    world = make_world(rows=1000, customers=900)
    return world, world.run(openings=2)


# --- federated = pooled ---------------------------------------------------------------------------


def test_with_openings_the_scorecard_is_the_pooled_one(
    opened: tuple[World, LocalScorecard],
) -> None:
    world, run = opened
    best = pooled(world, run)
    # 0.003 is what two opened scores, rounded to a quarter of a logit, leave on 630 customers.
    assert auc(run, points(world, run)) == pytest.approx(auc(run, best.log_odds), abs=0.003)
    assert auc(run, points(world, run)) > auc(run, run.result.alone_scores) + 0.02


def test_without_openings_the_scorecard_is_near_the_pooled_one() -> None:
    world = make_world(rows=3000, customers=2500, departments=3)
    run = world.run(**SUMS_ONLY)
    best = pooled(world, run)
    # One step from the bank's own fit, which is 0.13 away, with 440 bads for 17 features.
    assert auc(run, points(world, run)) == pytest.approx(auc(run, best.log_odds), abs=0.015)
    assert auc(run, points(world, run)) > auc(run, run.result.alone_scores) + 0.1
    assert run.result.scores is None
    assert run.result.openings == ()


def test_opened_points_are_those_of_the_model(opened: tuple[World, LocalScorecard]) -> None:
    world, run = opened
    np.testing.assert_array_equal(run.result.scores, points(world, run))


def test_bins_hold_the_training_customers(opened: tuple[World, LocalScorecard]) -> None:
    world, run = opened
    columns = pooled_columns(BANK, world.bank, world.departments)
    train = ~run.result.test
    for feature in run.result.model.features:
        column = columns[feature.owner, feature.name]
        of_row = feature.groups.of_bin[feature.definition.assign(column)][train]
        bads = world.bank.labels[train] == 1
        counts = np.bincount(of_row, minlength=len(feature.bins))
        assert [item.customers for item in feature.bins] == counts.tolist()
        bad_counts = np.bincount(of_row[bads], minlength=len(feature.bins))
        assert [item.bads for item in feature.bins] == bad_counts.tolist()


def test_a_duplicate_shares_its_weight_and_a_constant_drops_out(
    opened: tuple[World, LocalScorecard],
) -> None:
    _, run = opened
    notes = " ".join(run.result.notes)
    for org in ("dept_0", "dept_1"):
        by_name = {feature.name: feature for feature in run.result.model.of(org)}
        assert not by_name["constant"].is_used
        assert f"{org}/constant: left out" in notes
        twins = by_name["unknown"].coefficient, by_name["again"].coefficient
        assert abs(twins[0] - twins[1]) < 0.1


def test_each_department_holds_its_own_part(opened: tuple[World, LocalScorecard]) -> None:
    _, run = opened
    for org, part in run.parts.items():
        assert part.org == org
        for mine, theirs in zip(part.features, run.result.model.of(org), strict=True):
            assert mine.definition.name == theirs.name
            np.testing.assert_array_equal(mine.points, theirs.points_of_bins())


def test_one_department_is_enough() -> None:
    world = make_world(rows=900, customers=800, departments=1)
    run = world.run(openings=1)
    assert auc(run, run.result.scores) > auc(run, run.result.alone_scores)


def test_a_bank_without_features_can_ask() -> None:
    world = make_world(rows=1500, customers=1200, own=0)
    run = world.run(**SUMS_ONLY)
    assert (run.result.alone_scores == run.result.alone_scores[0]).all()
    assert auc(run, points(world, run)) > 0.7


def test_a_department_that_knows_nothing_drops_out() -> None:
    world = make_world(rows=1500, customers=1200)
    data = world.departments["dept_1"]
    nothing = [NumberColumn(c.name, np.full(1500, np.nan)) for c in data.columns]
    departments = world.departments | {"dept_1": dataclasses.replace(data, columns=nothing)}
    run = World(world.bank, departments).run(**SUMS_ONLY)
    assert not any(feature.is_used for feature in run.result.model.of("dept_1"))
    assert any(feature.is_used for feature in run.result.model.of("dept_0"))


def test_rows_sorted_by_class_change_nothing_that_matters() -> None:
    world = make_world(rows=1500, customers=1500)
    order = np.argsort(world.bank.labels, kind="stable").astype(np.int64)
    bank = dataclasses.replace(
        world.bank,
        labels=world.bank.labels[order],
        columns=[column.take(order) for column in world.bank.columns],
    )
    departments = {
        org: dataclasses.replace(data, columns=[column.take(order) for column in data.columns])
        for org, data in world.departments.items()
    }
    turned = World(bank, departments)
    a, b = world.run(**SUMS_ONLY), turned.run(**SUMS_ONLY)
    assert auc(a, points(world, a)) == pytest.approx(auc(b, points(turned, b)), abs=0.02)


def test_many_features_are_correlated_by_their_owner_instead_of_in_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("federation.tasks.plan.PAIR_ENTRIES_MAX", 10)
    world = make_world()
    run = world.run(**SUMS_ONLY)
    best = pooled(world, run)
    assert auc(run, points(world, run)) == pytest.approx(auc(run, best.log_odds), abs=0.015)


# --- customers that carry no model ----------------------------------------------------------------


@pytest.mark.parametrize("bads", [0, 15])
def test_too_few_bads_are_refused_before_anything_is_asked(bads: int) -> None:
    world = make_world()
    labels = np.zeros_like(world.bank.labels)
    labels[:bads] = 1
    bank = dataclasses.replace(world.bank, labels=labels)
    with pytest.raises(UsageError, match="good or bad customers"):
        World(bank, world.departments).run(**SUMS_ONLY)


def test_a_manifest_with_other_figures_is_refused() -> None:
    world = make_world()
    manifest = world.manifest(**SUMS_ONLY)
    more = manifest.limits.model_copy(update={"tokens": manifest.limits.tokens + 1})
    with pytest.raises(Refused, match="do not follow"):
        world.run(manifest.model_copy(update={"limits": more}))


def test_a_given_hold_out_is_used() -> None:
    world = make_world()
    test = np.arange(world.bank.customers) % 3 == 0
    bank = dataclasses.replace(world.bank, test=test)
    run = World(bank, world.departments).run(**SUMS_ONLY)
    np.testing.assert_array_equal(run.result.test, test)
    feature = next(f for f in run.result.model.features if f.is_used)
    assert sum(item.customers for item in feature.bins) == int((~test).sum())


# --- replay ---------------------------------------------------------------------------------------


def transcripts(run: LocalScorecard) -> dict[tuple[str, str], bytes]:
    return {
        (org, peer): item.sent_digest
        for org, peers in run.traffic.items()
        for peer, item in peers.items()
    }


def test_equal_seeds_and_data_send_equal_bytes() -> None:
    world = make_world(rows=700, customers=600)
    first, again = world.run(openings=1), world.run(openings=1)
    assert transcripts(first) == transcripts(again)
    assert first.result.digest() == again.result.digest()
    other = world.run(openings=1, seed=1)
    assert not transcripts(first).items() & transcripts(other).items()


def test_both_ends_of_a_channel_have_seen_the_same_frames(
    opened: tuple[World, LocalScorecard],
) -> None:
    _, run = opened
    for org, peers in run.traffic.items():
        for peer, item in peers.items():
            assert item.sent_digest == run.traffic[peer][org].received_digest


# --- ledger ---------------------------------------------------------------------------------------


def test_everything_that_happened_was_declared_and_nothing_else_works(
    opened: tuple[World, LocalScorecard],
) -> None:
    world, run = opened
    happened = {
        (item.source, item.to, item.what)
        for ledger in run.ledgers.values()
        for item in ledger.entries()
    }
    manifest = world.manifest(openings=2)
    declared = {(item.source, item.to, item.what) for item in manifest.disclosures}
    assert happened == declared


def test_bank_and_departments_enter_the_same_disclosures(
    opened: tuple[World, LocalScorecard],
) -> None:
    _, run = opened
    mine = set(run.ledgers[BANK].entries())
    for org in run.parts:
        theirs = {item for item in run.ledgers[org].entries() if BANK in (item.source, item.to)}
        assert theirs == {item for item in mine if org in (item.source, item.to)}


@pytest.mark.parametrize(
    "what",
    [
        What.BIN_DEFINITIONS,
        What.BIN_COUNTS,
        What.QUERY_SUMS,
        What.POPULATION_COVARIANCE,
        What.WOE_TABLES,
        What.POINTS_TABLES,
    ],
)
def test_what_is_not_declared_stops_the_job(what: What) -> None:
    world = make_world(rows=700, customers=600)
    manifest = world.manifest(**SUMS_ONLY)
    fewer = tuple(item for item in manifest.disclosures if item.what is not what)
    with pytest.raises(Refused, match=f"undeclared disclosure: {what}"):
        world.run(manifest.model_copy(update={"disclosures": fewer}))


def test_no_entry_shows_the_true_number_of_customers() -> None:
    world = make_world(rows=700, customers=600)
    manifest = world.manifest(openings=0)
    limits = manifest.limits.model_copy(update={"customers_max": 650, "row_keys": 650})
    query, tokens, between = scorecard.plan(
        rows=700,
        customers_max=650,
        bank_fields=3,
        department_fields={"dept_0": 6, "dept_1": 6},
        parameters=manifest.parameters,
    )
    limits = limits.model_copy(update={"tokens": tokens, "tokens_between": between})
    manifest = manifest.model_copy(update={"limits": limits, "query": query})
    manifest = manifest.model_copy(update={"disclosures": scorecard.declare(manifest)})
    run = world.run(manifest)
    for ledger in run.ledgers.values():
        assert all(item.count % 600 for item in ledger.entries())


# --- plan -----------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_plan(opened: tuple[World, LocalScorecard]) -> None:
    world, run = opened
    manifest = world.manifest(openings=2)
    made = plan_of(manifest)
    assert run.result.tokens == manifest.limits.tokens == made.tokens
    asked = {item.queried: item.queries for item in made.between}
    for org, part in run.parts.items():
        assert part.tokens == made.tokens + asked.get(org, 0)


def test_asking_goes_on_to_the_end_of_the_schedule_when_opening_has_stopped() -> None:
    world = make_world(rows=600, customers=550)
    manifest = world.manifest(openings=8, evaluation=False)
    run = world.run(manifest)
    assert 1 <= len(run.result.openings) < 8
    assert run.result.tokens == manifest.limits.tokens
    assert all(part.openings == len(run.result.openings) for part in run.parts.values())
    customers = manifest.limits.customers_max
    for ledger in run.ledgers.values():
        for item in ledger.entries():
            if item.what is What.SCORE_OPENING:
                assert item.count == customers * len(run.result.openings)


def test_a_large_job_has_safe_parameters() -> None:
    query, tokens, _ = scorecard.plan(
        rows=1_000_000,
        customers_max=100_000,
        bank_fields=20,
        department_fields={"tax": 20, "court": 20, "utilities": 40},
        parameters=ScorecardParameters(),
    )
    assert query.vmax >= 255
    assert tokens < 60


def test_figures_that_no_parameters_serve_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no safe parameters"):
        scorecard.plan(
            rows=1 << 30,
            customers_max=1 << 30,
            bank_fields=20,
            department_fields={"tax": 20},
            parameters=ScorecardParameters(),
        )


# --- numerics -------------------------------------------------------------------------------------


def test_the_fit_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    steps = rng.integers(-40, 40, (800, 4)).astype(np.float64)
    odds = steps @ np.array([0.03, -0.01, 0.02, 0.0]) + 1
    goods = rng.random(800) < 1 / (1 + np.exp(-odds))
    ours = fit_logistic(steps, np.full(4, WOE_STEP), goods, 2.0 * np.eye(4))
    theirs = LogisticRegression(C=1 / 2.0, tol=1e-10).fit(steps * WOE_STEP, goods)
    # Coefficients are rounded to 2^-20 of a logit a step, scores to 2^-12.
    np.testing.assert_allclose(ours.coefficients, theirs.coef_[0], atol=2e-4)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], abs=2e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_the_same_bit_for_bit_in_any_order_of_rows(seed: int) -> None:
    """What a threaded library adds up in another order must not change what a replay sends."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(-63, 64, (2000, 5)).astype(np.float64)
    goods = rng.random(2000) < 1 / (1 + np.exp(-steps @ rng.normal(size=5) * 0.03))
    order = rng.permutation(2000)
    first = fit_logistic(steps, np.full(5, WOE_STEP), goods, np.eye(5))
    again = fit_logistic(steps[order], np.full(5, WOE_STEP), goods[order], np.eye(5))
    assert first.coefficients.tobytes() == again.coefficients.tobytes()
    np.testing.assert_array_equal(first.scores[order], again.scores)


def test_no_probability_hangs_on_the_last_bit_of_exp() -> None:
    at = np.arange(-fit.SCORE_LIMIT << fit.SCORE_BITS, (fit.SCORE_LIMIT << fit.SCORE_BITS) + 1)
    exact = 2.0**fit.P_BITS / (1.0 + np.exp(-at / 2.0**fit.SCORE_BITS))
    middle = at != 0  # one half is exact
    # exp is right to a few units in 2^-53; of 2^24 these are some 1e-9.
    assert np.abs(exact[middle] % 1 - 0.5).min() > 1e-7
    assert probability(np.array([0])).tolist() == [1 << (fit.P_BITS - 1)]
    assert probability(np.array([1 << 40])).item() < 1 << fit.P_BITS


@pytest.mark.parametrize("denominator", [1, 3, 63, 1 << 24, 63 << 24])
def test_rounding_is_right_on_average(denominator: int) -> None:
    values = np.full(40_000, denominator * 2 + denominator // 3, np.int64)
    rounded = quantise(values, denominator, Stream(bytes(32)))
    share = (denominator // 3) / denominator
    assert set(rounded.tolist()) <= {2, 3}
    assert rounded.mean() == pytest.approx(2 + share, abs=4 * math.sqrt(0.25 / 40_000))


def test_solve_refuses_what_is_not_positive_definite() -> None:
    assert solve(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2)) is None
    matrix = np.array([[4.0, 1.0], [1.0, 3.0]])
    found = solve(matrix, np.array([1.0, 2.0]))
    assert found is not None
    np.testing.assert_allclose(matrix @ found, [1.0, 2.0])


def test_reasons_name_the_costliest_features(opened: tuple[World, LocalScorecard]) -> None:
    world, run = opened
    model = run.result.model
    used = [feature for feature in model.of(BANK) if feature.is_used]
    rows = {f.name: f.points_of(c) for f, c in zip(used, world.bank.columns, strict=False)}
    reasons = scorecard.reason_codes(model, rows, 2)
    assert len(reasons) == world.bank.customers
    assert all(len(set(row)) == len(row) <= 2 for row in reasons)
    worst = min(range(len(reasons)), key=lambda i: sum(v[i] for v in rows.values()))
    assert reasons[worst]


def test_labels_and_codes_are_in_no_repr(opened: tuple[World, LocalScorecard]) -> None:
    world, run = opened
    text = repr(run.result) + repr(run.parts) + repr(world.bank)
    assert "scores=array" not in text
    assert world.bank.codes[0].decode() not in text


def test_errors_name_party_and_stage() -> None:
    world = make_world(rows=700, customers=600)
    manifest = world.manifest(**SUMS_ONLY)
    fewer = tuple(item for item in manifest.disclosures if item.what is not What.WOE_TABLES)
    with pytest.raises(LianmoError) as caught:
        world.run(manifest.model_copy(update={"disclosures": fewer}))
    assert caught.value.party == BANK
