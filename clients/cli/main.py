"""The command line `lianmo NOUN VERB`: which nouns there are; each is imported when it is used.

A noun is a module with `app`, a Typer. Other packages add nouns through the entry points of the
group "lianmo.commands" (so `coordinator`, since clients must not import server).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import click
import typer.core
import typer.main
from typer.core import TyperArgument
from typer.utils import get_params_from_function

from clients.cli import common
from federation.errors import Unavailable

# Help stands here so that `lianmo --help` imports none of the modules.
NOUNS = {
    "init": ("clients.cli.init", "Make the home of one organisation: its keys and its card."),
    "org": ("clients.cli.org", "Show this organisation's card and decide whom to trust."),
    "network": ("clients.cli.network", "Decide, as founders, who belongs to the network."),
    "registry": ("clients.cli.registry", "Keep the public list of enterprises."),
    "catalogue": ("clients.cli.catalogue", "Describe what this organisation offers."),
    "data": ("clients.cli.data", "Register and check this organisation's own tables."),
    "job": ("clients.cli.job", "Propose, review, approve and follow joint jobs."),
    "grant": ("clients.cli.grant", "Draft, sign, revoke and follow enterprises' consent."),
    "verify": ("clients.cli.verify", "Ask an owner one question on one enterprise."),
    "model": ("clients.cli.model", "Score enterprises with a joint model, and watch it."),
    "audit": ("clients.cli.audit", "Show and verify this node's log of what it did."),
    "receipt": ("clients.cli.receipt", "Verify proofs of what organisations did, offline."),
    "node": ("clients.cli.node", "Run this organisation's node."),
    "doctor": ("clients.cli.doctor", "Check this node's surroundings and say what to do."),
    "lab": ("clients.cli.lab", "Try on one table what a joint job would gain."),
}
ADDED = {"coordinator": "Run the platform's coordinator."}
FLAT = {"doctor", "init", "lab"}  # a noun that is itself the command
ENTRY_POINTS = "lianmo.commands"


class Nouns(click.Group):
    """The top level: knows the nouns by name and imports only the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All nouns that are installed."""
        own = [noun for noun, (module, _) in NOUNS.items() if importlib.util.find_spec(module)]
        return own + sorted(_added().keys() - NOUNS.keys())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a noun, imported now."""
        if cmd_name in NOUNS and importlib.util.find_spec(NOUNS[cmd_name][0]):
            return _command(cmd_name, importlib.import_module(NOUNS[cmd_name][0]).app)
        if point := _added().get(cmd_name):
            try:
                return _command(cmd_name, point.load())
            except ImportError as error:
                todo = "install the whole package, or leave this command"
                what = f"`{cmd_name}` cannot be loaded ({type(error).__name__})"
                raise Unavailable(what, todo=todo) from error
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The nouns with one sentence each, without importing them."""
        names = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in names])


def _command(name: str, app: typer.Typer) -> click.Command:
    command = typer.main.get_command(app) if name in FLAT else typer.main.get_group(app)
    command.name = name
    command.help = command.help or _summary(name)
    _plain_help(command)
    return command


def _plain_help(command: click.Command) -> None:
    """Help as plain text everywhere: frames and colours would double its start-up time."""
    if hasattr(command, "rich_markup_mode"):
        command.rich_markup_mode = None
    _restore_help_of_arguments(command)
    for inner in getattr(command, "commands", {}).values():
        inner.short_help = inner.short_help or inner.help  # whole: click would cut it to one line
        _plain_help(inner)


def _restore_help_of_arguments(command: click.Command) -> None:
    """Since click 8.5 has a help text for arguments, it erases the one that typer 0.20 has set.

    Once it is back, both would print it: click's own section is left out.
    """
    command.format_arguments = _nothing  # type: ignore[method-assign]  # of this command alone
    if (function := getattr(command.callback, "__wrapped__", None)) is None:
        return
    written = get_params_from_function(function)
    for parameter in command.params:
        if isinstance(parameter, TyperArgument) and parameter.name in written:
            info = written[parameter.name].default
            parameter.help = parameter.help or getattr(info, "help", None)


def _nothing(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """A section of help that is printed elsewhere."""


def _summary(name: str) -> str:
    return NOUNS[name][1] if name in NOUNS else ADDED.get(name, "Added by another package.")


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"lianmo {version('lianmo')}")
        ctx.exit()


def _use_home(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is not None and not ctx.resilient_parsing:
        os.environ["LIANMO_HOME"] = path


# Typer would write `\\[required]`, for Rich, also where Rich does not print it.
typer.core.HAS_RICH = False

group = Nouns(
    name="lianmo",
    help="Joint credit models without moving raw records (联模).",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 refused, 4 signature or integrity, "
    "5 not found, 6 conflict or stale, 7 unavailable.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Option(
            ["--home"],
            metavar="DIRECTORY",
            expose_value=False,
            callback=_use_home,
            help="This organisation's home; default: LIANMO_HOME, then ~/.lianmo.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        ),
    ],
)


def call(arguments: Sequence[str]) -> int:
    """Run one command line in this process; returns its exit code."""

    def command() -> Any:
        return group.main(list(arguments), prog_name="lianmo", standalone_mode=False)

    before = os.environ.get("LIANMO_HOME")
    try:
        return common.run(command)
    finally:  # `--home` is for this one command line
        if before is None:
            os.environ.pop("LIANMO_HOME", None)
        else:
            os.environ["LIANMO_HOME"] = before


def main() -> None:
    """The program `lianmo`."""
    sys.exit(call(sys.argv[1:]))


if __name__ == "__main__":
    main()
