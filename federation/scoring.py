"""An applicant's score from several owners' parts, under the applicant's grant (PROTOCOLS.md
section 7, Scoring).

Model      a grant of the channel `score` names the digest of the manifest that the model came out
           of: every department has that manifest, the enterprise can be shown it, and one manifest
           has one model
Session    what all departments' requests of one score share, nonce and times included. A provider
           takes a nonce once, so a mask never covers two numbers (protocols/masked_total.py)
Scorecard  a department sends its rounded points, within the declared range and masked: the bank
           sees the total, and of each department the names of the features that cost most, as
           many as the manifest allows
Trees      a path that mixes owners has no partial sums: a department sends the applicant's bit
           for each of its thresholds, which the grant opens
Whole      every department answers, for its part of this very model, or there is no score
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, model_validator

from federation.audit import Check, Reason
from federation.catalogue import MAX_DAYS, RETENTION_DAYS, Assurance, Level, Operation
from federation.catalogue import Field as CatalogueField
from federation.envelope import Content
from federation.errors import IntegrityError
from federation.grants import Channel, Grant, GrantItem
from federation.objects import (
    Count,
    Date,
    Digest,
    FieldName,
    Name,
    ObjectName,
    OrgId,
    Part,
    Purpose,
    ScorecardParameters,
    SignedObject,
    Time,
    Uscc,
)
from federation.tables import Column
from federation.tasks import trees_model
from federation.tasks.model import PartFeature, ScorecardModel, part_digest
from federation.tasks.plan import points_limit
from federation.tasks.trees_model import TreesModel
from federation.verification import Asking, Conditions, Denied
from protocols import labels
from protocols.masked_total import opened
from protocols.streams import digest

Model = ScorecardModel | TreesModel


class ScoreRequest(Asking):
    """One department's part of one enterprise's score."""

    kind: ClassVar[str] = "score-request"

    channel: Literal[Channel.SCORE]
    model: Digest  # of its manifest
    dataset: ObjectName

    def items(self, grant: Grant) -> tuple[GrantItem, ...]:
        """All that was granted of the dataset, for this very model."""
        if grant.model is not None and grant.model != self.model:
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, "the grant is for another model")
        wanted = (self.provider, self.dataset)
        found = tuple(item for item in grant.items if (item.provider, item.dataset) == wanted)
        if not found:
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, "nothing of the dataset is granted")
        return found

    def require(self, item: GrantItem, offered: CatalogueField) -> None:
        """The catalogue offers the field for scores."""
        if Operation.SCORE not in offered.ops or not offered.is_feature:
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, "the field is not open to scores")

    def conditions(self, offered: CatalogueField) -> Conditions | None:
        """As of a question, and A3 for a trade secret also where no question is offered."""
        if Operation.SCORE not in offered.ops or offered.level in (Level.L4, Level.L5):
            return None
        if (said := offered.enquiry) is not None:
            return Conditions(said.min_assurance, said.max_days, said.retention_days)
        secret = offered.level is Level.L3 and offered.trade_secret
        return Conditions(Assurance.A3 if secret else Assurance.A2, MAX_DAYS, RETENTION_DAYS)

    def session(self) -> bytes:
        """What masks are bound to, the same for all departments of one score."""
        return digest(
            labels.SCORE_SESSION,
            *(self.model, self.grant, self.verifier, self.subject, self.purpose.value),
            *(self.created, self.expires, self.nonce),
        )


class ScorePart(Content):
    """What a department adds to its answer; the signed answer holds the digest of these bytes."""

    called: ClassVar[str] = "a part of a score"

    task: Literal["scorecard", "trees"]
    part: Digest  # of the department's part of the model
    masked: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")] | None = None
    reasons: Annotated[tuple[FieldName, ...], Field(max_length=10)] = ()  # the costliest first
    bits: Annotated[str, StringConstraints(pattern=r"^[01]{0,2048}$")] | None = None

    @model_validator(mode="after")
    def _of_its_task(self) -> Self:
        is_card = self.task == "scorecard"
        if (self.masked is None) == is_card or (self.bits is None) != is_card:
            raise ValueError("masked points are a scorecard's, bits are those of trees")
        return self


# --- the department -------------------------------------------------------------------------------


def used(features: Sequence[PartFeature]) -> list[PartFeature]:
    """Those of a department's features that move the score."""
    return [item for item in features if item.points.any()]


