"""The bank's local API: acceptance tests 51 to 53 of GOVERNANCE.md."""

from __future__ import annotations

import asyncio
import secrets
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients import grants
from clients.forgetting import forget_old
from clients.home import Home
from clients.local_api import _listening, create_app, token_of
from clients.store import IdempotencyRow
from federation.api import Problem
from federation.errors import NotKept, Refused, Unavailable
from tests.acceptance.consent import FIRM, World

TOKEN = "t" * 43
KEY = {"Idempotency-Key": "0123456789abcdef"}


class Client:
    """Requests to an ASGI application in this process."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        return asyncio.run(self._send(method, path, how))

    async def _send(self, method: str, path: str, how: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        usual = {"authorization": f"Bearer {TOKEN}", "Idempotency-Key": secrets.token_hex(16)}
        given = usual | how.pop("headers", {})
        headers = {name: value for name, value in given.items() if value is not None}
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            return await client.request(method, path, headers=headers, **how)

    def get(self, path: str, **how: Any) -> httpx.Response:
        return self.request("GET", path, **how)

    def post(self, path: str, **how: Any) -> httpx.Response:
        return self.request("POST", path, **how)


class Api:
    """The bank's API over a world; `held` counts what its provider was asked."""

    def __init__(self, world: World) -> None:
        self.world, self.asked = world, 0
        self.lost = False
        home, store = world.homes["bank-a"], world.stores["bank-a"]
        self.app = create_app(home, store, self, token=TOKEN, now=lambda: world.now)
        self.client = Client(self.app)
        self.grant = world.grant(max_uses=100)
        grants.hold(home, store, self.grant, world.now)

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        self.asked += 1
        if self.lost:
            raise Unavailable("did not answer in time", party=provider)
        return self.world.answer_to(sealed)

    def body(self, **changes: Any) -> dict[str, Any]:
        plain = {
            "grant": self.grant.digest[:12],
            "provider": "tax",
            "dataset": "firms",
            "field": "revenue",
            "op": "compare",
            "comparison": "ge",
            "arg": "1000000",
        }
        return {k: v for k, v in (plain | changes).items() if v is not None}

    def post(self, body: Any, path: str = "", **headers: str) -> Any:
        return self.client.post(f"/v1/verifications{path}", json=body, headers=headers)


@pytest.fixture
def api(world: World) -> Api:
    return Api(world)


def is_problem(response: Any) -> Problem:
    """The problem that any answer but 2xx has to be."""
    assert response.headers["content-type"].startswith("application/problem+json")
    problem = Problem.model_validate(response.json())
    assert problem.status == response.status_code
    for leak in ("Traceback", "SELECT", "sqlite", "/tmp", "/work", ".py", FIRM):  # noqa: S108 - looked for
        assert leak not in response.text
    return problem


def test_a_question_is_answered_and_kept_with_its_receipt(api: Api) -> None:
    made = api.post(api.body())
    assert (made.status_code, made.json()["result"]) == (201, "match")
    one = api.client.get(f"/v1/verifications/{made.json()['id']}")
    assert one.json() == made.json()
    receipt = api.client.get(f"/v1/verifications/{made.json()['id']}/receipt")
    assert receipt.json()["org"] == "tax"
    refused = api.post(api.body(arg="12"))
    assert (refused.status_code, refused.json()["result"]) == (201, "refused")
    assert "as_of" not in {k for k, v in refused.json().items() if v is not None}
    assert is_problem(api.client.get(f"/v1/verifications/{refused.json()['id']}/receipt"))
    held = api.client.get("/v1/grants").json()["items"]
    assert [(item["digest"], item["state"]) for item in held] == [(api.grant.digest, "active")]


def test_a_batch_goes_on_where_one_question_fails(api: Api) -> None:
    bodies = [api.body(), api.body(grant="f" * 12), api.body(arg="5000000"), api.body(arg="7")]
    found = api.post({"items": bodies}, "/batches").json()["items"]
    words = [
        i["verification"]["result"] if i["verification"] else i["problem"]["status"] for i in found
    ]
    assert words == ["match", 404, "no_match", "refused"]


