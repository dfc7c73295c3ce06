"""`python -m protocols.warm` compiles every kernel once into numba's cache on disk.

An installation runs it once; processes that start together then load the kernels instead of
compiling them side by side. It runs one small linear query, with both kinds of column.
"""

from __future__ import annotations

import numpy as np

from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.linear_query import Bank, Department
from protocols.parameters import Layout, choose_parameters
from protocols.streams import SEED_BYTES, Randomness


def warm() -> None:
    """Compile, or load from the cache, every kernel of the package."""
    layout = Layout(rows=100, bins=(3,), integer_bounds=(7,))
    parameters = choose_parameters(layout, customers=100, vmax=7, tokens=1)
    seed, manifest = bytes(SEED_BYTES), bytes(32)
    randomness = Randomness(seed, manifest, 0)
    department = Department(
        layout=layout,
        bins=np.zeros((1, 100), np.uint8),
        integers=np.zeros((1, 100), np.int32),
        parameters=parameters,
        joint_seed=seed,
        querier="bank",
        name="department",
        manifest=manifest,
        attempt=0,
        matrix="warm",
        randomness=randomness,
        answers=MemoryAnswerBook(),
    )
    bank = Bank(
        rows=100,
        parameters=parameters,
        joint_seed=seed,
        name="bank",
        manifest=manifest,
        attempt=0,
        matrix="warm",
        randomness=randomness,
        spent=MemorySpentBook(),
    )
    department.commit()
    bank.accept_tokens("department", layout, department.grant_tokens(bank.request_tokens()))
    bank.open("department", department.answer(bank.query(np.ones(100, np.int64))))


if __name__ == "__main__":
    warm()
