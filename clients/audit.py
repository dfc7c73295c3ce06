"""This node's audit log: a tree that its log key signs (GOVERNANCE.md, The audit log).

Each entry is on disk, under a signed checkpoint, when `append` returns; the newest checkpoint is in
the file `log/audit.checkpoint` too, so that a database which lost its end is found out.

    together    a change of state and its entry: both in one transaction, or neither
    verify      tree, chain, checkpoints; then the state that follows from the entries, against the
                tables. The node does so at its start and does not serve if they differ
    receipt     proof of one entry for others; `cosigned` once witnesses have seen a checkpoint over
                it (clients/witnessing.py), `uncosigned` before

Who holds database, files and log key can still write another history as a whole. Its witnesses then
cosign no more; and it shows when it meets a receipt or checkpoint from before: `require_holds`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import bindparam, delete, select

from clients import consent
from clients.home import Home
from clients.store import (
    BUSY_TIMEOUT_S,
    AuditRow,
    AuditSaltRow,
    CheckpointRow,
    Store,
    table_of,
)
from clients.witness_book import OwnCheckpoint
from federation.audit import (
    ACTION_OF_DECISION,
    SALT_BYTES,
    Action,
    AuditEntry,
    Check,
    Counted,
    LogState,
    Reason,
    Receipt,
    Result,
    commit,
    exposure_scope,
    first_hash,
    require_chain,
)
from federation.checkpoints import log_origin, public_key, read_note
from federation.envelope import Envelope
from federation.errors import (
    IntegrityError,
    LianmoError,
    NotFound,
    RefusalCode,
    Refused,
    Unavailable,
    UsageError,
)
from federation.keyring import SECRET_MODE, write
from federation.objects import Approval, Card, Decision, RunRecord, Usage, utc_text, utc_time
from federation.trust import CLOCK_SKEW
from protocols import merkle
from protocols.errors import ProtocolError

CHECKPOINT_FILE = "audit.checkpoint"
_ENTRIES, _SALTS, _CHECKPOINTS = map(table_of, (AuditRow, AuditSaltRow, CheckpointRow))
_ONE = select(_ENTRIES.c.leaf).where(_ENTRIES.c.seq == bindparam("seq"))
_ABOUT = select(_SALTS.c.subject).where(_SALTS.c.seq == bindparam("seq"))
_LAST = select(_ENTRIES.c.leaf).order_by(_ENTRIES.c.seq.desc()).limit(1)
_FROM = select(_ENTRIES.c.leaf).where(_ENTRIES.c.seq >= bindparam("size")).order_by(_ENTRIES.c.seq)


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found; good if there are no problems."""

    origin: str
    entries: int
    root: str
    erased: int  # commitments whose salt is gone
    problems: tuple[str, ...]


