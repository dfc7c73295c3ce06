"""The installed ServerApp: gives every party its `train` message and collects signed run records.

Flower delivers at most once, and party programs take minutes. So a node answers within seconds,
`running` or its last word, and is asked again with the same order until it has said its last word:
a lost message costs one repeat, and a repeat starts nothing twice (clients/runner.py).

Nobody's word is checked here: each gate checks the order, governance checks the records.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from federation.api import TRAIN, TRAIN_HOLD_S, RunReport, TrainOrder, TrainReply

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
    Conversation(cast(JobGrid, grid)).run()


class Conversation:
    """Asks every party until each has said its last word, or is lost."""

    def __init__(self, grid: JobGrid) -> None:
        self._grid, self._job = grid, grid.job
        now = time.monotonic()
        self._deadline = now + self._job.wall_time_s
        self._parties = [_Party(org, node, heard=now) for org, node in self._job.nodes.items()]
        body = self._job.order.model_dump_json().encode()
        self._content = RecordDict({"order": ConfigRecord({"json": body})})

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
        due = [p for p in parties if now >= (p.repeat_at if p.message else p.send_at)]
        if not due:
            return
        messages = [Message(self._content, party.node, TRAIN) for party in due]
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
            self._deadline = min(self._deadline, time.monotonic() + GRACE_S)
