"""All banks of a shared network in one process, with the platform: for examples and tests."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from federation.channel import Channel, in_process, run_in_process
from federation.errors import PartyLost
from federation.objects import (
    CoverRule,
    JobManifest,
    JobParty,
    Limits,
    NeuralParameters,
    Purpose,
    RegistrySnapshot,
    Role,
)
from federation.tables import BankData
from federation.tasks import row_keys
from federation.tasks.horizontal import NeuralResult, declare, run_bank
from federation.tasks.local import NOBODY, local_party
from federation.tasks.party import Membership, Party, RoundOrder, RoundReply
from protocols.secagg import Identity
from protocols.secagg_books import MemoryRoundBook
from protocols.streams import digest

PLATFORM = "platform"


class Conductor(Protocol):
    """Who applies the rounds (server/conductor.py)."""

    def order(self) -> RoundOrder:
        """What every bank is sent now."""

    def take(self, reply: RoundReply) -> None:
        """The mean over all banks."""

    def state(self) -> bytes:
        """Everything that the next round needs."""


def local_neural_manifest(
    banks: Mapping[str, BankData], parameters: NeuralParameters, job: str = "local-network"
) -> JobManifest:
    """An unsigned manifest for data at hand; the first bank proposes."""
    most = max(data.customers for data in banks.values())
    rows = max(data.cover_rows for data in banks.values())
    alignment, number = row_keys.agreed(most)
    fields = tuple(column.name for column in next(iter(banks.values())).columns)
    manifest = JobManifest(
        job=job,
        created="2026-01-01T00:00:00Z",
        purpose=Purpose.CREDIT_MODEL_TRAINING,
        task="neural",
        parties=(
            *(
                JobParty(
                    org=org, role=Role.BANK, dataset="local", catalogue_digest=NOBODY, fields=fields
                )
                for org in banks
            ),
            JobParty(org=PLATFORM, role=Role.PLATFORM),
        ),
        registry=RegistrySnapshot(
            digest=hashlib.sha256(b"").hexdigest(), rows=rows, region="local", as_of="2026-01-01"
        ),
        cover=CoverRule(rows=rows),
        alignment=alignment,
        package_sha256=NOBODY,
        parameters=parameters,
        limits=Limits(
            customers_max=most,
            row_keys=number,
            customers_min=min(data.customers for data in banks.values()),
            tokens=0,
        ),
        disclosures=(),
        outputs=tuple(banks),
        not_before="2026-01-01T00:00:00Z",
        expires="2100-01-01T00:00:00Z",
    )
    return manifest.model_copy(update={"disclosures": declare(manifest)})


def run_neural_in_process(
    banks: Mapping[str, BankData],
    manifest: JobManifest,
    seeds: Mapping[str, bytes],
    conductor: Conductor,
    *,
    channels: Mapping[str, Mapping[str, Channel]] | None = None,
    attempt: int = 0,
    kept: Callable[[bytes], None] = lambda state: None,
) -> dict[str, NeuralResult]:
    """Every bank's program in a thread of its own, the platform's rounds between them.

    conductor: the platform's part (`server.conductor`), new or of an earlier attempt. kept: called
    with its state after every round.
    """
    links = channels or in_process(list(banks))
    people = memberships(banks, seeds)
    rounds = LocalRounds(list(banks), manifest.bank, conductor, kept)
    programs = {}
    for org, data in banks.items():
        party = local_party(org, manifest, seeds, links[org], attempt=attempt)
        party.membership, party.rounds = people[org], rounds.of(org)
        programs[org] = partial(_run, party, data)
    return run_in_process(programs)


def _run(party: Party, data: BankData) -> NeuralResult:
    try:
        return run_bank(party, data)
    except BaseException:
        for channel in party.channels.values():
            channel.stop(party.stage, "FAILED")
        raise


def memberships(orgs: Mapping[str, object], seeds: Mapping[str, bytes]) -> dict[str, Membership]:
    """Keys that a real job takes from the cards of the organisations."""
    agreeing = {o: X25519PrivateKey.from_private_bytes(digest("agree", seeds[o])) for o in orgs}
    signing = {o: Ed25519PrivateKey.from_private_bytes(digest("sign", seeds[o])) for o in orgs}
    certified = {o: key.public_key().public_bytes_raw() for o, key in agreeing.items()}

    def verify(org: str, message: bytes, signature: bytes) -> bool:
        try:
            signing[org].public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def agree(org: str, peer: bytes) -> bytes:
        return agreeing[org].exchange(X25519PublicKey.from_public_bytes(peer))

    return {
        org: Membership(
            Identity(org, partial(agree, org), signing[org].sign, verify),
            certified,
            MemoryRoundBook(),
        )
        for org in orgs
    }


class LocalRounds:
    """The platform in this process: hands out a round when the one before is answered."""

    def __init__(
        self,
        orgs: list[str],
        lead: str,
        conductor: Conductor,
        kept: Callable[[bytes], None] = lambda state: None,
    ) -> None:
        self._lead, self._conductor, self._kept = lead, conductor, kept
        self._orders = {org: queue.Queue[RoundOrder]() for org in orgs}
        self._send()

    def of(self, org: str) -> _Seat:
        """The rounds as one bank sees them."""
        return _Seat(self, org)

    def _send(self) -> None:
        order = self._conductor.order()
        for waiting in self._orders.values():
            waiting.put(order)

    def take(self, org: str) -> RoundOrder:
        try:
            return self._orders[org].get(timeout=120)
        except queue.Empty:
            raise PartyLost("no round came", party=PLATFORM, stage="rounds") from None

    def give(self, org: str, reply: RoundReply) -> None:
        if org == self._lead and reply.weights is not None:
            self._conductor.take(reply)
            self._kept(self._conductor.state())
            self._send()


@dataclass(frozen=True, slots=True)
class _Seat:
    """One bank's `federation.tasks.party.Rounds`."""

    rounds: LocalRounds
    org: str

    def take(self) -> RoundOrder:
        return self.rounds.take(self.org)

    def give(self, reply: RoundReply) -> None:
        self.rounds.give(self.org, reply)
