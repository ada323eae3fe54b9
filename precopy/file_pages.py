"""The pages of a file, by a descriptor of ours: memory that has an inode.

What several processes share is one object, and no address space is its own: it is
read and written by offset, once for all. Where nothing was ever written there is a
hole, which reads as zero and costs nothing (lseek(2), SEEK_HOLE).
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final

from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet

if TYPE_CHECKING:
    from typing_extensions import Buffer

_KEEP_SIZE: Final = 1  # FALLOC_FL_*: linux/falloc.h
_PUNCH_HOLE: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
]


def whole(size_bytes: int) -> PageSet:
    """All pages of a file of this size; the last may be there in part."""
    return PageSet.of([(0, -(-size_bytes // PAGE_BYTES) * PAGE_BYTES)])


class FilePages:
    """Reads and writes pages of the file behind ``fd``, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._fd).st_size

    def present(self, size_bytes: int) -> PageSet:
        """Those below ``size_bytes`` that may hold something; the others are holes."""
        runs: list[tuple[int, int]] = []
        at = 0
        while at < size_bytes:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
                at = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole follows, or the file was cut meanwhile
            if start < size_bytes:
                runs.append((start // PAGE_BYTES * PAGE_BYTES, _up(at)))
        return PageSet.of(runs) & whole(size_bytes)

    def read_runs(self, pages: PageSet, buffer: Buffer) -> PageSet:
        """Read ``pages`` one behind the other to the front of ``buffer``.

        Gives the pages that were read: those behind the end are left out. What a page
        has behind the end of the file is zero.
        """
        view = memoryview(buffer)
        found: list[tuple[int, int]] = []
        filled = 0
        for start, end in pages:
            at = start
            while at < end:
                got = os.preadv(self._fd, [view[filled : filled + end - at]], at)
                if not got:
                    break
                at += got
                filled += got
            if rest := -at % PAGE_BYTES:
                view[filled : filled + rest] = bytes(rest)
                at += rest
                filled += rest
            if at > start:
                found.append((start, at))
        return PageSet.of(found)

    def write_runs(self, pages: PageSet, data: Buffer, size_bytes: int) -> None:
        """Write ``data`` to ``pages``, one behind the other, up to ``size_bytes``.

        Raises:
            OSError: there is no room for it.
        """
        rest = memoryview(data)
        for start, end in pages:
            piece, rest = rest[: end - start], rest[end - start :]
            piece = piece[: max(0, size_bytes - start)]
            at = start
            while piece:
                done = os.pwrite(self._fd, piece, at)
                at += done
                piece = piece[done:]

    def punch(self, pages: PageSet) -> None:
        """Make holes of ``pages``.

        Raises:
            OSError: the file system cannot.
        """
        for start, end in pages:
            how = _KEEP_SIZE | _PUNCH_HOLE
            if _libc.fallocate64(self._fd, how, start, end - start):
                number = ctypes.get_errno()
                raise OSError(number, f"fallocate: {os.strerror(number)}")


def _up(offset: int) -> int:
    return -(-offset // PAGE_BYTES) * PAGE_BYTES
