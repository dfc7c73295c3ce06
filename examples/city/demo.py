"""A city's bank and three departments train a shared credit model: `make demo`.

Real, separate processes on this machine: a coordinator with its relay, one resident node for the
bank and for each department. Every step is a command that a person would type; each organisation
has a home of its own.

1. found the federation: homes, keys, cards compared by fingerprint
2. each organisation registers its table and publishes what it holds
3. the bank drafts and submits a job; one department refuses it and says what it would approve
4. the bank proposes just that; every owner approves exactly that manifest, the tax bureau, whose
   fields are of level L3, by two persons with a key each
5. the nodes train a scorecard: encrypted queries, sealed columns, nothing raw leaves its owner
6. every party's receipt of what it did is verified by another one, with no server
7. the bank reads its report; was it worth it?
8. a firm agrees to questions: match, no match, and refused once it has revoked
9. the firm is scored with the joint model, under its grant, with reasons
10. the firm falls behind with its bills, and the bank is told, once and without the number
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape

from clients.sandbox import Member as SandboxMember
from clients.sandbox import Sandbox
from examples.city import after, baseline
from examples.city.city import (
    AS_OF,
    BANK,
    DEPARTMENTS,
    KEY,
    LABEL,
    MEANINGS,
    PLATFORM,
    REGION,
    Dataset,
    datasets,
    own_code,
    write_tables,
)
from examples.story import console, say, step
from federation.errors import LianmoError

OUT = Path("out/demo")
ASKED, JOB = "city-scorecard", "city-scorecard-2"  # as first proposed, and as approved
UTILITIES, TAX, REGISTRAR = DEPARTMENTS
SECOND_PERSON = "李娜"  # approves for the tax bureau besides whoever works at its home
CUSTOMERS_MAX, CUSTOMERS_MIN = 18_500, 17_500  # what the bank states; it has 18,000


def main() -> int:
    """Run the demo; 0 if all receipts verify and the joint model beats the bank's own."""
    began = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    everybody = (PLATFORM, BANK, *DEPARTMENTS)
    members = [SandboxMember(m.org, m.kind, m.name, own_code(m)) for m in everybody]
    members.append(after.firm())
    console.print(
        "[bold]lianmo (联模)[/bold]: one bank, three departments, one credit model. "
        "The rows are public credit-card data\nthat stand in for 30,000 enterprises; every "
        "organisation is an invention."
    )
    with Sandbox(OUT.resolve() / "homes", members, region=REGION, say=say) as city:
        try:
            tables = write_tables(OUT / "tables")
            found(city)
            publish(city, tables)
            propose_and_refuse(city)
            agreed = narrow_and_approve(city)
            train(city)
            receipts = verify_receipts(city)
            summary = conclude(city, tables, agreed, receipts, began)
            summary = after.go_on(city, tables, OUT, JOB, summary)
        except LianmoError as error:
            console.print(f"[red]error:[/red] {escape(str(error))}")
            return error.exit_code
    auc = summary["scorecard"]["auc"]
    is_good = summary["receipts_verified"] and auc["joint"] > auc["bank_only"]
    return 0 if is_good else 1


def found(city: Sandbox) -> None:
    """Homes, keys and trust; then the platform's coordinator."""
    step(1, "Found the federation: keys, and cards compared by their fingerprints")
    city.make_homes()
    city.run(TAX.org, "org", "approver", "new", "--holder", SECOND_PERSON, *second_key("--out"))
    city.run(TAX.org, "org", "approver", "add", f"{OUT}/second.key.request")
    city.exchange_cards()
    city.start((PLATFORM.org, ("coordinator", "start")))


def second_key(option: str = "--key") -> tuple[str, ...]:
    """The second person's own key; a person would type the passphrase."""
    words = OUT / "second.passphrase"
    if not words.exists():
        words.touch(mode=0o600)
        words.write_text(secrets.token_urlsafe(16))
    return option, str(OUT / "second.key"), "--passphrase-file", str(words)


