"""`lianmo grant`: an enterprise's consent, from the bank's draft to the last receipt."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from clients.cli.common import (
    JsonFlag,
    emit,
    is_terminal,
    open_home,
    open_input,
    read_envelope,
    say,
    table,
    write_out,
)
from clients.cli.receipt import write_receipts

if TYPE_CHECKING:
    from clients.grants import Wanted
    from clients.home import Home
    from clients.store import Store
    from federation.grants import BySubject, Terms, Use

SignedWord = Annotated[
    Path | None, typer.Option(help="Write the signed word to this file, to hand it on.")
]

app = typer.Typer(no_args_is_help=True)

PURPOSES = "credit-decision, post-loan-monitoring or credit-model-training."
GrantId = Annotated[str, typer.Argument(metavar="GRANT", help="Its digest, or the beginning.")]
OutFile = Annotated[Path, typer.Option(help="The file to write.")]
MAX_FILE = 1 << 18
NO_VALUE = {"score": "part of a score", "watch": "watch begun"}  # what their first answer means


# --- the bank -------------------------------------------------------------------------------------


@app.command()
def draft(
    subject: Annotated[str, typer.Option(help="Credit code of the enterprise.")],
    item: Annotated[
        list[str],
        typer.Option(
            metavar="PROVIDER/DATASET/FIELD:OP[,OP][@CUT,CUT][%PERIOD,PERIOD]",
            help="What to ask for, as in tax/firms/revenue:compare@1000000; may stand several "
            "times.",
        ),
    ],
    out: OutFile,
    purpose: Annotated[str, typer.Option(help=PURPOSES)] = "credit-decision",
    channel: Annotated[str, typer.Option(help="verify, query, score or watch.")] = "verify",
    days: Annotated[int, typer.Option(min=1, max=90, help="How long it shall hold.")] = 30,
    uses: Annotated[int, typer.Option(min=1, help="How often it may be used.")] = 1,
    interval: Annotated[int, typer.Option(min=0, help="Seconds between two uses.")] = 0,
    retain: Annotated[int, typer.Option(min=0, help="Days to keep answers.")] = 30,
    lang: Annotated[str, typer.Option(help="Of the notice: zh or en.")] = "zh",
    model: Annotated[str | None, typer.Option(help="Digest of the joint model, to score.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draft a grant for an enterprise to read and sign."""
    from clients import grants, jobs
    from clients.coordinator_client import CoordinatorClient
    from federation.grants import Channel, Language
    from federation.objects import Purpose

    home, now = open_home(), _now()
    with CoordinatorClient(home) as client:
        catalogue = jobs.catalogue(home, client, now)
    terms = grants.draft(
        home,
        catalogue,
        subject=subject,
        wanted=[_wanted(text) for text in item],
        purpose=_choice(Purpose, purpose),
        channel=_choice(Channel, channel),
        now=now,
        days=days,
        max_uses=uses,
        min_interval_s=interval,
        retain_days=retain,
        lang=_choice(Language, lang),
        model=model,
    )
    write_out(out, terms.payload() + b"\n")
    _show_terms(terms, as_json)
    say(f"wrote {out}; the enterprise reads and signs it with `lianmo grant sign {out}`")


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What the enterprise has signed.")],
    as_json: JsonFlag = False,
) -> None:
    """Keep a grant that an enterprise has signed for this bank."""
    from clients import grants
    from clients.store import opened
    from federation.grants import Channel, Grant

    home, bundle = open_home(), _bundle(file)
    with opened(home.database_url) as store:
        digest = grants.hold(home, store, bundle, _now())
    emit({"grant": digest}, as_json, digest)
    use = {Channel.SCORE: "model score CODE", Channel.WATCH: "verify watch add RULE"}
    verb = use.get(bundle.signed.unverified(Grant).channel, "verify ask")
    say(f"next: `lianmo {verb} --grant {digest[:12]} ...`")


# --- the enterprise -------------------------------------------------------------------------------


