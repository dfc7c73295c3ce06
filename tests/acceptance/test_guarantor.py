"""A guarantor both asks and answers: alerts, questions and ends come to it on one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.audit import AuditLog
from clients.ending import Endings
from clients.gate import Gate
from clients.incoming import Incoming
from clients.services import services
from clients.verification import Parcel, Provider
from clients.watching import REMOVED
from federation import sealing
from federation.audit import Action, Check, Result, verify_receipt
from federation.identity import USAGES
from federation.objects import OrgKind, Usage
from tests.acceptance.scores import BANK, CODES
from tests.acceptance.watches import WatchWorld

GUARANTOR = "guarantee"


class GuarantorWorld(WatchWorld):
    """The same with a guarantor in the place of the bank that is told."""

    kinds = WatchWorld.kinds | {GUARANTOR: ("guarantor", CODES[1].decode())}
    bank = GUARANTOR

    def __init__(self, folder: Path, task: str) -> None:
        super().__init__(folder, task)
        self.line = self._line()

    def taker(self) -> Incoming:
        return self.line

    def _line(self) -> Incoming:
        """As clients/live.py makes it for a kind that has both usages."""
        home, store = self.homes[self.bank], self.stores[self.bank]
        gate = Gate(home, store, self.clock)
        asked = services(home, store, gate, self.clock)
        provider = Provider(home, store, now=self.clock, services=asked)
        endings = Endings(home, store, self.clock)
        return Incoming(home, provider=provider, endings=endings, watcher=self.watcher)

    def watch_grant(self, **changes: object) -> str:
        return super().watch_grant(grantee=GUARANTOR, **changes)


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuarantorWorld]:
    world = GuarantorWorld(tmp_path_factory.mktemp("guarantor"), "scorecard")
    yield world
    for org in ("power", GUARANTOR):
        assert AuditLog(world.homes[org], world.stores[org]).verify().problems == ()
    world.close()


def test_a_guarantor_takes_alerts_and_answers_questions_on_one_line(world: GuarantorWorld) -> None:
    assert {Usage.REQUEST, Usage.ANSWER} <= set(USAGES[OrgKind.GUARANTOR])
    world.months(0)
    watched = world.watch()
    assert world.months(2) == 1
    (told,) = world.watcher.alerts(watched.digest)
    assert verify_receipt(told.receipt, world.homes[GUARANTOR].trust()).org == "power"
    ended = world.watcher.remove(watched.digest)
    assert (ended.ended, ended.is_told) == (REMOVED, True)

    alert = world.frames[-2][1]
    sealed = world.frames[-1][1]  # the end, which was sealed to power and opens nowhere else
    garbage = sealing.seal(
        sealing.ASK,
        b"{}",
        sender=BANK,
        recipient=world.homes[GUARANTOR].key(Usage.ENCRYPT).spki,
    )
    parcels = [Parcel(BANK, garbage), Parcel("power", alert), Parcel(BANK, sealed)]
    replies = world.line.answer(parcels)
    assert all(replies)  # each has an answer, the refused ones too
    assert len({len(reply) for reply in replies}) == 1
    log = AuditLog(world.homes[GUARANTOR], world.stores[GUARANTOR])
    refused = [entry for entry in log.entries() if entry.outcome is Result.REFUSED]
    assert [(e.action, e.check) for e in refused] == [
        (Action.ASKED, Check.ENVELOPE),
        (Action.ASKED, Check.SEALED),
    ]
    assert len(world.watcher.alerts(watched.digest)) == 1


def test_a_frame_that_breaks_its_reader_costs_nobody_else_an_answer(
    world: GuarantorWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.months(0)
    watched = world.watch()
    assert world.months(2) == 1
    alert = world.frames[-1][1]

    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    line = world._line()
    monkeypatch.setattr(type(world.watcher), "answer", broken)
    key = world.homes[GUARANTOR].key(Usage.ENCRYPT).spki
    garbage = sealing.seal(sealing.ASK, b"{}", sender=BANK, recipient=key)
    replies = line.answer([Parcel("power", alert), Parcel(BANK, garbage)])
    assert [bool(reply) for reply in replies] == [False, True]
    assert watched.ended is None


def test_alerts_that_a_guarantor_raises_are_not_among_those_that_it_was_told(
    world: GuarantorWorld,
) -> None:
    """Both stand in one table of its database."""
    from clients.store import AlertRow, WatchRow

    world.months(0)
    watched = world.watch()
    assert world.months(2) == 1
    with world.stores["power"].reading() as session:
        rows = [
            WatchRow(**_plain(session.get_one(WatchRow, watched.digest)) | {"digest": "1" * 64}),
            *(
                AlertRow(**_plain(row) | {"digest": "2" * 64, "watch": "1" * 64})
                for row in session.query(AlertRow).where(AlertRow.watch == watched.digest)
            ),
        ]
    with world.stores[GUARANTOR].writing(WatchRow, AlertRow) as session:
        session.add_all(rows)
    assert [item.alert.watch for item in world.watcher.alerts()] == [watched.digest]
    assert [item.digest for item in world.watcher.all()] == [watched.digest]


def _plain(row: object) -> dict[str, object]:
    return {name: value for name, value in vars(row).items() if not name.startswith("_")}
