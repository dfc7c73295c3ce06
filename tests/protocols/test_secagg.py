"""Secure aggregation: exact sums whoever vanishes, and refusals of everything else."""

from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import shamir
from protocols.errors import ParameterError, ProtocolError
from protocols.fixed_point import FixedPoint
from protocols.secagg import (
    NO_COINS,
    Coin,
    Coins,
    Confirmation,
    Confirmations,
    Coordinator,
    Delivery,
    Kind,
    MaskedVector,
    OpenedShare,
    Party,
    Roll,
    SealedShare,
    Survivors,
    TooFewParties,
    Unmasking,
)
from protocols.secagg_books import MemoryRoundBook, Round, least_threshold, require_apart
from protocols.secagg_graph import Graph, degree, graph
from protocols.streams import Randomness, Stream, digest

from .secagg_parties import STEPS, Certified, Session, party_of, round_of, vectors_of

BELOW_50 = [step for step in STEPS if step != "reveal"]


def expected(session: Session, vectors: Mapping[str, Any]) -> Any:
    return sum(vectors[org] for org in session.survivors.parties)


# --- sums


def test_the_sum_of_ten_banks_is_exact_and_only_the_sum_is_shown() -> None:
    session = Session(round_of(10))
    vectors = vectors_of(session.round)
    np.testing.assert_array_equal(session.run(vectors), sum(vectors.values()))


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_the_sum_survives_any_n_minus_t_parties_vanishing_at_any_step(data: st.DataObject) -> None:
    round_ = round_of(data.draw(st.integers(3, 9), "parties"))
    most = len(round_.members) - round_.threshold
    leaving = data.draw(st.lists(st.sampled_from(round_.members), max_size=most, unique=True))
    at = {org: data.draw(st.sampled_from(BELOW_50), org) for org in leaving}
    gone = {step: [org for org in at if at[org] == step] for step in STEPS}
    session, vectors = Session(round_), vectors_of(round_)
    total = session.run(vectors, gone)
    late = {org for org, step in at.items() if step in ("confirm", "unmask")}
    assert set(session.survivors.parties) == set(round_.members) - (set(leaving) - late)
    np.testing.assert_array_equal(total, expected(session, vectors))


@pytest.mark.parametrize("step", BELOW_50)
def test_one_more_than_n_minus_t_vanishing_ends_the_round_with_a_clear_error(step: str) -> None:
    round_ = round_of(6)
    gone = round_.members[: len(round_.members) - round_.threshold + 1]
    with pytest.raises(TooFewParties, match=r"4 of 6 parties .*, 5 needed"):
        Session(round_).run(vectors_of(round_), {step: gone})


def test_min_parties_above_the_threshold_is_what_counts() -> None:
    round_ = round_of(6, min_parties=6)
    with pytest.raises(TooFewParties, match="5 of 6 parties sent their vectors, 6 needed"):
        Session(round_).run(vectors_of(round_), {"mask": round_.members[:1]})


def test_above_fifty_parties_a_third_may_vanish_spread_over_all_steps() -> None:
    round_ = round_of(51, 3)
    vanish = np.random.default_rng(4).permutation(list(round_.members))[:16].tolist()
    gone = {step: vanish[at::6] for at, step in enumerate(STEPS)}
    session, vectors = Session(round_), vectors_of(round_)
    np.testing.assert_array_equal(session.run(vectors, gone), expected(session, vectors))


def test_above_fifty_parties_a_small_share_of_bad_ones_means_few_neighbours() -> None:
    round_ = round_of(51, 3, threshold=49, corrupt=2)
    session, vectors = Session(round_), vectors_of(round_)
    gone = {"mask": round_.members[:1], "unmask": round_.members[1:2]}
    np.testing.assert_array_equal(session.run(vectors, gone), expected(session, vectors))
    assert all(
        len(session.parties[org].share(session.roll, session.coins).shares) == 6
        for org in round_.members[2:4]
    )


@pytest.mark.parametrize("bits", [24, 25, 32, 33, 63, 64])
def test_signed_integers_up_to_the_bound_round_trip(bits: int) -> None:
    bound = (1 << bits - 1) // 3 - 1
    round_ = round_of(3, 6, bits=bits, bound=bound)
    one = np.array([bound, -bound, 0, 1, -1, bound - 1])
    vectors = dict.fromkeys(round_.members, one)
    total = Session(round_).run(vectors)
    assert total.tolist() == [3 * x for x in one.tolist()]
    assert total.dtype == np.int64


def test_a_vector_beyond_the_bound_or_of_another_shape_is_not_masked() -> None:
    session = Session(round_of(3))
    session.until_delivery()
    org, party = next(iter(session.parties.items()))
    delivery = session.coordinator.delivery(org)
    vector = np.zeros(5, np.int64)
    for bad in (vector + session.round.bound + 1, vector[:4], vector.astype(np.int32)):
        with pytest.raises(ValueError, match=r"declared bound|integers expected"):
            party.mask(delivery, bad)
    party.mask(delivery, vector)  # nothing was written down


