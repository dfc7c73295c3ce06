"""What can be wrong around a node, looked at one by one, each with what to do.

Nothing here changes anything, and a check that cannot be made says so instead of failing the rest.
"""

from __future__ import annotations

import shutil
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

from clients.coordinator_client import CoordinatorClient, coordinator_url, platform_of
from clients.home import Home
from clients.resident import is_running, relay_client
from clients.store import opened
from clients.witness_book import WitnessBook
from clients.witnessed import Witnessed
from federation.errors import LianmoError, Unavailable
from federation.objects import OrgKind, utc_time
from federation.package import package_sha256

CLOCK_WARNS_S, CLOCK_FAILS_S = 3.0, 5.0  # Flower refuses node signatures 5 s from the future
ROOM_WARNS, ROOM_FAILS = 5 * 10**9, 2 * 10**8  # bytes: a job of a large table; any job at all
RENEW = timedelta(days=30)
RELAY_S = 8.0


class State(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it."""

    check: str
    state: State
    text: str
    todo: str = ""


def examine(home: Home, now: datetime) -> Iterator[Finding]:
    """Every check, in the order in which one rests on the next."""
    yield _versions()
    yield from _files(home)
    yield _disk(home)
    yield _guarded("database", lambda: _database(home, now))
    yield _guarded("certificate", lambda: _certificate(home))
    yield from _keys(home, now)
    yield _guarded("network", lambda: _network(home, now))
    yield _node(home)
    if home.own().org_kind is not OrgKind.PLATFORM:
        yield _guarded("witnesses", lambda: _witnesses(home, now))
    yield from _coordinator(home)
    yield _guarded("relay", lambda: _relay(home))


def _versions() -> Finding:
    found = f"lianmo {version('lianmo')}, package {package_sha256()[:12]}"
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}, flwr {version('flwr')}"
    return Finding("versions", State.OK, f"{found}, {python}")


def _files(home: Home) -> Iterator[Finding]:
    wide = [
        file.relative_to(home.path)
        for folder in ("keys", "models", "runs", "log")
        for file in (home.path / folder).rglob("*")
        if stat.S_IMODE(file.stat().st_mode) & 0o077 and not _is_harmless(home.path, file)
    ]
    if wide:
        todo = f"run `chmod go= {home.path / wide[0]}` and look who could read it"
        text = f"{len(wide)} files can be read by others, the first is {wide[0]}"
        yield Finding("files", State.FAILED, text, todo)
    else:
        yield Finding("files", State.OK, "nobody else can read keys, models, runs and logs")


def _is_harmless(home: Path, file: Path) -> bool:
    """Below a folder that others cannot enter, a file's own mode matters little; keys must be right
    all the same, since they get copied."""
    return not stat.S_IMODE(home.stat().st_mode) & 0o077 and (home / "keys") not in file.parents


def _disk(home: Home) -> Finding:
    free = shutil.disk_usage(home.path).free
    text = f"{free / 1e9:.1f} GB are free where this home is"
    todo = "make room: a full disk ends jobs; nothing that was stored is lost"
    if free < ROOM_FAILS:
        return Finding("disk", State.FAILED, text, todo)
    if free < ROOM_WARNS:
        return Finding("disk", State.WARNING, text, todo)
    return Finding("disk", State.OK, text)


def _database(home: Home, now: datetime) -> Finding:
    """That it opens, holds what the audit log says, and that the clock is not behind its end."""
    from clients.audit import AuditLog
    from clients.store import opened

    if home.config.database_url is None and not (home.path / "state.db").exists():
        return Finding("database", State.OK, "nothing was stored here yet")
    with opened(home.database_url) as store:
        audit = AuditLog(home, store)
        found = audit.verify()
        if found.problems:
            todo = "`lianmo audit verify` shows all; restore database and log/ from one backup"
            return Finding("database", State.FAILED, found.problems[0], todo)
        audit.require_clock(now)
    return Finding("database", State.OK, f"it fits the audit log's {found.entries} entries")


def _certificate(home: Home) -> Finding:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(*home.tls_files)
    except (ssl.SSLError, OSError):
        todo = "restore both from one backup, or renew the key: `lianmo org renew tls`"
        text = "tls.crt is no certificate for keys/tls.pem"
        return Finding("certificate", State.FAILED, text, todo)
    return Finding("certificate", State.OK, "tls.crt is the certificate for keys/tls.pem")


def _keys(home: Home, now: datetime) -> Iterator[Finding]:
    card = home.own()
    ends = {key.usage: utc_time(key.not_after) for key in card.keys if key.since is None}
    usage, first = min(ends.items(), key=lambda item: item[1])
    text = f"the first key to end is `{usage}`, on {first:%Y-%m-%d}"
    todo = "`lianmo org renew --all`, and `lianmo org renew admin` for that one"
    if first <= now:
        yield Finding("keys", State.FAILED, f"the key `{usage}` ended on {first:%Y-%m-%d}", todo)
    elif first - now < RENEW:
        yield Finding("keys", State.WARNING, text, todo)
    else:
        yield Finding("keys", State.OK, text)
    trust = home.trust()
    others = [org for org in trust if org != home.org]
    try:
        if card.org_kind is not OrgKind.PLATFORM:
            platform_of(trust)
    except LianmoError as error:
        yield Finding("trust", State.FAILED, error.what, error.todo)
        return
    known = ", ".join(others) or "nobody"
    state = State.OK if others else State.WARNING
    todo = "" if others else "exchange cards: `lianmo org card`, `lianmo org trust CARD`"
    yield Finding("trust", state, f"this node trusts {known}", todo)


def _network(home: Home, now: datetime) -> Finding:
    standing = home.standing()
    if standing.charter is None:
        text = "no network was joined: everybody whose card is trusted takes part"
        todo = "get the charter from a founder, then `lianmo network join FILE`"
        return Finding("network", State.WARNING, text, todo)
    standing.require_active(home.org, now)
    name = standing.charter.network
    strangers = [f.org for f in standing.charter.founders if f.org not in standing.trust]
    if strangers:
        text = f"{name}: the word of {', '.join(strangers)} cannot be checked here"
        return Finding("network", State.WARNING, text, "trust the cards of all founders")
    assessment = standing.member(home.org, now).assessment
    if assessment is not None and utc_time(assessment.valid_until) - now < RENEW:
        text = f"{name}: the assessment ends on {assessment.valid_until[:10]}"
        todo = "be assessed again; a founder runs `lianmo network propose admit`"
        return Finding("network", State.WARNING, text, todo)
    return Finding("network", State.OK, f"an active member of {name}")


def _node(home: Home) -> Finding:
    if home.own().org_kind is OrgKind.PLATFORM:
        return Finding("node", State.OK, "a platform runs no node")
    if is_running(home):
        return Finding("node", State.OK, "it runs")
    todo = "start it with `lianmo node start`: without it no job can run here"
    return Finding("node", State.WARNING, "it does not run", todo)


def _witnesses(home: Home, now: datetime) -> Finding:
    if home.config.database_url is None and not (home.path / "state.db").is_file():
        text, todo = "there is no audit log yet", "start the node, and those of others"
        return Finding("witnesses", State.WARNING, text, todo)
    with opened(home.database_url) as store:
        state = Witnessed(home, store).state(now)
        alarms = WitnessBook(store).alarms()
    if alarms:
        text = f"{len(alarms)} checkpoints were refused, the last of {alarms[-1].origin}"
        todo = "`lianmo audit witnesses --json` has both notes; call the auditor"
        return Finding("witnesses", State.FAILED, text, todo)
    if state.reason is not None:
        text = f"answers to questions stop (jobs go on): {state.reason}"
        return Finding("witnesses", State.WARNING, text, state.todo)
    names = ", ".join(sorted(org for org, _ in state.witnesses))
    text = f"{state.cosigned} of {state.entries} entries of the log are cosigned, by {names}"
    return Finding("witnesses", State.OK, text)


def _coordinator(home: Home) -> Iterator[Finding]:
    try:
        with CoordinatorClient(home) as client:
            health = client.health()
            text = f"{health.platform} answers at {coordinator_url(home)}"
            yield Finding("coordinator", State.OK, text)
            yield _clock(client.date(), datetime.now(UTC))
            if health.package_sha256 == package_sha256():
                yield Finding(
                    "release", State.OK, f"the same as the coordinator's {health.version}"
                )
            else:
                todo = "bring both to one release: a job names the release that all must have"
                text = f"another one than the coordinator's {health.version}"
                yield Finding("release", State.WARNING, text, todo)
            if home.own().org_kind is not OrgKind.PLATFORM:
                own = client.organisation(home.org)
                ok = own.card == home.card()
                todo = "" if ok else "give the platform the newest card: `lianmo org card`"
                text = "the newest one" if ok else "an older one than this home's"
                state = State.OK if ok else State.FAILED
                yield Finding("card", state, f"the coordinator has {text}", todo)
    except LianmoError as error:
        todo = _todo(error)
        if home.own().org_kind is OrgKind.PLATFORM:
            todo = "start it with `lianmo coordinator start`, or see its log"
        yield Finding("coordinator", State.FAILED, f"{error.party} {error.what}", todo)


def _clock(date: str, now: datetime) -> Finding:
    if not date:
        return Finding("clock", State.WARNING, "the coordinator did not tell its time")
    # the header has whole seconds, cut off: half of one is added
    theirs = parsedate_to_datetime(date) + timedelta(seconds=0.5)
    ahead = (now - theirs).total_seconds()
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    todo = "set it by NTP; signatures from the future are refused"
    if abs(ahead) >= CLOCK_FAILS_S:
        return Finding("clock", State.FAILED, text, todo)
    if abs(ahead) >= CLOCK_WARNS_S:
        return Finding("clock", State.WARNING, text, todo)
    return Finding("clock", State.OK, text)


def _relay(home: Home) -> Finding:
    if home.own().org_kind is OrgKind.PLATFORM:
        return Finding("relay", State.OK, "it is asked from the nodes")
    if is_running(home):  # a second connection of one organisation would replace the node's
        return Finding("relay", State.OK, "the running node has the connection; see its log")
    with relay_client(home) as relay:
        relay.wait_connected(RELAY_S)
    return Finding("relay", State.OK, f"answers at {home.config.relay_address}")


def _guarded(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except LianmoError as error:
        return Finding(check, State.FAILED, error.what, _todo(error))


def _todo(error: LianmoError) -> str:
    """The error's own advice, but for the one that led here."""
    if isinstance(error, Unavailable):
        return "ask the platform whether it runs, and whether a firewall lets you through"
    return error.todo
