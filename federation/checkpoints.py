"""Checkpoints of organisations' logs and their witnesses (GOVERNANCE.md, The audit log).

Note         C2SP tlog-checkpoint, signed by the log key of the organisation's card
Cosignature  C2SP tlog-cosignature v1 by the `witness` key of another organisation's card: this very
             checkpoint goes on from the last one that it has cosigned
Counts       with two organisations other than the log's own; with one where only one other
             organisation runs a node. A legal person under two names is one organisation
Fork         two checkpoints of one size with two roots, both signed by one log: whoever has both
             can prove it to anybody. Between two sizes only the log itself can give the proof
Not covered  a witness says that it saw no other history, not that what is entered is true; and as
             many witnesses as count, together with the log, can sign anything
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from federation.errors import IntegrityError, LianmoError, Refused
from federation.identity import PrivateKey
from federation.objects import Card, KeyRecord, KeyStatus, OrgKind, Usage, utc_time
from federation.trust import TrustStore
from protocols import merkle
from protocols.errors import ProtocolError

ENOUGH = 2  # organisations other than the log's own
MAX_COSIGNATURES = 16
MAX_SIZE = 1 << 53  # entries; as everywhere in signed objects, and below what databases take
_WITNESS = re.compile(r"^— (lianmo/[a-z0-9_-]{1,64}/[0-9a-f]{16}/witness) ", re.MULTILINE)
_RUN_NODES = frozenset({OrgKind.DEPARTMENT, OrgKind.BANK, OrgKind.GUARANTOR, OrgKind.UTILITY})


# --- names and keys -------------------------------------------------------------------------------


def log_origin(card: Card) -> str:
    """The name of an organisation's log: of its home's first admin key, whatever replaces that."""
    return f"lianmo/{card.org}/{card.first_admin.key_id[:16]}"


def witness_name(card: Card) -> str:
    """The name under which an organisation cosigns."""
    return f"{log_origin(card)}/witness"


def log_key(card: Card, key_id: str, made: datetime) -> Ed25519PublicKey:
    """A log key of this card that had not ended when an entry was made.

    A key revoked later still verifies what it signed before: otherwise a rotation would void all
    receipts. A newer key may sign an older entry again. Raises IntegrityError for another key,
    Refused for one that had ended.
    """
    record = next((key for key in card.keys if key.key_id == key_id), None)
    if record is None or record.usage is not Usage.LOG:
        what = "signed with a key that is not a log key of its organisation's card"
        raise IntegrityError(what, party=card.org, todo="ask them for a newer card")
    ended = record.since is not None and made >= utc_time(record.since)
    if ended or made >= utc_time(record.not_after):
        raise Refused("the log key had ended when the entry was made", party=card.org)
    return public_key(record)


def public_key(record: KeyRecord) -> Ed25519PublicKey:
    """The key of a record, for checkpoints."""
    try:
        key = load_der_public_key(base64.b64decode(record.spki))
    except (ValueError, UnsupportedAlgorithm):
        raise IntegrityError(f"the {record.usage} key cannot be read") from None
    if not isinstance(key, Ed25519PublicKey):
        raise IntegrityError(f"the {record.usage} key is not an Ed25519 key")
    return key


# --- notes ----------------------------------------------------------------------------------------


def witnesses_in(text: str) -> list[str]:
    """The names of witnesses in a note or receipt, whoever they are."""
    return _WITNESS.findall(text)


def read_note(text: str) -> merkle.SignedCheckpoint:
    """A note whose signatures nobody has verified yet; raises IntegrityError for anything else."""
    try:
        found = merkle.SignedCheckpoint.from_text(text, witnesses_in(text))
    except ProtocolError as error:
        raise IntegrityError(str(error)) from None
    if found.checkpoint.size >= MAX_SIZE:
        raise IntegrityError(f"a log has fewer than {MAX_SIZE} entries")
    return found


def require_log(signed: merkle.SignedCheckpoint, card: Card, now: datetime | None = None) -> None:
    """Raises IntegrityError unless this organisation's log signed the checkpoint.

    now: with a key that is in force now; else with any that was not revoked, as evidence needs it.
    """
    for record in card.keys:
        if record.usage is not Usage.LOG or not _may_sign(record, now):
            continue
        try:
            merkle.verify_checkpoint(signed, log_origin(card), public_key(record))
        except ProtocolError:
            continue
        return
    raise IntegrityError("the checkpoint is not signed by the organisation's log", party=card.org)


def _may_sign(record: KeyRecord, now: datetime | None) -> bool:
    if now is None:
        return record.status is not KeyStatus.REVOKED
    begins, ends = utc_time(record.not_before), utc_time(record.not_after)
    return record.status is KeyStatus.ACTIVE and begins <= now < ends


def cosign(
    signed: merkle.SignedCheckpoint, card: Card, key: PrivateKey, now: datetime
) -> merkle.SignedCheckpoint:
    """The checkpoint with the log's signature and ours; what allows it is for the caller."""
    if key.usage is not Usage.WITNESS or not isinstance(key.secret, Ed25519PrivateKey):
        raise TypeError("a witness key is an Ed25519 key")
    time = int(now.timestamp())
    line = merkle.cosign(signed.checkpoint, witness_name(card), time, key.secret)
    return without_cosignatures(signed).add(line)


