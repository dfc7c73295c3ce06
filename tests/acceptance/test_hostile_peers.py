"""Attackers who keep to the formats: a frame of theirs must not cost others their answers, a draft
not show the firm another thing than it opens, and an earlier answer not make a later one false.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

import server.consents
import server.verification
from clients import datasets, grants, verification
from clients.consent import Consents
from clients.lookup import Lookup, OneValue
from clients.use_notices import UseNotices
from clients.verification import Parcel, Rates
from clients.verification_settings import VerificationSettings
from federation import sealing
from federation.audit import Check, Reason
from federation.catalogue import Assurance, Dataset, Enquiry, Field, Question
from federation.consent_api import NOTICE_MAX, TAKE_MAX, Inbox, NoticeBody, Outbox, Taken
from federation.enquiry import Answered
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, Refused, Unavailable
from federation.grants import (
    GRANT_BEGINS,
    GRANT_LIFE,
    LAST_EVENT,
    BySubject,
    CertificateRevocation,
    Change,
    Grant,
    GrantEvent,
    Language,
    NamedOrg,
    State,
    StatusList,
    SubjectCard,
    SubjectCertificate,
    Use,
    VerifiedSubject,
    notice,
    state_of,
    verify_by_subject,
)
from federation.identity import USAGES, PrivateKey, card_signers, key_id
from federation.objects import KeyRecord, OrgKind, Usage, utc_text
from federation.sealing import MAX_SEALED, OVERHEAD, STEP
from server.app import ORG_KEY
from server.consents import Consents as ServerConsents
from server.store import Store as ServerStore
from server.verification import SealedRelay
from tests.acceptance.consent import (
    CODES,
    FIELDS,
    FIRM,
    NO_RECORD_FIRM,
    NOW,
    OTHER_FIRM,
    Firm,
    World,
)
from tests.acceptance.test_carriers import consents
from tests.clients.persons import certified, request_of

FIRST_YEAR = {"not_before": "0001-01-01T00:00:00Z", "not_after": "0001-12-31T00:00:00Z"}
THIS_WEEK = {
    "not_before": utc_text(NOW - timedelta(days=1)),
    "not_after": utc_text(NOW + timedelta(days=6)),
}


def together(world: World, frame: bytes) -> Answered:
    """What an honest question is answered that the provider takes together with this frame."""
    grant = world.grant()
    honest = world.request(grant)
    parcels = [Parcel("bank-a", frame), Parcel("bank-a", world.sealed(honest, grant))]
    replies = world.provider.answer(parcels)
    return world.verified(honest, replies[1]).result


def banks_card(world: World, key: PrivateKey, spki: bytes, dates: dict[str, str]) -> Envelope:
    """The bank's newer card with one more key, which it makes alone."""
    home, proof = world.homes["bank-a"], None
    if key.usage is Usage.REQUEST:
        proof = base64.b64encode(request_of(key, "bank-a", "x").signatures[0].sig).decode()
    extra = KeyRecord(
        key_id=key_id(spki),
        usage=key.usage,
        alg=key.alg,
        spki=base64.b64encode(spki).decode(),
        holder="x",
        proof=proof,
        **dates,
    )
    said = {
        "keys": (*home.own().keys, extra),
        "serial": home.own().serial + 1,
        "created": utc_text(world.now),
    }
    signers = card_signers({usage: home.key(usage) for usage in USAGES[OrgKind.BANK]})
    return sign(home.own().model_copy(update=said), *signers)


def firm_with(world: World, usage: Usage, **changes: str) -> Firm:
    """The firm, with a card that it has changed and an issuer that has not looked at it closely."""
    firm = Firm(world.firm.uscc).certified_by(world.homes["licence"], Assurance.A3)
    card = firm.card.unverified(SubjectCard)
    keys = tuple(k.model_copy(update=changes) if k.usage is usage else k for k in card.keys)
    firm.card = sign(card.model_copy(update={"keys": keys}), firm.grant)
    word = firm.certificate.unverified(SubjectCertificate)
    word = word.model_copy(update={"card": firm.card.unverified(SubjectCard).digest()})
    firm.certificate = sign(word, world.homes["licence"].key(Usage.CERTIFY))
    return firm


