"""`lianmo job`: propose, read, decide and follow joint-modelling jobs."""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from clients.cli import replay as replays
from clients.cli.approver import KeyFile, PassphraseFile, approval_key
from clients.cli.common import (
    JsonFlag,
    console,
    emit,
    is_terminal,
    open_home,
    say,
    table,
    write_out,
)
from clients.cli.review_text import review_text

if TYPE_CHECKING:
    from clients.coordinator_client import CoordinatorClient
    from clients.home import Home
    from clients.jobs import Disclosures
    from clients.store import Store
    from federation.api import Event, JobDetail, ProgressBody
    from federation.errors import RefusalCode
    from federation.review import Review

app = typer.Typer(no_args_is_help=True)

JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")]
Manifest = Annotated[
    str | None,
    typer.Option(
        "--manifest",
        metavar="DIGEST",
        help="The digest that the review showed (12 digits or more): sign that one or nothing.",
    ),
]


Words = Annotated[str, typer.Option(help="The reason in words, for the bank.")]
Code = Annotated[
    str,
    typer.Option(
        help="SPEC_INVALID, FIELD_LEVEL, PURPOSE_NOT_ALLOWED, INSUFFICIENT_BUDGET, "
        "UNFULFILLABLE, CONSENT_INVALID or DECLINED."
    ),
]


