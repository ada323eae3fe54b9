"""What pages were when they were sent, to find those that are otherwise now.

For memory that no tracker follows: writes to a shared object through a descriptor, or
through another process's mapping, leave no mark where we could look. So it is read, and
compared by a keyed digest of 128 bits of each page. A page that was never sent is zero
over there.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import Final, Protocol

from precopy._native import ffi, lib
from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet

_BLOCK_PAGES: Final = 512
_BLOCK_BYTES: Final = _BLOCK_PAGES * PAGE_BYTES
_ZERO_PAGE: Final = bytes(PAGE_BYTES)


class _Reads(Protocol):
    def read_runs(self, pages: PageSet, buffer: bytearray) -> PageSet: ...


class PageDigests:
    """The digests of the pages of one object, by its offsets."""

    def __init__(self) -> None:
        # Nobody who chooses what is in a page knows it: see native/digests.c.
        self._key = array("Q", os.urandom(PAGE_BYTES))
        first = array("Q", bytes(16))
        self._digest(_ZERO_PAGE, PageSet.of([(0, PAGE_BYTES)]), 0, first, update=True)
        self._zero = first
        self._zero_block = first * _BLOCK_PAGES
        self._blocks: dict[int, array[int]] = {}
        self._buffer = bytearray(_BLOCK_BYTES)

    def changed(self, memory: _Reads, pages: PageSet) -> PageSet:
        """Those of ``pages`` that are there and not what was noted."""
        changed: list[tuple[int, int]] = []
        for base, part in _by_block(pages):
            known = self._blocks.get(base, self._zero_block)
            read = memory.read_runs(part, self._buffer)
            changed += self._digest(self._buffer, read, base, known, update=False)
        return PageSet.of(changed)

    def note(self, pages: PageSet, contents: memoryview) -> None:
        """``pages`` were sent, with these ``contents`` one behind the other."""
        for base, part in _by_block(pages):
            piece, contents = contents[: part.bytes], contents[part.bytes :]
            self._digest(piece, part, base, self._block(base), update=True)

    def note_zeros(self, pages: PageSet) -> None:
        """``pages`` are zero over there from now on."""
        for base, part in _by_block(pages):
            if part.pages == _BLOCK_PAGES:
                self._blocks.pop(base, None)
            elif base in self._blocks:
                for start, end in part:
                    first, last = ((x - base) // PAGE_BYTES * 2 for x in (start, end))
                    zeros = self._zero * ((end - start) // PAGE_BYTES)
                    self._blocks[base][first:last] = zeros

    def _block(self, base: int) -> array[int]:
        if base not in self._blocks:
            self._blocks[base] = self._zero_block[:]
        return self._blocks[base]

    def _digest(
        self,
        contents: bytes | bytearray | memoryview,
        pages: PageSet,
        base: int,
        digests: array[int],
        *,
        update: bool,
    ) -> PageSet:
        changed = array("Q", bytes(16 * pages.pages))
        count = lib.pages_digest(
            ffi.from_buffer("uint8_t[]", contents),
            ffi.from_buffer("uint64_t[]", pages.boundaries),
            len(pages.boundaries),
            base,
            ffi.from_buffer("uint64_t[]", self._key),
            ffi.from_buffer("uint64_t[]", digests),
            update,
            ffi.from_buffer("uint64_t[]", changed),
        )
        return PageSet.from_boundaries(changed[:count])


def _by_block(pages: PageSet) -> Iterator[tuple[int, PageSet]]:
    """The pages block by block, with where each begins."""
    done = 0
    for start, end in pages:
        base = max(start, done) // _BLOCK_BYTES * _BLOCK_BYTES
        while base < end:
            if base >= done:
                yield base, pages.within(base, base + _BLOCK_BYTES)
                done = base + _BLOCK_BYTES
            base += _BLOCK_BYTES
