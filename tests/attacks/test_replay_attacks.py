"""Parties that leave the protocol after everybody approved it, and the replay that names them.

Each attack works: the job succeeds, all checks of the run pass, the attacker has what it wanted.
Where the manifest names auditors it is found afterwards, with the party, the stage and the token
(CRYPTO_REVIEW.md F3, F7, F8, F16, R6).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from federation import escrow
from federation.channel import chain, read_frame
from federation.errors import IntegrityError, NotFound, Refused
from federation.escrow import CardDesk, SealedSeed
from federation.objects import Usage
from federation.replay import (
    Account,
    QueryAudit,
    attribute,
    check_accounts,
    check_queries,
    coins_of,
    draw,
    matrices_of,
    probability,
    queries_of,
    replay,
)
from federation.tables import BankData, NumberColumn
from federation.tasks.binning import pre_bin, rows_of_cohort
from federation.tasks.trees_fit import _sample
from federation.transcript import MemoryTranscript, digest_of
from protocols import labels, linear_query, shamir
from protocols.linear_query import Answer, Query
from protocols.packing import pack, unpack
from protocols.parameters import Q_BITS
from protocols.ring import Q
from protocols.streams import Randomness, digest
from tests.attacks.test_scorecard_view import Amplifier
from tests.federation.audited import AuditedJob, audited, key
from tests.federation.parties import NOW
from tests.federation.scorecard_data import SUMS_ONLY, World, make_world
from tests.federation.trees_data import make_trees_world

Integers = NDArray[np.int64]
RESIDUALS = 2  # the token of a scorecard's first query after customers and bads


def world() -> World:
    return make_world(rows=700, customers=500)


def run(auditors: bool = True, **options: Any) -> AuditedJob:
    made = world()
    names = options.pop("names", ("audit-a", "audit-b", "audit-c")) if auditors else ()
    manifest = made.manifest(**SUMS_ONLY)
    return audited(made.bank, made.departments, manifest, auditors=names, **options)


@cache
def honest() -> AuditedJob:
    return run()


def audit_of(job: AuditedJob, *drawn: int, org: str = "") -> QueryAudit:
    """Two auditors open these queries to one department; all of them if none is named."""
    found = job.recovered("audit-a", "audit-b")
    org = org or job.manifest.departments[0]
    account = job.accounts[org]
    rows = escrow.customers(job.escrows[org], found, job.manifest.cover.rows)
    every = range(len(queries_of(account, "bank")))
    return check_queries(job.manifest, account, found, rows, drawn or every)


# --- the bank: F8 ---------------------------------------------------------------------------------


class Cheat(linear_query.Bank):
    """Asks something else than its program says under one token."""

    token = RESIDUALS
    change: Callable[[Integers], None]
    between = 0.0  # units of sigma_f that are hidden in the noise of one row
    row = 0
    seen: dict[tuple[str, int], Integers]  # w - y, by department and token

    def _encrypt(self, number: int, index: int, v: Integers, values: bytes) -> Query:
        if self.name != "bank" or index != self.token or self.matrix == "pairs":
            return super()._encrypt(number, index, v, values)
        v = v.copy()
        type(self).change(v)
        query = super()._encrypt(number, index, v, self._digest(v))
        b = unpack(query.b, Q_BITS, self.rows, Q)
        b[self.row] = (b[self.row] + int(self.between * self.parameters.sigma_f)) % Q
        return dataclasses.replace(query, b=pack(b, Q_BITS))

    def unmask(self, department: str, answer: Answer) -> Integers:
        found = super().unmask(department, answer)
        if self.name == "bank" and self.matrix == "bins":
            self.seen[department, answer.index] = found
        return found


@pytest.fixture
def cheat(monkeypatch: pytest.MonkeyPatch) -> type[Cheat]:
    made = type("Made", (Cheat,), {"seen": {}, "change": staticmethod(lambda v: None)})
    monkeypatch.setattr(linear_query, "Bank", made)
    return made


def outsiders() -> Integers:
    everybody = np.arange(700)
    return np.setdiff1d(everybody, world().bank.positions)


def ask_of_strangers(v: Integers) -> None:
    first, second = outsiders()[:2]
    v[first], v[second] = 300, -300  # the bins still sum to what the bank's own check expects


def ask_of_two(v: Integers) -> None:
    total, (first, second) = int(v.sum()), np.flatnonzero(v)[:2]
    v[:] = 0
    v[first], v[second] = 200 + total, -200


def ask_too_much(v: Integers) -> None:
    first, second = np.flatnonzero(v)[:2]
    v[first] += 5000
    v[second] -= 5000


ATTACKS = {
    "rows outside the customers": ask_of_strangers,
    "at least 20": ask_of_two,
    "rows of v are beyond 511": ask_too_much,
}


@pytest.mark.parametrize(("said", "attack"), ATTACKS.items())
def test_a_bank_that_asks_otherwise_is_named_when_the_query_is_drawn(
    cheat: type[Cheat], said: str, attack: Callable[[Integers], None]
) -> None:
    cheat.change = staticmethod(attack)
    job = run()
    assert check_accounts(job.manifest, job.accounts) == []  # nobody could have told before
    audit = audit_of(job, RESIDUALS)
    (found,) = audit.findings
    assert (found.check, found.party, found.token) == ("query", "bank", f"0/{RESIDUALS}")
    assert said in found.what
    others = [n for n in range(audit.total) if n != RESIDUALS]
    assert audit_of(job, *others).findings == ()


def test_a_bank_reads_two_strangers_bins_and_without_escrow_nobody_can_tell(
    cheat: type[Cheat],
) -> None:
    cheat.change = staticmethod(ask_of_strangers)
    job = run(auditors=False)
    assert check_accounts(job.manifest, job.accounts) == []
    assert job.escrows == {}
    # What it got beside what its own customers' residuals give it: +300 and -300 in two bins.
    honest_v, first = honest_residuals(), outsiders()[0]
    data = world().departments["dept_0"]
    made = [pre_bin(c, 32, rows_of(job)) for c in data.columns]
    parameters = replay_parameters(job)
    got = linear_query.decode(parameters, cheat.seen["dept_0", RESIDUALS])
    start, right = 0, 0
    for definition, column in zip(made, data.columns, strict=True):
        bins = definition.assign(column)
        mine = np.zeros(definition.bins, np.int64)
        np.add.at(mine, bins, honest_v)
        rest = got[start : start + definition.bins] - mine
        right += int(rest[bins[first]] == 300 or not rest.any())  # both in one bin: nothing
        start += definition.bins
    assert right == len(made)


def rows_of(job: AuditedJob) -> int:
    manifest = job.manifest
    return rows_of_cohort(
        manifest.scorecard.min_cohort, manifest.cover.rows, manifest.limits.customers_min
    )


def replay_parameters(job: AuditedJob) -> linear_query.Parameters:
    return dict(matrices_of(job.manifest))["bins"]


def honest_residuals() -> Integers:
    """v of the residual query, as the honest bank of the same seed and data asks it."""
    made, taken = world(), list[Integers]()

    class Tap(linear_query.Bank):
        def query(self, v: Integers) -> Query:
            if self.name == "bank" and self.matrix == "bins":
                taken.append(v.copy())
            return super().query(v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_query, "Bank", Tap)
        audited(made.bank, made.departments, made.manifest(**SUMS_ONLY), auditors=())
    return taken[RESIDUALS]


def test_a_row_hidden_in_the_noise_is_read_and_the_audit_sees_the_error(
    cheat: type[Cheat],
) -> None:
    """F8: not v but b itself carries the row, six sigma below delta: every opening is right."""
    cheat.row, cheat.between = int(outsiders()[5]), 6.0
    job = run()
    sigma, delta = replay_parameters(job).sigma_f, replay_parameters(job).delta
    residual = cheat.seen["dept_0", RESIDUALS]
    centred = (residual + delta // 2) % delta - delta // 2
    data, start, right = world().departments["dept_0"], 0, 0
    made = [pre_bin(c, 32, rows_of(job)) for c in data.columns]
    for definition, column in zip(made, data.columns, strict=True):
        part = centred[start : start + definition.bins]
        right += int(np.argmax(part) == definition.assign(column)[cheat.row])
        start += definition.bins
    assert right >= len(made) - 1  # six sigma against the largest of some 15 draws
    assert sigma * 6 < delta / 2
    (found,) = audit_of(job, RESIDUALS).findings
    assert found.party == "bank"
    assert "another error" in found.what


def test_a_bank_of_trees_that_gives_a_customer_two_gradients_is_named(cheat: type[Cheat]) -> None:
    def shift(v: Integers) -> None:
        some = np.flatnonzero((v != 0) & (np.abs(v) < 500))
        v[some[: len(some) // 2 * 2]] += np.tile([1, -1], len(some) // 2)

    made = make_trees_world()
    cheat.token, cheat.change = 1, staticmethod(shift)  # the root's gradients
    job = audited(made.bank, made.departments, made.manifest(trees=1))
    (found, *_) = audit_of(job).findings
    assert (found.check, found.party) == ("nodes", "bank")
    assert "two gradients" in found.what


def test_the_draw_finds_wrong_queries_with_the_stated_probability() -> None:
    total, wrong = 200, set(range(40, 50))
    coins = [digest("coins", n) for n in range(1500)]
    drawn = [draw(one, total) for one in coins]
    assert {len(one) for one in drawn} == {10}
    expected = probability(total, len(wrong), 10)
    assert expected == 1 - math.comb(190, 10) / math.comb(200, 10)
    hits = sum(bool(wrong & set(one)) for one in drawn)
    spread = math.sqrt(expected * (1 - expected) * len(coins))
    assert abs(hits - expected * len(coins)) < 5 * spread
    # PROTOCOLS.md section 6: 10,000 firms take over 100 queries of a job of 5,000
    assert probability(5000, 100, 250) > 0.99
    assert probability(5000, 1, 250) == pytest.approx(0.05)


def test_the_draw_hangs_on_every_record_and_every_nonce() -> None:
    records, nonces = ["11" * 32, "22" * 32], ["33" * 32, "44" * 32]
    before = coins_of(records, nonces)
    assert coins_of(records[::-1], nonces[::-1]) == before
    seen = {before}
    for i in range(2):
        other = ["55" * 32 if n == i else text for n, text in enumerate(records)]
        seen.add(coins_of(other, nonces))
        other = ["55" * 32 if n == i else text for n, text in enumerate(nonces)]
        seen.add(coins_of(records, other))
    assert len(seen) == 5


# --- the bank: F16 --------------------------------------------------------------------------------


def test_a_bank_grinds_its_seed_only_where_the_coins_are_known_before() -> None:
    """It wants a sample of rows that has one firm and none of seven others."""
    wanted = np.array([1, 0, 0, 0, 0, 0, 0, 0], bool)

    def sample(master: bytes, coins: bytes) -> NDArray[np.bool_]:
        randomness = Randomness(master, bytes(32), 0)

        def stream(purpose: str, number: int) -> Any:
            return randomness.stream(labels.QUANTISE, stage=purpose, step=number, inputs=coins)

        return _sample(60, 0.5, stream, "trees/rows", 0)[:8]

    seeds = (digest("ground seed", n) for n in range(5000))
    ground = next(one for one in seeds if (sample(one, b"") == wanted).all())  # one in 256 does
    fresh = [digest("joint seed", n) for n in range(60)]  # after the commitment to the seed
    assert sum((sample(ground, coins) == wanted).all() for coins in fresh) <= 3


def test_the_coins_come_after_the_commitment_to_the_seed() -> None:
    """The bank's committed seed is in the coins, and so is a nonce that it saw only afterwards."""
    job = honest()
    account = job.accounts["bank"]
    kinds = [frame.kind for frame in account.transcript.frames("dept_0")][:6]
    said = ["Commitments", "Commitments", "SealedSeed", "OpenedNonce", "OpenedNonce", "Agreed"]
    assert kinds == said
    for org in ("dept_0", "dept_1"):
        assert job.accounts[org].committed("bank", "seed") == account.committed("bank", "seed")
        assert job.accounts[org].committed(org, "agreement") == account.committed(
            "bank", "agreement"
        )


