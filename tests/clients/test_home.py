"""A home is whole or not there; its keys are its own; it trusts whom it was told to."""

from __future__ import annotations

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from clients.home import Home, default_path
from federation import certificates, keyring
from federation.errors import (
    Conflict,
    IntegrityError,
    LianmoError,
    NotFound,
    NotKept,
    Refused,
    UsageError,
)
from federation.identity import USAGES, PrivateKey
from federation.objects import KeyStatus, OrgKind, Usage
from tests.federation.parties import CODES, make_org

COURT = make_org("court", code=1)


def make(path: Path, org: str = "tax", **changes: Any) -> Home:
    plain: dict[str, Any] = {
        "org": org,
        "kind": "department",
        "name": "税务局",
        "uscc": CODES[0],
        "region": "厦门",
    }
    return Home.create(path, **(plain | changes))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make(tmp_path / "tax")


def everything(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else b""
        for file in sorted(path.rglob("*"))
    }


def test_a_new_home_is_complete_and_only_its_owner_can_read_it(home: Home) -> None:
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    for folder in ("keys", "trust", "log", "models", "runs"):
        assert stat.S_IMODE((home.path / folder).stat().st_mode) == 0o700
    keys = sorted((home.path / "keys").iterdir())
    assert {key.stem for key in keys} == {*USAGES[OrgKind.DEPARTMENT], "authority"}
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert home.org == "tax"
    assert list(home.trust()) == ["tax"]
    for usage in USAGES[OrgKind.DEPARTMENT]:
        assert home.key(usage).usage is usage
    with pytest.raises(NotFound, match="no propose key"):
        home.key(Usage.PROPOSE)


