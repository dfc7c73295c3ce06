"""Row keys and sealed columns against a second implementation (vectors/make_rows.py)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocols.oprf import Department as KeyOwner
from protocols.oprf import KeyPair
from protocols.row_keys import keys_of_job, row_words, tags
from protocols.sealed import Department, Step, ValueRange, open_sum
from protocols.streams import Randomness, digest

VECTORS = Path(__file__).parent / "vectors"
RFC = json.loads((VECTORS / "rfc9497_voprf.json").read_text())
ROWS = json.loads((VECTORS / "rows.json").read_text())
JOB = digest("job")
STEP = Step(
    job=JOB,
    attempt=1,
    bank="bank_a",
    departments=("court", "tax", "utilities"),
    cover=digest("cover"),
    stage="openings",
    step=2,
    column=3,
    values=ValueRange(-16, 15),
)


def bytes_of(rows: list[str]) -> NDArray[np.uint8]:
    return np.array([list(bytes.fromhex(row)) for row in rows], np.uint8)


def test_row_keys_follow_from_the_outputs_of_the_rfc() -> None:
    key = KeyPair(bytes.fromhex(RFC["skSm"]), bytes.fromhex(RFC["pkSm"]))
    owner = KeyOwner(key, 1, Randomness(bytes(32), JOB, 1))
    # The RFC's first input is a zero byte, which a numpy string cannot hold at its end.
    inputs = np.array([bytes.fromhex(RFC["vectors"][1]["input"][0])])
    np.testing.assert_array_equal(owner.row_keys(inputs), bytes_of(ROWS["row_keys"][1:]))


def test_job_keys_tags_and_row_words_are_those_of_the_second_implementation() -> None:
    keys = bytes_of(ROWS["row_keys"])
    np.testing.assert_array_equal(keys_of_job(keys, JOB), bytes_of(ROWS["job_keys"]))
    np.testing.assert_array_equal(tags(keys), bytes_of(ROWS["tags"]))
    codes = np.array([b"91330106Y110472903", b"91310115Y111264828"])
    assert row_words(bytes(16), codes, 7).tolist() == ROWS["row_words"]


def test_sealed_columns_are_those_of_the_second_implementation() -> None:
    keys, columns = bytes_of(ROWS["job_keys"]), []
    for name, expected in ROWS["columns"].items():
        randomness = Randomness(digest("seed", name), JOB, 1)
        seeds = {p: digest(*sorted((name, p))) for p in STEP.departments if p != name}
        column = Department(name, keys, randomness, seeds).seal(STEP, np.array(expected["values"]))
        assert column.nonce.tobytes().hex() == expected["nonce"]
        assert column.values.tolist() == expected["sealed"]
        columns.append(column)
    opened = open_sum(STEP, columns, dict.fromkeys(STEP.departments, keys), np.arange(2))
    assert opened.values.tolist() == ROWS["opened"]


def test_the_script_still_writes_the_stored_vectors(tmp_path: Path) -> None:
    for name in ("make_rows.py", "rfc9497_voprf.json"):
        (tmp_path / name).write_bytes((VECTORS / name).read_bytes())
    subprocess.run([sys.executable, tmp_path / "make_rows.py"], check=True)
    assert json.loads((tmp_path / "rows.json").read_text()) == ROWS