@app.command()
def notice(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A draft.")],
    lang: Annotated[str | None, typer.Option(help="zh or en; default: the draft's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show in plain words what a draft would allow."""
    from federation.grants import Language
    from federation.grants import notice as notice_of

    terms = _terms(file)
    text = notice_of(terms, _choice(Language, lang) if lang else terms.notice_lang)
    emit({"notice": text}, as_json, text.rstrip("\n"))


@app.command()
def identity(out: OutFile, as_json: JsonFlag = False) -> None:
    """Write this enterprise's card, for an issuer to certify after comparing the fingerprint."""
    from clients import grants
    from federation.grants import SubjectCard

    home = open_home()
    envelope = grants.identity(home, _now())
    write_out(out, envelope.to_json() + b"\n")
    emit({"fingerprint": envelope.unverified(SubjectCard).fingerprint()}, as_json)
    say(f"next: give {out} to the issuer, and compare this fingerprint over another channel")


@app.command()
def certificate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What the issuer has signed.")],
    as_json: JsonFlag = False,
) -> None:
    """Keep the issuer's certificate on this enterprise's key."""
    from clients import grants

    found = grants.keep_certificate(open_home(), read_envelope(file))
    shown = {"issuer": found.org, "assurance": found.assurance.value, "until": found.not_after}
    emit(shown, as_json)


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="DRAFT", help="The bank's draft.")],
    out: OutFile,
    capacity: Annotated[
        str,
        typer.Option(help="legal-representative, authorised-officer or enterprise-seal."),
    ] = "legal-representative",
    key: Annotated[
        Path | None, typer.Option(help="A key file (PEM) instead of this home's key.")
    ] = None,
    card: Annotated[Path | None, typer.Option(help="With --key: the card of that key.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="With --key: the certificate on that card.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; the notice was read.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Read a draft and sign it with the enterprise's own key."""
    from clients import grants
    from clients.store import opened
    from federation.errors import UsageError
    from federation.grants import Capacity
    from federation.grants import notice as notice_of
    from federation.identity import PrivateKey
    from federation.objects import Usage

    terms = _terms(file)
    say(notice_of(terms, terms.notice_lang))
    if not yes:
        if not is_terminal():
            raise UsageError("nobody can be asked here; read the notice, then give --yes")
        click.confirm("sign this?", abort=True, err=True)
    if key is not None:
        if card is None or certificate is None:
            raise UsageError("--key goes with --card and --certificate")
        with open_input(key) as stream:
            secret = PrivateKey.from_pem(Usage.GRANT, stream.read(MAX_FILE))
        proof = read_envelope(card), read_envelope(certificate)
        bundle = grants.sign_terms(terms, secret, proof, _choice(Capacity, capacity), _now())
    else:
        home = open_home()
        secret, proof = home.key(Usage.GRANT), grants.own_proof(home)
        bundle = grants.sign_terms(terms, secret, proof, _choice(Capacity, capacity), _now())
        with opened(home.database_url) as store:
            grants.give(home, store, bundle, _now())
    write_out(out, bundle.to_json())
    emit({"grant": bundle.digest}, as_json, bundle.digest)
    say(f"wrote {out}; give it to the bank")


@app.command()
def page(
    out: Annotated[Path | None, typer.Option(help="Write the page to a file.")] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Else serve it on this port of loopback.")
    ] = 8460,
) -> None:
    """Give out the page on which an enterprise reads and signs on a phone or computer."""
    from clients import signing_page

    if out is not None:
        write_out(out, signing_page.page())
        say(f"wrote {out}; it needs no network")
        return
    signing_page.serve(port, lambda url: typer.echo(url))


@app.command()
def pause(grant: GrantId, out: SignedWord = None, as_json: JsonFlag = False) -> None:
    """Stop a grant until it is resumed."""
    _change("pause", grant, out, as_json)


@app.command()
def resume(grant: GrantId, out: SignedWord = None, as_json: JsonFlag = False) -> None:
    """Let a paused grant count again."""
    _change("resume", grant, out, as_json)


@app.command()
def revoke(grant: GrantId, out: SignedWord = None, as_json: JsonFlag = False) -> None:
    """End a grant for good."""
    _change("revoke", grant, out, as_json)


@app.command()
def history(
    grant: Annotated[str | None, typer.Argument(help="One grant; default: all.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Show what is here, fetch nothing.")
    ] = False,
    receipts: Annotated[
        Path | None, typer.Option(help="A folder for the receipts of the uses.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show every use of this enterprise's grants, each with a receipt of the provider's log."""
    from clients import grants
    from clients.consent import Consents
    from clients.coordinator_client import CoordinatorClient
    from clients.store import opened
    from clients.witness_book import WitnessBook
    from federation.grants import Use

    strangers: tuple[str, ...] = ()
    home = open_home()
    with opened(home.database_url) as store:
        if not offline:
            with CoordinatorClient(home) as client:
                strangers = grants.history(home, store, client, _now()).strangers
        consents = Consents(store)
        digest = consents.get(grant).digest if grant else None
        found, alarms = consents.uses(digest), len(WitnessBook(store).alarms())
    told = [(item.use.unverified(Use), item) for item in found]
    told.sort(key=lambda each: each[0].created)
    uses, found = [use for use, _ in told], [item for _, item in told]
    if receipts is not None:
        named = {use.digest()[:16]: item.receipt for use, item in zip(uses, found, strict=True)}
        write_receipts(receipts, named)
    names = ["created", "org", "verifier", "channel", "field", "op", "period", "purpose", "result"]

    def human() -> str:
        rows = [
            [*(_of_use(use, name) for name in names), item.receipt.status]
            for use, item in zip(uses, found, strict=True)
        ]
        nothing = "nothing that this home can verify" if strangers else "no uses yet"
        return table([*names, "receipt"], rows) if rows else nothing

    shown = [
        use.model_dump(mode="json") | {"receipt": item.receipt.model_dump(mode="json")}
        for use, item in zip(uses, found, strict=True)
    ]
    emit(shown, as_json, human)
    for org in strangers:
        say(f"{org} has told of uses, and this home does not trust its card yet: get it, compare")
        say("its fingerprint over another channel, `lianmo org trust CARD`, then look again")
    if alarms:
        say(f"{alarms} receipts contradict others of the same log: both are kept; call the auditor")


# --- the issuer and the platform ------------------------------------------------------------------


@app.command()
def certify(
    file: Annotated[Path, typer.Argument(metavar="CARD", help="The enterprise's card.")],
    out: OutFile,
    assurance: Annotated[
        str, typer.Option(help="A3: the enterprise's own seal; A2: an officer's key.")
    ] = "A2",
    fingerprint: Annotated[
        str | None, typer.Option(help="As the enterprise has told it another way.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Certify an enterprise's key after comparing its fingerprint with the enterprise."""
    from clients import grants
    from federation.catalogue import Assurance
    from federation.errors import IntegrityError, UsageError
    from federation.grants import verify_card

    envelope = read_envelope(file)
    card = verify_card(envelope)
    print_ = card.fingerprint()
    say(f"{card.subject} {card.name}")
    if fingerprint is None:
        if not is_terminal():
            todo = "ask the enterprise for it and give it with --fingerprint"
            raise UsageError("nobody here to confirm the fingerprint", todo=todo)
        say(print_)
        click.confirm("did the enterprise tell you the same?", abort=True, err=True)
    elif _digits(fingerprint) != _digits(print_):
        todo = "somebody else may have made this card: ask the enterprise again"
        raise IntegrityError("the fingerprint is another one", todo=todo)
    made = grants.certify(open_home(), envelope, _choice(Assurance, assurance), _now())
    write_out(out, made.to_json() + b"\n")
    emit({"certificate": out.name, "assurance": assurance}, as_json)


@app.command()
def uncertify(
    file: Annotated[
        Path, typer.Argument(metavar="CERTIFICATE", help="One that this organisation has signed.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Take a certificate on an enterprise's key back: its grants count no more."""
    from clients import grants
    from clients.coordinator_client import CoordinatorClient

    home, certificate = open_home(), read_envelope(file)
    revocation = grants.revoke_certificate(home, certificate, _now())
    with CoordinatorClient(home) as client:
        taken = client.revoke_certificate(revocation, certificate)
    emit({"revocation": taken.digest}, as_json)


@app.command()
def attest(
    file: Annotated[Path, typer.Argument(metavar="DRAFT", help="What the enterprise agreed to.")],
    out: OutFile,
    as_json: JsonFlag = False,
) -> None:
    """Attest, as the platform, that an enterprise agreed by a real-name click (A1)."""
    from clients import grants

    bundle = grants.attest(open_home(), _terms(file), _now())
    write_out(out, bundle.to_json())
    emit({"grant": bundle.digest}, as_json, bundle.digest)


# --- everybody ------------------------------------------------------------------------------------


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the grants in this home, the newest first; an owner's also say how often it was used."""
    from clients.consent import Consents
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store:
        rows = [_row(home, store, item.digest) for item in Consents(store).all()]

    def human() -> str:
        if not rows:
            return "no grants yet"
        names = ["grant", "state", "part", "grantee", "channel", "purpose", "uses", "expires"]
        return table(names, [[str(row[name])[:32] for name in names] for row in rows])

    emit(rows, as_json, human)


@app.command()
def show(grant: GrantId, as_json: JsonFlag = False) -> None:
    """Show a grant: its notice, its state and what was said on it since."""
    from clients.consent import Consents
    from clients.grants import verifier
    from clients.store import opened
    from federation.grants import notice as notice_of

    home = open_home()
    with opened(home.database_url) as store:
        consents = Consents(store)
        stored = consents.get(grant)
        row = _row(home, store, stored.digest)
        events = [said.event for said in consents.events(stored.digest, verifier(home, _now()))]
    content = stored.grant

    def human() -> str:
        said = [f"{event.effective}  {event.change}" for event in events]
        head = f"{stored.digest}: {row['state']}, assurance {content.assurance}"
        return "\n".join([head, notice_of(content, content.notice_lang), *said])

    plain = row | {"terms": content.model_dump(mode="json")}
    emit(plain | {"events": [e.model_dump(mode="json") for e in events]}, as_json, human)


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pause or revocation, signed.")],
    as_json: JsonFlag = False,
) -> None:
    """Hand in an enterprise's pause, resumption or revocation for it."""
    from clients import grants
    from clients.coordinator_client import CoordinatorClient
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store, CoordinatorClient(home) as client:
        digest = grants.hand_in(home, store, client, _bundle(file), _now())
    emit({"event": digest}, as_json)


@app.command()
def sync(as_json: JsonFlag = False) -> None:
    """Fetch what enterprises said on their grants since; a node does this by itself."""
    from clients import grants
    from clients.coordinator_client import CoordinatorClient
    from clients.store import opened

    home = open_home()
    with opened(home.database_url) as store, CoordinatorClient(home) as client:
        fresh = grants.sync(home, store, client, _now())
    emit({"new_events": fresh}, as_json, f"{fresh} new events")


def _of_use(use: Use, name: str) -> str:
    """A cell of the history; of a score or a watch no value went to the bank."""
    if name == "result" and use.result == "value" and use.channel in NO_VALUE:
        return NO_VALUE[use.channel]
    return str(getattr(use, name) or "-")


def _change(word: str, grant: str, out: Path | None, as_json: bool) -> None:
    from clients import grants
    from clients.consent import Consents
    from clients.coordinator_client import CoordinatorClient
    from clients.store import opened
    from federation.errors import Unavailable
    from federation.grants import Change

    home = open_home()
    with opened(home.database_url) as store:
        bundle = grants.change(home, store, grant, Change(word), _now())
        if out is not None:
            write_out(out, bundle.to_json())
            say(f"wrote {out}; whoever it is given to can `lianmo grant publish {out}`")
        else:
            try:
                with CoordinatorClient(home) as client:
                    client.hand_in_event(bundle)
            except Unavailable as error:
                error.todo = "nobody knows of it yet: give the command again, or hand a file from "
                error.todo += "`--out` to the owners"
                raise
            say("handed in; owners know it within a minute")
        stored = Consents(store).get(grant)
        told = f"{stored.digest[:12]}: {grants.state(home, store, grant, _now())}"
    emit({"event": bundle.proof_digest}, as_json, told)


def _row(home: Home, store: Store, digest: str) -> dict[str, Any]:
    from clients import grants
    from clients.consent import MET, Consents

    stored = Consents(store).get(digest)
    content = stored.grant
    return {
        "grant": stored.digest,
        "part": stored.part,
        "state": grants.state(home, store, stored.digest, _now()).value,
        "subject": content.subject,
        "grantee": content.grantee,
        "channel": content.channel.value,
        "purpose": content.purpose.value,
        "assurance": content.assurance.value,
        # who asks and who has granted do not count: each owner does, for itself
        "uses": f"{stored.uses}/{content.max_uses}"
        if stored.part == MET
        else str(content.max_uses),
        "not_before": content.not_before,
        "expires": content.expires,
    }


def _show_terms(terms: Terms, as_json: bool) -> None:
    from federation.grants import notice as notice_of

    emit(terms, as_json, notice_of(terms, terms.notice_lang))


def _terms(file: Path) -> Terms:
    from clients import grants

    with open_input(file) as stream:
        return grants.read_terms(stream.read(MAX_FILE))


def _bundle(file: Path) -> BySubject:
    from federation.grants import BySubject

    with open_input(file) as stream:
        return BySubject.from_json(stream.read(MAX_FILE))


def _wanted(text: str) -> Wanted:
    """PROVIDER/DATASET/FIELD:OP,OP@CUT,CUT%PERIOD,PERIOD; only the place is needed."""
    from clients.grants import Wanted
    from federation.catalogue import Question
    from federation.errors import UsageError

    rest, _, periods = text.partition("%")
    rest, _, cuts = rest.partition("@")
    place, _, ops = rest.partition(":")
    parts = place.split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise UsageError("an item is PROVIDER/DATASET/FIELD:OP@THRESHOLD%PERIOD")
    return Wanted(
        provider=parts[0],
        dataset=parts[1],
        field=parts[2],
        ops=tuple(_choice(Question, op) for op in ops.split(",") if op),
        periods=tuple(period for period in periods.split(",") if period) or ("current",),
        thresholds=tuple(cut for cut in cuts.split(",") if cut),
    )


def _choice(kind: type[Any], text: str) -> Any:
    from federation.errors import UsageError

    try:
        return kind(text)
    except ValueError:
        words = ", ".join(item.value for item in kind)
        raise UsageError(f"{text} is none of {words}") from None


def _digits(text: str) -> str:
    return "".join(c for c in text.lower() if c in "0123456789abcdef")


def _now() -> datetime:
    return datetime.now(UTC)
