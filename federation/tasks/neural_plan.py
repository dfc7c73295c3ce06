"""What a job of a shared network will sum and disclose, computed from the manifest alone.

Every round's total (the banks' update, how many took part, their losses, bands of hold-out scores)
goes to all banks, and the shared weights to the platform, which applies them (Flower's strategy).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from federation.errors import Refused, UsageError
from federation.ledger import What
from federation.objects import DeclaredDisclosure, JobManifest, NeuralParameters, QueryParameters
from federation.privacy import epsilon_of
from federation.tasks.bank_evaluation import BANDS
from protocols.streams import digest

SUM_BITS = 64
UPDATE_BITS = 20  # steps of an update within its clip, as a power of two
GRADIENT_BITS = 16
EXTRA = 2  # besides the weights: how many took part, their loss
FIXED = 1  # before the first round: customers in training, over all banks


def plan(
    *,
    rows: int,
    customers_max: int,
    bank_fields: int,
    department_fields: Mapping[str, int],
    parameters: NeuralParameters,
    banks: int = 1,
) -> tuple[QueryParameters | None, int, int]:
    """For the manifest: banks alone put no query to anybody."""
    if department_fields:
        raise UsageError("a network is trained by banks alone", todo="leave out the departments")
    return None, 0, 0


def initial_seed(manifest: JobManifest) -> bytes:
    """Public: every party builds the same first weights."""
    return digest("initial weights", manifest.digest())


def require_plan(manifest: JobManifest) -> None:
    """Raises Refused or UsageError unless the manifest can be run as it stands."""
    parameters, limits = manifest.neural, manifest.limits
    if manifest.departments or len(manifest.banks) < 3:
        todo = "find a third bank: of two, each reads the other's part in the total"
        raise UsageError("a network is trained by three banks or more", todo=todo)
    if not manifest.platform:
        raise UsageError("the platform takes part: it applies the rounds", todo="name it as party")
    if (limits.tokens, limits.tokens_between) != (0, 0):
        raise Refused("a job of banks alone has no tokens")
    fields = manifest.party(manifest.bank).fields
    if unknown := sorted(set(parameters.categories) - set(fields)):
        raise UsageError(f"categories, but no fields of the job: {', '.join(unknown)}")
    if parameters.epsilon is not None and parameters.noise is not None:
        if limits.attempts > 1:
            # A second attempt draws new noise for what the first has shown: both spend.
            what = "with a privacy budget a job has one attempt: another would spend it again"
            raise UsageError(what, todo="set `attempts = 1` under [limits]")
        if parameters.strategy != "fedavg":
            raise UsageError("with a budget the strategy is fedavg: every step is one sum")
        spent = epsilon_of(
            float(parameters.noise),
            float(parameters.sample_rate),
            parameters.rounds * parameters.steps,
            float(parameters.delta),
        )
        if spent > float(parameters.epsilon):
            raise Refused(f"epsilon would be {spent:.2f}, the manifest says {parameters.epsilon}")


def numbers_in(manifest: JobManifest) -> int:
    """Fields that are numbers."""
    return len(manifest.party(manifest.bank).fields) - len(manifest.neural.categories)


def weights_in(manifest: JobManifest) -> int:
    """How many weights the network has."""
    return _count(manifest.neural, numbers_in(manifest))


def first_weights(manifest: JobManifest) -> NDArray[np.float32]:
    """What the platform sends with the first round; every party can compute it."""
    return _weights(manifest.neural, numbers_in(manifest), initial_seed(manifest))


@cache
def _count(parameters: NeuralParameters, numbers: int) -> int:
    return len(_weights(parameters, numbers, bytes(8)))  # a seed does not change how many


def _weights(parameters: NeuralParameters, numbers: int, seed: bytes) -> NDArray[np.float32]:
    from federation.tasks.neural_model import Shape, build, weights_of  # PyTorch takes its time

    shape = Shape(2 * numbers, len(parameters.categories))
    return weights_of(build(parameters, shape, seed))


def totals_in(manifest: JobManifest) -> int:
    """Numbers that all secure sums of the job open together."""
    parameters, weights = manifest.neural, weights_in(manifest)
    bands = 2 * BANDS
    before = 3 * numbers_in(manifest) + FIXED
    if parameters.epsilon is None:
        each = weights + EXTRA + bands
    else:
        each = parameters.steps * weights + bands
    return before + parameters.rounds * each + bands


def declare(manifest: JobManifest) -> tuple[DeclaredDisclosure, ...]:
    """Everything that a job of this manifest can reveal, at most."""
    require_plan(manifest)
    totals, weights = totals_in(manifest), weights_in(manifest)
    lines = [
        DeclaredDisclosure(source=one, to=other, what=What.BANK_TOTALS, count=totals, bits=SUM_BITS)
        for one in manifest.banks
        for other in manifest.banks
        if one != other
    ]
    shared = (manifest.neural.rounds + 1) * weights
    lines.append(
        DeclaredDisclosure(
            source=manifest.bank,
            to=manifest.platform,
            what=What.SHARED_WEIGHTS,
            count=shared,
            bits=32,
        )
    )
    return tuple(lines)
