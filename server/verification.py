"""Sealed questions on their way: in from one node, out to another, and the answers back.

Everything here is in memory and ciphertext. A question waits for its provider's node at most
ASK_TIMEOUT_S, in a queue that has an end for each provider and each sender; the same bytes again
are the same question and get the same answer, for as long as it is remembered. What a coordinator
loses, the verifier asks again; that this can cost it a use of the grant is the price of a provider
that answers nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from federation.api import MAX_WAIT_S
from federation.consent_api import (
    ASK_TIMEOUT_S,
    TAKE_BYTES,
    TAKE_MAX,
    EventBundles,
    EventsWanted,
    GrantsNamed,
    Inbox,
    Notices,
    Outbox,
    ParcelEntry,
    RevocationBody,
    StatusBody,
    Taken,
)
from federation.errors import Unavailable, UsageError
from federation.grants import BySubject
from federation.objects import KeyId, OrgId
from federation.sealing import MAX_SEALED, OVERHEAD, STEP
from protocols.streams import encode
from server.app import After, Caller
from server.consents import Consents

QUEUE_MAX = 1024  # questions that wait for one provider
QUEUE_OF_SENDER = 256  # of these, one sender's
REMEMBERED_S = 60.0  # an answered question, for a repeat of the very same bytes
REMEMBERED_BYTES = 64 << 20  # of answers to one sender: it may have a friend that answers
AWAY_S = 40.0  # a provider that did not ask for so long is away
SEALED_TYPE = "application/octet-stream"


@dataclass(slots=True)
class _Call:
    """One question until its answer is forgotten."""

    id: str
    sender: str
    provider: str
    sealed: bytes = field(repr=False)
    answer: asyncio.Future[bytes]
    done: float | None = None


class SealedRelay:
    """Lives in the event loop of the public port; its methods are called there only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: dict[str, _Call] = {}
        self._finished: dict[str, deque[_Call]] = {}  # by sender, the first finished first
        self._remembered: Counter[str] = Counter()  # bytes of these
        self._waiting: dict[str, deque[_Call]] = {}
        self._of_sender: Counter[tuple[str, str]] = Counter()
        self._wake: dict[str, asyncio.Event] = {}
        self._newest: dict[str, object] = {}  # the poll of each provider that gets what comes
        self._seen: dict[str, float] = {}
        self._is_closed = False

    async def ask(self, sender: str, provider: str, sealed: bytes) -> bytes:
        """The sealed answer; raises Unavailable if none comes in time, or the queue is full."""
        self._forget()
        name = hashlib.sha256(encode(sender, provider, sealed)).hexdigest()
        call = self._calls.get(name)
        if call is None:
            call = self._enter(name, sender, provider, sealed)
        try:
            return await asyncio.wait_for(asyncio.shield(call.answer), ASK_TIMEOUT_S)
        except TimeoutError:
            self._drop(call)
            todo = "ask again; if it lasts, ask its operator to run `lianmo doctor`"
            raise Unavailable("did not answer in time", party=provider, todo=todo) from None

    def close(self) -> None:
        """Hold nobody any more: the coordinator stops."""
        self._is_closed = True
        for event in self._wake.values():
            event.set()
        for call in self._calls.values():
            if not call.answer.done():
                text = "the coordinator stops"
                call.answer.set_exception(Unavailable(text, todo="ask again when it is back"))
                call.answer.exception()  # whoever asked may be gone: nobody has to take it

    async def take(
        self, provider: str, wait_s: float, is_gone: Callable[[], Awaitable[bool]] | None = None
    ) -> list[ParcelEntry]:
        """What waits for a provider, at most TAKE_MAX and TAKE_BYTES; waits for the first.

        is_gone: whether who asked has hung up. A node that was killed leaves a poll behind: what
        comes then is its next process's, and not lost with the answer to the last one.
        """
        self._seen[provider] = self._clock()
        self._newest[provider] = mine = object()
        queue = self._waiting.setdefault(provider, deque())
        if not queue and wait_s > 0 and not self._is_closed:
            event = self._wake.setdefault(provider, asyncio.Event())
            event.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), wait_s)
            if self._newest[provider] is not mine or (is_gone is not None and await is_gone()):
                return []
            self._seen[provider] = self._clock()
        found: list[ParcelEntry] = []
        size = 0
        while queue and len(found) < TAKE_MAX:
            size += len(queue[0].sealed)
            if found and size > TAKE_BYTES:
                break  # a node that reads no answer of that size would lose all that is in it
            call = queue.popleft()
            self._of_sender[provider, call.sender] -= 1
            if not call.answer.done():
                found.append(ParcelEntry(id=call.id, sender=call.sender, sealed=call.sealed))
            call.sealed = b""  # up to 256 KiB, and the call is remembered for its answer alone
        return found

    def reply(self, provider: str, name: str, sealed: bytes) -> None:
        """A provider's answer; nothing happens if nobody waits for it (any more)."""
        call = self._calls.get(name)
        if call is not None and call.provider == provider and not call.answer.done():
            call.answer.set_result(sealed)
            call.done = self._clock()
            finished = self._finished.setdefault(call.sender, deque())
            finished.append(call)
            self._remembered[call.sender] += len(sealed)
            while self._remembered[call.sender] > REMEMBERED_BYTES:
                self._forget_first(finished)

    def _enter(self, name: str, sender: str, provider: str, sealed: bytes) -> _Call:
        seen = self._seen.get(provider)
        if seen is None or self._clock() - seen > AWAY_S:
            todo = f"ask {provider} to start its node, or try again later"
            raise Unavailable("its node is not connected", party=provider, todo=todo)
        queue = self._waiting.setdefault(provider, deque())
        mine = self._of_sender[provider, sender]
        if len(queue) >= QUEUE_MAX or mine >= QUEUE_OF_SENDER:
            raise Unavailable("too many questions wait", party=provider, todo="ask more slowly")
        call = _Call(name, sender, provider, sealed, asyncio.get_running_loop().create_future())
        self._calls[name] = call
        queue.append(call)
        self._of_sender[provider, sender] += 1
        if (event := self._wake.get(provider)) is not None:
            event.set()
        return call

    def _drop(self, call: _Call) -> None:
        if self._calls.get(call.id) is call:
            del self._calls[call.id]
        call.sealed = b""  # it stands in its queue until the provider asks again
        call.answer.cancel()

    def _forget(self) -> None:
        limit = self._clock() - REMEMBERED_S
        for finished in self._finished.values():
            while finished and (finished[0].done or 0) < limit:
                self._forget_first(finished)

    def _forget_first(self, finished: deque[_Call]) -> None:
        old = finished.popleft()
        self._remembered[old.sender] -= len(old.answer.result())
        if self._calls.get(old.id) is old:
            del self._calls[old.id]


