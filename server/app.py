"""The coordinator's HTTP API: parse, call governance, answer.

Every request comes over TLS with a client certificate; the caller is the organisation whose
admitted card holds exactly that certificate. Every answer that is not 2xx is an RFC 9457 problem
and says nothing about files, SQL or stacks.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from federation.api import (
    API,
    MAX_BODY_BYTES,
    MAX_WAIT_S,
    PROBLEM_TYPE,
    CatalogueEntry,
    Events,
    Health,
    JobDetail,
    JobSummary,
    OrganisationEntry,
    Page,
    Problem,
    ProgressAnswer,
    ProgressBody,
    Registration,
    StopBody,
    from_cursor,
    problem_of,
    to_cursor,
)
from federation.envelope import Envelope
from federation.errors import LianmoError, UsageError
from federation.network import Bundle
from federation.objects import ObjectName, OrgId, utc_text
from federation.package import package_sha256
from federation.problems import handlers, plain_problem, problem_response
from federation.request_body import read_body, replay_body
from server.governance import Governance
from server.network import NetworkDesk
from server.store import IdempotencyRow, Store

log = logging.getLogger(__name__)

IDEMPOTENCY_LIFE = timedelta(days=1)
# Of one caller's answers; the oldest go first, or its keys would fill the disk within the day.
ANSWERS_KEPT, BYTES_KEPT = 2000, 32 << 20
# Twice is as once here, and an answer may be large: none is kept.
NO_EFFECT = re.compile(rf"{API}/(sealed(/[^/]*)?|grants/events/(of|wanted)|network)")
ORG_KEY = "lianmo.org"  # who calls, in the scope
# Also for organisations that are not active: or a network could not be founded, and one that is
# suspended would not hear why, or that it is over.
FOR_ALL_TRUSTED = frozenset({f"{API}/health", f"{API}/network"})
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

Identify = Callable[[Scope], str | None]


class Changes:
    """Wakes the long polls when something happened to any job; called from any thread."""

    def __init__(self) -> None:
        self._version = 0
        self.is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._version

    def close(self) -> None:
        """Hold nobody any more: the coordinator stops."""
        self.is_closed = True
        self.announce()

    def announce(self) -> None:
        """Something changed."""
        with self._lock:
            self._version += 1
            loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake)

    async def wait_beyond(self, seen: int, timeout_s: float) -> None:
        """Return when something changed since `seen`, or after the timeout."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            event = self._event
            if self._version != seen:
                return
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return

    def _wake(self) -> None:
        before, self._event = self._event, asyncio.Event()
        before.set()


def _invalid(text: str) -> Response:
    problem = problem_of(UsageError(text))
    return problem_response(problem.model_copy(update={"status": 422, "title": "Invalid request"}))


# --- around every request -------------------------------------------------------------------------


