"""The relay: carries frames between the parties of a job and cannot read them.

Serves one gRPC stream to each organisation, over mutual TLS, in a process of its own: a saturated
relay must not slow the coordinator's API (one process: 75 ms a request; two: 7 ms).

Who sends     the organisation whose admitted card holds exactly the certificate of the connection.
              Never its name: any admitted organisation's CA could issue a certificate with
              another's.
To whom       a party that the membership lists beside the sender for that manifest.
Keeps         nothing. Frames wait in memory for a connected receiver, within bounds; what an absent
              or overrun receiver cannot take is dropped, and the ends repeat it.
Not covered   the relay sees who talks to whom, when and how much, and can withhold. Content and
              order are the ends' (`clients/tls_session.py`, `clients/relay_line.py`).

Run by `python -m server.relay --address 0.0.0.0:8444 --key ... --certificate ... --membership ...`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import logging
import signal
import ssl
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import grpc
import pydantic
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from federation.objects import Digest, OrgId
from federation.relay_frame import MAX_FRAME, METHOD, WELCOME, WINDOW, Frame
from protocols.errors import ProtocolError

log = logging.getLogger(__name__)

_OPTIONS = (
    # gRPC binds with SO_REUSEPORT by default: a forgotten second relay would take half the parties.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
_FRAME_COST = 512  # what an empty frame costs in memory; else empty frames would cost nothing


class RelayConfig(BaseModel):
    """Where the relay listens, who it is, and what it holds in memory at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = "127.0.0.1:8444"  # host:port; port 0 takes a free one
    key: Path  # PEM; P-256 or P-384, which is what gRPC's TLS accepts
    certificate: Path  # PEM, chain included
    membership: Path  # JSON, written by the coordinator
    origin_bytes: PositiveInt = 2 * WINDOW  # waiting for one receiver, from one channel
    sender_bytes: PositiveInt = 8 * WINDOW  # waiting for one receiver, from one sender
    connection_bytes: PositiveInt = 32 * WINDOW  # waiting for one receiver
    refresh_s: PositiveFloat = 0.25


# --- who may send to whom -------------------------------------------------------------------------


class Membership(Protocol):
    """Governance's word, kept current while the relay runs."""

    def org_of(self, certificate_der: bytes) -> str | None:
        """The organisation whose admitted card holds exactly this certificate."""

    def allowed(self, manifest: bytes, sender: str, receiver: str) -> bool:
        """Whether both are parties of the job with this manifest digest."""

    def trusted_cas(self) -> bytes:
        """The CA certificates of all admitted organisations, PEM."""

    def refresh(self) -> None:
        """Look again; called every `refresh_s`."""


class _Organisation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate_sha256: Digest
    ca: str


class MembershipFile(BaseModel):
    """The file between coordinator and relay; written to another name, then renamed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    organisations: dict[OrgId, _Organisation] = {}
    jobs: dict[Digest, frozenset[OrgId]] = {}  # manifest digest -> parties


class FileMembership:
    """Membership from a `MembershipFile`, read again when the file was replaced.

    A file that is missing or broken changes nothing: the last good one counts.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, (0, 0, 0)
        self._orgs: dict[str, str] = {}
        self._jobs: dict[bytes, frozenset[str]] = {}
        self._cas = b""
        self.refresh()

    def org_of(self, certificate_der: bytes) -> str | None:
        return self._orgs.get(hashlib.sha256(certificate_der).hexdigest())

    def allowed(self, manifest: bytes, sender: str, receiver: str) -> bool:
        return sender != receiver and {sender, receiver} <= self._jobs.get(manifest, frozenset())

    def trusted_cas(self) -> bytes:
        return self._cas

    def refresh(self) -> None:
        try:
            about = self._path.stat()
            seen = (about.st_ino, about.st_mtime_ns, about.st_size)
            if seen == self._seen:
                return
            content = MembershipFile.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, pydantic.ValidationError) as error:
            log.error("membership unreadable", extra={"reason": type(error).__name__})
            return
        self._seen = seen
        self._orgs = {item.certificate_sha256: org for org, item in content.organisations.items()}
        self._jobs = {bytes.fromhex(digest): orgs for digest, orgs in content.jobs.items()}
        self._cas = b"".join(_ca(org, item.ca) for org, item in content.organisations.items())


def _ca(org: str, pem: str) -> bytes:
    """An organisation's CA, or nothing: one broken PEM would make gRPC refuse everybody."""
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        log.error("ca unreadable", extra={"party": org})
        return b""
    return b"".join(item.public_bytes(Encoding.PEM) for item in certificates)


# --- one connection -------------------------------------------------------------------------------


_Books = tuple[tuple[object, ...], ...]  # where a waiting frame is counted