def router(relay: SealedRelay, consents: Consents) -> APIRouter:
    """The endpoints, for `create_app`."""
    api = APIRouter()

    @api.post(
        "/sealed/{provider}",
        response_class=Response,
        responses={200: {"content": {SEALED_TYPE: {}}}},
        openapi_extra={"requestBody": {"required": True, "content": {SEALED_TYPE: {}}}},
    )
    async def ask(org: Caller, provider: OrgId, request: Request) -> Response:
        """Hand a sealed question to a provider's node, and wait for its sealed answer."""
        sealed = await request.body()
        size = len(sealed) - OVERHEAD
        if size <= 0 or size % STEP or len(sealed) > MAX_SEALED:
            raise UsageError("a sealed question has a size of its class")
        consents.require_asks(org)
        return Response(await relay.ask(org, provider, sealed), media_type=SEALED_TYPE)

    @api.get("/sealed")
    async def take(
        org: Caller,
        request: Request,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> Inbox:
        """Take the questions that wait for the caller; waits at most `wait` seconds for one."""
        await request.body()  # or it would be taken for a sign of life
        return Inbox(items=tuple(await relay.take(org, wait, request.is_disconnected)))

    @api.post("/sealed", status_code=204)
    async def reply(org: Caller, body: Outbox) -> None:
        """Hand in answers and receipts."""
        for item in body.items:
            relay.reply(org, item.id, item.sealed)
        if body.notices:
            await run_in_threadpool(consents.keep_notices, org, body.notices)

    @api.post("/grants/events", status_code=201)
    def hand_in_event(org: Caller, body: BySubject) -> Taken:
        """Hand in a pause, resumption or revocation that a subject has signed."""
        return Taken(digest=consents.take_event(org, body))

    @api.post("/grants/certificate-revocations", status_code=201)
    def hand_in_revocation(org: Caller, body: RevocationBody) -> Taken:
        """Hand in an issuer's revocation of a subject's certificate."""
        return Taken(digest=consents.take_revocation(org, body.revocation, body.certificate))

    @api.get("/grants/status")
    def status() -> StatusBody:
        """Show the newest status list."""
        return StatusBody(status=consents.status())

    @api.post("/grants/events/wanted")
    def events(org: Caller, body: EventsWanted) -> EventBundles:
        """Show the events of these entries of a status list, to an organisation that answers."""
        return EventBundles(items=consents.events(org, body.events))

    @api.post("/grants/events/of")
    def events_of(body: GrantsNamed) -> EventBundles:
        """Show the events on these grants, to whoever has the grants."""
        return EventBundles(items=consents.events_of(body.grants))

    @api.get("/grants/notices/{mailbox}")
    def notices(org: Caller, mailbox: KeyId, after: After = 0) -> Notices:
        """Show the sealed receipts for one of the caller's own keys."""
        return Notices(items=consents.notices(org, mailbox, after))

    return api
