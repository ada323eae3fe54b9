"""The hosts that tests of scenarios share; a test that needs others makes its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.journey import Road, road
from tests.live.scenarios import harness


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both hosts see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def between(folder: Path) -> Iterator[Road]:
    """Two hosts for all tests here."""
    with road(folder, harness.build_folder()) as made:
        yield made