@pytest.mark.parametrize("key", [None, "", "short", "with spaces " * 2])
def test_a51_what_comes_without_a_key_is_not_asked(api: Api, key: str | None) -> None:
    for body, path in ((api.body(), ""), ({"items": [api.body()]}, "/batches")):
        headers = {"Idempotency-Key": key}
        answer = api.client.post(f"/v1/verifications{path}", json=body, headers=headers)
        assert is_problem(answer).status == 422
    assert (api.asked, api.world.uses(api.grant)) == (0, 0)


def test_a51_one_key_has_one_effect_and_another_body_is_refused(api: Api) -> None:
    first = api.post(api.body(), **KEY)
    again = api.post(api.body(), **KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert api.asked == 1
    other = api.post(api.body(arg="5000000"), **KEY)
    assert is_problem(other).status == 422
    elsewhere = api.post({"items": [api.body()]}, "/batches", **KEY)
    assert is_problem(elsewhere).status == 422
    assert (api.asked, api.world.uses(api.grant)) == (1, 1)


def test_a51_the_key_survives_a_restart_of_the_api(api: Api) -> None:
    first = api.post(api.body(), **KEY)
    restarted = Api.__new__(Api)
    restarted.__dict__.update(api.__dict__)
    home, store = api.world.homes["bank-a"], api.world.stores["bank-a"]
    app = create_app(home, store, api, token=TOKEN, now=lambda: api.world.now)
    client = Client(app)
    again = client.post("/v1/verifications", json=api.body(), headers=KEY)
    assert (again.content, api.asked) == (first.content, 1)


def test_a51_of_two_at_once_one_is_put(api: Api) -> None:
    gate = threading.Event()
    answer_to = api.world.answer_to

    def slowly(sealed: bytes, sender: str = "bank-a") -> bytes:
        gate.wait(20)
        return answer_to(sealed, sender)

    api.world.answer_to = slowly  # type: ignore[method-assign] # the provider takes its time
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(api.post, api.body(), **KEY)
        while not api.asked:
            pass
        second = api.post(api.body(), **KEY)
        gate.set()
    assert is_problem(second).status == 409
    assert (first.result().status_code, api.asked) == (201, 1)


def test_a51_a_question_that_a_crash_cut_off_is_not_put_again(api: Api) -> None:
    store = api.world.stores["bank-a"]
    first = api.post(api.body(), **KEY)
    with store.writing(IdempotencyRow) as session:
        session.get_one(IdempotencyRow, KEY["Idempotency-Key"]).status = None
    home = api.world.homes["bank-a"]
    app = create_app(home, store, api, token=TOKEN, now=lambda: api.world.now)
    client = Client(app)
    again = client.post("/v1/verifications", json=api.body(), headers=KEY)
    assert first.status_code == 201
    assert is_problem(again).status == 503
    assert api.asked == 1


def test_a51_an_outcome_that_the_disk_did_not_take_is_an_interrupted_one(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, answer_to = api.world.stores["bank-a"], api.world.answer_to

    def then_full(sealed: bytes, sender: str = "bank-a") -> bytes:
        monkeypatch.setattr(store, "writing", full)
        return answer_to(sealed, sender)

    def full(*tables: Any) -> Any:
        raise NotKept("the database cannot be written", todo="see that its disk has room")

    api.world.answer_to = then_full  # type: ignore[method-assign] # the bank's disk fills up
    told = is_problem(api.post(api.body(), **KEY))
    assert (told.status, told.party, bool(told.todo)) == (503, "bank-a", True)
    monkeypatch.undo()
    for _ in range(2):
        again = is_problem(api.post(api.body(), **KEY))
        assert (again.status, again.party) == (503, "bank-a")
        assert "may have cost a use" in again.detail
    assert api.asked == 1


def test_a51_an_answer_that_comes_after_the_next_start_is_the_interrupted_one_too(
    api: Api,
) -> None:
    """A node is started again while the process before it still waits for an answer."""
    home, store = api.world.homes["bank-a"], api.world.stores["bank-a"]
    answer_to, clients = api.world.answer_to, list[Client]()

    def meanwhile(sealed: bytes, sender: str = "bank-a") -> bytes:
        app = create_app(home, store, api, token=TOKEN, now=lambda: api.world.now)
        clients.append(Client(app))
        return answer_to(sealed, sender)

    api.world.answer_to = meanwhile  # type: ignore[method-assign] # the next one starts
    first = api.post(api.body(), **KEY)
    again = clients[0].post("/v1/verifications", json=api.body(), headers=KEY)
    assert is_problem(first).status == 503
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert api.asked == 1


def test_a_process_that_ends_late_leaves_the_next_one_s_socket(tmp_path: Path) -> None:
    home = Home.create(
        tmp_path / "b", org="bank-a", kind="bank", name="甲银行", uscc=FIRM, region="厦门"
    )
    before, after = _listening(home, None), _listening(home, None)
    before.__enter__()
    after.__enter__()
    before.__exit__(None, None, None)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(home.path / "api.sock"))
    after.__exit__(None, None, None)
    assert not (home.path / "api.sock").exists()


def test_a51_what_did_not_arrive_is_kept_under_its_key_too(api: Api) -> None:
    api.lost = True
    assert is_problem(api.post(api.body(), **KEY)).party == "tax"
    api.lost = False
    assert is_problem(api.post(api.body(), **KEY)).status == 503
    assert api.asked == 1
    assert api.client.get("/v1/verifications").json()["items"][0]["result"] is None


def test_a_bank_keeps_answers_no_longer_than_the_grant_says(api: Api) -> None:
    made = api.post(api.body()).json()
    verifier = api.world.verifier()
    bank = api.world.homes["bank-a"], api.world.stores["bank-a"]
    api.world.now += timedelta(days=29, hours=23)
    assert forget_old(*bank, api.world.now) == 0
    assert verifier.get(made["id"]).result is not None
    api.world.now += timedelta(hours=1)
    assert forget_old(*bank, api.world.now) == 1
    assert api.client.get(f"/v1/verifications/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/verifications/" + "0" * 32, 404),
        ("GET", "/v1/verifications/..%2f..%2fetc", 404),
        ("GET", "/v1/verifications/xyz", 422),
        ("DELETE", "/v1/verifications", 405),
        ("GET", "/v1/verifications?cursor=zzz", 400),
        ("GET", "/v1/verifications?limit=0", 422),
        ("POST", "/v1/verifications", 422),
    ],
)
def test_a52_everything_but_success_is_a_problem_that_leaks_nothing(
    api: Api, method: str, path: str, status: int
) -> None:
    assert is_problem(api.client.request(method, path)).status == status


