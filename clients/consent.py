"""A home's books on grants: what was given, held or met, later words on them, uses and budgets.

Uses and budgets change in the transaction that enters the intent into the audit log, so the two
never come apart; `differences` compares them, for `lianmo audit verify` and a node's start.

A scope is what a budget is kept on: (subject, dataset, field, period), as an HMAC under a salt of
that subject. With the salt's row gone nobody can tell whose budget it was.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, select

from clients.store import (
    ConsentEventRow,
    ConsentRow,
    CutsRow,
    LeakRow,
    NonceRow,
    StatusListRow,
    Store,
    SubjectSaltRow,
    UseRow,
    table_of,
)
from federation.audit import Action, AuditEntry, Result
from federation.enquiry import Known
from federation.envelope import Envelope
from federation.errors import Conflict, IntegrityError, LianmoError, NotFound
from federation.grants import (
    BySubject,
    Change,
    Grant,
    GrantEvent,
    Said,
    StatusList,
    UseNotice,
    VerifiedSubject,
)
from federation.objects import OrgKind, Usage, utc_text
from federation.trust import TrustStore
from federation.verification import NONCE_KEPT
from protocols.streams import encode

GIVEN, HELD, MET = "given", "held", "met"
CUTS_KEPT = 64
DIGEST_CHARS = 64
SWEEP_EVERY = timedelta(seconds=30)
UNPROVEN = "?"  # in place of a subject: whose word an event is does not show here yet
VerifyEvent = Callable[[BySubject], VerifiedSubject[GrantEvent]]
# Every question goes through these: without the mapping of objects they take a third of the time.
_CONSENT, _NONCE, _SALT = table_of(ConsentRow), table_of(NonceRow), table_of(SubjectSaltRow)
_LEAK, _CUTS = table_of(LeakRow), table_of(CutsRow)
_EVENTS, _LISTS = table_of(ConsentEventRow), table_of(StatusListRow)
_EVENTS_ON = (
    select(_EVENTS.c.digest, _EVENTS.c.bundle, _EVENTS.c.subject)
    .where(_EVENTS.c.consent == bindparam("consent"))
    .order_by(_EVENTS.c.seen)
)
_LISTED = select(_LISTS.c.org, _LISTS.c.sequence).limit(1)
_NONCE_SEEN = select(_NONCE.c.nonce).where(
    _NONCE.c.scope == bindparam("scope"), _NONCE.c.nonce == bindparam("nonce")
)
_NONCES_OVER = _NONCE.delete().where(_NONCE.c.expires < bindparam("now"))
_USES = select(_CONSENT.c.uses, _CONSENT.c.last_use).where(_CONSENT.c.digest == bindparam("digest"))
_USE = _CONSENT.update().where(_CONSENT.c.digest == bindparam("one"))
_SALT_OF = select(_SALT.c.salt).where(_SALT.c.subject == bindparam("subject"))
_LEAK_OF = select(_LEAK).where(_LEAK.c.scope == bindparam("scope"))
_LEAK_AGAIN = _LEAK.update().where(_LEAK.c.scope == bindparam("one"))
_CUTS_OF = select(_CUTS.c.cuts).where(_CUTS.c.scope == bindparam("scope"))
_CUTS_AGAIN = _CUTS.update().where(_CUTS.c.scope == bindparam("one"))
EVENT_ACTIONS = {
    Change.PAUSE: Action.GRANT_PAUSED,
    Change.RESUME: Action.GRANT_RESUMED,
    Change.REVOKE: Action.GRANT_REVOKED,
}


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """A grant with what is known of it here."""

    digest: str
    part: str
    bundle: BySubject = field(repr=False)
    uses: int
    last_use: str | None
    added: str

    @property
    def grant(self) -> Grant:
        """What was signed, verified by nobody here."""
        return self.bundle.signed.unverified(Grant)


class Consents:
    """Grants, events and status lists of one home."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._status: tuple[tuple[str, int], StatusList] | None = None  # the last one read

    def put(self, bundle: BySubject, part: str, now: datetime, subject: str | None = None) -> str:
        """Keep a grant; a second time is nothing. Returns its digest.

        subject: the grant's, from whoever has read it already.
        """
        digest = bundle.digest
        with self._store.writing(ConsentRow) as session:
            connection = session.connection()
            if connection.execute(_USES, {"digest": digest}).first() is None:
                row = {
                    "digest": digest,
                    "part": part,
                    "subject": subject or bundle.signed.unverified(Grant).subject,
                    "bundle": bundle.to_json(),
                    "uses": 0,
                    "added": utc_text(now),
                }
                connection.execute(_CONSENT.insert(), row)
        return digest

    def get(self, digest: str) -> StoredGrant:
        """One grant, also by the beginning of its digest; NotFound, or Conflict if several."""
        with self._store.reading() as session:
            whole = _CONSENT.c.digest == digest  # finds its row without looking at others
            begins = _CONSENT.c.digest.startswith(digest, autoescape=True)
            query = select(_CONSENT).where(whole if len(digest) == DIGEST_CHARS else begins)
            rows = session.connection().execute(query.limit(2)).all()
            if len(digest) < 8 or not rows:
                todo = "`lianmo grant list` shows what there is"
                raise NotFound("there is no such grant here", todo=todo)
            if len(rows) > 1:
                raise Conflict("several grants begin like this", todo="give more of the digest")
            return _stored(rows[0])

    def all(self) -> tuple[StoredGrant, ...]:
        """All grants, the newest first."""
        with self._store.reading() as session:
            query = select(ConsentRow).order_by(ConsentRow.added.desc(), ConsentRow.digest)
            return tuple(map(_stored, session.scalars(query)))

    def put_event(self, bundle: BySubject, verify: VerifyEvent, now: datetime) -> bool:
        """Keep an event, with whoever it proves to be from; whether it was new.

        One that proves nothing here now is kept too, and tried again whenever it matters: its
        issuer may come to be accepted later. One that was verified once stays verified.
        """
        return self._put_event(bundle, lambda: _signer(bundle, verify), now)

    def put_own_event(self, bundle: BySubject, subject: str | None, now: datetime) -> bool:
        """Keep an event that this home has signed; subject: of its card, None at the platform.

        Whose word it is needs no proof here: an enterprise need not trust who certified its key.
        """
        return self._put_event(bundle, lambda: subject, now)

    def _put_event(
        self, bundle: BySubject, subject: Callable[[], str | None], now: datetime
    ) -> bool:
        event, digest = bundle.signed.unverified(GrantEvent), bundle.proof_digest
        with self._store.writing(ConsentEventRow) as session:
            if session.get(ConsentEventRow, digest) is not None:
                return False
            row = ConsentEventRow(
                digest=digest,
                consent=event.grant,
                subject=subject(),
                bundle=bundle.to_json(),
                seen=utc_text(now),
            )
            session.add(row)
            return True

    def events(
        self, grant: str, verify: VerifyEvent, unproven: set[str] | None = None
    ) -> list[Said]:
        """What was said on a grant, and by whom.

        unproven: digests of events that prove nothing just now; they are passed over, and what is
        found to be of their kind is added.
        """
        with self._store.reading() as session:
            rows = session.connection().execute(_EVENTS_ON, {"consent": grant}).all()
        found, passed = [], set[str]() if unproven is None else unproven
        for row in rows:
            if row.digest in passed:
                continue
            bundle = BySubject.from_json(row.bundle)
            subject = _signer(bundle, verify) if row.subject == UNPROVEN else row.subject
            if subject == UNPROVEN:
                passed.add(row.digest)
            else:
                found.append(bundle.said(subject))
        return found

    def missing(self, status: StatusList) -> list[str]:
        """Which of a list's events are not here."""
        with self._store.reading() as session:
            here = {digest[:32] for digest in session.scalars(select(ConsentEventRow.digest))}
        return [entry for entry in status.events if entry not in here]

    def put_status(
        self, envelope: Envelope, trust: TrustStore, now: datetime, *, needs_all: bool = True
    ) -> StatusList:
        """Keep a status list that is newer than the one that is here, and whole.

        needs_all: as everywhere where questions are answered, with every event that it names.

        Raises IntegrityError if the platform has not signed it or it leaves a revoked certificate
        out that was listed before, Conflict for an older one or one that lists events which are not
        here.
        """
        found = trust.verify(envelope, StatusList, Usage.GRANT, now)
        if trust.card(found.org).org_kind is not OrgKind.PLATFORM:
            raise IntegrityError("a status list is the platform's", party=found.org)
        if needs_all and (missing := self.missing(found.object)):
            what = f"the status list names {len(missing)} events that are not here"
            raise Conflict(what, party=found.org, todo="get them first: `lianmo grant sync`")
        with self._store.writing(StatusListRow) as session:
            row = session.get(StatusListRow, found.org)
            if row is not None and row.sequence > found.object.sequence:
                raise Conflict("an older status list than the one here", party=found.org)
            if row is not None:
                last = Envelope.from_json(row.envelope).unverified(StatusList)
                if not set(last.certificates) <= set(found.object.certificates):
                    what = "the status list has forgotten a certificate that was revoked"
                    raise IntegrityError(what, party=found.org, todo="keep both for the auditor")
            data = envelope.to_json()
            if row is not None and row.sequence == found.object.sequence and row.envelope != data:
                what = "two status lists of one number"
                raise IntegrityError(what, party=found.org, todo="keep both for the auditor")
            session.merge(
                StatusListRow(org=found.org, sequence=found.object.sequence, envelope=data)
            )
        return found.object

    def status(self) -> StatusList | None:
        """The newest status list; verified before it was kept."""
        if (row := self._store.row(_LISTED)) is None:
            return None
        key = (row.org, row.sequence)
        if self._status is None or self._status[0] != key:
            with self._store.reading() as session:
                found = session.get_one(StatusListRow, row.org)
                self._status = key, Envelope.from_json(found.envelope).unverified(StatusList)
        return self._status[1]

    def use(self, digest: str) -> UseNotice | None:
        """A provider's receipt of a use, as it is kept."""
        with self._store.reading() as session:
            row = session.get(UseRow, digest)
            return None if row is None else UseNotice.model_validate_json(row.notice)

    def put_use(self, digest: str, grant: str, notice: UseNotice, now: datetime) -> bool:
        """Keep a provider's receipt of a use, over the one that there was; whether it was new."""
        with self._store.writing(UseRow) as session:
            data = notice.model_dump_json(by_alias=True).encode()
            if (row := session.get(UseRow, digest)) is not None:
                row.notice = data
                return False
            row = UseRow(digest=digest, consent=grant, notice=data, added=utc_text(now))
            session.add(row)
            return True

    def uses(self, grant: str | None = None) -> list[UseNotice]:
        """Receipts of uses, of one grant or of all, the first kept first."""
        with self._store.reading() as session:
            query = select(UseRow).order_by(UseRow.added, UseRow.digest)
            if grant is not None:
                query = query.where(UseRow.consent == grant)
            return [UseNotice.model_validate_json(row.notice) for row in session.scalars(query)]


