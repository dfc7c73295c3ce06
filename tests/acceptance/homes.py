"""Homes that found a network together, through the functions that the commands call."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from clients import network
from clients.audit import AuditLog
from clients.home import Home
from clients.store import Store
from federation.network import Act, Assessment, Bundle
from federation.objects import utc_text
from tests.federation.parties import CODES


@contextlib.contextmanager
def logged(home: Home) -> Iterator[AuditLog]:
    """The home's audit log."""
    with contextlib.closing(Store.open(home.database_url)) as store:
        yield AuditLog(home, store)


def make_homes(folder: Path, kinds: dict[str, str], now: datetime) -> dict[str, Home]:
    """Homes that trust each other."""
    homes = {
        org: Home.create(
            folder / org, org=org, kind=kind, name=org, uscc=code, region="厦门", now=now
        )
        for code, (org, kind) in zip(CODES, kinds.items(), strict=False)
    }
    for one in homes.values():
        for other in homes.values():
            if one is not other:
                one.trust_card(other.card())
    return homes


def found(
    homes: dict[str, Home], founders: Sequence[str], now: datetime, *, quorum: int = 2
) -> None:
    """A network of all homes, in which everybody was admitted."""
    first, *others = (homes[org] for org in founders)
    charter = network.found(first, "Demo city", [home.org for home in others], quorum, 600, now)
    for home in others:
        charter = network.sign_charter(home, charter)
    for home in homes.values():
        with logged(home) as audit:
            network.join(home, audit, charter, now)
    decide(homes, Act.ADMIT, sorted(homes), founders[:quorum], now)
    share(homes, now)


def assessed(now: datetime, days: int = 300) -> Assessment:
    """A good assessment."""
    return Assessment(
        security="level 3",
        authorisation="order 12/2026",
        evidence_digest=hashlib.sha256(b"report").hexdigest(),
        assessor="City audit office",
        valid_until=utc_text(now + timedelta(days=days)),
    )


def decide(
    homes: dict[str, Home],
    act: Act,
    orgs: Sequence[str],
    by: Sequence[str],
    now: datetime,
    *,
    days: int = 300,
) -> None:
    """Founders decide; only their own homes know of it then."""
    first, *others = (homes[org] for org in by)
    is_admission = act is Act.ADMIT
    with logged(first) as audit:
        network.propose(
            first,
            audit,
            act,
            orgs,
            now,
            reason="" if is_admission else "audit finding 7",
            assessment=assessed(now, days) if is_admission else None,
        )
        documents = network.outgoing(first, audit, now)
    for home in others:
        with logged(home) as audit:
            network.take(home, audit, documents, now)
            network.sign_decisions(home, audit, network.pending(home), now)
            documents = network.outgoing(home, audit, now)
    with logged(first) as audit:
        network.take(first, audit, documents, now)


def documents(homes: dict[str, Home], now: datetime) -> Bundle:
    """What a coordinator that withholds nothing would have."""
    found = []
    for home in homes.values():
        with logged(home) as audit:
            found.append(network.outgoing(home, audit, now))
    return Bundle(
        charter=found[0].charter,
        decisions=tuple({d.payload: d for one in found for d in one.decisions}.values()),
        bulletins=tuple({b.payload: b for one in found for b in one.bulletins}.values()),
    )


def share(homes: dict[str, Home], now: datetime) -> None:
    """Carry all documents to all homes, as an honest coordinator does."""
    bundle = documents(homes, now)
    for home in homes.values():
        with logged(home) as audit:
            network.take(home, audit, bundle, now)
    again = documents(homes, now)  # words that know of what was just learnt
    for home in homes.values():
        with logged(home) as audit:
            network.take(home, audit, again, now)
