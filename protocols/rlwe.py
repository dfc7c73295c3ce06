"""Encryption of the linear query: an inner ring carries queries, an outer one token secrets.

Errors are centred binomials of 21 (sigma 3.24), secrets ternary; levels are for classical attacks.

    ring    dimension   log2 modulus   level
    inner   2048        52.91          128 bits: the line is 54 in the HomomorphicEncryption.org
                                       standard of 2018 (table 1), 53 in ePrint 2024/463
    outer   8192        140.53         above 192 bits (line 152 in 2018; 128 bits would allow 218)

Inner   b = a s + e + delta v mod q. One secret, one error, one v, ever (PROTOCOLS.md section 3).
Outer   like BFV (Fan and Vercauteren 2012) with a plaintext modulus q that divides P = q P': the
        plaintext m enters as P' m.
Batch   T secrets s_i, T' = power of two >= T, y = x^T', R = 8192 / T', r = R / G. Ciphertext b of
        the request holds P' sum_i x^i sum_k s_i[b r + k] y^(G k); group g of G columns multiplies
        it by sum_{j<G,k<r} H[g G + j, b r + k] y^(j - G k) and adds over b: coefficient i + T' j
        is <H[g G + j], s_i>. Multipliers lie in Z[y]/(y^R + 1), so after log2 R levels of the
        transform they are scalars, and the sum over b is R products of a (C/G, 2048/r) by a
        (2048/r, T') matrix, exact in float64 BLAS.
Reply   adds (pk0, pk1) u + (0, e2), u ternary and fresh, and to each coefficient sent
        r = P' mu + f, mu uniform mod q and f uniform in [-(P'-1)/2, (P'-1)/2]: (mu, f) -> r is a
        bijection onto Z_P, so the phase of what is sent is exactly uniform whatever the request
        held. Other coefficients of c0 are not sent. Both halves are rounded to reply_bits, which
        is post-processing.

Noise of y, |eps| <= 1 + 513 q / 2^reply_bits, from
        (a) before masking: <H, e_b> over n G terms, e_pk u and e2 s: n G (q/2) 21 + 2 * 8192 * 21
            <= 2^(67.4 + log2 G), at most 2^-13 P' up to G = 128
        (b) f: P'/2     (c) the last rounding: 1/2
        (d) rounding c0: 1/2 unit of q / 2^reply_bits; rounding c1: 8192 independent errors within
            1/2 times ternary coefficients, beyond 512 units with probability
            2 exp(-2 512^2 / 8192) = 2 exp(-64) (Hoeffding)
Hiding  c0 is phase - c1 s with a uniform phase; c1 is uniform by RLWE in u, because pk1 is uniform:
        pk1 and every c1 of a request come from the joint coins, never from the bank (a bank that
        chooses them reads H: CRYPTO_REVIEW.md F5; without u, c1 is a linear system for H).
        With G columns a reply that system is LWE of dimension 2048 G even if u were known (F6).
Public polynomials are SHAKE-256 of their length-prefixed name, expanded by AES-256-CTR (as
Kyber-90s expands A).
Not covered  well-formedness of a request (the audit derives it again from the bank's seed),
             constant time.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols import labels
from protocols.errors import ProtocolError
from protocols.kernels import PIECES, gather, kernel, single_threaded_blas, spread
from protocols.packing import pack, packed_bytes, unpack, unpack_centred, words_of
from protocols.parameters import Layout, request_ciphertexts, slots
from protocols.ring import (
    EXTRA,
    EXTRA_PRIMES,
    INNER,
    LANES,
    OUTER,
    OUTER_LEVELS,
    PRIMES,
    Q_PRIMES,
    Floats,
    P,
    Prime,
    Q,
    backward,
    canonical,
    encrypt,
    forward,
    fraction,
    hint_of_digits,
    hint_of_feature,
    lanes,
    outer_primes,
    reciprocals,
    reduce,
    scale_to_q,
    split_transform,
    transform,
    twiddles,
)
from protocols.sampling import centred_residues, uniform_mod_q
from protocols.streams import SEED_BYTES, Stream, encode

VERSION = "linear-query/1"
_DIGIT_BITS = 8  # integer columns enter the complex transform in digits, to keep it exact
_DIGIT_BLOCKS = 256  # blocks of rows whose digits are added before rounding
_FEATURES_A_CALL = 4  # of a hint that is made elsewhere
_ROUNDING_ROOM = 1 / 16  # the transform must land closer than this to an integer


@dataclass(frozen=True, slots=True)
class JointCoins:
    """Public randomness of one querier's tokens on one matrix; both sides' nonces made the seed."""

    seed: bytes = field(repr=False)
    manifest: bytes
    attempt: int
    querier: str
    matrix: str

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ValueError(f"a joint seed has {SEED_BYTES} bytes")

    def stream(self, label: bytes, *, batch: int = 0, prime: int = 0, index: int = 0) -> Stream:
        """The stream of one public object."""
        shake = hashlib.shake_256(self._name(label, batch, prime, index))
        return Stream(shake.digest(SEED_BYTES))

    def context(self) -> bytes:
        """32 bytes that tie a message to version, job, attempt, querier, matrix and joint seed."""
        return hashlib.shake_256(self._name(labels.QUERY_CONTEXT, 0, 0, 0)).digest(32)

    def _name(self, label: bytes, batch: int, prime: int, index: int) -> bytes:
        whose = (self.manifest, self.attempt, batch, self.querier, self.matrix, self.seed)
        return encode(label, VERSION, *whose, prime, index)


# ------------------------------------------------------------------------------ inner ring


def public_blocks(coins: JointCoins, rows: int, executor: Executor | None) -> NDArray[np.int64]:
    """a_k for every block of 2048 rows: (blocks, 2048), centred mod q."""
    out = np.empty((-(-rows // INNER), INNER), np.int64)

    def work(start: int, stop: int) -> None:
        for k in range(start, stop):
            x = uniform_mod_q(coins.stream(labels.PUBLIC_A, index=k), INNER)
            out[k] = np.where(2 * x > Q, x - Q, x)

    spread(executor, out.shape[0], work)
    return out


def transformed_blocks(blocks: NDArray[np.int64], executor: Executor | None) -> Floats:
    """The blocks' exact complex transforms: (blocks, 4, 1024), 16 bytes a row."""
    out = np.empty((blocks.shape[0], 4, INNER // 2))
    cos, sin = twiddles()
    spread(executor, out.shape[0], lambda i, j: split_transform(blocks, i, j, cos, sin, out))
    return out


def hint(
    layout: Layout,
    bins: NDArray[np.uint8],
    integers: NDArray[np.int32],
    transformed: Floats,
    executor: Executor | None,
) -> NDArray[np.int64]:
    """h_c for every column: (columns, 2048), centred mod q. bins: (features, rows)."""
    out = np.empty((layout.columns, INNER), np.int64)
    cos, sin = twiddles()
    starts = np.concatenate([[0], np.cumsum(layout.bins, dtype=np.int64)])
    worst = np.zeros(layout.features + 1)

    def features(start: int, stop: int) -> None:
        for f in range(start, stop):
            part = out[starts[f] : starts[f + 1]]
            worst[f] = hint_of_feature(transformed, bins[f], cos, sin, part)

    spread(executor, layout.features, features)
    pieces = _digit_pieces(layout)
    digit_hints = np.empty((len(pieces), INNER), np.int64)
    digit_worst = np.zeros(-(-len(pieces) // LANES))

    def digits(start: int, stop: int) -> None:
        for g in range(start, stop):
            group = pieces[g * LANES : (g + 1) * LANES]
            columns = np.stack([_digit(integers[c], place, last) for c, place, last in group])
            total, part = np.zeros((2, len(group), INNER), np.int64)
            for k in range(0, transformed.shape[0], _DIGIT_BLOCKS):
                rows = columns[:, k * INNER : (k + _DIGIT_BLOCKS) * INNER]
                blocks = transformed[k : k + _DIGIT_BLOCKS]
                error = hint_of_digits(blocks, np.ascontiguousarray(rows), cos, sin, part)
                digit_worst[g] = max(digit_worst[g], error)
                total = (total + part) % Q
            digit_hints[g * LANES : g * LANES + len(group)] = total

    spread(executor, digit_worst.size, digits)
    _combine_digits(pieces, digit_hints, out[layout.one_hot_columns :])
    if max(worst.max(), digit_worst.max(initial=0.0)) > _ROUNDING_ROOM:
        raise RuntimeError(
            "the complex transform of the hint lost precision: cut a into more pieces"
        )
    return out


def hint_on_cluster(
    coins: JointCoins, counts: tuple[int, ...], bins: NDArray[np.uint8], cluster: Executor
) -> NDArray[np.int64]:
    """The hint of the one-hot columns, with a call for every few features.

    Every block makes the public polynomials again: cheaper than to send them, 16 bytes a row.
    """
    cuts = range(0, len(counts), _FEATURES_A_CALL)
    groups = [counts[i : i + _FEATURES_A_CALL] for i in cuts]
    blocks = [bins[i : i + _FEATURES_A_CALL] for i in cuts]
    return np.concatenate(gather(cluster, _hint_of_block, [coins] * len(groups), groups, blocks))


def _hint_of_block(
    coins: JointCoins, counts: tuple[int, ...], bins: NDArray[np.uint8]
) -> NDArray[np.int64]:
    layout = Layout(bins.shape[1], counts)
    transformed = transformed_blocks(public_blocks(coins, layout.rows, None), None)
    # what arrives from another process may be read-only: numba would compile another variant
    bins = np.require(bins, requirements=["C", "W"])
    return hint(layout, bins, np.empty((0, layout.rows), np.int32), transformed, None)


def _digit_pieces(layout: Layout) -> list[tuple[int, int, bool]]:
    """(integer column, place, is the last) of every balanced digit in base 256."""
    pieces = []
    for c, bound in enumerate(layout.integer_bounds):
        places = -(-(2 * bound).bit_length() // _DIGIT_BITS)
        pieces += [(c, place, place == places - 1) for place in range(places)]
    return pieces


def _digit(column: NDArray[np.int32], place: int, last: bool) -> NDArray[np.int16]:
    """column = sum of 256^place digit_place, each in [-128, 127], the last one up to 128."""
    half = 1 << (_DIGIT_BITS - 1)
    rest = column.astype(np.int64)
    for _ in range(place):
        rest = (rest + half) >> _DIGIT_BITS
    digit = rest if last else ((rest + half) & (2 * half - 1)) - half
    return digit.astype(np.int16)


def _combine_digits(
    pieces: list[tuple[int, int, bool]], digit_hints: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    out[:] = 0
    for (c, place, _), h in zip(pieces, digit_hints, strict=True):
        term = h % Q
        for _ in range(place):
            term = (term << _DIGIT_BITS) % Q  # 53 + 8 bits
        out[c] = (out[c] + term) % Q
    np.subtract(out, Q, out=out, where=2 * out > Q)


def encrypt_vector(
    public_lanes: Floats,
    secret: NDArray[np.int8],
    error: NDArray[np.int8],
    v: NDArray[np.int64],
    delta: int,
    executor: Executor | None,
) -> NDArray[np.int64]:
    """b = a s + e + delta v mod q, one value a row."""
    out = np.empty(v.size, np.int64)
    cos, sin = twiddles()

    def work(start: int, stop: int) -> None:
        encrypt(public_lanes, start, stop, secret, error, v, delta, cos, sin, out)

    spread(executor, public_lanes.shape[0], work)
    return out


def public_lanes(transformed: Floats) -> Floats:
    """The transforms of a in the layout of `encrypt_vector`."""
    return lanes(transformed)


# ------------------------------------------------------------------------------ outer ring: the
# bank


def outer_key(secret: NDArray[np.int8]) -> list[Floats]:
    """The transforms of an outer secret, one a prime."""
    return [transform(prime, secret) for prime in outer_primes()]


def public_key(
    coins: JointCoins, batch: int, key: list[Floats], error: NDArray[np.int8]
) -> NDArray[np.uint8]:
    """pk0 = -(pk1 s + e), transformed and packed prime by prime; pk1 comes from the joint coins."""
    planes = []
    for prime, s in zip(outer_primes(), key, strict=True):
        a = _public_key_half(coins, batch, prime.p).astype(np.int64)
        e = transform(prime, error).astype(np.int64)
        planes.append(pack((-(a * s.astype(np.int64) + e)) % prime.p, prime.bits))
    return np.concatenate(planes)


def encrypt_secrets(
    coins: JointCoins,
    batch: int,
    key: list[Floats],
    errors: NDArray[np.int8],
    secrets: NDArray[np.int8],
    columns_per_reply: int,
    executor: Executor | None,
) -> NDArray[np.uint8]:
    """The c0 halves of a batch, partly transformed, packed prime by prime.

    secrets: (tokens, 2048). errors: (ciphertexts, 8192).
    """
    count = errors.shape[0]
    sizes = [packed_bytes(count * OUTER, prime.bits) for prime in outer_primes()]
    out = np.empty(sum(sizes), np.uint8)
    planes = np.split(out, np.cumsum(sizes)[:-1])
    for prime, s, plane in zip(outer_primes(), key, planes, strict=True):
        _encrypt_plane(coins, batch, prime, s, errors, secrets, columns_per_reply, plane, executor)
    return out


def _encrypt_plane(
    coins: JointCoins,
    batch: int,
    prime: Prime,
    key: Floats,
    errors: NDArray[np.int8],
    secrets: NDArray[np.int8],
    group: int,
    plane: NDArray[np.uint8],
    executor: Executor | None,
) -> None:
    padded = slots(secrets.shape[0])
    level = OUTER_LEVELS - padded.bit_length() + 1
    step = OUTER // padded // group
    row_bytes = packed_bytes(OUTER, prime.bits)
    weight = prime.centre(EXTRA) if prime.p in Q_PRIMES else 0.0  # P' is 0 modulo its own primes
    back = prime.centre(pow(padded, -1, prime.p))

    def work(start: int, stop: int) -> None:
        values = np.empty((1, OUTER), np.int32)
        for b in range(start, stop):
            a = _public_half(coins, batch, prime.p, b)
            part = np.ascontiguousarray(secrets[:, b * step : (b + 1) * step])
            _encrypt_row(
                values[0], a, key, errors[b], part, weight, padded, group,
                prime.roots, prime.inverse_roots, float(prime.p), prime.inverse, back, level,
            )  # fmt: skip
            plane[b * row_bytes : (b + 1) * row_bytes] = pack(values, prime.bits)

    spread(executor, errors.shape[0], work)


def open_reply(
    wanted: NDArray[np.int64],
    others: NDArray[np.int64],
    key: list[Floats],
    reply_bits: int,
    executor: Executor | None,
) -> NDArray[np.int64]:
    """Both rounded halves of a reply -> round(phase q / 2^reply_bits) mod q: (groups, G T').

    c1 s is computed over the integers, below 2^(reply_bits + 12), modulo three of the 22-bit
    primes.
    """
    primes = outer_primes()[len(Q_PRIMES) : len(Q_PRIMES) + 3]
    groups, keep = wanted.shape
    product = np.empty((3, groups, keep), np.int32)
    for k, prime in enumerate(primes):
        s = key[len(Q_PRIMES) + k]
        _times_key(others, prime, s, 1 << reply_bits, product[k], executor)
    three = tuple(prime.p for prime in primes)
    whole = three[0] * three[1] * three[2]
    weights = np.array([pow(whole // p, -1, p) for p in three], np.int64)
    parts = np.array([whole // p for p in three], np.uint64)
    wrapped = np.uint64(whole & 0xFFFFFFFFFFFFFFFF)
    out = np.empty((groups, keep), np.int64)
    _lift(product, np.array(three), weights, parts, wrapped, reciprocals(three), out)
    out += wanted
    out &= (1 << reply_bits) - 1
    scale_to_q(out, reply_bits)
    return out


# ------------------------------------------------------------------------------ outer ring: the
# department


@dataclass(frozen=True, slots=True)
class ReplyRandomness:
    """What hides a department's hint in one reply; never reused for other inputs."""

    u: NDArray[np.int8] = field(repr=False)  # (groups, 8192), ternary
    e2: NDArray[np.int8] = field(repr=False)  # (groups, 8192), centred binomial
    mu: NDArray[np.int64] = field(repr=False)  # (3, groups, G T'): residues modulo q's primes
    f: NDArray[np.int64] = field(repr=False)  # (4, groups, G T'): residues modulo those of P'

    def masks(self) -> NDArray[np.int64]:
        """mu as integers in [0, q): (groups, G T')."""
        total = np.zeros(self.mu.shape[1:], np.int64)
        for p, x in zip(Q_PRIMES, self.mu, strict=True):
            total += x * pow(Q // p, -1, p) % p * (Q // p)
        return total % Q


def evaluate(
    padded_hint: NDArray[np.int64],
    coins: JointCoins,
    batch: int,
    key: NDArray[np.uint8],
    secrets: NDArray[np.uint8],
    tokens: int,
    columns_per_reply: int,
    randomness: ReplyRandomness,
    executor: Executor | None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The masked, re-randomised reply as residues modulo the seven primes.

    Returns the wanted coefficients of c0, (7, groups, G T'), and all of c1, (7, groups, 8192).

    padded_hint: (groups G, 2048). key, secrets: as received. Raises ProtocolError for malformed
    ones.
    """
    group, padded = columns_per_reply, slots(tokens)
    groups, count = padded_hint.shape[0] // group, request_ciphertexts(tokens, group)
    wanted = np.empty((len(PRIMES), groups, group * padded), np.int32)
    others = np.empty((len(PRIMES), groups, OUTER), np.int32)
    key_planes, planes = _planes(key, 1), _planes(secrets, count)
    # once for all primes: fresh memory costs as much as some of the work on it
    sums, rows, pk0 = np.empty((2, groups, OUTER)), np.empty((count, OUTER)), np.empty((1, OUTER))
    multipliers = np.empty((OUTER // padded, groups, count))
    with single_threaded_blas():
        for k, prime in enumerate(outer_primes()):
            _transform_hint(prime, padded_hint, group, multipliers, executor)
            _unpack_plane(planes[k], prime.p, rows, executor)
            _product(multipliers, rows, padded, sums[0], executor)
            _public_rows(coins, batch, prime.p, rows, executor)
            _product(multipliers, rows, padded, sums[1], executor)
            _unpack_plane(key_planes[k], prime.p, pk0, None)
            pk1 = _public_key_half(coins, batch, prime.p)
            _finish_groups(
                prime, padded, sums, pk0[0], pk1, randomness, wanted[k], others[k], executor
            )
    _mask(wanted, randomness, executor)
    return wanted, others


def _transform_hint(
    prime: Prime,
    padded_hint: NDArray[np.int64],
    group: int,
    multipliers: Floats,
    executor: Executor | None,
) -> None:
    """Fills the multipliers of one prime: (classes, groups, ciphertexts)."""
    classes, groups, _ = multipliers.shape
    level = classes.bit_length() - 1

    def work(start: int, stop: int) -> None:
        roots, p, pinv = prime.roots, float(prime.p), prime.inverse
        _prepare(padded_hint, start, stop, group, roots, p, pinv, level, multipliers)

    spread(executor, groups, work)


def _public_rows(
    coins: JointCoins, batch: int, p: int, rows: Floats, executor: Executor | None
) -> None:
    def work(start: int, stop: int) -> None:
        for b in range(start, stop):
            rows[b] = _public_half(coins, batch, p, b)

    spread(executor, rows.shape[0], work)


def _finish_groups(
    prime: Prime,
    padded: int,
    sums: Floats,
    pk0: Floats,
    pk1: Floats,
    randomness: ReplyRandomness,
    wanted: NDArray[np.int32],
    others: NDArray[np.int32],
    executor: Executor | None,
) -> None:
    level = OUTER_LEVELS - padded.bit_length() + 1
    back_high = prime.centre(pow(padded, -1, prime.p))
    back_low = prime.centre(pow(1 << level, -1, prime.p))

    def work(start: int, stop: int) -> None:
        _finish(
            sums, start, stop, randomness.u, randomness.e2, pk0, pk1, prime.roots,
            prime.inverse_roots, float(prime.p), prime.inverse, back_high, back_low, level,
            wanted, others,
        )  # fmt: skip

    spread(executor, wanted.shape[0], work)


def _times_key(
    others: NDArray[np.int64],
    prime: Prime,
    key: Floats,
    modulus: int,
    out: NDArray[np.int32],
    executor: Executor | None,
) -> None:
    back = prime.centre(pow(OUTER, -1, prime.p))

    def work(start: int, stop: int) -> None:
        _multiply_by_key(
            others, start, stop, key, modulus, prime.roots, prime.inverse_roots,
            float(prime.p), prime.inverse, back, out,
        )  # fmt: skip

    spread(executor, others.shape[0], work)


def round_residues(
    residues: NDArray[np.int32], bits: int, executor: Executor | None = None
) -> NDArray[np.int64]:
    """Residues (7, ...) of v mod P -> round(v 2^bits / P) mod 2^bits, in integers alone."""
    weights = np.array([pow(P // p, -1, p) for p in PRIMES], np.int64)
    out = np.empty(residues.shape[1:], np.int64)
    flat, rounded, inverses = (
        residues.reshape(len(PRIMES), -1),
        out.reshape(-1),
        reciprocals(PRIMES),
    )
    primes = np.array(PRIMES)

    def work(start: int, stop: int) -> None:
        _round(flat, start, stop, weights, primes, inverses, bits, rounded)

    spread(executor, rounded.size, work)
    return out


def request_planes(secrets: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """The residues of a packed request, (7, count, 8192): for audits and tests."""
    planes = _planes(secrets, count)
    values = [
        unpack(plane, p.bit_length(), count * OUTER, p)
        for p, plane in zip(PRIMES, planes, strict=True)
    ]
    return np.stack(values).reshape(len(PRIMES), count, OUTER)


def _planes(packed: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    sizes = [packed_bytes(count * OUTER, p.bit_length()) for p in PRIMES]
    if packed.shape != (sum(sizes),):
        raise ProtocolError(f"ciphertexts: expected {sum(sizes)} bytes, got {packed.shape}")
    return np.split(packed, np.cumsum(sizes)[:-1])


def _unpack_plane(
    plane: NDArray[np.uint8], p: int, rows: Floats, executor: Executor | None
) -> None:
    bits = p.bit_length()
    words = words_of(plane)

    def work(start: int, stop: int) -> None:
        if unpack_centred(words, start, stop, bits, p, rows) >= p:
            raise ProtocolError("ciphertexts: a value is out of range")

    spread(executor, rows.shape[0], work)


def _public_half(coins: JointCoins, batch: int, p: int, index: int) -> Floats:
    stream = coins.stream(labels.PUBLIC_C1, batch=batch, prime=p, index=index)
    return centred_residues(stream, OUTER, p)


def _public_key_half(coins: JointCoins, batch: int, p: int) -> Floats:
    return centred_residues(coins.stream(labels.PUBLIC_PK1, batch=batch, prime=p), OUTER, p)


def _product(
    multipliers: Floats, rows: Floats, padded: int, out: Floats, executor: Executor | None
) -> None:
    """One matrix product a class; the threads share classes or, if these are few, groups."""
    classes, groups, count = multipliers.shape
    right = rows.reshape(count, classes, padded).transpose(1, 0, 2)
    into = out.reshape(groups, classes, padded).transpose(1, 0, 2)

    def by_class(i: int, j: int) -> None:
        np.matmul(multipliers[i:j], right[i:j], out=into[i:j])

    def by_group(i: int, j: int) -> None:
        np.matmul(multipliers[:, i:j], right, out=into[:, i:j])

    if classes >= PIECES:
        spread(executor, classes, by_class)
    else:
        spread(executor, groups, by_group)


def _mask(
    wanted: NDArray[np.int32], randomness: ReplyRandomness, executor: Executor | None
) -> None:
    """Adds P' mu + f, the same f modulo every prime."""
    flat = wanted.reshape(len(PRIMES), -1)
    mu = randomness.mu.reshape(len(Q_PRIMES), -1)
    f = randomness.f.reshape(len(EXTRA_PRIMES), -1)
    weights = np.array([pow(EXTRA // p, -1, p) for p in EXTRA_PRIMES], np.int64)
    parts = np.array([[EXTRA // p % m for p in EXTRA_PRIMES] for m in Q_PRIMES], np.int64)
    whole = np.array([EXTRA % m for m in Q_PRIMES], np.int64)
    inverses = reciprocals(EXTRA_PRIMES)
    primes = np.array(PRIMES)

    def work(start: int, stop: int) -> None:
        _add_mask(flat, start, stop, mu, f, primes, weights, parts, whole, inverses)

    spread(executor, flat.shape[1], work)


# ------------------------------------------------------------------------------ kernels


@kernel
def _encrypt_row(
    out: NDArray[np.int32],
    a: Floats,
    s: Floats,
    e: NDArray[np.int8],
    secrets: NDArray[np.int8],
    weight: float,
    padded: int,
    group: int,
    roots: Floats,
    inverse_roots: Floats,
    p: float,
    pinv: float,
    back: float,
    level: int,
) -> None:
    """c0 = weight * packed secrets + e - a s after `level` levels; a is uniform there already."""
    x, y = a.copy(), e.astype(np.float64)
    forward(x, roots, p, pinv, level, OUTER_LEVELS)
    for j in range(OUTER):
        x[j] = reduce(reduce(x[j], p, pinv) * s[j], p, pinv)
    backward(x, inverse_roots, p, pinv, level, OUTER_LEVELS)
    if weight != 0.0:
        for i in range(secrets.shape[0]):
            for k in range(secrets.shape[1]):
                y[k * group * padded + i] += weight * secrets[i, k]
    forward(y, roots, p, pinv, 0, level)
    for j in range(OUTER):
        out[j] = canonical(y[j] - reduce(reduce(x[j], p, pinv) * back, p, pinv), p, pinv)


@kernel
def _prepare(
    padded_hint: NDArray[np.int64],
    start: int,
    stop: int,
    group: int,
    roots: Floats,
    p: float,
    pinv: float,
    level: int,
    out: Floats,
) -> None:
    """Multipliers of groups start..stop, transformed: out[class, group, ciphertext]."""
    classes, count = out.shape[0], out.shape[2]
    step = classes // group
    x = np.empty((count, classes))
    for g in range(start, stop):
        x[:] = 0.0
        for b in range(count):
            z = x[b]
            for j in range(group):
                for k in range(step):
                    v = reduce(np.float64(padded_hint[g * group + j, b * step + k]), p, pinv)
                    if j < group * k:  # y^R = -1
                        z[j - group * k + classes] = -v
                    else:
                        z[j - group * k] = v
            forward(z, roots, p, pinv, 0, level)
        for first in range(0, classes, 8):  # a cache line of x at a time
            for b in range(count):
                for c in range(first, min(first + 8, classes)):
                    out[c, g, b] = reduce(x[b, c], p, pinv)


@kernel
def _finish(
    sums: Floats,
    start: int,
    stop: int,
    u: NDArray[np.int8],
    e2: NDArray[np.int8],
    pk0: Floats,
    pk1: Floats,
    roots: Floats,
    inverse_roots: Floats,
    p: float,
    pinv: float,
    back_high: float,
    back_low: float,
    level: int,
    wanted: NDArray[np.int32],
    others: NDArray[np.int32],
) -> None:
    """Adds (pk0, pk1) u + (0, e2) to partly transformed sums -> coefficients in [0, p)."""
    hat, t = np.empty(OUTER), np.empty(OUTER)
    for g in range(start, stop):
        for j in range(OUTER):
            hat[j] = u[g, j]
        forward(hat, roots, p, pinv, 0, OUTER_LEVELS)
        for j in range(OUTER):
            hat[j] = reduce(reduce(hat[j], p, pinv) * back_high, p, pinv)
        for half in range(2):
            x, pk = sums[half, g], pk0 if half == 0 else pk1
            for j in range(OUTER):
                t[j] = reduce(hat[j] * pk[j], p, pinv)
            backward(t, inverse_roots, p, pinv, level, OUTER_LEVELS)
            for j in range(OUTER):
                x[j] = reduce(x[j], p, pinv) + reduce(t[j], p, pinv)
            backward(x, inverse_roots, p, pinv, 0, level)
            if half == 0:
                for j in range(wanted.shape[1]):
                    wanted[g, j] = canonical(reduce(x[j], p, pinv) * back_low, p, pinv)
            else:
                for j in range(OUTER):
                    v = reduce(x[j], p, pinv) * back_low + np.float64(e2[g, j])
                    others[g, j] = canonical(v, p, pinv)


@kernel
def _add_mask(
    wanted: NDArray[np.int32],
    start: int,
    stop: int,
    mu: NDArray[np.int64],
    f: NDArray[np.int64],
    primes: NDArray[np.int64],
    weights: NDArray[np.int64],
    parts: NDArray[np.int64],
    whole: NDArray[np.int64],
    inverses: NDArray[np.uint64],
) -> None:
    """f = sum_k z_k P'/p_k - l P' with l the nearest integer to sum_k z_k / p_k: centred.

    l is off by one for 2^-58 of the values, at the two ends: that only swaps which f goes with
    which mu.
    """
    z = np.empty(4, np.int64)
    for i in range(start, stop):
        total = np.uint64(0)
        for k in range(4):
            z[k] = f[k, i] * weights[k] % primes[3 + k]
            total += fraction(z[k], inverses[0, k], inverses[1, k]) >> np.uint64(3)
            wanted[3 + k, i] = (wanted[3 + k, i] + f[k, i]) % primes[3 + k]
        multiple = np.int64((total + (np.uint64(1) << np.uint64(60))) >> np.uint64(61))
        for j in range(3):
            low = -multiple * whole[j]
            for k in range(4):
                low += z[k] * parts[j, k]
            wanted[j, i] = (wanted[j, i] + whole[j] * mu[j, i] + low) % primes[j]


@kernel
def _round(
    residues: NDArray[np.int32],
    start: int,
    stop: int,
    weights: NDArray[np.int64],
    primes: NDArray[np.int64],
    inverses: NDArray[np.uint64],
    bits: int,
    out: NDArray[np.int64],
) -> None:
    half, shift = np.uint64(1) << np.uint64(63 - bits), np.uint64(64 - bits)
    for i in range(start, stop):
        total = half
        for k in range(primes.size):
            z = residues[k, i] * weights[k] % primes[k]
            total += fraction(z, inverses[0, k], inverses[1, k])
        out[i] = np.int64(total >> shift)


@kernel
def _multiply_by_key(
    others: NDArray[np.int64],
    start: int,
    stop: int,
    s: Floats,
    modulus: int,
    roots: Floats,
    inverse_roots: Floats,
    p: float,
    pinv: float,
    back: float,
    out: NDArray[np.int32],
) -> None:
    """c1 s modulo p, c1 centred modulo 2^reply_bits; only the wanted coefficients."""
    x = np.empty(OUTER)
    for g in range(start, stop):
        for j in range(OUTER):
            v = others[g, j]
            x[j] = reduce(np.float64(v - modulus if 2 * v >= modulus else v), p, pinv)
        forward(x, roots, p, pinv, 0, OUTER_LEVELS)
        for j in range(OUTER):
            x[j] = reduce(reduce(x[j], p, pinv) * s[j], p, pinv)
        backward(x, inverse_roots, p, pinv, 0, OUTER_LEVELS)
        for j in range(out.shape[1]):
            out[g, j] = canonical(reduce(x[j], p, pinv) * back, p, pinv)


@kernel
def _lift(
    residues: NDArray[np.int32],
    primes: NDArray[np.int64],
    weights: NDArray[np.int64],
    parts: NDArray[np.uint64],
    whole: np.uint64,
    inverses: NDArray[np.uint64],
    out: NDArray[np.int64],
) -> None:
    """Residues modulo three primes -> the centred integer, wrapping modulo 2^64 on the way."""
    for g in range(out.shape[0]):
        for i in range(out.shape[1]):
            total, value = np.uint64(0), np.uint64(0)
            for k in range(3):
                z = residues[k, g, i] * weights[k] % primes[k]
                total += fraction(z, inverses[0, k], inverses[1, k]) >> np.uint64(3)
                value += np.uint64(z) * parts[k]
            multiple = (total + (np.uint64(1) << np.uint64(60))) >> np.uint64(61)
            out[g, i] = np.int64(value - multiple * whole)
