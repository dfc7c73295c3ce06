"""What a job will carry, hold and take, from its manifest alone: before anybody runs anything.

Bytes    The schedule of questions is fixed, so every message is known by kind and size: they are
         built here with zeros for contents and measured as frames. What depends on data is taken at
         its most (openings of a scorecard), or at half of what is declared (new thresholds of
         trees). How many bins a field has is known once its owner has binned it: `bins`.
Memory   The arrays that a party holds at its peak, in bytes a row, over what the bare program takes
         (`BASE_BYTES`).
Time     From measured speeds (`clients/calibration.py`), one small linear model a stage; and the
         transport at a stated bandwidth.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation import wire
from federation.errors import UsageError
from federation.objects import CoverKind, JobManifest, Role
from federation.tasks import cover as cover_
from federation.tasks import messages, row_keys
from federation.tasks import plan as scorecard_plan
from federation.tasks.binning import FeatureBins
from federation.tasks.trees_messages import NextTree, StartAt, Thresholds
from federation.tasks.trees_plan import COUNT_QUERIES, TreesPlan
from federation.tasks.trees_plan import plan_of as trees_plan_of
from protocols import base_ot, linear_query, oprf, sealed, seed_trees, set_oprf, vole
from protocols.hermitian import COLUMNS
from protocols.linear_query import Parameters
from protocols.parameters import (
    answer_size_bytes,
    query_size_bytes,
    reply_size_bytes,
    request_size_bytes,
    slots,
)
from protocols.streams import encode

TASKS = ("scorecard", "trees")
BASE_BYTES = 330_000_000  # a node with its libraries and compiled kernels, idle

Bins = Mapping[str, Sequence[int]]  # by department, one a field


@dataclass(frozen=True, slots=True)
class Flow:
    """All frames of one stage from one party to another."""

    source: str
    to: str
    stage: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PartyCost:
    """One party's share."""

    org: str
    role: str
    sent_bytes: int
    received_bytes: int
    memory_bytes: int  # of the whole process at its peak


@dataclass(frozen=True, slots=True)
class Speeds:
    """What this machine was measured to do: seconds a unit of work, by task and stage."""

    seconds: Mapping[str, Mapping[str, Sequence[float]]]  # task -> stage -> one a term of `work`
    measured: str = ""  # when


@dataclass(frozen=True, slots=True)
class Estimate:
    """Everything that `lianmo job estimate` says of a job."""

    job: str
    task: str
    questions: int  # of the bank to each department
    exposure: float
    parties: tuple[PartyCost, ...]
    flows: tuple[Flow, ...] = field(repr=False)
    seconds: Mapping[str, float] | None  # by stage, of computing; None: no speeds given
    bandwidth_bits: float | None  # of each party's line

    @property
    def total_bytes(self) -> int:
        """All frames of all parties."""
        return sum(flow.size_bytes for flow in self.flows)

    @property
    def computing_s(self) -> float | None:
        """All stages, on machines like the measured one."""
        return None if self.seconds is None else sum(self.seconds.values())

    @property
    def transport_s(self) -> float | None:
        """The busiest party's bytes over its line."""
        if self.bandwidth_bits is None:
            return None
        most = max(max(item.sent_bytes, item.received_bytes) for item in self.parties)
        return 8 * most / self.bandwidth_bits


def estimate(
    manifest: JobManifest,
    *,
    bins: Bins | None = None,
    speeds: Speeds | None = None,
    bandwidth_bits: float | None = None,
) -> Estimate:
    """The estimate of a manifest; raises Refused if the manifest does not follow from its job.

    bins: of departments whose fields somebody has binned; `usual_bins` for the others.
    """
    if manifest.task not in TASKS:
        raise UsageError(f"there is no estimate for a {manifest.task} job yet")
    if len(manifest.of_role(Role.BANK)) > 1:
        raise UsageError("there is no estimate for a job of several banks yet")
    known = {
        org: tuple((bins or {}).get(org) or usual_bins(manifest, org))
        for org in manifest.departments
    }
    sums: dict[tuple[str, str, str], int] = defaultdict(int)
    talk = {"trees": _trees, "scorecard": _scorecard}[manifest.task]
    for source, to, stage, size in talk(manifest, known):
        sums[source, to, stage] += size
    flows = tuple(Flow(*key, size) for key, size in sums.items())
    memory = memory_of(manifest, known)
    parties = tuple(
        PartyCost(
            party.org,
            party.role.value,
            sum(flow.size_bytes for flow in flows if flow.source == party.org),
            sum(flow.size_bytes for flow in flows if flow.to == party.org),
            BASE_BYTES + memory[party.org],
        )
        for party in manifest.parties
        if party.role is not Role.PLATFORM
    )
    return Estimate(
        job=manifest.job,
        task=manifest.task,
        questions=manifest.limits.tokens,
        exposure=manifest.limits.tokens / manifest.limits.customers_min,
        parties=parties,
        flows=flows,
        seconds=None if speeds is None else seconds_of(manifest, known, speeds),
        bandwidth_bits=bandwidth_bits,
    )


