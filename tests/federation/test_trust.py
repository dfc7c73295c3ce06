"""A signature counts for one organisation and one use, while its key is in force, or not at all."""

from __future__ import annotations

import base64
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.envelope import Envelope, Signature, sign
from federation.errors import Conflict, IntegrityError, LianmoError, NotFound, Refused
from federation.identity import PrivateKey
from federation.objects import Approval, Card, JobManifest, KeyStatus, Usage, utc_text
from federation.trust import CLOCK_SKEW, TrustStore, verify_card
from tests.federation.parties import (
    NOW,
    Org,
    approve,
    make_approval,
    make_manifest,
    make_org,
    trust_of,
)

BANK, TAX, COURT = make_org("bank-a", "bank"), make_org("tax"), make_org("court", code=1)
TRUST = trust_of(BANK, TAX, COURT)
MANIFEST = "ab" * 32


def verify(envelope: Envelope, trust: TrustStore = TRUST, now: datetime = NOW) -> Any:
    return trust.verify(envelope, Approval, Usage.APPROVE, now)


def test_a_good_signature_names_its_organisation_and_key() -> None:
    found = verify(approve(TAX, MANIFEST))
    assert found.org == "tax"
    assert found.object == make_approval("tax", MANIFEST)
    assert found.digest == found.object.digest()
    assert found.key_id == TAX.key(Usage.APPROVE).key_id
    assert found.key_ids == (found.key_id,)
    assert found.holders == ("tax approve",)


def test_the_admin_of_one_organisation_cannot_approve_for_another() -> None:
    """Acceptance test 23, T5."""
    for usage in (Usage.ADMIN, Usage.APPROVE):
        with pytest.raises(IntegrityError, match="another organisation"):
            verify(TAX.sign(make_approval("court", MANIFEST), usage))
    with pytest.raises(IntegrityError, match="admin key where a approve key"):
        verify(TAX.sign(make_approval("tax", MANIFEST), Usage.ADMIN))


def test_two_organisations_cannot_sign_as_one() -> None:
    approval = make_approval("court", MANIFEST)
    with pytest.raises(IntegrityError, match="another organisation"):
        verify(sign(approval, TAX.key(Usage.APPROVE), COURT.key(Usage.APPROVE)))
    with pytest.raises(IntegrityError, match="two signatures of one key"):
        verify(sign(approval, COURT.key(Usage.APPROVE), COURT.key(Usage.APPROVE)))


@pytest.mark.parametrize("usage", [u for u in Usage if u is not Usage.APPROVE])
def test_a_key_of_another_use_never_approves(usage: Usage) -> None:
    if usage not in TAX.keys.by_usage:
        return
    key = TAX.key(usage)
    approval = sign(make_approval("tax", MANIFEST), TAX.key(Usage.APPROVE))
    claimed = approval.signatures[0].model_copy(update={"keyid": key.key_id})
    with contextlib.suppress(TypeError):  # not a signing key: claim it all the same
        claimed = claimed.model_copy(update={"sig": key.sign(approval.pae()), "alg": key.alg})
    with pytest.raises(IntegrityError, match=f"signed with a {usage} key"):
        verify(approval.model_copy(update={"signatures": (claimed,)}))


@pytest.mark.parametrize("alg", ["none", "HS256", "SM2", "ed25519", "RS256", "P-256"])
def test_the_algorithm_is_the_keys_own_whatever_the_envelope_says(alg: str) -> None:
    good = approve(TAX, MANIFEST)
    forged = good.signatures[0].model_copy(update={"alg": alg})
    with pytest.raises(IntegrityError, match=f"this node has no {alg} profile"):
        verify(good.model_copy(update={"signatures": (forged,)}))


ORDER = 2**252 + 27742317777372353535851937790883648493  # of the Ed25519 group


@pytest.mark.parametrize(
    "forge",
    [
        lambda sig: b"",
        lambda sig: bytes(64),
        lambda sig: sig[:63],
        lambda sig: sig + b"\0",
        lambda sig: bytes(32) + sig[32:],
        lambda sig: sig[:32] + bytes(32),
        lambda sig: b"\x01" + bytes(63),
        lambda sig: sig[:32] + (int.from_bytes(sig[32:], "little") + ORDER).to_bytes(32, "little"),
    ],
    ids=["empty", "zero", "short", "long", "no-R", "no-S", "identity", "malleated"],
)
def test_a_forged_signature_does_not_hold(forge: Any) -> None:
    good = approve(TAX, MANIFEST)
    forged = good.signatures[0].model_copy(update={"sig": forge(good.signatures[0].sig)})
    with pytest.raises(IntegrityError, match="does not hold"):
        verify(good.model_copy(update={"signatures": (forged,)}))