def test_all_frames_of_a_step_have_one_length() -> None:
    session = Session(round_of(5))
    session.until_delivery()
    vectors = vectors_of(session.round)
    zero = dict.fromkeys(session.round.members, np.zeros(5, np.int64))
    lengths = set()
    for org, party in session.parties.items():
        shares = party.share(session.roll)
        delivery = session.coordinator.delivery(org)
        some = vectors if org != session.round.members[0] else zero
        masked = party.mask(delivery, some[org])
        lengths.add((len(masked.words), *(len(s.payload) for s in shares.shares)))
    assert len(lengths) == 1


# --- terms of a round


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        ({"bound": 1 << 62}, "lower the bound"),
        ({"bits": 23}, "lower the bound"),
        ({"threshold": 6}, "at least 7"),
        ({"threshold": 11}, "at least 7"),
        ({"corrupt": 4}, "at most 3"),
        ({"min_parties": 2}, "a sum needs 3"),
        ({"min_parties": 11}, "at least 11"),
    ],
)
def test_terms_that_protect_nobody_are_refused(terms: dict[str, Any], text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        round_of(10, **terms)


@pytest.mark.parametrize(
    "terms",
    [
        {"members": ("b", "a", "c")},
        {"members": ("a", "a", "b")},
        {"manifest": b"short"},
        {"statistic": b""},
        {"length": 0},
        {"bits": 65},
    ],
)
def test_malformed_terms_are_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        round_of(10, **terms)


@given(st.integers(3, 100))
def test_two_survivor_sets_share_more_honest_parties_than_may_be_corrupt(n: int) -> None:
    t = least_threshold(n)
    round_ = round_of(n)
    assert 2 * t - n > round_.tolerated
    assert round_.honest_survivors == max(1, t - (n - t))


def test_every_term_changes_what_is_signed() -> None:
    base = round_of(10)
    changes: dict[str, Any] = {
        "manifest": digest("other"),
        "attempt": 2,
        "number": 2,
        "label": "other",
        "statistic": digest("another"),
        "members": (*base.members[:-1], "bank10"),
        "length": 6,
        "bound": 7,
        "threshold": 8,
        "bits": 63,
        "min_parties": 4,
        "corrupt": 1,
    }
    assert changes.keys() == {f.name for f in fields(Round)}
    encodings = {replace(base, **{name: value}).encode() for name, value in changes.items()}
    assert len(encodings | {base.encode()}) == len(changes) + 1


# --- who may take part


def test_equal_certified_keys_are_refused() -> None:
    round_ = round_of(3)
    keys = Certified.of(round_.members).keys
    keys["bank01"] = keys["bank00"]
    with pytest.raises(ProtocolError, match="one certified key"):
        party_of(round_, "bank02", keys=keys)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), bytes([0xED]) + b"\xff" * 31])
def test_a_key_of_small_order_is_refused(point: bytes) -> None:
    round_ = round_of(3)
    keys = Certified.of(round_.members).keys | {"bank01": point}
    with pytest.raises(ProtocolError, match="small order"):
        party_of(round_, "bank02", keys=keys)


def test_an_announced_key_of_small_order_is_refused_though_its_owner_signed_it() -> None:
    round_ = round_of(3)
    certified = Certified.of(round_.members)
    parties = {org: party_of(round_, org) for org in round_.members}
    said = [party.announce() for party in parties.values()]
    bad = replace(said[1], seal_key=bytes(32))
    bad = replace(bad, signature=certified.signers["bank01"].sign(bad.signed()))
    with pytest.raises(ProtocolError, match="small order"):
        parties["bank00"].share(Roll((said[0], bad, said[2])))


def test_certified_keys_are_those_of_the_members_and_the_job_is_the_randomness_job() -> None:
    round_ = round_of(3)
    keys = Certified.of(round_.members).keys
    with pytest.raises(ValueError, match="exactly"):
        party_of(round_, "bank00", keys=keys | {"bank09": digest("key")})
    with pytest.raises(ValueError, match="no member"):
        party_of(round_, "bank09", certified=Certified.of((*round_.members, "bank09")))
    identity = Certified.of(round_.members).identity("bank00")
    with pytest.raises(ValueError, match="another job"):
        Party(round_, identity, keys, Randomness(digest("m"), digest("x"), 1), MemoryRoundBook())