def publish(city: Sandbox, tables: dict[str, Path]) -> None:
    """Registry and tables into each owner's own home; descriptions into the shared catalogue."""
    step(2, "Everybody registers its own table; only the description is published")
    owners = [BANK, *DEPARTMENTS]
    registry = str(tables["registry"])
    city.everybody(
        (m.org, ("registry", "add", registry, "--region", REGION, "--as-of", AS_OF)) for m in owners
    )

    def register(dataset: Dataset) -> None:
        label = ("--label", LABEL) if dataset.owner == BANK.org else ()
        file = str(tables[dataset.owner])
        city.run(
            dataset.owner, *("data", "add", dataset.name, "--file", file, "--key", KEY), *label
        )
        city.run(
            dataset.owner,
            *("catalogue", "set", dataset.name, "--title", dataset.title),
            *("--legal-basis", dataset.legal_basis, "--update-frequency", "monthly"),
            *("--provenance", "UCI data set 350, a stand-in for the organisation's own register"),
            *("--level", f"*={dataset.level}"),
            *after.words(dataset, OUT),
            *(
                part
                for name in dataset.columns
                if name in MEANINGS
                for part in ("--description", f"{name}={MEANINGS[name]}")
            ),
        )
        city.run(dataset.owner, "catalogue", "publish", dataset.name)
        if dataset.level == "L3":  # the description, too, is two persons' word
            city.run(dataset.owner, "catalogue", "publish", dataset.name, *second_key())

    after.prepare(city)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(register, datasets()))
    city.start(*((member.org, ("node", "start")) for member in owners))


def propose_and_refuse(city: Sandbox) -> None:
    """The bank's draft becomes a signed manifest; one owner refuses, and says what would do."""
    step(3, "The bank proposes a job; an owner reads it, refuses, and says what would do")
    named = {d.owner: d.name for d in datasets()}
    draft = OUT / f"{ASKED}.toml"
    city.run(
        BANK.org,
        *("job", "new", ASKED, "--dataset", named[BANK.org], "--platform", PLATFORM.org),
        *(p for m in DEPARTMENTS for p in ("--department", f"{m.org}/{named[m.org]}")),
        *("--customers-max", str(CUSTOMERS_MAX), "--customers-min", str(CUSTOMERS_MIN)),
        *("--out", str(draft)),
    )
    submitted = city.run(BANK.org, "job", "submit", str(draft), "--json")
    digest = submitted.json()["manifest_digest"][:16]
    shown = city.run(REGISTRAR.org, "job", "review", ASKED).out
    console.print(f"[dim]{escape(shown.rstrip())}[/dim]")
    city.run(UTILITIES.org, "job", "approve", ASKED, "--manifest", digest)
    city.run(
        REGISTRAR.org,
        *("job", "narrow", ASKED, "--drop-field", "sex", "--drop-field", "marriage"),
        *("--attempts", "2", "--code", "PURPOSE_NOT_ALLOWED", "--manifest", digest),
        *("--words", "sex and marriage of a representative do not serve a credit decision"),
    )


def narrow_and_approve(city: Sandbox) -> dict[str, Any]:
    """The bank proposes what was asked for; every owner approves exactly that manifest.

    Returns who had refused what, for the summary.
    """
    step(4, "The bank proposes just that; every owner approves exactly this manifest")
    told = city.run(BANK.org, "job", "status", ASKED, "--json")
    for line in told.err.splitlines():
        console.print(f"  [dim]{escape(line)}[/dim]")
    accepted = city.run(BANK.org, "job", "narrow", ASKED, "--accept", "--as", JOB, "--json")
    digest = accepted.json()["manifest_digest"][:16]
    shown = city.run(REGISTRAR.org, "job", "review", JOB).out
    new = shown[shown.index("in the place of") :]
    console.print(f"[dim]  (what is read, and who learns what, as above)\n\n{escape(new)}[/dim]")
    owners = (REGISTRAR, UTILITIES, TAX, PLATFORM)
    city.everybody((m.org, ("job", "approve", JOB, "--manifest", digest)) for m in owners)
    missing = city.run(BANK.org, "job", "status", JOB, "--json").json()["missing"]
    console.print(f"  [dim]still missing: {', '.join(missing)}[/dim]")
    city.run(TAX.org, "job", "approve", JOB, "--manifest", digest, *second_key())
    return {"refused": told.json()["refusals"], "met": "this manifest does so: yes" in new}


