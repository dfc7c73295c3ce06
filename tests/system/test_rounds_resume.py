"""kill -9 of the ServerApp that runs a network's rounds: the coordinator starts another one, which
goes on from the last finished round, and the job ends."""

from __future__ import annotations

import base64
import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients.sandbox import Member, Sandbox
from federation.codes import code_for_row
from federation.envelope import Envelope
from federation.ledger import What
from federation.objects import RunRecord
from federation.tasks.neural_files import neural_from_json
from tests.system.children import server_app

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

BANKS = ("bank-a", "bank-b", "bank-c")
CUSTOMERS, JOB, ROUNDS = 500, "network", 8
CUT_OFF_AT = 3  # the round that is due, at least, when the process dies
DRAFT = f"""
job = "{JOB}"
purpose = "credit-model-training"
days = 7
platform = "platform"

[bank]
org = "bank-a"
dataset = "loans"

[[other_bank]]
org = "bank-b"
dataset = "loans"

[[other_bank]]
org = "bank-c"
dataset = "loans"

[limits]
customers_max = 600
customers_min = 400

[neural]
model = "mlp"
hidden = [8]
rounds = {ROUNDS}
strategy = "fedadam"
"""


def make_tables(folder: Path) -> None:
    rng = np.random.default_rng(4)
    codes = code_for_row(6, np.arange(len(BANKS) * CUSTOMERS)).astype("S18").astype(str)
    x = rng.normal(size=(len(codes), 3))
    bad = (rng.random(len(codes)) < 1 / (1 + np.exp(1 - 2 * x[:, 0] - x[:, 1]))).astype(int)
    table = pd.DataFrame({"code": codes, "a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "bad": bad})
    for number, bank in enumerate(BANKS):
        table.iloc[number :: len(BANKS)].to_csv(folder / f"{bank}.csv", index=False)
    (folder / "registry.txt").write_text("\n".join(sorted(codes)) + "\n")


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Sandbox]:
    make_tables(tmp_path)
    members = [
        Member(org, "platform" if org == "platform" else "bank", org, code)
        for org, code in zip(
            ("platform", *BANKS),
            code_for_row(9, np.arange(4)).astype("S18").astype(str),
            strict=True,
        )
    ]
    with Sandbox(tmp_path / "homes", members, region="Testville") as box:
        box.found()
        box.start(("platform", ("coordinator", "start")))
        registry = ("registry", "add", str(tmp_path / "registry.txt"))
        where = ("--region", "Testville", "--as-of", "2026-10-31")
        box.everybody((org, (*registry, *where)) for org in BANKS)
        words = ("--title", "loans", "--legal-basis", "test", "--update-frequency", "never")
        words += ("--provenance", "made up", "--level", "*=L2")  # one person decides
        described = ("--key", "code", "--label", "bad")
        files = {org: ("--file", str(tmp_path / f"{org}.csv"), *described) for org in BANKS}
        box.everybody((org, ("data", "add", "loans", *files[org])) for org in BANKS)
        box.everybody((org, ("catalogue", "set", "loans", *words)) for org in BANKS)
        box.everybody((org, ("catalogue", "publish", "loans")) for org in BANKS)
        box.start(*((org, ("node", "start", "--no-warm")) for org in BANKS))
        yield box


def launch(box: Sandbox, folder: Path) -> None:
    draft = folder / f"{JOB}.toml"
    draft.write_text(DRAFT)
    submitted = box.run("bank-a", "job", "submit", str(draft), "--json").json()
    for org in ("bank-b", "bank-c", "platform"):
        box.run(org, "job", "approve", JOB, "--manifest", submitted["manifest_digest"])


def due(box: Sandbox) -> int:
    """The round that the coordinator would go on from; 1 while none is finished."""
    for file in box.home("platform").glob("rounds-*"):
        with np.load(io.BytesIO(base64.b64decode(file.read_bytes()))) as kept:
            return int(kept["number"])
    return 1


def record(box: Sandbox, org: str, attempt: int) -> RunRecord:
    (file,) = (box.home(org) / "runs" / JOB).glob(f"*-{attempt}/record.json")
    return Envelope.from_json(file.read_bytes()).unverified(RunRecord)


def rounds_of(found: RunRecord, weights: int) -> int:
    """Rounds that the collecting bank answered: each told the platform all weights."""
    told = sum(line.count for line in found.disclosures if line.what == What.SHARED_WEIGHTS)
    assert told % weights == 0
    return told // weights


def test_a_killed_server_app_is_started_again_and_goes_on_from_the_last_round(
    city: Sandbox, tmp_path: Path
) -> None:
    launch(city, tmp_path)
    deadline = time.monotonic() + 120
    while due(city) < CUT_OFF_AT:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = server_app(city.pid("platform", "coordinator") or 0)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    kept = due(city)
    city.run("bank-a", "job", "watch", JOB)
    status = city.run("bank-a", "job", "status", JOB, "--json").json()
    assert (status["status"], status["attempt"]) == ("succeeded", 2)
    models = [(city.home(org) / "models" / f"{JOB}.json").read_bytes() for org in BANKS]
    found = [neural_from_json(content) for content in models]
    assert len({model.digest() for model in found}) == 1
    weights = len(found[0].weights)
    first, second = (record(city, "bank-a", attempt) for attempt in (1, 2))
    assert (first.outcome, second.outcome) == ("stopped", "succeeded")
    # Finished rounds are not trained again; one that was answered as its ServerApp died may be.
    assert rounds_of(second, weights) <= ROUNDS + 1 - kept
    assert ROUNDS <= rounds_of(first, weights) + rounds_of(second, weights) <= ROUNDS + 1
    city.everybody((org, ("audit", "verify")) for org in ("bank-a", "bank-b"))
    assert city.run("bank-a", "job", "disclosures", JOB, "--json").json()["problems"] == []