def test_other_certified_keys_at_one_party_make_its_announcement_one_of_another_round() -> None:
    round_ = round_of(3)
    said = [party_of(round_, org).announce() for org in round_.members[:2]]
    stranger = X25519PrivateKey.generate().public_key().public_bytes_raw()
    keys = Certified.of(round_.members).keys | {"bank00": stranger}
    odd = party_of(round_, "bank02", keys=keys)
    with pytest.raises(ProtocolError, match="other certified keys"):
        odd.share(Roll((*said, odd.announce())))


# --- refusals of each message


def at_shares() -> Session:
    session = Session(round_of(5))
    session.until_delivery()
    return session


def at_survivors() -> Session:
    session = Session(round_of(5))
    session.until_survivors(vectors_of(session.round), {"mask": ["bank04"]})
    return session


@pytest.mark.parametrize(
    "name", ["context", "seal_key", "mask_key", "self_commitment", "coin_commitment", "signature"]
)
def test_an_announcement_with_one_bit_changed_is_refused_by_everybody(name: str) -> None:
    round_ = round_of(3)
    certified = Certified.of(round_.members)
    parties = {org: party_of(round_, org) for org in round_.members}
    said = [party.announce() for party in parties.values()]
    value = bytes([getattr(said[1], name)[0] ^ 1]) + getattr(said[1], name)[1:]
    roll = Roll((said[0], replace(said[1], **{name: value}), said[2]))
    with pytest.raises(ProtocolError, match=r"not signed|another round"):
        parties["bank00"].share(roll)
    with pytest.raises(ProtocolError, match=r"missing or was changed|not signed|another round"):
        parties["bank01"].share(roll)
    with pytest.raises(ProtocolError, match=r"not signed|another round"):
        Coordinator(round_, certified.keys, certified.verify).announced(roll.announcements[1])


def test_messages_with_fields_of_another_length_cannot_be_built() -> None:
    said = party_of(round_of(3), "bank00").announce()
    for name in ("context", "seal_key", "mask_key", "self_commitment", "coin_commitment"):
        with pytest.raises(ProtocolError, match="31 bytes, 32 expected"):
            replace(said, **{name: bytes(31)})
    for signature in (b"", bytes(257)):
        with pytest.raises(ProtocolError, match=f"a signature of {len(signature)} bytes"):
            replace(said, signature=signature)
        with pytest.raises(ProtocolError, match=f"a signature of {len(signature)} bytes"):
            Confirmation("bank00", signature)
    with pytest.raises(ProtocolError, match="33 bytes, 32 expected"):
        Coin("bank00", bytes(33))
    with pytest.raises(ProtocolError, match="81 bytes, 82 expected"):
        SealedShare("bank00", "bank01", bytes(81))


def test_an_announcement_of_somebody_else_is_refused_though_it_is_signed() -> None:
    round_ = round_of(3)
    certified = Certified.of(round_.members)
    said = [party_of(round_, org).announce() for org in round_.members]
    stranger = replace(said[2], party="bank99")
    with pytest.raises(ProtocolError, match="nobody that the round names"):
        Coordinator(round_, certified.keys, lambda *_: True).announced(stranger)


def test_a_roll_that_is_short_unordered_or_without_the_party_is_refused() -> None:
    round_ = round_of(6)
    parties = [party_of(round_, org) for org in round_.members]
    said = tuple(party.announce() for party in parties)
    for roll, text in (
        (said[::-1], "ascending"),
        ((said[0], *said), "ascending"),
        (said[:4], "4 of 6 parties announced"),
        (said[1:], "missing or was changed"),
    ):
        with pytest.raises(ProtocolError, match=text):
            parties[0].share(Roll(roll))
    with pytest.raises(ProtocolError, match="needs none"):
        parties[0].share(Roll(said), Coins((parties[0]._coin,)))
    parties[0].share(Roll(said))  # nothing was written down


def test_a_second_roll_for_one_round_is_refused() -> None:
    round_ = round_of(6)
    parties = [party_of(round_, org) for org in round_.members]
    said = tuple(party.announce() for party in parties)
    parties[0].share(Roll(said))
    with pytest.raises(ProtocolError, match="another roll"):
        parties[0].share(Roll(said[:-1]))


def test_other_terms_for_a_round_that_began_are_refused() -> None:
    round_, book = round_of(6), MemoryRoundBook()
    party_of(round_, "bank00", book=book).announce()
    for terms in ({"threshold": 6}, {"bound": 7}, {"statistic": digest("another")}):
        with pytest.raises(ProtocolError, match="another context"):
            party_of(replace(round_, **terms), "bank00", book=book).announce()
    party_of(round_, "bank00", book=book).announce()


