"""What happens on a `train` message: check at the gate, run the party program, sign what happened.

    new attempt   gate -> seed on disk -> channels to all other parties -> program -> record, reply
    repeat        the same order again starts nothing: it waits for the same attempt, or gets the
                  stored reply. Flower delivers at most once, so repeats are normal
    restart       an attempt that was cut off by a crash is lost: its channels and secrets are gone
                  with the process, and a new attempt has a new number in all randomness. What it
                  disclosed until then is signed and logged from the files in its folder
    many          `workers` attempts run at once; the others wait in order, and say so

A failure leaves as one coarse word; its reason stays in this node's log under a reference. The
other parties are told through their channels, so that nobody waits for who is gone.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import ValidationError

from clients import audited
from clients.attempts import (
    RECEIPT,
    RECORD,
    REPLY,
    SALT,
    SEED,
    AttemptFolder,
    Begun,
    DisclosureLog,
    first_seed,
    output_digest,
    queries,
)
from clients.checkpoints import FileCheckpointBook
from clients.home import Home
from clients.rounds import RoundBox
from clients.transcripts import FileRecorder, StoredTranscript
from federation import fab as fabs
from federation import keyring
from federation.api import TRAIN_HOLD_S, JobStatus, ProgressBody, TrainOrder, TrainReply
from federation.audit import Check, Receipt
from federation.channel import Channel, Transport
from federation.checks import ApprovedJob
from federation.envelope import Envelope, sign
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotKept,
    PartyLost,
    Refused,
    Unavailable,
)
from federation.ledger import Disclosure, Ledger
from federation.objects import (
    DeclaredDisclosure,
    JobManifest,
    Role,
    RunRecord,
    Usage,
    utc_text,
)
from federation.package import package_sha256
from federation.tasks.checkpoints import CheckpointBook
from federation.tasks.party import Membership, Party, Progress, RoundOrder, RoundReply
from protocols import labels
from protocols.books import AnswerBook, SpentBook
from protocols.errors import ProtocolError
from protocols.row_key_books import AttemptBook, ReplyBook
from protocols.secagg import KEY_BYTES, Identity
from protocols.secagg_books import RoundBook
from protocols.streams import SEED_BYTES, Randomness, digest, encode

log = logging.getLogger(__name__)

PROGRESS_S = 0.5  # at most one progress message in so long
PULSE_S = 3.0  # and at least one: its answer says whether the job goes on
FIRST_WORD_S = 2.0  # for telling the others that this party stopped
TURN, TURN_S = "waiting for a free worker", 0.5


class Admission(Protocol):
    """What the gate hands out (clients/gate.py)."""

    @property
    def job(self) -> ApprovedJob:
        """The manifest that all owners approved."""

    @property
    def snapshot_digest(self) -> str:
        """Of the rows and columns that were handed out, salted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a party program leaves at its node."""

    model: bytes  # this party's part of the model
    files: Mapping[str, bytes] = field(default_factory=dict)  # results, by file name
    tokens: int = 0
    commitments: tuple[str, ...] = ()


class Relay(Protocol):
    """Where channels come from (clients/relay_client.py)."""

    def transport(self, manifest_digest: bytes, attempt: int, peer: str) -> Transport:
        """The channel to a peer, one for each attempt."""


@runtime_checkable
class Watched(Protocol):
    """A transport that knows whether its peer is there (clients/relay_line.py)."""

    def absent_s(self) -> float | None:
        """Seconds that the program still waits for a peer that is away; None if it is there."""


class Coordinator(Protocol):
    """Who hears of progress (clients/coordinator_client.py)."""

    def progress(self, job: str, body: ProgressBody) -> object:
        """Say how far this party is; the answer's `status` says whether the job goes on."""


