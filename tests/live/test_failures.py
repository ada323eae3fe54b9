"""A move that fails: the right exit code, a sentence, and a source that is unharmed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrate.demo import workload
from migrate.demo.workload import Shape, Workload
from migrate.testbed import Agent, Host, HostProcess, TestBed

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
MIGRATE = (sys.executable, "-m", "migrate")


@dataclass
class Stage:
    """Two hosts, an agent on b, and a program on a that notices what is done to it."""

    a: Host
    b: Host
    agent: Agent
    process: HostProcess
    program: Workload

    @property
    def to(self) -> str:
        return f"{self.agent.address}:{self.agent.port}"

    def migrate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.a.run([*MIGRATE, *arguments], env=ENVIRONMENT)

    def move_until(
        self, event: str, then: Callable[["Stage", HostProcess], None]
    ) -> tuple[int, str]:
        """Begin a move, do ``then`` at the first such event; how it ended, and why."""
        pipe = subprocess.PIPE
        command = [*MIGRATE, "--to", self.to, "--progress", "jsonl", self.pid]
        with self.a.popen(command, env=ENVIRONMENT, stderr=pipe) as moving:
            assert moving.stderr is not None
            for line in moving.stderr:
                if event.encode() in line:
                    then(self, moving)
                    break
            said = moving.stderr.read().decode()
            return moving.wait(), said

    @property
    def pid(self) -> str:
        return str(self.process.pid_inside)

    def assert_unharmed(self) -> None:
        """The program says so itself, and nothing of ours is left around it."""
        assert self.program.verify()
        assert not self.program.status().faults
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        assert re.search(r"^TracerPid:\t0$", status, re.MULTILINE)
        for host in (self.a, self.b):
            left = list(host.cgroup.rglob("migrate-*"))
            assert left == [], left


@pytest.fixture
def stage() -> Iterator[Stage]:
    with TestBed() as bed, ExitStack() as at_the_end:
        a, b = bed.host("a"), bed.host("b")
        shape = Shape(size_mib=128, rate_mib_s=20)
        process, program = workload.start(shape, program=workload.compiled(), host=a)
        assert isinstance(process, HostProcess)
        at_the_end.callback(process.close)
        at_the_end.callback(program.close)
        yield Stage(a, b, b.agent(), process, program)


def interrupt(stage: Stage, moving: HostProcess) -> None:
    moving.send_signal(signal.SIGINT)


def kill_worker(stage: Stage, moving: HostProcess) -> None:
    (worker,) = re.findall(r'"worker": (\d+), "event": "arrival"', stage.agent.log)
    with stage.b.process(int(worker)) as process:
        process.kill()


def stop_agent(stage: Stage, moving: HostProcess) -> None:
    stage.agent.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (interrupt, "called off"),
        (kill_worker, "Start the move again."),
        (stop_agent, "Start the move again."),
    ],
)
def test_trouble_in_mid_round_is_rolled_back(
    stage: Stage, trouble: Callable[[Stage, HostProcess], None], sentence: str
) -> None:
    """Exit code 6 at both ends of the wire, and the program never noticed."""
    code, said = stage.move_until('"round_progress"', trouble)
    assert code == 6, said
    assert sentence in said
    assert "runs on here" in said
    # Gone once the agent has seen to what its worker left.
    stage.agent.process.send_signal(signal.SIGTERM)
    assert stage.agent.process.wait(60) == 0
    stage.assert_unharmed()


def test_what_was_rolled_back_can_be_moved_again(stage: Stage) -> None:
    """An interrupted move is a move that has not been made yet."""
    assert stage.move_until('"round_progress"', interrupt)[0] == 6
    moved = stage.migrate("--to", stage.to, "--json", stage.pid)
    assert moved.returncode == 0, moved.stderr
    (process,) = json.loads(moved.stdout)["processes"]
    with stage.b.process(process["destination_pid"]) as arrived:
        with Workload(arrived.pid) as there:
            assert there.verify()


def test_a_move_that_cannot_begin_touches_nothing(stage: Stage) -> None:
    """Each with its own exit code, and a sentence that says what to do."""
    nobody = f"{stage.b.address}:1"
    for arguments, code, sentence in (
        (["--to", nobody, stage.pid], 4, "Is an agent listening there?"),
        (["check", "--to", nobody, stage.pid], 4, "Is an agent listening there?"),
        (["--to", "nobody.invalid:1", stage.pid], 4, "nobody.invalid"),
        (["--to", stage.to, "54321"], 3, "There is no process with pid 54321"),
        (["--to", stage.to, "1"], 3, "init"),
        (["--to", stage.to, stage.pid, "2"], 3, "name one pid"),
    ):
        tried = stage.migrate(*arguments)
        assert tried.returncode == code, tried.stderr
        assert tried.stdout == ""
        assert sentence in tried.stderr
    assert stage.migrate("check", "--to", stage.to, stage.pid).returncode == 0
    stage.assert_unharmed()
