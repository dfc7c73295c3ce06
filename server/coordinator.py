"""The coordinator's process: one public TLS port, one on loopback, the relay beside it.

public TLS   /v1/fleet/*    ten exact paths for the parties' nodes (server/flower.py)
             /api/v1/*      our API (server/app.py)
loopback     /v1/runtime/*  ten exact paths and one report for the ServerApp processes
relay TLS    gRPC           a process of its own: a saturated relay must not slow the API
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime

import uvicorn
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from federation import collector
from federation.api import RunReport
from federation.envelope import Envelope
from federation.errors import LianmoError, Unavailable
from federation.network import confirmed_admin
from federation.objects import Card, Usage
from federation.trust import TrustStore
from server.app import Changes, create_app
from server.config import CoordinatorHome
from server.consents import Consents
from server.flower import SuperLink, flower_apis
from server.governance import Governance, Rules
from server.network import NetworkDesk
from server.processes import Launcher, RelayProcess
from server.store import Store
from server.tls import CERTIFICATE_KEY, CertificateProtocol, PublicTls
from server.verification import SealedRelay
from server.verification import router as sealed_router
from server.witness import WitnessBoard
from server.witness import router as witness_router

log = logging.getLogger(__name__)

TEND_S = 1.0
SPARES_EVERY = 3  # tends
STOP_S = 2


class Admitted:
    """Whom the platform trusts just now; a broken card keeps the last good state."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home = home
        self.trust: TrustStore = home.keyring.trust()
        self._by_certificate = _by_certificate(self.trust)
        self.network = NetworkDesk(home.keyring, lambda: self.trust, lambda: datetime.now(UTC))
        self.active = self.network.active()

    def accept_card(self, envelope: Envelope) -> None:
        """Trust a member's newer card, which its admin key has signed."""
        decided = confirmed_admin(
            self.network.standing(), envelope.unverified(Card).org, datetime.now(UTC)
        )
        card = self._home.keyring.trust_card(envelope, how="from itself", decided=decided)
        log.info("newer card", extra={"org": card.org, "serial": card.serial})
        self.refresh()

    def refresh(self) -> bool:
        """Look at cards and decisions again; whether somebody came, changed or went."""
        before = self.active
        changed = self._refresh_trust()
        self.active = self.network.active()
        return changed or self.active != before

    def _refresh_trust(self) -> bool:
        try:
            found = self._home.keyring.trust()
        except (LianmoError, OSError) as error:
            log.error("trust folder unreadable", extra={"reason": type(error).__name__})
            return False
        if found is self.trust:
            return False
        self.trust, self._by_certificate = found, _by_certificate(found)
        return True

    def org_of(self, scope: Scope) -> str | None:
        """Whose certificate the connection of this request has shown."""
        certificate = scope.get(CERTIFICATE_KEY)
        known = self._by_certificate.get(certificate) if certificate else None
        return known[0] if known else None

    def owns(self, scope: Scope, node_key: bytes) -> bool:
        """Whether certificate and node key stand in the card of one active organisation."""
        certificate = scope.get(CERTIFICATE_KEY)
        known = self._by_certificate.get(certificate) if certificate else None
        return known is not None and known[1] == node_key and known[0] in self.active


def _by_certificate(trust: TrustStore) -> dict[bytes, tuple[str, bytes | None]]:
    found: dict[bytes, tuple[str, bytes | None]] = {}
    for org in trust:
        der = ssl.PEM_cert_to_DER_cert(trust.card(org).tls_certificate)
        try:
            found[der] = org, trust.node_key(org).encode()
        except LianmoError:  # an auditor has none, a key may be on hold
            found[der] = org, None
    return found


