"""A tracker that stops its target for a moment as a move would."""

from typing import Generic, TypeVar

from migrate.brake import Brake
from migrate.kernel import procfs
from migrate.kernel.sleepers import Sleepers
from precopy.page_set import PageSet
from precopy.tracker import DirtyTracker, Written
from precopy.tracker.uffd_wp import UffdWpTracker
from tests.live.targets import Target
from tests.live.targets.obedient import BASE, Obedient

T = TypeVar("T", bound=DirtyTracker)


class Followed(Generic[T]):
    """An obedient program, which does nothing unless told, and its tracker."""

    def __init__(self, target: Obedient, tracker: T) -> None:
        self.target = target
        self.tracker = tracker

    def take(self, *, final: bool = False) -> Written:
        """What was written in the part of memory that is at our command."""
        written = self.tracker.take(self.target.space(), final=final)
        ours = PageSet.of([(BASE, BASE << 1)])
        return Written(written.data & ours, written.dropped & ours)

    def data(self, *, final: bool = False) -> PageSet:
        """The same where nothing was given back."""
        written = self.take(final=final)
        assert not written.dropped
        return written.data


def follow(target: Target) -> UffdWpTracker:
    """The tracker by userfaultfd for ``target``; the caller closes it."""
    pause = Brake(target.pid, Sleepers(target.pid)).holding
    return UffdWpTracker(
        target.pid, target.uffd(), pause, lambda: procfs.read_maps(target.pid)
    )
