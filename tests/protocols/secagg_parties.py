"""A whole round of secure aggregation in one process: who is certified, who vanishes when."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from numpy.typing import NDArray

from federation import wire
from protocols.secagg import NO_COINS, Coins, Coordinator, Identity, Party
from protocols.secagg_books import MemoryRoundBook, Round, RoundBook, least_threshold
from protocols.secagg_graph import COMPLETE_MAX
from protocols.streams import Randomness, digest

STEPS = ("announce", "reveal", "share", "mask", "confirm", "unmask")
MANIFEST = digest("manifest")


def round_of(n: int, length: int = 5, **terms: Any) -> Round:
    """Round 1 of a test's job; any of its terms may be given."""
    given: dict[str, Any] = {
        "manifest": MANIFEST,
        "attempt": 1,
        "number": 1,
        "label": "test",
        "statistic": digest("statistic"),
        "members": tuple(f"bank{i:02}" for i in range(n)),
        "length": length,
        "bound": 1 << 20,
        "threshold": least_threshold(n),
    }
    return Round(**(given | terms))


@dataclass(frozen=True)
class Certified:
    """The keys of all organisations, as trust stores would give them out."""

    members: tuple[str, ...]
    secrets: Mapping[str, X25519PrivateKey] = field(repr=False)
    signers: Mapping[str, Ed25519PrivateKey] = field(repr=False)
    verifiers: Mapping[str, Ed25519PublicKey] = field(repr=False)

    @classmethod
    def of(cls, members: tuple[str, ...], seed: str = "") -> "Certified":
        signers = {m: Ed25519PrivateKey.from_private_bytes(digest(seed, "e", m)) for m in members}
        return cls(
            members,
            {m: X25519PrivateKey.from_private_bytes(digest(seed, "x", m)) for m in members},
            signers,
            {m: key.public_key() for m, key in signers.items()},
        )

    @property
    def keys(self) -> dict[str, bytes]:
        return {m: key.public_key().public_bytes_raw() for m, key in self.secrets.items()}

    def verify(self, org: str, message: bytes, signature: bytes) -> bool:
        try:
            self.verifiers[org].verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def identity(self, org: str) -> Identity:
        def agree(peer: bytes) -> bytes:
            return self.secrets[org].exchange(X25519PublicKey.from_public_bytes(peer))

        return Identity(org, agree, self.signers[org].sign, self.verify)


def party_of(
    round_: Round,
    org: str,
    *,
    kind: type[Party] = Party,
    book: RoundBook | None = None,
    master: str = "master",
    certified: Certified | None = None,
    keys: Mapping[str, bytes] | None = None,
) -> Party:
    certified = certified or Certified.of(round_.members)
    randomness = Randomness(digest(master, org), round_.manifest, round_.attempt)
    return kind(
        round_,
        certified.identity(org),
        certified.keys if keys is None else keys,
        randomness,
        book or MemoryRoundBook(),
    )


def sent(message: Any) -> Any:
    """Through the wire, as between processes."""
    return wire.decode(wire.encode(message), type(message))


class Session:
    """The parties and an honest coordinator; each step with whoever is still there."""

    def __init__(
        self,
        round_: Round,
        *,
        kind: type[Party] = Party,
        books: Mapping[str, RoundBook] | None = None,
        master: str = "master",
    ) -> None:
        certified = Certified.of(round_.members)
        self.round = round_
        self.coordinator = Coordinator(round_, certified.keys, certified.verify)
        self.parties = {
            org: party_of(
                round_,
                org,
                kind=kind,
                book=(books or {}).get(org),
                master=master,
                certified=certified,
            )
            for org in round_.members
        }
        self.alive = list(round_.members)
        self.coins: Coins = NO_COINS

    def _each(self, step: Callable[[str, Party], Any], gone: Sequence[str], add: Any) -> None:
        self.alive = [org for org in self.alive if org not in gone]
        for org in self.alive:
            add(sent(step(org, self.parties[org])))

    def until_delivery(self, gone: Mapping[str, Sequence[str]] | None = None) -> None:
        gone, c = gone or {}, self.coordinator
        self._each(lambda _, p: p.announce(), gone.get("announce", ()), c.announced)
        self.roll = sent(c.roll())
        if len(self.round.members) > COMPLETE_MAX:
            self._each(lambda _, p: p.reveal(self.roll), gone.get("reveal", ()), c.revealed)
        self.coins = sent(c.coins())
        self._each(lambda _, p: p.share(self.roll, self.coins), gone.get("share", ()), c.shared)

    def until_survivors(
        self,
        vectors: Mapping[str, NDArray[np.int64]],
        gone: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        gone, c = gone or {}, self.coordinator
        self.until_delivery(gone)
        self._each(
            lambda org, p: p.mask(sent(c.delivery(org)), vectors[org]),
            gone.get("mask", ()),
            c.masked,
        )
        self.survivors = sent(c.survivors())

    def run(
        self,
        vectors: Mapping[str, NDArray[np.int64]],
        gone: Mapping[str, Sequence[str]] | None = None,
    ) -> NDArray[np.int64]:
        """The sum; `gone`: who vanishes before which step."""
        gone, c = gone or {}, self.coordinator
        self.until_survivors(vectors, gone)
        self._each(lambda _, p: p.confirm(self.survivors), gone.get("confirm", ()), c.confirmed)
        confirmations = sent(c.confirmations())
        self._each(lambda _, p: p.unmask(confirmations), gone.get("unmask", ()), c.unmasked)
        return c.total()


def vectors_of(round_: Round, seed: int = 1) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    bound = round_.bound
    return {
        org: rng.integers(-bound, bound, round_.length, endpoint=True) for org in round_.members
    }