def usual_bins(manifest: JobManifest, org: str) -> tuple[int, ...]:
    """Where nobody knows better: as many as the parameters allow, without a bin for missing."""
    parameters = manifest.trees if manifest.task == "trees" else manifest.scorecard
    return (parameters.max_bins,) * len(manifest.party(org).fields)


# --- messages -------------------------------------------------------------------------------------

Sent = tuple[str, str, str, int]  # source, to, stage, bytes


def frame_bytes(stage: str, message: object) -> int:
    """The size of a message's frame, as a channel counts it."""
    pieces = wire.pieces(message)
    body = sum(p.nbytes if isinstance(p, memoryview) else len(p) for p in pieces)
    return len(encode(stage, 0, b"")) + body


def _zeros(size: int, kind: type[np.generic] = np.uint8) -> NDArray[Any]:
    return np.zeros(size, kind)


_CONTEXT = _zeros(32)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Frames of the linear query under one set of parameters."""

    parameters: Parameters
    rows: int

    def commitment(self, stage: str) -> int:
        return frame_bytes(stage, linear_query.MatrixCommitment(_CONTEXT, _CONTEXT))

    def batches(self, tokens: int) -> list[int]:
        most = self.parameters.batch_tokens
        return [most] * (tokens // most) + ([tokens % most] if tokens % most else [])

    def requests(self, stage: str, tokens: int) -> int:
        bare = linear_query.TokenRequest(
            _CONTEXT, 0, 1, self.parameters.columns_per_reply, _zeros(0), _zeros(0)
        )
        size = frame_bytes(stage, bare)
        return sum(size + request_size_bytes(self.parameters, n) for n in self.batches(tokens))

    def replies(self, stage: str, columns: int, tokens: int) -> int:
        size = frame_bytes(stage, linear_query.TokenReply(_CONTEXT, 0, _zeros(0), _zeros(0)))
        return sum(
            size + reply_size_bytes(self.parameters, columns, n) for n in self.batches(tokens)
        )

    def queries(self, stage: str, count: int) -> int:
        bare = linear_query.Query(_CONTEXT, 0, 0, _zeros(0))
        return count * (frame_bytes(stage, bare) + query_size_bytes(self.rows))

    def answers(self, stage: str, columns: int, count: int) -> int:
        bare = linear_query.Answer(_CONTEXT, 0, 0, _zeros(0))
        return count * (frame_bytes(stage, bare) + answer_size_bytes(columns))


def _first_words(manifest: JobManifest, bins: Bins) -> Iterator[Sent]:
    """Agreement, cover, row keys and bins: the same in every task."""
    bank, departments = manifest.bank, manifest.departments
    everybody = [bank, *departments]
    digest = bytes(messages.DIGEST_BYTES)
    for source in everybody:
        data = (digest,) * 3 if source == bank else ()
        words = (
            messages.Commitments(digest, digest, data),
            messages.OpenedNonce(digest),
            messages.Agreed(digest),
        )
        size = sum(frame_bytes("agreement", word) for word in words)
        for to in everybody:
            if to != source:
                yield source, to, "agreement", size
    for org in departments:
        if manifest.cover.kind is not CoverKind.REGISTRY:
            rows = cover_.CoverRows(digest, _zeros(manifest.cover.rows, np.int32))
            yield bank, org, cover_.STAGE, frame_bytes(cover_.STAGE, rows)
        yield from _row_keys(manifest, org)
        yield org, bank, "binning", frame_bytes("binning", _definitions(manifest, org, bins[org]))


def _row_keys(manifest: JobManifest, org: str) -> Iterator[Sent]:
    bank, stage, digest = manifest.bank, row_keys.STAGE, bytes(messages.DIGEST_BYTES)
    opens = manifest.task == "trees"
    if manifest.task == "scorecard":
        opens = manifest.scorecard.openings > 0 or manifest.scorecard.evaluation
    way, number = manifest.alignment, manifest.limits.row_keys
    key = digest if opens and way == "voprf" else b""
    rows = messages.Rows(manifest.cover.rows, digest, key)
    yield org, bank, stage, frame_bytes(stage, rows)
    if not opens:
        return
    if way == "voprf":
        elements = np.zeros((number, oprf.POINT_BYTES), np.uint8)
        proofs = np.zeros((-(-number // oprf.BLOCK), oprf.PROOF_BYTES), np.uint8)
        yield bank, org, stage, frame_bytes(stage, oprf.BlindedBatch(elements))
        yield org, bank, stage, frame_bytes(stage, oprf.EvaluatedBatch(elements, proofs))
        return
    points = np.zeros((seed_trees.TRANSFERS, 2, base_ot.POINT_BYTES), np.uint8)
    yield org, bank, stage, frame_bytes(stage, set_oprf.Hello(digest, digest, points))
    reply = set_oprf.Reply(
        digest,
        digest,
        digest,
        np.zeros((seed_trees.TRANSFERS, 2, seed_trees.SEED_BYTES), np.uint8),
        np.zeros((COLUMNS, seed_trees.LEAF_BYTES), np.uint8),
        digest,
        np.zeros((vole.PLANES, vole.padded(number) // 64), np.uint64),
        np.zeros(vole.CHECKS, np.uint64),
        np.zeros((vole.CHECKS, 4), np.uint64),
    )
    yield bank, org, stage, frame_bytes(stage, reply)


def _definitions(manifest: JobManifest, org: str, bins: Sequence[int]) -> messages.Definitions:
    features = tuple(
        FeatureBins(name, True, np.arange(count - 1, dtype=np.float64), (), 0, 0, max(count, 1))
        for name, count in zip(manifest.party(org).fields, bins, strict=True)
    )
    return messages.Definitions(features)


def _tokens(
    sizes: _Sizes, stage: str, asks: str, answers: str, columns: int, n: int
) -> Iterator[Sent]:
    yield answers, asks, stage, sizes.commitment(stage) + sizes.replies(stage, columns, n)
    yield asks, answers, stage, sizes.requests(stage, n)


def _asked(
    sizes: _Sizes, stage: str, asks: str, answers: str, columns: int, n: int
) -> Iterator[Sent]:
    yield asks, answers, stage, sizes.queries(stage, n)
    yield answers, asks, stage, sizes.answers(stage, columns, n)


def _last_words(manifest: JobManifest) -> Iterator[Sent]:
    size = frame_bytes("finish", messages.Finished(bytes(messages.DIGEST_BYTES)))
    for org in manifest.departments:
        yield manifest.bank, org, "finish", size
        yield org, manifest.bank, "finish", size


def _sealed(manifest: JobManifest, org: str, stage: str, departments: Sequence[str]) -> int:
    step = sealed.Step(
        job=bytes.fromhex(manifest.digest()),
        attempt=1,
        bank=manifest.bank,
        departments=tuple(sorted(departments)),
        cover=bytes(32),
        stage=stage,
        step=0,
        column=0,
        values=sealed.ValueRange(-1, 1),
    )
    bare = sealed.SealedColumn(step, org, _zeros(sealed.NONCE_BYTES), _zeros(0, np.uint32))
    return frame_bytes(stage, bare) + 4 * manifest.cover.rows


def _scorecard(manifest: JobManifest, bins: Bins) -> Iterator[Sent]:
    plan, parameters = scorecard_plan.plan_of(manifest), manifest.scorecard
    bank, departments, rows = manifest.bank, manifest.departments, manifest.cover.rows
    sizes = _Sizes(plan.bins, rows)
    yield from _first_words(manifest, bins)
    for a in departments:
        shape = frame_bytes("binning", messages.Shape(tuple(bins[a])))
        for item in plan.between:
            if item.queried == a:
                yield a, item.querier, "binning", shape
    for org in departments:
        columns, fields = sum(bins[org]), len(bins[org])
        yield from _tokens(sizes, "tokens", bank, org, columns, plan.bin_queries)
        yield from _asked(sizes, "counts", bank, org, columns, scorecard_plan.COUNT_QUERIES)
        tables = messages.WoeTables(_zeros(columns, np.int8), _zeros(fields))
        yield bank, org, "counts", frame_bytes("counts", tables)
        yield from _asked(sizes, "curvature", bank, org, columns, 2 + plan.bank_fields)
        pairs = fields * (fields - 1) // 2
        if plan.pairs is not None and plan.has_pairs(org):
            products = _Sizes(plan.pairs.parameters, rows)
            yield from _tokens(products, "curvature", bank, org, pairs, 1)
            yield from _asked(products, "curvature", bank, org, pairs, 1)
        elif fields > 1:
            said = messages.Correlations(_zeros(pairs, np.int8))
            yield org, bank, "curvature", frame_bytes("curvature", said)
        yield from _asked(sizes, "openings", bank, org, columns, max(plan.openings - 1, 0))
        direction = messages.Direction(_zeros(1), _zeros(fields, np.int8), _zeros(1, np.int8))
        yield bank, org, "openings", plan.openings * frame_bytes("openings", direction)
        column = _sealed(manifest, org, "openings", departments)
        yield org, bank, "openings", plan.openings * column
        points = messages.PointsTables(_zeros(columns, np.int32))
        yield bank, org, "points", frame_bytes("points", points)
        if parameters.evaluation:
            yield org, bank, "points", _sealed(manifest, org, "points", departments)
    for item in plan.between:
        if plan.between_parameters is None:
            raise RuntimeError("a plan with departments to ask and no parameters for it")
        across, n = _Sizes(plan.between_parameters, rows), item.queries
        columns = sum(bins[item.queried])
        yield from _tokens(across, "tokens", item.querier, item.queried, columns, n)
        yield from _asked(across, "curvature", item.querier, item.queried, columns, n)
        mask = linear_query.ForwardMask(_CONTEXT, 0, 0, _zeros(0))
        size = n * (frame_bytes("curvature", mask) + answer_size_bytes(columns))
        yield item.queried, bank, "curvature", size
        forwarded = messages.Between(
            np.zeros((n, columns), np.int64), _zeros(len(bins[item.querier]), np.int64)
        )
        yield item.querier, bank, "curvature", frame_bytes("curvature", forwarded)
    yield from _last_words(manifest)


def _trees(manifest: JobManifest, bins: Bins) -> Iterator[Sent]:
    plan, bank = trees_plan_of(manifest), manifest.bank
    sizes = _Sizes(plan.query, manifest.cover.rows)
    none = Thresholds.of(())
    yield from _first_words(manifest, bins)
    for org in manifest.departments:
        columns = sum(bins[org])
        yield org, bank, "tokens", frame_bytes("tokens", none)
        words = frame_bytes("tokens", none) + frame_bytes("tokens", StartAt(0))
        yield bank, org, "tokens", words
        yield from _tokens(sizes, "tokens", bank, org, columns, plan.tokens)
        yield from _asked(sizes, "counts", bank, org, columns, COUNT_QUERIES)
        questions = plan.tokens - COUNT_QUERIES
        yield from _asked(sizes, "trees", bank, org, columns, questions)
        rounds = plan.joint_trees * len(plan.rounds)
        yield bank, org, "trees", plan.joint_trees * frame_bytes("trees", NextTree(True))
        yield bank, org, "trees", rounds * frame_bytes("trees", none)
        column = _sealed(manifest, org, "trees", (org,))
        yield org, bank, "trees", math.ceil(sealed_columns(plan, org) * column)
    yield from _last_words(manifest)


def sealed_columns(plan: TreesPlan, org: str) -> float:
    """Trees open the same thresholds again and again: half of the declared ones, a round's at
    once."""
    return min(plan.thresholds[org] / 2, plan.joint_trees * len(plan.rounds))


# --- memory ---------------------------------------------------------------------------------------


def memory_of(manifest: JobManifest, bins: Bins) -> dict[str, int]:
    """Bytes of each party's arrays at their peak, by organisation."""
    rows, customers = manifest.cover.rows, manifest.limits.customers_max
    own = len(manifest.party(manifest.bank).fields)
    theirs = sum(len(fields) for fields in bins.values())
    queries = _queries(manifest)
    found = {}
    for org, fields in bins.items():
        batch = _batch_bytes(queries, sum(fields))
        # Columns as numbers and as bins, codes, row keys; hints of a block at a time; a batch.
        products = PAIR_BYTES * _pairs(manifest, org)
        found[org] = rows * (ROW_BYTES + FIELD_BYTES * len(fields) + products) + batch
    batches = max(_batch_bytes(queries, sum(fields)) for fields in bins.values())
    in_flight = query_size_bytes(rows) * _in_flight(manifest)
    found[manifest.bank] = (
        customers * (ROW_BYTES + FIELD_BYTES * own + 2 * theirs)
        + rows * COVER_BYTES
        + in_flight
        + batches
    )
    return found


