"""grant and verify as a firm and a bank use them: what they read, and what counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from clients import grants
from clients.cli import main
from clients.cli.grant import _of_use
from clients.consent import Consents
from clients.home import Home
from clients.store import opened
from clients.verifier import beyond
from federation.catalogue import Assurance, Question
from federation.consent_api import NoticeEntry, Notices
from federation.errors import Conflict, Refused
from federation.grants import BySubject, Change, Channel, State, Use, heard, state_of
from federation.objects import Usage
from tests.acceptance.consent import FIRM, NOW, Firm, World

Words = pytest.CaptureFixture[str]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    World.create(folder)
    made = World(folder)
    made.start()
    yield made
    made.close()


@pytest.fixture
def firm(world: World, tmp_path: Path) -> Home:
    """The world's firm with a home that trusts nobody; its key is certified as it has to be."""
    made = Home.create(
        tmp_path / "firm",
        org="firm",
        kind="enterprise",
        name="某公司",
        uscc=FIRM,
        region="厦门市",
        now=NOW - timedelta(days=1),
    )
    card = grants.identity(made, NOW)
    grants.keep_certificate(made, grants.certify(world.homes["licence"], card, Assurance.A3, NOW))
    keys = made.key(Usage.GRANT), made.key(Usage.ENCRYPT)
    world.firm = Firm(FIRM, *keys).certified_by(world.homes["licence"], Assurance.A3)
    return made


def heard_at_tax(world: World, grant: BySubject, events: list[BySubject]) -> State:
    """What the owner makes of the firm's words."""
    tax, store = world.homes["tax"], world.store
    for event in events:
        grants.take_event(tax, store, event, world.now)
    said = Consents(store).events(grant.digest, grants.verifier(tax, world.now))
    content = grant.signed.unverified(grants.Grant)
    return state_of(content, heard(content, said, ()), world.now)


def test_a_firm_that_does_not_trust_its_issuer_knows_its_own_word(world: World, firm: Home) -> None:
    """Else its resumption would have the pause's number, and the pause would count for ever."""
    grant = world.grant()
    with opened(firm.database_url) as store:
        grants.give(firm, store, grant, NOW)
        said = []
        for change, state in ((Change.PAUSE, State.PAUSED), (Change.RESUME, State.ACTIVE)):
            said.append(grants.change(firm, store, grant.digest, change, NOW))
            assert grants.state(firm, store, grant.digest, NOW) is state
            assert heard_at_tax(world, grant, said) is state
        grants.change(firm, store, grant.digest, Change.REVOKE, NOW)
        assert grants.state(firm, store, grant.digest, NOW) is State.REVOKED


@pytest.mark.parametrize("change", [Change.PAUSE, Change.RESUME])
def test_what_was_revoked_is_not_paused_or_resumed(
    world: World, firm: Home, change: Change
) -> None:
    grant = world.grant()
    with opened(firm.database_url) as store:
        grants.give(firm, store, grant, NOW)
        grants.change(firm, store, grant.digest, Change.REVOKE, NOW)
        with pytest.raises(Conflict, match="revoked, and that is final"):
            grants.change(firm, store, grant.digest, change, NOW)
        grants.change(firm, store, grant.digest, Change.REVOKE, NOW)  # perhaps nobody heard
        assert grants.state(firm, store, grant.digest, NOW) is State.REVOKED


class Mailbox:
    """A coordinator's mailbox with one notice of the tax bureau."""

    def __init__(self, sealed: bytes) -> None:
        self._item = NoticeEntry(number=1, sender="tax", sealed=sealed)

    def notices(self, mailbox: str, after: int = 0) -> Notices:
        return Notices(items=() if after else (self._item,))


def test_a_firm_hears_who_tells_of_uses_without_being_trusted(world: World, firm: Home) -> None:
    world.ask(world.grant())
    world.now += timedelta(seconds=60)
    box = Mailbox(world.told()[0].sealed)
    with opened(firm.database_url) as store:
        found = grants.history(firm, store, box, world.now)  # type: ignore[arg-type] # a mailbox is all it needs
        assert (found.fresh, found.strangers) == (0, ("tax",))
        assert not Consents(store).uses()
        firm.trust_card(world.homes["tax"].card())
        found = grants.history(firm, store, box, world.now)  # type: ignore[arg-type] # a mailbox is all it needs
        assert (found.fresh, found.strangers) == (1, ())


@pytest.mark.parametrize(
    ("channel", "result", "told"),
    [
        (Channel.QUERY, "value", "value"),
        (Channel.SCORE, "value", "part of a score"),
        (Channel.WATCH, "value", "watch begun"),
        (Channel.WATCH, "alert", "alert"),
    ],
)
def test_a_history_says_value_only_where_the_bank_got_one(
    channel: Channel, result: str, told: str
) -> None:
    assert _of_use(Use.model_construct(channel=channel, result=result), "result") == told


def test_a_pause_that_nobody_got_says_so(
    world: World, firm: Home, monkeypatch: pytest.MonkeyPatch, capsys: Words
) -> None:
    grant = world.grant()
    monkeypatch.setenv("LIANMO_HOME", str(firm.path))
    monkeypatch.setenv("LIANMO_COORDINATOR_URL", "https://127.0.0.1:9")
    firm.trust_card(world.homes["platform"].card())
    with opened(firm.database_url) as store:
        grants.give(firm, store, grant, NOW)
    assert main.call(["grant", "pause", grant.digest[:12]]) == 7
    assert "nobody knows of it yet: give the command again" in capsys.readouterr().err


