"""How the cost of boosted trees grows: over rows, features, bins and departments.

    python -m benchmarks.growth          measures, writes out/growth.json
    python -m benchmarks.growth plot     draws docs/images/growth.svg from it

CPU seconds of all parties together, two trees of depth 4, beside XGBoost `hist` (or scikit-learn)
on pooled plaintext: a busy machine moves these less than seconds on the wall. One thing changes at
a time, from 50,000 customers, 10 + 10 features, 32 bins, one department.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.growth_plot import Line, Panel, draw
from benchmarks.trees import Setting, measure

OUT, PLOT = Path("out/growth.json"), Path("docs/images/growth.svg")
BASE = Setting(rows=50_000, bank_features=10, department_features=10, trees=2, depth=4, repeat=2)
STEPS: dict[str, tuple[int, ...]] = {
    "rows": (25_000, 50_000, 100_000, 200_000),
    "features": (10, 20, 40, 80),  # half of them the bank's
    "bins": (8, 16, 32, 48),
    "departments": (1, 2, 5),
}


def setting_of(what: str, value: int) -> Setting:
    if what == "features":
        return replace(BASE, bank_features=value // 2, department_features=value // 2)
    return replace(BASE, **{what: value})


def points() -> list[dict[str, Any]]:
    """One for each step."""
    found = []
    for what, values in STEPS.items():
        for value in values:
            one = measure(setting_of(what, value))
            if not one.is_equal:
                raise SystemExit(f"{value} {what}: not the plaintext model")
            result = one.run.result
            carried = sum(result.sent_bytes.values()) + sum(result.received_bytes.values())
            point = {
                "what": what,
                "value": value,
                "cpu_s": round(one.cpu_s, 3),
                "wall_s": round(one.total_s, 3),
                "mb": round(carried / 1e6, 1),
                "reference": one.reference,
                "reference_cpu_s": round(one.reference_cpu_s, 3),
            }
            print(f"{value:>8} {what:12} {point['cpu_s']:7.2f} s CPU {point['mb']:8.1f} MB")
            found.append(point)
    return found


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table: what doubling costs, and out/growth.json beside it."""
    found = points()
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    rows = []
    for what in STEPS:
        first, *_, last = [p for p in found if p["what"] == what]
        rows.append(
            {
                "name": f"growth_{what}",
                "value": last["cpu_s"],
                "unit": "s CPU, all parties",
                "reference": first["cpu_s"],
                "ratio": round(last["cpu_s"] / first["cpu_s"], 2),
                "rows": BASE.rows,
                "note": f"{last['value']} against {first['value']} {what}; out/growth.json",
            }
        )
    return rows


def panels(found: list[dict[str, Any]]) -> list[Panel]:
    """A panel for each thing that changes."""
    made = []
    for what in STEPS:
        some = [p for p in found if p["what"] == what]
        x = [float(p["value"]) for p in some]
        ours = Line("joint, all parties", x, [p["cpu_s"] for p in some])
        plain = Line(f"{some[0]['reference']}, pooled", x, [p["reference_cpu_s"] for p in some])
        made.append(Panel(what, "s CPU", (ours, plain)))
    return made


if __name__ == "__main__":
    if sys.argv[1:] != ["plot"]:
        rows()
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.write_text(draw("Two trees of depth 4", panels(json.loads(OUT.read_text()))))
