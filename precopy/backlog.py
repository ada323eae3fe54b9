"""What the destination does not have yet, and what of it is too hot to be sent now.

A page that was written in each of the last looks will be written again before the
freeze, so that sending it before is in vain: it is held back, and goes in the frozen
section. What is held back stays in the backlog, whether or not it is written again,
until it is handed out or given up by the process.
"""

from collections import deque
from typing import Final

from precopy.address_space import AddressSpace
from precopy.page_set import PageSet
from precopy.tracker import Written

HOT_LOOKS: Final = 2


class Backlog:
    """Pages written since they were last handed out."""

    def __init__(self) -> None:
        self._pages = PageSet.EMPTY
        self._recent: deque[PageSet] | None = None  # None: nothing was looked at yet

    @property
    def pages(self) -> PageSet:
        """All that the destination lacks."""
        return self._pages

    @property
    def hot(self) -> PageSet:
        """Those of them that were written in each of the last looks."""
        if self._recent is None or len(self._recent) < HOT_LOOKS:
            return PageSet.EMPTY
        hot = self._pages
        for written in self._recent:
            hot &= written
        return hot

    def note(self, written: Written, space: AddressSpace, emptied: PageSet) -> None:
        """The tracker has looked at ``space``, where ``emptied`` is mapped anew."""
        kept = (self._pages & space.our_ranges()) - emptied - written.dropped
        self._pages = kept | written.data
        if self._recent is None:
            # The first look reports what is there, not what was written.
            self._recent = deque(maxlen=HOT_LOOKS)
        else:
            self._recent.append(written.data)

    def hand_out(self, *, but: PageSet = PageSet.EMPTY) -> PageSet:
        """All but those, which stay; the caller sends what it gets."""
        out = self._pages - but
        self._pages &= but
        return out
