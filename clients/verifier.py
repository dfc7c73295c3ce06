"""The bank's side of questions on enterprises: sign, seal, ask, verify the answer, keep both.

A question stands in the database before it leaves; its answer counts only if the provider has
signed it for this very request, and its receipt verifies in the provider's log.
"""

from __future__ import annotations

import base64
import dataclasses
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError
from sqlalchemy import bindparam, select

from clients.consent import Consents, StoredGrant
from clients.home import Home, explain
from clients.store import EnquiryRow, Store, table_of
from federation import sealing
from federation.audit import Receipt, verify_receipt
from federation.catalogue import Question
from federation.completion import is_answer
from federation.enquiry import Answered, Comparison
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, LianmoError, NotFound, Refused, UsageError
from federation.grants import BySubject, Grant, State, notice_digest
from federation.objects import Usage, utc_text
from federation.verification import (
    WINDOW,
    Answer,
    Ask,
    Asking,
    OneField,
    Reply,
    VerificationRequest,
    check_answer,
)

AT_ONCE = 16  # questions of a batch that are on their way together
R = TypeVar("R", bound=Asking)
_ENQUIRIES = table_of(EnquiryRow)
_ANSWERED = _ENQUIRIES.update().where(_ENQUIRIES.c.number == bindparam("one"))


class Carrier(Protocol):
    """Takes sealed questions to providers: `CoordinatorClient`, or a function in a test."""

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        """The sealed answer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A question as a bank's system puts it."""

    grant: str  # digest, or its beginning
    provider: str
    dataset: str
    field: str
    op: Question
    comparison: Comparison | None = None
    arg: str | None = dataclasses.field(default=None, repr=False)
    period: str = "current"


@dataclass(frozen=True, slots=True)
class Enquiry:
    """A question that was put, and what came back: no result is no answer yet."""

    id: str
    number: int
    request: VerificationRequest = dataclasses.field(repr=False)
    created: str
    result: Answered | None
    answer: Answer | None = dataclasses.field(default=None, repr=False)
    receipt: Receipt | None = dataclasses.field(default=None, repr=False)


class Verifier:
    """One home's questions."""

    def __init__(
        self, home: Home, store: Store, carrier: Carrier, now: Callable[[], datetime]
    ) -> None:
        self._home, self._store, self._carrier, self._now = home, store, carrier, now

    def ask(self, wanted: Wanted) -> Enquiry:
        """Put one question; raises what went wrong on the way, with the question kept."""
        request, bundle = self.request(wanted)
        signed = sign(request, self._home.key(Usage.REQUEST))
        number = self._keep(request, signed)
        sealed = self.seal(request, Ask(request=signed, grant=bundle))
        answer = self.open(request, self._carrier.ask_sealed(request.provider, sealed))
        return self._settle(number, request, *answer)

    def ask_all(self, wanted: Sequence[Wanted]) -> list[Enquiry | LianmoError]:
        """Put several questions; each ends by itself, well or not, in the order they came."""

        def one(item: Wanted) -> Enquiry | LianmoError:
            try:
                return self.ask(item)
            except LianmoError as error:
                return error

        with ThreadPoolExecutor(AT_ONCE, "ask") as pool:
            return list(pool.map(one, wanted))

    def request(self, wanted: Wanted) -> tuple[VerificationRequest, BySubject]:
        """The request and the grant it rests on; raises NotFound or UsageError."""
        stored = Consents(self._store).get(wanted.grant)
        try:
            request = VerificationRequest(
                **self.asking(stored),
                request=secrets.token_hex(16),
                provider=wanted.provider,
                dataset=wanted.dataset,
                field=wanted.field,
                op=wanted.op,
                comparison=wanted.comparison,
                arg=wanted.arg,
                period=wanted.period,
            )
        except ValidationError as error:
            raise UsageError(f"the question: {explain(error)}") from None
        return request, stored.bundle

    # --- parts that every channel's questions have ------------------------------------------------

    def asking(self, held: StoredGrant) -> dict[str, Any]:
        """What requests of this moment under a grant say; `request` and `provider` are each's."""
        grant, now = held.grant, self._now()
        return {
            "channel": grant.channel,
            "grant": held.digest,
            "verifier": self._home.org,
            "subject": grant.subject,
            "purpose": grant.purpose,
            "created": utc_text(now),
            "expires": utc_text(now + WINDOW),
            "nonce": secrets.token_hex(16),
            "reply_key": self._home.key(Usage.ENCRYPT).key_id,
        }

    def seal(self, request: Asking, ask: Ask) -> bytes:
        """The frame for the provider's node."""
        return self.sealed_to(request.provider, ask.to_bytes())

    def sealed_to(self, provider: str, content: bytes) -> bytes:
        """The same of any content; Refused if its card has no key for it."""
        keys = self._home.trust().card(provider).of_usage(Usage.ENCRYPT)
        if not keys:
            todo = f"ask {provider} for a newer card"
            raise Refused("its card has no active encrypt key", party=provider, todo=todo)
        recipient = base64.b64decode(keys[-1].spki)
        return sealing.seal(sealing.ASK, content, sender=self._home.org, recipient=recipient)

    def open(self, request: Asking, sealed: bytes) -> tuple[Answer, Reply]:
        """The provider's answer to this request, verified with its receipt."""
        key, trust = self._home.key(Usage.ENCRYPT), self._home.trust()
        try:
            content = sealing.unseal(sealing.ANSWER, sealed, sender=request.provider, key=key)
        except IntegrityError:
            raise IntegrityError("its answer does not open", party=request.provider) from None
        answer, reply = check_answer(content, request, trust, self._now())
        if answer.result is not Answered.REFUSED:
            if reply.receipt is None:
                raise IntegrityError("an answer without a receipt", party=request.provider)
            proven = verify_receipt(reply.receipt, trust)
            entry, rests = proven.entry, (request.provider, answer.log, request.grant, answer.entry)
            # an entry that says it was refused, or of something else, is none of the answer
            fits = is_answer(entry) and entry.object == answer.digest()
            if not fits or (proven.org, proven.origin, entry.job, entry.attempt) != rests:
                raise IntegrityError("the receipt is of another answer", party=request.provider)
        return answer, reply

    # --- what is kept -----------------------------------------------------------------------------

    def _keep(self, request: VerificationRequest, signed: Envelope) -> int:
        row = {
            "id": request.request,
            "request": request.digest(),
            "question": signed.to_json(),
            "created": request.created,
        }
        with self._store.writing(EnquiryRow) as session:
            put = session.connection().execute(_ENQUIRIES.insert(), row).inserted_primary_key
            if put is None:
                raise RuntimeError("a question was kept without its number")
            return int(put[0])

    def _settle(
        self, number: int, request: VerificationRequest, answer: Answer, reply: Reply
    ) -> Enquiry:
        receipt, uncosigned = reply.receipt, None
        if receipt is not None and receipt.status == "uncosigned":
            uncosigned = answer.org
        row = {
            "one": number,
            "answer": reply.answer.to_json(),
            "result": answer.result.value,
            "receipt": None if receipt is None else receipt.to_json(),
            "due_from": uncosigned,
        }
        with self._store.writing(EnquiryRow) as session:
            session.connection().execute(_ANSWERED, row)
        name, made = request.request, request.created
        return Enquiry(name, number, request, made, answer.result, answer, receipt)

    def get(self, name: str) -> Enquiry:
        """One question; NotFound if it was never put from here."""
        with self._store.reading() as session:
            row = session.scalar(select(EnquiryRow).where(EnquiryRow.id == name))
            if row is None:
                todo = "`lianmo verify list` shows what there is"
                raise NotFound("there is no such question", todo=todo)
            return _enquiry(row)

    def page(self, before: int | None, limit: int) -> list[Enquiry]:
        """Questions, the newest first; `before`: only those put earlier than that number."""
        with self._store.reading() as session:
            query = select(EnquiryRow).order_by(EnquiryRow.number.desc()).limit(limit)
            if before is not None:
                query = query.where(EnquiryRow.number < before)
            return list(map(_enquiry, session.scalars(query)))


