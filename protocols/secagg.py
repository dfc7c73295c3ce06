"""Secure aggregation: a coordinator learns the sum of integer vectors and nothing else.

PROTOCOLS.md section 4. Bonawitz et al. 2017, "Practical Secure Aggregation", figure 4 with the
active coordinator's additions; Bell et al. 2020 above 50 parties (secagg_graph.py). Vectors live in
Z_2^bits; any n - t parties may vanish, at any step.

Steps        P announce: fresh keys, commitments to the self seed and to a coin, signed
             P reveal: the coin (above 50 parties: who is whose neighbour follows from all coins)
             P share: mask key and self seed by Shamir, a sealed share for every neighbour
             P mask: vector + self mask + sum over neighbours of +- pair mask   mod 2^bits
             P confirm: signs the survivor set, one a round
             P unmask, after t signatures: of a survivor the share of its self seed, of a vanished
               party that of its mask key
             C total: takes the survivors' self masks away, and the pair masks of the vanished
Keys         pair mask = AES-256-CTR from 0 under HKDF(X25519 of fresh mask keys; manifest, round,
             label, session, both ids in order); self mask likewise from a 256-bit seed. Shares are
             sealed under X25519 of fresh *and* of certified keys together.
Session      digest of everything agreed before, all announcements and all coins. It enters every
             key: who is shown other announcements shares no mask and no seal with the rest.

Security     against C together with `Round.corrupt` parties, fewer than 2t - n, all active: what
             they learn follows from the honest survivors' sum. Two different survivor sets would
             need t signatures each, and an honest party signs one (check 3). For one set, an honest
             party gives one kind of share of a peer (5), so that of a survivor the mask key stays
             closed, of a vanished party the self seed; the honest survivors are connected by pair
             masks that nobody else has (8). X25519: gap-CDH; HKDF, SHA-256: random oracles; AES-CTR
             a PRF; ChaCha20-Poly1305 an AEAD.
State        all draws follow from the party's master seed, so that a party that comes back repeats
             its bytes; the book (secagg_books.py) refuses whatever would differ, before it leaves.
Checks       numbers at the code are those of PROTOCOLS.md section 4. Number 1, who is certified, is
             the caller's: one key an organisation, verified for network, usage and time.
Not covered  a party that masks another vector than it should: it spoils the sum, and sees nothing
             a party that seals nonsense for another: that one stops, and names it
             C that stops, or says a wrong sum: parties that need to rely on it compare
             what the sum itself tells: noise (12) is in the vectors already, from
               `Round.honest_survivors`; the accounting is the task's
             masked vectors are not signed: the channel says whose they are
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Generic, TypeVar

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from protocols import labels, shamir
from protocols.errors import ProtocolError
from protocols.secagg_books import Round, RoundBook
from protocols.secagg_graph import COMPLETE_MAX, Graph, graph
from protocols.streams import Randomness, Stream, digest, encode

Words = NDArray[np.unsignedinteger[Any]]
T = TypeVar("T")

KEY_BYTES = SEED_BYTES = COIN_BYTES = 32
SIGNATURE_MAX = 256
SEALED_BYTES = 2 * shamir.SHARE_BYTES + 16  # both shares and the AEAD's tag
PIECE = 1 << 19  # bytes of a mask at a time: they stay in the cache
_ZEROS = bytes(PIECE)


class TooFewParties(ProtocolError):
    """More parties vanished than the threshold allows: the round is over and opened nothing."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a party is to others: its certified X25519 key and its signature.

    agree: X25519 of the certified secret key with a peer's public key of 32 bytes. verify: True
    only for that organisation's signature on exactly these bytes.
    """

    party: str
    agree: Callable[[bytes], bytes] = field(repr=False)
    sign: Callable[[bytes], bytes] = field(repr=False)
    verify: Callable[[str, bytes, bytes], bool] = field(repr=False)


# --- messages


@dataclass(frozen=True, slots=True)
class Announcement:
    """Party to all: its public keys of this round and what it is bound to, signed."""

    party: str
    context: bytes  # the round and everybody's certified keys
    seal_key: bytes  # X25519, for the shares
    mask_key: bytes  # X25519, for the masks
    self_commitment: bytes  # to the seed of the self mask
    coin_commitment: bytes
    signature: bytes

    def __post_init__(self) -> None:
        keys = (self.seal_key, self.mask_key)
        for value in (self.context, *keys, self.self_commitment, self.coin_commitment):
            _require_length(value, KEY_BYTES)
        if not 0 < len(self.signature) <= SIGNATURE_MAX:
            raise ProtocolError(f"a signature of {len(self.signature)} bytes")

    def signed(self) -> bytes:
        """What the signature is on."""
        keys = (self.seal_key, self.mask_key)
        commitments = (self.self_commitment, self.coin_commitment)
        return encode(labels.SECAGG_ANNOUNCEMENT, self.context, self.party, *keys, *commitments)


@dataclass(frozen=True, slots=True)
class Roll:
    """Coordinator to all: everybody's announcement, in ascending order of parties."""

    announcements: tuple[Announcement, ...]

    def digest(self) -> bytes:
        return digest(*(a.signed() for a in self.announcements))


