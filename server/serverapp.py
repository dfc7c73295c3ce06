"""The installed ServerApp: gives every party its `train` message and collects signed run records.

Flower delivers at most once, and party programs take minutes. So a node answers within seconds,
`running` or its last word, and is asked again with the same order until it has said its last word:
a lost message costs one repeat, and a repeat starts nothing twice (clients/runner.py).

Nobody's word is checked here: each gate checks the order, governance checks the records.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from federation.api import (
    ROUND,
    TRAIN,
    TRAIN_HOLD_S,
    WEIGHTS,
    RunReport,
    TrainOrder,
    TrainReply,
)
from federation.objects import OF_BANKS_ALONE, JobManifest
from federation.tasks.neural_plan import first_weights
from federation.tasks.party import RoundReply
from protocols.errors import ProtocolError
from protocols.secagg_books import least_threshold as least
from server.conductor import Conductor

log = logging.getLogger(__name__)

REPEAT_S = TRAIN_HOLD_S + 4.0  # no answer for so long: ask again
AWAY_S = 2.0  # between two messages to a node that Flower says is away
GRACE_S = 3.0  # for the others' last words, once one has failed: it has told them, or is lost

app = ServerApp()


class JobGrid(Protocol):
    """What `server.worker.JobGrid` adds to Flower's grid."""

    @property
    def job(self) -> Job:
        """The run's task."""

    def send(self, messages: list[Message]) -> list[str]:
        """Hand messages over; their ids, in order."""

    def receive(self, waiting: list[str]) -> list[Message]:
        """Replies to these messages; waits a little when there are none."""

    def report(self, report: RunReport) -> None:
        """Tell the coordinator."""


class Job(Protocol):
    """The run's task."""

    order: TrainOrder
    nodes: Mapping[str, int]
    wall_time_s: float
    party_wait_s: float
    kept: str  # what the last finished round left, base64