class AuditLog:
    """The log of one home; several may be open, in this process and in others."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home, self._store = home, store
        self._file = home.log / CHECKPOINT_FILE
        self._tree = merkle.Tree()  # of the committed entries, as far as this object has read
        self._tail: AuditEntry | None = None  # the last entry that this object appended
        self._sealed: merkle.SignedCheckpoint | None = None  # over the block that it closed last
        self._good: tuple[Card, str, str] | None = None  # a note, and which key of the card signed

    @property
    def origin(self) -> str:
        """The log's name in checkpoints."""
        return log_origin(self._card)

    @property
    def _card(self) -> Card:
        """The own card, which the trust store keeps read and verified until its file changes."""
        return self._home.trust().card(self._home.org)

    # --- writing ----------------------------------------------------------------------------------

    @contextmanager
    def together(self, now: datetime) -> Iterator[None]:
        """Everything that is stored and appended in the block, or nothing of it.

        Raises Unavailable if the database cannot be written, IntegrityError if the log is not what
        its checkpoint says.
        """
        if self._store.is_together:
            yield
            return
        with self._alone():
            try:
                with self._store.together():
                    self._read_on()
                    self._require_file(self._tree)
                    if self._tail is not None and self._tail.seq != len(self._tree) - 1:
                        self._tail = None  # another process has gone on
                    self._begin(now)
                    yield
                    note = self._seal()
            except BaseException:
                # they may hold what was rolled back
                self._tree, self._tail = merkle.Tree(), None
                raise
            if note is not None:
                self._write(note)

    def append(
        self,
        action: Action,
        digest: str,
        now: datetime,
        *,
        actor: Usage = Usage.LOG,
        outcome: Result = Result.DONE,
        check: Check | None = None,
        reason: Reason | None = None,
        job: str | None = None,
        attempt: int | None = None,
        scope: str | None = None,
        amount: int | None = None,
        policy: str | None = None,
        subject: bytes | None = None,
    ) -> AuditEntry:
        """Add an entry, on disk and under a signed checkpoint when the outermost block ends.

        subject: whom or what it is about; only a commitment enters the log, its salt stays apart.
        """
        with self.together(now):
            before, salt = self._tail or self._last(), secrets.token_bytes(SALT_BYTES)
            entry = AuditEntry(
                seq=0 if before is None else before.seq + 1,
                time=_not_before(now, before),
                tick=max(_milliseconds(now), before.tick + 1 if before is not None else 0),
                actor=self._card.of_usage(actor)[-1].key_id,
                action=action,
                object=digest,
                outcome=outcome,
                check=check,
                reason=reason,
                job=job,
                attempt=attempt,
                scope=scope,
                amount=amount,
                policy=policy,
                subject=None if subject is None else commit(salt, subject),
                prev_hash=first_hash(self.origin) if before is None else _leaf_hash(before).hex(),
            )
            with self._store.writing(AuditRow, AuditSaltRow, CheckpointRow) as session:
                row = {"seq": entry.seq, "leaf": entry.payload(), "hash": _leaf_hash(entry)}
                session.connection().execute(_ENTRIES.insert(), row)
                if subject is not None:
                    opens = {"seq": entry.seq, "salt": salt, "subject": subject}
                    session.connection().execute(_SALTS.insert(), opens)
            self._tail = entry
            return entry

    def decided(self, approval: Approval, now: datetime) -> AuditEntry:
        """This organisation's word on a job."""
        return self.append(
            ACTION_OF_DECISION[approval.decision],
            approval.digest(),
            now,
            actor=Usage.APPROVE,
            reason=None if approval.code is None else Reason.of_code(approval.code),
            job=approval.manifest,
        )

    def refused(
        self,
        manifest: str,
        attempt: int,
        check: Check,
        error: LianmoError,
        now: datetime,
        policy: str | None = None,
    ) -> AuditEntry:
        """An attempt that this node did not let in, with the precise code."""
        return self.append(
            Action.ATTEMPT,
            manifest,
            now,
            actor=Usage.RUN,
            outcome=Result.REFUSED,
            check=check,
            reason=Reason.of(error),
            job=manifest,
            attempt=attempt,
            policy=policy,
        )

    def ran(self, record: Envelope, now: datetime) -> Receipt:
        """The signed record of an attempt that ended; returns its receipt."""
        told = record.unverified(RunRecord)
        outcome = {"succeeded": Result.SUCCEEDED, "stopped": Result.STOPPED}.get(told.outcome)
        entry = self.append(
            Action.RUN_RECORDED,
            told.digest(),
            now,
            actor=Usage.RUN,
            outcome=outcome or Result.FAILED,
            job=told.manifest,
            attempt=told.attempt,
        )
        return self.receipt(entry.seq)

    def trust_card(
        self,
        envelope: Envelope,
        now: datetime,
        *,
        how: str = "by hand",
        compared: str | None = None,
        decided: str | None = None,
    ) -> Card:
        """Trust a card (`Home.trust_card`); one that was trusted already makes no entry."""
        found, known = envelope.unverified(Card), self._home.trust()
        if found.org in known and known.card(found.org) == found:
            return self._home.trust_card(envelope)
        # nothing is entered for a card that will not be taken
        known.with_card(envelope, compared=compared, decided=decided)
        if not self._card.of_usage(Usage.LOG):  # an enterprise keeps no log: it reads others'
            return self._home.trust_card(envelope, how=how, compared=compared, decided=decided)
        with self.together(now):
            action = Action.KEYS_CHANGED if found.org in known else Action.CARD_TRUSTED
            self.append(action, found.digest(), now)
            return self._home.trust_card(envelope, how=how, compared=compared, decided=decided)

    def distrust(self, org: str, now: datetime) -> None:
        """Take an organisation's card out."""
        found = self._home.trust().card(org)
        with self.together(now):
            self.append(Action.CARD_DISTRUSTED, found.digest(), now)
            self._home.keyring.distrust(org)

    def require_clock(self, now: datetime) -> None:
        """Raises Refused if the clock is behind the last entry: times would be worth nothing."""
        last = self._last()
        if last is not None and now < utc_time(last.time) - CLOCK_SKEW:
            todo = "set the clock; `lianmo doctor` compares it with the coordinator's"
            what = f"the clock is behind the audit log's last entry of {last.time}"
            raise Refused(what, code=RefusalCode.UNFULFILLABLE, todo=todo)

    def erase_salts(self, seqs: Sequence[int], now: datetime) -> int:
        """Forget for good whom these entries are about; the tree verifies as before.

        The file of a SQLite database holds no copy any more; PostgreSQL keeps one until its next
        VACUUM, and backups are the operator's. Returns how many there were.
        """
        with self.together(now):
            with self._store.writing(AuditSaltRow) as session:
                found = session.scalars(
                    select(AuditSaltRow.seq).where(AuditSaltRow.seq.in_(list(seqs)))
                ).all()
                session.execute(delete(AuditSaltRow).where(AuditSaltRow.seq.in_(found)))
            for seq in sorted(found):
                self.append(Action.SALT_ERASED, _leaf_hash(self.entry(seq)).hex(), now, amount=seq)
        self._store.forget_journal()
        return len(found)

    # --- reading ----------------------------------------------------------------------------------

    def entries(self) -> list[AuditEntry]:
        """All entries, the first first; raises IntegrityError for one that is none."""
        with self._store.reading() as session:
            leaves = session.scalars(select(AuditRow.leaf).order_by(AuditRow.seq)).all()
        return [AuditEntry.from_leaf(leaf) for leaf in leaves]

    def entry(self, seq: int) -> AuditEntry:
        """One entry; NotFound if there is none."""
        if (row := self._store.row(_ONE, seq=seq)) is None:
            raise NotFound(
                f"the audit log has no entry {seq}", todo="`lianmo audit show` lists all"
            )
        return AuditEntry.from_leaf(row.leaf)

    def subjects(self) -> dict[int, bytes]:
        """Whom or what entries are about, as far as their salts are still here."""
        with self._store.reading() as session:
            return {row.seq: row.subject for row in session.scalars(select(AuditSaltRow))}

    def subject(self, seq: int) -> bytes | None:
        """Whom or what one entry is about, if its salt is still here."""
        row = self._store.row(_ABOUT, seq=seq)
        return None if row is None else row.subject

    def checkpoint(self) -> merkle.SignedCheckpoint:
        """The newest signed checkpoint; NotFound before the first entry."""
        with self._store.reading() as session:
            note = session.scalar(select(CheckpointRow.note).order_by(CheckpointRow.size.desc()))
        if note is None:
            raise NotFound("the audit log has no entry yet")
        return merkle.SignedCheckpoint.from_text(note)

    def receipt(self, seq: int) -> Receipt:
        """Proof of one entry: under a cosigned checkpoint if there is one over it."""
        return self.receipts([self.entry(seq)])[0]

    def receipts(self, entries: Sequence[AuditEntry]) -> list[Receipt]:
        """Proofs of several entries of this log, all under one checkpoint."""
        with self._alone():
            self._read_on()
            self._require_file(self._tree)
            cosigned = self._cosigned(max((entry.seq for entry in entries), default=0))
            return self._proofs(entries, cosigned or self.checkpoint(), cosigned is not None)

    def receipts_just_now(self, entries: Sequence[AuditEntry]) -> list[Receipt]:
        """Proofs of entries of the block that this thread closed last, by nobody cosigned yet.

        Neither lock nor database: tree and checkpoint are still in memory.
        """
        if self._sealed is None:
            raise RuntimeError("no block was closed")
        return self._proofs(entries, self._sealed, is_cosigned=False)

    def _proofs(
        self, entries: Sequence[AuditEntry], signed: merkle.SignedCheckpoint, is_cosigned: bool
    ) -> list[Receipt]:
        card, key_id, size = self._card, self._key_id(signed), signed.checkpoint.size
        return [
            Receipt.of(
                card,
                key_id,
                entry.payload(),
                merkle.Receipt(
                    entry.seq, tuple(self._tree.inclusion_proof(entry.seq, size)), signed
                ),
                is_cosigned,
            )
            for entry in entries
        ]

    def require_holds(self, receipt: Receipt) -> None:
        """This log goes on from the one that a receipt of ours shows, or IntegrityError.

        The receipt's own signature is for `federation.audit.verify_receipt`.
        """
        point = receipt.tlog_proof().signed.checkpoint
        if point.origin != self.origin:
            raise UsageError("the receipt is of another log")
        tree = merkle.Tree([_leaf_hash(entry) for entry in self.entries()])
        if _not_of(tree, point, "the receipt"):
            todo = "two histories of this log are signed: keep the receipt and call the auditor"
            raise IntegrityError("this log is not the one that the receipt shows", todo=todo)

    # --- for witnesses ----------------------------------------------------------------------------

    def published(
        self, sizes: Iterable[int] = ()
    ) -> tuple[merkle.SignedCheckpoint, dict[int, list[bytes]]]:
        """The newest checkpoint, signed with the newest key, and its proofs from these sizes.

        NotFound before the first entry; IntegrityError if the log is not what was signed before.
        """
        with self._alone():
            self._read_on()
            self._require_file(self._tree)
            if not (size := len(self._tree)):
                raise NotFound("the audit log has no entry yet")
            point = merkle.Checkpoint(self.origin, size, self._tree.root())
            signed = self._sign(point)
            proofs = {s: self._tree.consistency_proof(s) for s in set(sizes) if 0 < s < size}
        return signed, proofs

    def holds(self, point: merkle.Checkpoint) -> bool:
        """Whether this log begins with what a checkpoint of it says."""
        with self._alone():
            self._read_on()
            return point.origin == self.origin and not _not_of(self._tree, point, "")

    def cosigned(self) -> merkle.SignedCheckpoint | None:
        """The newest checkpoint that enough witnesses cosigned, if it is of this very log."""
        with self._alone():
            self._read_on()
            return self._cosigned(-1)

    def tree(self) -> merkle.Tree:
        """The tree of what is committed by now, as this object goes on with it.

        Takes no lock, so no answer waits for it: what is committed stays.
        """
        self._read_on()
        return self._tree

    def under_witnesses(self) -> tuple[merkle.SignedCheckpoint, str] | None:
        """The newest cosigned checkpoint, of the very `tree()`, and the id of the log key that
        signed it; None while there is none. Takes no lock either."""
        self._read_on()
        signed = self._cosigned(-1)
        return None if signed is None else (signed, self._key_id(signed))

    def _cosigned(self, seq: int) -> merkle.SignedCheckpoint | None:
        """A cosigned checkpoint over the entry, of this very tree."""
        note = OwnCheckpoint(self._store).state().note
        signed = None if note is None else read_note(note)
        if signed is None or signed.checkpoint.size <= seq:
            return None
        return None if _not_of(self._tree, signed.checkpoint, "") else signed

    # --- verification -----------------------------------------------------------------------------

    def verify(self) -> Verification:
        """Check the whole log against its checkpoints, and the node's tables against the log."""
        with self._alone(), self._store.reading() as session:
            rows = session.scalars(select(AuditRow).order_by(AuditRow.seq)).all()
            notes = session.scalars(select(CheckpointRow).order_by(CheckpointRow.size)).all()
            salts = session.scalars(select(AuditSaltRow)).all()
            tree = merkle.Tree([merkle.leaf_hash(row.leaf) for row in rows])
            problems: list[str] = []
            problems += self._wrong_checkpoints(tree, [row.note for row in notes])
            entries: list[AuditEntry] = []
            try:
                entries = [AuditEntry.from_leaf(row.leaf) for row in rows]
                pairs = zip(entries, (row.leaf for row in rows), strict=True)
                require_chain(pairs, self.origin)
            except IntegrityError as error:
                problems.append(error.what)
            problems += [
                f"row {row.seq} holds another entry or hash than its place says"
                for place, row in enumerate(rows)
                if row.seq != place or row.hash != merkle.leaf_hash(row.leaf)
            ]
            problems += _wrong_salts(entries, salts)
            if rows and not problems:
                problems += self._wrong_state(LogState.of(entries))
                problems += consent.differences(self._store, entries)
        erased = sum(entry.subject is not None for entry in entries) - len(salts)
        root = tree.root().hex()
        return Verification(self.origin, len(rows), root, max(erased, 0), tuple(problems))

    def require_sound(self, now: datetime) -> None:
        """Raises IntegrityError if `verify` finds a problem; begins a log that is not there yet."""
        with self.together(now):
            pass
        if problems := self.verify().problems:
            todo = "`lianmo audit verify` shows all; restore database and log/ from one backup"
            raise IntegrityError(f"the audit log: {problems[0]}", party=self._home.org, todo=todo)

    def _wrong_checkpoints(self, tree: merkle.Tree, notes: Sequence[str]) -> list[str]:
        problems = []
        last = 0
        for note in notes:
            try:
                point = merkle.SignedCheckpoint.from_text(note).checkpoint
            except ProtocolError:
                problems.append("a checkpoint in the database is not well formed")
                continue
            problems += _not_of(tree, point, "a checkpoint in the database")
            last = point.size
        if notes:
            problems += self._not_signed(notes[-1], "the newest checkpoint in the database")
        if last != len(tree):
            what = f"{len(tree)} entries, the newest checkpoint in the database signs {last}"
            problems.append(what)
        try:
            self._require_file(tree)
        except IntegrityError as error:
            problems.append(error.what)
        return problems

    def _not_signed(self, note: str, where: str) -> list[str]:
        try:
            signed = merkle.SignedCheckpoint.from_text(note)
            self._key_id(signed)
        except (ProtocolError, IntegrityError):
            return [f"{where} is not signed by this organisation's log key"]
        return []

    def _wrong_state(self, state: LogState) -> list[str]:
        """Where the tables say something else than the log."""
        problems = []
        there = {(item.manifest, item.attempt): item for item in self._store.exposure.all()}
        for key in sorted(there.keys() | state.exposure.keys()):
            row, told = there.get(key), state.exposure.get(key)
            found = None
            if row is not None:
                scope = exposure_scope(row.bank, row.dataset)
                found = Counted(scope, row.tokens, row.is_closed)
            if found != told:
                where = f"job {key[0][:12]}, attempt {key[1]}"
                said = f"{_tokens(found)} in the database, {_tokens(told)} in the log"
                problems.append(f"exposure of {where}: {said}")
        words = {job.manifest: job.decision for job in self._store.jobs.all() if job.decision}
        for manifest in sorted(words.keys() | state.decisions.keys()):
            if words.get(manifest) != state.decisions.get(manifest):
                said = f"{words.get(manifest)} in the database, {state.decisions.get(manifest)}"
                problems.append(f"decision on job {manifest[:12]}: {said} in the log")
        return problems

    # --- inside -----------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other writer, thread or process, between a commit and its checkpoint's file.

        Raises Unavailable if one holds it for long: it may have been stopped in the middle.
        """
        if self._store.is_together:
            raise RuntimeError("the lock of the audit log is held by this very thread")
        handle = os.open(self._home.log / ".audit.lock", os.O_RDWR | os.O_CREAT, SECRET_MODE)
        try:
            deadline = time.monotonic() + BUSY_TIMEOUT_S
            while not _locked(handle):
                if time.monotonic() > deadline:
                    todo = "look for a `lianmo` process of this home that hangs"
                    raise Unavailable("another process holds the audit log", todo=todo)
                time.sleep(0.01)
            yield
        finally:
            os.close(handle)  # and with it the lock

    def _last(self) -> AuditEntry | None:
        row = self._store.row(_LAST)
        return None if row is None else AuditEntry.from_leaf(row.leaf)

    def _read_on(self) -> None:
        """Add to the tree what was appended since."""
        with self._store.reading() as session:
            for (leaf,) in session.connection().execute(_FROM, {"size": len(self._tree)}):
                self._tree.append(leaf)

    def _require_file(self, tree: merkle.Tree) -> None:
        """The log begins with what the file's checkpoint signs, or IntegrityError.

        So nothing is ever signed on top of a log that is not the one that was signed before.
        """
        where = f"log/{CHECKPOINT_FILE}"
        note = self._read_file()
        if note is None:
            wrong = [f"{where} is gone"] if len(tree) else []
        else:
            wrong = self._not_signed(note, where) or _not_of(
                tree, merkle.SignedCheckpoint.from_text(note).checkpoint, where
            )
        if wrong:
            todo = "`lianmo audit verify` shows all; restore database and log/ from one backup"
            raise IntegrityError(wrong[0], party=self._home.org, todo=todo)

    def _begin(self, now: datetime) -> None:
        """The first entry, and what the tables knew before there was a log."""
        if len(self._tree):
            return
        # Before the first entry: from now on a missing file means that somebody took it away.
        self._write(self._sign(merkle.Checkpoint(self.origin, 0, merkle.EMPTY_ROOT)).to_text())
        self.append(Action.LOG_BEGUN, self._card.digest(), now)
        for item in self._store.exposure.all():
            scope = exposure_scope(item.bank, item.dataset)
            actions = (Action.ATTEMPT, Action.ATTEMPT_CLOSED)
            for action in actions if item.is_closed else actions[:1]:
                self.append(
                    action,
                    item.manifest,
                    now,
                    outcome=Result.CARRIED,
                    job=item.manifest,
                    attempt=item.attempt,
                    scope=scope,
                    amount=item.tokens,
                )
        for job in self._store.jobs.all():
            if job.decision is not None:
                action = ACTION_OF_DECISION[Decision(job.decision)]
                self.append(action, job.manifest, now, outcome=Result.CARRIED, job=job.manifest)

    def _seal(self) -> str | None:
        """Sign what was appended; None if nothing was."""
        before = len(self._tree)
        self._read_on()
        if (size := len(self._tree)) == before:
            return None
        self._sealed = self._sign(merkle.Checkpoint(self.origin, size, self._tree.root()))
        note = self._sealed.to_text()
        with self._store.writing(CheckpointRow) as session:
            session.connection().execute(_CHECKPOINTS.insert(), {"size": size, "note": note})
        return note

    def _sign(self, checkpoint: merkle.Checkpoint) -> merkle.SignedCheckpoint:
        key, card = self._home.key(Usage.LOG), self._card
        if not isinstance(key.secret, Ed25519PrivateKey):
            raise TypeError("a log key is an Ed25519 key")
        signed = merkle.sign_checkpoint(checkpoint, key.secret)
        if key.key_id in {record.key_id for record in card.keys if record.usage is Usage.LOG}:
            self._good = card, signed.to_text(), key.key_id
        return signed

    def _key_id(self, signed: merkle.SignedCheckpoint) -> str:
        """Which of this organisation's log keys signed; IntegrityError if none did."""
        card, note = self._card, signed.to_text()
        if (known := self._good) is not None and known[0] is card and known[1] == note:
            return known[2]
        for record in card.keys:
            if record.usage is Usage.LOG:
                try:
                    merkle.verify_checkpoint(signed, log_origin(card), public_key(record))
                except ProtocolError:
                    continue
                self._good = card, note, record.key_id
                return record.key_id
        raise IntegrityError("the checkpoint is not signed by this organisation's log key")

    def _read_file(self) -> str | None:
        try:
            return self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _write(self, note: str) -> None:
        write(self._file, note.encode(), SECRET_MODE)


