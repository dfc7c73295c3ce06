"""A coordinator, its relay and resident nodes as processes over TLS on loopback."""

from __future__ import annotations

import base64
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node as NodeId
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from federation.api import JobStatus
from federation.errors import NotFound, Unavailable
from federation.objects import Decision, RunRecord, Usage
from tests.system.network import BANK, COURT, KINDS, PLATFORM, TAX, Network

pytestmark = pytest.mark.system

NODES = (BANK, TAX, COURT)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Everybody runs; the court was admitted while the coordinator ran."""
    network = Network(tmp_path_factory.mktemp("network"))
    late = network.folder / PLATFORM / "trust" / f"{COURT}.json"
    card = late.read_bytes()
    late.unlink()
    try:
        network.start_coordinator()
        with network.client(COURT) as client, pytest.raises(Unavailable):
            client.health()
        late.write_bytes(card)
        with ThreadPoolExecutor() as pool:
            list(pool.map(network.start_node, NODES))
        yield network
    finally:
        network.close()


@pytest.fixture
def files(network: Network) -> Iterator[Any]:
    """Files that the echo nodes look for in their homes; gone after the test."""
    made: list[Path] = []

    def make(name: str, *orgs: str, text: str = "") -> None:
        for org in orgs:
            made.append(network.folder / org / name)
            made[-1].write_text(text)

    yield make
    for file in made:
        file.unlink(missing_ok=True)


def test_the_last_approval_starts_a_run_of_which_every_party_signs_a_record(
    network: Network,
) -> None:
    found = network.run("first")
    assert (found.status, found.message, found.attempt) == (JobStatus.SUCCEEDED, "", 1)
    assert set(found.progress) == set(NODES)
    trust, now = network.home(BANK).trust(), datetime.now(UTC)
    records = [trust.verify(item, RunRecord, Usage.RUN, now).object for item in found.records]
    assert {record.org for record in records} == set(NODES)
    chains = {(r.org, peer): (sent, got) for r in records for peer, sent, got in r.transcript}
    for (me, peer), (sent, got) in chains.items():  # what one sent is what the other received
        assert (sent, got) == chains[peer, me][::-1]
    for org in NODES:
        for file in (network.folder / org / "runs" / "first").rglob("*"):
            assert not stat.S_IMODE(file.stat().st_mode) & 0o077, file


def test_outside_finds_neither_control_nor_runtime_of_flower(network: Network) -> None:
    """As an admitted party with a valid client certificate: the strongest outsider."""
    insider = network.raw(BANK)
    stranger = ec.generate_private_key(ec.SECP384R1())

    def post(path: str, message: Any = None, headers: dict[str, str] | None = None) -> int:
        content = message.SerializeToString() if message is not None else b""
        return insider.post(path, content=content, headers=headers or {}).status_code

    for path, message in (
        ("/v1/control/start-run", StartRunRequest()),
        ("/v1/control/list-runs", ListRunsRequest()),
        ("/v1/runtime/acquire-task", AcquireTaskRequest()),
        ("/v1/runtime/pull-task-input", None),
        ("/v1/runtime/get-nodes", None),
        ("/v1/lianmo/report", None),
        ("/v1/responses", None),
        ("/v1/fleet/register-node", RegisterNodeFleetRequest(public_key=b"x")),
        ("/v1/fleet/../control/list-runs", ListRunsRequest()),
        ("/v1/fleet/%2e%2e/control/list-runs", ListRunsRequest()),
        ("//v1/control/list-runs", ListRunsRequest()),
        ("/V1/control/list-runs", ListRunsRequest()),
        ("/v1/fleet/pull-messages/", PullMessagesRequest()),
        ("/docs", None),
        ("/openapi.json", None),
        ("/health", None),
    ):
        assert post(path, message) == 404, path
    victim = node_id(network, TAX)
    pull = PullMessagesRequest(node=NodeId(node_id=victim))
    taxs = network.home(TAX).key(Usage.NODE).secret
    banks = network.home(BANK).key(Usage.NODE).secret
    assert post("/v1/fleet/pull-messages", pull) == 401  # unsigned
    assert post("/v1/fleet/pull-messages", pull, signed(stranger)) == 401  # no admitted key
    assert post("/v1/fleet/pull-messages", pull, signed(banks)) == 401  # own key, another's node
    # Another organisation's genuine key under the own certificate: plain Flower lets this through.
    assert post("/v1/fleet/pull-messages", pull, signed(taxs)) == 401
    activate = ActivateNodeRequest(public_key=public_pem(stranger), heartbeat_interval=30)
    assert post("/v1/fleet/activate-node", activate, signed(stranger)) == 401


def test_without_an_admitted_certificate_nothing_is_reached(network: Network) -> None:
    url = f"https://127.0.0.1:{network.port}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with httpx.Client(verify=context) as client, pytest.raises(httpx.TransportError):
        client.get(f"{url}/api/v1/health")
    with httpx.Client() as client, pytest.raises(httpx.TransportError):
        client.get(f"http://127.0.0.1:{network.port}/v1/control/list-runs")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(*network.home(BANK).tls_files)
    with httpx.Client(verify=old) as client, pytest.raises(httpx.TransportError):
        client.get(f"{url}/api/v1/health")


def test_loopback_port_has_no_control_and_wants_a_task_token(network: Network) -> None:
    runtime = f"http://127.0.0.1:{network.runtime_port}"
    for path, status in (
        ("/v1/runtime/acquire-task", 404),
        ("/v1/control/start-run", 404),
        ("/v1/control/list-runs", 404),
        ("/v1/fleet/pull-messages", 404),
        ("/api/v1/jobs", 404),
        ("/v1/runtime/get-nodes", 401),
        ("/v1/lianmo/report", 401),
    ):
        assert httpx.post(runtime + path, content=b"").status_code == status, path


def test_a_node_sees_only_runs_of_its_own_jobs(network: Network, files: Any) -> None:
    files("hold", BANK, TAX, COURT)
    manifest = network.manifest("private")
    network.submit(manifest)
    network.approve(manifest)
    found = network.wait("private", lambda job: "wait" in {p.stage for p in job.progress.values()})
    request = GetRunRequest(node=NodeId(node_id=node_id(network, TAX)), run_id=int(found.run_id))
    headers = signed(network.home(TAX).key(Usage.NODE).secret)
    answer = network.raw(TAX).post(
        "/v1/fleet/get-run", content=request.SerializeToString(), headers=headers
    )
    assert answer.status_code == 200
    with network.client(TAX) as client:
        assert client.stop("private", "enough").status is JobStatus.STOPPED
        with pytest.raises(NotFound):
            client.job("unknown")
    answer = network.raw(TAX).post(
        "/v1/fleet/get-run", content=request.SerializeToString(), headers=headers
    )
    assert answer.status_code == 403  # the job is over, and with it the membership
    assert eventually(lambda: "code=STOPPED" in network.log(COURT))


def test_a_failure_leaves_a_coarse_word_and_keeps_its_reason_at_home(
    network: Network, files: Any
) -> None:
    files("fail", TAX)
    found = network.run("broken")
    assert found.status is JobStatus.FAILED
    assert found.message.startswith("tax, stage wait: failed; the reason is in tax's log")
    assert found.message.rsplit(" ", 1)[1] in network.log(TAX)
    assert "canary-of-a-value" in network.log(TAX)
    for org in (PLATFORM, BANK, COURT):
        for file in (network.folder / org).rglob("*"):
            assert not file.is_file() or b"canary-of-a-value" not in file.read_bytes(), file
        assert "canary-of-a-value" not in network.log(org)


def test_a_withdrawn_approval_ends_a_running_job(network: Network, files: Any) -> None:
    files("hold", *NODES)
    manifest = network.manifest("withdrawn")
    network.submit(manifest)
    network.approve(manifest)
    network.wait("withdrawn", lambda job: job.status is JobStatus.RUNNING)
    with network.client(COURT) as client:
        word = network.approval(COURT, manifest, decision=Decision.WITHDRAW)
        assert client.approve("withdrawn", word).status is JobStatus.WITHDRAWN


def test_a_killed_node_comes_back_and_the_job_goes_on_with_a_new_attempt(
    network: Network, files: Any
) -> None:
    files("hold", *NODES)
    manifest = network.manifest("lost-node")
    network.submit(manifest)
    network.approve(manifest)
    network.wait("lost-node", lambda job: len(job.progress) == 3)
    network.kill(TAX)
    for org in NODES:
        (network.folder / org / "hold").unlink()
    network.start_node(TAX)
    found = network.wait("lost-node", lambda job: job.status.is_final)
    assert (found.status, found.attempt) == (JobStatus.SUCCEEDED, 2)


def test_a_killed_coordinator_comes_back_and_the_run_ends_well(
    network: Network, files: Any
) -> None:
    files("hold", *NODES)
    manifest = network.manifest("lost-coordinator")
    network.submit(manifest)
    network.approve(manifest)
    network.wait("lost-coordinator", lambda job: len(job.progress) == 3)
    network.kill(PLATFORM)
    time.sleep(1)
    network.start_coordinator()
    for org in NODES:
        (network.folder / org / "hold").unlink()
    found = network.wait("lost-coordinator", lambda job: job.status.is_final)
    assert (found.status, found.attempt) == (JobStatus.SUCCEEDED, 1)


def test_a_port_in_use_and_a_second_node_are_told_by_name(network: Network) -> None:
    for org, command, code, words in (
        (PLATFORM, ("-m", "clients.cli.main", "coordinator", "start"), 7, "cannot listen on"),
        (TAX, ("-m", "clients.cli.main", "node", "start"), 6, "runs for this home already"),
    ):
        done = subprocess.run(
            [sys.executable, *command],
            env={"LIANMO_HOME": str(network.folder / org), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_hostile_coordinator_gets_no_gate_open(network: Network, files: Any) -> None:
    """Acceptance tests 21 and 28: one byte of the bundle, an override, a bundle with code."""
    network.end(PLATFORM)
    network.start(PLATFORM, str(Path(__file__).parent / "hostile_coordinator.py"))
    for org in NODES:
        (network.folder / org / "opened").unlink(missing_ok=True)
    for how in ("bundle", "override", "code"):
        files("hostile", PLATFORM, text=how)
        found = network.run(f"hostile-{how}")
        assert found.status is JobStatus.FAILED
        assert "refused" in found.message
        assert not found.records
        assert not any((network.folder / org / "opened").exists() for org in NODES)
    files("hostile", PLATFORM, text="not at all")  # the same way, with nothing changed
    assert network.run("hostile-no-more").status is JobStatus.SUCCEEDED
    assert all((network.folder / org / "opened").exists() for org in NODES)


def test_everybody_stops_gracefully(network: Network) -> None:
    """The last of this module: nothing runs after it."""
    assert [network.end(org) for org in (*NODES, PLATFORM)] == [0, 0, 0, 0]
    for org in KINDS:
        assert "Traceback" not in network.log(org).replace("canary", "") or org == TAX


# --- helpers --------------------------------------------------------------------------------------


def node_id(network: Network, org: str) -> int:
    with network.client(org) as client:
        return int(client.register(network.home(org).card()).node_id)


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def signed(key: Any) -> dict[str, str]:
    """Flower's node authentication, from scratch."""
    now = datetime.now(UTC).isoformat()
    signature = key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public_pem(key)).decode(),
        "flwr-timestamp": now,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


def eventually(claim: Any, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
