"""The bodies of the coordinator's HTTP API and of its `train` messages, shared by both sides.

Everything that matters in them is a signed envelope; the rest is status. Errors are RFC 9457
problems that carry a LianmoError over, with party and next step, and nothing more.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from federation.audit import Receipt
from federation.envelope import Envelope
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    PartyLost,
    Refused,
    Unavailable,
    UsageError,
)
from federation.objects import Count, Digest, ObjectName, OrgId, Text, Time

API = "/api/v1"
REPORT_PATH = "/v1/lianmo/report"  # loopback only: a ServerApp's word on its run
PROBLEM_TYPE = "application/problem+json"
MAX_BODY_BYTES = 2 << 20  # an envelope has at most 1.5 MiB
MAX_WAIT_S = 25.0  # long polls end before the clients' read timeout of 30 s
NETWORK_S = 20.0  # documents of the network are looked for so often
TRAIN = "train"  # the one message type between ServerApp and node
TRAIN_HOLD_S = 5.0  # a node answers `running` after so long

T = TypeVar("T")


def _shown(text: str) -> str:
    """Without what would move a terminal's cursor or turn its text round, and not too long."""
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return "".join("\ufffd" if unicodedata.category(c) in hidden else c for c in text[:4000])


# Free text of the other side: it is printed beside what an approver is about to sign.
Shown = Annotated[str, AfterValidator(_shown)]


class Body(BaseModel):
    """Base of the bodies: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- organisations and catalogue ------------------------------------------------------------------


class Health(Body):
    """That the coordinator answers, and with what."""

    status: Literal["ok"] = "ok"
    platform: OrgId
    version: Shown
    package_sha256: Digest
    time: Time


class Registration(Body):
    """What an organisation's node needs after it has shown its card."""

    node_id: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}$")]  # above 2^53
    platform: Envelope  # the coordinator's card


class OrganisationEntry(Body):
    """An admitted organisation."""

    org: OrgId
    card: Envelope
    registered: Time | None = None  # since when its node is known
    last_seen: Time | None = None


class CatalogueEntry(Body):
    """A dataset entry, as its owner signed it."""

    org: OrgId
    dataset: ObjectName
    digest: Digest
    updated: Time
    entry: Envelope


class Page(Body, Generic[T]):
    """One page of a list; `next` is the cursor of the following one."""

    items: tuple[T, ...]
    next: str | None = None


# --- jobs -----------------------------------------------------------------------------------------


class JobStatus(StrEnum):
    """Where a job is; see DESIGN.md, A job's life."""

    SUBMITTED = "submitted"
    REVIEWING = "reviewing"  # an owner has read it
    APPROVED = "approved"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Nothing happens to the job any more."""
        return self not in _OPEN

    @property
    def is_open_for_approval(self) -> bool:
        """Approvals and refusals still count."""
        return self in (JobStatus.SUBMITTED, JobStatus.REVIEWING)


_OPEN = frozenset({JobStatus.SUBMITTED, JobStatus.REVIEWING, JobStatus.APPROVED, JobStatus.RUNNING})


class ProgressBody(Body):
    """How far a party's program is; no name, value or key."""

    attempt: Count
    stage: Text
    step: Count
    steps: Count
    sent_bytes: Count = 0
    received_bytes: Count = 0
    waits_for: OrgId | None = None  # a party that is away just now
    waits_until: Time | None = None  # then this party gives up the attempt


class ProgressAnswer(Body):
    """The job's status, so that a node hears of a stop."""

    status: JobStatus


class ProgressEntry(ProgressBody):
    """The last progress of a party, and when it was told."""

    at: Time


class JobSummary(Body):
    """A job in a list."""

    job: ObjectName
    manifest_digest: Digest
    bank: OrgId
    parties: tuple[OrgId, ...]
    status: JobStatus
    message: Shown = ""
    created: Time
    updated: Time


class JobDetail(JobSummary):
    """All that the coordinator has of a job; whoever acts on it checks the envelopes."""

    manifest: Envelope
    approvals: tuple[Envelope, ...]
    missing: tuple[OrgId, ...]  # whose approval is still needed
    attempt: Count
    run_id: Shown | None = None
    records: tuple[Envelope, ...] = ()  # signed run records, of all attempts
    receipts: tuple[Receipt, ...] = ()  # that these stand in their parties' audit logs
    progress: Mapping[OrgId, ProgressEntry] = Field(default_factory=dict)


