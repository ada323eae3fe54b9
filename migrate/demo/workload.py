"""The demo's workload, from outside: compile it, start it, ask it how it is.

``workload.c`` says what it does. It can be asked wherever it lives, since all goes
through its memory: after a move, open a new Workload with the pid over there.
"""

import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from migrate.demo import compiling
from migrate.demo.compiling import WorkloadError
from migrate.kernel.pidfds import PidFd
from migrate.testbed import Host, HostProcess
from precopy.errors import TaskVanished
from precopy.ids import Pid
from precopy.task_memory import TaskMemory

HERE: Final = Path(__file__).parent
CONTROL_SOURCES: Final = ("control.c", "control.h", "heap.c", "heap.h")
SOURCES: Final = ("workload.c", "vectors.c", "vectors.h", *CONTROL_SOURCES)
CONTROL_ADDRESS: Final = 0x100_0000_0000
MAGIC: Final = 0x31444C4B524F574D
_CONTROL: Final = struct.Struct("<Q6I27Q")
_COMMAND_AT: Final = 12
_GAP_VERSION_INDEX: Final = 14
_GAPS_AT: Final = 4096
_GAPS_MAX: Final = 768
_GAP: Final = struct.Struct("<QQ")
_LOOK_AGAIN_S: Final = 0.002


class _Command(IntEnum):
    VERIFY = 1
    QUIT = 2
    FORGET_GAPS = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """What to start; see the head of workload.c."""

    size_mib: int = 64
    rate_mib_s: int = 0
    threads: int = 5
    period_us: int = 1000
    huge: bool = False
    descriptors: bool = True

    def arguments(self) -> list[str]:
        """As the program takes them."""
        numbers = (self.size_mib, self.rate_mib_s, self.threads, self.period_us)
        choices = (self.huge, self.descriptors)
        return [*map(str, numbers), *("yes" if choice else "no" for choice in choices)]


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without a heartbeat, between two stamps of CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int

    @property
    def length_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Faults:
    """How often the workload was not what it had been; see control.h."""

    interrupted: int
    clock_backwards: int
    vector_wrong: int
    memory_wrong: int
    memory_wrong_at: int
    timers_wrong: int
    descriptors_wrong: int
    threads_wrong: int
    calls_failed: int
    last_errno: int

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Status:
    """The control area of control.h at one moment, field by field."""

    ready: bool
    answer: int
    threads: int
    vector_bits: int
    quitting: bool
    answers: int
    heap_address: int
    heap_bytes: int
    period_ns: int
    rate_bytes_per_s: int
    beats: int
    last_beat_ns: int
    longest_gap: Gap
    gap_threshold_ns: int
    gaps_seen: int
    pages_written: int
    checksum: int
    vector_rounds: int
    timerfd_ticks: int
    signals: int
    faults: Faults


def _status(words: tuple[int, ...]) -> Status:
    _, ready, _, answer, threads, vector_bits, quitting, *long_words = words
    answers, heap_address, heap_bytes, period_ns, rate, beats, last, _ = long_words[:8]
    start_ns, end_ns, threshold_ns, gaps_seen, pages_written = long_words[8:13]
    checksum, vector_rounds, timerfd_ticks, signals = long_words[13:17]
    return Status(
        ready=bool(ready),
        answer=answer,
        threads=threads,
        vector_bits=vector_bits,
        quitting=bool(quitting),
        answers=answers,
        heap_address=heap_address,
        heap_bytes=heap_bytes,
        period_ns=period_ns,
        rate_bytes_per_s=rate,
        beats=beats,
        last_beat_ns=last,
        longest_gap=Gap(start_ns, end_ns),
        gap_threshold_ns=threshold_ns,
        gaps_seen=gaps_seen,
        pages_written=pages_written,
        checksum=checksum,
        vector_rounds=vector_rounds,
        timerfd_ticks=timerfd_ticks,
        signals=signals,
        faults=Faults(*long_words[17:]),
    )


def compiled(folder: Path | None = None) -> Path:
    """The program; see compiling.compiled().

    Raises:
        WorkloadError: there is no compiler, or it complained.
    """
    return compiling.compiled("workload", [HERE / name for name in SOURCES], folder)


