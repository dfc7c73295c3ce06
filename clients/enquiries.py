"""What a question on one enterprise does with the data, on the channels `verify` and `query`: its
budget, the answer that earlier ones imply, and else the value (GOVERNANCE.md, Order of checks at
the provider, 11 and 13)."""

from __future__ import annotations

from collections.abc import Sequence

from clients.consent import Debits
from clients.gate import Gate
from clients.store import Store
from clients.verification import Debit, Outcome
from federation import enquiry
from federation.audit import Check, Reason
from federation.catalogue import Question
from federation.enquiry import Answered, Comparison
from federation.normalise import normalise
from federation.verification import Asked, Denied, VerificationRequest


class Enquiries:
    """One question about one field: match, no match, no record; a band or value on `query`."""

    kind = VerificationRequest

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store, self._debits, self._gate = store, Debits(store), gate

    def debits(self, asked: Asked[VerificationRequest]) -> Sequence[Debit]:
        """One budget: of this subject, field and period."""
        request, place = asked.request, asked.places[0]
        said = place.offered.enquiry
        if said is None:
            raise RuntimeError("a field without an enquiry passed check 8")
        snapshot = self._store.datasets.get(request.dataset).snapshot
        field = request.dataset, request.field
        # a bisection may be split over periods and verifiers: `whole` sees all of them
        scope, whole = self._debits.scopes(request.subject, (*field, request.period), field)
        column = said.column(request.field, request.period)
        basis = enquiry.basis(snapshot, column, said)
        leak = self._debits.leak(scope, basis)
        cost = leak.known.cost(self._question(asked))
        return [Debit(scope, basis, leak, cost, said.bits_budget, whole)]

    def read(
        self,
        asked: Asked[VerificationRequest],
        intents: Sequence[int],
        debits: Sequence[Debit],
    ) -> Outcome:
        """The answer: from the record where earlier answers imply it, else from the data."""
        request, place, debit = asked.request, asked.places[0], debits[0]
        said = place.offered.enquiry
        if said is None:
            raise RuntimeError("a field without an enquiry passed check 8")
        question = self._question(asked)
        # what a question of the same batch was told counts too: the budget is on disk by now
        known = self._debits.leak(debit.scope, debit.basis).known
        told = known.implied(question)
        as_of, catalogue = place.entry.as_of, place.entry.digest()
        if told is None:
            column = said.column(request.field, request.period)
            with self._store.snapshot():
                found = self._gate.one_value(
                    intents[0],
                    dataset=request.dataset,
                    catalogue=catalogue,
                    column=column,
                    subject=request.subject,
                )
            if enquiry.basis(found.snapshot, column, said) != debit.basis:
                what = "the data were refreshed while the question was answered"
                raise Denied(Check.VALUE, Reason.UNFULFILLABLE, what)
            told = enquiry.evaluate(question, found.value, said.normaliser)
        if told.word is Answered.NO_RECORD and not said.no_record:
            what = "there is no record, which this field does not tell"
            raise Denied(Check.VALUE, Reason.NO_RECORD, what)
        return Outcome(
            told.word,
            as_of,
            catalogue,
            told.text,
            said.normaliser if request.op is Question.EQUALS else None,
            ((question, told),),
            question.cut if request.op in (Question.COMPARE, Question.COUNT) else None,
        )

    def _question(self, asked: Asked[VerificationRequest]) -> enquiry.Asked:
        request, said = asked.request, asked.places[0].offered.enquiry
        if said is None:
            raise RuntimeError("a field without an enquiry passed check 8")
        if request.op is Question.EQUALS:
            try:
                text = normalise(said.normaliser, request.arg or "")
            except ValueError:
                what = "there is nothing to compare in the text"
                raise Denied(Check.QUESTION, Reason.SPEC_INVALID, what) from None
            token = self._debits.token(request.subject, said.normaliser, text)
            return enquiry.Asked(request.op, text=text, token=token)
        return enquiry.Asked(
            request.op, said.grid, request.comparison or Comparison.GE, request.arg
        )
