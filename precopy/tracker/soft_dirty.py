"""The kernel marks the pages that are written: soft-dirty.

Writing 4 to /proc/PID/clear_refs takes all marks away and protects the pages; the
first write to one marks it and takes the protection off again. The marks are bit 55 of
/proc/PID/pagemap (Documentation/admin-guide/mm/soft-dirty.rst). They are one set for
the whole system: of two programs that follow one process in this way, each takes the
other's marks away.

What is hard about it, and what we do:

* Reading and clearing are two steps, and a write between them would be forgotten. So
  the process is stopped for just those two. At the first take everything counts as
  written, and it is enough to clear before looking.
* Marks are cleared everywhere, also where the address space that we were given does not
  reach yet. So what a change of the address space empties counts as written.
* A new mapping, and one that the kernel joined with a new one, counts as written as a
  whole until the next clearing. So a mapping that was replaced at its place between the
  look at the mappings and the pause is found; and of what is marked only what is there
  is data.
* A page that was given back (MADV_DONTNEED) has no mark: what was reported before and
  is not an own page was dropped. When it is read again it shows the zero page, or a
  page of the file, again without a mark.
* Some writes leave no mark. mremap(2) moves whole page tables at a time, over pages
  that were there before, and moves the marks as they were (mm/mremap.c,
  move_normal_pmd()); KSM puts a page of its own in the place of one that was written,
  without its mark (mm/ksm.c, replace_page()). So we remember where in memory each page
  lies, and what lies elsewhere now counts as written. That takes reading all of
  pagemap; PAGEMAP_SCAN, which is quicker, does not tell.
* A huge page has one mark: one write to it reports 512 pages.
"""

import os
from typing import Final, Self

from precopy.address_space import AddressSpace
from precopy.errors import GuardRegions, KernelError, TaskVanished
from precopy.ids import Pid
from precopy.page_set import PageSet
from precopy.pagemap import Pagemap, Pages, Places
from precopy.tracker import Pause, Written

_CLEAR_SOFT_DIRTY: Final = b"4"


class SoftDirtyTracker:
    """Follows a process by its soft-dirty bits; ``pause`` stops it for a moment."""

    name: Final = "soft-dirty"

    def __init__(self, pid: Pid, pause: Pause) -> None:
        self._pid = pid
        self._pause = pause
        self._pagemap = Pagemap(pid)
        self._began = False
        self._space = AddressSpace()
        # What the destination may hold: reported, and neither dropped nor emptied by a
        # change of the address space since.
        self._reported = PageSet.EMPTY
        self._places = Places.nowhere()  # of all own pages at the last look

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._pagemap.close()

    def take(self, space: AddressSpace, *, final: bool = False) -> Written:
        """See DirtyTracker. Pauses the process, unless ``final`` or the first time.

        Raises:
            KernelError: clear_refs is closed to us.
        """
        ours = space.our_ranges()
        emptied = self._space.changes_to(space).emptied
        self._reported -= emptied
        self._space = space
        if not self._began:
            # What is written after this is marked, and nothing was sent before it.
            self._clear()
            self._began = True
            pages = self._look(ours)
        elif final:
            pages = self._look(ours)
        else:
            with self._pause():
                pages = self._look(ours)
                self._clear()
        if pages.guarded:
            raise GuardRegions(self._pid, tuple(pages.guarded))
        data = pages.written | (pages.own & emptied)
        dropped = (self._reported & ours) - pages.own
        self._reported = pages.own
        return Written(data=data, dropped=dropped)

    def _look(self, ranges: PageSet) -> Pages:
        pages, self._places = self._pagemap.marked(ranges, self._places)
        return pages

    def _clear(self) -> None:
        try:
            fd = os.open(f"/proc/{self._pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, _CLEAR_SOFT_DIRTY)
            finally:
                os.close(fd)
        except (FileNotFoundError, ProcessLookupError):
            raise TaskVanished(self._pid) from None
        except OSError as error:
            raise KernelError("write clear_refs", self._pid, error.errno or 0) from None
