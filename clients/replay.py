"""Bundles for auditors, and what an auditor does with them (federation/replay.py).

    party     bundle      its account of an attempt: signed record, index of frames, escrow; with a
                          draw the drawn queries, with `opens` all that its program ran on
    auditor   share       its share of the escrow, sealed to the auditor who replays
              draw        which queries are opened, when shares and records are in
              replay      every check that the bundles at hand allow, and a signed statement

A bundle is a zip file without compression. One that holds queries, a seed or data is sealed as a
whole to one auditor (HPKE): it goes over any channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from clients import audited
from clients.attempts import RECORD
from clients.audit import AuditLog
from clients.bundles import (
    Bundle,
    BundleTranscript,
    Data,
    frame_name,
    frame_place,
    opened_members,
    opened_of,
    recorded_attempt,
    unzipped,
    zipped,
)
from clients.home import Home
from clients.store import Jobs, Store
from clients.transcripts import StoredTranscript, lines_of, parse_lines
from federation import escrow as escrows
from federation import replay as checks
from federation.audit import Action
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, NotFound, Refused, UsageError
from federation.escrow import SealedSeed
from federation.objects import (
    Count,
    DecimalText,
    Digest,
    JobManifest,
    Name,
    OrgId,
    Part,
    RunRecord,
    SignedObject,
    Text,
    Time,
    Usage,
    utc_text,
)
from federation.package import package_sha256
from federation.replay import Account, Finding
from protocols import labels
from protocols.streams import Randomness, encode

# --- signed by auditors ---------------------------------------------------------------------------


class AuditDraw(SignedObject):
    """Which queries of the bank to one department are opened; anybody can draw them again."""

    kind: ClassVar[str] = "audit-draw"

    manifest: Digest
    attempt: Count
    org: OrgId  # the auditor
    queried: OrgId
    records: tuple[Digest, ...]  # signed when the run was over
    nonces: tuple[Digest, ...]  # of the auditors whose shares were handed on
    share: DecimalText
    total: Count
    drawn: tuple[Count, ...]
    created: Time


class AuditCheck(Part):
    """One kind of check over one or more parties."""

    check: Name
    of: Name
    compared: Count  # accounts, queries or frames


class AuditFinding(Part):
    """A deviation, and whom it names."""

    check: Name
    party: Name
    stage: Text
    token: Text
    what: Text


class AuditStatement(SignedObject):
    """What an auditor recomputed of one attempt, and what did not hold."""

    kind: ClassVar[str] = "audit-statement"

    job: Name
    manifest: Digest
    attempt: Count
    org: OrgId
    package_sha256: Digest
    records: tuple[tuple[OrgId, Digest], ...]
    draw: Digest | None
    checks: tuple[AuditCheck, ...]
    findings: Annotated[tuple[AuditFinding, ...], Field(max_length=1000)]
    created: Time


# --- bundles --------------------------------------------------------------------------------------


def pack(
    home: Home,
    store: Store,
    job: str,
    *,
    now: datetime,
    attempt: int | None = None,
    draw: Envelope | None = None,
    opens: Data | None = None,
    to: str | None = None,
) -> bytes:
    """A bundle of this party's account of an attempt, by default the last one.

    draw: an auditor's, for the queries in it. opens: everything that this party's program ran on,
    from the gate. to: the auditor, for either. Raises NotFound, or Refused.
    """
    folder, manifest = recorded_attempt(home, store, job, attempt)
    envelope = Envelope.from_json((folder.path / RECORD).read_bytes())
    record = envelope.unverified(RunRecord)
    stored = StoredTranscript.of(folder.path)
    members = {
        "manifest.json": Jobs(store).get(record.manifest).envelope,
        "record.json": envelope.to_json(),
    }
    if (given := audited.kept_escrow(folder.path)) is not None:
        members |= {audited.ESCROW: given.escrow, audited.ROWS: given.customers}
    for peer in stored.peers():
        members[f"transcript/{peer}.jsonl"] = lines_of(stored.frames(peer))
    if (draw is not None or opens is not None) and to is None:
        raise UsageError("say to which auditor: what is in this bundle is not for everybody")
    if to is not None and to not in manifest.audit.auditors:
        named = ", ".join(manifest.audit.auditors) or "nobody"
        raise Refused(f"{to} is no auditor of this job; named are: {named}", party=home.org)
    shown = 0
    if draw is not None:
        account = Account(record, stored, given)
        for number in _drawn(home, manifest, account, envelope, draw, now, to or ""):
            body = stored.body(manifest.bank, number)
            if body is None:
                raise NotFound("this node does not have the frame any more", party=home.org)
            members[frame_name(manifest.bank, number)] = body
            shown += 1
    if opens is not None and to is not None:
        for peer in stored.peers():
            for number in range(len(stored.frames(peer))):
                if (body := stored.body(peer, number)) is not None:
                    members[frame_name(peer, number)] = body
                    shown += 1
        members |= opened_members(home, manifest, record, folder, opens)
    made = zipped(members)
    if to is None:
        return made
    with (audit := AuditLog(home, store)).together(now):
        audit.append(
            Action.AUDIT_HANDED,
            record.digest(),
            now,
            job=record.manifest,
            attempt=record.attempt,
            amount=shown,
            subject=to.encode(),
        )
    spki, _ = escrows.encrypt_key(home.trust(), to)
    return zipped({"to": to.encode(), "sealed": escrows.seal_to(spki, made, _seal_info(to))})


def unpack(data: bytes, home: Home, now: datetime) -> Bundle:
    """A bundle, with the signatures of its bank and party; raises IntegrityError, Refused."""
    members = unzipped(data)
    if "sealed" in members:
        to = members.get("to", b"").decode(errors="replace")
        if to != home.org:
            raise Refused(f"the bundle is sealed to {to}", party=home.org)
        key = home.key(Usage.ENCRYPT)
        members = unzipped(escrows.open_sealed(key, members["sealed"], _seal_info(to)))
    try:
        signed = Envelope.from_json(members["manifest.json"])
        told = Envelope.from_json(members["record.json"])
    except KeyError as error:
        raise IntegrityError(f"the bundle has no {error.args[0]}") from None
    trust = home.trust()
    manifest = trust.verify(signed, JobManifest, Usage.PROPOSE, now).object
    trust.verify(signed, JobManifest, Usage.PROPOSE, now, manifest.bank)
    record = trust.verify(told, RunRecord, Usage.RUN, now).object
    if record.manifest != manifest.digest():
        raise IntegrityError("the bundle's record is of another job", party=record.org)
    if record.org not in (manifest.bank, *manifest.departments):
        raise IntegrityError("the bundle is of nobody who took part in the job", party=record.org)
    if manifest.package_sha256 != package_sha256():
        todo = f"install the release that ran: {manifest.package_sha256}"
        raise Refused("this is another release than the job's", party=home.org, todo=todo)
    given = None
    if audited.ESCROW in members and audited.ROWS in members:
        given = SealedSeed(members[audited.ESCROW], members[audited.ROWS])
    transcript = BundleTranscript(
        {
            name.partition("/")[2].removesuffix(".jsonl"): parse_lines(
                content, name.partition("/")[2].removesuffix(".jsonl")
            )
            for name, content in members.items()
            if name.startswith("transcript/")
        },
        {frame_place(name): body for name, body in members.items() if name.startswith("frames/")},
    )
    return Bundle(manifest, Account(record, transcript, given), opened_of(members))


# --- an auditor -----------------------------------------------------------------------------------


def share(home: Home, bundle: Bundle, to: str, now: datetime) -> Envelope:
    """This auditor's share of the bundle's escrow, handed on."""
    found = _escrow(home, bundle, now)
    made = escrows.hand_on(found, home.org, home.key(Usage.ENCRYPT), to, home.trust(), now)
    return sign(made, home.key(Usage.RUN))


def draw(
    home: Home,
    bundles: Sequence[Bundle],
    shares: Sequence[Envelope],
    queried: str,
    part: str,
    now: datetime,
) -> Envelope:
    """Draw the queries to open; raises if the shares do not give the seed, or there is nothing."""
    by_org = _one_job(bundles)
    if queried not in by_org:
        raise NotFound("no bundle of that department", party=queried)
    manifest, account = by_org[queried].manifest, by_org[queried].account
    nonces = sorted(one.nonce for one in _taken(home, by_org[queried], shares, now)[1])
    records = sorted(item.account.record.digest() for item in bundles)
    total = len(checks.queries_of(account, manifest.bank))
    drawn = checks.draw(checks.coins_of(records, nonces), total, float(part))
    made = AuditDraw(
        manifest=manifest.digest(),
        attempt=account.record.attempt,
        org=home.org,
        queried=queried,
        records=tuple(records),
        nonces=tuple(nonces),
        share=part,
        total=total,
        drawn=drawn,
        created=utc_text(now),
    )
    return sign(made, home.key(Usage.RUN))


def replay(
    home: Home,
    bundles: Sequence[Bundle],
    shares: Sequence[Envelope],
    drawn: Envelope | None,
    now: datetime,
    executor: Executor | None = None,
) -> AuditStatement:
    """Every check that these bundles allow; to be signed.

    Raises what makes evidence unusable: a transcript that nobody signed, another job's share.
    """
    by_org = _one_job(bundles)
    manifest = bundles[0].manifest
    accounts = {org: bundle.account for org, bundle in by_org.items()}
    findings = checks.check_accounts(manifest, accounts)
    names = ", ".join(sorted(by_org))
    done = [AuditCheck(check="accounts", of=names, compared=len(accounts))]
    if drawn is not None:
        opened = _check_draw(home, by_org, shares, drawn, now, executor)
        findings += opened.findings
        done.append(AuditCheck(check="queries", of=manifest.bank, compared=len(opened.drawn)))
    cleared = []
    for org, bundle in sorted(by_org.items()):
        if bundle.opened is None:
            continue
        made = checks.replay(manifest, bundle.account, bundle.opened, executor=executor)
        findings += made.findings
        cleared += [org] if not made.findings else []
        done.append(AuditCheck(check="program", of=org, compared=made.frames))
    records = sorted((org, bundle.account.record.digest()) for org, bundle in by_org.items())
    return AuditStatement(
        job=manifest.job,
        manifest=manifest.digest(),
        attempt=bundles[0].account.record.attempt,
        org=home.org,
        package_sha256=package_sha256(),
        records=tuple(records),
        draw=None if drawn is None else drawn.unverified(AuditDraw).digest(),
        checks=tuple(done),
        findings=tuple(_finding(item) for item in checks.attribute(findings, cleared)),
        created=utc_text(now),
    )


def _finding(item: Finding) -> AuditFinding:
    return AuditFinding(
        check=item.check,
        party=item.party,
        stage=item.stage,
        token=item.token,
        what=item.what[:2000],
    )


def _check_draw(
    home: Home,
    by_org: Mapping[str, Bundle],
    shares: Sequence[Envelope],
    drawn: Envelope,
    now: datetime,
    executor: Executor | None,
) -> checks.QueryAudit:
    said = home.trust().verify(drawn, AuditDraw, Usage.RUN, now).object
    bundle = by_org.get(said.queried)
    if bundle is None:
        raise NotFound("no bundle of the department that was drawn for", party=said.queried)
    manifest, account = bundle.manifest, bundle.account
    _require_drawn(said, account)
    found, given = _taken(home, bundle, shares, now)
    if sorted(said.nonces) != sorted(one.nonce for one in given):
        raise IntegrityError("the draw was made with other shares", party=said.org)
    if bundle.account.given is None:
        raise NotFound("its bundle has no escrow", party=said.queried)
    rows = escrows.customers(bundle.account.given, found, manifest.cover.rows)
    return checks.check_queries(manifest, account, found, rows, said.drawn, executor=executor)


def _require_drawn(said: AuditDraw, account: Account) -> None:
    """The draw follows from its records and nonces, and this record is one of them."""
    record = account.record
    if (said.manifest, said.attempt) != (record.manifest, record.attempt):
        raise IntegrityError("the draw is of another job or attempt", party=said.org)
    if record.digest() not in said.records:
        raise IntegrityError("the draw was made without this record", party=said.org)
    coins = checks.coins_of(said.records, said.nonces)
    if said.drawn != checks.draw(coins, said.total, float(said.share)):
        raise IntegrityError("the draw does not follow from its coins", party=said.org)


def _taken(
    home: Home, bundle: Bundle, shares: Sequence[Envelope], now: datetime
) -> tuple[Randomness, list[escrows.HandedShare]]:
    found, key = _escrow(home, bundle, now), home.key(Usage.ENCRYPT)
    taken = [escrows.take(found, one, home.org, key, home.trust(), now) for one in shares]
    parts = {handed.org: part for handed, part in taken}
    return escrows.recover(found, parts), [handed for handed, _ in taken]


def _escrow(home: Home, bundle: Bundle, now: datetime) -> escrows.Escrow:
    given, record = bundle.account.given, bundle.account.record
    if given is None:
        what = "its bundle has no escrow: the manifest names no auditors, or the run ended before"
        raise NotFound(what, party=bundle.org)
    return escrows.read(given, bundle.manifest, record.attempt, home.trust(), now)


def _one_job(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    if not bundles:
        raise UsageError("no bundle to look into")
    if len({(one.manifest.digest(), one.account.record.attempt) for one in bundles}) != 1:
        todo = "replay each by itself"
        raise UsageError("the bundles are of several jobs or attempts", todo=todo)
    by_org = {one.org: one for one in bundles}
    if len(by_org) != len(bundles):
        raise UsageError("two bundles of one party", todo="give the one that holds more")
    return by_org


# --- helpers --------------------------------------------------------------------------------------


def _drawn(
    home: Home,
    manifest: JobManifest,
    account: Account,
    record: Envelope,
    draw: Envelope,
    now: datetime,
    to: str,
) -> list[int]:
    """The frames that an auditor's draw names, if the draw is one."""
    said = home.trust().verify(draw, AuditDraw, Usage.RUN, now).object
    if said.org != to or said.queried != home.org:
        raise Refused("the draw is of another auditor, or for another department", party=said.org)
    _require_drawn(said, account)
    places = checks.queries_of(account, manifest.bank)
    if said.total != len(places):
        raise IntegrityError("the draw is over another number of queries", party=said.org)
    return [places[number] for number in said.drawn]


def _seal_info(to: str) -> bytes:
    return encode(labels.AUDIT_BUNDLE, to)


def read_file(path: Path) -> bytes:
    """A bundle's bytes; UsageError if there are none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from None


def signed_statement(home: Home, statement: AuditStatement) -> Envelope:
    """The statement, signed by this auditor."""
    return sign(statement, home.key(Usage.RUN))
