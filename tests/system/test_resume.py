"""kill -9 of a node in the middle of a job: it comes back by its normal command, and the model is
that of a run that nobody disturbed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients.sandbox import Sandbox
from federation.channel import in_process, run_in_process
from federation.envelope import Envelope
from federation.objects import RunRecord
from federation.tasks.local import local_party, run_party
from federation.tasks.model_files import model_to_json
from tests.system.test_main_job import (
    DEPARTMENTS,
    data_of,
    launch,
    make_tables,
    manifest_of,
    members,
    settle,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ORGS = ("bank", *DEPARTMENTS)


@dataclass(frozen=True)
class City:
    box: Sandbox
    folder: Path
    tables: dict[str, pd.DataFrame]
    registry: np.ndarray

    def runs(self, org: str, job: str) -> Path:
        return self.box.home(org) / "runs" / job


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    folder = tmp_path_factory.mktemp("resume")
    tables, registry = make_tables()
    with Sandbox(folder / "homes", members(), region="Testville") as box:
        settle(box, folder, tables, registry)
        yield City(box, folder, tables, registry)


def undisturbed(city: City, job: str) -> bytes:
    """The model of all parties in one process, with the seeds of the first attempt."""
    manifest = manifest_of(city.box, job)
    name = f"{manifest.digest()[:16]}-1"
    seeds = {org: (city.runs(org, job) / name / "seed").read_bytes() for org in ORGS}
    data, links = data_of(city.tables, city.registry, manifest), in_process(ORGS)

    def program(org: str):  # type: ignore[no-untyped-def]
        party = local_party(org, manifest, seeds, links[org], attempt=1)
        party.rounding = (city.box.home(org) / "keys" / "rounding.secret").read_bytes()
        return lambda: run_party(party, data[org])

    return model_to_json(run_in_process({org: program(org) for org in ORGS})["bank"].model)


@pytest.mark.parametrize(("org", "step"), [("tax", 2), ("bank", 4)])
def test_a_killed_node_comes_back_and_the_job_ends_with_the_same_model(
    city: City, org: str, step: int
) -> None:
    job = f"kill-{org}-{step}"
    launch(city.box, city.folder, job)
    deadline = time.monotonic() + 60
    while not list(city.runs(org, job).glob(f"*.step-{step:02d}.state")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    city.box.kill(org, "node")
    city.box.start((org, ("node", "start")))
    city.box.run("bank", "job", "watch", job)
    status = city.box.run("bank", "job", "status", job, "--json").json()
    assert (status["status"], status["attempt"]) == ("succeeded", 2)
    assert (city.box.home("bank") / "models" / f"{job}.json").read_bytes() == undisturbed(city, job)
    # The attempt that was cut off has a signed record too, by whoever was killed.
    (file,) = city.runs(org, job).glob("*-1/record.json")
    first = Envelope.from_json(file.read_bytes()).unverified(RunRecord)
    assert first.outcome == "failed"
    (file,) = city.runs(org, job).glob("*-2/record.json")
    second = Envelope.from_json(file.read_bytes()).unverified(RunRecord)
    before = {(item.source, item.to, item.what) for item in first.disclosures}
    after = {(item.source, item.to, item.what) for item in second.disclosures}
    # Row keys were agreed on before the crash, and are not told again.
    assert any(what == "row_keys" for *_, what in before)
    assert not any(what == "row_keys" for *_, what in after)
    for home in ORGS:
        assert city.box.run(home, "audit", "verify", check=False).code == 0
    found = city.box.run("bank", "job", "disclosures", job, "--json").json()
    assert found["problems"] == []


def test_json_lines_of_what_was_disclosed_hold_no_value(city: City) -> None:
    for org in ORGS:
        for file in city.box.home(org).rglob("disclosed.jsonl"):
            for line in file.read_text().splitlines():
                assert json.loads(line).keys() == {
                    "stage",
                    "source",
                    "to",
                    "what",
                    "count",
                    "bits",
                    "per_enterprise",
                }
