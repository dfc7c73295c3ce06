"""A person's key: in a file that its passphrase opens, in the card under that person's name."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clients import approvers
from clients.home import Home
from clients.store import Store
from federation.envelope import Envelope
from federation.errors import NotFound, Refused, UsageError
from federation.objects import Usage
from federation.trust import TrustStore, verify_card

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PASSPHRASE = "eleven-words-of-a-song"  # noqa: S105 - of keys that live as long as a test


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase's stretching is scrypt's business; here it costs 1/64."""
    monkeypatch.setattr(approvers, "SCRYPT_N", 2**11)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(
        tmp_path / "tax",
        org="tax",
        kind="department",
        name="税务局",
        uscc="91310115Y71126484T",
        region="济宁市",
        now=NOW,
    )


def added(home: Home, file: Path, holder: str = "Li Na") -> str:
    key_id, request = approvers.new("tax", holder, file, PASSPHRASE)
    store = Store.open(home.database_url)
    approvers.add(home, store, Envelope.from_json(request.read_bytes()), NOW)
    store.close()
    return key_id


def test_a_certified_key_signs_and_the_home_s_card_can_be_renewed_without_it(
    home: Home, tmp_path: Path
) -> None:
    others = TrustStore([home.card()])
    key_id = added(home, tmp_path / "li.key")
    key = approvers.open_key(home, tmp_path / "li.key", PASSPHRASE)
    assert key.key_id == key_id
    card, _ = verify_card(home.card())  # signed by the home's keys alone
    assert key_id not in {item.keyid for item in home.card().signatures}
    record = next(item for item in card.keys if item.key_id == key_id)
    assert (record.holder, record.usage) == ("Li Na", Usage.APPROVE)
    assert key_id in {item.key_id for item in others.with_card(home.card()).card("tax").keys}
    assert home.key(Usage.APPROVE).key_id != key_id  # the home's own is as it was


def test_neither_file_nor_home_holds_the_key_in_the_clear(home: Home, tmp_path: Path) -> None:
    added(home, tmp_path / "li.key")
    raw = approvers._raw(approvers.open_key(home, tmp_path / "li.key", PASSPHRASE))
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert raw not in content
        assert raw.hex().encode() not in content
        assert approvers._text(raw).encode() not in content
    assert (tmp_path / "li.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("change", ["passphrase", "holder", "key_id", "sealed"])
def test_a_wrong_passphrase_or_a_changed_file_opens_nothing(
    home: Home, tmp_path: Path, change: str
) -> None:
    file = tmp_path / "li.key"
    added(home, file)
    words = PASSPHRASE
    if change == "passphrase":
        words += "!"
    else:
        plain = json.loads(file.read_text())
        text = plain[change]
        plain[change] = (
            ("B" if text[0] != "B" else "C") + text[1:]
            if change != "key_id"
            else (("0" if text[0] != "0" else "1") + text[1:])
        )
        file.write_text(json.dumps(plain))
    with pytest.raises(Refused, match="does not open"):
        approvers.open_key(home, file, words)


def test_a_key_that_nobody_certified_or_of_another_organisation_is_of_no_use(
    home: Home, tmp_path: Path
) -> None:
    approvers.new("tax", "Li Na", tmp_path / "li.key", PASSPHRASE)
    with pytest.raises(NotFound, match="no active approval key of Li Na"):
        approvers.open_key(home, tmp_path / "li.key", PASSPHRASE)
    approvers.new("court", "Li Na", tmp_path / "other.key", PASSPHRASE)
    with pytest.raises(UsageError, match="of court"):
        approvers.open_key(home, tmp_path / "other.key", PASSPHRASE)
    with pytest.raises(UsageError, match="at least"):
        approvers.new("tax", "Li Na", tmp_path / "short.key", "short")
    assert not (tmp_path / "short.key").exists()
    (tmp_path / "none.key").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UsageError, match="not an approver's key file"):
        approvers.read(tmp_path / "none.key")


def test_a_proof_of_another_holder_or_use_is_none(home: Home, tmp_path: Path) -> None:
    """The record says who holds the key: it cannot be moved to another name by the admin alone."""
    from federation.errors import IntegrityError

    key_id = added(home, tmp_path / "li.key")
    own = home.own()
    keys = [
        key.model_dump() | ({"holder": "Wang Wu"} if key.key_id == key_id else {})
        for key in own.keys
    ]
    moved = own.model_validate({**own.model_dump(), "keys": keys, "serial": own.serial + 1})
    from federation import identity
    from federation.envelope import sign

    signers = {usage: home.key(usage) for usage in identity.USAGES[own.org_kind]}
    with pytest.raises(IntegrityError, match="each of its signing keys"):
        verify_card(sign(moved, *identity.card_signers(signers)))
