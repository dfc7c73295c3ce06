"""What a person does with a job: propose, read, decide, follow. Thin: verify, call, sign, send.

Whatever comes from the coordinator is checked against this home's own trust store before it is
shown; what was shown is what is signed, by its digest.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from clients.audit import AuditLog
from clients.coordinator_client import CoordinatorClient
from clients.home import Home
from clients.store import Datasets, Exposure, Jobs, Registries, Store, StoredJob
from federation.api import Event, JobDetail
from federation.audit import Action, Receipt, verify_receipt
from federation.catalogue import CATALOGUE_USAGE, Dataset
from federation.checks import check_manifest
from federation.envelope import Envelope, sign
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    RefusalCode,
    UsageError,
)
from federation.identity import PrivateKey
from federation.ledger import What
from federation.objects import (
    Approval,
    Decision,
    DeclaredDisclosure,
    JobManifest,
    Narrowing,
    RegistrySnapshot,
    Role,
    RunRecord,
    Usage,
    utc_text,
)
from federation.package import package_sha256
from federation.persons import require_stated
from federation.trust import TrustStore, Verified

if TYPE_CHECKING:  # heavy: imported by the commands that need them
    from federation.drafts import JobDraft
    from federation.review import RefusedBefore, Review

WATCH_WAIT_S = 20.0
WRONG = "wrong"  # a receipt that does not verify


def catalogue(
    home: Home, client: CoordinatorClient, now: datetime
) -> dict[tuple[str, str], Dataset]:
    """Every published dataset whose entry its owner signed; others are left out."""
    trust = home.trust()
    found = {}
    for item in client.catalogue():
        try:
            entry = trust.verify(item.entry, Dataset, CATALOGUE_USAGE, now, item.org).object
        except LianmoError:  # of an organisation that we do not trust, or altered on the way
            continue
        found[entry.owner, entry.name] = entry
    return found


def draft_text(
    home: Home,
    store: Store,
    job: str,
    *,
    dataset: str,
    departments: list[str],
    platform: str | None,
    customers_max: int | None,
    customers_min: int | None,
    openings: int,
    task: str = "scorecard",
) -> str:
    """A `job.toml` to start from; the customers' figures default to the dataset's own."""
    from federation import drafts

    pairs = []
    for item in departments:
        org, slash, name = item.partition("/")
        if not slash or not org or not name:
            raise UsageError(f"a department is ORG/DATASET, not {item!r}")
        pairs.append((org, name))
    rows = Datasets(store).get(dataset).rows
    return drafts.template(
        job,
        bank=home.org,
        dataset=dataset,
        departments=pairs,
        platform=platform,
        customers_max=customers_max or _round_up(rows),
        customers_min=customers_min or rows * 95 // 100,
        openings=openings,
        task=task,
    )


def _round_up(rows: int) -> int:
    """To two digits: the approved maximum should not be the true number."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return -(-rows // unit) * unit + unit


def submit(
    home: Home, store: Store, client: CoordinatorClient, draft: Path, now: datetime
) -> JobDetail:
    """Build, sign and send the manifest of a draft in a file."""
    return propose(home, store, client, read_draft(home, draft), now)


def read_draft(home: Home, draft: Path) -> JobDraft:
    """This bank's draft in a file."""
    from federation import drafts

    try:
        text = draft.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        todo = "`lianmo job new` writes one with comments"
        raise UsageError(f"{draft} is not text in UTF-8", todo=todo) from None
    except OSError as error:
        why = (error.strerror or "error").lower()
        raise UsageError(f"cannot read {draft}: {why}") from None
    wanted = drafts.parse(text)
    if wanted.bank.org != home.org:
        raise UsageError(f"the draft is of {wanted.bank.org}, this home is {home.org}'s")
    return wanted


