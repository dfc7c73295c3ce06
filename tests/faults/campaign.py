"""Rounds of one job and one fault each, and what has to hold after every one of them:

ended       within BOUND_S, whatever happened
model       right, or none: it scores every customer as the bank's report says, and as well as
            an undisturbed model does
message     of a job that failed: who, at which stage, what to do
logs        of all four organisations verify against their databases
receipts    of all records verify
tokens      each is spent on one query, and both ends' books say the same one
exposure    never below what was really answered
lost        nothing: every earlier job, record and dataset is still there
"""

from __future__ import annotations

import io
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from federation.api import JobDetail, JobStatus
from federation.errors import LianmoError
from federation.tasks.model_files import model_from_json
from protocols.streams import digest
from tests.faults.plans import BANK, DEPARTMENTS, NODES, PLATFORM, Plan, plan_of
from tests.faults.world import KINDS, WALL_TIME_S, World, is_reachable

BOUND_S = WALL_TIME_S + 30.0  # after this a round counts as hung
DOWN_S = 1.0  # between a kill and the start, at least
# Between two jobs, disturbed or not: each draws its hold-out of 30 % and its roundings anew. (That
# one job's attempts all lead to the same model, byte for byte: tests/faults/in_process.py.)
AUC_TOLERANCE = 0.03
ROUNDING = len(DEPARTMENTS)  # points: each department rounds its own sum of points once


@dataclass
class Round:
    """What happened in one round."""

    plan: Plan
    status: str = ""
    message: str = ""
    attempts: int = 0
    seconds: float = 0.0
    stage: str = ""  # where the parties were when it struck
    auc: float = 0.0
    hit: bool = True
    ended_by_itself: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.plan} [{self.stage or 'no stage'}{'' if self.hit else ', nobody hit'}]"
        end = f"{self.status}, {self.attempts} attempts, {self.seconds:.1f} s"
        end += f", AUC {self.auc:.4f}" if self.auc else ""
        lines = [f"seed {self.plan.seed}: {what}: {end}"]
        lines += [f"    message: {self.message}"] if self.message else []
        lines += [f"    {org} ended by itself: {why}" for org, why in self.ended_by_itself.items()]
        lines += [f"    PROBLEM: {text}" for text in self.problems]
        return "\n".join(lines)


