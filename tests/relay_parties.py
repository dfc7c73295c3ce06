"""Parties with certificates, the relay as a process, and a relay in memory that lies."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clients.relay_client import Identity, LineConfig, PeerCertificate, RelayClient, RelayServer
from clients.relay_line import Line
from federation import certificates
from federation.relay_frame import Address, Frame

JOB = sha256(b"a manifest").digest()
OTHER_JOB = sha256(b"another manifest").digest()
QUICK = LineConfig(
    start_timeout_s=5, stall_timeout_s=5, peer_timeout_s=5, linger_s=5, heartbeat_s=0.5,
    probe_after_s=0.1, introduce_every_s=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """An organisation's connection material."""

    identity: Identity
    ca: str
    authority: ec.EllipticCurvePrivateKey

    @property
    def certificate(self) -> PeerCertificate:
        digest = sha256(certificates.der(self.identity.certificate)).hexdigest()
        return PeerCertificate(self.ca, digest)


@cache
def member(org: str, variant: int = 0) -> Member:
    """An organisation with its own authority; another `variant` has other keys, the same name."""
    del variant
    authority, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    ca = certificates.pem(certificates.new_authority(org, authority, now))
    return Member(leaf(org, authority), ca, authority)


def leaf(org: str, authority: ec.EllipticCurvePrivateKey) -> Identity:
    """A fresh certificate with the organisation's name, whoever's the authority is."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    certificate = certificates.issue(
        org, key, authority, hosts=["127.0.0.1"], now=now, until=now + timedelta(days=1)
    )
    return _identity(org, key, certificate)


def forged_leaf(org: str, by: str) -> Identity:
    """A certificate in one organisation's name under another's authority, valid as X.509 goes."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, org)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(certificates.authority_name(by))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(member(by).authority, hashes.SHA256())
    )
    return _identity(org, key, certificate)


def _identity(org: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Identity:
    encoded = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Identity(org, encoded, certificates.pem(certificate))


def trusted(*orgs: str) -> dict[str, PeerCertificate]:
    return {org: member(org).certificate for org in orgs}


def write_membership(
    path: Path,
    organisations: Mapping[str, PeerCertificate],
    jobs: Mapping[bytes, Iterable[str]],
) -> None:
    content = {
        "organisations": {
            org: {"certificate_sha256": item.sha256, "ca": item.ca}
            for org, item in organisations.items()
        },
        "jobs": {digest.hex(): sorted(orgs) for digest, orgs in jobs.items()},
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


class RelayProcess:
    """The real relay, in its own process, killed and started at will."""

    def __init__(self, home: Path, port: int = 0) -> None:
        platform = member("coordinator").identity
        self.home, self.membership = home, home / "membership.json"
        self.address = f"127.0.0.1:{port}"
        (home / "key.pem").write_bytes(platform.key)
        (home / "certificate.pem").write_text(platform.certificate)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "server.relay", "--address", self.address]
        for name, file in (("key", "key.pem"), ("certificate", "certificate.pem")):
            command += [f"--{name}", str(self.home / file)]
        command += ["--membership", str(self.membership)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ}
        )
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["relay"]

    def stop(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        self.process.stdout.close()
        return self.process.wait(10)

    def client(self, org: str, config: LineConfig = QUICK) -> RelayClient:
        server = RelayServer(self.address, member("coordinator").ca)
        peers = trusted("bank", "tax", "court")
        return RelayClient(member(org).identity, peers, server, config)


@contextmanager
def relay_process(
    home: Path, parties: tuple[str, ...] = ("bank", "tax", "court")
) -> Iterator[RelayProcess]:
    relay = RelayProcess(home)
    write_membership(relay.membership, trusted(*parties), {JOB: parties, OTHER_JOB: parties})
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()


# --- in memory ------------------------------------------------------------------------------------

Tamper = Callable[[str, Frame], Iterable[Frame]]  # sender, frame -> frames to deliver


def honest(sender: str, frame: Frame) -> Iterable[Frame]:
    del sender
    return (frame,)


class MemoryRelay:
    """Joins lines in this process, delivers what `tamper` makes of each frame, keeps a copy."""

    def __init__(self, tamper: Tamper = honest) -> None:
        self.tamper, self.seen = tamper, bytearray()
        self._lines: dict[tuple[str, Address], Line] = {}
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def line(
        self,
        me: str,
        peer: str,
        *,
        own: Identity | None = None,
        trust: PeerCertificate | None = None,
        config: LineConfig = QUICK,
        manifest: bytes = JOB,
        attempt: int = 1,
        listens_at: Address | None = None,
    ) -> Line:
        """One end. `listens_at`: what the relay takes its address for."""
        line = Line(
            own or member(me).identity,
            Address(manifest, attempt, peer),
            trust or member(peer).certificate,
            lambda frame: self._queue.put((me, frame)),
            lambda: "",
            config,
        )
        self._lines[me, listens_at or Address(manifest, attempt, peer)] = line
        line.shake_hands()
        line.linked()
        return line

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ticked = datetime.now(UTC)
        while True:
            try:
                if (item := self._queue.get(timeout=0.02)) is None:
                    return
            except queue.Empty:
                pass
            else:
                self._deliver(*item)
            if datetime.now(UTC) - ticked > timedelta(seconds=0.05):
                ticked = datetime.now(UTC)
                for line in list(self._lines.values()):
                    line.tick()

    def _deliver(self, sender: str, data: bytes) -> None:
        self.seen += data
        for frame in self.tamper(sender, Frame.decode(data)):
            arrived = Frame.decode(frame.forwarded(sender))
            if line := self._lines.get((frame.address.party, arrived.address)):
                line.handle(arrived)


@contextmanager
def memory_relay(tamper: Tamper = honest) -> Iterator[MemoryRelay]:
    relay = MemoryRelay(tamper)
    try:
        yield relay
    finally:
        relay.close()


@contextmanager
def in_background(program: Callable[[], None]) -> Iterator[None]:
    """Run a party's program beside the test; its failure is the test's."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            program()
        except BaseException as error:  # noqa: BLE001 - carried to the test's thread
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
    if failures:
        raise failures[0]
    assert not thread.is_alive()
