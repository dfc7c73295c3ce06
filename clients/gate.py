"""The gate: the only code that opens data (DESIGN.md, The pieces).

It believes nobody. It computes every digest again, checks every signature against this node's own
trust store, compares what the job would disclose with what the task itself declares, holds it to
the catalogue entry in force and to the exposure of the dataset, and then hands out exactly the
approved columns, lined up with the rows of the job. No other module reads a snapshot.

A refusal says one coarse code to whoever asked; the reason stands in this node's log.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import rfc8785
from numpy.typing import NDArray

from clients import registries
from clients.audit import AuditLog
from clients.clock import ClockWatch
from clients.home import Home
from clients.lookup import Lookup, OneRow, OneValue
from clients.sources import OpenSnapshot
from clients.store import Reservation, Store, StoredDataset
from federation import fab as bundles
from federation.audit import Action, Check, Result, exposure_scope
from federation.catalogue import CATALOGUE_USAGE, Dataset, require_usable
from federation.checks import ApprovedJob, check_job, require_keys_kept
from federation.codes import Codes
from federation.envelope import Envelope
from federation.errors import (
    IntegrityError,
    LianmoError,
    NotFound,
    NotKept,
    RefusalCode,
    Refused,
)
from federation.escrow import encrypt_key
from federation.network import Standing
from federation.objects import (
    Approval,
    CoverKind,
    Decision,
    JobManifest,
    JobParty,
    OrgKind,
    Role,
    RunRecord,
    Usage,
)
from federation.package import package_sha256
from federation.persons import require_signed_by_enough, require_stated
from federation.registry import (
    Cover,
    Decoys,
    Registry,
    customers_cover,
    decoy_cover,
    extend_decoys,
    no_decoys,
    registry_cover,
)
from federation.review import EXPOSURE_REFUSES, EXPOSURE_WARNS
from federation.tables import BankData, CategoryColumn, Column, DepartmentData
from federation.trust import TrustStore
from protocols.streams import encode

log = logging.getLogger("lianmo.gate")


class Gate:
    """One node's door to its own data."""

    def __init__(
        self,
        home: Home,
        store: Store,
        now: Callable[[], datetime],
        *,
        exposure_limit: float = EXPOSURE_REFUSES,
        clock: ClockWatch | None = None,
    ) -> None:
        """exposure_limit: may tighten the default, never widen it."""
        self._clock = clock or ClockWatch()
        self._home, self._store, self._now = home, store, now
        self._exposure_limit = min(exposure_limit, EXPOSURE_REFUSES)
        self._audit = AuditLog(home, store)
        self._lookups: dict[str, Lookup] = {}

    def admit(
        self,
        manifest: Envelope,
        approvals: Sequence[Envelope],
        *,
        fab: bytes,
        run_config: Mapping[str, object],
        attempt: int = 0,
    ) -> Admission:
        """Let one attempt of a job in, if everything about it is what the owners approved.

        Raises Refused with a coarse code and no reason; nothing was opened or counted then. Raises
        NotKept if this node cannot store what has to be stored before anything is opened. The same
        attempt may be admitted again, after a restart, and counts once.
        """
        at = _At()
        try:
            return self._admit(manifest, approvals, fab, run_config, attempt, at)
        except NotKept:  # a full disk is no policy; nobody said no
            raise
        except LianmoError as error:
            code = _code(error)
            job = hashlib.sha256(manifest.payload).hexdigest()
            extra = {"manifest": job, "attempt": attempt, "code": code.value}
            log.warning("job refused at the gate: %s", error, extra=extra)
            self._log_refusal(job, attempt, at.check, error)
        todo = "the reason is in this organisation's own log"
        raise Refused("the job is refused at the gate", code=code, party=self._home.org, todo=todo)

    def require_in_force(self, job: ApprovedJob) -> None:
        """Raises Refused if a job that was let in may not go on.

        Asked again and again while it runs: whether it was withdrawn or has run out is for this
        node's own store and clock to say, not for the coordinator that both would be told by.
        """
        if self._now() >= job.valid_until:
            raise Refused("the job or an approval of it has ended", party=job.manifest.bank)
        for data in self._store.jobs.approvals(job.digest):
            word = Envelope.from_json(data).unverified(Approval)  # verified before it was kept
            if word.decision is not Decision.APPROVE and word.org in job.manifest.approvers():
                raise Refused(f"{word.decision} was said to this job", party=word.org)
        require_keys_kept(job, self._home.trust())
        self._require_members(job.manifest)

    def _require_members(self, manifest: JobManifest) -> None:
        """Every party, and the platform that carries the messages, takes part in the network."""
        standing, now = self._home.standing(), self._now()
        trust = standing.trust
        platforms = {org for org in trust if trust.card(org).org_kind is OrgKind.PLATFORM}
        for org in sorted(platforms | {party.org for party in manifest.parties}):
            standing.require_active(org, now)

    def one_value(
        self, intent: int, *, dataset: str, catalogue: str, column: str, subject: str
    ) -> OneValue:
        """One field of one enterprise, for a question whose intent stands in the audit log.

        intent: its entry, which must have been admitted and be about this very enterprise.
        catalogue: digest of the entry that the question was judged by. Raises Refused otherwise.
        """
        return self._lookup(intent, dataset, catalogue, subject).value(column, subject)

    def one_row(
        self, intent: int, *, dataset: str, catalogue: str, columns: Sequence[str], subject: str
    ) -> OneRow:
        """Some features of one enterprise, for a score; the same conditions as `one_value`."""
        return self._lookup(intent, dataset, catalogue, subject).row(columns, subject)

    def _lookup(self, intent: int, dataset: str, catalogue: str, subject: str) -> Lookup:
        entry = self._audit.entry(intent)
        about = self._audit.subject(intent)
        if (
            entry.action not in (Action.ASKED, Action.SCORED, Action.WATCHED)
            or entry.outcome is not Result.ADMITTED
            or about != subject.encode()
        ):
            raise Refused("there is no intent in the log to ask about this enterprise")
        stored, words = self._store.datasets.get(dataset), self._store.entries.get(dataset)
        if words.digest != catalogue or words.envelope is None:
            raise Refused(f"the entry of dataset {dataset} has changed since the question")
        open_to = self._lookups.get(dataset)
        if open_to is None or (open_to.snapshot, open_to.catalogue) != (stored.snapshot, catalogue):
            signed = Envelope.from_json(words.envelope)
            said = self._home.trust().verify(
                signed, Dataset, CATALOGUE_USAGE, self._now(), org=self._home.org
            )
            require_signed_by_enough(said)
            path = registries.data_folder(self._home) / stored.file
            open_to = Lookup(OpenSnapshot(path, stored.snapshot), stored, said.object)
            self._lookups[dataset] = open_to
        return open_to

    def close(self, manifest: str, attempt: int) -> None:
        """The attempt is over, well or not: from now on it counts with the queries it got answered.

        Without this it counts with all that it declared, which is right for one that may go on.
        manifest: the digest, as in `Admission.job`; nothing happens if it was never admitted.
        """
        now = self._now()
        with self._audit.together(now):
            tokens = self._store.answers.tokens(manifest, attempt)
            if tokens:  # a department: what it asked of others was about its own columns as well
                tokens += self._store.spent.tokens(manifest, attempt)
            if self._store.exposure.close(manifest, attempt, tokens, now):
                self._audit.append(
                    Action.ATTEMPT_CLOSED,
                    manifest,
                    now,
                    actor=Usage.RUN,
                    job=manifest,
                    attempt=attempt,
                    amount=tokens,
                )

    def reopen(self, record: RunRecord, auditor: str) -> Admission:
        """What an attempt of this node was given, once more, for an auditor who replays it.

        record: the node's own. It enters the audit log before anything is read. Raises NotFound if
        the data are not those of the run any more.
        """
        now, me = self._now(), self._home.org
        signed = Envelope.from_json(self._store.jobs.get(record.manifest).envelope)
        manifest = signed.unverified(JobManifest)  # verified before it was kept
        salt = self._store.exposure.salt(record.manifest, record.attempt)
        party = {item.org: item for item in manifest.parties}.get(me)
        if salt is None or party is None or party.dataset is None:
            raise NotFound("this node was given nothing in that attempt", party=me)
        registry = registries.current(self._home, self._store)
        dataset, entry = self._dataset(manifest, party, self._home.trust(), now)
        source = OpenSnapshot(registries.data_folder(self._home) / dataset.file, dataset.snapshot)
        with self._audit.together(now):
            self._audit.append(
                Action.AUDIT_OPENED,
                record.digest(),
                now,
                job=record.manifest,
                attempt=record.attempt,
                subject=auditor.encode(),
            )
        job = ApprovedJob(manifest, record.manifest, me, (), now)
        opened = _Opened(source, dataset, entry)
        found = Admission(job, record.attempt, party, registry, salt, opened, self)
        if found.snapshot_digest != record.snapshot:
            todo = "restore registry and dataset as they were on that day from a backup"
            raise NotFound("registry or dataset have changed since the run", party=me, todo=todo)
        return found

    # --- the order of the checks ------------------------------------------------------------------

    def _admit(
        self,
        manifest: Envelope,
        approvals: Sequence[Envelope],
        fab: bytes,
        run_config: Mapping[str, object],
        attempt: int,
        at: _At,
    ) -> Admission:
        trust, now, me = self._home.trust(), self._now(), self._home.org
        self._audit.require_clock(now)
        self._clock.require(now)
        at.check = Check.APPROVALS
        words = self._all_words(manifest, approvals, trust, now)
        job = check_job(
            manifest,
            words,
            trust,
            now,
            me=me,
            package_sha256=package_sha256(),
            standing=self._home.standing(),
        )
        self._require_members(job.manifest)
        require_auditors(job.manifest, self._home.standing(), now)
        require_attempt(job.manifest, attempt)
        at.check = Check.BUNDLE
        bundles.require_same(job.manifest, fab, dict(run_config))
        at.check = Check.DISCLOSURES
        require_declared(job.manifest)
        at.check = Check.REGISTRY
        registry = registries.current(self._home, self._store)
        require_registry(job.manifest, registry)
        party = job.manifest.party(me)
        if party.role is Role.PLATFORM:
            self._log_intent(job.digest, attempt, now)
            return Admission(job, attempt, party, registry, bytes(32))
        at.check = Check.CATALOGUE
        dataset, entry = self._dataset(job.manifest, party, trust, now)
        at.check = Check.SNAPSHOT
        source = OpenSnapshot(registries.data_folder(self._home) / dataset.file, dataset.snapshot)
        at.check = Check.EXPOSURE
        # With this the intent is on disk; only now can anything be read from the snapshot.
        with self._audit.together(now):
            salt = self._reserve(job, party, attempt, now)
        return Admission(job, attempt, party, registry, salt, _Opened(source, dataset, entry), self)

    def _all_words(
        self, manifest: Envelope, given: Sequence[Envelope], trust: TrustStore, now: datetime
    ) -> list[Envelope]:
        """What was given, and every refusal or withdrawal that this node ever saw.

        So whoever carries the messages cannot take one back by not delivering it the next time.
        """
        digest = hashlib.sha256(manifest.payload).hexdigest()
        asked = manifest.unverified(JobManifest).approvers()
        for envelope in given:
            try:
                word = trust.verify(envelope, Approval, Usage.APPROVE, now)
            except LianmoError:
                continue  # the check of the job says why
            # Of nobody else: kept for good, a stranger's word would end the job for good.
            if (
                word.org in asked
                and word.object.manifest == digest
                and word.object.decision is not Decision.APPROVE
            ):
                self._store.jobs.put_approval(
                    word.digest, digest, word.org, envelope.to_json(), now
                )
        seen = [Envelope.from_json(data) for data in self._store.jobs.approvals(digest)]
        known = {envelope.payload for envelope in given}
        return [
            *given,
            *(
                envelope
                for envelope in seen
                if envelope.payload not in known
                # an approval that has run out would outweigh the one that took its place
                and envelope.unverified(Approval).decision is not Decision.APPROVE
            ),
        ]

    def _dataset(
        self, manifest: JobManifest, party: JobParty, trust: TrustStore, now: datetime
    ) -> tuple[StoredDataset, Dataset]:
        """The own dataset and its entry in force, if they are those that were approved."""
        name = party.dataset or ""
        dataset, stored = self._store.datasets.get(name), self._store.entries.get(name)
        if stored.envelope is None:
            text = f"the entry of dataset {name} was never signed"
            raise Refused(text, code=RefusalCode.UNFULFILLABLE)
        signed = Envelope.from_json(stored.envelope)
        verified = trust.verify(signed, Dataset, CATALOGUE_USAGE, now, org=party.org)
        require_signed_by_enough(verified)
        entry = verified.object
        if entry.digest() != party.catalogue_digest:
            raise Refused(f"the catalogue entry of {name} is another one than the approved one")
        require_usable(
            entry,
            party.fields,
            role=party.role,
            purpose=manifest.purpose,
            min_cohort=manifest.parameters.min_cohort,
        )
        require_stated(entry, party)
        there = dict(dataset.columns)
        for wanted in party.fields:
            if there.get(wanted) != entry.field(wanted).type:
                text = f"field {wanted} is not in the snapshot as the entry says"
                raise Refused(text, code=RefusalCode.UNFULFILLABLE)
        return dataset, entry

    def _reserve(self, job: ApprovedJob, party: JobParty, attempt: int, now: datetime) -> bytes:
        """Count the attempt's tokens before anything is opened; returns the salt of its record."""
        manifest = job.manifest
        # Of several banks only sums over all of their customers open.
        customers = manifest.limits.customers_min * len(manifest.banks)
        most = int(self._exposure_limit * customers)
        wanted = Reservation(
            manifest=job.digest,
            attempt=attempt,
            bank=",".join(sorted(manifest.banks)),
            dataset=party.dataset or "",
            tokens=declared_tokens(manifest) if party.role is Role.DEPARTMENT else 0,
            customers_min=customers,
            salt=secrets.token_bytes(32),
        )
        if party.role is Role.DEPARTMENT:
            from federation.tasks.conditions import require_hidden  # tasks take their time to load

            before = self._store.exposure.tokens(wanted.bank, wanted.dataset)
            require_hidden(manifest, party.org, before)
        entered = self._store.exposure.reserve(wanted, most, now)
        total = self._store.exposure.weighed(wanted.bank, wanted.dataset, wanted.customers_min)
        if entered is None:
            text = f"{total} tokens before, {wanted.tokens} declared, at most {most}"
            raise Refused(f"exposure: {text}", code=RefusalCode.INSUFFICIENT_BUDGET)
        if total > EXPOSURE_WARNS * customers:
            extra = {"manifest": job.digest, "dataset": wanted.dataset, "tokens": total}
            log.warning("exposure above the warning level", extra=extra)
        self._log_intent(job.digest, attempt, now, entered)
        return entered.salt

    # --- the audit log ----------------------------------------------------------------------------

    def _policy(self) -> str:
        """Digest of what this gate decides by besides the manifest: release and own limits."""
        rules = {"exposure_limit": str(self._exposure_limit), "package": package_sha256()}
        return hashlib.sha256(rfc8785.dumps(rules)).hexdigest()

    def _log_intent(
        self, job: str, attempt: int, now: datetime, entered: Reservation | None = None
    ) -> None:
        counted: dict[str, Any] = {}
        if entered is not None:
            scope = exposure_scope(entered.bank, entered.dataset)
            counted = {"scope": scope, "amount": entered.tokens}
        self._audit.append(
            Action.ATTEMPT,
            job,
            now,
            actor=Usage.RUN,
            outcome=Result.ADMITTED,
            job=job,
            attempt=attempt,
            policy=self._policy(),
            **counted,
        )

    def _log_refusal(self, job: str, attempt: int, check: Check, error: LianmoError) -> None:
        try:
            self._audit.refused(job, attempt, check, error, self._now(), self._policy())
        except LianmoError as failed:  # refused it is in any case
            extra = {"manifest": job, "attempt": attempt, "reason": str(failed)}
            log.error("refusal not in the audit log", extra=extra)

    # --- the bank's customers ---------------------------------------------------------------------

    def cover_rows(self, dataset: str, kind: CoverKind, k: int | None = None) -> int:
        """How many rows a job over this own dataset would have, for its manifest.

        Draws the decoys that are still missing: they are chosen once, when they are first named.
        """
        registry = registries.current(self._home, self._store)
        if kind is CoverKind.REGISTRY:
            return len(registry)
        stored = self._store.datasets.get(dataset)
        path = registries.data_folder(self._home) / stored.file
        codes = OpenSnapshot(path, stored.snapshot).codes(stored.columns[0][0])
        listed = codes[registry.positions(codes) >= 0]
        return len(self.cover(kind, k, registry, listed))

    def cover(self, kind: CoverKind, k: int | None, registry: Registry, customers: Codes) -> Cover:
        """The rows of a job with these customers; decoys are drawn once and kept for ever."""
        if kind is CoverKind.REGISTRY:
            return registry_cover(registry)
        if kind is CoverKind.CUSTOMERS:
            return customers_cover(registry, customers)
        before, pairs = self._store.decoys.get()
        stored = no_decoys(k or 2)
        if before is not None:
            owners, decoys = (np.array(side, "S18") for side in zip(*pairs, strict=True))
            stored = Decoys(before, owners, decoys)
        grown = extend_decoys(stored, registry, customers, self._decoy_key())
        pairs = list(zip(grown.owners.tolist(), grown.decoys.tolist(), strict=True))
        self._store.decoys.extend(k or 2, pairs)
        return decoy_cover(registry, grown)

    def _decoy_key(self) -> bytes:
        path = registries.data_folder(self._home) / "decoys.key"
        if not path.exists():
            from federation.keyring import write

            write(path, secrets.token_bytes(32), 0o600)
        return path.read_bytes()


