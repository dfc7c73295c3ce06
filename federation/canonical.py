"""RFC 8785 JSON at the speed of the standard library's C code.

For what signed objects may hold the two write the same bytes: no floats, no integer of 2^53 or
more, and keys whose order in UTF-16 is that of their code points. What cannot be is refused;
characters beyond the basic plane go the slow way, since their order as keys differs.
tests/federation/test_canonical.py holds it to `rfc8785`.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import rfc8785

LIMIT = 1 << 53  # RFC 8785: integers are those of IEEE 754 doubles
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def dumps(plain: Any) -> bytes:
    """Canonical bytes; ValueError for a float, a big integer or a lone surrogate."""
    text = _ENCODER.encode(plain)
    if not text.isascii() and max(text) > "\uffff":
        return rfc8785.dumps(plain)
    _DECODER.decode(text)  # looks at every number, in C
    return text.encode()


def _no_float(_: str) -> NoReturn:
    raise ValueError("a float has no place in a signed object")


def _small(text: str) -> int:
    if len(text) > 17 or abs(value := int(text)) >= LIMIT:
        raise ValueError("an integer of 2^53 or more has no place in a signed object")
    return value


_DECODER = json.JSONDecoder(parse_float=_no_float, parse_int=_small, parse_constant=_no_float)
