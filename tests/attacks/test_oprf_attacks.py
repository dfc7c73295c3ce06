"""A department that marks rows of a bank's request, with the proof unchecked and checked."""

import numpy as np
import pytest
import rbcl

from protocols import oprf
from protocols.errors import ProtocolError
from protocols.oprf import Bank, BlindedBatch, Department, EvaluatedBatch, KeyPair, key_for
from protocols.streams import Randomness, digest

CODES = np.array([b"%018d" % i for i in range(12)])
KEY, MARK = (key_for(digest(seed), "bank_a", digest("snapshot")) for seed in ("tax", "mark"))
OURS = Randomness(digest("bank"), digest("job"), 0)
NONCE = (12345).to_bytes(32, "little")
THEIRS = Randomness(digest("tax"), digest("job"), 0)


class MarkingDepartment(Department):
    """Answers one place of the request under another key, with a proof made as well as it can."""

    def blind_evaluate(
        self, batch: BlindedBatch, executor: object = None, place: int = 3
    ) -> EvaluatedBatch:
        elements = [row.tobytes() for row in batch.elements]
        evaluated, proof = oprf.blind_evaluate(KEY, elements, NONCE)
        evaluated[place] = oprf.blind_evaluate(MARK, elements[place : place + 1], NONCE)[0][0]
        rows = np.frombuffer(b"".join(evaluated), np.uint8).reshape(-1, 32)
        return EvaluatedBatch(rows, np.frombuffer(proof, np.uint8).reshape(1, 64))


def request() -> tuple[Bank, EvaluatedBatch]:
    bank = Bank(KEY.public, CODES[:8], 8, OURS, "tax")
    return bank, MarkingDepartment(KEY, 8, THEIRS).blind_evaluate(bank.blind())


def test_without_the_proof_a_marked_row_gets_the_key_of_the_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whatever the bank does with that key later tells the department whose place it marked.
    bank, answer = request()
    monkeypatch.setattr(oprf, "verify", lambda *statement: True)
    held = bank.finalize(answer).row_keys(CODES[:8])
    honest = Department(KEY, 1, THEIRS).row_keys(CODES[:8])
    marked = Department(MARK, 1, THEIRS).row_keys(CODES)
    differs = np.flatnonzero(np.any(held != honest, axis=1))
    assert len(differs) == 1
    found = np.flatnonzero(np.all(marked == held[differs[0]], axis=1))
    assert found.tolist() == differs.tolist()


def test_with_the_proof_a_marked_row_stops_the_bank() -> None:
    bank, answer = request()
    with pytest.raises(ProtocolError, match="proof"):
        bank.finalize(answer)


def test_a_proof_under_another_key_than_the_certified_one_stops_the_bank() -> None:
    bank = Bank(KEY.public, CODES[:8], 8, OURS, "tax")
    answer = Department(KeyPair(MARK.secret, KEY.public), 8, THEIRS).blind_evaluate(bank.blind())
    with pytest.raises(ProtocolError, match="proof"):
        bank.finalize(answer)


def test_two_errors_that_cancel_in_a_plain_sum_do_not_cancel_in_the_proof() -> None:
    # D + X and D' - X: an unweighted batch proof would hold.
    bank = Bank(KEY.public, CODES[:8], 8, OURS, "tax")
    honest = Department(KEY, 8, THEIRS).blind_evaluate(bank.blind())
    rows, x = honest.elements.copy(), MARK.public
    for place, shift in (
        (0, rbcl.crypto_core_ristretto255_add),
        (1, rbcl.crypto_core_ristretto255_sub),
    ):
        rows[place] = np.frombuffer(shift(rows[place].tobytes(), x), np.uint8)
    with pytest.raises(ProtocolError, match="proof"):
        bank.finalize(EvaluatedBatch(rows, honest.proofs))
