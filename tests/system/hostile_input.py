"""Malformed requests and frames by the thousand, the same ones for the same seed."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

PATHS = (
    *("health", "organisations", "organisations/{}", "organisations/me", "catalogue"),
    *("catalogue/{}", "jobs", "jobs/{}", "jobs/{}/approvals", "jobs/{}/progress"),
    *("jobs/{}/stop", "jobs/{}/events", "openapi.json", "{}"),
)
FLEET = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "push-messages", "get-run"),
    *("get-fab", "push-object", "pull-object", "confirm-message-received", "register-node"),
)
RUNTIME = (
    *("send-task-heartbeat", "pull-task-input", "push-task-output", "get-nodes"),
    *("push-messages", "push-object", "pull-object", "push-logs", "acquire-task"),
)
NAMES = (
    *("x", "a-job", "..", "%00", "%ff", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "a" * 300, "'", '"'),
    *("' OR 1=1 --", "${x}", "<script>", "\u202e", "税务局", "1e309", "-1", "null", " ", "%"),
)
QUERIES = (
    *("", "cursor=%00", "cursor=ZZZZ", "cursor=" + "A" * 500, "limit=-1", "limit=1e9", "limit="),
    *("after=-1", "after=99999999999999999999", "wait=nan", "wait=inf", "wait=-1", "after=x"),
    *("&&&===", "limit=5&limit=x", "%ff=%ff"),
)
TYPES = (
    *("application/json", "application/x-protobuf", "text/plain", "", "multipart/form-data"),
    *("application/json; charset=utf-16", "application/grpc", "\xff\xfe"),
)
METHODS_OF_HTTP = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
METHODS = (*METHODS_OF_HTTP, "NONSENSE")


@dataclass(frozen=True)
class Malformed:
    """One request that nobody should send."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret: a failure has to be repeatable


def json_bodies(draw: random.Random, good: bytes) -> bytes:
    """What is nearly JSON, nearly an envelope, or far too deep."""
    kind = draw.randrange(10)
    if kind == 0:
        return draw.randbytes(draw.randrange(400))
    if kind == 1:
        return b"[" * 10_000 + b"]" * draw.choice((0, 10_000))
    if kind == 2:
        return b'{"payload":' * 5_000 + b"1" + b"}" * 5_000
    if kind == 3:
        return draw.choice(
            (b"NaN", b"1e999", b'{"a":1,"a":2}', b"\xef\xbb\xbf{}", b'"\\ud800"', b"9" * 5000)
        )
    if kind < 7:  # a genuine envelope, one byte or piece of it another one
        cut = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            cut[draw.randrange(len(cut))] = draw.randrange(256)
        return bytes(cut[: draw.choice((len(cut), draw.randrange(len(cut))))])
    plain = json.loads(good)
    key = draw.choice(list(plain))
    plain[key] = draw.choice((None, 1, -1e308, [], {}, "x" * 2000, True, [[]], {"": {}}))
    return json.dumps(plain | {draw.choice(("x", "payload")): "x"}).encode()


def requests(seed: int, count: int, good: bytes) -> Iterator[Malformed]:
    """For the API: every path and method, wrong in name, query, header or body."""
    draw = seeded(seed)
    for _ in range(count):
        name = quote(draw.choice(NAMES), safe="%")
        query = draw.choice(QUERIES)
        path = "/api/v1/" + draw.choice(PATHS).format(name) + (f"?{query}" if query else "")
        headers = {"content-type": draw.choice(TYPES)}
        if draw.random() < 0.2:
            headers["idempotency-key"] = draw.choice(("", "short", "k" * 64, "\t", "é" * 20))
        if draw.random() < 0.1:
            headers[draw.choice(("x-forwarded-for", "host", "cookie"))] = "x" * 3000
        yield Malformed(draw.choice(METHODS), path, headers, json_bodies(draw, good))


