"""A counter-proposal takes away, is met as a whole or named as unmet, and changes in words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from federation import differences, drafts, narrowing
from federation.errors import UsageError
from federation.objects import (
    Approval,
    Decision,
    JobManifest,
    Narrowing,
    RefusalCode,
    utc_text,
)
from federation.review import RefusedBefore, review
from tests.federation.parties import make_approval
from tests.federation.test_review import CATALOGUE, NOW, REGISTRY, build, text

REFUSED = build(text())
TREES = build(text().replace("[scorecard]", "[trees]\ntrees = 12\n").split("openings =")[0])


def again(base: JobManifest, *asked: tuple[str, Narrowing]) -> JobManifest:
    draft = narrowing.narrowed(drafts.of_manifest(base, "spring-2"), asked)
    return drafts.build(
        draft,
        catalogue=CATALOGUE,
        registry=REGISTRY,
        cover_rows=REGISTRY.rows,
        package_sha256="b" * 64,
        now=NOW,
        previous=base.digest(),
    )


def unlike(base: JobManifest, other: JobManifest) -> tuple[str, ...]:
    return differences.between(base, other)


LESS = {
    "drop_fields": st.sampled_from([(), ("paid",), ("late",)]),
    "openings": st.none() | st.integers(0, 2),
    "evaluation": st.sampled_from([None, False]),
    "attempts": st.none() | st.integers(1, 2),
    "expires": st.none() | st.integers(1, 29).map(lambda d: utc_text(NOW + timedelta(days=d))),
}


@settings(max_examples=25, deadline=None)
@given(plain=st.fixed_dictionaries(LESS))
def test_what_the_bank_proposes_anew_meets_what_was_asked_and_changes_nothing_else(
    plain: dict[str, Any],
) -> None:
    try:
        asked = Narrowing.model_validate(plain)
    except ValidationError:
        assert not any(value not in ((), None) for value in plain.values())
        return
    narrowing.require_less(asked, REFUSED, "tax")
    new = again(REFUSED, ("tax", asked))
    assert narrowing.unmet(asked, "tax", REFUSED, new) == []
    assert narrowing.unmet(asked, "tax", REFUSED, REFUSED)  # the refused one does not
    assert new.previous == REFUSED.digest()
    for kept in ("purpose", "registry", "cover", "task", "outputs", "alignment"):
        assert getattr(new, kept) == getattr(REFUSED, kept)
    assert new.party("court") == REFUSED.party("court")
    assert set(new.party("tax").fields) == {"paid", "late"} - set(asked.drop_fields)


def test_who_can_audit_a_job_stays_when_it_is_narrowed() -> None:
    named = text().replace("[limits]", '[audit]\nauditors = ["aud-a", "aud-b"]\n\n[limits]', 1)
    manifest = again(build(named), ("tax", Narrowing(attempts=1)))
    assert manifest.limits.attempts == 1
    assert manifest.audit.auditors == ("aud-a", "aud-b")


def test_a_job_that_was_not_narrowed_comes_again_as_it_was() -> None:
    for base in (REFUSED, TREES):
        assert unlike(base, again(base)) == ()


def test_the_trees_that_ask_can_be_narrowed_and_openings_of_trees_cannot() -> None:
    asked = Narrowing(trees=5)
    narrowing.require_less(asked, TREES, "tax")
    new = again(TREES, ("tax", asked))
    assert new.trees.joint_trees == 5
    assert new.limits.tokens < TREES.limits.tokens
    with pytest.raises(UsageError, match="has no openings"):
        narrowing.require_less(Narrowing(openings=1), TREES, "tax")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"drop_fields": ("count",)}, "does not read count of tax"),  # another owner's
        ({"drop_fields": ("paid", "late")}, "without any of your fields"),
        ({"openings": 3}, "not less"),
        ({"attempts": 3}, "not less"),
        ({"trees": 3}, "has no trees"),
        ({"expires": utc_text(NOW + timedelta(days=30))}, "ends after"),
        ({"expires": utc_text(NOW)}, "ends after"),
    ],
    ids=str,
)
def test_what_takes_nothing_away_is_no_narrowing(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        narrowing.require_less(Narrowing.model_validate(asked), REFUSED, "tax")


def test_a_counter_proposal_says_something_and_goes_with_a_refusal() -> None:
    with pytest.raises(ValidationError, match="takes something away"):
        Narrowing()
    less = Narrowing(openings=1)
    with pytest.raises(ValidationError, match="goes with a refusal"):
        make_approval("tax", REFUSED.digest(), narrowing=less)
    with pytest.raises(ValidationError):
        Narrowing.model_validate({"evaluation": True})


def refusal(**asked: Any) -> Approval:
    return make_approval(
        "tax",
        REFUSED.digest(),
        decision=Decision.REFUSE,
        code=RefusalCode.FIELD_LEVEL,
        words="too fine",
        narrowing=Narrowing.model_validate(asked),
    )


def test_the_review_says_whether_a_counter_proposal_is_met_and_what_is_lacking() -> None:
    """The attack: the bank proposes anew, names the refused one, and leaves one thing as it was."""
    word = refusal(drop_fields=["late"], openings=1)
    assert word.narrowing is not None
    before = RefusedBefore(REFUSED, (word,))
    met = again(REFUSED, ("tax", word.narrowing))
    (told,) = review(met, CATALOGUE, me="court", refused=before).refused
    assert (told.asked, told.unmet) == (
        ("without late", "with at most 1 opening of training scores"),
        (),
    )
    half = again(REFUSED, ("tax", Narrowing(openings=1)))
    (told,) = review(half, CATALOGUE, me="court", refused=before).refused
    assert told.unmet == ("it still reads late",)
    changed = review(met, CATALOGUE, me="court", refused=before).changes_since_refused
    assert "tax: late is no longer read" in changed


def test_two_owners_counter_proposals_are_both_met() -> None:
    asked = (("tax", Narrowing(openings=2)), ("court", Narrowing(openings=1, attempts=1)))
    new = again(REFUSED, *asked)
    assert (new.scorecard.openings, new.limits.attempts) == (1, 1)
    assert all(narrowing.unmet(item, org, REFUSED, new) == [] for org, item in asked)


def test_no_difference_between_two_manifests_is_without_a_line() -> None:
    """Every leaf that approvals hang on has its line; only names and dates of making pass."""
    plain = REFUSED.model_dump(mode="json")
    changed = [
        {"purpose": "credit-decision"},
        {"outputs": ["bank", "tax"]},
        {"package_sha256": "c" * 64},
        {"registry": plain["registry"] | {"digest": "c" * 64}},
        {"limits": plain["limits"] | {"wall_time_s": 3601}},
        {"query": plain["query"] | {"vmax": plain["query"]["vmax"] + 1}},
        {"cover": {"kind": "customers", "decoys": None, "rows": plain["cover"]["rows"]}},
        {"expires": utc_text(NOW + timedelta(days=31))},
        {"disclosures": plain["disclosures"][1:]},
        {"parties": [*plain["parties"][:2], *plain["parties"][3:]]},
        {"parties": [p | {"persons": 1} if p["org"] == "tax" else p for p in plain["parties"]]},
    ]
    for change in changed:
        other = JobManifest.model_validate(plain | change)
        lines = differences.between(REFUSED, other)
        assert lines, change
        assert all(line.isprintable() for line in lines)
    moved = JobManifest.model_validate(plain | {"job": "autumn", "previous": "c" * 64})
    assert differences.between(REFUSED, moved) == ()
