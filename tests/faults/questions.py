"""Rounds of one fault each while a bank asks and scores, and what has to hold after every one:

right       no answer and no score is wrong, and none is given on what was revoked or used up
uses        debited at least as often as answered, never more often than the grant says
entered     every kept answer stands in its owner's log; its receipt verifies and is cosigned soon
nonce       one signed question is answered once, however often it is sent
once        a repeated Idempotency-Key gives the answer that there was, and always the same one
alerts      each event is told, and told once
errors      name a party and a next step; no process writes a traceback, a value or a credit code
back        questions and scores are answered again within BACK_S, with nothing done by hand but
            starting again what was killed
logs        verify against the databases
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import secrets
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from clients.coordinator_client import CoordinatorClient
from clients.store import opened
from clients.verifier import Verifier, Wanted
from federation.audit import Action, AuditEntry, Receipt, Result, verify_receipt
from federation.catalogue import Question
from federation.enquiry import Answered, Comparison
from federation.envelope import Envelope, sign
from federation.errors import LianmoError
from federation.objects import Usage
from federation.verification import Answer, Ask
from tests.faults.question_world import (
    COMMANDS,
    COSIGNER,
    FEW,
    OWED,
    STEADY,
    Asked,
    Case,
    Load,
    QuestionWorld,
    put,
)
from tests.system.network import PLATFORM
from tests.system.real_nodes import BANK, wait_for
from tests.system.score_city import CANARY, DATASETS, DEPARTMENTS, FIRM, LITTLE, SECOND
from tests.system.secrets_scan import disguises, found_in

BACK_S = 60.0  # a process that ended twice within a minute waits up to 30 s before it starts
COMPLETE_S = 90.0  # of receipts and of what firms are told
RULE = "in-between"  # of the watch that a round signs up for
GONE_ASKED, REPEATED = 12, 10  # cases under revoked grants; keys that are used again
SCORED = 8  # times as often is a score asked for as one question
LASTS_S = (0.3, 1.0, 3.0, 6.0)
NODES = (BANK, *DEPARTMENTS)
# kind -> who it can hit, how often it is drawn
KINDS: dict[str, tuple[tuple[str, ...], int]] = {
    "none": ((PLATFORM,), 1),
    "kill": ((*NODES, PLATFORM, COSIGNER), 6),
    "kill-live": (NODES, 4),
    "outlive": (NODES, 2),  # its node, while the next one starts
    "pause": ((*NODES, PLATFORM, COSIGNER), 2),
    "pause-live": (NODES, 3),
    "cut": (NODES, 3),
    "slow": (NODES, 1),
    "change": (NODES, 1),
    "disk-full": ((*NODES, PLATFORM), 4),
    "nonsense": ((PLATFORM,), 2),
}
# Why an owner may refuse what is granted: before its witnesses have confirmed a start, where a
# repeat comes after a coordinator has forgotten the first, and when its own disk takes nothing.
EXCUSES = {"UNWITNESSED", "REPLAYED", "UNAVAILABLE"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault: of which kind, to whom, how long after the first question, for how long."""

    seed: int
    kind: str
    victim: str
    after_s: float
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.kind} {self.victim} after {self.after_s:.1f} s for {self.lasts_s:g} s"


def plan_of(seed: int) -> Plan:
    """The round's fault; equal seeds give equal faults."""
    draw = random.Random(seed)  # noqa: S311 - no secret: a failure has to be repeatable
    kind = draw.choice([kind for kind, (_, weight) in KINDS.items() for _ in range(weight)])
    victim = draw.choice(KINDS[kind][0])
    return Plan(seed, kind, victim, 0.5 + draw.random() * 1.5, draw.choice(LASTS_S))


@dataclass
class Round:
    """What happened in one round."""

    plan: Plan
    told: Counter[str] = field(default_factory=Counter)  # answers and errors, how many of each
    back_s: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = ", ".join(f"{count} {word}" for word, count in sorted(self.told.items()))
        line = f"seed {self.plan.seed}: {self.plan}: {told}; back after {self.back_s:.1f} s"
        lines = [f"{line}, {self.seconds:.0f} s in all"]
        return "\n".join(lines + [f"    PROBLEM: {text}" for text in self.problems])


