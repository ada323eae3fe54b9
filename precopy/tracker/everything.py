"""Everything is dirty, always: needs nothing of the kernel, and cannot be wrong."""

from typing import Final, Self

from precopy.address_space import AddressSpace
from precopy.errors import GuardRegions
from precopy.ids import Pid
from precopy.page_set import PageSet
from precopy.pagemap import Pagemap
from precopy.tracker import Written


class EverythingTracker:
    """Reports every own page each time, and what was reported and is no more."""

    name: Final = "everything"

    def __init__(self, pid: Pid) -> None:
        self._pid = pid
        self._pagemap = Pagemap(pid)
        self._reported = PageSet.EMPTY

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def take(self, space: AddressSpace, *, final: bool = False) -> Written:
        """All own pages; see DirtyTracker."""
        ours = space.our_ranges()
        pages = self._pagemap.listed(ours)
        if pages.guarded:
            raise GuardRegions(self._pid, tuple(pages.guarded))
        dropped = (self._reported & ours) - pages.own
        self._reported = pages.own
        return Written(data=pages.own, dropped=dropped)

    def close(self) -> None:
        self._pagemap.close()
