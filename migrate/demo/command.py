"""``migrate demo``: two throw-away hosts, one live program, one move, one result.

Nothing is staged: the agent and the move are the commands that anybody would type,
run inside the hosts; and the last word has the program that was moved.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import migrate
from migrate.demo import workload
from migrate.demo.workload import Shape, Status, Workload, WorkloadError
from migrate.errors import Outcome, printable
from migrate.report import Report, seconds, size
from migrate.testbed import Host, HostProcess, TestBed, TestBedError
from precopy.rounds import RoundRecord

MIB: Final = 1 << 20
_PRIVATE: Final = ("/tmp", "/run")  # where each host has a file system of its own


class DemoFailed(Exception):
    """What did not work; a whole sentence."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the program itself says of its move."""

    status: Status
    is_well: bool


def show(size_bytes: int, rate_bytes_per_s: int, *, as_json: bool) -> int:
    """Give the demo, clean up behind it, and say how it ended as an exit code."""
    try:
        return _Demo(
            Shape(
                size_mib=max(1, size_bytes // MIB),
                rate_mib_s=rate_bytes_per_s // MIB,
            ),
            as_json=as_json,
        ).run()
    except (DemoFailed, TestBedError, WorkloadError) as error:
        print(f"migrate: {printable(str(error))}", file=sys.stderr)
        return Outcome.OUR_BUG.exit_code


class _Demo:
    def __init__(self, shape: Shape, *, as_json: bool) -> None:
        self._shape = shape
        self._as_json = as_json

    def run(self) -> int:
        """The whole story; 0 if the program arrived, and says so itself."""
        if os.geteuid() != 0:
            raise DemoFailed(
                "The demo makes two hosts out of namespaces, which needs root. "
                "Run it with sudo."
            )
        program = workload.compiled()
        with TestBed(shared=hidden(program.parent), private=_PRIVATE) as bed:
            a, b = bed.host("a"), bed.host("b")
            agent = b.agent()
            self._say(
                f"Two hosts on this machine: a ({a.address}) and b ({b.address}), "
                f"with an agent on b, port {agent.port}."
            )
            with ExitStack() as at_the_end:
                process, original = workload.start(self._shape, program=program, host=a)
                assert isinstance(process, HostProcess)
                at_the_end.callback(process.close)
                at_the_end.callback(original.close)
                before = original.status()
                self._say(
                    f"On a: pid {process.pid_inside} with {before.threads} threads, "
                    f"{self._shape.size_mib} MiB of memory, "
                    f"written at {self._shape.rate_mib_s} MiB/s."
                )
                original.forget_gaps()
                peer = f"{b.address}:{agent.port}"
                code, report = self._move(a, peer, process.pid_inside)
                if code != 0 or report is None:
                    return code or Outcome.OUR_BUG.exit_code
                return self._judge(report, _ask(b, report))

    def _move(self, host: Host, peer: str, pid: int) -> tuple[int, Report | None]:
        command = ["migrate", "--to", peer, str(pid)]
        self._say(f"a# {' '.join(command)}\n")
        with host.popen(
            [sys.executable, "-m", *command, "--json"],
            stdout=subprocess.PIPE,
            stderr=sys.stderr.fileno(),
            env={**os.environ, "PYTHONPATH": str(packages())},
        ) as moving:
            assert moving.stdout is not None
            said = moving.stdout.read()
            code = moving.wait()
        if self._as_json:
            sys.stdout.write(said.decode())
        if code != 0:
            return code, None
        return 0, Report.from_json(json.loads(said))

    def _judge(self, report: Report, seen: Seen) -> int:
        faults = seen.status.faults
        if not self._as_json:
            print("\n".join(_result(report, seen)))
        if not seen.is_well or faults:
            raise DemoFailed(f"The program is not what it was: {faults}.")
        return 0

    def _say(self, line: str) -> None:
        out: TextIO = sys.stderr if self._as_json else sys.stdout
        print(line, file=out, flush=True)


def _ask(host: Host, report: Report) -> Seen:
    """Have the program verify itself over there, then let it end."""
    (moved,) = report.processes
    assert moved.destination_pid is not None
    with host.process(moved.destination_pid) as arrived:
        with Workload(arrived.pid) as there:
            is_well = there.verify()
            status = there.status()
            there.quit()
        # It verifies itself once more before it exits.
        return Seen(status, is_well and arrived.wait() == 0)


def _result(report: Report, seen: Seen) -> list[str]:
    status = seen.status
    lines = [_HEAD, *map(_row, report.rounds), ""]
    if report.downtime_s is not None:
        lines.append(f"Downtime              {seconds(report.downtime_s)}")
        parts = report.downtime_parts_s.by_name().items()
        lines += [f"  {name:<20}{seconds(part_s)}" for name, part_s in parts]
    lines += [
        f"The program's own gap {seconds(status.longest_gap.length_s)} "
        f"(it beats every {seconds(status.period_ns / 1e9)})",
        f"In all                {size(report.bytes_wire)} sent in "
        f"{seconds(report.total_s)}",
        "",
    ]
    if seen.is_well and not status.faults:
        lines.append(
            f"It runs on b, and is what it was: {size(status.heap_bytes)} of memory, "
            f"{status.threads} threads, vector registers ({status.vector_bits} bit), "
            "timers and descriptors verified by the program itself."
        )
    return lines


_HEAD: Final = f"{'round':>5} {'pages':>9} {'zero':>9} {'on the wire':>12} {'time':>9}"


def _row(record: RoundRecord) -> str:
    return (
        f"{record.number:>5} {record.pages:>9} {record.zero_pages:>9} "
        f"{size(record.bytes_wire):>12} {seconds(record.duration_s):>9}"
    )


def packages() -> Path:
    return Path(migrate.__file__).parents[1]


def hidden(*ours: Path) -> list[Path]:
    """What we need and a host would hide behind a file system of its own."""
    needed = (*ours, packages(), Path(sys.prefix), Path(sys.base_prefix))
    return [
        path
        for path in dict.fromkeys(path.resolve() for path in needed)
        if any(path.is_relative_to(private) for private in _PRIVATE)
    ]
