"""The bank's side of scores: its own part, the departments' parts, one signed score.

A score is whole or there is none: a department that refuses, does not answer or answers for
another model ends it, and what the others said of it is kept and adds up to nothing.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from sqlalchemy import select

from clients import models
from clients.audit import AuditLog
from clients.completing import due_from
from clients.consent import Consents, StoredGrant
from clients.forgetting import FORGOTTEN
from clients.gate import Gate
from clients.grants import Wanted as GrantWanted
from clients.home import Home
from clients.models import StoredModel
from clients.store import ScoreRow, Store
from clients.verifier import AT_ONCE, Carrier, Verifier
from federation.audit import Action, Receipt, Result
from federation.catalogue import Dataset, Operation
from federation.enquiry import Answered
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, LianmoError, NotFound, Refused, UsageError
from federation.explanation import render
from federation.grants import SERVES, Channel, Grant
from federation.objects import JobManifest, Usage, utc_text
from federation.scoring import (
    Model,
    Score,
    ScorePart,
    ScoreReason,
    ScoreRequest,
    ScoreSource,
    band_of,
    reason_words,
    scorecard_score,
    trees_score,
    used_fields,
)
from federation.tables import CategoryColumn, Column, NumberColumn
from federation.tasks.binning import FeatureBins
from federation.tasks.trees_model import TreesModel
from federation.verification import Answer, Ask, Reply

Value = str | float | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A score as a bank's system asks for it."""

    grant: str  # digest, or its beginning
    applicant: str | None = field(default=None, repr=False)  # if stated, the grant's subject
    # the bank's own features as the application states them; others are looked up in its dataset
    own: Mapping[str, Value] = field(default_factory=dict, repr=False)
    job: str | None = None  # whose model; else the grant's


@dataclass(frozen=True, slots=True)
class Scored:
    """A score that was asked for; without `score` it was refused or is under way."""

    id: str
    number: int
    job: str
    grant: str
    created: str
    score: Score | None = field(default=None, repr=False)
    envelope: Envelope | None = field(default=None, repr=False)
    receipts: Mapping[str, Receipt] = field(default_factory=dict, repr=False)


