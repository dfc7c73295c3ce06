"""A bank keeps scores, reasons, alerts and what its API remembers no longer than the grant says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from clients import live
from clients.audit import AuditLog
from clients.forgetting import forget_old
from clients.local_api import create_app
from clients.scorer import Wanted
from clients.store import AlertRow, Base, IdempotencyRow, ScoreRow, WatchRow
from federation.audit import Action
from federation.catalogue import Assurance
from federation.errors import NotFound, Unavailable
from tests.acceptance.consent import Firm
from tests.acceptance.scores import BANK, FIRM
from tests.acceptance.watches import WatchWorld

TOKEN = "t" * 43


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchWorld]:
    world = WatchWorld(tmp_path_factory.mktemp("forget"), "scorecard")
    yield world
    for org in ("power", BANK):
        assert AuditLog(world.homes[org], world.stores[org]).verify().problems == ()
    world.close()


def forget(world: WatchWorld, org: str = BANK) -> int:
    return forget_old(world.homes[org], world.stores[org], world.now)


def rows(world: WatchWorld, kind: type[Base], org: str = BANK) -> int:
    with world.stores[org].reading() as session:
        return session.scalar(select(func.count()).select_from(kind)) or 0


def passed(world: WatchWorld, **time: float) -> None:
    """Time goes by; firms' keys are certified anew."""
    world.now += timedelta(**time)
    licence = world.homes["licence"]
    world.firm = Firm(FIRM, world.firm.grant, world.firm.encrypt).certified_by(
        licence, Assurance.A3, world.now
    )
    world.refresh()


def erased(world: WatchWorld) -> list[int | None]:
    log = AuditLog(world.homes[BANK], world.stores[BANK])
    return [entry.amount for entry in log.entries() if entry.action is Action.ERASED]


def bytes_of(world: WatchWorld) -> bytes:
    """All of the bank's database as it lies on the disk."""
    url = world.homes[BANK].database_url
    file = Path(url.removeprefix("sqlite:///"))
    found = [part.read_bytes() for part in file.parent.glob(file.name + "*")]
    assert found
    return b"".join(found)


def test_a_score_its_parts_and_its_page_are_gone_when_the_grant_s_days_are_over(
    world: WatchWorld,
) -> None:
    grant = world.grant(retain_answer_days=7)
    scored = world.scorer().score(Wanted(grant, job=world.manifest.job))
    longer = world.scorer().score(Wanted(world.grant(retain_answer_days=8)))
    assert scored.envelope is not None
    marks = [scored.envelope.signatures[0].sig.hex().encode(), scored.id.encode()]
    marks = [mark for mark in marks if mark in bytes_of(world)]
    assert marks  # else the search below would say nothing
    passed(world, days=6, hours=23)
    assert forget(world) == 0
    assert world.scorer().get(scored.id).score == scored.score
    world.now += timedelta(hours=1)
    assert forget(world) == 1
    with pytest.raises(NotFound):  # and so there is nothing to explain
        world.scorer().get(scored.id)
    assert world.scorer().get(longer.id).score is not None
    assert not any(mark in bytes_of(world) for mark in marks)
    assert erased(world) == [1]
    assert forget(world) == 0
    assert erased(world) == [1]


def test_a_bank_forgets_though_no_coordinator_is_there(
    world: WatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        """A coordinator that answers nothing."""

        def __getattr__(self, name: str) -> object:
            raise Unavailable("is not there")

    scored = world.scorer().score(Wanted(world.grant(retain_answer_days=7)))
    watched = world.watch()
    world.is_lost = True
    world.watcher.remove(watched.digest)
    passed(world, days=7)
    monkeypatch.setattr(live, "_now", world.clock)
    follower = live.Follower(world.homes[BANK], world.stores[BANK], Gone(), 60)  # type: ignore[arg-type] # none
    follower.round()
    with pytest.raises(NotFound):
        world.scorer().get(scored.id)
    assert not world.watcher.get(watched.digest).is_told


def test_a_score_that_was_refused_is_forgotten_too(world: WatchWorld) -> None:
    """It names the enterprise that was to be scored."""
    grant = world.grant(max_uses=1, retain_answer_days=0)
    world.scorer().score(Wanted(grant, job=world.manifest.job))
    with pytest.raises(Exception, match="refuses its part"):
        world.scorer().score(Wanted(grant, job=world.manifest.job))
    passed(world, hours=23)
    assert (forget(world), rows(world, ScoreRow)) == (0, 2)  # a day at least
    passed(world, hours=1)
    assert (forget(world), rows(world, ScoreRow)) == (2, 1)  # the points of the one that there was


def test_alerts_go_by_the_time_they_came_and_the_watch_after_its_grant(world: WatchWorld) -> None:
    world.months(0)
    watched = world.watch(world.watch_grant(retain_answer_days=7))
    world.is_away = True
    assert world.months(2) == 1
    passed(world, days=10)
    world.is_away = False
    assert world.watchman().deliver() == 1
    assert forget(world) == 0  # raised ten days ago, here for a moment
    assert len(world.watcher.alerts(watched.digest)) == 1
    passed(world, days=7)
    assert forget(world) == 1
    assert world.watcher.alerts(watched.digest) == []
    assert world.watcher.get(watched.digest).ended is None  # the watch goes on
    assert world.months(0) == 0
    assert world.months(2) == 1
    passed(world, days=14)  # the grant has ended, and the alert was kept long enough
    assert forget(world) == 1
    assert (rows(world, AlertRow), rows(world, WatchRow)) == (0, 1)
    passed(world, days=7)
    assert forget(world) == 1
    assert rows(world, WatchRow) == 0


def test_what_an_owner_keeps_of_its_own_is_not_a_bank_s_to_forget(world: WatchWorld) -> None:
    world.months(0)
    world.watch(world.watch_grant(retain_answer_days=0))
    assert world.months(2) == 1
    passed(world, days=80)
    assert forget(world, "power") == 0
    assert (rows(world, AlertRow, "power"), rows(world, WatchRow, "power")) == (1, 1)


def test_the_api_does_not_give_a_forgotten_answer_again_and_asks_nobody(world: WatchWorld) -> None:
    app = create_app(world.homes[BANK], world.stores[BANK], world, token=TOKEN, now=world.clock)
    body = {"grant": world.grant(max_uses=9), "applicant": world.firm.uscc}
    headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": "k" * 20}

    def post() -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                return await client.post("/v1/scores", json=body, headers=headers)

        return asyncio.run(send())

    first = post()
    assert first.status_code == 201
    passed(world, hours=23)
    forget(world)
    assert post().json() == first.json()
    with world.stores[BANK].reading() as session:
        fingerprint = session.scalars(select(IdempotencyRow.fingerprint)).one().encode()
    assert fingerprint in bytes_of(world)
    passed(world, hours=1)
    forget(world)
    asked = len(world.frames)
    again = post()
    assert again.status_code == 410
    assert again.headers["content-type"] == "application/problem+json"
    assert str(first.json()["points"]) not in again.text
    assert len(world.frames) == asked
    # nor is it in the journal, though nothing else was to be forgotten
    assert first.content[:60] not in bytes_of(world)
    assert fingerprint not in bytes_of(world)  # which would confirm a guess at what was asked
