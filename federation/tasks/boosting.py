"""Boosted trees over columns of several owners: what a node, a draft and the laboratory call.

run_bank, run_department   the party programs
plan, declare, plan_of     query parameters, token limits, disclosures of a manifest
plan_trees, offers         what a job would ask, and cheaper settings within a budget
fit_pooled                 the same trees with all columns in one place, for comparison

The modules: trees_grow one tree from sums, trees_columns where sums come from, trees_fit boosting,
trees_model scores and reasons, trees_bank and trees_department the two ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from federation.objects import TreesParameters
from federation.tables import BankData, DepartmentData
from federation.tasks import vertical
from federation.tasks.binning import rows_of_cohort
from federation.tasks.trees_bank import run_bank
from federation.tasks.trees_columns import Columns, Plain
from federation.tasks.trees_department import run_department
from federation.tasks.trees_fit import Fitted, boost
from federation.tasks.trees_grow import Bools, Feature, Integers
from federation.tasks.trees_model import TreesModel, TreesPart, TreesResult, feature_of
from federation.tasks.trees_plan import (
    Offer,
    TreesPlan,
    declare,
    offers,
    plan,
    plan_of,
    plan_trees,
    tokens_of,
)
from protocols import labels
from protocols.streams import Randomness

__all__ = [
    "Offer",
    "PooledTrees",
    "TreesModel",
    "TreesPart",
    "TreesPlan",
    "TreesResult",
    "declare",
    "fit_pooled",
    "offers",
    "plan",
    "plan_of",
    "plan_trees",
    "run_bank",
    "run_department",
    "tokens_of",
]


@dataclass(frozen=True, slots=True, eq=False)
class PooledTrees:
    """What one would get with all columns in one place."""

    fitted: Fitted
    features: tuple[Feature, ...]
    margins: Integers = field(repr=False)  # (customers,)


def fit_pooled(
    bank_org: str,
    bank: BankData,
    departments: Mapping[str, DepartmentData],
    parameters: TreesParameters,
    *,
    train: Bools,
    validation: Bools | None = None,
    vmax: int = 511,
    customers_min: int = 0,
    randomness: Randomness,
    coins: bytes = b"",
    executor: Executor | None = None,
) -> PooledTrees:
    """Plaintext: the same growth on the same bins with all columns at hand.

    For the laboratory and for tests, which hold all parties' data; no party of a job can call it.
    With the bank's randomness of a job, its coins, its vmax and its customers_min (by default the
    true number) it grows the job's very trees.
    """
    limits = parameters.max_bins, parameters.min_cohort
    own, codes = vertical.make_bins(bank.columns, bank.customers, *limits, executor)
    theirs: list[Feature] = []
    parts = []
    for org, data in departments.items():
        least = rows_of_cohort(parameters.min_cohort, data.rows, customers_min or bank.customers)
        made, over_cover = vertical.make_bins(
            data.columns, data.rows, parameters.max_bins, least, executor
        )
        theirs += [feature_of(org, item, parameters) for item in made]
        parts.append(over_cover[:, bank.positions])
    remote_codes = np.concatenate([*parts, np.empty((0, bank.customers), np.uint8)])
    mine = [feature_of(bank_org, item, parameters) for item in own]
    counts = [
        np.bincount(column[train], minlength=feature.bins)
        for column, feature in zip(remote_codes, theirs, strict=True)
    ]
    columns = Columns(
        mine,
        codes,
        Plain(len(mine), theirs, remote_codes, hessians=parameters.hessians, executor=executor),
        theirs,
        np.concatenate([*counts, np.zeros(0, np.int64)]).astype(np.int64),
        cap=parameters.thresholds,
        hessians=parameters.hessians,
        executor=executor,
    )
    fitted = boost(
        columns,
        bank.labels,
        train,
        train & False if validation is None else validation,
        parameters,
        vmax,
        lambda purpose, number: randomness.stream(
            labels.QUANTISE, stage=f"trees/{purpose}", step=number, inputs=coins
        ),
    )
    return PooledTrees(fitted, (*mine, *theirs), fitted.margins)
