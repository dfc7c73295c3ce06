"""Attacks on the linear query (CRYPTO_REVIEW.md): each wins with one defence off only.

A defence is taken away by a test-only sampler, book or public polynomial; the product has no
option for it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from protocols import labels, linear_query, ring, rlwe
from protocols.books import MemoryAnswerBook, MemorySpentBook, StoredAnswer, TokenId
from protocols.errors import ParameterError, ProtocolError
from protocols.linear_query import Bank, Department, Query, TokenRequest, decode
from protocols.openings import check_opening
from protocols.packing import pack, unpack
from protocols.parameters import Q_BITS, Layout, Parameters, request_ciphertexts, slots
from protocols.ring import EXTRA, INNER, OUTER, OUTER_LEVELS, PRIMES, P, Q
from protocols.sampling import centred_binomial, ternary
from protocols.streams import Stream

from ..protocols.query_parties import setting, with_tokens


def values_of(query: Query, rows: int) -> np.ndarray:
    return unpack(query.b, Q_BITS, rows, Q)


def centre(x: np.ndarray) -> np.ndarray:
    x = x % Q
    return np.where(2 * x > Q, x - Q, x)


class ForgetfulSpentBook(MemorySpentBook):
    def digest(self, token: TokenId) -> bytes | None:
        return None

    def spend(self, token: TokenId, digest: bytes, message: bytes) -> None:
        pass


class ForgetfulAnswerBook(MemoryAnswerBook):
    def answered(self, token: TokenId) -> StoredAnswer | None:
        return None

    def record(self, token: TokenId, answer: StoredAnswer) -> None:
        pass


# --------------------------------------------------------------- one token, one v (F3)


def differences_seen(book: MemorySpentBook) -> float:
    """A department compares two queries of a bank that crashed in between: share of rows read."""
    parties = setting(rows=2500, vmax=100)
    parties.spent = book
    rng = np.random.default_rng(0)
    first, second = (rng.integers(-100, 101, 2500) for _ in range(2))
    one, _ = with_tokens(parties)
    other, _ = with_tokens(parties)
    b = values_of(one.query(first), 2500) - values_of(other.query(second), 2500)
    return float(np.mean(decode(parties.parameters, b) == first - second))


def test_a_token_used_for_two_vectors_shows_their_difference_row_by_row() -> None:
    assert differences_seen(ForgetfulSpentBook()) == 1.0
    assert differences_seen(MemorySpentBook()) < 0.01  # the crashed bank takes the next token


def test_a_department_that_forgets_answers_any_linear_question_of_one_token() -> None:
    """b and b plus a chosen vector under one token: the difference is exact, without any noise."""
    parties = setting(rows=200)
    question = np.zeros(200, np.int64)
    question[17] = 1  # which bin is row 17 in?

    def ask(book: MemoryAnswerBook) -> np.ndarray:
        parties.answers = book
        parties.spent = MemorySpentBook()
        bank, department = with_tokens(parties)
        query = bank.query(np.zeros(200, np.int64))
        b = (values_of(query, 200) + question * (Q // 4)) % Q
        changed = dataclasses.replace(query, b=pack(b, Q_BITS))
        w = [unpack(department.answer(x).w, Q_BITS, 7, Q) for x in (query, changed)]
        return np.rint(centre(w[1] - w[0]) / (Q // 4)).astype(int)

    np.testing.assert_array_equal(ask(ForgetfulAnswerBook()), parties.plain(question))
    with pytest.raises(ProtocolError, match="spent on another query"):
        ask(MemoryAnswerBook())


def test_averaging_answers_under_fresh_noise_shows_the_matrix_times_the_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class FreshNoise(Department):
        calls = 0

        def _stream(self, label: bytes, batch: int, column: int, inputs: bytes) -> Stream:
            if label == labels.ANSWER_NOISE:
                self.calls += 1
                inputs = self.calls.to_bytes(8, "big")
            return super()._stream(label, batch, column, inputs)

    # the least noise that a parameter object allows, so that 2000 answers suffice
    monkeypatch.setattr(linear_query, "check_parameters", lambda *_, **__: None)
    parties = setting(rows=4000, bins=(64,), vmax=1, tokens=1)
    parties.parameters = Parameters(t_bits=40, reply_bits=48, vmax=1, tokens=1)

    def correlation(kind: type[Department]) -> float:
        parties.spent, parties.answers = MemorySpentBook(), ForgetfulAnswerBook()
        bank, department = parties.bank(), parties.department(kind)
        bank.accept_tokens("tax", parties.layout, department.grant_tokens(bank.request_tokens()))
        query = bank.query(np.zeros(4000, np.int64))
        answers = [unpack(department.answer(query).w, Q_BITS, 64, Q) for _ in range(2000)]
        average = np.mean([centre(w - answers[0]) for w in answers], axis=0)
        y = department._hint.astype(object) @ bank._secret(0, 0).astype(object)  # without eps
        y += department._granted[0].masks[:, 0]
        seen = centre((answers[0] - y) % Q).astype(float) + average
        return float(np.corrcoef(seen, parties.plain(errors_of(bank, query)))[0, 1])

    assert correlation(FreshNoise) > 0.9
    # the product draws rho by the digest of b: forgetting the answer does not make a fresh one
    assert abs(correlation(Department)) < 0.5


def errors_of(bank: Bank, query: Query) -> np.ndarray:
    """What the bank knows: e = b - a s for v = 0."""
    assert bank._lanes is not None
    secret = bank._secret(query.batch, query.index)
    zero = np.zeros(bank.rows, np.int64)
    product = rlwe.encrypt_vector(bank._lanes, secret, zero.astype(np.int8), zero, 1, None)
    return centre(values_of(query, bank.rows) - product)


# --------------------------------------------------------------- flooding (F9, section 3)


def test_without_flooding_the_bank_recovers_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """v = 0 and rho = 0: w - y = M^T e with e known, one equation a token."""
    rows, tokens = 48, 64
    assert recovered_rows(rows, tokens) < 0.6  # four bins; the largest of four noises is a guess
    monkeypatch.setattr(linear_query, "discrete_gaussian", lambda *_: np.zeros(4, np.int64))
    assert recovered_rows(rows, tokens) == 1.0


def recovered_rows(rows: int, tokens: int) -> float:
    parties = setting(rows=rows, bins=(4,), vmax=1, tokens=tokens)
    bank, department = parties.bank(), parties.department()
    replies: list[tuple[np.ndarray, np.ndarray]] = []
    with pytest.MonkeyPatch.context() as patch:
        # rounding the reply is no defence (it is post-processing): the bank sees all of it here
        real = rlwe.evaluate
        patch.setattr(rlwe, "evaluate", lambda *args: replies.append(real(*args)) or replies[-1])
        request = bank.request_tokens()
        reply = department.grant_tokens(request)
    bank.accept_tokens("tax", parties.layout, reply)
    y = exact_opening(bank, *replies[0], tokens)
    equations, seen = [], []
    for index in range(tokens):
        query = bank.query(np.zeros(rows, np.int64))
        w = unpack(department.answer(query).w, Q_BITS, 4, Q)
        equations.append(errors_of(bank, query))
        seen.append(centre(w - y[:, index]))
    solution = np.linalg.lstsq(np.array(equations, float), np.array(seen, float), rcond=None)[0]
    return float(np.mean(solution.argmax(axis=1) == parties.bins[0]))


def exact_opening(bank: Bank, wanted: np.ndarray, others: np.ndarray, tokens: int) -> np.ndarray:
    """round(phase / P') of an unrounded reply of one group: <h, s> + mu, (4, tokens)."""
    outer = ternary(bank._stream(labels.OUTER_KEY, 0, tokens), OUTER).astype(object)
    c0, c1 = big(wanted)[0], big(others)[0]
    out = np.empty((4, tokens), np.int64)
    for column in range(4):
        for index in range(tokens):
            place = index + slots(tokens) * column
            rotated = np.concatenate([c1[place::-1], -c1[:place:-1]])
            phase = (c0[place] + rotated @ outer) % P
            out[column, index] = (2 * phase + EXTRA) // (2 * EXTRA) % Q
    return out


def big(residues: np.ndarray) -> np.ndarray:
    total = np.zeros(residues.shape[1:], object)
    for p, part in zip(PRIMES, residues, strict=True):
        total += part.astype(object) * pow(P // p, -1, p) % p * (P // p)
    return total % P


# --------------------------------------------------------------- re-randomised replies


class NoFreshEncryption(Department):
    """u = 0 and e2 = 0: c1 is what the hint makes of the public halves."""

    def _reply_randomness(self, request: TokenRequest, inputs: bytes) -> rlwe.ReplyRandomness:
        real = super()._reply_randomness(request, inputs)
        return dataclasses.replace(real, u=np.zeros_like(real.u), e2=np.zeros_like(real.e2))


@pytest.mark.parametrize(
    ("kind", "hint_share", "bin_share"),
    [(NoFreshEncryption, (1.0, 1.0), (1.0, 1.0)), (Department, (0.0, 0.01), (0.0, 0.5))],
)
def test_without_rerandomised_c1_the_bank_solves_for_the_hint_and_the_rows(
    kind: type[Department], hint_share: tuple[float, float], bin_share: tuple[float, float]
) -> None:
    parties = setting(rows=2000, bins=(4,), vmax=1, tokens=8)
    parties.parameters = dataclasses.replace(parties.parameters, columns_per_reply=4)
    bank, department = parties.bank(), parties.department(kind)
    with pytest.MonkeyPatch.context() as patch:
        replies: list[tuple[np.ndarray, np.ndarray]] = []
        real = rlwe.evaluate
        patch.setattr(rlwe, "evaluate", lambda *args: replies.append(real(*args)) or replies[-1])
        department.grant_tokens(bank.request_tokens())
    found = solve_for_hint(bank._coins, replies[0][1][0, 0])
    p = PRIMES[0]
    assert department._hint is not None
    share = float(np.mean(found == department._hint % p))
    assert hint_share[0] <= share <= hint_share[1]
    share = float(np.mean(divide_by_public(bank._coins, found)[:2000] == parties.bins[0]))
    assert bin_share[0] <= share <= bin_share[1]


def solve_for_hint(coins: rlwe.JointCoins, c1: np.ndarray) -> np.ndarray:
    """Bank: c1 = sum_b h_b(y) c1_b is one 8 x 8 system a class, modulo one prime. T' = 8, G = 4."""
    prime, padded, group = ring.outer_primes()[0], 8, 4
    p, classes = prime.p, OUTER // padded
    count, step, levels = request_ciphertexts(8, group), classes // group, 10
    publics = np.stack([rlwe._public_half(coins, 0, p, b) for b in range(count)])
    right = c1.astype(np.float64)
    ring.forward(right, prime.roots, float(p), prime.inverse, 0, levels)
    system = np.concatenate([publics, right[None]]).astype(np.int64) % p
    # class k: unknown h_b, equations over the places within the class
    system = system.reshape(count + 1, classes, padded).transpose(1, 2, 0)
    for i in range(count):
        pivot = i + (system[:, i:, i] != 0).argmax(axis=1)
        k = np.arange(classes)
        system[k, i], system[k, pivot] = system[k, pivot].copy(), system[k, i].copy()
        inverse = np.array([pow(int(v), -1, p) for v in system[:, i, i]])
        system[:, i] = system[:, i] * inverse[:, None] % p
        factor = system[:, :, i].copy()
        factor[:, i] = 0
        system = (system - factor[:, :, None] * system[:, i, None, :]) % p
    solved = np.ascontiguousarray(system[:, :count, count].T).astype(np.float64)
    out = np.empty((group, INNER), np.int64)
    for b in range(count):
        ring.backward(solved[b], prime.inverse_roots, float(p), prime.inverse, 0, levels)
        z = solved[b].astype(np.int64) % p * pow(classes, -1, p) % p
        for j in range(group):
            for k in range(step):
                place = j - group * k
                out[j, b * step + k] = z[place] if place >= 0 else -z[place + classes] % p
    return out


def divide_by_public(coins: rlwe.JointCoins, hint: np.ndarray) -> np.ndarray:
    """Bank: one block of rows, so P = h / a modulo one prime; the bin of every row."""
    prime = ring.outer_primes()[0]
    p, levels = prime.p, OUTER_LEVELS - 2
    a = rlwe.public_blocks(coins, 2000, None)[0] % p

    def spread_out(x: np.ndarray) -> np.ndarray:  # degree 2048 inside degree 8192: x -> x^4
        out = np.zeros(OUTER)
        out[::4] = x
        ring.forward(out, prime.roots, float(p), prime.inverse, 0, levels)
        return out.astype(np.int64)[::4] % p

    inverse = np.array([pow(int(v), -1, p) for v in spread_out(a)])
    bins = []
    for h in hint:
        reversed_h = np.concatenate([h[:1], -h[:0:-1] % p])
        w = np.zeros(OUTER)
        w[::4] = spread_out(reversed_h) * inverse % p
        ring.backward(w, prime.inverse_roots, float(p), prime.inverse, 0, levels)
        quotient = w[::4].astype(np.int64) % p * pow(INNER, -1, p) % p
        one_hot = np.concatenate([quotient[:1] == 1, quotient[:0:-1] == p - 1])
        bins.append(one_hot)
    return np.argmax(bins, axis=0)


# --------------------------------------------------------------- public halves (F5, repeated c1)


def test_a_bank_that_chooses_the_public_halves_reads_the_hint_from_one_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pk1 = 0 and c1_b = P' x^b: c1 of the reply is P' H, coefficient by coefficient."""
    parties = setting(rows=500, bins=(4,), vmax=1, tokens=8)
    parties.parameters = dataclasses.replace(parties.parameters, columns_per_reply=4, reply_bits=48)

    def distance() -> int:
        parties.answers = MemoryAnswerBook()
        bank, department = parties.bank(), parties.department()
        reply = department.grant_tokens(bank.request_tokens())
        c1 = unpack(reply.others, 48, OUTER, 1 << 48)
        ring.scale_to_q(c1, 48)
        assert department._hint is not None
        step, worst = 256, 0
        for column in range(4):
            for i in range(0, INNER, 97):
                b, k = divmod(i, step)
                place = b + 8 * (column - 4 * k)
                h = c1[place] if place >= 0 else -c1[place + OUTER]
                error = int(centre(np.array([h - department._hint[column, i]]))[0])
                worst = max(worst, abs(error))
        return worst

    assert distance() > Q >> 8  # the product's public halves come from the joint coins
    assert {f.name for f in dataclasses.fields(TokenRequest)} == {
        "context", "batch", "tokens", "columns_per_reply", "key", "secrets",
    }  # fmt: skip

    def chosen(coins: rlwe.JointCoins, batch: int, p: int, index: int) -> np.ndarray:
        prime = next(x for x in ring.outer_primes() if x.p == p)
        out = np.zeros(OUTER)
        out[index] = prime.centre(EXTRA)
        ring.forward(out, prime.roots, float(p), prime.inverse, 0, 10)
        return out % p

    monkeypatch.setattr(rlwe, "_public_half", chosen)
    monkeypatch.setattr(rlwe, "_public_key_half", lambda *_: np.zeros(OUTER))
    assert distance() <= Q >> 47  # 48 of 53 bits of every coefficient


def test_a_public_half_used_twice_under_one_key_shows_the_difference_of_the_secrets() -> None:
    coins = rlwe.JointCoins(bytes(32), b"", 1, "bank", "bins")
    key = rlwe.outer_key(ternary(Stream(bytes(32)), OUTER))
    rng = np.random.default_rng(0)
    secrets = [rng.integers(-1, 2, (8, INNER)).astype(np.int8) for _ in range(2)]

    def seen(batches: tuple[int, int]) -> float:
        planes = []
        for number, (batch, s) in enumerate(zip(batches, secrets, strict=True)):
            errors = centred_binomial(Stream(bytes([number]) * 32), 8, OUTER)
            packed = rlwe.encrypt_secrets(coins, batch, key, errors, s, 4, None)
            planes.append(rlwe.request_planes(packed, 8)[0])
        prime = ring.outer_primes()[0]
        x = (planes[0] - planes[1]).astype(np.float64)
        guess = []
        for row in x:  # modulo p: P' (s - s') plus a small error
            ring.backward(row, prime.inverse_roots, float(prime.p), prime.inverse, 0, 10)
            z = row.astype(np.int64) % prime.p * pow(1024, -1, prime.p) % prime.p
            table = np.array([d * EXTRA % prime.p for d in range(-2, 3)])
            off = np.abs(((z[:, None] - table + prime.p // 2) % prime.p) - prime.p // 2)
            guess.append(off.argmin(axis=1) - 2)
        places = np.array(guess).reshape(8, 1024, 8)[:, ::4].reshape(-1, 8).T
        return float(np.mean(places == secrets[0].astype(int) - secrets[1]))

    assert seen((0, 0)) == 1.0
    assert seen((0, 1)) < 0.5
    # and the bank's own requests: the same batch in another shape is under another key
    parties = setting(tokens=8)
    keys = [parties.bank().request_tokens(count).key.tobytes() for count in (4, 5)]
    assert keys[0] != keys[1]


# --------------------------------------------------------------- columns a reply (F6)


def test_a_bank_with_a_false_key_reads_u_so_one_column_a_reply_is_refused() -> None:
    """pk0 + P' delta shifts each opening by the coefficient of u behind it.

    With u, c1 - pk1 u = sum_b h_b c1_b + e2: LWE in the G columns of one reply, of dimension
    2048 G. At 140 bits of modulus that is 66 bits of security for G = 1, 136 for G = 2 and above
    200 from G = 3 (crude uSVP).
    """
    parties = setting(rows=300, bins=(3,), vmax=10, tokens=1)
    bank, department = parties.bank(), parties.department()
    request = bank.request_tokens()
    shift = EXTRA * parties.parameters.delta
    planes = rlwe.request_planes(request.key, 1)
    false = [
        pack((plane + shift % p) % p, p.bit_length())
        for plane, p in zip(planes, PRIMES, strict=True)
    ]
    false_request = dataclasses.replace(request, key=np.concatenate(false))
    with pytest.MonkeyPatch.context() as patch:
        drawn: list[rlwe.ReplyRandomness] = []
        real = rlwe.evaluate
        patch.setattr(rlwe, "evaluate", lambda *args: drawn.append(args[7]) or real(*args))
        reply = department.grant_tokens(false_request)
    bank.accept_tokens("tax", parties.layout, reply)
    v = np.full(300, 3)
    opened = bank.open("tax", department.answer(bank.query(v)))
    padded = slots(1)
    read = [int(x) for x in parties.plain(v) - opened]
    assert read == [int(drawn[0].u[0, padded * column]) for column in range(3)]

    with pytest.raises(ParameterError, match="power of two from 2"):
        dataclasses.replace(parties.parameters, columns_per_reply=1)
    with pytest.raises(ProtocolError, match="power of two from 2"):
        dataclasses.replace(request, columns_per_reply=1)
    with pytest.raises(ProtocolError, match="columns a reply"):
        parties.department().grant_tokens(dataclasses.replace(request, columns_per_reply=2))


def test_a_last_reply_has_as_many_unknown_columns_as_the_others() -> None:
    """Three columns of four: the fourth is uniform and fresh; zeros would be known."""
    parties = setting(rows=300, bins=(3,), tokens=2)
    department = parties.department()
    department.prepare()
    group = parties.parameters.columns_per_reply
    first, second = (department._padded_hint(0, group, x) for x in (b"one", b"two"))
    assert first.shape[0] % group == 0
    np.testing.assert_array_equal(first[:3], second[:3])
    assert np.abs(first[3:]).min(axis=1).max() < Q >> 8
    assert (np.abs(first[3:]) > Q >> 4).mean() > 0.8
    assert (first[3:] != second[3:]).mean() > 0.99


# --------------------------------------------------------------- an active department (F7)


class Amplifier(Department):
    """Adds A b_i to one bin, takes it from another: the split on that bin wins iff v_i != 0."""

    victim, factor = 17, 1000

    def prepare(self) -> None:
        super().prepare()
        assert self._hint is not None
        rows = self.layout.rows
        column = np.zeros((1, rows), np.int32)
        column[0, self.victim] = self.factor
        blocks = rlwe.transformed_blocks(rlwe.public_blocks(self._coins, rows, None), None)
        layout = Layout(rows, (), (self.factor,))
        shift = rlwe.hint(layout, np.zeros((0, rows), np.uint8), column, blocks, None)[0]
        self._hint[0] = centre(self._hint[0] + shift)
        self._hint[1] = centre(self._hint[1] - shift)

    def _sums(self, b: np.ndarray) -> np.ndarray:
        out = super()._sums(b)
        shift = self.factor * int(b[self.victim])
        out[0] = (int(out[0]) + shift) % Q
        out[1] = (int(out[1]) - shift) % Q
        return out


@pytest.mark.parametrize("label", [-1, 0, 1])
def test_an_amplified_row_shows_its_label_unless_openings_are_checked(label: int) -> None:
    parties = setting(rows=300, bins=(4,), vmax=1, tokens=2)
    rng = np.random.default_rng(3)
    v = rng.integers(-1, 2, 300)
    v[17] = label
    bank, honest = parties.bank(), parties.department()
    liar = parties.department(Amplifier)
    request = bank.request_tokens()
    bank.accept_tokens("tax", parties.layout, honest.grant_tokens(request))
    parties.answers._granted.clear()  # the liar is another department
    bank.accept_tokens("liar", parties.layout, liar.grant_tokens(request))
    counts = bank.open("tax", honest.answer(bank.query(np.ones(300, np.int64))))
    opened = bank.open("liar", liar.answer(bank.query(v)))
    chosen = int(np.abs(opened).argmax())  # a split that the department gets to know
    assert (chosen in (0, 1) and abs(int(opened[chosen])) > 500) == (label != 0)

    limits = {"total": int(v.sum()), "customers": 300, "low": -1, "high": 1}
    if label == 0:
        check_opening(parties.layout, opened, counts=counts, **limits)
    else:
        with pytest.raises(ProtocolError, match="beyond what its rows allow"):
            check_opening(parties.layout, opened, counts=counts, **limits)
