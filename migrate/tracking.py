"""Which tracker follows a process: what was asked for, or the best that there is.

The best is the one that stops the process least while rounds are sent. userfaultfd(2)
never stops it. Soft-dirty does, for a moment each round. To send everything in each
round needs nothing of the kernel, and ends well only for what is small or asleep.
"""

from migrate.errors import Reason
from migrate.kernel import probes, procfs
from migrate.kernel.probes import Finding
from migrate.kinds.kind import Source
from migrate.options import TrackerChoice
from precopy.address_space import AddressSpace
from precopy.tracker import DirtyTracker, Pause
from precopy.tracker.everything import EverythingTracker
from precopy.tracker.soft_dirty import SoftDirtyTracker
from precopy.tracker.uffd_wp import UffdWpTracker


def reasons(choice: TrackerChoice) -> list[Reason]:
    """Why this kernel cannot track as it was asked to."""
    finding = _works(choice)
    if finding:
        return []
    return [
        Reason(
            "tracker",
            f"This kernel cannot track writes by {choice.value}: {finding.why_not}.",
        )
    ]


def tracker(choice: TrackerChoice, source: Source, pause: Pause) -> DirtyTracker:
    """Follow the process, which is stopped; ``pause`` is how to stop it later.

    Raises:
        KernelError: the kernel does not let us, although reasons() saw none.
    """
    if choice is TrackerChoice.AUTO:
        choice = _best()
    match choice:
        case TrackerChoice.UFFD_WP:
            return _by_userfaultfd(source, pause)
        case TrackerChoice.SOFT_DIRTY:
            return SoftDirtyTracker(source.pid, pause)
        case _:
            return EverythingTracker(source.pid)


def _best() -> TrackerChoice:
    by_pause = (TrackerChoice.UFFD_WP, TrackerChoice.SOFT_DIRTY)
    return next(filter(_works, by_pause), TrackerChoice.EVERYTHING)


def _works(choice: TrackerChoice) -> Finding:
    if choice is TrackerChoice.UFFD_WP:
        found = probes.userfaultfd_wp_async()
        return probes.pagemap_scan() if found else found
    if choice is TrackerChoice.SOFT_DIRTY:
        return probes.soft_dirty()
    return Finding(True)


def _by_userfaultfd(source: Source, pause: Pause) -> UffdWpTracker:
    fd = source.remote.syscall("userfaultfd", UffdWpTracker.FLAGS)
    try:
        uffd = source.pidfd.getfd(fd)
    finally:
        source.remote.syscall("close", fd)
    parser = procfs.MapsParser()

    def mappings() -> AddressSpace:
        return procfs.read_maps(source.pid, parser)

    return UffdWpTracker(source.pid, uffd, pause, mappings)
