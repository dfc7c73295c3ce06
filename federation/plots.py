"""The figures of a report, as Plotly specifications: plain data, drawn in the reader's browser."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from federation.neural_facts import NeuralFacts
    from federation.report import Assessment, Report

Figure = dict[str, Any]

JOINT, ALONE, POOLED = "#0f766e", "#64748b", "#b45309"
GOOD, BAD = "#4a86b8", "#c2513b"
INK, FAINT, GRID = "#1f2937", "#94a3b8", "#e5e7eb"
_OWNERS = ("#475569", "#0f766e", "#b45309", "#6d4aa8", "#2563a8", "#a83265", "#5b7a1f", "#8a5a2b")

MODELS = {
    "joint": ("Joint", JOINT, "solid"),
    "bank_only": ("Bank alone", ALONE, "solid"),
    "pooled": ("Pooled plaintext", POOLED, "dot"),
}


def owner_colours(owners: Sequence[str]) -> dict[str, str]:
    """A colour for each owner, the bank's first."""
    return {org: _OWNERS[i % len(_OWNERS)] for i, org in enumerate(owners)}


@cache
def plotly_script() -> str:
    """Plotly's own script, to be placed within a page."""
    script = str(get_plotlyjs())
    if "</script" in script.lower():
        raise RuntimeError("the script cannot be placed within a page")
    return script


def figures(report: Report) -> dict[str, Figure]:
    """All figures of the page by the id of their place."""
    found = {"stages": stages(report)}
    if report.trees is None and report.network is None:
        found["iv"] = information_values(report)
    if (quality := report.assessment) is not None:
        found |= {
            "roc": roc(quality),
            "ks": ks(quality),
            "distribution": distribution(quality),
            "calibration": calibration(quality),
            "stability": stability(quality),
            "gains": gains(quality),
        }
    return found


def roc(quality: Assessment) -> Figure:
    """ROC curves of all models; the legend says the AUC."""
    models = {"joint": quality.joint, "bank_only": quality.bank_only, "pooled": quality.pooled}
    data: list[Figure] = []
    for model in ("bank_only", "joint", "pooled"):  # the dotted one on top: it hides nothing
        found = models[model]
        if found is not None:
            label, colour, dash = MODELS[model]
            curve = quality.roc[model]
            name = f"{label}, AUC {found.auc.value:.3f}"
            data.append(_line(curve.x, curve.y, name, colour, dash))
    data.append(_line((0, 1), (0, 1), "Chance", FAINT, "dash", width=1, hover=False))
    return _figure(
        data,
        x=_share("Goods called bad (false positive rate)", [0, 1]),
        y=_share("Bads called bad (true positive rate)", [0, 1.005]),
        legend={"x": 0.98, "y": 0.04, "xanchor": "right", "yanchor": "bottom"},
        height=400,
    )


def ks(quality: Assessment) -> Figure:
    """Cumulative shares of both classes over the joint score, KS where they are farthest apart."""
    found = quality.cumulative
    gaps = [bad - good for bad, good in zip(found.bads, found.goods, strict=True)]
    at = gaps.index(max(gaps))
    figure = _figure(
        [
            _line(found.score, found.bads, "Bads", BAD),
            _line(found.score, found.goods, "Goods", GOOD),
        ],
        x=_axis("Score in points"),
        y=_share("At or below the score", [0, 1.005]),
        legend={"x": 0.02, "y": 0.98, "xanchor": "left", "yanchor": "top"},
        height=400,
    )
    x = found.score[at]
    figure["layout"]["shapes"] = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "y0": found.goods[at],
            "y1": found.bads[at],
            "line": {"color": INK, "width": 2, "dash": "dot"},
        }
    ]
    figure["layout"]["annotations"] = [
        {
            # Below both curves, where nothing else can be.
            "xref": "paper",
            "yref": "paper",
            "x": 0.98,
            "y": 0.05,
            "text": f"KS {quality.joint.ks.value:.3f} at {x:.0f} points",
            "showarrow": False,
            "xanchor": "right",
            "yanchor": "bottom",
            "font": {"size": 14, "color": INK},
        }
    ]
    return figure


