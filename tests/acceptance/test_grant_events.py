"""Who gets which events on grants: owners all of them, everybody else those of grants they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select

from clients import grants
from clients.home import Home
from clients.store import ConsentEventRow
from clients.store import Store as ClientStore
from federation.envelope import Envelope
from federation.errors import Refused
from federation.grants import BySubject, Change, State
from federation.objects import Usage
from server.consents import Consents
from server.store import Store
from tests.acceptance.consent import BANKS, World


@dataclass
class Line:
    """One organisation's connection to the coordinator."""

    consents: Consents
    org: str

    def status_list(self) -> Envelope:
        return self.consents.status()

    def grant_events(self, entries: Sequence[str]) -> tuple[BySubject, ...]:
        return self.consents.events(self.org, entries)

    def events_of_grants(self, named: Sequence[str]) -> tuple[BySubject, ...]:
        return self.consents.events_of(named)


@dataclass
class City:
    """A world of grants with a coordinator."""

    world: World
    consents: Consents

    def line(self, org: str) -> Line:
        return Line(self.consents, org)

    def sync(self, org: str) -> int:
        home, store = self.home(org)
        return grants.sync(home, store, self.line(org), self.world.now)  # type: ignore[arg-type] # the part of it that is called

    def home(self, org: str) -> tuple[Home, ClientStore]:
        world = self.world
        return world.homes[org], world.store if org == "tax" else world.stores[org]

    def revoked(self, bank: str) -> BySubject:
        """A grant that a bank holds and the firm has revoked, as the coordinator knows."""
        world = self.world
        grant = world.grant(grantee=bank)
        grants.hold(*self.home(bank), grant, world.now)
        self.consents.take_event(bank, world.change(grant, Change.REVOKE))
        return grant


@pytest.fixture
def city(world: World, tmp_path: Path) -> Iterator[City]:
    store = Store(f"sqlite:///{tmp_path / 'coordinator.db'}")
    platform = world.homes["platform"]
    consents = Consents(
        store,
        platform="platform",
        key=lambda: platform.key(Usage.GRANT),
        trust=platform.trust,
        now=lambda: world.now,
    )
    world.sequence = 0
    yield City(world, consents)
    store.close()


def test_an_owner_gets_every_event_and_a_bank_those_of_its_own_grants(city: City) -> None:
    mine, others = city.revoked("bank-a"), city.revoked("bank-b")
    assert city.sync("bank-a") == 1
    with city.world.stores["bank-a"].reading() as session:
        assert session.scalars(select(ConsentEventRow.consent)).all() == [mine.digest]
    assert others.digest != mine.digest
    assert grants.state(*city.home("bank-a"), mine.digest, city.world.now) is State.REVOKED
    assert city.sync("bank-a") == 0
    line = city.line("tax")
    listed = line.status_list().unverified(grants.StatusList).events
    assert len(line.grant_events(listed)) == len(listed) == 2


@pytest.mark.parametrize("org", [*BANKS, "platform"])
def test_a_list_s_entries_tell_nobody_else_whose_events_they_are(city: City, org: str) -> None:
    """Else every member could watch which firms revoke something, and when."""
    city.revoked("bank-b")
    line = city.line(org)
    listed = line.status_list().unverified(grants.StatusList).events
    with pytest.raises(Refused, match="only owners"):
        line.grant_events(listed)
    assert line.events_of_grants([entry * 2 for entry in listed]) == ()


def test_an_entry_says_nothing_to_who_has_neither_the_event_nor_the_grant(city: City) -> None:
    """An entry is of the event with the grant's digest, that is of 128 random bits of the nonce."""
    grant = city.revoked("bank-b")
    listed = city.line("bank-a").status_list().to_json()
    for known in (city.world.firm.uscc, grant.digest, grant.digest[:32], "bank-b"):
        assert known.encode() not in listed
