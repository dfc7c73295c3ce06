"""Receipts that travelled inside answers are completed once witnesses have cosigned: by whom they
were given to, from who gave them, and from nobody else (docs/adr/0016)."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from clients import grants
from clients.audit import AuditLog
from clients.completing import Completing
from clients.consent import Consents
from clients.forgetting import forget_old
from clients.home import Home
from clients.receipt_desk import ReceiptDesk
from clients.scorer import Wanted as ScoreWanted
from clients.store import EnquiryRow, Store, UseOutboxRow, opened
from clients.use_notices import UseNotices
from clients.verification import Parcel
from clients.verifier import Enquiry, Wanted
from clients.witness_book import Verdict, WitnessBook
from federation import sealing
from federation.audit import Action, Check, Reason, Receipt, Result, verify_receipt
from federation.catalogue import Assurance, Question
from federation.completion import (
    AT_ONCE,
    ReceiptsAnswer,
    ReceiptsRequest,
    Shown,
    check_answer,
    shown_by,
)
from federation.consent_api import NoticeBody, NoticeEntry, Notices
from federation.enquiry import Comparison
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, LianmoError, Refused
from federation.grants import BySubject, Use, UseNotice
from federation.identity import PrivateKey
from federation.objects import Usage, utc_text
from federation.trust import TrustStore
from protocols import merkle
from tests.acceptance.consent import FIRM, Box, Firm, World, cosigned_by, take_cosigned
from tests.acceptance.scores import BANK
from tests.acceptance.watches import WatchWorld


class Ways:
    """A bank's carrier to questions and desk; `change` is a coordinator in between."""

    def __init__(self, world: World, bank: str = "bank-a") -> None:
        self.world, self.bank = world, bank
        self.desk = ReceiptDesk(world.homes["tax"], world.store, lambda: world.now)
        self.frames: list[tuple[bytes, bytes]] = []

    def change(self, reply: bytes) -> bytes:
        return reply

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        assert provider == "tax"
        if not sealing.is_receipts(sealed):
            return self.world.answer_to(sealed, self.bank)
        reply = self.change(self.desk.answer(Parcel(self.bank, sealed)))
        self.frames.append((sealed, reply))
        return reply

    def completing(self, **how: Any) -> Completing:
        home, store = self.world.homes[self.bank], self.world.stores[self.bank]
        return Completing(home, store, self, lambda: self.world.now, **how)


def held(world: World, bank: str = "bank-a", **changes: Any) -> BySubject:
    grant = world.grant(grantee=bank, **({"max_uses": 50} | changes))
    grants.hold(world.homes[bank], world.stores[bank], grant, world.now)
    return grant


def asked(world: World, grant: BySubject, bank: str = "bank-a", arg: str = "1000000") -> Enquiry:
    """A question of the bank's own node, with its answer kept."""
    wanted = Wanted(grant.digest, "tax", "firms", "revenue", Question.COMPARE, Comparison.GE, arg)
    verifier = world.verifier(bank)
    return verifier.ask(wanted)


def receipt_of(world: World, enquiry: Enquiry, bank: str = "bank-a") -> Receipt:
    found = world.verifier(bank).get(enquiry.id).receipt
    assert found is not None
    return found


def due(world: World, bank: str = "bank-a") -> list[str]:
    with world.stores[bank].reading() as session:
        return [org for org in session.scalars(select(EnquiryRow.due_from)) if org is not None]


def refusals(world: World) -> list[tuple[Check | None, Reason | None]]:
    return [(entry.check, entry.reason) for entry in world.refusals()]


def request(world: World, *entries: Shown, bank: str = "bank-a", **changes: Any) -> ReceiptsRequest:
    plain = {
        "verifier": bank,
        "provider": "tax",
        "created": utc_text(world.now),
        "expires": utc_text(world.now + timedelta(seconds=60)),
        "reply_key": world.homes[bank].key(Usage.ENCRYPT).key_id,
        "entries": entries,
    }
    return ReceiptsRequest.model_validate(plain | changes)


def shown(world: World, seq: int) -> Shown:
    """Any entry of the log, as if one had its receipt."""
    leaf = merkle.leaf_hash(world.audit.entry(seq).payload())
    return Shown(entry=seq, leaf=leaf.hex(), size=len(world.entries()))


