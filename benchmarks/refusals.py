"""Whether the time of a refusal tells why (GOVERNANCE.md, acceptance test 18): 1,000 trials each.

    python -m benchmarks refusals

A bank asks, over processes, about enterprises that nobody knows (a valid grant, no record), such
whose grant is revoked, and such whose grant is another bank's: fifty of each kind in turn, so that
none is better known to a cache. The three come in random order, one question at a time, so that
each meets the same machine. Each row is the Kolmogorov-Smirnov statistic of two of them; its
reference is what two equal distributions exceed once in a hundred times, so that a ratio below 1
says: not told apart.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from benchmarks.verification import CODES, Given, about, city, granted, hold
from clients.coordinator_client import CoordinatorClient
from clients.store import opened
from clients.verifier import Verifier
from federation.codes import code_for_row
from federation.enquiry import Answered
from federation.envelope import sign
from federation.errors import LianmoError
from federation.grants import BySubject, Change, GrantEvent
from federation.objects import utc_text

TRIALS = 1000
FIRMS = 50  # of each kind; each has a budget of its own, which 20 questions do not spend
UNKNOWN = code_for_row(2, np.arange(FIRMS))
Ask = Callable[[str], tuple[Answered | None, float]]
LIMIT = math.sqrt(-math.log(0.01 / 2) / 2) * math.sqrt(2 / TRIALS)  # Smirnov's, two samples


def rows() -> list[dict[str, object]]:
    """The table's rows."""
    with tempfile.TemporaryDirectory(prefix="lianmo-") as folder, city(Path(folder)) as homes:
        strangers = [granted(homes, code.decode()) for code in UNKNOWN]
        revoked = [granted(homes, code.decode()) for code in CODES[:FIRMS]]
        others = CODES[FIRMS : 2 * FIRMS]
        elsewhere = [granted(homes, code.decode(), grantee="audit") for code in others]
        home = homes["bank"]
        kinds = {"unknown": strangers, "revoked": revoked, "ungranted": elsewhere}
        hold(home, list(itertools.chain(*kinds.values())))
        with opened(home.database_url) as store, CoordinatorClient(home, retry_s=5) as client:
            verifier = Verifier(home, store, client, lambda: datetime.now(UTC))

            def ask(grant: str) -> tuple[Answered | None, float]:
                began = time.perf_counter()
                found = verifier.ask(about(grant))
                return found.result, 1000 * (time.perf_counter() - began)

            _until(ask, revoked[-1].bundle.digest, Answered.MATCH, Answered.NO_MATCH)
            for given in revoked:
                client.hand_in_event(_revocation(given))
            _until(ask, revoked[-1].bundle.digest, Answered.REFUSED)
            turns = {name: itertools.cycle(given) for name, given in kinds.items()}
            times: dict[str, list[float]] = {name: [] for name in kinds}
            order = [name for name in kinds for _ in range(TRIALS)]
            random.shuffle(order)
            for name in order:
                result, took = ask(next(turns[name]).bundle.digest)
                if result is not Answered.REFUSED:
                    raise RuntimeError(f"{name} was answered {result}")
                times[name].append(took)
    return [_row(a, b, times) for a, b in itertools.combinations(times, 2)]


def _revocation(given: Given) -> BySubject:
    now, (card, certificate) = utc_text(datetime.now(UTC)), given.proof
    event = GrantEvent(
        grant=given.bundle.digest, change=Change.REVOKE, number=1, created=now, effective=now
    )
    return BySubject(signed=sign(event, given.key), card=card, certificate=certificate)


def _until(ask: Ask, grant: str, *wanted: Answered) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if ask(grant)[0] in wanted:
                return
        except LianmoError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the bureau does not answer as it should")


def _row(a: str, b: str, times: dict[str, list[float]]) -> dict[str, object]:
    found = ks_2samp(times[a], times[b])
    medians = f"medians {statistics.median(times[a]):.1f} and {statistics.median(times[b]):.1f} ms"
    return {
        "name": f"{a} or {b}",
        "value": f"{found.statistic:.3f}",
        "unit": f"KS statistic, {TRIALS} each",
        "reference": f"{LIMIT:.3f}",
        "ratio": f"{found.statistic / LIMIT:.2f}",
        "note": f"p {found.pvalue:.2g}, {medians}, load {os.getloadavg()[0]:.1f}",
    }


if __name__ == "__main__":
    for line in rows():
        print(line)
