"""`lianmo node`: the resident process that takes part in jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from clients.cli.common import JsonFlag, emit, open_home

app = typer.Typer(no_args_is_help=True)


@app.command()
def start(
    warm: Annotated[bool, typer.Option(help="Compile the kernels in the background.")] = True,
    witness_only: Annotated[
        bool,
        typer.Option("--witness-only", help="Cosign the others' audit logs and do nothing else."),
    ] = False,
) -> None:
    """Run this organisation's node until it is stopped."""
    from clients.resident import serve, serve_witness
    from federation import logs

    home = open_home()
    logs.configure(file=home.log / "node.log")
    if witness_only:
        serve_witness(home, ready=lambda text: typer.echo(text))
        return
    serve(home, ready=lambda text: typer.echo(text), warm=warm)


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Show whether the node runs, what the coordinator knows of it, and its latest jobs."""
    from clients.resident import status as status_of

    emit(status_of(open_home()), as_json)
