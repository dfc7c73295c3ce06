"""A city in which firms are scored and watched, as real processes: for tests.

Bank, two departments, a witness and the coordinator, each with its own home, over TLS; two firms
have homes, from which they grant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clients.gate import Gate
from clients.scorer import Scored, Scorer
from clients.store import opened
from federation.codes import code_for_row
from federation.tables import CategoryColumn, Column, NumberColumn
from federation.tasks.model import ScorecardModel
from federation.tasks.model_files import model_from_json
from tests.system.network import PLATFORM
from tests.system.real_nodes import BANK, NODE, WITNESS, RealNodes, wait_for

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
        self.asked_about = {"power": WATCHED}  # fields that questions are about, by owner
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
            words.write_text(WORDS + self.asked_about.get(org, ""))
            said = ("--title", name, "--legal-basis", "依法", "--update-frequency", "monthly")
            said += ("--provenance", "made up", "--file", str(words))
            self.lianmo(org, "catalogue", "set", name, *said)
            self.lianmo(org, "catalogue", "publish", name)
        self.start_nodes()

    def start_nodes(self) -> None:
        """All but the coordinator, which runs."""
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
