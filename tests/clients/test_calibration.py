"""Measured speeds are fitted, kept, and not used for another package or machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients import calibration
from federation.estimate import Speeds

SPEEDS = Speeds({"trees": {"counts": (0.5, 1e-9)}}, "2026-11-23T12:00:00Z")


def test_speeds_come_back_as_they_were_kept(tmp_path: Path) -> None:
    calibration.save(tmp_path, SPEEDS)
    assert calibration.load(tmp_path) == SPEEDS


@pytest.mark.parametrize("name", ["package", "cores"])
def test_speeds_of_another_package_or_machine_are_measured_again(name: str, tmp_path: Path) -> None:
    calibration.save(tmp_path, SPEEDS)
    path = tmp_path / calibration.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "other"}))
    assert calibration.load(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"package": 1}', '{"seconds": 3}'])
def test_a_broken_file_is_measured_again(text: str, tmp_path: Path) -> None:
    (tmp_path / calibration.FILE).write_text(text)
    assert calibration.load(tmp_path) is None
    assert calibration.load(tmp_path / "nowhere") is None


def test_a_stage_s_time_is_laid_out_over_what_it_grows_with() -> None:
    truth = (0.01, 2e-6, 3e-9)
    terms = [(1.0, rows, rows * fields) for rows in (1e3, 2e4, 9e4) for fields in (2.0, 9.0, 30.0)]
    seen = [(item, sum(a * b for a, b in zip(truth, item, strict=True))) for item in terms]
    assert calibration._fit(seen) == pytest.approx(truth, rel=0.01)
    assert min(calibration._fit([(item, 0.0) for item in terms])) >= 0


def test_every_small_job_follows_from_its_figures_and_differs_from_the_others() -> None:
    assert len(set(calibration.SHAPES)) == len(calibration.SHAPES)
    bank, departments = calibration.made_up(calibration.SHAPES[6])
    assert (bank.customers, len(departments)) == (2_000, 2)
    assert 0.1 < bank.labels.mean() < 0.6
