"""Pages on their way: what was written, in batches of bounded size.

A batch as it travels, all numbers little-endian as the pages themselves are:

    offset  length
    0       4       index of the process in its tree, or of an object (below)
    4       4       d: boundaries of data runs, an even number
    8       4       z: boundaries of zero runs, an even number
    12      8 d     data: start, end, start, end, …
    …       8 z     zeros: likewise
    …       4096 n  the contents of the n pages of data, in order

From OBJECTS_FROM on, the index is that of an object that several processes may share,
and the addresses are offsets in it.

Boundaries are page aligned user addresses, strictly increasing (so that each set of
pages has one form), and data and zeros have no page in common.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from precopy._native import ffi, lib
from precopy.errors import PageStreamError
from precopy.ids import PAGE_BYTES, USER_END
from precopy.page_set import PageSet

if TYPE_CHECKING:
    from typing_extensions import Buffer

BATCH_PAGES_MAX: Final = 256
ZERO_RUNS_MAX: Final = 1024
OBJECTS_FROM: Final = 1 << 31
HEAD: Final = struct.Struct("<III")
# The largest batch that there is: 1 MiB of pages, each in a run of its own.
BATCH_BYTES_MAX: Final = (
    HEAD.size + 16 * (BATCH_PAGES_MAX + ZERO_RUNS_MAX) + BATCH_PAGES_MAX * PAGE_BYTES
)


class ReadsPages(Protocol):
    """What batches are read from; TaskMemory is one."""

    def read_runs(self, pages: PageSet, buffer: Buffer) -> PageSet: ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a receiver takes. ``processes_max`` is how many the tree has.

    And ``objects_max`` is how many objects there are.
    """

    processes_max: int
    objects_max: int = 0
    pages_max: int = BATCH_PAGES_MAX
    zero_runs_max: int = ZERO_RUNS_MAX

    def have(self, index: int) -> bool:
        """Whether there is such a process or object."""
        if index >= OBJECTS_FROM:
            return index - OBJECTS_FROM < self.objects_max
        return index < self.processes_max


@dataclass(frozen=True, slots=True)
class PageBatch:
    """Some pages of one process, or of one object.

    ``zeros`` must read as zero at the destination, and something else may be there;
    they lie in anonymous memory. ``payload`` is the contents of ``data`` and belongs
    to whoever made the batch: see there for how long it is valid.
    """

    process: int
    data: PageSet
    zeros: PageSet
    payload: memoryview = field(repr=False)

    @property
    def pages(self) -> int:
        return self.data.pages + self.zeros.pages

    def encode(self) -> Sequence[bytes | memoryview]:
        """The buffers which, one behind the other, are the batch; nothing is copied."""
        data, zeros = self.data.boundaries, self.zeros.boundaries
        head = HEAD.pack(self.process, len(data), len(zeros))
        return head + data.tobytes() + zeros.tobytes(), self.payload

    @classmethod
    def decode(cls, body: memoryview, limits: BatchLimits) -> PageBatch:
        """The batch in ``body``, of which the payload stays a part.

        Raises PageStreamError if it is anything but what encode() would give.
        """
        if len(body) < HEAD.size:
            raise PageStreamError(f"{len(body)} bytes are no batch of pages")
        process, data_count, zero_count = HEAD.unpack_from(body)
        if not limits.have(process):
            raise PageStreamError(f"pages of process {process}, which is not there")
        if data_count > 2 * limits.pages_max or zero_count > 2 * limits.zero_runs_max:
            raise PageStreamError(
                f"a batch of {data_count} and {zero_count} boundaries"
            )
        data_end = HEAD.size + 8 * data_count
        zero_end = data_end + 8 * zero_count
        if len(body) < zero_end:
            raise PageStreamError("a batch of pages is cut short")
        data = _decode_set(body[HEAD.size : data_end])
        zeros = _decode_set(body[data_end:zero_end])
        payload = body[zero_end:]
        if data.pages > limits.pages_max:
            raise PageStreamError(f"a batch of {data.pages} pages")
        if len(payload) != data.bytes:
            raise PageStreamError(f"{len(payload)} bytes for {data.pages} pages")
        if data & zeros:
            raise PageStreamError("a page is both data and zero")
        if not data and not zeros:
            raise PageStreamError("a batch without a page")
        return cls(process, data, zeros, payload)


