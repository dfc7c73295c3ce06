"""Transparency log: a Merkle tree over entries, its proofs, checkpoints and receipts.

Tree         RFC 6962 section 2.1: SHA-256(0x00 | leaf), SHA-256(0x01 | left | right)
Proofs       inclusion and consistency, RFC 6962 section 2.1.1 and 2.1.2; verification as RFC 9162
Checkpoint   C2SP tlog-checkpoint: origin, size, root, in a signed note (C2SP signed-note, Ed25519)
Cosignature  C2SP tlog-cosignature v1: a witness signs (time, checkpoint) after a consistency proof
Receipt      C2SP tlog-proof: index, inclusion proof, checkpoint; verifies with public keys alone

Security     collision resistance of SHA-256, unforgeability of Ed25519. A log that shows two
             histories is caught when two checkpoints meet; that needs witnesses (not here).
Learns       who holds a receipt learns sibling hashes only; leaves that could be guessed have to be
             salted by the caller.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.errors import ProtocolError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
NOTE_ED25519, NOTE_COSIGNATURE = b"\x01", b"\x04"  # C2SP signed-note and tlog-cosignature
MAX_NOTE = 1 << 16


def leaf_hash(entry: bytes) -> bytes:
    """Hash of a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The log's own side: append entries, give roots and proofs of any size so far."""

    def __init__(self, leaf_hashes: Sequence[bytes] = ()) -> None:
        # levels[k][i] is the hash of the full subtree over leaves [i 2^k, (i+1) 2^k)
        self._levels: list[list[bytes]] = [[]]
        for item in leaf_hashes:
            self._append_hash(item)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, entry: bytes) -> int:
        """Add an entry; its index."""
        self._append_hash(leaf_hash(entry))
        return len(self) - 1

    def _append_hash(self, item: bytes) -> None:
        if len(item) != HASH_BYTES:
            raise ValueError("a leaf hash has 32 bytes")
        self._levels[0].append(item)
        level = 0
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            left, right = self._levels[level][-2:]
            self._levels[level + 1].append(node_hash(left, right))
            level += 1

    def root(self, size: int | None = None) -> bytes:
        """Root of the first `size` entries."""
        size = self._size(size)
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Sibling hashes from the leaf upwards."""
        size = self._size(size)
        if not 0 <= index < size:
            raise ValueError(f"index {index} is not in a tree of {size}")
        proof: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                proof.append(self._range(middle, high))
                high = middle
            else:
                proof.append(self._range(low, middle))
                low = middle
        return proof[::-1]

    def consistency_proof(self, old: int, size: int | None = None) -> list[bytes]:
        """Hashes that show the first `old` entries unchanged in the first `size`."""
        size = self._size(size)
        if not 0 < old <= size:
            raise ValueError(f"no consistency proof from {old} to {size}")
        proof: list[bytes] = []
        low, high, whole = 0, size, True
        while old != high:
            middle = low + _split(high - low)
            if old <= middle:
                proof.append(self._range(middle, high))
                high = middle
            else:
                proof.append(self._range(low, middle))
                low, whole = middle, False
        if not whole:
            proof.append(self._range(low, high))
        return proof[::-1]

    def _size(self, size: int | None) -> int:
        if size is None:
            return len(self)
        if not 0 <= size <= len(self):
            raise ValueError(f"the tree has {len(self)} entries, not {size}")
        return size

    def _range(self, low: int, high: int) -> bytes:
        """Hash of the subtree over leaves [low, high); low is a multiple of its power of two."""
        width = high - low
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._levels[level][low >> level]
        middle = low + _split(width)
        return node_hash(self._range(low, middle), self._range(middle, high))


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Raises ProtocolError unless `leaf` (a leaf hash) stands at `index` under `root`."""
    if not 0 <= index < size:
        raise ProtocolError("index outside the tree")
    position, last, current = index, size - 1, leaf
    for item in proof:
        if last == 0:
            raise ProtocolError("inclusion proof is too long")
        if position & 1 or position == last:
            current = node_hash(item, current)
            while position & 1 == 0 and position != 0:
                position, last = position >> 1, last >> 1
        else:
            current = node_hash(current, item)
        position, last = position >> 1, last >> 1
    if last != 0 or current != root:
        raise ProtocolError("inclusion proof does not lead to the root")


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Raises ProtocolError unless the tree of `old` entries is the beginning of that of `new`."""
    if not 0 < old <= new:
        raise ProtocolError("sizes of a consistency proof are out of order")
    if old == new:
        if proof or old_root != new_root:
            raise ProtocolError("two roots of one size")
        return
    items = list(proof)
    if old & (old - 1) == 0:
        items.insert(0, old_root)
    if not items:
        raise ProtocolError("consistency proof is empty")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = items[0]
    for item in items[1:]:
        if last == 0:
            raise ProtocolError("consistency proof is too long")
        if position & 1 or position == last:
            first, second = node_hash(item, first), node_hash(item, second)
            while position & 1 == 0 and position != 0:
                position, last = position >> 1, last >> 1
        else:
            second = node_hash(second, item)
        position, last = position >> 1, last >> 1
    if last != 0 or first != old_root or second != new_root:
        raise ProtocolError("consistency proof does not lead to both roots")


# --- checkpoints and receipts --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log commits to: `size` entries with this root, under the name `origin`."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[!-~]{1,200}", self.origin) or "+" in self.origin:
            raise ValueError("an origin is one printable word without '+'")
        if self.size < 0 or len(self.root) != HASH_BYTES:
            raise ValueError("size or root out of range")

    def body(self) -> str:
        """The note's text, which is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class Signature:
    """One line of a signed note; `time` is set on a witness's cosignature."""

    name: str
    key_hash: bytes
    signature: bytes
    time: int | None = None


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with the log's signature and witnesses' cosignatures."""

    checkpoint: Checkpoint
    signatures: tuple[Signature, ...]

    def to_text(self) -> str:
        """The signed note."""
        lines = []
        for item in self.signatures:
            time = b"" if item.time is None else item.time.to_bytes(8, "big")
            raw = base64.b64encode(item.key_hash + time + item.signature).decode()
            lines.append(f"— {item.name} {raw}\n")
        return self.checkpoint.body() + "\n" + "".join(lines)

    @staticmethod
    def from_text(text: str, witnesses: Sequence[str] = ()) -> SignedCheckpoint:
        """Parse a signed note; signatures under a name in `witnesses` are cosignatures."""
        if len(text) > MAX_NOTE:
            raise ProtocolError("checkpoint is too long")
        body, gap, rest = text.partition("\n\n")
        lines = body.split("\n")
        if not gap or len(lines) != 3 or not re.fullmatch(r"0|[1-9]\d{0,18}", lines[1]):
            raise ProtocolError("not a checkpoint")
        try:
            checkpoint = Checkpoint(lines[0], int(lines[1]), _base64(lines[2]))
        except ValueError as error:
            raise ProtocolError("not a checkpoint") from error
        return SignedCheckpoint(checkpoint, tuple(_signatures(rest, witnesses)))

    def add(self, signature: Signature) -> SignedCheckpoint:
        """The same with one more signature."""
        return SignedCheckpoint(self.checkpoint, (*self.signatures, signature))


def _signatures(text: str, witnesses: Sequence[str]) -> list[Signature]:
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"— (\S{1,200}) (\S+)", line)
        if not match:
            raise ProtocolError("not a signature line")
        raw = _base64(match[2])
        timed = match[1] in witnesses
        if len(raw) != 4 + 8 * timed + 64:
            raise ProtocolError("signature of a wrong length")
        time = int.from_bytes(raw[4:12], "big") if timed else None
        found.append(Signature(match[1], raw[:4], raw[-64:], time))
    return found


def _base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError("not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise ProtocolError("not canonical base64")
    return raw


def key_hash(name: str, public: bytes, kind: bytes = NOTE_ED25519) -> bytes:
    """The four bytes that tell a note's reader which key to try."""
    return hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> SignedCheckpoint:
    """The log's signature, under the checkpoint's origin."""
    public = key.public_key().public_bytes_raw()
    signature = key.sign(checkpoint.body().encode())
    hint = key_hash(checkpoint.origin, public)
    return SignedCheckpoint(checkpoint, (Signature(checkpoint.origin, hint, signature),))