def points_of(features: Sequence[PartFeature], columns: Mapping[str, Column]) -> list[int]:
    """Points of one enterprise in each feature; columns of one row, by name."""
    found = []
    for item in features:
        bins = item.definition.assign(columns[item.definition.name])
        found.append(int(item.points[bins[0]]))
    return found


def declared(points: int, parameters: ScorecardParameters) -> int:
    """A department's sum, clipped as for the job's evaluation.

    So a total of points that a bank has made up tells no more bits than the manifest says.
    """
    most = points_limit(parameters)
    return max(-most, min(most, points))


def costly(
    names: Sequence[str], points: Sequence[int], best: Sequence[int], count: int
) -> list[str]:
    """The features in which most points are missing to the best bin, the costliest first.

    To the best one, not to the average as in reports: only the bank knows how its customers are
    spread, and what an owner says must not need it.
    """
    lost = [
        (most - got, -place) for place, (most, got) in enumerate(zip(best, points, strict=True))
    ]
    return [names[-place] for cost, place in sorted(lost, reverse=True)[:count] if cost > 0]


def scorecard_part(org: str, features: Sequence[PartFeature]) -> str:
    """Digest of a department's part of a scorecard, the same at the bank."""
    parts = (part_digest(org, item.definition, item.points) for item in features)
    return digest(labels.MODEL_DIGEST, *parts).hex()


# --- the bank -------------------------------------------------------------------------------------


def parts_expected(model: Model, departments: Sequence[str]) -> dict[str, str]:
    """The digest that each department's part of this model has."""
    if isinstance(model, TreesModel):
        return {
            org: trees_model.part_digest(
                org,
                model.definitions_of(org),
                model.own_numbers(org, model.thresholds.get(org, ())),
            ).hex()
            for org in departments
        }
    found = {}
    for org in departments:
        parts = (part_digest(org, f.definition, f.points_of_bins()) for f in model.of(org))
        found[org] = digest(labels.MODEL_DIGEST, *parts).hex()
    return found


def used_fields(model: Model, org: str) -> list[str]:
    """The fields of one owner that a score reads."""
    if isinstance(model, ScorecardModel):
        return [item.name for item in model.of(org) if item.points.any()]
    if org != model.bank:  # a department answers for all of its thresholds
        splits = model.thresholds.get(org, ())
    else:
        splits = tuple(split for tree in model.trees for split in tree.splits if split is not None)
    places = dict.fromkeys(split.feature for split in splits)
    return [model.features[at].name for at in sorted(places) if model.features[at].owner == org]


def require_whole(model: Model, departments: Sequence[str], parts: Mapping[str, ScorePart]) -> None:
    """Every department's part of this very model is there; raises IntegrityError naming one."""
    expected = parts_expected(model, departments)
    kind = "trees" if isinstance(model, TreesModel) else "scorecard"
    if missing := set(departments) - parts.keys():
        raise IntegrityError("its part of the score is missing", party=min(missing))
    for org in departments:
        if parts[org].task != kind or parts[org].part != expected[org]:
            todo = "train again, or restore the models of one day at both"
            raise IntegrityError("its part is of another model", party=org, todo=todo)


