"""A department's part of one enterprise's score: the service of the channel `score`.

Everything around it, order of checks, debits, log, sealed answer, receipt for the enterprise, is
that of questions (clients/verification.py). Added here: the bank of the model asks, the grant opens
every department of the manifest (a subset would open one department's points) and every field that
the part reads, and the answer is masked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from clients import models
from clients.consent import Debits
from clients.gate import Gate
from clients.home import Home
from clients.models import StoredModel
from clients.store import Store
from clients.verification import Debit, Outcome
from federation import enquiry
from federation.audit import Check, Reason
from federation.catalogue import Question
from federation.enquiry import BIT, Answered
from federation.errors import LianmoError
from federation.objects import Decision, Usage
from federation.scoring import (
    ScorePart,
    ScoreRequest,
    costly,
    declared,
    points_of,
    scorecard_part,
    used,
)
from federation.tables import Column
from federation.tasks.model import PartFeature
from federation.tasks.trees_model import TreesPart
from federation.verification import Asked, Denied
from protocols.masked_total import masked

TAKEN_BACK = frozenset({Decision.WITHDRAW, Decision.REFUSE})
BITS_MAX = 4096  # that one enterprise's scores under one model may open; grants bound the uses


class Scores:
    """Parts of scores, from this home's own parts of models."""

    kind = ScoreRequest

    def __init__(self, home: Home, store: Store, gate: Gate) -> None:
        self._home, self._store, self._gate = home, store, gate
        self._debits = Debits(store)
        self._models: dict[str, StoredModel] = {}  # by manifest, which has one model

    def debits(self, asked: Asked[ScoreRequest]) -> Sequence[Debit]:
        """One, of this enterprise and model: trees open a bit for each threshold, once a snapshot;
        of masked points nothing is learnt here that the total does not say."""
        request, part = asked.request, self._part(asked)
        snapshot = self._store.datasets.get(request.dataset).snapshot
        scope = self._debits.scope(request.subject, request.dataset, "score", request.model)
        leak = self._debits.leak(scope, snapshot)
        bits = len(part.thresholds) if isinstance(part, TreesPart) else 0
        return [Debit(scope, snapshot, leak, 0 if leak.known.is_told else bits * BIT, BITS_MAX)]

    def read(
        self, asked: Asked[ScoreRequest], intents: Sequence[int], debits: Sequence[Debit]
    ) -> Outcome:
        """The part, for one row; an enterprise without a record is in the missing bins."""
        request, place = asked.request, asked.places[0]
        part, names = self._part(asked), self._fields(asked)
        catalogue = place.entry.digest()
        found = self._gate.one_row(
            intents[0],
            dataset=request.dataset,
            catalogue=catalogue,
            columns=names,
            subject=request.subject,
        )
        if found.snapshot != debits[0].basis:
            what = "the data were refreshed while the score was made"
            raise Denied(Check.VALUE, Reason.UNFULFILLABLE, what)
        columns = dict(zip(names, found.columns, strict=True))
        if isinstance(part, TreesPart):
            made = _bits(part, columns)
        else:
            made = self._points(asked, part, columns)
        extra = made.to_bytes()
        digest = hashlib.sha256(extra).hexdigest()
        told = enquiry.Asked(Question.VALUE), enquiry.Told(Answered.VALUE)
        return Outcome(
            Answered.VALUE, place.entry.as_of, catalogue, digest, told=(told,), extra=extra
        )

    def _points(
        self,
        asked: Asked[ScoreRequest],
        features: Sequence[PartFeature],
        columns: dict[str, Column],
    ) -> ScorePart:
        moving, manifest = used(features), self._stored(asked).manifest
        points = points_of(moving, columns)
        own, trust = self._home.key(Usage.MASK), self._home.trust()
        peers = [org for org in manifest.departments if org != self._home.org]
        shared = {org: own.agree(trust.mask_key(org)) for org in peers}
        told = declared(sum(points), manifest.scorecard)
        number = masked(told, self._home.org, shared, asked.request.session())
        names = [item.definition.name for item in moving]
        best = [int(item.points.max()) for item in moving]
        most = manifest.scorecard.reason_codes
        return ScorePart(
            task="scorecard",
            part=scorecard_part(self._home.org, features),
            masked=f"{number:016x}",
            reasons=tuple(costly(names, points, best, most)),
        )

    # --- what the request is held to besides the provider's checks

    def _stored(self, asked: Asked[ScoreRequest]) -> StoredModel:
        request, me = asked.request, self._home.org
        try:
            if request.model not in self._models:
                stored = models.of_manifest(self._home, self._store, request.model)
                self._models[request.model] = stored
            stored = self._models[request.model]
        except LianmoError as error:
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, error.what) from None
        if self._store.jobs.get(request.model).decision in TAKEN_BACK:
            what = "this organisation has taken back its word on the job"
            raise Denied(Check.POLICY, Reason.DECLINED, what)
        manifest = stored.manifest
        if request.verifier not in manifest.banks or me not in manifest.departments:
            what = "the model is not one of this bank and this department"
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, what)
        if manifest.party(me).dataset != request.dataset:
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, "the model reads another dataset")
        if not set(manifest.departments) <= set(asked.grant.providers):
            what = "the grant leaves departments of the model out"
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, what)
        return stored

    def _part(self, asked: Asked[ScoreRequest]) -> tuple[PartFeature, ...] | TreesPart:
        stored = self._stored(asked)
        try:
            part = stored.part
        except LianmoError as error:
            raise Denied(Check.QUESTION, Reason.NOT_OFFERED, error.what) from None
        granted = {place.item.field for place in asked.places}
        if not set(names_of(part)) <= granted:
            what = "the model reads a field that is not granted"
            raise Denied(Check.QUESTION, Reason.NOT_GRANTED, what)
        return part

    def _fields(self, asked: Asked[ScoreRequest]) -> list[str]:
        return names_of(self._part(asked))


def names_of(part: tuple[PartFeature, ...] | TreesPart) -> list[str]:
    """The fields that a part reads."""
    if isinstance(part, TreesPart):
        places = sorted({split.feature for split in part.thresholds})
        return [part.definitions[place].name for place in places]
    return [item.definition.name for item in used(part)]


def _bits(part: TreesPart, columns: dict[str, Column]) -> ScorePart:
    found = []
    for split in part.thresholds:
        definition = part.definitions[split.feature]
        code = definition.assign(columns[definition.name])[0]
        found.append("1" if split.left_bins(part.feature(split.feature))[code] else "0")
    return ScorePart(task="trees", part=part.digest().hex(), bits="".join(found))
