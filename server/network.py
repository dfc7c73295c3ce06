"""The coordinator's part in the network: it keeps the founders' documents and gives them on.

Nobody believes it: each home verifies what it gets. What it keeps it has verified too, so that
nothing useless is kept or sent round. Where the platform is a founder, its word that it knows of
nothing newer is signed here, as every founder's node does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from federation.api import NETWORK_S
from federation.envelope import sign
from federation.errors import LianmoError
from federation.keyring import Keyring
from federation.network import Bundle, Standing, make_bulletin
from federation.network_folder import NetworkFolder
from federation.objects import Usage
from federation.trust import TrustStore

log = logging.getLogger(__name__)


class NetworkDesk:
    """The folder `network` of the platform's home, as its coordinator uses it."""

    def __init__(
        self, keyring: Keyring, trust: Callable[[], TrustStore], now: Callable[[], datetime]
    ) -> None:
        self._keyring, self._trust, self._now = keyring, trust, now
        self._folder = NetworkFolder(keyring.path)
        self._lock = threading.Lock()
        self._said: datetime | None = None

    def standing(self) -> Standing:
        """Who takes part, as far as the platform knows."""
        return self._folder.standing(self._trust())

    def bundle(self) -> Bundle:
        """All documents."""
        return self._folder.bundle()

    def take(self, org: str, bundle: Bundle) -> Bundle:
        """Keep what is new and holds, and answer with all there is.

        Raises the first refusal if nothing of it could be kept. NotFound if the platform itself
        has joined no network.
        """
        with self._lock:
            taken = self._folder.sift(bundle, self._trust(), self._now())
            self._folder.keep(taken)
        for decision in taken.decisions:
            extra = {"org": decision.org, "act": decision.act, "from": org}
            log.info("decision of the founders", extra=extra)
        if taken.refused and not taken:
            raise taken.refused[0]
        return self.bundle()

    def tend(self) -> None:
        """Say our word again, if the platform is a founder and it is time."""
        standing, now = self.standing(), self._now()
        org = self._keyring.own().org
        if org not in standing.founders(now):
            return
        if self._said is not None and timedelta(0) <= now - self._said < timedelta(
            seconds=NETWORK_S
        ):
            return
        word = sign(make_bulletin(standing, org, now), self._keyring.key(Usage.WITNESS))
        with self._lock:
            self._folder.keep(self._folder.sift(Bundle(bulletins=(word,)), self._trust(), now))
        self._said = now

    def require_active(self, org: str) -> None:
        """Raises Refused if the organisation does not take part now."""
        self.standing().require_active(org, self._now())

    def active(self) -> frozenset[str]:
        """Who takes part now; nobody while the documents here are damaged."""
        try:
            return self.standing().active(self._now())
        except LianmoError as error:
            log.error("network unreadable", extra={"reason": error.what})
            return frozenset()
