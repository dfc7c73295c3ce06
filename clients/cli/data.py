"""`lianmo data`: this organisation's own tables."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli.common import JsonFlag, emit, open_home, say, table

if TYPE_CHECKING:
    from clients.store import StoredDataset

app = typer.Typer(no_args_is_help=True)

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
AsOf = Annotated[
    str | None, typer.Option(metavar="DATE", help="Of which day the data are; default: today.")
]


@app.command()
def add(
    name: DatasetName,
    key: Annotated[str, typer.Option(metavar="COLUMN", help="The column with the credit codes.")],
    file: Annotated[Path | None, typer.Option(help="A CSV (also .gz) or Parquet file.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A database (SQLAlchemy URL), or env:NAME of a variable that has it."),
    ] = None,
    query: Annotated[str | None, typer.Option(help="The SQL query, with --url.")] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A bank's 0/1 column, 1 = bad.")
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMNS", help="Columns that are categories, though of digits."),
    ] = None,
    number: Annotated[
        list[str] | None, typer.Option(metavar="COLUMNS", help="Columns that are numbers.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="COLUMNS", help="Columns that are left out.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Another name for a column.")
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(metavar="VALUES", help="What else means missing, such as -999,未知."),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of a CSV; default: UTF-8, else GB18030.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Of a CSV; default: as its header shows.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Whose data; default: this organisation's region.")
    ] = None,
    as_of: AsOf = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a table and register it; a table with a problem leaves nothing behind."""
    from pydantic import ValidationError

    from clients import datasets
    from clients.home import explain
    from clients.sources import Source
    from clients.store import opened
    from federation.errors import UsageError

    try:
        source = Source(
            file=str(file.absolute()) if file else None,
            url=url,
            query=query,
            key=key,
            label=label,
            encoding=encoding,
            delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
            missing=_listed(missing),
            numbers=_listed(number),
            categories=_listed(category),
            drop=_listed(drop),
            rename=_renamed(rename),
        )
    except ValidationError as error:
        raise UsageError(explain(error)) from None
    _require_day(as_of)
    home = open_home()
    with opened(home.database_url) as store:
        stored, notes = datasets.register(
            home, store, name, source, datetime.now(UTC), as_of=as_of, region=region
        )
    _tell(stored, notes, as_json)
    say(f"next: `lianmo catalogue set {name}`, then `lianmo catalogue publish {name}`")


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the registered datasets."""
    from clients.store import opened

    with opened(open_home().database_url) as store:
        found = store.datasets.all()

    def human() -> str:
        names = ["name", "rows", "columns", "unknown", "read"]
        rows = [
            [d.name, f"{d.rows:,}", str(len(d.columns)), f"{d.unknown:,}", d.added] for d in found
        ]
        return table(names, rows) if rows else "no datasets yet"

    emit([_plain(dataset) for dataset in found], as_json, human)


@app.command()
def show(name: DatasetName, as_json: JsonFlag = False) -> None:
    """Show a dataset's columns and where it comes from; never its content."""
    from clients.store import opened

    with opened(open_home().database_url) as store:
        _show(store.datasets.get(name), as_json)


@app.command()
def refresh(name: DatasetName, as_of: AsOf = None, as_json: JsonFlag = False) -> None:
    """Read a dataset's source again, with the same columns and types."""
    from clients import datasets
    from clients.store import opened

    _require_day(as_of)
    home = open_home()
    with opened(home.database_url) as store:
        stored, notes = datasets.refresh(home, store, name, datetime.now(UTC), as_of=as_of)
    _tell(stored, notes, as_json)


@app.command()
def remove(name: DatasetName, as_json: JsonFlag = False) -> None:
    """Forget a dataset and delete its snapshot; what it was asked so far still counts."""
    from clients import datasets
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        datasets.remove(home, store, name, datetime.now(UTC))
    emit({"removed": name}, as_json, f"{name} is removed")


def _tell(stored: StoredDataset, notes: tuple[str, ...], as_json: bool) -> None:
    for note in notes:
        say(f"note: {note}")
    if stored.unknown:
        say(f"note: {stored.unknown:,} rows of enterprises not in the registry are left out")
    _show(stored, as_json)


def _show(stored: StoredDataset, as_json: bool) -> None:
    def human() -> str:
        head = f"{stored.name}: {stored.rows:,} rows, read {stored.added}"
        return f"{head}\n{table(['column', 'type'], stored.columns)}"

    emit(_plain(stored), as_json, human)


def _plain(stored: StoredDataset) -> dict[str, Any]:
    """Without the URL, which may hold a password."""
    source = {k: v for k, v in stored.source.items() if v and k != "url"}
    return {
        "name": stored.name,
        "rows": stored.rows,
        "unknown": stored.unknown,
        "columns": [{"name": name, "type": kind} for name, kind in stored.columns],
        "source": source,
        "registry": stored.checked_against,
        "snapshot": stored.snapshot,
        "read": stored.added,
    }


def _listed(given: list[str] | None) -> tuple[str, ...]:
    """Repeated options and comma-separated lists alike."""
    return tuple(part.strip() for text in given or () for part in text.split(",") if part.strip())


def _renamed(given: list[str] | None) -> dict[str, str]:
    from federation.errors import UsageError

    pairs = {}
    for text in given or ():
        old, equals, new = text.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise UsageError("a renaming is OLD=NEW")
        pairs[old.strip()] = new.strip()
    return pairs


def _require_day(text: str | None) -> None:
    from datetime import date

    from federation.errors import UsageError

    if text is not None:
        try:
            date.fromisoformat(text)
        except ValueError:
            raise UsageError("a day is written as 2026-01-31") from None
