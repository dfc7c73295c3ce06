"""The coordinator's settings and its home's files, read once at the start.

The home is the one of the platform's organisation, made by `lianmo init --kind platform`; what only
a coordinator needs stands in the table `[coordinator]` of its `config.toml`, below the environment
(`LIANMO_COORDINATOR_` and the name).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, SecretStr, ValidationError

from federation.errors import NotFound, UsageError
from federation.keyring import Keyring
from federation.objects import OrgKind

Port = Annotated[int, Field(ge=0, le=65535)]


class CoordinatorConfig(BaseModel):
    """Where the coordinator listens and what it allows."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = "127.0.0.1"  # set to 0.0.0.0 (or one address) to serve other machines
    port: Port = 8443  # default: that of `coordinator_url`
    runtime_port: Port = 8445  # loopback only; fixed, since ServerApps outlive a restart
    relay_port: Port = 8444  # default: that of `relay_address`
    database_url: SecretStr | None = None  # default: coordinator.db in the home
    attempts: Annotated[int, Field(ge=1, le=10)] = 3  # of a job whose parties were lost
    party_wait_s: PositiveFloat = 600  # how long a silent party is waited for in one attempt
    jobs_at_once: Annotated[int, Field(ge=1, le=256)] = 2  # of one organisation; others wait
    spare_workers: Annotated[int, Field(ge=0, le=8)] = 1  # ServerApp processes started ahead
    worker_user: str | None = None  # own account for them; the coordinator needs root for that


class CoordinatorHome:
    """The platform's home as the coordinator's process sees it."""

    def __init__(self, path: Path, config: CoordinatorConfig) -> None:
        self.path, self.config, self.keyring = path, config, Keyring(path)
        self.org = self.keyring.own().org

    @classmethod
    def open(
        cls, path: Path | None = None, *, environment: Mapping[str, str] | None = None
    ) -> CoordinatorHome:
        """The home at `path`, else at `LIANMO_HOME`, else at `~/.lianmo`."""
        environment = os.environ if environment is None else environment
        named = environment.get("LIANMO_HOME")
        path = path or (Path(named).expanduser() if named else Path.home() / ".lianmo")
        path = path.absolute()
        if not (path / "config.toml").is_file():
            todo = "make one with `lianmo init --kind platform`, or set LIANMO_HOME"
            raise NotFound(f"no home at {path}", todo=todo)
        home = cls(path, read_config(path / "config.toml", environment))
        home.keyring.require_private()
        if home.keyring.own().org_kind is not OrgKind.PLATFORM:
            todo = "start the coordinator in the home of the platform"
            raise UsageError("this home is not a platform's", party=home.org, todo=todo)
        return home

    @property
    def database_url(self) -> str:
        """Where governance keeps its state; may hold a password."""
        if self.config.database_url is not None:
            return self.config.database_url.get_secret_value()
        return f"sqlite:///{self.path / 'coordinator.db'}"

    @property
    def flower_database(self) -> str:
        """Where Flower keeps its state."""
        return str(self.path / "superlink.db")

    @property
    def membership(self) -> Path:
        """What the relay reads."""
        return self.path / "relay.json"


def read_config(file: Path, environment: Mapping[str, str]) -> CoordinatorConfig:
    """The settings; raises UsageError if one of them is wrong or unknown."""
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        what = f"{file} is not valid TOML ({error})"
        raise UsageError(what, todo="correct it, or take it from a backup") from None
    own: dict[str, Any] = {}
    if port := _port(str(settings.get("coordinator_url", ""))):
        own["port"] = port
    if port := _port(f"//{settings.get('relay_address', '')}"):
        own["relay_port"] = port
    own |= settings.get("coordinator", {})
    for name in CoordinatorConfig.model_fields:
        if value := environment.get(f"LIANMO_COORDINATOR_{name.upper()}"):
            own[name] = value
    try:
        return CoordinatorConfig.model_validate(own)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        todo = f"correct it in [coordinator] of {file}, or in the environment"
        raise UsageError(f"setting {place}: {first['msg']}", todo=todo) from None


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None
