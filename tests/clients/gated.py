"""A bank, a tax bureau and a platform with registered data, each behind its own gate: where the
tests of the gate, and of what goes round it, begin.

A module that wants the fixtures says `made, world = gated.made, gated.world`.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import datasets, registries
from clients.audit import AuditLog
from clients.gate import Admission, Gate
from clients.home import Home
from clients.sources import Source
from clients.store import Store
from federation import fab
from federation.catalogue import Dataset
from federation.codes import code_for_row
from federation.envelope import Envelope, sign
from federation.objects import (
    CoverRule,
    JobManifest,
    JobParty,
    Limits,
    Purpose,
    Role,
    ScorecardParameters,
    Usage,
    utc_text,
)
from federation.package import package_sha256
from federation.registry import Registry
from federation.tasks import plan, row_keys
from tests.clients.persons import certified
from tests.federation.parties import approve, make_approval, make_org

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROWS, CUSTOMERS = 3000, 1200
CODES = np.sort(code_for_row(1, np.arange(ROWS)))
REGISTRY = Registry(CODES, NOW.date(), "济宁市")
CANARY = "金丝雀公司"
CITY = make_org("city", "platform", now=NOW - timedelta(days=1), code=2)


@dataclasses.dataclass
class Party:
    """One organisation with its home, its data and its gate."""

    home: Home
    store: Store
    gate: Gate

    @property
    def audit(self) -> AuditLog:
        return AuditLog(self.home, self.store)

    def sign(self, obj: Any, usage: Usage) -> Envelope:
        return sign(obj, self.home.key(usage))


class World:
    """A bank, a tax bureau and a platform that trust each other, with registered data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bank = self.party("bank_a", "bank", "91330106Y71047292M")
        self.tax = self.party("tax", "department", "91310115Y71126484T")
        self.second = certified(self.tax.home, self.tax.store, "李娜", NOW - timedelta(hours=1))
        for party, others in ((self.bank, [self.tax]), (self.tax, [self.bank])):
            party.home.trust_card(CITY.envelope)
            for other in others:
                party.home.trust_card(other.home.card())
        rng = np.random.default_rng(5)
        known = np.flatnonzero(rng.random(ROWS) < 0.95)
        rng.shuffle(known)
        self.tax_rows = known
        self.paid = rng.normal(100, 9, ROWS).round(3)
        lines = [f"{CODES[i].decode()},{self.paid[i]},甲{i % 3},{CANARY},{i}" for i in known]
        self.register(self.tax, "payments", "uscc,paid,sector,secret,core", lines)
        self.customers = rng.permutation(ROWS)[:CUSTOMERS]
        self.bad = rng.integers(0, 2, ROWS)
        lines = [f"{CODES[i].decode()},{i * 2},{self.bad[i]}" for i in self.customers]
        self.register(self.bank, "loans", "uscc,limit,bad", lines, label="bad")
        levels = {"*": {"level": "L2"}, "core": {"level": "L5"}}
        datasets.describe(self.tax.store, "payments", {}, levels)
        datasets.describe(self.bank.store, "loans", {}, {"*": {"level": "L2"}})
        self.publish(self.tax, "payments")
        self.publish(self.bank, "loans")
        self.job = self.manifest()

    def copied(self, folder: Path) -> World:
        """The same world in another place, as it was when it was made."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        world = copy.copy(self)
        world.folder = folder
        world.bank, world.tax = world.opened("bank_a"), world.opened("tax")
        return world

    def opened(self, org: str) -> Party:
        home = Home.open(self.folder / org, environment={})
        store = Store.open(home.database_url)
        return Party(home, store, Gate(home, store, lambda: NOW))

    def close(self) -> None:
        self.bank.store.close()
        self.tax.store.close()

    def party(self, org: str, kind: str, uscc: str) -> Party:
        home = Home.create(
            self.folder / org,
            org=org,
            kind=kind,
            name=org,
            uscc=uscc,
            region="济宁市",
            now=NOW - timedelta(days=1),
        )
        party = self.opened(org)
        registries.add(home, party.store, REGISTRY, NOW)
        return party

    def register(
        self, party: Party, name: str, header: str, lines: list[str], label: str | None = None
    ) -> None:
        path = self.folder / f"{name}.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        source = Source(file=str(path), key="uscc", label=label)
        datasets.register(party.home, party.store, name, source, NOW)

    def publish(self, party: Party, name: str) -> Dataset:
        words = dict.fromkeys(datasets.OWN_WORDS, "as the law says")
        datasets.describe(party.store, name, words, {})
        signed = datasets.sign_entry(party.home, party.store, name, NOW)
        if not datasets.is_in_force(party.store, signed):
            signed = datasets.sign_entry(party.home, party.store, name, NOW, self.second)
        return signed.unverified(Dataset)

    def entry(self, party: Party, name: str) -> Dataset:
        stored = party.store.entries.get(name)
        assert stored.envelope is not None
        return Envelope.from_json(stored.envelope).unverified(Dataset)

    def manifest(self, **changes: Any) -> JobManifest:
        """A job that follows from its own figures, unless a change says otherwise."""
        fields = changes.pop("fields", ("paid", "sector"))
        dataset = changes.pop("dataset", "payments")
        persons = changes.pop("persons", 1)
        parameters = changes.pop("parameters", ScorecardParameters(openings=1))
        cover = changes.pop("cover", CoverRule(rows=ROWS))
        customers_min = changes.pop("customers_min", 1000)
        customers_max = changes.pop("customers_max", 1500)
        alignment, number = row_keys.agreed(customers_max)
        query, tokens, between = plan.plan(
            rows=cover.rows,
            customers_max=customers_max,
            bank_fields=1,
            department_fields={"tax": len(fields)},
            parameters=parameters,
        )
        digest = self.entry(self.tax, "payments").digest()
        plain: dict[str, Any] = {
            "job": "sme-card-1",
            "created": utc_text(NOW),
            "purpose": Purpose.CREDIT_MODEL_TRAINING,
            "parties": (
                JobParty(
                    org="bank_a",
                    role=Role.BANK,
                    dataset="loans",
                    catalogue_digest=self.entry(self.bank, "loans").digest(),
                    fields=("limit",),
                ),
                JobParty(
                    org="tax",
                    role=Role.DEPARTMENT,
                    dataset=dataset,
                    catalogue_digest=changes.pop("catalogue_digest", digest),
                    fields=fields,
                    persons=persons,
                ),
                JobParty(org="city", role=Role.PLATFORM),
            ),
            "registry": REGISTRY.described(),
            "cover": cover,
            "alignment": alignment,
            "package_sha256": package_sha256(),
            "parameters": parameters,
            "query": query,
            "limits": Limits(
                customers_max=customers_max,
                row_keys=number,
                customers_min=customers_min,
                tokens=tokens,
                tokens_between=between,
            ),
            "disclosures": (),
            "outputs": ("bank_a",),
            "not_before": utc_text(NOW),
            "expires": utc_text(NOW + timedelta(days=7)),
        }
        made = JobManifest.model_validate(plain)
        made = made.model_copy(update={"disclosures": plan.declare(made)})
        return JobManifest.model_validate(made.model_dump() | changes)

    def signed(self, job: JobManifest) -> Envelope:
        return self.bank.sign(job, Usage.PROPOSE)

    def approvals(self, job: JobManifest) -> list[Envelope]:
        times = {
            "created": utc_text(NOW),
            "valid_from": utc_text(NOW),
            "valid_until": utc_text(NOW + timedelta(days=2)),
        }
        tax = self.tax.sign(make_approval("tax", job.digest(), **times), Usage.APPROVE)
        return [tax, approve(CITY, job.digest(), **times)]

    def admit(self, party: Party, job: JobManifest | None = None, **changes: Any) -> Admission:
        job = job or self.job
        given = {
            "manifest": self.signed(job),
            "approvals": self.approvals(job),
            "fab": fab.build(job),
            "run_config": fab.expected_run_config(job),
        } | changes
        return party.gate.admit(given.pop("manifest"), given.pop("approvals"), **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    world.close()
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> Iterator[World]:
    world = made.copied(tmp_path / "world")
    yield world
    world.close()
