"""The kernel notes the first write to each page: userfaultfd, asynchronously.

A mapping that is registered with a userfaultfd in the mode WP_ASYNC stops nobody: the
first write to a protected page takes the protection away and goes on. PAGEMAP_SCAN
finds the pages without protection (PAGE_IS_WRITTEN) and protects them again, in one
step (Documentation/admin-guide/mm/pagemap.rst, userfaultfd.rst).

What is hard about it, and what we do:

* New mappings are not registered. Each take registers what is new in the address space
  that it is given, and all of it counts as written.
* A mapping can lose its registration and keep its pages: mremap(2) of an untouched
  mapping to a place between two registered ones makes one of all three, without. The
  marks of protection stay in the page table, where the first write makes the page
  writable and leaves its mark: it would look protected, and be written unseen. So
  whatever is registered, for the first time or again, has its marks taken off.
* What the address space says is older than the scan that follows. A mapping may be
  replaced between them and its pages protected before anybody knows that it is another
  one. So what a change of the address space empties counts as written, too.
* A mapping that was replaced at the same place looks the same in /proc/PID/maps and is
  not registered. The scan then fails with EPERM (PM_SCAN_CHECK_WPASYNC), and pages
  before the place that failed may have been protected without being reported. So all
  that this scan looked at counts as written.
* A page that was given back (MADV_DONTNEED) is not there to be reported. But it has no
  protection. So we first ask, which is quick, what is not protected, there or not, and
  then look at that: what was reported before and is not an own page was dropped.
* Pages that were never touched are not protected: each would cost a marker in a page
  table, which makes a reservation of 64 GiB cost 128 MiB. Neither are pages of files
  and the zero page: the first write makes an own page of them, without protection.
* In a private file mapping a page given back leaves a marker behind, which looks like a
  page that was swapped out and not written. There, a swapped page that was reported
  before is reported again: what is read then is right in either case. All of these
  mappings is looked at each time.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from precopy._native import lib
from precopy.address_space import AddressSpace
from precopy.errors import GuardRegions, KernelError
from precopy.ids import Pid
from precopy.page_set import PageSet
from precopy.pagemap import CHUNK_BYTES, WHOLE_RANGES, Pagemap, Pages
from precopy.tracker import Pause, Written

UFFD_USER_MODE_ONLY: Final = 1  # linux/userfaultfd.h
REGISTER_AGAIN_MAX: Final = 3
# Looking at so many pages costs what another call does.
BRIDGE_PAGES: Final = 32


@dataclass(frozen=True, slots=True)
class _Look:
    """What there is in ``ranges``; in the others, nothing changed."""

    pages: Pages
    ranges: PageSet
    suspect: PageSet  # here all own pages count as written


class UffdWpTracker:
    """Follows a process by a userfaultfd(2) that the process itself opened.

    Owns ``uffd``, on which UFFDIO_API was not called yet. Closing it takes all
    registrations and protections back.

    Mappings are registered whole, while the process stands still: a registration
    that ended within a mapping would split it, and mremap(2) of what the program
    takes for one would fail with EFAULT. ``pause`` makes it stand still, ``mappings``
    says what is mapped at that moment.
    """

    name: Final = "uffd-wp"
    # For userfaultfd(2), called by the process. User mode only: anybody may then, and
    # asynchronous protection notes writes by the kernel all the same.
    FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY

    def __init__(
        self,
        pid: Pid,
        uffd: int,
        pause: Pause,
        mappings: Callable[[], AddressSpace],
    ) -> None:
        self._pid = pid
        self._uffd = uffd
        self._pause = pause
        self._mappings = mappings
        try:
            self._pagemap = Pagemap(pid)
        except BaseException:
            os.close(uffd)
            raise
        result = lib.uffd_begin(uffd)
        if result < 0:
            self.close()
            raise KernelError("ioctl UFFDIO_API", pid, -result)
        self._space = AddressSpace()
        self._registered = PageSet.EMPTY  # as far as we know
        # What the destination may hold: reported, and neither dropped nor emptied by a
        # change of the address space since.
        self._reported = PageSet.EMPTY

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._pagemap.close()
        if self._uffd >= 0:
            os.close(self._uffd)
            self._uffd = -1

    def take(self, space: AddressSpace, *, final: bool = False) -> Written:
        """See DirtyTracker. ``final`` leaves registrations and protections alone."""
        ours = space.our_ranges()
        emptied = self._space.changes_to(space).emptied
        self._reported -= emptied
        self._space = space
        new = ours - self._registered if final else self._register_what_is_new(space)
        look = self._look(space, new | (emptied & ours), final=final)
        pages = look.pages
        if pages.guarded:
            raise GuardRegions(self._pid, tuple(pages.guarded))
        perhaps_markers = pages.swapped & self._reported & space.private_file_ranges()
        data = pages.written | (pages.own & look.suspect) | perhaps_markers
        dropped = (self._reported & look.ranges) - pages.own
        self._reported = (self._reported - dropped) | data
        return Written(data=data, dropped=dropped)

    def _look(self, space: AddressSpace, suspect: PageSet, *, final: bool) -> _Look:
        """All pages that may have changed, and unless it is final protected anew.

        Given what counts as written in any case.
        """
        # One mapping at a time, although they may touch: what fails is then not more
        # than a part of one.
        chunk_bytes = WHOLE_RANGES if final else CHUNK_BYTES
        vmas = [vma for vma in space.vmas if vma.is_ours]
        anonymous = [(vma.start, vma.end) for vma in vmas if vma.is_anonymous]
        files = [(vma.start, vma.end) for vma in vmas if not vma.is_anonymous]
        unprotected, lost = self._pagemap.unprotected(
            anonymous, chunk_bytes=chunk_bytes
        )
        near = unprotected.bridged(BRIDGE_PAGES) | suspect
        near = (near & space.anonymous_ranges()) - lost
        ranges = near | lost | space.private_file_ranges()
        pages = self._pagemap.scan(
            near, protect=not final, check=not final, chunk_bytes=chunk_bytes
        )
        pages |= self._pagemap.scan(
            files, protect=not final, check=True, chunk_bytes=chunk_bytes
        )
        lost |= pages.lost
        suspect |= lost
        for _ in range(0 if final else REGISTER_AGAIN_MAX):
            if not lost:
                break
            failed = self._register(lost)
            again = self._pagemap.scan(lost, protect=True, check=True)
            pages |= again
            lost = again.lost | failed
        # Frozen; or another userfaultfd holds it, or it changes faster than we look:
        # all of it is written each time, until registering succeeds.
        self._registered -= lost
        if lost:
            pages |= self._pagemap.scan(lost)
        return _Look(pages, ranges, suspect)

    def _register_what_is_new(self, space: AddressSpace) -> PageSet:
        ours = space.our_ranges()
        new = ours - self._registered
        self._registered = ours - self._register(new)
        return new

    def _register(self, wanted: PageSet) -> PageSet:
        """Take what is mapped there under our protection; where that failed.

        Which error it was does not matter: what another userfaultfd holds cannot be
        registered. But for the failed ranges, no page there is protected.
        """
        if not wanted:
            return PageSet.EMPTY
        registered = []
        with self._pause():
            for vma in self._mappings().vmas:
                whole = PageSet.of([(vma.start, vma.end)])
                if not vma.is_ours or not whole & wanted:
                    continue
                result = lib.uffd_register(self._uffd, vma.start, vma.end)
                if result == -errno.EBADF:
                    raise KernelError("ioctl UFFDIO_REGISTER", self._pid, errno.EBADF)
                if result == 0:
                    registered.append((vma.start, vma.end))
        # A mapping that lost its userfaultfd keeps the marks of protection, and the
        # first write to such a page makes it writable and leaves its mark. So all marks
        # go; while it runs again, for that takes time, and until they have gone and are
        # made anew whatever is there counts as written.
        return wanted - PageSet.of(
            (start, end)
            for start, end in registered
            if lib.uffd_marks_off(self._uffd, start, end) == 0
        )
