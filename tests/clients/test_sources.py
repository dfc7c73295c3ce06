"""A table enters as a whole or not at all, and what is wrong is named by row and column only."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import sources
from clients.sources import BadTable, OpenSnapshot, Snapshot, Source, snapshot
from federation.catalogue import FieldType
from federation.codes import code_for_row
from federation.errors import IntegrityError, Unavailable, UsageError
from federation.registry import Registry
from federation.tables import CategoryColumn, NumberColumn

CODES = code_for_row(1, np.arange(60)).astype(str)
REGISTRY = Registry(np.sort(CODES[:50].astype("S18")), date(2026, 10, 31), "济宁市")
CANARY = "KANARIENVOGEL"


def lines(*cells: Sequence[object], header: str = "code,paid,sector") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in cells)]) + "\n"


GOOD = lines(*((c, i * 1.5, f"甲{i % 3}") for i, c in enumerate(CODES[:40])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write(folder: Path, content: str | bytes, name: str = "paid.csv") -> Path:
    path = folder.parent / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def take(
    folder: Path, path: Path, **options: object
) -> tuple[Snapshot, dict[str, NumberColumn | CategoryColumn], list[str]]:
    """The snapshot, its features and its codes."""
    source = Source.model_validate({"file": str(path), "key": "code"} | options)
    with snapshot(source, REGISTRY, folder) as made:
        opened = OpenSnapshot(made.path, made.digest)
        features = {
            name: opened.column(name, kind)
            for name, kind in made.columns
            if kind in (FieldType.NUMBER, FieldType.CATEGORY)
        }
        return made, features, opened.codes(source.key).astype(str).tolist()


def problems(folder: Path, content: str | bytes, **options: object) -> BadTable:
    """What is said about a bad table; it leaves nothing behind."""
    path = write(folder, content)
    with pytest.raises(BadTable) as raised:
        take(folder, path, **options)
    assert list(folder.iterdir()) == []
    return raised.value


def test_numbers_categories_and_codes_come_back_as_written(folder: Path) -> None:
    made, features, codes = take(folder, write(folder, GOOD))
    assert codes == CODES[:40].tolist()
    paid, sector = features["paid"], features["sector"]
    assert isinstance(paid, NumberColumn)
    assert isinstance(sector, CategoryColumn)
    np.testing.assert_array_equal(paid.values, np.arange(40) * 1.5)
    assert sector.categories == ("甲0", "甲1", "甲2")
    np.testing.assert_array_equal(sector.codes, np.arange(40) % 3)
    assert (made.rows, made.unknown, made.notes) == (40, 0, ())


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (GOOD.encode("gb18030"), {}),
        (b"\xef\xbb\xbf" + GOOD.encode(), {}),
        (("\ufeff" + GOOD).encode("utf-16-le"), {}),
        (("\ufeff" + GOOD).encode("gb18030"), {}),
        (GOOD.encode("gbk"), {"encoding": "gbk"}),
        (GOOD.replace("\n", "\r\n"), {}),
        (GOOD.replace(",", ";"), {}),
        (GOOD.replace(",", "\t"), {}),
        (GOOD.replace(",", "|"), {"delimiter": "|"}),
        (GOOD.replace("甲", " 甲").replace("paid", ' "paid" '.strip()), {}),
        (GOOD + "\n\n,,\n \n", {}),
        (GOOD.rstrip("\n"), {}),
    ],
    ids=str,
)
def test_however_it_was_exported_the_same_table_comes_in(
    folder: Path, content: str | bytes, options: dict[str, object]
) -> None:
    _, wanted, wanted_codes = take(folder, write(folder, GOOD))
    _, features, codes = take(folder, write(folder, content), **options)
    assert codes == wanted_codes
    assert features["sector"].categories == wanted["sector"].categories  # type: ignore[union-attr]
    np.testing.assert_array_equal(
        features["paid"].values,  # type: ignore[union-attr]
        wanted["paid"].values,  # type: ignore[union-attr]
    )


def test_a_packed_file_and_a_parquet_file_give_the_same_table(folder: Path) -> None:
    _, wanted, _ = take(folder, write(folder, GOOD))
    packed = write(folder, gzip.compress(GOOD.encode()), "paid.csv.gz")
    rows = [line.split(",") for line in GOOD.splitlines()[1:]]
    columns = {
        "code": pa.array([r[0] for r in rows]),
        "paid": pa.array([float(r[1]) for r in rows]),
        "sector": pa.array([r[2] for r in rows]).dictionary_encode(),
    }
    parquet = folder.parent / "paid.parquet"
    pq.write_table(pa.table(columns), parquet)
    for path in (packed, parquet):
        _, features, _ = take(folder, path)
        np.testing.assert_array_equal(features["paid"].values, wanted["paid"].values)  # type: ignore[union-attr]
        assert features["sector"].categories == wanted["sector"].categories  # type: ignore[union-attr]


def test_quoted_cells_may_hold_delimiters_quotes_and_line_ends(folder: Path) -> None:
    content = f'code,"say ""x"""\n{CODES[0]},"a,b"\n{CODES[1]},"c""d"\n{CODES[2]},"e\nf"\n'
    _, features, _ = take(folder, write(folder, content), rename={'say "x"': "said"})
    assert features["said"].categories == ("a,b", 'c"d', "e\nf")  # type: ignore[union-attr]


