"""A whole federation on this machine: one home and one process a party, on free loopback ports.

For the demo, `lianmo lab --processes` and the system tests. Everything goes through the commands
that a person would use, each party with its own `LIANMO_HOME`; they share only what they send.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from federation.errors import LianmoError, Unavailable

PLATFORM, ENTERPRISE = "platform", "enterprise"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
READY = " ready"  # in the line that a resident process prints when it serves


@dataclass(frozen=True, slots=True)
class Member:
    """One organisation of the sandbox."""

    org: str
    kind: str
    name: str
    uscc: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its standard output as JSON."""
        return json.loads(self.out)


class CommandFailed(LianmoError):
    """A command of the sandbox ended with an error it should not have had."""


class Sandbox:
    """Context manager: founded on entry, every process ended on exit.

    `say` is told each command before it runs, as (organisation, arguments).
    """

    def __init__(
        self,
        folder: Path,
        members: Sequence[Member],
        *,
        region: str,
        say: Callable[[str, Sequence[str]], None] = lambda org, arguments: None,
    ) -> None:
        self.folder, self.members, self.region, self.say = folder, members, region, say
        self.port, self.runtime_port, self.relay_port = _free_ports(3)
        self._services: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def home(self, org: str) -> Path:
        """The organisation's LIANMO_HOME."""
        return self.folder / org

    # --- commands

    def run(self, org: str, *arguments: str, check: bool = True) -> Outcome:
        """Run `lianmo ARGUMENTS` as one organisation would; raises CommandFailed if `check`."""
        self.say(org, arguments)
        done = subprocess.run(  # noqa: S603 - our own command line
            self._command(*arguments),
            env=self._environment(org),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        outcome = Outcome(done.returncode, done.stdout, done.stderr)
        if check and outcome.code != 0:
            shown = " ".join(arguments)
            what = f"`lianmo {shown}` ended with {outcome.code}: {outcome.err.strip()}"
            raise CommandFailed(what, party=org)
        return outcome

    def watch(self, org: str, *arguments: str) -> int:
        """Run a command on the caller's own terminal, with its progress bars; its exit code."""
        self.say(org, arguments)
        command, environment = self._command(*arguments), self._environment(org)
        environment.pop("NO_COLOR")
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603

    def everybody(self, calls: Iterable[tuple[str, Sequence[str]]]) -> list[Outcome]:
        """Run one command for each of several organisations, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda call: self.run(call[0], *call[1]), calls))

    def found(self) -> None:
        """Make every home and let everybody trust everybody's card, by its fingerprint."""
        self.make_homes()
        self.exchange_cards()

    def make_homes(self) -> None:
        """Make every home, with its keys and its card."""
        url = f"https://127.0.0.1:{self.port}"
        relay = f"127.0.0.1:{self.relay_port}"

        def init(member: Member) -> tuple[str, Sequence[str]]:
            hosts = ("--host", "127.0.0.1", "--host", "localhost")
            extra = hosts if member.kind == PLATFORM else ()
            return member.org, (
                *("init", "--org", member.org, "--kind", member.kind, "--name", member.name),
                *("--uscc", member.uscc, "--region", self.region),
                *("--coordinator", url, "--relay", relay, *extra),
            )

        self.everybody(init(member) for member in self.members)

    def exchange_cards(self) -> None:
        """Let everybody trust everybody's card, by its fingerprint."""
        cards = self.folder / "cards"
        cards.mkdir(exist_ok=True)
        shown = self.everybody(
            (m.org, ("org", "card", "--out", str(cards / f"{m.org}.json"), "--json"))
            for m in self.members
        )
        prints = {m.org: o.json()["fingerprint"] for m, o in zip(self.members, shown, strict=True)}

        def trust(member: Member) -> tuple[str, Sequence[str]]:
            others = [org for org in prints if org != member.org]
            told = [part for org in others for part in ("--fingerprint", f"{org}={prints[org]}")]
            return member.org, ("org", "trust", *(str(cards / f"{o}.json") for o in others), *told)

        self.everybody(trust(member) for member in self.members)
        self._found_network(cards)

    def _found_network(self, folder: Path) -> None:
        """Platform and first member found a network and admit everybody; all documents go as files.

        Two founders of whom both decide: each may hold the network up, none can steer it.
        """
        platform = next(member.org for member in self.members if member.kind == PLATFORM)
        second = next(member.org for member in self.members if member.kind != PLATFORM)
        charter, documents = str(folder / "charter.json"), str(folder / "network.json")
        report = folder / "assessment.txt"
        report.write_text("sandbox on one machine: nobody was assessed\n", encoding="utf-8")
        words = ("--security", "none: a sandbox", "--authorisation", "none: a sandbox")
        until = (datetime.now(UTC) + timedelta(days=30)).strftime("%Y-%m-%d")
        told = self.run(
            *(second, "network", "found", f"{self.region} (sandbox)"),
            *("--founder", platform, "--out", charter, "--json"),
        ).json()
        compared = ("--fingerprint", told["fingerprint"])
        self.run(platform, "network", "sign", charter, "--yes")
        self.everybody((org, ("network", "join", charter, *compared)) for org in (platform, second))
        everybody = sorted(member.org for member in self.members)
        self.run(
            *(second, "network", "propose", "admit", *everybody, *words),
            *("--evidence", str(report), "--assessor", "nobody", "--valid-until", until),
            *("--out", documents, "--offline"),
        )
        self.run(platform, "network", "sign", documents, "--yes", "--out", documents, "--offline")
        # an enterprise is admitted, and needs no charter: it runs no node and decides nothing
        firms = {member.org for member in self.members if member.kind == ENTERPRISE}
        others = [org for org in everybody if org not in {platform, second, *firms}]
        self.everybody(
            [
                (second, ("network", "sync", documents)),
                *((org, ("network", "join", documents, *compared)) for org in others),
            ]
        )

    # --- processes

    def start(self, *services: tuple[str, Sequence[str]]) -> None:
        """Start resident processes, each (organisation, arguments); returns when all are ready."""
        waiting = [(org, arguments, self._launch(org, arguments)) for org, arguments in services]
        deadline = time.monotonic() + START_TIMEOUT_S
        for org, arguments, seen in waiting:
            process = self._services[_service(org, arguments)]
            while not seen.wait(0.05):
                if process.poll() is None and time.monotonic() < deadline:
                    continue
                log = self._log(org, arguments)
                last = log.read_text().strip().splitlines()[-1:] or ["it said nothing"]
                what = f"`lianmo {' '.join(arguments)}` did not start: {last[0]}"
                raise Unavailable(what, party=org, todo=f"see {log}")

    def _launch(self, org: str, arguments: Sequence[str]) -> threading.Event:
        """Start one process; the event is set when it says that it is ready."""
        self.say(org, arguments)
        log = self._log(org, arguments)
        with log.open("a") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command(*arguments),
                env=self._environment(org),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._services[_service(org, arguments)] = process
        seen = threading.Event()

        def read() -> None:
            if process.stdout is None:
                raise RuntimeError("the process was started with a pipe")
            with process.stdout as lines, log.open("a") as copy:
                for line in lines:
                    copy.write(line)
                    if READY in line:
                        seen.set()

        threading.Thread(target=read, daemon=True).start()
        return seen

    def _log(self, org: str, arguments: Sequence[str]) -> Path:
        return self.folder / f"{org}-{arguments[0]}.log"

    def kill(self, org: str, service: str) -> None:
        """End a process the hard way, as a power cut would."""
        process = self._services.pop(_service(org, [service]))
        process.kill()
        process.wait()

    def pid(self, org: str, service: str) -> int | None:
        """The process id of a resident process; None if it has ended."""
        process = self._services.get(_service(org, [service]))
        return process.pid if process is not None and process.poll() is None else None

    def stop(self) -> None:
        """End every process; the nodes first, so that they can say good-bye."""
        for process in reversed(self._services.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        for process in self._services.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        self._services.clear()

    # --- helpers

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "clients.cli.main", *arguments]

    def _environment(self, org: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LIANMO_")}
        return kept | {
            "LIANMO_HOME": str(self.home(org)),
            "LIANMO_COORDINATOR_RUNTIME_PORT": str(self.runtime_port),
            "NO_COLOR": "1",
        }


def _service(org: str, arguments: Sequence[str]) -> str:
    return f"{org} {arguments[0]}"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now; held open together so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
