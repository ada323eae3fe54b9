"""Whatever fails at whatever point of a hand-over, one copy goes on where it was.

A few cases here; MIGRATE_SWEEP=all plays them all and takes an hour.
"""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.live.handover import Case, Fault, Sweep, Who, every_case, sweep

A_FEW: Final = (
    Case("source.frozen.journalled", Fault.KILL),
    Case("source.go.write", Fault.ERRNO),
    Case("source.go.journalled", Fault.KILL),
    Case("source.go.journalled", Fault.KILL, Who.BOTH),
    Case("source.go.journalled", Fault.CUT),
    Case("source.go.said", Fault.KILL),
    Case("source.accepted.heard", Fault.RAISE),
    Case("destination.ready.journalled", Fault.KILL),
    Case("destination.go.heard", Fault.KILL),
    Case("destination.accepted.write", Fault.ERRNO),
    Case("destination.accepted.journalled", Fault.KILL),
    Case("destination.accepted.journalled", Fault.KILL, Who.BOTH),
    Case("destination.thawed", Fault.CUT_TO_SOURCE),
)
CASES: Final = (
    tuple(every_case()) if os.environ.get("MIGRATE_SWEEP") == "all" else A_FEW
)


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """The hosts, for all cases."""
    with sweep(tmp_path_factory.mktemp("sweep")) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_copy_goes_on(on: Sweep, case: Case) -> None:
    """Exactly one runs after the agents have started again and the link is healed; and
    it has counted without a gap, and no number twice."""
    print(f"{case}: {on.play(case)}")
