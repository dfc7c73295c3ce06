"""The finished steps of a task, kept by each party for the next attempt (PROTOCOLS.md section 6).

A step is what all parties of a job do together up to a point at which each has its result on disk.
A new attempt goes on from there:

    hold      each tells all others which steps it has, and from which attempt each one is
    compare   all saw the same words, so that nobody told two stories; they go on from the longest
              beginning that all of them have from the same attempts
    run       the result of a held step comes from disk: nothing is sent, asked, opened or disclosed
              again; any other step is run, and its result is on disk before the party goes on

What a step used up (tokens, pads, masks) belongs to its attempt and is never used again: a step
that one party had not finished is run again by all, with new ones (CRYPTO_REVIEW.md F3, F4).

Not covered  a party that says that it has nothing, to have a step run again: it gets the same
             values (`Party.lasting`), pays with tokens, and openings of single rows are counted by
             the department that seals them (`Opened`)
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from federation import wire
from federation.errors import IntegrityError
from federation.tasks.checkpoints import CheckpointBook, MemoryCheckpointBook
from federation.tasks.messages import Agreed
from federation.tasks.party import Party
from protocols import labels
from protocols.errors import ProtocolError
from protocols.streams import digest

STAGE = "resume"
INDEX, OPENED = "", "opened"  # parts of the book, beside the steps' own
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Held:
    """Each party to all others: the attempts that its finished steps are from, in their order."""

    attempts: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(after < before for before, after in pairwise(self.attempts)):
            raise ValueError("a later step of an earlier attempt")


@dataclass(frozen=True, slots=True)
class _Done:
    """A line of the index."""

    attempt: int
    content: str  # digest


class Steps:
    """One party's steps in one attempt."""

    def __init__(self, party: Party, schedule: Sequence[str], inputs: bytes) -> None:
        """schedule: all steps of the job, the same at all parties. inputs: digest of what this
        party brings; with other data nothing of an earlier attempt is used."""
        self._party, self._schedule = party, tuple(schedule)
        self._inputs = digest(labels.STEPS, party.manifest_digest, inputs).hex()
        self._book: CheckpointBook = party.checkpoints or MemoryCheckpointBook()
        self._done = self._load()
        self._next = 0

    def agree(self, peers: Sequence[str]) -> None:
        """Find with all where to go on; raises ProtocolError if somebody told two stories."""
        party, mine = self._party, Held(tuple(item.attempt for item in self._done))
        with party.at(STAGE, 2) as done:
            said = {party.me: mine}
            for peer in peers:
                party.channels[peer].send(STAGE, mine)
            for peer in peers:
                word = said[peer] = party.channels[peer].receive(STAGE, Held)
                self._require_possible(peer, word)
            done(1)
            seen: list[bytes | str | int] = [labels.STEPS, party.manifest_digest, party.attempt]
            for name in sorted(said):
                seen += [name, len(said[name].attempts), *said[name].attempts]
            transcript = digest(*seen)
            for peer in peers:
                party.channels[peer].send(STAGE, Agreed(transcript))
            for peer in peers:
                word_ = party.channels[peer].receive(STAGE, Agreed).digest
                if not hmac.compare_digest(word_, transcript):
                    raise ProtocolError(f"{peer} heard of other finished steps than this party")
        common = 0
        for attempts in zip(*(word.attempts for word in said.values()), strict=False):
            if len(set(attempts)) > 1:
                break
            common += 1
        self._done = self._done[:common]

    def is_held(self, name: str) -> bool:
        """Whether an earlier attempt finished the step, at all parties."""
        return self._schedule.index(name) < len(self._done)

    def run(self, name: str, kind: type[M], work: Callable[[], M]) -> M:
        """The step's result: from disk if it is held, else of `work`, and then on disk."""
        place = self._schedule.index(name)
        if place != self._next:
            raise RuntimeError(f"step {name} is not the next one")
        self._next += 1
        if place < len(self._done):
            content = self._book.load(_part(place))
            if content is None or digest(content).hex() != self._done[place].content:
                raise IntegrityError(f"the result of step {name} is gone", party=self._party.me)
            return wire.decode(content, kind)
        result = work()
        content = wire.encode(result)
        self._book.save(content, _part(place))
        self._done.append(_Done(self._party.attempt, digest(content).hex()))
        self._save()
        return result

    def _require_possible(self, peer: str, word: Held) -> None:
        is_past = all(0 <= attempt < self._party.attempt for attempt in word.attempts)
        if len(word.attempts) > len(self._schedule) or not is_past:
            raise ProtocolError(f"{peer} has finished steps that there cannot have been")

    def _load(self) -> list[_Done]:
        """As far as the files are whole: what a crash or a person damaged is run again."""
        data = self._book.load(INDEX)
        try:
            plain = json.loads(data) if data is not None else {}
            if plain.get("inputs") != self._inputs:
                return []
            listed = [_Done(int(attempt), str(content)) for attempt, content in plain["steps"]]
        except (AttributeError, KeyError, TypeError, ValueError):
            return []
        found: list[_Done] = []
        for place, item in enumerate(listed[: len(self._schedule)]):
            content = self._book.load(_part(place))
            if content is None or digest(content).hex() != item.content:
                break
            if not 0 <= item.attempt < self._party.attempt:
                break
            found.append(item)
        return found

    def _save(self) -> None:
        lines = [[item.attempt, item.content] for item in self._done]
        plain = {"inputs": self._inputs, "steps": lines}
        self._book.save(json.dumps(plain).encode(), INDEX)


class Opened:
    """What a department ever sealed for single rows in this job, over all attempts.

    A crash, or a bank that says it had one, must not give openings back: beyond the approved number
    only what was sealed before is sealed again, to the same values.
    """

    def __init__(self, party: Party) -> None:
        self._book: CheckpointBook = party.checkpoints or MemoryCheckpointBook()
        data = self._book.load(OPENED)
        try:
            self._ever: dict[str, list[str]] = json.loads(data) if data is not None else {}
        except ValueError as error:
            text = "the record of earlier openings is not well formed"
            raise IntegrityError(text, party=party.me) from error

    def require(self, what: str, of: bytes, most: int) -> None:
        """On disk before anything is sealed; raises ProtocolError for one beyond the number."""
        ever = self._ever.setdefault(what, [])
        if of.hex() in ever:
            return
        if len(ever) >= most:
            raise ProtocolError("more openings over all attempts than the manifest allows")
        ever.append(of.hex())
        self._book.save(json.dumps(self._ever).encode(), OPENED)


def _part(place: int) -> str:
    return f"step-{place:02d}"
