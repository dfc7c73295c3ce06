"""What banks, enterprises, issuers and owners do with grants, each in its own home.

bank        draft -> the enterprise signs -> hold -> questions (clients/verifier.py)
enterprise  identity, sign, change (pause, resume, revoke), history
issuer      certify, revoke_certificate
owner       sync: every event that the platform lists, then the list; without it nothing is answered
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from clients.audit import AuditLog
from clients.consent import EVENT_ACTIONS, GIVEN, HELD, Consents, VerifyEvent
from clients.coordinator_client import CoordinatorClient
from clients.home import Home, explain
from clients.store import Store
from clients.verification_settings import VerificationSettings
from clients.witness_book import WitnessBook
from federation import sealing
from federation.audit import Action, Result, require_one_history, verify_receipt
from federation.catalogue import MAX_DAYS, RETENTION_DAYS, Assurance, Dataset, Question
from federation.enquiry import Answered
from federation.envelope import Envelope, parse, sign
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    Refused,
    UsageError,
)
from federation.grants import (
    GRANT_BEGINS,
    LAST_EVENT,
    SERVES,
    BySubject,
    Capacity,
    CertificateRevocation,
    Change,
    Channel,
    Grant,
    GrantEvent,
    GrantItem,
    Language,
    NamedOrg,
    State,
    StatusList,
    SubjectCard,
    SubjectCertificate,
    SubjectKey,
    Terms,
    Use,
    UseNotice,
    heard,
    notice_digest,
    require_grant,
    state_of,
    verify_by_subject,
    verify_card,
)
from federation.identity import KEY_LIFE, USAGES, PrivateKey
from federation.keyring import write
from federation.objects import OrgKind, Purpose, Usage, utc_text, utc_time

FETCH = 200  # events at once
CERTIFICATE_DAYS = 365


# --- the bank -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """One field that a bank wants to ask about."""

    provider: str
    dataset: str
    field: str
    ops: tuple[Question, ...] = ()
    periods: tuple[str, ...] = ("current",)
    thresholds: tuple[str, ...] = ()


def draft(
    home: Home,
    catalogue: Mapping[tuple[str, str], Dataset],
    *,
    subject: str,
    wanted: Sequence[Wanted],
    purpose: Purpose,
    channel: Channel,
    now: datetime,
    days: int = 30,
    max_uses: int = 1,
    min_interval_s: int = 0,
    retain_days: int = 30,
    lang: Language = Language.ZH,
    model: str | None = None,
) -> Terms:
    """Terms for an enterprise to read and sign; raises Refused for what no entry offers.

    catalogue: verified entries by (owner, dataset).
    """
    if purpose not in SERVES[channel]:
        served = ", ".join(sorted(SERVES[channel]))
        todo = f"it serves {served}: draft another grant for each"
        raise Refused(f"the channel {channel} does not serve the purpose {purpose}", todo=todo)
    items = tuple(_item(one, catalogue, purpose, channel) for one in wanted)
    for one in wanted:
        _require_within(one, catalogue, days, retain_days)
    trust = home.trust()
    orgs = dict.fromkeys([home.org, *(item.provider for item in items)])
    plain: dict[str, Any] = {
        "subject": subject,
        "grantee": home.org,
        "purpose": purpose,
        "channel": channel,
        "items": items,
        "model": model,
        "names": tuple(NamedOrg(org=org, name=trust.card(org).name) for org in orgs),
        "retain_answer_days": retain_days,
        "max_uses": max_uses,
        "min_interval_s": min_interval_s,
        "not_before": utc_text(now),
        "expires": utc_text(now + timedelta(days=days)),
        "notice_lang": lang,
        "notice_digest": "0" * 64,
        "nonce": secrets.token_hex(16),
    }
    try:
        terms = Terms.model_validate(plain)
        return Terms.model_validate(plain | {"notice_digest": notice_digest(terms, lang)})
    except ValidationError as error:
        raise UsageError(f"the draft: {explain(error)}") from None


def _item(
    one: Wanted,
    catalogue: Mapping[tuple[str, str], Dataset],
    purpose: Purpose,
    channel: Channel,
) -> GrantItem:
    entry = catalogue.get((one.provider, one.dataset))
    if entry is None:
        what = f"publishes no dataset {one.dataset}"
        raise NotFound(what, party=one.provider, todo="`lianmo catalogue list` shows what there is")
    said = next((field for field in entry.fields if field.name == one.field), None)
    if said is None or (channel is not Channel.SCORE and said.enquiry is None):
        what = f"field {one.field} of {one.dataset} is not open to questions"
        raise Refused(what, party=one.provider)
    if purpose not in said.purposes:
        what = f"field {one.field} does not serve the purpose {purpose}"
        raise Refused(what, party=one.provider)
    if said.enquiry is not None:
        lacking: list[str] = [op for op in one.ops if op not in said.enquiry.ops]
        lacking += [period for period in one.periods if period not in said.enquiry.periods]
        lacking += [cut for cut in one.thresholds if cut not in said.enquiry.grid]
        if lacking:
            what = f"field {one.field} does not offer {', '.join(lacking)}"
            offer = f"{', '.join(said.enquiry.ops)}; {', '.join(said.enquiry.periods)}"
            todo = f"it offers {offer}; {', '.join(said.enquiry.grid)}"
            raise Refused(what, party=one.provider, todo=todo)
    return GrantItem(
        provider=one.provider,
        dataset=one.dataset,
        field=one.field,
        title=entry.title_of(said),
        ops=one.ops,
        periods=one.periods,
        thresholds=one.thresholds,
    )


def _require_within(
    one: Wanted, catalogue: Mapping[tuple[str, str], Dataset], days: int, retain_days: int
) -> None:
    """The owner opens nothing to a grant that lasts, or keeps its answers, longer than this."""
    fields = catalogue[one.provider, one.dataset].fields
    said = next(field.enquiry for field in fields if field.name == one.field)
    longest, kept = (said.max_days, said.retention_days) if said else (MAX_DAYS, RETENTION_DAYS)
    if days > longest or retain_days > kept:
        what = f"field {one.field} allows grants of {longest} days at most"
        what += f", whose answers are kept {kept} days at most"
        todo = "ask for less with --days and --retain"
        raise Refused(what, party=one.provider, todo=todo)


def hold(home: Home, store: Store, bundle: BySubject, now: datetime) -> str:
    """Keep a grant that an enterprise has signed for this bank; its digest.

    Raises IntegrityError if it does not verify, Refused if it is for somebody else.
    """
    grant = bundle.signed.unverified(Grant)
    if grant.grantee != home.org:
        raise Refused("the grant is for another organisation", party=grant.grantee)
    trust = home.trust()
    # whom each provider accepts as issuer is its own choice; here any trusted one may do
    issuers = dict.fromkeys(trust, Assurance.A3)
    require_grant(verify_by_subject(bundle, Grant, trust, issuers, now))
    return Consents(store).put(bundle, HELD, now)


# --- the enterprise -------------------------------------------------------------------------------


def identity(home: Home, now: datetime) -> Envelope:
    """The enterprise's card for issuers, made once from this home's keys and signed by them."""
    file = home.path / "subject.json"
    if file.is_file():
        return Envelope.from_json(file.read_bytes())
    own = home.own()
    if own.org_kind is not OrgKind.ENTERPRISE:
        todo = "make one with `lianmo init --kind enterprise`"
        raise UsageError("this home is not an enterprise's", party=home.org, todo=todo)
    keys = {usage: home.key(usage) for usage in (Usage.GRANT, Usage.ENCRYPT)}
    envelope = make_card(keys[Usage.GRANT], keys[Usage.ENCRYPT], own.uscc, own.name, now)
    write(file, envelope.to_json())
    return envelope


def make_card(
    grant: PrivateKey, encrypt: PrivateKey | None, subject: str, name: str, now: datetime
) -> Envelope:
    """A subject's card over its keys, which proves that it has the private half of the first."""
    keys = {Usage.GRANT: grant} | ({Usage.ENCRYPT: encrypt} if encrypt else {})
    card = SubjectCard(
        subject=subject,
        name=name,
        created=utc_text(now),
        keys=tuple(
            SubjectKey(
                key_id=key.key_id,
                usage=usage,
                alg=key.alg,
                spki=base64.b64encode(key.spki).decode(),
                not_before=utc_text(now),
                not_after=utc_text(now + KEY_LIFE),
            )
            for usage, key in keys.items()
        ),
    )
    return sign(card, grant)


