"""The durable book of sums over banks holds what the one in memory holds, over restarts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.round_book import SqlRoundBook
from clients.store import Store
from protocols.errors import ProtocolError
from protocols.streams import digest
from tests.protocols.secagg_parties import round_of


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def book(url: str) -> Iterator[SqlRoundBook]:
    store = Store.open(url)
    yield SqlRoundBook(store)
    store.close()


def test_a_fact_is_fixed_for_good_also_after_a_restart(book: SqlRoundBook, url: str) -> None:
    round_ = round_of(5)
    book.fix(round_, {"vector": b"one"})
    book.fix(round_, {"vector": b"one"})
    again = Store.open(url)
    with pytest.raises(ProtocolError, match="another vector"):
        SqlRoundBook(again).fix(round_, {"vector": b"two"})
    again.close()


def test_facts_are_written_all_or_none(book: SqlRoundBook) -> None:
    round_ = round_of(5)
    book.fix(round_, {"vector": b"one"})
    with pytest.raises(ProtocolError):
        book.fix(round_, {"a new one": b"x", "vector": b"two"})
    book.fix(round_, {"a new one": b"y"})


def test_a_statistic_is_not_summed_over_almost_the_same_banks(book: SqlRoundBook, url: str) -> None:
    six, members = round_of(6), round_of(6).members
    book.sum_over(six, members, {"set of survivors": b"all"})
    again = Store.open(url)
    later = SqlRoundBook(again)
    other = round_of(6, number=2)
    with pytest.raises(ProtocolError, match="differ by 1"):
        later.sum_over(other, members[:5], {"set of survivors": b"five"})
    later.fix(other, {"set of survivors": b"something else"})  # nothing was written
    later.sum_over(round_of(6, number=3, statistic=digest("another")), members[:5], {})
    later.sum_over(round_of(6, number=4), members, {})
    again.close()
