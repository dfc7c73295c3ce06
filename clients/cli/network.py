"""`lianmo network`: who belongs to it, and how the founders decide that."""

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
    say,
    table,
    write_out,
)

if TYPE_CHECKING:
    from clients.home import Home
    from federation.envelope import Envelope
    from federation.network import Bundle, Charter, MemberDecision, Standing
    from federation.network_folder import Taken

app = typer.Typer(no_args_is_help=True)

Out = Annotated[Path | None, typer.Option(help="A file for the others, who may be offline.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not ask the coordinator.")]


@app.command()
def found(
    name: Annotated[str, typer.Argument(help="The network's name.")],
    out: Annotated[Path, typer.Option(help="The charter's file, for the other founders to sign.")],
    founder: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG", help="Another founder, whose card is trusted. Repeatable."),
    ] = None,
    quorum: Annotated[
        int | None, typer.Option(help="How many founders decide; default: more than half.")
    ] = None,
    stale: Annotated[
        int, typer.Option(help="Seconds without founders' word after which nothing goes on.")
    ] = 600,
    as_json: JsonFlag = False,
) -> None:
    """Write a charter: founders, and how many of them decide together."""
    from pydantic import ValidationError

    from clients import network
    from clients.home import explain
    from federation.errors import UsageError
    from federation.network import Charter

    home = open_home()
    count = len({home.org, *(founder or [])})
    try:
        envelope = network.found(
            home, name, founder or [], quorum or count // 2 + 1, stale, datetime.now(UTC)
        )
    except ValidationError as error:
        raise UsageError(explain(error)) from None
    write_out(out, envelope.to_json() + b"\n")
    charter = envelope.unverified(Charter)
    emit(_charter_row(charter) | {"file": out}, as_json)
    say("each other founder runs `lianmo network sign` on it, then all `lianmo network join`")


