"""Row keys by VOPRF: RFC 9497, suite ristretto255-SHA512, mode VOPRF (PROTOCOLS.md section 1).

The department holds a key for one (bank, snapshot) and can compute the row key of any code; the
bank gets those of its own customers, and the department learns the padded size of the request only.

Steps        B blind, D blind_evaluate, B finalize; D row_keys over the whole registry, at any time
Security     RFC 9497 section 7: one-more gap DH against the bank, perfect blinding against the
             department, a DLEQ proof a block against answers under different keys
Not covered  which inputs the bank asks for (the audit opens them); erasing the seed (the node)

Points are checked before use: whether rbcl raises or returns zeros for an invalid point depends on
the function, and the identity is encoded as zeros, which it calls valid. We refuse both.
Scalars are 32 bytes, little-endian, and stay with libsodium, whose arithmetic takes constant time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import rbcl
from numpy.typing import NDArray

from protocols import labels
from protocols.errors import ParameterError, ProtocolError
from protocols.kernels import gather
from protocols.row_keys import ROW_KEY_BYTES
from protocols.streams import Randomness, digest, encode

CONTEXT = b"OPRFV1-\x01-ristretto255-SHA512"  # RFC 9497 sections 3.1 and 4.1; mode 1 is VOPRF
HASH_TO_GROUP, HASH_TO_SCALAR = b"HashToGroup-" + CONTEXT, b"HashToScalar-" + CONTEXT
DERIVE_KEY_PAIR, COMPOSITE_SEED = b"DeriveKeyPair" + CONTEXT, b"Seed-" + CONTEXT

ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 9496 section 4
POINT_BYTES = SCALAR_BYTES = 32
PROOF_BYTES = 2 * SCALAR_BYTES
IDENTITY, ZERO = bytes(POINT_BYTES), bytes(SCALAR_BYTES)
INPUT_BYTES_MAX = 2**16 - 1  # RFC 9497 section 1.2
PAD = b"pad|"  # inputs of a padded request; no code contains the separator

# Rows of one task and of one proof. RFC 9497 allows 65,535 elements a proof; smaller blocks spread
# over an executor, and 64 bytes a thousand rows are nothing.
BLOCK = 1024


# --- messages


@dataclass(frozen=True, slots=True, eq=False)
class BlindedBatch:
    """Bank to department: `r_i H(input_i)`, padded to the approved size, in a secret order."""

    elements: NDArray[np.uint8] = field(repr=False)  # shape (n, 32), encoded points

    def __post_init__(self) -> None:
        _require_rows(self.elements, POINT_BYTES, "blinded elements")

    def digest(self) -> bytes:
        """What the department records before it answers."""
        return digest(labels.OPRF_BLIND, self.elements.tobytes())


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedBatch:
    """Department to bank: every element times its key, and one proof for every `BLOCK` rows."""

    elements: NDArray[np.uint8] = field(repr=False)  # shape (n, 32), encoded points
    proofs: NDArray[np.uint8] = field(repr=False)  # shape (ceil(n / BLOCK), 64), c and s

    def __post_init__(self) -> None:
        _require_rows(self.elements, POINT_BYTES, "evaluated elements")
        _require_rows(self.proofs, PROOF_BYTES, "proofs")
        if len(self.proofs) != -(-len(self.elements) // BLOCK):
            raise ProtocolError(f"{len(self.elements)} elements, {len(self.proofs)} proofs")


# --- parties


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A department's key for one bank and one snapshot."""

    secret: bytes = field(repr=False)  # a scalar
    public: bytes  # a point


