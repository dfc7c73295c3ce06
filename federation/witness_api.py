"""The bodies with which checkpoints and cosignatures travel through the coordinator.

It carries them. What it withholds or changes costs time (answers stop) and proves nothing to
anybody: log and witness sign, and both verify what they get.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from federation.api import Body
from federation.objects import Count, OrgId

MAX_NOTE = 4096
MAX_PROOFS = 64  # one for each size that some witness has
MAX_NOTES = 256

Note = Annotated[str, Field(max_length=MAX_NOTE, repr=False)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class SizeProof(Body):
    """That the first `size` entries are unchanged."""

    size: Count
    hashes: Annotated[tuple[Hash, ...], Field(max_length=64)]

    def raw(self) -> list[bytes]:
        """The hashes as bytes."""
        return [bytes.fromhex(item) for item in self.hashes]


class Published(Body):
    """A log's newest checkpoint, with proofs from the sizes that its witnesses have."""

    org: OrgId  # whose log
    note: Note
    proofs: Annotated[tuple[SizeProof, ...], Field(max_length=MAX_PROOFS)] = ()


class SeenNote(Body):
    """The last checkpoint of a log that a witness has cosigned."""

    org: OrgId  # whose log
    witness: OrgId
    note: Note


class SeenNotes(Body):
    """Cosignatures of the caller's."""

    items: Annotated[tuple[SeenNote, ...], Field(max_length=MAX_NOTES)]


class Board(Body):
    """What changed after version `after`: checkpoints, and who cosigned which."""

    version: Count  # below `after` where the board is another one than the caller has read
    published: tuple[Published, ...]
    seen: tuple[SeenNote, ...]


class Accepted(Body):
    """How many of the notes were kept."""

    kept: Count
