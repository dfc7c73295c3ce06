"""What would a joint job gain? One table, split among parties, run as a job and compared.

The joint model comes from the very party programs of a real job. Beside it stand two plaintext
models with the same bins and penalty: pooled (all columns in one place) and the bank's own columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clients import lab_run
from clients.lab_run import Run, Seconds, Watch
from clients.lab_table import Split, read_hold_out, read_spec, read_table, split
from federation.objects import JobManifest, ScorecardParameters, utc_text
from federation.package import package_sha256
from federation.report import Report, report_of
from federation.tasks.local import local_manifest
from federation.tasks.model import fit_pooled

MIN_COHORT = 50
FEWEST_BINS, MAX_BINS = 12, 32  # docs/adr/0003
BADS_A_BIN = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """What the lab found."""

    report: Report
    notes: tuple[str, ...]  # what a person should know about the table
    seconds: Seconds
    size_bytes: int  # all frames of all parties

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
            "openings": self.report.openings,
            "exposure": self.report.exposure.value,
            "rows": {"train": quality.train_rows, "test": quality.test_rows},
            "seconds": {
                "offline": self.seconds.offline,
                "online": self.seconds.online,
                "total": self.seconds.total,
            },
            "bytes": self.size_bytes,
        }


def try_table(
    table: Path,
    spec: Path,
    *,
    bank: str | None = None,
    test_rows: Path | None = None,
    processes: bool = False,
    openings: int = 3,
    min_cohort: int | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Finding:
    """Read, split, run, compare; raises UsageError for whatever is wrong with the files."""
    told = watch or (lambda stage, step, steps: None)
    told("reading", 0, 1)
    specification = read_spec(spec)
    hold_out = None if test_rows is None else read_hold_out(test_rows)
    parts = split(read_table(table), specification, bank=bank, hold_out=hold_out, seed=seed)
    parameters = parameters_for(parts, openings=openings, min_cohort=min_cohort)
    runner = lab_run.in_processes if processes else lab_run.in_process
    return try_split(parts, parameters, seed=seed, watch=told, runner=runner)


Runner = Callable[[Split, JobManifest, int, Watch], Run]


def try_split(
    parts: Split, parameters: ScorecardParameters, *, seed: int, watch: Watch, runner: Runner
) -> Finding:
    """Run the joint job on a split table and compare."""
    now = datetime.now(UTC)
    manifest = manifest_of(parts, parameters)
    run = runner(parts, manifest, seed, watch)
    watch("comparing", 0, 1)
    report = report_of(
        run.result,
        manifest,
        created=utc_text(now),
        names=parts.names,
        pooled=fit_pooled(run.result, parts.bank, parts.bank_data, parts.departments, parameters),
        is_lab=True,
    )
    return Finding(report, parts.notes + run.result.notes, run.seconds, run.size_bytes)


def parameters_for(
    parts: Split, *, openings: int = 3, min_cohort: int | None = None
) -> ScorecardParameters:
    """A job's defaults, but on a small table coarser bins, and bins of fewer customers.

    What limits a fine bin is how many bads it has: on tables of 200 to 900 bads 10 to 16 pre-bins
    gave a test AUC that was 0.005 to 0.03 higher than 32.
    """
    customers, bads = parts.bank_data.customers, int(parts.bank_data.labels.sum())
    smallest = min_cohort or max(5, min(MIN_COHORT, customers // 20))
    most = max(FEWEST_BINS, min(MAX_BINS, min(bads, customers - bads) // BADS_A_BIN))
    return ScorecardParameters(openings=openings, min_cohort=smallest, max_bins=most)


def manifest_of(parts: Split, parameters: ScorecardParameters) -> JobManifest:
    """The manifest that a real job of these parties would have, unsigned.

    Its dates are fixed: all randomness is bound to its digest, and a lab run can be repeated.
    """
    manifest = local_manifest(
        parts.bank_data, parts.departments, parameters, bank_org=parts.bank, job=parts.job
    )
    named = {"registry": parts.registry.described(), "package_sha256": package_sha256()}
    return manifest.model_copy(update=named)
