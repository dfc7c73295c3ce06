"""PROTOCOLS.md section 4: what an active coordinator reads of one bank where a check is missing.

The first four are known against Flower's SecAgg+: short seeds (28 bits, 32 in version 1.41), an
answer to any unmask request, both kinds of share for one peer, keys that the coordinator inserts.
Each attack wins against a party weakened in the one place that it is about, and loses against ours.
No weakened party exists outside these tests.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from protocols import secagg, secagg_graph, shamir
from protocols.errors import ParameterError, ProtocolError
from protocols.secagg import (
    NO_COINS,
    Confirmations,
    Coordinator,
    Identity,
    Kind,
    MaskedVector,
    Party,
    Roll,
    Survivors,
    Unmasking,
    _add_stream,
    _exchange,
    _signed,
)
from protocols.secagg_books import MemoryRoundBook, Round
from protocols.streams import Randomness, digest

from ..protocols.secagg_parties import Certified, Session, party_of, round_of, vectors_of

Vector = NDArray[np.int64]


# --- what the attacker's arithmetic needs


def words_of(masked: MaskedVector) -> NDArray[np.uint64]:
    return np.frombuffer(masked.words, "<u8").astype(np.uint64)


class ForgetfulBook(MemoryRoundBook):
    def fix(self, round_: Round, facts: Mapping[str, bytes]) -> None:
        pass

    def sum_over(self, round_: Round, parties: tuple[str, ...], facts: Mapping[str, bytes]) -> None:
        pass


class Watching(Session):
    """A coordinator that keeps the masked vectors; otherwise honest."""

    def until_survivors(
        self, vectors: Mapping[str, Vector], gone: Mapping[str, list[str]] | None = None
    ) -> None:
        self.seen: dict[str, NDArray[np.uint64]] = {}
        added = self.coordinator.masked

        def masked(vector: MaskedVector) -> None:
            self.seen[vector.party] = words_of(vector)
            added(vector)

        self.coordinator.masked = masked  # type: ignore[method-assign]  # the test's eavesdropper
        super().until_survivors(vectors, gone)


class Opener:
    """The arithmetic of whoever holds enough shares: takes masks away from one party's vector."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ground = session.coordinator._ground
        self.id = self.ground.session(session.roll, session.coins)
        self.web = self.ground.graph(session.roll, session.coins)
        self.keys = {a.party: a.mask_key for a in session.roll.announcements}

    def secret(self, dealer: str, kind: Kind, answers: list[Unmasking]) -> bytes | None:
        """From the shares of this kind in all answers, if there are enough."""
        shares = {
            self.web.index(answer.party): share.value
            for answer in answers
            for share in answer.shares
            if (share.dealer, share.kind) == (dealer, kind)
        }
        if len(shares) < self.web.threshold:
            return None
        return shamir.combine(dict(sorted(shares.items())[: self.web.threshold]))

    def without_self(self, words: NDArray[np.uint64], party: str, seed: bytes) -> None:
        _add_stream(words, self.ground.self_key(self.id, seed, party), minus=True)

    def without_pair(self, words: NDArray[np.uint64], party: str, peer: str, key: bytes) -> None:
        """key: the mask key of either of the two."""
        other = peer if secagg._public(key) == self.keys[party] else party
        shared = _exchange(key, self.keys[other])
        pair = self.ground.pair_key(self.id, shared, party, peer)
        _add_stream(words, pair, minus=party < peer)

    def read(self, words: NDArray[np.uint64]) -> Vector:
        return _signed(self.session.round, words)


# --- 1. short seeds


class ShortSeeds(Party):
    """Pair seeds of 16 bits; of 28 the search takes 4,096 times as long: an hour or less."""

    def _pair_key(self, peer: str) -> bytes:
        return super()._pair_key(peer)[:2] + bytes(30)


