"""Two hosts, one counting process, one fault at one point; and who runs afterwards."""

import fcntl
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
from pathlib import Path
from typing import Final

import migrate
from migrate.failpoints import VARIABLE
from migrate.kernel import procfs
from migrate.testbed import Agent, Host, TestBed
from migrate.testbed.errors import TestBedError
from precopy.errors import TaskVanished
from precopy.ids import Pid
from tests.live.census import leaves, processes
from tests.live.handover_cases import CUTS, ORDERLY, Case, Fault, Who
from tests.live.unharmed import Condition

ROOT: Final = Path(migrate.__file__).parents[1]
TARGETS: Final = Path(__file__).parent / "targets"
PATIENCE_S: Final = 40.0
LOCKS: Final = ("process", "description", "whole")  # as the counting process has them
_LOOK_AGAIN_S: Final = 0.02
_HANG_S: Final = 4.0  # longer than an answer is waited for
_CUT_S: Final = 6.0  # longer than the source stands still for Ready
_ACT_S: Final = 0.2  # longer than what runs takes to obey a signal
_GONE: Final = ""  # the host of what was killed
# How the command ends when nothing of ours fails, and where it is then.
_ORDERLY_ENDS: Final = {0: "b", 6: "a", 8: _GONE}


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Look again and again: nobody tells us."""
    assert within(PATIENCE_S, holds), f"not even after {PATIENCE_S} s: {what}"


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it holds in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], _LOOK_AGAIN_S)
    return True


def compiled(folder: Path) -> Path:
    """The counting program."""
    program = folder / "counter"
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O1", "-o", str(program)]
    subprocess.run([*command, str(TARGETS / "counter.c")], check=True)
    return program


@dataclass(frozen=True, slots=True)
class Ended:
    """How a case ended, and nothing was wrong with it."""

    where: str  # the host on which it counts on
    code: int  # of the command that moved it
    locks_lost: tuple[str, ...]
    took_s: float


class Sweep:
    """The hosts, their agents and the program, for many cases."""

    def __init__(self, bed: TestBed, folder: Path) -> None:
        self.a, self.b = bed.host("a"), bed.host("b")
        self.folder = folder
        self.program = compiled(folder)
        self.armed = folder / "armed"
        self.armed.write_text("")
        self.port = 0
        self.agents: dict[str, Agent] = {}
        self._cases = 0
        for host in (self.a, self.b):
            self.start_agent(host)

    def play(self, case: Case) -> Ended:
        """One case.

        Raises:
            AssertionError: two copies, or none, or one with a gap.
        """
        self._cases += 1
        began_s = time.monotonic()
        with ExitStack() as at_the_end:
            at_the_end.callback(self.start_missing_agents)
            played = Played(self, case, at_the_end, self._cases)
            where = played.run()
            return Ended(
                where, played.code, played.locks_lost(), time.monotonic() - began_s
            )

    def start_agent(self, host: Host) -> None:
        """An agent whose workers do at a point what the file ``armed`` says."""
        env = {**os.environ, VARIABLE: f"@{self.armed}"} if host is self.b else None
        port = self.port if host is self.b else 0
        self.agents[host.name] = agent = host.agent(port=port, env=env)
        if host is self.b:
            self.port = agent.port

    def start_missing_agents(self) -> None:
        """Where one was killed. There first: what holds locks there is to be ended."""
        for host in (self.b, self.a):
            if not self.agents[host.name].process.is_alive():
                self.agents[host.name].process.wait()
                self.agents[host.name].process.close()
                self.start_agent(host)

    def kill_agents(self) -> None:
        """As if nobody had ever run one."""
        for agent in self.agents.values():
            agent.process.kill()
        eventually(
            lambda: not any(a.process.is_alive() for a in self.agents.values()),
            "they are dead",
        )

    def die_in_recovery(self, host: Host, point: str) -> None:
        """An agent starts there, and is killed at the point while it recovers."""
        env = {**os.environ, VARIABLE: f"{point}=kill"}
        try:
            agent = host.agent(env=env)
        except TestBedError:
            return  # before it could say where it listens
        eventually(lambda: not agent.process.is_alive(), f"it has come to {point}")
        agent.process.close()


class Played:
    """One case, while it is played."""

    def __init__(self, on: Sweep, case: Case, undo: ExitStack, number: int) -> None:
        self._on = on
        self._case = case
        self._undo = undo
        self._witness = on.folder / f"witness-{number}"
        self._telling = on.folder / f"tell-{number}"
        self._listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(self._telling))
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)
        self.code = 0
        self._acted = False
        self._is_cut = False

    def run(self) -> str:
        """Start, fault, heal, and look."""
        self._start()
        with self._moving:
            if self._case.fault in (Fault.RAISE, Fault.ERRNO):
                self._moving_ends()
            else:
                self._suffer()
            self._heal()
            # Also one in doubt: it asks until it hears, or finds it settled.
            self._moving_ends()
            return self._judge()

    def _start(self) -> None:
        on, case = self._on, self._case
        arming = f"{case.point}={self._how()}"
        on.armed.write_text("" if case.at_source else arming)
        self._undo.callback(on.armed.write_text, "")
        self._process = on.a.popen(
            [str(on.program), str(self._witness)], stdout=subprocess.PIPE
        )
        self._undo.callback(self._process.close)
        self._undo.callback(self._end_copies)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        eventually(lambda: len(self._lines()) > 2, "it counts")
        self._before = Condition.of(self._process.pid)
        env = {**os.environ, VARIABLE: arming} if case.at_source else None
        self._moving = on.a.popen(
            [
                *(sys.executable, "-m", "migrate"),
                *("--to", f"{on.b.address}:{on.port}", "-q"),
                str(self._process.pid_inside),
            ],
            env=env,
            stderr=on.folder / "moving.log",
            cwd=ROOT,
        )

    def _how(self) -> str:
        if self._case.fault in (Fault.RAISE, Fault.ERRNO):
            return str(self._case.fault.value)
        return f"tell:{self._telling}"

    def _suffer(self) -> None:
        try:
            reached, _ = self._listener.accept()
        except TimeoutError:
            raise AssertionError(f"it never came to {self._case.point}") from None
        self._on.armed.write_text("")
        with reached:
            reached.recv(100)
            match self._case.fault:
                case Fault.KILL:
                    self._kill()
                case Fault.HANG:
                    within(_HANG_S, self._moving_has_ended)
                    self._kill()
                case Fault.INTERRUPTED:
                    self._moving.send_signal(signal.SIGINT)
                case Fault.STOPPED:
                    self._on.agents["b"].process.send_signal(signal.SIGTERM)
                case Fault.TARGET_KILLED:
                    kill(self._process.pid)
                case Fault.TARGET_FORKS:
                    self._have_it_act(signal.SIGUSR1)
                case Fault.TARGET_EXECUTES:
                    self._have_it_act(signal.SIGUSR2)
                case _:
                    self._cut()
                    if self._case.who is Who.BOTH:
                        self._kill()
        if self._case.fault in CUTS:
            # So long that both sides have noticed, unless they are long done.
            within(_CUT_S, self._moving_has_ended)

    def _have_it_act(self, number: signal.Signals) -> None:
        """Now if it runs; if not, when it runs again."""
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return  # it lives elsewhere by now
        self._acted = within(_ACT_S, lambda: _has_taken(self._process.pid))

    def _kill(self) -> None:
        both = self._case.who is Who.BOTH
        if both:
            self._on.kill_agents()
        if both or self._case.at_source:
            self._moving.kill()
        if both or not self._case.at_source:
            for pid in _workers(self._on.b):
                kill(pid)

    def _cut(self) -> None:
        self._set_link(is_up=False)
        self._is_cut = True
        self._undo.callback(self._mend)

    def _mend(self) -> None:
        if self._is_cut:
            self._is_cut = False
            self._set_link(is_up=True)

    def _set_link(self, *, is_up: bool) -> None:
        a, b = self._on.a, self._on.b
        match self._case.fault:
            case Fault.CUT:
                _ip(a, "link", "set", "eth0", "up" if is_up else "down")
            case Fault.CUT_TO_DESTINATION:
                _swallow(a, b.address, is_swallowed=not is_up)
            case _:
                _swallow(b, a.address, is_swallowed=not is_up)

    def _heal(self) -> None:
        a, b = self._on.a, self._on.b
        self._mend()
        self._on.armed.write_text("")
        if self._case.dies_again_at:
            host = a if self._case.recovers_at_source else b
            self._on.die_in_recovery(host, self._case.dies_again_at)
        if self._case.fault is Fault.STOPPED:
            assert self._on.agents["b"].process.wait(PATIENCE_S) == 0
        self._on.start_missing_agents()

    def _moving_has_ended(self) -> bool:
        return not self._moving.is_alive()

    def _moving_ends(self) -> None:
        eventually(self._moving_has_ended, "the command ends")
        self.code = self._moving.wait()

    def _judge(self) -> str:
        if self._case.fault in ORDERLY:
            assert self.code in _ORDERLY_ENDS, f"the command ended with {self.code}"
        if self._case.fault is Fault.TARGET_KILLED and self.code == 8:
            eventually(lambda: not self._copies(), "it is gone")
            self._assert_no_leaf()
            return _GONE
        eventually(lambda: len(self._running()) == 1, "one copy runs, and is alone")
        (where,) = self._running()
        count = len(self._lines())
        eventually(lambda: len(self._lines()) > count + 20, "it counts on")
        assert list(self._running()) == [where]
        self._assert_linear(where)
        self._assert_no_leaf()
        if where == "a" and not self.locks_lost() and not self._has_changed():
            self._before.assert_same_now()
        expected = self._case.ends_at()
        if self._case.fault in ORDERLY:
            expected = _ORDERLY_ENDS[self.code]
        assert expected in (None, where), f"it counts on {where}, not on {expected}"
        # A signal that comes once its state was read ends with the copy here.
        is_sure = self._acted or where == "a"
        if self._case.fault is Fault.TARGET_FORKS and is_sure:
            eventually(lambda: len(self._copies()) == 2, "it has its child")
        return where

    def _assert_no_leaf(self) -> None:
        eventually(
            lambda: not any(leaves(h) for h in (self._on.a, self._on.b)), "no leaf"
        )

    def _has_changed(self) -> bool:
        return self._case.fault in (Fault.TARGET_FORKS, Fault.TARGET_EXECUTES)

    def _copies(self) -> list[int]:
        """Those that are not dead, and what they have forked."""
        return [
            pid
            for host in (self._on.a, self._on.b)
            for pid in processes(host)
            if self._is_copy(pid)
        ]

    def _running(self) -> dict[str, int]:
        """The copies that are not frozen and not dead, where there is no other."""
        found: dict[str, int] = {}
        for host in (self._on.a, self._on.b):
            for pid in processes(host):
                if self._is_copy(pid):
                    found[host.name] = pid
        if any(_is_frozen(pid) for pid in found.values()):
            return {}
        return found

    def _is_copy(self, pid: int) -> bool:
        return is_copy(pid, os.fsencode(self._witness))

    def _lines(self) -> list[str]:
        try:
            return self._witness.read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []

    def _assert_linear(self, where: str) -> None:
        """No number is missing, none comes twice, none comes late; and once it has
        been counted over there, it is counted nowhere else."""
        here = "a"
        for number, line in enumerate(self._lines(), 1):
            host, counted = line.split(" ")
            assert counted == str(number), f"{line} where {number} was to come"
            assert host >= here, f"it counted on {here}, and then again on {host}"
            here = host
        assert here == where

    def locks_lost(self) -> tuple[str, ...]:
        """Those that somebody else can have now, though it counts on with them."""
        if not self._copies():
            return ()
        held = held_locks(str(self._witness))
        return tuple(name for name in LOCKS if name not in held)

    def _end_copies(self) -> None:
        for host in (self._on.a, self._on.b):
            for pid in processes(host):
                if self._is_copy(pid):
                    kill(pid)
        self._assert_no_leaf()


def held_locks(witness: str) -> tuple[str, ...]:
    """Those of the counting process with that witness that nobody else can have."""
    return tuple(
        name
        for name in LOCKS
        if not _can_lock(Path(f"{witness}.{name}"), whole=name == "whole")
    )


def _can_lock(path: Path, *, whole: bool) -> bool:
    with path.open("r+") as file:
        lock = fcntl.flock if whole else fcntl.lockf
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def is_copy(pid: int, witness: bytes) -> bool:
    """Whether it is the counting process with that witness."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return words[0].endswith(b"/counter") and words[1:2] == [witness]


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _workers(host: Host) -> list[int]:
    return [pid for pid in processes(host) if _is_worker(pid)]


def _is_worker(pid: int) -> bool:
    try:
        return b"arrive" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _has_taken(pid: int) -> bool:
    """Whether it lives and has no signal that it has not taken yet."""
    try:
        status = procfs.status(Pid(pid))
    except TaskVanished:
        return False
    return status.state not in "ZX" and not status.signals.shared_pending


def _is_frozen(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "/migrate-arrival" in line or "/migrate-departure" in line


def _swallow(host: Host, address: str, *, is_swallowed: bool) -> None:
    """Whatever ``host`` sends there is lost, or is not any more."""
    verb = "add" if is_swallowed else "del"
    _ip(host, "route", verb, "blackhole", f"{address}/32")


def _ip(host: Host, *arguments: str) -> None:
    done = host.run(["ip", *arguments])
    assert done.returncode == 0, done.stderr


@contextmanager
def sweep(folder: Path) -> Iterator[Sweep]:
    """Two hosts that see ``folder`` and the project."""
    with TestBed(shared=[ROOT, folder]) as bed:
        yield Sweep(bed, folder)
