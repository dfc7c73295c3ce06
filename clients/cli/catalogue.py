"""`lianmo catalogue`: what this organisation says about its datasets, and what others offer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli.approver import KeyFile, PassphraseFile, approval_key
from clients.cli.common import JsonFlag, emit, open_home, say, table

if TYPE_CHECKING:
    from clients.store import StoredEntry

app = typer.Typer(no_args_is_help=True)

DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's name.")]
FieldPairs = list[str] | None
WORDS = ("title", "legal_basis", "update_frequency", "provenance", "region", "as_of")


@app.command("set")
def set_(
    dataset: DatasetName,
    title: Annotated[str | None, typer.Option(help="In a person's words.")] = None,
    legal_basis: Annotated[str | None, typer.Option(help="By which right it is held.")] = None,
    update_frequency: Annotated[str | None, typer.Option(help="Such as monthly.")] = None,
    provenance: Annotated[str | None, typer.Option(help="From which system it comes.")] = None,
    region: Annotated[str | None, typer.Option(help="Whose data.")] = None,
    as_of: Annotated[str | None, typer.Option(metavar="DATE", help="Of which day.")] = None,
    level: Annotated[
        FieldPairs,
        typer.Option(metavar="FIELD=L1..L5", help="How sensitive a field is; '*' for every one."),
    ] = None,
    trade_secret: Annotated[
        FieldPairs, typer.Option(metavar="FIELD=yes|no", help="Whether it is a trade secret.")
    ] = None,
    unit: Annotated[FieldPairs, typer.Option(metavar="FIELD=UNIT", help="Such as CNY.")] = None,
    description: Annotated[
        FieldPairs, typer.Option(metavar="FIELD=TEXT", help="What the field means.")
    ] = None,
    min_cohort: Annotated[
        FieldPairs, typer.Option(metavar="FIELD=N", help="Customers in a bin at least.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="All of it in TOML: words, and [fields.NAME] tables.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Describe a dataset and its fields; nothing is in force before it is published."""
    from clients import datasets
    from clients.store import opened

    words, fields = _from_file(file) if file else ({}, {})
    given = (title, legal_basis, update_frequency, provenance, region, as_of)
    words |= {name: text for name, text in zip(WORDS, given, strict=True) if text is not None}
    options = {
        "level": level,
        "trade_secret": trade_secret,
        "unit": unit,
        "description": description,
        "min_cohort": min_cohort,
    }
    for option, pairs in options.items():
        for field, text in _pairs(option, pairs):
            fields.setdefault(field, {})[option] = text
    with opened(open_home().database_url) as store:
        datasets.describe(store, dataset, words, fields)
        _show(store.entries.get(dataset), as_json)
    say(f"next: `lianmo catalogue publish {dataset}`")


@app.command()
def show(dataset: DatasetName, as_json: JsonFlag = False) -> None:
    """Show the draft of a dataset's entry, and whether it is published."""
    from clients.store import opened

    with opened(open_home().database_url) as store:
        _show(store.entries.get(dataset), as_json)


@app.command()
def publish(
    dataset: DatasetName,
    key: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Sign a dataset's entry and give it to the coordinator; jobs approved before end with it."""
    from clients import datasets
    from clients.coordinator_client import CoordinatorClient
    from clients.store import opened
    from federation.catalogue import Dataset
    from federation.objects import Usage

    home = open_home()
    with opened(home.database_url) as store, CoordinatorClient(home) as client:
        signing = approval_key(home, key, passphrase_file)
        envelope = datasets.sign_entry(home, store, dataset, datetime.now(UTC), signing)
        if is_in_force := datasets.is_in_force(store, envelope):
            client.publish(dataset, envelope)
    entry = envelope.unverified(Dataset)
    result = {"dataset": dataset, "digest": entry.digest(), "fields": len(entry.fields)}
    if is_in_force:
        text = f"{dataset} is published: {entry.digest()}"
    else:
        signed = home.trust().verify(envelope, Dataset, Usage.APPROVE, datetime.now(UTC))
        by = " and ".join(signed.holders)
        text = f"{dataset} is signed by {by}, and not published yet: {entry.digest()}"
    emit(result | {"published": is_in_force}, as_json, text)
    if not is_in_force:
        say("fields of level L3 and above take two: another person signs the same with")
        say(
            f"`lianmo catalogue publish {dataset} --key FILE`, or without --key with the home's key"
        )


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List all published datasets whose owners' signatures hold."""
    from clients import jobs
    from clients.coordinator_client import CoordinatorClient

    home = open_home()
    with CoordinatorClient(home) as client:
        found = jobs.catalogue(home, client, datetime.now(UTC))
    entries = [found[key] for key in sorted(found)]

    def human() -> str:
        names = ["owner", "dataset", "title", "rows", "features", "label", "as of"]
        rows = [
            [
                *(e.owner, e.name, e.title, f"{e.rows:,}", str(len(e.features))),
                *("yes" if e.label else "no", e.as_of),
            ]
            for e in entries
        ]
        return table(names, rows) if rows else "nothing is published yet"

    emit(entries, as_json, human)


def _show(entry: StoredEntry, as_json: bool) -> None:
    draft = dict(entry.draft)

    def human() -> str:
        lines = [f"{entry.dataset}: {draft.get('title') or '-'}"]
        lines += [f"  {word.replace('_', ' ')}: {draft.get(word) or '-'}" for word in WORDS[1:]]
        state = f"published {entry.published}, {entry.digest}" if entry.digest else "not published"
        lines.append(f"  {state}")
        names = ["field", "type", "level", "trade_secret", "ops", "purposes", "min_cohort", "unit"]
        cells = [
            [_cell(field.get(name, field["name"])) for name in names] for field in _fields(draft)
        ]
        return "\n".join([*lines, table(names, cells), *_words(draft)])

    plain = {"dataset": entry.dataset, "digest": entry.digest, "published": entry.published}
    emit(plain | {"draft": draft}, as_json, human)


def _words(draft: Mapping[str, Any]) -> list[str]:
    """What stands of each field besides the table: what firms read, and what may be asked."""
    lines = []
    for field in draft["fields"]:
        if field.get("description"):
            lines.append(f"{field['name']}: {field['description']}")
        if said := field.get("enquiry"):
            filled = {name: value for name, value in said.items() if value not in ((), [])}
            shown = ((name.replace("_", " "), _cell(value)) for name, value in filled.items())
            lines.append(f"{field['name']} may be asked: " + "; ".join(map(" ".join, shown)))
    return lines


def _fields(draft: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**field, "field": field["name"]} for field in draft["fields"]]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _pairs(option: str, given: FieldPairs) -> list[tuple[str, str]]:
    from federation.errors import UsageError

    found = []
    for text in given or ():
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise UsageError(f"--{option.replace('_', '-')} takes FIELD=VALUE")
        found.append((field, value))
    return found


def _from_file(file: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    import tomllib

    from clients.cli.common import open_input
    from federation.errors import UsageError

    with open_input(file) as stream:
        try:
            content = tomllib.load(stream)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file.name} is not valid TOML: {error}") from None
    fields = content.pop("fields", {})
    wrong = [name for name in content if name not in WORDS]
    wrong += [name for name in content if not isinstance(content[name], str)]
    if wrong or not all(isinstance(item, dict) for item in fields.values()):
        where = ", ".join(wrong) or "fields"
        todo = f"it has {', '.join(WORDS)} and [fields.NAME] tables"
        raise UsageError(f"{file.name}: {where} is not expected there", todo=todo)
    return content, fields
