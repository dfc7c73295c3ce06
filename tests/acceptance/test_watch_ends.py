"""A bank ends a watch: the owner is told, looks no more, and its log says so."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from clients.audit import AuditLog
from clients.ending import Endings
from clients.store import AlertRow, WatchRow
from clients.verification import Parcel
from clients.watcher import UNANSWERED, UNCONFIRMED, Watcher
from clients.watching import REMOVED
from federation import sealing
from federation.audit import Action, AuditEntry, Check, Reason, Result, verify_receipt
from federation.envelope import sign
from federation.errors import IntegrityError, Unavailable
from federation.objects import Usage, utc_text
from federation.verification import WINDOW
from federation.watch import EndNotice, EndReply, WatchEnd, WatchEnded
from tests.acceptance.scores import BANK, CODES
from tests.acceptance.watches import WatchWorld


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchWorld]:
    world = WatchWorld(tmp_path_factory.mktemp("ends"), "scorecard")
    yield world
    for org in ("power", BANK):
        assert AuditLog(world.homes[org], world.stores[org]).verify().problems == ()
    world.close()


@pytest.fixture
def world(made: WatchWorld) -> WatchWorld:
    with made.stores["power"].writing(WatchRow, AlertRow) as session:
        for row in session.scalars(select(WatchRow).where(WatchRow.ended.is_(None))):
            row.ended = "test"
    made.is_away = made.is_lost = False
    made.change = lambda org, reply: reply
    made.watcher.tell_ends()
    made.months(0)
    return made


def entries(world: WatchWorld, action: Action) -> list[AuditEntry]:
    log = AuditLog(world.homes["power"], world.stores["power"])
    return [entry for entry in log.entries() if entry.action is action]


def test_a_removed_watch_is_looked_at_no_more_and_the_receipt_says_so(world: WatchWorld) -> None:
    watched = world.watch()
    looks = len(entries(world, Action.WATCHED))
    found = world.watcher.remove(watched.digest)
    assert (found.ended, found.is_told, world.ended(watched)) == (REMOVED, True, REMOVED)
    assert found.end_receipt is not None
    proven = verify_receipt(found.end_receipt, world.homes[BANK].trust())
    assert (proven.org, proven.entry.action) == ("power", Action.WATCH_ENDED)
    assert (proven.entry.object, proven.entry.job) == (watched.digest, watched.request.grant)
    assert world.months(3) == 0
    assert len(entries(world, Action.WATCHED)) == looks


def test_an_end_that_is_lost_is_told_later_and_counts_once(world: WatchWorld) -> None:
    watched = world.watch()
    before = len(entries(world, Action.WATCH_ENDED))
    world.is_lost = True
    found = world.watcher.remove(watched.digest)
    assert (found.ended, found.is_told, world.ended(watched)) == (REMOVED, False, None)
    assert world.watcher.tell_ends() == 0
    world.is_lost = False
    assert world.watcher.tell_ends() == 1
    assert world.watcher.tell_ends() == 0
    assert world.watcher.remove(watched.digest).is_told
    assert world.ended(watched) == REMOVED
    assert len(entries(world, Action.WATCH_ENDED)) == before + 1


def test_an_answer_that_is_lost_costs_no_second_entry(world: WatchWorld) -> None:
    watched = world.watch()
    before = len(entries(world, Action.WATCH_ENDED))
    world.change = lambda org, reply: b""
    assert not world.watcher.remove(watched.digest).is_told
    assert world.ended(watched) == REMOVED  # it has arrived
    world.change = lambda org, reply: reply
    assert world.watcher.tell_ends() == 1
    assert len(entries(world, Action.WATCH_ENDED)) == before + 1
    _, frame = world.frames[-1]
    world.ask_sealed("power", frame)  # the carrier brings it twice
    assert len(entries(world, Action.WATCH_ENDED)) == before + 1


def test_a_sign_up_whose_answer_is_lost_is_no_watch_on_either_side(world: WatchWorld) -> None:
    world.change = lambda org, reply: b""
    with pytest.raises(IntegrityError, match="does not open"):
        world.watch()
    world.change = lambda org, reply: reply
    (watched,) = [item for item in world.watcher.all() if item.ended == UNANSWERED]
    assert (watched.is_told, world.ended(watched)) == (False, None)  # it is kept there
    assert world.watcher.tell_ends() == 1
    assert world.ended(watched) == REMOVED
    assert world.months(2) == 0
    assert world.watcher.get(watched.digest).is_told


def test_a_sign_up_that_a_crash_cut_off_is_no_watch_on_either_side(world: WatchWorld) -> None:
    def crash(org: str, reply: bytes) -> bytes:
        raise KeyboardInterrupt

    world.change = crash
    with pytest.raises(KeyboardInterrupt):
        world.watch()
    world.change = lambda org, reply: reply
    (watched,) = [item for item in world.watcher.all() if item.ended == UNCONFIRMED]
    assert world.ended(watched) is None  # it is kept there
    assert world.watcher.tell_ends() == 0  # as far as this process knows it is on its way
    world.now += WINDOW + timedelta(seconds=1)
    world.refresh()
    assert world.watcher.tell_ends() == 1
    assert (world.watcher.get(watched.digest).ended, world.ended(watched)) == (UNANSWERED, REMOVED)
    assert world.months(2) == 0


def test_a_watch_that_is_removed_while_it_is_signed_up_stays_removed(
    world: WatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = world.ask_sealed

    def removed(provider: str, sealed: bytes) -> bytes:
        (one,) = [item for item in world.watcher.all() if item.ended == UNCONFIRMED]
        monkeypatch.undo()
        reply = carry(provider, sealed)
        world.watcher.remove(one.digest)
        return reply

    monkeypatch.setattr(world, "ask_sealed", removed)
    watched = world.watch()
    assert (watched.ended, watched.is_told, world.ended(watched)) == (REMOVED, True, REMOVED)


def test_an_owner_that_answers_nothing_holds_the_bank_up_once_a_round(
    world: WatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [world.watch().digest for _ in range(3)]
    world.is_lost = True
    assert not any(world.watcher.remove(digest).is_told for digest in digests)
    world.is_lost, time = False, [0.0]
    asked = []

    def silent(provider: str, sealed: bytes) -> bytes:
        asked.append(provider)
        time[0] += 20
        raise Unavailable("did not answer in time", party=provider)

    bank, store = world.homes[BANK], world.stores[BANK]
    monkeypatch.setattr(world, "ask_sealed", silent)
    watcher = Watcher(bank, store, world, world.clock, clock=lambda: time[0])
    assert (watcher.tell_ends(), asked) == (0, ["power"])
    monkeypatch.undo()
    assert watcher.tell_ends() == 3


def test_the_bank_takes_no_alert_while_the_owner_is_still_to_be_told(world: WatchWorld) -> None:
    watched = world.watch()
    world.is_lost = True
    world.watcher.remove(watched.digest)
    world.is_lost = False
    assert world.months(2) == 1  # the owner does not know yet
    assert world.watcher.alerts(watched.digest) == []
    assert world.ended(watched) == REMOVED  # it does now


def test_an_alert_that_waits_does_not_leave_after_the_end(world: WatchWorld) -> None:
    watched = world.watch()
    world.is_away = True
    assert world.months(2) == 1
    world.watcher.remove(watched.digest)
    world.is_away = False
    frames = len(world.frames)
    assert world.watchman().deliver() == 0
    assert len(world.frames) == frames
    assert world.watcher.alerts(watched.digest) == []


def test_an_end_in_the_middle_of_a_round_raises_no_alert(
    world: WatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives between the look and the alert."""
    from clients import watching

    watched, look = world.watch(), watching._look

    def then_ends(*arguments: Any) -> Any:
        found = look(*arguments)
        world.watcher.remove(watched.digest)
        return found

    monkeypatch.setattr(watching, "_look", then_ends)
    world.is_away = True
    assert world.months(2) == 0
    with world.stores["power"].reading() as session:
        alerts = session.scalars(select(AlertRow).where(AlertRow.watch == watched.digest)).all()
    assert alerts == []


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_watch_ends_with_its_grant_on_both_sides(world: WatchWorld, end: str) -> None:
    grant = world.watch_grant(expires=utc_text(world.now + timedelta(hours=2)))
    watched = world.watch(grant)
    before = len(entries(world, Action.WATCH_ENDED))
    looks = len(entries(world, Action.WATCHED))
    if end == "revoked":
        world.revoke(grant)
        bank = world.homes[BANK], world.stores[BANK]
        from clients import grants

        grants.take_event(*bank, world.events[-1], world.now)
    else:
        world.now += timedelta(hours=3)
    assert world.months(3) == 0
    found = entries(world, Action.WATCH_ENDED)[before:]
    reason = Reason.REVOKED if end == "revoked" else Reason.EXPIRED
    assert [(e.object, e.reason) for e in found] == [(watched.digest, reason)]
    assert len(entries(world, Action.WATCHED)) == looks
    assert world.ended(watched) == reason.value
    assert world.watcher.get(watched.digest).ended == end
    frames = len(world.frames)
    assert world.watcher.tell_ends() == 0  # there is nobody left to tell
    assert len(world.frames) == frames


