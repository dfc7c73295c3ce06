"""The child processes of a coordinator, found from outside: for tests that kill them."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children(pid: int) -> list[int]:
    """Of every thread of a process; none of one that has ended."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(word) for task in tasks for word in task.read_text().split()]
    return []


def relay(coordinator: int) -> int | None:
    """The relay's process."""
    return _child(coordinator, "server.relay")


def server_app(coordinator: int) -> int | None:
    """The ServerApp that runs a job: it has left the folder in which spares wait."""
    return _child(coordinator, "server.worker", is_busy=True)


def _child(coordinator: int, module: str, *, is_busy: bool = False) -> int | None:
    for child in children(coordinator):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_text()
            is_at_work = str(Path(f"/proc/{child}/cwd").readlink()) != "/"
            if module in words and (is_at_work or not is_busy):
                return child
    return None
