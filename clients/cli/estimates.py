"""`lianmo job estimate`: what a draft or a submitted job would cost, for a person and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from clients import calibration, jobs
from clients.cli.common import table
from clients.coordinator_client import CoordinatorClient
from clients.home import Home
from clients.store import Exposure, Jobs, Store
from federation.envelope import Envelope
from federation.estimate import Bins, Estimate, Speeds, estimate, usual_bins
from federation.objects import Decision, JobManifest, Role
from federation.report import size_text
from federation.tasks import trees_plan


def manifest_of(
    home: Home, store: Store, client: CoordinatorClient, target: str, now: datetime
) -> JobManifest:
    """Of a draft in a file, as it would be submitted now; else of the job of that name."""
    path = Path(target)
    if path.is_file() or path.suffix == ".toml":
        return jobs.built(home, store, client, jobs.read_draft(home, path), now)
    return jobs.manifest_of(home, client.job(target), now)


def speeds(home: Home, now: datetime, *, again: bool, say: Callable[[str], None]) -> Speeds:
    """This machine's, measured once and kept."""
    kept = None if again else calibration.load(home.path)
    if kept is None:
        say("measuring this machine with a few small jobs, some ten seconds ...")
        kept = calibration.calibrate(now)
        calibration.save(home.path, kept)
    return kept


def of_job(home: Home, manifest: JobManifest, speeds: Speeds, bandwidth_bits: float) -> Estimate:
    """The estimate, with the bins of fields that an earlier model here has."""
    return estimate(
        manifest, bins=_bins(home, manifest), speeds=speeds, bandwidth_bits=bandwidth_bits
    )


def questions_before(home: Home, store: Store, manifest: JobManifest) -> int:
    """What earlier jobs of this bank may have used of the dataset that was asked most.

    An owner has counted it; the bank knows the most that its other manifests allow.
    """
    datasets = {p.org: p.dataset for p in manifest.parties if p.role is Role.DEPARTMENT}
    own = datasets.get(home.org)
    if own is not None:
        return Exposure(store).tokens(manifest.bank, own)
    asked = dict.fromkeys(datasets, 0)
    for known in Jobs(store).all():
        before = Envelope.from_json(known.envelope).unverified(JobManifest)  # kept when verified
        is_ours = before.bank == manifest.bank and before.job != manifest.job
        if is_ours and known.decision == Decision.APPROVE.value:
            for party in before.parties:
                if party.org in asked and datasets[party.org] == party.dataset:
                    asked[party.org] += before.limits.tokens + before.limits.tokens_between
    return max(asked.values(), default=0)


def plain(found: Estimate, manifest: JobManifest, before: int = 0) -> dict[str, Any]:
    """For `--json`."""
    return {
        "job": found.job,
        "task": found.task,
        "questions": found.questions,
        "exposure": found.exposure,
        "exposure_with_earlier_jobs": found.exposure + before / manifest.limits.customers_min,
        "bytes": found.total_bytes,
        "parties": {
            item.org: {
                "sent_bytes": item.sent_bytes,
                "received_bytes": item.received_bytes,
                "memory_bytes": item.memory_bytes,
            }
            for item in found.parties
        },
        "seconds": {
            "computing": found.computing_s,
            "transport": found.transport_s,
            "stages": dict(found.seconds or {}),
        },
        "offers": [
            {"what": item.what, "questions": item.tokens, "exposure": item.exposure}
            for item in _offers(manifest, before)
        ],
    }


def text(found: Estimate, manifest: JobManifest, before: int = 0) -> str:
    """For a person."""
    rows = [
        [
            item.org,
            size_text(item.sent_bytes),
            size_text(item.received_bytes),
            size_text(item.memory_bytes),
        ]
        for item in found.parties
    ]
    computing, transport = found.computing_s or 0.0, found.transport_s or 0.0
    parts = [
        f"{found.job}: {found.task}, {found.questions:,} questions to each department",
        "",
        table(["party", "sends", "receives", "memory"], rows),
        "",
        f"time      about {_duration(computing)} of computing on machines like this one, and "
        f"{_duration(transport)} of transport",
        f"exposure  {found.exposure:.4f} of this job alone, "
        f"{found.exposure + before / manifest.limits.customers_min:.4f} at most with earlier ones; "
        f"departments' gates refuse above {trees_plan.EXPOSURE_REFUSES}",
    ]
    if offers := _offers(manifest, before):
        lines = [[item.what, f"{item.tokens:,}", f"{item.exposure:.4f}"] for item in offers]
        parts += ["", table(["settings within the budget", "questions", "exposure"], lines)]
    elif manifest.task == "trees":
        parts += ["", "no settings of these trees are within the budget: too few customers"]
    return "\n".join(parts)


# --- pieces ---------------------------------------------------------------------------------------


def _offers(manifest: JobManifest, before: int) -> Sequence[trees_plan.Offer]:
    if manifest.task != "trees":
        return ()
    return trees_plan.offers(manifest.trees, manifest.limits.customers_min, tokens_before=before)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bins(home: Home, manifest: JobManifest) -> Bins:
    """Fields that earlier models here have, by their bins; the parameters' most for the others."""
    seen: dict[tuple[str, str], int] = {}
    for path in sorted(home.models.glob("*.json")):
        try:
            features = json.loads(path.read_bytes()).get("features", [])
            for item in features:
                definition = item["definition"]
                seen[item["owner"], definition["name"]] = int(definition["bins"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a department's part, or of another kind of task
    found = {}
    for org in manifest.departments:
        most = usual_bins(manifest, org)
        fields = manifest.party(org).fields
        found[org] = tuple(
            min(seen.get((org, name), usual), usual + 1)
            for name, usual in zip(fields, most, strict=True)
        )
    return found
