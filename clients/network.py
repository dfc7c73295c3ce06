"""This home in its network: documents taken, kept and given on; a founder's word said again.

    take     what is new in a bundle and holds: logged, then kept
    sync     with the coordinator: documents and newer cards fetched, what it lacks handed in
    propose, sign   a founder's part in a decision

The coordinator carries; every document is verified here. Newer cards of organisations that this
home trusts are taken under the same admin key; one under a new admin key only if the old one signed
it too and the founders decided on it (docs/adr/0007-admin-keys-change.md).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from clients.audit import AuditLog
from clients.coordinator_client import CoordinatorClient
from clients.home import Home
from federation.audit import Action
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, LianmoError, NotFound, Refused, UsageError
from federation.network import (
    Act,
    Assessment,
    Bundle,
    Charter,
    Founder,
    MemberDecision,
    check_charter,
    confirmed_admin,
    make_bulletin,
    make_decision,
    merged,
)
from federation.network_folder import Taken
from federation.objects import Card, Usage, utc_text
from federation.trust import verify_card

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Synced:
    """What a round with the coordinator brought."""

    taken: Taken = field(default_factory=Taken)
    cards: list[Card] = field(default_factory=list)
    refused: list[LianmoError] = field(default_factory=list)


# --- founding -------------------------------------------------------------------------------------


def found(
    home: Home, name: str, founders: Sequence[str], quorum: int, stale_s: int, now: datetime
) -> Envelope:
    """A charter with this organisation and others as founders, signed by this one."""
    trust = home.trust()
    orgs = tuple(dict.fromkeys((home.org, *founders)))
    charter = Charter(
        network=name,
        founders=tuple(Founder(org=o, admin_spki=trust.card(o).admin.spki) for o in orgs),
        quorum=quorum,
        profile=home.own().profile,
        stale_s=stale_s,
        created=utc_text(now),
    )
    return sign(charter, home.key(Usage.ADMIN))


def sign_charter(home: Home, envelope: Envelope) -> Envelope:
    """The charter with this founder's signature too; raises Refused if it is not a founder."""
    charter = envelope.unverified(Charter)
    _require_known_founders(home, charter)
    key = home.key(Usage.ADMIN)
    if key.key_id not in {f.key_id for f in charter.founders if f.org == home.org}:
        raise Refused("the charter does not name this organisation's admin key", party=home.org)
    return merged(envelope, sign(charter, key))


def join(home: Home, audit: AuditLog, envelope: Envelope, now: datetime) -> Charter:
    """Pin a charter whose fingerprint somebody compared."""
    charter = check_charter(envelope)
    _require_known_founders(home, charter)
    if home.network.path.is_dir() and home.network.charter().payload == envelope.payload:
        return charter
    with audit.together(now):
        audit.append(Action.NETWORK_JOINED, charter.digest(), now)
        home.network.join(envelope)
    return charter


def _require_known_founders(home: Home, charter: Charter) -> None:
    """No founder stands in the charter with another key than in its trusted card."""
    trust = home.trust()
    for founder in charter.founders:
        if founder.org not in trust:
            continue
        admins = {key.spki for key in trust.card(founder.org).keys if key.usage is Usage.ADMIN}
        if founder.admin_spki not in admins:
            what = "the charter names another admin key for it than its trusted card"
            todo = "ask it over another channel which fingerprint is right"
            raise IntegrityError(what, party=founder.org, todo=todo)


# --- decisions ------------------------------------------------------------------------------------


def propose(
    home: Home,
    audit: AuditLog,
    act: Act,
    orgs: Sequence[str],
    now: datetime,
    *,
    reason: str = "",
    assessment: Assessment | None = None,
    effective: datetime | None = None,
) -> list[MemberDecision]:
    """Decisions on these organisations, signed by this founder."""
    _require_founder(home, now)
    trust, standing = home.trust(), home.standing()
    made = [
        make_decision(
            standing,
            act,
            trust.card(org),
            now,
            reason=reason,
            assessment=assessment,
            effective=effective,
        )
        for org in dict.fromkeys(orgs)
    ]
    key = home.key(Usage.ADMIN)
    for decision in made:
        standing.check_decision(sign(decision, key))
    for decision in made:
        home.network.remember_signed(decision)
    _take_signed(home, audit, [sign(decision, key) for decision in made], now)
    return made


def sign_decisions(
    home: Home,
    audit: AuditLog,
    envelopes: Sequence[Envelope],
    now: datetime,
    *,
    instead: bool = False,
) -> list[MemberDecision]:
    """This founder's signature under proposed decisions, each looked at before any is signed."""
    _require_founder(home, now)
    standing, key = home.standing(), home.key(Usage.ADMIN)
    made, signed = [], []
    for envelope in envelopes:
        decision, signers = standing.check_decision(envelope)
        _require_own_card(home, decision)
        made.append(decision)
        mine = sign(decision, key)
        signed.append(envelope if home.org in signers else merged(envelope, mine))
    for decision in made:
        home.network.remember_signed(decision, instead=instead)
    _take_signed(home, audit, signed, now)
    return made


def pending(home: Home, names: Sequence[str] = ()) -> list[Envelope]:
    """The proposals here, or those whose digest begins with one of the names."""
    found = {hashlib.sha256(item.payload).hexdigest(): item for item in home.network.proposals()}
    if not names:
        return list(found.values())
    chosen = []
    for name in names:
        hits = [digest for digest in found if digest.startswith(name.lower())]
        if len(hits) != 1:
            what = f"{len(hits)} proposals begin with {name[:16]}"
            raise NotFound(what, todo="`lianmo network list` shows them; `network sync` gets more")
        chosen.append(found[hits[0]])
    return chosen


