"""Another process's memory is read and written whatever its protection.

The other process is ourselves, for a change: to the kernel that is all the same.
"""

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.errors import KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, Pid
from precopy.page_set import PageSet
from precopy.pagemap import Pagemap, Places
from precopy.task_memory import TaskMemory

PAGES = 8
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mremap.restype = ctypes.c_void_p
MREMAP_MAYMOVE_FIXED = 1 | 2


class Area:
    """Some anonymous pages of ours, at an address that we know."""

    def __init__(self, pages: int = PAGES) -> None:
        self.map = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE)
        view = (ctypes.c_char * len(self.map)).from_buffer(self.map)
        self.start = ctypes.addressof(view)
        del view

    def address(self, page: int) -> int:
        return self.start + page * PAGE_BYTES

    def run(self, first: int, last: int) -> tuple[int, int]:
        return self.address(first), self.address(last)

    def pages(self, *runs: tuple[int, int]) -> PageSet:
        return PageSet.of(self.run(*run) for run in runs)

    def protect(self, first: int, last: int, prot: int) -> None:
        start, end = self.run(first, last)
        result = LIBC.mprotect(ctypes.c_void_p(start), end - start, prot)
        assert result == 0

    def unmap(self, first: int, last: int) -> None:
        start, end = self.run(first, last)
        assert LIBC.munmap(ctypes.c_void_p(start), end - start) == 0

    def move(self, page: int, over: int) -> None:
        """Put one page where another one is."""
        old, new = map(ctypes.c_void_p, (self.address(page), self.address(over)))
        size = ctypes.c_size_t(PAGE_BYTES)
        got = LIBC.mremap(old, size, size, MREMAP_MAYMOVE_FIXED, new)
        assert got == self.address(over)

    def fill(self) -> None:
        for page in range(len(self.map) // PAGE_BYTES):
            self.map[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = page_of(page)


def page_of(number: int) -> bytes:
    return bytes([number + 1]) * PAGE_BYTES


@pytest.fixture
def area() -> Area:
    return Area()


@pytest.fixture
def memory() -> Iterator[TaskMemory]:
    with TaskMemory(Pid(os.getpid())) as memory:
        yield memory


def test_runs_are_read_one_behind_the_other(area: Area, memory: TaskMemory) -> None:
    """In order, without the pages between them."""
    area.fill()
    buffer = bytearray(4 * PAGE_BYTES)
    wanted = area.pages((1, 2), (4, 6))
    assert memory.read_runs(wanted, buffer) == wanted
    assert buffer == page_of(1) + page_of(4) + page_of(5) + bytes(PAGE_BYTES)


def test_many_runs_are_read(memory: TaskMemory) -> None:
    """More than fit into one call to the kernel."""
    area = Area(600)
    area.map[:] = os.urandom(len(area.map))
    wanted = area.pages(*((page, page + 1) for page in range(0, 600, 2)))
    buffer = bytearray(wanted.bytes)
    assert memory.read_runs(wanted, buffer) == wanted
    assert buffer == b"".join(
        area.map[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        for page in range(0, 600, 2)
    )


def test_protection_does_not_matter(area: Area, memory: TaskMemory) -> None:
    """Neither for reading nor for writing, at the beginning, within and at the end."""
    area.fill()
    area.protect(0, 1, 0)
    area.protect(3, 5, 0)
    area.protect(7, 8, mmap.PROT_READ)
    whole = area.pages((0, PAGES))
    buffer = bytearray(whole.bytes)
    assert memory.read_runs(whole, buffer) == whole
    assert buffer == b"".join(page_of(page) for page in range(PAGES))
    memory.write_runs(whole, bytes(reversed(buffer)))
    area.protect(0, PAGES, mmap.PROT_READ | mmap.PROT_WRITE)
    assert area.map[:] == bytes(reversed(buffer))
    area.protect(2, 6, 0)
    memory.zero_runs(area.pages((1, 3), (5, 7)))
    area.protect(0, PAGES, mmap.PROT_READ | mmap.PROT_WRITE)
    zeroed = [
        not any(area.map[p * PAGE_BYTES : (p + 1) * PAGE_BYTES]) for p in range(8)
    ]
    assert zeroed == [False, True, True, False, False, True, True, False]


def test_what_is_not_there_is_left_out(area: Area, memory: TaskMemory) -> None:
    """And said; what is behind it is read all the same."""
    area.fill()
    area.unmap(0, 1)
    area.unmap(3, 5)
    area.protect(5, 6, 0)
    buffer = bytearray(PAGES * PAGE_BYTES)
    got = memory.read_runs(area.pages((0, PAGES)), buffer)
    assert got == area.pages((1, 3), (5, 8))
    there = b"".join(page_of(page) for page in (1, 2, 5, 6, 7))
    assert buffer[: len(there)] == there


def test_writing_where_nothing_is_says_where(area: Area, memory: TaskMemory) -> None:
    """As an error of the kernel that names the first such page."""
    area.unmap(2, 3)
    with pytest.raises(KernelError) as caught:
        memory.write_runs(area.pages((1, 4)), bytes(3 * PAGE_BYTES))
    assert caught.value.errno == errno.EFAULT
    assert f"{area.address(2):#x}" in str(caught.value)
    with pytest.raises(KernelError):
        memory.zero_runs(area.pages((2, 3)))


def test_bytes_need_no_alignment(area: Area, memory: TaskMemory) -> None:
    """For single reads and writes, across pages of any protection."""
    area.fill()
    area.protect(1, 2, 0)
    address = area.address(1) - 3
    assert memory.read(address, 6) == b"\1\1\1\2\2\2"
    memory.write(address, b"abcdef")
    assert memory.read(address - 1, 8) == b"\1abcdef\2"
    area.unmap(2, 3)
    with pytest.raises(KernelError) as caught:
        memory.read(area.address(2) - 8, 16)
    assert caught.value.errno == errno.EFAULT
    with pytest.raises(KernelError):
        memory.write(area.address(2), b"x")


def test_a_buffer_of_the_wrong_size_is_refused(area: Area, memory: TaskMemory) -> None:
    """Before anything is read or written."""
    with pytest.raises(ValueError):
        memory.read_runs(area.pages((0, 2)), bytearray(PAGE_BYTES))
    with pytest.raises(ValueError):
        memory.write_runs(area.pages((0, 2)), bytes(PAGE_BYTES))


def test_a_buffer_is_not_held_by_the_error(area: Area) -> None:
    """Its traceback lives on, and with it whatever read_runs() had at hand."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pages = area.pages((0, 2))
    view = memoryview(bytearray(pages.bytes))
    with TaskMemory(Pid(child.pid)) as memory:
        child.communicate()
        with pytest.raises(TaskVanished) as error:
            memory.read_runs(pages, view)
    view.release()
    assert error.traceback


def test_a_process_that_has_gone_is_told_from_a_page_that_has(area: Area) -> None:
    """TaskVanished, from whichever call notices."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = Pid(child.pid)
    with TaskMemory(pid) as memory, Pagemap(pid) as pagemap:
        child.communicate()
        pages = area.pages((0, 2))
        with pytest.raises(TaskVanished):
            memory.read(area.start, 8)
        with pytest.raises(TaskVanished):
            memory.write(area.start, b"x")
        with pytest.raises(TaskVanished):
            memory.read_runs(pages, bytearray(pages.bytes))
        with pytest.raises(TaskVanished):
            memory.write_runs(pages, bytes(pages.bytes))
        with pytest.raises(TaskVanished):
            memory.zero_runs(pages)
        with pytest.raises(TaskVanished):
            pagemap.own(pages)
        with pytest.raises(TaskVanished):
            pagemap.listed(pages)
    with pytest.raises(TaskVanished):
        TaskMemory(pid)
    with pytest.raises(TaskVanished):
        Pagemap(pid)


def test_own_pages_are_those_that_were_written(area: Area) -> None:
    """By scanning and by reading; the zero page is nobody's, if we can tell."""
    area.map[PAGE_BYTES] = 1
    area.map[5 * PAGE_BYTES] = 0  # written, although with zeros
    zero_page = area.map[3 * PAGE_BYTES]
    assert zero_page == 0
    whole = area.pages((0, PAGES))
    with Pagemap(Pid(os.getpid())) as pagemap:
        assert pagemap.own(whole) == area.pages((1, 2), (5, 6))
        listed = pagemap.listed(whole).own
        assert not area.pages((1, 2), (5, 6)) - listed
        assert not listed - area.pages((1, 2), (3, 4), (5, 6))


def test_a_scan_finds_more_than_fits_into_its_lists_at_first() -> None:
    """Every other page of many, in runs of one."""
    area = Area(40_000)
    for page in range(0, 40_000, 2):
        area.map[page * PAGE_BYTES] = 1
    expected = area.pages(*((page, page + 1) for page in range(0, 40_000, 2)))
    with Pagemap(Pid(os.getpid())) as pagemap:
        whole = area.pages((0, 40_000))
        assert pagemap.own(whole) == expected
        assert pagemap.listed(whole).own == expected
        assert pagemap.scan(whole, chunk_bytes=PAGE_BYTES * 7).own == expected


def test_a_page_that_lies_elsewhere_in_memory_counts_as_written(area: Area) -> None:
    """With soft-dirty or without; and one that is new; but not one that stayed."""
    if os.geteuid() != 0:
        pytest.skip("only root sees where pages are")
    whole = area.pages((0, PAGES))
    for page in (1, 2, 3, 6):
        area.map[page * PAGE_BYTES] = page
    with Pagemap(Pid(os.getpid())) as pagemap:
        first, places = pagemap.marked(whole, Places.nowhere())
        assert first.written == first.own == area.pages((1, 4), (6, 7))
        # Marked by what was done just now, where there are marks.
        Path("/proc/self/clear_refs").write_text("4")
        area.move(3, over=2)
        area.map[7 * PAGE_BYTES] = 7
        second, places = pagemap.marked(whole, places)
        assert second.own == area.pages((1, 3), (6, 8))
        assert second.written == area.pages((2, 3), (7, 8))
        Path("/proc/self/clear_refs").write_text("4")
        assert not pagemap.marked(whole, places)[0].written


def test_places_of_more_pages_than_there_was_room_for() -> None:
    """In as many calls as it takes."""
    area = Area(40_000)
    for page in range(40_000):
        area.map[page * PAGE_BYTES] = 1
    Path("/proc/self/clear_refs").write_text("4")
    whole = area.pages((0, 40_000))
    with Pagemap(Pid(os.getpid())) as pagemap:
        first, places = pagemap.marked(whole, Places.nowhere())
        assert first.written == whole and len(places.words) == 40_000
        assert not pagemap.marked(whole, places)[0].written