@dataclass(frozen=True, slots=True)
class Coin:
    """Party to all, once it knows the roll: its part of the seed of the graph."""

    party: str
    value: bytes

    def __post_init__(self) -> None:
        _require_length(self.value, COIN_BYTES)


@dataclass(frozen=True, slots=True)
class Coins:
    """Coordinator to all: the coins, in ascending order of parties; none up to 50 parties."""

    coins: tuple[Coin, ...]


NO_COINS = Coins(())


@dataclass(frozen=True, slots=True)
class SealedShare:
    """One party to one neighbour, through the coordinator: shares of its two secrets."""

    sender: str
    receiver: str
    payload: bytes = field(repr=False)  # 82 bytes, ChaCha20-Poly1305

    def __post_init__(self) -> None:
        _require_length(self.payload, SEALED_BYTES)


@dataclass(frozen=True, slots=True)
class Shares:
    """Party to coordinator: one sealed share for each of its neighbours, in ascending order."""

    party: str
    session: bytes
    shares: tuple[SealedShare, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Coordinator to one party: who shared, and what its neighbours sealed for it."""

    sharers: tuple[str, ...]
    shares: tuple[SealedShare, ...]


@dataclass(frozen=True, slots=True)
class MaskedVector:
    """Party to coordinator: vector + masks mod 2^bits, little-endian words of 4 or 8 bytes."""

    party: str
    sharers: bytes  # digest of session and sharers
    words: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Survivors:
    """Coordinator to all: whose vectors are in the sum, in ascending order."""

    parties: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Party to all: this is the one survivor set that it knows of."""

    party: str
    signature: bytes

    def __post_init__(self) -> None:
        if not 0 < len(self.signature) <= SIGNATURE_MAX:
            raise ProtocolError(f"a signature of {len(self.signature)} bytes")


@dataclass(frozen=True, slots=True)
class Confirmations:
    """Coordinator to all: at least t confirmations, in ascending order of parties."""

    confirmations: tuple[Confirmation, ...]


class Kind(IntEnum):
    """Which of a peer's two secrets a share is of."""

    SELF_SEED = 0  # of a survivor
    MASK_KEY = 1  # of a vanished party


@dataclass(frozen=True, slots=True)
class OpenedShare:
    dealer: str
    kind: int
    value: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _require_length(self.value, shamir.SHARE_BYTES)


@dataclass(frozen=True, slots=True)
class Unmasking:
    """Party to coordinator: one share of each peer that shared with it, and of itself."""

    party: str
    shares: tuple[OpenedShare, ...]


# --- parties


class _Ground:
    """What all parties and the coordinator derive alike from public messages."""

    def __init__(
        self,
        round_: Round,
        certified: Mapping[str, bytes],
        verify: Callable[[str, bytes, bytes], bool],
    ) -> None:
        if set(certified) != set(round_.members):
            raise ValueError("certified keys are those of exactly the round's members")
        if len(set(certified.values())) != len(certified):
            raise ProtocolError("two organisations have one certified key")  # (1)
        self.round = round_
        self.certified = dict(certified)
        self._verify = verify
        keys = (encode(name, certified[name]) for name in round_.members)
        self.context = digest(labels.SECAGG_CONTEXT, round_.encode(), *keys)

    def session(self, roll: Roll, coins: Coins) -> bytes:
        shown = (encode(coin.party, coin.value) for coin in coins.coins)
        return digest(labels.SECAGG_SESSION, self.context, roll.digest(), *shown)

    def graph(self, roll: Roll, coins: Coins) -> Graph:
        shown = coins.coins if len(self.round.members) > COMPLETE_MAX else roll.announcements
        return graph(
            [item.party for item in shown],
            len(self.round.members),
            self.round.threshold,
            self.round.tolerated,
            self.session(roll, coins),
        )

    def require_announcement(self, announcement: Announcement) -> None:
        if announcement.party not in self.certified:
            raise ProtocolError("an announcement of nobody that the round names")
        if announcement.context != self.context:
            raise ProtocolError("an announcement of another round, or under other certified keys")
        if not self.is_signed(announcement.party, announcement.signed(), announcement.signature):
            raise ProtocolError(f"the announcement of {announcement.party} is not signed by it")

    def require_roll(self, roll: Roll) -> None:
        _require_names(a.party for a in roll.announcements)
        for announcement in roll.announcements:
            self.require_announcement(announcement)
        fresh = [key for a in roll.announcements for key in (a.seal_key, a.mask_key)]
        if len({*fresh, *self.certified.values()}) != len(fresh) + len(self.certified):
            raise ProtocolError("two announced or certified keys are equal")
        self.require_enough(len(roll.announcements), "announced their keys")

    def require_coin(self, roll: Roll, coin: Coin) -> None:
        promised = {a.party: a.coin_commitment for a in roll.announcements}.get(coin.party)
        if promised != _coin_commitment(self.context, coin):
            raise ProtocolError("a coin is not the one that was promised")

    def require_coins(self, roll: Roll, coins: Coins) -> None:
        if len(self.round.members) <= COMPLETE_MAX:
            if coins.coins:
                raise ProtocolError("coins in a round that needs none")
            return
        _require_names(coin.party for coin in coins.coins)
        for coin in coins.coins:
            self.require_coin(roll, coin)
        self.require_enough(len(coins.coins), "showed their coins")

    def is_signed(self, party: str, message: bytes, signature: bytes) -> bool:
        return self._verify(party, message, signature) is True

    def require_enough(self, parties: int, did: str) -> None:
        if parties < self.round.least:
            raise TooFewParties(
                f"{parties} of {len(self.round.members)} parties {did}, {self.round.least} needed"
            )

    def sharers_digest(self, session: bytes, sharers: tuple[str, ...]) -> bytes:
        return digest(labels.SECAGG_SHARERS, session, *sharers)

    def statement(self, sharers: bytes, survivors: tuple[str, ...]) -> bytes:
        """What a confirmation signs."""
        return encode(labels.SECAGG_SURVIVORS, self.context, sharers, *survivors)

    def pair_key(self, session: bytes, shared: bytes, a: str, b: str) -> bytes:
        """Of the mask between two parties (2, 10)."""
        return self._mask_key(labels.SECAGG_PAIR_MASK, shared, session, *sorted((a, b)))

    def self_key(self, session: bytes, seed: bytes, party: str) -> bytes:
        return self._mask_key(labels.SECAGG_SELF_MASK, seed, session, party)

    def _mask_key(self, label: bytes, secret: bytes, session: bytes, *ids: str) -> bytes:
        r = self.round
        return _hkdf(secret, encode(label, r.manifest, r.attempt, r.number, r.label, session, *ids))


class Party:
    """One organisation in one round; every step once, in order.

    certified: the 32-byte X25519 key of every member's verified card. A party that is built again
    after a crash, with the same randomness and book, repeats its messages for the messages that it
    got, and refuses any others.
    """

    def __init__(
        self,
        round_: Round,
        identity: Identity,
        certified: Mapping[str, bytes],
        randomness: Randomness,
        book: RoundBook,
    ) -> None:
        if identity.party not in round_.members:
            raise ValueError(f"{identity.party} is no member of the round")
        if (round_.manifest, round_.attempt) != (randomness.job, randomness.attempt):
            raise ValueError("the round belongs to another job or attempt")
        self._ground = _Ground(round_, certified, identity.verify)
        self._round = round_
        self._me = identity
        self._randomness = randomness
        self._book = book
        self._certified_pairs = {  # (1): before anything is sent
            name: _agree(identity.agree, certified[name])
            for name in round_.members
            if name != identity.party
        }
        keys = Stream(self._draw(labels.SECAGG_KEYS))
        self._seal_secret, self._mask_secret = keys.bytes(KEY_BYTES), keys.bytes(KEY_BYTES)
        self._self_seed = self._draw(labels.SECAGG_SELF_SEED)
        self._coin = Coin(identity.party, self._draw(labels.SECAGG_COIN))
        self._announcement: Announcement | None = None
        self._roll: Roll | None = None
        self._shared: _Shared | None = None
        self._masked: _Masked | None = None
        self._survivors: tuple[str, ...] | None = None

    def announce(self) -> Announcement:
        """Fresh keys for this round, signed. ProtocolError if the round began with other terms."""
        self._book.fix(self._round, {"context": self._ground.context})
        unsigned = Announcement(
            self._me.party,
            self._ground.context,
            _public(self._seal_secret),
            _public(self._mask_secret),
            _self_commitment(self._ground.context, self._me.party, self._self_seed),
            _coin_commitment(self._ground.context, self._coin),
            b"-",
        )
        signature = self._me.sign(unsigned.signed())
        self._announcement = replace(unsigned, signature=signature)
        return self._announcement

    def reveal(self, roll: Roll) -> Coin:
        """Above 50 parties: this party's coin, once everybody's keys are settled (8)."""
        self._take_roll(roll)
        return self._coin

    def share(self, roll: Roll, coins: Coins = NO_COINS) -> Shares:
        """Shares of both secrets for every neighbour (7)."""
        self._take_roll(roll)
        self._ground.require_coins(roll, coins)
        session = self._ground.session(roll, coins)
        web = self._ground.graph(roll, coins)
        if self._me.party not in web.members:
            raise ProtocolError("this party is left out of the round")
        self._book.fix(self._round, {"session": session})
        keys = {a.party: a for a in roll.announcements if a.party in web.members}
        shared = _Shared(session, web, keys)
        holders = web.holders(self._me.party)
        at = {web.index(holder): holder for holder in holders}
        stream = Stream(self._draw(labels.SECAGG_SHARING, session))
        dealt = [
            {at[x]: share for x, share in shamir.split(secret, web.threshold, at, stream).items()}
            for secret in (self._self_seed, self._mask_secret)
        ]
        # No share of its own mask key: a party that can unmask is a survivor.
        shared.own[Kind.SELF_SEED] = dealt[Kind.SELF_SEED][self._me.party]
        self._shared = shared
        sealed = [
            SealedShare(
                self._me.party, peer, self._seal(peer, b"".join(kind[peer] for kind in dealt))
            )
            for peer in web.neighbours(self._me.party)
        ]
        return Shares(self._me.party, session, tuple(sealed))

    def mask(self, delivery: Delivery, vector: NDArray[np.int64]) -> MaskedVector:
        """The vector under all its masks. vector: shape (length,), |x| <= bound (9).

        Raises ProtocolError if a share does not open, too few shared, or this round has a vector,
        whatever became of it (6).
        """
        shared = _done(self._shared, "mask", "share")
        _require_vector(self._round, vector)
        held = self._take_delivery(delivery)
        sharers = self._ground.sharers_digest(shared.session, delivery.sharers)
        of_vector = self._draw(labels.SECAGG_VECTOR, digest(vector.astype("<i8").tobytes()))
        self._book.fix(self._round, {"set of sharers": sharers, "vector": of_vector})
        total: Words = vector.astype(_dtype(self._round))  # mod 2^bits: two's complement
        _add_stream(total, self._ground.self_key(shared.session, self._self_seed, self._me.party))
        for peer in held:
            _add_stream(total, self._pair_key(peer), minus=self._me.party > peer)
        held[self._me.party] = shared.own
        self._masked = _Masked(delivery.sharers, sharers, dict(sorted(held.items())))
        return MaskedVector(self._me.party, sharers, _wrap(self._round, total).tobytes())

    def confirm(self, survivors: Survivors) -> Confirmation:
        """A signature on the one survivor set of this round (3, 4, 6, 14); else ProtocolError."""
        masked = _done(self._masked, "confirm", "mask")
        parties = survivors.parties
        self._require_survivors(parties)
        # What may be opened is fixed before anybody can ask for it: kinds follow from the set.
        kinds = {peer: self._kind(peer, parties) for peer in masked.held}
        facts = {f"kind of share of {peer}": bytes([kind]) for peer, kind in kinds.items()}
        statement = self._ground.statement(masked.digest, parties)
        facts["set of survivors"] = digest(statement)
        self._book.sum_over(self._round, parties, facts)
        self._survivors = parties
        return Confirmation(self._me.party, self._me.sign(statement))

    def unmask(self, confirmations: Confirmations) -> Unmasking:
        """One share of every peer, after t survivors signed the same set (3, 5)."""
        survivors = _done(self._survivors, "unmask", "confirm")
        self._require_confirmed(confirmations, survivors)
        opened = []
        for dealer, held in _done(self._masked, "unmask", "mask").held.items():
            kind = self._kind(dealer, survivors)
            opened.append(OpenedShare(dealer, int(kind), held[kind]))
        return Unmasking(self._me.party, tuple(opened))

    def _draw(self, label: bytes, inputs: bytes = b"") -> bytes:
        context = digest(self._ground.context, inputs)
        return self._randomness.key(
            label, stage=self._round.label, step=self._round.number, inputs=context
        )

    def _take_roll(self, roll: Roll) -> None:
        announcement = _done(self._announcement, "share", "announce")
        if self._roll == roll:
            return
        self._require_roll(roll)
        if announcement not in roll.announcements:
            raise ProtocolError("this party's announcement is missing or was changed")
        self._book.fix(self._round, {"roll": roll.digest()})
        self._roll = roll

    def _require_roll(self, roll: Roll) -> None:
        self._ground.require_roll(roll)

    def _take_delivery(self, delivery: Delivery) -> dict[str, dict[Kind, bytes]]:
        """The opened shares of the neighbours that shared."""
        shared = _done(self._shared, "mask", "share")
        _require_subset(delivery.sharers, shared.graph.members, self._me.party)
        self._ground.require_enough(len(delivery.sharers), "shared their secrets")
        sharers = set(delivery.sharers)
        near = [peer for peer in shared.graph.neighbours(self._me.party) if peer in sharers]
        if [share.sender for share in delivery.shares] != near:
            raise ProtocolError("shares of others than the neighbours that shared")
        held = {}
        for share in delivery.shares:
            if share.receiver != self._me.party:
                raise ProtocolError("a share for somebody else")
            raw = self._open(share.sender, share.payload)
            both = raw[: shamir.SHARE_BYTES], raw[shamir.SHARE_BYTES :]
            for value in both:
                shamir.require_share(value)
            held[share.sender] = dict(zip(Kind, both, strict=True))
        return held

    def _kind(self, dealer: str, survivors: tuple[str, ...]) -> Kind:
        return Kind.SELF_SEED if dealer in survivors else Kind.MASK_KEY

    def _require_survivors(self, parties: tuple[str, ...]) -> None:
        masked = _done(self._masked, "confirm", "mask")
        _require_subset(parties, masked.sharers, self._me.party)
        self._ground.require_enough(len(parties), "sent their vectors")

    def _require_confirmed(self, confirmations: Confirmations, survivors: tuple[str, ...]) -> None:
        masked = _done(self._masked, "unmask", "mask")
        given = confirmations.confirmations
        _require_names(c.party for c in given)
        statement = self._ground.statement(masked.digest, survivors)
        for confirmation in given:
            if confirmation.party not in survivors:
                raise ProtocolError("a confirmation of a party that is not in the sum")
            if not self._ground.is_signed(confirmation.party, statement, confirmation.signature):
                raise ProtocolError(
                    f"{confirmation.party} did not sign the survivor set that this party knows"
                )
        self._ground.require_enough(len(given), "signed the survivor set")

    def _pair_key(self, peer: str) -> bytes:
        shared = _done(self._shared, "mask", "share")
        secret = _exchange(self._mask_secret, shared.keys[peer].mask_key)
        return self._ground.pair_key(shared.session, secret, self._me.party, peer)

    def _seal(self, peer: str, plain: bytes) -> bytes:
        cipher, associated = self._envelope(peer, self._me.party, peer)
        return cipher.encrypt(bytes(12), plain, associated)  # one message under this key

    def _open(self, peer: str, sealed: bytes) -> bytes:
        cipher, associated = self._envelope(peer, peer, self._me.party)
        try:
            return cipher.decrypt(bytes(12), sealed, associated)
        except InvalidTag:
            raise ProtocolError(f"the share of {peer} does not open") from None

    def _envelope(self, peer: str, sender: str, receiver: str) -> tuple[ChaCha20Poly1305, bytes]:
        """Only the two certified parties can seal or open, in this session, in this direction."""
        shared = _done(self._shared, "mask", "share")
        fresh = _exchange(self._seal_secret, shared.keys[peer].seal_key)
        ids = (sender, receiver)
        r, index = self._round, shared.graph.index(receiver)
        info = encode(
            labels.SECAGG_SHARE_KEY, r.manifest, r.attempt, r.number, r.label, shared.session, *ids
        )
        associated = encode(*ids, r.attempt, r.number, r.label, shared.session, index)
        key = _hkdf(fresh + self._certified_pairs[peer], info)
        return ChaCha20Poly1305(key), associated


class Coordinator:
    """Collects each step's messages, closes the step, and adds up. It is trusted with nothing.

    A step is closed by asking for what it gives (`roll`, `coins`, `delivery`, `survivors`,
    `confirmations`, `total`); a message that comes later is refused (11), a second one too.
    """

    def __init__(
        self,
        round_: Round,
        certified: Mapping[str, bytes],
        verify: Callable[[str, bytes, bytes], bool],
    ) -> None:
        self._ground = _Ground(round_, certified, verify)
        self._round = round_
        self._announced = _Step[Announcement]("announcements", set(round_.members))
        self._coins: _Step[Coin] | None = None
        self._shares: _Step[dict[str, SealedShare]] | None = None
        self._vectors: _Step[None] | None = None
        self._confirmed: _Step[Confirmation] | None = None
        self._unmasked: _Step[dict[str, OpenedShare]] | None = None
        self._sum: Words = np.zeros(round_.length, _dtype(round_))
        self._roll: Roll | None = None
        self._shown: Coins | None = None
        self._web: Graph | None = None
        self._session = self._sharers = b""

    def announced(self, announcement: Announcement) -> None:
        self._ground.require_announcement(announcement)
        self._announced.add(announcement.party, announcement)

    def roll(self) -> Roll:
        """Closes the announcements. TooFewParties if they are."""
        if self._roll is None:
            items = self._announced.close()
            self._ground.require_enough(len(items), "announced their keys")
            roll = Roll(tuple(items.values()))
            self._ground.require_roll(roll)
            self._roll = roll
            self._coins = _Step("coins", set(items))
        return self._roll

    def revealed(self, coin: Coin) -> None:
        step = _done(self._coins, "revealed", "roll")
        self._ground.require_coin(self.roll(), coin)
        step.add(coin.party, coin)

    def coins(self) -> Coins:
        """Closes the coins and settles who is whose neighbour; up to 50 parties without any."""
        if self._shown is None:
            step = _done(self._coins, "coins", "roll")
            coins = Coins(tuple(step.close().values()))
            self._ground.require_coins(self.roll(), coins)
            self._web = self._ground.graph(self.roll(), coins)
            self._session = self._ground.session(self.roll(), coins)
            self._shares = _Step("shares", set(self._web.members))
            self._shown = coins
        return self._shown

    def shared(self, shares: Shares) -> None:
        self.coins()
        web, step = _done(self._web, "shared", "coins"), _done(self._shares, "shared", "coins")
        if shares.party not in web.members or shares.session != self._session:
            raise ProtocolError("shares of another session")
        receivers = {share.receiver: share for share in shares.shares}
        if tuple(receivers) != web.neighbours(shares.party) or len(receivers) != len(shares.shares):
            raise ProtocolError(f"{shares.party} did not share with exactly its neighbours")
        if any(share.sender != shares.party for share in shares.shares):
            raise ProtocolError(f"{shares.party} sent shares in another's name")
        step.add(shares.party, receivers)

    def delivery(self, party: str) -> Delivery:
        """Closes the shares; what one of the sharers gets. TooFewParties if they are."""
        web, step = _done(self._web, "delivery", "coins"), _done(self._shares, "delivery", "coins")
        items = step.close()
        self._ground.require_enough(len(items), "shared their secrets")
        if party not in items:
            raise ProtocolError(f"{party} did not share")
        if self._vectors is None:
            self._vectors = _Step("masked vectors", set(items))
            self._sharers = self._ground.sharers_digest(self._session, tuple(items))
        near = [peer for peer in web.neighbours(party) if peer in items]
        return Delivery(tuple(items), tuple(items[peer][party] for peer in near))

    def masked(self, vector: MaskedVector) -> None:
        """Adds a vector to the sum; ProtocolError for one that comes too late (11)."""
        step = _done(self._vectors, "masked", "delivery")
        if vector.sharers != self._sharers:
            raise ProtocolError(f"{vector.party} masked for other sharers")
        if len(vector.words) != self._round.length * self._sum.itemsize:  # (13)
            raise ProtocolError(
                f"{vector.party}: {len(vector.words)} bytes, "
                f"{self._round.length * self._sum.itemsize} expected"
            )
        step.add(vector.party, None)
        self._sum += np.frombuffer(vector.words, self._sum.dtype.newbyteorder("<"))

    def survivors(self) -> Survivors:
        """Closes the vectors: whoever did not send one is dead. TooFewParties if they are."""
        step = _done(self._vectors, "survivors", "delivery")
        items = step.close()
        self._ground.require_enough(len(items), "sent their vectors")
        if self._confirmed is None:
            self._confirmed = _Step("confirmations", set(items))
        return Survivors(tuple(items))

    def confirmed(self, confirmation: Confirmation) -> None:
        step = _done(self._confirmed, "confirmed", "survivors")
        statement = self._ground.statement(self._sharers, self.survivors().parties)
        if not self._ground.is_signed(confirmation.party, statement, confirmation.signature):
            raise ProtocolError(f"{confirmation.party} confirms another survivor set")
        step.add(confirmation.party, confirmation)

    def confirmations(self) -> Confirmations:
        """Closes the confirmations. TooFewParties if they are."""
        items = _done(self._confirmed, "confirmations", "survivors").close()
        self._ground.require_enough(len(items), "signed the survivor set")
        if self._unmasked is None:
            self._unmasked = _Step("unmasking shares", set(self.survivors().parties))
        return Confirmations(tuple(items.values()))

    def unmasked(self, unmasking: Unmasking) -> None:
        step = _done(self._unmasked, "unmasked", "confirmations")
        web = _done(self._web, "unmasked", "coins")
        alive = set(self.survivors().parties)
        sharers = _done(self._shares, "unmasked", "coins").close()
        if unmasking.party not in alive:
            raise ProtocolError("shares from a party that is not in the sum")
        due = {
            dealer: Kind.SELF_SEED if dealer in alive else Kind.MASK_KEY
            for dealer in web.holders(unmasking.party)
            if dealer in sharers
        }
        if {(s.dealer, s.kind) for s in unmasking.shares} != set(due.items()):
            raise ProtocolError(f"{unmasking.party} opened other shares than were due")
        for share in unmasking.shares:
            shamir.require_share(share.value)
        step.add(unmasking.party, {share.dealer: share for share in unmasking.shares})

    def total(self) -> NDArray[np.int64]:
        """The sum over the survivors' vectors, shape (length,), signed.

        Raises TooFewParties if too few shares came, ProtocolError if shares do not give what was
        announced (7) or the sum is beyond what the survivors can have sent.
        """
        items = _done(self._unmasked, "total", "confirmations").close()
        self._ground.require_enough(len(items), "sent their shares")
        roll, alive = self.roll(), self.survivors().parties
        keys = {a.party: a for a in roll.announcements}
        sharers = _done(self._shares, "total", "coins").close()
        web = _done(self._web, "total", "coins")
        total = self._sum.copy()
        cache: dict[tuple[int, ...], tuple[int, ...]] = {}
        for party in sharers:
            secret = self._combine(party, items, cache)
            if party in alive:
                promised = keys[party].self_commitment
                if _self_commitment(self._ground.context, party, secret) != promised:
                    raise ProtocolError(f"the shares of {party} give another seed than it promised")
                _add_stream(total, self._ground.self_key(self._session, secret, party), minus=True)
                continue
            if _public(secret) != keys[party].mask_key:
                raise ProtocolError(f"the shares of {party} give another key than it announced")
            for peer in web.neighbours(party):
                if peer in alive:
                    pair = _exchange(secret, keys[peer].mask_key)
                    key = self._ground.pair_key(self._session, pair, party, peer)
                    _add_stream(total, key, minus=peer < party)
        opened = _signed(self._round, total)
        most = len(alive) * self._round.bound
        if not -most <= int(opened.min()) <= int(opened.max()) <= most:
            raise ProtocolError("the sum is beyond what the survivors can have sent")
        return opened

    def _combine(
        self,
        dealer: str,
        items: Mapping[str, dict[str, OpenedShare]],
        cache: dict[tuple[int, ...], tuple[int, ...]],
    ) -> bytes:
        web = _done(self._web, "total", "coins")
        # Enough, as `least` parties sent theirs: the graph's threshold is made for that.
        holders = [name for name in web.holders(dealer) if name in items]
        chosen = {web.index(h): items[h][dealer].value for h in holders[: web.threshold]}
        places = tuple(chosen)
        if places not in cache:
            cache[places] = shamir.weights(places)
        return shamir.combine(chosen, cache[places])


class _Step(Generic[T]):
    """The messages of one step by party, one each, until the step is closed."""

    def __init__(self, what: str, allowed: set[str]) -> None:
        self._what = what
        self._allowed = allowed
        self._items: dict[str, T] = {}
        self._closed = False

    def add(self, party: str, item: T) -> None:
        if self._closed:
            raise ProtocolError(f"{party} comes too late: the {self._what} are closed")
        if party not in self._allowed:
            raise ProtocolError(f"{party} has no part in the {self._what}")
        if party in self._items:
            raise ProtocolError(f"a second message of {party} among the {self._what}")
        self._items[party] = item

    def close(self) -> dict[str, T]:
        """All of them, in ascending order of parties; the same in every call."""
        if not self._closed:
            self._closed = True
            self._items = dict(sorted(self._items.items()))
        return self._items


# --- what a party holds


@dataclass(slots=True)
class _Shared:
    session: bytes
    graph: Graph
    keys: dict[str, Announcement]  # of the graph's members
    own: dict[Kind, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class _Masked:
    sharers: tuple[str, ...]
    digest: bytes
    held: dict[str, dict[Kind, bytes]] = field(repr=False)  # by dealer, ascending


# --- helpers


def _agree(exchange: Callable[[bytes], bytes], peer: bytes) -> bytes:
    _require_length(peer, KEY_BYTES)
    try:
        shared = exchange(peer)
    except ValueError:  # cryptography's, for an output of zeros
        shared = bytes(KEY_BYTES)
    if not any(shared):
        raise ProtocolError("a key of small order: the agreed secret would be zero")  # (1)
    return shared


def _exchange(secret: bytes, peer: bytes) -> bytes:
    own = X25519PrivateKey.from_private_bytes(secret)
    return _agree(lambda key: own.exchange(X25519PublicKey.from_public_bytes(key)), peer)


def _public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), SEED_BYTES, salt=None, info=info).derive(secret)


