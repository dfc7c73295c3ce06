"""Watches and alerts on the bank's local API: bodies and endpoints (clients/local_api.py adds
them)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from clients.idempotency import IdempotencyKey, Once
from clients.watcher import Told, Wanted, Watched, Watcher, plain_watch
from federation.api import Body, Page
from federation.catalogue import Period, Question
from federation.enquiry import Comparison
from federation.errors import NotFound, UsageError
from federation.objects import (
    Date,
    Digest,
    DigestBegin,
    FieldName,
    Name,
    ObjectName,
    OrgId,
    Time,
)
from federation.watch import DEBOUNCE_MAX_S, Severity

ALERTS_SHOWN = 200  # with their watch; `GET /v1/alerts` has the others
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Cursor = Annotated[str | None, Query(max_length=160)]
Limit = Annotated[int, Query(ge=1, le=200)]


class WatchBody(Body):
    """A rule whose start the bank wants to be told of, under the enterprise's grant."""

    grant: DigestBegin
    provider: OrgId
    rule: ObjectName
    dataset: ObjectName
    field: FieldName
    op: Question = Question.COMPARE
    comparison: Comparison | None = None
    arg: Annotated[Name | None, Field(repr=False)] = None
    period: Period = "current"
    severity: Severity = Severity.WARNING
    debounce_s: Annotated[int, Field(ge=0, le=DEBOUNCE_MAX_S)] = 86_400

    def wanted(self) -> Wanted:
        """For the watcher."""
        names = {"dataset", "field", "op", "comparison", "arg", "period"}
        question = self.model_dump(mode="json", include=names)
        return Wanted(
            self.grant, self.provider, self.rule, question, self.severity, self.debounce_s
        )


class EndBody(Body):
    """Which watch is to end: stands for the request that has no body."""

    id: Digest


class AlertEntry(Body):
    """A rule has started to hold; never by how much."""

    id: Digest
    watch: Digest
    rule: ObjectName
    provider: OrgId
    severity: Severity
    created: Time
    as_of: Date
    uses_left: int
    log: str
    entry: int
    receipt: Literal["cosigned", "uncosigned"]  # its state: GET .../receipt has it

    @classmethod
    def of(cls, told: Told) -> AlertEntry:
        """As the API shows it."""
        alert = told.alert
        return cls(
            id=told.digest,
            watch=alert.watch,
            rule=alert.rule,
            provider=alert.org,
            severity=alert.severity,
            created=alert.created,
            as_of=alert.as_of,
            uses_left=alert.uses_left,
            log=alert.log,
            entry=alert.entry,
            receipt=told.receipt.status,
        )


class WatchEntry(Body):
    """A watch; `ended` says why it did, `is_told` that its owner has said to look no more."""

    id: Digest
    created: Time
    grant: Digest
    provider: OrgId
    rule: ObjectName
    dataset: ObjectName
    field: FieldName
    op: Question
    comparison: Comparison | None = None
    arg: str | None = None
    period: Period
    severity: Severity
    debounce_s: int
    ended: str | None = None
    is_told: bool = False

    @classmethod
    def of(cls, watched: Watched) -> WatchEntry:
        """As the API shows it."""
        return cls.model_validate(_plain(watched))


class WatchHistory(WatchEntry):
    """A watch with its alerts, the newest first."""

    alerts: tuple[AlertEntry, ...]


def add(api: APIRouter, watcher: Watcher, once: Once) -> None:
    """The endpoints of watches."""

    @api.post("/watches", status_code=201, response_model=WatchEntry)
    def watch(body: WatchBody, key: IdempotencyKey) -> Response:
        """Ask an owner to tell this bank when a rule starts to hold; costs a use of the grant."""

        def effect() -> tuple[int, Body]:
            return 201, WatchEntry.of(watcher.add(body.wanted()))

        return once.serve("watches", key, body, effect)

    @api.get("/watches")
    def watches(cursor: Cursor = None, limit: Limit = 50) -> Page[WatchEntry]:
        """List the watches, the newest first; a page does not move when new ones come."""
        found = watcher.page(_place(cursor), limit)
        last = found[-1] if len(found) == limit else None
        after = None if last is None else _cursor(last.created, last.digest)
        return Page(items=tuple(map(WatchEntry.of, found)), next=after)

    @api.get("/watches/{id}")
    def history(id: Id) -> WatchHistory:
        """Show one watch with its alerts, the newest 200."""
        found = watcher.get(id)
        told = watcher.alerts(found.digest, limit=ALERTS_SHOWN)
        return WatchHistory(**_plain(found), alerts=tuple(map(AlertEntry.of, told)))

    @api.post("/watches/{id}/end", response_model=WatchEntry)
    def end(id: Id, key: IdempotencyKey) -> Response:
        """Take no more alerts, and tell the owner to look no more; again tells it again."""

        def effect() -> tuple[int, Body]:
            return 200, WatchEntry.of(watcher.remove(id))

        return once.serve("watch-ends", key, EndBody(id=id), effect)

    @api.get("/watches/{id}/receipt")
    def end_receipt(id: Id) -> dict[str, Any]:
        """Show the receipt that the owner looks no more."""
        if (found := watcher.get(id).end_receipt) is None:
            raise NotFound("there is no receipt of the end of this watch")
        return found.model_dump(mode="json")

    @api.get("/alerts")
    def alerts(cursor: Cursor = None, limit: Limit = 50) -> Page[AlertEntry]:
        """List the alerts of all watches, the newest first."""
        found = watcher.alerts(before=_place(cursor), limit=limit)
        last = found[-1] if len(found) == limit else None
        after = None if last is None else _cursor(last.alert.created, last.digest)
        return Page(items=tuple(map(AlertEntry.of, found)), next=after)

    @api.get("/alerts/{id}/receipt")
    def alert_receipt(id: Id) -> dict[str, Any]:
        """Show the receipt that an alert stands in its owner's log."""
        return watcher.alert(id).receipt.model_dump(mode="json")


def _plain(watched: Watched) -> dict[str, Any]:
    shown = plain_watch(watched)
    return {"id": shown.pop("watch"), "debounce_s": watched.request.debounce_s} | shown


def _cursor(created: str, digest: str) -> str:
    return base64.urlsafe_b64encode(f"{created} {digest}".encode()).decode()


def _place(cursor: str | None) -> tuple[str, str] | None:
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = ""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) ([0-9a-f]{64})", text)
    if found is None:
        raise UsageError("this cursor is none of ours", todo="begin again without a cursor")
    return found[1], found[2]
