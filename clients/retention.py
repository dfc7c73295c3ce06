"""How long a node keeps what a run leaves, and erasing what is due (GOVERNANCE.md, audit window).

    with the job         the state for a next attempt: a day after success, else when the manifest
                         has expired, at the latest with the window
    audit_window_days    (180) seeds, transcripts, escrows, queries in flight, answers, replies of
                         the set OPRF: what a replay audit needs
    log_years            (5) records, receipts, lists of disclosures, salts of model digests
    for good             exposure, the audit log, and the results: models, reports

Every erasure is an entry of the audit log, written before the files go: a crash between the two
erases them again the next day. Backups are the operator's.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import rfc8785
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from clients.attempts import BEGUN, DISCLOSED, RECEIPT, RECORD, REPLY, SALT, AttemptFolder
from clients.audit import AuditLog
from clients.home import Home
from clients.store import AnswerRow, ExposureRow, GrantedRow, ReplyRow, SpentRow, Store
from federation.api import TrainReply
from federation.audit import Action
from federation.envelope import Envelope
from federation.errors import LianmoError
from federation.objects import JobManifest, RunRecord, utc_text, utc_time

log = logging.getLogger(__name__)

DAILY_S = 86_400.0
STATE_AFTER_SUCCESS = timedelta(days=1)  # other parties' nodes may still have to catch up
PROOFS = frozenset({RECORD, RECEIPT, REPLY, BEGUN, DISCLOSED, SALT})  # stay for `log_years`


@dataclass(frozen=True, slots=True)
class Due:
    """Something whose time is over."""

    job: str
    what: str  # in an operator's words
    paths: tuple[Path, ...] = field(default=(), repr=False)
    manifest: str | None = None
    rows: int = 0  # of the database

    @property
    def amount(self) -> int:
        """Files and rows."""
        return len(self.paths) + self.rows


class Retention:
    """One node's."""

    def __init__(self, home: Home, store: Store, audit: AuditLog) -> None:
        self._home, self._store, self._audit = home, store, audit
        self._window = timedelta(days=home.config.audit_window_days)
        self._proofs = timedelta(days=365 * home.config.log_years)

    def due(self, now: datetime) -> list[Due]:
        """What would be erased now; changes nothing."""
        jobs = self._home.path / "runs"
        found = [item for job in sorted(jobs.glob("*")) for item in self._of_job(job, now)]
        with self._store.reading() as session:
            for manifest in self._closed(session, now):
                rows = sum(_count(session, kind, manifest) for kind in _OF_MANIFEST)
                if rows:
                    what = "stored queries and answers"
                    found.append(Due(self._name(manifest), what, manifest=manifest, rows=rows))
            old = select(func.count()).select_from(ReplyRow).where(ReplyRow.made < self._limit(now))
            if replies := session.scalar(old) or 0:
                found.append(Due("", "replies for row keys", rows=replies))
        return found

    def erase(self, now: datetime) -> list[Due]:
        """Erase what is due, each entered in the audit log first; returns it."""
        self._date_replies(now)
        found = self.due(now)
        for item in found:
            names = sorted(str(path.relative_to(self._home.path)) for path in item.paths)
            told = rfc8785.dumps({"job": item.job, "what": item.what, "files": names})
            digest, amount = hashlib.sha256(told).hexdigest(), item.amount
            self._audit.append(Action.ERASED, digest, now, job=item.manifest, amount=amount)
            for path in item.paths:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if item.rows:
                self._erase_rows(item, now)
        if found:
            log.info("erased", extra={"items": len(found), "files": sum(i.amount for i in found)})
        return found

    # --- files ------------------------------------------------------------------------------------

    def _of_job(self, job: Path, now: datetime) -> Iterator[Due]:
        by_manifest: dict[str, list[AttemptFolder]] = {}
        for path in job.iterdir() if job.is_dir() else ():
            prefix, _, number = path.name.rpartition("-")
            if path.is_dir() and len(prefix) == 16 and number.isdecimal():
                by_manifest.setdefault(prefix, []).append(AttemptFolder(path))
        for prefix, attempts in sorted(by_manifest.items()):
            attempts.sort(key=lambda item: item.number)
            manifest = self._manifest(attempts)
            ended = {item.number: _ended(item) for item in attempts}
            if now > self._state_until(manifest, attempts[-1], max(ended.values())):
                state = (job / f"{prefix}.state", *job.glob(f"{prefix}.*.state"))
                if there := tuple(path for path in state if path.exists()):
                    yield Due(job.name, "state for a next attempt", there, manifest)
            for item in attempts:
                name = f"attempt {item.number}"
                inside = sorted(item.path.iterdir())
                replay = tuple(path for path in inside if path.name not in PROOFS)
                # Results are the owner's: they have the names that the task gave them.
                replay = tuple(path for path in replay if not _is_result(job, path))
                if now > ended[item.number] + self._proofs:
                    yield Due(job.name, f"{name}: all that is left", (item.path,), manifest)
                elif replay and now > ended[item.number] + self._window:
                    yield Due(job.name, f"{name}: seed and transcript", replay, manifest)

    def _manifest(self, attempts: list[AttemptFolder]) -> str | None:
        prefix = attempts[0].path.name[:16]
        known = {item.manifest for item in self._store.exposure.all()}
        known |= {item.manifest for item in self._store.jobs.all()}
        return next((item for item in known if item.startswith(prefix)), None)

    def _state_until(self, manifest: str | None, last: AttemptFolder, ended: datetime) -> datetime:
        limits = [ended + self._window]
        try:
            reply = TrainReply.model_validate_json((last.path / REPLY).read_bytes())
            if reply.state == "succeeded":
                limits.append(ended + STATE_AFTER_SUCCESS)
        except (OSError, ValueError):
            pass
        if manifest is not None:
            try:
                kept = self._store.jobs.get(manifest)
                manifest_ = Envelope.from_json(kept.envelope).unverified(JobManifest)
                wall = timedelta(seconds=manifest_.limits.wall_time_s)
                limits.append(utc_time(manifest_.expires) + wall)
            except LianmoError:
                pass
        return min(limits)

    # --- rows -------------------------------------------------------------------------------------

    def _closed(self, session: Session, now: datetime) -> list[str]:
        """Manifests all of whose attempts ended before the window: none of them comes back."""
        rows = session.execute(select(ExposureRow.manifest, ExposureRow.closed)).all()
        limit = self._limit(now)
        still = {manifest for manifest, closed in rows if closed is None or closed > limit}
        return sorted({manifest for manifest, _ in rows} - still)

    def _limit(self, now: datetime) -> str:
        return utc_text(now - self._window)

    def _date_replies(self, now: datetime) -> None:
        with self._store.writing(ReplyRow) as session:
            for row in session.scalars(select(ReplyRow).where(ReplyRow.made.is_(None))):
                row.made = utc_text(now)

    def _erase_rows(self, item: Due, now: datetime) -> None:
        tables = _OF_MANIFEST if item.manifest is not None else (ReplyRow,)
        with self._store.writing(*tables) as session:
            if item.manifest is None:
                session.execute(delete(ReplyRow).where(ReplyRow.made < self._limit(now)))
            for kind in _OF_MANIFEST if item.manifest is not None else ():
                session.execute(delete(kind).where(kind.manifest == item.manifest))
        self._store.forget_journal()

    def _name(self, manifest: str) -> str:
        names = {item.manifest: item.job for item in self._store.jobs.all()}
        return names.get(manifest, manifest[:12])