def train(city: Sandbox) -> None:
    """With the last approval the coordinator has started the run; watch it to its end."""
    step(5, "The nodes train: encrypted queries and sealed columns, nothing raw leaves its owner")
    code = city.watch(BANK.org, "job", "watch", JOB)
    if code != 0:
        raise LianmoError("the job did not succeed", party=BANK.org, todo="see the log above")


def verify_receipts(city: Sandbox) -> tuple[bool, str]:
    """Each party's receipt, and the record it is of, go to the next party, which verifies them.

    Returns whether all verify, and what the other nodes' cosignatures make of them.
    """
    step(6, "Every party has a receipt of what it did; another one verifies it, with no server")
    parties = [member.org for member in (BANK, *DEPARTMENTS)]
    given = OUT / "receipts"
    given.mkdir()
    for org in parties:
        shutil.copyfile(city.home(org) / "runs" / JOB / "record.json", given / f"{org}.record")
    files = {org: (str(given / f"{org}.receipt"), str(given / f"{org}.record")) for org in parties}
    runs = {org: str(city.home(org) / "runs" / JOB / "receipt.json") for org in parties}
    places = city.everybody((org, ("receipt", "show", runs[org], "--json")) for org in parties)
    # the one that was made with the record, again under a checkpoint that witnesses have seen
    city.everybody(
        (
            org,
            ("audit", "receipt", str(place.json()["seq"]), "--wait", "10", "--out", files[org][0]),
        )
        for org, place in zip(parties, places, strict=True)
    )
    done = city.everybody(
        (judge, ("receipt", "verify", files[org][0], "--object", files[org][1], "--json"))
        for org, judge in zip(parties, parties[1:] + parties[:1], strict=True)
    )
    found = [outcome.json() for outcome in done]  # a receipt that does not verify ends the demo
    logs = city.everybody((org, ("audit", "verify", "--json")) for org in parties)
    for org, item in zip(parties, found, strict=True):
        by = ", ".join(sorted(witness["org"] for witness in item["witnesses"]))
        told = f"cosigned by {by}" if item["status"] == "cosigned" else item["status"]
        console.print(f"  {org:<18}entry {item['seq']} of {item['tree_size']}, {told}")
    is_good = all(
        item["verified"] and (item["org"], item["action"]) == (org, "run-recorded")
        for org, item in zip(parties, found, strict=True)
    ) and all(outcome.json()["ok"] for outcome in logs)
    is_cosigned = all(item["status"] == "cosigned" for item in found)
    return is_good, "cosigned" if is_cosigned else "uncosigned"


def conclude(
    city: Sandbox,
    tables: dict[str, Path],
    agreed: dict[str, Any],
    receipts: tuple[bool, str],
    began: float,
) -> dict[str, Any]:
    """Report, comparison with pooled data, summary."""
    step(7, "Was it worth it?")
    page = OUT / "report.html"
    data = city.run(BANK.org, "job", "report", JOB, "--html", str(page), "--json").json()
    pooled = baseline.pooled(city, JOB, tables)
    seconds = time.monotonic() - began
    summary = {
        "scorecard": {
            "auc": {
                "joint": data["joint"]["auc"],
                "pooled": pooled.auc.value,
                "bank_only": data["bank_only"]["auc"],
            },
            "ks": {
                "joint": data["joint"]["ks"],
                "pooled": pooled.ks.value,
                "bank_only": data["bank_only"]["ks"],
            },
            "openings": data["openings"],
            "exposure": data["exposure"],
            "seconds": data["seconds"],
            "bytes": data["bytes"],
        },
        "counter_proposal": agreed,
        "disclosures": data["disclosures"],
        "receipts_verified": receipts[0],
        "receipts": receipts[1],
        "seconds_total": round(seconds, 1),
        "versions": {
            name: metadata.version(name) for name in ("lianmo", "flwr", "torch", "numpy", "numba")
        },
    }
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    auc = summary["scorecard"]["auc"]
    console.print(
        f"  test AUC   bank alone [bold]{auc['bank_only']:.4f}[/bold]   "
        f"joint [bold green]{auc['joint']:.4f}[/bold green]   "
        f"pooled plaintext (nobody may do that) {auc['pooled']:.4f}"
    )
    console.print(f"  report     {page}\n  summary    {OUT / 'summary.json'}")
    console.print(f"  in all     {seconds:.0f} s")
    return summary


if __name__ == "__main__":
    sys.exit(main())
