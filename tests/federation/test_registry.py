"""Registry snapshots load as they were saved or not at all; decoys are sticky."""

import zlib
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from federation.codes import Codes, code_for_row
from federation.errors import IntegrityError, UsageError
from federation.objects import CoverKind
from federation.registry import (
    Cover,
    Decoys,
    Registry,
    customers_cover,
    decoy_cover,
    extend_decoys,
    load_registry,
    no_decoys,
    read_registry,
    registry_cover,
    save_registry,
)

DAY, KEY = date(2026, 7, 1), bytes(16)
CODES = np.sort(code_for_row(1, np.arange(2000)))
REGISTRY = Registry(CODES, DAY, "Anyang")
SHUFFLED = np.random.default_rng(1).permutation(CODES)


# --- snapshots


def test_a_saved_registry_loads_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    save_registry(REGISTRY, path)
    loaded = load_registry(path)
    assert loaded.digest == REGISTRY.digest
    assert (loaded.as_of, loaded.region) == (DAY, "Anyang")
    np.testing.assert_array_equal(loaded.codes, CODES)
    assert path.stat().st_size < CODES.nbytes / 2
    assert list(tmp_path.iterdir()) == [path]
    assert loaded.described().digest == REGISTRY.digest.hex()
    assert loaded.described().rows == 2000


def test_the_digest_names_codes_day_and_region() -> None:
    others = [
        Registry(CODES[1:], DAY, "Anyang"),
        Registry(CODES, date(2026, 7, 2), "Anyang"),
        Registry(CODES, DAY, "Anyan"),
    ]
    assert len({r.digest for r in [REGISTRY, *others]}) == 4
    assert Registry(CODES.copy(), DAY, "Anyang").digest == REGISTRY.digest


@pytest.mark.parametrize("at", [0, 20, 60, 100, 150, 300, -1])
def test_a_file_with_one_bit_changed_does_not_load(tmp_path: Path, at: int) -> None:
    path = tmp_path / "registry"
    save_registry(REGISTRY, path)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError):
        load_registry(path)


def test_a_cut_or_lengthened_or_inflated_file_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    save_registry(REGISTRY, path)
    raw = path.read_bytes()
    header, body = raw[: raw.index(b"}") + 2], raw[raw.index(b"}") + 2 :]
    for bad in [
        raw[:-1],
        raw[:30],
        b"",
        raw + b"x",
        header + zlib.compress(zlib.decompress(body) + bytes(18 * 1000)),
        header.replace(b'"rows": 2000', b'"rows": 2000000000') + body,
        header.replace(b'"rows": 2000', b'"rows": "many"') + body,
        header.replace(b'"as_of"', b'"of"') + body,
    ]:
        path.write_bytes(bad)
        with pytest.raises(IntegrityError, match="damaged"):
            load_registry(path)


def test_codes_out_of_order_or_twice_or_faulty_are_no_registry() -> None:
    invalid = CODES.copy()
    invalid[5] = invalid[5][:17] + (b"0" if invalid[5][17:] != b"0" else b"1")
    for codes in [CODES[::-1], CODES[[0, 0, 1]], np.sort(invalid), CODES[:0], CODES.astype("S20")]:
        with pytest.raises(IntegrityError):
            Registry(codes, DAY, "Anyang")


def text(codes: Codes) -> list[str]:
    lines: list[str] = codes.astype(str).tolist()
    return lines


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_text_and_csv_files_give_the_same_registry(
    tmp_path: Path, newline: str, encoding: str
) -> None:
    plain, table = tmp_path / "codes.txt", tmp_path / "codes.csv"
    plain.write_bytes((newline.join(text(SHUFFLED)) + newline).encode(encoding))
    rows = [f'{i},{code},"某公司, 分号;"' for i, code in enumerate(text(SHUFFLED))]
    table.write_bytes(newline.join(["id,信用代码,名称", *rows]).encode(encoding))
    assert read_registry(plain, DAY, "Anyang").digest == REGISTRY.digest
    assert read_registry(table, DAY, "Anyang", "信用代码").digest == REGISTRY.digest


