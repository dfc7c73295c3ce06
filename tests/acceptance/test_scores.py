"""Scores of single enterprises under their grants (issue 6, item 5)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import select

from clients.drift import compare, drift
from clients.local_api import create_app
from clients.scorer import Scored, Wanted
from clients.store import UseOutboxRow
from federation import sealing
from federation.audit import Reason, verify_receipt
from federation.catalogue import Assurance, Question
from federation.errors import IntegrityError, LianmoError, Refused, Unavailable
from federation.grants import Channel
from federation.objects import Purpose, Usage
from federation.scoring import ScorePart
from federation.verification import Reply
from protocols.masked_total import MODULUS
from tests.acceptance.consent import Firm
from tests.acceptance.scores import BANK, CODES, CUSTOMERS, DATA, DEPARTMENTS, ROWS, ScoreWorld


@pytest.fixture(scope="module", params=["scorecard", "trees"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScoreWorld]:
    world = ScoreWorld(tmp_path_factory.mktemp(request.param), request.param)
    yield world
    world.close()


def expected(world: ScoreWorld) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Points of all enterprises with all columns in one place, as in training."""
    return world.model.score({(o, n): c for (o, n), c in DATA.all_columns().items()}, ROWS)


def test_a_score_is_the_model_s_own_points(world: ScoreWorld) -> None:
    points = expected(world)
    for row in (3, 6, 17, CUSTOMERS - 1):  # 6 has no record at one department
        firm = Firm(CODES[row].decode()).certified_by(world.homes["licence"], Assurance.A3)
        scored = world.scorer().score(Wanted(world.grant(firm=firm), job=world.manifest.job))
        assert scored.score is not None
        assert scored.score.points == points[row]
        assert scored.score.model == world.model.digest().hex()


def test_what_the_bank_states_of_an_applicant_counts_like_a_record(world: ScoreWorld) -> None:
    row = ROWS - 1  # no customer: the bank has no record
    firm = Firm(CODES[row].decode()).certified_by(world.homes["licence"], Assurance.A3)
    own = {c.name: float(c.values[row]) for c in DATA.columns[BANK]}  # type: ignore[union-attr] # numbers
    scored = world.scorer().score(Wanted(world.grant(firm=firm), own=own, job=world.manifest.job))
    assert scored.score is not None
    assert scored.score.points == expected(world)[row]


def test_the_score_is_signed_and_every_part_has_a_receipt(world: ScoreWorld) -> None:
    scored = world.scorer().score(Wanted(world.grant(), job=world.manifest.job))
    assert scored.envelope is not None
    trust = world.homes["tax"].trust()
    found = trust.verify(scored.envelope, type(scored.score), Usage.RUN, world.now, org=BANK)  # type: ignore[arg-type] # it is not None
    assert found.object == scored.score
    assert scored.receipts.keys() == set(DEPARTMENTS)
    for org, receipt in scored.receipts.items():
        assert verify_receipt(receipt, trust).org == org
    assert scored.score is not None
    reasons = scored.score.reasons
    assert 0 < len(reasons) <= 4
    assert all(reason.zh.endswith("使评分降低") for reason in reasons)
    for org in DEPARTMENTS:  # the enterprise will be told by each department
        with world.stores[org].reading() as session:
            last = session.scalars(select(UseOutboxRow).order_by(UseOutboxRow.seq.desc())).first()
            assert last is not None
            assert last.said["channel"] == "score"


def parts_of(world: ScoreWorld, change: Any) -> None:
    """Score while `change` sees every department's part."""
    key = world.homes[BANK].key(Usage.ENCRYPT)

    def look(org: str, sealed: bytes) -> bytes:
        reply = Reply.from_bytes(sealing.unseal(sealing.ANSWER, sealed, sender=org, key=key))
        return change(org, reply, sealed)

    world.change = look
    try:
        world.scorer().score(Wanted(world.grant(), job=world.manifest.job))
    finally:
        world.change = lambda org, sealed: sealed


