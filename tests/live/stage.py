"""A stage for moves that fail: two hosts, programs on one, and a mover to hold.

A mover is held where a test wants it, without a clock: its stderr is a pipe with room
for one message, so it stands still before whatever it is about to say next, and what
that is can be read in its memory.
"""

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import migrate
from migrate.demo import workload
from migrate.demo.workload import Shape, Workload
from migrate.testbed import Agent, Host, HostProcess, TestBed
from tests.live.census import leaves, processes
from tests.live.unharmed import Condition

ROOT: Final = Path(migrate.__file__).parents[1]
MIGRATE: Final = (sys.executable, "-m", "migrate")
_PATIENCE_S: Final = 20.0
_LOOK_AGAIN_S: Final = 0.002
_PIPE_SLOT_BYTES: Final = 4096
_LIBRARY_SIGNALS: Final = 0b11 << 31  # 32 and 33: signal(7)
_SYS_WRITE: Final = "1"  # x86-64


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody tells us of: look again and again."""
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not even after {_PATIENCE_S} s: {what}"
        time.sleep(_LOOK_AGAIN_S)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    said: str  # stderr, without the lines of progress
    report: dict[str, Any]  # what --json gave; empty without

    def assert_failed(self, code: int, *sentences: str) -> None:
        """With this exit code, and with these words in what it says."""
        assert self.code == code, self
        for sentence in sentences:
            assert sentence in self.said, self
        assert "Traceback" not in self.said, self
        first = self.said.strip().splitlines()[-1]
        assert re.search(r"[.)]$", first), f"not a sentence: {first}"
        if self.report:
            assert self.report["exit_code"] == code, self.report
            for reason in self.report["reasons"]:
                assert reason["message"].endswith((".", ")")), reason


class UnderWay:
    """``migrate --to`` in a host; held, or on its way."""

    def __init__(self, host: Host, arguments: Sequence[str]) -> None:
        self._said = b""
        self._events, theirs = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        try:
            # One slot: each message waits until the one before it has been read.
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, _PIPE_SLOT_BYTES)
            os.write(theirs, b"{}\n")
            self.process = host.popen(
                [*MIGRATE, "--json", "--progress", "jsonl", *arguments],
                stdout=subprocess.PIPE,
                stderr=theirs,
                cwd=ROOT,
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> "UnderWay":
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        os.close(self._events)
        self.process.close()

    def hold_before(self, words: str) -> None:
        """Let it go on until it is about to say something with ``words`` in it."""
        while True:
            # Only with the slot taken does it stand still: a thread can also be seen
            # in the middle of a write that has room.
            select.select([self._events], [], [])
            waiting = self._about_to_say()
            if any(words in text for text in waiting):
                return
            if waiting or not self.process.is_alive():
                message = os.read(self._events, _PIPE_SLOT_BYTES)
                assert message, f"it never said {words!r}, but {self._said.decode()}"
                self._said += message
            else:
                time.sleep(_LOOK_AGAIN_S)

    def also_hold_before(self, words: str) -> None:
        """Wait, while it is held, for another of its threads to be held as well."""
        eventually(
            lambda: any(words in text for text in self._about_to_say()),
            f"a thread is about to say {words!r}",
        )

    def end(self) -> Ended:
        """Let it go, and wait for its end."""
        while message := os.read(self._events, _PIPE_SLOT_BYTES):
            self._said += message
        assert self.process.stdout is not None
        report = self.process.stdout.read()
        lines = self._said.decode().splitlines(keepends=True)
        said = "".join(line for line in lines if not line.startswith("{"))
        return Ended(self.process.wait(), said, json.loads(report or "{}"))

    def _about_to_say(self) -> list[str]:
        """What its threads are writing to stderr and have no room for."""
        texts: list[str] = []
        home = Path(f"/proc/{self.process.pid}")
        try:
            for task in (home / "task").iterdir():
                # proc_pid_syscall(5): "running", or number, arguments, sp and pc.
                number, *words = (task / "syscall").read_text().split()
                if number == _SYS_WRITE and int(words[0], 16) == 2:
                    texts.append(_text(home, int(words[1], 16), int(words[2], 16)))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it, or one of its threads, has ended
        return texts


def _text(home: Path, address: int, size: int) -> str:
    with (home / "mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size).decode(errors="replace")


class Actor:
    """The demo's workload, running on a host, and how it was at the beginning."""

    def __init__(self, process: HostProcess, program: Workload) -> None:
        self.process = process
        self.program = program
        eventually(lambda: program.status().beats > 0, "the first thread has begun")
        eventually(lambda: _threads_have_begun(process.pid), "all threads have begun")
        self.before = Condition.of(process.pid)

    @property
    def pid(self) -> str:
        """As its host sees it, for a command line."""
        return str(self.process.pid_inside)

    def assert_unharmed(self) -> None:
        """Outside it looks as before; inside it finds no fault; and it goes on."""
        self.before.assert_same_now()
        beats = self.program.status().beats
        assert self.program.verify(), self.program.status().faults
        status = self.program.status()
        assert not status.faults, status.faults
        assert status.beats > beats or status.period_ns == 0
        self.before.assert_same_now()


