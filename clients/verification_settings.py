"""What a home says about questions on enterprises, in the table `[verification]` of config.toml."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clients.home import Home, explain
from federation.catalogue import Assurance
from federation.errors import UsageError
from federation.grants import Channel
from federation.objects import OrgId, OrgKind, Purpose
from federation.trust import TrustStore
from federation.verification import Policy


class VerificationSettings(BaseModel):
    """A site's own rules: they narrow what grants and catalogue allow, and widen nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # who may certify enterprises' keys, and up to which assurance; unnamed: the platform up to A2
    issuers: dict[OrgId, Assurance] = {}
    status_max_age_s: Annotated[int, Field(ge=1, le=86_400)] = 600
    status_every_s: Annotated[float, Field(gt=0, le=3600)] = 15
    receipts_every_s: Annotated[float, Field(gt=0, le=3600)] = 5  # asks for cosigned receipts
    notice_wait_s: Annotated[int, Field(ge=0, le=600)] = 60  # of a subject's receipt, for witnesses
    watch_every_s: Annotated[float, Field(gt=0, le=86_400)] = 15  # looks for refreshed data
    deny_verifiers: tuple[OrgId, ...] = ()
    deny_fields: tuple[str, ...] = ()  # as `dataset/field`
    deny_purposes: tuple[Purpose, ...] = ()
    deny_channels: tuple[Channel, ...] = ()
    verifier_per_minute: Annotated[int, Field(ge=1)] = 30_000
    subject_per_hour: Annotated[int, Field(ge=1)] = 120  # over all verifiers
    time_class_ms: Annotated[int, Field(ge=1, le=1000)] = 15  # answers leave at its multiples only
    api_port: Annotated[int, Field(ge=1, le=65_535)] | None = None  # loopback; else a socket

    @classmethod
    def of(cls, home: Home) -> VerificationSettings:
        """The home's; raises UsageError if one of them is wrong or unknown."""
        try:
            return cls.model_validate(home.config.verification)
        except ValidationError as error:
            todo = "correct it in [verification] of config.toml"
            raise UsageError(f"setting {explain(error)}", todo=todo) from None

    def policy(self, me: str, trust: TrustStore) -> Policy:
        """The same for the checks."""
        platforms = [org for org in trust if trust.card(org).org_kind is OrgKind.PLATFORM]
        issuers = dict.fromkeys(platforms, Assurance.A2) | self.issuers
        return Policy(
            me=me,
            issuers=issuers,
            status_max_age=timedelta(seconds=self.status_max_age_s),
            deny_verifiers=frozenset(self.deny_verifiers),
            deny_fields=frozenset(self.deny_fields),
            deny_purposes=frozenset(self.deny_purposes),
            deny_channels=frozenset(self.deny_channels),
        )