def test_missing_cells_are_missing_in_numbers_and_categories(folder: Path) -> None:
    cells = ["", "NA", "-999", "7", " NULL "]
    content = lines(*((CODES[i], cell, f"x{i}" if i > 2 else cell) for i, cell in enumerate(cells)))
    _, features, _ = take(folder, write(folder, content), missing=["-999"], numbers=["paid"])
    np.testing.assert_array_equal(features["paid"].values, [np.nan] * 3 + [7, np.nan])  # type: ignore[union-attr]
    np.testing.assert_array_equal(features["sector"].codes, [-1, -1, -1, 0, 1])  # type: ignore[union-attr]


def test_enterprises_that_the_registry_does_not_list_are_counted_and_left_out(folder: Path) -> None:
    content = lines(*((c, i, "甲") for i, c in enumerate(CODES)))
    made, features, codes = take(folder, write(folder, content))
    assert (made.rows, made.unknown) == (50, 10)
    assert set(codes) == set(REGISTRY.codes.astype(str))
    assert len(features["paid"].values) == 50  # type: ignore[union-attr]


def test_codes_of_digits_stay_text(folder: Path) -> None:
    header = "code,phone,district,sector,amount,year"
    rows = [
        (c, f"1380000{i:09d}{i}", f"0{i:03d}", f"{i % 4}", f"{i}", "2026")
        for i, c in enumerate(CODES[:40])
    ]
    path = write(folder, lines(*rows, header=header))
    made, features, _ = take(folder, path, categories=["sector"])
    kinds = {name: kind.value for name, kind in made.columns}
    assert kinds == {
        "code": "key",
        "phone": "category",
        "district": "category",
        "sector": "category",
        "amount": "number",
        "year": "number",
    }
    assert features["district"].categories[7] == "0007"  # type: ignore[union-attr]
    assert sum("kept as text" in note for note in made.notes) == 2


def test_empty_columns_are_left_out_with_a_note(folder: Path) -> None:
    content = lines(*((c, i, "", "") for i, c in enumerate(CODES[:9])), header="code,paid,empty,")
    made, _, _ = take(folder, write(folder, content))
    assert [name for name, _ in made.columns] == ["code", "paid"]
    assert made.notes == ("column empty is empty: left out",)


def test_labels_are_zero_or_one_in_every_row(folder: Path) -> None:
    content = lines(*((c, i, i % 2) for i, c in enumerate(CODES[:9])), header="code,paid,bad")
    source = Source(file=str(write(folder, content)), key="code", label="bad")
    with snapshot(source, REGISTRY, folder) as made:
        labels = OpenSnapshot(made.path, made.digest).labels("bad")
    assert labels.tolist() == [i % 2 for i in range(9)]
    wrong = problems(folder, content.replace(",1\n", ",2\n").replace("4,0\n", "4,\n"), label="bad")
    assert {(p.row, p.what) for p in wrong.problems} == {
        *((row, "not 0 or 1") for row in (3, 5, 7, 9)),
        (6, "no label"),
    }


def test_every_problem_is_named_by_row_and_column(folder: Path) -> None:
    rows = [[c, str(i), "甲"] for i, c in enumerate(CODES[:30])]
    rows[1][0] = rows[0][0]  # twice
    rows[2][0] = rows[2][0][:17]
    rows[3][0] = ""
    rows[4][0] = rows[4][0].lower()
    rows[5][1] = "12x"
    rows[6][2] = "x" * 201
    found = problems(folder, lines(*rows, [CODES[40], "1"], ["", "", ""]))
    assert [(p.row, p.column) for p in found.problems] == [
        (3, "code"),
        (4, "code"),
        (5, "code"),
        (6, "code"),
        (7, "paid"),
        (8, "sector"),
        (32, ""),
    ]
    assert found.total == 7