@lru_cache
def short_masks(length: int) -> NDArray[np.uint64]:
    masks = np.zeros((1 << 16, length), np.uint64)
    for seed, mask in enumerate(masks):
        _add_stream(mask, seed.to_bytes(2) + bytes(30))
    return masks


def meet_in_the_middle(rest: NDArray[np.uint64], bound: int) -> Vector | None:
    """x from x + m1 + m2, where x is small and both masks have 16-bit seeds (bank00 adds both)."""
    masks = short_masks(len(rest))
    order = np.argsort(masks[:, 0])
    first = masks[order, 0]
    wanted = rest[0] - masks[:, 0]  # m2 is at most `bound` away from it
    near = np.searchsorted(first, wanted - np.uint64(bound))
    for two in (order[np.minimum(near + further, len(order) - 1)] for further in (0, 1)):
        x = (rest - masks - masks[two]).view(np.int64)
        (found,) = np.nonzero(((x >= -bound) & (x <= bound)).all(axis=1))
        if len(found):
            return x[found[0]]
    return None


@pytest.mark.parametrize("kind", [ShortSeeds, Party])
def test_short_seeds_are_searched_after_an_honest_round_and_ours_are_not(
    kind: type[Party],
) -> None:
    session = Watching(round_of(3, 4), kind=kind)
    vectors = vectors_of(session.round)
    total = session.run(vectors)
    np.testing.assert_array_equal(total, sum(vectors.values()))
    opener = Opener(session)
    rest = session.seen["bank00"].copy()
    opener.without_self(rest, "bank00", session.parties["bank00"]._self_seed)  # opened, as due
    found = meet_in_the_middle(rest, session.round.bound)
    if kind is ShortSeeds:
        np.testing.assert_array_equal(found, vectors["bank00"])
    else:
        assert found is None


def test_all_our_seeds_have_256_bits_and_differ() -> None:
    session = Session(round_of(4))
    session.until_delivery()
    zeros = np.zeros(5, np.int64)
    keys = []
    for org, party in session.parties.items():
        party.mask(session.coordinator.delivery(org), zeros)
        keys += [party._pair_key(peer) for peer in session.parties if peer > org]
        keys.append(party._self_seed)
    assert len(set(keys)) == len(keys) == 4 + 6
    assert {len(key) for key in keys} == {32}
    assert len({key[:4] for key in keys}) == len({key[-4:] for key in keys}) == len(keys)


# --- 2. any unmask request is answered


class AnswersAnything(Party):
    """Neither the survivor set nor its signatures are looked at, and nothing is written down."""

    def _require_survivors(self, parties: tuple[str, ...]) -> None:
        pass

    def _require_confirmed(self, confirmations: Confirmations, survivors: tuple[str, ...]) -> None:
        if self._me.party not in survivors and self._masked is not None:
            self._masked.held.pop(self._me.party, None)  # of its own mask key it keeps no share


def open_alone(session: Watching, victim: str) -> Vector:
    """The coordinator says that the victim alone is left, and takes its masks away."""
    alone = Survivors((victim,))
    for party in session.parties.values():
        party.confirm(alone)
    answers = [party.unmask(Confirmations(())) for party in session.parties.values()]
    opener, words = Opener(session), session.seen[victim].copy()
    seed = opener.secret(victim, Kind.SELF_SEED, answers)
    assert seed is not None
    opener.without_self(words, victim, seed)
    for peer in session.round.members:
        if peer != victim:
            key = opener.secret(peer, Kind.MASK_KEY, answers)
            assert key is not None
            opener.without_pair(words, victim, peer, key)
    return opener.read(words)


def at_survivors(
    n: int,
    kind: type[Party] = Party,
    book: type[MemoryRoundBook] = MemoryRoundBook,
    round_: Round | None = None,
) -> Watching:
    round_ = round_ or round_of(n)
    session = Watching(round_, kind=kind, books={org: book() for org in round_.members})
    session.until_survivors(vectors_of(round_))
    return session


