"""How the lab runs a joint task: all parties in this process, or a process for each.

Either way the parties' programs, messages and disclosures are those of a real job. What comes back
is the bank's result, and what it took.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from clients.lab_table import Split
from federation.objects import JobManifest
from federation.report import Report
from federation.tasks.local import local_seeds, run_scorecard_in_process, run_trees_in_process
from federation.tasks.model import ScorecardResult
from federation.tasks.party import Progress
from federation.tasks.trees_model import TreesResult

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

    result: ScorecardResult | TreesResult
    seconds: Seconds
    size_bytes: int  # of all frames between all parties
    peak_bytes: Mapping[str, int] = field(default_factory=dict)  # where each has a process


@dataclass(frozen=True, slots=True)
class Variant:
    """The same trees under other settings, grown in the clear: equal to a job's to the bit."""

    what: str
    changed: Mapping[str, Any]  # parameters that differ from those of the run
    questions: int  # to each department
    exposure: float
    thresholds: Mapping[str, int]  # opened, by department
    auc: float | None  # of the test customers; None: not grown
    ks: float | None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "changed": dict(self.changed),
            "questions": self.questions,
            "exposure": self.exposure,
            "thresholds": dict(self.thresholds),
            "auc": self.auc,
            "ks": self.ks,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """What the lab found."""

    report: Report
    notes: tuple[str, ...]  # what a person should know about the table
    seconds: Seconds
    size_bytes: int  # all frames of all parties
    capped: Variant | None = None  # of trees: with a job's usual limits
    offers: tuple[Variant, ...] = ()  # of trees: settings within the exposure budget

    def summary(self) -> dict[str, Any]:
        """The one object of `--json`."""
        quality = self.report.assessment
        if quality is None:
            raise RuntimeError("a lab run opens its evaluation")
        models = {
            "joint": quality.joint,
            "pooled": quality.pooled,
            "bank_only": quality.bank_only,
        }
        found = {name: model for name, model in models.items() if model is not None}
        return {
            "task": self.report.task,
            "auc": {name: model.auc.value for name, model in found.items()},
            "ks": {name: model.ks.value for name, model in found.items()},
            **self._of_the_task(),
            "exposure": self.report.exposure.value,
            "rows": {"train": quality.train_rows, "test": quality.test_rows},
            "seconds": {
                "offline": self.seconds.offline,
                "online": self.seconds.online,
                "total": self.seconds.total,
            },
            "bytes": self.size_bytes,
        }

    def _of_the_task(self) -> dict[str, Any]:
        if self.report.trees is None or self.capped is None:
            return {"openings": self.report.openings}
        return {
            "trees": self.report.trees.kept,
            "thresholds": dict(self.report.trees.bits_a_customer),
            "capped": self.capped.plain(),
            "offers": [item.plain() for item in self.offers],
        }


Runner = Callable[[Split, JobManifest, int, Watch], Run]


def in_process(parts: Split, manifest: JobManifest, seed: int, watch: Watch) -> Run:
    """All parties in this process, each in a thread of its own."""

    def told(org: str, progress: Progress) -> None:
        if org == parts.bank:
            watch(progress.stage, progress.step, progress.steps)

    began = time.monotonic()
    run_all = run_trees_in_process if manifest.task == "trees" else run_scorecard_in_process
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        done = run_all(
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


def seconds_of(result: ScorecardResult | TreesResult, total: float) -> Seconds:
    """The stages before any label is touched, and the rest."""
    offline = sum(result.seconds.get(stage, 0.0) for stage in OFFLINE)
    online = sum(result.seconds.values()) - offline
    return Seconds(offline, online, total)
