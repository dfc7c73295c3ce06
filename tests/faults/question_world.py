"""The city of tests/system/score_city.py with a bank that asks and scores without a pause.

`City` runs the processes and knows what is right; `Load` is the bank's systems: several threads,
each request under an Idempotency-Key of its own. Every party that asks or answers speaks to the
coordinator through a proxy of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import secrets
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.audit import AuditEntry
from tests.faults.proxy import Proxy
from tests.system import hostile_input as hostile
from tests.system.network import PLATFORM
from tests.system.real_nodes import BANK, NODE, WITNESS, wait_for
from tests.system.score_city import (
    DATASETS,
    DEPARTMENTS,
    FIRM,
    GRID,
    JOB,
    LITTLE,
    ROW_OF,
    SECOND,
    SERVES,
    City,
)
from tests.system.secrets_scan import family

COSIGNER = "licence"
ASKERS = (BANK, *DEPARTMENTS)  # who speaks through a proxy
COMMANDS = {PLATFORM: ("coordinator", "start"), COSIGNER: WITNESS} | dict.fromkeys(ASKERS, NODE)
CUTS = {"tax": ("1000", "3000", "10000"), "power": GRID}  # the second one's cut points are asked
FIELDS = {"tax": "paid", "power": "owed"}
OWED = 654_321.8125  # by the second firm: a value that is asked about and stands in no log
STEADY, FEW = 10_000, 6  # uses of the grant that always holds, and of one that a round uses up
THREADS, PACE_S = 6, 0.15  # of the bank's systems; between two requests of one, about
ANSWERED_WITHIN_S = 60.0  # a coordinator holds a question for 20 s, and a bank tries again
DOORS = ("/v1/verifications", "/v1/verifications/batches", "/v1/scores", "/v1/watches")
ASKING = """[fields.{field}]
ops = ["train", "score", "verify"]
purposes = {serves}
enquiry = {{ ops = ["compare"], grid = [{grid}], bits_budget = 4096 }}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """Something to ask, and the answer that is right."""

    path: str
    body: dict[str, Any]
    right: str | int  # the word of the answer, or the points
    may_be_refused: bool = False  # as the grant can be used up


@dataclass(slots=True)
class Asked:
    """A case as it was asked once, and what came back; status 0: the node was not there."""

    case: Case
    key: str
    status: int = 0
    answer: Any = None
    repeats: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def said(self) -> str | int | None:
        """What the answer says, if there is one."""
        if self.status != 201:
            return None
        found: str | int | None = self.answer.get("result", self.answer.get("points"))
        return found