@settings(max_examples=150)
@given(st.data())
def test_no_flipped_bit_anywhere_is_accepted(data: st.DataObject) -> None:
    good = approve(TAX, MANIFEST)
    raw = bytearray(good.to_json())
    place = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[place // 8] ^= 1 << place % 8
    with pytest.raises(LianmoError):
        verify(Envelope.from_json(bytes(raw)))


def test_an_unknown_key_is_refused_whatever_it_signed() -> None:
    stranger = make_org("stranger")
    with pytest.raises(IntegrityError, match="no trusted card"):
        verify(approve(stranger, MANIFEST))
    good = approve(TAX, MANIFEST)
    unknown = Signature(keyid="00" * 16, alg="Ed25519", sig=bytes(64))
    with pytest.raises(IntegrityError, match="no trusted card"):
        verify(good.model_copy(update={"signatures": (*good.signatures, unknown)}))
    with pytest.raises(IntegrityError, match="no trusted card"):
        verify(good, TrustStore())


def test_the_signer_that_the_caller_asks_for_is_required() -> None:
    manifest = BANK.sign(make_manifest("bank-a", ["tax"]), Usage.PROPOSE)
    assert TRUST.verify(manifest, JobManifest, Usage.PROPOSE, NOW, org="bank-a").org == "bank-a"
    with pytest.raises(IntegrityError, match="another organisation"):
        TRUST.verify(manifest, JobManifest, Usage.PROPOSE, NOW, org="tax")


# --- time and status ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "now", "accepted"),
    [
        (-timedelta(days=1), timedelta(0), True),  # the keys' first second
        (-timedelta(days=1, seconds=1), timedelta(0), False),  # made before its key
        (timedelta(0), -timedelta(seconds=120), True),  # our clock is behind, or theirs ahead
        (timedelta(0), -timedelta(seconds=121), False),
        (timedelta(0), timedelta(days=363, hours=23), True),
        (timedelta(0), timedelta(days=364), False),  # the key has ended since
        (timedelta(days=364), timedelta(days=364), False),
    ],
)
def test_a_key_is_in_force_when_the_object_is_made_and_now(
    made: timedelta, now: timedelta, accepted: bool
) -> None:
    envelope = approve(TAX, MANIFEST, created=utc_text(NOW + made))
    if accepted:
        assert verify(envelope, now=NOW + now).org == "tax"
    else:
        with pytest.raises(LianmoError):
            verify(envelope, now=NOW + now)


def test_a_fresh_organisation_whose_clock_is_ahead_is_understood() -> None:
    ahead = make_org("ahead", now=NOW + CLOCK_SKEW)
    envelope = approve(ahead, MANIFEST, created=utc_text(NOW + CLOCK_SKEW))
    assert verify(envelope, trust_of(ahead)).org == "ahead"
    with pytest.raises(LianmoError):
        verify(envelope, trust_of(ahead), NOW - timedelta(seconds=1))


def test_a_time_without_a_zone_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        verify(approve(TAX, MANIFEST), now=NOW.replace(tzinfo=None))
    assert NOW.tzinfo is UTC


@pytest.mark.parametrize("status", [KeyStatus.HOLD, KeyStatus.REVOKED])
def test_a_key_on_hold_or_revoked_signs_nothing_new_but_old_receipts_verify(
    status: KeyStatus,
) -> None:
    """Acceptance test 50."""
    since = NOW - timedelta(minutes=10)
    trust = TRUST.with_card(TAX.with_status(Usage.APPROVE, status, since).envelope)
    old = approve(TAX, MANIFEST, created=utc_text(since - timedelta(minutes=5)))
    with pytest.raises(Refused, match=r"on hold|revoked"):
        verify(old, trust)
    assert verify(old, trust, since - timedelta(minutes=4)).org == "tax"  # as of log time
    assert verify(old).org == "tax"  # the older store is as it was


def test_a_hold_can_be_lifted_and_a_revocation_cannot() -> None:
    since = NOW - timedelta(hours=1)
    active = [key.model_dump() for key in TAX.card.keys]
    held = TAX.with_status(Usage.APPROVE, KeyStatus.HOLD, since)
    lifted = held.newer(keys=active)
    trust = TRUST.with_card(held.envelope).with_card(lifted.envelope)
    assert verify(approve(TAX, MANIFEST), trust).org == "tax"
    revoked = TAX.with_status(Usage.APPROVE, KeyStatus.REVOKED, since)
    with pytest.raises(Conflict, match="revives"):
        TRUST.with_card(revoked.envelope).with_card(revoked.newer(keys=active).envelope)


# --- cards beside each other ----------------------------------------------------------------------


