"""Receipts completed later: the same entries, under a checkpoint that witnesses have cosigned
(docs/adr/0016).

Request   signed by the asker's request key, sealed to the owner: entries, each with its leaf's hash
          and the size of the tree that the asker's receipt shows it in
Answer    signed by the owner's answer key: one cosigned checkpoint, and for each entry that stands
          in it a path and a proof that one of the two trees goes on from the other. No entry is in
          it: who has not got the receipt learns nothing. `refused` is one word for entries of
          somebody else, of another kind and of none; what is not named waits for witnesses
Accept    the asker computes the receipt of the entry that it has. Where the owner's signed answer
          does not fit the receipt that its log key signed before, that is `Contradiction`, with
          both notes
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from federation.audit import Action, AuditEntry, Receipt, Result, verify_receipt
from federation.checkpoints import log_origin, read_note, require_log
from federation.envelope import Envelope
from federation.errors import IntegrityError, Refused
from federation.objects import (
    Base64,
    Count,
    Digest,
    KeyId,
    OrgId,
    Part,
    SignedObject,
    Time,
    Usage,
    utc_time,
)
from federation.trust import TrustStore
from federation.verification import WINDOW, Standing
from federation.witness_api import MAX_NOTE
from protocols import merkle
from protocols.errors import ProtocolError

AT_ONCE = 16  # entries of one request: their proofs fit into one size


class Shown(Part):
    """An entry as the asker's receipt shows it; whoever has no receipt cannot name its leaf."""

    entry: Count
    leaf: Digest  # the leaf hash
    size: Count  # of the tree


class ReceiptsRequest(SignedObject):
    """An asker to an owner."""

    kind: ClassVar[str] = "receipts-request"

    verifier: OrgId
    provider: OrgId
    created: Time
    expires: Time
    reply_key: KeyId
    entries: Annotated[tuple[Shown, ...], Field(min_length=1, max_length=AT_ONCE)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({item.entry for item in self.entries}) != len(self.entries):
            raise ValueError("each entry is asked for once")
        return self

    @property
    def org(self) -> str:
        """Who has to have signed it."""
        return self.verifier


class Proof(Part):
    """That an entry stands under the answer's checkpoint."""

    entry: Count
    path: Base64  # hashes, from the leaf upwards
    link: Base64  # from the smaller to the larger of the asker's tree and the checkpoint's


class ReceiptsAnswer(SignedObject):
    """An owner to an asker; without a note no checkpoint is cosigned yet."""

    kind: ClassVar[str] = "receipts-answer"

    org: OrgId
    verifier: OrgId
    request: Digest
    created: Time
    note: Annotated[str, Field(max_length=MAX_NOTE)] | None = None
    key_id: KeyId | None = None  # of the log key that signed it
    proofs: Annotated[tuple[Proof, ...], Field(max_length=AT_ONCE)] = ()
    refused: Annotated[tuple[Count, ...], Field(max_length=AT_ONCE)] = ()

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.note is None) != (self.key_id is None) or (self.proofs and self.note is None):
            raise ValueError("proofs go with a note, and a note with its key")
        return self


class Contradiction(IntegrityError):
    """An owner's log key and its answer show two histories; both notes, for the evidence."""

    def __init__(self, what: str, party: str, ours: str, theirs: str) -> None:
        super().__init__(what, party=party, todo="keep both notes: `lianmo audit witnesses --json`")
        self.ours, self.theirs = ours, theirs


# --- the owner ------------------------------------------------------------------------------------


def check_request(
    content: bytes, sender: str, me: str, trust: TrustStore, standing: Standing, now: datetime
) -> ReceiptsRequest:
    """The request, if its sender has signed it for us just now; raises LianmoError."""
    envelope = Envelope.from_json(content)
    found = trust.verify(envelope, ReceiptsRequest, Usage.REQUEST, now, org=sender).object
    if found.provider != me:
        raise IntegrityError("the request is to another organisation", party=sender)
    standing.require_active(sender, now)
    made, end = utc_time(found.created), utc_time(found.expires)
    if not timedelta(0) < end - made <= WINDOW or not made - WINDOW <= now < end + WINDOW:
        raise Refused("the request's time is not ours", party=sender)
    return found


