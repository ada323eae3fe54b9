"""What holds for every test: who may run, and that nothing is left behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from migrate import config_directory
from migrate.state_directory import VARIABLE
from tests import leaks

# A busy machine is not a bug: no example is judged by how long it took.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")

LIVE = Path(__file__).parent / "live"


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/live, and skip it where it cannot run."""
    reason = _why_not_live()
    for item in items:
        if LIVE in item.path.parents:
            item.add_marker(pytest.mark.live)
        if reason and item.get_closest_marker("live"):
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not_live() -> str | None:
    """Why no live test can run here; None if they can."""
    if os.geteuid() != 0:
        return "live tests need root"
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if not any(" - cgroup2 " in line for line in mounts):
        return "live tests need the cgroup v2 freezer, and no cgroup2 is mounted"
    return None


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A live test that leaves anything of ours behind has failed."""
    if not request.node.get_closest_marker("live"):
        yield
        return
    before = leaks.snapshot()
    yield
    left = leaks.left_since(before, patience_s=20)
    assert not left, "left behind:\n  " + "\n  ".join(left)


@pytest.fixture(autouse=True, scope="session")
def own_journals_and_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not those of the host that the tests run on, nor of another run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("state")))
        patch.setenv(config_directory.VARIABLE, str(tmp_path_factory.mktemp("keys")))
        yield


@pytest.fixture(autouse=True, scope="session")
def the_session_leaves_nothing_behind() -> Iterator[None]:
    """The same for what is made once for many tests."""
    before = leaks.snapshot()
    yield
    left = leaks.left_since(before, patience_s=20)
    assert not left, "left behind:\n  " + "\n  ".join(left)
