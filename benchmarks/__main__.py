"""All benchmarks in one run: `make bench`. A table on the terminal, a list in out/bench.json.

python -m benchmarks [NAME ...]      NAME: a module of this folder

`growth`, `large` and `refusals` take minutes and run by name only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ALL = (
    *("linear_query", "row_keys", "scorecard", "trees", "secagg", "rounds"),
    *("relay", "verification", "scoring", "peers"),
)
OUT = Path("out/bench.json")


def main(names: list[str]) -> int:
    """Run each module in a process of its own, so that peaks and caches do not mix."""
    wanted = names or [n for n in ALL if importlib.util.find_spec(f"benchmarks.{n}")]
    found: list[dict[str, object]] = []
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'':18}{'value':>12}  {'unit':28}{'reference':>12}{'ratio':>9}  note")
    for name in wanted:
        code = (
            f"import json, benchmarks.{name} as b; rows = b.rows(); print('\\n' + json.dumps(rows))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            print(f"{name}: failed ({last})", file=sys.stderr)
            return 1
        for row in json.loads(done.stdout.strip().splitlines()[-1]):
            found.append(row)
            print(
                f"{row['name']:18}{row['value']:>12}  {row['unit']:28}"
                f"{row['reference']:>12}{row['ratio']:>9}  {row['note']}"
            )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{OUT} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