def frame(world: World, asking: ReceiptsRequest, key: PrivateKey | None = None) -> bytes:
    signed = sign(asking, key or world.homes[asking.verifier].key(Usage.REQUEST))
    recipient = base64.b64decode(world.homes["tax"].own().of_usage(Usage.ENCRYPT)[0].spki)
    content, sender = signed.to_json(), asking.verifier
    return sealing.seal(sealing.RECEIPTS, content, sender=sender, recipient=recipient)


def read_answer(world: World, reply: bytes, bank: str = "bank-a") -> ReceiptsAnswer:
    key = world.homes[bank].key(Usage.ENCRYPT)
    content = sealing.unseal(sealing.PROOFS, reply, sender="tax", key=key)
    return Envelope.from_json(content).unverified(ReceiptsAnswer)


# --- what it is for -------------------------------------------------------------------------------


def test_the_bank_gets_the_cosigned_receipts_of_its_answers(world: World) -> None:
    grant, ways = held(world), Ways(world)
    found = [asked(world, grant, arg=arg) for arg in ("1000000", "5000000")]
    before = [receipt_of(world, one) for one in found]
    assert {one.status for one in before} == {"uncosigned"}
    assert due(world) == ["tax", "tax"]
    assert ways.completing().round() == 0  # nobody has seen the log yet
    assert due(world) == ["tax", "tax"]
    world.witnessed()
    entries = len(world.entries())
    assert ways.completing().round() == 2
    assert due(world) == []
    alone = TrustStore([world.homes[org].card() for org in ("tax", "licence", "bank-b", "bank-a")])
    for one, old in zip(found, before, strict=True):
        receipt = receipt_of(world, one)
        proven = verify_receipt(receipt, alone)
        assert proven.status == "cosigned"
        assert {org for org, _ in proven.witnesses} == {"licence", "bank-b"}
        assert receipt.leaf == old.leaf
        assert one.answer is not None
        assert proven.entry.object == one.answer.digest()
    assert len(world.entries()) == entries  # or a log that is fetched from would never rest
    assert ways.completing().round() == 0
    assert len(ways.frames) == 2  # nothing is due any more: nobody is asked


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite as it is built by most: what is deleted or changed stays where it lay."""
    connect = sqlite3.dbapi2.connect

    def connected(*words: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(*words, **more)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    monkeypatch.setattr(sqlite3.dbapi2, "connect", connected)


@pytest.mark.usefixtures("careless")
def test_no_older_copy_of_a_forgotten_answer_is_left_on_the_disk(world: World) -> None:
    """Its row was written three times: with the question, with the answer, with the receipt."""
    grant, ways = held(world), Ways(world)
    count = len([asked(world, grant, arg=arg) for arg in ("1000000", "5000000")])
    world.witnessed()
    assert ways.completing().round() == count
    home, store = world.homes["bank-a"], world.stores["bank-a"]
    with store.reading() as session:
        rows = session.scalars(select(EnquiryRow)).all()
        parts = [part for row in rows for part in (row.question, row.answer, row.receipt)]
        marks = [part[300:340] for part in parts if part is not None]
    file = Path(home.database_url.removeprefix("sqlite:///"))

    def on_disk() -> bytes:
        return b"".join(part.read_bytes() for part in file.parent.glob(file.name + "*"))

    assert len(marks) == 3 * count
    assert all(mark in on_disk() for mark in marks)
    world.now += timedelta(days=40)
    assert forget_old(home, store, world.now) == count
    assert not any(mark in on_disk() for mark in marks)


def test_many_receipts_come_in_batches_and_every_frame_has_one_size(world: World) -> None:
    grant, ways = held(world), Ways(world)
    for _ in range(AT_ONCE + 3):
        asked(world, grant)
    world.witnessed()
    assert ways.completing().round() == AT_ONCE + 3
    assert len(ways.frames) == 2
    one = Ways(world)
    asked(world, grant)
    assert one.completing().round() == 0  # not cosigned yet: the reply is as long
    stranger = one.desk.answer(Parcel("bank-b", b"x" * len(one.frames[0][0])))
    sizes = {(len(asking), len(reply)) for asking, reply in ways.frames + one.frames}
    assert len(sizes) == 1
    assert len(stranger) == sizes.pop()[1]


def test_what_is_asked_for_is_old_enough_and_fruitless_rounds_grow_rare(world: World) -> None:
    grant, ways, clock = held(world), Ways(world), [0.0]
    asked(world, grant)
    completing = ways.completing(after_s=5, clock=lambda: clock[0])
    assert completing.round() == 0
    assert ways.frames == []
    world.now += timedelta(seconds=6)
    for seconds in range(60):
        clock[0] = 1000.0 + seconds
        completing.round()
    assert len(ways.frames) == 5  # and again after 2, 4, 8, 16 s
    world.witnessed()
    clock[0] += 300
    assert completing.round() == 1


def test_an_owner_that_is_away_keeps_nobody_else_waiting_and_loses_nothing(world: World) -> None:
    grant, ways = held(world), Ways(world)
    asked(world, grant)
    world.witnessed()
    ways.change = lambda reply: reply[:-1] + bytes([reply[-1] ^ 1])  # type: ignore[method-assign] # a coordinator
    assert ways.completing().round() == 0
    assert due(world) == ["tax"]
    assert WitnessBook(world.stores["bank-a"]).alarms() == []  # whoever spoilt it: no accusation
    assert Ways(world).completing().round() == 1


# --- whose receipts -------------------------------------------------------------------------------


def test_somebody_else_s_entry_is_refused_and_entered(world: World) -> None:
    mine, theirs = held(world), held(world, "bank-b")
    own = shown_by(receipt_of(world, asked(world, mine)))
    found = world.verifier("bank-b")
    found._carrier = Ways(world, "bank-b")
    wanted = Wanted(
        theirs.digest, "tax", "firms", "revenue", Question.COMPARE, Comparison.GE, "100000"
    )
    other = found.ask(wanted).receipt
    assert other is not None
    size = len(world.entries())
    intent = shown(world, own.entry - 1)
    unknown = Shown(entry=size + 7, leaf="0" * 64, size=size + 9)
    # in one's own grant, and known to be there, but not what it says: an alert that was withheld
    world.ask(mine, arg="5000000")
    guessed = Shown(entry=len(world.entries()) - 1, leaf="0" * 64, size=len(world.entries()))
    world.witnessed()
    asking = request(world, own, shown_by(other), intent, unknown, guessed)
    before = len(refusals(world))
    reply = read_answer(world, Ways(world).desk.answer(Parcel("bank-a", frame(world, asking))))
    assert [proof.entry for proof in reply.proofs] == [own.entry]
    assert {*reply.refused, own.entry} == {item.entry for item in asking.entries}
    assert refusals(world)[before:] == [(Check.PARTIES, Reason.GRANTEE)]
    # no leaf goes out, not even of one's own entry
    assert other.leaf not in reply.model_dump_json()


def test_a_refused_question_has_no_receipt_to_ask_for(world: World) -> None:
    grant = held(world, field="revenue")
    world.ask(grant, arg="1")  # off the grid
    refused = world.refusals()[-1]
    world.witnessed()
    asking = request(world, shown(world, refused.seq))
    reply = read_answer(world, Ways(world).desk.answer(Parcel("bank-a", frame(world, asking))))
    assert reply.proofs == ()
    assert reply.refused == (refused.seq,)


@pytest.mark.parametrize(
    ("how", "check"),
    [
        ({"created": -200, "expires": -140}, Check.VERIFIER),
        ({"created": 0, "expires": 200}, Check.VERIFIER),
        ({"created": 200, "expires": 260}, Check.VERIFIER),
        ({"provider": "licence"}, Check.VERIFIER),
    ],
)
def test_a_stale_or_misdirected_request_gets_nothing(
    world: World, how: dict[str, Any], check: Check
) -> None:
    own = shown_by(receipt_of(world, asked(world, held(world))))
    world.witnessed()
    said = {
        key: utc_text(world.now + timedelta(seconds=value)) if isinstance(value, int) else value
        for key, value in how.items()
    }
    reply = Ways(world).desk.answer(Parcel("bank-a", frame(world, request(world, own, **said))))
    assert (read_answer(world, reply).proofs, read_answer(world, reply).note) == ((), None)
    assert refusals(world)[-1][0] is check


def test_who_signs_or_carries_in_another_s_name_gets_nothing(world: World) -> None:
    own = shown_by(receipt_of(world, asked(world, held(world))))
    world.witnessed()
    desk, asking = Ways(world).desk, request(world, own)
    forged = frame(world, asking, world.homes["bank-b"].key(Usage.REQUEST))
    assert read_answer(world, desk.answer(Parcel("bank-a", forged))).proofs == ()
    good = frame(world, asking)
    carried = desk.answer(Parcel("bank-b", good))  # under bank-b's name the frame does not open
    assert read_answer(world, carried, "bank-b").proofs == ()
    assert refusals(world)[-2:] == [
        (Check.VERIFIER, Reason.INTEGRITY),
        (Check.SEALED, Reason.INTEGRITY),
    ]
    assert desk.answer(Parcel("nobody", good)) == b""
    # what the coordinator keeps of a good one is of no use to it
    reply = desk.answer(Parcel("bank-a", good))
    with pytest.raises(IntegrityError):
        sealing.unseal(
            sealing.PROOFS, reply, sender="tax", key=world.homes["bank-b"].key(Usage.ENCRYPT)
        )
    assert own.entry == read_answer(world, reply).proofs[0].entry


# --- what the bank believes -----------------------------------------------------------------------


def answered(world: World) -> tuple[ReceiptsRequest, Receipt, ReceiptsAnswer]:
    """A good answer, for tests that change it."""
    receipt = receipt_of(world, asked(world, held(world)))
    world.now += timedelta(seconds=1)
    world.ask(world.grant())  # the log goes on
    world.witnessed()
    asking = request(world, shown_by(receipt))
    reply = Ways(world).desk.answer(Parcel("bank-a", frame(world, asking)))
    return asking, receipt, read_answer(world, reply)


def judged(
    world: World,
    asking: ReceiptsRequest,
    receipt: Receipt,
    answer: ReceiptsAnswer,
    who: str = "tax",
) -> Any:
    content = sign(answer, world.homes[who].key(Usage.ANSWER)).to_json()
    trust = world.homes["bank-a"].trust()
    return check_answer(content, asking, [receipt], trust, world.now)[0]


def test_a_forged_answer_is_not_believed_and_accuses_nobody(world: World) -> None:
    asking, receipt, answer = answered(world)
    good = judged(world, asking, receipt, answer)
    assert good.receipt.status == "cosigned"
    for change, error in (
        ({"request": "0" * 64}, IntegrityError),  # to another request
        ({"verifier": "bank-b"}, IntegrityError),
        ({"key_id": "0" * 32}, IntegrityError),
    ):
        with pytest.raises(error):
            judged(world, asking, receipt, answer.model_copy(update=change))
    with pytest.raises(LianmoError):  # signed by another owner
        judged(world, asking, receipt, answer, "licence")
    assert answer.note is not None
    lines = answer.note.splitlines(keepends=True)
    log_line = next(line for line in lines if line.startswith("—") and "/witness " not in line)
    unsigned = answer.note.replace(log_line, "")
    with pytest.raises(IntegrityError):  # a checkpoint that the log has not signed
        judged(world, asking, receipt, answer.model_copy(update={"note": unsigned}))
    uncosigned = "".join(line for line in lines if "/witness " not in line)
    with pytest.raises(Refused, match="cosigned"):
        judged(world, asking, receipt, answer.model_copy(update={"note": uncosigned}))
    one = "".join(line for line in lines if "bank-b/" not in line)
    with pytest.raises(Refused, match="cosigned"):  # by one of the two that have to
        judged(world, asking, receipt, answer.model_copy(update={"note": one}))


def test_a_proof_that_does_not_hold_is_the_owner_s_contradiction(world: World) -> None:
    asking, receipt, answer = answered(world)
    proof = answer.proofs[0]
    for spoilt in (
        proof.model_copy(update={"link": base64.b64encode(b"x" * 32).decode()}),
        proof.model_copy(update={"link": "eHg="}),
        proof.model_copy(update={"path": base64.b64encode(b"x" * 64).decode()}),
    ):
        found = judged(world, asking, receipt, answer.model_copy(update={"proofs": (spoilt,)}))
        assert found.receipt is None
        assert "does not go on" in found.contradiction.what


def fork(world: World, point: merkle.Checkpoint) -> tuple[merkle.Tree, merkle.SignedCheckpoint]:
    """Another history of the tax bureau's log, of the same size, with one entry written anew."""
    leaves = [entry.payload() for entry in world.entries()][: point.size]
    leaves[2] = leaves[2].replace(b"2026", b"2025")
    forked = merkle.Tree([merkle.leaf_hash(leaf) for leaf in leaves])
    other = merkle.Checkpoint(point.origin, len(forked), forked.root())
    key = world.homes["tax"].key(Usage.LOG).secret
    return forked, merkle.sign_checkpoint(other, key)  # type: ignore[arg-type] # Ed25519