def _decode_set(bounds: memoryview) -> PageSet:
    try:
        return PageSet.from_boundaries(bounds, low=0, high=USER_END)
    except ValueError:
        raise PageStreamError("the runs of a batch are not those of pages") from None


def batches(
    memory: ReadsPages,
    process: int,
    data: PageSet,
    *,
    sent: PageSet,
    anonymous: PageSet,
    zeros: PageSet = PageSet.EMPTY,
    batch_pages_max: int = BATCH_PAGES_MAX,
    room: Callable[[], bytearray] | None = None,
) -> Iterator[PageBatch]:
    """Read ``data`` in bulk and hand it out, each batch valid until the next is drawn.

    ``room``, where it is given, is asked for a buffer of ``batch_pages_max`` pages for
    each batch with contents: these are valid until the caller uses the buffer again.

    Pages that are found to be zero are left out, and go as zeros where they were
    ``sent`` before. But only in ``anonymous`` memory: where a file is mapped, a page
    that is not there reads as the file's, and zeros are contents like any other.
    ``zeros`` (anonymous, dropped since they were sent) go first. Pages that vanish
    while they are read are left out: the next take reports them.

    Raises:
        TaskVanished: the process has gone.
    """
    nothing = memoryview(b"")
    for some in _cut_runs(zeros & anonymous, ZERO_RUNS_MAX):
        yield PageBatch(process, PageSet.EMPTY, some, nothing)
    if not data:
        return
    pages_max = min(batch_pages_max, data.pages)
    reader = _Reader(memory, pages_max)
    buffer = bytearray(pages_max * PAGE_BYTES) if room is None else None
    for cut in data.cuts(batch_pages_max):
        if buffer is None:
            assert room is not None
            buffer = room()
        found, empty, payload = reader.read(cut, anonymous, memoryview(buffer))
        if empty:
            empty &= sent.within(empty.boundaries[0], empty.boundaries[-1])
        if found or empty:
            yield PageBatch(process, found, empty, payload)
        if found and room is not None:
            buffer = None


class _Reader:
    """Reads pages, and has room for what is found in them."""

    def __init__(self, memory: ReadsPages, pages_max: int) -> None:
        self._memory = memory
        self._data = array("Q", bytes(16 * pages_max))
        self._zeros = array("Q", bytes(16 * pages_max))
        self._counts = ffi.new("uint64_t *"), ffi.new("uint64_t *")

    def read(
        self, pages: PageSet, holes: PageSet, buffer: memoryview
    ) -> tuple[PageSet, PageSet, memoryview]:
        """Those that hold something, those that are zero, and the former's contents.

        These are at the front of ``buffer``. Pages outside of ``holes`` hold something
        even if it is zeros.
        """
        got = self._memory.read_runs(pages, buffer)
        if not got:
            return got, got, buffer[:0]
        near = holes.within(got.boundaries[0], got.boundaries[-1])
        data_count, zero_count = self._counts
        lib.pages_split(
            ffi.from_buffer("uint8_t[]", buffer),
            ffi.from_buffer("uint64_t[]", got.boundaries),
            len(got.boundaries),
            ffi.from_buffer("uint64_t[]", near.boundaries),
            len(near.boundaries),
            ffi.from_buffer("uint64_t[]", self._data),
            data_count,
            ffi.from_buffer("uint64_t[]", self._zeros),
            zero_count,
        )
        data = PageSet.from_boundaries(self._data[: data_count[0]])
        zeros = PageSet.from_boundaries(self._zeros[: zero_count[0]])
        return data, zeros, buffer[: data.bytes]


def _cut_runs(pages: PageSet, runs_max: int) -> Iterator[PageSet]:
    runs = iter(pages)
    while some := tuple(islice(runs, runs_max)):
        yield PageSet.of(some)