def fleet_requests(
    seed: int, count: int, prefix: str, names: tuple[str, ...], headers: dict[str, str]
) -> Iterator[Malformed]:
    """For Flower's paths: protobuf that is none, headers that are almost right."""
    draw = seeded(seed)
    for _ in range(count):
        told = dict(headers)
        for name in list(told):
            if draw.random() < 0.1:
                told[name] = draw.choice(("", "x", "=" * 40, told[name][:-4], told[name] + "AAAA"))
        body = draw.choice(
            (
                draw.randbytes(draw.randrange(300)),
                bytes((draw.randrange(256), 0xFF, 0xFF, 0xFF, 0xFF, 0x7F)),
                b"\x0a\x02\x08\x01" + draw.randbytes(20),  # a node, then anything
                b"\x0a\xff\xff\xff\x0f",
                b"\x0b" * 2000,  # groups in groups
                b"",
            )
        )
        path = f"{prefix}{draw.choice(names)}{draw.choice(('', '', '', '/', '?x=1', '%00'))}"
        yield Malformed(draw.choice(("POST", "POST", "POST", "GET")), path, told, body)


def raw(seed: int, count: int) -> Iterator[bytes]:
    """For any port: no TLS, half a TLS hello, another protocol."""
    draw = seeded(seed)
    hello = _client_hello()
    for _ in range(count):
        cut = bytearray(hello)
        cut[draw.randrange(len(cut))] ^= 1 << draw.randrange(8)
        yield draw.choice(
            (
                b"",
                draw.randbytes(draw.randrange(1, 600)),
                hello[: draw.randrange(1, len(hello))],
                bytes(cut),
                b"\x16\x03\x01\xff\xff" + draw.randbytes(100),
                b"GET / HTTP/1.1\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(60),
            )
        )


def broken_http(seed: int, count: int) -> Iterator[bytes]:
    """For inside of a good TLS session: what a parser of HTTP/1.1 or HTTP/2 stumbles over."""
    draw = seeded(seed)
    for _ in range(count):
        yield draw.choice(
            (
                draw.randbytes(draw.randrange(1, 300)),
                b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
                b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
                b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{",
                b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\n"
                b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
                b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n"
                b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                b"GET /api/v1/health HTTP/9.9\r\n\r\n",
                b"GET /api/v1/health HTTP/1.1\r\n" + b"a: b\r\n" * 3000 + b"\r\n",
                b"\x00" * 200,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
                + draw.randbytes(80),
            )
        )


def mutated(draw: random.Random, frame: bytes) -> bytes:
    """A frame with bits flipped, cut off, prolonged or replaced."""
    kind = draw.randrange(5)
    if kind == 0:
        return draw.randbytes(draw.randrange(200))
    if kind == 1:
        return frame[: draw.randrange(len(frame))]
    if kind == 2:
        return frame + draw.randbytes(draw.randrange(1, 40))
    cut = bytearray(frame)
    for _ in range(draw.choice((1, 1, 3, 8))):
        cut[draw.randrange(len(cut))] = draw.randrange(256)
    return bytes(cut)


def throw(port: int, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """Send bytes to a port, inside of TLS if there is a context; the first bytes of an answer."""
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            if context is not None:
                sock = stack.enter_context(context.wrap_socket(sock))
            sock.sendall(data)
            if context is None:
                sock.shutdown(socket.SHUT_WR)
            sock.settimeout(0.05 if context else 0.002)
            return sock.recv(4096)
    except OSError:  # refused, reset or silent: all are answers
        return b""


class Caller:
    """A kept connection for many requests; a server may close it whenever it likes."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self._port, self._context = port, context
        self._connection: http.client.HTTPConnection | None = None

    def send(self, request: Malformed) -> tuple[int, str, bytes]:
        """Status, content type and body; (0, "", b"") if the connection was closed instead."""
        if self._connection is None:
            self._connection = (
                http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context)
                if self._context
                else http.client.HTTPConnection("127.0.0.1", self._port)
            )
            self._connection.timeout = 20
        try:
            self._connection.putrequest(request.method, request.path, skip_accept_encoding=True)
            for name, value in request.headers.items():
                self._connection.putheader(name, value.encode("utf-8"))
            self._connection.putheader("content-length", str(len(request.body)))
            self._connection.endheaders(request.body)
            answer = self._connection.getresponse()
            return answer.status, answer.getheader("content-type", ""), answer.read()
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            return 0, "", b""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _client_hello() -> bytes:
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    tls = context.wrap_bio(ssl.MemoryBIO(), out)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise RuntimeError("a handshake with nobody ended")
