"""The linear query from end to end, its refusals and its durable state."""

from __future__ import annotations

import numpy as np

from .query_parties import setting, with_tokens


def test_bank_opens_exactly_the_column_sums() -> None:
    parties = setting(rows=5000, bins=(4, 32, 1), bounds=(1, 31, 130), vmax=20)
    bank, department = with_tokens(parties)
    rng = np.random.default_rng(2)
    for _ in range(3):
        v = rng.integers(-20, 21, 5000)
        opened = bank.open("tax", department.answer(bank.query(v)))
        np.testing.assert_array_equal(opened, parties.plain(v))
