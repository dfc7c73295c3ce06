"""Grants and requests: acceptance tests 1 to 14 of GOVERNANCE.md, and what goes with them.

Each refusal leaves one entry with the right code, and no counter moves.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, text

from clients import grants, keys
from clients.audit import AuditLog
from clients.consent import ConsentState
from clients.store import StatusListRow
from clients.verification import Parcel
from federation import sealing
from federation.audit import Action, AuditEntry, Check, Reason, Result, verify_receipt
from federation.catalogue import Assurance
from federation.enquiry import Answered
from federation.envelope import Envelope, Signature, sign
from federation.errors import Conflict, IntegrityError
from federation.grants import BySubject, CertificateRevocation, Change, Grant, UseNotice
from federation.identity import PrivateKey
from federation.objects import Purpose, Usage, utc_text
from federation.verification import Ask, Denied, Reply, VerificationRequest
from tests.acceptance.consent import (
    CODES,
    FIRM,
    NOW,
    OTHER_FIRM,
    PERIODS,
    REVENUE,
    Firm,
    World,
    copied,
)


class Refusal:
    """The block gets one refusal, with this check and reason, and nothing is counted."""

    def __init__(self, world: World, check: Check, reason: Reason) -> None:
        self.world, self.check, self.reason = world, check, reason

    def __enter__(self) -> None:
        self.before = len(self.world.refusals()), self.world.counters(), len(self.world.asked())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        refusals, counters, asked = self.before
        found = self.world.refusals()
        assert len(found) == refusals + 1
        assert (found[-1].check, found[-1].reason) == (self.check, self.reason)
        assert self.world.counters() == counters
        assert len(self.world.asked()) == asked


def resigned(
    world: World, bundle: BySubject, key: PrivateKey | None = None, **changes: Any
) -> BySubject:
    """The same grant with other words, signed again by the firm (or by another key)."""
    key = key or world.firm.grant
    grant = bundle.signed.unverified(Grant).model_copy(update=changes)
    return bundle.model_copy(update={"signed": sign(grant, key)})


def edited(request: VerificationRequest, old: str, new: str) -> bytes:
    """The request's bytes with one text exchanged, past its schema."""
    payload = request.payload()
    assert payload.count(old.encode()) == 1
    return payload.replace(old.encode(), new.encode())


def test_the_answer_is_right_and_leaves_intent_answer_and_a_receipt(world: World) -> None:
    grant = world.grant(max_uses=9)
    assert world.ask(grant, arg="1000000").result is Answered.MATCH
    assert world.ask(grant, arg="1000000", comparison="lt").result is Answered.NO_MATCH
    assert world.ask(grant, arg="5000000").result is Answered.NO_MATCH
    assert world.ask(grant, op="exists", arg=None, comparison=None).result is Answered.MATCH
    assert [e.action for e in world.entries()[-2:]] == [Action.ASKED, Action.ANSWERED]
    assert world.uses(grant) == 4


@pytest.mark.parametrize(
    ("field", "changes", "result", "value"),
    [
        ("name", {}, "match", None),
        ("name", {"arg": "厦门集美贸易公司"}, "no_match", None),
        ("court-2025", {"period": "2025", "arg": "1"}, "match", None),
        ("court-2025", {"period": "2025", "arg": "3"}, "no_match", None),
        ("court-2025", {"period": "2024", "arg": "3"}, "no_match", None),
        ("staff", {}, "value", "[-inf, 10)"),
        ("district", {}, "value", "集美"),
    ],
)
def test_every_operation_answers(
    world: World, field: str, changes: dict[str, Any], result: str, value: str | None
) -> None:
    channel = "query" if field in ("staff", "district") else "verify"
    answer = world.ask(world.grant(field=field, channel=channel), **changes)
    assert (answer.result, answer.value) == (result, value)


# --- 1 to 5 ---------------------------------------------------------------------------------------


def test_a01_an_answered_request_is_refused_the_second_time_also_after_a_restart(
    world: World,
) -> None:
    grant = world.grant(max_uses=5)
    request = world.request(grant)
    frame = world.sealed(request, grant)
    assert world.verified(request, world.answer_to(frame)).result is Answered.MATCH
    with Refusal(world, Check.FRESH, Reason.REPLAYED):
        assert world.verified(request, world.answer_to(frame)).result is Answered.REFUSED
    world.start()
    with Refusal(world, Check.FRESH, Reason.REPLAYED):
        assert world.verified(request, world.answer_to(frame)).result is Answered.REFUSED
    assert world.uses(grant) == 1


