"""Set OPRF: what each party gets, what a message must be, what survives a crash."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from federation import wire
from protocols import base_ot, okvs, seed_trees, set_oprf, vole
from protocols.errors import ParameterError, ProtocolError
from protocols.hermitian import COLUMNS, DISTANCE, code_table, encode_rows, generator, multiply
from protocols.row_key_agreement import approved_number, choose, provable_number
from protocols.row_key_books import (
    REFUSALS_MAX,
    Attempt,
    MemoryAttemptBook,
    MemoryReplyBook,
    StoredReply,
)
from protocols.set_oprf import (
    REFUSED,
    Bank,
    Department,
    Hello,
    Reply,
    approved_size,
    capacity,
    code_words,
    most_keys,
)
from protocols.sha256 import midstate, sha256_rows
from protocols.streams import Stream, digest

SNAPSHOT = digest("snapshot")
SECRETS = digest("department"), digest("bank")


def codes(count: int, start: int = 0) -> NDArray[np.bytes_]:
    return np.array([b"91%015dX" % i for i in range(start, start + count)])


REGISTRY = codes(400)
CUSTOMERS = REGISTRY[:300]
ATTEMPT = Attempt("bank_a", "tax", SNAPSHOT, approved_size(300), 1)


def department(
    attempt: Attempt = ATTEMPT,
    book: MemoryAttemptBook | None = None,
    registry: NDArray[np.bytes_] = REGISTRY,
    approved: int = 10_000_000,
) -> Department:
    return Department(attempt, approved, registry, SECRETS[0], book or MemoryAttemptBook())


def bank(
    attempt: Attempt = ATTEMPT,
    book: MemoryReplyBook | None = None,
    customers: NDArray[np.bytes_] = CUSTOMERS,
    registry: NDArray[np.bytes_] = REGISTRY,
) -> Bank:
    return Bank(attempt, customers, registry, SECRETS[1], book or MemoryReplyBook())


@pytest.fixture(scope="module")
def hello() -> Hello:
    return department().hello()


@pytest.fixture(scope="module")
def reply(hello: Hello) -> Reply:
    return bank().reply(hello)


# --- what the parties get


def agreeing(
    customers: NDArray[np.bytes_], registry: NDArray[np.bytes_], approved: int, workers: int = 0
) -> NDArray[np.bool_]:
    """One session; for every registry code, whether the bank has its key, asserted to be right."""
    attempt = Attempt("bank_a", "tax", SNAPSHOT, approved_size(approved), 1)
    d, b = department(attempt, registry=registry), bank(attempt, None, customers, registry)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        executor = pool if workers else None
        keys = d.accept(b.reply(d.hello(), executor), executor).row_keys(registry, executor)
        held = b.finalize(executor)
    np.testing.assert_array_equal(held.codes, np.sort(customers))
    at = np.searchsorted(registry, held.codes)
    np.testing.assert_array_equal(held.row_keys(held.codes), keys[at])
    have = {key.tobytes() for key in held.keys}
    return np.array([key.tobytes() in have for key in keys])


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_the_keys_agree_for_every_customer_and_for_no_other_row(data: st.DataObject) -> None:
    registry = codes(data.draw(st.integers(1, 200)))
    chosen = data.draw(st.sets(st.integers(0, len(registry) - 1), min_size=1))
    spare = data.draw(st.integers(0, 50))
    customers = registry[list(chosen)]
    got = agreeing(customers, registry, len(customers) + spare)
    assert set(np.flatnonzero(got)) == chosen


@pytest.mark.parametrize(("customers", "approved"), [(5000, 5000), (3000, 40_000)])
def test_the_keys_agree_for_thousands_on_threads(customers: int, approved: int) -> None:
    # 40,000 take more rows than one expansion of a column, 270,000 codes more than one piece.
    registry = codes(270_000 if approved > customers else 20_000)
    members = np.sort(np.random.default_rng(customers).permutation(len(registry))[:customers])
    got = agreeing(registry[members], registry, approved, workers=2)
    np.testing.assert_array_equal(np.flatnonzero(got), members)


def test_keys_of_others_are_far_from_what_the_bank_can_compute() -> None:
    d, b = department(), bank()
    keys = d.accept(b.reply(d.hello())).row_keys(REGISTRY)
    held = b._held
    assert held is not None
    words = code_words(REGISTRY)
    guessed = set_oprf._evaluate(held.session, ATTEMPT.m, held.rows, None, words, None)
    distance = np.unpackbits(guessed ^ keys, axis=1).sum(axis=1)
    assert not distance[:300].any()
    assert distance[300:].min() > 20
    assert abs(distance[300:].mean() - 64) < 6 * math.sqrt(32 / 100)


CONTEXTS = [
    dataclasses.replace(ATTEMPT, bank="bank_b"),
    dataclasses.replace(ATTEMPT, department="court"),
    dataclasses.replace(ATTEMPT, snapshot=digest("later")),
    dataclasses.replace(ATTEMPT, m=ATTEMPT.m + 1),
    dataclasses.replace(ATTEMPT, number=2),
]


@pytest.mark.parametrize("other", CONTEXTS, ids=["bank", "department", "snapshot", "m", "number"])
def test_another_context_shares_nothing(other: Attempt, hello: Hello, reply: Reply) -> None:
    d, b = department(other), bank(other)
    assert d._delta.tolist() != department()._delta.tolist()
    assert not np.array_equal(d.hello().points, hello.points)
    answer = b.reply(d.hello())
    assert answer.nonce != reply.nonce
    assert answer.point != reply.point
    keys = d.accept(answer).row_keys(REGISTRY)
    first = department()
    first.hello()
    before = first.accept(reply).row_keys(REGISTRY)
    assert not (keys == before).all(axis=1).any()
    for party in (lambda: b.reply(hello), lambda: d.accept(reply)):
        with pytest.raises(ProtocolError, match=REFUSED):
            party()


def test_what_the_department_sees_is_balanced(reply: Reply) -> None:
    for array in (reply.correction, reply.check_messages, reply.check_rows[:, :3], reply.sums):
        bits = np.unpackbits(np.ascontiguousarray(array).view(np.uint8))
        assert abs(bits.mean() - 0.5) < 6 * 0.5 / math.sqrt(bits.size)


def test_neither_messages_nor_work_show_how_many_customers_there_are(hello: Hello) -> None:
    few, many = bank(customers=CUSTOMERS[:3]), bank(customers=CUSTOMERS)
    assert len(few.reply(hello).payload()) == len(many.reply(hello).payload())
    assert few._held is not None
    assert many._held is not None
    assert len(few._held.words) == len(many._held.words) == capacity(ATTEMPT.m)
    assert len(few.finalize().keys) == 3


# --- messages


def test_messages_travel_as_frames(hello: Hello) -> None:
    d, b = department(), bank()
    arrived = wire.decode(wire.encode(d.hello()), Hello)
    frame = wire.encode(b.reply(arrived))
    keys = d.accept(wire.decode(frame, Reply)).row_keys(CUSTOMERS)
    np.testing.assert_array_equal(keys, b.finalize().keys)
    for broken in (frame[:-1], frame + b"\0"):
        with pytest.raises(ProtocolError):
            wire.decode(broken, Reply)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Reply)])
def test_a_changed_reply_is_refused_and_closes_the_attempt(name: str, reply: Reply) -> None:
    book = MemoryAttemptBook()
    d = department(book=book)
    d.hello()
    with pytest.raises(ProtocolError, match=f"^{REFUSED}$"):
        d.accept(dataclasses.replace(reply, **{name: one_unit_off(getattr(reply, name))}))
    if name == "context":  # for everybody to see, so it says nothing and costs nothing
        assert len(d.accept(reply).row_keys(REGISTRY)) == len(REGISTRY)
        return
    assert book.given(ATTEMPT.pair) == 0
    for again in (d, department(book=book)):
        with pytest.raises(ProtocolError):
            again.hello()
    with pytest.raises(ProtocolError, match=f"^{REFUSED}$"):
        d.accept(reply)


def one_unit_off(value: bytes | NDArray[np.integer]) -> bytes | NDArray[np.integer]:
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    changed = value.copy()
    changed.reshape(-1)[7] ^= 1
    return changed


def malformed(reply: Reply) -> list[dict[str, object]]:
    return [
        {"nonce": reply.nonce[:-1]},
        {"leaves": b""},
        {"sums": reply.sums[1:]},
        {"leaf_sums": reply.leaf_sums.astype(np.uint16)},
        {"correction": reply.correction[:-1]},
        {"correction": reply.correction.astype(np.int64)},
        {"check_messages": reply.check_messages[:-1]},
        {"check_rows": reply.check_rows[:, :3]},
    ]


def test_a_message_of_another_shape_does_not_exist(hello: Hello, reply: Reply) -> None:
    for change in malformed(reply):
        with pytest.raises(ProtocolError, match=REFUSED):
            dataclasses.replace(reply, **change)
    for change in ({"nonce": b""}, {"points": hello.points[:-1]}, {"points": hello.points[:, :1]}):
        with pytest.raises(ProtocolError, match=REFUSED):
            dataclasses.replace(hello, **change)


def test_a_store_of_another_size_is_refused_before_a_kernel_reads_it(
    reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(vole, "receive", unreachable)
    longer = np.concatenate([reply.correction, reply.correction], axis=1)
    for correction in (longer, reply.correction[:, :8].copy(), reply.correction[:, :0].copy()):
        d = department()
        d.hello()
        with pytest.raises(ProtocolError, match=REFUSED):
            d.accept(dataclasses.replace(reply, correction=correction))


POINT = base_ot._multiply_base(base_ot._scalar(bytes([5]) * 64))
NO_POINTS = {
    "identity": bytes(32),
    "no point": b"\xff" * 31 + b"\x7f",
    "second encoding": POINT[:-1] + bytes([POINT[-1] | 0x80]),
}


@pytest.mark.parametrize("point", NO_POINTS.values(), ids=NO_POINTS)
def test_what_is_no_point_of_the_group_is_refused(point: bytes, hello: Hello, reply: Reply) -> None:
    d = department()
    d.hello()
    with pytest.raises(ProtocolError, match=REFUSED):
        d.accept(dataclasses.replace(reply, point=point))
    book, points = MemoryReplyBook(), hello.points.copy()
    points[77, 1] = np.frombuffer(point, np.uint8)
    with pytest.raises(ProtocolError, match="point"):
        bank(book=book).reply(dataclasses.replace(hello, points=points))
    assert book.replied(ATTEMPT) is None


def test_a_pair_of_points_that_sums_to_the_identity_is_refused(hello: Hello) -> None:
    points, identity = hello.points.copy(), set_oprf._identity(hello.context, hello.nonce)
    hashed = base_ot._hashed(identity, 9, 0, points[9, 1].tobytes())
    opposite = base_ot._subtract(base_ot.IDENTITY, hashed)
    points[9, 0] = np.frombuffer(opposite, np.uint8)
    with pytest.raises(ProtocolError, match="identity"):
        bank().reply(dataclasses.replace(hello, points=points))


def test_steps_come_in_their_order(reply: Reply) -> None:
    with pytest.raises(RuntimeError, match="after hello"):
        department().accept(reply)
    with pytest.raises(RuntimeError, match="after reply"):
        bank().finalize()


# --- what survives a crash


def test_a_repeated_hello_gets_the_same_bytes_also_after_a_restart(hello: Hello) -> None:
    book = MemoryReplyBook()
    first = bank(book=book)
    sent = first.reply(hello).payload()
    assert first.reply(hello).payload() == sent
    again = bank(book=book, customers=CUSTOMERS[::-1])
    assert again.reply(hello).payload() == sent
    np.testing.assert_array_equal(again.finalize().keys, first.finalize().keys)
    stored = book.replied(ATTEMPT)
    assert stored is not None
    assert stored.payload == sent


def test_another_list_gets_another_nonce_so_the_sessions_differ(hello: Hello, reply: Reply) -> None:
    assert bank(customers=CUSTOMERS[1:]).reply(hello).nonce != reply.nonce


def test_another_list_or_hello_in_the_same_attempt_is_refused_and_nothing_moves(
    hello: Hello,
) -> None:
    book = MemoryReplyBook()
    bank(book=book).reply(hello)
    before = book.replied(ATTEMPT)
    with pytest.raises(ParameterError, match="new attempt"):
        bank(book=book, customers=CUSTOMERS[1:]).reply(hello)
    with pytest.raises(ProtocolError, match=REFUSED):
        bank(book=book).reply(dataclasses.replace(hello, nonce=bytes(32)))
    assert book.replied(ATTEMPT) is before


def test_bytes_that_differ_from_the_stored_ones_do_not_leave(hello: Hello) -> None:
    b, book = bank(), MemoryReplyBook()
    b.reply(hello)
    book.record(ATTEMPT, StoredReply(hello.digest(), b._list, b"of another version"))
    rebuilt = bank(book=book)
    with pytest.raises(ProtocolError, match="otherwise"):
        rebuilt.reply(hello)
    with pytest.raises(RuntimeError):
        rebuilt.finalize()


class Crash(Exception):
    pass


class CrashingReplies(MemoryReplyBook):
    persists = True

    def record(self, attempt: Attempt, reply: StoredReply) -> None:
        if self.persists:
            super().record(attempt, reply)
        raise Crash


@pytest.mark.parametrize("persists", [True, False])
def test_a_bank_that_crashes_while_it_writes_sends_the_same_bytes_later(
    persists: bool, hello: Hello, reply: Reply
) -> None:
    crashing = CrashingReplies()
    crashing.persists = persists
    with pytest.raises(Crash):
        bank(book=crashing).reply(hello)
    assert (crashing.replied(ATTEMPT) is not None) == persists
    after = MemoryReplyBook()
    after._replies = crashing._replies
    assert bank(book=after).reply(hello).payload() == reply.payload()


class CrashingAttempts(MemoryAttemptBook):
    at = ""
    persists = True

    def _crash(self, name: str, write: Callable[[], None]) -> None:
        if self.at != name or self.persists:
            write()
        if self.at == name:
            raise Crash

    def open(self, attempt: Attempt, approved: int) -> None:
        self._crash("open", lambda: MemoryAttemptBook.open(self, attempt, approved))

    def take(self, attempt: Attempt, reply: bytes) -> None:
        self._crash("take", lambda: MemoryAttemptBook.take(self, attempt, reply))

    def refuse(self, attempt: Attempt) -> None:
        self._crash("refuse", lambda: MemoryAttemptBook.refuse(self, attempt))


def run(party: Department, sent: Reply) -> None:
    party.hello()
    party.accept(sent)


@pytest.mark.parametrize("persists", [True, False])
@pytest.mark.parametrize("at", ["open", "take", "refuse"])
def test_a_department_that_crashes_goes_on_with_the_same_reply_or_none(
    at: str, persists: bool, reply: Reply
) -> None:
    spoilt = dataclasses.replace(reply, leaves=bytes(32))
    sent = spoilt if at == "refuse" else reply
    crashing = CrashingAttempts()
    crashing.at, crashing.persists = at, persists
    d = department(book=crashing)
    with pytest.raises(Crash):
        run(d, sent)
    after = MemoryAttemptBook()
    after._pairs = crashing._pairs
    rebuilt = department(book=after)
    if at == "refuse" and persists:
        with pytest.raises(ProtocolError, match="closed"):
            rebuilt.hello()
        return
    np.testing.assert_array_equal(rebuilt.hello().points, department().hello().points)
    if at == "refuse":  # the reply was taken: it alone is judged again, with the same result
        with pytest.raises(ProtocolError, match=REFUSED):
            rebuilt.accept(reply)
        with pytest.raises(ProtocolError, match=REFUSED):
            rebuilt.accept(spoilt)
        assert after.given(ATTEMPT.pair) == 0
        return
    if at == "take" and persists:
        with pytest.raises(ProtocolError, match=REFUSED):
            rebuilt.accept(spoilt)
    assert len(rebuilt.accept(reply).row_keys(REGISTRY)) == len(REGISTRY)
    assert after.given(ATTEMPT.pair) == ATTEMPT.m


def test_an_accepted_reply_is_accepted_again_and_no_other(reply: Reply, hello: Hello) -> None:
    book = MemoryAttemptBook()
    d = department(book=book)
    d.hello()
    first = d.accept(reply).row_keys(REGISTRY)
    other = bank(customers=CUSTOMERS[1:]).reply(hello)
    for party in (d, department(book=book)):
        party.hello()
        with pytest.raises(ProtocolError, match=REFUSED):
            party.accept(other)
        np.testing.assert_array_equal(party.accept(reply).row_keys(REGISTRY), first)
    assert book.given(ATTEMPT.pair) == ATTEMPT.m


def test_three_refusals_stop_the_pair_until_a_person_looks(reply: Reply) -> None:
    book = MemoryAttemptBook()
    for number in range(2, REFUSALS_MAX + 2):
        attempt = dataclasses.replace(ATTEMPT, number=number)
        d = department(attempt, book)
        d.hello()
        with pytest.raises(ProtocolError, match=REFUSED):
            d.accept(dataclasses.replace(reply, context=attempt.context()))
    later = dataclasses.replace(ATTEMPT, number=REFUSALS_MAX + 2)
    with pytest.raises(ProtocolError, match="a person"):
        department(later, book).hello()
    elsewhere = dataclasses.replace(later, bank="bank_b")
    department(elsewhere, book).hello()


def test_a_later_attempt_ends_the_earlier_ones_and_adds_to_what_is_given(reply: Reply) -> None:
    book = MemoryAttemptBook()
    early = department(book=book)
    early.hello()
    early.accept(reply)
    later = dataclasses.replace(ATTEMPT, number=2)
    d, b = department(later, book), bank(later)
    d.accept(b.reply(d.hello()))
    assert book.given(ATTEMPT.pair) == 2 * ATTEMPT.m
    for step in (early.hello, lambda: early.accept(reply)):
        with pytest.raises(ProtocolError):
            step()


def test_accepted_attempts_count_against_what_is_approved_and_refused_ones_do_not(
    reply: Reply,
) -> None:
    book = MemoryAttemptBook()
    with pytest.raises(ProtocolError, match="approved"):
        department(book=book, approved=ATTEMPT.m - 1).hello()
    d = department(book=book, approved=ATTEMPT.m)
    d.hello()
    with pytest.raises(ProtocolError, match=REFUSED):
        d.accept(dataclasses.replace(reply, leaves=bytes(32)))
    second, third = (dataclasses.replace(ATTEMPT, number=number) for number in (2, 3))
    d, b = department(second, book, approved=ATTEMPT.m), bank(second)
    d.accept(b.reply(d.hello()))
    d.hello()  # its own reply, taken again, does not count twice
    with pytest.raises(ProtocolError, match="approved"):
        department(third, book, approved=2 * ATTEMPT.m - 1).hello()
    department(third, book, approved=2 * ATTEMPT.m).hello()


def test_an_attempt_number_belongs_to_one_m() -> None:
    book = MemoryAttemptBook()
    department(book=book).hello()
    with pytest.raises(ProtocolError, match="another number"):
        department(dataclasses.replace(ATTEMPT, m=ATTEMPT.m + 1), book).hello()


def test_a_reply_is_taken_in_opened_attempts_only() -> None:
    with pytest.raises(ProtocolError, match="not opened"):
        MemoryAttemptBook().take(ATTEMPT, bytes(32))


# --- inputs


def test_no_secret_and_no_code_shows_in_a_repr(hello: Hello, reply: Reply) -> None:
    d, b = department(), bank()
    d.hello()
    shown = [repr(x) for x in (d, b, hello, reply, d.accept(reply), ATTEMPT)]
    assert not any("91000" in text or "array" in text for text in shown)


BAD_CODES = {
    "21 bytes": np.array([b"9" * 21]),
    "unequal lengths": np.array([b"91A", b"91AB"]),
    "a zero at the end": np.array([b"91A\0"], "S4"),
    "a dummy": np.array([b"\xff" + b"9" * 17]),
    "a space": np.array([b"91 A"]),
    "text": np.array(["91A"]),
    "a table": np.array([[b"91A"]]),
}


@pytest.mark.parametrize("bad", BAD_CODES.values(), ids=BAD_CODES)
def test_codes_that_would_be_cut_or_confused_are_refused(bad: NDArray[np.generic]) -> None:
    with pytest.raises(ParameterError):
        code_words(bad)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("customers", "text"),
    [
        (CUSTOMERS[:0], "0 customers"),
        (REGISTRY[[0, 1, 0]], "twice"),
        (REGISTRY[:310], "310 customers"),
        (codes(3, 399), "not in the registry"),
        (np.array([b"91A"]), "not in the registry"),
    ],
)
def test_lists_that_cannot_be_asked_for_are_refused(
    customers: NDArray[np.bytes_], text: str
) -> None:
    with pytest.raises(ParameterError, match=text):
        bank(customers=customers)


def test_the_department_evaluates_codes_of_the_registry_only(reply: Reply) -> None:
    d = department()
    d.hello()
    keys = d.accept(reply)
    for unlisted in (codes(1, 400), np.array([b"tag"]), np.array([b"0" * 18])):
        with pytest.raises(ParameterError, match="not in the registry"):
            keys.row_keys(unlisted)
    some = REGISTRY[[7, 3, 7]]
    np.testing.assert_array_equal(keys.row_keys(some), keys.row_keys(REGISTRY)[[7, 3, 7]])
    assert keys.row_keys(REGISTRY[:0]).shape == (0, 16)


@pytest.mark.parametrize("bad", [REGISTRY[:0], REGISTRY[::-1], REGISTRY[[0, 0]]])
def test_a_registry_is_sorted_and_has_each_code_once(bad: NDArray[np.bytes_]) -> None:
    with pytest.raises(ParameterError, match="registry"):
        department(registry=bad)


@pytest.mark.parametrize(
    "change",
    [{"m": 0}, {"m": 2**24}, {"number": -1}, {"bank": ""}, {"bank": "tax"}, {"snapshot": b""}],
)
def test_an_attempt_is_well_formed(change: dict[str, object]) -> None:
    with pytest.raises((ValueError, ParameterError)):
        dataclasses.replace(ATTEMPT, **change)


def test_secrets_have_their_length() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Department(ATTEMPT, ATTEMPT.m, REGISTRY, bytes(31), MemoryAttemptBook())
    with pytest.raises(ValueError, match="32 bytes"):
        Bank(ATTEMPT, CUSTOMERS, REGISTRY, bytes(33), MemoryReplyBook())


# --- sizes


def test_the_approved_number_at_the_sizes_that_we_name() -> None:
    sizes = {1000: 1327, 5000: 5628, 50_000: 54_217, 10**6: 1_085_965}
    assert {n: approved_size(n) for n in sizes} == sizes


@given(st.integers(1, 15_000_000))
def test_the_approved_number_is_the_formula_in_floats_or_little_more(customers: int) -> None:
    theta = (40 + math.log2(customers)) * math.log(2) / 256
    exact = customers * math.expm1(theta) / theta + 256
    assert exact <= approved_size(customers) <= exact * (1 + 1e-9) + 1


@given(st.integers(258, 2**24 - 1))
def test_capacity_is_the_longest_list_that_m_is_enough_for(m: int) -> None:
    n = capacity(m)
    assert okvs.rows_for(n) <= m < okvs.rows_for(n + 1)


@pytest.mark.parametrize("customers", [0, -1, 16_000_000])
def test_numbers_of_customers_out_of_range_are_refused(customers: int) -> None:
    with pytest.raises(ParameterError):
        approved_size(customers)


def test_an_m_below_one_customer_is_refused() -> None:
    with pytest.raises(ParameterError, match="at least"):
        capacity(approved_size(1) - 1)


@given(st.integers(1, 10**9))
def test_integer_logarithms_are_bounds(x: int) -> None:
    low, high = (okvs.log2(x, up=up) / 2**32 for up in (False, True))
    assert low <= math.log2(x) + 1e-12
    assert math.log2(x) <= high + 1e-12
    assert high - low < 1e-8


@pytest.mark.parametrize(("m", "registry"), [(1327, 10**5), (54_217, 10**6), (1_085_965, 10**7)])
def test_the_bound_on_a_cheating_bank_is_that_of_exact_binomials(m: int, registry: int) -> None:
    def sets(k: int) -> float:
        ln = math.lgamma(registry + 1) - math.lgamma(k + 1) - math.lgamma(registry - k + 1)
        return ln / math.log(2)

    k = most_keys(m, registry)
    assert 64 * (k + 1 - m) >= sets(k + 1) + 120
    assert 64 * (k - 1 - m) <= sets(k) + 120
    assert m < k < 1.15 * m
    assert most_keys(m, m // 2) == m // 2


def test_the_way_follows_from_the_number_of_customers() -> None:
    assert [choose(n) for n in (1, 999, 1000, 10**6)] == ["voprf", "voprf", "set", "set"]
    assert approved_number(300, choose(300)) == 300
    assert approved_number(50_000, choose(50_000)) == 54_217
    assert provable_number(300, 10**6, "voprf") == 300
    assert provable_number(50_000, 10**6, "set") == most_keys(54_217, 10**6) < 60_000
    with pytest.raises(ParameterError):
        choose(0)


# --- the parts, against slow arithmetic


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 70), st.integers(0, 8), st.integers(0, 5), st.binary(min_size=64, max_size=64)
)
def test_sha256_is_that_of_hashlib(rows: int, head: int, tail: int, block: bytes) -> None:
    rng = np.random.default_rng(rows)
    parts = [rng.integers(0, 2**32, (rows, n), np.uint32) for n in (head, tail)]
    got = sha256_rows(midstate(block), *parts).astype(">u4")
    for row, (a, b) in enumerate(zip(*parts, strict=True)):
        message = block + a.astype(">u4").tobytes() + b.astype(">u4").tobytes()
        assert got[row].tobytes() == hashlib.sha256(message).digest()


def test_sha256_takes_only_what_fits_its_blocks() -> None:
    start, words = midstate(bytes(64)), np.zeros((1, 7), np.uint32)
    for bad in (lambda: midstate(bytes(63)), lambda: sha256_rows(start, words, words)):
        with pytest.raises(ValueError, match=r"block|heads"):
            bad()


def test_multiplication_in_the_field_is_that_by_logarithms() -> None:
    powers = [1]
    for _ in range(14):
        powers.append(multiply(powers[-1], 2))
    assert sorted(powers) == list(range(1, 16))
    assert (multiply(2, 8), multiply(0, 7), multiply(7, 0)) == (0b0011, 0, 0)
    for i, a in enumerate(powers):
        for j, b in enumerate(powers):
            assert multiply(a, b) == powers[(i + j) % 15]


def test_the_code_has_distance_32() -> None:
    """Random words, all words of one and two lines of the generator, and a search downhill."""
    table, rng = code_table(np.ones(COLUMNS, np.uint8)), np.random.default_rng(2)
    assert (len(generator()), len(generator()[0])) == (16, 53)
    pairs = [
        (a << 4 * i) | (b << 4 * j)
        for i in range(16)
        for j in range(i)
        for a in range(16)
        for b in range(1, 16)
    ]
    messages = np.concatenate(
        [rng.integers(1, 2**64, 200_000, np.uint64), np.array(pairs, np.uint64)]
    )
    lightest = COLUMNS
    for _ in range(3):
        rows = encode_rows(table, messages)
        symbols = rows[:, :, None] >> (np.uint64(4) * np.arange(16, dtype=np.uint64))
        weight = ((symbols & np.uint64(15)) != 0).reshape(len(rows), -1).sum(axis=1)
        lightest = min(lightest, int(weight.min()))
        light = np.repeat(messages[np.argsort(weight)[:2000]], 50)
        symbol = rng.integers(1, 16, light.size, np.uint64)
        messages = light ^ (symbol << (np.uint64(4) * rng.integers(0, 16, light.size, np.uint64)))
        messages = messages[messages != 0]
    assert DISTANCE <= lightest <= DISTANCE + 2  # the search comes close: it is not blind


def test_a_scaled_code_is_every_symbol_times_its_factor() -> None:
    scale = np.arange(COLUMNS, dtype=np.uint8) % 16
    message = np.array([0x123456789ABCDEF0], np.uint64)
    plain, scaled = (
        int.from_bytes(encode_rows(code_table(s), message).astype("<u8").tobytes(), "little")
        for s in (np.ones(COLUMNS, np.uint8), scale)
    )
    for j, factor in enumerate(scale.tolist()):
        assert scaled >> 4 * j & 15 == multiply(factor, plain >> 4 * j & 15)


@pytest.mark.parametrize(("keys", "times"), [(1, 50), (100, 100), (5000, 20), (60_000, 2)])
def test_a_store_is_built_and_holds_every_value(keys: int, times: int) -> None:
    rng, rows = np.random.default_rng(keys), okvs.rows_for(keys)
    for seed in range(times):
        hashes = rng.integers(0, 2**32, (keys, 8), np.uint32)
        store = okvs.build(hashes, rows, vole.padded(rows), Stream(digest(seed)))
        assert store is not None
        wide = np.zeros((len(store), 4), np.uint64)
        wide[:, 0] = store
        table = np.zeros((8, 256, 4), np.uint64)
        sums = okvs.decode(wide, rows, table, False, *okvs.by_start(hashes, rows))
        np.testing.assert_array_equal(sums[:, 1], hashes[:, 0])  # the value's high half
        np.testing.assert_array_equal(sums[:, 0], hashes[:, 1])


def test_a_key_twice_has_no_store_and_another_nonce_is_tried(
    monkeypatch: pytest.MonkeyPatch, hello: Hello, reply: Reply
) -> None:
    hashes = np.random.default_rng(1).integers(0, 2**32, (50, 8), np.uint32)
    hashes[7] = hashes[31]
    assert okvs.build(hashes, okvs.rows_for(50), 512, Stream(bytes(32))) is None

    build, calls = okvs.build, []

    def fails_once(*arguments: object) -> object:
        calls.append(arguments)
        return None if len(calls) == 1 else build(*arguments)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(okvs, "build", fails_once)
    d, b = department(), bank()
    second = b.reply(d.hello())
    assert second.nonce != reply.nonce
    np.testing.assert_array_equal(d.accept(second).row_keys(CUSTOMERS), b.finalize().keys)
    monkeypatch.setattr(okvs, "build", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="no store"):
        bank().reply(hello)


def test_a_receiver_has_the_chosen_key_of_every_pair() -> None:
    choices = np.random.default_rng(3).integers(0, 2, 20).astype(np.uint8)
    receiver = base_ot.Receiver(b"id", choices, Stream(digest(1)))
    sender = base_ot.Sender(b"id", b"session", receiver.points, Stream(digest(2)))
    keys = receiver.keys(b"session", sender.point)
    np.testing.assert_array_equal(keys, sender.keys[np.arange(20), choices])
    assert not (keys == sender.keys[np.arange(20), 1 - choices]).all(axis=1).any()
    assert not (receiver.keys(b"other", sender.point) == keys).all(axis=1).any()


def test_trees_open_all_seeds_but_those_at_the_holes() -> None:
    holes = (np.arange(COLUMNS) % 16).astype(np.uint8)
    trees = seed_trees.FullTrees(b"session", [digest(j)[:16] for j in range(COLUMNS)])
    chosen = trees.sums[np.arange(seed_trees.TRANSFERS), seed_trees.choices_of(holes)]
    opened = seed_trees.open_trees(b"session", holes, chosen, trees.leaf_sums, trees.digest)
    for column, hole in enumerate(holes.tolist()):
        expected = [None if x == hole else s for x, s in enumerate(trees.seeds[column])]
        assert opened[column] == expected
    chosen[100, 3] ^= 1
    with pytest.raises(ProtocolError, match="commitment"):
        seed_trees.open_trees(b"session", holes, chosen, trees.leaf_sums, trees.digest)
