"""Linear query against plaintext, as ratios of one run (DESIGN "Performance targets").

    python benchmarks/linear_query.py [ROWS] [FEATURES] [BINS] [TOKENS] [INTEGER_COLUMNS]

CPU is the process time of all threads. Every opening is compared with the plaintext sums.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from federation import wire
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.linear_query import (
    Answer,
    Bank,
    Department,
    Query,
    TokenReply,
    TokenRequest,
)
from protocols.parameters import (
    Layout,
    Parameters,
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


@dataclass(frozen=True)
class Figures:
    """What one run measured."""

    clock: Clock
    parameters: Parameters
    layout: Layout
    peak_mb: float


def measure(rows: int, features: int, bins: int, tokens: int, integer_columns: int = 0) -> Figures:
    """Run both parties on random data; every opening is compared with the plaintext sums."""
    rng = np.random.default_rng(1)
    layout = Layout(rows, (bins,) * features, (31,) * integer_columns)
    matrix = rng.integers(0, bins, (features, rows)).astype(np.uint8)
    integers = rng.integers(-31, 32, (integer_columns, rows)).astype(np.int32)
    parameters = choose_parameters(layout, customers=rows, vmax=127, tokens=tokens)
    warm()
    clock = Clock()
    common: dict[str, Any] = {
        "parameters": parameters,
        "joint_seed": SEED,
        "manifest": MANIFEST,
        "attempt": 1,
        "matrix": "benchmark",
        "randomness": Randomness(os.urandom(32), MANIFEST, 1),
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        department = Department(
            layout=layout,
            bins=matrix,
            integers=integers,
            querier="bank",
            name="department",
            answers=MemoryAnswerBook(),
            executor=pool,
            **common,
        )
        bank = Bank(rows=rows, name="bank", spent=MemorySpentBook(), executor=pool, **common)
        department.commit()
        clock("hint", department.prepare)
        request = clock("request", lambda: wire.encode(bank.request_tokens()))
        reply = clock(
            "grant",
            lambda: wire.encode(department.grant_tokens(wire.decode(request, TokenRequest))),
        )
        clock(
            "accept",
            lambda: bank.accept_tokens("department", layout, wire.decode(reply, TokenReply)),
        )
        for _ in range(min(parameters.batch_tokens, 10)):
            v = rng.integers(-parameters.limb_max, parameters.limb_max + 1, rows)
            query = clock("query", lambda v=v: wire.encode(bank.query(v)))
            answer = clock(
                "answer",
                lambda query=query: wire.encode(department.answer(wire.decode(query, Query))),
            )
            opened = clock(
                "open",
                lambda answer=answer: bank.open("department", wire.decode(answer, Answer)),
            )
            plain = clock("bincount", lambda v=v: histogram(matrix, v, bins))
            expected = np.concatenate([plain, integers.astype(np.int64) @ v])
            if not np.array_equal(opened, expected):
                raise SystemExit("an opening differs from the plaintext sums")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return Figures(clock, parameters, layout, peak)


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table: the reference job's 100,000 rows, 20 features of 32 bins."""
    count, features, bins, tokens = 100_000, 20, 32, 256
    found = measure(count, features, bins, tokens)
    clock, batch = found.clock, found.parameters.batch_tokens
    online = sum_of(clock.wall, "query", "answer", "open")
    hint = clock.cpu["hint"] / (count * features) * 1e6
    token_d = clock.cpu["grant"] * 1e3 / batch
    token_b = sum_of(clock.cpu, "request", "accept") * 1e3 / batch
    plain = clock.wall["bincount"]
    by_cpu = sum_of(clock.cpu, "query", "answer", "open") / clock.cpu["bincount"]

    def row(name: str, value: float, unit: str, reference: float, note: str) -> dict[str, Any]:
        return {
            "name": name,
            "value": round(value, 4),
            "unit": unit,
            "reference": round(reference, 4),
            "ratio": round(value / reference, 3),
            "rows": count,
            "note": note,
        }

    both = "serialised messages included"
    return [
        row(
            "query_online",
            online,
            "s wall, both sides",
            plain,
            f"numpy.bincount; by CPU {by_cpu:.2f}; {both}",
        ),
        row("hint", hint, "us CPU a row and feature", 0.15, "reference: target"),
        row("token", token_d, "ms CPU of the department", 6.0, f"reference: target; {both}"),
        row("token_bank", token_b, "ms CPU of the bank", 3.0, f"reference: target; {both}"),
        row("memory", found.peak_mb, "MB peak, both parties", 1.0, "reference: 1 MB"),
    ]


def main(count: int, features: int, bins: int, tokens: int, integer_columns: int) -> None:
    """Print the figures of one shape."""
    found = measure(count, features, bins, tokens, integer_columns)
    clock, parameters, layout = found.clock, found.parameters, found.layout
    batch = parameters.batch_tokens
    print(f"{count} rows x {features} features x {bins} bins, {integer_columns} integer columns")
    print(f"{parameters}, {os.cpu_count()} cores")
    cells = count * max(features, 1) * 1e-6
    print(f"hint       {clock.cpu['hint'] / cells:7.3f} us CPU a row and feature (target 0.15)")
    department_ms, bank_ms = clock.cpu["grant"] * 1e3, sum_of(clock.cpu, "request", "accept") * 1e3
    print(f"token      {department_ms / batch:7.3f} ms CPU for the department (target 6)")
    print(f"           {bank_ms / batch:7.3f} ms CPU for the bank (target 3), batches of {batch}")
    print(
        f"           {request_size_bytes(parameters, batch) / batch / 1e3:7.1f} kB up, "
        f"{reply_size_bytes(parameters, layout.columns, batch) / batch / 1e3:.1f} kB down"
    )
    online = sum_of(clock.wall, "query", "answer", "open")
    for name in ("query", "answer", "open"):
        print(f"online     {clock.wall[name] * 1e3:7.3f} ms {name} (wall)")
    print(
        f"           {query_size_bytes(count) / 1e3:7.1f} kB up, "
        f"{answer_size_bytes(layout.columns) / 1e3:.1f} kB down"
    )
    if features:
        ratio = online / clock.wall["bincount"]
        print(f"           {ratio:7.2f} x numpy.bincount, wall (target 1.5)")


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
    asked = parser.parse_args()
    main(asked.rows, asked.features, asked.bins, asked.tokens, asked.integer_columns)
