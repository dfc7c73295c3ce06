"""The owner's side of questions on enterprises: from a sealed frame to a sealed answer
(GOVERNANCE.md, Order of checks at the provider).

Several frames go through together, in two transactions: the first claims nonces, debits uses and
budgets and writes the intents (11, 12); only then are values read (13); the second enters what was
answered and what was refused, and why (14). Every frame costs both, whatever becomes of it, so a
refusal takes as long as an answer. A crash in between costs the use and shows in the log.

A `Service` is what one kind of request does with the data (clients/services.py lists them). Checks,
debits, log, answer and receipt are the same for all.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

import rfc8785

from clients.audit import AuditLog
from clients.consent import MET, Consents, Debits, Leak
from clients.facts import Facts
from clients.home import Home
from clients.store import Store
from clients.use_notices import UseOutbox
from clients.verification_settings import VerificationSettings
from federation import enquiry, sealing
from federation.audit import Action, AuditEntry, Check, Reason, Result
from federation.enquiry import BIT, Answered, Told
from federation.envelope import Envelope, payload_type, sign
from federation.errors import LianmoError, Refused
from federation.identity import PrivateKey
from federation.objects import Usage, utc_text, utc_time
from federation.package import package_sha256
from federation.trust import TrustStore
from federation.verification import (
    Answer,
    Ask,
    Asked,
    Asking,
    Denied,
    Policy,
    Progress,
    Reply,
    Standing,
    check_asked,
)

log = logging.getLogger("lianmo.verification")
A = TypeVar("A", bound=Asking)


@dataclass(frozen=True, slots=True)
class Parcel:
    """A sealed frame, and who the relay says has sent it."""

    sender: str
    sealed: bytes = field(repr=False)
    content: bytes | None = field(default=None, repr=False)  # where somebody has opened it already


@dataclass(frozen=True, slots=True)
class Debit:
    """What a request costs on one scope, before anything is read."""

    scope: str
    basis: str  # what `before` holds for: of another one nothing is implied
    before: Leak
    millibits: int
    bits_budget: int
    field_scope: str = ""  # the same over all periods, for the alert


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a service read: the answer's words, and what is known afterwards on each scope."""

    result: Answered
    as_of: str
    catalogue: str
    value: str | None = field(default=None, repr=False)
    normaliser: str | None = None
    # what was told on each debit's scope: None where that leaves no trace there
    told: tuple[tuple[enquiry.Asked, Told] | None, ...] = ()
    cut: int | None = None  # the cut point that was asked for
    extra: bytes = field(default=b"", repr=False)


class Service(Protocol[A]):
    """What one kind of request does with the data."""

    kind: type[A]

    def debits(self, asked: Asked[A]) -> Sequence[Debit]:
        """What it costs at most; inside of the first transaction, raises Denied (11)."""

    def read(self, asked: Asked[A], intents: Sequence[int], debits: Sequence[Debit]) -> Outcome:
        """Read and answer, once the intents are on disk; raises Denied (13)."""


@dataclass(slots=True)
class _Work:
    """One frame on its way."""

    parcel: Parcel
    digest: str
    progress: Progress = field(default_factory=Progress)
    reply_key: bytes | None = None
    asked: Asked[Any] | None = None
    denied: Denied | None = None
    debits: Sequence[Debit] = ()
    intents: tuple[int, ...] = ()
    uses_left: int = 0
    outcome: Outcome | None = None
    answer: Envelope | None = None
    entry: AuditEntry | None = None


