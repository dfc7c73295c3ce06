"""The next card of an organisation: keys renewed, put on hold, released or revoked.

Pure: a card in, a card and new private keys out; nothing is signed or written here. A renewed key
is *retired*: what it signed stays good, so approvals and receipts under way are not disturbed. A
*revoked* one is one that somebody else may have: nothing that it signed counts any more, unless a
log shows that it is older.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from federation import certificates
from federation.errors import Conflict, NotFound, UsageError
from federation.identity import KEY_LIFE, USAGES, PrivateKey
from federation.objects import Card, KeyRecord, KeyStatus, Usage, utc_text

# Nothing goes on without these, so they never stand in a card without a successor.
ALWAYS = frozenset({Usage.ADMIN, Usage.LOG, Usage.TLS})

_BEFORE = {
    KeyStatus.HOLD: {KeyStatus.ACTIVE},
    KeyStatus.ACTIVE: {KeyStatus.HOLD},
    KeyStatus.REVOKED: {KeyStatus.ACTIVE, KeyStatus.HOLD, KeyStatus.RETIRED},
}


def renewed(
    card: Card,
    usages: Iterable[Usage],
    own: Mapping[Usage, str],
    authority: PrivateKey,
    now: datetime,
    *,
    status: KeyStatus = KeyStatus.RETIRED,
    reason: str = "renewed",
) -> tuple[Card, dict[Usage, PrivateKey]]:
    """The next card with new keys for these usages, and the private halves.

    own: the ids of the home's current keys. A usage that has none yet gets its first. Raises
    UsageError for a usage that such an organisation does not have.
    """
    wanted = dict.fromkeys(usages)
    for usage in wanted:
        if usage not in USAGES[card.org_kind]:
            raise UsageError(f"a {card.org_kind} has no {usage} key", party=card.org)
    fresh = {usage: PrivateKey.generate(usage) for usage in wanted}
    records = [
        _ended(key, status, reason, now)
        if key.usage in fresh and key.key_id == own.get(key.usage)
        else key
        for key in card.keys
    ]
    holders = {key.usage: key.holder for key in card.keys if key.key_id == own.get(key.usage)}
    records += [
        KeyRecord(
            key_id=key.key_id,
            usage=usage,
            alg=key.alg,
            spki=base64.b64encode(key.spki).decode(),
            holder=holders.get(usage, f"{card.org} {usage}"),
            not_before=utc_text(now),
            not_after=utc_text(now + KEY_LIFE),
        )
        for usage, key in fresh.items()
    ]
    changes: dict[str, Any] = {}
    if Usage.TLS in fresh:
        changes["tls_certificate"] = _leaf(card, fresh[Usage.TLS], authority, now)
    if Usage.NODE in fresh:
        changes["node_key"] = fresh[Usage.NODE].public_pem
    return _next(card, records, now, **changes), fresh


def with_status(
    card: Card, key_id: str, status: KeyStatus, reason: str, now: datetime
) -> tuple[Card, KeyRecord]:
    """The next card with one key on hold, active again, or revoked, and that key.

    Raises Conflict where the key may not change so, NotFound if there is none.
    """
    key = find(card, key_id)
    if key.status not in _BEFORE[status]:
        raise Conflict(f"the {key.usage} key is {key.status}", party=card.org)
    if key.usage in ALWAYS and key.status is KeyStatus.ACTIVE:
        todo = f"`lianmo org revoke {key_id[:8]} --replace` puts a new one in its place"
        if key.usage is Usage.ADMIN:
            todo = "`lianmo org renew admin`; if it was stolen, let everybody distrust this card"
        raise Conflict(f"nothing works without a {key.usage} key", party=card.org, todo=todo)
    ended = _ended(key, status, reason, now)
    records = [ended if item.key_id == key.key_id else item for item in card.keys]
    return _next(card, records, now), ended


def with_key(card: Card, record: KeyRecord, now: datetime) -> Card:
    """The next card with one more key, which brings its own proof."""
    return _next(card, [*card.keys, record], now)


def find(card: Card, name: str) -> KeyRecord:
    """The key whose id begins with `name`, or the one active key of that usage."""
    hits = [key for key in card.keys if key.key_id.startswith(name.lower())] if name else []
    if len(name) < 6 or not hits:
        hits = [key for key in card.keys if key.usage == name and key.since is None]
    if len(hits) != 1:
        todo = "`lianmo org show` lists them; give at least 6 characters of the id"
        raise NotFound(f"{len(hits)} keys of the card are called so", party=card.org, todo=todo)
    return hits[0]


def _ended(key: KeyRecord, status: KeyStatus, reason: str, now: datetime) -> KeyRecord:
    since = None if status is KeyStatus.ACTIVE else utc_text(now)
    words = "" if status is KeyStatus.ACTIVE else reason
    return KeyRecord.model_validate(
        key.model_dump() | {"status": status, "since": since, "reason": words}
    )


def _next(card: Card, records: Iterable[KeyRecord], now: datetime, **changes: Any) -> Card:
    plain = card.model_dump() | changes
    plain |= {"serial": card.serial + 1, "created": utc_text(now)}
    plain["keys"] = [key.model_dump() for key in records]
    try:
        return Card.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise Conflict(f"no such card can be: {first['msg']}", party=card.org) from None


def _leaf(card: Card, key: PrivateKey, authority: PrivateKey, now: datetime) -> str:
    """A certificate for the new key with the hosts of the old one."""
    if not isinstance(key.secret, ec.EllipticCurvePrivateKey) or not isinstance(
        authority.secret, ec.EllipticCurvePrivateKey
    ):
        raise TypeError("TLS keys are on P-256")
    old = x509.load_pem_x509_certificate(card.tls_certificate.encode())
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [*names.get_values_for_type(x509.DNSName)]
    hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    leaf = certificates.issue(
        card.org, key.secret, authority.secret, hosts=hosts, now=now, until=now + KEY_LIFE
    )
    return certificates.pem(leaf)
