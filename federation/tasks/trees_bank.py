"""The bank's side of boosted trees (PROTOCOLS.md section 7): it asks, grows and keeps the trees.

    agreement   commitments of all parties, joint seed
    row keys    for the bank's customers: split bits are opened for them
    binning     the departments' pre-bins
    tokens      all queries' tokens, before any label is touched
    counts      v = 1 over the customers that trees are grown on
    trees       round by round: gradients (and hessians) of every node asked, then what is new of
                the chosen thresholds opened
    alone       the same trees on the bank's own features, for comparison

Every opened sum is checked against totals that the bank knows and against the counts
(CRYPTO_REVIEW.md F7, R5). The departments see a fixed number of queries, each under a fresh token,
and the thresholds that are opened; the number of trees only if the job stops early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.ledger import What
from federation.tables import BankData
from federation.tasks import pooled, vertical
from federation.tasks import trees_checkpoints as checkpoints
from federation.tasks.agreement import Customers, agree
from federation.tasks.binning import FeatureBins
from federation.tasks.messages import Finished
from federation.tasks.party import Party
from federation.tasks.secure_sum import pool_of
from federation.tasks.trees_columns import Columns
from federation.tasks.trees_department import BINS, Sealing
from federation.tasks.trees_fit import Fitted, Tree, boost, validation_part
from federation.tasks.trees_grow import Bools, Feature, Gradients, Integers, Node, Split
from federation.tasks.trees_messages import NextTree, StartAt, Thresholds
from federation.tasks.trees_model import TreesModel, TreesResult, feature_of, part_digest
from federation.tasks.trees_plan import COUNT_QUERIES, THRESHOLD_BITS, plan_of
from protocols import labels, sealed
from protocols.errors import ProtocolError
from protocols.linear_query import Answer, Layout, decode
from protocols.openings import check_counts, check_opening
from protocols.ring import Q
from protocols.streams import Stream, digest


def run_bank(party: Party, data: BankData) -> TreesResult:
    """Train trees as the bank; raises UsageError if the customers cannot carry any."""
    return _Bank(party, data).run()


@dataclass(frozen=True, slots=True)
class _Department:
    """What the bank knows of a department."""

    layout: Layout
    columns: slice  # among the columns of all departments
    first: int  # its first feature among all owners'
    keys: NDArray[np.uint8] = field(repr=False)


class _Bank:
    def __init__(self, party: Party, data: BankData) -> None:
        self.others = party.other_banks()
        if self.others:
            party = party.seen_from(party.me)
        self.pool, manifest = pool_of(party), party.manifest
        self.party, self.data, self.plan = party, data, plan_of(manifest)
        self.parameters, self.departments = manifest.trees, manifest.departments
        vertical.require_usable(party, data)
        self.coins = b""  # until all have committed; who is held out is in the commitment
        self.before = self._load()
        if self.before is None:
            self.test = vertical.hold_out(party, data, float(self.parameters.hold_out))
            share = float(self.parameters.validation)
            self.validation = validation_part(~self.test, share, self._draw)
        else:  # the same customers again, or the earlier trees have seen the hold-out
            self.test, self.validation = self.before.test, self.before.validation
        self.train = ~self.test & ~self.validation
        bads = int(data.labels[self.train].sum())
        vertical.require_both_classes(party, int(self.train.sum()), bads)

    def run(self) -> TreesResult:
        party = self.party
        pieces = vertical.bank_pieces(self.data, self.test)
        rows = Customers(self.data.cover_rows, self.data.positions)
        self.agreement = agree(party, [*self.departments, *self.others], pieces, rows)
        self.coins = self.agreement.joint_seed
        self.cover, self.keys = vertical.ask_row_keys(party, self.data)
        self.binning()
        self.tokens()
        asked = _Asked(self)
        self.counts(asked)
        columns, fitted = self.trees(asked)
        with party.at("alone"):
            fitted_alone = self.fit(Columns(self.own, self.codes, executor=party.executor))
            alone = self.model(fitted_alone, {})
        thresholds = asked.thresholds
        model = self.model(fitted, thresholds)
        self.finish(model)
        notes = []
        if columns.surprises:
            notes.append("split bits and answers differ: both transcripts belong to the auditor")
        customers = self.data.customers
        bits = {
            org: np.array([columns.opened[s] for s in splits], bool)
            .reshape(len(splits), customers)
            .T
            for org, splits in thresholds.items()
        }
        return TreesResult(
            model=model,
            margins=fitted.margins,
            scores=model.points(fitted.margins),
            bits=bits,
            labels=self.data.labels,
            test=self.test,
            validation=self.validation,
            history=fitted.history,
            alone=alone,
            alone_scores=alone.points(fitted_alone.margins),
            thresholds={org: len(splits) for org, splits in thresholds.items()},
            notes=tuple(notes),
            tokens=asked.tokens,
            commitments=self.agreement.commitments,
            seconds=dict(party.seconds),
            sent_bytes=party.traffic("sent_bytes"),
            received_bytes=party.traffic("received_bytes"),
            disclosures=party.ledger.entries(),
            coins=self.coins,
        )

    # stages

    def binning(self) -> None:
        """Pre-bins of the bank's own columns; the departments' as they say."""
        party, parameters = self.party, self.parameters
        with party.at("binning"):
            own, self.codes = self.own_bins()
            self.own = [feature_of(party.me, item, parameters) for item in own]
            self.definitions, self.theirs = [*own], list[Feature]()
            self.remote: dict[str, _Department] = {}
            start = 0
            for org in self.departments:
                made = vertical.receive_bins(party, org, parameters.max_bins)
                layout = Layout(self.data.cover_rows, tuple(item.bins for item in made))
                stop = start + layout.columns
                first = len(self.definitions)
                self.remote[org] = _Department(layout, slice(start, stop), first, self.keys[org])
                self.definitions += made
                self.theirs += [feature_of(org, item, parameters) for item in made]
                start = stop

    def own_bins(self) -> tuple[tuple[FeatureBins, ...], NDArray[np.uint8]]:
        """Of the bank's own columns, made over all banks' customers where there are several."""
        columns, of = self.data.columns, self.parameters
        if self.others:
            most = self.party.manifest.limits.customers_max
            found = pooled.shared_bins(self.pool, columns, of.max_bins, of.min_cohort, most)
            codes = [item.assign(column) for item, column in zip(found, columns, strict=True)]
            return found, np.array(codes, np.uint8).reshape(len(codes), self.data.customers)
        return vertical.make_bins(
            columns, self.data.customers, of.max_bins, of.min_cohort, self.party.executor
        )

    def tokens(self) -> None:
        """Tokens for the whole job."""
        party, plan = self.party, self.plan
        with party.at("tokens"):
            self._go_on()
            left = max(plan.joint_trees - len(self.done), 0)
            rows, seed = self.data.cover_rows, self.agreement.joint_seed
            self.querier = vertical.querier_of(party, rows, plan.query, seed, BINS)
            layouts = {org: item.layout for org, item in self.remote.items()}
            vertical.fetch_tokens(
                party, self.querier, layouts, COUNT_QUERIES + left * plan.queries_a_tree
            )

    def counts(self, asked: _Asked) -> None:
        """Customers of every pre-bin: what all later openings are checked against."""
        with self.party.at("counts"):
            asked.count()

    def trees(self, asked: _Asked) -> tuple[Columns, Fitted]:
        """All trees."""
        party, parameters = self.party, self.parameters
        columns = Columns(
            self.own,
            self.codes,
            asked,
            self.theirs,
            asked.all_counts,
            cap=parameters.thresholds,
            hessians=parameters.hessians,
            pool=self.pool,
            executor=party.executor,
        )
        columns.restore(self.kept, self.counted)
        for split in self.kept:
            asked.opened[self.features[split.feature].owner].append(split)
        with party.at("trees", parameters.trees) as done:

            def before(number: int, more: bool) -> None:
                party.check()
                for org in self.departments:
                    party.channels[org].send("trees", NextTree(more))

            def after(trees: Sequence[Tree]) -> None:
                self._save(trees, columns.opened)
                done(len(trees))

            return columns, self.fit(columns, before, after, self.done)

    def fit(
        self,
        columns: Columns,
        before: Callable[[int, bool], None] = lambda number, more: None,
        after: Callable[[Sequence[Tree]], None] = lambda trees: None,
        done: Sequence[Tree] = (),
    ) -> Fitted:
        return boost(
            columns,
            self.data.labels,
            self.train,
            self.validation,
            self.parameters,
            self.plan.query.vmax,
            self._draw,
            before=before,
            after=after,
            done=done,
        )

    def model(self, fitted: Fitted, thresholds: Mapping[str, tuple[Split, ...]]) -> TreesModel:
        features = self.features if thresholds else self.own
        parameters = self.parameters
        return TreesModel(
            self.party.me,
            tuple(features),
            tuple(self.definitions[: len(features)]),
            fitted.base,
            fitted.trees,
            dict(thresholds),
            parameters.base_score,
            parameters.base_odds,
            parameters.pdo,
        )

    def finish(self, model: TreesModel) -> None:
        """Both ends of every channel hold the same part of the model."""
        with self.party.at("finish"):
            for org, splits in model.thresholds.items():
                own = model.own_numbers(org, splits)
                mine = Finished(part_digest(org, model.definitions_of(org), own))
                self.party.channels[org].send("finish", mine)
                if self.party.channels[org].receive("finish", Finished) != mine:
                    raise ProtocolError(f"{org} holds another part of the model")

    # earlier attempts

    def _load(self) -> checkpoints.Checkpoint | None:
        book = self.party.checkpoints
        return checkpoints.load(book, self.data.customers) if book is not None else None

    def _save(self, trees: Sequence[Tree], opened: Mapping[Split, Bools]) -> None:
        if self.party.checkpoints is not None:
            bins = checkpoints.bins_digest(self.definitions)
            state = checkpoints.Checkpoint(bins, self.test, self.validation, tuple(trees), opened)
            checkpoints.save(self.party.checkpoints, state)

    def _go_on(self) -> None:
        """Take up an earlier attempt's trees, if every department counts what they stand on."""
        held = set[Split]()
        for org, item in self.remote.items():
            theirs = self.party.channels[org].receive("tokens", Thresholds).splits()
            held |= {Split(s.feature + item.first, s.cut, s.missing_left) for s in theirs}
        before = self.before
        is_whole = (
            before is not None
            and before.bins == checkpoints.bins_digest(self.definitions)
            and set(before.opened) <= held
        )
        self.counted = held
        self.kept = dict(before.opened) if before is not None and is_whole else {}
        self.done = before.trees if before is not None and is_whole else ()
        start = min(len(self.done), self.plan.joint_trees)
        for org, item in self.remote.items():
            stop = item.first + len(item.layout.bins)
            mine = [s for s in self.kept if item.first <= s.feature < stop]
            own = [Split(s.feature - item.first, s.cut, s.missing_left) for s in mine]
            self.party.channels[org].send("tokens", Thresholds.of(own))
            self.party.channels[org].send("tokens", StartAt(start))

    # pieces

    @property
    def features(self) -> list[Feature]:
        return [*self.own, *self.theirs]

    def _draw(self, purpose: str, number: int) -> Stream:
        # Bound to the attempt; what is rounded follows from earlier frames of the same attempt. And
        # to the joint coins, which come after the commitment to the seed: a bank that could choose
        # a seed by what it draws would have the rows that single out a firm (CRYPTO_REVIEW.md F16).
        if self.others and purpose == "features":  # the same features at every bank
            return Stream(digest(labels.QUANTISE, self.coins, purpose, number))
        return self.party.randomness.stream(
            labels.QUANTISE, stage=f"trees/{purpose}", step=number, inputs=self.coins
        )