def _signer(bundle: BySubject, verify: VerifyEvent) -> str | None:
    try:
        return verify(bundle).subject
    except LianmoError:
        return UNPROVEN


def _stored(row: ConsentRow | Row[Any]) -> StoredGrant:
    return StoredGrant(
        row.digest, row.part, BySubject.from_json(row.bundle), row.uses, row.last_use, row.added
    )


# --- what is debited ------------------------------------------------------------------------------


@dataclass(slots=True)
class Leak:
    """The budget of one scope."""

    millibits: int
    known: Known


class Debits:
    """Uses, budgets and nonces of a provider; writing happens inside of `AuditLog.together`."""

    tables = (ConsentRow, CutsRow, LeakRow, NonceRow, SubjectSaltRow)

    def __init__(self, store: Store) -> None:
        self._store = store
        self._swept: datetime | None = None  # nonces that are over

    def nonce_seen(self, verifier: str, nonce: str) -> bool:
        """Whether this verifier has used it."""
        return self._store.row(_NONCE_SEEN, scope=f"ask {verifier}", nonce=nonce) is not None

    def use_nonce(self, verifier: str, nonce: str, now: datetime) -> bool:
        """Whether it was unused; from now on it is used, longer than a request can live."""
        with self._store.writing(NonceRow) as session:
            connection, key = session.connection(), {"scope": f"ask {verifier}", "nonce": nonce}
            if connection.execute(_NONCE_SEEN, key).first() is not None:
                return False
            connection.execute(_NONCE.insert(), key | {"expires": utc_text(now + NONCE_KEPT)})
            return True

    def forget_nonces(self, now: datetime) -> None:
        """Drop what no request can bring again, now and then."""
        if self._swept is not None and timedelta(0) <= now - self._swept < SWEEP_EVERY:
            return
        with self._store.writing(NonceRow) as session:
            session.connection().execute(_NONCES_OVER, {"now": utc_text(now)})
        self._swept = now

    def uses(self, grant: str) -> tuple[int, str | None]:
        """How often a grant was used here, and when last."""
        row = self._store.row(_USES, digest=grant)
        return (0, None) if row is None else (row.uses, row.last_use)

    def use(self, grant: str, now: datetime) -> int:
        """Count one use; how many there are then. The grant is kept before."""
        with self._store.writing(ConsentRow) as session:
            connection = session.connection()
            row = connection.execute(_USES, {"digest": grant}).first()
            if row is None:
                raise RuntimeError("a grant is kept before it is used")
            uses: int = row.uses + 1
            change = {"one": grant, "uses": uses, "last_use": utc_text(now)}
            connection.execute(_USE, change)
            return uses

    def scope(self, subject: str, *place: str) -> str:
        """The name of a budget; makes the subject's salt when there is none."""
        return self.scopes(subject, place)[0]

    def scopes(self, subject: str, *places: Sequence[str]) -> list[str]:
        """As `scope`, of several places."""
        with self._store.writing(SubjectSaltRow) as session:
            connection = session.connection()
            salt = connection.execute(_SALT_OF, {"subject": subject}).scalar()
            if salt is None:
                salt = secrets.token_bytes(32)
                connection.execute(_SALT.insert(), {"subject": subject, "salt": salt})
        return [_keyed(salt, "scope", *place) for place in places]

    def token(self, subject: str, *words: str) -> str:
        """Stands for a text that was compared, in what is kept of it."""
        if (row := self._store.row(_SALT_OF, subject=subject)) is None:
            raise RuntimeError("the subject's scope is made first")
        return _keyed(row.salt, "text", *words)

    def leak(self, scope: str, basis: str) -> Leak:
        """What was told on a scope; of another basis nothing is implied, but all is counted."""
        if (row := self._store.row(_LEAK_OF, scope=scope)) is None:
            return Leak(0, Known())
        known = Known.from_plain(row.known) if row.snapshot == basis else Known()
        return Leak(row.millibits, known)

    def put_leak(self, scope: str, basis: str, leak: Leak) -> None:
        """Keep what is debited, or known after an answer."""
        row = {
            "millibits": leak.millibits,
            "snapshot": basis,
            "known": leak.known.to_plain(),
        }
        with self._store.writing(LeakRow) as session:
            connection = session.connection()
            if not connection.execute(_LEAK_AGAIN, {"one": scope} | row).rowcount:
                connection.execute(_LEAK.insert(), {"scope": scope} | row)

    def asked_cut(self, scope: str, cut: int) -> list[int] | None:
        """Remember that a cut point was asked for; all so far in order, None if it was before."""
        with self._store.writing(CutsRow) as session:
            connection = session.connection()
            before: list[int] | None = connection.execute(_CUTS_OF, {"scope": scope}).scalar()
            if before is None:
                connection.execute(_CUTS.insert(), {"scope": scope, "cuts": [cut]})
                return [cut]
            if cut in before:
                return None
            cuts = [*before, cut][-CUTS_KEPT:]
            connection.execute(_CUTS_AGAIN, {"one": scope, "cuts": cuts})
            return cuts


