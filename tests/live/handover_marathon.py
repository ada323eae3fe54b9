"""One live process that goes to and fro, with a fault in every third move.

    python -m tests.live.handover_marathon [--moves N] [--seed N] [--state DIR]

Says how often it arrived, what its hand-overs cost, and what is left behind; exits with
1 if anything was, or if it did not count every number once. ``--state`` is where the
journals lie: the disk on which they are synced.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from migrate.failpoints import VARIABLE
from migrate.state_directory import VARIABLE as STATE
from migrate.testbed import Host, TestBed
from tests.live.census import leaves, processes
from tests.live.handover import ROOT, compiled, eventually, is_copy, kill
from tests.live.handover_cases import DESTINATION_POINTS, SOURCE_POINTS
from tests.live.stage import MIGRATE, address, inside

FAULTS: Final = ("kill", "raise", "EIO")


class Marathon:
    """The process, and the hosts between which it goes."""

    def __init__(self, bed: TestBed, folder: Path, state: Path, seed: int) -> None:
        self._dice = random.Random(seed)
        self._witness = folder / "witness"
        self._armed = folder / "armed"
        self._armed.write_text("")
        self._state = state
        self.hosts = [bed.host("a"), bed.host("b")]
        self._agents = [
            host.agent(env=self._env(host, f"@{self._armed}")) for host in self.hosts
        ]
        self.codes: Counter[int] = Counter()
        self.handovers_s: list[float] = []
        self.downtimes_s: list[float] = []
        self._before = self._things()
        argv = [str(compiled(folder)), str(self._witness)]
        process = self.hosts[0].popen(argv, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.close()

    def run(self, moves: int) -> None:
        """All of them."""
        for number in range(moves):
            self._move(fails=number % 3 == 2)
            self._assert_one_copy()

    def end(self) -> list[str]:
        """End the process; what is there now and was not before it began."""
        for pid in self._copies():
            kill(pid)
        eventually(lambda: not self._copies(), "it is dead")
        try:
            eventually(lambda: self._things() == self._before, "nothing is left")
        except AssertionError:
            return sorted(self._things() ^ self._before)
        return []

    def _move(self, *, fails: bool) -> None:
        (pid,) = self._copies()
        here = next(h for h in self.hosts if pid in processes(h))
        there = self.hosts[1 - self.hosts.index(here)]
        arming = self._arming() if fails else ""
        at_source = arming.startswith("source.")
        self._armed.write_text("" if at_source else arming)
        to = address(self._agents[self.hosts.index(there)])
        done = here.run(
            [*MIGRATE, "--to", to, "--json", str(inside(pid))],
            env=self._env(here, arming if at_source else ""),
            cwd=ROOT,
        )
        self._armed.write_text("")
        self.codes[done.returncode] += 1
        if done.returncode == 0 and not fails:
            report = json.loads(done.stdout)
            self.handovers_s.append(report["downtime_parts_s"]["handover"])
            self.downtimes_s.append(report["downtime_s"])
        elif not fails:
            print(done.stderr, file=sys.stderr)

    def _arming(self) -> str:
        point = self._dice.choice(SOURCE_POINTS + DESTINATION_POINTS)
        return f"{point}={self._dice.choice(FAULTS)}"

    def _assert_one_copy(self) -> None:
        eventually(
            lambda: len(self._copies()) == 1 and not self._leaves(),
            "one copy, at home",
        )
        count = len(self._lines())
        eventually(lambda: len(self._lines()) > count, "it counts on")
        for number, line in enumerate(self._lines(), 1):
            assert line.split(" ")[1] == str(number), f"{line} instead of {number}"

    def _lines(self) -> list[str]:
        return self._witness.read_text().split("\n")[:-1]

    def _copies(self) -> list[int]:
        witness = os.fsencode(self._witness)
        return [p for h in self.hosts for p in processes(h) if is_copy(p, witness)]

    def _leaves(self) -> list[Path]:
        return [leaf for h in self.hosts for leaf in leaves(h)]

    def _things(self) -> set[str]:
        """Processes, descriptors of the agents, cgroups and journals."""
        found = {f"process {pid}" for h in self.hosts for pid in processes(h)}
        found |= {str(leaf) for leaf in self._leaves()}
        for agent in self._agents:
            fds = os.listdir(f"/proc/{agent.process.pid}/fd")
            found.add(f"agent {agent.process.pid}: {len(fds)} descriptors")
        for folder in ("departures", "arrivals"):
            found |= {str(path) for path in self._state.glob(f"*/{folder}/*")}
        return found

    def _env(self, host: Host, arming: str) -> dict[str, str]:
        return {**os.environ, VARIABLE: arming, STATE: str(self._state / host.name)}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        state = given.state or place / "state"
        with TestBed(shared=[ROOT, place, *([state] if given.state else [])]) as bed:
            marathon = Marathon(bed, place, state, given.seed)
            marathon.run(given.moves)
            left = marathon.end()
    print(f"{given.moves} moves, one copy after each; exit codes {marathon.codes}")
    for name, values in (
        ("hand-over", marathon.handovers_s),
        ("downtime", marathon.downtimes_s),
    ):
        values.sort()
        p99 = values[int(len(values) * 0.99)]
        median = statistics.median(values)
        print(
            f"{name}: median {1000 * median:.2f} ms, p99 {1000 * p99:.2f} ms, "
            f"max {1000 * values[-1]:.2f} ms ({len(values)} moves)"
        )
    print("left behind: " + (", ".join(left) or "nothing"))
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
