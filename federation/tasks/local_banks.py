"""What several banks of a job need besides, in one process: keys for their sums, the rounds of the
platform. For examples and tests; a real job has cards and a coordinator.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from federation.errors import PartyLost
from federation.tasks.party import Membership, RoundOrder, RoundReply
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


def memberships(orgs: Sequence[str], seeds: Mapping[str, bytes]) -> dict[str, Membership]:
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
        orgs: Sequence[str],
        lead: str,
        conductor: Conductor,
        kept: Callable[[bytes], None] = lambda state: None,
    ) -> None:
        """conductor: new, or an earlier attempt's. kept: called with its state after each round."""
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