class Gate(Protocol):
    """The only door to data (clients/gate.py)."""

    def admit(
        self,
        manifest: Envelope,
        approvals: Sequence[Envelope],
        *,
        fab: bytes,
        run_config: Mapping[str, object],
        attempt: int,
    ) -> Admission:
        """Let one attempt in, or raise Refused."""

    def require_in_force(self, job: ApprovedJob) -> None:
        """Raise Refused if a job that was let in may not go on."""

    def close(self, manifest: str, attempt: int) -> None:
        """The attempt is over: it counts with what it used."""


class Audit(Protocol):
    """This node's log of what it did (clients/audit.py)."""

    def refused(
        self, manifest: str, attempt: int, check: Check, error: LianmoError, now: datetime
    ) -> object:
        """An order that did not come as far as the gate."""

    def ran(self, record: Envelope, now: datetime) -> Receipt:
        """An attempt's signed record; returns its receipt."""


@dataclass(frozen=True, slots=True)
class Books:
    """What a party must remember whatever crashes (clients/store.py); see `Party`."""

    spent: SpentBook
    answers: AnswerBook
    replies: ReplyBook
    attempts: AttemptBook
    rounds: RoundBook


Program = Callable[[Party, Admission], Outcome]


class Stop(LianmoError):
    """The job was stopped or withdrawn, or a newer attempt has begun."""


@dataclass(slots=True)
class _Attempt:
    """One attempt of one job in this process."""

    rounds: RoundBox
    done: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    reply: TrainReply | None = None


