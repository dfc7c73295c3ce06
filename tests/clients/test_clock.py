"""A clock that cannot be believed begins nothing (GOVERNANCE.md, T14)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from clients.clock import ClockWatch
from federation.errors import Refused

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Counter:
    """A monotonic counter that the test moves."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("off_s", [-119, 0, 119, 120])
def test_a_clock_near_the_coordinators_is_believed(off_s: int) -> None:
    watch = ClockWatch(Counter())
    watch.require(NOW)  # nobody was asked yet
    watch.compare(NOW - timedelta(seconds=off_s), NOW)
    watch.require(NOW)


@pytest.mark.parametrize(("off_s", "way"), [(-121, "behind"), (121, "ahead of"), (3600, "ahead")])
def test_a_clock_far_from_the_coordinators_is_not(off_s: int, way: str) -> None:
    watch = ClockWatch(Counter())
    watch.compare(NOW - timedelta(seconds=off_s), NOW)
    with pytest.raises(Refused, match=f"{abs(off_s)} s {way}") as caught:
        watch.require(NOW)
    assert "NTP" in caught.value.todo


@pytest.mark.parametrize("jump_s", [-86400, -121, 121, 3600])
def test_a_clock_that_jumps_is_found_by_the_counter_alone(jump_s: int) -> None:
    counter = Counter()
    watch = ClockWatch(counter)
    watch.compare(NOW, NOW)
    counter.seconds += 60
    watch.require(NOW + timedelta(seconds=60))
    with pytest.raises(Refused):
        watch.require(NOW + timedelta(seconds=60 + jump_s))
    watch.require(NOW + timedelta(seconds=61))  # it was set right again


def test_offset_and_jump_add_up() -> None:
    watch = ClockWatch(Counter())
    watch.compare(NOW - timedelta(seconds=100), NOW)
    with pytest.raises(Refused, match="130 s ahead"):
        watch.require(NOW + timedelta(seconds=30))
