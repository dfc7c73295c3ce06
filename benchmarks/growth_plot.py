"""Lines in panels as one SVG: small, sharp, and without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE, HIGH, LEFT, TOP, GAP = 260, 170, 56, 64, 84
COLOURS = ("#0b5cad", "#9a6b00", "#3f7d3a")


@dataclass(frozen=True)
class Line:
    """One series."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes; the y axis begins at nought."""

    x_name: str
    y_name: str
    lines: tuple[Line, ...]


def draw(title: str, panels: Sequence[Panel]) -> str:
    """An SVG with two panels a row and one legend."""
    rows = -(-len(panels) // 2)
    width, height = LEFT + 2 * (WIDE + GAP), TOP + rows * (HIGH + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(LEFT, 22, title, "start", 'font-weight="bold"'),
    ]
    for i, line in enumerate(panels[0].lines):
        x = LEFT + 190 * i
        parts.append(f'<line x1="{x}" y1="40" x2="{x + 24}" y2="40" {_stroke(i)}/>')
        parts.append(_text(x + 30, 44, line.name, "start"))
    for i, panel in enumerate(panels):
        parts += _panel(LEFT + i % 2 * (WIDE + GAP), TOP + i // 2 * (HIGH + GAP), panel)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: float, top: float, panel: Panel) -> list[str]:
    most_x = max(max(line.x) for line in panel.lines)
    tick = _tick(max(max(line.y) for line in panel.lines))
    most_y = tick * 4
    parts = []
    for i in range(5):
        y = top + HIGH - HIGH * i / 4
        parts.append(f'<path d="M{left} {y:.1f}h{WIDE}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, f"{tick * i:.12g}", "end"))
    for x in panel.lines[0].x:
        parts.append(_text(left + WIDE * x / most_x, top + HIGH + 18, _short(x), "middle"))
    parts.append(_text(left + WIDE / 2, top + HIGH + 36, panel.x_name, "middle"))
    parts.append(_text(left - 6, top - 8, panel.y_name, "end"))
    for i, line in enumerate(panel.lines):
        points = [
            (left + WIDE * x / most_x, top + HIGH - HIGH * y / most_y)
            for x, y in zip(line.x, line.y, strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" {_stroke(i)}/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[i]}"/>' for x, y in points
        ]
    return parts


def _tick(most: float) -> float:
    """A quarter of the axis: 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0**-6
    while True:
        for digit in (1, 2, 2.5, 5):
            if digit * power * 4 >= most:
                return digit * power
        power *= 10


def _short(x: float) -> str:
    return f"{x / 1000:.12g}k" if x >= 1000 else f"{x:.12g}"


def _stroke(i: int) -> str:
    return f'stroke="{COLOURS[i]}" stroke-width="2"'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
