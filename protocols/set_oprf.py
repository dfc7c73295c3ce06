"""Row keys of a whole list at once, without a curve operation a registry row (PROTOCOLS.md 1).

The bank obtains `F(code)` for its customers, the department can compute F for every code of the
registry. F is fresh in every attempt.

Steps        D hello, B reply, D accept; then B finalize, D row_keys. Two messages, D first.
How          B hides its list in an oblivious key-value store P of m rows (okvs.py): the rows that
             a code selects sum to a 64-bit hash h(code). P goes through a correlated OT (base_ot,
             seed_trees, vole): B has random rows V, D has Q = V + Delta C(P), C a code over GF(16)
             of distance 32 (hermitian.py), Delta in GF(16)^53. Sums are linear, so
                 decode(Q, x) + Delta C(h(x)) = decode(V, x)   exactly where decode(P, x) = h(x),
             elsewhere both differ by Delta times a word of weight >= 32: 128 bits that B lacks.
             F(x) = SHA-256(label, session, that row, x)[:16].
Sources      PaXoS, ePrint 2020/193; RB-OKVS, 2023/903; SoftSpokenOT, 2022/192; endemic OT,
             2019/706. The parts are published; the composition is ours and was reviewed once
             (CRYPTO_REVIEW.md part 2).

Security     Assumptions: gap-CDH on ristretto255; SHA-256 and SHA-512 as random oracles (code
             correlation robustness follows); HMAC-SHA-256 and AES in counter mode are PRFs.
  B learns   at most m keys by any known way, whatever it sends: an active bank *reaches* m by
             elimination over the registry. At most `most_keys(m, registry)` provably, except with
             2^-40 after 2^80 hashes. So m is what is approved, in manifest and ledger, not the
             number of customers. The bound counts registry codes: D answers for no others.
  D learns   nothing but m, D active included: pads under seeds it lacks, sums under random rows.
             B's keys depend on B's draws and the session only, so D cannot tag rows by keys. B pads
             its list with dummies, so that the time of its reply does not show the true number.
  State      B: all pads follow from a secret, the whole hello, the list and P, so equal pads mean
             equal stores; one reply an attempt, written down before it leaves. D: Delta belongs to
             one attempt and judges one reply, written down before it is looked at; a refusal closes
             the attempt. The three attacks on anything less are in
             tests/attacks/test_set_oprf_attacks.py.
  Audit      from B's secret, its committed list and D's hello, B's reply follows byte for byte. If
             it is the one sent, P holds that list and dummies: n keys, not m.
Not covered  frames must be authenticated with `Attempt.context()` (version, both names, snapshot,
             m, attempt) by the channel, or the relay answers D's hello with a list of its own
             what D seals under the keys, and B's visible reaction to a mis-sealed row
             who breaks discrete logarithms later and recorded the frames gets B's list and the
             values sealed for it (the other rows stay closed): encrypt frames against that
             a secret that leaks: B's gives its list; D's gives every key of the registry, so it
             never reaches an auditor who talks to B. D erases its secret and rows with the window
             sets that cannot be listed (tags of private intersection): oprf.py

Sizes and counts are integers from integers: two machines agree on m, or it stands in the manifest.
"""

from __future__ import annotations

import hmac
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols import base_ot, labels, okvs, seed_trees, vole
from protocols.errors import ParameterError, ProtocolError
from protocols.hermitian import COLUMNS, FIELD, code_table, encode_rows
from protocols.kernels import spread
from protocols.oprf import CustomerRowKeys
from protocols.row_key_books import Attempt, AttemptBook, ReplyBook, StoredReply
from protocols.row_keys import ROW_KEY_BYTES
from protocols.sha256 import midstate, sha256_rows
from protocols.streams import SEED_BYTES, Stream, digest, encode

Words = NDArray[np.uint64]

