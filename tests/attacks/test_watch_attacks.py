"""Attacks on watches: terms that an alert forgets, alerts after the consent, poisoned rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from clients import datasets
from clients.audit import AuditLog
from clients.consent import Debits
from clients.forgetting import forget_old
from clients.gate import Gate
from clients.home import Home
from clients.store import AlertRow, WatchRow
from clients.verification import Parcel
from clients.verification_settings import VerificationSettings
from clients.watching import Watchman, unkept
from federation import sealing
from federation.audit import Action, AuditEntry, Check, Reason, Result
from federation.catalogue import Assurance
from federation.enquiry import BIT
from federation.errors import Refused, Unavailable
from federation.objects import Purpose, Usage
from federation.tables import NumberColumn
from federation.verification import Denied
from federation.watch import Alert, AlertNotice
from tests.acceptance.consent import Firm
from tests.acceptance.scores import BANK, CODES, DATA, DATASET, FIELD, GRID, SETTINGS
from tests.acceptance.watches import ROW, WatchWorld


class Running(WatchWorld):
    """One process of the owner that goes on, as in a node."""

    man: Watchman | None = None

    def watchman(self) -> Watchman:
        if self.man is None:
            self.man = super().watchman()
        return self.man

    def looks(self) -> list[AuditEntry]:
        log = AuditLog(self.homes["power"], self.stores["power"])
        return [entry for entry in log.entries() if entry.action is Action.WATCHED]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = Running(tmp_path_factory.mktemp("watch"), "scorecard")
    yield world
    for org in ("power", BANK):
        assert AuditLog(world.homes[org], world.stores[org]).verify().problems == ()
    world.close()


@pytest.fixture
def world(made: Running) -> Running:
    with made.stores["power"].writing(WatchRow, AlertRow) as session:
        for watch in session.scalars(select(WatchRow).where(WatchRow.ended.is_(None))):
            watch.ended = "test"
        for alert in session.scalars(select(AlertRow).where(AlertRow.taken.is_(None))):
            alert.taken = "test"
    made.is_away, made.man = False, None
    made.months(0)
    return made


def test_a_process_that_runs_for_hours_goes_on_to_alert(world: Running) -> None:
    """It looks at each day's status list, not at the one of its first round."""
    watched = world.watch()
    for _ in range(2):
        world.now += timedelta(hours=3)
        world.refresh()
        assert world.months(2) == 1
        assert world.months(0) == 0
    assert len(world.watcher.alerts(watched.digest)) == 2


def test_the_interval_of_the_grant_holds_for_alerts_too(world: Running) -> None:
    """The firm has signed: at most once a day. The bank's own debounce is nought."""
    watched = world.watch(world.watch_grant(min_interval_s=86_400))
    assert world.months(2) == 0  # ten minutes after the watch was signed up
    world.now += timedelta(days=1)
    world.refresh()
    assert world.watchman().round() == 1  # it still holds
    assert world.months(0) == 0
    assert world.months(2) == 0
    assert len(world.watcher.alerts(watched.digest)) == 1


def test_a_pause_does_not_fill_the_owners_log(world: Running) -> None:
    """A bank that asks for a long pause must not make the owner look, and enter, every round."""
    world.watch(debounce_s=90 * 86_400)
    assert world.months(2) == 1
    assert world.months(0) == 0
    assert world.months(2) == 0
    before = len(world.looks())
    for _ in range(5):
        world.now += timedelta(seconds=15)
        assert world.watchman().round() == 0
    assert len(world.looks()) == before


def test_an_alert_that_waits_is_not_sent_once_the_grant_is_revoked(world: Running) -> None:
    grant = world.watch_grant()
    watched = world.watch(grant)
    world.is_away = True
    assert world.months(2) == 1
    world.revoke(grant)
    world.is_away = False
    world.frames.clear()
    for _ in range(2):
        assert world.watchman().deliver() == 0
    assert not [frame for org, frame in world.frames if org == BANK]
    assert world.watcher.alerts(watched.digest) == []