@app.command()
def join(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="The charter, and decisions if any.")
    ],
    fingerprint: Annotated[
        str | None, typer.Option(help="The charter's, as a founder told it over another channel.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; you have compared the fingerprint.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Join a network: from now on only its active members count here."""
    from clients import network
    from clients.audit import AuditLog
    from clients.store import opened
    from federation.errors import IntegrityError, Refused, UsageError
    from federation.network import check_charter

    home = open_home()
    bundles = [_read(file) for file in files]
    charters = [bundle.charter for bundle in bundles if bundle.charter is not None]
    if len({charter.payload for charter in charters}) != 1:
        todo = "give one file that has it"
        raise UsageError(f"{len(charters)} charters in these files", todo=todo)
    charter = check_charter(charters[0])
    say(f"{charter.network}: {charter.quorum} of {', '.join(f.org for f in charter.founders)}")
    say(f"fingerprint: {charter.fingerprint()}")
    if fingerprint is not None:
        if _digits(fingerprint) != charter.digest():
            todo = "do not join; ask the founders over another channel"
            raise IntegrityError("the fingerprint is another one", todo=todo)
    elif not yes:
        if not is_terminal():
            todo = "ask a founder for the fingerprint and give it with --fingerprint"
            raise UsageError("nobody here to confirm the fingerprint", todo=todo)
        if not click.confirm("Did a founder tell you this fingerprint?", err=True):
            raise Refused("not joined")
    now = datetime.now(UTC)
    with opened(home.database_url) as store:
        audit = AuditLog(home, store)
        network.join(home, audit, charters[0], now)
        taken = [network.take(home, audit, bundle, now) for bundle in bundles]
    _complain([error for one in taken for error in one.refused])
    strangers = [f.org for f in charter.founders if f.org not in home.trust()]
    if strangers:
        say(f"trust the cards of {', '.join(strangers)}: their word cannot be checked yet")
    emit(_charter_row(charter) | {"joined": True}, as_json, f"joined {charter.network}")


@app.command()
def propose(
    act: Annotated[str, typer.Argument(metavar="ACT", help="admit, suspend, resume or exit.")],
    orgs: Annotated[list[str], typer.Argument(metavar="ORG...", help="About whom.")],
    reason: Annotated[str, typer.Option(help="In words that everybody reads.")] = "",
    security: Annotated[str, typer.Option(help="Of an admission: what was found.")] = "",
    authorisation: Annotated[
        str, typer.Option(help="Of an admission: what allows it to take part.")
    ] = "",
    evidence: Annotated[
        Path | None, typer.Option(help="Of an admission: the report; only its digest is used.")
    ] = None,
    assessor: Annotated[str, typer.Option(help="Of an admission: who assessed.")] = "",
    valid_until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Of an admission: its last day.")
    ] = None,
    effective: Annotated[
        str | None, typer.Option(metavar="TIME", help="From when, in UTC; default: now.")
    ] = None,
    out: Out = None,
    offline: Offline = False,
    as_json: JsonFlag = False,
) -> None:
    """Propose, as a founder, to admit, suspend, resume or let go an organisation."""
    from pydantic import ValidationError

    from clients import network
    from clients.audit import AuditLog
    from clients.home import explain
    from clients.store import opened
    from federation.errors import UsageError
    from federation.network import Act

    home, now = open_home(), datetime.now(UTC)
    try:
        wanted = Act(act)
    except ValueError:
        raise UsageError(f"{act} is not admit, suspend, resume or exit") from None
    with opened(home.database_url) as store:
        audit = AuditLog(home, store)
        _sync(home, audit, offline)
        try:
            assessment = None
            if wanted is Act.ADMIT:
                assessment = _assessment(security, authorisation, evidence, assessor, valid_until)
            made = network.propose(
                home,
                audit,
                wanted,
                orgs,
                now,
                reason=reason,
                assessment=assessment,
                effective=None if effective is None else _time(effective),
            )
        except ValidationError as error:
            raise UsageError(explain(error)) from None
        _sync(home, audit, offline)
        _write_outgoing(home, audit, out)
    emit([_decision_row(home, item) for item in made], as_json)


@app.command()
def sign(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|ID...", help="A charter or decisions as files, or ids from `list`."
        ),
    ],
    out: Out = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; you have read what is signed.")
    ] = False,
    instead: Annotated[
        bool,
        typer.Option("--instead", help="Although another one was signed, which all gave up."),
    ] = False,
    offline: Offline = False,
    as_json: JsonFlag = False,
) -> None:
    """Add this founder's signature to a charter or to proposed decisions."""
    from clients import network
    from clients.audit import AuditLog
    from clients.store import opened
    from federation.errors import UsageError
    from federation.network import MemberDecision

    home = open_home()
    files = [Path(item) for item in what if Path(item).is_file()]
    bundles = [_read(file) for file in files]
    if not (home.path / "network").is_dir():
        if absent := [item for item in what if not Path(item).is_file()]:
            todo = "a home that joined no network signs a charter, given as its file"
            raise UsageError(f"there is no file {absent[0]}", todo=todo)
        charters = [bundle.charter for bundle in bundles if bundle.charter is not None]
        if len(charters) != 1:
            raise UsageError("one charter is signed at a time", todo="give its file")
        _sign_charter(home, charters[0], out or files[0], yes=yes, as_json=as_json)
        return
    with opened(home.database_url) as store:
        audit = AuditLog(home, store)
        _sync(home, audit, offline)
        for bundle in bundles:
            _complain(network.take(home, audit, bundle, datetime.now(UTC)).refused)
        names = [item for item in what if not Path(item).is_file()]
        chosen = network.pending(home, names) if names else []
        held = {envelope.payload: envelope for envelope in network.pending(home)}
        chosen += [
            held[d.payload] for bundle in bundles for d in bundle.decisions if d.payload in held
        ]
        if not chosen:
            emit([], as_json, "there is nothing left to sign")
            return
        for envelope in chosen:
            _show_decision(envelope.unverified(MemberDecision))
        _confirm("Sign?", yes=yes)
        made = network.sign_decisions(home, audit, chosen, datetime.now(UTC), instead=instead)
        _sync(home, audit, offline)
        _write_outgoing(home, audit, out)
    emit([_decision_row(home, item) for item in made], as_json)


