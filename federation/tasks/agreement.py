"""The first words of a job: commitments of everybody to everybody, then the joint seed.

PROTOCOLS.md section 6: before the run each party commits to its master seed and to its data; the
public coins of the job are the hash of nonces of *all* parties, committed first and opened when all
commitments are in, so that nobody chooses them (CRYPTO_REVIEW.md F5, F16). In the last round all
compare what they saw: a party that told two stories stops the job.

Where the manifest names auditors the bank seals its seed to them between the two rounds
(`federation/escrow.py`); a department that gets no escrow opens no nonce, and so answers nothing.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from federation.errors import Refused
from federation.escrow import SealedSeed, seed_commitment
from federation.tasks.messages import Agreed, Commitments, OpenedNonce
from federation.tasks.party import Party
from protocols import labels
from protocols.errors import ProtocolError
from protocols.streams import digest

STAGE = "agreement"
PIECES = ("customers", "labels", "columns")  # what a bank's commitments to data are to
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all parties of the job hold after the first round."""

    joint_seed: bytes = field(repr=False)
    commitments: tuple[bytes, ...]  # of this party: seed, nonce, data


@dataclass(frozen=True, slots=True)
class Customers:
    """A bank's rows of the cover: what its queries may touch."""

    cover_rows: int
    positions: NDArray[np.int64] = field(repr=False)


def agree(
    party: Party,
    peers: Sequence[str],
    data: Sequence[bytes],
    customers: Customers | None = None,
) -> Agreement:
    """Commit, open, compare; raises ProtocolError if a peer opens something else than it committed
    to or the parties saw different commitments.

    data: serialised pieces to commit to, each salted on its own, so that an auditor can be shown
    one of them alone. customers: the bank's, for the auditors.
    """
    everybody = sorted([party.me, *peers])
    with party.at(STAGE, 3) as done:
        nonce = party.randomness.key(labels.JOINT_NONCE)
        mine = Commitments(
            seed_commitment(party.randomness, party.me),
            _nonce_commitment(party, party.me, nonce),
            tuple(
                digest(labels.DATA_COMMITMENT, party.me, i, _salt(party, i, piece), piece)
                for i, piece in enumerate(data)
            ),
        )
        committed = {party.me: mine, **_exchange(party, peers, mine, Commitments)}
        for name in everybody:
            party.saw(name, "seed", committed[name].seed)
            party.saw(name, "nonce", committed[name].nonce)
            for what, piece in zip(PIECES, committed[name].data, strict=False):
                party.saw(name, what, piece)
        escrow = _escrow(party, peers, committed, customers)
        done(1)
        opened = {
            party.me: OpenedNonce(nonce),
            **_exchange(party, peers, OpenedNonce(nonce), OpenedNonce),
        }
        for peer in peers:
            expected = _nonce_commitment(party, peer, opened[peer].nonce)
            if not hmac.compare_digest(expected, committed[peer].nonce):
                raise ProtocolError(f"{peer} opened another nonce than it committed to")
        done(2)
        seen: list[bytes | str | int] = [labels.AGREEMENT, party.manifest_digest, party.attempt]
        seen.append(escrow)
        for name in everybody:
            item = committed[name]
            seen += [name, item.seed, item.nonce, len(item.data), *item.data, opened[name].nonce]
        transcript = digest(*seen)
        for peer, word in _exchange(party, peers, Agreed(transcript), Agreed).items():
            if not hmac.compare_digest(word.digest, transcript):
                raise ProtocolError(f"{peer} saw other commitments than this party")
        party.saw(party.me, "agreement", transcript)
    return Agreement(joint_seed_of(transcript), (mine.seed, mine.nonce, *mine.data))


def joint_seed_of(agreement: bytes) -> bytes:
    """The public coins, from what a party's record calls `agreement`."""
    return digest(labels.JOINT_SEED, agreement)


def _escrow(
    party: Party,
    peers: Sequence[str],
    committed: Mapping[str, Commitments],
    customers: Customers | None,
) -> bytes:
    """Digest of the bank's escrow, empty where the manifest names no auditors."""
    manifest, bank = party.manifest, party.manifest.bank
    if not manifest.audit.auditors:
        return b""
    if party.desk is None:
        todo = "run the job at a node, which has the auditors' cards"
        raise Refused("no way to seal or check an escrow", party=party.me, stage=STAGE, todo=todo)
    if party.me == bank:
        if customers is None:
            raise RuntimeError("a bank that does not say who its customers are")
        rows = np.zeros(customers.cover_rows, np.bool_)
        rows[customers.positions] = True
        given = party.desk.deposit(party.randomness, rows)
        for peer in peers:
            party.channels[peer].send(STAGE, given)
    else:
        given = party.channels[bank].receive(STAGE, SealedSeed)
        party.desk.accept(given, committed[bank].seed)
    found = digest(given.escrow, given.customers)
    party.saw(bank, "escrow", found)
    return found


def _nonce_commitment(party: Party, name: str, nonce: bytes) -> bytes:
    # The nonce is 32 uniform bytes: it hides itself. Name and job keep it from being replayed.
    return digest(labels.NONCE_COMMITMENT, party.manifest_digest, party.attempt, name, nonce)


def _salt(party: Party, index: int, piece: bytes) -> bytes:
    return party.randomness.key(labels.DATA_COMMITMENT, column=index, inputs=digest(piece))


def _exchange(party: Party, peers: Sequence[str], message: object, kind: type[M]) -> dict[str, M]:
    for peer in peers:
        party.channels[peer].send(STAGE, message)
    return {peer: party.channels[peer].receive(STAGE, kind) for peer in peers}