def test_a_bank_that_takes_nothing_holds_the_owner_up_once_a_round_and_each_alert_has_its_turn(
    world: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = [world.watch().digest for _ in range(3)]
    world.is_away = True
    assert world.months(2) == 3
    world.is_away, time = False, [0.0]
    home, store = world.homes["power"], world.stores["power"]
    tried: list[str] = []

    def silent(bank: str, sealed: bytes) -> bytes:
        key = world.homes[BANK].key(Usage.ENCRYPT)
        content = sealing.unseal(sealing.ASK, sealed, sender="power", key=key)
        tried.append(AlertNotice.from_bytes(content).alert.unverified(Alert).watch)
        time[0] += 20
        raise Unavailable("did not answer in time", party=bank)

    gate = Gate(home, store, world.clock)
    man = Watchman(home, store, gate, world, world.clock, clock=lambda: time[0])
    monkeypatch.setattr(world, "ask_sealed", silent)
    for count in (1, 2, 3):
        assert (man.deliver(), len(tried)) == (0, count)
    assert sorted(tried) == sorted(watched)
    monkeypatch.undo()
    assert man.deliver() == 3


def test_an_alert_that_waits_is_not_sent_while_the_list_is_stale(world: Running) -> None:
    """Nobody can say then that the grant still holds; it comes with a fresh list."""
    watched = world.watch()
    world.is_away = True
    assert world.months(2) == 1
    world.is_away = False
    world.now += timedelta(hours=1)
    assert world.watchman().deliver() == 0
    assert world.watcher.alerts(watched.digest) == []
    world.refresh()
    assert world.watchman().deliver() == 1


def test_what_the_site_denies_is_not_watched_any_more(world: Running) -> None:
    watched = world.watch()
    denied = SETTINGS + f'deny_purposes = ["{Purpose.POST_LOAN_MONITORING}"]\n'
    file = world.homes["power"].path / "config.toml"
    before = file.read_text()
    file.write_text(before.replace(SETTINGS, denied))
    home = world.homes["power"]
    try:
        world.homes["power"] = Home.open(home.path, environment={})
        assert VerificationSettings.of(world.homes["power"]).deny_purposes
        world.man = None  # the node was started again
        looks = len(world.looks())
        assert world.months(2) == 0
        assert len(world.looks()) == looks
        assert world.watcher.alerts(watched.digest) == []
    finally:
        file.write_text(before)
        world.homes["power"] = home


def test_a_clock_that_was_set_back_looks_at_nothing(world: Running) -> None:
    """A grant that has ended would hold again."""
    world.watch(world.watch_grant())
    before, now = len(world.looks()), world.now
    try:
        world.now -= timedelta(days=1)
        world.refresh()
        with pytest.raises(Refused, match="clock"):
            world.watchman().round()
        assert len(world.looks()) == before
    finally:
        world.now = now
        world.refresh()


def test_one_value_that_cannot_be_compared_keeps_no_other_watch_from_its_alert(
    world: Running,
) -> None:
    other = 17
    world.months(0)
    world.watch(rule="first")
    world.now += timedelta(seconds=1)
    firm = Firm(CODES[other].decode()).certified_by(world.homes["licence"], Assurance.A3)
    second = world.watch(world.watch_grant(firm=firm), rule="second")
    months, usage = DATA.columns["power"]
    assert isinstance(months, NumberColumn)
    for value, alerts in ((0.0, 0), (2.0, 1)):
        changed = months.values.copy()
        changed[ROW], changed[other] = 1e30, value  # of more digits than are compared
        world.now += timedelta(minutes=10)
        world.refresh()
        world.write_table("power", (replace(months, values=changed), usage))
        datasets.refresh(world.homes["power"], world.stores["power"], "arrears", world.now)
        assert world.watchman().round() == alerts
    assert [told.alert.rule for told in world.watcher.alerts(second.digest)] == ["second"]


def test_an_alert_is_kept_no_longer_than_the_firm_has_granted(world: Running) -> None:
    watched = world.watch(world.watch_grant(retain_answer_days=7))
    assert world.months(2) == 1
    bank, came = (world.homes[BANK], world.stores[BANK]), world.now
    forget_old(*bank, came + timedelta(days=7, seconds=-1))
    assert len(world.watcher.alerts(watched.digest)) == 1
    forget_old(*bank, came + timedelta(days=7))
    assert world.watcher.alerts(watched.digest) == []


def test_alerts_tell_no_more_bits_than_the_field_has(world: Running) -> None:
    """Four uses and a budget of three bits: signing up is one, and then two alerts, not three."""
    home, store = world.homes["power"], world.stores["power"]
    other = 23
    offer(world, 3)
    world.months(0, other)
    try:
        firm = Firm(CODES[other].decode()).certified_by(world.homes["licence"], Assurance.A3)
        watched = world.watch(world.watch_grant(firm=firm, max_uses=9))
        log = AuditLog(home, store)
        found = []
        for value in (2, 0, 3, 0, 2):
            looks = len(world.looks())
            found.append(world.months(value, other))
        assert found == [1, 0, 1, 0, 0]
        assert len(world.looks()) == looks  # nor is it looked at any more
        assert world.ended(watched) == Reason.BITS.value
        spent = [entry.amount or 0 for entry in log.entries() if entry.scope is not None]
        assert sum(spent[-3:]) == 3 * BIT
    finally:
        offer(world, 256)


def offer(world: Running, bits: int) -> None:
    """The owner's entry of the watched field, with that budget."""
    home, store, name = world.homes["power"], world.stores["power"], DATASET["power"]
    said = {"ops": ["compare"], "grid": GRID, "bits_budget": bits}
    fields = {"months": FIELD | {"ops": ["train", "score", "verify"], "enquiry": said}}
    fields["months"]["description"] = "months 说明"
    datasets.describe(store, name, {}, fields)
    world.now += timedelta(minutes=1)
    world.refresh()
    signed = datasets.sign_entry(home, store, name, world.now)
    assert datasets.is_in_force(store, signed)


def test_an_alert_with_the_entry_of_its_withholding_is_not_taken(
    world: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an owner's log could say that it told nobody."""
    watched, power = world.watch(), (world.homes["power"], world.stores["power"])
    world.is_away = True
    assert world.months(2) == 1
    log = AuditLog(*power)
    with world.stores["power"].reading() as session:
        row = session.scalars(select(AlertRow).where(AlertRow.watch == watched.digest)).one()
        digest, signed = row.digest, unkept(row.notice)[0]
    denied = Denied(Check.IN_FORCE, Reason.REVOKED, "")
    world.watchman()._withhold(digest, watched.request.grant, denied, world.now)
    entry = log.entries()[-1]
    assert (entry.object, entry.outcome) == (digest, Result.REFUSED)
    notice = AlertNotice(alert=signed, receipt=log.receipt(entry.seq))
    recipient = world.homes[BANK].key(Usage.ENCRYPT).spki
    sealed = sealing.seal(sealing.ASK, notice.to_bytes(), sender="power", recipient=recipient)
    assert world.taker().answer([Parcel("power", sealed)]) == [b""]
    assert world.watcher.alerts(watched.digest) == []


def test_an_owner_sends_no_more_alerts_than_the_grant_has_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that lies fills a bank's store and its people's day."""
    liar = Running(tmp_path, "scorecard")
    with closing(liar):
        watched = liar.watch(liar.watch_grant(max_uses=3))  # signing up is one
        monkeypatch.setattr(Debits, "uses", lambda *_: (0, None))
        monkeypatch.setattr(Debits, "use", lambda *_: 1)
        for _ in range(4):
            liar.months(2)
            liar.months(0)
        assert len(liar.watcher.alerts(watched.digest)) == 2


@pytest.mark.parametrize("said", [{"severity": "critical"}, {"rule": "court-order"}])
def test_an_owner_makes_no_more_of_a_rule_than_the_bank_asked_for(
    world: Running, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank's systems act on the rule's name and weight, which the bank has chosen."""
    watched = world.watch(severity="info")

    class Louder(Alert):
        def __init__(self, **fields: Any) -> None:
            super().__init__(**(fields | said))

    monkeypatch.setattr("clients.watching.Alert", Louder)
    assert world.months(2) == 1
    assert world.watcher.alerts(watched.digest) == []
