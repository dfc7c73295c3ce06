"""One channel's TLS 1.3 session between two parties, in memory: bytes in, bytes out.

Who            each end accepts one certificate: the leaf of the other's trusted card, by its
               SHA-256, issued by that organisation's own authority. No other authority is loaded.
Which job      the only protocol name offered (ALPN) is a digest of manifest, attempt and both
               parties. It is part of the handshake's transcript, and each end insists on it, so two
               ends with different manifests never complete.
Forward secret by an ephemeral key agreement; no tickets, no resumption, no renegotiation.
Messages       8 bytes of length, then the bytes; none longer than the stated limit.

The server's role falls to the smaller name. Why TLS: docs/adr/0001-end-to-end-channel.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from federation.errors import IntegrityError
from federation.relay_frame import Address
from protocols.errors import ProtocolError
from protocols.streams import digest

_LENGTH = 8
_RECORD = 1 << 14
# AES-GCM under one key: 2^24.5 full records keep the attacker's advantage below 2^-57 (RFC 8446,
# section 5.5). Python cannot ask for a key update, so a channel ends here, after 256 GiB.
_MAX_RECORDS = 1 << 24


@dataclass(frozen=True, slots=True)
class Identity:
    """What this organisation shows to relay and parties."""

    org: str
    key: bytes = field(repr=False)  # PEM, not encrypted
    certificate: str = field(repr=False)  # PEM, leaf first


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the trusted card of another organisation says about its connections."""

    ca: str = field(repr=False)  # PEM
    sha256: str  # of the leaf's DER, hex


class SessionEnded(Exception):
    """The peer said, inside the session, that it sends no more."""


class TlsSession:
    """Not thread-safe: the caller serialises. Every method may leave bytes in `outgoing()`.

    After an error, what `outgoing()` then holds (the alert) is still to be sent.
    """

    def __init__(
        self, own: Identity, address: Address, peer: PeerCertificate, *, max_message_bytes: int
    ) -> None:
        self._peer, self._certificate = address.party, peer.sha256
        self._name = _protocol_name(address, own.org)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        is_server = own.org < address.party
        context = _context(own, peer, self._name, is_server=is_server)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._reader = _Reader(self._tls, max_message_bytes)
        self._records = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Ciphertext from the peer."""
        self._incoming.write(data)

    def outgoing(self) -> bytes:
        """Ciphertext for the peer."""
        return self._outgoing.read()

    def handshake(self) -> bool:
        """Go on with the handshake; true once the peer has proved who and which job it is."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            what = "its certificate is not issued by the authority in its trusted card"
            todo = "compare the fingerprints of the cards; renew yours or trust its new card"
            raise IntegrityError(what, party=self._peer, todo=todo) from error
        except ssl.SSLError as error:
            raise self._broken("did not complete", error) from error
        shown = hashlib.sha256(self._tls.getpeercert(binary_form=True) or b"").hexdigest()
        if shown != self._certificate:
            what = "it showed a certificate other than the one in its trusted card"
            todo = "if it has renewed its certificate, trust its new card"
            raise IntegrityError(what, party=self._peer, todo=todo)
        if self._tls.selected_alpn_protocol() != self._name:
            what = "it is in another job, another attempt, or has approved another manifest"
            todo = "compare the manifest's digest with it"
            raise IntegrityError(what, party=self._peer, todo=todo)
        return True

    def seal(self, piece: bytes | memoryview) -> bytes:
        """The ciphertext of a piece of the outgoing stream."""
        self._records += -(-len(piece) // _RECORD)
        if self._records > _MAX_RECORDS:
            what = "the channel has carried as much as one key may protect"
            raise IntegrityError(what, party=self._peer, todo="start a new attempt")
        self._tls.write(piece)
        return self._outgoing.read()

    def messages(self) -> Iterator[bytes]:
        """The messages that what was fed completes.

        Raises SessionEnded after the last one, IntegrityError if a byte was changed on the way.
        """
        try:
            yield from self._reader.messages()
        except ProtocolError as error:
            raise IntegrityError(str(error), party=self._peer) from error
        except ssl.SSLError as error:
            raise self._broken("broke", error) from error

    def end(self) -> bytes:
        """The ciphertext that tells the peer: no more from here."""
        # SSLWantRead: the peer has not ended its side; any other error: nothing to say any more
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._outgoing.read()

    def _broken(self, how: str, error: ssl.SSLError) -> IntegrityError:
        what = f"the encrypted channel {how} ({error.reason or 'TLS error'})"
        todo = "the relay or the network changed bytes, or the peer refused; see both nodes' logs"
        return IntegrityError(what, party=self._peer, todo=todo)


def framed(message: bytes) -> tuple[bytes, memoryview]:
    """A message's length, and its bytes."""
    return len(message).to_bytes(_LENGTH, "big"), memoryview(message)


class _Reader:
    """Puts messages together from TLS records.

    Records are collected and joined once: half the time of reading into a buffer of the message's
    length (whose fresh pages cost more than the decryption), and a length that a peer only claims
    takes no memory.
    """

    def __init__(self, tls: ssl.SSLObject, max_message_bytes: int) -> None:
        self._tls, self._limit = tls, max_message_bytes
        self._parts: list[bytes] = []
        self._missing, self._is_length = _LENGTH, True

    def messages(self) -> Iterator[bytes]:
        while True:
            while self._missing:
                try:
                    part = self._tls.read(min(self._missing, _RECORD))
                except ssl.SSLWantReadError:
                    return
                except ssl.SSLZeroReturnError:
                    part = b""
                if not part:
                    raise SessionEnded
                self._parts.append(part)
                self._missing -= len(part)
            done = b"".join(self._parts)
            self._parts.clear()
            if not self._is_length:
                self._missing, self._is_length = _LENGTH, True
                yield done
                continue
            self._missing, self._is_length = int.from_bytes(done, "big"), False
            if self._missing > self._limit:
                what = f"a message of {self._missing} bytes, the limit is {self._limit}"
                raise ProtocolError(what)


def _protocol_name(address: Address, me: str) -> str:
    first, second = sorted((me, address.party))
    bound = digest(b"lianmo/v1/channel", address.manifest, address.attempt, first, second)
    return f"lianmo/1/{bound.hex()}"


def _context(
    own: Identity, peer: PeerCertificate, protocol: str, *, is_server: bool
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # stricter: the exact certificate, see handshake()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=peer.ca)
    context.set_alpn_protocols([protocol])
    context.options |= ssl.OP_NO_TICKET
    if is_server:
        context.num_tickets = 0
    _load_key(context, own)
    return context


def _load_key(context: ssl.SSLContext, own: Identity) -> None:
    """Python reads keys from files only: one in memory where there is such, else 0600 and gone."""
    material = own.key.rstrip() + b"\n" + own.certificate.encode()
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("tls"), "wb") as file:
            file.write(material)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(material)
        file.flush()
        context.load_cert_chain(file.name)
