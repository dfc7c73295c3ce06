"""A node whose program is an echo: each party sends its name to all others, and gets theirs.

`hold` in the home makes the program wait, `fail` makes it raise; so a test can meet it anywhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from clients import resident
from clients.home import Home
from clients.runner import Admission, Outcome
from clients.store import Store
from federation import fab as fabs
from federation import logs
from federation.checks import ApprovedJob, check_job
from federation.envelope import Envelope
from federation.package import package_sha256
from federation.tasks.party import Party


@dataclass(frozen=True)
class Checked:
    job: ApprovedJob
    snapshot_digest: str = "0" * 64


class CheckingGate:
    """All of the gate but data."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home = home

    def admit(
        self,
        manifest: Envelope,
        approvals: Sequence[Envelope],
        *,
        fab: bytes,
        run_config: Mapping[str, object],
        attempt: int,
    ) -> Checked:
        job = check_job(
            manifest,
            approvals,
            self._home.trust(),
            datetime.now(UTC),
            me=self._home.org,
            package_sha256=package_sha256(),
            standing=self._home.standing(),
        )
        fabs.require_same(manifest, fab, dict(run_config))
        (self._home.path / "opened").touch()
        return Checked(job)

    def require_in_force(self, job: ApprovedJob) -> None:
        """Nothing is remembered."""

    def close(self, manifest: str, attempt: int) -> None:
        """Nothing was counted."""


@dataclass(frozen=True, slots=True)
class Hello:
    name: str


def program(party: Party, admission: Admission) -> Outcome:
    with party.at("echo", 2) as step:
        for channel in party.channels.values():
            channel.send("echo", Hello(party.me))
        step(1)
        for peer, channel in party.channels.items():
            assert channel.receive("echo", Hello).name == peer
    with party.at("wait"):
        while (home.path / "hold").exists():
            party.check()
            time.sleep(0.05)
        if (home.path / "fail").exists():
            raise ValueError("canary-of-a-value")
    with party.at("echo again"):
        for channel in party.channels.values():
            channel.send("echo again", Hello(party.me))
        for channel in party.channels.values():
            channel.receive("echo again", Hello)
    return Outcome(model=b"{}", files={"result.json": b"{}"})


if __name__ == "__main__":
    home = Home.open()
    logs.configure()

    def ready(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    resident.serve(home, ready=ready, warm=False, program=program, gate=CheckingGate)
