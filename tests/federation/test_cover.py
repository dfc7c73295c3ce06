"""The departments hear of the bank's rows, all of the same, and take nothing that is no cover."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from federation.channel import Channel, in_process, run_in_process
from federation.codes import code_for_row
from federation.errors import IntegrityError
from federation.ledger import Ledger
from federation.objects import CoverKind, CoverRule
from federation.registry import Cover, Registry, customers_cover, registry_cover
from federation.tasks.cover import STAGE, CoverRows, receive_cover, send_cover
from federation.tasks.party import Party
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.row_key_books import MemoryAttemptBook, MemoryReplyBook
from protocols.streams import Randomness
from tests.federation.parties import make_manifest

ORGS = ["bank-a", "tax", "court"]
CODES = np.sort(code_for_row(1, np.arange(1000)))
REGISTRY = Registry(CODES, date(2026, 10, 31), "厦门")
CUSTOMERS = customers_cover(REGISTRY, CODES[5:600:3])


def parties(kind: CoverKind) -> dict[str, Party]:
    rows = len(REGISTRY) if kind is CoverKind.REGISTRY else len(CUSTOMERS)
    limits = {"customers_max": 150, "row_keys": 150, "customers_min": 100, "tokens": 8}
    job = make_manifest("bank-a", ORGS[1:], cover=CoverRule(kind=kind, rows=rows), limits=limits)
    channels: dict[str, dict[str, Channel]] = in_process(ORGS)
    return {
        org: Party(
            me=org,
            manifest=job,
            attempt=0,
            randomness=Randomness(bytes(32), bytes(32), 0),
            channels=channels[org],
            pair_seeds={},
            ledger=Ledger(org, ()),
            spent=MemorySpentBook(),
            answers=MemoryAnswerBook(),
            reply_book=MemoryReplyBook(),
            attempt_book=MemoryAttemptBook(),
        )
        for org in ORGS
    }


def heard(kind: CoverKind, cover: Cover) -> list[Cover | None]:
    made = parties(kind)

    def bank() -> Cover | None:
        send_cover(made["bank-a"], cover)
        return None

    programs = {
        "bank-a": bank,
        "tax": lambda: receive_cover(made["tax"], REGISTRY),
        "court": lambda: receive_cover(made["court"], REGISTRY),
    }
    found = run_in_process(programs)
    return [found["tax"], found["court"]]


def test_every_department_hears_the_same_rows() -> None:
    for cover in heard(CoverKind.CUSTOMERS, CUSTOMERS):
        assert cover is not None
        assert cover.digest == CUSTOMERS.digest


def test_of_the_whole_registry_nothing_is_said() -> None:
    assert heard(CoverKind.REGISTRY, registry_cover(REGISTRY)) == [None, None]


@pytest.mark.parametrize(
    "positions",
    [[5, 5], [7, 5], [-1, 5], [5, 1000], []],
    ids=["twice", "not ascending", "negative", "beyond the registry", "none"],
)
def test_a_list_that_is_no_cover_is_refused(positions: list[int]) -> None:
    made = parties(CoverKind.CUSTOMERS)
    message = CoverRows(REGISTRY.digest, np.array(positions, np.int32))
    made["bank-a"].channels["tax"].send(STAGE, message)
    with pytest.raises(IntegrityError):
        receive_cover(made["tax"], REGISTRY)


def test_rows_of_another_registry_are_refused() -> None:
    made = parties(CoverKind.CUSTOMERS)
    message = CoverRows(bytes(32), CUSTOMERS.positions.astype(np.int32))
    made["bank-a"].channels["tax"].send(STAGE, message)
    with pytest.raises(IntegrityError, match="another registry"):
        receive_cover(made["tax"], REGISTRY)