def test_the_first_twenty_problems_are_listed_and_all_are_counted(folder: Path) -> None:
    rows = [(CODES[0], "x", "甲"), *((c, 1, "甲") for c in CODES[1:50])]
    found = problems(folder, lines(*rows * 3), numbers=["paid"])
    assert found.total == 103  # 3 cells, 100 codes that stand in an earlier row
    assert len(found.problems) == sources.SHOWN
    assert [p.row for p in found.problems[:3]] == [2, 52, 52]
    assert "... and 83 more" in str(found)


def test_numbers_with_a_few_words_among_them_are_asked_about(folder: Path) -> None:
    half = lines(*((c, "many" if i % 2 else i, "甲") for i, c in enumerate(CODES[:40])))
    found = problems(folder, half)
    assert "say --number paid or --category paid" in found.problems[0].what
    made, _, _ = take(folder, write(folder, half), categories=["paid"])
    assert dict(made.columns)["paid"] is FieldType.CATEGORY
    few = lines(*((c, "many" if i == 7 else i, "甲") for i, c in enumerate(CODES[:40])))
    assert [(p.row, p.column) for p in problems(folder, few).problems] == [(9, "paid")]


@pytest.mark.parametrize(
    "cell", ["1e400", "inf", "nan(7)", "0x1F", "1,5", "１２", "1 000", "--1", "."]
)
def test_what_is_nearly_a_number_is_none(folder: Path, cell: str) -> None:
    rows = [(c, i, "甲") for i, c in enumerate(CODES[:40])]
    rows[3] = (CODES[3], f'"{cell}"', "甲")  # type: ignore[assignment]
    assert [(p.row, p.column) for p in problems(folder, lines(*rows)).problems] == [(5, "paid")]


@pytest.mark.parametrize("cell", ["+1.5", "1.5", "15e-1", "1.50", " 1.5 ", "1.5E0"])
def test_a_number_may_be_written_in_many_ways(folder: Path, cell: str) -> None:
    rows = [(c, i, "甲") for i, c in enumerate(CODES[:40])]
    rows[3] = (CODES[3], cell, "甲")  # type: ignore[assignment]
    _, features, _ = take(folder, write(folder, lines(*rows)))
    assert features["paid"].values[3] == 1.5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD.replace("paid", "paid in"), "no spaces"),
        (GOOD.replace("paid", "sector"), "stands 2 times"),
        (GOOD.replace("paid", ""), "the column has no name"),
        (lines(*((c, i, "甲") for i, c in enumerate(CODES[50:]))), "none of the codes"),
        ("code,other\n" + "".join(f"{c},\n" for c in CODES[:5]), "no column beside the key"),
    ],
)
def test_a_header_or_table_that_serves_nobody_is_refused(
    folder: Path, content: str, said: str
) -> None:
    assert said in str(problems(folder, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD.split("\n", 1)[1], "no column code in its first line"),
        ("", "no column code in its first line"),
        ("code,paid,sector\n", "has no rows"),
        (b"PK\x03\x04 a workbook", "is a workbook"),
        (b"PAR1 but not really", "is damaged"),
        (GOOD.encode() + b"\xff\xff\xff", "is not in utf-8 or gb18030"),
        (GOOD + "\x00", "is not in utf-8 or gb18030"),
        (GOOD + f'{CODES[45]},"open', "odd number of quotes"),
    ],
)
def test_a_file_that_is_no_table_is_refused(folder: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        take(folder, write(folder, content))
    assert list(folder.iterdir()) == []


def test_no_message_holds_a_value_or_a_code(folder: Path) -> None:
    """The first line, a number column, a code, a short row, a label, a long text."""
    rows: list[Sequence[object]] = [(c, i, "甲", i % 2) for i, c in enumerate(CODES[:40])]
    header = "code,paid,sector,bad"
    bad_cells = [
        (CODES[1], CANARY, "甲", 1),
        (CANARY, 1, "甲", 1),
        (CODES[1], 1, CANARY * 20, 1),
        (CODES[1], 1, "甲", CANARY),
        (CODES[2], CANARY),
    ]
    texts = [
        str(problems(folder, lines(*rows[:1], *bad_cells, *rows[3:], header=header), label="bad"))
    ]
    for content in (
        lines(*rows, header=f"{CODES[50]},{CANARY},1,2"),
        lines(*rows, header=header) + f'{CODES[45]},"{CANARY}',
        lines(*rows, header=header) + f'{CODES[45]},"{CANARY}"{CANARY}"",1,1,1',
        lines(*rows, header=f"{CANARY} x,{CANARY},1,2"),
    ):
        with pytest.raises(UsageError) as raised:
            take(folder, write(folder, content))
        texts.append(str(raised.value))
    for text in texts:
        assert CANARY not in text
        assert not any(code in text for code in CODES)


# --- databases ------------------------------------------------------------------------------------


def database(folder: Path) -> str:
    path = folder.parent / "office.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE paid (uscc TEXT, amount, sector TEXT, flag BOOLEAN)")
    rows = [(c, i * 1.5 if i % 2 else i, f"甲{i % 3}", i % 2) for i, c in enumerate(CODES[:40])]
    connection.executemany("INSERT INTO paid VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return f"sqlite:///{path}"


def test_a_query_gives_the_same_table_as_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFICE_DB", database(folder))
    source = Source(
        url="env:OFFICE_DB", query="SELECT uscc AS code, amount, sector FROM paid", key="code"
    )
    with snapshot(source, REGISTRY, folder) as made:
        opened = OpenSnapshot(made.path, made.digest)
        amounts = opened.column("amount", FieldType.NUMBER)
    assert made.rows == 40
    np.testing.assert_array_equal(
        amounts.values,  # type: ignore[union-attr]
        [i * 1.5 if i % 2 else i for i in range(40)],
    )


@pytest.mark.parametrize(
    ("url", "query", "error", "said"),
    [
        ("{db}", "SELECT 'KANARIENVOGEL' FROM nowhere", UsageError, "the query failed"),
        ("{db}", "SELECT uscc FROM paid", UsageError, "no column code"),
        ("{db}", "DELETE FROM paid", UsageError, "the query failed|no column"),
        ("sqlite:////no/such/file.db", "SELECT 1", UsageError, "no SQLite file"),
        ("what is this", "SELECT 1", UsageError, "cannot be used"),
        (f"postgresql+psycopg://u:{CANARY}@/x?host=/no", "SELECT 1", Unavailable, "let us in"),
    ],
)
def test_a_query_that_fails_says_so_without_password_query_or_data(
    folder: Path, url: str, query: str, error: type[Exception], said: str
) -> None:
    source = Source(url=url.format(db=database(folder)), query=query, key="code")
    with pytest.raises(error, match=said) as raised, snapshot(source, REGISTRY, folder):
        pass
    assert CANARY not in str(raised.value)
    assert CANARY not in repr(source) or CANARY in query
    count = sqlite3.connect(folder.parent / "office.db").execute("SELECT count(*) FROM paid")
    assert count.fetchone() == (40,)
    count.connection.close()


# --- what is left ---------------------------------------------------------------------------------


def test_a_failure_in_the_middle_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "_file_digest", full)
    with pytest.raises(OSError, match="No space"):
        take(folder, write(folder, GOOD))
    assert list(folder.iterdir()) == []


