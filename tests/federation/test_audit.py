"""Entries and receipts of the audit log: closed leaves, and proofs that need a card alone."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from federation.audit import (
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
    require_one_history,
    verify_receipt,
)
from federation.checkpoints import log_origin
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    RefusalCode,
    Refused,
)
from federation.objects import KeyStatus, Usage, utc_text
from federation.trust import TrustStore
from protocols import merkle
from tests.federation.parties import NOW, Org, make_org

TAX, BANK = make_org("tax"), make_org("bank-a", "bank", code=1)
ORIGIN = log_origin(TAX.card)
JOB, OTHER = "1" * 64, "2" * 64


def entry(seq: int = 0, before: AuditEntry | None = None, **changes: Any) -> AuditEntry:
    plain: dict[str, Any] = {
        "seq": seq,
        "time": utc_text(NOW + timedelta(minutes=seq)),
        "tick": 1000 + seq,
        "actor": "0" * 32,
        "action": Action.JOB_APPROVED,
        "object": "a" * 64,
        "outcome": Result.DONE,
        "job": JOB,
        "prev_hash": first_hash(ORIGIN) if before is None else leaf_hash(before),
    }
    return AuditEntry.model_validate(plain | changes)


def leaf_hash(item: AuditEntry) -> str:
    return merkle.leaf_hash(item.payload()).hex()


def chain(count: int, **changes: Any) -> list[AuditEntry]:
    made: list[AuditEntry] = []
    for seq in range(count):
        made.append(entry(seq, made[-1] if made else None, **changes))
    return made


def secret(org: Org) -> Ed25519PrivateKey:
    key = org.key(Usage.LOG).secret
    assert isinstance(key, Ed25519PrivateKey)
    return key


def receipt_of(
    entries: list[AuditEntry], seq: int, org: Org = TAX, *, origin: str = ORIGIN
) -> Receipt:
    tree = merkle.Tree([merkle.leaf_hash(item.payload()) for item in entries])
    checkpoint = merkle.Checkpoint(origin, len(tree), tree.root())
    signed = merkle.sign_checkpoint(checkpoint, secret(org))
    proof = merkle.Receipt(seq, tuple(tree.inclusion_proof(seq)), signed)
    return Receipt.of(TAX.card, org.key(Usage.LOG).key_id, entries[seq].payload(), proof)


def trust(*orgs: Org) -> TrustStore:
    return TrustStore(org.envelope for org in orgs or (TAX, BANK))


# --- entries --------------------------------------------------------------------------------------


def test_a_leaf_reads_back_and_no_other_bytes_are_that_entry() -> None:
    item = entry(subject=commit(bytes(32), b"someone"))
    assert AuditEntry.from_leaf(item.payload()) == item
    spaced = json.dumps(json.loads(item.payload())).encode()
    without = json.loads(item.payload())
    without.pop("subject")
    for other in (spaced, json.dumps(without).encode(), b"{}", b"", item.payload() + b" "):
        with pytest.raises(IntegrityError):
            AuditEntry.from_leaf(other)


@pytest.mark.parametrize("field", ["words", "value", "note", "bank", "dataset"])
def test_a_leaf_has_no_place_for_text(field: str) -> None:
    with pytest.raises(ValidationError):
        entry(**{field: "91310115Y71126484T"})


def test_every_field_of_a_leaf_is_a_count_a_time_a_digest_or_of_a_closed_list() -> None:
    """So nothing that identifies anybody fits, whatever a caller passes (test 41)."""
    plain = entry().model_dump()
    for name in AuditEntry.model_fields:
        with pytest.raises(ValidationError):
            AuditEntry.model_validate(plain | {name: "91310115Y71126484T"})


def test_a_refusal_says_why() -> None:
    with pytest.raises(ValidationError):
        entry(outcome=Result.REFUSED)
    assert entry(outcome=Result.REFUSED, reason=Reason.INTEGRITY, check=Check.BUNDLE)


def test_every_justification_code_has_its_reason() -> None:
    for code in RefusalCode:
        assert Reason.of(Refused("x", code=code)).value == code.value
    assert Reason.of(IntegrityError("x")) is Reason.INTEGRITY
    assert Reason.of(NotFound("x")) is Reason.NOT_FOUND
    assert Reason.of(Conflict("x")) is Reason.OTHER


def test_a_commitment_needs_its_salt() -> None:
    salts = [bytes([n]) * 32 for n in (1, 2)]
    assert commit(salts[0], b"x") != commit(salts[1], b"x") != commit(salts[1], b"y")
    with pytest.raises(ValueError, match="salt"):
        commit(b"short", b"x")


@given(st.integers(0, 5), st.sampled_from(["seq", "prev_hash", "time", "tick"]))
def test_a_chain_holds_until_one_entry_is_another(place: int, field: str) -> None:
    entries = chain(6)
    pairs = [(item, item.payload()) for item in entries]
    require_chain(pairs, ORIGIN)
    wrong: dict[str, object] = {
        "seq": place + 1,
        "prev_hash": "f" * 64,
        "time": utc_text(NOW - timedelta(days=1)),  # dated back: test 37
        "tick": 0,
    }
    changed = entries[place].model_copy(update={field: wrong[field]})
    pairs[place] = changed, changed.payload()
    if place == 5 and field in ("time", "tick"):
        pairs = pairs[4:]  # what follows a late entry is fine, so look at the last two alone
        with pytest.raises(IntegrityError):
            require_chain(pairs, ORIGIN)
        return
    with pytest.raises(IntegrityError):
        require_chain(pairs, ORIGIN)


def test_the_chain_of_one_log_is_not_that_of_another() -> None:
    pairs = [(item, item.payload()) for item in chain(2)]
    with pytest.raises(IntegrityError):
        require_chain(pairs, log_origin(BANK.card))


# --- what follows from entries --------------------------------------------------------------------


def test_state_follows_from_the_entries_alone() -> None:
    scope = exposure_scope("bank_a", "payments")
    admitted = {"action": Action.ATTEMPT, "outcome": Result.ADMITTED, "scope": scope}
    entries = [
        entry(**admitted, amount=12, attempt=1),
        entry(**admitted, amount=99, attempt=1),  # let in again after a restart: counts once
        entry(action=Action.ATTEMPT_CLOSED, amount=7, attempt=1),
        entry(**admitted, amount=5, attempt=2),
        entry(**{**admitted, "outcome": Result.REFUSED}, reason=Reason.OTHER, attempt=3),
        entry(action=Action.ATTEMPT, outcome=Result.ADMITTED, job=OTHER, attempt=1),  # platform
        entry(action=Action.JOB_APPROVED),
        entry(action=Action.JOB_WITHDRAWN),
        entry(action=Action.JOB_REFUSED, job=OTHER),
    ]
    state = LogState.of(entries)
    assert state.exposure == {(JOB, 1): Counted(scope, 7, True), (JOB, 2): Counted(scope, 5, False)}
    assert state.tokens(scope) == 12
    assert state.tokens(exposure_scope("bank_b", "payments")) == 0
    assert state.decisions == {JOB: "withdraw", OTHER: "refuse"}


def test_names_that_run_together_are_two_scopes() -> None:
    assert exposure_scope("bank", "a-b") != exposure_scope("bank-a", "b")


# --- receipts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13])
def test_a_receipt_verifies_with_the_card_alone(size: int) -> None:
    entries = chain(size)
    for seq in range(size):
        receipt = Receipt.from_json(receipt_of(entries, seq).to_json())
        found = verify_receipt(receipt, trust(TAX))
        assert (found.entry, found.org, found.size) == (entries[seq], "tax", size)
        assert (found.status, found.is_key_revoked) == ("uncosigned", False)


def test_a_receipt_of_a_log_whose_card_is_not_trusted_is_not_believed() -> None:
    with pytest.raises(NotFound):
        verify_receipt(receipt_of(chain(3), 1), trust(BANK))


def test_a_changed_receipt_does_not_verify() -> None:
    """Test 38: one sibling hash, the leaf, the place, the origin, the signature, the key."""
    entries = chain(5)
    good = receipt_of(entries, 2)
    proof = good.tlog_proof()
    sibling = bytes([proof.proof[0][0] ^ 1]) + proof.proof[0][1:]
    signature = proof.signed.signatures[0]
    flipped = dataclasses.replace(signature, signature=bytes(64))
    other_tree = merkle.Checkpoint(ORIGIN, 5, hashlib.sha256(b"").digest())
    changes: dict[str, dict[str, object]] = {
        "sibling": {"proof": dataclasses.replace(proof, proof=(sibling, *proof.proof[1:]))},
        "shorter": {"proof": dataclasses.replace(proof, proof=proof.proof[:-1])},
        "index": {"proof": dataclasses.replace(proof, index=3)},
        "signature": {
            "proof": dataclasses.replace(
                proof, signed=merkle.SignedCheckpoint(proof.signed.checkpoint, (flipped,))
            )
        },
        "no signature": {
            "proof": dataclasses.replace(
                proof, signed=merkle.SignedCheckpoint(proof.signed.checkpoint, ())
            )
        },
        "root": {
            "proof": dataclasses.replace(
                proof, signed=merkle.SignedCheckpoint(other_tree, proof.signed.signatures)
            )
        },
        "leaf": {"leaf": base64.b64encode(entries[3].payload()).decode()},
        "origin": {"origin": log_origin(BANK.card)},
        "key": {"key_id": TAX.key(Usage.RUN).key_id},
        "unknown key": {"key_id": BANK.key(Usage.LOG).key_id},
    }
    for name, change in changes.items():
        plain = {
            key: value.to_text() if isinstance(value, merkle.Receipt) else value
            for key, value in change.items()
        }
        changed = Receipt.model_validate(good.model_dump() | plain)
        with pytest.raises(LianmoError):
            raise AssertionError(f"another {name} verified: {verify_receipt(changed, trust())}")
    assert verify_receipt(good, trust())


def test_a_receipt_signed_with_another_key_of_the_organisation_does_not_verify() -> None:
    entries = chain(2)
    key = TAX.key(Usage.APPROVE).secret
    assert isinstance(key, Ed25519PrivateKey)
    tree = merkle.Tree([merkle.leaf_hash(item.payload()) for item in entries])
    signed = merkle.sign_checkpoint(merkle.Checkpoint(ORIGIN, 2, tree.root()), key)
    proof = merkle.Receipt(0, tuple(tree.inclusion_proof(0)), signed)
    for usage in (Usage.APPROVE, Usage.LOG):
        made = Receipt.of(TAX.card, TAX.key(usage).key_id, entries[0].payload(), proof)
        with pytest.raises(IntegrityError):
            verify_receipt(made, trust())


def test_the_log_of_another_organisation_cannot_vouch_for_this_one() -> None:
    with pytest.raises(IntegrityError):
        verify_receipt(receipt_of(chain(2), 0, BANK), trust())


def test_an_entry_that_stands_at_another_place_than_it_says_is_not_believed() -> None:
    entries = chain(3)
    swapped = [entries[1], entries[0], entries[2]]
    with pytest.raises(IntegrityError, match="another place"):
        verify_receipt(receipt_of(swapped, 0), trust())


def revoked_at(moment: str) -> TrustStore:
    keys = tuple(
        key.model_copy(
            update={"status": KeyStatus.REVOKED, "since": moment, "reason": "rotation"}
            if key.usage is Usage.LOG
            else {}
        )
        for key in TAX.card.keys
    )
    return TrustStore([TAX.newer(keys=keys).envelope])


def test_a_receipt_outlives_its_key_and_says_so_but_nothing_new_is_signed_with_it() -> None:
    """Test 50, for receipts."""
    made = receipt_of(chain(3), 1)
    found = verify_receipt(made, revoked_at(utc_text(NOW + timedelta(hours=1))))
    assert found.is_key_revoked
    with pytest.raises(Refused, match="had ended"):
        verify_receipt(made, revoked_at(utc_text(NOW)))


def test_two_histories_of_one_log_are_shown_by_two_receipts() -> None:
    """Test 35: a fork signed with the very same key."""
    first, second = chain(4), chain(4, object="b" * 64)
    ours = [verify_receipt(receipt_of(entries, 2), trust()) for entries in (first, second)]
    with pytest.raises(IntegrityError, match="two histories"):
        require_one_history(ours)
    grown = verify_receipt(receipt_of(chain(6, object="b" * 64), 2), trust())
    with pytest.raises(IntegrityError, match="two histories"):
        require_one_history([ours[0], grown])  # another size, another entry at the same place
    require_one_history([ours[0], verify_receipt(receipt_of(first, 0), trust())])


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{}", b"[]", b"null", b"\xff", b'{"v":1,"v":1}', b"x" * 70_000),
        *(b'{"a":' * 5000, b"1e999", b"\xef\xbb\xbf{}"),
    ],
)
def test_what_is_no_receipt_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Receipt.from_json(data)


def test_a_receipt_cannot_claim_to_be_cosigned() -> None:
    plain = json.loads(receipt_of(chain(1), 0).to_json())
    claimed = Receipt.from_json(json.dumps(plain | {"status": "cosigned"}).encode())
    with pytest.raises(Refused, match="nobody known here did so"):
        verify_receipt(claimed, trust())