def cosign(checkpoint: Checkpoint, witness: str, time: int, key: Ed25519PrivateKey) -> Signature:
    """A witness saw this checkpoint at `time` (seconds since 1970), consistent with its last."""
    public = key.public_key().public_bytes_raw()
    hint = key_hash(witness, public, NOTE_COSIGNATURE)
    return Signature(witness, hint, key.sign(_cosigned(checkpoint, time)), time)


def _cosigned(checkpoint: Checkpoint, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{checkpoint.body()}".encode()


def verify_checkpoint(signed: SignedCheckpoint, origin: str, key: Ed25519PublicKey) -> None:
    """Raises ProtocolError unless the log named `origin` signed this checkpoint with `key`."""
    hint = key_hash(origin, key.public_bytes_raw())
    body = signed.checkpoint.body().encode()
    if signed.checkpoint.origin != origin:
        raise ProtocolError("checkpoint of another log")
    _verify_one(signed, Signature(origin, hint, b""), body, key)


def verify_cosignature(signed: SignedCheckpoint, witness: str, key: Ed25519PublicKey) -> int:
    """The time at which `witness` cosigned; raises ProtocolError if it did not."""
    hint = key_hash(witness, key.public_bytes_raw(), NOTE_COSIGNATURE)
    for item in signed.signatures:
        if item.name == witness and item.key_hash == hint and item.time is not None:
            wanted = Signature(witness, hint, b"", item.time)
            _verify_one(signed, wanted, _cosigned(signed.checkpoint, item.time), key)
            return item.time
    raise ProtocolError("no cosignature of this witness")


def _verify_one(
    signed: SignedCheckpoint, wanted: Signature, message: bytes, key: Ed25519PublicKey
) -> None:
    for item in signed.signatures:
        if (item.name, item.key_hash, item.time) == (wanted.name, wanted.key_hash, wanted.time):
            try:
                key.verify(item.signature, message)
            except InvalidSignature:
                raise ProtocolError("signature does not verify") from None
            return
    raise ProtocolError("no signature under this name and key")


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that an entry stands in a log: C2SP tlog-proof."""

    index: int
    proof: tuple[bytes, ...]
    signed: SignedCheckpoint

    HEADER = "c2sp.org/tlog-proof@v1"

    def to_text(self) -> str:
        """The receipt as text."""
        hashes = "".join(f"{base64.b64encode(item).decode()}\n" for item in self.proof)
        return f"{self.HEADER}\nindex {self.index}\n{hashes}\n{self.signed.to_text()}"

    @staticmethod
    def from_text(text: str, witnesses: Sequence[str] = ()) -> Receipt:
        """Parse a receipt."""
        head, gap, note = text.partition("\n\n")
        lines = head.split("\n")
        match = re.fullmatch(r"index (0|[1-9]\d{0,18})", lines[1]) if len(lines) > 1 else None
        if not gap or lines[0] != Receipt.HEADER or match is None or len(lines) > 2 + 63:
            raise ProtocolError("not a receipt")
        proof = tuple(_base64(line) for line in lines[2:])
        if any(len(item) != HASH_BYTES for item in proof):
            raise ProtocolError("not a receipt")
        return Receipt(int(match[1]), proof, SignedCheckpoint.from_text(note, witnesses))

    def verify(self, entry: bytes, origin: str, key: Ed25519PublicKey) -> None:
        """Raises ProtocolError unless the log `origin` holds `entry` at this place."""
        verify_checkpoint(self.signed, origin, key)
        point = self.signed.checkpoint
        verify_inclusion(leaf_hash(entry), self.index, point.size, self.proof, point.root)
