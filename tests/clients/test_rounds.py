"""A round reaches the program once, however often its message comes."""

import threading

import numpy as np
import pytest

from clients.rounds import RoundBox
from federation.errors import PartyLost
from federation.tasks.party import RoundOrder, RoundReply
from protocols.errors import ProtocolError

WEIGHTS = np.zeros(3, np.float32)


def test_a_repeated_round_is_seen_once_and_its_answer_is_there_for_every_repeat() -> None:
    box = RoundBox(5.0)
    seen: list[int] = []

    def program() -> None:
        for _ in range(2):
            order = box.take()
            seen.append(order.number)
            box.give(RoundReply(order.number, WEIGHTS, 5))

    thread = threading.Thread(target=program)
    thread.start()
    box.put(RoundOrder(1, WEIGHTS))
    box.put(RoundOrder(1, WEIGHTS))
    for _ in range(2):
        reply = box.answer(1, 5.0)
        assert reply is not None
        assert reply.number == 1
    box.put(RoundOrder(2, WEIGHTS))
    assert (reply := box.answer(2, 5.0)) is not None
    assert reply.customers == 5
    assert box.answer(1, 0.01) is None
    thread.join()
    assert seen == [1, 2]


def test_an_older_round_is_out_of_step() -> None:
    box = RoundBox(5.0)
    box.put(RoundOrder(3, WEIGHTS))
    with pytest.raises(ProtocolError, match="round 2 after round 3"):
        box.put(RoundOrder(2, WEIGHTS))


def test_a_program_that_waits_for_a_round_is_told_when_none_comes() -> None:
    box = RoundBox(0.05)
    with pytest.raises(PartyLost, match="no round"):
        box.take()
    closing = RoundBox(60.0)
    threading.Timer(0.05, closing.close).start()
    with pytest.raises(PartyLost):
        closing.take()
