"""Whether a job may run: the questions that every gate asks before it opens anything.

Pure: bytes, trust store and the time in, an `ApprovedJob` or an error out. Empty, unknown and
missing refuse. Each party answers for itself; what the coordinator thinks is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from federation.envelope import Envelope
from federation.errors import IntegrityError, RefusalCode, Refused
from federation.network import Standing
from federation.objects import Approval, Decision, JobManifest, JobParty, KeyStatus, Usage, utc_time
from federation.persons import distinct
from federation.trust import TrustStore, Verified


@dataclass(frozen=True, slots=True)
class ApprovedJob:
    """A manifest that every named owner approved, and until when that holds."""

    manifest: JobManifest
    digest: str
    me: str
    approvals: tuple[Approval, ...]  # verified, in the order of the manifest's approvers
    valid_until: datetime  # of manifest and approvals, whichever ends first
    keys: tuple[tuple[str, str], ...] = ()  # (organisation, key) of every approval


def check_job(
    manifest: Envelope,
    approvals: Sequence[Envelope],
    trust: TrustStore,
    now: datetime,
    *,
    me: str,
    package_sha256: str,
    standing: Standing,
) -> ApprovedJob:
    """The job, if `me` may take part in it now with this release of the package.

    Raises IntegrityError where a signature or digest does not hold, Refused where a party is not
    active in the network, somebody did not approve, refused or withdrew, or the time is not right.
    """
    job = check_manifest(manifest, trust, now, me=me)
    for party in job.object.parties:
        standing.require_active(party.org, now)
    require_package(job.object, package_sha256)
    given = [trust.verify(approval, Approval, Usage.APPROVE, now) for approval in approvals]
    for approval in given:
        require_same_manifest(approval, job)
    valid_until = [utc_time(job.object.expires)]
    counted: list[Approval] = []
    for org in job.object.approvers():
        own = [approval for approval in given if approval.org == org]
        valid_until += require_approved(job.object.party(org), own, now)
        counted += [approval.object for approval in own]
    keys = tuple(sorted((approval.org, key) for approval in given for key in approval.key_ids))
    return ApprovedJob(job.object, job.digest, me, tuple(counted), min(valid_until), keys)


def require_keys_kept(job: ApprovedJob, trust: TrustStore) -> None:
    """Raises Refused if a key that an approval hangs on is on hold or revoked by now."""
    for org, key_id in job.keys:
        ended = (KeyStatus.HOLD, KeyStatus.REVOKED)
        if any(key.key_id == key_id and key.status in ended for key in trust.card(org).keys):
            what = "a key that approved this job is on hold or revoked"
            raise Refused(what, party=org, todo="a new manifest has to be approved by all")


def check_manifest(
    manifest: Envelope, trust: TrustStore, now: datetime, *, me: str
) -> Verified[JobManifest]:
    """The manifest, if its bank signed it, `me` is named in it and it is in force.

    This is what a reviewer may rely on before anybody approved.
    """
    bank = manifest.unverified(JobManifest).bank
    job = trust.verify(manifest, JobManifest, Usage.PROPOSE, now, org=bank)
    named = {party.org for party in job.object.parties}
    if me not in named:
        raise Refused(f"{me} is not a party of this job", party=bank)
    for org in named:
        trust.card(org)  # raises NotFound: no job with a party that we could not check
    if not utc_time(job.object.not_before) <= now < utc_time(job.object.expires):
        when = f"{job.object.not_before} to {job.object.expires}"
        todo = "ask for a manifest with other dates"
        raise Refused(f"the job may run from {when} only", party=bank, todo=todo)
    return job


def require_package(job: JobManifest, package_sha256: str) -> None:
    """This node runs exactly the release that was approved."""
    if job.package_sha256 != package_sha256:
        short = f"{job.package_sha256[:12]} approved, {package_sha256[:12]} installed"
        todo = "install the release that the manifest names, or ask for a new manifest"
        raise IntegrityError(f"another release of the package ({short})", todo=todo)


def require_same_manifest(approval: Verified[Approval], job: Verified[JobManifest]) -> None:
    """An approval says something on one exact manifest, by somebody whom it names."""
    if approval.object.manifest != job.digest:
        raise IntegrityError("the approval is of another manifest", party=approval.org)
    if approval.org not in job.object.approvers():
        raise IntegrityError("approved by somebody who is not asked", party=approval.org)


def require_approved(
    party: JobParty, own: Sequence[Verified[Approval]], now: datetime
) -> list[datetime]:
    """One owner's approvals suffice now; returns when each of them ends.

    A refusal or withdrawal is final for this manifest, whatever was said before or after: otherwise
    whoever carries the messages could choose among them.
    """
    for said in own:
        if said.object.decision is not Decision.APPROVE:
            done = "refused" if said.object.decision is Decision.REFUSE else "withdrew from"
            code = said.object.code or RefusalCode.DECLINED
            todo = "a new manifest has to be approved by all"
            raise Refused(f"{done} this job ({code})", code=code, party=party.org, todo=todo)
    for said in own:
        begin, end = utc_time(said.object.valid_from), utc_time(said.object.valid_until)
        if not begin <= now < end:
            todo = f"ask {party.org} to approve again"
            raise Refused("its approval is not in force", party=party.org, todo=todo)
    persons = distinct(holder for said in own for holder in said.holders)
    if persons == 0:
        todo = "its approver reads `lianmo job review` and answers `lianmo job approve`"
        raise Refused("has not approved this job", party=party.org, todo=todo)
    if persons < persons_needed(party):
        what = f"{persons} person approved this job where {persons_needed(party)} have to"
        todo = "another of its approvers answers `lianmo job approve` with a key of its own"
        raise Refused(what, party=party.org, todo=todo)
    return [utc_time(said.object.valid_until) for said in own]


def persons_needed(party: JobParty) -> int:
    """How many persons of an organisation must approve what it brings (federation/persons.py).

    As the manifest states it; that it states enough is for who has the catalogue entry to say: the
    owner's gate, the coordinator when the job is proposed, and each reviewer.
    """
    return party.persons
