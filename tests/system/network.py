"""A coordinator and nodes as real processes on loopback, for tests.

The nodes are the product's, but for two things: the party program is an echo between all parties,
and the gate checks everything that needs no data and opens none. So a run is as fast as Flower is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from clients.coordinator_client import CoordinatorClient, tls_context
from clients.home import Home
from federation.api import JobDetail
from federation.envelope import Envelope, sign
from federation.objects import Approval, Decision, JobManifest, Limits, Usage, utc_text
from federation.package import package_sha256
from tests.federation.parties import CODES, make_manifest

PLATFORM, BANK, TAX, COURT = "platform", "bank-a", "tax", "court"
KINDS = {PLATFORM: "platform", BANK: "bank", TAX: "department", COURT: "department"}


class Network:
    """Homes and processes; everything ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.runtime_port, self.relay_port = free_ports(3)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._clients: list[httpx.Client] = []
        for code, (org, kind) in zip(CODES, KINDS.items(), strict=True):
            Home.create(
                folder / org,
                org=org,
                kind=kind,
                name=org,
                uscc=code,
                region="厦门",
                coordinator_url=f"https://127.0.0.1:{self.port}",
                relay_address=f"127.0.0.1:{self.relay_port}",
                hosts=("127.0.0.1",) if kind == "platform" else (),
            )
        with (folder / PLATFORM / "config.toml").open("a") as config:
            config.write(f"[coordinator]\nruntime_port = {self.runtime_port}\nparty_wait_s = 12\n")
        for one in KINDS:
            for other in KINDS:
                if one != other:
                    self.home(one).trust_card(self.home(other).card())

    def home(self, org: str) -> Home:
        return Home.open(self.folder / org, environment={})

    @contextlib.contextmanager
    def client(self, org: str) -> Iterator[CoordinatorClient]:
        with CoordinatorClient(self.home(org), retry_s=5) as client:
            yield client

    def raw(self, org: str) -> httpx.Client:
        """An HTTP client with an organisation's certificate and nothing else; closed at the end."""
        client = httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            verify=tls_context(self.home(org)),
            timeout=30,
            headers={"content-type": "application/x-protobuf"},
        )
        self._clients.append(client)
        return client

    # --- processes

    def start(self, org: str, *command: str, ready: str = "ready") -> float:
        """Start a process of an organisation; the seconds until it said that it is ready."""
        began = time.monotonic()
        log = (self.folder / f"{org}.log").open("a")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIANMO_")}
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment | {"LIANMO_HOME": str(self.folder / org)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        log.close()
        self.processes[org] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert ready in line, self.log(org)
        return time.monotonic() - began

    def start_coordinator(self) -> float:
        return self.start(PLATFORM, "-m", "clients.cli.main", "coordinator", "start")

    def start_node(self, org: str) -> float:
        return self.start(org, str(Path(__file__).parent / "echo_node.py"))

    def kill(self, org: str) -> None:
        """As a power cut would."""
        process = self.processes.pop(org)
        process.kill()
        _finish(process)

    def end(self, org: str) -> int:
        """As an operator would; the exit code."""
        process = self.processes.pop(org)
        process.terminate()
        return _finish(process)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            _finish(process)
        self.processes.clear()

    def log(self, org: str) -> str:
        return (self.folder / f"{org}.log").read_text()

    # --- jobs

    def manifest(self, job: str, **changes: Any) -> JobManifest:
        now = datetime.now(UTC)
        times = {
            "created": utc_text(now),
            "not_before": utc_text(now - timedelta(minutes=1)),
            "expires": utc_text(now + timedelta(hours=1)),
        }
        plain: dict[str, Any] = {
            "job": job,
            "package_sha256": package_sha256(),
            "limits": Limits(
                customers_max=400, row_keys=400, customers_min=200, tokens=8, wall_time_s=60
            ),
            "platform": PLATFORM,
        }
        return make_manifest(BANK, [TAX, COURT], **(plain | times | changes))

    def approval(self, org: str, manifest: JobManifest, **changes: Any) -> Envelope:
        now = datetime.now(UTC)
        plain: dict[str, Any] = {
            "manifest": manifest.digest(),
            "org": org,
            "decision": Decision.APPROVE,
            "created": utc_text(now),
            "valid_from": utc_text(now - timedelta(minutes=1)),
            "valid_until": utc_text(now + timedelta(hours=1)),
            "nonce": secrets.token_hex(16),
        }
        approval = Approval.model_validate(plain | changes)
        return sign(approval, self.home(org).key(Usage.APPROVE))

    def submit(self, manifest: JobManifest) -> None:
        with self.client(BANK) as client:
            client.submit(sign(manifest, self.home(BANK).key(Usage.PROPOSE)))

    def approve(self, manifest: JobManifest) -> None:
        for org in manifest.approvers():
            with self.client(org) as client:
                client.approve(manifest.job, self.approval(org, manifest))

    def run(self, job: str, **changes: Any) -> JobDetail:
        """A whole job, to its end."""
        manifest = self.manifest(job, **changes)
        self.submit(manifest)
        self.approve(manifest)
        return self.wait(job, lambda found: found.status.is_final)

    def wait(
        self, job: str, until: Callable[[JobDetail], bool], timeout_s: float = 40
    ) -> JobDetail:
        deadline = time.monotonic() + timeout_s
        with self.client(BANK) as client:
            while True:
                found = client.job(job)
                if until(found):
                    return found
                assert time.monotonic() < deadline, f"{found.status}: {found.message}"
                time.sleep(0.1)


def _finish(process: subprocess.Popen[str]) -> int:
    code = process.wait(10)
    if process.stdout is not None:
        process.stdout.close()
    return code


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