class Department:
    """Owner of the key: evaluates blinded codes for one bank, and any code for itself.

    `maximum` is the approved number of inputs over the life of the key, all jobs together.
    `answered` holds the requests answered so far (digest to size). The caller stores it *before* it
    sends an answer: a node that forgets it after a crash answers beyond the approval.
    """

    def __init__(
        self,
        key: KeyPair,
        maximum: int,
        randomness: Randomness,
        answered: Mapping[bytes, int] | None = None,
    ) -> None:
        self.public = key.public
        self.answered = dict(answered or {})
        self._key = key
        self._maximum = maximum
        self._randomness = randomness

    def blind_evaluate(
        self, batch: BlindedBatch, executor: Executor | None = None
    ) -> EvaluatedBatch:
        """The bank's elements times the key. A repeated request gets the same bytes, uncounted.

        Raises ProtocolError on an invalid point or beyond the approved maximum; nothing is counted.
        """
        request, size = batch.digest(), len(batch.elements)
        spent = sum(self.answered.values())
        if request not in self.answered and spent + size > self._maximum:
            raise ProtocolError(
                f"{size} row keys asked, {self._maximum - spent} left of {self._maximum}"
            )
        blocks = _blocks(batch.elements)
        gather(executor, _require_points, blocks)
        self.answered[request] = size
        nonces = [self._proof_nonce(i, block) for i, block in enumerate(blocks)]
        keys = [self._key] * len(blocks)
        parts = gather(executor, _evaluate_block, keys, blocks, nonces)
        elements = _rows((part for part, _ in parts), POINT_BYTES)
        return EvaluatedBatch(elements, _rows((proof for _, proof in parts), PROOF_BYTES))

    def row_keys(
        self, codes: NDArray[np.bytes_], executor: Executor | None = None
    ) -> NDArray[np.uint8]:
        """Row keys of any codes, shape (codes, 16): about 0.1 ms a row and core, so cache them."""
        inputs = _inputs(codes)
        blocks = [inputs[at : at + BLOCK] for at in range(0, len(inputs), BLOCK)]
        parts = gather(executor, _row_key_block, [self._key.secret] * len(blocks), blocks)
        return _rows(parts, ROW_KEY_BYTES)

    def _proof_nonce(self, index: int, block: bytes) -> bytes:
        # One nonce under two challenges gives the key away. All that the challenge hashes follows
        # from the key and the block, so equal inputs here mean an equal challenge.
        inputs = digest(self.public, block)
        stream = self._randomness.stream(labels.OPRF_PROOF, column=index, inputs=inputs)
        return _scalar(stream.bytes(64))


@dataclass(frozen=True, slots=True, eq=False)
class CustomerRowKeys:
    """What the bank keeps: its customers' codes and their row keys."""

    codes: NDArray[np.bytes_] = field(repr=False)  # sorted, unique
    keys: NDArray[np.uint8] = field(repr=False)  # shape (codes, 16)

    def row_keys(
        self, codes: NDArray[np.bytes_], executor: Executor | None = None
    ) -> NDArray[np.uint8]:
        """Shape (codes, 16), in the order asked. ValueError if one is not the bank's customer."""
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        if not np.array_equal(self.codes[at], codes):
            raise ValueError("the bank has row keys of its own customers only")
        return self.keys[at]


class Bank:
    """Asks for the row keys of its customers, `size` inputs whatever their number.

    `public` is the department's certified key for this bank and snapshot. All draws depend on the
    set of customers (F4), not on its order, so a resumed bank sends the same bytes.
    """

    def __init__(
        self,
        public: bytes,
        customers: NDArray[np.bytes_],
        size: int,
        randomness: Randomness,
        department: str,
    ) -> None:
        _require_points(public)
        self._codes = np.unique(customers)
        if not 0 < len(self._codes) <= size:
            raise ParameterError(f"{len(self._codes)} customers do not fit an approved {size}")
        inputs = [*_inputs(self._codes), *(PAD + b"%d" % i for i in range(size - len(self._codes)))]
        of_this_set = digest(public, *inputs)
        order = randomness.stream(labels.OPRF_ORDER, peer=department, inputs=of_this_set)
        blinds = randomness.stream(labels.OPRF_BLIND, peer=department, inputs=of_this_set)
        # Blinded elements tell nothing, but the order would say where the padding is to a
        # department that spoils some positions and watches.
        self._order = np.argsort(order.words(size), kind="stable")
        self._inputs = [inputs[i] for i in self._order]
        self._blinds = [_scalar(blinds.bytes(64)) for _ in range(size)]
        self._public = public
        self._blinded: BlindedBatch | None = None

    def blind(self, executor: Executor | None = None) -> BlindedBatch:
        """The request; asked again, the same one."""
        if self._blinded is None:
            blocks = [slice(at, at + BLOCK) for at in range(0, len(self._inputs), BLOCK)]
            inputs, blinds = [self._inputs[b] for b in blocks], [self._blinds[b] for b in blocks]
            self._blinded = BlindedBatch(
                _rows(gather(executor, _blind_block, inputs, blinds), POINT_BYTES)
            )
        return self._blinded

    def finalize(
        self, evaluated: EvaluatedBatch, executor: Executor | None = None
    ) -> CustomerRowKeys:
        """The customers' row keys, once every proof holds; otherwise ProtocolError and nothing."""
        if self._blinded is None:
            raise RuntimeError("finalize comes after blind")
        if len(evaluated.elements) != len(self._inputs):
            raise ProtocolError(
                f"{len(self._inputs)} elements asked, {len(evaluated.elements)} answered"
            )
        blinded, answers = _blocks(self._blinded.elements), _blocks(evaluated.elements)
        proofs = [proof.tobytes() for proof in evaluated.proofs]
        gather(executor, _verify_block, [self._public] * len(proofs), blinded, answers, proofs)
        # The padding is unblinded too: the time until the bank's next message shows no count.
        inverses = _invert_all(self._blinds)
        blocks = [slice(at, at + BLOCK) for at in range(0, len(self._inputs), BLOCK)]
        inputs, blinds = [self._inputs[b] for b in blocks], [inverses[b] for b in blocks]
        keys = _rows(gather(executor, _finalize_block, inputs, blinds, answers), ROW_KEY_BYTES)
        in_order = np.empty_like(keys)
        in_order[self._order] = keys
        return CustomerRowKeys(self._codes, in_order[: len(self._codes)])


