"""One organisation's keys and the cards that it trusts, as files; for nodes and coordinator alike.

    keys/<usage>.pem   private keys, 0600; a file that others may read is refused
    keys/authority.pem issues the organisation's TLS certificates
    tls.crt, ca.crt    what TLS libraries want as files
    card.json          the organisation's own card, as it was signed
    trust/<org>.json   cards of others, each as it was signed

Every file is written beside its place and moved there, so that a crash leaves the old one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from federation import identity
from federation.envelope import Envelope, sign
from federation.errors import (
    IntegrityError,
    LianmoError,
    NotFound,
    NotKept,
    Refused,
)
from federation.identity import Keys, PrivateKey
from federation.key_log import KeyLog
from federation.objects import Card, Usage
from federation.trust import TrustStore, verify_card

DIRECTORY_MODE, SECRET_MODE, PUBLIC_MODE = 0o700, 0o600, 0o644


class Keyring:
    """The folder of one organisation; the same files may be changed by another process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trust: tuple[tuple[State, dict[str, State]], TrustStore] | None = None
        self._own: tuple[State, Card] | None = None
        self._keys: dict[Usage, tuple[State, PrivateKey]] = {}
        self._card, self._others = path / "card.json", path / "trust"  # looked at all the time
        self._key_files = {usage: path / "keys" / f"{usage}.pem" for usage in Usage}

    @classmethod
    def create(cls, path: Path, keys: Keys, card: Card) -> Keyring:
        """Write keys and card into an existing folder of mode 0700."""
        (path / "keys").mkdir(mode=DIRECTORY_MODE)
        (path / "trust").mkdir(mode=DIRECTORY_MODE)
        for usage, key in keys.by_usage.items():
            write(path / "keys" / f"{usage}.pem", key.pem(), SECRET_MODE)
        write(path / "keys" / "authority.pem", keys.authority.pem(), SECRET_MODE)
        write(path / "tls.crt", card.tls_certificate.encode())
        write(path / "ca.crt", card.ca_certificate.encode())
        envelope = sign(card, *identity.card_signers(keys.by_usage))
        verify_card(envelope)  # what nobody else would accept must not leave this process
        write(path / "card.json", envelope.to_json())
        return cls(path)

    def require_private(self) -> None:
        """Raises Refused if anybody but the owner may read the keys (or list the folder)."""
        for folder in (self.path, self.path / "keys"):
            require_mode(folder, DIRECTORY_MODE)
        for file in sorted((self.path / "keys").iterdir()):
            require_mode(file, SECRET_MODE)

    def key(self, usage: Usage) -> PrivateKey:
        """This organisation's private key for that use.

        Raises NotFound if it has none, IntegrityError if the file is not the key of the card.
        """
        file = self.key_file(usage)
        try:
            state = _state(file)
        except NotFound:
            own = self.own()
            what = f"this organisation has no {usage} key"
            todo = f"no {own.org_kind} has one: do this in another organisation's home"
            is_missing = usage in identity.USAGES[own.org_kind]
            raise NotFound(what, party=own.org, todo="" if is_missing else todo) from None
        require_mode(file, SECRET_MODE)
        known = self._keys.get(usage)
        if known is not None and known[0] == state and self._is_of_card(known[1]):
            return known[1]
        key = self._read_key(usage, file)
        self._keys[usage] = _state(file), key
        return key

    def _read_key(self, usage: Usage, file: Path) -> PrivateKey:
        key = PrivateKey.from_pem(usage, file.read_bytes())
        if not self._is_of_card(key):
            self.settle()  # perhaps a newer card was taken and its keys not moved yet
            key = PrivateKey.from_pem(usage, file.read_bytes())
        if not self._is_of_card(key):
            what = f"keys/{usage}.pem is not the {usage} key of this organisation's card"
            raise IntegrityError(what, todo="restore both from the same backup")
        return key

    def _is_of_card(self, key: PrivateKey) -> bool:
        return key.key_id in {record.key_id for record in self.own().of_usage(key.usage)}

    def key_file(self, usage: Usage) -> Path:
        """Where a private key is, for libraries that want a file."""
        return self._key_files[usage]

    @property
    def tls_files(self) -> tuple[Path, Path]:
        """Certificate and private key of this organisation's TLS, for `load_cert_chain`."""
        return self.path / "tls.crt", self.key_file(Usage.TLS)

    def card(self) -> Envelope:
        """This organisation's card, as others get it."""
        return _read_card(self._card)

    def own(self) -> Card:
        """The same, read; again when the file changed."""
        state = _state(self._card)
        if self._own is None or self._own[0] != state:
            self._own = state, self.card().unverified(Card)
        return self._own[1]

    def trust(self) -> TrustStore:
        """Whom this organisation trusts, itself included; read again when a file changed."""
        others = _states(self._others, ".json")
        state = _state(self._card), others
        if self._trust is None or self._trust[0] != state:
            files = [self._card, *(self._others / name for name in others)]
            self._trust = state, TrustStore(_read_named(file, self.path) for file in files)
        return self._trust[1]

    def trust_card(
        self,
        envelope: Envelope,
        *,
        how: str = "by hand",
        compared: str | None = None,
        decided: str | None = None,
    ) -> Card:
        """Trust an organisation's card, or its newer one; raises Conflict if it contradicts.

        The caller has made sure of the fingerprint; `compared` and `decided` are for a new admin
        key, as in `TrustStore.with_card`. What changed is noted in the log of key changes.
        """
        before = self.trust()
        after = before.with_card(envelope, compared=compared, decided=decided)
        card = envelope.unverified(Card)
        if card.org == self.own().org:
            if after.envelope(card.org) != before.envelope(card.org):
                raise Refused("a card of this very organisation", party=card.org)
            return card
        known = before.card(card.org) if card.org in before else None
        if known != card:  # first the note: a crash between the two leaves one line too many
            KeyLog(self.path).add(known, card, how, datetime.now(UTC))
        write(self.path / "trust" / f"{card.org}.json", after.envelope(card.org).to_json())
        return card

    def distrust(self, org: str) -> None:
        """Take an organisation's card out; raises NotFound if it is not trusted."""
        self.trust().card(org)
        if org == self.own().org:
            raise Refused("a card of this very organisation", party=org)
        (self.path / "trust" / f"{org}.json").unlink(missing_ok=True)

    # --- the next card ----------------------------------------------------------------------------

    def prepare(self, card: Envelope, fresh: Mapping[Usage, PrivateKey]) -> None:
        """Write the next card and its new keys beside the current ones; nothing changes yet."""
        verify_card(card)
        for usage, key in fresh.items():
            write(self.path / "keys" / f"{usage}.next.pem", key.pem(), SECRET_MODE)
        write(self.path / "card.next.json", card.to_json())

    def prepared(self) -> Envelope | None:
        """A next card that was prepared and not taken; None if there is none that may follow."""
        file = self.path / "card.next.json"
        if not file.is_file():
            return None
        card = _read_card(file)
        return card if card.unverified(Card).serial == self.own().serial + 1 else None

    def advance(self) -> Card:
        """Take the prepared card: from the moment that card.json is replaced it is the home's."""
        if (card := self.prepared()) is None:
            raise NotFound("no next card was prepared", party=self.own().org)
        old = self.own()
        KeyLog(self.path).add(old, card.unverified(Card), "here", datetime.now(UTC))
        write(self.path / "card.json", card.to_json())
        (self.path / "card.next.json").unlink(missing_ok=True)
        self.settle()
        return self.own()

    def settle(self) -> None:
        """Bring key files in line with the card, also after a crash in the middle of `advance`.

        What an X25519 key was agreed or sealed for may have to be opened for a while yet: its old
        half stays, under its id. Old signing keys go.
        """
        own = self.own()
        for file in sorted((self.path / "keys").glob("*.next.pem")):
            usage = Usage(file.name.removesuffix(".next.pem"))
            if PrivateKey.from_pem(usage, file.read_bytes()).key_id not in {
                record.key_id for record in own.of_usage(usage)
            }:
                continue  # of a card that was never taken
            current = self.key_file(usage)
            if usage in (Usage.MASK, Usage.ENCRYPT) and current.is_file():
                old = PrivateKey.from_pem(usage, current.read_bytes())
                write_once(current.with_name(f"{usage}-{old.key_id}.pem"), old.pem())
            file.replace(current)
        for name, text in (("tls.crt", own.tls_certificate), ("ca.crt", own.ca_certificate)):
            if (self.path / name).read_text(encoding="ascii", errors="replace") != text:
                write(self.path / name, text.encode())


