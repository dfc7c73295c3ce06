"""Probing: acceptance tests 15 to 19 of GOVERNANCE.md, with attackers that the defence beats."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from decimal import Decimal
from itertools import cycle, permutations
from pathlib import Path
from typing import Any

import pytest

from clients import datasets
from clients.home import Home
from clients.verification import Parcel, Rates
from federation import enquiry, sealing
from federation.audit import Action, Check, Reason
from federation.catalogue import Assurance, Enquiry, Question
from federation.enquiry import BIT, Answered, Asked, Comparison, Known, Told
from federation.grants import Change
from tests.acceptance.consent import (
    CODES,
    GRID,
    NEVER_SEEN,
    NO_RECORD_FIRM,
    NOW,
    PERIODS,
    REVENUE,
    Firm,
    World,
    copied,
)
from tests.clients.persons import certified

QUESTIONS = 200
CELL = (Decimal("1000000"), Decimal("5000000"))  # of the grid, around REVENUE


class Bisector:
    """Narrows an interval with every answer, and asks for the middle of what is left."""

    def __init__(self) -> None:
        self.low, self.high = Decimal(0), Decimal(10) ** 12
        self.refused = 0

    def next_threshold(self, on_grid: bool) -> str:
        """The middle, or the grid's cut point nearest to it."""
        middle = (self.low + self.high) / 2
        if not on_grid:
            return format(middle.quantize(Decimal("0.01")), "f")
        return min(GRID, key=lambda cut: abs(Decimal(cut) - middle))

    def learn(self, threshold: str, comparison: str, result: str) -> None:
        """What an honest answer says of the value."""
        if result not in ("match", "no_match"):
            self.refused += 1
        elif (result == "match") == (comparison == "ge"):
            self.low = max(self.low, Decimal(threshold))
        else:
            self.high = min(self.high, Decimal(threshold))


def test_without_a_grid_the_same_attacker_finds_the_value() -> None:
    """The attack is real: against any threshold it wins within forty questions."""
    attacker = Bisector()
    for _ in range(40):
        threshold = attacker.next_threshold(on_grid=False)
        cell = enquiry.cell_of((threshold,), Decimal(str(REVENUE)))
        attacker.learn(threshold, "ge", "match" if cell else "no_match")
    assert attacker.high - attacker.low < 10


def test_a15_two_hundred_questions_never_narrow_below_a_cell_nor_beyond_the_budget(
    world: World,
) -> None:
    grant, attacker = world.grant(max_uses=500), Bisector()
    thresholds = cycle([*GRID, None, None, None])
    asked: list[tuple[Any, bytes, str]] = []
    for number in range(QUESTIONS):
        threshold = next(thresholds) or attacker.next_threshold(on_grid=number % 2 == 0)
        world.provider._rates = Rates(10**6, 10**6)
        request = world.request(grant, arg=threshold)
        reply = world.answer_to(world.sealed(request, grant))
        asked.append((request, reply, threshold))
        attacker.learn(threshold, "ge", world.verified(request, reply).result)
    assert attacker.low >= CELL[0] or attacker.low == 0
    assert attacker.high >= CELL[1]
    assert attacker.high - attacker.low >= CELL[1] - CELL[0]
    _, bits = world.counters()
    assert sum(bits.values()) <= 4 * BIT  # bits_budget of `revenue`
    assert attacker.refused >= 40  # off the grid, or beyond the budget
    assert {len(reply) for _, reply, _ in asked} == {len(asked[0][1])}


def test_a16_split_over_banks_grants_and_periods_it_narrows_no_further(
    consent_template: Path, tmp_path: Path
) -> None:
    world = five_banks(consent_template, tmp_path)
    attackers = {period: Bisector() for period in PERIODS}
    grants = {
        bank: world.grant(field="monthly", max_uses=100, grantee=bank) for bank in world.banks
    }
    banks, periods = cycle(world.banks), cycle(PERIODS)
    for number in range(QUESTIONS):
        bank, period = next(banks), next(periods)
        attacker = attackers[period]
        comparison = "lt" if number % 3 == 0 else "ge"
        threshold = attacker.next_threshold(on_grid=number % 4 != 3)
        answer = world.ask(
            grants[bank], verifier=bank, period=period, arg=threshold, comparison=comparison
        )
        attacker.learn(threshold, comparison, answer.result)
    known = [(one.low, one.high) for one in attackers.values()]
    low, high = max(low for low, _ in known), min(high for _, high in known)
    assert high - low >= CELL[1] - CELL[0]  # all periods of all banks put together
    assert low <= Decimal(str(REVENUE)) < high
    assert world.audit.verify().problems == ()
    world.close()


