"""CRYPTO_REVIEW.md F11: what the covers of ten jobs have in common."""

from datetime import date

import numpy as np

from federation.codes import code_for_row
from federation.registry import Registry, decoy_cover, extend_decoys, no_decoys

K, JOBS = 10, 10
REGISTRY = Registry(np.sort(code_for_row(1, np.arange(20_000))), date(2026, 7, 1), "Anyang")
CUSTOMERS = np.random.default_rng(5).permutation(REGISTRY.codes)[:1000]


def share_of_customers_in_all(covers: list[set[int]]) -> float:
    """A department's best guess: the customers are in every cover."""
    common = set.intersection(*covers)
    customers = set(REGISTRY.positions(CUSTOMERS).tolist())
    assert customers <= common
    return len(customers) / len(common)


def covers(sticky: bool) -> list[set[int]]:
    decoys, out = no_decoys(K), []
    for job in range(JOBS):
        stored, key = (decoys, bytes(16)) if sticky else (no_decoys(K), bytes([job]) * 16)
        decoys = extend_decoys(stored, REGISTRY, CUSTOMERS, key)
        out.append(set(decoy_cover(REGISTRY, decoys).positions.tolist()))
    return out


def test_fresh_decoys_for_every_job_fall_to_intersection() -> None:
    seen = covers(sticky=False)
    assert share_of_customers_in_all(seen[:1]) == 1 / K
    assert share_of_customers_in_all(seen) > 0.95


def test_sticky_decoys_tell_after_ten_jobs_what_they_told_after_one() -> None:
    seen = covers(sticky=True)
    assert share_of_customers_in_all(seen) == 1 / K


def test_a_growing_list_of_customers_shows_k_new_members_an_arrival_and_not_which() -> None:
    # Nine months of 100 arrivals, some of whom were decoys before: what is new in a month holds at
    # most 1/K customers, and whoever looks at all members holds 1/K as well.
    decoys, before, held = no_decoys(K), set[int](), 0
    for month in range(0, 900, 100):
        arrivals = CUSTOMERS[month : month + 100]
        decoys = extend_decoys(decoys, REGISTRY, arrivals, bytes(16))
        now = set(decoy_cover(REGISTRY, decoys).positions.tolist())
        new, held = now - before, held + len(arrivals)
        customers = set(REGISTRY.positions(CUSTOMERS[:held]).tolist())
        assert len(new) == K * len(arrivals)
        assert len(customers & new) <= len(new) / K
        assert len(customers) == len(now) / K
        before = now
