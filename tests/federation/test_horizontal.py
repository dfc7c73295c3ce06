"""Several banks, one network: as good as the pooled one, and the sums add up."""

from collections.abc import Callable
from functools import cache
from typing import Unpack

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from federation.channel import in_process
from federation.errors import UsageError
from federation.objects import JobManifest, NeuralParameters
from federation.privacy import epsilon_of, noise_for
from federation.tables import BankData, CategoryColumn, NumberColumn
from federation.tasks.bank_evaluation import bands_of
from federation.tasks.horizontal import NeuralResult
from federation.tasks.local import Terms, local_manifest, local_seeds, run_job_in_process
from federation.tasks.local_banks import LocalRounds
from federation.tasks.neural_plan import first_weights, require_plan
from protocols.secagg import MaskedVector
from server.conductor import Conductor, stand_alone

BANKS = ("bank-a", "bank-b", "bank-c")
SMALL = {"rounds": 6, "hidden": (16,), "batch": 64, "learning_rate": "0.02"}


@cache
def data_of(seed: int, customers: int = 500) -> BankData:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(customers, 4)) * [1, 100, 1e6, 1]
    colour = rng.integers(0, 3, customers).astype(np.int32)
    risk = numbers[:, 0] + numbers[:, 1] / 100 * numbers[:, 3] + (colour == 2) - 1.2
    labels = (rng.random(customers) < 1 / (1 + np.exp(-1.5 * risk))).astype(np.uint8)
    numbers[rng.random(customers) < 0.1, 2] = np.nan
    return BankData(
        cover_rows=customers,
        positions=np.arange(customers),
        codes=np.array([f"{seed:03}{i:015}" for i in range(customers)], "S18"),
        columns=[
            *(NumberColumn(f"x{i}", numbers[:, i]) for i in range(4)),
            CategoryColumn("colour", colour, ("blue", "green", "red")),
        ],
        labels=labels,
    )


def banks(count: int = 3) -> dict[str, BankData]:
    names = [*BANKS, *(f"bank-{i}" for i in range(count))][:count]
    return {name: data_of(i + 1) for i, name in enumerate(names)}


def parameters(**changed: object) -> NeuralParameters:
    return NeuralParameters.model_validate({"categories": ("colour",), **SMALL, **changed})


def run(of: NeuralParameters, **terms: Unpack[Terms]) -> dict[str, NeuralResult]:
    data = banks()
    manifest = local_manifest(data, {}, of)
    return run_rounds(data, manifest, conductor_of(manifest), **terms)


def run_rounds(
    data: dict[str, BankData],
    manifest: JobManifest,
    conductor: Conductor,
    kept: Callable[[bytes], None] = lambda state: None,
    **terms: Unpack[Terms],
) -> dict[str, NeuralResult]:
    rounds = LocalRounds(list(data), manifest.bank, conductor, kept).of
    done = run_job_in_process(
        data, {}, manifest, local_seeds(list(data), 1), rounds=rounds, **terms
    )
    return dict(done.results)


def conductor_of(manifest: JobManifest) -> Conductor:
    stand_alone()
    return Conductor(manifest.neural, first_weights(manifest), range(3))


def auc(result: NeuralResult, risk: NDArray[np.float64]) -> float:
    return float(roc_auc_score(result.labels[result.test], risk[result.test]))


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam"])
def test_every_bank_holds_the_same_model_and_it_is_better_than_its_own(strategy: str) -> None:
    done = run(parameters(strategy=strategy, rounds=10, server_rate="0.1"))
    assert len({item.model.digest() for item in done.values()}) == 1
    joint = np.mean([auc(item, item.log_odds) for item in done.values()])
    alone = np.mean([auc(item, item.alone) for item in done.values()])
    assert joint > alone - 0.01, (joint, alone)
    assert joint > 0.75


def test_the_auc_over_all_banks_is_that_of_all_scores_together() -> None:
    done = list(run(parameters()).values())
    labels = np.concatenate([item.labels[item.test] for item in done])
    risks = np.concatenate([item.log_odds[item.test] for item in done])
    assert done[0].auc == pytest.approx(roc_auc_score(labels, risks), abs=2e-3)
    assert {item.auc for item in done} == {done[0].auc}
    bands = bands_of(risks, labels)
    assert (bands.auc, bands.ks) == (done[0].auc, done[0].ks)