def propose(
    home: Home,
    store: Store,
    client: CoordinatorClient,
    wanted: JobDraft,
    now: datetime,
    previous: str | None = None,
) -> JobDetail:
    """Build, sign and send the manifest of a draft.

    previous: the digest of the manifest that it takes the place of; default: the last approved one.
    """
    manifest = built(home, store, client, wanted, now, previous)
    envelope = sign(manifest, home.key(Usage.PROPOSE))
    answer = client.submit(envelope)
    audit, digest = AuditLog(home, store), manifest.digest()
    with audit.together(now):
        _keep(store, envelope, manifest, now)
        Jobs(store).set_decision(digest, Decision.APPROVE.value)
        audit.append(Action.JOB_PROPOSED, digest, now, actor=Usage.PROPOSE, job=digest)
    return answer


def built(
    home: Home,
    store: Store,
    client: CoordinatorClient,
    wanted: JobDraft,
    now: datetime,
    previous: str | None = None,
) -> JobManifest:
    """The manifest of a draft, unsigned, as it would be submitted now."""
    from clients.gate import Gate
    from federation import drafts

    return drafts.build(
        wanted,
        catalogue=catalogue(home, client, now),
        registry=current_registry(store),
        cover_rows=Gate(home, store, lambda: now).cover_rows(
            wanted.bank.dataset, wanted.cover.kind, wanted.cover.decoys
        ),
        package_sha256=package_sha256(),
        now=now,
        previous=previous or _digest(last_approved(store, home.org)),
    )


def current_registry(store: Store) -> RegistrySnapshot:
    """The registry snapshot that this home works with."""
    found = Registries(store).current()
    return RegistrySnapshot(
        digest=found.digest, rows=found.rows, region=found.region, as_of=found.as_of
    )


def _digest(manifest: JobManifest | None) -> str | None:
    return manifest.digest() if manifest else None


def last_approved(
    store: Store, bank: str, task: str | None = None, besides: str = ""
) -> JobManifest | None:
    """The newest manifest of a bank that this organisation said yes to; the bank to its own.

    task: of that kind only. besides: the digest of one that is not meant, as of the one in review,
    which the first of two persons has approved already.
    """
    for known in reversed(Jobs(store).all()):
        if known.decision == Decision.APPROVE.value and known.manifest != besides:
            # kept by this home after it was verified
            manifest = Envelope.from_json(known.envelope).unverified(JobManifest)
            if manifest.bank == bank and task in (None, manifest.task) and _by_enough(known):
                return manifest
    return None


def _by_enough(known: StoredJob) -> bool:
    """Whether as many persons of this organisation approved as the manifest asks for."""
    manifest = Envelope.from_json(known.envelope).unverified(JobManifest)
    keys: dict[str, set[str]] = {}
    for data in known.approvals:
        word = Envelope.from_json(data)
        if (said := word.unverified(Approval)).decision is Decision.APPROVE:  # this home's own
            keys.setdefault(said.org, set()).update(item.keyid for item in word.signatures)
    return all(len(own) >= manifest.party(org).persons for org, own in keys.items())


def _keep(store: Store, envelope: Envelope, manifest: JobManifest, now: datetime) -> None:
    Jobs(store).put(manifest.digest(), manifest.job, envelope.to_json(), now)


def manifest_of(home: Home, detail: JobDetail, now: datetime) -> JobManifest:
    """The manifest of a job, verified; what the coordinator calls it must be its digest."""
    checked = check_manifest(detail.manifest, home.trust(), now, me=home.org)
    if checked.digest != detail.manifest_digest or checked.object.job != detail.job:
        raise IntegrityError("the coordinator shows a manifest under another name", party=home.org)
    return checked.object


def review_job(
    home: Home, store: Store, client: CoordinatorClient, job: str, now: datetime
) -> Review:
    """A job as this organisation's approver has to see it."""
    from federation.review import review

    detail = client.job(job)
    manifest = manifest_of(home, detail, now)
    own = {party.org: party for party in manifest.parties}.get(home.org)
    before = 0
    if own is not None and own.dataset is not None:
        low = manifest.limits.customers_min
        before = Exposure(store).weighed(manifest.bank, own.dataset, low)
    return review(
        manifest,
        catalogue(home, client, now),
        me=home.org,
        tokens_before=before,
        previous=last_approved(store, manifest.bank, manifest.task, manifest.digest()),
        refused=_refused_before(home, client, manifest, now),
        approved_by=_approved_by(words_on(home, detail, now)),
    )


