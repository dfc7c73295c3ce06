"""X.509 for TLS between nodes: every organisation is its own certificate authority.

P-256 throughout, because gRPC refuses Ed25519 leaves. The common name of a leaf is the
organisation's id, but nobody believes a name: whose a connection is follows from the exact leaf
in the organisation's signed card, since any admitted authority could write any name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLOCK_SKEW = timedelta(minutes=5)
CA_LIFE = timedelta(days=3650)


def authority_name(org: str) -> x509.Name:
    """The only subject under which an organisation's authority is accepted.

    TLS libraries look issuers up by name, so two of one name would break each other's connections.
    """
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{org} (lianmo authority)")])


def new_authority(org: str, key: EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """A self-signed authority for one organisation's leaves."""
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(authority_name(org), authority_name(org), key, now, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def issue(
    org: str,
    key: EllipticCurvePrivateKey,
    authority: EllipticCurvePrivateKey,
    *,
    hosts: Sequence[str],
    now: datetime,
    until: datetime,
) -> x509.Certificate:
    """The organisation's leaf, for both ends of a connection; `hosts` where it is a server."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, org)])
    names = [x509.UniformResourceIdentifier(f"lianmo:org:{org}"), *map(_host, hosts)]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return (
        _builder(subject, authority_name(org), key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority, hashes.SHA256())
    )


def pem(certificate: x509.Certificate) -> str:
    """As it stands in cards and files."""
    return certificate.public_bytes(Encoding.PEM).decode()


def der(text: str) -> bytes:
    """The bytes that a TLS library shows of the peer's certificate."""
    return x509.load_pem_x509_certificate(text.encode()).public_bytes(Encoding.DER)


def leaf_spki(org: str, authority_pem: str, leaf_pem: str) -> bytes:
    """The key of an organisation's leaf, once leaf and authority are what they must be.

    Raises ValueError otherwise. Dates are left to TLS, which looks at them on every connection.
    """
    try:
        return _leaf_spki(org, authority_pem, leaf_pem)
    except (InvalidSignature, TypeError, x509.ExtensionNotFound) as error:
        raise ValueError("the certificate is not issued by the card's authority") from error
    except (UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise ValueError("a certificate of a kind that this node does not read") from error


def _leaf_spki(org: str, authority_pem: str, leaf_pem: str) -> bytes:
    authority = x509.load_pem_x509_certificate(authority_pem.encode())
    leaf = x509.load_pem_x509_certificate(leaf_pem.encode())
    # exactly one certificate a field: whatever followed it would be signed, and read by nobody
    if pem(authority) != authority_pem or pem(leaf) != leaf_pem:
        raise ValueError("a certificate field holds more or less than one certificate")
    if authority.subject != authority_name(org):
        raise ValueError("the authority has another organisation's name")
    if leaf.subject != x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, org)]):
        raise ValueError("the certificate has another organisation's name")
    authority.verify_directly_issued_by(authority)
    leaf.verify_directly_issued_by(authority)
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    root = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    if basic.ca or not root.ca or root.path_length != 0:
        raise ValueError("the certificate is not a leaf right below its authority")
    return leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePrivateKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
