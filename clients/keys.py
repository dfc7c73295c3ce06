"""This organisation's keys over the years: renewed, held, released, revoked (GOVERNANCE.md, T21).

Every change makes a newer card. It is prepared on disk, shown to the coordinator while the old
certificate still opens its door, entered in the audit log and only then taken; a crash anywhere
leaves the old card or the new one, and the same command again goes on. Other members fetch it from
the coordinator within a minute; without one it goes by file, as the first did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from clients.audit import AuditLog
from clients.coordinator_client import CoordinatorClient, platform_of
from clients.home import Home
from federation import identity, rekey
from federation.audit import Action
from federation.envelope import Envelope, sign
from federation.errors import Conflict, LianmoError, NotFound, Unavailable
from federation.identity import PrivateKey
from federation.objects import Card, KeyRecord, KeyStatus, OrgKind, Usage
from federation.trust import verify_card

RESTART = frozenset({Usage.TLS, Usage.NODE})  # a running node has these in its connections
Shown = Literal["shown", "not shown", "no coordinator"]


@dataclass(frozen=True, slots=True)
class Changed:
    """The card that was taken, and whether the coordinator has it."""

    card: Card
    shown: Shown
    why: str = ""  # not shown
    needs_restart: bool = False


def renew(
    home: Home,
    audit: AuditLog,
    usages: Iterable[Usage],
    now: datetime,
    *,
    offline: bool = False,
    replaces: KeyStatus = KeyStatus.RETIRED,
    reason: str = "renewed",
) -> Changed:
    """New keys of the home for these usages; the old ones are retired (or revoked: `replaces`)."""
    if (prepared := home.keyring.prepared()) is not None:  # a crash cut an earlier change off
        return _take(home, audit, prepared, now, offline=offline)
    card = home.own()
    current = _current(home)
    own = {usage: key.key_id for usage, key in current.items()}
    authority = PrivateKey.from_pem(Usage.TLS, (home.path / "keys" / "authority.pem").read_bytes())
    wanted = tuple(dict.fromkeys(usages))
    newer, fresh = rekey.renewed(card, wanted, own, authority, now, status=replaces, reason=reason)
    leaving = current[Usage.ADMIN] if Usage.ADMIN in fresh else None
    envelope = _signed(newer, current | fresh, leaving)
    home.keyring.prepare(envelope, fresh)
    return _take(home, audit, envelope, now, offline=offline)


def hold(
    home: Home, audit: AuditLog, name: str, reason: str, now: datetime, *, offline: bool = False
) -> Changed:
    """Put a key on hold: nothing that it signed counts until it is released."""
    return _set(home, audit, name, KeyStatus.HOLD, reason, now, offline=offline)


def release(
    home: Home, audit: AuditLog, name: str, now: datetime, *, offline: bool = False
) -> Changed:
    """End a hold."""
    return _set(home, audit, name, KeyStatus.ACTIVE, "", now, offline=offline)


def revoke(
    home: Home,
    audit: AuditLog,
    name: str,
    reason: str,
    now: datetime,
    *,
    replace: bool = False,
    offline: bool = False,
) -> Changed:
    """Revoke a key for good; `replace` puts a new one of the home in its place at once."""
    if not replace:
        return _set(home, audit, name, KeyStatus.REVOKED, reason, now, offline=offline)
    key = rekey.find(home.own(), name)
    if key.key_id not in {own.key_id for own in _current(home).values()}:
        todo = "revoke it without --replace; a person's new key is made with `lianmo org approver`"
        raise Conflict("only a current key of the home can be replaced", todo=todo)
    return renew(
        home,
        audit,
        [key.usage],
        now,
        offline=offline,
        replaces=KeyStatus.REVOKED,
        reason=reason,
    )


def add(
    home: Home, audit: AuditLog, record: KeyRecord, now: datetime, *, offline: bool = False
) -> Changed:
    """One more key in the card: a person's, who keeps the private half."""
    _require_settled(home)
    envelope = _signed(rekey.with_key(home.own(), record, now), _current(home), None)
    home.keyring.prepare(envelope, {})
    return _take(home, audit, envelope, now, offline=offline)


