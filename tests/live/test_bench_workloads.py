"""The workloads of the bench are well when left alone, and notice when they are not."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import meter, programs
from migrate.demo.workload import Workload, launch
from migrate.kernel.pidfds import PidFd
from precopy.ids import Pid
from precopy.task_memory import TaskMemory

WORKLOADS = {
    "crowd": lambda: [str(programs.crowd()), "5", "20", "20", "1000"],
    "store": lambda: [str(programs.store()), "1", "0", "100", "1000"],
    "store in its own time": lambda: [str(programs.store()), "1", "500", "10", "1000"],
    "stream": lambda: [str(programs.stream()), "1", "100", "1000"],
}


@contextmanager
def running(name: str) -> Iterator[tuple[subprocess.Popen[bytes], Workload]]:
    process, workload = launch(WORKLOADS[name]())
    assert isinstance(process, subprocess.Popen)
    with process, workload:
        try:
            yield process, workload
        finally:
            process.kill()


@pytest.mark.parametrize("name", WORKLOADS)
def test_left_alone_a_workload_is_well(name: str) -> None:
    with running(name) as (process, workload):
        while not workload.status().beats:
            assert workload.verify()
        assert workload.verify()
        assert not workload.status().faults
        workload.quit()
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", ["store", "stream"])
def test_a_workload_notices_changed_memory(name: str) -> None:
    with (
        running(name) as (process, workload),
        TaskMemory(Pid(process.pid)) as memory,
    ):
        status = workload.status()
        # Of a page: one word may be part of no entry at all.
        for at in range(status.heap_address, status.heap_address + 4096, 8):
            memory.write(at, b"\x55")
        assert not workload.verify()
        assert workload.status().faults.memory_wrong


def test_a_crowd_notices_what_it_has_lost() -> None:
    """Here an offset, which somebody else has moved."""
    with running("crowd") as (process, workload):
        fd = next(
            int(link.name)
            for link in Path(f"/proc/{process.pid}/fd").iterdir()
            if "crowd" in os.readlink(link)
        )
        with PidFd.open(Pid(process.pid)) as pidfd:
            ours = pidfd.getfd(fd)
        os.lseek(ours, 100, os.SEEK_CUR)
        os.close(ours)
        assert not workload.verify()
        assert workload.status().faults.descriptors_wrong == 1


def test_what_is_metered_adds_up() -> None:
    """Each thing done is in one bucket, and the longest is not above its bucket."""
    with running("store") as (process, workload):
        while not any(interval.count for interval in meter.read(process.pid)):
            assert workload.verify()
        process.send_signal(signal.SIGSTOP)  # an interval is not written at once
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        for interval in meter.read(process.pid):
            assert sum(interval.buckets) in {interval.count, interval.count - 1}
            highest = max(n for n, many in enumerate(interval.buckets) if many)
            assert interval.longest_ns < meter.bucket_end_ns(highest) or (
                highest == meter.BUCKETS - 1
            )
            assert interval.longest_ns >= meter.bucket_end_ns(highest - 1)