def test_a_vector_is_masked_for_one_set_of_sharers() -> None:
    session = Session(round_of(6))
    session.until_delivery()
    own, zeros = session.coordinator.delivery("bank00"), np.zeros(5, np.int64)
    party = session.parties["bank00"]
    fewer = Delivery(own.sharers[:-1], own.shares[:-1])
    first = party.mask(fewer, zeros)
    with pytest.raises(ProtocolError, match="another set of sharers"):
        party.mask(own, zeros)
    assert party.mask(fewer, zeros) == first
    assert set(party._masked.held) == set(fewer.sharers)  # type: ignore[union-attr]  # set by mask


def test_equal_announced_keys_are_refused() -> None:
    round_ = round_of(3)
    certified = Certified.of(round_.members)
    parties = [party_of(round_, org) for org in round_.members]
    said = [party.announce() for party in parties]
    copied = replace(said[1], mask_key=said[2].mask_key)
    copied = replace(copied, signature=certified.signers["bank01"].sign(copied.signed()))
    with pytest.raises(ProtocolError, match="keys are equal"):
        parties[0].share(Roll((said[0], copied, said[2])))


@pytest.mark.parametrize("at", [0, 40, 81])
def test_a_sealed_share_with_one_bit_changed_does_not_open(at: int) -> None:
    session = at_shares()
    delivery = session.coordinator.delivery("bank00")
    first = delivery.shares[0]
    payload = bytes(b ^ (i == at) for i, b in enumerate(first.payload))
    tampered = replace(delivery, shares=(replace(first, payload=payload), *delivery.shares[1:]))
    with pytest.raises(ProtocolError, match="share of bank01 does not open"):
        session.parties["bank00"].mask(tampered, np.zeros(5, np.int64))


def test_shares_in_another_name_or_of_others_are_refused() -> None:
    session = at_shares()
    own = session.coordinator.delivery("bank00")
    other = session.coordinator.delivery("bank01")
    a, b, *rest = own.shares
    for shares, text in (
        ((replace(b, sender="bank01"), replace(a, sender="bank02"), *rest), "does not open"),
        ((replace(a, receiver="bank01"), b, *rest), "somebody else"),
        ((replace(other.shares[1], receiver="bank00", sender="bank01"), b, *rest), "not open"),
        ((b, a, *rest), "others than the neighbours"),
        (own.shares[1:], "others than the neighbours"),
        (other.shares, "others than the neighbours"),
    ):
        with pytest.raises(ProtocolError, match=text):
            session.parties["bank00"].mask(replace(own, shares=shares), np.zeros(5, np.int64))


def test_sharers_are_announced_enough_and_include_the_party() -> None:
    session = at_shares()
    own, zeros = session.coordinator.delivery("bank00"), np.zeros(5, np.int64)
    for sharers, text in (
        (own.sharers[:3], "3 of 5 parties shared"),
        (own.sharers[1:], "stays silent"),
        ((*own.sharers, "bank77"), "not there before"),
        (own.sharers[::-1], "ascending"),
    ):
        with pytest.raises(ProtocolError, match=text):
            session.parties["bank00"].mask(replace(own, sharers=sharers), zeros)


def test_survivor_sets_are_announced_enough_and_include_the_party() -> None:
    session = at_survivors()
    everybody = session.survivors.parties
    for parties, text in (
        (everybody[:3], "3 of 5 parties sent"),
        (everybody[1:], "stays silent"),
        ((*everybody, "bank77"), "not there before"),
        (everybody[::-1], "ascending"),
    ):
        with pytest.raises(ProtocolError, match=text):
            session.parties["bank00"].confirm(Survivors(parties))
    session.parties["bank00"].confirm(session.survivors)  # nothing was written down


def test_confirmations_are_enough_distinct_and_signed_on_this_very_set() -> None:
    session = at_survivors()
    parties = session.parties
    given = tuple(parties[org].confirm(session.survivors) for org in session.survivors.parties)
    outsider = replace(given[3], party="bank04")
    for confirmations, text in (
        (given[:3], "3 of 5 parties signed"),
        ((given[0], given[0], *given[1:]), "ascending"),
        ((*given[:3], replace(given[3], signature=given[2].signature)), "did not sign"),
        ((*given, outsider), "not in the sum"),
    ):
        with pytest.raises(ProtocolError, match=text):
            parties["bank00"].unmask(Confirmations(confirmations))
    parties["bank00"].unmask(Confirmations(given))


def test_a_confirmation_of_a_party_that_is_not_in_the_sum_is_refused() -> None:
    session = at_survivors()
    c, dead = session.coordinator, Certified.of(session.round.members).signers["bank04"]
    statement = c._ground.statement(c._sharers, session.survivors.parties)
    with pytest.raises(ProtocolError, match="bank04 has no part in the confirmations"):
        c.confirmed(Confirmation("bank04", dead.sign(statement)))