def key_for(seed: bytes, bank: str, snapshot: bytes) -> KeyPair:
    """The department's key for one bank and one registry snapshot (F12: never one key for all)."""
    return derive_key_pair(seed, encode(labels.OPRF_INFO, bank, snapshot))


# --- RFC 9497, under its own names


def derive_key_pair(seed: bytes, info: bytes) -> KeyPair:
    """RFC 9497 section 3.2.1. `seed`: 32 bytes, secret."""
    if len(seed) != SCALAR_BYTES or len(info) > INPUT_BYTES_MAX:
        raise ValueError("DeriveKeyPair takes 32 bytes of seed and at most 65,535 of info")
    prefix = seed + _prefixed(info)
    for counter in range(256):
        secret = _scalar(_expand(prefix + bytes([counter]), DERIVE_KEY_PAIR))
        if secret != ZERO:
            return KeyPair(secret, _multiply_base(secret))
    raise RuntimeError("DeriveKeyPair: 256 zero scalars")  # 2^-64,000


def blind(data: bytes, scalar: bytes) -> bytes:
    """RFC 9497 section 3.3.2, Blind."""
    return _multiply(scalar, _hash_to_group(data))


def blind_evaluate(
    key: KeyPair, blinded: Sequence[bytes], nonce: bytes
) -> tuple[list[bytes], bytes]:
    """RFC 9497 section 3.3.2, BlindEvaluate: the evaluated elements and one proof for all."""
    evaluated = [_multiply(key.secret, element) for element in blinded]
    weights = _composite_weights(key.public, blinded, evaluated)
    m = _weighted_sum(weights, blinded)
    z = _multiply(key.secret, m)
    c = _challenge(key.public, m, z, _multiply_base(nonce), _multiply(nonce, m))
    return evaluated, c + bytes(
        rbcl.crypto_core_ristretto255_scalar_sub(nonce, _times(c, key.secret))
    )


def verify(
    public: bytes, blinded: Sequence[bytes], evaluated: Sequence[bytes], proof: bytes
) -> bool:
    """RFC 9497 section 2.2.2, VerifyProof, for points that were checked."""
    c, s = proof[:SCALAR_BYTES], proof[SCALAR_BYTES:]
    # One encoding a scalar, or a proof could be altered and still hold.
    if len(proof) != PROOF_BYTES or any(int.from_bytes(x, "little") >= ORDER for x in (c, s)):
        return False
    weights = _composite_weights(public, blinded, evaluated)
    m, z = _weighted_sum(weights, blinded), _weighted_sum(weights, evaluated)
    t2 = _add(_multiply_base(s), _multiply(c, public))
    t3 = _add(_multiply(s, m), _multiply(c, z))
    return c == _challenge(public, m, z, t2, t3)


def finalize(data: bytes, inverse_of_blind: bytes, evaluated: bytes) -> bytes:
    """RFC 9497 section 3.3.2, Finalize, after the proof was verified: 64 bytes."""
    return _output(data, _multiply(inverse_of_blind, evaluated))


def evaluate(secret: bytes, data: bytes) -> bytes:
    """RFC 9497 section 3.3.1, Evaluate: what the key's owner computes for itself, 64 bytes."""
    return _output(data, _multiply(secret, _hash_to_group(data)))


def _output(data: bytes, element: bytes) -> bytes:
    return hashlib.sha512(_prefixed(data) + _prefixed(element) + b"Finalize").digest()


def _composite_weights(
    public: bytes, blinded: Sequence[bytes], evaluated: Sequence[bytes]
) -> list[bytes]:
    seed = hashlib.sha512(_prefixed(public) + _prefixed(COMPOSITE_SEED)).digest()
    head = _prefixed(seed)
    return [
        _hash_to_scalar(
            head + i.to_bytes(2, "big") + _prefixed(c) + _prefixed(d) + b"Composite",
        )
        for i, (c, d) in enumerate(zip(blinded, evaluated, strict=True))
    ]


def _challenge(*points: bytes) -> bytes:
    return _hash_to_scalar(b"".join(map(_prefixed, points)) + b"Challenge")


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


# --- group and scalars


_ZERO_PADDED = hashlib.sha512(bytes(128))  # the first block of every expand_message_xmd


