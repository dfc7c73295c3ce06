"""Jobs in one process whose manifest names auditors, with cards, escrow, records and transcripts.

job = audited(make_world(...).bank, ..., manifest)
account = job.accounts["dept_0"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from federation.channel import Channel, QueueTransport, in_process, run_in_process
from federation.envelope import Envelope, sign
from federation.escrow import CardDesk, Escrow, SealedSeed, hand_on, read, recover, take
from federation.identity import PrivateKey
from federation.objects import (
    AuditRule,
    CoverKind,
    DeclaredDisclosure,
    JobManifest,
    RunRecord,
    Usage,
)
from federation.replay import Account, Opened
from federation.tables import BankData, DepartmentData
from federation.tasks.checkpoints import MemoryCheckpointBook
from federation.tasks.cover import CoverRows
from federation.tasks.local import local_party, local_seeds, run_party
from federation.tasks.party import Party
from federation.transcript import MemoryTranscript
from federation.trust import TrustStore
from protocols.streams import Randomness
from tests.federation.parties import NOW, Org, make_org, trust_of

AUDITORS = ("audit-a", "audit-b", "audit-c")


@dataclass
class AuditedJob:
    """All that the parties of a finished job and its auditors hold."""

    manifest: JobManifest
    orgs: dict[str, Org]
    trust: TrustStore
    seeds: dict[str, bytes]
    data: dict[str, BankData | DepartmentData]
    parties: dict[str, Party]
    transcripts: dict[str, MemoryTranscript]
    escrows: dict[str, SealedSeed]
    outcomes: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None  # that the run ended with

    before: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def cover(self) -> CoverRows:
        """Of a job over the bank's customers: every row of the cover is one."""
        return CoverRows(bytes(32), np.arange(self.manifest.cover.rows, dtype=np.int32))

    def run(self, org: str) -> Any:
        """The program, with what a node does before it where the cover is not the registry."""
        party, bank = self.parties[org], self.manifest.bank
        if self.manifest.cover.kind is not CoverKind.REGISTRY:
            for peer in self.manifest.departments if org == bank else ():
                party.channels[peer].send("cover", self.cover)
            if org != bank:
                party.channels[bank].receive("cover", CoverRows)
        return run_party(party, self.data[org])

    @property
    def accounts(self) -> dict[str, Account]:
        return {
            org: Account(self.record(org), self.transcripts[org], self.escrows.get(org))
            for org in self.parties
        }

    def record(self, org: str) -> RunRecord:
        party = self.parties[org]
        return RunRecord(
            job=self.manifest.job,
            manifest=self.manifest.digest(),
            org=org,
            attempt=party.attempt,
            package_sha256="0" * 64,
            fab_sha256="0" * 64,
            run_config_sha256="0" * 64,
            snapshot="0" * 64,
            commitments=(),
            committed=tuple(party.committed),
            transcript=tuple(
                (peer, c.traffic.sent_digest.hex(), c.traffic.received_digest.hex())
                for peer, c in sorted(party.channels.items())
            ),
            disclosures=tuple[DeclaredDisclosure, ...](),
            tokens=0,
            output=None,
            outcome=self.outcomes.get(org, "succeeded"),  # type: ignore[arg-type]  # a literal
            stage=party.stage,
            started="2026-01-01T00:00:00Z",
            ended="2026-01-01T00:00:00Z",
        )

    def opened(self, org: str) -> Opened:
        party = self.parties[org]
        is_named = self.manifest.cover.kind is not CoverKind.REGISTRY
        return Opened(
            self.seeds[org],
            self.data[org],
            pair_seeds=party.pair_seeds,
            before=self.before.get(org, {}),
            cover=self.cover if is_named and org == self.manifest.bank else None,
        )

    def escrow(self, holder: str) -> Escrow:
        now = NOW
        attempt = self.parties[holder].attempt
        return read(self.escrows[holder], self.manifest, attempt, self.trust, now)

    def handed(self, auditor: str, to: str) -> Envelope:
        org = self.orgs[auditor]
        made = hand_on(self.escrow("bank"), auditor, key(org, Usage.ENCRYPT), to, self.trust, NOW)
        return sign(made, key(org, Usage.RUN))

    def recovered(self, *auditors: str, holder: str = "") -> Randomness:
        """The bank's draws, as the first of the auditors gets them."""
        me, escrow = self.orgs[auditors[0]], self.escrow(holder or "bank")
        shares = {}
        for auditor in auditors:
            given = self.handed(auditor, me.id)
            shares[auditor] = take(escrow, given, me.id, key(me, Usage.ENCRYPT), self.trust, NOW)[1]
        return recover(escrow, shares)


def key(org: Org, usage: Usage) -> PrivateKey:
    return org.keys.by_usage[usage]


def audited(
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    manifest: JobManifest,
    *,
    seed: int = 0,
    auditors: tuple[str, ...] = AUDITORS,
    wrap: Callable[[str, Any], Any] = lambda org, desk: desk,
    is_failing: bool = False,
    attempt: int = 0,
    books: Mapping[str, MemoryCheckpointBook] | None = None,
) -> AuditedJob:
    """Run all parties; `wrap` may replace a party's desk. is_failing: keep what there is.

    books: what a later attempt goes on from.
    """
    manifest = manifest.model_copy(update={"audit": AuditRule(auditors=auditors)})
    names = [manifest.bank, *manifest.departments]
    kinds = {manifest.bank: "bank"} | dict.fromkeys(auditors, "auditor")
    orgs = {n: make_org(n, kinds.get(n, "department")) for n in (*names, *AUDITORS)}
    trust = trust_of(*orgs.values())
    seeds, escrows = local_seeds(names, seed), dict[str, SealedSeed]()
    transcripts = {name: MemoryTranscript() for name in names}
    plain = in_process(names)
    channels = {
        me: {
            peer: Channel(me, peer, inner(channel), recorder=transcripts[me])
            for peer, channel in plain[me].items()
        }
        for me in names
    }
    parties = {
        name: local_party(
            name,
            manifest,
            seeds,
            channels[name],
            attempt=attempt,
            checkpoints=(books or {}).get(name),
        )
        for name in names
    }
    before = {name: dict(book._parts) for name, book in (books or {}).items()}
    for name, party in parties.items():
        run_key = key(orgs[name], Usage.RUN) if name == manifest.bank else None
        keep = partial(escrows.__setitem__, name)
        party.desk = wrap(name, CardDesk(manifest, attempt, trust, lambda: NOW, run_key, keep))
    data: dict[str, BankData | DepartmentData] = {manifest.bank: bank, **departments}
    job = AuditedJob(manifest, orgs, trust, seeds, data, parties, transcripts, escrows)
    job.before = before
    programs = {name: partial(job.run, name) for name in names}
    if not is_failing:
        run_in_process(programs)
        return job
    job.outcomes = dict.fromkeys(names, "failed")
    try:
        run_in_process(programs)
    except Exception as error:  # noqa: BLE001 - whatever the attack made of it
        job.error = error
    return job


def inner(channel: Channel) -> QueueTransport:
    transport = channel._transport
    assert isinstance(transport, QueueTransport)
    return transport
