"""How this node's own log stands with its witnesses, and whether it may answer just now.

Answers to questions on enterprises stop when enough witnesses have not seen the log for longer
than `max_unwitnessed_s`, when an entry waits that long for a cosigned checkpoint, when nobody has
confirmed this start yet, and when they know a log that this one does not continue. Jobs go on: all
their owners approved them, and their receipts say `uncosigned` (docs/adr/0014).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select

from clients.home import Home, explain
from clients.store import AuditRow, Store
from clients.witness_book import OwnCheckpoint
from federation.audit import AuditEntry, Check, Reason
from federation.checkpoints import cosigners, may_witness, read_note, required
from federation.errors import LianmoError, UsageError
from federation.objects import utc_time
from federation.verification import Denied

REUSED = timedelta(seconds=1)  # a good state is looked up again after so long


class WitnessSettings(BaseModel):
    """The table `[witness]` of config.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    max_unwitnessed_s: Annotated[float, Field(gt=0, le=600)] = 600  # GOVERNANCE.md: T
    every_s: Annotated[float, Field(gt=0, le=60)] = 3  # between two checkpoints that are shown
    renew_s: Annotated[float, Field(gt=0, le=600)] = 120  # a cosignature is given anew

    @classmethod
    def of(cls, home: Home) -> WitnessSettings:
        """The home's; raises UsageError if one of them is wrong or unknown."""
        try:
            return cls.model_validate(home.config.witness)
        except ValidationError as error:
            todo = "correct it in [witness] of config.toml"
            raise UsageError(f"setting {explain(error)}", todo=todo) from None


@dataclass(frozen=True, slots=True)
class WitnessedState:
    """For a person: how far others have seen this log."""

    entries: int
    cosigned: int  # entries under the newest checkpoint that enough cosigned
    witnesses: tuple[tuple[str, datetime], ...]  # of that one
    since: datetime | None  # when enough had last seen the log
    required: int
    possible: tuple[str, ...]  # who could witness
    reason: str | None  # why answers stop; None if they do not
    todo: str = ""


def is_active(home: Home, now: datetime) -> Callable[[str], bool]:
    """Who takes part in the home's network now."""
    standing = home.standing()

    def found(org: str) -> bool:
        try:
            standing.require_active(org, now)
        except LianmoError:
            return False
        return True

    return found


class Witnessed:
    """Reads what clients/witnessing.py writes; any process of the home."""

    def __init__(self, home: Home, store: Store, settings: WitnessSettings | None = None) -> None:
        self._home, self._store = home, store
        self._limit = timedelta(seconds=(settings or WitnessSettings.of(home)).max_unwitnessed_s)
        self._own = OwnCheckpoint(store)
        self._good: datetime | None = None

    def require(self, now: datetime) -> None:
        """Raises Denied where this node may not answer."""
        if self._good is not None and timedelta(0) <= now - self._good < REUSED:
            return
        self._good = None
        if (reason := self._reason(now)[0]) is not None:
            raise Denied(Check.FRESH, Reason.UNWITNESSED, reason)
        self._good = now

    def state(self, now: datetime) -> WitnessedState:
        """Everything, for a person."""
        own, trust = self._own.state(), self._home.trust()
        signed = None if own.note is None else read_note(own.note)
        seen = {} if signed is None else cosigners(signed, self._home.org, trust)
        reason, todo = self._reason(now)
        with self._store.reading() as session:
            last = session.scalar(select(AuditRow.seq).order_by(AuditRow.seq.desc()).limit(1))
        return WitnessedState(
            entries=0 if last is None else last + 1,
            cosigned=0 if signed is None else signed.checkpoint.size,
            witnesses=tuple(seen.items()),
            since=None if own.since is None else utc_time(own.since),
            required=required(trust, self._home.org, is_active(self._home, now)),
            possible=tuple(may_witness(trust, self._home.org, is_active(self._home, now))),
            reason=reason,
            todo=todo,
        )

    def _reason(self, now: datetime) -> tuple[str | None, str]:
        """Why this node may not answer, and what to do."""
        own, start = self._own.state(), "start their nodes, or `lianmo node start --witness-only`"
        if own.problem is not None:
            return own.problem, "restore the newest backup of database and log/; call the auditor"
        trust, log = self._home.trust(), self._home.org
        if not may_witness(trust, log, is_active(self._home, now)):
            what = "nobody can witness this log: no other organisation is trusted here"
            return what, "exchange cards, or let an auditor run `lianmo node start --witness-only`"
        if own.since is None or own.note is None:
            return "no witness has confirmed the log since this start", start
        if now - utc_time(own.since) > self._limit:
            return f"too few witnesses have seen the log since {own.since}", start
        with self._store.reading() as session:
            size = read_note(own.note).checkpoint.size
            leaf = session.scalar(select(AuditRow.leaf).where(AuditRow.seq == size))
        first = None if leaf is None else AuditEntry.from_leaf(leaf)  # that none of them has seen
        if first is not None and now - utc_time(first.time) > self._limit:
            return f"entry {first.seq} of {first.time} waits for witnesses", start
        return None, ""
