"""What --pid says about numbers is what a program finds over there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.demo import workload
from migrate.demo.workload import Shape, Workload
from migrate.kernel import procfs
from migrate.testbed import HostProcess
from precopy.ids import Pid
from tests.live.journey import Road, road

IDLE = Shape(size_mib=8, rate_mib_s=0)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's workload, compiled."""
    return workload.compiled(tmp_path_factory.mktemp("workload"))


@pytest.fixture(scope="module")
def between(program: Path) -> Iterator[Road]:
    """Two hosts for all tests here."""
    with road(program.parent) as made:
        yield made


@contextmanager
def moved(
    between: Road, program: Path, policy: str
) -> Iterator[tuple[int, HostProcess]]:
    """Its pid at the source, and the process over there, which finds itself well."""
    process, seen = workload.start(IDLE, program=program, host=between.a)
    seen.close()
    assert isinstance(process, HostProcess)
    with process:
        pid = process.pid_inside
    options = ["--pid", policy]
    report = between.move(pid, between.a, between.b, options).arrived()
    with between.arrived(report, between.b) as arrived, Workload(arrived.pid) as after:
        assert after.verify(), after.status().faults
        yield pid, arrived
        after.quit()


def numbers(process: HostProcess) -> tuple[int, ...]:
    """Its pid as each namespace below ours has it: the host's first, its own last."""
    return procfs.status(Pid(process.pid)).pids_in_namespaces[1:]


def parent_name(process: HostProcess) -> str:
    """What the process is called that would wait for it."""
    return procfs.stat(procfs.stat(Pid(process.pid)).parent).name


def test_it_keeps_its_pid(between: Road, program: Path) -> None:
    """Its host calls it as it calls itself."""
    with moved(between, program, "keep") as (pid, arrived):
        assert numbers(arrived) == (pid,)


def test_it_keeps_its_pid_in_a_namespace_of_its_own(
    between: Road, program: Path
) -> None:
    """It calls itself as before, whatever its host does; its parent is an init."""
    with moved(between, program, "new-namespace") as (pid, arrived):
        assert numbers(arrived) == (arrived.pid_inside, pid)
        assert parent_name(arrived) == "migrate-init"


def test_it_takes_any_pid(between: Road, program: Path) -> None:
    """One that is free, and it leads a session of its own."""
    with moved(between, program, "any") as (pid, arrived):
        assert numbers(arrived) == (arrived.pid_inside,) != (pid,)
        assert procfs.stat(Pid(arrived.pid)).session == arrived.pid
