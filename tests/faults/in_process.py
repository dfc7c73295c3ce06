"""Rounds in one process: a fault at any single frame, or a clock that jumps.

A job's parties with their real programs over queues; one of them crashes at a frame, or a frame is
held back, lost, repeated, changed or told out of turn. What a job does after a crash is resumed
from the parties' checkpoints: the model is then that of an undisturbed job, byte for byte. What TLS
would have kept out ends with a named error and no model.

The clock rounds put a node's audit log under a clock that jumps by days between its entries.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

from federation.channel import Channel, Transport, in_process
from federation.errors import IntegrityError, LianmoError, PartyLost, Refused
from federation.objects import JobManifest
from federation.tasks.checkpoints import MemoryCheckpointBook
from federation.tasks.local import local_seeds, run_scorecard_in_process
from federation.tasks.model_files import model_to_json, part_to_json
from protocols.errors import ProtocolError
from tests.clients.audit_log import JOBS, NOW, make_node, reopened
from tests.federation.scorecard_data import World, make_world

ORGS = ("bank", "dept_0", "dept_1")
ATTEMPTS = 3
SILENCE_S = 1.5  # after so long a party that says nothing is lost
KINDS = ("crash", "crash", "crash", "silence", "delay", "repeat", "change", "swap", "clock")


class Crash(RuntimeError):
    """The party's process ends here: what it held in memory is gone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault in one direction of one channel, or a jumping clock."""

    seed: int
    kind: str
    party: str
    peer: str
    frame: int
    is_sending: bool

    def __str__(self) -> str:
        if self.kind == "clock":
            return "in process: clock jumps under an audit log"
        way = "to" if self.is_sending else "from"
        return f"in process: {self.kind} {self.party} at frame {self.frame} {way} {self.peer}"


def plan_of(seed: int) -> Plan:
    """Equal seeds give equal faults."""
    draw = random.Random(seed)  # noqa: S311 - no secret: a failure has to be repeatable
    kind = draw.choice(KINDS)
    party, peer = draw.sample(ORGS, 2)
    return Plan(
        seed, kind, party, peer, draw.randrange(frames_of(party, peer)), draw.random() < 0.5
    )


@dataclass
class Faulty:
    """A transport of one party; its fault strikes once."""

    inner: Transport
    plan: Plan
    sent: int = 0
    received: int = 0
    is_silent: bool = False
    held: list[bytes] = field(default_factory=list)

    def send(self, frame: bytes) -> None:
        self.sent += 1
        is_due = self.plan.is_sending and self.sent == self.plan.frame + 1
        kind = self.plan.kind if is_due else ""
        if kind == "crash":
            self.is_silent = True
            raise Crash
        self.is_silent = self.is_silent or kind == "silence"
        if self.is_silent:
            return
        if kind == "delay":
            time.sleep(0.3)
        if kind == "swap":
            self.held.append(frame)
            return
        if kind == "change":
            middle = len(frame) // 2
            frame = frame[:middle] + bytes([frame[middle] ^ 1]) + frame[middle + 1 :]
        self.inner.send(frame)
        if kind == "repeat":
            self.inner.send(frame)
        while self.held:
            self.inner.send(self.held.pop())

    def receive(self, timeout_s: float) -> bytes:
        is_due = not self.plan.is_sending and self.received == self.plan.frame
        kind = self.plan.kind if is_due else ""
        if kind == "crash":
            self.is_silent = True
            raise Crash
        if kind == "silence":
            time.sleep(timeout_s)
            raise TimeoutError
        if self.held:
            return self.held.pop()
        frame = self.inner.receive(timeout_s)
        self.received += 1
        if kind == "swap":  # the next one comes first
            self.held.append(frame)
            return self.inner.receive(timeout_s)
        if kind == "delay":
            time.sleep(0.3)
        if kind == "change":
            middle = len(frame) // 2
            return frame[:middle] + bytes([frame[middle] ^ 1]) + frame[middle + 1 :]
        if kind == "repeat":
            self.held.append(frame)
        return frame

    def close(self) -> None:
        self.inner.close()


@cache
def world() -> World:
    return make_world(rows=240, customers=200)


@cache
def manifest() -> JobManifest:
    return world().manifest(openings=1, evaluation=True, min_cohort=20, max_bins=8)