class Campaign:
    """Rounds over one world."""

    def __init__(self, world: World, say: Callable[[str], None] = lambda text: None) -> None:
        self.world, self._say = world, say
        self._ended: dict[str, tuple[str, int]] = {}  # job -> status and records, as they were
        self.usual_s, self.usual_auc = 0.0, 0.0

    def calibrate(self) -> Round:
        """An undisturbed job: how long it takes and how good its model is."""
        quiet = Plan(0, "none", PLATFORM, None, 0.0, 0.0)
        warm = self._round(quiet, "warm")  # the nodes import and load what a first job needs
        found = self._round(quiet, "quiet")
        found.problems += warm.problems
        self.usual_s = found.seconds
        if found.status == JobStatus.SUCCEEDED:
            self.usual_auc = self._auc("quiet")
        return found

    def run(self, seed: int) -> Round:
        """The round of a seed."""
        try:
            found = self._round(plan_of(seed), f"round-{seed}")
        except (AssertionError, LianmoError) as error:
            found = Round(plan_of(seed), status="broken", problems=[str(error)])
            self._recover(found)
        self._say(str(found))
        return found

    # --- one round --------------------------------------------------------------------------------

    def _round(self, plan: Plan, job: str) -> Round:
        found = Round(plan)
        manifest = self.world.propose(job)
        self.world.approve(job, manifest)
        began = time.monotonic()
        found.stage = self._wait_for_moment(plan, job, began)
        found.hit = self._strike(plan)
        detail = self._wait_for_end(job, began + BOUND_S + plan.lasts_s)
        found.seconds = time.monotonic() - began
        self._recover(found)
        if detail is None:
            found.status = "hung"
            found.problems.append(f"not ended after {BOUND_S + plan.lasts_s:.0f} s")
            self.world.run(PLATFORM, "job", "stop", job, check=False)
            return found
        found.status, found.message = str(detail.status), detail.message
        found.attempts = detail.attempt
        self._settle(detail.attempt, manifest)
        self._check(found, job, detail, manifest)
        self._ended[job] = str(detail.status), len(detail.records)
        return found

    def _wait_for_moment(self, plan: Plan, job: str, began: float) -> str:
        """Until the fault is due; the stages that the parties were in."""
        deadline = began + (plan.at_share * self.usual_s if plan.at_stage is None else BOUND_S)
        stages: dict[str, str] = {}
        with self.world.platform() as client:
            while time.monotonic() < deadline:
                detail = client.job(job)
                stages = {org: item.stage for org, item in (detail.progress or {}).items()}
                if detail.status.is_final or plan.at_stage in stages.values():
                    break
                time.sleep(0.05)
        return ", ".join(sorted(set(stages.values())))

    def _strike(self, plan: Plan) -> bool:
        """The fault, to its end; whether there was anybody to hit."""
        world, victim = self.world, plan.victim
        if plan.kind == "none":
            return True
        if plan.kind == "kill":
            hit = world.kill(victim)
            if victim in KINDS:
                time.sleep(min(plan.lasts_s, 3.0) * DOWN_S)
                world.start(victim)
            return hit
        if plan.kind == "pause":
            if (pid := world.pid(victim)) is None:
                return False
            os.kill(pid, signal.SIGSTOP)
            time.sleep(plan.lasts_s)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            return True
        if plan.kind == "disk-full":
            world.fill_disk(victim)
            time.sleep(plan.lasts_s)
            world.heal()
            return True
        proxy = world.proxies[victim]
        act: dict[str, Callable[[], None]] = {
            "cut": lambda: proxy.cut(plan.lasts_s),
            "slow": lambda: proxy.slow(0.3, plan.lasts_s),
            "repeat": proxy.repeat,
            "change": proxy.change,
        }
        act[plan.kind]()
        return True

    def _wait_for_end(self, job: str, deadline: float) -> JobDetail | None:
        while time.monotonic() < deadline:
            with suppress(LianmoError), self.world.platform() as client:
                while time.monotonic() < deadline:
                    detail = client.job(job)
                    if detail.status.is_final:
                        return detail
                    time.sleep(0.1)
            for org in self.world.ended():  # as whoever keeps it running would
                with suppress(LianmoError):
                    self.world.start(org)
            time.sleep(0.2)
        return None

    def _recover(self, found: Round) -> None:
        """All processes are there again; who ended without being killed is remembered."""
        self.world.heal()
        for org in self.world.ended():
            last = self.world.log(org).strip().splitlines()[-1:] or ["it said nothing"]
            found.ended_by_itself[org] = last[0]
            if "Traceback" in self.world.log(org):
                found.problems.append(f"{org} ended with a traceback")
            self.world.start(org)
        deadline = time.monotonic() + 20
        while not is_reachable(self.world) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _settle(self, attempt: int, manifest: str) -> None:
        """Nodes that heard of the end last close their attempts a moment after it."""
        del attempt
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            rows = [
                row
                for org in DEPARTMENTS
                for row in self._rows(
                    org, "SELECT closed FROM exposure WHERE manifest = ?", manifest
                )
            ]
            if all(closed is not None for (closed,) in rows):
                return
            time.sleep(0.1)

    # --- what has to hold -------------------------------------------------------------------------

    def _check(self, found: Round, job: str, detail: JobDetail, manifest: str) -> None:
        checks: list[Callable[[], list[str]]] = [
            lambda: self._model(found, job, detail),
            lambda: self._message(detail),
            self._logs,
            lambda: self._receipts(job, detail),
            lambda: self._tokens(manifest),
            lambda: self._exposure(manifest),
            self._nothing_lost,
        ]
        for check in checks:
            try:
                found.problems += check()
            except (AssertionError, LianmoError, sqlite3.Error) as error:
                found.problems.append(f"{type(error).__name__}: {error}")

    def _model(self, found: Round, job: str, detail: JobDetail) -> list[str]:
        """Right, or none."""
        path = self.world.home(BANK).models / f"{job}.json"
        is_there = path.is_file()
        if detail.status is not JobStatus.SUCCEEDED and not is_there:
            return []
        if not is_there:
            return ["the job succeeded, and the bank has no model"]
        model, problems = model_from_json(path.read_bytes()), []
        exact = model.score(self.world.pooled(), len(self.world.tables[BANK]))
        opened = self._scores(job)
        if np.abs(exact - opened).max() > ROUNDING:
            problems.append("the opened scores are not those of the model")
        found.auc = self._auc(job)
        if found.auc < self.usual_auc - AUC_TOLERANCE:
            problems.append(f"the model separates worse than AUC {self.usual_auc:.4f}")
        if detail.status is JobStatus.SUCCEEDED:
            problems += [
                f"{org} has no part of the model"
                for org in DEPARTMENTS
                if not (self.world.home(org).models / f"{job}.json").is_file()
            ]
        return problems

    def _scores(self, job: str) -> np.ndarray[Any, Any]:
        content = (self.world.home(BANK).runs(job) / "scores.parquet").read_bytes()
        frame = pd.read_parquet(io.BytesIO(content)).set_index("credit_code")
        return frame.loc[self.world.tables[BANK]["code"], "points"].to_numpy()

    def _auc(self, job: str) -> float:
        path = self.world.home(BANK).models / f"{job}.json"
        model = model_from_json(path.read_bytes())
        points = model.score(self.world.pooled(), len(self.world.tables[BANK]))
        return float(roc_auc_score(1 - self.world.tables[BANK]["bad"], points))

    def _message(self, detail: JobDetail) -> list[str]:
        """Of a job that did not succeed: the party, the stage, the next step."""
        if detail.status is JobStatus.SUCCEEDED:
            return []
        text, missing = detail.message, []
        if not re.search(rf"\b({'|'.join(NODES)}|coordinator)\b", text):
            missing.append("no party")
        if "stage " not in text:
            missing.append("no stage")
        if not re.search(r"\b(run|ask|see|look|start|submit|propose|raise|reason is in)\b", text):
            missing.append("no next step")
        return [f"{', '.join(missing)} in the message: {text!r}"] if missing else []

    def _logs(self) -> list[str]:
        problems = []
        for org in (PLATFORM, *NODES):
            said = self.world.run(org, "audit", "verify", "--json", check=False)
            if said.code != 0:
                problems.append(f"the audit log of {org}: {said.out or said.err}")
        return problems

    def _receipts(self, job: str, detail: JobDetail) -> list[str]:
        told = self.world.run(PLATFORM, "job", "disclosures", job, "--json").json()
        problems = list(told["problems"])
        if detail.status is JobStatus.SUCCEEDED and set(told["receipts"]) != set(NODES):
            problems.append(f"receipts of {', '.join(told['receipts']) or 'nobody'} only")
        for org in NODES:
            folder = self.world.box.home(org) / "runs" / job
            for file in folder.glob("*/receipt.json"):
                record = str(file.with_name("record.json"))
                words = ("receipt", "verify", str(file), "--object", record)
                said = self.world.run(PLATFORM, *words, check=False)
                if said.code != 0:
                    problems.append(f"a receipt of {org}: {said.err}")
        return problems

    def _tokens(self, manifest: str) -> list[str]:
        """What a department answered is exactly what the querier wrote into its book before."""
        key = "manifest, attempt, querier, matrix, batch, place"
        problems, asked = [], {}
        for org in NODES:
            query = f"SELECT {key}, digest FROM spent WHERE manifest = ?"  # noqa: S608 - constant
            for *token, spent in self._rows(org, query, manifest):
                asked[tuple(token)] = spent
        for org in DEPARTMENTS:
            query = f"SELECT {key}, digest FROM answer WHERE manifest = ?"  # noqa: S608 - constant
            for *token, answered in self._rows(org, query, manifest):
                spent = asked.get(tuple(token))
                if spent is None:
                    problems.append(f"{org} answered a token that nobody's book has as spent")
                elif answered not in {digest(spent, "plain"), digest(spent, "masked")}:
                    problems.append(f"a token was spent on two queries, {org} saw the other one")
        return problems

    def _exposure(self, manifest: str) -> list[str]:
        problems = []
        for org in DEPARTMENTS:
            answered: dict[int, int] = {}
            for table in ("answer", "spent"):
                query = f"SELECT attempt, COUNT(*) FROM {table} WHERE manifest = ? GROUP BY attempt"  # noqa: S608 - constant
                for attempt, count in self._rows(org, query, manifest):
                    answered[attempt] = answered.get(attempt, 0) + count
            query = "SELECT attempt, tokens, closed FROM exposure WHERE manifest = ?"
            counted = {a: tokens for a, tokens, _ in self._rows(org, query, manifest)}
            for attempt, tokens in answered.items():
                if counted.get(attempt, 0) < tokens:
                    problems.append(
                        f"{org} counts {counted.get(attempt, 0)} tokens of attempt {attempt}, "
                        f"{tokens} were used"
                    )
        return problems

    def _nothing_lost(self) -> list[str]:
        problems = []
        with self.world.platform() as client:
            for job, (status, records) in list(self._ended.items())[-5:]:
                detail = client.job(job)
                if (str(detail.status), len(detail.records)) != (status, records):
                    problems.append(f"{job} was {status} and is {detail.status}")
        for org in (PLATFORM, *NODES):
            for name in ("coordinator.db", "superlink.db", "state.db"):
                path = self.world.box.home(org) / name
                if path.is_file():
                    ((word,),) = _query(path, "PRAGMA integrity_check")
                    if word != "ok":
                        problems.append(f"{name} of {org}: {word}")
        return problems

    def _rows(self, org: str, query: str, *values: str) -> list[tuple[Any, ...]]:
        return _query(self.world.box.home(org) / "state.db", query, *values)


def _query(path: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return connection.execute(query, values).fetchall()
