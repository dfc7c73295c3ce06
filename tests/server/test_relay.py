"""The relay by itself: raw gRPC streams on loopback TLS, no client library between."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.relay_client import Identity
from federation.relay_frame import MAX_FRAME, METHOD, WINDOW, Address, Frame, Kind
from protocols.errors import ProtocolError
from server.relay import FileMembership, Relay, RelayConfig, _Connection
from tests.relay_parties import (
    JOB,
    OTHER_JOB,
    RelayProcess,
    forged_leaf,
    leaf,
    member,
    trusted,
    write_membership,
)

ORGS = ("bank", "tax", "court")
UNLIMITED = (("grpc.max_send_message_length", -1),)


@pytest.fixture
def config(tmp_path: Path) -> RelayConfig:
    platform = member("coordinator").identity
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.write_bytes(platform.key)
    certificate.write_text(platform.certificate)
    membership = tmp_path / "membership.json"
    write_membership(membership, trusted(*ORGS), {JOB: {"bank", "tax"}, OTHER_JOB: ORGS})
    return RelayConfig(
        address="127.0.0.1:0",
        key=key,
        certificate=certificate,
        membership=membership,
        refresh_s=0.02,
    )


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """gRPC and asyncio log what they did not expect, with a traceback; here nothing may be."""
    yield
    expected = {"membership unreadable", "ca unreadable"}
    errors = [item for item in caplog.records if item.levelno >= logging.ERROR]
    assert [item.getMessage() for item in errors if item.getMessage() not in expected] == []


class Wire:
    """One raw stream."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, *frames: Frame | bytes) -> None:
        for frame in frames:
            await self.call.write(frame if isinstance(frame, bytes) else frame.encode())

    async def receive(self, timeout_s: float = 5) -> Frame:
        return Frame.decode(await asyncio.wait_for(self.call.read(), timeout_s))

    async def hears_nothing(self) -> bool:
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(self._read())), 0.2)
        except TimeoutError:
            return True
        return False

    async def _read(self) -> Any:
        return await self.call.read()

    async def code(self) -> grpc.StatusCode:
        return await asyncio.wait_for(self.call.code(), 5)


@asynccontextmanager
async def connected(relay: Relay, own: Identity, *, admitted: bool = True) -> Any:
    credentials = grpc.ssl_channel_credentials(
        member("coordinator").ca.encode(), own.key, own.certificate.encode()
    )
    options = (("grpc.use_local_subchannel_pool", 1), *UNLIMITED)
    async with grpc.aio.secure_channel(relay.address, credentials, options=options) as channel:
        call = channel.stream_stream(METHOD)()
        if admitted:
            await asyncio.wait_for(call.initial_metadata(), 5)
        yield Wire(call)
        call.cancel()


def frame(receiver: str, number: int = 1, job: bytes = JOB, size: int = 10) -> Frame:
    return Frame(Kind.DATA, Address(job, 1, receiver), number, bytes(size))


