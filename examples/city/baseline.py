"""What pooled plaintext would give: all columns in one place, which nobody may do with real facts.

The demo may, since its data are public. It takes the bins, WOE tables, penalty and test customers
of the joint model and fits a plain logistic regression on the columns themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clients.sandbox import Sandbox
from examples.city.city import BANK, KEY, LABEL, datasets
from federation import evaluation
from federation.objects import ScorecardParameters
from federation.tables import BankData, Column, DepartmentData, NumberColumn
from federation.tasks.model import ScorecardModel, fit_pooled
from federation.tasks.model_files import model_from_json


@dataclass(frozen=True)
class Finished:
    """The joint model with its customers' labels and hold-out."""

    model: ScorecardModel
    labels: NDArray[np.uint8]
    test: NDArray[np.bool_]


def pooled(city: Sandbox, job: str, tables: dict[str, Path]) -> evaluation.Discrimination:
    """AUC and KS of the pooled scorecard on the joint model's own test customers."""
    home = city.home(BANK.org)
    scores = pd.read_parquet(home / "runs" / job / "scores.parquet")
    registry = np.array(tables["registry"].read_text().split(), "S18")
    positions = np.searchsorted(registry, scores["credit_code"].to_numpy().astype("S18"))
    done = Finished(
        model_from_json((home / "models" / f"{job}.json").read_bytes()),
        scores["bad"].to_numpy(),
        scores["test"].to_numpy(),
    )
    columns = {item.owner: columns_of(tables[item.owner], registry) for item in datasets()}
    bank = BankData(
        cover_rows=len(registry),
        positions=positions,
        codes=registry[positions],
        columns=[column.take(positions) for column in columns.pop(BANK.org)],
        labels=done.labels,
        test=done.test,
    )
    departments = {org: DepartmentData(found, registry) for org, found in columns.items()}
    fit = fit_pooled(done, BANK.org, bank, departments, ScorecardParameters())
    return evaluation.discrimination(done.labels[done.test], -fit.log_odds[done.test])


def columns_of(table: Path, codes: NDArray[np.bytes_]) -> list[Column]:
    """A table's columns lined up with these codes; an enterprise without a record is missing."""
    frame = pd.read_csv(table).set_index(KEY).reindex(codes.astype(str))
    return [
        NumberColumn(name, frame[name].to_numpy(np.float64))
        for name in frame.columns
        if name != LABEL
    ]
