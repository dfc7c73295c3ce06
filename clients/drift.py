"""How the scores that this bank has given move from month to month (issue 6, item 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy import select

from clients import models
from clients.home import Home
from clients.store import ScoreRow, Store
from federation.errors import NotFound
from federation.evaluation import population_stability

SCORES = "scores.parquet"  # as clients/tasks.py writes it
FEW = 100  # scores of a month: below, chance alone moves the index
# The usual reading of the index (Siddiqi 2006, Credit Risk Scorecards, chapter 9).
SHIFTED, MOVING = 0.25, 0.10


@dataclass(frozen=True, slots=True)
class Month:
    """One month's scores against those of training (or of the first month)."""

    month: str
    scores: int
    mean: float
    stability: float  # population stability index
    verdict: str  # stable, moving, shifted; few


@dataclass(frozen=True, slots=True)
class Drift:
    """The months of a model, the oldest first."""

    job: str
    baseline: str  # training, or a month
    expected: int  # scores in the baseline
    expected_mean: float
    months: tuple[Month, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def drift(home: Home, store: Store, job: str) -> Drift:
    """The drift of a model in use; NotFound if nothing was scored with it yet."""
    models.of_job(home, store, job)
    with store.reading() as session:
        query = select(ScoreRow.created, ScoreRow.points)
        query = query.where(ScoreRow.job == job, ScoreRow.points.is_not(None))
        rows = [(made[:7], points or 0) for made, points in session.execute(query)]
    if not rows:
        todo = "`lianmo model score` makes one"
        raise NotFound(f"no score was made with {job} yet", party=home.org, todo=todo)
    rows.sort()
    by_month = {m: np.array([p for _, p in of], float) for m, of in groupby(rows, lambda r: r[0])}
    baseline, expected = _training(home, job)
    if expected is None:
        baseline = next(iter(by_month))
        expected = by_month[baseline]
    return compare(job, baseline, expected, list(by_month.items()))


def compare(
    job: str,
    baseline: str,
    expected: NDArray[np.float64],
    months: Sequence[tuple[str, NDArray[np.float64]]],
) -> Drift:
    """Each month's scores against the expected ones."""
    found = []
    for month, points in months:
        index = population_stability(expected, points).index
        verdict = "shifted" if index >= SHIFTED else "moving" if index >= MOVING else "stable"
        verdict = "few" if len(points) < FEW else verdict
        mean = round(float(points.mean()), 1)
        found.append(Month(month, len(points), mean, round(index, 4), verdict))
    return Drift(job, baseline, len(expected), round(float(expected.mean()), 1), tuple(found))


def _training(home: Home, job: str) -> tuple[str, NDArray[np.float64] | None]:
    """The customers' scores that the job opened for evaluation, where it did."""
    file = home.runs(job) / SCORES
    if not file.is_file():
        return "", None
    frame = pd.read_parquet(file)
    if "points" not in frame or len(frame) == 0:
        return "", None
    return "training", frame["points"].to_numpy(np.float64)