def five_banks(template: Path, folder: Path) -> Any:
    """Three more banks than there are in the world."""
    world: Any = copied(template, folder)
    names = ("bank-c", "bank-d", "bank-e")
    for place, org in enumerate(names):
        home = Home.create(
            folder / org,
            org=org,
            kind="bank",
            name=org,
            region="厦门市",
            uscc=CODES[51 + place].decode(),
            now=NOW.replace(hour=1),
        )
        home.trust_card(world.homes["tax"].card())
        world.homes["tax"].trust_card(home.card())
        world.homes[org] = home
        world.stores[org] = world.stores["bank-a"]
    world.banks = ("bank-a", "bank-b", *names)
    world.start()
    return world


def test_a16_the_budget_is_over_all_verifiers(world: World) -> None:
    """Two banks share the two bits of `name`: three wrong guesses are one too many."""
    grants = {
        bank: world.grant(field="name", grantee=bank, max_uses=9) for bank in ("bank-a", "bank-b")
    }
    guesses = [("bank-a", "甲公司"), ("bank-b", "乙公司"), ("bank-a", "丙公司")]
    words = [world.ask(grants[bank], verifier=bank, arg=text).result for bank, text in guesses]
    assert words == ["no_match", "no_match", "refused"]
    assert world.refusals()[-1].reason is Reason.BITS
    # what is implied costs nothing, whoever asks: the same guess in other characters
    assert (
        world.ask(grants["bank-b"], verifier="bank-b", arg="（甲）公司").result is Answered.NO_MATCH
    )


@pytest.mark.parametrize("op", ["le", "gt", "eq"])
def test_a17_comparisons_that_would_split_a_cell_do_not_exist(world: World, op: str) -> None:
    with pytest.raises(ValueError, match="comparison"):
        world.request(world.grant(), comparison=op)


def test_a17_ge_lt_and_exists_in_turn_tell_no_more_than_the_cell(world: World) -> None:
    grant = world.grant(field="assets", max_uses=100)
    words: dict[tuple[str, str], set[str]] = {}
    for _ in range(3):
        for cut in GRID:
            for comparison in Comparison:
                answer = world.ask(grant, arg=cut, comparison=comparison)
                words.setdefault((cut, comparison.value), set()).add(answer.result)
    assert all(len(found) == 1 for found in words.values())
    cells = sum(words[cut, "ge"] == {"match"} for cut in GRID)
    assert cells == enquiry.cell_of(GRID, Decimal(str(REVENUE)))
    _, bits = world.counters()
    assert sum(bits.values()) <= BIT * len(GRID)  # what was implied cost nothing