def _require_founder(home: Home, now: datetime) -> None:
    standing = home.standing()
    if standing.charter is None:
        todo = "get the charter from a founder, then `lianmo network join FILE`"
        raise NotFound("this home has joined no network", party=home.org, todo=todo)
    if home.org not in standing.founders(now):
        todo = f"ask one of {', '.join(standing.founders(now))}"
        raise Refused("is not a founder who may decide", party=home.org, todo=todo)


def _require_own_card(home: Home, decision: MemberDecision) -> None:
    """A founder signs on a card that it has compared itself, not on what a proposal claims."""
    card = home.trust().card(decision.org)
    if (card.admin.spki, card.uscc) != (decision.admin_spki, decision.uscc):
        todo = "ask it over another channel which fingerprint is right"
        what = "the proposal names another card than the one trusted here"
        raise IntegrityError(what, party=decision.org, todo=todo)


def _take_signed(home: Home, audit: AuditLog, envelopes: Sequence[Envelope], now: datetime) -> None:
    taken = take(home, audit, Bundle(decisions=tuple(envelopes)), now)
    if taken.refused:
        raise taken.refused[0]


# --- documents ------------------------------------------------------------------------------------


def take(home: Home, audit: AuditLog, bundle: Bundle, now: datetime) -> Taken:
    """Keep what of these documents is new and holds; decisions stand in the audit log first."""
    taken = home.network.sift(bundle, home.trust(), now)
    if taken.decisions:
        with audit.together(now):
            for decision in taken.decisions:
                audit.append(Action.MEMBER_DECIDED, decision.digest(), now)
            home.network.keep(taken)
    elif taken:
        home.network.keep(taken)
    return taken


def word(home: Home, now: datetime) -> Envelope | None:
    """A founder's signed word that it knows of nothing newer; None at everybody else's."""
    standing = home.standing()
    if home.org not in standing.founders(now):
        return None
    return sign(make_bulletin(standing, home.org, now), home.key(Usage.WITNESS))


def outgoing(home: Home, audit: AuditLog, now: datetime) -> Bundle:
    """All documents here, with a founder's fresh word."""
    if (said := word(home, now)) is not None:
        take(home, audit, Bundle(bulletins=(said,)), now)
    return home.network.bundle()


def sync(home: Home, audit: AuditLog, client: CoordinatorClient, now: datetime) -> Synced:
    """Fetch what is new from the coordinator, and hand in what it lacks."""
    done = Synced()
    joined = home.standing().charter is not None
    if joined:
        offered = client.network()
        done.taken = take(home, audit, offered, now)
        done.refused += done.taken.refused
        done.cards = _follow_cards(home, audit, client, now, done.refused)
        mine = outgoing(home, audit, now)
        have = {(item.payload, len(item.signatures)) for item in offered.decisions}
        lacking = tuple(d for d in mine.decisions if (d.payload, len(d.signatures)) not in have)
        told = {item.payload for item in offered.bulletins}
        own = (word for word in mine.bulletins if word.payload not in told)
        if (bundle := Bundle(decisions=lacking, bulletins=tuple(own))) != Bundle():
            client.hand_in(bundle)
    else:
        done.cards = _follow_cards(home, audit, client, now, done.refused)
    return done


def _follow_cards(
    home: Home,
    audit: AuditLog,
    client: CoordinatorClient,
    now: datetime,
    refused: list[LianmoError],
) -> list[Card]:
    """Newer cards of organisations that this home trusts."""
    found = []
    try:
        entries = client.organisations()
    except Refused:  # not active: then there is nobody to deal with either
        return []
    for entry in entries:
        trust = home.trust()
        if entry.org == home.org or entry.org not in trust:
            continue
        try:
            card, _ = verify_card(entry.card)
            if card.org == entry.org and card.serial > trust.card(entry.org).serial:
                admin = confirmed_admin(home.standing(), entry.org, now)
                found.append(
                    audit.trust_card(entry.card, now, how="through the coordinator", decided=admin)
                )
        except LianmoError as error:
            refused.append(error)
    return found


def sync_once(
    home: Home, audit: AuditLog, client: CoordinatorClient, now: datetime, told: str = ""
) -> str:
    """One round of a resident node; returns the complaint that was logged last."""
    reason = ""
    try:
        done = sync(home, audit, client, now)
        for decision in done.taken.decisions:
            extra = {"org": decision.org, "act": decision.act.value}
            log.info("decision of the founders", extra=extra)
        for card in done.cards:
            log.info("newer card", extra={"org": card.org, "serial": card.serial})
        reason = "; ".join(str(error) for error in done.refused[:3])
    except (LianmoError, OSError) as error:
        reason = str(error) if isinstance(error, LianmoError) else type(error).__name__
    if reason and reason != told:
        log.warning("network not in sync", extra={"reason": reason})
    return reason


def read_documents(data: bytes) -> Bundle:
    """The documents in a file: a bundle, or one signed charter or decision."""
    if b'"lianmo-network"' in data[:200] or b"lianmo-network" in data[-200:]:
        return Bundle.from_json(data)
    envelope = Envelope.from_json(data.rstrip(b"\n"))
    if envelope.payload_type.startswith("application/vnd.lianmo.charter."):
        return Bundle(charter=envelope)
    if envelope.payload_type.startswith("application/vnd.lianmo.member-decision."):
        return Bundle(decisions=(envelope,))
    raise UsageError("the file holds no document of a network", todo="see `lianmo network --help`")