def test_two_homes_share_no_key(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    ids = [{key.key_id for key in home.own().keys} for home in (one, two)]
    assert not ids[0] & ids[1]


def test_a_home_is_found_by_option_environment_or_default(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIANMO_HOME", str(home.path))
    assert Home.open().org == "tax"
    monkeypatch.delenv("LIANMO_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    assert default_path() == tmp_path / "nobody" / ".lianmo"
    with pytest.raises(NotFound, match="lianmo init"):
        Home.open()


# --- whole or not there ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"org": "Tax Bureau"},
        {"org": "../../etc"},
        {"kind": "ministry"},
        {"uscc": CODES[0][:-1] + "A"},
        {"name": ""},
        {"coordinator_url": "http://plain.example"},
        {"coordinator_url": "https://user:secret@example"},
        {"relay_address": "no-port"},
    ],
)
def test_a_wrong_word_makes_no_home(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        make(tmp_path / "below" / "tax", **wrong)
    assert not any(tmp_path.iterdir())
    assert CODES[0][:-1] not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_whichever_write_fails_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    real = os.fsync

    def count(handle: int) -> None:
        nonlocal writes
        writes += 1
        real(handle)

    monkeypatch.setattr(keyring.os, "fsync", count)
    make(tmp_path / "good")
    before = everything(tmp_path)
    assert writes == 2 * (len(USAGES[OrgKind.DEPARTMENT]) + 5)  # content, and name
    for fail_at in range(1, writes + 1):
        left = [fail_at]

        def fail(handle: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(keyring.os, "fsync", fail)
        with pytest.raises(NotKept, match="no space"):
            make(tmp_path / "below" / "tax")
        assert everything(tmp_path) == before


def test_a_home_never_replaces_another(home: Home) -> None:
    before = everything(home.path)
    with pytest.raises(Conflict, match="exists already"):
        make(home.path)
    assert everything(home.path) == before


def test_an_empty_folder_may_become_a_home(tmp_path: Path) -> None:
    (tmp_path / "tax").mkdir(mode=0o755)
    assert stat.S_IMODE(make(tmp_path / "tax").path.stat().st_mode) == 0o700


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
@pytest.mark.parametrize("name", ["run", "authority"])
def test_a_key_that_others_can_read_is_refused(home: Home, mode: int, name: str) -> None:
    """Acceptance test 48."""
    (home.path / "keys" / f"{name}.pem").chmod(mode)
    with pytest.raises(Refused, match="chmod 0600"):
        Home.open(home.path)
    if name == "run":  # and also where the home was open already
        with pytest.raises(Refused, match="chmod 0600"):
            home.key(Usage.RUN)


def test_a_home_that_others_can_list_is_refused(home: Home) -> None:
    for folder in (home.path, home.path / "keys"):
        folder.chmod(0o755)
        with pytest.raises(Refused, match="chmod 0700"):
            Home.open(home.path)
        folder.chmod(0o700)
    assert Home.open(home.path)


def test_a_key_that_is_not_the_cards_is_refused(home: Home) -> None:
    keyring.write(home.path / "keys" / "run.pem", PrivateKey.generate(Usage.RUN).pem(), 0o600)
    with pytest.raises(IntegrityError, match="not the run key"):
        home.key(Usage.RUN)
    other = home.key(Usage.APPROVE).pem()  # one usage a key, also on disk
    keyring.write(home.path / "keys" / "run.pem", other, 0o600)
    with pytest.raises(IntegrityError, match="not the run key"):
        home.key(Usage.RUN)


def test_no_secret_shows_in_representations(tmp_path: Path) -> None:
    home = make(tmp_path / "tax")
    url = "postgresql://tax:canary@db/lianmo"
    home = Home.open(home.path, environment={"LIANMO_DATABASE_URL": url})
    assert home.database_url == url
    assert "canary" not in repr(home) + repr(home.config) + str(home.config.model_dump())


# --- settings -------------------------------------------------------------------------------------


def test_environment_goes_over_file_and_file_over_default(home: Home) -> None:
    file = home.path / "config.toml"
    assert home.config.peer_timeout_s == 600
    file.write_text(file.read_text() + "peer_timeout_s = 5\nworkers = 3\n")
    assert Home.open(home.path).config.peer_timeout_s == 5
    environment = {"LIANMO_PEER_TIMEOUT_S": "7", "LIANMO_ORG": "court", "LIANMO_HOME": "/nowhere"}
    config = Home.open(home.path, environment=environment).config
    assert (config.peer_timeout_s, config.workers, config.org) == (7, 3, "tax")


@pytest.mark.parametrize(
    "line",
    ["peer_timeout = 5", "peer_timeout_s = 0", 'workers = "many canary"', "workers = ", "\xff"],
)
def test_a_wrong_setting_is_named_without_its_value(home: Home, line: str) -> None:
    file = home.path / "config.toml"
    file.write_bytes(file.read_bytes() + line.encode("latin-1"))
    with pytest.raises(UsageError, match=r"config\.toml") as caught:
        Home.open(home.path)
    assert "canary" not in str(caught.value)


def test_state_is_sqlite_in_the_home_if_nothing_else_is_said(home: Home) -> None:
    assert home.database_url == f"sqlite:///{home.path}/state.db"


def test_a_jobs_folder_stays_in_the_home(home: Home) -> None:
    folder = home.runs("sme-card-1")
    assert folder == home.path / "runs" / "sme-card-1"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert home.runs("sme-card-1") == folder
    for name in ("../keys", "a/b", "", ".", "..", "A", "x" * 65, "a\n"):
        with pytest.raises(UsageError):
            home.runs(name)


# --- whom it trusts -------------------------------------------------------------------------------


def test_a_trusted_card_is_still_trusted_by_the_next_process(home: Home) -> None:
    other = Home.open(home.path)
    assert "court" not in other.trust()
    home.trust_card(COURT.envelope)
    assert list(Home.open(home.path).trust()) == ["court", "tax"]
    assert list(other.trust()) == ["court", "tax"]  # an open one sees it as well


def test_a_conflicting_card_changes_no_file(home: Home) -> None:
    home.trust_card(COURT.newer().envelope)
    before = everything(home.path)
    impostor = make_org("court", now=datetime(2026, 1, 1, tzinfo=UTC))
    for card in (COURT.envelope, impostor.newer(serial=9).envelope):
        with pytest.raises(Conflict):
            home.trust_card(card)
    twin = make(home.path.parent / "twin")  # another organisation under this one's id
    with pytest.raises(Conflict):
        home.trust_card(twin.card())
    assert everything(home.path) == before


def test_a_newer_card_takes_the_older_ones_place(home: Home) -> None:
    home.trust_card(COURT.envelope)
    since = datetime(2026, 11, 23, tzinfo=UTC)
    home.trust_card(COURT.with_status(Usage.RUN, KeyStatus.REVOKED, since).envelope)
    card = Home.open(home.path).trust().card("court")
    assert card.serial == 2
    assert not card.of_usage(Usage.RUN)
    assert len(list((home.path / "trust").glob("*.json"))) == 1


def test_ones_own_card_is_trusted_already_and_not_replaced(home: Home) -> None:
    before = everything(home.path)
    assert home.trust_card(home.card()).org == "tax"
    assert everything(home.path) == before


def test_a_damaged_card_is_named_and_stops_everything(home: Home) -> None:
    home.trust_card(COURT.envelope)
    file = home.path / "trust" / "court.json"
    good = file.read_bytes()
    for bad in (good[:-1], good.replace(b"payload", b"payloat", 1), b""):
        file.write_bytes(bad)
        with pytest.raises(IntegrityError, match=r"court\.json"):
            Home.open(home.path).trust()
    file.write_bytes(make_org("social").envelope.to_json())  # a good card under another's name
    with pytest.raises(LianmoError, match=r"court\.json"):
        Home.open(home.path).trust()


# --- TLS ------------------------------------------------------------------------------------------


def handshake(server: Home, client: Home, host: str | None = None) -> tuple[str | None, str | None]:
    """TLS 1.3 between two homes in memory; whom each side's trust store says it talks to."""
    contexts = []
    for me, side in ((server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = host is not None and me is client
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(*me.tls_files)
        trust = me.trust()
        context.load_verify_locations(cadata="".join(trust.tls_ca(org) for org in trust))
        contexts.append(context)
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[0].wrap_bio(pipes[0], pipes[1], server_side=True),
        contexts[1].wrap_bio(pipes[1], pipes[0], server_hostname=host),
    ]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    ders = [end.getpeercert(binary_form=True) or b"" for end in ends]
    return (
        server.trust().org_of_tls_certificate(ders[0]),
        client.trust().org_of_tls_certificate(ders[1]),
    )


def test_two_homes_that_trust_each_other_speak_tls(tmp_path: Path) -> None:
    city = make(tmp_path / "city", "city", kind="platform", hosts=["localhost", "127.0.0.1"])
    tax = make(tmp_path / "tax")
    with pytest.raises(ssl.SSLError):
        handshake(city, tax)
    city.trust_card(tax.card())
    tax.trust_card(city.card())
    assert handshake(city, tax) == ("tax", "city")
    assert handshake(tax, city) == ("city", "tax")  # the same leaf does for both ends
    for host in ("localhost", "127.0.0.1"):
        assert handshake(city, tax, host) == ("tax", "city")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(city, tax, "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tax, city, "localhost")  # a node is no server


def test_a_member_cannot_pose_as_another_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    """Every member is a certificate authority, so TLS alone believes any name that one writes."""
    city = make(tmp_path / "city", "city", kind="platform", hosts=["localhost"])
    tax, court = make(tmp_path / "tax"), make(tmp_path / "court", "court")
    for home in (tax, court):
        city.trust_card(home.card())
        home.trust_card(city.card())
    key = court.key(Usage.TLS).secret
    authority = PrivateKey.from_pem(
        Usage.TLS, (court.path / "keys" / "authority.pem").read_bytes()
    ).secret
    assert isinstance(key, EllipticCurvePrivateKey)
    assert isinstance(authority, EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tax")]))
        .issuer_name(certificates.authority_name("court"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(authority, hashes.SHA256())
    )
    keyring.write(court.path / "tls.crt", certificates.pem(forged).encode())
    assert handshake(city, court) == (None, "city")  # TLS is satisfied, the trust store is not


def test_a_home_ends_with_its_keys(tmp_path: Path) -> None:
    made = datetime.now(UTC) - timedelta(days=366)
    old = make(tmp_path / "old", now=made)
    assert list(old.trust()) == ["tax"]  # receipts of then can still be read
    key = old.own().of_usage(Usage.RUN)[0]
    assert datetime.fromisoformat(key.not_after) < datetime.now(UTC)