def keep_certificate(home: Home, certificate: Envelope) -> SubjectCertificate:
    """Keep an issuer's certificate beside the card it is on."""
    card = Envelope.from_json((home.path / "subject.json").read_bytes())
    found = certificate.unverified(SubjectCertificate)
    if found.card != verify_card(card).digest():
        raise IntegrityError("the certificate is of another card", party=found.org)
    write(home.path / "subject-certificate.json", certificate.to_json())
    return found


def own_proof(home: Home) -> tuple[Envelope, Envelope]:
    """The enterprise's card and its certificate; NotFound with the next step if one is missing."""
    files = home.path / "subject.json", home.path / "subject-certificate.json"
    todo = "`lianmo grant identity`, have it certified, then `lianmo grant certificate FILE`"
    if not all(file.is_file() for file in files):
        raise NotFound("this enterprise's key is not certified yet", todo=todo)
    card, certificate = (Envelope.from_json(file.read_bytes()) for file in files)
    return card, certificate


def read_terms(data: bytes) -> Terms:
    """A draft from a file; raises IntegrityError or UsageError for anything else."""
    try:
        terms = Terms.model_validate(parse(data.rstrip(b"\n")))
    except ValidationError as error:
        raise UsageError(f"not a draft of a grant: {explain(error)}") from None
    if notice_digest(terms, terms.notice_lang) != terms.notice_digest:
        raise IntegrityError("the draft's notice is not that of its terms")
    return terms


