"""All parties of a scorecard in one process: for the laboratory, examples and tests.

The party programs, the protocols and the frames are those of a real job; only the channels are
queues and nobody signed anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from federation.channel import Channel, Traffic, in_process, run_in_process
from federation.errors import LianmoError
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
)
from federation.tables import BankData, DepartmentData
from federation.tasks import registry, row_keys, scorecard
from federation.tasks.checkpoints import CheckpointBook
from federation.tasks.model import DepartmentPart, ScorecardResult
from federation.tasks.party import Party, Progress
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.errors import ParameterError, ProtocolError
from protocols.row_key_books import MemoryAttemptBook, MemoryReplyBook
from protocols.streams import Randomness, digest

NOBODY = "0" * 64  # digest of what a local run does not have


@dataclass(frozen=True, slots=True)
class LocalRun:
    """What a run in one process leaves."""

    result: ScorecardResult
    parts: Mapping[str, DepartmentPart]
    ledgers: Mapping[str, Ledger]
    traffic: Mapping[str, Mapping[str, Traffic]]  # by party, then peer


def local_manifest(
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    parameters: ScorecardParameters | None = None,
    *,
    bank_org: str = "bank",
    customers_max: int | None = None,
    customers_min: int | None = None,
    job: str = "local-scorecard",
) -> JobManifest:
    """An unsigned manifest for data at hand; the limits default to the true number of customers.

    Raises UsageError where a real job could not be run safely either.
    """
    parameters = parameters or ScorecardParameters()
    most = customers_max or bank.customers
    codes = next(iter(departments.values())).codes
    query, tokens, between = scorecard.plan(
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
    return manifest.model_copy(update={"disclosures": scorecard.declare(manifest)})


def run_scorecard_in_process(
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    manifest: JobManifest,
    seeds: Mapping[str, bytes],
    *,
    executor: Executor | None = None,
    report: Callable[[str, Progress], None] = lambda org, progress: None,
    channels: Mapping[str, Mapping[str, Channel]] | None = None,
    attempt: int = 0,
    checkpoints: Mapping[str, CheckpointBook] | None = None,
    first_seeds: Mapping[str, bytes] | None = None,
) -> LocalRun:
    """Run all parties' programs, each in a thread of its own.

    seeds: 32 bytes of every party, kept apart as in a real job: equal seeds and data give equal
    frames. channels: to look into what is sent; queues by default. checkpoints: what another
    attempt goes on from; first_seeds: those of the first. Raises what the first party to fail
    raised.
    """
    bank_org = manifest.bank
    orgs = [bank_org, *manifest.departments]
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
            first_seed=(first_seeds or {}).get(org, b""),
        )
        for org in orgs
    }
    data: dict[str, BankData | DepartmentData] = {bank_org: bank, **departments}
    programs = {org: partial(run_party, parties[org], data[org]) for org in orgs}
    done: dict[str, Any] = run_in_process(programs)
    return LocalRun(
        done[bank_org],
        {org: done[org] for org in orgs[1:]},
        {org: party.ledger for org, party in parties.items()},
        {org: {peer: item.traffic for peer, item in links[org].items()} for org in orgs},
    )


def local_seeds(orgs: Sequence[str], seed: int) -> dict[str, bytes]:
    """Seeds for a run that is to be repeated; a real node draws its own from the system."""
    return {org: digest("local seed", org, seed) for org in orgs}


def _party(org: str, role: Role, data: BankData | DepartmentData) -> JobParty:
    fields = tuple(column.name for column in data.columns)
    return JobParty(org=org, role=role, dataset="local", catalogue_digest=NOBODY, fields=fields)


def _pair_seed(seeds: Mapping[str, bytes], a: str, b: str) -> bytes:
    # In a real job: X25519 between certified keys. Here both ends are in one hand anyway.
    return digest("local pair seed", seeds[a], seeds[b])


def local_party(
    org: str,
    manifest: JobManifest,
    seeds: Mapping[str, bytes],
    channels: Mapping[str, Channel],
    *,
    attempt: int = 0,
    executor: Executor | None = None,
    report: Callable[[str, Progress], None] = lambda org, progress: None,
    checkpoints: CheckpointBook | None = None,
    first_seed: bytes = b"",
) -> Party:
    """One party of a local run, with books in memory; first_seed: of the job's first attempt."""
    between = manifest.departments if org in manifest.departments else ()
    return Party(
        me=org,
        manifest=manifest,
        attempt=attempt,
        randomness=Randomness(seeds[org], bytes.fromhex(manifest.digest()), attempt),
        channels=channels,
        pair_seeds={
            peer: _pair_seed(seeds, *sorted((org, peer))) for peer in between if peer != org
        },
        ledger=Ledger(org, [line.entry() for line in manifest.disclosures]),
        spent=MemorySpentBook(),
        answers=MemoryAnswerBook(),
        reply_book=MemoryReplyBook(),
        attempt_book=MemoryAttemptBook(),
        first_master=first_seed,
        checkpoints=checkpoints,
        executor=executor,
        report=partial(report, org),
    )


def run_party(party: Party, data: BankData | DepartmentData) -> Any:
    """The party's program; one that fails tells the others, so that they need not wait for it."""
    try:
        return registry.run_party(party, data)
    except Exception as error:
        code = type(error).__name__
        if not isinstance(error, LianmoError | ProtocolError | ParameterError):
            code = "internal"
        for channel in party.channels.values():
            channel.stop(party.stage, code)
        raise
