"""The audit log's entries and receipts (GOVERNANCE.md, The audit log).

Entry        one canonical JSON leaf; a closed schema of digests, enumerations and counts: no
             value, credit code or free text gets in. It names the hash of the entry before it
Commitment   what an entry is about, where that identifies somebody or could be guessed, enters as
             HMAC-SHA256 under a salt of its own, kept apart: without the salt it says nothing
Receipt      leaf, C2SP tlog-proof and whose log it is; verifies with the organisation's card alone
Security     a receipt proves that the log's key signed a tree with this entry at this place. One
             that is `cosigned` proves too that enough other organisations saw no other history of
             that log. Without them whoever holds the key can sign another tree: two receipts or
             checkpoints of one size show the two histories, but nobody forces them to meet
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

import rfc8785
from pydantic import Field, StringConstraints, ValidationError, model_validator

from federation import canonical
from federation.checkpoints import (
    cosigners,
    log_key,
    log_origin,
    required,
    witnesses_in,
)
from federation.envelope import parse
from federation.errors import IntegrityError, LianmoError, NotFound, RefusalCode, Refused
from federation.objects import (
    Base64,
    Card,
    Count,
    Decision,
    Digest,
    KeyId,
    KeyRecord,
    KeyStatus,
    OrgId,
    Part,
    SignedObject,
    Time,
    utc_time,
)
from federation.trust import TrustStore
from protocols import merkle
from protocols.errors import ProtocolError

SALT_BYTES = 32
MAX_RECEIPT = 1 << 16


class Action(StrEnum):
    """What happened; the closed list."""

    LOG_BEGUN = "log-begun"
    CARD_TRUSTED = "card-trusted"
    CARD_DISTRUSTED = "card-distrusted"
    KEYS_CHANGED = "keys-changed"  # a newer card, of this organisation or another
    NETWORK_JOINED = "network-joined"
    MEMBER_DECIDED = "member-decided"  # by the founders; taken here
    DATA_ADDED = "data-added"
    DATA_REFRESHED = "data-refreshed"
    DATA_REMOVED = "data-removed"
    CATALOGUE_SIGNED = "catalogue-signed"
    JOB_PROPOSED = "job-proposed"
    JOB_APPROVED = "job-approved"
    JOB_REFUSED = "job-refused"
    JOB_WITHDRAWN = "job-withdrawn"
    ATTEMPT = "attempt"  # at the gate: the intent before data are opened, or the refusal
    ATTEMPT_CLOSED = "attempt-closed"  # with the tokens that it really spent
    RUN_RECORDED = "run-recorded"
    SALT_ERASED = "salt-erased"
    ERASED = "erased"  # with the end of its time; `amount` files and rows (clients/retention.py)
    AUDIT_OPENED = "audit-opened"  # a run's data, once more, for the auditor who is the subject
    AUDIT_HANDED = "audit-handed"  # a bundle for the auditor who is the subject; `amount` frames
    ASKED = "asked"  # on one enterprise, under its grant: the intent before a value is read
    ANSWERED = "answered"  # what such an intent or refusal came to; `attempt` is the intent's seq
    WATCHED = "watched"  # under a grant: the intent before a watched value is read again
    WATCH_ENDED = "watch-ended"  # by its bank, or with its grant (`reason`); no look after it
    SCORED = "scored"  # by a bank: the intent before its own row of the enterprise is read
    GRANT_PAUSED = "grant-paused"
    GRANT_RESUMED = "grant-resumed"
    GRANT_REVOKED = "grant-revoked"
    PROBING_NOTICED = "probing-noticed"
    FORK_FOUND = "fork-found"  # of a log that this node witnesses; both notes are kept
    LOG_WENT_BACK = "log-went-back"  # the same, or its proof did not hold: not cosigned


DECISIONS = {
    Action.JOB_PROPOSED: Decision.APPROVE.value,
    Action.JOB_APPROVED: Decision.APPROVE.value,
    Action.JOB_REFUSED: Decision.REFUSE.value,
    Action.JOB_WITHDRAWN: Decision.WITHDRAW.value,
}
ACTION_OF_DECISION = {
    Decision.APPROVE: Action.JOB_APPROVED,
    Decision.REFUSE: Action.JOB_REFUSED,
    Decision.WITHDRAW: Action.JOB_WITHDRAWN,
}


class Result(StrEnum):
    """How it ended."""

    DONE = "done"
    ADMITTED = "admitted"
    REFUSED = "refused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    CARRIED = "carried"  # it happened before this log began


class Check(StrEnum):
    """Which check of the gate refused."""

    ORDER = "order"  # not well formed, or an attempt too many
    CLOCK = "clock"
    APPROVALS = "approvals"  # manifest, signatures, approvals, times, release
    BUNDLE = "bundle"
    DISCLOSURES = "disclosures"
    REGISTRY = "registry"
    CATALOGUE = "catalogue"
    SNAPSHOT = "snapshot"
    EXPOSURE = "exposure"
    # GOVERNANCE.md, Order of checks at the provider
    SEALED = "1-sealed"
    ENVELOPE = "2-envelope"
    VERIFIER = "3-verifier"
    FRESH = "4-fresh"
    GRANT = "5-grant"
    PARTIES = "6-parties"
    PURPOSE = "7-purpose"
    QUESTION = "8-question"
    IN_FORCE = "9-in-force"
    POLICY = "10-policy"
    BUDGET = "11-budget"
    INTENT = "12-intent"
    VALUE = "13-value"


class Reason(StrEnum):
    """Why not, more precisely than anybody outside is told."""

    CONSENT_INVALID = "CONSENT_INVALID"
    SPEC_INVALID = "SPEC_INVALID"
    INSUFFICIENT_BUDGET = "INSUFFICIENT_BUDGET"
    UNFULFILLABLE = "UNFULFILLABLE"
    DECLINED = "DECLINED"
    PURPOSE_NOT_ALLOWED = "PURPOSE_NOT_ALLOWED"
    FIELD_LEVEL = "FIELD_LEVEL"
    INTEGRITY = "INTEGRITY"
    NOT_FOUND = "NOT_FOUND"
    OTHER = "OTHER"
    # of a question on one enterprise (federation/verification.py)
    CLOCK = "CLOCK"
    REPLAYED = "REPLAYED"
    EXPIRED = "EXPIRED"
    NOT_YET = "NOT_YET"
    PAUSED = "PAUSED"
    REVOKED = "REVOKED"
    STALE_STATUS = "STALE_STATUS"
    ASSURANCE = "ASSURANCE"
    SIGNER = "SIGNER"
    GRANTEE = "GRANTEE"
    PROVIDER = "PROVIDER"
    SUBJECT = "SUBJECT"
    CHANNEL = "CHANNEL"
    OFF_GRID = "OFF_GRID"
    NOT_GRANTED = "NOT_GRANTED"
    NOT_OFFERED = "NOT_OFFERED"
    USES = "USES"
    TOO_SOON = "TOO_SOON"
    BITS = "BITS"
    RATE = "RATE"
    NO_RECORD = "NO_RECORD"
    UNWITNESSED = "UNWITNESSED"  # this node's own log, just now

    @classmethod
    def of(cls, error: LianmoError) -> Reason:
        """The reason code of an error."""
        if isinstance(error, Refused):
            return cls.of_code(error.code)
        if isinstance(error, IntegrityError):
            return cls.INTEGRITY
        return cls.NOT_FOUND if isinstance(error, NotFound) else cls.OTHER

    @classmethod
    def of_code(cls, code: RefusalCode) -> Reason:
        """The same as a justification code; one that this log does not know yet is `OTHER`."""
        return cls.__members__.get(code.value, cls.OTHER)


class AuditEntry(SignedObject):
    """One leaf. `tick` grows with every entry, whatever the clock does."""

    kind: ClassVar[str] = "audit-entry"

    seq: Count
    time: Time
    tick: Count  # milliseconds since 1970, or one more than the entry before
    actor: KeyId  # the key that acted
    action: Action
    object: Digest
    outcome: Result
    check: Check | None = None
    reason: Reason | None = None
    job: Digest | None = None  # of the manifest
    attempt: Count | None = None
    scope: Digest | None = None  # of (bank, dataset): `exposure_scope`
    amount: Count | None = None  # tokens
    policy: Digest | None = None  # the rules that this was decided by
    subject: Digest | None = None  # `commit`
    prev_hash: Digest

    @classmethod
    def from_leaf(cls, leaf: bytes) -> AuditEntry:
        """The entry of these very bytes; raises IntegrityError if they are not its own."""
        try:
            found = cls.model_validate(parse(leaf))
        except ValidationError:
            raise IntegrityError("a leaf of the audit log is not well formed") from None
        if found.payload() != leaf:
            raise IntegrityError("a leaf of the audit log is not in canonical form")
        return found

    @model_validator(mode="after")
    def _refusals_have_reasons(self) -> Self:
        if self.outcome is Result.REFUSED and self.reason is None:
            raise ValueError("a refusal has a reason")
        return self


def exposure_scope(bank: str, dataset: str) -> str:
    """What an exposure counts on, without its name."""
    return _digest("lianmo/v1/audit-scope", bank, dataset)


def commit(salt: bytes, subject: bytes) -> str:
    """The commitment to a subject; the salt is fresh for every entry."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    return hmac.new(salt, b"lianmo/v1/audit-subject\0" + subject, hashlib.sha256).hexdigest()


