"""Watches on the bank's local API, as test_local_api.py has it of questions (51 to 53)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from clients.audit import AuditLog
from clients.local_api import create_app
from clients.store import WatchRow
from clients.watching import REMOVED
from federation.audit import Action, Receipt, verify_receipt
from tests.acceptance.scores import BANK, DATASET
from tests.acceptance.test_local_api import KEY, TOKEN, Client, is_problem
from tests.acceptance.watches import WatchWorld


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchWorld]:
    world = WatchWorld(tmp_path_factory.mktemp("watch-api"), "scorecard")
    yield world
    world.close()


@pytest.fixture
def world(made: WatchWorld) -> WatchWorld:
    with made.stores["power"].writing(WatchRow) as session:
        for row in session.scalars(select(WatchRow).where(WatchRow.ended.is_(None))):
            row.ended = "test"
    made.is_away = made.is_lost = False
    made.months(0)
    return made


@pytest.fixture
def client(world: WatchWorld) -> Client:
    home, store = world.homes[BANK], world.stores[BANK]
    return Client(create_app(home, store, world, token=TOKEN, now=world.clock))


def body(grant: str, **changes: Any) -> dict[str, Any]:
    plain = {
        "grant": grant[:16],
        "provider": "power",
        "rule": "arrears-2",
        "dataset": DATASET["power"],
        "field": "months",
        "op": "compare",
        "comparison": "ge",
        "arg": "2",
        "severity": "critical",
        "debounce_s": 0,
    }
    return plain | changes


def test_a_watch_is_made_tells_and_ends_with_proof_of_each(
    world: WatchWorld, client: Client
) -> None:
    grant = world.watch_grant()
    posted = client.post("/v1/watches", json=body(grant))
    assert posted.status_code == 201
    entry = posted.json()
    assert (entry["grant"], entry["rule"], entry["severity"]) == (grant, "arrears-2", "critical")
    assert (entry["ended"], entry["is_told"], entry["debounce_s"]) == (None, False, 0)
    path = f"/v1/watches/{entry['id']}"
    assert client.get(path).json() == entry | {"alerts": []}
    assert is_problem(client.get(f"{path}/receipt")).status == 404

    assert world.months(2) == 1
    (alert,) = client.get(path).json()["alerts"]
    assert alert == client.get("/v1/alerts?limit=1").json()["items"][0]
    assert (alert["watch"], alert["rule"], alert["provider"]) == (entry["id"], "arrears-2", "power")
    trust = world.homes[BANK].trust()
    told = client.get(f"/v1/alerts/{alert['id']}/receipt").json()
    assert verify_receipt(Receipt.model_validate(told), trust).entry.object == alert["id"]

    ended = client.post(f"{path}/end")
    assert (ended.status_code, ended.json()["ended"], ended.json()["is_told"]) == (
        200,
        REMOVED,
        True,
    )
    proven = verify_receipt(
        Receipt.model_validate(client.get(f"{path}/receipt").json()), trust
    ).entry
    assert (proven.action, proven.object) == (Action.WATCH_ENDED, entry["id"])
    assert client.get(path).json() == ended.json() | {"alerts": [alert]}
    assert world.months(0) == world.months(3) == 0
    assert client.get(path).json()["alerts"] == [alert]


def test_nothing_that_is_shown_names_the_firm_or_a_value(world: WatchWorld, client: Client) -> None:
    made = client.post("/v1/watches", json=body(world.watch_grant())).json()
    world.months(3)
    shown = [
        client.get(path).text
        for path in ("/v1/watches", f"/v1/watches/{made['id']}", "/v1/alerts", "/v1/openapi.json")
    ]
    assert all(world.firm.uscc not in text and '"3.0"' not in text for text in shown)


def test_a51_one_key_signs_up_once_and_ends_once(world: WatchWorld, client: Client) -> None:
    grant = world.watch_grant()
    first = client.post("/v1/watches", json=body(grant), headers=KEY)
    again = client.post("/v1/watches", json=body(grant), headers=KEY)
    assert (again.status_code, again.content) == (201, first.content)
    other = client.post("/v1/watches", json=body(grant, arg="3"), headers=KEY)
    assert is_problem(other).status == 422
    path = f"/v1/watches/{first.json()['id']}/end"
    assert is_problem(client.post(path, headers=KEY)).status == 422
    assert client.get(f"/v1/watches/{first.json()['id']}").json()["ended"] is None
    mine = {"Idempotency-Key": "e" * 20}
    done = client.post(path, headers=mine)
    assert client.post(path, headers=mine).content == done.content
    log = AuditLog(world.homes["power"], world.stores["power"])
    ends = [e for e in log.entries() if e.object == first.json()["id"]]
    assert [e.action for e in ends].count(Action.WATCH_ENDED) == 1


def test_an_end_that_the_owner_did_not_get_says_so_until_it_did(
    world: WatchWorld, client: Client
) -> None:
    made = client.post("/v1/watches", json=body(world.watch_grant())).json()
    world.is_lost = True
    ended = client.post(f"/v1/watches/{made['id']}/end")
    assert (ended.status_code, ended.json()["ended"], ended.json()["is_told"]) == (
        200,
        REMOVED,
        False,
    )
    world.is_lost = False
    assert world.watcher.tell_ends() == 1
    assert client.get(f"/v1/watches/{made['id']}").json()["is_told"] is True


def test_a52_a_refused_sign_up_is_one_problem_whatever_the_reason(
    world: WatchWorld, client: Client
) -> None:
    revoked, used = world.watch_grant(), world.watch_grant(max_uses=1)
    world.revoke(revoked)
    assert client.post("/v1/watches", json=body(used)).status_code == 201
    refused = [
        client.post("/v1/watches", json=body(revoked)),
        client.post("/v1/watches", json=body(used)),
        client.post("/v1/watches", json=body(world.watch_grant(), arg="2.5")),
        client.post("/v1/watches", json=body(world.watch_grant(), field="usage")),
    ]
    assert {is_problem(item).status for item in refused} == {403}
    assert len({item.content for item in refused}) == 1
    reasons = {entry.reason for entry in world.refusals("power")[-4:]}
    assert len(reasons) == 4  # its own log knows them apart


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/watches/" + "0" * 64, 404),
        ("POST", "/v1/watches/" + "0" * 64 + "/end", 404),
        ("GET", "/v1/watches/" + "0" * 12, 422),
        ("GET", "/v1/watches?cursor=zzz", 400),
        ("GET", "/v1/alerts?cursor=MTIz", 400),
        ("GET", "/v1/alerts/" + "0" * 64 + "/receipt", 404),
        ("DELETE", "/v1/watches/" + "0" * 64, 405),
        ("POST", "/v1/watches", 422),
    ],
)
def test_a52_everything_but_success_is_a_problem(
    client: Client, method: str, path: str, status: int
) -> None:
    assert is_problem(client.request(method, path)).status == status
    bare = client.request(method, path, headers={"authorization": "Bearer " + "u" * 43})
    assert is_problem(bare).status == 401


def test_a_grant_of_another_channel_is_refused_by_name(world: WatchWorld, client: Client) -> None:
    before = len(world.frames)
    problem = is_problem(client.post("/v1/watches", json=body(world.grant())))
    assert problem.status == 403
    assert "the grant is for score" in problem.detail
    assert len(world.frames) == before


def test_a53_pages_of_watches_and_alerts_do_not_move(world: WatchWorld, client: Client) -> None:
    grant = world.watch_grant(max_uses=100)
    for _ in range(4):
        client.post("/v1/watches", json=body(grant))
    assert world.months(2) == 4  # all at one second
    for name in ("watches", "alerts"):
        whole = [item["id"] for item in client.get(f"/v1/{name}?limit=200").json()["items"]]
        page = client.get(f"/v1/{name}?limit=2").json()
        seen = [item["id"] for item in page["items"]]
        world.now += timedelta(seconds=1)
        if name == "watches":
            client.post("/v1/watches", json=body(grant))  # comes in between
        while page["next"]:
            page = client.get(f"/v1/{name}?limit=2&cursor={page['next']}").json()
            seen += [item["id"] for item in page["items"]]
        assert seen == whole
        assert len(whole) == len(set(whole)) >= 4
