"""docs/crypto-review-tests.md names tests that exist, and leaves no finding out."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path("docs/crypto-review-tests.md")
NAMED = re.compile(r"`([\w/.]+\.py)::(test_\w+)`")


def test_every_named_test_exists() -> None:
    named = NAMED.findall(PAGE.read_text(encoding="utf-8"))
    assert len(named) > 60
    for file, name in named:
        path = Path(file) if "/" in file else Path("tests/attacks") / file
        assert f"def {name}(" in path.read_text(encoding="utf-8"), (file, name)


def test_every_finding_has_a_row_with_a_test_or_a_reason() -> None:
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) > 1:
            rows[cells[0].split()[0]] = line
    review = Path("docs/design/CRYPTO_REVIEW.md").read_text(encoding="utf-8")
    findings = set(re.findall(r"^\| (F\d+) \|", review, re.MULTILINE))
    assert len(findings) == 18
    for finding in findings:
        assert NAMED.search(rows[finding]) or "No attack test:" in rows[finding], finding
    assert {str(n) for n in range(1, 11)} <= rows.keys()  # items of the set OPRF's review
