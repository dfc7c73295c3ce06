"""All-but-one seeds: the bank has 16 seeds a column, the department 15, and nobody learns which.

A binary tree of SHA-256 from a root to 16 leaves (GGM). For every level the bank sends the XOR of
all left and of all right nodes, each masked by one key of a base transfer; the department, which
takes the side that its hole is not on, rebuilds every node off the path to the hole.

Consistency  SoftSpokenOT (ePrint 2022/192, figure 6): every leaf also gives a 32-byte commitment;
             their XOR a column lets the department complete its own missing one, and one digest
             over all columns must come out. A bank that sends other sums passes for a set of holes
             that it fixed before, and two holes of one set force equal leaves: a guess of a hole
             costs what it is worth.
Not covered  more than one answer under the same holes: every refusal tells the bank about them, so
             the caller takes one (CRYPTO_REVIEW.md part 2, item 2)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from protocols import labels
from protocols.errors import ProtocolError
from protocols.hermitian import COLUMNS, FIELD, FIELD_BITS
from protocols.streams import digest, encode

SEED_BYTES, LEAF_BYTES = 16, 32
TRANSFERS = COLUMNS * FIELD_BITS  # one base transfer a level of every tree


class FullTrees:
    """The bank's: all seeds of all columns, and what it sends of them (sums still unmasked)."""

    def __init__(self, session: bytes, roots: Sequence[bytes]) -> None:
        self.seeds: list[list[bytes]] = []
        sums: list[bytes] = []
        leaf_sums: list[bytes] = []
        commitments: list[bytes] = []
        for column, root in enumerate(roots):
            nodes = [root]
            for level in range(FIELD_BITS):
                nodes = [_child(session, column, level, b, node) for node in nodes for b in (0, 1)]
                sums += [_xor(nodes[0::2]), _xor(nodes[1::2])]
            seeds, leaves = zip(*(_leaf(session, column, node) for node in nodes), strict=True)
            self.seeds.append(list(seeds))
            leaf_sums.append(_xor(leaves))
            commitments += leaves
        self.sums = _array(sums).reshape(TRANSFERS, 2, SEED_BYTES)
        self.leaf_sums = _array(leaf_sums).reshape(COLUMNS, LEAF_BYTES)
        self.digest = digest(labels.SEED_TREE_LEAVES, *commitments)


def choices_of(holes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which side of every level to take: not the hole's. Shape (212,)."""
    shifts = np.arange(FIELD_BITS - 1, -1, -1, dtype=np.uint8)
    return (1 - ((holes[:, None] >> shifts) & 1)).astype(np.uint8).reshape(-1)


def open_trees(
    session: bytes,
    holes: NDArray[np.uint8],
    sums: NDArray[np.uint8],
    leaf_sums: NDArray[np.uint8],
    expected: bytes,
) -> list[list[bytes | None]]:
    """The department's: every column's seeds without the one at its hole.

    sums: the chosen side's, unmasked, shape (212, 16). Raises ProtocolError if the leaves are not
    those that the bank committed to.
    """
    out: list[list[bytes | None]] = []
    commitments: list[bytes] = []
    by_column = sums.reshape(COLUMNS, FIELD_BITS, SEED_BYTES)
    for column, hole in enumerate(holes.tolist()):
        nodes: list[bytes | None] = [None]
        for level in range(FIELD_BITS):
            nodes = [
                None if node is None else _child(session, column, level, b, node)
                for node in nodes
                for b in (0, 1)
            ]
            beside = (hole >> (FIELD_BITS - 1 - level)) ^ 1
            known = [node for node in nodes[beside & 1 :: 2] if node is not None]
            nodes[beside] = _xor([*known, by_column[column, level].tobytes()])
        seeds: list[bytes | None] = [None] * FIELD
        leaves = [b""] * FIELD
        for x, node in enumerate(nodes):
            if node is not None:
                seeds[x], leaves[x] = _leaf(session, column, node)
        leaves[hole] = _xor([leaf_sums[column].tobytes(), *(leaf for leaf in leaves if leaf)])
        out.append(seeds)
        commitments += leaves
    if digest(labels.SEED_TREE_LEAVES, *commitments) != expected:
        raise ProtocolError("the seed trees do not match their commitment")
    return out


def _child(session: bytes, column: int, level: int, side: int, node: bytes) -> bytes:
    return digest(labels.SEED_TREE_NODE, session, column, level, side, node)[:SEED_BYTES]


def _leaf(session: bytes, column: int, node: bytes) -> tuple[bytes, bytes]:
    """The leaf's seed and its commitment."""
    wide = hashlib.sha512(encode(labels.SEED_TREE_LEAF, session, column, node)).digest()
    return wide[:SEED_BYTES], wide[SEED_BYTES : SEED_BYTES + LEAF_BYTES]


def _xor(parts: Sequence[bytes]) -> bytes:
    total = reduce(int.__xor__, (int.from_bytes(part, "big") for part in parts))
    return total.to_bytes(len(parts[0]), "big")


def _array(rows: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).copy()