# --- checks that need no data ---------------------------------------------------------------------


def require_auditors(manifest: JobManifest, standing: Standing, now: datetime) -> None:
    """Whoever is to open the bank's queries is an auditor, takes part now, and has a key for it.

    A bank could name friends otherwise, or keys that nobody has.
    """
    for org in manifest.audit.auditors:
        standing.require_active(org, now)
        card = standing.trust.card(org)
        if card.org_kind is not OrgKind.AUDITOR:
            raise Refused(f"is named as an auditor, and is a {card.org_kind}", party=org)
        encrypt_key(standing.trust, org)


def require_attempt(manifest: JobManifest, attempt: int) -> None:
    """The job does not run more often than was approved; 0 stands for no run in particular."""
    if not 0 <= attempt <= manifest.limits.attempts:
        raise Refused(f"attempt {attempt} of {manifest.limits.attempts} that were approved")


def require_declared(manifest: JobManifest) -> None:
    """The manifest declares exactly what the task would disclose with these parameters."""
    from federation.tasks.registry import task_of  # tasks' kernels take their time to load

    try:
        declared = task_of(manifest).declare(manifest)
    except (ArithmeticError, TypeError, ValueError) as error:  # e.g. a resolution of 0
        raise Refused("the parameters are not those of any job") from error
    if manifest.disclosures != declared:
        raise Refused("the declared disclosures are not those of the task")


