"""Linear query: the bank learns M^T v, the department learns nothing (PROTOCOLS.md section 3).

M is a department's matrix (one-hot columns of binned features, then integer columns), fixed for the
job; v is the querier's private integer vector over the cover.

Steps        D commit; B request_tokens, D grant_tokens, B accept_tokens (offline, before any label
             is touched); B query, D answer, B open (online, one token each)
Between      D queries D': D' answer_masked sends w + nu to D and nu to B; D unmask, sends w + nu -
             y to B;
departments  B takes nu away and decodes. The token's mu never leaves D'.
Security     D sees b = a s + e + delta v, RLWE with public a and a fresh secret, and RLWE samples
             under the bank's outer key. B sees, for every column, one value w and one ciphertext
             whose phase is uniform in Z_P; jointly P' w - phase = P' (delta M^T v + M^T e + rho) +
             U - eta with U = P' mu - r uniform on P' values and independent of mu, so both together
             show M^T v plus a discrete Gaussian shifted by M^T e, which parameters.py bounds
             (CRYPTO_REVIEW.md R3, R4).
One token    serves one v, for good, at both ends (books.py): the bank derives s from (batch, index)
             and e from the digest of v, so a repeat sends equal bytes, and anything else takes the
             next token.
Not covered  a bank that asks outside its customers (the audit, section 6), what follows from the
             opened sums by computation (the exposure budget), a department that lies about its data
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import astuple, dataclass, field
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from protocols import labels, rlwe
from protocols.books import AnswerBook, BatchId, SpentBook, StoredAnswer, TokenId
from protocols.errors import ParameterError, ProtocolError
from protocols.kernels import cluster_of, spread
from protocols.packing import pack, unpack
from protocols.parameters import (
    MIN_COLUMNS_PER_REPLY,
    Q_BITS,
    Layout,
    Parameters,
    answer_size_bytes,
    check_parameters,
    query_size_bytes,
    reply_size_bytes,
    request_ciphertexts,
    request_size_bytes,
    slots,
)
from protocols.ring import EXTRA_PRIMES, INNER, OUTER, Q_PRIMES, Q, bin_sums, integer_sum
from protocols.sampling import (
    centred_binomial,
    discrete_gaussian,
    residues,
    ternary,
    uniform_mod_q,
)
from protocols.streams import Randomness, Stream, digest, encode

# ------------------------------------------------------------------------------ messages


def _bytes_of(name: str, value: NDArray[np.uint8], size: int | None = None) -> None:
    if value.dtype != np.uint8 or value.ndim != 1:
        raise ProtocolError(f"{name}: a flat array of bytes is expected")
    if size is not None and value.size != size:
        raise ProtocolError(f"{name}: {size} bytes expected, {value.size} given")


def _counts(**values: int) -> None:
    for name, value in values.items():
        if not 0 <= value < 1 << 31:
            raise ProtocolError(f"{name} {value} is out of range")


@dataclass(frozen=True, slots=True)
class MatrixCommitment:
    """Department to querier, before the first token: salted hash of layout and matrix."""

    context: NDArray[np.uint8]  # 32 bytes: job, attempt, querier, matrix, joint seed, parameters
    digest: NDArray[np.uint8]  # 32 bytes

    def __post_init__(self) -> None:
        _bytes_of("context", self.context, 32)
        _bytes_of("digest", self.digest, 32)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Querier to every department: one batch of encrypted secrets, without the public halves."""

    context: NDArray[np.uint8]  # 32 bytes
    batch: int
    tokens: int
    columns_per_reply: int
    key: NDArray[np.uint8] = field(repr=False)  # pk0, packed prime by prime
    secrets: NDArray[np.uint8] = field(repr=False)  # c0 of every ciphertext, packed prime by prime

    def __post_init__(self) -> None:
        _counts(batch=self.batch, tokens=self.tokens, columns_per_reply=self.columns_per_reply)
        _bytes_of("context", self.context, 32)
        _bytes_of("key", self.key)
        _bytes_of("secrets", self.secrets)
        group = self.columns_per_reply
        if group < MIN_COLUMNS_PER_REPLY or group & (group - 1):
            raise ProtocolError(f"{group} columns a reply: a power of two from 2 is needed")
        if not 1 <= self.tokens <= OUTER // group or slots(self.tokens) * group > OUTER:
            raise ProtocolError(f"{self.tokens} tokens do not fit a batch with {group} columns")


