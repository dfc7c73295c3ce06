"""The bank's side of watches: sign up, take alerts, list and remove.

An alert counts if the provider has signed it for a watch of this bank and its receipt verifies in
the provider's log; it is on disk before the bank says that it has taken it.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Select, func, or_, select

from clients import grants
from clients.completing import due_from
from clients.consent import Consents
from clients.home import Home, explain
from clients.store import AlertRow, Store, WatchRow
from clients.verification import Parcel
from clients.verifier import Carrier, Verifier, plain_question
from clients.watching import ASKED, REMOVED
from federation import sealing
from federation.audit import Receipt, verify_receipt
from federation.completion import is_answer
from federation.enquiry import Answered
from federation.envelope import parse, sign
from federation.errors import Conflict, IntegrityError, LianmoError, NotFound, Refused, UsageError
from federation.grants import SERVES, Channel, State
from federation.objects import Usage, utc_text, utc_time
from federation.verification import WINDOW, Ask
from federation.watch import (
    Alert,
    AlertNotice,
    AlertTaken,
    EndNotice,
    EndReply,
    WatchEnd,
    WatchRequest,
    check_ended,
)

log = logging.getLogger("lianmo.watch")
UNCONFIRMED = "unconfirmed"  # in that place while a sign-up waits for its answer
UNANSWERED = "unanswered"  # why a watch ended: whether it was ever kept, nobody here knows
PATIENCE_S = 5.0  # with one provider, before its other watches wait for the next time
# how long a sign-up may still be on its way when its end arrives before it
LATE = 2 * WINDOW


@dataclass(frozen=True, slots=True)
class Wanted:
    """A rule as a bank's system puts it."""

    grant: str
    provider: str
    rule: str
    question: dict[str, Any] = field(repr=False)  # dataset, field, op, comparison, arg, period
    severity: str = "warning"
    debounce_s: int = 86_400


@dataclass(frozen=True, slots=True)
class Watched:
    """A watch of this bank."""

    digest: str
    request: WatchRequest = field(repr=False)
    created: str
    ended: str | None  # why
    is_told: bool = False  # the provider has said that it looks no more
    end_receipt: Receipt | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Told:
    """An alert that came, with its receipt."""

    digest: str
    alert: Alert = field(repr=False)
    receipt: Receipt = field(repr=False)


