"""Scores and alerts over real processes: a joint scorecard is trained, firms grant, the bank scores
and is told; then everything ends and the receipts still verify.

One federation serves all tests of this file, in their order: bank, two departments, a witness and
the coordinator, each a process of its own with its own home, over TLS.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clients.gate import Gate
from clients.scorer import Scored, Scorer
from clients.store import opened
from federation.audit import Receipt, verify_receipt
from federation.codes import code_for_row
from federation.objects import Usage
from federation.scoring import Score, ScoreSource
from federation.tables import CategoryColumn, Column, NumberColumn
from federation.tasks.model import ScorecardModel
from federation.tasks.model_files import model_from_json
from tests.system.network import PLATFORM
from tests.system.real_nodes import BANK, NODE, WITNESS, RealNodes, wait_for
from tests.system.secrets_scan import disguises, found_in

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROWS, CUSTOMERS, JOB = 900, 700, "city-card"
CODES = np.sort(code_for_row(1, np.arange(ROWS)))
ROW_OF = {"firm": 7, "second": 11}  # of the firms that have a home
FIRM, SECOND, STRANGER = (CODES[row].decode() for row in (7, 11, 12))
KINDS = {
    PLATFORM: ("platform", "91330106Y71047292M"),
    BANK: ("bank", "91310115Y71126484T"),
    "tax": ("department", "91110105Y71205676A"),
    "power": ("utility", "91420106Y71364052A"),
    "licence": ("department", CODES[0].decode()),
    "firm": ("enterprise", FIRM),
    "second": ("enterprise", SECOND),
}
DEPARTMENTS = ("tax", "power")
DATASETS = {BANK: "loans", "tax": "payments", "power": "bills"}
ANSWERS = """[verification]
issuers = { licence = "A3" }
status_every_s = 0.5
watch_every_s = 0.5
subject_per_hour = 10000
"""
WITNESSES = "[witness]\nevery_s = 0.5\n"
GRID = ("50000", "500000")
LITTLE, CANARY = 120.0, 777_123.4375  # what the firm owes later; the second stands nowhere else
SERVES = '["credit-model-training", "credit-decision", "post-loan-monitoring"]'
WORDS = f"""[fields."*"]
level = "L2"
ops = ["train", "score"]
purposes = {SERVES}
"""
WATCHED = f"""[fields.owed]
ops = ["train", "score", "verify"]
enquiry = {{ ops = ["compare"], grid = ["{GRID[0]}", "{GRID[1]}"], bits_budget = 64 }}
"""
DEBOUNCE_S = 6


def make_tables() -> dict[str, pd.DataFrame]:
    """Three parties' tables; a few firms have no record at the utility."""
    rng = np.random.default_rng(5)
    code, x = CODES.astype(str), rng.normal(size=(ROWS, 5))
    kind = np.array(["factory", "shop", "transport"])[rng.integers(0, 3, ROWS)]
    risk = 0.9 * x[:, 0] - 0.9 * x[:, 1] + 0.8 * x[:, 3] + (kind == "shop") - 1.5
    bad = (rng.random(ROWS) < 1 / (1 + np.exp(-risk))).astype(np.int64)
    bank = pd.DataFrame({"code": code, "balance": x[:, 0].round(3), "bad": bad})
    tax = pd.DataFrame({"code": code, "paid": np.exp(8 + x[:, 1]).round(), "kind": kind})
    power = pd.DataFrame({"code": code, "owed": np.exp(6 + x[:, 3]).round(), "usage": x[:, 4]})
    return {BANK: bank.iloc[:CUSTOMERS], "tax": tax, "power": power.drop(index=range(20, 40))}


