"""Sums over several banks: exact, whoever collects; lost banks are named or left out."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from federation.channel import Channel, in_process, run_in_process
from federation.errors import PartyLost, Refused
from federation.ledger import Disclosure, Ledger, What
from federation.tasks.party import Membership, Party
from federation.tasks.secure_sum import Alone, Pool, SecurePool
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.errors import ProtocolError
from protocols.row_key_books import MemoryAttemptBook, MemoryReplyBook
from protocols.secagg import Announcement, MaskedVector, Survivors
from protocols.secagg_books import MemoryRoundBook
from protocols.streams import Randomness, digest
from tests.federation.parties import make_manifest
from tests.protocols.secagg_parties import Certified

BANKS = tuple(f"bank{i}" for i in range(5))
MANIFEST = make_manifest("bank0", ["tax"])
Q = 65537 * 163841 * 786433


def parties(links: dict[str, dict[str, Channel]], declared: int = 1 << 20) -> dict[str, Party]:
    known = Certified.of(BANKS)
    lines = [Disclosure(a, b, What.BANK_TOTALS, declared, 64) for a in BANKS for b in BANKS]
    job = bytes.fromhex(MANIFEST.digest())
    return {
        org: Party(
            me=org,
            manifest=MANIFEST,
            attempt=1,
            randomness=Randomness(digest("seed", org), job, 1),
            channels=links[org],
            pair_seeds={},
            ledger=Ledger(org, lines),
            spent=MemorySpentBook(),
            answers=MemoryAnswerBook(),
            reply_book=MemoryReplyBook(),
            attempt_book=MemoryAttemptBook(),
            membership=Membership(known.identity(org), known.keys, MemoryRoundBook()),
        )
        for org in BANKS
    }


def together(program: Callable[[Party, Pool], Any], **terms: Any) -> dict[str, Any]:
    """The program at every bank, with its pool."""
    everybody = parties(in_process(BANKS))

    def run(party: Party) -> Any:
        return program(party, SecurePool(party, BANKS, "bank2", **terms))

    return run_in_process({org: partial(run, party) for org, party in everybody.items()})


def test_every_bank_gets_the_exact_total() -> None:
    rng = np.random.default_rng(1)
    values = {org: rng.integers(-1000, 1001, (3, 4)) for org in BANKS}
    residues = {org: rng.integers(0, Q, 7) for org in BANKS}
    reals = {org: rng.normal(size=5) for org in BANKS}

    def program(party: Party, pool: Pool) -> Any:
        return (
            pool.integers("counts", values[party.me], 1000),
            pool.residues("sums", residues[party.me], Q),
            pool.reals("moments", reals[party.me], 10.0, 2**-30),
        )

    for integers, sums, moments in together(program).values():
        np.testing.assert_array_equal(integers, sum(values.values()))
        np.testing.assert_array_equal(sums, sum(residues.values()) % Q)
        np.testing.assert_allclose(moments, sum(reals.values()), atol=5 * 2**-30)


def test_a_pool_of_one_bank_is_that_bank() -> None:
    pool, values = Alone("bank0"), np.arange(4)
    np.testing.assert_array_equal(pool.integers("counts", values, 9), values)
    np.testing.assert_array_equal(pool.residues("counts", values - 9, 7), (values - 9) % 7)


def test_two_banks_are_refused() -> None:
    party = parties(in_process(BANKS))["bank0"]
    with pytest.raises(Refused, match="reads the other's part"):
        SecurePool(party, BANKS[:2], "bank0")


def test_a_total_that_was_not_declared_is_refused_before_anything_is_sent() -> None:
    links = in_process(BANKS)
    party = parties(links, declared=3)["bank0"]
    pool = SecurePool(party, BANKS, "bank2")
    with pytest.raises(Refused, match="beyond the declared"):
        pool.integers("counts", np.arange(4), 9)
    assert not links["bank0"]["bank2"].traffic.sent_bytes


def lost_at(kind: type, what: str) -> tuple[dict[str, Any], list[str]]:
    """bank4 stops where it would send its message of that kind; (results, who failed)."""
    links = in_process(BANKS)
    everybody = parties(links)
    gone, fine = links["bank4"]["bank2"], links["bank4"]["bank2"].send
    failed: list[str] = []
    lock = threading.Lock()

    def send(stage: str, message: object) -> None:
        if isinstance(message, kind):
            gone.stop(stage, "crashed")
            raise PartyLost("this process is gone", party="bank4")
        fine(stage, message)

    gone.send = send  # type: ignore[method-assign] - the crash

    def run(party: Party) -> Any:
        pool = SecurePool(party, BANKS, "bank2", everybody=what == "everybody")
        try:
            ours = np.full(3, int(party.me[-1]) + 1)
            first = pool.integers("round", ours, 9)
            return first, pool.survivors, pool.integers("round", ours, 9)
        except PartyLost as error:
            with lock:
                failed.append(error.party)
            if party.me == "bank2":
                for other in BANKS:
                    if other != party.me:
                        party.channels[other].stop("round", "lost")
            return None

    done = run_in_process({org: partial(run, party) for org, party in everybody.items()})
    return done, failed


@pytest.mark.parametrize("kind", [Announcement, MaskedVector])
def test_where_all_banks_are_needed_a_lost_one_ends_the_step_by_its_name(kind: type) -> None:
    done, failed = lost_at(kind, "everybody")
    assert all(item is None for item in done.values())
    assert "bank4" in failed


@pytest.mark.parametrize("kind", [Announcement, MaskedVector])
def test_where_banks_may_vanish_the_total_is_over_those_that_stayed(kind: type) -> None:
    done, _ = lost_at(kind, "some")
    stayed = BANKS[:4]
    for org in stayed:
        first, survivors, second = done[org]
        assert survivors == stayed
        np.testing.assert_array_equal(first, np.full(3, 1 + 2 + 3 + 4))
        np.testing.assert_array_equal(second, first)


def test_a_collecting_bank_that_leaves_a_bank_out_gets_no_total() -> None:
    """It could subtract: all others' sum from everybody's is the one bank's value."""
    links = in_process(BANKS)
    everybody = parties(links)
    honest = {org: links["bank2"][org].send for org in BANKS if org != "bank2"}

    def cheat(org: str, stage: str, message: object) -> None:
        if isinstance(message, Survivors):
            message = Survivors(tuple(name for name in message.parties if name != "bank4"))
        honest[org](stage, message)

    for org in honest:
        links["bank2"][org].send = partial(cheat, org)  # type: ignore[method-assign] - the attack

    def run(party: Party) -> Any:
        pool = SecurePool(party, BANKS, "bank2")
        try:
            return pool.integers("counts", np.arange(4), 9)
        except (ProtocolError, PartyLost) as error:
            for channel in party.channels.values():
                channel.stop("counts", "refused")
            return str(error)

    done = run_in_process({org: partial(run, party) for org, party in everybody.items()})
    assert "this party vanished" in done["bank4"]
    assert all(isinstance(item, str) for item in done.values())