class Scorer:
    """One bank's scores."""

    def __init__(
        self, home: Home, store: Store, carrier: Carrier, gate: Gate, now: Callable[[], datetime]
    ) -> None:
        self._home, self._store, self._gate, self._now = home, store, gate, now
        self._carrier = carrier
        self._verifier = Verifier(home, store, carrier, now)
        self._audit = AuditLog(home, store)

    def score(self, wanted: Wanted) -> Scored:
        """One score; raises Refused or Unavailable naming the department that has ended it."""
        held = Consents(self._store).get(wanted.grant)
        if wanted.applicant is not None and wanted.applicant != held.grant.subject:
            raise Refused("the grant is another enterprise's", todo="`lianmo grant list`")
        if wanted.job is not None:
            stored = models.of_job(self._home, self._store, wanted.job)
        elif held.grant.model is not None:
            stored = models.of_manifest(self._home, self._store, held.grant.model)
        else:
            todo = "`lianmo model draft` drafts one"
            raise Refused("the grant is not one to score with", todo=todo)
        model = stored.model
        departments = stored.manifest.departments
        require_covers(stored, model, held)
        requests = self._requests(stored, held)
        name = self._keep(stored, held, requests)
        own = self._own(stored, model, held, wanted.own)
        with ThreadPoolExecutor(len(departments), "part") as pool:
            asked = {
                org: pool.submit(self._ask, request, held) for org, request in requests.items()
            }
        answers = {org: one.result() for org, one in asked.items()}
        parts = {org: _part(answer, reply) for org, (answer, reply) in answers.items()}
        if isinstance(model, TreesModel):
            points, reasons = trees_score(model, own, departments, parts)
        else:
            points, reasons = scorecard_score(
                model, self._home.org, own, departments, parts, stored.manifest.scorecard
            )
        count = reasons_allowed(stored.manifest)
        sources = tuple(_source(org, answers[org][0]) for org in departments)
        score = Score(
            org=self._home.org,
            created=utc_text(self._now()),
            subject=held.grant.subject,
            grant=held.digest,
            purpose=held.grant.purpose,
            job=stored.job,
            manifest=stored.digest,
            model=model.digest().hex(),
            points=points,
            band=band_of(points, model.base_score, model.pdo),
            reasons=tuple(self._reason(stored, held.grant, *one) for one in reasons[:count]),
            as_of=min(source.as_of for source in sources),
            sources=sources,
        )
        return self._settle(name, score, answers)

    def score_all(self, wanted: Sequence[Wanted]) -> list[Scored | LianmoError]:
        """Several scores; each ends by itself, well or not, in the order they came."""

        def one(item: Wanted) -> Scored | LianmoError:
            try:
                return self.score(item)
            except LianmoError as error:
                return error

        with ThreadPoolExecutor(max(1, AT_ONCE // 4), "score") as pool:
            return list(pool.map(one, wanted))

    def page_of(self, scored: Scored) -> str:
        """The page that explains a score to its enterprise; NotFound if there is no score."""
        if (score := scored.score) is None:
            raise NotFound("there is no score to explain", todo="`lianmo model scores`")
        model, trust = models.of_job(self._home, self._store, score.job).model, self._home.trust()
        orgs = [score.org, *(source.org for source in score.sources)]
        return render(
            score,
            {org: trust.card(org).name for org in orgs},
            base_score=model.base_score,
            odds=model.base_odds,
            pdo=model.pdo,
        )

    # --- the departments' parts -------------------------------------------------------------------

    def _requests(self, stored: StoredModel, held: StoredGrant) -> dict[str, ScoreRequest]:
        """One for each department, of one session: nonce and times are the same in all."""
        shared = self._verifier.asking(held) | {
            "channel": Channel.SCORE,
            "model": stored.digest,
        }
        return {
            org: ScoreRequest(
                **shared,
                request=secrets.token_hex(16),
                provider=org,
                dataset=stored.manifest.party(org).dataset or "",
            )
            for org in stored.manifest.departments
        }

    def _ask(self, request: ScoreRequest, held: StoredGrant) -> tuple[Answer, Reply]:
        signed = sign(request, self._home.key(Usage.REQUEST))
        sealed = self._verifier.seal(request, Ask(request=signed, grant=held.bundle))
        found = self._carrier.ask_sealed(request.provider, sealed)
        answer, reply = self._verifier.open(request, found)
        if answer.result is Answered.REFUSED:
            todo = "see that the grant is in force and not used up; the reason is in its own log"
            raise Refused("refuses its part of the score", party=request.provider, todo=todo)
        return answer, reply

    # --- the bank's own part ----------------------------------------------------------------------

    def _own(
        self, stored: StoredModel, model: Model, held: StoredGrant, given: Mapping[str, Value]
    ) -> dict[str, Column]:
        """The bank's own features: as given, else of its dataset, else missing."""
        bins = _definitions(model, self._home.org)
        names = used_fields(model, self._home.org)
        if unknown := sorted(given.keys() - bins.keys()):
            what = f"the model has no feature {unknown[0]} of this bank"
            raise UsageError(what, todo=f"it has {', '.join(names)}")
        found = {name: _column(bins[name], value) for name, value in given.items()}
        rest = [name for name in names if name not in found]
        if rest:
            found |= self._looked_up(stored, held, rest)
        for name in bins.keys() - found.keys():  # in the bins, and of no weight
            found[name] = _column(bins[name], None)
        return found

    def _looked_up(
        self, stored: StoredModel, held: StoredGrant, names: Sequence[str]
    ) -> dict[str, Column]:
        dataset = stored.manifest.party(self._home.org).dataset or ""
        catalogue = self._store.entries.get(dataset).digest
        if catalogue is None:
            raise Refused(f"the entry of dataset {dataset} was never signed", party=self._home.org)
        now = self._now()
        with self._audit.together(now):
            entry = self._audit.append(
                Action.SCORED,
                stored.digest,
                now,
                actor=Usage.RUN,
                outcome=Result.ADMITTED,
                job=held.digest,
                subject=held.grant.subject.encode(),
            )
        try:
            row = self._gate.one_row(
                entry.seq,
                dataset=dataset,
                catalogue=catalogue,
                columns=names,
                subject=held.grant.subject,
            )
        except Refused as error:
            error.party = error.party or self._home.org
            stated = " ".join(f"--set {name}=..." for name in names)
            error.todo = error.todo or f"state it: `{stated}`, or offer {dataset} for scores"
            raise
        return dict(zip(names, row.columns, strict=True))

    def _reason(self, stored: StoredModel, grant: Grant, owner: str, name: str) -> ScoreReason:
        """In the words that the enterprise has read in the grant's notice."""
        dataset = stored.manifest.party(owner).dataset or ""
        item = grant.item(owner, dataset, name)
        title = item.title if item is not None else self._title(dataset, name)
        org = self._home.trust().card(owner).name
        zh, en = reason_words(title, org)
        return ScoreReason(owner=owner, field=name, zh=zh, en=en)

    def _title(self, dataset: str, name: str) -> str:
        envelope = self._store.entries.get(dataset).envelope
        if envelope is None:
            return name
        entry = Envelope.from_json(envelope).unverified(Dataset)
        said = next((item for item in entry.fields if item.name == name), None)
        return (said.description if said else "") or name

    # --- what is kept -----------------------------------------------------------------------------

    def _keep(
        self, stored: StoredModel, held: StoredGrant, requests: Mapping[str, ScoreRequest]
    ) -> str:
        name = secrets.token_hex(16)
        with self._store.writing(ScoreRow) as session:
            row = ScoreRow(
                id=name,
                job=stored.job,
                manifest=stored.digest,
                consent=held.digest,
                created=utc_text(self._now()),
                requests={org: item.model_dump(mode="json") for org, item in requests.items()},
            )
            session.add(row)
        return name

    def _settle(
        self, name: str, score: Score, answers: Mapping[str, tuple[Answer, Reply]]
    ) -> Scored:
        signed = sign(score, self._home.key(Usage.RUN))
        kept = {
            org: reply.model_dump(mode="json", by_alias=True) for org, (_, reply) in answers.items()
        }
        with self._store.writing(ScoreRow) as session:
            row = session.scalars(select(ScoreRow).where(ScoreRow.id == name)).one()
            row.answers, row.score, row.points = kept, signed.to_json(), score.points
            given = {org: reply.receipt for org, (_, reply) in answers.items() if reply.receipt}
            row.due_from = due_from(given)
            session.flush()
            return _scored(row)

    def get(self, name: str) -> Scored:
        """One score; NotFound if it was never asked for from here."""
        with self._store.reading() as session:
            row = session.scalar(select(ScoreRow).where(ScoreRow.id == name))
            if row is None or row.consent == FORGOTTEN:
                raise NotFound("there is no such score", todo="`lianmo model scores` lists them")
            return _scored(row)

    def page(self, before: int | None, limit: int, job: str | None = None) -> list[Scored]:
        """Scores, the newest first; `before`: only those asked for earlier than that number."""
        with self._store.reading() as session:
            query = select(ScoreRow).order_by(ScoreRow.number.desc()).limit(limit)
            query = query.where(ScoreRow.consent != FORGOTTEN)
            if before is not None:
                query = query.where(ScoreRow.number < before)
            if job is not None:
                query = query.where(ScoreRow.job == job)
            return list(map(_scored, session.scalars(query)))


def draft_wanted(
    home: Home,
    store: Store,
    catalogue: Mapping[tuple[str, str], Dataset],
    job: str,
) -> tuple[str, list[GrantWanted]]:
    """What a grant to score with a model has to open: the manifest's digest, and the fields.

    A department of which no field moves the score is named with one all the same, as its mask is
    part of the sum. Raises Refused for a field whose owner does not offer it for scores.
    """
    stored = models.of_job(home, store, job)
    model, found = stored.model, []
    for org in stored.manifest.departments:
        party = stored.manifest.party(org)
        dataset = party.dataset or ""
        entry = catalogue.get((org, dataset))
        if entry is None:
            raise NotFound(f"publishes no dataset {dataset}", party=org)
        offered = {said.name: said for said in entry.fields}
        for name in used_fields(model, org) or party.fields[:1]:
            said = offered.get(name)
            if said is None or Operation.SCORE not in said.ops:
                todo = f"ask {org} to offer it: `lianmo catalogue set {dataset}`, ops with `score`"
                raise Refused(f"field {name} is not open to scores", party=org, todo=todo)
            periods = said.enquiry.periods if said.enquiry is not None else ("current",)
            found.append(GrantWanted(org, dataset, name, periods=periods[:1]))
    return stored.digest, found


def reasons_allowed(manifest: JobManifest) -> int:
    """How many reasons the manifest allows for one enterprise."""
    parameters = manifest.scorecard if manifest.task == "scorecard" else manifest.trees
    return parameters.reason_codes


def require_covers(stored: StoredModel, model: Model, held: StoredGrant) -> None:
    """The grant opens this model, at every department and field; raises Refused before any use."""
    grant = held.grant
    todo = f"draft one with `lianmo model draft {stored.job} --subject ...`"
    if grant.channel is not Channel.SCORE or grant.model != stored.digest:
        raise Refused(f"the grant is not one to score with {stored.job}", todo=todo)
    if grant.purpose not in SERVES[Channel.SCORE]:
        raise Refused(f"the purpose {grant.purpose} is none that scores serve", todo=todo)
    for org in stored.manifest.departments:
        dataset = stored.manifest.party(org).dataset or ""
        if org not in grant.providers:
            raise Refused("the grant leaves this department out", party=org, todo=todo)
        for name in used_fields(model, org):
            if grant.item(org, dataset, name) is None:
                raise Refused(f"the grant leaves field {name} out", party=org, todo=todo)


def _part(answer: Answer, reply: Reply) -> ScorePart:
    extra = base64.b64decode(reply.extra)
    if answer.value != hashlib.sha256(extra).hexdigest():
        raise IntegrityError("its part is not the one that it has signed", party=answer.org)
    return ScorePart.from_bytes(extra)


def _source(org: str, answer: Answer) -> ScoreSource:
    if answer.as_of is None or answer.log is None or answer.entry is None:
        raise IntegrityError("its answer does not say what it rests on", party=org)
    return ScoreSource(
        org=org, as_of=answer.as_of, answer=answer.digest(), log=answer.log, entry=answer.entry
    )


def _definitions(model: Model, owner: str) -> dict[str, FeatureBins]:
    if isinstance(model, TreesModel):
        return {item.name: item for item in model.definitions_of(owner)}
    return {item.name: item.definition for item in model.of(owner)}


def _column(bins: FeatureBins, value: Value) -> Column:
    """One row of a feature that somebody has stated; None is missing."""
    if bins.numeric:
        try:
            number = float("nan") if value is None else float(value)
        except ValueError:
            raise UsageError(f"{bins.name} is a number") from None
        return NumberColumn(bins.name, np.array([number]))
    if value is None:
        return CategoryColumn(bins.name, np.array([-1], np.int32), ())
    return CategoryColumn(bins.name, np.array([0], np.int32), (str(value),))


def _scored(row: ScoreRow) -> Scored:
    envelope = None if row.score is None else Envelope.from_json(row.score)
    receipts = {
        org: Receipt.model_validate(reply["receipt"]) for org, reply in (row.answers or {}).items()
    }
    return Scored(
        row.id,
        row.number,
        row.job,
        row.consent,
        row.created,
        envelope.unverified(Score) if envelope is not None else None,
        envelope,
        receipts,
    )


def plain(scored: Scored) -> dict[str, object]:
    """As the command line and the local API show it."""
    score = scored.score
    shown: dict[str, object] = {
        "id": scored.id,
        "created": scored.created,
        "job": scored.job,
        "grant": scored.grant,
        "points": score.points if score else None,
        "band": score.band if score else None,
        "model": score.model if score else None,
        "as_of": score.as_of if score else None,
        "reasons": [item.model_dump(mode="json") for item in score.reasons] if score else [],
        "sources": [item.model_dump(mode="json") for item in score.sources] if score else [],
    }
    return shown
