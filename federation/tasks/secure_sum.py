"""Sums over several banks of which nobody sees more than the total (PROTOCOLS.md sections 4 and 7).

One of the banks, the same for a whole job, collects each round: it has the coordinator's part in
`protocols/secagg.py`, is trusted with nothing but the correctness of the total, and takes part like
any other. The frames go over the parties' own channels, so that the relay sees none of it.

    alone     a pool of one bank: every total is its own value, no message is sent
    several   one round of secure aggregation a call; every bank gets the total

Two kinds of job ask for two kinds of pool. With `everybody` (vertical statistics: the departments'
zero-sum masks only cancel over all banks) a bank that is away ends the step by name. Without, up
to n - threshold banks may vanish in every round and the total is over those that stayed.

Security    as `protocols/secagg.py` says, with the collecting bank in the coordinator's place: it
            may be active against the others' values; a total that it falsifies spoils the model
            that it is after itself, and is found when the transcripts are compared.
Disclosed   every total, to every bank of the pool; a bank's own value follows from a total only for
            all other banks together. The ledger counts each entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from federation.channel import Channel
from federation.errors import PartyLost, Refused, UsageError
from federation.ledger import What
from federation.tasks.party import Party
from protocols import labels, secagg
from protocols.errors import ProtocolError
from protocols.fixed_point import FixedPoint
from protocols.secagg import TooFewParties
from protocols.secagg_books import MIN_PARTIES, Round, least_threshold
from protocols.secagg_graph import COMPLETE_MAX
from protocols.streams import digest

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Total:
    """Collecting bank to all: the sum, and whose values are in it."""

    parties: tuple[str, ...]
    values: Integers = field(repr=False)


class Pool(Protocol):
    """The banks whose customers a statistic is about, as one bank's program sees them."""

    @property
    def members(self) -> tuple[str, ...]:
        """The banks, in ascending order."""

    def integers(self, what: str, values: Integers, bound: int) -> Integers:
        """The sum of every bank's values, in their shape; |value| <= bound at each bank."""

    def residues(self, what: str, values: Integers, modulus: int) -> Integers:
        """The same modulo `modulus`, for values in [0, modulus)."""

    def reals(self, what: str, values: Floats, clip: float, resolution: float) -> Floats:
        """The same for numbers clipped to +- clip, in steps of `resolution`, rounded at random."""


WIDE = 1 << 58  # a bound for integers that have room to spare


class Alone:
    """The pool of one bank: a total is its own value."""

    def __init__(self, me: str) -> None:
        self.members = (me,)

    def integers(self, what: str, values: Integers, bound: int) -> Integers:
        return values

    def residues(self, what: str, values: Integers, modulus: int) -> Integers:
        return values % modulus

    def reals(self, what: str, values: Floats, clip: float, resolution: float) -> Floats:
        return values


