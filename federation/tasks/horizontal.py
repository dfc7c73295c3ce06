"""Several banks with the same fields train one network (PROTOCOLS.md section 7, "horizontal").

    prepare    hold-out; scaling of the inputs by sums over all banks; customers and bads in all
    rounds     weights come from the platform (a Flower strategy); each bank trains on its own
               customers; the clipped, weighted and quantised moves are summed so that nobody sees
               one bank's; the collecting bank answers with the weights moved by the mean
    with a     a round is `steps` noisy sums of clipped gradients, and every bank takes the same
    budget     steps of Adam with them: what is opened is differentially private for each customer
    last       the final weights are scored on every bank's own hold-out; only bands of scores are
               summed over the banks
    alone      the same network on the bank's own customers, for comparison

Learned    by every bank and the platform: the shared weights after each round; by every bank: the
           totals that the manifest declares. By nobody: one bank's move, customers, labels or
           scores, unless all other banks work together.
Not hidden without a budget: what the shared weights themselves tell of single customers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.errors import UsageError
from federation.ledger import Disclosure, What
from federation.objects import NeuralParameters
from federation.tables import BankData, Column, DepartmentData
from federation.tasks import vertical
from federation.tasks.bank_evaluation import Bands, bands_of, over_banks
from federation.tasks.neural_data import (
    Inputs,
    Scaling,
    categories_of,
    inputs_of,
    numbers_of,
    private_moments,
    private_scaling,
    scaling_over,
)
from federation.tasks.neural_model import (
    Shape,
    Weights,
    build,
    clipped_gradients,
    logits,
    set_weights,
    train_locally,
    weights_of,
)
from federation.tasks.neural_plan import (
    EXTRA,
    GRADIENT_BITS,
    UPDATE_BITS,
    declare,
    initial_seed,
    plan,
    require_plan,
)
from federation.tasks.party import Party, RoundReply
from federation.tasks.secure_sum import Alone, SecurePool
from protocols import labels
from protocols.errors import ProtocolError
from protocols.fixed_point import FixedPoint
from protocols.sampling import discrete_gaussian
from protocols.streams import Stream, digest

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
LOSS_MAX, LOSS_STEPS = 50.0, 1024
BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8

__all__ = ["NeuralModel", "NeuralResult", "declare", "plan", "run_bank", "run_department"]


@dataclass(frozen=True, slots=True, eq=False)
class NeuralModel:
    """The shared network, whole at every bank."""

    fields: tuple[str, ...]
    parameters: NeuralParameters
    seed: bytes  # of the first weights; public
    scaling: Scaling
    weights: Weights = field(repr=False)

    def digest(self) -> bytes:
        """Of everything that a score depends on."""
        scaling = self.scaling.mean.tobytes() + self.scaling.deviation.tobytes()
        text = self.parameters.model_dump_json()
        weights = self.weights.astype("<f4").tobytes()
        return digest(labels.MODEL_DIGEST, *self.fields, text, self.seed, scaling, weights)

    def log_odds(self, columns: Sequence[Column]) -> Floats:
        """Of being bad, for customers with these columns."""
        by_name = {column.name: column for column in columns}
        ordered = [by_name[name] for name in self.fields]
        of = self.parameters
        inputs = inputs_of(
            numbers_of(ordered, of.categories),
            categories_of(ordered, of.categories, of.buckets),
            self.scaling,
        )
        shape = Shape(inputs.numbers.shape[1], inputs.categories.shape[1])
        model = build(of, shape, self.seed)
        set_weights(model, self.weights)
        return logits(model, inputs)

    def points(self, log_odds: Floats) -> NDArray[np.int64]:
        """Whole points; more are better."""
        of = self.parameters
        factor = of.pdo / math.log(2)
        offset = of.base_score - factor * math.log(of.base_odds)
        return np.rint(offset - factor * log_odds).astype(np.int64)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round as all banks know it."""

    loss: float | None  # mean over all banks' training customers; None with a budget
    auc: float  # over all banks' hold-out customers, of the weights before the round
    banks: int  # that stayed to its end