def test_a_receipt_of_a_forked_log_is_refused_and_both_notes_are_kept(world: World) -> None:
    """The owner gives the bank an answer in one history, and lets witnesses cosign another."""
    found = asked(world, held(world))
    old = receipt_of(world, found)
    note = old.tlog_proof().signed
    tax, seq = world.homes["tax"], shown_by(old).entry
    forked, signed = fork(world, note.checkpoint)
    bank, store = world.homes["bank-a"], world.stores["bank-a"]

    class Forking(Ways):
        def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
            key = tax.key(Usage.ENCRYPT)
            content = sealing.unseal(sealing.RECEIPTS, sealed, sender="bank-a", key=key)
            asking = Envelope.from_json(content).unverified(ReceiptsRequest)
            path = b"".join(forked.inclusion_proof(seq))
            answer = ReceiptsAnswer.model_validate(
                {
                    "org": "tax",
                    "verifier": "bank-a",
                    "request": asking.digest(),
                    "created": utc_text(world.now),
                    "note": signed.to_text(),
                    "key_id": old.key_id,
                    "proofs": [{"entry": seq, "path": base64.b64encode(path).decode(), "link": ""}],
                }
            )
            return sealing.seal(
                sealing.PROOFS,
                sign(answer, tax.key(Usage.ANSWER)).to_json(),
                sender="tax",
                recipient=bank.key(Usage.ENCRYPT).spki,
            )

    Forking(world).completing().round()
    assert receipt_of(world, found) == old  # the one that was there stays, with what it proves
    (alarm,) = WitnessBook(store).alarms()
    assert alarm.kind is Verdict.FORK
    assert str(note.checkpoint.size) in alarm.ours
    assert alarm.theirs == signed.to_text()
    last = AuditLog(bank, store).entries()[-1]
    assert (last.action, last.outcome) == (Action.FORK_FOUND, Result.REFUSED)
    assert last.object == alarm.digest
    assert due(world) == []  # it is not asked for again


