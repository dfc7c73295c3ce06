"""How the lab runs a joint task: all parties in this process, or a process for each.

Either way the parties' programs, messages and disclosures are those of a real job. What comes back
is the bank's result, and what it took.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clients.lab_table import Split
from federation.objects import JobManifest
from federation.tasks.local import local_seeds, run_scorecard_in_process
from federation.tasks.model import ScorecardResult
from federation.tasks.party import Progress

OFFLINE = ("agreement", "row keys", "binning", "tokens")  # stages without any label

Watch = Callable[[str, int, int], None]  # stage, step, steps


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of the bank: before and after the first label is touched, and with all else."""

    offline: float
    online: float
    total: float


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A finished joint task."""

    result: ScorecardResult
    seconds: Seconds
    size_bytes: int  # of all frames between all parties


def in_process(parts: Split, manifest: JobManifest, seed: int, watch: Watch) -> Run:
    """All parties in this process, each in a thread of its own."""

    def told(org: str, progress: Progress) -> None:
        if org == parts.bank:
            watch(progress.stage, progress.step, progress.steps)

    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        done = run_scorecard_in_process(
            parts.bank_data,
            parts.departments,
            manifest,
            local_seeds(parts.organisations, seed),
            executor=executor,
            report=told,
        )
    sent = sum(
        sum(traffic.sent_bytes.values())
        for channels in done.traffic.values()
        for traffic in channels.values()
    )
    return Run(done.result, seconds_of(done.result, time.monotonic() - began), sent)


def in_processes(parts: Split, manifest: JobManifest, seed: int, watch: Watch) -> Run:
    """A process for each party, over TLS through the real relay; nobody is asked to sign."""
    from clients import lab_processes  # takes Run from here

    return lab_processes.run(parts, manifest, seed, watch)


def seconds_of(result: ScorecardResult, total: float) -> Seconds:
    """The stages before any label is touched, and the rest."""
    offline = sum(result.seconds.get(stage, 0.0) for stage in OFFLINE)
    online = sum(result.seconds.values()) - offline
    return Seconds(offline, online, total)
