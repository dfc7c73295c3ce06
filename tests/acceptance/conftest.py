"""What the acceptance tests of grants share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.consent import World, copied
from tests.clients.test_store import postgresql  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def consent_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consent")
    World.create(folder)
    return folder


@pytest.fixture
def world(consent_template: Path, tmp_path: Path) -> Iterator[World]:
    world = copied(consent_template, tmp_path)
    yield world
    assert world.audit.verify().problems == ()
    world.close()
