"""What this node remembers as a witness, and of its own witnesses (clients/witnessing.py).

    WitnessBook     the last checkpoint of each other log: on disk before it is cosigned, and never
                    followed by an older or another one. Forks that were found, with both notes
    OwnCheckpoint   the newest checkpoint of the own log that enough others cosigned

A log is believed at its first checkpoint; from then on each has to go on from the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, LargeBinary, String, Text, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from clients.store import Base, Store
from federation.checkpoints import MAX_SIZE, fork_of, read_note, without_cosignatures
from federation.objects import Card, utc_text
from protocols import merkle
from protocols.errors import ProtocolError

PAST = 64  # checkpoints kept of each log, to be compared with what others saw
ALARMS = 16  # kept of each log; a fork is kept whatever came before


class SeenCheckpointRow(Base):
    """A checkpoint of another log that this node has taken for good."""

    __tablename__ = "seen_checkpoint"

    origin: Mapped[str] = mapped_column(String(200), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root: Mapped[bytes] = mapped_column(LargeBinary(32))
    note: Mapped[str] = mapped_column(Text)
    seen: Mapped[str] = mapped_column(String(32))


class AlarmRow(Base):
    """What this node refused to cosign, with both notes."""

    __tablename__ = "witness_alarm"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    origin: Mapped[str] = mapped_column(String(200), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    ours: Mapped[str] = mapped_column(Text)
    theirs: Mapped[str] = mapped_column(Text)
    found: Mapped[str] = mapped_column(String(32))


class OwnCheckpointRow(Base):
    """One row: how the own log stands with its witnesses."""

    __tablename__ = "own_checkpoint"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str | None] = mapped_column(Text)  # with the cosignatures that count
    since: Mapped[str | None] = mapped_column(String(32))  # since this start: seen then, by enough
    problem: Mapped[str | None] = mapped_column(Text)


class Verdict(StrEnum):
    """What a witness says of a checkpoint."""

    TAKEN = "taken"
    UNPROVEN = "unproven"  # no proof from the size that this node has: ask for one
    WENT_BACK = "went-back"
    INCONSISTENT = "inconsistent"  # the proof does not hold; who spoilt it is not known
    FORK = "fork"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A checkpoint that was refused, beside the one that this node had."""

    origin: str
    kind: Verdict
    ours: str = field(repr=False)
    theirs: str = field(repr=False)
    found: str

    @property
    def digest(self) -> str:
        """Names the two notes."""
        return hashlib.sha256(f"{self.ours}\0{self.theirs}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict, and the alarm if it is a new one."""

    verdict: Verdict
    last: str | None = field(default=None, repr=False)  # the note that this node had before
    alarm: Alarm | None = None


class WitnessBook:
    """The logs of others, as this node saw them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def judge(
        self,
        signed: merkle.SignedCheckpoint,
        card: Card,
        proofs: Mapping[int, Sequence[bytes]],
        now: datetime,
    ) -> Judged:
        """Take a checkpoint (whose log's signature was verified), or say why not.

        On disk when this returns: only what was TAKEN may be cosigned.
        """
        point = signed.checkpoint
        with self._store.writing(SeenCheckpointRow, AlarmRow) as session:
            rows = select(SeenCheckpointRow).where(SeenCheckpointRow.origin == point.origin)
            last = session.scalar(rows.order_by(SeenCheckpointRow.size.desc()).limit(1))
            same = session.get(SeenCheckpointRow, (point.origin, point.size))
            if same is not None and fork_of(read_note(same.note), signed, card) is not None:
                alarm = _alarm(session, point.origin, Verdict.FORK, same.note, signed, now)
                return Judged(Verdict.FORK, same.note, alarm)
            forked = select(AlarmRow.digest).where(
                AlarmRow.origin == point.origin, AlarmRow.kind == Verdict.FORK.value
            )
            if session.scalar(forked) is not None:
                return Judged(Verdict.FORK, None if last is None else last.note)
            verdict = _verdict(last, point, proofs)
            before = None if last is None else last.note
            if last is not None and verdict in (Verdict.WENT_BACK, Verdict.INCONSISTENT):
                alarm = _alarm(session, point.origin, verdict, last.note, signed, now)
                return Judged(verdict, before, alarm)
            if verdict is Verdict.TAKEN:
                _take(session, signed, now)
            return Judged(verdict, before)

    def compare(self, signed: merkle.SignedCheckpoint, card: Card, now: datetime) -> Judged | None:
        """A checkpoint that somebody else saw; None if nothing follows from it for this node."""
        point = signed.checkpoint
        if point.size >= MAX_SIZE:
            return None
        with self._store.writing(SeenCheckpointRow, AlarmRow) as session:
            same = session.get(SeenCheckpointRow, (point.origin, point.size))
            if same is None or fork_of(read_note(same.note), signed, card) is None:
                return None
            alarm = _alarm(session, point.origin, Verdict.FORK, same.note, signed, now)
            return Judged(Verdict.FORK, same.note, alarm)

    def accuse(
        self, ours: str, theirs: merkle.SignedCheckpoint, card: Card, now: datetime
    ) -> Alarm | None:
        """Keep two notes that contradict each other and that this log has signed; the alarm, if it
        is a new one. A fork if the two alone prove it."""
        is_fork = fork_of(read_note(ours), theirs, card) is not None
        kind = Verdict.FORK if is_fork else Verdict.INCONSISTENT
        with self._store.writing(AlarmRow) as session:
            return _alarm(session, theirs.checkpoint.origin, kind, ours, theirs, now)

    def cosigned(self, signed: merkle.SignedCheckpoint) -> None:
        """Keep our cosignature with the checkpoint that was taken."""
        point = signed.checkpoint
        with self._store.writing(SeenCheckpointRow) as session:
            row = session.get(SeenCheckpointRow, (point.origin, point.size))
            if row is not None and row.root == point.root:
                row.note = signed.to_text()

    def remember(self, signed: merkle.SignedCheckpoint, now: datetime) -> None:
        """A checkpoint that carries our own, verified cosignature: we took it, whatever a backup
        says. A witness that forgets could be shown another history from where its memory ends."""
        point = signed.checkpoint
        with self._store.writing(SeenCheckpointRow) as session:
            rows = select(SeenCheckpointRow.size).where(SeenCheckpointRow.origin == point.origin)
            last = session.scalar(rows.order_by(SeenCheckpointRow.size.desc()).limit(1))
            if last is None or last < point.size:
                _take(session, signed, now)

    def last(self, origin: str) -> merkle.SignedCheckpoint | None:
        """The newest checkpoint that was taken of a log."""
        with self._store.reading() as session:
            rows = select(SeenCheckpointRow.note).where(SeenCheckpointRow.origin == origin)
            note = session.scalar(rows.order_by(SeenCheckpointRow.size.desc()).limit(1))
        return None if note is None else read_note(note)

    def newest(self) -> list[merkle.SignedCheckpoint]:
        """The newest of every log."""
        with self._store.reading() as session:
            origins = session.scalars(select(SeenCheckpointRow.origin).distinct()).all()
        found = (self.last(origin) for origin in sorted(origins))
        return [item for item in found if item is not None]

    def alarms(self) -> list[Alarm]:
        """What was refused, the first first."""
        with self._store.reading() as session:
            rows = session.scalars(select(AlarmRow).order_by(AlarmRow.found, AlarmRow.digest))
            return [Alarm(r.origin, Verdict(r.kind), r.ours, r.theirs, r.found) for r in rows]


def _verdict(
    last: SeenCheckpointRow | None, point: merkle.Checkpoint, proofs: Mapping[int, Sequence[bytes]]
) -> Verdict:
    if last is None or (last.size == point.size and last.root == point.root):
        return Verdict.TAKEN
    if point.size < last.size:
        return Verdict.WENT_BACK
    if last.size not in proofs:
        return Verdict.UNPROVEN
    try:
        merkle.verify_consistency(last.size, point.size, proofs[last.size], last.root, point.root)
    except ProtocolError:
        return Verdict.INCONSISTENT
    return Verdict.TAKEN


def _take(session: Session, signed: merkle.SignedCheckpoint, now: datetime) -> None:
    point = signed.checkpoint
    if session.get(SeenCheckpointRow, (point.origin, point.size)) is not None:
        return
    session.add(
        SeenCheckpointRow(
            origin=point.origin,
            size=point.size,
            root=point.root,
            note=signed.to_text(),
            seen=utc_text(now),
        )
    )
    session.flush()
    rows = SeenCheckpointRow.origin == point.origin
    sizes = select(SeenCheckpointRow.size).where(rows).order_by(SeenCheckpointRow.size.desc())
    kept = session.scalars(sizes.limit(PAST)).all()
    session.execute(delete(SeenCheckpointRow).where(rows, SeenCheckpointRow.size < kept[-1]))


def _alarm(
    session: Session,
    origin: str,
    kind: Verdict,
    ours: str,
    theirs: merkle.SignedCheckpoint,
    now: datetime,
) -> Alarm | None:
    """The alarm, if it is a new one: of each kind one for each checkpoint that this node had."""
    # ours changes with each renewal of a cosignature, the alarm's cause does not
    before = without_cosignatures(read_note(ours)).to_text()
    found = Alarm(origin, kind, before, theirs.to_text(), utc_text(now))
    rows = session.scalars(select(AlarmRow).where(AlarmRow.origin == origin)).all()
    known = [row for row in rows if row.kind == kind.value]
    if any(row.ours == found.ours for row in known) or len(known) >= ALARMS:
        return None
    session.add(
        AlarmRow(
            digest=found.digest,
            origin=origin,
            kind=kind.value,
            ours=found.ours,
            theirs=found.theirs,
            found=found.found,
        )
    )
    return found


# --- the own log ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnState:
    """How the own log stands with its witnesses."""

    note: str | None = field(default=None, repr=False)  # newest checkpoint that enough cosigned
    since: str | None = None  # when enough last cosigned the log; None: not since this start
    problem: str | None = None  # witnesses know a log that goes on from another or longer one


class OwnCheckpoint:
    """The one row of it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def state(self) -> OwnState:
        """As it stands."""
        with self._store.reading() as session:
            row = session.get(OwnCheckpointRow, 1)
            return OwnState() if row is None else OwnState(row.note, row.since, row.problem)

    def put(self, state: OwnState) -> None:
        """On disk before this returns."""
        with self._store.writing(OwnCheckpointRow) as session:
            row = session.get(OwnCheckpointRow, 1)
            if row is None:
                row = OwnCheckpointRow(number=1)
                session.add(row)
            row.note, row.since, row.problem = state.note, state.since, state.problem

    def begin(self) -> None:
        """At the start of a node: whether it was restored from a backup, only witnesses know."""
        state = self.state()
        self.put(OwnState(state.note, None, state.problem))
