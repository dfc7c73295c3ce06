"""Who masks with whom, and who holds whose shares, in secure aggregation (PROTOCOLS.md section 4).

Up to 50 parties everybody with everybody (Bonawitz et al. 2017). Above, a circle in an order drawn
from joint coins, each party linked to the k/2 on either side (Bell et al. 2020: a Harary graph).

Degree   A party is alone if among k places (the two sides of it, or the two gaps that cut the
         circle) nobody is honest and alive. The coins are drawn before anybody knows the places,
         but an active coordinator chooses afterwards (i) whose coins it passes on, and (ii) whom it
         declares dead, seeing the graph. So the `dropped` count as placed at will, only the
         `corrupt` as placed at random, and the bound is a union over all choices of coins:
             choices * C(m, 2) * P[at least k - dropped of k places are corrupt] <= 2^-40
         Bell et al. take smaller degrees for drop-outs that do not depend on the graph.
         For k > corrupt + dropped the probability is 0, whatever the coins: with a third corrupt
         and a third dropped this is where k ends up, and most of all other cases.
Exact    Integers from integers: every party finds the same degree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import comb

from protocols import labels
from protocols.streams import Stream, digest

COMPLETE_MAX = 50  # parties; above, neighbours by coins
FAILURE_BITS = 40


@lru_cache
def degree(members: int, corrupt: int, dropped: int, missing: int = 0) -> int:
    """The least even number of neighbours that isolates nobody, except with 2^-40.

    members: parties that showed their coins; missing: parties whose coins may have been held back.
    `members - 1`, the complete graph, if nothing less does.
    """
    n = members + missing
    choices = sum(comb(n, held_back) for held_back in range(missing + dropped + 1))
    cuts = choices * comb(members, 2)
    for k in range(2, members - 1, 2):
        bad = sum(
            comb(corrupt, j) * comb(members - 1 - corrupt, k - j)
            for j in range(max(k - dropped, 0), min(k, corrupt) + 1)
            if members - 1 - corrupt >= k - j
        )
        if cuts * bad << FAILURE_BITS <= comb(members - 1, k):
            return k
    return members - 1


@dataclass(frozen=True)
class Graph:
    """The parties on their circle. A holder of a party's shares is a neighbour, or itself."""

    circle: tuple[str, ...]
    degree: int
    threshold: int  # shares that give a secret back, of degree + 1
    _place: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", {name: at for at, name in enumerate(self.circle)})

    @cached_property
    def members(self) -> tuple[str, ...]:
        return tuple(sorted(self.circle))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.members, 1)}

    def index(self, party: str) -> int:
        """Where the polynomials are evaluated for this party's shares, from 1."""
        return self._index[party]

    def neighbours(self, party: str) -> tuple[str, ...]:
        """In ascending order."""
        if self.degree == len(self.circle) - 1:
            return tuple(name for name in self.members if name != party)
        at, n = self._place[party], len(self.circle)
        near = range(1, self.degree // 2 + 1)
        return tuple(sorted(self.circle[(at + s * d) % n] for d in near for s in (-1, 1)))

    def holders(self, party: str) -> tuple[str, ...]:
        """The party and its neighbours, in ascending order."""
        return tuple(sorted((party, *self.neighbours(party))))


def graph(members: Sequence[str], roster: int, threshold: int, corrupt: int, seed: bytes) -> Graph:
    """The graph of the parties that are left of a roster, of which `threshold` stay to the end.

    A secret needs degree + 1 - (those who may still go) shares: so many holders are left however
    they go, and fewer corrupt ones exist.
    """
    names, may_go = sorted(members), len(members) - threshold
    if roster <= COMPLETE_MAX:
        return Graph(tuple(names), len(names) - 1, threshold)
    k = degree(len(names), corrupt, may_go, roster - len(names))
    stream = Stream(digest(labels.SECAGG_ORDER, seed))
    draws = [(stream.bytes(16), name) for name in names]
    return Graph(tuple(name for _, name in sorted(draws)), k, k + 1 - may_go)
