"""What a home remembers for the checks on a request (federation/verification.py, `Facts`): its own
catalogue, what enterprises have said since, the status list. Looked up once a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from clients.consent import Consents, Debits
from clients.home import Home
from clients.store import Store
from federation import grants
from federation.catalogue import CATALOGUE_USAGE, Assurance, Dataset
from federation.envelope import Envelope
from federation.errors import LianmoError
from federation.grants import GrantEvent, StatusList, verify_by_subject
from federation.persons import require_signed_by_enough
from federation.trust import TrustStore
from federation.verification import Policy

AGAIN = timedelta(minutes=1)  # then what proved nothing is tried again: its time may have come


class Facts:
    """What this home remembers, for the checks."""

    def __init__(self, home: Home, store: Store, now: Callable[[], datetime]) -> None:
        self._home, self._store, self._now = home, store, now
        self._consents, self._debits = Consents(store), Debits(store)
        self._entries: dict[str, tuple[str, Dataset]] = {}
        self._here: dict[str, Dataset | None] = {}
        self._listed: StatusList | None = None
        self._trust = home.trust()
        self._issuers: Mapping[str, Assurance] = {}
        # events that prove nothing here: with many on one grant, to try each anew at every question
        # would keep all others waiting
        self._unproven, self._tried = set[str](), now()

    def nonce_seen(self, verifier: str, nonce: str) -> bool:
        """Whether this verifier has used it."""
        return self._debits.nonce_seen(verifier, nonce)

    def begin(self, trust: TrustStore, policy: Policy) -> None:
        """A new batch: what is looked up once in it may be another thing in the next."""
        if trust is not self._trust:  # a card has changed: who has signed an entry, perhaps
            self._entries.clear()
        is_young = timedelta(0) <= self._now() - self._tried < AGAIN
        if trust is not self._trust or policy.issuers != self._issuers or not is_young:
            self._unproven, self._tried = set(), self._now()
        self._trust, self._policy, self._issuers = trust, policy, policy.issuers
        self._here.clear()
        self._listed = None

    def entry(self, dataset: str) -> Dataset | None:
        """The own catalogue entry in force; None if it was never signed or does not verify."""
        if dataset not in self._here:
            self._here[dataset] = self._entry(dataset)
        return self._here[dataset]

    def _entry(self, dataset: str) -> Dataset | None:
        try:
            stored = self._store.entries.get(dataset)
            if stored.envelope is None or stored.digest is None:
                return None
            known = self._entries.get(dataset)
            if known is None or known[0] != stored.digest:
                signed = Envelope.from_json(stored.envelope)
                found = self._home.trust().verify(
                    signed, Dataset, CATALOGUE_USAGE, self._now(), org=self._home.org
                )
                require_signed_by_enough(found)
                self._entries[dataset] = known = found.digest, found.object
        except LianmoError:
            return None
        return known[1] if known[0] == stored.digest else None

    def events(self, grant: str) -> Sequence[grants.Said]:
        """What was said since, and by whom."""
        trust, issuers, now = self._trust, self._policy.issuers, self._now()
        return self._consents.events(
            grant,
            lambda bundle: verify_by_subject(bundle, GrantEvent, trust, issuers, now),
            self._unproven,
        )

    def status(self) -> StatusList | None:
        """The newest status list."""
        if self._listed is None:
            self._listed = self._consents.status()
        return self._listed