class SecurePool:
    """Several banks of one job; every call is one round, in the same order at every bank."""

    def __init__(
        self,
        party: Party,
        members: Sequence[str],
        lead: str,
        *,
        everybody: bool = True,
        statistic: Callable[[str, int], bytes] | None = None,
        corrupt: int | None = None,
        wait_s: float | None = None,
    ) -> None:
        """members: the banks. lead: which of them collects.

        statistic: what a total is of, by its name and number, over all jobs; by default the
        departments' datasets in their catalogue entries, the task and the step. corrupt: banks that
        may work together with the collecting one. wait_s: for a bank's message in each step; by
        default as long as a channel waits.
        """
        members = tuple(sorted(members))
        if party.membership is None:
            raise UsageError("this node has no key for sums over banks", party=party.me)
        if len(members) < MIN_PARTIES:
            todo = "take part with one bank more, or let each bank train alone"
            text = f"{len(members)} banks: of two, each reads the other's part in the total"
            raise Refused(text, party=party.me, todo=todo)
        self._party, self._everybody = party, everybody
        require_members(members, party.membership.certified)
        self._membership = party.membership
        self._statistic = statistic or self._by_catalogue
        self._corrupt, self._wait_s = corrupt, wait_s
        self._lead = lead
        self._number = 0
        self._away: set[str] = set()
        self.members = members
        self.survivors = members  # of the last total

    def integers(self, what: str, values: Integers, bound: int) -> Integers:
        flat = np.ascontiguousarray(values, np.int64).reshape(-1)
        return self._total(what, flat, bound).reshape(values.shape)

    def residues(self, what: str, values: Integers, modulus: int) -> Integers:
        return self.integers(what, values % modulus, modulus - 1) % modulus

    def reals(self, what: str, values: Floats, clip: float, resolution: float) -> Floats:
        scale = FixedPoint(clip, resolution)
        coded = scale.encode(values, self._party.randomness, stage=what, step=self._number)
        return scale.decode(self.integers(what, coded, scale.bound))

    @property
    def honest_survivors(self) -> int:
        """Banks whose noise is in a total for certain, whoever works with the collecting one."""
        return self._round("noise", 1, 1).honest_survivors

    # --- one round --------------------------------------------------------------------------------

    def _total(self, what: str, values: Integers, bound: int) -> Integers:
        party = self._party
        party.check()
        round_ = self._round(what, len(values), bound)
        self._number += 1
        for other in self.members:
            if other != party.me:
                bits = max((len(self.members) * bound).bit_length() + 1, 1)
                party.ledger.reveal(other, party.me, What.BANK_TOTALS, len(values), min(bits, 64))
                party.ledger.reveal(party.me, other, What.BANK_TOTALS, len(values), min(bits, 64))
        access = self._membership
        me = secagg.Party(round_, access.identity, access.certified, party.randomness, access.book)
        if party.me == self._lead:
            total = _Collecting(party, round_, me, self._away, self._wait_s, self._everybody)
            found = total.run(values)
        else:
            found = _follow(party.channels[self._lead], party.stage, round_, me, values)
        if found.values.shape != values.shape:
            raise ProtocolError(f"{self._lead} gives a total of another length")
        if self._everybody and found.parties != self.members:
            raise ProtocolError(f"{self._lead} gives a total over other banks than the job's")
        self.survivors = found.parties
        return found.values

    def _round(self, what: str, length: int, bound: int) -> Round:
        party, n = self._party, len(self.members)
        threshold = n if self._everybody else least_threshold(n)
        return Round(
            manifest=party.manifest_digest,
            attempt=party.attempt,
            number=self._number,
            label=what,
            statistic=self._statistic(what, self._number),
            members=self.members,
            length=length,
            bound=bound,
            threshold=threshold,
            bits=32 if n * bound < 1 << 31 else 64,
            corrupt=self._corrupt if self._corrupt is not None else _corrupt(n, threshold),
        )

    def _by_catalogue(self, what: str, number: int) -> bytes:
        """The same figure of the same tables, whatever job asks for it and for which banks."""
        manifest = self._party.manifest
        of = sorted(
            f"{item.org}/{item.dataset}/{item.catalogue_digest}"
            for item in manifest.parties
            if item.org in manifest.departments
        )
        return digest(labels.BANK_STATISTIC, manifest.task, what, number, *of)


def _corrupt(members: int, threshold: int) -> int:
    """As many corrupt banks as the threshold allows, at most all but two."""
    return min(2 * threshold - members - 1, members - 2)


def _follow(lead: Channel, stage: str, round_: Round, me: secagg.Party, values: Integers) -> Total:
    """One round as a bank that does not collect."""
    lead.send(stage, me.announce())
    roll = lead.receive(stage, secagg.Roll)
    coins = secagg.NO_COINS
    if len(round_.members) > COMPLETE_MAX:
        lead.send(stage, me.reveal(roll))
        coins = lead.receive(stage, secagg.Coins)
    lead.send(stage, me.share(roll, coins))
    lead.send(stage, me.mask(lead.receive(stage, secagg.Delivery), values))
    lead.send(stage, me.confirm(lead.receive(stage, secagg.Survivors)))
    lead.send(stage, me.unmask(lead.receive(stage, secagg.Confirmations)))
    return lead.receive(stage, Total)


