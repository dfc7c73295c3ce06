"""`lianmo registry`: the public list of enterprises that jobs run over."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli.common import JsonFlag, emit, open_home, open_input, say

if TYPE_CHECKING:
    from federation.registry import Registry

app = typer.Typer(no_args_is_help=True)

Table = Annotated[
    Path, typer.Argument(metavar="FILE", help="One code a line, a CSV, or a registry file.")
]
Region = Annotated[
    str | None, typer.Option(help="Whose enterprises; default: this organisation's region.")
]
AsOf = Annotated[
    str | None, typer.Option(metavar="DATE", help="Of which day, as 2026-01-31; default: today.")
]
ColumnName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The column with the codes, if it is a CSV.")
]


@app.command()
def add(
    file: Table,
    region: Region = None,
    as_of: AsOf = None,
    column: ColumnName = None,
    as_json: JsonFlag = False,
) -> None:
    """Keep a registry snapshot and make it the one that jobs run over."""
    from clients import registries
    from clients.store import opened

    home = open_home()
    found = _read(file, column, as_of, region or home.own().region)
    with opened(home.database_url) as store:
        emit(asdict(registries.add(home, store, found, datetime.now(UTC))), as_json)
    say("everybody in a job needs the same one: compare the digest with theirs")


@app.command()
def show(as_json: JsonFlag = False) -> None:
    """Show the registry snapshot that jobs run over."""
    from clients.store import opened

    with opened(open_home().database_url) as store:
        emit(asdict(store.registries.current()), as_json)


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="A list to check; default: the kept one.")
    ] = None,
    column: ColumnName = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every code of a list, or that the kept snapshot is what it was."""
    from clients import registries
    from clients.store import opened

    home = open_home()
    if file is None:
        with opened(home.database_url) as store:
            found = registries.current(home, store)
    else:
        found = _read(file, column, None, home.own().region)
    emit({"rows": len(found), "digest": found.digest.hex(), "valid": True}, as_json)


def _read(file: Path, column: str | None, as_of: str | None, region: str) -> Registry:
    from federation.errors import UsageError
    from federation.registry import MAGIC, load_registry, read_registry

    with open_input(file) as stream:
        is_snapshot = stream.read(len(MAGIC)) == MAGIC
    if is_snapshot:
        return load_registry(file)
    try:
        day = datetime.strptime(as_of, "%Y-%m-%d") if as_of else datetime.now(UTC)  # noqa: DTZ007  # a day
    except ValueError:
        raise UsageError("a day is written as 2026-01-31") from None
    return read_registry(file, day.date(), region, column)