class Once:
    """One signed question, sent several times: sealed anew, so that nobody underway knows it."""

    def __init__(self, world: QuestionWorld) -> None:
        self._home, self.answered = world.home(BANK), 0
        what = DATASETS["tax"], "paid", Question.COMPARE, Comparison.GE, "3000"
        with self._verifier() as (verifier, _):
            self._request, bundle = verifier.request(Wanted(world.grants["steady"], "tax", *what))
            signed = sign(self._request, self._home.key(Usage.REQUEST))
            self._content = Ask(request=signed, grant=bundle).to_bytes()
            self.frame = verifier.sealed_to("tax", self._content)

    def send(self) -> None:
        """Once more; what cannot be reached or read is no answer."""
        with contextlib.suppress(LianmoError), self._verifier() as (verifier, client):
            sealed = client.ask_sealed("tax", verifier.sealed_to("tax", self._content))
            answer, _ = verifier.open(self._request, sealed)
            self.answered += answer.result is not Answered.REFUSED

    @contextlib.contextmanager
    def _verifier(self) -> Iterator[tuple[Verifier, CoordinatorClient]]:
        home = self._home
        with opened(home.database_url) as store, CoordinatorClient(home, retry_s=1) as client:
            yield Verifier(home, store, client, lambda: datetime.now(UTC)), client


