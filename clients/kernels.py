"""The compiled kernels: made ready once a process, and compiled by one process at a time.

An installation compiles them (`python -m federation.warm`); then this loads them from the cache. On
a cold cache several nodes of one machine would otherwise compile the same code side by side, and a
job that comes meanwhile would do so once more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)

_lock, _ready = threading.Lock(), threading.Event()


def make_ready() -> None:
    """Return when every kernel is loaded; the first call in a process does the work."""
    if _ready.is_set():
        return
    with _lock:
        if _ready.is_set():
            return
        began = time.monotonic()
        handle = _open_lock()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            from federation.warm import warm

            warm()
        finally:
            os.close(handle)
        _ready.set()
        log.info("kernels ready", extra={"seconds": round(time.monotonic() - began, 1)})


def _open_lock() -> int:
    """One file a user; who else could write it could only make us wait."""
    name = Path(tempfile.gettempdir()) / f"lianmo-kernels-{os.getuid()}.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600)
