"""What server/flower.py, server/worker.py and clients/node.py rely on in flwr and uvicorn.

When this fails after an upgrade, read prototypes' traps and those three modules before changing it.
"""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.common.serde import run_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node as NodeId
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, TASK_TOKEN_HEADER
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import http_grid
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from federation import fab
from server import worker
from server.flower import FleetApi, RuntimeApi, SuperLink, flower_apis, not_found
from tests.federation.parties import make_manifest

MANIFEST = make_manifest("bank-a", ["tax"])
JOB = MANIFEST.digest()


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink(":flwr-in-memory:")


def test_flower_is_the_pinned_one() -> None:
    assert version("flwr") == "1.41.0"


def test_every_path_has_a_request_type_and_a_handler_of_known_arguments() -> None:
    for api, count in ((FleetApi, 10), (RuntimeApi, 10)):
        assert len(api.handlers) == count
        for name, handler in api.handlers.items():
            assert ("POST", api.prefix + name) in PROTOBUF_REQUEST_TYPES, name
            wanted = ["request", "state"] + (["task"] if api is RuntimeApi else [])
            names = list(inspect.signature(handler).parameters)
            assert len(names) == len(wanted), (name, names)
    assert FLEET_HTTP_PUBLIC_KEY_HEADER == "flwr-public-key"
    assert TASK_TOKEN_HEADER


def test_nothing_that_starts_or_registers_has_a_path() -> None:
    for name in ("register-node", "unregister-node", "acquire-task", "create-task", "start-run"):
        assert name not in FleetApi.handlers
        assert name not in RuntimeApi.handlers


def test_a_federation_is_a_job_and_only_its_nodes_are_in_it(superlink: SuperLink) -> None:
    for name in ("exists", "has_node", "filter_nodes", "get_simulation_config"):
        assert callable(getattr(NoOpFederationManager, name))
    tax, court = register(superlink, "tax"), register(superlink, "court")
    superlink.members[JOB] = {tax}
    run_id, token = superlink.create_run(JOB, fab.build(MANIFEST))
    assert token
    assert superlink.state.get_nodes(run_id) <= {tax, court}
    manager = superlink.state.federation_manager
    assert manager.filter_nodes({tax, court, SUPERLINK_NODE_ID}, JOB) == {tax, SUPERLINK_NODE_ID}
    assert not manager.exists("another")


def test_our_bundle_is_read_by_flower_and_gives_exactly_our_configuration(
    superlink: SuperLink,
) -> None:
    superlink.members[JOB] = {register(superlink, "tax")}
    run_id, _ = superlink.create_run(JOB, fab.build(MANIFEST))
    run = superlink.state.get_run_info(run_ids=[run_id])[0]
    assert get_fused_config_from_fab(fab.build(MANIFEST), run) == fab.expected_run_config(MANIFEST)


def test_a_run_can_be_claimed_once_and_stopped(superlink: SuperLink) -> None:
    superlink.members[JOB] = {register(superlink, "tax")}
    run_id, _ = superlink.create_run(JOB, fab.build(MANIFEST))
    assert superlink.state.claim_task(superlink._task(run_id)) is None
    assert superlink.status(run_id) in ("starting", "running")
    superlink.stop_run(run_id)
    assert superlink.status(run_id) == "stopped"
    assert superlink.status(12345) == "failed"
    assert Status.FINISHED == "finished"


def test_a_known_node_key_keeps_its_id(superlink: SuperLink) -> None:
    key = node_key()
    first = superlink.register_node("tax", key)
    assert superlink.register_node("tax", key) == first
    superlink.unregister_node(first)
    assert superlink.state.get_node_id_by_public_key(key) is None


def test_the_grid_pulls_objects_through_a_name_that_we_replace() -> None:
    assert http_grid.__dict__["pull_objects"]
    names = inspect.signature(inflatable_utils.pull_objects).parameters
    assert {"initial_backoff", "backoff_cap"} <= set(names)
    for name in ("push_messages", "pull_messages", "set_run", "close"):
        assert callable(getattr(http_grid.HttpGrid, name))


def test_uvicorn_asks_the_protocol_for_its_app_on_every_request() -> None:
    source = inspect.getsource(HttpToolsProtocol)
    assert "app = self.app" in source
    assert "def connection_made" in source
    assert "response_complete" in inspect.getsource(HttpToolsProtocol.shutdown)


@pytest.mark.parametrize("owns", [False, True])
def test_a_key_that_is_not_the_callers_own_gets_401_before_its_body_is_read(
    superlink: SuperLink, owns: bool
) -> None:
    import asyncio
    import base64

    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    async def on_report(run_id: int, body: bytes) -> None: ...

    fleet, runtime = flower_apis(
        superlink, owns=lambda scope, given: owns and given == pem, on_report=on_report,
        other=not_found, hold_s=0.1,
    )  # fmt: skip

    async def ask() -> list[int]:
        pull = PullMessagesRequest(node=NodeId(node_id=superlink.register_node("tax", pem)))
        codes = []
        async with client(fleet) as http:
            for headers in ({}, {"flwr-public-key": "%%"}, sign(key, pem)):
                content = pull.SerializeToString()
                answer = await http.post(
                    "/v1/fleet/pull-messages", content=content, headers=headers
                )
                codes.append(answer.status_code)
            answer = await http.post("/v1/fleet/get-run", content=b"\xff", headers=sign(key, pem))
            codes.append(answer.status_code)
        async with client(runtime) as http:
            answer = await http.post("/v1/runtime/get-nodes", content=b"")
            codes.append(answer.status_code)
        return codes

    def sign(key: Any, pem: bytes) -> dict[str, str]:
        from cryptography.hazmat.primitives import hashes

        now = datetime.now(UTC).isoformat()
        signature = key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(pem).decode(),
            "flwr-timestamp": now,
            "flwr-signature": base64.b64encode(signature).decode(),
        }

    assert asyncio.run(ask()) == ([401, 401, 200, 400, 401] if owns else [401, 401, 401, 401, 401])


def test_the_run_of_a_node_is_read_from_flowers_own_message() -> None:
    assert {f.name for f in GetRunRequest.DESCRIPTOR.fields} >= {"node", "run_id"}
    assert callable(run_from_proto)


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://coordinator")


def node_key() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def register(superlink: SuperLink, name: str) -> int:
    return superlink.register_node(name, node_key())


def test_a_reply_whose_objects_never_come_is_soon_taken_for_undelivered() -> None:
    """Of a node that was cut off in between; stock Flower waits for hours, and the job with it."""

    def missing(object_id: str) -> bytes:
        raise inflatable_utils.ObjectUnavailableError(object_id)

    assert vars(http_grid)["pull_objects"] is worker._pull_objects
    assert worker._pull_objects.keywords["max_time"] < 10
    with pytest.raises(inflatable_utils.ObjectPullError):
        worker._pull_objects(["0" * 64], missing, max_time=0.05)
