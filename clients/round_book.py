"""What this node remembers of sums over several banks (protocols/secagg_books.py, RoundBook).

Both kinds of row are kept for good: a sum over almost the same banks, years later, would be the
difference between the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import LargeBinary, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from clients.store import Base, Store
from protocols.errors import ProtocolError
from protocols.secagg_books import Round, require_apart


class RoundFactRow(Base):
    """One thing that this node said or saw in a round; no other value can take its place."""

    __tablename__ = "round_fact"

    manifest: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str] = mapped_column(String(200), primary_key=True)
    fact: Mapped[str] = mapped_column(String(200), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)


class RoundSumRow(Base):
    """A set of banks over which a statistic was summed."""

    __tablename__ = "round_sum"

    statistic: Mapped[str] = mapped_column(String(64), primary_key=True)
    parties: Mapped[str] = mapped_column(Text, primary_key=True)  # ascending, a line each


class SqlRoundBook:
    """The book of one node, over all jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def fix(self, round_: Round, facts: Mapping[str, bytes]) -> None:
        """Durable, all or nothing; ProtocolError if a fact has another value already."""
        with self._store.writing(RoundFactRow) as session:
            _fix(session, round_, facts)

    def sum_over(self, round_: Round, parties: tuple[str, ...], facts: Mapping[str, bytes]) -> None:
        """As `fix`, and the set of banks with it; ProtocolError if sums together show too few."""
        with self._store.writing(RoundFactRow, RoundSumRow) as session:
            statistic = round_.statistic.hex()
            rows = session.scalars(select(RoundSumRow).where(RoundSumRow.statistic == statistic))
            known = {frozenset(row.parties.split("\n")) for row in rows}
            require_apart(known, frozenset(parties), round_.min_parties)
            _fix(session, round_, facts)
            if frozenset(parties) not in known:
                session.add(RoundSumRow(statistic=statistic, parties="\n".join(sorted(parties))))


def _fix(session: Session, round_: Round, facts: Mapping[str, bytes]) -> None:
    manifest, attempt, number, label = round_.key
    key = {"manifest": manifest.hex(), "attempt": attempt, "number": number, "label": label}
    for fact, value in facts.items():
        row = session.get(RoundFactRow, key | {"fact": fact})
        if row is None:
            session.add(RoundFactRow(**key, fact=fact, value=value))
        elif row.value != value:
            raise ProtocolError(f"round {number} has another {fact}")
