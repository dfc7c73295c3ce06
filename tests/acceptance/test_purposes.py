"""A grant is for one channel and one purpose (acceptance tests 5 and 6, for scores and watches).

The requests here are those of a bank that does not look at its own grants: what refuses is the
owner's node, and its log says by which check and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from clients import grants
from clients.audit import AuditLog
from clients.consent import Debits
from clients.scorer import Wanted
from clients.watcher import Wanted as WatchWanted
from federation.audit import Action, Check, Reason
from federation.catalogue import Question
from federation.errors import Refused
from federation.grants import Channel
from federation.objects import Purpose
from federation.scoring import ScoreRequest
from federation.verification import VerificationRequest
from federation.watch import WatchRequest
from tests.acceptance.scores import BANK, DATASET
from tests.acceptance.watches import WatchWorld

WATCHED = {"rule": "arrears-2", "field": "months", "op": "compare", "comparison": "ge", "arg": "2"}
ASKED = {"field": "months", "op": "compare", "comparison": "ge", "arg": "2"}
TRAINING, DECISION, MONITORING = Purpose


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchWorld]:
    world = WatchWorld(tmp_path_factory.mktemp("purposes"), "scorecard")
    yield world
    world.close()


def granted(world: WatchWorld, channel: Channel, purpose: Purpose) -> str:
    """A grant of that channel that has all that the channel can have."""
    if channel is Channel.SCORE:
        return world.grant(purpose=purpose)
    if channel is Channel.QUERY:
        item = next(item for item in world.items() if item.field == "months")
        items = [item.model_copy(update={"ops": (Question.BAND,)})]
        return world.watch_grant(channel=channel, purpose=purpose, items=items)
    return world.watch_grant(channel=channel, purpose=purpose)


def said_of(world: WatchWorld, kind: type[Any], channel: Channel) -> dict[str, Any]:
    if kind is ScoreRequest:
        return {"channel": channel, "model": world.manifest.digest()}
    return {"channel": channel} | (WATCHED if kind is WatchRequest else ASKED)


def state(world: WatchWorld, grant: str) -> tuple[int, int, int]:
    """What must not move: uses, watches that are kept, looks at values."""
    from sqlalchemy import func, select

    from clients.store import WatchRow

    store = world.stores["power"]
    with store.reading() as session:
        kept = session.scalar(select(func.count()).select_from(WatchRow)) or 0
    entries = AuditLog(world.homes["power"], store).entries()
    looks = sum(entry.action is Action.WATCHED for entry in entries)
    return Debits(store).uses(grant)[0], kept, looks


@pytest.mark.parametrize(
    ("kind", "channel"),
    [(ScoreRequest, Channel.SCORE), (WatchRequest, Channel.WATCH)],
    ids=["score", "watch"],
)
@pytest.mark.parametrize("purpose", list(Purpose))
def test_what_is_asked_for_another_purpose_than_granted_is_refused_by_name(
    world: WatchWorld, kind: type[Any], channel: Channel, purpose: Purpose
) -> None:
    mine = DECISION if channel is Channel.SCORE else MONITORING
    grant = granted(world, channel, mine)
    before = state(world, grant)
    entered = world.forged(kind, grant, **said_of(world, kind, channel) | {"purpose": purpose})
    if purpose is mine:
        assert entered is None
        return
    assert entered is not None
    assert (entered.check, entered.reason) == (Check.PURPOSE, Reason.PURPOSE_NOT_ALLOWED)
    assert state(world, grant) == before


@pytest.mark.parametrize(
    ("kind", "channel", "purpose"),
    [
        (ScoreRequest, Channel.SCORE, TRAINING),
        (WatchRequest, Channel.WATCH, TRAINING),
        (WatchRequest, Channel.WATCH, DECISION),
    ],
)
def test_a_purpose_that_the_channel_does_not_serve_is_refused_though_granted_and_offered(
    world: WatchWorld, kind: type[Any], channel: Channel, purpose: Purpose
) -> None:
    grant = granted(world, channel, purpose)
    before = state(world, grant)
    entered = world.forged(kind, grant, **said_of(world, kind, channel))
    assert entered is not None
    assert (entered.check, entered.reason) == (Check.PURPOSE, Reason.PURPOSE_NOT_ALLOWED)
    assert state(world, grant) == before


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (VerificationRequest, Channel.VERIFY),
        (ScoreRequest, Channel.SCORE),
        (WatchRequest, Channel.WATCH),
    ],
    ids=["verify", "score", "watch"],
)
@pytest.mark.parametrize("channel", list(Channel))
def test_a_grant_opens_its_own_channel_only(
    world: WatchWorld, kind: type[Any], own: Channel, channel: Channel
) -> None:
    grant = granted(world, channel, MONITORING)
    before = state(world, grant)
    entered = world.forged(kind, grant, **said_of(world, kind, own))
    if channel is own:
        assert entered is None
        return
    assert entered is not None
    assert (entered.check, entered.reason) == (Check.QUESTION, Reason.CHANNEL)
    assert state(world, grant) == before


def test_the_bank_s_own_node_says_so_before_anything_is_asked(world: WatchWorld) -> None:
    world.frames.clear()
    score = world.grant(purpose=TRAINING)
    with pytest.raises(Refused, match="credit-model-training is none that scores serve"):
        world.scorer().score(Wanted(score, job=world.manifest.job))
    with pytest.raises(Refused, match="not one to score with"):
        world.scorer().score(Wanted(world.watch_grant(), job=world.manifest.job))
    question = {"dataset": DATASET["power"]} | {k: v for k, v in WATCHED.items() if k != "rule"}
    for grant, words in (
        (world.grant(purpose=MONITORING), "the grant is for score"),
        (world.watch_grant(channel=Channel.VERIFY), "the grant is for verify"),
        (world.watch_grant(purpose=DECISION), "credit-decision is none to watch for"),
    ):
        with pytest.raises(Refused, match=words):
            world.watcher.add(WatchWanted(grant, "power", "arrears-2", question))
    assert world.frames == []


def test_a_draft_of_a_purpose_that_the_channel_does_not_serve_is_refused(world: WatchWorld) -> None:
    for channel, purpose in ((Channel.SCORE, TRAINING), (Channel.WATCH, DECISION)):
        with pytest.raises(Refused, match="does not serve the purpose"):
            grants.draft(
                world.homes[BANK],
                {},
                subject=world.firm.uscc,
                wanted=(),
                purpose=purpose,
                channel=channel,
                now=world.now,
            )
