"""`lianmo org renew|hold|release|revoke|distrust|keys`: what happens to keys over the years."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from clients.cli.common import JsonFlag, emit, is_terminal, open_home, say, table

if TYPE_CHECKING:
    from clients.keys import Changed

app = typer.Typer()

KeyName = Annotated[
    str, typer.Argument(metavar="KEY", help="The begin of its id, or its usage if only one has it.")
]
Reason = Annotated[str, typer.Option(help="Why; stands in the card for everybody.")]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Do not ask the coordinator; the card goes out as a file."),
]


@app.command()
def renew(
    usages: Annotated[
        list[str] | None, typer.Argument(metavar="[USAGE]...", help="log, tls, approve, admin ...")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of the home's keys but admin.")] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="Only keys that an older card does not have yet.")
    ] = False,
    offline: Offline = False,
    as_json: JsonFlag = False,
) -> None:
    """Make new keys; what the old ones signed stays good."""
    from clients import keys
    from clients.audit import AuditLog
    from clients.store import opened
    from federation.errors import UsageError
    from federation.identity import USAGES
    from federation.objects import Usage

    home = open_home()
    card = home.own()
    try:
        wanted = [Usage(name) for name in usages or []]
    except ValueError as error:
        todo = f"one of {', '.join(USAGES[card.org_kind])}"
        raise UsageError(str(error), todo=todo) from None
    if missing:
        wanted += keys.missing(card)
    if every:
        wanted += [usage for usage in USAGES[card.org_kind] if usage is not Usage.ADMIN]
    if not wanted and home.keyring.prepared() is None:
        if missing:
            emit({"org": home.org, "serial": card.serial}, as_json, "no key is missing")
            return
        raise UsageError("say which keys", todo="name usages, or --all, or --missing")
    with opened(home.database_url) as store:
        done = keys.renew(home, AuditLog(home, store), wanted, datetime.now(UTC), offline=offline)
    _tell(done, as_json)


@app.command()
def hold(
    name: KeyName, reason: Reason, offline: Offline = False, as_json: JsonFlag = False
) -> None:
    """Put a key on hold: nothing that it signed counts until it is released."""
    from clients import keys
    from clients.audit import AuditLog
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        audit = AuditLog(home, store)
        done = keys.hold(home, audit, name, reason, datetime.now(UTC), offline=offline)
    _tell(done, as_json)


@app.command()
def release(name: KeyName, offline: Offline = False, as_json: JsonFlag = False) -> None:
    """End the hold of a key."""
    from clients import keys
    from clients.audit import AuditLog
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        audit = AuditLog(home, store)
        done = keys.release(home, audit, name, datetime.now(UTC), offline=offline)
    _tell(done, as_json)


@app.command()
def revoke(
    name: KeyName,
    reason: Reason,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put a new key of the home in its place.")
    ] = False,
    offline: Offline = False,
    as_json: JsonFlag = False,
) -> None:
    """Revoke a key for good, for instance because it was stolen."""
    from clients import keys
    from clients.audit import AuditLog
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        done = keys.revoke(
            home,
            AuditLog(home, store),
            name,
            reason,
            datetime.now(UTC),
            replace=replace,
            offline=offline,
        )
    _tell(done, as_json)


@app.command()
def distrust(
    org: Annotated[str, typer.Argument(help="Whose card this home shall not trust any more.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Stop trusting an organisation here, at once and whatever others say."""
    from clients.audit import AuditLog
    from clients.store import opened
    from federation.errors import Refused, UsageError

    home = open_home()
    card = home.trust().card(org)
    if not yes:
        if not is_terminal():
            raise UsageError("nobody here to confirm", todo="say --yes")
        say(f"{org}: {card.name}; its jobs with this organisation stop")
        if not click.confirm("Distrust it?", err=True):
            raise Refused("still trusted", party=org)
    with opened(home.database_url) as store:
        AuditLog(home, store).distrust(org, datetime.now(UTC))
    emit({"org": org, "trusted": False}, as_json, f"{org} is not trusted here any more")


@app.command()
def keys(
    org: Annotated[str | None, typer.Argument(help="Default: every organisation.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how organisations' keys changed, as this home took note of it."""
    from federation.key_log import KeyLog

    changes = KeyLog(open_home().path).of(org)

    def human() -> str:
        rows = [
            [
                change.at,
                change.org,
                str(change.serial),
                key.usage,
                key.key_id[:12],
                f"{key.before or 'new'} -> {key.after}",
                change.how,
            ]
            for change in changes
            for key in change.keys
        ]
        names = ["when", "org", "card", "usage", "key", "change", "how"]
        return table(names, rows) if rows else "nothing changed since this home was made"

    emit([change.model_dump(mode="json") for change in changes], as_json, human)


def _tell(done: Changed, as_json: bool) -> None:
    card = done.card
    result: dict[str, Any] = {
        "org": card.org,
        "serial": card.serial,
        "fingerprint": card.fingerprint(),
        "coordinator": done.shown,
        "needs_restart": done.needs_restart,
    }
    emit(result, as_json, f"{card.org} has card {card.serial}")
    if done.shown == "shown":
        say("the coordinator has it; the others' nodes fetch it within a minute")
    else:
        why = f" ({done.why})" if done.why else ""
        say(f"not shown to the coordinator{why}; give it out: `lianmo org card --out FILE`")
    if done.needs_restart:
        say("restart the node: its connections still show the old certificate")
