"""What may happen to a job, and what then happens: the coordinator's rules, without HTTP.

Envelopes are verified against the coordinator's own trust store, so that nobody is troubled by a
manifest or an approval that no gate would accept. It opens nothing: each owner's gate does the same
again with its own store and believes none of this.

    submitted -> reviewing -> approved -> running -> succeeded | failed
    and from any of the first four: refused, expired, withdrawn, stopped

One Flower run is one attempt. Delivery to a node is at most once and processes die, so an attempt
whose parties or ServerApp were lost is followed by a new one, with a new number that enters all
randomness; a party that refused or failed ends the job.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from federation import certificates, fab, keyring
from federation.api import (
    CatalogueEntry,
    Event,
    Events,
    JobDetail,
    JobStatus,
    JobSummary,
    OrganisationEntry,
    Page,
    ProgressBody,
    ProgressEntry,
    RunReport,
    TrainOrder,
    TrainReply,
)
from federation.audit import Receipt
from federation.catalogue import CATALOGUE_USAGE, Dataset
from federation.checks import check_job, persons_needed
from federation.envelope import Envelope
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    Refused,
    UsageError,
)
from federation.narrowing import require_less
from federation.network import Standing
from federation.objects import (
    OF_BANKS_ALONE,
    Approval,
    Decision,
    JobManifest,
    Role,
    RunRecord,
    Usage,
    utc_text,
    utc_time,
)
from federation.package import package_sha256
from federation.persons import distinct, require_signed_by_enough, require_stated
from federation.trust import TrustStore, verify_card
from protocols.secagg_books import least_threshold
from server.store import (
    ApprovalRow,
    CatalogueRow,
    EventRow,
    JobPartyRow,
    JobRow,
    OrganisationRow,
    RecordRow,
    Store,
    after_commit,
)

log = logging.getLogger(__name__)

MAX_OPEN_JOBS = 200  # of one bank
MAX_WORDS = 300  # of a refusal, in the job's status; the signed word has them all
ENDED = frozenset({"completed", "failed", "stopped"})  # as Flower calls a run that is over


class Flower(Protocol):
    """What governance asks of `server.flower.SuperLink` (through its one thread)."""

    members: dict[str, set[int]]

    def register_node(self, name: str, public_key: bytes) -> int:
        """Admit a node key (PEM)."""

    def create_run(self, job: str, fab: bytes) -> tuple[int, str]:
        """A run of the job: (run id, token of its ServerApp)."""

    def stop_run(self, run_id: int) -> None:
        """End a run."""

    def status(self, run_id: int) -> str:
        """Flower's word on a run."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a ServerApp process is given, over its standard input."""

    token: str = field(repr=False)
    run_id: int
    order: TrainOrder = field(repr=False)
    nodes: Mapping[str, int]  # organisation -> node id
    wall_time_s: float
    kept: str = field(default="", repr=False)  # of a job in rounds: what the last one left


@dataclass(frozen=True, slots=True)
class Rules:
    """The site's numbers."""

    attempts: int = 3  # of a job whose parties were lost
    # Running jobs that one organisation takes part in; at most the `workers` of its node. Starting
    # a job everywhere or nowhere is what keeps two jobs from waiting for each other's parties.
    jobs_at_once: int = 2


