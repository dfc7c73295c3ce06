"""What an approver has to see before signing: a job in plain figures, and what has changed.

Pure: the same review is printed by the command line, shown by a console and held in a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from federation import differences, narrowing
from federation.catalogue import Dataset, Level
from federation.objects import (
    Approval,
    CoverKind,
    DeclaredDisclosure,
    JobManifest,
    JobParty,
    Role,
)
from federation.persons import persons_for

EXPOSURE_WARNS = 0.02  # PROTOCOLS.md section 3, Exposure
EXPOSURE_REFUSES = 0.05


@dataclass(frozen=True, slots=True)
class ReviewedField:
    """One field that the job would read."""

    org: str
    dataset: str
    name: str
    type: str
    level: str
    trade_secret: bool
    title: str = ""  # what its owner calls it, with its unit


@dataclass(frozen=True, slots=True)
class RefusedBefore:
    """The manifest that this one is to take the place of, and the words that ended it."""

    manifest: JobManifest
    words: tuple[Approval, ...]  # refusals that verified


@dataclass(frozen=True, slots=True)
class Answered:
    """An owner's refusal of the previous manifest, and whether this one does what it asked for."""

    org: str
    code: str
    words: str
    asked: tuple[str, ...]  # the counter-proposal; nothing, if there was none
    unmet: tuple[str, ...]  # of what was asked


@dataclass(frozen=True, slots=True)
class Review:
    """A job as an approver reads it."""

    job: str
    manifest: str  # the digest that an approval signs
    bank: str
    purpose: str
    not_before: str
    expires: str
    registry: str
    cover: str
    row_keys: str
    runs: int  # at most; each may disclose all of it again
    parties: tuple[tuple[str, str, str], ...]  # org, role, dataset
    titles: tuple[tuple[str, str, str], ...]  # org, dataset, what its owner calls it
    approvals: tuple[tuple[str, int, tuple[str, ...]], ...]  # org, persons needed, who did so far
    fields: tuple[ReviewedField, ...]
    parameters: tuple[tuple[str, str], ...]
    disclosures: tuple[DeclaredDisclosure, ...]  # those of or to the reader first
    exposure: tuple[tuple[str, float, float], ...]  # department, of this job, with earlier ones
    warnings: tuple[str, ...]
    changes: tuple[str, ...]  # against the last approved manifest of this bank and task
    has_previous: bool  # whether there is such a manifest
    refused: tuple[Answered, ...] = ()  # refusals of the manifest that this one takes the place of
    changes_since_refused: tuple[str, ...] = ()


def review(
    manifest: JobManifest,
    catalogue: Mapping[tuple[str, str], Dataset],
    *,
    me: str,
    tokens_before: int = 0,
    previous: JobManifest | None = None,
    refused: RefusedBefore | None = None,
    approved_by: Mapping[str, Sequence[str]] | None = None,
) -> Review:
    """The review for `me`; `tokens_before`: queries of this bank on my dataset so far.

    approved_by: organisation to the persons of it whose approvals verified.
    """
    exposure = []
    for org in manifest.departments:
        tokens = manifest.limits.tokens + manifest.limits.tokens_between * (
            len(manifest.departments) - 1
        )
        before = tokens_before if org == me else 0
        low = manifest.limits.customers_min
        exposure.append((org, tokens / low, (tokens + before) / low))
    mine = sorted(manifest.disclosures, key=lambda item: me not in (item.source, item.to))
    fields = tuple(_fields(manifest, catalogue))
    return Review(
        job=manifest.job,
        manifest=manifest.digest(),
        bank=manifest.bank,
        purpose=manifest.purpose.value,
        not_before=manifest.not_before,
        expires=manifest.expires,
        registry=f"{manifest.registry.region}, {manifest.registry.as_of}, "
        f"{manifest.registry.rows:,} enterprises",
        cover=_cover(manifest),
        row_keys=_row_keys(manifest),
        runs=manifest.limits.attempts,
        parties=tuple((p.org, p.role.value, p.dataset or "") for p in manifest.parties),
        titles=tuple(
            (p.org, p.dataset, entry.title)
            for p in manifest.parties
            if p.dataset and (entry := _entry(p, catalogue)) is not None
        ),
        approvals=tuple(
            (org, manifest.party(org).persons, tuple((approved_by or {}).get(org, ())))
            for org in manifest.approvers()
        ),
        fields=fields,
        parameters=tuple(differences.leaves(manifest).items()),
        disclosures=tuple(mine),
        exposure=tuple(exposure),
        warnings=(
            *_warnings(manifest, fields, {o: e for o, _, e in exposure}, me),
            *_too_few_persons(manifest, catalogue),
        ),
        changes=differences.between(previous, manifest) if previous else (),
        has_previous=previous is not None,
        refused=_answered(refused, manifest) if refused else (),
        changes_since_refused=differences.between(refused.manifest, manifest) if refused else (),
    )