def test_steps_out_of_order_are_our_own_bug() -> None:
    session = Session(round_of(3))
    party = session.parties["bank00"]
    delivery = Delivery(session.round.members, ())
    for step in (
        lambda: party.share(Roll(())),
        lambda: party.mask(delivery, np.zeros(5, np.int64)),
        lambda: party.confirm(Survivors(())),
        lambda: party.unmask(Confirmations(())),
        session.coordinator.coins,
        lambda: session.coordinator.delivery("bank00"),
        session.coordinator.survivors,
        session.coordinator.confirmations,
        session.coordinator.total,
    ):
        with pytest.raises(RuntimeError, match="comes after"):
            step()


# --- the coordinator's checks


def test_messages_that_come_late_or_twice_are_discarded() -> None:
    session = Session(round_of(5))
    vectors = vectors_of(session.round)
    session.until_delivery()
    c, zero = session.coordinator, session.parties["bank00"]
    with pytest.raises(ProtocolError, match="comes too late: the announcements"):
        c.announced(session.roll.announcements[0])
    late = session.parties["bank04"].mask(c.delivery("bank04"), vectors["bank04"])
    for org in session.round.members[:4]:
        c.masked(session.parties[org].mask(c.delivery(org), vectors[org]))
    with pytest.raises(ProtocolError, match="a second message of bank00"):
        c.masked(zero.mask(c.delivery("bank00"), vectors["bank00"]))
    survivors = c.survivors()
    with pytest.raises(ProtocolError, match="bank04 comes too late: the masked vectors"):
        c.masked(late)
    for org in survivors.parties:
        c.confirmed(session.parties[org].confirm(survivors))
    for org in survivors.parties:
        c.unmasked(session.parties[org].unmask(c.confirmations()))
    np.testing.assert_array_equal(c.total(), sum(vectors[o] for o in survivors.parties))


def test_masked_vectors_of_another_length_or_session_are_refused() -> None:
    session = at_shares()
    c = session.coordinator
    good = session.parties["bank00"].mask(c.delivery("bank00"), np.zeros(5, np.int64))
    with pytest.raises(ProtocolError, match="bank77 did not share"):
        c.delivery("bank77")
    for bad, text in (
        (replace(good, words=good.words[:-1]), "39 bytes, 40 expected"),
        (replace(good, sharers=digest("other")), "other sharers"),
        (replace(good, party="bank77"), "no part"),
    ):
        with pytest.raises(ProtocolError, match=text):
            c.masked(bad)


def test_shares_for_others_than_the_neighbours_are_refused_by_the_coordinator() -> None:
    session = Session(round_of(4))
    c = session.coordinator
    for party in session.parties.values():
        c.announced(party.announce())
    shares = session.parties["bank00"].share(c.roll(), c.coins())
    forged = SealedShare("bank01", "bank01", shares.shares[0].payload)
    for bad, text in (
        (replace(shares, session=digest("other")), "another session"),
        (replace(shares, shares=shares.shares[1:]), "exactly its neighbours"),
        (replace(shares, shares=(forged, *shares.shares[1:])), "another's name"),
    ):
        with pytest.raises(ProtocolError, match=text):
            c.shared(bad)


def unmaskings(session: Session) -> list[Unmasking]:
    c, alive = session.coordinator, session.survivors.parties
    for org in alive:
        c.confirmed(session.parties[org].confirm(session.survivors))
    return [session.parties[org].unmask(c.confirmations()) for org in alive]


def changed(unmasking: Unmasking, at: int, **what: Any) -> Unmasking:
    shares = list(unmasking.shares)
    shares[at] = replace(shares[at], **what)
    return replace(unmasking, shares=tuple(shares))


@pytest.mark.parametrize(("dealer", "text"), [(0, "another seed"), (4, "another key")])
def test_a_tampered_share_gives_neither_a_seed_nor_a_key_and_no_sum(dealer: int, text: str) -> None:
    session = at_survivors()
    given = unmaskings(session)
    value = given[1].shares[dealer].value
    given[1] = changed(given[1], dealer, value=value[:-1] + bytes([value[-1] ^ 1]))
    for unmasking in given:
        session.coordinator.unmasked(unmasking)
    with pytest.raises(ProtocolError, match=text):
        session.coordinator.total()


def test_shares_out_of_range_of_the_wrong_kind_or_from_the_dead_are_refused() -> None:
    session = at_survivors()
    first = unmaskings(session)[0]
    for bad, text in (
        (changed(first, 0, value=shamir.P.to_bytes(33)), "out of range"),
        (changed(first, 0, kind=int(Kind.MASK_KEY)), "other shares than were due"),
        (changed(first, 4, kind=int(Kind.SELF_SEED)), "other shares than were due"),
        (replace(first, shares=first.shares[1:]), "other shares than were due"),
        (replace(first, party="bank04"), "not in the sum"),
    ):
        with pytest.raises(ProtocolError, match=text):
            session.coordinator.unmasked(bad)
    with pytest.raises(ProtocolError, match="32 bytes, 33 expected"):
        OpenedShare("bank00", 0, bytes(32))


