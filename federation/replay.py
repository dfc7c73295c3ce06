"""The replay audit: what auditors recompute, and whom a deviation names (PROTOCOLS.md section 6).

accounts   each party's transcript is the one that it signed; all saw the same commitments; what one
           sent is what the other got
queries    the bank's, without labels: from its escrowed seed every drawn b is opened and made
           again; v is within the committed customers and the limits, and holds a cohort
program    one party, in full: its program runs again on its seed, its data and the frames that it
           received, and must send the recorded frames, bit for bit. A department's answers are then
           those of the matrix that it committed to (CRYPTO_REVIEW.md F7), a bank's queries those of
           its labels

Found with     A bank that puts m wrong queries of n is found by d drawn ones with probability
probability    1 - C(n - m, d) / C(n, d): `probability`. The draw follows from both ends' signed
               records and the auditors' nonces, all made when nothing could be changed any more.
Attribution    A query is the bank's word only where its own record has it: a department could show
               another b (b + delta x opens as v + x). Where the accounts differ, a party whose
               program reproduces its own frames is cleared, and the other one named.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from federation.channel import Channel, read_frame
from federation.errors import IntegrityError, LianmoError, NotFound
from federation.escrow import Bools, SealedSeed, seed_commitment
from federation.ledger import Ledger
from federation.objects import CoverKind, JobManifest, RunRecord
from federation.tables import BankData, DepartmentData
from federation.tasks import registry
from federation.tasks.agreement import joint_seed_of
from federation.tasks.checkpoints import MemoryCheckpointBook
from federation.tasks.cover import STAGE as COVER_STAGE
from federation.tasks.cover import CoverRows
from federation.tasks.party import Party
from federation.transcript import Frame, Transcript, differences, require_recorded
from protocols import labels
from protocols.books import MemoryAnswerBook, MemorySpentBook
from protocols.errors import ParameterError, ProtocolError
from protocols.linear_query import Answer, Bank, Parameters, Query
from protocols.row_key_books import MemoryAttemptBook, MemoryReplyBook
from protocols.streams import Randomness, Stream, digest

SHARE = 0.05  # of the queries that are drawn, and at least
LEAST_DRAWN = 3
LEAST_ROWS = 20  # of a v that is not zero: the least goods or bads that a bank may train on


@dataclass(frozen=True, slots=True)
class Finding:
    """One deviation: by which check, of whom, where."""

    check: str
    party: str
    what: str
    stage: str = ""
    token: str = ""  # batch/index of a query


@dataclass(frozen=True, slots=True)
class Account:
    """What one party says of one attempt, as it signed it."""

    record: RunRecord
    transcript: Transcript = field(repr=False)
    given: SealedSeed | None = field(default=None, repr=False)  # the bank's escrow, as it has it

    def committed(self, org: str, what: str) -> bytes:
        """A commitment in this record; raises IntegrityError if there is none."""
        found = {bytes.fromhex(c.digest) for c in self.record.committed if _is(c, org, what)}
        if len(found) != 1:
            text = f"its record has no {what} of {org}" if not found else f"two kinds of {what}"
            raise IntegrityError(text, party=self.record.org)
        return found.pop()


def _is(item: object, org: str, what: str) -> bool:
    return (getattr(item, "org", None), getattr(item, "what", None)) == (org, what)


# --- accounts -------------------------------------------------------------------------------------


def check_accounts(manifest: JobManifest, accounts: Mapping[str, Account]) -> list[Finding]:
    """What the parties' signed accounts say of each other.

    Raises IntegrityError for a record of another job, or a transcript that its party did not sign:
    such an account is no evidence against anybody.
    """
    for org, account in accounts.items():
        record = account.record
        if (record.org, record.manifest) != (org, manifest.digest()):
            raise IntegrityError("a record of another job or party", party=org)
        require_recorded(account.transcript, record)
    if len({account.record.attempt for account in accounts.values()}) > 1:
        raise IntegrityError("accounts of several attempts")
    found = _told_twice(accounts)
    records = {org: account.record for org, account in accounts.items()}
    transcripts = {org: account.transcript for org, account in accounts.items()}
    for me, peer, where in differences(records, transcripts):
        what = f"{me} signed that it sent another {where} than {peer} signed that it got"
        found.append(Finding("accounts", " or ".join(sorted((me, peer))), what))
    return found


def _told_twice(accounts: Mapping[str, Account]) -> list[Finding]:
    seen: dict[tuple[str, str], dict[str, str]] = {}
    for org, account in accounts.items():
        for item in account.record.committed:
            # everybody's agreement is his own word for one and the same thing
            key = ("", item.what) if item.what == "agreement" else (item.org, item.what)
            seen.setdefault(key, {})[org] = item.digest
    found = []
    for (whose, name), words in seen.items():
        if len(set(words.values())) > 1:
            who = " or ".join(sorted(words))
            of = f" of {whose}" if whose else ""
            found.append(Finding("commitments", who, f"they signed different {name}{of}"))
    return found


def attribute(findings: Sequence[Finding], cleared: Sequence[str]) -> list[Finding]:
    """The same, without those whose program reproduced every frame of theirs."""
    out = []
    for item in findings:
        rest = [name for name in item.party.split(" or ") if name not in cleared]
        out.append(replace(item, party=rest[0]) if len(rest) == 1 else item)
    return out


# --- queries, without labels ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueryAudit:
    """What the drawn queries showed; figures of v, never v."""

    total: int
    drawn: tuple[int, ...]  # places among all queries of the bank to that department
    findings: tuple[Finding, ...]


def coins_of(records: Sequence[str], nonces: Sequence[str]) -> bytes:
    """Public coins after the fact: digests of signed records, and the auditors' nonces."""
    parts = [bytes.fromhex(text) for text in (*sorted(records), *sorted(nonces))]
    return digest(labels.AUDIT_COINS, len(records), *parts)


