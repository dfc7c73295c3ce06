"""A shared network as a file: one JSON object with its weights as base64; no code, no pickle."""

from __future__ import annotations

import base64
import json

import numpy as np

from federation.errors import IntegrityError
from federation.objects import NeuralParameters
from federation.tasks.horizontal import NeuralModel
from federation.tasks.neural_data import Scaling

KIND, VERSION = "neural-model", 1


def neural_to_json(model: NeuralModel) -> bytes:
    """The same bytes at every bank."""
    plain = {
        "kind": KIND,
        "v": VERSION,
        "fields": list(model.fields),
        "parameters": model.parameters.model_dump(mode="json"),
        "seed": model.seed.hex(),
        "mean": [float(x).hex() for x in model.scaling.mean],
        "deviation": [float(x).hex() for x in model.scaling.deviation],
        "weights": base64.b64encode(model.weights.astype("<f4").tobytes()).decode(),
        "digest": model.digest().hex(),
    }
    return json.dumps(plain, ensure_ascii=False, sort_keys=True).encode()


def neural_from_json(data: bytes) -> NeuralModel:
    """Raises IntegrityError for a file that is no such model or was changed."""
    try:
        plain = json.loads(data)
        if (plain["kind"], plain["v"]) != (KIND, VERSION):
            raise ValueError("another kind of file")
        model = NeuralModel(
            tuple(plain["fields"]),
            NeuralParameters.model_validate(plain["parameters"]),
            bytes.fromhex(plain["seed"]),
            Scaling(
                np.array([float.fromhex(x) for x in plain["mean"]]),
                np.array([float.fromhex(x) for x in plain["deviation"]]),
            ),
            np.frombuffer(base64.b64decode(plain["weights"]), "<f4").astype(np.float32),
        )
        same = model.digest().hex() == plain["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the file is no network", todo="take it from a backup") from error
    if not same:
        raise IntegrityError("the file of the network was changed", todo="take it from a backup")
    return model