def test_a_receipt_of_another_history_than_the_bank_has_witnessed_is_not_stored(
    world: World,
) -> None:
    found = asked(world, held(world))
    world.witnessed()
    bank, store = world.homes["bank-a"], world.stores["bank-a"]
    size = len(world.entries())
    point = merkle.Checkpoint(world.audit.origin, size, b"\x07" * 32)
    other = merkle.sign_checkpoint(point, world.homes["tax"].key(Usage.LOG).secret)  # type: ignore[arg-type] # Ed25519
    WitnessBook(store).judge(other, world.homes["tax"].own(), {}, world.now)
    Ways(world).completing().round()
    assert receipt_of(world, found).status == "uncosigned"
    (alarm,) = WitnessBook(store).alarms()
    assert alarm.kind is Verdict.FORK
    assert AuditLog(bank, store).entries()[-1].action is Action.FORK_FOUND


# --- the enterprise -------------------------------------------------------------------------------


def notices(world: World) -> list[UseNotice]:
    key = world.firm.encrypt
    found = []
    for item in world.told():
        content = sealing.unseal(sealing.USE, item.sealed, sender="tax", key=key)
        found.append(grants.read_notice(world.homes["platform"], content, world.now))
    return found


def waiting(world: World) -> int:
    with world.store.reading() as session:
        return len(session.scalars(select(UseOutboxRow)).all())


