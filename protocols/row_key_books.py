"""What both ends of a set OPRF must remember, whatever crashes: interfaces that nodes make durable.

Each rule closes an attack that was run (CRYPTO_REVIEW.md part 2, items 2, 6 and 8). A bank that
answers one hello twice, for two lists, shows the department where they differ. A department that is
rebuilt with the same secret and judges a second reply tells the bank, by accepting and refusing,
everything it holds. So every write here returns only when it would survive a crash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from protocols import labels
from protocols.errors import ParameterError, ProtocolError
from protocols.streams import digest

VERSION = 1
REFUSALS_MAX = 3  # of one pair on one snapshot; then a person has to look
DIGEST_BYTES = 32
M_MAX = 2**24 - 1  # `okvs.ROWS_MAX`; nodes load these books without any kernel


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a bank and a department to agree on the row keys of a snapshot.

    `m` is the approved number: it stands in manifest and ledger (`set_oprf.approved_size`). Frames
    are authenticated together with `context()`; keys of two attempts have nothing in common.
    """

    bank: str
    department: str
    snapshot: bytes  # digest of the registry snapshot
    m: int
    number: int

    def __post_init__(self) -> None:
        if not self.bank or not self.department or self.bank == self.department:
            raise ValueError("an attempt is of two parties with different names")
        if len(self.snapshot) != DIGEST_BYTES:
            raise ValueError(f"a snapshot's digest has {DIGEST_BYTES} bytes")
        if not 0 < self.m <= M_MAX or self.number < 0:
            raise ParameterError(f"approved number {self.m:,}, attempt {self.number}")

    @property
    def pair(self) -> tuple[str, str, bytes]:
        """What refusals and approved numbers are counted by."""
        return self.bank, self.department, self.snapshot

    def context(self) -> bytes:
        """Everything that both ends agreed on before the first message, 32 bytes."""
        names = (self.bank, self.department)
        return digest(labels.SET_OPRF_CONTEXT, VERSION, *names, self.snapshot, self.m, self.number)


@dataclass(frozen=True, slots=True)
class StoredReply:
    """What a bank may send in an attempt, and what it was made from."""

    hello: bytes  # digest of the department's hello
    customers: bytes  # digest of the list
    payload: bytes = field(repr=False)  # the reply, byte for byte


class ReplyBook(Protocol):
    """The bank's: the one reply of every attempt."""

    def replied(self, attempt: Attempt) -> StoredReply | None:
        """The attempt's reply, if there ever was one."""

    def record(self, attempt: Attempt, reply: StoredReply) -> None:
        """Durable. An equal reply again changes nothing, another raises ProtocolError."""


class AttemptBook(Protocol):
    """The department's: which attempts were opened, on which reply, and how they ended.

    Each method raises ProtocolError where its condition does not hold, and then writes nothing;
    condition and write are one step, also for two processes.
    """

    def open(self, attempt: Attempt, approved: int) -> None:
        """Durable, before the hello leaves. Again for the same attempt it changes nothing.

        Condition: it is not refused, the pair has no later attempt and no attempt of this number
        with another m, fewer than `REFUSALS_MAX` were refused, and its m with those of the pair's
        other attempts that count (`given`) is at most `approved`.
        """

    def take(self, attempt: Attempt, reply: bytes) -> None:
        """Durable, before the reply is looked at: this is the digest that the attempt is about.

        Condition: it was opened and is neither over nor refused, and took no reply or this one.
        """

    def refuse(self, attempt: Attempt) -> None:
        """Durable, before the refusal is visible. The attempt is closed and gives no keys."""

    def given(self, pair: tuple[str, str, bytes]) -> int:
        """Sum of m over the pair's attempts that took a reply and did not refuse it.

        What the ledger says of the bank: it may have got so many keys.
        """


class MemoryReplyBook:
    """A ReplyBook that forgets with its process: for tests, examples and runs in one process."""

    def __init__(self) -> None:
        self._replies: dict[Attempt, StoredReply] = {}

    def replied(self, attempt: Attempt) -> StoredReply | None:
        return self._replies.get(attempt)

    def record(self, attempt: Attempt, reply: StoredReply) -> None:
        if self._replies.setdefault(attempt, reply) != reply:
            raise ProtocolError("the attempt was answered otherwise")


@dataclass(slots=True)
class _Progress:
    reply: bytes | None = None
    refused: bool = False


class MemoryAttemptBook:
    """An AttemptBook that forgets with its process."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str, bytes], dict[Attempt, _Progress]] = {}

    def open(self, attempt: Attempt, approved: int) -> None:
        progress = self._require_open(attempt)
        own = attempt.m if progress is not None and progress.reply else 0
        if self.given(attempt.pair) - own + attempt.m > approved:
            raise ProtocolError(
                f"{attempt.m:,} row keys asked, {self.given(attempt.pair) - own:,} given before, "
                f"{approved:,} approved"
            )
        if progress is None:
            self._pairs.setdefault(attempt.pair, {})[attempt] = _Progress()

    def take(self, attempt: Attempt, reply: bytes) -> None:
        progress = self._require_open(attempt)
        if progress is None:
            raise ProtocolError(f"attempt {attempt.number} was not opened")
        if progress.reply not in (None, reply):
            raise ProtocolError(f"attempt {attempt.number} took another reply")
        progress.reply = reply

    def refuse(self, attempt: Attempt) -> None:
        self._pairs[attempt.pair][attempt].refused = True

    def given(self, pair: tuple[str, str, bytes]) -> int:
        attempts = self._pairs.get(pair, {}).items()
        return sum(a.m for a, progress in attempts if progress.reply and not progress.refused)

    def _require_open(self, attempt: Attempt) -> _Progress | None:
        attempts = self._pairs.get(attempt.pair, {})
        refusals = sum(progress.refused for progress in attempts.values())
        if refusals >= REFUSALS_MAX:
            raise ProtocolError(f"{refusals} attempts were refused: a person has to look")
        if any(other.number > attempt.number for other in attempts):
            raise ProtocolError(f"attempt {attempt.number} is over, a later one was opened")
        if any(o.number == attempt.number and o.m != attempt.m for o in attempts):
            raise ProtocolError(f"attempt {attempt.number} was opened for another number")
        progress = attempts.get(attempt)
        if progress is not None and progress.refused:
            raise ProtocolError(f"attempt {attempt.number} is closed")
        return progress
