"""The owner's side of watches: sign-up, evaluation when the data change, alerts until taken.

Every look at a value is an entry in the audit log before it happens, every alert a use of the
grant. An alert is on disk with its log entries before it leaves and leaves until the bank has taken
it; so a crash anywhere costs at most a second delivery, which the bank knows by its digest.
"""

from __future__ import annotations

import base64
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update

from clients.audit import AuditLog
from clients.consent import Consents, Debits, Leak
from clients.facts import Facts
from clients.gate import Gate
from clients.home import Home
from clients.store import AlertRow, Store, WatchRow
from clients.use_notices import UseOutbox, encrypt_key
from clients.verification import Debit, Outcome
from clients.verification_settings import VerificationSettings
from clients.verifier import Carrier
from federation import enquiry, sealing
from federation.audit import Action, AuditEntry, Check, Reason, Result
from federation.catalogue import Field
from federation.enquiry import BIT, Answered, Comparison
from federation.envelope import Envelope, parse, sign
from federation.errors import IntegrityError, LianmoError, Refused, Unavailable
from federation.grants import Grant, verify_by_subject
from federation.objects import Usage, utc_text, utc_time
from federation.verification import Asked, Denied, Granted, require_granted, require_in_force
from federation.watch import Alert, AlertNotice, AlertTaken, WatchRequest

log = logging.getLogger("lianmo.watch")
KEPT, ASKED = "kept", "asked"
WATCHING, ALERTED = "watching", "alert"  # as a result
REMOVED = "removed"  # why a watch ended: its bank wants no more
# That end a watch for good; others may pass: a stale list, a pause.
FINAL = {Reason.REVOKED, Reason.EXPIRED, Reason.USES, Reason.BITS}
PATIENCE_S = 5.0  # with one bank in a round, before its other alerts wait for the next
WITHHELD = "withheld"  # in place of the time at which the bank took an alert


class Watches:
    """Signing up for a watch; the answer is that it is kept, and nothing of the value."""

    kind = WatchRequest

    def __init__(self, store: Store, gate: Gate, now: Callable[[], datetime]) -> None:
        self._store, self._gate, self._now = store, gate, now
        self._debits = Debits(store)

    def debits(self, asked: Asked[WatchRequest]) -> Sequence[Debit]:
        """The question's bit, on the same budget as questions of others."""
        return [_debit(self._store, self._debits, asked.request, asked.places[0].offered)]

    def read(
        self, asked: Asked[WatchRequest], intents: Sequence[int], debits: Sequence[Debit]
    ) -> Outcome:
        """Look once, silently: a rule that holds already does not start to hold."""
        request, place = asked.request, asked.places[0]
        catalogue = place.entry.digest()
        holds, snapshot, _ = _look(self._gate, intents[0], request, place.offered, catalogue)
        with self._store.writing(WatchRow) as session:
            row = WatchRow(
                digest=asked.digest,
                part=KEPT,
                consent=asked.grant_digest,
                request=request.payload(),
                created=utc_text(self._now()),
                snapshot=snapshot,
                holds=holds,
            )
            session.add(row)
        return Outcome(Answered.VALUE, place.entry.as_of, catalogue, WATCHING, told=(None,))


@dataclass(frozen=True, slots=True)
class _Due:
    """A watch that has to be looked at."""

    digest: str
    request: WatchRequest
    consent: str
    holds: bool
    last_alert: str | None