def scorecard_score(
    model: ScorecardModel,
    bank: str,
    own: Mapping[str, Column],
    departments: Sequence[str],
    parts: Mapping[str, ScorePart],
    parameters: ScorecardParameters,
) -> tuple[int, list[tuple[str, str]]]:
    """Points, and the costliest features as (owner, name): first of each owner, then the second ...

    What a feature of a department cost, the bank does not learn, so owners take turns.
    """
    require_whole(model, departments, parts)
    theirs = opened(int(parts[org].masked or "", 16) for org in departments)
    low, high = (
        sum(
            declared(sum(int(pick(f.points)) for f in model.of(org)), parameters)
            for org in departments
        )
        for pick in (np.min, np.max)
    )
    if not low <= theirs <= high:
        raise IntegrityError("the departments' points are outside of the model's range")
    mine = [f for f in model.of(bank) if f.points.any()]
    points = [int(f.points_of(own[f.name])[0]) for f in mine]
    best = [int(f.points.max()) for f in mine]
    lists = [[(bank, name) for name in costly([f.name for f in mine], points, best, len(mine))]]
    for org in departments:
        names = set(used_fields(model, org))
        if not set(parts[org].reasons) <= names:
            raise IntegrityError("its reasons are not in the model", party=org)
        lists.append([(org, name) for name in parts[org].reasons])
    return model.base_points + sum(points) + theirs, _in_turns(lists)


def trees_score(
    model: TreesModel,
    own: Mapping[str, Column],
    departments: Sequence[str],
    parts: Mapping[str, ScorePart],
) -> tuple[int, list[tuple[str, str]]]:
    """Points, and the features that raise the risk most as (owner, name), the worst first."""
    require_whole(model, departments, parts)
    bits: dict[str, NDArray[np.bool_]] = {}
    for org in departments:
        text = parts[org].bits or ""
        if len(text) != len(model.thresholds.get(org, ())):
            raise IntegrityError("its bits are not those of the model's thresholds", party=org)
        bits[org] = np.array([[bit == "1" for bit in text]], bool).reshape(1, len(text))
    mine = {(model.bank, name): column for name, column in own.items()}
    goes_left = model.by_bits(mine, bits)
    points = int(model.points(model.margins(goes_left, 1))[0])
    moved = model.contributions(goes_left, 1)[0]
    order = [int(at) for at in np.argsort(-moved, kind="stable") if moved[at] > 0]
    return points, [(model.features[at].owner, model.features[at].name) for at in order]


def _in_turns(lists: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, str]]:
    longest = max(map(len, lists), default=0)
    return [names[place] for place in range(longest) for names in lists if place < len(names)]


# --- the bank's word ------------------------------------------------------------------------------

BANDS = "ABCDEFG"


def band_of(points: int, base_score: int, pdo: int) -> str:
    """A to G: each band has twice the odds of the next, D begins at the base score.

    Fixed by the scale alone, so that a band means the same next year.
    """
    steps = math.floor((points - base_score) / pdo)
    return BANDS[max(0, min(len(BANDS) - 1, 3 - steps))]


class ScoreReason(Part):
    """A feature that cost points, in words."""

    owner: OrgId
    field: FieldName
    zh: Name
    en: Name


class ScoreSource(Part):
    """A department's answer that the score rests on."""

    org: OrgId
    as_of: Date
    answer: Digest
    log: Annotated[str, StringConstraints(max_length=200)]
    entry: Count


class Score(SignedObject):
    """A bank's score of an enterprise, signed by its node's `run` key."""

    kind: ClassVar[str] = "score"

    org: OrgId
    created: Time
    subject: Uscc
    grant: Digest
    purpose: Purpose
    job: ObjectName
    manifest: Digest
    model: Digest
    points: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
    band: Annotated[str, StringConstraints(pattern=r"^[A-G]$")]
    reasons: tuple[ScoreReason, ...]
    as_of: Date  # the oldest of its sources
    sources: tuple[ScoreSource, ...]


def reason_words(title: str, owner: str) -> tuple[str, str]:
    """A reason in Chinese and in English."""
    return f"{owner}：{title}，使评分降低"[:200], f"{owner}: {title}, which lowers the score"[:200]
