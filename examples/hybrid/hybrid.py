"""Three banks and three departments train one model: `make example-hybrid`.

Real processes on this machine: a coordinator with its relay, a resident node for each of the six.
Every bank has customers of its own, every department holds facts about all enterprises. What a
department answers opens only as the sum over all three banks.

1. found the federation; banks and departments register their tables
2. bank A proposes a scorecard, everybody else approves exactly that manifest, the nodes train
3. the same with boosted trees
4. was it worth it? On every bank's own test customers: the shared model, the model that this bank
   would have trained with the departments alone, and one with everything in one place
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clients.sandbox import Sandbox
from examples.banks import (
    BANKS,
    PLATFORM,
    auc_of,
    own_features,
    publish_loans,
    run_job,
    sandbox,
    write_bank_tables,
)
from examples.city.baseline import Finished, columns_of
from examples.city.city import AS_OF, DEPARTMENTS, KEY, REGION, Dataset, datasets, write_tables
from examples.story import console, step
from federation.errors import LianmoError
from federation.objects import ScorecardParameters, TreesParameters
from federation.tables import BankData, Column, DepartmentData, NumberColumn
from federation.tasks import boosting
from federation.tasks.local import local_manifest, run_scorecard_in_process, run_trees_in_process
from federation.tasks.model import fit_pooled
from federation.tasks.model_files import model_from_json
from protocols.streams import Randomness, digest

OUT = Path("out/hybrid")
SCORECARD, TREES = "shared-scorecard", "shared-trees"
GROWTH = {"trees": 20, "max_depth": 4, "learning_rate": "0.2"}
CUSTOMERS = (5900, 12_500)  # what every bank states: at least, at most


def main() -> int:
    """Run the example; 0 if the shared models come near the pooled ones."""
    began = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    console.print("[bold]lianmo (联模)[/bold]: three banks, three departments, one model")
    tables = write_tables(OUT / "tables") | write_bank_tables(OUT / "tables", own_features())
    with sandbox(OUT, (PLATFORM, *BANKS, *DEPARTMENTS)) as city:
        try:
            step(1, "Found the federation; everybody registers its own table")
            city.found()
            city.start((PLATFORM.org, ("coordinator", "start")))
            publish_loans(city, tables)
            publish_departments(city, tables)
            city.start(*((member.org, ("node", "start")) for member in (*BANKS, *DEPARTMENTS)))
            step(2, "A scorecard over all banks and all departments")
            run_job(city, OUT, SCORECARD, "[scorecard]\nopenings = 2\n", CUSTOMERS, facts())
            step(3, "Boosted trees over all banks and all departments")
            grown = "".join(f"{k} = {json.dumps(v)}\n" for k, v in GROWTH.items())
            run_job(city, OUT, TREES, f"[trees]\n{grown}", CUSTOMERS, facts())
            step(4, "Was it worth it?")
            summary = conclude(city, tables, began)
        except LianmoError as error:
            console.print(f"[red]error:[/red] {error}")
            return error.exit_code
    near = [
        summary[task]["auc"]["joint"] > summary[task]["auc"]["pooled"] - 0.003
        for task in ("scorecard", "trees")
    ]
    return 0 if all(near) else 1


def publish_departments(city: Sandbox, tables: dict[str, Path]) -> None:
    """Every department registers its facts and signs what it holds."""
    mine = facts()
    registry = str(tables["registry"])
    where = ("--region", REGION, "--as-of", AS_OF)
    city.everybody((d.owner, ("registry", "add", registry, *where)) for d in mine)
    city.everybody(
        (d.owner, ("data", "add", d.name, "--file", str(tables[d.owner]), "--key", KEY))
        for d in mine
    )
    city.everybody(
        (
            d.owner,
            (
                *("catalogue", "set", d.name, "--title", d.title, "--level", "*=L2"),
                *("--legal-basis", d.legal_basis, "--update-frequency", "monthly"),
                *("--provenance", "UCI data set 350, a stand-in for the organisation's register"),
            ),
        )
        for d in mine
    )
    city.everybody((d.owner, ("catalogue", "publish", d.name)) for d in mine)


def facts() -> list[Dataset]:
    """What the departments register."""
    owners = {member.org for member in DEPARTMENTS}
    return [item for item in datasets() if item.owner in owners]


# --- comparison, which only public data allow -----------------------------------------------------


@dataclass(frozen=True)
class Everything:
    """All tables in one place."""

    registry: NDArray[np.bytes_]
    banks: dict[str, BankData]
    departments: dict[str, DepartmentData]
    scores: dict[str, pd.DataFrame]

    def whole(self) -> BankData:
        """One bank with everybody's customers, their hold-out kept."""
        parts = list(self.banks.values())
        order = np.argsort(np.concatenate([part.positions for part in parts]))
        labels = np.concatenate([part.labels for part in parts])
        tests = [part.test for part in parts if part.test is not None]
        columns: list[Column] = []
        for j, column in enumerate(parts[0].columns):
            values = [c.values for p in parts if isinstance(c := p.columns[j], NumberColumn)]
            columns.append(NumberColumn(column.name, np.concatenate(values)[order]))
        return BankData(
            cover_rows=len(self.registry),
            positions=np.concatenate([part.positions for part in parts])[order],
            codes=np.concatenate([part.codes for part in parts])[order],
            columns=columns,
            labels=labels[order],
            test=np.concatenate(tests)[order],
        )


