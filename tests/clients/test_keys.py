"""Keys over the years: renewed, held, released, revoked; old signatures, old receipts, crashes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clients import keys, network
from clients.audit import AuditLog
from clients.cli.main import call
from clients.home import Home
from clients.store import Store
from federation import keyring
from federation.audit import Action, verify_receipt
from federation.envelope import Envelope, sign
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    Refused,
    UsageError,
)
from federation.identity import USAGES
from federation.key_log import KeyLog
from federation.network import Bundle
from federation.objects import Approval, Card, KeyStatus, Usage, utc_text
from federation.trust import TrustStore, verify_card
from tests.acceptance.homes import decide, found, logged, make_homes, share
from tests.federation.parties import make_approval

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=1)
KINDS = {"bank-a": "bank", "tax": "department", "court": "department"}


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, Home]:
    return make_homes(tmp_path, KINDS, NOW - timedelta(days=1))


@pytest.fixture
def audit(homes: dict[str, Home]) -> Iterator[AuditLog]:
    store = Store.open(homes["tax"].database_url)
    yield AuditLog(homes["tax"], store)
    store.close()


def word(home: Home, at: datetime) -> Envelope:
    """Something that the home's approval key signs."""
    times = {
        "created": utc_text(at),
        "valid_from": utc_text(at),
        "valid_until": utc_text(NOW + timedelta(days=3)),
    }
    return sign(make_approval(home.org, "0" * 64, **times), home.key(Usage.APPROVE))


def verify(trust: TrustStore, envelope: Envelope) -> str:
    return trust.verify(envelope, Approval, Usage.APPROVE, NOW + timedelta(minutes=1)).org


def test_a_renewed_key_takes_over_and_what_the_old_one_signed_stays_good(
    homes: dict[str, Home], audit: AuditLog
) -> None:
    tax, court = homes["tax"], homes["court"]
    before, old_key = word(tax, EARLIER), tax.key(Usage.APPROVE)
    done = keys.renew(tax, audit, [Usage.APPROVE, Usage.RUN], NOW)
    assert (done.card.serial, done.shown) == (2, "no coordinator")
    assert tax.key(Usage.APPROVE).key_id != old_key.key_id
    trust = court.trust().with_card(tax.card())
    assert verify(trust, before) == "tax"
    assert verify(trust, word(tax, NOW + timedelta(seconds=1))) == "tax"
    stolen = sign(word(tax, NOW + timedelta(seconds=5)).unverified(Approval), old_key)
    with pytest.raises(Refused, match="was replaced"):
        verify(trust, stolen)
    assert audit.entries()[-1].action is Action.KEYS_CHANGED
    assert audit.verify().problems == ()


def test_every_key_can_be_renewed_and_the_log_and_its_receipts_go_on(
    homes: dict[str, Home], audit: AuditLog
) -> None:
    tax = homes["tax"]
    audit.require_sound(EARLIER)
    audit.append(Action.DATA_ADDED, "0" * 64, EARLIER)
    receipt, origin = audit.receipt(1), audit.origin
    everything = [usage for usage in USAGES[tax.own().org_kind] if usage is not Usage.ADMIN]
    keys.renew(tax, audit, everything, NOW)
    keys.renew(tax, audit, [Usage.ADMIN], NOW + timedelta(minutes=1))
    assert audit.origin == origin
    assert audit.verify().problems == ()
    audit.append(Action.DATA_REMOVED, "0" * 64, NOW + timedelta(minutes=2))
    trust = TrustStore([tax.card()])
    shown = verify_receipt(receipt, trust)
    assert not shown.is_key_revoked
    assert verify_receipt(audit.receipt(2), trust).entry.seq == 2
    again = Home.open(tax.path, environment={})
    again.keyring.require_private()
    for usage in USAGES[tax.own().org_kind]:
        assert again.key(usage).key_id == again.own().of_usage(usage)[-1].key_id
    verify_card(again.card())
    assert again.tls_files[0].read_text() == again.own().tls_certificate
    kept = {file.name.split("-")[0] for file in (tax.path / "keys").glob("*-*.pem")}
    assert kept == {"mask", "encrypt"}  # what was sealed for these must still open


