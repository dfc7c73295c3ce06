"""The lab runs the parties' own programs on anybody's table and says honestly what they gain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clients.cli.main import call


def write(folder: Path, frame: pd.DataFrame, **changes: Any) -> list[str]:
    """A table and its specification as files; the arguments of `lianmo lab` for them."""
    frame.to_csv(folder / "table.csv", index=False)
    plain: dict[str, Any] = {
        "target": "bad",
        "parties": [
            {"id": "bank_a", "role": "bank", "columns": [c for c in frame if c.startswith("own")]},
            {"id": "tax", "role": "department", "columns": [c for c in frame if c[:3] == "tax"]},
            {
                "id": "court",
                "role": "department",
                "columns": [c for c in frame if c[:5] == "court"],
            },
        ],
    }
    (folder / "spec.json").write_text(json.dumps(plain | changes))
    return ["lab", str(folder / "table.csv"), "--spec", str(folder / "spec.json")]


def ordinary(rows: int = 800, seed: int = 1, bad_rate: float = 0.25) -> pd.DataFrame:
    """A table whose departments know more than the bank."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5))
    logit = x @ [0.5, 0.3, 0.9, 0.6, 0.8] + rng.logistic(size=rows)
    return pd.DataFrame(
        {
            "own_1": x[:, 0],
            "own_2": x[:, 1],
            "tax_1": x[:, 2],
            "tax_2": x[:, 3],
            "court_1": x[:, 4],
            "bad": (logit > np.quantile(logit, 1 - bad_rate)).astype(int),
        }
    )


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = call(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def found(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The object of `--json`, after a run that went well."""
    code, out, err = run([*arguments, "--json"], capsys)
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def test_the_json_is_one_object_of_the_agreed_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = found(write(tmp_path, ordinary()), capsys)
    assert list(body) == [
        *("task", "auc", "ks", "openings", "exposure", "rows", "seconds", "bytes")
    ]
    assert body["task"] == "scorecard"
    assert set(body["auc"]) == set(body["ks"]) == {"joint", "pooled", "bank_only"}
    assert body["rows"] == {"train": 560, "test": 240}
    assert set(body["seconds"]) == {"offline", "online", "total"}
    assert body["seconds"]["total"] >= body["seconds"]["offline"] + body["seconds"]["online"] - 0.01
    assert body["bytes"] > 10_000
    assert 0 < body["exposure"] < 1
    assert body["auc"]["joint"] > body["auc"]["bank_only"] + 0.05
    assert body["auc"]["joint"] == pytest.approx(body["auc"]["pooled"], abs=0.01)


def test_a_person_reads_the_gain_and_gets_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    code, out, err = run([*write(tmp_path, ordinary()), "--html", str(page)], capsys)
    assert code == 0, err
    for text in ("joint", "pooled plaintext", "bank alone", "The departments' data moved the AUC"):
        assert text in out
    assert f"report: {page}" in err
    html = page.read_text(encoding="utf-8")
    assert "A lab run" in html
    assert not re.search(r"\b91\d{6}Y[0-9A-Z]{9}\b", html)


def test_one_seed_gives_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*write(tmp_path, ordinary(400)), "--openings", "1"]
    first, again = found(arguments, capsys), found(arguments, capsys)
    assert (first["auc"], first["ks"], first["bytes"]) == (
        again["auc"],
        again["ks"],
        again["bytes"],
    )


def test_hold_out_rows_are_those_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write(tmp_path, ordinary())
    (tmp_path / "rows.txt").write_text("\n".join(map(str, range(0, 800, 8))))
    body = found([*arguments, "--test-rows", str(tmp_path / "rows.txt")], capsys)
    assert body["rows"] == {"train": 700, "test": 100}


def test_with_a_bank_its_rows_are_trained_on_and_the_cover_is_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write(tmp_path, ordinary())
    spec = json.loads((tmp_path / "spec.json").read_text())
    own = spec["parties"][0]
    other = own | {"id": "bank_b", "rows": {"row_number_mod": 2, "in": [1]}}
    spec["parties"] += [other]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    body = found([*arguments, "--bank", "bank_b"], capsys)
    assert body["rows"] == {"train": 280, "test": 120}


def test_without_openings_nothing_but_sums_is_opened_while_fitting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = found([*write(tmp_path, ordinary()), "--openings", "0"], capsys)
    assert body["openings"] == 0
    assert body["auc"]["joint"] > body["auc"]["bank_only"]


# --- tables that are not nice ---------------------------------------------------------------------


def _nasty(name: str) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    frame = ordinary(800, seed=3)
    if name == "missing cells":
        cells = frame.astype(object)
        for column, mark in (("own_1", ""), ("tax_1", "NA"), ("tax_2", "?"), ("court_1", "nan")):
            cells.loc[rng.random(len(frame)) < 0.3, column] = mark
        return cells
    if name == "outliers":
        frame.loc[::97, "tax_1"] = 1e18
        frame.loc[1::97, "own_1"] = -1e300
        frame.loc[2::97, "court_1"] = np.inf
    if name == "constant and empty columns":
        frame["tax_3"] = 7
        frame["own_3"] = "same"
        frame["court_2"] = ""
    if name == "correlated":
        for i in range(4):
            frame[f"tax_{i + 3}"] = frame["tax_1"] + rng.normal(0, 0.05 * i, len(frame))
            frame[f"court_{i + 3}"] = -frame["tax_1"] + rng.normal(0, 0.05, len(frame))
    if name == "text categories":
        frame["tax_1"] = pd.cut(frame["tax_1"], 6, labels=list("红橙黄绿蓝紫")).astype(str)
        frame["court_1"] = [f"case {i}" for i in range(len(frame))]
    if name == "sorted by class":
        frame = frame.sort_values("bad")
    if name == "few bads":
        frame = ordinary(800, seed=4, bad_rate=0.04)
    if name == "copies of one row":
        frame = pd.concat([frame.iloc[:40]] * 15)
    return frame


@pytest.mark.parametrize(
    "name",
    [
        "missing cells",
        "outliers",
        "constant and empty columns",
        "correlated",
        "text categories",
        "sorted by class",
        "few bads",
        "copies of one row",
    ],
)
def test_tables_that_are_not_nice_work_as_well(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = found(write(tmp_path, _nasty(name)), capsys)
    assert all(0.0 <= value <= 1.0 for value in body["auc"].values())
    assert body["auc"]["joint"] > body["auc"]["pooled"] - 0.03


def test_a_bank_without_columns_still_gains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write(tmp_path, ordinary().drop(columns=["own_1", "own_2"]))
    body = found(arguments, capsys)
    assert body["auc"]["bank_only"] == 0.5
    assert body["auc"]["joint"] > 0.7


def test_a_department_without_columns_is_left_out_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write(tmp_path, ordinary(400).drop(columns=["court_1"]))
    code, _, err = run([*arguments, "--openings", "0"], capsys)
    assert code == 0
    assert "note: court has no columns and is left out" in err


def test_too_few_bads_to_train_on_are_said_to_be_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write(tmp_path, ordinary(400, bad_rate=0.02))
    code, out, err = run([*arguments, "--json"], capsys)
    assert (code, out) == (2, "")
    assert "good or bad customers to train on" in err


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda frame: frame.assign(bad=0), [], "has one value only"),
        (lambda frame: frame.assign(bad=range(len(frame))), [], "different values"),
        (lambda frame: frame.drop(columns=["bad"]), [], "no column bad, the target"),
        (lambda frame: frame.iloc[:0], [], "has no rows"),
        (lambda frame: frame, ["--bank", "nobody"], "no bank nobody"),
        (lambda frame: frame, ["--task", "boosting"], "no task boosting"),
        (lambda frame: frame, ["--openings", "99"], "99"),
        (lambda frame: frame, ["--min-cohort", "1"], "1"),
        (lambda frame: frame, ["--test-rows", "/nowhere.txt"], "no such file"),
        (lambda frame: frame, ["--html", "/nowhere/report.html"], "no folder"),
        (lambda frame: frame[["own_1", "own_2", "bad"]], [], "nothing to join"),
    ],
)
def test_mistakes_end_with_exit_code_two_and_a_sentence(
    change: Any,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run([*write(tmp_path, change(ordinary(60))), *options, "--json"], capsys)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
