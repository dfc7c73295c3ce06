"""What a coordinator sees and can do: acceptance tests 30, 31 and 47 of GOVERNANCE.md, and the
relay's own limits."""

from __future__ import annotations

import asyncio
import base64
import gzip
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fastapi import FastAPI

from clients.verification import Parcel
from federation import sealing
from federation.audit import Check, Reason
from federation.consent_api import NoticeBody, Outbox, ReplyEntry
from federation.enquiry import Answered
from federation.errors import IntegrityError, NotFound, Unavailable
from federation.grants import Change, StatusList
from federation.identity import PrivateKey
from federation.objects import Usage
from server import verification as relaying
from server.app import ORG_KEY
from server.consents import Consents
from server.store import Store as ServerStore
from server.verification import SealedRelay
from tests.acceptance.consent import FIRM, GRID, World
from tests.system.secrets_scan import disguises, found_in

QUESTIONS = 100
CANARIES = [FIRM, "revenue", "firms", "1000000", "compare", "match", "credit-decision", "某公司"]


# shorter forms stand in any ciphertext
PATTERNS = {text: [form for form in disguises(text) if len(form) >= 5] for text in CANARIES}


def assert_unseen(data: bytes) -> None:
    """Also not in what is compressed in it."""
    assert found_in(data, PATTERNS) == set()


def consents(world: World, store: ServerStore) -> Consents:
    home = world.homes["platform"]
    return Consents(
        store,
        platform="platform",
        key=lambda: home.key(Usage.GRANT),
        trust=home.trust,
        now=lambda: world.now,
    )


async def through(
    relay: SealedRelay, world: World, frames: list[bytes], seen: list[bytes]
) -> list[bytes]:
    """Questions all the way, with everything that the coordinator holds on to."""
    await relay.take("tax", 0)
    asking = [asyncio.create_task(relay.ask("bank-a", "tax", sealed)) for sealed in frames]
    await asyncio.sleep(0)
    seen += frames
    while items := await relay.take("tax", 0):
        seen += [item.model_dump_json().encode() for item in items]
        replies = world.provider.answer([Parcel(i.sender, i.sealed) for i in items])
        world.witnessed()
        body = Outbox(
            items=tuple(
                ReplyEntry(id=item.id, sealed=reply)
                for item, reply in zip(items, replies, strict=True)
            ),
            notices=tuple(world.told()),
        )
        seen.append(body.model_dump_json().encode())
        for item in body.items:
            relay.reply("tax", item.id, item.sealed)
    return await asyncio.gather(*asking)


