"""What no kind carries and /proc does not show is found by the first look."""

import ctypes
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.journey import Road, road
from tests.live.scenarios import harness
from tests.live.scenarios.harness import Scenario, tell_moved


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Road, Path]]:
    """Two hosts for all tests here, and a folder that both see."""
    folder = tmp_path_factory.mktemp("shared")
    with road(folder, harness.build_folder()) as made:
        yield made, folder


@pytest.mark.parametrize(
    ("keeps", "named"),
    [
        ("ldt", "modify_ldt(2)"),
        ("numa", "set_mempolicy(2)"),
        ("dispatch", "PR_SET_SYSCALL_USER_DISPATCH"),
        ("ports", "ioperm(2)"),
    ],
)
def test_it_is_refused_by_name_and_runs_on(
    keeps: str, named: str, between: tuple[Road, Path]
) -> None:
    if keeps == "ports" and not _has_ioperm():
        pytest.skip("this kernel has no ioperm(2) (CONFIG_X86_IOPL_IOPERM)")
    hosts, folder = between
    place = folder / keeps
    place.mkdir()
    with Scenario("unusual_modes", place, keeps, host=hosts.a) as scenario:
        ready = scenario.ready()
        moved = hosts.move(ready.pid, hosts.a, hosts.b)
        assert moved.exit_code == 3, moved
        assert named in moved.stderr
        with hosts.a.process(ready.pid) as here:
            tell_moved(here.pid, ready)
            assert scenario.verdict() == []


def _has_ioperm() -> bool:
    # Asking for no port at all is EINVAL where the call exists.
    ctypes.CDLL(None, use_errno=True).ioperm(1 << 16, 1, 1)
    return ctypes.get_errno() != errno.ENOSYS
