"""The first words of a job: commitments of everybody to everybody, then the joint seed.

PROTOCOLS.md section 6: before the run each party commits to its master seed and to its data; the
public coins of the job are the hash of nonces of *all* parties, committed first and opened when all
commitments are in, so that nobody chooses them (CRYPTO_REVIEW.md F5, F16). In the last round all
compare what they saw: a party that told two stories stops the job.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from federation.tasks.messages import Agreed, Commitments, OpenedNonce
from federation.tasks.party import Party
from protocols import labels
from protocols.errors import ProtocolError
from protocols.streams import digest

STAGE = "agreement"
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all parties of the job hold after the first round."""

    joint_seed: bytes = field(repr=False)
    commitments: tuple[bytes, ...]  # of this party: seed, nonce, data


def agree(party: Party, peers: Sequence[str], data: Sequence[bytes]) -> Agreement:
    """Commit, open, compare; raises ProtocolError if a peer opens something else than it committed
    to or the parties saw different commitments.

    data: serialised pieces to commit to, each salted on its own, so that an auditor can be shown
    one of them alone.
    """
    everybody = sorted([party.me, *peers])
    with party.at(STAGE, 3) as done:
        nonce = party.randomness.key(labels.JOINT_NONCE)
        salt = party.randomness.key(labels.SEED_COMMITMENT)
        mine = Commitments(
            digest(labels.SEED_COMMITMENT, party.me, party.randomness.master, salt),
            _nonce_commitment(party, party.me, nonce),
            tuple(
                digest(labels.DATA_COMMITMENT, party.me, i, _salt(party, i, piece), piece)
                for i, piece in enumerate(data)
            ),
        )
        committed = {party.me: mine, **_exchange(party, peers, mine, Commitments)}
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
        for name in everybody:
            item = committed[name]
            seen += [name, item.seed, item.nonce, len(item.data), *item.data, opened[name].nonce]
        transcript = digest(*seen)
        for peer, word in _exchange(party, peers, Agreed(transcript), Agreed).items():
            if not hmac.compare_digest(word.digest, transcript):
                raise ProtocolError(f"{peer} saw other commitments than this party")
    return Agreement(digest(labels.JOINT_SEED, transcript), (mine.seed, mine.nonce, *mine.data))


def _nonce_commitment(party: Party, name: str, nonce: bytes) -> bytes:
    # The nonce is 32 uniform bytes: it hides itself. Name and job keep it from being replayed.
    return digest(labels.NONCE_COMMITMENT, party.manifest_digest, party.attempt, name, nonce)


def _salt(party: Party, index: int, piece: bytes) -> bytes:
    return party.randomness.key(labels.DATA_COMMITMENT, column=index, inputs=digest(piece))


def _exchange(party: Party, peers: Sequence[str], message: object, kind: type[M]) -> dict[str, M]:
    for peer in peers:
        party.channels[peer].send(STAGE, message)
    return {peer: party.channels[peer].receive(STAGE, kind) for peer in peers}
