"""The lab says the same with a process for each party as in one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients import lab
from federation.errors import UsageError

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def make(folder: Path, *, bads: bool = True) -> tuple[Path, Path]:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(600, 4)).round(3)
    risk = values @ np.array([0.8, 0.7, -0.9, 0.5]) - 1
    bad = (rng.random(600) < 1 / (1 + np.exp(-risk))).astype(int) * bads
    table = pd.DataFrame(values, columns=list("abcd")).assign(bad=bad)
    table.to_csv(folder / "table.csv", index=False)
    parties = [
        {"id": "bank", "role": "bank", "columns": ["a", "b"]},
        {"id": "tax", "role": "department", "columns": ["c"]},
        {"id": "court", "role": "department", "columns": ["d"]},
    ]
    (folder / "spec.json").write_text(json.dumps({"target": "bad", "parties": parties}))
    return folder / "table.csv", folder / "spec.json"


@pytest.mark.parametrize(
    ("task", "settings"),
    [("scorecard", {}), ("trees", {"trees": "3", "max_depth": "3", "max_bins": "8"})],
)
def test_processes_give_the_figures_and_the_bytes_of_one_process(
    task: str, settings: dict[str, object], tmp_path: Path
) -> None:
    files = make(tmp_path)
    one = lab.try_table(*files, task=task, settings=settings, seed=5).summary()
    many = lab.try_table(*files, task=task, settings=settings, seed=5, processes=True).summary()
    assert many.pop("seconds")["total"] > 0
    one.pop("seconds")
    assert many == one


def test_what_goes_wrong_in_a_party_s_process_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bad"):
        lab.try_table(*make(tmp_path, bads=False), processes=True)
