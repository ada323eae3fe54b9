"""A process that does something of its own while it is moved."""

import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.demo import workload
from migrate.kernel import procfs
from migrate.testbed import HostProcess
from precopy.ids import Pid
from precopy.task_memory import TaskMemory
from tests.live import targets
from tests.live.stage import Stage, blocks_in, eventually, inside, stage
from tests.live.unharmed import Condition

MID_ROUND = "round_progress"
CLOCK_NANOSLEEP = 230  # x86-64
RESTLESS = [
    "maps",
    "threads",
    "remaps",
]
CONTROL_ADDRESS = 0x100_0000_0000


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage, for all tests here, with the targets beside the workload."""
    program = workload.compiled(tmp_path_factory.mktemp("workload"))
    with stage(program) as made:
        yield made


@contextmanager
def target(on: Stage, name: str, *arguments: str) -> Iterator[HostProcess]:
    """A program of targets/, on a; it is ready."""
    folder = on.workload.parent
    program = folder / name
    if not program.exists():
        targets.compiled(name, folder)
    process = on.a.popen([program, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        # Between its last close(2) and its wait there is nothing to see.
        eventually(lambda: len(procfs.fds(Pid(process.pid))) == 3, "it is ready")
        yield process
    finally:
        on.clear()
        process.close()


def test_it_executes_another_program(on: Stage) -> None:
    with target(on, "turncoat", "exec", "/bin/sleep") as process:
        with on.begin(str(process.pid_inside)) as moving:
            moving.hold_before(MID_ROUND)
            process.send_signal(signal.SIGUSR1)
            eventually(lambda: is_asleep(process), "it executes sleep")
            before = Condition.of(process.pid)
            moving.end().assert_failed(
                6,
                "The process executed another program meanwhile.",
                "runs on here, unharmed. Start the move again.",
            )
        before.assert_same_now()
        assert on.run("--to", on.to, str(process.pid_inside)).code == 0


def is_asleep(process: HostProcess) -> bool:
    """It is another program, which has been loaded and does what it is there for."""
    name = Path(f"/proc/{process.pid}/comm").read_text()
    return name == "sleep\n" and blocks_in(process) == CLOCK_NANOSLEEP


def test_it_has_a_child(on: Stage) -> None:
    """Born when the move had begun; it goes along."""
    with target(on, "turncoat", "fork") as process:
        with on.begin(str(process.pid_inside)) as moving:
            moving.hold_before(MID_ROUND)
            process.send_signal(signal.SIGUSR1)
            eventually(lambda: bool(procfs.children(Pid(process.pid))), "it forks")
            (child,) = procfs.children(Pid(process.pid))
            number = inside(child)
            moved = moving.end()
        assert moved.code == 0, moved
        there = on.b.process(moved.report["processes"][0]["destination_pid"])
        with there:
            (arrived,) = procfs.children(Pid(there.pid))
            assert inside(arrived) == number
            assert procfs.stat(arrived).name == procfs.stat(Pid(there.pid)).name
            there.kill()


def test_it_opens_what_cannot_go(on: Stage) -> None:
    with target(on, "turncoat", "socket") as process:
        with on.begin(str(process.pid_inside)) as moving:
            moving.hold_before(MID_ROUND)
            process.send_signal(signal.SIGUSR1)
            eventually(
                lambda: len(procfs.fds(Pid(process.pid))) == 4, "it opens a socket"
            )
            before = Condition.of(process.pid).untracked()
            moving.end().assert_failed(
                6, "fd 3", "is a socket", "runs on here, unharmed."
            )
        before.assert_same_now()


@pytest.mark.parametrize("phase", [MID_ROUND, "freezing"])
def test_a_target_that_exits_has_ended(on: Stage, phase: str) -> None:
    with target(on, "turncoat", "exit") as process:
        with on.begin(str(process.pid_inside)) as moving:
            moving.hold_before(phase)
            process.send_signal(signal.SIGUSR1)
            assert process.wait() == 0
            moving.end().assert_failed(8, "ended by itself during the move. It is gone")
        on.assert_nothing_left()


@pytest.mark.parametrize("what", RESTLESS)
def test_it_is_never_the_same_and_arrives(on: Stage, what: str) -> None:
    with target(on, "restless", what) as process:
        rounds_until(process.pid, lambda rounds: rounds >= 3)
        moved = on.run("--to", on.to, "--json", str(process.pid_inside))
        assert moved.code == 0, moved
        (arrived,) = moved.report["processes"]
        with on.b.process(arrived["destination_pid"]) as there:
            begun = rounds_until(there.pid, lambda rounds: rounds > 0)
            rounds_until(there.pid, lambda rounds: rounds >= begun + 50)
            there.kill()


@pytest.mark.parametrize("what", RESTLESS)
def test_it_is_never_the_same_and_stays(on: Stage, what: str) -> None:
    with target(on, "restless", what) as process:
        with on.begin(str(process.pid_inside)) as moving:
            moving.hold_before("freezing")
            moving.process.send_signal(signal.SIGINT)
            moving.also_hold_before("Calling it off.")
            moving.end().assert_failed(6, "called off", "runs on here")
        begun = rounds_until(process.pid, lambda rounds: rounds > 0)
        rounds_until(process.pid, lambda rounds: rounds >= begun + 50)
        assert procfs.status(Pid(process.pid)).tracer == 0


def rounds_until(pid: int, enough: Callable[[int], bool]) -> int:
    """Wait until it has gone round so often, and see that nothing was wrong."""
    with TaskMemory(Pid(pid)) as memory:

        def look() -> tuple[int, int, int]:
            return struct.unpack("<3Q", memory.read(CONTROL_ADDRESS, 24))

        eventually(lambda: enough(look()[0]) or look()[1] > 0, "it goes round")
        rounds, line, number = look()
        assert not line, f"restless.c:{line} is wrong, errno {number}"
        return rounds
