"""The persons who approve for an organisation, each with a key of its own, apart from the node.

    new     anywhere   a key in a file that a passphrase opens, and a request that the key signs
    add     the home   the admin key certifies the request: a newer card, which others then trust
    open    anywhere   the person's key, for one signature

The home's own approval key stays what it was: the key of whoever works at the home. Two persons are
two holders in the card, so it and one person's file are enough for the two-person rule.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clients import keys
from clients.audit import AuditLog
from clients.home import Home, explain
from clients.keys import Changed
from clients.store import Store
from federation import identity, keyring
from federation.envelope import Envelope, sign
from federation.errors import Conflict, NotFound, Refused, UsageError
from federation.identity import PrivateKey
from federation.objects import Base64, KeyId, KeyRecord, Name, OrgId, Usage, utc_text
from federation.persons import distinct
from federation.possession import KeyRequest, proof_of
from federation.profile import profile

# OWASP Password Storage Cheat Sheet for scrypt: 128 MiB, about half a second. PKCS #8 as OpenSSL
# writes it stretches a passphrase by 2,048 rounds of PBKDF2 only.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**17, 8, 1
PASSPHRASE_MIN = 10
REQUEST_SUFFIX = ".request"
FILE_MAX_BYTES = 4096


class KeyFile(BaseModel):
    """A person's approval key as a file; without the passphrase it is of no use."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    org: OrgId
    holder: Name
    key_id: KeyId
    salt: Base64
    nonce: Base64
    sealed: Base64 = Field(repr=False)  # the 32 bytes, AES-256-GCM under scrypt of the passphrase

    def about(self) -> bytes:
        """What the seal also covers."""
        return json.dumps(["lianmo/v1/approver", self.org, self.holder, self.key_id]).encode()


def new(org: str, holder: str, file: Path, passphrase: str) -> tuple[str, Path]:
    """Make a person's key file and its request; returns the key id and the request's file."""
    if len(passphrase) < PASSPHRASE_MIN:
        raise UsageError(f"a passphrase has at least {PASSPHRASE_MIN} characters")
    beside = file.with_name(file.name + REQUEST_SUFFIX)
    for path in (file, beside):
        if path.exists():
            raise Conflict(f"{path} exists already", todo="choose another file with --out")
    key = PrivateKey.generate(Usage.APPROVE)
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    try:
        asked = KeyRequest(
            org=org, usage=key.usage, alg=key.alg, spki=_text(key.spki), holder=holder
        )
        kept = KeyFile(
            org=org,
            holder=holder,
            key_id=key.key_id,
            salt=_text(salt),
            nonce=_text(nonce),
            sealed="",
        )
    except ValidationError as error:
        raise UsageError(explain(error)) from None
    seal = AESGCM(_stretched(passphrase, salt)).encrypt(nonce, _raw(key), kept.about())
    kept = kept.model_copy(update={"sealed": _text(seal)})
    keyring.write(file, kept.model_dump_json(indent=1).encode(), keyring.SECRET_MODE)
    keyring.write(beside, sign(asked, key).to_json())
    return key.key_id, beside


def read(file: Path) -> KeyFile:
    """What a key file says of itself; UsageError if it is none."""
    try:
        with file.open("rb") as stream:
            return KeyFile.model_validate_json(stream.read(FILE_MAX_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {(error.strerror or 'error').lower()}") from None
    except (ValidationError, UnicodeDecodeError):
        todo = "`lianmo org approver new` makes one"
        raise UsageError(f"{file} is not an approver's key file", todo=todo) from None


def open_key(home: Home, file: Path, passphrase: str) -> PrivateKey:
    """The key in a file, if the passphrase opens it and the card has it for approving.

    Raises Refused for a wrong passphrase, NotFound for a key that nobody certified.
    """
    kept = read(file)
    if kept.org != home.org:
        raise UsageError(f"{file} is an approver's key of {kept.org}", party=home.org)
    try:
        lock = AESGCM(_stretched(passphrase, base64.b64decode(kept.salt)))
        raw = lock.decrypt(
            base64.b64decode(kept.nonce), base64.b64decode(kept.sealed), kept.about()
        )
        key = PrivateKey(Usage.APPROVE, Ed25519PrivateKey.from_private_bytes(raw))
    except (InvalidTag, ValueError, binascii.Error):
        what = f"the passphrase does not open {file.name}, or the file was changed"
        raise Refused(what, party=home.org, todo="try again") from None
    records = {record.key_id: record for record in home.own().of_usage(Usage.APPROVE)}
    if key.key_id != kept.key_id or key.key_id not in records:
        todo = f"`lianmo org approver add {file.name}{REQUEST_SUFFIX}` certifies it"
        what = f"the card has no active approval key of {kept.holder}"
        raise NotFound(what, party=home.org, todo=todo)
    return key


def add(
    home: Home, store: Store, request: Envelope, now: datetime, *, offline: bool = False
) -> Changed:
    """Certify a person's key with the admin key: a newer card, which the others then fetch.

    Raises Conflict if the key, or a person of that name, is in the card already.
    """
    own = home.own()
    asked, proof = proof_of(request, profile(own.profile))
    if asked.org != home.org:
        raise UsageError(f"the request is of {asked.org}", party=home.org)
    if asked.usage is not Usage.APPROVE:
        raise UsageError(f"the request is for a {asked.usage} key", party=home.org)
    there = own.of_usage(Usage.APPROVE)
    if distinct([*(r.holder for r in there), asked.holder]) == distinct(r.holder for r in there):
        todo = "a person with a new key: revoke the old one first; another person: another name"
        raise Conflict(f"the card has an approval key of {asked.holder}", party=home.org, todo=todo)
    spki = base64.b64decode(asked.spki)
    record = KeyRecord(
        key_id=identity.key_id(spki),
        usage=asked.usage,
        alg=asked.alg,
        spki=asked.spki,
        holder=asked.holder,
        not_before=utc_text(now),
        not_after=utc_text(now + identity.KEY_LIFE),
        proof=proof,
    )
    return keys.add(home, AuditLog(home, store), record, now, offline=offline)


def _stretched(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt, 32, SCRYPT_N, SCRYPT_R, SCRYPT_P).derive(passphrase.encode())


def _raw(key: PrivateKey) -> bytes:
    if not isinstance(key.secret, Ed25519PrivateKey):
        raise TypeError("approval keys are Ed25519")
    return key.secret.private_bytes_raw()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