class _Collecting:
    """One round as the bank that collects; a bank that is lost once is left out from then on."""

    def __init__(
        self,
        party: Party,
        round_: Round,
        me: secagg.Party,
        away: set[str],
        wait_s: float | None,
        everybody: bool,
    ) -> None:
        self._party, self._round, self._me = party, round_, me
        self._away, self._wait_s, self._everybody = away, wait_s, everybody
        access = party.membership
        if access is None:
            raise RuntimeError("a round without keys")
        self._hub = secagg.Coordinator(round_, access.certified, access.identity.verify)

    def run(self, values: Integers) -> Total:
        hub, me, mine = self._hub, self._me, self._party.me
        try:
            hub.announced(me.announce())
            self._collect(secagg.Announcement, hub.announced)
            roll = hub.roll()
            self._tell(lambda _: roll)
            if len(self._round.members) > COMPLETE_MAX:
                hub.revealed(me.reveal(roll))
                self._collect(secagg.Coin, hub.revealed)
            coins = hub.coins()
            if len(self._round.members) > COMPLETE_MAX:
                self._tell(lambda _: coins)
            hub.shared(me.share(roll, coins))
            self._collect(secagg.Shares, hub.shared)
            delivery = hub.delivery(mine)
            self._tell(hub.delivery)
            hub.masked(me.mask(delivery, values))
            self._collect(secagg.MaskedVector, hub.masked)
            survivors = hub.survivors()
            self._tell(lambda _: survivors)
            hub.confirmed(me.confirm(survivors))
            self._collect(secagg.Confirmation, hub.confirmed)
            confirmations = hub.confirmations()
            self._tell(lambda _: confirmations)
            hub.unmasked(me.unmask(confirmations))
            self._collect(secagg.Unmasking, hub.unmasked)
            total = Total(survivors.parties, hub.total())
        except TooFewParties as error:
            lost = ", ".join(sorted(self._away))
            todo = "the job waits for nobody in a sum: propose it again when all banks are there"
            raise PartyLost(str(error), party=lost, stage=self._party.stage, todo=todo) from error
        self._tell(lambda _: total)
        return total

    def _others(self) -> list[str]:
        gone = self._away | {self._party.me}
        return [name for name in self._round.members if name not in gone]

    def _collect(self, kind: type[M], take: Callable[[M], None]) -> None:
        """The next message of every bank that is there; what it says of itself must be true."""
        for name in self._others():
            message: Any = self._at(name, lambda c: c.receive(self._stage, kind, self._wait_s))
            if message is None:
                continue
            if message.party != name:
                raise ProtocolError(f"{name} speaks for {message.party}")
            take(message)

    def _tell(self, message: Callable[[str], object]) -> None:
        for name in self._others():
            self._at(name, partial(self._say, message(name)))

    def _say(self, message: object, channel: Channel) -> None:
        channel.send(self._stage, message)

    @property
    def _stage(self) -> str:
        return self._party.stage

    def _at(self, name: str, do: Callable[[Channel], M]) -> M | None:
        """With one bank; None, and it is away from then on, if it is lost and may be."""
        try:
            return do(self._party.channels[name])
        except PartyLost:
            if self._everybody:
                raise
            self._away.add(name)
            return None


def pool_of(party: Party) -> Pool:
    """The job's banks: alone or together."""
    banks = party.manifest.banks
    return SecurePool(party, banks, banks[0]) if len(banks) > 1 else Alone(party.me)


def require_members(members: Sequence[str], certified: Mapping[str, bytes]) -> None:
    """Every bank has a certified key; raises Refused with the name of one that has none."""
    for name in members:
        if name not in certified:
            todo = f"ask {name} for a card with a mask key"
            raise Refused("its card has no key for sums over banks", party=name, todo=todo)