class _Connection:
    """One party's stream: the frames that wait for it, and why it ended."""

    def __init__(self, org: str, certificate: bytes, config: RelayConfig) -> None:
        self.org, self.certificate = org, certificate
        self.ended: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.Future()
        self._limits = (config.connection_bytes, config.sender_bytes, config.origin_bytes)
        self._waiting: deque[tuple[bytes, _Books, int]] = deque()
        self._arrived = asyncio.Event()
        self._held: dict[tuple[object, ...], int] = {}  # in all, by sender, by channel

    def put(self, frame: Frame, sender: str) -> None:
        """Queue a frame, or drop it: whoever ignores the window loses frames, not our memory."""
        books: _Books = ((), (sender,), (sender, frame.address.manifest, frame.address.attempt))
        cost = len(frame.payload) + _FRAME_COST
        room = zip(books, self._limits, strict=True)
        if all(self._held.get(book, 0) + cost <= limit for book, limit in room):
            self._enter(books, cost)
            self._waiting.append((frame.forwarded(sender), books, cost))
            self._arrived.set()

    async def get(self) -> bytes:
        """The next frame; it gives its room back when it was `sent`."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting[0][0]

    def sent(self) -> None:
        _, books, cost = self._waiting.popleft()
        self._enter(books, -cost)

    def held_bytes(self) -> int:
        return self._held.get((), 0)

    def end(self, code: grpc.StatusCode, words: str) -> None:
        if not self.ended.done():
            self.ended.set_result((code, words))

    def _enter(self, books: _Books, cost: int) -> None:
        for book in books:
            self._held[book] = self._held.get(book, 0) + cost
            if not self._held[book]:
                del self._held[book]


# --- the relay ------------------------------------------------------------------------------------


class Relay:
    """Async context manager that serves until it is left."""

    def __init__(self, config: RelayConfig, membership: Membership) -> None:
        self._config, self._membership = config, membership
        self._identity = (config.key.read_bytes(), config.certificate.read_bytes())
        self._cas = b""
        self._connections: dict[str, _Connection] = {}
        self.address = config.address

    async def __aenter__(self) -> Self:
        self._cas = self._membership.trusted_cas()
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificates(), self._changed_certificates, require_client_authentication=True
        )
        service, _, method = METHOD[1:].partition("/")
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        host, _, _ = self._config.address.rpartition(":")
        self.address = f"{host}:{self._server.add_secure_port(self._config.address, credentials)}"
        await self._server.start()
        self._watcher = asyncio.create_task(self._watch_membership())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()
        for connection in self._connections.values():
            connection.end(grpc.StatusCode.UNAVAILABLE, "the relay stops")
        await self._server.stop(grace=0.5)
        with contextlib.suppress(asyncio.CancelledError):
            await self._watcher

    def _certificates(self) -> Any:
        # Without any CA gRPC would fall back to the system's; a handshake must fail instead.
        return grpc.ssl_server_certificate_configuration(
            [self._identity], self._cas or self._identity[1]
        )

    def _changed_certificates(self) -> Any:
        """Asked by gRPC at every handshake, in a thread of its own; None: as before."""
        if (cas := self._membership.trusted_cas()) == self._cas:
            return None
        self._cas = cas
        return self._certificates()

    async def _watch_membership(self) -> None:
        while True:
            await asyncio.sleep(self._config.refresh_s)
            self._membership.refresh()
            for connection in list(self._connections.values()):
                if self._membership.org_of(connection.certificate) != connection.org:
                    connection.end(grpc.StatusCode.PERMISSION_DENIED, "not admitted")

    async def _stream(self, _: object, context: grpc.aio.ServicerContext) -> None:
        certificate = ssl.PEM_cert_to_DER_cert(context.auth_context()["x509_pem_cert"][0].decode())
        org = self._membership.org_of(certificate)
        if org is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not admitted")
            return
        connection = _Connection(org, certificate, self._config)
        if earlier := self._connections.get(org):
            # The newest wins: after a crash the old connection may look alive for half a minute.
            earlier.end(grpc.StatusCode.ABORTED, "replaced by a newer connection")
        self._connections[org] = connection
        log.info("party connected", extra={"party": org})
        tasks: list[asyncio.Task[None]] = []
        try:
            # only now: who is welcome is also reachable, or frames for it would be dropped
            await context.send_initial_metadata((WELCOME,))
            tasks = [
                asyncio.create_task(self._read(connection, context)),
                asyncio.create_task(self._write(connection, context)),
            ]
            code, words = await connection.ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._connections.get(org) is connection:
                del self._connections[org]
        log.info("party disconnected", extra={"party": org, "reason": words})
        if code is not grpc.StatusCode.OK:
            await context.abort(code, words)

    async def _read(self, connection: _Connection, context: grpc.aio.ServicerContext) -> None:
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                frame = Frame.decode(data)
                receiver = self._connections.get(frame.address.party)
                if receiver is not None and self._membership.allowed(
                    frame.address.manifest, connection.org, frame.address.party
                ):
                    receiver.put(frame, connection.org)
            connection.end(grpc.StatusCode.OK, "left")
        except ProtocolError:
            connection.end(grpc.StatusCode.INVALID_ARGUMENT, "malformed frame")
        finally:
            connection.end(grpc.StatusCode.UNAVAILABLE, "lost")

    async def _write(self, connection: _Connection, context: grpc.aio.ServicerContext) -> None:
        try:
            while True:
                await context.write(await connection.get())
                connection.sent()
        finally:
            connection.end(grpc.StatusCode.UNAVAILABLE, "lost")


async def serve(
    config: RelayConfig,
    membership: Membership | None = None,
    *,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until cancelled; `ready` gets the address with the port that was taken."""
    async with Relay(config, membership or FileMembership(config.membership)) as relay:
        log.info("relay ready", extra={"address": relay.address})
        ready(relay.address)
        await asyncio.Event().wait()


def main(arguments: list[str] | None = None) -> int:
    """The relay as a process: prints one JSON line when it is ready; SIGTERM ends it."""
    parser = argparse.ArgumentParser(prog="python -m server.relay", description=serve.__doc__)
    parser.add_argument("--address", default="127.0.0.1:8444", help="host:port to listen on")
    for name in ("key", "certificate", "membership"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    config = RelayConfig(**vars(parser.parse_args(arguments)))

    def announce(address: str) -> None:
        sys.stdout.write(json.dumps({"relay": address}) + "\n")
        sys.stdout.flush()

    async def run() -> None:
        serving = asyncio.create_task(serve(config, ready=announce))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
