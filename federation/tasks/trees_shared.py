"""A department's side of trees that several banks grow together (PROTOCOLS.md section 7, hybrid).

The steps are those of `trees_department.py`, once for every bank: row keys, tokens and sealed
columns are each bank's own. A statistic is answered to all banks under masks that add up to nought,
so that only the sum over the banks opens; what the banks say of the trees has to be the same from
each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from federation.ledger import What
from federation.tables import DepartmentData
from federation.tasks import vertical
from federation.tasks.agreement import agree
from federation.tasks.binning import rows_of_cohort
from federation.tasks.messages import Definitions, Finished
from federation.tasks.party import Party
from federation.tasks.trees_department import BINS, Sealing
from federation.tasks.trees_grow import Split
from federation.tasks.trees_messages import NextTree, StartAt, Thresholds
from federation.tasks.trees_model import TreesPart, feature_of
from federation.tasks.trees_plan import COUNT_QUERIES, THRESHOLD_BITS, plan_of
from protocols import linear_query, sealed
from protocols.errors import ProtocolError
from protocols.linear_query import Layout, Query

M = TypeVar("M")


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


def run_shared_department(party: Party, data: DepartmentData) -> TreesPart:
    """Take part in the trees of several banks; returns this department's part of the model."""
    return _Department(party, data).run()


class _Department:
    def __init__(self, party: Party, data: DepartmentData) -> None:
        vertical.require_matching(party, data)
        self.party, self.data, self.plan = party, data, plan_of(party.manifest)
        self.parameters, self.banks = party.manifest.trees, party.manifest.banks
        self.others = [org for org in party.manifest.departments if org != party.me]
        self.answered = 0
        self.opened: list[Split] = []

    def run(self) -> TreesPart:
        party = self.party
        self.agreement = agree(party, [*self.banks, *self.others], [])
        self.lines = [self.line(bank) for bank in self.banks]
        self.binning()
        commitments = self.tokens()
        with party.at("counts"):
            most = party.manifest.limits.customers_max * len(self.banks)
            self.reveal(What.BIN_COUNTS, self.layout.columns, max(most.bit_length(), 1))
            self.answer("counts", COUNT_QUERIES)
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
            for line in self.lines:
                line.send("finish", Finished(part.digest()))
            for line in self.lines:
                if line.receive("finish", Finished).digest != part.digest():
                    raise ProtocolError(f"{line.bank} holds another part of the model")
        return part

    def line(self, bank: str) -> _Line:
        """Row keys of one bank's customers, and what is sealed under them."""
        party = self.party.seen_from(bank)
        cover, keys = vertical.give_row_keys(party, self.data)
        sealing = Sealing(bank, party.me, party.manifest_digest, party.attempt, cover)
        return _Line(party, sealing, sealed.Department(party.me, keys, party.randomness, {}))

    def binning(self) -> None:
        """Pre-bins of all fields, told to every bank."""
        party, of = self.party, self.parameters
        with party.at("binning"):
            customers = party.manifest.limits.customers_min * len(self.banks)
            least = rows_of_cohort(of.min_cohort, self.data.rows, customers)
            self.definitions, self.bins = vertical.make_bins(
                self.data.columns, self.data.rows, of.max_bins, least, party.executor
            )
            self.features = [feature_of(party.me, item, of) for item in self.definitions]
            self.layout = Layout(self.data.rows, tuple(item.bins for item in self.definitions))
            self.reveal(What.BIN_DEFINITIONS, self.layout.columns, 64)
            for line in self.lines:
                line.send("binning", Definitions(self.definitions))

    def tokens(self) -> list[bytes]:
        """Tokens of every bank, each under its own public coins."""
        party, plan, commitments = self.party, self.plan, []
        with party.at("tokens"):
            for line in self.lines:
                line.send("tokens", Thresholds.of([]))
            for line in self.lines:
                taken = line.receive("tokens", Thresholds).splits()
                if taken or line.receive("tokens", StartAt).tree:
                    raise ProtocolError(f"{line.bank} goes on from what was never opened")
            for line in self.lines:
                line.party.stage, seed = party.stage, self.agreement.joint_seed
                line.owner = vertical.owner_of(
                    line.party, self.layout, self.bins, plan.query, seed, BINS
                )
                commitments.append(vertical.grant_tokens(line.party, line.owner, plan.tokens))
        return commitments

    def trees(self) -> None:
        """Answer every round of every tree; open what all banks ask alike."""
        party, plan = self.party, self.plan
        with party.at("trees", plan.joint_trees) as done:
            for number in range(plan.joint_trees):
                if not self.same([line.receive("trees", NextTree).more for line in self.lines]):
                    return
                for nodes in plan.rounds:
                    queries = nodes * plan.queries_a_node
                    sums = queries * self.layout.columns
                    self.reveal(What.QUERY_SUMS, sums, plan.query.t_bits)
                    self.answer("trees", queries)
                    asked = [line.receive("trees", Thresholds).splits() for line in self.lines]
                    self.open(self.same(asked))
                done(number + 1)

    # pieces

    def answer(self, stage: str, queries: int) -> None:
        """The same statistic to every bank, then the next one."""
        for _ in range(queries):
            for line in self.lines:
                if line.owner is None:
                    raise RuntimeError("answers come after tokens")
                query = line.receive(stage, Query)
                self.party.ledger.reveal(line.bank, self.party.me, What.QUERIES, 1, 0)
                line.send(stage, line.owner.answer_shared(query, self.banks))
            self.answered += 1

    def open(self, splits: tuple[Split, ...]) -> None:
        """Seal one bit a row for each new threshold, for every bank's customers."""
        if not splits:
            return
        after = [*self.opened, *splits]
        for split in splits:
            if split.feature >= len(self.features):
                raise ProtocolError("a threshold of a feature that does not exist")
            if not split.is_possible(self.features[split.feature]):
                raise ProtocolError("a threshold that does not split its feature")
            if sum(item.feature == split.feature for item in after) > self.parameters.thresholds:
                raise ProtocolError("more thresholds of a feature than the manifest allows")
        if len(set(after)) != len(after):
            raise ProtocolError("a threshold that is open already")
        most = len(splits) * self.party.manifest.limits.customers_max
        for line in self.lines:
            bank, me = line.bank, self.party.me
            self.party.ledger.reveal(bank, me, What.THRESHOLDS, len(splits), THRESHOLD_BITS)
            self.party.ledger.reveal(me, bank, What.SPLIT_BITS, most, 1)
            for step, part in line.sealing.steps(splits):
                values = np.zeros(self.data.rows, np.int64)
                for i, split in enumerate(part):
                    left = split.left_bins(self.features[split.feature]).astype(np.int64) << i
                    values += left[self.bins[split.feature]]
                line.send("trees", line.sealer.seal(step, values))
        self.opened = after

    def same(self, said: Sequence[M]) -> M:
        """What all banks say; they grow one model, and one that says otherwise is after more."""
        if any(item != said[0] for item in said):
            raise ProtocolError("the banks ask for different trees")
        return said[0]

    def reveal(self, what: What, count: int, bits: int) -> None:
        for bank in self.banks:
            self.party.ledger.reveal(self.party.me, bank, what, count, bits)
