"""A program that does to its memory what it is told, call by call."""

from typing import Final

from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet
from tests.live.targets import Target

BASE: Final = 0x1000_0000_0000
MIB: Final = 1 << 20

# x86-64: <asm/unistd_64.h>, and <linux/mman.h>
READ, CLOSE, MMAP, MPROTECT, MUNMAP, MADVISE, EXECVE = 0, 3, 9, 10, 11, 28, 59
MREMAP, MEMFD_CREATE, FTRUNCATE = 25, 319, 77
RW, NONE = 3, 0
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 16, 32, 0x4000
MADV_DONTNEED, MADV_HUGEPAGE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 4, 14, 102, 103
MADV_MERGEABLE, MADV_NOHUGEPAGE, MADV_PAGEOUT = 12, 15, 21


class Obedient(Target):
    """A program that does to its memory what it is told."""

    def call(self, number: int, *arguments: int) -> int:
        padded = [*arguments, *[0] * (6 - len(arguments))]
        self.tell(b"s " + " ".join(map(str, [number, *padded])).encode() + b"\n")
        return self.answer()

    def map(
        self,
        start: int,
        pages: int,
        flags: int = MAP_PRIVATE,
        *,
        fd: int = -1,
        first: int = 0,
    ) -> None:
        """Map pages, of the file ``fd`` from its page ``first`` on if one is given."""
        flags |= MAP_FIXED | (MAP_ANONYMOUS if fd < 0 else 0)
        length, offset = pages * PAGE_BYTES, first * PAGE_BYTES
        assert self.call(MMAP, start, length, RW, flags, fd, offset) == start

    def write(self, start: int, pages: int = 1, value: int = 1) -> None:
        self.tell(f"w {start} {pages} {PAGE_BYTES} {value}\n".encode())
        assert self.answer() == 0

    def look(self, address: int) -> int:
        self.tell(f"r {address}\n".encode())
        return self.answer()

    def advise(self, start: int, pages: int, advice: int) -> int:
        return self.call(MADVISE, start, pages * PAGE_BYTES, advice)

    def file(self, pages: int) -> int:
        """The number of a descriptor of so many pages."""
        fd = self.call(MEMFD_CREATE, self.space().vmas[0].start, 0)
        assert fd >= 0 and self.call(FTRUNCATE, fd, pages * PAGE_BYTES) == 0
        return fd


def run(first: int, last: int) -> PageSet:
    return PageSet.of([(at(first), at(last))])


def at(page: int) -> int:
    return BASE + page * PAGE_BYTES