def distribution(quality: Assessment) -> Figure:
    """Share of each class in bands of the joint score."""
    bands = quality.distribution
    bads = sum(band.bads for band in bands)
    goods = sum(band.rows - band.bads for band in bands)
    middle = [(band.low + band.high) / 2 for band in bands]
    text = [f"{band.low:g} to {band.high:g} points" for band in bands]

    def bars(name: str, counts: list[int], total: int, colour: str) -> Figure:
        return {
            "type": "bar",
            "name": name,
            "x": middle,
            "y": [count / total for count in counts],
            "width": [band.high - band.low for band in bands],
            "marker": {"color": colour, "line": {"color": "white", "width": 0.5}},
            "opacity": 0.62,
            "text": text,
            "textposition": "none",
            "hovertemplate": "%{text}: %{y:.1%}<extra>" + name + "</extra>",
        }

    return _figure(
        [
            bars("Goods", [band.rows - band.bads for band in bands], goods, GOOD),
            bars("Bads", [band.bads for band in bands], bads, BAD),
        ],
        x=_axis("Score in points: more is better"),
        y=_share("Share of the class"),
        legend={"x": 0.02, "y": 0.98, "xanchor": "left", "yanchor": "top"},
        barmode="overlay",
    )


def calibration(quality: Assessment) -> Figure:
    """Observed over expected bad rate, with intervals, and the line of perfect agreement."""
    bands = quality.calibration.bands
    top = 1.08 * max(
        [*(band.expected for band in bands), *(band.observed.high for band in bands), 0.01]
    )
    top = min(top, 1.02)
    return _figure(
        [
            _line((0, top), (0, top), "Perfect", FAINT, "dash", width=1, hover=False),
            {
                "type": "scatter",
                "mode": "markers",
                "name": "Observed, 95 % interval",
                "x": [band.expected for band in bands],
                "y": [band.observed.value for band in bands],
                "text": [f"{band.rows:,} customers" for band in bands],
                "marker": {"color": JOINT, "size": 9},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [band.observed.high - band.observed.value for band in bands],
                    "arrayminus": [band.observed.value - band.observed.low for band in bands],
                    "color": JOINT,
                    "thickness": 1.2,
                    "width": 3,
                },
                "hovertemplate": "expected %{x:.1%}, observed %{y:.1%}<br>%{text}<extra></extra>",
            },
        ],
        x=_share("Expected bad rate", [0, top]),
        y=_share("Observed bad rate", [0, top]),
        legend={"x": 0.02, "y": 0.98, "xanchor": "left", "yanchor": "top"},
    )


def stability(quality: Assessment) -> Figure:
    """Shares of training and test customers in the bands of the score."""
    bands = quality.stability.bands
    labels = [
        f"{'≤ ' if i == 0 else ''}{band.high:.0f}" if i < len(bands) - 1 else f"> {band.low:.0f}"
        for i, band in enumerate(bands)
    ]
    # Bands of few points can share a rounded edge; their places must differ all the same.
    places = list(range(len(bands)))

    def bars(name: str, shares: list[float], colour: str) -> Figure:
        return {
            "type": "bar",
            "name": name,
            "x": places,
            "y": shares,
            "marker": {"color": colour},
            "hovertemplate": "%{y:.1%}<extra>" + name + "</extra>",
        }

    axis = _axis("Score up to (points), deciles of the training customers")
    return _figure(
        [
            bars("Training", [band.expected for band in bands], ALONE),
            bars("Test", [band.actual for band in bands], JOINT),
        ],
        x=axis | {"tickvals": places, "ticktext": labels, "tickangle": 0},
        y=_share("Share of customers"),
        legend={"x": 0.5, "y": 1.12, "xanchor": "center", "yanchor": "top", "orientation": "h"},
        bargap=0.25,
    )


def information_values(report: Report) -> Figure:
    """IV of every feature, the greatest on top, in its owner's colour."""
    owners = [party.org for party in report.parties if party.role != "platform"]
    names = {party.org: party.name for party in report.parties}
    colours = owner_colours(owners)
    ranked = sorted(report.features, key=lambda feature: feature.iv)
    order = [_short(feature.name) for feature in ranked]
    data: list[Figure] = []
    for org in owners:
        own = [feature for feature in ranked if feature.owner == org]
        if own:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": names[org],
                    "x": [feature.iv for feature in own],
                    "y": [_short(feature.name) for feature in own],
                    "marker": {"color": colours[org]},
                    "hovertemplate": "%{y}: IV %{x:.3f}<extra>" + names[org] + "</extra>",
                }
            )
    return _figure(
        data,
        x=_axis("Information value") | {"rangemode": "tozero"},
        y=_axis("")
        | {
            "categoryorder": "array",
            "categoryarray": order,
            "automargin": True,
            "gridcolor": "white",
            "dtick": 1,
        },
        legend={"x": 0.98, "y": 0.02, "xanchor": "right", "yanchor": "bottom"},
        height=110 + 21 * max(len(ranked), 6),
    )


