"""Channels over the real relay, in its own process, over TLS on loopback."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.relay_client import RelayClient
from clients.relay_line import Line
from federation.channel import Channel, in_process, run_in_process
from federation.errors import Conflict, IntegrityError, NotFound, PartyLost, Refused, Unavailable
from federation.relay_frame import CHUNK, WINDOW
from tests.relay_parties import (
    JOB,
    OTHER_JOB,
    QUICK,
    RelayProcess,
    in_background,
    relay_process,
    trusted,
    write_membership,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with relay_process(tmp_path_factory.mktemp("relay")) as running:
        yield running


@pytest.fixture(scope="module")
def relay_of_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    """Another one: at one relay an organisation has one connection."""
    with relay_process(tmp_path_factory.mktemp("relay")) as running:
        yield running


@dataclass
class Pair:
    """Bank and tax bureau, connected; a fresh attempt for every channel."""

    bank: RelayClient
    tax: RelayClient
    attempt: int = 0

    def channel(self, manifest: bytes = JOB) -> tuple[Line, Line]:
        self.attempt += 1
        bank = self.bank.transport(manifest, self.attempt, "tax")
        return bank, self.tax.transport(manifest, self.attempt, "bank")


@pytest.fixture(scope="module")
def pair(relay_of_pair: RelayProcess) -> Iterator[Pair]:
    with relay_of_pair.client("bank") as bank, relay_of_pair.client("tax") as tax:
        bank.wait_connected(10)
        tax.wait_connected(10)
        yield Pair(bank, tax)


def message(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def test_messages_of_any_size_arrive_whole_and_in_order_both_ways(pair: Pair) -> None:
    bank, tax = pair.channel()
    sizes = [0, 1, 64, CHUNK - 9, CHUNK - 8, CHUNK - 7, CHUNK, 2 * CHUNK - 8, 0, 20 * MIB, 3]
    for ours, theirs in ((bank, tax), (tax, bank)):
        with in_background(lambda ours=ours: [ours.send(message(size)) for size in sizes]):
            for size in sizes:
                assert theirs.receive(10) == message(size)
    bank.close()
    tax.close()


def test_the_sender_stops_at_the_window_while_the_peer_does_not_receive(pair: Pair) -> None:
    bank, tax = pair.channel()
    sent = []
    with in_background(lambda: [sent.append(bank.send(bytes(MIB))) for _ in range(24)]):
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            assert len(sent) <= WINDOW // MIB
            time.sleep(0.02)
        assert len(sent) >= WINDOW // MIB - 1
        for _ in range(24):
            assert len(tax.receive(10)) == MIB
    assert len(sent) == 24
    bank.close()
    tax.close()


def test_two_parties_that_send_to_each_other_at_once_do_not_wait_for_ever(pair: Pair) -> None:
    bank, tax = pair.channel()

    def exchange(line: Line) -> int:
        line.send(bytes(20 * MIB))
        return len(line.receive(10))

    results = run_in_process({"bank": lambda: exchange(bank), "tax": lambda: exchange(tax)})
    assert set(results.values()) == {20 * MIB}
    bank.close()
    tax.close()


def test_what_was_sent_before_close_arrives_and_then_the_end_is_told(pair: Pair) -> None:
    bank, tax = pair.channel()
    bank.send(b"last words")
    bank.close()
    assert tax.receive(5) == b"last words"
    with pytest.raises(PartyLost, match="bank: ended the channel"):
        tax.receive(5)
    with pytest.raises(PartyLost, match="bank: ended the channel"):
        tax.send(b"too late")
    with pytest.raises(Unavailable, match="this end of the channel is closed"):
        bank.receive(1)
    tax.close()


@pytest.mark.parametrize("step", ["receive", "send"])
def test_closing_from_another_thread_wakes_a_program_that_waits(pair: Pair, step: str) -> None:
    bank, tax = pair.channel()

    def program() -> None:
        with pytest.raises(Unavailable, match="this end of the channel is closed"):
            bank.receive(20) if step == "receive" else bank.send(bytes(4 * WINDOW))

    began = time.monotonic()
    with in_background(program):
        time.sleep(0.2)
        bank.close()
    assert time.monotonic() - began < 5
    tax.close()


def test_receive_waits_no_longer_than_it_was_told(pair: Pair) -> None:
    bank, tax = pair.channel()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        bank.receive(0.3)
    assert 0.25 < time.monotonic() - began < 2
    tax.send(b"late")
    assert bank.receive(5) == b"late"
    bank.close()
    tax.close()


def test_a_message_over_the_limit_is_refused_before_it_is_sent(relay: RelayProcess) -> None:
    small = replace(QUICK, max_message_bytes=1000)
    with relay.client("bank", small) as bank, relay.client("tax") as tax:
        ours, theirs = bank.transport(JOB, 900, "tax"), tax.transport(JOB, 900, "bank")
        with pytest.raises(Refused, match="1001 bytes, the limit of this channel is 1000"):
            ours.send(bytes(1001))
        theirs.send(bytes(1000))
        assert len(ours.receive(5)) == 1000
        theirs.send(bytes(1001))
        with pytest.raises(IntegrityError, match=r"tax: a message of 1001 bytes, the limit is"):
            ours.receive(5)


def test_parties_with_different_manifests_do_not_meet(pair: Pair) -> None:
    pair.attempt += 1
    bank = pair.bank.transport(JOB, pair.attempt, "tax")
    tax = pair.tax.transport(OTHER_JOB, pair.attempt, "bank")
    with pytest.raises(TimeoutError):
        bank.receive(0.5)
    assert not bank._established
    assert not tax._established
    bank.close()
    tax.close()


def test_a_channel_is_opened_once_and_only_to_a_trusted_party(pair: Pair) -> None:
    bank, tax = pair.channel()
    with pytest.raises(Conflict, match="open, or was"):
        pair.bank.transport(JOB, pair.attempt, "tax")
    with pytest.raises(NotFound, match="stranger"):
        pair.bank.transport(JOB, 1, "stranger")
    with pytest.raises(NotFound):
        pair.bank.transport(JOB, 1, "bank")
    bank.close()
    tax.close()


def test_a_restarted_peer_is_named_and_the_half_done_channel_is_not_resumed(
    relay: RelayProcess,
) -> None:
    with relay.client("bank") as bank:
        with relay.client("tax") as tax:
            ours, theirs = bank.transport(JOB, 901, "tax"), tax.transport(JOB, 901, "bank")
            ours.send(b"step 1")
            assert theirs.receive(5) == b"step 1"
            tax._lines.clear()  # as a crash would: nobody is told
        with relay.client("tax") as tax:
            again = tax.transport(JOB, 901, "bank")
            with pytest.raises(PartyLost, match="tax: restarted and lost its state"):
                ours.receive(5)
            ours.close()
            with pytest.raises(PartyLost, match="bank: closed the channel"):
                again.receive(5)


def test_a_silent_peer_is_named_after_the_stated_wait(relay: RelayProcess) -> None:
    with relay.client("bank", replace(QUICK, peer_timeout_s=1, linger_s=0.2)) as bank:
        with relay.client("tax") as tax:
            ours, theirs = bank.transport(JOB, 902, "tax"), tax.transport(JOB, 902, "bank")
            theirs.send(b"here")
            assert ours.receive(5) == b"here"
            tax._lines.clear()
        with pytest.raises(PartyLost, match=r"tax: not heard of for \d s"):
            ours.receive(20)


def test_who_is_away_is_known_while_it_is_waited_for_and_the_same_channel_goes_on(
    relay: RelayProcess,
) -> None:
    patient = replace(QUICK, peer_timeout_s=30, heartbeat_s=0.2)
    with relay.client("bank", patient) as bank, relay.client("tax", patient) as tax:
        ours, theirs = bank.transport(JOB, 903, "tax"), tax.transport(JOB, 903, "bank")
        theirs.send(b"here")
        assert ours.receive(5) == b"here"
        got: list[bytes] = []
        with in_background(lambda: got.append(ours.receive(25))):
            time.sleep(0.5)
            assert ours.absent_s() is None  # it computes, and its heart beats
            line = tax._lines.pop(theirs.address)  # as SIGSTOP or a cut line: silence
            deadline = time.monotonic() + 10
            while (left := ours.absent_s()) is None:
                assert time.monotonic() < deadline
            assert 0 < left < 30
            tax._lines[theirs.address] = line
            theirs.send(b"back")
        assert got == [b"back"]
        assert ours.absent_s() is None


def test_transfer_goes_on_in_order_when_the_relay_is_killed_and_started_again(
    tmp_path: Path,
) -> None:
    pieces = 60
    with relay_process(tmp_path) as relay, ExitStack() as stack:
        patient = replace(QUICK, peer_timeout_s=30, stall_timeout_s=30)
        bank, tax = (stack.enter_context(relay.client(org, patient)) for org in ("bank", "tax"))
        ours, theirs = bank.transport(JOB, 1, "tax"), tax.transport(JOB, 1, "bank")
        with in_background(
            lambda: [ours.send(number.to_bytes(4) + bytes(MIB)) for number in range(pieces)]
        ):
            for number in range(pieces):
                got = theirs.receive(30)
                assert int.from_bytes(got[:4]) == number
                assert len(got) == MIB + 4
                if number in (10, 35):
                    relay.stop()
                    relay.start()
        assert tax.connections == 3


def test_without_a_relay_the_reason_is_told(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path, port=9)
    with relay.client("bank") as bank, pytest.raises(Unavailable, match="no connection to the"):
        bank.wait_connected(0.2)


def test_organisations_and_jobs_are_admitted_while_the_relay_runs(tmp_path: Path) -> None:
    with (
        relay_process(tmp_path, ("bank",)) as relay,
        relay.client("bank") as bank,
        relay.client("court") as court,
    ):
        bank.wait_connected(5)
        ours, theirs = bank.transport(JOB, 1, "court"), court.transport(JOB, 1, "bank")
        with pytest.raises(TimeoutError):
            theirs.receive(0.5)
        assert court.connections == 0
        write_membership(relay.membership, trusted("bank", "court"), {})
        court.wait_connected(10)
        with pytest.raises(TimeoutError):
            theirs.receive(0.5)  # admitted, but not to this job
        write_membership(relay.membership, trusted("bank", "court"), {JOB: {"bank", "court"}})
        ours.send(b"welcome")
        assert theirs.receive(5) == b"welcome"


@dataclass(frozen=True)
class Numbers:
    values: NDArray[np.float64] = field(repr=False)


def test_a_party_program_sends_the_same_bytes_in_process_and_over_the_relay(pair: Pair) -> None:
    def program(channel: Channel, rounds: int) -> tuple[bytes, bytes, int]:
        for number in range(rounds):
            if channel.me == "bank":
                channel.send(f"round {number}", Numbers(np.arange(1000.0) * number))
                channel.receive(f"round {number}", Numbers)
            else:
                values = channel.receive(f"round {number}", Numbers).values
                channel.send(f"round {number}", Numbers(values + 1))
        traffic = channel.traffic
        return traffic.sent_digest, traffic.received_digest, traffic.frames

    inside = in_process(["bank", "tax"])
    here = {"bank": inside["bank"]["tax"], "tax": inside["tax"]["bank"]}
    bank, tax = pair.channel()
    there = {"bank": Channel("bank", "tax", bank), "tax": Channel("tax", "bank", tax)}
    found = [
        run_in_process({org: lambda c=channel: program(c, 5) for org, channel in ends.items()})
        for ends in (here, there)
    ]
    assert found[0] == found[1]
    assert found[0]["bank"][0] == found[0]["tax"][1] != hashlib.sha256().digest()
    for channel in there.values():
        channel.close()


def test_nothing_is_left_running_when_the_clients_are_closed(relay: RelayProcess) -> None:
    before = threading.active_count()
    with relay.client("court") as court:
        court.wait_connected(5)
    assert threading.active_count() <= before
    court.close()  # a second time does nothing


def test_an_identity_does_not_show_its_key(relay: RelayProcess) -> None:
    shown = repr(relay.client("bank")._own)
    assert "PRIVATE" not in shown
    assert "CERTIFICATE" not in shown