def test_a_key_of_one_organisation_cannot_be_registered_under_another() -> None:
    """Acceptance test 23, second half: the coordinator shows A's key in a card of B."""
    twin = Org("court", TAX.keys, make_org("tax").card)
    certificates = COURT.card
    # court's administrator colludes and owns all private halves but the approval key's
    borrowed = TAX.card.of_usage(Usage.APPROVE)[0]
    keys = [k for k in COURT.card.keys if k.usage is not Usage.APPROVE] + [borrowed]
    card = Card.model_validate(certificates.model_dump() | {"keys": keys})
    signers = [key for u, key in COURT.keys.by_usage.items() if u is not Usage.APPROVE]
    signers = [key for key in signers if key.alg == "Ed25519"]
    with pytest.raises(IntegrityError, match="each of its signing keys"):
        verify_card(sign(card, *signers))  # without tax it has no proof of possession
    both = sign(card, *signers, twin.key(Usage.APPROVE))  # tax is careless and signs for it
    with pytest.raises(Conflict, match="belongs to tax"):
        trust_of(BANK, TAX).with_card(both)
    with pytest.raises(Conflict):
        TrustStore([TAX.envelope, both])


def test_a_mask_key_of_another_organisation_is_refused_though_it_signs_nothing() -> None:
    borrowed = TAX.card.of_usage(Usage.MASK)[0]
    keys = [k for k in COURT.card.keys if k.usage is not Usage.MASK] + [borrowed]
    card = Card.model_validate(COURT.card.model_dump() | {"keys": keys})
    with pytest.raises(Conflict, match="belongs to tax"):
        trust_of(TAX).with_card(COURT.signed_card(card))


def test_a_card_under_another_admin_key_is_a_conflict_and_changes_nothing() -> None:
    trust = trust_of(TAX)
    impostor = make_org("tax", now=NOW - timedelta(days=2))
    with pytest.raises(Conflict, match="another admin key"):
        trust.with_card(impostor.newer().envelope)
    assert trust.envelope("tax") == TAX.envelope


def test_an_older_card_does_not_come_back() -> None:
    newer = TAX.newer(name="税务局")
    trust = trust_of(TAX).with_card(newer.envelope)
    assert trust.card("tax").name == "税务局"
    for stale in (TAX, TAX.newer(name="another second card")):
        with pytest.raises(Conflict, match="as new or newer"):
            trust.with_card(stale.envelope)
    assert list(trust.with_card(newer.envelope)) == ["tax"]


def test_a_newer_card_forgets_no_key_and_changes_none() -> None:
    plain = [key.model_dump() for key in TAX.card.keys]
    fewer = [key for key in plain if key["usage"] != Usage.RUN]
    longer = [key | {"not_after": utc_text(NOW + timedelta(days=365))} for key in plain]
    for keys in (fewer, longer):
        with pytest.raises(Conflict, match="leaves out or changes"):
            trust_of(TAX).with_card(TAX.newer(keys=keys).envelope)
    with pytest.raises(Conflict, match="another legal person"):
        trust_of(TAX).with_card(TAX.newer(uscc=COURT.card.uscc).envelope)


def test_a_newer_card_may_have_new_keys() -> None:
    new = PrivateKey.generate(Usage.APPROVE)
    record = TAX.card.of_usage(Usage.APPROVE)[0].model_dump()
    record |= {"key_id": new.key_id, "spki": base64.b64encode(new.spki).decode(), "holder": "Li"}
    card = TAX.newer(keys=[*(key.model_dump() for key in TAX.card.keys), record]).card
    signed = TAX.signed_card(card)
    with pytest.raises(IntegrityError):  # before the new key proved itself
        TRUST.with_card(signed)
    proof = Signature(keyid=new.key_id, alg=new.alg, sig=new.sign(signed.pae()))
    trust = TRUST.with_card(signed.model_copy(update={"signatures": (*signed.signatures, proof)}))
    pair = sign(make_approval("tax", MANIFEST), TAX.key(Usage.APPROVE), new)
    assert verify(pair, trust).holders == ("tax approve", "Li")


# --- what others need -----------------------------------------------------------------------------


def test_a_connection_belongs_to_the_very_certificate_of_a_card() -> None:
    _, der = verify_card(TAX.envelope)
    assert TRUST.org_of_tls_certificate(der) == "tax"
    assert TRUST.org_of_tls_certificate(der[:-1]) is None
    assert TRUST.org_of_tls_certificate(b"") is None
    assert trust_of(COURT).org_of_tls_certificate(der) is None
    _, other = verify_card(make_org("tax", now=NOW - timedelta(days=3)).envelope)  # same name
    assert TRUST.org_of_tls_certificate(other) is None


def test_what_a_card_has_for_other_layers() -> None:
    assert TRUST.mask_key("tax") == TAX.key(Usage.MASK).spki
    assert TRUST.node_key("tax") == TAX.key(Usage.NODE).public_pem
    assert TRUST.tls_ca("tax") == TAX.card.ca_certificate
    assert TRUST.mask_key("bank-a") == BANK.key(Usage.MASK).spki
    with pytest.raises(Refused, match="no active mask key"):
        trust_of(make_org("audit", "auditor")).mask_key("audit")
    with pytest.raises(NotFound, match="lianmo org trust"):
        TRUST.card("nobody")
    gone = TRUST.with_card(TAX.with_status(Usage.NODE, KeyStatus.HOLD, NOW).envelope)
    with pytest.raises(Refused, match="no active node key"):
        gone.node_key("tax")