# --- the department: F7 ---------------------------------------------------------------------------


def test_a_department_that_answers_with_another_matrix_is_named_with_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One row counted twice, in tokens and answers alike: no check of the bank can see it, as with
    the modest amplification of test_small_cells.py."""
    monkeypatch.setattr(Amplifier, "row", int(world().bank.positions[0]))
    monkeypatch.setattr(Amplifier, "factor", 1)
    with monkeypatch.context() as patch:
        patch.setattr(linear_query, "Department", Amplifier)
        job = run(is_failing=True)
    assert check_accounts(job.manifest, job.accounts) == []
    done = {org: replay(job.manifest, a, job.opened(org)) for org, a in job.accounts.items()}
    (found,) = done["dept_0"].findings
    assert (found.check, found.party, found.stage) == ("program", "dept_0", "tokens")
    assert "TokenReply" in found.what
    assert done["dept_1"].findings == done["bank"].findings == ()


class Biased(linear_query.Department):
    """Honest tokens; in one answer a row counts in another bin."""

    def _sums(self, b: Integers) -> Integers:
        out = super()._sums(b)
        if self.name == "dept_0" and self.matrix == "bins":
            out[0], out[1] = (int(out[0]) + int(b[5])) % Q, (int(out[1]) - int(b[5])) % Q
        return out


def test_a_department_that_changes_only_its_answers_is_named_with_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(linear_query, "Department", Biased)
        job = run(is_failing=True)
    (found,) = replay(job.manifest, job.accounts["dept_0"], job.opened("dept_0")).findings
    assert (found.check, found.party, found.stage) == ("program", "dept_0", "counts")
    assert found.token.split("/") == ["0", "0"]  # the very first


def test_a_department_that_shows_the_auditor_another_table_is_named() -> None:
    job = honest()
    opened = job.opened("dept_1")
    first, *rest = opened.data.columns
    assert isinstance(first, NumberColumn)
    values = first.values.copy()
    values[3] += 40.0
    data = dataclasses.replace(opened.data, columns=[NumberColumn(first.name, values), *rest])
    changed = dataclasses.replace(opened, data=data)
    (found,) = replay(job.manifest, job.accounts["dept_1"], changed).findings
    assert (found.check, found.party) == ("program", "dept_1")


def test_a_bank_that_shows_the_auditor_other_labels_is_named() -> None:
    job = honest()
    opened = job.opened("bank")
    assert isinstance(opened.data, BankData)
    labels_ = opened.data.labels.copy()
    labels_[0] ^= 1
    changed = dataclasses.replace(opened, data=dataclasses.replace(opened.data, labels=labels_))
    (found,) = replay(job.manifest, job.accounts["bank"], changed).findings
    assert (found.party, found.stage) == ("bank", "agreement")  # it committed to the others


def test_a_party_that_shows_another_seed_is_named() -> None:
    job = honest()
    changed = dataclasses.replace(job.opened("dept_0"), seed=bytes(32))
    (found,) = replay(job.manifest, job.accounts["dept_0"], changed).findings
    assert (found.check, found.party) == ("seed", "dept_0")


# --- accounts -------------------------------------------------------------------------------------


def with_transcript(account: Account, changed: MemoryTranscript, *, signed: bool) -> Account:
    record = account.record
    if signed:
        lines = tuple(
            (
                peer,
                digest_of(changed.frames(peer), is_sent=True).hex(),
                digest_of(changed.frames(peer), is_sent=False).hex(),
            )
            for peer, _, _ in record.transcript
        )
        record = record.model_copy(update={"transcript": lines})
    return Account(record, changed, account.given)


def copied(job: AuditedJob, org: str) -> MemoryTranscript:
    before = job.transcripts[org]
    frames = {peer: list(before.frames(peer)) for peer in before.peers()}
    return MemoryTranscript(frames, dict(before.bodies))


def fabricated(job: AuditedJob, org: str) -> MemoryTranscript:
    """A department adds delta x to a b that it got: it would open as v + x."""
    changed = copied(job, org)
    place = queries_of(job.accounts[org], "bank")[RESIDUALS]
    body = changed.bodies["bank", place]
    query = read_frame(body, Query)[1]
    b = unpack(query.b, Q_BITS, 700, Q)
    stranger = outsiders()[0]
    b[stranger] = (b[stranger] + 7 * replay_parameters(job).delta) % Q
    other = body[: -query.b.size] + pack(b, Q_BITS).tobytes()
    changed.bodies["bank", place] = other
    frames = changed.by_peer["bank"]
    assert isinstance(frames, list)
    frames[place] = dataclasses.replace(frames[place], digest=sha256(other).digest())
    return changed


def test_a_department_cannot_make_a_query_that_accuses_the_bank() -> None:
    job = honest()
    changed = fabricated(job, "dept_0")
    accounts = job.accounts
    with pytest.raises(IntegrityError, match=r"dept_0.*not the one that it signed"):
        check_accounts(
            job.manifest,
            accounts | {"dept_0": with_transcript(accounts["dept_0"], changed, signed=False)},
        )
    accounts["dept_0"] = with_transcript(accounts["dept_0"], changed, signed=True)
    findings = check_accounts(job.manifest, accounts)
    assert [item.party for item in findings] == ["bank or dept_0"]
    assert "Query" in findings[0].what
    assert replay(job.manifest, accounts["bank"], job.opened("bank")).findings == ()
    (named,) = attribute(findings, ["bank"])
    assert named.party == "dept_0"


def test_swapped_frames_are_no_evidence() -> None:
    job = honest()
    changed, account = copied(job, "dept_0"), job.accounts["dept_0"]
    first, second = queries_of(account, "bank")[2:4]
    bodies = changed.bodies
    bodies["bank", first], bodies["bank", second] = bodies["bank", second], bodies["bank", first]
    swapped = with_transcript(account, changed, signed=False)
    found = job.recovered("audit-a", "audit-b")
    rows = escrow.customers(job.escrows["dept_0"], found, 700)
    with pytest.raises(IntegrityError, match=r"dept_0.*another frame"):
        check_queries(job.manifest, swapped, found, rows, [2])
    with pytest.raises(IntegrityError, match=r"dept_0.*another frame"):
        replay(job.manifest, swapped, job.opened("dept_0"))


def test_a_query_that_is_withheld_is_asked_for_by_name() -> None:
    job = honest()
    changed, account = copied(job, "dept_0"), job.accounts["dept_0"]
    del changed.bodies["bank", queries_of(account, "bank")[4]]
    found = job.recovered("audit-a", "audit-b")
    rows = escrow.customers(job.escrows["dept_0"], found, 700)
    account = with_transcript(account, changed, signed=False)
    with pytest.raises(NotFound, match=r"dept_0.*was drawn"):
        check_queries(job.manifest, account, found, rows, [4])


def test_a_record_that_changes_a_commitment_afterwards_contradicts_the_others() -> None:
    job = honest()
    accounts, late = job.accounts, "ab" * 32
    record = accounts["bank"].record
    lines = tuple(
        item.model_copy(update={"digest": late}) if item.what == "labels" else item
        for item in record.committed
    )
    changed = record.model_copy(update={"committed": lines})
    accounts["bank"] = Account(changed, accounts["bank"].transcript)
    (found,) = check_accounts(job.manifest, accounts)
    assert found.check == "commitments"
    assert "labels of bank" in found.what


def test_a_running_digest_does_not_depend_on_how_frames_are_cut() -> None:
    assert chain(chain(bytes(32), b"a" * 32), b"b" * 32) != chain(bytes(32), b"a" * 32 + b"b" * 32)


# --- escrow ---------------------------------------------------------------------------------------


def test_without_an_escrow_a_department_answers_nothing() -> None:
    class Silent:
        """A bank that seals nothing that opens."""

        def __init__(self, desk: CardDesk) -> None:
            self.desk = desk

        def deposit(self, randomness: Randomness, customers: Any) -> SealedSeed:
            other = dataclasses.replace(randomness, master=bytes(32))
            return self.desk.deposit(other, customers)

        def accept(self, given: SealedSeed, seed: bytes) -> None:
            self.desk.accept(given, seed)

    job = run(wrap=lambda org, desk: Silent(desk) if org == "bank" else desk, is_failing=True)
    assert "the escrow is of another seed" in str(job.error)
    sent = [f.kind for f in job.transcripts["dept_0"].frames("bank") if f.is_sent]
    assert sent == ["Commitments"]  # not even its nonce, so there are no coins and no tokens


def test_a_party_without_a_desk_takes_no_part_in_an_audited_job() -> None:
    job = run(wrap=lambda org, desk: desk if org == "bank" else None, is_failing=True)
    assert isinstance(job.error, Refused)
    assert "escrow" in str(job.error)


def test_an_escrow_with_other_auditors_or_of_another_attempt_is_refused() -> None:
    job = honest()
    given = job.escrows["dept_0"]
    fewer = job.manifest.audit.model_copy(update={"auditors": ("audit-a", "audit-b")})
    other = job.manifest.model_copy(update={"audit": fewer})
    seed = job.accounts["bank"].committed("bank", "seed")
    for manifest, attempt in ((other, 0), (job.manifest, 1)):
        desk = CardDesk(manifest, attempt, job.trust, lambda: NOW)
        with pytest.raises(IntegrityError, match="bank"):
            desk.accept(given, seed)
    cut = dataclasses.replace(given, customers=given.customers[:-1])
    with pytest.raises(IntegrityError, match="another list of customers"):
        CardDesk(job.manifest, 0, job.trust, lambda: NOW).accept(cut, seed)


def test_one_share_opens_nothing_and_the_share_of_another_job_is_refused_by_name() -> None:
    job, other = honest(), run(seed=1)
    with pytest.raises(NotFound, match="1 shares, 2 are needed"):
        job.recovered("audit-a")
    me = job.orgs["audit-a"]
    mine, theirs = job.escrow("bank"), other.handed("audit-b", "audit-a")
    with pytest.raises(IntegrityError, match=r"audit-b.*(another job|trusted card)"):
        escrow.take(mine, theirs, "audit-a", key(me, Usage.ENCRYPT), other.trust, NOW)
    to_another = job.handed("audit-b", "audit-c")
    with pytest.raises(IntegrityError, match=r"audit-b.*sealed to audit-c"):
        escrow.take(mine, to_another, "audit-a", key(me, Usage.ENCRYPT), job.trust, NOW)


def test_a_bank_that_deals_a_wrong_share_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    split = shamir.split

    def deal(*arguments: Any) -> dict[int, bytes]:
        shares = split(*arguments)
        return shares | {2: bytes(32) + b"\x07"}

    with monkeypatch.context() as patch:
        patch.setattr(shamir, "split", deal)
        job = run()  # nobody can see it yet
    with pytest.raises(IntegrityError, match="bank: the shares of audit-a, audit-b do not give"):
        job.recovered("audit-a", "audit-b")
    assert job.recovered("audit-a", "audit-c").master == job.seeds["bank"]
    with pytest.raises(IntegrityError, match="audit-b or bank"):
        job.recovered("audit-a", "audit-b", "audit-c")


def test_a_list_of_customers_beyond_the_limits_is_a_finding() -> None:
    job = honest()
    found = job.recovered("audit-b", "audit-c")
    few = np.zeros(700, bool)
    few[:10] = True
    audit = check_queries(job.manifest, job.accounts["dept_0"], found, few, [])
    assert [item.check for item in audit.findings] == ["customers"]