def _expand(message: bytes, dst: bytes) -> bytes:
    """expand_message_xmd with SHA-512, 64 bytes (RFC 9380 section 5.3.1)."""
    dst_prime = dst + bytes([len(dst)])
    first = _ZERO_PADDED.copy()
    first.update(message + b"\x00\x40\x00" + dst_prime)
    return hashlib.sha512(first.digest() + b"\x01" + dst_prime).digest()


def _hash_to_group(data: bytes) -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_from_hash(_expand(data, HASH_TO_GROUP)))


def _hash_to_scalar(data: bytes) -> bytes:
    return _scalar(_expand(data, HASH_TO_SCALAR))


def _scalar(wide: bytes) -> bytes:
    """64 uniform bytes to a scalar; the bias of the reduction is 2^-259."""
    return bytes(rbcl.crypto_core_ristretto255_scalar_reduce(wide))


def _times(s: bytes, t: bytes) -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_scalar_mul(s, t))


def _multiply(scalar: bytes, point: bytes) -> bytes:
    # rbcl has no answer for results that are the identity; a hostile proof may ask for one.
    if scalar == ZERO or point == IDENTITY:
        return IDENTITY
    return bytes(rbcl.crypto_scalarmult_ristretto255(scalar, point))


def _multiply_base(scalar: bytes) -> bytes:
    if scalar == ZERO:
        return IDENTITY
    return bytes(rbcl.crypto_scalarmult_ristretto255_base(scalar))


def _add(p: bytes, q: bytes) -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_add(p, q))


def _weighted_sum(weights: Sequence[bytes], points: Sequence[bytes]) -> bytes:
    total = IDENTITY
    for weight, point in zip(weights, points, strict=True):
        total = _add(total, _multiply(weight, point))
    return total


def _invert_all(scalars: Sequence[bytes]) -> list[bytes]:
    """Montgomery's trick: one inversion for all (none is zero)."""
    products = list(accumulate(scalars, _times))
    inverse = bytes(rbcl.crypto_core_ristretto255_scalar_invert(products[-1]))
    out = []
    for scalar, before in zip(scalars[:0:-1], products[-2::-1], strict=True):
        out.append(_times(inverse, before))
        inverse = _times(inverse, scalar)
    return [inverse, *out[::-1]]


# --- blocks: module level, bytes in and out, so that any executor can run them


def _blind_block(inputs: Sequence[bytes], blinds: Sequence[bytes]) -> bytes:
    return b"".join(map(blind, inputs, blinds))


def _evaluate_block(key: KeyPair, elements: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    evaluated, proof = blind_evaluate(key, _points(elements), nonce)
    return b"".join(evaluated), proof


def _verify_block(public: bytes, blinded: bytes, evaluated: bytes, proof: bytes) -> None:
    _require_points(evaluated)
    if not verify(public, _points(blinded), _points(evaluated), proof):
        raise ProtocolError("a proof of the evaluated elements does not hold")


def _finalize_block(inputs: Sequence[bytes], inverses: Sequence[bytes], evaluated: bytes) -> bytes:
    return b"".join(
        _row_key(finalize(data, inverse, element))
        for data, inverse, element in zip(inputs, inverses, _points(evaluated), strict=True)
    )


def _row_key_block(secret: bytes, inputs: Sequence[bytes]) -> bytes:
    return b"".join(_row_key(evaluate(secret, data)) for data in inputs)


def _row_key(output: bytes) -> bytes:
    return digest(labels.ROW_KEY, output)[:ROW_KEY_BYTES]


def _require_points(elements: bytes) -> None:
    for point in _points(elements):
        valid = rbcl.crypto_core_ristretto255_is_valid_point(point)
        # libsodium 1.0.18 ignores the top bit, RFC 9496 section 4.3.1 does not: a second encoding
        # of every point, the identity included.
        if not valid or point == IDENTITY or point[-1] & 0x80:
            raise ProtocolError("an element is not a point of the group, or its identity")


def _require_rows(array: NDArray[np.uint8], width: int, what: str) -> None:
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != width or not len(array):
        raise ProtocolError(f"{what}: shape {array.shape}, dtype {array.dtype}")


def _inputs(codes: NDArray[np.bytes_]) -> list[bytes]:
    inputs: list[bytes] = codes.tolist()
    # Numpy drops trailing zero bytes, so an empty entry is a code that somebody lost.
    if codes.ndim != 1 or any(not data or data.startswith(PAD) for data in inputs):
        raise ValueError("codes are one row of non-empty byte strings, none a padding input")
    return inputs


def _points(elements: bytes) -> list[bytes]:
    return [elements[at : at + POINT_BYTES] for at in range(0, len(elements), POINT_BYTES)]


def _blocks(elements: NDArray[np.uint8]) -> list[bytes]:
    return [elements[at : at + BLOCK].tobytes() for at in range(0, len(elements), BLOCK)]


def _rows(parts: Iterable[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, width)
