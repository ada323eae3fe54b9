"""A tracker that stops its target for a moment as a move would."""

from migrate.brake import Brake
from migrate.kernel import procfs
from migrate.kernel.sleepers import Sleepers
from precopy.tracker.uffd_wp import UffdWpTracker
from tests.live.targets import Target


def follow(target: Target) -> UffdWpTracker:
    """The tracker by userfaultfd for ``target``; the caller closes it."""
    pause = Brake(target.pid, Sleepers(target.pid)).holding
    return UffdWpTracker(
        target.pid, target.uffd(), pause, lambda: procfs.read_maps(target.pid)
    )
