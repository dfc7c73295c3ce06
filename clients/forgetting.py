"""A bank forgets what its grants let it keep no longer (GOVERNANCE.md, `retain_answer_days`).

    questions    with their answers and receipts
    scores       with the departments' parts, their reasons and receipts; the points and their month
                 stay for drift (clients/drift.py), of nobody: whom they were about, under which
                 grant, and what departments sent is gone
    alerts       and, once none is left, the watches of grants that have ended
    local API    the answers that are remembered under their callers' keys: after a day

Time runs from when something was asked, of alerts from when they came; a day is the least, so that
the bank's systems can fetch what they have asked for. Files that a person wrote out (pages,
receipts) are that person's. Each erasure is an entry of the audit log, in the transaction that
erases.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TypeVar

import rfc8785
from sqlalchemy import delete, select, update

from clients.audit import AuditLog
from clients.consent import Consents
from clients.home import Home
from clients.store import AlertRow, EnquiryRow, IdempotencyRow, ScoreRow, Store, WatchRow
from clients.watching import ASKED
from federation.api import PROBLEM_TYPE, Problem
from federation.audit import Action
from federation.envelope import Envelope
from federation.errors import NotFound
from federation.objects import utc_text, utc_time
from federation.verification import VerificationRequest

T = TypeVar("T")
LEAST = timedelta(days=1)
AT_ONCE = 500  # rows of one statement
FORGOTTEN = ""  # in place of a score's grant
_GONE = Problem(
    title=HTTPStatus.GONE.phrase,
    status=HTTPStatus.GONE,
    detail="the request with this Idempotency-Key was served; its answer is kept no longer",
)


def forget_old(home: Home, store: Store, now: datetime) -> int:
    """Erase what is due; how many questions, scores, alerts and watches that were."""
    times = _Times(store)
    enquiries, scores = list(_enquiries(store, times, now)), list(_scores(store, times, now))
    alerts = list(_alerts(store, times, now))
    watches = list(_watches(store, times, now, set(alerts)))
    if _forget_replies(store, now):
        store.forget_journal()
    counts = {
        "questions": len(enquiries),
        "scores": len(scores),
        "alerts": len(alerts),
        "watches": len(watches),
    }
    if not (count := sum(counts.values())):
        return 0
    audit = AuditLog(home, store)
    with audit.together(now):
        told = hashlib.sha256(rfc8785.dumps(counts)).hexdigest()
        audit.append(Action.ERASED, told, now, amount=count)
        with store.writing(EnquiryRow, ScoreRow, AlertRow, WatchRow) as session:
            for some in _parts(enquiries):
                session.execute(delete(EnquiryRow).where(EnquiryRow.number.in_(some)))
            for some in _parts(scores):
                for row in session.scalars(select(ScoreRow).where(ScoreRow.number.in_(some))):
                    if row.points is None:
                        session.delete(row)
                    else:
                        _only_points(row)
            for part in _parts(alerts):
                session.execute(delete(AlertRow).where(AlertRow.digest.in_(part)))
            for part in _parts(watches):
                session.execute(delete(WatchRow).where(WatchRow.digest.in_(part)))
    store.forget_journal()
    return count


class _Times:
    """How long each grant lets its answers be kept; one that is not here any more, the least."""

    def __init__(self, store: Store) -> None:
        self._consents = Consents(store)
        self._known: dict[str, tuple[timedelta, datetime | None]] = {}

    def is_over(self, grant: str, since: str, now: datetime) -> bool:
        """Whether what came at that time was kept long enough."""
        return utc_time(since) + self._of(grant)[0] <= now

    def is_grant_over(self, grant: str, now: datetime) -> bool:
        """Whether nothing of the grant itself is to be kept any more."""
        kept, expires = self._of(grant)
        return expires is None or expires + kept <= now

    def _of(self, grant: str) -> tuple[timedelta, datetime | None]:
        if grant not in self._known:
            try:
                said = self._consents.get(grant).grant
                kept = max(timedelta(days=said.retain_answer_days), LEAST)
                self._known[grant] = kept, utc_time(said.expires)
            except NotFound:
                self._known[grant] = LEAST, None
        return self._known[grant]


def _enquiries(store: Store, times: _Times, now: datetime) -> Iterator[int]:
    with store.reading() as session:
        query = select(EnquiryRow.number, EnquiryRow.created, EnquiryRow.question)
        rows = session.execute(query.where(EnquiryRow.created <= utc_text(now - LEAST))).all()
    for number, created, question in rows:
        request = Envelope.from_json(question).unverified(VerificationRequest)
        if times.is_over(request.grant, created, now):
            yield number


def _scores(store: Store, times: _Times, now: datetime) -> Iterator[int]:
    with store.reading() as session:
        query = select(ScoreRow.number, ScoreRow.created, ScoreRow.consent)
        query = query.where(ScoreRow.consent != FORGOTTEN)
        rows = session.execute(query.where(ScoreRow.created <= utc_text(now - LEAST))).all()
    for number, created, grant in rows:
        if times.is_over(grant, created, now):
            yield number


def _only_points(row: ScoreRow) -> None:
    month = utc_time(row.created).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    row.id, row.consent, row.created = secrets.token_hex(16), FORGOTTEN, utc_text(month)
    row.requests, row.answers, row.score, row.due_from = {}, None, None, None


def _alerts(store: Store, times: _Times, now: datetime) -> Iterator[str]:
    """Those that came: an owner's own, of watches that it keeps, wait for their bank."""
    with store.reading() as session:
        query = select(AlertRow.digest, AlertRow.taken, WatchRow.consent)
        query = query.join(WatchRow, WatchRow.digest == AlertRow.watch)
        rows = session.execute(query.where(WatchRow.part == ASKED)).all()
    for digest, taken, grant in rows:
        if taken is not None and times.is_over(grant, taken, now):
            yield digest


def _watches(store: Store, times: _Times, now: datetime, gone: set[str]) -> Iterator[str]:
    with store.reading() as session:
        query = select(WatchRow.digest, WatchRow.consent).where(WatchRow.part == ASKED)
        rows = session.execute(query).all()
        alerts = session.execute(select(AlertRow.digest, AlertRow.watch)).all()
    busy = {watch for digest, watch in alerts if digest not in gone}
    for digest, grant in rows:
        if digest not in busy and times.is_grant_over(grant, now):
            yield digest


def _forget_replies(store: Store, now: datetime) -> bool:
    """Whether there were any. The key stays, so that no question is put twice under it
    (clients/idempotency.py); what it was used for goes, too: a digest confirms a guess."""
    old = IdempotencyRow.created <= utc_text(now - LEAST), IdempotencyRow.status != _GONE.status
    gone = {
        "fingerprint": "",
        "status": _GONE.status,
        "content_type": PROBLEM_TYPE,
        "body": _GONE.model_dump_json().encode(),
    }
    with store.writing(IdempotencyRow) as session:
        changed = session.connection().execute(update(IdempotencyRow).where(*old).values(gone))
        return bool(changed.rowcount)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
