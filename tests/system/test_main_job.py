"""The main job as people run it: real processes, TLS, signed approvals, on a small city.

One sandbox serves all tests of this file; each looks at another promise.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients.attempts import output_digest
from clients.sandbox import Member, Sandbox
from federation import fab
from federation.channel import in_process
from federation.codes import code_for_row
from federation.envelope import Envelope
from federation.objects import JobManifest, RunRecord
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks.local import local_party, run_party
from federation.tasks.model_files import model_from_json, model_to_json, part_to_json

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROWS, CUSTOMERS = 1_600, 900
CANARY = 777_123_454_321  # a value of one enterprise in the tax table
JOB = "small-city"
DEPARTMENTS = ("tax", "court")
NAMES = {"bank": "loans", "tax": "payments", "court": "cases"}


@dataclass(frozen=True)
class City:
    """A finished job with all that it left."""

    box: Sandbox
    folder: Path
    tables: dict[str, pd.DataFrame]
    registry: np.ndarray
    manifest: JobManifest
    watched: str


def codes(dataset: int, rows: np.ndarray) -> np.ndarray:
    return code_for_row(dataset, rows).astype("S18").astype(str)


def make_tables() -> tuple[dict[str, pd.DataFrame], np.ndarray]:
    rng = np.random.default_rng(7)
    all_codes = codes(4, np.arange(ROWS))
    hidden = rng.normal(size=(ROWS, 3))
    amount = np.round(np.exp(8 + hidden[:, 0])).astype(np.int64)
    amount[3] = CANARY
    tax = pd.DataFrame({"code": all_codes, "paid": amount, "late": rng.poisson(1, ROWS)})
    court = pd.DataFrame({"code": all_codes, "cases": np.clip(hidden[:, 1] * 3, 0, None).round()})
    risk = -1 + 0.9 * hidden[:, 2] - 0.8 * hidden[:, 0] + 0.7 * hidden[:, 1]
    bad = (rng.random(ROWS) < 1 / (1 + np.exp(-risk))).astype(np.int64)
    bank = pd.DataFrame({"code": all_codes, "balance": hidden[:, 2].round(3), "bad": bad})
    chosen = rng.permutation(ROWS)[:CUSTOMERS]
    tables = {
        "bank": bank.iloc[chosen],
        "tax": tax.iloc[np.r_[0:1500]].sample(frac=1, random_state=1),
        "court": court.sample(frac=1, random_state=2),
    }
    return tables, np.sort(all_codes.astype("S18"))


def members() -> list[Member]:
    kinds = {"platform": "platform", "bank": "bank", "tax": "department", "court": "department"}
    own = codes(5, np.arange(len(kinds)))
    return [
        Member(org, kind, org.title(), code)
        for (org, kind), code in zip(kinds.items(), own, strict=True)
    ]


def settle(
    box: Sandbox, folder: Path, tables: dict[str, pd.DataFrame], registry: np.ndarray
) -> None:
    """Homes, coordinator, data sets and running nodes."""
    (folder / "registry.txt").write_text("\n".join(registry.astype(str)) + "\n")
    box.found()
    box.start(("platform", ("coordinator", "start")))
    where = ("--region", "Testville", "--as-of", "2026-10-31")
    box.everybody((org, ("registry", "add", str(folder / "registry.txt"), *where)) for org in NAMES)
    for org, name in NAMES.items():
        path = folder / f"{org}.csv"
        tables[org].to_csv(path, index=False)
        label = ("--label", "bad") if org == "bank" else ()
        box.run(org, "data", "add", name, "--file", str(path), "--key", "code", *label)
        words = ("--title", name, "--legal-basis", "test", "--update-frequency", "never")
        words += ("--provenance", "made up", "--level", "*=L2")  # one person decides
        box.run(org, "catalogue", "set", name, *words)
        box.run(org, "catalogue", "publish", name)
    box.start(*((org, ("node", "start")) for org in NAMES))


def launch(box: Sandbox, folder: Path, job: str) -> None:
    """Submit a job and have everybody approve it."""
    draft = folder / f"{job}.toml"
    departments = [p for org in DEPARTMENTS for p in ("--department", f"{org}/{NAMES[org]}")]
    limits = ("--customers-max", "1000", "--customers-min", "800")
    out = ("--platform", "platform", "--out", str(draft))
    box.run("bank", "job", "new", job, "--dataset", "loans", *departments, *limits, *out)
    digest = box.run("bank", "job", "submit", str(draft), "--json").json()["manifest_digest"]
    for org in (*DEPARTMENTS, "platform"):
        box.run(org, "job", "approve", job, "--manifest", digest)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    folder = tmp_path_factory.mktemp("city")
    tables, registry = make_tables()
    with Sandbox(folder / "homes", members(), region="Testville") as box:
        settle(box, folder, tables, registry)
        launch(box, folder, JOB)
        watched = box.run("bank", "job", "watch", JOB)
        record = json.loads(
            next((folder / "homes/bank/runs" / JOB).glob("*/record.json")).read_text()
        )
        assert record["payloadType"].startswith("application/vnd.lianmo.run-record")
        manifest = manifest_of(box, JOB)
        yield City(box, folder, tables, registry, manifest, watched.err)


def manifest_of(box: Sandbox, job: str) -> JobManifest:
    from clients.coordinator_client import CoordinatorClient
    from clients.home import Home

    with CoordinatorClient(Home.open(box.home("bank"), environment={})) as client:
        return client.job(job).manifest.unverified(JobManifest)


def _attempt(city: City, org: str) -> Path:
    return next((city.box.home(org) / "runs" / JOB).glob("*-1"))


def test_the_job_succeeds_and_the_joint_model_beats_the_bank_alone(city: City) -> None:
    report = city.box.run("bank", "job", "report", JOB, "--json").json()
    assert report["joint"]["auc"] > report["bank_only"]["auc"]
    assert report["openings"] >= 1
    assert report["exposure"] < 0.05
    assert "succeeded" in city.watched


def test_the_processes_send_the_very_bytes_that_one_process_would(city: City) -> None:
    """Same manifest, seeds and data: equal frames on every channel, equal model."""
    orgs = ["bank", *DEPARTMENTS]
    seeds = {org: (_attempt(city, org) / "seed").read_bytes() for org in orgs}
    data = data_of(city.tables, city.registry, city.manifest)
    links = in_process(orgs)
    pair = _pair_seed(city)
    from federation.channel import run_in_process

    def program(org: str):  # type: ignore[no-untyped-def]
        party = local_party(org, city.manifest, seeds, links[org], attempt=1)
        if org in DEPARTMENTS:
            party.pair_seeds = {peer: pair for peer in DEPARTMENTS if peer != org}
            party.rounding = (city.box.home(org) / "keys" / "rounding.secret").read_bytes()
        return lambda: run_party(party, data[org])

    done = run_in_process({org: program(org) for org in orgs})
    for org in orgs:
        envelope = Envelope.from_json((_attempt(city, org) / "record.json").read_bytes())
        record = envelope.unverified(RunRecord)
        for peer, sent, received in record.transcript:
            traffic = links[org][peer].traffic
            assert (sent, received) == (traffic.sent_digest.hex(), traffic.received_digest.hex())
        model = (city.box.home(org) / "models" / f"{JOB}.json").read_bytes()
        again = model_to_json(done[org].model) if org == "bank" else part_to_json(done[org])
        assert model == again
        salt = (_attempt(city, org) / "output.salt").read_bytes()
        assert record.output == output_digest(salt, model)


def _pair_seed(city: City) -> bytes:
    from clients.home import Home
    from clients.runner import pair_seeds

    home = Home.open(city.box.home("tax"), environment={})
    return pair_seeds(home, city.manifest, 1)["court"]


def data_of(
    tables: dict[str, pd.DataFrame], registry: np.ndarray, manifest: JobManifest
) -> dict[str, BankData | DepartmentData]:
    """What the gates hand out."""
    frame = tables["bank"]
    positions = np.searchsorted(registry, frame["code"].to_numpy().astype("S18"))
    order = np.argsort(positions)
    bank = BankData(
        cover_rows=ROWS,
        positions=positions[order],
        codes=registry[positions[order]],
        columns=[NumberColumn("balance", frame["balance"].to_numpy(np.float64)[order])],
        labels=frame["bad"].to_numpy(np.uint8)[order],
    )
    data: dict[str, BankData | DepartmentData] = {"bank": bank}
    for org in DEPARTMENTS:
        lined_up = tables[org].set_index("code").reindex(registry.astype(str))
        columns = [
            NumberColumn(name, lined_up[name].to_numpy(np.float64))
            for name in manifest.party(org).fields
        ]
        data[org] = DepartmentData(columns, registry)
    return data


def test_both_ends_of_every_channel_signed_the_same_transcript(city: City) -> None:
    said = {}
    for org in ("bank", *DEPARTMENTS):
        envelope = Envelope.from_json((_attempt(city, org) / "record.json").read_bytes())
        record = envelope.unverified(RunRecord)
        assert record.outcome == "succeeded"
        assert record.manifest == city.manifest.digest()
        said |= {(org, peer): (sent, got) for peer, sent, got in record.transcript}
    for (org, peer), (sent, got) in said.items():
        assert said[peer, org] == (got, sent)


def test_the_bank_holds_the_model_that_the_departments_hold_in_parts(city: City) -> None:
    model = model_from_json((city.box.home("bank") / "models" / f"{JOB}.json").read_bytes())
    assert {feature.owner for feature in model.features} == {"bank", *DEPARTMENTS}
    for org in DEPARTMENTS:
        part = json.loads((city.box.home(org) / "models" / f"{JOB}.json").read_bytes())
        own = {item["definition"]["name"]: item["points"] for item in part["features"]}
        for feature in model.of(org):
            if feature.is_used:
                assert own[feature.name] == feature.points_of_bins().tolist()


def test_a_value_and_the_customers_of_one_party_are_in_nothing_of_any_other(city: City) -> None:
    """Canary: whatever the others stored or logged, in the usual disguises."""
    customers = set(city.tables["bank"]["code"])
    secrets = {"tax": [str(CANARY)], "bank": sorted(customers)[:20]}
    for owner, texts in secrets.items():
        for org in ("platform", "bank", *DEPARTMENTS):
            if org == owner:
                continue
            for path in _files(city, org):
                if owner == "bank" and path.parent.name == "data":
                    continue  # the registry names every enterprise, and so does a full table
                content = path.read_bytes()
                if content[:2] == b"\x1f\x8b":
                    content += gzip.decompress(content)
                for text in texts:
                    for disguise in _disguises(text):
                        assert disguise not in content, f"{path.name} of {org}"


def test_no_log_holds_a_value_or_a_code_not_even_its_owner_s(city: City) -> None:
    codes_ = sorted(set(city.tables["bank"]["code"]))[:20]
    for org in ("platform", "bank", *DEPARTMENTS):
        logs = [path for path in _files(city, org) if ".log" in path.name]
        assert any(path.parent.name == "log" for path in logs)
        for path in logs:
            content = path.read_bytes()
            for text in (str(CANARY), *codes_):
                assert not any(disguise in content for disguise in _disguises(text)), path.name


def _files(city: City, org: str) -> list[Path]:
    found = [path for path in city.box.home(org).rglob("*") if path.is_file()]
    logs = city.box.folder.glob(f"{org}-*.log")
    return [*found, *logs]


def _disguises(text: str) -> list[bytes]:
    raw = text.encode()
    found = [raw, raw.hex().encode(), text.encode("utf-16-le")]
    found += [base64.b64encode(bytes(pad) + raw)[4:-4] for pad in (0, 1, 2)]
    if text.isdigit():
        found += [int(text).to_bytes(8, "little"), np.float64(int(text)).tobytes()]
    return found


def test_every_party_s_receipt_verifies_at_another_one_and_every_log_fits_its_database(
    city: City,
) -> None:
    orgs = ["bank", *DEPARTMENTS]
    for org, judge in zip(orgs, orgs[1:] + orgs[:1], strict=True):
        files = [
            str(city.box.home(org) / "runs" / JOB / f"{n}.json") for n in ("receipt", "record")
        ]
        told = ("receipt", "verify", files[0], "--object", files[1], "--json")
        found = city.box.run(judge, *told).json()
        assert (found["org"], found["action"], found["outcome"]) == (
            org,
            "run-recorded",
            "succeeded",
        )
        assert found["status"] == "uncosigned"
    for org in ("platform", *orgs):
        found = city.box.run(org, "audit", "verify", "--json").json()
        assert (found["ok"], found["problems"]) == (True, [])
        leaves = city.box.run(org, "audit", "show", "--json").out
        assert not [code for code in city.registry.astype(str) if code in leaves]
        assert str(CANARY) not in leaves
    shown = city.box.run("tax", "audit", "show", "--job", JOB, "--json").json()
    actions = [item["action"] for item in shown]
    assert actions == ["job-approved", "attempt", "run-recorded", "attempt-closed"]
    assert shown[1]["amount"] >= shown[3]["amount"] > 0


def test_what_really_happened_is_told_by_the_records_of_all(city: City) -> None:
    found = city.box.run("court", "job", "disclosures", JOB, "--json").json()
    assert (found["problems"], found["missing"]) == ([], [])
    assert found["receipts"] == dict.fromkeys(("bank", *DEPARTMENTS), "uncosigned")
    assert len(found["lines"]) == len(city.manifest.disclosures)
    happened = [line for line in found["lines"] if line["happened"]]
    assert all(line["happened"] <= line["declared"] for line in happened)
    assert {line["what"] for line in happened} >= {"query_sums", "bin_counts", "points_tables"}


def test_asking_again_for_a_finished_job_changes_nothing(city: City) -> None:
    again = city.box.run("tax", "job", "approve", JOB, "--manifest", "0" * 64, check=False)
    assert again.code == 4
    assert "manifest" in again.err
    assert city.box.run("court", "job", "status", JOB, "--json").json()["status"] == "succeeded"


def test_a29_the_digests_of_every_record_are_those_of_a_second_computation(city: City) -> None:
    """Of the release, the bundle and the configuration: from files and the manifest alone."""
    release = _release()
    bundle = fab.build(city.manifest)
    config = {"job": JOB, "manifest-sha256": hashlib.sha256(city.manifest.payload()).hexdigest()}
    for org in ("bank", *DEPARTMENTS):
        envelope = Envelope.from_json((_attempt(city, org) / "record.json").read_bytes())
        record = json.loads(envelope.payload)
        assert record["manifest"] == config["manifest-sha256"]
        assert record["package_sha256"] == city.manifest.package_sha256 == release
        assert record["fab_sha256"] == hashlib.sha256(bundle).hexdigest()
        text = "".join(f"{name}={value}\n" for name, value in sorted(config.items()))
        assert record["run_config_sha256"] == hashlib.sha256(text.encode()).hexdigest()


def _release() -> str:
    """GOVERNANCE.md, Job manifest: sorted (path, file hash) of the packages, and versions."""
    root = Path(fab.__file__).parents[1]
    kinds = {".py", ".so", ".pyd", ".html", ".j2", ".css", ".js", ".json", ".mako"}
    files = []
    for package in ("clients", "federation", "protocols", "server"):
        for path in (root / package).rglob("*"):
            name = path.relative_to(root).as_posix()
            if path.suffix in kinds and "__pycache__" not in name and "/." not in name:
                files.append([name, hashlib.sha256(path.read_bytes()).hexdigest()])
    wanted = [line for line in metadata.requires("lianmo") or () if "extra ==" not in line]
    names = [re.match(r"[A-Za-z0-9._-]+", line)[0] for line in wanted]  # type: ignore[index]
    versions = [[n.lower().replace("_", "-"), metadata.version(n).split("+")[0]] for n in names]
    plain = {"files": sorted(files), "versions": sorted(versions)}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_a22_a_withdrawal_stops_a_running_job_though_the_coordinator_is_silent(
    city: City,
) -> None:
    """Last in this file: the coordinator does not come back.

    The job of before is refused with a counter-proposal, proposed anew and approved. One department
    is held so that the others wait for it in the middle of the run.
    """
    box, again, last = city.box, "once-more", "once-more-2"
    draft = next(city.folder.glob("*.toml")).read_text().replace(f'"{JOB}"', f'"{again}"')
    (city.folder / "again.toml").write_text(draft)
    asked = box.run("bank", "job", "submit", str(city.folder / "again.toml"), "--json").json()
    said = ("--openings", "1", "--words", "太多", "--manifest", asked["manifest_digest"])
    refused = box.run("tax", "job", "narrow", again, *said, "--json").json()
    assert refused["status"] == "refused"
    told = box.run("bank", "job", "status", again)
    assert "tax would approve it with at most 1 opening" in told.err
    assert f"`lianmo job narrow {again} --accept`" in told.err
    late = box.run("court", "job", "approve", again, *said[-2:], check=False)
    assert late.code == 6  # a refusal is final

    digest = box.run("bank", "job", "narrow", again, "--accept", "--json").json()["manifest_digest"]
    shown = box.run("court", "job", "review", last).out
    assert "this manifest does so: yes" in shown
    assert "openings: 3 -> 1" in shown
    court = box.pid("court", "node")
    assert court is not None
    os.kill(court, signal.SIGSTOP)
    try:
        for org in (*DEPARTMENTS, "platform"):
            box.run(org, "job", "approve", last, "--manifest", digest)
        runs = box.home("tax") / "runs" / last
        _until(lambda: bool(list(runs.glob("*-1/seed"))))
        box.kill("platform", "coordinator")
        away = box.run("tax", "job", "withdraw", last, check=False)
        assert away.code == 7
        assert "this node takes no part any more" in away.err
        _until(lambda: bool(list(runs.glob("*-1/record.json"))))
    finally:
        os.kill(court, signal.SIGCONT)
    envelope = Envelope.from_json(next(runs.glob("*-1/record.json")).read_bytes())
    record = envelope.unverified(RunRecord)
    assert (record.outcome, record.manifest) == ("stopped", digest)
    assert not (box.home("tax") / "models" / f"{last}.json").exists()


def _until(is_so: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