def end_of(world: WatchWorld, watch: str, **changes: Any) -> WatchEnd:
    plain = {
        "verifier": BANK,
        "provider": "power",
        "watch": watch,
        "created": utc_text(world.now),
        "reply_key": world.homes[BANK].key(Usage.ENCRYPT).key_id,
    }
    return WatchEnd.model_validate(plain | changes)


def sent(world: WatchWorld, end: WatchEnd, signer: str = BANK, **how: Any) -> EndReply | None:
    """What becomes of an end that a node would not send; None where there is no answer."""
    usage, sender = how.get("usage", Usage.REQUEST), how.get("sender", signer)
    notice = EndNotice(end=sign(end, world.homes[signer].key(usage)))
    keys = world.homes["power"].own().of_usage(Usage.ENCRYPT)
    recipient = base64.b64decode(keys[-1].spki)
    sealed = sealing.seal(sealing.ASK, notice.to_bytes(), sender=sender, recipient=recipient)
    reply = world.carried(sender, "power", sealed)
    if not reply:
        return None
    key = world.homes[sender].key(Usage.ENCRYPT)
    return EndReply.from_bytes(sealing.unseal(sealing.ANSWER, reply, sender="power", key=key))


@pytest.mark.parametrize(
    ("changes", "how", "check"),
    [
        ({}, {"watch": "0" * 64}, Check.PARTIES),
        ({"verifier": "tax"}, {"signer": "tax"}, Check.VERIFIER),  # it has no request key
        ({}, {"signer": BANK, "sender": "tax"}, Check.VERIFIER),
        ({"verifier": "tax"}, {}, Check.VERIFIER),
        ({"provider": "tax"}, {}, Check.VERIFIER),
        ({}, {"usage": Usage.RUN}, Check.VERIFIER),
    ],
    ids=[
        "no such watch",
        "no bank",
        "another sender",
        "another name",
        "another owner",
        "a run key",
    ],
)
def test_nobody_else_ends_a_watch(
    world: WatchWorld, changes: dict[str, Any], how: dict[str, Any], check: Check
) -> None:
    watched = world.watch()
    before = len(entries(world, Action.WATCH_ENDED))
    if how.get("signer") == "tax":
        how = how | {"usage": Usage.ANSWER}
    named = how.get("watch", watched.digest)
    reply = sent(world, end_of(world, named, **changes), **how)
    assert reply is not None
    assert reply.receipt is None
    assert reply.ended.unverified(WatchEnded).entry is None
    (entry,) = entries(world, Action.WATCH_ENDED)[before:]
    assert (entry.outcome, entry.check) == (Result.REFUSED, check)
    assert world.ended(watched) is None
    assert world.months(2) == 1


