"""The linear query from end to end, its refusals and its durable state."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import labels
from protocols.errors import ParameterError, ProtocolError
from protocols.kernels import Workers
from protocols.linear_query import Answer, Bank, Department, Query, TokenReply, TokenRequest, decode
from protocols.openings import check_children, check_counts, check_opening
from protocols.packing import pack, unpack
from protocols.parameters import (
    Q_BITS,
    Layout,
    Parameters,
    answer_size_bytes,
    query_size_bytes,
    reply_size_bytes,
    request_size_bytes,
)
from protocols.ring import Q
from protocols.streams import Randomness, digest
from protocols.warm import warm

from .query_parties import JOINT_SEED, MANIFEST, Setting, setting, with_tokens

T = TypeVar("T")


def vector(parties: Setting, seed: int = 0) -> np.ndarray:
    limit = parties.parameters.limb_max
    return np.random.default_rng(seed).integers(-limit, limit + 1, parties.layout.rows)


def test_bank_opens_exactly_the_column_sums() -> None:
    parties = setting(rows=5000, bins=(4, 32, 1), bounds=(1, 31, 130), vmax=20)
    bank, department = with_tokens(parties)
    for seed in range(3):
        v = vector(parties, seed)
        opened = bank.open("tax", department.answer(bank.query(v)))
        np.testing.assert_array_equal(opened, parties.plain(v))


@settings(deadline=None, max_examples=12)
@given(
    rows=st.integers(1, 4500),
    bins=st.lists(st.integers(1, 64), max_size=3),
    bounds=st.lists(st.integers(1, 40), max_size=2),
    vmax=st.integers(1, 300),
    tokens=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_any_shape_opens_exactly(
    rows: int, bins: list[int], bounds: list[int], vmax: int, tokens: int, seed: int
) -> None:
    parties = setting(rows, tuple(bins) or (2,), tuple(bounds), vmax=vmax, tokens=tokens, seed=seed)
    bank, department = with_tokens(parties)
    v = np.random.default_rng(seed).integers(-vmax, vmax + 1, rows)
    limbs = parties.parameters.split(v)
    opened = [bank.open("tax", department.answer(bank.query(limb))) for limb in limbs]
    np.testing.assert_array_equal(parties.parameters.join(opened), parties.plain(v))


def test_extreme_vectors_open_exactly() -> None:
    parties = setting(rows=2049, bins=(1, 2), vmax=127, tokens=3)
    bank, department = with_tokens(parties)
    for value in (127, -127, 0):
        v = np.full(2049, value)
        opened = bank.open("tax", department.answer(bank.query(v)))
        np.testing.assert_array_equal(opened, parties.plain(v))


def test_one_request_and_one_query_serve_several_departments() -> None:
    tax, court = setting(seed=1), setting(bins=(5,), bounds=(3,), seed=2)
    court.parameters = tax.parameters
    bank, first, second = tax.bank(), tax.department(), court.department(seed=b"court")
    request = bank.request_tokens()
    bank.accept_tokens("tax", tax.layout, first.grant_tokens(request))
    bank.accept_tokens("court", court.layout, second.grant_tokens(request))
    v = vector(tax)
    query = bank.query(v)
    np.testing.assert_array_equal(bank.open("tax", first.answer(query)), tax.plain(v))
    assert list(tax.spent._messages.values()) == [query.b.tobytes()]  # court has not answered
    np.testing.assert_array_equal(bank.open("court", second.answer(query)), court.plain(v))
    assert not tax.spent._messages


def test_several_batches_have_tokens_and_keys_of_their_own() -> None:
    parties = setting(tokens=5)
    bank, department = parties.bank(), parties.department()
    first, second = bank.request_tokens(2), bank.request_tokens(3)
    assert first.key.tobytes() != second.key.tobytes()
    with pytest.raises(ProtocolError, match="batch 1 before batch 0"):
        department.grant_tokens(second)
    for request in (first, second):
        bank.accept_tokens("tax", parties.layout, department.grant_tokens(request))
    for seed in range(5):
        v = vector(parties, seed)
        query = bank.query(v)
        assert (query.batch, query.index) == ((0, seed) if seed < 2 else (1, seed - 2))
        np.testing.assert_array_equal(bank.open("tax", department.answer(query)), parties.plain(v))
    with pytest.raises(ProtocolError, match="no token left"):
        bank.query(vector(parties))


def test_between_departments_only_the_bank_opens() -> None:
    parties = setting(rows=700)
    asking, asked = with_tokens(parties)
    v = vector(parties)
    answer, mask = asked.answer_masked(asking.query(v))
    forwarded = asking.unmask("tax", answer)
    opened = decode(parties.parameters, forwarded - mask.values(parties.layout.columns))
    np.testing.assert_array_equal(opened, parties.plain(v))
    # what the asking department holds decodes to nothing
    assert not np.array_equal(decode(parties.parameters, forwarded), parties.plain(v))


def test_equal_seeds_give_equal_bytes_in_every_message() -> None:
    runs = []
    for _ in range(2):
        parties = setting(rows=3000, bounds=(9,))
        bank, department = parties.bank(), parties.department()
        commitment = department.commit()
        request = bank.request_tokens()
        reply = department.grant_tokens(request)
        bank.accept_tokens("tax", parties.layout, reply)
        query = bank.query(vector(parties))
        answer = department.answer(query)
        masked, mask = department.answer_masked(bank.query(vector(parties)))
        messages = (commitment, request, reply, query, answer, masked, mask)
        runs.append([value for m in messages for value in fields_of(m)])
    assert runs[0] == runs[1]


def test_messages_known_answer() -> None:
    """Every byte that leaves either party, for fixed seeds: replays on any machine give these.

    A change here is a new version of the protocol (`rlwe.VERSION`), and old transcripts then replay
    with the old release only.
    """
    rows = np.arange(2100)
    parties = Setting(
        Layout(2100, (4, 3), (5,)),
        np.stack([rows % 4, rows // 5 % 3]).astype(np.uint8),
        (rows[None] % 11 - 5).astype(np.int32),
        Parameters(t_bits=25, reply_bits=40, vmax=50, tokens=3),
    )
    bank, department = parties.bank(), parties.department()
    request = bank.request_tokens()
    reply = department.grant_tokens(request)
    bank.accept_tokens("tax", parties.layout, reply)
    query = bank.query(np.arange(2100) % 101 - 50)
    masked, mask = department.answer_masked(bank.query(np.zeros(2100, np.int64)))
    messages = (department.commit(), request, reply, query, department.answer(query), masked, mask)
    digests = [digest(*fields_of(m)).hex()[:16] for m in messages]  # type: ignore[arg-type]
    assert digests == KNOWN_MESSAGES


KNOWN_MESSAGES = [
    "c3dd3ba0d5e09fc0",
    "7689479f5e96abb4",
    "5a03c8b3d5f97784",
    "7f39de6f448aee9f",
    "7b4ba0551354d83c",
    "c4f9495fe4637966",
    "18055644762575fe",
]


def fields_of(message: object) -> list[object]:
    values = [getattr(message, f.name) for f in dataclasses.fields(message)]  # type: ignore[arg-type]
    return [v.tobytes() if isinstance(v, np.ndarray) else v for v in values]


def test_sizes_are_as_estimated() -> None:
    parties = setting(rows=777, bins=(5, 6), tokens=9)
    bank, department = parties.bank(), parties.department()
    request = bank.request_tokens()
    reply = department.grant_tokens(request)
    bank.accept_tokens("tax", parties.layout, reply)
    query = bank.query(vector(parties))
    answer = department.answer(query)
    parameters = parties.parameters
    assert request.key.size + request.secrets.size == request_size_bytes(parameters, 9)
    assert reply.wanted.size + reply.others.size == reply_size_bytes(parameters, 11, 9)
    assert query.b.size == query_size_bytes(777)
    assert answer.w.size == answer_size_bytes(11)


def test_noise_stays_below_the_derived_bound_and_is_not_missing() -> None:
    parties = setting(rows=4000, bins=(64, 64, 64), vmax=1, tokens=8)
    bank, department = with_tokens(parties)
    noise = []
    for seed in range(8):
        v = vector(parties, seed)
        residual = bank.unmask("tax", department.answer(bank.query(v)))
        centred = (residual - parties.parameters.delta * parties.plain(v)) % Q
        noise.append(np.where(2 * centred > Q, centred - Q, centred))
    flat = np.concatenate(noise) / parties.parameters.sigma_f
    assert np.abs(flat).max() < 5.5  # 1536 draws
    assert flat.mean() == pytest.approx(0, abs=0.1)
    # rho dominates: a sixteenth of delta is 1.5 sigma_f and the bound of all the rest is far below
    assert flat.std() == pytest.approx(1, abs=0.06)


# ------------------------------------------------------------------ tokens are spent once


def test_equal_query_gets_the_stored_bytes_and_another_is_refused() -> None:
    parties = setting()
    bank, department = with_tokens(parties)
    query = bank.query(vector(parties))
    answer = department.answer(query)
    assert department.answer(query).w.tobytes() == answer.w.tobytes()
    b = unpack(query.b, Q_BITS, 300, Q)
    b[0] = (b[0] + 1) % Q
    with pytest.raises(ProtocolError, match="spent on another query"):
        department.answer(dataclasses.replace(query, b=pack(b, Q_BITS)))
    with pytest.raises(ProtocolError, match="spent on another query"):
        department.answer_masked(query)  # w and w + nu under one token would open it to the querier
    assert len(parties.answers._answers) == 1
    assert department.answer(query).w.tobytes() == answer.w.tobytes()


def test_a_restarted_department_answers_from_its_book() -> None:
    parties = setting()
    bank, department = with_tokens(parties)
    query = bank.query(vector(parties))
    answer = department.answer(query)
    again = parties.department()
    again.grant_tokens(parties.bank().request_tokens())
    assert again.answer(query).w.tobytes() == answer.w.tobytes()
    other = parties.bank(seed=b"other").request_tokens()
    with pytest.raises(ProtocolError, match="granted for another request"):
        again.grant_tokens(other)


def test_a_restarted_bank_repeats_equal_bytes_or_burns_the_token() -> None:
    parties = setting()
    bank, department = with_tokens(parties)
    v = vector(parties)
    query = bank.query(v)

    restarted, _ = with_tokens(parties)
    assert restarted.query(v).digest() == query.digest()

    restarted, _ = with_tokens(parties)
    other = vector(parties, 1)
    second = restarted.query(other)
    assert second.index == query.index + 1  # the first is burnt
    np.testing.assert_array_equal(
        restarted.open("tax", department.answer(second)), parties.plain(other)
    )
    assert len(parties.spent._digests) == 2


@pytest.mark.parametrize("threads", [0, 2])
def test_queries_ahead_are_those_one_by_one_and_none_leaves_unspent(threads: int) -> None:
    parties = setting(tokens=8)
    vectors = [vector(parties, i) for i in range(8)]
    bank, _ = with_tokens(parties)
    expected = [bank.query(v).digest() for v in vectors]
    # A later run: nothing spent, all spent on equal vectors, and a book with holes in it.
    spent = {token.index: of_query for token, of_query in parties.spent._digests.items()}
    for kept in (set[int](), set(range(8)), {1, 2, 5}):
        again = setting(tokens=8)
        for token, of_query in parties.spent._digests.items():
            if token.index in kept:
                again.spent.spend(token, of_query, b"")
        with ThreadPoolExecutor(threads) if threads else nullcontext() as pool:
            bank = again.bank(executor=pool)
            department = again.department()
            bank.accept_tokens("tax", again.layout, department.grant_tokens(bank.request_tokens()))
            found = []
            for query in bank.queries(vectors):
                token = next(x for x in again.spent._digests if x.index == query.index)
                assert again.spent.digest(token) == query.digest()
                found.append(query.digest())
        assert found == expected
        assert {token.index: x for token, x in again.spent._digests.items()} == spent
        with pytest.raises(ProtocolError, match="no token left"):
            list(bank.queries([vectors[0]]))


class Elsewhere(Executor):
    """A cluster as far as its callers can tell: nothing is shared, arrays arrive read-only."""

    def __init__(self) -> None:
        self.calls = 0

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **_: Any) -> Iterator[T]:
        for arguments in zip(*iterables, strict=True):
            self.calls += 1
            sent = pickle.loads(pickle.dumps((fn, arguments)))  # noqa: S301 - our own bytes
            for item in sent[1]:
                if isinstance(item, np.ndarray):
                    item.setflags(write=False)
            yield pickle.loads(pickle.dumps(sent[0](*sent[1])))  # noqa: S301 - our own bytes


@pytest.mark.parametrize(("bins", "bounds"), [((4, 3, 9, 2, 5), ()), ((3,), (7,)), ((), (7, 300))])
def test_tokens_are_the_same_whether_the_hint_is_made_here_or_on_a_cluster(
    bins: tuple[int, ...], bounds: tuple[int, ...]
) -> None:
    replies = []
    for cluster in (None, Elsewhere()):
        parties = setting(rows=5000, bins=bins, bounds=bounds, vmax=1)
        with Workers(2, cluster) as pool:
            department = parties.department(executor=pool)
            replies.append(department.grant_tokens(parties.bank().request_tokens()))
        if cluster is not None:
            assert cluster.calls == -(-len(bins) // 4)
    assert fields_of(replies[0]) == fields_of(replies[1])


def test_a_token_spent_on_another_vector_is_skipped_by_queries_ahead() -> None:
    parties = setting(tokens=4)
    bank, _ = with_tokens(parties)
    bank.query(vector(parties, 9))
    with ThreadPoolExecutor(2) as pool:
        restarted = parties.bank(executor=pool)
        department = parties.department()
        reply = department.grant_tokens(restarted.request_tokens())
        restarted.accept_tokens("tax", parties.layout, reply)
        vectors = [vector(parties, i) for i in range(3)]
        made = list(restarted.queries(vectors))
        assert [query.index for query in made] == [1, 2, 3]
        for v, query in zip(vectors, made, strict=True):
            opened = restarted.open("tax", department.answer(query))
            np.testing.assert_array_equal(opened, parties.plain(v))


def test_the_spent_book_is_written_before_the_query_leaves() -> None:
    class Full(Exception):
        pass

    parties = setting()
    bank, _ = with_tokens(parties)

    def fail(*_: object) -> None:
        raise Full

    parties.spent.spend = fail  # type: ignore[method-assign]
    with pytest.raises(Full):
        bank.query(vector(parties))


def test_an_answer_is_opened_once() -> None:
    parties = setting()
    bank, department = with_tokens(parties)
    answer = department.answer(bank.query(vector(parties)))
    bank.open("tax", answer)
    with pytest.raises(ProtocolError, match="twice"):
        bank.open("tax", answer)


def test_every_draw_for_another_query_or_matrix_is_another() -> None:
    """rho, u and mu follow the digest of what they protect, so a re-run never reuses a pad."""
    seen = set()
    for change in range(3):
        parties = setting(seed=7)
        if change == 1:
            parties.bins[0, 0] ^= 1
        bank, department = with_tokens(parties)
        query = bank.query(vector(parties, int(change == 2)))
        seen.add(department.answer(query).w.tobytes())
        seen.add(department._granted[0].masks.tobytes())
    assert len(seen) == 3 + 2


# ------------------------------------------------------------------------------ refusals


def exchange() -> tuple[Bank, Department, TokenRequest, TokenReply, Query, Answer]:
    parties = setting()
    bank, department = parties.bank(), parties.department()
    request = bank.request_tokens()
    reply = department.grant_tokens(request)
    bank.accept_tokens("tax", parties.layout, reply)
    query = bank.query(vector(parties))
    return bank, department, request, reply, query, department.answer(query)


def changes(message: object) -> list[tuple[str, object]]:
    """Every field, changed in every way that a codec lets through."""
    out: list[tuple[str, object]] = []
    for f in dataclasses.fields(message):  # type: ignore[arg-type]
        value = getattr(message, f.name)
        if isinstance(value, int):
            out += [(f.name, value + 1), (f.name, -1), (f.name, 1 << 31)]
        else:
            out += [(f.name, value[:-1]), (f.name, value.astype(np.uint16)), (f.name, value[None])]
            out += [(f.name, np.full_like(value, 255))]
    return out


def test_department_refuses_every_changed_request_and_query() -> None:
    _, department, request, _, query, answer = exchange()
    for name, value in changes(request):
        with pytest.raises(ProtocolError):
            department.grant_tokens(dataclasses.replace(request, **{name: value}))
    for name, value in changes(query):
        if (name, value) == ("index", 1):
            continue  # another token: the query is then one that spends it, and well formed
        with pytest.raises(ProtocolError):
            department.answer(dataclasses.replace(query, **{name: value}))
    assert department.answer(query).w.tobytes() == answer.w.tobytes()


def test_bank_refuses_every_changed_reply_and_answer() -> None:
    parties = setting()
    bank, department = parties.bank(), parties.department()
    reply = department.grant_tokens(bank.request_tokens())
    for name, value in changes(reply):
        if np.shape(value) == np.shape(getattr(reply, name)) and name in ("wanted", "others"):
            continue  # other values of a ciphertext are well formed; the sum checks catch them
        with pytest.raises(ProtocolError):
            bank.accept_tokens("tax", parties.layout, dataclasses.replace(reply, **{name: value}))
    assert bank.tokens_left == 0
    bank.accept_tokens("tax", parties.layout, reply)
    v = vector(parties)
    answer = department.answer(bank.query(v))
    for name, value in changes(answer):
        with pytest.raises(ProtocolError):
            bank.open("tax", dataclasses.replace(answer, **{name: value}))
    with pytest.raises(ProtocolError, match="court"):
        bank.open("court", answer)
    np.testing.assert_array_equal(bank.open("tax", answer), parties.plain(v))


def test_messages_of_another_job_attempt_or_matrix_are_refused() -> None:
    parties = setting()
    department = parties.department()
    wider = dataclasses.replace(parties.parameters, t_bits=parties.parameters.t_bits + 1)
    for change in ({"attempt": 2}, {"matrix": "pairs"}, {"parameters": wider}):
        other = dataclasses.replace(parties, **change)
        with pytest.raises(ProtocolError, match="another job"):
            department.grant_tokens(other.bank().request_tokens())


def test_a_department_grants_no_more_tokens_than_the_job_has() -> None:
    parties = setting(tokens=3)
    department = parties.department()
    department.grant_tokens(parties.bank().request_tokens(3))
    greedy = parties.bank()
    object.__setattr__(greedy, "parameters", dataclasses.replace(parties.parameters, tokens=9))
    greedy.request_tokens(3)
    with pytest.raises(ProtocolError, match="more tokens than the 3"):
        department.grant_tokens(greedy.request_tokens(3))


def test_a_department_commits_before_it_grants() -> None:
    parties = setting()
    department = Department(
        layout=parties.layout,
        bins=parties.bins,
        integers=parties.integers,
        parameters=parties.parameters,
        joint_seed=JOINT_SEED,
        querier="bank",
        name="tax",
        manifest=MANIFEST,
        attempt=1,
        matrix="bins",
        randomness=Randomness(bytes(32), MANIFEST, 1),
        answers=parties.answers,
    )
    with pytest.raises(RuntimeError, match="commit"):
        department.grant_tokens(parties.bank().request_tokens())


def test_the_commitment_changes_with_one_cell_and_hides_it_by_a_salt() -> None:
    parties = setting()
    first = parties.department().commit().digest.tobytes()
    assert parties.department().commit().digest.tobytes() == first
    assert parties.department(seed=b"other").commit().digest.tobytes() != first
    parties.bins[1, 17] ^= 1
    assert parties.department().commit().digest.tobytes() != first


@pytest.mark.parametrize("case", ["bins", "beyond", "integers", "bound", "dtype"])
def test_a_matrix_that_is_not_of_its_layout_is_refused(case: str) -> None:
    parties = setting(bounds=(5,))
    if case == "bins":
        parties.bins = parties.bins[:1]
    elif case == "beyond":
        parties.bins[1, 3] = 3
    elif case == "integers":
        parties.integers = parties.integers[:, 1:]
    elif case == "bound":
        parties.integers[0, 0] = -6
    else:
        parties.bins = parties.bins.astype(np.int64)  # type: ignore[assignment]
    with pytest.raises(ParameterError):
        parties.department()


def test_vectors_out_of_range_spend_no_token() -> None:
    parties = setting(vmax=100)
    bank, _ = with_tokens(parties)
    good = vector(parties)
    too_large = good.copy()
    too_large[3] = -101
    for bad in (too_large, good[:-1], good.astype(np.int32), good.astype(float)):
        with pytest.raises(ParameterError):
            bank.query(bad)
    assert not parties.spent._digests
    assert bank.tokens_left == 3


def test_reprs_show_no_payload_and_no_secret() -> None:
    bank, department, *messages = exchange()
    for thing in (bank, department, *messages):
        assert len(repr(thing)) < 400, type(thing)
        assert JOINT_SEED.hex() not in repr(thing)


# ------------------------------------------------------------------------------ checks of openings


LAYOUT = Layout(100, (2, 3), (7,))
COUNTS = np.array([4, 6, 1, 0, 9, 50])


def check(opened: list[int], **changed: int) -> None:
    limits = {"total": 12, "customers": 10, "low": -5, "high": 5} | changed
    check_opening(LAYOUT, np.array(opened), counts=COUNTS, **limits)


def test_good_openings_pass() -> None:
    check_counts(LAYOUT, COUNTS, 10)
    check([-8, 20, 5, 0, 7, -350])
    check_children(COUNTS, COUNTS - 1, np.ones(6, np.int64))


@pytest.mark.parametrize(
    "opened",
    [
        [-8, 21, 5, 0, 7, 0],  # does not sum to the total
        [-21, 33, 5, 0, 7, 0],  # beyond vmax n_c
        [-8, 20, 6, 0, 6, 0],
        [-8, 20, 4, 1, 7, 0],  # a value where there is no row
        [-8, 20, 5, 0, 7, 351],  # beyond the integer bound
        [-8, 20, 5, 0, 7],
    ],
)
def test_inconsistent_openings_are_refused(opened: list[int]) -> None:
    with pytest.raises(ProtocolError):
        check(opened)


def test_negative_counts_and_hessians_are_refused() -> None:
    with pytest.raises(ProtocolError):
        check_counts(LAYOUT, np.array([-1, 11, 1, 0, 9, 50]), 10)
    with pytest.raises(ProtocolError):
        check([-1, 13, 3, 0, 9, 0], low=0)
    with pytest.raises(ProtocolError, match="children"):
        check_children(COUNTS, COUNTS, COUNTS)


def test_declared_noise_widens_the_checks_by_its_tolerance() -> None:
    check([-8, 21, 5, 0, 7, 0], tolerance=1)
    with pytest.raises(ProtocolError):
        check([-8, 23, 5, 0, 7, 0], tolerance=1)


# ------------------------------------------------------------------------------ kernels


def test_warming_compiles_all_that_a_query_needs() -> None:
    """Nothing is compiled later, whatever the shape and whether an array is read-only."""
    from protocols import packing, ring, rlwe, sampling

    def variants() -> dict[str, int]:
        out = {}
        for module in (packing, ring, rlwe, sampling):
            for name, thing in vars(module).items():
                if hasattr(thing, "signatures"):
                    out[f"{module.__name__}.{name}"] = len(thing.signatures)
        return out

    warm()
    before = variants()
    assert len(before) > 20
    parties = setting(rows=4100, bins=(9, 1), bounds=(300, 2), vmax=1, tokens=17)
    for array in (parties.bins, parties.integers):
        array.setflags(write=False)
    bank, department = parties.bank(), parties.department()
    request = frozen(bank.request_tokens())
    bank.accept_tokens("tax", parties.layout, frozen(department.grant_tokens(request)))
    v = np.ones(4100, np.int64)
    v.setflags(write=False)
    query = frozen(bank.query(v))
    answer = frozen(department.answer(query))
    np.testing.assert_array_equal(bank.open("tax", answer), parties.plain(v))
    assert variants() == before


def frozen(message):  # type: ignore[no-untyped-def]  # any message, as a codec would make it
    for f in dataclasses.fields(message):
        value = getattr(message, f.name)
        if isinstance(value, np.ndarray):
            message = dataclasses.replace(
                message, **{f.name: np.frombuffer(value.tobytes(), np.uint8)}
            )
    return message


def test_labels_are_distinct() -> None:
    values = [v for k, v in vars(labels).items() if k.isupper()]
    assert len(values) == len(set(values))
