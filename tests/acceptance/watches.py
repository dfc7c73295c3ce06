"""A bank that is told when a rule starts to hold for a borrower, in one process."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from clients import datasets
from clients.consent import Consents
from clients.ending import Endings
from clients.gate import Gate
from clients.incoming import Incoming
from clients.store import WatchRow
from clients.verification import Parcel
from clients.verifier import Verifier
from clients.watcher import Wanted, Watched, Watcher
from clients.watching import Watchman
from federation.audit import AuditEntry
from federation.catalogue import Question
from federation.enquiry import Answered
from federation.envelope import sign
from federation.errors import Unavailable
from federation.grants import Channel
from federation.objects import Purpose, Usage, utc_text
from federation.tables import NumberColumn
from federation.verification import WINDOW, Ask, Asking
from tests.acceptance.scores import BANK, DATA, DATASET, GRID, ScoreWorld

ROW = 3  # of the firm


class WatchWorld(ScoreWorld):
    """The same with a bank that takes alerts; `months` are the firm's in arrears."""

    bank = BANK

    @property
    def watcher(self) -> Watcher:
        return Watcher(self.homes[self.bank], self.stores[self.bank], self, self.clock)

    def taker(self) -> Incoming:
        """What a bank's node takes alerts with."""
        return Incoming(self.homes[self.bank], watcher=self.watcher)

    def watchman(self) -> Watchman:
        home, store = self.homes["power"], self.stores["power"]
        return Watchman(home, store, Gate(home, store, self.clock), self, self.clock)

    def carried(self, sender: str, provider: str, sealed: bytes) -> bytes:
        """As in a node: everything that comes to an owner goes through `Incoming`."""
        home, store = self.homes[provider], self.stores[provider]
        if provider not in self.incoming:
            self.incoming[provider] = Incoming(
                home, provider=self.providers[provider], endings=Endings(home, store, self.clock)
            )
        self.frames.append((provider, sealed))
        replies = self.incoming[provider].answer([Parcel(sender, sealed)])
        return self.change(provider, replies[0])

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        if provider != self.bank:
            if self.is_lost:
                raise Unavailable("did not answer in time", party=provider)
            return self.carried(self.bank, provider, sealed)
        if self.is_away:
            raise Unavailable("its node is not connected", party=provider)
        self.frames.append((provider, sealed))
        return self.taker().answer([Parcel("power", sealed)])[0]

    is_away = is_lost = False

    def __init__(self, folder: Path, task: str) -> None:
        self.incoming: dict[str, Incoming] = {}
        super().__init__(folder, task)

    def months(self, value: float, row: int = ROW) -> int:
        """A firm's record changes, the owner refreshes; how many alerts follow."""
        self.now += timedelta(minutes=10)
        self.refresh()
        months, usage = DATA.columns["power"]
        assert isinstance(months, NumberColumn)
        changed = months.values.copy()
        changed[row] = value
        self.write_table("power", (replace(months, values=changed), usage))
        datasets.refresh(self.homes["power"], self.stores["power"], "arrears", self.now)
        return self.watchman().round()

    def watch_grant(self, **changes: Any) -> str:
        item = next(item for item in self.items() if item.field == "months")
        asked = {"ops": (Question.COMPARE,), "thresholds": GRID}
        plain: dict[str, Any] = {
            "channel": Channel.WATCH,
            "model": None,
            "purpose": Purpose.POST_LOAN_MONITORING,
            "items": [item.model_copy(update=asked)],
            "max_uses": 4,
        }
        return self.grant(**(plain | changes))

    def watch(self, grant: str | None = None, **changes: Any) -> Watched:
        question = {
            "dataset": DATASET["power"],
            "field": "months",
            "op": "compare",
            "comparison": "ge",
            "arg": "2",
        }
        plain: dict[str, Any] = {"rule": "arrears-2", "question": question, "debounce_s": 0}
        wanted = Wanted(grant or self.watch_grant(), "power", **(plain | changes))
        return self.watcher.add(wanted)

    def ended(self, watched: Watched) -> str | None:
        with self.stores["power"].reading() as session:
            query = select(WatchRow.ended).where(WatchRow.digest == watched.digest)
            return session.scalars(query).one()

    def forged(self, kind: type[Asking], grant: str, **said: Any) -> AuditEntry | None:
        """What power enters on a request that a bank's own node would not have sent; None if it
        was answered all the same."""
        held = Consents(self.stores[BANK]).get(grant)
        plain: dict[str, Any] = {
            "request": secrets.token_hex(16),
            "grant": held.digest,
            "verifier": BANK,
            "provider": "power",
            "subject": held.grant.subject,
            "purpose": held.grant.purpose,
            "created": utc_text(self.now),
            "expires": utc_text(self.now + WINDOW),
            "nonce": secrets.token_hex(16),
            "reply_key": self.homes[BANK].key(Usage.ENCRYPT).key_id,
            "dataset": DATASET["power"],
        }
        request = kind.model_validate(plain | said)
        bank = Verifier(self.homes[BANK], self.stores[BANK], self, self.clock)
        signed = sign(request, self.homes[BANK].key(Usage.REQUEST))
        sealed = bank.seal(request, Ask(request=signed, grant=held.bundle))
        before = len(self.refusals("power"))
        answer, _ = bank.open(request, self.ask_sealed("power", sealed))
        entered = self.refusals("power")[before:]
        assert len(entered) == (answer.result is Answered.REFUSED)
        return entered[0] if entered else None
