"""A small federation of real processes, made once and used for many rounds.

Every node speaks to coordinator and relay through a proxy of its own, so that one party's network
can fail alone. Commands run in this process: the same code as `lianmo`, without a start of Python
for each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clients.cli.main import call
from clients.coordinator_client import CoordinatorClient
from clients.home import Home
from clients.sandbox import Member, Sandbox
from federation.codes import code_for_row
from federation.errors import LianmoError
from federation.tables import Column, NumberColumn
from tests.faults.plans import BANK, DEPARTMENTS, NODES, PLATFORM
from tests.faults.proxy import Proxy
from tests.system.children import children, relay, server_app

ROWS, CUSTOMERS = 1_000, 800
PATIENCE = int(os.environ.get("FAULTS_PATIENCE", "1"))  # on a machine that others keep busy
# So short that a round ends; a site has minutes and hours.
PEER_WAIT_S, WALL_TIME_S = 15 * PATIENCE, 90 * PATIENCE
KINDS = {PLATFORM: "platform", BANK: "bank", "tax": "department", "court": "department"}
DATASETS = {BANK: "loans", "tax": "payments", "court": "cases"}
REGISTRY_OPTIONS = ("--region", "Testville", "--as-of", "2026-10-31")


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def codes(dataset: int, rows: Any) -> np.ndarray[Any, Any]:
    return code_for_row(dataset, rows).astype("S18").astype(str)


def make_tables() -> tuple[dict[str, pd.DataFrame], np.ndarray[Any, Any]]:
    """Three parties' tables of the same enterprises; risk depends on all three."""
    rng = np.random.default_rng(11)
    hidden, all_codes = rng.normal(size=(ROWS, 3)), codes(4, np.arange(ROWS))
    risk = -0.9 + 0.9 * hidden[:, 2] - 0.9 * hidden[:, 0] + 0.8 * hidden[:, 1]
    bad = (rng.random(ROWS) < 1 / (1 + np.exp(-risk))).astype(np.int64)
    tables = {
        BANK: pd.DataFrame({"code": all_codes, "balance": hidden[:, 2].round(3), "bad": bad}),
        "tax": pd.DataFrame({"code": all_codes, "paid": np.exp(8 + hidden[:, 0]).round()}),
        "court": pd.DataFrame({"code": all_codes, "cases": (hidden[:, 1] * 3).round(1)}),
    }
    tables[BANK] = tables[BANK].iloc[np.sort(rng.permutation(ROWS)[:CUSTOMERS])]
    return tables, np.sort(all_codes.astype("S18"))


