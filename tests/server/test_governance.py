"""A job's life at the coordinator, and every step that must not be taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import server.witness  # noqa: F401 - its tables belong to the model
from federation.api import JobStatus, ProgressBody, RunReport, TrainReply
from federation.audit import Receipt
from federation.catalogue import CATALOGUE_USAGE, Dataset, Field, FieldType, Level
from federation.errors import Conflict, IntegrityError, LianmoError, NotFound, Refused, UsageError
from federation.objects import Decision, Limits, RefusalCode, Usage, utc_text
from server.store import Base, EventRow
from tests.federation.parties import NOW, approve, make_org, trust_of
from tests.server.governing import (
    BANK,
    COURT,
    EVERYBODY,
    PARTIES,
    PLATFORM,
    STRANGER,
    TAX,
    Governed,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Governed]:
    site = Governed(tmp_path)
    yield site
    site.store.close()


# --- the way to a run -----------------------------------------------------------------------------


def test_only_the_last_needed_approval_starts_the_run(site: Governed) -> None:
    site.register(*PARTIES)
    manifest = site.submitted()
    assert site.status(manifest) == "submitted"
    assert site.decide(TAX, manifest) == "reviewing"
    assert site.decide(COURT, manifest) == "reviewing"
    assert site.launched == []
    assert site.membership()["jobs"] == {}
    assert site.decide(PLATFORM, manifest) == "running"
    (task,) = site.launched
    assert task.order.attempt == 1
    assert set(task.nodes) == {"bank-a", "tax", "court"}
    assert len(task.order.approvals) == 3
    digest = site.manifest().digest()
    assert site.membership()["jobs"] == {digest: ["bank-a", "tax", "court"]}
    assert site.superlink.members[digest] == set(task.nodes.values())


def test_an_owner_who_reads_a_job_takes_it_into_review(site: Governed) -> None:
    manifest = site.submitted()
    name = site.name(manifest)
    assert site.governance.job("bank-a", name, is_review=True).status is JobStatus.SUBMITTED
    assert site.governance.job("tax", name, is_review=True).status is JobStatus.REVIEWING
    assert site.governance.job("tax", name).missing == ("tax", "court", "platform")


def test_an_approved_job_waits_for_the_node_that_is_missing(site: Governed) -> None:
    site.register(BANK, TAX)
    manifest = site.submitted()
    for org in (TAX, COURT, PLATFORM):
        site.decide(org, manifest)
    found = site.governance.job("bank-a", site.name(manifest))
    assert (found.status, found.message) == (JobStatus.APPROVED, "waiting for the node of court")
    site.register(COURT)
    site.governance.tend()
    assert site.status(manifest) == "running"


def test_a_job_waits_for_its_not_before(site: Governed) -> None:
    later = NOW + timedelta(hours=1)
    manifest = site.running(not_before=utc_text(later))
    assert site.status(manifest) == "approved"
    site.now = later
    site.governance.tend()
    assert site.status(manifest) == "running"


def test_the_same_manifest_and_the_same_word_again_change_nothing(site: Governed) -> None:
    manifest = site.submitted()
    word = approve(TAX, manifest)
    for _ in range(2):
        site.governance.submit("bank-a", manifest)
        site.governance.decide("tax", site.name(manifest), word)
    found = site.governance.job("bank-a", site.name(manifest))
    assert len(found.approvals) == 1
    assert len(site.governance.events("bank-a", found.job, 0).items) == 3


# --- what is refused at the door ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"package_sha256": "0" * 64}, Conflict),
        ({"expires": utc_text(NOW)}, UsageError),
        ({"outputs": ("bank-a",), "created": utc_text(NOW + timedelta(hours=1))}, IntegrityError),
    ],
)
def test_a_manifest_that_no_gate_would_take_is_not_kept(
    site: Governed, change: dict[str, Any], error: type[LianmoError]
) -> None:
    with pytest.raises(error):
        site.submitted(**change)
    assert site.governance.jobs("platform", None, 10).items == ()


def test_only_the_bank_itself_proposes_its_job(site: Governed) -> None:
    signed = BANK.sign(site.manifest(), Usage.PROPOSE)
    with pytest.raises(IntegrityError):
        site.governance.submit("tax", signed)  # another organisation's connection
    with pytest.raises(IntegrityError):
        site.governance.submit("bank-a", BANK.sign(site.manifest(), Usage.APPROVE))
    with pytest.raises(IntegrityError):  # the stranger's key, the bank's name
        site.governance.submit("bank-a", STRANGER.sign(site.manifest(), Usage.PROPOSE))


def test_a_job_with_a_party_that_is_not_admitted_is_not_kept(site: Governed) -> None:
    site.trust = trust_of(BANK, TAX, PLATFORM)
    with pytest.raises(NotFound, match="admitted"):
        site.submitted()


def test_another_manifest_under_a_known_name_is_refused(site: Governed) -> None:
    site.submitted()
    with pytest.raises(Conflict, match="exists already"):
        site.submitted(outputs=("bank-a", "tax"))


def test_a_job_on_an_older_catalogue_entry_is_refused(site: Governed) -> None:
    entry = Dataset(
        name="filings",
        title="申报",
        owner="tax",
        region="厦门",
        legal_basis="...",
        update_frequency="monthly",
        provenance="...",
        as_of="2026-10-31",
        rows=10,
        fields=(
            Field(name="code", type=FieldType.KEY),
            Field(name="revenue", type=FieldType.NUMBER, level=Level.L2),
        ),
        created=utc_text(NOW),
    )
    signed = TAX.sign(entry, CATALOGUE_USAGE)
    site.governance.publish_dataset("tax", "filings", signed)
    with pytest.raises(Conflict, match="has changed"):
        site.submitted()
    with pytest.raises(IntegrityError):
        site.governance.publish_dataset("court", "filings", signed)
    assert [item.org for item in site.governance.catalogue(("", ""), 10).items] == ["tax"]


# --- what does not count as an approval -----------------------------------------------------------


def _of_another_job(site: Governed) -> Any:
    return approve(TAX, "0" * 64)


def _with_anothers_name(site: Governed) -> Any:
    from tests.federation.parties import make_approval

    return TAX.sign(make_approval("court", site.manifest().digest()), Usage.APPROVE)


def _with_the_run_key(site: Governed) -> Any:
    from tests.federation.parties import make_approval

    return TAX.sign(make_approval("tax", site.manifest().digest()), Usage.RUN)


def _expired(site: Governed) -> Any:
    return approve(TAX, site.manifest().digest(), valid_until=utc_text(NOW))


@pytest.mark.parametrize(
    "word", [_of_another_job, _with_anothers_name, _with_the_run_key, _expired]
)
def test_a_word_that_no_gate_would_take_does_not_count(
    site: Governed, word: Callable[[Governed], Any]
) -> None:
    """Acceptance tests 23 and 24, at the coordinator."""
    manifest = site.submitted()
    with pytest.raises(LianmoError):
        site.governance.decide("tax", site.name(manifest), word(site))
    with pytest.raises(LianmoError):  # nor when somebody else carries it
        site.governance.decide("court", site.name(manifest), word(site))
    assert "tax" in site.governance.job("bank-a", site.name(manifest)).missing
    assert site.status(manifest) == "submitted"


def test_the_bank_does_not_approve_its_own_job(site: Governed) -> None:
    manifest = site.submitted()
    with pytest.raises(Refused):
        site.decide(BANK, manifest)


def test_a_refusal_is_final(site: Governed) -> None:
    manifest = site.submitted()
    site.decide(TAX, manifest)
    refusal = {"decision": Decision.REFUSE, "code": RefusalCode.FIELD_LEVEL}
    assert site.decide(COURT, manifest, **refusal) == "refused"
    with pytest.raises(Conflict):
        site.decide(PLATFORM, manifest)
    assert "FIELD_LEVEL" in site.governance.job("bank-a", site.name(manifest)).message
    assert site.launched == []


def test_who_did_not_approve_cannot_withdraw(site: Governed) -> None:
    manifest = site.submitted()
    with pytest.raises(Conflict):
        site.decide(TAX, manifest, decision=Decision.WITHDRAW)
    assert site.status(manifest) == "submitted"


def test_a_withdrawal_ends_a_running_job(site: Governed) -> None:
    """Acceptance test 22."""
    manifest = site.running()
    run = site.launched[0].run_id
    assert site.decide(TAX, manifest, decision=Decision.WITHDRAW) == "withdrawn"
    assert site.superlink.status(run) == "stopped"
    assert site.superlink.members == {}
    assert site.membership()["jobs"] == {}


def test_nobody_sees_a_job_that_does_not_name_it(site: Governed) -> None:
    site.trust = trust_of(*EVERYBODY, make_org("water", "utility", code=1))
    manifest = site.submitted()
    for call in (
        lambda: site.governance.job("water", site.name(manifest)),
        lambda: site.governance.events("water", site.name(manifest), 0),
        lambda: site.governance.stop("water", site.name(manifest), ""),
    ):
        with pytest.raises(NotFound):
            call()
    assert site.governance.jobs("water", None, 10).items == ()
    assert len(site.governance.jobs("tax", None, 10).items) == 1


# --- a run and its end ----------------------------------------------------------------------------


def test_a_job_succeeds_with_a_good_record_of_every_party(site: Governed) -> None:
    manifest = site.running()
    for org in PARTIES:
        site.hand_in(org, site.record(org, manifest))
    site.report(**{"bank-a": "succeeded", "tax": "succeeded", "court": "succeeded"})
    found = site.governance.job("tax", site.name(manifest))
    assert found.status is JobStatus.SUCCEEDED
    assert len(found.records) == 3
    assert site.membership()["jobs"] == {}


def test_the_receipt_of_a_record_is_handed_on_as_it_came(site: Governed) -> None:
    """Who asks verifies it: the coordinator neither can nor has to."""
    manifest = site.running()
    receipt = Receipt(org="tax", key_id="0" * 32, origin="a-log", leaf="AAAA", proof="p")
    run_id, record = site.launched[-1].run_id, site.record(TAX, manifest)
    for _ in range(2):  # a repeat changes nothing
        body = RunReport(state="record", org="tax", record=record, receipt=receipt)
        site.governance.report(run_id, body)
    assert site.governance.job("bank-a", site.name(manifest)).receipts == (receipt,)


def test_words_without_records_are_no_success(site: Governed) -> None:
    manifest = site.running()
    site.hand_in(BANK, site.record(BANK, manifest))
    site.report(**{"bank-a": "succeeded", "tax": "succeeded", "court": "succeeded"})
    found = site.governance.job("bank-a", site.name(manifest))
    assert found.status is JobStatus.FAILED
    assert found.message == "tax, court: no run record that verifies"


@pytest.mark.parametrize(
    "change", [{"manifest": "0" * 64}, {"org": "court"}, {"ended": utc_text(NOW + timedelta(1))}]
)
def test_a_record_of_somebody_or_something_else_is_refused(
    site: Governed, change: dict[str, Any]
) -> None:
    manifest = site.running()
    with pytest.raises(IntegrityError):
        site.hand_in(TAX, site.record(TAX, manifest, **change))
    assert site.governance.job("tax", site.name(manifest)).records == ()


def test_a_failure_names_party_stage_and_reference_and_is_not_repeated(site: Governed) -> None:
    manifest = site.running()
    site.report(**{"bank-a": "lost", "tax": "failed", "court": "lost"})
    found = site.governance.job("bank-a", site.name(manifest))
    assert found.status is JobStatus.FAILED
    assert found.message == "tax, stage fit: failed; the reason is in tax's log, reference ab12"
    assert len(site.launched) == 1


def test_who_was_waited_for_in_vain_is_the_one_that_is_named(site: Governed) -> None:
    site.running()
    replies = {
        org: TrainReply(state="lost", stage="tokens", missing="tax") for org in ("bank-a", "court")
    }
    for _ in range(2):  # the attempts that are allowed here
        site.governance.report(site.launched[-1].run_id, RunReport(state="ended", replies=replies))
    said = site.governance.job("bank-a", "sme-card-1")
    assert said.message.startswith("tax, stage start: lost; given up")


def test_a_job_starts_everywhere_or_waits_in_order_and_says_for_whom(site: Governed) -> None:
    for name in ("one", "two", "three", "four"):
        site.running(job=name)
    status = {name: site.governance.job("bank-a", name) for name in ("two", "three", "four")}
    assert [item.status for item in status.values()] == [
        JobStatus.RUNNING,
        JobStatus.APPROVED,
        JobStatus.APPROVED,
    ]
    assert "waiting for bank-a, court, tax" in status["three"].message
    assert len(site.launched) == 2
    site.report(**{"bank-a": "failed", "tax": "failed", "court": "failed"})
    site.governance.tend()
    assert site.governance.job("bank-a", "three").status is JobStatus.RUNNING
    assert site.governance.job("bank-a", "four").status is JobStatus.APPROVED


def test_a_lost_party_gets_another_attempt_but_not_for_ever(site: Governed) -> None:
    manifest = site.running()
    site.report(**{"bank-a": "lost", "tax": "lost", "court": "lost"})
    assert (site.status(manifest), site.launched[-1].order.attempt) == ("running", 2)
    site.report(**{"bank-a": "lost", "tax": "lost", "court": "lost"})
    assert site.status(manifest) == "failed"
    said = site.governance.job("tax", site.name(manifest)).message
    assert said.startswith("bank-a, stage start, court, stage start, tax, stage start: lost;")
    assert "given up after 2 attempts; have who is named run `lianmo doctor`" in said
    assert len(site.launched) == 2


def test_a_serverapp_that_died_gets_another_attempt(site: Governed) -> None:
    manifest = site.running()
    site.superlink.stop_run(site.launched[0].run_id)
    for _ in range(2):
        site.governance.tend()
    assert (site.status(manifest), len(site.launched)) == ("running", 2)


def test_a_serverapp_whose_process_ended_is_not_waited_for(site: Governed) -> None:
    manifest = site.running()
    site.governance.process_ended(site.launched[0].run_id)
    for _ in range(2):
        site.governance.tend()
    assert (site.status(manifest), len(site.launched)) == ("running", 2)
    site.report(**{"bank-a": "failed", "tax": "lost", "court": "lost"})
    before = site.governance.job("tax", site.name(manifest))
    site.governance.process_ended(site.launched[1].run_id)  # it had reported the end
    site.governance.tend()
    assert site.governance.job("tax", site.name(manifest)).status == before.status == "failed"


def test_a_report_on_an_older_run_is_ignored(site: Governed) -> None:
    manifest = site.running()
    old = site.launched[0].run_id
    site.report(**{"bank-a": "lost", "tax": "lost", "court": "lost"})
    site.governance.report(old, RunReport(state="ended", replies={}))
    assert site.governance.job("tax", site.name(manifest)).attempt == 2
    assert len(site.launched) == 2


def test_a_job_ends_at_its_wall_time_and_an_open_one_at_its_expiry(site: Governed) -> None:
    limits = Limits(customers_max=400, row_keys=400, customers_min=200, tokens=8, wall_time_s=60)
    manifest = site.running(limits=limits)
    site.hand_in(TAX, site.record(TAX, manifest))
    site.now += timedelta(seconds=61)
    site.governance.tend()
    assert site.status(manifest) == "failed"
    said = site.governance.job("tax", site.name(manifest)).message
    assert said.startswith("bank-a, stage start, court, stage start: not finished within the 60 s")
    assert "wall_time_s" in said
    other = site.submitted(job="other", expires=utc_text(site.now + timedelta(minutes=1)))
    site.now += timedelta(minutes=1)
    site.governance.tend()
    assert site.status(other) == "expired"


def test_after_a_restart_flower_and_relay_know_the_running_jobs_again(site: Governed) -> None:
    site.running()
    before, members = site.membership(), dict(site.superlink.members)
    (site.folder / "relay.json").unlink()
    site.superlink.members.clear()
    site.governance.restore()
    assert (site.membership(), site.superlink.members) == (before, members)


def test_of_progress_the_newest_of_each_stage_is_kept(site: Governed) -> None:
    manifest = site.running()
    name = site.name(manifest)
    for step in range(5):
        body = ProgressBody(attempt=1, stage="tokens", step=step, steps=4)
        assert site.governance.progress("tax", name, body) is JobStatus.RUNNING
    stale = ProgressBody(attempt=9, stage="tokens", step=1, steps=4)
    site.governance.progress("tax", name, stale)
    assert site.governance.job("bank-a", name).progress["tax"].step == 4
    with site.store.read() as session:
        kept = session.scalars(sa.select(EventRow).where(EventRow.kind == "progress")).all()
    assert len(kept) == 1


def test_events_are_numbered_once_and_come_in_order(site: Governed) -> None:
    manifest = site.running()
    name = site.name(manifest)
    first = site.governance.events("tax", name, 0, limit=3)
    rest = site.governance.events("tax", name, first.after)
    numbers = [item.number for item in (*first.items, *rest.items)]
    assert numbers == sorted(set(numbers))
    assert rest.items[-1].status is JobStatus.RUNNING
    assert site.governance.events("tax", name, rest.after).items == ()


# --- organisations and schema ---------------------------------------------------------------------


def test_a_card_other_than_the_trusted_one_registers_no_node(site: Governed) -> None:
    newer = TAX.newer(created=utc_text(NOW))
    with pytest.raises(Conflict, match="not the card"):
        site.governance.register("tax", newer.envelope)
    with pytest.raises(IntegrityError):
        site.governance.register("tax", COURT.envelope)
    with pytest.raises(NotFound):
        site.governance.register("stranger", STRANGER.envelope)
    assert site.governance.organisation("tax").registered is None


def test_registering_again_gives_the_same_node(site: Governed) -> None:
    first = site.governance.register("tax", TAX.envelope)
    assert site.governance.register("tax", TAX.envelope) == first
    assert set(site.membership()["organisations"]) == {org.id for org in EVERYBODY}


def test_the_migrations_make_exactly_the_model(site: Governed) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with site.store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
