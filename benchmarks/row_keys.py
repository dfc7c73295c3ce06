"""Row keys of 50,000 customers in 1,000,000 rows: set OPRF beside the VOPRF, in one run.

    python benchmarks/row_keys.py [CUSTOMERS] [REGISTRY]

CPU seconds of both sides, one thread, messages as frames, kernels compiled before. The VOPRF with
its proofs is measured on a sample of rows and scaled: its cost is proportional (oprf.py). Every key
of the bank is compared with the department's.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from federation import wire
from protocols import oprf, set_oprf
from protocols.row_key_books import Attempt, MemoryAttemptBook, MemoryReplyBook
from protocols.streams import Randomness, digest

T = TypeVar("T")

CUSTOMERS, REGISTRY = 50_000, 1_000_000
TARGET_S = 1.0  # CPU of both sides, at these sizes
SAMPLE = 2048  # rows of the VOPRF: two of its blocks
SNAPSHOT = digest("benchmark")


class Clock:
    """CPU seconds of all threads, by step."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}

    def __call__(self, step: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        result = work()
        self.cpu[step] = time.process_time() - start
        return result


def registry_of(rows: int) -> NDArray[np.bytes_]:
    return np.char.add(b"91", np.char.zfill(np.arange(rows).astype("S"), 16)).astype("S18")


def set_session(customers: int, registry: NDArray[np.bytes_]) -> tuple[dict[str, float], int, int]:
    """CPU seconds by step, and the bytes of both messages."""
    members = np.sort(np.random.default_rng(1).permutation(len(registry))[:customers])
    attempt = Attempt("bank", "department", SNAPSHOT, set_oprf.approved_size(customers), 1)
    clock, own = Clock(), registry[members]
    department = clock(
        "D start",
        lambda: set_oprf.Department(
            attempt, attempt.m, registry, os.urandom(32), MemoryAttemptBook()
        ),
    )
    up = clock("D hello", lambda: wire.encode(department.hello()))
    bank = clock(
        "B start",
        lambda: set_oprf.Bank(attempt, own, registry, os.urandom(32), MemoryReplyBook()),
    )
    down = clock("B reply", lambda: wire.encode(bank.reply(wire.decode(up, set_oprf.Hello))))
    keys = clock("D accept", lambda: department.accept(wire.decode(down, set_oprf.Reply)))
    held = clock("B keys", bank.finalize)
    everybody = clock("D keys", lambda: keys.row_keys(registry))
    if not np.array_equal(held.row_keys(own), everybody[members]):
        raise SystemExit("a customer's keys differ")
    return clock.cpu, len(up), len(down)


def voprf_sample() -> dict[str, float]:
    """CPU microseconds a registry row (D) and a customer (both sides, proofs included)."""
    codes, randomness = registry_of(SAMPLE), Randomness(digest("seed"), SNAPSHOT, 1)
    key, clock = oprf.key_for(digest("key"), "bank", SNAPSHOT), Clock()
    department = oprf.Department(key, SAMPLE, randomness)
    bank = oprf.Bank(key.public, codes, SAMPLE, randomness, "department")

    def agree() -> oprf.CustomerRowKeys:
        return bank.finalize(department.blind_evaluate(bank.blind()))

    held = clock("customer", agree)
    keys = clock("row", lambda: department.row_keys(codes))
    if not np.array_equal(held.row_keys(codes), keys):
        raise SystemExit("a customer's keys differ")
    return {step: seconds / SAMPLE * 1e6 for step, seconds in clock.cpu.items()}


def measure(customers: int, registry_rows: int, repeats: int = 3) -> dict[str, Any]:
    """The median session of `repeats`, and the scaled VOPRF."""
    registry = registry_of(registry_rows)
    set_session(min(300, customers), registry[: min(400, registry_rows)])  # compiles, or loads
    sessions = [set_session(customers, registry) for _ in range(repeats)]
    steps, up, down = sorted(sessions, key=lambda s: sum(s[0].values()))[repeats // 2]
    sample = voprf_sample()
    scaled_s = (sample["customer"] * customers + sample["row"] * registry_rows) / 1e6
    return {
        "steps": steps,
        "total_s": sum(steps.values()),
        "bytes": (up, down),
        "voprf_us": sample,
        "voprf_s": scaled_s,
        "m": set_oprf.approved_size(customers),
        "most_keys": set_oprf.most_keys(set_oprf.approved_size(customers), registry_rows),
    }


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table: {name, value, unit, reference, ratio, rows, note}."""
    return [as_row(measure(CUSTOMERS, REGISTRY), CUSTOMERS, REGISTRY)]


def as_row(result: dict[str, Any], customers: int, registry_rows: int) -> dict[str, Any]:
    return {
        "name": "row_keys",
        "value": round(result["total_s"], 3),
        "unit": "s CPU, both sides",
        "reference": round(result["voprf_s"], 1),
        "ratio": round(result["total_s"] / result["voprf_s"], 5),
        "rows": registry_rows,
        "note": f"{customers:,} customers, m = {result['m']:,}; reference: VOPRF with proofs, "
        f"scaled from {SAMPLE:,} rows; target {TARGET_S:g} s",
    }


def main(customers: int, registry_rows: int) -> None:
    result = measure(customers, registry_rows)
    steps = result["steps"]
    print(f"{customers:,} customers in {registry_rows:,} rows, CPU of one thread")
    for step, seconds in steps.items():
        print(f"  {step:22} {seconds:8.3f} s")
    for side, name in (("B", "bank"), ("D", "department")):
        total = sum(seconds for step, seconds in steps.items() if step.startswith(side))
        print(f"  {name:22} {total:8.3f} s")
    target = (
        f"   (target {TARGET_S:g})" if (customers, registry_rows) == (CUSTOMERS, REGISTRY) else ""
    )
    print(f"  {'both':22} {result['total_s']:8.3f} s{target}")
    up, down = result["bytes"]
    print(f"  {'D to B, B to D':22} {up / 1e3:8.1f} kB, {down / 1e6:.2f} MB")
    print(f"  {'approved number m':22} {result['m']:8,}; provably at most {result['most_keys']:,}")
    sample = result["voprf_us"]
    print(
        f"  {'VOPRF, scaled':22} {result['voprf_s']:8.1f} s   ({sample['row']:.0f} us a row,",
        end="",
    )
    print(
        f" {sample['customer']:.0f} us a customer), {result['voprf_s'] / result['total_s']:.0f} x"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("customers", nargs="?", type=int, default=CUSTOMERS)
    parser.add_argument("registry_rows", nargs="?", type=int, default=REGISTRY)
    main(**vars(parser.parse_args()))
