"""GB 32100-2015 codes: the rule's vectors, every reason, and two validators that agree."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.codes import (
    ALPHABET,
    CodeFault,
    CreditCode,
    InvalidCode,
    code_for_row,
    codes_of,
    fault_of,
    faults_of,
)

VALID = "91330106Y110472903"
# The rule's vectors, as the data sets' descriptions list them: rows 0, 1, 2 and the last.
VECTORS = {
    1: {
        0: "91330106Y110472903",
        1: "91310115Y111264828",
        2: "91110105Y11205674P",
        999: "91370102Y10158108Y",
    },
    2: {
        0: "91330106Y21047294H",
        1: "91310115Y21126486N",
        2: "91110105Y212056786",
        29999: "91420106Y266681024",
    },
}


@pytest.mark.parametrize("dataset", [1, 2])
def test_codes_of_rows_are_those_of_the_rule(dataset: int) -> None:
    rows = np.array(list(VECTORS[dataset]))
    assert code_for_row(dataset, rows).astype(str).tolist() == list(VECTORS[dataset].values())


def test_codes_of_rows_are_distinct_and_valid() -> None:
    codes = np.concatenate([code_for_row(d, np.arange(5000)) for d in (0, 9)])
    assert len(np.unique(codes)) == 10_000
    assert not faults_of(codes).any()
    assert not any(fault_of(code.decode()) for code in codes[::97])


@pytest.mark.parametrize(("dataset", "row"), [(10, 0), (-1, 0), (1, -1), (1, 1_000_000)])
def test_rows_beyond_the_rule_are_refused(dataset: int, row: int) -> None:
    with pytest.raises(ValueError, match=r"digit|999,999"):
        code_for_row(dataset, np.array([row]))


def test_the_example_of_the_standard_is_valid() -> None:
    assert fault_of("91350100M000100Y43") is CodeFault.NONE
    assert CreditCode("91350100M000100Y43") == "91350100M000100Y43"


FAULTY = [
    ("", CodeFault.MISSING),
    (" " + VALID, CodeFault.SPACE),
    (VALID + "\t", CodeFault.SPACE),
    (VALID[:8] + "\u3000" + VALID[9:], CodeFault.SPACE),
    ("９" + VALID[1:], CodeFault.FULL_WIDTH),
    (VALID.replace("Y", "Ｙ"), CodeFault.FULL_WIDTH),
    (VALID[:-1], CodeFault.LENGTH),
    (VALID + "0", CodeFault.LENGTH),
    (VALID * 100, CodeFault.LENGTH),
    (VALID + "\x00", CodeFault.LENGTH),
    (VALID.lower(), CodeFault.LOWER_CASE),
    *((VALID[:10] + c + VALID[11:], CodeFault.LOOK_ALIKE) for c in "IOSVZ"),
    (VALID[:10] + "-" + VALID[11:], CodeFault.CHARACTER),
    (VALID[:10] + "\x00" + VALID[11:], CodeFault.CHARACTER),
    (VALID[:10] + "٣" + VALID[11:], CodeFault.CHARACTER),  # a digit, says str.isdigit
    (VALID[:10] + "码" + VALID[11:], CodeFault.CHARACTER),
    (VALID[:10] + "😀" + VALID[11:], CodeFault.CHARACTER),
    (VALID[:4] + "A" + VALID[5:], CodeFault.REGION),
    (VALID[:16] + "1" + VALID[17:], CodeFault.SUBJECT_CHECK),
    (VALID[:17] + "4", CodeFault.CHECK),
]


@pytest.mark.parametrize(("text", "fault"), FAULTY)
def test_a_faulty_code_is_refused_with_its_reason(text: str, fault: CodeFault) -> None:
    assert fault_of(text) is fault
    assert faults_of([VALID, text, VALID]).tolist() == [0, fault, 0]
    with pytest.raises(InvalidCode) as refusal:
        CreditCode(text)
    assert refusal.value.fault is fault
    assert not text or text not in str(refusal.value)


def test_every_fault_has_a_reason_and_an_example() -> None:
    assert {fault for _, fault in FAULTY} == set(CodeFault) - {CodeFault.NONE}
    assert len({fault.reason for fault in CodeFault}) == len(CodeFault)


@pytest.mark.parametrize("position", range(18))
def test_any_single_wrong_character_is_found(position: int) -> None:
    wrong = [c for c in ALPHABET if c != VALID[position]]
    assert faults_of([VALID[:position] + c + VALID[position + 1 :] for c in wrong]).all()


@settings(max_examples=200)
@given(
    st.integers(0, 29_999).map(lambda i: code_for_row(3, np.array([i]))[0].decode()),
    st.integers(0, 17),
    st.integers(0, 3),
    st.text(max_size=3),
)
def test_the_two_validators_agree(code: str, at: int, cut: int, insert: str) -> None:
    text = code[:at] + insert + code[at + cut :]
    assert faults_of([text]).tolist() == [fault_of(text)]


@given(st.text(alphabet=ALPHABET + "iIz -　", min_size=17, max_size=19))
def test_the_two_validators_agree_on_noise(text: str) -> None:
    assert faults_of([text]).tolist() == [fault_of(text)]


def test_all_kinds_of_columns_give_the_same_faults() -> None:
    texts = [VALID, VALID.lower(), VALID[:5], VALID[:17] + "4", "", VALID]
    expected = [fault_of(text) for text in texts]
    columns: list[Any] = [
        texts,
        np.array(texts),
        np.array(texts).astype("S18"),
        np.array(texts, object),
        pd.Series(texts),
        pd.Series(texts, dtype=object),
        pd.Series(texts, dtype="string"),
        pd.Series(texts, dtype="category").astype(str),
    ]
    for column in columns:
        assert faults_of(column).tolist() == expected


def test_missing_cells_are_named_as_missing_and_numbers_are_refused() -> None:
    column = pd.Series([VALID, None, float("nan"), pd.NA], dtype=object)
    assert faults_of(column).tolist() == [0, 1, 1, 1]
    columns: list[Any] = [pd.Series([1.5, 2.5]), pd.Series([91], dtype=object)]
    for numbers in columns:
        with pytest.raises(TypeError, match="not all text"):
            faults_of(numbers)
    assert faults_of([]).shape == (0,)


def test_a_long_column_is_worked_on_in_blocks() -> None:
    codes = code_for_row(4, np.arange(70_000)).astype("U18")
    codes[66_000] = "x"
    codes[0] = ""
    assert np.flatnonzero(faults_of(codes)).tolist() == [0, 66_000]
    assert np.flatnonzero(faults_of(pd.Series(codes))).tolist() == [0, 66_000]


def test_codes_of_gives_the_codes_or_the_first_reason() -> None:
    texts = [VALID, "91350100M000100Y43"]
    for column in (texts, pd.Series(texts), np.array(texts), np.array(texts, "S18")):
        codes = codes_of(column)
        assert codes.dtype == "S18"
        assert codes.astype(str).tolist() == texts
    with pytest.raises(InvalidCode, match="check character 18"):
        codes_of([VALID, VALID[:17] + "4", ""])