def test_only_an_owner_counts_uses(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: Words
) -> None:
    grant = world.grant(max_uses=5)
    world.ask(grant)
    bank, store = world.homes["bank-a"], world.stores["bank-a"]
    grants.hold(bank, store, grant, world.now)
    shown = {}
    for org in ("bank-a", "tax"):
        monkeypatch.setenv("LIANMO_HOME", str(world.homes[org].path))
        assert main.call(["grant", "list", "--json"]) == 0
        shown[org] = json.loads(capsys.readouterr().out)[0]["uses"]
    assert shown == {"bank-a": "5", "tax": "1/5"}


def test_a_wrong_fingerprint_is_one_of_integrity(
    world: World, firm: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Words
) -> None:
    card, out = tmp_path / "card.json", tmp_path / "certificate.json"
    monkeypatch.setenv("LIANMO_HOME", str(firm.path))
    assert main.call(["grant", "identity", "--out", str(card)]) == 0
    monkeypatch.setenv("LIANMO_HOME", str(world.homes["licence"].path))
    command = ["grant", "certify", str(card), "--out", str(out), "--fingerprint"]
    assert main.call([*command, "1111-2222"]) == 4
    assert f"{FIRM} 某公司" in capsys.readouterr().err  # whose key it is, besides the digits
    assert not out.exists()


@pytest.mark.parametrize("how", [{"days": 31}, {"retain_days": 8}])
def test_no_draft_asks_for_more_days_than_the_owner_opens_to(
    world: World, how: dict[str, int]
) -> None:
    entry = world.catalogue()
    field = next(item for item in entry.fields if item.name == "revenue")
    assert field.enquiry is not None
    narrow = field.enquiry.model_copy(update={"max_days": 30, "retention_days": 7})
    changed = [
        item.model_copy(update={"enquiry": narrow}) if item is field else item
        for item in entry.fields
    ]
    found = {("tax", entry.name): entry.model_copy(update={"fields": tuple(changed)})}
    wanted = grants.Wanted("tax", entry.name, "revenue", (Question.COMPARE,), (), ("1000000",))
    terms = world.terms()

    def draft(days: int = 30, retain_days: int = 7) -> None:
        grants.draft(
            world.homes["bank-a"],
            found,
            subject=FIRM,
            wanted=[grants.Wanted(wanted.provider, wanted.dataset, wanted.field, wanted.ops)],
            purpose=terms.purpose,
            channel=terms.channel,
            now=world.now,
            days=days,
            retain_days=retain_days,
        )

    draft()
    with pytest.raises(Refused, match="30 days at most, whose answers are kept 7 days at most"):
        draft(**how)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"dataset": "others"}, "the grant is not on tax/others/revenue, but on tax/firms/revenue"),
        ({"arg": "123"}, "the grant is on the thresholds "),
        ({"period": "2020"}, "the grant is on the periods "),
        ({"op": Question.BAND, "comparison": None, "arg": None}, "of this field, not band"),
    ],
)
def test_a_bank_learns_from_its_own_grant_what_it_does_not_cover(
    world: World, change: dict[str, object], says: str
) -> None:
    bundle = world.grant()
    request = world.request(bundle).model_copy(update=change)
    found = beyond(bundle.signed.unverified(grants.Grant), State.ACTIVE, request)
    assert says in found
    assert bool(says) == bool(found)
    old = bundle.signed.unverified(grants.Grant).model_copy(update={"notice_digest": "0" * 64})
    other = beyond(old, State.ACTIVE, world.request(bundle))
    assert other == "another release wrote the notice that was signed: draft the grant again"
    over = beyond(bundle.signed.unverified(grants.Grant), State.PAUSED, request)
    assert over == "the grant is paused"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"grant": 5}', "line 1: the question: grant: it has to be a text, in quotes"),
        ("\n{}", "line 2: the question: grant: it is missing"),
        ("grant,op", "line 1 is not a question in JSON"),
        ("\n", "there is no question in "),
    ],
)
def test_a_wrong_line_of_a_batch_is_named_before_any_is_asked(
    world: World,
    tmp_path: Path,
    lines: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Words,
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(lines)
    monkeypatch.setenv("LIANMO_HOME", str(world.homes["bank-a"].path))
    assert main.call(["verify", "batch", str(file)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--kind", "bureau", "no kind of organisation: department, bank,"),
        ("--org", "Tax", "2 to 32 of a-z"),
        ("--uscc", "9133", "has 18 characters"),
        ("--uscc", "91330106Y71047293M", "error: uscc: not a unified social credit code"),
        ("--coordinator", "127.0.0.1:1", "an address such as https://"),
        ("--relay", "here", "host and port"),
    ],
)
def test_a_wrong_word_of_init_is_told_without_a_pattern(
    tmp_path: Path, option: str, value: str, says: str, capsys: Words
) -> None:
    given = {"--org": "tax", "--kind": "department", "--name": "T", "--uscc": FIRM}
    given |= {"--region": "X", "--home": str(tmp_path / "home"), option: value}
    assert main.call(["init", *(word for pair in given.items() for word in pair)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "match pattern" not in told
    assert "Value error" not in told