def start(
    shape: Shape, *, program: Path, host: Host | None = None
) -> tuple[HostProcess | subprocess.Popen[bytes], "Workload"]:
    """Start it, in ``host`` or beside us, and wait until it has filled its memory.

    Both are the caller's to close.

    Raises:
        WorkloadError: it did not come up; what it said.
    """
    return launch([str(program), *shape.arguments()], host=host)


def launch(
    argv: Sequence[str], *, host: Host | None = None
) -> tuple[HostProcess | subprocess.Popen[bytes], "Workload"]:
    """Start any program with the control area of control.h, like ``start``."""
    process: HostProcess | subprocess.Popen[bytes]
    # It lets go of both as soon as it is ready: a pipe to us could not be moved.
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    if host is not None:
        process = host.popen(argv, stdout=pipe, stderr=same)
    else:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=same,
            cwd="/",
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    if said != b"ready\n":
        code = process.wait()
        raise WorkloadError(
            f"The workload ended with {code} before it was ready: {said.decode()}"
        )
    return process, Workload(process.pid)


class Workload:
    """A running workload, asked through its memory; a context manager."""

    def __init__(self, pid: int) -> None:
        """``pid`` is the workload as we see it; we need the right to ptrace it."""
        self._memory = TaskMemory(Pid(pid))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its memory; it lives on."""
        self._memory.close()

    def status(self) -> Status:
        """How it is now; works also while it is frozen.

        Raises:
            TaskVanished: it has ended.
        """
        while True:
            before, after = (
                _CONTROL.unpack(self._memory.read(CONTROL_ADDRESS, _CONTROL.size))
                for _ in range(2)
            )
            if before[0] != MAGIC:
                raise WorkloadError(f"Process {self._memory.pid} is no workload.")
            version = before[_GAP_VERSION_INDEX]
            if version % 2 == 0 and version == after[_GAP_VERSION_INDEX]:
                return _status(before)

    def gaps(self) -> list[Gap]:
        """The last gaps above Status.gap_threshold_ns, oldest first; 768 at most."""
        seen = self.status().gaps_seen
        data = self._memory.read(CONTROL_ADDRESS + _GAPS_AT, _GAPS_MAX * _GAP.size)
        ring = [Gap(*words) for words in _GAP.iter_unpack(data)]
        first = max(0, seen - _GAPS_MAX)
        return [ring[number % _GAPS_MAX] for number in range(first, seen)]

    def verify(self, deadline_s: float = 60.0) -> bool:
        """Have it check all its memory and everything else; True if all is well.

        Raises:
            TimeoutError: it does not answer, for instance because it is frozen.
            TaskVanished: it has ended.
        """
        return self._ask(_Command.VERIFY, deadline_s)

    def forget_gaps(self, deadline_s: float = 60.0) -> None:
        """Begin to look for the longest gap anew, with the next beat."""
        self._ask(_Command.FORGET_GAPS, deadline_s)

    def quit(self) -> None:
        """Have it verify itself a last time and exit, with 0 if all is well."""
        self._command(_Command.QUIT)

    def _command(self, command: _Command) -> None:
        packed = int(command).to_bytes(4, "little")
        self._memory.write(CONTROL_ADDRESS + _COMMAND_AT, packed)

    def _ask(self, command: _Command, deadline_s: float) -> bool:
        answers = self.status().answers
        self._command(command)
        deadline = time.monotonic() + deadline_s
        # Nothing tells us of a change in the memory of another process, only of its
        # end; so look again and again.
        with PidFd.open(self._memory.pid) as process:
            while (status := self.status()).answers == answers:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"Process {self._memory.pid} has not answered {command.name} "
                        f"within {deadline_s} s."
                    )
                process.wait(_LOOK_AGAIN_S)
        return status.answer == 1


__all__ = [
    "Faults",
    "Gap",
    "Shape",
    "Status",
    "TaskVanished",
    "Workload",
    "WorkloadError",
    "compiled",
    "launch",
    "start",
]
