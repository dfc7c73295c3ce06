"""Whether this node's clock can be believed (GOVERNANCE.md, T14).

Two things are known besides it: what the coordinator's clock said when it was last asked, and the
monotonic counter since. A node whose clock is more than 120 s away from either begins nothing. That
the clock is not behind its own log is the audit log's question (`AuditLog.require_clock`).

A lying coordinator can stop a node so, which it can do anyway; it cannot make one accept an old or
an early object, since nothing is ever dated by its clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime

from federation.errors import RefusalCode, Refused
from federation.trust import CLOCK_SKEW

_TODO = "set the clock by NTP; `lianmo doctor` compares it with the coordinator's"


class ClockWatch:
    """The offset to the coordinator's clock, and jumps since it was measured."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic, self._lock = monotonic, threading.Lock()
        self._start: tuple[datetime, float] | None = None  # our clock and counter, at one moment
        self._ahead_s = 0.0

    def compare(self, theirs: datetime, now: datetime) -> float:
        """Take note of another's clock; how many seconds ours is ahead."""
        with self._lock:
            self._start = now, self._monotonic()
            self._ahead_s = (now - theirs).total_seconds()
            return self._ahead_s

    def require(self, now: datetime) -> None:
        """Raises Refused if the clock is off, or jumped since it was compared."""
        with self._lock:
            if self._start is None:
                return
            then, counter = self._start
            jumped_s = (now - then).total_seconds() - (self._monotonic() - counter)
            ahead_s = self._ahead_s + jumped_s
        limit_s = CLOCK_SKEW.total_seconds()
        if abs(ahead_s) > limit_s:
            way = "ahead of" if ahead_s > 0 else "behind"
            what = f"this node's clock is {abs(ahead_s):.0f} s {way} the coordinator's"
            raise Refused(what, code=RefusalCode.UNFULFILLABLE, todo=_TODO)
