"""One party's home: who it is, its keys, whom it trusts, its settings; everything under one folder.

`LIANMO_HOME` (default `~/.lianmo`) holds `config.toml`, the files of `federation/keyring.py`,
`state.db`, `log/`, `models/` and `runs/`. A home is made as a whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    ValidationError,
)

from federation import identity
from federation.envelope import Envelope
from federation.errors import Conflict, NotFound, UsageError
from federation.identity import PrivateKey
from federation.keyring import DIRECTORY_MODE, Keyring, write, write_once
from federation.network import Standing
from federation.network_folder import NetworkFolder
from federation.objects import (
    Card,
    Digest,
    DigestBegin,
    ObjectName,
    OrgId,
    OrgKind,
    Usage,
    Uscc,
)
from federation.trust import TrustStore

HttpsUrl = Annotated[str, StringConstraints(pattern=r"^https://[^\s/@]+(/[^\s@]*)?$")]
Address = Annotated[
    str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):\d{1,5}$")
]
# A cluster is given this party's columns and keys: over TLS, or on this machine alone.
Scheduler = Annotated[
    str, StringConstraints(pattern=r"^(tls://[^\s/@]+|tcp://(127\.0\.0\.1|localhost)):\d{1,5}$")
]


class Config(BaseModel):
    """Settings of a node: environment (`LIANMO_` and the name) over `config.toml` over default."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    org: OrgId
    coordinator_url: HttpsUrl | None = None
    relay_address: Address | None = None
    database_url: SecretStr | None = None  # default: state.db in the home
    connect_timeout_s: PositiveFloat = 10
    request_timeout_s: PositiveFloat = 30
    peer_timeout_s: PositiveFloat = 600  # how long a party that is there may take for a message
    reconnect_wait_s: PositiveFloat = 600  # how long a party that is away is waited for
    max_frame_bytes: PositiveInt = 256 * 2**20  # of one message between parties, either way
    max_response_bytes: PositiveInt = 16 * 2**20  # of anything that the coordinator sends
    workers: Annotated[int, Field(ge=1, le=256)] = 2  # jobs at once
    audit_window_days: Annotated[int, Field(ge=1, le=3650)] = 180  # seeds, transcripts, answers
    log_years: Annotated[int, Field(ge=1, le=50)] = 5  # records, receipts, logs
    threads: Annotated[int, Field(ge=0, le=256)] = 0  # of heavy local work; 0: one a core
    dask_scheduler: Scheduler | None = None  # of this party's cluster, for what outgrows a machine
    coordinator: dict[str, Any] = {}  # of the platform's home; `server/config.py` reads it
    verification: dict[str, Any] = {}  # `clients/verification_settings.py` reads it
    witness: dict[str, Any] = {}  # `clients/witnessed.py` reads it