NONCE_BYTES = SECRET_BYTES = 32
CODE_BYTES_MAX = 20
CODE_WORDS = CODE_BYTES_MAX // 4
FIRST_CHARACTER, LAST_CHARACTER = 0x21, 0x7E  # printable: dummies begin with 255
DUMMY = np.uint32(0xFF000000)
BOUND_BITS = 120  # 2^-120 a try: 2^-40 after 2^80 tries of the nonce
VALUE_BITS = 64  # of h(code)
TRIES = 8  # each fails with 2^-40
PIECE = 1 << 18  # codes evaluated at a time, at least: every piece walks over all rows once
REFUSED = "the message does not continue this attempt"  # one text, whatever the reason


# --- sizes


def approved_size(customers: int) -> int:
    """m, the number to approve for a list of up to `customers`: 1.084 n at 50,000.

    1.33 n at 1,000, 1.13 n at 5,000, 1.09 n at 1,000,000. ParameterError above about 15 million.
    """
    if customers < 1:
        raise ParameterError("row keys are for at least one customer")
    m = okvs.rows_for(customers)
    if m > okvs.ROWS_MAX:
        raise ParameterError(f"{customers:,} customers take m = {m:,}, above {okvs.ROWS_MAX:,}")
    return m


def capacity(m: int) -> int:
    """The longest list that an approved m is enough for. ParameterError if not even one code."""
    if m < approved_size(1):
        raise ParameterError(f"m is at least {approved_size(1)}, not {m}")
    low, high = 1, m
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if okvs.rows_for(middle) <= m else (low, middle - 1)
    return low


def most_keys(m: int, registry: int) -> int:
    """The most registry codes that any store of m rows holds, except with probability 2^-120.

    A set of k codes is solvable with probability 2^(-64 (k - m)); union over all C(registry, k),
    whose logarithm is at most registry times the binary entropy of k / registry.
    """
    unit = 1 << okvs.LOG_UNIT
    low, high = min(m, registry), registry
    while low < high:
        k = (low + high + 1) // 2
        sets = k * _log_ratio(registry, k) + (registry - k) * _log_ratio(registry, registry - k)
        fits = VALUE_BITS * unit * (k - m) < sets + BOUND_BITS * unit
        low, high = (k, high) if fits else (low, k - 1)
    return low


def _log_ratio(a: int, b: int) -> int:
    """log2(a / b) in units of 2^-32, rounded up; 0 where b is."""
    return okvs.log2(a, up=True) - okvs.log2(b, up=False) if b else 0


# --- messages


@dataclass(frozen=True, slots=True, eq=False)
class Hello:
    """Department to bank: a nonce and the receiver's points of the base transfers; 13.6 kB."""

    context: bytes  # of the attempt, 32 bytes
    nonce: bytes  # 32 bytes
    points: NDArray[np.uint8] = field(repr=False)  # shape (212, 2, 32), encoded points

    def __post_init__(self) -> None:
        _require_lengths(self.context, self.nonce)
        _require_array(self.points, np.uint8, (seed_trees.TRANSFERS, 2, base_ot.POINT_BYTES))

    def digest(self) -> bytes:
        """Names everything that the department sent."""
        return digest(labels.SET_OPRF_HELLO, self.context, self.nonce, self.points.tobytes())


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """Bank to department: seed trees, the masked store and the check; 26.5 bytes a row, 13 kB."""

    context: bytes
    nonce: bytes
    point: bytes  # of the base transfers' sender
    sums: NDArray[np.uint8] = field(repr=False)  # (212, 2, 16), under the base transfers' keys
    leaf_sums: NDArray[np.uint8] = field(repr=False)  # (53, 32)
    leaves: bytes  # digest of all leaves' commitments
    correction: Words = field(repr=False)  # (212, words): bit planes of U + C(P)
    check_messages: Words = field(repr=False)  # (128,)
    check_rows: Words = field(repr=False)  # (128, 4)

    def __post_init__(self) -> None:
        _require_lengths(self.context, self.nonce, self.point, self.leaves)
        _require_array(self.sums, np.uint8, (seed_trees.TRANSFERS, 2, seed_trees.SEED_BYTES))
        _require_array(self.leaf_sums, np.uint8, (COLUMNS, seed_trees.LEAF_BYTES))
        _require_array(self.correction, np.uint64, (vole.PLANES, -1))
        _require_array(self.check_messages, np.uint64, (vole.CHECKS,))
        _require_array(self.check_rows, np.uint64, (vole.CHECKS, 4))

    def payload(self) -> bytes:
        """All of it as bytes: equal exactly for equal replies."""
        arrays = (self.sums, self.leaf_sums, self.correction, self.check_messages, self.check_rows)
        parts = (self.context, self.nonce, self.point, self.leaves)
        return encode(labels.SET_OPRF_REPLY, *parts, *(_little(array) for array in arrays))


