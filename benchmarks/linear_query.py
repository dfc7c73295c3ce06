"""Linear query against plaintext, as ratios of one run (DESIGN "Performance targets").

    python benchmarks/linear_query.py [ROWS] [FEATURES] [BINS] [TOKENS] [INTEGER_COLUMNS]

CPU is the process time of all threads. Every opening is compared with the plaintext sums.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.linear_query import Bank, Department
from protocols.parameters import (
    Layout,
    answer_size_bytes,
    choose_parameters,
    query_size_bytes,
    reply_size_bytes,
    request_size_bytes,
)
from protocols.streams import Randomness
from protocols.warm import warm

T = TypeVar("T")
SEED, MANIFEST = bytes(32), bytes(32)


class Clock:
    """Wall and CPU seconds by name, the least of all calls."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.wall[name] = min(wall, self.wall.get(name, wall))
        self.cpu[name] = min(cpu, self.cpu.get(name, cpu))
        return result


def main(rows: int, features: int, bins: int, tokens: int, integer_columns: int) -> None:
    rng = np.random.default_rng(1)
    layout = Layout(rows, (bins,) * features, (31,) * integer_columns)
    matrix = rng.integers(0, bins, (features, rows)).astype(np.uint8)
    integers = rng.integers(-31, 32, (integer_columns, rows)).astype(np.int32)
    parameters = choose_parameters(layout, customers=rows, vmax=127, tokens=tokens)
    print(f"{rows} rows x {features} features x {bins} bins, {integer_columns} integer columns")
    print(f"{parameters}, {os.cpu_count()} cores")
    warm()
    clock = Clock()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        department = Department(
            layout=layout,
            bins=matrix,
            integers=integers,
            parameters=parameters,
            joint_seed=SEED,
            querier="bank",
            name="department",
            manifest=MANIFEST,
            attempt=1,
            matrix="benchmark",
            randomness=Randomness(os.urandom(32), MANIFEST, 1),
            answers=MemoryAnswerBook(),
            executor=pool,
        )
        bank = Bank(
            rows=rows,
            parameters=parameters,
            joint_seed=SEED,
            name="bank",
            manifest=MANIFEST,
            attempt=1,
            matrix="benchmark",
            randomness=Randomness(os.urandom(32), MANIFEST, 1),
            spent=MemorySpentBook(),
            executor=pool,
        )
        department.commit()
        clock("hint", department.prepare)
        batch = parameters.batch_tokens
        request = clock("request", bank.request_tokens)
        reply = clock("grant", lambda: department.grant_tokens(request))
        clock("accept", lambda: bank.accept_tokens("department", layout, reply))
        for _ in range(min(batch, 10)):
            v = rng.integers(-parameters.limb_max, parameters.limb_max + 1, rows)
            query = clock("query", lambda v=v: bank.query(v))
            answer = clock("answer", lambda query=query: department.answer(query))
            opened = clock("open", lambda answer=answer: bank.open("department", answer))
            plain = clock("bincount", lambda v=v: histogram(matrix, v, bins))
            expected = np.concatenate([plain, integers.astype(np.int64) @ v])
            if not np.array_equal(opened, expected):
                raise SystemExit("an opening differs from the plaintext sums")

    cells = rows * max(features, 1) * 1e-6
    print(f"hint       {clock.cpu['hint'] / cells:7.3f} us CPU a row and feature (target 0.15)")
    print(f"           {clock.wall['hint']:7.3f} s wall")
    department_ms, bank_ms = clock.cpu["grant"] * 1e3, sum_of(clock.cpu, "request", "accept") * 1e3
    print(f"token      {department_ms / batch:7.3f} ms CPU for the department (target 6)")
    print(f"           {bank_ms / batch:7.3f} ms CPU for the bank (target 3), batches of {batch}")
    print(
        f"           {request_size_bytes(parameters, batch) / batch / 1e3:7.1f} kB up, "
        f"{reply_size_bytes(parameters, layout.columns, batch) / batch / 1e3:.1f} kB down"
    )
    online = sum_of(clock.wall, "query", "answer", "open")
    print(f"online     {clock.wall['query'] * 1e3:7.3f} ms query (wall)")
    print(f"           {clock.wall['answer'] * 1e3:7.3f} ms answer")
    print(f"           {clock.wall['open'] * 1e3:7.3f} ms open")
    print(
        f"           {query_size_bytes(rows) / 1e3:7.1f} kB up, "
        f"{answer_size_bytes(layout.columns) / 1e3:.1f} kB down"
    )
    if features:
        plain_s = clock.wall["bincount"]
        print(f"           {online / plain_s:7.2f} x numpy.bincount, wall (target 1.5)")
        cpu = sum_of(clock.cpu, "query", "answer", "open") / clock.cpu["bincount"]
        print(f"           {cpu:7.2f} x numpy.bincount, CPU")


def histogram(matrix: np.ndarray, v: np.ndarray, bins: int) -> np.ndarray:
    """The same sums in the clear."""
    sums = [np.bincount(column, weights=v, minlength=bins) for column in matrix]
    return np.concatenate([*sums, np.empty(0)]).astype(np.int64)


def sum_of(times: dict[str, float], *names: str) -> float:
    return sum(times[name] for name in names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 100_000), ("features", 20), ("bins", 32), ("tokens", 256)):
        parser.add_argument(name, nargs="?", type=int, default=default)
    parser.add_argument("integer_columns", nargs="?", type=int, default=0)
    main(**vars(parser.parse_args()))