def is_answer(entry: AuditEntry) -> bool:
    """Whether an entry is of something that an asker was told, and so has a receipt."""
    return entry.action is Action.ANSWERED and entry.outcome is Result.DONE


def prove(tree: merkle.Tree, size: int, shown: Shown) -> Proof:
    """The proof of one entry in the first `size` of a tree, both trees being of this log."""
    small, large = sorted((size, shown.size))
    path = b"".join(tree.inclusion_proof(shown.entry, size))
    link = b"".join(tree.consistency_proof(small, large))
    return Proof(
        entry=shown.entry,
        path=base64.b64encode(path).decode(),
        link=base64.b64encode(link).decode(),
    )


# --- the asker ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completed:
    """What came of one receipt: the completed one, a contradiction, or neither while it waits."""

    entry: int
    receipt: Receipt | None = None
    contradiction: Contradiction | None = None
    is_refused: bool = False


def shown_by(receipt: Receipt) -> Shown:
    """How an entry is asked for."""
    proof, leaf = receipt.tlog_proof(), merkle.leaf_hash(receipt.leaf_bytes)
    return Shown(entry=proof.index, leaf=leaf.hex(), size=proof.signed.checkpoint.size)


def check_answer(
    content: bytes,
    request: ReceiptsRequest,
    receipts: Sequence[Receipt],
    trust: TrustStore,
    now: datetime,
) -> list[Completed]:
    """What the owner says of each of these receipts, which were verified when they came.

    Raises IntegrityError or Refused for an answer that is not the owner's to this request, or whose
    checkpoint its log has not signed or too few have cosigned: whoever made that up, it shows
    nothing about the log.
    """
    envelope = Envelope.from_json(content)
    answer = trust.verify(envelope, ReceiptsAnswer, Usage.ANSWER, now, org=request.provider).object
    if answer.request != request.digest() or answer.verifier != request.verifier:
        raise IntegrityError("the receipts are for another request", party=request.provider)
    found = []
    proofs = {proof.entry: proof for proof in answer.proofs}
    for receipt in receipts:
        entry = shown_by(receipt).entry
        if answer.note is None or answer.key_id is None or entry not in proofs:
            found.append(Completed(entry, is_refused=entry in answer.refused))
            continue
        try:
            made = _complete(receipt, answer.note, answer.key_id, proofs[entry], trust)
            found.append(Completed(entry, made))
        except Contradiction as error:
            found.append(Completed(entry, contradiction=error))
    return found


def _complete(receipt: Receipt, note: str, key_id: str, proof: Proof, trust: TrustStore) -> Receipt:
    """The receipt of the same entry under the note."""
    signed, before = read_note(note), receipt.tlog_proof().signed
    card = trust.card(receipt.org)
    require_log(signed, card)
    if signed.checkpoint.origin != log_origin(card):
        raise IntegrityError("the checkpoint is of another log", party=card.org)
    try:
        _require_one_log(before.checkpoint, signed.checkpoint, _hashes(proof.link))
        path = merkle.Receipt(proof.entry, tuple(_hashes(proof.path)), signed)
        leaf, point = merkle.leaf_hash(receipt.leaf_bytes), signed.checkpoint
        merkle.verify_inclusion(leaf, path.index, point.size, path.proof, point.root)
    except ProtocolError as error:
        what = f"its log does not go on from the receipt that it gave: {error}"
        raise Contradiction(what, card.org, before.to_text(), signed.to_text()) from None
    made = receipt.model_copy(
        update={"status": "cosigned", "key_id": key_id, "proof": path.to_text()}
    )
    verify_receipt(made, trust)  # its key at that time, and who has cosigned
    return made


def _require_one_log(
    one: merkle.Checkpoint, other: merkle.Checkpoint, link: Sequence[bytes]
) -> None:
    """The larger of two trees goes on from the smaller one; ProtocolError if that is not shown."""
    small, large = sorted((one, other), key=lambda point: point.size)
    merkle.verify_consistency(small.size, large.size, link, small.root, large.root)


def _hashes(text: str) -> list[bytes]:
    raw = base64.b64decode(text)
    if len(raw) % merkle.HASH_BYTES:
        raise ProtocolError("a proof is a row of hashes")
    return [raw[at : at + merkle.HASH_BYTES] for at in range(0, len(raw), merkle.HASH_BYTES)]
