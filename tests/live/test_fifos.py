"""FIFOs go with the family that has all their ends, to one of the same name."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.testbed import Host
from tests.live.journey import Road, road
from tests.live.scenarios import harness
from tests.live.scenarios.harness import Scenario, tell_moved

# Each host has a /tmp of its own: what it has there is another pipe.
OWN = "/tmp/fifos"


@pytest.fixture(scope="module")
def between(folder: Path) -> Iterator[Road]:
    """Two hosts with the same FIFOs."""
    with road(folder, harness.build_folder()) as made:
        for host in (made.a, made.b):
            shell(host, f"mkdir {OWN} && mkfifo {OWN}/one {OWN}/two")
        yield made


def shell(host: Host, command: str) -> None:
    """Run it there; it must succeed."""
    done = host.run(["sh", "-c", command])
    assert done.returncode == 0, done.stderr


def test_what_lay_in_them_is_read_over_there(between: Road, folder: Path) -> None:
    with Scenario("fifo", folder, host=between.a) as scenario:
        ready = scenario.ready()
        report = between.move(ready.pid, between.a, between.b).arrived()
        with between.arrived(report, between.b) as arrived:
            tell_moved(arrived.pid, ready)
            assert scenario.verdict() == []
            assert between.b.wait_exit(arrived.pid_inside, 30) == 0


def test_one_that_holds_something_over_there_is_refused(
    between: Road, folder: Path
) -> None:
    """What lies in it is somebody else's; here nothing has changed."""
    place = folder / "refused"
    place.mkdir()
    holds = ["sh", "-c", f"exec 3<> {OWN}/one; echo theirs >&3; echo; exec sleep 1000"]
    with (
        Scenario("fifo", place, host=between.a) as scenario,
        between.b.popen(holds, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout is not None
        other.stdout.readline()
        other.stdout.close()
        ready = scenario.ready()
        refused = between.move(ready.pid, between.a, between.b)
        assert refused.exit_code == 5, refused
        assert f"The FIFO {OWN}/one has something in it here" in refused.stderr
        tell_moved(scenario.process.pid, ready)
        assert scenario.verdict() == []
        other.kill()
        other.wait()


def test_one_that_is_open_elsewhere_is_refused(between: Road) -> None:
    """Named is who has it too."""
    holds = ["sh", "-c", f"exec 3<> {OWN}/one; echo; exec sleep 1000"]
    with (
        between.a.popen(holds, stdout=subprocess.PIPE) as one,
        between.a.popen(holds, stdout=subprocess.PIPE) as other,
    ):
        for process in (one, other):
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
        refused = between.move(one.pid_inside, between.a, between.b)
        assert refused.exit_code == 3
        assert f"is {OWN}/one, which pid {other.pid_inside} has too" in refused.stderr
        for process in (one, other):
            process.kill()
            process.wait()
