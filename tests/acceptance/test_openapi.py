"""The bank's local API against what its OpenAPI document says (acceptance tests 53 and 54).

Every route, of questions, scores and watches: behind the API stand a trained model, grants and the
departments' own nodes, so that a good request goes all the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.local_api import create_app
from federation.catalogue import Question
from federation.grants import Channel
from federation.objects import Purpose
from tests.acceptance.scores import BANK, DATASET, GRID
from tests.acceptance.test_local_api import TOKEN, Client, is_problem
from tests.acceptance.watches import WatchWorld
from tests.openapi_fuzz import draw, routes

EXAMPLES = 30  # of each route
ROUTES = [
    ("get", "/v1/health"),
    ("get", "/v1/grants"),
    ("post", "/v1/verifications"),
    ("post", "/v1/verifications/batches"),
    ("get", "/v1/verifications"),
    ("get", "/v1/verifications/{id}"),
    ("get", "/v1/verifications/{id}/receipt"),
    ("post", "/v1/scores"),
    ("post", "/v1/scores/batches"),
    ("get", "/v1/scores"),
    ("get", "/v1/scores/{id}"),
    ("post", "/v1/watches"),
    ("get", "/v1/watches"),
    ("get", "/v1/watches/{id}"),
    ("get", "/v1/watches/{id}/receipt"),
    ("post", "/v1/watches/{id}/end"),
    ("get", "/v1/alerts"),
    ("get", "/v1/alerts/{id}/receipt"),
]


class Served:
    """The API with something behind every route."""

    def __init__(self, world: WatchWorld) -> None:
        home, store = world.homes[BANK], world.stores[BANK]
        self.client = Client(create_app(home, store, world, token=TOKEN, now=world.clock))
        months = next(item for item in world.items() if item.field == "months")
        asked = {"ops": (Question.COMPARE,), "thresholds": GRID}
        verify = world.grant(
            channel=Channel.VERIFY,
            model=None,
            purpose=Purpose.CREDIT_DECISION,
            items=[months.model_copy(update=asked)],
            max_uses=10_000,
        )
        score = world.grant(max_uses=10_000)
        question = {
            "grant": verify[:12],
            "provider": "power",
            "dataset": DATASET["power"],
            "field": "months",
            "op": "compare",
            "comparison": "ge",
            "arg": "2",
        }
        applicant = {
            "grant": score[:12],
            "applicant": world.firm.uscc,
            "own": {"balance": 0.5, "age": None},
        }
        watched = question | {"grant": world.watch_grant(max_uses=10_000)[:12], "rule": "arrears"}
        self.good = {"verifications": question, "scores": applicant, "watches": watched}
        world.months(0)
        self.known = {
            name: str(self.client.post(f"/v1/{name}", json=body).json()["id"])
            for name, body in self.good.items()
        }
        assert world.months(2) == 1
        self.known["alerts"] = str(self.client.get("/v1/alerts").json()["items"][0]["id"])
        ended = self.client.post(f"/v1/watches/{self.known['watches']}/end")
        assert ended.json()["is_told"]
        self.document = self.client.get("/v1/openapi.json").json()

    def bodies(self, path: str) -> list[Any]:
        body = self.good.get(path.split("/")[2])
        return [{"items": [body, body]}] if path.endswith("batches") else [body]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    world = WatchWorld(tmp_path_factory.mktemp("openapi"), "scorecard")
    yield Served(world)
    world.close()


def test_the_document_names_every_route_and_no_other(served: Served) -> None:
    assert served.document["openapi"].startswith("3.1")
    assert sorted(routes(served.document)) == sorted(ROUTES)


@pytest.mark.parametrize(("verb", "path"), ROUTES)
def test_a54_nothing_sent_to_any_route_is_an_internal_error(
    served: Served, verb: str, path: str
) -> None:
    met: set[int] = set()
    name = path.split("/")[2]

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(data=st.data())
    def hold(data: st.DataObject) -> None:
        known = {"id": served.known[name]} if name in served.known else {}
        drawn = draw(data, served.document, verb, path, good=served.bodies(path), known=known)
        response = served.client.request(
            drawn.verb,
            drawn.path,
            params=drawn.query,
            content=drawn.content,
            headers={"content-type": drawn.content_type},
        )
        met.add(response.status_code)
        assert response.status_code < 500, (drawn.verb, drawn.path, drawn.content)
        if not response.is_success:
            is_problem(response)

    hold()
    if verb == "post" and "{" not in path:  # drawn nearly always, and not always
        met |= {served.client.post(path, json=body).status_code for body in served.bodies(path)}
    assert met & {200, 201}  # what only a schema refuses would tell nothing of the code behind it


def test_a53_a_page_of_scores_stays_where_it_is_while_scores_come_in(served: Served) -> None:
    def score() -> None:
        assert served.client.post("/v1/scores", json=served.good["scores"]).status_code == 201

    for _ in range(3):
        score()
    whole = served.client.get("/v1/scores?limit=200").json()["items"]
    page = served.client.get("/v1/scores?limit=2").json()
    seen = [item["id"] for item in page["items"]]
    while page["next"]:
        score()
        page = served.client.get(f"/v1/scores?limit=2&before={page['next']}").json()
        seen += [item["id"] for item in page["items"]]
    assert seen == [item["id"] for item in whole]
