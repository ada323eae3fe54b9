"""What one pre-copy round was, and what has to happen to what was dropped in it."""

from dataclasses import dataclass

from precopy.address_space import AddressSpace
from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet
from precopy.tracker import Written


@dataclass(slots=True)
class RoundRecord:
    """One round, as the report shows it.

    ``pages`` were sent with their contents, ``zero_pages`` were only named;
    ``bytes_raw`` is what the batches hold and ``bytes_wire`` what went over the link.
    ``pause_s`` is how long the process was stopped for this round.
    """

    number: int
    pages: int = 0
    zero_pages: int = 0
    bytes_raw: int = 0
    bytes_wire: int = 0
    duration_s: float = 0.0
    pause_s: float = 0.0

    @property
    def throughput_bytes_s(self) -> float:
        """Memory sent in a second; 0.0 for a round that took no time."""
        return self.pages * PAGE_BYTES / self.duration_s if self.duration_s else 0.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """Dropped ranges, told apart by what makes them forget.

    ``zeros`` go as ``PageBatch.zeros``. ``remapped`` lie in private file mappings: the
    destination maps the same part of the same file there again (or gives it back with
    MADV_DONTNEED), so that it shows the file.
    """

    zeros: PageSet
    remapped: PageSet


def split_dropped(dropped: PageSet, space: AddressSpace) -> Dropped:
    """What to do about ``Written.dropped``, found in ``space``."""
    return Dropped(
        zeros=dropped & space.anonymous_ranges(),
        remapped=dropped & space.private_file_ranges(),
    )


def together(earlier: Written, later: Written, space: AddressSpace) -> Written:
    """Two takes as one, of which the first was not sent: the later look is right.

    ``space`` is that of the later; what is not ours there any more is left out.
    """
    ours = space.our_ranges()
    return Written(
        data=((earlier.data & ours) - later.dropped) | later.data,
        dropped=((earlier.dropped & ours) - later.data) | later.dropped,
    )