def without_cosignatures(signed: merkle.SignedCheckpoint) -> merkle.SignedCheckpoint:
    """The log's own signatures alone."""
    point = signed.checkpoint
    own = tuple(item for item in signed.signatures if item.name == point.origin)
    return merkle.SignedCheckpoint(point, own)


def cosigned_at(signed: merkle.SignedCheckpoint, card: Card) -> datetime | None:
    """When this organisation cosigned; None if it did not, with a key in force at that time.

    Raises IntegrityError for a line of one of its keys that does not verify. A line of a key that
    its card does not have says nothing (C2SP signed-note).
    """
    name = witness_name(card)
    lines = {item.key_hash for item in signed.signatures if item.name == name}
    for record in card.keys:
        if not lines or record.usage is not Usage.WITNESS:
            continue
        key = public_key(record)
        if merkle.key_hash(name, key.public_bytes_raw(), merkle.NOTE_COSIGNATURE) not in lines:
            continue
        try:
            seconds = merkle.verify_cosignature(signed, name, key)
            time = datetime.fromtimestamp(seconds, UTC)
        except (ProtocolError, ValueError, OverflowError, OSError):
            raise IntegrityError("a cosignature does not verify", party=card.org) from None
        begins, ends = utc_time(record.not_before), utc_time(record.since or record.not_after)
        if begins.replace(microsecond=0) <= time < ends:
            return time
    return None


# --- what counts ----------------------------------------------------------------------------------


def everybody(org: str) -> bool:
    """Who takes part, for somebody who knows of cards alone."""
    return True


def may_witness(
    trust: TrustStore, log: str, is_active: Callable[[str], bool] = everybody
) -> list[str]:
    """Who can cosign the log of this organisation: other legal persons with a witness key.

    Not the platform, which carries the notes: who chooses what each witness sees would be half of
    those who say that all saw the same.
    """
    own = trust.card(log).uscc
    return [
        org
        for org in trust
        if trust.card(org).uscc != own
        and trust.card(org).org_kind is not OrgKind.PLATFORM
        and trust.card(org).of_usage(Usage.WITNESS)
        and is_active(org)
    ]


def required(trust: TrustStore, log: str, is_active: Callable[[str], bool] = everybody) -> int:
    """How many organisations have to cosign; at least one, also where there is nobody.

    Who runs no node (an auditor, the platform) may witness, and nobody has to wait for it.
    """
    cards = [trust.card(org) for org in may_witness(trust, log, is_active)]
    nodes = {card.uscc for card in cards if card.org_kind in _RUN_NODES}
    return max(1, min(ENOUGH, len(nodes)))


def cosigners(
    signed: merkle.SignedCheckpoint,
    log: str,
    trust: TrustStore,
    is_active: Callable[[str], bool] = everybody,
) -> dict[str, datetime]:
    """Who of others has cosigned, and when, the newest first; one name for each legal person.

    Unknown witnesses are passed over (C2SP signed-note); IntegrityError if one that is known did
    not sign what stands under its name.
    """
    times: dict[str, tuple[datetime, str]] = {}
    for org in may_witness(trust, log, is_active):
        card = trust.card(org)
        time = cosigned_at(signed, card)
        if time is not None and (card.uscc not in times or times[card.uscc][0] < time):
            times[card.uscc] = time, org
    return {org: time for time, org in sorted(times.values(), reverse=True)}


def merged(
    notes: Mapping[str, merkle.SignedCheckpoint], signed: merkle.SignedCheckpoint, trust: TrustStore
) -> merkle.SignedCheckpoint:
    """The checkpoint with the cosignatures that these organisations gave to the very same one."""
    found, most = signed, len(signed.signatures) + MAX_COSIGNATURES
    for org in sorted(notes):
        if len(found.signatures) >= most:
            break
        if org not in trust or notes[org].checkpoint != signed.checkpoint:
            continue
        try:
            if cosigned_at(notes[org], trust.card(org)) is None:
                continue
        except LianmoError:  # of one witness: it must not keep the others' from counting
            continue
        name = witness_name(trust.card(org))
        line = next(item for item in notes[org].signatures if item.name == name)
        if line not in found.signatures:
            found = found.add(line)
    return found


# --- forks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fork:
    """Two checkpoints of one size: proof that a log shows two histories."""

    org: str
    ours: str  # the note that this node had
    theirs: str


def fork_of(
    ours: merkle.SignedCheckpoint, theirs: merkle.SignedCheckpoint, card: Card
) -> Fork | None:
    """The proof, if these two are one: both signed by the log, with keys that still count."""
    one, other = ours.checkpoint, theirs.checkpoint
    if (one.origin, one.size) != (other.origin, other.size) or one.root == other.root:
        return None
    try:
        require_log(ours, card)
        require_log(theirs, card)
    except IntegrityError:
        return None
    return Fork(card.org, ours.to_text(), theirs.to_text())
