"""A ServerApp process: waits on its standard input for one task, runs the installed ServerApp on it
(never the bundle's code), and ends.

Stands for `flower-superexec` and `flwr-serverapp`: the imports are done before the task exists, and
the grid relies on the coordinator's long polling instead of sleeping 3 s between pulls. Together
with server/flower.py the only module on this side that touches Flower's internals.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid, http_grid

from federation.api import REPORT_PATH, RunReport, TrainOrder
from server.serverapp import app

# A reply is visible before its objects are uploaded; stock Flower then sleeps 1, 2, 4 ... 10 s. And
# it waits for an hour for those of a node that was cut off in between: such a reply counts as not
# delivered, the node is asked again, and a repeat brings the stored one.
OBJECTS_S = 5.0
_pull_objects = partial(
    inflatable_utils.pull_objects, initial_backoff=0.01, backoff_cap=0.5, max_time=OBJECTS_S
)
vars(http_grid)["pull_objects"] = _pull_objects

REPORT_TRIES_S = 120.0  # a coordinator that is started again is there by then


@dataclass(frozen=True, slots=True)
class Job:
    """What the ServerApp knows of its run besides Flower's own context."""

    run_id: int
    order: TrainOrder
    nodes: Mapping[str, int]  # organisation -> node id
    wall_time_s: float
    party_wait_s: float
    kept: str = field(default="", repr=False)  # what the last finished round left, base64


class JobGrid(HttpGrid):
    """Flower's grid with the job's task, and a way to tell the coordinator about it."""

    def __init__(self, address: str, token: str, job: Job) -> None:
        super().__init__(runtime_api_address=address, insecure=True, token=token)
        self.job = job
        self._address, self._token = address, token

    def report(self, report: RunReport) -> None:
        """Tell the coordinator; tried again while it is away, given up when the run is void."""
        deadline, delay = time.monotonic() + REPORT_TRIES_S, 0.1
        while True:
            try:
                answer = httpx.post(
                    f"http://{self._address}{REPORT_PATH}",
                    content=report.model_dump_json(),
                    headers={TASK_TOKEN_HEADER: self._token},
                    timeout=30,
                    trust_env=False,
                )
                answer.raise_for_status()
                return
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500 or time.monotonic() > deadline:
                    raise
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(delay)
            delay = min(delay * 2, 5.0)

    def receive(self, waiting: Sequence[str]) -> list[Message]:
        """Replies to these messages; the coordinator holds the request while there are none."""
        return list(self.pull_messages(waiting)) if waiting else []

    def send(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages over; their ids, in order."""
        return list(self.push_messages(messages))

    def finish(self, sub_status: str, details: str) -> None:
        """The task's last word to Flower."""
        self._runtime_client.PushTaskOutput(
            PushTaskOutputRequest(sub_status=sub_status, details=details)
        )

    def task_input(self) -> Any:
        """Run, bundle and context of the task."""
        return self._runtime_client.PullTaskInput(PullTaskInputRequest())

    def heartbeat(self) -> HeartbeatSender:
        """A sender that keeps the task's token alive."""
        return HeartbeatSender(make_task_heartbeat_fn_http(self._runtime_client))


def main() -> int:
    """Serve one task from standard input."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    line = sys.stdin.readline()
    if not line:
        return 0  # the coordinator went away before a task came
    task = json.loads(line)
    job = Job(
        run_id=task["run_id"],
        order=TrainOrder.model_validate(task["order"]),
        nodes=task["nodes"],
        wall_time_s=task["wall_time_s"],
        party_wait_s=task["party_wait_s"],
        kept=task["kept"],
    )
    # Flower's client tries for ever; a coordinator that never comes back must leave no process.
    last = threading.Timer(job.wall_time_s + REPORT_TRIES_S, lambda: os._exit(1))
    last.daemon = True
    last.start()
    with tempfile.TemporaryDirectory(prefix="lianmo-serverapp-") as folder:
        os.chdir(folder)
        try:
            serve(JobGrid(task["address"], task["token"], job))
        finally:
            os.chdir("/")
    return 0


def serve(grid: JobGrid) -> None:
    """Run the ServerApp on the grid's task."""
    heartbeat = grid.heartbeat()
    heartbeat.start()
    try:
        given = grid.task_input()
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        run, context = run_from_proto(given.run), context_from_proto(given.context)
        context.run_config = get_fused_config_from_fab(fab_from_proto(given.fab).content, run)
        context.state = RecordDict()
        grid.set_run(run)
        app(grid=grid, context=context)
        grid.finish(SubStatus.COMPLETED, "")
    except Exception as error:
        # the text may hold what nobody else should read: only the type leaves
        grid.finish(SubStatus.FAILED, f"ServerApp failed: {type(error).__name__}")
        raise
    finally:
        if heartbeat.is_running:
            heartbeat.stop()
        grid.close()


if __name__ == "__main__":
    sys.exit(main())
