"""The coordinator's whole API against what its OpenAPI document says (acceptance tests 52 and 54).

Every route that a coordinator serves, those of the network, of sealed questions and of witnesses
included, as one organisation whose certificate is good.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.api import Problem
from federation.keyring import Keyring
from federation.objects import Usage
from federation.sealing import ASK, LEAST, OVERHEAD, STEP, USE
from server import verification as relaying
from server.app import create_app
from server.consents import Consents
from server.network import NetworkDesk
from server.verification import SealedRelay
from server.verification import router as sealed_router
from server.witness import WitnessBoard
from server.witness import router as witness_router
from tests.federation.parties import Org, approve
from tests.openapi_fuzz import draw, routes
from tests.server.governing import BANK, COURT, PARTIES, PLATFORM, TAX
from tests.server.test_app import Site

EXAMPLES = 30  # of each route
ROUTES = [
    ("get", "/api/v1/network"),
    ("post", "/api/v1/network"),
    ("get", "/api/v1/health"),
    ("put", "/api/v1/organisations/me"),
    ("get", "/api/v1/organisations"),
    ("get", "/api/v1/organisations/{org}"),
    ("put", "/api/v1/catalogue/{dataset}"),
    ("get", "/api/v1/catalogue"),
    ("post", "/api/v1/jobs"),
    ("get", "/api/v1/jobs"),
    ("get", "/api/v1/jobs/{job}"),
    ("post", "/api/v1/jobs/{job}/approvals"),
    ("post", "/api/v1/jobs/{job}/progress"),
    ("post", "/api/v1/jobs/{job}/stop"),
    ("get", "/api/v1/jobs/{job}/events"),
    ("post", "/api/v1/sealed/{provider}"),
    ("get", "/api/v1/sealed"),
    ("post", "/api/v1/sealed"),
    ("post", "/api/v1/grants/events"),
    ("post", "/api/v1/grants/certificate-revocations"),
    ("get", "/api/v1/grants/status"),
    ("post", "/api/v1/grants/events/wanted"),
    ("post", "/api/v1/grants/events/of"),
    ("get", "/api/v1/grants/notices/{mailbox}"),
    ("put", "/api/v1/witness/checkpoint"),
    ("put", "/api/v1/witness/cosignatures"),
    ("get", "/api/v1/witness"),
]
LEAKS = ("Traceback", "SELECT", "sqlite", "/tmp", "/work", "/home", ".py", "pydantic")  # noqa: S108 - looked for
ONLY = {"wait": ["0", "0.01", "-1", "nan", "1e999", "x"]}
KNOWN = {
    "org": "tax",
    "provider": "tax",
    "dataset": "loans",
    "job": "sme-card-1",
    "mailbox": BANK.key(Usage.ENCRYPT).key_id,
}


class Whole(Site):
    """A coordinator's API with all of its routers; one event loop, as a coordinator has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        home = self.folder / "platform"
        home.mkdir(mode=0o700)
        keyring = Keyring.create(home, PLATFORM.keys, PLATFORM.card)
        for org in (BANK, TAX, COURT):
            keyring.trust_card(org.envelope)
        consents = Consents(
            self.store,
            platform="platform",
            key=lambda: PLATFORM.key(Usage.GRANT),
            trust=lambda: self.trust,
            now=lambda: self.now,
        )
        self.board = WitnessBoard(self.store, lambda: self.trust, lambda: self.now)
        self.app = create_app(
            self.governance,
            self.store,
            self.changes,
            platform="platform",
            card=lambda: PLATFORM.envelope,
            identify=self.org_of,
            now=lambda: self.now,
            network=NetworkDesk(keyring, keyring.trust, lambda: self.now),
            others=[sealed_router(SealedRelay(), consents), witness_router(self.board)],
        )
        self.runner = asyncio.Runner()
        self.register(*PARTIES)
        self.approved = self.submitted()

    def ask(self, org: Org | None, method: str, path: str, **options: Any) -> httpx.Response:
        return self.runner.run(self.send(org, method, path, **options))

    def good(self, path: str) -> list[Any]:
        """Bodies that a route takes, or nearly."""
        signed = [BANK.envelope, TAX.envelope, self.approved, approve(TAX, self.approved)]
        bodies: list[Any] = [json.loads(item.to_json()) for item in signed]
        if path.endswith("progress"):
            return [{"attempt": 1, "stage": "tokens", "step": 1, "steps": 4}]
        if path.endswith("stop"):
            return [{"words": "enough"}]
        if "/sealed/" in path:
            return [bytes(LEAST[ASK] + OVERHEAD), b"x" * (STEP + OVERHEAD)]
        if path.endswith("/sealed"):
            sealed = base64.b64encode(bytes(LEAST[USE] + OVERHEAD)).decode()
            return [
                {"items": [{"id": "0" * 64, "sealed": sealed}], "notices": []},
                {"items": [], "notices": [{"mailbox": KNOWN["mailbox"], "sealed": sealed}]},
            ]
        if path.endswith("certificate-revocations"):
            return [{"revocation": bodies[0], "certificate": bodies[0]}]
        if path.endswith("events/of"):
            return [{"grants": ["0" * 64]}]
        if path.endswith("wanted"):
            return [{"events": ["0" * 32]}]
        if path.endswith("events"):
            return [{"signed": bodies[0], "card": bodies[0], "certificate": bodies[0]}]
        if path.endswith("cosignatures"):
            return [{"items": [{"org": "tax", "witness": "bank-a", "note": "x"}]}]
        if path.endswith("checkpoint"):
            return [{"org": "bank-a", "note": "x"}]
        return bodies


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relaying, "ASK_TIMEOUT_S", 0.02)
        whole = Whole(tmp_path_factory.mktemp("whole"))
        yield whole
        whole.runner.close()
        whole.store.close()


