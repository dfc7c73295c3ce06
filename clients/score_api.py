"""Scores on the bank's local API: bodies and endpoints (clients/local_api.py adds them)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from clients.idempotency import IdempotencyKey, Once
from clients.scorer import Scored, Scorer, Wanted, plain
from federation.api import Body, Page, Problem, problem_of
from federation.errors import LianmoError
from federation.objects import Date, Digest, DigestBegin, FieldName, Name, ObjectName, Time, Uscc
from federation.scoring import ScoreReason, ScoreSource

MAX_BATCH = 100


class ScoreBody(Body):
    """One enterprise to score, under its grant; `own`: features of the bank as stated."""

    grant: DigestBegin
    applicant: Uscc
    own: dict[FieldName, Annotated[float, Field(allow_inf_nan=False)] | Name | None] = Field(
        default_factory=dict, max_length=256, repr=False
    )

    def wanted(self) -> Wanted:
        """For the scorer."""
        return Wanted(self.grant, self.applicant, self.own)


class ScoreBatchBody(Body):
    """Several enterprises; each is scored by itself."""

    items: Annotated[tuple[ScoreBody, ...], Field(min_length=1, max_length=MAX_BATCH)]


class ScoreEntry(Body):
    """A score that was asked for; without `points` there is none."""

    id: str
    created: Time
    job: ObjectName
    grant: Digest
    points: int | None = None
    band: str | None = None
    model: Digest | None = None
    as_of: Date | None = None
    reasons: tuple[ScoreReason, ...] = ()
    sources: tuple[ScoreSource, ...] = ()

    @classmethod
    def of(cls, scored: Scored) -> ScoreEntry:
        """As the API shows it."""
        return cls.model_validate(plain(scored))


class ScoreItem(Body):
    """What became of one enterprise of a batch: one of the two."""

    score: ScoreEntry | None = None
    problem: Problem | None = None

    @classmethod
    def of(cls, org: str, found: Scored | LianmoError) -> ScoreItem:
        """The one that it was, at this bank."""
        if isinstance(found, LianmoError):
            return cls(problem=problem_of(found, org))
        return cls(score=ScoreEntry.of(found))


class ScoreBatch(Body):
    """In the order of the enterprises."""

    items: tuple[ScoreItem, ...]


def add(api: APIRouter, scorer: Scorer, once: Once) -> None:
    """The endpoints of scores."""

    @api.post("/scores", status_code=201, response_model=ScoreEntry)
    def score(body: ScoreBody, key: IdempotencyKey) -> Response:
        """Score one enterprise; a department that refuses ends the whole score."""

        def effect() -> tuple[int, Body]:
            return 201, ScoreEntry.of(scorer.score(body.wanted()))

        return once.serve("scores", key, body, effect)

    @api.post("/scores/batches", status_code=200, response_model=ScoreBatch)
    def score_batch(body: ScoreBatchBody, key: IdempotencyKey) -> Response:
        """Score several enterprises; each ends by itself, well or not."""

        def effect() -> tuple[int, Body]:
            found = scorer.score_all([item.wanted() for item in body.items])
            return 200, ScoreBatch(items=tuple(ScoreItem.of(once.org, one) for one in found))

        return once.serve("score-batches", key, body, effect)

    @api.get("/scores")
    def scores(
        before: Annotated[int | None, Query(ge=1, lt=1 << 53)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Page[ScoreEntry]:
        """List the scores, the newest first; `before`: the `next` of the last page."""
        found = scorer.page(before, limit)
        after = str(found[-1].number) if len(found) == limit else None
        return Page(items=tuple(map(ScoreEntry.of, found)), next=after)

    @api.get("/scores/{id}")
    def one(id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]) -> ScoreEntry:
        """Show one score."""
        return ScoreEntry.of(scorer.get(id))
