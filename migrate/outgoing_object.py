"""An object that several processes may share, on its way: once for the whole tree.

No tracker sees all who write to it: another mapping, a descriptor and fallocate(2)
leave no mark (writes by userfaultfd are seen in one mapping alone). So at each look all
that it holds is read and compared with what was sent. In the freeze that is downtime.
"""

from collections.abc import Callable, Iterator

from migrate.image import Index
from migrate.outgoing_memory import Taken
from migrate.shared_objects import SharedObjects
from precopy.file_pages import whole
from precopy.ids import PAGE_BYTES
from precopy.page_digests import PageDigests
from precopy.page_set import PageSet
from precopy.page_stream import OBJECTS_FROM, PageBatch, batches
from precopy.rounds import Dropped


class OutgoingObject:
    """One of them, from the first look to the last."""

    def __init__(self, objects: SharedObjects, number: int) -> None:
        self._objects = objects
        self._number = number
        self._pages = objects.pages(number)
        self._digests = PageDigests()
        self._size_bytes = objects.size(number)
        self._began = False
        self.sent = PageSet.EMPTY

    def take(self) -> Taken:
        """What is otherwise than what was sent; the size is what was told last."""
        before, self._size_bytes = self._size_bytes, self._objects.size(self._number)
        here = whole(self._size_bytes)
        gone = whole(before) - here
        self.sent -= gone
        self._digests.note_zeros(gone)
        present = self._pages.present(self._size_bytes)
        # The first time all of it goes; what of it is zero is found as it is read.
        data = self._digests.changed(self._pages, present) if self._began else present
        if before < self._size_bytes and before % PAGE_BYTES:
            # What came behind the old end was cut off over there.
            last = before - before % PAGE_BYTES
            data |= PageSet.of([(last, last + PAGE_BYTES)]) & present
        self._began = True
        dropped = Dropped((self.sent & here) - present, PageSet.EMPTY)
        return Taken(data, PageSet.EMPTY, dropped, data.pages)

    def batches(
        self,
        taken: Taken,
        hold_back: PageSet,
        batch_pages_max: int,
        room: Callable[[], bytearray] | None,
    ) -> Iterator[PageBatch]:
        """What was taken, in batches, each valid until the next is drawn.

        Nothing is held back: what is not sent is found again at the next look.
        """
        data: list[PageSet] = []
        zeros: list[PageSet] = []
        for batch in batches(
            self._pages,
            OBJECTS_FROM + self._number,
            taken.data,
            sent=self.sent,
            anonymous=whole(self._size_bytes),
            zeros=taken.dropped.zeros & self.sent,
            batch_pages_max=batch_pages_max,
            room=room,
        ):
            if batch.data:
                self._digests.note(batch.data, batch.payload)
            self._digests.note_zeros(batch.zeros)
            data.append(batch.data)
            zeros.append(batch.zeros)
            yield batch
        self.sent -= PageSet.of(run for pages in zeros for run in pages)
        self.sent |= PageSet.of(run for pages in data for run in pages)


def index_of(number: int) -> Index:
    """Where an object stands among the memories of a tree."""
    return Index(OBJECTS_FROM + number)