class City(RealNodes):
    """The federation with its model."""

    def __init__(self, folder: Path) -> None:
        settings = dict.fromkeys(DEPARTMENTS, ANSWERS + WITNESSES)
        super().__init__(folder, KINDS, settings | {BANK: WITNESSES, "licence": WITNESSES})
        self.tables = make_tables()
        (folder / "registry.txt").write_text("\n".join(CODES.astype(str)) + "\n")
        self.grants: dict[str, str] = {}

    def begin(self) -> None:
        """Coordinator, data, nodes."""
        self.start_coordinator()
        where = ("--region", "厦门", "--as-of", "2026-10-31")
        for org, name in DATASETS.items():
            self.lianmo(org, "registry", "add", str(self.folder / "registry.txt"), *where)
            file = self.write(org)
            label = ("--label", "bad") if org == BANK else ()
            self.lianmo(org, "data", "add", name, "--file", str(file), "--key", "code", *label)
            words = self.folder / f"{org}.words.toml"
            words.write_text(WORDS + (WATCHED if org == "power" else ""))
            said = ("--title", name, "--legal-basis", "依法", "--update-frequency", "monthly")
            said += ("--provenance", "made up", "--file", str(words))
            self.lianmo(org, "catalogue", "set", name, *said)
            self.lianmo(org, "catalogue", "publish", name)
        self.start_all(bank_a=NODE, tax=NODE, power=NODE, licence=WITNESS)

    def write(self, org: str) -> Path:
        file = self.folder / f"{org}.csv"
        self.tables[org].to_csv(file, index=False)
        return file

    def train(self) -> None:
        """The main job, from its draft to the model."""
        draft = str(self.folder / "job.toml")
        asked = [p for org in DEPARTMENTS for p in ("--department", f"{org}/{DATASETS[org]}")]
        limits = ("--customers-max", "750", "--customers-min", "650", "--openings", "0")
        whose = ("--dataset", DATASETS[BANK], *asked, "--platform", PLATFORM)
        self.lianmo(BANK, "job", "new", JOB, *whose, *limits, "--out", draft)
        digest = self.lianmo(BANK, "job", "submit", draft)["manifest_digest"]
        for org in (*DEPARTMENTS, PLATFORM):
            self.lianmo(org, "job", "approve", JOB, "--manifest", digest)
        done = self.wait(JOB, lambda found: found.status.is_final, timeout_s=120)
        assert done.status.value == "succeeded", done.message

    def certify(self, firm: str) -> None:
        """The issuer certifies a firm's key, having compared its fingerprint."""
        card, proof = str(self.folder / f"{firm}.card"), str(self.folder / f"{firm}.proof")
        told = self.lianmo(firm, "grant", "identity", "--out", card)["fingerprint"]
        compared = ("--assurance", "A3", "--fingerprint", told, "--out", proof)
        self.lianmo("licence", "grant", "certify", card, *compared)
        self.lianmo(firm, "grant", "certificate", proof)

    def granted(self, firm: str, *drafting: str) -> str:
        """The bank drafts, the firm signs, the bank keeps; the grant's digest."""
        draft, signed = str(self.folder / "draft.json"), str(self.folder / "grant.json")
        subject = CODES[ROW_OF[firm]].decode()
        self.lianmo(BANK, *drafting, "--subject", subject, "--out", draft)
        grant = self.lianmo(firm, "grant", "sign", draft, "--yes", "--out", signed)["grant"]
        self.lianmo(BANK, "grant", "add", signed)
        return str(grant)

    def score_by_api(self, applicant: str, grant: str) -> tuple[int, Any]:
        return self.api("POST", "/v1/scores", {"grant": grant, "applicant": applicant})

    def stored(self, name: str) -> Scored:
        """A score as the bank keeps it, with its signature and receipts."""
        home = self.home(BANK)
        with opened(home.database_url) as store:
            clock: Any = None
            return Scorer(home, store, clock, Gate(home, store, clock), clock).get(name)

    def model(self) -> ScorecardModel:
        return model_from_json((self.home(BANK).models / f"{JOB}.json").read_bytes())

    def pooled(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Points of all firms, with everybody's plaintext in one place."""
        model = self.model()
        columns = {
            (org, str(name)): column(str(name), cells)
            for org, table in self.tables.items()
            for name, cells in table.set_index("code").reindex(CODES.astype(str)).items()
        }
        return model.score(columns, ROWS)

    def looks(self) -> int:
        """How often the utility has looked at what is watched, by its log."""
        entries = self.lianmo("power", "audit", "show")
        return sum(entry["action"] == "watched" for entry in entries)

    def refresh(self, owed: float) -> None:
        """What the firm owes changes, the utility reads its table again and looks at it."""
        before = self.looks()
        table = self.tables["power"]
        table.loc[table["code"] == FIRM, "owed"] = owed
        self.write("power")
        self.lianmo("power", "data", "refresh", DATASETS["power"])
        wait_for(self.looks, lambda found: found > before)

    def alerts(self) -> list[dict[str, Any]]:
        return list(self.lianmo(BANK, "verify", "watch", "alerts"))


def column(name: str, cells: pd.Series[Any]) -> Column:
    """Cells over the registry as a column; what is not there is missing."""
    if cells.dtype.kind in "fi":
        return NumberColumn(name, cells.to_numpy(np.float64))
    words = sorted(set(cells.dropna()))
    places = [words.index(cell) if cell in words else -1 for cell in cells]
    return CategoryColumn(name, np.array(places, np.int32), tuple(words))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    city = City(tmp_path_factory.mktemp("s"))
    try:
        city.begin()
        city.train()
        for firm in ROW_OF:
            city.certify(firm)
            drafting = ("model", "draft", JOB, "--uses", "300")
            city.grants[firm] = city.granted(firm, *drafting)
        city.until_witnessed(*DEPARTMENTS)
        yield city
    finally:
        city.close()


def told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a score says, without what makes each a score of its own."""
    assert entry["points"] is not None
    return {name: entry[name] for name in ("points", "band", "model", "reasons", "job", "grant")}


def test_command_and_api_give_the_score_of_the_pooled_plaintext_signed(city: City) -> None:
    pooled, grant = city.pooled(), city.grants["firm"]
    by_command = city.lianmo(BANK, "model", "score", FIRM, "--grant", grant[:16])
    status, by_api = city.score_by_api(FIRM, grant)
    assert status == 201
    assert told(by_command) == told(by_api)
    assert by_api["points"] == pooled[ROW_OF["firm"]]
    assert {source["org"] for source in by_api["sources"]} == set(DEPARTMENTS)
    assert by_api["reasons"]
    trust, model = city.home("tax").trust(), city.model().digest().hex()
    for name in (by_command["id"], by_api["id"]):
        kept = city.stored(name)
        assert kept.envelope is not None
        now = datetime.now(UTC)
        signed = trust.verify(kept.envelope, Score, Usage.RUN, now, org=BANK).object
        assert (signed.points, signed.model, signed.subject) == (
            pooled[ROW_OF["firm"]],
            model,
            FIRM,
        )


def test_a_batch_with_a_firm_that_granted_nothing_gives_the_others_scores(city: City) -> None:
    pooled, grants = city.pooled(), city.grants
    items = [
        {"grant": grants["firm"], "applicant": FIRM},
        {"grant": grants["firm"], "applicant": STRANGER},
        {"grant": "0" * 64, "applicant": STRANGER},
        {"grant": grants["second"], "applicant": SECOND},
    ]
    status, batch = city.api("POST", "/v1/scores/batches", {"items": items})
    assert status == 200
    first, stolen, unknown, last = batch["items"]
    assert first["score"]["points"] == pooled[ROW_OF["firm"]]
    assert last["score"]["points"] == pooled[ROW_OF["second"]]
    assert [item["problem"]["status"] for item in (stolen, unknown)] == [403, 404]
    assert {item["score"] for item in (stolen, unknown)} == {None}


def test_a_department_killed_in_the_middle_gives_no_wrong_total_and_comes_back(city: City) -> None:
    right, grant = int(city.pooled()[ROW_OF["firm"]]), city.grants["firm"]
    with ThreadPoolExecutor(4) as pool:
        # the utility holds the question, the tax bureau has answered: then it is gone
        held = city.live("power")
        assert held is not None
        before = uses(city, "tax")
        os.kill(held, signal.SIGSTOP)
        answers = [pool.submit(city.score_by_api, FIRM, grant)]
        wait_for(lambda: uses(city, "tax"), lambda found: found > before)
        killed = city.kill_live("power")
        back = wait_for(lambda: city.live("power"), lambda pid: pid not in (None, killed))
        # and again while scores are made one after the other
        answers += [pool.submit(city.score_by_api, FIRM, grant) for _ in range(12)]
        time.sleep(0.5)
        assert city.kill_live("power") == back
        found = [answer.result(60) for answer in answers]
    for status, body in found:
        if status == 201:
            assert body["points"] == right
        else:
            assert (status, body["party"]) == (503, "power"), body
    _, again = wait_for(lambda: city.score_by_api(FIRM, grant), lambda answered: answered[0] == 201)
    assert again["points"] == right
    kept = city.api("GET", "/v1/scores?limit=200")[1]["items"]
    of_firm = [item["points"] for item in kept if item["grant"] == grant]
    assert set(of_firm) <= {right, None}
    for org in DEPARTMENTS:
        assert city.lianmo(org, "audit", "verify")["ok"]


def uses(city: City, org: str) -> int:
    """How often a department has let grants be used, by its log."""
    entries = city.lianmo(org, "audit", "show")
    return sum(e["action"] == "asked" and e["outcome"] == "admitted" for e in entries)


def test_after_revocation_every_department_refuses(city: City) -> None:
    grant = city.grants["second"]
    assert city.score_by_api(SECOND, grant)[0] == 201
    city.lianmo("second", "grant", "revoke", grant[:16])
    _, body = wait_for(
        lambda: city.score_by_api(SECOND, grant), lambda answered: answered[0] == 403
    )
    assert body["party"] in DEPARTMENTS
    city.lianmo(BANK, "model", "score", SECOND, "--grant", grant[:16], code=3)

    def refused_as_revoked() -> set[str]:
        """Who has; each has the event by its own round, and is asked until then."""
        city.score_by_api(SECOND, grant)
        logs = {org: city.lianmo(org, "audit", "show") for org in DEPARTMENTS}
        return {org for org in logs if "REVOKED" in {e.get("reason") for e in logs[org]}}

    wait_for(refused_as_revoked, lambda orgs: orgs == set(DEPARTMENTS))
    before = {org: uses(city, org) for org in DEPARTMENTS}
    assert city.score_by_api(SECOND, grant)[0] == 403
    assert {org: uses(city, org) for org in DEPARTMENTS} == before
    assert city.score_by_api(FIRM, city.grants["firm"])[0] == 201  # the other firm's still counts


def test_a_rule_that_starts_to_hold_is_told_once_without_the_value(city: City) -> None:
    item = f"power/{DATASETS['power']}/owed:compare@{GRID[1]}"
    asked = ("--item", item, "--channel", "watch", "--uses", "4")
    drafting = ("grant", "draft", *asked, "--purpose", "post-loan-monitoring")
    grant = city.granted("firm", *drafting)
    rule = ("arrears", "--grant", grant[:16], "--provider", "power", "--field", "owed")
    how = ("--dataset", DATASETS["power"], "--arg", GRID[1], "--debounce", str(DEBOUNCE_S))
    watch = city.lianmo(BANK, "verify", "watch", "add", *rule, *how, "--severity", "critical")
    city.refresh(LITTLE)
    assert city.alerts() == []
    city.refresh(CANARY)
    first = wait_for(city.alerts, bool)
    city.refresh(CANARY + 1)  # it goes on to hold
    assert city.alerts() == first
    assert [(a["rule"], a["severity"], a["org"]) for a in first] == [
        ("arrears", "critical", "power")
    ]
    assert first[0]["watch"] == watch["watch"]
    assert not {"value", "field", "arg", "subject"} & first[0].keys()


def test_a_second_start_within_the_debounce_is_told_after_it(city: City) -> None:
    city.refresh(LITTLE)
    city.refresh(CANARY)
    found = wait_for(city.alerts, lambda alerts: len(alerts) > 1)
    assert len(found) == 2
    second, first = (pd.Timestamp(alert["created"]) for alert in found)
    assert (second - first).total_seconds() >= DEBOUNCE_S


def test_the_watched_value_is_at_its_owner_alone(city: City) -> None:
    patterns = {"owed": disguises(CANARY)}
    seen = {
        org: [path for path in places(city, org) if found_in(path.read_bytes(), patterns)]
        for org in KINDS
    }
    assert seen.pop("power"), "the scanner finds it where it is"
    assert not any(seen.values()), seen


def test_an_ended_watch_is_looked_at_no_more_and_its_receipt_says_so(city: City) -> None:
    (watch,) = city.lianmo(BANK, "verify", "watch", "list")
    status, ended = city.api("POST", f"/v1/watches/{watch['watch']}/end")
    assert (status, ended["ended"], ended["is_told"]) == (200, "removed", True)
    receipt = str(city.folder / "end.receipt")
    city.lianmo(BANK, "verify", "watch", "remove", watch["watch"], "--receipt", receipt)
    assert city.lianmo("licence", "receipt", "verify", receipt)["verified"]
    looks, alerts = city.looks(), city.alerts()
    for owed in (LITTLE, CANARY):
        table = city.tables["power"]
        table.loc[table["code"] == FIRM, "owed"] = owed
        city.write("power")
        city.lianmo("power", "data", "refresh", DATASETS["power"])
        time.sleep(2)  # four of its rounds
    assert (city.looks(), city.alerts()) == (looks, alerts)
    entries = city.lianmo("power", "audit", "show")
    assert [entry["action"] for entry in entries].count("watch-ended") == 1


def places(city: City, org: str) -> list[Path]:
    files = [path for path in (city.folder / org).rglob("*") if path.is_file()]
    log = city.folder / f"{org}.log"
    return [*files, *([log] if log.exists() else [])]


def test_with_every_process_gone_all_receipts_verify(city: City) -> None:
    scored = [
        item["id"]
        for item in city.api("GET", "/v1/scores?limit=200")[1]["items"]
        if item["points"] is not None
    ]
    answers = {source.answer for name in scored for source in sources(city.stored(name))}
    answers |= {alert["alert"] for alert in city.alerts()}
    # the firms have their own receipt of every part of a score and of every alert
    wait_for(lambda: history(city), lambda told: answers <= told)
    wait_for(lambda: city.stored(scored[0]), lambda kept: is_cosigned(*kept.receipts.values()))
    for org in list(city.processes):
        city.kill(org)
    folder = city.folder / "receipts"
    city.lianmo(BANK, "verify", "watch", "alerts", "--receipts", str(folder / "alerts"))
    page = str(city.folder / "page.html")
    city.lianmo(
        *(BANK, "model", "explain", scored[0], "--out", page),
        *("--receipts", str(folder / "score")),
    )
    files = sorted(folder.rglob("*.receipt"))
    assert len(files) == 2 + len(DEPARTMENTS)
    for file in files:
        assert city.lianmo("licence", "receipt", "verify", str(file))["verified"]
    trust = city.home("licence").trust()
    for name in scored:
        proven = {org: verify_receipt(one, trust).org for org, one in receipts(city, name)}
        assert proven == {org: org for org in DEPARTMENTS}


def history(city: City) -> set[str]:
    """Digests of all answers and alerts that the firms have receipts of."""
    return {use["answer"] for firm in ROW_OF for use in city.lianmo(firm, "grant", "history")}


def sources(kept: Scored) -> tuple[ScoreSource, ...]:
    assert kept.score is not None
    return kept.score.sources


def receipts(city: City, name: str) -> list[tuple[str, Receipt]]:
    return list(city.stored(name).receipts.items())


def is_cosigned(*found: Receipt) -> bool:
    return {item.status for item in found} == {"cosigned"}
