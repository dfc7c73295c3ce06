"""The coordinator's part in the network: documents kept and given on, newer cards, its own word."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from clients.keys import missing
from federation import rekey
from federation.api import NETWORK_S
from federation.envelope import Envelope, sign
from federation.errors import Conflict, NotFound
from federation.identity import Keys
from federation.keyring import Keyring
from federation.network import Act, Bulletin, Bundle, confirmed_admin
from federation.objects import Card, KeyStatus, Usage
from server.network import NetworkDesk
from tests.federation.networks import Net, found, signed
from tests.federation.parties import Org, trust_of
from tests.server.governing import BANK, COURT, PLATFORM, TAX, Governed

EVERYBODY = (BANK, TAX, COURT, PLATFORM)


class Desk:
    """The platform's home in a network that it founded with the bank and the tax office."""

    def __init__(self, folder: Path) -> None:
        self.governed = Governed(folder)
        home = folder / "platform"
        home.mkdir(mode=0o700)
        self.keyring = Keyring.create(home, PLATFORM.keys, PLATFORM.card)
        for org in (BANK, TAX, COURT):
            self.keyring.trust_card(org.envelope)
        self.desk = NetworkDesk(self.keyring, self.keyring.trust, lambda: self.governed.now)
        self.charter = found(BANK, TAX, PLATFORM, quorum=2)
        self.net = Net(self.charter, trust_of(*EVERYBODY))
        self.net.admit(*EVERYBODY, by=(BANK, TAX))

    def join(self) -> None:
        self.desk._folder.join(self.charter)
        self.desk.take("bank-a", Bundle(decisions=tuple(self.net.decisions)))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Desk]:
    site = Desk(tmp_path)
    yield site
    site.governed.store.close()


def test_a_platform_without_a_network_says_so(site: Desk) -> None:
    assert site.desk.bundle() == Bundle()
    with pytest.raises(NotFound, match="joined no network"):
        site.desk.take("bank-a", Bundle(decisions=tuple(site.net.decisions)))
    assert site.desk.active() == {"bank-a", "tax", "court", "platform"}


def test_signatures_that_come_apart_are_put_together_and_given_on(site: Desk) -> None:
    site.join()
    decision = site.net.next(Act.SUSPEND, COURT, at=site.governed.now)
    site.desk.take("bank-a", Bundle(decisions=(signed(decision, (BANK,)),)))
    assert site.desk.standing().member("court", site.governed.now).state == "active"
    given = site.desk.take("tax", Bundle(decisions=(signed(decision, (TAX,)),)))
    assert len(given.decisions) == 5
    assert site.desk.standing().member("court", site.governed.now).state == "suspended"


def test_a_founding_platform_says_its_word_every_few_seconds(site: Desk) -> None:
    site.join()
    site.desk.tend()
    (first,) = site.desk.bundle().bulletins
    site.governed.now += timedelta(seconds=NETWORK_S - 1)
    site.desk.tend()
    assert site.desk.bundle().bulletins == (first,)
    site.governed.now += timedelta(seconds=2)
    site.desk.tend()
    (second,) = site.desk.bundle().bulletins
    assert second.unverified(Bulletin).created > first.unverified(Bulletin).created


def renewed(org: Org, usage: Usage, site: Desk) -> tuple[Envelope, Org]:
    own = {u: key.key_id for u, key in org.keys.by_usage.items()}
    now = site.governed.now
    card, fresh = rekey.renewed(org.card, [usage], own, org.keys.authority, now)
    newer = Org(org.id, Keys({**org.keys.by_usage, **fresh}, org.keys.authority), card)
    if usage is not Usage.ADMIN:
        return newer.signed_card(card), newer
    signers = [key for key in newer.keys.by_usage.values() if key.alg == "Ed25519"]
    return sign(card, *signers, org.key(Usage.ADMIN)), newer


def accept(site: Desk) -> None:
    """As the coordinator wires it: a newer card goes into the trust folder."""
    governance = site.governed.governance
    governance._trust = site.keyring.trust

    def take(envelope: Envelope) -> None:
        org = envelope.unverified(Card).org
        admin = confirmed_admin(site.desk.standing(), org, site.governed.now)
        site.keyring.trust_card(envelope, how="from itself", decided=admin)

    governance._accept_card = take


def test_a_newer_card_under_the_same_admin_key_is_taken_when_it_is_shown(site: Desk) -> None:
    accept(site)
    site.governed.register(TAX)
    envelope, newer = renewed(TAX, Usage.TLS, site)
    site.governed.governance.register("tax", envelope)
    assert site.keyring.trust().card("tax").serial == 2
    assert missing(newer.card) == ()
    with pytest.raises(Conflict):
        site.governed.governance.register("tax", TAX.envelope)  # the older one comes back


def test_a_new_admin_key_is_taken_with_the_founders_decision_only(site: Desk) -> None:
    accept(site)
    site.join()
    site.governed.register(COURT)
    envelope, newer = renewed(COURT, Usage.ADMIN, site)
    with pytest.raises(Conflict, match="another admin key"):
        site.governed.governance.register("court", envelope)
    site.net.admit(newer, by=(BANK, TAX), at=site.governed.now)
    site.desk.take("tax", Bundle(decisions=tuple(site.net.decisions)))
    site.governed.governance.register("court", envelope)
    trusted = site.keyring.trust().card("court")
    assert trusted.admin.key_id == newer.card.admin.key_id
    states = {key.status for key in trusted.keys if key.usage is Usage.ADMIN}
    assert states == {KeyStatus.ACTIVE, KeyStatus.RETIRED}