def test_a02_the_same_nonce_under_a_new_id_is_refused(world: World) -> None:
    grant = world.grant(max_uses=5)
    nonce = "ab" * 16
    assert world.ask(grant, nonce=nonce).result is Answered.MATCH
    with Refusal(world, Check.FRESH, Reason.REPLAYED):
        assert world.ask(grant, nonce=nonce).result is Answered.REFUSED


def test_a02_the_same_nonce_in_one_batch_is_refused(world: World) -> None:
    grant = world.grant(max_uses=5)
    frames = [world.sealed(world.request(grant, nonce="ab" * 16), grant) for _ in range(2)]
    world.provider.answer([Parcel("bank-a", frame) for frame in frames])
    assert world.uses(grant) == 1
    assert [entry.reason for entry in world.refusals()] == [Reason.REPLAYED]


@pytest.mark.parametrize(
    ("life", "reason"),
    [
        ({"expires": -1, "not_before": -3600}, Reason.EXPIRED),
        ({"expires": 3600, "not_before": 1}, Reason.NOT_YET),
    ],
)
def test_a03_a_grant_counts_within_its_time_only(
    world: World, life: dict[str, int], reason: Reason
) -> None:
    times = {name: utc_text(world.now + timedelta(seconds=s)) for name, s in life.items()}
    grant = world.grant(**times)
    with Refusal(world, Check.IN_FORCE, reason):
        assert world.ask(grant).result is Answered.REFUSED


def test_a04_a_revocation_counts_as_soon_as_it_is_here_and_for_good(world: World) -> None:
    grant = world.grant(max_uses=9)
    assert world.ask(grant).result is Answered.MATCH
    world.change(grant, Change.REVOKE)
    # not here yet, and the list that is here is young enough: the stated latency
    assert world.ask(grant).result is Answered.MATCH
    world.refresh()
    with Refusal(world, Check.IN_FORCE, Reason.REVOKED):
        assert world.ask(grant).result is Answered.REFUSED
    world.change(grant, Change.RESUME, number=2)
    world.refresh()
    with Refusal(world, Check.IN_FORCE, Reason.REVOKED):
        assert world.ask(grant).result is Answered.REFUSED


def test_a04_without_a_fresh_status_list_nothing_is_answered(world: World) -> None:
    grant = world.grant(max_uses=9)
    world.now += timedelta(minutes=10, seconds=1)
    with Refusal(world, Check.IN_FORCE, Reason.STALE_STATUS):
        assert world.ask(grant).result is Answered.REFUSED
    world.refresh()
    assert world.ask(grant).result is Answered.MATCH
    with world.store.writing(StatusListRow) as session:
        session.execute(delete(StatusListRow))
    with Refusal(world, Check.IN_FORCE, Reason.STALE_STATUS):
        assert world.ask(grant).result is Answered.REFUSED


def test_a04_an_older_list_and_one_without_its_events_are_not_taken(world: World) -> None:
    grant, tax = world.grant(max_uses=9), world.homes["tax"]
    before = world.status(age=timedelta(minutes=1))
    world.refresh()
    with pytest.raises(Conflict, match="older"):
        world.consents.put_status(before, tax.trust(), world.now)
    world.change(grant, Change.REVOKE)
    with pytest.raises(Conflict, match="1 events that are not here"):
        world.consents.put_status(world.status(), tax.trust(), world.now)
    forged = world.status().unverified(grants.StatusList)
    signed = sign(forged, world.homes["bank-a"].key(Usage.REQUEST))
    with pytest.raises(IntegrityError):
        world.consents.put_status(signed, tax.trust(), world.now)


def test_a04_a_pause_ends_with_the_resumption_and_numbers_decide(world: World) -> None:
    grant = world.grant(max_uses=9)
    world.change(grant, Change.PAUSE, number=1)
    world.refresh()
    with Refusal(world, Check.IN_FORCE, Reason.PAUSED):
        world.ask(grant)
    world.change(grant, Change.RESUME, number=2)
    world.refresh()
    assert world.ask(grant).result is Answered.MATCH
    world.change(grant, Change.PAUSE, number=2)  # of one number the pause counts
    world.refresh()
    with Refusal(world, Check.IN_FORCE, Reason.PAUSED):
        world.ask(grant)


