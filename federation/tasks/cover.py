"""How a bank tells the departments a job's rows, where those are not the whole registry.

The bank's gate chooses the rows (PROTOCOLS.md section 0), each department's gate holds them to the
manifest before it lines its columns up with them. Every department gets the same list; the program
compares its digest over all of them afterwards, and enters it in the ledger as `cover`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.objects import CoverKind
from federation.registry import Cover, Registry
from federation.tasks.party import Party

STAGE = "cover"


@dataclass(frozen=True, slots=True, eq=False)
class CoverRows:
    """Bank to every department: positions in the registry, ascending."""

    registry: bytes  # its digest
    positions: NDArray[np.int32] = field(repr=False)  # (rows,)


def send_cover(party: Party, cover: Cover) -> None:
    """Bank: name the rows to every department; nothing is sent where they are the registry."""
    if cover.kind is CoverKind.REGISTRY:
        return
    message = CoverRows(cover.registry, cover.positions.astype(np.int32))
    with party.at(STAGE, len(party.manifest.departments)) as done:
        for number, org in enumerate(party.manifest.departments, start=1):
            party.channels[org].send(STAGE, message)
            done(number)


def receive_cover(party: Party, registry: Registry) -> Cover | None:
    """Department: the bank's rows, or None where they are the registry.

    Raises IntegrityError for a list that is none; whether it is the approved one is the gate's
    question.
    """
    kind = party.manifest.cover.kind
    if kind is CoverKind.REGISTRY:
        return None
    with party.at(STAGE):
        message = party.channels[party.manifest.bank].receive(STAGE, CoverRows)
        cover = Cover(kind, message.registry, message.positions.astype(np.int64))
        cover.require_on(registry)
    return cover
