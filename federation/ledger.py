"""The disclosure ledger: every value that crosses owners in the clear goes through `reveal`.

A manifest declares what may be revealed, by whom, to whom, how many values of how many bits
(PROTOCOLS.md section 5). Each party keeps a ledger for what it sends in the clear and for what it
opens from others' sealed or encrypted answers. Whatever is not declared, or exceeds what is
declared, stops the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from federation.errors import Refused


class What(StrEnum):
    """What can be revealed; the closed list that a reviewer has to know."""

    COVER = "cover"  # rows of the job; under `customers` these are the customers themselves
    ROW_KEYS = "row_keys"  # the approved maximum of row keys, never the true count
    QUERIES = "queries"  # how many linear queries were answered
    BIN_DEFINITIONS = "bin_definitions"  # edges and categories of a department's pre-bins
    BIN_COUNTS = "bin_counts"  # customers, goods and bads of each fine bin
    QUERY_SUMS = "query_sums"  # opened column sums of a linear query while fitting
    POPULATION_COVARIANCE = "population_covariance"  # between departments, over the cover
    WOE_TABLES = "woe_tables"  # bank to department, rounded to 0.05
    DIRECTIONS = "directions"  # bank to department, coefficients rounded to 8 bits
    SCORE_OPENING = "score_opening"  # one rounded partial score a customer, while training
    EVALUATION_OPENING = "evaluation_opening"  # one score in whole points a customer
    POINTS_TABLES = "points_tables"  # bank to department: its own part of the finished model
    THRESHOLDS = "thresholds"  # bank to department: where a tree splits its features
    SPLIT_BITS = "split_bits"  # one bit a customer for each of these thresholds
    BANK_TOTALS = "bank_totals"  # sums over all banks of a job; no bank's own part
    SHARED_WEIGHTS = "shared_weights"  # of a network, after each round: to who applies it


@dataclass(frozen=True, slots=True)
class Disclosure:
    """`source`'s facts become known to `to`: at most `count` values of `bits` bits each."""

    source: str
    to: str
    what: What
    count: int
    bits: int
    per_enterprise: bool = False  # row-level: `count` is enterprises times openings


class Ledger:
    """What one party revealed and learned in one attempt, held against what was declared."""

    def __init__(
        self,
        me: str,
        declared: Iterable[Disclosure],
        keep: Callable[[Disclosure], None] = lambda entry: None,
    ) -> None:
        """keep: called with every entry before it counts, to be told of it after a crash."""
        self.me, self._keep = me, keep
        self._allowed: dict[tuple[str, str, What], Disclosure] = {}
        for item in declared:
            if (key := (item.source, item.to, item.what)) in self._allowed:
                raise ValueError(f"{item.what} from {item.source} to {item.to} is declared twice")
            self._allowed[key] = item
        self._spent: dict[tuple[str, str, What], int] = {}

    def reveal(self, source: str, to: str, what: What, count: int, bits: int) -> None:
        """Enter a disclosure, before it happens; raises Refused if it was not declared."""
        key = (source, to, what)
        allowed, spent = self._allowed.get(key), self._spent.get(key, 0) + count
        if allowed is None:
            raise Refused(f"undeclared disclosure: {what} from {source} to {to}", party=self.me)
        if spent > allowed.count or bits > allowed.bits:
            said = f"{spent} values of {bits} bits, declared {allowed.count} of {allowed.bits}"
            text = f"disclosure beyond the declared: {what} from {source} to {to}, {said}"
            raise Refused(text, party=self.me)
        self._keep(Disclosure(*key, count, allowed.bits, allowed.per_enterprise))
        self._spent[key] = spent

    def entries(self) -> tuple[Disclosure, ...]:
        """What really happened so far."""
        return tuple(
            Disclosure(
                *key,
                count,
                self._allowed[key].bits,
                per_enterprise=self._allowed[key].per_enterprise,
            )
            for key, count in self._spent.items()
        )
