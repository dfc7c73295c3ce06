"""The estimate of a job is what the job then carries, and grows with what it should grow with."""

from __future__ import annotations

import pytest

from clients.calibration import Shape, made_up
from federation import drafts
from federation.channel import Traffic
from federation.errors import UsageError
from federation.estimate import Speeds, estimate, usual_bins, work_of
from federation.objects import JobManifest, ScorecardParameters, TreesParameters
from federation.tasks.local import (
    local_manifest,
    local_seeds,
    run_scorecard_in_process,
    run_trees_in_process,
)

FEW = {"min_cohort": 20, "max_bins": 12}


def manifest_of(shape: Shape, **changes: object) -> JobManifest:
    bank, departments = made_up(shape)
    if not shape.trees:
        parameters = ScorecardParameters.model_validate({**FEW, **changes})
        return local_manifest({"bank": bank}, departments, parameters)
    grown = {**FEW, "trees": shape.trees, "max_depth": shape.depth, **changes}
    return local_manifest({"bank": bank}, departments, TreesParameters.model_validate(grown))


def counted(shape: Shape, manifest: JobManifest) -> dict[str, dict[str, Traffic]]:
    """What all channels of a real run carried."""
    bank, departments = made_up(shape)
    seeds = local_seeds([manifest.bank, *departments], 1)
    run = run_trees_in_process if shape.trees else run_scorecard_in_process
    found = run(bank, departments, manifest, seeds).traffic
    return {org: dict(peers) for org, peers in found.items()}


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (Shape(1_200, 900, 3, (3, 2)), {}),  # row keys one point at a time, two departments
        (Shape(4_000, 1_500, 2, (4,)), {"openings": 0, "evaluation": False}),
        (Shape(1_500, 1_200, 2, (3,), 2, 3), {}),
        (Shape(4_000, 1_500, 2, (2, 3), 2, 2), {"hessians": False, "growth": "leaf"}),
    ],
)
def test_every_partys_bytes_are_predicted(shape: Shape, changes: dict[str, object]) -> None:
    manifest = manifest_of(shape, **changes)
    said, really = estimate(manifest), counted(shape, manifest)
    total = 0
    for party in said.parties:
        sent = sum(sum(t.sent_bytes.values()) for t in really[party.org].values())
        received = sum(sum(t.received_bytes.values()) for t in really[party.org].values())
        # Bins and new thresholds depend on data; what a bank sends does not.
        assert party.sent_bytes == pytest.approx(sent, rel=0.3)
        assert party.received_bytes == pytest.approx(received, rel=0.3)
        total += sent
    assert said.total_bytes == pytest.approx(total, rel=0.05)
    bank = said.parties[0]
    sent = sum(sum(t.sent_bytes.values()) for t in really[bank.org].values())
    assert bank.sent_bytes == pytest.approx(sent, rel=0.01)


def test_stages_with_known_bins_are_predicted_one_by_one() -> None:
    shape = Shape(1_500, 1_200, 2, (3,), 2, 3)
    manifest = manifest_of(shape)
    bank, departments = made_up(shape)
    run = run_trees_in_process(bank, departments, manifest, 1)
    bins = {org: [d.bins for d in part.definitions] for org, part in run.parts.items()}
    said = {(f.source, f.stage): f.size_bytes for f in estimate(manifest, bins=bins).flows}
    for org, peers in run.traffic.items():
        for traffic in peers.values():
            for stage, sent in traffic.sent_bytes.items():
                # In `trees` it depends on the data how many thresholds are new: 4 bytes a row.
                opens = (org, stage) == ("department-0", "trees")
                off = 5 * 4 * shape.rows if opens else 150
                assert said[org, stage] == pytest.approx(sent, rel=0.02, abs=off), (org, stage)


def test_more_of_anything_is_never_predicted_to_be_less() -> None:
    small = Shape(3_000, 2_000, 3, (3,), 4, 3)
    one = estimate(manifest_of(small))
    for larger in (
        Shape(6_000, 2_000, 3, (3,), 4, 3),
        Shape(3_000, 2_000, 3, (6,), 4, 3),
        Shape(3_000, 2_000, 3, (3,), 8, 3),
        Shape(3_000, 2_000, 3, (3,), 4, 4),
    ):
        more = estimate(manifest_of(larger))
        assert more.total_bytes > one.total_bytes
        pairs = zip(more.parties, one.parties, strict=True)
        assert all(a.memory_bytes >= b.memory_bytes for a, b in pairs)


def test_time_is_a_sum_over_stages_and_transport_is_that_of_the_busiest_line() -> None:
    manifest = manifest_of(Shape(3_000, 2_000, 3, (3,), 4, 3))
    bins = {org: usual_bins(manifest, org) for org in manifest.departments}
    work = work_of(manifest, bins)
    speeds = Speeds({"trees": {stage: [1.0] * len(terms) for stage, terms in work.items()}})
    said = estimate(manifest, speeds=speeds, bandwidth_bits=8e6)
    assert said.computing_s == pytest.approx(sum(map(sum, work.values())))
    busiest = max(max(p.sent_bytes, p.received_bytes) for p in said.parties)
    assert said.transport_s == pytest.approx(busiest / 1e6)
    nothing = estimate(manifest)
    assert (nothing.computing_s, nothing.transport_s) == (None, None)


def test_a_task_without_an_estimate_is_refused_by_name() -> None:
    manifest = manifest_of(Shape(1_200, 900, 3, (3,)))
    with pytest.raises(UsageError, match="no estimate for a neural job"):
        estimate(manifest.model_copy(update={"task": "neural"}))


def test_a_draft_of_trees_names_what_is_within_the_budget_and_begins_with_the_best() -> None:
    def drafted(customers_min: int) -> tuple[drafts.JobDraft, str]:
        text = drafts.template(
            "a-job",
            bank="bank",
            dataset="loans",
            departments=[("tax", "paid")],
            platform=None,
            customers_max=100_000,
            customers_min=customers_min,
            task="trees",
        )
        return drafts.parse(text), text

    many, text = drafted(50_000)
    assert many.trees == TreesParameters()
    assert "# exposure 0.0192, 961 questions: as it is" in text
    fewer, _ = drafted(12_000)
    assert fewer.trees is not None
    assert not fewer.trees.hessians
    few, text = drafted(100)
    assert "100 customers are too few" in text
    assert few.trees == TreesParameters()