def _enquiry(row: EnquiryRow) -> Enquiry:
    question = Envelope.from_json(row.question).unverified(VerificationRequest)
    answer = None if row.answer is None else Envelope.from_json(row.answer).unverified(Answer)
    receipt = None if row.receipt is None else Receipt.from_json(row.receipt)
    result = None if row.result is None else Answered(row.result)
    return Enquiry(row.id, row.number, question, row.created, result, answer, receipt)


def beyond(grant: Grant, state: State, asked: VerificationRequest) -> str:
    """Why the grant that the bank holds does not open a question, for a person; "" if it would.

    From what the bank has anyway: a provider tells nobody why it refused.
    """
    if state is not State.ACTIVE:
        return f"the grant is {state}"
    place = (asked.provider, asked.dataset, asked.field)
    places = {(item.provider, item.dataset, item.field): item for item in grant.items}
    if place not in places:
        named = ", ".join("/".join(each) for each in places)
        return f"the grant is not on {'/'.join(place)}, but on {named}"
    if notice_digest(grant, grant.notice_lang) != grant.notice_digest:
        return "another release wrote the notice that was signed: draft the grant again"
    item = places[place]
    if asked.op not in item.ops:
        return f"the grant allows {', '.join(item.ops)} of this field, not {asked.op}"
    if asked.period not in item.periods:
        return f"the grant is on the periods {', '.join(item.periods)}"
    if asked.comparison is not None and asked.arg not in item.thresholds:
        return f"the grant is on the thresholds {', '.join(item.thresholds)}"
    return ""


def plain_question(request: OneField) -> dict[str, object]:
    """What is asked of whom, as the command line and the local API show it."""
    return {
        "grant": request.grant,
        "provider": request.provider,
        "dataset": request.dataset,
        "field": request.field,
        "op": request.op.value,
        "comparison": request.comparison.value if request.comparison else None,
        "arg": request.arg,
        "period": request.period,
    }


def plain(enquiry: Enquiry) -> dict[str, object]:
    """As the command line and the local API show it."""
    answer = enquiry.answer
    return {
        "id": enquiry.id,
        "created": enquiry.created,
        **plain_question(enquiry.request),
        "result": enquiry.result.value if enquiry.result else None,
        "value": answer.value if answer else None,
        "as_of": answer.as_of if answer else None,
        "uses_left": answer.uses_left if answer else None,
        "answer": answer.digest() if answer else None,
        "log": answer.log if answer else None,
        "entry": answer.entry if answer else None,
        "receipt": enquiry.receipt.status if enquiry.receipt else None,
    }