def test_the_model_scores_new_customers_as_in_training() -> None:
    done = run(parameters(model="tabular"))
    for name, result in done.items():
        np.testing.assert_allclose(
            result.model.log_odds(banks()[name].columns), result.log_odds, rtol=1e-6
        )


def test_a_new_attempt_goes_on_from_the_last_finished_round() -> None:
    of, states = parameters(strategy="fedadam"), list[bytes]()
    data = banks()
    manifest = local_manifest(data, {}, of)
    whole = run_rounds(data, manifest, conductor_of(manifest), kept=states.append)
    again = conductor_of(manifest)
    again.restore(states[2])
    assert again.number == 4
    rest = run_rounds(data, manifest, again)
    assert len(rest["bank-a"].history) == 3
    assert whole["bank-a"].model.digest() == rest["bank-a"].model.digest()


def test_what_a_bank_sends_for_a_round_looks_uniform() -> None:
    links = in_process(BANKS)
    sent: list[bytes] = []
    fine = links["bank-b"]["bank-a"].send

    def send(stage: str, message: object) -> None:
        if isinstance(message, MaskedVector) and stage == "rounds":
            sent.append(message.words)
        fine(stage, message)

    links["bank-b"]["bank-a"].send = send  # type: ignore[method-assign] - to look at it
    run(parameters(rounds=3, hidden=(64,)), channels=links)
    updates = [words for words in sent if len(words) > 10_000]
    assert len(updates) == 3
    for words in updates:
        counts = np.bincount(np.frombuffer(words, np.uint8), minlength=256)
        expected = counts.sum() / 256
        # chi-square of 255 degrees of freedom: 2^-64 is far above 500
        assert ((counts - expected) ** 2 / expected).sum() < 500


def test_with_a_budget_training_runs_and_pays_for_it() -> None:
    rate, steps, rounds = 0.1, 8, 4
    noise = noise_for(5.0, rate, steps * rounds, 1e-5)
    assert epsilon_of(noise, rate, steps * rounds, 1e-5) <= 5.0
    assert epsilon_of(noise - 0.05, rate, steps * rounds, 1e-5) > 5.0
    terms = {"epsilon": "5", "noise": f"{noise:.2f}", "sample_rate": "0.1", "steps": steps}
    done = run(parameters(rounds=rounds, learning_rate="0.05", **terms))
    result = done["bank-a"]
    assert len({item.model.digest() for item in done.values()}) == 1
    assert 0.5 < auc(result, result.log_odds) < 1
    assert all(step.loss is None for step in result.history)


def test_less_noise_than_the_budget_needs_is_refused() -> None:
    terms = {"epsilon": "1", "noise": "0.5", "sample_rate": "0.1", "steps": 8}
    with pytest.raises(Exception, match="epsilon would be"):
        local_manifest(banks(), {}, parameters(**terms))


def test_a_budget_is_spent_in_one_attempt() -> None:
    """A second one would draw new noise for what the first has shown."""
    noise = f"{noise_for(5.0, 0.1, 8 * 4, 1e-5):.2f}"
    terms = {"epsilon": "5", "noise": noise, "sample_rate": "0.1", "steps": 8}
    manifest = local_manifest(banks(), {}, parameters(rounds=4, **terms))
    assert manifest.limits.attempts == 1
    more = manifest.limits.model_copy(update={"attempts": 2})
    with pytest.raises(UsageError, match="one attempt"):
        require_plan(manifest.model_copy(update={"limits": more}))


def test_two_banks_are_too_few() -> None:
    with pytest.raises(UsageError, match="three banks"):
        local_manifest(banks(2), {}, parameters())


def test_scaling_has_room_for_a_million_customers() -> None:
    from federation.tasks.neural_data import LARGEST, STEPS
    from protocols.fixed_point import FixedPoint

    for customers in (10, 13_000, 10_000_000):
        most = LARGEST**2 * customers
        scale = FixedPoint(most, most / STEPS)
        assert 100 * scale.bound < 1 << 63  # as many banks
        assert scale.resolution < 1e-2  # of a sum over so many


def test_every_figure_of_the_report_has_its_place_on_the_page() -> None:
    """A figure without a place stops the script, and with it every figure after it."""
    import json
    import re

    from federation.report import render_html, report_of_network

    result = run(parameters())["bank-a"]
    manifest = local_manifest(banks(), {}, parameters())
    page = render_html(report_of_network(result, manifest, created="2026-11-23T12:00:00Z"))
    found = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    places = set(re.findall(r'class="plot" id="(\w+)"', page))
    assert json.loads(found.group(1)).keys() == places