@app.command()
def new(
    job: JobName,
    dataset: Annotated[str, typer.Option(help="Your own dataset, with customers and labels.")],
    department: Annotated[
        list[str], typer.Option(metavar="ORG/DATASET", help="A department's dataset; repeatable.")
    ],
    platform: Annotated[
        str | None, typer.Option(metavar="ORG", help="The platform, if it has to approve too.")
    ] = None,
    customers_max: Annotated[
        int | None, typer.Option(help="Row keys for so many; hides the true number.")
    ] = None,
    customers_min: Annotated[
        int | None, typer.Option(help="What you promise to have at least.")
    ] = None,
    openings: Annotated[int, typer.Option(help="Openings of a rounded score while fitting.")] = 3,
    task: Annotated[str, typer.Option(help="What to train: scorecard or trees.")] = "scorecard",
    out: Annotated[Path | None, typer.Option(help="Where; default: JOB.toml.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a draft (job.toml) with comments, for you to change and then submit."""
    from clients import jobs
    from federation.errors import Conflict, UsageError

    if task not in ("scorecard", "trees"):
        raise UsageError(f"no draft for a {task} job; there are: scorecard, trees")
    target = out or Path(f"{job}.toml")
    if target.exists():
        raise Conflict(f"{target} exists already", todo="choose another file with --out")
    home, store = _home_and_store()
    text = jobs.draft_text(
        home,
        store,
        job,
        dataset=dataset,
        departments=department,
        platform=platform,
        customers_max=customers_max,
        customers_min=customers_min,
        openings=openings,
        task=task,
    )
    write_out(target, text.encode())
    emit({"job": job, "draft": target}, as_json, f"{target} written")
    say(f"next: look through it, then `lianmo job submit {target}`")


@app.command()
def estimate(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A draft (job.toml), or a submitted job's name.")
    ],
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's speed again.")
    ] = False,
    line: Annotated[
        float, typer.Option(min=0.1, help="Megabits a second of each party's line.")
    ] = 100.0,
    as_json: JsonFlag = False,
) -> None:
    """Say what a job would carry, hold and take, before anybody runs anything."""
    from clients.cli import estimates

    home, store = _home_and_store()
    with _client(home) as client:
        manifest = estimates.manifest_of(home, store, client, job, _now())
    before = estimates.questions_before(home, store, manifest)
    speeds = estimates.speeds(home, _now(), again=calibrate, say=say)
    found = estimates.of_job(home, manifest, speeds, 1e6 * line)
    plain = estimates.plain(found, manifest, before)
    emit(plain, as_json, lambda: estimates.text(found, manifest, before))


@app.command()
def submit(
    draft: Annotated[Path, typer.Argument(help="The draft that `job new` wrote.")],
    as_json: JsonFlag = False,
) -> None:
    """Sign a draft's manifest and ask every owner that it names."""
    from clients import jobs

    home, store = _home_and_store()
    with _client(home) as client:
        detail = jobs.submit(home, store, client, draft, _now())
    emit(_summary(detail), as_json, lambda: _line(detail))
    say(f"waiting for {', '.join(detail.missing)}; follow it with `lianmo job watch {detail.job}`")


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the jobs that name this organisation."""
    with _client(open_home()) as client:
        found = list(client.jobs())

    def human() -> str:
        names = ["job", "bank", "status", "created", "manifest"]
        rows = [[j.job, j.bank, j.status, j.created, j.manifest_digest[:12]] for j in found]
        return table(names, rows) if rows else "no jobs yet"

    emit(found, as_json, human)


@app.command()
def status(job: JobName, as_json: JsonFlag = False) -> None:
    """Show where a job is, whose approval is missing, and why it was refused."""
    home = open_home()
    with _client(home) as client:
        detail = client.job(job)
    told = _refusals(home, detail)
    emit(_summary(detail) | {"refusals": told}, as_json, lambda: _line(detail))
    _say_refusals(home, detail, told)


@app.command()
def review(job: JobName, as_json: JsonFlag = False) -> None:
    """Show what a job would read and disclose, and what changed since the last approved one."""
    from clients import jobs

    home, store = _home_and_store()
    with _client(home) as client:
        found = jobs.review_job(home, store, client, job, _now())
    emit(_plain(found), as_json, lambda: review_text(found))


@app.command()
def approve(
    job: JobName,
    manifest: Manifest = None,
    days: Annotated[int, typer.Option(help="How long the approval holds.")] = 30,
    key: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Approve exactly the manifest that you reviewed; of data from level L3 up two persons do."""
    signer = (key, passphrase_file)
    _decide(job, "approve", manifest=manifest, days=days, signer=signer, as_json=as_json)


@app.command()
def refuse(
    job: JobName,
    code: Code,
    words: Words = "",
    manifest: Manifest = None,
    key: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Refuse a job, with a reason; this is final for its manifest."""
    said = {"code": _reason(code), "words": words, "manifest": manifest}
    _decide(job, "refuse", signer=(key, passphrase_file), as_json=as_json, **said)


@app.command()
def narrow(
    job: JobName,
    drop_field: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="A field of yours to leave out; repeatable."),
    ] = None,
    openings: Annotated[int | None, typer.Option(help="Openings at most, of a scorecard.")] = None,
    evaluation: Annotated[
        bool, typer.Option(help="--no-evaluation: no score of each customer at the end.")
    ] = True,
    trees: Annotated[int | None, typer.Option(help="Trees at most that ask departments.")] = None,
    attempts: Annotated[int | None, typer.Option(help="Runs of the job at most.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="The day or time at which it ends.")
    ] = None,
    code: Code = "SPEC_INVALID",
    words: Words = "",
    manifest: Manifest = None,
    key: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="As the bank: propose it so, under a new name.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--as", metavar="JOB", help="With --accept: the new name.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Refuse a job and say what you would approve instead; or, as its bank, propose just that."""
    from federation.errors import UsageError

    less = _narrowing(drop_field, openings, evaluation, trees, attempts, expires)
    if accept:
        if any(less.values()) or words or manifest or key:
            todo = "the bank gives --accept and, if it likes, --as; an owner all the rest"
            raise UsageError("--accept takes what the owners asked for", todo=todo)
        return _accept(job, name, as_json)
    from pydantic import ValidationError

    from clients.home import explain
    from federation.objects import Narrowing

    try:
        asked = Narrowing.model_validate(less)
    except ValidationError as error:
        raise UsageError(explain(error), todo="see `lianmo job narrow --help`") from None
    said = {"code": _reason(code), "words": words, "narrowing": asked, "manifest": manifest}
    _decide(job, "refuse", signer=(key, passphrase_file), as_json=as_json, **said)


def _narrowing(
    drop_field: list[str] | None,
    openings: int | None,
    evaluation: bool,
    trees: int | None,
    attempts: int | None,
    expires: str | None,
) -> dict[str, Any]:
    end = f"{expires}T00:00:00Z" if expires and len(expires) == len("2026-01-31") else expires
    return {
        "drop_fields": tuple(drop_field or ()),
        "openings": openings,
        "evaluation": None if evaluation else False,
        "trees": trees,
        "attempts": attempts,
        "expires": end,
    }


def _accept(job: str, name: str | None, as_json: bool) -> None:
    from clients import jobs

    home, store = _home_and_store()
    new_name = name or jobs.next_name(job)
    with _client(home) as client:
        detail = jobs.narrower(home, store, client, job, new_name, _now())
    emit(_summary(detail), as_json, lambda: _line(detail))
    say(f"waiting for {', '.join(detail.missing)}; they see the difference in `lianmo job review`")


@app.command()
def withdraw(
    job: JobName,
    words: Annotated[str, typer.Option(help="Why, for the others.")] = "",
    manifest: Manifest = None,
    key: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Take an approval back: the job does not start, or stops at its next step."""
    signer = (key, passphrase_file)
    _decide(job, "withdraw", manifest=manifest, words=words, signer=signer, as_json=as_json)


@app.command()
def watch(job: JobName, as_json: JsonFlag = False) -> None:
    """Follow a job until it has ended; the exit code says how."""
    home = open_home()
    with _client(home) as client:
        last = _watch_bars(client, job) if is_terminal() else _watch_lines(client, job)
    emit(_summary(last), as_json, lambda: _line(last))
    _say_refusals(home, last, _refusals(home, last))
    raise typer.Exit(_exit_code(last))


@app.command()
def stop(
    job: JobName,
    words: Annotated[str, typer.Option(help="Why, for the others.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Stop a job at its next step."""
    with _client(open_home()) as client:
        detail = client.stop(job, words)
    emit(_summary(detail), as_json, lambda: _line(detail))


@app.command()
def disclosures(job: JobName, as_json: JsonFlag = False) -> None:
    """Show who really learned what in a job, beside what was declared."""
    from clients import jobs

    home = open_home()
    with _client(home) as client:
        found = jobs.disclosures(home, client, job, _now())
    emit(found, as_json, lambda: _disclosures_text(found))
    for org, status in found.receipts.items():
        say(f"receipt of {org}'s record: {status}")
    for org in found.missing:
        say(f"no run record of {org} yet: what it tells is not in the table")
    for text in found.problems:
        say(f"wrong: {text}")
    if found.problems:
        raise typer.Exit(4)


@app.command()
def report(
    job: JobName,
    html: Annotated[
        Path | None, typer.Option(help="Write the page here; default: in the home's runs.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a finished job's report: a page that works offline, or JSON."""
    from clients import results

    home = open_home()
    page, data = results.report(home, job)
    if html is not None:
        write_out(html, page.read_bytes())
        page = html
    emit(data, as_json, f"report: {page}")


app.command("bundle")(replays.bundle)
app.command("replay")(replays.replay_job)


# --- helpers --------------------------------------------------------------------------------------


def _now() -> datetime:
    return datetime.now(UTC)


def _client(home: Home) -> CoordinatorClient:
    from clients.coordinator_client import CoordinatorClient

    return CoordinatorClient(home)


def _home_and_store() -> tuple[Home, Store]:
    from clients.store import Store

    home = open_home()
    store = Store.open(home.database_url)
    click.get_current_context().call_on_close(store.close)
    return home, store


def _reason(code: str) -> RefusalCode:
    from federation.errors import RefusalCode, UsageError

    try:
        return RefusalCode(code.upper())
    except ValueError:
        known = ", ".join(item.value for item in RefusalCode)
        raise UsageError(f"no such reason: {code}", todo=f"take one of {known}") from None


def _refusals(home: Home, detail: JobDetail) -> list[dict[str, Any]]:
    """Who refused, why, and what that owner would approve."""
    from clients import jobs
    from federation import narrowing

    return [
        {
            "org": word.org,
            "code": word.code.value if word.code else "",
            "words": word.words,
            "asked": list(narrowing.words(word.narrowing)) if word.narrowing else [],
        }
        for word in jobs.refusals(home, detail, _now())
    ]


def _say_refusals(home: Home, detail: JobDetail, told: list[dict[str, Any]]) -> None:
    for item in told:
        reason = f": {item['words']}" if item["words"] else ""
        say(f"{item['org']} refused, {item['code']}{reason}")
        if item["asked"]:
            say(f"{item['org']} would approve it {'; '.join(item['asked'])}")
    if told and detail.bank == home.org:
        if any(item["asked"] for item in told):
            say(f"next: `lianmo job narrow {detail.job} --accept` proposes just that")
        else:
            say("next: change the draft and `lianmo job submit` it under a new name")


def _decide(
    job: str,
    decision: str,
    *,
    as_json: bool,
    signer: tuple[Path | None, Path | None],
    **options: Any,
) -> None:
    from clients import jobs
    from federation.errors import Refused, UsageError
    from federation.objects import Decision

    home, store = _home_and_store()
    if decision == "withdraw" and options["manifest"] is None:
        options["manifest"] = jobs.approved_here(store, home, job)
    with _client(home) as client:
        if options.get("manifest") is None:
            if not is_terminal():
                todo = "read `lianmo job review` and give its digest with --manifest"
                raise UsageError("nobody here to confirm what is signed", todo=todo)
            found = jobs.review_job(home, store, client, job, _now())
            say(review_text(found))
            if not typer.confirm(f"{decision} exactly this manifest?", err=True):
                raise Refused("nothing was signed", party=home.org)
            options["manifest"] = found.manifest
        elif decision == "approve":
            for text in jobs.review_job(home, store, client, job, _now()).warnings:
                say(f"warning: {text}")
        options["manifest_digest"] = options.pop("manifest")
        options["key"] = approval_key(home, *signer)
        approval = jobs.decide(home, store, client, job, Decision(decision), _now(), **options)
        detail = client.job(job)
    emit({**_summary(detail), "approval": approval.digest()}, as_json, lambda: _line(detail))
    if decision == "approve" and home.org in detail.missing:
        say(f"one more person of {home.org} has to approve: fields of level L3 and above")
        say(f"with a key of its own: `lianmo job approve {job} --key FILE`")


def _summary(detail: JobDetail) -> dict[str, Any]:
    return {
        "job": detail.job,
        "status": detail.status.value,
        "message": detail.message,
        "bank": detail.bank,
        "manifest_digest": detail.manifest_digest,
        "missing": list(detail.missing),
        "attempt": detail.attempt,
    }


def _line(detail: JobDetail) -> str:
    text = f"{detail.job}: {detail.status.value}"
    if detail.message:
        text += f" ({detail.message})"
    if detail.missing and not detail.status.is_final:
        text += f"; approval missing: {', '.join(detail.missing)}"
    return f"{text}\nmanifest {detail.manifest_digest}"


def _exit_code(detail: JobDetail) -> int:
    from federation.api import JobStatus

    codes = {
        JobStatus.SUCCEEDED: 0,
        JobStatus.REFUSED: 3,
        JobStatus.WITHDRAWN: 3,
        JobStatus.EXPIRED: 6,
    }
    return codes.get(detail.status, 1)


def _plain(found: Review) -> dict[str, Any]:
    data = {item.name: getattr(found, item.name) for item in dataclasses.fields(found)}
    data["fields"] = [dataclasses.asdict(field) for field in found.fields]
    data["refused"] = [dataclasses.asdict(item) for item in found.refused]
    data["parameters"] = dict(found.parameters)
    return data


def _disclosures_text(found: Disclosures) -> str:
    rows = [
        [
            d.source,
            d.to,
            d.what.value.replace("_", " "),
            f"{d.declared:,}",
            "-" if d.happened is None else f"{d.happened:,}",
            f"{d.in_all:,}",
            str(d.bits),
            "yes" if d.per_enterprise else "no",
            ", ".join(d.told_by) or "nobody",
        ]
        for d in found.lines
    ]
    names = [
        "from",
        "to",
        "what",
        "declared",
        "really",
        "all runs",
        "bits each",
        "of one enterprise",
        "told by",
    ]
    head = f"{found.job}, attempt {found.attempt}, manifest {found.manifest}"
    return f"{head}\n{table(names, rows)}"


def _say_event(event: Event) -> None:
    """One line an event, for pipes and logs."""
    parts = [event.at, event.org or "coordinator"]
    if event.status is not None:
        parts.append(event.status.value)
    if event.progress is not None:
        now = event.progress
        parts.append(f"{now.stage} {now.step}/{now.steps}{_waits(now)}")
    if event.text:
        parts.append(event.text)
    say("  ".join(parts))


def _waits(now: ProgressBody) -> str:
    """Whom the party waits for, and until when."""
    return f", waits for {now.waits_for} until {now.waits_until}" if now.waits_for else ""


def _watch_lines(client: CoordinatorClient, job: str) -> JobDetail:
    """A line for everything that happens."""
    from clients import jobs

    last = client.job(job)
    for detail, events in jobs.follow(client, job):
        last = detail
        for event in events:
            _say_event(event)
    return last


def _watch_bars(client: CoordinatorClient, job: str) -> JobDetail:
    """A live bar for each party on a terminal."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from clients import jobs

    columns = (
        TextColumn("{task.fields[org]:<20}"),
        BarColumn(bar_width=30),
        TextColumn("{task.description:<24}"),
        TextColumn("{task.fields[traffic]:>10}"),
        TimeElapsedColumn(),
    )
    bars: dict[str, TaskID] = {}
    last = client.job(job)
    with Progress(*columns, console=console(), transient=False) as progress:
        for detail, _ in jobs.follow(client, job):
            last = detail
            for org, now in last.progress.items():
                if org not in bars:
                    bars[org] = progress.add_task("", org=org, traffic="", total=1)
                megabytes = (now.sent_bytes + now.received_bytes) / 1e6
                progress.update(
                    bars[org],
                    description=now.stage + _waits(now),
                    completed=now.step,
                    total=max(now.steps, 1),
                    traffic=f"{megabytes:.1f} MB",
                )
    sys.stderr.flush()
    return last
