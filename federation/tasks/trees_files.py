"""Finished trees as files: JSON in and out, each party its own part (compare `model_files.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from federation.errors import IntegrityError
from federation.tasks.model_files import VERSION, _definition, _definition_of, _dumps, _loads
from federation.tasks.trees_fit import Tree
from federation.tasks.trees_grow import Feature, Split
from federation.tasks.trees_model import TreesModel, TreesPart

KIND, PART = "trees", "trees-part"


def trees_to_json(model: TreesModel) -> bytes:
    """The bank's file: structure, leaves, expected values, and whose thresholds."""
    return _dumps(
        {
            "v": VERSION,
            "kind": KIND,
            "bank": model.bank,
            "base": model.base,
            "base_score": model.base_score,
            "base_odds": model.base_odds,
            "pdo": model.pdo,
            "digest": model.digest().hex(),
            "features": [
                {
                    "owner": feature.owner,
                    "direction": feature.direction,
                    "ordered": feature.ordered,
                    "missing": feature.missing,
                    "definition": _definition(definition),
                }
                for feature, definition in zip(model.features, model.definitions, strict=True)
            ],
            "thresholds": {
                org: [split_to_list(split) for split in splits]
                for org, splits in model.thresholds.items()
            },
            "trees": [tree_to_dict(tree) for tree in model.trees],
        }
    )


def trees_from_json(data: bytes) -> TreesModel:
    """The model of a file; raises IntegrityError if the file is not what was written."""
    plain = _loads(data, KIND)
    try:
        definitions = tuple(_definition_of(item["definition"]) for item in plain["features"])
        model = TreesModel(
            bank=str(plain["bank"]),
            features=tuple(
                Feature(
                    str(item["owner"]),
                    definition.name,
                    definition.bins,
                    bool(item["ordered"]),
                    None if item["missing"] is None else int(item["missing"]),
                    int(item["direction"]),
                )
                for item, definition in zip(plain["features"], definitions, strict=True)
            ),
            definitions=definitions,
            base=int(plain["base"]),
            trees=tuple(tree_of(item) for item in plain["trees"]),
            thresholds={
                str(org): tuple(split_of(item) for item in splits)
                for org, splits in plain["thresholds"].items()
            },
            base_score=int(plain["base_score"]),
            base_odds=int(plain["base_odds"]),
            pdo=int(plain["pdo"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the model's file is not well formed") from error
    if model.digest().hex() != plain.get("digest"):
        raise IntegrityError("the model's file was changed: its digest is another one")
    return model


def trees_part_to_json(part: TreesPart) -> bytes:
    """A department's file: its bins and its thresholds, also in words."""
    return _dumps(
        {
            "v": VERSION,
            "kind": PART,
            "org": part.org,
            "digest": part.digest().hex(),
            "definitions": [_definition(item) for item in part.definitions],
            "thresholds": [split_to_list(split) for split in part.thresholds],
            "words": [f"{name} {what}" for name, what in part.describe()],
        }
    )


def trees_part_from_json(data: bytes) -> TreesPart:
    """A department's part, as far as scoring needs it; raises IntegrityError."""
    plain = _loads(data, PART)
    try:
        part = TreesPart(
            org=str(plain["org"]),
            definitions=tuple(_definition_of(item) for item in plain["definitions"]),
            thresholds=tuple(split_of(item) for item in plain["thresholds"]),
            tokens=0,
            commitments=(),
            seconds={},
            disclosures=(),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the file of the model's part is not well formed") from error
    if part.digest().hex() != plain.get("digest"):
        raise IntegrityError("the part's file was changed: its digest is another one")
    return part


# --- pieces ---------------------------------------------------------------------------------------


def split_to_list(split: Split) -> list[int]:
    """Feature, cut, missing left."""
    return [split.feature, split.cut, int(split.missing_left)]


def split_of(plain: list[int]) -> Split:
    """Of such a list; ValueError."""
    feature, cut, missing_left = plain
    return Split(int(feature), int(cut), bool(missing_left))


def tree_to_dict(tree: Tree) -> dict[str, Any]:
    """Plain numbers, exactly."""
    return {
        "splits": [None if split is None else split_to_list(split) for split in tree.splits],
        "left": tree.left.tolist(),
        "right": tree.right.tolist(),
        "values": tree.values.tolist(),
        "expected": tree.expected.tolist(),
        "customers": tree.customers.tolist(),
        "gains": tree.gains.tolist(),
    }


def tree_of(plain: dict[str, Any]) -> Tree:
    """Of such a dictionary; ValueError for what is no tree."""
    tree = Tree(
        tuple(None if item is None else split_of(item) for item in plain["splits"]),
        np.array(plain["left"], np.int32),
        np.array(plain["right"], np.int32),
        np.array(plain["values"], np.int64),
        np.array(plain["expected"], np.int64),
        np.array(plain["customers"], np.int64),
        np.array(plain["gains"], np.float64),
    )
    sizes = {len(getattr(tree, name)) for name in ("left", "right", "values", "expected")}
    if sizes != {len(tree.splits)} or not len(tree.customers) == len(tree.gains) == len(tree.left):
        raise ValueError("a tree with parts of unequal length")
    for at, split in enumerate(tree.splits):
        children = (int(tree.left[at]), int(tree.right[at]))
        if split and not all(at < child < len(tree.splits) for child in children):
            raise ValueError("a node's children come after it")
    return tree
