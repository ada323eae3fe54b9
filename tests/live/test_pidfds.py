"""A pidfd names one process, however its number goes on."""

import os
import signal
from errno import EBADF

import pytest

from migrate.kernel import procfs
from migrate.kernel.pidfds import PidFd
from precopy.errors import KernelError, TaskVanished
from tests.live.victim import running


def test_it_waits_for_the_end_of_a_process() -> None:
    with running() as victim, PidFd.open(victim.pid) as pidfd:
        assert not pidfd.has_ended() and not pidfd.wait(timeout_s=0.01)
        pidfd.send_signal(signal.SIGTERM)
        assert pidfd.wait(timeout_s=10) and pidfd.has_ended()
        victim.child.wait()
        with pytest.raises(TaskVanished):
            pidfd.send_signal(signal.SIGTERM)
        with pytest.raises(TaskVanished):
            pidfd.getfd(0)
        with pytest.raises(TaskVanished):
            PidFd.open(victim.pid)


def test_another_process_under_the_same_number_is_not_it() -> None:
    with running() as victim:
        start = procfs.stat(victim.pid).start_time_ticks
        PidFd.open(victim.pid, start).close()
        with pytest.raises(TaskVanished):
            PidFd.open(victim.pid, start - 1)


def test_a_zombie_is_not_the_process_that_was_meant() -> None:
    with running() as victim:
        start = procfs.stat(victim.pid).start_time_ticks
        victim.child.kill()
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TaskVanished):
            PidFd.open(victim.pid, start)
        with PidFd.open(victim.pid) as pidfd:
            assert pidfd.has_ended()


def test_getfd_shares_the_description() -> None:
    arrange = "f = open('/usr/bin/env', 'rb'); os.dup2(f.fileno(), 77)"
    with running(arrange) as victim, PidFd.open(victim.pid) as pidfd:
        ours = pidfd.getfd(77)
        try:
            assert not os.get_inheritable(ours)
            os.lseek(ours, 33, os.SEEK_SET)
            assert procfs.fd(victim.pid, 77).info.position == 33
        finally:
            os.close(ours)
        with pytest.raises(KernelError) as caught:
            pidfd.getfd(78)
        assert caught.value.errno == EBADF
