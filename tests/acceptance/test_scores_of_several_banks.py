"""Scores with a model that three banks have trained together (docs/several-banks.md): each bank
scores its own applicants, with its own features and the departments' parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from clients.consent import HELD, Consents
from clients.scorer import Wanted
from federation.audit import Reason
from federation.catalogue import Assurance
from federation.errors import LianmoError, NotFound
from federation.objects import JobManifest, ScorecardParameters, TreesParameters
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks.local import local_manifest, local_seeds, run_job_in_process
from federation.tasks.model import ScorecardModel
from federation.tasks.model_files import model_to_json, part_to_json
from federation.tasks.trees_files import trees_part_to_json, trees_to_json
from federation.tasks.trees_model import TreesModel
from tests.acceptance.consent import Firm
from tests.acceptance.scores import (
    BANK,
    CODES,
    CUSTOMERS,
    DATA,
    DATASET,
    DEPARTMENTS,
    KINDS,
    ROWS,
    ScoreWorld,
)

BANKS = (BANK, "bank-b", "bank-c")
STRANGER = "bank-d"  # no party of the job
# who is whose customer: two fifths, two fifths, one fifth
ROWS_OF = {
    org: np.flatnonzero(np.isin(np.arange(CUSTOMERS) % 5, take))
    for org, take in zip(BANKS, ([0, 1], [2, 3], [4]), strict=True)
}
PARAMETERS: dict[str, ScorecardParameters | TreesParameters] = {
    "scorecard": ScorecardParameters.model_validate(
        {"openings": 0, "evaluation": False, "min_cohort": 15, "reason_codes": 2}
    ),
    "trees": TreesParameters.model_validate(
        {"trees": 3, "max_depth": 3, "min_cohort": 15, "max_bins": 8, "ask_customers": 40}
    ),
}


def bank_data(org: str) -> BankData:
    rows = ROWS_OF[org].astype(np.int64)
    own = [column.take(rows) for column in DATA.columns[BANK]]
    return BankData(ROWS, rows, CODES[rows], own, DATA.labels[rows])


class SharedWorld(ScoreWorld):
    """Three banks with homes of their own and one model."""

    kinds = KINDS | {
        "bank-b": ("bank", CODES[1].decode()),
        "bank-c": ("bank", CODES[2].decode()),
        STRANGER: ("bank", CODES[4].decode()),
    }
    banks = BANKS
    models: dict[str, ScorecardModel | TreesModel]  # by bank

    def rows_of(self, org: str) -> Sequence[int]:
        return [int(row) for row in ROWS_OF[org]] if org in BANKS else range(ROWS)

    def trained(
        self, task: str
    ) -> tuple[JobManifest, dict[str, bytes], ScorecardModel | TreesModel]:
        banks = {org: bank_data(org) for org in BANKS}
        departments: dict[str, DepartmentData] = dict(DATA.departments)
        manifest = local_manifest(banks, departments, PARAMETERS[task], job=f"city-{task}")
        parties = tuple(
            party.model_copy(update={"dataset": DATASET.get(party.org, DATASET[BANK])})
            for party in manifest.parties
        )
        manifest = manifest.model_copy(update={"parties": parties})
        seeds = local_seeds([*BANKS, *DEPARTMENTS], 1)
        run = run_job_in_process(banks, departments, manifest, seeds)
        self.models = {org: result.model for org, result in run.results.items()}
        trees = task == "trees"
        files = {
            org: (trees_part_to_json if trees else part_to_json)(part)
            for org, part in run.parts.items()
        }
        files |= {
            org: (trees_to_json if trees else model_to_json)(model)  # type: ignore[arg-type] # of one task
            for org, model in self.models.items()
        }
        return manifest, files, self.models[BANK]

    def pooled(self, bank: str, row: int) -> int:
        """The points of a firm with all columns in one place."""
        columns = {(org, c.name): c for org in DEPARTMENTS for c in DATA.columns[org]}
        columns |= {(bank, c.name): c for c in DATA.columns[BANK]}
        return int(self.models[bank].score(columns, ROWS)[row])


@pytest.fixture(scope="module", params=["scorecard", "trees"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedWorld]:
    world = SharedWorld(tmp_path_factory.mktemp(f"shared-{request.param}"), request.param)
    world.files[STRANGER] = world.files["bank-c"]
    world._model(STRANGER)
    yield world
    world.close()


def firm(world: SharedWorld, row: int) -> Firm:
    return Firm(CODES[row].decode()).certified_by(world.homes["licence"], Assurance.A3)


@pytest.mark.parametrize("bank", BANKS)
def test_every_bank_s_score_is_that_of_all_columns_in_one_place(
    world: SharedWorld, bank: str
) -> None:
    reasons = set()
    for row in (*ROWS_OF[bank][[0, 1, 7, -1]].tolist(), 6 if bank == "bank-b" else 5):
        grant = world.grant(firm=firm(world, row), grantee=bank)
        scored = world.scorer(bank=bank).score(Wanted(grant, job=world.manifest.job))
        assert scored.score is not None
        own = row in ROWS_OF[bank]
        columns = {(org, c.name): c for org in DEPARTMENTS for c in DATA.columns[org]}
        for column in DATA.columns[BANK]:
            assert isinstance(column, NumberColumn)
            there = column.values if own else np.full(ROWS, np.nan)  # another bank's customer
            columns[bank, column.name] = NumberColumn(column.name, there)
        assert scored.score.points == world.models[bank].score(columns, ROWS)[row]
        reasons |= {reason.owner for reason in scored.score.reasons}
    assert reasons <= {bank, *DEPARTMENTS}


def test_all_banks_give_one_applicant_the_same_points(world: SharedWorld) -> None:
    row = ROWS - 1  # nobody's customer
    own = {c.name: float(c.values[row]) for c in DATA.columns[BANK]}  # type: ignore[union-attr] # numbers
    applicant, points = firm(world, row), set()
    for bank in BANKS:
        grant = world.grant(firm=applicant, grantee=bank)
        scored = world.scorer(bank=bank).score(Wanted(grant, own=own, job=world.manifest.job))
        assert scored.score is not None
        assert scored.score.points == world.pooled(bank, row)
        points.add(scored.score.points)
    assert len(points) == 1


def test_the_points_of_different_firms_differ(world: SharedWorld) -> None:
    """Else the comparisons above would say nothing."""
    assert len({world.pooled(BANK, row) for row in range(40)}) > 5


def test_a_bank_of_the_job_cannot_use_another_s_grant(world: SharedWorld) -> None:
    """The grant is to bank-a; bank-b has it and asks."""
    grant = world.grant()
    Consents(world.stores["bank-b"]).put(
        Consents(world.stores[BANK]).get(grant).bundle, HELD, world.now
    )
    before = len(world.refusals("tax"))
    with pytest.raises(LianmoError, match="refuses its part"):
        world.scorer(bank="bank-b").score(Wanted(grant, job=world.manifest.job))
    assert [e.reason for e in world.refusals("tax")[before:]] == [Reason.GRANTEE]


def test_a_bank_that_is_not_of_the_job_gets_no_part(world: SharedWorld) -> None:
    """Though it has got hold of another bank's model, and a firm's grant of its own."""
    grant = world.grant(grantee=STRANGER)
    before = len(world.refusals("tax"))
    with pytest.raises(LianmoError, match="refuses its part"):
        world.scorer(bank=STRANGER).score(Wanted(grant, job=world.manifest.job))
    assert [e.reason for e in world.refusals("tax")[before:]] == [Reason.NOT_OFFERED]


def test_a_network_scores_nobody_under_a_grant_and_says_what_to_do(world: SharedWorld) -> None:
    file = world.homes[BANK].models / f"{world.manifest.job}.json"
    kept, before = file.read_bytes(), len(world.frames)
    file.write_bytes(json.dumps({"kind": "neural", "v": 1}).encode())
    try:
        with pytest.raises(NotFound, match="no scores are made of it") as caught:
            world.scorer().score(Wanted(world.grant(), job=world.manifest.job))
    finally:
        file.write_bytes(kept)
    assert "[scorecard] or [trees]" in str(caught.value)
    assert len(world.frames) == before
