"""Pages of files: holes, ends in the midst of a page, and what has changed."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.file_pages import FilePages, whole
from precopy.ids import PAGE_BYTES
from precopy.page_digests import PageDigests
from precopy.page_set import PageSet

PAGES = 1200  # more than two blocks of digests


@pytest.fixture
def fd() -> Iterator[int]:
    """A file of so many pages, all of it a hole."""
    fd = os.memfd_create("pages")
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    yield fd
    os.close(fd)


def page(*numbers: int) -> PageSet:
    return PageSet.of((n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n in numbers)


def test_holes_are_not_there(fd: int) -> None:
    pages, size = FilePages(fd), PAGES * PAGE_BYTES
    assert pages.present(size) == PageSet.EMPTY
    for number in (3, 4, 700, PAGES - 1):
        os.pwrite(fd, b"x", number * PAGE_BYTES + 5)
    assert pages.present(size) == page(3, 4, 700, PAGES - 1)
    assert pages.present(700 * PAGE_BYTES + 1) == page(3, 4, 700)
    pages.punch(page(4, 700))
    assert pages.present(size) == page(3, PAGES - 1)
    assert pages.size() == size


def test_what_lies_behind_the_end_is_zero_or_left_out(fd: int) -> None:
    os.pwrite(fd, b"y" * 2 * PAGE_BYTES, 0)
    os.ftruncate(fd, PAGE_BYTES + 3)
    buffer = bytearray(b"?" * 4 * PAGE_BYTES)
    pages = FilePages(fd)
    assert pages.present(pages.size()) == page(0, 1) == whole(pages.size())
    assert pages.read_runs(page(0, 1, 2, 3), buffer) == page(0, 1)
    assert buffer[: 2 * PAGE_BYTES] == b"y" * (PAGE_BYTES + 3) + bytes(PAGE_BYTES - 3)


def test_what_is_written_ends_where_the_file_does(fd: int) -> None:
    os.ftruncate(fd, PAGE_BYTES + 3)
    pages = FilePages(fd)
    pages.write_runs(page(0, 1), b"z" * 2 * PAGE_BYTES, pages.size())
    assert os.pread(fd, 3 * PAGE_BYTES, 0) == b"z" * (PAGE_BYTES + 3)


@given(
    noted=st.sets(st.integers(0, PAGES - 1)),
    zeroed=st.sets(st.integers(0, PAGES - 1)),
    written=st.sets(st.integers(0, PAGES - 1)),
)
def test_what_is_otherwise_is_found(
    noted: set[int], zeroed: set[int], written: set[int]
) -> None:
    """Against a model: what the other side has of each page, and what is here."""
    fd = os.memfd_create("pages")
    try:
        os.ftruncate(fd, PAGES * PAGE_BYTES)
        pages, digests = FilePages(fd), PageDigests()
        there = dict.fromkeys(range(PAGES), b"")
        for number in noted:
            os.pwrite(fd, b"sent", number * PAGE_BYTES)
            there[number] = b"sent"
        buffer = bytearray(len(noted) * PAGE_BYTES)
        read = pages.read_runs(page(*noted), buffer)
        digests.note(read, memoryview(buffer))
        digests.note_zeros(page(*zeroed))
        there.update(dict.fromkeys(zeroed, b""))
        here = dict.fromkeys(range(PAGES), b"") | dict.fromkeys(noted, b"sent")
        for number in written:
            os.pwrite(fd, b"later", number * PAGE_BYTES + PAGE_BYTES - 5)
            here[number] += b"later"
        differ = page(*(n for n in range(PAGES) if here[n] != there[n]))
        assert digests.changed(pages, whole(PAGES * PAGE_BYTES)) == differ
    finally:
        os.close(fd)
