"""Organisations for tests: made in 10 ms each, with real keys, that sign real objects.

bank, tax = make_org("bank-a", "bank"), make_org("tax")
trust = trust_of(bank, tax)
manifest = make_manifest("bank-a", ["tax"])
signed = bank.sign(manifest, Usage.PROPOSE)
approvals = [approve(tax, signed)]
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from federation import identity
from federation.envelope import Envelope, sign
from federation.identity import Keys, PrivateKey
from federation.ledger import What
from federation.objects import (
    Approval,
    Card,
    CoverRule,
    Decision,
    DeclaredDisclosure,
    JobManifest,
    JobParty,
    KeyStatus,
    Limits,
    OrgKind,
    Purpose,
    QueryParameters,
    RegistrySnapshot,
    Role,
    ScorecardParameters,
    SignedObject,
    Usage,
    utc_text,
)
from federation.trust import TrustStore

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
CODES = ("91330106Y71047292M", "91310115Y71126484T", "91110105Y71205676A", "91420106Y71364052A")
PACKAGE = hashlib.sha256(b"a release").hexdigest()
CATALOGUE = hashlib.sha256(b"a catalogue entry").hexdigest()


@dataclass(frozen=True)
class Org:
    """An organisation that a test plays."""

    id: str
    keys: Keys = field(repr=False)
    card: Card = field(repr=False)

    @property
    def envelope(self) -> Envelope:
        """Its card, signed as it has to be."""
        return self.signed_card(self.card)

    def key(self, usage: Usage) -> PrivateKey:
        """One of its private keys."""
        return self.keys.by_usage[usage]

    def sign(self, obj: SignedObject, *usages: Usage) -> Envelope:
        """Any object, signed with its keys of these usages."""
        return sign(obj, *(self.key(usage) for usage in usages))

    def signed_card(self, card: Card) -> Envelope:
        """Any card, signed with all its signing keys that the card has as active."""
        active = {key.key_id for key in card.keys if key.status is KeyStatus.ACTIVE}
        signers = identity.card_signers(self.keys.by_usage)
        return sign(card, *(key for key in signers if key.key_id in active))

    def newer(self, **changes: Any) -> Org:
        """The same organisation with its next card."""
        serial = changes.pop("serial", self.card.serial + 1)
        plain = {**self.card.model_dump(), **changes, "serial": serial}
        return Org(self.id, self.keys, Card.model_validate(plain))

    def with_status(self, usage: Usage, status: KeyStatus, since: datetime) -> Org:
        """The same organisation after it put a key on hold or revoked it."""
        return self.newer(
            created=utc_text(since),
            keys=[
                key.model_dump() | {"status": status, "since": utc_text(since)}
                if key.usage is usage
                else key.model_dump()
                for key in self.card.keys
            ],
        )


@functools.cache
def make_org(
    org: str, kind: str = "department", *, now: datetime = NOW - timedelta(days=1), code: int = 0
) -> Org:
    """An organisation with new keys; the same one for the same arguments."""
    keys = identity.generate(OrgKind(kind))
    card = identity.make_card(
        keys,
        org=org,
        name=f"{org} 机构",
        org_kind=OrgKind(kind),
        uscc=CODES[code],
        region="厦门",
        now=now,
    )
    return Org(org, keys, card)


def trust_of(*orgs: Org) -> TrustStore:
    """A store that trusts these."""
    return TrustStore(org.envelope for org in orgs)


def make_manifest(bank: str, departments: list[str], **changes: Any) -> JobManifest:
    """A job of a bank with these departments, and a platform where `platform` names one."""
    platform = changes.pop("platform", None)
    parties = [
        JobParty(
            org=bank,
            role=Role.BANK,
            dataset="loans",
            catalogue_digest=CATALOGUE,
            fields=("age", "amount"),
        ),
        *(
            JobParty(
                org=org,
                role=Role.DEPARTMENT,
                dataset="filings",
                catalogue_digest=CATALOGUE,
                fields=("revenue", "arrears"),
            )
            for org in departments
        ),
        *([JobParty(org=platform, role=Role.PLATFORM)] if platform else []),
    ]
    plain: dict[str, Any] = {
        "job": "sme-card-1",
        "created": utc_text(NOW - timedelta(hours=2)),
        "purpose": Purpose.CREDIT_MODEL_TRAINING,
        "parties": tuple(parties),
        "registry": RegistrySnapshot(
            digest=hashlib.sha256(b"registry").hexdigest(),
            rows=1000,
            region="厦门",
            as_of="2026-10-31",
        ),
        "cover": CoverRule(rows=1000),
        "alignment": "voprf",
        "package_sha256": PACKAGE,
        "parameters": ScorecardParameters(),
        "query": QueryParameters(t_bits=24, reply_bits=40, vmax=16),
        "limits": Limits(customers_max=400, row_keys=400, customers_min=200, tokens=8),
        "disclosures": tuple(
            DeclaredDisclosure(source=org, to=bank, what=What.QUERY_SUMS, count=64, bits=20)
            for org in departments
        ),
        "outputs": (bank,),
        "not_before": utc_text(NOW - timedelta(hours=1)),
        "expires": utc_text(NOW + timedelta(days=7)),
    }
    return JobManifest.model_validate(plain | changes)


def make_approval(org: str, manifest: Envelope | str, **changes: Any) -> Approval:
    """One organisation's word on a manifest: yes, if nothing else is asked for."""
    if isinstance(manifest, Envelope):
        manifest = hashlib.sha256(manifest.payload).hexdigest()
    plain: dict[str, Any] = {
        "manifest": manifest,
        "org": org,
        "decision": Decision.APPROVE,
        "created": utc_text(NOW - timedelta(minutes=30)),
        "valid_from": utc_text(NOW - timedelta(minutes=30)),
        "valid_until": utc_text(NOW + timedelta(days=3)),
        "nonce": "0123456789abcdef" * 2,
    }
    return Approval.model_validate(plain | changes)


def approve(org: Org, manifest: Envelope | str, **changes: Any) -> Envelope:
    """The same, signed with the organisation's approval key."""
    return org.sign(make_approval(org.id, manifest, **changes), Usage.APPROVE)