def load(city: Sandbox, tables: dict[str, Path], job: str) -> Everything:
    """Every party's table lined up with the registry, with the job's own hold-out."""
    registry = np.array(tables["registry"].read_text().split(), "S18")
    banks, scores = {}, {}
    for bank in BANKS:
        found = pd.read_parquet(city.home(bank.org) / "runs" / job / "scores.parquet")
        codes = found["credit_code"].to_numpy().astype("S18")
        positions = np.searchsorted(registry, codes)
        banks[bank.org] = BankData(
            cover_rows=len(registry),
            positions=positions,
            codes=codes,
            columns=columns_of(tables[bank.org], codes),
            labels=found["bad"].to_numpy(np.uint8),
            test=found["test"].to_numpy(),
        )
        scores[bank.org] = found
    departments = {
        item.owner: DepartmentData(columns_of(tables[item.owner], registry), registry)
        for item in facts()
    }
    return Everything(registry, banks, departments, scores)


def scorecard_figures(city: Sandbox, tables: dict[str, Path]) -> dict[str, Any]:
    """AUC of the shared scorecard beside the others."""
    known = load(city, tables, SCORECARD)
    whole = known.whole()
    lead = BANKS[0].org
    model = model_from_json((city.home(lead) / "models" / f"{SCORECARD}.json").read_bytes())
    if whole.test is None:
        raise RuntimeError("the scores say who was held out")
    done = Finished(model, whole.labels, whole.test)
    fit = fit_pooled(done, lead, whole, known.departments, ScorecardParameters())
    pooled = auc_of(whole.labels[whole.test], -fit.log_odds[whole.test])
    own = {}
    for org, data in known.banks.items():
        manifest = local_manifest(
            {"bank": data}, known.departments, ScorecardParameters(openings=2)
        )
        result = run_scorecard_in_process(data, known.departments, manifest, 1).result
        if result.scores is None or data.test is None:
            raise RuntimeError("an evaluation was asked for")
        own[org] = auc_of(data.labels[data.test], -result.scores[data.test])
    return figures(known, pooled, own)


def trees_figures(city: Sandbox, tables: dict[str, Path]) -> dict[str, Any]:
    """AUC of the shared trees beside the others."""
    known = load(city, tables, TREES)
    whole, of = known.whole(), TreesParameters.model_validate(GROWTH)
    if whole.test is None:
        raise RuntimeError("the scores say who was held out")
    randomness = Randomness(digest("hybrid example"), digest("pooled"), 0)
    grown = boosting.fit_pooled(
        "bank_a",
        whole,
        known.departments,
        of,
        train=~whole.test,
        customers_min=3 * CUSTOMERS[0],
        randomness=randomness,
    )
    pooled = auc_of(whole.labels[whole.test], grown.margins[whole.test])
    own = {}
    for org, data in known.banks.items():
        manifest = local_manifest({"bank": data}, known.departments, of)
        result = run_trees_in_process(data, known.departments, manifest, 1).result
        if data.test is None:
            raise RuntimeError("the scores say who was held out")
        own[org] = auc_of(data.labels[data.test], result.margins[data.test])
    return figures(known, pooled, own)


def figures(known: Everything, pooled: float, own: dict[str, float]) -> dict[str, Any]:
    """The shared model's figures beside the pooled one's and each bank's own with departments."""
    held = {org: scores[scores["test"]] for org, scores in known.scores.items()}
    everybody = pd.concat(held.values())
    by_bank = {
        org: {
            "joint": auc_of(scores["bad"], -scores["points"]),
            "own_joint": own[org],
            "bank_only": auc_of(scores["bad"], -scores["points_alone"]),
            "test_rows": len(scores),
        }
        for org, scores in held.items()
    }
    return {
        "auc": {
            "joint": auc_of(everybody["bad"], -everybody["points"]),
            "pooled": pooled,
            "bank_only": float(np.mean([item["bank_only"] for item in by_bank.values()])),
        },
        "by_bank": by_bank,
        "above_own_joint": {o: i["joint"] > i["own_joint"] for o, i in by_bank.items()},
    }


def conclude(city: Sandbox, tables: dict[str, Path], began: float) -> dict[str, Any]:
    """Both models' figures, pages and the summary."""
    summary: dict[str, Any] = {
        "scorecard": scorecard_figures(city, tables),
        "trees": trees_figures(city, tables),
    }
    for job, name in ((SCORECARD, "scorecard"), (TREES, "trees")):
        page = str(OUT / f"report-{name}.html")
        report = city.run(BANKS[0].org, "job", "report", job, "--html", page, "--json").json()
        summary[name]["seconds"] = report["seconds"]["total"]
        summary[name]["exposure"] = report["exposure"]
        auc = summary[name]["auc"]
        console.print(
            f"  {name:<10} test AUC   banks alone [bold]{auc['bank_only']:.4f}[/bold]   "
            f"shared [bold green]{auc['joint']:.4f}[/bold green]   pooled {auc['pooled']:.4f}"
        )
        for org, item in summary[name]["by_bank"].items():
            better = item["joint"] > item["own_joint"]
            console.print(
                f"    {org}: shared {item['joint']:.4f}, with the departments by itself "
                f"{item['own_joint']:.4f}{'' if better else '  (the shared one is not better)'}"
            )
    summary["seconds_total"] = round(time.monotonic() - began, 1)
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    console.print(f"  summary    {OUT / 'summary.json'}, {summary['seconds_total']:.0f} s in all")
    return summary


if __name__ == "__main__":
    sys.exit(main())
