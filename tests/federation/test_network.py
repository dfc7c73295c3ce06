"""Who takes part: charters, decisions of a quorum, and for how long nobody can withhold one."""

from __future__ import annotations

import functools
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from federation.envelope import Envelope, sign
from federation.errors import Conflict, IntegrityError, LianmoError, Refused
from federation.network import (
    Act,
    Bundle,
    MemberDecision,
    Standing,
    check_charter,
    make_bulletin,
    merged,
)
from federation.network_folder import NetworkFolder
from federation.objects import Usage, utc_text
from tests.federation.networks import Net, assessed, found, make_charter, signed
from tests.federation.parties import NOW, Org, make_org, trust_of

BANK, TAX = make_org("bank-a", "bank"), make_org("tax", code=1)
COURT, CITY = make_org("court", code=2), make_org("city", "platform", code=3)
OTHER = make_org("other", "bank", code=1)
EVERYBODY = (BANK, TAX, COURT, CITY)
TRUST = trust_of(*EVERYBODY)
CHARTER = found(BANK, TAX, CITY, quorum=2)
SUSPENDED = NOW - timedelta(hours=1)


@functools.cache
def _admissions() -> tuple[Envelope, ...]:
    net = Net(CHARTER, TRUST)
    net.admit(*EVERYBODY, by=(BANK, TAX))
    return tuple(net.decisions)


def network() -> Net:
    """Everybody was admitted by the bank and the tax office."""
    return Net(CHARTER, TRUST, list(_admissions()))


def refusal(standing: Standing, org: str, at: Any = NOW) -> str:
    with pytest.raises(Refused) as caught:
        standing.require_active(org, at)
    assert caught.value.party == org
    assert caught.value.todo
    return caught.value.what


# --- charters -------------------------------------------------------------------------------------


def test_a_charter_counts_with_the_signatures_of_all_its_founders() -> None:
    assert check_charter(CHARTER).quorum == 2
    charter = make_charter(BANK, TAX, CITY, quorum=2)
    one, two = signed_charter(charter, BANK), signed_charter(charter, TAX, CITY)
    assert check_charter(merged(one, two)) == charter
    with pytest.raises(IntegrityError, match="not signed by tax, city"):
        check_charter(one)
    with pytest.raises(IntegrityError, match="no founder's"):
        check_charter(merged(two, signed_charter(charter, COURT)))
    with pytest.raises(IntegrityError, match="twice by one founder"):
        check_charter(sign(charter, *(o.key(Usage.ADMIN) for o in (BANK, BANK, TAX, CITY))))


def signed_charter(charter: Any, *orgs: Org) -> Envelope:
    return sign(charter, *(org.key(Usage.ADMIN) for org in orgs))


@pytest.mark.parametrize(
    "change",
    [
        {"quorum": 1},  # of three: two decisions of one sequence would need no common founder
        {"quorum": 4},
        {"founders": []},
        {"stale_s": 5},
        {"stale_s": 8 * 86400},
        {"extra": 1},
    ],
)
def test_a_charter_that_could_decide_two_things_at_once_cannot_exist(
    change: dict[str, Any],
) -> None:
    plain = make_charter(BANK, TAX, CITY, quorum=2).model_dump() | change
    with pytest.raises(ValidationError):
        type(make_charter(BANK, quorum=1)).model_validate(plain)


def test_one_key_is_one_founder() -> None:
    founders = [f.model_dump() for f in make_charter(BANK, TAX, quorum=2).founders]
    founders[1]["admin_spki"] = founders[0]["admin_spki"]
    with pytest.raises(ValidationError, match="key of its own"):
        make_charter(BANK, TAX, quorum=2, founders=founders)


def test_a_network_of_another_cryptography_is_refused_by_name() -> None:
    """Acceptance test 49: a node without the profile `sm` says so."""
    with pytest.raises(Refused, match="no sm profile"):
        check_charter(found(BANK, TAX, quorum=2, profile="sm"))


# --- who is active --------------------------------------------------------------------------------


def test_without_a_charter_everybody_who_is_trusted_takes_part() -> None:
    standing = Standing(TRUST)
    standing.require_active("tax", NOW)
    assert standing.active(NOW) == {"bank-a", "tax", "court", "city"}
    assert "not trusted" in refusal(standing, "stranger")


