"""Who waits in a system call sees neither EINTR nor an early end, whatever we do.

Goal: each call, at a stop as of pre-copy, a freeze that is undone, and a whole move.
docs/kinds.md has the table that comes of it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrate import failpoints
from migrate.kernel.sleepers import Sleepers
from migrate.kernel.tracee import Tracee
from precopy.ids import Pid
from tests.live.journey import ROOT, Road
from tests.live.scenarios.harness import Scenario, tell_moved

NAMES = ["blocked_syscalls", "blocked_family"]


def test_stops_are_not_noticed(tmp_path: Path) -> None:
    """Also not by those who wait for what cannot go: they may be stopped in vain."""
    with Scenario("blocked_family", tmp_path, "stay") as scenario:
        ready = scenario.ready()
        pid = Pid(scenario.process.pid)
        sleepers = Sleepers(pid)
        for _ in range(3):
            sleepers.look()
            tracee = Tracee.seize(pid)
            try:
                sleepers.spare(tracee)
            finally:
                tracee.detach()
        tell_moved(scenario.process.pid, ready)
        assert scenario.verdict() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_freeze_that_is_undone_is_not_noticed(
    name: str, between: Road, folder: Path
) -> None:
    """All was sent, and the copy was ready: then the source gives up."""
    place = folder / f"undone-{name}"
    place.mkdir()
    with Scenario(name, place, "sockets", host=between.a) as scenario:
        ready = scenario.ready()
        to = between.address(between.b)
        with between.a.popen(
            [sys.executable, "-m", "migrate", "--to", to, str(ready.pid)],
            stderr=subprocess.PIPE,
            env={**os.environ, failpoints.VARIABLE: "source.ready.heard=EIO"},
            cwd=ROOT,
        ) as mover:
            assert mover.stderr is not None
            said = mover.stderr.read().decode()
            assert mover.wait() == 6, said
        tell_moved(scenario.process.pid, ready)
        assert scenario.verdict() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_move_is_not_noticed(name: str, between: Road, folder: Path) -> None:
    place = folder / f"moved-{name}"
    place.mkdir()
    with Scenario(name, place, "sockets", host=between.a) as scenario:
        ready = scenario.ready()
        report = between.move(ready.pid, between.a, between.b).arrived()
        with between.arrived(report, between.b) as arrived:
            tell_moved(arrived.pid, ready)
            assert scenario.verdict() == []
            assert between.b.wait_exit(arrived.pid_inside, 30) == 0