class Campaign:
    """Rounds over one world, in which everything runs."""

    def __init__(
        self, world: QuestionWorld, say: Callable[[str], None] = lambda text: None
    ) -> None:
        world.grant_all()
        self.world, self._say = world, say
        self._gone: list[Case] = []  # under grants that were revoked
        self._read: Counter[str] = Counter()  # of each log file, characters
        self._entries: dict[str, list[AuditEntry]] = {org: [] for org in DEPARTMENTS}
        self._seen = {"enquiry": 0, "score": 0}  # rows that were checked
        self._answered: Counter[tuple[str, str]] = Counter()  # by grant and owner

    def run(self, plan: Plan) -> Round:
        """One round; everything runs again afterwards."""
        found, began = Round(plan), time.monotonic()
        try:
            self._round(found)
        except (AssertionError, LianmoError, OSError, ValueError) as error:
            found.problems.append(f"{type(error).__name__}: {error}")
            self._recover(found)
        found.seconds = time.monotonic() - began
        self._say(str(found))
        return found

    # --- one round --------------------------------------------------------------------------------

    def _round(self, found: Round) -> None:
        world, plan = self.world, found.plan
        few = world.may_ask(FEW)
        self._revoke_another()
        once, alerts = Once(world), self._alerts()
        cases = [*world.cases(world.grants["steady"]), *world.cases(few, may_be_refused=True)]
        load = Load(world, [*cases, *self._gone, *[world.scoring()] * SCORED], plan.seed)
        load.start()
        time.sleep(plan.after_s)
        key = secrets.token_hex(16)
        with ThreadPoolExecutor(3) as pool:
            sent, event = pool.submit(once.send), pool.submit(world.owes, CANARY)
            signed_up = pool.submit(world.watch, "second", RULE, key)
            found.problems += self._strike(plan, once.frame)
            self._recover(found)
            found.back_s = self._until_back(found)
            found.problems += load.stop()
            found.told[f"sign-up {signed_up.result()}"] += 1
            sent.result()
        if event.exception() is not None:  # the operator's own command failed: it is typed again
            world.owes(CANARY)
        found.told.update(map(_word, load.asked))
        self._check(found, load.asked, few, once, alerts)

    def _revoke_another(self) -> None:
        """A grant that held is revoked, and both owners know it."""
        world = self.world
        grant = world.may_ask(STEADY)
        world.lianmo("second", "grant", "revoke", grant[:16])
        query = "SELECT 1 FROM consent_event WHERE consent = ?"
        for org in DEPARTMENTS:
            wait_for(lambda org=org: world.rows(org, query, grant), bool)  # type: ignore[misc]
        revoked = [dataclasses.replace(case, right="refused") for case in world.cases(grant)]
        self._gone = [*self._gone, *revoked][-GONE_ASKED:]

    def _strike(self, plan: Plan, frame: bytes) -> list[str]:
        """The fault, to its end; what was answered wrongly meanwhile."""
        world, victim = self.world, plan.victim
        if plan.kind == "nonsense":
            return world.throw_nonsense(plan.seed, plan.lasts_s, frame)
        if plan.kind == "kill":
            world.kill(victim)
            time.sleep(min(plan.lasts_s, 3.0))
            world.begin_again(victim)
        elif plan.kind == "kill-live":
            if (pid := world.live(victim)) is not None:
                os.kill(pid, signal.SIGKILL)
        elif plan.kind == "outlive" and (pid := world.live(victim)) is not None:
            os.kill(pid, signal.SIGSTOP)
            world.kill(victim)
            with ThreadPoolExecutor(1) as pool:
                started = pool.submit(world.begin_again, victim)
                time.sleep(plan.lasts_s)
                os.kill(pid, signal.SIGCONT)
                started.result()
        elif plan.kind in ("pause", "pause-live"):
            live = world.live(victim) if victim in NODES else None
            for pid in [live] if plan.kind == "pause-live" and live else world.family(victim):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(plan.lasts_s)
        elif plan.kind == "disk-full":
            world.limit_files(victim, 0)
            time.sleep(plan.lasts_s)
        elif plan.kind == "cut":
            world.proxies[victim].cut(plan.lasts_s)
            time.sleep(plan.lasts_s)
        elif plan.kind == "slow":
            world.proxies[victim].slow(0.3, plan.lasts_s)
            time.sleep(plan.lasts_s)
        elif plan.kind == "change":
            world.proxies[victim].change()
        return []

    def _recover(self, found: Round) -> None:
        """Faults are over, and all processes there again; nobody may have ended by itself."""
        self.world.heal()
        for org in self.world.ended():
            found.problems.append(f"{org} ended by itself")
            self.world.begin_again(org)

    def _until_back(self, found: Round) -> float:
        """Seconds until every owner answers and scores are made."""
        world, began = self.world, time.monotonic()
        wanted = [world.cases(world.grants["steady"])[0], world.cases(world.grants["steady"])[-1]]
        for case in [*wanted, world.scoring()]:
            while True:
                asked = Asked(case, secrets.token_hex(16))
                asked.status, asked.answer = put(world, asked)
                if asked.said == case.right:
                    break
                if time.monotonic() - began > BACK_S:
                    said = f"{asked.status} {asked.answer}"
                    found.problems.append(f"not back after {BACK_S:.0f} s: {said}")
                    return BACK_S
                time.sleep(0.3)
        return time.monotonic() - began

    def _alerts(self) -> int:
        ((count,),) = self.world.rows(BANK, "SELECT COUNT(*) FROM alert")
        return int(count)

    # --- what has to hold -------------------------------------------------------------------------

    def _check(
        self, found: Round, asked: Sequence[Asked], few: str, once: Once, alerts: int
    ) -> None:
        checks: list[Callable[[], list[str]]] = [
            lambda: self._errors(asked),
            lambda: self._once(asked),
            lambda: self._errors(asked),  # of the repeats as well
            lambda: self._nonce(once),
            lambda: self._told_once(alerts),
            self._watched,
            self._complete,
            lambda: self._right(asked),
            lambda: self._refusals(asked, few),
            lambda: self._entered(few),
            self._written,
            self._logs,
        ]
        for check in checks:
            try:
                found.problems += check()
            except (AssertionError, LianmoError, sqlite3.Error) as error:
                found.problems.append(f"{type(error).__name__}: {error}")

    def _once(self, asked: Sequence[Asked]) -> list[str]:
        """One key, one answer: of all that ended badly, and of some that did not."""
        bad = [item for item in asked if item.status != 201]
        good = [item for item in asked if item.status == 201]
        problems = []
        for item in [*bad[:REPEATED], *good[-REPEATED:]]:
            again, third = put(self.world, item), put(self.world, item)
            if again != third or again[0] in (0, 409):
                problems.append(f"one Idempotency-Key gave {again}, then {third}")
            if item.status == 201 and again != (item.status, item.answer):
                problems.append(f"one Idempotency-Key gave {item.answer}, then {again}")
            if item.status != 201:  # it may have been answered only now
                item.status, item.answer = again
        return problems

    def _nonce(self, once: Once) -> list[str]:
        once.send()
        once.send()
        return [f"one question was answered {once.answered} times"] * (once.answered > 1)

    def _told_once(self, before: int) -> list[str]:
        """The event of this round, and no other; then the debtor pays."""
        wait_for(self._alerts, lambda count: count > before)
        self.world.owes(LITTLE)
        wait_for(self.world.is_calm, bool)
        told = self._alerts() - before
        return [f"one event was told {told} times"] * (told != 1)

    def _watched(self) -> list[str]:
        """The bank believes in no watch that its owner does not keep; then this round's ends."""
        kept = "SELECT digest FROM watch WHERE part = 'kept' AND ended IS NULL"
        asked = "SELECT digest FROM watch WHERE part = 'asked' AND ended IS NULL"
        believed = set(self.world.rows(BANK, asked))
        lost = believed - set(self.world.rows("power", kept))
        for item in self.world.api("GET", "/v1/watches?limit=200")[1]["items"]:
            if item["rule"] == RULE and item["ended"] is None:
                self.world.api("POST", f"/v1/watches/{item['id']}/end")
        wait_for(lambda: set(self.world.rows("power", kept)), lambda now: len(now & believed) == 1)
        return [f"{len(lost)} watches that nobody keeps"] * (len(lost) > 0)

    def _complete(self) -> list[str]:
        """Every receipt that the bank has is cosigned in time, and firms are told of every use."""
        query = " UNION ALL ".join(
            f"SELECT COUNT(*) FROM {table} WHERE due_from IS NOT NULL"  # noqa: S608 - constant
            for table in ("enquiry", "score", "alert")
        )

        def waiting() -> dict[str, int]:
            told = "SELECT COUNT(*) FROM use_outbox"
            queries = {BANK: query} | dict.fromkeys(DEPARTMENTS, told)
            return {
                org: sum(count for (count,) in self.world.rows(org, one))
                for org, one in queries.items()
            }

        wait_for(waiting, lambda found: not any(found.values()), COMPLETE_S)
        return []

    def _right(self, asked: Sequence[Asked]) -> list[str]:
        allowed = {"refused", None}
        return [
            f"{item.case.body}: {item.said} instead of {item.case.right}"
            for item in asked
            if item.said not in {item.case.right, *allowed}
        ]

    def _refusals(self, asked: Sequence[Asked], few: str) -> list[str]:
        """A refusal stands in the log, and of what is granted it has an excuse."""
        problems, reasons = list[str](), {}
        always = {self.world.grants["steady"], self.world.grants["score"]}
        for org, entries in self._entries.items():
            new = self.world.entries(org, len(entries))
            entries += new
            for entry in new:
                if entry.outcome is Result.REFUSED and entry.reason is not None:
                    reasons[entry.object] = reason = entry.reason.value
                    if entry.job in always and reason not in EXCUSES:
                        problems.append(f"{org} refused what is granted: {reason}, entry {entry}")
            admitted = Counter(
                (entry.object, entry.attempt)
                for entry in entries
                if entry.action is Action.ASKED and entry.outcome is Result.ADMITTED
                if entry.attempt is not None  # an alert's has none: a watch tells of many events
            )
            twice = sum(count > 1 for count in admitted.values())
            problems += [f"{org} admitted {twice} questions twice"] * (twice > 0)
        query = "SELECT request FROM enquiry WHERE id = ?"
        for item in asked:
            if item.said != "refused" or item.case.right == "refused":
                continue
            ((digest,),) = self.world.rows(BANK, query, item.answer["id"])
            reason = reasons.get(digest, "nothing in the log")
            if reason not in EXCUSES and not (item.case.may_be_refused and reason == "USES"):
                problems.append(f"{item.case.body['provider']} refused with {reason}")
        return problems

    def _entered(self, few: str) -> list[str]:
        """Answers and scores that the bank keeps, against the owners' logs and books."""
        world, problems = self.world, []
        trust = world.home(COSIGNER).trust()
        query = "SELECT number, answer, receipt FROM enquiry WHERE number > ? AND result IN "
        query += "('match', 'no_match', 'no_record')"
        kept: list[tuple[str, Receipt]] = []  # digest of an answer, its receipt
        for number, answer, receipt in world.rows(BANK, query, self._seen["enquiry"]):
            self._seen["enquiry"] = max(self._seen["enquiry"], number)
            digest = Envelope.from_json(answer).unverified(Answer).digest()
            kept.append((digest, Receipt.from_json(receipt)))
        query = "SELECT number, id FROM score WHERE number > ? AND points IS NOT NULL"
        for number, name in world.rows(BANK, query, self._seen["score"]):
            self._seen["score"] = max(self._seen["score"], number)
            stored = world.stored(name)
            sources = () if stored.score is None else stored.score.sources
            kept += [(source.answer, stored.receipts[source.org]) for source in sources]
        for digest, receipt in kept:
            proven = verify_receipt(receipt, trust)
            entry = self._entries[proven.org][proven.entry.seq]
            if entry != proven.entry or entry.object != digest or entry.job is None:
                problems.append(f"an answer of {proven.org} is not in its log")
                continue
            if receipt.status != "cosigned":
                problems.append(f"a receipt of {proven.org} is {receipt.status}")
            self._answered[entry.job, proven.org] += 1
        for (grant, org), answered in self._answered.items():
            ((uses,),) = world.rows(org, "SELECT uses FROM consent WHERE digest = ?", grant)
            most = FEW if grant == few else STEADY
            if not answered <= uses <= most:
                problems.append(f"{org}: {answered} answers, {uses} uses, of {most}")
        return problems

    def _errors(self, asked: Sequence[Asked]) -> list[str]:
        """What the bank's systems read: who, and what to do."""
        found = {
            (item.status, item.answer["detail"], item.answer["party"], item.answer["todo"])
            for item in asked
            if item.status >= 400
        }
        return [
            f"status {status}, {detail!r}: party {party!r}, next step {todo!r}"
            for status, detail, party, todo in found
            if party not in COMMANDS or not todo or status == 500
        ]

    def _written(self) -> list[str]:
        """No traceback, no value, no credit code in what processes write."""
        problems = []
        secrets_ = {"what the first firm owes": CANARY, "what the second firm owes": OWED}
        patterns = {name: disguises(value) for name, value in secrets_.items()}
        patterns |= {f"the code of {code}": [code.encode()] for code in (FIRM, SECOND)}
        for name, text in self.world.logs():
            new = text[self._read[name] :]
            self._read[name] = len(text)
            at = new.find("Traceback")
            problems += [f"{name}: {new[max(0, at - 300) : at + 1500]}"] * (at >= 0)
            problems += [f"{name} has {what}" for what in found_in(new.encode(), patterns)]
        return problems

    def _logs(self) -> list[str]:
        return [
            f"the audit log of {org} does not verify"
            for org in COMMANDS
            if not self.world.lianmo(org, "audit", "verify")["ok"]
        ]


def _word(asked: Asked) -> str:
    """What came of a request, for the round's line."""
    if asked.status == 0:
        return "no node"
    if asked.status == 201:
        return "score" if asked.case.path == "/v1/scores" else str(asked.said)
    return f"{asked.status} of {asked.answer['party'] or 'nobody'}"
