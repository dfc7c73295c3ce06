"""The bank's own HTTP API, for its systems: on a Unix socket of the home or on loopback, with a
token out of a file that only the node's account can read.

POST carries an `Idempotency-Key`, or is refused: one question for one key, whatever happens. A
question whose outcome a crash has hidden is not put again under the same key, as it may have cost a
use; one without a key would be put, and cost, as often as a system repeats it.
Every answer that is not 2xx is an RFC 9457 problem without value, path, SQL or stack.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, Query
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients import grants, score_api, watch_api
from clients.consent import Consents
from clients.gate import Gate
from clients.home import Home
from clients.idempotency import IdempotencyKey, Once
from clients.scorer import Scorer
from clients.store import Store
from clients.verification_settings import VerificationSettings
from clients.verifier import Carrier, Enquiry, Verifier, Wanted, plain
from clients.watcher import Watcher
from federation.api import PROBLEM_TYPE, Body, Page, Problem, from_cursor, problem_of, to_cursor
from federation.catalogue import Period, Question
from federation.enquiry import Answered, Comparison
from federation.errors import LianmoError, Refused, Unavailable
from federation.grants import Channel, State
from federation.keyring import SECRET_MODE, require_mode, write_once
from federation.objects import (
    Digest,
    DigestBegin,
    FieldName,
    Name,
    ObjectName,
    OrgId,
    Purpose,
    Time,
    utc_text,
)
from federation.problems import handlers, plain_problem
from federation.request_body import read_body, replay_body

log = logging.getLogger("lianmo.api")

MAX_BODY = 256 << 10
MAX_BATCH = 100
TOKEN_LEAST = 32  # characters
SOCKET_PATH_MAX = 100  # bytes; Linux takes 107
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
)


class VerificationBody(Body):
    """One question on one enterprise, under its grant."""

    grant: DigestBegin
    provider: OrgId
    dataset: ObjectName
    field: FieldName
    op: Question
    comparison: Comparison | None = None
    arg: Annotated[Name | None, Field(repr=False)] = None
    period: Period = "current"

    def wanted(self) -> Wanted:
        """For the verifier."""
        return Wanted(**self.model_dump())


class BatchBody(Body):
    """Several questions; each is answered by itself."""

    items: Annotated[tuple[VerificationBody, ...], Field(min_length=1, max_length=MAX_BATCH)]


class VerificationEntry(Body):
    """A question and what came back; `result` is missing while there is no answer."""

    id: str
    created: Time
    grant: Digest
    provider: OrgId
    dataset: ObjectName
    field: FieldName
    op: Question
    comparison: Comparison | None = None
    arg: str | None = None
    period: Period
    result: Answered | None = None
    value: str | None = None
    as_of: str | None = None
    uses_left: int | None = None
    answer: Digest | None = None
    log: str | None = None
    entry: int | None = None
    receipt: Literal["cosigned", "uncosigned"] | None = None  # its state: GET .../receipt has it

    @classmethod
    def of(cls, enquiry: Enquiry) -> VerificationEntry:
        """As the API shows it."""
        return cls.model_validate(plain(enquiry))


class BatchItem(Body):
    """What became of one question of a batch: one of the two."""

    verification: VerificationEntry | None = None
    problem: Problem | None = None


class BatchAnswer(Body):
    """In the order of the questions."""

    items: tuple[BatchItem, ...]


class GrantEntry(Body):
    """A grant that this bank holds."""

    digest: Digest
    state: State
    channel: Channel
    purpose: Purpose
    expires: Time
    max_uses: int
    providers: tuple[OrgId, ...]


class HealthEntry(Body):
    """That the API answers."""

    org: OrgId
    version: str
    time: Time


Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=64)]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {"model": Problem, "content": {PROBLEM_TYPE: {}}}
}


def create_app(
    home: Home,
    store: Store,
    carrier: Carrier,
    *,
    token: str,
    now: Callable[[], datetime],
) -> ASGIApp:
    """The API as an ASGI application."""
    verifier, once = Verifier(home, store, carrier, now), Once(home.org, store, now)
    api = APIRouter(prefix="/v1", responses=PROBLEMS)

    @api.get("/health")
    def health() -> HealthEntry:
        """Say that the API answers."""
        return HealthEntry(org=home.org, version=version("lianmo"), time=utc_text(now()))

    @api.post("/verifications", status_code=201, response_model=VerificationEntry)
    def verify(body: VerificationBody, key: IdempotencyKey) -> Response:
        """Put one question on one enterprise; `refused` is an answer like the others."""

        def effect() -> tuple[int, Body]:
            return 201, VerificationEntry.of(verifier.ask(body.wanted()))

        return once.serve("verifications", key, body, effect)

    @api.post("/verifications/batches", status_code=200, response_model=BatchAnswer)
    def verify_batch(body: BatchBody, key: IdempotencyKey) -> Response:
        """Put several questions; each ends by itself, well or not."""

        def effect() -> tuple[int, Body]:
            found = verifier.ask_all([item.wanted() for item in body.items])
            return 200, BatchAnswer(items=tuple(_item(home.org, one) for one in found))

        return once.serve("batches", key, body, effect)

    @api.get("/verifications")
    def list_(cursor: Cursor = None, limit: Limit = 50) -> Page[VerificationEntry]:
        """List the questions, the newest first; a page does not move when new ones come."""
        before = from_cursor(cursor, r"[0-9]{1,15}")
        found = verifier.page(None if before is None else int(before), limit)
        after = to_cursor(str(found[-1].number)) if len(found) == limit else None
        return Page(items=tuple(map(VerificationEntry.of, found)), next=after)

    @api.get("/verifications/{id}")
    def show(id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]) -> VerificationEntry:
        """Show one question and its answer."""
        return VerificationEntry.of(verifier.get(id))

    @api.get("/verifications/{id}/receipt")
    def receipt(id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]) -> dict[str, Any]:
        """Show the receipt that the answer stands in the provider's log."""
        found = verifier.get(id).receipt
        if found is None:
            raise HTTPException(404)
        return found.model_dump(mode="json")

    score_api.add(api, Scorer(home, store, carrier, Gate(home, store, now), now), once)
    watch_api.add(api, Watcher(home, store, carrier, now), once)

    @api.get("/grants")
    def held() -> Page[GrantEntry]:
        """List the grants that this bank holds, the newest first."""
        return Page(items=tuple(_grants(home, store, now())))

    app = FastAPI(
        title="lianmo bank node",
        version=version("lianmo"),
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        redirect_slashes=False,
        exception_handlers=handlers(log, lambda text: plain_problem(422, text), home.org),
        dependencies=[Depends(_declared)],
    )
    app.include_router(api)
    return Door(app, token)