def test_a52_without_the_token_or_with_too_much_nothing_is_served(api: Api) -> None:
    for header in ("", "Bearer", "Bearer " + "u" * 43, "Basic " + TOKEN):
        response = api.client.get("/v1/grants", headers={"authorization": header})
        assert is_problem(response).status == 401
    large = api.client.post("/v1/verifications", content=b" " * (300 << 10))
    assert is_problem(large).status == 413


def test_a52_a_value_that_is_not_well_formed_is_not_repeated(api: Api) -> None:
    response = api.post(api.body(arg="canary" * 60))
    assert is_problem(response).status == 422
    assert "canary" not in response.text


def test_a52_the_token_is_in_a_file_for_the_account_alone(world: World) -> None:
    home = world.homes["bank-a"]
    token = token_of(home)
    assert len(token) >= 43
    assert token_of(home) == token
    file = home.path / "api.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(Refused, match="others could read"):
        token_of(home)


@pytest.mark.parametrize("token", ["", "\n", "secret"])
def test_a_file_without_a_token_opens_to_nobody(world: World, token: str) -> None:
    file = world.homes["bank-a"].path / "api.token"
    file.touch(0o600)
    file.write_text(token)
    with pytest.raises(Refused, match="holds no token"):
        token_of(world.homes["bank-a"])


def test_a53_a_page_stays_where_it_is_while_questions_come_in(api: Api) -> None:
    for _ in range(5):
        api.post(api.body())
    first = api.client.get("/v1/verifications?limit=2").json()
    api.post(api.body())
    seen = [item["id"] for item in first["items"]]
    cursor = first["next"]
    while cursor:
        page = api.client.get(f"/v1/verifications?limit=2&cursor={cursor}").json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert len(seen) == len(set(seen)) == 5
