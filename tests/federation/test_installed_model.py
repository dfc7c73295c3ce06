"""A network of somebody else's: only the very release that was approved, and never received."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from federation.errors import IntegrityError, NotFound, UsageError
from federation.objects import NeuralParameters
from federation.tasks.neural_model import GROUP, Shape, build, package_digest, weights_of

CODE = """
from torch import nn

class Line(nn.Module):
    def __init__(self, numbers, categories, parameters):
        super().__init__()
        self.layer = nn.Linear(numbers, 1)
        {extra}

    def forward(self, numbers, categories):
        return self.layer(numbers).squeeze(-1)
"""


def install(folder: Path, name: str, extra: str = "") -> None:
    """A package as an installer leaves it, with an entry point."""
    (folder / f"{name}.py").write_text(CODE.format(extra=extra or "pass"))
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}:Line\n")
    listed = [f"{name}.py,,", *(f"{about.name}/{f.name},," for f in about.iterdir())]
    (about / "RECORD").write_text("\n".join([*listed, f"{about.name}/RECORD,,"]) + "\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def parameters(name: str, digest: str) -> NeuralParameters:
    return NeuralParameters(model="installed", module=name, module_sha256=digest)


def digest_of(name: str) -> str:
    return package_digest(next(iter(entry_points(group=GROUP, name=name))))


def test_an_approved_package_is_built_and_trained_like_ours(folder: Path) -> None:
    install(folder, "lianmo_test_line")
    of = parameters("lianmo_test_line", digest_of("lianmo_test_line"))
    assert len(weights_of(build(of, Shape(5, 0), bytes(32)))) == 6


def test_another_release_of_it_is_refused_before_its_code_is_loaded(folder: Path) -> None:
    install(folder, "lianmo_test_changed")
    of = parameters("lianmo_test_changed", digest_of("lianmo_test_changed"))
    (folder / "lianmo_test_changed.py").write_text("raise SystemExit('it was loaded')")
    with pytest.raises(IntegrityError, match="another release"):
        build(of, Shape(5, 0), bytes(32))


def test_a_package_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(NotFound, match="no_such_model"):
        build(parameters("no_such_model", "0" * 64), Shape(5, 0), bytes(32))


def test_a_network_with_running_statistics_is_refused(folder: Path) -> None:
    install(folder, "lianmo_test_norm", "self.norm = nn.BatchNorm1d(numbers)")
    of = parameters("lianmo_test_norm", digest_of("lianmo_test_norm"))
    with pytest.raises(UsageError, match="buffers"):
        build(of, Shape(5, 0), bytes(32))
