"""Two hosts, one counting process, one fault at one point; and who runs afterwards."""

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import migrate
from migrate.failpoints import VARIABLE
from migrate.testbed import Agent, Host, HostProcess, TestBed
from migrate.testbed.errors import TestBedError

ROOT: Final = Path(migrate.__file__).parents[1]
TARGETS: Final = Path(__file__).parent / "targets"
PATIENCE_S: Final = 40.0
_LOOK_AGAIN_S: Final = 0.02
_HANG_S: Final = 4.0  # longer than an answer is waited for


class Fault(Enum):
    """What happens at the point."""

    KILL = "kill"
    RAISE = "raise"
    HANG = "hang"
    ERRNO = "EIO"
    CUT = "cut both ways"
    CUT_TO_DESTINATION = "cut towards the destination"
    CUT_TO_SOURCE = "cut towards the source"


class Who(Enum):
    """Whose agent, or command, ends at the fault beside the one at the point."""

    ONE = "one side"
    BOTH = "both sides"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the sweep."""

    point: str
    fault: Fault
    who: Who = Who.ONE

    def __str__(self) -> str:
        return f"{self.point}: {self.fault.value}, {self.who.value}"


SOURCE_POINTS: Final = (
    "source.frozen.write",
    "source.frozen.journalled",
    "source.go.before_journal",
    "source.go.write",
    "source.go.journalled",
    "source.go.said",
    "source.accepted.heard",
    "source.done.write",
    "source.done.journalled",
)
DESTINATION_POINTS: Final = (
    "destination.ready.write",
    "destination.ready.journalled",
    "destination.ready.said",
    "destination.go.heard",
    "destination.accepted.write",
    "destination.accepted.journalled",
    "destination.thawed",
    "destination.accepted.said",
)


def every_case() -> Iterator[Case]:
    """Every point with every fault; a record can fail with an errno, nothing else."""
    for point in (*SOURCE_POINTS, *DESTINATION_POINTS):
        for fault in Fault:
            if fault is Fault.ERRNO and not point.endswith(".write"):
                continue
            yield Case(point, fault)
            if fault in (Fault.KILL, Fault.HANG, Fault.CUT):
                yield Case(point, fault, Who.BOTH)


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Look again and again: nobody tells us."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not even after {PATIENCE_S} s: {what}"
        select.select([], [], [], _LOOK_AGAIN_S)


def compiled(folder: Path) -> Path:
    """The counting program."""
    program = folder / "counter"
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O1", "-o", str(program)]
    subprocess.run([*command, str(TARGETS / "counter.c")], check=True)
    return program


class Sweep:
    """The hosts and the program, for many cases."""

    def __init__(self, bed: TestBed, folder: Path) -> None:
        self.a, self.b = bed.host("a"), bed.host("b")
        self.folder = folder
        self.program = compiled(folder)
        self._cases = 0

    def play(self, case: Case) -> str:
        """One case; where it ran in the end."""
        self._cases += 1
        with ExitStack() as at_the_end:
            where = Played(self, case, at_the_end, self._cases).run()
        return where


class Played:
    """One case, while it is played."""

    def __init__(self, on: Sweep, case: Case, undo: ExitStack, number: int) -> None:
        self._on = on
        self._case = case
        self._undo = undo
        self._witness = on.folder / f"witness-{number}"
        self._at_source = case.point.startswith("source.")
        self._telling = on.folder / f"tell-{number}"
        self._listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(self._telling))
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)

    def run(self) -> str:
        """Start, fault, heal, and look."""
        self._start()
        with self._moving:
            if self._case.fault in (Fault.RAISE, Fault.ERRNO):
                self._moving_ends()
            else:
                self._suffer()
            self._heal()
            where = self._judge()
            # It has asked as well, and hears what it was told or finds it settled.
            self._moving_ends()
            return where

    def _start(self) -> None:
        on = self._on
        armed = {**os.environ, VARIABLE: f"{self._case.point}={self._how()}"}
        theirs = None if self._at_source else armed
        self._agent = self._begin_agent(on.b, env=theirs)
        self._process = on.a.popen(
            [str(on.program), str(self._witness)], stdout=subprocess.PIPE
        )
        self._undo.callback(self._process.close)
        self._undo.callback(self._end_copies)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        to = f"{self._agent.address}:{self._agent.port}"
        self._moving = on.a.popen(
            [
                *(sys.executable, "-m", "migrate", "--to", to, "-q"),
                *("--tracker", "everything", str(self._process.pid_inside)),
            ],
            env=armed if self._at_source else None,
            stderr=on.folder / "moving.log",
            cwd=ROOT,
        )

    def _how(self) -> str:
        if self._case.fault in (Fault.RAISE, Fault.ERRNO):
            return str(self._case.fault.value)
        return f"tell:{self._telling}"

    def _suffer(self) -> None:
        reached, _ = self._listener.accept()
        with reached:
            reached.recv(100)
            match self._case.fault:
                case Fault.KILL:
                    self._kill(here=self._at_source, there=not self._at_source)
                case Fault.HANG:
                    select.select([], [], [], _HANG_S)
                    self._kill(here=self._at_source, there=not self._at_source)
                case _:
                    self._cut()
            if self._case.who is Who.BOTH:
                self._kill(here=True, there=True)
        if self._case.fault in _CUTS:
            # So long that both sides have noticed.
            select.select([], [], [], 2 * _HANG_S)

    def _kill(self, *, here: bool, there: bool) -> None:
        if here:
            self._moving.kill()
        if there:
            for pid in _workers(self._on.b):
                _kill(pid)
            if self._case.who is Who.BOTH:
                self._agent.process.kill()
                eventually(lambda: not self._agent.process.is_alive(), "it is dead")

    def _cut(self) -> None:
        a, b = self._on.a, self._on.b
        match self._case.fault:
            case Fault.CUT:
                _ip(a, "link", "set", "eth0", "down")
                self._undo.callback(_ip, a, "link", "set", "eth0", "up")
            case Fault.CUT_TO_DESTINATION:
                _ip(a, "route", "add", "blackhole", f"{b.address}/32")
            case Fault.CUT_TO_SOURCE:
                _ip(b, "route", "add", "blackhole", f"{a.address}/32")
            case _:
                raise AssertionError

    def _heal(self) -> None:
        a, b = self._on.a, self._on.b
        match self._case.fault:
            case Fault.CUT:
                _ip(a, "link", "set", "eth0", "up")
            case Fault.CUT_TO_DESTINATION:
                _ip(a, "route", "del", "blackhole", f"{b.address}/32")
            case Fault.CUT_TO_SOURCE:
                _ip(b, "route", "del", "blackhole", f"{a.address}/32")
            case _:
                pass
        if not self._agent.process.is_alive():
            self._begin_agent(b, port=self._agent.port)
        self._begin_agent(a)

    def _begin_agent(
        self, host: Host, *, port: int = 0, env: dict[str, str] | None = None
    ) -> Agent:
        agent = host.agent(port=port, env=env)
        self._undo.callback(agent.process.close)
        self._undo.callback(lambda: agent.process.is_alive() and agent.stop())
        return agent

    def _moving_ends(self) -> None:
        eventually(lambda: not self._moving.is_alive(), "the command ends")

    def _judge(self) -> str:
        eventually(lambda: len(self._running()) == 1, "one copy runs, and is alone")
        (where,) = self._running()
        count = self._last()
        eventually(lambda: self._last() > count + 20, "it counts on")
        assert list(self._running()) == [where]
        self._assert_linear()
        eventually(
            lambda: not any(_leaves(h) for h in (self._on.a, self._on.b)), "no leaf"
        )
        return where

    def _running(self) -> dict[str, int]:
        """The copies that are not frozen and not dead, where there is no other."""
        found: dict[str, int] = {}
        for host in (self._on.a, self._on.b):
            for pid in _processes(host):
                if self._is_copy(pid):
                    found[host.name] = pid
        if any(_is_frozen(pid) for pid in found.values()):
            return {}
        return found

    def _is_copy(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return words[:2] == [
                os.fsencode(self._on.program),
                os.fsencode(self._witness),
            ]
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _last(self) -> int:
        return int(self._witness.read_text().rsplit("\n", 2)[-2])

    def _assert_linear(self) -> None:
        """No number is missing, none comes twice, none comes late."""
        lines = self._witness.read_text().split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            assert line == str(number), f"{line} where {number} was to come"

    def _end_copies(self) -> None:
        for host in (self._on.a, self._on.b):
            for pid in _processes(host):
                if self._is_copy(pid):
                    _kill(pid)


_CUTS: Final = (Fault.CUT, Fault.CUT_TO_DESTINATION, Fault.CUT_TO_SOURCE)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _processes(host: Host) -> set[int]:
    found: set[int] = set()
    for file in (host.cgroup / "cgroup.procs", *host.cgroup.rglob("*/cgroup.procs")):
        try:
            found |= {int(pid) for pid in file.read_text().split()}
        except OSError:
            continue
    return found


def _workers(host: Host) -> list[int]:
    return [
        pid
        for pid in _processes(host)
        if b"arrive" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]


def _leaves(host: Host) -> list[Path]:
    return list(host.cgroup.rglob("migrate-*/"))


def _is_frozen(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "/migrate-arrival" in line or "/migrate-departure" in line


def _ip(host: Host, *arguments: str) -> None:
    done = host.run(["ip", *arguments])
    assert done.returncode == 0, done.stderr


@contextmanager
def sweep(folder: Path) -> Iterator[Sweep]:
    """Two hosts that see ``folder`` and the project."""
    with TestBed(shared=[ROOT, folder]) as bed:
        yield Sweep(bed, folder)


__all__ = ["Case", "Fault", "HostProcess", "Sweep", "TestBedError", "Who", "sweep"]