def test_a_sum_beyond_what_the_survivors_can_have_sent_is_refused() -> None:
    session = Session(round_of(3))
    session.until_delivery()
    c = session.coordinator
    for org, party in session.parties.items():
        masked = party.mask(c.delivery(org), np.zeros(5, np.int64))
        words = np.frombuffer(masked.words, "<u8") + np.uint64(1 << 40)
        c.masked(MaskedVector(org, masked.sharers, words.tobytes()))
    session.survivors = c.survivors()
    for unmasking in unmaskings(session):
        c.unmasked(unmasking)
    with pytest.raises(ProtocolError, match="beyond what the survivors"):
        c.total()


# --- restarts


def test_a_party_that_is_built_again_repeats_every_message_byte_for_byte() -> None:
    session = Session(round_of(5), books={"bank00": (book := MemoryRoundBook())})
    session.until_delivery()
    c, first = session.coordinator, session.parties["bank00"]
    vector = vectors_of(session.round)["bank00"]
    again = party_of(session.round, "bank00", book=book)
    assert again.announce() == session.roll.announcements[0]
    assert again.share(session.roll) == first.share(session.roll)
    delivery = c.delivery("bank00")
    assert again.mask(delivery, vector) == first.mask(delivery, vector)
    everybody = Survivors(session.round.members)
    assert again.confirm(everybody) == first.confirm(everybody)
    for org in session.round.members[1:]:
        party = session.parties[org]
        party.mask(c.delivery(org), vector)
    signed = Confirmations(tuple(p.confirm(everybody) for p in session.parties.values()))
    assert again.unmask(signed) == first.unmask(signed)


def test_every_round_label_and_attempt_has_its_own_keys_masks_and_commitments() -> None:
    base = round_of(3)
    rounds = (
        base,
        replace(base, number=2),
        replace(base, label="other"),
        replace(base, attempt=2),
        replace(base, manifest=digest("other")),
    )
    seen = []
    for round_ in rounds:
        session = Session(round_)
        session.until_delivery()
        said = session.roll.announcements[0]
        zeros = np.zeros(5, np.int64)
        masked = session.parties["bank00"].mask(session.coordinator.delivery("bank00"), zeros)
        seen += [said.seal_key, said.mask_key, said.self_commitment, said.coin_commitment]
        seen.append(masked.words)
    assert len(set(seen)) == len(seen)


def test_secrets_and_shares_are_not_in_any_repr() -> None:
    session = at_survivors()
    party = session.parties["bank00"]
    secrets = [party._self_seed, party._mask_secret, party._seal_secret]
    texts = [repr(x) for x in (party, party._shared, party._masked, unmaskings(session)[0])]
    held = [v for kinds in party._masked.held.values() for v in kinds.values()]  # type: ignore[union-attr]  # set by mask
    for text in texts:
        assert not any(repr(value)[2:-1] in text for value in [*secrets, *held])


# --- statistics over nearly equal sets


def test_a_second_sum_of_a_statistic_over_nearly_the_same_parties_is_refused() -> None:
    books = {org: MemoryRoundBook() for org in round_of(9).members}
    first = round_of(9)
    Session(first, books=books).run(vectors_of(first))
    again = replace(first, number=2)
    gone = {"mask": first.members[:1]}
    with pytest.raises(ProtocolError, match="differ by 1: at least 3"):
        Session(again, books=books).run(vectors_of(again), gone)
    same = replace(first, number=3)
    Session(same, books=books).run(vectors_of(same))
    apart = replace(first, number=4, threshold=7, min_parties=3)
    with pytest.raises(ProtocolError, match="differ by 2: at least 3"):
        Session(apart, books=books).run(vectors_of(apart), {"mask": first.members[:2]})
    other = replace(first, number=5, statistic=digest("another"))
    Session(other, books=books).run(vectors_of(other), gone)


def test_a_set_that_is_refused_does_not_stand_in_the_way_of_later_sums() -> None:
    round_, book = round_of(9), MemoryRoundBook()
    book.sum_over(round_, round_.members, {"set of survivors": b"1"})
    with pytest.raises(ProtocolError, match="another set of survivors"):
        book.sum_over(round_, round_.members[:6], {"set of survivors": b"2"})
    later = replace(round_, number=2)
    book.sum_over(later, round_.members[1:6], {"set of survivors": b"3"})
    with pytest.raises(ProtocolError, match="differ by 1"):
        book.sum_over(replace(round_, number=3), round_.members[:6], {"x": b"4"})
    book.fix(replace(round_, number=3), {"x": b"5"})  # of what was refused nothing is left


