"""`lianmo model`: the finished joint models, and enterprises' scores with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli.common import (
    JsonFlag,
    emit,
    open_asking,
    open_home,
    read_each,
    require_place,
    say,
    table,
    write_out,
)
from clients.cli.receipt import write_receipts

if TYPE_CHECKING:
    from clients.scorer import Scored, Scorer, Wanted

app = typer.Typer(no_args_is_help=True)

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job that made the model.")]
ScoreId = Annotated[str, typer.Argument(metavar="ID", help="The score's id.")]


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the joint models of this home, or this department's parts of them."""
    from clients import models
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        found = models.all_of(home, store)
    shown = [
        {"job": item.job, "kind": item.kind, "manifest": item.digest, "bank": item.manifest.bank}
        for item in found
    ]
    emit(shown, as_json, None if shown else "no models yet")


@app.command()
def show(job: Job, as_json: JsonFlag = False) -> None:
    """Show what a model reads of whom, and on which scale it scores."""
    from clients import models
    from clients.store import opened
    from federation.scoring import used_fields

    home = open_home()
    with opened(home.database_url) as store:
        stored = models.of_job(home, store, job)
    plain: dict[str, Any] = {"job": job, "kind": stored.kind, "manifest": stored.digest}
    if stored.kind.endswith("-part"):
        from clients.scoring import names_of

        plain["fields"] = {home.org: names_of(stored.part)}
    else:
        model = stored.model
        owners = [*stored.manifest.banks, *stored.manifest.departments]
        plain |= {
            "model": model.digest().hex(),
            "base_score": model.base_score,
            "base_odds": model.base_odds,
            "pdo": model.pdo,
            "fields": {org: used_fields(model, org) for org in owners},
        }

    def human() -> str:
        lines = [f"{name}  {value}" for name, value in plain.items() if name != "fields"]
        lines += [f"{org}: {', '.join(names) or '-'}" for org, names in plain["fields"].items()]
        return "\n".join(lines)

    emit(plain, as_json, human)