# --- parties


class Department:
    """Holds Delta; after `accept` it has the row keys of the whole registry.

    approved: the keys that this bank may get on this snapshot over all attempts; an accepted one
    counts m, whatever becomes of it. registry: the snapshot's codes, sorted, each once. secret: 32
    bytes that never leave; a department that is rebuilt with it, after a crash, sends the same
    hello and takes the same reply again, no other.
    """

    def __init__(
        self,
        attempt: Attempt,
        approved: int,
        registry: NDArray[np.bytes_],
        secret: bytes,
        book: AttemptBook,
    ) -> None:
        _require_secret(secret)
        _require_registry(registry)
        self._attempt = attempt
        self._approved = approved
        self._context = attempt.context()
        self._registry = registry
        self._book = book
        # The context holds the attempt's number: Delta is another one in every attempt.
        stream = Stream(_prf(secret, labels.SET_OPRF_DELTA, self._context))
        self._delta = np.frombuffer(stream.bytes(COLUMNS), np.uint8) & np.uint8(FIELD - 1)
        nonce = stream.bytes(NONCE_BYTES)
        choices = seed_trees.choices_of(self._delta)
        self._base = base_ot.Receiver(_identity(self._context, nonce), choices, stream)
        self._hello = Hello(self._context, nonce, self._base.points)
        self._said_hello = False

    def hello(self) -> Hello:
        """The same in every call and every life of this attempt.

        Raises ProtocolError if the attempt is over, if too many were refused, or beyond what was
        approved.
        """
        self._book.open(self._attempt, self._approved)
        self._said_hello = True
        return self._hello

    def accept(self, reply: Reply, executor: Executor | None = None) -> RegistryRowKeys:
        """The registry's row keys. ProtocolError, always with the same text, ends the attempt.

        Whether a reply is accepted depends on Delta, so there is one reply an attempt: its digest
        is in the book before anything is computed from it, and a refusal before it can be seen.
        """
        if not self._said_hello:
            raise RuntimeError("accept comes after hello")
        if reply.context != self._context:
            raise ProtocolError(REFUSED)  # of another attempt, for all to see: this one stays open
        try:
            self._book.take(self._attempt, digest(reply.payload()))
        except ProtocolError as error:
            raise ProtocolError(REFUSED) from error
        try:
            return self._open(reply, executor)
        except ProtocolError:
            self._book.refuse(self._attempt)
            raise ProtocolError(REFUSED) from None

    def _open(self, reply: Reply, executor: Executor | None) -> RegistryRowKeys:
        m = self._attempt.m
        size = vole.padded(m)
        if reply.correction.shape[1] != size // 64:
            raise ProtocolError("a store of another size than approved")
        session = _session(self._hello, reply.nonce)
        keys = self._base.keys(session, reply.point)
        chosen = seed_trees.choices_of(self._delta)[:, None, None]
        sums = np.take_along_axis(reply.sums, chosen, axis=1)[:, 0] ^ keys
        seeds = seed_trees.open_trees(session, self._delta, sums, reply.leaf_sums, reply.leaves)
        rows = vole.receive(seeds, self._delta, reply.correction, executor)
        code = code_table(self._delta)
        seed = _check_seed(
            session, reply.point, reply.sums, reply.leaf_sums, reply.leaves, reply.correction
        )
        _, row_sums = vole.random_sums(seed, np.zeros(size, np.uint64), rows, m)
        if not np.array_equal(row_sums ^ encode_rows(code, reply.check_messages), reply.check_rows):
            raise ProtocolError("rows that are not code words")
        return RegistryRowKeys(self._registry, session, m, rows, code)


