"""What this node answers, by kind of request: for `Provider`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from clients.enquiries import Enquiries
from clients.gate import Gate
from clients.home import Home
from clients.scoring import Scores
from clients.store import Store
from clients.verification import Service
from clients.watching import Watches
from federation.envelope import payload_type
from federation.scoring import ScoreRequest
from federation.verification import VerificationRequest
from federation.watch import WatchRequest


def services(
    home: Home, store: Store, gate: Gate, now: Callable[[], datetime]
) -> Mapping[str, Service[Any]]:
    """Services of one home, by payload type."""
    return {
        payload_type(VerificationRequest): Enquiries(store, gate),
        payload_type(ScoreRequest): Scores(home, store, gate),
        payload_type(WatchRequest): Watches(store, gate, now),
    }