def small_order(spki: bytes) -> bytes:
    """A key that no secret can be agreed with."""
    return spki[:-32] + bytes(32)


# --- one frame, and the others of its batch -------------------------------------------------------


def test_a_banks_key_of_the_year_1_costs_nobody_else_an_answer(world: World) -> None:
    key = PrivateKey.generate(Usage.REQUEST)
    world.homes["tax"].trust_card(banks_card(world, key, key.spki, FIRST_YEAR))
    grant = world.grant()
    times = {"created": "0001-06-01T00:00:00Z", "expires": "0001-06-01T00:01:00Z"}
    frame = world.sealed(world.request(grant, **times), grant, key=key)
    assert together(world, frame) is Answered.MATCH
    assert (world.refusals()[-1].check, world.uses(grant)) == (Check.VERIFIER, 0)


def test_a_firms_key_of_the_year_1_costs_nobody_else_an_answer(world: World) -> None:
    grant = world.grant(firm_with(world, Usage.GRANT, **FIRST_YEAR))
    assert together(world, world.sealed(world.request(grant), grant)) is Answered.MATCH
    assert (world.refusals()[-1].check, world.uses(grant)) == (Check.GRANT, 0)


def test_a_firms_key_that_nothing_can_be_sealed_to_costs_nobody_else_an_answer(
    world: World,
) -> None:
    spki = small_order(world.firm.encrypt.spki)
    weak = {"key_id": key_id(spki), "spki": base64.b64encode(spki).decode()}
    grant = world.grant(firm_with(world, Usage.ENCRYPT, **weak))
    assert together(world, world.sealed(world.request(grant), grant)) is Answered.MATCH
    assert (world.refusals()[-1].check, world.uses(grant)) == (Check.GRANT, 0)


def test_a_card_with_a_key_that_nothing_can_be_sealed_to_is_not_taken(world: World) -> None:
    key = PrivateKey.generate(Usage.ENCRYPT)
    card = banks_card(world, key, small_order(key.spki), THIS_WEEK)
    with pytest.raises(IntegrityError, match="no safe X25519 key"):
        world.homes["tax"].trust_card(card)


@pytest.mark.parametrize("value", ["集美\u200b", "e\u0301", "x" * 201, 1e300])
def test_a_value_that_no_answer_can_hold_costs_nobody_else_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    grant = world.grant(field="district", channel="query")
    look = Lookup.value

    def poisoned(self: Lookup, column: str, subject: str) -> OneValue:
        found = look(self, column, subject)
        return OneValue(value, found.snapshot, found.as_of) if column == "district" else found

    monkeypatch.setattr(Lookup, "value", poisoned)
    assert together(world, world.sealed(world.request(grant), grant)) is Answered.MATCH
    last = world.refusals()[-1]
    assert (last.check, last.reason, world.uses(grant)) == (Check.VALUE, Reason.OTHER, 1)


def test_a_file_that_cannot_be_read_costs_nobody_else_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = world.grant(field="district", channel="query")
    look = Lookup.value

    def broken(self: Lookup, column: str, subject: str) -> OneValue:
        if column == "district":
            raise OSError(5, "Input/output error")
        return look(self, column, subject)

    monkeypatch.setattr(Lookup, "value", broken)
    assert together(world, world.sealed(world.request(grant), grant)) is Answered.MATCH
    last = world.refusals()[-1]
    assert (last.check, last.reason, world.uses(grant)) == (Check.VALUE, Reason.OTHER, 1)