def test_a50_a_revoked_key_signs_nothing_new_and_its_old_receipts_verify(
    homes: dict[str, Home], audit: AuditLog
) -> None:
    """Acceptance test 50, as far as receipts exist."""
    tax, court = homes["tax"], homes["court"]
    audit.require_sound(EARLIER)
    audit.append(Action.DATA_ADDED, "0" * 64, EARLIER)
    receipt = audit.receipt(1)
    stolen, old_word = tax.key(Usage.LOG), word(tax, EARLIER)
    keys.revoke(tax, audit, "log", "a backup was lost", NOW, replace=True)
    keys.revoke(tax, audit, "approve", "a backup was lost", NOW + timedelta(seconds=1))
    trust = court.trust().with_card(tax.card())
    shown = verify_receipt(receipt, trust)
    assert shown.entry.seq == 1
    assert shown.is_key_revoked
    assert tax.key(Usage.LOG).key_id != stolen.key_id
    assert audit.verify().problems == ()
    with pytest.raises(Refused, match="revoked"):
        verify(trust, old_word)  # its date is the thief's word
    with pytest.raises(IntegrityError, match="not the approve key"):
        tax.key(Usage.APPROVE)
    late = audit.receipt(2).model_copy(update={"key_id": stolen.key_id})
    with pytest.raises((Refused, IntegrityError)):
        verify_receipt(late, trust)


def test_a_hold_stops_a_key_until_it_is_released(homes: dict[str, Home], audit: AuditLog) -> None:
    tax, court = homes["tax"], homes["court"]
    said = word(tax, EARLIER)
    keys.hold(tax, audit, "approve", "on leave", NOW)
    held = court.trust().with_card(tax.card())
    with pytest.raises(Refused, match="on hold"):
        verify(held, said)
    with pytest.raises(IntegrityError):
        tax.key(Usage.APPROVE)
    keys.release(
        tax, audit, next(k.key_id for k in tax.own().keys if k.since), NOW + timedelta(seconds=9)
    )
    assert verify(held.with_card(tax.card()), said) == "tax"
    assert verify(court.trust().with_card(tax.card()), said) == "tax"  # who missed the hold
    revoked = keys.revoke(tax, audit, "approve", "left", NOW + timedelta(seconds=20))
    assert revoked.card.serial == 4
    with pytest.raises(Conflict, match="revoked"):
        keys.release(tax, audit, said.signatures[0].keyid[:8], NOW + timedelta(seconds=30))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("log", Conflict, "--replace"),
        ("tls", Conflict, "--replace"),
        ("admin", Conflict, "renew admin"),
        ("nothing", NotFound, "0 keys"),
        ("", NotFound, "0 keys"),
    ],
)
def test_a_key_without_which_nothing_works_is_replaced_and_not_taken_away(
    homes: dict[str, Home], audit: AuditLog, name: str, kind: type[Exception], words: str
) -> None:
    before = homes["tax"].card()
    with pytest.raises(kind, match=words):
        keys.revoke(homes["tax"], audit, name, "because", NOW)
    assert homes["tax"].card() == before


def test_an_organisation_has_the_keys_of_its_kind_only(
    homes: dict[str, Home], audit: AuditLog
) -> None:
    with pytest.raises(UsageError, match="has no grant key"):
        keys.renew(homes["tax"], audit, [Usage.GRANT], NOW)
    assert keys.missing(homes["tax"].own()) == ()