def test_the_firm_is_told_once_the_entry_is_cosigned(world: World) -> None:
    grant = world.grant(max_uses=9)
    for arg in ("1000000", "5000000"):
        world.ask(grant, arg=arg)
    assert notices(world) == []
    assert waiting(world) == 2
    world.start()  # a crash: what is owed stands in the database
    world.witnessed()
    told = notices(world)
    assert [item.receipt.status for item in told] == ["cosigned"] * 2
    uses = [item.use.unverified(Use) for item in told]
    assert [use.result for use in uses] == ["match", "no_match"]
    assert {use.grant for use in uses} == {grant.digest}
    assert waiting(world) == 0
    assert notices(world) == []


def test_where_witnesses_are_late_the_firm_is_told_in_time_and_again(world: World) -> None:
    grant = world.grant(max_uses=9)
    world.ask(grant)
    world.now += timedelta(seconds=59)
    assert notices(world) == []
    world.now += timedelta(seconds=1)
    (first,) = notices(world)
    assert first.receipt.status == "uncosigned"
    assert notices(world) == []  # once
    world.witnessed()
    (second,) = notices(world)
    assert second.receipt.status == "cosigned"
    assert second.use == first.use  # the same signed bytes: it is one use
    assert waiting(world) == 0


def test_a_notice_that_the_coordinator_did_not_take_is_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask(world.grant())
    world.witnessed()
    with monkeypatch.context() as broken:

        def away(*_: Any, **__: Any) -> None:
            raise LianmoError("away")

        broken.setattr("tests.acceptance.consent.Box.reply_sealed", away)
        with pytest.raises(LianmoError, match="away"):
            world.told()
    assert waiting(world) == 1
    assert len(notices(world)) == 1


