"""Governance over a real database and Flower's real state, with a clock that tests move."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from federation.api import RunReport, TrainReply
from federation.envelope import Envelope
from federation.objects import JobManifest, RunRecord, Usage, utc_text
from federation.package import package_sha256
from federation.trust import TrustStore
from server.flower import SuperLink
from server.governance import Governance, Rules, Task
from server.store import Store
from tests.federation.parties import NOW, Org, approve, make_manifest, make_org, trust_of

BANK, TAX = make_org("bank-a", "bank"), make_org("tax", code=1)
COURT, PLATFORM = make_org("court", code=2), make_org("platform", "platform", code=3)
STRANGER = make_org("stranger", "bank", code=2)
EVERYBODY = (BANK, TAX, COURT, PLATFORM)
PARTIES = (BANK, TAX, COURT)


@dataclass
class Governed:
    """One coordinator's governance and what it did."""

    folder: Path
    now: datetime = NOW
    launched: list[Task] = field(default_factory=list)
    trust: TrustStore = field(default_factory=lambda: trust_of(*EVERYBODY))

    def __post_init__(self) -> None:
        self.store = Store(f"sqlite:///{self.folder / 'coordinator.db'}")
        self.superlink = SuperLink(":flwr-in-memory:")
        self.governance = Governance(
            self.store,
            self.superlink,
            self.launched.append,
            platform="platform",
            trust=lambda: self.trust,
            now=lambda: self.now,
            membership=self.folder / "relay.json",
            rules=Rules(attempts=2),
        )

    def register(self, *orgs: Org) -> None:
        for org in orgs:
            self.governance.register(org.id, org.envelope)

    def manifest(self, **changes: Any) -> JobManifest:
        plain: dict[str, Any] = {"package_sha256": package_sha256(), "platform": "platform"}
        return make_manifest("bank-a", ["tax", "court"], **(plain | changes))

    def submitted(self, **changes: Any) -> Envelope:
        envelope = BANK.sign(self.manifest(**changes), Usage.PROPOSE)
        self.governance.submit("bank-a", envelope)
        return envelope

    def decide(self, org: Org, manifest: Envelope, **changes: Any) -> str:
        word = approve(org, manifest, **changes)
        return self.governance.decide(org.id, self.name(manifest), word).status.value

    def running(self, **changes: Any) -> Envelope:
        """A job that everybody approved and that runs."""
        self.register(*PARTIES)
        manifest = self.submitted(**changes)
        for org in (TAX, COURT, PLATFORM):
            self.decide(org, manifest)
        return manifest

    @staticmethod
    def name(manifest: Envelope) -> str:
        return manifest.unverified(JobManifest).job

    def status(self, manifest: Envelope) -> str:
        return self.governance.job("bank-a", self.name(manifest)).status.value

    def membership(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "relay.json").read_text())
        return content

    def record(self, org: Org, manifest: Envelope, /, **changes: Any) -> Envelope:
        job = manifest.unverified(JobManifest)
        plain: dict[str, Any] = {
            "job": job.job,
            "manifest": job.digest(),
            "org": org.id,
            "attempt": 1,
            "package_sha256": job.package_sha256,
            "fab_sha256": "0" * 64,
            "run_config_sha256": "0" * 64,
            "snapshot": "0" * 64,
            "commitments": (),
            "transcript": (),
            "disclosures": (),
            "tokens": 0,
            "output": None,
            "outcome": "succeeded",
            "stage": "end",
            "started": utc_text(self.now - timedelta(minutes=1)),
            "ended": utc_text(self.now),
        }
        return org.sign(RunRecord.model_validate(plain | changes), Usage.RUN)

    def report(self, **states: str) -> None:
        """The ServerApp of the newest task says how the attempt ended."""
        replies = {
            org: TrainReply.model_validate({"state": state, "stage": "fit", "reference": "ab12"})
            for org, state in states.items()
        }
        task = self.launched[-1]
        self.governance.report(task.run_id, RunReport(state="ended", replies=replies))

    def hand_in(self, org: Org, record: Envelope) -> None:
        task = self.launched[-1]
        self.governance.report(task.run_id, RunReport(state="record", org=org.id, record=record))
