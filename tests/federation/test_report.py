"""The page is complete in itself, says what the figures say, and shows no row."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest

from federation import plots
from federation.codes import code_for_row
from federation.ledger import Disclosure, What
from federation.objects import (
    Approval,
    CoverRule,
    Decision,
    JobManifest,
    JobParty,
    Limits,
    QueryParameters,
    RegistrySnapshot,
    Role,
    ScorecardParameters,
)
from federation.report import (
    LIMITS,
    MEANING,
    Bin,
    Exposure,
    Feature,
    PartyFacts,
    Points,
    Report,
    Scores,
    StageCost,
    assess,
    disclosure_lines,
    headline,
    party_facts,
    render_html,
    report_json,
    size_text,
)

SCALE = Points(600, 20, 40)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and visible text; raises when a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def report(gain: float = 1.0, *, lab: bool = False, seed: int = 2) -> Report:
    """A report on invented scores; `gain` is what the departments add."""
    rng = np.random.default_rng(seed)
    bad = (rng.random(1200) < 0.2).astype(np.uint8)
    own = 600 - 25 * rng.normal(bad * 0.5, 1)
    joint = np.round(own - 30 * gain * bad + rng.normal(0, 12, len(bad)) * (gain != 0))
    test = np.arange(len(bad)) % 3 == 0
    disclosures = [
        Disclosure("tax", "bank_a", What.BIN_COUNTS, 66, 20),
        Disclosure("tax", "bank_a", What.EVALUATION_OPENING, 1200, 10, per_enterprise=True),
    ]
    return Report(
        job="sme-scorecard-1",
        task="scorecard",
        created="2026-11-23T12:00:00Z",
        is_lab=lab,
        purpose="credit-model-training",
        manifest_digest="ab" * 32,
        package_digest="cd" * 32,
        registry_digest="ef" * 32,
        registry_rows=5000,
        cover="registry",
        cover_rows=5000,
        parties=(
            PartyFacts("bank_a", "Bank A", "bank", "loans", 1, "proposed", "2026-11-23T10:00:00Z"),
            PartyFacts("tax", "Tax <bureau>", "department", "tax", 2, "approved", "2026-11-23"),
            PartyFacts("city", "Platform", "platform", "", 0, "approved", "2026-11-23"),
        ),
        assessment=assess(
            bad[~test],
            bad[test],
            joint=Scores(joint[~test], joint[test]),
            bank_only=Scores(own[~test], own[test]),
            pooled=Scores(joint[~test], joint[test]) if lab else None,
            scale=SCALE,
        ),
        scale=SCALE,
        intercept=540.0,
        features=(
            Feature(
                "turnover",
                "bank_a",
                0.12,
                0.8,
                "",
                (Bin("< 5", 300, 90, -0.4, -12.0), Bin(">= 5", 400, 60, 0.3, 9.0)),
            ),
            Feature("vat_paid", "tax", 0.31, 0.9, "", (Bin("missing", 500, 150, -0.1, -3.0),)),
            Feature("constant", "tax", 0.0, 0.0, "all alike", (Bin("any value", 0, 0, 0.0, 0.0),)),
        ),
        openings=2,
        notes=("tax/constant: left out",),
        stages=(StageCost("row keys", 1.25, 1500, 2_500_000), StageCost("fit", 0.5, 10, 20)),
        disclosures=disclosure_lines(disclosures, disclosures, 1200),
        exposure=Exposure(queries=30, customers_min=1200),
        limits=LIMITS,
    )


@cache
def page() -> str:
    return render_html(report(lab=True))


def test_the_page_loads_nothing_from_anywhere() -> None:
    found = Page(page())
    policy = [a["content"] for t, a in found.tags if a.get("http-equiv")]
    assert policy == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    ]
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", page(), re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    own = [script for script in found.scripts if len(script) < 1_000_000]
    assert len(own) == len(found.scripts) - 1  # Plotly's is embedded once
    assert not any("http" in script for script in own)


def test_the_page_says_what_the_figures_say() -> None:
    found, text = report(lab=True), Page(page()).text
    quality = found.assessment
    assert quality is not None
    assert headline(found) in text
    for value in (quality.joint.auc.value, quality.bank_only.auc.value, quality.joint.ks.value):
        assert f"{value:.3f}" in text
    for word in (
        "row keys",
        "2.5 MB",
        "turnover",
        "vat_paid",
        "evaluation opening",
        "ab" * 32,
        "constant: left",
    ):
        assert word in text
    for word in ("校准", "评分分布", "群体稳定性", "暴露度", "证据权重", "局限", "联合评分卡"):
        assert word in text
    assert "A lab run" in text
    assert all(limit in text for limit in LIMITS)
    assert "Tax <bureau>" in text  # escaped in the source, so it is text here
    assert "Tax <bureau>" not in page()


def test_a_real_jobs_page_speaks_of_approvals_and_not_of_a_lab() -> None:
    text = Page(render_html(report())).text
    assert "A lab run" not in text
    assert "approved 2026-11-23" in text
    assert "Pooled plaintext" not in text


def test_no_credit_code_and_no_row_is_on_the_page() -> None:
    text = page().replace(plots.plotly_script(), "")
    codes = [code.decode() for code in code_for_row(2, np.arange(3))]
    assert all(re.search(r"\b91\d{6}Y", code) for code in codes)
    assert not re.search(r"\b91\d{6}[0-9A-Z]{10}\b", text)
    figures = plots.figures(report(lab=True))
    points = [len(trace["x"]) for figure in figures.values() for trace in figure["data"]]
    assert max(points) <= 201  # of 400 test customers: no figure has a point for each


@pytest.mark.parametrize("name", plots.figures(report(lab=True)))
def test_every_figure_is_valid_labelled_and_has_data(name: str) -> None:
    figure = plots.figures(report(lab=True))[name]
    go.Figure(json.loads(json.dumps(figure, allow_nan=False)))  # refuses unknown properties
    assert f'id="{name}"' in page()
    assert figure["data"]
    assert all(len(trace["x"]) == len(trace["y"]) > 0 for trace in figure["data"])
    assert figure["layout"]["xaxis"]["title"]["text"]


def test_the_json_has_the_same_figures_and_no_nan() -> None:
    found = report(lab=True)
    body = json.loads(json.dumps(report_json(found), allow_nan=False))
    assert found.assessment is not None
    assert body["joint"]["auc"] == found.assessment.joint.auc.value
    assert body["pooled"]["ks"] == found.assessment.joint.ks.value
    assert body["rows"] == {"train": 800, "test": 400}
    assert body["exposure"] == 0.025
    assert body["exposure_verdict"] == "allowed, with a warning in the review"
    assert body["disclosures"][1]["bits_per_enterprise"] == 10.0
    assert body["seconds"] == {"row keys": 1.25, "fit": 0.5, "total": 1.75}
    assert body["bytes"] == {"sent": 1510, "received": 2_500_020}
    assert body["report"]["features"][0]["bins"][1]["woe"] == 0.3
    assert body["report"]["assessment"]["joint"]["auc"]["low"] < body["joint"]["auc"]
    assert report_json(report())["pooled"] is None


def test_the_headline_claims_no_gain_that_chance_explains() -> None:
    assert "cannot be told from chance" in headline(report(gain=0.0))
    assert "more in the right order" in headline(report(gain=1.0))
    assert "is the worse one" in headline(report(gain=-2.0))


def test_without_evaluation_scores_the_page_says_so_and_shows_the_rest() -> None:
    found = dataclasses.replace(report(), assessment=None)
    html = render_html(found)
    text = Page(html).text
    assert "the gain was not measured" in text
    assert "vat_paid" in text
    assert 'id="roc"' not in html
    assert set(plots.figures(found)) == {"iv", "stages"}
    assert json.loads(json.dumps(report_json(found), allow_nan=False))["joint"] is None


def test_points_and_probabilities_are_each_others_inverse() -> None:
    logit = np.linspace(-6, 6, 25)
    assert SCALE.probability(SCALE.of_risk(logit)) == pytest.approx(1 / (1 + np.exp(-logit)))
    assert SCALE.probability(np.array([600.0]))[0] == pytest.approx(1 / 21)
    doubled = 1 / SCALE.probability(np.array([640.0]))[0] - 1
    assert doubled == pytest.approx(40)


def test_an_approval_of_another_manifest_is_not_shown_as_one() -> None:
    manifest = JobManifest(
        job="j1",
        created="2026-11-23T10:00:00Z",
        purpose="credit-model-training",
        parties=tuple(
            JobParty(org=org, role=role, dataset=org, catalogue_digest="00" * 32, fields=("x",))
            for org, role in (("bank_a", Role.BANK), ("tax", Role.DEPARTMENT))
        ),
        registry=RegistrySnapshot(digest="11" * 32, rows=9, region="City", as_of="2026-01-01"),
        cover=CoverRule(rows=9),
        alignment="voprf",
        package_sha256="22" * 32,
        parameters=ScorecardParameters(),
        query=QueryParameters(t_bits=26, reply_bits=40, vmax=1),
        limits=Limits(customers_max=9, row_keys=9, customers_min=9, tokens=2),
        disclosures=(),
        outputs=("bank_a",),
        not_before="2026-11-23T10:00:00Z",
        expires="2026-11-24T10:00:00Z",
    )
    approval = Approval(
        manifest=manifest.digest(),
        org="tax",
        decision=Decision.APPROVE,
        created="2026-11-23T11:00:00Z",
        valid_from="2026-11-23T11:00:00Z",
        valid_until="2026-11-24T10:00:00Z",
        nonce="0" * 32,
    )
    other = approval.model_copy(update={"manifest": "99" * 32})
    assert [p.decision for p in party_facts(manifest, [approval])] == ["proposed", "approved"]
    assert [p.decision for p in party_facts(manifest, [other])] == ["proposed", ""]
    assert [p.decision for p in party_facts(manifest, [])] == ["", ""]


def test_every_kind_of_disclosure_is_explained() -> None:
    assert {what.value for what in What} <= set(MEANING)


def test_a_page_of_many_parties_and_features_has_a_colour_and_a_card_for_each() -> None:
    few = report()
    many = dataclasses.replace(
        few,
        features=tuple(
            dataclasses.replace(few.features[1], name=f"feature_{i}") for i in range(60)
        ),
    )
    assert Page(render_html(many)).text.count("IV 0.310") == 60
    assert len(plots.owner_colours([f"org{i}" for i in range(20)])) == 20


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456_789, "123 MB"), (10**13, "10,000 GB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert size_text(size) == text
    assert not math.isnan(size)
