"""What a scorecard job will ask, computed from the manifest alone.

The proposer, the reviewers, the gates and both ends of every query call the same functions on the
same figures. So the number of queries is a fixed schedule: it depends on fields and parameters, not
on data, and what is not needed is asked with v = 0.

    bins      the bank on a department's one-hot bins: customers, bads, residuals, weights, each of
              the bank's fields times the weights, and residuals again between two openings
    pairs     the bank on products of a department's own features, one query
    between   one department on the bins of another: each of its features, and which rows it knows
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations

from federation.errors import UsageError
from federation.ledger import What
from federation.objects import (
    CoverKind,
    DeclaredDisclosure,
    JobManifest,
    QueryParameters,
    ScorecardParameters,
)
from federation.tasks import pooled, row_keys
from federation.tasks.binning import WOE_BITS
from federation.tasks.query_plan import finest, require_stated, stated
from protocols.errors import ParameterError
from protocols.linear_query import Layout, Parameters

VMAX = 511  # residuals and weights in 9 bits and a sign: no loss that a fit could notice
VMAX_PAIRS = (63, 31, 15)
PAIR_LEVELS = (3, 2, 1)  # products of features in 4 bits, 3, 1.5: it is a preconditioner
BETWEEN_LEVEL = 7  # WOE between departments in 4 bits
PAIR_ENTRIES_MAX = 50_000_000  # 4 bytes each, for the matrix of products
COUNT_QUERIES = 2  # customers, bads
DIRECTION_BITS = 8
POINTS_BITS = 16
CORRELATION_BITS = 8


@dataclass(frozen=True, slots=True)
class PairPlan:
    """Products of a department's own features, each in levels -level..level."""

    level: int
    parameters: Parameters
    departments: tuple[str, ...]  # the others have too many; there population correlations serve


@dataclass(frozen=True, slots=True)
class Between:
    """One department asks another, so that the bank learns how their features move together."""

    querier: str
    queried: str
    queries: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that follows from the manifest's figures."""

    bank_fields: int
    openings: int
    bins: Parameters
    between_parameters: Parameters | None
    between: tuple[Between, ...]
    pairs: PairPlan | None

    @property
    def residual_queries(self) -> int:
        """One before every opening; one also if there is none."""
        return max(self.openings, 1)

    @property
    def bin_queries(self) -> int:
        """The bank's on each department's bins."""
        return COUNT_QUERIES + self.residual_queries + 1 + self.bank_fields

    @property
    def tokens(self) -> int:
        """All queries of the bank that a department answers."""
        return self.bin_queries + 1

    def has_pairs(self, department: str) -> bool:
        """Whether the bank asks for the products of its features."""
        return self.pairs is not None and department in self.pairs.departments

    @property
    def tokens_between(self) -> int:
        """The most that one department asks another."""
        return max((item.queries for item in self.between), default=0)


def plan_for(
    *,
    rows: int,
    customers_max: int,
    bank_fields: int,
    department_fields: Mapping[str, int],
    parameters: ScorecardParameters,
    banks: int = 1,
) -> Plan:
    """The plan; customers_max: of one bank.

    Raises UsageError if no parameters of the query serve these figures safely.
    """
    between = tuple(
        Between(
            *_asks(a, b, department_fields), min(department_fields[a], department_fields[b]) + 1
        )
        for a, b in combinations(department_fields, 2)
    )
    openings = parameters.openings
    bank_queries = COUNT_QUERIES + max(openings, 1) + 1 + bank_fields
    asked = {
        name: bank_queries + sum(item.queries for item in between if item.queried == name)
        for name in department_fields
    }
    layouts = [
        Layout(rows, (parameters.max_bins + 1,) * fields) for fields in department_fields.values()
    ]
    # Every token ever used on a matrix counts for what its answers show, whoever asked.
    tokens = max(asked.values())
    try:
        bins = finest(layouts, customers_max * banks, (VMAX, 255, 127, 63), tokens, banks)
        across = finest(layouts, rows, (BETWEEN_LEVEL,), tokens) if between else None
    except ParameterError as error:
        todo = "ask for fewer fields or rows, or split the departments' fields over two jobs"
        raise UsageError(f"no safe parameters for these figures: {error}", todo=todo) from None
    pairs = _pairs(rows, customers_max * banks, department_fields, banks)
    return Plan(bank_fields, openings, bins, across, between, pairs)