@pytest.mark.parametrize("world", ["scorecard"], indirect=True)
def test_no_department_s_points_show_in_what_it_sends(world: ScoreWorld) -> None:
    sent: dict[str, list[int]] = {org: [] for org in DEPARTMENTS}

    def see(org: str, reply: Reply, sealed: bytes) -> bytes:
        part = ScorePart.from_bytes(base64.b64decode(reply.extra))
        sent[org].append(int(part.masked or "", 16))
        return sealed

    for _ in range(3):
        parts_of(world, see)
        world.now += timedelta(seconds=1)
    totals = {sum(pair) % MODULUS for pair in zip(*sent.values(), strict=True)}
    assert len(totals) == 1  # the same enterprise: the same total
    for numbers in sent.values():
        assert len(set(numbers)) == 3  # under other masks each time
        # the points are within +-2^20; a uniform word is there with probability 2^-43
        assert all(2**20 < number < MODULUS - 2**20 for number in numbers)


def test_a_part_that_was_not_signed_ends_the_score(world: ScoreWorld) -> None:
    def forge(org: str, reply: Reply, sealed: bytes) -> bytes:
        if org != "tax":
            return sealed
        part = ScorePart.from_bytes(base64.b64decode(reply.extra))
        other = (
            {"masked": f"{(int(part.masked, 16) + 1) % MODULUS:016x}"}
            if part.masked
            else {"bits": (part.bits or "").translate(str.maketrans("01", "10"))}
        )
        forged = part.model_copy(update=other)
        extra = base64.b64encode(forged.to_bytes()).decode()
        changed = reply.model_copy(update={"extra": extra})
        recipient = world.homes[BANK].key(Usage.ENCRYPT).spki
        return sealing.seal(sealing.ANSWER, changed.to_bytes(), sender=org, recipient=recipient)

    with pytest.raises(IntegrityError, match="tax"):
        parts_of(world, forge)


def test_a_department_that_refuses_ends_the_score(world: ScoreWorld) -> None:
    before = len(world.refusals("power"))
    grant = world.grant(max_uses=1)
    world.scorer().score(Wanted(grant, job=world.manifest.job))
    with pytest.raises(Refused, match="refuses its part"):
        world.scorer().score(Wanted(grant, job=world.manifest.job))
    assert len(world.refusals("power")) == before + 1
    assert world.refusals("power")[-1].reason is Reason.USES
    assert world.scorer().page(None, 1)[0].score is None


def test_a_department_that_is_away_leaves_no_score_and_no_total(world: ScoreWorld) -> None:
    class Half:
        def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
            if provider == "power":
                raise Unavailable("its node is not connected", party=provider)
            return world.ask_sealed(provider, sealed)

    with pytest.raises(Unavailable, match="power"):
        world.scorer(Half()).score(Wanted(world.grant()))
    last = world.scorer().page(None, 1)[0]
    assert (last.score, last.receipts) == (None, {})