class Governance:
    """All state changes of organisations, catalogue and jobs."""

    def __init__(
        self,
        store: Store,
        flower: Flower,
        launch: Callable[[Task], None],
        *,
        platform: str,
        trust: Callable[[], TrustStore],
        now: Callable[[], datetime],
        membership: Path,
        rules: Rules | None = None,
        announce: Callable[[], None] = lambda: None,
        standing: Callable[[], Standing] | None = None,
        accept_card: Callable[[Envelope], None] | None = None,
    ) -> None:
        """standing: who takes part in the network; default, everybody who is trusted.
        accept_card: trusts a newer card of a member under the same admin key."""
        self._store, self._flower, self._launch = store, flower, launch
        self._platform, self._trust, self._now = platform, trust, now
        self._membership, self._rules, self._announce = membership, rules or Rules(), announce
        self._standing = standing or (lambda: Standing(self._trust()))
        self._accept_card = accept_card

    # --- organisations and catalogue --------------------------------------------------------------

    def register(self, org: str, card: Envelope) -> str:
        """An admitted organisation shows its card; its node key is admitted to Flower.

        The card must be the very one that the platform trusts, or a newer one under the same admin
        key; a first one, and one under another admin key, is first trusted by hand.
        """
        now, trust = self._now(), self._trust()
        shown, _ = verify_card(card)
        if shown.org != org:
            raise IntegrityError("this is another organisation's card", party=org)
        digest = shown.digest()
        # without a node key it could not register, so its card must not change either
        has_node = bool(shown.of_usage(Usage.NODE))
        if self._accept_card and has_node and shown.serial > trust.card(org).serial:
            self._accept_card(card)
            trust = self._trust()
        if digest != trust.card(org).digest():
            todo = f"have the platform run `lianmo org trust` with {org}'s newest card"
            raise Conflict("this is not the card that the platform trusts", party=org, todo=todo)
        key = trust.node_key(org)
        with self._store.write() as session:
            row = session.get(OrganisationRow, org)
            if row is None or row.card_digest != digest:
                node_id = str(self._flower.register_node(org, key.encode()))
                row = session.merge(
                    OrganisationRow(
                        org=org,
                        card_digest=digest,
                        node_id=node_id,
                        registered=now,
                        last_seen=now,
                    )
                )
                log.info("node registered", extra={"org": org})
            row.last_seen = now
            node = row.node_id
        self.publish_membership()
        return node

    def organisations(self) -> Page[OrganisationEntry]:
        """Every admitted organisation with its card."""
        trust = self._trust()
        return Page(items=tuple(self.organisation(org) for org in trust))

    def organisation(self, org: str) -> OrganisationEntry:
        """One admitted organisation with its card."""
        trust = self._trust()
        if org not in trust:
            raise NotFound("no such organisation is admitted", party=org)
        with self._store.read() as session:
            row = session.get(OrganisationRow, org)
        return OrganisationEntry(
            org=org,
            card=trust.envelope(org),
            registered=row and utc_text(row.registered),
            last_seen=row and row.last_seen and utc_text(row.last_seen),
        )

    def publish_dataset(self, org: str, dataset: str, entry: Envelope) -> CatalogueEntry:
        """Keep an owner's dataset entry; an older one is replaced."""
        now = self._now()
        shown = self._trust().verify(entry, Dataset, CATALOGUE_USAGE, now, org)
        if shown.object.owner != org or shown.object.name != dataset:
            raise UsageError("the entry is of another dataset or owner", party=org)
        with self._store.write() as session:
            old = session.get(CatalogueRow, (org, dataset))
            require_signed_by_enough(shown, _entry(old) if old else None)
            row = session.merge(
                CatalogueRow(
                    org=org,
                    dataset=dataset,
                    digest=shown.digest,
                    updated=now,
                    envelope=entry.to_json(),
                )
            )
            return _catalogue_entry(row)

    def catalogue(self, after: tuple[str, str], limit: int) -> Page[CatalogueEntry]:
        """Active members' entries after (organisation, dataset), in that order."""
        key = sa.tuple_(CatalogueRow.org, CatalogueRow.dataset)
        of_members = CatalogueRow.org.in_(sorted(self._active()))
        query = sa.select(CatalogueRow).where(key > after, of_members)
        query = query.order_by(*key.clauses).limit(limit + 1)
        with self._store.read() as session:
            rows = list(session.scalars(query))
        items = tuple(_catalogue_entry(row) for row in rows[:limit])
        cursor = f"{items[-1].org}/{items[-1].dataset}" if len(rows) > limit else None
        return Page(items=items, next=cursor)

    # --- jobs -------------------------------------------------------------------------------------

    def submit(self, org: str, envelope: Envelope) -> JobDetail:
        """A bank proposes a job; the same manifest again is the same job."""
        now, trust = self._now(), self._trust()
        shown = trust.verify(envelope, JobManifest, Usage.PROPOSE, now, org)
        manifest = shown.object
        if manifest.bank != org:
            raise Refused("only the bank of a job proposes it", party=org)
        self._require_current(manifest, trust, now)
        with self._store.write() as session:
            row = session.scalar(sa.select(JobRow).where(JobRow.job == manifest.job))
            if row is not None and row.manifest_digest != shown.digest:
                todo = "give the new job another name"
                raise Conflict(f"a job {manifest.job} exists already", party=org, todo=todo)
            if row is None:
                self._require_room(session, org)
                self._require_known_datasets(session, manifest)
                row = JobRow(
                    job=manifest.job,
                    manifest_digest=shown.digest,
                    envelope=envelope.to_json(),
                    status=JobStatus.SUBMITTED,
                    message="",
                    attempt=0,
                    created=now,
                    updated=now,
                )
                session.add(row)
                session.flush()
                session.add_all(
                    JobPartyRow(org=party.org, job_number=row.number) for party in manifest.parties
                )
                self._event(session, row, "status", org=org, status=JobStatus.SUBMITTED)
                log.info("job submitted", extra={"job": manifest.job, "org": org})
        self._announce()
        return self.job(org, manifest.job)

    def jobs(self, org: str, before: int | None, limit: int) -> Page[JobSummary]:
        """The jobs that name the organisation (all, for the platform), newest first."""
        query = sa.select(JobRow).order_by(JobRow.number.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(JobRow.number < before)
        if org != self._platform:
            mine = sa.select(JobPartyRow.job_number).where(JobPartyRow.org == org)
            query = query.where(JobRow.number.in_(mine))
        with self._store.read() as session:
            rows = list(session.scalars(query))
        items = tuple(_summary(row) for row in rows[:limit])
        return Page(items=items, next=str(rows[limit - 1].number) if len(rows) > limit else None)

    def job(self, org: str, job: str, *, is_review: bool = False) -> JobDetail:
        """All about a job; read by an owner whose word is awaited, it is in review from then on."""
        with self._store.read() as session:
            row = self._visible(session, org, job)
        if is_review and row.status == JobStatus.SUBMITTED and org in _manifest(row).approvers():
            with self._store.write() as session:
                row = self._visible(session, org, job)
                if row.status == JobStatus.SUBMITTED:
                    self._move(session, row, JobStatus.REVIEWING, org=org)
            self._announce()
        with self._store.read() as session:
            row = self._visible(session, org, job)
            digest = row.manifest_digest
            approvals = list(session.scalars(_of_job(ApprovalRow, digest)))
            records = list(session.scalars(_of_job(RecordRow, digest)))
            progress = _last_progress(session, row)
        return JobDetail(
            **_summary(row).model_dump(),
            manifest=Envelope.from_json(row.envelope),
            approvals=tuple(Envelope.from_json(item.envelope) for item in approvals),
            missing=self._missing(_manifest(row), approvals),
            attempt=row.attempt,
            run_id=row.run_id,
            records=tuple(Envelope.from_json(item.envelope) for item in records),
            receipts=tuple(
                Receipt.from_json(item.receipt) for item in records if item.receipt is not None
            ),
            progress=progress,
        )

    def decide(self, org: str, job: str, envelope: Envelope) -> JobDetail:
        """An owner approves, refuses or withdraws; the last approval starts the run."""
        now = self._now()
        shown = self._trust().verify(envelope, Approval, Usage.APPROVE, now, org)
        word = shown.object
        with self._store.write() as session:
            row = self._visible(session, org, job)
            self._require_word(org, row, word, now)
            said = list(session.scalars(_of_job(ApprovalRow, row.manifest_digest)))
            if shown.digest not in {item.digest for item in said}:
                self._enter(session, row, said, shown.digest, word, envelope)
        self._announce()
        self.tend()
        return self.job(org, job)

    def _enter(
        self,
        session: Session,
        row: JobRow,
        said: list[ApprovalRow],
        digest: str,
        word: Approval,
        envelope: Envelope,
    ) -> None:
        """Keep a new word of an owner and draw the consequence."""
        status, withdraws = JobStatus(row.status), word.decision is Decision.WITHDRAW
        if status.is_final or not (withdraws or status.is_open_for_approval):
            todo = "an approval is taken back with `lianmo job withdraw`"
            raise Conflict(f"the job is {status}", party=word.org, todo=todo)
        if withdraws and all(item.org != word.org for item in said):
            raise Conflict("there is no approval to withdraw", party=word.org)
        entry = ApprovalRow(
            manifest_digest=row.manifest_digest,
            org=word.org,
            digest=digest,
            decision=word.decision,
            envelope=envelope.to_json(),
            created=self._now(),
        )
        session.add(entry)
        self._event(session, row, "approval", org=word.org, text=word.decision)
        log.info("decision", extra={"job": row.job, "org": word.org, "decision": word.decision})
        if word.decision is Decision.REFUSE:
            code = f" ({word.code})" if word.code else ""
            words = f": {word.words[:MAX_WORDS]}" if word.words else ""
            text = f"{word.org} refused{code}{words}"
            self._end(session, row, JobStatus.REFUSED, text, word.org)
        elif word.decision is Decision.WITHDRAW:
            text = f"{word.org} withdrew its approval"
            self._end(session, row, JobStatus.WITHDRAWN, text, word.org)
        elif not self._missing(_manifest(row), [*said, entry]):
            self._move(session, row, JobStatus.APPROVED)
        elif status is JobStatus.SUBMITTED:
            self._move(session, row, JobStatus.REVIEWING, org=word.org)

    def stop(self, org: str, job: str, words: str) -> JobDetail:
        """A party ends the job for all."""
        with self._store.write() as session:
            row = self._visible(session, org, job)
            status = JobStatus(row.status)
            if status.is_final and status is not JobStatus.STOPPED:
                raise Conflict(f"the job is {status}", party=org)
            if not status.is_final:
                text = f"{org} stopped the job" + (f": {words}" if words else "")
                self._end(session, row, JobStatus.STOPPED, text, org)
        self._announce()
        return self.job(org, job)

    def progress(self, org: str, job: str, body: ProgressBody) -> JobStatus:
        """A party says how far it is; it hears whether the job goes on."""
        with self._store.write() as session:
            row = self._visible(session, org, job)
            status = JobStatus(row.status)
            if status is JobStatus.RUNNING and body.attempt == row.attempt:
                session.execute(
                    sa.delete(EventRow).where(
                        EventRow.job == row.job,
                        EventRow.kind == "progress",
                        EventRow.org == org,
                        EventRow.stage == body.stage[:200],
                    )
                )
                self._event(
                    session,
                    row,
                    "progress",
                    org=org,
                    stage=body.stage[:200],
                    progress=body.model_dump(mode="json"),
                )
        self._announce()
        return status

    def events(self, org: str, job: str, after: int, limit: int = 200) -> Events:
        """What happened after event `after`."""
        with self._store.read() as session:
            row = self._visible(session, org, job)
            query = (
                sa.select(EventRow)
                .where(EventRow.job == row.job, EventRow.number > after)
                .order_by(EventRow.number)
                .limit(limit)
            )
            items = tuple(_event(item) for item in session.scalars(query))
        last = items[-1].number if items else after
        return Events(items=items, after=last, status=JobStatus(row.status))

    # --- runs -------------------------------------------------------------------------------------

    def report(self, run_id: int, body: RunReport) -> None:
        """A ServerApp's word on its run; about a run that is not the job's current one, nothing."""
        with self._store.write() as session:
            row = session.scalar(sa.select(JobRow).where(JobRow.run_id == str(run_id)))
            if row is None or row.status != JobStatus.RUNNING:
                return
            if body.state == "log":
                self._event(session, row, "log", org=body.org, text=body.text)
            elif body.state == "record" and body.record is not None and body.org is not None:
                self._keep_record(session, row, body.org, body.record, body.receipt)
            elif body.state == "round":
                keyring.write(self._kept(row), body.kept.encode())
            elif body.state == "ended":
                self._finish(session, row, body.replies)
        self._announce()
        self.tend()

    def process_ended(self, run_id: int) -> None:
        """A run's ServerApp is gone; one that has not reported the end is tried again.

        Flower would find out by itself, when its heartbeat has stayed away for a minute.
        """
        with self._store.read() as session:
            row = session.scalar(sa.select(JobRow).where(JobRow.run_id == str(run_id)))
            is_cut_off = row is not None and row.status == JobStatus.RUNNING
        if is_cut_off and self._flower.status(run_id) not in ENDED:
            self._flower.stop_run(run_id)

    def tend(self) -> None:
        """Start what can start, expire what is too old, follow up what died. Called often."""
        now = self._now()
        with self._store.read() as session:
            states = (JobStatus.SUBMITTED, JobStatus.REVIEWING, JobStatus.APPROVED)
            open_jobs = session.scalars(
                sa.select(JobRow.job)
                .where(JobRow.status.in_((*states, JobStatus.RUNNING)))
                .order_by(JobRow.number)  # who came first starts first
            ).all()
        for job in open_jobs:
            with self._store.write() as session:
                row = session.scalar(sa.select(JobRow).where(JobRow.job == job))
                if row is not None and self._tend_one(session, row, now):
                    self._announce()

    def restore(self) -> None:
        """After a start: tell Flower and the relay again which nodes belong to which jobs."""
        with self._store.read() as session:
            for row in session.scalars(sa.select(JobRow).where(JobRow.status == JobStatus.RUNNING)):
                self._flower.members[row.manifest_digest] = set(
                    self._nodes(session, _manifest(row)).values()
                )
        self.publish_membership()

    def publish_membership(self) -> None:
        """Write for the relay who is admitted and which jobs run: one file, replaced as a whole."""
        trust, active = self._trust(), self._active()
        with self._store.read() as session:
            running = list(
                session.scalars(sa.select(JobRow).where(JobRow.status == JobStatus.RUNNING))
            )
        organisations = {
            org: {
                "certificate_sha256": certificate_sha256(trust, org),
                "ca": trust.tls_ca(org),
            }
            for org in trust
            if org in active
        }
        jobs = {row.manifest_digest: _data_parties(_manifest(row)) for row in running}
        content = json.dumps({"organisations": organisations, "jobs": jobs}, sort_keys=True)
        keyring.write(self._membership, content.encode())

    def _active(self) -> frozenset[str]:
        try:
            return self._standing().active(self._now())
        except LianmoError as error:  # damaged documents let nobody through
            log.error("network unreadable", extra={"reason": error.what})
            return frozenset()

    def _tend_one(self, session: Session, row: JobRow, now: datetime) -> bool:
        manifest, status = _manifest(row), JobStatus(row.status)
        if status.is_final:
            return False
        if status is JobStatus.RUNNING:
            return self._tend_run(session, row, manifest, now)
        if now >= utc_time(manifest.expires):
            self._end(session, row, JobStatus.EXPIRED, "the manifest expired before the run")
            return True
        if status is JobStatus.APPROVED and now >= utc_time(manifest.not_before):
            return self._start(session, row, manifest, now)
        return False

    def _tend_run(
        self, session: Session, row: JobRow, manifest: JobManifest, now: datetime
    ) -> bool:
        try:
            standing = self._standing()
            for party in manifest.parties:
                standing.require_active(party.org, now)
        except LianmoError as error:
            self._end(session, row, JobStatus.STOPPED, str(error), error.party or None)
            return True
        limit_s = manifest.limits.wall_time_s
        if row.started and (now - row.started).total_seconds() > limit_s:
            where = self._where(session, row)
            text = f"{where}: not finished within the {limit_s} s that the manifest allows; "
            text += "propose the job again with a longer wall_time_s, or ask who is named to run "
            self._end(session, row, JobStatus.FAILED, f"{text}`lianmo doctor`")
            return True
        if self._flower.status(int(row.run_id or 0)) in ENDED:
            log.warning("run ended without a report", extra={"job": row.job, "run": row.run_id})
            where = self._where(session, row)
            self._retry(session, row, f"coordinator, {where}: its process of the run ended early")
            return True
        return False

    def _start(self, session: Session, row: JobRow, manifest: JobManifest, now: datetime) -> bool:
        """One more attempt, once every party's node is known."""
        nodes = self._nodes(session, manifest)
        if absent := sorted(set(_data_parties(manifest)) - set(nodes)):
            text = f"waiting for the node of {', '.join(absent)}"
            changed, row.message = row.message != text, text
            return changed
        if busy := self._busy(session, manifest):
            text = f"waiting for {', '.join(busy)}: as many jobs as allowed run there already"
            changed, row.message = row.message != text, text
            return changed
        digest = row.manifest_digest
        said = session.scalars(_of_job(ApprovalRow, digest))
        approvals = tuple(Envelope.from_json(item.envelope) for item in said)
        try:
            # With the eyes of the bank's gate: what that would refuse need not be sent around.
            check_job(
                Envelope.from_json(row.envelope),
                approvals,
                self._trust(),
                now,
                me=manifest.bank,
                package_sha256=package_sha256(),
                standing=self._standing(),
            )
            self._flower.members[digest] = set(nodes.values())
            run_id, token = self._flower.create_run(digest, fab.build(manifest))
        except LianmoError as error:
            self._flower.members.pop(digest, None)
            changed, row.message = row.message != str(error), str(error)
            return changed
        row.attempt, row.run_id = row.attempt + 1, str(run_id)
        row.started = row.started or now  # the wall time is that of the job, not of an attempt
        self._move(session, row, JobStatus.RUNNING)
        order = TrainOrder(
            manifest=Envelope.from_json(row.envelope), approvals=approvals, attempt=row.attempt
        )
        left_s = manifest.limits.wall_time_s - (now - row.started).total_seconds()
        kept = self._kept(row)
        state = kept.read_text() if kept.is_file() else ""
        task = Task(token, run_id, order, nodes, max(left_s, 1.0), state)
        # A crash before the launch leaves a run without a ServerApp; Flower declares it failed
        # when its heartbeat stays away, and `_tend_run` starts the next attempt.
        after_commit(session, self.publish_membership)
        after_commit(session, lambda: self._launch(task))
        log.info("run started", extra={"job": row.job, "run": run_id, "attempt": row.attempt})
        return True

    def _kept(self, row: JobRow) -> Path:
        """Where the state between two rounds of a job is."""
        return self._membership.parent / f"rounds-{row.manifest_digest}"

    def _busy(self, session: Session, manifest: JobManifest) -> list[str]:
        """Parties that have no room for one more running job."""
        orgs = _data_parties(manifest)
        running = (
            sa.select(JobPartyRow.org, sa.func.count())
            .join(JobRow, JobRow.number == JobPartyRow.job_number)
            .where(JobRow.status == JobStatus.RUNNING, JobPartyRow.org.in_(orgs))
            .group_by(JobPartyRow.org)
        )
        most = self._rules.jobs_at_once
        return sorted(org for org, count in session.execute(running) if count >= most)

    def _nodes(self, session: Session, manifest: JobManifest) -> dict[str, int]:
        orgs = _data_parties(manifest)
        rows = session.scalars(sa.select(OrganisationRow).where(OrganisationRow.org.in_(orgs)))
        return {row.org: int(row.node_id) for row in rows}

    def _keep_record(
        self,
        session: Session,
        row: JobRow,
        org: str,
        envelope: Envelope,
        receipt: Receipt | None,
    ) -> None:
        """A record that verifies; its receipt as it came, for whoever asks to verify."""
        shown = self._trust().verify(envelope, RunRecord, Usage.RUN, self._now(), org)
        record = shown.object
        if (record.org, record.manifest) != (org, row.manifest_digest):
            raise IntegrityError("the run record is of another party or job", party=org)
        has_it = sa.select(RecordRow.number).where(
            RecordRow.manifest_digest == row.manifest_digest,
            RecordRow.attempt == record.attempt,
            RecordRow.org == org,
        )
        if session.scalar(has_it) is None:
            session.add(
                RecordRow(
                    manifest_digest=row.manifest_digest,
                    org=org,
                    attempt=record.attempt,
                    outcome=record.outcome,
                    envelope=envelope.to_json(),
                    receipt=None if receipt is None else receipt.to_json(),
                )
            )
            self._event(session, row, "record", org=org, text=record.outcome)

    def _finish(self, session: Session, row: JobRow, replies: Mapping[str, TrainReply]) -> None:
        """All parties have spoken, or have been silent for too long."""
        parties = _data_parties(_manifest(row))
        states = {org: replies[org] for org in parties if org in replies}
        succeeded = set(
            session.scalars(
                _of_job(RecordRow, row.manifest_digest)
                .with_only_columns(RecordRow.org)
                .where(RecordRow.attempt == row.attempt, RecordRow.outcome == "succeeded")
            )
        )
        if succeeded == set(parties) and all(r.state == "succeeded" for r in states.values()):
            self._end(session, row, JobStatus.SUCCEEDED, "", is_reported=True)
            return
        if missing := self._may_miss(_manifest(row), succeeded, states):
            text = f"without {', '.join(missing)}, lost on the way"
            self._end(session, row, JobStatus.SUCCEEDED, text, is_reported=True)
            return
        blamed = [org for org, reply in states.items() if reply.state in ("failed", "refused")]
        if blamed:
            org, reply = blamed[0], states[blamed[0]]
            todo = f"the reason is in {org}'s log"
            todo += f", reference {reply.reference}" if reply.reference else ""
            text = f"{org}, stage {reply.stage or 'start'}: {reply.state}; {todo}"
            self._end(session, row, JobStatus.FAILED, text, org, is_reported=True)
            return
        if states.keys() == set(parties) and all(r.state == "succeeded" for r in states.values()):
            # what was handed in did not verify; a repeat of the run would not change that
            unproven = [org for org in parties if org not in succeeded]
            text = f"{', '.join(unproven)}: no run record that verifies"
            self._end(session, row, JobStatus.FAILED, text, unproven[0], is_reported=True)
            return
        self._retry(
            session,
            row,
            f"{self._where(session, row, _lost(parties, states))}: lost",
            is_reported=True,
        )

    def _where(self, session: Session, row: JobRow, orgs: Iterable[str] = ()) -> str:
        """Of the parties, or of all that have not finished: who is at which stage."""
        if not orgs:
            done = _of_job(RecordRow, row.manifest_digest).where(RecordRow.attempt == row.attempt)
            ended = set(session.scalars(done.with_only_columns(RecordRow.org)))
            orgs = set(_data_parties(_manifest(row))) - ended or {"coordinator"}
        seen = _last_progress(session, row)
        stages = {org: seen[org].stage if org in seen else "start" for org in sorted(orgs)}
        return ", ".join(f"{org}, stage {stage}" for org, stage in stages.items())

    @staticmethod
    def _may_miss(
        manifest: JobManifest, succeeded: set[str], states: Mapping[str, TrainReply]
    ) -> list[str]:
        """Banks that a job of sums over banks could do without; empty if there is another way."""
        if manifest.task not in OF_BANKS_ALONE or manifest.bank not in succeeded:
            return []
        missing = [org for org in manifest.banks if org not in succeeded]
        if any(org in states and states[org].state != "lost" for org in missing):
            return []
        return missing if len(succeeded) >= least_threshold(len(manifest.banks)) else []

    def _retry(self, session: Session, row: JobRow, why: str, *, is_reported: bool = False) -> None:
        """A new attempt if any is left."""
        self._void_run(row, is_reported=is_reported)
        if row.attempt >= min(self._rules.attempts, _manifest(row).limits.attempts):
            text = f"{why}; given up after {row.attempt} attempts; have who is named run "
            text += "`lianmo doctor`, then submit the job again under another name"
            row.status = JobStatus.APPROVED  # its run is void already
            self._end(session, row, JobStatus.FAILED, text)
            return
        self._move(session, row, JobStatus.APPROVED, message=f"{why}; trying again")
        after_commit(session, self.publish_membership)

    def _end(
        self,
        session: Session,
        row: JobRow,
        status: JobStatus,
        message: str,
        org: str | None = None,
        *,
        is_reported: bool = False,
    ) -> None:
        """The job's last state."""
        if row.status == JobStatus.RUNNING:
            self._void_run(row, is_reported=is_reported)
        self._move(session, row, status, org=org, message=message)
        after_commit(session, self.publish_membership)
        kept = self._kept(row)  # now: after the commit the row is nobody's
        after_commit(session, lambda: kept.unlink(missing_ok=True))
        log.info("job ended", extra={"job": row.job, "status": status})

    def _void_run(self, row: JobRow, *, is_reported: bool) -> None:
        """Nothing more is sent for the attempt: its nodes see it no longer, its token is void.

        A ServerApp that has reported the end finishes by itself, under its token.
        """
        if row.run_id is not None and not is_reported:
            self._flower.stop_run(int(row.run_id))
        self._flower.members.pop(row.manifest_digest, None)

    # --- helpers ----------------------------------------------------------------------------------

    def _move(
        self,
        session: Session,
        row: JobRow,
        status: JobStatus,
        *,
        org: str | None = None,
        message: str = "",
    ) -> None:
        row.status, row.message, row.updated = status, message, self._now()
        self._event(session, row, "status", org=org, status=status, text=message)

    def _event(
        self,
        session: Session,
        row: JobRow,
        kind: str,
        *,
        org: str | None = None,
        status: str | None = None,
        stage: str | None = None,
        text: str = "",
        progress: dict[str, object] | None = None,
    ) -> None:
        session.add(
            EventRow(
                job=row.job,
                at=self._now(),
                kind=kind,
                org=org,
                status=status,
                stage=stage,
                text=text,
                progress=progress,
            )
        )

    def _visible(self, session: Session, org: str, job: str) -> JobRow:
        """The job, if it names the caller; who is not named learns nothing, not even its name."""
        row = session.scalar(sa.select(JobRow).where(JobRow.job == job))
        if row is not None and (
            org == self._platform or session.get(JobPartyRow, (org, row.number)) is not None
        ):
            return row
        raise NotFound(f"no job {job} names {org}", todo="look at `lianmo job list`")

    def _require_current(self, manifest: JobManifest, trust: TrustStore, now: datetime) -> None:
        if now >= utc_time(manifest.expires):
            raise UsageError("the manifest has expired", todo="make a new one")
        if manifest.package_sha256 != package_sha256():
            what = "the coordinator runs another release than the manifest names"
            raise Conflict(what, todo="bring both to the same release and make a new manifest")
        unknown = [p.org for p in manifest.parties if p.org not in trust]
        if unknown:
            todo = "have the platform admit it: `lianmo org trust CARD`"
            raise NotFound("not an admitted organisation", party=", ".join(unknown), todo=todo)

    def _require_known_datasets(self, session: Session, manifest: JobManifest) -> None:
        for party in manifest.parties:
            if party.role is Role.PLATFORM or party.dataset is None:
                continue
            entry = session.get(CatalogueRow, (party.org, party.dataset))
            if entry is None:
                continue
            if entry.digest != party.catalogue_digest:
                what = f"the catalogue entry of {party.dataset} has changed"
                raise Conflict(what, party=party.org, todo="make the job from the new entry")
            require_stated(_entry(entry), party)

    def _missing(self, manifest: JobManifest, said: list[ApprovalRow]) -> tuple[str, ...]:
        """Owners of whom too few persons approved."""
        trust, now = self._trust(), self._now()
        persons: dict[str, list[str]] = {}
        for row in said:
            if row.decision == Decision.APPROVE:
                envelope = Envelope.from_json(row.envelope)
                try:
                    word = trust.verify(envelope, Approval, Usage.APPROVE, now, row.org)
                except LianmoError:  # its key was revoked since
                    continue
                persons.setdefault(row.org, []).extend(word.holders)
        return tuple(
            org
            for org in manifest.approvers()
            if distinct(persons.get(org, ())) < persons_needed(manifest.party(org))
        )

    def _require_room(self, session: Session, org: str) -> None:
        mine = sa.select(JobPartyRow.job_number).where(JobPartyRow.org == org)
        states = (JobStatus.SUBMITTED, JobStatus.REVIEWING)
        count = session.scalar(
            sa.select(sa.func.count()).where(JobRow.number.in_(mine), JobRow.status.in_(states))
        )
        if (count or 0) >= MAX_OPEN_JOBS:
            todo = "stop those that nobody needs: `lianmo job stop`"
            raise Conflict(f"{MAX_OPEN_JOBS} jobs await approval already", party=org, todo=todo)

    def _require_word(self, org: str, row: JobRow, word: Approval, now: datetime) -> None:
        if word.org != org or word.manifest != row.manifest_digest:
            raise IntegrityError("the decision is of another organisation or job", party=org)
        if org not in _manifest(row).approvers():
            raise Refused("this organisation is not asked to approve the job", party=org)
        if word.narrowing is not None:
            require_less(word.narrowing, _manifest(row), org)
        if now >= utc_time(word.valid_until):
            raise UsageError("the decision has expired", party=org, todo="decide again")


def certificate_sha256(trust: TrustStore, org: str) -> str:
    """Which certificate an organisation's connections show."""
    return hashlib.sha256(certificates.der(trust.card(org).tls_certificate)).hexdigest()


def _manifest(row: JobRow) -> JobManifest:
    """The manifest of a job that was verified when it came."""
    return Envelope.from_json(row.envelope).unverified(JobManifest)


def _entry(row: CatalogueRow) -> Dataset:
    """A catalogue entry that was verified when it came."""
    return Envelope.from_json(row.envelope).unverified(Dataset)


def _data_parties(manifest: JobManifest) -> list[str]:
    """Who takes part in the run: everybody but the platform."""
    return [party.org for party in manifest.parties if party.role is not Role.PLATFORM]


Row = TypeVar("Row", ApprovalRow, RecordRow)


def _of_job(kind: type[Row], digest: str) -> sa.Select[Row]:
    return sa.select(kind).where(kind.manifest_digest == digest).order_by(kind.number)


def _summary(row: JobRow) -> JobSummary:
    manifest = _manifest(row)
    return JobSummary(
        job=row.job,
        manifest_digest=row.manifest_digest,
        bank=manifest.bank,
        parties=tuple(party.org for party in manifest.parties),
        status=JobStatus(row.status),
        message=row.message,
        created=utc_text(row.created),
        updated=utc_text(row.updated),
    )


def _event(row: EventRow) -> Event:
    return Event.model_validate(
        {
            "number": row.number,
            "at": utc_text(row.at),
            "kind": row.kind,
            "org": row.org,
            "status": row.status,
            "text": row.text,
            "progress": row.progress,
        }
    )


def _lost(parties: Sequence[str], states: Mapping[str, TrainReply]) -> list[str]:
    """Who was lost: whom others waited for in vain, else who said nothing or lost its process."""
    missing = {reply.missing for reply in states.values() if reply.state == "lost"}
    named = [org for org in parties if org in missing]
    silent = [
        org
        for org in parties
        if org not in states or (states[org].state == "lost" and states[org].missing is None)
    ]
    others = [org for org in parties if org not in states or states[org].state != "succeeded"]
    return named or silent or others


def _last_progress(session: Session, row: JobRow) -> dict[str, ProgressEntry]:
    """The newest progress of each party in the current attempt."""
    query = (
        sa.select(EventRow)
        .where(EventRow.job == row.job, EventRow.kind == "progress")
        .order_by(EventRow.number)
    )
    found: dict[str, ProgressEntry] = {}
    for item in session.scalars(query):
        if item.org is not None and item.progress and item.progress["attempt"] == row.attempt:
            entry = item.progress | {"at": utc_text(item.at)}
            found[item.org] = ProgressEntry.model_validate(entry)
    return found


def _catalogue_entry(row: CatalogueRow) -> CatalogueEntry:
    return CatalogueEntry(
        org=row.org,
        dataset=row.dataset,
        digest=row.digest,
        updated=utc_text(row.updated),
        entry=Envelope.from_json(row.envelope),
    )
