"""The rows of a job from the registry to an opened sum: all parties, every cover."""

from datetime import date

import numpy as np
import pytest

from federation.codes import code_for_row
from federation.objects import CoverKind
from federation.registry import (
    Cover,
    Registry,
    customers_cover,
    decoy_cover,
    extend_decoys,
    no_decoys,
    registry_cover,
)
from protocols import oprf, sealed
from protocols.oprf import key_for
from protocols.row_keys import keys_of_job
from protocols.sealed import Step, ValueRange, open_sum, round_scores
from protocols.streams import Randomness, digest

DEPARTMENTS, JOB, APPROVED = ("court", "tax"), digest("manifest"), 24
REGISTRY = Registry(np.sort(code_for_row(1, np.arange(300))), date(2026, 7, 1), "Anyang")
CUSTOMERS = np.random.default_rng(2).permutation(REGISTRY.codes)[:20]


def cover_of(kind: CoverKind) -> Cover:
    if kind is CoverKind.REGISTRY:
        return registry_cover(REGISTRY)
    if kind is CoverKind.CUSTOMERS:
        return customers_cover(REGISTRY, CUSTOMERS)
    return decoy_cover(REGISTRY, extend_decoys(no_decoys(5), REGISTRY, CUSTOMERS, bytes(16)))


@pytest.mark.parametrize("kind", CoverKind)
def test_the_bank_opens_the_sum_of_scores_of_its_customers_over_any_cover(kind: CoverKind) -> None:
    cover = cover_of(kind)
    codes = REGISTRY.codes[cover.positions]
    step = Step(
        job=JOB,
        attempt=1,
        bank="bank_a",
        departments=DEPARTMENTS,
        cover=cover.digest,
        stage="openings",
        step=0,
        column=0,
        values=ValueRange(-16, 15),
    )
    ours = REGISTRY.positions(CUSTOMERS)
    columns, row_keys, expected = [], {}, np.zeros(len(CUSTOMERS))
    for name in DEPARTMENTS:
        cover.require_on(REGISTRY)
        # Row keys, once for the snapshot.
        randomness = Randomness(digest("seed of", name), JOB, 1)
        owner = oprf.Department(
            key_for(digest("key of", name), "bank_a", REGISTRY.digest), APPROVED, randomness
        )
        asking = Randomness(digest("seed of the bank"), JOB, 1)
        bank = oprf.Bank(owner.public, CUSTOMERS, APPROVED, asking, name)
        held = bank.finalize(owner.blind_evaluate(bank.blind()))
        row_keys[name] = keys_of_job(held.row_keys(CUSTOMERS), JOB)

        # A column of scores for the job; the department has no record of every seventh row.
        scores = np.random.default_rng(len(name)).normal(size=len(cover))
        scores[::7] = 0
        rounded = round_scores(scores, 0.25, codes, digest("direction"), digest("rounding", name))
        pair_seeds = {peer: digest("pair") for peer in DEPARTMENTS if peer != name}
        cover_keys = keys_of_job(owner.row_keys(codes), JOB)
        party = sealed.Department(name, cover_keys, randomness, pair_seeds)
        columns.append(party.seal(step, rounded))
        expected += rounded[cover.rows_of(ours)]

    opened = open_sum(step, columns, row_keys, cover.rows_of(ours))
    assert opened.valid.all()
    np.testing.assert_array_equal(opened.values, expected)