def gains(quality: Assessment) -> Figure:
    """Share of all bads found among the riskiest customers."""
    rows = quality.gains
    total = sum(row.rows for row in rows)
    x, y, seen = [0.0], [0.0], 0
    for row in rows:
        seen += row.rows
        x.append(seen / total)
        y.append(row.captured)
    return _figure(
        [
            _line(x, y, "Joint score", JOINT) | {"mode": "lines+markers"},
            _line((0, 1), (0, 1), "Chance", FAINT, "dash", width=1, hover=False),
        ],
        x=_share("Customers, the riskiest first", [0, 1.01]),
        y=_share("Bads found", [0, 1.02]),
        legend={"x": 0.98, "y": 0.04, "xanchor": "right", "yanchor": "bottom"},
    )


def stages(report: Report) -> Figure:
    """Seconds of each stage, the first on top."""
    found = report.stages[::-1]
    return _figure(
        [
            {
                "type": "bar",
                "orientation": "h",
                "x": [stage.seconds for stage in found],
                "y": [stage.stage for stage in found],
                "marker": {"color": JOINT},
                "hovertemplate": "%{y}: %{x:.2f} s<extra></extra>",
            }
        ],
        x=_axis("Seconds") | {"rangemode": "tozero"},
        y=_axis("") | {"automargin": True, "gridcolor": "white", "dtick": 1},
        height=100 + 26 * max(len(found), 3),
        showlegend=False,
    )


# --- parts ----------------------------------------------------------------------------------------


def _line(
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    colour: str,
    dash: str = "solid",
    *,
    width: float = 2.5,
    hover: bool = True,
) -> Figure:
    line: Figure = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [round(value, 5) for value in x],
        "y": [round(value, 5) for value in y],
        "line": {"color": colour, "width": width, "dash": dash},
    }
    return line if hover else line | {"hoverinfo": "skip"}


def _axis(title: str) -> Figure:
    return {
        "title": {"text": title, "standoff": 12},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": FAINT,
        "ticks": "outside",
        "tickcolor": FAINT,
        "ticklen": 4,
    }


def _share(title: str, limits: list[float] | None = None) -> Figure:
    axis = _axis(title) | {"tickformat": ".0%", "rangemode": "tozero"}
    return axis if limits is None else axis | {"range": limits}


def _figure(
    data: list[Figure],
    *,
    x: Figure,
    y: Figure,
    legend: Figure | None = None,
    height: int = 360,
    **layout: Any,
) -> Figure:
    return {
        "data": data,
        "layout": {
            "xaxis": x,
            "yaxis": y,
            "height": height,
            "margin": {"l": 64, "r": 20, "t": 20, "b": 56},
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "legend": {"bgcolor": "rgba(255,255,255,0.8)"} | (legend or {}),
            "hoverlabel": {"font": {"family": FONT}},
        }
        | layout,
    }


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


FONT = (
    "system-ui, -apple-system, 'Segoe UI', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', "
    "sans-serif"
)


def rounds(report: Report, network: NeuralFacts) -> Figure:
    """AUC over all banks after each round, and this bank's own network for comparison."""
    steps = [float(item.rounds) for item in network.learning]
    data = [_line(steps, [item.auc for item in network.learning], "All banks", JOINT)]
    shapes = []
    if report.assessment is not None:
        alone = report.assessment.bank_only.auc.value
        line = {"color": ALONE, "width": 1, "dash": "dash"}
        at = {"x0": 0, "x1": 1, "xref": "paper", "y0": alone, "y1": alone}
        shapes.append({"type": "line", "line": line} | at)
    return _figure(data, x=_axis("Rounds"), y=_axis("AUC"), shapes=shapes)
