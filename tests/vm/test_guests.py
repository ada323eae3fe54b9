"""What holds on this kernel holds on others, as far as they can.

Each test boots a stock kernel and runs tests of tests/live in it, in one Python
process: starting one takes seconds there. `make test` takes the few that say most,
`make vm` all (GUESTS=thorough).
"""

import compileall
import os
import re
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.vm import guest, kernels

ROOT: Final = Path(__file__).parents[2]
QUICK_S: Final = 600.0  # of a machine that does much else; two minutes otherwise
THOROUGH_S: Final = 3600.0
THOROUGH: Final = os.environ.get("GUESTS") == "thorough"

TRACKER = "tests/live/test_tracker.py"
SOFT_DIRTY = "tests/live/test_tracker_soft_dirty.py"
MOVE = "tests/live/test_move.py::test_a_working_program_goes_on_over_there"


def pass_in_a_guest(
    kernel: str, *selection: str, timeout_s: float, skips: str = "$^", cpu: str = "max"
) -> None:
    """Run tests on ``kernel``; no more may be skipped than ``skips`` has a reason for.

    A guest that runs nothing would pass for one where all is well.
    """
    # The guest cannot keep what it compiles, and would do it for each Python it starts.
    for package in ("migrate", "precopy", "transport", "tests"):
        compileall.compile_dir(ROOT / package, quiet=1)
    try:
        done = guest.run(
            kernels.kernel(kernel),
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
                *("-q", "-rs", "--tb=short", f"--timeout={timeout_s:.0f}", *selection),
            ],
            folder=ROOT,
            timeout_s=timeout_s,
            cpu=cpu,
        )
    except kernels.CannotHave as error:
        pytest.skip(str(error))
    told = f"{done.output}\nThe guest's log ended:\n{done.log}"
    assert done.status == 0, told
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+ (.*)", done.output, re.MULTILINE)
    assert all(re.search(skips, reason) for reason in reasons), told


@pytest.mark.vm
@pytest.mark.timeout(2 * QUICK_S)
def test_with_soft_dirty_alone_nothing_is_missed() -> None:
    """Linux 6.1: marks are read from pagemap."""
    pass_in_a_guest(
        "6.1",
        SOFT_DIRTY,
        f"{TRACKER}::test_the_destination_equals_the_frozen_source[soft_dirty-0]",
        # How an eventfd counts is not in fdinfo there.
        *("tests/live/test_descriptor_kinds.py", "-k", "soft_dirty or eventfd"),
        timeout_s=QUICK_S,
    )


@pytest.mark.vm
@pytest.mark.timeout(2 * QUICK_S)
def test_with_both_ways_of_tracking_nothing_is_missed() -> None:
    """Linux 6.12: marks are found by PAGEMAP_SCAN."""
    pass_in_a_guest(
        "6.12",
        SOFT_DIRTY,
        f"{TRACKER}::test_the_destination_equals_the_frozen_source[soft_dirty-25]",
        f"{TRACKER}::test_the_destination_equals_the_frozen_source[uffd_wp-25]",
        timeout_s=QUICK_S,
    )


@pytest.mark.vm
@pytest.mark.skipif(not THOROUGH, reason="an hour; `make vm` takes it")
@pytest.mark.timeout(2 * THOROUGH_S)
@pytest.mark.parametrize("kernel", kernels.PACKAGES)
def test_every_tracker_and_every_move(kernel: str) -> None:
    """The same seeds under each tracker that the kernel has."""
    pass_in_a_guest(
        kernel,
        *(TRACKER, "tests/live/test_tracker_uffd_wp.py", SOFT_DIRTY, MOVE),
        timeout_s=THOROUGH_S,
        skips="Invalid argument|no MADV_GUARD_INSTALL",
    )
