"""A department's side of a scorecard (PROTOCOLS.md section 7): it answers, seals, and learns its
own part of the model. Read it beside `scorecard_bank.py`: the stages have the same names.

Several banks may train one model together. Row keys, tokens and sealed columns are then each bank's
own; statistics are answered to all banks under masks that add up to nought, so that only the sum
over the banks opens; what the banks say of the model has to be the same from each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from federation import wire
from federation.channel import Channel
from federation.ledger import What
from federation.tables import CategoryColumn, Column, DepartmentData, NumberColumn
from federation.tasks import row_keys, vertical
from federation.tasks import scorecard_steps as steps
from federation.tasks.agreement import agree
from federation.tasks.binning import WOE_BITS, FeatureBins, offsets, pre_bin, rows_of_cohort
from federation.tasks.fit import quantise
from federation.tasks.messages import (
    Between,
    Correlations,
    Definitions,
    Direction,
    Finished,
    PointsTables,
    Shape,
    WoeTables,
)
from federation.tasks.model import DepartmentPart, PartFeature
from federation.tasks.party import Party
from federation.tasks.plan import (
    BETWEEN_LEVEL,
    DIRECTION_BITS,
    POINTS_BITS,
    plan_of,
    points_limit,
    score_steps,
    sum_bits,
)
from federation.tasks.steps import Opened, Steps
from protocols import labels, linear_query, sealed
from protocols.errors import ProtocolError
from protocols.linear_query import Answer, Layout, Parameters, Query
from protocols.streams import Randomness, digest

M = TypeVar("M")
BINS, PAIRS = "bins", "pairs"  # names of the matrices


def between_name(querier: str, queried: str) -> str:
    """The matrix of bins, as another department asks it: coins and tokens of its own.

    Both names: a querier's tokens are known by the matrix's name, and what it asks one department
    is rounded differently from what it asks the next.
    """
    return f"{BINS}/{querier}/{queried}"


def sealed_step(
    party: Party, cover: bytes, stage: str, number: int, values: sealed.ValueRange
) -> sealed.Step:
    """What the columns of one opening agree on, the same at all parties."""
    manifest = party.manifest
    return sealed.Step(
        job=party.manifest_digest,
        attempt=party.attempt,
        bank=manifest.bank,
        departments=tuple(sorted(manifest.departments)),
        cover=cover,
        stage=stage,
        step=number,
        column=0,
        values=values,
    )


def run_department(party: Party, data: DepartmentData) -> DepartmentPart:
    """Take part in a scorecard as a department; returns its part of the model."""
    return _Department(party, data).run()


class _Department:
    def __init__(self, party: Party, data: DepartmentData) -> None:
        manifest = party.manifest
        self.party, self.data, self.plan = party, data, plan_of(manifest)
        self.parameters, self.banks = manifest.scorecard, manifest.banks
        self.others = tuple(org for org in manifest.departments if org != party.me)
        vertical.require_matching(party, data)
        self.tokens = self.openings = 0
        self.commitments: list[bytes] = []

    def _channel(self, bank: str) -> Channel:
        return self.party.channels[bank]

    def _tell(self, stage: str, message: object) -> None:
        """The same to every bank."""
        for bank in self.banks:
            self._channel(bank).send(stage, message)

    def _hear(self, stage: str, kind: type[M]) -> M:
        """What every bank says alike: they fit one model, and one that says otherwise is after
        more."""
        said = [self._channel(bank).receive(stage, kind) for bank in self.banks]
        if len({wire.encode(item) for item in said}) > 1:
            raise ProtocolError("the banks ask for different models")
        return said[0]

    def _reveal(self, what: What, count: int, bits: int) -> None:
        """To every bank."""
        for bank in self.banks:
            self.party.ledger.reveal(self.party.me, bank, what, count, bits)

    def _learn(self, what: What, count: int, bits: int) -> None:
        """From every bank."""
        for bank in self.banks:
            self.party.ledger.reveal(bank, self.party.me, what, count, bits)

    def run(self) -> DepartmentPart:
        party = self.party
        everybody = [*self.banks, *self.others]
        self.agreement = agree(party, everybody, [])
        inputs = vertical.department_digest(self.data)
        self.steps = Steps(party, steps.schedule(self.plan), inputs)
        self.steps.agree(everybody)
        self.ever = Opened(party)
        self.row_keys()
        self.binning()
        self.prepare()
        self.counts()
        self.curvature()
        self.openings_of_scores()
        points = self.points()
        features = tuple(
            PartFeature(definition, woe, points[at], bool(kept))
            for definition, woe, at, kept in zip(
                self.definitions, self.woe, self.slices, self.kept, strict=True
            )
        )
        part = DepartmentPart(
            party.me,
            features,
            self.tokens,
            self.openings,
            (*self.agreement.commitments, *self.commitments),
            dict(party.seconds),
            party.ledger.entries(),
        )
        self.finish(part)
        return part

    # stages

    def row_keys(self) -> None:
        """Agree on the rows; make row keys if anything is to be opened for single customers."""

        def give() -> steps.AllCoverKeys:
            opens = self.parameters.openings > 0 or self.parameters.evaluation
            found = (row_keys.give(self._as_of(b), self.data, is_opening=opens) for b in self.banks)
            return steps.AllCoverKeys(tuple(steps.CoverKeys(*item) for item in found))

        held = self.steps.run(steps.ROW_KEYS, steps.AllCoverKeys, give)
        self.held = dict(zip(self.banks, held.banks, strict=True))

    def _as_of(self, bank: str) -> Party:
        """This party as that bank has to do with it."""
        return self.party.seen_from(bank) if len(self.banks) > 1 else self.party

    def binning(self) -> None:
        """Pre-bins of all fields, told to the bank; their number to the other departments."""
        party, parameters = self.party, self.parameters
        columns = self.data.columns
        customers_min = party.manifest.limits.customers_min * len(self.banks)
        least = rows_of_cohort(parameters.min_cohort, self.data.rows, customers_min)
        with party.at("binning", len(columns)) as done:
            self.definitions: list[FeatureBins] = []
            self.bins = np.empty((len(columns), self.data.rows), np.uint8)
            for j, column in enumerate(columns):
                made = pre_bin(column, parameters.max_bins, least)
                self.definitions.append(made)
                self.bins[j] = made.assign(column)
                done(j + 1)
            starts = offsets(self.definitions)
            self.slices = [slice(int(a), int(b)) for a, b in pairwise(starts)]
            self.columns = int(starts[-1])
            self.layout = Layout(self.data.rows, tuple(made.bins for made in self.definitions))
            held = self.steps.run(steps.BINNING, steps.Shapes, self._tell_bins)
        asked = (item.queried for item in self.plan.between if item.querier == party.me)
        self.shapes = dict(zip(asked, held.asked, strict=True))

    def _tell_bins(self) -> steps.Shapes:
        party = self.party
        self._reveal(What.BIN_DEFINITIONS, self.columns, 64)
        self._tell("binning", Definitions(tuple(self.definitions)))
        for item in self.plan.between:
            if item.queried == party.me:
                party.ledger.reveal(party.me, item.querier, What.BIN_DEFINITIONS, self.columns, 0)
                party.channels[item.querier].send("binning", Shape(self.layout.bins))
        found = []
        for item in self.plan.between:
            if item.querier == party.me:
                theirs = party.channels[item.queried].receive("binning", Shape)
                if len(theirs.bins) != len(party.manifest.party(item.queried).fields):
                    text = f"{item.queried} has other features than the manifest says"
                    raise ProtocolError(text)
                found.append(theirs)
        return steps.Shapes(tuple(found))

    def prepare(self) -> None:
        """Commit to the bins, then grant every token that is left, before any label is touched."""
        party, plan = self.party, self.plan
        left = [name for name in steps.schedule(plan) if not self.steps.is_held(name)]
        queries = sum(steps.queries(plan, name) for name in left)
        if not queries:
            return
        between = plan.between if steps.CURVATURE in left else ()
        with party.at("tokens", 1 + len(between)) as done:
            self.owners = {
                bank: self._matrix(self.layout, plan.bins, BINS, bins=self.bins, querier=bank)
                for bank in self.banks
            }
            for bank, owner in self.owners.items():
                self._grant(owner, bank, queries)
            done(1)
            self.towards: dict[str, linear_query.Department] = {}
            self.asking: dict[str, linear_query.Bank] = {}
            for number, item in enumerate(between):
                if plan.between_parameters is None:
                    raise RuntimeError("a plan with departments to ask and no parameters for it")
                name = between_name(item.querier, item.queried)
                if item.queried == party.me:
                    owner = self._matrix(
                        self.layout,
                        plan.between_parameters,
                        name,
                        bins=self.bins,
                        querier=item.querier,
                    )
                    self._grant(owner, item.querier, item.queries)
                    self.towards[item.querier] = owner
                elif item.querier == party.me:
                    self.asking[item.queried] = self._ask_for_tokens(
                        item.queried, item.queries, plan.between_parameters, name
                    )
                done(2 + number)

    def counts(self) -> None:
        """Answer v = 1 and v = bad; take the WOE tables that follow."""
        tables = self.steps.run(steps.COUNTS, WoeTables, self._counts)
        self.woe = [tables.woe[at].astype(np.int64) for at in self.slices]
        self.kept = tables.kept.astype(bool)

    def _counts(self) -> WoeTables:
        party = self.party
        with party.at("counts", 3) as done:
            most = party.manifest.limits.customers_max * len(self.banks)
            self._reveal(What.BIN_COUNTS, 2 * self.columns, max(most.bit_length(), 1))
            self._answer("counts", self.owners, 2)
            done(2)
            tables = self._hear("counts", WoeTables)
            if len(tables.woe) != self.columns or len(tables.kept) != len(self.definitions):
                raise ProtocolError("WOE tables of another layout")
            self._learn(What.WOE_TABLES, self.columns, WOE_BITS)
        return tables

    def curvature(self) -> None:
        """Answer residuals, weights and their products; help to find how features go together."""
        self.steps.run(steps.CURVATURE, steps.Answered, self._curvature)

    def _curvature(self) -> steps.Answered:
        party, plan = self.party, self.plan
        with party.at("curvature", 3) as done:
            queries = 2 + plan.bank_fields
            self._reveal_sums(queries * self.columns)
            self._answer("curvature", self.owners, queries)
            done(1)
            if plan.has_pairs(party.me):
                self._pairs()
            elif len(self.definitions) > 1:
                self._correlations()
            done(2)
            for item in plan.between:
                if item.queried == party.me:
                    self._answer_between(item.querier, item.queries)
                elif item.querier == party.me:
                    self._ask_between(item.queried)
        return steps.Answered(False)

    def openings_of_scores(self) -> None:
        """Seal the rounded score of every direction that the bank chooses."""
        for number in range(self.parameters.openings):

            def answer(number: int = number) -> steps.Answered:
                return self._opening(number)

            held = self.steps.run(steps.opening_name(number), steps.Answered, answer)
            self.openings += held.sealed

    def _opening(self, number: int) -> steps.Answered:
        party, parameters = self.party, self.parameters
        with party.at("openings", parameters.openings) as done:
            done(number)
            if number > 0:
                self._reveal_sums(self.columns)
                self._answer("openings", self.owners, 1)
            direction = self._hear("openings", Direction)
            if len(direction.coefficients) != len(self.definitions):
                raise ProtocolError("a direction of other features than this party has")
            count = len(self.definitions) + 1
            self._learn(What.DIRECTIONS, count, DIRECTION_BITS)
            if direction.is_open:
                self._seal_score(number, direction)
            return steps.Answered(direction.is_open)

    def _seal_score(self, number: int, direction: Direction) -> None:
        party, parameters = self.party, self.parameters
        of_these = digest(
            labels.DIRECTION_DIGEST,
            direction.coefficients.tobytes(),
            direction.shift.tobytes(),
            *(woe.tobytes() for woe in self.woe),
        )
        self.ever.require("scores", of_these, parameters.openings)
        score = np.zeros(self.data.rows, np.int64)
        for j, c in enumerate(direction.coefficients.astype(np.int64)):
            score += (c * self.woe[j])[self.bins[j]]
        # Without job and attempt: the same score is rounded the same way for ever.
        always = Randomness(party.rounding or party.lasting.master, b"", 0)
        rounded = sealed.round_scores(
            score / direction.scale,
            float(parameters.resolution),
            self.data.codes,
            of_these,
            always.key(labels.ROUNDING_SECRET),
        )
        most = score_steps(parameters)
        values = sealed.ValueRange(-most, most)
        self._seal("openings", number, values, rounded, What.SCORE_OPENING)

    def points(self) -> NDArray[np.int64]:
        """Take its part of the scorecard; seal every row's points if an evaluation is approved."""
        return self.steps.run(steps.POINTS, PointsTables, self._points).points.astype(np.int64)

    def _points(self) -> PointsTables:
        party, parameters = self.party, self.parameters
        with party.at("points", 2) as done:
            tables = self._hear("points", PointsTables)
            if len(tables.points) != self.columns:
                raise ProtocolError("points of another layout")
            self._learn(What.POINTS_TABLES, self.columns, POINTS_BITS)
            points = tables.points.astype(np.int64)
            done(1)
            if parameters.evaluation:
                self.ever.require("points", digest(labels.MODEL_DIGEST, points.tobytes()), 1)
                total = np.zeros(self.data.rows, np.int64)
                for j, at in enumerate(self.slices):
                    total += points[at][self.bins[j]]
                most = points_limit(parameters)
                values = sealed.ValueRange(-most, most)
                self._seal("points", 0, values, total, What.EVALUATION_OPENING)
        return tables

    def finish(self, part: DepartmentPart) -> None:
        """Both ends hold the same part of the model."""
        with self.party.at("finish"):
            self._tell("finish", Finished(part.digest()))
            for bank in self.banks:
                if self._channel(bank).receive("finish", Finished).digest != part.digest():
                    raise ProtocolError(f"{bank} holds another part of the model")

    # pieces

    def _matrix(
        self,
        layout: Layout,
        parameters: Parameters,
        name: str,
        *,
        bins: NDArray[np.uint8] | None = None,
        integers: NDArray[np.int32] | None = None,
        querier: str = "",
    ) -> linear_query.Department:
        if bins is None:
            bins = np.empty((0, layout.rows), np.uint8)
        seed = self.agreement.joint_seed
        return vertical.owner_of(
            self.party, layout, bins, parameters, seed, name, querier=querier, integers=integers
        )

    def _grant(self, owner: linear_query.Department, peer: str, queries: int) -> None:
        made = vertical.grant_tokens(self.party, owner, queries, querier=peer)
        self.commitments.append(made)

    def _ask_for_tokens(
        self, peer: str, queries: int, parameters: Parameters, name: str
    ) -> linear_query.Bank:
        seed = self.agreement.joint_seed
        querier = vertical.querier_of(self.party, self.data.rows, parameters, seed, name)
        layouts = {peer: Layout(self.data.rows, self.shapes[peer].bins)}
        vertical.fetch_tokens(self.party, querier, layouts, queries)
        return querier

    def _answer(
        self, stage: str, owners: Mapping[str, linear_query.Department], count: int
    ) -> None:
        """The next queries: of one bank as they are, of several in shares of one statistic."""
        self._learn(What.QUERIES, count, 0)
        for _ in range(count):
            for bank, owner in owners.items():
                query = self._channel(bank).receive(stage, Query)
                is_shared = len(self.banks) > 1
                answer = (
                    owner.answer_shared(query, self.banks) if is_shared else owner.answer(query)
                )
                self._channel(bank).send(stage, answer)
            self.tokens += 1

    def _reveal_sums(self, count: int) -> None:
        self._reveal(What.QUERY_SUMS, count, self.plan.bins.t_bits)

    def _seal(
        self,
        stage: str,
        number: int,
        values: sealed.ValueRange,
        column: NDArray[np.int64],
        what: What,
    ) -> None:
        party = self.party
        customers, parties = party.manifest.limits.customers_max, len(self.others) + 1
        self._reveal(what, customers, sum_bits(parties, values.high))
        peers = {org: party.pair_seeds[org] for org in self.others}
        for bank, held in self.held.items():
            sealer = sealed.Department(party.me, held.keys, party.randomness, peers)
            step = sealed_step(self._as_of(bank), held.cover, stage, number, values)
            self._channel(bank).send(stage, sealer.seal(step, column))

    def _levels(self, feature: int, level: int) -> tuple[NDArray[np.int64], int]:
        """WOE steps as multiples of largest / level: numerators, and the common denominator."""
        woe = self.woe[feature]
        return woe * level, max(int(np.abs(woe).max(initial=0)), 1)

    def _rounded(self, feature: int, level: int, purpose: str) -> NDArray[np.int64]:
        """A feature in levels, every row rounded at random so that sums are right on average."""
        numerators, denominator = self._levels(feature, level)
        inputs = digest(self.woe[feature].tobytes(), self.bins[feature].tobytes())
        stream = self.party.lasting.stream(
            labels.QUANTISE, stage=purpose, column=feature, inputs=inputs
        )
        return quantise(numerators[self.bins[feature]], denominator, stream)

    def _pairs(self) -> None:
        """Products of its features, summed by the bank's weights: one query."""
        plan, features = self.plan.pairs, len(self.definitions)
        if plan is None:
            raise RuntimeError("no products are planned")
        levels = [self._rounded(j, plan.level, PAIRS).astype(np.int32) for j in range(features)]
        products = np.empty((features * (features - 1) // 2, self.data.rows), np.int32)
        for at, (a, b) in enumerate(combinations(range(features), 2)):
            np.multiply(levels[a], levels[b], out=products[at])
        layout = Layout(self.data.rows, (), (plan.level**2,) * len(products))
        owners = {
            bank: self._matrix(layout, plan.parameters, PAIRS, integers=products, querier=bank)
            for bank in self.banks
        }
        for bank, owner in owners.items():
            self._grant(owner, bank, 1)
        self._reveal_sums(len(products))
        self._answer("curvature", owners, 1)

    def _correlations(self) -> None:
        """Too many pairs for a query: how its features go together over its own records."""
        known = self._recorded()
        levels = [woe[bins[known]] for woe, bins in zip(self.woe, self.bins, strict=True)]
        woe = np.stack(levels).astype(np.float64)
        spread = woe.std(axis=1)
        centred = woe - woe.mean(axis=1, keepdims=True)
        matrix = centred @ centred.T / max(woe.shape[1], 1)
        matrix /= np.maximum(np.multiply.outer(spread, spread), 1e-9)
        upper = matrix[np.triu_indices(len(woe), 1)]
        values = np.clip(np.rint(100 * upper), -100, 100).astype(np.int8)
        self._reveal(What.POPULATION_COVARIANCE, len(values), 8)
        self._tell("curvature", Correlations(values))

    def _recorded(self) -> NDArray[np.bool_]:
        """Rows of which this department knows anything at all."""
        known = np.zeros(self.data.rows, bool)
        for column in self.data.columns:
            known |= ~is_missing(column)
        return known

    def _ask_between(self, peer: str) -> None:
        """Each kept feature in coarse levels over its records, and the records themselves."""
        party, querier = self.party, self.asking[peer]
        known = self._recorded()
        features, masked = len(self.definitions), []
        squares = np.zeros(features, np.int64)
        party.ledger.reveal(party.me, peer, What.QUERIES, features + 1, 0)
        for j in range(features + 1):
            if j == features:
                v = known.astype(np.int64)
            elif self.kept[j]:
                v = np.where(
                    known, self._rounded(j, BETWEEN_LEVEL, between_name(party.me, peer)), 0
                )
                numerators, denominator = self._levels(j, BETWEEN_LEVEL)
                exact = (numerators[self.bins[j][known]] / denominator) ** 2
                squares[j] = round(float(exact.sum()))
            else:
                v = np.zeros(self.data.rows, np.int64)
            party.channels[peer].send("curvature", querier.query(v))
            answer = party.channels[peer].receive("curvature", Answer)
            masked.append(querier.unmask(peer, answer))
        values = np.stack(masked)
        self._reveal(What.POPULATION_COVARIANCE, values.size + features, 53)
        self._tell("curvature", Between(values, squares))

    def _answer_between(self, peer: str, queries: int) -> None:
        """The asking department gets sums under a mask that only a bank can take away."""
        party = self.party
        party.ledger.reveal(peer, party.me, What.QUERIES, queries, 0)
        sums = queries * self.columns
        self._reveal(What.POPULATION_COVARIANCE, sums, 53)
        for _ in range(queries):
            query = party.channels[peer].receive("curvature", Query)
            answer, mask = self.towards[peer].answer_masked(query)
            self._tell("curvature", mask)
            party.channels[peer].send("curvature", answer)
            self.tokens += 1


def is_missing(column: Column) -> NDArray[np.bool_]:
    """Which rows of a column are missing."""
    if isinstance(column, NumberColumn):
        return np.isnan(column.values)
    if isinstance(column, CategoryColumn):
        return column.codes < 0
    raise TypeError(type(column).__name__)