def require_registry(manifest: JobManifest, registry: Registry) -> None:
    """The job runs over this node's own registry snapshot, all of it or a part."""
    named = manifest.registry
    if named.digest != registry.digest.hex() or named.rows != len(registry):
        text = "the job's registry snapshot is not this node's current one"
        raise Refused(text, code=RefusalCode.UNFULFILLABLE)
    rows = manifest.cover.rows
    if rows > len(registry) or (
        manifest.cover.kind is CoverKind.REGISTRY and rows != len(registry)
    ):
        raise Refused(f"a cover of {rows} rows, the registry has {len(registry)}")


def declared_tokens(manifest: JobManifest) -> int:
    """Queries that a job may put to one department's dataset, between departments included."""
    others = len(manifest.departments) - 1
    return manifest.limits.tokens + manifest.limits.tokens_between * others


def _code(error: LianmoError) -> RefusalCode:
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, NotFound):
        return RefusalCode.UNFULFILLABLE
    return (
        RefusalCode.CONSENT_INVALID if isinstance(error, IntegrityError) else RefusalCode.DECLINED
    )


@dataclass(slots=True)
class _At:
    """The check that is being made."""

    check: Check = Check.CLOCK


# --- what an admitted job gets --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opened:
    """A snapshot with the words on it."""

    source: OpenSnapshot
    dataset: StoredDataset
    entry: Dataset


