"""The set OPRF against a second implementation (vectors/make_set_oprf.py)."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.row_key_books import Attempt, MemoryAttemptBook, MemoryReplyBook
from protocols.set_oprf import Bank, Department
from protocols.streams import digest

VECTORS = Path(__file__).parent / "vectors"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "set_oprf.json").read_text())


def sha256_of(array: NDArray[np.generic]) -> str:
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def test_every_message_and_key_is_that_of_the_second_implementation() -> None:
    snapshot = digest("snapshot")
    attempt = Attempt("bank_a", "tax", snapshot, EXPECTED["m"], EXPECTED["attempt"])
    registry = np.array([code.encode() for code in EXPECTED["registry"]])
    customers = np.array([code.encode() for code in EXPECTED["customers"]])
    secrets = bytes.fromhex(EXPECTED["secret_d"]), bytes.fromhex(EXPECTED["secret_b"])
    department = Department(attempt, attempt.m, registry, secrets[0], MemoryAttemptBook())
    bank = Bank(attempt, customers, registry, secrets[1], MemoryReplyBook())
    assert attempt.context().hex() == EXPECTED["context"]

    hello = department.hello()
    assert hello.nonce.hex() == EXPECTED["hello"]["nonce"]
    assert sha256_of(hello.points) == EXPECTED["hello"]["points"]
    assert hello.digest().hex() == EXPECTED["hello"]["digest"]

    reply = bank.reply(hello)
    got = {name: getattr(reply, name) for name in EXPECTED["reply"]}
    assert {
        name: value.hex() if isinstance(value, bytes) else sha256_of(value)
        for name, value in got.items()
    } == EXPECTED["reply"]

    keys = department.accept(reply)
    assert keys.session.hex() == EXPECTED["session"]
    by_code = zip(EXPECTED["registry"], keys.row_keys(registry), strict=True)
    assert {c: key.tobytes().hex() for c, key in by_code} == EXPECTED["department_keys"]
    held = bank.finalize()
    by_code = zip(held.codes.astype(str), held.keys, strict=True)
    assert {str(c): key.tobytes().hex() for c, key in by_code} == EXPECTED["bank_keys"]


def test_keys_of_the_vectors_agree_for_customers_and_not_for_others() -> None:
    own = set(EXPECTED["customers"])
    assert set(EXPECTED["bank_keys"]) == own
    for code, key in EXPECTED["department_keys"].items():
        assert (EXPECTED["bank_keys"].get(code) == key) == (code in own)


def test_the_script_still_writes_the_stored_vectors(tmp_path: Path) -> None:
    script = tmp_path / "make_set_oprf.py"
    script.write_bytes((VECTORS / "make_set_oprf.py").read_bytes())
    subprocess.run([sys.executable, script], check=True)
    assert json.loads((tmp_path / "set_oprf.json").read_text()) == EXPECTED