class Provider:
    """One home's answers."""

    def __init__(
        self,
        home: Home,
        store: Store,
        *,
        now: Callable[[], datetime],
        services: Mapping[str, Service[Any]],
        ready: Callable[[datetime], None] | None = None,
    ) -> None:
        """services: by payload type (clients/services.py). ready: raises where this node may not
        answer at all just now (an unwitnessed log, say)."""
        self._home, self._store, self._now = home, store, now
        self._settings = VerificationSettings.of(home)
        self._audit = AuditLog(home, store)
        self._facts = Facts(home, store, now)
        self._consents, self._debits = Consents(store), Debits(store)
        self._uses = UseOutbox(store)
        self._services = services
        self._ready = ready
        self._trusted: TrustStore | None = None
        self._keys: dict[Usage, PrivateKey] = {}
        rules = {"settings": self._settings.model_dump_json(), "package": package_sha256()}
        self._policy = hashlib.sha256(rfc8785.dumps(rules)).hexdigest()
        self._rates = Rates(self._settings.verifier_per_minute, self._settings.subject_per_hour)

    def answer(self, parcels: Sequence[Parcel]) -> list[bytes]:
        """The sealed replies, in the order of the frames; an empty one where nobody can read it.

        Nothing is raised for what a frame holds; LianmoError where this node cannot answer at all.
        """
        now, trust = self._now(), self._home.trust()
        policy = self._settings.policy(self._home.org, trust)
        self._refresh_keys(trust)
        self._facts.begin(trust, policy)
        with self._store.snapshot():
            stopped, standing = self._why_not(now), self._home.standing()
            works = [self._check(item, trust, policy, standing, now, stopped) for item in parcels]
        with self._audit.together(now):
            self._debits.forget_nonces(now)
            for work in works:
                self._admit(work, now)
        for work in works:
            self._read(work, now)
        with self._audit.together(now):
            for work in works:
                self._enter(work, now)
        answered = [work for work in works if work.outcome is not None and work.entry is not None]
        proofs = self._audit.receipts_just_now([work.entry for work in answered if work.entry])
        receipts = {id(work): proof for work, proof in zip(answered, proofs, strict=True)}
        return [self._seal(work, receipts.get(id(work))) for work in works]

    def _refresh_keys(self, trust: TrustStore) -> None:
        """Read the own keys again when a card has changed: the own one is among them."""
        if trust is not self._trusted:
            self._keys = {usage: self._home.key(usage) for usage in (Usage.ENCRYPT, Usage.ANSWER)}
            self._trusted = trust

    # --- 1 to 10 ----------------------------------------------------------------------------------

    def _why_not(self, now: datetime) -> LianmoError | None:
        """Why this node answers nothing at all just now: its clock, its witnesses."""
        try:
            self._audit.require_clock(now)
            if self._ready is not None:
                self._ready(now)
        except LianmoError as error:
            return error
        return None

    def _check(
        self,
        parcel: Parcel,
        trust: TrustStore,
        policy: Policy,
        standing: Standing,
        now: datetime,
        stopped: LianmoError | None,
    ) -> _Work:
        work = _Work(parcel, hashlib.sha256(parcel.sealed).hexdigest())
        work.reply_key = _encrypt_key(trust, parcel.sender)
        try:
            content = self._open(parcel)
            kind = self._service(content, work.progress).kind
            if stopped is not None:
                reason = stopped.reason if isinstance(stopped, Denied) else Reason.of(stopped)
                raise Denied(Check.FRESH, reason, stopped.what)
            asked = check_asked(
                content,
                parcel.sender,
                kind,
                trust=trust,
                policy=policy,
                facts=self._facts,
                now=now,
                standing=standing,
                progress=work.progress,
            )
            reply_key = _encrypt_key(trust, parcel.sender, asked.request.reply_key)
            if reply_key is None:  # refused like anything else: silence would say that 1 to 10 held
                raise Denied(Check.VERIFIER, Reason.SIGNER, "the reply key is not the verifier's")
            work.reply_key = reply_key
            self._rates.ask(asked.request.verifier, now)
            work.asked = asked
        except Denied as error:
            work.denied = error
        return work

    def _open(self, parcel: Parcel) -> bytes:
        if parcel.content is not None:
            return parcel.content
        try:
            key = self._keys[Usage.ENCRYPT]
            return sealing.unseal(sealing.ASK, parcel.sealed, sender=parcel.sender, key=key)
        except LianmoError as error:
            raise Denied(Check.SEALED, Reason.INTEGRITY, error.what) from None

    def _service(self, content: bytes, progress: Progress) -> Service[Any]:
        """Who serves such a request; what it says of itself is checked by whoever that is."""
        try:
            envelope = Ask.from_bytes(content).request
        except LianmoError as error:
            raise Denied(Check.ENVELOPE, Reason.INTEGRITY, error.what) from None
        progress.digest = hashlib.sha256(envelope.payload).hexdigest()
        if envelope.payload_type not in self._services:
            raise Denied(Check.ENVELOPE, Reason.INTEGRITY, "another kind of object")
        return self._services[envelope.payload_type]

    # --- 11 and 12 --------------------------------------------------------------------------------

    def _admit(self, work: _Work, now: datetime) -> None:
        """Nonce, debits and intent: all in the transaction that is open."""
        try:
            self._claim_nonce(work, now)
            if work.asked is not None and work.denied is None:
                self._debit(work, work.asked, now)
        except Denied as error:
            work.denied = error

    def _claim_nonce(self, work: _Work, now: datetime) -> None:
        verifier, nonce = work.progress.verifier, work.progress.nonce
        if verifier is None or nonce is None:
            return
        if not self._debits.use_nonce(verifier, nonce, now) and work.denied is None:
            raise Denied(Check.FRESH, Reason.REPLAYED, "the request's nonce came before")

    def _debit(self, work: _Work, asked: Asked[Any], now: datetime) -> None:
        grant, digest = asked.grant, asked.grant_digest
        self._rates.require_subject(grant.subject, now)
        uses, last = self._debits.uses(digest)
        if uses >= grant.max_uses:
            raise Denied(Check.BUDGET, Reason.USES, "the grant is used up")
        if last is not None and now < utc_time(last) + timedelta(seconds=grant.min_interval_s):
            raise Denied(Check.BUDGET, Reason.TOO_SOON, "the grant was used a moment ago")
        debits = self._service_of(asked).debits(asked)
        for debit in debits:
            total = debit.before.millibits + debit.millibits
            if debit.millibits and total > debit.bits_budget * BIT:
                raise Denied(Check.BUDGET, Reason.BITS, "the field's budget of bits is spent")
        self._consents.put(asked.bundle, MET, now, grant.subject)
        work.uses_left = grant.max_uses - self._debits.use(digest, now)
        intents = []
        for place, debit in enumerate(debits):
            spent = Leak(debit.before.millibits + debit.millibits, debit.before.known)
            self._debits.put_leak(debit.scope, debit.basis, spent)
            entry = self._audit.append(
                Action.ASKED,
                asked.digest,
                now,
                actor=Usage.ANSWER,
                outcome=Result.ADMITTED,
                job=digest,
                attempt=place,
                scope=debit.scope,
                amount=debit.millibits,
                policy=self._policy,
                subject=asked.request.subject.encode(),
            )
            intents.append(entry.seq)
        work.debits, work.intents = debits, tuple(intents)
        self._rates.admit(grant.subject, now)

    # --- 13 and 14 --------------------------------------------------------------------------------

    def _read(self, work: _Work, now: datetime) -> None:
        if work.asked is None or work.denied is not None:
            work.answer = self._refusal(work, now)
            return
        asked = work.asked
        try:
            # a value of any shape stands in the data: what cannot be answered is refused
            try:
                work.outcome = self._service_of(asked).read(asked, work.intents, work.debits)
                work.answer = self._answer(work, asked, work.outcome, now)
            except Refused as error:
                if isinstance(error, Denied):
                    raise
                raise Denied(Check.VALUE, Reason.of(error), error.what) from None
            except LianmoError as error:
                raise Denied(Check.VALUE, Reason.of(error), error.what) from None
            except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
                log.error("value not answered", extra={"error": type(error).__name__})
                raise Denied(Check.VALUE, Reason.OTHER, "the value cannot be compared") from None
        except Denied as error:
            work.denied, work.outcome = error, None
            work.answer = self._refusal(work, now)

    def _answer(self, work: _Work, asked: Asked[Any], outcome: Outcome, now: datetime) -> Envelope:
        answer = Answer(
            org=self._home.org,
            verifier=asked.request.verifier,
            request=asked.digest,
            created=utc_text(now),
            result=outcome.result,
            value=outcome.value,
            as_of=outcome.as_of,
            normaliser=outcome.normaliser,
            catalogue=outcome.catalogue,
            uses_left=work.uses_left,
            log=self._audit.origin,
            entry=work.intents[0],
        )
        return sign(answer, self._keys[Usage.ANSWER])

    def _refusal(self, work: _Work, now: datetime) -> Envelope:
        answer = Answer(
            org=self._home.org,
            verifier=work.parcel.sender,
            request=work.progress.digest or work.digest,
            created=utc_text(now),
            result=Answered.REFUSED,
        )
        return sign(answer, self._keys[Usage.ANSWER])

    def _enter(self, work: _Work, now: datetime) -> None:
        """What became of it, in the transaction that is open."""
        if work.denied is not None:
            error = work.denied
            extra = {
                "request": (work.progress.digest or work.digest)[:16],
                "verifier": work.parcel.sender,
                "check": error.check.value,
                "reason": error.reason.value,
            }
            log.warning("question refused", extra=extra)
            entry = self._audit.append(
                Action.ANSWERED if work.intents else Action.ASKED,
                work.progress.digest or work.digest,
                now,
                actor=Usage.ANSWER,
                outcome=Result.REFUSED,
                check=error.check,
                reason=error.reason,
                job=work.progress.grant,
                attempt=work.intents[0] if work.intents else None,
                policy=self._policy,
            )
            if work.intents and work.asked is not None:  # it has cost a use
                self._tell(work.asked, entry, Answered.REFUSED)
            return
        if work.answer is None or work.outcome is None or work.asked is None:
            raise RuntimeError("an answer without an outcome")
        work.entry = self._audit.append(
            Action.ANSWERED,
            hashlib.sha256(work.answer.payload).hexdigest(),
            now,
            actor=Usage.ANSWER,
            job=work.asked.grant_digest,
            attempt=work.intents[0],
        )
        self._tell(work.asked, work.entry, work.outcome.result)
        for debit, told in zip(work.debits, work.outcome.told, strict=True):
            if told is not None:
                leak = self._debits.leak(debit.scope, debit.basis)
                leak.known = leak.known.with_told(*told)
                self._debits.put_leak(debit.scope, debit.basis, leak)
        if (cut := work.outcome.cut) is not None:
            scope = work.debits[0].field_scope
            cuts = self._debits.asked_cut(scope, cut)
            if cuts is not None and enquiry.is_bisection(cuts):
                log.warning("bisection shape", extra={"scope": scope[:16]})
                self._audit.append(
                    Action.PROBING_NOTICED,
                    work.asked.digest,
                    now,
                    actor=Usage.ANSWER,
                    job=work.asked.grant_digest,
                    scope=scope,
                    amount=len(cuts),
                )

    def _tell(self, asked: Asked[Any], entry: AuditEntry, result: Answered) -> None:
        """Remember to tell the subject of this use, where it can be told."""
        if asked.consent.encrypt is not None:
            place = asked.places[0].item
            self._uses.put(entry.seq, asked.request, asked.digest, place, result.value)

    def _seal(self, work: _Work, receipt: Any) -> bytes:
        if work.reply_key is None or work.answer is None:
            return b""
        extra = work.outcome.extra if work.outcome is not None else b""
        reply = Reply(answer=work.answer, receipt=receipt, extra=base64.b64encode(extra).decode())
        return sealing.seal(
            sealing.ANSWER, reply.to_bytes(), sender=self._home.org, recipient=work.reply_key
        )

    # --- helpers ----------------------------------------------------------------------------------

    def _service_of(self, asked: Asked[Any]) -> Service[Any]:
        return self._services[payload_type(type(asked.request))]