def test_a_firm_that_knows_no_witness_takes_the_receipt_as_one_without(world: World) -> None:
    world.ask(world.grant())
    world.witnessed()
    content = sealing.unseal(
        sealing.USE, world.told()[0].sealed, sender="tax", key=world.firm.encrypt
    )
    stranger = world.homes["platform"]
    for org in ("licence", "bank-a", "bank-b"):
        stranger.keyring.distrust(org)
    assert grants.read_notice(stranger, content, world.now).receipt.status == "uncosigned"


class Mailbox:
    """A coordinator's mailbox of a firm."""

    def __init__(self) -> None:
        self.items: list[NoticeEntry] = []

    def put(self, *bodies: NoticeBody) -> None:
        start = len(self.items) + 1
        self.items += [
            NoticeEntry(number=number, sender="tax", sealed=body.sealed)
            for number, body in enumerate(bodies, start)
        ]

    def notices(self, mailbox: str, after: int = 0) -> Notices:
        return Notices(items=tuple(item for item in self.items if item.number > after))


@dataclass
class AtHome:
    """The world's firm with a home of its own."""

    home: Home
    store: Store
    box: Mailbox = field(default_factory=Mailbox)

    def history(self, world: World) -> list[str]:
        grants.history(self.home, self.store, self.box, world.now)  # type: ignore[arg-type] # a mailbox is all it needs
        return [item.receipt.status for item in Consents(self.store).uses()]


@pytest.fixture
def firm(world: World, tmp_path: Path) -> Iterator[AtHome]:
    made = Home.create(
        tmp_path / "firm",
        org="firm",
        kind="enterprise",
        name="某公司",
        uscc=FIRM,
        region="厦门市",
        now=world.now - timedelta(days=1),
    )
    for org in ("tax", "licence", "bank-a", "bank-b", "platform"):
        made.trust_card(world.homes[org].card())
    keys = made.key(Usage.GRANT), made.key(Usage.ENCRYPT)
    world.firm = Firm(FIRM, *keys).certified_by(world.homes["licence"], Assurance.A3)
    with opened(made.database_url) as store:
        yield AtHome(made, store)


def test_the_firm_s_history_keeps_one_use_and_its_best_receipt(world: World, firm: AtHome) -> None:
    world.ask(world.grant())
    world.now += timedelta(seconds=60)
    firm.box.put(*world.told())
    assert firm.history(world) == ["uncosigned"]
    world.witnessed()
    firm.box.put(*world.told())
    assert firm.history(world) == ["cosigned"]
    firm.box.put(firm.box.items[0])  # type: ignore[arg-type] # the first once more
    assert firm.history(world) == ["cosigned"]
    (use,) = Consents(firm.store).uses()
    proven = verify_receipt(use.receipt, firm.home.trust())
    assert {org for org, _ in proven.witnesses} == {"licence", "bank-b"}


