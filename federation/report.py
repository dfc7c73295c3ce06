"""The report of a finished task, scorecard or trees: one page that works offline, and JSON.

A `Report` holds aggregates only: no credit code, no row. Curves are thinned (federation.evaluation)
and what a bin or band shows is a count of customers that the bank knows by itself. The page carries
its scripts and styles within; its content security policy forbids every connection, so a browser
that opens it asks nobody for anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from federation import evaluation, plots, tree_plots
from federation.evaluation import (
    Band,
    Calibration,
    Comparison,
    CumulativeShares,
    Curve,
    Discrimination,
    GainsRow,
    PopulationStability,
    plain,
)
from federation.ledger import Disclosure
from federation.neural_facts import NeuralFacts
from federation.neural_facts import facts_of as facts_of_network
from federation.objects import Approval, CoverKind, Decision, JobManifest
from federation.tables import BankData
from federation.tasks import trees_plan
from federation.tasks.model import PooledFit, ScorecardModel
from federation.tasks.plan import plan_of
from federation.tasks.trees_model import TreesResult
from federation.trees_facts import ONE, TreesFacts, facts_of

if TYPE_CHECKING:
    from federation.tasks.horizontal import NeuralResult

REPORT_VERSION = 1
WARN_EXPOSURE, REFUSE_EXPOSURE, OPEN_EXPOSURE = 0.02, 0.05, 0.2  # PROTOCOLS.md section 3, Exposure


# --- what a report says ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Points:
    """The scale of a scorecard: `base` points at `odds` goods to one bad, `pdo` double the odds."""

    base: float
    odds: float
    pdo: float

    def probability(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability of a bad outcome that a score stands for."""
        factor = self.pdo / math.log(2)
        log_odds = math.log(self.odds) + (np.asarray(points, dtype=np.float64) - self.base) / factor
        probability: NDArray[np.float64] = 1.0 / (1.0 + np.exp(np.clip(log_odds, -500, 500)))
        return probability

    def of_risk(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """The score of a log-odds of a bad outcome."""
        return self.base - self.pdo / math.log(2) * (np.asarray(logit) + math.log(self.odds))


@dataclass(frozen=True, slots=True)
class Assessment:
    """How good the joint score is, alone and beside the others, on customers it was not fitted
    to."""

    train_rows: int
    train_bads: int
    test_rows: int
    test_bads: int
    joint: Discrimination
    bank_only: Discrimination
    pooled: Discrimination | None  # the lab alone knows it
    joint_train: Discrimination
    gain: Comparison  # joint minus bank alone
    cost: Comparison | None  # joint minus pooled
    roc: Mapping[str, Curve]  # by model
    cumulative: CumulativeShares  # of the joint score
    distribution: tuple[Band, ...]  # fine bands, for the picture
    bands: tuple[Band, ...]  # round bands, for the table
    calibration: Calibration
    stability: PopulationStability  # training to test
    gains: tuple[GainsRow, ...]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a feature: customers of the training set in it, and what it is worth."""

    label: str
    goods: int
    bads: int
    woe: float
    points: float


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature with its owner; one that takes no part in the fit has coefficient 0."""

    name: str
    owner: str
    iv: float
    coefficient: float
    note: str  # why it takes no part, or empty
    bins: tuple[Bin, ...]

    @property
    def is_used(self) -> bool:
        """Whether the feature moves the score."""
        return self.coefficient != 0


@dataclass(frozen=True, slots=True)
class PartyFacts:
    """A party, what it brought and what it signed."""

    org: str
    name: str
    role: str
    dataset: str
    fields: int
    decision: str  # "proposed", "approved", "" where nobody was asked
    decided: str  # when


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of the task took, as the bank saw it."""

    stage: str
    seconds: float
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class DisclosureLine:
    """What one party learned of another: what happened beside what was approved."""

    source: str
    to: str
    what: str
    meaning: str
    count: int
    declared: int
    bits: int
    bits_per_enterprise: float | None  # for row-level values


@dataclass(frozen=True, slots=True)
class Exposure:
    """Linear equations that the bank got on each department's columns, for each customer."""

    queries: int
    customers_min: int

    @property
    def value(self) -> float:
        """Queries over customers, as the gate counts it."""
        return self.queries / self.customers_min

    @property
    def verdict(self) -> str:
        """What a gate says to it."""
        if self.value > OPEN_EXPOSURE:
            return "must be declared as opening the rows"
        if self.value > REFUSE_EXPOSURE:
            return "refused unless the departments allow it explicitly, with noise"
        if self.value > WARN_EXPOSURE:
            return "allowed, with a warning in the review"
        return "allowed"


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows."""

    job: str
    task: str
    created: str  # when the report was made
    is_lab: bool  # nobody was asked and nothing was signed
    purpose: str
    manifest_digest: str
    package_digest: str
    registry_digest: str
    registry_rows: int
    cover: str
    cover_rows: int
    parties: tuple[PartyFacts, ...]
    assessment: Assessment | None  # None: no scores were opened to assess the model by
    scale: Points
    intercept: float  # points that every customer starts from
    features: tuple[Feature, ...]
    openings: int
    notes: tuple[str, ...]
    stages: tuple[StageCost, ...]
    disclosures: tuple[DisclosureLine, ...]
    exposure: Exposure
    limits: tuple[str, ...]
    trees: TreesFacts | None = None  # of boosted trees, which have no features in the sense above
    network: NeuralFacts | None = None  # of a network, which has none either


# --- making one -----------------------------------------------------------------------------------


class Ran(Protocol):
    """What a report needs of any finished task."""

    @property
    def scores(self) -> NDArray[np.int64] | None:
        """(customers,) its points, if they were opened."""

    @property
    def alone_scores(self) -> NDArray[np.int64]:
        """(customers,) points of the bank's own model."""

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(customers,) 1 = bad."""

    @property
    def test(self) -> NDArray[np.bool_]:
        """(customers,) held out."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the analyst should know."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """By stage."""

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """By stage, to all peers."""

    @property
    def received_bytes(self) -> Mapping[str, int]:
        """By stage, from all peers."""

    @property
    def disclosures(self) -> tuple[Disclosure, ...]:
        """What really happened."""


class Finished(Ran, Protocol):
    """What a report needs of a finished scorecard; a `ScorecardResult` has it."""

    @property
    def model(self) -> ScorecardModel:
        """The joint scorecard."""

    @property
    def openings(self) -> Sized:
        """Openings of training scores."""


def report_of(
    result: Finished,
    manifest: JobManifest,
    *,
    created: str,
    approvals: Sequence[Approval] = (),
    names: Mapping[str, str] | None = None,
    pooled: PooledFit | None = None,
    is_lab: bool = False,
) -> Report:
    """The bank's report on its finished scorecard.

    created: RFC 3339. approvals: verified ones. names: for display, by organisation. pooled: the
    plaintext comparison, which only a lab can have.
    """
    model = result.model
    scale = Points(model.base_score, model.base_odds, model.pdo)
    # Not rounded to points a bin: the comparison is the plain regression.
    plainly = None if pooled is None else scale.of_risk(-pooled.log_odds)
    about = _About(created, approvals, names, is_lab)
    report = _report(result, manifest, about, scale, plainly, float(model.base_points))
    features = tuple(
        Feature(
            name=feature.name,
            owner=feature.owner,
            iv=feature.iv,
            coefficient=feature.coefficient,
            note=feature.note,
            bins=tuple(
                Bin(item.label, item.goods, item.bads, item.woe, item.points)
                for item in feature.bins
            ),
        )
        for feature in model.features
    )
    return replace(report, features=features, openings=len(result.openings))


def report_of_trees(
    result: TreesResult,
    data: BankData,
    manifest: JobManifest,
    *,
    created: str,
    approvals: Sequence[Approval] = (),
    names: Mapping[str, str] | None = None,
    pooled: NDArray[np.int64] | None = None,
    is_lab: bool = False,
) -> Report:
    """The bank's report on its finished trees; data: its own, which staged scores need.

    pooled: margins of the plaintext comparison, which only a lab can have; the rest as above.
    """
    model = result.model
    scale = Points(model.base_score, model.base_odds, model.pdo)
    plainly = None if pooled is None else scale.of_risk(pooled / ONE)
    start = float(scale.of_risk(np.array(model.expected / ONE)))
    about = _About(created, approvals, names, is_lab)
    report = _report(result, manifest, about, scale, plainly, start)
    facts = facts_of(result, data, manifest.trees)
    return replace(report, trees=facts, limits=LIMITS_OF_TREES)


def report_of_network(
    result: NeuralResult,
    manifest: JobManifest,
    *,
    created: str,
    approvals: Sequence[Approval] = (),
    names: Mapping[str, str] | None = None,
) -> Report:
    """One bank's report on the network that several trained; the rest as above."""
    of = manifest.neural
    scale = Points(of.base_score, of.base_odds, of.pdo)
    about = _About(created, approvals, names, is_lab=False)
    report = _report(result, manifest, about, scale, None, 0.0)
    return replace(report, network=facts_of_network(result, manifest), limits=LIMITS_OF_NETWORKS)


@dataclass(frozen=True, slots=True)
class _About:
    """What a result does not know of its job."""

    created: str
    approvals: Sequence[Approval]
    names: Mapping[str, str] | None
    is_lab: bool


def _report(
    result: Ran,
    manifest: JobManifest,
    about: _About,
    scale: Points,
    pooled: NDArray[np.float64] | None,
    start: float,
) -> Report:
    """What all tasks' reports have in common; pooled: points of the comparison."""
    return Report(
        job=manifest.job,
        task=manifest.task,
        created=about.created,
        is_lab=about.is_lab,
        purpose=manifest.purpose.value,
        manifest_digest=manifest.digest(),
        package_digest=manifest.package_sha256,
        registry_digest=manifest.registry.digest,
        registry_rows=manifest.registry.rows,
        cover=cover_text(manifest),
        cover_rows=manifest.cover.rows,
        parties=party_facts(manifest, about.approvals, about.names),
        assessment=_assessment_of(result, pooled, scale),
        scale=scale,
        intercept=start,
        features=(),
        openings=0,
        notes=result.notes,
        stages=tuple(
            StageCost(
                stage,
                seconds,
                result.sent_bytes.get(stage, 0),
                result.received_bytes.get(stage, 0),
            )
            for stage, seconds in result.seconds.items()
        ),
        disclosures=disclosure_lines(
            result.disclosures,
            [item.entry() for item in manifest.disclosures],
            len(result.labels),
        ),
        exposure=exposure_of(manifest),
        limits=LIMITS,
    )


def exposure_of(manifest: JobManifest) -> Exposure:
    """Queries on the columns of the department that is asked most, those of other departments
    included; the schedule is fixed, so the manifest tells."""
    if not manifest.departments:
        return Exposure(0, manifest.limits.customers_min)
    if manifest.task == "trees":
        asked = trees_plan.plan_of(manifest).tokens
        return Exposure(asked, manifest.limits.customers_min)
    plan = plan_of(manifest)
    between = [
        sum(item.queries for item in plan.between if org in (item.querier, item.queried))
        for org in manifest.departments
    ]
    return Exposure(plan.tokens + max(between, default=0), manifest.limits.customers_min)


def _assessment_of(
    result: Ran, pooled: NDArray[np.float64] | None, scale: Points
) -> Assessment | None:
    test, bad = result.test, result.labels
    parts = (bad[test], bad[~test])
    if result.scores is None or any(len(np.unique(part)) < 2 for part in parts):
        return None

    def of(points: NDArray[Any]) -> Scores:
        return Scores(points[~test].astype(np.float64), points[test].astype(np.float64))

    return assess(
        bad[~test],
        bad[test],
        joint=of(result.scores),
        bank_only=of(result.alone_scores),
        pooled=None if pooled is None else of(pooled),
        scale=scale,
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """The points of one model for the training and the test customers."""

    train: NDArray[np.float64]
    test: NDArray[np.float64]


def assess(
    train_bad: NDArray[np.uint8],
    test_bad: NDArray[np.uint8],
    *,
    joint: Scores,
    bank_only: Scores,
    pooled: Scores | None = None,
    scale: Points,
) -> Assessment:
    """Every measure of the report, from scores in points; raises ValueError if the test customers
    are not of both classes."""
    models = {"joint": joint, "bank_only": bank_only}
    if pooled is not None:
        models["pooled"] = pooled
    quality = {
        name: evaluation.discrimination(test_bad, -np.asarray(scores.test, dtype=np.float64))
        for name, scores in models.items()
    }
    risk = -np.asarray(joint.test, dtype=np.float64)
    edges = evaluation.round_edges(joint.test, bands=12)
    fine = evaluation.round_edges(joint.test, bands=36)
    return Assessment(
        train_rows=len(train_bad),
        train_bads=int(np.sum(train_bad)),
        test_rows=len(test_bad),
        test_bads=int(np.sum(test_bad)),
        joint=quality["joint"],
        bank_only=quality["bank_only"],
        pooled=quality.get("pooled"),
        joint_train=evaluation.discrimination(
            train_bad, -np.asarray(joint.train, dtype=np.float64)
        ),
        gain=evaluation.compare(test_bad, -np.asarray(bank_only.test, dtype=np.float64), risk),
        cost=None
        if pooled is None
        else evaluation.compare(test_bad, -np.asarray(pooled.test, dtype=np.float64), risk),
        roc={
            name: evaluation.roc(test_bad, -np.asarray(scores.test, dtype=np.float64))
            for name, scores in models.items()
        },
        cumulative=evaluation.cumulative_shares(test_bad, joint.test),
        distribution=evaluation.bands(test_bad, joint.test, fine),
        bands=evaluation.bands(test_bad, joint.test, edges),
        calibration=evaluation.calibration(test_bad, scale.probability(joint.test)),
        stability=evaluation.population_stability(joint.train, joint.test),
        gains=evaluation.gains(test_bad, risk),
    )


def disclosure_lines(
    happened: Iterable[Disclosure], declared: Iterable[Disclosure], customers: int
) -> tuple[DisclosureLine, ...]:
    """What happened beside what was declared; row-level values in bits for each enterprise."""
    allowed = {(item.source, item.to, item.what): item.count for item in declared}
    return tuple(
        DisclosureLine(
            source=item.source,
            to=item.to,
            what=item.what.value.replace("_", " "),
            meaning=MEANING.get(item.what.value, ""),
            count=item.count,
            declared=allowed.get((item.source, item.to, item.what), 0),
            bits=item.bits,
            bits_per_enterprise=item.count * item.bits / customers if item.per_enterprise else None,
        )
        for item in happened
    )


def party_facts(
    manifest: JobManifest, approvals: Sequence[Approval], names: Mapping[str, str] | None = None
) -> tuple[PartyFacts, ...]:
    """The manifest's parties; an approval counts only for this very manifest."""
    digest = manifest.digest()
    given = {
        approval.org: approval.created
        for approval in approvals
        if approval.manifest == digest and approval.decision is Decision.APPROVE
    }
    return tuple(
        PartyFacts(
            org=party.org,
            name=(names or {}).get(party.org, party.org),
            role=party.role.value,
            dataset=party.dataset or "",
            fields=len(party.fields),
            decision="proposed"
            if party.org == manifest.bank and approvals
            else "approved"
            if party.org in given
            else "",
            decided=manifest.created
            if party.org == manifest.bank and approvals
            else given.get(party.org, ""),
        )
        for party in manifest.parties
    )


def cover_text(manifest: JobManifest) -> str:
    """The cover of a job and what it means for the bank's customers."""
    if manifest.cover.kind is CoverKind.REGISTRY:
        return "registry: every enterprise of the snapshot, so nobody learns who the customers are"
    if manifest.cover.kind is CoverKind.DECOY:
        k = manifest.cover.decoys
        return f"decoy:{k}: each customer among {k}, so a guess is right once in {k} times"
    return "customers: the departments see exactly who the customers are"


MEANING: Mapping[str, str] = {
    "cover": "the rows that the job runs over",
    "row_keys": "for how many enterprises the bank can open values at most; not for which",
    "queries": "how many encrypted questions were asked; not what they were",
    "bin_definitions": "edges and categories of the feature bins",
    "bin_counts": "customers and bads in each fine bin of a feature",
    "query_sums": "sums over customers of each bin, opened while fitting",
    "bank_totals": "sums over all banks of the job together; no bank's own part",
    "shared_weights": "the network that all banks train, after each round",
    "population_covariance": "how two departments' features move together over all enterprises",
    "woe_tables": "weights of evidence of the department's own bins, rounded to 0.05",
    "directions": "coefficients on the department's own bins, rounded to 8 bits",
    "score_opening": "one rounded partial score for each customer, while training",
    "evaluation_opening": "the final score of each customer in whole points",
    "points_tables": "the department's own part of the finished scorecard",
    "thresholds": "which of the department's bins are split, and where",
    "split_bits": "on which side of a split each customer stands",
}

LIMITS = (
    "The bank learns the sums and scores listed above, and whatever follows from them by "
    "computation. Enough sums solve for single rows; this is why they are counted as exposure and "
    "why the departments' gates put a limit on it.",
    "A department learns its own part of the model: weights, coefficients and points, rounded. "
    "They are aggregates of the bank's labels.",
    "A bank that asks other questions than the approved ones is found afterwards by the replay "
    "audit; it is not prevented beforehand.",
    "A department that supplies wrong data makes the model worse; one that answers inconsistently "
    "is caught by the bank's checks of sums.",
    "Nothing is promised for a single department's part against the bank together with all other "
    "departments.",
    "The intervals on this page speak of the test customers of one period. They say nothing of "
    "another year, another city or applicants that the bank has turned away.",
)


LIMITS_OF_TREES = (
    LIMITS[0],
    "A department learns which of its thresholds are used: a choice that follows from the bank's "
    "labels. It does not learn leaves, gradients, in which node a customer is, or who is one.",
    "For every threshold listed above the bank knows of each of its customers on which side it "
    "stands, for good.",
    *LIMITS[2:],
)


LIMITS_OF_NETWORKS = (
    "The shared weights go to every bank and to the platform. Without a privacy budget they may "
    "tell something of single customers to who studies them.",
    "A bank that sends a false update spoils the network for all, unseen: sums hide whose it was.",
    "Nothing is promised for one bank's update against all other banks together.",
    "Which bank was there in a round is known to all; so are the number of customers of all banks "
    "together, and bands of the scores of their held-out customers.",
    LIMITS[-1],
)


# --- showing it -----------------------------------------------------------------------------------


def report_json(report: Report) -> dict[str, Any]:
    """The report as one JSON object: the figures that are asked for most on top, all the rest
    below `report`; missing numbers are null."""
    body = plain(report)
    quality = report.assessment
    if quality is not None:
        body["assessment"].pop("distribution")  # the picture's bands; `bands` has the table's
    models = {
        name: None
        if found is None
        else {"auc": found.auc.value, "ks": found.ks.value, "gini": found.gini}
        for name, found in (
            ("joint", quality.joint if quality else None),
            ("bank_only", quality.bank_only if quality else None),
            ("pooled", quality.pooled if quality else None),
        )
    }
    top = {
        "version": REPORT_VERSION,
        "job": report.job,
        "task": report.task,
        "headline": headline(report),
        **models,
        "rows": {"train": quality.train_rows, "test": quality.test_rows} if quality else None,
        **_of_the_task(report),
        "exposure": report.exposure.value,
        "exposure_verdict": report.exposure.verdict,
        "seconds": {
            **{stage.stage: round(stage.seconds, 4) for stage in report.stages},
            "total": round(sum(stage.seconds for stage in report.stages), 4),
        },
        "bytes": {
            "sent": sum(stage.sent_bytes for stage in report.stages),
            "received": sum(stage.received_bytes for stage in report.stages),
        },
        "disclosures": body.pop("disclosures"),
    }
    return top | {"report": body}


def _of_the_task(report: Report) -> dict[str, Any]:
    if (network := report.network) is not None:
        return {"rounds": len(network.learning) - 1, "all_banks": {"auc": network.auc}}
    if (trees := report.trees) is None:
        return {"openings": report.openings}
    return {
        "trees": trees.kept,
        "gain_by_owner": dict(trees.owners),
        "thresholds": dict(trees.bits_a_customer),
    }


def render_html(report: Report) -> str:
    """The report as one self-contained page."""
    ranked = sorted(report.features, key=lambda feature: -feature.iv)
    owners = [party.org for party in report.parties if party.role != "platform"]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            quality=report.assessment,
            headline=headline(report),
            features=ranked,
            trees=report.trees,
            network=report.network,
            by_owner=[
                (party, [item for item in ranked if item.owner == party.org and item.is_used])
                for party in report.parties
                if party.role != "platform"
            ],
            colours=plots.owner_colours(owners),
            names={party.org: party.name for party in report.parties},
            widest_woe=max((abs(b.woe) for f in ranked for b in f.bins), default=0.0) or 1.0,
            exposure_marks=(WARN_EXPOSURE, REFUSE_EXPOSURE, OPEN_EXPOSURE),
            gauge=_gauge(report.exposure.value),
            nan=math.nan,
            figures=plots.figures(report)
            | ({} if report.trees is None else tree_plots.figures(report, report.trees))
            | ({} if report.network is None else {"rounds": plots.rounds(report, report.network)}),
            plotly=plots.plotly_script(),
        )
    )