@dataclass(frozen=True, slots=True, eq=False)
class NeuralResult:
    """What a bank has at the end."""

    model: NeuralModel
    history: tuple[RoundResult, ...]
    auc: float  # over all banks' hold-out customers
    ks: float
    customers: int  # in training, over all banks
    log_odds: Floats = field(repr=False)  # of own customers
    scores: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    test: Bools = field(repr=False)
    alone: Floats = field(repr=False)  # log odds by the network that this bank trained alone
    alone_scores: NDArray[np.int64] = field(repr=False)
    disclosures: tuple[Disclosure, ...]
    seconds: dict[str, float]
    sent_bytes: dict[str, int]
    received_bytes: dict[str, int]
    notes: tuple[str, ...] = ()

    def digest(self) -> bytes:
        """Of the model, the same at every bank."""
        return self.model.digest()


def run_department(party: Party, data: DepartmentData) -> NeuralResult:
    """There is no department in such a job."""
    raise UsageError("a network is trained by banks alone", party=party.me)


def run_bank(party: Party, data: BankData) -> NeuralResult:
    """Take part as a bank; raises UsageError if its customers cannot carry any model."""
    return _Bank(party, data).run()


class _Bank:
    def __init__(self, party: Party, data: BankData) -> None:
        require_plan(party.manifest)
        vertical.require_usable(party, data)
        if party.rounds is None:
            raise UsageError("the rounds of this job come from a coordinator", party=party.me)
        self.party, self.data, self.rounds = party, data, party.rounds
        self.parameters: NeuralParameters = party.manifest.neural
        self.test = vertical.hold_out(party, data, float(self.parameters.hold_out))
        self.train = ~self.test
        self.labels = data.labels[self.train]
        vertical.require_both_classes(party, len(self.labels), int(self.labels.sum()))
        self.is_private = self.parameters.epsilon is not None
        self.pool = SecurePool(
            party,
            party.manifest.banks,
            party.manifest.bank,
            everybody=False,
            statistic=self._statistic,
        )
        self.most = party.manifest.limits.customers_max
        self.moments = (np.zeros(0), np.zeros(0), 0)

    def run(self) -> NeuralResult:
        party = self.party
        self.prepare()
        history: list[RoundResult] = []
        with party.at("rounds", self.parameters.rounds) as done:
            while True:
                order = self.rounds.take()
                if order.is_last:
                    break
                history.append(self.round(order.number, order.weights))
                done(order.number)
        with party.at("evaluation"):
            set_weights(self.model, order.weights)
            final = NeuralModel(
                party.manifest.party(party.me).fields,
                self.parameters,
                initial_seed(party.manifest),
                self.scaling,
                order.weights,
            )
            log_odds = logits(self.model, self.inputs)
            bands = over_banks(
                self.pool, bands_of(log_odds[self.test], self.data.labels[self.test]), self.most
            )
            self.rounds.give(RoundReply(order.number, auc=bands.auc))
        with party.at("alone"):
            alone = self.alone()
        return NeuralResult(
            model=final,
            history=tuple(history),
            auc=bands.auc,
            ks=bands.ks,
            customers=self.customers,
            log_odds=log_odds,
            scores=final.points(log_odds),
            labels=self.data.labels,
            test=self.test,
            alone=alone,
            alone_scores=final.points(alone),
            disclosures=party.ledger.entries(),
            seconds=dict(party.seconds),
            sent_bytes=party.traffic("sent_bytes"),
            received_bytes=party.traffic("received_bytes"),
            notes=tuple(
                f"{org} was lost on the way: later rounds are without it"
                for org in party.manifest.banks
                if org not in self.pool.survivors
            ),
        )

    # stages

    def prepare(self) -> None:
        """Inputs alike at all banks, and the first network."""
        party, of = self.party, self.parameters
        with party.at("prepare"):
            numbers = numbers_of(self.data.columns, of.categories)
            if self.is_private:
                self.scaling, self.customers = self.private_scaling(numbers[self.train])
            else:
                self.scaling = scaling_over(self.pool, numbers[self.train], self.most)
                own = np.array([len(self.labels)])
                self.customers = int(self.pool.integers("customers", own, self.most)[0])
            places = categories_of(self.data.columns, of.categories, of.buckets)
            self.inputs = inputs_of(numbers, places, self.scaling)
            self.shape = Shape(self.inputs.numbers.shape[1], places.shape[1])
            self.model = build(of, self.shape, initial_seed(party.manifest))

    def round(self, number: int, weights: Weights) -> RoundResult:
        """One round from the weights that came."""
        set_weights(self.model, weights)
        held = self.inputs.take(self.test)
        own = bands_of(logits(self.model, held), self.data.labels[self.test])
        loss: float | None = None
        if self.is_private:
            bands = over_banks(self.pool, own, self.most, f"evaluation {number}")
            moved, customers = self.private_round(number, weights), self.customers
        else:
            moved, loss, customers, bands = self.plain_round(number, weights, own)
        if self.party.me == self.party.manifest.bank:
            self._reveal_weights(len(moved))
            told = 0.0 if loss is None else loss
            self.rounds.give(RoundReply(number, moved, customers, told, bands.auc))
        else:
            self.rounds.give(RoundReply(number))
        return RoundResult(loss, bands.auc, len(self.pool.survivors))

    def plain_round(
        self, number: int, weights: Weights, own: Bands
    ) -> tuple[Weights, float, int, Bands]:
        """Train here, sum everywhere: (the weights moved by the mean, mean loss, customers, bands).

        All in one sum: what is divided is then over the very banks that it is divided by.
        """
        of, party = self.parameters, self.party
        order = party.randomness.stream(labels.BATCHES, stage="rounds", step=number)
        loss = train_locally(self.model, self.inputs.take(self.train), self.labels, of, order)
        move = weights_of(self.model).astype(np.float64) - weights
        move *= min(1.0, float(of.clip) / max(float(np.linalg.norm(move)), 1e-30))
        share = len(self.labels) / self.most
        scale = FixedPoint(float(of.clip), float(of.clip) * 2.0**-UPDATE_BITS)
        coded = scale.encode(move * share, party.randomness, stage="rounds", step=number)
        lost = min(max(loss, 0.0), LOSS_MAX) * len(self.labels) * LOSS_STEPS
        said = np.array([len(self.labels), round(lost)])
        if len(said) != EXTRA:
            raise RuntimeError("the plan counts other totals")
        bound = max(scale.bound, round(LOSS_MAX * LOSS_STEPS) * self.most)
        parts = [coded, said, own.goods, own.bads]
        whole = self.pool.integers(f"round {number}", np.concatenate(parts), bound)
        update, about, goods, bads = np.split(whole, np.cumsum([len(one) for one in parts])[:-1])
        customers, losses = map(int, about)
        if not 0 < customers <= self.most * len(self.pool.members):
            raise ProtocolError("a total of customers that cannot be")
        mean = scale.decode(update) * (self.most / customers)
        moved = (weights + mean).astype(np.float32)
        return moved, losses / LOSS_STEPS / customers, customers, Bands(goods, bads)

    def private_round(self, number: int, weights: Weights) -> Weights:
        """`steps` noisy sums; all banks take the same steps from them."""
        of = self.parameters
        rate, learning = float(of.sample_rate), float(of.learning_rate)
        train, current = self.inputs.take(self.train), weights.astype(np.float64)
        first, second, taken = self.moments
        if not len(first):
            first, second = np.zeros(len(current)), np.zeros(len(current))
        for step in range(of.steps):
            at = (number - 1) * of.steps + step
            set_weights(self.model, current.astype(np.float32))
            drawn = self._sample(at, rate, train.rows)
            gradient = self.noisy_gradient(at, train.take(drawn), self.labels[drawn])
            mean = gradient / max(rate * self.customers, 1.0)
            taken += 1
            first = BETAS[0] * first + (1 - BETAS[0]) * mean
            second = BETAS[1] * second + (1 - BETAS[1]) * mean**2
            ahead = first / (1 - BETAS[0] ** taken)
            scale = np.sqrt(second / (1 - BETAS[1] ** taken)) + ADAM_EPSILON
            current -= learning * ahead / scale
        self.moments = (first, second, taken)
        return current.astype(np.float32)

    def noisy_gradient(self, at: int, inputs: Inputs, own: NDArray[np.uint8]) -> Floats:
        """The sum over all banks of the drawn customers' clipped gradients."""
        of = self.parameters
        clip = float(of.example_clip)
        if inputs.rows:
            gradient = clipped_gradients(self.model, inputs, own, of)
        else:
            gradient = np.zeros(len(weights_of(self.model)))
        # A bank's sum is within its drawn customers times the clip, whatever the draw.
        return self.noisy(f"gradient {at}", at, gradient, clip, GRADIENT_BITS)

    def private_scaling(self, numbers: Floats) -> tuple[Scaling, int]:
        """Scaling of the inputs and the number of customers, from one noisy sum."""
        sums, reach = private_moments(numbers)
        return private_scaling(self.noisy("scaling", 0, sums, reach, GRADIENT_BITS))

    def noisy(self, what: str, at: int, own: Floats, reach: float, bits: int) -> Floats:
        """The total over all banks with the declared noise in it, in steps of reach / 2^bits.

        reach: how far one customer can move the sum, L2. The honest banks that stay hold the whole
        noise, whoever else works together (PROTOCOLS.md section 4, check 12).
        """
        randomness = self.party.randomness
        scale = FixedPoint(reach * self.most, reach * 2.0**-bits)
        coded = scale.encode(own, randomness, stage=what, step=at)
        # One customer moves the sum by the reach, and its rounding by a step of each entry.
        moved = reach / scale.resolution + math.sqrt(len(own))
        honest = self.pool.honest_survivors
        sigma = math.ceil(float(self.parameters.noise or 0) * moved / math.sqrt(honest))
        stream = randomness.stream(
            labels.PRIVACY_NOISE, stage=what, step=at, inputs=digest(coded.tobytes())
        )
        noisy = coded + discrete_gaussian(stream, len(coded), max(1, sigma))
        # `discrete_gaussian` stays within 14 sigma: nothing is cut off here.
        return scale.decode(self.pool.integers(what, noisy, scale.bound + 14 * max(1, sigma)))

    def alone(self) -> Floats:
        """Log odds by the same network and as many epochs, of own customers alone."""
        of = self.parameters.model_copy(update={"strategy": "fedavg", "epochs": 1})
        numbers = numbers_of(self.data.columns, of.categories)
        scaling = scaling_over(Alone(self.party.me), numbers[self.train], self.most)
        inputs = inputs_of(numbers, self.inputs.categories, scaling)
        model = build(of, self.shape, initial_seed(self.party.manifest))
        train, epochs = inputs.take(self.train), self.parameters.rounds * self.parameters.epochs
        for epoch in range(epochs):
            order = self.party.randomness.stream(labels.BATCHES, stage="alone", step=epoch)
            train_locally(model, train, self.labels, of, order)
        return logits(model, inputs)

    # pieces

    def _sample(self, at: int, rate: float, rows: int) -> NDArray[np.int64]:
        """Poisson sampling: each customer by itself."""
        stream: Stream = self.party.randomness.stream(labels.BATCHES, stage="sample", step=at)
        below = np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
        return np.flatnonzero(stream.words(rows) < below)

    def _statistic(self, what: str, number: int) -> bytes:
        """Of this very job: a round's figure depends on all rounds before it."""
        return digest(labels.BANK_STATISTIC, self.party.manifest_digest, what, number)

    def _reveal_weights(self, count: int) -> None:
        party, platform = self.party, self.party.manifest.platform
        party.ledger.reveal(party.me, platform, What.SHARED_WEIGHTS, count, 32)