def test_a_firm_that_is_shown_a_forked_log_keeps_both(world: World, firm: AtHome) -> None:
    world.ask(world.grant())
    world.now += timedelta(seconds=60)
    firm.box.put(*world.told())
    assert firm.history(world) == ["uncosigned"]
    (known,) = Consents(firm.store).uses()
    tax, proof = world.homes["tax"], known.receipt.tlog_proof()
    forked, signed = fork(world, proof.signed.checkpoint)
    witnesses = [world.homes[org] for org in ("licence", "bank-b")]
    whole = cosigned_by(signed, witnesses, tax.trust(), world.now)
    path = merkle.Receipt(proof.index, tuple(forked.inclusion_proof(proof.index)), whole)
    leaf, key_id = known.receipt.leaf_bytes, known.receipt.key_id
    other = UseNotice(use=known.use, receipt=Receipt.of(tax.own(), key_id, leaf, path, True))
    recipient = firm.home.key(Usage.ENCRYPT).spki
    sealed = sealing.seal(sealing.USE, other.to_bytes(), sender="tax", recipient=recipient)
    firm.box.put(NoticeBody(mailbox=sealed[:16].hex(), sealed=sealed))
    assert firm.history(world) == ["uncosigned"]
    (alarm,) = WitnessBook(firm.store).alarms()
    assert (alarm.kind, alarm.theirs) == (Verdict.FORK, whole.to_text())


# --- scores and alerts ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchWorld]:
    made = WatchWorld(tmp_path_factory.mktemp("shared"), "scorecard")
    yield made
    made.close()


@dataclass
class Desks:
    """The bank's carrier to the desks of several owners."""

    world: WatchWorld

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        home, store = self.world.homes[provider], self.world.stores[provider]
        return ReceiptDesk(home, store, self.world.clock).answer(Parcel(BANK, sealed))

    def round(self, *owners: str) -> int:
        for org in owners:
            others = [self.world.homes[o] for o in ("tax", "power", "licence") if o != org]
            owner, store = self.world.homes[org], self.world.stores[org]
            take_cosigned(owner, store, others, self.world.now)
        bank, store = self.world.homes[BANK], self.world.stores[BANK]
        return Completing(bank, store, self, self.world.clock).round()


def test_a_score_s_receipts_are_completed_one_department_after_the_other(
    shared: WatchWorld,
) -> None:
    name = shared.scorer().score(ScoreWanted(shared.grant(), job=shared.manifest.job)).id
    desks = Desks(shared)
    assert desks.round("tax") == 0  # the first that is due is `power`
    assert desks.round("power") == 1
    assert desks.round() == 1
    receipts = shared.scorer().get(name).receipts
    assert {org: item.status for org, item in receipts.items()} == dict.fromkeys(
        ("tax", "power"), "cosigned"
    )
    assert all(verify_receipt(item, shared.homes[BANK].trust()) for item in receipts.values())
    assert desks.round() == 0


def test_an_alert_s_receipt_is_completed_and_the_firm_is_told_of_the_alert(
    shared: WatchWorld,
) -> None:
    shared.months(0)
    watched = shared.watch()
    assert shared.months(2) == 1
    (told,) = shared.watcher.alerts(watched.digest)
    assert told.receipt.status == "uncosigned"
    assert Desks(shared).round("power") == 1
    (again,) = shared.watcher.alerts(watched.digest)
    assert (again.receipt.status, again.alert) == ("cosigned", told.alert)
    verify_receipt(again.receipt, shared.homes[BANK].trust())
    box = Box()
    power, wait = shared.homes["power"], timedelta(seconds=60)
    UseNotices(power, shared.stores["power"], box, shared.clock, wait).round()
    uses = []
    for item in box.notices:
        key = shared.firm.encrypt
        content = sealing.unseal(sealing.USE, item.sealed, sender="power", key=key)
        notice = grants.read_notice(shared.homes["platform"], content, shared.now)
        uses.append(notice.use.unverified(Use))
    alerts = [use for use in uses if use.grant == watched.request.grant]
    assert [use.result for use in alerts] == ["value", "alert"]