class World:
    """Context manager: founded and running on entry, every process ended on exit."""

    def __init__(self, folder: Path, *, is_recording: bool = False) -> None:
        self.folder = folder
        own = codes(5, np.arange(len(KINDS)))
        members = [
            Member(org, kind, org.title(), code)
            for (org, kind), code in zip(KINDS.items(), own, strict=True)
        ]
        self.tables, self.registry = make_tables()
        self.box = Sandbox(folder / "homes", members, region="Testville")
        self.proxies: dict[str, Proxy] = {}
        self._stack = contextlib.ExitStack()
        self._is_recording = is_recording

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.box)
            self.box.found()
            targets = {"api": self.box.port, "relay": self.box.relay_port}
            for org in NODES:
                for way, port in targets.items():
                    proxy = Proxy(port, is_recording=self._is_recording)
                    self.proxies[f"{org}-{way}"] = stack.enter_context(proxy)
                self._configure(org)
            with (self.home(PLATFORM).path / "config.toml").open("a") as config:
                config.write(f"[coordinator]\nparty_wait_s = {PEER_WAIT_S}\n")
            self.start(PLATFORM)
            registry = self.folder / "registry.txt"
            registry.write_text("\n".join(self.registry.astype(str)) + "\n")
            for org in NODES:
                self.run(org, "registry", "add", str(registry), *REGISTRY_OPTIONS)
                self.tables[org].to_csv(self.folder / f"{org}.csv", index=False)
            self.publish(BANK, DATASETS[BANK])
            self.box.start(*((org, ("node", "start")) for org in NODES))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._stack.close()

    def _configure(self, org: str) -> None:
        file = self.home(org).path / "config.toml"
        text = file.read_text()
        text = text.replace(f":{self.box.port}", f":{self.proxies[f'{org}-api'].port}")
        text = text.replace(f":{self.box.relay_port}", f":{self.proxies[f'{org}-relay'].port}")
        file.write_text(f"{text}peer_timeout_s = {PEER_WAIT_S}\n")

    # --- commands ---------------------------------------------------------------------------------

    def home(self, org: str) -> Home:
        return Home.open(self.box.home(org), environment={})

    def run(self, org: str, *arguments: str, check: bool = True) -> Said:
        """Run `lianmo ARGUMENTS` as one organisation; a failure is an AssertionError if `check`."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = call(["--home", str(self.box.home(org)), *arguments])
        said = Said(code, out.getvalue(), err.getvalue())
        if check:
            assert said.code == 0, f"{org}: `lianmo {' '.join(arguments)}`: {said.err}"
        return said

    def publish(self, org: str, dataset: str) -> None:
        """Register the organisation's table under a name and say so in the catalogue."""
        label = ("--label", "bad") if org == BANK else ()
        file = str(self.folder / f"{org}.csv")
        self.run(org, "data", "add", dataset, "--file", file, "--key", "code", *label)
        words = ("--title", dataset, "--legal-basis", "test", "--update-frequency", "never")
        words += ("--provenance", "made up", "--level", "*=L2")  # one person decides
        self.run(org, "catalogue", "set", dataset, *words)
        self.run(org, "catalogue", "publish", dataset)

    def propose(self, job: str) -> str:
        """A job over fresh datasets, whose exposure no earlier round has used; its digest."""
        draft = self.folder / f"{job}.toml"
        asked = []
        for org in DEPARTMENTS:
            self.publish(org, f"{DATASETS[org]}-{job}")
            asked += ["--department", f"{org}/{DATASETS[org]}-{job}"]
        limits = ("--customers-max", "850", "--customers-min", "780", "--openings", "1")
        out = ("--platform", PLATFORM, "--out", str(draft))
        self.run(BANK, "job", "new", job, "--dataset", DATASETS[BANK], *asked, *limits, *out)
        limit = f"[limits]\nwall_time_s = {WALL_TIME_S}"
        draft.write_text(draft.read_text().replace("[limits]", limit))
        return str(self.run(BANK, "job", "submit", str(draft), "--json").json()["manifest_digest"])

    def approve(self, job: str, digest: str) -> None:
        for org in (*DEPARTMENTS, PLATFORM):
            self.run(org, "job", "approve", job, "--manifest", digest)

    @contextlib.contextmanager
    def platform(self) -> Iterator[CoordinatorClient]:
        """The coordinator's API as the platform sees it, past all proxies."""
        with CoordinatorClient(self.home(PLATFORM), retry_s=1) as client:
            yield client

    def pooled(self) -> dict[tuple[str, str], Column]:
        """Every party's columns over the bank's customers, which nobody but a test may join."""
        code = self.tables[BANK]["code"]
        return {
            (org, str(name)): NumberColumn(str(name), column.to_numpy(np.float64))
            for org in NODES
            for name, column in self.tables[org].set_index("code").loc[code].items()
        }

    # --- processes --------------------------------------------------------------------------------

    @staticmethod
    def service(org: str) -> tuple[str, str]:
        return ("coordinator", "start") if org == PLATFORM else ("node", "start")

    def start(self, org: str) -> None:
        """By the command with which an operator starts it."""
        self.box.start((org, self.service(org)))

    def pid(self, victim: str) -> int | None:
        """Of a party's resident process, of the relay or of the ServerApp that runs a job."""
        if victim in KINDS:
            return self.box.pid(victim, self.service(victim)[0])
        parent = self.pid(PLATFORM)
        if parent is None:
            return None
        return relay(parent) if victim == "relay" else server_app(parent)

    def kill(self, victim: str) -> bool:
        """As a power cut would; false if there is no such process just now."""
        if victim in KINDS:
            self.box.kill(victim, self.service(victim)[0])
            return True
        pid = self.pid(victim)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return pid is not None

    def fill_disk(self, org: str) -> None:
        """From now on no file of this process may grow: every write fails."""
        self._limit_files(org, 0)

    def heal(self) -> None:
        """Every process runs and may write, every connection carries."""
        for proxy in self.proxies.values():
            proxy.heal()
        for org in (PLATFORM, *NODES):
            pid = self.pid(org)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    self._limit_files(org, resource.RLIM_INFINITY)

    def ended(self) -> list[str]:
        """Whose resident process is not there."""
        return [org for org in (PLATFORM, *NODES) if self.pid(org) is None]

    def log(self, org: str) -> str:
        return (self.box.folder / f"{org}-{self.service(org)[0]}.log").read_text(errors="replace")

    def _limit_files(self, org: str, limit: int) -> None:
        pid = self.pid(org)
        for one in [] if pid is None else [pid, *children(pid)]:
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(one, resource.RLIMIT_FSIZE)
                resource.prlimit(one, resource.RLIMIT_FSIZE, (limit if limit >= 0 else hard, hard))


def is_reachable(world: World) -> bool:
    try:
        with world.platform() as client:
            client.health()
    except LianmoError:
        return False
    return True
