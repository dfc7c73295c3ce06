"""What the coordinator keeps on grants: signed events, the lists that say which there are, and
sealed receipts until their subjects fetch them. Grants themselves never come here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from federation.catalogue import Assurance
from federation.consent_api import NoticeBody, NoticeEntry
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, NotFound, Refused, Unavailable
from federation.grants import (
    EVENT_KEPT,
    MAX_LISTED,
    BySubject,
    CertificateRevocation,
    Change,
    GrantEvent,
    StatusList,
    SubjectCertificate,
    verify_by_subject,
)
from federation.identity import USAGES, PrivateKey
from federation.objects import Usage, utc_text
from federation.trust import TrustStore
from server.store import (
    CertificateRevocationRow,
    GrantEventRow,
    NoticeRow,
    StatusListRow,
    Store,
)

LIST_EVERY = timedelta(seconds=10)  # between two lists that say the same
LIST_LIFE = timedelta(minutes=30)  # a provider may ask for a younger one
EVENTS_A_DAY = 2000  # of one caller
# Where the list is full no provider answers anybody: nobody's part of it grows to that.
# Of events as many again for revocations, which a firm must always have. Not by the enterprise that
# an event names: an issuer could use up the share of any.
EVENTS_OF_CERTIFICATE = 100
EVENTS_OF_ISSUER = MAX_LISTED // 4
REVOKED_OF_ISSUER = MAX_LISTED // 4
NOTICES_KEPT = timedelta(days=180)
NOTICES_PAGE = 100


class Consents:
    """Called from request threads; one list is made at a time."""

    def __init__(
        self,
        store: Store,
        *,
        platform: str,
        key: Callable[[], PrivateKey],
        trust: Callable[[], TrustStore],
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._platform, self._key = store, platform, key
        self._trust, self._now = trust, now
        self._lock = threading.Lock()

    def take_event(self, org: str, bundle: BySubject) -> str:
        """Keep an event; whether it is the grant's own subject's, the providers know.

        Raises IntegrityError or Refused for one that nobody here has certified.
        """
        now, trust = self._now(), self._trust()
        # any trusted issuer: this only keeps out what nobody would take
        issuers = dict.fromkeys(trust, Assurance.A3)
        found, digest = (
            verify_by_subject(bundle, GrantEvent, trust, issuers, now),
            bundle.proof_digest,
        )
        with self._store.write() as session:
            if session.get(GrantEventRow, digest) is None:
                since = now - timedelta(days=1)
                query = sa.select(sa.func.count()).select_from(GrantEventRow)
                mine = session.scalar(
                    query.where(GrantEventRow.sender == org, GrantEventRow.created > since)
                )
                if (mine or 0) >= EVENTS_A_DAY:
                    raise Refused("too many events of one caller in a day", party=org)
                issuer = None
                if found.certificate is not None and bundle.certificate is not None:
                    issuer = bundle.certificate.unverified(SubjectCertificate).org
                    parts = 1 + (found.object.change is Change.REVOKE)
                    of_key = query.where(GrantEventRow.certificate == found.certificate)
                    if (session.scalar(of_key) or 0) >= EVENTS_OF_CERTIFICATE * parts:
                        raise Refused("too many events of one enterprise", party=org)
                    of_issuer = query.where(GrantEventRow.issuer == issuer)
                    if (session.scalar(of_issuer) or 0) >= EVENTS_OF_ISSUER * parts:
                        raise Refused("too many events under certificates of one issuer", party=org)
                row = GrantEventRow(
                    digest=digest,
                    sender=org,
                    certificate=found.certificate,
                    issuer=issuer,
                    consent=found.object.grant,
                    bundle=bundle.to_json(),
                    created=now,
                )
                session.add(row)
        return digest

    def take_revocation(self, org: str, envelope: Envelope, certificate: Envelope) -> str:
        """Keep an issuer's revocation of a certificate of its own; of another's: IntegrityError."""
        now, trust = self._now(), self._trust()
        found = trust.verify(envelope, CertificateRevocation, Usage.CERTIFY, now, org=org)
        word = trust.verify(certificate, SubjectCertificate, Usage.CERTIFY, now, org=org)
        if found.object.certificate != word.digest:
            raise IntegrityError("the revocation is of another certificate", party=org)
        row = CertificateRevocationRow(
            certificate=word.digest, org=org, envelope=envelope.to_json(), created=now
        )
        with self._store.write() as session:
            query = sa.select(sa.func.count()).select_from(CertificateRevocationRow)
            mine = session.scalar(query.where(CertificateRevocationRow.org == org))
            if (mine or 0) >= REVOKED_OF_ISSUER:
                raise Refused("too many revoked certificates of one issuer", party=org)
            session.merge(row)
        return found.digest

    def events(self, org: str, entries: Sequence[str]) -> tuple[BySubject, ...]:
        """Events by the entries of a list; those that are not here are left out.

        Refused for organisations that answer nobody: which firm has revoked something is a fact
        about it, and a list's entries are known to all.
        """
        if not self._answers(org):
            todo = "ask for events of the grants that are here: `lianmo grant sync` does"
            raise Refused("only owners of data get all events", party=org, todo=todo)
        with self._store.read() as session:
            query = sa.select(GrantEventRow.bundle)
            prefix = sa.func.substr(GrantEventRow.digest, 1, 32)
            rows = session.scalars(query.where(prefix.in_(entries))).all()
        return tuple(BySubject.from_json(row) for row in rows)

    def events_of(self, grants: Sequence[str]) -> tuple[BySubject, ...]:
        """Events on these grants, for whoever can name them."""
        with self._store.read() as session:
            query = sa.select(GrantEventRow.bundle).where(GrantEventRow.consent.in_(grants))
            rows = session.scalars(query.order_by(GrantEventRow.created)).all()
        return tuple(BySubject.from_json(row) for row in rows)

    def require_asks(self, org: str) -> None:
        """Refused for who has nothing to ask and no alert to tell: each frame is an entry in the
        log of the node that it goes to, also where all that it gets is a refusal."""
        usages = USAGES[self._trust().card(org).org_kind]
        if not {Usage.REQUEST, Usage.ANSWER} & set(usages):
            raise Refused("has nothing to ask of other nodes", party=org)

    def _answers(self, org: str) -> bool:
        return Usage.ANSWER in USAGES[self._trust().card(org).org_kind]

    def status(self) -> Envelope:
        """The newest list; a new one where something happened, or the last one is not new."""
        with self._lock:
            now = self._now()
            with self._store.write() as session:
                session.execute(
                    sa.delete(GrantEventRow).where(GrantEventRow.created < now - EVENT_KEPT)
                )
                events = session.scalars(sa.select(GrantEventRow.digest)).all()
                revoked = session.scalars(sa.select(CertificateRevocationRow.certificate)).all()
                if len(events) > MAX_LISTED or len(revoked) > MAX_LISTED:
                    raise Unavailable("the status list is full", party=self._platform)
                wanted = sorted({e[:32] for e in events}), sorted({c[:32] for c in revoked})
                row = session.get(StatusListRow, self._platform)
                if row is not None and row.created > now - LIST_EVERY:
                    last = Envelope.from_json(row.envelope)
                    said = last.unverified(StatusList)
                    if (list(said.events), list(said.certificates)) == wanted:
                        return last
                made = StatusList(
                    org=self._platform,
                    sequence=row.sequence + 1 if row is not None else 1,
                    created=utc_text(now),
                    next_update=utc_text(now + LIST_LIFE),
                    events=tuple(wanted[0]),
                    certificates=tuple(wanted[1]),
                )
                envelope = sign(made, self._key())
                session.merge(
                    StatusListRow(
                        org=self._platform,
                        sequence=made.sequence,
                        envelope=envelope.to_json(),
                        created=now,
                    )
                )
                return envelope

    def keep_notices(self, org: str, notices: Sequence[NoticeBody]) -> None:
        """Keep sealed receipts for their subjects; Refused for who answers nobody."""
        if not self._answers(org):
            raise Refused("only owners of data leave receipts of uses", party=org)
        now = self._now()
        with self._store.write() as session:
            session.execute(sa.delete(NoticeRow).where(NoticeRow.created < now - NOTICES_KEPT))
            session.add_all(
                NoticeRow(mailbox=item.mailbox, sender=org, sealed=item.sealed, created=now)
                for item in notices
            )

    def notices(self, org: str, mailbox: str, after: int) -> tuple[NoticeEntry, ...]:
        """A page of a mailbox; NotFound for one that is not of a key in the caller's card."""
        if mailbox not in {key.key_id for key in self._trust().card(org).keys}:
            raise NotFound("no such mailbox of the caller's")
        with self._store.read() as session:
            query = sa.select(NoticeRow).where(NoticeRow.mailbox == mailbox)
            query = query.where(NoticeRow.number > after).order_by(NoticeRow.number)
            return tuple(
                NoticeEntry(number=row.number, sender=row.sender, sealed=row.sealed)
                for row in session.scalars(query.limit(NOTICES_PAGE))
            )
