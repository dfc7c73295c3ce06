"""What a report says of a network that several banks trained: how it learned, and at what price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.objects import JobManifest, NeuralParameters
from federation.privacy import epsilon_of

if TYPE_CHECKING:
    from federation.tasks.horizontal import NeuralResult


@dataclass(frozen=True, slots=True)
class LearnedRound:
    """After so many rounds."""

    rounds: int
    loss: float | None  # mean over all banks' training customers in the next one
    auc: float  # over all banks' held-out customers


@dataclass(frozen=True, slots=True)
class Budget:
    """What one customer's part in the training can show at most."""

    epsilon: float  # as accounted
    declared: float
    delta: float
    noise: float
    steps: int
    sample_rate: float


@dataclass(frozen=True, slots=True)
class NeuralFacts:
    """Everything that the page shows of a network."""

    model: str
    weights: int
    strategy: str
    banks: int
    customers: int  # in training, over all banks
    auc: float  # over all banks' held-out customers
    ks: float
    learning: tuple[LearnedRound, ...]
    budget: Budget | None


def facts_of(result: NeuralResult, manifest: JobManifest) -> NeuralFacts:
    """From a finished network."""
    of, history = manifest.neural, result.history
    aucs = [*(step.auc for step in history), result.auc]
    losses = [*(step.loss for step in history), None]
    return NeuralFacts(
        model=_model(of),
        weights=len(result.model.weights),
        strategy=of.strategy,
        banks=len(manifest.banks),
        customers=result.customers,
        auc=result.auc,
        ks=result.ks,
        learning=tuple(
            LearnedRound(i, loss, auc)
            for i, (loss, auc) in enumerate(zip(losses, aucs, strict=True))
        ),
        budget=_budget(of),
    )


def _model(of: NeuralParameters) -> str:
    if of.model == "installed":
        return f"the installed model {of.module}"
    layers = ", ".join(map(str, of.hidden)) or "none"
    kind = "embeddings of the categories and" if of.model == "tabular" else "fully connected,"
    return f"{kind} hidden layers of {layers}"


def _budget(of: NeuralParameters) -> Budget | None:
    if of.epsilon is None or of.noise is None:
        return None
    steps, rate, delta = of.rounds * of.steps, float(of.sample_rate), float(of.delta)
    spent = epsilon_of(float(of.noise), rate, steps, delta)
    return Budget(spent, float(of.epsilon), delta, float(of.noise), steps, rate)
