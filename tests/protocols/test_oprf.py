"""RFC 9497 vectors and the promises of the row keys."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocols import oprf
from protocols.errors import ParameterError, ProtocolError
from protocols.oprf import Bank, BlindedBatch, Department, EvaluatedBatch, KeyPair, key_for
from protocols.row_keys import RowKeys, keys_of_job, row_words, tags
from protocols.streams import Randomness, digest

RFC = json.loads((Path(__file__).parent / "vectors" / "rfc9497_voprf.json").read_text())
KEY = key_for(bytes(32), "bank_a", digest("snapshot"))


def randomness(party: str, job: str = "job", attempt: int = 0) -> Randomness:
    return Randomness(digest(party), digest(job), attempt)


def codes(*numbers: int) -> NDArray[np.bytes_]:
    return np.array([b"%018d" % n for n in numbers], "S18")


def department(maximum: int = 12) -> Department:
    return Department(KEY, maximum, randomness("department"))


def bank(customers: NDArray[np.bytes_], size: int = 12, job: str = "job") -> Bank:
    return Bank(KEY.public, customers, size, randomness("bank", job), "tax")


def scalar(value: int) -> bytes:
    return value.to_bytes(32, "little")


def of_hex(values: list[str]) -> list[bytes]:
    return [bytes.fromhex(value) for value in values]


def points(count: int) -> NDArray[np.uint8]:
    raw = b"".join(oprf.blind(b"%d" % i, scalar(7 + i)) for i in range(count))
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


# --- known answers


def test_derive_key_pair_gives_the_key_of_the_rfc() -> None:
    key = oprf.derive_key_pair(bytes.fromhex(RFC["seed"]), bytes.fromhex(RFC["key_info"]))
    assert key.secret.hex() == RFC["skSm"]
    assert key.public.hex() == RFC["pkSm"]


@pytest.mark.parametrize("vector", RFC["vectors"])
def test_every_step_gives_the_bytes_of_the_rfc(vector: dict[str, Any]) -> None:
    key = KeyPair(bytes.fromhex(RFC["skSm"]), bytes.fromhex(RFC["pkSm"]))
    inputs, blinds = of_hex(vector["input"]), of_hex(vector["blind"])
    nonce = bytes.fromhex(vector["proof_random_scalar"])

    blinded = [oprf.blind(data, r) for data, r in zip(inputs, blinds, strict=True)]
    assert [element.hex() for element in blinded] == vector["blinded_element"]
    evaluated, proof = oprf.blind_evaluate(key, blinded, nonce)
    assert [element.hex() for element in evaluated] == vector["evaluation_element"]
    assert proof.hex() == vector["proof"]
    assert oprf.verify(key.public, blinded, evaluated, proof)
    inverses = oprf._invert_all(blinds)
    outputs = [oprf.finalize(*row).hex() for row in zip(inputs, inverses, evaluated, strict=True)]
    assert outputs == vector["output"]
    assert [oprf.evaluate(key.secret, data).hex() for data in inputs] == vector["output"]


@pytest.mark.parametrize("vector", RFC["vectors"])
@pytest.mark.parametrize("bit", [0, 255, 256, 300, 511])
def test_a_proof_of_the_rfc_with_one_bit_changed_fails(vector: dict[str, Any], bit: int) -> None:
    public, proof = bytes.fromhex(RFC["pkSm"]), bytearray.fromhex(vector["proof"])
    blinded = of_hex(vector["blinded_element"])
    evaluated = of_hex(vector["evaluation_element"])
    proof[bit // 8] ^= 1 << bit % 8
    assert not oprf.verify(public, blinded, evaluated, bytes(proof))


def test_a_proof_of_the_rfc_fails_for_other_statements() -> None:
    one, other, both = RFC["vectors"]
    public = bytes.fromhex(RFC["pkSm"])
    proof = bytes.fromhex(both["proof"])
    blinded, evaluated = of_hex(both["blinded_element"]), of_hex(both["evaluation_element"])
    assert oprf.verify(public, blinded, evaluated, proof)
    assert not oprf.verify(public, blinded[::-1], evaluated[::-1], proof)
    assert not oprf.verify(public, blinded, evaluated[::-1], proof)
    assert not oprf.verify(public, blinded[:1], evaluated[:1], proof)
    assert not oprf.verify(KEY.public, blinded, evaluated, proof)
    assert not oprf.verify(public, blinded, evaluated, bytes.fromhex(one["proof"]))
    assert not oprf.verify(public, of_hex(other["blinded_element"]), evaluated[:1], proof)


def test_a_scalar_written_as_itself_plus_the_order_is_refused() -> None:
    vector = RFC["vectors"][0]
    public, proof = bytes.fromhex(RFC["pkSm"]), bytes.fromhex(vector["proof"])
    s = int.from_bytes(proof[32:], "little") + oprf.ORDER
    altered = proof[:32] + s.to_bytes(32, "little")
    statement = of_hex(vector["blinded_element"]), of_hex(vector["evaluation_element"])
    assert not oprf.verify(public, *statement, altered)


@pytest.mark.parametrize("proof", [bytes(64), b"\xff" * 64, b"", bytes(63)])
def test_malformed_proofs_fail_without_another_error(proof: bytes) -> None:
    vector = RFC["vectors"][0]
    statement = of_hex(vector["blinded_element"]), of_hex(vector["evaluation_element"])
    assert not oprf.verify(bytes.fromhex(RFC["pkSm"]), *statement, proof)


@settings(max_examples=20)
@given(st.lists(st.integers(1, oprf.ORDER - 1), min_size=1, max_size=6))
def test_scalars_are_inverted_all_at_once(values: list[int]) -> None:
    inverses = [int.from_bytes(s, "little") for s in oprf._invert_all([scalar(v) for v in values])]
    assert inverses == [pow(v, -1, oprf.ORDER) for v in values]


# --- the promise


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, 30), min_size=1, max_size=6))
def test_the_bank_gets_exactly_the_keys_that_the_department_computes(customers: set[int]) -> None:
    ours = codes(*customers)
    b, d = bank(ours, size=8), department()
    held: RowKeys = b.finalize(d.blind_evaluate(b.blind()))
    owner: RowKeys = d
    np.testing.assert_array_equal(held.row_keys(ours), owner.row_keys(ours))
    stranger = codes(next(n for n in range(31) if n not in customers))
    with pytest.raises(ValueError, match="own customers only"):
        held.row_keys(stranger)


def test_requests_and_proofs_span_blocks_and_run_on_any_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oprf, "BLOCK", 4)
    ours = codes(*range(7))
    with ThreadPoolExecutor(2) as threads:
        b, d = bank(ours, size=10), department()
        evaluated = d.blind_evaluate(b.blind(threads), threads)
        assert len(evaluated.proofs) == 3
        keys = b.finalize(evaluated, threads).row_keys(ours)
    np.testing.assert_array_equal(keys, d.row_keys(ours))


def test_row_keys_are_the_same_from_a_process_pool() -> None:
    d, ours = department(), codes(*range(5))
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        np.testing.assert_array_equal(d.row_keys(ours, processes), d.row_keys(ours))


def test_the_request_has_the_same_size_whatever_the_number_of_customers() -> None:
    assert len(bank(codes(1)).blind().elements) == len(bank(codes(*range(12))).blind().elements)


def test_the_request_depends_on_the_set_and_not_on_its_order_or_repeats() -> None:
    request = bank(codes(3, 1, 2)).blind().elements.tobytes()
    assert bank(codes(2, 2, 3, 1)).blind().elements.tobytes() == request
    assert bank(codes(1, 2, 4)).blind().elements.tobytes() != request


def test_no_element_of_two_requests_is_equal_when_one_customer_changes() -> None:
    rows = [set(map(bytes, bank(codes(*c)).blind().elements)) for c in ((1, 2, 3), (1, 2, 4))]
    assert not rows[0] & rows[1]
    other_job = set(map(bytes, bank(codes(1, 2, 3), job="other").blind().elements))
    assert not rows[0] & other_job


def test_padding_is_not_at_the_end() -> None:
    # The positions of the padding over ten jobs: a fixed place would show all ten alike.
    places = set()
    for job in range(10):
        b = bank(codes(1, 2, 3), size=6, job=str(job))
        places.add(tuple(data.startswith(oprf.PAD) for data in b._inputs))
    assert len(places) > 3


def test_keys_differ_by_bank_snapshot_and_seed() -> None:
    keys = [
        key_for(bytes(32), "bank_a", digest("snapshot")),
        key_for(bytes(32), "bank_b", digest("snapshot")),
        key_for(bytes(32), "bank_a", digest("another")),
        key_for(bytes([1]) * 32, "bank_a", digest("snapshot")),
    ]
    assert len({key.public for key in keys}) == 4
    one = codes(1)
    rows = {Department(k, 1, randomness("d")).row_keys(one).tobytes() for k in keys}
    assert len(rows) == 4


# --- refusals


def test_the_maximum_counts_over_all_requests_and_a_repeat_is_free() -> None:
    first, second = bank(codes(1, 2), size=8), bank(codes(3), size=8)
    d = department(maximum=12)
    answer = d.blind_evaluate(first.blind())
    repeated = d.blind_evaluate(first.blind())
    assert repeated.elements.tobytes() == answer.elements.tobytes()
    assert repeated.proofs.tobytes() == answer.proofs.tobytes()
    with pytest.raises(ProtocolError, match="8 row keys asked, 4 left of 12"):
        d.blind_evaluate(second.blind())
    assert sum(d.answered.values()) == 8
    restarted = Department(KEY, 12, randomness("department"), d.answered)
    with pytest.raises(ProtocolError, match="4 left"):
        restarted.blind_evaluate(second.blind())


TOP_BIT = oprf.blind(b"1", scalar(8))[:31] + bytes([oprf.blind(b"1", scalar(8))[31] | 0x80])


@pytest.mark.parametrize("point", [bytes(32), b"\xff" * 32, bytes(31) + b"\x80", TOP_BIT])
def test_an_invalid_point_or_the_identity_is_refused_and_nothing_is_counted(point: bytes) -> None:
    elements = points(3).copy()
    elements[1] = np.frombuffer(point, np.uint8)
    d = department()
    with pytest.raises(ProtocolError, match="not a point"):
        d.blind_evaluate(BlindedBatch(elements))
    assert not d.answered
    with pytest.raises(ProtocolError, match="not a point"):
        Bank(point, codes(1), 4, randomness("bank"), "tax")


def spoil(rows: NDArray[np.uint8], at: int, with_row: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = rows.copy()
    out[at] = with_row
    return out


@pytest.mark.parametrize(
    "change",
    [
        lambda e: replace(e, elements=spoil(e.elements, 0, e.elements[1])),
        lambda e: replace(e, elements=spoil(e.elements, 2, np.zeros(32, np.uint8))),
        lambda e: replace(e, elements=spoil(e.elements, 2, np.full(32, 255, np.uint8))),
        lambda e: replace(e, elements=e.elements[::-1].copy()),
        lambda e: replace(e, elements=e.elements[:-1].copy()),
        lambda e: replace(e, proofs=e.proofs ^ np.uint8(1)),
        lambda e: replace(e, proofs=np.zeros_like(e.proofs)),
    ],
)
def test_an_altered_answer_gives_the_bank_nothing(
    change: Callable[[EvaluatedBatch], EvaluatedBatch],
) -> None:
    b = bank(codes(1, 2, 3), size=4)
    evaluated = department().blind_evaluate(b.blind())
    with pytest.raises(ProtocolError):
        b.finalize(change(evaluated))
    assert len(b.finalize(evaluated).codes) == 3  # the true answer still opens


def test_messages_of_the_wrong_shape_do_not_exist() -> None:
    for shape in [(0, 32), (3, 31), (96,)]:
        with pytest.raises(ProtocolError, match="blinded elements"):
            BlindedBatch(np.zeros(shape, np.uint8))
    with pytest.raises(ProtocolError, match="dtype"):
        BlindedBatch(np.zeros((3, 32), np.int8))
    with pytest.raises(ProtocolError, match="3 elements, 2 proofs"):
        EvaluatedBatch(points(3), np.zeros((2, 64), np.uint8))


def test_the_bank_refuses_sets_that_do_not_fit_and_steps_out_of_order() -> None:
    with pytest.raises(ParameterError, match="3 customers do not fit an approved 2"):
        bank(codes(1, 2, 3), size=2)
    with pytest.raises(ParameterError):
        bank(codes())
    with pytest.raises(ValueError, match="padding"):
        bank(np.array([b"pad|0"]))
    with pytest.raises(ValueError, match="non-empty"):
        bank(np.array([b"", b"x"]))
    with pytest.raises(RuntimeError, match="after blind"):
        bank(codes(1)).finalize(department().blind_evaluate(bank(codes(1)).blind()))


def test_no_secret_is_in_a_repr() -> None:
    b = bank(codes(123456))
    held = b.finalize(department().blind_evaluate(b.blind()))
    shown = repr([KEY, b, b.blind(), held, department()])
    assert str(KEY.secret) not in shown
    assert KEY.secret.hex() not in shown
    assert "123456" not in shown


# --- row keys


def test_keys_of_a_job_and_tags_are_independent_of_each_other() -> None:
    rows = department().row_keys(codes(*range(20)))
    seen = [rows, keys_of_job(rows, b"1"), keys_of_job(rows, b"2"), tags(rows)]
    assert len({row.tobytes() for keys in seen for row in keys}) == 80
    np.testing.assert_array_equal(keys_of_job(rows[3:5], b"1"), keys_of_job(rows, b"1")[3:5])
    with pytest.raises(ValueError, match="row keys have shape"):
        tags(rows[:, :8])


def test_row_words_depend_on_key_code_and_counter_and_not_on_the_position() -> None:
    rows, key = codes(*range(500)), bytes(16)
    words = row_words(key, rows)
    np.testing.assert_array_equal(row_words(key, rows[::-1])[::-1], words)
    np.testing.assert_array_equal(row_words(key, rows.astype("S24")), words)
    assert len({*words.tolist(), *row_words(key, rows, 1).tolist()}) == 1000
    assert not np.any(row_words(bytes([1]) * 16, rows) == words)
    assert len(row_words(key, rows[:0])) == 0
    with pytest.raises(ValueError, match="at most 24"):
        row_words(key, rows.astype("S25"))
