"""`make faults`: rounds of the campaign outside the test suite; `FAULTS=500 SEED=1`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.campaign import Campaign, Round
from tests.faults.world import World


def main() -> int:
    """Run the rounds; 0 if nothing was wrong in any of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; then one more")
    given = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="lianmo-faults-") as name, World(Path(name)) as world:
        campaign = Campaign(world, say)
        quiet = campaign.calibrate()
        say(f"undisturbed: {quiet.status}, {quiet.seconds:.1f} s, AUC {campaign.usual_auc:.4f}")
        for text in quiet.problems:
            say(f"    PROBLEM: {text}")
        for seed in range(given.seed, given.seed + given.rounds):
            found = campaign.run(seed)
            rounds.append(found)
            if found.problems:
                say(f"    again: make faults FAULTS=1 SEED={seed}")
    wrong = [item for item in rounds if item.problems]
    ends = Counter(item.status for item in rounds)
    say(
        f"{len(rounds)} rounds in {time.monotonic() - began:.0f} s, "
        f"seeds {given.seed} to {given.seed + given.rounds - 1}: "
        + ", ".join(f"{count} {status}" for status, count in ends.items())
        + f"; {len(wrong)} with a problem"
        + (f": seeds {', '.join(str(item.plan.seed) for item in wrong)}" if wrong else "")
    )
    return 1 if wrong or quiet.problems else 0


if __name__ == "__main__":
    sys.exit(main())