def test_who_was_admitted_by_a_quorum_takes_part() -> None:
    standing = network().standing(words=(BANK, CITY))
    assert standing.active(NOW) == {"bank-a", "tax", "court", "city"}


def test_nobody_takes_part_unadmitted_not_even_a_founder() -> None:
    standing = Net(CHARTER, TRUST).standing(words=(BANK, TAX))
    assert "never admitted" in refusal(standing, "court")
    assert "never admitted" in refusal(standing, "bank-a")


@pytest.mark.parametrize(
    ("act", "words"),
    [(Act.SUSPEND, "is suspended from Demo city"), (Act.EXIT, "left Demo city")],
)
def test_suspended_and_gone_organisations_are_refused_with_the_reason(act: Act, words: str) -> None:
    net = network()
    net.decide(act, COURT, (BANK, CITY), at=SUSPENDED, reason="audit finding 7")
    standing = net.standing(words=(BANK, TAX))
    what = refusal(standing, "court")
    assert words in what
    assert "audit finding 7" in what
    standing.require_active("tax", NOW)


def test_a_suspension_ends_and_an_exit_needs_a_new_admission() -> None:
    net = network()
    net.decide(Act.SUSPEND, COURT, (BANK, CITY), at=SUSPENDED)
    net.decide(Act.RESUME, COURT, (TAX, CITY), at=NOW - timedelta(minutes=30))
    net.standing(words=(BANK, TAX)).require_active("court", NOW)
    net.decide(Act.EXIT, COURT, (TAX, CITY), at=NOW - timedelta(minutes=20))
    with pytest.raises(Conflict, match="cannot resume"):
        net.next(Act.RESUME, COURT, at=NOW)
    net.admit(COURT, by=(BANK, TAX), at=NOW - timedelta(minutes=10))
    net.standing(words=(BANK, TAX)).require_active("court", NOW)


def test_a_decision_counts_from_its_time_on() -> None:
    net = network()
    net.decide(
        Act.EXIT, COURT, (BANK, CITY), at=SUSPENDED, effective=utc_text(NOW + timedelta(hours=1))
    )
    later = NOW + timedelta(hours=1)
    net.standing(words=(BANK, TAX)).require_active("court", later - timedelta(hours=1))
    assert "left" in refusal(net.standing(words=(BANK, TAX), at=later), "court", later)


def test_an_assessment_ends_at_its_second_whoever_is_assessed() -> None:
    until = NOW + timedelta(days=2)
    net = Net(CHARTER, TRUST)
    net.admit(COURT, by=(BANK, TAX), assessment=assessed(until))
    before = until - timedelta(seconds=1)
    net.standing(words=(BANK, TAX), at=before).require_active("court", before)
    standing = net.standing(words=(BANK, TAX), at=until)
    assert "its assessment ended on 2026-11-25" in refusal(standing, "court", until)
    net.admit(COURT, by=(BANK, TAX), at=NOW)  # assessed again
    net.standing(words=(BANK, TAX), at=until).require_active("court", until)


def test_the_card_must_be_the_one_that_was_admitted() -> None:
    net = network()
    twin = make_org("court", code=2, now=NOW - timedelta(days=2))  # another home, another admin key
    trust = trust_of(BANK, TAX, CITY, twin)
    assert "another card" in refusal(net.standing(words=(BANK, TAX), trust=trust), "court")


# --- what does not count --------------------------------------------------------------------------


def accept(standing: Standing, envelope: Envelope) -> None:
    decision, signers = standing.check_decision(envelope)
    standing.require_quorum(decision, signers)


def refused_as(net: Net, envelope: Envelope) -> str:
    """Why a new decision is not taken, by a home with files, and that nothing changed there."""
    standing = net.standing()
    before = {org: standing.chain(org) for org in standing.members()}
    with pytest.raises(LianmoError) as caught:
        accept(standing, envelope)
    assert {org: standing.chain(org) for org in standing.members()} == before
    return str(caught.value)


def test_fewer_than_the_quorum_decide_nothing() -> None:
    net = network()
    alone = signed(net.next(Act.SUSPEND, COURT), (CITY,))
    assert "1 of 2 founders" in refused_as(net, alone)
    two_times = sign(net.next(Act.SUSPEND, COURT), CITY.key(Usage.ADMIN), CITY.key(Usage.ADMIN))
    assert "twice by one founder" in refused_as(net, two_times)
    with_a_stranger = signed(net.next(Act.SUSPEND, COURT), (CITY, COURT))
    assert "no founder's" in refused_as(net, with_a_stranger)
    wrong_key = sign(net.next(Act.SUSPEND, COURT), CITY.key(Usage.ADMIN), TAX.key(Usage.APPROVE))
    assert "no founder's" in refused_as(net, wrong_key)