def _self_commitment(context: bytes, party: str, seed: bytes) -> bytes:
    """Hides: the seed has 256 bits. Binds: the coordinator sees whether shares were right."""
    return digest(labels.SECAGG_SELF_COMMITMENT, context, party, seed)


def _coin_commitment(context: bytes, coin: Coin) -> bytes:
    return digest(labels.SECAGG_COIN_COMMITMENT, context, coin.party, coin.value)


def _dtype(round_: Round) -> np.dtype[np.unsignedinteger[Any]]:
    return np.dtype(np.uint32 if round_.bits <= 32 else np.uint64)


def _add_stream(total: Words, key: bytes, minus: bool = False) -> None:
    """Adds or subtracts, in place, the AES-256-CTR stream of a key that is used for nothing else.

    Little-endian words; the counter starts at 0 (10).
    """
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    size = min(PIECE, total.nbytes)
    buffer = bytearray(size + 16)
    words = np.frombuffer(buffer, total.dtype.newbyteorder("<"), size // total.itemsize)
    for start in range(0, len(total), len(words)):
        part = total[start : start + len(words)]
        cipher.update_into(memoryview(_ZEROS)[: part.nbytes], buffer)
        if minus:
            part -= words[: len(part)]
        else:
            part += words[: len(part)]


def _wrap(round_: Round, total: Words) -> Words:
    """The residue modulo 2^bits, as little-endian words."""
    wrapped = total & total.dtype.type((1 << round_.bits) - 1)
    return wrapped.astype(total.dtype.newbyteorder("<"), copy=False)


def _signed(round_: Round, total: Words) -> NDArray[np.int64]:
    """Residues modulo 2^bits as integers in [-2^(bits-1), 2^(bits-1))."""
    shift = np.uint64(64 - round_.bits)
    return (total.astype(np.uint64) << shift).view(np.int64) >> shift.astype(np.int64)


def _require_vector(round_: Round, vector: NDArray[np.int64]) -> None:
    if vector.dtype != np.int64 or vector.shape != (round_.length,):
        raise ValueError(
            f"a vector of {round_.length:,} 64-bit integers expected, got {vector.shape}, "
            f"{vector.dtype}"
        )
    if not -round_.bound <= int(vector.min()) <= int(vector.max()) <= round_.bound:
        raise ValueError(f"an entry is beyond the declared bound {round_.bound:,}: clip before")


def _require_length(value: bytes, length: int) -> None:
    if len(value) != length:
        raise ProtocolError(f"{len(value)} bytes, {length} expected")


def _require_names(names: Iterable[str]) -> None:
    given = list(names)
    if given != sorted(set(given)):
        raise ProtocolError("parties are not named once each, in ascending order")


def _require_subset(parties: tuple[str, ...], of: tuple[str, ...], me: str) -> None:
    """The rules of every set that the coordinator names (4)."""
    _require_names(parties)
    if not set(parties) <= set(of):
        raise ProtocolError("the coordinator names parties that were not there before")
    if me not in parties:
        raise ProtocolError("the coordinator says that this party vanished: it stays silent")


def _done(value: T | None, step: str, before: str) -> T:
    if value is None:
        raise RuntimeError(f"{step} comes after {before}")
    return value
