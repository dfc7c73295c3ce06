"""Heavy work on threads or on a cluster: the settings, the failures; the example does the rest."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clients.home import Config
from clients.workers import Cluster, workers
from federation.errors import Unavailable
from protocols.kernels import cluster_of, gather, spread

ROOT = Path(__file__).parents[2]


def test_by_default_there_are_threads_and_no_cluster() -> None:
    with workers(Config(org="tax", threads=2)) as pool:
        assert cluster_of(pool) is None
        assert gather(pool, divmod, [7, 8], [2, 3]) == [(3, 1), (2, 2)]


@pytest.mark.parametrize(
    "address", ["tcp://10.0.0.7:8786", "tcp://dask.example.org:8786", "ws://localhost:1", "x"]
)
def test_columns_and_keys_leave_the_machine_over_tls_only(address: str) -> None:
    with pytest.raises(ValidationError):
        Config(org="tax", dask_scheduler=address)
    assert Config(org="tax", dask_scheduler="tls://dask.example.org:8786").dask_scheduler


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        config = Config(org="tax", dask_scheduler=address, connect_timeout_s=1)
        with pytest.raises(Unavailable, match="does not answer"), workers(config):
            pass


class Lost(Executor):
    """A cluster that goes away."""

    def map(self, fn: Any, *iterables: Any, **_: Any) -> Iterator[Any]:
        yield fn(*next(zip(*iterables, strict=True)))
        raise CancelledError


def test_a_cluster_that_goes_away_ends_the_call_with_its_name() -> None:
    with pytest.raises(Unavailable, match="lost a call"):
        gather(Cluster(Lost()), divmod, [7, 8], [2, 3])


def test_kernels_that_write_into_shared_arrays_never_leave_the_process() -> None:
    found = [0] * 10

    def work(start: int, stop: int) -> None:
        found[start:stop] = [1] * (stop - start)

    with workers(Config(org="tax", threads=2)) as pool:
        pool.cluster = Cluster(Lost())
        spread(pool, 10, work)
    assert found == [1] * 10


@pytest.mark.system
def test_the_example_gives_the_same_bytes_on_threads_and_on_a_dask_cluster() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.dask.cluster"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "equal frames, equal models, both the plaintext model" in done.stdout