def draw(coins: bytes, total: int, share: float = SHARE) -> tuple[int, ...]:
    """Which of `total` queries are opened, ascending."""
    count = min(total, max(LEAST_DRAWN, math.ceil(share * total)))
    keys = Stream(coins).words(total)
    return tuple(sorted(np.argsort(keys, kind="stable")[:count].tolist()))


def probability(total: int, wrong: int, drawn: int) -> float:
    """That at least one of `wrong` queries is among `drawn` of `total`."""
    if wrong + drawn > total:
        return 1.0
    return 1 - math.comb(total - wrong, drawn) / math.comb(total, drawn)


def queries_of(account: Account, bank: str) -> list[int]:
    """The places of the bank's queries among the frames of its channel."""
    frames = account.transcript.frames(bank)
    return [i for i, frame in enumerate(frames) if not frame.is_sent and frame.kind == "Query"]


def check_queries(
    manifest: JobManifest,
    account: Account,
    found: Randomness,
    customers: Bools,
    drawn: Sequence[int],
    *,
    executor: Executor | None = None,
) -> QueryAudit:
    """Open the drawn queries of the bank to one department, and hold them to the rules.

    account: the department's; found: the bank's draws, of its escrow. Raises IntegrityError if the
    department shows other bytes than it signed, NotFound if it shows none.
    """
    bank, rows = manifest.bank, manifest.cover.rows
    findings = list(_check_customers(manifest, customers))
    joint = joint_seed_of(account.committed(account.record.org, "agreement"))
    askers = [
        Bank(
            rows=rows,
            parameters=parameters,
            joint_seed=joint,
            name=bank,
            manifest=bytes.fromhex(manifest.digest()),
            attempt=account.record.attempt,
            matrix=name,
            randomness=found,
            spent=MemorySpentBook(),
            executor=executor,
        )
        for name, parameters in matrices_of(manifest)
    ]
    places = queries_of(account, bank)
    opened: dict[int, NDArray[np.int64]] = {}
    for number in drawn:
        frame = account.transcript.frames(bank)[places[number]]
        query = _query(account, bank, places[number], frame)
        token = f"{query.batch}/{query.index}"
        asker = next((one for one in askers if one.is_of(query.context)), None)
        if asker is None:
            what = "a query on a matrix that the manifest does not have"
            findings.append(Finding("query", bank, what, frame.stage, token))
            continue
        try:
            v = asker.reopen(query)
        except ProtocolError as error:
            findings.append(Finding("query", bank, str(error), frame.stage, token))
            continue
        opened[number] = v
        for what in _wrong(manifest, asker.parameters.vmax, frame.stage, v, customers):
            findings.append(Finding("query", bank, what, frame.stage, token))
    if manifest.task == "trees":
        findings += _not_nested(manifest, opened)
    return QueryAudit(len(places), tuple(drawn), tuple(findings))


def matrices_of(manifest: JobManifest) -> list[tuple[str, Parameters]]:
    """The matrices that the bank asks, by name, with the parameters that follow."""
    if manifest.task == "trees":
        from federation.tasks import trees_department, trees_plan

        return [(trees_department.BINS, trees_plan.plan_of(manifest).query)]
    from federation.tasks import plan, scorecard_department

    made = plan.plan_of(manifest)
    found = [(scorecard_department.BINS, made.bins)]
    if made.pairs is not None:
        found.append((scorecard_department.PAIRS, made.pairs.parameters))
    return found