@dataclass(frozen=True, slots=True, eq=False)
class RegistryRowKeys:
    """What the department keeps: it opens every row of the registry, so drop it after use."""

    registry: NDArray[np.bytes_] = field(repr=False)
    session: bytes
    m: int
    rows: Words = field(repr=False)  # shape (rows, 4)
    code: Words = field(repr=False)  # Delta times the code

    def row_keys(
        self, codes: NDArray[np.bytes_], executor: Executor | None = None
    ) -> NDArray[np.uint8]:
        """Shape (codes, 16), in the order asked: about 0.4 us a code.

        ParameterError for a code that is not in the registry: the bound on a cheating bank counts
        registry codes only (`most_keys`), so nothing else may ever be sealed or shown.
        """
        if codes is not self.registry:
            _require_listed(codes, self.registry)
        words = code_words(codes)
        return _evaluate(self.session, self.m, self.rows, self.code, words, executor)


class Bank:
    """Holds the customers; obtains their row keys and, whatever it does, no more than m.

    customers: codes of the registry, each once. secret: 32 bytes, not a stream, so that nothing can
    be drawn twice from one place: every draw follows from it and from all that it protects.
    """

    def __init__(
        self,
        attempt: Attempt,
        customers: NDArray[np.bytes_],
        registry: NDArray[np.bytes_],
        secret: bytes,
        book: ReplyBook,
    ) -> None:
        _require_secret(secret)
        _require_registry(registry)
        self._size = capacity(attempt.m)
        if not 0 < len(customers) <= self._size:
            raise ParameterError(f"{len(customers):,} customers, 1 to {self._size:,} fit m")
        # Lists mostly come sorted, and sorting a million of them takes as long as all the rest.
        self._codes = customers.copy() if _is_ascending(customers) else np.unique(customers)
        if len(self._codes) != len(customers):
            raise ParameterError("the list of customers holds a code twice")
        _require_listed(self._codes, registry)
        self._attempt = attempt
        self._context = attempt.context()
        self._secret = secret
        self._book = book
        self._list = digest(labels.SET_OPRF_LIST, _little(code_words(self._codes)))
        self._held: _Held | None = None

    def reply(self, hello: Hello, executor: Executor | None = None) -> Reply:
        """The one reply of this attempt; in the book before it is returned.

        The same hello and list give the same bytes, also after a restart. Raises ProtocolError for
        another hello and for points that are none, ParameterError for another list.
        """
        if hello.context != self._context:
            raise ProtocolError(REFUSED)
        stored = self._book.replied(self._attempt)
        made_from = hello.digest(), self._list
        if stored is not None and stored.hello != made_from[0]:
            raise ProtocolError(REFUSED)
        if stored is not None and stored.customers != made_from[1]:
            raise ParameterError("another list takes a new attempt and a new approval of m")
        reply, held = self._reply(hello, executor)
        # After a restart it was computed again, as the bank needs V with it. Bytes that differ from
        # the stored ones, whatever the reason, must not leave: the book raises.
        self._book.record(self._attempt, StoredReply(*made_from, reply.payload()))
        self._held = held
        return reply

    def finalize(self, executor: Executor | None = None) -> CustomerRowKeys:
        """The customers' row keys. The dummies are evaluated too: the time shows no count."""
        if self._held is None:
            raise RuntimeError("finalize comes after reply")
        held, m = self._held, self._attempt.m
        keys = _evaluate(held.session, m, held.rows, None, held.words, executor)
        return CustomerRowKeys(self._codes, keys[: len(self._codes)])

    def _reply(self, hello: Hello, executor: Executor | None) -> tuple[Reply, _Held]:
        m = self._attempt.m
        store, words, session, nonce = self._store(hello)
        # Equal pads mean an equal store, whatever else went wrong: the roots follow from P.
        stream = Stream(self._derive(labels.SET_OPRF_ROOTS, session, digest(_little(store))))
        identity = _identity(self._context, hello.nonce)
        base = base_ot.Sender(identity, session, hello.points, stream)
        roots = [stream.bytes(seed_trees.SEED_BYTES) for _ in range(COLUMNS)]
        trees = seed_trees.FullTrees(session, roots)
        codewords = encode_rows(code_table(np.ones(COLUMNS, np.uint8)), store)
        rows, correction = vole.send(trees.seeds, codewords, executor)
        sums = trees.sums ^ base.keys
        seed = _check_seed(session, base.point, sums, trees.leaf_sums, trees.digest, correction)
        check_messages, check_rows = vole.random_sums(seed, store, rows, m)
        reply = Reply(
            self._context,
            nonce,
            base.point,
            sums,
            trees.leaf_sums,
            trees.digest,
            correction,
            check_messages,
            check_rows,
        )
        return reply, _Held(session, rows, words)

    def _store(self, hello: Hello) -> tuple[Words, NDArray[np.uint32], bytes, bytes]:
        """Store, padded list, session and nonce."""
        m = self._attempt.m
        for attempted in range(TRIES):
            nonce = self._derive(labels.SET_OPRF_NONCE, hello.digest(), self._list, attempted)
            session = _session(hello, nonce)
            stream = Stream(self._derive(labels.SET_OPRF_STORE, session, self._list))
            words = _with_dummies(code_words(self._codes), self._size, stream)
            store = okvs.build(_places(session, words), m, vole.padded(m), stream)
            if store is not None:
                return store, words, session, nonce
        raise RuntimeError(f"no store in {TRIES} tries of 2^-40 each")

    def _derive(self, label: bytes, *parts: bytes | int) -> bytes:
        return _prf(self._secret, label, self._context, *parts)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """What the bank needs for its keys once the reply has left."""

    session: bytes
    rows: Words = field(repr=False)  # V
    words: NDArray[np.uint32] = field(repr=False)  # the customers' codes, then the dummies


