"""A probe tells what is so, and leaves nothing of what it tried."""

import errno
import os
from collections.abc import Callable

import pytest

from migrate.kernel import cgroups, probes, procfs
from migrate.kernel.probes import Finding
from precopy.errors import KernelError
from precopy.ids import Pid

ALL = (
    probes.cgroup_freezer,
    probes.userfaultfd_wp_async,
    probes.pagemap_scan,
    probes.soft_dirty,
    probes.clone3_set_tid,
    probes.time_namespaces,
    probes.anonymous_vma_names,
    probes.timer_list,
    probes.map_files,
    probes.kcmp,
    probes.pidfd_getfd,
    probes.may_ptrace,
    probes.may_checkpoint_restore,
)


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Each test probes for itself."""
    for probe in ALL:
        probe.cache_clear()


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.__name__)
def test_a_probe_leaves_nothing_behind(probe: Callable[[], Finding]) -> None:
    me = Pid(os.getpid())
    before = procfs.namespaces(me), procfs.fds(me), procfs.threads(me)
    finding = probe()
    assert (procfs.namespaces(me), procfs.fds(me), procfs.threads(me)) == before
    assert not any(path.endswith(f"probe-{me}") for path in cgroups.leaves())
    assert bool(finding) is finding.works
    assert bool(finding.why_not) is not finding.works
    assert probe() is finding


def test_what_the_live_tests_need_is_here() -> None:
    """Live tests run as root on a kernel that has these."""
    assert probes.cgroup_freezer() and probes.kcmp() and probes.pidfd_getfd()
    assert probes.may_ptrace() and probes.may_checkpoint_restore()
    assert probes.map_files() and probes.clone3_set_tid()


def test_a_refusal_says_what_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: int, pid: int = 0) -> int:
        raise KernelError(name, Pid(pid), errno.EPERM)

    monkeypatch.setattr(probes, "raw", refuse)
    try:
        for probe in (
            probes.userfaultfd_wp_async,
            probes.clone3_set_tid,
            probes.time_namespaces,
            probes.anonymous_vma_names,
            probes.kcmp,
        ):
            finding = probe()
            assert not finding and "EPERM" in finding.why_not
    finally:
        for probe in ALL:
            probe.cache_clear()


def test_soft_dirty_agrees_with_clear_refs() -> None:
    """Where the bit is, smaps has the flag "sd" on new memory."""
    space = procfs.read_smaps(Pid(os.getpid()))
    assert bool(probes.soft_dirty()) is any("sd" in vma.flags for vma in space.vmas)