def headline(report: Report) -> str:
    """What the departments' data did for the bank, in one or two plain sentences."""
    quality = report.assessment
    if quality is None:
        if report.trees is not None or report.network is not None:
            return "No customers of both kinds were held out, so the gain was not measured."
        return "No scores were opened for an evaluation, so the gain was not measured."
    before, after, gain = quality.bank_only.auc.value, quality.joint.auc.value, quality.gain.auc
    what = "The departments' data" if report.network is None else "Training with the other banks"
    moved = f"{what} moved the AUC from {before:.3f} to {after:.3f}"
    interval = f"({gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f})"
    if gain.low > 0:
        pairs = f"{100 * gain.value:.1f}" if gain.value < 0.1 else f"{100 * gain.value:.0f}"
        return (
            f"{moved} {interval}. Of 100 pairs of a bad and a good customer, the joint score puts "
            f"{pairs} more in the right order than the bank's own."
        )
    if gain.high < 0:
        return f"{moved} {interval}. On these test customers the joint score is the worse one."
    return (
        f"{moved} {interval}. On {quality.test_rows:,} test customers, {quality.test_bads:,} of "
        "them bad, this cannot be told from chance."
    )


def _gauge(exposure: float) -> float:
    """Where an exposure stands on the gauge, whose marks are a quarter apart; in percent."""
    marks = (0.0, WARN_EXPOSURE, REFUSE_EXPOSURE, OPEN_EXPOSURE, 1.0)
    return float(np.interp(exposure, marks, (0, 25, 50, 75, 100)))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("federation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": lambda value: "–" if math.isnan(value) else f"{100 * value:.1f} %",
        "three": lambda value: f"{value:.3f}",
        "signed": lambda value: _signed(value, 3),
        "signed_two": lambda value: _signed(value, 2),
        "points": lambda value: _signed(value, 0),
        "count": lambda value: f"{value:,}",
        "number": lambda value: f"{value:,.6g}",
        "size": size_text,
        "seconds": lambda value: f"{value:.2f} s" if value < 10 else f"{value:,.1f} s",
        "exposure": lambda value: f"{value:.4f}" if value < 0.1 else f"{value:.3f}",
    }
    return environment


def _signed(value: float, digits: int) -> str:
    rounded = round(value, digits) or 0.0  # never "-0"
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def size_text(size: int) -> str:
    """Bytes as a person reads them."""
    if size < 1000:
        return f"{size} B"
    for unit in ("kB", "MB", "GB"):
        size_in = size / 1000 ** (("kB", "MB", "GB").index(unit) + 1)
        if size_in < 999.5 or unit == "GB":
            return f"{size_in:.3g} {unit}" if size_in < 100 else f"{size_in:,.0f} {unit}"
    raise RuntimeError("unreachable")
