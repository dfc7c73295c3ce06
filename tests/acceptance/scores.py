"""A bank and two departments that have trained a model, in one process with real homes.

The model comes out of the real protocol; data, catalogues, models and manifests stand in the homes
as jobs leave them, and every score goes through seal, order of checks, log and answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients import datasets, grants, registries
from clients.attempts import RECORD
from clients.audit import AuditLog
from clients.consent import Consents
from clients.gate import Gate
from clients.home import Home
from clients.scorer import Scorer
from clients.services import services
from clients.sources import Source
from clients.store import Store
from clients.verification import Parcel, Provider
from federation.audit import AuditEntry, Result
from federation.catalogue import Assurance
from federation.codes import code_for_row
from federation.envelope import sign
from federation.grants import (
    BySubject,
    Capacity,
    Change,
    Channel,
    GrantEvent,
    GrantItem,
    Language,
    NamedOrg,
    StatusList,
    Terms,
    notice_digest,
)
from federation.objects import (
    JobManifest,
    Purpose,
    RunRecord,
    ScorecardParameters,
    TreesParameters,
    Usage,
    utc_text,
)
from federation.registry import Registry
from federation.tables import BankData, CategoryColumn, Column, DepartmentData, NumberColumn
from federation.tasks.local import (
    local_manifest,
    local_seeds,
    run_scorecard_in_process,
    run_trees_in_process,
)
from federation.tasks.model import ScorecardModel
from federation.tasks.model_files import model_to_json, part_to_json
from federation.tasks.trees_files import trees_part_to_json, trees_to_json
from federation.tasks.trees_model import TreesModel
from tests.acceptance.consent import NOW, Firm

ROWS, CUSTOMERS = 420, 400
CODES = np.sort(code_for_row(1, np.arange(ROWS)))
REGISTRY = Registry(CODES, NOW.date(), "厦门市")
BANK, DEPARTMENTS = "bank-a", ("tax", "power")
KINDS = {
    "platform": ("platform", "91330106Y71047292M"),
    "tax": ("department", "91310115Y71126484T"),
    "power": ("utility", "91110105Y71205676A"),
    "licence": ("department", "91420106Y71364052A"),
    BANK: ("bank", CODES[0].decode()),
}
DATASET = {"tax": "payments", "power": "arrears", BANK: "loans"}
SETTINGS = '[verification]\nissuers = { licence = "A3", platform = "A2" }\n'
GRID = ("1", "2", "3")
FIELD = {
    "level": "L2",
    "ops": ["train", "score"],
    "purposes": ["credit-model-training", "credit-decision", "post-loan-monitoring"],
}


@dataclass(frozen=True)
class Data:
    """Columns over the registry, and who is a customer."""

    columns: dict[str, tuple[Column, ...]]
    labels: NDArray[np.uint8]

    @cached_property
    def bank(self) -> BankData:
        positions = np.arange(CUSTOMERS, dtype=np.int64)
        own = [column.take(positions) for column in self.columns[BANK]]
        return BankData(ROWS, positions, CODES[positions], own, self.labels[:CUSTOMERS])

    @cached_property
    def departments(self) -> dict[str, DepartmentData]:
        return {org: DepartmentData(list(self.columns[org]), CODES) for org in DEPARTMENTS}

    def all_columns(self) -> dict[tuple[str, str], Column]:
        return {(org, c.name): c for org, columns in self.columns.items() for c in columns}


def make_data() -> Data:
    rng = np.random.default_rng(5)
    x = np.round(rng.normal(size=(ROWS, 6)), 3)
    kind = rng.integers(0, 3, ROWS).astype(np.int32)
    kind[rng.random(ROWS) < 0.1] = -1
    paid = np.where(rng.random(ROWS) < 0.15, np.nan, x[:, 1])
    months = np.clip(np.round(x[:, 3] + 1), 0, 4)
    months[5:9] = np.nan  # firms without a record in all of power's columns
    usage = np.where(np.isnan(months), np.nan, x[:, 4])
    risk = 0.7 * x[:, 0] - 2 * np.nan_to_num(paid) + np.nan_to_num(months) * 0.7 + (kind == 1)
    labels = (risk + rng.logistic(size=ROWS) > 1.5).astype(np.uint8)
    return Data(
        {
            BANK: (NumberColumn("balance", x[:, 0]), NumberColumn("age", x[:, 5])),
            "tax": (
                NumberColumn("paid", paid),
                CategoryColumn("kind", kind, ("a", "b", "c")),
                NumberColumn("late", x[:, 2]),
            ),
            "power": (NumberColumn("months", months), NumberColumn("usage", usage)),
        },
        labels,
    )


DATA = make_data()
FIRM = CODES[3].decode()


def train(task: str) -> tuple[JobManifest, dict[str, bytes], ScorecardModel | TreesModel]:
    """The manifest with dataset names, every party's file, and the bank's model."""
    if task == "trees":
        parameters = TreesParameters.model_validate(
            {"trees": 3, "max_depth": 3, "min_cohort": 15, "max_bins": 8, "ask_customers": 40}
        )
        manifest = local_manifest({BANK: DATA.bank}, DATA.departments, parameters)
        manifest = _named(manifest, task)
        grown = run_trees_in_process(DATA.bank, DATA.departments, manifest, 3)
        files = {org: trees_part_to_json(part) for org, part in grown.parts.items()}
        return manifest, files | {BANK: trees_to_json(grown.result.model)}, grown.result.model
    card = ScorecardParameters.model_validate(
        {"openings": 0, "evaluation": False, "min_cohort": 15, "reason_codes": 2}
    )
    manifest = _named(local_manifest({BANK: DATA.bank}, DATA.departments, card), task)
    seeds = local_seeds([BANK, *DEPARTMENTS], 0)
    run = run_scorecard_in_process(DATA.bank, DATA.departments, manifest, seeds)
    files = {org: part_to_json(part) for org, part in run.parts.items()}
    return manifest, files | {BANK: model_to_json(run.result.model)}, run.result.model


def _named(manifest: JobManifest, task: str) -> JobManifest:
    parties = tuple(
        party.model_copy(update={"org": org, "dataset": DATASET[org]})
        for party, org in zip(manifest.parties, (BANK, *DEPARTMENTS), strict=True)
    )
    return manifest.model_copy(
        update={"parties": parties, "job": f"city-{task}", "outputs": (BANK,)}
    )


@dataclass(frozen=True)
class Line:
    """One bank's carrier."""

    world: ScoreWorld
    bank: str

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        return self.world.carried(self.bank, provider, sealed)


