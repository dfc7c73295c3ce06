"""A department's side of boosted trees (PROTOCOLS.md section 7): it answers, seals, and learns
which of its thresholds are used. Read it beside `trees_bank.py`: the stages have the same names.

It sees neither gradients nor labels, nodes or customers; and because every round has a fixed number
of queries, not the trees' shape either. What it does learn is listed: its own thresholds, and with
them in which round of which tree each was first wanted.

Several banks may grow one model together. Row keys, tokens and sealed columns are then each bank's
own; a statistic is answered to all banks under masks that add up to nought, so that only the sum
over the banks opens; what the banks say of the trees has to be the same from each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from federation.ledger import What
from federation.tables import DepartmentData
from federation.tasks import trees_checkpoints as checkpoints
from federation.tasks import vertical
from federation.tasks.agreement import agree
from federation.tasks.binning import rows_of_cohort
from federation.tasks.messages import Definitions, Finished
from federation.tasks.party import Party
from federation.tasks.trees_grow import Split
from federation.tasks.trees_messages import NextTree, StartAt, Thresholds
from federation.tasks.trees_model import TreesPart, feature_of
from federation.tasks.trees_plan import BITS_A_COLUMN, COUNT_QUERIES, THRESHOLD_BITS, plan_of
from protocols import linear_query, sealed
from protocols.errors import ProtocolError
from protocols.linear_query import Layout, Query

M = TypeVar("M")
BINS = "trees"  # name of the matrix


@dataclass(slots=True)
class Sealing:
    """The sealed columns of one department, counted alike at both ends.

    Several thresholds of a round share one column, a bit each.
    """

    bank: str
    department: str
    job: bytes = field(repr=False)  # digest of the manifest
    attempt: int
    cover: bytes = field(repr=False)
    count: int = 0

    def steps(self, splits: Sequence[Split]) -> Iterator[tuple[sealed.Step, Sequence[Split]]]:
        """The next columns for these thresholds, with the thresholds that each one carries."""
        for start in range(0, len(splits), BITS_A_COLUMN):
            part = splits[start : start + BITS_A_COLUMN]
            yield (
                sealed.Step(
                    job=self.job,
                    attempt=self.attempt,
                    bank=self.bank,
                    # A threshold is one owner's: there is no sum to hide it in.
                    departments=(self.department,),
                    cover=self.cover,
                    stage="trees",
                    step=self.count,
                    column=0,
                    values=sealed.ValueRange(0, (1 << len(part)) - 1),
                ),
                part,
            )
            self.count += 1


@dataclass(slots=True)
class _Line:
    """What this department has with one of the banks."""

    party: Party  # as that bank has to do with it
    sealing: Sealing
    sealer: sealed.Department = field(repr=False)
    owner: linear_query.Department | None = field(default=None, repr=False)

    @property
    def bank(self) -> str:
        return self.party.manifest.bank

    def receive(self, stage: str, kind: type[M]) -> M:
        return self.party.channels[self.bank].receive(stage, kind)

    def send(self, stage: str, message: object) -> None:
        self.party.channels[self.bank].send(stage, message)


def run_department(party: Party, data: DepartmentData) -> TreesPart:
    """Take part in boosted trees as a department; returns its part of the model."""
    return _Department(party, data).run()


class _Department:
    def __init__(self, party: Party, data: DepartmentData) -> None:
        manifest = party.manifest
        vertical.require_matching(party, data)
        self.party, self.data, self.plan = party, data, plan_of(manifest)
        self.parameters, self.banks = manifest.trees, manifest.banks
        self.others = [org for org in manifest.departments if org != party.me]
        # What several banks found together is not taken up by one of them.
        self.book = party.checkpoints if len(self.banks) == 1 else None
        self.answered = 0
        self.opened: list[Split] = []
        self.ever: list[Split] = []  # over all attempts: what the caps count

    def run(self) -> TreesPart:
        party, limits = self.party, self.party.manifest.limits
        self.agreement = agree(party, [*self.banks, *self.others], [])
        self.lines = [self.line(bank) for bank in self.banks]
        self.binning()
        commitments = self.tokens()
        with party.at("counts"):
            most = limits.customers_max * len(self.banks)
            self._reveal(What.BIN_COUNTS, self.layout.columns, max(most.bit_length(), 1))
            self._answer("counts", COUNT_QUERIES)
        self.trees()
        part = TreesPart(
            party.me,
            self.definitions,
            tuple(self.opened),
            self.answered,
            (*self.agreement.commitments, *commitments),
            dict(party.seconds),
            party.ledger.entries(),
        )
        with party.at("finish"):
            self._tell("finish", Finished(part.digest()))
            for line in self.lines:
                if line.receive("finish", Finished).digest != part.digest():
                    raise ProtocolError(f"{line.bank} holds another part of the model")
        return part

    # stages

    def line(self, bank: str) -> _Line:
        """Row keys of one bank's customers, and what is sealed under them."""
        party = self.party.seen_from(bank) if len(self.banks) > 1 else self.party
        cover, keys = vertical.give_row_keys(party, self.data)
        sealing = Sealing(bank, party.me, party.manifest_digest, party.attempt, cover)
        return _Line(party, sealing, sealed.Department(party.me, keys, party.randomness, {}))

    def binning(self) -> None:
        """Pre-bins of all fields, told to every bank."""
        party, parameters = self.party, self.parameters
        with party.at("binning"):
            customers = party.manifest.limits.customers_min * len(self.banks)
            least = rows_of_cohort(parameters.min_cohort, self.data.rows, customers)
            self.definitions, self.bins = vertical.make_bins(
                self.data.columns, self.data.rows, parameters.max_bins, least, party.executor
            )
            self.features = [feature_of(party.me, item, parameters) for item in self.definitions]
            self.layout = Layout(self.data.rows, tuple(item.bins for item in self.definitions))
            self._reveal(What.BIN_DEFINITIONS, self.layout.columns, 64)
            self._tell("binning", Definitions(self.definitions))

    def tokens(self) -> list[bytes]:
        """Commit to the bins, then grant every token of the job, before any label is touched.

        Returns the commitments, one for each bank: each has public coins of its own.
        """
        party, plan, commitments = self.party, self.plan, []
        with party.at("tokens"):
            self.start = self._go_on()
            queries = plan.tokens - self.start * plan.queries_a_tree
            seed = self.agreement.joint_seed
            for line in self.lines:
                line.owner = vertical.owner_of(
                    line.party, self.layout, self.bins, plan.query, seed, BINS
                )
                commitments.append(vertical.grant_tokens(line.party, line.owner, queries))
        return commitments

    def trees(self) -> None:
        """Answer every round of every tree that the schedule has; open what all banks ask alike."""
        party, plan = self.party, self.plan
        with party.at("trees", plan.joint_trees) as done:
            for number in range(self.start, plan.joint_trees):
                if not self._same([line.receive("trees", NextTree).more for line in self.lines]):
                    return
                for nodes in plan.rounds:
                    queries = nodes * plan.queries_a_node
                    sums = queries * self.layout.columns
                    self._reveal(What.QUERY_SUMS, sums, plan.query.t_bits)
                    self._answer("trees", queries)
                    asked = [line.receive("trees", Thresholds).splits() for line in self.lines]
                    self._open(self._same(asked))
                done(number + 1)

    # pieces

    def _go_on(self) -> int:
        """Agree with the banks where an earlier attempt is taken up again; 0 without one."""
        if self.book is not None:
            self.ever = list(checkpoints.load_thresholds(self.book, self.definitions))
        self._tell("tokens", Thresholds.of(self.ever))
        opened, start = self._same(
            [
                (line.receive("tokens", Thresholds).splits(), line.receive("tokens", StartAt).tree)
                for line in self.lines
            ]
        )
        last = self.plan.joint_trees if len(self.banks) == 1 else 0
        if not 0 <= start <= last or not set(opened) <= set(self.ever):
            raise ProtocolError("a bank goes on from something else than was opened")
        self.opened = list(opened)
        return start

    def _answer(self, stage: str, queries: int) -> None:
        """The same statistic to every bank, then the next one."""
        for _ in range(queries):
            for line in self.lines:
                if line.owner is None:
                    raise RuntimeError("answers come after tokens")
                query = line.receive(stage, Query)
                self.party.ledger.reveal(line.bank, self.party.me, What.QUERIES, 1, 0)
                if len(self.banks) > 1:
                    line.send(stage, line.owner.answer_shared(query, self.banks))
                else:
                    line.send(stage, line.owner.answer(query))
            self.answered += 1

    def _open(self, splits: tuple[Split, ...]) -> None:
        """Seal one bit a row for each new threshold; each may be named once, within the cap."""
        if not splits:
            return
        party = self.party
        after = [*self.opened, *splits]
        ever = [*self.ever, *(split for split in splits if split not in self.ever)]
        for split in splits:
            if split.feature >= len(self.features):
                raise ProtocolError("a threshold of a feature that does not exist")
            if not split.is_possible(self.features[split.feature]):
                raise ProtocolError("a threshold that does not split its feature")
            if sum(item.feature == split.feature for item in ever) > self.parameters.thresholds:
                raise ProtocolError("more thresholds of a feature than the manifest allows")
        if len(set(after)) != len(after):
            raise ProtocolError("a threshold that is open already")
        most = len(splits) * party.manifest.limits.customers_max
        for bank in self.banks:
            party.ledger.reveal(bank, party.me, What.THRESHOLDS, len(splits), THRESHOLD_BITS)
            party.ledger.reveal(party.me, bank, What.SPLIT_BITS, most, 1)
        if self.book is not None:
            # Counted before a bit leaves: a crash must not give thresholds back.
            checkpoints.save_thresholds(self.book, self.definitions, ever)
        self.ever = ever
        for line in self.lines:
            for step, part in line.sealing.steps(splits):
                values = np.zeros(self.data.rows, np.int64)
                for i, split in enumerate(part):
                    left = split.left_bins(self.features[split.feature]).astype(np.int64) << i
                    values += left[self.bins[split.feature]]
                line.send("trees", line.sealer.seal(step, values))
        self.opened = after

    def _same(self, said: Sequence[M]) -> M:
        """What all banks say; they grow one model, and one that says otherwise is after more."""
        if any(item != said[0] for item in said):
            raise ProtocolError("the banks ask for different trees")
        return said[0]

    def _tell(self, stage: str, message: object) -> None:
        """The same to every bank."""
        for line in self.lines:
            line.send(stage, message)

    def _reveal(self, what: What, count: int, bits: int) -> None:
        """To every bank."""
        for bank in self.banks:
            self.party.ledger.reveal(self.party.me, bank, what, count, bits)
