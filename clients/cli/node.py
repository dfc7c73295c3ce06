"""`lianmo node`: the resident process that takes part in jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from clients.cli.common import JsonFlag, emit, open_home

app = typer.Typer(no_args_is_help=True)


@app.command()
def start(
    warm: Annotated[bool, typer.Option(help="Compile the kernels in the background.")] = True,
) -> None:
    """Run this organisation's node until it is stopped."""
    from clients.resident import serve
    from federation import logs

    home = open_home()
    logs.configure(file=home.log / "node.log")
    serve(home, ready=lambda text: typer.echo(text), warm=warm)


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Show whether the node runs, what the coordinator knows of it, and its latest jobs."""
    from clients.resident import status as status_of

    emit(status_of(open_home()), as_json)