def test_a_party_that_answers_any_request_has_its_vector_opened_alone() -> None:
    session = at_survivors(5, AnswersAnything, ForgetfulBook)
    opened = open_alone(session, "bank02")
    np.testing.assert_array_equal(opened, vectors_of(session.round)["bank02"])


def test_no_party_answers_for_a_survivor_set_below_the_threshold() -> None:
    session = at_survivors(5)
    for org, party in session.parties.items():
        text = "1 of 5 parties" if org == "bank02" else "stays silent"
        with pytest.raises(ProtocolError, match=text):
            party.confirm(Survivors(("bank02",)))
        with pytest.raises(RuntimeError, match="after confirm"):
            party.unmask(Confirmations(()))


# --- 3. both kinds of share for one peer


def both_kinds(session: Watching, victim: str) -> Vector:
    """First everybody survived, then all but the victim: properly signed, both times."""
    everybody = session.survivors.parties
    rest = tuple(org for org in everybody if org != victim)
    answers = []
    for survivors in (everybody, rest):
        parties = [session.parties[org] for org in survivors]
        signed = Confirmations(tuple(p.confirm(Survivors(survivors)) for p in parties))
        answers += [party.unmask(signed) for party in parties]
    opener, words = Opener(session), session.seen[victim].copy()
    seed = opener.secret(victim, Kind.SELF_SEED, answers)
    key = opener.secret(victim, Kind.MASK_KEY, answers)
    assert seed is not None
    assert key is not None
    opener.without_self(words, victim, seed)
    for peer in rest:
        opener.without_pair(words, victim, peer, key)
    return opener.read(words)


def test_a_party_that_forgets_gives_both_kinds_and_the_vector_is_open() -> None:
    session = at_survivors(5, book=ForgetfulBook)
    opened = both_kinds(session, "bank02")
    np.testing.assert_array_equal(opened, vectors_of(session.round)["bank02"])


def test_a_second_survivor_set_is_refused_also_after_a_restart() -> None:
    round_ = round_of(5)
    books = {org: MemoryRoundBook() for org in round_.members}
    session = Watching(round_, books=books)
    vectors = vectors_of(round_)
    session.until_survivors(vectors)
    with pytest.raises(ProtocolError, match="another"):
        both_kinds(session, "bank02")
    again = party_of(round_, "bank00", book=books["bank00"])
    again.announce()
    again.share(session.roll)
    again.mask(session.coordinator.delivery("bank00"), vectors["bank00"])
    with pytest.raises(ProtocolError, match="another"):
        again.confirm(Survivors(round_.members[:2] + round_.members[3:]))
    again.confirm(session.survivors)


def test_without_the_rule_on_sums_the_rule_on_survivor_sets_still_holds() -> None:
    class OnlyFacts(MemoryRoundBook):
        kept = ""

        def sum_over(
            self, round_: Round, parties: tuple[str, ...], facts: Mapping[str, bytes]
        ) -> None:
            self.fix(round_, {k: v for k, v in facts.items() if k.startswith(self.kept)})

    class OnlyKinds(OnlyFacts):
        kept = "kind of share"

    class OnlySets(OnlyFacts):
        kept = "set of survivors"

    with pytest.raises(ProtocolError, match="another kind of share of bank02"):
        both_kinds(at_survivors(5, book=OnlyKinds), "bank02")
    with pytest.raises(ProtocolError, match="another set of survivors"):
        both_kinds(at_survivors(5, book=OnlySets), "bank02")


def test_the_kind_of_every_share_is_written_down_before_the_signature_leaves() -> None:
    class Broken(MemoryRoundBook):
        def sum_over(
            self, round_: Round, parties: tuple[str, ...], facts: Mapping[str, bytes]
        ) -> None:
            assert {f"kind of share of {org}" for org in round_.members} < facts.keys()
            raise OSError("the disk is full")

    session = at_survivors(5, book=Broken)
    for party in session.parties.values():
        with pytest.raises(OSError, match="disk"):
            party.confirm(session.survivors)
        with pytest.raises(RuntimeError, match="after confirm"):
            party.unmask(Confirmations(()))