class Event(Body):
    """Something that happened to a job."""

    number: int
    at: Time
    kind: Literal["status", "approval", "progress", "record", "log"]
    org: OrgId | None = None
    status: JobStatus | None = None
    text: Shown = ""
    progress: ProgressBody | None = None


class Events(Body):
    """What happened after event number `after`; ask again with the new `after`."""

    items: tuple[Event, ...]
    after: int
    status: JobStatus


class StopBody(Body):
    """Why a party stops a job, in its words."""

    words: Text = ""


# --- between the ServerApp and the nodes ----------------------------------------------------------


ROUND, WEIGHTS = "round", "weights"  # records of a `train` message of a job in rounds


class TrainOrder(Body):
    """The `train` message: all that a node needs to check, and nothing it has to believe.

    It may arrive again: the same manifest and attempt start nothing twice.
    """

    manifest: Envelope
    approvals: tuple[Envelope, ...]
    attempt: Count


class TrainReply(Body):
    """`running` after TRAIN_HOLD_S: ask again. All else is the party's last word on the attempt."""

    state: Literal["running", "succeeded", "failed", "refused", "stopped", "lost"]
    stage: Text = ""
    reference: Text = ""  # of the reason in the node's own log
    missing: OrgId | None = None  # whom it waited for in vain
    record: Envelope | None = None
    receipt: Receipt | None = None  # of the record


class RunReport(Body):
    """ServerApp to coordinator."""

    state: Literal["log", "record", "ended", "round"]
    kept: str = Field(default="", repr=False)  # with `round`: base64, what the next round needs
    org: OrgId | None = None
    text: Text = ""
    record: Envelope | None = None
    receipt: Receipt | None = None
    replies: Mapping[OrgId, TrainReply] = Field(default_factory=dict)  # with `ended`


# --- problems -------------------------------------------------------------------------------------


class Problem(Body):
    """RFC 9457, with a LianmoError's party, stage and next step as extension members."""

    type: Shown = "about:blank"
    title: Shown
    status: int
    detail: Shown = ""
    party: Shown = ""
    stage: Shown = ""
    todo: Shown = ""


_STATUS: dict[type[LianmoError], HTTPStatus] = {
    UsageError: HTTPStatus.BAD_REQUEST,
    Refused: HTTPStatus.FORBIDDEN,
    IntegrityError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    PartyLost: HTTPStatus.SERVICE_UNAVAILABLE,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    LianmoError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_TYPES = {f"urn:lianmo:problem:{kind.__name__}": kind for kind in _STATUS}


def to_cursor(text: str | None) -> str | None:
    """The cursor of the page that follows this; None for the last one."""
    return None if text is None else base64.urlsafe_b64encode(text.encode()).decode()


def from_cursor(cursor: str | None, pattern: str) -> str | None:
    """What `to_cursor` was given; UsageError for what it cannot have made."""
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = ""
    if not re.fullmatch(pattern, text):
        raise UsageError("this cursor is none of ours", todo="begin again without a cursor")
    return text


def problem_of(error: LianmoError, party: str = "") -> Problem:
    """The problem that stands for an error; `party`: whose it is where it names none."""
    kind = next(kind for kind in type(error).mro() if kind in _STATUS)
    status = _STATUS[kind]
    return Problem(
        type=f"urn:lianmo:problem:{kind.__name__}",
        title=status.phrase,
        status=status,
        detail=error.what,
        party=error.party or party,
        stage=error.stage,
        todo=error.todo,
    )


def error_of(problem: Problem, *, party: str) -> LianmoError:
    """The error that a problem stands for; `party` is who answered."""
    kind = _TYPES.get(problem.type)
    if kind is None:
        kind = _by_status(problem.status)
    what = problem.detail or problem.title
    return kind(what, party=problem.party or party, stage=problem.stage, todo=problem.todo)


def _by_status(status: int) -> type[LianmoError]:
    if status in (502, 503, 504, 429):
        return Unavailable
    for kind, known in _STATUS.items():
        if known == status and kind is not PartyLost:
            return kind
    return {401: Refused, 413: UsageError}.get(status, LianmoError)
