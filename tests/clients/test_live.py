"""What the live process's lines do with frames: questions and requests for receipts part here."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from clients import live
from clients.live import BATCHES_OUT, RECEIPTS_WAITING, AnswerLine, ReceiptLine, Repeated
from clients.verification import Parcel
from federation import sealing
from federation.consent_api import Inbox, Outbox, ParcelEntry
from federation.errors import Unavailable

QUESTION = b"q" * (sealing.LEAST[sealing.ASK] + sealing.OVERHEAD)
RECEIPTS = b"r" * (sealing.LEAST[sealing.RECEIPTS] + sealing.OVERHEAD)


def entry(number: int, sealed: bytes) -> ParcelEntry:
    return ParcelEntry(id=f"{number:064x}", sender="bank-a", sealed=sealed)


class Coordinator:
    """Hands out one batch, and keeps what is handed in."""

    def __init__(self, *items: ParcelEntry) -> None:
        self.waiting, self.handed = list(items), list[list[str]]()
        self.arrived = threading.Semaphore(0)
        self.line: Any = None

    def take_sealed(self, wait_s: float) -> Inbox:
        taken, self.waiting = self.waiting, []
        if not taken:
            self.line.stop()
        return Inbox(items=tuple(taken))

    def reply_sealed(self, body: Outbox) -> None:
        self.handed.append([item.id for item in body.items])
        self.arrived.release()


class Echo:
    """Answers every frame."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def answer(self, parcels: Sequence[Parcel]) -> list[bytes]:
        self.seen += [parcel.sealed for parcel in parcels]
        return [b"answer" for _ in parcels]


class Desk:
    """Gives every frame its proofs, once it may."""

    def __init__(self) -> None:
        self.may, self.seen = threading.Event(), list[bytes]()

    def answer(self, parcel: Parcel) -> bytes:
        assert self.may.wait(10)
        self.seen.append(parcel.sealed)
        return b"proofs"


def test_no_question_has_the_size_of_a_request_for_receipts() -> None:
    assert sealing.is_receipts(RECEIPTS)
    assert not sealing.is_receipts(QUESTION)
    assert sealing.LEAST[sealing.RECEIPTS] < sealing.LEAST[sealing.ASK]


def test_answers_do_not_wait_for_receipts_and_receipts_take_no_question() -> None:
    coordinator = Coordinator(entry(1, QUESTION), entry(2, RECEIPTS), entry(3, QUESTION))
    provider, desk = Echo(), Desk()
    receipts = ReceiptLine(desk, coordinator, time_class_s=0.001)  # type: ignore[arg-type] # stand-ins
    line = AnswerLine(provider, coordinator, time_class_s=0.001, receipts=receipts)  # type: ignore[arg-type] # the same
    coordinator.line = line
    thread = threading.Thread(target=receipts.run)
    thread.start()
    line.run()
    assert provider.seen == [QUESTION, QUESTION]
    assert coordinator.handed == [[f"{1:064x}", f"{3:064x}"]]
    desk.may.set()
    receipts.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert desk.seen == [RECEIPTS]
    assert coordinator.handed[1:] == [[f"{2:064x}"]]


class Late(Coordinator):
    """Takes no answer before it may, and counts the questions that were taken meanwhile."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.may, self.left, self.enough = threading.Event(), batches, threading.Event()

    def take_sealed(self, wait_s: float) -> Inbox:
        if not self.left:
            self.line.stop()
            return Inbox(items=())
        self.left -= 1
        return Inbox(items=(entry(self.left + 1, QUESTION),))

    def reply_sealed(self, body: Outbox) -> None:
        assert self.may.wait(10)
        super().reply_sealed(body)


def test_the_next_questions_are_answered_while_answers_wait_for_their_time() -> None:
    coordinator, provider = Late(2 * BATCHES_OUT), Echo()
    line = AnswerLine(provider, coordinator, time_class_s=0.001)  # type: ignore[arg-type] # stand-ins
    coordinator.line = line
    thread = threading.Thread(target=line.run)
    thread.start()
    deadline = time.monotonic() + 10
    # one more than may be on their way is answered, then nobody is asked for questions
    while len(provider.seen) < BATCHES_OUT + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(provider.seen) == BATCHES_OUT + 1
    coordinator.may.set()
    thread.join(10)
    assert not thread.is_alive()
    assert coordinator.handed == [[f"{n:064x}"] for n in range(2 * BATCHES_OUT, 0, -1)]


def test_who_ends_hands_in_what_it_has_answered_and_begins_nothing_more() -> None:
    coordinator, provider = Coordinator(entry(1, QUESTION)), Echo()
    line = AnswerLine(provider, coordinator, time_class_s=0.3)  # type: ignore[arg-type] # stand-ins
    coordinator.line = threading.Event()  # a poll that finds nothing stops no line here
    coordinator.line.stop = coordinator.line.set
    thread = threading.Thread(target=line.run)
    thread.start()
    assert coordinator.line.wait(10)  # the answer waits for its time
    assert coordinator.handed == []
    line.stop()
    assert coordinator.handed == [[f"{1:064x}"]]
    coordinator.waiting = [entry(2, QUESTION)]
    thread.join(10)
    assert not thread.is_alive()
    assert provider.seen == [QUESTION]


def test_who_cannot_serve_yet_ends_with_its_node_and_never_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk was full, the node killed: by now another one may run in the home."""
    tried = []

    def serve(home: object, *_: object) -> None:
        tried.append(home)
        raise Unavailable("its disk is full")

    ours, nodes = os.pipe()
    monkeypatch.setattr(live, "serve", serve)
    monkeypatch.setattr(live, "AGAIN_S", (0.1, 0.1))
    monkeypatch.setattr(live.Home, "open", lambda: "a home")
    monkeypatch.setattr(live.logs, "configure", lambda: None)
    with open(ours) as stdin, ThreadPoolExecutor(1) as pool:  # noqa: PTH123 - a pipe has no path
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = pool.submit(live.main)
        while len(tried) < 2:
            assert not ended.done()
            time.sleep(0.01)
        os.close(nodes)
        assert ended.result(10) == 0


def test_answers_that_nobody_takes_are_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Away(Coordinator):
        def reply_sealed(self, body: Outbox) -> None:
            raise Unavailable("away")

    coordinator = Away(entry(1, QUESTION))
    line = AnswerLine(Echo(), coordinator, time_class_s=0.001)  # type: ignore[arg-type] # stand-ins
    coordinator.line = line
    line.run()
    assert [record.getMessage() for record in caplog.records] == ["answers not handed in"]


def test_requests_for_receipts_beyond_what_can_wait_are_dropped() -> None:
    coordinator = Coordinator()
    receipts = ReceiptLine(Desk(), coordinator, time_class_s=0.001)  # type: ignore[arg-type] # stand-ins
    for number in range(3 * RECEIPTS_WAITING):
        receipts.put(entry(number, RECEIPTS))
    assert receipts._waiting.qsize() == RECEIPTS_WAITING


def test_what_is_repeated_goes_on_after_any_failure(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Exception] = [Unavailable("away"), ValueError("a bug")]
    done = threading.Event()

    def once() -> None:
        if failures:
            raise failures.pop(0)
        done.set()

    repeated = Repeated("it", once, 0.001)
    thread = threading.Thread(target=repeated.run)
    thread.start()
    assert done.wait(10)
    repeated.stop()
    thread.join(10)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
