"""What a job of boosted trees will ask and open, computed from the manifest alone.

    counts    one query, v = 1 over the training customers: what all later openings are checked by
    rounds    of a tree grown level by level 1, 1, 2, 4 ... nodes (of two siblings one is asked),
              of a tree grown leaf by leaf one node a round; each node one query, two with hessians
    end       of each round: the thresholds that are new, one bit a cover row for each

So the number of queries follows from the parameters, not from the trees; what a tree does not need
is asked with v = 0. Only where the job stops early is its number of trees to be seen.

Exposure  tokens / customers_min. `offers` names what keeps a job within a budget, the setting that
          costs least accuracy first: trees that ask nobody but grow on what is open already,
          estimated hessians, smaller trees, fewer trees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from federation.errors import UsageError
from federation.ledger import What
from federation.objects import (
    CoverKind,
    DeclaredDisclosure,
    JobManifest,
    QueryParameters,
    TreesParameters,
)
from federation.tasks import pooled, row_keys
from federation.tasks.query_plan import finest, require_stated, stated
from protocols.errors import ParameterError
from protocols.linear_query import Layout, Parameters

VMAX = (511, 255, 127)  # 10 bits, less where a column could overflow
COUNT_QUERIES = 1
THRESHOLD_BITS = 16  # which feature, which cut, where missing goes
BITS_A_COLUMN = 24  # thresholds that share a sealed integer
EXPOSURE_REFUSES = 0.05


@dataclass(frozen=True, slots=True)
class TreesPlan:
    """Everything that follows from the manifest's figures."""

    query: Parameters
    rounds: tuple[int, ...]  # nodes asked in each round of a tree
    queries_a_node: int
    joint_trees: int
    tokens: int  # queries that each department answers, padding included
    thresholds: Mapping[str, int]  # the most that are opened, by department

    @property
    def queries_a_tree(self) -> int:
        """Of a tree that asks."""
        return sum(self.rounds) * self.queries_a_node

    def exposure(self, customers_min: int, tokens_before: int = 0) -> float:
        """Equations on each department's columns a customer (PROTOCOLS.md section 3)."""
        return (self.tokens + tokens_before) / customers_min


@dataclass(frozen=True, slots=True)
class Offer:
    """Parameters that stay within a budget, and what they change."""

    what: str
    parameters: TreesParameters
    tokens: int
    exposure: float


def rounds_of(parameters: TreesParameters) -> tuple[int, ...]:
    """How many nodes are asked in each round of one tree."""
    if parameters.growth == "leaf":
        return (1,) * max(1, min(parameters.max_leaves, 1 << parameters.max_depth) - 1)
    return (1, *(1 << level for level in range(parameters.max_depth - 1)))


def splits_of(parameters: TreesParameters) -> int:
    """The most splits that one tree can have."""
    full = (1 << parameters.max_depth) - 1
    return min(full, parameters.max_leaves - 1) if parameters.growth == "leaf" else full


def tokens_of(parameters: TreesParameters) -> int:
    """Queries to each department."""
    nodes = sum(rounds_of(parameters)) * (2 if parameters.hessians else 1)
    return COUNT_QUERIES + (parameters.joint_trees or parameters.trees) * nodes


def plan_trees(
    *,
    rows: int,
    customers_max: int,
    department_fields: Mapping[str, int],
    parameters: TreesParameters,
    banks: int = 1,
) -> TreesPlan:
    """The plan; customers_max: of one bank.

    Raises UsageError if no parameters of the query serve these figures safely.
    """
    tokens = tokens_of(parameters)
    most = parameters.max_bins + 1
    layouts = [Layout(rows, (most,) * fields) for fields in department_fields.values()]
    joint = parameters.joint_trees or parameters.trees
    # A feature has a cut after each bin, and each cut of two kinds where missing is apart.
    each = min(parameters.thresholds, 2 * parameters.max_bins)
    thresholds = {
        org: min(fields * each, joint * splits_of(parameters))
        for org, fields in department_fields.items()
    }
    try:
        query = finest(layouts, customers_max * banks, VMAX, tokens, banks)
    except ParameterError as error:
        todo = "ask for fewer fields, rows or trees, or split the job"
        raise UsageError(f"no safe parameters for these figures: {error}", todo=todo) from None
    rounds = rounds_of(parameters)
    return TreesPlan(query, rounds, 2 if parameters.hessians else 1, joint, tokens, thresholds)


def plan(
    *,
    rows: int,
    customers_max: int,
    bank_fields: int,
    department_fields: Mapping[str, int],
    parameters: TreesParameters,
    banks: int = 1,
) -> tuple[QueryParameters, int, int]:
    """For the manifest: query parameters, tokens a department, tokens between departments (none).

    bank_fields does not matter: the bank's own features need no protocol.
    """
    made = plan_trees(
        rows=rows,
        customers_max=customers_max,
        department_fields=department_fields,
        parameters=parameters,
        banks=banks,
    )
    return stated(made.query), made.tokens, 0


def plan_of(manifest: JobManifest) -> TreesPlan:
    """The plan of a manifest; raises Refused if the manifest says something else."""
    row_keys.require_agreed(manifest)
    made = plan_trees(
        rows=manifest.cover.rows,
        customers_max=manifest.limits.customers_max,
        department_fields={org: len(manifest.party(org).fields) for org in manifest.departments},
        parameters=manifest.trees,
        banks=len(manifest.banks),
    )
    pooled.require_agreed(manifest)
    named = {*manifest.trees.increasing, *manifest.trees.decreasing}
    if unknown := named - {name for party in manifest.parties for name in party.fields}:
        raise UsageError(f"monotone, but no field of the job: {', '.join(sorted(unknown))}")
    require_stated(manifest, made.query, made.tokens, 0)
    return made