@dataclass(slots=True)
class _Party:
    """Where one party is."""

    org: str
    node: int
    message: str | None = None  # id of the message that waits for an answer
    send_at: float = 0.0
    repeat_at: float = 0.0
    heard: float = 0.0
    last: TrainReply | None = None  # its last word


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One attempt of one job, from the first message to the last reply."""
    job_grid = cast(JobGrid, grid)
    task = job_grid.job.order.manifest.unverified(JobManifest).task
    (Rounds if task in OF_BANKS_ALONE else Conversation)(job_grid).run()


class Conversation:
    """Asks every party until each has said its last word, or is lost."""

    def __init__(self, grid: JobGrid) -> None:
        self._grid, self._job = grid, grid.job
        now = time.monotonic()
        self._deadline = now + self._job.wall_time_s
        self._parties = [_Party(org, node, heard=now) for org, node in self._job.nodes.items()]
        body = self._job.order.model_dump_json().encode()
        self._order = ConfigRecord({"json": body})

    def _content(self) -> RecordDict:
        """What every party is sent now."""
        return RecordDict({"order": self._order})

    def _is_due(self, party: _Party, now: float) -> bool:
        return now >= (party.repeat_at if party.message else party.send_at)

    def run(self) -> None:
        """To the end of the attempt."""
        while waiting := [party for party in self._parties if party.last is None]:
            now = time.monotonic()
            for party in waiting:
                if now > self._deadline or now > party.heard + self._job.party_wait_s:
                    self._conclude(party, TrainReply(state="lost"))
            self._ask([p for p in waiting if p.last is None], now)
            self._listen()
        replies = {party.org: party.last for party in self._parties if party.last is not None}
        self._grid.report(RunReport(state="ended", replies=replies))

    def _ask(self, parties: list[_Party], now: float) -> None:
        due = [party for party in parties if self._is_due(party, now)]
        if not due:
            return
        content = self._content()
        messages = [Message(content, party.node, TRAIN) for party in due]
        for party, message in zip(due, self._grid.send(messages), strict=True):
            party.message, party.repeat_at = message, now + REPEAT_S

    def _listen(self) -> None:
        by_message = {p.message: p for p in self._parties if p.message and p.last is None}
        replies = self._grid.receive(list(by_message))
        if not replies:
            time.sleep(0.02)
        for reply in replies:
            party = by_message.get(reply.metadata.reply_to_message_id)
            if party is not None:
                party.message = None
                self._hear(party, reply, time.monotonic())

    def _hear(self, party: _Party, reply: Message, now: float) -> None:
        if reply.has_error():
            self._hear_error(party, reply.error, now)
            return
        party.heard = now
        try:
            said = TrainReply.model_validate_json(cast(bytes, reply.content["reply"]["json"]))
        except (ValidationError, KeyError, TypeError):
            self._conclude(party, TrainReply(state="failed"))
            return
        if said.state != "running":
            self._conclude(party, said)
        else:
            self._go_on(party, reply)

    def _go_on(self, party: _Party, reply: Message) -> None:
        """A party is at work; what else it says belongs to a job in rounds."""

    def _hear_error(self, party: _Party, error: Error, now: float) -> None:
        if error.code == ErrorCode.INVALID_FAB:
            self._conclude(party, TrainReply(state="refused", reference=error.reason or ""))
        elif error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION:
            self._conclude(party, TrainReply(state="failed", reference=error.reason or ""))
        else:  # not delivered: the node is away, and `heard` says for how long
            party.send_at = now + AWAY_S

    def _conclude(self, party: _Party, said: TrainReply) -> None:
        party.last = said
        if said.record is not None:
            told = {"org": party.org, "record": said.record, "receipt": said.receipt}
            self._grid.report(RunReport.model_validate({"state": "record", **told}))
        if said.state != "succeeded":
            text = f"{said.state}{f' at stage {said.stage}' if said.stage else ''}"
            self._grid.report(RunReport(state="log", org=party.org, text=text))
            if not self._may_miss(party, said):
                self._deadline = min(self._deadline, time.monotonic() + GRACE_S)

    def _may_miss(self, party: _Party, said: TrainReply) -> bool:
        """Whether the attempt goes on without a party."""
        return False


class Rounds(Conversation):
    """The same for a job whose rounds a Flower strategy makes: one round at a time.

    A bank that has answered the round is not asked again until the next one; the strategy's state
    is with the coordinator before the next round is sent, so that a new process goes on from there.
    """

    def __init__(self, grid: JobGrid) -> None:
        super().__init__(grid)
        manifest = self._job.order.manifest.unverified(JobManifest)
        self._lead, self._banks = manifest.bank, len(manifest.banks)
        first, ids = first_weights(manifest), self._job.nodes.values()
        self._conductor = Conductor(manifest.neural, first, ids)
        if self._job.kept:
            self._conductor.restore(base64.b64decode(self._job.kept))
        self._answered: dict[str, int] = {}  # by bank: the last round that it answered

    def _content(self) -> RecordDict:
        order = self._conductor.order()
        content = super()._content()
        content[ROUND] = ConfigRecord({"number": order.number, "is_last": order.is_last})
        content[WEIGHTS] = ArrayRecord({WEIGHTS: Array(order.weights)})
        return content

    def _is_due(self, party: _Party, now: float) -> bool:
        order = self._conductor.order()
        is_done = self._answered.get(party.org) == order.number and not order.is_last
        if is_done and not party.message:
            party.heard = now  # it waits for the others
            return False
        return super()._is_due(party, now)

    def _go_on(self, party: _Party, reply: Message) -> None:
        if ROUND not in reply.content:
            return
        about = reply.content.config_records[ROUND]
        number = int(cast(int, about["number"]))
        if number != self._conductor.number:
            return
        self._answered[party.org] = number
        if party.org != self._lead or WEIGHTS not in reply.content:
            return
        weights = reply.content.array_records[WEIGHTS][WEIGHTS].numpy()
        figures = {name: float(cast(float, about[name])) for name in ("loss", "auc")}
        customers = int(cast(int, about["customers"]))
        try:
            self._conductor.take(RoundReply(number, weights, customers, **figures))
        except ProtocolError:
            self._conclude(party, TrainReply(state="failed", stage="rounds"))
            return
        kept = base64.b64encode(self._conductor.state()).decode()
        self._grid.report(RunReport(state="round", kept=kept))

    def _may_miss(self, party: _Party, said: TrainReply) -> bool:
        """Sums of the others go on while enough are left; who collects them is always needed."""
        lost = [p for p in self._parties if p.last is not None and p.last.state == "lost"]
        left = self._banks - len(lost)
        return said.state == "lost" and party.org != self._lead and left >= least(self._banks)
