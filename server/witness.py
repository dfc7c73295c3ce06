"""The board on which logs show checkpoints and witnesses their cosignatures.

One row a log and one a (log, witness), so it cannot grow. Nobody believes it: whoever reads it
verifies what is there. It verifies too, so that it keeps nothing useless; whether a checkpoint goes
on from the one before is for the witnesses to say, and a fork has to reach them, so any checkpoint
that the log has signed takes the place of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Query
from sqlalchemy.orm import Mapped, Session, mapped_column
from starlette.concurrency import run_in_threadpool

from federation.api import MAX_WAIT_S
from federation.checkpoints import cosigned_at, read_note, require_log
from federation.errors import IntegrityError, Refused
from federation.trust import TrustStore
from federation.witness_api import Accepted, Board, Published, SeenNote, SeenNotes
from server.app import Caller, Changes
from server.store import Base, Store


class CheckpointRow(Base):
    """The newest checkpoint of a log, as it was published."""

    __tablename__ = "checkpoints"

    org: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    version: Mapped[int] = mapped_column(sa.BigInteger)
    body: Mapped[bytes] = mapped_column(sa.LargeBinary)


class CosignatureRow(Base):
    """The newest checkpoint of a log that a witness has cosigned."""

    __tablename__ = "cosignatures"

    org: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    witness: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    version: Mapped[int] = mapped_column(sa.BigInteger)
    size: Mapped[int] = mapped_column(sa.BigInteger)
    note: Mapped[str] = mapped_column(sa.Text)


class WitnessBoard:
    """The board in the coordinator's database."""

    def __init__(
        self, store: Store, trust: Callable[[], TrustStore], now: Callable[[], datetime]
    ) -> None:
        self._store, self._trust, self._now = store, trust, now
        self.changes = Changes()

    def publish(self, org: str, body: Published) -> None:
        """A log's own checkpoint; raises IntegrityError or Refused for anything else."""
        if body.org != org:
            raise Refused("publishes the log of another organisation", party=org)
        require_log(read_note(body.note), self._trust().card(org), self._now())
        with self._store.write() as session:
            row = session.get(CheckpointRow, org)
            content = body.model_dump_json().encode()
            if row is None:
                session.add(CheckpointRow(org=org, version=_next(session), body=content))
            else:  # also the same again: the log asks its witnesses to cosign it anew
                row.version, row.body = _next(session), content
        self.changes.announce()

    def cosign(self, witness: str, body: SeenNotes) -> int:
        """A witness's cosignatures; how many were new. What does not verify is not kept."""
        trust, kept = self._trust(), 0
        card, found = trust.card(witness), []
        for item in body.items:
            if item.witness != witness or item.org not in trust:
                continue
            try:
                signed = read_note(item.note)
                require_log(signed, trust.card(item.org))
                if cosigned_at(signed, card) is None:
                    continue
            except IntegrityError:
                continue
            found.append((item, signed.checkpoint.size))
        if not found:
            return 0
        with self._store.write() as session:
            for item, size in found:
                row = session.get(CosignatureRow, (item.org, witness))
                if row is not None and (size < row.size or item.note == row.note):
                    continue
                if row is None:
                    row = CosignatureRow(org=item.org, witness=witness)
                row.version, row.size, row.note = _next(session), size, item.note
                session.add(row)
                session.flush()
                kept += 1
        self.changes.announce()
        return kept

    def read(self, after: int) -> Board:
        """What changed after that version."""
        with self._store.read() as session:
            until = _newest(session)  # on PostgreSQL another may write between two statements
            points = session.scalars(
                sa.select(CheckpointRow)
                .where(CheckpointRow.version > after, CheckpointRow.version <= until)
                .order_by(CheckpointRow.org)
            ).all()
            lines = session.scalars(
                sa.select(CosignatureRow)
                .where(CosignatureRow.version > after, CosignatureRow.version <= until)
                .order_by(CosignatureRow.org, CosignatureRow.witness)
            ).all()
        return Board(
            version=until,
            published=tuple(Published.model_validate_json(row.body) for row in points),
            seen=tuple(SeenNote(org=r.org, witness=r.witness, note=r.note) for r in lines),
        )


def _newest(session: Session) -> int:
    versions = sa.union_all(sa.select(CheckpointRow.version), sa.select(CosignatureRow.version))
    return session.scalar(sa.select(sa.func.max(versions.subquery().c.version))) or 0


def _next(session: Session) -> int:
    """Grows for good: also over a database that was wiped, or its readers would miss what is new
    (so it is the clock's milliseconds, or one more than the greatest there is)."""
    session.flush()
    return max(int(time.time() * 1000), _newest(session) + 1)


def router(board: WitnessBoard) -> APIRouter:
    """The endpoints, for `create_app`."""
    api = APIRouter()

    @api.put("/witness/checkpoint")
    def publish(org: Caller, body: Published) -> Accepted:
        """Publish the newest checkpoint of the caller's log, for its witnesses."""
        board.publish(org, body)
        return Accepted(kept=1)

    @api.put("/witness/cosignatures")
    def cosign(org: Caller, body: SeenNotes) -> Accepted:
        """Hand in the caller's cosignatures of others' checkpoints."""
        return Accepted(kept=board.cosign(org, body))

    @api.get("/witness")
    async def read(
        after: Annotated[int, Query(ge=0, lt=1 << 53)] = 0,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> Board:
        """Show newer checkpoints and cosignatures; waits at most `wait` seconds for one."""
        until = time.monotonic() + wait
        while True:
            seen = board.changes.version
            found = await run_in_threadpool(board.read, after)
            left = until - time.monotonic()
            if found.published or found.seen or board.changes.is_closed or left <= 0:
                return found
            await board.changes.wait_beyond(seen, left)

    return api