def _digest(*words: str) -> str:
    return hashlib.sha256(rfc8785.dumps(list(words))).hexdigest()


def first_hash(origin: str) -> str:
    """What stands in place of a hash before the first entry."""
    return _digest("lianmo/v1/audit-begin", origin)


def require_chain(entries: Iterable[tuple[AuditEntry, bytes]], origin: str) -> None:
    """Each entry (with its leaf) follows the one before it; raises IntegrityError at the first."""
    before, hash_, seq = None, first_hash(origin), 0
    for entry, leaf in entries:
        if entry.seq != seq or entry.prev_hash != hash_:
            raise IntegrityError(f"entry {seq} does not follow the one before it")
        if before is not None and (
            entry.tick <= before.tick or utc_time(entry.time) < utc_time(before.time)
        ):
            raise IntegrityError(f"entry {seq} is dated before the one before it")
        before, hash_, seq = entry, merkle.leaf_hash(leaf).hex(), seq + 1


# --- what follows from the log --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counted:
    """What one attempt counts with, after the entries so far."""

    scope: str
    tokens: int
    is_closed: bool


@dataclass(frozen=True, slots=True)
class LogState:
    """The state that the entries alone lead to: what a node's tables have to say too."""

    exposure: Mapping[tuple[str, int], Counted]  # by (manifest, attempt)
    decisions: Mapping[str, str]  # the organisation's own last word, by manifest

    @classmethod
    def of(cls, entries: Iterable[AuditEntry]) -> LogState:
        """Recompute it from the first entry on."""
        exposure: dict[tuple[str, int], Counted] = {}
        decisions: dict[str, str] = {}
        for entry in entries:
            if entry.job is None:
                continue
            key = entry.job, entry.attempt or 0
            if word := DECISIONS.get(entry.action):
                decisions[entry.job] = word
            elif entry.action is Action.ATTEMPT and entry.outcome is not Result.REFUSED:
                if entry.scope is not None:  # admitted again after a restart: counts once
                    exposure.setdefault(key, Counted(entry.scope, entry.amount or 0, False))
            elif entry.action is Action.ATTEMPT_CLOSED and key in exposure:
                exposure[key] = Counted(exposure[key].scope, entry.amount or 0, True)
        return cls(exposure, decisions)

    def tokens(self, scope: str) -> int:
        """Spent, burnt or reserved on a (bank, dataset)."""
        return sum(item.tokens for item in self.exposure.values() if item.scope == scope)


