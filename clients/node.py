"""The resident node: Flower's Fleet API, a ClientApp that stays in memory, a gate before each run.

Only the installed package runs. The bundle (FAB) of a run carries no code; it and the run's
configuration must be the ones that follow from a manifest approved here, else the run is refused.

Written on `FleetHttpClient`, not on Flower's own loop: that ends the process when it cannot
activate (a crash blocks activation for 60 s), swallows exceptions of its body and raises SIGINT on
a 401. A heartbeat marks any registered node online, so a node that knows its id (told at
registration) needs no activation at all. With server/flower.py and server/worker.py the only place
that touches Flower's internals; tests/server/test_flower_contract.py says what we rely on.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node as NodeId
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.coordinator_client import coordinator_url, tls_context
from clients.home import Home
from federation.api import ROUND, WEIGHTS, TrainOrder, TrainReply
from federation.errors import IntegrityError
from federation.objects import Usage
from federation.tasks.party import RoundOrder, RoundReply

log = logging.getLogger(__name__)
T = TypeVar("T")

HEARTBEAT_S = 10.0  # Flower's minimum; the node counts as away after twice this
IDLE_S = 0.05  # pause after an empty pull: our coordinator has held it already
RUNS_KEPT = 64
MAX_FAB = 1 << 20

# What a node does with an order: (order, bundle, run configuration) -> reply. `clients.runner`.
Train = Callable[[TrainOrder, bytes, dict[str, object]], TrainReply]
# The same for an order with a round in it.
TrainRound = Callable[
    [TrainOrder, bytes, dict[str, object], RoundOrder], tuple[TrainReply, RoundReply | None]
]


def _no_rounds(
    order: TrainOrder, fab: bytes, config: dict[str, object], round_: RoundOrder
) -> tuple[TrainReply, RoundReply | None]:
    return TrainReply(state="refused"), None


def _round_of(content: RecordDict) -> RoundOrder | None:
    """The round that a message carries, if any; `server/serverapp.py` puts it there."""
    if ROUND not in content:
        return None
    about = content.config_records[ROUND]
    weights = content.array_records[WEIGHTS][WEIGHTS].numpy().astype(np.float32)
    return RoundOrder(int(cast(int, about["number"])), weights, bool(about["is_last"]))


def _answer(reply: RoundReply) -> RecordDict:
    about = {"number": reply.number, "customers": reply.customers}
    figures = {"loss": reply.loss, "auc": reply.auc}
    content = RecordDict({ROUND: ConfigRecord({**about, **figures})})
    if reply.weights is not None:
        content[WEIGHTS] = ArrayRecord({WEIGHTS: Array(reply.weights)})
    return content


@dataclass
class _Run:
    """What is kept of a Flower run: its bundle and fused configuration, as the coordinator says."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # one message of a run at a time
    context: Context | None = None
    fab: bytes = b""