class Watcher:
    """One bank's watches."""

    def __init__(
        self,
        home: Home,
        store: Store,
        carrier: Carrier,
        now: Callable[[], datetime],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._store, self._carrier, self._now = home, store, carrier, now
        self._clock = clock
        self._verifier = Verifier(home, store, carrier, now)

    def add(self, wanted: Wanted) -> Watched:
        """Sign up; raises Refused if the provider does not keep it.

        A sign-up whose answer does not come may be kept there: it is ended here, and `tell_ends`
        ends it there too, so that nobody believes in a watch that is none. That holds after a crash
        as well: until the answer is here the watch is `unconfirmed`.
        """
        held, now = Consents(self._store).get(wanted.grant), self._now()
        todo = "draft one with `lianmo grant draft --channel watch --purpose post-loan-monitoring`"
        if held.grant.channel is not Channel.WATCH:
            raise Refused(f"the grant is for {held.grant.channel}, not to watch under", todo=todo)
        if held.grant.purpose not in SERVES[Channel.WATCH]:
            raise Refused(f"the purpose {held.grant.purpose} is none to watch for", todo=todo)
        plain = self._verifier.asking(held) | {
            "request": secrets.token_hex(16),
            "provider": wanted.provider,
            "rule": wanted.rule,
            "severity": wanted.severity,
            "debounce_s": wanted.debounce_s,
        }
        try:
            request = WatchRequest.model_validate(plain | wanted.question)
        except ValidationError as error:
            raise UsageError(f"the watch: {explain(error)}") from None
        signed = sign(request, self._home.key(Usage.REQUEST))
        sealed = self._verifier.seal(request, Ask(request=signed, grant=held.bundle))
        # kept before it leaves: an alert of a watch that nobody here knows is not taken
        with self._store.writing(WatchRow) as session:
            row = WatchRow(
                digest=request.digest(),
                part=ASKED,
                consent=held.digest,
                request=request.payload(),
                created=utc_text(now),
                holds=False,
                ended=UNCONFIRMED,
            )
            session.add(row)
        try:
            found = self._carrier.ask_sealed(request.provider, sealed)
            answer, _ = self._verifier.open(request, found)
        except LianmoError:
            self._end(request.digest(), UNANSWERED)
            raise
        if answer.result is Answered.REFUSED:
            self._end(request.digest(), "refused")
            todo = "see that the grant is in force and names the rule; the reason is in its own log"
            raise Refused("does not keep the watch", party=request.provider, todo=todo)
        with self._store.writing(WatchRow) as session:
            row = session.get_one(WatchRow, request.digest())
            if row.ended == UNCONFIRMED:
                row.ended = None
        return self.get(request.digest())

    def get(self, digest: str) -> Watched:
        """One watch, also by the beginning of its digest."""
        query = select(WatchRow).where(WatchRow.digest.startswith(digest, autoescape=True))
        found = self._found(query.limit(2))
        if len(digest) < 8 or not found:
            raise NotFound("there is no such watch", todo="`lianmo verify watch list`")
        if len(found) > 1:
            raise Conflict("several watches begin like this", todo="give more of the digest")
        return found[0]

    def all(self) -> list[Watched]:
        """All watches, the newest first."""
        return self._found(select(WatchRow))

    def page(self, before: tuple[str, str] | None, limit: int) -> list[Watched]:
        """The same in pages; `before`: only those after this (created, digest) in that order."""
        query = select(WatchRow).limit(limit)
        if before is not None:
            made, digest = before
            older = (
                WatchRow.created < made,
                (WatchRow.created == made) & (WatchRow.digest > digest),
            )
            query = query.where(or_(*older))
        return self._found(query)

    def _found(self, query: Select[WatchRow]) -> list[Watched]:
        query = query.where(WatchRow.part == ASKED)
        with self._store.reading() as session:
            rows = session.scalars(query.order_by(WatchRow.created.desc(), WatchRow.digest))
            found = [_watched(row) for row in rows]
        ends = {grant: self._end_of_grant(grant) for grant in {x.request.grant for x in found}}
        return [
            dataclasses.replace(item, ended=item.ended or ends[item.request.grant])
            for item in found
        ]

    def _end_of_grant(self, grant: str) -> str | None:
        """Why the grant opens nothing any more, as far as this home knows."""
        try:
            state = grants.state(self._home, self._store, grant, self._now())
        except LianmoError:
            return None
        return state.value if state in (State.EXPIRED, State.REVOKED) else None

    def remove(self, digest: str) -> Watched:
        """Take no more alerts, and tell the provider to look no more.

        Where it cannot be told now, `tell_ends` goes on; `is_told` says which.
        """
        found = self.get(digest)
        if found.ended in (None, UNCONFIRMED):
            self._end(found.digest, REMOVED)
        receipt = found.end_receipt
        if not found.is_told or (receipt is not None and receipt.status == "uncosigned"):
            self._try_to_tell(found)
        return self.get(found.digest)

    def tell_ends(self) -> int:
        """Tell providers of watches that this bank has ended, where they do not know; how many know
        now. A watch whose grant is over has ended there too."""
        for item in self.all():
            # that long no sign-up waits: whatever has made it was cut off
            if item.ended == UNCONFIRMED and self._now() > utc_time(item.request.expires):
                self._end(item.digest, UNANSWERED)
        ours = {REMOVED, UNANSWERED}
        waiting = [item for item in self.all() if item.ended in ours and not item.is_told]
        secrets.SystemRandom().shuffle(
            waiting
        )  # one that is never answered keeps none from its turn
        spent, count = dict[str, float](), 0
        for item in waiting:
            provider, began = item.request.provider, self._clock()
            if spent.get(provider, 0.0) > PATIENCE_S or self._end_of_grant(item.request.grant):
                continue
            count += self._try_to_tell(item)
            spent[provider] = spent.get(provider, 0.0) + self._clock() - began
        return count

    def _try_to_tell(self, watched: Watched) -> bool:
        try:
            return self._tell(watched)
        except LianmoError as error:
            extra = {"watch": watched.digest[:16], "why": error.what}
            log.warning("end of watch not told yet", extra=extra)
            return False

    def _tell(self, watched: Watched) -> bool:
        now, provider, trust = self._now(), watched.request.provider, self._home.trust()
        key = self._home.key(Usage.ENCRYPT)
        end = WatchEnd(
            verifier=self._home.org,
            provider=provider,
            watch=watched.digest,
            created=utc_text(now),
            reply_key=key.key_id,
        )
        notice = EndNotice(end=sign(end, self._home.key(Usage.REQUEST)))
        sealed = self._verifier.sealed_to(provider, notice.to_bytes())
        found = self._carrier.ask_sealed(provider, sealed)
        content = sealing.unseal(sealing.ANSWER, found, sender=provider, key=key)
        reply = check_ended(content, end, watched.request.grant, trust, now)
        if reply.receipt is None and now < utc_time(watched.request.expires) + LATE:
            raise Conflict("keeps no such watch, but the sign-up may be on its way", party=provider)
        with self._store.writing(WatchRow) as session:
            session.get_one(WatchRow, watched.digest).end_reply = reply.to_bytes()
        return True

    def alerts(
        self,
        watch: str | None = None,
        *,
        before: tuple[str, str] | None = None,
        limit: int | None = None,
    ) -> list[Told]:
        """The alerts that came, the newest first; `before`: only those after this (created, digest)
        in that order."""
        query = self._told().order_by(AlertRow.created.desc(), AlertRow.digest).limit(limit)
        if watch is not None:
            query = query.where(AlertRow.watch == watch)
        if before is not None:
            made, digest = before
            older = (
                AlertRow.created < made,
                (AlertRow.created == made) & (AlertRow.digest > digest),
            )
            query = query.where(or_(*older))
        with self._store.reading() as session:
            return list(map(_told, session.scalars(query)))

    def alert(self, digest: str) -> Told:
        """One alert that came; NotFound if it did not, or is kept no longer."""
        with self._store.reading() as session:
            row = session.scalar(self._told().where(AlertRow.digest == digest))
            if row is None:
                raise NotFound("there is no such alert", todo="`lianmo verify watch alerts`")
            return _told(row)

    def _told(self) -> Select[AlertRow]:
        """An organisation that answers too keeps its own alerts in the same table."""
        mine = select(WatchRow.digest).where(WatchRow.part == ASKED)
        return select(AlertRow).where(AlertRow.watch.in_(mine))

    def _end(self, digest: str, why: str) -> None:
        with self._store.writing(WatchRow) as session:
            session.get_one(WatchRow, digest).ended = why

    # --- what providers send

    def answer(self, parcels: Sequence[Parcel]) -> list[bytes]:
        """Take alerts, as `Provider.answer` takes questions; empty where one is not taken."""
        return [self._take(parcel) for parcel in parcels]

    def _take(self, parcel: Parcel) -> bytes:
        try:
            return self._taken(parcel)
        except LianmoError as error:
            log.warning("alert not taken", extra={"sender": parcel.sender, "why": error.what})
            return b""

    def _taken(self, parcel: Parcel) -> bytes:
        key, trust, now = self._home.key(Usage.ENCRYPT), self._home.trust(), self._now()
        content = parcel.content or sealing.unseal(
            sealing.ASK, parcel.sealed, sender=parcel.sender, key=key
        )
        notice = AlertNotice.from_bytes(content)
        alert = trust.verify(notice.alert, Alert, Usage.ANSWER, now, org=parcel.sender).object
        watched = self.get(alert.watch)
        asked = watched.request
        if (asked.provider, asked.verifier, asked.grant) != (
            alert.org,
            alert.verifier,
            alert.grant,
        ):
            raise IntegrityError("an alert on another's watch", party=alert.org)
        if (asked.rule, asked.severity) != (alert.rule, alert.severity):
            raise IntegrityError("an alert of another rule than the watch's", party=alert.org)
        proven = verify_receipt(notice.receipt, trust)
        entry, rests = proven.entry, (alert.org, alert.log, alert.grant, alert.entry)
        fits = is_answer(entry) and entry.object == alert.digest()  # not of one that was withheld
        if not fits or (proven.org, proven.origin, entry.job, entry.attempt) != rests:
            raise IntegrityError("the receipt is of another alert", party=alert.org)
        wanted = watched.ended in (None, UNCONFIRMED)
        if wanted:
            with self._store.writing(AlertRow) as session:
                if session.get(AlertRow, alert.digest()) is None:
                    # each costs a use there, as the sign-up did: an owner of more tells no events
                    query = select(func.count()).where(AlertRow.watch == alert.watch)
                    uses = 1 + (session.scalar(query) or 0)
                    if uses >= Consents(self._store).get(alert.grant).grant.max_uses:
                        raise Refused("more alerts than the grant has uses", party=alert.org)
                    row = AlertRow(
                        digest=alert.digest(),
                        watch=alert.watch,
                        notice=notice.to_bytes(),
                        created=alert.created,
                        taken=utc_text(now),
                        due_from=due_from({alert.org: notice.receipt}),
                    )
                    session.add(row)
        said = AlertTaken(
            org=self._home.org, alert=alert.digest(), created=utc_text(now), wanted=wanted
        )
        signed = sign(said, self._home.key(Usage.REQUEST))
        keys = trust.card(parcel.sender).of_usage(Usage.ENCRYPT)
        recipient = base64.b64decode(keys[-1].spki)
        me = self._home.org
        return sealing.seal(sealing.ANSWER, signed.to_json(), sender=me, recipient=recipient)


def plain_watch(watched: Watched) -> dict[str, object]:
    """As the command line shows it."""
    request = watched.request
    return {
        "watch": watched.digest,
        "created": watched.created,
        "rule": request.rule,
        **plain_question(request),
        "severity": request.severity.value,
        "ended": watched.ended,
        "is_told": watched.is_told,
    }


def _told(row: AlertRow) -> Told:
    notice = AlertNotice.from_bytes(row.notice)
    return Told(row.digest, notice.alert.unverified(Alert), notice.receipt)


def _watched(row: WatchRow) -> Watched:
    reply = None if row.end_reply is None else EndReply.from_bytes(row.end_reply)
    return Watched(
        row.digest,
        WatchRequest.model_validate(parse(row.request)),
        row.created,
        row.ended,
        reply is not None,
        reply.receipt if reply is not None else None,
    )


def plain_alert(told: Told) -> dict[str, object]:
    """The same of an alert."""
    return {"alert": told.digest} | told.alert.model_dump(mode="json")