def test_a_suspended_founder_decides_nothing() -> None:
    net = network()
    net.decide(Act.SUSPEND, CITY, (BANK, TAX), at=SUSPENDED)
    late = net.next(Act.SUSPEND, COURT, at=SUSPENDED + timedelta(minutes=1))
    assert "while it was suspended" in refused_as(net, signed(late, (CITY, TAX)))
    net.decide(Act.SUSPEND, COURT, (BANK, TAX), at=SUSPENDED + timedelta(minutes=1))
    assert "suspended" in refusal(net.standing(words=(BANK, TAX)), "court")


def test_a_suspension_that_comes_late_voids_what_the_founder_signed_since() -> None:
    net = network()
    net.admit(OTHER, by=(CITY, TAX), at=NOW - timedelta(minutes=30))
    with_it = trust_of(BANK, TAX, COURT, CITY, make_org("other", "bank", code=1))
    net.trust = with_it
    net.standing(words=(BANK, TAX)).require_active("other", NOW)
    net.decide(Act.SUSPEND, CITY, (BANK, TAX), at=SUSPENDED)
    assert "never admitted" not in (what := refusal(net.standing(words=(BANK, TAX)), "other"))
    assert "does not count" in what


def test_a_decision_of_another_charter_or_on_another_person_is_none_of_ours() -> None:
    net = network()
    other = Net(found(BANK, TAX, CITY, quorum=3), TRUST)
    other.admit(COURT, by=(BANK, TAX, CITY))
    assert "another charter" in refused_as(net, other.decisions[0])
    moved = net.next(Act.SUSPEND, COURT, uscc=TAX.card.uscc)
    assert "another legal person" in refused_as(net, signed(moved, (BANK, TAX)))
    swapped = net.next(Act.SUSPEND, COURT, admin_spki=TAX.card.admin.spki)
    assert "another card" in refused_as(net, signed(swapped, (BANK, TAX)))


def test_the_sequence_does_not_go_back_or_fork() -> None:
    net = network()
    suspension = net.decide(Act.SUSPEND, COURT, (BANK, CITY), at=SUSPENDED)
    first = suspension.unverified(MemberDecision)
    again = MemberDecision.model_validate(first.model_dump() | {"act": "exit"})
    assert "is another one here" in refused_as(net, signed(again, (BANK, TAX)))
    ahead = net.next(Act.RESUME, COURT, at=NOW, sequence=4)
    assert "is not here yet" in refused_as(net, signed(ahead, (BANK, TAX)))
    fork = net.next(Act.RESUME, COURT, at=NOW, prev="0" * 64)
    assert "follows another one" in refused_as(net, signed(fork, (BANK, TAX)))
    early = net.next(Act.RESUME, COURT, at=NOW, created=utc_text(SUSPENDED - timedelta(hours=1)))
    early = early.model_copy(update={"effective": early.created})
    assert "dated before" in refused_as(net, signed(early, (BANK, TAX)))