# --- 4. keys that the coordinator inserts or swaps


class TrustsAnyKey(Party):
    """Announcements are taken as they come."""

    def _require_roll(self, roll: Roll) -> None:
        pass


def constant(_: bytes) -> bytes:
    return b"\x07" * 32


def surrounded(kind: type[Party], *, pinned: bool) -> Vector:
    """The coordinator plays all the other parties, under keys of its own."""
    round_ = round_of(4)
    certified, forged = Certified.of(round_.members), Certified.of(round_.members, "forged")
    vectors = vectors_of(round_)

    def made(org: str) -> Party:
        real = org == "bank00"
        agree = (certified if real else forged).identity(org).agree if pinned else constant
        sign = (certified if real else forged).signers[org].sign
        verify = certified.verify if real and kind is Party else lambda *_: True
        identity = Identity(org, agree, sign, verify)
        randomness = Randomness(digest("m", org), round_.manifest, 1)
        klass = kind if real else TrustsAnyKey
        return klass(round_, identity, certified.keys, randomness, MemoryRoundBook())

    parties = {org: made(org) for org in round_.members}
    c = Coordinator(round_, certified.keys, lambda *_: True)
    for party in parties.values():
        c.announced(party.announce())
    victim = parties["bank00"]
    c.coins() if c.roll() else None
    for party in parties.values():
        c.shared(party.share(c.roll(), NO_COINS))
    for org, party in parties.items():
        own = vectors[org] if party is victim else np.zeros(5, np.int64)
        c.masked(party.mask(c.delivery(org), own))
    for party in parties.values():
        c.confirmed(party.confirm(c.survivors()))
    for party in parties.values():
        c.unmasked(party.unmask(c.confirmations()))
    return c.total() - vectors["bank00"]


def test_a_party_that_trusts_any_key_is_surrounded_by_the_coordinator() -> None:
    assert not surrounded(TrustsAnyKey, pinned=False).any()


def test_inserted_keys_are_refused_by_signature_and_by_the_certified_keys_in_the_seals() -> None:
    with pytest.raises(ProtocolError, match="not signed by it"):
        surrounded(Party, pinned=False)
    with pytest.raises(ProtocolError, match="does not open"):
        surrounded(TrustsAnyKey, pinned=True)


def test_a_swapped_key_is_refused_by_its_owner_and_by_everybody_else() -> None:
    round_ = round_of(3)
    parties = {org: party_of(round_, org) for org in round_.members}
    said = [party.announce() for party in parties.values()]
    for name in ("mask_key", "seal_key"):
        swapped = replace(said[1], **{name: secagg._public(digest("the coordinator's"))})
        for party in parties.values():
            with pytest.raises(ProtocolError, match="not signed by it"):
                party.share(Roll((said[0], swapped, said[2])))
    parties["bank00"].share(Roll(tuple(said)))


# --- thresholds and unequal views


def below_two_thirds(n: int, threshold: int) -> Round:
    round_ = round_of(n)
    object.__setattr__(round_, "threshold", threshold)  # no Round has it
    return round_