def _query(account: Account, bank: str, place: int, frame: Frame) -> Query:
    body, me = account.transcript.body(bank, place), account.record.org
    if body is None:
        todo = f"ask {me} for a bundle of this draw"
        raise NotFound("its bundle does not hold a query that was drawn", party=me, todo=todo)
    if not hmac.compare_digest(hashlib.sha256(body).digest(), frame.digest):
        raise IntegrityError(f"it shows another frame {place} than it signed", party=me)
    return read_frame(body, Query)[1]


def _check_customers(manifest: JobManifest, customers: Bools) -> list[Finding]:
    limits, count = manifest.limits, int(customers.sum())
    if limits.customers_min <= count <= limits.customers_max:
        return []
    said = f"{limits.customers_min} to {limits.customers_max}"
    what = f"it committed to {count} customers, the manifest says {said}"
    return [Finding("customers", manifest.bank, what)]


def _wrong(
    manifest: JobManifest, vmax: int, stage: str, v: NDArray[np.int64], customers: Bools
) -> list[str]:
    asked, found = v != 0, []
    if (outside := int((asked & ~customers).sum())) > 0:
        found.append(f"{outside} rows outside the customers that it committed to")
    if (largest := int(np.abs(v).max(initial=0))) > vmax:
        found.append(f"a value of {largest}, the manifest allows {vmax}")
    if stage == "counts" and v.size and not 0 <= int(v.min()) <= int(v.max()) <= 1:
        found.append("a count with other values than 0 and 1")
    least, count = min(manifest.parameters.min_cohort, LEAST_ROWS), int(asked.sum())
    if 0 < count < least:
        found.append(f"{count} rows, at least {least} belong to a query")
    return found


def _not_nested(manifest: JobManifest, opened: Mapping[int, NDArray[np.int64]]) -> list[Finding]:
    """Two nodes of a tree hold each other or are apart, and a customer has one gradient a tree."""
    from federation.tasks.trees_plan import COUNT_QUERIES, plan_of

    made, found = plan_of(manifest), []
    groups: dict[tuple[int, int], list[int]] = {}
    for number in opened:
        if (at := number - COUNT_QUERIES) >= 0:
            tree, kind = at // made.queries_a_tree, at % made.queries_a_node
            groups.setdefault((tree, kind), []).append(number)
    for (tree, _), members in groups.items():
        for i, a in enumerate(members):
            for b in members[:i]:
                one, other = opened[a], opened[b]
                both = (one != 0) & (other != 0)
                if not both.any():
                    continue
                name = f"queries {b} and {a} of tree {tree}"
                if (one[both] != other[both]).any():
                    what = f"{name} give a customer two gradients"
                    found.append(Finding("nodes", manifest.bank, what, "trees"))
                elif ((one != 0) & ~both).any() and ((other != 0) & ~both).any():
                    what = f"{name} overlap, and neither holds the other"
                    found.append(Finding("nodes", manifest.bank, what, "trees"))
    return found


# --- a program, in full ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """What a party hands over to be replayed in full: all that its frames follow from."""

    seed: bytes = field(repr=False)
    data: BankData | DepartmentData = field(repr=False)
    first_seed: bytes = field(default=b"", repr=False)  # of the first attempt, if this is a later
    pair_seeds: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    rounding: bytes = field(default=b"", repr=False)
    before: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # checkpoints, by part
    cover: CoverRows | None = field(default=None, repr=False)  # a bank's, where it names one


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far a party's program sent what its account says."""

    org: str
    frames: int  # that it sent, and that were compared
    findings: tuple[Finding, ...]


class _Deviates(Exception):
    """The program sends something else than the account has."""

    def __init__(self, peer: str, place: int, frame: Frame, sent: bytes) -> None:
        super().__init__(peer)
        self.peer, self.place, self.frame, self.sent = peer, place, frame, sent


class _EndOfRecord(Exception):
    """The attempt ended here."""


class _Unusable(Exception):
    """The bundle, not the program: it carries what the caller is told."""

    def __init__(self, error: LianmoError) -> None:
        super().__init__(str(error))
        self.error = error


