"""Code and job as digests: equal on equal machines, different for any difference."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import fab
from federation.errors import IntegrityError
from federation.objects import Usage
from federation.package import dependencies, digest, installed_files, package_sha256
from tests.federation.parties import make_manifest, make_org

JOB = make_manifest("bank-a", ["tax"])


def test_the_digest_covers_all_four_packages_and_no_byte_code() -> None:
    files = dict(installed_files())
    assert {"protocols/streams.py", "federation/package.py", "clients/home.py"} <= files.keys()
    assert {path.split("/")[0] for path in files} == {
        "protocols",
        "federation",
        "clients",
        "server",
    }
    assert not [path for path in files if "__pycache__" in path or path.endswith(".pyc")]
    assert digest(files, dependencies()) == digest(dict(reversed(files.items())), dependencies())


def test_the_digest_changes_with_any_file_name_content_or_version() -> None:
    files, versions = {"a/b.py": b"x = 1\n", "a/c.py": b""}, {"numpy": "2.4.6"}
    digests = {
        digest(files, versions),
        digest({**files, "a/b.py": b"x = 2\n"}, versions),
        digest({**files, "a/d.py": b""}, versions),
        digest({"a/b.py": b"x = 1\n"}, versions),
        digest({"a/b.py": b"x = 1\n", "a/d.py": b""}, versions),
        digest({"a/b.py": b"", "a/c.py": b"x = 1\n"}, versions),
        digest(files, {"numpy": "2.4.7"}),
        digest(files, {"numpy": "2.4.6", "scipy": "1"}),
        digest(files, {}),
    }
    assert len(digests) == 9


def test_every_dependency_is_in_the_digest_with_its_public_version() -> None:
    found = dependencies()
    assert found["flwr"] == "1.41.0"
    assert {"torch", "numpy", "scikit-learn", "sqlalchemy", "cryptography", "rbcl"} <= found.keys()
    assert not [version for version in found.values() if "+" in version]
    assert "pytest" not in found


def test_two_processes_compute_the_same_digest() -> None:
    program = "from federation.package import package_sha256; print(package_sha256())"
    # another hash seed, another current folder: nothing of the process may enter
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd="/",
    )
    fresh = digest(dict(installed_files()), dependencies())
    assert run.stdout.strip() == fresh
    assert package_sha256() == package_sha256()


# --- bundles --------------------------------------------------------------------------------------


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


# Flower's builder asks pathspec for a name that has a newer one
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_bundle_holds_what_flowers_own_builder_puts_into_it() -> None:
    from flwr.cli.build import build_fab_from_files

    ours = members(fab.build(JOB))
    theirs, _ = build_fab_from_files({"pyproject.toml": ours["pyproject.toml"]})
    assert ours == members(theirs)
    assert ours.keys() == {"pyproject.toml", ".info/CONTENT"}  # no code


def test_flower_reads_the_configuration_that_a_gate_expects() -> None:
    from flwr.common.config import (
        flatten_dict,
        get_fab_config,
        get_metadata_from_config,
    )

    config = get_fab_config(fab.build(JOB))
    assert get_metadata_from_config(config) == ("lianmo/lianmo-job", "1.0.0")
    run_config = flatten_dict(config["tool"]["flwr"]["app"]["config"])
    assert run_config == fab.expected_run_config(JOB)
    assert run_config == {"job": "sme-card-1", "manifest-sha256": JOB.digest()}


def test_nothing_of_the_machine_enters_a_bundle() -> None:
    """Nodes elsewhere must build it byte by byte."""
    data = fab.build(JOB)
    assert data == fab.build(make_org("bank-a", "bank").sign(JOB, Usage.PROPOSE))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED  # no zlib decides on bytes
            assert entry.date_time == (2024, 10, 1, 0, 0, 0)
            assert entry.create_system == 3


def test_the_gate_accepts_the_manifests_own_bundle_only() -> None:
    good, config = fab.build(JOB), dict(fab.expected_run_config(JOB))
    assert fab.require_same(JOB, good, config) == hashlib.sha256(good).hexdigest()
    other = make_manifest("bank-a", ["tax"], job="sme-card-2")
    with pytest.raises(IntegrityError, match="bundle"):
        fab.require_same(other, good, config)


@settings(max_examples=100)
@given(st.integers(0, len(fab.build(JOB)) * 8 - 1))
def test_a_bundle_with_one_bit_changed_is_refused(place: int) -> None:
    """Acceptance test 21."""
    data = bytearray(fab.build(JOB))
    data[place // 8] ^= 1 << place % 8
    with pytest.raises(IntegrityError, match="bundle"):
        fab.require_same(JOB, bytes(data), dict(fab.expected_run_config(JOB)))


def test_an_override_of_the_configuration_is_refused() -> None:
    """Acceptance test 21, second half: plain Flower hands overrides to the app unasked."""
    from flwr.common.config import get_fused_config_from_fab
    from flwr.supercore.run import Run

    data, config = fab.build(JOB), fab.expected_run_config(JOB)
    fused = get_fused_config_from_fab(data, Run.create_empty(1))
    assert fab.require_same(JOB, data, dict(fused))
    run = Run.create_empty(1)
    run.override_config = {"job": "another"}
    with pytest.raises(IntegrityError, match="configuration"):
        fab.require_same(JOB, data, dict(get_fused_config_from_fab(data, run)))
    for changed in ({}, {"job": config["job"]}, {**config, "rounds": 9}):
        with pytest.raises(IntegrityError, match="configuration"):
            fab.require_same(JOB, data, dict(changed))
    assert fab.run_config_sha256(JOB) != fab.run_config_sha256(
        make_manifest("bank-a", ["tax"], job="sme-card-2")
    )


def test_no_code_of_flower_is_imported_to_build_a_bundle() -> None:
    program = (
        "import sys, federation.fab, federation.package, federation.checks\n"
        "print([m for m in ('flwr', 'torch', 'numba', 'pandas', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
