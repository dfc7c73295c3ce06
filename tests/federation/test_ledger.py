"""What was not declared is not revealed."""

from __future__ import annotations

import pytest

from federation.errors import Refused
from federation.ledger import Disclosure, Ledger, What

DECLARED = [Disclosure("bank", "tax", What.WOE_TABLES, count=10, bits=6)]


def test_declared_disclosures_add_up_to_what_happened() -> None:
    ledger = Ledger("bank", DECLARED)
    ledger.reveal("bank", "tax", What.WOE_TABLES, 4, 6)
    ledger.reveal("bank", "tax", What.WOE_TABLES, 6, 5)
    assert ledger.entries() == (Disclosure("bank", "tax", What.WOE_TABLES, 10, 6),)


@pytest.mark.parametrize(
    ("source", "to", "what", "count", "bits"),
    [
        ("bank", "court", What.WOE_TABLES, 1, 6),
        ("tax", "bank", What.WOE_TABLES, 1, 6),
        ("bank", "tax", What.DIRECTIONS, 1, 6),
        ("bank", "tax", What.WOE_TABLES, 11, 6),
        ("bank", "tax", What.WOE_TABLES, 1, 7),
    ],
)
def test_anything_beyond_the_declared_is_refused_and_not_entered(
    source: str, to: str, what: What, count: int, bits: int
) -> None:
    ledger = Ledger("bank", DECLARED)
    with pytest.raises(Refused):
        ledger.reveal(source, to, what, count, bits)
    assert ledger.entries() == ()


def test_many_small_disclosures_do_not_slip_past_the_declared_count() -> None:
    ledger = Ledger("bank", DECLARED)
    for _ in range(10):
        ledger.reveal("bank", "tax", What.WOE_TABLES, 1, 6)
    with pytest.raises(Refused, match="beyond the declared"):
        ledger.reveal("bank", "tax", What.WOE_TABLES, 1, 6)
    assert ledger.entries()[0].count == 10


def test_declaring_one_thing_twice_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="twice"):
        Ledger("bank", DECLARED * 2)
