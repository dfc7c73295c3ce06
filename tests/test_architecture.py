"""Imports go one way, and `protocols/` touches nothing outside its arguments."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "protocols": set[str](),
    "federation": {"protocols"},
    "clients": {"federation", "protocols"},
    "server": {"federation", "protocols"},
}
BESIDE = {"tests", "examples", "benchmarks"}  # these import the packages, never the other way

# What a pure module has no use for: files, sockets, processes, the clock, logging.
# `warm` is the exception: it compiles kernels into numba's cache, once, at installation.
IMPURE = {
    *("os", "pathlib", "io", "glob", "shutil", "tempfile", "socket", "ssl", "http", "urllib"),
    *("time", "datetime", "logging", "random", "signal", "subprocess", "multiprocessing"),
    *("asyncio", "sqlite3", "sqlalchemy", "grpc", "httpx", "flwr", "torch", "pandas", "pyarrow"),
}
SHELLS = {"protocols/warm.py"}


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """First names of all modules that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                str(argument.value).split(".")[0]
                for argument in node.args
                if isinstance(argument, ast.Constant)
            )


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_downwards_only(package: str) -> None:
    forbidden = (BELOW.keys() | BESIDE) - BELOW[package] - {package}
    assert modules(package)
    for path in modules(package):
        assert not set(imports(path)) & forbidden, path.relative_to(ROOT)


def test_protocols_are_pure() -> None:
    for path in modules("protocols"):
        name = path.relative_to(ROOT).as_posix()
        if name not in SHELLS:
            assert not set(imports(path)) & IMPURE, name
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
            assert not names & {"open", "print", "input", "exec", "eval"}, name


def test_the_signed_objects_are_light() -> None:
    """Every command imports these; heavy libraries there would be paid for at each start."""
    heavy = {"numpy", "pandas", "pyarrow", "torch", "sklearn", "numba", "flwr", "scipy"}
    for name in [
        "objects",
        "profile",
        "certificates",
        "envelope",
        "identity",
        "trust",
        "checks",
        "keyring",
        "package",
        "fab",
        "errors",
    ]:
        assert not set(imports(ROOT / "federation" / f"{name}.py")) & heavy, name


def test_only_two_modules_touch_flowers_internals() -> None:
    allowed = {"server/flower.py", "clients/node.py", "server/serverapp.py", "server/worker.py"}
    allowed |= {"server/conductor.py"}
    touching = {
        path.relative_to(ROOT).as_posix()
        for package in BELOW
        for path in modules(package)
        if "flwr" in set(imports(path))
    }
    assert touching <= allowed, touching - allowed


def test_nothing_unpickles() -> None:
    for package in BELOW:
        for path in modules(package):
            found = set(imports(path)) & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
            assert not found, path.relative_to(ROOT)


def test_every_module_says_what_it_is_for() -> None:
    for package in BELOW:
        for path in modules(package):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            empty = path.name == "__init__.py" and not tree.body
            assert empty or ast.get_docstring(tree), path.relative_to(ROOT)


def test_the_standard_library_is_not_shadowed() -> None:
    ours = {path.stem for package in BELOW for path in (ROOT / package).glob("*.py")}
    assert not BELOW.keys() & sys.stdlib_module_names
    assert "__init__" in ours