def _attempt(
    number: int, books: dict[str, MemoryCheckpointBook], plan: Plan | None
) -> tuple[dict[str, bytes], dict[tuple[str, str], int]]:
    """Every party's part of the model, and how many frames each sent to whom."""
    links = {
        me: {
            peer: Channel(me, peer, _over(item, plan, me, peer), timeout_s=SILENCE_S)
            for peer, item in peers.items()
        }
        for me, peers in in_process(ORGS).items()
    }
    done = run_scorecard_in_process(
        world().bank,
        world().departments,
        manifest(),
        local_seeds(ORGS, number),
        attempt=number,
        checkpoints=books,
        first_seeds=local_seeds(ORGS, 1),
        channels=links,
    )
    model = {"bank": model_to_json(done.result.model)}
    model |= {org: part_to_json(part) for org, part in done.parts.items()}
    sent = {(me, peer): item._sent for me, peers in links.items() for peer, item in peers.items()}
    return model, sent


def _over(item: Channel, plan: Plan | None, me: str, peer: str) -> Transport:
    if plan is None or (me, peer) != (plan.party, plan.peer):
        return item._transport
    return Faulty(item._transport, plan)


@cache
def undisturbed() -> tuple[dict[str, bytes], dict[tuple[str, str], int]]:
    return _attempt(1, {org: MemoryCheckpointBook() for org in ORGS}, None)


def frames_of(party: str, peer: str) -> int:
    """How many frames a quiet job sends in the rarer direction."""
    sent = undisturbed()[1]
    return min(sent[party, peer], sent[peer, party])


def run(seed: int) -> tuple[str, list[str]]:
    """The round of a seed: what happened, in one line, and what was wrong."""
    plan = plan_of(seed)
    if plan.kind == "clock":
        return f"seed {seed}: {plan}", _clock_round(seed)
    books = {org: MemoryCheckpointBook() for org in ORGS}
    began, ended, problems = time.monotonic(), "", []
    for number in range(1, ATTEMPTS + 1):
        try:
            model, _ = _attempt(number, books, plan if number == 1 else None)
        except (Crash, PartyLost) as error:
            ended = f"{type(error).__name__}; "
            continue
        except (LianmoError, ProtocolError) as error:
            ended += f"{type(error).__name__}, attempt {number}"
            if plan.kind in ("crash", "silence", "delay"):
                problems.append(f"not resumed: {error}")
            elif not isinstance(error, IntegrityError) or not (error.party and error.stage):
                problems.append(f"an error without party or stage: {error!r}")
            break
        ended += f"succeeded, attempt {number}"
        if model != undisturbed()[0]:
            problems.append("the model is not that of an undisturbed job")
        break
    else:
        problems.append(f"not ended well after {ATTEMPTS} attempts")
    seconds = time.monotonic() - began
    if seconds > ATTEMPTS * (SILENCE_S * 3 + 20):
        problems.append(f"took {seconds:.0f} s")
    problems += [f"a thread goes on: {t.name}" for t in threading.enumerate() if t.name in ORGS]
    return f"seed {seed}: {plan}: {ended}, {seconds:.1f} s", problems


def _clock_round(seed: int) -> list[str]:
    """Entries under a clock that jumps: times never go back, nothing counts less than it was."""
    draw = random.Random(seed)  # noqa: S311 - no secret: a failure has to be repeatable
    problems, reserved = [], 0
    with tempfile.TemporaryDirectory() as name, make_node(Path(name)) as node:
        now = NOW
        for attempt in range(1, 13):
            now += timedelta(seconds=draw.choice((1, 60, -60, 86_400, -86_400, 30, 121, -119)))
            before = len(node.log.entries())
            try:
                node.log.require_clock(now)
            except Refused as error:
                if len(node.log.entries()) != before or not error.todo:
                    problems.append("a refused entry was counted, or nobody knows what to do")
                now = max(now, NOW + timedelta(seconds=before))
                continue
            node.reserve(JOBS[0], 2, now, attempt)
            reserved += 2
            if draw.random() < 0.5:
                node.spend(JOBS[0], 1, now, attempt)
                reserved -= 1
        with reopened(node.home) as again:
            times = [entry.time for entry in again.log.entries()]
            ticks = [entry.tick for entry in again.log.entries()]
            if times != sorted(times) or ticks != sorted(set(ticks)):
                problems.append("the log goes back in time")
            problems += again.log.verify().problems
            if (counted := again.store.exposure.tokens("bank_a", "payments")) < reserved:
                problems.append(f"{counted} tokens are counted, {reserved} were let in")
    return problems
