"""Texts of one meaning become one text, and texts of two meanings stay two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.normalise import RULES, normalise

SAME = [
    ("address-1", "厦门市湖里区枋湖北二路１５号３０２室", "厦门市湖里区枋湖北二路15号302"),
    ("address-1", "中山路三号楼二层", "中山路3幢2层"),
    ("address-1", "中山路12之3号", "中山路12－3号"),
    ("address-1", "中山路二十三号", "中山路23号"),
    ("address-1", "中山路一百零五号", "中山路 105 号"),
    ("name-1", "厦门（集美）贸易有限责任公司", "厦门(集美)贸易有限公司"),
    ("name-1", "ＡＢＣ Trading Co., Ltd.", "abc trading co ltd"),
    ("person-1", "阿卜杜勒·买买提", "阿卜杜勒•买买提"),
    ("person-1", "李 明", "李明"),
    ("text-1", "甲－乙", "甲 乙"),
]
OTHER = [
    ("address-1", "中山路12-3号", "中山路123号"),
    ("address-1", "中山路15号", "中山路51号"),
    ("name-1", "厦门贸易有限公司", "厦门贸易股份有限公司"),
    ("name-1", "甲集团有限公司", "甲有限公司"),
    ("person-1", "李明", "李朋"),
]


@pytest.mark.parametrize(("rule", "one", "other"), SAME)
def test_two_ways_to_write_it_are_one_text(rule: str, one: str, other: str) -> None:
    assert normalise(rule, one) == normalise(rule, other)


@pytest.mark.parametrize(("rule", "one", "other"), OTHER)
def test_nothing_is_equal_because_it_looks_alike(rule: str, one: str, other: str) -> None:
    assert normalise(rule, one) != normalise(rule, other)


@pytest.mark.parametrize("rule", RULES)
@given(text=st.text(max_size=60))
def test_what_is_normal_stays_as_it_is(rule: str, text: str) -> None:
    try:
        once = normalise(rule, text)
    except ValueError:
        return
    try:
        assert normalise(rule, once) == once
    except ValueError:  # longer than a text may be: some signs become several
        assert len(once) > 200


def test_a_text_of_signs_alone_or_too_long_is_none() -> None:
    for text in ("", " -.,", "甲" * 201):
        with pytest.raises(ValueError, match=r"letters|at most"):
            normalise("text-1", text)