def test_whichever_write_of_a_renewal_fails_the_home_works_and_the_command_goes_on(
    homes: dict[str, Home], audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every replacement of a file fails once; afterwards the home has one card and its keys."""
    tax, real, serial = homes["tax"], Path.replace, 1
    audit.require_sound(EARLIER)
    for fail_at in range(1, 12):
        left = [fail_at]

        def fail(self: Path, target: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            with contextlib.suppress(OSError, LianmoError):
                keys.renew(tax, audit, [Usage.APPROVE, Usage.TLS], NOW + timedelta(hours=fail_at))
        home = Home.open(tax.path, environment={})
        for usage in (Usage.APPROVE, Usage.TLS, Usage.RUN, Usage.LOG):
            home.key(usage)
        assert home.own().serial in (serial, serial + 1)
        if home.own().serial == serial:
            keys.renew(tax, audit, [Usage.APPROVE, Usage.TLS], NOW + timedelta(hours=fail_at))
        serial += 1
        assert home.own().serial == serial
        home.keyring.settle()
        assert home.tls_files[0].read_text() == home.own().tls_certificate
    assert audit.verify().problems == ()
    entered = {e.object for e in audit.entries() if e.action is Action.KEYS_CHANGED}
    assert {change.card for change in KeyLog(tax.path).of("tax")} <= entered


# --- how others hear of it ------------------------------------------------------------------------


class Carrier:
    """A coordinator of which only cards and documents are asked."""

    def __init__(self, *cards: Envelope, bundle: Bundle | None = None) -> None:
        self.cards, self.bundle = cards, bundle or Bundle()

    def organisations(self) -> list[Any]:
        from federation.api import OrganisationEntry

        return [OrganisationEntry(org=c.unverified(Card).org, card=c) for c in self.cards]

    def network(self) -> Bundle:
        return self.bundle

    def hand_in(self, bundle: Bundle) -> Bundle:
        return self.bundle


def test_a_newer_card_comes_through_the_coordinator_and_is_noted(
    homes: dict[str, Home], audit: AuditLog
) -> None:
    keys.hold(homes["tax"], audit, "run", "looked into", NOW)
    court = homes["court"]
    with logged(court) as log:
        done = network.sync(court, log, Carrier(homes["tax"].card()), NOW)  # type: ignore[arg-type]
        assert [card.serial for card in done.cards] == [2]
        entry = log.entries()[-1]
    assert (entry.action, entry.object) == (Action.KEYS_CHANGED, homes["tax"].own().digest())
    change = KeyLog(court.path).of("tax")[-1]
    assert (change.serial, change.how) == (2, "through the coordinator")
    assert [(k.usage, k.before, k.after) for k in change.keys] == [("run", "active", "hold")]
    assert not court.trust().card("tax").of_usage(Usage.RUN)


def test_a_card_under_another_admin_key_does_not_come_through_the_coordinator(
    homes: dict[str, Home], tmp_path: Path
) -> None:
    twin = make_homes(tmp_path / "twins", {"other": "bank", "tax": "department"}, EARLIER)["tax"]
    court = homes["court"]
    before = court.trust().envelope("tax")
    with logged(court) as log:
        keys_of_twin = twin.own().model_copy(update={"serial": 9})
        forged = sign(keys_of_twin, *(twin.key(u) for u in _signing(twin)))
        done = network.sync(court, log, Carrier(forged, twin.card()), NOW)  # type: ignore[arg-type]
        assert done.cards == []
        assert "another admin key" in str(done.refused[0])
        assert [e.action for e in log.entries()] in ([], [Action.LOG_BEGUN])
    assert court.trust().envelope("tax") == before


def _signing(home: Home) -> list[Usage]:
    return [key.usage for key in home.own().keys if key.alg == "Ed25519"]


def test_a_new_admin_key_needs_the_old_one_and_the_founders(homes: dict[str, Home]) -> None:
    at = EARLIER
    found(homes, ["bank-a", "court"], at)
    tax, court = homes["tax"], homes["court"]
    with logged(tax) as audit:
        keys.renew(tax, audit, [Usage.ADMIN], NOW)
    with logged(court) as log:
        done = network.sync(court, log, Carrier(tax.card()), NOW)  # type: ignore[arg-type]
        assert done.cards == []  # the founders have not decided yet
    for org in ("bank-a", "court"):  # their officers compare the new fingerprint
        with logged(homes[org]) as log:
            log.trust_card(tax.card(), NOW, compared=tax.own().admin.key_id)
    from federation.network import Act

    later = NOW + timedelta(minutes=1)
    decide(homes, Act.ADMIT, ["tax"], ["bank-a", "court"], later)
    share(homes, later)
    for home in homes.values():
        with logged(home) as log:
            network.sync(home, log, Carrier(tax.card()), later)  # type: ignore[arg-type]
        share(homes, later)
        home.standing().require_active("tax", later)


def test_who_missed_the_step_compares_the_fingerprint_again(
    homes: dict[str, Home], audit: AuditLog
) -> None:
    tax, court = homes["tax"], homes["court"]
    keys.renew(tax, audit, [Usage.ADMIN], NOW)
    keys.renew(tax, audit, [Usage.RUN], NOW + timedelta(minutes=1))  # signed by the new one alone
    new = tax.own().admin.key_id
    with pytest.raises(Conflict):
        court.keyring.trust_card(tax.card(), decided=new)
    assert court.keyring.trust_card(tax.card(), compared=new).serial == 3


def test_a_stolen_retired_admin_key_makes_no_card(homes: dict[str, Home], audit: AuditLog) -> None:
    tax, court = homes["tax"], homes["court"]
    stolen = tax.key(Usage.ADMIN)
    old = tax.own()
    keys.renew(tax, audit, [Usage.ADMIN], NOW)
    trust = court.trust().with_card(tax.card(), compared=tax.own().admin.key_id)
    back = Card.model_validate(
        tax.own().model_dump()
        | {"serial": 3, "keys": [k.model_dump() for k in old.keys if k.usage is not Usage.ADMIN]}
        | {"created": utc_text(NOW + timedelta(minutes=1))}
        | {"keys": [k.model_dump() for k in old.keys]}
    )
    forged = sign(back, stolen, *(tax.key(u) for u in _signing(tax) if u is not Usage.ADMIN))
    with pytest.raises(Conflict):
        trust.with_card(forged)
    with pytest.raises(Conflict):
        trust.with_card(forged, decided=stolen.key_id)


# --- commands -------------------------------------------------------------------------------------


def run(home: Home, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert call(["--home", str(home.path), *words, "--json"]) == code, capsys.readouterr().err
    out = capsys.readouterr().out
    return json.loads(out) if out else None


def test_the_commands_of_keys(homes: dict[str, Home], capsys: pytest.CaptureFixture[str]) -> None:
    tax, court = homes["tax"], homes["court"]
    done = run(tax, capsys, "org", "renew", "approve", "--offline")
    assert (done["serial"], done["coordinator"]) == (2, "no coordinator")
    assert run(tax, capsys, "org", "renew", "--missing", "--offline")["serial"] == 2
    run(tax, capsys, "org", "renew", "--offline", code=2)
    run(tax, capsys, "org", "renew", "colour", code=2)
    run(tax, capsys, "org", "hold", "run", "--reason", "looked into", "--offline")
    held = next(key for key in tax.own().keys if key.status is KeyStatus.HOLD)
    run(tax, capsys, "org", "release", held.key_id[:8], "--offline")
    revoked = run(tax, capsys, "org", "revoke", "tls", "--reason", "lost", "--replace", "--offline")
    assert revoked["needs_restart"]
    run(tax, capsys, "org", "revoke", "log", "--reason", "lost", "--offline", code=6)
    changes = run(tax, capsys, "org", "keys", "tax")
    assert [change["serial"] for change in changes] == [2, 3, 4, 5]
    card = tax.path.parent / "tax.json"
    card.write_bytes(tax.card().to_json())
    assert run(court, capsys, "org", "trust", str(card))["serial"] == 5
    run(court, capsys, "org", "distrust", "tax", code=2)
    run(court, capsys, "org", "distrust", "tax", "--yes")
    assert "tax" not in court.trust()
    with logged(court) as log:
        assert log.entries()[-1].action is Action.CARD_DISTRUSTED
    assert call(["--home", str(tax.path), "org", "keys"]) == 0
    assert "retired" in capsys.readouterr().out


def test_a_network_is_founded_and_decided_on_by_commands(
    homes: dict[str, Home], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/platform.md tells it, with files only."""
    bank, tax, court = homes["bank-a"], homes["tax"], homes["court"]
    charter, documents = str(tmp_path / "charter.json"), str(tmp_path / "network.json")
    report = tmp_path / "report.txt"
    report.write_text("all well")
    assert run(bank, capsys, "network", "show")["network"] is None
    told = run(bank, capsys, "network", "found", "Demo", "--founder", "tax", "--out", charter)
    assert told["quorum"] == 2
    run(court, capsys, "network", "join", charter, "--yes", code=4)  # tax has not signed
    run(court, capsys, "network", "sign", charter, "--yes", code=3)  # court is no founder
    assert run(tax, capsys, "network", "sign", charter, "--yes")["missing"] == 0
    run(court, capsys, "network", "join", charter, code=2)
    run(court, capsys, "network", "join", charter, "--fingerprint", "0" * 64, code=4)
    for home in homes.values():
        run(home, capsys, "network", "join", charter, "--fingerprint", told["fingerprint"])
    words = ("--security", "level 3", "--authorisation", "order 12", "--assessor", "office")
    dated = ("--evidence", str(report), "--valid-until", "2027-06-30", "--out", documents)
    admit = ("network", "propose", "admit", "bank-a", "tax", "court")
    run(court, capsys, *admit, *words, *dated, code=3)
    run(bank, capsys, *admit, code=2)
    made = run(bank, capsys, *admit, *words, *dated)
    assert {row["state"] for row in made} == {"waits for signatures"}
    assert len(run(bank, capsys, "network", "list")["proposals"]) == 3
    run(tax, capsys, "network", "sign", documents, code=2)
    signed = run(tax, capsys, "network", "sign", documents, "--yes", "--out", documents)
    assert {row["state"] for row in signed} == {"decided"}
    for home in homes.values():
        run(home, capsys, "network", "sync", documents)
        assert all(row["active"] for row in run(home, capsys, "network", "list")["members"])
    reason = ("--reason", "audit finding 7")
    (one,) = run(
        bank, capsys, "network", "propose", "suspend", "court", *reason, "--out", documents
    )
    assert run(court, capsys, "network", "sync", documents)["proposals"] == ["suspend court"]
    run(tax, capsys, "network", "sync", documents)
    run(tax, capsys, "network", "sign", one["id"], "--yes", "--out", documents)
    run(court, capsys, "network", "sync", documents)
    shown = run(court, capsys, "network", "show", "court")
    assert not shown["active"]
    assert "audit finding 7" in shown["standing"]
    assert [row["act"] for row in shown["decisions"]] == ["admit", "suspend"]
    with logged(court) as log:
        actions = [entry.action for entry in log.entries()]
    assert actions.count(Action.MEMBER_DECIDED) == 4
    assert actions.count(Action.NETWORK_JOINED) == 1
    assert call(["--home", str(court.path), "network", "list"]) == 0
    assert "suspended" in capsys.readouterr().out


def test_key_files_stay_private(homes: dict[str, Home], audit: AuditLog) -> None:
    keys.renew(homes["tax"], audit, [Usage.MASK, Usage.APPROVE], NOW)
    for file in (homes["tax"].path / "keys").iterdir():
        assert file.stat().st_mode & 0o777 == keyring.SECRET_MODE