# --- receipts -------------------------------------------------------------------------------------


class Receipt(Part):
    """A receipt as a file: everything but the card."""

    v: Literal[1] = 1
    kind: Literal["lianmo-receipt"] = "lianmo-receipt"
    status: Literal["cosigned", "uncosigned"] = "uncosigned"  # what its maker says of witnesses
    org: OrgId  # whose log
    key_id: KeyId  # of the log key, in that organisation's card
    origin: Annotated[str, StringConstraints(pattern=r"^[!-*,-~]{1,200}$")]
    leaf: Base64
    proof: Annotated[str, Field(max_length=MAX_RECEIPT)]  # C2SP tlog-proof

    @classmethod
    def of(
        cls,
        card: Card,
        key_id: str,
        leaf: bytes,
        proof: merkle.Receipt,
        is_cosigned: bool = False,
    ) -> Receipt:
        """The receipt of an entry of this organisation's log."""
        return cls(
            status="cosigned" if is_cosigned else "uncosigned",
            org=card.org,
            key_id=key_id,
            origin=log_origin(card),
            leaf=base64.b64encode(leaf).decode(),
            proof=proof.to_text(),
        )

    def to_json(self) -> bytes:
        """The bytes of the file."""
        return canonical.dumps(self.model_dump(mode="json")) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """The receipt in these bytes; raises IntegrityError for anything else."""
        if len(data) > MAX_RECEIPT:
            raise IntegrityError(f"a receipt has at most {MAX_RECEIPT} bytes")
        try:
            return cls.model_validate(parse_lines(data))
        except ValidationError:
            raise IntegrityError("not a receipt") from None

    @property
    def leaf_bytes(self) -> bytes:
        """The entry's bytes."""
        return base64.b64decode(self.leaf)

    def entry(self) -> AuditEntry:
        """The entry, which nobody has verified yet."""
        return AuditEntry.from_leaf(self.leaf_bytes)

    def tlog_proof(self) -> merkle.Receipt:
        """The proof, which nobody has verified yet."""
        try:
            return merkle.Receipt.from_text(self.proof, witnesses_in(self.proof))
        except ProtocolError as error:
            raise IntegrityError(f"the receipt's proof: {error}", party=self.org) from None


