"""Pages that arrive: into the memory of the process that will run, checked."""

from typing import Self

from precopy.address_space import AddressSpace
from precopy.errors import PageStreamError
from precopy.page_set import PageSet
from precopy.page_stream import PageBatch
from precopy.pagemap import Pagemap
from precopy.task_memory import TaskMemory


class PageSink:
    """Writes batches to the final addresses of one process.

    ``memory`` stays the caller's. ``space`` is the layout that was agreed upon; each
    page must lie in one of its private mappings, or nothing of the batch is written.
    """

    def __init__(self, memory: TaskMemory, space: AddressSpace) -> None:
        self._memory = memory
        self._pagemap = Pagemap(memory.pid)
        self.pages_written = 0
        self.pages_zeroed = 0
        self.relayout(space)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._pagemap.close()

    def relayout(self, space: AddressSpace) -> None:
        """From now on this is the layout."""
        self._ours = space.our_ranges()
        self._anonymous = space.anonymous_ranges()

    def write(self, batch: PageBatch) -> None:
        """Put the pages of ``batch`` where they belong.

        Zeros cost nothing where nothing is: only pages that are there are written.

        Raises:
            PageStreamError: a page lies outside of the layout, or a zero page outside
                of anonymous memory; nothing was written.
            TaskVanished, KernelError: the skeleton is not as we made it.
        """
        if stray := batch.data - self._ours:
            raise PageStreamError(f"pages outside of the agreed memory: {stray!r}")
        if stray := batch.zeros - self._anonymous:
            raise PageStreamError(f"zeros outside of anonymous memory: {stray!r}")
        if batch.data:
            self._memory.write_runs(batch.data, batch.payload)
            self.pages_written += batch.data.pages
        if batch.zeros:
            self._zero(batch.zeros)

    def _zero(self, zeros: PageSet) -> None:
        there: PageSet = self._pagemap.own(zeros)
        if there:
            self._memory.zero_runs(there)
            self.pages_zeroed += there.pages