class Guard:
    """Who calls, how much, and whether this very request was answered before."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        identify: Identify,
        store: Store,
        now: Callable[[], datetime],
        require_active: Callable[[str], None] = lambda org: None,
    ) -> None:
        self._app, self._identify, self._store, self._now = app, identify, store, now
        self._require_active = require_active

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        org = self._identify(scope)
        if org is None:
            response = plain_problem(401, "no admitted card holds the certificate of this caller")
            return await response(scope, receive, send_with_headers)
        scope[ORG_KEY] = org
        if scope["path"] not in FOR_ALL_TRUSTED:
            try:
                self._require_active(org)
            except LianmoError as error:
                response = problem_response(problem_of(error))
                return await response(scope, receive, send_with_headers)
        body = await _read(Headers(scope=scope), receive)
        if body is None:
            response = plain_problem(413, f"a body has at most {MAX_BODY_BYTES} bytes")
            return await response(scope, receive, send_with_headers)
        key = Headers(scope=scope).get("idempotency-key")
        if scope["method"] != "POST" or key is None or NO_EFFECT.fullmatch(scope["path"]):
            return await self._app(scope, replay_body(body, receive), send_with_headers)
        if not re.fullmatch(r"[A-Za-z0-9_-]{16,64}", key):
            response = plain_problem(400, "Idempotency-Key: 16 to 64 letters, digits, `-` or `_`")
            return await response(scope, receive, send_with_headers)
        await self._once(org, key, body, scope, receive, send_with_headers)

    async def _once(
        self, org: str, key: str, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """One effect for one key: the first request is served, others get its answer."""
        parts = (scope["path"].encode(), scope.get("query_string", b""), body)
        fingerprint = hashlib.sha256(
            b"".join(hashlib.sha256(p).digest() for p in parts)
        ).hexdigest()
        known = await run_in_threadpool(self._claim, org, key, fingerprint)
        if known is not None:
            return await known(scope, receive, send)
        answer = _Recorded(send)
        try:
            await self._app(scope, replay_body(body, receive), answer)
        finally:
            await run_in_threadpool(self._settle, org, key, answer)

    def _claim(self, org: str, key: str, fingerprint: str) -> Response | None:
        """None: the caller is the first and shall be served."""
        now = self._now()
        with self._store.write() as session:
            session.execute(
                sa.delete(IdempotencyRow).where(IdempotencyRow.created < now - IDEMPOTENCY_LIFE)
            )
            row = session.get(IdempotencyRow, (org, key))
            if row is None:
                row = IdempotencyRow(org=org, key=key, fingerprint=fingerprint, created=now)
                session.add(row)
                return None
            if row.fingerprint != fingerprint:
                return plain_problem(422, "this Idempotency-Key was used for another request")
            if row.status is None:
                return plain_problem(409, "the first request with this Idempotency-Key is served")
            return Response(row.body, row.status, media_type=row.content_type)

    def _settle(self, org: str, key: str, answer: _Recorded) -> None:
        """Keep the answer; of a failure on our side nothing, so that it can be tried again."""
        with self._store.write() as session:
            row = session.get(IdempotencyRow, (org, key))
            if row is None:
                return
            if answer.status is None or answer.status >= 500:
                session.delete(row)
            else:
                row.status, row.body = answer.status, bytes(answer.body)
                row.content_type = answer.content_type
                session.flush()
                _make_room(session, org)


def _make_room(session: Session, org: str) -> None:
    """Forget a caller's oldest answers, with their keys, beyond what is kept of one."""
    kept, size, gone = IdempotencyRow, 0, list[str]()
    query = sa.select(kept.key, sa.func.length(kept.body))
    query = query.where(kept.org == org, kept.status.is_not(None)).order_by(kept.created.desc())
    for place, (key, length) in enumerate(session.execute(query)):
        size += length or 0
        if place >= ANSWERS_KEPT or size > BYTES_KEPT:
            gone.append(key)
    for key in gone:
        session.execute(sa.delete(kept).where(kept.org == org, kept.key == key))


