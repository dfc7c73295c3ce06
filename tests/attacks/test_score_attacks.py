"""Attacks on scores: numbers written into points, and a department's word that was taken back."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from clients import models
from clients.consent import Consents
from clients.drift import drift
from clients.forgetting import forget_old
from clients.scorer import Wanted
from clients.store import ScoreRow
from federation.audit import Reason
from federation.catalogue import Assurance
from federation.errors import LianmoError, NotFound
from federation.grants import Language, notice
from federation.objects import Decision
from federation.scoring import ScorePart
from federation.tasks.messages import POINTS_LIMIT
from federation.tasks.model_files import part_features_from_json
from federation.tasks.plan import points_limit
from protocols.masked_total import opened
from tests.acceptance.consent import Firm
from tests.acceptance.scores import CODES, DATA, DEPARTMENTS, ScoreWorld

WEIGHTS = {"paid": 1, "months": 1000}  # a digit for each department's feature


@pytest.fixture
def world(tmp_path: Any) -> Iterator[ScoreWorld]:
    world = ScoreWorld(tmp_path, "scorecard")
    yield world
    world.close()


def crafted(world: ScoreWorld) -> dict[str, Any]:
    """Points as a bank may send them at the end of a job: each bin's number, in a digit of its own.
    Returns the definitions of the two features."""
    definitions = {}
    for org in DEPARTMENTS:
        plain = json.loads(world.files[org])
        for feature in plain["features"]:
            weight = WEIGHTS.get(feature["definition"]["name"], 0)
            feature["points"] = [weight * bin_ for bin_ in range(feature["definition"]["bins"])]
            assert max(feature["points"]) < POINTS_LIMIT  # a message that every department takes
        data = json.dumps(plain).encode()
        (world.homes[org].models / f"{world.manifest.job}.json").write_bytes(data)
        for part in part_features_from_json(data):
            definitions[part.definition.name] = part.definition
    return {name: definitions[name] for name in WEIGHTS}


def total(world: ScoreWorld, grant: str) -> int:
    """What the bank opens, whatever its own model is."""
    home, store, scorer = world.homes["bank-a"], world.stores["bank-a"], world.scorer()
    held = Consents(store).get(grant)
    stored = models.of_manifest(home, store, world.manifest.digest())
    numbers = []
    for request in scorer._requests(stored, held).values():
        _, reply = scorer._ask(request, held)
        part = ScorePart.from_bytes(base64.b64decode(reply.extra))
        numbers.append(int(part.masked or "", 16))
    return opened(numbers)


def test_a_total_tells_no_more_bits_than_the_manifest_declares(world: ScoreWorld) -> None:
    """Each department keeps its sum within `score_range`, as for the evaluation of the job; else a
    total of crafted points is a list of every department's bins of one enterprise."""
    bins = crafted(world)
    columns = {column.name: column for org in DEPARTMENTS for column in DATA.columns[org]}
    limit = points_limit(world.manifest.scorecard)
    found = []
    for row in (3, 20, 41, 77):
        firm = Firm(CODES[row].decode()).certified_by(world.homes["licence"], Assurance.A3)
        true = {name: int(bins[name].assign(columns[name])[row]) for name in WEIGHTS}
        got = total(world, world.grant(firm=firm))
        assert abs(got) <= len(DEPARTMENTS) * limit
        found.append({"paid": got % 1000, "months": got // 1000} == true)
        assert found[-1] is (true["months"] == 0)
    assert not all(found)


@pytest.mark.parametrize("who", ["tax", "power"])
def test_no_score_once_a_department_has_withdrawn(world: ScoreWorld, who: str) -> None:
    """Its word on the job was what its part of the model rests on."""
    grant = world.grant()
    assert world.scorer().score(Wanted(grant)).score is not None
    world.stores[who].jobs.set_decision(world.manifest.digest(), Decision.WITHDRAW.value)
    before = len(world.refusals(who))
    with pytest.raises(LianmoError, match="refuses its part"):
        world.scorer().score(Wanted(grant))
    assert [entry.reason for entry in world.refusals(who)[before:]] == [Reason.DECLINED]


def test_nothing_of_a_score_is_kept_longer_than_the_firm_has_granted(world: ScoreWorld) -> None:
    """The department's answers, and whom they are about; the points stay, for drift."""
    store, scorer = world.stores["bank-a"], world.scorer()
    bank = world.homes["bank-a"], store
    made = scorer.score(Wanted(world.grant(retain_answer_days=7)))
    world.now += timedelta(days=7, seconds=-1)
    assert forget_old(*bank, world.now) == 0
    assert scorer.get(made.id).score is not None
    world.now += timedelta(seconds=1)
    assert forget_old(*bank, world.now) == 1
    assert forget_old(*bank, world.now) == 0
    assert scorer.page(None, 10) == []
    with pytest.raises(NotFound):
        scorer.get(made.id)
    with store.reading() as session:
        (row,) = session.scalars(select(ScoreRow))
        left = json.dumps([str(getattr(row, column.name)) for column in ScoreRow.__table__.columns])
    for secret in (world.firm.uscc, made.grant, made.id, *made.receipts):
        assert secret not in left
    assert drift(world.homes["bank-a"], store, world.manifest.job).months[0].scores == 1


@pytest.mark.parametrize("who", ["several departments", "one"])
def test_a_firm_is_told_of_what_a_total_does_not_hide(world: ScoreWorld, who: str) -> None:
    """Of trees the bank gets a bit for each threshold, and one department's total is its own
    points, which name its bins: "the total and the reasons only" would be untrue."""
    items = [item for item in world.items() if who != "one" or item.provider == "tax"]
    grant = Consents(world.stores["bank-a"]).get(world.grant(items=items)).grant
    assert "处于哪个区间" in notice(grant, Language.ZH)
    assert "in which range each item lies" in notice(grant, Language.EN)
    assert "只看到" not in notice(grant, Language.ZH)