def smallest_combination(sets: list[frozenset[str]], names: str) -> int:
    """By trying: the fewest parties in a combination with factors -3 to 3."""
    matrix = np.array([[name in each for name in names] for each in sets], int)
    factors = np.array(np.meshgrid(*[range(-3, 4)] * len(sets))).reshape(len(sets), -1).T
    weights = np.count_nonzero(factors @ matrix, axis=1)
    return int(weights[weights > 0].min())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.frozensets(st.sampled_from("abcdefgh"), min_size=4), min_size=1, max_size=4))
def test_no_combination_of_allowed_sums_holds_fewer_than_three(sets: list[frozenset[str]]) -> None:
    known: list[frozenset[str]] = []
    for each in sets:
        try:
            require_apart(known, each, 3)
        except ProtocolError:
            assert smallest_combination([*known, each], "abcdefgh") < 3
        else:
            known.append(each)
    assert smallest_combination(known, "abcdefgh") >= 3


def test_three_sums_that_differ_by_enough_each_may_still_isolate_a_party() -> None:
    x, y, z = "abcd", "efgh", "ijkl"
    known = [frozenset("m" + x + y), frozenset(x + z)]
    require_apart(known[:1], known[1], 3)
    with pytest.raises(ProtocolError, match="together show fewer than 3"):
        require_apart([*known, frozenset(y + z)], frozenset("m" + x + y + z), 3)


# --- neighbours


def is_isolated(circle: int, k: int, bad: set[int]) -> bool:
    """Some good party is cut off from the other good ones, or has only bad holders but k - d."""
    good = [i for i in range(circle) if i not in bad]
    seen, todo = {good[0]}, [good[0]]
    while todo:
        at = todo.pop()
        for d in range(1, k // 2 + 1):
            for to in ((at + d) % circle, (at - d) % circle):
                if to not in bad and to not in seen:
                    seen.add(to)
                    todo.append(to)
    return len(seen) < len(good)


def test_a_degree_above_corrupt_and_dropped_leaves_no_way_to_cut_anybody_off() -> None:
    for circle, bad in ((9, 3), (10, 3), (11, 5)):
        k = degree(circle, bad - 1, 1)
        assert bad < k <= bad + 2
        assert not any(
            is_isolated(circle, k, set(each)) for each in combinations(range(circle), bad)
        )
        assert any(
            is_isolated(circle, bad - bad % 2, set(each))
            for each in combinations(range(circle), bad)
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(51, 130), st.integers(0, 20), st.integers(0, 20))
def test_the_degree_keeps_secrets_closed_and_within_reach(n: int, corrupt: int, gone: int) -> None:
    k = degree(n, corrupt, gone)
    assert k == n - 1 or (k % 2 == 0 and k > gone)
    threshold = k + 1 - gone
    assert threshold >= 2  # and k + 1 - gone holders stay, by its definition
    if corrupt + gone < n - 2:
        assert k <= corrupt + gone + 2


def test_the_degree_uses_chance_where_it_is_sure_enough() -> None:
    assert degree(2000, 300, 100) < 401
    assert degree(60, 19, 19) == 40
    assert degree(20, 10, 9) == 19


def test_neighbours_are_mutual_and_follow_from_the_seed() -> None:
    names = [f"b{i:03}" for i in range(70)]
    one, two = (graph(names, 70, 60, 10, digest(seed)) for seed in ("a", "b"))
    assert one != two
    assert one == graph(names[::-1], 70, 60, 10, digest("a"))
    for name in names:
        assert len(one.neighbours(name)) == len(set(one.neighbours(name))) == one.degree == 22
        assert all(name in one.neighbours(peer) for peer in one.neighbours(name))
        assert one.holders(name) == tuple(sorted({name, *one.neighbours(name)}))
    assert sorted(one.index(name) for name in names) == list(range(1, 71))
    assert one.threshold == 13  # of 23 holders, when 10 more may go and 10 are corrupt


def test_up_to_fifty_parties_everybody_is_everybodys_neighbour() -> None:
    names = [f"b{i:02}" for i in range(45)]
    assert graph(names, 50, 34, 16, b"") == Graph(tuple(names), 44, 34)


def test_a_coin_that_was_not_promised_is_refused() -> None:
    round_ = round_of(51)
    parties = Session(round_).parties
    roll = Roll(tuple(party.announce() for party in parties.values()))
    coins = tuple(party.reveal(roll) for party in list(parties.values())[:36])
    forged = replace(coins[1], value=digest("chosen by the coordinator"))
    first = parties["bank00"]
    for shown, text in (
        ((coins[0], forged, *coins[2:]), "not the one that was promised"),
        (coins[:34], "34 of 51 parties showed"),
        (coins[::-1], "ascending"),
        (coins[1:], "left out"),
    ):
        with pytest.raises(ProtocolError, match=text):
            first.share(roll, Coins(shown))
    first.share(roll, Coins(coins))
    with pytest.raises(ProtocolError, match="another session"):
        first.share(roll, Coins(coins[:35]))
    with pytest.raises(ProtocolError, match="0 of 51"):
        first.share(roll, NO_COINS)


# --- Shamir's shares


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 12), st.data())
def test_any_threshold_of_shares_give_the_secret(
    secret: bytes, n: int, data: st.DataObject
) -> None:
    t = data.draw(st.integers(2, n))
    shares = shamir.split(secret, t, range(1, n + 1), Stream(digest("s")))
    chosen = data.draw(st.permutations(range(1, n + 1)))[:t]
    assert shamir.combine({x: shares[x] for x in chosen}) == secret