class Runner:
    """All attempts of all jobs at one node."""

    def __init__(
        self,
        home: Home,
        *,
        gate: Gate,
        program: Program,
        relay: Relay,
        coordinator: Coordinator,
        books: Books,
        audit: Audit,
        now: Callable[[], datetime],
        executor: Executor | None = None,
        hold_s: float = TRAIN_HOLD_S,
    ) -> None:
        self._home, self._gate, self._program = home, gate, program
        self._relay, self._coordinator, self._books = relay, coordinator, books
        self._audit = audit
        self._now, self._executor, self._hold_s = now, executor, hold_s
        self._turns = Turns(home.config.workers)
        self._lock = threading.Lock()
        self._attempts: dict[tuple[str, int], _Attempt] = {}

    def train_round(
        self,
        order: TrainOrder,
        fab: bytes,
        run_config: dict[str, object],
        round_: RoundOrder,
    ) -> tuple[TrainReply, RoundReply | None]:
        """The same for an order that carries a round: its answer too, if there is one in time."""
        said = self.train(order, fab, run_config, round_)
        if said.state != "running":
            return said, None
        key = order.manifest.unverified(JobManifest).digest(), order.attempt
        with self._lock:
            attempt = self._attempts.get(key)
        if attempt is None:
            return said, None
        reply = None if round_.is_last else attempt.rounds.answer(round_.number, self._hold_s)
        if attempt.done.wait(self._hold_s if round_.is_last else 0) and attempt.reply is not None:
            return attempt.reply, None
        return said, reply

    def train(
        self,
        order: TrainOrder,
        fab: bytes,
        run_config: dict[str, object],
        round_: RoundOrder | None = None,
    ) -> TrainReply:
        """Answer an order within `hold_s`: its attempt's last word, or `running`.

        round_: goes to the program; the answer is then `running` at once, see `train_round`.
        """
        try:
            manifest = order.manifest.unverified(JobManifest)
        except LianmoError as error:
            digest_ = sha256_hex(order.manifest.payload)
            self._audit.refused(digest_, order.attempt, Check.ORDER, error, self._now())
            return self._refusal("unknown", order.attempt, error)
        key = manifest.digest(), order.attempt
        with self._lock:
            attempt = self._attempts.get(key)
            if attempt is None:
                stored = self._stored_reply(manifest, order.attempt)
                if stored is not None:
                    return stored
                try:
                    attempt = self._begin(key, manifest, order, fab, run_config)
                except LianmoError as error:
                    return self._refusal(manifest.job, order.attempt, error)
        if round_ is not None:
            attempt.rounds.put(round_)
        if attempt.done.wait(0 if round_ else self._hold_s) and attempt.reply is not None:
            return attempt.reply
        return TrainReply(state="running")

    def stop(self) -> None:
        """The node ends: every attempt ends, and tells the others."""
        with self._lock:
            running = [item for item in self._attempts.values() if not item.done.is_set()]
        for attempt in running:
            attempt.stop.set()
        deadline = time.monotonic() + FIRST_WORD_S
        for attempt in running:
            attempt.done.wait(max(0.0, deadline - time.monotonic()))

    # --- before anything runs ---------------------------------------------------------------------

    def _stored_reply(self, manifest: JobManifest, number: int) -> TrainReply | None:
        """The last word of an attempt of which this process knows nothing, if there was one."""
        folder = self._folder(manifest, number)
        if (file := folder.path / REPLY).is_file():
            try:
                return TrainReply.model_validate_json(file.read_bytes())
            except ValidationError:
                return TrainReply(state="lost")
        if not folder.was_begun:
            return None
        try:
            return self._lost(manifest, folder)
        except LianmoError as error:
            reason = {"reason": str(error)}
            log.error("lost attempt not recorded", extra=_ids(manifest, number) | reason)
            return TrainReply(state="lost")

    def _lost(self, manifest: JobManifest, folder: AttemptFolder) -> TrainReply:
        """Of an attempt that ended with its process: what it did until then, signed and logged."""
        number, begun = folder.number, folder.begun()
        self._gate.close(manifest.digest(), number)
        log.warning("attempt lost with its process", extra=_ids(manifest, number))
        if begun is None:
            return TrainReply(state="lost")
        stage, entries = folder.disclosed()
        record = RunRecord(
            job=manifest.job,
            manifest=manifest.digest(),
            org=self._home.org,
            attempt=number,
            package_sha256=package_sha256(),
            fab_sha256=begun.fab_sha256,
            run_config_sha256=fabs.run_config_sha256(manifest),
            snapshot=begun.snapshot,
            commitments=(_seed_commitment((folder.path / SEED).read_bytes()),),
            committed=audited.kept_commitments(folder.path),
            transcript=StoredTranscript.of(folder.path).signed(),  # may lack the very last frame
            disclosures=_lines(entries),
            tokens=queries(self._home.org, manifest.banks, entries),
            output=None,
            outcome="failed",
            stage=stage,
            started=begun.started,
            ended=utc_text(self._now()),
        )
        return self._reply(folder, sign(record, self._home.key(Usage.RUN)), "lost", stage)

    def _begin(
        self,
        key: tuple[str, int],
        manifest: JobManifest,
        order: TrainOrder,
        fab: bytes,
        run_config: dict[str, object],
    ) -> _Attempt:
        """Ask the gate, then start the attempt in a thread of its own."""
        most = manifest.limits.attempts
        if not 1 <= order.attempt <= most:
            what = f"attempt {order.attempt} of {most} that the manifest allows"
            refusal = Refused(what, party=self._home.org, todo="make a new manifest")
            self._audit.refused(key[0], order.attempt, Check.ORDER, refusal, self._now())
            raise refusal
        # Before anything is counted: an old attempt must not be able to use up the exposure.
        newer = range(order.attempt + 1, most + 1)
        if any((key[0], n) in self._attempts or self._was_begun(manifest, n) for n in newer):
            raise Conflict("a newer attempt of this job has begun", party=self._home.org)
        admission = self._gate.admit(
            order.manifest,
            order.approvals,
            fab=fab,
            run_config=run_config,
            attempt=order.attempt,
        )
        if admission.job.digest != key[0]:
            raise IntegrityError("the gate admitted another manifest", party=self._home.org)
        older = [other for (digest_, _), other in self._attempts.items() if digest_ == key[0]]
        for other in older:
            other.stop.set()
        try:
            job = _Job(self._home, admission, order.attempt, fab, self._folder(manifest, key[1]))
        except LianmoError:
            self._gate.close(*key)
            raise
        attempt = self._attempts[key] = _Attempt(RoundBox(self._home.config.peer_timeout_s))
        threading.Thread(
            target=self._run,
            args=(attempt, job, older),
            name=f"{manifest.job}/{key[1]}",
            daemon=True,
        ).start()
        return attempt

    def _was_begun(self, manifest: JobManifest, number: int) -> bool:
        """Whether an attempt was begun here, in this process or before."""
        job = self._home.path / "runs" / manifest.job
        return AttemptFolder.of(job, manifest.digest(), number).was_begun

    def _folder(self, manifest: JobManifest, number: int) -> AttemptFolder:
        folder = AttemptFolder.of(self._home.runs(manifest.job), manifest.digest(), number)
        folder.make()
        return folder

    def _refusal(self, job: str, number: int, error: LianmoError) -> TrainReply:
        """The coarse word for the outside; nothing was opened."""
        reference = secrets.token_hex(4)
        about = {"job": job, "attempt": number, "reason": str(error), "reference": reference}
        if isinstance(error, NotKept):  # nobody said no
            log.error("order not begun", extra=about)
            return TrainReply(state="failed", stage="start", reference=reference)
        log.warning("order refused", extra=about)
        return TrainReply(state="refused", reference=reference)

    # --- one attempt, in its own thread -----------------------------------------------------------

    def _run(self, attempt: _Attempt, job: _Job, older: Sequence[_Attempt]) -> None:
        """From channels to reply; never raises."""
        pulse = _Pulse(self._coordinator, job, attempt, self._require_going, self._now)
        outcome: Outcome | None = None
        began = self._now()
        log.info("attempt begun", extra=job.ids)
        missing = None
        try:
            for other in older:  # both would write the job's state
                while not other.done.wait(TURN_S):
                    self._check(attempt, job)
            job.begin(began)
            party = job.party(
                self._books, pulse.report, lambda: self._check(attempt, job), self._now
            )
            party.executor, party.rounds = self._executor, attempt.rounds
            pulse.start(party)
            with self._turns.one(lambda place: self._wait_for_turn(party, place)):
                job.open(self._relay, self._home.config.peer_timeout_s)
                outcome = self._program(party, job.admission)
            state, reference = "succeeded", ""
            log.info("attempt succeeded", extra=job.ids | {"seconds": job.seconds()})
        except Exception as error:  # noqa: BLE001 - a program's bug costs an attempt, not the node
            state, reference = self._failed(error, attempt, job)
            missing = error.party if isinstance(error, PartyLost) and state == "lost" else None
        finally:
            pulse.stop()
        try:
            reply = self._conclude(job, state, reference, outcome, began, missing)
        except (LianmoError, OSError) as error:
            log.error("result not kept", extra=job.ids | {"reason": str(error)})
            reply = TrainReply(state="failed", stage=job.stage, reference=reference)
        finally:
            job.close()
        try:
            self._gate.close(job.admission.job.digest, job.number)
        except LianmoError as error:  # it then goes on counting with all that it declared
            log.error("attempt not closed", extra=job.ids | {"reason": str(error)})
        attempt.reply = reply
        attempt.done.set()
        attempt.rounds.close()

    def _wait_for_turn(self, party: Party, place: int) -> None:
        party.check()
        party.stage = TURN
        party.report(Progress(TURN, 0, place))

    def _check(self, attempt: _Attempt, job: _Job) -> None:
        """Raises Stop if the attempt may not go on, whoever says so."""
        if attempt.stop.is_set():
            raise Stop("the job was stopped, withdrawn or begun anew", party=job.me)
        self._require_going(job)

    def _require_going(self, job: _Job) -> None:
        """What this node knows by itself; a coordinator that keeps silent changes nothing."""
        if job.seconds() > job.manifest.limits.wall_time_s:
            raise Stop("the wall time that the manifest allows is over", party=job.me)
        try:
            self._gate.require_in_force(job.admission.job)
        except LianmoError as error:
            raise Stop(str(error), party=job.me) from error

    def _failed(self, error: Exception, attempt: _Attempt, job: _Job) -> tuple[str, str]:
        """(state, reference) of a failure; the others hear a coarse code, this log the reason."""
        state, code = _coarse(error, attempt.stop.is_set())
        reference = secrets.token_hex(4)
        about = job.ids | {"stage": job.stage, "reference": reference, "code": code}
        if state == "stopped":  # whatever the program said when its channels were cut
            log.info("attempt stopped", extra=about)
        elif isinstance(error, LianmoError | ProtocolError):
            log.error("attempt ended", extra=about | {"reason": str(error)})
        else:
            log.error("attempt ended", extra=about, exc_info=error)
        job.tell_others(code)
        return state, reference

    def _conclude(
        self,
        job: _Job,
        state: str,
        reference: str,
        outcome: Outcome | None,
        began: datetime,
        missing: str | None,
    ) -> TrainReply:
        """Keep results, then record and reply."""
        if outcome is not None:
            job.keep(outcome)
        record = sign(job.record(state, outcome, began, self._now()), self._home.key(Usage.RUN))
        stage = "" if state == "succeeded" else job.stage
        return self._reply(job.folder, record, state, stage, reference, missing)

    def _reply(
        self,
        folder: AttemptFolder,
        record: Envelope,
        state: str,
        stage: str,
        reference: str = "",
        missing: str | None = None,
    ) -> TrainReply:
        """Keep record, receipt and reply; in this order, so that a reply means all is kept."""
        folder.write(RECORD, record.to_json())
        receipt = self._audit.ran(record, self._now())
        folder.write(RECEIPT, receipt.to_json())
        for name, content in {RECORD: record.to_json(), RECEIPT: receipt.to_json()}.items():
            _write(folder.path.parent / name, content)  # the newest attempt's
        reply = TrainReply.model_validate(
            {"state": state, "stage": stage, "reference": reference, "record": record}
            | {"receipt": receipt, "missing": missing}
        )
        folder.write(REPLY, reply.model_dump_json().encode())
        return reply