@dataclass(frozen=True)
class Admission:
    """One attempt of an approved job, and what it gets to see at this party."""

    job: ApprovedJob
    attempt: int
    party: JobParty
    registry: Registry = field(repr=False)
    _salt: bytes = field(repr=False)
    _opened: _Opened | None = field(default=None, repr=False)
    _gate: Gate | None = field(default=None, repr=False)

    def department_data(self, cover: Cover | None = None) -> DepartmentData:
        """The approved columns over the cover; rows without a record are missing.

        cover: the bank's own one where the manifest's is not the whole registry, else None.
        """
        self._require(Role.DEPARTMENT)
        if (cover is None) != (self.job.manifest.cover.kind is CoverKind.REGISTRY):
            kind = self.job.manifest.cover.kind
            raise IntegrityError(f"the approved cover is of kind {kind}, and there is another")
        rows = self.registry.positions(self._codes)
        place = np.full(len(self.registry), -1, np.int64)
        place[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        codes = self.registry.codes
        if cover is not None:
            cover.require_on(self.registry)
            if cover.kind is not self.job.manifest.cover.kind:
                raise IntegrityError(f"a cover of kind {cover.kind} is not the approved one")
            if len(cover) != (approved := self.job.manifest.cover.rows):
                raise IntegrityError(f"a cover of {len(cover)} rows, approved are {approved}")
            place, codes = place[cover.positions], codes[cover.positions]
        columns = [_lined_up(column, place) for column in self._columns()]
        return DepartmentData(columns, codes)

    @cached_property
    def cover(self) -> Cover:
        """The job's rows as the bank chooses them; only the bank can say."""
        rule, gate = self.job.manifest.cover, self._gate
        if gate is None:
            raise RuntimeError("the platform has no cover")
        self._require(Role.BANK)
        cover = gate.cover(rule.kind, rule.decoys, self.registry, self._codes[self._listed])
        if len(cover) != rule.rows:
            what = f"a cover of {len(cover)} rows, approved are {rule.rows}"
            raise Refused(what, party=self.job.me)
        return cover

    def bank_data(self) -> BankData:
        """The bank's customers, in the order of the cover, with their features and labels.

        Raises Refused if they are not as many as the manifest says.
        """
        self._require(Role.BANK)
        opened, limits = self._content(), self.job.manifest.limits
        positions = self.registry.positions(self._codes)
        listed = np.flatnonzero(positions >= 0)
        if not limits.customers_min <= len(listed) <= limits.customers_max:
            said = f"{limits.customers_min} to {limits.customers_max}"
            text = f"{len(listed)} customers are on the registry, the manifest says {said}"
            raise Refused(text, code=RefusalCode.SPEC_INVALID, party=self.job.me)
        order = listed[np.argsort(positions[listed])]
        if (label := opened.entry.label) is None:
            raise RuntimeError("a bank's entry was admitted without a label")
        return BankData(
            cover_rows=len(self.cover),
            positions=self.cover.rows_of(positions[order]),
            codes=self._codes[order],
            columns=[_lined_up(column, order) for column in self._columns()],
            labels=opened.source.labels(label.name)[order],
        )

    @cached_property
    def snapshot_digest(self) -> str:
        """SHA-256 over the salt, the registry and the handed-out columns, for the run record.

        The salt stays here with the attempt: without it nobody can try guesses of the data.
        """
        digest = hashlib.sha256(encode(b"lianmo/v1/snapshot", self._salt, self.registry.digest))
        if self._opened is not None:
            digest.update(encode(self._codes.tobytes()))
            for column in self._columns():
                digest.update(encode(column.name))
                if isinstance(column, CategoryColumn):
                    digest.update(encode(column.codes.tobytes(), *column.categories))
                else:
                    digest.update(encode(column.values.tobytes()))
            if self.party.role is Role.BANK and (label := self._opened.entry.label) is not None:
                digest.update(encode(self._opened.source.labels(label.name).tobytes()))
        return digest.hexdigest()

    @cached_property
    def _codes(self) -> Codes:
        opened = self._content()
        return opened.source.codes(opened.dataset.columns[0][0])  # the key stands first

    @property
    def _listed(self) -> NDArray[np.bool_]:
        return self.registry.positions(self._codes) >= 0

    def _columns(self) -> list[Column]:
        opened = self._content()
        return [
            opened.source.column(name, opened.entry.field(name).type) for name in self.party.fields
        ]

    def _content(self) -> _Opened:
        if self._opened is None:
            raise Refused("the platform brings no data", party=self.job.me)
        return self._opened

    def _require(self, role: Role) -> None:
        if self.party.role is not role:
            what = f"{self.job.me} takes part as {self.party.role}, not as {role}"
            raise Refused(what, party=self.job.me)


def _lined_up(column: Column, rows: NDArray[np.int64]) -> Column:
    """The column in the order of the job's rows; categories that no row has are left out."""
    taken: Any = column.take(rows)
    if not isinstance(taken, CategoryColumn):
        return column.take(rows)
    used = np.unique(taken.codes[taken.codes >= 0])
    place = np.full(len(taken.categories) + 1, -1, np.int32)
    place[used] = np.arange(len(used))
    categories = tuple(taken.categories[i] for i in used)
    return CategoryColumn(taken.name, place[taken.codes], categories)