def test_a_threshold_with_an_exponent_takes_no_memory(world: World) -> None:
    tracemalloc.start()
    for text in ("1e99999999", "1E+99999999", "-1e-99999999"):
        with pytest.raises(ValidationError, match="not a plain decimal"):
            world.item(thresholds=(text,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20  # written out these have 100 million digits


# --- words on grants ------------------------------------------------------------------------------


def said_by(world: World, firm: Firm, grant: BySubject, change: Change, number: int) -> None:
    """The status list names it, the provider has it."""
    honest, world.firm = world.firm, firm
    world.change(grant, change, number)
    world.firm = honest
    world.refresh()


def is_paused(world: World, grant: BySubject) -> bool:
    assert world.ask(grant).result is Answered.REFUSED
    last = world.refusals()[-1]
    return (last.check, last.reason) == (Check.IN_FORCE, Reason.PAUSED)


def test_a_platform_that_certifies_itself_a_key_of_the_firm_ends_no_pause(world: World) -> None:
    grant = world.grant()
    said_by(world, world.firm, grant, Change.PAUSE, 1)
    forged = Firm(FIRM).certified_by(world.homes["platform"], Assurance.A2)
    said_by(world, forged, grant, Change.RESUME, 2)
    assert is_paused(world, grant)
    said_by(world, world.firm, grant, Change.RESUME, 3)
    assert world.ask(grant).result is Answered.MATCH


def test_a_stolen_key_whose_certificate_was_taken_back_ends_no_pause(world: World) -> None:
    stolen = Firm(FIRM).certified_by(world.homes["licence"], Assurance.A3)
    grant = world.grant()
    said_by(world, world.firm, grant, Change.PAUSE, 1)
    world.uncertified = [hashlib.sha256(stolen.certificate.payload).hexdigest()[:32]]
    said_by(world, stolen, grant, Change.RESUME, 2)
    assert is_paused(world, grant)


def test_a_weaker_proof_is_enough_to_stop(world: World) -> None:
    officer = Firm(FIRM).certified_by(world.homes["platform"], Assurance.A2)
    grant = world.grant()
    said_by(world, officer, grant, Change.PAUSE, 1)
    assert is_paused(world, grant)


@pytest.mark.parametrize("how", ["another's key", "another's certificate", "no signature"])
def test_nobody_s_signature_takes_the_place_of_the_firm_s_own(world: World, how: str) -> None:
    """Who carries a revocation, or sees it go by, signs the very same words before it arrives."""
    grant, honest = world.grant(), world.firm
    genuine, platform = world.change(grant, Change.REVOKE), world.homes["platform"]
    other = Firm(OTHER_FIRM).certified_by(platform, Assurance.A2)
    if how == "another's key":
        world.firm = other
        forged = world.change(grant, Change.REVOKE)
        assert forged.signed.payload == genuine.signed.payload
    elif how == "another's certificate":
        certificate = Firm(FIRM, honest.grant, honest.encrypt).certified_by(platform, Assurance.A3)
        forged = genuine.model_copy(update={"certificate": certificate.certificate})
    else:
        signature = genuine.signed.signatures[0].model_copy(update={"sig": bytes(64)})
        signed = genuine.signed.model_copy(update={"signatures": (signature,)})
        forged = genuine.model_copy(update={"signed": signed})
    world.firm, world.events = honest, [forged]
    world.refresh()
    assert world.ask(grant).result is Answered.MATCH  # nobody has revoked anything
    assert grants.take_event(world.homes["tax"], world.store, genuine, world.now)
    assert world.ask(grant).result is Answered.REFUSED
    assert world.refusals()[-1].reason is Reason.REVOKED


def test_events_that_prove_nothing_are_not_tried_at_every_question(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An issuer and a bank that are friends make thousands on one grant; others wait meanwhile."""
    grant, honest = world.grant(max_uses=9), world.firm
    world.firm = Firm(FIRM).certified_by(world.homes["platform"], Assurance.A3)  # up to A2 here
    for number in range(5):
        world.change(grant, Change.REVOKE, number + 1)
    world.firm = honest
    world.refresh()
    tried = []

    def counted(bundle: BySubject, *how: Any) -> VerifiedSubject[Any]:
        tried.append(bundle.digest)
        return verify_by_subject(bundle, *how)

    monkeypatch.setattr("clients.facts.verify_by_subject", counted)
    for count in (5, 5):
        assert (world.ask(grant).result, len(tried)) == (Answered.MATCH, count)
    world.now += timedelta(minutes=1)
    assert (world.ask(grant).result, len(tried)) == (Answered.MATCH, 10)
    policy = world.provider._settings.policy("tax", world.homes["tax"].trust())
    accepting = replace(policy, issuers={**policy.issuers, "platform": Assurance.A3})
    monkeypatch.setattr(VerificationSettings, "policy", lambda *_: accepting)
    assert world.ask(grant).result is Answered.REFUSED  # at once, without waiting for the minute
    assert world.refusals()[-1].reason is Reason.REVOKED


def test_no_event_of_others_keeps_a_firm_from_revoking(world: World) -> None:
    grant, tax = world.grant(), world.homes["platform"]
    store = world.stores["bank-a"]
    grants.give(tax, store, grant, world.now)
    other = Firm(OTHER_FIRM).certified_by(world.homes["licence"], Assurance.A3)
    said_by(world, other, grant, Change.RESUME, LAST_EVENT)
    for event in world.events:
        Consents(store).put_event(event, grants.verifier(tax, world.now), world.now)
    made = grants.change(tax, store, grant.digest, Change.PAUSE, world.now)
    assert made.signed.unverified(GrantEvent).number == 1


# --- what earlier answers and refusals say --------------------------------------------------------


def republished(world: World, field: str, **enquiry: Any) -> None:
    """The owner publishes the field with another enquiry, over the same data."""
    tax = world.homes["tax"]
    second = certified(tax, world.store, "王芳", world.now)
    words = FIELDS[field] | {"enquiry": FIELDS[field]["enquiry"] | enquiry}
    datasets.describe(world.store, "firms", {}, {field: words})
    datasets.sign_entry(tax, world.store, "firms", world.now)
    datasets.sign_entry(tax, world.store, "firms", world.now, second)


def test_what_was_told_on_one_grid_implies_nothing_on_another(world: World) -> None:
    grant = world.grant(field="assets", max_uses=3)
    assert world.ask(grant, arg="1000000").result is Answered.MATCH  # beyond the third cut point
    republished(world, "assets", grid=("10000000", "50000000", "100000000"))
    assert world.ask(grant, arg="100000000").result is Answered.NO_MATCH


def test_what_was_told_of_one_column_implies_nothing_on_another(world: World) -> None:
    firm = Firm(CODES[7].decode()).certified_by(world.homes["licence"], Assurance.A3)
    grant = world.grant(firm, field="court-2025", max_uses=2)
    assert world.ask(grant, period="2025", arg="1").result is Answered.NO_MATCH
    republished(world, "court-2025", columns=("court-2025", "court-2024"))
    assert world.ask(grant, period="2025", arg="1").result is Answered.MATCH


def test_a_reply_key_of_nobody_gets_the_refusal_that_everything_gets(world: World) -> None:
    grant, sizes = world.grant(), []
    for changes in ({"reply_key": "0" * 32}, {"reply_key": "0" * 32, "arg": "1"}):
        request = world.request(grant, **changes)
        reply = world.answer_to(world.sealed(request, grant))
        assert world.verified(request, reply).result is Answered.REFUSED
        sizes.append(len(reply))
    assert sizes[0] == sizes[1]
    assert world.uses(grant) == 0


# --- a draft that shows the firm another thing ----------------------------------------------------


def test_a_field_shown_under_another_name_is_not_granted(world: World) -> None:
    item = world.item(title="企业注册地址是否存在")
    grant = world.grant(items=(item,))
    assert world.ask(grant).result is Answered.REFUSED
    last = world.refusals()[-1]
    assert (last.check, last.reason, world.uses(grant)) == (Check.GRANT, Reason.INTEGRITY, 0)


@pytest.mark.parametrize("party", ["bank-a", "tax"])
def test_a_party_shown_under_another_name_is_granted_nothing(world: World, party: str) -> None:
    names = {"bank-a": "bank-a 某单位", "tax": "tax 某单位"} | {party: "中国人民银行"}
    grant = world.grant(names=tuple(NamedOrg(org=o, name=n) for o, n in names.items()))
    assert world.ask(grant).result is Answered.REFUSED
    last = world.refusals()[-1]
    assert (last.check, last.reason, world.uses(grant)) == (Check.GRANT, Reason.INTEGRITY, 0)


# --- the status list ------------------------------------------------------------------------------


def test_a_list_that_forgets_a_revoked_certificate_is_not_taken(world: World) -> None:
    grant = world.grant()
    world.uncertified = [hashlib.sha256(world.firm.certificate.payload).hexdigest()[:32]]
    world.refresh()
    world.uncertified = []
    with pytest.raises(IntegrityError, match="forgotten a certificate"):
        world.refresh()
    assert world.ask(grant).result is Answered.REFUSED
    assert world.refusals()[-1].reason is Reason.REVOKED


@pytest.fixture
def desk(world: World, tmp_path: Path) -> Iterator[ServerConsents]:
    with closing(ServerStore(f"sqlite:///{tmp_path / 'desk.db'}")) as store:
        yield consents(world, store)


def test_an_issuer_takes_back_its_own_certificates_alone(
    world: World, desk: ServerConsents
) -> None:
    other, firm = world.homes["platform"], world.firm
    digest = hashlib.sha256(firm.certificate.payload).hexdigest()
    word = CertificateRevocation(org="platform", certificate=digest, created=utc_text(world.now))
    forged = sign(word, other.key(Usage.CERTIFY))
    own = Firm(OTHER_FIRM).certified_by(other, Assurance.A2).certificate
    for certificate in (firm.certificate, own):
        with pytest.raises(IntegrityError):
            desk.take_revocation("platform", forged, certificate)
    assert desk.status().unverified(StatusList).certificates == ()
    honest = grants.revoke_certificate(world.homes["licence"], firm.certificate, world.now)
    desk.take_revocation("licence", honest, firm.certificate)
    assert desk.status().unverified(StatusList).certificates == (digest[:32],)


def test_one_firm_does_not_fill_the_list_and_can_still_revoke(
    world: World, desk: ServerConsents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.consents, "EVENTS_OF_CERTIFICATE", 3)
    grant, banks = world.grant(), cycle(("bank-a", "bank-b"))
    for number in (1, 2, 3):
        desk.take_event(next(banks), world.change(grant, Change.PAUSE, number))
    with pytest.raises(Refused, match="one enterprise"):
        desk.take_event(next(banks), world.change(grant, Change.PAUSE, 4))
    for number in (5, 6, 7):
        desk.take_event(next(banks), world.change(grant, Change.REVOKE, number))
    with pytest.raises(Refused, match="one enterprise"):
        desk.take_event(next(banks), world.change(grant, Change.REVOKE, 8))


def test_an_issuer_that_makes_itself_the_firm_s_key_does_not_use_up_the_firm_s_part(
    world: World, desk: ServerConsents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.consents, "EVENTS_OF_CERTIFICATE", 3)
    grant, honest = world.grant(), world.firm
    world.firm = Firm(FIRM).certified_by(world.homes["platform"], Assurance.A2)
    for number in range(6):
        desk.take_event("bank-a", world.change(grant, Change.REVOKE, number + 1))
    world.firm = honest
    revoked = desk.take_event("bank-a", world.change(grant, Change.REVOKE))
    assert revoked[:32] in desk.status().unverified(StatusList).events


def test_no_grant_outlives_the_list_of_the_words_that_revoked_it(
    world: World, desk: ServerConsents
) -> None:
    """A bank drafts one that begins when the revocation is forgotten."""
    signed = world.now - timedelta(minutes=1)
    latest = signed + GRANT_BEGINS
    late = {"not_before": utc_text(latest + timedelta(seconds=1))}
    late["expires"] = utc_text(latest + timedelta(days=1))
    with pytest.raises(Refused, match="begins more than 7 days"):
        world.grant(**late)
    grant = world.grant(not_before=utc_text(latest), expires=utc_text(latest + GRANT_LIFE))
    plain = grant.signed.unverified(Grant).model_dump(mode="json")
    with pytest.raises(ValidationError, match="begins at most"):  # nor with a program of one's own
        Grant.model_validate(plain | late)
    desk.take_event("bank-a", world.change(grant, Change.REVOKE))
    world.now = latest + GRANT_LIFE
    assert len(desk.status().unverified(StatusList).events) == 1
    assert state_of(grant.signed.unverified(Grant), [], world.now) is State.EXPIRED


def test_the_platform_takes_the_firm_s_own_word_after_the_same_words_of_another(
    world: World, desk: ServerConsents
) -> None:
    grant, honest = world.grant(), world.firm
    world.firm = Firm(OTHER_FIRM).certified_by(world.homes["platform"], Assurance.A2)
    forged = world.change(grant, Change.REVOKE)
    world.firm = honest
    genuine = world.change(grant, Change.REVOKE)
    assert forged.digest == genuine.digest
    for event in (forged, genuine):
        desk.take_event("bank-b", event)
    assert desk.events_of([grant.digest]) == (forged, genuine)


def test_one_issuer_s_made_up_firms_leave_room_for_those_of_others(
    world: World, desk: ServerConsents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.consents, "EVENTS_OF_ISSUER", 2)
    grant, honest, platform = world.grant(), world.firm, world.homes["platform"]

    def said(change: Change, code: str) -> str:
        world.firm = Firm(code).certified_by(platform, Assurance.A2)
        return desk.take_event("bank-a", world.change(grant, change))

    made_up = [code.decode() for code in CODES[10:16]]
    for code in made_up[:2]:
        said(Change.PAUSE, code)
    with pytest.raises(Refused, match="one issuer"):
        said(Change.PAUSE, made_up[2])
    for code in made_up[3:5]:
        said(Change.REVOKE, code)
    with pytest.raises(Refused, match="one issuer"):
        said(Change.REVOKE, made_up[5])
    world.firm = honest
    desk.take_event("bank-a", world.change(grant, Change.PAUSE))


def test_one_issuer_does_not_fill_the_list(
    world: World, desk: ServerConsents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.consents, "REVOKED_OF_ISSUER", 1)
    issuer = world.homes["platform"]
    firms = [Firm(code).certified_by(issuer, Assurance.A2) for code in (FIRM, OTHER_FIRM)]
    words = [grants.revoke_certificate(issuer, firm.certificate, world.now) for firm in firms]
    desk.take_revocation("platform", words[0], firms[0].certificate)
    with pytest.raises(Refused, match="one issuer"):
        desk.take_revocation("platform", words[1], firms[1].certificate)


# --- what is kept, and what is read ---------------------------------------------------------------


def test_rates_forget_whom_nobody_asks_about_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "ROOM", 10)
    rates = Rates(1000, 1000)
    for row, code in enumerate(CODES[:50]):
        now = NOW + timedelta(hours=row)
        rates.ask("bank-a", now)
        rates.require_subject(code.decode(), now)
        rates.admit(code.decode(), now)
    assert len(rates._seen) <= 11  # the bank's, and those of the last hours


def test_a_bank_whose_grant_is_used_up_uses_up_no_other_s_questions(world: World) -> None:
    world.provider._rates = Rates(verifier_per_minute=1000, subject_per_hour=3)
    spent, other = world.grant(max_uses=1), world.grant(grantee="bank-b")
    assert world.ask(spent).result is Answered.MATCH
    for _ in range(5):
        assert world.ask(spent).result is Answered.REFUSED
        assert world.refusals()[-1].reason is Reason.USES
    assert world.ask(other).result is Answered.MATCH


def test_a_carrier_that_repeats_a_frame_uses_up_nobody_s_questions(world: World) -> None:
    world.provider._rates = Rates(verifier_per_minute=1000, subject_per_hour=2)
    grant, other = world.grant(), world.grant(grantee="bank-b")
    frame = world.sealed(world.request(grant), grant)
    world.provider.answer([Parcel("bank-a", frame)] * 5)
    assert [entry.reason for entry in world.refusals()] == [Reason.REPLAYED] * 4
    assert world.ask(other).result is Answered.MATCH


def field(**changes: Any) -> Field:
    plain = {
        "name": "revenue",
        "type": "number",
        "ops": ["verify"],
        "purposes": ["credit-decision"],
    }
    return Field.model_validate(plain | changes)


def test_a_column_has_one_grid_and_no_field_opens_a_more_sensitive_one(world: World) -> None:
    entry = world.catalogue()
    said = Enquiry(ops=(Question.COMPARE,), grid=("1",), min_assurance=Assurance.A1)

    def published(*fields: Field) -> None:
        names = {item.name for item in fields}
        kept = tuple(item for item in entry.fields if item.name not in names)
        Dataset.model_validate(entry.model_dump() | {"fields": [*kept, *fields]})

    open_, other = {"level": "L2", "trade_secret": False}, said.model_copy(update={"grid": ("2",)})
    alias = said.model_copy(update={"columns": ("revenue",)})
    published(field(**open_), field(name="turnover", enquiry=alias, **open_))
    with pytest.raises(ValidationError, match="through one field"):
        published(field(enquiry=other, **open_), field(name="turnover", enquiry=alias, **open_))
    for secret in ({"level": "L5", "trade_secret": False}, {"level": "L2"}):
        with pytest.raises(ValidationError, match="more sensitive"):
            published(field(**secret), field(name="turnover", enquiry=alias, **open_))


def test_the_coordinator_keeps_no_question_that_was_taken() -> None:
    async def asked_and_answered() -> None:
        relay = SealedRelay()
        await relay.take("tax", 0)
        waiting = asyncio.create_task(relay.ask("bank-a", "tax", b"x" * 2048))
        await asyncio.sleep(0)
        (entry,) = await relay.take("tax", 0)
        assert entry.sealed == b"x" * 2048
        assert not any(call.sealed for call in relay._calls.values())
        relay.reply("tax", entry.id, b"answer")
        assert await waiting == b"answer"
        assert await relay.ask("bank-a", "tax", b"x" * 2048) == b"answer"

    asyncio.run(asked_and_answered())


def test_two_that_answer_each_other_do_not_fill_the_coordinator_s_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server.verification, "REMEMBERED_BYTES", 1000)

    async def answered(relay: SealedRelay, sender: str, question: bytes, answer: bytes) -> None:
        waiting = asyncio.create_task(relay.ask(sender, "tax", question))
        await asyncio.sleep(0)
        (entry,) = await relay.take("tax", 0)
        relay.reply("tax", entry.id, answer)
        assert await waiting == answer

    async def flood() -> None:
        relay = SealedRelay()
        await relay.take("tax", 0)
        await answered(relay, "bank-b", b"q", b"b" * 300)
        for number in range(10):
            await answered(relay, "bank-a", b"q%d" % number, b"a" * 300)
        kept = [(call.sender, len(call.answer.result())) for call in relay._calls.values()]
        assert sorted(kept) == [("bank-a", 300)] * 3 + [("bank-b", 300)]
        assert await relay.ask("bank-b", "tax", b"q") == b"b" * 300

    asyncio.run(flood())


def test_large_frames_of_one_are_handed_out_in_parts_that_a_node_reads(world: World) -> None:
    """Else one member's frames would make the owner's node lose all that came with them."""
    most = world.homes["tax"].config.max_response_bytes

    async def taken() -> list[int]:
        relay = SealedRelay()
        await relay.take("tax", 0)
        frames = [("bank-a", bytes([number]) * MAX_SEALED) for number in range(TAKE_MAX)]
        frames.insert(30, ("bank-b", b"q" * 2048))
        asking = [asyncio.create_task(relay.ask(org, "tax", frame)) for org, frame in frames]
        await asyncio.sleep(0)
        found, sizes = list[bytes](), list[int]()
        while items := await relay.take("tax", 0):
            sizes.append(len(Inbox(items=tuple(items)).model_dump_json()))
            found += [item.sealed for item in items]
        for task in asking:
            task.cancel()
        assert found == [frame for _, frame in frames]
        return sizes

    assert max(asyncio.run(taken())) < most


def test_a_session_that_can_ask_nothing_reaches_no_node(world: World, desk: ServerConsents) -> None:
    """A stolen session of a firm, say: each of its frames would be an entry in an owner's log."""
    relay, app = SealedRelay(), FastAPI()
    app.include_router(server.verification.router(relay, desk))

    async def sent(org: str) -> int:
        async def of_org(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope | {ORG_KEY: org}, receive, send)

        await relay.take("tax", 0)
        transport = httpx.ASGITransport(of_org)
        async with httpx.AsyncClient(transport=transport, base_url="https://platform") as client:
            content = bytes(OVERHEAD + STEP)
            asking = asyncio.create_task(client.post("/sealed/tax", content=content))
            while not (items := await relay.take("tax", 0)) and not asking.done():
                await asyncio.sleep(0)
            for item in items:
                relay.reply("tax", item.id, b"answer")
            return (await asking).status_code

    with pytest.raises(Refused, match="nothing to ask"):
        asyncio.run(sent("platform"))
    assert asyncio.run(sent("bank-a")) == 200


@pytest.mark.parametrize("org", ["bank-a", "platform"])
def test_only_who_answers_leaves_something_in_a_firm_s_mailbox(
    world: World, desk: ServerConsents, org: str
) -> None:
    notice = NoticeBody(mailbox=world.firm.encrypt.key_id, sealed=b"x" * NOTICE_MAX)
    with pytest.raises(Refused, match="only owners"):
        desk.keep_notices(org, [notice])
    desk.keep_notices("tax", [notice])
    with pytest.raises(ValidationError):
        NoticeBody(mailbox=notice.mailbox, sealed=b"x" * (NOTICE_MAX + 1))


def test_the_notice_says_that_each_holder_counts_for_itself(world: World) -> None:
    terms = world.terms(max_uses=7)
    assert "每家数据单位最多 7 次" in notice(terms, Language.ZH)
    assert "at most 7 times at each data holder" in notice(terms, Language.EN)


def test_a_firm_is_told_of_a_use_that_ended_in_a_refusal(world: World) -> None:
    sent: list[NoticeBody] = []

    class Carrier:
        def reply_sealed(self, body: Outbox) -> None:
            sent.extend(body.notices)

    firm = Firm(NO_RECORD_FIRM).certified_by(world.homes["licence"], Assurance.A3)
    grant, tax = world.grant(firm), world.homes["tax"]
    assert world.ask(grant).result is Answered.REFUSED
    assert world.uses(grant) == 1
    UseNotices(tax, world.store, Carrier(), lambda: world.now, timedelta(0)).round()
    (told,) = sent
    content = sealing.unseal(sealing.USE, told.sealed, sender="tax", key=firm.encrypt)
    use = grants.read_notice(world.homes["bank-a"], content, world.now).use.unverified(Use)
    assert (use.grant, use.result) == (grant.digest, "refused")
    assert world.ask(grant).result is Answered.REFUSED  # used up
    UseNotices(tax, world.store, Carrier(), lambda: world.now, timedelta(0)).round()
    assert sent == [told]


def test_an_owner_that_is_handed_a_revocation_needs_no_coordinator_for_it(world: World) -> None:
    class Silent:
        def hand_in_event(self, bundle: BySubject) -> Taken:
            raise Unavailable("is not reachable", party="platform")

    tax, grant = world.homes["tax"], world.grant()
    event = world.change(grant, Change.REVOKE)
    world.events.clear()  # no list names it
    with pytest.raises(Unavailable):
        grants.hand_in(tax, world.store, Silent(), event, world.now)  # type: ignore[arg-type] # all that is asked of it
    assert world.ask(grant).result is Answered.REFUSED
    assert world.refusals()[-1].reason is Reason.REVOKED
