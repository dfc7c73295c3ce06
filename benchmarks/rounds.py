"""What a round of a shared network costs beyond the local training: real processes on loopback.

    python -m benchmarks rounds

Five banks with small tables, so that nearly all of a round is messages: Flower's, and those of a
secure sum over the relay. The figure is the wall time of all rounds at the collecting bank over
their number; local training on 700 rows takes some 10 ms of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clients.sandbox import Member, Sandbox
from federation.codes import code_for_row

BANKS, CUSTOMERS, ROUNDS = 5, 1_000, 10
TARGET_S = 2.0
DRAFT = """
job = "rounds"
platform = "platform"
[bank]
org = "bank0"
dataset = "loans"
{others}
[limits]
customers_max = 1100
customers_min = 900
[neural]
rounds = 10
hidden = [32]
"""


def rows() -> list[dict[str, Any]]:
    """One row."""
    with tempfile.TemporaryDirectory(prefix="lianmo-rounds-") as folder:
        seconds = _seconds(Path(folder))
    return [
        {
            "name": "round",
            "value": round(seconds, 2),
            "unit": "s wall a round",
            "reference": TARGET_S,
            "ratio": round(seconds / TARGET_S, 2),
            "rows": BANKS * CUSTOMERS,
            "note": f"{BANKS} banks, real processes; a secure sum and a Flower message a round",
        }
    ]


def _seconds(folder: Path) -> float:
    codes = code_for_row(9, np.arange(BANKS + 1)).astype("S18").astype(str)
    names = ["platform", *(f"bank{i}" for i in range(BANKS))]
    kinds = ["platform", *["bank"] * BANKS]
    members = [
        Member(org, kind, org, code) for org, kind, code in zip(names, kinds, codes, strict=True)
    ]
    tables = _tables(folder)
    with Sandbox(folder / "homes", members, region="bench") as city:
        city.found()
        city.start(("platform", ("coordinator", "start")))
        where = ("--region", "bench", "--as-of", "2026-01-01")
        for org in names[1:]:
            city.run(org, "registry", "add", str(tables["registry"]), *where)
            city.run(
                org,
                *("data", "add", "loans", "--file", str(tables[org])),
                *("--key", "code", "--label", "bad"),
            )
            words = ("--title", "loans", "--legal-basis", "a benchmark", "--provenance", "made up")
            city.run(
                org,
                *("catalogue", "set", "loans", *words),
                *("--update-frequency", "never", "--level", "*=L2"),
            )
            city.run(org, "catalogue", "publish", "loans")
        city.start(*((org, ("node", "start")) for org in names[1:]))
        others = "".join(f'[[other_bank]]\norg = "{o}"\ndataset = "loans"\n' for o in names[2:])
        draft = folder / "rounds.toml"
        draft.write_text(DRAFT.format(others=others))
        told = city.run("bank0", "job", "submit", str(draft), "--json").json()
        digest = told["manifest_digest"][:16]
        for org in ("platform", *names[2:]):
            city.run(org, "job", "approve", "rounds", "--manifest", digest)
        city.run("bank0", "job", "watch", "rounds")
        report = city.run("bank0", "job", "report", "rounds", "--json").json()
        return float(report["seconds"]["rounds"]) / ROUNDS


def _tables(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(1)
    every = code_for_row(8, np.arange(BANKS * CUSTOMERS)).astype("S18").astype(str)
    paths = {"registry": folder / "registry.txt"}
    paths["registry"].write_text("\n".join(sorted(every)) + "\n")
    for i in range(BANKS):
        x = rng.normal(size=(CUSTOMERS, 6))
        bad = (rng.random(CUSTOMERS) < 1 / (1 + np.exp(1 - x[:, 0]))).astype(int)
        frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(6)])
        frame.insert(0, "code", every[i * CUSTOMERS : (i + 1) * CUSTOMERS])
        frame["bad"] = bad
        paths[f"bank{i}"] = folder / f"bank{i}.csv"
        frame.to_csv(paths[f"bank{i}"], index=False)
    return paths