def _require_soon(terms: Terms, now: datetime) -> None:
    if utc_time(terms.not_before) - now > GRANT_BEGINS:
        what = f"the draft begins more than {GRANT_BEGINS.days} days from now"
        raise Refused(what, todo="ask the bank for one that begins sooner")


def sign_terms(
    terms: Terms,
    key: PrivateKey,
    proof: tuple[Envelope, Envelope],
    capacity: Capacity,
    now: datetime,
) -> BySubject:
    """The grant, signed with the enterprise's key."""
    card, certificate = proof
    assurance = certificate.unverified(SubjectCertificate).assurance
    if terms.subject != card.unverified(SubjectCard).subject:
        raise Refused("the draft is for another enterprise")
    _require_soon(terms, now)
    grant = Grant(
        **terms.model_dump(mode="json"),
        created=utc_text(now),
        signer=key.key_id,
        capacity=capacity,
        assurance=assurance,
    )
    return BySubject(signed=sign(grant, key), card=card, certificate=certificate)


def give(home: Home, store: Store, bundle: BySubject, now: datetime) -> str:
    """Keep a grant of one's own, to pause, resume or revoke it later."""
    return Consents(store).put(bundle, GIVEN, now)


def attest(home: Home, terms: Terms, now: datetime) -> BySubject:
    """The platform: attest a real-name click in an enterprise's place (A1)."""
    key = home.key(Usage.GRANT)
    if home.own().org_kind is not OrgKind.PLATFORM:
        raise Refused("only the platform attests in a subject's place", party=home.org)
    _require_soon(terms, now)
    grant = Grant(
        **terms.model_dump(mode="json"),
        created=utc_text(now),
        signer=key.key_id,
        capacity=Capacity.AUTHORISED_OFFICER,
        assurance=Assurance.A1,
    )
    return BySubject(signed=sign(grant, key))


