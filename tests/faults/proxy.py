"""A TCP proxy between one node and one service, that can be a bad network or a listener.

What it carries is TLS, so a byte that it changes or repeats cannot reach a program: the receiver's
record layer finds it and ends the connection. That is the point of these faults: the reset comes
from above the network, in the middle of something.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any, Self

_PIECE = 1 << 16


class Proxy:
    """Context manager; listens on a free loopback port and forwards to `target`.

    Every fault may be called from any thread and ends by itself.
    """

    def __init__(self, target: int, *, is_recording: bool = False) -> None:
        self.port, self._target = 0, target
        self.seen = bytearray() if is_recording else None
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut_until = self._slow_until = 0.0
        self._slow_s = 0.0
        self._harm: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- faults -----------------------------------------------------------------------------------

    def cut(self, seconds: float) -> None:
        """Reset every connection and take no new one for so long."""
        self._cut_until = time.monotonic() + seconds
        self._loop.call_soon_threadsafe(self._abort_all)

    def slow(self, delay_s: float, seconds: float) -> None:
        """Hold every piece back by `delay_s`, for so long."""
        self._slow_s, self._slow_until = delay_s, time.monotonic() + seconds

    def heal(self) -> None:
        """Whatever was asked for is over."""
        self._cut_until = self._slow_until = 0.0
        self._harm = None

    def repeat(self) -> None:
        """Forward the next piece twice, as a replay would."""
        self._harm = "repeat"

    def change(self) -> None:
        """Flip one bit of the next piece."""
        self._harm = "change"

    # --- the loop's thread ------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        self._abort_all()  # which ends the tasks: cancelled ones would be told as errors
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await asyncio.sleep(0.05)  # aborted transports close at the loop's next turns

    def _abort_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        ends = [writer]
        try:
            if time.monotonic() < self._cut_until:
                return
            self.connections += 1
            there = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(there[1])
            self._open.add(there[1])
            pipes = [
                asyncio.create_task(self._pipe(reader, there[1])),
                asyncio.create_task(self._pipe(there[0], writer)),
            ]
            _, pending = await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            for pipe in pending:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
        except OSError:  # the service is away: so is this connection
            return
        finally:
            for end in ends:
                self._open.discard(end)
                end.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self.seen is not None:
                    self.seen += piece
                if time.monotonic() < self._slow_until:
                    await asyncio.sleep(self._slow_s)
                writer.write(self._harmed(piece))
                await writer.drain()

    def _harmed(self, piece: bytes) -> bytes:
        harm, self._harm = self._harm, None
        if harm == "repeat":
            return piece + piece
        if harm == "change":
            middle = len(piece) // 2
            return piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
        return piece
