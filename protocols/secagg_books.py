"""What a party of secure aggregation must remember, whatever crashes: nodes make it durable.

Each rule closes an attack (PROTOCOLS.md section 4, checks 5, 6 and 14). Two vectors under one set
of masks: their difference is open. Both kinds of share of one peer: its vector is open. Two
survivor sets: some party is dead in one and alive in the other, which is both kinds again. Two sums
whose sets differ by one party: that party's value is their difference. So every write here returns
only when it would survive a crash, before the message leaves. A node whose disk is set back to an
earlier state must not go on with an attempt: it takes a new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from protocols.errors import ParameterError, ProtocolError
from protocols.streams import encode

DIGEST_BYTES = 32
MIN_PARTIES = 3

RoundKey = tuple[bytes, int, int, str]


def least_threshold(parties: int) -> int:
    """floor(2n/3) + 1: any two sets of so many parties share more than a third of all."""
    return 2 * parties // 3 + 1


@dataclass(frozen=True, slots=True)
class Round:
    """One secure sum, as the manifest declares it: everything that all parties agree on before.

    A round that failed is repeated under another `number` or `attempt`: keys and masks are fresh.
    `statistic` names what is summed over all jobs and attempts, so that the same figure is not
    summed again over almost the same parties.
    """

    manifest: bytes  # digest
    attempt: int
    number: int
    label: str
    statistic: bytes  # digest, e.g. of the data snapshots' names, the task's stage and its step
    members: tuple[str, ...]  # organisations, in ascending order
    length: int  # entries of a vector
    bound: int  # largest absolute value of an entry
    threshold: int  # parties that stay to the end
    bits: int = 64  # sums modulo 2^bits, sent in 4 bytes an entry up to 32, else in 8
    min_parties: int = MIN_PARTIES
    corrupt: int | None = None  # parties working together with the coordinator; None: n - t

    def __post_init__(self) -> None:
        n = len(self.members)
        if list(self.members) != sorted(set(self.members)) or not all(self.members):
            raise ValueError("members are named once each, in ascending order")
        if len(self.manifest) != DIGEST_BYTES or len(self.statistic) != DIGEST_BYTES:
            raise ValueError(f"manifest and statistic are digests of {DIGEST_BYTES} bytes")
        if self.length < 1 or self.bound < 1 or not 2 <= self.bits <= 64:
            raise ValueError(f"length {self.length}, bound {self.bound}, {self.bits} bits")
        if self.min_parties < MIN_PARTIES or n < self.min_parties:
            raise ParameterError(
                f"{n} parties, at least {self.min_parties}: a sum needs {MIN_PARTIES} or more, of "
                f"two each reads the other's part"
            )
        if not least_threshold(n) <= self.threshold <= n:
            raise ParameterError(
                f"threshold {self.threshold} of {n} parties: at least {least_threshold(n)}, or two "
                f"survivor sets can both be signed"
            )
        if not 0 <= self.tolerated < 2 * self.threshold - n:
            raise ParameterError(
                f"{self.tolerated} corrupt of {n} parties at threshold {self.threshold}: at most "
                f"{2 * self.threshold - n - 1}"
            )
        if n * self.bound >= 1 << (self.bits - 1):
            raise ParameterError(
                f"{n} entries of up to {self.bound:,} can exceed {self.bits} bits: lower the bound "
                f"or raise the bits"
            )

    @property
    def key(self) -> RoundKey:
        """What vectors, keys and survivor sets are counted by."""
        return self.manifest, self.attempt, self.number, self.label

    @property
    def tolerated(self) -> int:
        """Corrupt parties that nobody's vector is open to."""
        return len(self.members) - self.threshold if self.corrupt is None else self.corrupt

    @property
    def honest_survivors(self) -> int:
        """What a party's noise is calibrated to: its variance is that of the total over this."""
        return max(1, self.threshold - self.tolerated)

    @property
    def least(self) -> int:
        """Parties that a survivor set has."""
        return max(self.threshold, self.min_parties)

    def encode(self) -> bytes:
        """Injective."""
        return encode(
            self.manifest,
            self.attempt,
            self.number,
            self.label,
            self.statistic,
            encode(*self.members),
            self.length,
            str(self.bound),
            self.threshold,
            self.bits,
            self.min_parties,
            self.tolerated,
        )


class RoundBook(Protocol):
    """A party's: what it did in each round, and which sets each statistic was summed over."""

    def fix(self, round_: Round, facts: Mapping[str, bytes]) -> None:
        """Durable, all or nothing. Equal facts again change nothing.

        Raises ProtocolError, and writes nothing, if a fact of `round_.key` has another value.
        """

    def sum_over(self, round_: Round, parties: tuple[str, ...], facts: Mapping[str, bytes]) -> None:
        """As `fix`, and durable with it: `round_.statistic` is summed over these parties.

        Raises ProtocolError, and writes nothing at all, also where `require_apart` does on the sets
        that the statistic has: else a set that a false coordinator asks for in vain would stand in
        the way of later sums. Condition and write are one step, also for two processes.
        """


def require_apart(
    known: Collection[frozenset[str]], parties: frozenset[str], min_parties: int
) -> None:
    """ProtocolError if the sums over these sets, taken together, isolate too few parties.

    Two sets that differ by fewer than `min_parties` do; so may three that differ by more: the sums
    are linear equations, and no combination of them may hold fewer than `min_parties` vectors.
    """
    if parties in known:
        return
    sets = [*known, parties]
    for other in known:
        if len(other ^ parties) < min_parties:
            raise ProtocolError(
                f"this statistic was summed over {len(other)} parties of which these "
                f"{len(parties)} differ by {len(other ^ parties)}: at least {min_parties}"
            )
    # Parties in exactly the same sets have the same factor in any combination.
    sizes: dict[tuple[bool, ...], int] = {}
    for name in frozenset().union(*sets):
        pattern = tuple(name in each for each in sets)
        sizes[pattern] = sizes.get(pattern, 0) + 1
    everything = np.linalg.matrix_rank(np.array(list(sizes), float))
    for count in range(1, min_parties):
        for few in combinations([p for p, size in sizes.items() if size < min_parties], count):
            if sum(sizes[pattern] for pattern in few) >= min_parties:
                continue
            rest = [pattern for pattern in sizes if pattern not in few]
            if not rest or np.linalg.matrix_rank(np.array(rest, float)) < everything:
                raise ProtocolError(
                    f"the {len(sets)} sums of this statistic together show fewer than "
                    f"{min_parties} parties"
                )


class MemoryRoundBook:
    """A RoundBook that forgets with its process: for tests, examples and runs in one process."""

    def __init__(self) -> None:
        self._facts: dict[RoundKey, dict[str, bytes]] = {}
        self._sums: dict[bytes, set[frozenset[str]]] = {}

    def fix(self, round_: Round, facts: Mapping[str, bytes]) -> None:
        self._require_equal(round_, facts)
        self._facts.setdefault(round_.key, {}).update(facts)

    def sum_over(self, round_: Round, parties: tuple[str, ...], facts: Mapping[str, bytes]) -> None:
        self._require_equal(round_, facts)
        known = self._sums.setdefault(round_.statistic, set())
        require_apart(known, frozenset(parties), round_.min_parties)
        known.add(frozenset(parties))
        self.fix(round_, facts)

    def _require_equal(self, round_: Round, facts: Mapping[str, bytes]) -> None:
        known = self._facts.get(round_.key, {})
        for fact, value in facts.items():
            if known.get(fact, value) != value:
                raise ProtocolError(f"round {round_.number} has another {fact}")
