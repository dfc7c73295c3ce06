"""All parties of boosted trees in one process: for the laboratory, examples, tests, benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from federation.channel import Channel, Traffic, in_process, run_in_process
from federation.ledger import Ledger
from federation.objects import (
    CoverRule,
    JobManifest,
    Limits,
    Purpose,
    RegistrySnapshot,
    Role,
    TreesParameters,
)
from federation.tables import BankData, DepartmentData
from federation.tasks import boosting, row_keys
from federation.tasks.checkpoints import CheckpointBook
from federation.tasks.local import NOBODY, _party, local_party, local_seeds, run_party
from federation.tasks.party import Progress
from federation.tasks.trees_model import TreesPart, TreesResult


@dataclass(frozen=True, slots=True)
class LocalTrees:
    """What a run in one process leaves."""

    result: TreesResult
    parts: Mapping[str, TreesPart]
    ledgers: Mapping[str, Ledger]
    traffic: Mapping[str, Mapping[str, Traffic]]  # by party, then peer


def local_trees_manifest(
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    parameters: TreesParameters | None = None,
    *,
    bank_org: str = "bank",
    customers_max: int | None = None,
    customers_min: int | None = None,
    job: str = "local-trees",
) -> JobManifest:
    """An unsigned manifest for data at hand; the limits default to the true number of customers.

    Raises UsageError where a real job could not be run safely either.
    """
    parameters = parameters or TreesParameters()
    most = customers_max or bank.customers
    codes = next(iter(departments.values())).codes
    query, tokens, between = boosting.plan(
        rows=bank.cover_rows,
        customers_max=most,
        bank_fields=len(bank.columns),
        department_fields={org: len(data.columns) for org, data in departments.items()},
        parameters=parameters,
    )
    alignment, number = row_keys.agreed(most)
    manifest = JobManifest(
        job=job,
        created="2026-01-01T00:00:00Z",
        purpose=Purpose.CREDIT_MODEL_TRAINING,
        task="trees",
        parties=(
            _party(bank_org, Role.BANK, bank),
            *(_party(org, Role.DEPARTMENT, data) for org, data in departments.items()),
        ),
        registry=RegistrySnapshot(
            digest=hashlib.sha256(codes.tobytes()).hexdigest(),
            rows=bank.cover_rows,
            region="local",
            as_of="2026-01-01",
        ),
        cover=CoverRule(rows=bank.cover_rows),
        alignment=alignment,
        package_sha256=NOBODY,
        parameters=parameters,
        query=query,
        limits=Limits(
            customers_max=most,
            row_keys=number,
            customers_min=customers_min or bank.customers,
            tokens=tokens,
            tokens_between=between,
        ),
        disclosures=(),
        outputs=(bank_org,),
        not_before="2026-01-01T00:00:00Z",
        expires="2100-01-01T00:00:00Z",
    )
    return manifest.model_copy(update={"disclosures": boosting.declare(manifest)})


def run_trees_in_process(
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    manifest: JobManifest,
    seed: int | Mapping[str, bytes] = 0,
    *,
    executor: Executor | None = None,
    report: Callable[[str, Progress], None] = lambda org, progress: None,
    channels: Mapping[str, Mapping[str, Channel]] | None = None,
    attempt: int = 0,
    checkpoints: Mapping[str, CheckpointBook] | None = None,
) -> LocalTrees:
    """Run all parties' programs, each in a thread of its own.

    seed: a number, or 32 bytes of every party; equal seeds and data give equal frames. channels: to
    look into what is sent; queues by default. checkpoints: what another attempt goes on from.
    Raises what the first party to fail raised.
    """
    bank_org = manifest.bank
    orgs = [bank_org, *manifest.departments]
    seeds = local_seeds(orgs, seed) if isinstance(seed, int) else seed
    links = channels or in_process(orgs)
    parties = {
        org: local_party(
            org,
            manifest,
            seeds,
            links[org],
            attempt=attempt,
            executor=executor,
            report=report,
            checkpoints=(checkpoints or {}).get(org),
        )
        for org in orgs
    }
    data: dict[str, BankData | DepartmentData] = {bank_org: bank, **departments}
    programs = {org: partial(run_party, parties[org], data[org]) for org in orgs}
    done: dict[str, Any] = run_in_process(programs)
    return LocalTrees(
        done[bank_org],
        {org: done[org] for org in orgs[1:]},
        {org: party.ledger for org, party in parties.items()},
        {org: {peer: item.traffic for peer, item in links[org].items()} for org in orgs},
    )
