"""Where a node's heavy local work is done: threads, and by configuration the party's Dask cluster.

Hints and row keys are cut into calls that may run on another machine (`protocols.kernels.gather`).
The cluster is the party's own: it is given joint coins, binned columns and the key of row keys.
What is counted per query stays with the threads: to send the rows would cost more than to add them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from typing import Any, TypeVar

from clients.home import Config
from federation.errors import Unavailable, UsageError
from protocols.kernels import Workers

R = TypeVar("R")

_TODO = "see to the scheduler and its workers, or take `dask_scheduler` out of config.toml"


@contextmanager
def workers(config: Config) -> Iterator[Workers]:
    """The executor of a node's jobs, open while inside.

    Raises UsageError without the extra `dask`, Unavailable if the scheduler does not answer.
    """
    threads = config.threads or os.cpu_count() or 1
    if config.dask_scheduler is None:
        with Workers(threads) as pool:
            yield pool
        return
    try:
        import dask
        from distributed import Client
    except ImportError:
        todo = "install lianmo[dask], or take `dask_scheduler` out of config.toml"
        raise UsageError("a Dask cluster is set, but Dask is not installed", todo=todo) from None
    # A block of columns is sent once and is meant to be large; not worth a warning each time.
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "4GB"})
    address, wait_s = config.dask_scheduler, config.connect_timeout_s
    try:
        client = Client(  # type: ignore[no-untyped-call]  # Dask has annotations in part
            address, timeout=wait_s, set_as_default=False
        )
    except OSError as error:
        what = f"the Dask scheduler at {address} does not answer"
        raise Unavailable(what, todo=_TODO) from error
    far = client.get_executor(pure=False)  # type: ignore[no-untyped-call]  # as above
    with client, Workers(threads, Cluster(far)) as pool:
        yield pool


class Cluster(Executor):
    """A cluster's executor whose failures have a name."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def map(self, fn: Callable[..., R], *iterables: Iterable[Any], **options: Any) -> Iterator[R]:
        """As `Executor.map`; raises Unavailable if the cluster loses the calls."""
        from distributed.scheduler import KilledWorker

        try:
            yield from self._inner.map(fn, *iterables, **options)
        except (CancelledError, KilledWorker, OSError) as error:
            raise Unavailable("the Dask cluster lost a call", todo=_TODO) from error
