"""The bank's side of a scorecard (PROTOCOLS.md section 7): it asks, fits and keeps the model.

    agreement   commitments of all parties, joint seed
    row keys    for the bank's customers, if single scores are to be opened
    binning     the departments' pre-bins
    tokens      all queries' tokens, before any label is touched
    counts      v = 1, v = bad over the training customers; groups, WOE
    curvature   v = residuals, weights, own columns times weights; how features go together
    openings    a direction, one rounded score a customer, an exact fit, the next residuals
    points      the scorecard; one score in points a customer, if an evaluation is approved

An attempt goes on from the last step that all parties finished in an earlier one (`steps.py`);
tokens are fetched for what is left.

Every opened sum is checked against the counts (CRYPTO_REVIEW.md F7, R5): without it a department
reads one customer's label a query from what the bank does next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from federation.errors import UsageError
from federation.ledger import What
from federation.tables import BankData, Column
from federation.tasks import pooled, row_keys, vertical
from federation.tasks import scorecard_steps as steps
from federation.tasks.agreement import Customers, agree
from federation.tasks.binning import WOE_BITS, WOE_STEP, FeatureBins, group, offsets, pre_bin
from federation.tasks.fit import JointFit, Opened, RemoteFeature
from federation.tasks.messages import (
    Between,
    Correlations,
    Definitions,
    Direction,
    Finished,
    PointsTables,
    WoeTables,
)
from federation.tasks.model import (
    Draft,
    Opening,
    ScorecardModel,
    ScorecardResult,
    build,
    draft,
    part_digest,
)
from federation.tasks.party import Party
from federation.tasks.plan import (
    DIRECTION_BITS,
    POINTS_BITS,
    plan_of,
    points_limit,
    score_steps,
    sum_bits,
)
from federation.tasks.scorecard_department import BINS, PAIRS, sealed_step
from federation.tasks.secure_sum import WIDE, pool_of
from federation.tasks.steps import Steps
from protocols import labels, linear_query, sealed
from protocols.errors import ProtocolError
from protocols.linear_query import (
    Answer,
    ForwardMask,
    Layout,
    Parameters,
    decode,
)
from protocols.openings import check_counts, check_opening
from protocols.ring import Q
from protocols.row_keys import ROW_KEY_BYTES
from protocols.streams import Stream, digest

Integers = NDArray[np.int64]

# Log loss that an opening must be worth; a coefficient without any effect gains a half.
MIN_GAIN = 0.1
DIRECTION_SPREAD = 2.0  # logits: four standard deviations reach the default range


@dataclass(frozen=True, slots=True)
class _Remote:
    """What the bank knows of a department."""

    definitions: tuple[FeatureBins, ...]
    layout: Layout
    slices: tuple[slice, ...] = field(repr=False)
    columns: slice  # among those of all departments


def run_bank(party: Party, data: BankData) -> ScorecardResult:
    """Train a scorecard as the bank; raises UsageError if the customers cannot carry one."""
    return _Bank(party, data).run()


class _Bank:
    def __init__(self, party: Party, data: BankData) -> None:
        self.others = party.other_banks()
        if self.others:
            party = party.seen_from(party.me)
        self.pool, manifest = pool_of(party), party.manifest
        self.party, self.data, self.plan = party, data, plan_of(manifest)
        self.parameters, self.departments = manifest.scorecard, manifest.departments
        vertical.require_usable(party, data)
        if not self.others:
            vertical.require_both_classes(party, data.customers, int(data.labels.sum()))
        self.test = vertical.hold_out(party, data, float(self.parameters.hold_out))
        self.train = np.flatnonzero(~self.test)
        self.rows = data.positions[self.train]  # of the cover
        self.bads = data.labels[self.train].astype(np.int64)
        if not self.others:
            vertical.require_both_classes(party, len(self.train), int(self.bads.sum()))
        self.everybody = np.array([len(self.train), int(self.bads.sum())])
        self.notes: list[str] = []
        self.tokens = 0

    def run(self) -> ScorecardResult:
        party = self.party
        pieces = vertical.bank_pieces(self.data, self.test)
        customers = Customers(self.data.cover_rows, self.data.positions)
        peers = [*self.departments, *self.others]
        self.agreement = agree(party, peers, pieces, customers)
        self.steps = Steps(party, steps.schedule(self.plan), digest(*pieces))
        self.steps.agree(peers)
        self.row_keys()
        self.binning()
        self.prepare()
        self.counts()
        fit = self.curvature()
        history = self.openings(fit)
        model, alone = self.build(fit)
        scores = self.points(model)
        self.finish(model)
        return ScorecardResult(
            model=model,
            scores=scores,
            labels=self.data.labels,
            test=self.test,
            alone=alone,
            alone_scores=alone.score(self._own_columns(), self.data.customers),
            openings=tuple(history),
            notes=tuple(self.notes),
            tokens=self.tokens,
            commitments=self.agreement.commitments,
            seconds=dict(party.seconds),
            sent_bytes=party.traffic("sent_bytes"),
            received_bytes=party.traffic("received_bytes"),
            disclosures=party.ledger.entries(),
        )

    # stages

    def row_keys(self) -> None:
        """Agree on the rows; fetch row keys if anything is to be opened for single customers."""

        def ask() -> steps.CustomerKeys:
            opens = self.parameters.openings > 0 or self.parameters.evaluation
            cover, keys = row_keys.ask(self.party, self.data, is_opening=opens)
            none = np.empty((0, 0, ROW_KEY_BYTES), np.uint8)
            return steps.CustomerKeys(cover, np.stack([*keys.values()]) if keys else none)

        held = self.steps.run(steps.ROW_KEYS, steps.CustomerKeys, ask)
        self.cover, self.keys = held.cover, dict(zip(self.departments, held.keys, strict=False))

    def binning(self) -> None:
        """Make pre-bins of the bank's own columns; receive the departments'."""
        party, parameters = self.party, self.parameters
        with party.at("binning", 2) as done:
            self.own_definitions = self._own_definitions()
            self.own_bins = [
                made.assign(column)
                for made, column in zip(self.own_definitions, self.data.columns, strict=True)
            ]
            done(1)

            def receive() -> steps.AllDefinitions:
                made = (
                    vertical.receive_bins(party, org, parameters.max_bins)
                    for org in self.departments
                )
                return steps.AllDefinitions(tuple(Definitions(item) for item in made))

            held = self.steps.run(steps.BINNING, steps.AllDefinitions, receive)
        self.remote: dict[str, _Remote] = {}
        start = 0
        for org, item in zip(self.departments, held.departments, strict=True):
            layout = Layout(self.data.cover_rows, tuple(made.bins for made in item.features))
            slices = tuple(slice(int(a), int(b)) for a, b in pairwise(offsets(item.features)))
            stop = start + layout.columns
            self.remote[org] = _Remote(item.features, layout, slices, slice(start, stop))
            start = stop

    def _own_definitions(self) -> list[FeatureBins]:
        columns, of = self.data.columns, self.parameters
        if not self.others:
            return [pre_bin(column, of.max_bins, of.min_cohort) for column in columns]
        most = self.party.manifest.limits.customers_max
        self.everybody = self.pool.integers("customers", self.everybody, most)
        vertical.require_both_classes(self.party, *map(int, self.everybody))
        return [*pooled.shared_bins(self.pool, columns, of.max_bins, of.min_cohort, most)]

    def prepare(self) -> None:
        """Tokens for all that is left, when every department has committed to its bins."""
        party, plan = self.party, self.plan
        queries = sum(
            steps.queries(plan, name)
            for name in steps.schedule(plan)
            if not self.steps.is_held(name)
        )
        if not queries:
            return
        with party.at("tokens", 1):
            self.querier = self._matrix(plan.bins, BINS)
            layouts = {org: item.layout for org, item in self.remote.items()}
            vertical.fetch_tokens(party, self.querier, layouts, queries)

    def counts(self) -> None:
        """Customers and bads of every pre-bin; groups, WOE and which features take part."""
        party = self.party
        self.customers: Mapping[str, Integers] = {}

        def ask() -> steps.Sums:
            with party.at("counts", 2) as done:
                most = party.manifest.limits.customers_max * len(self.pool.members)
                bits = max(most.bit_length(), 1)
                for org, item in self.remote.items():
                    count = 2 * item.layout.columns
                    party.ledger.reveal(org, party.me, What.BIN_COUNTS, count, bits)
                ones = np.ones(len(self.train), np.int64)
                (customers,) = self._ask("counts", [ones], [(0, 1)])
                for org, item in self.remote.items():
                    check_counts(item.layout, customers[org], int(self.everybody[0]))
                self.customers = customers
                (bads,) = self._ask("counts", [self.bads], [(0, 1)])
                done(1)
                self._draft_all(customers, bads)
                for org in self.departments:
                    made = [one for one in self.drafts if one.owner == org]
                    woe = np.concatenate([one.groups.woe_of_bins() for one in made])
                    kept = np.array([one.is_kept for one in made], np.uint8)
                    party.ledger.reveal(party.me, org, What.WOE_TABLES, len(woe), WOE_BITS)
                    party.channels[org].send("counts", WoeTables(woe.astype(np.int8), kept))
                return self._joined([customers, bads])

        self.customers, bads = self._split(self.steps.run(steps.COUNTS, steps.Sums, ask))
        self._draft_all(self.customers, bads)
        if not any(one.is_kept for one in self.drafts):
            raise UsageError("no feature of any party tells good customers from bad ones")
        for one in self.drafts:
            if one.note:
                self.notes.append(f"{one.owner}/{one.definition.name}: left out, {one.note}")

    def _draft_all(self, customers: Mapping[str, Integers], bads: Mapping[str, Integers]) -> None:
        """Groups and WOE of every feature, the bank's own first."""
        min_iv = float(self.parameters.min_iv)
        self.drafts: list[Draft] = []
        own = self._own_counts()
        for definition, (n, b) in zip(self.own_definitions, own, strict=True):
            self.drafts.append(self._draft(self.party.me, definition, n, b, min_iv))
        for org, item in self.remote.items():
            self.drafts += [
                self._draft(org, definition, customers[org][at], bads[org][at], min_iv)
                for definition, at in zip(item.definitions, item.slices, strict=True)
            ]

    def _own_counts(self) -> list[tuple[Integers, Integers]]:
        """Customers and bads of every own pre-bin, over all banks."""
        found = []
        for definition, bins in zip(self.own_definitions, self.own_bins, strict=True):
            mine = bins[self.train]
            n = np.bincount(mine, minlength=definition.bins)
            b = np.bincount(mine, weights=self.bads, minlength=definition.bins)
            found.append(np.stack([n, b.astype(np.int64)]).astype(np.int64))
        if self.others and found:
            most = self.party.manifest.limits.customers_max
            whole = self.pool.integers("own counts", np.concatenate(found, axis=1), most)
            ends = np.cumsum([one.shape[1] for one in found])[:-1]
            found = np.split(whole, ends, axis=1)
        return [(one[0], one[1]) for one in found]

    def curvature(self) -> JointFit:
        """The bank's own fit, then everything that a first step for all coefficients needs."""
        party, plan = self.party, self.plan
        own = [
            (one, bins)
            for one, bins in zip(self.drafts, self.own_bins, strict=False)
            if one.is_kept
        ]
        woe = [one.groups.woe_of_bins()[bins[self.train]] for one, bins in own]
        columns = np.array(woe, np.int64).reshape(len(own), len(self.train)).T
        self.kept = [one for one in self.drafts if one.is_kept and one.owner != party.me]
        features = [
            RemoteFeature(
                one.owner,
                one.definition.name,
                self._slice(one),
                one.groups.woe_of_bins(),
            )
            for one in self.kept
        ]
        fit = JointFit(
            columns,
            self.bads == 0,
            features,
            float(self.parameters.penalty),
            float(self.parameters.resolution),
            self.pool,
            self._largest([one for one, _ in own]),
        )
        held = self.steps.run(steps.CURVATURE, steps.Curvature, lambda: self._curvature(fit))
        opened = self._split(held.opened)
        self.first_residuals = opened[0]
        fit.set_curvature(
            opened[1],
            opened[2 : 2 + columns.shape[1]],
            plan.bins.vmax,
            self.customers,
            _by_pair(held.within, held.within_values),
            _by_pair(held.population, held.population_values),
        )
        return fit

    def _largest(self, own: Sequence[Draft]) -> list[int]:
        """Of each own column, where all banks need the same scale."""
        if not self.others:
            return []
        return [max(int(np.abs(one.groups.woe_of_bins()).max(initial=0)), 1) for one in own]

    def _curvature(self, fit: JointFit) -> steps.Curvature:
        party, plan = self.party, self.plan
        with party.at("curvature", 4) as done:
            vmax, zero = plan.bins.vmax, np.zeros(len(self.train), np.int64)
            residuals = fit.residuals(vmax, self._stream("residuals", 0))
            vectors = [residuals, fit.weights(vmax, self._stream("weights", 0))]
            bounds = [(-vmax, vmax), (0, vmax)]
            for c in range(plan.bank_fields):
                used = c < fit.own.shape[1]
                stream = self._stream("columns", c)
                vectors.append(fit.weighted_column(c, vmax, stream) if used else zero)
                bounds.append((-vmax, vmax))
            done(1)
            for org, item in self.remote.items():
                self._reveal_sums(org, len(vectors) * item.layout.columns)
            opened = self._ask("curvature", vectors, bounds)
            done(2)
            within = self._pairs(fit)
            population = self._correlations()
            done(3)
            population |= self._between()
            return steps.Curvature(self._joined(opened), *_pairs_of(within), *_pairs_of(population))

    def openings(self, fit: JointFit) -> list[Opening]:
        """Openings until one gains nothing any more; asking goes on to the end of the schedule."""
        plan, going = self.plan, bool(self.kept)
        history: list[Opening] = []
        if not plan.openings and going:
            fit.take(fit.newton(fit.gradient(self.first_residuals, plan.bins.vmax)))
            if fit.information < 20 * len(self.kept):
                self.notes.append(
                    "few bad customers for so many features: without an opened score the fit "
                    "cannot be sure of its step; approving one opening would help"
                )
        for number in range(plan.openings):

            def ask(number: int = number, going: bool = going) -> steps.OneOpening:
                return self._opening(fit, number, going)

            held = self.steps.run(steps.opening_name(number), steps.OneOpening, ask)
            going = held.is_open
            if going:
                steps_ = held.values[self.train].astype(np.int64)
                gain = fit.refit(Opened(held.coefficients, held.shift, steps_))
                history.append(Opening(gain, held.invalid))
                going = gain >= MIN_GAIN
        return history

    def _opening(self, fit: JointFit, number: int, going: bool) -> steps.OneOpening:
        """Residuals, the direction that follows, and each customer's score along it."""
        party, vmax = self.party, self.plan.bins.vmax
        with party.at("openings", self.plan.openings) as done:
            done(number)
            residuals = self.first_residuals
            if number > 0:
                stream = self._stream("residuals", number)
                v = fit.residuals(vmax, stream) if going else np.zeros_like(self.bads)
                for org, item in self.remote.items():
                    self._reveal_sums(org, item.layout.columns)
                (residuals,) = self._ask("openings", [v], [(-vmax, vmax)])
            coefficients, shift = np.zeros(len(self.kept), np.int64), 0
            if going:
                gradient = fit.gradient(residuals, vmax)
                step = fit.newton(gradient)
                coefficients, shift = fit.direction(step, DIRECTION_SPREAD)
                going = bool(coefficients.any()) and fit.promise(gradient, step) >= MIN_GAIN / 2
            for org in self.departments:
                sent = np.zeros(len(self.remote[org].definitions), np.int8)
                for i in self._places(org):
                    sent[self._number(self.kept[i])] = coefficients[i] * going
                count = len(sent) + 1
                party.ledger.reveal(party.me, org, What.DIRECTIONS, count, DIRECTION_BITS)
                message = Direction(
                    np.array([going], np.uint8), sent, np.array([shift * going], np.int8)
                )
                party.channels[org].send("openings", message)
            if not going:
                return steps.OneOpening(False, coefficients, shift, np.empty(0, np.int32), 0)
            most = score_steps(self.parameters)
            values = sealed.ValueRange(-most, most)
            opened = self._open("openings", number, values, What.SCORE_OPENING)
            invalid = int((~opened.valid).sum())
            return steps.OneOpening(True, coefficients, shift, opened.values, invalid)

    def build(self, fit: JointFit) -> tuple[ScorecardModel, ScorecardModel]:
        """The joint scorecard, and that of the bank's own features."""
        now, parameters = fit.now, self.parameters
        coefficients = [*now.own.tolist(), *now.remote.tolist()]
        model = build(self.drafts, now.intercept, coefficients, parameters)
        mine = [one for one in self.drafts if one.owner == self.party.me]
        own = fit.alone_here()
        alone = build(mine, own.intercept, own.coefficients.tolist(), parameters)
        for feature in model.features:
            if feature.coefficient < 0:
                self.notes.append(
                    f"{feature.owner}/{feature.name}: counts against its own weight of evidence, "
                    f"because others say the same more strongly"
                )
        return model, alone

    def points(self, model: ScorecardModel) -> Integers | None:
        """Send each department its part; open every customer's total if that is approved."""

        def ask() -> steps.Evaluation:
            return self._evaluate(model)

        held = self.steps.run(steps.POINTS, steps.Evaluation, ask)
        if not self.parameters.evaluation:
            return None
        own = np.full(self.data.customers, model.base_points, np.int64)
        columns = self._own_columns()
        for feature in model.of(self.party.me):
            own += feature.points_of(columns[self.party.me, feature.name])
        return own + held.values

    def _evaluate(self, model: ScorecardModel) -> steps.Evaluation:
        party, parameters = self.party, self.parameters
        with party.at("points", 2) as done:
            for org in self.departments:
                points = np.concatenate([one.points_of_bins() for one in model.of(org)])
                party.ledger.reveal(party.me, org, What.POINTS_TABLES, len(points), POINTS_BITS)
                party.channels[org].send("points", PointsTables(points.astype(np.int32)))
            done(1)
            if not parameters.evaluation:
                return steps.Evaluation(np.empty(0, np.int32))
            most = points_limit(parameters)
            values = sealed.ValueRange(-most, most)
            return steps.Evaluation(self._open("points", 0, values, What.EVALUATION_OPENING).values)

    def finish(self, model: ScorecardModel) -> None:
        """Both ends of every channel hold the same part of the model."""
        with self.party.at("finish"):
            for org in self.departments:
                parts = (
                    part_digest(org, one.definition, one.points_of_bins()) for one in model.of(org)
                )
                mine = Finished(digest(labels.MODEL_DIGEST, *parts))
                self.party.channels[org].send("finish", mine)
                if self.party.channels[org].receive("finish", Finished) != mine:
                    raise ProtocolError(f"{org} holds another part of the model")

    # what is asked

    def _ask(
        self, stage: str, vectors: Sequence[Integers], bounds: Sequence[tuple[int, int]]
    ) -> list[dict[str, Integers]]:
        """Open the sums of each v over the training customers, by department, checked.

        The next v is on its way while the answers to the last are opened.
        """
        party = self.party
        rows: list[Integers] = []
        for org in self.departments:
            party.ledger.reveal(party.me, org, What.QUERIES, len(vectors), 0)
        for number in range(len(vectors) + 1):
            if number < len(vectors):
                query = self.querier.query(self._spread(vectors[number]))
                for org in self.departments:
                    party.channels[org].send(stage, query)
                self.tokens += 1
            if number > 0:
                rows.append(self._receive(stage, self.querier, self.departments))
                if not self.others:
                    self._check_all(rows[-1], int(vectors[number - 1].sum()), bounds[number - 1])
        if not self.others:
            return self._split(steps.Sums(np.stack(rows)))
        opened = self._together(stage, self.plan.bins, np.stack(rows))
        sums = np.array([int(v.sum()) for v in vectors])
        totals = self.pool.integers(f"{stage} totals", sums, WIDE)
        for row, total, limits in zip(opened, totals, bounds, strict=True):
            self._check_all(row, int(total), limits)
        return self._split(steps.Sums(opened))

    def _receive(
        self, stage: str, querier: linear_query.Bank, departments: Sequence[str]
    ) -> Integers:
        """The next answer of each department: opened, or with several banks this one's share."""
        take = querier.unmask if self.others else querier.open
        channels = self.party.channels
        answers = ((org, channels[org].receive(stage, Answer)) for org in departments)
        return np.concatenate([take(org, answer) for org, answer in answers])

    def _together(self, stage: str, parameters: Parameters, shares: Integers) -> Integers:
        """One bank's shares are uniform; only those of all banks together mean anything."""
        if not self.others:
            return shares
        return decode(parameters, self.pool.residues(f"{stage} answers", shares, Q))

    def _check_all(self, row: Integers, total: int, limits: tuple[int, int]) -> None:
        for org, item in self.remote.items():
            self._check(org, item.layout, row[item.columns], total, *limits)

    def _check(
        self, org: str, layout: Layout, opened: Integers, total: int, low: int, high: int
    ) -> None:
        counts, rows = self.customers.get(org), int(self.everybody[0])
        try:
            check_opening(
                layout, opened, total=total, customers=rows, low=low, high=high, counts=counts
            )
        except ProtocolError as error:
            raise ProtocolError(f"{org}: {error}") from error

    def _spread(self, v: Integers) -> Integers:
        whole = np.zeros(self.data.cover_rows, np.int64)
        whole[self.rows] = v
        return whole

    def _pairs(self, fit: JointFit) -> dict[tuple[int, int], float]:
        """Sums of p (1 - p) x_j x_l over pairs of features of one department."""
        party, plan = self.party, self.plan.pairs
        if plan is None:
            return {}
        counts = {org: len(self.remote[org].definitions) for org in plan.departments}
        layouts = {
            org: Layout(self.data.cover_rows, (), (plan.level**2,) * (n * (n - 1) // 2))
            for org, n in counts.items()
        }
        querier = self._matrix(plan.parameters, PAIRS)
        vertical.fetch_tokens(party, querier, layouts, 1)
        vmax = plan.parameters.vmax
        v = fit.weights(vmax, self._stream("weights", 1))
        query = querier.query(self._spread(v))
        for org in layouts:
            party.channels[org].send("curvature", query)
            party.ledger.reveal(party.me, org, What.QUERIES, 1, 0)
        self.tokens += 1
        found: dict[tuple[int, int], float] = {}
        shares = self._receive("curvature", querier, [*layouts])
        whole = self._together("pairs", plan.parameters, shares)
        (total,) = self.pool.integers("pairs totals", np.array([int(v.sum())]), WIDE)
        ends = np.cumsum([layout.columns for layout in layouts.values()])[:-1]
        for (org, layout), opened in zip(layouts.items(), np.split(whole, ends), strict=True):
            self._reveal_sums(org, layout.columns)
            rows = int(self.everybody[0])
            check_opening(layout, opened, total=int(total), customers=rows, low=0, high=vmax)
            for pair, a, b in self._kept_pairs(org):
                largest = [
                    max(int(np.abs(self.kept[i].groups.woe_of_bins()).max()), 1) for i in (a, b)
                ]
                scale = (WOE_STEP / plan.level) ** 2 * largest[0] * largest[1] / (4 * vmax)
                found[a, b] = float(opened[pair]) * scale
        return found

    def _correlations(self) -> dict[tuple[int, int], float]:
        """Of departments with too many pairs for a query: over their own records."""
        found: dict[tuple[int, int], float] = {}
        for org in self.departments:
            features = len(self.remote[org].definitions)
            if self.plan.has_pairs(org) or features < 2:
                continue
            values = self.party.channels[org].receive("curvature", Correlations).hundredths
            if len(values) != features * (features - 1) // 2:
                raise ProtocolError(f"{org} sent correlations of other features")
            self.party.ledger.reveal(org, self.party.me, What.POPULATION_COVARIANCE, len(values), 8)
            for pair, a, b in self._kept_pairs(org):
                found[a, b] = float(values[pair]) / 100
        return found

    def _between(self) -> dict[tuple[int, int], float]:
        """Correlations over the cover between features of different departments."""
        party, parameters = self.party, self.plan.between_parameters
        found: dict[tuple[int, int], float] = {}
        for item in self.plan.between:
            if parameters is None:
                raise RuntimeError("a plan with departments to ask and no parameters for it")
            theirs = self.remote[item.queried]
            masks = [
                party.channels[item.queried].receive("curvature", ForwardMask)
                for _ in range(item.queries)
            ]
            said = party.channels[item.querier].receive("curvature", Between)
            features = len(self.remote[item.querier].definitions)
            shape = (item.queries, theirs.layout.columns)
            if said.masked.shape != shape or said.squares.shape != (features,):
                raise ProtocolError(f"{item.querier} forwarded sums of another shape")
            size = int(np.prod(shape))
            party.ledger.reveal(
                item.querier, party.me, What.POPULATION_COVARIANCE, size + features, 53
            )
            party.ledger.reveal(item.queried, party.me, What.POPULATION_COVARIANCE, size, 53)
            sums = np.stack(
                [
                    decode(parameters, (row - mask.values(theirs.layout.columns)) % Q)
                    for row, mask in zip(said.masked % Q, masks, strict=True)
                ]
            )
            found |= self._correlate(item.querier, item.queried, sums, said.squares)
        return found

    def _correlate(
        self, querier: str, queried: str, sums: Integers, squares: Integers
    ) -> dict[tuple[int, int], float]:
        """Correlations from sums of the querier's levels over the queried one's bins.

        Only rows that both know count: what hardly anybody of the cover has would otherwise make
        all features of one department look alike.
        """
        found: dict[tuple[int, int], float] = {}
        rows = sums[-1].astype(np.float64)  # that the querier knows, in each bin
        for i in self._places(querier):
            j = self._number(self.kept[i])
            x = sums[j].astype(np.float64)
            for other in self._places(queried):
                one = self.kept[other]
                at = np.arange(self._slice(one).start, self._slice(one).stop)
                everybody = max(float(rows[at].sum()), 1.0)
                spread = float(squares[j]) / everybody - (float(x[at].sum()) / everybody) ** 2
                level = one.groups.woe_of_bins().astype(np.float64)
                if one.definition.is_missing_apart:
                    keep = np.arange(len(at)) != one.definition.missing
                    at, level = at[keep], level[keep]
                count = max(float(rows[at].sum()), 1.0)
                mean_x, mean_y = float(x[at].sum()) / count, float(rows[at] @ level) / count
                both = float(x[at] @ level) / count - mean_x * mean_y
                flat = float(rows[at] @ level**2) / count - mean_y**2
                if spread > 0 and flat > 0:
                    found[i, other] = max(-1.0, min(1.0, both / math.sqrt(spread * flat)))
        return found

    # pieces

    def _draft(
        self, owner: str, definition: FeatureBins, n: Integers, b: Integers, min_iv: float
    ) -> Draft:
        parameters = self.parameters
        groups = group(
            definition,
            n,
            b,
            min_cohort=parameters.min_cohort,
            monotone=definition.name in parameters.monotone,
        )
        return draft(owner, definition, groups, min_iv)

    def _number(self, one: Draft) -> int:
        """Which of its department's features it is."""
        return [d.name for d in self.remote[one.owner].definitions].index(one.definition.name)

    def _slice(self, one: Draft) -> slice:
        """Where a department's feature stands among the columns of its matrix."""
        return self.remote[one.owner].slices[self._number(one)]

    def _kept_pairs(self, org: str) -> list[tuple[int, int, int]]:
        """Of a department: which pair of all its features, and the two places among the kept."""
        places = {self._number(self.kept[i]): i for i in self._places(org)}
        every = combinations(range(len(self.remote[org].definitions)), 2)
        return [
            (number, places[a], places[b])
            for number, (a, b) in enumerate(every)
            if a in places and b in places
        ]

    def _places(self, org: str) -> list[int]:
        """Which of the kept remote features are a department's."""
        return [i for i, one in enumerate(self.kept) if one.owner == org]

    def _own_columns(self) -> dict[tuple[str, str], Column]:
        return {(self.party.me, column.name): column for column in self.data.columns}

    def _stream(self, purpose: str, number: int) -> Stream:
        # Of the job, not of the attempt: a step that is run again asks the same v, under a fresh
        # token. What it rounds follows from the data and from earlier openings.
        return self.party.lasting.stream(labels.QUANTISE, stage=purpose, step=number)

    def _matrix(self, parameters: Parameters, name: str) -> linear_query.Bank:
        seed = self.agreement.joint_seed
        return vertical.querier_of(self.party, self.data.cover_rows, parameters, seed, name)

    def _joined(self, opened: Sequence[Mapping[str, Integers]]) -> steps.Sums:
        rows = [np.concatenate([sums[org] for org in self.departments]) for sums in opened]
        return steps.Sums(np.stack(rows))

    def _split(self, sums: steps.Sums) -> list[dict[str, Integers]]:
        """By query, then department."""
        return [
            {org: row[item.columns] for org, item in self.remote.items()} for row in sums.values
        ]

    def _reveal_sums(self, org: str, count: int) -> None:
        bits = self.plan.bins.t_bits
        self.party.ledger.reveal(org, self.party.me, What.QUERY_SUMS, count, bits)

    def _open(
        self, stage: str, number: int, values: sealed.ValueRange, what: What
    ) -> sealed.OpenedSum:
        """The departments' sum for each customer."""
        party = self.party
        bits = sum_bits(len(self.departments), values.high)
        for org in self.departments:
            most = party.manifest.limits.customers_max
            party.ledger.reveal(org, party.me, what, most, bits)
        step = sealed_step(party, self.cover, stage, number, values)
        columns = [
            party.channels[org].receive(stage, sealed.SealedColumn) for org in self.departments
        ]
        return sealed.open_sum(step, columns, self.keys, self.data.positions)


def _pairs_of(found: Mapping[tuple[int, int], float]) -> tuple[Integers, NDArray[np.float64]]:
    places = np.array([*found], np.int64).reshape(len(found), 2)
    return places, np.array([*found.values()], np.float64)


def _by_pair(places: Integers, values: NDArray[np.float64]) -> dict[tuple[int, int], float]:
    return {(a, b): v for (a, b), v in zip(places.tolist(), values.tolist(), strict=True)}
