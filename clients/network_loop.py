"""One asyncio loop in a thread, shared by whatever in this process speaks gRPC.

gRPC delivers the events of all loops of a process through any one of them: with two loops, one of
which ends, events are lost in the other. So there is one, while somebody uses it.
"""

from __future__ import annotations

import asyncio
import threading

_lock = threading.Lock()
_users = 0
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def acquire() -> asyncio.AbstractEventLoop:
    """The running loop; `release` it once for each time."""
    global _users, _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="network", daemon=True)
            _thread.start()
        _users += 1
        return _loop


def release() -> None:
    """Give the loop back; with its last user it ends."""
    global _users, _loop, _thread
    with _lock:
        _users -= 1
        if _users or _loop is None or _thread is None:
            return
        _loop.call_soon_threadsafe(_loop.stop)
        _thread.join()
        _loop.run_until_complete(_loop.shutdown_asyncgens())
        _loop.close()
        _loop = _thread = None