# --- cheaper jobs ---------------------------------------------------------------------------------


def offers(
    parameters: TreesParameters,
    customers_min: int,
    *,
    tokens_before: int = 0,
    budget: float = EXPOSURE_REFUSES,
) -> tuple[Offer, ...]:
    """Settings that stay within the budget, the one that should cost least accuracy first.

    The job as it stands comes first if it is within; empty if nothing helps.
    """
    room = math.floor(budget * customers_min) - tokens_before
    found: list[Offer] = []

    def offer(what: str, changed: Mapping[str, object]) -> None:
        asked = {**parameters.model_dump(), **changed}
        made = TreesParameters.model_validate(asked)
        tokens = tokens_of(made)
        if tokens <= room and all(made != other.parameters for other in found):
            found.append(Offer(what, made, tokens, (tokens + tokens_before) / customers_min))

    def joint_within(changed: Mapping[str, object]) -> int:
        made = TreesParameters.model_validate(
            {**parameters.model_dump(), **changed, "joint_trees": 1}
        )
        a_tree = tokens_of(made) - COUNT_QUERIES
        return min((room - COUNT_QUERIES) // a_tree, parameters.trees)

    offer("as it is", {})
    light: dict[str, object] = {"hessians": False}
    offer("gradients alone: hessians of the departments' bins are estimated", light)
    few = [("", {}), (", gradients alone", light)]
    for name, changed in few:
        joint = joint_within(changed)
        if 1 <= joint < parameters.trees:
            first = "tree" if joint == 1 else f"{joint} trees"
            what = f"departments are asked for the first {first} of {parameters.trees}{name}"
            offer(what, {**changed, "joint_trees": joint})
    if parameters.growth == "depth":
        for depth in range(parameters.max_depth - 1, 1, -1):
            leaves = 1 << depth
            smaller: dict[str, object] = {**light, "max_depth": depth}
            offer(f"depth {depth}, {leaves} leaves, gradients alone", smaller)
    else:
        leaves = parameters.max_leaves // 2
        while leaves >= 4:
            offer(f"{leaves} leaves, gradients alone", {**light, "max_leaves": leaves})
            leaves //= 2
    for name, changed in few:
        trees = joint_within(changed)
        if 1 <= trees < parameters.trees:
            many = "1 tree" if trees == 1 else f"{trees} trees"
            offer(f"{many}{name}", {**changed, "trees": trees, "joint_trees": None})
    return tuple(found)


# --- what is disclosed ----------------------------------------------------------------------------


def declare(manifest: JobManifest) -> tuple[DeclaredDisclosure, ...]:
    """Everything that a job of this manifest can reveal, at most (PROTOCOLS.md section 5)."""
    lines = [line for bank in manifest.banks for line in _declare(manifest.seen_from(bank))]
    totals = totals_of(manifest) if len(manifest.banks) > 1 else 0
    return (*lines, *pooled.declare(manifest, totals))


def totals_of(manifest: JobManifest) -> int:
    """Numbers that the sums over several banks open together, at most."""
    made, parameters = plan_of(manifest), manifest.trees
    fields = len(manifest.party(manifest.bank).fields)
    theirs = sum(len(manifest.party(org).fields) for org in manifest.departments)
    bins = parameters.max_bins + 1
    trees, nodes = parameters.trees, 2 * splits_of(parameters) + 1
    # Of a node: its totals, its sums over own bins, and over what is open of the departments'
    # features; twice, where a first choice turns out too small.
    a_node = 5 + 3 * fields * bins + 3 * theirs * (parameters.thresholds + 1)
    alone = 5 + 3 * fields * bins
    asked = made.tokens * theirs * bins
    before = pooled.totals_of_bins(fields, parameters.max_bins) + 16
    return before + asked + trees * (2 * nodes * (a_node + alone) + 8)


def _declare(manifest: JobManifest) -> list[DeclaredDisclosure]:
    """What lies between one bank and the departments."""
    made, parameters = plan_of(manifest), manifest.trees
    bank, customers = manifest.bank, manifest.limits.customers_max
    lines: list[DeclaredDisclosure] = []

    def add(source: str, to: str, what: What, count: int, bits: int, rowwise: bool = False) -> None:
        lines.append(
            DeclaredDisclosure(
                source=source, to=to, what=what, count=count, bits=bits, per_enterprise=rowwise
            )
        )

    for org in manifest.departments:
        columns = len(manifest.party(org).fields) * (parameters.max_bins + 1)
        rowwise = manifest.cover.kind is not CoverKind.REGISTRY
        add(bank, org, What.COVER, manifest.cover.rows, int(rowwise), rowwise)
        add(bank, org, What.ROW_KEYS, manifest.limits.row_keys, 0)
        add(bank, org, What.QUERIES, made.tokens, 0)
        add(org, bank, What.BIN_DEFINITIONS, columns, 64)
        counted = (customers * len(manifest.banks)).bit_length()
        add(org, bank, What.BIN_COUNTS, columns, max(counted, 1))
        sums = (made.tokens - COUNT_QUERIES) * columns
        add(org, bank, What.QUERY_SUMS, sums, made.query.t_bits)
        add(bank, org, What.THRESHOLDS, made.thresholds[org], THRESHOLD_BITS)
        add(org, bank, What.SPLIT_BITS, made.thresholds[org] * customers, 1, True)
    return lines
