"""The node's process: everything of one organisation that has to be there while others compute.

Order of the start: home, lock, coordinator (tried until it is there), relay, Flower. What is heavy
(kernels, the party programs' imports) comes after the node is ready, in the background.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from clients import kernels, live, network, retention
from clients.audit import AuditLog
from clients.clock import ClockWatch
from clients.coordinator_client import CoordinatorClient, platform_of
from clients.gate import Gate
from clients.home import Home
from clients.relay_client import Identity, LineConfig, PeerCertificate, RelayClient, RelayServer
from clients.round_book import SqlRoundBook
from clients.runner import Admission, Books, Outcome, Program, Runner
from clients.runner import Gate as GateProtocol
from clients.store import Store
from clients.witnessing import Witnessing
from clients.workers import workers
from federation import certificates, collector, keyring
from federation.api import NETWORK_S
from federation.errors import Conflict, LianmoError, Refused, Unavailable, UsageError
from federation.objects import Usage, utc_text, utc_time
from federation.tasks.party import Party

log = logging.getLogger(__name__)

REGISTER_S = 5.0  # between two attempts to reach the coordinator at the start
LEAVE_S = 3.0  # at the end, for messages that peers have not taken yet
REFRESH_S = 60.0  # our card is shown again: after a restart from a backup the coordinator forgot
SERVES_S = 20.0  # for the process beside the node; then the node says that it is ready for jobs


class Peers(Mapping[str, PeerCertificate]):
    """What the cards that this home trusts just now say about connections."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def __getitem__(self, org: str) -> PeerCertificate:
        trust = self._home.trust()
        if org not in trust:
            raise KeyError(org)
        self._home.standing().require_active(org, _now())  # its Refused says why: no KeyError
        der = certificates.der(trust.card(org).tls_certificate)
        return PeerCertificate(ca=trust.tls_ca(org), sha256=_sha256(der))

    def __iter__(self) -> Iterator[str]:
        return iter(self._home.trust())

    def __len__(self) -> int:
        return len(self._home.trust())


def serve(
    home: Home,
    *,
    ready: Callable[[str], None],
    warm: bool = True,
    program: Program | None = None,
    gate: Callable[[Home, Store], GateProtocol] | None = None,
) -> None:
    """Run the node until SIGTERM or SIGINT. Raises Conflict if one runs for this home already."""
    from clients.node import Node

    with (
        _started(home) as here,
        _linked(relay_client(home)) as relay,
        workers(home.config) as executor,
    ):
        store, audit, stopped = here.store, here.audit, here.stopped
        retention.daily(retention.Retention(home, store, audit), _now, stopped)
        node_id = _register(here)
        if node_id is None:
            return
        threading.Thread(
            target=here.witnessing().run, args=(stopped,), name="witness", daemon=True
        ).start()
        threading.Thread(target=_follow, args=(here,), name="network", daemon=True).start()
        runner = Runner(
            home,
            gate=gate(home, store) if gate else Gate(home, store, _now, clock=here.clock),
            program=program or partial(_installed_program, home),
            relay=relay,
            coordinator=here.client,
            books=Books(
                store.spent, store.answers, store.replies, store.attempts, SqlRoundBook(store)
            ),
            audit=audit,
            now=_now,
            executor=executor,
        )
        node = Node(
            home, node_id, runner.train, rounds=runner.train_round, workers=home.config.workers + 2
        )
        _write_status(home, node_id)

        def stop() -> None:
            stopped.set()
            node.stop()

        _on_signals(stop)
        if stopped.is_set():
            return
        try:
            with live.beside(home) as serves:
                threading.Thread(
                    target=_when_ready,
                    args=(here, node, serves, ready, warm),
                    name="readiness",
                    daemon=True,
                ).start()
                collector.spare_what_is_here()
                node.run()
        finally:
            runner.stop()


def serve_witness(home: Home, *, ready: Callable[[str], None]) -> None:
    """Cosign the others' logs until SIGTERM or SIGINT, and do nothing else.

    For who runs no node, as a regulator. Raises Conflict if a node runs for this home already.
    """
    with _started(home) as here:
        while not here.stopped.is_set():
            try:
                here.require_clock()
                break
            except Unavailable as error:
                log.warning("waiting for the coordinator", extra={"reason": str(error)})
                here.stopped.wait(REGISTER_S)
        threading.Thread(target=_follow, args=(here,), name="network", daemon=True).start()
        collector.spare_what_is_here()
        ready(f"witness {home.org} ready")
        here.witnessing().run(here.stopped)


def status(home: Home) -> dict[str, Any]:
    """What is known of this home's node: here, at the coordinator, and of its last jobs."""
    answer: dict[str, Any] = {"org": home.org, "running": is_running(home)}
    try:
        about = json.loads((home.path / "node.json").read_text())
        if answer["running"]:
            answer |= {"pid": about["pid"], "since": about["since"]}
        answer["node_id"] = about["node_id"]
    except (OSError, ValueError, KeyError):
        answer["node_id"] = None
    try:
        with CoordinatorClient(home) as client:
            seen = client.organisation(home.org)
            answer["registered"] = seen.registered
            answer["jobs"] = {item.job: str(item.status) for item in client.jobs()}
    except LianmoError as error:
        answer["coordinator"] = str(error)
    return answer


