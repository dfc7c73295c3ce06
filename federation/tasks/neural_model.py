"""The networks of a horizontal job, and local training of one. PyTorch is loaded here alone.

    mlp        numbers and one-hot categories through fully connected layers
    tabular    an embedding for each category beside the numbers, then the same layers
    installed  a factory that a package on this machine offers under `lianmo.models`; the manifest
               names the digest of that package's files, and a node that has other files refuses

A network maps (numbers, categories) to one logit of being bad. It has parameters and no buffers:
running statistics would be averages over customers that nobody declared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from federation.errors import IntegrityError, NotFound, UsageError
from federation.objects import NeuralParameters
from federation.tasks.neural_data import Inputs
from protocols.streams import Stream

GROUP = "lianmo.models"
Floats = NDArray[np.float64]
Weights = NDArray[np.float32]  # all parameters, one after the other


class Network(nn.Module):
    """Fully connected layers over numbers and categories."""

    def __init__(self, numbers: int, categories: int, parameters: NeuralParameters) -> None:
        super().__init__()
        self.buckets, self.is_tabular = parameters.buckets, parameters.model == "tabular"
        width = parameters.embedding if self.is_tabular else parameters.buckets
        self.embeddings = nn.ModuleList(
            nn.Embedding(parameters.buckets, parameters.embedding)
            for _ in range(categories if self.is_tabular else 0)
        )
        layers: list[nn.Module] = []
        size = numbers + categories * width
        for hidden in parameters.hidden:
            layers += [nn.Linear(size, hidden), nn.ReLU()]
            size = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(size, 1))

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """(rows,) logits of being bad."""
        if self.is_tabular:
            parts = [table(categories[..., i]) for i, table in enumerate(self.embeddings)]
        else:
            hot = torch.eye(self.buckets)[categories]
            parts = [hot.flatten(start_dim=-2)]
        joined = torch.cat([numbers, *parts], dim=-1)
        return cast(torch.Tensor, self.layers(joined)).squeeze(-1)


@dataclass(frozen=True, slots=True)
class Shape:
    """How many inputs of each kind."""

    numbers: int  # columns of numbers, missing flags included
    categories: int


def build(parameters: NeuralParameters, shape: Shape, seed: bytes) -> nn.Module:
    """A new network; equal seeds give equal weights. Raises IntegrityError for another package."""
    factory = Network if parameters.model != "installed" else _installed(parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(seed[:8], "big", signed=True))
        model = factory(shape.numbers, shape.categories, parameters)
    if not isinstance(model, nn.Module) or list(model.buffers()):
        raise UsageError(
            "the network has buffers, or is none", todo="use layers without running statistics"
        )
    return model


def _installed(parameters: NeuralParameters) -> Any:
    found = [item for item in entry_points(group=GROUP) if item.name == parameters.module]
    if len(found) != 1:
        todo = f"install the approved package that offers {parameters.module} as {GROUP}"
        raise NotFound(f"no single installed model {parameters.module}", todo=todo)
    if package_digest(found[0]) != parameters.module_sha256:
        todo = "install the very release that was approved"
        raise IntegrityError("the installed model is another release than the approved", todo=todo)
    return found[0].load()


def package_digest(point: EntryPoint) -> str:
    """SHA-256 over (path, file hash) of the installed package's source files."""
    if point.dist is None or point.dist.files is None:
        raise NotFound("the model's package has no list of its files")
    digest = hashlib.sha256()
    for name in sorted(str(item) for item in point.dist.files if item.suffix == ".py"):
        content = Path(str(point.dist.locate_file(name))).read_bytes()
        digest.update(f"{name}\x00{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


# --- weights as one vector ------------------------------------------------------------------------


def weights_of(model: nn.Module) -> Weights:
    """A copy of all parameters."""
    parts = [item.detach().numpy().reshape(-1) for item in model.parameters()]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def set_weights(model: nn.Module, weights: Weights) -> None:
    """The reverse; UsageError for another number of them."""
    sizes = [item.numel() for item in model.parameters()]
    if weights.shape != (sum(sizes),):
        raise UsageError(f"{len(weights)} weights for a network of {sum(sizes)}")
    pieces = np.split(weights, np.cumsum(sizes)[:-1])
    with torch.no_grad():
        for item, piece in zip(model.parameters(), pieces, strict=True):
            item.copy_(torch.from_numpy(piece.astype(np.float32)).reshape(item.shape))


# --- training at one bank -------------------------------------------------------------------------


def logits(model: nn.Module, inputs: Inputs) -> Floats:
    """(rows,) log odds of being bad."""
    model.eval()
    with torch.no_grad():
        found = model(torch.from_numpy(inputs.numbers), torch.from_numpy(inputs.categories))
    return np.asarray(found.numpy(), np.float64)


def train_locally(
    model: nn.Module,
    inputs: Inputs,
    labels: NDArray[np.uint8],
    parameters: NeuralParameters,
    order: Stream,
) -> float:
    """Epochs of Adam over a bank's own customers, in place; the mean loss of the last epoch.

    order: draws the batches. With fedprox the weights are held near those that came.
    """
    start = [item.detach().clone() for item in model.parameters()]
    proximal = float(parameters.proximal) if parameters.strategy == "fedprox" else 0.0
    optimiser = torch.optim.Adam(
        model.parameters(),
        lr=float(parameters.learning_rate),
        weight_decay=float(parameters.weight_decay),
    )
    numbers, categories = torch.from_numpy(inputs.numbers), torch.from_numpy(inputs.categories)
    targets, weights = _targets(labels, parameters)
    model.train()
    mean = 0.0
    for _ in range(parameters.epochs):
        permutation = np.argsort(order.words(inputs.rows), kind="stable")
        lost = 0.0
        for at in range(0, inputs.rows, parameters.batch):
            rows = torch.from_numpy(permutation[at : at + parameters.batch])
            optimiser.zero_grad()
            out = model(numbers[rows], categories[rows])
            loss = nn.functional.binary_cross_entropy_with_logits(out, targets[rows], weights[rows])
            if proximal:
                pairs = zip(model.parameters(), start, strict=True)
                loss = loss + proximal / 2 * sum(((a - b) ** 2).sum() for a, b in pairs)
            torch.autograd.backward(loss)
            optimiser.step()
            lost += float(loss.detach()) * len(rows)
        mean = lost / max(inputs.rows, 1)
    return mean


def clipped_gradients(
    model: nn.Module,
    inputs: Inputs,
    labels: NDArray[np.uint8],
    parameters: NeuralParameters,
    piece: int = 256,
) -> Floats:
    """Sum over these customers of their gradients, each clipped to `example_clip`: (weights,)."""
    from torch.func import functional_call, grad, vmap

    model.train()
    names = [name for name, _ in model.named_parameters()]
    values = {name: item.detach() for name, item in model.named_parameters()}
    targets, weights = _targets(labels, parameters)
    total = np.zeros(sum(item.numel() for item in values.values()))
    clip = float(parameters.example_clip)

    def loss_of(
        at: dict[str, torch.Tensor],
        numbers: torch.Tensor,
        categories: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        out = functional_call(model, at, (numbers[None], categories[None]))
        return weight * nn.functional.binary_cross_entropy_with_logits(out, target[None])

    each = vmap(grad(loss_of), in_dims=(None, 0, 0, 0, 0))
    for at in range(0, inputs.rows, piece):
        rows = slice(at, at + piece)
        found = each(
            values,
            torch.from_numpy(inputs.numbers[rows]),
            torch.from_numpy(inputs.categories[rows]),
            targets[rows],
            weights[rows],
        )
        flat = torch.cat([found[name].flatten(start_dim=1) for name in names], dim=1).double()
        norms = flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
        total += (flat * (clip / norms).clamp(max=1.0)).sum(dim=0).numpy()
    return total


def _targets(
    labels: NDArray[np.uint8], parameters: NeuralParameters
) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.from_numpy(labels.astype(np.float32))
    weights = np.where(labels > 0, float(parameters.bad_weight), 1.0).astype(np.float32)
    return targets, torch.from_numpy(weights)
