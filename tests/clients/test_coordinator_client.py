"""A process that ends closes its connections under threads that still use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.coordinator_client import CoordinatorClient
from clients.home import Home
from federation.errors import Unavailable

CODES = {"platform": "91330106Y71047292M", "bank": "91310115Y71126484T"}


@pytest.fixture
def client(tmp_path: Path) -> CoordinatorClient:
    homes = {
        kind: Home.create(
            tmp_path / kind,
            org=kind,
            kind=kind,
            name=kind,
            uscc=code,
            region="厦门",
            coordinator_url="https://127.0.0.1:1",
        )
        for kind, code in CODES.items()
    }
    homes["bank"].trust_card(homes["platform"].card())
    return CoordinatorClient(homes["bank"], retry_s=0)


def test_a_connection_that_was_closed_meanwhile_is_an_error_with_words(
    client: CoordinatorClient,
) -> None:
    client.close()
    with pytest.raises(Unavailable, match="this process is ending") as found:
        client.health()
    assert found.value.party == "bank"


def test_nothing_is_believed_of_a_connection_without_its_certificate(
    client: CoordinatorClient,
) -> None:
    class Closed:
        def get_extra_info(self, name: str) -> Any:
            return None

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={}, extensions={"network_stream": Closed()})

    client.close()
    client._http = httpx.Client(base_url="https://c", transport=httpx.MockTransport(answer))
    with pytest.raises(Unavailable, match="cannot be reached") as found:
        client.health()
    assert found.value.party == "platform"
    client.close()