@dataclass(frozen=True, slots=True)
class TokenReply:
    """Department to querier: both rounded halves of the reply, of c0 what is wanted only."""

    context: NDArray[np.uint8]  # 32 bytes
    batch: int
    wanted: NDArray[np.uint8] = field(repr=False)  # packed, reply_bits each: (groups, G T')
    others: NDArray[np.uint8] = field(repr=False)  # packed, reply_bits each: (groups, 8192)

    def __post_init__(self) -> None:
        _counts(batch=self.batch)
        _bytes_of("context", self.context, 32)
        _bytes_of("wanted", self.wanted)
        _bytes_of("others", self.others)


@dataclass(frozen=True, slots=True)
class Query:
    """Querier to every department: b = a s + e + delta v mod q."""

    context: NDArray[np.uint8]  # 32 bytes
    batch: int
    index: int  # the token of the batch that this spends
    b: NDArray[np.uint8] = field(repr=False)  # packed, 53 bits a row

    def __post_init__(self) -> None:
        _counts(batch=self.batch, index=self.index)
        _bytes_of("context", self.context, 32)
        _bytes_of("b", self.b)

    def digest(self) -> bytes:
        """What a token is spent on."""
        return digest(self.context.tobytes(), self.batch, self.index, sha256(self.b.data).digest())


@dataclass(frozen=True, slots=True)
class Answer:
    """Department to querier: w = M^T b + mu + rho mod q, or with a forward mask w + nu."""

    context: NDArray[np.uint8]  # 32 bytes
    batch: int
    index: int
    w: NDArray[np.uint8] = field(repr=False)  # packed, 53 bits a column

    def __post_init__(self) -> None:
        _counts(batch=self.batch, index=self.index)
        _bytes_of("context", self.context, 32)
        _bytes_of("w", self.w)


@dataclass(frozen=True, slots=True)
class ForwardMask:
    """Queried department to bank: nu, which the answer to another department carries."""

    context: NDArray[np.uint8]  # 32 bytes, of the query between the departments
    batch: int
    index: int
    nu: NDArray[np.uint8] = field(repr=False)  # packed, 53 bits a column

    def __post_init__(self) -> None:
        _counts(batch=self.batch, index=self.index)
        _bytes_of("context", self.context, 32)
        _bytes_of("nu", self.nu)

    def values(self, columns: int) -> NDArray[np.int64]:
        """nu in [0, q), one a column."""
        return unpack(self.nu, Q_BITS, columns, Q)