def test_another_bank_s_end_is_as_one_of_no_watch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A bank cannot tell whether another one watches, nor end that."""

    class TwoBanks(WatchWorld):
        kinds = WatchWorld.kinds | {"bank-b": ("bank", CODES[1].decode())}

    world = TwoBanks(tmp_path_factory.mktemp("two"), "scorecard")
    watched = world.watch()
    key = world.homes["bank-b"].key(Usage.ENCRYPT).key_id
    sizes = []
    for digest in (watched.digest, "0" * 64):
        end = end_of(world, digest, verifier="bank-b", reply_key=key)
        reply = sent(world, end, "bank-b")
        assert reply is not None
        sizes.append(len(reply.to_bytes()))
    assert sizes[0] == sizes[1]
    assert world.ended(watched) is None
    world.close()


@pytest.mark.parametrize("field", ["org", "verifier", "end", "entry", "signer", "receipt"])
def test_an_answer_that_is_not_the_owner_s_word_on_this_end_counts_for_nothing(
    world: WatchWorld, field: str
) -> None:
    watched, other = world.watch(), world.watch()
    done = world.watcher.remove(other.digest)
    assert done.end_receipt is not None
    bank = world.homes[BANK].key(Usage.ENCRYPT)

    def forge(org: str, sealed: bytes) -> bytes:
        reply = EndReply.from_bytes(sealing.unseal(sealing.ANSWER, sealed, sender=org, key=bank))
        said = reply.ended.unverified(WatchEnded)
        values = {"org": "tax", "verifier": "tax", "end": "0" * 64, "entry": 1}
        key = world.homes["tax" if field in ("org", "signer") else "power"].key(Usage.ANSWER)
        if field in values:
            said = said.model_copy(update={field: values[field]})
        receipt = done.end_receipt if field == "receipt" else reply.receipt
        made = EndReply(ended=sign(said, key), receipt=receipt)
        return sealing.seal(sealing.ANSWER, made.to_bytes(), sender=org, recipient=bank.spki)

    world.change = forge
    assert not world.watcher.remove(watched.digest).is_told
    world.change = lambda org, reply: reply
    assert world.watcher.tell_ends() == 1


def test_no_such_watch_is_believed_once_the_sign_up_cannot_be_on_its_way(world: WatchWorld) -> None:
    watched = world.watch()
    with world.stores["power"].writing(WatchRow) as session:
        session.delete(session.get_one(WatchRow, watched.digest))
    assert not world.watcher.remove(watched.digest).is_told
    world.now += timedelta(minutes=7)
    assert world.watcher.tell_ends() == 1
    found = world.watcher.get(watched.digest)
    assert (found.is_told, found.end_receipt) == (True, None)


def test_many_ends_cost_the_questions_beside_them_one_write(
    world: WatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, writes = [world.watch() for _ in range(3)], []
    write = AuditLog._write

    def counted(log: AuditLog, note: str) -> None:
        writes.append(note)
        write(log, note)

    incoming, bank = world.incoming["power"], world.homes[BANK]
    named = [*(item.digest for item in watched), *(f"{number:064x}" for number in range(9))]
    parcels = []
    for name in named:
        notice = EndNotice(end=sign(end_of(world, name), bank.key(Usage.REQUEST)))
        recipient = world.homes["power"].key(Usage.ENCRYPT).spki
        sealed = sealing.seal(sealing.ASK, notice.to_bytes(), sender=BANK, recipient=recipient)
        parcels.append(Parcel(BANK, sealed))
    monkeypatch.setattr(AuditLog, "_write", counted)
    replies = incoming.answer(parcels)
    assert len(writes) == 1
    key = bank.key(Usage.ENCRYPT)
    told = [
        EndReply.from_bytes(sealing.unseal(sealing.ANSWER, reply, sender="power", key=key))
        for reply in replies
    ]
    assert [reply.receipt is not None for reply in told] == [True] * 3 + [False] * 9
    assert [world.ended(item) for item in watched] == [REMOVED] * 3


def test_an_end_that_fails_takes_no_other_with_it(
    world: WatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, other = world.watch(), world.watch()
    bank, require = world.homes[BANK], Endings._require_kept

    def fails(endings: Endings, end: WatchEnd) -> None:
        if end.watch == other.digest:
            raise RuntimeError("a bug")
        require(endings, end)

    monkeypatch.setattr(Endings, "_require_kept", fails)
    parcels = []
    for name in (other.digest, watched.digest):
        notice = EndNotice(end=sign(end_of(world, name), bank.key(Usage.REQUEST)))
        recipient = world.homes["power"].key(Usage.ENCRYPT).spki
        sealed = sealing.seal(sealing.ASK, notice.to_bytes(), sender=BANK, recipient=recipient)
        parcels.append(Parcel(BANK, sealed))
    replies = world.incoming["power"].answer(parcels)
    assert [bool(reply) for reply in replies] == [False, True]
    assert (world.ended(other), world.ended(watched)) == (None, REMOVED)


def test_an_end_looks_like_a_question_and_its_answer_like_one(world: WatchWorld) -> None:
    sizes: list[tuple[int, int]] = []

    def see(org: str, reply: bytes) -> bytes:
        sizes.append((len(world.frames[-1][1]), len(reply)))
        return reply

    world.change = see
    watched = world.watch()
    world.watcher.remove(watched.digest)
    sent(world, end_of(world, "0" * 64))
    assert len(sizes) == 3
    assert len(set(sizes)) == 1
