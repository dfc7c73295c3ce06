"""The commands around a replay: bundles at a party (`lianmo job`), the rest at an auditor."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli.common import JsonFlag, emit, open_home, read_envelope, say, table, write_out

if TYPE_CHECKING:
    from clients.bundles import Bundle
    from clients.home import Home
    from clients.replay import AuditStatement

Bundles = Annotated[
    list[Path], typer.Argument(metavar="BUNDLE...", help="What parties made with `job bundle`.")
]
Shares = Annotated[
    list[Path] | None,
    typer.Option("--share", metavar="FILE", help="A share handed on to you; repeatable."),
]
Out = Annotated[Path, typer.Option(help="Where to write it.")]


def bundle(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")],
    out: Out,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; default: the last.")] = None,
    draw: Annotated[
        Path | None, typer.Option(help="An auditor's draw: hand over the queries in it.")
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Hand over seed and data for a full replay of you.")
    ] = False,
    to: Annotated[
        str | None, typer.Option(metavar="AUDITOR", help="Who alone can read the bundle.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Hand an auditor this party's account of a run; seed and data only with --open."""
    from clients import bundles, replay
    from clients.store import opened
    from federation.errors import UsageError

    if is_open and to is None:
        raise UsageError("say to which auditor: `--to`")
    home = open_home()
    with opened(home.database_url) as store:
        made = replay.pack(
            home,
            store,
            job,
            now=_now(),
            attempt=attempt,
            draw=read_envelope(draw) if draw else None,
            opens=bundles.gate_data(home, store, _now, to or "") if is_open else None,
            to=to,
        )
    write_out(out, made, is_secret=True)
    emit({"bundle": out, "bytes": len(made), "to": to}, as_json, f"{out} written")


def share(
    file: Annotated[Path, typer.Argument(metavar="BUNDLE", help="With the job's escrow.")],
    to: Annotated[str, typer.Option(metavar="AUDITOR", help="Who replays; may be you.")],
    out: Out,
    as_json: JsonFlag = False,
) -> None:
    """Hand your share of a bank's seed to the auditor who replays; for auditors."""
    from clients import replay

    home = open_home()
    made = replay.share(home, _bundle(home, file), to, _now())
    write_out(out, made.to_json(), is_secret=True)
    emit({"share": out, "to": to}, as_json, f"{out} written, sealed to {to}")


def draw(
    bundles: Bundles,
    of: Annotated[str, typer.Option("--of", metavar="DEPARTMENT", help="Whose queries to open.")],
    out: Out,
    shares: Shares = None,
    part: Annotated[str, typer.Option(help="Which part of the queries.")] = "0.05",
    as_json: JsonFlag = False,
) -> None:
    """Draw the queries to open, from records and shares that are all signed by now."""
    from clients import replay
    from federation.errors import UsageError

    try:
        value = Decimal(part)
    except InvalidOperation:
        value = Decimal(0)
    if not (value.is_finite() and 0 < value <= 1):
        raise UsageError("a part is above 0 and at most 1: 0.05")
    part = format(value, "f")
    home = open_home()
    given = [_bundle(home, file) for file in bundles]
    made = replay.draw(home, given, [read_envelope(f) for f in shares or ()], of, part, _now())
    write_out(out, made.to_json(), is_secret=True)
    said = made.unverified(replay.AuditDraw)
    result = {"draw": out, "total": said.total, "drawn": len(said.drawn)}
    emit(result, as_json, f"{out}: {len(said.drawn)} of {said.total} queries of the bank")
    extra = f"--draw {out} --to {home.org} --out FILE"
    say(f"next: {of} runs `lianmo job bundle {given[0].manifest.job} {extra}`")


def replay_job(
    bundles: Bundles,
    shares: Shares = None,
    draw: Annotated[
        Path | None, typer.Option(help="Your draw; the queries are in the department's bundle.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the signed statement here; default: stdout.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Recompute a run from its parties' bundles, and sign what was found; for auditors."""
    from clients import replay

    home = open_home()
    given = [_bundle(home, file) for file in bundles]
    statement = replay.replay(
        home,
        given,
        [read_envelope(file) for file in shares or ()],
        read_envelope(draw) if draw else None,
        _now(),
    )
    signed = replay.signed_statement(home, statement)
    if out is not None:
        write_out(out, signed.to_json(), is_secret=True)
        emit(statement, as_json, lambda: _told(statement))
    else:
        from json import loads

        emit(loads(signed.to_json()), True, "")
        say(_told(statement))
    if statement.findings:
        raise typer.Exit(4)


def statement(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `job replay` signed.")],
    as_json: JsonFlag = False,
) -> None:
    """Verify an auditor's signed statement on a run, with its card alone."""
    from clients.replay import AuditStatement
    from federation.objects import Usage

    home, envelope = open_home(), read_envelope(file)
    found = home.trust().verify(envelope, AuditStatement, Usage.RUN, _now())
    emit(found.object, as_json, lambda: f"signed by {found.org}\n{_told(found.object)}")


# --- helpers --------------------------------------------------------------------------------------


def _now() -> datetime:
    return datetime.now(UTC)


def _bundle(home: Home, file: Path) -> Bundle:
    from clients import replay

    return replay.unpack(replay.read_file(file), home, _now())


def _told(found: AuditStatement) -> str:
    """The statement for a person."""
    head = f"{found.job}, attempt {found.attempt}, manifest {found.manifest}"
    done = table(
        ["check", "of", "compared"],
        [[item.check, item.of, f"{item.compared:,}"] for item in found.checks],
    )
    if not found.findings:
        return f"{head}\n{done}\nnothing deviates"
    lines = [
        [item.check, item.party, item.stage or "-", item.token or "-", item.what]
        for item in found.findings
    ]
    return f"{head}\n{done}\n\n{table(['check', 'party', 'stage', 'token', 'what'], lines)}"
