"""Attacks on the gate and on what an owner decides, by who carries manifests and approvals."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text

from clients import jobs
from clients.coordinator_client import CoordinatorClient
from clients.gate import Gate
from clients.store import Store
from federation.api import JobDetail, JobStatus
from federation.catalogue import Dataset, Level
from federation.envelope import Envelope
from federation.errors import Conflict, NotKept, Refused, Unavailable
from federation.objects import Approval, Decision, JobManifest, Usage, utc_text
from federation.review import review
from protocols.books import BatchId, StoredAnswer
from tests.clients import gated
from tests.clients.gated import NOW, World
from tests.federation.parties import make_approval

made, world = gated.made, gated.world


class Coordinator:
    """Shows one manifest, takes words, or is away."""

    def __init__(self, manifest: Envelope) -> None:
        self.manifest, self.is_away = manifest, False
        self.taken: list[Envelope] = []

    def job(self, job: str) -> JobDetail:
        self._answer()
        plain = self.manifest.unverified(JobManifest)
        return JobDetail(
            job=plain.job,
            manifest_digest=plain.digest(),
            bank=plain.bank,
            parties=tuple(party.org for party in plain.parties),
            status=JobStatus.RUNNING,
            message="",
            created=plain.created,
            updated=plain.created,
            manifest=self.manifest,
            approvals=(),
            missing=(),
            attempt=1,
            run_id=None,
            records=(),
            progress={},
        )

    def approve(self, job: str, approval: Envelope) -> None:
        self._answer()
        self.taken.append(approval)

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("away")


def decide(world: World, coordinator: Coordinator, decision: Decision, **options: Any) -> None:
    client = cast(CoordinatorClient, coordinator)
    job = world.job.job
    jobs.decide(world.tax.home, world.tax.store, client, job, decision, NOW, **options)


@pytest.mark.parametrize("how", ["away", "another manifest"])
def test_a_withdrawal_counts_here_whatever_the_coordinator_does(world: World, how: str) -> None:
    coordinator = Coordinator(world.signed(world.job))
    decide(world, coordinator, Decision.APPROVE)
    admission = world.admit(world.tax, attempt=1)
    world.tax.gate.require_in_force(admission.job)
    if how == "away":
        coordinator.is_away = True
        with pytest.raises(Unavailable) as told:
            decide(world, coordinator, Decision.WITHDRAW)
        assert "takes no part" in (told.value.todo or "")
    else:
        coordinator.manifest = world.signed(world.manifest(created=utc_text(NOW - _HOUR)))
        decide(world, coordinator, Decision.WITHDRAW)
        assert coordinator.taken[-1].unverified(Approval).manifest == world.job.digest()
    with pytest.raises(Refused, match="withdraw"):
        world.tax.gate.require_in_force(admission.job)
    with pytest.raises(Refused):
        world.admit(world.tax, attempt=2)


_HOUR = timedelta(hours=1)


def _word(world: World, org: str = "tax", **changes: Any) -> Any:
    times = {"created": utc_text(NOW), "valid_from": utc_text(NOW), "nonce": "2" * 32}
    return make_approval(org, world.job.digest(), **(times | changes))


def test_a_job_that_was_let_in_does_not_outlive_its_approvals(world: World) -> None:
    admission = world.admit(world.tax)
    later: list[datetime] = [NOW]
    gate = Gate(world.tax.home, world.tax.store, lambda: later[0])
    gate.require_in_force(admission.job)
    later[0] = admission.job.valid_until
    with pytest.raises(Refused, match="ended"):
        gate.require_in_force(admission.job)


def test_a_party_that_is_no_longer_trusted_ends_the_job(world: World) -> None:
    admission = world.admit(world.tax)
    (world.tax.home.path / "trust" / "bank_a.json").unlink()
    with pytest.raises(Refused, match="not trusted here"):
        world.tax.gate.require_in_force(admission.job)


def test_a_word_of_somebody_who_is_not_asked_does_not_end_a_job_for_good(world: World) -> None:
    """The bank's own key signs "withdraw": it is asked nothing, and its word was kept for ever."""
    word = _word(world, org="bank_a", decision=Decision.WITHDRAW)
    foreign = world.bank.sign(word, Usage.APPROVE)
    with pytest.raises(Refused):
        world.admit(world.tax, approvals=[*world.approvals(world.job), foreign])
    world.tax.gate.require_in_force(world.admit(world.tax).job)


