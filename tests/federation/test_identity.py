"""Cards prove themselves, or are no cards."""

from __future__ import annotations

import base64
import textwrap
from datetime import UTC, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from federation import certificates, identity
from federation.codes import CodeFault, fault_of
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, Refused
from federation.identity import USAGES, PrivateKey, is_fingerprint, key_id
from federation.objects import Card, KeyRecord, KeyStatus, OrgKind, Usage, utc_text
from federation.profile import Intl
from federation.trust import verify_card
from tests.federation.parties import CODES, NOW, Org, make_org


def replace(card: Card, **changes: Any) -> Card:
    return Card.model_validate(card.model_dump() | changes)


def with_key(card: Card, of: Usage, /, **changes: Any) -> Card:
    return replace(
        card,
        keys=[k.model_dump() | (changes if k.usage is of else {}) for k in card.keys],
    )


@pytest.mark.parametrize("kind", OrgKind)
def test_every_kind_of_organisation_makes_a_card_that_proves_itself(kind: OrgKind) -> None:
    org = make_org(f"some-{kind}", kind)
    card, der = verify_card(Envelope.from_json(org.envelope.to_json()))
    assert card == org.card
    assert {key.usage for key in card.keys} == set(USAGES[kind])
    assert x509.load_der_x509_certificate(der).subject.rfc4514_string() == f"CN=some-{kind}"


def test_only_who_needs_a_usage_has_a_key_for_it() -> None:
    having = {usage: {kind for kind in OrgKind if usage in USAGES[kind]} for usage in Usage}
    assert having[Usage.PROPOSE] == {OrgKind.BANK, OrgKind.GUARANTOR}
    assert having[Usage.GRANT] == {OrgKind.PLATFORM, OrgKind.ENTERPRISE}
    assert having[Usage.ADMIN] == having[Usage.TLS] == set(OrgKind)
    assert OrgKind.AUDITOR not in having[Usage.APPROVE]


@pytest.mark.parametrize("usage", Usage)
def test_a_key_survives_its_file(usage: Usage) -> None:
    key = PrivateKey.generate(usage)
    again = PrivateKey.from_pem(usage, key.pem())
    assert (again.key_id, again.alg, again.spki) == (key.key_id, key.alg, key.spki)
    assert key.alg == Intl().algorithm(usage)
    assert Intl().is_key(key.alg, key.spki)
    assert key.key_id == key_id(key.spki)


def test_a_file_without_a_key_of_ours_is_refused() -> None:
    with pytest.raises(IntegrityError, match="holds no private key"):
        PrivateKey.from_pem(
            Usage.RUN, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
        )


def test_keys_do_only_what_they_are_for() -> None:
    mask, run = PrivateKey.generate(Usage.MASK), PrivateKey.generate(Usage.RUN)
    with pytest.raises(TypeError):
        mask.sign(b"")
    with pytest.raises(TypeError):
        run.agree(mask.spki)
    other = PrivateKey.generate(Usage.MASK)
    assert mask.agree(other.spki) == other.agree(mask.spki)
    zero = X25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(ValueError, match="Error computing shared key"):
        mask.agree(mask.spki[:-32] + bytes(len(zero)))


def test_the_fingerprint_is_of_the_whole_admin_key() -> None:
    org = make_org("tax")
    text = org.card.fingerprint()
    assert len(text.split("-")) == 16
    assert text.replace("-", "")[:32] == org.key(Usage.ADMIN).key_id
    assert is_fingerprint(org.card, text)
    assert is_fingerprint(org.card, text.upper().replace("-", " "))
    assert not is_fingerprint(org.card, text[:-1])
    assert not is_fingerprint(org.card, text[:-1] + ("0" if text[-1] != "0" else "1"))
    assert not is_fingerprint(org.card, "")
    assert not is_fingerprint(org.card, "é")


# --- what is no card ------------------------------------------------------------------------------


def test_a_card_needs_every_signing_keys_own_signature() -> None:
    org = make_org("tax")
    signers = identity.card_signers(org.keys.by_usage)
    for left_out in signers:
        envelope = sign(org.card, *(key for key in signers if key is not left_out))
        with pytest.raises(IntegrityError, match="not signed by its admin key and each"):
            verify_card(envelope)