class ScoreWorld:
    """Homes with a trained model; the clock is an attribute."""

    kinds = KINDS
    banks: tuple[str, ...] = (BANK,)

    def __init__(self, folder: Path, task: str) -> None:
        self.now = NOW
        self.folder = folder
        self.homes = self._homes()
        self.stores = {org: Store.open(home.database_url) for org, home in self.homes.items()}
        self.manifest, self.files, self.model = self.trained(task)
        self.frames: list[tuple[str, bytes]] = []
        self.change: Callable[[str, bytes], bytes] = lambda org, reply: reply
        self.events: list[BySubject] = []
        self.sequence = 0
        for org in (*self.banks, *DEPARTMENTS):
            self._data(org)
            self._model(org)
        licence = self.homes["licence"]
        self.firm = Firm(FIRM).certified_by(licence, Assurance.A3)
        self.providers = {org: self._provider(org) for org in DEPARTMENTS}
        self.refresh()

    def clock(self) -> datetime:
        return self.now

    def trained(
        self, task: str
    ) -> tuple[JobManifest, dict[str, bytes], ScorecardModel | TreesModel]:
        """The manifest, every party's file, and the first bank's model."""
        return train(task)

    def rows_of(self, org: str) -> Sequence[int]:
        """Which firms an owner's table may have."""
        return range(CUSTOMERS if org in self.banks else ROWS)

    def _homes(self) -> dict[str, Home]:
        homes = {}
        for org, (kind, uscc) in self.kinds.items():
            words: dict[str, Any] = {"org": org, "kind": kind, "name": f"{org} 某单位"}
            made = NOW - timedelta(days=1)
            Home.create(self.folder / org, **words, uscc=uscc, region="厦门市", now=made)
            with (self.folder / org / "config.toml").open("a") as config:
                config.write(SETTINGS)
            homes[org] = Home.open(self.folder / org, environment={})
        for one in homes.values():
            for other in homes.values():
                if one is not other:
                    one.trust_card(other.card())
        return homes

    def _data(self, org: str) -> None:
        home, store = self.homes[org], self.stores[org]
        registries.add(home, store, REGISTRY, NOW - timedelta(hours=3))
        role = BANK if org in self.banks else org
        self.write_table(org, DATA.columns[role])
        name, file = DATASET[role], self.folder / f"{org}.csv"
        label = "bad" if role == BANK else None
        source = Source(file=str(file), key="uscc", label=label)
        datasets.register(home, store, name, source, NOW - timedelta(hours=2))
        fields: dict[str, dict[str, Any]] = {
            column.name: FIELD | {"description": f"{column.name} 说明"}
            for column in DATA.columns[role]
        }
        if org == "power":
            fields["months"] |= {
                "ops": ["train", "score", "verify"],
                "enquiry": {"ops": ["compare"], "grid": GRID, "bits_budget": 256},
            }
        fields |= {"uscc": {"level": "L2"}} | ({"bad": {"level": "L2"}} if label else {})
        datasets.describe(store, name, dict.fromkeys(datasets.OWN_WORDS, "依法"), fields)
        signed = datasets.sign_entry(home, store, name, NOW - timedelta(hours=1))
        assert datasets.is_in_force(store, signed)

    def write_table(self, org: str, columns: tuple[Column, ...]) -> None:
        """The owner's table; firms with nothing in it have no record."""
        names = [column.name for column in columns]
        is_bank = org in self.banks
        lines = [",".join(["uscc", *names, *(["bad"] if is_bank else [])])]
        for row in self.rows_of(org):
            cells = [_cell(column, row) for column in columns]
            if any(cells):
                tail = [str(DATA.labels[row])] if is_bank else []
                lines.append(",".join([CODES[row].decode(), *cells, *tail]))
        (self.folder / f"{org}.csv").write_text("\n".join(lines) + "\n")

    def _model(self, org: str) -> None:
        home, store, manifest = self.homes[org], self.stores[org], self.manifest
        signed = sign(manifest, self.homes[BANK].key(Usage.PROPOSE))
        store.jobs.put(manifest.digest(), manifest.job, signed.to_json(), NOW)
        (home.models / f"{manifest.job}.json").write_bytes(self.files[org])
        record = RunRecord(
            job=manifest.job,
            manifest=manifest.digest(),
            org=org,
            attempt=1,
            package_sha256="0" * 64,
            fab_sha256="0" * 64,
            run_config_sha256="0" * 64,
            snapshot="0" * 64,
            commitments=(),
            transcript=(),
            disclosures=(),
            tokens=0,
            output="0" * 64,
            outcome="succeeded",
            stage="",
            started=utc_text(NOW),
            ended=utc_text(NOW),
        )
        signed = sign(record, home.key(Usage.RUN))
        (home.runs(manifest.job) / RECORD).write_bytes(signed.to_json())

    def _provider(self, org: str) -> Provider:
        home, store = self.homes[org], self.stores[org]
        gate = Gate(home, store, self.clock)
        return Provider(
            home, store, now=self.clock, services=services(home, store, gate, self.clock)
        )

    def scorer(self, carrier: Any = None, bank: str = BANK) -> Scorer:
        home, store = self.homes[bank], self.stores[bank]
        gate = Gate(home, store, self.clock)
        return Scorer(home, store, carrier or Line(self, bank), gate, self.clock)

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        """The carrier: straight to the provider."""
        return self.carried(BANK, provider, sealed)

    def carried(self, sender: str, provider: str, sealed: bytes) -> bytes:
        """The same, of any sender."""
        self.frames.append((provider, sealed))
        replies = self.providers[provider].answer([Parcel(sender, sealed)])
        return self.change(provider, replies[0])

    # --- grants

    def refresh(self) -> None:
        """All providers take all events and a fresh list."""
        self.sequence += 1
        said = StatusList(
            org="platform",
            sequence=self.sequence,
            created=utc_text(self.now),
            next_update=utc_text(self.now + timedelta(minutes=30)),
            events=tuple(sorted(event.proof_digest[:32] for event in self.events)),
            certificates=(),
        )
        signed = sign(said, self.homes["platform"].key(Usage.GRANT))
        for org in DEPARTMENTS:
            home, store = self.homes[org], self.stores[org]
            for event in self.events:
                grants.take_event(home, store, event, self.now)
            Consents(store).put_status(signed, home.trust(), self.now)

    def items(self) -> list[GrantItem]:
        return [
            GrantItem(provider=org, dataset=DATASET[org], field=c.name, title=f"{c.name} 说明")
            for org in DEPARTMENTS
            for c in DATA.columns[org]
        ]

    def grant(self, **changes: Any) -> str:
        """A grant that the bank holds; its digest."""
        firm = changes.pop("firm", self.firm)
        items = tuple(changes.pop("items", self.items()))
        bank = changes.get("grantee", BANK)
        orgs = dict.fromkeys([bank, *(item.provider for item in items)])
        plain: dict[str, Any] = {
            "subject": firm.uscc,
            "grantee": BANK,
            "purpose": Purpose.CREDIT_DECISION,
            "channel": Channel.SCORE,
            "items": items,
            "model": self.manifest.digest(),
            "names": tuple(NamedOrg(org=org, name=f"{org} 某单位") for org in orgs),
            "max_uses": 3,
            "not_before": utc_text(self.now - timedelta(hours=1)),
            "expires": utc_text(self.now + timedelta(days=30)),
            "notice_lang": Language.ZH,
            "notice_digest": "0" * 64,
            "nonce": np.random.default_rng().bytes(16).hex(),
        } | changes
        terms = Terms.model_validate(plain)
        digest = notice_digest(terms, Language.ZH)
        terms = terms.model_copy(update={"notice_digest": digest})
        bundle = grants.sign_terms(
            terms,
            firm.grant,
            (firm.card, firm.certificate),
            Capacity.ENTERPRISE_SEAL,
            self.now - timedelta(minutes=1),
        )
        return grants.hold(self.homes[bank], self.stores[bank], bundle, self.now)

    def revoke(self, grant: str) -> None:
        said = GrantEvent(
            grant=grant,
            change=Change.REVOKE,
            number=1,
            created=utc_text(self.now),
            effective=utc_text(self.now),
        )
        signed = sign(said, self.firm.grant)
        card, certificate = self.firm.card, self.firm.certificate
        self.events.append(BySubject(signed=signed, card=card, certificate=certificate))
        self.refresh()

    def refusals(self, org: str) -> list[AuditEntry]:
        log = AuditLog(self.homes[org], self.stores[org])
        return [entry for entry in log.entries() if entry.outcome is Result.REFUSED]

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


def _cell(column: Column, row: int) -> str:
    if isinstance(column, CategoryColumn):
        place = int(column.codes[row])
        return "" if place < 0 else column.categories[place]
    value = float(column.values[row])
    return "" if np.isnan(value) else json.dumps(value)