def _declared(authorization: Annotated[str | None, Header()] = None) -> None:
    """Stands in the OpenAPI document; `Door` has looked at it before."""


def _item(org: str, found: Enquiry | LianmoError) -> BatchItem:
    if isinstance(found, LianmoError):
        return BatchItem(problem=problem_of(found, org))
    return BatchItem(verification=VerificationEntry.of(found))


def _grants(home: Home, store: Store, now: datetime) -> Iterator[GrantEntry]:
    for stored in Consents(store).all():
        grant = stored.grant
        yield GrantEntry(
            digest=stored.digest,
            state=grants.state(home, store, stored.digest, now),
            channel=grant.channel,
            purpose=grant.purpose,
            expires=grant.expires,
            max_uses=grant.max_uses,
            providers=grant.providers,
        )


# --- the door -------------------------------------------------------------------------------------


class Door:
    """The token, the size of a body, and headers on every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        shown = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(shown, self._expected):
            refused = plain_problem(401, "Authorization: Bearer and the content of api.token")
            refused.headers["www-authenticate"] = "Bearer"
            return await refused(scope, receive, with_headers)
        body = await read_body(receive, MAX_BODY)
        if body is None:
            too_large = plain_problem(413, f"a body has at most {MAX_BODY} bytes")
            return await too_large(scope, receive, with_headers)
        await self._app(scope, replay_body(body, receive), with_headers)


# --- the server -----------------------------------------------------------------------------------


def token_of(home: Home) -> str:
    """The API's token; made when first asked for, in a file of mode 0600.

    Raises Refused for a file that others may read, or that holds too little to be a secret.
    """
    file = home.path / "api.token"
    if not file.is_file():
        write_once(file, secrets.token_urlsafe(32).encode(), SECRET_MODE)
    require_mode(file, SECRET_MODE)
    if len(token := file.read_text().strip()) < TOKEN_LEAST:
        todo = f"delete {file}: the next start makes a new one"
        raise Refused(f"{file} holds no token of {TOKEN_LEAST} characters", todo=todo)
    return token


@contextlib.contextmanager
def serving(
    home: Home, store: Store, carrier: Carrier, settings: VerificationSettings
) -> Iterator[None]:
    """Serve in a thread of its own for the length of the block."""
    app = create_app(home, store, carrier, token=token_of(home), now=lambda: datetime.now(UTC))
    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    with _listening(home, settings.api_port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="api", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(5)


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


@contextlib.contextmanager
def _listening(home: Home, port: int | None) -> Iterator[socket.socket]:
    """A socket that nobody but this account can connect to, or a port of loopback."""
    try:
        if port is not None:
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", port))
                listener.listen(128)
                yield listener
            return
        path = home.path / "api.sock"
        if len(str(path).encode()) > SOCKET_PATH_MAX:
            todo = "set `api_port` in [verification] of config.toml"
            raise Unavailable("the home's path is too long for a socket in it", todo=todo)
        path.unlink(missing_ok=True)  # of a process that ended: only one node runs in a home
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            Path(path).chmod(SECRET_MODE)
            listener.listen(128)
            ours = _which(path)
            try:
                yield listener
            finally:
                if _which(path) == ours:  # a process that is ending leaves the next one's alone
                    path.unlink(missing_ok=True)
    except OSError as error:
        what = f"the local API cannot listen ({(error.strerror or 'error').lower()})"
        raise Unavailable(what, todo="see `api_port` in [verification] of config.toml") from None


def _which(path: Path) -> tuple[int, int] | None:
    """What tells a socket from another one of the same name; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns
