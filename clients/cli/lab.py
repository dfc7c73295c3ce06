"""`lianmo lab`: what a joint job would gain, tried on one table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli.common import JsonFlag, console, emit, is_terminal, require_place, say, write_out

if TYPE_CHECKING:
    from rich.console import Console

    from clients.lab_run import Finding, Watch
    from federation.objects import JobManifest

app = typer.Typer(add_completion=False)


@app.command()
def lab(
    table: Annotated[Path, typer.Argument(help="The table: CSV (also .gz) or Parquet.")],
    spec: Annotated[Path, typer.Option(help="Who holds which columns: a JSON file.")],
    task: Annotated[str, typer.Option(help="What to train: scorecard or trees.")] = "scorecard",
    bank: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this bank's rows are customers.")
    ] = None,
    test_rows: Annotated[
        Path | None,
        typer.Option(help="Hold-out row numbers from 0, one a line; default: 30 %, stratified."),
    ] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="A process for each party, over TLS and the relay.")
    ] = False,
    openings: Annotated[
        int | None,
        typer.Option(
            min=0, max=20, help="Scorecard: openings of a rounded score while fitting [default: 3]."
        ),
    ] = None,
    trees: Annotated[int | None, typer.Option(min=1, help="Trees: how many [default: 30].")] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, max=10, help="Trees: levels of splits [default: 5].")
    ] = None,
    rate: Annotated[
        str | None, typer.Option("--learning-rate", help="Trees: each one's share [default: 0.2].")
    ] = None,
    leaves: Annotated[
        int | None, typer.Option(min=2, help="Trees: grow leaf by leaf, up to so many.")
    ] = None,
    thresholds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=126,
            help="Trees: distinct thresholds of a department's feature [default: no cap; a job's "
            "usual 3 is shown beside it].",
        ),
    ] = None,
    min_cohort: Annotated[
        int | None,
        typer.Option(min=5, help="Customers in a bin or leaf at least; default: by the table."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other entry of [scorecard] or [trees] in a job.toml, as in "
            "--set l2=2.0; repeatable. A wrong name lists them all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the hold-out and all randomness.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Split a table among the parties of a specification and show what a joint model gains."""
    from clients import lab as work

    if html is not None:
        require_place(html)
    named = {"trees": trees, "max_depth": depth, "learning_rate": rate, "max_leaves": leaves}
    named |= {"thresholds": thresholds}
    asked: dict[str, object] = {k: v for k, v in named.items() if v is not None}
    if leaves is not None:
        asked |= {"growth": "leaf"} | ({"max_depth": 10} if depth is None else {})
    with _progress() as watch:
        found = work.try_table(
            table,
            spec,
            task=task,
            bank=bank,
            test_rows=test_rows,
            processes=processes,
            settings=asked | _pairs(settings or []),
            openings=openings,
            min_cohort=min_cohort,
            seed=seed,
            watch=watch,
            foretell=_foretell,
        )
    for note in found.notes:
        say(f"note: {note}")
    if html is not None:
        from federation.report import render_html

        write_out(html, render_html(found.report).encode())
        say(f"report: {html}")
    if as_json:
        emit(found.summary(), as_json=True)
    else:
        _show(found)


def _pairs(settings: list[str]) -> dict[str, object]:
    """NAME=VALUE, as text."""
    from federation.errors import UsageError

    found: dict[str, object] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, not {item!r}")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def _foretell(manifest: JobManifest) -> None:
    """What the run will take, before it begins; the time if this machine was ever measured."""
    from clients import calibration
    from clients.home import default_path
    from federation.estimate import estimate
    from federation.report import size_text

    found = estimate(manifest, speeds=calibration.load(default_path()))
    text = f"{size_text(found.total_bytes)} between the parties"
    if found.computing_s is not None:
        text += f", {found.computing_s:.0f} s of computing"
    say(f"about {text}")


@contextmanager
def _progress() -> Iterator[Watch | None]:
    """A bar that follows the bank's stages, on a terminal only."""
    if not is_terminal():
        yield None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description:<24}"), BarColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console(), transient=True) as bars:
        bar = bars.add_task("reading", total=None)

        def watch(stage: str, step: int, steps: int) -> None:
            bars.update(bar, description=stage, completed=step, total=steps)

        yield watch


def _show(found: Finding) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from federation.report import headline, size_text

    out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    quality = found.report.assessment
    if quality is None:
        raise RuntimeError("a lab run opens its evaluation")
    names = [escape(party.name) for party in found.report.parties]
    out.print()
    out.print(
        f"[bold]{names[0]}[/] with {', '.join(names[1:])}: "
        f"{quality.train_rows:,} customers to train, {quality.test_rows:,} to test, "
        f"{(quality.train_bads + quality.test_bads):,} of them bad"
    )
    out.print()
    grid = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("On the test customers", "AUC", "95 % interval", "KS", "95 % interval"):
        grid.add_column(name, justify="left" if name.startswith("On") else "right")
    for label, model in (
        ("joint", quality.joint),
        ("pooled plaintext", quality.pooled),
        ("bank alone", quality.bank_only),
    ):
        if model is not None:
            grid.add_row(
                f"[bold]{label}[/]" if model is quality.joint else label,
                f"{model.auc.value:.4f}",
                f"{model.auc.low:.3f} to {model.auc.high:.3f}",
                f"{model.ks.value:.4f}",
                f"{model.ks.low:.3f} to {model.ks.high:.3f}",
            )
    out.print(grid)
    out.print()
    out.print(escape(headline(found.report)))
    exposure = found.report.exposure
    out.print()
    out.print(
        f"Exposure (暴露度) {exposure.value:.4f}: {exposure.queries:,} questions to each "
        f"department over {exposure.customers_min:,} customers; at a gate: {exposure.verdict}."
    )
    seconds, trees, count = found.seconds, found.report.trees, found.report.openings
    did = "1 opening" if count == 1 else f"{count} openings"
    if trees is not None:
        opened = ", ".join(f"{n} of {org}" for org, n in trees.bits_a_customer.items())
        did = f"{trees.kept} trees, thresholds open: {opened}"
    out.print(
        f"{did}; {size_text(found.size_bytes)} between the parties, "
        f"{seconds.total:.1f} s, of which {seconds.offline:.1f} s before any label is touched."
    )
    if found.capped is not None:
        out.print()
        _show_variants(out, found)


def _show_variants(out: Console, found: Finding) -> None:
    """What limits would cost, and what is within the exposure budget."""
    from rich.table import Table

    capped = found.capped
    if capped is None:
        return
    grid = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    grid.add_column("Other settings of the same trees")
    for name in ("AUC", "thresholds", "questions", "exposure"):
        grid.add_column(name, justify="right")
    within = [item for item in found.offers if item is not capped]
    for item in (capped, *within):
        grid.add_row(
            item.what,
            "-" if item.auc is None else f"{item.auc:.4f}",
            "-" if item.auc is None else str(sum(item.thresholds.values())),
            f"{item.questions:,}",
            f"{item.exposure:.4f}",
        )
    out.print(grid)
    out.print()
    if said := ", ".join(f"{name} {value}" for name, value in capped.changed.items()):
        out.print(f"A job's usual limits: {said}.")
    if not found.offers:
        out.print("No settings keep these customers within an exposure of 0.05: too few for trees.")
    elif within:
        out.print(
            "A department's gate refuses above 0.05; all but the first line are within, those that "
            "should cost least accuracy first."
            if capped not in found.offers
            else "All of these are within the 0.05 that a department's gate allows."
        )