def test_fewer_shares_fit_every_secret() -> None:
    secret, other = digest("secret"), digest("other")
    shares = shamir.split(secret, 3, (1, 2, 3), Stream(digest("s")))
    # The third share under which the same first two would open the other secret.
    w = shamir.weights((1, 2, 3))
    known = sum(w[x - 1] * int.from_bytes(shares[x]) for x in (1, 2))
    third = (int.from_bytes(other) - known) * pow(w[2], -1, shamir.P) % shamir.P
    assert shamir.combine(shares | {3: third.to_bytes(33)}) == other


def test_the_modulus_is_the_least_prime_above_the_secrets() -> None:
    def is_prime(n: int) -> bool:  # Miller and Rabin, 2^-80
        d, r = n - 1, 0
        while d % 2 == 0:
            d, r = d // 2, r + 1
        for base in range(2, 42):
            x = pow(base, d, n)
            if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(r - 1)):
                return False
        return True

    assert [i for i in range(1, 298) if is_prime((1 << 256) + i)] == [297]


def test_shares_that_are_no_shares_are_refused() -> None:
    shares = shamir.split(digest("x"), 2, (1, 2, 3), Stream(digest("s")))
    for bad in (shares[1][:-1], b"\xff" * 33, shamir.P.to_bytes(33)):
        with pytest.raises(ProtocolError, match="out of range"):
            shamir.combine({1: bad, 2: shares[2]})
    for indices in ((1, 1), (0, 1), (1, shamir.P)):
        with pytest.raises(ProtocolError, match="indices"):
            shamir.weights(indices)
    top = ((1 << 256) + 5).to_bytes(33)
    with pytest.raises(ProtocolError, match="do not give a secret"):
        shamir.combine({1: top, 2: top})
    for threshold, places in ((1, (1, 2)), (3, (1, 2)), (2, (1, 1)), (2, (0, 1))):
        with pytest.raises(ValueError, match=r"threshold|distinct"):
            shamir.split(digest("x"), threshold, places, Stream(digest("s")))
    with pytest.raises(ValueError, match="32 bytes"):
        shamir.split(b"short", 2, (1, 2), Stream(digest("s")))


# --- quantised reals

RANDOMNESS = Randomness(digest("seed"), digest("manifest"), 1)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20), st.floats(0.01, 3))
def test_rounding_stays_within_one_step_and_the_bound(values: list[float], step: float) -> None:
    fixed = FixedPoint(5.0, step)
    encoded = fixed.encode(np.array(values), RANDOMNESS, stage="s", step=1)
    assert np.abs(encoded).max() <= fixed.bound
    error = np.abs(fixed.decode(encoded) - np.clip(values, -5, 5))
    assert error.max() <= step * (1 + 1e-9)


def test_rounding_is_right_on_average_and_the_same_for_the_same_values() -> None:
    fixed, values = FixedPoint(1.0, 0.5), np.full(40_000, 0.2)
    encoded = fixed.encode(values, RANDOMNESS, stage="s", step=1)
    assert set(encoded.tolist()) == {0, 1}
    assert abs(encoded.mean() - 0.4) < 5 * (0.24 / 40_000) ** 0.5
    again = fixed.encode(values, RANDOMNESS, stage="s", step=1)
    np.testing.assert_array_equal(encoded, again)
    assert (fixed.encode(values, RANDOMNESS, stage="s", step=2) != encoded).any()
    late = np.append(values[:-1], 0.3)
    assert (fixed.encode(late, RANDOMNESS, stage="s", step=1)[:-1] != encoded[:-1]).any()


def test_only_finite_values_and_possible_steps_are_encoded() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            FixedPoint(1.0, 0.1).encode(np.array([bad]), RANDOMNESS, stage="s", step=1)
    with pytest.raises(ParameterError, match="52 bits"):
        FixedPoint(1.0, 1e-17)
    for clip, step in ((0.0, 1.0), (1.0, 0.0), (float("inf"), 1.0)):
        with pytest.raises(ValueError, match="positive"):
            FixedPoint(clip, step)