def run(config: RelayConfig, story: Callable[[Relay], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Relay(config, FileMembership(config.membership)) as relay:
            await story(relay)

    asyncio.run(main())


def identity(org: str) -> Identity:
    return member(org).identity


def test_a_frame_arrives_with_the_name_of_the_connections_certificate(config: RelayConfig) -> None:
    async def story(relay: Relay) -> None:
        async with (
            connected(relay, identity("bank")) as bank,
            connected(relay, identity("tax")) as tax,
        ):
            await bank.send(frame("tax", 7))
            assert await tax.receive() == frame("bank", 7)

    run(config, story)


def test_frames_outside_an_allowed_job_are_not_delivered(config: RelayConfig) -> None:
    async def story(relay: Relay) -> None:
        async with (
            connected(relay, identity("court")) as court,
            connected(relay, identity("tax")) as tax,
        ):
            unknown = replace(frame("tax"), address=Address(bytes(32), 1, "tax"))
            to_itself = frame("court")
            await court.send(frame("tax", 1), unknown, to_itself, frame("nobody", 1))
            await court.send(frame("tax", 2, OTHER_JOB))
            assert await tax.receive() == frame("court", 2, OTHER_JOB)  # and none before
            assert await court.hears_nothing()

    run(config, story)


@pytest.mark.parametrize("who", ["issued by another", "not in the card"])
def test_the_right_name_on_another_certificate_is_not_admitted(
    config: RelayConfig, who: str
) -> None:
    forged = {
        "issued by another": lambda: forged_leaf("bank", by="tax"),
        "not in the card": lambda: leaf("bank", member("bank").authority),
    }

    async def story(relay: Relay) -> None:
        async with connected(relay, identity("bank")) as bank:
            async with connected(relay, forged[who](), admitted=False) as pretender:
                assert await pretender.code() is grpc.StatusCode.PERMISSION_DENIED
            assert relay._connections["bank"].ended.done() is False
            assert await bank.hears_nothing()

    run(config, story)


def test_a_certificate_of_no_admitted_authority_does_not_connect(config: RelayConfig) -> None:
    async def story(relay: Relay) -> None:
        async with connected(relay, member("bank", 1).identity, admitted=False) as stranger:
            assert await stranger.code() is grpc.StatusCode.UNAVAILABLE
        assert not relay._connections

    run(config, story)


def test_a_suspended_organisation_is_disconnected(config: RelayConfig) -> None:
    async def story(relay: Relay) -> None:
        async with (
            connected(relay, identity("bank")) as bank,
            connected(relay, identity("tax")) as tax,
        ):
            write_membership(config.membership, trusted("tax"), {JOB: {"bank", "tax"}})
            assert await bank.code() is grpc.StatusCode.PERMISSION_DENIED
            await tax.send(frame("bank"))
            assert await tax.hears_nothing()

    run(config, story)


def test_the_newest_connection_of_an_organisation_counts(config: RelayConfig) -> None:
    async def story(relay: Relay) -> None:
        async with (
            connected(relay, identity("tax")) as old,
            connected(relay, identity("tax")) as new,
            connected(relay, identity("bank")) as bank,
        ):
            assert await old.code() is grpc.StatusCode.ABORTED
            await bank.send(frame("tax"))
            assert await new.receive() == frame("bank")

    run(config, story)


garbage = st.one_of(
    st.binary(max_size=300),
    st.builds(  # right up to a point
        lambda cut, tail: frame("tax").encode()[:cut] + tail,
        st.integers(0, 49),
        st.binary(max_size=40),
    ),
)


def _is_malformed(data: bytes) -> bool:
    try:
        Frame.decode(data)
    except ProtocolError:
        return True
    return False


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(garbage.filter(_is_malformed), min_size=10, max_size=10))
def test_garbage_ends_its_connection_with_one_word_and_nothing_else(
    config: RelayConfig, inputs: list[bytes]
) -> None:
    async def story(relay: Relay) -> None:
        async with connected(relay, identity("tax")) as tax:
            for data in inputs:
                async with connected(relay, identity("bank")) as bank:
                    await bank.send(data)
                    assert await bank.code() is grpc.StatusCode.INVALID_ARGUMENT
                    assert await bank.call.details() == "malformed frame"
            async with connected(relay, identity("bank")) as bank:
                await bank.send(frame("tax"))
                assert await tax.receive() == frame("bank")
            assert set(relay._connections) <= {"bank", "tax"}

    run(config, story)


def test_a_frame_over_the_limit_ends_its_connection(config: RelayConfig) -> None:
    async def story(relay: Relay) -> None:
        async with connected(relay, identity("bank")) as bank:
            await bank.send(bytes(MAX_FRAME + 1))
            assert await bank.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with connected(relay, identity("bank")) as bank:
            assert await bank.hears_nothing()

    run(config, story)


def test_a_flood_to_a_slow_receiver_is_dropped_within_bounds(config: RelayConfig) -> None:
    """Nothing is read at the other end; many channels, many senders, empty and full frames."""

    async def story() -> None:
        connection = _Connection("tax", b"", config)
        sizes = (1, 100, 1 << 20)
        for number in range(2000):
            origin = Address(bytes([number % 50]) * 32, number % 3, "tax")
            sent = Frame(Kind.DATA, origin, 1, bytes(sizes[number % 3]))
            connection.put(sent, f"sender-{number % 7}")
            assert connection.held_bytes() <= config.connection_bytes
        held = connection.held_bytes()
        assert max(connection._held.values()) == held
        one = [size for book, size in connection._held.items() if len(book) == 1]
        assert max(one) <= config.sender_bytes
        connection.put(Frame(Kind.ACK, Address(JOB, 1, "tax"), 1), "quiet")
        while connection._waiting:
            await connection.get()
            connection.sent()
        assert connection._held == {}

    asyncio.run(story())


def test_one_overrunning_channel_leaves_room_for_the_others(config: RelayConfig) -> None:
    async def story() -> None:
        connection = _Connection("tax", b"", config)
        for number in range(1, 100):
            connection.put(frame("tax", number, size=1 << 20), "bank")
        assert connection.held_bytes() <= config.origin_bytes == 2 * WINDOW
        before = len(connection._waiting)
        connection.put(frame("tax", 1, OTHER_JOB), "bank")
        connection.put(frame("tax", 1), "court")
        assert len(connection._waiting) == before + 2

    asyncio.run(story())


def test_a_broken_membership_file_changes_nothing(config: RelayConfig) -> None:
    membership = FileMembership(config.membership)
    before = membership.trusted_cas()
    for broken in ("", "{", '{"organisations": {}, "extra": 1}', '{"jobs": {"xy": []}}'):
        config.membership.write_text(broken)
        membership.refresh()
        assert membership.allowed(JOB, "bank", "tax")
        assert membership.trusted_cas() == before
    config.membership.unlink()
    membership.refresh()
    assert membership.allowed(JOB, "bank", "tax")
    write_membership(config.membership, trusted("bank"), {})
    membership.refresh()
    assert not membership.allowed(JOB, "bank", "tax")


def test_one_organisations_broken_authority_locks_nobody_else_out(config: RelayConfig) -> None:
    broken = replace(member("court").certificate, ca="-----BEGIN CERTIFICATE-----\nno\n")
    write_membership(config.membership, {**trusted("bank"), "court": broken}, {})

    async def story(relay: Relay) -> None:
        async with connected(relay, identity("bank")) as bank:
            assert await bank.hears_nothing()

    run(config, story)


def test_nobody_gets_in_before_anybody_is_admitted(config: RelayConfig) -> None:
    config.membership.unlink()

    async def story(relay: Relay) -> None:
        async with connected(relay, identity("bank"), admitted=False) as bank:
            assert await bank.code() is grpc.StatusCode.UNAVAILABLE
        async with connected(relay, identity("coordinator"), admitted=False) as own:
            assert await own.code() in (
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNAVAILABLE,
            )

    run(config, story)


def test_a_second_relay_on_the_same_port_is_refused(config: RelayConfig) -> None:
    async def story(relay: Relay) -> None:
        second = config.model_copy(update={"address": relay.address})
        with pytest.raises(RuntimeError, match="bind"):
            async with Relay(second, FileMembership(config.membership)):
                pass

    run(config, story)


def test_the_process_ends_with_0_when_it_is_told_to(tmp_path: Path) -> None:
    process = RelayProcess(tmp_path)
    write_membership(process.membership, trusted(*ORGS), {})
    process.start()
    assert not process.address.endswith(":0")
    assert process.stop(signal.SIGTERM) == 0