@app.command()
def draft(
    job: Job,
    subject: Annotated[str, typer.Option(help="Credit code of the enterprise.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    purpose: Annotated[
        str, typer.Option(help="credit-decision or post-loan-monitoring.")
    ] = "credit-decision",
    days: Annotated[int, typer.Option(min=1, max=90, help="How long it shall hold.")] = 30,
    uses: Annotated[int, typer.Option(min=1, help="How often it may be used.")] = 1,
    retain: Annotated[int, typer.Option(min=0, help="Days to keep the scores.")] = 30,
    lang: Annotated[str, typer.Option(help="Of the notice: zh or en.")] = "zh",
    as_json: JsonFlag = False,
) -> None:
    """Draft the grant under which an enterprise may be scored with a model."""
    from clients import grants, jobs
    from clients.coordinator_client import CoordinatorClient
    from clients.scorer import draft_wanted
    from clients.store import opened
    from federation.errors import UsageError
    from federation.grants import Channel, Language
    from federation.objects import Purpose

    home, now = open_home(), _now()
    if purpose not in set(Purpose) or lang not in set(Language):
        raise UsageError(f"purposes are {', '.join(Purpose)}; languages are {', '.join(Language)}")
    with opened(home.database_url) as store, CoordinatorClient(home) as client:
        catalogue = jobs.catalogue(home, client, now)
        model, wanted = draft_wanted(home, store, catalogue, job)
    terms = grants.draft(
        home,
        catalogue,
        subject=subject,
        wanted=wanted,
        purpose=Purpose(purpose),
        channel=Channel.SCORE,
        now=now,
        days=days,
        max_uses=uses,
        retain_days=retain,
        lang=Language(lang),
        model=model,
    )
    write_out(out, terms.payload() + b"\n")
    emit({"file": out.name, "model": model, "fields": len(terms.items)}, as_json)
    say(f"wrote {out}; the enterprise reads and signs it with `lianmo grant sign {out}`")


@app.command()
def score(
    applicant: Annotated[str, typer.Argument(metavar="APPLICANT", help="Credit code.")],
    grant: Annotated[str, typer.Option(help="The grant's digest, or its beginning.")],
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FEATURE=VALUE", help="A feature of this bank, as stated."),
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Write the page for the enterprise to a file.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score an enterprise with a joint model, under its grant."""
    wanted = _wanted({"grant": grant, "applicant": applicant, "own": _pairs(given)})
    if explain is not None:
        require_place(explain)  # before a use is spent
    with _scorer() as scorer:
        found = scorer.score(wanted)
        if explain is not None:
            write_out(explain, scorer.page_of(found).encode())
    _show(found, as_json)


@app.command()
def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A JSON object a line: grant, applicant (its credit code), own (the bank's own "
            "features, as stated); - is stdin.",
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Score several enterprises that have consented; each ends by itself, well or not."""
    from clients.scorer import plain
    from federation.errors import LianmoError

    wanted = read_each(file, "score", _wanted)
    with _scorer() as scorer:
        found = scorer.score_all(wanted)
    shown = [{"error": str(x)} if isinstance(x, LianmoError) else plain(x) for x in found]

    def human() -> str:
        rows = [
            [str(number), str(row.get("points", "-")), str(row.get("band") or row.get("error"))]
            for number, row in enumerate(shown, 1)
        ]
        return table(["line", "points", "band"], rows)

    emit(shown, as_json, human)
    if any("error" in row for row in shown):
        say("some were not scored; the others count")
        raise typer.Exit(1)


@app.command()
def scores(
    job: Annotated[str | None, typer.Option(help="Of one model only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the scores that were asked for, the newest first."""
    from clients.scorer import plain

    with _scorer(offline=True) as scorer:
        found = [plain(item) for item in scorer.page(None, limit, job)]

    def human() -> str:
        names = ["id", "created", "job", "points", "band", "as_of"]
        rows = [
            [str(item[name] if item[name] is not None else "-") for name in names] for item in found
        ]
        return table(names, rows) if rows else "no scores yet"

    emit(found, as_json, human)


@app.command()
def explain(
    id: ScoreId,
    out: Annotated[Path, typer.Option(help="The page to write.")],
    receipts: Annotated[
        Path | None, typer.Option(help="A folder for the departments' receipts.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the page that explains a score to its enterprise, and the receipts behind it."""
    with _scorer(offline=True) as scorer:
        found = scorer.get(id)
        write_out(out, scorer.page_of(found).encode())
    files = [out.name]
    if receipts is not None:
        files += write_receipts(receipts, found.receipts)
    emit({"id": id, "files": files}, as_json)


@app.command()
def drift(job: Job, as_json: JsonFlag = False) -> None:
    """Show how a model's scores have moved since training, month by month."""
    from clients import drift as drifts
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        found = drifts.drift(home, store, job)

    def human() -> str:
        rows = [
            [m.month, str(m.scores), f"{m.mean:.1f}", f"{m.stability:.4f}", m.verdict]
            for m in found.months
        ]
        first = [found.baseline, str(found.expected), f"{found.expected_mean:.1f}", "-", "-"]
        return table(["month", "scores", "mean", "stability index", "verdict"], [first, *rows])

    emit(found.plain(), as_json, human)


@contextlib.contextmanager
def _scorer(offline: bool = False) -> Iterator[Scorer]:
    from clients.gate import Gate
    from clients.scorer import Scorer

    with open_asking(offline=offline) as (home, store, carrier):
        yield Scorer(home, store, carrier, Gate(home, store, _now), _now)


def _wanted(plain: dict[str, Any]) -> Wanted:
    from pydantic import ValidationError

    from clients.home import explain
    from clients.score_api import ScoreBody
    from federation.errors import UsageError

    try:
        return ScoreBody.model_validate(plain).wanted()
    except ValidationError as error:
        raise UsageError(f"the score: {explain(error)}") from None


def _pairs(given: list[str] | None) -> dict[str, str]:
    from federation.errors import UsageError

    found = {}
    for text in given or []:
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError("--set takes FEATURE=VALUE")
        found[name] = value
    return found


def _show(found: Scored, as_json: bool) -> None:
    from clients.scorer import plain

    def human() -> str:
        if (score := found.score) is None:
            return "no score"
        head = f"{score.points} points, band {score.band}  (as of {score.as_of})"
        return "\n".join([head, *(f"  {reason.zh} / {reason.en}" for reason in score.reasons)])

    emit(plain(found), as_json, human)
    say(f"score {found.id}")


def _now() -> datetime:
    return datetime.now(UTC)