def split_views(session: Watching, victim: str) -> Vector | None:
    """Half the others hear that the victim is dead, the victim's half that all survived."""
    members = session.round.members
    half = len(members) // 2
    others = [org for org in members if org != victim]
    hears = dict.fromkeys((victim, *others[: half - 1]), members)
    hears |= dict.fromkeys(others[half - 1 :], tuple(others))
    signed = {org: session.parties[org].confirm(Survivors(told)) for org, told in hears.items()}
    answers = []
    for org, told in hears.items():
        same = sorted(peer for peer in members if hears[peer] == told)
        confirmations = Confirmations(tuple(signed[peer] for peer in same))
        answers.append(session.parties[org].unmask(confirmations))
    opener, words = Opener(session), session.seen[victim].copy()
    seed = opener.secret(victim, Kind.SELF_SEED, answers)
    key = opener.secret(victim, Kind.MASK_KEY, answers)
    if seed is None or key is None:
        return None
    opener.without_self(words, victim, seed)
    for peer in others:
        opener.without_pair(words, victim, peer, key)
    return opener.read(words)


def test_below_two_thirds_two_survivor_sets_are_both_signed_and_a_vector_is_open() -> None:
    session = at_survivors(6, round_=below_two_thirds(6, 3))
    opened = split_views(session, "bank00")
    np.testing.assert_array_equal(opened, vectors_of(session.round)["bank00"])


def test_at_two_thirds_parties_that_were_told_different_sets_stay_silent() -> None:
    session = at_survivors(6)
    with pytest.raises(ProtocolError, match="3 of 6 parties signed the survivor set, 5 needed"):
        split_views(session, "bank00")
    with pytest.raises(ParameterError, match="both be signed"):
        round_of(6, threshold=4)


def test_a_signature_on_another_set_does_not_count() -> None:
    session = at_survivors(6)
    members = session.round.members
    odd = session.parties["bank05"].confirm(Survivors(members[1:]))
    signed = [session.parties[org].confirm(session.survivors) for org in members[:5]]
    with pytest.raises(ProtocolError, match="bank05 did not sign the survivor set"):
        session.parties["bank00"].unmask(Confirmations((*signed, odd)))
    with pytest.raises(ProtocolError, match="bank05 confirms another survivor set"):
        session.coordinator.confirmed(odd)


def test_parties_that_were_shown_different_rolls_share_nothing() -> None:
    round_ = round_of(6)
    parties = {org: party_of(round_, org) for org in round_.members}
    said = tuple(party.announce() for party in parties.values())
    shares = {
        org: party.share(Roll(said[:-1] if org == "bank00" else said))
        for org, party in parties.items()
        if org != "bank05"
    }
    near = [s for shared in shares.values() for s in shared.shares if s.receiver == "bank01"]
    assert len({shared.session for shared in shares.values()}) == 2
    delivery = secagg.Delivery(round_.members[:5], tuple(near))
    with pytest.raises(ProtocolError, match="the share of bank00 does not open"):
        parties["bank01"].mask(delivery, np.zeros(5, np.int64))


def test_parties_that_were_told_different_sharers_do_not_confirm_each_other() -> None:
    session = Session(round_of(6))
    session.until_delivery()
    c, members = session.coordinator, session.round.members
    zeros = np.zeros(5, np.int64)
    for org, party in session.parties.items():
        delivery = c.delivery(org)
        if org == "bank00":  # it hears that bank05 never shared
            delivery = secagg.Delivery(members[:5], delivery.shares[:-1])
        party.mask(delivery, zeros)
    told = Survivors(members[:5])
    signed = [session.parties[org].confirm(told) for org in members[:5]]
    for org in members[:5]:
        with pytest.raises(ProtocolError, match="did not sign the survivor set"):
            session.parties[org].unmask(Confirmations(tuple(signed)))


# --- repeats, replays, restarts


def test_a_repeated_unmask_request_gets_the_same_shares_and_never_others() -> None:
    session = at_survivors(5)
    parties = session.parties
    signed = tuple(p.confirm(session.survivors) for p in parties.values())
    first = parties["bank00"].unmask(Confirmations(signed))
    assert parties["bank00"].unmask(Confirmations(signed)) == first
    assert parties["bank00"].unmask(Confirmations(signed[1:])) == first
    with pytest.raises(ProtocolError, match="another"):
        parties["bank00"].confirm(Survivors(session.round.members[:4]))
    assert parties["bank00"].unmask(Confirmations(signed)) == first


