"""What a node does with orders that come once, twice, again after a crash, or from a liar."""

from __future__ import annotations

import errno
import hashlib
import queue
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clients.attempts import output_digest
from clients.home import Home
from clients.runner import TURN, Admission, Books, Outcome, Runner, pair_seeds
from federation import fab
from federation.api import JobStatus, ProgressAnswer, ProgressBody, TrainOrder, TrainReply
from federation.audit import Check, Receipt
from federation.channel import QueueTransport, Transport
from federation.checks import ApprovedJob, check_job
from federation.envelope import Envelope, sign
from federation.errors import LianmoError, PartyLost, RefusalCode, Refused
from federation.objects import JobManifest, RunRecord, Usage, utc_text
from federation.package import package_sha256
from federation.tasks.party import Party
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.errors import ProtocolError
from protocols.row_key_books import MemoryAttemptBook, MemoryReplyBook
from protocols.secagg_books import MemoryRoundBook
from tests.federation.parties import CODES, make_approval, make_manifest

BANK, TAX, COURT = "bank-a", "tax", "court"
ORGS = {BANK: "bank", TAX: "department", COURT: "department"}


@dataclass
class Checked:
    job: ApprovedJob
    snapshot_digest: str = "0" * 64


@dataclass
class CheckingGate:
    """The checks of the gate without its data."""

    home: Home
    admitted: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    withdrawn: bool = False

    def admit(
        self,
        manifest: Envelope,
        approvals: Sequence[Envelope],
        *,
        fab: bytes,
        run_config: Mapping[str, object],
        attempt: int,
    ) -> Checked:
        trust, now = self.home.trust(), datetime.now(UTC)
        me, package = self.home.org, package_sha256()
        standing = self.home.standing()
        job = check_job(
            manifest, approvals, trust, now, me=me, package_sha256=package, standing=standing
        )
        _same(manifest, fab, run_config)
        self.admitted.append(attempt)
        return Checked(job)

    def require_in_force(self, job: ApprovedJob) -> None:
        if self.withdrawn:
            raise Refused("withdraw was said to this job")

    def close(self, manifest: str, attempt: int) -> None:
        self.closed.append(attempt)


def _same(manifest: Envelope, bundle: bytes, run_config: Mapping[str, object]) -> None:
    fab.require_same(manifest, bundle, dict(run_config))


