"""Watches and alerts (issue 6, item 6): told once per start, no value, ended with the grant."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from clients.audit import AuditLog
from clients.store import WatchRow
from federation.audit import Action, Reason, verify_receipt
from federation.catalogue import Question
from federation.errors import LianmoError, Refused
from federation.grants import Channel
from tests.acceptance.scores import BANK, DATA, DATASET
from tests.acceptance.watches import ROW, WatchWorld


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchWorld]:
    world = WatchWorld(tmp_path_factory.mktemp("watch"), "scorecard")
    yield world
    for org in ("power", BANK):
        assert AuditLog(world.homes[org], world.stores[org]).verify().problems == ()
    world.close()


@pytest.fixture
def world(made: WatchWorld) -> WatchWorld:
    """In which nothing is watched and the firm pays."""
    with made.stores["power"].writing(WatchRow) as session:
        for row in session.scalars(select(WatchRow).where(WatchRow.ended.is_(None))):
            row.ended = "test"
    made.is_away = made.is_lost = False
    made.months(0)
    return made


def test_an_alert_comes_once_for_each_start(world: WatchWorld) -> None:
    watched = world.watch()
    assert world.months(1) == 0
    assert world.months(2) == 1
    assert world.months(3) == 0  # it goes on to hold
    assert world.months(0) == 0
    assert world.months(2) == 1  # a second start
    told = world.watcher.alerts(watched.digest)
    assert [item.alert.rule for item in told] == ["arrears-2"] * 2
    trust = world.homes[BANK].trust()
    assert all(verify_receipt(item.receipt, trust).org == "power" for item in told)


def test_an_alert_holds_no_value_and_a_rule_that_holds_already_does_not_start(
    world: WatchWorld,
) -> None:
    world.months(3)
    watched = world.watch()
    assert world.months(4) == 0
    world.months(0)
    assert world.months(4) == 1
    alert = world.watcher.alerts(watched.digest)[0].alert
    said = alert.model_dump(mode="json")
    assert not {"value", "field", "subject", "arg"} & said.keys()
    assert 4 not in said.values()
    assert "4.0" not in alert.model_dump_json()


def test_debounce_holds_an_alert_back_until_its_time(world: WatchWorld) -> None:
    world.watch(debounce_s=3600)
    assert world.months(2) == 1
    assert world.months(0) == 0
    assert world.months(2) == 0  # within the hour
    world.now += timedelta(hours=1)
    world.refresh()
    assert world.watchman().round() == 1  # it still holds


def test_a_revoked_grant_ends_the_watch_before_anything_is_read(world: WatchWorld) -> None:
    grant = world.watch_grant()
    watched = world.watch(grant)
    world.revoke(grant)
    log = AuditLog(world.homes["power"], world.stores["power"])
    before = [entry for entry in log.entries() if entry.action is Action.WATCHED]
    assert world.months(3) == 0
    after = [entry for entry in log.entries() if entry.action is Action.WATCHED]
    assert len(after) == len(before)
    assert world.ended(watched) == Reason.REVOKED.value
    assert world.watcher.alerts(watched.digest) == []


def test_the_uses_of_the_grant_bound_its_alerts(world: WatchWorld) -> None:
    watched = world.watch(world.watch_grant(max_uses=2))  # signing up is one
    assert world.months(2) == 1
    world.months(0)
    assert world.months(2) == 0
    assert world.ended(watched) == Reason.USES.value


def test_an_alert_waits_for_a_bank_that_is_away_and_comes_once(world: WatchWorld) -> None:
    watched = world.watch()
    world.is_away = True
    assert world.months(2) == 1
    assert world.watcher.alerts(watched.digest) == []
    world.is_away = False
    assert world.watchman().deliver() == 1  # another process of the provider
    assert world.watchman().deliver() == 0
    _, frame = world.frames[-1]
    world.ask_sealed(BANK, frame)  # the carrier brings it twice
    assert len(world.watcher.alerts(watched.digest)) == 1


def test_a_bank_that_is_away_is_tried_once_a_round_not_once_an_alert(
    world: WatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = [world.watch() for _ in range(3)]
    tried, reach = [], world.ask_sealed

    def counting(provider: str, sealed: bytes) -> bytes:
        tried.append(provider)
        return reach(provider, sealed)

    monkeypatch.setattr(world, "ask_sealed", counting)
    world.is_away = True
    assert world.months(2) == 3
    assert tried == [BANK]  # each may take until the coordinator gives up
    world.is_away = False
    assert world.watchman().deliver() == 3
    assert [len(world.watcher.alerts(item.digest)) for item in watched] == [1, 1, 1]


def test_a_removed_watch_takes_no_more_alerts(world: WatchWorld) -> None:
    watched = world.watch()
    world.watcher.remove(watched.digest)
    world.months(2)
    assert world.watcher.alerts(watched.digest) == []
    assert world.ended(watched) == "removed"


@pytest.mark.parametrize(
    ("changes", "question", "reason"),
    [
        ({}, {"arg": "2.5"}, Reason.OFF_GRID),
        ({"items": "1"}, {"arg": "2"}, Reason.NOT_GRANTED),
        ({"channel": Channel.VERIFY}, {}, None),
    ],
    ids=["off the grid", "not granted", "other channel"],
)
def test_what_was_not_granted_is_not_watched(
    world: WatchWorld, changes: dict[str, Any], question: dict[str, Any], reason: Reason | None
) -> None:
    if changes.get("items"):
        item = next(item for item in world.items() if item.field == "months")
        asked = {"ops": (Question.COMPARE,), "thresholds": ("1",)}
        changes = changes | {"items": [item.model_copy(update=asked)]}
    plain = {
        "dataset": DATASET["power"],
        "field": "months",
        "op": "compare",
        "comparison": "ge",
        "arg": "2",
    }
    before = len(world.refusals("power"))
    grant = world.watch_grant(**changes)
    with pytest.raises((Refused, LianmoError)):
        world.watch(grant, question=plain | question)
    assert [e.reason for e in world.refusals("power")[before:]] == ([reason] if reason else [])


def test_a_watched_value_never_leaves_the_provider(world: WatchWorld) -> None:
    """What crosses is as long whatever the value is."""
    world.frames.clear()
    world.watch()
    world.months(2)
    sizes = {len(frame) for org, frame in world.frames if org == BANK}
    world.months(0)
    world.months(4)
    sizes |= {len(frame) for org, frame in world.frames if org == BANK}
    assert len(sizes) == 1
    assert np.isfinite(DATA.columns["power"][0].values[ROW])  # type: ignore[union-attr] # numbers
