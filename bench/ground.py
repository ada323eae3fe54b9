"""Two hosts of a test bed, and moves between them with the real commands.

The command and the agent each run in a cgroup of their own, which counts the CPU time
of all their processes to the microsecond (cpu.stat, Documentation/admin-guide/
cgroup-v2.rst), with no part of the workload in it.
"""

import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from migrate.demo.command import hidden, packages
from migrate.report import Report
from migrate.testbed import Agent, Host, HostProcess, TestBed, TestBedError

_DEADLINE_S: Final = 900.0
_LOG_CHARACTERS_MAX: Final = 1500
_MADV_POPULATE_WRITE: Final = 23  # <linux/mman.h>
_SPARE_BYTES: Final = 512 << 20
# Into the cgroup first, so that not even the start of Python is left out.
_ENTER: Final = 'echo 0 >"$0/cgroup.procs" && exec "$@"'


class TrialFailed(Exception):
    """A run that did not end as it should; a whole sentence."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One command that brought a process over; times of CLOCK_MONOTONIC."""

    report: Report
    began_ns: int
    ended_ns: int
    source_cpu_s: float
    destination_cpu_s: float

    @property
    def command_s(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


class Ground:
    """``a``, and ``b`` with an agent."""

    def __init__(self, a: Host, b: Host, module: str = "migrate") -> None:
        self.a: Final = a
        self.b: Final = b
        self._module = module
        self._agent: Final[Agent] = b.agent(module=module)
        self._agent_cgroup = b.cgroup / "agent"
        self._agent_cgroup.mkdir()
        for pid in (b.cgroup / "cgroup.procs").read_text().split():
            if int(pid) != b.pid:
                (self._agent_cgroup / "cgroup.procs").write_text(pid)
        self._command_cgroup = a.cgroup / "command"
        self._command_cgroup.mkdir()

    def move(self, pid_inside: int, options: Sequence[str] = ()) -> Moved:
        """Move a process of ``a`` to ``b``.

        Raises:
            TrialFailed: it did not arrive, with what the command said.
        """
        to = f"{self.b.address}:{self._agent.port}"
        command = [sys.executable, "-m", self._module, "--to", to, "--json", *options]
        source_s, destination_s = self._cpu_s()
        logged = len(self._agent.log)
        began_ns = time.monotonic_ns()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            code = self._run([*command, str(pid_inside)], out, errors)
            ended_ns = time.monotonic_ns()
            said, complaint = _all_of(out), _all_of(errors)
        source_after_s, destination_after_s = self._cpu_s()
        if code != 0:
            there = self._agent.log[logged:][-_LOG_CHARACTERS_MAX:]
            raise TrialFailed(
                f"The move ended with {code}: {complaint.strip()} "
                f"The agent logged: {there.strip() or 'nothing.'}"
            )
        report = Report.from_json(json.loads(said))
        return Moved(
            report=report,
            began_ns=began_ns,
            ended_ns=ended_ns,
            source_cpu_s=source_after_s - source_s,
            destination_cpu_s=destination_after_s
            - destination_s
            - self._own_cpu_s(report),
        )

    def arrived(self, report: Report) -> HostProcess:
        """The process at ``b`` that ``report`` is about; the caller closes it.

        Raises:
            TrialFailed: it has ended.
        """
        pid = report.processes[0].destination_pid
        assert pid is not None
        try:
            return self.b.process(pid)
        except TestBedError as error:
            raise TrialFailed(f"It arrived, and ended at once: {error}") from error

    def _run(self, argv: Sequence[str], out: IO[bytes], errors: IO[bytes]) -> int:
        with self.a.popen(
            ["sh", "-c", _ENTER, str(self._command_cgroup), *argv],
            stdout=out,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(packages())},
        ) as moving:
            try:
                return moving.wait(_DEADLINE_S)
            except TimeoutError:
                moving.kill()
                raise TrialFailed(
                    f"The move was not over after {_DEADLINE_S:.0f} s."
                ) from None

    def _cpu_s(self) -> tuple[float, float]:
        return _used_s(self._command_cgroup), _used_s(self._agent_cgroup)

    def _own_cpu_s(self, report: Report) -> float:
        """What the process itself has used at ``b``: it was born to the agent."""
        with self.arrived(report) as process:
            tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
            # The first number: nanoseconds on a CPU. proc_pid_schedstat(5)
            return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def ground(*programs: Path, module: str = "migrate") -> Iterator[Ground]:
    """Two fresh hosts on which ``programs`` can be found; ``module`` is what is run."""
    # A host has a /tmp and a /run of its own; what we need must not lie under them.
    shared = hidden(*(program.parent for program in programs))
    with TestBed(shared=shared) as bed:
        yield Ground(bed.host("a"), bed.host("b"), module)


def warm(size_bytes: int, *, huge: bool = False) -> None:
    """Touch that much memory and give it back.

    A virtual machine hands memory that it does not use back to its host, and to get a
    page again takes ten times as long as to find one. Do so just before a run: it goes
    back within seconds.

    Raises:
        TrialFailed: there is not that much.
    """
    free_bytes = _available_bytes()
    if free_bytes < size_bytes + _SPARE_BYTES:
        raise TrialFailed(
            f"The run needs {size_bytes >> 20} MiB of memory and some to spare, and "
            f"{free_bytes >> 20} MiB are there."
        )
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, size_bytes, flags=flags) as memory:
        if huge:
            memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(_MADV_POPULATE_WRITE)


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise AssertionError("proc_meminfo(5) has MemAvailable since Linux 3.14")


def _used_s(cgroup: Path) -> float:
    for line in (cgroup / "cpu.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec":
            return int(value) / 1e6
    raise TrialFailed(f"{cgroup} does not count CPU time (cpu.stat).")


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


__all__ = ["Ground", "Moved", "TrialFailed", "ground", "warm"]