def _asks(a: str, b: str, fields: Mapping[str, int]) -> tuple[str, str]:
    """(querier, queried): who has fewer fields asks."""
    return (a, b) if fields[a] <= fields[b] else (b, a)


def _pairs(rows: int, customers: int, fields: Mapping[str, int], banks: int) -> PairPlan | None:
    counts = {name: n * (n - 1) // 2 for name, n in fields.items()}
    names = tuple(x for x, n in counts.items() if n and n * rows <= PAIR_ENTRIES_MAX)
    for level in PAIR_LEVELS if names else ():
        layouts = [Layout(rows, (), (level * level,) * counts[name]) for name in names]
        try:
            return PairPlan(level, finest(layouts, customers, VMAX_PAIRS, 1, banks), names)
        except ParameterError:
            continue
    return None


def plan(
    *,
    rows: int,
    customers_max: int,
    bank_fields: int,
    department_fields: Mapping[str, int],
    parameters: ScorecardParameters,
    banks: int = 1,
) -> tuple[QueryParameters, int, int]:
    """For the manifest: query parameters, tokens a department, tokens between two departments."""
    made = plan_for(
        rows=rows,
        customers_max=customers_max,
        bank_fields=bank_fields,
        department_fields=department_fields,
        parameters=parameters,
        banks=banks,
    )
    return stated(made.bins), made.tokens, made.tokens_between


def plan_of(manifest: JobManifest) -> Plan:
    """The plan of a manifest; raises Refused if the manifest says something else."""
    row_keys.require_agreed(manifest)
    made = plan_for(
        rows=manifest.cover.rows,
        customers_max=manifest.limits.customers_max,
        bank_fields=len(manifest.party(manifest.bank).fields),
        department_fields={org: len(manifest.party(org).fields) for org in manifest.departments},
        parameters=manifest.scorecard,
        banks=len(manifest.banks),
    )
    pooled.require_agreed(manifest)
    require_stated(manifest, made.bins, made.tokens, made.tokens_between)
    return made


# --- what is disclosed ----------------------------------------------------------------------------


def points_limit(parameters: ScorecardParameters) -> int:
    """Bound of one department's part of a score, in points: `score_range` logits."""
    return math.ceil(Decimal(parameters.score_range) * parameters.pdo / Decimal(math.log(2)))


def score_steps(parameters: ScorecardParameters) -> int:
    """Bound of one department's opened training score, in steps of the resolution."""
    return int(Decimal(parameters.score_range) / Decimal(parameters.resolution))


def sum_bits(departments: int, limit: int) -> int:
    """Bits of a sum of that many values in -limit..limit."""
    return math.ceil(math.log2(2 * limit * departments + 1))


def declare(manifest: JobManifest) -> tuple[DeclaredDisclosure, ...]:
    """Everything that a job of this manifest can reveal, at most (PROTOCOLS.md section 5)."""
    lines = [line for bank in manifest.banks for line in _declare(manifest.seen_from(bank))]
    totals = totals_of(manifest) if len(manifest.banks) > 1 else 0
    known = {(line.source, line.to, line.what): line for line in lines}  # between departments: once
    return (*known.values(), *pooled.declare(manifest, totals))


STEPS_MAX = 40 * 13  # of Newton's method: iterations, each with up to twelve halvings


def totals_of(manifest: JobManifest) -> int:
    """Numbers that the sums over several banks open together, at most."""
    made, parameters = plan_of(manifest), manifest.scorecard
    fields = len(manifest.party(manifest.bank).fields)
    theirs = {org: len(manifest.party(org).fields) for org in manifest.departments}
    bins = parameters.max_bins + 1
    columns = sum(theirs.values()) * bins
    pairs = sum(n * (n - 1) // 2 for org, n in theirs.items() if made.has_pairs(org))
    size = 1 + fields + parameters.openings
    a_fit = 2 + STEPS_MAX + 40 * (size + size**2)
    fits = (1 + parameters.openings) * a_fit
    curvature = 2 * size**2 + (parameters.openings + 1) * size
    asked = made.bin_queries * (columns + 1) + pairs + 1
    return pooled.totals_of_bins(fields, bins) + 2 * fields * bins + 8 + asked + fits + curvature


def _declare(manifest: JobManifest) -> list[DeclaredDisclosure]:
    """What lies between one bank and the departments, and between departments."""
    made, parameters = plan_of(manifest), manifest.scorecard
    bank, departments = manifest.bank, manifest.departments
    customers = manifest.limits.customers_max
    count_bits = max((customers * len(manifest.banks)).bit_length(), 1)
    lines: list[DeclaredDisclosure] = []

    def add(source: str, to: str, what: What, count: int, bits: int, rowwise: bool = False) -> None:
        if count > 0:
            lines.append(
                DeclaredDisclosure(
                    source=source, to=to, what=what, count=count, bits=bits, per_enterprise=rowwise
                )
            )

    opened = parameters.openings > 0 or parameters.evaluation
    for org in departments:
        fields = len(manifest.party(org).fields)
        columns = fields * (parameters.max_bins + 1)
        # Under `customers` the cover says who they are; under the others it says nothing, but that
        # these rows were looked at.
        rowwise = manifest.cover.kind is not CoverKind.REGISTRY
        add(bank, org, What.COVER, manifest.cover.rows, int(rowwise), rowwise)
        if opened:
            add(bank, org, What.ROW_KEYS, manifest.limits.row_keys, 0)
        add(bank, org, What.QUERIES, made.tokens, 0)
        add(org, bank, What.BIN_DEFINITIONS, columns, 64)
        add(org, bank, What.BIN_COUNTS, COUNT_QUERIES * columns, count_bits)
        queries = made.bin_queries - COUNT_QUERIES
        pairs = fields * (fields - 1) // 2
        sums = queries * columns + (pairs if made.has_pairs(org) else 0)
        add(org, bank, What.QUERY_SUMS, sums, made.bins.t_bits)
        between = sum(
            item.queries * len(manifest.party(item.queried).fields) * (parameters.max_bins + 1)
            + item.queries
            for item in made.between
            if org in (item.querier, item.queried)
        )
        own = 0 if made.has_pairs(org) else pairs
        add(org, bank, What.POPULATION_COVARIANCE, between + own, 53)
        add(bank, org, What.WOE_TABLES, columns, WOE_BITS)
        add(bank, org, What.DIRECTIONS, parameters.openings * (fields + 1), DIRECTION_BITS)
        add(bank, org, What.POINTS_TABLES, columns, POINTS_BITS)
        # What the bank opens is the departments' sum; each is named with it.
        count = len(departments)
        bits = sum_bits(count, score_steps(parameters))
        add(org, bank, What.SCORE_OPENING, customers * parameters.openings, bits, True)
        if parameters.evaluation:
            bits = sum_bits(count, points_limit(parameters))
            add(org, bank, What.EVALUATION_OPENING, customers, bits, True)
    for item in made.between:
        # How many there are; what they ask stays with the querier.
        add(item.querier, item.queried, What.QUERIES, item.queries, 0)
        columns = len(manifest.party(item.queried).fields) * (parameters.max_bins + 1)
        add(item.queried, item.querier, What.BIN_DEFINITIONS, columns, 0)
    return lines
