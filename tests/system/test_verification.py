"""A firm grants, a bank asks, a tax bureau answers, the firm revokes: over real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import datasets, grants, registries
from clients.sources import Source
from clients.store import opened
from federation.catalogue import Assurance
from federation.codes import code_for_row
from federation.grants import Capacity, Terms
from federation.registry import Registry
from tests.acceptance.consent import Firm
from tests.clients.persons import certified
from tests.system.real_nodes import BANK, NODE, WITNESS, RealNodes, wait_for
from tests.system.secrets_scan import disguises, family, found_in, found_in_memory

pytestmark = pytest.mark.system

CODES = np.sort(code_for_row(1, np.arange(40)))
FIRM, HIDDEN = CODES[7].decode(), CODES[9].decode()  # the second's card is at nobody's
HIDDEN_REVENUE = 7_312_345.75
KINDS = {
    "platform": ("platform", "91330106Y71047292M"),
    "bank-a": ("bank", "91310115Y71126484T"),
    "tax": ("department", "91110105Y71205676A"),
    "licence": ("department", "91420106Y71364052A"),
    "firm": ("enterprise", FIRM),
}
GRID = ("100000", "1000000", "10000000")


class City(RealNodes):
    """Homes of a bank, a provider, an issuer and a firm; the provider's data are published."""

    def __init__(self, folder: Path) -> None:
        answers = '[verification]\nissuers = { licence = "A3" }\nstatus_every_s = 0.5\n'
        witnesses = "[witness]\nevery_s = 0.5\n"
        settings = {BANK: witnesses, "licence": witnesses, "tax": answers + witnesses}
        super().__init__(folder, KINDS, settings)
        self.publish()

    def publish(self) -> None:
        home, now = self.home("tax"), datetime.now(UTC)
        lines = [f"{code.decode()},{300_000 * (row + 1)}" for row, code in enumerate(CODES)]
        lines[9] = f"{HIDDEN},{HIDDEN_REVENUE}"
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


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    city = City(tmp_path_factory.mktemp("c"))
    try:
        city.start_coordinator()
        # the tax bureau's log needs two witnesses of the three organisations that run nodes
        city.start_all(tax=NODE, bank_a=NODE, licence=WITNESS)
        city.lianmo("tax", "catalogue", "publish", "firms")
        # the entry counts once the bank has the bureau's newest card, with its second person's key
        wait_for(lambda: city.lianmo(BANK, "catalogue", "list"), bool)
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
    status, first = city.api("POST", "/v1/verifications", question, **key)
    assert (status, first["result"]) == (201, "match")  # 300,000 x 8
    assert city.api("POST", "/v1/verifications", question, **key) == (201, first)
    status, batch = city.api(
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
    until(lambda: city.api("GET", path)[1]["receipt"] == "cosigned")
    assert city.api("GET", f"{path}/receipt")[1]["status"] == "cosigned"
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
    again = city.api("POST", "/v1/verifications", question)[1]
    shown = city.lianmo("bank-a", "verify", "show", again["id"], "--wait", "60")
    assert shown["receipt"] == "cosigned"

    city.lianmo("firm", "grant", "revoke", grant[:16])
    ask = ("verify", "ask", "--grant", grant[:16], "--provider", "tax", "--dataset", "firms")
    rest = ("--field", "revenue", "--op", "compare", "--arg", "1000000")
    deadline = time.monotonic() + 30
    while city.api("POST", "/v1/verifications", question)[1]["result"] != "refused":
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert city.lianmo("bank-a", *ask, *rest, code=3)["result"] == "refused"
    found = city.lianmo("tax", "audit", "show")
    reasons = [entry.get("reason") for entry in found if entry.get("outcome") == "refused"]
    assert "REVOKED" in reasons
    assert "OFF_GRID" in reasons


def test_a30_the_coordinator_holds_nothing_of_a_hundred_questions(city: City) -> None:
    """In its files, its logs, and its processes' memory, which a crash would dump: of the one who
    is asked about, and what the answers rest on. Field and grid are in the catalogue for all."""
    now = datetime.now(UTC)
    soon = now + timedelta(hours=2)  # `certified_by` dates back so far; homes are an hour old
    hidden = Firm(HIDDEN).certified_by(city.home("licence"), Assurance.A3, soon)
    draft, signed = city.folder / "hidden.draft", city.folder / "hidden.grant"
    item = "tax/firms/revenue:compare@1000000,10000000"
    asked = ("--subject", HIDDEN, "--item", item, "--uses", "100", "--out", str(draft))
    city.lianmo(BANK, "grant", "draft", *asked)
    terms = Terms.model_validate_json(draft.read_bytes())
    proof = hidden.card, hidden.certificate
    bundle = grants.sign_terms(terms, hidden.grant, proof, Capacity.ENTERPRISE_SEAL, now)
    signed.write_bytes(bundle.to_json())
    city.lianmo(BANK, "grant", "add", str(signed))
    city.until_witnessed("tax")
    question = {
        "grant": bundle.digest[:16],
        "provider": "tax",
        "dataset": "firms",
        "field": "revenue",
        "op": "compare",
        "comparison": "ge",
    }
    items = [question | {"arg": GRID[1 + number % 2]} for number in range(100)]
    first = [city.api("POST", "/v1/verifications", item)[1]["result"] for item in items[:2]]
    status, batch = city.api("POST", "/v1/verifications/batches", {"items": items[2:]})
    assert status == 200
    words = [item["verification"]["result"] for item in batch["items"]]
    assert first + words == ["match", "no_match"] * 50
    patterns = {"subject": disguises(HIDDEN), "value": disguises(HIDDEN_REVENUE)}
    answering = city.live("tax")
    assert answering is not None
    assert sees(city, "tax", patterns, answering) == {"subject", "value"}  # where they are
    assert sees(city, BANK, patterns) == {"subject"}
    assert sees(city, "platform", patterns, *family(city.processes["platform"].pid)) == set()


def sees(city: City, org: str, patterns: dict[str, list[bytes]], *pids: int) -> set[str]:
    """Which patterns stand in an organisation's home, its log, or the memory of processes."""
    files = [path for path in (city.folder / org).rglob("*") if path.is_file()]
    files.append(city.folder / f"{org}.log")
    found = {name for path in files for name in found_in(path.read_bytes(), patterns)}
    return found | {name for pid in pids for name in found_in_memory(pid, patterns)}


def test_the_answering_process_comes_back_when_it_is_killed(city: City) -> None:
    killed = city.kill_live("tax")
    wait_for(lambda: city.live("tax"), lambda pid: pid not in (None, killed))
