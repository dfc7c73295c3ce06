"""What an approver has to see before signing: a job in plain figures, and what has changed.

Pure: the same review is printed by the command line, shown by a console and held in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from federation.catalogue import Dataset, Level
from federation.objects import CoverKind, DeclaredDisclosure, JobManifest, Role

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
    parties: tuple[tuple[str, str, str], ...]  # org, role, dataset
    fields: tuple[ReviewedField, ...]
    parameters: tuple[tuple[str, str], ...]
    disclosures: tuple[DeclaredDisclosure, ...]  # those of or to the reader first
    exposure: tuple[tuple[str, float, float], ...]  # department, of this job, with earlier ones
    warnings: tuple[str, ...]
    changes: tuple[str, ...]  # against the last approved manifest of this bank and task


def review(
    manifest: JobManifest,
    catalogue: Mapping[tuple[str, str], Dataset],
    *,
    me: str,
    tokens_before: int = 0,
    previous: JobManifest | None = None,
) -> Review:
    """The review for `me`; `tokens_before`: queries of this bank on my dataset so far."""
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
        parties=tuple((p.org, p.role.value, p.dataset or "") for p in manifest.parties),
        fields=fields,
        parameters=tuple(_flat(manifest.model_dump(mode="json"))),
        disclosures=tuple(mine),
        exposure=tuple(exposure),
        warnings=tuple(_warnings(manifest, fields, {o: e for o, _, e in exposure}, me)),
        changes=tuple(_changes(previous, manifest)) if previous else (),
    )


def _fields(
    manifest: JobManifest, catalogue: Mapping[tuple[str, str], Dataset]
) -> list[ReviewedField]:
    found = []
    for party in manifest.parties:
        if party.dataset is None:
            continue
        entry = catalogue.get((party.org, party.dataset))
        if entry is not None and entry.digest() != party.catalogue_digest:
            entry = None  # an older or newer one than the manifest's may call a field harmless
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


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Every leaf of a nested object with its path; members of lists go by name, not by place."""
    if isinstance(value, dict):
        return [
            leaf
            for key in sorted(value)
            for leaf in _flat(value[key], f"{path}.{key}" if path else key)
        ]
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return [(f"{path}[{item}]", "yes") for item in value]
        return [
            leaf
            for i, item in enumerate(value)
            for leaf in _flat(item, f"{path}[{_name(item, i)}]")
        ]
    return [(path, str(value))]


def _name(item: Any, place: int) -> str:
    """What a member of a list is called: its organisation, or who tells whom what."""
    if isinstance(item, dict):
        if "org" in item:
            return str(item["org"])
        if {"source", "to", "what"} <= item.keys():
            return f"{item['source']} to {item['to']}, {item['what']}"
    return str(place)


_PASSING = ("created", "job", "not_before", "expires", "previous")  # differ in every job


def _changes(previous: JobManifest, manifest: JobManifest) -> list[str]:
    before = dict(_flat(previous.model_dump(mode="json")))
    after = dict(_flat(manifest.model_dump(mode="json")))
    found = []
    for path in sorted(before.keys() | after.keys()):
        if path in _PASSING or before.get(path) == after.get(path):
            continue
        found.append(f"{path}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}")
    return found