def _entry(party: JobParty, catalogue: Mapping[tuple[str, str], Dataset]) -> Dataset | None:
    """The entry that the manifest names: an older or newer one may call a field harmless."""
    entry = catalogue.get((party.org, party.dataset or ""))
    return entry if entry is not None and entry.digest() == party.catalogue_digest else None


def _answered(refused: RefusedBefore, manifest: JobManifest) -> tuple[Answered, ...]:
    return tuple(
        Answered(
            org=word.org,
            code=word.code.value if word.code else "",
            words=word.words,
            asked=narrowing.words(word.narrowing) if word.narrowing else (),
            unmet=tuple(narrowing.unmet(word.narrowing, word.org, refused.manifest, manifest))
            if word.narrowing
            else (),
        )
        for word in refused.words
    )


def _too_few_persons(
    manifest: JobManifest, catalogue: Mapping[tuple[str, str], Dataset]
) -> list[str]:
    found = []
    for party in manifest.parties:
        entry = _entry(party, catalogue)
        if entry is not None and party.persons < persons_for(entry, party.fields, party.role):
            found.append(f"{party.org} needs two persons, the manifest asks for one: it is refused")
    return found


def _fields(
    manifest: JobManifest, catalogue: Mapping[tuple[str, str], Dataset]
) -> list[ReviewedField]:
    found = []
    for party in manifest.parties:
        if party.dataset is None:
            continue
        entry = _entry(party, catalogue)
        known = {field.name: field for field in entry.fields} if entry else {}
        for name in party.fields:
            field = known.get(name)
            found.append(
                ReviewedField(
                    party.org,
                    party.dataset,
                    name,
                    field.type.value if field else "unknown",
                    field.level.value if field else "unknown",
                    field.trade_secret if field else True,
                    " ".join(filter(None, (field.description, field.unit and f"({field.unit})")))
                    if field
                    else "",
                )
            )
    return found


def _cover(manifest: JobManifest) -> str:
    rows = f"{manifest.cover.rows:,} rows"
    if manifest.cover.kind is CoverKind.REGISTRY:
        return f"registry ({rows}): departments do not learn who is a customer"
    if manifest.cover.kind is CoverKind.DECOY:
        k = manifest.cover.decoys
        return f"decoy ({rows}): a department guesses a customer with 1/{k}"
    return f"customers ({rows}): departments learn exactly who the customers are"


def _row_keys(manifest: JobManifest) -> str:
    from protocols.row_key_agreement import provable_number  # numba: 0.3 s of every other command

    limits = manifest.limits
    if manifest.alignment == "voprf":
        return f"VOPRF: {limits.row_keys:,} enterprises at most can be opened"
    most = provable_number(limits.customers_max, manifest.cover.rows, manifest.alignment)
    return (
        f"set OPRF for {limits.customers_max:,} customers: a cheating bank could open "
        f"{limits.row_keys:,} enterprises by any known way, provably at most {most:,}"
    )


def _warnings(
    manifest: JobManifest, fields: tuple[ReviewedField, ...], exposure: Mapping[str, float], me: str
) -> list[str]:
    found = []
    for org, value in exposure.items():
        if value > EXPOSURE_REFUSES:
            limit = f"{EXPOSURE_REFUSES}: the gate refuses"
        elif value > EXPOSURE_WARNS:
            limit = f"{EXPOSURE_WARNS}"
        else:
            continue
        found.append(f"exposure of {org} would be {value:.3f}, above {limit}")
    if not manifest.audit.auditors and manifest.task != "neural":
        found.append("no auditors are named: nobody can ever find out what the bank really asks")
    if manifest.cover.kind is CoverKind.CUSTOMERS:
        found.append("the cover shows departments exactly who the bank's customers are")
    secret = [f.name for f in fields if f.org == me and f.level in (Level.L4, Level.L5)]
    if secret:
        found.append(f"fields of level L4 or above: {', '.join(secret)}")
    unknown = [f.name for f in fields if f.level == "unknown"]
    if unknown:
        found.append(f"not in the published catalogue: {', '.join(unknown)}")
    openings = manifest.scorecard.openings if manifest.task == "scorecard" else 0
    if len(manifest.of_role(Role.DEPARTMENT)) == 1 and openings:
        found.append("one department only: opened scores are its own, no other hides them")
    return found