def _keyed(salt: bytes, *words: str) -> str:
    return hmac.new(salt, encode(b"lianmo/v1/consent", *words), hashlib.sha256).hexdigest()


# --- what follows from the log --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConsentState:
    """Uses, budgets and grants' last words, as the log's entries alone lead to them."""

    uses: dict[str, int]
    millibits: dict[str, int]
    events: dict[str, set[str]]  # digests of events, by grant

    @classmethod
    def of(cls, entries: Iterable[AuditEntry]) -> ConsentState:
        """Recompute it from the first entry on."""
        uses: dict[str, int] = {}
        millibits: dict[str, int] = {}
        events: dict[str, set[str]] = {}
        actions = set(EVENT_ACTIONS.values())
        for entry in entries:
            if entry.action is Action.ASKED and entry.outcome is Result.ADMITTED and entry.job:
                if not entry.attempt:  # the further scopes of one request are one use
                    uses[entry.job] = uses.get(entry.job, 0) + 1
                if entry.scope is not None:
                    millibits[entry.scope] = millibits.get(entry.scope, 0) + (entry.amount or 0)
            elif entry.action in actions and entry.job:
                events.setdefault(entry.job, set()).add(entry.object)
        return cls(uses, millibits, events)


def differences(store: Store, entries: Sequence[AuditEntry]) -> list[str]:
    """Where the tables say something else than the log."""
    state = ConsentState.of(entries)
    with store.reading() as session:
        uses = {row.digest: row.uses for row in session.scalars(select(ConsentRow)) if row.uses}
        spent = {row.scope: row.millibits for row in session.scalars(select(LeakRow))}
        events: dict[str, set[str]] = {}
        for row in session.scalars(select(ConsentEventRow)):
            events.setdefault(row.consent, set()).add(row.digest)
    problems = []
    for grant in sorted(uses.keys() | state.uses.keys()):
        if (here := uses.get(grant, 0)) != (told := state.uses.get(grant, 0)):
            said = f"{here} in the database, {told} in the log"
            problems.append(f"uses of grant {grant[:12]}: {said}")
    for scope in sorted(spent.keys() | state.millibits.keys()):
        if (here := spent.get(scope, 0)) != (told := state.millibits.get(scope, 0)):
            said = f"{here} in the database, {told} in the log"
            problems.append(f"budget {scope[:12]} in thousandths of a bit: {said}")
    for grant in sorted(events.keys() | state.events.keys()):
        if events.get(grant, set()) != state.events.get(grant, set()):
            problems.append(f"events of grant {grant[:12]} are others than in the log")
    return problems