def change(
    home: Home,
    store: Store,
    digest: str,
    wanted: Change,
    now: datetime,
    *,
    effective: datetime | None = None,
) -> BySubject:
    """The enterprise's (or for A1 the platform's) signed word on its grant; kept here too.

    Raises Conflict for a pause or resumption of a grant that was revoked. A second revocation is
    none: the first one may not have reached anybody.
    """
    consents = Consents(store)
    stored = consents.get(digest)
    own = heard(stored.grant, consents.events(stored.digest, verifier(home, now)), ())
    if wanted is not Change.REVOKE and any(event.change is Change.REVOKE for event in own):
        todo = "the bank drafts another grant, should you want one"
        raise Conflict("the grant was revoked, and that is final", todo=todo)
    last = max((event.number for event in own), default=0)
    event = GrantEvent(
        grant=stored.digest,
        change=wanted,
        # a thief of the key must not keep its owner from revoking
        number=min(last + 1, LAST_EVENT),
        created=utc_text(now),
        effective=utc_text(effective or now),
    )
    bundle = sign_event(home, event)
    of_platform = home.own().org_kind is OrgKind.PLATFORM
    consents.put_own_event(bundle, None if of_platform else home.own().uscc, now)
    return bundle


def sign_event(home: Home, event: GrantEvent) -> BySubject:
    """An event, signed as a subject or, in a platform's home, as the platform."""
    signed = sign(event, home.key(Usage.GRANT))
    if home.own().org_kind is OrgKind.PLATFORM:
        return BySubject(signed=signed)
    card, certificate = own_proof(home)
    return BySubject(signed=signed, card=card, certificate=certificate)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a look into the mailbox brought."""

    fresh: int  # uses that were not known
    strangers: tuple[str, ...]  # who has told something, and whose card is not trusted here


def history(home: Home, store: Store, client: CoordinatorClient | None, now: datetime) -> Fetched:
    """Fetch the receipts of uses that providers have sealed to this enterprise.

    One that does not verify is left out: anybody may put something into a mailbox. It stays there,
    so what a stranger has told is read once its card is trusted.
    """
    consents, fresh, after = Consents(store), 0, 0
    key, trust, strangers = home.key(Usage.ENCRYPT), home.trust(), set[str]()
    while client is not None:
        page = client.notices(key.key_id, after).items
        for item in page:
            after = item.number
            if item.sender not in trust:
                strangers.add(item.sender)
                continue
            try:
                content = sealing.unseal(sealing.USE, item.sealed, sender=item.sender, key=key)
                notice = read_notice(home, content, now)
            except LianmoError:
                continue
            use = notice.use.unverified(Use)
            digest = use.digest()
            if _goes_on(home, store, consents.use(digest), notice, now):
                fresh += consents.put_use(digest, use.grant, notice, now)
        if not page:
            break
    return Fetched(fresh, tuple(sorted(strangers)))


def read_notice(home: Home, content: bytes, now: datetime) -> UseNotice:
    """A provider's receipt of a use, if provider, log and answer fit together."""
    notice = UseNotice.from_bytes(content)
    use = home.trust().verify(notice.use, Use, Usage.ANSWER, now).object
    receipt = notice.receipt
    try:
        proven = verify_receipt(receipt, home.trust())
    except Refused:  # an enterprise need not know the witnesses' cards: then it is as one without
        receipt = receipt.model_copy(update={"status": "uncosigned"})
        proven = verify_receipt(receipt, home.trust())
    entry, is_refused = proven.entry, use.result == Answered.REFUSED.value
    fits = entry.action is Action.ANSWERED and (entry.outcome is Result.REFUSED) == is_refused
    if not fits or (proven.org, entry.object, entry.job) != (use.org, use.answer, use.grant):
        raise IntegrityError("the receipt is of another answer", party=use.org)
    return notice.model_copy(update={"receipt": receipt})


def _goes_on(
    home: Home, store: Store, known: UseNotice | None, notice: UseNotice, now: datetime
) -> bool:
    """Whether a verified notice is to be kept: of a new use, or cosigned where ours is not.

    One of another history than the one that is here is kept as evidence, and not in its place.
    """
    if known is None:
        return True
    ours, theirs = known.receipt, notice.receipt
    if (ours.status, theirs.status) != ("uncosigned", "cosigned"):
        return False
    trust = home.trust()
    try:
        require_one_history([verify_receipt(ours, trust), verify_receipt(theirs, trust)])
    except IntegrityError:
        note, signed = ours.tlog_proof().signed.to_text(), theirs.tlog_proof().signed
        WitnessBook(store).accuse(note, signed, trust.card(theirs.org), now)
        return False
    return True


# --- the issuer -----------------------------------------------------------------------------------


