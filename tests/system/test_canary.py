"""What one party holds is at nobody else: not in a file, a log, a database, a byte on the wire or
the memory of a process; in no usual disguise. The scanner is shown to find it at its owner.

Each table has a value that stands nowhere else. The registry's credit codes are public among the
nodes, which all have the list; the platform has none of them. Then, acceptance test 32: the
coordinator's databases are wiped, and every node's receipts verify.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.api import JobStatus
from tests.faults.plans import BANK, DEPARTMENTS, NODES, PLATFORM
from tests.faults.world import World
from tests.system.secrets_scan import disguises, family, found_in, found_in_memory, packed

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

JOB = "canary"
CANARIES = {BANK: 666_123.454321, "tax": 777_123_454_321.0, "court": 888_123_454.25}
COLUMNS = {BANK: "balance", "tax": "paid", "court": "cases"}


@dataclass
class City:
    """A job that ran, and what was found at whom while it did."""

    world: World
    patterns: dict[str, list[bytes]]
    customers: dict[str, list[bytes]]
    at_owner: dict[str, bool] = field(default_factory=dict)

    def processes(self, org: str) -> list[int]:
        pid = self.world.pid(org)
        assert pid is not None
        return family(pid)

    def of_others(self, org: str) -> dict[str, list[bytes]]:
        """What must not be found at an organisation."""
        secrets = {name: forms for name, forms in self.patterns.items() if name != org}
        return secrets | (self.customers if org == PLATFORM else {})


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    world = World(tmp_path_factory.mktemp("canary"), is_recording=True)
    codes = world.tables[BANK]["code"].tolist()
    for org, value in CANARIES.items():
        table = world.tables[org]
        table.loc[table["code"] == codes[7], COLUMNS[org]] = value
    patterns = {org: disguises(value) for org, value in CANARIES.items()}
    customers = {f"customer {n}": disguises(code) for n, code in enumerate(codes[5:9])}
    with world:
        made = City(world, patterns, customers)
        world.approve(JOB, world.propose(JOB))
        with world.platform() as client:
            deadline, looks = time.monotonic() + 60, Counter[str]()
            while not (detail := client.job(JOB)).status.is_final:
                assert time.monotonic() < deadline
                for org, entry in detail.progress.items():
                    if entry.stage == "start":  # nothing was opened yet
                        continue
                    looks[org] += 1
                    if not made.at_owner.get(org) and looks[org] < 5:
                        own = {org: patterns[org]}
                        made.at_owner[org] = any(
                            found_in_memory(pid, own) for pid in made.processes(org)
                        )
                time.sleep(0.02)
            assert detail.status is JobStatus.SUCCEEDED, detail.message
        yield made


def files(city: City, org: str) -> list[Path]:
    found = [path for path in city.world.box.home(org).rglob("*") if path.is_file()]
    return [*found, *city.world.box.folder.glob(f"{org}-*.log")]


def test_the_scanner_finds_the_value_at_its_owner(city: City) -> None:
    """In memory while the job ran, and in the owner's files."""
    assert any(city.at_owner.values()), city.at_owner
    for org in NODES:
        seen = [found_in(path.read_bytes(), {org: city.patterns[org]}) for path in files(city, org)]
        assert {org} in seen


@pytest.mark.parametrize("value", ["91350200MA2XN8L47Q", 777_123_454_321.0, 0.1234567891])
def test_the_scanner_finds_every_disguise_across_borders_of_memory(value: float | str) -> None:
    for code in ("utf-16-le", "utf-16-be", "utf-32-le"):
        assert found_in(b"xyz" + str(value).encode(code), {"it": disguises(value)}) == {"it"}
    for form in disguises(value):
        assert found_in(b"\x00" * 77 + form + b"\xff", {"it": disguises(value)}) == {"it"}
    assert found_in(packed(str(value)), {"it": [str(value).encode()]}) == {"it"}
    assert found_in(os.urandom(1 << 20), {"it": disguises(value)}) == set()
    held = bytearray(40 << 20)
    text = str(value).encode()
    held[20 << 20 : (20 << 20) + len(text)] = text
    assert found_in_memory(os.getpid(), {"it": [bytes(text)]}) == {"it"}
    del held


def test_a_value_is_in_no_file_log_or_database_of_any_other_party(city: City) -> None:
    for org in (PLATFORM, *NODES):
        for path in files(city, org):
            assert found_in(path.read_bytes(), city.of_others(org)) == set(), f"{org}: {path.name}"


def test_a_value_is_in_no_byte_on_the_wire(city: City) -> None:
    everything = city.patterns | city.customers
    for name, proxy in city.world.proxies.items():
        assert proxy.seen, name
        assert found_in(bytes(proxy.seen), everything) == set(), name


@pytest.mark.parametrize("org", [PLATFORM, *NODES])
def test_a_value_is_in_no_memory_of_any_other_party(city: City, org: str) -> None:
    """Whatever its processes have in memory after the job, freed or not."""
    pids = city.processes(org)
    assert len(pids) >= (2 if org == PLATFORM else 1)  # with the relay
    for pid in pids:
        assert found_in_memory(pid, city.of_others(org)) == set(), f"{org}: process {pid}"


def test_a41_no_leaf_of_any_log_has_a_value_or_a_code(city: City) -> None:
    codes = set(city.world.registry.astype(str))
    for org in (PLATFORM, *NODES):
        leaves = city.world.run(org, "audit", "show", "--json").out
        assert leaves.count('"seq"') >= 1 or org == PLATFORM
        assert found_in(leaves.encode(), city.patterns) == set()
        assert not [code for code in codes if code in leaves]


def test_a32_with_the_coordinators_databases_wiped_every_receipt_verifies(city: City) -> None:
    world = city.world
    world.kill(PLATFORM)
    wiped = [path for path in world.box.home(PLATFORM).glob("*.db*") if path.is_file()]
    assert {path.name for path in wiped} >= {"coordinator.db", "superlink.db"}
    for path in wiped:
        path.unlink()
    for org, judge in zip(NODES, NODES[1:] + NODES[:1], strict=True):
        folder = world.box.home(org) / "runs" / JOB
        told = ("receipt", "verify", str(folder / "receipt.json"), "--object")
        found = world.run(judge, *told, str(folder / "record.json"), "--json").json()
        assert (found["verified"], found["org"], found["outcome"]) == (True, org, "succeeded")
        assert world.run(org, "audit", "verify", "--json").json()["ok"]
    assert {org for org in DEPARTMENTS if world.pid(org) is not None} == set(DEPARTMENTS)
