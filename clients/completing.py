"""The bank's side of receipts: those that came before any witness had seen them are fetched once
more, cosigned, and stored in their places (federation/completion.py).

A receipt is due from the moment it comes (`due_from` of its row) until it is cosigned, until its
owner says that it is not ours, or until it contradicts the one that is here: then both notes are
kept as an alarm, and an entry of our log says so. Owners are asked a batch at a time, some seconds
after their answers, and after a growing pause where they have nothing yet.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, select

from clients.audit import AuditLog
from clients.home import Home
from clients.store import AlertRow, EnquiryRow, ScoreRow, Store
from clients.verifier import Carrier
from clients.witness_book import WitnessBook
from clients.witnessing import raise_alarm, require_no_fork
from federation import sealing
from federation.audit import Receipt
from federation.checkpoints import read_note
from federation.completion import (
    AT_ONCE,
    Completed,
    Contradiction,
    ReceiptsRequest,
    check_answer,
    shown_by,
)
from federation.envelope import sign
from federation.errors import IntegrityError, LianmoError, Refused
from federation.objects import Usage, utc_text
from federation.verification import WINDOW
from federation.watch import AlertNotice

log = logging.getLogger("lianmo.receipts")

BATCHES = 8  # of one owner in a round
PAUSE_S = (2.0, 300.0)  # after a fruitless round, first and longest


def due_from(receipts: dict[str, Receipt], after: str = "") -> str | None:
    """The next owner whose receipt is not cosigned yet; one after the other, each once."""
    waiting = [org for org, item in receipts.items() if item.status == "uncosigned" and org > after]
    return min(waiting, default=None)


Row = EnquiryRow | ScoreRow | AlertRow
TABLES: tuple[type[Row], ...] = (EnquiryRow, ScoreRow, AlertRow)


@dataclass(frozen=True, slots=True)
class _Due:
    """A receipt that is to be completed, and where it stands."""

    table: type[Row]
    key: int | str
    receipt: Receipt = field(repr=False)


class Completing:
    """One bank's."""

    def __init__(
        self,
        home: Home,
        store: Store,
        carrier: Carrier,
        now: Callable[[], datetime],
        *,
        after_s: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """after_s: how old an answer is before its receipt is asked for: witnesses take seconds."""
        self._home, self._store, self._carrier, self._now = home, store, carrier, now
        self._after, self._clock = timedelta(seconds=after_s), clock
        self._pauses: dict[str, tuple[float, float]] = {}  # by owner: until when, how long

    def round(self) -> int:
        """Ask every owner that is due; how many receipts were completed."""
        done = 0
        for org in self._owners():
            until, pause = self._pauses.get(org, (0.0, PAUSE_S[0]))
            if self._clock() < until or not self._dues(org):
                continue
            found = 0
            try:
                for _ in range(BATCHES):
                    count, is_whole = self._batch(org)
                    found += count
                    if not is_whole:
                        break
            except LianmoError as error:
                log.warning("receipts not completed", extra={"org": org, "reason": str(error)})
            if found:
                self._pauses.pop(org, None)
            else:
                self._pauses[org] = self._clock() + pause, min(2 * pause, PAUSE_S[1])
            done += found
        return done

    # --- one batch

    def _ask(self, org: str, dues: Sequence[_Due]) -> list[Completed]:
        """The owner's answer on these receipts; raises LianmoError if there is none that counts."""
        now, trust = self._now(), self._home.trust()
        keys = trust.card(org).of_usage(Usage.ENCRYPT)
        if not keys:
            raise Refused("its card has no active encrypt key", party=org)
        own = self._home.key(Usage.ENCRYPT)
        request = ReceiptsRequest(
            verifier=self._home.org,
            provider=org,
            created=utc_text(now),
            expires=utc_text(now + WINDOW),
            reply_key=own.key_id,
            entries=tuple(shown_by(due.receipt) for due in dues),
        )
        content = sign(request, self._home.key(Usage.REQUEST)).to_json()
        recipient = base64.b64decode(keys[-1].spki)
        me = self._home.org
        sealed = sealing.seal(sealing.RECEIPTS, content, sender=me, recipient=recipient)
        reply = self._carrier.ask_sealed(org, sealed)
        opened = sealing.unseal(sealing.PROOFS, reply, sender=org, key=own)
        receipts = [due.receipt for due in dues]
        return check_answer(opened, request, receipts, trust, self._now())

    def _batch(self, org: str) -> tuple[int, bool]:
        """Ask once; how many receipts were settled, and whether more may be."""
        if not (dues := self._dues(org)):
            return 0, False
        found = self._ask(org, dues)
        has_seen = self._has_seen(org, [one.receipt for one in found if one.receipt is not None])
        by_entry = {shown_by(due.receipt).entry: due for due in dues}
        settled = list[tuple[_Due, Receipt | None]]()
        for one in found:
            if one.is_refused:
                log.error("receipt refused", extra={"org": org, "entry": one.entry})
            elif one.contradiction is not None:
                self._accuse(org, one.contradiction)
            elif one.receipt is None:
                continue  # it waits for witnesses
            settled.append((by_entry[one.entry], one.receipt if has_seen else None))
        self._put(org, settled)
        return len(settled), len(settled) == len(dues)

    def _has_seen(self, org: str, receipts: Sequence[Receipt]) -> bool:
        """Whether their one checkpoint is of the history that this home has seen as a witness."""
        try:
            for receipt in receipts[:1]:
                require_no_fork(self._home, self._store, receipt, self._now())
        except IntegrityError as error:
            log.error("receipts not taken", extra={"org": org, "reason": error.what})
            return False
        return True

    def _accuse(self, org: str, found: Contradiction) -> None:
        """Keep both notes; an entry of our log says so, once."""
        log.error("receipt not taken", extra={"org": org, "reason": found.what})
        card, now = self._home.trust().card(org), self._now()
        alarm = WitnessBook(self._store).accuse(found.ours, read_note(found.theirs), card, now)
        if alarm is not None:
            raise_alarm(AuditLog(self._home, self._store), org, alarm, now)

    # --- what is due

    def _owners(self) -> list[str]:
        found, trust = set[str | None](), self._home.trust()
        with self._store.reading() as session:
            for table in TABLES:
                query = select(table.due_from).where(table.due_from.is_not(None))
                found.update(session.scalars(query.distinct()))
        return sorted(org for org in found if org is not None and org in trust)

    def _dues(self, org: str) -> list[_Due]:
        """The first of them, each entry once."""
        oldest = utc_text(self._now() - self._after)
        found: dict[int, _Due] = {}
        with self._store.reading() as session:
            for table in TABLES:
                query: Select[Any] = select(table).where(
                    table.due_from == org, table.created <= oldest
                )
                query = query.order_by(table.created).limit(AT_ONCE - len(found))
                for row in session.scalars(query):
                    receipt = _receipts(row)[org]
                    key = row.digest if isinstance(row, AlertRow) else row.number
                    found.setdefault(shown_by(receipt).entry, _Due(table, key, receipt))
        return list(found.values())

    def _put(self, org: str, settled: Sequence[tuple[_Due, Receipt | None]]) -> None:
        """Completed receipts in their places; None: the one that is there stays for good."""
        with self._store.writing(*TABLES) as session:
            for due, receipt in settled:
                row: Any = session.get(due.table, due.key)
                if row is None or row.due_from != org:
                    continue  # forgotten meanwhile, or completed by another process
                if receipt is not None:
                    _replace(row, org, receipt)
                row.due_from = due_from(_receipts(row), org)


def _receipts(row: Row) -> dict[str, Receipt]:
    """The receipts of a row, by owner."""
    if isinstance(row, ScoreRow):
        replies = row.answers or {}
        return {org: Receipt.model_validate(reply["receipt"]) for org, reply in replies.items()}
    if isinstance(row, AlertRow):
        receipt = AlertNotice.from_bytes(row.notice).receipt
    elif row.receipt is not None:
        receipt = Receipt.from_json(row.receipt)
    else:
        return {}
    return {receipt.org: receipt}


def _replace(row: Row, org: str, receipt: Receipt) -> None:
    if isinstance(row, ScoreRow):
        answers = dict(row.answers or {})
        row.answers = answers | {org: answers[org] | {"receipt": receipt.model_dump(mode="json")}}
    elif isinstance(row, AlertRow):
        notice = AlertNotice.from_bytes(row.notice)
        row.notice = notice.model_copy(update={"receipt": receipt}).to_bytes()
    else:
        row.receipt = receipt.to_json()
