"""Every scenario moves to another host while it waits, and then finds nothing odd."""

from pathlib import Path

import pytest

from tests.live.journey import Road
from tests.live.scenarios import harness
from tests.live.scenarios.harness import Scenario, tell_moved

# These are arranged, or told when to go on, in ways of their own by their own tests.
_OTHERS = frozenset(
    {"blocked_family", "blocked_syscalls", "fifo", "restartable_sequence"}
)
SCENARIOS = sorted(
    path.stem for path in harness.HERE.glob("*.c") if path.stem not in _OTHERS
)


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_finds_everything_over_there(name: str, between: Road, folder: Path) -> None:
    """Moved once, it says "ok"."""
    place = folder / name
    place.mkdir()
    with Scenario(name, place, host=between.a) as scenario:
        ready = scenario.ready()
        report = between.move(ready.pid, between.a, between.b).arrived()
        with between.arrived(report, between.b) as arrived:
            tell_moved(arrived.pid, ready)
            assert scenario.verdict() == []
            assert between.b.wait_exit(arrived.pid_inside, 30) == 0