@pytest.fixture(scope="module")
def document(whole: Whole) -> dict[str, Any]:
    found: dict[str, Any] = whole.ask(BANK, "GET", "/api/v1/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    return found


def test_the_document_names_every_route_and_no_other(document: dict[str, Any]) -> None:
    assert sorted(routes(document)) == sorted(ROUTES)


def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        found: Any = document
        for part in reference.split("/"):
            found = found[part]


@pytest.mark.parametrize(("verb", "path"), ROUTES)
def test_a54_nothing_sent_to_any_route_is_an_internal_error(
    whole: Whole, document: dict[str, Any], verb: str, path: str
) -> None:
    """A question to a node that is not connected is 503 and says who; nothing else is a 5xx."""
    if verb == "get":  # what only a schema refuses would tell nothing of the code behind it
        assert whole.ask(BANK, "GET", path.format(**KNOWN)).status_code == 200

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(data=st.data())
    def hold(data: st.DataObject) -> None:
        drawn = draw(data, document, verb, path, good=whole.good(path), known=KNOWN, only=ONLY)
        answer = whole.ask(
            BANK,
            drawn.verb,
            drawn.path,
            params=drawn.query,
            content=drawn.content,
            headers={"content-type": drawn.content_type},
        )
        if answer.status_code == 503 and path == "/api/v1/sealed/{provider}":
            assert Problem.model_validate_json(answer.content).party
        else:
            assert answer.status_code < 500, (drawn.verb, drawn.path)
        if not answer.is_success:
            assert answer.headers["content-type"] == "application/problem+json"
            found = Problem.model_validate_json(answer.content)
            assert found.status == answer.status_code
            assert not [leak for leak in LEAKS if leak in answer.text]

    hold()


@pytest.mark.parametrize("path", ["/jobs/{job}/events", "/grants/notices/{mailbox}"])
def test_a_number_beyond_the_databases_is_the_callers_mistake(whole: Whole, path: str) -> None:
    url = f"/api/v1{path.format(**KNOWN)}"
    assert whole.ask(BANK, "GET", url, params={"after": str(1 << 64)}).status_code == 422