def test_messages_of_one_round_are_refused_in_the_next() -> None:
    one = at_survivors(5)
    signed = tuple(p.confirm(one.survivors) for p in one.parties.values())
    two = at_survivors(5, round_=replace(one.round, number=2))
    for party in two.parties.values():
        party.confirm(two.survivors)
    with pytest.raises(ProtocolError, match="did not sign"):
        two.parties["bank00"].unmask(Confirmations(signed))
    three = Session(replace(one.round, number=3))
    party = three.parties["bank00"]
    mixed = (party.announce(), *one.roll.announcements[1:])
    with pytest.raises(ProtocolError, match="another round"):
        party.share(Roll(mixed))
    three.until_delivery()
    old = one.coordinator.delivery("bank00")
    with pytest.raises(ProtocolError, match="does not open"):
        party.mask(old, np.zeros(5, np.int64))


@pytest.mark.parametrize("kind", [ForgetfulBook, MemoryRoundBook])
def test_another_vector_under_the_same_masks_shows_the_difference(
    kind: type[MemoryRoundBook],
) -> None:
    round_, book = round_of(5), kind()
    session = Session(round_, books={"bank00": book})
    session.until_delivery()
    delivery = session.coordinator.delivery("bank00")
    vectors = vectors_of(round_)
    before = session.parties["bank00"].mask(delivery, vectors["bank00"])
    again = party_of(round_, "bank00", book=book)
    again.announce()
    again.share(session.roll)
    if kind is MemoryRoundBook:
        with pytest.raises(ProtocolError, match="another vector"):
            again.mask(delivery, vectors["bank01"])
        assert again.mask(delivery, vectors["bank00"]) == before
        return
    after = again.mask(delivery, vectors["bank01"])
    difference = (words_of(before) - words_of(after)).view(np.int64)
    np.testing.assert_array_equal(difference, vectors["bank00"] - vectors["bank01"])


@pytest.mark.parametrize("kind", [ForgetfulBook, MemoryRoundBook])
def test_two_sums_over_nearly_the_same_parties_show_one_of_them(
    kind: type[MemoryRoundBook],
) -> None:
    first = round_of(5)
    books = {org: kind() for org in first.members}
    vectors = vectors_of(first)
    second = replace(first, number=2)
    whole = Session(first, books=books).run(vectors)
    if kind is MemoryRoundBook:
        with pytest.raises(ProtocolError, match="differ by 1: at least 3"):
            Session(second, books=books).run(vectors, {"mask": ["bank03"]})
        return
    without = Session(second, books=books).run(vectors, {"mask": ["bank03"]})
    np.testing.assert_array_equal(whole - without, vectors["bank03"])


# --- few neighbours


