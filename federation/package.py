"""Which code this is: one digest over the installed package and the versions below it.

A manifest names the digest, every node computes its own, and they must be equal: a node runs the
release that was approved, or nothing. The digest says what is on disk, not what an attacker with
this account might have loaded besides; it is for honest nodes to agree, and for approvals to end
when the code changes.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import rfc8785

PACKAGES = ("clients", "federation", "protocols", "server")
DISTRIBUTION = "lianmo"
# What a wheel carries; numba's caches, editors' leftovers and byte code differ by machine.
SUFFIXES = frozenset({".py", ".so", ".pyd", ".html", ".j2", ".css", ".js", ".json", ".mako"})


@functools.cache
def package_sha256() -> str:
    """SHA-256 over the sorted (path, file hash) of the four packages and the dependencies.

    Computed once a process: what was imported before a file changed is what goes on running, so a
    node that is upgraded has to be started again.
    """
    return digest(dict(installed_files()), dependencies())


def digest(files: dict[str, bytes], versions: dict[str, str]) -> str:
    """The digest of these files and versions; two lists of equal digest are equal."""
    listing = {
        "files": [[path, hashlib.sha256(files[path]).hexdigest()] for path in sorted(files)],
        "versions": [[name, versions[name]] for name in sorted(versions)],
    }
    return hashlib.sha256(rfc8785.dumps(listing)).hexdigest()


def installed_files() -> Iterator[tuple[str, bytes]]:
    """Path below the packages' folder, and content, of every file that is part of the release."""
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"the package {name} is not installed")
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            parts = path.relative_to(root).parts
            if (
                path.suffix in SUFFIXES
                and not any(part == "__pycache__" or part.startswith(".") for part in parts)
                and path.is_file()
            ):
                yield "/".join((name, *parts)), path.read_bytes()


def dependencies() -> dict[str, str]:
    """Name and version of what the package needs (extras, if installed, take no part).

    Without local versions: `2.13.0+cpu` is the same release as `2.13.0`.
    """
    found: dict[str, str] = {}
    for requirement in requires(DISTRIBUTION) or ():
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            found[re.sub(r"[-_.]+", "-", name).lower()] = version(name).split("+")[0]
        except PackageNotFoundError:
            raise RuntimeError(f"{name}, which lianmo needs, is not installed") from None
    return found
