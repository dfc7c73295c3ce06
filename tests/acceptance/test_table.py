"""docs/acceptance.md names tests that exist, and each test of a number once at least."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/acceptance.md").read_text(encoding="utf-8")
ASKED = set(range(1, 61)) - {56, 57}  # reconciliation and push orders are not built


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > len(ASKED)
    for file, name in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"


def test_every_number_that_is_built_has_a_row() -> None:
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} >= ASKED


def test_every_numbered_test_stands_in_the_row_of_its_number() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        where = file.relative_to(ROOT).as_posix()
        text = file.read_text("utf-8")
        for name in re.findall(r"^(?:async )?def (test_a\d+_\w+)\(", text, re.MULTILINE):
            number = int(name[6 : name.index("_", 6)])
            mine = [row for row in rows if row.startswith(f"| {number} |")]
            assert any(f"`{where}::{name}`" in row for row in mine), f"{where}::{name}"
