"""A running program moves to another host and goes on as if nothing had happened."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from migrate.demo import workload
from migrate.demo.workload import Shape, Workload
from migrate.kernel import probes
from migrate.testbed import Host, HostProcess
from tests.live.journey import Road, road


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's workload, compiled."""
    return workload.compiled(tmp_path_factory.mktemp("workload"))


@pytest.fixture(scope="module")
def between(program: Path) -> Iterator[Road]:
    """Two hosts for all tests here."""
    with road(program.parent) as made:
        yield made


def started(shape: Shape, program: Path, host: Host) -> HostProcess:
    """The workload, running in a host."""
    process, seen = workload.start(shape, program=program, host=host)
    seen.close()
    assert isinstance(process, HostProcess)
    return process


TRACKERS: Final[dict[str, Callable[[], probes.Finding]]] = {
    "uffd-wp": probes.userfaultfd_wp_async,
    "soft-dirty": probes.soft_dirty,
    "everything": lambda: probes.Finding(True),
}


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("rate_mib_s", [0, 50])
def test_a_working_program_goes_on_over_there(
    between: Road, program: Path, tracker: str, rate_mib_s: int
) -> None:
    if not (works := TRACKERS[tracker]()):
        pytest.skip(works.why_not)
    shape = Shape(size_mib=32, rate_mib_s=rate_mib_s)
    with started(shape, program, between.a) as process:
        report = between.move(
            process.pid_inside, between.a, between.b, ["--tracker", tracker]
        ).arrived()
        assert report.tracker == tracker
        assert report.processes[0].destination_pid == process.pid_inside
        assert process.wait() == -9
    with between.arrived(report, between.b) as arrived, Workload(arrived.pid) as after:
        assert after.verify(), after.status().faults
        after.quit()
        assert between.b.wait_exit(arrived.pid_inside, 30) == 0


def test_a_program_moves_there_and_back_again_twenty_times(
    between: Road, program: Path
) -> None:
    shape = Shape(size_mib=8, rate_mib_s=10)
    with started(shape, program, between.a) as process:
        pid = process.pid_inside
    here, there = between.a, between.b
    for _ in range(20):
        between.move(pid, here, there).arrived()
        # Each copy that was left behind ends once, and its end is told once.
        assert here.wait_exit(pid, 30) == -9
        here, there = there, here
    with here.process(pid) as arrived, Workload(arrived.pid) as after:
        assert after.verify(), after.status().faults
        after.quit()
        assert here.wait_exit(pid, 30) == 0
