"""Who really learned what: from signed records alone, and what does not fit is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from clients import jobs
from clients.coordinator_client import CoordinatorClient
from federation.api import JobDetail, JobStatus
from federation.audit import Receipt
from federation.envelope import Envelope
from federation.errors import IntegrityError
from federation.ledger import What
from federation.objects import DeclaredDisclosure, JobManifest, RunRecord, Usage, utc_text
from tests.clients.audit_log import NOW, LoggedNode, make_node
from tests.federation.parties import Org, make_manifest, make_org

BANK, COURT = make_org("bank-a", "bank", code=1), make_org("court", code=2)
SUMS = DeclaredDisclosure(source="tax", to="bank-a", what=What.QUERY_SUMS, count=100, bits=24)
TIMES = {"created": utc_text(NOW), "not_before": utc_text(NOW)}
MANIFEST = make_manifest(
    "bank-a",
    ["tax", "court"],
    disclosures=(SUMS,),
    expires=utc_text(NOW + timedelta(days=1)),
    **TIMES,
)


class Said:
    """A coordinator that says what the test wants."""

    def __init__(self, *records: Envelope, receipts: tuple[Receipt, ...] = ()) -> None:
        self.detail = JobDetail(
            job=MANIFEST.job,
            manifest_digest=MANIFEST.digest(),
            bank="bank-a",
            parties=("bank-a", "tax", "court"),
            status=JobStatus.SUCCEEDED,
            created=utc_text(NOW),
            updated=utc_text(NOW),
            manifest=BANK.sign(MANIFEST, Usage.PROPOSE),
            approvals=(),
            missing=(),
            attempt=1,
            records=records,
            receipts=receipts,
        )

    def job(self, name: str) -> JobDetail:
        return self.detail


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LoggedNode]:
    with make_node(tmp_path) as made:
        for org in (BANK, COURT):
            made.home.trust_card(org.envelope)
        yield made


def told(org: str, **changes: Any) -> RunRecord:
    digest = "0" * 64
    line = SUMS.model_copy(update=changes)
    return RunRecord(
        job=MANIFEST.job,
        manifest=MANIFEST.digest(),
        org=org,
        attempt=1,
        package_sha256=digest,
        fab_sha256=digest,
        run_config_sha256=digest,
        snapshot=digest,
        commitments=(),
        transcript=(),
        disclosures=(line,),
        tokens=0,
        output=None,
        outcome="succeeded",
        stage="end",
        started=utc_text(NOW),
        ended=utc_text(NOW),
    )


def by(org: Org, **changes: Any) -> Envelope:
    return org.sign(told(org.id, **changes), Usage.RUN)


def disclosures(node: LoggedNode, said: Said) -> jobs.Disclosures:
    return jobs.disclosures(node.home, cast(CoordinatorClient, said), MANIFEST.job, NOW)


def test_what_happened_stands_beside_what_was_declared(node: LoggedNode) -> None:
    found = disclosures(node, Said(by(BANK, count=60)))
    (line,) = found.lines
    assert (line.declared, line.happened, line.told_by) == (100, 60, ("bank-a",))
    assert (found.missing, found.problems) == (("tax", "court"), ())
    assert found.receipts == {"bank-a": "none"}
    (line,) = disclosures(node, Said()).lines
    assert line.happened is None


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({"count": 60}, {"count": 61}, "told in two ways by bank-a, court"),
        ({"count": 101}, {"count": 101}, "more than was declared"),
        ({"bits": 25}, {"bits": 25}, "more than was declared"),
        ({"to": "court"}, {}, "query_sums from tax to court was not declared"),
    ],
)
def test_what_does_not_fit_is_told(
    node: LoggedNode, first: dict[str, Any], second: dict[str, Any], problem: str
) -> None:
    found = disclosures(node, Said(by(BANK, **first), by(COURT, **second)))
    assert [text for text in found.problems if problem in text]


def test_a_record_that_its_party_did_not_sign_is_not_shown(node: LoggedNode) -> None:
    forged = COURT.sign(told("bank-a"), Usage.RUN)
    with pytest.raises(IntegrityError):
        disclosures(node, Said(forged))


def test_a_receipt_counts_if_it_is_of_this_very_record(node: LoggedNode) -> None:
    from federation.envelope import sign

    record = sign(told("tax"), node.home.key(Usage.RUN))
    other = sign(told("tax", count=1), node.home.key(Usage.RUN))
    good, of_another = (node.log.ran(item, NOW) for item in (record, other))
    assert disclosures(node, Said(record, receipts=(good,))).receipts == {"tax": "uncosigned"}
    broken = good.model_copy(update={"leaf": "AAAA"})
    for wrong in (of_another, broken):
        found = disclosures(node, Said(record, receipts=(wrong,)))
        assert found.receipts == {"tax": "wrong"}
        assert "does not verify" in found.problems[0]


def test_the_coordinator_cannot_show_another_manifest(node: LoggedNode) -> None:
    said = Said()
    other = JobManifest.model_validate(MANIFEST.model_dump() | {"job": "another"})
    said.detail = said.detail.model_copy(update={"manifest": BANK.sign(other, Usage.PROPOSE)})
    with pytest.raises(IntegrityError):
        disclosures(node, said)