def test_a04_a_certificate_that_its_issuer_took_back_opens_nothing(world: World) -> None:
    grant = world.grant(max_uses=5)
    assert world.ask(grant).result is Answered.MATCH
    word = grants.revoke_certificate(world.homes["licence"], world.firm.certificate, world.now)
    found = (
        world.homes["platform"]
        .trust()
        .verify(word, CertificateRevocation, Usage.CERTIFY, world.now)
    )
    world.uncertified.append(found.object.certificate[:32])
    world.refresh()
    with Refusal(world, Check.IN_FORCE, Reason.REVOKED):
        assert world.ask(grant).result is Answered.REFUSED


def test_a04_another_firms_revocation_changes_nothing(world: World) -> None:
    grant = world.grant()
    stranger = Firm(OTHER_FIRM).certified_by(world.homes["licence"], Assurance.A3)
    mine = world.firm
    world.firm = stranger
    world.change(grant, Change.REVOKE)
    world.firm = mine
    world.refresh()
    assert world.ask(grant).result is Answered.MATCH


def test_a05_the_purpose_is_the_grants_and_the_fields(world: World) -> None:
    grant = world.grant()
    with Refusal(world, Check.PURPOSE, Reason.PURPOSE_NOT_ALLOWED):
        world.ask(grant, purpose=Purpose.POST_LOAN_MONITORING)
    changed = grant.signed.unverified(Grant).model_copy(
        update={"purpose": Purpose.POST_LOAN_MONITORING}
    )
    envelope = grant.signed.model_copy(update={"payload": changed.payload()})
    broken = grant.model_copy(update={"signed": envelope})
    with Refusal(world, Check.GRANT, Reason.INTEGRITY):
        world.ask(broken)
    elsewhere = world.grant(purpose=Purpose.POST_LOAN_MONITORING)
    with Refusal(world, Check.PURPOSE, Reason.PURPOSE_NOT_ALLOWED):
        world.ask(elsewhere)


# --- 6 to 8 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"field": "assets"}, Reason.NOT_GRANTED),
        ({"dataset": "other"}, Reason.NOT_GRANTED),
        ({"period": "2019"}, Reason.NOT_OFFERED),
        ({"op": "exists", "arg": None, "comparison": None}, Reason.NOT_GRANTED),
        ({"op": "count"}, Reason.NOT_OFFERED),
        ({"arg": "1000000.01"}, Reason.OFF_GRID),
        ({"arg": "999999.99"}, Reason.OFF_GRID),
        ({"arg": "5000000"}, Reason.NOT_GRANTED),
        ({"channel": "query"}, Reason.CHANNEL),
    ],
)
def test_a06_nothing_outside_the_grant_and_the_grid_is_answered(
    world: World, changes: dict[str, Any], reason: Reason
) -> None:
    grant = world.grant(items=(world.item(ops=("compare",), thresholds=("1000000",)),))
    with Refusal(world, Check.QUESTION, reason):
        assert world.ask(grant, **changes).result is Answered.REFUSED


def test_a06_a_period_that_the_field_offers_and_the_grant_leaves_out_is_refused(
    world: World,
) -> None:
    grant = world.grant(items=(world.item("monthly", periods=PERIODS[:2]),), max_uses=9)
    assert world.ask(grant, period=PERIODS[1]).result is Answered.MATCH
    with Refusal(world, Check.QUESTION, Reason.NOT_GRANTED):
        assert world.ask(grant, period=PERIODS[2]).result is Answered.REFUSED


def test_a06_a_grant_longer_than_the_field_allows_is_refused(world: World) -> None:
    grant = world.grant(retain_answer_days=181)
    with Refusal(world, Check.QUESTION, Reason.NOT_OFFERED):
        world.ask(grant)