def test_a17_questions_of_all_kinds_in_turn_on_one_field_tell_the_cell_and_no_more(
    consent_template: Path, tmp_path: Path
) -> None:
    """ge, lt, le, a band, equality, its value: of one field that offers comparisons and a band."""
    world = copied(consent_template, tmp_path)
    offered_as(world, "staff", {"ops": ["band", "compare"], "grid": ["1", "2", "10", "100"]})
    thresholds = ("1", "2", "10", "100")
    asked = {"ops": ("compare",), "thresholds": thresholds}
    compare = world.grant(items=(world.item("staff", **asked),), max_uses=200)
    band = world.grant(field="staff", channel="query", max_uses=200)
    words: dict[tuple[str, str], set[str]] = {}
    turns = [("compare", "ge"), ("compare", "lt"), ("band", ""), ("equals", ""), ("value", "")]
    for number in range(60):
        op, comparison = turns[number % len(turns)]
        cut = thresholds[number // len(turns) % len(thresholds)]
        grant = compare if op in ("compare", "equals") else band
        changes: dict[str, Any] = {"op": op, "arg": cut, "comparison": comparison}
        if op in ("band", "value"):
            changes |= {"arg": None, "comparison": None}
        if op == "equals":
            changes |= {"arg": "3", "comparison": None}
        answer = world.ask(grant, **changes)
        told = answer.value if answer.result is Answered.VALUE else answer.result
        words.setdefault((op, f"{comparison}{cut}"), set()).add(str(told))
    assert {word for (op, _), found in words.items() if op in ("equals", "value") for word in found}
    for (op, what), found in words.items():
        assert len(found) == 1
        if op in ("equals", "value"):
            assert found == {"refused"}
        if op == "band":
            assert found == {"[2, 10)"}  # FIRM has 3 staff
        if op == "compare":
            is_match = (what.removeprefix("ge") in ("1", "2")) == what.startswith("ge")
            if what.startswith("lt"):
                is_match = what.removeprefix("lt") in ("10", "100")
            assert found == {"match" if is_match else "no_match"}, what
    _, bits = world.counters()
    assert sum(bits.values()) <= BIT * len(thresholds)  # what follows from earlier answers is free
    assert world.audit.verify().problems == ()
    world.close()


def offered_as(world: World, name: str, enquiry_: dict[str, Any]) -> None:
    """The bureau offers one of its fields in another way, and publishes that."""
    home, now = world.homes["tax"], world.now
    plain = {"level": "L2", "trade_secret": False, "ops": ["verify"]}
    plain |= {"purposes": ["credit-decision"], "enquiry": enquiry_ | {"min_assurance": "A1"}}
    datasets.describe(world.store, "firms", {}, {name: plain})
    second = certified(home, world.store, "王芳", now)
    datasets.sign_entry(home, world.store, "firms", now)
    signed = datasets.sign_entry(home, world.store, "firms", now, second)
    assert datasets.is_in_force(world.store, signed)
    world.start()


def test_a17_a_field_on_a_grid_offers_neither_equality_nor_its_value() -> None:
    for op in ("equals", "value"):
        with pytest.raises(ValueError, match="a field on a grid"):
            Enquiry(ops=(Question.COMPARE, Question(op)), grid=("1", "2"))


def test_a17_b_bits_charged_tell_at_most_two_to_the_b_values_apart() -> None:
    """For every order of a grid's questions: as many transcripts as the charge allows, no more."""
    grid = ("1", "2", "3", "4")
    for order in permutations(grid):
        transcripts: set[tuple[str, ...]] = set()
        most = 0
        for cell in range(len(grid) + 1):
            known, cost, words = Known(), 0, []
            for cut in order:
                asked = Asked(Question.COMPARE, grid, threshold=cut)
                cost += known.cost(asked)
                told = enquiry.evaluate(asked, cell + 0.5, "text-1")
                assert known.implied(asked) in (None, told)
                known = known.with_told(asked, told)
                words.append(told.word.value)
            assert (known.low, known.high) == (cell, cell)
            transcripts.add(tuple(words))
            most = max(most, cost)
        assert len(transcripts) <= 2 ** (most // BIT)


def test_a17_no_record_once_told_is_told_again_and_a_band_ends_all_questions() -> None:
    known = Known().with_told(Asked(Question.EXISTS), Told(Answered.NO_MATCH))
    compare = Asked(Question.COMPARE, ("1",), threshold="1")
    assert known.implied(compare) == Told(Answered.NO_RECORD)
    band = Asked(Question.BAND, ("1", "2"))
    known = Known().with_told(band, Told(Answered.VALUE, "[1, 2)"))
    assert known.implied(compare) == Told(Answered.MATCH)
    assert known.cost(band) == 0


def test_a18_unknown_ungranted_and_revoked_look_alike(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    """Code and size are equal for certain; times are reported, and compared with a KS statistic."""
    stranger = Firm(NEVER_SEEN).certified_by(world.homes["licence"], Assurance.A3)
    unknown = world.grant(stranger, max_uses=500)  # nobody of that code is in the data
    revoked = world.grant(max_uses=500)
    world.change(revoked, Change.REVOKE)
    world.refresh()
    ungranted = world.grant(grantee="bank-b")  # somebody else's
    replies: dict[str, list[bytes]] = {}
    times: dict[str, list[float]] = {}
    world.provider._rates = Rates(10**6, 10**6)
    for number in range(12):
        for name, grant in (("unknown", unknown), ("revoked", revoked), ("ungranted", ungranted)):
            arg = GRID[number % 4]
            request = world.request(grant, verifier="bank-a", arg=arg)
            frame = world.sealed(request, grant)
            began = time.perf_counter()
            reply = world.answer_to(frame)
            times.setdefault(name, []).append(time.perf_counter() - began)
            replies.setdefault(name, []).append(reply)
            told = world.verified(request, reply).model_dump(exclude_none=True)
            assert told["result"] == "refused"
            assert set(told) == {"v", "org", "verifier", "request", "created", "result"}
    sizes = {len(reply) for found in replies.values() for reply in found}
    assert len(sizes) == 1
    answered = world.grant(max_uses=5)
    good = world.request(answered)
    assert {len(world.answer_to(world.sealed(good, answered)))} == sizes
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, value in medians.items():  # reported, never asserted: the machine may be busy
        record_property(f"{name} median ms", round(1000 * value, 2))
    record_property("KS unknown/revoked", round(ks(times["unknown"], times["revoked"]), 3))


def ks(a: list[float], b: list[float]) -> float:
    """The two-sample Kolmogorov-Smirnov statistic."""
    points = sorted({*a, *b})
    return max(
        abs(sum(x <= p for x in a) / len(a) - sum(x <= p for x in b) / len(b)) for p in points
    )


def test_a18_a_refusal_costs_the_transactions_of_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time class by construction: what reaches the disk is counted, not milliseconds."""
    began: list[str] = []
    store = world.store
    together = type(store).together

    def counting(self: Any) -> Any:
        began.append("transaction")
        return together(self)

    monkeypatch.setattr(type(store), "together", counting)
    grant, counts = world.grant(max_uses=5), []
    for arg in ("1000000", "999"):
        began.clear()
        world.ask(grant, arg=arg)
        counts.append(len(began))
    assert counts == [2, 2]


def test_a18_no_reply_goes_to_somebody_unknown(world: World) -> None:
    replies = world.provider.answer([Parcel("nobody", b"x" * (12 * 1024 + sealing.OVERHEAD))])
    assert replies == [b""]
    assert world.refusals()[-1].check is Check.SEALED


def test_a19_a_bisection_is_noticed_also_when_banks_and_periods_change(world: World) -> None:
    grants = {
        bank: world.grant(field="monthly", max_uses=50, grantee=bank)
        for bank in ("bank-a", "bank-b")
    }
    steps = [
        ("bank-a", PERIODS[0], GRID[0]),
        ("bank-b", PERIODS[1], GRID[5]),
        ("bank-a", PERIODS[2], GRID[3]),
    ]
    for bank, period, cut in steps:
        assert not [e for e in world.entries() if e.action is Action.PROBING_NOTICED]
        world.ask(grants[bank], verifier=bank, period=period, arg=cut)
    found = [e for e in world.entries() if e.action is Action.PROBING_NOTICED]
    assert len(found) == 1


def test_a19_asking_upwards_is_no_bisection(world: World) -> None:
    grant = world.grant(field="assets", max_uses=50)
    for cut in GRID:
        world.ask(grant, arg=cut)
    assert not [e for e in world.entries() if e.action is Action.PROBING_NOTICED]


def test_rates_hold_for_a_verifier_and_for_a_subject(world: World) -> None:
    world.provider._rates = Rates(verifier_per_minute=3, subject_per_hour=2)
    grant, other = world.grant(max_uses=9), world.grant(field="name", max_uses=9)
    words = [world.ask(one).result for one in (grant, grant, grant, other)]
    assert words == ["match", "match", "refused", "refused"]
    assert [e.reason for e in world.refusals()[-2:]] == [Reason.RATE, Reason.RATE]


def test_no_record_is_told_only_where_the_catalogue_says_so(world: World) -> None:
    firm = Firm(NO_RECORD_FIRM).certified_by(world.homes["licence"], Assurance.A3)
    hidden, shown = world.grant(firm), world.grant(firm, field="court-2025")
    assert world.ask(hidden).result is Answered.REFUSED
    assert world.refusals()[-1].reason is Reason.NO_RECORD
    assert world.uses(hidden) == 1  # it was looked for: the use is gone
    assert world.ask(shown).result is Answered.NO_RECORD
