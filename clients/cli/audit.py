"""`lianmo audit`: this node's log of what it did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import replay as replays
from clients.cli.common import JsonFlag, emit, open_home, say, table

if TYPE_CHECKING:
    from clients.audit import AuditLog
    from clients.store import Store
    from federation.audit import AuditEntry

app = typer.Typer(no_args_is_help=True)

UNCOSIGNED = (
    "uncosigned: only this organisation's own log key vouches for it so far; "
    "`lianmo audit witnesses` says why"
)
POLL_S = 0.3


@app.command()
def show(
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From this day or time on (UTC).")
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="JOB", help="Of one job, by its name or digest.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what this node did: decisions, attempts, refusals, runs, data, trusted cards."""
    with _opened() as (log, store):
        names = {known.manifest: known.job for known in store.jobs.all()}
        subjects = log.subjects()
        chosen = _chosen(log.entries(), names, _moment(since), job)
    plain = [
        entry.model_dump(mode="json", exclude_none=True)
        | {"job_name": names.get(entry.job or ""), "leaf": entry.digest()}
        for entry in chosen
    ]

    def human() -> str:
        if not chosen:
            return "the audit log has no such entry"
        head = ["seq", "time", "action", "outcome", "reason", "job", "attempt", "tokens", "about"]
        return table(head, [_row(entry, names, subjects) for entry in chosen])

    emit(plain, as_json, human)


