"""Acceptance test 55: an organisation is suspended or its assessment ends; all channels stop.

Within which time: at once where the founders' decision arrives; within `NETWORK_S` plus a second of
a coordinator that answers; within the charter's `stale_s` (600 s) whatever the coordinator does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients import network
from clients.resident import Peers
from federation.api import NETWORK_S
from federation.checks import ApprovedJob, check_job
from federation.envelope import Envelope
from federation.errors import LianmoError, Refused
from federation.identity import Keys
from federation.keyring import Keyring
from federation.network import Act, Bundle, make_bulletin
from federation.objects import Card, Usage
from federation.package import package_sha256
from server.app import create_app
from server.network import NetworkDesk
from server.relay import FileMembership
from tests.acceptance.homes import decide, documents, found, logged, make_homes, share
from tests.clients import gated
from tests.clients.gated import CITY, NOW, World
from tests.federation import networks
from tests.federation.parties import Org, trust_of
from tests.server.governing import BANK, COURT, PLATFORM, TAX
from tests.server.test_app import Site

LIMIT = timedelta(seconds=600)


# --- a node alone ---------------------------------------------------------------------------------


made, world = gated.made, gated.world


def played(world: World, org: str) -> Org:
    """A party of the world as founders are played in tests."""
    home = {"bank_a": world.bank, "tax": world.tax}[org].home
    usages = (Usage.ADMIN, Usage.WITNESS)
    return Org(org, Keys({u: home.key(u) for u in usages}, home.key(Usage.TLS)), home.own())


class Founded:
    """The world's parties in a network of bank and platform, all admitted an hour ago."""

    def __init__(self, world: World, *, days: int = 300) -> None:
        self.world, self.bank, self.city = world, played(world, "bank_a"), CITY
        self.tax = played(world, "tax")
        trust = world.tax.home.trust()
        charter = networks.found(self.bank, self.city, quorum=2)
        self.net = networks.Net(charter, trust)
        until = networks.assessed(NOW + timedelta(days=days))
        by = (self.bank, self.city)
        self.net.admit(self.bank, self.city, by=by)
        self.net.admit(self.tax, by=by, assessment=until)
        for party in (world.bank, world.tax):
            party.home.network.join(charter)

    def words(self, at: datetime) -> tuple[Envelope, ...]:
        """The founders' words at that time, who know of all decisions."""
        known = self.net.standing()
        return tuple(
            org.sign(make_bulletin(known, org.id, at), Usage.WITNESS)
            for org in (self.bank, self.city)
        )

    def tell(self, party: Any, at: datetime, decisions: int | None = None) -> None:
        """Documents reach a home; only the first `decisions` of them if so asked."""
        bundle = Bundle(decisions=tuple(self.net.decisions[:decisions]), bulletins=self.words(at))
        network.take(party.home, party.audit, bundle, at)

    def running(self, now: datetime = NOW) -> ApprovedJob:
        """The job as the department's gate let it in."""
        world = self.world
        return check_job(
            world.signed(world.job),
            world.approvals(world.job),
            world.tax.home.trust(),
            now,
            me="tax",
            package_sha256=package_sha256(),
            standing=world.tax.home.standing(),
        )


def test_a55_an_active_network_lets_the_job_in(world: World) -> None:
    founded = Founded(world)
    for party in (world.tax, world.bank):
        founded.tell(party, NOW)
        world.admit(party)
        party.gate.require_in_force(founded.running())