# --- codes


def code_words(codes: NDArray[np.bytes_]) -> NDArray[np.uint32]:
    """Codes as five big-endian words, padded with zeros. Shape (codes, 5).

    All of an array fill its width and hold printable characters only. So nothing is cut, no two
    codes differ in trailing zeros that numpy would drop, and no code is a dummy. ParameterError.
    """
    if codes.dtype.kind != "S" or codes.ndim != 1 or not 0 < codes.dtype.itemsize <= CODE_BYTES_MAX:
        raise ParameterError(
            f"codes are byte strings of 1 to {CODE_BYTES_MAX} bytes, not {codes.dtype}"
        )
    width = codes.dtype.itemsize
    raw = np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), width)
    if raw.size and not FIRST_CHARACTER <= raw.min() <= raw.max() <= LAST_CHARACTER:
        raise ParameterError("codes of unequal length, or with bytes that are not printable")
    padded = np.zeros((len(codes), CODE_BYTES_MAX), np.uint8)
    padded[:, :width] = raw
    return padded.view(">u4").astype(np.uint32)


def _with_dummies(words: NDArray[np.uint32], count: int, stream: Stream) -> NDArray[np.uint32]:
    """Padded to `count` with random words that are no codes, as their first byte is 255."""
    more = count - len(words)
    dummies = np.frombuffer(stream.bytes(4 * CODE_WORDS * more), "<u4").astype(np.uint32)
    dummies = dummies.reshape(more, CODE_WORDS)
    dummies[:, 0] |= DUMMY
    return np.concatenate([words, dummies])


