"""`lianmo receipt`: proofs of what organisations did, verified with their cards alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from clients.cli.common import JsonFlag, emit, open_home, open_input, read_envelope, say, write_out

if TYPE_CHECKING:
    from federation.audit import AuditEntry, Receipt, VerifiedReceipt
    from federation.trust import TrustStore

app = typer.Typer(no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Receipts.")]
UNCOSIGNED = (
    "uncosigned: too few other organisations have seen this log; its owner could still sign "
    "another one"
)


@app.command()
def verify(
    files: Files,
    card: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The log owner's card and its witnesses', instead of the cards that this home "
            "trusts. Repeatable.",
        ),
    ] = None,
    subject: Annotated[
        Path | None,
        typer.Option(
            "--object",
            metavar="FILE",
            help="A signed object, such as record.json, that the entry has to be about.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify receipts offline, with cards alone, and say which organisations cosigned the log."""
    from federation.audit import require_one_history, verify_receipt

    trust = _trust(card)
    wanted = _digest_of(subject)
    receipts = [read_receipt(file) for file in files]
    verified = [verify_receipt(item, trust) for item in receipts]
    require_one_history(verified)
    if not card:
        _require_seen_history(receipts)
    for item in verified:
        _require_about(item, wanted)
    rows = [_row(file, item) for file, item in zip(files, verified, strict=True)]

    def human() -> str:
        return "\n".join(
            f"{row['file']}: verified, {_line(v)}" for row, v in zip(rows, verified, strict=True)
        )

    emit(rows[0] if len(rows) == 1 else rows, as_json, human)
    if any(item.is_key_revoked for item in verified):
        say("note: a log key was revoked since; a thief could have dated a receipt back")
    if card:
        _say_fingerprints(trust)
    if any(item.status == "uncosigned" for item in verified):
        say(UNCOSIGNED)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what a receipt says, without verifying anything."""
    receipt = read_receipt(file)
    entry, proof = receipt.entry(), receipt.tlog_proof()
    emit(
        {
            "verified": False,
            "org": receipt.org,
            "origin": receipt.origin,
            "status": receipt.status,
            "log_key": receipt.key_id,
            "tree_size": proof.signed.checkpoint.size,
            **_entry(entry),
        },
        as_json,
    )
    say("nothing of this is verified: `lianmo receipt verify` does that")


# --- helpers --------------------------------------------------------------------------------------


def read_receipt(file: Path) -> Receipt:
    """A receipt's file, which nobody has verified yet."""
    from federation.audit import MAX_RECEIPT, Receipt

    with open_input(file) as stream:
        return Receipt.from_json(stream.read(MAX_RECEIPT + 1))


def write_receipt(receipt: Receipt, out: Path | None, as_json: bool) -> None:
    """A receipt to a file, or to stdout, where it is JSON in any case."""
    if out is None:
        click.echo(receipt.to_json(), nl=False)
        return
    write_out(out, receipt.to_json())
    emit({"file": out, "org": receipt.org, "status": receipt.status}, as_json)


def write_receipts(folder: Path, receipts: Mapping[str, Receipt]) -> list[str]:
    """Receipts to a folder, which is made; returns their names there."""
    from federation.keyring import not_kept

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_kept(folder, error) from None
    files = {f"{name}.receipt": receipt for name, receipt in receipts.items()}
    for name, receipt in files.items():
        write_out(folder / name, receipt.to_json())
    return list(files)


def _trust(cards: list[Path] | None) -> TrustStore:
    from federation.trust import TrustStore

    if cards:
        return TrustStore([read_envelope(file) for file in cards])
    return open_home().trust()


def _require_seen_history(receipts: list[Receipt]) -> None:
    """Of what this home itself has seen as a witness, if it was one."""
    from datetime import UTC, datetime

    from clients.store import opened
    from clients.witnessing import require_no_fork

    home = open_home()
    if home.config.database_url is None and not (home.path / "state.db").is_file():
        return
    with opened(home.database_url) as store:
        for item in receipts:
            require_no_fork(home, store, item, datetime.now(UTC))


def _say_fingerprints(trust: TrustStore) -> None:
    for org in trust:
        say(f"card of {org}: {trust.card(org).fingerprint()}; compare it over another channel")


def _digest_of(file: Path | None) -> str | None:
    """The digest of a signed object; who signed it is not for a receipt to say."""
    import hashlib

    return None if file is None else hashlib.sha256(read_envelope(file).payload).hexdigest()


def _require_about(item: VerifiedReceipt, wanted: str | None) -> None:
    from federation.errors import IntegrityError

    if wanted is not None and item.entry.object != wanted:
        raise IntegrityError("the receipt is about another object", party=item.org)


def _row(file: Path, item: VerifiedReceipt) -> dict[str, Any]:
    return {
        "file": file.name,
        "verified": True,
        "status": item.status,
        "org": item.org,
        "origin": item.origin,
        "tree_size": item.size,
        "root": item.root,
        "witnesses": [{"org": org, "at": at} for org, at in item.witnesses],
        "key_revoked_since": item.is_key_revoked,
        **_entry(item.entry),
    }


def _entry(entry: AuditEntry) -> dict[str, Any]:
    plain: dict[str, Any] = entry.model_dump(mode="json", exclude_none=True)
    return {key: value for key, value in plain.items() if key not in ("v", "tick", "prev_hash")}


def _line(item: VerifiedReceipt) -> str:
    entry = item.entry
    where = f"entry {entry.seq} of {item.origin}, signed with {item.size} entries"
    text = f"{entry.action} {entry.outcome} at {entry.time} ({where})"
    if item.status == "cosigned":
        text += f"; cosigned by {', '.join(sorted(org for org, _ in item.witnesses))}"
    return text
