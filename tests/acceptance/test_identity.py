"""Acceptance tests 23, 45, 46, 48 and 49 of GOVERNANCE.md: keys, signatures, bytes, files."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from clients import keys, network
from clients.cli.main import call
from clients.home import Home
from federation.envelope import Signature, sign
from federation.errors import IntegrityError, LianmoError, Refused
from federation.network import Bundle, check_charter
from federation.objects import Approval, Card, Usage
from federation.trust import verify_card
from tests.acceptance.homes import found, logged, make_homes
from tests.clients.test_keys import Carrier
from tests.federation import networks
from tests.federation.parties import NOW, approve, make_org, trust_of
from tests.server.governing import BANK, TAX
from tests.server.test_app import Site

MADE = datetime(2026, 11, 23, 11, tzinfo=UTC)
LATER = MADE + timedelta(hours=1)
KINDS = {"bank-a": "bank", "tax": "department", "court": "department"}


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, Home]:
    return make_homes(tmp_path / "homes", KINDS, MADE)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.close()


# --- 23 -------------------------------------------------------------------------------------------


def test_a23_the_coordinator_cannot_register_a_key_of_one_under_another(
    homes: dict[str, Home],
) -> None:
    """court's administrator and the coordinator together show a card with tax's approval key."""
    tax, court, bank = homes["tax"], homes["court"], homes["bank-a"]
    borrowed = tax.own().of_usage(Usage.APPROVE)[0]
    records = [k for k in court.own().keys if k.usage is not Usage.APPROVE]
    plain = court.own().model_dump() | {"serial": 2, "keys": [*records, borrowed]}
    plain["keys"] = [key.model_dump() for key in (*court.own().keys, borrowed)]
    card = Card.model_validate(plain)
    signers = [court.key(k.usage) for k in court.own().keys if k.alg == "Ed25519"]
    with pytest.raises(IntegrityError, match="each of its signing keys"):
        verify_card(sign(card, *signers))
    careless = sign(card, *signers, tax.key(Usage.APPROVE))  # tax was made to sign for it
    verify_card(careless)
    before = bank.trust().envelope("court")
    with logged(bank) as audit:
        entries = len(audit.entries())
        done = network.sync(bank, audit, Carrier(careless), LATER)  # type: ignore[arg-type]
        assert "belongs to tax" in str(done.refused[0])
        assert len(audit.entries()) == entries
    assert bank.trust().envelope("court") == before
    word = sign(_word("court"), tax.key(Usage.APPROVE))
    with pytest.raises(IntegrityError, match="another organisation"):
        bank.trust().verify(word, Approval, Usage.APPROVE, NOW, "court")


def _word(org: str) -> Approval:
    return approve(make_org(org), "0" * 64).unverified(Approval)


# --- 45 -------------------------------------------------------------------------------------------


def _other_curves() -> list[tuple[str, str, bytes]]:
    message = approve(TAX, "0" * 64).pae()
    p256, p384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    k1 = ec.generate_private_key(ec.SECP256K1())
    return [
        ("P-256", "a signature of another curve", p256.sign(message, ec.ECDSA(hashes.SHA256()))),
        ("P-384", "a signature of another curve", p384.sign(message, ec.ECDSA(hashes.SHA384()))),
        (
            "SM2",
            "of SM2's length under an Ed25519 key id",
            k1.sign(message, ec.ECDSA(hashes.SM3())),
        ),
        ("Ed25519", "the same, said to be Ed25519", k1.sign(message, ec.ECDSA(hashes.SM3()))),
        ("none", "no signature", b""),
        ("HS256", "an HMAC under the public key", b"\0" * 32),
    ]


# by name: the signatures are drawn, and test processes must agree on their tests' names
@pytest.mark.parametrize(
    ("alg", "what", "sig"), [pytest.param(*row, id=row[1]) for row in _other_curves()]
)
def test_a45_no_algorithm_but_the_keys_own_signs(alg: str, what: str, sig: bytes) -> None:
    good = approve(TAX, "0" * 64)
    claim = Signature(keyid=TAX.key(Usage.APPROVE).key_id, alg=alg, sig=sig)
    forged = good.model_copy(update={"signatures": (claim,)})
    trust = trust_of(TAX)
    assert trust.verify(good, Approval, Usage.APPROVE, NOW).org == "tax"
    with pytest.raises(IntegrityError):
        trust.verify(forged, Approval, Usage.APPROVE, NOW)
    net = networks.Net(networks.found(BANK, TAX, quorum=2), trust_of(BANK, TAX))
    decision = networks.signed(net.next(network.Act.ADMIT, TAX), (BANK, TAX))
    claim = Signature(keyid=TAX.key(Usage.ADMIN).key_id, alg=alg, sig=sig)
    forged = decision.model_copy(update={"signatures": (decision.signatures[0], claim)})
    with pytest.raises(IntegrityError, match="does not hold"):
        net.standing().check_decision(forged)


# --- 46 -------------------------------------------------------------------------------------------

BAD_BODIES = {
    "10 MB": b"[" * 10_000_000,
    "10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "NaN": b'{"payload":NaN}',
    "2^53": b'{"payload":9007199254740992}',
    "1.0": b'{"payload":1.0}',
    "twice": b'{"payload":"","payload":""}',
    "NFD": '{"e\u0301":1}'.encode(),
    "empty": b"",
}
POSTS = ("/jobs", "/jobs/x/approvals", "/jobs/x/progress", "/jobs/x/stop", "/network")
PUTS = ("/organisations/me", "/catalogue/payments")


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a46_bytes_that_can_be_read_in_two_manners_are_refused_at_every_endpoint(
    site: Site, body: bytes
) -> None:
    for method, paths in (("POST", POSTS), ("PUT", PUTS)):
        for path in paths:
            answer = site.ask(BANK, method, f"/api/v1{path}", content=body)
            assert 400 <= answer.status_code < 500, (path, answer.text)
            told = json.loads(answer.content)
            assert "Traceback" not in answer.text
            assert told["status"] == answer.status_code


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a46_files_too(body: bytes, tmp_path: Path, homes: dict[str, Home], capsys: Any) -> None:
    file = tmp_path / "file"
    file.write_bytes(body)
    base = ["--home", str(homes["tax"].path)]
    for words in (["org", "trust", str(file), "--yes"], ["network", "join", str(file), "--yes"]):
        assert call([*base, *words]) == 4
        assert "Traceback" not in capsys.readouterr().err


# --- 48 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["node", "start"], ["org", "list"], ["network", "list"]])
def test_a48_a_key_that_others_can_read_stops_every_command(
    homes: dict[str, Home], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (homes["tax"].path / "keys" / "approve.pem").chmod(0o644)
    assert call(["--home", str(homes["tax"].path), *words]) == 3
    assert "chmod 0600" in capsys.readouterr().err


def test_a48_no_line_at_debug_holds_a_private_key(
    homes: dict[str, Home], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        found(homes, ["bank-a", "tax", "court"], MADE)
        with logged(homes["tax"]) as audit:
            keys.renew(homes["tax"], audit, [Usage.MASK, Usage.APPROVE, Usage.TLS], LATER)
            keys.revoke(homes["tax"], audit, "run", "lost", LATER, replace=True)
        for words in (["network", "show"], ["network", "list"], ["org", "keys"], ["org", "show"]):
            assert call(["--home", str(homes["tax"].path), *words]) == 0
    shown = capsys.readouterr()
    text = "\n".join([caplog.text, shown.out, shown.err, *map(repr, homes.values())])
    text += "\n".join(str(record.__dict__) for record in caplog.records)
    for home in homes.values():
        for file in (home.path / "keys").iterdir():
            secret = file.read_bytes()
            body = b"".join(secret.splitlines()[1:-1])
            raw = base64.b64decode(body) if b"PRIVATE" in secret else secret
            for form in (body.decode(), raw.hex(), base64.b64encode(raw[-32:]).decode()):
                assert form[-40:] not in text, file.name


# --- 49 -------------------------------------------------------------------------------------------


def test_a49_a_node_without_the_sm_profile_says_so_by_name(
    homes: dict[str, Home], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    org = make_org("court", code=2)
    card = org.signed_card(Card.model_validate(org.card.model_dump() | {"profile": "sm"}))
    (tmp_path / "card.json").write_bytes(card.to_json())
    charter = networks.found(BANK, TAX, quorum=2, profile="sm")
    (tmp_path / "charter.json").write_bytes(charter.to_json())
    base = ["--home", str(homes["bank-a"].path)]
    for words in (["org", "trust", "card.json"], ["network", "join", "charter.json"]):
        assert call([*base, *words[:2], str(tmp_path / words[2]), "--yes"]) == 3
        assert "this node has no sm profile" in capsys.readouterr().err
    with pytest.raises(Refused, match="no sm profile"):
        check_charter(charter)
    assert not (homes["bank-a"].path / "network").exists()


def test_a49_and_its_documents_are_not_taken_by_a_node_of_another_profile(
    homes: dict[str, Home],
) -> None:
    found(homes, ["bank-a", "tax"], MADE)
    other = networks.found(BANK, TAX, quorum=2, profile="sm")
    with logged(homes["court"]) as audit, pytest.raises(LianmoError):
        network.take(homes["court"], audit, Bundle(charter=other), LATER)