# --- parts of the start ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Here:
    """What every kind of node has: its store, its log, the coordinator, until it is stopped."""

    home: Home
    store: Store
    audit: AuditLog
    client: CoordinatorClient
    clock: ClockWatch
    stopped: threading.Event

    def require_clock(self) -> None:
        """Raises Refused if the clock is too far from the coordinator's."""
        self.clock.compare(utc_time(self.client.health().time), _now())
        self.clock.require(_now())

    def witnessing(self) -> Witnessing:
        """Of the others' logs, and of this one by others."""
        return Witnessing(self.home, self.store, self.audit, self.client, _now)


@contextlib.contextmanager
def _started(home: Home) -> Iterator[_Here]:
    """The only process of this home, with a sound log; from here on signals stop it."""
    # A core file would hold keys and data, and stay after the process.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (
        _only_one(home),
        contextlib.closing(Store.open(home.database_url)) as store,
        CoordinatorClient(home, retry_s=1.0) as client,
    ):
        audit = AuditLog(home, store)
        audit.require_sound(_now())
        audit.require_clock(_now())
        here = _Here(home, store, audit, client, ClockWatch(), threading.Event())
        _on_signals(here.stopped.set)
        yield here


def _now() -> datetime:
    return datetime.now(UTC)


def _installed_program(home: Home, party: Party, admission: Admission) -> Outcome:
    """The manifest's task; its imports are too heavy for a start."""
    from clients.tasks import run_task

    kernels.make_ready()
    return run_task(home, party, admission)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def relay_client(home: Home) -> RelayClient:
    """The connection to the relay; it reconnects by itself, so nothing waits for it here."""
    if home.config.relay_address is None:
        todo = "set `relay_address` in config.toml, or LIANMO_RELAY_ADDRESS"
        raise UsageError("this home names no relay", party=home.org, todo=todo)
    trust = home.trust()
    certificate, _ = home.tls_files
    own = Identity(org=home.org, key=home.key(Usage.TLS).pem(), certificate=certificate.read_text())
    settings = home.config
    config = LineConfig(
        max_message_bytes=settings.max_frame_bytes,
        start_timeout_s=settings.reconnect_wait_s,
        stall_timeout_s=settings.peer_timeout_s,
        peer_timeout_s=settings.reconnect_wait_s,
    )
    server = RelayServer(home.config.relay_address, trust.tls_ca(platform_of(trust)))
    return RelayClient(own, Peers(home), server, config)


@contextlib.contextmanager
def _linked(relay: RelayClient) -> Iterator[RelayClient]:
    """Connected to the relay; at the end, what was sent gets a moment to be taken."""
    relay.start()
    try:
        yield relay
    finally:
        leaving = threading.Thread(target=relay.close, daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)


def _register(here: _Here) -> int | None:
    """Show our card until the coordinator takes it; None if the node is stopped meanwhile.

    Raises Refused if the clock is too far from the coordinator's. An organisation that is not
    active in its network waits here until it is.
    """
    home, client, told = here.home, here.client, ""
    while not here.stopped.is_set():
        try:
            here.require_clock()
            network.sync_once(home, here.audit, client, _now())
            return int(client.register(home.card()).node_id)
        except (Unavailable, Refused) as error:
            if isinstance(error, Refused) and not _waits_for_founders(home):
                raise
            if error.what != told:
                log.warning("waiting for the coordinator", extra={"reason": str(error)})
            told = error.what
            here.stopped.wait(REGISTER_S if told else 0.5)
    return None


def _waits_for_founders(home: Home) -> bool:
    """Whether this organisation is kept out by the network that it joined, as far as it knows."""
    try:
        home.standing().require_active(home.org, _now())
    except Refused:
        return True
    return False


def _follow(here: _Here) -> None:
    """Documents of the network, newer cards and the coordinator's clock, until the node ends."""
    told = ""
    while not here.stopped.wait(NETWORK_S):
        told = network.sync_once(here.home, here.audit, here.client, _now(), told)
        try:
            here.require_clock()
        except LianmoError as error:
            log.warning("clock", extra={"reason": str(error)})


def _when_ready(
    here: _Here,
    node: Any,
    serves: threading.Event,
    ready: Callable[[str], None],
    warm: bool,
) -> None:
    """Say that the node is ready, once the coordinator knows it; then what may be slow."""
    while not node.reached.wait(0.5):
        if here.stopped.is_set():
            return
    if not serves.wait(SERVES_S):
        log.warning("ready for jobs; questions are not served yet")
    ready(f"node of {here.home.org} ready")
    if warm:
        kernels.make_ready()
    while not here.stopped.wait(REFRESH_S):
        try:
            here.client.register(here.home.card())
        except LianmoError as error:
            log.warning("not registered again", extra={"reason": str(error)})


def _on_signals(action: Callable[[], None]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: action())


@contextlib.contextmanager
def _only_one(home: Home) -> Iterator[None]:
    """Two nodes with one identity would take each other's messages."""
    handle = os.open(home.path / "node.lock", os.O_RDWR | os.O_CREAT, keyring.SECRET_MODE)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            todo = "stop it first; `lianmo node status` shows its process id"
            raise Conflict("a node runs for this home already", party=home.org, todo=todo) from None
        yield
    finally:
        os.close(handle)


def is_running(home: Home) -> bool:
    """Whether a node runs for this home, in whatever process."""
    try:
        with _only_one(home):
            return False
    except Conflict:
        return True


def _write_status(home: Home, node_id: int) -> None:
    about = {"pid": os.getpid(), "since": utc_text(_now()), "node_id": str(node_id)}
    keyring.write(home.path / "node.json", json.dumps(about).encode(), keyring.SECRET_MODE)