def words_on(home: Home, detail: JobDetail, now: datetime) -> tuple[Verified[Approval], ...]:
    """Every word on a job that verifies here; others are left out."""
    trust, found = home.trust(), []
    for envelope in detail.approvals:
        try:
            word = trust.verify(envelope, Approval, Usage.APPROVE, now)
        except LianmoError:
            continue
        if word.object.manifest == detail.manifest_digest:
            found.append(word)
    return tuple(found)


def _approved_by(words: tuple[Verified[Approval], ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.object.decision is Decision.APPROVE:
            found.setdefault(word.org, []).extend(word.holders)
    return found


def refusals(home: Home, detail: JobDetail, now: datetime) -> tuple[Approval, ...]:
    """The owners' refusals of a job, each verified, with their counter-proposals."""
    words = [word.object for word in words_on(home, detail, now)]
    return tuple(word for word in words if word.decision is Decision.REFUSE)


def _refused_before(
    home: Home, client: CoordinatorClient, manifest: JobManifest, now: datetime
) -> RefusedBefore | None:
    """The refused manifest that this one names as its previous, if it names one of this bank."""
    from federation.review import RefusedBefore

    if manifest.previous is None:
        return None
    for item in client.jobs():
        if item.manifest_digest == manifest.previous:
            detail = client.job(item.job)
            old = detail.manifest.unverified(JobManifest)
            signed = old.bank == manifest.bank and old.digest() == manifest.previous
            if signed and (words := refusals(home, detail, now)):
                return RefusedBefore(old, words)
    return None


def narrower(
    home: Home, store: Store, client: CoordinatorClient, job: str, name: str, now: datetime
) -> JobDetail:
    """The bank: propose a refused job anew, as narrow as its owners asked for.

    Raises NotFound if nobody made a counter-proposal.
    """
    from federation import drafts, narrowing

    detail = client.job(job)
    manifest = manifest_of(home, detail, now)
    asked = [(w.org, w.narrowing) for w in refusals(home, detail, now) if w.narrowing is not None]
    if manifest.bank != home.org:
        raise UsageError(f"{job} was proposed by {manifest.bank}", party=home.org)
    if not asked:
        todo = f"read why with `lianmo job status {job}`, then submit another draft"
        raise NotFound(f"nobody proposed a narrower {job}", party=home.org, todo=todo)
    for org, item in asked:  # it comes from outside: a wider job is no narrowing
        narrowing.require_less(item, manifest, org)
    draft = narrowing.narrowed(drafts.of_manifest(manifest, name), asked)
    return propose(home, store, client, draft, now, previous=manifest.digest())


def next_name(job: str) -> str:
    """The name of the job that takes a refused one's place: `city`, `city-2`, `city-3`."""
    if match := re.fullmatch(r"(.+)-(\d{1,4})", job):
        return f"{match[1]}-{int(match[2]) + 1}"
    return f"{job}-2"


def decide(
    home: Home,
    store: Store,
    client: CoordinatorClient,
    job: str,
    decision: Decision,
    now: datetime,
    *,
    manifest_digest: str | None = None,
    code: RefusalCode | None = None,
    words: str = "",
    days: int = 30,
    narrowing: Narrowing | None = None,
    key: PrivateKey | None = None,
) -> Approval:
    """Sign this organisation's word on exactly the manifest that it saw, and send it.

    manifest_digest: what the approver read on the review; a prefix of at least 12 digits will do.
    A withdrawal counts at this organisation's node from here on, whether or not the coordinator
    takes it.
    narrowing: with a refusal, what this organisation would approve instead.
    key: of the person who decides; default: the home's.
    Raises IntegrityError if the coordinator now shows another one.
    """
    if decision is Decision.WITHDRAW and (own := _approved(store, home, job)):
        signed, manifest = own  # as this home keeps it: no coordinator can hide or change it
    else:
        detail = client.job(job)
        signed, manifest = detail.manifest, manifest_of(home, detail, now)
    digest = manifest.digest()
    if decision is Decision.APPROVE:
        _require_new_name(store, home, manifest)
        _require_stated(store, home, manifest)
    if narrowing is not None:
        from federation.narrowing import require_less

        require_less(narrowing, manifest, home.org)
    if manifest_digest is not None and not re.fullmatch(r"[0-9a-fA-F]{12,64}", manifest_digest):
        todo = "copy it from `lianmo job review`, the first 12 digits at least"
        raise UsageError("that is not the digest of a manifest", todo=todo)
    if manifest_digest is not None and not digest.startswith(manifest_digest.lower()):
        todo = "read `lianmo job review` again; do not sign what you did not read"
        raise IntegrityError(f"the manifest of {job} is another one now", party=home.org, todo=todo)
    approval = Approval(
        manifest=digest,
        org=home.org,
        decision=decision,
        code=code,
        words=words,
        narrowing=narrowing,
        created=utc_text(now),
        valid_from=utc_text(now),
        valid_until=utc_text(now + timedelta(days=days)),
        nonce=secrets.token_hex(16),
    )
    envelope = sign(approval, key or home.key(Usage.APPROVE))
    audit = AuditLog(home, store)
    with audit.together(now):
        _keep(store, signed, manifest, now)
        Jobs(store).put_approval(approval.digest(), digest, home.org, envelope.to_json(), now)
        Jobs(store).set_decision(digest, decision.value)
        audit.decided(approval, now)
    try:
        client.approve(job, envelope)
    except LianmoError as error:
        if decision is Decision.WITHDRAW:
            error.todo = "this node takes no part any more; tell the others, or repeat it later"
        raise
    return approval


def approved_here(store: Store, home: Home, job: str) -> str | None:
    """The digest of the manifest under that name that this organisation said yes to.

    Enough to take it back with no coordinator to show it again.
    """
    own = _approved(store, home, job)
    return own[1].digest() if own is not None else None


def _approved(store: Store, home: Home, job: str) -> tuple[Envelope, JobManifest] | None:
    """The manifest under that name that this organisation said yes to."""
    for known in Jobs(store).of_name(job):
        if known.decision in (Decision.APPROVE.value, Decision.WITHDRAW.value):
            signed = Envelope.from_json(known.envelope)  # kept after it was verified
            if home.org in (manifest := signed.unverified(JobManifest)).approvers():
                return signed, manifest
    return None


def _require_new_name(store: Store, home: Home, manifest: JobManifest) -> None:
    """Raises Conflict if another manifest of that name was approved here: results are kept under
    the name, and one bank's would take the place of another's."""
    own = _approved(store, home, manifest.job)
    if own is not None and own[1].digest() != manifest.digest():
        what = f"another job {manifest.job} was approved here, of {own[1].bank}"
        raise Conflict(what, party=manifest.bank, todo="ask for a manifest with another name")


def _require_stated(store: Store, home: Home, manifest: JobManifest) -> None:
    """The manifest asks for as many persons of this organisation as its own entry does."""
    party = manifest.party(home.org)
    if party.dataset is None:
        return
    stored = store.entries.get(party.dataset)
    if stored.envelope is not None and stored.digest == party.catalogue_digest:
        require_stated(Envelope.from_json(stored.envelope).unverified(Dataset), party)


class DisclosureLine(BaseModel):
    """One kind of thing that one party may learn from another, and what came of it."""

    model_config = ConfigDict(frozen=True)

    source: str
    to: str
    what: What
    declared: int
    happened: int | None  # in the last attempt; None: no party's record tells of it
    in_all: int  # over all attempts
    bits: int
    per_enterprise: bool
    told_by: tuple[str, ...]


class Disclosures(BaseModel):
    """Who really learned what in a job, from all parties' signed records of its attempts."""

    model_config = ConfigDict(frozen=True)

    job: str
    manifest: str
    attempt: int
    lines: tuple[DisclosureLine, ...]
    receipts: dict[str, str]  # of the records in their parties' audit logs, by organisation
    missing: tuple[str, ...]  # parties with no record of that attempt
    problems: tuple[str, ...]  # beyond the declared, or told in two ways


def disclosures(home: Home, client: CoordinatorClient, job: str, now: datetime) -> Disclosures:
    """What every party's run record says, each verified here, beside what was declared."""
    detail = client.job(job)
    manifest, trust = manifest_of(home, detail, now), home.trust()
    digest = manifest.digest()
    told: dict[tuple[str, str, What], dict[str, DeclaredDisclosure]] = {}
    earlier: dict[tuple[int, str, str, What], int] = {}
    seen, problems, is_whole = set(), [], True
    receipts = {item.org: item for item in detail.receipts}  # of several, the last attempt's
    status: dict[str, str] = {}
    for envelope in detail.records:
        record = trust.verify(envelope, RunRecord, Usage.RUN, now).object
        if record.manifest != digest:
            raise IntegrityError("a run record of another job", party=record.org)
        if record.attempt == detail.attempt:
            seen.add(record.org)
            status[record.org] = _receipt_of(record, receipts.get(record.org), trust)
            if status[record.org] == WRONG:
                problems.append(f"{record.org}: the receipt of its record does not verify")
            is_whole &= record.outcome == "succeeded"  # else one may know of more than the other
            for item in record.disclosures:
                told.setdefault((item.source, item.to, item.what), {})[record.org] = item
        else:
            for item in record.disclosures:
                key = record.attempt, item.source, item.to, item.what
                earlier[key] = max(earlier.get(key, 0), item.count)
    lines = []
    for said in manifest.disclosures:
        words = told.pop((said.source, said.to, said.what), {})
        counts = {item.count for item in words.values()}
        line = f"{said.what.value.replace('_', ' ')} from {said.source} to {said.to}"
        if len(counts) > 1 and is_whole:
            problems.append(f"{line}: told in two ways by {', '.join(sorted(words))}")
        if max(counts, default=0) > said.count or any(w.bits > said.bits for w in words.values()):
            problems.append(f"{line}: more than was declared")
        lines.append(
            DisclosureLine(
                source=said.source,
                to=said.to,
                what=said.what,
                declared=said.count,
                happened=max(counts, default=None),
                in_all=max(counts, default=0) + sum(_of_line(earlier, said)),
                bits=said.bits,
                per_enterprise=said.per_enterprise,
                told_by=tuple(sorted(words)),
            )
        )
    problems += [f"{what.value} from {a} to {b} was not declared" for a, b, what in told]
    parties = [party.org for party in manifest.parties if party.role is not Role.PLATFORM]
    return Disclosures(
        job=job,
        manifest=digest,
        attempt=detail.attempt,
        lines=tuple(lines),
        receipts=status,
        missing=tuple(org for org in parties if org not in seen),
        problems=tuple(problems),
    )


def _of_line(
    earlier: dict[tuple[int, str, str, What], int], said: DeclaredDisclosure
) -> Iterator[int]:
    """What the attempts before the last one disclosed of one declared line."""
    for (_, source, to, what), count in earlier.items():
        if (source, to, what) == (said.source, said.to, said.what):
            yield count


def _receipt_of(record: RunRecord, receipt: Receipt | None, trust: TrustStore) -> str:
    """What the receipt of a record is worth."""
    if receipt is None:
        return "none"
    try:
        found = verify_receipt(receipt, trust)
    except LianmoError:
        return WRONG
    is_of_it = (found.org, found.entry.object) == (record.org, record.digest())
    return found.status if is_of_it else WRONG


def follow(client: CoordinatorClient, job: str) -> Iterator[tuple[JobDetail, list[Event]]]:
    """The job's state now and after everything that happens, until it is final."""
    detail, after = client.job(job), 0
    yield detail, []
    while not detail.status.is_final:
        news = client.events(job, after=after, wait=WATCH_WAIT_S)
        after = news.after
        if not news.items:
            time.sleep(0.2)
            continue
        detail = client.job(job)
        yield detail, list(news.items)
