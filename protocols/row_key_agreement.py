"""Which way to agree on row keys (PROTOCOLS.md section 1): by the number of customers.

Either way ends with `row_keys.RowKeys` on both sides; all that a task asks beforehand is here.

    voprf   RFC 9497 (oprf.py): the count is exact, every registry row costs a curve operation
    set     set_oprf.py: a hundred times cheaper, but the approved number m exceeds the number of
            customers, by 8 % at 50,000, by a third at 1,000 and by most below
"""

from __future__ import annotations

from typing import Literal

from protocols.errors import ParameterError
from protocols.set_oprf import approved_size, most_keys

Way = Literal["voprf", "set"]

SET_FROM = 1000  # customers; below, m is more than a third above their number


def choose(customers: int) -> Way:
    """The way for an approved maximum of `customers`."""
    if customers < 1:
        raise ParameterError("row keys are for at least one customer")
    return "voprf" if customers < SET_FROM else "set"


def approved_number(customers: int, way: Way) -> int:
    """What manifest and ledger state: the keys that a bank gets by any known way, cheating or not.

    An integer from integers; still, both sides take it from the manifest.
    """
    return customers if way == "voprf" else approved_size(customers)


def provable_number(customers: int, registry: int, way: Way) -> int:
    """The most keys of `registry` codes that no bank can exceed, for the reader of the ledger."""
    return customers if way == "voprf" else most_keys(approved_size(customers), registry)
