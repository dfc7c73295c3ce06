"""All parties of a job in one process: for the laboratory, examples, tests and benchmarks.

The party programs, the protocols and the frames are those of a real job; only the channels are
queues and nobody signed anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypedDict, TypeVar, Unpack

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
    is_private,
)
from federation.tables import BankData, DepartmentData
from federation.tasks import registry, row_keys
from federation.tasks.checkpoints import CheckpointBook
from federation.tasks.local_banks import PLATFORM, memberships
from federation.tasks.model import DepartmentPart, ScorecardResult
from federation.tasks.party import Party, Progress, Rounds
from federation.tasks.registry import Parameters
from federation.tasks.trees_model import TreesPart, TreesResult
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.errors import ParameterError, ProtocolError
from protocols.row_key_books import MemoryAttemptBook, MemoryReplyBook
from protocols.streams import Randomness, digest

NOBODY = "0" * 64  # digest of what a local run does not have
R = TypeVar("R")
P = TypeVar("P")
Seeds = int | Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class LocalRun(Generic[R, P]):
    """What a run in one process leaves, by party."""

    results: Mapping[str, R]  # of the banks
    parts: Mapping[str, P]  # of the departments
    ledgers: Mapping[str, Ledger]
    traffic: Mapping[str, Mapping[str, Traffic]]  # by party, then peer

    @property
    def result(self) -> R:
        """Of the bank that proposed: of one bank, the result."""
        return next(iter(self.results.values()))


LocalScorecard = LocalRun[ScorecardResult, DepartmentPart]
LocalTrees = LocalRun[TreesResult, TreesPart]


class Terms(TypedDict, total=False):
    """What a local run may be told besides; see `run_job_in_process`."""

    executor: Executor | None
    report: Callable[[str, Progress], None]
    channels: Mapping[str, Mapping[str, Channel]] | None
    attempt: int
    checkpoints: Mapping[str, CheckpointBook] | None
    first_seeds: Mapping[str, bytes] | None
    rounds: Callable[[str], Rounds] | None


def local_manifest(
    banks: Mapping[str, BankData],
    departments: Mapping[str, DepartmentData],
    parameters: Parameters | None = None,
    *,
    customers_max: int | None = None,
    customers_min: int | None = None,
    job: str = "",
) -> JobManifest:
    """An unsigned manifest for data at hand, of a scorecard if no parameters are given.

    The first bank proposes. The limits default to the true numbers of customers. Banks alone have a
    platform with them, which their rounds come from. Raises UsageError where a real job could not
    be run safely either.
    """
    parameters = parameters or ScorecardParameters()
    task = registry.task_of(parameters)
    one = next(iter(banks.values()))
    most = customers_max or max(data.customers for data in banks.values())
    query, tokens, between = task.plan(
        rows=one.cover_rows,
        customers_max=most,
        bank_fields=len(one.columns),
        department_fields={org: len(data.columns) for org, data in departments.items()},
        parameters=parameters,
        banks=len(banks),
    )
    alignment, number = row_keys.agreed(most)
    codes = next((data.codes.tobytes() for data in departments.values()), b"")
    parties = [_party(org, Role.BANK, data) for org, data in banks.items()]
    parties += [_party(org, Role.DEPARTMENT, data) for org, data in departments.items()]
    if not departments:
        parties.append(JobParty(org=PLATFORM, role=Role.PLATFORM))
    manifest = JobManifest(
        job=job or f"local-{registry.name_of(parameters)}",
        created="2026-01-01T00:00:00Z",
        purpose=Purpose.CREDIT_MODEL_TRAINING,
        task=registry.name_of(parameters),
        parties=tuple(parties),
        registry=RegistrySnapshot(
            digest=hashlib.sha256(codes).hexdigest(),
            rows=one.cover_rows,
            region="local",
            as_of="2026-01-01",
        ),
        cover=CoverRule(rows=one.cover_rows),
        alignment=alignment,
        package_sha256=NOBODY,
        parameters=parameters,
        query=query,
        limits=Limits(
            customers_max=most,
            row_keys=number,
            customers_min=customers_min or min(data.customers for data in banks.values()),
            tokens=tokens,
            tokens_between=between,
            attempts=1 if is_private(parameters) else 3,
        ),
        disclosures=(),
        outputs=tuple(banks),
        not_before="2026-01-01T00:00:00Z",
        expires="2100-01-01T00:00:00Z",
    )
    return manifest.model_copy(update={"disclosures": task.declare(manifest)})


def _party(org: str, role: Role, data: BankData | DepartmentData) -> JobParty:
    fields = tuple(column.name for column in data.columns)
    return JobParty(org=org, role=role, dataset="local", catalogue_digest=NOBODY, fields=fields)


def run_job_in_process(
    banks: Mapping[str, BankData],
    departments: Mapping[str, DepartmentData],
    manifest: JobManifest,
    seeds: Seeds,
    *,
    executor: Executor | None = None,
    report: Callable[[str, Progress], None] = lambda org, progress: None,
    channels: Mapping[str, Mapping[str, Channel]] | None = None,
    attempt: int = 0,
    checkpoints: Mapping[str, CheckpointBook] | None = None,
    first_seeds: Mapping[str, bytes] | None = None,
    rounds: Callable[[str], Rounds] | None = None,
) -> LocalRun[Any, Any]:
    """Run all parties' programs, each in a thread of its own.

    seeds: 32 bytes of every party, kept apart as in a real job, or a number that they follow from:
    equal seeds and data give equal frames. channels: to look into what is sent; queues by default.
    checkpoints: what another attempt goes on from; first_seeds: those of the first. rounds: each
    bank's, of a task that takes its rounds (`LocalRounds.of`). Raises what the first party to fail
    raised.
    """
    data: dict[str, BankData | DepartmentData] = {**banks, **departments}
    links = channels or in_process(list(data))
    seeds = local_seeds(list(data), seeds) if isinstance(seeds, int) else seeds
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
        for org in data
    }
    if len(banks) > 1:
        for org, membership in memberships(list(banks), seeds).items():
            parties[org].membership = membership
    if rounds is not None:
        for org in banks:
            parties[org].rounds = rounds(org)
    programs = {org: partial(run_party, parties[org], data[org]) for org in data}
    done: dict[str, Any] = run_in_process(programs)
    return LocalRun(
        {org: done[org] for org in banks},
        {org: done[org] for org in departments},
        {org: party.ledger for org, party in parties.items()},
        {org: {peer: item.traffic for peer, item in links[org].items()} for org in data},
    )


def run_scorecard_in_process(
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    manifest: JobManifest,
    seeds: Seeds,
    **terms: Unpack[Terms],
) -> LocalScorecard:
    """`run_job_in_process` of a scorecard of one bank."""
    return run_job_in_process({manifest.bank: bank}, departments, manifest, seeds, **terms)


def run_trees_in_process(
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    manifest: JobManifest,
    seeds: Seeds,
    **terms: Unpack[Terms],
) -> LocalTrees:
    """`run_job_in_process` of boosted trees of one bank."""
    return run_job_in_process({manifest.bank: bank}, departments, manifest, seeds, **terms)


def local_seeds(orgs: Sequence[str], seed: int) -> dict[str, bytes]:
    """Seeds for a run that is to be repeated; a real node draws its own from the system."""
    return {org: digest("local seed", org, seed) for org in orgs}


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