@app.command()
def sync(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Documents as files, instead of the coordinator."),
    ] = None,
    out: Out = None,
    as_json: JsonFlag = False,
) -> None:
    """Take the founders' newest decisions, from files or the coordinator, with effect at once."""
    from clients import network
    from clients.audit import AuditLog
    from clients.coordinator_client import CoordinatorClient
    from clients.store import opened

    home, now = open_home(), datetime.now(UTC)
    with opened(home.database_url) as store:
        audit = AuditLog(home, store)
        if files:
            taken = [network.take(home, audit, _read(file), now) for file in files]
            cards: list[str] = []
        else:
            with CoordinatorClient(home) as client:
                done = network.sync(home, audit, client, now)
            taken, cards = [done.taken], [card.org for card in done.cards]
        _write_outgoing(home, audit, out)
    refused = [error for one in taken for error in one.refused]
    _complain(refused)
    result = _taken_row(taken) | {"cards": cards, "refused": [str(error) for error in refused]}
    emit(result, as_json)


@app.command()
def show(
    org: Annotated[str | None, typer.Argument(help="Default: the network itself.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the charter, or all decisions on one organisation and whether it is active."""
    home, now = open_home(), datetime.now(UTC)
    standing = home.standing()
    if org is not None:
        rows = [
            {
                "sequence": link.decision.sequence,
                "act": link.decision.act,
                "effective": link.decision.effective,
                "signed_by": list(link.signers),
                "reason": link.decision.reason,
                "counts": link.void is None,
            }
            for link in standing.chain(org)
        ]
        result = _member_row(standing, org, now) | {"decisions": rows}

        def human() -> str:
            head = {k: v for k, v in result.items() if k != "decisions"}
            lines = "\n".join(f"{name:12} {value}" for name, value in head.items())
            names = ["sequence", "act", "effective", "signed_by", "reason"]
            cells = [[_cell(row[name]) for name in names] for row in rows]
            return f"{lines}\n\n{table(names, cells)}" if rows else lines

        emit(result, as_json, human)
        return
    if standing.charter is None:
        text = "no network was joined here: everybody whose card is trusted takes part"
        emit({"network": None}, as_json, text)
        return
    charter = standing.charter
    row = _charter_row(charter) | {
        "deciding_now": list(standing.founders(now)),
        "confirmations_needed": standing.words_needed(now),
        "confirmations_now": standing.confirmed_by(home.org, now),
        "proposals": len(home.network.proposals()),
    }
    emit(row, as_json)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the organisations with their standing, and what waits for signatures."""
    import hashlib

    from federation.network import MemberDecision

    home, now = open_home(), datetime.now(UTC)
    standing = home.standing()
    orgs = sorted({*home.trust(), *standing.members()})
    members = [_member_row(standing, org, now) for org in orgs]
    proposals = [
        {
            "id": hashlib.sha256(envelope.payload).hexdigest()[:12],
            "act": (decision := envelope.unverified(MemberDecision)).act,
            "org": decision.org,
            "signatures": len(envelope.signatures),
            "reason": decision.reason,
        }
        for envelope in home.network.proposals()
    ]

    def human() -> str:
        names = ["org", "active", "standing", "assessed_until"]
        text = table(names, [[_cell(row[name]) for name in names] for row in members])
        if proposals:
            keys = ["id", "act", "org", "signatures", "reason"]
            rows = [[_cell(row[key]) for key in keys] for row in proposals]
            text += f"\n\nwaiting for signatures (`lianmo network sign ID`)\n{table(keys, rows)}"
        return text

    emit({"members": members, "proposals": proposals}, as_json, human)


# --- helpers --------------------------------------------------------------------------------------


def _sign_charter(home: Home, envelope: Envelope, out: Path, *, yes: bool, as_json: bool) -> None:
    from clients import network
    from federation.network import Charter

    charter = envelope.unverified(Charter)
    say(f"{charter.network}: {charter.quorum} of {', '.join(f.org for f in charter.founders)}")
    _confirm("Sign this charter?", yes=yes)
    signed = network.sign_charter(home, envelope)
    write_out(out, signed.to_json() + b"\n")
    missing = len(charter.founders) - len(signed.signatures)
    emit(_charter_row(charter) | {"file": out, "missing": missing}, as_json)
    say("all founders have signed: `lianmo network join`" if not missing else "more have to sign")


def _sync(home: Home, audit: Any, offline: bool) -> None:
    """As far as the coordinator is there; files will do as well."""
    from clients import network
    from clients.coordinator_client import CoordinatorClient
    from federation.errors import LianmoError

    if offline or home.config.coordinator_url is None:
        return
    try:
        with CoordinatorClient(home, retry_s=0) as client:
            done = network.sync(home, audit, client, datetime.now(UTC))
        _complain(done.refused)
    except LianmoError as error:
        say(f"not through the coordinator: {error}; pass it on with --out FILE")


def _read(file: Path) -> Bundle:
    from clients.network import read_documents
    from federation.network import MAX_BUNDLE

    with open_input(file) as stream:
        return read_documents(stream.read(MAX_BUNDLE + 1))


def _write_outgoing(home: Home, audit: Any, out: Path | None) -> None:
    from clients import network

    if out is not None:
        write_out(out, network.outgoing(home, audit, datetime.now(UTC)).to_json())


def _confirm(question: str, *, yes: bool) -> None:
    from federation.errors import Refused, UsageError

    if yes:
        return
    if not is_terminal():
        raise UsageError("nobody here to confirm", todo="read it, then say --yes")
    if not click.confirm(question, err=True):
        raise Refused("not signed")


def _complain(errors: Any) -> None:
    for error in errors:
        say(f"not taken: {error}")


def _assessment(
    security: str,
    authorisation: str,
    evidence: Path | None,
    assessor: str,
    valid_until: str | None,
) -> Any:
    import hashlib

    from federation.errors import UsageError
    from federation.network import Assessment

    if evidence is None or valid_until is None:
        todo = "give --security, --authorisation, --evidence, --assessor and --valid-until"
        raise UsageError("an admission needs an assessment", todo=todo)
    with open_input(evidence) as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()
    return Assessment(
        security=security,
        authorisation=authorisation,
        evidence_digest=digest,
        assessor=assessor,
        valid_until=f"{valid_until[:10]}T23:59:59Z",
    )


def _time(text: str) -> datetime:
    from federation.errors import UsageError
    from federation.objects import utc_time

    try:
        found = utc_time(text)
    except ValueError:
        raise UsageError("a time looks like 2026-01-31T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _digits(text: str) -> str:
    return "".join(c for c in text.lower() if c not in " -:\t\n")


def _charter_row(charter: Charter) -> dict[str, Any]:
    return {
        "network": charter.network,
        "founders": [founder.org for founder in charter.founders],
        "quorum": charter.quorum,
        "stale_s": charter.stale_s,
        "profile": charter.profile,
        "created": charter.created,
        "fingerprint": charter.fingerprint(),
    }


def _member_row(standing: Standing, org: str, now: datetime) -> dict[str, Any]:
    from federation.errors import Refused

    why = "active"
    try:
        standing.require_active(org, now)
    except Refused as error:
        why = error.what
    assessment = standing.member(org, now).assessment
    return {
        "org": org,
        "active": why == "active",
        "standing": why,
        "assessed_until": assessment.valid_until[:10] if assessment else None,
        "confirmations": standing.confirmed_by(org, now),
    }


def _decision_row(home: Home, decision: MemberDecision) -> dict[str, Any]:
    digest = decision.digest()
    counts = any(link.digest == digest for link in home.standing().chain(decision.org))
    return {
        "id": digest[:12],
        "act": decision.act,
        "org": decision.org,
        "sequence": decision.sequence,
        "state": "decided" if counts else "waits for signatures",
    }


def _show_decision(decision: MemberDecision) -> None:
    say(f"{decision.act} {decision.org}, from {decision.effective}: {decision.reason or '-'}")
    say(f"  card {decision.fingerprint}")
    if (found := decision.assessment) is not None:
        say(f"  {found.assessor}: {found.security}; {found.authorisation}")
        say(f"  report {found.evidence_digest[:16]}, valid until {found.valid_until[:10]}")


def _taken_row(taken: list[Taken]) -> dict[str, Any]:
    return {
        "decisions": [f"{d.act} {d.org}" for one in taken for d in one.decisions],
        "proposals": [f"{d.act} {d.org}" for one in taken for d in one.proposals],
        "confirmations": sorted({w.org for one in taken for w in one.bulletins}),
    }


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "") else str(value)
