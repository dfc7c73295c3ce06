"""How compiled loops are declared and spread over threads.

Every kernel is compiled by numba once into its on-disk cache (`python -m federation.warm`) and
releases the GIL. Threads come from the caller's executor, not from numba's `parallel=True`: its
default threading layers either abort when two parties of one process compute at once or do not
survive a fork, and compile several times slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar, cast

import numba
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it has no stubs

Function = TypeVar("Function", bound=Callable[..., object])
Result = TypeVar("Result")

PIECES = 8  # a few times the cores of a small node, so that uneven pieces even out


def kernel(function: Function) -> Function:
    """Compile with a disk cache, no GIL, fused multiply-add and no other float liberty.

    Fusing cannot change a result here: every float kernel works on integers that it computes
    exactly (modular arithmetic) or rounds to the nearest integer with room to spare (the complex
    transform).
    """
    compiled = numba.njit(cache=True, nogil=True, fastmath={"contract"})(function)
    return cast("Function", compiled)


def exact_kernel(function: Function) -> Function:
    """As `kernel` for floats whose last bit counts: every operation rounds as NumPy's does."""
    return cast("Function", numba.njit(cache=True, nogil=True)(function))


def inlined(function: Function) -> Function:
    """A piece of a kernel, put into each of its callers."""
    return cast("Function", numba.njit(inline="always", fastmath={"contract"})(function))


class Workers(ThreadPoolExecutor):
    """Threads of this machine and, where a party outgrows it, an executor of its cluster.

    Kernels write into arrays of their caller, so they stay with the threads (`spread`). Calls that
    are worth sending go to the cluster (`gather`).
    """

    def __init__(self, threads: int, cluster: Executor | None = None) -> None:
        super().__init__(threads, "work")
        self.cluster = cluster


def cluster_of(executor: Executor | None) -> Executor | None:
    """Where heavy calls can be sent to, if there is such a place."""
    return executor.cluster if isinstance(executor, Workers) else None


def gather(
    executor: Executor | None, function: Callable[..., Result], *arguments: Iterable[object]
) -> list[Result]:
    """The results of a module's pure function, call by call: on the cluster, the threads, or here.

    Arguments and results may cross to another machine. Which it is never shows in the results.
    """
    where = cluster_of(executor) or executor
    run: Callable[..., Iterable[Result]] = where.map if where else map
    return list(run(function, *arguments))


def spread(executor: Executor | None, count: int, work: Callable[[int, int], None]) -> None:
    """Run `work(start, stop)` over 0..count in pieces, on the executor's threads if there is one.

    `work` writes into arrays that it shares with the caller, each piece its own part. The executor
    must not be the one that runs the caller: a pool that waits for itself never ends.
    """
    if executor is None or count < 2:
        work(0, count)
        return
    pieces = min(PIECES, count)
    cuts = [count * i // pieces for i in range(pieces + 1)]
    futures = [executor.submit(work, cuts[i], cuts[i + 1]) for i in range(pieces)]
    for future in futures:
        future.result()


_blas_lock = threading.Lock()
_blas_users: list[object] = []
_blas_limits: list[ThreadpoolController] = []


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread a product while inside: ours share the work, idle ones of BLAS would spin.

    The limit is the process's, so it ends when the last of several parties leaves.
    """
    me = object()
    with _blas_lock:
        if not _blas_users:
            _take_control()
            _blas_limits.append(_controller().limit(limits=1, user_api="blas"))
        _blas_users.append(me)
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users.remove(me)
            if not _blas_users:
                _take_control()
                _blas_limits.pop().restore_original_limits()


def _take_control() -> None:
    """From threadpoolctl 3.7 on only the first thread that ever set a limit can set another.

    Without this a party that is not that thread multiplies with all of BLAS's threads inside each
    of ours: twice the time.
    """
    for library in _controller().lib_controllers:
        if (release := getattr(library, "clear_controlling_thread", None)) is not None:
            release(force=True)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
