"""A firm grants, a bank asks, a tax bureau answers, the firm revokes: over real processes."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import datasets, registries
from clients.home import Home
from clients.sources import Source
from clients.store import opened
from federation.codes import code_for_row
from federation.registry import Registry
from tests.clients.persons import certified
from tests.system.network import Network, free_ports

pytestmark = pytest.mark.system

CODES = np.sort(code_for_row(1, np.arange(40)))
FIRM = CODES[7].decode()
KINDS = {
    "platform": ("platform", "91330106Y71047292M"),
    "bank-a": ("bank", "91310115Y71126484T"),
    "tax": ("department", "91110105Y71205676A"),
    "licence": ("department", "91420106Y71364052A"),
    "firm": ("enterprise", FIRM),
}
GRID = ("100000", "1000000", "10000000")


class City(Network):
    """Homes of a bank, a provider, an issuer and a firm; the provider's data are published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.runtime_port, self.relay_port = free_ports(3)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._clients = []
        for org, (kind, uscc) in KINDS.items():
            Home.create(
                folder / org,
                org=org,
                kind=kind,
                name=f"{org} 单位",
                uscc=uscc,
                region="厦门",
                coordinator_url=f"https://127.0.0.1:{self.port}",
                relay_address=f"127.0.0.1:{self.relay_port}",
                hosts=("127.0.0.1",) if kind == "platform" else (),
                now=datetime.now(UTC) - timedelta(hours=1),
            )
        with (folder / "platform" / "config.toml").open("a") as config:
            config.write(f"[coordinator]\nruntime_port = {self.runtime_port}\nparty_wait_s = 12\n")
        with (folder / "tax" / "config.toml").open("a") as config:
            config.write('[verification]\nissuers = { licence = "A3" }\nstatus_every_s = 0.5\n')
        for org in ("tax", "bank-a", "licence"):
            with (folder / org / "config.toml").open("a") as config:
                config.write("[witness]\nevery_s = 0.5\n")
        for one in KINDS:
            for other in KINDS:
                if one != other:
                    self.home(one).trust_card(self.home(other).card())
        self.publish()

    def publish(self) -> None:
        home, now = self.home("tax"), datetime.now(UTC)
        lines = [f"{code.decode()},{300_000 * (row + 1)}" for row, code in enumerate(CODES)]
        table = self.folder / "tax.csv"
        table.write_text("\n".join(["uscc,revenue", *lines]) + "\n")
        field = {
            "ops": ["verify"],
            "purposes": ["credit-decision"],
            "enquiry": {"ops": ["compare"], "grid": GRID},
        }
        with opened(home.database_url) as store:
            registries.add(home, store, Registry(CODES, now.date(), "厦门"), now)
            second = certified(home, store, "李娜", now)
            datasets.register(home, store, "firms", Source(file=str(table), key="uscc"), now)
            words = dict.fromkeys(datasets.OWN_WORDS, "依法")
            datasets.describe(store, "firms", words, {"revenue": field})
            datasets.sign_entry(home, store, "firms", now)
            signed = datasets.sign_entry(home, store, "firms", now, second)
            assert datasets.is_in_force(store, signed)

    def lianmo(self, org: str, *command: str, code: int = 0) -> Any:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIANMO_")}
        done = subprocess.run(
            [sys.executable, "-m", "clients.cli.main", *command, "--json"],
            env=environment | {"LIANMO_HOME": str(self.folder / org)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout else None

    def start_real_node(self, org: str) -> None:
        self.start(org, "-m", "clients.cli.main", "node", "start", "--no-warm")

    def until_witnessed(self, org: str) -> None:
        deadline = time.monotonic() + 60
        while (found := self.lianmo(org, "audit", "witnesses"))["stopped"] is not None:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    city = City(tmp_path_factory.mktemp("c"))
    try:
        city.start_coordinator()
        for org in ("tax", "bank-a"):
            city.start_real_node(org)
        # the tax bureau's log needs two witnesses of the three organisations that run nodes
        city.start("licence", "-m", "clients.cli.main", "node", "start", "--witness-only")
        city.lianmo("tax", "catalogue", "publish", "firms")
        yield city
    finally:
        city.close()


def until(is_so: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def eventually(ask: Any, wanted: str, timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        found = ask()
        if found["result"] == wanted:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def api(city: City, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """The bank's local API, over its socket."""
    home = city.folder / "bank-a"
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(home / "api.sock"))
    token = (home / "api.token").read_text()
    content = None if body is None else json.dumps(body)
    all_headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection.request(method, path, content, all_headers | headers)
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def test_a_firm_grants_the_bank_asks_and_after_revocation_nobody_answers(city: City) -> None:
    folder = city.folder
    firm, cert = str(folder / "firm.json"), str(folder / "certificate.json")
    fingerprint = city.lianmo("firm", "grant", "identity", "--out", firm)["fingerprint"]
    said = ("--assurance", "A3", "--fingerprint", fingerprint, "--out", cert)
    city.lianmo("licence", "grant", "certify", firm, *said)
    city.lianmo("firm", "grant", "certificate", cert)

    draft, signed = str(folder / "draft.json"), str(folder / "grant.json")
    item = "tax/firms/revenue:compare@1000000,10000000"
    asked = ("--subject", FIRM, "--item", item, "--uses", "20", "--out", draft)
    city.lianmo("bank-a", "grant", "draft", *asked)
    grant = city.lianmo("firm", "grant", "sign", draft, "--yes", "--out", signed)["grant"]
    city.lianmo("bank-a", "grant", "add", signed)

    question = {
        "grant": grant[:16],
        "provider": "tax",
        "dataset": "firms",
        "field": "revenue",
        "op": "compare",
        "comparison": "ge",
        "arg": "1000000",
    }
    key = {"Idempotency-Key": "0123456789abcdef"}
    city.until_witnessed("tax")
    status, first = api(city, "POST", "/v1/verifications", question, **key)
    assert (status, first["result"]) == (201, "match")  # 300,000 x 8
    assert api(city, "POST", "/v1/verifications", question, **key) == (201, first)
    status, batch = api(
        city,
        "POST",
        "/v1/verifications/batches",
        {"items": [question | {"arg": "10000000"}, question | {"arg": "999"}]},
    )
    assert status == 200
    results = [item["verification"]["result"] for item in batch["items"]]
    assert results == ["no_match", "refused"]  # 999 is not on the grid

    # the bank's node fetches the cosigned receipts by itself, over the ones of its answers
    receipt = str(folder / "receipt.json")
    assert first["receipt"] == "uncosigned"
    path = f"/v1/verifications/{first['id']}"
    until(lambda: api(city, "GET", path)[1]["receipt"] == "cosigned")
    assert api(city, "GET", f"{path}/receipt")[1]["status"] == "cosigned"
    city.lianmo("bank-a", "verify", "show", first["id"], "--receipt", receipt)
    found = city.lianmo("bank-a", "receipt", "verify", receipt)
    assert found["status"] == "cosigned"
    assert {"bank-a", "licence"} <= {item["org"] for item in found["witnesses"]}

    until(lambda: len(city.lianmo("firm", "grant", "history")) == 2)
    told = str(folder / "told")
    uses = city.lianmo("firm", "grant", "history", "--receipts", told)
    assert sorted(use["result"] for use in uses) == ["match", "no_match"]
    files = [str(file) for file in (folder / "told").iterdir()]
    for item in city.lianmo("licence", "receipt", "verify", *files):
        assert item["status"] == "cosigned"

    # whoever has no node running asks himself
    again = api(city, "POST", "/v1/verifications", question)[1]
    shown = city.lianmo("bank-a", "verify", "show", again["id"], "--wait", "60")
    assert shown["receipt"] == "cosigned"

    city.lianmo("firm", "grant", "revoke", grant[:16])
    ask = ("verify", "ask", "--grant", grant[:16], "--provider", "tax", "--dataset", "firms")
    rest = ("--field", "revenue", "--op", "compare", "--arg", "1000000")
    deadline = time.monotonic() + 30
    while api(city, "POST", "/v1/verifications", question)[1]["result"] != "refused":
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert city.lianmo("bank-a", *ask, *rest, code=3)["result"] == "refused"
    found = city.lianmo("tax", "audit", "show")
    reasons = [entry.get("reason") for entry in found if entry.get("outcome") == "refused"]
    assert "REVOKED" in reasons
    assert "OFF_GRID" in reasons


def test_the_answering_process_comes_back_when_it_is_killed(city: City) -> None:
    children = subprocess.run(
        ["pgrep", "-P", str(city.processes["tax"].pid), "-f", "clients.live"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(children) == 1
    os.kill(int(children[0]), 9)
    deadline = time.monotonic() + 60
    while True:
        found = subprocess.run(
            ["pgrep", "-P", str(city.processes["tax"].pid), "-f", "clients.live"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        if found and found != children:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
