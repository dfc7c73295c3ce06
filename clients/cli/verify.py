"""`lianmo verify`: questions on enterprises, under their grants."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import watch
from clients.cli.common import JsonFlag, emit, open_asking, read_each, say, table, write_out

if TYPE_CHECKING:
    from clients.home import Home
    from clients.store import Store
    from clients.verifier import Enquiry, Verifier, Wanted

POLL_S = 0.5

app = typer.Typer(no_args_is_help=True)
app.add_typer(watch.app, name="watch", help="Be told when a rule starts to hold for a borrower.")


@app.command()
def ask(
    grant: Annotated[str, typer.Option(help="The grant's digest, or its beginning.")],
    provider: Annotated[str, typer.Option(help="Whom to ask.")],
    dataset: Annotated[str, typer.Option(help="Its dataset.")],
    field: Annotated[str, typer.Option(help="The field.")],
    op: Annotated[
        str, typer.Option(help="exists, equals, compare, count; band or value for a query.")
    ],
    arg: Annotated[
        str | None, typer.Option(help="The threshold on the grid, or the text to compare with.")
    ] = None,
    below: Annotated[
        bool, typer.Option("--below", help="Ask whether it is below the threshold.")
    ] = False,
    period: Annotated[str, typer.Option(help="For which period.")] = "current",
    as_json: JsonFlag = False,
) -> None:
    """Put one question on one enterprise to the owner of the data."""
    from clients.verifier import Verifier

    question = watch.question(dataset, field, op, arg, period, below=below)
    wanted = _wanted({"grant": grant, "provider": provider} | question)
    with open_asking() as (home, store, carrier):
        verifier = Verifier(home, store, carrier, _now)
        found = verifier.ask(wanted)
        _show(found, as_json)
        _end_if_refused(home, store, verifier, found)


@app.command()
def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A JSON object a line: grant, provider, dataset, field, op, and where the "
            "question has them comparison (ge, lt), arg, period; - is stdin.",
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Put several questions; each is answered by itself, well or not."""
    from clients.verifier import Verifier, plain

    wanted = read_each(file, "question", _wanted)
    with open_asking() as (home, store, carrier):
        found = Verifier(home, store, carrier, _now).ask_all(wanted)
    shown = [{"error": str(item)} if isinstance(item, Exception) else plain(item) for item in found]

    def human() -> str:
        cells = [
            [str(number), str(row.get("result") or row.get("error")), str(row.get("value") or "")]
            for number, row in enumerate(shown, 1)
        ]
        return table(["line", "result", "value"], cells)

    emit(shown, as_json, human)
    if any(isinstance(item, Exception) for item in found):
        say("some questions were not answered; the others count")
        raise typer.Exit(1)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the questions that were put, the newest first."""
    from clients.verifier import Verifier, plain

    with open_asking(offline=True) as (home, store, carrier):
        found = Verifier(home, store, carrier, _now).page(None, limit)

    def human() -> str:
        names = ["id", "created", "provider", "field", "op", "arg", "period", "result"]
        rows = [[str(plain(item)[name] or "-") for name in names] for item in found]
        return table(names, rows) if rows else "no questions yet"

    emit([plain(item) for item in found], as_json, human)


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The question's id.")],
    receipt: Annotated[
        Path | None, typer.Option(help="Write the receipt of its answer to a file.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds to wait for a cosigned receipt, at most.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Show a question with its answer, or write out the answer's receipt."""
    from clients.verifier import Verifier
    from federation.errors import NotFound

    with open_asking(offline=True) as (home, store, carrier):
        verifier = Verifier(home, store, carrier, _now)
        found = verifier.get(id)
        if found.receipt is not None and found.receipt.status == "uncosigned" and wait:
            found = _completed(home, store, verifier, id, wait)
    if receipt is not None:
        if found.receipt is None:
            raise NotFound("there is no receipt: the question was refused or not answered")
        if found.receipt.status == "uncosigned":
            say("uncosigned so far: a running node fetches the cosigned one, or --wait 30")
        write_out(receipt, found.receipt.to_json())
        say(f"wrote {receipt}; `lianmo receipt verify {receipt}` checks it without a network")
    _show(found, as_json)


def _completed(home: Home, store: Store, verifier: Verifier, id: str, wait: float) -> Enquiry:
    """The question with its receipt once it is cosigned, or as it is when the time is over."""
    from clients.completing import Completing
    from clients.coordinator_client import CoordinatorClient

    until = time.monotonic() + wait
    with CoordinatorClient(home, retry_s=1.0) as client:
        completing = Completing(home, store, client, _now)
        while True:
            completing.round()
            found = verifier.get(id)
            done = found.receipt is None or found.receipt.status == "cosigned"
            if done or time.monotonic() >= until:
                return found
            time.sleep(POLL_S)


def _wanted(plain: dict[str, Any]) -> Wanted:
    from pydantic import ValidationError

    from clients.home import explain
    from clients.local_api import VerificationBody
    from federation.errors import UsageError

    try:
        return VerificationBody.model_validate(plain).wanted()
    except ValidationError as error:
        raise UsageError(f"the question: {explain(error)}") from None


def _show(found: Enquiry, as_json: bool) -> None:
    from clients.verifier import plain

    def human() -> str:
        word = found.result.value.replace("_", " ") if found.result else "no answer"
        text = found.answer.value if found.answer and found.answer.value else ""
        head = f"{word} {text}".strip()
        if found.answer is None or found.answer.as_of is None:
            return head
        return f"{head}  (as of {found.answer.as_of}, {found.answer.uses_left} uses left)"

    emit(plain(found), as_json, human)
    if found.result is not None:
        say(f"question {found.id}")


def _end_if_refused(home: Home, store: Store, verifier: Verifier, found: Enquiry) -> None:
    from clients.consent import Consents
    from clients.grants import state
    from clients.verifier import beyond
    from federation.enquiry import Answered

    if found.result is not Answered.REFUSED:
        return
    asked = found.request
    say(f"{asked.provider} refused; the reason is in its own log")
    held = Consents(store).get(asked.grant).grant
    known = beyond(held, state(home, store, asked.grant, _now()), asked)
    if not known and _is_used_up(verifier, found):
        known = f"the grant is used up at {asked.provider}"
    if known:
        say(f"as far as this home knows: {known}")
    raise typer.Exit(3)


def _is_used_up(verifier: Verifier, found: Enquiry) -> bool:
    """Whether the provider's last answer under the grant said that no use is left."""
    asked = found.request
    for earlier in verifier.page(found.number, 200):
        one, answer = earlier.request, earlier.answer
        is_same = (one.grant, one.provider) == (asked.grant, asked.provider)
        if is_same and answer is not None and answer.uses_left is not None:
            return answer.uses_left == 0
    return False


def _now() -> datetime:
    return datetime.now(UTC)
