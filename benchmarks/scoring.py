"""Scores of single enterprises: a bank and two departments as processes, over the relay and TLS.

    python -m benchmarks scoring

A joint scorecard is trained, a firm grants, and the bank's systems ask their own node for its score
(`POST /v1/scores`). `alone` is one score after the other; `5 a second` are scores that start at
that rate whatever the earlier ones do, counted from the time at which each was due. A score is two
parts, each with the whole order of checks, two transactions and a signed entry in the log of its
department; they leave at multiples of `time_class_ms`, which is part of every time here. The
reference is the same score from plaintext in one place.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clients import grants
from clients.home import Home
from clients.sandbox import Member, Sandbox
from federation.catalogue import Assurance
from federation.codes import code_for_row
from federation.grants import Capacity, Terms
from federation.identity import PrivateKey
from federation.objects import Usage
from federation.tables import NumberColumn
from federation.tasks.model_files import model_from_json

ALONE, RATE, SECONDS = 100, 5, 40
ROWS, CUSTOMERS, JOB = 3_000, 2_000, "bench"
KINDS = {"platform": "platform", "bank": "bank", "tax": "department", "power": "utility"}
DEPARTMENTS = {"tax": ("paid", "late", "staff"), "power": ("owed", "usage", "months")}
OWN = ("balance", "age")
CODES = np.sort(code_for_row(8, np.arange(ROWS)))
FIRM = 7  # its row
SETTINGS = """
[verification]
issuers = { platform = "A3" }
subject_per_hour = 1000000
[witness]
every_s = 1
"""
WORDS = """[fields."*"]
level = "L2"
ops = ["train", "score"]
purposes = ["credit-model-training", "credit-decision"]
"""


def rows() -> list[dict[str, object]]:
    """The table's rows."""
    with tempfile.TemporaryDirectory(prefix="lianmo-") as name:
        folder, own = Path(name), code_for_row(9, np.arange(len(KINDS))).astype("S18").astype(str)
        members = [Member(o, k, o, c) for (o, k), c in zip(KINDS.items(), own, strict=True)]
        with Sandbox(folder / "homes", members, region="bench") as city:
            tables = _tables(folder)
            _start(city, folder)
            _train(city, folder)
            body = {"grant": _granted(city, folder), "applicant": CODES[FIRM].decode()}
            points, bare = _plaintext(city, tables)
            home = city.home("bank")

            def score() -> float:
                began = time.perf_counter()
                status, found = _post(home, body)
                if status != 201 or found["points"] != points:
                    raise RuntimeError(f"{status}: {found}")
                return 1000 * (time.perf_counter() - began)

            _until_it_answers(score)
            alone = [score() for _ in range(ALONE)]
            steady = _at_rate(score)
    load = f"load {os.getloadavg()[0]:.1f}"
    found = {"alone": alone, f"{RATE}/s": steady}
    return [
        {
            "name": f"score {how} p{percentile}",
            "value": f"{statistics.quantiles(times, n=100)[percentile - 1]:.1f}",
            "unit": "ms",
            "reference": f"{bare:.2f}",
            "ratio": "-",
            "note": f"{len(times)} scores, two departments, {load}",
        }
        for how, times in found.items()
        for percentile in (50, 99)
    ]


