"""The HTTP API in one process: who may call, what comes back, and that errors teach nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from starlette.types import ASGIApp, Receive, Scope, Send

import server.app
from federation import certificates
from federation.api import MAX_BODY_BYTES, JobDetail, Page, Problem, error_of, problem_of
from federation.envelope import Envelope
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    PartyLost,
    Refused,
    Unavailable,
    UsageError,
)
from federation.objects import Usage
from server.app import Changes, create_app
from server.store import IdempotencyRow
from server.tls import CERTIFICATE_KEY
from tests.federation.parties import Org, approve
from tests.server.governing import BANK, COURT, PLATFORM, STRANGER, TAX, Governed


@dataclass
class Site(Governed):
    """Governance behind its API; `ask` calls as whoever has the certificate."""

    changes: Changes = field(default_factory=Changes)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.governance._announce = self.changes.announce
        self.app = create_app(
            self.governance,
            self.store,
            self.changes,
            platform="platform",
            card=lambda: PLATFORM.envelope,
            identify=self.org_of,
            now=lambda: self.now,
        )

    def org_of(self, scope: Scope) -> str | None:
        der = scope.get(CERTIFICATE_KEY)
        return self.trust.org_of_tls_certificate(der) if der else None

    async def send(self, org: Org | None, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(_Shown(self.app, org), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="https://platform") as client:
            return await client.request(method, path, **options)

    def ask(self, org: Org | None, method: str, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self.send(org, method, path, **options))

    def post(self, org: Org, path: str, envelope: Envelope, key: str | None = None) -> Any:
        headers = {"idempotency-key": key} if key else {}
        return self.ask(org, "POST", path, content=envelope.to_json(), headers=headers)


class _Shown:
    """As server/tls.py does: the certificate that the connection has shown, in the scope."""

    def __init__(self, app: ASGIApp, org: Org | None) -> None:
        self._app = app
        self._certificate = certificates.der(org.card.tls_certificate) if org else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CERTIFICATE_KEY] = self._certificate
        await self._app(scope, receive, send)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.close()


def problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(response.content)
    assert found.status == status
    return found


# --- a whole story --------------------------------------------------------------------------------


def test_a_job_goes_from_proposal_to_run_over_http(site: Site) -> None:
    for org in (BANK, TAX, COURT):
        answer = site.ask(
            org, "PUT", "/api/v1/organisations/me", content=org.envelope.to_json()
        ).json()
        assert int(answer["node_id"]) > 0
        assert Envelope.model_validate(answer["platform"]) == PLATFORM.envelope
    manifest = BANK.sign(site.manifest(), Usage.PROPOSE)
    created = site.post(BANK, "/api/v1/jobs", manifest)
    assert created.status_code == 201
    job = JobDetail.model_validate_json(created.content)
    assert job.manifest == manifest
    for org in (TAX, COURT, PLATFORM):
        path = f"/api/v1/jobs/{job.job}/approvals"
        answer = site.post(org, path, approve(org, manifest))
        assert answer.status_code == 201
    assert answer.json()["status"] == "running"
    body = {"attempt": 1, "stage": "tokens", "step": 1, "steps": 4}
    told = site.ask(TAX, "POST", f"/api/v1/jobs/{job.job}/progress", json=body)
    assert told.json() == {"status": "running"}
    detail = JobDetail.model_validate_json(
        site.ask(COURT, "GET", f"/api/v1/jobs/{job.job}").content
    )
    assert detail.progress["tax"].stage == "tokens"
    assert len(detail.approvals) == 3
    stopped = site.ask(COURT, "POST", f"/api/v1/jobs/{job.job}/stop", json={"words": "enough"})
    assert stopped.json()["status"] == "stopped"
    told = site.ask(TAX, "POST", f"/api/v1/jobs/{job.job}/progress", json=body)
    assert told.json() == {"status": "stopped"}


def test_health_organisations_and_description_are_for_admitted_callers(site: Site) -> None:
    assert site.ask(TAX, "GET", "/api/v1/health").json()["platform"] == "platform"
    found = site.ask(TAX, "GET", "/api/v1/organisations").json()["items"]
    assert [item["org"] for item in found] == ["bank-a", "court", "platform", "tax"]
    assert site.ask(TAX, "GET", "/api/v1/organisations/court").json()["org"] == "court"
    assert site.ask(TAX, "GET", "/api/v1/openapi.json").json()["openapi"].startswith("3.1")
    problem(site.ask(TAX, "GET", "/api/v1/organisations/nobody"), 404)


# --- who may call ---------------------------------------------------------------------------------


@pytest.mark.parametrize("org", [None, STRANGER])
@pytest.mark.parametrize("path", ["/api/v1/health", "/api/v1/openapi.json", "/docs", "/"])
def test_without_an_admitted_card_everything_is_401(site: Site, org: Org | None, path: str) -> None:
    problem(site.ask(org, "GET", path), 401)


def test_an_organisation_that_is_no_longer_trusted_is_out_at_once(site: Site) -> None:
    from tests.federation.parties import trust_of

    assert site.ask(TAX, "GET", "/api/v1/health").status_code == 200
    site.trust = trust_of(BANK, PLATFORM)
    problem(site.ask(TAX, "GET", "/api/v1/health"), 401)


def test_a_renewed_certificate_counts_and_the_old_one_does_not(site: Site) -> None:
    site.trust = site.trust.with_card(TAX.newer().envelope)
    assert site.ask(TAX, "GET", "/api/v1/health").status_code == 200  # the same leaf
    other = COURT.card.tls_certificate
    assert site.trust.org_of_tls_certificate(certificates.der(other)) == "court"


# --- errors ---------------------------------------------------------------------------------------


def test_errors_are_problems_and_carry_party_and_next_step(site: Site) -> None:
    manifest = BANK.sign(site.manifest(package_sha256="0" * 64), Usage.PROPOSE)
    found = problem(site.post(BANK, "/api/v1/jobs", manifest), 409)
    error = error_of(found, party="platform")
    assert isinstance(error, Conflict)
    assert error.todo
    problem(site.ask(BANK, "GET", "/api/v1/jobs/none"), 404)
    problem(site.ask(BANK, "GET", "/api/v1/jobs/NONE!"), 422)
    problem(site.ask(BANK, "GET", "/api/v1/nothing"), 404)
    problem(site.ask(BANK, "DELETE", "/api/v1/jobs"), 405)
    problem(site.ask(BANK, "POST", "/api/v1/jobs", content=b"{}"), 422)
    problem(site.ask(BANK, "POST", "/api/v1/jobs", content=b"\xff{"), 422)
    problem(site.ask(BANK, "GET", "/api/v1/jobs?cursor=bm9uZQ=="), 400)
    problem(site.ask(BANK, "GET", "/api/v1/jobs?limit=100000"), 422)
    problem(site.ask(BANK, "GET", "/api/v1/jobs/x/events?wait=99"), 422)
    body = b"x" * (MAX_BODY_BYTES + 1)
    problem(site.ask(BANK, "POST", "/api/v1/jobs", content=body), 413)


@pytest.mark.parametrize(
    "kind",
    [UsageError, Refused, IntegrityError, NotFound, Conflict, Unavailable, PartyLost, LianmoError],
)
def test_an_error_arrives_as_the_same_error(kind: type[LianmoError]) -> None:
    sent = kind("what", party="tax", stage="fit", todo="do this")
    got = error_of(problem_of(sent), party="platform")
    assert (type(got), str(got), got.exit_code) == (kind, str(sent), sent.exit_code)


def test_a_bug_is_a_500_that_says_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ValueError("SELECT secret FROM /path/table")

    monkeypatch.setattr(site.governance, "organisations", bug)
    answer = site.ask(TAX, "GET", "/api/v1/organisations")
    assert problem(answer, 500).detail == ""
    assert "secret" not in answer.text


def test_every_answer_has_the_security_headers(site: Site) -> None:
    for org, path in ((TAX, "/api/v1/health"), (TAX, "/none"), (None, "/api/v1/health")):
        headers = site.ask(org, "GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    path=st.sampled_from(
        [
            "jobs",
            "jobs/{}",
            "jobs/{}/approvals",
            "jobs/{}/progress",
            "jobs/{}/events",
            "catalogue/{}",
        ]
    ),
    name=st.text(st.characters(codec="utf-8", exclude_characters="/?#"), min_size=1, max_size=20),
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=10),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["payload", "stage", "step", "x"]), inner)
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_nothing_that_one_can_send_is_an_internal_error(
    site: Site, method: str, path: str, name: str, body: bytes
) -> None:
    """Acceptance test 54, in small."""
    from urllib.parse import quote

    answer = site.ask(BANK, method, f"/api/v1/{path.format(quote(name))}", content=body)
    assert answer.status_code < 500
    if not answer.is_success:
        problem(answer, answer.status_code)


# --- idempotency, pages, long polls ---------------------------------------------------------------

KEY = "0123456789abcdef-key"


def test_the_same_key_and_body_have_one_effect_and_one_answer(site: Site) -> None:
    """Acceptance test 51."""
    manifest = BANK.sign(site.manifest(), Usage.PROPOSE)
    path = "/api/v1/jobs"
    first = site.post(BANK, path, manifest, KEY)
    site.governance.decide("tax", "sme-card-1", approve(TAX, manifest))
    again = site.post(BANK, path, manifest, KEY)
    assert (again.status_code, again.content) == (201, first.content)  # as it was then
    other = BANK.sign(site.manifest(job="other"), Usage.PROPOSE)
    problem(site.post(BANK, path, other, KEY), 422)
    assert site.post(BANK, path, other).status_code == 201
    tax = site.post(TAX, path, manifest, KEY)  # another caller's keys are its own
    assert tax.status_code == 422
    problem(site.post(BANK, path, manifest, "short"), 400)


def keys_kept(site: Site) -> list[tuple[str, str]]:
    with site.store.read() as session:
        rows = session.scalars(select(IdempotencyRow).order_by(IdempotencyRow.key)).all()
        return [(row.org, row.key) for row in rows]


@pytest.mark.parametrize("bound", ["ANSWERS_KEPT", "BYTES_KEPT"])
def test_no_caller_s_keys_fill_the_disk(
    site: Site, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    manifest, path = BANK.sign(site.manifest(), Usage.PROPOSE), "/api/v1/jobs"
    size = len(site.post(BANK, path, manifest, KEY).content)
    monkeypatch.setattr(server.app, bound, 2 if bound == "ANSWERS_KEPT" else 2 * size)
    keys = [f"{KEY}-{number}" for number in range(5)]
    site.post(TAX, path, manifest, KEY)
    for number, key in enumerate(keys):
        site.now += timedelta(seconds=1)
        again = BANK.sign(site.manifest(job=f"other-{number}-1"), Usage.PROPOSE)
        assert site.post(BANK, path, again, key).status_code == 201
    kept = keys_kept(site)
    assert {("bank-a", keys[-1]), ("tax", KEY)} <= set(kept)
    assert 1 <= sum(org == "bank-a" for org, _ in kept) <= 2


@pytest.mark.parametrize("path", ["sealed/tax", "grants/events/of", "grants/events/wanted"])
def test_what_has_no_effect_keeps_no_answer_under_a_key(site: Site, path: str) -> None:
    manifest = BANK.sign(site.manifest(), Usage.PROPOSE)
    for _ in range(2):
        site.post(BANK, f"/api/v1/{path}", manifest, KEY)
    assert keys_kept(site) == []


def test_a_key_whose_first_request_is_served_is_told_so_and_a_crash_frees_it(site: Site) -> None:
    manifest = BANK.sign(site.manifest(), Usage.PROPOSE)
    site.post(BANK, "/api/v1/jobs", manifest, KEY)
    with site.store.write() as session:
        row = session.get(IdempotencyRow, ("bank-a", KEY))
        assert row is not None
        row.status = row.body = None
    problem(site.post(BANK, "/api/v1/jobs", manifest, KEY), 409)
    site.store.forget_unfinished()
    assert site.post(BANK, "/api/v1/jobs", manifest, KEY).status_code == 201


def test_pages_are_stable_while_jobs_are_added(site: Site) -> None:
    """Acceptance test 53."""
    for number in range(5):
        site.submitted(job=f"job-{number}")
    seen: list[str] = []
    path = "/api/v1/jobs?limit=2"
    cursor = ""
    while True:
        page = site.ask(TAX, "GET", path + cursor).json()
        seen += [item["job"] for item in page["items"]]
        site.submitted(job=f"new-{len(seen)}")
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == [f"job-{number}" for number in reversed(range(5))]
    assert Page[JobDetail].model_fields.keys() == {"items", "next"}


def test_a_long_poll_wakes_with_the_event_and_not_before(site: Site) -> None:
    manifest = site.submitted()
    after = site.governance.events("tax", "sme-card-1", 0).after
    path = f"/api/v1/jobs/sme-card-1/events?after={after}&wait=10"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.ask, TAX, "GET", path)
        with pytest.raises(TimeoutError):
            waiting.result(0.5)
        site.governance.decide("court", "sme-card-1", approve(COURT, manifest))
        events = waiting.result(5).json()["items"]
    assert events[0]["kind"] == "approval"
    quick = site.ask(TAX, "GET", "/api/v1/jobs/sme-card-1/events?after=999&wait=0")
    assert quick.json()["items"] == []