def test_a_key_of_which_only_the_public_half_is_known_cannot_enter_a_card() -> None:
    tax, court = make_org("tax"), make_org("court")
    stolen = court.card.of_usage(Usage.APPROVE)[0]
    greedy = replace(
        tax.card,
        keys=[stolen if key.usage is Usage.APPROVE else key for key in tax.card.keys],
    )
    with pytest.raises(IntegrityError, match="each of its signing keys"):
        verify_card(
            tax.signed_card(greedy).model_copy(
                update={
                    "signatures": tuple(
                        s
                        for s in tax.signed_card(greedy).signatures
                        if s.keyid != tax.key(Usage.APPROVE).key_id
                    )
                }
            )
        )


def test_signatures_that_are_foreign_or_double_are_refused() -> None:
    tax, court = make_org("tax"), make_org("court")
    signers = identity.card_signers(tax.keys.by_usage)
    for extra in (court.key(Usage.ADMIN), signers[0]):
        with pytest.raises(IntegrityError, match="not its own"):
            verify_card(sign(tax.card, *signers, extra))


@pytest.mark.parametrize("sig", [b"", bytes(64), bytes(63), b"\xff" * 64])
def test_a_card_with_a_worthless_signature_is_refused(sig: bytes) -> None:
    envelope = make_org("tax").envelope
    first, *rest = envelope.signatures
    forged = envelope.model_copy(
        update={"signatures": (first.model_copy(update={"sig": sig}), *rest)}
    )
    with pytest.raises(IntegrityError, match="signature does not hold"):
        verify_card(forged)


def test_another_profile_of_cryptography_is_refused_by_name() -> None:
    org = make_org("tax")
    with pytest.raises(Refused, match="this node has no sm profile"):
        verify_card(org.signed_card(replace(org.card, profile="sm")))
    with pytest.raises(Refused, match="this node has no SM2 profile"):
        verify_card(org.signed_card(with_key(org.card, Usage.APPROVE, alg="SM2")))


@pytest.mark.parametrize("alg", ["none", "HS256", "X25519", "ed25519"])
def test_a_key_has_the_algorithm_of_its_usage(alg: str) -> None:
    org = make_org("tax")
    with pytest.raises(Refused, match=f"no {alg} profile"):
        verify_card(org.signed_card(with_key(org.card, Usage.APPROVE, alg=alg)))


SMALL_ORDER = ["01" + "00" * 31, "00" * 32, "ec" + "ff" * 30 + "7f", "01" + "00" * 30 + "80"]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_key_under_which_every_signature_holds_is_no_key(point: str) -> None:
    spki = PrivateKey.generate(Usage.RUN).spki[:-32] + bytes.fromhex(point)
    assert not Intl().is_key("Ed25519", spki)
    assert not Intl().is_signature("Ed25519", spki, b"anything", bytes.fromhex(point) + bytes(32))


def test_a_key_on_another_curve_or_a_broken_one_is_no_key() -> None:
    good = PrivateKey.generate(Usage.NODE).spki
    assert Intl().is_key("P-384", good)
    assert not Intl().is_key("P-256", good)
    assert not Intl().is_key("P-384", good[:-1])
    assert not Intl().is_key("P-384", b"")
    p521 = PrivateKey(Usage.NODE, ec.generate_private_key(ec.SECP521R1()))
    assert not Intl().is_key("P-384", p521.spki)
    point = PrivateKey.generate(Usage.NODE).secret.public_key()
    assert isinstance(point, ec.EllipticCurvePublicKey)
    whole = point.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    short = point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    # the same key written shorter, as OpenSSL reads it too: SEQUENCE, the algorithm, BIT STRING
    inside = whole[2 : 2 + 2 + whole[3]] + b"\x03" + bytes([len(short) + 1, 0]) + short
    again = load_der_public_key(b"\x30" + bytes([len(inside)]) + inside)
    assert again == point
    assert not Intl().is_key("P-384", b"\x30" + bytes([len(inside)]) + inside)