def test_a07_a_grant_serves_its_grantee_alone(world: World) -> None:
    grant = world.grant(grantee="bank-a")
    request = world.request(grant)
    with Refusal(world, Check.VERIFIER, Reason.INTEGRITY):  # signed by B in A's name
        frame = world.sealed(request, grant, signer="bank-b")
        world.answer_to(frame, "bank-b")
    with Refusal(world, Check.VERIFIER, Reason.INTEGRITY):  # and carried as if A's
        frame = world.sealed(request, grant, signer="bank-b", sender="bank-a")
        world.answer_to(frame, "bank-a")
    with Refusal(world, Check.PARTIES, Reason.GRANTEE):  # B in its own name, with A's grant
        assert world.ask(grant, verifier="bank-b").result is Answered.REFUSED
    with Refusal(world, Check.SEALED, Reason.INTEGRITY):  # A's frame, carried as if B's
        world.answer_to(world.sealed(request, grant), "bank-b")


def test_a07_a_key_of_another_use_signs_no_request(world: World) -> None:
    grant = world.grant()
    request = world.request(grant)
    frame = world.sealed(request, grant, key=world.homes["bank-a"].key(Usage.APPROVE))
    with Refusal(world, Check.VERIFIER, Reason.INTEGRITY):
        world.answer_to(frame)


def test_a08_the_subject_is_the_grants_by_its_code(world: World) -> None:
    grant = world.grant()
    with Refusal(world, Check.PARTIES, Reason.SUBJECT):
        assert world.ask(grant, subject=OTHER_FIRM).result is Answered.REFUSED


@pytest.mark.parametrize("wrong", ["check", "look-alike", "full-width", "lower"])
def test_a08_a_code_that_is_none_does_not_pass_the_schema(world: World, wrong: str) -> None:
    other = {
        "check": FIRM[:-1] + ("0" if FIRM[-1] != "0" else "1"),
        "look-alike": FIRM.replace("0", "O", 1),
        "full-width": FIRM.replace("1", "１", 1),
        "lower": FIRM.lower(),
    }[wrong]
    assert other != FIRM
    grant = world.grant()
    payload = edited(world.request(grant), FIRM, other)
    key = world.homes["bank-a"].key(Usage.REQUEST)
    message = b"DSSEv1 %d %s %d %s"
    kind = b"application/vnd.lianmo.verification-request.v1+json"
    signature = key.sign(message % (len(kind), kind, len(payload), payload))
    envelope = Envelope(
        payload_type=kind.decode(),
        payload=payload,
        signatures=(Signature(keyid=key.key_id, alg=key.alg, sig=signature),),
    )
    frame = world.seal(Ask(request=envelope, grant=grant).to_bytes(), "bank-a")
    with Refusal(world, Check.ENVELOPE, Reason.INTEGRITY):
        world.answer_to(frame)


# --- 9 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("kind", ["identical", "distinct"])
def test_a09_of_fifty_at_once_one_is_answered(
    consent_template: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    database: str,
    kind: str,
) -> None:
    world = copied(consent_template, tmp_path)
    if database == "postgresql":
        world = on_postgresql(world, request.getfixturevalue("postgresql"))
    grant = world.grant(max_uses=1)
    one = world.request(grant)
    requests = [one if kind == "identical" else world.request(grant) for _ in range(50)]
    frames = [world.sealed(item, grant) for item in requests]
    world.ask(world.grant())  # the data are open: only the counters are left to race for
    before = len(world.refusals())
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(world.answer_to, frames))
    words = [
        world.verified(item, reply).result for item, reply in zip(requests, replies, strict=True)
    ]
    assert sorted(words) == ["match", *["refused"] * 49]
    assert world.uses(grant) == 1
    reasons = {entry.reason for entry in world.refusals()[before:]}
    assert len(world.refusals()) == before + 49
    assert reasons == {Reason.REPLAYED if kind == "identical" else Reason.USES}
    assert world.audit.verify().problems == ()
    world.close()


def on_postgresql(world: World, url: str) -> World:
    """The same provider with its tables in PostgreSQL: datasets and log are copied over."""
    from clients.store import Base, Store

    target = Store.open(url)
    with target.writing() as session:
        names = ", ".join(f'"{table.name}"' for table in reversed(Base.metadata.sorted_tables))
        triggers = ("audit_entry", "audit_checkpoint")
        for table in triggers:
            session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        session.execute(text(f"TRUNCATE {names} CASCADE"))
        for table in triggers:
            session.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))
        with world.store.reading() as source:
            for table in Base.metadata.sorted_tables:
                if rows := [dict(row) for row in source.execute(table.select()).mappings()]:
                    session.execute(table.insert(), rows)
    target.close()
    world.close()
    return World(world.folder, url)


