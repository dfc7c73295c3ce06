"""Both parties of a linear query in one process, for tests."""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.linear_query import Bank, Department
from protocols.parameters import Layout, Parameters, choose_parameters
from protocols.streams import Randomness

MANIFEST = hashlib.sha256(b"manifest").digest()
JOINT_SEED = hashlib.sha256(b"joint").digest()


def joint_seed(querier: str) -> bytes:
    """Never shared between banks."""
    return JOINT_SEED if querier == "bank" else hashlib.sha256(querier.encode()).digest()


@dataclass
class Setting:
    """One matrix and its parties; `bank()` and `department()` restart them over the same books."""

    layout: Layout
    bins: NDArray[np.uint8]
    integers: NDArray[np.int32]
    parameters: Parameters
    attempt: int = 1
    matrix: str = "bins"
    spent: MemorySpentBook = field(default_factory=MemorySpentBook)
    answers: MemoryAnswerBook = field(default_factory=MemoryAnswerBook)

    def bank(
        self,
        cls: type[Bank] = Bank,
        seed: bytes = b"bank",
        name: str = "bank",
        executor: Executor | None = None,
    ) -> Bank:
        return cls(
            rows=self.layout.rows,
            parameters=self.parameters,
            joint_seed=joint_seed(name),
            name=name,
            manifest=MANIFEST,
            attempt=self.attempt,
            matrix=self.matrix,
            randomness=Randomness(hashlib.sha256(seed).digest(), MANIFEST, self.attempt),
            spent=self.spent,
            executor=executor,
        )

    def department(
        self,
        cls: type[Department] = Department,
        seed: bytes = b"department",
        querier: str = "bank",
        executor: Executor | None = None,
    ) -> Department:
        department = cls(
            layout=self.layout,
            bins=self.bins,
            integers=self.integers,
            parameters=self.parameters,
            joint_seed=joint_seed(querier),
            querier=querier,
            name="tax",
            manifest=MANIFEST,
            attempt=self.attempt,
            matrix=self.matrix,
            randomness=Randomness(hashlib.sha256(seed).digest(), MANIFEST, self.attempt),
            answers=self.answers,
            executor=executor,
        )
        department.commit()
        return department

    def plain(self, v: NDArray[np.int64]) -> NDArray[np.int64]:
        """M^T v in the clear."""
        parts = [
            np.bincount(column, weights=v, minlength=count).astype(np.int64)
            for column, count in zip(self.bins, self.layout.bins, strict=True)
        ]
        return np.concatenate([*parts, self.integers.astype(np.int64) @ v])


def setting(
    rows: int = 300,
    bins: tuple[int, ...] = (4, 3),
    bounds: tuple[int, ...] = (),
    *,
    vmax: int = 100,
    tokens: int = 3,
    seed: int = 1,
) -> Setting:
    """A random matrix with parameters for it."""
    rng = np.random.default_rng(seed)
    layout = Layout(rows, bins, bounds)
    one_hot = [rng.integers(0, count, rows) for count in bins]
    integers = [rng.integers(-bound, bound + 1, rows) for bound in bounds]
    return Setting(
        layout,
        np.array(one_hot, np.uint8).reshape(len(bins), rows),
        np.array(integers, np.int32).reshape(len(bounds), rows),
        choose_parameters(layout, customers=rows, vmax=vmax, tokens=tokens),
    )


def with_tokens(parties: Setting) -> tuple[Bank, Department]:
    """Parties after one batch of tokens."""
    bank, department = parties.bank(), parties.department()
    reply = department.grant_tokens(bank.request_tokens())
    bank.accept_tokens("tax", parties.layout, reply)
    return bank, department
