"""What happens in a round: all of it follows from the round's seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

BANK, DEPARTMENTS, PLATFORM = "bank", ("tax", "court"), "platform"
NODES = (BANK, *DEPARTMENTS)
STAGES = (
    *("agreement", "row keys", "binning", "tokens", "counts", "curvature", "openings", "points"),
    "finish",
)
LASTS_S = (0.3, 1.0, 3.0, 8.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault: of which kind, to whom, when, for how long."""

    seed: int
    kind: str
    victim: str
    at_stage: str | None  # when the coordinator first hears of it, or:
    at_share: float  # of an undisturbed job's time, since its approval
    lasts_s: float

    def __str__(self) -> str:
        moment = f"at {self.at_stage}" if self.at_stage else f"at {self.at_share:.0%}"
        return f"{self.kind} {self.victim} {moment} for {self.lasts_s:g} s"


# kind -> who it can hit, how often it is drawn
KINDS: dict[str, tuple[tuple[str, ...], int]] = {
    "none": ((PLATFORM,), 1),
    "kill": ((*NODES, PLATFORM, "relay", "worker"), 6),
    "pause": ((*NODES, PLATFORM, "relay", "worker"), 3),
    "cut": (tuple(f"{org}-{way}" for org in NODES for way in ("api", "relay")), 3),
    "slow": (tuple(f"{org}-{way}" for org in NODES for way in ("api", "relay")), 1),
    "repeat": (tuple(f"{org}-{way}" for org in NODES for way in ("api", "relay")), 1),
    "change": (tuple(f"{org}-{way}" for org in NODES for way in ("api", "relay")), 1),
    "disk-full": ((*NODES, PLATFORM), 3),
}


def plan_of(seed: int) -> Plan:
    """The round's fault; equal seeds give equal faults, which is how a failure is reproduced."""
    draw = random.Random(seed)  # noqa: S311 - no secret: a failure has to be repeatable
    kinds = [kind for kind, (_, weight) in KINDS.items() for _ in range(weight)]
    kind = draw.choice(kinds)
    return Plan(
        seed=seed,
        kind=kind,
        victim=draw.choice(KINDS[kind][0]),
        at_stage=draw.choice(STAGES) if draw.random() < 0.2 else None,
        at_share=draw.random() * 1.1,
        lasts_s=draw.choice(LASTS_S),
    )