def test_a09_two_uses_need_their_interval(world: World) -> None:
    grant = world.grant(max_uses=2, min_interval_s=60)
    assert world.ask(grant).result is Answered.MATCH
    world.now += timedelta(seconds=59)
    with Refusal(world, Check.BUDGET, Reason.TOO_SOON):
        world.ask(grant)
    world.now += timedelta(seconds=1)
    assert world.ask(grant).result is Answered.MATCH
    with Refusal(world, Check.BUDGET, Reason.USES):
        world.ask(grant)


# --- 10 to 13 -------------------------------------------------------------------------------------


def attested(world: World, **changes: Any) -> BySubject:
    return grants.attest(
        world.homes["platform"], world.terms(**changes), world.now - timedelta(minutes=1)
    )


def test_a10_the_platforms_word_does_not_open_a_field_that_asks_for_the_seal(world: World) -> None:
    with Refusal(world, Check.GRANT, Reason.ASSURANCE):
        assert world.ask(attested(world)).result is Answered.REFUSED
    opened = attested(world, field="staff", channel="query")
    assert world.ask(opened).result is Answered.VALUE  # where the owner asks for A1 only


def test_a10_an_officers_key_does_not_open_it_either(world: World) -> None:
    firm = Firm(FIRM).certified_by(world.homes["platform"], Assurance.A2)
    with Refusal(world, Check.GRANT, Reason.ASSURANCE):
        world.ask(world.grant(firm))


def test_a11_the_platform_cannot_say_that_it_is_the_subject(world: World) -> None:
    key = world.homes["platform"].key(Usage.GRANT)
    for assurance in (Assurance.A3, Assurance.A2):
        forged = resigned(world, attested(world), key, assurance=assurance)
        with Refusal(world, Check.GRANT, Reason.INTEGRITY):
            assert world.ask(forged).result is Answered.REFUSED
    # nor certify that assurance to a key of its own: this provider's settings name others for it
    puppet = Firm(FIRM).certified_by(world.homes["platform"], Assurance.A3)
    with Refusal(world, Check.GRANT, Reason.SIGNER):
        assert world.ask(world.grant(puppet)).result is Answered.REFUSED


def test_a11_a_firm_cannot_sign_for_another_firm(world: World) -> None:
    thief = Firm(OTHER_FIRM).certified_by(world.homes["licence"], Assurance.A3)
    own = world.grant(thief)
    with Refusal(world, Check.GRANT, Reason.INTEGRITY):
        forged = resigned(world, own, thief.grant, subject=FIRM)
        world.ask(forged, subject=FIRM)
    with Refusal(world, Check.GRANT, Reason.INTEGRITY):  # another's card with one's own word
        mine = world.grant()
        world.ask(mine.model_copy(update={"card": thief.card}))


def test_a12_the_subjects_tls_key_signs_no_grant(world: World) -> None:
    firm = world.firm
    tls = PrivateKey.generate(Usage.TLS)
    assert isinstance(tls.secret, ec.EllipticCurvePrivateKey)
    grant = world.grant()
    said = grant.signed.unverified(Grant).model_copy(update={"signer": tls.key_id})
    envelope = sign(said, firm.grant)
    signature = tls.secret.sign(envelope.pae(), ec.ECDSA(hashes.SHA256()))
    wrong = Signature(keyid=tls.key_id, alg="P-256", sig=signature)
    forged = grant.model_copy(
        update={"signed": envelope.model_copy(update={"signatures": (wrong,)})}
    )
    with Refusal(world, Check.GRANT, Reason.INTEGRITY):
        assert world.ask(forged).result is Answered.REFUSED


def test_a12_another_key_of_the_firm_signs_no_grant(world: World) -> None:
    other = PrivateKey.generate(Usage.GRANT)
    with Refusal(world, Check.GRANT, Reason.INTEGRITY):
        world.ask(resigned(world, world.grant(), other))


