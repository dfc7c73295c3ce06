"""The witness in every node: shows the own log's checkpoints and cosigns those of others.

One round, every few seconds, over the coordinator's board (server/witness.py):

    show      our newest checkpoint, if it is new, with proofs from the sizes that witnesses have
    read      what changed on the board
    judge     a checkpoint of another log goes on from the last one that we took (on disk before we
              cosign), or it is refused: once in our log for each that we had, both notes kept
    compare   what other witnesses cosigned with what we saw: one size, two roots are a fork
    count     the cosignatures of our own checkpoint; and whether anybody knows a log of our name
              that ours does not hold: then ours was truncated, restored or written anew

A cosignature is renewed every `renew_s`, so a log that stands still stays witnessed. Nothing here
makes an entry but an alarm: cosigning must not make logs grow, or they would never rest.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from clients.audit import AuditLog
from clients.home import Home
from clients.store import Store
from clients.witness_book import (
    Alarm,
    Judged,
    OwnCheckpoint,
    OwnState,
    Verdict,
    WitnessBook,
)
from clients.witnessed import WitnessSettings, is_active
from federation.audit import Action, Reason, Receipt, Result
from federation.checkpoints import (
    cosign,
    cosigned_at,
    cosigners,
    log_origin,
    merged,
    read_note,
    require_log,
    required,
    without_cosignatures,
)
from federation.errors import IntegrityError, LianmoError, NotFound
from federation.objects import Card, Usage, utc_text, utc_time
from federation.trust import CLOCK_SKEW
from federation.witness_api import (
    MAX_NOTES,
    MAX_PROOFS,
    Accepted,
    Board,
    Published,
    SeenNote,
    SeenNotes,
    SizeProof,
)
from protocols import merkle

log = logging.getLogger("lianmo.witness")

COALESCE = 10  # of `every_s`: a part of it, so that a burst of cosignatures is read at once
LONGEST_PAUSE_S = 30.0
ASK_AGAIN_S = 10.0  # after a start, until enough have cosigned since


class Carrier(Protocol):
    """What of the coordinator a witness needs."""

    def publish_checkpoint(self, body: Published) -> Accepted:
        """Show the own log's newest checkpoint."""

    def cosign(self, body: SeenNotes) -> Accepted:
        """Hand in cosignatures."""

    def witness_board(self, after: int, wait_s: float) -> Board:
        """What changed since."""


@dataclass(slots=True)
class _Theirs:
    """What the board says of another log."""

    signed: merkle.SignedCheckpoint
    proofs: Mapping[int, list[bytes]]
    told: datetime | None = None  # when we last handed in what we have of it


@dataclass(slots=True)
class _Own:
    """What the board says of our log."""

    seen: dict[str, merkle.SignedCheckpoint] = field(default_factory=dict)  # by witness
    shown: merkle.SignedCheckpoint | None = None
    proven: frozenset[int] = frozenset()
    at: float = float("-inf")


