"""How far trees have come, kept by each party for the next attempt (compare `checkpoints.py`).

bank         who is held out, the finished trees, and the open bits that they stand on
department   which thresholds it ever opened: the caps count them whether or not the bank still has
             the bits

A state that does not fit the job's bins or customers is not used: the job begins again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from federation.errors import IntegrityError
from federation.tasks.binning import FeatureBins
from federation.tasks.checkpoints import CheckpointBook
from federation.tasks.trees_files import split_of, split_to_list, tree_of, tree_to_dict
from federation.tasks.trees_fit import Tree
from federation.tasks.trees_grow import Bools, Split
from federation.tasks.trees_model import definition_digest
from protocols.streams import digest


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The bank's state after a tree."""

    bins: str  # digest of all features' bins
    test: Bools = field(repr=False)
    validation: Bools = field(repr=False)
    trees: tuple[Tree, ...]
    opened: Mapping[Split, Bools] = field(repr=False)  # bits of the customers, in order of opening


def bins_digest(definitions: Sequence[FeatureBins]) -> str:
    """What splits refer to."""
    return digest(*map(definition_digest, definitions)).hex()


def save(book: CheckpointBook, state: Checkpoint) -> None:
    """The bank's, after each tree."""
    plain = {
        "bins": state.bins,
        "test": _packed(state.test),
        "validation": _packed(state.validation),
        "trees": [tree_to_dict(tree) for tree in state.trees],
        "opened": [[split_to_list(split), _packed(bits)] for split, bits in state.opened.items()],
    }
    book.save(json.dumps(plain).encode())


def load(book: CheckpointBook, customers: int) -> Checkpoint | None:
    """The bank's last; None if there is none. Raises IntegrityError for what nobody saved."""
    if (data := book.load()) is None:
        return None
    try:
        plain = json.loads(data)
        return Checkpoint(
            str(plain["bins"]),
            _bits(plain["test"], customers),
            _bits(plain["validation"], customers),
            tuple(tree_of(item) for item in plain["trees"]),
            {split_of(split): _bits(bits, customers) for split, bits in plain["opened"]},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the state of the earlier attempt is not well formed") from error


def save_thresholds(
    book: CheckpointBook, definitions: Sequence[FeatureBins], ever: Sequence[Split]
) -> None:
    """A department's, before each opening."""
    plain = {"bins": bins_digest(definitions), "ever": [split_to_list(split) for split in ever]}
    book.save(json.dumps(plain).encode())


def load_thresholds(book: CheckpointBook, definitions: Sequence[FeatureBins]) -> tuple[Split, ...]:
    """A department's last; none of other bins. Raises IntegrityError for what nobody saved."""
    if (data := book.load()) is None:
        return ()
    try:
        plain: dict[str, Any] = json.loads(data)
        if plain["bins"] != bins_digest(definitions):
            return ()
        return tuple(split_of(item) for item in plain["ever"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the state of the earlier attempt is not well formed") from error


def _packed(bits: Bools) -> str:
    return np.packbits(bits).tobytes().hex()


def _bits(text: str, count: int) -> Bools:
    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(packed) != -(-count // 8):
        raise ValueError("bits of other customers")
    return np.unpackbits(packed, count=count).astype(bool)