def test_a13_an_answer_counts_for_its_request_and_its_bank_alone(world: World) -> None:
    grant = world.grant(max_uses=5)
    first, second = world.request(grant), world.request(grant)
    reply = world.answer_to(world.sealed(first, grant))
    with pytest.raises(IntegrityError, match="another request"):
        world.verifier().open(second, reply)
    assert world.verifier().open(first, reply)[0].result is Answered.MATCH
    # what A got, sealed again for B by a carrier: B asked nothing of the sort
    content = sealing.unseal(
        sealing.ANSWER, reply, sender="tax", key=world.homes["bank-a"].key(Usage.ENCRYPT)
    )
    card = world.homes["bank-b"].own()
    spki = base64.b64decode(card.of_usage(Usage.ENCRYPT)[0].spki)
    again = sealing.seal(sealing.ANSWER, content, sender="tax", recipient=spki)
    with pytest.raises(IntegrityError, match="another request"):
        world.verifier("bank-b").open(world.request(grant, verifier="bank-b"), again)
    with pytest.raises(IntegrityError, match="does not open"):
        world.verifier("bank-b").open(first, reply)


def test_a13_an_answer_with_another_ones_receipt_is_not_believed(world: World) -> None:
    grant, key = world.grant(max_uses=5), world.homes["bank-a"].key(Usage.ENCRYPT)
    spki = world.homes["bank-a"].key(Usage.ENCRYPT).spki
    replies, requests = [], [world.request(grant), world.request(grant, arg="5000000")]
    for request in requests:
        frame = world.answer_to(world.sealed(request, grant))
        replies.append(
            Reply.from_bytes(sealing.unseal(sealing.ANSWER, frame, sender="tax", key=key))
        )
    for receipt in (replies[1].receipt, None):
        mixed = replies[0].model_copy(update={"receipt": receipt})
        sealed = sealing.seal(sealing.ANSWER, mixed.to_bytes(), sender="tax", recipient=spki)
        with pytest.raises(IntegrityError, match="receipt"):
            world.verifier().open(requests[0], sealed)


REFUSED = {"outcome": Result.REFUSED, "check": Check.POLICY, "reason": Reason.DECLINED}