@settings(max_examples=40)
@given(data=st.data())
def test_no_flipped_bit_of_a_decision_is_accepted(data: st.DataObject) -> None:
    net = network()
    text = bytearray(signed(net.next(Act.SUSPEND, COURT), (BANK, TAX)).to_json())
    place = data.draw(st.integers(0, 8 * len(text) - 1))
    text[place // 8] ^= 1 << place % 8
    with pytest.raises(LianmoError):
        accept(net.standing(), Envelope.from_json(bytes(text)))


def test_a_suspension_that_would_end_all_decisions_is_refused() -> None:
    net = Net(found(BANK, TAX, quorum=2), TRUST)
    net.admit(BANK, TAX, by=(BANK, TAX))
    with pytest.raises(Refused, match="too few founders would be left"):
        net.next(Act.SUSPEND, TAX)


# --- for how long a decision can be withheld ------------------------------------------------------


def test_founders_words_end_and_then_nobody_takes_part() -> None:
    net = network()
    limit = timedelta(seconds=600)
    standing = net.standing(words=(BANK, TAX), at=NOW)
    standing.require_active("court", NOW + limit - timedelta(seconds=5))
    assert "too few founders confirmed" in refusal(standing, "court", NOW + limit)
    one = net.standing(words=(BANK,))
    assert "too few founders confirmed" in refusal(one, "court")


def test_any_enough_founders_know_of_every_decision() -> None:
    """A home that lacks a suspension finds too few words that fit, whoever carries them."""
    behind, ahead = network(), network()
    ahead.decide(Act.SUSPEND, COURT, (BANK, CITY), at=NOW)
    knowing = ahead.standing()
    later = NOW + timedelta(minutes=9)
    said = [org.sign(make_bulletin(knowing, org.id, later), Usage.WITNESS) for org in (BANK, CITY)]
    ignorant = make_bulletin(behind.standing(), "tax", later)  # who did not sign, and lives alone
    words = [*said, TAX.sign(ignorant, Usage.WITNESS)]
    standing = Standing(TRUST, CHARTER, behind.decisions, words)
    assert "too few founders confirmed" in refusal(standing, "court", later)
    standing.require_active("tax", later)  # the others are not held up


def test_one_founder_alone_stops_nobody() -> None:
    net = network()
    standing = net.standing()
    heads = [
        head.model_copy(update={"sequence": 9, "decision": "0" * 64, "card": 99})
        for head in standing.heads()
    ]
    word = make_bulletin(standing, "city", NOW).model_copy(update={"heads": tuple(heads)})
    said = [org.sign(make_bulletin(standing, org.id, NOW), Usage.WITNESS) for org in (BANK, TAX)]
    full = Standing(TRUST, CHARTER, net.decisions, [*said, CITY.sign(word, Usage.WITNESS)])
    full.require_active("court", NOW)


def test_a_newer_card_that_founders_know_of_is_not_withheld_for_long_either() -> None:
    net = network()
    revoked = TAX.newer(created=utc_text(NOW - timedelta(minutes=1)))
    aware = Net(CHARTER, trust_of(BANK, revoked, COURT, CITY), net.decisions).standing()
    words = [org.sign(make_bulletin(aware, org.id, NOW), Usage.WITNESS) for org in (BANK, CITY)]
    standing = Standing(TRUST, CHARTER, net.decisions, words)
    assert "too few founders confirmed" in refusal(standing, "tax")
    standing.require_active("court", NOW)


def test_words_of_strangers_of_other_keys_and_from_the_future_do_not_count() -> None:
    net = network()
    standing = net.standing()
    word = make_bulletin(standing, "bank-a", NOW)
    with pytest.raises(IntegrityError):
        standing.check_bulletin(BANK.sign(word, Usage.RUN))
    with pytest.raises(IntegrityError):
        standing.check_bulletin(TAX.sign(word, Usage.WITNESS))
    with pytest.raises(IntegrityError, match="no founder"):
        standing.check_bulletin(COURT.sign(make_bulletin(standing, "court", NOW), Usage.WITNESS))
    early = [
        org.sign(make_bulletin(standing, org.id, NOW + timedelta(hours=1)), Usage.WITNESS)
        for org in (BANK, TAX)
    ]
    ahead = Standing(TRUST, CHARTER, net.decisions, early)
    assert "too few founders" in refusal(ahead, "court")


# --- admin keys change ----------------------------------------------------------------------------


def test_a_founder_with_a_new_admin_key_decides_with_that_one() -> None:
    from federation import rekey
    from federation.identity import Keys, PrivateKey

    own = {usage: key.key_id for usage, key in CITY.keys.by_usage.items()}
    at = NOW - timedelta(minutes=50)
    card, fresh = rekey.renewed(CITY.card, [Usage.ADMIN], own, CITY.keys.authority, at)
    renewed = Org("city", Keys({**CITY.keys.by_usage, **fresh}, CITY.keys.authority), card)
    envelope = sign(
        card,
        *(k for k in renewed.keys.by_usage.values() if k.alg == "Ed25519"),
        CITY.key(Usage.ADMIN),
    )
    assert isinstance(fresh[Usage.ADMIN], PrivateKey)
    with pytest.raises(Conflict, match="another admin key"):
        TRUST.with_card(envelope)
    net = network()
    net.admit(renewed, by=(BANK, TAX), at=at)
    net.trust = TRUST.with_card(envelope, decided=fresh[Usage.ADMIN].key_id)
    net.standing(words=(BANK, TAX)).require_active("city", NOW)
    late = net.next(Act.SUSPEND, COURT, at=NOW)
    assert "was replaced" in refused_as(net, signed(late, (CITY, TAX)))
    net.decisions.append(signed(late, (renewed, TAX)))
    assert "suspended" in refusal(net.standing(words=(BANK, TAX)), "court")


# --- files ----------------------------------------------------------------------------------------


def home(tmp_path: Path, name: str = "home") -> NetworkFolder:
    (tmp_path / name).mkdir()
    folder = NetworkFolder(tmp_path / name)
    folder.join(CHARTER)
    return folder


def take(folder: NetworkFolder, *decisions: Envelope, words: tuple[Envelope, ...] = ()) -> Any:
    taken = folder.sift(Bundle(decisions=decisions, bulletins=words), TRUST, NOW)
    folder.keep(taken)
    return taken


def test_documents_come_in_any_order_and_signatures_one_by_one(tmp_path: Path) -> None:
    net, folder = network(), home(tmp_path)
    suspend = net.next(Act.SUSPEND, COURT, at=SUSPENDED)
    take(folder, *reversed(net.decisions))
    assert take(folder, signed(suspend, (CITY,))).proposals == [suspend]
    assert folder.standing(TRUST).member("court", NOW).state == "active"
    assert take(folder, signed(suspend, (CITY,))).proposals == []  # nothing new
    assert take(folder, signed(suspend, (TAX,))).decisions == [suspend]
    assert folder.standing(TRUST).member("court", NOW).state == "suspended"
    assert folder.proposals() == []
    again = NetworkFolder(folder.path.parent)
    assert again.standing(TRUST).member("court", NOW).state == "suspended"
    assert Bundle.from_json(folder.bundle().to_json()) == folder.bundle()


def test_a_refused_document_leaves_the_others_and_no_trace(tmp_path: Path) -> None:
    net, folder = network(), home(tmp_path)
    bad = signed(net.next(Act.SUSPEND, COURT), (COURT,))
    taken = take(folder, bad, *net.decisions)
    assert len(taken.decisions) == 4
    assert len(taken.refused) == 1
    assert len(list((folder.path / "decisions").iterdir())) == 4
    assert list((folder.path / "proposals").iterdir()) == []


def test_who_takes_the_charter_away_lets_nobody_in(tmp_path: Path) -> None:
    folder = home(tmp_path)
    (folder.path / "charter.json").unlink()
    with pytest.raises(IntegrityError, match="charter"):
        folder.standing(TRUST)


def test_a_home_is_in_one_network(tmp_path: Path) -> None:
    folder = home(tmp_path)
    with pytest.raises(Conflict, match="another network"):
        folder.join(found(BANK, TAX, CITY, quorum=3))
    other = found(BANK, TAX, CITY, quorum=3)
    with pytest.raises(IntegrityError, match="another network"):
        folder.sift(Bundle(charter=other), TRUST, NOW)


def test_a_decision_that_was_deleted_here_is_missed_by_the_founders(tmp_path: Path) -> None:
    net, folder = network(), home(tmp_path)
    take(folder, *net.decisions)
    take(folder, suspension := net.decide(Act.SUSPEND, COURT, (BANK, CITY), at=SUSPENDED))
    knowing = net.standing()
    said = [org.sign(make_bulletin(knowing, org.id, NOW), Usage.WITNESS) for org in (BANK, CITY)]
    take(folder, words=tuple(said))
    assert "suspended" in refusal(folder.standing(TRUST), "court")
    (folder.path / "decisions" / "court-000002.json").unlink()
    assert "too few founders" in refusal(folder.standing(TRUST), "court")
    take(folder, suspension)
    assert "suspended" in refusal(folder.standing(TRUST), "court")


def test_a_founder_signs_one_decision_at_a_place(tmp_path: Path) -> None:
    net, folder = network(), home(tmp_path)
    folder.remember_signed(one := net.next(Act.SUSPEND, COURT))
    folder.remember_signed(one)
    with pytest.raises(Conflict, match="another decision"):
        folder.remember_signed(net.next(Act.EXIT, COURT))
    folder.remember_signed(net.next(Act.EXIT, COURT), instead=True)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_documents_or_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Bundle.from_json(data)
