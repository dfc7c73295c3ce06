"""A score explained to the enterprise that it is about: one page for a phone, Chinese and English.

It says what the signed score says and nothing more: no record, no owner's points.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from federation.scoring import BANDS, Score


def render(score: Score, names: Mapping[str, str], *, base_score: int, odds: int, pdo: int) -> str:
    """The page, without any other file. names: of the organisations, for a person.

    base_score, odds, pdo: of the model's scale, for the meaning of the band.
    """
    place = BANDS.index(score.band)
    low = odds * 2.0 ** (3 - place)
    bounds = [f"{bound:g}" for bound in (low, 2 * low)]
    text = _environment().get_template("score.html.j2")
    return text.render(
        score=score,
        names=names,
        bands=BANDS,
        worst=place == len(BANDS) - 1,
        best=place == 0,
        low=bounds[0],
        high=bounds[1],
        from_points=base_score + (3 - place) * pdo,
        to_points=base_score + (4 - place) * pdo,
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("federation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
