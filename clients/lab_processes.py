"""The lab with a process for each party, over the real relay and TLS 1.3 between every two.

Keys, certificates, relay, channels and programs are those of a real job. What a lab leaves out is
the agreement of people: nobody signed anything, and the data come from one table anyway.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from clients.home import Home
from clients.lab_run import Run, Watch, seconds_of
from clients.lab_table import Split
from clients.relay_client import Identity, PeerCertificate, RelayClient, RelayServer
from federation import certificates, keyring
from federation.channel import Channel
from federation.codes import code_for_row
from federation.errors import LianmoError, Unavailable
from federation.objects import JobManifest, OrgKind, Usage
from federation.tables import BankData, DepartmentData
from federation.tasks.local import local_party, local_seeds, run_party
from federation.tasks.party import Progress

RELAY = "relay"
CODE_SET = 8  # of made-up credit codes for the lab's organisations
CONNECT_S = 60.0
ATTEMPT = 0


@dataclass(frozen=True, slots=True)
class Seat:
    """All that one party's process is given."""

    home: Path
    relay: str
    manifest: bytes
    seeds: Mapping[str, bytes]  # of a lab, where one hand holds all of them
    data: BankData | DepartmentData


@dataclass(frozen=True, slots=True)
class Done:
    """What a party's process leaves."""

    result: Any
    sent_bytes: int
    peak_bytes: int  # the process's largest resident set


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way to the process that asked."""

    what: str
    party: str
    stage: str
    todo: str
    kind: type[LianmoError]


def run(parts: Split, manifest: JobManifest, seed: int, watch: Watch) -> Run:
    """Run all parties, each in a process of its own; the bank's result comes back."""
    began = time.monotonic()
    seeds = local_seeds(parts.organisations, seed)
    data: dict[str, BankData | DepartmentData] = {parts.bank: parts.bank_data, **parts.departments}
    with tempfile.TemporaryDirectory(prefix="lianmo-lab-") as name:
        folder = Path(name)
        homes = _homes(folder, parts)
        with _relay(folder, homes, manifest) as address:
            seats = {
                org: Seat(homes[org].path, address, manifest.payload(), seeds, data[org])
                for org in parts.organisations
            }
            done = _run_seats(seats, parts.bank, watch)
    result = done[parts.bank].result
    sent = sum(one.sent_bytes for one in done.values())
    peaks = {org: one.peak_bytes for org, one in done.items()}
    return Run(result, seconds_of(result, time.monotonic() - began), sent, peaks)


def _homes(folder: Path, parts: Split) -> dict[str, Home]:
    """A home with keys for each party and for the relay; everybody trusts everybody's card."""
    orgs = [RELAY, *parts.organisations]
    codes = [bytes(code).decode() for code in code_for_row(CODE_SET, np.arange(len(orgs)))]
    homes = {}
    for org, code in zip(orgs, codes, strict=True):
        kind = OrgKind.DEPARTMENT
        if org in (RELAY, parts.bank):
            kind = OrgKind.PLATFORM if org == RELAY else OrgKind.BANK
        homes[org] = Home.create(
            folder / org,
            org=org,
            kind=kind.value,
            name=parts.names.get(org, org),
            uscc=code,
            region="lab",
            hosts=("127.0.0.1",) if org == RELAY else (),
        )
    for home in homes.values():
        for other in homes.values():
            if other.org != home.org:
                home.trust_card(other.card())
    return homes


@contextmanager
def _relay(folder: Path, homes: Mapping[str, Home], manifest: JobManifest) -> Iterator[str]:
    """The relay as a process of its own; its address."""
    members = {
        org: {"certificate_sha256": _leaf_sha256(home, org), "ca": home.trust().tls_ca(org)}
        for org, home in homes.items()
        if org != RELAY
    }
    membership = folder / "membership.json"
    about = {"organisations": members, "jobs": {manifest.digest(): list(members)}}
    keyring.write(membership, json.dumps(about).encode(), keyring.SECRET_MODE)
    certificate, key = homes[RELAY].tls_files
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = ("--key", key, "--certificate", certificate, "--membership", membership)
    command = [sys.executable, "-m", "server.relay", "--address", address, *map(str, files)]
    with (folder / "relay.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 - our own relay
            command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
        )
    try:
        if process.stdout is None or not process.stdout.readline():
            raise Unavailable("the lab's relay did not start", todo="try without --processes")
        yield address
    finally:
        process.terminate()
        process.communicate()