class Watchman:
    """Evaluates a home's watches and delivers their alerts."""

    def __init__(
        self,
        home: Home,
        store: Store,
        gate: Gate,
        carrier: Carrier,
        now: Callable[[], datetime],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._store, self._gate, self._now = home, store, gate, now
        self._clock = clock
        self._tries: dict[str, int] = {}  # by alert that waits
        self._carrier = carrier
        self._settings = VerificationSettings.of(home)
        self._facts = Facts(home, store, now)
        self._audit = AuditLog(home, store)
        self._consents, self._debits = Consents(store), Debits(store)
        self._uses = UseOutbox(store)
        # Rules that started within a pause: on which snapshot, and when the pause is over. Without
        # it each round would look, and enter that it does, until then.
        self._paused: dict[str, tuple[str, datetime]] = {}

    def round(self) -> int:
        """Look at every watch whose data have changed, then deliver; how many alerts were new.

        Raises Refused if the clock was set back: a grant that has ended would hold again.
        """
        self._audit.require_clock(self._now())
        found = 0
        for due in self._due():
            why = ""
            try:
                found += self._evaluate(due)
            except LianmoError as error:
                why = error.what
            except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
                # a value of any shape stands in the data: one must not end the round for all
                why = type(error).__name__
            if why:
                log.warning("watch not evaluated", extra={"watch": due.digest[:16], "why": why})
        self.deliver()
        return found

    def _due(self) -> list[_Due]:
        snapshots = {item.name: item.snapshot for item in self._store.datasets.all()}
        due = []
        with self._store.reading() as session:
            query = select(WatchRow).where(WatchRow.part == KEPT, WatchRow.ended.is_(None))
            for row in session.scalars(query.order_by(WatchRow.created)):
                request = WatchRequest.model_validate(parse(row.request))
                ends, snapshot = self._over(row.consent), snapshots.get(request.dataset)
                paused, until = self._paused.get(row.digest, (None, self._now()))
                waits = paused == snapshot and self._now() < until
                if ends or (snapshot != row.snapshot and not waits):
                    due.append(_Due(row.digest, request, row.consent, row.holds, row.last_alert))
        return due

    def _over(self, consent: str) -> bool:
        """Whether the grant has ended by its own time, without any new data."""
        return self._now() >= utc_time(self._consents.get(consent).grant.expires)

    def _evaluate(self, due: _Due) -> bool:
        request, now = due.request, self._now()
        if self._over(due.consent):  # whatever else may not hold any more
            self._end(due.digest, Reason.EXPIRED)
            return False
        try:
            place, grant = self._require_allowed(request, due.consent, now)
            uses, last_use = self._debits.uses(due.consent)
            if uses >= grant.max_uses:
                raise Denied(Check.BUDGET, Reason.USES, "the grant is used up")
            _require_bits(_debit(self._store, self._debits, request, place.offered))
        except Denied as error:
            if error.reason in FINAL:
                self._end(due.digest, error.reason)
            raise
        with self._audit.together(now):
            intent = self._enter(Action.WATCHED, due, now)
        catalogue = place.entry.digest()
        holds, snapshot, _ = _look(self._gate, intent.seq, request, place.offered, catalogue)
        if not holds or due.holds:
            self._mark(due, snapshot, holds)
            return False
        pauses = (due.last_alert, request.debounce_s), (last_use, grant.min_interval_s)
        until = max(
            (utc_time(time) + timedelta(seconds=length) for time, length in pauses if time),
            default=now,
        )
        if now < until:  # looked at again when the pause is over, if it still holds then
            self._paused[due.digest] = snapshot, until
            return False
        self._raise_alert(due, snapshot, place, now)
        return True

    def _require_allowed(
        self, request: WatchRequest, consent: str, now: datetime
    ) -> tuple[Granted, Grant]:
        """All checks that may turn out otherwise than when the watch was signed up."""
        stored, trust = self._consents.get(consent), self._home.trust()
        policy = self._settings.policy(self._home.org, trust)
        self._facts.begin(trust, policy)
        found = verify_by_subject(stored.bundle, Grant, trust, policy.issuers, now)
        self._home.standing().require_active(request.verifier, now)
        require_in_force(found.object, found, policy, self._facts, now)  # what ends it comes first
        (place,) = require_granted(request, found, policy, self._facts, now)
        return place, found.object

    def _raise_alert(self, due: _Due, snapshot: str, place: Granted, now: datetime) -> None:
        request, stored = due.request, self._consents.get(due.consent)
        grant = stored.grant
        with self._audit.together(now):
            # an alert tells a bit more, as a question on new data would
            debit = _debit(self._store, self._debits, request, place.offered)
            _require_bits(debit)
            spent = Leak(debit.before.millibits + debit.millibits, debit.before.known)
            self._debits.put_leak(debit.scope, debit.basis, spent)
            intent = self._enter(Action.ASKED, due, now, debit)
            left = grant.max_uses - self._debits.use(due.consent, now)
            alert = Alert(
                org=self._home.org,
                verifier=request.verifier,
                watch=due.digest,
                grant=due.consent,
                rule=request.rule,
                severity=request.severity,
                created=utc_text(now),
                as_of=place.entry.as_of,
                uses_left=left,
                log=self._audit.origin,
                entry=intent.seq,
            )
            signed = sign(alert, self._home.key(Usage.ANSWER))
            entry = self._audit.append(
                Action.ANSWERED,
                alert.digest(),
                now,
                actor=Usage.ANSWER,
                job=due.consent,
                attempt=intent.seq,
            )
            if encrypt_key(stored.bundle) is not None:
                self._uses.put(entry.seq, request, due.digest, request, ALERTED)
            with self._store.writing(AlertRow, WatchRow) as session:
                session.add(
                    AlertRow(
                        digest=alert.digest(),
                        watch=due.digest,
                        notice=kept_bytes(signed, entry.seq),
                        created=utc_text(now),
                    )
                )
                row = session.get_one(WatchRow, due.digest)
                row.snapshot, row.holds, row.last_alert = snapshot, True, utc_text(now)

    def _mark(self, due: _Due, snapshot: str, holds: bool) -> None:
        with self._store.writing(WatchRow) as session:
            row = session.get_one(WatchRow, due.digest)
            row.snapshot, row.holds = snapshot, holds

    def _end(self, digest: str, why: Reason | None) -> None:
        end_watch(self._audit, self._store, digest, why, self._now())

    def _enter(
        self, action: Action, due: _Due, now: datetime, debit: Debit | None = None
    ) -> AuditEntry:
        """What is about to be done, in the caller's transaction; Refused if the watch was ended
        while it was on its way."""
        with self._store.reading() as session:
            if session.get_one(WatchRow, due.digest).ended is not None:
                raise Refused("the watch has ended")
        return self._audit.append(
            action,
            due.digest,
            now,
            actor=Usage.ANSWER,
            outcome=Result.ADMITTED,
            job=due.consent,
            scope=None if debit is None else debit.scope,
            amount=None if debit is None else debit.millibits,
            subject=due.request.subject.encode(),
        )

    # --- delivery

    def deliver(self) -> int:
        """Send what no bank has taken yet; how many were taken now."""
        with self._store.reading() as session:
            query = select(AlertRow).where(AlertRow.taken.is_(None)).order_by(AlertRow.created)
            waiting = [(row.digest, row.watch, row.notice) for row in session.scalars(query)]
        # The least tried first: one that its bank never takes looks as if the bank were away, and
        # must not keep the bank's others from their turn.
        self._tries = {digest: self._tries.get(digest, 0) for digest, _, _ in waiting}
        waiting.sort(key=lambda item: self._tries[item[0]])
        done, spent = 0, dict[str, float]()  # time on each bank; without end if it is away
        for digest, watch, kept in waiting:
            bank, began = unkept(kept)[0].unverified(Alert).verifier, self._clock()
            if spent.get(bank, 0.0) > PATIENCE_S:
                continue
            self._tries[digest] += 1
            try:
                self._require_still_allowed(digest, watch)
                self._send(digest, watch, kept)
                done += 1
            except LianmoError as error:
                if isinstance(error, Unavailable):
                    spent[bank] = math.inf
                log.warning("alert not taken yet", extra={"alert": digest[:16], "why": error.what})
            spent[bank] = spent.get(bank, 0.0) + self._clock() - began
        return done

    def _require_still_allowed(self, digest: str, watch: str) -> None:
        """Raises Denied where the consent is not there any more, for good or for now.

        An alert may wait for weeks for a bank that is away; what the firm has revoked by then does
        not leave the house.
        """
        with self._store.reading() as session:
            row = session.get_one(WatchRow, watch)
            request, consent = WatchRequest.model_validate(parse(row.request)), row.consent
        now = self._now()
        try:
            self._require_allowed(request, consent, now)
        except Denied as error:
            if error.reason in FINAL:
                self._withhold(digest, consent, error, now)
            raise

    def _withhold(self, digest: str, consent: str, error: Denied, now: datetime) -> None:
        with self._audit.together(now):
            self._audit.append(
                Action.ANSWERED,
                digest,
                now,
                actor=Usage.ANSWER,
                outcome=Result.REFUSED,
                check=error.check,
                reason=error.reason,
                job=consent,
            )
            with self._store.writing(AlertRow) as session:
                session.get_one(AlertRow, digest).taken = WITHHELD

    def _send(self, digest: str, watch: str, kept: bytes) -> None:
        signed, seq = unkept(kept)
        bank = signed.unverified(Alert).verifier
        trust, now = self._home.trust(), self._now()
        keys = trust.card(bank).of_usage(Usage.ENCRYPT)
        if not keys:
            raise Refused("its card has no active encrypt key", party=bank)
        notice = AlertNotice(alert=signed, receipt=self._audit.receipt(seq))
        recipient = base64.b64decode(keys[-1].spki)
        me = self._home.org
        sealed = sealing.seal(sealing.ASK, notice.to_bytes(), sender=me, recipient=recipient)
        reply = self._carrier.ask_sealed(bank, sealed)
        key = self._home.key(Usage.ENCRYPT)
        content = sealing.unseal(sealing.ANSWER, reply, sender=bank, key=key)
        found = Envelope.from_json(content)
        taken = trust.verify(found, AlertTaken, Usage.REQUEST, now, org=bank).object
        if taken.alert != digest:
            raise IntegrityError("it has taken another alert", party=bank)
        with self._store.writing(AlertRow) as session:
            session.get_one(AlertRow, digest).taken = taken.created
        if not taken.wanted:
            self._end(watch, None)


def end_watch(audit: AuditLog, store: Store, digest: str, why: Reason | None, now: datetime) -> int:
    """End a watch that this home keeps, with its entry in the log, once; the entry's number.

    why: what ended it; None: its bank. Then alerts that have not left do not leave any more.
    """
    with audit.together(now):
        with store.reading() as session:
            row = session.get_one(WatchRow, digest)
            known, consent = row.end_entry, row.consent
        if known is not None:
            return known
        entry = audit.append(
            Action.WATCH_ENDED, digest, now, actor=Usage.ANSWER, reason=why, job=consent
        )
        with store.writing(AlertRow, WatchRow) as session:
            row = session.get_one(WatchRow, digest)
            row.ended, row.end_entry = row.ended or (why.value if why else REMOVED), entry.seq
            if why is None:
                waiting = AlertRow.watch == digest, AlertRow.taken.is_(None)
                session.execute(update(AlertRow).where(*waiting).values(taken=WITHHELD))
    return entry.seq


def kept_bytes(signed: Envelope, seq: int) -> bytes:
    """A signed alert with the number of its log entry, as it is kept until its receipt is made."""
    return seq.to_bytes(8, "big") + signed.to_json()


def unkept(kept: bytes) -> tuple[Envelope, int]:
    """The two parts of it."""
    return Envelope.from_json(kept[8:]), int.from_bytes(kept[:8], "big")


def _debit(store: Store, debits: Debits, request: WatchRequest, offered: Field) -> Debit:
    """One bit, on the same budget as questions of others."""
    if (said := offered.enquiry) is None:
        raise RuntimeError("a field without an enquiry passed check 8")
    snapshot = store.datasets.get(request.dataset).snapshot
    scope = debits.scope(request.subject, request.dataset, request.field, request.period)
    basis = enquiry.basis(snapshot, said.column(request.field, request.period), said)
    return Debit(scope, basis, debits.leak(scope, basis), BIT, said.bits_budget)


def _require_bits(debit: Debit) -> None:
    if debit.before.millibits + debit.millibits > debit.bits_budget * BIT:
        raise Denied(Check.BUDGET, Reason.BITS, "the field's budget of bits is spent")


def _look(
    gate: Gate, intent: int, request: WatchRequest, offered: Field, catalogue: str
) -> tuple[bool, str, str]:
    """Whether the rule holds, on which snapshot, as of which day; no record: it does not."""
    if (said := offered.enquiry) is None:
        raise RuntimeError("a field without an enquiry passed check 8")
    found = gate.one_value(
        intent,
        dataset=request.dataset,
        catalogue=catalogue,
        column=said.column(request.field, request.period),
        subject=request.subject,
    )
    question = enquiry.Asked(
        request.op, said.grid, request.comparison or Comparison.GE, request.arg
    )
    told = enquiry.evaluate(question, found.value, said.normaliser)
    return told.word is Answered.MATCH, found.snapshot, found.as_of