class Queues:
    """In place of the relay: one queue a direction and attempt."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, str, str], queue.Queue[bytes]] = {}

    def of(self, me: str) -> Any:
        class Relay:
            def transport(_, manifest_digest: bytes, attempt: int, peer: str) -> Transport:
                out = self._queues.setdefault((attempt, me, peer), queue.Queue())
                return QueueTransport(
                    out, self._queues.setdefault((attempt, peer, me), queue.Queue())
                )

        return Relay()


@dataclass
class Board:
    """In place of the coordinator: remembers progress, says how the job is."""

    status: JobStatus = JobStatus.RUNNING
    told: list[ProgressBody] = field(default_factory=list)

    def progress(self, job: str, body: ProgressBody) -> ProgressAnswer:
        self.told.append(body)
        return ProgressAnswer(status=self.status)


RECEIPT = Receipt(org=TAX, key_id="0" * 32, origin="a-log", leaf="", proof="")


@dataclass
class Entries:
    """In place of the audit log: what it was told."""

    refusals: list[tuple[int, Check]] = field(default_factory=list)
    records: list[Envelope] = field(default_factory=list)

    def refused(
        self, manifest: str, attempt: int, check: Check, error: LianmoError, now: datetime
    ) -> None:
        self.refusals.append((attempt, check))

    def ran(self, record: Envelope, now: datetime) -> Receipt:
        self.records.append(record)
        return RECEIPT


def memory_books() -> Books:
    """What a process of a test remembers, and no longer."""
    return Books(
        MemorySpentBook(),
        MemoryAnswerBook(),
        MemoryReplyBook(),
        MemoryAttemptBook(),
        MemoryRoundBook(),
    )


class City:
    def __init__(self, folder: Path) -> None:
        self.homes = {
            org: Home.create(folder / org, org=org, kind=kind, name=org, uscc=code, region="厦门")
            for code, (org, kind) in zip(CODES, ORGS.items(), strict=False)
        }
        for home in self.homes.values():
            for other in self.homes.values():
                if home is not other:
                    home.trust_card(other.card())
        self.queues, self.board = Queues(), Board()
        self.audits = {org: Entries() for org in self.homes}
        self.gates = {org: CheckingGate(home) for org, home in self.homes.items()}
        self.program: Callable[[Party, Admission], Outcome] = lambda party, _: Outcome(b"{}")
        self.runs = 0

    def runner(self, org: str, **options: Any) -> Runner:
        def program(party: Party, admission: Admission) -> Outcome:
            self.runs += 1
            return self.program(party, admission)

        return Runner(
            self.homes[org],
            gate=self.gates[org],
            program=program,
            relay=self.queues.of(org),
            coordinator=self.board,
            books=memory_books(),
            audit=self.audits[org],
            now=lambda: datetime.now(UTC),
            **({"hold_s": 5.0} | options),
        )

    def order(self, attempt: int = 1, **changes: Any) -> TrainOrder:
        now = datetime.now(UTC)
        times = {"created": utc_text(now), "not_before": utc_text(now - timedelta(minutes=1))}
        plain = {"package_sha256": package_sha256(), "expires": utc_text(now + timedelta(hours=1))}
        manifest = make_manifest(BANK, [TAX, COURT], **(times | plain | changes))
        valid = {"valid_from": utc_text(now - timedelta(minutes=1))}
        valid |= {"created": utc_text(now), "valid_until": utc_text(now + timedelta(hours=1))}
        return TrainOrder(
            manifest=sign(manifest, self.homes[BANK].key(Usage.PROPOSE)),
            approvals=tuple(
                sign(
                    make_approval(org, manifest.digest(), **valid),
                    self.homes[org].key(Usage.APPROVE),
                )
                for org in (TAX, COURT)
            ),
            attempt=attempt,
        )


@pytest.fixture
def city(tmp_path: Path) -> City:
    return City(tmp_path)


def train(runner: Runner, order: TrainOrder) -> TrainReply:
    return runner.train(order, fab.build(order.manifest), dict(run_config(order)))


def run_config(order: TrainOrder) -> dict[str, str]:
    return fab.expected_run_config(order.manifest)


def record(city: City, reply: TrainReply) -> RunRecord:
    assert reply.record is not None
    trust = city.homes[BANK].trust()
    return trust.verify(reply.record, RunRecord, Usage.RUN, datetime.now(UTC)).object


def test_an_order_is_run_once_and_its_last_word_is_kept(city: City) -> None:
    order, runner = city.order(), city.runner(TAX)
    first = train(runner, order)
    assert first.state == "succeeded"
    assert [train(runner, order), train(city.runner(TAX), order)] == [first, first]  # as if new
    assert city.runs == 1
    found = record(city, first)
    assert (found.org, found.attempt, found.outcome) == (TAX, 1, "succeeded")
    assert found.output is not None
    assert city.gates[TAX].closed == [1]
    assert city.audits[TAX].records == [first.record]
    assert first.receipt == RECEIPT
    receipts = city.homes[TAX].path.rglob("receipt.json")  # the attempt's, and the job's newest
    assert [file.read_bytes() for file in receipts] == [RECEIPT.to_json()] * 2


def test_a_long_run_is_answered_with_running_until_it_ends(city: City) -> None:
    go = threading.Event()

    def program(party: Party, admission: Admission) -> Outcome:
        with party.at("fit"):
            go.wait(10)
        return Outcome(b"{}")

    city.program = program
    runner, order = city.runner(TAX, hold_s=0.1), city.order()
    assert train(runner, order).state == "running"
    assert train(runner, order).state == "running"
    go.set()
    assert eventually(lambda: train(runner, order).state == "succeeded")
    assert city.runs == 1
    assert city.board.told[-1].stage == "fit"


def test_after_a_crash_the_attempt_is_lost_and_a_new_one_has_new_secrets(city: City) -> None:
    seeds: list[bytes] = []

    def program(party: Party, admission: Admission) -> Outcome:
        seeds.append(party.randomness.master)
        return Outcome(b"{}")

    city.program = program
    train(city.runner(TAX), city.order())
    folder = next((city.homes[TAX].path / "runs" / "sme-card-1").glob("*-1"))
    for name in ("reply.json", "record.json", "receipt.json"):  # what a crash in the middle leaves
        (folder / name).unlink()
    order = city.order()
    folder.rename(folder.with_name(f"{order.manifest.unverified(JobManifest).digest()[:16]}-1"))
    lost = train(city.runner(TAX), order)
    assert lost.state == "lost"
    assert record(city, lost).outcome == "failed"
    assert city.audits[TAX].records[-1] == lost.record
    assert train(city.runner(TAX), order) == lost  # and is entered once
    assert len(city.audits[TAX].records) == 2
    again = order.model_copy(update={"attempt": 2})
    assert train(city.runner(TAX), again).state == "succeeded"
    assert len(set(seeds)) == 2
    for seed in city.homes[TAX].path.rglob("seed"):
        assert stat.S_IMODE(seed.stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["bundle", "configuration", "approval", "package", "attempt"])
def test_an_order_that_differs_from_what_was_approved_runs_nothing(city: City, what: str) -> None:
    """Acceptance tests 20, 21, 23 and 28: coarse outwards, and nothing was begun."""
    order = city.order(**({"package_sha256": "0" * 64} if what == "package" else {}))
    bundle, config = fab.build(order.manifest), dict[str, object](run_config(order))
    if what == "bundle":
        bundle = bundle[:-1] + bytes([bundle[-1] ^ 1])
    if what == "configuration":
        config["job"] = "another"
    if what == "approval":
        order = order.model_copy(update={"approvals": order.approvals[:1]})
    if what == "attempt":
        order = order.model_copy(update={"attempt": 4})
    reply = city.runner(TAX).train(order, bundle, config)
    assert reply.model_dump(exclude={"reference"}) == TrainReply(state="refused").model_dump(
        exclude={"reference"}
    )
    assert (city.runs, city.gates[TAX].admitted) == (0, [])
    assert not list(city.homes[TAX].path.rglob("seed"))
    # what comes as far as the gate is for the gate to enter
    wanted = [(4, Check.ORDER)] if what == "attempt" else []
    assert city.audits[TAX].refusals == wanted


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (ValueError("canary"), "failed", "FAILED"),
        (ProtocolError("canary"), "failed", "INTEGRITY"),
        (Refused("canary", code=RefusalCode.FIELD_LEVEL), "refused", "REFUSED"),
        (PartyLost("canary", party=COURT), "lost", "LOST"),
    ],
)
def test_a_failure_goes_out_as_one_coarse_word_and_is_told_to_the_others(
    city: City, caplog: pytest.LogCaptureFixture, error: Exception, state: str, code: str
) -> None:
    def program(party: Party, admission: Admission) -> Outcome:
        party.stage = "fit"
        raise error

    city.program = program
    order = city.order()
    others = city.queues.of(COURT)
    digest = bytes.fromhex(order.manifest.unverified(JobManifest).digest())
    reply = train(city.runner(TAX), order)
    assert (reply.state, reply.stage) == (state, "fit")
    assert "canary" not in reply.model_dump_json()
    assert reply.reference
    assert reply.reference in {getattr(item, "reference", "") for item in caplog.records}
    assert record(city, reply).outcome == ("failed" if state == "lost" else state)
    from federation.channel import Channel

    channel = Channel(COURT, TAX, others.transport(digest, 1, TAX), timeout_s=1)
    with pytest.raises(PartyLost, match=code):
        channel.receive("fit", Checked)


def test_a_failure_towards_one_of_several_banks_is_recorded_with_its_stage(city: City) -> None:
    def program(party: Party, admission: Admission) -> Outcome:
        with party.seen_from(BANK).at("fit"):
            raise PartyLost("away", party=COURT)

    city.program = program
    reply = train(city.runner(TAX), city.order())
    assert (reply.state, reply.stage) == ("lost", "fit")
    assert record(city, reply).stage == "fit"


def test_a_stopped_job_ends_its_program(city: City) -> None:
    def program(party: Party, admission: Admission) -> Outcome:
        while True:
            party.check()
            time.sleep(0.01)

    city.program, city.board.status = program, JobStatus.STOPPED
    assert train(city.runner(TAX), city.order()).state == "stopped"


def test_a_newer_attempt_ends_the_older_one_which_cannot_come_back(city: City) -> None:
    def program(party: Party, admission: Admission) -> Outcome:
        while party.attempt == 1:
            party.check()
            time.sleep(0.01)
        return Outcome(b"{}")

    city.program = program
    order, runner = city.order(), city.runner(TAX, hold_s=0.1)
    assert train(runner, order).state == "running"
    newer = order.model_copy(update={"attempt": 2})
    assert eventually(lambda: train(runner, newer).state == "succeeded")
    assert eventually(lambda: train(runner, order).state == "stopped")
    assert city.runs == 2


@pytest.mark.parametrize("is_over", ["newer attempt", "stopped"])
def test_a_program_that_waits_for_its_next_round_ends_with_its_attempt(
    city: City, is_over: str
) -> None:
    """As when the process that makes the rounds has died: nobody will send the next one."""

    def program(party: Party, admission: Admission) -> Outcome:
        if party.attempt == 1:
            assert party.rounds is not None
            party.rounds.take()
        return Outcome(b"{}")

    city.program = program
    order, runner = city.order(), city.runner(TAX, hold_s=0.1)
    assert train(runner, order).state == "running"
    if is_over == "stopped":
        city.board.status = JobStatus.STOPPED
    else:
        newer = order.model_copy(update={"attempt": 2})
        assert eventually(lambda: train(runner, newer).state == "succeeded", timeout_s=20)
    assert eventually(lambda: train(runner, order).state == "stopped", timeout_s=20)


def test_two_departments_share_a_seed_that_is_of_this_job_and_attempt_alone(city: City) -> None:
    manifest = city.order().manifest.unverified(JobManifest)
    other = city.order(job="other").manifest.unverified(JobManifest)
    tax, court, bank = city.homes[TAX], city.homes[COURT], city.homes[BANK]
    assert pair_seeds(tax, manifest, 1)[COURT] == pair_seeds(court, manifest, 1)[TAX]
    seeds = [pair_seeds(tax, job, n)[COURT] for job in (manifest, other) for n in (1, 2)]
    assert len(set(seeds)) == 4
    assert pair_seeds(bank, manifest, 1) == {}


def eventually(claim: Callable[[], bool], timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# --- what stays of an attempt that was cut off ----------------------------------------------------


def reveal(party: Party) -> None:
    declared = party.manifest.disclosures[0]
    party.ledger.reveal(declared.source, declared.to, declared.what, 8, declared.bits)


def test_what_was_disclosed_before_a_crash_is_signed_and_logged_after_it(city: City) -> None:
    began, go = threading.Event(), threading.Event()

    def program(party: Party, admission: Admission) -> Outcome:
        party.stage = "fit"
        reveal(party)
        began.set()
        go.wait(20)
        return Outcome(b"{}")

    city.program = program
    order = city.order()
    assert train(city.runner(TAX, hold_s=0.1), order).state == "running"
    assert began.wait(5)
    # Another process would come up now; the first one's memory is lost.
    found = record(city, train(city.runner(TAX), order))
    go.set()
    assert (found.outcome, found.stage) == ("failed", "fit")
    assert [item.count for item in found.disclosures] == [8]
    assert found.output is None


def test_a_failed_attempt_says_what_it_disclosed(city: City) -> None:
    def program(party: Party, admission: Admission) -> Outcome:
        reveal(party)
        raise PartyLost("away", party=COURT)

    city.program = program
    reply = train(city.runner(TAX), city.order())
    assert [item.count for item in record(city, reply).disclosures] == [8]
    assert (reply.state, reply.missing) == ("lost", COURT)


def test_the_digest_of_the_model_needs_the_salt_that_stays_here(city: City) -> None:
    reply = train(city.runner(TAX), city.order())
    found = record(city, reply)
    (salt,) = city.homes[TAX].path.rglob("output.salt")
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    assert found.output == output_digest(salt.read_bytes(), b"{}")
    assert found.output != hashlib.sha256(b"{}").hexdigest()
    other = record(city, train(city.runner(COURT), city.order()))
    assert other.output != found.output  # of the same part


def test_draws_that_last_are_those_of_the_first_attempt(city: City) -> None:
    lasting: list[bytes] = []

    def program(party: Party, admission: Admission) -> Outcome:
        lasting.append(party.lasting.master)
        if party.attempt == 1:
            raise PartyLost("away", party=COURT)
        return Outcome(b"{}")

    city.program = program
    order = city.order()
    train(city.runner(TAX), order)
    train(city.runner(TAX), order.model_copy(update={"attempt": 2}))
    assert lasting[0] == lasting[1]


# --- several at once ------------------------------------------------------------------------------


def test_more_jobs_than_workers_wait_in_order_and_say_so(city: City) -> None:
    """Acceptance: the third attempt of two workers is not failed, and not forgotten."""
    go = {name: threading.Event() for name in ("one", "two", "three", "four")}
    running: list[str] = []

    def program(party: Party, admission: Admission) -> Outcome:
        running.append(party.manifest.job)
        go[party.manifest.job].wait(20)
        return Outcome(b"{}")

    city.program = program
    runner = city.runner(TAX, hold_s=0.05)
    orders = {name: city.order(job=name) for name in go}
    for name, order in orders.items():
        assert train(runner, order).state == "running"
        assert eventually(partial(was_seen, city, running, name))
    assert running == ["one", "two"]
    go["two"].set()
    assert eventually(lambda: running == ["one", "two", "three"])
    for event in go.values():
        event.set()
    assert eventually(lambda: train(runner, orders["four"]).state == "succeeded")
    assert running == ["one", "two", "three", "four"]


def was_seen(city: City, running: list[str], job: str) -> bool:
    return job in running or any(body.stage == TURN for body in city.board.told)


def test_who_waits_for_a_worker_can_be_stopped(city: City) -> None:
    go = threading.Event()

    def program(party: Party, admission: Admission) -> Outcome:
        go.wait(20)
        return Outcome(b"{}")

    city.program = program
    runner = city.runner(TAX, hold_s=0.05)
    for name in ("one", "two"):
        train(runner, city.order(job=name))
    third = city.order(job="three")
    train(runner, third)
    city.gates[TAX].withdrawn = True
    assert eventually(lambda: train(runner, third).state == "stopped")
    assert city.runs == 2
    go.set()


# --- a disk that takes nothing --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seed", "begun.json", "record.json", "reply.json", "output.salt"])
def test_a_write_that_fails_ends_the_attempt_with_a_word_and_leaves_no_half_file(
    city: City, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    write = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, target)

    monkeypatch.setattr(Path, "replace", full)
    order = city.order()
    runner = city.runner(TAX)
    reply = train(runner, order)
    assert reply.state == "failed"
    monkeypatch.undo()
    assert "no space left on device" in caplog.text + str([vars(r) for r in caplog.records])
    leftovers = [f.name for f in city.homes[TAX].path.rglob(".*") if name in f.name]
    assert leftovers == []
    # Nothing is lost with it: the attempt counts, and is over.
    assert city.gates[TAX].closed == [1]
    again = order.model_copy(update={"attempt": 2})
    assert train(city.runner(TAX), again).state == "succeeded"
