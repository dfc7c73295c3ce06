"""`make faults`: rounds of the campaigns outside the test suite; `FAULTS=500 SEED=1`, and
`KIND=questions` for those under questions and scores instead of training jobs."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults import in_process, questions
from tests.faults.campaign import Campaign, Round
from tests.faults.question_world import QuestionWorld
from tests.faults.world import World


def main() -> int:
    """Run the rounds; 0 if nothing was wrong in any of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; then one more")
    parser.add_argument("--kind", choices=("jobs", "questions"), default="jobs")
    parser.add_argument("--in-process", type=int, default=0, help="rounds in one process, after")
    given = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    if given.kind == "questions":
        return _questions(given.seed, given.rounds, say)
    rounds: list[Round] = []
    if given.rounds:
        rounds = _with_processes(given.seed, given.rounds, say)
    bad = _in_process(given.seed, given.in_process, say)
    wrong = [item for item in rounds if item.problems]
    ends = Counter(item.status for item in rounds)
    if rounds:  # the first is the quiet one
        told = ", ".join(f"{count} {status}" for status, count in ends.items())
        seeds = f"seeds {given.seed} to {given.seed + given.rounds - 1}"
        say(f"{given.rounds} rounds in {time.monotonic() - began:.0f} s, {seeds}: {told}")
        say(f"{len(wrong)} with a problem: {[item.plan.seed for item in wrong]}")
    return 1 if wrong or bad else 0


def _with_processes(seed: int, count: int, say: Callable[[str], None]) -> list[Round]:
    """Two quiet jobs, whose problems count as well, then the rounds."""
    with tempfile.TemporaryDirectory(prefix="lianmo-faults-") as name, World(Path(name)) as world:
        campaign = Campaign(world, say)
        quiet = campaign.calibrate()
        say(f"undisturbed: {quiet}")
        rounds = [quiet]
        for number in range(seed, seed + count):
            rounds.append(campaign.run(number))
            if rounds[-1].problems:
                say(f"    again: make faults FAULTS=1 SEED={number}")
    return rounds


def _questions(seed: int, count: int, say: Callable[[str], None]) -> int:
    """Rounds under questions and scores; 0 if nothing was wrong in any of them."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="lianmo-faults-") as name,
        QuestionWorld(Path(name)) as world,
    ):
        campaign = questions.Campaign(world, say)
        say(f"begun after {time.monotonic() - began:.0f} s")
        rounds = [campaign.run(questions.plan_of(number)) for number in range(seed, seed + count)]
    kinds = Counter(item.plan.kind for item in rounds)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    say(f"{count} rounds in {time.monotonic() - began:.0f} s, seeds from {seed}: {told}")
    wrong = [item.plan.seed for item in rounds if item.problems]
    say(f"{len(wrong)} with a problem: {wrong}")
    return 1 if wrong else 0


def _in_process(seed: int, count: int, say: Callable[[str], None]) -> int:
    """Rounds without processes; how many were wrong."""
    bad = 0
    for number in range(seed, seed + count):
        line, problems = in_process.run(number)
        say("\n".join([line, *(f"    PROBLEM: {text}" for text in problems)]))
        if problems:
            bad += 1
            say(f"    again: python -m tests.faults --rounds 0 --in-process 1 --seed {number}")
    if count:
        say(f"{count} rounds in process, seeds {seed} to {seed + count - 1}: {bad} with a problem")
    return bad


if __name__ == "__main__":
    sys.exit(main())
