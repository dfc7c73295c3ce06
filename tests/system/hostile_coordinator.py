"""A coordinator that lies about the run: what it sends as bundle or configuration is its own.

`hostile` in its home says how. Everything else is the product's.
"""

from __future__ import annotations

import asyncio
import sys

from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab
from flwr.superlink.servicer.control import control_handlers

from federation import logs
from server.config import CoordinatorHome
from server.coordinator import Coordinator, serve
from server.flower import SuperLink

home = CoordinatorHome.open()


def lie(self: SuperLink, job: str, fab: bytes) -> tuple[int, str]:
    how, override = (home.path / "hostile").read_text(), {}
    if how == "bundle":
        fab = fab[:10] + bytes([fab[10] ^ 2]) + fab[11:]  # the time of the first file in it
    elif how == "override":
        override = user_config_to_proto({"job": "another-job"})
    elif how == "code":
        project = fab[fab.index(b"[project]") : fab.index(b"PK", fab.index(b"[project]"))]
        project = project.replace(b"installed:", b"evil:")
        fab = build_fab_from_files({"pyproject.toml": project, "evil.py": b"raise SystemExit"})[0]
    request = StartRunRequest(
        fab=fab_to_proto(Fab("", fab, {})), federation=job, override_config=override
    )
    run_id = control_handlers.start_run(request, self.account, self.state, None).run_id
    token = self.state.claim_task(self._task(run_id))
    assert token is not None
    return run_id, token


SuperLink.create_run = lie  # type: ignore[method-assign]
logs.configure()
asyncio.run(serve(Coordinator(home), lambda relay: print("ready", flush=True)))  # noqa: T201
sys.exit(0)
