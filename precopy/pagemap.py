"""Which pages of a process are its own, and which of them were written.

A page is the process's own when it is present or swapped out and is neither a page of
a file nor the zero page: it has contents that nobody else can supply.
"""

from __future__ import annotations

import errno
import mmap
import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Self

from precopy._native import ffi, lib
from precopy.errors import KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, Pid
from precopy.page_set import PageSet

if TYPE_CHECKING:
    from precopy._native import Cells, PageScan, RunList

# Looked at in one call while the process runs: what is lost at once when a mapping
# among it turns out to be replaced, against a call for every so many bytes.
CHUNK_BYTES: Final = 64 << 20
WHOLE_RANGES: Final = 1 << 62
# For each list; they grow when they must.
BOUNDARIES_AT_FIRST: Final = 1 << 14
_FRAME_BITS: Final = 55  # of an entry: Documentation/admin-guide/mm/pagemap.rst


@dataclass(frozen=True, slots=True)
class Pages:
    """What was found. ``written`` and ``swapped`` are parts of ``own``."""

    own: PageSet = PageSet.EMPTY
    written: PageSet = PageSet.EMPTY
    swapped: PageSet = PageSet.EMPTY
    guarded: PageSet = PageSet.EMPTY  # MADV_GUARD_INSTALL
    lost: PageSet = PageSet.EMPTY  # where the check failed: nothing is known of these

    def __or__(self, other: Pages) -> Pages:
        return Pages(
            own=self.own | other.own,
            written=self.written | other.written,
            swapped=self.swapped | other.swapped,
            guarded=self.guarded | other.guarded,
            lost=self.lost | other.lost,
        )


@dataclass(frozen=True, slots=True)
class Places:
    """Where pages are, in memory or in swap: a word each, in order."""

    pages: PageSet
    words: array[int]

    @classmethod
    def nowhere(cls) -> Places:
        """Of no pages."""
        return cls(PageSet.EMPTY, array("I"))


class Pagemap:
    """/proc/PID/pagemap: it stays with the memory that the process has now.

    After an execve(2) or an exit every look raises TaskVanished
    (proc_pid_pagemap(5), Documentation/admin-guide/mm/pagemap.rst).
    """

    def __init__(self, pid: Pid) -> None:
        self.pid = pid
        try:
            self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise TaskVanished(pid) from None
        self._lists = _Lists()
        self.can_scan = True  # PAGEMAP_SCAN is there, as far as we know
        self._knows_guards = lib.page_scan_knows_guards(self._fd) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def scan(
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        protect: bool = False,
        check: bool = False,
        chunk_bytes: int = WHOLE_RANGES,
    ) -> Pages:
        """The pages in ``ranges`` (page aligned, in order; they may touch).

        ``protect``: what was written is write-protected again, in one step with being
        reported. ``check``: what is not under asynchronous write-protection goes to
        ``lost``, together with the chunk of its range around it.

        Raises:
            TaskVanished: it exited or called execve(2).
            KernelError: without PAGEMAP_SCAN (Linux 6.7) it is ENOTTY or EINVAL.
        """
        how = (
            (lib.PAGE_SCAN_PROTECT if protect else 0)
            | (lib.PAGE_SCAN_CHECK if check else 0)
            | self._guards()
        )
        return self._run(
            lib.page_scan_run, "ioctl PAGEMAP_SCAN", ranges, how, chunk_bytes
        )

    def unprotected(
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        chunk_bytes: int = WHOLE_RANGES,
    ) -> tuple[PageSet, PageSet]:
        """What is not write-protected in ``ranges``, there or not; and what is lost.

        Ten times as fast as scan(), and as cheap for what was never touched; checks as
        ``check`` does there.
        """
        how = lib.PAGE_SCAN_QUICK | lib.PAGE_SCAN_CHECK
        call = "ioctl PAGEMAP_SCAN"
        pages = self._run(lib.page_scan_run, call, ranges, how, chunk_bytes)
        return pages.written, pages.lost

    def listed(self, ranges: Iterable[tuple[int, int]]) -> Pages:
        """The same by reading, on every kernel; ``written`` stays empty.

        Where we may not see page frame numbers (CAP_SYS_ADMIN), zero pages count as
        own pages. Time and not memory grows with the ranges: 1 ms or so per GiB that
        is mapped, whether it is populated or not.
        """
        return self._run(lib.page_list_run, "read pagemap", ranges, 0, WHOLE_RANGES)

    def marked(self, ranges: PageSet, before: Places) -> tuple[Pages, Places]:
        """The same, and where each page is; ``written`` is what may have been written.

        That is what is marked soft-dirty, and what was not in the same place before.
        Where we may not see page frame numbers, all that may be a zero page is written,
        and a page that was moved is not noticed.
        """
        words = array("I", bytes(4 * (before.pages.pages + BOUNDARIES_AT_FIRST)))
        scan = self._begin(ranges, 0, WHOLE_RANGES)
        known = ffi.from_buffer("uint64_t[]", before.pages.boundaries)
        known_words = ffi.from_buffer("uint32_t[]", before.words)
        scan.known, scan.known_count = known, len(before.pages.boundaries)
        scan.known_places = known_words
        while True:
            view = ffi.from_buffer("uint32_t[]", words)
            scan.places, scan.place_capacity = view, len(words)
            if not self._go_on(lib.page_list_run, "read pagemap", scan):
                break
            words = words + array("I", bytes(4 * len(words)))
        pages = self._lists.pages(scan)
        return pages, Places(pages.own, words[: scan.place_count])

    def own(self, ranges: Iterable[tuple[int, int]]) -> PageSet:
        """The own pages in ``ranges``, in whichever way this kernel has."""
        if self.can_scan:
            try:
                return self.scan(ranges).own
            except KernelError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
                self.can_scan = False
        return self.listed(ranges).own

    def _guards(self) -> int:
        return lib.PAGE_SCAN_GUARDS if self._knows_guards else 0

    def _run(
        self,
        function: Callable[[PageScan], int],
        call: str,
        ranges: Iterable[tuple[int, int]],
        how: int,
        chunk_bytes: int,
    ) -> Pages:
        scan = self._begin(ranges, how, chunk_bytes)
        while self._go_on(function, call, scan):
            pass
        return self._lists.pages(scan)

    def _begin(
        self, ranges: Iterable[tuple[int, int]], how: int, chunk_bytes: int
    ) -> PageScan:
        bounds = array("Q", [bound for run in ranges for bound in run])
        scan = ffi.new("struct page_scan *")
        scan.pagemap, scan.how, scan.chunk_bytes = self._fd, how, chunk_bytes
        scan.zero_frame = _zero_frame()
        # The view keeps the array alive, and the scan has only a pointer.
        self._ranges = ffi.from_buffer("uint64_t[]", bounds)
        scan.ranges, scan.range_count = self._ranges, len(bounds)
        self._lists.lend(scan)
        return scan

    def _go_on(
        self, function: Callable[[PageScan], int], call: str, scan: PageScan
    ) -> bool:
        """Whether it has to be called again, with more room."""
        result = function(scan)
        if result == -errno.ESRCH:
            raise TaskVanished(self.pid)
        if result < 0:
            raise KernelError(call, self.pid, -result)
        if result:
            self._lists.grow(scan)
        return bool(result)


class _Lists:
    """Room for what a scan finds, kept from one scan to the next."""

    NAMES: Final = ("own", "written", "swapped", "guarded", "lost")

    def __init__(self) -> None:
        self._rooms = {
            name: array("Q", bytes(8 * BOUNDARIES_AT_FIRST)) for name in self.NAMES
        }
        self._views: dict[str, Cells] = {}  # C holds pointers only: keep them alive

    def lend(self, scan: PageScan) -> None:
        for name, room in self._rooms.items():
            self._lend_one(name, getattr(scan, name), room)

    def _lend_one(self, name: str, runs: RunList, room: array[int]) -> None:
        self._views[name] = ffi.from_buffer("uint64_t[]", room)
        runs.bounds, runs.capacity = self._views[name], len(room)

    def grow(self, scan: PageScan) -> None:
        """Double what is more than half full."""
        for name, room in self._rooms.items():
            runs: RunList = getattr(scan, name)
            if 2 * runs.count > runs.capacity:
                self._rooms[name] = room + array("Q", bytes(8 * len(room)))
                self._lend_one(name, runs, self._rooms[name])

    def pages(self, scan: PageScan) -> Pages:
        return Pages(*(self._take(scan, name) for name in self.NAMES))

    def _take(self, scan: PageScan, name: str) -> PageSet:
        runs: RunList = getattr(scan, name)
        if not runs.count:
            return PageSet.EMPTY
        return PageSet.from_boundaries(self._rooms[name][: runs.count])


@cache
def _zero_frame() -> int:
    """The page frame number of the zero page; 0 where we may not know.

    It is mapped wherever anonymous memory was read and never written.
    """
    with mmap.mmap(-1, PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0]  # reading is what maps it
        with open("/proc/self/pagemap", "rb", 0) as pagemap:
            address = int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", memory)))
            entry = os.pread(pagemap.fileno(), 8, address // PAGE_BYTES * 8)
    return int.from_bytes(entry, "little") & ((1 << _FRAME_BITS) - 1)