def test_repeated_codes_count_once(tmp_path: Path) -> None:
    path = tmp_path / "codes.txt"
    path.write_text("\n".join(text(SHUFFLED) * 2))
    assert read_registry(path, DAY, "Anyang").digest == REGISTRY.digest


def test_a_file_with_faulty_codes_is_refused_with_rows_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "codes.txt"
    lines = text(CODES[:10])
    lines[2], lines[6] = lines[2].lower(), lines[6][:-1]
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="2 of 10 codes") as refusal:
        read_registry(path, DAY, "Anyang")
    shown = str(refusal.value)
    assert "row 3: lower-case" in shown
    assert "row 7: not 18 characters" in shown
    assert not any(line in shown for line in lines)


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        (b"", None, "no code"),
        (b"code\n", "code", "holds no codes"),
        (b"", "code", "not a CSV"),
        (b"a,b\n1,2\n", "code", "no column code"),
        (b"\xff\xff\xff", None, "neither UTF-8 nor GB18030"),
    ],
)
def test_an_empty_or_unreadable_file_is_refused(
    tmp_path: Path, content: bytes, column: str | None, message: str
) -> None:
    path = tmp_path / "codes"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_registry(path, DAY, "Anyang", column)


def test_positions_are_those_of_the_codes_or_minus_one() -> None:
    strangers = code_for_row(2, np.arange(3))
    longer = np.array([CODES[4] + b"0", CODES[5]], "S19")
    np.testing.assert_array_equal(CODES[REGISTRY.positions(SHUFFLED)], SHUFFLED)
    assert REGISTRY.positions(np.concatenate([strangers, CODES[7:9]])).tolist() == [
        -1,
        -1,
        -1,
        7,
        8,
    ]
    assert REGISTRY.positions(longer).tolist() == [-1, 5]
    assert REGISTRY.positions(CODES[:0]).tolist() == []


# --- covers


def test_covers_contain_the_customers() -> None:
    customers = SHUFFLED[:100]
    decoys = extend_decoys(no_decoys(5), REGISTRY, customers, KEY)
    covers = [
        registry_cover(REGISTRY),
        decoy_cover(REGISTRY, decoys),
        customers_cover(REGISTRY, customers),
    ]
    assert [len(cover) for cover in covers] == [2000, 500, 100]
    assert [cover.kind for cover in covers] == list(CoverKind)
    assert len({cover.digest for cover in covers}) == 3
    positions = REGISTRY.positions(customers)
    for cover in covers:
        cover.require_on(REGISTRY)
        np.testing.assert_array_equal(cover.positions[cover.rows_of(positions)], positions)
    assert covers[2].rows_of(REGISTRY.positions(SHUFFLED[100:103])).tolist() == [-1, -1, -1]


def test_a_cover_with_other_rows_or_of_another_registry_is_refused() -> None:
    def cover(*rows: int, kind: CoverKind = CoverKind.CUSTOMERS) -> Cover:
        return Cover(kind, REGISTRY.digest, np.array(rows, np.int64))

    malformed: list[tuple[int, ...]] = [(), (-1, 0), (2, 1), (1, 1)]
    for rows in malformed:
        with pytest.raises(IntegrityError):
            cover(*rows)
    with pytest.raises(IntegrityError, match="beyond"):
        cover(0, 2000).require_on(REGISTRY)
    with pytest.raises(IntegrityError, match="cover 2 rows, registry 2000"):
        cover(0, 1, kind=CoverKind.REGISTRY).require_on(REGISTRY)
    with pytest.raises(IntegrityError, match="another registry"):
        registry_cover(REGISTRY).require_on(Registry(CODES, DAY, "Kaifeng"))
    assert cover(1, 2).digest != cover(1, 3).digest


