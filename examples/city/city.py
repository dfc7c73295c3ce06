"""The city of the demo: who takes part, and which columns of the public data stand in for whose.

The rows are people of a public credit-card data set (see data/README.md); each stands in for an
enterprise with a made-up credit code. Every organisation is an invention.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from federation.codes import code_for_row

DATA = Path(__file__).parent / "data"
REGION = "济宁市 (stand-in)"
AS_OF = "2026-10-31"
KEY = "credit_code"
LABEL = "default"
MISSING_PER_CENT = 5  # of each department's records, so that the missing bin has work to do


@dataclass(frozen=True)
class Member:
    """One organisation of the city."""

    org: str
    kind: str
    name: str
    row: int  # its own credit code is the one of this row of data set 9


@dataclass(frozen=True)
class Dataset:
    """What one organisation registers."""

    owner: str
    name: str
    title: str
    legal_basis: str
    columns: tuple[str, ...]
    level: str  # of its fields; two persons decide from L3 up


PLATFORM = Member("platform", "platform", "Financing credit platform (融资信用服务平台)", 0)
BANK = Member("bank_a", "bank", "Bank A (甲银行)", 1)
DEPARTMENTS = (
    Member("utilities", "utility", "Water, power and gas utilities (水电气)", 2),
    Member("tax", "department", "Tax bureau (税务局)", 3),
    Member("market_regulation", "department", "Market regulation bureau (市场监管局)", 4),
)
MEANINGS = {  # what an owner calls its fields, as an approver and a scored firm read them
    "credit_limit": "授信额度",
    **{f"bill_amount_{month}": f"{month} 个月前账单余额" for month in range(1, 7)},
    "sex": "法定代表人性别",
    "education": "法定代表人学历",
    "marriage": "法定代表人婚姻状况",
    "age_years": "法定代表人年龄",
    **{f"paid_amount_{month}": f"{month} 个月前缴纳税额" for month in range(1, 7)},
    **{f"pay_status_{month}": f"{month} 个月前水电气费欠缴月数" for month in range(1, 7)},
}
LEGAL_BASIS = {
    "bank_a": "loan contracts with its customers",
    "utilities": "supply contracts; municipal rules on public credit information",
    "tax": "tax collection law; municipal rules on public credit information",
    "market_regulation": "company registration rules",
}


def spec() -> dict:  # type: ignore[type-arg]
    """The description of the public data set: columns, owners, code rule."""
    return json.loads((DATA / "credit_card_default.json").read_text())


def table() -> pd.DataFrame:
    """The public table, with the made-up credit code of each row."""
    with gzip.open(DATA / "credit_card_default.csv.gz", "rt") as file:
        frame = pd.read_csv(file)
    number = spec()["code_rule"]["dataset_number"]
    codes = code_for_row(number, np.arange(len(frame))).astype("S18").astype(str)
    frame.insert(0, KEY, codes)
    return frame


def own_code(member: Member) -> str:
    """The made-up credit code of an organisation of the city."""
    return code_for_row(9, np.array([member.row])).astype("S18").astype(str)[0]


def datasets() -> tuple[Dataset, ...]:
    """Who registers which columns."""
    titles = {
        "bank_a": ("loans", "Credit lines and balances of the bank's own customers, with defaults"),
        "utilities": ("arrears", "Months in arrears on the monthly bill"),
        "tax": ("payments", "Amounts paid in each of the last six months"),
        "market_regulation": ("representatives", "Registered legal representative"),
    }
    columns = {party["id"]: tuple(party["columns"]) for party in spec()["parties"]}
    return tuple(
        Dataset(org, name, title, LEGAL_BASIS[org], columns[org], "L3" if org == "tax" else "L2")
        for org, (name, title) in titles.items()
    )


def write_tables(folder: Path) -> dict[str, Path]:
    """Each organisation's own file, and the public registry: CSV as an export would look.

    The bank's customers are a part of the registry (rows by number mod 5); every department lacks
    the records of a few enterprises, by a fixed rule of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame = table()
    numbers = np.arange(len(frame))
    bank_rows = next(p["rows"] for p in spec()["parties"] if p["id"] == BANK.org)
    paths = {"registry": folder / "registry.txt"}
    paths["registry"].write_text("\n".join(sorted(frame[KEY])) + "\n")
    for place, dataset in enumerate(datasets()):
        if dataset.owner == BANK.org:
            rows = np.isin(numbers % bank_rows["row_number_mod"], bank_rows["in"])
            chosen = frame.loc[rows, [KEY, *dataset.columns, LABEL]]
        else:
            known = (numbers * 7919 + place * 104_729) % 100 >= MISSING_PER_CENT
            chosen = frame.loc[known, [KEY, *dataset.columns]]
        paths[dataset.owner] = folder / f"{dataset.owner}.csv"
        # an export is not in the order of any other party's
        chosen.sample(frac=1, random_state=place).to_csv(
            paths[dataset.owner], index=False, quoting=csv.QUOTE_MINIMAL
        )
    return paths
