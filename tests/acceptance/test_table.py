"""docs/acceptance.md names tests that exist, and each test of a number once at least."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/acceptance.md").read_text(encoding="utf-8")
ASKED = {*range(20, 30), 32, 33, 37, 39, 41, 42, 45, 46, 48, 49, 50, 51, 55}


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > len(ASKED)
    for file, name in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"


def test_every_number_that_is_built_has_a_row() -> None:
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} >= ASKED


def test_every_numbered_test_has_its_number_on_the_page() -> None:
    numbers = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    for file in (ROOT / "tests/acceptance").glob("test_*.py"):
        for number in re.findall(r"^def test_a(\d+)_", file.read_text("utf-8"), re.MULTILINE):
            assert int(number) in numbers, file.name
