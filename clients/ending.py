"""The owner's side of the end of a watch: entered in the log, looked at no more, told to the bank.

No check but whose word it is: an end opens nothing. It counts whether or not the grant is in force,
the log is witnessed or the bank is suspended, and as often as it comes.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from clients.audit import AuditLog
from clients.home import Home
from clients.store import Store, WatchRow
from clients.verification import Parcel
from clients.watching import KEPT, end_watch
from federation import sealing
from federation.audit import Action, Check, Reason, Result
from federation.envelope import parse, sign
from federation.errors import LianmoError, NotFound
from federation.objects import Usage, utc_text
from federation.trust import TrustStore
from federation.watch import EndReply, WatchEnd, WatchEnded, WatchRequest, check_end

log = logging.getLogger("lianmo.watch")


class Endings:
    """One home's answers to ends of watches."""

    def __init__(self, home: Home, store: Store, now: Callable[[], datetime]) -> None:
        self._home, self._store, self._now = home, store, now
        self._audit = AuditLog(home, store)

    def answer(self, parcels: Sequence[Parcel]) -> list[bytes]:
        """The sealed words on frames that were opened; empty where nobody can read one.

        All in one transaction: an end is cheap to write, and whoever sends many must not make the
        questions beside them wait for as many disks.
        """
        now, trust = self._now(), self._home.trust()
        with self._audit.together(now):
            entered = [
                self._enter(item.sender, item.content or b"", trust, now) for item in parcels
            ]
        return [
            self._sealed(item.sender, *end, trust, now)
            for item, end in zip(parcels, entered, strict=True)
        ]

    def _enter(
        self, sender: str, content: bytes, trust: TrustStore, now: datetime
    ) -> tuple[str, int | None]:
        """The end's digest, and the entry that it has in the log; None if it counts for nothing."""
        digest, seq = hashlib.sha256(content).hexdigest(), None
        try:
            end = check_end(content, sender, self._home.org, trust, now)
            digest = end.digest()
            self._require_kept(end)
            seq = end_watch(self._audit, self._store, end.watch, None, now)
        except LianmoError as error:
            log.warning("watch not ended", extra={"end": digest[:16], "verifier": sender})
            self._audit.append(
                Action.WATCH_ENDED,
                digest,
                now,
                actor=Usage.ANSWER,
                outcome=Result.REFUSED,
                check=Check.PARTIES if isinstance(error, NotFound) else Check.VERIFIER,
                reason=Reason.of(error),
            )
        return digest, seq

    def _sealed(
        self, sender: str, digest: str, seq: int | None, trust: TrustStore, now: datetime
    ) -> bytes:
        if sender not in trust or not (keys := trust.card(sender).of_usage(Usage.ENCRYPT)):
            return b""
        said = WatchEnded(
            org=self._home.org,
            verifier=sender,
            end=digest,
            created=utc_text(now),
            log=None if seq is None else self._audit.origin,
            entry=seq,
        )
        receipt = None if seq is None else self._audit.receipt(seq)
        reply = EndReply(ended=sign(said, self._home.key(Usage.ANSWER)), receipt=receipt)
        recipient = base64.b64decode(keys[-1].spki)
        me = self._home.org
        return sealing.seal(sealing.ANSWER, reply.to_bytes(), sender=me, recipient=recipient)

    def _require_kept(self, end: WatchEnd) -> None:
        """NotFound for a watch that is not there, and for another bank's: they look alike."""
        with self._store.reading() as session:
            row = session.get(WatchRow, end.watch)
            plain = row.request if row is not None and row.part == KEPT else None
        if plain is None or WatchRequest.model_validate(parse(plain)).verifier != end.verifier:
            raise NotFound("there is no such watch of this bank here")
