"""The rounds of one attempt between Flower's messages and the party program in its thread.

The coordinator repeats a round's message until it is answered, so a round may come several times
and its answer may be asked for several times; the program sees each round once.
"""

from __future__ import annotations

import threading
import time

from federation.errors import PartyLost
from federation.tasks.party import RoundOrder, RoundReply
from protocols.errors import ProtocolError


class RoundBox:
    """One attempt's rounds; `federation.tasks.party.Rounds` for the program."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._order: RoundOrder | None = None
        self._taken = 0  # number of the last round that the program took
        self._reply: RoundReply | None = None
        self._is_closed = False

    def take(self) -> RoundOrder:
        """The next round; PartyLost if none comes in time or the attempt is over."""
        deadline = time.monotonic() + self._wait_s
        with self._changed:
            while self._order is None or self._order.number <= self._taken:
                left = deadline - time.monotonic()
                if self._is_closed:
                    raise PartyLost("the attempt is over", party="coordinator", stage="rounds")
                if left <= 0:
                    todo = "ask the platform to run `lianmo doctor`"
                    what = f"no round for {self._wait_s:.0f} s"
                    raise PartyLost(what, party="coordinator", stage="rounds", todo=todo)
                self._changed.wait(left)
            self._taken = self._order.number
            return self._order

    def give(self, reply: RoundReply) -> None:
        """The answer to the round taken last."""
        with self._changed:
            if reply.number != self._taken:
                raise RuntimeError("an answer to another round than the one taken")
            self._reply = reply
            self._changed.notify_all()

    def put(self, order: RoundOrder) -> None:
        """A round that came; a repeat changes nothing, an older one is out of step."""
        with self._changed:
            if self._order is not None and order.number < self._order.number:
                raise ProtocolError(f"round {order.number} after round {self._order.number}")
            if self._order is None or order.number > self._order.number:
                self._order = order
                self._changed.notify_all()

    def answer(self, number: int, timeout_s: float) -> RoundReply | None:
        """The answer to a round, if there is one within the time."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_closed or (self._reply is not None and self._reply.number == number)
                ),
                timeout_s,
            )
            reply = self._reply
        return reply if reply is not None and reply.number == number else None

    def close(self) -> None:
        """The attempt is over: nobody waits any longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