# Measured (benchmarks/estimate.py): bytes a row, a row and field, a row of the cover at the bank, a
# row and pair of fields whose products a scorecard asks for.
ROW_BYTES, FIELD_BYTES, COVER_BYTES, PAIR_BYTES = 120, 26, 60, 12


def _pairs(manifest: JobManifest, org: str) -> int:
    """Products of a department's own fields."""
    if manifest.task != "scorecard" or not scorecard_plan.plan_of(manifest).has_pairs(org):
        return 0
    fields = len(manifest.party(org).fields)
    return fields * (fields - 1) // 2


def _queries(manifest: JobManifest) -> _Sizes:
    if manifest.task == "trees":
        return _Sizes(trees_plan_of(manifest).query, manifest.cover.rows)
    return _Sizes(scorecard_plan.plan_of(manifest).bins, manifest.cover.rows)


def _batch_bytes(sizes: _Sizes, columns: int) -> int:
    """A batch of tokens: what is packed, and the same as floating point numbers."""
    tokens = sizes.batches(sizes.parameters.tokens)[0]
    packed = sizes.requests("tokens", tokens) + sizes.replies("tokens", columns, tokens)
    return 3 * packed


def _in_flight(manifest: JobManifest) -> int:
    """Queries on their way at once."""
    if manifest.task == "scorecard":
        return 2
    plan = trees_plan_of(manifest)
    return max(plan.rounds) * plan.queries_a_node


