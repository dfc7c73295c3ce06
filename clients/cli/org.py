"""`lianmo org`: cards, and whom this organisation trusts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from clients.cli import approver, org_keys
from clients.cli.common import (
    JsonFlag,
    emit,
    is_terminal,
    open_home,
    read_envelope,
    say,
    table,
    write_out,
)

if TYPE_CHECKING:
    from federation.objects import Card

app = typer.Typer(no_args_is_help=True)
app.add_typer(approver.app, name="approver", help="Keep the persons who approve, and their keys.")
app.add_typer(org_keys.app)


@app.command()
def card(
    out: Annotated[Path | None, typer.Option(help="A file instead of stdout.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give out this organisation's card, for others to trust."""
    home = open_home()
    envelope = home.card()
    fingerprint = home.own().fingerprint()
    if out is None:
        click.echo(envelope.to_json())  # it is JSON, with and without --json
    else:
        write_out(out, envelope.to_json() + b"\n")
        emit({"org": home.org, "file": out, "fingerprint": fingerprint}, as_json)
    say(f"tell them this fingerprint over another channel: {fingerprint}")


@app.command()
def trust(
    files: Annotated[
        list[Path], typer.Argument(metavar="CARD...", help="The card's file, or - for stdin.")
    ],
    fingerprint: Annotated[
        list[str] | None,
        typer.Option(
            help="What they told you over another channel; for several cards ORG=FINGERPRINT each."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; you have compared the fingerprints.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Trust an organisation's card after comparing its fingerprint."""
    from clients.audit import AuditLog
    from clients.store import opened
    from federation.trust import verify_card

    home = open_home()
    envelopes = [read_envelope(file) for file in files]
    cards = [verify_card(envelope)[0] for envelope in envelopes]
    told, store_before = _told(fingerprint or [], cards), home.trust()
    compared = {}
    for found in cards:  # all are looked at before one is trusted
        before = store_before.card(found.org) if found.org in store_before else None
        known = before is not None and before.admin.key_id == found.admin.key_id
        if _compare(found, told.get(found.org), known=known, yes=yes):
            compared[found.org] = found.admin.key_id
    with opened(home.database_url) as store:
        log, now = AuditLog(home, store), datetime.now(UTC)
        trusted = [
            log.trust_card(envelope, now, compared=compared.get(card.org))
            for envelope, card in zip(envelopes, cards, strict=True)
        ]
    rows = [_row(card, home.org) for card in trusted]
    names = ", ".join(card.org for card in trusted)
    verb = "is" if len(trusted) == 1 else "are"
    emit(rows[0] if len(rows) == 1 else rows, as_json, f"{names} {verb} trusted")


def _told(fingerprints: list[str], cards: list[Card]) -> dict[str, str]:
    """The fingerprint told for each organisation.

    A fingerprint goes with a name: one that was told for another organisation must not do, or a
    member could hand out its own card under a neighbour's name.
    """
    from federation.errors import UsageError

    if len(cards) == 1 and len(fingerprints) == 1 and "=" not in fingerprints[0]:
        return {cards[0].org: fingerprints[0]}
    told = {}
    for item in fingerprints:
        org, equals, print_ = item.partition("=")
        if not equals or org not in {card.org for card in cards}:
            todo = "give ORG=FINGERPRINT for each of the cards"
            raise UsageError("a fingerprint without one of the cards' names", todo=todo)
        told[org] = print_
    return told


def _compare(found: Card, told: str | None, *, known: bool, yes: bool) -> bool:
    """Show a card, and hold its fingerprint against what was told; whether somebody compared."""
    from federation.errors import IntegrityError, Refused, UsageError
    from federation.identity import is_fingerprint

    say(f"{found.org}: {found.name} ({found.org_kind}, {found.region})")
    say(f"fingerprint: {found.fingerprint()}")
    if told is not None:
        if not is_fingerprint(found, told):
            todo = "do not trust this card; ask them for it again over another channel"
            raise IntegrityError("the fingerprint is another one", party=found.org, todo=todo)
    elif not known and not yes:  # a newer card is held by the admin key of the older one
        if not is_terminal():
            todo = "ask them for the fingerprint and give it with --fingerprint"
            raise UsageError("nobody here to confirm the fingerprint", todo=todo)
        if not click.confirm("Did they tell you this fingerprint?", err=True):
            raise Refused("not trusted", party=found.org)
    return told is not None or (not known and not yes)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the organisations that this one trusts."""
    home = open_home()
    store = home.trust()
    rows = [_row(store.card(org), home.org) for org in store]

    def human() -> str:
        names = ["org", "kind", "name", "region", "fingerprint", "until"]
        return table(names, [[str(row[name]) for name in names] for row in rows])

    emit(rows, as_json, human)


@app.command()
def show(
    org: Annotated[str | None, typer.Argument(help="Default: this organisation.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show an organisation's card with its keys."""
    home = open_home()
    found = home.trust().card(org or home.org)
    keys = [
        {
            "usage": key.usage,
            "alg": key.alg,
            "status": key.status,
            "until": key.not_after[:10],
            "key_id": key.key_id,
            "holder": key.holder,
        }
        for key in found.keys
    ]

    def human() -> str:
        row = _row(found, home.org)
        shown = row | {"self": "yes" if row["self"] else "no"}
        head = "\n".join(f"{name:12} {value}" for name, value in shown.items())
        lines = [[str(value) for value in key.values()] for key in keys]
        return f"{head}\n\n{table(list(keys[0]), lines)}"

    emit({**_row(found, home.org), "keys": keys}, as_json, human)


def _row(card: Card, me: str) -> dict[str, Any]:
    from federation.objects import KeyStatus

    ends = [key.not_after for key in card.keys if key.status is KeyStatus.ACTIVE]
    return {
        "org": card.org,
        "name": card.name,
        "kind": card.org_kind,
        "uscc": card.uscc,
        "region": card.region,
        "serial": card.serial,
        "created": card.created,
        "until": min(ends)[:10],
        "fingerprint": card.fingerprint(),
        "self": card.org == me,
    }