class Node:
    """Serves one organisation until `stop`."""

    def __init__(
        self,
        home: Home,
        node_id: int,
        train: Train,
        *,
        rounds: TrainRound = _no_rounds,
        workers: int = 4,
    ) -> None:
        self._home, self._node_id, self._train, self._rounds = home, node_id, train, rounds
        self._workers = max(workers, 2)
        self._stopped = threading.Event()
        # the coordinator knows this node: by a heartbeat, as it may hold a pull for 10 s
        self.reached = threading.Event()
        self._runs: dict[int, _Run] = {}
        self._node = NodeId(node_id=node_id)
        self._client = self._connect()
        self._app = ClientApp()
        self._app.train()(self._on_train)

    def stop(self) -> None:
        """Pull no more; `run` returns."""
        self._stopped.set()

    def run(self) -> None:
        """Serve until `stop`.

        A pull that the coordinator holds is left behind, not waited for: when this process ends,
        the coordinator sees the connection go and delivers nothing on it.
        """
        pool = ThreadPoolExecutor(self._workers, "flower")
        for target in (self._beat, lambda: self._pull(pool)):
            threading.Thread(target=target, daemon=True).start()
        self._stopped.wait()
        pool.shutdown(wait=False, cancel_futures=True)
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node_id))
        except httpx.HTTPError as error:
            log.info("left without good-bye", extra={"reason": type(error).__name__})

    def _pull(self, pool: ThreadPoolExecutor) -> None:
        free = threading.BoundedSemaphore(self._workers)
        request = PullMessagesRequest(node=self._node)
        while not self._stopped.is_set():
            # A message is pulled only when somebody can take it: delivery is at most once.
            if not free.acquire(timeout=0.5):
                continue
            try:
                response = self._call(self._client.PullMessages, request)
            except httpx.HTTPStatusError as error:
                # our key is not admitted, or a clock is wrong; both are for a person to mend
                log.error("pull refused", extra={"status": error.response.status_code})
                self._stopped.wait(5.0)
                free.release()
                continue
            except InterruptedError:
                return
            if not response.messages_list or self._stopped.is_set():
                free.release()
                self._stopped.wait(IDLE_S)
                continue
            message = message_from_proto(response.messages_list[0])
            done = pool.submit(self._handle, message, response.message_object_trees[0])
            done.add_done_callback(lambda _: free.release())

    # --- connection -------------------------------------------------------------------------------

    def _connect(self) -> FleetHttpClient:
        key = cast(Any, self._home.key(Usage.NODE).secret)
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ]
        return FleetHttpClient(
            coordinator_url(self._home),
            interceptors=cast(Any, interceptors),
            verify=tls_context(self._home),
        )

    def _call(self, call: Callable[..., T], request: object) -> T:
        """Call until it is answered; a refusal (4xx) is final, all else is tried again."""
        delay = 0.2
        while True:
            try:
                return call(request)
            except httpx.TransportError as error:
                reason = type(error).__name__
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise
                reason = str(error.response.status_code)
            if self._stopped.is_set():
                raise InterruptedError
            log.warning("coordinator unavailable", extra={"reason": reason, "again_s": delay})
            if self._stopped.wait(delay * random.uniform(0.8, 1.2)):  # noqa: S311 - no secret
                raise InterruptedError
            delay = min(delay * 2, 5.0)

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        while True:
            try:
                if self._call(self._client.SendNodeHeartbeat, request).success:
                    self.reached.set()
            except httpx.HTTPStatusError as error:
                # our key is not admitted, or a clock is wrong; both are for a person to mend
                log.error("heartbeat refused", extra={"status": error.response.status_code})
            except InterruptedError:
                return
            if self._stopped.wait(HEARTBEAT_S * 0.8):
                return

    # --- one message ------------------------------------------------------------------------------

    def _on_train(self, message: Message, context: Context) -> Message:
        """The installed ClientApp's only handler."""
        run = self._runs[context.run_id]
        order = TrainOrder.model_validate_json(cast(bytes, message.content["order"]["json"]))
        round_, config = _round_of(message.content), dict[str, object](context.run_config)
        content = RecordDict()
        if round_ is None:
            said = self._train(order, run.fab, config)
        else:
            said, reply = self._rounds(order, run.fab, config, round_)
            if reply is not None:
                content = _answer(reply)
        content["reply"] = ConfigRecord({"json": said.model_dump_json().encode()})
        return Message(content, reply_to=message)

    def _handle(self, message: Message, tree: ObjectTree) -> None:
        run_id, began = message.metadata.run_id, time.monotonic()
        run = self._run_of(run_id)
        try:
            with run.lock:
                if run.context is None:
                    self._learn(run_id, run)
                reply = self._app(self._fetch(message, tree), cast(Context, run.context))
        except InterruptedError:
            return
        except Exception:
            # the text may hold data: it stays in the local log, under a reference
            reference = secrets.token_hex(4)
            log.exception("message not handled", extra={"run": run_id, "reference": reference})
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = Message(Error(code, reference), reply_to=message)
        try:
            self._push(reply, run_id, time.monotonic() - began)
        except (httpx.HTTPError, InterruptedError) as error:  # e.g. the run was stopped meanwhile
            reason = type(error).__name__
            log.warning("reply not delivered", extra={"run": run_id, "reason": reason})
            self._runs.pop(run_id, None)

    def _run_of(self, run_id: int) -> _Run:
        """The run's state; of more than RUNS_KEPT the oldest idle ones are forgotten."""
        idle = [key for key, run in self._runs.items() if not run.lock.locked()]
        for old in idle[: max(0, len(self._runs) - RUNS_KEPT + 1)]:
            self._runs.pop(old, None)
        return self._runs.setdefault(run_id, _Run())

    def _learn(self, run_id: int, state: _Run) -> None:
        """Bundle and configuration of a run, overrides included: for the gate to compare."""
        request = GetRunRequest(node=self._node, run_id=run_id)
        run = run_from_proto(self._call(self._client.GetRun, request).run)
        wanted = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
        fab = self._call(self._client.GetFab, wanted).fab.content
        if len(fab) > MAX_FAB:
            raise IntegrityError("the bundle of this run is too large", party="coordinator")
        config = get_fused_config_from_fab(fab, run)
        state.fab = fab
        state.context = Context(
            run_id=run_id,
            node_id=self._node_id,
            node_config={},
            state=RecordDict(),
            run_config=config,
            series_id=run.series_id,
        )

    def _fetch(self, message: Message, tree: ObjectTree) -> Message:
        run_id, message_id = message.metadata.run_id, message.metadata.message_id
        pull = make_pull_object_fn_protobuf(
            partial(self._call, self._client.PullObject), self._node, run_id
        )
        ids = [item.object_id for item in iterate_object_tree(tree)]
        contents = pull_objects(ids, pull, initial_backoff=0.01, backoff_cap=0.5)
        confirm = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=message_id
        )
        self._call(self._client.ConfirmMessageReceived, confirm)
        whole = cast(Message, inflate_object_from_contents(message_id, contents))
        whole.metadata.__dict__["_message_id"] = message_id
        return whole

    def _push(self, reply: Message, run_id: int, seconds: float) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[seconds],
            )
            response = self._call(self._client.PushMessages, request)
            push = make_push_object_fn_protobuf(
                partial(self._call, self._client.PushObject),
                self._node,
                run_id,
                response.session_id,
            )
            wanted = set(response.objects_to_push)
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=wanted)
