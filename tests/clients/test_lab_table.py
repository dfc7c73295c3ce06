"""Any table is split as its specification says, or the mistake is named without a cell of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clients.lab_table import (
    LARGEST,
    Split,
    column_of,
    field_name,
    parse_spec,
    read_hold_out,
    read_spec,
    read_table,
    split,
)
from federation.codes import code_for_row
from federation.errors import UsageError
from federation.tables import CategoryColumn, NumberColumn

ROWS = 40


def spec(**changes: Any) -> dict[str, Any]:
    """Two banks that share their rows, two departments."""
    plain: dict[str, Any] = {
        "target": "bad",
        "positive": 1,
        "parties": [
            {"id": "bank_a", "role": "bank", "rows": {"row_number_mod": 4, "in": [0, 1, 2]}},
            {"id": "bank_b", "role": "bank", "rows": {"row_number_mod": 4, "in": [3]}},
            {"id": "tax", "name": "Tax bureau", "role": "department", "columns": ["vat", "kind"]},
            {
                "id": "court",
                "role": "department",
                "rows": {"row_number_mod": 2, "in": [0]},
                "columns": ["cases"],
            },
        ],
    }
    for party in plain["parties"][:2]:
        party["columns"] = ["turnover"]
    return plain | changes


def table(**changes: Any) -> pd.DataFrame:
    """As read from a CSV file: text."""
    number = np.arange(ROWS)
    columns = {
        "turnover": [str(i * 10) for i in number],
        "vat": ["" if i % 5 == 0 else str(i / 2) for i in number],
        "kind": ["abc"[i % 3] for i in number],
        "cases": [str(i % 4) for i in number],
        "bad": [str(int(i % 7 < 2)) for i in number],
    }
    return pd.DataFrame(columns | changes)


def made(
    plain: dict[str, Any] | None = None, frame: pd.DataFrame | None = None, **options: Any
) -> Split:
    return split(table() if frame is None else frame, parse_spec(plain or spec()), **options)


def numbers(column: object) -> np.ndarray[Any, Any]:
    assert isinstance(column, NumberColumn)
    return column.values


def test_the_cover_is_all_rows_in_the_order_of_their_codes() -> None:
    found = made()
    codes = code_for_row(0, np.arange(ROWS))
    np.testing.assert_array_equal(found.registry.codes, np.sort(codes))
    np.testing.assert_array_equal(found.bank_data.codes, codes[found.rows])
    assert found.bank_data.cover_rows == found.bank_data.customers == ROWS
    np.testing.assert_array_equal(numbers(found.bank_data.columns[0]), found.rows * 10)
    vat = numbers(found.departments["tax"].columns[0])
    np.testing.assert_array_equal(vat, np.where(found.rows % 5 == 0, np.nan, found.rows / 2))
    labels = (found.rows % 7 < 2).astype(np.uint8)
    np.testing.assert_array_equal(found.bank_data.labels, labels)


def test_a_department_knows_nothing_of_rows_that_it_has_no_record_of() -> None:
    cases = numbers(made().departments["court"].columns[0])
    rows = made().rows
    np.testing.assert_array_equal(np.isnan(cases), rows % 2 == 1)


def test_with_a_named_bank_its_rows_are_the_customers_and_all_rows_the_cover() -> None:
    found = made(bank="bank_b")
    assert found.bank == "bank_b"
    assert set(found.rows) == set(range(3, ROWS, 4))
    assert found.bank_data.cover_rows == ROWS
    np.testing.assert_array_equal(
        found.registry.codes[found.bank_data.positions], found.bank_data.codes
    )
    assert (np.diff(found.bank_data.positions) > 0).all()
    assert found.departments["tax"].rows == ROWS


def test_the_hold_out_is_stratified_and_repeats_with_its_seed() -> None:
    first, again, other = made().bank_data, made().bank_data, made(seed=1).bank_data
    assert first.test is not None
    assert again.test is not None
    assert other.test is not None
    np.testing.assert_array_equal(first.test, again.test)
    assert (first.test != other.test).any()
    assert first.test.sum() == 12
    assert abs(first.labels[first.test].mean() - first.labels.mean()) < 0.05


def test_hold_out_rows_are_the_tables_and_those_of_other_banks_are_ignored() -> None:
    wanted = [0, 3, 7, 8, 14, 27]
    found = made(bank="bank_b", hold_out=wanted)
    assert found.bank_data.test is not None
    assert sorted(found.rows[found.bank_data.test]) == [3, 7, 27]
    everybody = made(hold_out=wanted)
    assert everybody.bank_data.test is not None
    assert sorted(everybody.rows[everybody.bank_data.test]) == wanted


def test_parties_may_be_listed_by_the_owners_of_columns_alone() -> None:
    plain = spec(
        parties=[{"id": "bank_a", "label": True}, {"id": "tax", "role": "department"}],
        columns=[
            {"name": "turnover", "owner": ["bank_a"]},
            {"name": "vat", "owner": "tax"},
            {"name": "bad", "type": "target", "owner": "bank_a"},
        ],
    )
    found = made(plain)
    assert [column.name for column in found.bank_data.columns] == ["turnover"]
    assert [column.name for column in found.departments["tax"].columns] == ["vat"]
    assert found.notes == ("2 columns have no owner here and are left out: kind, cases",)


def test_names_that_signed_objects_do_not_allow_are_made_fit() -> None:
    plain = spec()
    plain["parties"][2] |= {"id": "Tax Bureau 税务", "columns": ["VAT paid", "kind"]}
    frame = table().rename(columns={"vat": "VAT paid"})
    found = made(plain, frame)
    assert list(found.departments) == ["tax_bureau", "court"]
    assert found.departments["tax_bureau"].columns[0].name == "VAT_paid"
    assert found.names["tax_bureau"] == "Tax bureau"
    assert field_name("企业 年龄") == "企业_年龄"


def test_parties_without_columns_are_noted() -> None:
    plain = spec()
    plain["parties"][0]["columns"] = []
    plain["parties"][3]["columns"] = []
    found = made(plain)
    assert found.bank_data.columns == []
    assert list(found.departments) == ["tax"]
    assert found.notes[0].startswith("bank_a has no columns")
    assert found.notes[1] == "court has no columns and is left out"


# --- cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "NA", "nan", "?", "null", "N/A", "-"])
def test_marks_among_numbers_mean_missing(mark: str) -> None:
    column = column_of("x", pd.Series(["1", mark, "2.5"]), None, frozenset({""}))
    np.testing.assert_array_equal(numbers(column), [1, np.nan, 2.5])


def test_marks_among_texts_are_categories_unless_declared() -> None:
    cells = pd.Series(["a", "?", "b", ""])
    plain = column_of("x", cells, None, frozenset({""}))
    declared = column_of("x", cells, None, frozenset({"", "?"}))
    assert isinstance(plain, CategoryColumn)
    assert isinstance(declared, CategoryColumn)
    assert plain.categories == ("?", "a", "b")
    assert list(plain.codes) == [1, 0, 2, -1]
    assert declared.categories == ("a", "b")


def test_declared_numbers_that_mean_missing_are_missing() -> None:
    found = parse_spec(spec(missing_value=[-999, "?"])).missing
    for cells in (pd.Series(["-999", "?", "-999.0", "3"]), pd.Series([-999, -999.0, -999, 3])):
        column = column_of("x", cells, "real", found)
        np.testing.assert_array_equal(numbers(column), [np.nan, np.nan, np.nan, 3])


def test_categories_of_numbers_stay_text_where_they_are_declared_so() -> None:
    for cells in (pd.Series(["10", "9", "NA"]), pd.Series([10.0, 9.0, None])):
        column = column_of("x", cells, "categorical", frozenset({""}))
        assert isinstance(column, CategoryColumn)
        assert column.categories == ("10", "9")
        assert list(column.codes) == [0, 1, -1]


def test_extreme_and_infinite_numbers_keep_their_order() -> None:
    column = column_of("x", pd.Series(["-inf", "-1e308", "0", "1e400"]), None, frozenset({""}))
    assert list(numbers(column)) == [-LARGEST, -LARGEST, 0, LARGEST]


def test_columns_of_parquet_keep_their_meaning() -> None:
    none = frozenset({""})
    flags = column_of("x", pd.Series([True, False]), None, none)
    days = column_of("x", pd.Series(pd.to_datetime(["2026-01-02", None])), None, none)
    empty = column_of("x", pd.Series([None, None], dtype=object), None, none)
    level = column_of("x", pd.Series(["b", "a"], dtype="category"), "ordinal", none)
    assert list(numbers(flags)) == [1, 0]
    assert np.isnan(numbers(empty)).all()
    assert np.isnan(numbers(days)[1])
    assert isinstance(level, CategoryColumn)
    assert level.categories == ("a", "b")


def test_a_word_in_a_column_of_numbers_is_named_by_row_and_not_shown() -> None:
    frame = table(vat=["1"] * 7 + ["secret"] + ["2"] * (ROWS - 8))
    plain = spec(columns=[{"name": "vat", "type": "integer"}])
    with pytest.raises(UsageError, match="column vat, row 7: declared integer") as caught:
        made(plain, frame)
    assert "secret" not in str(caught.value)


# --- files ----------------------------------------------------------------------------------------


def test_all_forms_of_one_table_are_read_alike(tmp_path: Path) -> None:
    frame = table()
    frame["kind"] = ["税务" if i % 2 else "b" for i in range(ROWS)]
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.csv", index=False, sep=";", encoding="gb18030")
    frame.to_csv(tmp_path / "c.csv", index=False, encoding="utf-8-sig", sep="\t")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    frame.to_parquet(tmp_path / "e.parquet", index=False)
    for name in ("a.csv", "b.csv", "c.csv", "d.csv.gz", "e.parquet"):
        pd.testing.assert_frame_equal(
            read_table(tmp_path / name).astype(object), frame.astype(object)
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"x,y\n", "a.csv has no rows"),
        ("a.csv", b"x,x\n1,2\n", "two columns named x"),
        ("a.csv", b"x,y\n1,2\n1,2,3\n", "not a readable table, line 3"),
        ("a.csv", b"x,y\n\xff\xff,2\n", "neither UTF-8 nor GB18030"),
        ("a.parquet", b"PAR1 and no more", "not a readable table"),
        ("a.csv.gz", b"\x1f\x8b and no more", "a.csv.gz"),
    ],
)
def test_files_that_are_no_tables_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_table(tmp_path / name)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(UsageError, match="no such file"):
        read_spec(tmp_path / "a.json")
    with pytest.raises(UsageError, match="no such file"):
        read_hold_out(tmp_path / "a.txt")


def test_more_rows_than_there_are_codes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.lab_table.ROWS_MAX", 3)
    (tmp_path / "a.csv").write_text("x\n1\n2\n3\n4\n")
    with pytest.raises(UsageError, match="has 4 rows; the lab takes at most 3"):
        read_table(tmp_path / "a.csv")


def test_the_hold_out_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text("3\n\n 5 \r\n0\n")
    assert read_hold_out(path) == [3, 5, 0]
    path.write_text("3\nx\n")
    with pytest.raises(UsageError, match="line 2: not a row number"):
        read_hold_out(path)


# --- mistakes -------------------------------------------------------------------------------------


def _with_party(at: int, **changes: Any) -> dict[str, Any]:
    plain = spec()
    plain["parties"][at] |= changes
    return plain


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([], "one JSON object"),
        ({"parties": []}, "field required"),
        (spec(parties=[]), "parties"),
        (spec(parties=spec()["parties"][2:]), "role bank"),
        (_with_party(3, columns=["vat"]), "column vat has two owners: tax and court"),
        (_with_party(3, columns=["turnover"]), "turnover has two owners: bank_a and court"),
        (_with_party(3, columns=["cases", "cases"]), "court lists column cases twice"),
        (_with_party(3, columns=["bad"]), "bad is the target and cannot be court's feature"),
        (_with_party(3, id="tax"), "party tax is described twice"),
        (_with_party(3, role="regulator"), "parties.3.role"),
        (_with_party(3, rows={"row_number_mod": 0, "in": [1]}), "parties.3.rows"),
        (spec(columns=[{"name": "vat", "owner": "court"}]), "listed by tax, but its owner"),
        (spec(columns=[{"name": "vat", "type": "target"}]), "the target is bad, but vat"),
        (spec(columns=[{"name": "vat", "type": "float"}]), "columns.0.type"),
        (spec(code_rule={"dataset_number": 12}), "dataset_number"),
    ],
)
def test_mistakes_of_the_specification_are_named(plain: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_spec(plain)


def test_a_specification_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"target": \n oops}')
    with pytest.raises(UsageError, match=r"spec.json is not JSON \(line 2\)"):
        read_spec(path)
    path.write_text(json.dumps(spec()))
    assert read_spec(path).target == "bad"


@pytest.mark.parametrize(
    ("plain", "frame", "options", "message"),
    [
        (spec(target="y"), table(), {}, "no column y, the target"),
        (_with_party(2, columns=["rent"]), table(), {}, "no column rent, which tax lists"),
        (spec(), table(bad=["0"] * ROWS), {}, "has one value only"),
        (spec(), table(bad=[str(i % 3) for i in range(ROWS)]), {}, "3 different values"),
        (
            spec(),
            table(bad=["", "", *["0", "1"] * 19]),
            {},
            "missing in 2 rows, the first is row 0",
        ),
        (spec(positive="yes"), table(), {}, "no row of target bad has the value"),
        (spec(positive=None), table(bad=["good", "bad"] * 20), {}, "is not 0 and 1"),
        (spec(), table(bad=["1", *["0"] * 39]), {}, "1 bad of 40 customers"),
        (spec(), table(), {"bank": "tax"}, "no bank tax; the specification has bank_a, bank_b"),
        (
            spec(),
            table(),
            {"hold_out": [ROWS]},
            "hold-out row 40 is beyond the table's last row 39",
        ),
        (spec(), table(), {"hold_out": [2, 3, 4]}, "all 3 hold-out rows are good"),
        (spec(), table(), {"hold_out": [0, 1]}, "all 2 hold-out rows are bad"),
        (spec(), table(), {"hold_out": list(range(ROWS))}, "no training rows are left"),
        (spec(), table(), {"hold_out": []}, "no hold-out rows are left"),
        (spec(parties=spec()["parties"][:2]), table(), {}, "nothing to join"),
        (_with_party(3, id="TAX"), table(), {}, "both be called tax"),
    ],
)
def test_mistakes_of_the_table_are_named(
    plain: dict[str, Any], frame: pd.DataFrame, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        made(plain, frame, **options)
    assert caught.value.exit_code == 2


def test_targets_in_words_or_flags_are_understood() -> None:
    flags = [i % 3 == 0 for i in range(ROWS)]
    words = table(bad=["Bad" if flag else "good" for flag in flags])
    found = made(spec(positive="Bad"), words)
    np.testing.assert_array_equal(found.bank_data.labels, found.rows % 3 == 0)
    found = made(spec(positive=True), table(bad=flags))
    np.testing.assert_array_equal(found.bank_data.labels, found.rows % 3 == 0)
    found = made(spec(positive=0), table())
    np.testing.assert_array_equal(found.bank_data.labels, found.rows % 7 >= 2)
