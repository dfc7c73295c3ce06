"""A finished scorecard as files: JSON in and out, the same model on both sides.

The bank keeps the whole model, a department its own part. Arrays are small (a few hundred numbers),
so plain JSON that a person can read.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from federation.errors import IntegrityError
from federation.tasks.binning import FeatureBins, Groups
from federation.tasks.model import Bin, DepartmentPart, Feature, PartFeature, ScorecardModel

VERSION = 1


def model_to_json(model: ScorecardModel) -> bytes:
    """The bank's file of a model."""
    return _dumps(
        {
            "v": VERSION,
            "kind": "scorecard",
            "intercept": model.intercept,
            "base_points": model.base_points,
            "base_score": model.base_score,
            "base_odds": model.base_odds,
            "pdo": model.pdo,
            "digest": model.digest().hex(),
            "features": [_feature(item) for item in model.features],
        }
    )


def model_from_json(data: bytes) -> ScorecardModel:
    """The model of a file; raises IntegrityError if the file is not what was written."""
    plain = _loads(data, "scorecard")
    try:
        model = ScorecardModel(
            features=tuple(_feature_of(item) for item in plain["features"]),
            intercept=float(plain["intercept"]),
            base_points=int(plain["base_points"]),
            base_score=int(plain["base_score"]),
            base_odds=int(plain["base_odds"]),
            pdo=int(plain["pdo"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the model's file is not well formed") from error
    if model.digest().hex() != plain.get("digest"):
        raise IntegrityError("the model's file was changed: its digest is another one")
    return model


def part_to_json(part: DepartmentPart) -> bytes:
    """A department's file of its own part."""
    return _dumps(
        {
            "v": VERSION,
            "kind": "scorecard-part",
            "org": part.org,
            "digest": part.digest().hex(),
            "features": [
                {
                    "definition": _definition(item.definition),
                    "woe": item.woe.tolist(),
                    "points": item.points.tolist(),
                    "is_kept": item.is_kept,
                }
                for item in part.features
            ],
        }
    )


def part_features_from_json(data: bytes) -> tuple[PartFeature, ...]:
    """The features of a department's file."""
    plain = _loads(data, "scorecard-part")
    try:
        return tuple(
            PartFeature(
                _definition_of(item["definition"]),
                np.array(item["woe"], np.int64),
                np.array(item["points"], np.int64),
                bool(item["is_kept"]),
            )
            for item in plain["features"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the file of the model's part is not well formed") from error


def _dumps(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"


def _loads(data: bytes, kind: str) -> dict[str, Any]:
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise IntegrityError("the model's file is not JSON") from error
    if not isinstance(plain, dict) or (plain.get("v"), plain.get("kind")) != (VERSION, kind):
        raise IntegrityError(f"the file is not a {kind} of this version")
    return plain


def _feature(item: Feature) -> dict[str, Any]:
    return {
        "owner": item.owner,
        "name": item.name,
        "iv": item.iv,
        "coefficient": item.coefficient,
        "note": item.note,
        "definition": _definition(item.definition),
        "group_of_bin": item.groups.of_bin.tolist(),
        "bins": [
            {
                "label": one.label,
                "customers": one.customers,
                "bads": one.bads,
                "woe_steps": int(steps),
                "woe": one.woe,
                "points": one.points,
            }
            for one, steps in zip(item.bins, item.groups.woe, strict=True)
        ],
    }


def _feature_of(plain: dict[str, Any]) -> Feature:
    bins = plain["bins"]
    groups = Groups(
        of_bin=np.array(plain["group_of_bin"], np.int64),
        customers=np.array([one["customers"] for one in bins], np.int64),
        bads=np.array([one["bads"] for one in bins], np.int64),
        woe=np.array([one["woe_steps"] for one in bins], np.int64),
        iv=float(plain["iv"]),
    )
    return Feature(
        owner=str(plain["owner"]),
        name=str(plain["name"]),
        iv=groups.iv,
        coefficient=float(plain["coefficient"]),
        bins=tuple(
            Bin(one["label"], one["customers"], one["bads"], one["woe"], one["points"])
            for one in bins
        ),
        note=str(plain["note"]),
        definition=_definition_of(plain["definition"]),
        groups=groups,
    )


def _definition(bins: FeatureBins) -> dict[str, Any]:
    return {
        "name": bins.name,
        "numeric": bins.numeric,
        "edges": bins.edges.tolist(),
        "categories": list(bins.categories),
        "other": bins.other,
        "missing": bins.missing,
        "bins": bins.bins,
    }


def _definition_of(plain: dict[str, Any]) -> FeatureBins:
    return FeatureBins(
        name=str(plain["name"]),
        numeric=bool(plain["numeric"]),
        edges=np.array(plain["edges"], np.float64),
        categories=tuple(plain["categories"]),
        other=int(plain["other"]),
        missing=int(plain["missing"]),
        bins=int(plain["bins"]),
    )