def test_a30_nothing_that_passes_the_coordinator_shows_what_was_asked(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grant, seen = world.grant(max_uses=QUESTIONS), list[bytes]()
    file = tmp_path / "coordinator.db"

    requests = [world.request(grant, arg=GRID[number % 4]) for number in range(QUESTIONS)]
    frames = [world.sealed(request, grant) for request in requests]

    async def all_of_them() -> list[bytes]:
        """The first four spend the budget; the others follow from them, and cost nothing."""
        relay = SealedRelay()
        first = [(await through(relay, world, [frame], seen))[0] for frame in frames[:4]]
        return first + await through(relay, world, frames[4:], seen)

    with caplog.at_level("DEBUG", "lianmo"), closing(ServerStore(f"sqlite:///{file}")) as store:
        replies = asyncio.run(all_of_them())
        kept = [Outbox.model_validate_json(data) for data in seen if data.startswith(b'{"items"')]
        for body in kept:
            consents(world, store).keep_notices("tax", body.notices)
    words = [world.verified(*each).result for each in zip(requests, replies, strict=True)]
    assert words == [Answered.MATCH, Answered.MATCH, Answered.MATCH, Answered.NO_MATCH] * 25
    assert_unseen(b"".join(seen))
    assert sum(len(body.notices) for body in kept) == QUESTIONS
    for name in tmp_path.glob("coordinator.db*"):
        assert_unseen(name.read_bytes())
    assert FIRM not in caplog.text
    hidden = b"xx" + FIRM.encode() + b"yy"  # the scanner finds what is there
    for said in (base64.b64encode(hidden), hidden.hex().encode(), gzip.compress(hidden * 3)):
        with pytest.raises(AssertionError):
            assert_unseen(b"before" + said + b"after")


def test_a31_another_recipient_key_opens_nothing_and_is_asked_of_nobody(world: World) -> None:
    """The bank takes the key of the card that it trusts, whatever somebody offers; a frame that
    somebody seals himself is not from the bank."""
    grant = world.grant(max_uses=5)
    request = world.request(grant)
    frame = world.sealed(request, grant)
    mallory = PrivateKey.generate(Usage.ENCRYPT)
    with pytest.raises(IntegrityError):
        sealing.unseal(sealing.ASK, frame, sender="bank-a", key=mallory)
    reply = world.answer_to(frame)
    with pytest.raises(IntegrityError):
        sealing.unseal(sealing.ANSWER, reply, sender="tax", key=mallory)
    forged = sealing.seal(
        sealing.ANSWER, b"{}", sender="tax", recipient=world.homes["bank-a"].key(Usage.ENCRYPT).spki
    )
    with pytest.raises(IntegrityError):
        world.verifier().open(request, forged)


def test_a31_dropped_reordered_doubled_or_late_frames_do_no_harm(world: World) -> None:
    grant = world.grant(max_uses=3)
    requests = [world.request(grant, arg=arg) for arg in ("1000000", "5000000")]
    frames = [world.sealed(request, grant) for request in requests]
    replies = world.provider.answer([Parcel("bank-a", f) for f in reversed(frames)])
    words = [
        world.verified(request, reply).result
        for request, reply in zip(requests, reversed(replies), strict=True)
    ]
    assert words == ["match", "no_match"]
    with pytest.raises(IntegrityError, match="another request"):  # swapped on the way back
        world.verified(requests[0], replies[0])
    world.answer_to(frames[0])
    assert (world.refusals()[-1].reason, world.uses(grant)) == (Reason.REPLAYED, 2)
    before = len(world.entries())
    world.sealed(world.request(grant), grant)  # dropped on the way in: nobody knows of it
    assert (len(world.entries()), world.uses(grant)) == (before, 2)
    late = world.sealed(world.request(grant), grant)
    world.now += timedelta(seconds=121)
    world.answer_to(late)
    assert world.refusals()[-1].check is Check.FRESH
    assert world.uses(grant) == 2


@pytest.mark.parametrize("place", [0, 15, 16, 60, -1])
def test_a31_a_frame_with_one_bit_changed_does_not_open(world: World, place: int) -> None:
    frame = bytearray(world.sealed(world.request(grant := world.grant()), grant))
    frame[place] ^= 1
    world.answer_to(bytes(frame))
    assert (world.refusals()[-1].check, world.uses(grant)) == (Check.SEALED, 0)


# --- the relay ------------------------------------------------------------------------------------


def test_the_same_bytes_are_the_same_question() -> None:
    async def twice() -> tuple[bytes, bytes, int]:
        relay = SealedRelay()
        await relay.take("tax", 0)
        both = [asyncio.create_task(relay.ask("bank-a", "tax", b"frame")) for _ in range(2)]
        await asyncio.sleep(0)
        items = await relay.take("tax", 0)
        relay.reply("tax", items[0].id, b"answer")
        relay.reply("tax", items[0].id, b"another")  # the first one counts
        relay.reply("court", items[0].id, b"forged")
        first, second = await both[0], await both[1]
        assert await relay.ask("bank-a", "tax", b"frame") == first
        return first, second, len(items)

    assert asyncio.run(twice()) == (b"answer", b"answer", 1)


def test_what_comes_after_a_killed_process_is_the_next_one_s() -> None:
    async def run() -> list[int]:
        relay = SealedRelay()

        async def hung_up() -> bool:
            return True

        dead = asyncio.create_task(relay.take("tax", 5, hung_up))
        await asyncio.sleep(0)
        asking = asyncio.create_task(relay.ask("bank-a", "tax", b"frame"))
        taken = [len(await dead)]
        items = await relay.take("tax", 0)
        taken.append(len(items))
        relay.reply("tax", items[0].id, b"answer")
        assert await asking == b"answer"
        # nor does an older poll, whose end nobody has noticed, get what a newer one waits for
        polls = [asyncio.create_task(relay.take("tax", 5)) for _ in range(2)]
        await asyncio.sleep(0)
        again = asyncio.create_task(relay.ask("bank-a", "tax", b"another"))
        taken += [len(await poll) for poll in polls]
        again.cancel()
        return taken

    assert asyncio.run(run()) == [0, 1, 0, 1]


def test_over_http_a_poll_that_was_hung_up_takes_nothing(world: World, tmp_path: Path) -> None:
    async def run(store: ServerStore) -> None:
        relay, gone = SealedRelay(), asyncio.Event()
        app = FastAPI()
        app.include_router(relaying.router(relay, consents(world, store)))
        asked = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if asked:
                return asked.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "GET", "path": "/sealed", "query_string": b"wait=5"}
        call = asyncio.create_task(app(scope | {"headers": [], ORG_KEY: "tax"}, receive, send))
        while not relay._wake:
            await asyncio.sleep(0.01)
        gone.set()
        asking = asyncio.create_task(relay.ask("bank-a", "tax", b"question"))
        await call
        assert len(await relay.take("tax", 0)) == 1
        asking.cancel()

    with closing(ServerStore(f"sqlite:///{tmp_path / 'c.db'}")) as store:
        asyncio.run(run(store))


