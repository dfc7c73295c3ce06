"""A request's body is read once, within its limit, and given on unchanged."""

from __future__ import annotations

import asyncio

from federation.request_body import Message, Receive, read_body, replay_body


def coming(*messages: Message) -> Receive:
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    return receive


def part(body: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}


def test_the_parts_of_a_body_are_put_together() -> None:
    receive = coming(part(b"ab"), part(b"c"), part(b"", more=False))
    assert asyncio.run(read_body(receive, 3)) == b"abc"


def test_a_body_over_its_limit_is_left_where_it_passes_it() -> None:
    receive = coming(part(b"ab"), part(b"cd"), part(b"ef", more=False))
    assert asyncio.run(read_body(receive, 3)) is None
    assert asyncio.run(read_body(receive, 3)) == b"ef"  # the rest was not taken in


def test_a_sender_that_hangs_up_ends_the_body() -> None:
    assert asyncio.run(read_body(coming(part(b"ab"), GONE, part(b"c")), 3)) == b"ab"


def test_the_application_gets_the_body_once_and_then_what_follows() -> None:
    receive = replay_body(b"abc", coming(GONE))

    async def two() -> list[Message]:
        return [await receive(), await receive()]

    assert asyncio.run(two()) == [part(b"abc", more=False), GONE]