def _post(home: Path, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """One request to the local API of the bank's node."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(home / "api.sock"))
        token = (home / "api.token").read_text()
        headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "idempotency-key": secrets.token_hex(16),
        }
        connection.request("POST", "/v1/scores", json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _at_rate(score: Callable[[], float]) -> list[float]:
    start = time.perf_counter() + 0.1

    def one(number: int) -> float:
        due = start + number / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        score()
        return 1000 * (time.perf_counter() - due)

    with ThreadPoolExecutor(4 * RATE) as pool:
        return list(pool.map(one, range(RATE * SECONDS)))


def _until_it_answers(score: Callable[[], float]) -> None:
    """Witnesses have to see the departments' logs first, and a status list has to arrive."""
    deadline = time.monotonic() + 120
    while True:
        try:
            score()
            return
        except (RuntimeError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


# --- the federation -------------------------------------------------------------------------------


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    rng, code = np.random.default_rng(1), CODES.astype(str)
    found = {}
    risk = np.full(ROWS, -1.5)
    for org, names in {"bank": OWN, **DEPARTMENTS}.items():
        x = rng.normal(size=(ROWS, len(names))).round(3)
        risk += x @ np.full(len(names), 0.6)
        found[org] = pd.DataFrame(x, columns=list(names)).assign(code=code)
    bad = rng.random(ROWS) < 1 / (1 + np.exp(-risk))
    for org, table in found.items():
        shown = table.assign(bad=bad.astype(int))[:CUSTOMERS] if org == "bank" else table
        shown.to_csv(folder / f"{org}.csv", index=False)
    return found


def _start(city: Sandbox, folder: Path) -> None:
    city.found()
    for org in DEPARTMENTS:
        with (city.home(org) / "config.toml").open("a") as config:
            config.write(SETTINGS)
    city.start(("platform", ("coordinator", "start")))
    registry, words = folder / "registry.txt", folder / "words.toml"
    registry.write_text("\n".join(CODES.astype(str)) + "\n")
    words.write_text(WORDS)
    for org in ("bank", *DEPARTMENTS):
        where = ("--region", "bench", "--as-of", "2026-01-01")
        city.run(org, "registry", "add", str(registry), *where)
        file, label = str(folder / f"{org}.csv"), ("--label", "bad") if org == "bank" else ()
        city.run(org, "data", "add", "facts", "--file", file, "--key", "code", *label)
        said = ("--title", "facts", "--legal-basis", "a benchmark", "--provenance", "made up")
        said += ("--update-frequency", "never", "--file", str(words))
        city.run(org, "catalogue", "set", "facts", *said)
        city.run(org, "catalogue", "publish", "facts")
    city.start(*((org, ("node", "start")) for org in ("bank", *DEPARTMENTS)))


def _train(city: Sandbox, folder: Path) -> None:
    draft = str(folder / "job.toml")
    asked = [part for org in DEPARTMENTS for part in ("--department", f"{org}/facts")]
    limits = ("--customers-max", "2200", "--customers-min", "1900", "--openings", "0")
    whose = ("--dataset", "facts", *asked, "--platform", "platform")
    city.run("bank", "job", "new", JOB, *whose, *limits, "--out", draft)
    digest = city.run("bank", "job", "submit", draft, "--json").json()["manifest_digest"]
    for org in (*DEPARTMENTS, "platform"):
        city.run(org, "job", "approve", JOB, "--manifest", digest)
    city.run("bank", "job", "watch", JOB)


def _granted(city: Sandbox, folder: Path) -> str:
    """The bank drafts, a firm without a home signs; the grant's digest."""
    draft, file, subject = folder / "draft.json", folder / "grant.json", CODES[FIRM].decode()
    words = ("--subject", subject, "--uses", "10000", "--out", str(draft))
    city.run("bank", "model", "draft", JOB, *words)
    now = datetime.now(UTC)
    key, encrypt = PrivateKey.generate(Usage.GRANT), PrivateKey.generate(Usage.ENCRYPT)
    card = grants.make_card(key, encrypt, subject, "某公司", now)
    platform = Home.open(city.home("platform"), environment={})
    proof = card, grants.certify(platform, card, Assurance.A3, now)
    terms = Terms.model_validate_json(draft.read_bytes())
    bundle = grants.sign_terms(terms, key, proof, Capacity.ENTERPRISE_SEAL, now)
    file.write_bytes(bundle.to_json())
    city.run("bank", "grant", "add", str(file))
    return bundle.digest


def _plaintext(city: Sandbox, tables: dict[str, pd.DataFrame]) -> tuple[int, float]:
    """The firm's points with all columns in one place, and the milliseconds that they take."""
    model = model_from_json((city.home("bank") / "models" / f"{JOB}.json").read_bytes())
    columns = {
        (org, str(name)): NumberColumn(str(name), table[name].to_numpy(np.float64)[FIRM : FIRM + 1])
        for org, table in tables.items()
        for name in table.columns
        if name != "code"
    }
    times = []
    for _ in range(50):
        began = time.perf_counter()
        points = int(model.score(columns, 1)[0])
        times.append(1000 * (time.perf_counter() - began))
    return points, statistics.median(times)


if __name__ == "__main__":
    for line in rows():
        print(line)