class _Recorded:
    """A transport that gives what was received, and holds what is sent to what was sent."""

    def __init__(self, transcript: Transcript, peer: str, me: str) -> None:
        self._transcript, self._peer, self._me = transcript, peer, me
        frames = list(enumerate(transcript.frames(peer)))
        self._to_send = [(i, frame) for i, frame in frames if frame.is_sent]
        self._to_receive = [(i, frame) for i, frame in frames if not frame.is_sent]
        self.sent = self.received = 0

    @property
    def is_done(self) -> bool:
        return self.sent == len(self._to_send) and self.received == len(self._to_receive)

    def send(self, frame: bytes) -> None:
        if self.sent == len(self._to_send):
            raise _EndOfRecord
        place, expected = self._to_send[self.sent]
        if not hmac.compare_digest(hashlib.sha256(frame).digest(), expected.digest):
            raise _Deviates(self._peer, place, expected, frame)
        self.sent += 1

    def receive(self, timeout_s: float) -> bytes:
        if self.received == len(self._to_receive):
            raise _EndOfRecord
        place, expected = self._to_receive[self.received]
        body = self._transcript.body(self._peer, place)
        if body is None:
            what, todo = "its bundle has no received frames", "ask it for one made with `--open`"
            raise _Unusable(NotFound(what, party=self._me, todo=todo))
        if not hmac.compare_digest(hashlib.sha256(body).digest(), expected.digest):
            what = f"it shows another frame {place} of {self._peer} than it signed"
            raise _Unusable(IntegrityError(what, party=self._me))
        self.received += 1
        return body

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class _RecordedDesk:
    """The escrow of the run: its ciphertexts are the one thing that no seed gives again."""

    given: SealedSeed | None

    def deposit(self, randomness: Randomness, customers: Bools) -> SealedSeed:
        if self.given is None:
            raise _Unusable(NotFound("its bundle has no escrow"))
        return self.given

    def accept(self, given: SealedSeed, seed: bytes) -> None:
        """Held against the cards when it came."""


def replay(
    manifest: JobManifest,
    account: Account,
    opened: Opened,
    *,
    executor: Executor | None = None,
) -> Replayed:
    """Run one party's program again, and compare every frame that it sends.

    Raises IntegrityError or NotFound for a bundle that is not whole; what the party did otherwise
    than its program is a finding.
    """
    record = account.record
    me, attempt = record.org, record.attempt
    randomness = Randomness(opened.seed, bytes.fromhex(manifest.digest()), attempt)
    if not hmac.compare_digest(seed_commitment(randomness, me), account.committed(me, "seed")):
        return Replayed(me, 0, (Finding("seed", me, "its seed is not the one it committed to"),))
    peers = [org for org in (manifest.bank, *manifest.departments) if org != me]
    lines = {peer: _Recorded(account.transcript, peer, me) for peer in peers}
    book = MemoryCheckpointBook()
    for part, state in opened.before.items():
        book.save(state, part)
    party = Party(
        me=me,
        manifest=manifest,
        attempt=attempt,
        randomness=randomness,
        channels={peer: Channel(me, peer, line) for peer, line in lines.items()},
        pair_seeds=opened.pair_seeds,
        ledger=Ledger(me, [line.entry() for line in manifest.disclosures]),
        spent=MemorySpentBook(),
        answers=MemoryAnswerBook(),
        reply_book=MemoryReplyBook(),
        attempt_book=MemoryAttemptBook(),
        rounding=opened.rounding,
        first_master=opened.first_seed,
        checkpoints=book,
        desk=_RecordedDesk(account.given),
        executor=executor,
    )
    findings: list[Finding] = []
    try:
        _run(party, opened)
    except _Deviates as error:
        findings.append(_deviation(me, error))
    except _EndOfRecord:
        if record.outcome == "succeeded":
            what = "its account ends before its program does"
            findings.append(Finding("program", me, what, party.stage))
    except _Unusable as error:
        raise error.error from None
    except (LianmoError, ProtocolError, ParameterError) as error:
        if record.outcome == "succeeded" or not all(line.is_done for line in lines.values()):
            what = f"its program stops here, its account goes on: {error}"
            findings.append(Finding("program", me, what, party.stage))
    else:
        if not all(line.is_done for line in lines.values()):
            what = "its account goes on after its program has ended"
            findings.append(Finding("program", me, what, party.stage))
    return Replayed(me, sum(line.sent for line in lines.values()), tuple(findings))


def _run(party: Party, opened: Opened) -> None:
    """The program, with what a node does before it where the cover is not the registry."""
    if party.manifest.cover.kind is not CoverKind.REGISTRY:
        if party.me == party.manifest.bank:
            if opened.cover is None:
                raise _Unusable(NotFound("its bundle has no cover", party=party.me))
            for org in party.manifest.departments:
                party.channels[org].send(COVER_STAGE, opened.cover)
        else:
            party.channels[party.manifest.bank].receive(COVER_STAGE, CoverRows)
    registry.run_party(party, opened.data)


def _deviation(me: str, error: _Deviates) -> Finding:
    frame = error.frame
    token = ""
    kinds: tuple[type[Answer | Query], ...] = (Answer, Query)
    for kind in kinds:
        if frame.kind == kind.__name__:
            message = read_frame(error.sent, kind)[1]
            token = f"{message.batch}/{message.index}"
    what = f"frame {error.place} to {error.peer} ({frame.kind}) is not what its seed and data give"
    return Finding("program", me, what, frame.stage, token)
