"""What would a joint job gain? One table, split among parties, run as a job and compared.

The joint model comes from the very party programs of a real job. Beside it stand two plaintext
models with the same bins and penalty: pooled (all columns in one place) and the bank's own columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from clients import lab_run, lab_trees
from clients.lab_run import Finding, Runner, Watch
from clients.lab_table import Split, read_hold_out, read_spec, read_table, split
from federation.errors import UsageError
from federation.objects import JobManifest, ScorecardParameters, TreesParameters, utc_text
from federation.package import package_sha256
from federation.report import report_of
from federation.tasks.local import local_manifest
from federation.tasks.model import ScorecardResult, fit_pooled

MIN_COHORT = 50
FEWEST_BINS, MAX_BINS = 12, 32  # docs/adr/0003
BADS_A_BIN = 60
TASKS: dict[str, type[ScorecardParameters] | type[TreesParameters]] = {
    "scorecard": ScorecardParameters,
    "trees": TreesParameters,
}


def try_table(
    table: Path,
    spec: Path,
    *,
    task: str = "scorecard",
    bank: str | None = None,
    test_rows: Path | None = None,
    processes: bool = False,
    settings: Mapping[str, object] | None = None,
    openings: int | None = None,
    min_cohort: int | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    foretell: Callable[[JobManifest], None] = lambda manifest: None,
) -> Finding:
    """Read, split, run, compare; raises UsageError for whatever is wrong with files or settings.

    foretell: told the job's manifest before the long work begins.

    settings: parameters of the task that are not to have the lab's defaults, as text or numbers.
    """
    named = {"openings": openings, "min_cohort": min_cohort}
    told_of = {**(settings or {}), **{k: v for k, v in named.items() if v is not None}}
    if task not in TASKS:
        raise UsageError(f"no task {task}; there are: {', '.join(TASKS)}")
    parsed = parse_settings(task, told_of)
    told = watch or (lambda stage, step, steps: None)
    told("reading", 0, 1)
    specification = read_spec(spec)
    hold_out = None if test_rows is None else read_hold_out(test_rows)
    parts = split(read_table(table), specification, bank=bank, hold_out=hold_out, seed=seed)
    runner = lab_run.in_processes if processes else lab_run.in_process
    if task == "trees":
        trees = lab_trees.parameters_for(parsed)
        foretell(lab_trees.manifest_of(parts, trees))
        return lab_trees.try_split(parts, trees, seed=seed, watch=told, runner=runner)
    parameters = parameters_for(parts, parsed)
    foretell(manifest_of(parts, parameters))
    return try_split(parts, parameters, seed=seed, watch=told, runner=runner)


def parse_settings(task: str, settings: Mapping[str, object]) -> dict[str, object]:
    """The settings as the task's parameters have them; UsageError that names what is wrong."""
    kind = TASKS[task]
    if unknown := sorted(settings.keys() - kind.model_fields.keys()):
        known = ", ".join(sorted(kind.model_fields))
        raise UsageError(f"a {task} job has no setting {unknown[0]}", todo=f"there are: {known}")
    lists = {name for name, field in kind.model_fields.items() if field.default == ()}
    plain = {
        name: tuple(str(value).split(",")) if name in lists and value != "" else value
        for name, value in settings.items()
    }
    try:
        made = kind.model_validate(plain, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "settings"
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{place}: {what}") from None
    return {name: getattr(made, name) for name in plain}


def try_split(
    parts: Split, parameters: ScorecardParameters, *, seed: int, watch: Watch, runner: Runner
) -> Finding:
    """Run the joint job on a split table and compare."""
    now = datetime.now(UTC)
    manifest = manifest_of(parts, parameters)
    run = runner(parts, manifest, seed, watch)
    if not isinstance(run.result, ScorecardResult):
        raise TypeError("a scorecard was to be run")
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
    parts: Split, settings: Mapping[str, object] | None = None
) -> ScorecardParameters:
    """A job's defaults, but on a small table coarser bins, and bins of fewer customers.

    What limits a fine bin is how many bads it has: on tables of 200 to 900 bads 10 to 16 pre-bins
    gave a test AUC that was 0.005 to 0.03 higher than 32.
    """
    customers, bads = parts.bank_data.customers, int(parts.bank_data.labels.sum())
    fitting = {
        "min_cohort": max(5, min(MIN_COHORT, customers // 20)),
        "max_bins": max(FEWEST_BINS, min(MAX_BINS, min(bads, customers - bads) // BADS_A_BIN)),
    }
    return ScorecardParameters.model_validate(fitting | dict(settings or {}))


def manifest_of(parts: Split, parameters: ScorecardParameters) -> JobManifest:
    """The manifest that a real job of these parties would have, unsigned.

    Its dates are fixed: all randomness is bound to its digest, and a lab run can be repeated.
    """
    manifest = local_manifest(
        {parts.bank: parts.bank_data}, parts.departments, parameters, job=parts.job
    )
    named = {"registry": parts.registry.described(), "package_sha256": package_sha256()}
    return manifest.model_copy(update=named)