def decode(parameters: Parameters, residual: NDArray[np.int64]) -> NDArray[np.int64]:
    """M^T v from w - y (any representative mod q): centred, divided by delta, rounded."""
    centred = residual % Q
    centred = np.where(2 * centred > Q, centred - Q, centred)
    return (centred + parameters.delta // 2) // parameters.delta


# ------------------------------------------------------------------------------ department


@dataclass(frozen=True, slots=True)
class _Granted:
    tokens: int
    masks: NDArray[np.int64] = field(repr=False)  # mu: (columns, tokens)


class Department:
    """The owner of a matrix, towards one querier."""

    def __init__(
        self,
        *,
        layout: Layout,
        bins: NDArray[np.uint8],
        integers: NDArray[np.int32] | NDArray[np.int16],
        parameters: Parameters,
        joint_seed: bytes,
        querier: str,
        name: str,
        manifest: bytes,
        attempt: int,
        matrix: str,
        randomness: Randomness,
        answers: AnswerBook,
        executor: Executor | None = None,
        tokens_before: int = 0,
    ) -> None:
        """bins: (features, rows), integers: (columns, rows); (0, rows) where there are none.

        Raises ParameterError if the matrix is not of the layout or the parameters do not protect
        it.
        """
        _require_same_job(randomness, manifest, attempt)
        self._bins, self._integers = _checked_matrix(layout, bins, integers)
        squares = [int(np.dot(x, x)) for x in self._integers.astype(np.float64)]
        check_parameters(
            parameters,
            layout,
            customers=1,  # the department does not know them; the bank checks the range
            integer_squares=squares,
            tokens_before=tokens_before,
        )
        self.layout, self.parameters, self.name, self.querier = layout, parameters, name, querier
        self._coins = rlwe.JointCoins(joint_seed, manifest, attempt, querier, matrix)
        self._context = _context_of(self._coins, parameters)
        self._randomness, self._answers, self._executor = randomness, answers, executor
        self._matrix_digest = _matrix_digest(layout, self._bins, self._integers)
        self._hint: NDArray[np.int64] | None = None
        self._committed = False
        self._granted: dict[int, _Granted] = {}

    @property
    def matrix(self) -> str:
        """The matrix's name."""
        return self._coins.matrix

    def commit(self) -> MatrixCommitment:
        """The commitment that the querier must hold before the first token."""
        self._committed = True
        sealed = digest(labels.MATRIX_COMMITMENT, self.commitment_salt(), self._matrix_digest)
        return MatrixCommitment(self._context, np.frombuffer(sealed, np.uint8))

    def commitment_salt(self) -> bytes:
        """What opens the commitment, for the auditors."""
        return self._randomness.key(
            labels.MATRIX_COMMITMENT,
            peer=self.querier,
            stage=self._coins.matrix,
            inputs=self._matrix_digest,
        )

    def prepare(self) -> None:
        """Compute the hint, once for the job and binning; `grant_tokens` does it if nobody did."""
        if self._hint is not None:
            return
        layout, bins, executor = self.layout, self._bins, self._executor
        parts, cluster = [], cluster_of(executor)
        if cluster is not None and layout.features:
            parts.append(rlwe.hint_on_cluster(self._coins, layout.bins, bins, cluster))
            bins = bins[:0]
        if len(bins) or layout.integer_bounds:
            left = Layout(layout.rows, layout.bins[: len(bins)], layout.integer_bounds)
            blocks = rlwe.public_blocks(self._coins, layout.rows, executor)
            transformed = rlwe.transformed_blocks(blocks, executor)
            parts.append(rlwe.hint(left, bins, self._integers, transformed, executor))
        self._hint = np.concatenate(parts)

    def grant_tokens(self, request: TokenRequest) -> TokenReply:
        """One batch of tokens; a repeated request gets equal bytes, another is refused."""
        if not self._committed:
            raise RuntimeError("commit to the matrix before granting tokens")
        self._check_context(request.context)
        tokens, group = request.tokens, request.columns_per_reply
        if group != self.parameters.columns_per_reply:
            raise ProtocolError(
                f"{group} columns a reply, the job has {self.parameters.columns_per_reply}"
            )
        if request.batch > len(self._granted):
            # also after a restart: the batches before are asked for again, and so counted again
            raise ProtocolError(f"batch {request.batch} before batch {len(self._granted)}")
        others = sum(x.tokens for number, x in self._granted.items() if number != request.batch)
        if others + tokens > self.parameters.tokens:
            raise ProtocolError(f"more tokens than the {self.parameters.tokens} of the job")
        inputs = self._request_digest(request)
        self.prepare()
        randomness = self._reply_randomness(request, inputs)
        wanted, rest = rlwe.evaluate(
            self._padded_hint(request.batch, group, inputs),
            self._coins,
            request.batch,
            request.key,
            request.secrets,
            tokens,
            group,
            randomness,
            self._executor,
        )
        self._answers.grant(self._batch(request.batch), inputs)
        masks = _by_column(randomness.masks(), slots(tokens))[: self.layout.columns, :tokens]
        self._granted[request.batch] = _Granted(tokens, np.ascontiguousarray(masks))
        bits = self.parameters.reply_bits
        rounded = (rlwe.round_residues(x, bits, self._executor) for x in (wanted, rest))
        halves = [pack(x, bits) for x in rounded]
        return TokenReply(request.context, request.batch, *halves)

    def answer(self, query: Query) -> Answer:
        """w for one token. An equal query gets the stored bytes, another raises ProtocolError."""
        return self._answer(query, None)

    def answer_masked(self, query: Query) -> tuple[Answer, ForwardMask]:
        """For a query of another department: w + nu goes to the querier, nu to the bank alone."""
        self._token(query)
        inputs = digest(self._matrix_digest, query.digest())
        stream = self._stream(labels.FORWARD_MASK, query.batch, query.index, inputs)
        nu = uniform_mod_q(stream, self.layout.columns)
        answer = self._answer(query, nu)
        return answer, ForwardMask(query.context, query.batch, query.index, pack(nu, Q_BITS))

    def answer_shared(self, query: Query, banks: Sequence[str]) -> Answer:
        """For one of several banks: w + nu_b, where the nu of all banks add up to nought mod q.

        The same token of every bank is for the same statistic: what one bank opens says nothing,
        and only the sum over all banks is M^T (v_1 + ... + v_k) (PROTOCOLS.md section 7). banks:
        this querier among them, the same at every call of an attempt.
        """
        self._token(query)
        names = sorted(banks)
        if self.querier not in names or len(set(names)) != len(names) or len(names) < 2:
            raise ParameterError("the banks are two or more, once each, this querier among them")
        of = names[:-1] if self.querier == names[-1] else [self.querier]
        nu = np.zeros(self.layout.columns, np.int64)
        inputs = digest(self._matrix_digest, *names)
        for name in of:
            stream = self._randomness.stream(
                labels.BANK_SHARE,
                peer=name,
                stage=self._coins.matrix,
                step=query.batch,
                column=query.index,
                inputs=inputs,
            )
            nu = (nu + uniform_mod_q(stream, self.layout.columns)) % Q
        return self._answer(query, -nu % Q if self.querier == names[-1] else nu, "shared")

    def _answer(self, query: Query, nu: NDArray[np.int64] | None, how: str = "masked") -> Answer:
        token, of_query = self._token(query), query.digest()
        # Both kinds of answer under one token would show w to a querier that must only see w + nu.
        spent_on = digest(of_query, "plain" if nu is None else how)
        # A repeat gets the stored bytes, never a fresh answer: averaging answers under new rho
        # would take the noise away and show M^T e, which depends on M.
        stored = self._answers.answered(token)
        if stored is None:
            b = unpack(query.b, Q_BITS, self.layout.rows, Q)
            inputs = digest(self._matrix_digest, of_query)
            noise = self._stream(labels.ANSWER_NOISE, query.batch, query.index, inputs)
            w = self._sums(b) + self._granted[query.batch].masks[:, query.index]
            w += discrete_gaussian(noise, self.layout.columns, self.parameters.sigma_f)
            if nu is not None:
                w = w % Q + nu
            stored = StoredAnswer(spent_on, pack(w % Q, Q_BITS).tobytes())
            self._answers.record(token, stored)
        elif stored.digest != spent_on:
            raise ProtocolError(f"token {query.batch}/{query.index} is spent on another query")
        payload = np.frombuffer(stored.payload, np.uint8)
        return Answer(query.context, query.batch, query.index, payload)

    def _sums(self, b: NDArray[np.int64]) -> NDArray[np.int64]:
        layout, blocks = self.layout, -(-self.layout.rows // _ROWS_A_TURN)
        out = np.zeros(layout.columns, np.int64)
        starts = np.concatenate([[0], np.cumsum(layout.bins, dtype=np.int64)])
        bounds, one_hot = layout.integer_bounds, layout.one_hot_columns
        parts: list[NDArray[np.int64]] = []  # of every piece of rows; their order does not matter

        def rows(start: int, stop: int) -> None:
            part = np.empty(one_hot, np.int64)
            last = min(stop * _ROWS_A_TURN, layout.rows)
            bin_sums(b, self._bins, starts, start * _ROWS_A_TURN, last, part)
            parts.append(part)

        def integers(start: int, stop: int) -> None:
            for c in range(start, stop):
                out[one_hot + c] = integer_sum(b, self._integers[c], bounds[c])

        spread(self._executor, blocks, rows)
        spread(self._executor, len(bounds), integers)
        out[:one_hot] = np.sum(parts, axis=0) % Q
        return out

    def _reply_randomness(self, request: TokenRequest, inputs: bytes) -> rlwe.ReplyRandomness:
        group = request.columns_per_reply
        groups, keep = -(-self.layout.columns // group), group * slots(request.tokens)
        u = self._stream(labels.REPLY_TERNARY, request.batch, 0, inputs)
        e2 = self._stream(labels.REPLY_ERROR, request.batch, 0, inputs)

        def masks(label: bytes, primes: tuple[int, ...]) -> NDArray[np.int64]:
            streams = [self._stream(label, request.batch, p, inputs) for p in primes]
            flat = [residues(x, groups * keep, p) for x, p in zip(streams, primes, strict=True)]
            return np.stack(flat).reshape(len(primes), groups, keep)

        return rlwe.ReplyRandomness(
            u=ternary(u, groups, OUTER),
            e2=centred_binomial(e2, groups, OUTER),
            mu=masks(labels.REPLY_MASK, Q_PRIMES),
            f=masks(labels.REPLY_MASK_LOW, EXTRA_PRIMES),
        )

    def _padded_hint(self, batch: int, group: int, inputs: bytes) -> NDArray[np.int64]:
        """The hint, filled up to whole groups with uniform columns.

        Zeros would leave a last reply with fewer than `group` unknown columns (CRYPTO_REVIEW.md
        F6).
        """
        if self._hint is None:
            raise RuntimeError("no hint yet")
        missing = -self.layout.columns % group
        stream = self._stream(labels.HINT_PADDING, batch, 0, inputs)
        padding = uniform_mod_q(stream, missing * INNER).reshape(missing, INNER)
        return np.concatenate([self._hint, np.where(2 * padding > Q, padding - Q, padding)])

    def _stream(self, label: bytes, batch: int, column: int, inputs: bytes) -> Stream:
        matrix, peer = self._coins.matrix, self.querier
        return self._randomness.stream(
            label, peer=peer, stage=matrix, step=batch, column=column, inputs=inputs
        )

    def _request_digest(self, request: TokenRequest) -> bytes:
        shape = (request.batch, request.tokens, request.columns_per_reply)
        sizes = (sha256(request.key.data).digest(), sha256(request.secrets.data).digest())
        return digest(self._matrix_digest, request.context.tobytes(), *shape, *sizes)

    def _check_context(self, context: NDArray[np.uint8]) -> None:
        if context.tobytes() != self._context.tobytes():
            raise ProtocolError(_FOREIGN)

    def _batch(self, number: int) -> BatchId:
        c = self._coins
        return BatchId(c.manifest, c.attempt, c.querier, c.matrix, number)

    def _token(self, query: Query) -> TokenId:
        self._check_context(query.context)
        granted = self._granted.get(query.batch)
        if granted is None or query.index >= granted.tokens:
            raise ProtocolError(f"token {query.batch}/{query.index} was never granted")
        return self._batch(query.batch).token(query.index)


# ------------------------------------------------------------------------------ querier


@dataclass(slots=True)
class _Batch:
    tokens: int
    masked: dict[str, NDArray[np.int64]]  # by department, y: (columns, tokens)
    opened: set[tuple[str, int]]


class Bank:
    """The querier: a bank, or a department that queries another one.

    One request and one query serve several departments whose matrices have the same rows.
    """

    def __init__(
        self,
        *,
        rows: int,
        parameters: Parameters,
        joint_seed: bytes,
        name: str,
        manifest: bytes,
        attempt: int,
        matrix: str,
        randomness: Randomness,
        spent: SpentBook,
        executor: Executor | None = None,
    ) -> None:
        _require_same_job(randomness, manifest, attempt)
        self.rows, self.parameters, self.name = rows, parameters, name
        self._coins = rlwe.JointCoins(joint_seed, manifest, attempt, name, matrix)
        self._context = _context_of(self._coins, parameters)
        self._randomness, self._spent, self._executor = randomness, spent, executor
        self._lanes: NDArray[np.float64] | None = None
        self._batches: list[_Batch] = []
        self._layouts: dict[str, Layout] = {}
        self._next = (0, 0)

    def request_tokens(self, count: int | None = None) -> TokenRequest:
        """The next batch, `parameters.batch_tokens` by default; to every department alike."""
        tokens, group = count or self.parameters.batch_tokens, self.parameters.columns_per_reply
        if not 1 <= tokens <= self.parameters.batch_limit:
            raise ParameterError(
                f"a batch holds 1 to {self.parameters.batch_limit} tokens, not {tokens}"
            )
        if sum(batch.tokens for batch in self._batches) + tokens > self.parameters.tokens:
            raise ParameterError(f"the job has {self.parameters.tokens} tokens in all")
        number = len(self._batches)
        key = self._outer_key(number, tokens)
        ciphertexts = request_ciphertexts(tokens, group)
        errors = centred_binomial(
            self._stream(labels.REQUEST_ERROR, number, tokens), ciphertexts, OUTER
        )
        key_error = centred_binomial(self._stream(labels.OUTER_KEY_ERROR, number, tokens), OUTER)
        secrets = np.stack([self._secret(number, index) for index in range(tokens)])
        request = TokenRequest(
            self._context,
            number,
            tokens,
            group,
            rlwe.public_key(self._coins, number, key, key_error),
            rlwe.encrypt_secrets(self._coins, number, key, errors, secrets, group, self._executor),
        )
        self._batches.append(_Batch(tokens, {}, set()))
        return request

    def accept_tokens(self, department: str, layout: Layout, reply: TokenReply) -> None:
        """Open y of one department for one batch."""
        self._check_context(reply.context)
        if reply.batch >= len(self._batches):
            raise ProtocolError(f"batch {reply.batch} was never requested")
        batch, bits = self._batches[reply.batch], self.parameters.reply_bits
        if layout.rows != self.rows or self._layouts.setdefault(department, layout) != layout:
            raise ProtocolError(f"the layout of {department} has other rows or has changed")
        if department in batch.masked:
            raise ProtocolError(f"{department} replied to batch {reply.batch} before")
        group = self.parameters.columns_per_reply
        groups, keep = -(-layout.columns // group), group * slots(batch.tokens)
        wanted = unpack(reply.wanted, bits, groups * keep, 1 << bits).reshape(groups, keep)
        others = unpack(reply.others, bits, groups * OUTER, 1 << bits).reshape(groups, OUTER)
        key = self._outer_key(reply.batch, batch.tokens)
        y = rlwe.open_reply(wanted, others, key, bits, self._executor)
        y = _by_column(y, slots(batch.tokens))[: layout.columns, : batch.tokens]
        batch.masked[department] = np.ascontiguousarray(y)

    def query(self, v: NDArray[np.int64]) -> Query:
        """Spend the next token on v: (rows,), each within `parameters.limb_max`.

        The spent book is written before this returns. After a restart a token spent on the same v
        gives the same query again; one spent on anything else is burnt and skipped. ProtocolError
        if none is left.
        """
        v = self._checked(v)
        for number, index in self._tokens_left():
            self._next = (number, index + 1)
            query = self._encrypt(number, index, v, self._executor)
            token, spent_on = self._token(number, index), query.digest()
            known = self._spent.digest(token)
            if known is None:
                self._spent.spend(token, spent_on, query.b.tobytes())
            if known is None or known == spent_on:
                return query
        raise ProtocolError(_ALL_SPENT)

    def queries(self, vectors: Iterable[NDArray[np.int64]]) -> Iterator[Query]:
        """`query` for one v after the other; the executor encrypts a few of them ahead."""
        if self._executor is None:
            yield from map(self.query, vectors)
            return
        self._public()  # here, because a pool must not wait for itself
        ahead: deque[tuple[TokenId, Future[tuple[Query, bytes]]]] = deque()
        for v in vectors:
            v = self._checked(v)
            at = next(self._tokens_left(), None)
            if at is None:
                raise ProtocolError(_ALL_SPENT)
            if self._spent.digest(token := self._token(*at)) is not None:
                while ahead:
                    yield self._spend(*ahead.popleft())
                yield self.query(v)  # spent by an earlier run, on this v or on another
                continue
            self._next = (at[0], at[1] + 1)
            ahead.append((token, self._executor.submit(self._made, *at, v)))
            if len(ahead) > min(_AHEAD, _AHEAD_ROWS // self.rows):
                yield self._spend(*ahead.popleft())
        while ahead:
            yield self._spend(*ahead.popleft())

    def _made(self, number: int, index: int, v: NDArray[np.int64]) -> tuple[Query, bytes]:
        query = self._encrypt(number, index, v, None)
        return query, query.digest()

    def _spend(self, token: TokenId, made: Future[tuple[Query, bytes]]) -> Query:
        query, spent_on = made.result()
        self._spent.spend(token, spent_on, query.b.tobytes())
        return query

    def _checked(self, v: NDArray[np.int64]) -> NDArray[np.int64]:
        limit = self.parameters.limb_max
        if v.shape != (self.rows,) or v.dtype != np.int64:
            raise ParameterError(f"v is {v.shape} of {v.dtype}, not ({self.rows},) of int64")
        if max(int(v.max()), -int(v.min())) > limit:
            raise ParameterError(f"a value of v is beyond {limit}: split it into limbs")
        return np.require(v, np.int64, ["C", "W"])

    def open(self, department: str, answer: Answer) -> NDArray[np.int64]:
        """M^T v of the query's v, one value a column."""
        return decode(self.parameters, self.unmask(department, answer))

    def unmask(self, department: str, answer: Answer) -> NDArray[np.int64]:
        """w - y mod q in [0, q), one value a column; for a masked answer the bank takes nu away."""
        self._check_context(answer.context)
        layout = self._layouts.get(department)
        at = (answer.batch, answer.index)
        if layout is None or at >= self._next or answer.batch >= len(self._batches):
            raise ProtocolError(f"{department} answers a query that was not sent")
        batch = self._batches[answer.batch]
        if answer.index >= batch.tokens or department not in batch.masked:
            raise ProtocolError(f"{department} answers a token that it did not grant")
        if (department, answer.index) in batch.opened:
            raise ProtocolError(f"{department} answers a query twice")
        w = unpack(answer.w, Q_BITS, layout.columns, Q)
        batch.opened.add((department, answer.index))
        if all((other, answer.index) in batch.opened for other in batch.masked):
            self._spent.answered(self._token(*at))
        return (w - batch.masked[department][:, answer.index]) % Q

    def is_of(self, context: NDArray[np.uint8]) -> bool:
        """Whether a message is of this querier's job, matrix and parameters."""
        return context.tobytes() == self._context.tobytes()

    def reopen(self, query: Query) -> NDArray[np.int64]:
        """v of a query that was made under this seed, for auditors who hold it (section 6).

        Raises ProtocolError unless b is, bit for bit, what this seed makes of that v: a value
        beyond the limit, between two multiples of delta or under another error shows here.
        """
        self._check_context(query.context)
        b = unpack(query.b, Q_BITS, self.rows, Q)
        nothing = np.zeros(self.rows, np.int64)
        secret = self._secret(query.batch, query.index)
        masks = rlwe.encrypt_vector(
            self._public(),
            secret,
            nothing.astype(np.int8),
            nothing,
            self.parameters.delta,
            self._executor,
        )
        v = decode(self.parameters, b - masks)
        limit = self.parameters.limb_max
        if (beyond := int((np.abs(v) > limit).sum())) > 0:
            raise ProtocolError(f"{beyond} rows of v are beyond {limit}, or no values at all")
        again = self._encrypt(query.batch, query.index, v, self._executor)
        if again.b.tobytes() != query.b.tobytes():
            raise ProtocolError("b is not what the seed makes of its v: another error or secret")
        return v

    @property
    def tokens_left(self) -> int:
        """Tokens requested and not yet passed by `query`."""
        return sum(1 for _ in self._tokens_left())

    def _tokens_left(self) -> Iterator[tuple[int, int]]:
        first, index = self._next
        for number in range(first, len(self._batches)):
            if self._batches[number].masked:
                start = index if number == first else 0
                for at in range(start, self._batches[number].tokens):
                    yield number, at

    def _digest(self, v: NDArray[np.int64]) -> bytes:
        # packed first: a tenth of the bytes to hash, and one encoding for equal vectors
        limit = self.parameters.limb_max
        return sha256(pack(v + limit, (2 * limit).bit_length()).data).digest()

    def _public(self) -> NDArray[np.float64]:
        if self._lanes is None:
            blocks = rlwe.public_blocks(self._coins, self.rows, self._executor)
            transformed = rlwe.transformed_blocks(blocks, self._executor)
            self._lanes = rlwe.public_lanes(transformed)
        return self._lanes

    def _encrypt(
        self, number: int, index: int, v: NDArray[np.int64], executor: Executor | None
    ) -> Query:
        inputs = self._digest(v)
        stream = self._randomness.stream(
            labels.QUERY_ERROR, stage=self._coins.matrix, step=number, column=index, inputs=inputs
        )
        error = centred_binomial(stream, self.rows)
        b = rlwe.encrypt_vector(
            self._public(),
            self._secret(number, index),
            error,
            v,
            self.parameters.delta,
            executor,
        )
        return Query(self._context, number, index, pack(b, Q_BITS))

    @property
    def matrix(self) -> str:
        """The name of the matrices that it asks."""
        return self._coins.matrix

    def _secret(self, number: int, index: int) -> NDArray[np.int8]:
        """s by (batch, index) alone, so that auditors derive it without labels."""
        stream = self._randomness.stream(
            labels.TOKEN_SECRET, stage=self._coins.matrix, step=number, column=index
        )
        return ternary(stream, INNER)

    def _outer_key(self, number: int, tokens: int) -> list[NDArray[np.float64]]:
        return rlwe.outer_key(ternary(self._stream(labels.OUTER_KEY, number, tokens), OUTER))

    def _stream(self, label: bytes, number: int, tokens: int) -> Stream:
        # Bound to the batch's shape: the same batch asked for in another size gets another key.
        shape = digest(tokens, self.parameters.columns_per_reply)
        return self._randomness.stream(label, stage=self._coins.matrix, step=number, inputs=shape)

    def _token(self, number: int, index: int) -> TokenId:
        c = self._coins
        return BatchId(c.manifest, c.attempt, c.querier, c.matrix, number).token(index)

    def _check_context(self, context: NDArray[np.uint8]) -> None:
        if context.tobytes() != self._context.tobytes():
            raise ProtocolError(_FOREIGN)


# ------------------------------------------------------------------------------ helpers


_ROWS_A_TURN = 1 << 15  # rows of an answer that one thread sums at a time, at least
_AHEAD, _AHEAD_ROWS = 3, 1 << 20  # queries made before they are wanted; together 32 bytes a row
_ALL_SPENT = "no token left: the job has to ask for more, and their exposure counts"
_FOREIGN = "the message belongs to another job, attempt, querier, matrix or parameter set"


def _context_of(coins: rlwe.JointCoins, parameters: Parameters) -> NDArray[np.uint8]:
    """What ties a message to its exchange: 32 bytes over the joint coins and all parameters."""
    return np.frombuffer(digest(coins.context(), *astuple(parameters)), np.uint8)


def _require_same_job(randomness: Randomness, manifest: bytes, attempt: int) -> None:
    if randomness.job != manifest or randomness.attempt != attempt:
        raise ParameterError("the randomness belongs to another job or attempt")


def _by_column(values: NDArray[np.int64], padded: int) -> NDArray[np.int64]:
    """(groups, G T') -> (groups G, T'): place i + T' j of group g is column g G + j, token i."""
    return values.reshape(-1, padded)


def _checked_matrix(
    layout: Layout, bins: NDArray[np.uint8], integers: NDArray[np.int32] | NDArray[np.int16]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    shapes = (layout.features, layout.rows), (len(layout.integer_bounds), layout.rows)
    if bins.shape != shapes[0] or bins.dtype != np.uint8:
        raise ParameterError(f"bins are {bins.shape} of {bins.dtype}, not {shapes[0]} of uint8")
    if integers.shape != shapes[1] or integers.dtype not in (np.int16, np.int32):
        what = f"{integers.shape} of {integers.dtype}"
        raise ParameterError(f"integer columns are {what}, not {shapes[1]} of int16 or int32")
    for f, count in enumerate(layout.bins):
        if int(bins[f].max()) >= count:
            raise ParameterError(f"feature {f} has a row beyond its {count} bins")
    for c, bound in enumerate(layout.integer_bounds):
        if max(int(integers[c].max()), -int(integers[c].min())) > bound:
            raise ParameterError(f"integer column {c} has an entry beyond its bound {bound}")
    # writable: numba would compile another variant for read-only arrays
    return np.require(bins, np.uint8, ["C", "W"]), np.require(integers, np.int32, ["C", "W"])


def _matrix_digest(layout: Layout, bins: NDArray[np.uint8], integers: NDArray[np.int32]) -> bytes:
    hashes = sha256(bins.data).digest(), sha256(integers.data).digest()
    bounds = encode(*layout.integer_bounds)
    return digest(labels.MATRIX_COMMITMENT, *hashes, layout.rows, bytes(layout.bins), bounds)


__all__ = [
    "Answer",
    "Bank",
    "Department",
    "ForwardMask",
    "Layout",
    "MatrixCommitment",
    "Parameters",
    "Query",
    "TokenReply",
    "TokenRequest",
    "answer_size_bytes",
    "check_parameters",
    "decode",
    "query_size_bytes",
    "reply_size_bytes",
    "request_size_bytes",
]
