"""Several banks and departments of one job in one process: for examples, tests and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from federation.channel import Channel, in_process, run_in_process
from federation.ledger import Ledger
from federation.objects import (
    CoverRule,
    JobManifest,
    JobParty,
    Limits,
    Purpose,
    RegistrySnapshot,
    Role,
    ScorecardParameters,
    TreesParameters,
)
from federation.tables import BankData, DepartmentData
from federation.tasks import registry, row_keys
from federation.tasks.local import NOBODY, local_party, run_party
from federation.tasks.neural_local import memberships


@dataclass(frozen=True, slots=True)
class SharedRun:
    """What a run in one process leaves, by party."""

    results: Mapping[str, Any]  # of the banks
    parts: Mapping[str, Any]  # of the departments
    ledgers: Mapping[str, Ledger]


def shared_manifest(
    banks: Mapping[str, BankData],
    departments: Mapping[str, DepartmentData],
    parameters: ScorecardParameters | TreesParameters,
    job: str = "local-shared",
) -> JobManifest:
    """An unsigned manifest for data at hand; the first bank proposes.

    Raises UsageError where a real job could not be run safely either.
    """
    most = max(data.customers for data in banks.values())
    rows = next(iter(banks.values())).cover_rows
    codes = next(iter(departments.values())).codes
    task = registry.task_of(parameters)
    query, tokens, between = task.plan(
        rows=rows,
        customers_max=most,
        bank_fields=len(next(iter(banks.values())).columns),
        department_fields={org: len(data.columns) for org, data in departments.items()},
        parameters=parameters,
        banks=len(banks),
    )
    alignment, number = row_keys.agreed(most)
    manifest = JobManifest(
        job=job,
        created="2026-01-01T00:00:00Z",
        purpose=Purpose.CREDIT_MODEL_TRAINING,
        task=registry.name_of(parameters),
        parties=(
            *(_party(org, Role.BANK, data) for org, data in banks.items()),
            *(_party(org, Role.DEPARTMENT, data) for org, data in departments.items()),
        ),
        registry=RegistrySnapshot(
            digest=hashlib.sha256(codes.tobytes()).hexdigest(),
            rows=rows,
            region="local",
            as_of="2026-01-01",
        ),
        cover=CoverRule(rows=rows),
        alignment=alignment,
        package_sha256=NOBODY,
        parameters=parameters,
        query=query,
        limits=Limits(
            customers_max=most,
            row_keys=number,
            customers_min=min(data.customers for data in banks.values()),
            tokens=tokens,
            tokens_between=between,
        ),
        disclosures=(),
        outputs=tuple(banks),
        not_before="2026-01-01T00:00:00Z",
        expires="2100-01-01T00:00:00Z",
    )
    return manifest.model_copy(update={"disclosures": task.declare(manifest)})


def run_shared_in_process(
    banks: Mapping[str, BankData],
    departments: Mapping[str, DepartmentData],
    manifest: JobManifest,
    seeds: Mapping[str, bytes],
    *,
    executor: Executor | None = None,
    channels: Mapping[str, Mapping[str, Channel]] | None = None,
    attempt: int = 0,
) -> SharedRun:
    """Every party's program in a thread of its own; raises what the first party to fail raised."""
    orgs = [*banks, *departments]
    links = channels or in_process(orgs)
    parties = {
        org: local_party(org, manifest, seeds, links[org], attempt=attempt, executor=executor)
        for org in orgs
    }
    for org, membership in memberships(banks, seeds).items():
        parties[org].membership = membership
    data: dict[str, BankData | DepartmentData] = {**banks, **departments}
    programs = {org: partial(run_party, parties[org], data[org]) for org in orgs}
    done: dict[str, Any] = run_in_process(programs)
    return SharedRun(
        {org: done[org] for org in banks},
        {org: done[org] for org in departments},
        {org: party.ledger for org, party in parties.items()},
    )


def _party(org: str, role: Role, data: BankData | DepartmentData) -> JobParty:
    fields = tuple(column.name for column in data.columns)
    return JobParty(org=org, role=role, dataset="local", catalogue_digest=NOBODY, fields=fields)