def test_a_snapshot_is_private_and_a_changed_one_is_not_opened(folder: Path) -> None:
    source = Source(file=str(write(folder, GOOD)), key="code")
    with snapshot(source, REGISTRY, folder) as made:
        assert made.path.stat().st_mode & 0o777 == 0o600
        assert made.path.parent.stat().st_mode & 0o777 == 0o700
        content = bytearray(made.path.read_bytes())
        content[len(content) // 2] ^= 1
        made.path.write_bytes(content)
        with pytest.raises(IntegrityError, match="changed on disk"):
            OpenSnapshot(made.path, made.digest)


def test_a_table_longer_than_a_block_keeps_its_order_and_its_row_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 400)
    monkeypatch.setattr(sources, "BLOCK_ROWS", 7)
    _, features, codes = take(folder, write(folder, GOOD.replace("\n", "\n\n", 25)))
    assert codes == CODES[:40].tolist()
    np.testing.assert_array_equal(features["paid"].values, np.arange(40) * 1.5)  # type: ignore[union-attr]
    rows = GOOD.splitlines()
    rows[20:20] = ["", f"{CODES[45]},1", ""]
    rows[33] = rows[33].replace(",", ",z", 1)
    found = problems(folder, "\n".join(rows))
    assert [(p.row, p.column) for p in found.problems] == [(22, ""), (34, "paid")]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-(10**15), 10**15),
        ),
        min_size=40,
        max_size=40,
    )
)
def test_every_number_survives_exactly(
    tmp_path_factory: pytest.TempPathFactory, cells: list[float | int | None]
) -> None:
    folder = tmp_path_factory.mktemp("t") / "data"
    folder.mkdir()
    content = lines(
        *((c, "" if v is None else repr(v), "甲") for c, v in zip(CODES, cells, strict=False))
    )
    _, features, _ = take(folder, write(folder, content), numbers=["paid"])
    wanted = np.array([np.nan if v is None else float(v) for v in cells])
    np.testing.assert_array_equal(features["paid"].values, wanted)  # type: ignore[union-attr]