class Home:
    """An open home; nothing is read before it is asked for, but its modes are right."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config, self.keyring = path, config, Keyring(path)
        self.network = NetworkFolder(path)

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r}, org={self.org!r})"

    @classmethod
    def create(
        cls,
        path: Path | None = None,
        *,
        org: str,
        kind: str,
        name: str,
        uscc: str,
        region: str,
        coordinator_url: str | None = None,
        relay_address: str | None = None,
        hosts: Sequence[str] = (),
        now: datetime | None = None,
    ) -> Home:
        """Make a home with new keys and the organisation's first card.

        Raises Conflict if there is one already, UsageError if what is given is not well formed; a
        failure leaves nothing behind.
        """
        path = (path or default_path()).absolute()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            todo = "choose another with --home, or use the one that is there"
            raise Conflict(f"{path} exists already", todo=todo)
        settings = {
            "org": org,
            "coordinator_url": coordinator_url,
            "relay_address": relay_address,
        }
        settings = {key: value for key, value in settings.items() if value is not None}
        try:
            Config.model_validate(settings)
            org_kind = _kind(kind)
            keys = identity.generate(org_kind)
            card = identity.make_card(
                keys,
                org=org,
                name=name,
                org_kind=org_kind,
                uscc=uscc,
                region=region,
                now=now or datetime.now(UTC),
                hosts=hosts,
            )
        except ValidationError as error:
            raise UsageError(explain(error)) from None
        except ValueError as error:
            raise UsageError(str(error)) from None
        made = _make_parents(path.parent)
        beside: Path | None = None
        try:
            beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))  # 0700
            text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
            write(beside / "config.toml", text.encode(), 0o600)
            Keyring.create(beside, keys, card)
            for folder in ("log", "models", "runs"):
                (beside / folder).mkdir(mode=DIRECTORY_MODE)
            beside.rename(path)  # takes the place of an empty folder, never of one with content
        except BaseException:
            if beside is not None:
                shutil.rmtree(beside, ignore_errors=True)
            for parent in reversed(made):
                parent.rmdir()
            raise
        return cls.open(path)

    @classmethod
    def open(
        cls, path: Path | None = None, *, environment: Mapping[str, str] | None = None
    ) -> Home:
        """The home at `path`, else at `LIANMO_HOME`, else at `~/.lianmo`.

        Raises NotFound if there is none, Refused if others may read its keys, UsageError if its
        settings are wrong.
        """
        environment = os.environ if environment is None else environment
        path = (path or default_path(environment)).absolute()
        if not (path / "config.toml").is_file():
            todo = "make one with `lianmo init`, or set LIANMO_HOME"
            raise NotFound(f"no home at {path}", todo=todo)
        home = cls(path, _read_config(path / "config.toml", environment))
        home.keyring.require_private()
        return home

    @property
    def org(self) -> str:
        """The organisation's id."""
        return self.config.org

    def key(self, usage: Usage) -> PrivateKey:
        """This organisation's private key for that use."""
        return self.keyring.key(usage)

    def card(self) -> Envelope:
        """This organisation's card, as others get it."""
        return self.keyring.card()

    def own(self) -> Card:
        """This organisation's card, read."""
        return self.keyring.own()

    def trust(self) -> TrustStore:
        """Whom this organisation trusts, itself included."""
        return self.keyring.trust()

    def standing(self) -> Standing:
        """Who takes part in this home's network just now; without one, everybody it trusts."""
        return self.network.standing(self.trust())

    def trust_card(
        self,
        envelope: Envelope,
        *,
        how: str = "by hand",
        compared: str | None = None,
        decided: str | None = None,
    ) -> Card:
        """Trust a card; the caller has made sure of its fingerprint (`Keyring.trust_card`)."""
        return self.keyring.trust_card(envelope, how=how, compared=compared, decided=decided)

    def rounding_secret(self) -> bytes:
        """Rounds every score that this organisation ever seals; made when first asked for.

        One for all jobs, attempts and banks: the same score under fresh rounding, opened again and
        again, would average to its exact value (PROTOCOLS.md section 2).
        """
        file = self.path / "keys" / "rounding.secret"
        if not file.is_file():
            write_once(file, secrets.token_bytes(32), 0o600)
        return file.read_bytes()

    @property
    def tls_files(self) -> tuple[Path, Path]:
        """Certificate and private key, for `ssl.SSLContext.load_cert_chain`."""
        return self.keyring.tls_files

    @property
    def database_url(self) -> str:
        """Where this node keeps its state; may hold a password, so it belongs in no message."""
        if self.config.database_url is not None:
            return self.config.database_url.get_secret_value()
        return f"sqlite:///{self.path / 'state.db'}"

    @property
    def models(self) -> Path:
        """The folder of finished models."""
        return self.path / "models"

    @property
    def log(self) -> Path:
        """The folder of logs."""
        return self.path / "log"

    def runs(self, job: str) -> Path:
        """The folder of one job's runs at this party; made when first asked for."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", job):
            raise UsageError("a job's name is lower case letters, digits, `_`, `.` and `-`")
        folder = self.path / "runs" / job
        folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        return folder


def default_path(environment: Mapping[str, str] | None = None) -> Path:
    """Where this user's home is, or would be."""
    named = (os.environ if environment is None else environment).get("LIANMO_HOME")
    return Path(named).expanduser() if named else Path.home() / ".lianmo"


def explain(error: ValidationError) -> str:
    """What is wrong with which entry, as a person reads it; never its value."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:64] for part in first["loc"])
    kind, context = first["type"], first.get("ctx", {})
    if kind == "string_pattern_mismatch" and context.get("pattern") in _SHAPES:
        what = _SHAPES[context["pattern"]]
    else:
        what = _WORDS.get(kind) or first["msg"].removeprefix("Value error, ")
    return f"{place}: {what}" if place else what


def _kind(word: str) -> OrgKind:
    if word not in [kind.value for kind in OrgKind]:
        raise ValueError(f"{word} is no kind of organisation: {', '.join(OrgKind)}")
    return OrgKind(word)


def _pattern(kind: Any) -> str:
    return next(str(part.pattern) for part in kind.__metadata__ if hasattr(part, "pattern"))


_SHAPES = {  # what a text has to look like, by the pattern that it does not match
    _pattern(OrgId): "2 to 32 of a-z, 0-9, `-` and `_`, a letter first",
    _pattern(ObjectName): "at most 64 of a-z, 0-9, `.`, `-` and `_`, a letter or digit first",
    _pattern(Digest): "a digest has 64 digits of 0-9 and a-f",
    _pattern(DigestBegin): "a digest has 64 digits of 0-9 and a-f; its first 8 are enough",
    _pattern(Uscc): "a unified social credit code has 18 characters",
    _pattern(HttpsUrl): "an address such as https://127.0.0.1:8443",
    _pattern(Address): "host and port, such as 127.0.0.1:8444",
}
_WORDS = {
    "missing": "it is missing",
    "extra_forbidden": "there is no such entry",
    "tuple_type": "it has to be a list",
    "string_type": "it has to be a text, in quotes",
}


def _read_config(file: Path, environment: Mapping[str, str]) -> Config:
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        what = f"{file} is not valid TOML ({error})"
        raise UsageError(what, todo="correct it, or take it from a backup") from None
    names = Config.model_fields.keys() - {"org", "coordinator", "verification", "witness"}
    settings |= {n: v for n in names if (v := environment.get(f"LIANMO_{n.upper()}"))}
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        todo = f"correct it in {file}, or in the environment"
        raise UsageError(f"setting {explain(error)}", todo=todo) from None


def _make_parents(path: Path) -> list[Path]:
    """The folders that had to be made, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
    return missing[::-1]