def _run_seats(seats: Mapping[str, Seat], bank: str, watch: Watch) -> dict[str, Done]:
    """Start a process a seat; what each leaves, by organisation."""
    context = multiprocessing.get_context("spawn")
    processes: dict[str, BaseProcess] = {}
    ears: dict[Connection, str] = {}
    for org, seat in seats.items():
        here, there = context.Pipe(duplex=False)
        processes[org] = context.Process(target=_sit, args=(org, seat, there), daemon=True)
        processes[org].start()
        there.close()
        ears[here] = org
    done: dict[str, Done] = {}
    failures: list[Failure] = []
    try:
        while ears:
            for ear in wait(list(ears)):
                if not isinstance(ear, Connection):
                    continue
                org = ears[ear]
                try:
                    word = ear.recv()
                except EOFError:
                    del ears[ear]
                    if org not in done and not failures:
                        ears.clear()  # killed, say: the others would wait for it for minutes
                        break
                    continue
                if isinstance(word, Progress):
                    if org == bank:
                        watch(word.stage, word.step, word.steps)
                elif isinstance(word, Failure):
                    failures.append(word)
                else:
                    done[org] = word
    finally:
        for process in processes.values():
            process.join(5)
            process.kill()
    causes = [item for item in failures if not issubclass(item.kind, Unavailable)] or failures
    if causes:
        first = causes[0]
        raise first.kind(first.what, party=first.party, stage=first.stage, todo=first.todo)
    if missing := sorted(seats.keys() - done.keys()):
        raise Unavailable("its process ended without a word", party=missing[0])
    return done


def _sit(org: str, seat: Seat, mouth: Connection) -> None:
    """One party's process."""
    home = Home.open(seat.home, environment={})
    manifest = JobManifest.model_validate_json(seat.manifest)
    certificate, _ = home.tls_files
    own = Identity(org=org, key=home.key(Usage.TLS).pem(), certificate=certificate.read_text())
    trust = home.trust()
    peers = {
        peer: PeerCertificate(ca=trust.tls_ca(peer), sha256=_leaf_sha256(home, peer))
        for peer in seat.seeds
        if peer != org
    }
    server = RelayServer(seat.relay, trust.tls_ca(RELAY))
    try:
        with RelayClient(own, peers, server) as client, ThreadPoolExecutor() as executor:
            client.wait_connected(CONNECT_S)
            digest = bytes.fromhex(manifest.digest())
            channels = {
                peer: Channel(org, peer, client.transport(digest, ATTEMPT, peer)) for peer in peers
            }
            party = local_party(
                org,
                manifest,
                seat.seeds,
                channels,
                attempt=ATTEMPT,
                executor=executor,
                report=lambda _, progress: mouth.send(progress),
            )
            result = run_party(party, seat.data)
            for channel in channels.values():
                channel.close()
            sent = sum(sum(c.traffic.sent_bytes.values()) for c in channels.values())
            mouth.send(Done(result, sent, _peak_bytes()))
    except LianmoError as error:
        mouth.send(Failure(error.what, error.party, error.stage, error.todo, type(error)))
    finally:
        mouth.close()


def _peak_bytes() -> int:
    """This process's largest resident set; 0 where the system does not say.

    Not getrusage: its figure is inherited over fork and exec.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else 0


def _leaf_sha256(home: Home, org: str) -> str:
    der = certificates.der(home.trust().card(org).tls_certificate)
    return hashlib.sha256(der).hexdigest()
