"""What enterprises are told of the uses of their grants, once witnesses have cosigned the entry.

`UseOutbox.put` stands in the transaction that enters the answer, so no use is forgotten by a crash;
the row goes when the coordinator has the notice. Where witnesses are later than `wait`, the notice
goes out with a receipt that is not cosigned, and once more when it is: the same use, which the
enterprise knows by its digest (clients/grants.py).
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import ColumnElement, delete, select, update

from clients.audit import AuditLog
from clients.consent import Consents
from clients.home import Home
from clients.store import AuditRow, Store, UseOutboxRow, table_of
from federation import sealing
from federation.audit import AuditEntry, Receipt
from federation.consent_api import TAKE_MAX, NoticeBody, Outbox
from federation.envelope import sign
from federation.errors import LianmoError
from federation.grants import BySubject, Use, UseNotice, verify_card
from federation.objects import Usage, utc_text, utc_time
from federation.verification import Asking
from protocols import merkle

log = logging.getLogger("lianmo.uses")

RECIPIENTS = 10_000  # keys of subjects that are remembered
REST = 4  # times as long as the work: many become due at once, and answers go on meanwhile
_OUTBOX = table_of(UseOutboxRow)


class Carrier(Protocol):
    """What of the coordinator it needs."""

    def reply_sealed(self, body: Outbox) -> None:
        """Hand in notices."""


class Place(Protocol):
    """What of the data a use has touched: a granted item, or a request on one field."""

    @property
    def dataset(self) -> str:
        """The owner's dataset."""

    @property
    def field(self) -> str:
        """The field, or the first of several."""


class UseOutbox:
    """Uses that their subjects have not been told of."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, seq: int, asked: Asking, digest: str, place: Place, result: str) -> None:
        """Remember the use whose entry this is; inside of `AuditLog.together`.

        digest: of the request; result: the word of the answer.
        """
        said = {
            "request": digest,
            "verifier": asked.verifier,
            "purpose": asked.purpose.value,
            "channel": asked.channel.value,
            "dataset": place.dataset,
            "field": place.field,
            "op": getattr(asked, "op", None),
            "period": getattr(asked, "period", None),
            "result": result,
        }
        with self._store.writing(UseOutboxRow) as session:
            session.connection().execute(_OUTBOX.insert(), {"seq": seq, "said": said})


@dataclass(frozen=True, slots=True)
class _Row:
    """A use that waits."""

    entry: AuditEntry
    said: dict[str, object] = field(repr=False)


class UseNotices:
    """Sends them."""

    def __init__(
        self,
        home: Home,
        store: Store,
        carrier: Carrier,
        now: Callable[[], datetime],
        wait: timedelta,
    ) -> None:
        self._home, self._store, self._carrier, self._now = home, store, carrier, now
        self._wait, self._recipients = wait, dict[str, bytes | None]()
        self._audit, self._consents = AuditLog(home, store), Consents(store)

    def round(self) -> int:
        """Send what is cosigned, and what has waited too long; how many went."""
        seen, count, after = self._audit.under_witnesses(), 0, -1
        size = 0 if seen is None else seen[0].checkpoint.size
        seq, sent = UseOutboxRow.seq, UseOutboxRow.sent
        while seen is not None and (rows := self._rows(seq > after, seq < size)):
            after, tree = rows[-1].entry.seq, self._audit.tree()
            receipts = self._cosigned([row.entry for row in rows], *seen, tree)
            count += self._send(rows, receipts)
        limit, after = self._now() - self._wait, size - 1
        # the first that waits is the oldest: while it is not late, the others need no look
        while rows := self._rows(seq > after, sent.is_(None)):
            after = rows[-1].entry.seq
            if late := [row for row in rows if utc_time(row.entry.time) <= limit]:
                count += self._send(late, self._audit.receipts([row.entry for row in late]))
            if len(late) < len(rows):
                break
        return count

    def _rows(self, *which: ColumnElement[bool]) -> list[_Row]:
        """What waits of these, at most as many as go together."""
        with self._store.reading() as session:
            query = select(AuditRow.leaf, UseOutboxRow.said)
            query = query.join(AuditRow, AuditRow.seq == UseOutboxRow.seq)
            query = query.where(*which).order_by(UseOutboxRow.seq).limit(TAKE_MAX)
            rows = session.execute(query).all()
        return [_Row(AuditEntry.from_leaf(row.leaf), row.said) for row in rows]

    def _cosigned(
        self,
        entries: Sequence[AuditEntry],
        signed: merkle.SignedCheckpoint,
        key_id: str,
        tree: merkle.Tree,
    ) -> list[Receipt]:
        card, size = self._home.own(), signed.checkpoint.size
        paths = [tuple(tree.inclusion_proof(entry.seq, size)) for entry in entries]
        return [
            Receipt.of(card, key_id, entry.payload(), merkle.Receipt(entry.seq, path, signed), True)
            for entry, path in zip(entries, paths, strict=True)
        ]

    def _send(self, rows: Sequence[_Row], receipts: Sequence[Receipt]) -> int:
        """Hand them over, then forget those that are complete; how many there were."""
        notices, sent = list[NoticeBody](), list[int]()
        for row, receipt in zip(rows, receipts, strict=True):
            began = time.thread_time()
            try:
                notices.append(self._notice(row, receipt))
                sent.append(row.entry.seq)
            except LianmoError as error:  # of one: it must not keep the others from going
                log.error("use not told", extra={"entry": row.entry.seq, "reason": error.what})
            time.sleep(REST * (time.thread_time() - began))
        self._carrier.reply_sealed(Outbox(items=(), notices=tuple(notices)))
        with self._store.writing(UseOutboxRow) as session:
            told = UseOutboxRow.seq.in_(sent)
            if receipts[0].status == "cosigned":
                session.execute(delete(UseOutboxRow).where(told))
            else:
                session.execute(update(UseOutboxRow).where(told).values(sent=utc_text(self._now())))
        return len(sent)

    def _notice(self, row: _Row, receipt: Receipt) -> NoticeBody:
        """Sealed to the key in the subject's own card."""
        entry = row.entry
        use = Use.model_validate(
            row.said
            | {
                "org": self._home.org,
                "created": entry.time,
                "grant": entry.job,
                "answer": entry.object,
            }
        )
        signed = sign(use, self._home.key(Usage.ANSWER))
        content = UseNotice(use=signed, receipt=receipt).to_bytes()
        recipient = self._recipient(use.grant)
        if recipient is None:
            raise LianmoError("the subject's card has no key to seal to")
        sealed = sealing.seal(sealing.USE, content, sender=self._home.org, recipient=recipient)
        return NoticeBody(mailbox=sealed[: sealing.KEY_BYTES].hex(), sealed=sealed)

    def _recipient(self, grant: str) -> bytes | None:
        """The key of the grant's subject; a card proves itself once for all uses of a grant."""
        if grant not in self._recipients:
            if len(self._recipients) >= RECIPIENTS:
                self._recipients.clear()
            self._recipients[grant] = encrypt_key(self._consents.get(grant).bundle)
        return self._recipients[grant]


def encrypt_key(bundle: BySubject) -> bytes | None:
    """The subject's key (SPKI) for what is sealed to it; None if its card has none."""
    key = None if bundle.card is None else verify_card(bundle.card).key(Usage.ENCRYPT)
    return None if key is None else base64.b64decode(key.spki)