class _Job:
    """What one attempt holds: its seed, channels, ledger; and what it leaves on disk."""

    def __init__(
        self, home: Home, admission: Admission, number: int, fab: bytes, folder: AttemptFolder
    ) -> None:
        self._home, self.admission, self.number = home, admission, number
        self.manifest, self.me = admission.job.manifest, home.org
        self.folder, self._fab = folder, fab
        self.ids: dict[str, object] = {"job": self.manifest.job, "attempt": number}
        self.channels: dict[str, Channel] = {}
        self._transports: dict[str, Transport] = {}
        # Of the job, not of the attempt: named by the manifest's digest like the attempts' folders.
        runs, manifest = folder.path.parent, self.manifest.digest()
        self.checkpoints = FileCheckpointBook(runs / f"{manifest[:16]}.state")
        self._disclosures = DisclosureLog(folder)
        is_audited = bool(self.manifest.audit.auditors)
        self._recorder = FileRecorder(folder.path, keeps_bodies=is_audited)
        self._first_seed = first_seed(runs, manifest)
        self._output_salt = secrets.token_bytes(32)
        self._party: Party | None = None
        self._began = time.monotonic()
        self._once, self._is_told = threading.Lock(), False
        # On disk before anything is drawn from it: after a crash it says that this attempt was
        # begun, and the replay audit needs it (PROTOCOLS.md section 6).
        if folder.was_begun:
            raise Conflict("this attempt was begun before", party=self.me)
        self._seed = secrets.token_bytes(SEED_BYTES)
        folder.write(SEED, self._seed)

    @property
    def stage(self) -> str:
        """Where the program is, or was."""
        return self._party.stage if self._party is not None else "start"

    def seconds(self) -> float:
        """Since the attempt began."""
        return round(time.monotonic() - self._began, 3)

    def begin(self, now: datetime) -> None:
        """Write down what a record needs if this process does not live to write one."""
        snapshot = self.admission.snapshot_digest
        self.folder.begin(Begun(sha256_hex(self._fab), snapshot, utc_text(now)))

    def open(self, relay: Relay, timeout_s: float) -> None:
        """A channel to every other party."""
        for peer in _peers(self.manifest, self.me):
            transport = relay.transport(bytes.fromhex(self.manifest.digest()), self.number, peer)
            self._transports[peer] = transport
            self.channels[peer] = Channel(
                self.me, peer, transport, timeout_s=timeout_s, recorder=self._recorder
            )

    def party(
        self,
        books: Books,
        report: Callable[[Progress], None],
        check: Callable[[], None],
        now: Callable[[], datetime],
    ) -> Party:
        """The program's view of this attempt."""
        declared = (item.entry() for item in self.manifest.disclosures)
        self._party = Party(
            me=self.me,
            manifest=self.manifest,
            attempt=self.number,
            randomness=Randomness(self._seed, bytes.fromhex(self.manifest.digest()), self.number),
            channels=self.channels,
            pair_seeds=pair_seeds(self._home, self.manifest, self.number),
            ledger=Ledger(self.me, declared, self._disclosed),
            spent=books.spent,
            answers=books.answers,
            reply_book=books.replies,
            attempt_book=books.attempts,
            rounding=self._home.rounding_secret(),
            first_master=self._first_seed,
            membership=membership(self._home, self.manifest, books.rounds, now),
            checkpoints=self._checkpoints(),
            committed=audited.CommittedLog(self.folder.path),
            desk=audited.desk(self._home, self.manifest, self.number, now, self.folder.path),
            report=report,
            check=check,
        )
        return self._party

    def _checkpoints(self) -> CheckpointBook:
        if self.manifest.audit.auditors:
            return audited.CopiedCheckpoints(self.checkpoints, self.folder.path)
        return self.checkpoints

    def _disclosed(self, entry: Disclosure) -> None:
        self._disclosures.stage = self.stage
        self._disclosures.keep(entry)

    def waits_for(self) -> tuple[str, float] | None:
        """Who is away while the program waits for it, and for how many seconds more it does."""
        for peer, transport in list(self._transports.items()):
            if isinstance(transport, Watched) and (left := transport.absent_s()) is not None:
                return peer, left
        return None

    def tell_others(self, code: str) -> None:
        """This party's last word on every channel; who does not take it in time goes without."""
        with self._once:
            if self._is_told:
                return
            self._is_told = True

        def tell(channel: Channel) -> None:
            try:
                channel.stop(self.stage, code)
            except (LianmoError, ProtocolError, OSError) as error:
                reason = type(error).__name__
                log.info("peer not told", extra=self.ids | {"party": channel.peer, "why": reason})

        threads = [
            threading.Thread(target=tell, args=(channel,), daemon=True)
            for channel in self.channels.values()
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + FIRST_WORD_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """No more messages; what was sent is still delivered."""
        for channel in self.channels.values():
            channel.close()

    def keep(self, outcome: Outcome) -> None:
        """Results into the job's folder, this party's part of the model into models/."""
        for name, content in outcome.files.items():
            _write(self.folder.path.parent / name, content)
            self.folder.write(name, content)
        _write(self._home.models / f"{self.manifest.job}.json", outcome.model)
        self.folder.write(SALT, self._output_salt)

    def record(
        self, state: str, outcome: Outcome | None, began: datetime, ended: datetime
    ) -> RunRecord:
        """What this party really did, for its signature."""
        traffic = {peer: channel.traffic for peer, channel in self.channels.items()}
        entries = self._party.ledger.entries() if self._party is not None else ()
        output, tokens = None, queries(self.me, self.manifest.banks, entries)
        if outcome is not None:
            output, tokens = output_digest(self._output_salt, outcome.model), outcome.tokens
        return RunRecord(
            job=self.manifest.job,
            manifest=self.manifest.digest(),
            org=self.me,
            attempt=self.number,
            package_sha256=package_sha256(),
            fab_sha256=sha256_hex(self._fab),
            run_config_sha256=fabs.run_config_sha256(self.manifest),
            snapshot=self.admission.snapshot_digest,
            commitments=(
                _seed_commitment(self._seed),
                *(outcome.commitments if outcome is not None else ()),
            ),
            committed=tuple(self._party.committed) if self._party is not None else (),
            transcript=tuple(
                (peer, item.sent_digest.hex(), item.received_digest.hex())
                for peer, item in sorted(traffic.items())
            ),
            disclosures=_lines(entries),
            tokens=tokens,
            output=output,
            outcome="failed" if state == "lost" else state,
            stage=self.stage,
            started=utc_text(began),
            ended=utc_text(ended),
        )


class _Pulse:
    """Tells the coordinator how far the program is, and hears from it whether the job goes on."""

    def __init__(
        self,
        coordinator: Coordinator,
        job: _Job,
        attempt: _Attempt,
        require_going: Callable[[_Job], None],
        now: Callable[[], datetime],
    ) -> None:
        self._coordinator, self._job = coordinator, job
        self._stop, self._rounds = attempt.stop, attempt.rounds
        self._require_going, self._now = require_going, now
        self._latest: Progress | None = None
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)

    def start(self, party: Party) -> None:
        """Begin to tell."""
        self._latest = Progress(party.stage, 0, 1)
        self._news.set()  # at once: the job may be over already
        self._thread.start()

    def report(self, progress: Progress) -> None:
        """From the program's thread; costs nothing."""
        self._latest = progress
        self._news.set()

    def stop(self) -> None:
        """The program has ended; its last progress is told, as far as that takes no time."""
        self._ended.set()
        self._news.set()
        if self._thread.ident is not None:
            self._thread.join(2.0)

    def _beat(self) -> None:
        while True:
            self._news.wait(PULSE_S)
            is_last = self._ended.is_set()
            self._news.clear()
            self._look()
            self._tell()
            if is_last:
                return
            if self._stop.is_set():  # wakes a program that waits for a peer, or for its next round
                self._job.tell_others("STOPPED")
                self._job.close()
                self._rounds.close()
                return
            self._ended.wait(PROGRESS_S)

    def _look(self) -> None:
        """At what this node itself knows, which no coordinator can withhold."""
        try:
            self._require_going(self._job)
        except Stop as error:
            log.info("attempt ends", extra=self._job.ids | {"reason": str(error)})
            self._stop.set()

    def _tell(self) -> None:
        if (latest := self._latest) is None:
            return
        traffic = [channel.traffic for channel in list(self._job.channels.values())]
        waits = self._job.waits_for()
        body = ProgressBody(
            attempt=self._job.number,
            stage=latest.stage,
            step=latest.step,
            steps=latest.steps,
            sent_bytes=sum(sum(list(item.sent_bytes.values())) for item in traffic),
            received_bytes=sum(sum(list(item.received_bytes.values())) for item in traffic),
            waits_for=waits and waits[0],
            waits_until=waits and utc_text(self._now() + timedelta(seconds=waits[1])),
        )
        try:
            answer = self._coordinator.progress(self._job.manifest.job, body)
        except LianmoError as error:  # a coordinator that is away stops nobody
            log.info("progress not told", extra=self._job.ids | {"reason": type(error).__name__})
            return
        status = getattr(answer, "status", JobStatus.RUNNING)
        if status is not JobStatus.RUNNING:
            self._stop.set()


