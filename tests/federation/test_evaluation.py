"""The measures agree with scikit-learn and with slow, obvious second implementations."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from federation import evaluation
from federation.evaluation import plain

FloatArray = NDArray[np.float64]


def sample(
    rows: int = 400, seed: int = 1, levels: int = 40
) -> tuple[NDArray[np.int64], FloatArray]:
    """Labels and a tied, informative score."""
    rng = np.random.default_rng(seed)
    bad = (rng.random(rows) < 0.25).astype(np.int64)
    return bad, np.round(rng.normal(bad * 0.9, 1.0) * levels / 4) / levels


def pairs_auc(bad: NDArray[np.int64], risk: FloatArray) -> float:
    """Share of (bad, good) pairs in the right order, ties count one half."""
    wins = [
        1.0 if b > g else 0.5 if b == g else 0.0
        for b, g in itertools.product(risk[bad == 1], risk[bad == 0])
    ]
    return sum(wins) / len(wins)


def steps_ks(bad: NDArray[np.int64], risk: FloatArray) -> float:
    """The greatest gap of the two classes' shares at or above any threshold."""
    gaps = [
        np.mean(risk[bad == 1] >= cut) - np.mean(risk[bad == 0] >= cut) for cut in np.unique(risk)
    ]
    return float(max(0.0, *gaps))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40).filter(
        lambda rows: len({bad for bad, _ in rows}) == 2
    )
)
def test_auc_and_ks_equal_their_definitions(rows: list[tuple[int, int]]) -> None:
    bad, risk = np.array(rows).T
    found = evaluation.discrimination(bad, risk.astype(float))
    assert found.auc.value == pytest.approx(pairs_auc(bad, risk))
    assert found.gini == pytest.approx(2 * pairs_auc(bad, risk) - 1)
    assert found.ks.value == pytest.approx(steps_ks(bad, risk))
    assert found.auc.low <= found.auc.value <= found.auc.high
    assert found.ks.low <= found.ks.value <= found.ks.high


def test_the_ks_threshold_is_where_the_classes_are_farthest_apart() -> None:
    bad, risk = sample()
    found = evaluation.discrimination(bad, risk)
    at = np.mean(risk[bad == 1] >= found.ks_threshold) - np.mean(
        risk[bad == 0] >= found.ks_threshold
    )
    assert at == pytest.approx(found.ks.value)


def test_delong_equals_the_variance_of_its_placement_values() -> None:
    bad, risk = sample(120)
    bads, goods = risk[bad == 1], risk[bad == 0]

    def wins(b: float, g: float) -> float:
        return 1.0 if b > g else 0.5 if b == g else 0.0

    of_bads = [np.mean([wins(b, g) for g in goods]) for b in bads]
    of_goods = [np.mean([wins(b, g) for b in bads]) for g in goods]
    error = math.sqrt(np.var(of_bads, ddof=1) / len(bads) + np.var(of_goods, ddof=1) / len(goods))
    found = evaluation.discrimination(bad, risk).auc
    assert found.high - found.value == pytest.approx(1.959964 * error, rel=1e-6)


def test_the_interval_of_a_difference_agrees_with_a_bootstrap() -> None:
    bad, risk = sample(600)
    rng = np.random.default_rng(3)
    better = risk + 0.6 * bad + rng.normal(0, 0.5, len(bad))
    found = evaluation.compare(bad, risk, better)
    draws = []
    for _ in range(300):
        rows = rng.integers(0, len(bad), len(bad))
        draws.append(roc_auc_score(bad[rows], better[rows]) - roc_auc_score(bad[rows], risk[rows]))
    assert found.auc.high - found.auc.low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.2)
    assert found.auc.value == pytest.approx(roc_auc_score(bad, better) - roc_auc_score(bad, risk))
    assert found.p_value < 0.001
    assert found.ks.value == pytest.approx(steps_ks(bad, better) - steps_ks(bad, risk))


def test_a_score_compared_with_itself_gains_nothing() -> None:
    bad, risk = sample()
    found = evaluation.compare(bad, risk, risk)
    assert (found.auc.value, found.auc.low, found.auc.high) == (0.0, 0.0, 0.0)
    assert found.ks == evaluation.Interval(0.0, 0.0, 0.0)
    assert found.p_value == 1.0


def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    from scipy.stats import norm

    truth = float(norm.cdf(1 / math.sqrt(2)))
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(150):
        bad = np.repeat([0, 1], [150, 50])
        found = evaluation._delong_covariance(bad, rng.normal(bad, 1.0)[None, :])
        risk = rng.normal(bad, 1.0)
        half = 1.96 * math.sqrt(evaluation._delong_covariance(bad, risk[None, :])[0, 0])
        covered += abs(roc_auc_score(bad, risk) - truth) <= half
        assert found.shape == (1, 1)
    assert 0.89 <= covered / 150 <= 0.99


def test_one_bad_customer_leaves_everything_possible() -> None:
    found = evaluation.discrimination([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4])
    assert (found.auc.low, found.auc.high) == (0.0, 1.0)
    assert found.auc.value == 1.0


@pytest.mark.parametrize("bad", [[0, 0, 0], [1, 1, 1], [0, 1, 2], [0]])
def test_labels_that_are_not_two_classes_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        evaluation.discrimination(bad, [0.0] * len(bad))


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        evaluation.discrimination([0, 1], [0.0, math.nan])


def test_a_constant_score_tells_nothing() -> None:
    found = evaluation.discrimination([0, 1, 0, 1], [5.0] * 4)
    assert (found.auc.value, found.ks.value, found.ks_threshold) == (0.5, 0.0, 5.0)