def test_two_jobs_of_one_name_are_not_both_approved(world: World) -> None:
    """A department's part of the first one's model would have been replaced by the second's."""
    decide(world, Coordinator(world.signed(world.job)), Decision.APPROVE)
    other = world.manifest(created=utc_text(NOW - _HOUR))
    with pytest.raises(Conflict, match="another job"):
        decide(world, Coordinator(world.signed(other)), Decision.APPROVE)
    decide(world, Coordinator(world.signed(world.job)), Decision.APPROVE)


def test_what_a_department_asks_of_another_counts_for_its_own_dataset(world: World) -> None:
    """PROTOCOLS.md, Exposure: queries between departments count on both datasets."""
    job = world.admit(world.tax, attempt=1).job
    manifest = bytes.fromhex(job.digest)
    answered = BatchId(manifest, 1, "bank_a", "bins", 0).token(0)
    world.tax.store.answers.record(answered, StoredAnswer(b"q", b"a"))
    asked = BatchId(manifest, 1, "tax", "bins/tax/court", 0)
    for place in range(3):
        world.tax.store.spent.spend(asked.token(place), b"q", b"m")
    world.tax.gate.close(job.digest, 1)
    assert world.tax.store.exposure.tokens("bank_a", "payments") == 4


def test_an_attempt_that_is_over_is_not_let_in_again(world: World) -> None:
    """Its folder may be gone (a restored backup, a full disk): the masks that a department shares
    with others follow from manifest and attempt, and would cover other values now."""
    job = world.admit(world.tax, attempt=1).job
    world.admit(world.tax, attempt=1)  # it may go on
    world.tax.gate.close(job.digest, 1)
    with pytest.raises(Refused):
        world.admit(world.tax, attempt=1)
    world.admit(world.tax, attempt=2)


def test_an_error_of_the_database_shows_no_value_that_was_to_be_stored(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'state.db'}")
    with (
        pytest.raises(NotKept) as raised,
        store.writing() as session,
    ):
        session.execute(text("INSERT INTO nowhere VALUES (:x)"), {"x": "canary-of-a-value"})
    assert "canary" not in str(raised.value)
    assert "canary" not in str(raised.value.__cause__)  # what the database said
    store.close()


@pytest.mark.parametrize("changes", [{"resolution": "0"}, {"score_range": "-8"}, {"pdo": 1000}])
def test_absurd_parameters_are_refused_and_not_an_accident(
    world: World, changes: dict[str, Any]
) -> None:
    """A division by zero left the gate as it was, past its one coarse word."""
    parameters = world.job.scorecard.model_copy(update=changes)
    with pytest.raises(Refused):
        world.admit(world.tax, world.job.model_copy(update={"parameters": parameters}))


def test_a_review_shows_the_entry_that_the_manifest_names(world: World) -> None:
    """A coordinator that serves an older entry would call a trade secret public."""
    shown = Dataset.model_validate(world.entry(world.tax, "payments").model_dump())
    fields = tuple(f.model_copy(update={"level": Level.L1}) for f in shown.fields)
    older = shown.model_copy(update={"fields": fields, "created": utc_text(NOW - _HOUR)})
    found = review(world.job, {("tax", "payments"): older}, me="tax")
    assert {item.level for item in found.fields if item.org == "tax"} == {"unknown"}
    assert any("not in the published catalogue" in text for text in found.warnings)
    found = review(world.job, {("tax", "payments"): shown}, me="tax")
    assert {item.level for item in found.fields if item.org == "tax"} == {"L2"}
