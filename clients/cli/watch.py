"""`lianmo verify watch`: rules whose start a bank is told of, under their grants."""

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
    require_place,
    say,
    table,
    write_out,
)
from clients.cli.receipt import write_receipts

if TYPE_CHECKING:
    from clients.watcher import Watcher

app = typer.Typer(no_args_is_help=True)

WatchId = Annotated[str, typer.Argument(metavar="WATCH", help="Its digest, or the beginning.")]


@app.command()
def add(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="This bank's name for the rule.")],
    grant: Annotated[str, typer.Option(help="A grant of the channel watch.")],
    provider: Annotated[str, typer.Option(help="Who watches.")],
    dataset: Annotated[str, typer.Option(help="Its dataset.")],
    field: Annotated[str, typer.Option(help="The field.")],
    op: Annotated[str, typer.Option(help="exists, compare or count.")] = "compare",
    arg: Annotated[str | None, typer.Option(help="The threshold on the grid.")] = None,
    below: Annotated[
        bool, typer.Option("--below", help="Tell when it falls below the threshold.")
    ] = False,
    period: Annotated[str, typer.Option(help="For which period.")] = "current",
    severity: Annotated[str, typer.Option(help="info, warning or critical.")] = "warning",
    debounce: Annotated[
        int, typer.Option(min=0, help="Seconds between two alerts at least.")
    ] = 86_400,
    as_json: JsonFlag = False,
) -> None:
    """Ask an owner to tell this bank when a rule starts to hold for a borrower."""
    from clients.watcher import Wanted, plain_watch

    asked = question(dataset, field, op, arg, period, below=below)
    with _watcher() as watcher:
        found = watcher.add(Wanted(grant, provider, rule, asked, severity, debounce))
    emit(plain_watch(found), as_json)
    say(f"{provider} watches; `lianmo verify watch alerts` shows what it tells")


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List this bank's watches, the newest first."""
    from clients.watcher import plain_watch

    with _watcher(offline=True) as watcher:
        found = [plain_watch(item) for item in watcher.all()]

    def human() -> str:
        names = ["watch", "rule", "provider", "field", "op", "arg", "severity", "ended", "is_told"]
        rows = [[_cell(item[name]) for name in names] for item in found]
        return table(names, rows) if rows else "no watches yet"

    emit(found, as_json, human)


@app.command()
def alerts(
    watch: Annotated[str | None, typer.Argument(help="One watch; default: all.")] = None,
    receipts: Annotated[
        Path | None, typer.Option(help="A folder for the receipts of the alerts.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the alerts that came, the newest first, or write out their receipts."""
    from clients.watcher import plain_alert

    with _watcher(offline=True) as watcher:
        digest = watcher.get(watch).digest if watch else None
        told = watcher.alerts(digest)
    if receipts is not None:
        write_receipts(receipts, {item.digest[:16]: item.receipt for item in told})
    found = [plain_alert(item) for item in told]

    def human() -> str:
        names = ["created", "rule", "severity", "org", "as_of", "uses_left"]
        rows = [[str(item[name]) for name in names] for item in found]
        return table(names, rows) if rows else "no alerts yet"

    emit(found, as_json, human)


@app.command()
def remove(
    watch: WatchId,
    receipt: Annotated[
        Path | None, typer.Option(help="Write the receipt that the owner looks no more to a file.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Take no more alerts of a watch, and tell its owner to look no more."""
    from clients.watcher import plain_watch
    from federation.errors import NotFound

    if receipt is not None:
        require_place(receipt)
    with _watcher() as watcher:
        found = watcher.remove(watch)
    emit(plain_watch(found), as_json)
    if not found.is_told:
        say(f"{found.request.provider} was not reached; the node goes on to tell it")
    if receipt is not None:
        if found.end_receipt is None:
            todo = "again with `--receipt` once the owner was told"
            raise NotFound("there is no receipt of this end yet", todo=todo)
        write_out(receipt, found.end_receipt.to_json())
        say(f"wrote {receipt}")


def question(
    dataset: str, field: str, op: str, arg: str | None, period: str, *, below: bool
) -> dict[str, Any]:
    """What the options say, as requests have it."""
    plain: dict[str, Any] = {"dataset": dataset, "field": field, "op": op}
    plain |= {"arg": arg, "period": period}
    if op in ("compare", "count"):
        plain["comparison"] = "lt" if below else "ge"
    return plain


def _cell(value: object) -> str:
    return "yes" if value is True else str(value or "-")[:24]


@contextlib.contextmanager
def _watcher(offline: bool = False) -> Iterator[Watcher]:
    from clients.watcher import Watcher

    with open_asking(offline=offline) as (home, store, carrier):
        yield Watcher(home, store, carrier, _now)


def _now() -> datetime:
    return datetime.now(UTC)
