"""Attacks on who takes part: each wins where one check is missing, and loses where it is there.

The checks are taken away by replacing them in the test; no option of the product does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from federation import network, trust
from federation.envelope import Envelope, sign
from federation.errors import LianmoError, Refused
from federation.identity import Keys
from federation.network import Act, Bulletin, Standing, make_bulletin
from federation.objects import Card, KeyStatus, Usage, utc_text
from federation.trust import TrustStore
from tests.federation.networks import Net, found, signed
from tests.federation.parties import NOW, Org, approve, make_org, trust_of

BANK, TAX = make_org("bank-a", "bank"), make_org("tax", code=1)
COURT, CITY = make_org("court", code=2), make_org("city", "platform", code=3)
EVERYBODY = (BANK, TAX, COURT, CITY)
TRUST = trust_of(*EVERYBODY)
CHARTER = found(BANK, TAX, CITY, quorum=2)
LATER = NOW + timedelta(minutes=11)  # longer than a standing may be stale


def admitted() -> Net:
    net = Net(CHARTER, TRUST)
    net.admit(*EVERYBODY, by=(BANK, TAX))
    return net


def is_active(standing: Standing, org: str, now: Any = NOW) -> bool:
    try:
        standing.require_active(org, now)
    except Refused:
        return False
    return True


def counts(standing: Standing, envelope: Envelope) -> bool:
    try:
        standing.require_quorum(*standing.check_decision(envelope))
    except LianmoError:
        return False
    return True


# --- the coordinator keeps a decision back --------------------------------------------------------


def kept_back() -> Standing:
    """A home to which founders' fresh words come and the suspension of court does not."""
    before, after = admitted(), admitted()
    after.decide(Act.SUSPEND, COURT, (BANK, CITY), at=NOW)
    knowing = after.standing()
    words = [org.sign(make_bulletin(knowing, org.id, LATER), Usage.WITNESS) for org in (BANK, CITY)]
    return Standing(TRUST, CHARTER, before.decisions, words)


def test_a_decision_kept_back_is_missed_because_founders_say_what_they_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not is_active(kept_back(), "court", LATER)
    monkeypatch.setattr(Standing, "_knows", lambda self, head: True)
    assert is_active(kept_back(), "court", LATER)  # fresh words alone are not enough


def test_old_words_repeated_for_ever_do_not_pass_for_fresh_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standing = admitted().standing(words=(BANK, TAX, CITY))
    month = NOW + timedelta(days=30)
    assert not is_active(standing, "court", month)
    monkeypatch.setattr(Standing, "words_needed", lambda self, now: 0)
    assert is_active(standing, "court", month)


def test_one_bribed_founder_confirms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who did not sign the suspension says that it knows of none."""
    net = admitted()
    word = TAX.sign(make_bulletin(net.standing(), "tax", LATER), Usage.WITNESS)
    standing = Standing(TRUST, CHARTER, net.decisions, [word])
    assert not is_active(standing, "court", LATER)
    monkeypatch.setattr(Standing, "words_needed", lambda self, now: 1)
    assert is_active(standing, "court", LATER)  # n - k + 1 is the least that is safe


def test_a_revocation_kept_back_is_missed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thief of tax's approval key and coordinator: the card that revokes it is not given on."""
    net = admitted()
    revoked = TAX.with_status(Usage.APPROVE, KeyStatus.REVOKED, NOW)
    aware = Net(CHARTER, trust_of(BANK, revoked, COURT, CITY), net.decisions).standing()
    words = [org.sign(make_bulletin(aware, org.id, LATER), Usage.WITNESS) for org in (BANK, CITY)]
    standing = Standing(TRUST, CHARTER, net.decisions, words)
    assert not is_active(standing, "tax", LATER)

    def without_cards(self: Standing, org: str, now: Any) -> Bulletin:
        bulletin = make_bulletin(self, org, now)
        heads = tuple(head.model_copy(update={"card": 0}) for head in bulletin.heads)
        return bulletin.model_copy(update={"heads": heads})

    blind = [org.sign(without_cards(aware, org.id, LATER), Usage.WITNESS) for org in (BANK, CITY)]
    assert is_active(Standing(TRUST, CHARTER, net.decisions, blind), "tax", LATER)


# --- fewer decide than must -----------------------------------------------------------------------


