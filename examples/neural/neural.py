"""Three banks train one network on their own customers: `make example-neural`.

Real processes on this machine: a coordinator with its relay, a resident node for each bank. No
bank shows its customers, labels, scores or its own update: only sums over all banks open.

1. found the federation; every bank registers the same fields of its own customers
2. bank A proposes a network, every other bank and the platform approve exactly that manifest
3. the nodes train in rounds of a Flower strategy, sums by secure aggregation
4. the same again with a budget of differential privacy: epsilon 5, delta 1e-5 for each customer
5. was it worth it, beside one network on all customers together, and beside each bank alone?
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clients.sandbox import Sandbox
from examples.banks import (
    BANKS,
    PLATFORM,
    all_features,
    auc_of,
    publish_loans,
    run_job,
    sandbox,
    write_bank_tables,
)
from examples.city.city import KEY, LABEL
from examples.story import console, step
from federation.errors import LianmoError
from federation.objects import NeuralParameters
from federation.tables import Column, NumberColumn
from federation.tasks.neural_data import (
    categories_of,
    inputs_of,
    numbers_of,
    scaling_over,
)
from federation.tasks.neural_files import neural_from_json
from federation.tasks.neural_model import Shape, build, logits, train_locally
from federation.tasks.secure_sum import Alone
from protocols.streams import Stream

OUT = Path("out/neural")
CUSTOMERS = (5000, 13_000)  # what every bank states: at least, at most
NETWORK = """
[neural]
model = "tabular"
categories = ["education", "marriage"]
rounds = 12
epochs = 1
learning_rate = "0.003"
"""
PRIVATE = """
[neural]
model = "mlp"
categories = ["education", "marriage"]
buckets = 8
hidden = [16]
rounds = 10
steps = 20
epsilon = "5"
delta = "0.00001"
sample_rate = "0.05"
learning_rate = "0.02"
"""


def main() -> int:
    """Run the example; 0 if the shared network comes near the pooled one."""
    began = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    console.print("[bold]lianmo (联模)[/bold]: three banks, one network, no department")
    tables = write_bank_tables(OUT / "tables", all_features())
    with sandbox(OUT, (PLATFORM, *BANKS)) as city:
        try:
            step(1, "Found the federation; every bank registers its own table")
            city.found()
            city.start((PLATFORM.org, ("coordinator", "start")))
            publish_loans(city, tables)
            city.start(*((bank.org, ("node", "start")) for bank in BANKS))
            step(2, "One bank proposes, everybody else approves, the nodes train")
            run_job(city, OUT, "network", NETWORK, CUSTOMERS)
            step(3, "The same with a privacy budget for each customer")
            run_job(city, OUT, "network-private", PRIVATE, CUSTOMERS)
            summary = conclude(city, tables, began)
        except LianmoError as error:
            console.print(f"[red]error:[/red] {error}")
            return error.exit_code
    auc = summary["auc"]
    return 0 if auc["joint"] > auc["pooled"] - 0.01 else 1


def conclude(city: Sandbox, tables: dict[str, Path], began: float) -> dict[str, Any]:
    """Compare on every bank's own test customers: joint, alone, and pooled in the clear."""
    step(4, "Was it worth it?")
    tested = {bank.org: pd.read_parquet(scores_of(city, bank.org, "network")) for bank in BANKS}
    frames = {org: pd.read_csv(tables[org]).set_index(KEY) for org in tested}
    pooled = pooled_network(frames, tested)
    rows = {}
    for org, scores in tested.items():
        held = scores[scores["test"]]
        rows[org] = {
            "customers": len(scores),
            "joint": auc_of(held["bad"], -held["points"]),
            "bank_only": auc_of(held["bad"], -held["points_alone"]),
            "pooled": auc_of(held["bad"], pooled[org]),
        }
    report = city.run(BANKS[0].org, "job", "report", "network", "--json").json()
    private = city.run(BANKS[0].org, "job", "report", "network-private", "--json").json()
    city.run(BANKS[0].org, "job", "report", "network", "--html", str(OUT / "report.html"))
    page = str(OUT / "report-private.html")
    city.run(BANKS[0].org, "job", "report", "network-private", "--html", page)
    everybody = pd.concat([scores[scores["test"]] for scores in tested.values()])
    summary = {
        "auc": {
            "joint": report["all_banks"]["auc"],
            "pooled": auc_of(everybody["bad"], np.concatenate([pooled[org] for org in tested])),
            "bank_only": float(np.mean([item["bank_only"] for item in rows.values()])),
        },
        "by_bank": rows,
        "private": {
            "auc": private["all_banks"]["auc"],
            "epsilon": private["report"]["network"]["budget"]["epsilon"],
            "delta": private["report"]["network"]["budget"]["delta"],
        },
        "seconds": report["seconds"]["total"],
        "seconds_total": round(time.monotonic() - began, 1),
    }
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    auc = summary["auc"]
    console.print(
        f"  test AUC   banks alone [bold]{auc['bank_only']:.4f}[/bold]   "
        f"joint [bold green]{auc['joint']:.4f}[/bold green]   pooled {auc['pooled']:.4f}   "
        f"with epsilon {summary['private']['epsilon']:.2f}: {summary['private']['auc']:.4f}"
    )
    console.print(f"  summary    {OUT / 'summary.json'}, {summary['seconds_total']:.0f} s in all")
    return summary


def scores_of(city: Sandbox, org: str, job: str) -> Path:
    """A bank's own scores of its own customers."""
    return city.home(org) / "runs" / job / "scores.parquet"


def pooled_network(
    frames: dict[str, pd.DataFrame], tested: dict[str, pd.DataFrame]
) -> dict[str, np.ndarray[Any, Any]]:
    """The same network on all training customers in one place, which nobody may do for real.

    Log odds of every bank's test customers.
    """
    model_file = (OUT / "homes" / BANKS[0].org / "models" / "network.json").read_bytes()
    of: NeuralParameters = neural_from_json(model_file).parameters
    parts = {
        org: frame.loc[tested[org]["credit_code"]].reset_index(drop=True)
        for org, frame in frames.items()
    }
    whole = pd.concat(parts.values(), ignore_index=True)
    test = np.concatenate([tested[org]["test"].to_numpy() for org in parts])
    columns: list[Column] = [
        NumberColumn(name, whole[name].to_numpy(np.float64)) for name in all_features()
    ]
    labels = whole[LABEL].to_numpy(np.uint8)
    numbers = numbers_of(columns, of.categories)
    scaling = scaling_over(Alone("pooled"), numbers[~test], len(whole))
    inputs = inputs_of(numbers, categories_of(columns, of.categories, of.buckets), scaling)
    shape = Shape(inputs.numbers.shape[1], inputs.categories.shape[1])
    model = build(of, shape, bytes(32))
    for number in range(of.rounds * of.epochs):
        train_locally(model, inputs.take(~test), labels[~test], of, Stream(bytes([number] * 32)))
    found = logits(model, inputs)
    owners = np.concatenate([[org] * len(part) for org, part in parts.items()])
    return {org: found[(owners == org) & test] for org in parts}


if __name__ == "__main__":
    sys.exit(main())
