"""The demo's workload is well when left alone, and notices when it is not."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.demo.workload import (
    CONTROL_ADDRESS,
    Shape,
    TaskVanished,
    Workload,
    WorkloadError,
    compiled,
    start,
)
from migrate.testbed import HostProcess, TestBed
from precopy.ids import Pid
from precopy.task_memory import TaskMemory

Process = HostProcess | subprocess.Popen[bytes]


@pytest.fixture(scope="module", name="program")
def compile_workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("cache"))


@contextmanager
def running(shape: Shape, program: Path) -> Iterator[tuple[Process, Workload]]:
    process, workload = start(shape, program=program)
    with process, workload:
        try:
            yield process, workload
        finally:
            process.kill()
            process.wait()


def test_it_is_compiled_once(program: Path) -> None:
    assert compiled(program.parent) == program
    assert [path.name for path in program.parent.iterdir()] == [program.name]


@pytest.mark.parametrize(
    "shape",
    [
        Shape(size_mib=4, rate_mib_s=20, threads=9, period_us=200),
        Shape(size_mib=4, descriptors=False),
        Shape(size_mib=8, rate_mib_s=20, huge=True),
    ],
    ids=["busy", "idle", "huge"],
)
def test_left_alone_it_is_well(shape: Shape, program: Path) -> None:
    with running(shape, program) as (process, workload):
        # Everything has to have happened at least once.
        wanted = {"beats", "vector_rounds", "signals"}
        wanted |= {"pages_written"} if shape.rate_mib_s else set()
        wanted |= {"timerfd_ticks"} if shape.descriptors else set()
        while not all(getattr(workload.status(), name) for name in wanted):
            assert workload.verify()
        status = workload.status()
        assert not status.faults
        assert status.heap_bytes == shape.size_mib << 20
        assert len(os.listdir(f"/proc/{process.pid}/task")) == shape.threads
        workload.quit()
        assert process.wait() == 0
        with pytest.raises(TaskVanished):
            workload.status()


def test_it_holds_nothing_from_outside(program: Path) -> None:
    with running(Shape(size_mib=1), program) as (process, _):
        links = {
            fd: os.readlink(f"/proc/{process.pid}/fd/{fd}")
            for fd in os.listdir(f"/proc/{process.pid}/fd")
        }
        assert {links[fd] for fd in "012"} == {"/dev/null"}
        assert not any(link.startswith("socket:") for link in links.values())


@pytest.mark.parametrize("where", ["heap", "checksum"])
def test_it_notices_one_changed_bit(where: str, program: Path) -> None:
    with (
        running(Shape(size_mib=1), program) as (process, workload),
        TaskMemory(Pid(process.pid)) as memory,
    ):
        status = workload.status()
        address = status.heap_address + 5 * 4096 + 123
        if where == "checksum":
            address = CONTROL_ADDRESS + 136
            found = int.from_bytes(memory.read(address, 8), "little")
            assert found == status.checksum
        (byte,) = memory.read(address, 1)
        memory.write(address, bytes([byte ^ 1]))
        assert not workload.verify()
        faults = workload.status().faults
        assert faults.memory_wrong == 1
        assert faults.memory_wrong_at == (
            status.heap_address + 5 * 4096 if where == "heap" else 0
        )
        workload.quit()
        assert process.wait() == 3


def test_it_notices_an_interrupted_call(program: Path) -> None:
    # A stop and a continuation show as EINTR in epoll_wait(2): signal(7).
    with running(Shape(size_mib=1), program) as (process, workload):
        while not workload.status().faults.interrupted:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            process.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, process.pid, os.WCONTINUED)
            workload.verify()
        assert not workload.verify()


def test_a_pause_shows_as_a_gap(program: Path) -> None:
    with running(Shape(size_mib=1, descriptors=False), program) as (process, workload):
        beats = workload.status().beats
        while workload.status().beats == beats:
            assert workload.verify()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        stopped = workload.status()
        assert stopped == workload.status()
        with pytest.raises(TimeoutError):
            workload.verify(stopped.period_ns * 10 / 1e9)
        process.send_signal(signal.SIGCONT)
        while not workload.gaps():
            workload.verify()
        gap = max(workload.gaps(), key=lambda gap: gap.length_s)
        assert gap.length_s >= stopped.period_ns * 10 / 1e9
        assert workload.status().longest_gap.length_s >= gap.length_s
        workload.forget_gaps()


def test_in_a_host_it_is_well_too(program: Path) -> None:
    with TestBed(shared=[program.parent]) as bed:
        process, workload = start(
            Shape(size_mib=1), program=program, host=bed.host("a")
        )
        with process, workload:
            assert workload.verify()
            workload.quit()
            assert process.wait() == 0


def test_it_says_why_it_does_not_start(program: Path) -> None:
    with pytest.raises(WorkloadError, match="usage: workload"):
        start(Shape(threads=1), program=program)
    with pytest.raises(WorkloadError, match="there is no /nonexistent/cc"):
        compile_with("/nonexistent/cc", program.parent)


def compile_with(compiler: str, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CC", compiler)
        return compiled(folder)
