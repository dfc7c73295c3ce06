"""The public port's TLS, and how the peer's certificate reaches the application.

A handshake needs a client certificate under the authority of an admitted organisation. Whose
request it is, and whether it counts, is decided for every request by the exact leaf in an admitted
card: an organisation that is no longer trusted is out at once, not when its connection ends.

uvicorn does not give the peer's certificate to the application. `CertificateProtocol` puts it into
the ASGI scope; tests/server/test_flower_contract.py fails if a uvicorn changes what that rests on.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

CERTIFICATE_KEY = "lianmo.certificate"  # DER of the peer's leaf, in the scope


class CertificateProtocol(HttpToolsProtocol):
    """uvicorn's protocol (and its narrower argument), with the certificate in every scope."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(True) if tls is not None else None
        self.app = _WithCertificate(self.app, certificate)

    def shutdown(self) -> None:
        """At the end: an idle connection is cut. A close in TLS waits for the peer's good-bye, and
        a pooled connection that nobody reads says none."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.abort()
        else:
            super().shutdown()


class _WithCertificate:
    def __init__(self, app: Any, certificate: bytes | None) -> None:
        self._app: ASGIApp = app
        self._certificate = certificate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CERTIFICATE_KEY] = self._certificate
        await self._app(scope, receive, send)


class PublicTls:
    """The public port's context; trusted authorities are added while it serves.

    An authority that is no longer trusted stays in the context until the next start. That only
    lets a handshake succeed: the leaf is in no admitted card, so every request is refused.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_cert_chain(certificate, key)
        self._loaded: set[str] = set()

    def trust(self, authorities: Iterable[str]) -> None:
        """Let these authorities' leaves complete a handshake, from the next one on."""
        for pem in authorities:
            digest = hashlib.sha256(pem.encode()).hexdigest()
            if digest not in self._loaded:
                self.context.load_verify_locations(cadata=pem)
                self._loaded.add(digest)