@pytest.mark.parametrize("change", [REFUSED, {"action": Action.ASKED}])
def test_a13_an_answer_that_the_owner_s_log_calls_something_else_is_not_believed(
    world: World, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Else an owner's log could say that it refused what it answered."""
    append = AuditLog.append

    def otherwise(log: AuditLog, action: Action, digest: str, now: Any, **said: Any) -> AuditEntry:
        if action is Action.ANSWERED:
            action, said = change.get("action", action), said | change
            said.pop("action", None)
        return append(log, action, digest, now, **said)

    grant = world.grant(max_uses=5)
    request = world.request(grant)
    with monkeypatch.context() as lying:
        lying.setattr(AuditLog, "append", otherwise)
        reply = world.answer_to(world.sealed(request, grant))
    with pytest.raises(IntegrityError, match="receipt is of another answer"):
        world.verifier().open(request, reply)
    world.witnessed()
    for item in world.told():
        content = sealing.unseal(sealing.USE, item.sealed, sender="tax", key=world.firm.encrypt)
        with pytest.raises(IntegrityError, match="receipt is of another answer"):
            grants.read_notice(world.homes["platform"], content, world.now)


# --- 14 -------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from clients.gate import Gate
from clients.home import Home
from clients.store import Store
from tests.acceptance.consent import NOW, World
folder, frame = map(Path, sys.argv[1:])
home = Home.open(folder / "tax", environment={})
world = World.__new__(World)
store = Store.open(home.database_url)
world.__dict__.update(sequence=1, events=[], now=NOW, homes={"tax": home}, store=store)
world.start()
Gate.one_value = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
world.answer_to(frame.read_bytes())
"""


def test_a14_killed_between_intent_and_answer_the_use_is_gone_and_visible(world: World) -> None:
    grant = world.grant(max_uses=1)
    request = world.request(grant)
    frame = world.folder / "frame"
    frame.write_bytes(world.sealed(request, grant))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(world.folder), str(frame)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr
    world.start()
    assert [e.job for e in world.asked()] == [grant.digest]
    assert world.entries()[-1].action is Action.ASKED  # an intent without an answer
    assert world.uses(grant) == 1
    assert world.audit.verify().problems == ()
    with Refusal(world, Check.BUDGET, Reason.USES):
        assert world.ask(grant).result is Answered.REFUSED
    with Refusal(world, Check.FRESH, Reason.REPLAYED):
        assert world.verified(request, world.answer_to(frame.read_bytes())).result == "refused"


# --- 30, 43, 44, 46, 58 ---------------------------------------------------------------------------


def test_a43_uses_budgets_and_events_follow_from_the_log_alone(world: World) -> None:
    grant, other = world.grant(max_uses=9), world.grant(field="name", max_uses=9)
    for arg in ("1000000", "5000000", "100000"):
        world.ask(grant, arg=arg)
    world.ask(other)
    world.ask(other, arg="别的公司")
    world.change(grant, Change.PAUSE)
    world.refresh()
    state = ConsentState.of(world.entries())
    uses, millibits = world.counters()
    assert (state.uses, state.millibits) == (uses, millibits)
    assert state.uses == {grant.digest: 3, other.digest: 2}
    assert {d for events in state.events.values() for d in events} == {world.events[0].proof_digest}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE consent SET uses = uses - 1",
        "UPDATE leak SET millibits = 0",
        "DELETE FROM leak",
        "DELETE FROM consent_event",
        "UPDATE consent_event SET digest = substr(digest, 2) || 'f'",
    ],
)
def test_a43_a_counter_that_somebody_changed_is_found(
    consent_template: Path, tmp_path: Path, statement: str
) -> None:
    world = copied(consent_template, tmp_path)
    grant = world.grant(max_uses=9)
    world.ask(grant)
    world.change(grant, Change.PAUSE)
    world.refresh()
    assert world.audit.verify().problems == ()
    with world.store.writing() as session:
        session.execute(text(statement))
    assert world.audit.verify().problems
    with pytest.raises(IntegrityError):
        world.audit.require_sound(world.now)
    world.close()


@pytest.mark.parametrize(
    ("seconds", "is_answered"), [(119, True), (-119, True), (121, False), (-121, False)]
)
def test_a44_clocks_may_differ_by_two_minutes(
    world: World, seconds: int, is_answered: bool
) -> None:
    grant = world.grant()
    made = world.now + timedelta(seconds=seconds)
    times = {"created": utc_text(made), "expires": utc_text(made + timedelta(seconds=120))}
    if is_answered:
        assert world.ask(grant, **times).result is Answered.MATCH
    else:
        with Refusal(world, Check.FRESH, Reason.CLOCK):
            assert world.ask(grant, **times).result is Answered.REFUSED


def test_a44_a_request_does_not_live_longer_than_two_minutes(world: World) -> None:
    grant = world.grant()
    with Refusal(world, Check.FRESH, Reason.CLOCK):
        world.ask(grant, expires=utc_text(world.now + timedelta(seconds=121)))


def test_a44_a_clock_set_back_a_day_stops_the_answers(world: World) -> None:
    grant = world.grant()
    request = world.request(grant)
    frame = world.sealed(request, grant)
    world.now -= timedelta(days=1)
    replies = world.provider.answer([Parcel("bank-a", frame)])
    world.now = NOW
    assert world.verified(request, replies[0]).result is Answered.REFUSED
    last = world.refusals()[-1]
    assert (last.check, world.uses(grant)) == (Check.FRESH, 0)


def test_a44_a_time_without_a_zone_or_with_a_leap_second_is_none(world: World) -> None:
    request = world.request(world.grant())
    for text_ in ("2026-11-23T12:00:00", "2026-11-23T23:59:60Z", "2026-11-23T12:00:00+00:00"):
        with pytest.raises(ValueError, match="created"):
            VerificationRequest.model_validate(request.model_dump() | {"created": text_})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda data: data.replace(b'"v":1', b'"v":1,"v":1', 1),
        lambda data: data.replace(b'"v":1', b'"v":1.0', 1),
        lambda data: data.replace(b'"v":1', b'"v":1,"x":1', 1),
        lambda data: data.replace(b'"v":1', b'"v":9007199254740993', 1),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: b"[" * 10_000,
        lambda data: data + b" ",
        lambda data: b"",
    ],
)
def test_a46_other_ways_to_write_a_request_are_refused(
    world: World, wrong: Callable[[bytes], bytes]
) -> None:
    grant = world.grant()
    payload = wrong(world.request(grant).payload())
    key = world.homes["bank-a"].key(Usage.REQUEST)
    kind = "application/vnd.lianmo.verification-request.v1+json"
    signature = key.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload))
    envelope = Envelope(
        payload_type=kind,
        payload=payload,
        signatures=(Signature(keyid=key.key_id, alg=key.alg, sig=signature),),
    )
    with Refusal(world, Check.ENVELOPE, Reason.INTEGRITY):
        world.answer_to(world.seal(Ask(request=envelope, grant=grant).to_bytes(), "bank-a"))


def test_a50_a_revoked_key_asks_nothing_new_and_what_it_asked_before_stands(world: World) -> None:
    """The request key of a bank, at the bureau that knows its newest card."""
    grant = world.grant(max_uses=5)
    before = world.request(grant)
    answered = world.answer_to(world.sealed(before, grant))
    bank, old = world.homes["bank-a"], world.homes["bank-a"].key(Usage.REQUEST)
    audit = AuditLog(bank, world.stores["bank-a"])
    keys.revoke(bank, audit, "request", "a backup was lost", world.now, replace=True)
    world.homes["tax"].trust_card(bank.card())
    with Refusal(world, Check.VERIFIER, Reason.SIGNER):
        world.answer_to(world.sealed(world.request(grant), grant, key=old))
    assert world.ask(grant).result is Answered.MATCH  # its new key
    reply = world.verifier().open(before, answered)[1]
    assert reply.receipt is not None
    assert verify_receipt(reply.receipt, bank.trust()).org == "tax"
    asked = next(entry for entry in world.asked() if entry.object == before.digest())
    receipt = world.audit.receipt(asked.seq)
    assert verify_receipt(receipt, bank.trust()).entry == asked


def test_a58_the_subjects_history_is_the_union_of_the_receipts(world: World) -> None:
    grant = world.grant(max_uses=9)
    for arg in ("1000000", "5000000"):
        frame = world.sealed(world.request(grant, arg=arg), grant)
        world.provider.answer([Parcel("bank-a", frame)])
    world.ask(grant, arg="1")  # refused: no use, no receipt
    world.witnessed()
    seqs = set()
    for item in world.told():
        content = sealing.unseal(sealing.USE, item.sealed, sender="tax", key=world.firm.encrypt)
        notice = UseNotice.model_validate_json(content)
        assert grants.read_notice(world.homes["platform"], content, world.now) == notice
        seqs.add(verify_receipt(notice.receipt, world.homes["platform"].trust()).entry.seq)
    answered = {
        e.seq for e in world.entries() if e.action is Action.ANSWERED and e.job == grant.digest
    }
    assert seqs == {s for s in answered if world.audit.entry(s).outcome is not Result.REFUSED}
    assert len(seqs) == world.uses(grant) == 2


def test_the_sites_own_policy_can_only_narrow(consent_template: Path, tmp_path: Path) -> None:
    shutil.copytree(consent_template, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "tax" / "config.toml").open("a") as config:
        config.write('deny_fields = ["firms/revenue"]\n')
    world = World(tmp_path)
    with Refusal(world, Check.POLICY, Reason.DECLINED):
        world.ask(world.grant())
    assert world.ask(world.grant(field="name")).result is Answered.MATCH
    world.close()


def test_no_value_subject_or_threshold_stands_in_a_leaf_or_log_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        grant = world.grant(max_uses=3)
        world.ask(grant, arg="1000000")
        world.ask(grant, arg="12345")
        world.ask(world.grant(field="name"))
    leaves = b"".join(entry.payload() for entry in world.entries())
    for secret in (FIRM, "1000000", "12345", str(REVENUE), "厦门", *[c.decode() for c in CODES]):
        assert secret.encode() not in leaves
        assert secret not in caplog.text


def test_the_reason_of_a_refusal_stays_in_the_log(world: World) -> None:
    request = world.request(grant := world.grant(), arg="12345")
    answer = world.verified(request, world.answer_to(world.sealed(request, grant)))
    told = answer.model_dump(exclude_none=True)
    assert set(told) == {"v", "org", "verifier", "request", "created", "result"}
    assert issubclass(Denied, Exception)


def test_two_processes_of_one_home_count_together(world: World) -> None:
    """The live process and a command at once: the lock is the home's, not the object's."""
    grant = world.grant(max_uses=1)
    other = World.__new__(World)
    other.__dict__.update(world.__dict__)
    other.start()
    frames = [world.sealed(world.request(grant), grant) for _ in range(2)]
    threads = [
        threading.Thread(target=who.answer_to, args=(frame,))
        for who, frame in zip((world, other), frames, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.uses(grant) == 1
