"""Two throw-away hosts with an agent each, and moves between them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import migrate
from migrate.report import Report
from migrate.testbed import Host, HostProcess, TestBed

ROOT = Path(migrate.__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Moved:
    """What one command did."""

    exit_code: int
    report: dict[str, Any]
    stderr: str

    def arrived(self) -> Report:
        """The report, of a move that must have gone well."""
        assert self.exit_code == 0, f"{self.stderr}\n{self.report}"
        return Report.from_json(self.report)


@dataclass(frozen=True, slots=True)
class Road:
    """Two hosts; ``ports`` are their agents'."""

    a: Host
    b: Host
    ports: dict[str, int]

    def address(self, host: Host) -> str:
        """What --to takes."""
        return f"{host.address}:{self.ports[host.name]}"

    def move(
        self, pid: int, here: Host, there: Host, options: Sequence[str] = ()
    ) -> Moved:
        """``migrate --to there pid`` as typed on ``here``; ``pid`` as seen there."""
        to = self.address(there)
        return self.command(here, ["--to", to, "--json", *options, str(pid)])

    def command(self, here: Host, arguments: Sequence[str]) -> Moved:
        """``migrate`` with any arguments, on one of the hosts."""
        done = here.run([sys.executable, "-m", "migrate", *arguments], cwd=ROOT)
        report = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        return Moved(done.returncode, report, done.stderr)

    def arrived(self, report: Report, there: Host) -> HostProcess:
        """The process that a report says is at ``there`` now."""
        pid = report.processes[0].destination_pid
        assert pid is not None
        return there.process(pid)


@contextmanager
def road(*shared: Path) -> Iterator[Road]:
    """Two hosts that both see the directories ``shared``, and the project."""
    with TestBed(shared=[ROOT, *shared]) as bed:
        a, b = bed.host("a"), bed.host("b")
        yield Road(a, b, {host.name: host.agent().port for host in (a, b)})
