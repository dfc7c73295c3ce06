"""Compiles every kernel of this package once into numba's cache on disk.

An installation runs `python -m federation.warm`, which calls it; processes that start together then
load the kernels instead of compiling them side by side. It runs one small linear query, with both
kinds of column, and one set OPRF.
"""

from __future__ import annotations

import numpy as np

from protocols import set_oprf
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.linear_query import Bank, Department
from protocols.parameters import Layout, choose_parameters
from protocols.row_key_books import Attempt, MemoryAttemptBook, MemoryReplyBook
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
    _warm_set_oprf()


def _warm_set_oprf() -> None:
    attempt = Attempt("bank", "department", bytes(32), set_oprf.approved_size(1), 0)
    codes, secret = np.array([b"1"]), bytes(set_oprf.SECRET_BYTES)
    department = set_oprf.Department(attempt, attempt.m, codes, secret, MemoryAttemptBook())
    bank = set_oprf.Bank(attempt, codes, codes, secret, MemoryReplyBook())
    department.accept(bank.reply(department.hello())).row_keys(codes)
    bank.finalize()


if __name__ == "__main__":
    warm()
