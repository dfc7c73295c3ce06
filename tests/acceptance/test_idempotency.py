"""Acceptance test 51 of GOVERNANCE.md: one key is one effect, at once and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from federation.objects import Decision, Usage
from server.store import ApprovalRow, EventRow, JobRow
from tests.federation.parties import approve
from tests.server.governing import BANK, COURT, TAX
from tests.server.test_app import Site, problem

KEY = "acceptance-test-51-key"
WHERE = "/api/v1/jobs/sme-card-1/approvals"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.close()


def rows(site: Site, kind: type[JobRow] | type[ApprovalRow] | type[EventRow]) -> int:
    with site.store.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(kind)) or 0


def test_a51_many_at_once_have_one_effect_and_only_one_answer(site: Site) -> None:
    manifest = BANK.sign(site.manifest(), Usage.PROPOSE)
    body = {"content": manifest.to_json(), "headers": {"idempotency-key": KEY}}

    async def all_at_once() -> list[tuple[int, bytes]]:
        asked = (site.send(BANK, "POST", "/api/v1/jobs", **body) for _ in range(12))
        return [(a.status_code, a.content) for a in await asyncio.gather(*asked)]

    answers = asyncio.run(all_at_once())
    done = {content for status, content in answers if status == 201}
    assert len(done) == 1  # the same bytes, whoever was first
    assert {status for status, _ in answers} <= {201, 409}  # 409: the first one is served
    assert (rows(site, JobRow), rows(site, EventRow)) == (1, 1)
    assert {site.post(BANK, "/api/v1/jobs", manifest, KEY).content} == done


def test_a51_another_body_under_the_same_key_has_no_effect(site: Site) -> None:
    """The second word is a refusal: under the key of the approval it must not count."""
    manifest = site.submitted()
    first = site.post(TAX, WHERE, approve(TAX, manifest), KEY)
    assert first.status_code == 201
    refusal = approve(TAX, manifest, decision=Decision.REFUSE, code="DECLINED", nonce="f" * 32)
    problem(site.post(TAX, WHERE, refusal, KEY), 422)
    assert rows(site, ApprovalRow) == 1
    assert site.status(manifest) == "reviewing"
    problem(site.post(TAX, "/api/v1/jobs/sme-card-1/stop", refusal, KEY), 422)  # another path
    assert site.post(COURT, WHERE, approve(COURT, manifest), KEY).status_code == 201  # its own key


def test_a51_after_a_restart_the_answer_is_the_one_that_was_given(site: Site) -> None:
    manifest = site.submitted()
    word = approve(TAX, manifest)
    first = site.post(TAX, WHERE, word, KEY)
    site.store.close()
    again = Site(site.folder, now=site.now)
    again.store.forget_unfinished()
    answer = again.post(TAX, WHERE, word, KEY)
    assert (answer.status_code, answer.content) == (201, first.content)
    problem(again.post(TAX, WHERE, approve(TAX, manifest, nonce="e" * 32), KEY), 422)
    assert rows(again, ApprovalRow) == 1
    again.store.close()
