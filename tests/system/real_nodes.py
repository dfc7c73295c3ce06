"""Homes made in this process, the product's own nodes as processes, commands as people type them.

For tests of grants: questions, scores and alerts. Commands run in this process, the same code as
`lianmo` without a start of Python for each; what they talk to are processes.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from clients.cli.main import call
from clients.home import Home
from tests.system.network import PLATFORM, Network, free_ports
from tests.system.secrets_scan import family

T = TypeVar("T")
BANK = "bank-a"
WITNESS = ("node", "start", "--witness-only")
NODE = ("node", "start", "--no-warm")


class RealNodes(Network):
    """kinds: (kind, credit code) of every organisation; settings: what its config.toml gets."""

    def __init__(
        self, folder: Path, kinds: Mapping[str, tuple[str, str]], settings: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.port, self.runtime_port, self.relay_port = free_ports(3)
        self.processes = {}
        self._clients = []
        for org, (kind, uscc) in kinds.items():
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
            with (folder / org / "config.toml").open("a") as config:
                config.write(settings.get(org, ""))
        with (folder / PLATFORM / "config.toml").open("a") as config:
            config.write(f"[coordinator]\nruntime_port = {self.runtime_port}\nparty_wait_s = 40\n")
        for one in kinds:
            for other in kinds:
                if one != other:
                    self.home(one).trust_card(self.home(other).card())

    # --- commands

    def lianmo(self, org: str, *command: str, code: int = 0) -> Any:
        """What `lianmo COMMAND --json` prints for one organisation, which ends with `code`."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = call(["--home", str(self.folder / org), *command, "--json"])
        assert ended == code, (org, command, ended, out.getvalue(), err.getvalue())
        return json.loads(out.getvalue()) if out.getvalue() else None

    def api(
        self, method: str, path: str, body: Any = None, *, org: str = BANK, **headers: str
    ) -> tuple[int, Any]:
        """The local API of a bank's node, over its socket: status and body.

        body: goes as JSON, bytes as they are.
        """
        home = self.folder / org
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(home / "api.sock"))
            token = (home / "api.token").read_text()
            content = json.dumps(body) if body is not None and type(body) is not bytes else body
            sent = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            if method == "POST":  # a new one for every request that names none
                sent["Idempotency-Key"] = secrets.token_hex(16)
            connection.request(method, path, content, sent | headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    # --- processes

    def start_all(self, **commands: tuple[str, ...]) -> None:
        """A process for every organisation that is named, at the same time; all are ready then."""

        def one(item: tuple[str, tuple[str, ...]]) -> None:
            self.start(item[0], "-m", "clients.cli.main", *item[1])

        with ThreadPoolExecutor(len(commands)) as pool:
            named = {org.replace("_", "-"): command for org, command in commands.items()}
            list(pool.map(one, named.items()))

    def until_witnessed(self, *orgs: str) -> None:
        """Until these nodes' logs have the witnesses that an answer needs."""
        for org in orgs:
            wait_for(
                lambda org=org: self.lianmo(org, "audit", "witnesses"),  # type: ignore[misc] # bound
                lambda found: found["stopped"] is None,
            )

    def live(self, org: str) -> int | None:
        """The process beside an organisation's node; None while there is none."""
        node = self.processes[org].pid
        for pid in family(node)[1:]:
            with contextlib.suppress(OSError):
                if b"clients.live" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def kill_live(self, org: str) -> int:
        """As the kernel does when memory is short; the process id that it had."""
        pid = self.live(org)
        assert pid is not None, org
        os.kill(pid, signal.SIGKILL)
        return pid


def wait_for(ask: Callable[[], T], is_good: Callable[[T], bool], timeout_s: float = 60) -> T:
    """The first answer that is good."""
    deadline = time.monotonic() + timeout_s
    while not is_good(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found
