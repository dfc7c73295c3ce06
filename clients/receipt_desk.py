"""The owner's desk for receipts: it gives those that were given before once more, cosigned
(federation/completion.py).

Only to whom an entry's grant was given, and only entries of answers and alerts: everything else is
`refused`, and the attempt is entered into the log. What is given out is no entry: witnesses would
never rest. Every answer has one size.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select

from clients.audit import AuditLog
from clients.consent import Consents
from clients.home import Home
from clients.store import AuditRow, Store
from clients.verification import Parcel
from federation import sealing
from federation.audit import Action, AuditEntry, Check, Reason, Result
from federation.completion import (
    Proof,
    ReceiptsAnswer,
    ReceiptsRequest,
    Shown,
    check_request,
    is_answer,
    prove,
)
from federation.envelope import sign
from federation.errors import LianmoError, NotFound
from federation.objects import Usage, utc_text
from protocols import merkle

log = logging.getLogger("lianmo.receipts")


class ReceiptDesk:
    """One owner's; it has a tree of the log of its own, so no answer to a question waits for it."""

    def __init__(self, home: Home, store: Store, now: Callable[[], datetime]) -> None:
        self._home, self._store, self._now = home, store, now
        self._audit, self._consents = AuditLog(home, store), Consents(store)
        self._grantees: dict[str, str | None] = {}  # by grant

    def answer(self, parcel: Parcel) -> bytes:
        """The sealed answer; an empty one where nobody can read it.

        Nothing is raised for what a frame holds.
        """
        now, trust = self._now(), self._home.trust()
        digest, reply_key = hashlib.sha256(parcel.sealed).hexdigest(), None
        if parcel.sender in trust and (keys := trust.card(parcel.sender).of_usage(Usage.ENCRYPT)):
            reply_key = keys[-1]
        check = Check.SEALED
        try:
            key = self._home.key(Usage.ENCRYPT)
            content = sealing.unseal(sealing.RECEIPTS, parcel.sealed, sender=parcel.sender, key=key)
            check = Check.VERIFIER
            request = check_request(
                content, parcel.sender, self._home.org, trust, self._home.standing(), now
            )
            digest = request.digest()
            reply_key = next((k for k in keys if k.key_id == request.reply_key), reply_key)
            said = self._said(request, now)
        except LianmoError as error:
            self._refused(parcel.sender, digest, check, Reason.of(error), now)
            said = {}
        if reply_key is None:
            return b""
        answer = ReceiptsAnswer.model_validate(
            {
                "org": self._home.org,
                "verifier": parcel.sender,
                "request": digest,
                "created": utc_text(now),
            }
            | said
        )
        content = sign(answer, self._home.key(Usage.ANSWER)).to_json()
        recipient = base64.b64decode(reply_key.spki)
        return sealing.seal(sealing.PROOFS, content, sender=self._home.org, recipient=recipient)

    def _said(self, request: ReceiptsRequest, now: datetime) -> dict[str, object]:
        """Note, proofs and refusals."""
        tree, seen = self._audit.tree(), self._audit.under_witnesses()
        entries = self._entries([item.entry for item in request.entries])
        proofs, refused = list[Proof](), list[int]()
        for item in request.entries:
            entry = entries.get(item.entry)
            is_theirs = entry is not None and self._is_theirs(entry, item, request.verifier)
            if not is_theirs or not item.entry < item.size <= len(tree):
                refused.append(item.entry)
            elif seen is not None and item.entry < seen[0].checkpoint.size:
                proofs.append(prove(tree, seen[0].checkpoint.size, item))
        if refused:
            self._refused(request.verifier, request.digest(), Check.PARTIES, Reason.GRANTEE, now)
        said: dict[str, object] = {"proofs": proofs, "refused": refused}
        if seen is not None:
            said |= {"note": seen[0].to_text(), "key_id": seen[1]}
        return said

    def _entries(self, seqs: list[int]) -> dict[int, AuditEntry]:
        with self._store.reading() as session:
            leaves = session.scalars(select(AuditRow.leaf).where(AuditRow.seq.in_(seqs))).all()
        found = map(AuditEntry.from_leaf, leaves)
        return {entry.seq: entry for entry in found}

    def _is_theirs(self, entry: AuditEntry, shown: Shown, verifier: str) -> bool:
        """Whether the entry is of an answer or alert under a grant that this bank was given, and
        the bank has its receipt: an alert that was withheld must not show in that one is there."""
        leaf = merkle.leaf_hash(entry.payload()).hex()
        if not is_answer(entry) or entry.job is None or not hmac.compare_digest(leaf, shown.leaf):
            return False
        if entry.job not in self._grantees:
            try:
                self._grantees[entry.job] = self._consents.get(entry.job).grant.grantee
            except NotFound:
                self._grantees[entry.job] = None
        return self._grantees[entry.job] == verifier

    def _refused(
        self, sender: str, digest: str, check: Check, reason: Reason, now: datetime
    ) -> None:
        extra = {"sender": sender, "check": check.value, "reason": reason.value}
        log.warning("receipts refused", extra=extra)
        self._audit.append(
            Action.ASKED,
            digest,
            now,
            actor=Usage.ANSWER,
            outcome=Result.REFUSED,
            check=check,
            reason=reason,
        )
