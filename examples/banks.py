"""Three banks of one city, for the examples with several of them; the rest is `examples/city`.

Each bank has its own customers of the public credit-card table, by row number mod 5 in {0, 1},
{2, 3} and {4}: the third is half as large as the others. Every bank is an invention.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from clients.sandbox import Member as SandboxMember
from clients.sandbox import Sandbox
from examples.city.city import (
    AS_OF,
    KEY,
    LABEL,
    PLATFORM,
    REGION,
    Dataset,
    Member,
    own_code,
    spec,
    table,
)
from examples.story import console, say
from federation.errors import LianmoError

BANKS = (
    Member("bank_a", "bank", "Bank A (甲银行)", 1),
    Member("bank_b", "bank", "Bank B (乙银行)", 5),
    Member("bank_c", "bank", "Bank C (丙银行)", 6),
)
SHARES = {"bank_a": (0, 1), "bank_b": (2, 3), "bank_c": (4,)}  # of the row number mod 5

DRAFT = """
job = "{job}"
purpose = "credit-model-training"
days = 7
platform = "{platform}"
{parties}
[limits]
customers_max = {most}
customers_min = {least}
{task}
"""


def sandbox(folder: Path, members: Sequence[Member]) -> Sandbox:
    """Homes and processes for these organisations."""
    found = [SandboxMember(m.org, m.kind, m.name, own_code(m)) for m in members]
    return Sandbox(folder.resolve() / "homes", found, region=REGION, say=say)


def all_features() -> tuple[str, ...]:
    """Every column of the public table but the label."""
    return tuple(c for c in table().columns if c not in (KEY, LABEL))


def own_features() -> tuple[str, ...]:
    """What a bank has of its customers by itself."""
    return tuple(next(p["columns"] for p in spec()["parties"] if p["id"] == "bank_a"))


def rows_of(bank: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows of the public table are this bank's customers."""
    return np.isin(np.arange(len(table())) % 5, SHARES[bank])


def write_bank_tables(folder: Path, columns: Sequence[str]) -> dict[str, Path]:
    """Each bank's own file, and the public registry."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = table()
    paths = {"registry": folder / "registry.txt"}
    paths["registry"].write_text("\n".join(sorted(frame[KEY])) + "\n")
    for place, bank in enumerate(SHARES):
        chosen: pd.DataFrame = frame.loc[rows_of(bank), [KEY, *columns, LABEL]]
        paths[bank] = folder / f"{bank}.csv"
        # an export is not in the order of any other party's
        chosen.sample(frac=1, random_state=place).to_csv(
            paths[bank], index=False, quoting=csv.QUOTE_MINIMAL
        )
    return paths


def publish_loans(city: Sandbox, tables: dict[str, Path]) -> None:
    """Every bank registers its own table and signs what it holds."""
    orgs = [bank.org for bank in BANKS]
    registry = str(tables["registry"])
    city.everybody(
        (org, ("registry", "add", registry, "--region", REGION, "--as-of", AS_OF)) for org in orgs
    )
    files = {org: ("--file", str(tables[org]), "--key", KEY, "--label", LABEL) for org in orgs}
    city.everybody((org, ("data", "add", "loans", *files[org])) for org in orgs)
    words = ("--title", "Loans of the bank's own customers, with defaults")
    basis = ("--legal-basis", "loan contracts", "--update-frequency", "monthly")
    source = ("--provenance", "UCI data set 350, a stand-in for the bank's own register")
    city.everybody(
        (org, ("catalogue", "set", "loans", *words, *basis, *source, "--level", "*=L2"))
        for org in orgs
    )
    city.everybody((org, ("catalogue", "publish", "loans")) for org in orgs)


def run_job(
    city: Sandbox,
    folder: Path,
    job: str,
    task: str,
    customers: tuple[int, int],
    departments: Sequence[Dataset] = (),
) -> None:
    """The first bank proposes, everybody else approves exactly that manifest, the nodes train.

    task: its table of the draft. customers: what every bank states, (at least, at most).
    """
    lead, *others = (bank.org for bank in BANKS)
    parties = [("bank", lead, "loans"), *(("[other_bank]", org, "loans") for org in others)]
    parties += [("[department]", item.owner, item.name) for item in departments]
    draft = folder / f"{job}.toml"
    draft.write_text(
        DRAFT.format(
            job=job,
            platform=PLATFORM.org,
            parties="".join(
                f'\n[{role}]\norg = "{org}"\ndataset = "{name}"\n' for role, org, name in parties
            ),
            least=customers[0],
            most=customers[1],
            task=task,
        )
    )
    submitted = city.run(lead, "job", "submit", str(draft), "--json").json()
    digest = submitted["manifest_digest"][:16]
    owners = [*others, PLATFORM.org, *(item.owner for item in departments)]
    city.everybody((org, ("job", "approve", job, "--manifest", digest)) for org in owners)
    began = time.monotonic()  # with the last word the run begins
    if city.watch(lead, "job", "watch", job) != 0:
        raise LianmoError("the job did not succeed", party=lead, todo="see the log above")
    console.print(f"  [dim]{time.monotonic() - began:.1f} s[/dim]")


def auc_of(bad: Any, risk: Any) -> float:
    """Of one score."""
    return float(roc_auc_score(bad, risk))


__all__ = [
    "BANKS",
    "PLATFORM",
    "all_features",
    "auc_of",
    "own_features",
    "publish_loans",
    "rows_of",
    "run_job",
    "sandbox",
    "write_bank_tables",
]