@app.command()
def verify(
    receipt: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A receipt of this log that somebody holds: is it of this very history? "
            "Repeatable.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compute the whole log again and hold the database against it; witnesses see its root only."""
    from clients.cli.receipt import read_receipt
    from federation.audit import verify_receipt

    home = open_home()
    receipts = [read_receipt(file) for file in receipt or ()]
    with _opened() as (log, _):
        found = log.verify()
        cosigned = log.cosigned()
        for item in receipts:
            verify_receipt(item, home.trust())
            log.require_holds(item)
    seen = 0 if cosigned is None else cosigned.checkpoint.size
    result = {
        "ok": not found.problems,
        "origin": found.origin,
        "entries": found.entries,
        "root": found.root,
        "erased": found.erased,
        "receipts": len(receipts),
        "cosigned_entries": seen,
        "status": "cosigned" if found.entries and seen >= found.entries else "uncosigned",
        "problems": list(found.problems),
    }

    def human() -> str:
        if found.problems:
            return "\n".join(f"wrong: {problem}" for problem in found.problems)
        text = f"{found.entries} entries of {found.origin} verify, root {found.root}"
        if receipts:
            text += f"\n{len(receipts)} receipts are of this history"
        return text

    emit(result, as_json, human)
    if found.problems:
        say("the log or the database was changed; keep both as they are and call the auditor")
        raise typer.Exit(4)
    say(f"witnesses have seen its first {seen} entries" if seen else UNCOSIGNED)


@app.command()
def witnesses(as_json: JsonFlag = False) -> None:
    """Show who cosigned this node's log and when, which logs it cosigned, and what it refused."""
    from clients.witness_book import WitnessBook
    from clients.witnessed import Witnessed
    from federation.objects import utc_text

    home, now = open_home(), datetime.now(UTC)
    with _opened() as (_, store):
        state, book = Witnessed(home, store).state(now), WitnessBook(store)
        seen, alarms = [item.checkpoint for item in book.newest()], book.alarms()
    result = {
        "entries": state.entries,
        "cosigned_entries": state.cosigned,
        "witnesses": [{"org": org, "at": utc_text(at)} for org, at in state.witnesses],
        "required": state.required,
        "possible": list(state.possible),
        "seen": None if state.since is None else utc_text(state.since),
        "stopped": state.reason,
        "logs": [{"origin": p.origin, "entries": p.size, "root": p.root.hex()} for p in seen],
        "alarms": [
            {"origin": a.origin, "kind": a.kind, "at": a.found, "ours": a.ours, "theirs": a.theirs}
            for a in alarms
        ],
    }

    def human() -> str:
        head = f"{state.cosigned} of {state.entries} entries are cosigned, {state.required} needed"
        lines = [head]
        if state.witnesses:
            rows = [[org, utc_text(at)] for org, at in state.witnesses]
            lines.append(table(["witness", "last cosigned"], rows))
        if seen:
            rows = [[point.origin, str(point.size)] for point in seen]
            lines.append(table(["log that this node cosigns", "entries"], rows))
        lines += [f"refused: {a.kind} of {a.origin} at {a.found}" for a in alarms]
        return "\n".join(lines)

    emit(result, as_json, human)
    if state.reason is not None:
        say(f"answers to questions stop: {state.reason}; {state.todo}")
    if alarms:
        say("call the auditor: --json has both notes of each refusal")


@app.command()
def receipt(
    seq: Annotated[int, typer.Argument(metavar="SEQ", help="The entry's number.")],
    wait: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds to wait for witnesses, at most.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="A file instead of stdout.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give out an entry's receipt, cosigned once witnesses have seen it; verifies with cards."""
    from clients.cli.receipt import write_receipt

    until = time.monotonic() + wait
    with _opened() as (log, _):
        while (made := log.receipt(seq)).status == "uncosigned" and time.monotonic() < until:
            time.sleep(POLL_S)
    write_receipt(made, out, as_json)
    if made.status == "uncosigned":
        say(UNCOSIGNED)


@app.command("erase-salt")
def erase_salt(
    seq: Annotated[
        list[int] | None, typer.Argument(metavar="SEQ...", help="Numbers of entries.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="All entries before this day or time (UTC).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Forget for good whom or what entries are about; the log verifies as before."""
    from federation.errors import UsageError
    from federation.objects import utc_time

    if not seq and before is None:
        raise UsageError("say which entries: their numbers, or --before TIME")
    moment = _moment(before)
    with _opened() as (log, _):
        chosen = set(seq or ())
        if moment is not None:
            chosen |= {entry.seq for entry in log.entries() if utc_time(entry.time) < moment}
        erased = log.erase_salts(sorted(chosen), datetime.now(UTC))
    emit({"erased": erased}, as_json, f"{erased} salts are erased")
    if erased:
        say("backups of the database still have them: they are yours to delete")


@app.command("retention")
def retention_(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it, erase nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Erase what is past its time (the node does it daily), or show what would be."""
    from clients.retention import Retention

    with _opened() as (log, store):
        retention = Retention(open_home(), store, log)
        now = datetime.now(UTC)
        found = retention.due(now) if dry_run else retention.erase(now)
    plain = [{"job": item.job, "what": item.what, "amount": item.amount} for item in found]

    def human() -> str:
        if not found:
            return "nothing is past its time"
        rows = [(item.job, item.what, str(item.amount)) for item in found]
        return table(["job", "would be erased" if dry_run else "erased", "files, rows"], rows)

    emit(plain, as_json, human)


app.command("share")(replays.share)
app.command("draw")(replays.draw)
app.command("statement")(replays.statement)


# --- helpers --------------------------------------------------------------------------------------


@contextmanager
def _opened() -> Iterator[tuple[AuditLog, Store]]:
    from clients.audit import AuditLog
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        yield AuditLog(home, store), store


def _moment(text: str | None) -> datetime | None:
    """A day or a time that the user wrote; without a zone it is UTC."""
    from federation.errors import UsageError

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("a time is written as 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _chosen(
    entries: list[AuditEntry], names: dict[str, str], since: datetime | None, job: str | None
) -> list[AuditEntry]:
    from federation.objects import utc_time

    def is_of_job(entry: AuditEntry) -> bool:
        if job is None:
            return True
        return entry.job is not None and (
            names.get(entry.job) == job or (len(job) >= 12 and entry.job.startswith(job))
        )

    return [
        entry
        for entry in entries
        if is_of_job(entry) and (since is None or utc_time(entry.time) >= since)
    ]


def _row(entry: AuditEntry, names: dict[str, str], subjects: dict[int, bytes]) -> list[str]:
    reason = ", ".join(str(part) for part in (entry.check, entry.reason) if part is not None)
    cells: list[Any] = [entry.seq, entry.time, entry.action, entry.outcome, reason]
    job = entry.job and names.get(entry.job, entry.job[:12])
    about = entry.object[:12]
    if entry.subject is not None:  # of a dataset: its name and snapshot
        known = subjects.get(entry.seq)
        about = "(erased)" if known is None else " ".join(known.decode().split()[:2])
    cells += [job, entry.attempt, entry.amount, about]
    return ["" if cell is None else str(cell) for cell in cells]
