"""After training: a firm grants, the bank verifies, scores and watches; steps 8 to 10 of the demo.

One firm of the city has a home of its own. The market regulation bureau, which issues licences,
certifies its key; every owner's node is told in its settings to accept that.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from clients.sandbox import Member, Outcome, Sandbox
from examples.city.city import BANK, DEPARTMENTS, KEY, Dataset, table
from examples.story import console, step
from federation.errors import LianmoError

UTILITIES, TAX, REGISTRAR = (member.org for member in DEPARTMENTS)
FIRM = "firm"
SERVES = ["credit-model-training", "credit-decision", "post-loan-monitoring"]
QUESTIONS = {  # what may be asked, by field: its grid
    "paid_amount_1": '["1000", "5000", "20000", "100000"]',
    "pay_status_1": '["1", "2", "3"]',
}
WAIT_S = 60.0  # for what nodes do by themselves: witnesses, status lists, alerts


@cache
def firm_row() -> int:
    """A customer of the bank that every department has a record of, and that pays its bills."""
    frame = table()
    for number in range(len(frame)):
        known = all((number * 7919 + place * 104_729) % 100 >= 5 for place in range(1, 4))
        row = frame.loc[number]
        months, paid = (int(str(row[name])) for name in ("pay_status_1", "paid_amount_1"))
        pays = months <= 0 and 1000 <= paid < 20_000
        if known and pays and number % 5 in (0, 1, 2):
            return number
    raise RuntimeError("the table has such a firm")


def firm() -> Member:
    """The firm as a member of the sandbox."""
    code = str(table().loc[firm_row(), KEY])
    return Member(FIRM, "enterprise", "First trading company (第一贸易公司)", code)


def prepare(city: Sandbox) -> None:
    """Whom each owner's node accepts as an issuer of enterprises' keys; before the nodes start."""
    for member in DEPARTMENTS:
        with (city.home(member.org) / "config.toml").open("a") as config:
            config.write(f'\n[verification]\nissuers = {{ {REGISTRAR} = "A3" }}\n')
            config.write("status_every_s = 1\nwatch_every_s = 1\n")
    with (city.home(BANK.org) / "config.toml").open("a") as config:
        config.write("\n[verification]\nreceipts_every_s = 1\n")


def words(dataset: Dataset, folder: Path) -> tuple[str, ...]:
    """Options of `catalogue set`: what the fields serve besides training."""
    lines = ['[fields."*"]', 'ops = ["train", "score"]', f"purposes = {json.dumps(SERVES)}"]
    for name in dataset.columns:
        if name in QUESTIONS:
            lines += [
                f"[fields.{name}]",
                'ops = ["train", "score", "verify"]',
                f'enquiry = {{ ops = ["compare"], grid = {QUESTIONS[name]}, bits_budget = 16 }}',
            ]
    file = folder / f"{dataset.name}.words.toml"
    file.write_text("\n".join(lines) + "\n")
    return "--file", str(file)


def go_on(
    city: Sandbox, tables: dict[str, Path], out: Path, job: str, summary: dict[str, Any]
) -> dict[str, Any]:
    """Steps 8 to 10; the summary with their results, also on disk."""
    began = time.monotonic()
    after = _After(city, out, job)
    summary["verification"] = after.verification()
    summary["scoring"] = after.scoring()
    summary["alerts"] = after.alerts(tables[UTILITIES])
    summary["seconds_total"] = round(summary["seconds_total"] + time.monotonic() - began, 1)
    (out / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    _require_good(summary)
    return summary


def _require_good(summary: dict[str, Any]) -> None:
    """Ends the demo if a step came to something else than it tells."""
    said, score, alerts = (summary[key] for key in ("verification", "scoring", "alerts"))
    answers = (said["match"], said["no_match"], said["after_revocation"])
    is_good = answers == ("match", "no_match", "refused") and said["uses_in_firm_s_history"] == 2
    is_good = is_good and score["equals_training"] and bool(score["reasons"])
    is_good = is_good and alerts["count"] == 1 and not alerts["has_value"]
    if not is_good or not all(part["receipts_verified"] for part in (said, score, alerts)):
        raise LianmoError("a step came to another result", todo="see out/demo/summary.json")


class _After:
    """The three steps; receipts and pages go to one folder."""

    def __init__(self, city: Sandbox, out: Path, job: str) -> None:
        self.city, self.job, self.code = city, job, firm().uscc
        self.folder = out / "after"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def path(self, name: str) -> str:
        return str(self.folder / name)

    # 8

    def verification(self) -> dict[str, Any]:
        """Match, no match, and refused once the firm has revoked."""
        step(8, "A firm agrees to questions; the bank gets yes or no")
        self._certify()
        item = f"{TAX}/payments/paid_amount_1:compare@1000,20000"
        grant = self._granted("questions", "--item", item, "--uses", "8")
        began = time.monotonic()
        first = self._until(lambda: self._ask(grant, "1000"), lambda one: one["result"] == "match")
        second = self._ask(grant, "20000")
        ids = [str(found["id"]) for found in (first, second)]
        receipts = self._cosigned(lambda folder: self._answers(folder, ids), "answers")
        self.city.run(FIRM, "grant", "revoke", grant[:16])
        third = self._until(
            lambda: self._ask(grant, "1000"), lambda one: one["result"] == "refused"
        )
        told = ("grant", "history", "--json")
        history = self._until(lambda: self.city.run(FIRM, *told).json(), lambda uses: len(uses) > 1)
        uses = [use["result"] for use in history]
        console.print(f"  the firm's own history of uses: {', '.join(uses)}")
        firm_s = self._cosigned(
            lambda folder: self.city.run(FIRM, *told[:2], "--receipts", folder), "uses"
        )
        return {
            "match": first["result"],
            "no_match": second["result"],
            "after_revocation": third["result"],
            "uses_in_firm_s_history": len(uses),
            **receipts,
            "firm_s_receipts": firm_s["receipts"],
            "seconds": round(time.monotonic() - began, 1),
        }

    def _certify(self) -> None:
        card, proof = self.path("firm.card"), self.path("firm.certificate")
        told = self.city.run(FIRM, "grant", "identity", "--out", card, "--json").json()
        self.city.run(
            *(REGISTRAR, "grant", "certify", card, "--assurance", "A3"),
            *("--fingerprint", told["fingerprint"], "--out", proof),
        )
        self.city.run(FIRM, "grant", "certificate", proof)

    def _granted(self, name: str, *options: str, verb: tuple[str, ...] = ("grant", "draft")) -> str:
        """The bank drafts, the firm signs, the bank keeps; the grant's digest."""
        draft, signed = self.path(f"{name}.draft"), self.path(f"{name}.grant")
        self.city.run(BANK.org, *verb, "--subject", self.code, *options, "--out", draft)
        if name == "questions":
            notice = self.city.run(FIRM, "grant", "notice", draft, "--lang", "en").out
            console.print(f"[dim]{notice.rstrip()}[/dim]")
        told = self.city.run(FIRM, "grant", "sign", draft, "--yes", "--out", signed, "--json")
        self.city.run(BANK.org, "grant", "add", signed)
        return str(told.json()["grant"])

    def _ask(self, grant: str, threshold: str) -> dict[str, Any]:
        done = self.city.run(
            *(BANK.org, "verify", "ask", "--grant", grant[:16], "--provider", TAX),
            *("--dataset", "payments", "--field", "paid_amount_1"),
            *("--op", "compare", "--arg", threshold, "--json"),
            check=False,
        )
        found = _plain(done)
        console.print(f"  at least {threshold}? [bold]{found['result']}[/bold]")
        return found

    def _answers(self, folder: str, ids: Sequence[str]) -> None:
        """The receipts of the bank's questions as its node has them by now."""
        for name in ids:
            file = f"{folder}/{name[:8]}.receipt"
            self.city.run(BANK.org, "verify", "show", name, "--receipt", file)

    def _cosigned(self, write: Callable[[str], object], name: str) -> dict[str, Any]:
        """Receipts as they are once their owners' nodes have completed them, or after a minute.

        Another organisation verifies them, with no server; one that does not verify ends the demo.
        """
        folder = self.folder / f"{name}-receipts"
        folder.mkdir()

        def verified() -> list[dict[str, Any]]:
            write(str(folder))
            files = [str(file) for file in sorted(folder.glob("*.receipt"))]
            found = self.city.run(REGISTRAR, "receipt", "verify", *files, "--json").json()
            return found if isinstance(found, list) else [found]

        deadline, found, status = time.monotonic() + WAIT_S, verified(), "cosigned"
        while any(one["status"] != status for one in found):
            if time.monotonic() > deadline:
                status = "uncosigned"
                break
            time.sleep(0.5)
            found = verified()
        by = ", ".join(sorted({seen["org"] for one in found for seen in one["witnesses"]}))
        console.print(f"  receipts of the {name}: {len(found)}, {status}{' by ' * bool(by)}{by}")
        return {"receipts_verified": bool(found), "receipts": status}

    # 9

    def scoring(self) -> dict[str, Any]:
        """The firm's score with the joint model, with reasons and a page for the firm."""
        step(9, "The firm applies for credit: a joint score, with reasons")
        began = time.monotonic()
        grant = self._granted("score", "--uses", "3", verb=("model", "draft", self.job))
        page = str(self.folder.parent / "score.html")
        done = self.city.run(
            *(BANK.org, "model", "score", self.code, "--grant", grant[:16]),
            *("--explain", page, "--json"),
        )
        found = done.json()
        explain = (BANK.org, "model", "explain", str(found["id"]), "--out", page)
        console.print(f"  {found['points']} points, band {found['band']}")
        for reason in found["reasons"]:
            console.print(f"  - {reason['zh']} / {reason['en']}")
        drift = self.city.run(BANK.org, "model", "drift", self.job, "--json").json()
        return {
            "points": found["points"],
            "band": found["band"],
            "model": found["model"],
            "reasons": found["reasons"],
            "sources": [source["org"] for source in found["sources"]],
            "equals_training": found["points"] == self._trained(),
            **self._cosigned(lambda folder: self.city.run(*explain, "--receipts", folder), "score"),
            "drift": drift["months"],
            "seconds": round(time.monotonic() - began, 1),
        }

    def _trained(self) -> int | None:
        """The same firm's points as the training run opened them to the bank; None: it did not."""
        file = self.city.home(BANK.org) / "runs" / self.job / "scores.parquet"
        frame = pd.read_parquet(file)
        own = frame.loc[frame["credit_code"] == self.code]
        return int(own["points"].iloc[0]) if "points" in frame and len(own) else None

    # 10

    def alerts(self, file: Path) -> dict[str, Any]:
        """The firm falls two months behind with its bills; the bank is told, once."""
        console.print(
            "\n[bold]10. Later the firm falls behind with its bills: the bank is told[/bold]"
        )
        item = f"{UTILITIES}/arrears/pay_status_1:compare@2"
        grant = self._granted(
            *("watch", "--item", item, "--channel", "watch", "--uses", "3"),
            *("--purpose", "post-loan-monitoring"),
        )
        self.city.run(
            *(BANK.org, "verify", "watch", "add", "arrears-2", "--grant", grant[:16]),
            *("--provider", UTILITIES, "--dataset", "arrears", "--field", "pay_status_1"),
            *("--arg", "2", "--severity", "critical"),
        )
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        frame.loc[frame[KEY] == self.code, "pay_status_1"] = "3"
        frame.to_csv(file, index=False)
        self.city.run(UTILITIES, "data", "refresh", "arrears")
        began = time.monotonic()
        show = ("verify", "watch", "alerts", "--json")
        found = self._until(lambda: self.city.run(BANK.org, *show).json(), bool)
        seconds = time.monotonic() - began
        for alert in found:
            console.print(f"  [bold]{alert['rule']}[/bold] {alert['severity']}: {alert['created']}")
        return {
            "count": len(found),
            "rules": [alert["rule"] for alert in found],
            "has_value": any("value" in alert for alert in found),
            **self._cosigned(
                lambda folder: self.city.run(BANK.org, *show, "--receipts", folder), "alert"
            ),
            "seconds_to_alert": round(seconds, 1),
        }

    def _until(self, ask: Callable[[], Any], is_good: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + WAIT_S
        while not is_good(found := ask()):
            if time.monotonic() > deadline:
                what = "a node did not do in time what the demo waits for"
                raise LianmoError(what, todo="see the nodes' logs in out/demo/homes")
            time.sleep(0.5)
        return found


def _plain(done: Outcome) -> dict[str, Any]:
    """What a command printed that may end with a refusal."""
    if done.code not in (0, 3) or not done.out:
        raise LianmoError(done.err.strip())
    found: dict[str, Any] = done.json()
    return found
