"""What a party program is given: its channels, its randomness, its books, its ledger, its clock.

The program is the same whether the channels cross the relay or stay in one process; with the same
seed and data it sends the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from federation.channel import Channel
from federation.errors import IntegrityError, LianmoError
from federation.escrow import Desk
from federation.ledger import Ledger
from federation.objects import Committed, JobManifest
from federation.tasks.checkpoints import CheckpointBook
from protocols.books import AnswerBook, SpentBook
from protocols.errors import ProtocolError
from protocols.row_key_books import AttemptBook, ReplyBook
from protocols.secagg import Identity
from protocols.secagg_books import RoundBook
from protocols.streams import Randomness


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a party is: `step` of `steps` within a stage."""

    stage: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Membership:
    """What a bank needs for sums over several banks (`federation/tasks/secure_sum.py`)."""

    identity: Identity = field(repr=False)
    certified: Mapping[str, bytes] = field(repr=False)  # X25519 keys of all the job's banks
    book: RoundBook = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoundOrder:
    """What the coordinator sends with a round of a job that takes its rounds from there."""

    number: int  # 1, 2, ...; the last one only evaluates
    weights: NDArray[np.float32] = field(repr=False)
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class RoundReply:
    """What a bank answers; only the one that collects the banks' sums has something to say."""

    number: int
    weights: NDArray[np.float32] | None = field(default=None, repr=False)
    customers: int = 0  # that the mean is over, in steps of what the sum resolves
    loss: float = 0.0
    auc: float = 0.0  # over all banks' hold-out customers, of the weights that came


class Rounds(Protocol):
    """The rounds of a job, as its party program sees them."""

    def take(self) -> RoundOrder:
        """The next round's order; waits for it. Raises PartyLost if none comes."""

    def give(self, reply: RoundReply) -> None:
        """The answer to the order taken last."""


@dataclass(slots=True)
class _Place:
    """Where a party is in its program; one for it and all its views."""

    stage: str = "start"


@dataclass(slots=True)
class Party:
    """One organisation in one attempt of one job."""

    me: str
    manifest: JobManifest
    attempt: int
    randomness: Randomness  # of this party, job and attempt
    channels: Mapping[str, Channel] = field(repr=False)  # by peer
    pair_seeds: Mapping[str, bytes] = field(repr=False)  # shared with each other department
    ledger: Ledger
    spent: SpentBook = field(repr=False)
    answers: AnswerBook = field(repr=False)
    reply_book: ReplyBook = field(repr=False)  # these two: of a set OPRF
    attempt_book: AttemptBook = field(repr=False)
    # Of score rounding: this organisation's for ever, over jobs and attempts, else repeats average
    # the rounding away. Empty: of this job alone, for parties that live no longer.
    rounding: bytes = field(default=b"", repr=False)
    # Master seed of the first attempt of this job here; empty: this attempt is the first.
    first_master: bytes = field(default=b"", repr=False)
    checkpoints: CheckpointBook | None = field(default=None, repr=False)  # of a task that keeps any
    desk: Desk | None = field(default=None, repr=False)  # where the manifest names auditors
    committed: list[Committed] = field(default_factory=list)  # by all, before the run
    membership: Membership | None = field(default=None, repr=False)  # of a job of several banks
    rounds: Rounds | None = field(default=None, repr=False)  # of a task that takes its rounds
    executor: Executor | None = field(default=None, repr=False)
    report: Callable[[Progress], None] = lambda progress: None
    check: Callable[[], None] = lambda: None  # raises when the job was stopped or withdrawn
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by stage
    _place: _Place = field(default_factory=_Place, repr=False)

    @property
    def stage(self) -> str:
        """Where the program is: what messages, records and failures name."""
        return self._place.stage

    @stage.setter
    def stage(self, stage: str) -> None:
        self._place.stage = stage

    def seen_from(self, bank: str) -> Party:
        """This party as one of several banks has to do with it: `manifest.bank` is that bank.

        Channels, books, ledger and stage are shared with this one: the node that reports a failure
        knows only the whole party. No checkpoints: what several banks found together is not taken
        up by one of them.
        """
        return replace(self, manifest=self.manifest.seen_from(bank), checkpoints=None)

    def traffic(self, which: Literal["sent_bytes", "received_bytes"]) -> dict[str, int]:
        """Bytes by stage, all peers together."""
        found: dict[str, int] = {}
        for channel in self.channels.values():
            for stage, size in getattr(channel.traffic, which).items():
                found[stage] = found.get(stage, 0) + size
        return found

    def other_banks(self) -> tuple[str, ...]:
        """The banks of the job besides this party."""
        return tuple(org for org in self.manifest.banks if org != self.me)

    @property
    def manifest_digest(self) -> bytes:
        """What binds every draw and label to this very manifest."""
        return bytes.fromhex(self.manifest.digest())

    @property
    def lasting(self) -> Randomness:
        """Draws that are the same in every attempt of the job: hold-out, rounding of what is asked.

        So a step that a crash made necessary again asks, opens and discloses the very same, and the
        model is that of an undisturbed run. Never for what hides a value: pads, masks, tokens and
        errors are of one attempt (CRYPTO_REVIEW.md F3, F4).
        """
        return Randomness(self.first_master or self.randomness.master, self.manifest_digest, 0)

    def saw(self, org: str, what: str, commitment: bytes) -> None:
        """A commitment, for this party's signed record: nobody can change it afterwards."""
        self.committed.append(Committed(org=org, what=what, digest=commitment.hex()))

    @contextmanager
    def at(self, stage: str, steps: int = 1) -> Iterator[Callable[[int], None]]:
        """A stage of the task: timed, reported, and named in whatever goes wrong inside it.

        Yields a function to call with each finished step.
        """
        self.check()
        self.stage, began = stage, time.monotonic()
        self.report(Progress(stage, 0, steps))
        try:
            yield lambda step: self.report(Progress(stage, step, steps))
        except ProtocolError as error:
            todo = "both sides' transcripts go to the auditor; do not repeat the job unchanged"
            text = str(error)
            raise IntegrityError(text, party=self.me, stage=stage, todo=todo) from error
        except LianmoError as error:
            error.stage = error.stage or stage
            raise
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began
        self.report(Progress(stage, steps, steps))