def parse_lines(data: bytes) -> object:
    """Strict JSON of a file that may end with a line break."""
    return parse(data.rstrip(b"\n"))


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What a receipt proves."""

    entry: AuditEntry
    org: str
    origin: str
    size: int  # of the tree that the log key signed
    root: str
    is_key_revoked: bool  # since: a thief could have signed it with an earlier time
    status: Literal["cosigned", "uncosigned"] = "uncosigned"
    witnesses: tuple[tuple[str, datetime], ...] = ()  # of others, whose cosignatures verify


def verify_receipt(receipt: Receipt, trust: TrustStore) -> VerifiedReceipt:
    """The entry, if the organisation's log key signed a tree that holds it at its place.

    Needs nothing but cards: the organisation's, and for `cosigned` its witnesses'. Raises NotFound
    if that is not trusted, IntegrityError, or Refused for a key that was not in force and for a
    receipt that says it is cosigned where too few known witnesses did so.
    """
    card = trust.card(receipt.org)
    if receipt.origin != log_origin(card):
        raise IntegrityError("the receipt is of another log than the card's", party=card.org)
    entry, proof = receipt.entry(), receipt.tlog_proof()
    key = log_key(card, receipt.key_id, utc_time(entry.time))
    try:
        proof.verify(receipt.leaf_bytes, receipt.origin, key)
    except ProtocolError as error:
        raise IntegrityError(f"the receipt does not verify: {error}", party=card.org) from None
    if proof.index != entry.seq:
        raise IntegrityError("the entry stands at another place than it says", party=card.org)
    record = next(key for key in card.keys if key.key_id == receipt.key_id)
    point, seen = proof.signed.checkpoint, cosigners(proof.signed, card.org, trust)
    is_cosigned = len(seen) >= (least := required(trust, card.org))
    if receipt.status == "cosigned" and not is_cosigned:
        known = ", ".join(seen) or "nobody known here"
        what = f"says that it is cosigned; of {least} other organisations {known} did so"
        raise Refused(what, party=card.org, todo="trust its witnesses' cards, or give them too")
    return VerifiedReceipt(
        entry,
        card.org,
        receipt.origin,
        point.size,
        point.root.hex(),
        _is_doubtful(record),
        "cosigned" if is_cosigned else "uncosigned",
        tuple(seen.items()),
    )


def _is_doubtful(record: KeyRecord) -> bool:
    return record.status in (KeyStatus.HOLD, KeyStatus.REVOKED)


def require_one_history(receipts: Sequence[VerifiedReceipt]) -> None:
    """Raises IntegrityError if two of them show two histories of one log.

    Finds two roots of one size and two entries at one place. Receipts of different sizes may
    still contradict each other; the log itself then has to show that both are its own.
    """
    roots: dict[tuple[str, int], str] = {}
    places: dict[tuple[str, int], str] = {}
    for item in receipts:
        same_root = roots.setdefault((item.origin, item.size), item.root) == item.root
        leaf = item.entry.digest()
        if not same_root or places.setdefault((item.origin, item.entry.seq), leaf) != leaf:
            todo = "keep both receipts: together they prove it to anybody"
            raise IntegrityError("two histories of one log", party=item.org, todo=todo)
