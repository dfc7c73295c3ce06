"""What `lianmo job estimate` predicts beside what a job then carries, holds and takes.

    python -m benchmarks.estimate [--small]

Each shape runs with a process for every party over the real relay, so that memory is each party's
own (its peak resident set) and bytes are those of the channels; once more in one process for time,
since that is what the calibration measures.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime

from clients import calibration, lab_processes
from clients.calibration import Shape, made_up
from clients.lab_table import Split
from federation.estimate import Speeds, estimate
from federation.objects import JobManifest, ScorecardParameters, TreesParameters
from federation.registry import Registry
from federation.tasks.local import (
    local_manifest,
    local_seeds,
    run_scorecard_in_process,
    run_trees_in_process,
)

SHAPES = (
    Shape(30_000, 20_000, 6, (6, 6)),
    Shape(60_000, 60_000, 20, (20,)),
    Shape(30_000, 20_000, 6, (6, 6), 10, 5),
    Shape(100_000, 100_000, 20, (20,), 5, 5),
)
SMALL = (Shape(10_000, 8_000, 3, (3, 4)), Shape(10_000, 8_000, 3, (3,), 3, 4))


def compare(shape: Shape, speeds: Speeds) -> None:
    """Predict, run, print."""
    bank, departments = made_up(shape)
    if shape.trees:
        parameters = TreesParameters(trees=shape.trees, max_depth=shape.depth)
        manifest = local_manifest({"bank": bank}, departments, parameters)
    else:
        manifest = local_manifest({"bank": bank}, departments, ScorecardParameters())
    said = estimate(manifest, speeds=speeds)
    parts = Split(
        job=manifest.job,
        bank=manifest.bank,
        bank_data=bank,
        departments=departments,
        registry=Registry(next(iter(departments.values())).codes, date(2026, 1, 1), "bench"),
        names={},
        notes=(),
        rows=bank.positions,
    )
    run = lab_processes.run(parts, manifest, 1, lambda stage, step, steps: None)
    print(f"\n{shape}: {said.questions} questions")
    sent = sum(item.sent_bytes for item in said.parties)
    print(
        f"  bytes   {sent:>15,} predicted {run.size_bytes:>15,} counted {off(sent, run.size_bytes)}"
    )
    for item in said.parties:
        peak = run.peak_bytes[item.org]
        print(
            f"  memory  {item.memory_bytes >> 20:>11,} MiB predicted {peak >> 20:>11,} MiB seen    "
            f"{off(item.memory_bytes, peak)} {item.org}"
        )
    took, stages = in_process(manifest, shape)
    computing = said.computing_s or 0.0
    print(
        f"  time    {computing:>13.2f} s predicted {took:>13.2f} s taken   {off(computing, took)}"
    )
    for stage, seconds in (said.seconds or {}).items():
        print(f"     {stage:18} {seconds:8.2f} {stages.get(stage.split(' by ')[0], 0.0):8.2f}")


def off(said: float, was: float) -> str:
    """The error in percent."""
    return f"{100 * (said / was - 1):+6.1f} %"


def in_process(manifest: JobManifest, shape: Shape) -> tuple[float, Mapping[str, float]]:
    """Wall time with all parties in this process, and the bank's stages."""
    bank, departments = made_up(shape)
    seeds = local_seeds([manifest.bank, *departments], 1)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        stages: Mapping[str, float]
        if shape.trees:
            stages = run_trees_in_process(
                bank, departments, manifest, seeds, executor=pool
            ).result.seconds
        else:
            stages = run_scorecard_in_process(
                bank, departments, manifest, seeds, executor=pool
            ).result.seconds
    return time.perf_counter() - began, stages


def main() -> None:
    """Calibrate, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    began = time.perf_counter()
    speeds = calibration.calibrate(datetime.now(UTC))
    print(f"calibrated in {time.perf_counter() - began:.1f} s")
    for shape in SMALL if asked.small else SHAPES:
        compare(shape, speeds)


if __name__ == "__main__":
    main()
