"""The review fits a terminal, in Chinese as well, and leaves out nothing that a person signs."""

from __future__ import annotations

import pytest

from clients.cli.common import display_width
from clients.cli.review_text import review_text
from federation.catalogue import Dataset
from federation.objects import JobManifest
from federation.review import RefusedBefore, Review, review
from tests.federation.test_narrowing import REFUSED, again, refusal
from tests.federation.test_review import CATALOGUE

REASON = "按月缴纳税额过细，不适用于本次建模；请改用季度数据，并减少打开次数。" * 3


@pytest.fixture
def found() -> Review:
    """A job that takes the place of a refused one, over a dataset that is described in Chinese."""
    word = refusal(drop_fields=["late"], openings=1).model_copy(update={"words": REASON})
    assert word.narrowing is not None
    new = again(REFUSED, ("tax", word.narrowing))
    catalogue = dict(CATALOGUE)
    entry = catalogue["tax", "payments"]
    fields = tuple(
        field.model_copy(update={"description": "近十二个月实际缴纳税额", "unit": "元"})
        if field.name == "paid"
        else field
        for field in entry.fields
    )
    entry = Dataset.model_validate(
        entry.model_dump() | {"fields": fields, "title": "纳税缴款记录（征管系统导出）"}
    )
    catalogue["tax", "payments"] = entry
    parties = [
        party.model_copy(update={"catalogue_digest": entry.digest()})
        if party.org == "tax"
        else party
        for party in new.parties
    ]
    return review(
        JobManifest.model_validate(new.model_dump() | {"parties": parties}),
        catalogue,
        me="tax",
        tokens_before=1_000,
        previous=REFUSED,
        refused=RefusedBefore(REFUSED, (word,)),
        approved_by={"tax": ["李娜"]},
    )


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(found: Review, width: int) -> None:
    lines = review_text(found, width).splitlines()
    assert max(map(display_width, lines)) <= width


def test_everything_that_is_signed_is_in_it(found: Review) -> None:
    text = review_text(found, 80)
    for part in (
        found.manifest,
        "credit-model-training",
        "3 at most; each may ask and disclose all of this again",
        "tax    department  2 persons approve; so far 李娜",
        "纳税缴款记录（征管系统导出）",
        "近十二个月实际缴纳税额 (元)",
        "min_cohort 50",
        "limits.customers_max 20000",
        "20,000 values of 8 bits, of single enterprises",
        "the gate refuses",
        "tax refused that one, FIELD_LEVEL",
        "this manifest does so: yes",
        "tax: late is no longer read",
        "openings: 3 -> 1",
    ):
        assert part in text
    assert REASON in text.replace("\n  ", "")
    for item in found.disclosures:
        assert f"{item.to} learns from {item.source}" in text