def test_queues_end_and_an_absent_provider_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying, "QUEUE_OF_SENDER", 2)
    monkeypatch.setattr(relaying, "ASK_TIMEOUT_S", 0.05)

    async def fill() -> list[Any]:
        relay = SealedRelay()
        with pytest.raises(Unavailable, match="not connected"):
            await relay.ask("bank-a", "tax", b"0")
        await relay.take("tax", 0)
        asked = [relay.ask("bank-a", "tax", bytes([n])) for n in range(3)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        # what nobody waits for any more is not handed out
        assert await relay.take("tax", 0) == []
        other = asyncio.create_task(relay.ask("bank-b", "tax", b"1"))
        await asyncio.sleep(0)
        assert len(await relay.take("tax", 0)) == 1
        other.cancel()
        return found

    found = asyncio.run(fill())
    assert [error.what for error in found] == [
        "did not answer in time",
        "did not answer in time",
        "too many questions wait",
    ]


def test_events_and_lists_are_kept_and_mailboxes_are_their_owners(
    world: World, tmp_path: Path
) -> None:
    grant = world.grant()
    event = world.change(grant, Change.REVOKE)
    with closing(ServerStore(f"sqlite:///{tmp_path / 'c.db'}")) as store:
        desk = consents(world, store)
        first = desk.status().unverified(StatusList)
        assert desk.take_event("bank-a", event) == event.proof_digest
        second = desk.status().unverified(StatusList)
        assert (second.sequence, second.events) == (first.sequence + 1, (event.proof_digest[:32],))
        assert desk.events("tax", second.events) == (event,)
        assert desk.status().unverified(StatusList) == second  # nothing happened since
        unproven = event.model_copy(update={"card": None, "certificate": None})
        with pytest.raises(IntegrityError):
            desk.take_event("bank-a", unproven)
        key = world.homes["bank-a"].key(Usage.ENCRYPT).key_id
        desk.keep_notices("tax", [NoticeBody(mailbox=key, sealed=b"sealed")])
        assert [item.sealed for item in desk.notices("bank-a", key, 0)] == [b"sealed"]
        with pytest.raises(NotFound):
            desk.notices("bank-b", key, 0)


def test_who_hands_in_receipts_takes_no_question_from_the_line_that_answers(
    world: World, tmp_path: Path
) -> None:
    async def run(store: ServerStore) -> None:
        relay = SealedRelay()
        app = FastAPI()
        app.include_router(relaying.router(relay, consents(world, store)))

        async def as_tax(scope: Any, receive: Any, send: Any) -> None:
            scope[ORG_KEY] = "tax"
            await app(scope, receive, send)

        transport = httpx.ASGITransport(as_tax)
        async with httpx.AsyncClient(transport=transport, base_url="http://c") as client:
            await relay.take("tax", 0)
            asking = asyncio.create_task(relay.ask("bank-a", "tax", b"question"))
            await asyncio.sleep(0)
            nothing = await client.post("/sealed", json={"items": []})
            assert (nothing.status_code, nothing.content) == (204, b"")
            found = await client.get("/sealed?wait=0")
            assert [item["sender"] for item in found.json()["items"]] == ["bank-a"]
            relay.reply("tax", found.json()["items"][0]["id"], b"answer")
            assert await asking == b"answer"

    with closing(ServerStore(f"sqlite:///{tmp_path / 'c.db'}")) as store:
        asyncio.run(run(store))


# --- 47 -------------------------------------------------------------------------------------------

_decrypt_with_aad = openssl.hpke._decrypt_with_aad  # the public one has no associated data

RFC_9180_A2 = {  # DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, base mode, sequence 0
    "info": "4f6465206f6e2061204772656369616e2055726e",
    "skRm": "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
    "pkRm": "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a",
    "enc": "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
    "aad": "436f756e742d30",
    "pt": "4265617574792069732074727574682c20747275746820626561757479",
    "ct": "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d"
    "2dd1b51a28",
}
RFC_8032 = (  # section 7.1, tests 1 and 2: secret, public, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
)


def test_a47_our_suite_opens_the_vector_of_rfc_9180_and_nothing_near_it() -> None:
    vector = {name: bytes.fromhex(text) for name, text in RFC_9180_A2.items()}
    key = X25519PrivateKey.from_private_bytes(vector["skRm"])
    assert key.public_key().public_bytes_raw() == vector["pkRm"]
    sealed = vector["enc"] + vector["ct"]
    opened = _decrypt_with_aad(sealing.SUITE, sealed, key, vector["info"], vector["aad"])
    assert opened == vector["pt"]
    for wrong in (
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), vector["info"], vector["aad"]),
        (sealed, vector["info"] + b"x", vector["aad"]),
        (sealed, vector["info"], b""),
        (bytes(32) + vector["ct"], vector["info"], vector["aad"]),  # a point of small order
    ):
        with pytest.raises((InvalidTag, ValueError)):
            _decrypt_with_aad(sealing.SUITE, wrong[0], key, *wrong[1:])


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_a47_signatures_are_those_of_rfc_8032(
    secret: str, public: str, message: str, signature: str
) -> None:
    made = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    key = PrivateKey(Usage.REQUEST, made)
    assert key.spki[-32:].hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