# --- time -----------------------------------------------------------------------------------------


def seconds_of(manifest: JobManifest, bins: Bins, speeds: Speeds) -> dict[str, float]:
    """Seconds of each stage by measured speeds."""
    by_stage = speeds.seconds.get(manifest.task, {})
    return {
        stage: float(np.dot(by_stage[stage], terms))
        for stage, terms in work_of(manifest, bins).items()
        if stage in by_stage
    }


def work_of(manifest: JobManifest, bins: Bins) -> dict[str, tuple[float, ...]]:
    """What each stage's time grows with; all parties' work, as if on one machine."""
    rows, customers = manifest.cover.rows, manifest.limits.customers_min
    own = len(manifest.party(manifest.bank).fields)
    theirs, columns = sum(map(len, bins.values())), sum(map(sum, bins.values()))
    keys = "row keys by set" if manifest.alignment == "set" else "row keys by voprf"
    sizes, tokens = _queries(manifest), manifest.limits.tokens
    padded = sum(slots(n) for n in sizes.batches(tokens))
    work: dict[str, tuple[float, ...]] = {
        "agreement": (1, customers * own),
        keys: (1, rows * len(bins), manifest.limits.row_keys * len(bins)),
        "binning": (1, rows * theirs + customers * own),
        "tokens": (1, rows * theirs, columns * padded, padded),
        "finish": (1,),
    }
    if manifest.task == "trees":
        plan, parameters = trees_plan_of(manifest), manifest.trees
        asked = tokens - COUNT_QUERIES
        grown = parameters.trees * parameters.max_depth * customers
        opened = sum(sealed_columns(plan, org) for org in bins)
        work["counts"] = (1, rows, rows * theirs)
        work["trees"] = (
            asked,
            asked * rows,
            asked * rows * theirs,
            grown * (own + 0.5 * theirs),
            opened * rows,
        )
        work["alone"] = (parameters.trees, grown, grown * own)
        return work
    made = scorecard_plan.plan_of(manifest)
    pairs = sum(_pairs(manifest, org) for org in bins)
    between = sum(item.queries * (1 + len(bins[item.queried])) for item in made.between)
    asked = 2 + made.bank_fields
    work["counts"] = (1, rows * (1 + theirs), customers * own)
    work["curvature"] = (1, asked * rows * (1 + theirs) + between * rows, pairs * rows, customers)
    work["openings"] = (1, made.openings * rows * (1 + theirs), made.openings * customers * own)
    work["points"] = (1, rows * len(bins), customers * own)
    return work
