"""A job as Flower carries it: a bundle (FAB) with the manifest's digest and no code.

Every party builds the bundle again from the manifest that it checked, and compares; so a bundle
with one byte changed, or a run with another configuration, finds no gate open. Flower's own
builder compresses with whatever zlib there is; ours stores, so that equal manifests give equal
bytes on every machine. Flower reads both alike (a test holds the two against each other).
"""

from __future__ import annotations

import hashlib
import io
import zipfile

from federation.envelope import Envelope
from federation.errors import IntegrityError
from federation.objects import JobManifest

_DATE = (2024, 10, 1, 0, 0, 0)  # FAB_DATE of flwr 1.41.0
_REGULAR_FILE = 0o600 << 16  # as zipfile.writestr sets it
_UNIX = 3


def build(manifest: JobManifest | Envelope) -> bytes:
    """The bundle of a manifest: always the same bytes.

    An envelope is read without looking at its signatures: they are not part of the bundle.
    """
    config = "".join(f'{k} = "{v}"\n' for k, v in expected_run_config(manifest).items())
    # The components' names are never loaded: server and nodes run what is installed.
    project = (
        "[project]\n"
        'name = "lianmo-job"\n'
        'version = "1.0.0"\n'
        "dependencies = [\n"
        '    "flwr",\n'
        "]\n"
        "\n"
        "[tool.flwr.app]\n"
        'publisher = "lianmo"\n'
        "\n"
        "[tool.flwr.app.components]\n"
        'serverapp = "installed:server"\n'
        'clientapp = "installed:client"\n'
        "\n"
        "[tool.flwr.app.config]\n"
        f"{config}"
    ).encode()
    content = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{len(project) * 8}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("pyproject.toml", project), (".info/CONTENT", content.encode())):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system, entry.external_attr = _UNIX, _REGULAR_FILE
            archive.writestr(entry, data)
    return buffer.getvalue()


def expected_run_config(manifest: JobManifest | Envelope) -> dict[str, str]:
    """The configuration of the run; everything else about a job is in its manifest."""
    job = manifest.unverified(JobManifest) if isinstance(manifest, Envelope) else manifest
    return {"job": job.job, "manifest-sha256": job.digest()}


def require_same(
    manifest: JobManifest | Envelope, fab: bytes, run_config: dict[str, object]
) -> str:
    """SHA-256 of the bundle, if it and the run's configuration are the manifest's own.

    Raises IntegrityError otherwise: with a changed byte, another entry, or an override.
    """
    if fab != build(manifest):
        raise IntegrityError("the bundle of this run is not the approved one", party="coordinator")
    if run_config != expected_run_config(manifest):
        what = "the configuration of this run is not the approved one"
        raise IntegrityError(what, party="coordinator")
    return hashlib.sha256(fab).hexdigest()


def run_config_sha256(manifest: JobManifest | Envelope) -> str:
    """SHA-256 of the configuration, for run records."""
    config = expected_run_config(manifest)
    text = "".join(f"{key}={value}\n" for key, value in sorted(config.items()))
    return hashlib.sha256(text.encode()).hexdigest()
