"""`lianmo init`: one organisation's home."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from clients.cli.common import JsonFlag, emit, say

app = typer.Typer(add_completion=False)


@app.command()
def init(
    org: Annotated[str, typer.Option(help="Short name in the network, such as tax-bureau.")],
    kind: Annotated[
        str,
        typer.Option(help="department, bank, guarantor, utility, platform, auditor or enterprise."),
    ],
    name: Annotated[str, typer.Option(help="Full name, for display.")],
    uscc: Annotated[str, typer.Option(help="Unified social credit code of the organisation.")],
    region: Annotated[str, typer.Option(help="City or province.")],
    coordinator: Annotated[
        str | None, typer.Option(metavar="URL", help="The platform's address, https://...")
    ] = None,
    relay: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The relay, host:port.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which others reach it (platform only)."),
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Where; default: LIANMO_HOME, then ~/.lianmo.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the home of one organisation: its keys and its card."""
    from clients.home import Home
    from federation.errors import UsageError

    if host and kind != "platform":
        raise UsageError("--host is for the platform only; nodes only connect outwards")
    if kind == "platform" and not host:
        raise UsageError("a platform needs --host: the name under which the nodes reach it")
    made = Home.create(
        home or (Path(path) if (path := os.environ.get("LIANMO_HOME")) else None),
        org=org,
        kind=kind,
        name=name,
        uscc=uscc,
        region=region,
        coordinator_url=coordinator,
        relay_address=relay,
        hosts=tuple(host or ()),
    )
    print_ = made.own().fingerprint()
    emit({"org": made.org, "home": made.path, "fingerprint": print_}, as_json)
    say("next: give the card (`lianmo org card`) to the others, and compare the fingerprint")
