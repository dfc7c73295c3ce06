"""Texts of one meaning written in one way, before they are compared for equality.

The version is part of every answer: a rule that changes gets a new name, an old one stays as it is.

    text-1     NFKC (full width becomes half width), lower case, no spaces, no punctuation
    name-1     of an enterprise: text-1, and 有限责任公司 is 有限公司
    person-1   of a person: text-1; the dots inside transliterated names go with the punctuation
    address-1  text-1 but hyphens stay where they separate numbers; Chinese numerals before 号, 楼,
               层, 室 and the like become digits; 幢, 栋, 座 are 号楼; 房 is 室; 之 between numbers
               is a hyphen

No rule guesses: nothing is compared by likeness, and nothing is looked up.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

MAX_LENGTH = 200
ROUNDS = 8  # two are the rule; a question of a stranger must not keep a provider busy
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_NUMBER = re.compile(
    r"[零〇一二两三四五六七八九十百千]+(?=号|弄|楼|栋|幢|座|层|单元|室|房|组|村|巷)"
)


def normalise(rule: str, text: str) -> str:
    """The text as the rule of that name writes it; KeyError for no such rule, ValueError for a text
    of which nothing is left."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a text has at most {MAX_LENGTH} characters")
    if not (found := RULES[rule](text)):
        raise ValueError("a text without letters, digits or ideographs")
    return found


def _folded(text: str, kept: str = "") -> str:
    """Repeated until nothing changes: where a sign goes, a letter and an accent may meet."""
    for _ in range(ROUNDS):
        before, text = text, _once(text, kept)
        if text == before:
            return text
    raise ValueError("a text that does not come to rest")


def _once(text: str, kept: str) -> str:
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    left = (c for c in plain if c in kept or unicodedata.category(c)[0] in "LNM")
    return unicodedata.normalize("NFKC", "".join(left))


def _name(text: str) -> str:
    return _folded(text).replace("有限责任公司", "有限公司")


def _address(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text)
    plain = re.sub(r"[‐‑‒–—―−﹣~～]", "-", plain)
    plain = _NUMBER.sub(lambda found: str(_value(found.group())), plain)
    plain = re.sub(r"(?<=\d)\s*之\s*(?=\d)", "-", plain)
    plain = re.sub(r"(?<=\d)\s*(?:号楼|幢|栋|座)", "号楼", plain)
    plain = re.sub(r"(?<=\d)\s*房", "室", plain)
    plain = re.sub(r"(?<!\d)\s*-|-\s*(?!\d)", "", _folded(plain, kept="-"))
    return re.sub(r"室$", "", plain)


def _value(text: str) -> int | str:
    """The number that Chinese numerals mean: digit by digit, or with tens and hundreds."""
    if not any(c in _UNITS for c in text):
        return "".join(str(_DIGITS[c]) for c in text)
    total, digit = 0, 0
    for c in text:
        if c in _UNITS:
            total += (digit or 1) * _UNITS[c]
            digit = 0
        else:
            digit = _DIGITS[c]
    return total + digit


RULES: dict[str, Callable[[str], str]] = {
    "text-1": _folded,
    "name-1": _name,
    "person-1": _folded,
    "address-1": _address,
}