class Coordinator:
    """All of one coordinator; `running` serves."""

    def __init__(self, home: CoordinatorHome, *, with_relay: bool = True) -> None:
        self.home = home
        config, files = home.config, home.keyring.tls_files
        self.admitted = Admitted(home)
        self.store = Store(home.database_url)
        self.store.forget_unfinished()
        self.superlink = SuperLink(home.flower_database)
        self.launcher = Launcher(
            config.runtime_port,
            spare=config.spare_workers,
            party_wait_s=config.party_wait_s,
            user=config.worker_user,
        )
        self.changes = Changes()
        self.governance = Governance(
            self.store,
            self.superlink,
            self.launcher.launch,
            platform=home.org,
            trust=lambda: self.admitted.trust,
            now=lambda: datetime.now(UTC),
            membership=home.membership,
            rules=Rules(config.attempts, config.jobs_at_once),
            announce=self.changes.announce,
            standing=self.admitted.network.standing,
            accept_card=self.admitted.accept_card,
        )
        self.questions = SealedRelay()
        self.relay: RelayProcess | None = None
        if with_relay:
            self.relay = RelayProcess(
                f"{config.host}:{config.relay_port}",
                key=files[1],
                certificate=files[0],
                membership=home.membership,
                log_file=home.path / "log" / "relay.log",
            )
        self.witnesses = WitnessBoard(
            self.store, lambda: self.admitted.trust, lambda: datetime.now(UTC)
        )
        self.tls = PublicTls(*files)
        api = create_app(
            self.governance,
            self.store,
            self.changes,
            platform=home.org,
            card=home.keyring.card,
            identify=self.admitted.org_of,
            now=lambda: datetime.now(UTC),
            network=self.admitted.network,
            others=[
                sealed_router(self.questions, self._consents()),
                witness_router(self.witnesses),
            ],
        )
        self.fleet, self.runtime = flower_apis(
            self.superlink, owns=self.admitted.owns, on_report=self._on_report, other=api
        )

    def _consents(self) -> Consents:
        home = self.home
        return Consents(
            self.store,
            platform=home.org,
            key=lambda: home.keyring.key(Usage.GRANT),
            trust=lambda: self.admitted.trust,
            now=lambda: datetime.now(UTC),
        )

    async def _on_report(self, run_id: int, body: bytes) -> None:
        try:
            report = RunReport.model_validate_json(body)
            await run_in_threadpool(self.governance.report, run_id, report)
        except (ValidationError, LianmoError) as error:
            # Not the ServerApp's fault, and sending it again would not help: a party's record that
            # does not verify is not kept, and without it the job does not succeed.
            about = {"run": run_id, "reason": str(error) if isinstance(error, LianmoError) else ""}
            log.warning("report refused", extra=about)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve until the block ends; gives the relay's address. Raises Unavailable if a port is
        in use."""
        config = self.home.config
        with (
            _listening(config.host, config.port, "port") as public,
            _listening("127.0.0.1", config.runtime_port, "runtime_port") as loopback,
        ):
            self.tls.trust(self.admitted.trust.tls_ca(org) for org in self.admitted.trust)
            await run_in_threadpool(self.governance.restore)
            relay = ""
            if self.relay is not None:
                relay = await run_in_threadpool(self.relay.start)
            servers = self._servers()
            serving = [
                asyncio.create_task(servers[0].serve([public])),
                asyncio.create_task(servers[1].serve([loopback])),
            ]
            keeper = asyncio.create_task(self._tend())
            try:
                while not all(server.started for server in servers):
                    if any(task.done() for task in serving):
                        raise Unavailable("a listener did not start", party=self.home.org)
                    await asyncio.sleep(0.02)
                yield relay
            finally:
                keeper.cancel()
                for server in servers:
                    server.should_exit = True
                self.fleet.inbox.close()
                self.runtime.inbox.close()
                self.changes.close()
                self.witnesses.changes.close()
                self.questions.close()
                await asyncio.gather(*serving, keeper, return_exceptions=True)
                await run_in_threadpool(self._close)

    def _servers(self) -> tuple[Server, Server]:
        public = uvicorn.Config(
            self.fleet,
            http=CertificateProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody stands in front: a header must not rename the caller
            timeout_keep_alive=60,
            timeout_graceful_shutdown=STOP_S,
            ssl_context_factory=lambda config, default: self.tls.context,
        )
        loopback = uvicorn.Config(
            self.runtime,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=STOP_S,
        )
        return Server(public), Server(loopback)

    async def _tend(self) -> None:
        """Follow the trust folder, the jobs and the child processes, whatever happens to one."""
        count = 0
        while True:
            for chore in (
                self.admitted.network.tend,
                self._follow_trust,
                self._follow_runs,
                self.governance.tend,
                self._keep_relay,
            ):
                await self._chore(chore)
            if count % SPARES_EVERY == 0:
                await self._chore(self.launcher.tend)
            count += 1
            await asyncio.sleep(TEND_S)

    async def _chore(self, chore: Callable[[], None]) -> None:
        try:
            await run_in_threadpool(chore)
        except Exception:
            # one job or file that makes trouble must not stop the others from being looked after
            log.exception("chore failed", extra={"chore": chore.__name__})

    def _follow_trust(self) -> None:
        if self.admitted.refresh():
            trust = self.admitted.trust
            self.tls.trust(trust.tls_ca(org) for org in trust)
            self.governance.publish_membership()
            log.info("trust changed", extra={"organisations": len(trust)})

    def _follow_runs(self) -> None:
        for run_id in self.launcher.ended():
            self.governance.process_ended(run_id)

    def _keep_relay(self) -> None:
        if self.relay is not None and not self.relay.is_alive():
            log.error("relay ended, starting it again")
            self.relay.start()

    def _close(self) -> None:
        self.launcher.close()
        if self.relay is not None:
            self.relay.stop()
        self.store.close()


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to `serve`: two of them share a loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


@contextlib.contextmanager
def _listening(host: str, port: int, setting: str) -> Iterator[socket.socket]:
    """A socket of our own, so that a port in use is told by name before anything has started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name, or asyncio would not take accepted sockets for TCP and leave Nagle on:
    # an answer of two writes would then wait 40 ms for the caller's delayed ACK.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(512)
        except OSError as error:
            todo = f"end what listens there, or set another `{setting}` in [coordinator]"
            what = f"cannot listen on {host}:{port} ({(error.strerror or 'error').lower()})"
            raise Unavailable(what, party="coordinator", todo=todo) from None
        listener.setblocking(False)
        yield listener


async def serve(coordinator: Coordinator, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` gets the relay's address."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with coordinator.running() as relay:
        collector.spare_what_is_here()
        ready(relay)
        await stop.wait()