def _require_registry(registry: NDArray[np.bytes_]) -> None:
    if not len(registry) or not _is_ascending(registry):
        raise ParameterError("a registry is a list of codes, sorted, each once")


def _is_ascending(codes: NDArray[np.bytes_]) -> bool:
    return codes.ndim == 1 and bool(np.all(codes[:-1] < codes[1:]))


def _require_listed(codes: NDArray[np.bytes_], registry: NDArray[np.bytes_]) -> None:
    same = codes.dtype == registry.dtype and codes.ndim == 1
    if same and codes.shape == registry.shape and np.array_equal(codes, registry):
        return
    if not same or not np.array_equal(
        registry[np.minimum(np.searchsorted(registry, codes), len(registry) - 1)], codes
    ):
        raise ParameterError("a code is not in the registry: set row keys are for listed codes")


# --- evaluation


def _places(session: bytes, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Where each code's band starts, what it selects, and h(code): the hashes of okvs.py."""
    start = midstate(labels.SET_OPRF_PLACE.ljust(32, b"\0") + session)
    return sha256_rows(start, words[:, :0], words)


def _evaluate(
    session: bytes,
    m: int,
    rows: Words,
    code: Words | None,
    words: NDArray[np.uint32],
    executor: Executor | None,
) -> NDArray[np.uint8]:
    """F from one party's rows: the department adds its code of h, the bank has none to add."""
    keys = np.empty((len(words), ROW_KEY_BYTES // 4), np.uint32)
    start = midstate(labels.SET_OPRF_ROW.ljust(32, b"\0") + session)
    table = np.zeros((8, 256, 4), np.uint64) if code is None else code
    piece = max(PIECE, m // 2)

    def work(first: int, last: int) -> None:
        for at in range(first * piece, min(last * piece, len(words)), piece):
            own = words[at : at + piece]
            ordered, origin = okvs.by_start(_places(session, own), m)
            decoded = okvs.decode(rows, m, table, code is not None, ordered, origin)
            keys[at : at + piece] = sha256_rows(start, decoded, own)[:, : ROW_KEY_BYTES // 4]

    spread(executor, -(-len(words) // piece), work)
    return keys.astype(">u4").view(np.uint8)


# --- helpers


def _prf(secret: bytes, label: bytes, *parts: bytes | int) -> bytes:
    return hmac.digest(secret, encode(label, *parts), "sha256")


def _identity(context: bytes, nonce: bytes) -> bytes:
    """Of the base transfers: all that is known before the bank speaks."""
    return digest(labels.SET_OPRF_IDENTITY, context, nonce)


def _session(hello: Hello, nonce: bytes) -> bytes:
    """Both contributions, the department's points included (CRYPTO_REVIEW.md part 2, item 6)."""
    return digest(labels.SET_OPRF_SESSION, hello.digest(), nonce)


def _check_seed(
    session: bytes,
    point: bytes,
    sums: NDArray[np.uint8],
    leaf_sums: NDArray[np.uint8],
    leaves: bytes,
    correction: Words,
) -> bytes:
    """Everything that is sent before the sums decides their weights."""
    parts = point, _little(sums), _little(leaf_sums), leaves, _little(correction)
    return digest(labels.SET_OPRF_CHECK, session, *parts)


def _little(array: NDArray[np.unsignedinteger]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _require_secret(secret: bytes) -> None:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")


def _require_lengths(*values: bytes) -> None:
    if any(len(value) != SEED_BYTES for value in values):
        raise ProtocolError(REFUSED)


def _require_array(array: NDArray[np.generic], dtype: type, shape: tuple[int, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ProtocolError(REFUSED)
