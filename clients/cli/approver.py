"""`lianmo org approver`: the persons who approve, each with a key of its own."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli.common import JsonFlag, emit, is_terminal, open_home, read_envelope, say, table

if TYPE_CHECKING:
    from clients.home import Home
    from federation.identity import PrivateKey

app = typer.Typer(no_args_is_help=True)

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Sign with this person's key (`lianmo org approver new`); default: the home's key.",
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="The passphrase's file, where nobody is there to type it.",
    ),
]


@app.command()
def new(
    holder: Annotated[str, typer.Option(help="The person's name, as the card shall show it.")],
    out: Annotated[Path, typer.Option(help="The key's file; keep it where only this person is.")],
    org: Annotated[str | None, typer.Option(help="Default: this home's organisation.")] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a person's approval key, in a file that a passphrase opens, and a request for it."""
    from clients import approvers

    text = _passphrase(passphrase_file, is_new=True)
    key_id, request = approvers.new(org or open_home().org, holder, out, text)
    result = {"holder": holder, "key_id": key_id, "file": out, "request": request}
    emit(result, as_json, f"{out} is the key of {holder}")
    say(f"next, at the organisation's home: `lianmo org approver add {request}`")


@app.command()
def add(
    request: Annotated[Path, typer.Argument(help="What `lianmo org approver new` wrote beside.")],
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Do not ask the coordinator; the card goes out as a file."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Certify a person's key; the organisation has a newer card from then on."""
    from clients import approvers
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        asked, now = read_envelope(request), datetime.now(UTC)
        done = approvers.add(home, store, asked, now, offline=offline)
    card, added = done.card, done.card.keys[-1]
    result = {"holder": added.holder, "key_id": added.key_id, "serial": card.serial}
    result["coordinator"] = done.shown
    emit(result, as_json, f"{added.holder} may approve for {card.org}; card {card.serial}")
    if done.shown == "shown":
        say("the others fetch the newer card from the coordinator; the fingerprint is the same")
    else:
        say("next: give the newer card to the others (`lianmo org card`); same fingerprint")


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the persons who may approve for this organisation."""
    from federation.objects import Usage

    keys = [key for key in open_home().own().keys if key.usage is Usage.APPROVE]
    rows = [
        {
            "holder": key.holder,
            "kept": "at the home" if key.proof is None else "by the person",
            "status": key.status.value,
            "until": key.not_after[:10],
            "key_id": key.key_id,
        }
        for key in keys
    ]

    def human() -> str:
        return table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "nobody"

    emit(rows, as_json, human)


def approval_key(home: Home, file: Path | None, passphrase_file: Path | None) -> PrivateKey:
    """The key that signs: a person's, whose passphrase is asked for, or that of the home."""
    from federation.errors import UsageError
    from federation.objects import Usage

    if file is None:
        if passphrase_file is not None:
            raise UsageError("a passphrase without a key", todo="name the key with --key FILE")
        return home.key(Usage.APPROVE)
    from clients import approvers

    approvers.read(file)  # before anybody types a passphrase for it
    return approvers.open_key(home, file, _passphrase(passphrase_file, is_new=False))


def _passphrase(file: Path | None, *, is_new: bool) -> str:
    from federation.errors import UsageError

    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {file}: {type(error).__name__}") from None
    if not is_terminal():
        todo = "give it with --passphrase-file FILE"
        raise UsageError("nobody here to type the passphrase", todo=todo)
    text = getpass.getpass("passphrase: ")
    if is_new and getpass.getpass("once more: ") != text:
        raise UsageError("the two passphrases differ")
    return text
