"""`lianmo lab --task trees`: what trees gain without a job's limits, and what the limits cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clients import lab
from clients.lab_run import Finding
from federation.errors import UsageError
from tests.clients.test_lab import found, ordinary, run, write

SMALL = ("--trees", "3", "--depth", "3", "--set", "max_bins=8")


def test_the_json_shows_the_cap_and_the_offers_beside_the_free_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*write(tmp_path, ordinary(600)), "--task", "trees", *SMALL]
    body = found(arguments, capsys)
    assert (body["task"], body["trees"]) == ("trees", 3)
    assert body["auc"]["joint"] > body["auc"]["bank_only"] + 0.05
    # Nothing is held back: the joint trees are the pooled ones; scores are whole points.
    assert body["auc"]["joint"] == pytest.approx(body["auc"]["pooled"], abs=0.003)
    assert body["exposure"] == pytest.approx((1 + 3 * 4 * 2) / 600)
    capped = body["capped"]
    assert capped["changed"] == {"min_cohort": 50, "thresholds": 3, "ask_customers": 500}
    assert max(capped["thresholds"].values()) <= 6  # two features of the tax bureau, three each
    assert 0.5 < capped["auc"] < 1
    assert all(item["exposure"] <= 0.05 for item in body["offers"])
    assert body["offers"][0]["what"] == "a job's usual limits"
    assert found(arguments, capsys)["capped"] == capped


def test_a_person_reads_what_limits_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    arguments = [*write(tmp_path, ordinary(600)), "--task", "trees", "--trees", "2", "--leaves"]
    code, out, err = run([*arguments, "6", "--html", str(page)], capsys)
    assert code == 0, err
    for text in ("joint", "a job's usual limits", "questions", "thresholds open", "2 trees"):
        assert text in out
    assert re.search(r"about [0-9.]+ .B between the parties", err)
    assert "leaf by leaf to 6 leaves" in page.read_text(encoding="utf-8")


def test_few_customers_are_told_that_no_settings_are_within_the_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*write(tmp_path, ordinary(150)), "--task", "trees", "--trees", "2", "--depth", "2"]
    code, out, err = run([*arguments, "--set", "max_bins=4"], capsys)
    assert code == 0, err
    body = found([*arguments, "--set", "max_bins=4"], capsys)
    assert (body["offers"] == []) == ("too few for trees" in out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "tree=3"], "has no setting tree"),
        (["--set", "trees"], "NAME=VALUE"),
        (["--set", "learning_rate=7"], "learning_rate is above 0 and at most 1"),
        (["--set", "trees=many"], "trees"),
        (["--openings", "2"], "has no setting openings"),
        (["--task", "forest"], "there are: scorecard, trees"),
    ],
)
def test_wrong_settings_end_with_exit_code_two_and_name_themselves(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*write(tmp_path, ordinary(200)), "--task", "trees", *arguments]
    code, _, err = run(given, capsys)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_lists_and_numbers_are_read_from_text() -> None:
    made = lab.parse_settings(
        "trees", {"increasing": "a,b", "trees": "4", "hessians": "false", "l2": "2.0"}
    )
    assert made == {"increasing": ("a", "b"), "trees": 4, "hessians": False, "l2": "2.0"}
    with pytest.raises(UsageError, match="no setting"):
        lab.parse_settings("scorecard", {"trees": 3})


def test_capped_joint_trees_are_the_variant_that_was_grown_in_the_clear(tmp_path: Path) -> None:
    """What the lab says of a cap without encrypting is what a capped run gives."""
    _, table, _, spec = write(tmp_path, ordinary(700))
    few = {"trees": "3", "max_depth": "3", "max_bins": "8"}

    def tried(settings: dict[str, object]) -> Finding:
        return lab.try_table(Path(table), Path(spec), task="trees", settings=settings)

    usual = {"thresholds": "3", "ask_customers": "500", "min_cohort": "50"}
    said, done = tried({**few}).capped, tried({**few, **usual})
    assert said is not None
    assert done.report.assessment is not None
    assert done.report.assessment.joint.auc.value == pytest.approx(said.auc, abs=0.004)
    assert done.report.trees is not None
    assert dict(done.report.trees.bits_a_customer) == dict(said.thresholds)
