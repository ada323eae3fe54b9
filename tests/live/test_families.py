"""Families move: back and forth, called off, and while they are born and end."""

import signal
from pathlib import Path

import pytest

from migrate.kernel import lineage
from precopy.ids import Pid
from tests.live.journey import Road
from tests.live.scenarios.harness import Ready, Scenario, tell_moved
from tests.live.stage import UnderWay
from tests.live.unharmed import Condition

FAMILIES = ["family", "inherited"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tracker", ["auto", "everything"])
def test_there_and_back_again(
    name: str, tracker: str, between: Road, folder: Path
) -> None:
    place = folder / f"back-{name}-{tracker}"
    place.mkdir()
    a, b, options = between.a, between.b, ["--tracker", tracker]
    with Scenario(name, place, host=a) as scenario:
        ready = scenario.ready()
        first = between.move(ready.pid, a, b, options).arrived()
        assert scenario.process.wait() == -9
        back = between.move(ready.pid, b, a, options).arrived()
        assert len(first.processes) == len(back.processes) > 1
        with between.arrived(back, a) as arrived:
            tell_moved(arrived.pid, ready)
            assert scenario.verdict() == []
            assert a.wait_exit(arrived.pid_inside, 30) == 0


@pytest.mark.parametrize("name", [*FAMILIES, "shared_memory"])
def test_in_a_pid_namespace_of_its_own(name: str, between: Road, folder: Path) -> None:
    """Its numbers are what they were, seen by the family itself."""
    place = folder / f"own-{name}"
    place.mkdir()
    a, b = between.a, between.b
    with Scenario(name, place, host=a) as scenario:
        ready = scenario.ready()
        options = ["--pid", "new-namespace"]
        report = between.move(ready.pid, a, b, options).arrived()
        with between.arrived(report, b) as arrived:
            tell_moved(arrived.pid, ready)
            assert scenario.verdict() == []


@pytest.mark.parametrize("name", [*FAMILIES, "shared_memory"])
@pytest.mark.parametrize("phase", ["round_started", "freezing"])
def test_called_off_it_is_unharmed(
    name: str, phase: str, between: Road, folder: Path
) -> None:
    """It finds nothing odd, and everybody looks as before."""
    place = folder / f"off-{name}-{phase}"
    place.mkdir()
    with Scenario(name, place, host=between.a) as scenario:
        ready = scenario.ready()
        before = _conditions(scenario)
        to = between.address(between.b)
        with UnderWay(between.a, ["--to", to, str(ready.pid)]) as moving:
            moving.hold_before(phase)
            moving.process.send_signal(signal.SIGINT)
            moving.also_hold_before("Calling it off.")
            moving.end().assert_failed(6, "called off", "runs on here")
        for condition in before:
            condition.assert_same_now()
        _go_on(scenario, ready)


def _conditions(scenario: Scenario) -> list[Condition]:
    family = lineage.family(Pid(scenario.process.pid))
    assert len(family) > 1
    return [Condition.of(relative.pid) for relative in family]


def _go_on(scenario: Scenario, ready: Ready) -> None:
    tell_moved(scenario.process.pid, ready)
    assert scenario.verdict() == []
    assert scenario.process.wait() == 0
