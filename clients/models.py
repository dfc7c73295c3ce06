"""The finished models of a home: the bank's whole one, or a department's own part."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from clients.attempts import RECORD
from clients.home import Home
from clients.store import Store
from federation.envelope import Envelope
from federation.errors import IntegrityError, NotFound
from federation.objects import JobManifest, RunRecord
from federation.scoring import Model
from federation.tasks.model import PartFeature
from federation.tasks.model_files import model_from_json, part_features_from_json
from federation.tasks.trees_files import trees_from_json, trees_part_from_json
from federation.tasks.trees_model import TreesPart

TODO = "`lianmo model list` shows what there is"

_INSTEAD = {
    "neural": "it reads this bank's own columns and asks nobody: for scores under a grant train "
    "a model with [scorecard] or [trees]",
}


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model, or part of one, with the manifest that it came out of."""

    job: str
    digest: str  # of the manifest
    manifest: JobManifest = field(repr=False)
    kind: str  # scorecard, trees, scorecard-part, trees-part; or another, that no score is made of
    content: bytes = field(repr=False)

    @property
    def model(self) -> Model:
        """The bank's model; NotFound where there is a department's part only."""
        if self.kind == "scorecard":
            return model_from_json(self.content)
        if self.kind == "trees":
            return trees_from_json(self.content)
        what = f"the model of {self.job} here is of the kind {self.kind}: no scores are made of it"
        raise NotFound(what, todo=_INSTEAD.get(self.kind, "the bank of the job has the whole one"))

    @property
    def part(self) -> tuple[PartFeature, ...] | TreesPart:
        """The department's part; NotFound where there is none."""
        if self.kind == "scorecard-part":
            return part_features_from_json(self.content)
        if self.kind == "trees-part":
            return trees_part_from_json(self.content)
        raise NotFound(f"there is no part of the model of {self.job} here")


def of_job(home: Home, store: Store, job: str) -> StoredModel:
    """The model of a job that finished here; NotFound, or IntegrityError for a damaged file."""
    file, record = home.models / f"{job}.json", home.runs(job) / RECORD
    if not file.is_file() or not record.is_file():
        raise NotFound(f"there is no model of {job} here", party=home.org, todo=TODO)
    told = Envelope.from_json(record.read_bytes()).unverified(RunRecord)  # this home's own
    signed = Envelope.from_json(store.jobs.get(told.manifest).envelope)
    manifest = signed.unverified(JobManifest)  # verified before it was kept
    if manifest.job != job or manifest.digest() != told.manifest:
        raise IntegrityError(f"the record of {job} is of another job", party=home.org)
    content = file.read_bytes()
    try:
        kind = str(json.loads(content)["kind"])
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"the model of {job} is damaged", party=home.org) from None
    return StoredModel(job, told.manifest, manifest, kind, content)


def of_manifest(home: Home, store: Store, digest: str) -> StoredModel:
    """The same by the manifest's digest."""
    found = of_job(home, store, store.jobs.get(digest).job)
    if found.digest != digest:
        raise NotFound("the model here is of another manifest", party=home.org, todo=TODO)
    return found


def all_of(home: Home, store: Store) -> list[StoredModel]:
    """All models of this home, by name; files that belong to no finished job are left out."""
    found = []
    for file in sorted(home.models.glob("*.json")):
        try:
            found.append(of_job(home, store, file.stem))
        except NotFound:
            continue
    return found
