"""The figures of a report on boosted trees; the parts and colours are those of `plots.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.plots import (
    ALONE,
    FAINT,
    JOINT,
    POOLED,
    Figure,
    _axis,
    _figure,
    _line,
    _short,
    owner_colours,
)

if TYPE_CHECKING:
    from federation.report import Report
    from federation.trees_facts import TreesFacts

SHOWN_FEATURES = 30


def figures(report: Report, trees: TreesFacts) -> dict[str, Figure]:
    """All figures of trees by the id of their place."""
    found = {"importance": importance(report, trees), "leaves": leaves(trees)}
    if len(trees.learning) > 1:
        found["losses"] = losses(trees)
        if trees.learning[-1].auc is not None:
            found["aucs"] = aucs(trees)
    return found


def importance(report: Report, trees: TreesFacts) -> Figure:
    """Share of the gain of every feature, the greatest on top, in its owner's colour."""
    owners = [party.org for party in report.parties if party.role != "platform"]
    names = {party.org: party.name for party in report.parties}
    colours = owner_colours(owners)
    ranked = [item for item in trees.importance if item.splits][:SHOWN_FEATURES][::-1]
    data: list[Figure] = []
    for org in owners:
        own = [item for item in ranked if item.owner == org]
        if own:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": names[org],
                    "x": [round(item.gain, 5) for item in own],
                    "y": [_short(item.name) for item in own],
                    "customdata": [item.splits for item in own],
                    "marker": {"color": colours[org]},
                    "hovertemplate": "%{y}: %{x:.1%} of all gain, %{customdata} splits<extra>"
                    + names[org]
                    + "</extra>",
                }
            )
    return _figure(
        data,
        x=_axis("Share of all gain")
        | {"tickformat": ".0%", "rangemode": "tozero", "nticks": 4, "tickangle": 0},
        y=_axis("")
        | {
            "categoryorder": "array",
            "categoryarray": [_short(item.name) for item in ranked],
            "automargin": True,
            "gridcolor": "white",
            "dtick": 1,
        },
        showlegend=False,  # whose colour is whose stands below, where a phone has room for it
        height=110 + 21 * max(len(ranked), 6),
    )


def losses(trees: TreesFacts) -> Figure:
    """Log loss after each tree, of those it was grown on, of the watched and of the held out."""
    steps = [float(item.trees) for item in trees.learning]
    data = [_line(steps, [item.train for item in trees.learning], "Training", ALONE)]
    for name, values, colour in (
        ("Watched for stopping", [item.validation for item in trees.learning], POOLED),
        ("Held out", [item.test for item in trees.learning], JOINT),
    ):
        known = [value for value in values if value is not None]
        if len(known) == len(steps):
            data.append(_line(steps, known, name, colour))
    return _figure(
        data,
        x=_axis("Trees"),
        y=_axis("Log loss a customer"),
        legend={"x": 0.98, "y": 0.98, "xanchor": "right", "yanchor": "top"},
    )


def aucs(trees: TreesFacts) -> Figure:
    """AUC on the held-out customers after each tree, beside the bank's own trees."""
    steps = [float(item.trees) for item in trees.learning[1:]]
    joint = [item.auc or 0.0 for item in trees.learning[1:]]
    alone = [item.auc_alone or 0.0 for item in trees.learning[1:]]
    data = [_line(steps, alone, "Bank alone", ALONE), _line(steps, joint, "Joint", JOINT)]
    asked = [item.trees for item in trees.learning if item.joint]
    shapes = []
    if asked and asked[-1] < trees.learning[-1].trees:
        line = {"color": FAINT, "width": 1, "dash": "dash"}
        at = {"x0": asked[-1], "x1": asked[-1], "y0": 0, "y1": 1, "yref": "paper"}
        shapes.append({"type": "line", "line": line} | at)
    return _figure(
        data,
        x=_axis("Trees"),
        y=_axis("AUC on held-out customers"),
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        shapes=shapes,
    )


def leaves(trees: TreesFacts) -> Figure:
    """Leaves of all trees by their depth."""
    return _figure(
        [
            {
                "type": "bar",
                "x": [item.depth for item in trees.leaves],
                "y": [item.leaves for item in trees.leaves],
                "customdata": [item.customers for item in trees.leaves],
                "marker": {"color": JOINT},
                "hovertemplate": "depth %{x}: %{y} leaves of %{customdata:,} customers"
                "<extra></extra>",
            }
        ],
        x=_axis("Depth") | {"dtick": 1},
        y=_axis("Leaves of all trees") | {"rangemode": "tozero"},
        showlegend=False,
        height=320,
    )