ROOM = 100_000  # verifiers and subjects that rates are kept of before those of the past go


class Rates:
    """How often a verifier may ask, and how often one subject may be asked about; in memory.

    Of a subject what was admitted counts: what is refused costs the asker no use, and a bank whose
    grant is used up, or a carrier that repeats frames, must not use up the questions of others.
    """

    def __init__(self, verifier_per_minute: int, subject_per_hour: int) -> None:
        self._limits = (
            (timedelta(minutes=1), verifier_per_minute),
            (timedelta(hours=1), subject_per_hour),
        )
        self._seen: dict[tuple[int, str], deque[datetime]] = {}
        self._room = ROOM

    def ask(self, verifier: str, now: datetime) -> None:
        """Count a verifier's request; raises Denied (10) beyond the limit."""
        self._require(0, verifier, now)
        self._count(0, verifier, now)

    def require_subject(self, subject: str, now: datetime) -> None:
        """Raises Denied (10) if too much was admitted on a subject."""
        self._require(1, subject, now)

    def admit(self, subject: str, now: datetime) -> None:
        """Count a request that was admitted."""
        self._count(1, subject, now)

    def _require(self, number: int, name: str, now: datetime) -> None:
        window, most = self._limits[number]
        times = self._seen.get((number, name), deque())
        while times and times[0] <= now - window:
            times.popleft()
        if len(times) >= most:
            raise Denied(Check.POLICY, Reason.RATE, "asked too often")

    def _count(self, number: int, name: str, now: datetime) -> None:
        self._seen.setdefault((number, name), deque()).append(now)
        if len(self._seen) > self._room:
            self._seen = {
                (number, name): times
                for (number, name), times in self._seen.items()
                if times and times[-1] > now - self._limits[number][0]
            }
            # not at every request: of those that are left nothing is over yet
            self._room = max(ROOM, 2 * len(self._seen))


def _encrypt_key(trust: TrustStore, org: str, key_id: str | None = None) -> bytes | None:
    """An active encrypt key of a trusted card, SPKI; the newest one, or the one of that id."""
    if org not in trust:
        return None
    keys = trust.card(org).of_usage(Usage.ENCRYPT)
    found = [key for key in keys if key_id in (None, key.key_id)]
    return base64.b64decode(found[-1].spki) if found else None