@pytest.mark.parametrize(
    "change",
    [
        {"key_id": "00" * 16},
        {"spki": base64.b64encode(b"something else").decode()},
        {"not_after": utc_text(NOW + timedelta(days=400))},
        {"not_after": utc_text(NOW - timedelta(days=400))},
        {"status": KeyStatus.REVOKED},
        {"since": utc_text(NOW)},
        {"usage": Usage.ADMIN},
        {"not_before": "2026-11-23 12:00:00"},
        {"not_before": "2026-11-23T12:00:00+08:00"},
        {"not_before": "2026-11-23T12:00:00"},
    ],
)
def test_a_malformed_key_record_cannot_exist(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        with_key(make_org("tax").card, Usage.RUN, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"org": "Tax"},
        {"org": "../tax"},
        {"uscc": "91330106Y71047292N"},
        {"uscc": "91330106y71047292m"},
        {"uscc": "９1330106Y71047292M"},
        {"name": ""},
        {"name": "e\u0301tat"},
        {"name": "bank\u202egpj"},
        {"name": "tax\u200b"},
        {"name": "tax\nbank"},
        {"serial": 0},
        {"keys": ()},
        {"ca_certificate": "none"},
        {"unknown": 1},
    ],
)
def test_a_malformed_card_cannot_exist_and_its_error_has_no_values(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        replace(make_org("tax").card, **change)
    assert "71047292" not in str(caught.value)


@pytest.mark.parametrize("good", CODES)
def test_the_short_rule_for_credit_codes_agrees_with_the_whole_one(good: str) -> None:
    card = make_org("tax").card
    for place in range(18):
        for character in "09AXZ":
            code = good[:place] + character + good[place + 1 :]
            is_valid = fault_of(code) is CodeFault.NONE
            try:
                replace(card, uscc=code)
            except ValidationError:
                assert not is_valid, code
            else:
                assert is_valid, code


# --- certificates ---------------------------------------------------------------------------------


def resign(org: Org, **changes: Any) -> Envelope:
    return org.signed_card(replace(org.card, **changes))


def test_a_certificate_of_another_organisation_is_refused() -> None:
    tax, court = make_org("tax"), make_org("court")
    for change in (
        {"tls_certificate": court.card.tls_certificate},
        {"ca_certificate": court.card.ca_certificate},
        {
            "tls_certificate": court.card.tls_certificate,
            "ca_certificate": court.card.ca_certificate,
        },
        {"node_key": court.card.node_key},
        {"tls_certificate": tax.card.ca_certificate},
        {"tls_certificate": tax.card.tls_certificate + court.card.tls_certificate},
    ):
        with pytest.raises(IntegrityError):
            verify_card(resign(tax, **change))


def test_an_authority_under_its_own_name_cannot_stand_in_a_card() -> None:
    """Else a member could name its authority like another's and break the other's connections."""
    tax = make_org("tax")
    authority, tls = tax.keys.authority.secret, tax.key(Usage.TLS).secret
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    assert isinstance(tls, ec.EllipticCurvePrivateKey)
    until = NOW + timedelta(days=300)
    posing = certificates.new_authority("court", authority, NOW)
    leaf = certificates.issue("tax", tls, authority, hosts=(), now=NOW, until=until)
    with pytest.raises(IntegrityError, match="another organisation's name"):
        verify_card(
            resign(
                tax,
                ca_certificate=certificates.pem(posing),
                tls_certificate=certificates.pem(leaf),
            )
        )


def test_a_leaf_that_may_issue_certificates_is_refused() -> None:
    tax = make_org("tax")
    authority, tls = tax.keys.authority.secret, tax.key(Usage.TLS).secret
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    assert isinstance(tls, ec.EllipticCurvePrivateKey)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tax")]))
        .issuer_name(certificates.authority_name("tax"))
        .public_key(tls.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority, hashes.SHA256())
    )
    with pytest.raises(IntegrityError, match="not a leaf right below"):
        verify_card(resign(tax, tls_certificate=certificates.pem(leaf)))


def test_a_certificate_is_for_both_ends_and_lives_as_long_as_its_key() -> None:
    card = make_org("city", "platform").card
    leaf = x509.load_pem_x509_certificate(card.tls_certificate.encode())
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {use.dotted_string for use in uses} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    record: KeyRecord = card.of_usage(Usage.TLS)[0]
    assert utc_text(leaf.not_valid_after_utc.astimezone(UTC)) == record.not_after


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_mangled_certificate_is_an_integrity_error_and_nothing_else(data: st.DataObject) -> None:
    """A hostile member signs whatever it likes; reading it must not bring a node down."""
    tax = make_org("tax")
    name = data.draw(st.sampled_from(["ca_certificate", "tls_certificate"]))
    text = str(getattr(tax.card, name))
    raw = bytearray(base64.b64decode("".join(text.splitlines()[1:-1])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255).filter(lambda b, old=raw[place]: b != old))
    lines = textwrap.fill(base64.b64encode(raw).decode(), 64)
    mangled = f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
    if mangled == text:
        return  # two changes of one place that undid each other
    envelope = resign(tax, **{name: mangled})
    with pytest.raises(IntegrityError):
        verify_card(envelope)


def test_a_card_made_outside_its_keys_life_is_refused() -> None:
    org = make_org("tax")
    for days in (-2, 400):
        with pytest.raises(IntegrityError, match="not in force"):
            verify_card(resign(org, created=utc_text(NOW + timedelta(days=days))))