def test_a_founder_who_signs_twice_is_one_founder(monkeypatch: pytest.MonkeyPatch) -> None:
    net = admitted()
    decision = net.next(Act.SUSPEND, COURT)
    alone = sign(decision, CITY.key(Usage.ADMIN), CITY.key(Usage.ADMIN))
    assert not counts(net.standing(), alone)

    def careless(
        envelope: Envelope, keys: Mapping[str, tuple[str, bytes]], suite: str, what: str
    ) -> tuple[str, ...]:
        return tuple(keys[signature.keyid][0] for signature in envelope.signatures)

    monkeypatch.setattr(network, "_signers", careless)
    assert counts(net.standing(), alone)


def test_a_suspended_founder_and_its_friend_decide_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = admitted()
    net.decide(Act.SUSPEND, CITY, (BANK, TAX), at=NOW - timedelta(hours=1))
    coup = signed(net.next(Act.SUSPEND, COURT, at=NOW), (CITY, TAX))
    assert not counts(net.standing(), coup)
    monkeypatch.setattr(Standing, "_may_vote", lambda self, org, moment: True)
    assert counts(net.standing(), coup)


def test_two_decisions_at_one_place_need_a_founder_who_signs_both(tmp_path: Any) -> None:
    """What 2k > n is for: with a quorum of one of two, two halves of a city would part."""
    from federation.errors import Conflict
    from federation.network_folder import NetworkFolder

    net = admitted()
    one, other = net.next(Act.SUSPEND, COURT), net.next(Act.EXIT, COURT)
    left, right = signed(one, (BANK, CITY)), signed(other, (TAX, CITY))
    standing = net.standing()
    assert counts(standing, left)
    assert counts(standing, right)  # city has signed both: then homes part
    folder = NetworkFolder(tmp_path)
    folder.join(CHARTER)
    folder.remember_signed(one)
    with pytest.raises(Conflict, match="another decision"):
        folder.remember_signed(other)  # which its own home refuses


# --- another key in the place of one --------------------------------------------------------------


def impostor() -> Org:
    """An organisation with court's name and code, and keys of the coordinator's."""
    return make_org("court", code=2, now=NOW - timedelta(days=2))


def test_a_card_under_the_coordinators_own_admin_key_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """T9: with court's encryption key swapped, everything sealed for court would be readable."""
    false = impostor()
    card = Card.model_validate(false.card.model_dump() | {"serial": 2})
    envelope = false.signed_card(card)

    def taken() -> TrustStore | None:
        try:
            return TRUST.with_card(envelope)
        except LianmoError:
            return None

    assert taken() is None
    monkeypatch.setattr(trust, "_require_admin", lambda *args: None)
    monkeypatch.setattr(trust, "_require_successor", lambda old, new: None)
    store = taken()
    assert store is not None
    word = false.sign(approve(COURT, "0" * 64).unverified(_approval()), Usage.APPROVE)
    assert store.verify(word, _approval(), Usage.APPROVE, NOW).org == "court"


def _approval() -> Any:
    from federation.objects import Approval

    return Approval


def test_the_founders_admission_names_the_key_and_not_only_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A home that was made to trust the impostor's card still does not deal with it."""
    net = admitted()
    fooled = trust_of(BANK, TAX, CITY, impostor())
    assert not is_active(net.standing(words=(BANK, TAX), trust=fooled), "court")
    monkeypatch.setattr(network, "_is_card", lambda decision, card: True)
    assert is_active(net.standing(words=(BANK, TAX), trust=fooled), "court")


def test_a_retired_key_that_was_kept_signs_nothing_of_today(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It could still date back: keys that somebody else may have are revoked, not retired."""
    from federation import rekey

    own = {usage: key.key_id for usage, key in TAX.keys.by_usage.items()}
    at = NOW - timedelta(minutes=20)
    card, fresh = rekey.renewed(TAX.card, [Usage.APPROVE], own, TAX.keys.authority, at)
    newer = Org("tax", Keys({**TAX.keys.by_usage, **fresh}, TAX.keys.authority), card)
    store = TRUST.with_card(newer.signed_card(card))

    def holds(created: Any) -> bool:
        word = approve(TAX, "0" * 64, created=utc_text(created), valid_from=utc_text(created))
        try:
            store.verify(word, _approval(), Usage.APPROVE, NOW)
        except LianmoError:
            return False
        return True

    assert not holds(NOW - timedelta(minutes=5))
    assert holds(NOW - timedelta(minutes=30))  # the price of a renewal that disturbs nobody
    monkeypatch.setattr(trust, "_require_in_force", lambda card, record, made, now: None)
    assert holds(NOW - timedelta(minutes=5))
