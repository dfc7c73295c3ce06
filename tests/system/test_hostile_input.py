"""10,000 malformed requests and frames to every port that listens, and to the parsers behind.

From a stranger and from an admitted party with a genuine certificate. Nothing ends or grows a
process, nothing is a 5xx or a traceback, and afterwards the same processes run a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from clients.coordinator_client import tls_context
from federation.api import MAX_BODY_BYTES, JobStatus, Problem
from federation.objects import Usage
from federation.relay_frame import METHOD, Address, Frame, Kind, Report
from tests.system import hostile_input as hostile
from tests.system.hostile_input import Caller, Malformed
from tests.system.network import BANK, COURT, PLATFORM, TAX, Network
from tests.system.test_coordinator import signed

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

# What a process may grow by for good: allocator pools and caches of a busy process, no more.
GROWTH_BYTES = 64 << 20
API, FLEET, RUNTIME, FRAMES = 4_000, 2_000, 1_200, 1_600
RAW, INSIDE = 300, 150  # to each of three ports; in a genuine session with each of two
BIG = 12  # bodies of 10 MB


def test_the_numbers_add_up_to_what_is_promised() -> None:
    assert API + FLEET + RUNTIME + FRAMES + 3 * RAW + 2 * INSIDE + BIG >= 10_000


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(tmp_path_factory.mktemp("network"))
    try:
        network.start_coordinator()
        with ThreadPoolExecutor() as pool:
            list(pool.map(network.start_node, (BANK, TAX, COURT)))
        warm = network.run("warm")
        assert warm.status is JobStatus.SUCCEEDED
        yield network
    finally:
        network.close()


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def relay_pid(network: Network) -> int:
    parent = network.processes[PLATFORM].pid
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in file.read_text().split():
            if "server.relay" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
    raise AssertionError("the coordinator has no relay")


def test_nothing_that_comes_in_hurts_coordinator_or_relay(network: Network) -> None:
    pids = {"coordinator": network.processes[PLATFORM].pid, "relay": relay_pid(network)}
    statuses: Counter[int] = Counter()
    complaints: list[str] = []
    _ask_api(network, 1, 300, statuses, complaints)  # what a busy process needs once
    before = {name: resident_bytes(pid) for name, pid in pids.items()}
    attacks = [
        lambda: _ask_api(network, 2, API, statuses, complaints),
        lambda: _ask_flower(network, statuses, complaints),
        lambda: _throw_bytes(network),
        lambda: asyncio.run(_send_frames(network)),
        lambda: _send_big(network, statuses),
    ]
    failures: list[BaseException] = []

    def run(attack: object) -> None:
        try:
            attack()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(attack,)) for attack in attacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert complaints == []
    assert not [status for status in statuses if status >= 500], statuses
    assert {400, 401, 404, 405, 413, 422} <= statuses.keys()  # it was not one wall at the door
    for name, pid in pids.items():
        assert resident_bytes(pid) - before[name] < GROWTH_BYTES, name
    assert pids == {"coordinator": network.processes[PLATFORM].pid, "relay": relay_pid(network)}
    assert network.processes[PLATFORM].poll() is None
    for log in (network.log(PLATFORM), _relay_log(network)):
        assert "Traceback" not in log
        assert "internal error" not in log
    after = network.run("after")
    assert (after.status, after.attempt) == (JobStatus.SUCCEEDED, 1)


def _relay_log(network: Network) -> str:
    return (network.folder / PLATFORM / "log" / "relay.log").read_text()


def _good(network: Network) -> bytes:
    from federation.envelope import sign

    manifest = network.manifest("never-proposed")
    return sign(manifest, network.home(BANK).key(Usage.PROPOSE)).to_json()


def _ask_api(
    network: Network, seed: int, count: int, statuses: Counter[int], complaints: list[str]
) -> None:
    """As an admitted bank: the strongest that can come to this door."""
    caller = Caller(network.port, tls_context(network.home(BANK)))
    for request in hostile.requests(seed, count, _good(network)):
        status, kind, body = caller.send(request)
        statuses[status] += 1
        if request.method not in hostile.METHODS_OF_HTTP:  # the parser answers, not the API
            assert status in (0, 400)
        elif status >= 400 and request.method != "HEAD":
            if kind != "application/problem+json":
                complaints.append(f"{request.method} {request.path}: {status} as {kind}")
            else:
                found = Problem.model_validate_json(body)
                if found.status != status or "Traceback" in found.detail:
                    complaints.append(f"{request.method} {request.path}: {found}")
    caller.close()


def _ask_flower(network: Network, statuses: Counter[int], complaints: list[str]) -> None:
    headers = signed(network.home(TAX).key(Usage.NODE).secret)
    fleet = hostile.fleet_requests(3, FLEET, "/v1/fleet/", hostile.FLEET, headers)
    token = {"flwr-task-token": "x" * 40}
    runtime = hostile.fleet_requests(4, RUNTIME, "/v1/runtime/", hostile.RUNTIME, token)
    context = tls_context(network.home(TAX))
    for port, tls, asked in (
        (network.port, context, fleet),
        (network.runtime_port, None, runtime),
    ):
        caller = Caller(port, tls)
        for request in asked:
            status, _, body = caller.send(request)
            statuses[status] += 1
            if b"Traceback" in body or b"site-packages" in body:
                complaints.append(f"{request.path}: {body[:200]!r}")
        caller.close()


def _throw_bytes(network: Network) -> None:
    """Without TLS, with half of it, and nonsense inside of a genuine session."""
    for port in (network.port, network.runtime_port, network.relay_port):
        for data in hostile.raw(port % 7, RAW):
            hostile.throw(port, data)
    member, relay = tls_context(network.home(BANK)), tls_context(network.home(BANK))
    relay.set_alpn_protocols(["h2"])
    for port, context in ((network.port, member), (network.relay_port, relay)):
        for data in hostile.broken_http(5, INSIDE):
            answer = hostile.throw(port, data, context)
            assert b"Traceback" not in answer
            assert not answer.startswith(b"HTTP/1.1 5")


def _send_big(network: Network, statuses: Counter[int]) -> None:
    """Bodies of 10 MB, announced and not; what is too long is not read to its end."""
    body = b"[" + b"1," * (5 << 20) + b"1]"
    assert len(body) > MAX_BODY_BYTES
    context = tls_context(network.home(COURT))
    for path in ("/api/v1/jobs", "/v1/fleet/push-messages", "/api/v1/organisations/me") * 4:
        caller = Caller(network.port, context)
        method = "PUT" if path.endswith("me") else "POST"
        told = Malformed(method, path, {"content-type": "application/json"}, body)
        status, _, _ = caller.send(told)
        statuses[status] += 1
        caller.close()


async def _send_frames(network: Network) -> None:
    """Over an admitted party's stream; a malformed frame ends it, with one word."""
    home, draw = network.home(PLATFORM), hostile.seeded(6)  # it has no node to be thrown out
    certificate, _ = home.tls_files
    credentials = grpc.ssl_channel_credentials(
        home.trust().tls_ca(PLATFORM).encode(),
        home.key(Usage.TLS).pem(),
        certificate.read_bytes(),
    )
    address = Address(bytes(32), 1, TAX)
    good = [
        Frame(Kind.DATA, address, 1, b"x" * 50).encode(),
        Frame(Kind.ACK, address, 7).encode(),
        Frame(Kind.PROBE, address, 0, Report(bytes(8)).encode()).encode(),
    ]
    said: Counter[tuple[grpc.StatusCode, str]] = Counter()
    async with grpc.aio.secure_channel(f"127.0.0.1:{network.relay_port}", credentials) as channel:
        for _ in range(FRAMES):
            call = channel.stream_stream(METHOD)()
            await asyncio.wait_for(call.initial_metadata(), 10)
            await call.write(hostile.mutated(draw, draw.choice(good)))
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.done_writing()
            said[await asyncio.wait_for(call.code(), 10), await call.details()] += 1
    malformed = (grpc.StatusCode.INVALID_ARGUMENT, "malformed frame")
    assert said.keys() <= {malformed, (grpc.StatusCode.OK, ""), (grpc.StatusCode.OK, "left")}
    assert said[malformed] > FRAMES / 2


def test_a_node_listens_nowhere(network: Network) -> None:
    """All its connections go outwards: there is no port to send anything to."""
    for org in (BANK, TAX, COURT):
        pid = network.processes[org].pid
        own = {
            link.readlink().name
            for link in Path(f"/proc/{pid}/fd").iterdir()
            if str(link.readlink()).startswith("socket:")
        }
        listening = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A":
                    listening.add(f"socket:[{words[9]}]")
        assert not own & listening, org


def test_who_is_nobody_gets_no_word(network: Network) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    caller = Caller(network.port, context)
    for request in hostile.requests(9, 40, _good(network)):
        assert caller.send(request) == (0, "", b"")
