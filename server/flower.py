"""Flower's SuperLink as a part of our process: its state, its handlers, its wire protocol; not its
app.

Flower's own app brings the Control API without authentication, `acquire-task`, eight middlewares.
Here two explicit tables say which handlers exist at all:

    fleet    for the nodes, on the public port. The caller is proven twice, by its TLS certificate
             and by Flower's node key signature, and both must belong to one organisation
    runtime  for the ServerApp processes, on loopback. The caller is proven by its task token

Everything else of Flower's HTTP API has no route on any port; governance calls `start_run` and
`register_node` as functions. One job is one Flower federation, so a node sees only its own jobs.

Internals of flwr 1.41.0, pinned exactly: they are touched here, in server/worker.py (the other end
of the runtime paths) and in clients/node.py alone; tests/server/test_flower_contract.py says what
we rely on.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"

from fastapi import HTTPException  # Flower translates this one, not its base
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, Status
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, TASK_TOKEN_HEADER
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.error import FlowerError
from flwr.supercore.error.http import http_error_translator
from flwr.supercore.fab import Fab
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.servicer.runtime import runtime_handlers as core
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.control import control_handlers
from flwr.superlink.servicer.fleet import fleet_handlers as fleet
from flwr.superlink.servicer.runtime import runtime_handlers as runtime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from federation.api import REPORT_PATH
from federation.errors import LianmoError

MAX_BODY = 16 << 20  # Flower cuts arrays into objects of 5 MB
HOLD_S = 10.0  # an empty pull is held so long; Flower's clients time out after 30


class JobFederations(NoOpFederationManager):
    """One Flower federation per job: a node sees and gets only what belongs to its jobs."""

    def __init__(self, members: dict[str, set[int]]) -> None:
        super().__init__()
        self.members = members  # manifest digest -> node ids; governance keeps and persists them

    def exists(self, federation_id: str) -> bool:
        return federation_id in self.members

    def has_node(self, node_id: int, federation_id: str) -> bool:
        return node_id in self.members.get(federation_id, ())

    def filter_nodes(self, node_ids: set[int], federation_id: str) -> set[int]:
        # without the SuperLink's own id Flower deletes every message of the ServerApp
        return node_ids & (self.members.get(federation_id, set()) | {SUPERLINK_NODE_ID})

    def get_simulation_config(self, federation_id: str) -> SimulationConfig | None:
        return None


class SuperLink:
    """What governance may do with Flower: admit node keys, start and stop runs."""

    account = AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)

    def __init__(self, database: str) -> None:
        self.members: dict[str, set[int]] = {}
        _, self.linkstate_factory = get_objectstore_linkstate_factories(
            database, JobFederations(self.members)
        )
        self.state: LinkState = self.linkstate_factory.state()
        # Every Flower handler writes (even reads begin with an UPDATE that expires tasks). Threads
        # that meet at SQLite's write lock sleep in its busy handler: one thread serves more
        # requests than forty.
        self.worker = ThreadPoolExecutor(1, "superlink")

    def register_node(self, name: str, public_key: bytes) -> int:
        """Admit a node key (PEM); its node id, the same one for a key that is known."""
        if (known := self.state.get_node_id_by_public_key(public_key)) is not None:
            return known
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(control_handlers.register_node(request, self.account, self.state).node_id)

    def unregister_node(self, node_id: int) -> None:
        """Forget a node key: nothing it signs is accepted any more."""
        self.state.delete_node(NOOP_FLWR_AID, node_id)

    def create_run(self, job: str, fab: bytes) -> tuple[int, str]:
        """Create a run of the job and claim its task: (run id, the ServerApp's token).

        No configuration overrides: the FAB's digest covers the configuration.
        """
        request = StartRunRequest(fab=fab_to_proto(Fab("", fab, {})), federation=job)
        try:
            run_id = control_handlers.start_run(request, self.account, self.state, None).run_id
        except FlowerError as error:
            raise LianmoError("Flower did not start the run", party="coordinator") from error
        token = self.state.claim_task(self._task(run_id))
        if token is None:
            raise RuntimeError(f"task of run {run_id} was already claimed")
        return run_id, token

    def stop_run(self, run_id: int) -> None:
        """Finish the run: its token is void, its ServerApp process ends at its next request."""
        self.state.stop_run(run_id)

    def status(self, run_id: int) -> str:
        """Flower's word on the run: pending, starting, running, completed, failed, stopped."""
        status = self.state.get_run_status({run_id}).get(run_id)
        if status is None:
            return "failed"
        return status.sub_status if status.status == Status.FINISHED else status.status

    def _task(self, run_id: int) -> int:
        task = self.state.get_run_info(run_ids=[run_id])[0].primary_task_id
        if task is None:
            raise RuntimeError(f"run {run_id} has no task")
        return task


# --- the wire -------------------------------------------------------------------------------------


@dataclass
class Mailbox:
    """Counts pushes in one direction, so that a pull that would find nothing can wait."""

    count: int = 0
    seen: dict[str, int] = field(default_factory=dict)  # authenticated callers only
    uploads: dict[str, int] = field(default_factory=dict)  # push session -> objects still to come
    is_closed: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def close(self) -> None:
        """Hold nobody any more: the coordinator stops."""
        self.is_closed = True
        self.wake()

    def pushed(self, session: str, objects: int) -> None:
        """Messages were pushed; wake the pulls when their objects are there too."""
        self.uploads[session] = objects + 1
        self.uploaded(session)

    def uploaded(self, session: str) -> None:
        """One more object of the session has arrived."""
        self.uploads[session] = self.uploads.get(session, 1) - 1
        if self.uploads[session] <= 0:
            del self.uploads[session]
            self.wake()

    def wake(self) -> None:
        """Let every held pull look again."""
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, caller: str, receive: Receive, timeout_s: float) -> bool:
        """Wait, if this caller found nothing and nothing was pushed since. False: it hung up.

        A pull marks its message as delivered. One held for a node that has died would take the
        message with it.
        """
        if self.is_closed or self.seen.get(caller) != self.count:
            return True
        mail = asyncio.ensure_future(self._changed.wait())
        gone = asyncio.ensure_future(receive())
        done, pending = await asyncio.wait(
            (mail, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        return gone not in done


Handler = Callable[..., Any]


class FlowerApi:
    """Answers exact paths with Flower's handlers; all other requests go to `other`."""

    prefix: ClassVar[str]
    caller_header: ClassVar[str]
    handlers: ClassVar[dict[str, Handler]]

    def __init__(
        self,
        superlink: SuperLink,
        inbox: Mailbox,
        outbox: Mailbox,
        other: ASGIApp,
        *,
        hold_s: float = HOLD_S,
    ) -> None:
        # Flower's dependencies look for `request.app.state.linkstate_factory`
        self.state = SimpleNamespace(linkstate_factory=superlink.linkstate_factory)
        self.linkstate, self.worker = superlink.state, superlink.worker
        self.inbox, self.outbox, self.other, self.hold_s = inbox, outbox, other, hold_s
        self.routes = {self.prefix + name: handler for name, handler in self.handlers.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope.get("path"), scope.get("method")
        if scope["type"] != "http" or path not in self.routes or method != "POST":
            return await self.other(scope, receive, send)
        request = Request(dict(scope) | {"app": self, "state": {}}, receive)
        response = await http_error_translator(request, self._answer)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path, caller = request.url.path, request.headers.get(self.caller_header, "")
        self.check_caller(request, caller)
        try:
            message = PROTOBUF_REQUEST_TYPES["POST", path].FromString(await read_body(request))
        except DecodeError:
            raise HTTPException(400) from None
        request.state.protobuf_request = message
        is_pull = path.endswith("/pull-messages")
        if is_pull:  # who is not who it says is not held, but refused at once
            await self.in_worker(self.authenticate, request)
            if not await self.inbox.wait(caller, request.receive, self.hold_s):
                return Response(status_code=499)
        count = self.inbox.count
        result = await self.in_worker(self.call, self.routes[path], request, message)
        content = result.SerializeToString()
        if is_pull and not content:
            self.inbox.seen[caller] = count
        elif path.endswith("/push-messages"):
            self.outbox.pushed(result.session_id, len(result.objects_to_push))
        elif path.endswith("/push-object"):
            self.outbox.uploaded(message.session_id)
        elif path.endswith("/push-task-output"):
            self.inbox.seen.pop(caller, None)
        return Response(content, media_type=PROTOBUF_MEDIA_TYPE)

    async def in_worker(self, function: Handler, *arguments: Any) -> Any:
        """Run one of Flower's functions in its one thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.worker, function, *arguments)

    def check_caller(self, request: Request, caller: str) -> None:
        """Refuse, before the body is read, who may not call at all."""

    def authenticate(self, request: Request) -> Any:
        """Prove the caller by Flower's own rule, or raise (in the worker thread)."""
        raise NotImplementedError

    def call(self, handler: Handler, request: Request, message: Any) -> Any:
        """Authenticate the caller, then run the handler (in the worker thread)."""
        raise NotImplementedError


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body; 413 beyond the limit."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413)
    return bytes(body)


def _with_store(handler: Handler) -> Handler:
    return lambda message, state: handler(message, state, state.object_store)


# Given the connection's scope and a node key (PEM): do both belong to one admitted organisation?
Owns = Callable[[Scope, bytes], bool]


class FleetApi(FlowerApi):
    """For the nodes. No register-node and no unregister-node: governance admits keys."""

    prefix = "/v1/fleet/"
    caller_header = FLEET_HTTP_PUBLIC_KEY_HEADER
    handlers: ClassVar[dict[str, Handler]] = {
        "activate-node": fleet.activate_node,
        "deactivate-node": fleet.deactivate_node,
        "send-node-heartbeat": fleet.send_node_heartbeat,
        "pull-messages": _with_store(fleet.pull_messages),
        "push-messages": fleet.push_messages,
        "get-run": fleet.get_run,
        "get-fab": fleet.get_fab,
        "push-object": fleet.push_object,
        "pull-object": fleet.pull_object,
        "confirm-message-received": _with_store(fleet.confirm_message_received),
    }

    def __init__(self, owns: Owns, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._owns = owns

    def check_caller(self, request: Request, caller: str) -> None:
        """The node key must be the one on the card of the TLS certificate's organisation.

        Flower's signature covers a timestamp alone, so a header could be carried over to another
        connection; with this it is worth nothing there.
        """
        try:
            key = base64.b64decode(caller, validate=True)
        except (ValueError, binascii.Error):
            raise HTTPException(401) from None
        if not key or not self._owns(request.scope, key):
            raise HTTPException(401)

    def authenticate(self, request: Request) -> None:
        authenticate_node(request)

    def call(self, handler: Handler, request: Request, message: Any) -> Any:
        self.authenticate(request)
        return handler(message, self.linkstate)


# A ServerApp's word on its run: (run id, body).
OnReport = Callable[[int, bytes], Awaitable[None]]


class RuntimeApi(FlowerApi):
    """For the ServerApp processes. No acquire-task, create-task, start-automation, connectors."""

    prefix = "/v1/runtime/"
    caller_header = TASK_TOKEN_HEADER
    handlers: ClassVar[dict[str, Handler]] = {
        "send-task-heartbeat": core.send_task_heartbeat,
        "pull-task-input": runtime.pull_task_input,
        "push-task-output": runtime.push_task_output,
        "get-nodes": runtime.get_nodes,
        "pull-messages": runtime.pull_messages,
        "push-messages": runtime.push_messages,
        "push-object": runtime.push_object,
        "pull-object": runtime.pull_object,
        "confirm-message-received": runtime.confirm_message_received,
        "push-logs": core.push_logs,
    }

    def __init__(self, on_report: OnReport, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._on_report = on_report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Flower's paths, and one of ours: the run's report, under the same task token."""
        if scope["type"] != "http" or scope["path"] != REPORT_PATH or scope["method"] != "POST":
            return await super().__call__(scope, receive, send)
        request = Request(dict(scope) | {"app": self, "state": {}}, receive)
        response = await http_error_translator(request, self._report)
        await response(scope, receive, send)

    async def _report(self, request: Request) -> Response:
        task = await self.in_worker(self.authenticate, request)
        await self._on_report(task.run_id, await read_body(request))
        return Response(status_code=204)

    def authenticate(self, request: Request) -> Any:
        return authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), self.linkstate)

    def call(self, handler: Handler, request: Request, message: Any) -> Any:
        return handler(message, self.linkstate, self.authenticate(request))


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI app that answers 404 to everything."""
    if scope["type"] == "http":
        await Response(status_code=404)(scope, receive, send)


def flower_apis(
    superlink: SuperLink, *, owns: Owns, on_report: OnReport, other: ASGIApp, hold_s: float = HOLD_S
) -> tuple[FleetApi, RuntimeApi]:
    """The public and the loopback app; what one side pushes wakes the pulls of the other."""
    to_nodes, to_servers = Mailbox(), Mailbox()
    return (
        FleetApi(owns, superlink, to_nodes, to_servers, other, hold_s=hold_s),
        RuntimeApi(on_report, superlink, to_servers, to_nodes, not_found, hold_s=hold_s),
    )
