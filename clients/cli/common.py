"""What every command shares: the home, the streams, `--json`, and errors as a person reads them.

Data goes to stdout, prose and progress to stderr. A command that fails says on stderr what
happened and what to do, and its exit code says of which sort it was; there is never a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TypeVar

import click
import typer

from federation.errors import LianmoError, Unavailable, UsageError

if TYPE_CHECKING:  # each costs 50 ms and more, and `--help` needs none of them
    from rich.console import Console

    from clients.home import Home
    from clients.store import Store
    from federation.envelope import Envelope

# No space, over quota, over the limit on a file's size.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "make room on that disk, then give the same command again"

T = TypeVar("T")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def open_home() -> Home:
    """The home that `--home`, LIANMO_HOME or the default names."""
    from clients.home import Home

    return Home.open()


@contextlib.contextmanager
def open_asking(*, offline: bool = False) -> Iterator[tuple[Home, Store, Any]]:
    """The home, its store, and who carries questions; offline: None, where things are only read."""
    from clients.coordinator_client import CoordinatorClient
    from clients.store import opened

    home = open_home()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(opened(home.database_url))
        yield home, store, None if offline else stack.enter_context(CoordinatorClient(home))


def console() -> Console:
    """Prose and progress: on stderr, in colour on a terminal only."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of prose, on stderr."""
    click.echo(text, err=True)


def emit(data: Any, as_json: bool, human: Callable[[], str] | str | None = None) -> None:
    """Print a result: as one JSON document, or as `human` (text, or what makes it).

    Without `human` a mapping becomes lines of name and value, a list of mappings a table.
    """
    plain = _plain(data)
    if as_json:
        click.echo(json.dumps(plain, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
    elif human is not None:
        click.echo(human if isinstance(human, str) else human())
    elif text := _text(plain):
        click.echo(text)


def is_terminal() -> bool:
    """Whether a person can be asked: both ends of the conversation are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def read_envelope(file: Path) -> Envelope:
    """A signed object from a file, or from stdin under the name `-`."""
    from federation.envelope import MAX_ENVELOPE, Envelope
    from federation.errors import IntegrityError

    if str(file) == "-":
        return Envelope.from_json(sys.stdin.buffer.read(MAX_ENVELOPE + 1))
    with open_input(file) as stream:
        try:
            return Envelope.from_json(stream.read(MAX_ENVELOPE + 1))
        except IntegrityError as error:
            todo = error.todo or "see that it is the right file, and whole"
            raise IntegrityError(f"{file}: {error.what}", todo=todo) from None


def open_input(file: Path) -> BinaryIO:
    """A file that the user named, opened to read bytes; UsageError if that cannot be."""
    try:
        return file.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {(error.strerror or 'error').lower()}") from None


def read_each(file: Path, what: str, read: Callable[[dict[str, Any]], T]) -> list[T]:
    """What is read from JSON objects, one a line, of a file or of stdin under the name `-`.

    what: one of them, for a person. Raises UsageError that names the first line which is none, or
    says that there is none at all.
    """
    if str(file) == "-":
        data = sys.stdin.buffer.read()
    else:
        with open_input(file) as stream:
            data = stream.read()
    found = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if line.strip():
            try:
                plain = json.loads(line)
            except (ValueError, RecursionError):
                plain = None
            if not isinstance(plain, dict):
                raise UsageError(f"line {number} is not a {what} in JSON")
            try:
                found.append(read(plain))
            except UsageError as error:
                raise UsageError(f"line {number}: {error.what}", todo=error.todo) from None
    if not found:
        raise UsageError(f"there is no {what} in {file}")
    return found


def require_place(file: Path) -> None:
    """A file that the user named can be written there; UsageError if not, before any work."""
    try:
        is_folder, has_folder = file.is_dir(), file.parent.is_dir()
    except OSError as error:
        raise UsageError(f"cannot write {file}: {(error.strerror or 'error').lower()}") from None
    if is_folder:
        raise UsageError(f"{file} is a folder", todo="name a file")
    if not has_folder:
        raise UsageError(f"there is no folder {file.parent}", todo="make it, or name another")


def write_out(file: Path, content: bytes, *, is_secret: bool = False) -> None:
    """Write a file that the user named, whole or not at all; is_secret: for this account alone.

    Raises UsageError if it cannot be there, NotKept if its disk takes nothing.
    """
    from federation.keyring import PUBLIC_MODE, SECRET_MODE, write

    require_place(file)
    write(file, content, SECRET_MODE if is_secret else PUBLIC_MODE)


def run(command: Callable[[], Any]) -> int:
    """Run a command line to its exit code; whatever goes wrong becomes a line on stderr.

    LIANMO_DEBUG=1 lets our own bugs through with their traceback, for developers only: a traceback
    may show data.
    """
    try:
        code = command()
    except LianmoError as error:
        say(f"error: {error}")
        return error.exit_code
    except click.UsageError as error:
        where = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        say(f"error: {_lower(error.format_message())}{where}")
        return 2
    except click.ClickException as error:
        say(f"error: {_lower(error.format_message())}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("stopped")
        return 130
    except Exception as error:  # the last line of defence: a traceback could show data
        if os.environ.get("LIANMO_DEBUG"):
            raise
        what, code = _unexpected(error)
        say(f"error: {what}")
        return code
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception) -> tuple[str, int]:
    """An error that no command foresaw, told without its text, which may hold data."""
    if isinstance(error, OSError):
        place = f" ({Path(str(error.filename)).name})" if error.filename else ""
        what = f"{(error.strerror or type(error).__name__).lower()}{place}"
        if error.errno in DISK_FULL:
            return f"{what}; {MAKE_ROOM}", Unavailable.exit_code
        return what, 1
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name: nothing has to be imported
    if "ProtocolError" in kinds:
        return f"{error}; both sides' transcripts go to the auditor", 4
    if "ParameterError" in kinds:
        return str(error), 1
    todo = "this is a bug of lianmo; LIANMO_DEBUG=1 shows where, and may show data"
    return f"unexpected {type(error).__name__}; {todo}", 1


def _lower(text: str) -> str:
    text = text.rstrip(".")
    return text[:1].lower() + text[1:]


def _plain(data: Any) -> Any:
    """JSON's view of pydantic models and containers of them."""
    if hasattr(data, "model_dump"):
        return data.model_dump(mode="json")
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return [_plain(item) for item in data]
    return data if isinstance(data, bool | int | float | None) else str(data)


def _text(plain: Any) -> str:
    if isinstance(plain, dict):
        width = max((display_width(key) for key in plain), default=0)
        return "\n".join(f"{pad(key, width)}  {_cell(value)}" for key, value in plain.items())
    if isinstance(plain, list) and plain and all(isinstance(row, dict) for row in plain):
        return table(list(plain[0]), [[_cell(value) for value in row.values()] for row in plain])
    if isinstance(plain, list):
        return "\n".join(_cell(item) for item in plain)
    return _cell(plain)


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, aligned also where a cell is Chinese."""
    lines = [[name.upper() for name in names], *map(list, rows)]
    widths = [max(display_width(line[i]) for line in lines) for i in range(len(names))]
    padded = (
        "  ".join(pad(cell, width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, width: int) -> str:
    """The text, filled up to a display width."""
    return text + " " * (width - display_width(text))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return "-" if value is None else str(value)