@pytest.mark.parametrize("act", [Act.SUSPEND, Act.EXIT])
@pytest.mark.parametrize("who", ["bank", "tax", "city"])
def test_a55_a_decision_stops_gate_and_running_job_at_once(
    world: World, act: Act, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    founded = Founded(world)
    for party in (world.bank, world.tax):
        founded.tell(party, NOW)
    job = founded.running()
    target = getattr(founded, who)
    if target.id in ("bank_a", "city") and act is Act.SUSPEND:
        act = Act.EXIT  # one of two founders cannot be suspended: too few would be left
    founded.net.decide(act, target, (founded.bank, founded.city), at=NOW)
    for party in (world.bank, world.tax):
        founded.tell(party, NOW)
        before = len(party.audit.entries())
        with pytest.raises(Refused), caplog.at_level(logging.WARNING):
            world.admit(party)
        assert target.id in caplog.messages[-1]
        (entry,) = party.audit.entries()[before:]
        assert (entry.outcome, entry.check) == ("refused", "approvals")
        with pytest.raises(Refused, match=target.id):
            party.gate.require_in_force(job)
        assert world.tax.store.exposure.tokens("bank_a", "payments") == 0


def test_a55_an_assessment_that_ended_stops_everything_by_itself(world: World) -> None:
    founded = Founded(world, days=1)
    founded.tell(world.tax, NOW)
    job = founded.running()
    world.tax.gate.require_in_force(job)
    later = NOW + timedelta(days=1)
    founded.tell(world.tax, later)  # the coordinator is honest, founders' words are fresh
    world.tax.gate._now = lambda: later
    with pytest.raises(Refused, match="tax: its assessment ended"):
        world.tax.gate.require_in_force(job)


def test_a55_a_coordinator_that_withholds_or_is_silent_gains_ten_minutes(world: World) -> None:
    founded = Founded(world)
    founded.tell(world.tax, NOW)
    job = founded.running()
    known = len(founded.net.decisions)
    founded.net.decide(Act.EXIT, founded.bank, (founded.bank, founded.city), at=NOW)
    for minutes in range(1, 10):  # founders' words arrive, the decision does not
        at = NOW + timedelta(minutes=minutes)
        founded.tell(world.tax, at, decisions=known)
        world.tax.gate._now = lambda at=at: at
        world.tax.gate.require_in_force(job)
    end = NOW + LIMIT + timedelta(seconds=1)
    world.tax.gate._now = lambda: end
    founded.tell(world.tax, end, decisions=known)
    with pytest.raises(Refused, match="bank_a: too few founders confirmed"):
        world.tax.gate.require_in_force(job)
    founded.tell(world.tax, end)
    with pytest.raises(Refused, match="bank_a: left Demo city"):
        world.tax.gate.require_in_force(job)


def test_a55_no_connection_to_a_peer_that_is_out(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    kinds = {"bank-a": "bank", "tax": "department", "court": "department"}
    homes = make_homes(tmp_path, kinds, now - timedelta(hours=1))
    found(homes, ["bank-a", "tax", "court"], now - timedelta(minutes=5))
    assert Peers(homes["court"])["tax"].sha256
    share(homes, now)
    decide(homes, Act.SUSPEND, ["tax"], ["bank-a", "court"], now)
    with pytest.raises(Refused, match="tax: it is suspended from Demo city"):
        Peers(homes["court"])["tax"]
    assert Peers(homes["court"])["bank-a"].sha256


# --- the coordinator ------------------------------------------------------------------------------


class NetSite(Site):
    """The coordinator's API in a network that bank, platform and tax founded."""

    def join(self) -> None:
        charter = networks.found(BANK, PLATFORM, TAX, quorum=2)
        self.net = networks.Net(charter, trust_of(BANK, TAX, COURT, PLATFORM))
        self.net.admit(BANK, TAX, COURT, PLATFORM, by=(BANK, PLATFORM))
        keys = Keyring.create(self.home(), PLATFORM.keys, PLATFORM.card)
        self.desk = NetworkDesk(keys, lambda: self.trust, lambda: self.now)
        self.desk._folder.join(charter)
        self.governance._standing = self.desk.standing
        self.hand_out()
        self.app = create_app(
            self.governance,
            self.store,
            self.changes,
            platform="platform",
            card=lambda: PLATFORM.envelope,
            identify=self.org_of,
            now=lambda: self.now,
            network=self.desk,
        )

    def home(self) -> Path:
        folder = self.folder / "platform"
        folder.mkdir(mode=0o700)
        return folder

    def hand_out(self) -> None:
        known = self.net.standing()
        words = [
            org.sign(make_bulletin(known, org.id, self.now), Usage.WITNESS) for org in (BANK, TAX)
        ]
        self.desk.take(
            "bank-a", Bundle(decisions=tuple(self.net.decisions), bulletins=tuple(words))
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[NetSite]:
    site = NetSite(tmp_path)
    site.join()
    yield site
    site.store.close()


PATHS = [
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/catalogue"),
    ("GET", "/api/v1/organisations"),
    ("PUT", "/api/v1/organisations/me"),
    ("PUT", "/api/v1/catalogue/payments"),
    ("POST", "/api/v1/jobs"),
    ("POST", "/api/v1/jobs/x/approvals"),
    ("GET", "/api/v1/jobs/x/events"),
]


def outcome(site: NetSite, org: Org) -> set[int]:
    return {site.ask(org, method, path).status_code for method, path in PATHS}


def test_a55_the_coordinator_serves_active_organisations_only(site: NetSite) -> None:
    manifest = site.running()
    assert 403 not in outcome(site, TAX)
    assert {"tax", "court"} <= site.membership()["organisations"].keys()
    assert len(site.membership()["jobs"]) == 1
    site.net.decide(Act.SUSPEND, COURT, (BANK, PLATFORM), at=site.now)
    site.hand_out()
    site.governance.tend()
    assert outcome(site, COURT) == {403}
    assert site.governance.catalogue(("", ""), 10).items == ()  # nor what it offered
    problem = site.ask(COURT, "GET", "/api/v1/jobs").json()
    assert "suspended" in problem["detail"]
    assert problem["party"] == "court"
    assert site.ask(COURT, "GET", "/api/v1/network").status_code == 200  # it hears why, and when
    assert site.status(manifest) == "stopped"
    site.governance.publish_membership()
    relay = FileMembership(site.folder / "relay.json")
    assert relay.org_of(_der(COURT.card)) is None
    assert relay.org_of(_der(TAX.card)) == "tax"
    assert site.membership()["jobs"] == {}


def _der(card: Card) -> bytes:
    from federation import certificates

    return certificates.der(card.tls_certificate)


def test_a55_the_coordinator_stops_with_the_founders_words_too(site: NetSite) -> None:
    site.register(BANK)
    assert 403 not in outcome(site, BANK)
    site.now += LIMIT + timedelta(seconds=1)
    assert outcome(site, BANK) == {403}
    site.hand_out()
    assert 403 not in outcome(site, BANK)


def test_a55_only_what_founders_signed_is_kept_by_the_coordinator(site: NetSite) -> None:
    alone = networks.signed(site.net.next(Act.SUSPEND, COURT, at=site.now), (COURT,))
    body = Bundle(decisions=(alone,)).to_json()
    assert site.ask(COURT, "POST", "/api/v1/network", content=body).status_code == 422
    assert site.ask(COURT, "POST", "/api/v1/network", content=b"[]").status_code == 422
    assert 403 not in outcome(site, COURT)


# --- real processes -------------------------------------------------------------------------------


def test_a55_everything_stops_in_real_processes(tmp_path: Path) -> None:
    from tests.system.network import BANK as BANK_ID
    from tests.system.network import COURT as COURT_ID
    from tests.system.network import KINDS, Network
    from tests.system.network import PLATFORM as PLATFORM_ID
    from tests.system.network import TAX as TAX_ID

    running = Network(tmp_path)
    try:
        homes = {org: running.home(org) for org in KINDS}
        found(homes, [BANK_ID, PLATFORM_ID], datetime.now(UTC))
        running.start_coordinator()
        running.start_node(TAX_ID)
        running.start_node(COURT_ID)
        with running.client(TAX_ID) as client:
            client.organisations()
        decide(homes, Act.SUSPEND, [TAX_ID], [BANK_ID, PLATFORM_ID], datetime.now(UTC))
        began = time.monotonic()
        with running.client(BANK_ID) as client, logged(homes[BANK_ID]) as audit:
            client.hand_in(documents({BANK_ID: homes[BANK_ID]}, datetime.now(UTC)))
            assert audit.verify().problems == ()
        with running.client(TAX_ID) as client:
            _until(lambda: _is_refused(client), 5)
        _until(lambda: "not admitted" in running.log(TAX_ID), 5)  # the relay ended its stream
        relay = json.loads((tmp_path / PLATFORM_ID / "relay.json").read_text())
        assert TAX_ID not in relay["organisations"]
        fleet = running.raw(TAX_ID).post("/v1/fleet/pull-message-metadata", content=b"")
        assert fleet.status_code in (401, 403, 404), fleet.text

        def court_knows() -> bool:
            return homes[COURT_ID].standing().member(TAX_ID, datetime.now(UTC)).state != "active"

        _until(court_knows, NETWORK_S + 10)
        assert time.monotonic() - began < 60
    finally:
        running.close()


def _is_refused(client: Any) -> bool:
    try:
        client.organisations()
    except Refused as error:
        return "suspended" in error.what
    except (LianmoError, httpx.HTTPError):
        return False
    return False


def _until(holds: Any, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