# --- helpers --------------------------------------------------------------------------------------


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leaf_hash(entry: AuditEntry) -> bytes:
    return merkle.leaf_hash(entry.payload())


def _milliseconds(now: datetime) -> int:
    return int(now.timestamp() * 1000)


def _not_before(now: datetime, before: AuditEntry | None) -> str:
    """A clock that was set back does not date an entry before the one that it follows."""
    text = utc_text(now)
    return text if before is None else max(text, before.time)


def _not_of(tree: merkle.Tree, point: merkle.Checkpoint, where: str) -> list[str]:
    if point.size > len(tree):
        return [f"{where} signs {point.size} entries, there are {len(tree)}"]
    if tree.root(point.size) != point.root:
        return [f"{where} signs other entries than the first {point.size} there are"]
    return []


def _wrong_salts(entries: Sequence[AuditEntry], salts: Sequence[AuditSaltRow]) -> list[str]:
    by_seq = {entry.seq: entry for entry in entries}
    return [
        f"the salt or subject of entry {row.seq} does not open its commitment"
        for row in salts
        if row.seq not in by_seq or by_seq[row.seq].subject != commit(row.salt, row.subject)
    ]


def _tokens(item: Counted | None) -> str:
    if item is None:
        return "nothing"
    return f"{item.tokens} tokens, {'closed' if item.is_closed else 'open'}"