class QuestionWorld(City):
    """Context manager: running, with a model and certified firms on entry; ended on exit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked_about = {
            org: ASKING.format(
                field=FIELDS[org],
                serves=SERVES,
                grid=", ".join(f'"{cut}"' for cut in CUTS[org]),
            )
            for org in DEPARTMENTS
        }
        power = self.tables["power"]
        power.loc[power["code"] == SECOND, "owed"] = OWED
        self.proxies: dict[str, Proxy] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> QuestionWorld:
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for org in ASKERS:
                self.proxies[org] = stack.enter_context(Proxy(self.port))
                file = self.folder / org / "config.toml"
                text = file.read_text().replace(f":{self.port}", f":{self.proxies[org].port}")
                file.write_text(text)
            with (self.folder / BANK / "config.toml").open("a") as config:
                config.write("[verification]\nreceipts_every_s = 0.5\nstatus_every_s = 0.5\n")
            self.begin()
            self.train()
            for firm in ROW_OF:
                self.certify(firm)
            self.until_witnessed(*DEPARTMENTS)
            self._stack = stack.pop_all()
        return self

    def grant_all(self) -> None:
        """What a campaign asks, scores and watches under, from its first round to its last."""
        self.grants["steady"] = self.may_ask(STEADY)
        drafting = ("model", "draft", JOB, "--uses", str(STEADY))
        self.grants["score"] = self.granted("second", *drafting)
        for firm in ROW_OF:
            self.grants[f"watch {firm}"] = self.may_watch(firm)
        self.owes(LITTLE)
        self.until_witnessed(*DEPARTMENTS)
        wait_for(
            lambda: self.watch("firm", "arrears", secrets.token_hex(16)),
            lambda status: status == 201,
        )

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._stack.close()

    # --- what is right ----------------------------------------------------------------------------

    def may_ask(self, uses: int) -> str:
        """A grant of the second firm to ask both owners; its digest."""
        items = [
            word
            for org in DEPARTMENTS
            for word in (
                "--item",
                f"{org}/{DATASETS[org]}/{FIELDS[org]}:compare@{','.join(CUTS[org])}",
            )
        ]
        return self.granted("second", "grant", "draft", *items, "--uses", str(uses))

    def cases(self, grant: str, *, may_be_refused: bool = False) -> list[Case]:
        """All that can be asked under it, and what the tables say."""
        found = []
        for org in DEPARTMENTS:
            table = self.tables[org].set_index("code")
            value = float(table.loc[SECOND, FIELDS[org]])
            for cut in CUTS[org]:
                body = {
                    "grant": grant,
                    "provider": org,
                    "dataset": DATASETS[org],
                    "field": FIELDS[org],
                    "op": "compare",
                    "comparison": "ge",
                    "arg": cut,
                }
                right = "match" if value >= float(cut) else "no_match"
                found.append(Case("/v1/verifications", body, right, may_be_refused))
        return found

    def scoring(self) -> Case:
        """The score of the second firm."""
        body = {"grant": self.grants["score"], "applicant": SECOND}
        return Case("/v1/scores", body, int(self.pooled()[ROW_OF["second"]]))

    # --- watches ----------------------------------------------------------------------------------

    def may_watch(self, firm: str) -> str:
        """A grant to watch what a firm owes; its digest."""
        item = f"power/{DATASETS['power']}/owed:compare@{GRID[1]}"
        asked = ("--item", item, "--channel", "watch", "--uses", str(STEADY))
        drafting = ("grant", "draft", *asked, "--purpose", "post-loan-monitoring")
        return self.granted(firm, *drafting)

    def watch(self, firm: str, rule: str, key: str) -> int:
        """Sign up: that it begins to owe much is an event, which happens to the first firm only.

        The status, 0 if the node was not there.
        """
        body = {
            "grant": self.grants[f"watch {firm}"],
            "provider": "power",
            "rule": rule,
            "dataset": DATASETS["power"],
            "field": "owed",
            "comparison": "ge",
            "arg": GRID[1],
            "debounce_s": 0,
        }
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.api("POST", "/v1/watches", body, **{"Idempotency-Key": key})[0]
        return 0

    def owes(self, owed: float) -> None:
        """What the first firm owes changes, and the utility reads its table again."""
        table = self.tables["power"]
        table.loc[table["code"] == FIRM, "owed"] = owed
        self.write("power")
        self.lianmo("power", "data", "refresh", DATASETS["power"])

    def is_calm(self) -> bool:
        """Whether the utility has looked at its newest table."""
        (newest,) = self.rows("power", "SELECT snapshot FROM dataset")
        return set(self.rows("power", "SELECT snapshot FROM watch WHERE ended IS NULL")) == {newest}

    # --- books ------------------------------------------------------------------------------------

    def rows(self, org: str, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What a home's database says."""
        path = self.folder / org / "state.db"
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            return connection.execute(query, values).fetchall()

    def entries(self, org: str, since: int = 0) -> list[AuditEntry]:
        """An organisation's audit log, from this entry on."""
        query = "SELECT leaf FROM audit_entry WHERE seq >= ? ORDER BY seq"
        return [AuditEntry.from_leaf(leaf) for (leaf,) in self.rows(org, query, since)]

    def logs(self) -> Iterator[tuple[str, str]]:
        """All that the processes have written: by organisation, standard error and files."""
        for org in COMMANDS:
            written = [self.folder / f"{org}.log", *(self.folder / org / "log").glob("*.log*")]
            for path in written:
                if path.exists():
                    yield f"{org}/{path.name}", path.read_text(errors="replace")

    # --- faults -----------------------------------------------------------------------------------

    def family(self, org: str) -> list[int]:
        """An organisation's process and all that it has started."""
        return family(self.processes[org].pid) if org in self.processes else []

    def begin_again(self, org: str) -> None:
        """By the command with which an operator starts it."""
        self.start(org, "-m", "clients.cli.main", *COMMANDS[org])

    def limit_files(self, org: str, limit: int) -> None:
        """No file of these processes may grow beyond it; -1: as before."""
        for pid in self.family(org):
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if limit < 0 else limit, hard))

    def heal(self) -> None:
        """Every process runs and may write, every connection carries, who ended is there again."""
        for proxy in self.proxies.values():
            proxy.heal()
        for org in list(self.processes):
            for pid in self.family(org):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.limit_files(org, -1)

    def ended(self) -> list[str]:
        """Whose process is not there, the coordinator first: the others wait for it."""
        return [
            org
            for org in COMMANDS
            if org not in self.processes or self.processes[org].poll() is not None
        ]

    def throw_nonsense(self, seed: int, lasts_s: float, sealed: bytes) -> list[str]:
        """Spoilt frames, bodies and bytes at every door for so long; what was answered wrongly.

        sealed: a genuine question's frame.
        """
        draw, problems = hostile.seeded(seed), []
        good = json.dumps(self.cases(self.grants["steady"])[0].body).encode()
        stranger, deadline = self.raw(BANK), time.monotonic() + lasts_s
        while time.monotonic() < deadline:
            spoilt = bytearray(sealed)
            spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
            for org in DEPARTMENTS:
                frame = draw.choice((bytes(spoilt), hostile.mutated(draw, sealed)))
                sent = stranger.post(f"/api/v1/sealed/{org}", content=frame)
                problems += _if_bug(sent.status_code, f"a spoilt frame for {org}")
            path, body = draw.choice(DOORS), hostile.json_bodies(draw, good)
            key = f"nonsense-{draw.getrandbits(60):016x}"
            status, _ = self.api("POST", path, body, **{"Idempotency-Key": key})
            problems += _if_bug(status, f"a spoilt body at {path}")
            for data in hostile.raw(draw.getrandbits(30), 3):
                hostile.throw(self.port, data)
        return problems