def asked_anyway(world: ScoreWorld, grant: str, monkeypatch: pytest.MonkeyPatch) -> Reason | None:
    """A bank that does not look at its own grant; the reason in the tax bureau's log."""
    monkeypatch.setattr("clients.scorer.require_covers", lambda *_: None)
    before = len(world.refusals("tax"))
    with pytest.raises(LianmoError):
        world.scorer().score(Wanted(grant, job=world.manifest.job))
    found = world.refusals("tax")[before:]
    assert len(found) == 1
    return found[0].reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "1" * 64}, Reason.NOT_GRANTED),
        ({"purpose": Purpose.POST_LOAN_MONITORING}, None),
        ({"only": "tax"}, Reason.NOT_GRANTED),
        ({"without": 0}, Reason.NOT_GRANTED),
    ],
    ids=["other model", "a purpose that scores serve too", "other departments", "a field less"],
)
def test_what_the_grant_does_not_open_is_refused_by_the_department(
    world: ScoreWorld,
    changes: dict[str, Any],
    reason: Reason | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = world.items()
    if "only" in changes:
        changes = {"items": [item for item in items if item.provider == changes["only"]]}
    if "without" in changes:
        read = {f.name for f in _read(world, "tax")}
        left_out = next(item for item in items if item.field in read)
        changes = {"items": [item for item in items if item is not left_out]}
    if reason is None:
        assert world.scorer().score(Wanted(world.grant(**changes), job=world.manifest.job)).score
        return
    assert asked_anyway(world, world.grant(**changes), monkeypatch) is reason


def _read(world: ScoreWorld, org: str) -> list[Any]:
    from federation.scoring import used_fields

    names = used_fields(world.model, org)
    return [column for column in DATA.columns[org] if column.name in names]


def test_a_grant_of_another_channel_or_time_is_refused(
    world: ScoreWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = world.now
    ended = world.grant()
    world.now += timedelta(days=31)
    world.refresh()
    world.firm = Firm(world.firm.uscc).certified_by(world.homes["licence"], Assurance.A3, world.now)
    assert asked_anyway(world, ended, monkeypatch) is Reason.EXPIRED
    revoked = world.grant()
    world.revoke(revoked)
    assert asked_anyway(world, revoked, monkeypatch) is Reason.REVOKED
    months = next(i for i in world.items() if i.field == "months")
    verify = world.grant(
        channel=Channel.VERIFY,
        model=None,
        items=[months.model_copy(update={"ops": (Question.COMPARE,), "thresholds": ("1",)})],
    )
    before = len(world.refusals("power"))
    monkeypatch.setattr("clients.scorer.require_covers", lambda *_: None)
    with pytest.raises(LianmoError):
        world.scorer().score(Wanted(verify, job=world.manifest.job))
    assert world.refusals("power")[before:][0].reason is Reason.CHANNEL
    assert world.now > now


def test_a_request_that_comes_twice_is_answered_once(world: ScoreWorld) -> None:
    """The same mask over a number that has changed would show the difference."""
    world.frames.clear()
    world.scorer().score(Wanted(world.grant(), job=world.manifest.job))
    org, frame = world.frames[0]
    before = len(world.refusals(org))
    world.ask_sealed(org, frame)
    assert world.refusals(org)[before:][0].reason is Reason.REPLAYED


def test_the_page_for_the_enterprise_says_the_score_in_both_languages(world: ScoreWorld) -> None:
    scored = world.scorer().score(Wanted(world.grant()))
    assert scored.score is not None
    page = world.scorer().page_of(scored)
    for word in (str(scored.score.points), "人工复核", "have a person look at it", "tax 某单位"):
        assert word in page
    for reason in scored.score.reasons:
        assert reason.zh in page
        assert reason.en in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched


def test_a_batch_gives_what_there_is(world: ScoreWorld) -> None:
    good, used = world.grant(), world.grant(max_uses=1)
    world.scorer().score(Wanted(used))
    wanted = [Wanted(good), Wanted(used), Wanted(good, applicant=CODES[9].decode())]
    found = world.scorer().score_all(wanted)
    assert isinstance(found[0], Scored)
    assert all(isinstance(item, Refused) for item in found[1:])


def test_the_api_scores_once_for_one_key(world: ScoreWorld) -> None:
    home, store = world.homes[BANK], world.stores[BANK]
    app = create_app(home, store, world, token="t" * 43, now=world.clock)
    grant = world.grant(max_uses=1)
    headers = {"Authorization": "Bearer " + "t" * 43}
    body = {"grant": grant, "applicant": world.firm.uscc}

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            posted = [
                await client.post(
                    "/v1/scores", json=body, headers=headers | {"Idempotency-Key": key * 20}
                )
                for key in "kkl"
            ]
            return [*posted, await client.get("/v1/scores", headers=headers)]

    first, second, again, listed = asyncio.run(send())
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    assert again.status_code == 403
    assert again.headers["content-type"] == "application/problem+json"
    assert [item["points"] for item in listed.json()["items"][:2]] == [None, first.json()["points"]]


def test_drift_is_told_by_month(world: ScoreWorld) -> None:
    now = world.now
    world.scorer().score(Wanted(world.grant()))
    found = drift(world.homes[BANK], world.stores[BANK], world.manifest.job)
    assert found.baseline == found.months[0].month  # no training scores were opened
    assert found.months[0].verdict == "few"
    assert found.months[-1].month == now.strftime("%Y-%m")


def test_a_shift_of_the_population_shows() -> None:
    rng = np.random.default_rng(1)
    trained, same, worse = (rng.normal(mean, 40, 2000) for mean in (600, 600, 540))
    found = compare("job", "training", trained, [("2026-01", same), ("2026-02", worse)])
    assert [month.verdict for month in found.months] == ["stable", "shifted"]