class Witnessing:
    """One home's part; `run` in a thread of its node, or `round` by whoever has time."""

    def __init__(
        self,
        home: Home,
        store: Store,
        audit: AuditLog,
        carrier: Carrier,
        now: Callable[[], datetime],
        *,
        settings: WitnessSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._audit, self._carrier, self._now = home, audit, carrier, now
        self._settings, self._clock = settings or WitnessSettings.of(home), clock
        self._book, self._row = WitnessBook(store), OwnCheckpoint(store)
        self._theirs: dict[str, _Theirs] = {}
        self._own = _Own()
        self._held = set[merkle.Checkpoint]()
        self._version = 0
        # What was cosigned before may be of a history that a backup has lost: an old board would
        # confirm it. Cosignatures are dated in whole seconds.
        self._begun = now().replace(microsecond=0)
        self._row.begin()

    def run(self, stopped: threading.Event) -> None:
        """Until the node ends; what fails is tried again after a growing pause."""
        pause, every = self._settings.every_s, self._settings.every_s
        while not stopped.is_set():
            try:
                self.round(every)
                pause = every
                stopped.wait(every / COALESCE)
            except LianmoError as error:
                log.warning("not witnessed", extra={"reason": str(error), "again_s": pause})
                stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except Exception:
                # answers stop by themselves; the thread has to go on asking
                log.exception("round of witnesses failed")
                stopped.wait(pause)

    def round(self, wait_s: float = 0) -> None:
        """Show, read, judge, compare, count. Raises LianmoError if the board is out of reach or
        the own log is damaged; all else is dealt with here."""
        if self._version:  # before the first board it is not known what witnesses want proven
            self._show()
        else:
            wait_s = 0
        board = self._carrier.witness_board(self._version, wait_s)
        self._read(board)
        if not self._version:
            self._version = 1
            self._show()
        # A board that is not as far as we have read is another one: from its beginning, then.
        self._version = board.version if board.version >= self._version else 0
        self._witness()
        self._count()

    # --- the own log ------------------------------------------------------------------------------

    def _show(self) -> None:
        """Publish if the log grew, or a witness needs a proof that is not there yet."""
        own, every = self._own, self._settings.every_s
        if self._clock() - own.at < every:
            return
        sizes = {item.checkpoint.size for item in own.seen.values()}
        try:
            signed, proofs = self._audit.published(sorted(sizes, reverse=True)[:MAX_PROOFS])
        except NotFound:
            return  # a log without an entry has nothing to show
        proven = frozenset(proofs)
        is_known = signed == own.shown and proven <= own.proven
        again = self._settings.renew_s  # for a coordinator that has lost it
        if self._row.state().since is None:
            again = min(again, ASK_AGAIN_S)
        if is_known and self._clock() - own.at < again:
            return
        hashes = {size: tuple(item.hex() for item in proof) for size, proof in proofs.items()}
        told = tuple(SizeProof(size=size, hashes=hashes[size]) for size in sorted(hashes))
        self._carrier.publish_checkpoint(
            Published(org=self._home.org, note=signed.to_text(), proofs=told)
        )
        own.shown, own.proven, own.at = signed, proven, self._clock()

    def _count(self) -> None:
        """Write down how the own log stands."""
        state = self._row.state()
        problem = self._problem()
        found = self._best(state) if problem is None else OwnState(state.note, None, problem)
        if problem is not None and state.problem != problem:
            log.error("answers stop", extra={"reason": problem, "party": self._home.org})
        if found != state:
            self._row.put(found)

    def _problem(self) -> str | None:
        """What witnesses know of our log that it does not hold."""
        card = self._home.trust().card(self._home.org)
        self._held &= {signed.checkpoint for signed in self._own.seen.values()}
        for witness, signed in sorted(self._own.seen.items()):
            point = signed.checkpoint
            try:
                require_log(signed, card)
            except IntegrityError:
                continue  # whoever made it up, it was not our log
            if point in self._held:
                continue
            if not self._audit.holds(point):
                return (
                    f"{witness} has seen {point.size} entries of this log that are not the ones "
                    "there are: it was cut, restored from an old backup, or written anew"
                )
            self._held.add(point)
        return None

    def _best(self, state: OwnState) -> OwnState:
        """The longest checkpoint that enough have cosigned, and when enough last saw any."""
        now, trust, own = self._now(), self._home.trust(), self._own
        active = is_active(self._home, now)
        least = required(trust, self._home.org, active)
        note = None if state.note is None else read_note(state.note)
        since = None if state.since is None else utc_time(state.since)
        for signed in {item.checkpoint: item for item in own.seen.values()}.values():
            whole = merged(own.seen, without_cosignatures(signed), trust)
            seen = cosigners(whole, self._home.org, trust, active).values()
            # newest first
            times = [time for time in seen if self._begun <= time <= now + CLOCK_SKEW]
            if len(times) < least:
                continue
            since = max(min(times[least - 1], now), since or times[least - 1])
            if note is None or note.checkpoint.size <= whole.checkpoint.size:
                note = whole
        return OwnState(
            None if note is None else note.to_text(), None if since is None else utc_text(since)
        )

    # --- the logs of others -----------------------------------------------------------------------

    def _read(self, board: Board) -> None:
        trust = self._home.trust()
        for item in board.published:
            if item.org == self._home.org or item.org not in trust:
                continue
            try:
                signed = read_note(item.note)
                require_log(signed, trust.card(item.org), self._now())
            except IntegrityError as error:
                log.warning("no checkpoint", extra={"org": item.org, "reason": error.what})
                continue
            proofs = {proof.size: proof.raw() for proof in item.proofs}
            self._theirs[item.org] = _Theirs(signed, proofs)
        for note in board.seen:
            if note.org not in trust or note.witness not in trust:
                continue
            with contextlib.suppress(IntegrityError):  # whoever spoilt it: it says nothing
                self._read_seen(note, trust.card(note.org), trust.card(note.witness))

    def _read_seen(self, note: SeenNote, card: Card, witness: Card) -> None:
        """What another witness has cosigned: of our log to be counted, of others to be compared."""
        signed = read_note(note.note)
        if cosigned_at(signed, witness) is None or signed.checkpoint.origin != log_origin(card):
            return
        if note.org == self._home.org:
            known = self._own.seen.get(note.witness)
            # what a witness has shown once it does not take back: that is an old board
            if known is None or known.checkpoint.size <= signed.checkpoint.size:
                self._own.seen[note.witness] = signed
            return
        require_log(signed, card)
        self._told(card, self._book.compare(signed, card, self._now()))
        if note.witness == self._home.org:
            self._book.remember(signed, self._now())

    def _witness(self) -> None:
        """Cosign what goes on from what we had, and what has to be renewed."""
        items, looked = list[SeenNote](), list[_Theirs]()
        trust, now = self._home.trust(), self._now()
        active = is_active(self._home, now)
        for org, theirs in sorted(self._theirs.items()):
            if org not in trust or not active(org):
                continue
            if len(items) == MAX_NOTES or not self._is_due(theirs, now):
                continue
            looked.append(theirs)
            try:
                mine = self._one(trust.card(org), theirs, now)
            except IntegrityError as error:  # of one log: it must not keep us from the others
                log.warning("not cosigned", extra={"org": org, "reason": error.what})
                continue
            if mine is not None:
                items.append(SeenNote(org=org, witness=self._home.org, note=mine.to_text()))
        if items:
            self._carrier.cosign(SeenNotes(items=tuple(items)))
        for theirs in looked:  # not before they are handed in: else again in the next round
            theirs.told = now

    def _is_due(self, theirs: _Theirs, now: datetime) -> bool:
        renewal = timedelta(seconds=self._settings.renew_s)
        return theirs.told is None or not timedelta(0) <= now - theirs.told < renewal

    def _one(self, card: Card, theirs: _Theirs, now: datetime) -> merkle.SignedCheckpoint | None:
        """What to hand in for one log, if anything: a cosignature, or what we have of it."""
        own = self._home.trust().card(self._home.org)
        judged = self._book.judge(theirs.signed, card, theirs.proofs, now)
        self._told(card, judged)
        if judged.verdict is Verdict.TAKEN:
            mine = cosign(theirs.signed, own, self._home.key(Usage.WITNESS), now)
            self._book.cosigned(mine)
            return mine
        # our last one, with the cosignature that we gave: the log learns from which size it has to
        # prove, or that it is not what it was
        last = None if judged.last is None else read_note(judged.last)
        return last if last is not None and cosigned_at(last, own) else None

    def _told(self, card: Card, judged: Judged | None) -> None:
        """An alarm goes into our own log, once."""
        if judged is None or judged.alarm is None:
            return
        raise_alarm(self._audit, card.org, judged.alarm, self._now())


def require_no_fork(home: Home, store: Store, receipt: Receipt, now: datetime) -> None:
    """A receipt's checkpoint is of the history that this home saw as a witness.

    Raises IntegrityError, after an alarm in our log, if it is of another. The receipt was verified.
    """
    card = home.trust().card(receipt.org)
    judged = WitnessBook(store).compare(receipt.tlog_proof().signed, card, now)
    if judged is None:
        return
    if judged.alarm is not None:
        raise_alarm(AuditLog(home, store), card.org, judged.alarm, now)
    todo = "`lianmo audit witnesses --json` has both notes, which prove it to anybody"
    what = "two histories of one log: the receipt is of another than this node has seen"
    raise IntegrityError(what, party=card.org, todo=todo)


def raise_alarm(audit: AuditLog, org: str, alarm: Alarm, now: datetime) -> None:
    """Enter what was refused; both notes are kept beside the log (`lianmo audit witnesses`)."""
    log.error("not cosigned", extra={"org": org, "verdict": alarm.kind.value})
    audit.append(
        Action.FORK_FOUND if alarm.kind is Verdict.FORK else Action.LOG_WENT_BACK,
        alarm.digest,
        now,
        actor=Usage.WITNESS,
        outcome=Result.REFUSED,
        reason=Reason.INTEGRITY,
    )
