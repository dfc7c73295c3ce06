"""Relay, end to end: throughput one to one and round trip, over TLS, one process a party.

    python benchmarks/relay.py [MiB] [round trips]

Prints one JSON object. CPU milliseconds a MiB (sender, relay, receiver) hold on a busy machine as
well; the cores divided by their sum bound the throughput. `ceiling` is the same machine's
AES-256-GCM over the same bytes, six times (two hops of TLS and the sealing end to end, each done
and undone), on one core: what no relay of this design can beat on a single core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from clients.relay_client import Identity, PeerCertificate, RelayClient, RelayServer
from federation import certificates

MIB = 1 << 20
JOB = bytes(32)


def prepare(home: Path) -> None:
    """Keys, certificates and the relay's membership for two parties."""
    now = datetime.now(UTC)
    organisations = {}
    for org in ("coordinator", "bank", "tax"):
        root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca = certificates.new_authority(org, root, now)
        leaf = certificates.issue(
            org, key, root, hosts=["127.0.0.1"], now=now, until=now + timedelta(days=1)
        )
        (home / f"{org}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (home / f"{org}.crt").write_text(certificates.pem(leaf))
        digest = sha256(certificates.der(certificates.pem(leaf))).hexdigest()
        organisations[org] = {"certificate_sha256": digest, "ca": certificates.pem(ca)}
    jobs = {JOB.hex(): ["bank", "tax"]}
    (home / "members.json").write_text(json.dumps({"organisations": organisations, "jobs": jobs}))


def client(home: Path, me: str, address: str) -> RelayClient:
    known = json.loads((home / "members.json").read_text())["organisations"]
    peers = {
        org: PeerCertificate(item["ca"], item["certificate_sha256"]) for org, item in known.items()
    }
    own = Identity(me, (home / f"{me}.key").read_bytes(), (home / f"{me}.crt").read_text())
    return RelayClient(own, peers, RelayServer(address, known["coordinator"]["ca"]))


def echo(home: Path, address: str, mib: int, trips: int) -> None:
    """The department: takes the bulk, says so, then answers every message."""
    with client(home, "tax", address) as node:
        transport = node.transport(JOB, 1, "bank")
        transport.send(b"")
        size, used = 0, time.process_time_ns()
        while size < mib * MIB:
            size += len(transport.receive(60))
        transport.send((time.process_time_ns() - used).to_bytes(8))
        for _ in range(trips):
            transport.send(transport.receive(60))


def cpu_s(pid: int) -> float:
    """CPU seconds of another process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(home: Path, address: str, relay: int, mib: int, trips: int) -> dict[str, object]:
    with client(home, "bank", address) as node:
        transport = node.transport(JOB, 1, "tax")
        transport.receive(60)
        block = bytes(4 * MIB)
        began, used, relayed = time.perf_counter(), time.process_time(), cpu_s(relay)
        for _ in range(mib // 4):
            transport.send(block)
        receiver = int.from_bytes(transport.receive(60)) / 1e9
        seconds, sender = time.perf_counter() - began, time.process_time() - used
        relayed = cpu_s(relay) - relayed
        times = []
        for _ in range(trips):
            sent = time.perf_counter()
            transport.send(bytes(64))
            transport.receive(60)
            times.append(time.perf_counter() - sent)
        times.sort()
    return {
        "mib_per_s": round(mib / seconds, 1),
        "cpu_ms_per_mib": [round(used / mib * 1e3, 2) for used in (sender, relayed, receiver)],
        "round_trip_ms_p50": round(times[trips // 2] * 1e3, 2),
        "round_trip_ms_p99": round(times[int(trips * 0.99)] * 1e3, 2),
    }


def ceiling() -> float:
    cipher, block = AESGCM(bytes(32)), bytes(MIB)
    began = time.perf_counter()
    for number in range(6 * 16):
        cipher.encrypt(number.to_bytes(12, "big"), block, None)
    return round(16 / (time.perf_counter() - began), 1)


def run(mib: int, trips: int) -> dict[str, object]:
    """Relay, one sender and one receiver, each a process."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home)
        names = {"key": "coordinator.key", "certificate": "coordinator.crt"}
        files = {**names, "membership": "members.json"}
        command = [sys.executable, "-m", "server.relay", "--address", "127.0.0.1:0"]
        command += [
            word for name, file in files.items() for word in (f"--{name}", str(home / file))
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as relay:
            announced = relay.stdout.readline() if relay.stdout else b""
            address = json.loads(announced)["relay"]
            arguments = [folder, address, str(mib), str(trips)]
            with subprocess.Popen([sys.executable, __file__, "echo", *arguments]) as peer:
                result = measure(home, address, relay.pid, mib, trips)
                peer.wait(30)
            relay.terminate()
    return {**result, "ceiling_mib_per_s": ceiling()}


def rows() -> list[dict[str, object]]:
    """For the benchmark's table."""
    found = run(256, 500)
    speed, trip = float(str(found["mib_per_s"])), float(str(found["round_trip_ms_p50"]))
    return [
        {
            "name": "relay",
            "value": speed,
            "unit": "MiB/s one to one",
            "reference": 200.0,
            "ratio": round(speed / 200, 3),
            "rows": 0,
            "note": f"reference: target; AES-GCM alone would allow {found['ceiling_mib_per_s']}",
        },
        {
            "name": "relay_round_trip",
            "value": trip,
            "unit": "ms, 64 B, median",
            "reference": 2.0,
            "ratio": round(trip / 2, 3),
            "rows": 0,
            "note": f"reference: target; p99 {found['round_trip_ms_p99']} ms",
        },
    ]


def main(mib: int = 512, trips: int = 1000) -> None:
    """Print one JSON object."""
    print(json.dumps(run(mib, trips)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["echo"]:
        echo(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(*map(int, sys.argv[1:]))
