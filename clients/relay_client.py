"""A node's connection to the relay, and a `Transport` to every peer of every job over it.

One gRPC stream a process, in the thread of `clients/network_loop.py`; it reconnects for ever, and
every channel goes on where it was. What happens on a channel is in `clients/relay_line.py`, how it
is sealed in `clients/tls_session.py`.

    with RelayClient(identity, peers, RelayServer("relay.city:8444", platform_ca)) as client:
        channel = Channel(me, peer, client.transport(manifest_digest, attempt, peer))
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc

from clients import network_loop
from clients.relay_line import Line, LineConfig
from clients.tls_session import Identity, PeerCertificate
from federation.errors import Conflict, NotFound, Unavailable
from federation.relay_frame import MAX_FRAME, METHOD, WELCOME, Address, Frame, Kind, Report
from protocols.errors import ProtocolError

__all__ = ["Identity", "LineConfig", "PeerCertificate", "RelayClient", "RelayServer"]

log = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # an environment variable must not choose who sees the stream
)
_TICK_S = 0.1
_CONNECT_S = 10.0
_BACKOFF_S = (0.1, 2.0)
_TAKEN_OVER_S = 5.0  # two processes with one identity must not push each other out all the time
_REMEMBERED = 1024  # closed channels of which a late peer is told that they are


@dataclass(frozen=True, slots=True)
class RelayServer:
    """Where the relay is, and the authority that issues its certificate."""

    address: str  # host:port
    ca: str = field(repr=False)  # PEM


class RelayClient:
    """`peers` is looked up at each `transport`: a mapping that changes shows new organisations."""

    def __init__(
        self,
        own: Identity,
        peers: Mapping[str, PeerCertificate],
        relay: RelayServer,
        config: LineConfig | None = None,
    ) -> None:
        self._own, self._peers, self._relay = own, peers, relay
        self._config = config or LineConfig()
        self._lock = threading.Lock()
        self._lines: dict[Address, Line] = {}
        self._closed: OrderedDict[Address, None] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outgoing: asyncio.Queue[bytes] | None = None  # None while there is no connection
        self._stopping: asyncio.Event | None = None
        self._running: Future[None] | None = None
        self._linked = threading.Event()
        self._reason = "not started"
        self.connections = 0  # how often the stream was established

    # --- the program's threads --------------------------------------------------------------------

    def start(self) -> None:
        """Start to connect; returns at once."""
        if self._running is not None:
            raise RuntimeError("a relay client is started once")
        self._reason = "not connected yet"
        self._loop = network_loop.acquire()
        self._running = asyncio.run_coroutine_threadsafe(self._run(), self._loop)

    def wait_connected(self, timeout_s: float) -> None:
        """Wait for the stream; raises Unavailable with the reason if it does not come."""
        if not self._linked.wait(timeout_s):
            what = f"no connection to the relay at {self._relay.address} ({self._reason})"
            raise Unavailable(what, todo="run `lianmo doctor`")

    def transport(self, manifest_digest: bytes, attempt: int, peer: str) -> Line:
        """The channel to a peer, one for each attempt; waits for nobody.

        A `federation.channel.Transport`. Close it: what it sent is delivered before it goes. An
        attempt is not opened a second time, in this process or after a restart: the peer would
        have to start again as well, which is a new attempt.
        Raises NotFound if the peer is not trusted, Conflict if the channel is or was open.
        """
        address = Address(manifest_digest, attempt, peer)
        if (certificate := self._peers.get(peer)) is None or peer == self._own.org:
            raise NotFound("no trusted card of this organisation", party=peer)
        line = Line(self._own, address, certificate, self._post, self._why_unlinked, self._config)
        with self._lock:
            if address in self._lines or address in self._closed:
                raise Conflict("this attempt's channel is open, or was", party=peer)
            self._lines[address] = line
        line.shake_hands()
        line.linked()
        return line

    def close(self) -> None:
        """Close all channels, wait up to `linger_s` until the peers have what was sent, and end."""
        running, loop = self._running, self._loop
        if running is None or loop is None:
            return
        with self._lock:
            lines = list(self._lines.values())
        for line in lines:
            line.close()
        deadline = time.monotonic() + self._config.linger_s
        while self._lines and not running.done() and time.monotonic() < deadline:
            time.sleep(0.01)
        loop.call_soon_threadsafe(self._stop)
        self._loop = None
        try:
            running.result()
        finally:
            network_loop.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _why_unlinked(self) -> str:
        return "" if self._linked.is_set() else self._reason

    def _post(self, frame: bytes) -> None:
        """From any thread, in order; without a connection it is dropped: SYN brings it back."""
        loop = self._loop
        if loop is not None and self._linked.is_set():
            loop.call_soon_threadsafe(self._enqueue, frame)

    # --- the network's thread ---------------------------------------------------------------------

    async def _run(self) -> None:
        self._stopping = asyncio.Event()
        tasks = [asyncio.create_task(self._keep_linked()), asyncio.create_task(self._tick())]
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((stop, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *tasks):
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        self._linked.clear()
        with self._lock:
            lines = list(self._lines.values())
        for line in lines:
            line.fail(Unavailable("this node's connection to the relay was closed"))
        for outcome in ended:
            if isinstance(outcome, Exception):  # our bug; whoever waits has been told
                raise outcome

    def _stop(self) -> None:
        if self._stopping is not None:
            self._stopping.set()

    def _enqueue(self, frame: bytes) -> None:
        if self._outgoing is not None:
            self._outgoing.put_nowait(frame)

    async def _keep_linked(self) -> None:
        credentials = grpc.ssl_channel_credentials(
            self._relay.ca.encode(), self._own.key, self._own.certificate.encode()
        )
        shortest, longest = _BACKOFF_S
        delay = shortest
        while True:
            before, code = self.connections, None
            try:
                async with grpc.aio.secure_channel(
                    self._relay.address, credentials, options=_OPTIONS
                ) as channel:
                    await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
                    code = await self._serve(channel.stream_stream(METHOD)())
            except TimeoutError:
                self._reason = "it does not answer, or does not accept this node's certificate"
            except grpc.aio.AioRpcError as error:
                code = error.code()
                self._reason = f"{error.code().name.lower()}: {error.details()}"
            except ProtocolError:
                self._reason = "it sent a malformed frame"
            finally:
                self._linked.clear()
                self._outgoing = None
            log.info("relay connection lost", extra={"reason": self._reason})
            delay = shortest if self.connections > before else min(2 * delay, longest)
            if code is grpc.StatusCode.ABORTED:  # this organisation connected from elsewhere
                log.warning("relay connection taken over by another process with this identity")
                delay = _TAKEN_OVER_S
            # Spread out, or all nodes of a city come back in the same instant.
            await asyncio.sleep(delay * (0.5 + secrets.randbelow(1000) / 1000))

    async def _serve(self, call: grpc.aio.StreamStreamCall) -> grpc.StatusCode:
        self._outgoing = asyncio.Queue()
        writer = asyncio.create_task(self._write(call, self._outgoing))
        try:
            name, value = WELCOME
            if (await call.initial_metadata()).get(name) == value:
                self._welcomed()
            while (data := await call.read()) is not grpc.aio.EOF:
                self._dispatch(Frame.decode(data))
            code: grpc.StatusCode = await call.code()
            self._reason = f"{code.name.lower()}: {await call.details()}"
            return code
        finally:
            writer.cancel()
            call.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _welcomed(self) -> None:
        self.connections += 1
        self._linked.set()
        log.info("relay connected", extra={"address": self._relay.address})
        with self._lock:
            lines = list(self._lines.values())
        for line in lines:
            line.linked()

    async def _write(self, call: grpc.aio.StreamStreamCall, frames: asyncio.Queue[bytes]) -> None:
        while True:
            await call.write(await frames.get())

    def _dispatch(self, frame: Frame) -> None:
        line = self._lines.get(frame.address)
        if line is not None:
            line.handle(frame)
        elif frame.address in self._closed and frame.kind in (Kind.SYN, Kind.PROBE):
            self._post(Frame(Kind.GONE, frame.address, 0, Report(bytes(8)).encode()).encode())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for address, line in list(self._lines.items()):
                if line.tick():
                    continue
                with self._lock:
                    del self._lines[address]
                    self._closed[address] = None
                    if len(self._closed) > _REMEMBERED:
                        self._closed.popitem(last=False)
