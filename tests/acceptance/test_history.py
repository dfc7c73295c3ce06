"""What a firm sees of all that was done under its grants (acceptance test 58 of GOVERNANCE.md)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from clients import grants
from clients.audit import AuditLog
from clients.consent import Debits
from clients.scorer import Wanted as ScoreWanted
from clients.use_notices import UseNotices
from clients.verifier import Verifier, Wanted
from federation import sealing
from federation.audit import Action, Reason, Result, verify_receipt
from federation.catalogue import Question
from federation.enquiry import Answered, Comparison
from federation.errors import Refused
from federation.grants import Channel, Use
from federation.objects import Purpose
from tests.acceptance.consent import Box, take_cosigned
from tests.acceptance.scores import BANK, DATASET, DEPARTMENTS
from tests.acceptance.watches import WatchWorld


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchWorld]:
    world = WatchWorld(tmp_path_factory.mktemp("history"), "scorecard")
    yield world
    world.close()


def told(world: WatchWorld) -> dict[tuple[str, int], Use]:
    """The firm's history: what every provider sealed to it, by (owner of the log, entry)."""
    found = {}
    for org in DEPARTMENTS:
        home, store, box = world.homes[org], world.stores[org], Box()
        others = [world.homes[other] for other in (*DEPARTMENTS, "licence") if other != org]
        take_cosigned(home, store, others, world.now)
        UseNotices(home, store, box, world.clock, timedelta(seconds=60)).round()
        for item in box.notices:
            content = sealing.unseal(sealing.USE, item.sealed, sender=org, key=world.firm.encrypt)
            notice = grants.read_notice(world.homes["platform"], content, world.now)
            proven = verify_receipt(notice.receipt, world.homes["platform"].trust())
            assert proven.status == "cosigned"
            found[proven.org, proven.entry.seq] = notice.use.unverified(Use)
    return found


def test_a58_the_history_is_the_union_of_all_providers_receipts_of_every_channel(
    world: WatchWorld,
) -> None:
    months = next(item for item in world.items() if item.field == "months")
    verify = world.grant(
        channel=Channel.VERIFY,
        model=None,
        purpose=Purpose.CREDIT_DECISION,
        items=[months.model_copy(update={"ops": (Question.COMPARE,), "thresholds": ("1", "2")})],
    )
    score, watch = world.grant(max_uses=2), world.watch_grant(max_uses=3)
    bank = Verifier(world.homes[BANK], world.stores[BANK], world, world.clock)
    question = (verify, "power", DATASET["power"], "months", Question.COMPARE, Comparison.GE)
    for threshold in ("1", "2"):
        assert bank.ask(Wanted(*question, threshold)).result is not Answered.REFUSED
    assert bank.ask(Wanted(*question, "3")).result is Answered.REFUSED  # which the firm left out
    for _ in range(2):
        world.scorer().score(ScoreWanted(score, job=world.manifest.job))
    with pytest.raises(Refused):
        world.scorer().score(ScoreWanted(score, job=world.manifest.job))
    world.months(0)
    world.watch(watch)
    assert world.months(2) == 1
    found = told(world)
    answered = {
        (org, entry.seq)
        for org in DEPARTMENTS
        for entry in AuditLog(world.homes[org], world.stores[org]).entries()
        if entry.action is Action.ANSWERED and entry.outcome is not Result.REFUSED
    }
    assert found.keys() == answered
    uses = {
        (org, grant): Debits(world.stores[org]).uses(grant)[0]
        for org in DEPARTMENTS
        for grant in (verify, score, watch)
    }
    assert {key: count for key, count in uses.items() if count} == {
        ("power", verify): 2,
        ("power", score): 2,
        ("tax", score): 2,
        ("power", watch): 2,  # the sign-up, and an alert
    }
    for (org, grant), count in uses.items():
        assert sum((use.org, use.grant) == (org, grant) for use in found.values()) == count
    refused = {entry.reason for org in DEPARTMENTS for entry in world.refusals(org)}
    assert refused == {Reason.NOT_GRANTED, Reason.USES}
