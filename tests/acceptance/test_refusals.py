"""What every refusal looks like from outside: questions, parts of scores and watches alike
(GOVERNANCE.md, principle 5, and acceptance test 18).

The requests here are those of a bank that does not look at its own grants. Whatever is wrong with
one, and whatever it asks for, the frame that comes back is as long as an answer's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from clients.consent import Consents
from clients.verification import Parcel
from clients.verifier import Verifier
from federation import sealing
from federation.audit import Reason
from federation.catalogue import Assurance, Question
from federation.enquiry import Answered
from federation.envelope import sign
from federation.grants import Channel
from federation.objects import Purpose, Usage, utc_text
from federation.scoring import ScoreRequest
from federation.verification import WINDOW, Answer, Ask, Asking, VerificationRequest
from federation.watch import WatchRequest
from tests.acceptance.consent import Firm
from tests.acceptance.scores import BANK, CODES, DATASET, GRID, ROWS
from tests.acceptance.watches import WatchWorld

PROVIDER = "power"
ASKED = {"field": "months", "op": "compare", "comparison": "ge", "arg": "2"}
KINDS: dict[str, type[Asking]] = {
    "verify": VerificationRequest,
    "score": ScoreRequest,
    "watch": WatchRequest,
}


class Desk(WatchWorld):
    """Sends one request of any kind, as it is told to, and keeps the length of every reply."""

    def granted(self, channel: str, **changes: Any) -> str:
        if channel == "score":
            return self.grant(**changes)
        months = next(item for item in self.items() if item.field == "months")
        asked = {"ops": (Question.COMPARE,), "thresholds": GRID}
        purpose = Purpose.POST_LOAN_MONITORING if channel == "watch" else Purpose.CREDIT_DECISION
        plain: dict[str, Any] = {
            "channel": Channel(channel),
            "model": None,
            "purpose": purpose,
            "items": [months.model_copy(update=asked)],
        }
        return self.grant(**(plain | changes))

    def request(self, channel: str, grant: str, **changes: Any) -> Asking:
        held = Consents(self.stores[BANK]).get(grant)
        own: dict[str, Any] = {"model": self.manifest.digest()} if channel == "score" else ASKED
        plain: dict[str, Any] = {
            "channel": channel,
            "request": secrets.token_hex(16),
            "grant": held.digest,
            "verifier": BANK,
            "provider": PROVIDER,
            "subject": held.grant.subject,
            "purpose": held.grant.purpose,
            "created": utc_text(self.now),
            "expires": utc_text(self.now + WINDOW),
            "nonce": secrets.token_hex(16),
            "reply_key": self.homes[BANK].key(Usage.ENCRYPT).key_id,
            "dataset": DATASET[PROVIDER],
        }
        rule = {"rule": "arrears-2"} if channel == "watch" else {}
        return KINDS[channel].model_validate(plain | own | rule | changes)

    def frame(self, request: Asking, *, usage: Usage = Usage.REQUEST) -> bytes:
        signed = sign(request, self.homes[BANK].key(usage))
        held = Consents(self.stores[BANK]).get(request.grant)
        bank = Verifier(self.homes[BANK], self.stores[BANK], self, self.clock)
        return bank.seal(request, Ask(request=signed, grant=held.bundle))

    def reply(self, frame: bytes) -> bytes:
        return self.providers[PROVIDER].answer([Parcel(BANK, frame)])[0]

    def opened(self, request: Asking, reply: bytes) -> Answer:
        bank = Verifier(self.homes[BANK], self.stores[BANK], self, self.clock)
        return bank.open(request, reply)[0]


@pytest.fixture(scope="module", params=["scorecard", "trees"])
def desk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp(request.param), request.param)
    yield desk
    desk.close()


def refused(desk: Desk, channel: str) -> Iterator[tuple[Reason, Asking, bytes]]:
    """Requests that are wrong in one thing each, as (reason in the log, request, frame)."""
    good = desk.granted(channel, max_uses=1)
    first = desk.request(channel, good)
    frame = desk.frame(first)
    assert desk.opened(first, desk.reply(frame)).result is not Answered.REFUSED
    yield Reason.REPLAYED, first, frame
    asked = desk.request(channel, good)
    yield Reason.USES, asked, desk.frame(asked)
    grant = desk.granted(channel, max_uses=9)
    late = desk.now - timedelta(minutes=5)
    asked = desk.request(
        channel, grant, created=utc_text(late), expires=utc_text(late + timedelta(minutes=1))
    )
    yield Reason.CLOCK, asked, desk.frame(asked)
    asked = desk.request(channel, grant)
    yield Reason.INTEGRITY, asked, desk.frame(asked, usage=Usage.APPROVE)
    asked = desk.request(channel, grant, subject=CODES[9].decode())
    yield Reason.SUBJECT, asked, desk.frame(asked)
    asked = desk.request(channel, grant, purpose=Purpose.CREDIT_MODEL_TRAINING)
    yield Reason.PURPOSE_NOT_ALLOWED, asked, desk.frame(asked)
    wrong = {"model": "1" * 64} if channel == "score" else {"arg": "2.5"}
    asked = desk.request(channel, grant, **wrong)
    yield (Reason.NOT_GRANTED if channel == "score" else Reason.OFF_GRID), asked, desk.frame(asked)
    over = desk.granted(
        channel,
        not_before=utc_text(desk.now - timedelta(hours=2)),
        expires=utc_text(desk.now - timedelta(hours=1)),
    )
    asked = desk.request(channel, over)
    yield Reason.EXPIRED, asked, desk.frame(asked)
    officer = Firm(CODES[ROWS - 1].decode()).certified_by(
        desk.homes["licence"], Assurance.A2, desk.now
    )
    asked = desk.request(channel, desk.granted(channel, firm=officer))
    yield Reason.ASSURANCE, asked, desk.frame(asked)
    gone = desk.granted(channel, max_uses=9)
    desk.revoke(gone)
    asked = desk.request(channel, gone)
    yield Reason.REVOKED, asked, desk.frame(asked)


@pytest.mark.parametrize("channel", KINDS)
def test_a18_every_refusal_is_as_long_as_an_answer_and_says_as_little(
    desk: Desk, channel: str
) -> None:
    answered = desk.request(channel, desk.granted(channel))
    reply = desk.reply(desk.frame(answered))
    assert desk.opened(answered, reply).result is not Answered.REFUSED
    sizes, met = {len(reply)}, []
    for reason, request, frame in refused(desk, channel):
        before = len(desk.refusals(PROVIDER))
        reply = desk.reply(frame)
        entered = desk.refusals(PROVIDER)[before:]
        assert [entry.reason for entry in entered] == [reason]
        told = desk.opened(request, reply).model_dump(exclude_none=True)
        assert told["result"] == "refused"
        assert set(told) == {"v", "org", "verifier", "request", "created", "result"}
        sizes.add(len(reply))
        met.append(reason)
    assert len(met) == 10
    assert sizes == {sealing.LEAST[sealing.ANSWER] + sealing.OVERHEAD}


def test_a18_the_same_of_every_channel_in_one_batch(desk: Desk) -> None:
    """Replies of a batch leave together: none is told by its length either."""
    frames = []
    for channel in KINDS:
        for uses in (1, 9):
            grant = desk.granted(channel, max_uses=uses)
            frames += [desk.frame(desk.request(channel, grant)) for _ in range(2)]
    frames.append(secrets.token_bytes(len(frames[0])))  # and one that does not open
    before = len(desk.refusals(PROVIDER))
    replies = desk.providers[PROVIDER].answer([Parcel(BANK, frame) for frame in frames])
    assert len(desk.refusals(PROVIDER)) == before + len(KINDS) + 1
    assert {len(reply) for reply in replies} == {sealing.LEAST[sealing.ANSWER] + sealing.OVERHEAD}