def test_the_roc_curve_keeps_its_area() -> None:
    bad, risk = sample(2000)
    curve = evaluation.roc(bad, risk)
    assert curve.x[0] == curve.y[0] == 0.0
    assert curve.x[-1] == curve.y[-1] == 1.0
    area = float(np.trapezoid(curve.y, curve.x))
    assert area == pytest.approx(roc_auc_score(bad, risk), abs=0.003)


def test_the_cumulative_shares_show_ks() -> None:
    bad, risk = sample(2000)
    shares = evaluation.cumulative_shares(bad, -risk)
    gap = np.max(np.array(shares.bads) - np.array(shares.goods))
    assert gap == pytest.approx(steps_ks(bad, risk), abs=0.01)
    assert shares.goods[-1] == shares.bads[-1] == 1.0


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(0, 1e5), st.integers(3, 20), st.integers(2, 30))
def test_round_edges_hold_every_score_in_few_bands(
    low: float, spread: float, bands: int, rows: int
) -> None:
    scores = np.linspace(low, low + spread, rows)
    edges = evaluation.round_edges(scores, bands=bands)
    assert edges[0] <= scores.min()
    assert edges[-1] >= scores.max()
    assert 2 <= len(edges) <= bands + 1
    assert all(a < b for a, b in itertools.pairwise(edges))


def test_every_customer_is_in_one_band() -> None:
    bad, risk = sample()
    points = 600 - 40 * risk
    found = evaluation.bands(bad, points, evaluation.round_edges(points))
    assert sum(band.rows for band in found) == len(bad)
    assert sum(band.bads for band in found) == bad.sum()
    for band in found[:-1]:
        inside = (points >= band.low) & (points < band.high)
        assert (band.rows, band.bads) == (inside.sum(), bad[inside].sum())


def test_calibration_of_true_probabilities_is_good_and_of_doubled_ones_is_not() -> None:
    rng = np.random.default_rng(5)
    p = rng.beta(2, 8, 20_000)
    bad = (rng.random(len(p)) < p).astype(int)
    found, wrong = evaluation.calibration(bad, p), evaluation.calibration(bad, np.minimum(2 * p, 1))
    assert found.error < 0.01
    assert wrong.error > 0.1
    assert found.brier == pytest.approx(np.mean((p - bad) ** 2))
    assert sum(band.rows for band in found.bands) == len(p)
    inside = [b.observed.low <= b.expected <= b.observed.high for b in found.bands]
    assert sum(inside) >= 8


def test_calibration_of_a_constant_probability_is_one_band() -> None:
    found = evaluation.calibration([0, 1, 0, 0], [0.25] * 4)
    assert len(found.bands) == 1
    assert found.error == 0.0


def test_population_stability_is_zero_for_equal_and_large_for_moved_scores() -> None:
    rng = np.random.default_rng(6)
    first = rng.normal(600, 40, 5000)
    assert evaluation.population_stability(first, first).index == 0.0
    assert evaluation.population_stability(first, rng.normal(600, 40, 5000)).index < 0.02
    moved = evaluation.population_stability(first, first + 40)
    assert moved.index > 0.5
    e = np.array([band.expected for band in moved.bands])
    a = np.array([band.actual for band in moved.bands])
    assert e.sum() == pytest.approx(1)
    assert a.sum() == pytest.approx(1)
    assert moved.index == pytest.approx(float(np.sum((a - e) * np.log(a / e))))


def test_population_stability_of_a_constant_score_is_zero() -> None:
    assert evaluation.population_stability([3.0, 3.0], [3.0]).index == 0.0


def test_gains_begin_with_the_riskiest_and_end_with_all() -> None:
    bad, risk = sample(1000, levels=1000)
    table = evaluation.gains(bad, risk)
    assert [row.rows for row in table] == [100] * 10
    assert table[-1].captured == pytest.approx(1.0)
    top = bad[np.argsort(-risk, kind="stable")][:100].sum()
    assert table[0].bads == pytest.approx(top, abs=1)
    assert table[0].lift == pytest.approx(top / 100 / bad.mean(), abs=0.1)


def test_gains_of_a_score_that_knows_nothing_do_not_depend_on_the_order() -> None:
    table = evaluation.gains([1] * 10 + [0] * 30, [1.0] * 40, slices=4)
    assert [round(row.lift, 9) for row in table] == [1.0] * 4


def test_information_value_by_hand() -> None:
    by_hand = (0.25 - 0.75) * math.log(0.25 / 0.75) + (0.75 - 0.25) * math.log(0.75 / 0.25)
    assert evaluation.information_value([75, 25], [25, 75]) == pytest.approx(by_hand)
    assert evaluation.information_value([50, 50], [10, 10]) == 0.0
    assert evaluation.information_value([50, 0, 50], [10, 0, 10]) == 0.0
    assert math.isfinite(evaluation.information_value([50, 0], [10, 10]))


def test_results_are_json() -> None:
    bad, risk = sample()
    found = {
        "discrimination": evaluation.discrimination(bad, risk),
        "empty": evaluation.Band(0, 1, 0, 0).bad_rate,
        "bands": evaluation.bands(bad, risk, evaluation.round_edges(risk)),
    }
    text = json.dumps(plain(found), allow_nan=False)
    assert json.loads(text)["empty"] is None
    assert json.loads(text)["discrimination"]["rows"] == 400


def test_the_bootstrap_repeats_with_its_seed() -> None:
    bad, risk = sample()
    first = evaluation.discrimination(bad, risk, seed=4)
    assert first == evaluation.discrimination(bad, risk, seed=4)
