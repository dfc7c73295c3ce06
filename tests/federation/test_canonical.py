"""The fast writer of canonical JSON writes what RFC 8785 says, or refuses."""

from __future__ import annotations

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from federation import canonical

SCALARS = st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.text()
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(PLAIN)
def test_it_writes_the_bytes_of_rfc_8785(plain: object) -> None:
    assert canonical.dumps(plain) == rfc8785.dumps(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "plain",
    [
        {"a": '\x00\x1f\x7f\u2028"\\/\b\f\n\r\t'},
        {"\ufb33": 1, "\U0001f600": 2, "é": 3},
        ["\U00020000"],
    ],
)
def test_escapes_and_the_order_of_keys_are_those_of_rfc_8785(plain: object) -> None:
    assert canonical.dumps(plain) == rfc8785.dumps(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("plain", [1.0, 0.5, -0.0, float("nan"), [2**53], -(2**53), {"a": 1e300}])
def test_what_no_signed_object_holds_is_refused(plain: object) -> None:
    with pytest.raises(ValueError, match=r"float|integer|compliant"):
        canonical.dumps(plain)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        canonical.dumps("\ud800")
