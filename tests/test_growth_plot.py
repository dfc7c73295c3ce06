"""The plot of docs/performance.md is drawn by a few lines of ours: as its numbers say?"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from benchmarks.growth_plot import Line, Panel, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_every_point_stands_where_its_numbers_say() -> None:
    ours = Line("ours & theirs", [10.0, 20.0, 40.0], [1.0, 2.0, 4.0])
    drawn = draw("a < b", [Panel("rows", "s", (ours,)), Panel("bins", "s", (ours,))])
    root = ET.fromstring(drawn)  # noqa: S314 - our own drawing
    lines = root.findall(f"{SVG}polyline")
    assert len(lines) == 2
    points = [tuple(map(float, p.split(","))) for p in lines[0].attrib["points"].split()]
    # the axis ends at 4 on both: equal steps to the right and up, and a line through the origin
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x2 - x1 == 2 * (x1 - x0)
    assert abs((y1 - y2) - 2 * (y0 - y1)) < 0.2
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"ours & theirs", "a < b", "rows", "bins", "10", "20", "40"} <= texts


def test_axes_end_at_a_round_number_above_the_largest() -> None:
    for most, end in ((0.7, "0.8"), (1.0, "1"), (3.1, "4"), (9.0, "10"), (130.0, "200")):
        drawn = draw("t", [Panel("x", "y", (Line("l", [1.0], [most]),))])
        texts = [text.text for text in ET.fromstring(drawn).iter(f"{SVG}text")]  # noqa: S314
        assert end in texts, (most, texts)
