"""Networks for tests: a charter, decisions and founders' words, with real keys.

network = Net(found(BANK, TAX, COURT, quorum=2), trust_of(BANK, TAX, COURT))
network.admit(STRANGER, by=(BANK, TAX))
network.standing(words=(BANK, TAX)).require_active("stranger", NOW)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from federation.envelope import Envelope, sign
from federation.network import (
    Act,
    Assessment,
    Charter,
    Founder,
    MemberDecision,
    Standing,
    make_bulletin,
    make_decision,
)
from federation.objects import Usage, utc_text
from federation.trust import TrustStore
from tests.federation.parties import NOW, Org

REPORT = hashlib.sha256(b"an assessor's report").hexdigest()


def make_charter(*founders: Org, quorum: int, **changes: Any) -> Charter:
    """A charter of these founders."""
    plain: dict[str, Any] = {
        "network": "Demo city",
        "founders": [Founder(org=f.id, admin_spki=f.card.admin.spki) for f in founders],
        "quorum": quorum,
        "created": utc_text(NOW - timedelta(hours=3)),
    }
    return Charter.model_validate(plain | changes)


def found(*founders: Org, quorum: int, **changes: Any) -> Envelope:
    """The same, signed by all of them."""
    charter = make_charter(*founders, quorum=quorum, **changes)
    return sign(charter, *(founder.key(Usage.ADMIN) for founder in founders))


def assessed(until: datetime = NOW + timedelta(days=300)) -> Assessment:
    """A good assessment."""
    return Assessment(
        security="level 3",
        authorisation="order 12/2026",
        evidence_digest=REPORT,
        assessor="City audit office",
        valid_until=utc_text(until),
    )


@dataclass
class Net:
    """What one home knows of a network; `decide` adds to it without asking whether it counts."""

    charter: Envelope
    trust: TrustStore
    decisions: list[Envelope] = field(default_factory=list)

    def standing(
        self, words: Sequence[Org] = (), at: datetime = NOW, trust: TrustStore | None = None
    ) -> Standing:
        """The standing, with fresh words of these founders, who know what this home knows."""
        known = Standing(trust or self.trust, self.charter, self.decisions)
        said = [
            org.sign(make_bulletin(known, org.id, at - timedelta(seconds=5)), Usage.WITNESS)
            for org in words
        ]
        return Standing(trust or self.trust, self.charter, self.decisions, said)

    def next(
        self, act: Act, org: Org, at: datetime = NOW - timedelta(hours=2), **changes: Any
    ) -> MemberDecision:
        """The decision that would come next; `changes` may spoil it."""
        reason = "" if act is Act.ADMIT else "because"
        assessment = assessed() if act is Act.ADMIT else None
        if "assessment" in changes:
            assessment = changes.pop("assessment")
        made = make_decision(
            self.standing(), act, org.card, at, reason=reason, assessment=assessment
        )
        return MemberDecision.model_validate(made.model_dump() | changes)

    def decide(self, act: Act, org: Org, by: Sequence[Org], **changes: Any) -> Envelope:
        """The same, signed by these founders, and known from now on."""
        envelope = signed(self.next(act, org, **changes), by)
        self.decisions.append(envelope)
        return envelope

    def admit(self, *orgs: Org, by: Sequence[Org], **changes: Any) -> None:
        """Admit organisations."""
        for org in orgs:
            self.decide(Act.ADMIT, org, by, **changes)


def signed(decision: MemberDecision, by: Sequence[Org]) -> Envelope:
    """A decision under these founders' admin keys."""
    return sign(decision, *(org.key(Usage.ADMIN) for org in by))
