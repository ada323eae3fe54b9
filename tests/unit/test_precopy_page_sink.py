"""Pages arrive where they belong or not at all, and zeros cost nothing."""

import os
from collections.abc import Iterator

import pytest

from precopy.address_space import AddressSpace, Prot, Vma
from precopy.errors import PageStreamError
from precopy.ids import PAGE_BYTES, Pid
from precopy.page_set import PageSet
from precopy.page_sink import PageSink
from precopy.page_stream import PageBatch
from precopy.pagemap import Pagemap
from precopy.task_memory import TaskMemory
from tests.unit.test_precopy_task_memory import PAGES, Area, page_of

RW = Prot.READ | Prot.WRITE


def vma(
    area: Area, first: int, last: int, *, inode: int = 0, shared: bool = False
) -> Vma:
    start, end = area.run(first, last)
    return Vma(start, end, RW, shared, 0, "00:00", inode, "")


@pytest.fixture
def area() -> Area:
    return Area()


@pytest.fixture
def memory() -> Iterator[TaskMemory]:
    with TaskMemory(Pid(os.getpid())) as memory:
        yield memory


def batch(data: PageSet, *numbers: int, zeros: PageSet = PageSet.EMPTY) -> PageBatch:
    payload = b"".join(page_of(number) for number in numbers)
    return PageBatch(0, data, zeros, memoryview(payload))


def test_data_lands_at_its_address(area: Area, memory: TaskMemory) -> None:
    """Whatever the protection of the page."""
    area.protect(4, 5, 0)
    with PageSink(memory, AddressSpace([vma(area, 0, PAGES)])) as sink:
        sink.write(batch(area.pages((1, 2), (4, 6)), 1, 4, 5))
        assert sink.pages_written == 3
    area.protect(4, 5, RW)
    expected = [0, page_of(1)[0], 0, 0, page_of(4)[0], page_of(5)[0], 0, 0]
    assert [area.map[page * PAGE_BYTES] for page in range(PAGES)] == expected


def test_zeros_are_written_only_where_something_is(
    area: Area, memory: TaskMemory
) -> None:
    """A hole that is called zero stays a hole."""
    area.map[2 * PAGE_BYTES] = 7
    with PageSink(memory, AddressSpace([vma(area, 0, PAGES)])) as sink:
        sink.write(batch(PageSet.EMPTY, zeros=area.pages((0, PAGES))))
        assert sink.pages_zeroed == 1
    assert not any(area.map[:])
    with Pagemap(Pid(os.getpid())) as pagemap:
        populated = pagemap.own(area.pages((0, PAGES)))
    assert populated == area.pages((2, 3))


@pytest.mark.parametrize("where", ["outside", "shared", "half"])
def test_pages_outside_of_the_layout_are_refused_whole(
    area: Area, memory: TaskMemory, where: str
) -> None:
    """Nothing of the batch is written."""
    space = AddressSpace([vma(area, 0, 4), vma(area, 4, 6, shared=True)])
    runs = {"outside": (6, 8), "shared": (4, 5), "half": (3, 5)}
    pages = area.pages(runs[where])
    with PageSink(memory, space) as sink:
        with pytest.raises(PageStreamError):
            sink.write(batch(pages, *range(pages.pages)))
        with pytest.raises(PageStreamError):
            sink.write(batch(area.pages((0, 1)), 0, zeros=pages))
    assert not any(area.map[:])


def test_zeros_in_a_file_are_refused_and_data_is_not(
    area: Area, memory: TaskMemory
) -> None:
    """A page that is not there reads as the file's: zeros must come as contents."""
    with PageSink(memory, AddressSpace([vma(area, 0, 4, inode=7)])) as sink:
        sink.write(batch(area.pages((1, 2)), 1))
        with pytest.raises(PageStreamError):
            sink.write(batch(PageSet.EMPTY, zeros=area.pages((1, 2))))
    assert area.map[PAGE_BYTES] == page_of(1)[0]


def test_a_new_layout_holds_from_then_on(area: Area, memory: TaskMemory) -> None:
    """What was allowed is refused, and the other way round."""
    with PageSink(memory, AddressSpace([vma(area, 0, 2)])) as sink:
        sink.relayout(AddressSpace([vma(area, 2, 4)]))
        sink.write(batch(area.pages((2, 3)), 2))
        with pytest.raises(PageStreamError):
            sink.write(batch(area.pages((0, 1)), 0))