class _Recorded:
    """Passes an answer on and remembers it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.content_type, self.body = "", bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.content_type = Headers(raw=message["headers"]).get("content-type", "")
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
        await self._send(message)


async def _read(headers: Headers, receive: Receive) -> bytes | None:
    """The body, or None if it is, or says that it will be, too large."""
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        return None
    return await read_body(receive, MAX_BODY_BYTES)


# --- endpoints ------------------------------------------------------------------------------------


async def _caller(request: Request) -> str:  # not in a thread: that costs more than the rest
    return str(request.scope[ORG_KEY])


async def _envelope(request: Request) -> Envelope:
    """The body, which is a signed envelope as it goes into a file."""
    return Envelope.from_json(await request.body())


Caller = Annotated[str, Depends(_caller)]
Signed = Annotated[Envelope, Depends(_envelope)]
After = Annotated[int, Query(ge=0, lt=1 << 53)]  # a database has no greater number
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=200)]


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """What a route that reads its body itself takes, for the OpenAPI document.

    Inner models stand where they are named: a reference would look for them in the whole document.
    """
    schema = model.model_json_schema()
    inner = schema.pop("$defs", {})

    def whole(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return whole(inner[part["$ref"].rpartition("/")[2]])
            return {name: whole(value) for name, value in part.items()}
        return [whole(value) for value in part] if isinstance(part, list) else part

    content = {"application/json": {"schema": whole(schema)}}
    return {"requestBody": {"required": True, "content": content}}


SIGNED_BODY, NETWORK_BODY = _body(Envelope), _body(Bundle)


def create_app(
    governance: Governance,
    store: Store,
    changes: Changes,
    *,
    platform: str,
    card: Callable[[], Envelope],
    identify: Identify,
    now: Callable[[], datetime],
    network: NetworkDesk | None = None,
    others: Sequence[APIRouter] = (),
) -> ASGIApp:
    """The API as an ASGI application; `identify` says whose certificate a connection has."""
    api = APIRouter(prefix=API)

    if network is not None:
        desk = network

        @api.get("/network")
        def documents() -> Response:
            """Give out charter, decisions and bulletins of the network."""
            return Response(desk.bundle().to_json(), media_type="application/json")

        @api.post("/network", openapi_extra=NETWORK_BODY)
        async def hand_in(org: Caller, request: Request) -> Response:
            """Take decisions and bulletins that hold, and give out all there are."""
            told = Bundle.from_json(await request.body())
            kept = await run_in_threadpool(desk.take, org, told)
            return Response(kept.to_json(), media_type="application/json")

    @api.get("/health")
    def health() -> Health:
        """Say that the coordinator answers, and which release it runs."""
        return Health(
            platform=platform,
            version=version("lianmo"),
            package_sha256=package_sha256(),
            time=utc_text(now()),
        )

    @api.put("/organisations/me", openapi_extra=SIGNED_BODY)
    def register(org: Caller, envelope: Signed) -> Registration:
        """Show the caller's card; its node is known from then on."""
        return Registration(node_id=governance.register(org, envelope), platform=card())

    @api.get("/organisations")
    def organisations() -> Page[OrganisationEntry]:
        """List the admitted organisations."""
        return governance.organisations()

    @api.get("/organisations/{org}")
    def organisation(org: OrgId) -> OrganisationEntry:
        """Show one admitted organisation."""
        return governance.organisation(org)

    @api.put("/catalogue/{dataset}", openapi_extra=SIGNED_BODY)
    def publish(org: Caller, dataset: ObjectName, envelope: Signed) -> CatalogueEntry:
        """Publish what the caller says about one of its datasets."""
        return governance.publish_dataset(org, dataset, envelope)

    @api.get("/catalogue")
    def catalogue(cursor: Cursor = None, limit: Limit = 100) -> Page[CatalogueEntry]:
        """List the published datasets, by organisation and name."""
        org, _, dataset = (from_cursor(cursor, r"[a-z0-9_-]+/[a-z0-9_.-]+") or "").partition("/")
        page = governance.catalogue((org, dataset), limit)
        return page.model_copy(update={"next": to_cursor(page.next)})

    @api.post("/jobs", status_code=201, openapi_extra=SIGNED_BODY)
    def submit(org: Caller, envelope: Signed) -> JobDetail:
        """Propose a job to its owners."""
        return governance.submit(org, envelope)

    @api.get("/jobs")
    def jobs(org: Caller, cursor: Cursor = None, limit: Limit = 50) -> Page[JobSummary]:
        """List the jobs that name the caller, newest first."""
        before = from_cursor(cursor, r"[0-9]{1,18}")
        page = governance.jobs(org, None if before is None else int(before), limit)
        return page.model_copy(update={"next": to_cursor(page.next)})

    @api.get("/jobs/{job}")
    def job(org: Caller, job: ObjectName) -> JobDetail:
        """Show a job with all that was signed for it."""
        return governance.job(org, job, is_review=True)

    @api.post("/jobs/{job}/approvals", status_code=201, openapi_extra=SIGNED_BODY)
    def decide(org: Caller, job: ObjectName, envelope: Signed) -> JobDetail:
        """Approve, refuse or withdraw, in a signed word of the caller's approver."""
        return governance.decide(org, job, envelope)

    @api.post("/jobs/{job}/progress")
    def progress(org: Caller, job: ObjectName, body: ProgressBody) -> ProgressAnswer:
        """Say how far the caller's party program is, and hear whether the job goes on."""
        return ProgressAnswer(status=governance.progress(org, job, body))

    @api.post("/jobs/{job}/stop")
    def stop(org: Caller, job: ObjectName, body: StopBody) -> JobDetail:
        """End a job for all its parties."""
        return governance.stop(org, job, body.words)

    @api.get("/jobs/{job}/events")
    async def events(
        org: Caller,
        job: ObjectName,
        after: After = 0,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> Events:
        """Wait until something happened to a job, at most `wait` seconds."""
        until = time.monotonic() + wait
        while True:
            seen = changes.version
            found = await run_in_threadpool(governance.events, org, job, after)
            left = until - time.monotonic()
            if found.items or found.status.is_final or changes.is_closed or left <= 0:
                return found
            await changes.wait_beyond(seen, left)

    app = FastAPI(
        title="lianmo coordinator",
        version=version("lianmo"),
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
        redirect_slashes=False,
        exception_handlers=handlers(log, _invalid),
        responses={"default": {"model": Problem, "content": {PROBLEM_TYPE: {}}}},
    )
    for other in others:  # endpoints of other modules
        api.include_router(other)
    app.include_router(api)
    require_active = network.require_active if network is not None else lambda org: None
    return Guard(app, identify=identify, store=store, now=now, require_active=require_active)
