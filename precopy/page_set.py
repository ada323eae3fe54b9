"""Sets of pages as sorted disjoint runs, and their algebra."""

from __future__ import annotations  # array[int] is none at run time in 3.11

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from precopy._native import ffi, lib
from precopy.ids import PAGE_BYTES

if TYPE_CHECKING:
    from precopy._native import Cells

ADDRESS_END: Final = 1 << 63


class PageSet:
    """An immutable set of pages, kept as the byte addresses where runs begin and end.

    ``boundaries`` is start, end, start, end, …: multiples of the page size, strictly
    increasing. It belongs to the set: read it, do not change it.
    """

    __slots__ = ("boundaries",)

    EMPTY: ClassVar[PageSet]
    boundaries: array[int]

    def __init__(self) -> None:
        self.boundaries = array("Q")

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int]]) -> PageSet:
        """The pages of these runs (start, end), in any order; they may overlap.

        Raises:
            ValueError: a run is not aligned, is negative or ends before it starts.
        """
        boundaries = array("Q")
        for start, end in sorted(runs):
            if start % PAGE_BYTES or end % PAGE_BYTES or not 0 <= start <= end:
                raise ValueError(f"no run of pages: {start:#x}-{end:#x}")
            if start == end:
                continue
            if boundaries and start <= boundaries[-1]:
                boundaries[-1] = max(boundaries[-1], end)
            else:
                boundaries.append(start)
                boundaries.append(end)
        return cls._owning(boundaries)

    @classmethod
    def from_boundaries(
        cls,
        boundaries: array[int] | bytes | memoryview,
        *,
        low: int = 0,
        high: int = ADDRESS_END,
    ) -> PageSet:
        """The set whose boundaries these are, copied; bytes are little-endian u64.

        Raises:
            ValueError: they are not aligned, strictly increasing, even in number or
                within ``low`` and ``high``.
        """
        if isinstance(boundaries, array):
            copy = boundaries[:]
        else:
            copy = array("Q")
            copy.frombytes(boundaries)
        if lib.page_set_check(_view(copy), len(copy), low, high) != 0:
            raise ValueError("not the boundaries of a page set")
        return cls._owning(copy)

    @classmethod
    def _owning(cls, boundaries: array[int]) -> PageSet:
        self = cls.__new__(cls)
        self.boundaries = boundaries
        return self

    def _combine(self, other: PageSet, table: int) -> PageSet:
        a, b = self.boundaries, other.boundaries
        out = array("Q", bytes(8 * (len(a) + len(b))))
        count = lib.page_set_combine(
            _view(a), len(a), _view(b), len(b), table, _view(out)
        )
        del out[count:]
        return PageSet._owning(out)

    def __or__(self, other: PageSet) -> PageSet:
        if not other.boundaries:
            return self
        if not self.boundaries:
            return other
        return self._combine(other, lib.PAGE_SET_OR)

    def __and__(self, other: PageSet) -> PageSet:
        if not self.boundaries or not other.boundaries:
            return PageSet.EMPTY
        return self._combine(other, lib.PAGE_SET_AND)

    def __sub__(self, other: PageSet) -> PageSet:
        if not self.boundaries or not other.boundaries:
            return self
        return self._combine(other, lib.PAGE_SET_MINUS)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        starts, ends = self.boundaries[::2], self.boundaries[1::2]
        return zip(starts, ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self.boundaries)

    def __contains__(self, address: int) -> bool:
        return bisect_right(self.boundaries, address) % 2 == 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageSet):
            return NotImplemented
        return self.boundaries == other.boundaries

    def __hash__(self) -> int:
        return hash(self.boundaries.tobytes())

    def __repr__(self) -> str:
        shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in list(self)[:4])
        more = f", … {self.runs - 4} more" if self.runs > 4 else ""
        return f"<PageSet {self.pages} pages: {shown}{more}>"

    @property
    def bytes(self) -> int:
        return lib.page_set_bytes(_view(self.boundaries), len(self.boundaries))

    @property
    def pages(self) -> int:
        return self.bytes // PAGE_BYTES

    @property
    def runs(self) -> int:
        return len(self.boundaries) // 2

    def within(self, start: int, end: int) -> PageSet:
        """The part between two page addresses; quick also where the set is large."""
        first = bisect_right(self.boundaries, start)
        last = bisect_left(self.boundaries, end)
        part = self.boundaries[first:last]
        if first % 2:
            part.insert(0, start)
        if last % 2:
            part.append(end)
        return PageSet._owning(part) if start < end else PageSet.EMPTY

    def bridged(self, gap_pages: int) -> PageSet:
        """With the gaps that are no longer than so many pages."""
        out = array("Q", bytes(8 * len(self.boundaries)))
        count = lib.page_set_bridge(
            _view(self.boundaries),
            len(self.boundaries),
            gap_pages * PAGE_BYTES,
            _view(out),
        )
        del out[count:]
        return PageSet._owning(out)

    def addresses(self) -> Iterator[int]:
        """Where each page begins, in order: for small sets."""
        for start, end in self:
            yield from range(start, end, PAGE_BYTES)

    def cuts(self, pages_max: int) -> Iterator[PageSet]:
        """The same pages in order, at most ``pages_max`` at a time."""
        if pages_max < 1:
            raise ValueError(f"cannot cut into {pages_max} pages")
        bounds, count = _view(self.boundaries), len(self.boundaries)
        index, address = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        room = array("Q", bytes(16 * pages_max))
        while found := lib.page_set_cut(
            bounds, count, index, address, pages_max, _view(room)
        ):
            yield PageSet._owning(room[:found])


def _view(boundaries: array[int]) -> Cells:
    """The array as C sees it; it must not change its length while this lives."""
    return ffi.from_buffer("uint64_t[]", boundaries)


PageSet.EMPTY = PageSet()
