"""A relay that lies, and parties that pretend: what they get is silence, or nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from clients.relay_line import Line
from clients.tls_session import PeerCertificate, TlsSession
from federation.errors import IntegrityError, PartyLost, Unavailable
from federation.relay_frame import WINDOW, Address, Frame, Kind, Report
from tests.relay_parties import (
    JOB,
    OTHER_JOB,
    QUICK,
    forged_leaf,
    honest,
    in_background,
    leaf,
    member,
    memory_relay,
)

MIB = 1 << 20


def transfer(sender: Line, receiver: Line, count: int, size: int) -> None:
    """Numbered messages one way, an answer the other way; order and content are checked."""
    body = random.Random(size).randbytes(size)  # noqa: S311 - test data

    def program() -> None:
        for number in range(count):
            sender.send(number.to_bytes(4) + body)
        assert sender.receive(20) == b"all here"

    with in_background(program):
        for number in range(count):
            assert receiver.receive(20) == number.to_bytes(4) + body
        receiver.send(b"all here")


def test_a_relay_that_drops_frames_is_survived() -> None:
    chance = random.Random(1)  # noqa: S311 - the attacker's dice
    with memory_relay(lambda _, frame: [frame] if chance.random() > 0.2 else []) as relay:
        transfer(relay.line("bank", "tax"), relay.line("tax", "bank"), 60, 40_000)


def test_a_relay_that_repeats_frames_is_survived() -> None:
    with memory_relay(lambda _, frame: [frame, frame, frame]) as relay:
        transfer(relay.line("bank", "tax"), relay.line("tax", "bank"), 40, 100_000)


def test_a_relay_that_reorders_frames_is_survived() -> None:
    chance, kept = random.Random(2), list[Frame]()  # noqa: S311 - the attacker's dice

    def shuffled(sender: str, frame: Frame) -> Iterable[Frame]:
        if sender != "bank" or frame.kind is not Kind.DATA:
            return (frame,)
        kept.append(frame)
        if len(kept) < 3:
            return ()
        chance.shuffle(kept)
        now, kept[:] = kept[:], []
        return now

    with memory_relay(shuffled) as relay:
        transfer(relay.line("bank", "tax"), relay.line("tax", "bank"), 40, 40_000)


def test_a_relay_that_replays_old_frames_is_survived() -> None:
    chance, history = random.Random(3), list[Frame]()  # noqa: S311 - the attacker's dice

    def replaying(sender: str, frame: Frame) -> Iterable[Frame]:
        if sender == "bank" and frame.kind in (Kind.DATA, Kind.ACK, Kind.STATE):
            history.append(frame)
            return (frame, chance.choice(history))
        return (frame,)

    with memory_relay(replaying) as relay:
        transfer(relay.line("bank", "tax"), relay.line("tax", "bank"), 40, 10_000)


def test_a_relay_that_delivers_nothing_holds_no_program_that_was_stopped() -> None:
    """A peer that never came: a withdrawal has to wake who waits to open the channel to it."""

    def silent(sender: str, frame: Frame) -> Iterable[Frame]:
        return []

    with memory_relay(silent) as relay:
        bank = relay.line("bank", "tax")

        def program() -> None:
            with pytest.raises(Unavailable, match="this end of the channel is closed"):
                bank.send(b"a question")

        began = time.monotonic()
        with in_background(program):
            time.sleep(0.2)
            bank.close()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_relay_that_does_all_of_it_in_both_directions_is_survived(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - the attacker's dice
    held: dict[str, list[Frame]] = {"bank": [], "tax": []}

    def lying(sender: str, frame: Frame) -> Iterable[Frame]:
        late = held[sender]
        late.append(frame)
        released = [late.pop(chance.randrange(len(late))) for _ in range(len(late) // 2)]
        again = [frame] if chance.random() < 0.2 else []
        return [item for item in released + again if chance.random() > 0.1]

    with memory_relay(lying) as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        with in_background(lambda: [tax.send(number.to_bytes(900)) for number in range(30)]):
            expected = [number.to_bytes(900) for number in range(30)]
            assert [bank.receive(20) for _ in range(30)] == expected
        transfer(bank, tax, 30, 3000)


@pytest.mark.parametrize("place", [0, 5, 40, -1])
def test_one_changed_byte_ends_the_channel_and_names_the_peer(place: int) -> None:
    armed = threading.Event()

    def flipping(sender: str, frame: Frame) -> Iterable[Frame]:
        if sender == "bank" and frame.kind is Kind.DATA and armed.is_set():
            changed = bytearray(frame.payload)
            changed[place] ^= 1
            frame = replace(frame, payload=bytes(changed))
        return (frame,)

    with memory_relay(flipping) as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        bank.send(b"untouched")
        assert tax.receive(5) == b"untouched"
        armed.set()
        bank.send(b"income of a firm" * 10)
        with pytest.raises(IntegrityError, match=r"bank: the encrypted channel broke") as caught:
            tax.receive(5)
        assert "income" not in str(caught.value)
        armed.clear()
        bank.send(b"more")
        with pytest.raises(IntegrityError, match="bank: "):
            tax.receive(5)  # and it stays ended
        with pytest.raises(IntegrityError, match="tax: the encrypted channel broke"):
            bank.receive(5)  # the alert tells the other end


def test_a_frame_in_another_ones_place_ends_the_channel() -> None:
    """The number in the header is the relay's to forge; the cipher counts for itself."""

    def renumbering(sender: str, frame: Frame) -> Iterable[Frame]:
        if sender == "bank" and frame.kind is Kind.DATA and frame.number > 3:
            return (replace(frame, number=frame.number - 1),)  # one is taken out
        return () if sender == "bank" and frame.number == 3 else (frame,)

    with memory_relay(renumbering) as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        for number in range(4):
            bank.send(bytes([number]) * 100)
        assert tax.receive(5) == b"\0" * 100
        with pytest.raises(IntegrityError, match="bank: the encrypted channel broke"):
            tax.receive(5)