class Turns:
    """So many at once; whoever comes later waits, in the order of coming."""

    def __init__(self, most: int) -> None:
        self._most, self._running = most, 0
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def one(self, wait: Callable[[int], None]) -> Iterator[None]:
        """A turn for the length of the block. wait: called now and then with the place in the
        line, from 1, and may raise to leave it."""
        me = object()
        with self._moved:
            self._line.append(me)
            try:
                while self._running >= self._most or self._line[0] is not me:
                    wait(self._line.index(me) + 1)
                    self._moved.wait(TURN_S)
                self._running += 1
            finally:
                self._line.remove(me)
                self._moved.notify_all()
        try:
            yield
        finally:
            with self._moved:
                self._running -= 1
                self._moved.notify_all()


# --- helpers --------------------------------------------------------------------------------------


def _ids(manifest: JobManifest, number: int) -> dict[str, object]:
    return {"job": manifest.job, "attempt": number}


def _seed_commitment(seed: bytes) -> str:
    return digest(labels.SEED_COMMITMENT, seed).hex()


def _lines(entries: Iterable[Disclosure]) -> tuple[DeclaredDisclosure, ...]:
    return tuple(
        DeclaredDisclosure(
            source=item.source,
            to=item.to,
            what=item.what,
            count=item.count,
            bits=item.bits,
            per_enterprise=item.per_enterprise,
        )
        for item in entries
    )