class _Asked:
    """The departments, as the growth of trees sees them (`trees_columns.Remote`)."""

    def __init__(self, bank: _Bank) -> None:
        self.party, self.plan, self.querier = bank.party, bank.plan, bank.querier
        self.remote, self.positions = bank.remote, bank.data.positions
        self.cover_rows, self.train = bank.data.cover_rows, bank.train
        self.pool = bank.pool
        own = np.array([bank.train.sum()])
        most = self.party.manifest.limits.customers_max
        self.customers = int(self.pool.integers("customers", own, most)[0])
        job = self.party.manifest_digest
        self.sealing = {
            org: Sealing(self.party.me, org, job, self.party.attempt, bank.cover)
            for org in bank.remote
        }
        self.columns = sum(item.layout.columns for item in bank.remote.values())
        self.all_counts = np.zeros(self.columns, np.int64)
        self.opened: dict[str, list[Split]] = {org: [] for org in bank.remote}
        self.tokens = 0
        self.round, self.is_open = 0, False

    @property
    def thresholds(self) -> dict[str, tuple[Split, ...]]:
        """What each department has opened, in order."""
        return {org: tuple(splits) for org, splits in self.opened.items()}

    def count(self) -> None:
        """The first query: v = 1."""
        most = self.party.manifest.limits.customers_max * len(self.pool.members)
        bits = max(most.bit_length(), 1)
        for org, item in self.remote.items():
            self.party.ledger.reveal(org, self.party.me, What.BIN_COUNTS, item.layout.columns, bits)
        rows = np.flatnonzero(self.train)
        self._send("counts", [(rows, np.ones(len(rows), np.int64))])
        (opened,) = self._receive("counts", 1)
        for org, item in self.remote.items():
            with _said_by(org):
                check_counts(item.layout, opened[item.columns], self.customers)
        self.all_counts[:] = opened

    def ask(self, gradients: Gradients, nodes: Sequence[Node]) -> Callable[[], list[Integers]]:
        """A round: every node's g, then its h; what is left of the schedule with v = 0."""
        if self.is_open or self.round >= len(self.plan.rounds):
            raise RuntimeError("a round beyond the schedule")
        self.is_open = True
        a_node, scheduled = self.plan.queries_a_node, self.plan.rounds[self.round]
        if len(nodes) > scheduled:
            raise RuntimeError("more nodes than the schedule has")
        for org, item in self.remote.items():
            count = scheduled * a_node * item.layout.columns
            self._reveal(org, What.QUERY_SUMS, count, self.plan.query.t_bits)
        wanted = (gradients.g, gradients.h)[:a_node]
        rows = [node.rows for node in nodes] + [_NONE] * (scheduled - len(nodes))
        self._send("trees", ((at, values[at]) for at in rows for values in wanted))
        totals = [(node.g, node.h) for node in nodes]
        totals += [(0, 0)] * (scheduled - len(nodes))
        return lambda: self._collect(totals)[: len(nodes)]

    def _collect(self, totals: list[tuple[int, int]]) -> list[Integers]:
        a_node, found = self.plan.queries_a_node, []
        opened = self._receive("trees", len(totals) * a_node)
        for i, (g, h) in enumerate(totals):
            sums = np.zeros((2, self.columns), np.int64)
            sums[:a_node] = opened[i * a_node : (i + 1) * a_node]
            self.check(sums, g, h)
            found.append(sums)
        return found

    def check(self, sums: Integers, g: int, h: int) -> None:
        """PROTOCOLS.md section 3: totals, and what the bins' customers allow."""
        vmax = self.plan.query.vmax
        bounds = [(g, -vmax, vmax), (h, 0, vmax)][: self.plan.queries_a_node]
        for (total, low, high), values in zip(bounds, sums, strict=False):
            for org, item in self.remote.items():
                with _said_by(org):
                    check_opening(
                        item.layout,
                        values[item.columns],
                        total=total,
                        customers=self.customers,
                        low=low,
                        high=high,
                        counts=self.all_counts[item.columns],
                    )

    def open(self, splits: Sequence[Split]) -> list[Bools]:
        """The end of a round: what is new is named to its owner, and opened for all customers."""
        if not self.is_open:
            raise RuntimeError("a round ends that did not begin")
        self.is_open, self.round = False, self.round + 1
        party, found = self.party, dict[Split, Bools]()
        asked = {}
        for org, item in self.remote.items():
            stop = item.first + len(item.layout.bins)
            asked[org] = mine = [s for s in splits if item.first <= s.feature < stop]
            own = [Split(s.feature - item.first, s.cut, s.missing_left) for s in mine]
            if mine:
                most = len(mine) * party.manifest.limits.customers_max
                party.ledger.reveal(party.me, org, What.THRESHOLDS, len(mine), THRESHOLD_BITS)
                self._reveal(org, What.SPLIT_BITS, most, 1)
            party.channels[org].send("trees", Thresholds.of(own))
        for org, mine in asked.items():
            keys = {org: self.remote[org].keys}
            for step, part in self.sealing[org].steps(mine):
                column = party.channels[org].receive("trees", sealed.SealedColumn)
                opened = sealed.open_sum(step, [column], keys, self.positions)
                for i, split in enumerate(part):
                    found[split] = (opened.values >> i) & 1 == 1
            self.opened[org] += mine
        return [found[split] for split in splits]

    def finish(self) -> None:
        """The rest of the tree's schedule, with v = 0 and nothing to open."""
        if self.is_open:
            self.open([])
        while self.round < len(self.plan.rounds):
            self.ask(_NO_GRADIENTS, [])()
            self.open([])
        self.round = 0

    # pieces

    def _send(self, stage: str, asked: Iterable[tuple[Integers, Integers]]) -> None:
        """A query for each (customers, their values), in order."""
        for query in self.querier.queries(self._over_cover(*one) for one in asked):
            for org in self.remote:
                self.party.ledger.reveal(self.party.me, org, What.QUERIES, 1, 0)
                self.party.channels[org].send(stage, query)
            self.tokens += 1

    def _over_cover(self, rows: Integers, values: Integers) -> Integers:
        v = np.zeros(self.cover_rows, np.int64)
        v[self.positions[rows]] = values
        return v

    def _receive(self, stage: str, queries: int) -> Integers:
        """(queries, columns of all departments): what the next answers open."""
        found = np.empty((queries, self.columns), np.int64)
        take = self.querier.open if len(self.pool.members) == 1 else self.querier.unmask
        for row in found:
            for org, item in self.remote.items():
                answer = self.party.channels[org].receive(stage, Answer)
                row[item.columns] = take(org, answer)
        if len(self.pool.members) == 1:
            return found
        # One bank's residues are uniform; only those of all banks together mean anything.
        return decode(self.plan.query, self.pool.residues(f"answers {stage}", found, Q))

    def _reveal(self, org: str, what: What, count: int, bits: int) -> None:
        self.party.ledger.reveal(org, self.party.me, what, count, bits)


@contextmanager
def _said_by(org: str) -> Iterator[None]:
    try:
        yield
    except ProtocolError as error:
        raise ProtocolError(f"{org}: {error}") from error


_NONE = np.zeros(0, np.int64)
_NO_GRADIENTS = Gradients(_NONE, _NONE, np.zeros(0, bool), 1.0, 1.0, _NONE, _NONE, 1.0)
