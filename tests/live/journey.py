"""Two throw-away hosts with an agent each, and moves between them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import migrate
from migrate.report import Report
from migrate.testbed import Agent, Host, HostProcess, TestBed

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
    """Two hosts, and the agent of each by the host's name."""

    a: Host
    b: Host
    agents: dict[str, Agent]

    def address(self, host: Host) -> str:
        """What --to takes."""
        return f"{host.address}:{self.agents[host.name].port}"

    def move(
        self, pid: int, here: Host, there: Host, options: Sequence[str] = ()
    ) -> Moved:
        """``migrate --to there pid`` as typed on ``here``; ``pid`` as seen there."""
        to = self.address(there)
        return self.command(here, ["--to", to, "--json", *options, str(pid)])

    def command(self, here: Host, arguments: Sequence[str]) -> Moved:
        """``migrate`` with any arguments, on one of the hosts.

        One that hangs is ended, and says where it was, as do all workers.
        """
        done = here.run(
            [sys.executable, "-X", "faulthandler", "-m", "migrate", *arguments],
            cwd=ROOT,
            on_hang=self._where_is_it,
        )
        report = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        said = done.stderr
        if done.returncode == -signal.SIGABRT:
            said += "".join(agent.log for agent in self.agents.values())
        return Moved(done.returncode, report, said)

    def _where_is_it(self, command: HostProcess) -> None:
        for agent in self.agents.values():
            # They stand with the thread that started them.
            for started in Path(f"/proc/{agent.process.pid}/task").glob("*/children"):
                for worker in map(int, started.read_text().split()):
                    os.kill(worker, signal.SIGABRT)
        command.send_signal(signal.SIGABRT)

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
        env = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        yield Road(a, b, {host.name: host.agent(env=env) for host in (a, b)})