def _if_bug(status: int, where: str) -> list[str]:
    return [f"{where}: status {status}"] if status >= 500 and status != 503 else []


class Load:
    """A bank's systems: they ask all the time, each thread on, whatever becomes of a request."""

    def __init__(self, world: QuestionWorld, cases: Sequence[Case], seed: int) -> None:
        """cases: drawn from at random."""
        self._world, self._cases = world, cases
        self._stopped, self._seed = threading.Event(), seed
        self._tag = secrets.token_hex(4)  # a seed may run twice in one world
        self.asked: list[Asked] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(THREADS)
        ]

    def start(self) -> None:
        """From now on."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[str]:
        """Ask no more; who still waits for an answer long after there should be one."""
        self._stopped.set()
        deadline = time.monotonic() + ANSWERED_WITHIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hung = sum(thread.is_alive() for thread in self._threads)
        return [f"{hung} requests without an answer after {ANSWERED_WITHIN_S:.0f} s"] * (hung > 0)

    def _run(self, number: int) -> None:
        draw = random.Random(f"{self._seed} {number}")  # noqa: S311 - no secret, to be repeated
        count = 0
        while not self._stopped.wait(PACE_S * draw.random() * 2):
            key = f"{self._tag}-{self._seed}-{number}-{count:06d}"
            count += 1
            asked = Asked(draw.choice(self._cases), key)
            self.asked.append(asked)
            asked.status, asked.answer = put(self._world, asked)


def put(world: QuestionWorld, asked: Asked) -> tuple[int, Any]:
    """The status and body of one POST; (0, None) if the node was not there."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        key = {"Idempotency-Key": asked.key}
        return world.api("POST", asked.case.path, asked.case.body, **key)
    return 0, None
