"""How the examples tell their story: headlines, and each command as its organisation types it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

WIDEST = 110  # characters of a command that are shown

console = Console(highlight=False, soft_wrap=True)


def step(number: int, text: str) -> None:
    """A headline of the story."""
    console.print(f"\n[bold]{number}. {text}[/bold]")


def say(org: str, arguments: Sequence[str]) -> None:
    """Show a command as its organisation types it."""
    shown = " ".join(part if " " not in part else repr(part) for part in arguments)
    shown = shown if len(shown) <= WIDEST else shown[: WIDEST - 3] + "..."
    console.print(f"  [cyan]{org:<18}[/cyan][dim]$[/dim] lianmo {escape(shown)}")
