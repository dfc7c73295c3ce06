"""A network's documents as files, for nodes and the coordinator alike.

    network/charter.json                the charter that this home has joined: its pin
    network/decisions/<org>-<n>.json    decisions that count, for good
    network/proposals/<digest>.json     decisions that still lack signatures
    network/bulletins/<org>.json        a founder's newest word, and `<org>.known.json` its newest
                                        one that named nothing unknown here
    network/signed/<org>-<n>            what this home, a founder's, has signed for that place

The files are read again when one of them changes; every one is verified then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from federation.envelope import Envelope
from federation.errors import Conflict, IntegrityError, LianmoError, NotFound, Refused
from federation.keyring import DIRECTORY_MODE, write, write_once
from federation.network import (
    Bulletin,
    Bundle,
    MemberDecision,
    Standing,
    check_charter,
    merged,
)
from federation.objects import utc_time
from federation.trust import CLOCK_SKEW, TrustStore

PROPOSALS_MAX = 256  # a founder that proposes without end fills no disk

_FOLDERS = ("decisions", "proposals", "bulletins", "signed")


@dataclass(slots=True)
class Taken:
    """What was new in a bundle, nothing of it written yet."""

    decisions: list[MemberDecision] = field(default_factory=list)
    proposals: list[MemberDecision] = field(default_factory=list)
    bulletins: list[Bulletin] = field(default_factory=list)
    refused: list[LianmoError] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)  # by name below the folder

    def __bool__(self) -> bool:
        return bool(self.files)


class NetworkFolder:
    """The folder `network` of one home; other processes may write it too."""

    def __init__(self, home: Path) -> None:
        self.path = home / "network"
        self._cached: tuple[object, TrustStore, Standing] | None = None

    # --- reading ----------------------------------------------------------------------------------

    def standing(self, trust: TrustStore) -> Standing:
        """What follows from the files; without a folder everybody who is trusted takes part.

        Raises IntegrityError if the folder is there and its charter is not: somebody who takes the
        charter away must not thereby let everybody in.
        """
        state = self._state()
        if self._cached is not None and self._cached[0] == state and self._cached[1] is trust:
            return self._cached[2]
        if not state:
            found = Standing(trust)
        else:
            words = self._read_words(trust)
            charter, decisions = self.charter(), self._read("decisions")
            found = Standing(trust, charter, decisions, words)
        self._cached = state, trust, found
        return found

    def charter(self) -> Envelope:
        """The pinned charter."""
        file = self.path / "charter.json"
        if not file.is_file():
            if self.path.is_dir():
                todo = "restore network/ from a backup"
                raise IntegrityError("network/charter.json is gone", todo=todo)
            todo = "get the charter from a founder, then `lianmo network join FILE`"
            raise NotFound("this home has joined no network", todo=todo)
        return _envelope(file)

    def proposals(self) -> list[Envelope]:
        """Decisions that still lack signatures."""
        return list(self._read("proposals"))

    def bundle(self) -> Bundle:
        """All documents, to be given on."""
        if not self.path.is_dir():
            return Bundle()
        folder = self.path / "bulletins"
        newest = [file for file in sorted(folder.glob("*.json")) if ".known." not in file.name]
        return Bundle(
            charter=self.charter(),
            decisions=(*self._read("decisions"), *self._read("proposals")),
            bulletins=tuple(_envelope(file) for file in newest),
        )

    # --- writing ----------------------------------------------------------------------------------

    def join(self, charter: Envelope) -> None:
        """Pin a charter that somebody compared; raises Conflict if another one is pinned."""
        check_charter(charter)
        if self.path.is_dir():
            if self.charter().payload == charter.payload:
                return
            todo = "a home is in one network; make another home for another one"
            raise Conflict("this home has joined another network", todo=todo)
        beside = self.path.with_name(f".{self.path.name}.new")
        beside.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        for name in _FOLDERS:
            (beside / name).mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        write(beside / "charter.json", charter.to_json())
        beside.rename(self.path)

    def sift(self, bundle: Bundle, trust: TrustStore, now: datetime) -> Taken:
        """What of these documents is new and holds; what does not hold is in `refused`."""
        taken, standing = Taken(), self.standing(trust)
        pinned = self.charter()
        if bundle.charter is not None and bundle.charter.payload != pinned.payload:
            what = "the documents are of another network than the one joined here"
            raise IntegrityError(what, todo="compare the charters' fingerprints")
        held = {hashlib.sha256(item.payload).hexdigest(): item for item in self.proposals()}
        for envelope in _in_order(bundle.decisions, taken):
            digest = hashlib.sha256(envelope.payload).hexdigest()
            try:
                standing = self._sift_one(envelope, digest, held.get(digest), standing, taken, now)
            except LianmoError as error:
                taken.refused.append(error)
        for envelope in bundle.bulletins:
            try:
                self._sift_word(envelope, standing, taken, now)
            except LianmoError as error:
                taken.refused.append(error)
        return taken

    def keep(self, taken: Taken) -> None:
        """Write what `sift` found; raises Conflict if another process was faster with another
        decision at the same place."""
        for name, content in taken.files.items():
            file = self.path / name
            if file.parent.name != "decisions":
                write(file, content)
                continue
            write_once(file, content, 0o644)
            if _envelope(file).payload != Envelope.from_json(content).payload:
                raise Conflict(f"another decision stands at {file.stem} already")
        if taken.decisions:
            self._forget_old_proposals()

    def remember_signed(self, decision: MemberDecision, *, instead: bool = False) -> None:
        """This founder signs this decision and no other one at its place.

        Two decisions at one place would need a founder who signs both; `instead` is for a proposal
        that was given up by all. Raises Conflict.
        """
        file = self.path / "signed" / f"{decision.org}-{decision.sequence}"
        digest = decision.digest().encode()
        write_once(file, digest, 0o600)
        if file.read_bytes() != digest:
            if not instead:
                todo = "if all founders have given that one up, sign with --instead"
                what = "this founder signed another decision at the same place"
                raise Conflict(what, party=decision.org, todo=todo)
            write(file, digest, 0o600)

    # --- inside -----------------------------------------------------------------------------------

    def _sift_one(
        self,
        envelope: Envelope,
        digest: str,
        held: Envelope | None,
        standing: Standing,
        taken: Taken,
        now: datetime,
    ) -> Standing:
        decision = envelope.unverified(MemberDecision)
        chain = standing.chain(decision.org)
        if any(link.digest == digest for link in chain):
            return standing
        if utc_time(decision.created) > now + CLOCK_SKEW:
            raise Refused("a decision from the future", party=decision.org)
        if decision.sequence <= len(chain):  # checked for the message's sake
            standing.require_next(decision)
        decision, signers = standing.check_decision(envelope)
        if held is not None:
            both = merged(envelope, held)
            if both.signatures == held.signatures:
                envelope, signers = held, standing.check_decision(held)[1]
            else:
                envelope, signers = both, standing.check_decision(both)[1]
        try:
            standing.require_quorum(decision, signers)
        except Refused:
            if held is None or envelope is not held:
                if held is None and len(self.proposals()) >= PROPOSALS_MAX:
                    raise Refused("too many proposals", party=decision.org) from None
                taken.proposals.append(decision)
                taken.files[f"proposals/{digest}.json"] = envelope.to_json()
            return standing
        taken.decisions.append(decision)
        taken.files.pop(f"proposals/{digest}.json", None)
        taken.files[f"decisions/{decision.org}-{decision.sequence:06d}.json"] = envelope.to_json()
        return standing.with_decision(envelope)

    def _sift_word(
        self, envelope: Envelope, standing: Standing, taken: Taken, now: datetime
    ) -> None:
        word = standing.check_bulletin(envelope).object
        if utc_time(word.created) > now + CLOCK_SKEW:
            raise Refused("a bulletin from the future", party=word.org)
        names = [f"bulletins/{word.org}.json"]
        if standing.knows_all(word):
            names.append(f"bulletins/{word.org}.known.json")
        for name in names:
            file = self.path / name
            before = _envelope(file).unverified(Bulletin).created if file.is_file() else ""
            if word.created > before:
                taken.files[name] = envelope.to_json()
                if word not in taken.bulletins:
                    taken.bulletins.append(word)

    def _read_words(self, trust: TrustStore) -> list[Envelope]:
        """Bulletins of founders whose card is trusted here; others cannot be checked."""
        return [
            envelope
            for envelope in self._read("bulletins")
            if envelope.unverified(Bulletin).org in trust
        ]

    def _forget_old_proposals(self) -> None:
        """A place that is taken needs no proposal any more."""
        placed = {file.stem for file in (self.path / "decisions").glob("*.json")}
        for file in (self.path / "proposals").glob("*.json"):
            decision = _envelope(file).unverified(MemberDecision)
            if f"{decision.org}-{decision.sequence:06d}" in placed:
                file.unlink(missing_ok=True)

    def _read(self, name: str) -> Iterator[Envelope]:
        for file in sorted((self.path / name).glob("*.json")):
            yield _envelope(file)

    def _state(self) -> list[tuple[str, int, int, int]]:
        if not self.path.is_dir():
            return []
        files = [self.path / "charter.json"]
        for name in ("decisions", "bulletins"):
            files += (self.path / name).glob("*.json")
        found = [("network", 0, 0, 0)]
        for file in sorted(files):
            if file.is_file():
                about = file.stat()
                found.append((str(file), about.st_mtime_ns, about.st_size, about.st_ino))
        return found


def _in_order(envelopes: tuple[Envelope, ...], taken: Taken) -> list[Envelope]:
    """By time, organisation and place; what is no decision is refused."""
    found = []
    for envelope in envelopes:
        try:
            decision = envelope.unverified(MemberDecision)
        except LianmoError as error:
            taken.refused.append(error)
            continue
        found.append((decision.created, decision.org, decision.sequence, envelope))
    return [item[3] for item in sorted(found, key=lambda item: item[:3])]


def _envelope(file: Path) -> Envelope:
    try:
        return Envelope.from_json(file.read_bytes())
    except LianmoError as error:
        todo = "restore network/ from a backup"
        raise IntegrityError(f"network/{file.name}: {error.what}", todo=todo) from None
