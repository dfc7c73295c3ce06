"""The log's tree against RFC 6962's reference root and a naive second implementation."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocols import merkle
from protocols.errors import ProtocolError

# The eight standard leaves of the Certificate Transparency reference implementation
LEAVES = [
    bytes.fromhex(x)
    for x in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOT_OF_8 = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    inner = naive_root(leaves[:k]) + naive_root(leaves[k:])
    return hashlib.sha256(b"\x01" + inner).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_proof(m: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    """RFC 6962 section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_proof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_proof(m - k, leaves[k:], False), naive_root(leaves[:k])]


def entries(count: int) -> list[bytes]:
    return [b"entry %d" % i for i in range(count)]


def tree_of(leaves: list[bytes]) -> merkle.Tree:
    tree = merkle.Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def test_the_reference_root_of_certificate_transparency() -> None:
    assert tree_of(LEAVES).root().hex() == ROOT_OF_8
    assert merkle.Tree().root() == naive_root([])


def test_roots_and_proofs_of_sizes_0_to_300_equal_the_naive_ones() -> None:
    leaves = entries(300)
    tree = tree_of(leaves)
    for size in range(301):
        assert tree.root(size) == naive_root(leaves[:size])
    for size in (1, 2, 3, 7, 8, 9, 64, 100, 255, 256, 257, 300):
        root = naive_root(leaves[:size])
        for index in range(size):
            proof = tree.inclusion_proof(index, size)
            assert proof == naive_path(index, leaves[:size])
            merkle.verify_inclusion(merkle.leaf_hash(leaves[index]), index, size, proof, root)
        for old in range(1, size + 1):
            proof = tree.consistency_proof(old, size)
            assert proof == naive_proof(old, leaves[:size])
            merkle.verify_consistency(old, size, proof, naive_root(leaves[:old]), root)


@given(st.integers(2, 200), st.data())
def test_no_altered_inclusion_proof_verifies(size: int, data: st.DataObject) -> None:
    leaves = entries(size)
    tree = tree_of(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index)
    leaf, root = merkle.leaf_hash(leaves[index]), tree.root()
    at = data.draw(st.integers(0, len(proof) - 1))
    changed = [*proof[:at], bytes([proof[at][0] ^ 1]) + proof[at][1:], *proof[at + 1 :]]
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
    for bad_index, bad in ((index, changed), (index, proof[:-1]), (index, [*proof, leaf])):
        with pytest.raises(ProtocolError):
            merkle.verify_inclusion(leaf, bad_index, size, bad, root)
    with pytest.raises(ProtocolError):
        merkle.verify_inclusion(leaf, other, size, proof, root)
    with pytest.raises(ProtocolError):
        merkle.verify_inclusion(leaf, size, size, proof, root)


@given(st.integers(2, 200), st.data())
def test_a_rewritten_history_has_no_consistency_proof(size: int, data: st.DataObject) -> None:
    leaves = entries(size)
    old = data.draw(st.integers(1, size - 1))
    changed = data.draw(st.integers(0, old - 1))
    forged = [*leaves[:changed], b"forged", *leaves[changed + 1 :]]
    proof = tree_of(forged).consistency_proof(old)
    with pytest.raises(ProtocolError):
        merkle.verify_consistency(
            old, size, proof, tree_of(leaves).root(old), tree_of(forged).root()
        )


def test_a_consistency_proof_to_a_smaller_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="no consistency proof"):
        tree_of(entries(5)).consistency_proof(6)
    with pytest.raises(ProtocolError, match="out of order"):
        merkle.verify_consistency(6, 5, [], bytes(32), bytes(32))


def receipt(count: int = 9, index: int = 4) -> merkle.Receipt:
    tree = tree_of(entries(count))
    signed = merkle.sign_checkpoint(merkle.Checkpoint("tax.log", count, tree.root()), KEY)
    return merkle.Receipt(index, tuple(tree.inclusion_proof(index)), signed)


def test_a_receipt_verifies_from_its_text_alone() -> None:
    text = receipt().to_text()
    merkle.Receipt.from_text(text).verify(b"entry 4", "tax.log", KEY.public_key())
    assert merkle.Receipt.from_text(text).to_text() == text


def test_a_receipt_for_another_entry_log_or_key_does_not_verify() -> None:
    one = receipt()
    for entry, origin, key in (
        (b"entry 5", "tax.log", KEY),
        (b"entry 4", "court.log", KEY),
        (b"entry 4", "tax.log", WITNESS),
    ):
        with pytest.raises(ProtocolError):
            one.verify(entry, origin, key.public_key())


def test_every_changed_character_of_a_receipt_is_noticed() -> None:
    text = receipt().to_text()
    for at in range(len(text)):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(ProtocolError):
            merkle.Receipt.from_text(changed).verify(b"entry 4", "tax.log", KEY.public_key())


def test_a_cosignature_counts_for_its_own_witness_and_time_only() -> None:
    signed = receipt().signed
    signed = signed.add(merkle.cosign(signed.checkpoint, "court", 1_700_000_000, WITNESS))
    back = merkle.SignedCheckpoint.from_text(signed.to_text(), witnesses=["court"])
    assert merkle.verify_cosignature(back, "court", WITNESS.public_key()) == 1_700_000_000
    with pytest.raises(ProtocolError):
        merkle.verify_cosignature(back, "tax.log", KEY.public_key())
    item = back.signatures[1]
    later = merkle.Signature(item.name, item.key_hash, item.signature, 1_700_000_001)
    moved = merkle.SignedCheckpoint(back.checkpoint, (back.signatures[0], later))
    with pytest.raises(ProtocolError, match="does not verify"):
        merkle.verify_cosignature(moved, "court", WITNESS.public_key())