_OF_MANIFEST = (AnswerRow, SpentRow, GrantedRow)


def daily(
    retention: Retention, now: Callable[[], datetime], stopped: threading.Event
) -> threading.Thread:
    """Erase what is due at the start and once a day, in a thread of its own."""

    def run() -> None:
        while True:
            try:
                retention.erase(now())
            except (LianmoError, OSError) as error:
                log.error("not erased", extra={"reason": str(error)})
            if stopped.wait(DAILY_S):
                return

    thread = threading.Thread(target=run, name="retention", daemon=True)
    thread.start()
    return thread


def _ended(attempt: AttemptFolder) -> datetime:
    """When the attempt ended, as far as that is known."""
    try:
        record = Envelope.from_json((attempt.path / RECORD).read_bytes()).unverified(RunRecord)
        return utc_time(record.ended)
    except (OSError, LianmoError):
        pass
    begun = attempt.begun()
    if begun is not None:
        return utc_time(begun.started)
    return datetime.fromtimestamp(attempt.path.stat().st_mtime, UTC)


def _is_result(job: Path, path: Path) -> bool:
    return path.is_file() and (job / path.name).is_file()


def _count(session: Session, kind: type[AnswerRow | SpentRow | GrantedRow], manifest: str) -> int:
    rows = select(func.count()).select_from(kind).where(kind.manifest == manifest)
    return session.scalar(rows) or 0
