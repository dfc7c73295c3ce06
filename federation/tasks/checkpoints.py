"""What a party of a long task keeps from one attempt to the next.

A crashed attempt's channels, tokens and secrets are gone; a new attempt draws everything anew and
goes on from the last state that both ends have. The state is the party's own and stays with it.
"""

from __future__ import annotations

from typing import Protocol


class CheckpointBook(Protocol):
    """One party's last state of one job, over its attempts; in parts, where a whole is large."""

    def load(self, part: str = "") -> bytes | None:
        """What was saved last; None if nothing was."""

    def save(self, state: bytes, part: str = "") -> None:
        """On disk, whole, before this returns."""


class MemoryCheckpointBook:
    """For parties that live no longer than a process."""

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}

    def load(self, part: str = "") -> bytes | None:
        """What was saved last."""
        return self._parts.get(part)

    def save(self, state: bytes, part: str = "") -> None:
        """In memory."""
        self._parts[part] = state