def pair_seeds(home: Home, manifest: JobManifest, attempt: int) -> dict[str, bytes]:
    """A secret that two departments share, for each other department of the job.

    X25519 between the mask keys in their cards, then HKDF over manifest and attempt: another job or
    attempt has other masks (PROTOCOLS.md section 2). The bank has no mask key and no such seed.
    """
    if home.org not in manifest.departments:
        return {}
    own, trust = home.key(Usage.MASK), home.trust()
    found = {}
    for peer in manifest.departments:
        if peer == home.org:
            continue
        pair = sorted((home.org, peer))
        info = encode(labels.PAIR_SEED, bytes.fromhex(manifest.digest()), attempt, *pair)
        shared = own.agree(trust.mask_key(peer))
        found[peer] = HKDF(SHA256(), SEED_BYTES, salt=None, info=info).derive(shared)
    return found


def membership(
    home: Home, manifest: JobManifest, book: RoundBook, now: Callable[[], datetime]
) -> Membership | None:
    """What a bank needs for sums over the banks of a job; None for anybody else, and for one bank.

    Announcements and survivor sets are signed with the node's `run` key: each is framed under a
    label of its own, which no signed object's bytes begin with.
    """
    if len(manifest.banks) < 2 or home.org not in manifest.banks:
        return None
    trust, own, signing = home.trust(), home.key(Usage.MASK), home.key(Usage.RUN)

    def verify(org: str, message: bytes, signature: bytes) -> bool:
        return trust.is_signed_by(org, Usage.RUN, message, signature, now())

    certified = {org: trust.mask_key(org)[-KEY_BYTES:] for org in manifest.banks}
    return Membership(Identity(home.org, own.agree, signing.sign, verify), certified, book)


def sha256_hex(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _peers(manifest: JobManifest, me: str) -> Iterable[str]:
    return [
        party.org
        for party in manifest.parties
        if party.role is not Role.PLATFORM and party.org != me
    ]


def _coarse(error: Exception, is_stopped: bool) -> tuple[str, str]:
    """(state, code) for the outside: what others may know of a failure."""
    if is_stopped or isinstance(error, Stop):
        return "stopped", "STOPPED"
    if isinstance(error, NotKept):  # a new attempt would find the same disk
        return "failed", "STORAGE"
    if isinstance(error, PartyLost | Unavailable):
        return "lost", "LOST"
    if isinstance(error, Refused):
        return "refused", "REFUSED"
    if isinstance(error, IntegrityError | ProtocolError):
        return "failed", "INTEGRITY"
    return "failed", "FAILED"


def _write(path: Path, content: bytes) -> None:
    keyring.write(path, content, keyring.SECRET_MODE)
