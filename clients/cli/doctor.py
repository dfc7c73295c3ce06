"""`lianmo doctor`: what is wrong around this node, and what to do."""

from __future__ import annotations

import typer

from clients.cli.common import JsonFlag, emit, open_home

app = typer.Typer(add_completion=False)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Check clock, keys, files, releases and connections, and say what to do."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from clients.doctor import State, examine

    found = list(examine(open_home(), datetime.now(UTC)))

    def human() -> str:
        lines = []
        for item in found:
            lines.append(f"{item.state:<8} {item.check:<12} {item.text}")
            if item.todo:
                lines.append(f"{'':<21} {item.todo}")
        return "\n".join(lines)

    emit([asdict(item) for item in found], as_json, human)
    if any(item.state is State.FAILED for item in found):
        raise typer.Exit(1)