def test_customers_who_are_not_on_the_registry_are_counted_and_not_named() -> None:
    customers = np.concatenate([CODES[:3], code_for_row(2, np.arange(2))])
    with pytest.raises(UsageError, match="2 of 5 customers") as refusal:
        customers_cover(REGISTRY, customers)
    assert not any(code in str(refusal.value) for code in text(customers))
    with pytest.raises(UsageError, match="2 of 5 customers"):
        extend_decoys(no_decoys(3), REGISTRY, customers, KEY)


# --- decoys


def pairs(decoys: Decoys) -> set[tuple[Any, Any]]:
    return set(zip(decoys.owners.tolist(), decoys.decoys.tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 6),
    st.lists(st.sets(st.integers(0, 1999), min_size=1, max_size=25), min_size=1, max_size=4),
)
def test_every_arrival_adds_k_members_and_nobody_is_ever_removed(
    k: int, months: list[set[int]]
) -> None:
    decoys, known = no_decoys(k), set()
    for month in months:
        before = decoys
        decoys = extend_decoys(decoys, REGISTRY, CODES[sorted(month)], KEY)
        known |= month
        assert len(decoys.members()) == k * len(known)
        assert pairs(before) <= pairs(decoys)
        assert set(np.unique(decoys.owners)) == set(CODES[sorted(known)])
        assert len(np.unique(decoys.decoys)) == len(decoys.decoys)


def test_the_order_of_the_customers_changes_nothing_and_the_key_everything() -> None:
    first = extend_decoys(no_decoys(4), REGISTRY, SHUFFLED[:50], KEY)
    assert pairs(extend_decoys(no_decoys(4), REGISTRY, SHUFFLED[:50][::-1], KEY)) == pairs(first)
    assert pairs(extend_decoys(first, REGISTRY, SHUFFLED[:50], KEY)) == pairs(first)
    other = extend_decoys(no_decoys(4), REGISTRY, SHUFFLED[:50], bytes([1]) * 16)
    assert len(pairs(other) & pairs(first)) < 5


def test_a_decoy_who_becomes_a_customer_brings_k_more() -> None:
    first = extend_decoys(no_decoys(3), REGISTRY, SHUFFLED[:10], KEY)
    second = extend_decoys(first, REGISTRY, first.decoys[:1], KEY)
    assert len(second.members()) - len(first.members()) == 3
    assert np.count_nonzero(second.owners == first.decoys[0]) == 3


def test_members_who_left_the_registry_are_not_in_the_cover_and_stay_stored() -> None:
    decoys = extend_decoys(no_decoys(3), REGISTRY, SHUFFLED[:10], KEY)
    gone = np.isin(CODES, decoys.members()[:4])
    later = Registry(CODES[~gone], date(2026, 8, 1), "Anyang")
    extended = extend_decoys(decoys, later, later.codes[:1], KEY)
    assert len(decoy_cover(later, decoys)) == 26
    assert pairs(decoys) <= pairs(extended)


def test_decoys_are_spread_over_the_registry() -> None:
    decoys = extend_decoys(no_decoys(2), REGISTRY, SHUFFLED[:400], KEY)
    halves: NDArray[np.bool_] = REGISTRY.positions(decoys.decoys) < 1000
    assert abs(np.count_nonzero(halves) - 200) < 60  # six standard deviations


def test_too_small_a_registry_is_refused_with_a_way_out() -> None:
    extend_decoys(no_decoys(9), REGISTRY, SHUFFLED[:200], KEY)
    with pytest.raises(UsageError, match="more than 90% of 2,000 enterprises; use the cover"):
        extend_decoys(no_decoys(9), REGISTRY, SHUFFLED[:201], KEY)


def test_no_code_is_in_a_repr() -> None:
    decoys = extend_decoys(no_decoys(3), REGISTRY, CODES[:3], KEY)
    assert text(CODES[:1])[0] not in repr([REGISTRY, decoys, decoy_cover(REGISTRY, decoys)])