def missing(card: Card) -> tuple[Usage, ...]:
    """Usages that such an organisation has nowadays and this card has no active key for."""
    return tuple(u for u in identity.USAGES[card.org_kind] if not card.of_usage(u))


def _set(
    home: Home,
    audit: AuditLog,
    name: str,
    status: KeyStatus,
    reason: str,
    now: datetime,
    *,
    offline: bool,
) -> Changed:
    _require_settled(home)
    card = home.own()
    key = rekey.find(card, name)
    newer, _ = rekey.with_status(card, key.key_id, status, reason, now)
    keys = _current(home)
    if status is KeyStatus.ACTIVE:
        file = home.keyring.key_file(key.usage)
        back = PrivateKey.from_pem(key.usage, file.read_bytes()) if file.is_file() else None
        if back is not None and back.key_id == key.key_id:
            keys[key.usage] = back  # it signs the card again
    envelope = _signed(newer, keys, None)
    home.keyring.prepare(envelope, {})
    return _take(home, audit, envelope, now, offline=offline)


def _require_settled(home: Home) -> None:
    if home.keyring.prepared() is not None:
        todo = "`lianmo org renew` finishes it"
        raise Conflict("an earlier change of the card was cut off", party=home.org, todo=todo)


def _current(home: Home) -> dict[Usage, PrivateKey]:
    """The home's own active keys; a person's key is not here."""
    found = {}
    for usage in identity.USAGES[home.own().org_kind]:
        if home.keyring.key_file(usage).is_file() and home.own().of_usage(usage):
            try:
                found[usage] = home.key(usage)
            except LianmoError:  # the home's one is on hold or revoked, a person's is active
                continue
    return found


def _signed(card: Card, keys: Mapping[Usage, PrivateKey], leaving: PrivateKey | None) -> Envelope:
    """The card, signed by the keys that it has as active, and by the admin key that it replaces."""
    active = {key.key_id for key in card.keys if key.status is KeyStatus.ACTIVE}
    signers = [key for key in identity.card_signers(keys) if key.key_id in active]
    # A revoked admin key vouches for nobody: then people compare the new fingerprint.
    if leaving is not None and any(
        key.key_id == leaving.key_id and key.status is KeyStatus.RETIRED for key in card.keys
    ):
        signers.append(leaving)
    envelope = sign(card, *signers)
    verify_card(envelope)
    return envelope


def _take(
    home: Home, audit: AuditLog, envelope: Envelope, now: datetime, *, offline: bool
) -> Changed:
    """Show the prepared card, enter it, take it."""
    card, old = envelope.unverified(Card), home.own()
    ended = {key.key_id for key in card.keys if key.status is not KeyStatus.ACTIVE}
    gone = {key.usage for key in old.keys if key.since is None and key.key_id in ended}
    shown, why = _show(home, envelope, offline=offline)
    if shown == "not shown" and Usage.TLS in gone and not offline:
        # with the old certificate gone nobody would open its door to the new card
        todo = "try again later; or with --offline, and give the card to the platform by file"
        raise Unavailable(f"the new card was not shown: {why}", party=home.org, todo=todo)
    # on disk first: a crash in between leaves an entry too many, never a change without one
    audit.append(Action.KEYS_CHANGED, hashlib.sha256(envelope.payload).hexdigest(), now)
    home.keyring.advance()
    return Changed(home.own(), shown, why, bool(RESTART & gone))


def _show(home: Home, envelope: Envelope, *, offline: bool) -> tuple[Shown, str]:
    if offline or home.config.coordinator_url is None:
        return "no coordinator", ""
    if home.own().org_kind is OrgKind.PLATFORM:  # its own process reads the same home
        return "shown", ""
    try:
        platform_of(home.trust())
    except NotFound:  # before the cards were exchanged
        return "no coordinator", ""
    try:
        with CoordinatorClient(home, retry_s=0) as client:
            client.register(envelope)
    except NotFound:  # an auditor has no node, and its card is taken all the same
        return "shown", ""
    except LianmoError as error:
        return "not shown", str(error)
    return "shown", ""