def test_a_changed_handshake_does_not_complete() -> None:
    def flipping(_: str, frame: Frame) -> Iterable[Frame]:
        if frame.kind is Kind.DATA and frame.number == 1:
            changed = bytearray(frame.payload)
            changed[len(changed) // 2] ^= 1
            frame = replace(frame, payload=bytes(changed))
        return (frame,)

    with memory_relay(flipping) as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        with pytest.raises((IntegrityError, PartyLost)):
            bank.send(b"x")
        assert not (bank._established and tax._established)


def test_the_relay_sees_no_byte_of_what_is_sent() -> None:
    canary = b"91310000MA1FL0000X owes 4711 yuan"
    with memory_relay() as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        transfer(bank, tax, 3, 1000)
        for _ in range(20):
            tax.send(canary * 10)
            assert bank.receive(5) == canary * 10
        seen = bytes(relay.seen)
    assert len(seen) > 20 * len(canary) * 10
    for size in (len(canary), 8):
        assert all(canary[i : i + size] not in seen for i in range(len(canary) - size + 1))
    assert member("bank").identity.certificate.encode()[30:60] not in seen
    assert b"(lianmo authority)" not in seen  # certificates travel encrypted as well


def test_equal_messages_do_not_look_equal_to_the_relay() -> None:
    with memory_relay() as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        payloads = list[bytes]()
        relay.tamper = lambda _, frame: (payloads.append(bytes(frame.payload)), (frame,))[1]
        for _ in range(5):
            bank.send(b"the same")
            tax.receive(5)
    sealed = [item for item in payloads if len(item) == len(b"the same") + 8 + 22]
    assert len(set(sealed)) == len(sealed) >= 5


def test_the_right_name_under_another_authority_is_refused() -> None:
    with memory_relay() as relay:
        bank = relay.line("bank", "tax")
        relay.line("tax", "bank", own=member("tax", 1).identity)
        with pytest.raises(IntegrityError, match="tax: its certificate is not issued by"):
            bank.send(b"secret")
        assert b"secret" not in relay.seen


def test_another_certificate_of_the_right_authority_is_refused() -> None:
    """For example an old key of the same organisation, of which somebody has a copy."""
    with memory_relay() as relay:
        bank = relay.line("bank", "tax")
        relay.line("tax", "bank", own=leaf("tax", member("tax").authority))
        with pytest.raises(IntegrityError, match="tax: it showed a certificate other than"):
            bank.send(b"secret")


def test_a_certificate_that_an_admitted_party_issued_in_anothers_name_is_refused() -> None:
    """As client and as server of the session: `court` plays `tax` to the bank and the bank to tax.

    With the authorities of both in one list, names would be all that is left to tell them apart.
    """
    for me, peer in (("bank", "tax"), ("tax", "bank")):
        with memory_relay() as relay:
            forged = forged_leaf(peer, "court")
            honest_end = relay.line(me, peer)
            relay.line(peer, me, own=forged)
            with pytest.raises(IntegrityError, match=f"{peer}: its certificate is not issued by"):
                honest_end.send(b"secret")
            both = PeerCertificate(
                member(peer).ca + member("court").ca, member(peer).certificate.sha256
            )
            careless = relay.line(me, peer, trust=both, attempt=2)
            relay.line(peer, me, own=forged, attempt=2)
            with pytest.raises(IntegrityError, match=f"{peer}: it showed a certificate other"):
                careless.send(b"secret")


@pytest.mark.parametrize(
    ("manifest", "attempt"), [(OTHER_JOB, 1), (JOB, 2)], ids=["other manifest", "other attempt"]
)
def test_a_relay_that_joins_two_jobs_gets_no_session(manifest: bytes, attempt: int) -> None:
    """The tax bureau approved something else; the relay rewrites addresses so that they meet."""

    def joining(sender: str, frame: Frame) -> Iterable[Frame]:
        bound = (JOB, 1) if sender == "tax" else (manifest, attempt)
        return (replace(frame, address=Address(*bound, frame.address.party)),)

    with memory_relay(joining) as relay:
        bank = relay.line("bank", "tax")
        tax = relay.line("tax", "bank", manifest=manifest, attempt=attempt)
        with pytest.raises(IntegrityError, match="tax: it is in another job, another attempt"):
            bank.send(b"secret")
        with pytest.raises((IntegrityError, PartyLost)):
            tax.send(b"secret")
        assert not bank._established
        assert not tax._established


def test_a_relay_that_reflects_a_party_to_itself_gets_no_session() -> None:
    bank_at_tax = Address(JOB, 1, "tax")

    def reflecting(sender: str, frame: Frame) -> Iterable[Frame]:
        bank.handle(replace(frame, address=bank_at_tax))
        return ()

    with memory_relay() as relay:
        bank = relay.line("bank", "tax", config=replace(QUICK, start_timeout_s=1))
        relay.tamper = reflecting
        with pytest.raises((IntegrityError, PartyLost)):
            bank.send(b"secret")
        assert not bank._established


def test_forged_control_frames_end_or_stall_a_channel_and_read_nothing() -> None:
    with memory_relay() as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        transfer(bank, tax, 2, 100)
        address = Address(JOB, 1, "tax")
        bank.handle(Frame(Kind.ACK, address, 2**63))
        bank.handle(Frame(Kind.STATE, address, 2**63, Report(tax._epoch, 2**63, 9, 9).encode()))
        transfer(bank, tax, 2, 100)
        bank.handle(Frame(Kind.SYN, address, 0, Report(b"forged!!").encode()))
        with pytest.raises(PartyLost, match="tax: restarted"):
            bank.receive(1)


def test_a_peer_that_ignores_its_credit_does_not_fill_our_memory() -> None:
    with memory_relay() as relay:
        bank, tax = relay.line("bank", "tax"), relay.line("tax", "bank")
        bank.send(b"start")
        assert tax.receive(5) == b"start"
        held = tax._received
        for number in range(1, 64):
            frame = Frame(Kind.DATA, Address(JOB, 1, "bank"), held + number, bytes(MIB // 2))
            tax.handle(frame)
        assert tax._inbox_bytes <= 2 * WINDOW
        assert sum(map(len, tax._inbox)) == tax._inbox_bytes


def test_a_session_offers_tls_1_3_without_tickets_and_says_so_to_any_other() -> None:
    own, peer = member("bank"), member("tax")
    address = Address(JOB, 1, "tax")
    server = TlsSession(own.identity, address, peer.certificate, max_message_bytes=100)
    client = TlsSession(
        peer.identity, Address(JOB, 1, "bank"), own.certificate, max_message_bytes=100
    )
    done = [False, False]
    for _ in range(4):
        for at, (one, two) in enumerate(((client, server), (server, client))):
            done[at] = one.handshake()
            two.feed(one.outgoing())
    assert done == [True, True]
    assert server._tls.version() == client._tls.version() == "TLSv1.3"
    assert not server._tls.session_reused
    assert client._tls.session is None or not client._tls.session.has_ticket
    assert honest("", Frame(Kind.ACK, address, 1))
