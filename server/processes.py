"""The coordinator's child processes: ServerApps, one a run, and the relay.

A ServerApp process is started ahead (its imports take longer than a round), gets one task over its
standard input, and sees the loopback Runtime API with a token that is valid for one run: not the
coordinator's environment and, under `worker_user`, neither its database nor its keys. It outlives a
crash of the coordinator and finds the next one. The relay does not: it holds nothing, and a second
one could not have its port.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from federation.errors import Unavailable
from server.governance import Task

log = logging.getLogger(__name__)

RELAY_START_S = 20.0


class Launcher:
    """Keeps spare ServerApp processes and gives them tasks."""

    def __init__(
        self, runtime_port: int, *, spare: int, party_wait_s: float, user: str | None = None
    ) -> None:
        self._port, self._wanted, self._user = runtime_port, spare, user
        self._party_wait_s = party_wait_s
        self._lock = threading.Lock()
        self._spare: list[subprocess.Popen[bytes]] = []
        self._busy: list[tuple[subprocess.Popen[bytes], int]] = []  # and its run

    def tend(self) -> None:
        """Start spares, reap who ended. Called now and then, not by `launch`: starting a spare
        costs 1.5 CPU seconds, just when the job needs them."""
        with self._lock:
            self._spare = [worker for worker in self._spare if worker.poll() is None]
            while len(self._spare) < self._wanted:
                self._spare.append(self._start())

    def ended(self) -> list[int]:
        """The runs whose processes have ended since this was asked last."""
        with self._lock:
            gone = [run_id for worker, run_id in self._busy if worker.poll() is not None]
            self._busy = [item for item in self._busy if item[1] not in gone]
        return gone

    def launch(self, task: Task) -> None:
        """Give the task to a spare process, or to a new one."""
        line = json.dumps(
            {
                "address": f"127.0.0.1:{self._port}",
                "token": task.token,
                "run_id": task.run_id,
                "order": task.order.model_dump(mode="json"),
                "nodes": dict(task.nodes),
                "wall_time_s": task.wall_time_s,
                "party_wait_s": self._party_wait_s,
                "kept": task.kept,
            }
        )
        with self._lock:
            alive = [worker for worker in self._spare if worker.poll() is None]
            worker = alive.pop() if alive else self._start()
            self._spare = alive
            self._busy.append((worker, task.run_id))
        if worker.stdin is None:
            raise RuntimeError("a worker is started with a pipe")
        # not in argv or environment: others could read it
        worker.stdin.write(line.encode() + b"\n")
        worker.stdin.close()

    def close(self) -> None:
        """End the spares; processes with a task go on and find the next coordinator."""
        with self._lock:
            for worker in self._spare:
                if worker.stdin is not None:
                    worker.stdin.close()
            for worker in self._spare:
                worker.wait(10)
            self._spare, self._wanted = [], 0

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nonexistent",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "server.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
            user=self._user,
        )


class RelayProcess:
    """The relay as a child: started once it can bind, started again if it ends."""

    def __init__(
        self, address: str, *, key: Path, certificate: Path, membership: Path, log_file: Path
    ) -> None:
        self._arguments: Sequence[str] = (
            *("--address", address, "--key", str(key)),
            *("--certificate", str(certificate), "--membership", str(membership)),
        )
        self._address, self._log_file = address, log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._starter = ThreadPoolExecutor(1, "relay-starter")

    def start(self) -> str:
        """Start it; the address that it took. Raises Unavailable if it does not come up.

        In a thread that lives as long as this object: the kernel ends the child with the thread
        that started it (server/bound.py).
        """
        return self._starter.submit(self._start).result()

    def _start(self) -> str:
        with self._log_file.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "server.bound", "server.relay", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"GRPC_VERBOSITY": "NONE"},
            )
        return self._wait_ready()

    def _wait_ready(self) -> str:
        """The address that it took; raises Unavailable if it does not come up."""
        line = _first_line(self._process, RELAY_START_S) if self._process is not None else b""
        if not line:
            self.stop()
            todo = f"end what listens there, or set `relay_port`; see {self._log_file}"
            raise Unavailable(f"the relay did not start on {self._address}", todo=todo)
        return str(json.loads(line)["relay"])

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """What the process says first; nothing if it ends or stays silent."""
    found: list[bytes] = []

    def read() -> None:
        if process.stdout is not None:
            found.append(process.stdout.readline())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout_s)
    return found[0] if found else b""
