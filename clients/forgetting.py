"""Scores and alerts at a bank, no longer than their grants say (`retain_answer_days`).

Of a score the points and their month stay, for drift (clients/drift.py): whom they were about, on
what grant, and what departments sent goes. An alert goes whole.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from sqlalchemy import select

from clients.consent import Consents
from clients.store import AlertRow, ScoreRow, Store, WatchRow
from clients.watching import ASKED
from federation.errors import NotFound
from federation.objects import utc_text, utc_time

FORGOTTEN = ""  # in place of a score's grant


def forget_old(store: Store, now: datetime) -> int:
    """Forget what is over; how many scores and alerts that were."""
    kept = _Kept(store, now)
    with store.writing(ScoreRow) as session:
        query = select(ScoreRow).where(ScoreRow.consent != FORGOTTEN)
        scores = [row for row in session.scalars(query) if kept.is_over(row.consent, row.created)]
        for row in scores:
            row.id, row.consent, row.created = secrets.token_hex(16), FORGOTTEN, _month(row.created)
            row.requests, row.answers, row.score, row.due_from = {}, None, None, None
    with store.writing(AlertRow) as session:
        asked = select(AlertRow, WatchRow.consent).join(WatchRow, WatchRow.digest == AlertRow.watch)
        found = session.execute(asked.where(WatchRow.part == ASKED)).all()
        alerts = [row for row, consent in found if kept.is_over(consent, row.created)]
        for alert in alerts:
            session.delete(alert)
    return len(scores) + len(alerts)


class _Kept:
    """For how long answers under each grant are kept; at least a day, as of questions."""

    def __init__(self, store: Store, now: datetime) -> None:
        self._consents, self._now = Consents(store), now
        self._days: dict[str, int] = {}

    def is_over(self, consent: str, created: str) -> bool:
        """Whether an answer of that time is not to be kept any more."""
        if consent not in self._days:
            try:
                self._days[consent] = self._consents.get(consent).grant.retain_answer_days
            except NotFound:  # nothing says that it may be kept
                self._days[consent] = 0
        kept = timedelta(days=max(self._days[consent], 1))
        return utc_time(created) + kept <= self._now


def _month(created: str) -> str:
    return utc_text(utc_time(created).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
