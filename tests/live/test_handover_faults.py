"""Whatever fails at whatever point of a hand-over, one copy goes on where it was.

A few cases here; `make sweep` plays them all.
"""

from pathlib import Path
from typing import Final

from tests.live.handover import sweep
from tests.live.handover_cases import Case, Fault, Who
from tests.live.handover_sweep import played

A_FEW: Final = (
    Case("source.tracked", Fault.KILL),
    Case("source.state.sent", Fault.KILL),
    Case("source.ready.heard", Fault.RAISE),
    Case("source.go.write", Fault.ERRNO),
    Case("source.go.journalled", Fault.KILL),
    Case("source.go.journalled", Fault.CUT),
    Case("source.go.said", Fault.KILL, Who.BOTH),
    Case("source.accepted.heard", Fault.RAISE),
    Case("destination.built", Fault.KILL),
    Case("destination.ready.journalled", Fault.RAISE),
    Case("destination.accepted.write", Fault.ERRNO),
    Case("destination.accepted.journalled", Fault.KILL, Who.BOTH),
    Case("source.leaf.made", Fault.INTERRUPTED),
    Case("destination.ready.journalled", Fault.STOPPED),
    Case("source.go.journalled", Fault.TARGET_KILLED),
    Case("source.ready.heard", Fault.TARGET_KILLED),
    Case("source.offered", Fault.TARGET_EXECUTES),
    Case("source.leaf.made", Fault.TARGET_FORKS),
    Case(
        "source.state.sent", Fault.KILL, Who.BOTH, dies_again_at="recovery.given_back"
    ),
)


def test_one_copy_goes_on(tmp_path: Path) -> None:
    """Exactly one runs after the agents have started again and the link is healed; it
    has counted without a gap, and no number twice; and it holds its locks.

    All in one test: agents that one case kills are started for the next.
    """
    with sweep(tmp_path) as on:
        rows = list(played(on, A_FEW))
    for row in rows:
        print(row)
    assert len(rows) == len(A_FEW)
    assert not [row for row in rows if row.wrong]