def write(path: Path, content: bytes, mode: int = PUBLIC_MODE) -> None:
    """Replace a file, or leave it as it was; it never exists with a wider mode than asked for.

    On disk, name and content, when this returns. Raises NotKept if it cannot be.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _keep_names(path.parent)
    except OSError as error:
        raise not_kept(path, error) from None


def not_kept(path: Path, error: OSError) -> NotKept:
    """What an operator is told of a file or folder that cannot be written."""
    why = (error.strerror or "error").lower()
    todo = "see that the disk has room and that this user may write there, then try again"
    return NotKept(f"{path} cannot be written: {why}", todo=todo)


def _keep_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # else a power cut may take the new name back
    finally:
        os.close(handle)


def write_once(path: Path, content: bytes, mode: int = SECRET_MODE) -> None:
    """Write a file unless it is there already: of two writers the first one's stays, as a whole."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(beside, content, mode)
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
        _keep_names(path.parent)
    except OSError as error:
        raise not_kept(path, error) from None
    finally:
        beside.unlink(missing_ok=True)


def _read_card(file: Path) -> Envelope:
    if not file.is_file():
        raise _not_here(file)
    try:
        return Envelope.from_json(file.read_bytes())
    except LianmoError as error:
        raise IntegrityError(f"{file.name}: {error}", todo="restore it from a backup") from None


State = tuple[int, int, int]  # of a file: another one when it was written again


def _state(file: Path) -> State:
    try:
        return _state_of(file.stat())
    except FileNotFoundError:
        raise _not_here(file) from None


def _state_of(found: os.stat_result) -> State:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _not_here(file: Path) -> NotFound:
    todo = "restore it from a backup; a new home is made with `lianmo init`"
    return NotFound(f"no {file.name} in this home", todo=todo)


def _states(folder: Path, suffix: str) -> dict[str, State]:
    """By file name, in its order; asked for many times over, and `Path.glob` is slow."""
    try:
        with os.scandir(folder) as files:
            found = {file.name: file.stat() for file in files if file.name.endswith(suffix)}
    except FileNotFoundError:
        return {}
    return {name: _state_of(found[name]) for name in sorted(found)}


def _read_named(file: Path, home: Path) -> Envelope:
    """A card from a file that must have the organisation's name."""
    envelope = _read_card(file)
    if file.parent != home and envelope.unverified(Card).org != file.stem:
        raise IntegrityError(f"{file.name} is another organisation's card")
    return envelope


def require_mode(path: Path, mode: int) -> None:
    """Raises Refused where others have more rights to a file or folder than the mode gives."""
    found = path.stat()
    if stat.S_IMODE(found.st_mode) & ~mode:
        what = f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, others could read it"
        raise Refused(what, todo=f"run `chmod {mode:04o} {path}`, then think about new keys")
