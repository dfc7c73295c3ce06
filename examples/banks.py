"""Three banks of one city, for the examples with several of them; the rest is `examples/city`.

Each bank has its own customers of the public credit-card table, by row number mod 5 in {0, 1},
{2, 3} and {4}: the third is half as large as the others. Every bank is an invention.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from clients.sandbox import Member as SandboxMember
from clients.sandbox import Sandbox
from examples.city.city import AS_OF, KEY, LABEL, PLATFORM, REGION, Member, own_code, spec, table
from federation.errors import LianmoError

BANKS = (
    Member("bank_a", "bank", "Bank A (甲银行)", 1),
    Member("bank_b", "bank", "Bank B (乙银行)", 5),
    Member("bank_c", "bank", "Bank C (丙银行)", 6),
)
SHARES = {"bank_a": (0, 1), "bank_b": (2, 3), "bank_c": (4,)}  # of the row number mod 5

console = Console(highlight=False, soft_wrap=True)


def step(number: int, text: str) -> None:
    """A headline of the story."""
    console.print(f"\n[bold]{number}. {text}[/bold]")


def say(org: str, arguments: Sequence[str]) -> None:
    """Show a command as its organisation types it."""
    shown = " ".join(part if " " not in part else repr(part) for part in arguments)
    shown = shown if len(shown) <= 110 else shown[:107] + "..."
    console.print(f"  [cyan]{org:<18}[/cyan][dim]$[/dim] lianmo {escape(shown)}")


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


def approve_and_watch(
    city: Sandbox, job: str, proposer: str, digest: str, owners: Sequence[str]
) -> None:
    """Everybody else approves exactly this manifest; with the last word the run begins."""
    city.everybody((org, ("job", "approve", job, "--manifest", digest)) for org in owners)
    began = time.monotonic()
    if city.watch(proposer, "job", "watch", job) != 0:
        raise LianmoError("the job did not succeed", party=proposer, todo="see the log above")
    console.print(f"  [dim]{time.monotonic() - began:.1f} s[/dim]")


__all__ = [
    "BANKS",
    "PLATFORM",
    "all_features",
    "approve_and_watch",
    "console",
    "own_features",
    "publish_loans",
    "rows_of",
    "sandbox",
    "step",
    "write_bank_tables",
]