@pytest.mark.parametrize("k", [4, 6])
def test_a_party_whose_neighbours_are_corrupt_or_declared_dead_is_alone(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 neighbours, of which 2 work with the coordinator: it declares the other 2 dead."""
    round_ = round_of(51, 3, threshold=49, corrupt=2)
    assert secagg_graph.degree(51, 2, 2) == 6
    monkeypatch.setattr(secagg_graph, "degree", lambda *_: k)
    session, vectors = Session(round_), vectors_of(round_)
    session.until_delivery()
    opener = Opener(session)
    victim, *after = opener.web.circle
    corrupt, dead = after[:2], after[-2:]
    masked = session.parties[victim].mask(session.coordinator.delivery(victim), vectors[victim])
    words = words_of(masked)
    # The seed of a survivor and the keys of the dead come out as in any round; the corrupt parties
    # bring their own.
    opener.without_self(words, victim, session.parties[victim]._self_seed)
    for peer in (*corrupt, *dead):
        opener.without_pair(words, victim, peer, session.parties[peer]._mask_secret)
    if k == 4:
        np.testing.assert_array_equal(opener.read(words), vectors[victim])
    else:
        assert np.abs(opener.read(words) // 2).max() > round_.bound


# --- what the coordinator sees

LENGTH = 20_000
LARGEST = (1 << 61) - 1  # an input that fills its word: what shows through, shows in the top byte
LIMIT = 255 + 6 * 510**0.5  # chi-square, 255 degrees of freedom: 6 sigma


def chi_square(words: NDArray[np.uint64]) -> float:
    counts = np.bincount(words.view(np.uint8), minlength=256)
    mean = counts.sum() / 256
    return float(((counts - mean) ** 2 / mean).sum())


def correlation(words: NDArray[np.uint64], pattern: Vector) -> float:
    return float(np.corrcoef(words.view(np.int64), pattern)[0, 1]) * LENGTH**0.5


PATTERN = np.random.default_rng(6).choice((-1, 1), LENGTH)


def unmasked_view(pattern: Vector) -> list[NDArray[np.uint64]]:
    """All that the coordinator can compute of each survivor after an honest round, one vanished.

    bank00 sends the pattern times the largest value, bank01 the opposite: the sum is 0.
    """
    session = Watching(round_of(4, LENGTH, bound=LARGEST))
    vectors = dict.fromkeys(session.round.members, np.zeros(LENGTH, np.int64))
    vectors["bank00"], vectors["bank01"] = pattern * LARGEST, -pattern * LARGEST
    assert not session.run(vectors, {"mask": ["bank03"]}).any()
    opener, view = Opener(session), []
    for org in session.survivors.parties:
        words = session.seen[org].copy()
        opener.without_self(words, org, session.parties[org]._self_seed)
        opener.without_pair(words, org, "bank03", session.parties["bank03"]._mask_secret)
        view += [session.seen[org], words]
    return view


@pytest.mark.parametrize("pattern", [0 * PATTERN, 0 * PATTERN + 1, 0 * PATTERN - 1, PATTERN])
def test_the_coordinators_view_is_uniform_but_for_the_sum_whatever_a_bank_sends(
    pattern: Vector,
) -> None:
    view = unmasked_view(pattern)
    for words in view:
        assert chi_square(words) < LIMIT
        assert abs(correlation(words, PATTERN)) < 6
    for factors in product((-1, 0, 1), repeat=3):
        mix = np.zeros(LENGTH, np.uint64)
        for factor, words in zip(factors, view[1::2], strict=True):
            mix += np.uint64(factor % 2**64) * words
        if len(set(factors)) == 1:
            assert not mix.any()  # the sum, which everybody knows
        elif len({factor % 2 for factor in factors}) > 1:  # else all even but for the sum
            assert chi_square(mix) < LIMIT, factors
            assert abs(correlation(mix, PATTERN)) < 6, factors


def test_with_pair_masks_that_are_known_the_same_statistics_tell_the_input() -> None:
    class OnlySelfMasks(Party):
        """Adds no pair masks, as if all its neighbours were the coordinator's."""

        def mask(self, delivery: secagg.Delivery, vector: Vector) -> MaskedVector:
            masked = super().mask(delivery, vector)
            words = words_of(masked)
            for peer in delivery.sharers:
                if peer != self._me.party:
                    _add_stream(words, self._pair_key(peer), minus=self._me.party < peer)
            return replace(masked, words=words.tobytes())

    session = Watching(round_of(3, LENGTH, bound=LARGEST), kind=OnlySelfMasks)
    vectors = dict.fromkeys(session.round.members, PATTERN * LARGEST)
    session.run(vectors)
    words = session.seen["bank00"].copy()
    assert chi_square(words) < LIMIT  # until its self mask is taken away
    Opener(session).without_self(words, "bank00", session.parties["bank00"]._self_seed)
    assert chi_square(words) > 100 * LIMIT
    assert abs(correlation(words, PATTERN)) > 100
