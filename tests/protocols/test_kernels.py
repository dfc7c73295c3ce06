"""Compiled loops share the machine with BLAS."""

from __future__ import annotations

from threading import Thread

import numpy as np
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]  # it has no stubs

from protocols.kernels import single_threaded_blas


def _blas_threads() -> set[int]:
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_blas_keeps_to_one_thread_whichever_party_asks_for_it() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before, seen = _blas_threads(), list[set[int]]()

    def party() -> None:
        with single_threaded_blas():
            seen.append(_blas_threads())

    party()  # the first thread that ever sets a limit ...
    for _ in range(2):  # ... and others after it
        other = Thread(target=party)
        other.start()
        other.join()
    assert seen == [{1}] * 3
    assert _blas_threads() == before