class Stage:
    """Two hosts, and an agent on the second."""

    def __init__(self, bed: TestBed, program: Path) -> None:
        self.bed = bed
        self.a, self.b = bed.host("a"), bed.host("b")
        self.workload = program
        self.agent: Agent = self.b.agent()
        self._at_rest = (processes(self.a), processes(self.b))

    @property
    def to(self) -> str:
        """What --to takes."""
        return address(self.agent)

    @contextmanager
    def own_agent(self) -> Iterator[Agent]:
        """One more agent on b, for a test that ends it."""
        agent = self.b.agent()
        try:
            yield agent
        finally:
            agent.process.kill()
            agent.process.wait()
            agent.process.close()

    @contextmanager
    def actor(
        self, size_mib: int = 8, rate_mib_s: int = 5, program: Path | None = None
    ) -> Iterator[Actor]:
        """A workload on a; dead afterwards, wherever it is then."""
        shape = Shape(size_mib=size_mib, rate_mib_s=rate_mib_s)
        process, asked = workload.start(
            shape, program=program or self.workload, host=self.a
        )
        assert isinstance(process, HostProcess)
        with process, asked:
            try:
                yield Actor(process, asked)
            finally:
                self.clear()

    def run(self, *arguments: str, host: Host | None = None) -> Ended:
        """``migrate ARGUMENTS --json`` on a, to its end."""
        done = (host or self.a).run([*MIGRATE, *arguments], cwd=ROOT)
        report = json.loads(done.stdout) if "--json" in arguments else {}
        return Ended(done.returncode, done.stderr, report)

    def move(self, actor: Actor, *options: str) -> Ended:
        """A move of the actor to b, to its end."""
        return self.run("--to", self.to, "--json", *options, actor.pid)

    def begin(self, pid: str, *options: str, to: Agent | None = None) -> UnderWay:
        """A move to b that can be held; a context manager."""
        return UnderWay(self.a, ["--to", address(to or self.agent), *options, pid])

    def worker(self) -> HostProcess:
        """The process on b that receives the arrival of now; the caller closes it."""
        for pid in processes(self.b):
            if b"arrive" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return self.b.process(inside(pid))
        raise AssertionError("nobody receives anything")

    def assert_nothing_left(self, actor: Actor | None = None, *others: int) -> None:
        """No process on either host but those of before, the actor and ``others``; no
        cgroup.
        """
        there = {*others, *({actor.process.pid} if actor else ())}
        rest_a, rest_b = self._at_rest
        eventually(lambda: processes(self.b) == rest_b, "b is as it was")
        eventually(lambda: processes(self.a) == rest_a | there, "a is as it was")
        for host in (self.a, self.b):
            assert leaves(host) == []

    def assert_next_move_works(self, actor: Actor) -> None:
        """What was rolled back is a move that has not been made yet."""
        moved = self.move(actor)
        assert moved.code == 0, moved
        (process,) = moved.report["processes"]
        with self.b.process(process["destination_pid"]) as arrived:
            with Workload(arrived.pid) as there:
                assert there.verify(), there.status().faults
            arrived.kill()

    def clear(self) -> None:
        """End all that has come to the hosts since the beginning."""
        for host, rest in zip((self.a, self.b), self._at_rest, strict=True):
            for pid in processes(host) - rest:
                # One may be at its end by itself.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: (processes(self.a), processes(self.b)) == self._at_rest,
            "both hosts are as they were",
        )
        for host in (self.a, self.b):
            for leaf in leaves(host):
                leaf.rmdir()


def address(agent: Agent) -> str:
    """What --to takes."""
    return f"{agent.address}:{agent.port}"


def _threads_have_begun(pid: int) -> bool:
    """Whether none blocks the C library's own signals, as a new thread does."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    text = "".join((task / "status").read_text() for task in tasks)
    masks = re.findall(r"^SigBlk:\t(.*)$", text, re.MULTILINE)
    return not any(int(mask, 16) & _LIBRARY_SIGNALS for mask in masks)


def blocks_in(process: HostProcess) -> int | None:
    """The number of the system call in which its first thread waits; None: it runs."""
    # proc_pid_syscall(5): "running", or the number first.
    number = Path(f"/proc/{process.pid}/syscall").read_text().split()[0]
    return None if number == "running" else int(number)


def inside(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (numbers,) = re.findall(r"^NSpid:\t(.*)$", status, re.MULTILINE)
    return int(numbers.split()[-1])


@contextmanager
def stage(program: Path) -> Iterator[Stage]:
    """Two hosts that see ``program``, the demo's workload, and the project."""
    with TestBed(shared=[ROOT, program.parent]) as bed:
        yield Stage(bed, program)
