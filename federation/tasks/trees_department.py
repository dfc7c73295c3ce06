"""A department's side of boosted trees (PROTOCOLS.md section 7): it answers, seals, and learns
which of its thresholds are used. Read it beside `trees_bank.py`: the stages have the same names.

It sees neither gradients nor labels, nodes or customers; and because every round has a fixed number
of queries, not the trees' shape either. What it does learn is listed: its own thresholds, and with
them in which round of which tree each was first wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from federation.channel import Channel
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
from protocols import sealed
from protocols.errors import ProtocolError
from protocols.linear_query import Layout, Query

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


def run_department(party: Party, data: DepartmentData) -> TreesPart:
    """Take part in boosted trees as a department; returns its part of the model."""
    return _Department(party, data).run()


class _Department:
    def __init__(self, party: Party, data: DepartmentData) -> None:
        manifest = party.manifest
        vertical.require_matching(party, data)
        self.party, self.data, self.plan = party, data, plan_of(manifest)
        self.parameters, self.bank = manifest.trees, manifest.bank
        self.others = [org for org in manifest.departments if org != party.me]
        self.answered = 0
        self.opened: list[Split] = []
        self.ever: list[Split] = []  # over all attempts: what the caps count

    @property
    def channel(self) -> Channel:
        return self.party.channels[self.bank]

    def run(self) -> TreesPart:
        party = self.party
        self.agreement = agree(party, [self.bank, *self.others], [])
        self.cover, keys = vertical.give_row_keys(party, self.data)
        job = party.manifest_digest
        self.sealing = Sealing(self.bank, party.me, job, party.attempt, self.cover)
        self.sealer = sealed.Department(party.me, keys, party.randomness, {})
        self.binning()
        self.tokens()
        with party.at("counts"):
            most = max(party.manifest.limits.customers_max.bit_length(), 1)
            self._reveal(What.BIN_COUNTS, self.layout.columns, most)
            self._answer("counts", COUNT_QUERIES)
        self.trees()
        part = TreesPart(
            party.me,
            self.definitions,
            tuple(self.opened),
            self.answered,
            (*self.agreement.commitments, self.commitment),
            dict(party.seconds),
            party.ledger.entries(),
        )
        with party.at("finish"):
            self.channel.send("finish", Finished(part.digest()))
            if self.channel.receive("finish", Finished).digest != part.digest():
                raise ProtocolError("the bank holds another part of the model")
        return part

    # stages

    def binning(self) -> None:
        """Pre-bins of all fields, told to the bank."""
        party, parameters = self.party, self.parameters
        with party.at("binning"):
            least = rows_of_cohort(
                parameters.min_cohort, self.data.rows, party.manifest.limits.customers_min
            )
            self.definitions, self.bins = vertical.make_bins(
                self.data.columns, self.data.rows, parameters.max_bins, least, party.executor
            )
            self.features = [feature_of(party.me, item, parameters) for item in self.definitions]
            self.layout = Layout(self.data.rows, tuple(item.bins for item in self.definitions))
            self._reveal(What.BIN_DEFINITIONS, self.layout.columns, 64)
            self.channel.send("binning", Definitions(self.definitions))

    def tokens(self) -> None:
        """Commit to the bins, then grant every token of the job, before any label is touched."""
        party, plan = self.party, self.plan
        with party.at("tokens"):
            self.start = self._go_on()
            queries = plan.tokens - self.start * plan.queries_a_tree
            seed = self.agreement.joint_seed
            self.owner = vertical.owner_of(party, self.layout, self.bins, plan.query, seed, BINS)
            self.commitment = vertical.grant_tokens(party, self.owner, queries)

    def trees(self) -> None:
        """Answer every round of every tree that the schedule has; open what is asked."""
        party, plan = self.party, self.plan
        with party.at("trees", plan.joint_trees) as done:
            for number in range(self.start, plan.joint_trees):
                if not self.channel.receive("trees", NextTree).more:
                    return
                for nodes in plan.rounds:
                    queries = nodes * plan.queries_a_node
                    sums = queries * self.layout.columns
                    self._reveal(What.QUERY_SUMS, sums, plan.query.t_bits)
                    self._answer("trees", queries)
                    self._open(self.channel.receive("trees", Thresholds).splits())
                done(number + 1)

    # pieces

    def _go_on(self) -> int:
        """Agree with the bank where an earlier attempt is taken up again; 0 without one."""
        book, channel = self.party.checkpoints, self.channel
        if book is not None:
            self.ever = list(checkpoints.load_thresholds(book, self.definitions))
        channel.send("tokens", Thresholds.of(self.ever))
        self.opened = list(channel.receive("tokens", Thresholds).splits())
        start = channel.receive("tokens", StartAt).tree
        if not 0 <= start <= self.plan.joint_trees or not set(self.opened) <= set(self.ever):
            raise ProtocolError("the bank goes on from something else than was opened")
        return start

    def _answer(self, stage: str, queries: int) -> None:
        for _ in range(queries):
            query = self.channel.receive(stage, Query)
            self.party.ledger.reveal(self.bank, self.party.me, What.QUERIES, 1, 0)
            self.channel.send(stage, self.owner.answer(query))
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
        party.ledger.reveal(self.bank, party.me, What.THRESHOLDS, len(splits), THRESHOLD_BITS)
        most = len(splits) * party.manifest.limits.customers_max
        self._reveal(What.SPLIT_BITS, most, 1)
        if party.checkpoints is not None:
            # Counted before a bit leaves: a crash must not give thresholds back.
            checkpoints.save_thresholds(party.checkpoints, self.definitions, ever)
        self.ever = ever
        for step, part in self.sealing.steps(splits):
            values = np.zeros(self.data.rows, np.int64)
            for i, split in enumerate(part):
                left = split.left_bins(self.features[split.feature]).astype(np.int64) << i
                values += left[self.bins[split.feature]]
            self.channel.send("trees", self.sealer.seal(step, values))
        self.opened = after

    def _reveal(self, what: What, count: int, bits: int) -> None:
        self.party.ledger.reveal(self.party.me, self.bank, what, count, bits)
