"""Which pages did the process write since we last asked? A port with adapters.

``everything`` says all of them; ``uffd_wp`` and ``soft_dirty`` let the kernel note
first writes. The former is what the others are tested against.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from precopy.address_space import AddressSpace
from precopy.page_set import PageSet


@dataclass(frozen=True, slots=True)
class Written:
    """What has to happen at the destination to the pages of one process.

    ``data`` are own pages to be sent, and to be sent again. ``dropped`` are ranges
    whose earlier contents must go: anonymous memory reads as zero there again
    (``PageBatch.zeros``), and private file mappings show the file again, so those are
    mapped anew by whoever maps (``rounds.split_dropped`` tells them apart). The two
    have no page in common.
    """

    data: PageSet = PageSet.EMPTY
    dropped: PageSet = PageSet.EMPTY


# Stops every thread of the process, and lets them go on at the end of the block.
Pause = Callable[[], AbstractContextManager[object]]


class DirtyTracker(Protocol):
    """Follows the writes of one process from the first take to the last."""

    @property
    def name(self) -> str: ...

    def take(self, space: AddressSpace, *, final: bool = False) -> Written:
        """The pages written since the last take; at first, all that are there.

        May report a page that was not written, never omits one that was. The caller
        has applied ``previous.changes_to(space)`` to the destination, where
        ``previous`` is the address space of the last take: what that change empties is
        taken to be empty there. ``final``: the tree is frozen, ``space`` is exact and
        nothing will be written any more; there is no take after it.

        Raises:
            TaskVanished: the process exited or called execve(2).
            GuardRegions: it holds guard pages, which cannot be carried.
        """
        ...

    def close(self) -> None:
        """Give back what it holds in the kernel; the process notices nothing."""
        ...
