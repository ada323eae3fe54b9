"""The kernel marks the pages that are written: soft-dirty.

Writing 4 to /proc/PID/clear_refs takes all marks away and protects the pages; the
first write to one marks it and takes the protection off again. The marks are bit 55 of
/proc/PID/pagemap, and a category of PAGEMAP_SCAN (Documentation/admin-guide/mm/
soft-dirty.rst, pagemap.rst). They are one set for the whole system: of two programs
that follow one process in this way, each takes the other's marks away.

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
* A page that was given back (MADV_DONTNEED) has no mark. So we look for what is not
  there, too: what was reported before and is not an own page was dropped. When it is
  read again it shows the zero page, or a page of the file, again without a mark.
* KSM puts a page of its own in the place of one that was written, and forgets the mark.
  What may be merged (MADV_MERGEABLE) counts as written each time.
* A huge page has one mark: one write to it reports 512 pages.
"""

import errno
import os
from typing import Final, Self

from precopy.address_space import AddressSpace
from precopy.errors import GuardRegions, KernelError, TaskVanished
from precopy.ids import Pid
from precopy.page_set import PageSet
from precopy.pagemap import Pagemap, Pages
from precopy.tracker import Pause, Written

_CLEAR_SOFT_DIRTY: Final = b"4"
_MERGEABLE: Final = "mg"  # proc_pid_smaps(5), VmFlags


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
        suspect = (emptied & ours) | _mergeable(space)
        if not self._began:
            self._clear()
            self._began = True
            return self._written(space, self._marked(ours), ours)
        if final:
            return self._written(space, self._marked(ours), suspect)
        with self._pause():
            marked = self._marked(ours)
            self._clear()
        return self._written(space, marked, suspect)

    def _marked(self, ranges: PageSet) -> Pages:
        """What is marked in ``ranges``, and what is not there, or all that is."""
        if self._pagemap.can_scan:
            try:
                return self._pagemap.soft_dirty(ranges)
            except KernelError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
                self._pagemap.can_scan = False
        return self._pagemap.listed(ranges)

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

    def _written(self, space: AddressSpace, marked: Pages, suspect: PageSet) -> Written:
        """What was marked when it was looked for, as far as it is there.

        The process may run again, and pages come and go after that look: what has gone
        is dropped, marked or not, and what has come is marked the next time.
        """
        if self._pagemap.can_scan:
            files = space.private_file_ranges()
            near = marked.written | suspect | files
            there = self._pagemap.scan(near)
            gone = (marked.absent | near) - there.own
        else:
            there = marked
            gone = space.our_ranges() - there.own
        if guarded := marked.guarded | there.guarded:
            raise GuardRegions(self._pid, tuple(guarded))
        data = (marked.written | suspect) & there.own
        dropped = gone & self._reported
        self._reported = (self._reported - dropped) | data
        return Written(data=data, dropped=dropped)


def _mergeable(space: AddressSpace) -> PageSet:
    return PageSet.of(
        (vma.start, vma.end)
        for vma in space.vmas
        if vma.is_ours and _MERGEABLE in vma.flags
    )