def certify(home: Home, card: Envelope, assurance: Assurance, now: datetime) -> Envelope:
    """An issuer's certificate on an enterprise's card, whose fingerprint a person has compared."""
    found = verify_card(card)
    word = SubjectCertificate(
        org=home.org,
        card=found.digest(),
        subject=found.subject,
        assurance=assurance,
        created=utc_text(now),
        not_before=utc_text(now),
        not_after=utc_text(now + timedelta(days=CERTIFICATE_DAYS)),
    )
    return sign(word, home.key(Usage.CERTIFY))


def revoke_certificate(home: Home, certificate: Envelope, now: datetime) -> Envelope:
    """An issuer's word that it no longer stands by a certificate of its own."""
    found = home.trust().verify(certificate, SubjectCertificate, Usage.CERTIFY, now, org=home.org)
    word = CertificateRevocation(org=home.org, certificate=found.digest, created=utc_text(now))
    return sign(word, home.key(Usage.CERTIFY))


# --- everybody ------------------------------------------------------------------------------------


def verifier(home: Home, now: datetime) -> VerifyEvent:
    """Whose word an event is, by this home's own settings."""
    trust = home.trust()
    issuers = VerificationSettings.of(home).policy(home.org, trust).issuers
    if home.own().org_kind in (OrgKind.ENTERPRISE, OrgKind.PLATFORM, OrgKind.BANK):
        issuers = dict.fromkeys(trust, Assurance.A3)  # they decide nothing by it
    return lambda bundle: verify_by_subject(bundle, GrantEvent, trust, issuers, now)


def take_event(home: Home, store: Store, bundle: BySubject, now: datetime) -> bool:
    """Keep an event, and enter it into the audit log of a home that has one; whether it is new."""
    event = bundle.signed.unverified(GrantEvent)
    consents, verify = Consents(store), verifier(home, now)
    if home.own().org_kind is OrgKind.ENTERPRISE:
        return consents.put_event(bundle, verify, now)
    audit = AuditLog(home, store)
    with audit.together(now):
        if not consents.put_event(bundle, verify, now):
            return False
        audit.append(EVENT_ACTIONS[event.change], bundle.proof_digest, now, job=event.grant)
    return True


def hand_in(
    home: Home, store: Store, client: CoordinatorClient, bundle: BySubject, now: datetime
) -> str:
    """Hand a subject's event in; its digest. An owner keeps it first, whatever becomes of the rest:
    a coordinator that leaves it out of its lists holds it back from nobody who was given it."""
    if Usage.ANSWER in USAGES[home.own().org_kind]:
        take_event(home, store, bundle, now)
    return client.hand_in_event(bundle).digest


def sync(home: Home, store: Store, client: CoordinatorClient, now: datetime) -> int:
    """Fetch the newest status list and its events; how many events were new.

    Where questions are answered the list counts only once every event that it names is here: raises
    Conflict or Unavailable until then, and what was there before stays in force until it is too
    old. Elsewhere nothing depends on it, and only events on grants that are here come.
    """
    consents, fresh = Consents(store), 0
    envelope = client.status_list()
    listed = home.trust().verify(envelope, StatusList, Usage.GRANT, now).object
    if Usage.ANSWER not in USAGES[home.own().org_kind]:
        here = [stored.digest for stored in consents.all()]
        for start in range(0, len(here), FETCH):
            for bundle in client.events_of_grants(here[start : start + FETCH]):
                fresh += take_event(home, store, bundle, now)
        consents.put_status(envelope, home.trust(), now, needs_all=False)
        return fresh
    missing = consents.missing(listed)
    for start in range(0, len(missing), FETCH):
        for bundle in client.grant_events(missing[start : start + FETCH]):
            fresh += take_event(home, store, bundle, now)
    consents.put_status(envelope, home.trust(), now)
    return fresh


def state(home: Home, store: Store, digest: str, now: datetime) -> State:
    """What a grant is worth, as far as this home knows."""
    consents = Consents(store)
    stored = consents.get(digest)
    grant = stored.grant
    listed = consents.status()
    said = consents.events(stored.digest, verifier(home, now))
    events = heard(grant, said, listed.certificates if listed else ())
    return state_of(grant, events, now, uses=stored.uses)
