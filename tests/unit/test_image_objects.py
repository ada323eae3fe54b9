"""Shared objects of an image: what no source would say of them is refused."""

from dataclasses import replace
from typing import Any

import pytest

from migrate.arriving_objects import ArrivingObjects
from migrate.image import (
    OBJECT_BYTES_MAX,
    ImageError,
    ObjectSort,
    SharedObject,
    judge_objects,
)
from precopy.address_space import Prot, Vma
from precopy.errors import PageStreamError
from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet
from precopy.page_stream import OBJECTS_FROM, BatchLimits, PageBatch

ONE = SharedObject(
    number=0,
    device="00:01",
    inode=7,
    sort=ObjectSort.MEMFD,
    name=b"a name",
    mode=0o777,
    size_bytes=PAGE_BYTES,
    seals=0,
    reserved=True,
)


@pytest.mark.parametrize(
    "changed",
    [
        {"number": -1},
        {"number": 1},
        {"size_bytes": -1},
        {"size_bytes": OBJECT_BYTES_MAX + 1},
        {"mode": 0o10000},
        {"mode": -1},
        {"seals": -1},
        {"name": b"a\0b"},
        {"sort": ObjectSort.DELETED, "name": b"tmp/x"},
        {"sort": ObjectSort.POSIX, "name": b"/etc/passwd"},
        {"sort": ObjectSort.POSIX, "name": b"/dev/shm/../../etc/passwd"},
        {"sort": ObjectSort.POSIX, "name": b"/dev/shm/.."},
        {"sort": ObjectSort.POSIX, "name": b"/dev/shm/"},
    ],
)
def test_what_is_no_object(changed: dict[str, Any]) -> None:
    assert judge_objects((ONE,), 0) == 1
    with pytest.raises(ImageError):
        judge_objects((replace(ONE, **changed),), 0)


def test_they_are_counted_without_a_gap() -> None:
    two = replace(ONE, number=1)
    assert judge_objects((ONE, two, ONE), 0) == 2
    assert judge_objects((two,), 2) == 2
    with pytest.raises(ImageError):
        judge_objects((two, ONE), 0)


def test_one_that_is_known_changes_only_its_size_and_seals() -> None:
    objects = ArrivingObjects()
    objects.hear([ONE])
    objects.hear([replace(ONE, inode=8, name=b"another", size_bytes=0)])
    assert len(objects) == 1
    known, other = (Vma(0, 4096, Prot.READ, True, 0, "00:01", i, "") for i in (7, 8))
    assert objects.find(known) == 0
    assert objects.find(other) is None


def test_pages_of_an_object_that_there_is_not() -> None:
    page = PageSet.of([(0, PAGE_BYTES)])

    def decode(index: int, objects: int) -> PageBatch:
        batch = PageBatch(index, page, PageSet.EMPTY, memoryview(bytes(PAGE_BYTES)))
        limits = BatchLimits(processes_max=1, objects_max=objects)
        return PageBatch.decode(memoryview(b"".join(batch.encode())), limits)

    assert decode(OBJECTS_FROM + 1, 2).process == OBJECTS_FROM + 1
    for index, objects in ((OBJECTS_FROM, 0), (OBJECTS_FROM + 2, 2), (1, 2)):
        with pytest.raises(PageStreamError, match="which is not there"):
            decode(index, objects)


def test_pages_behind_the_end_are_not_written() -> None:
    """Before anything of the object is touched: here there is nothing to touch."""
    objects = ArrivingObjects()
    objects.hear([ONE])
    beyond = PageSet.of([(PAGE_BYTES, 2 * PAGE_BYTES)])
    payload = memoryview(bytes(PAGE_BYTES))
    for data, zeros in ((beyond, PageSet.EMPTY), (PageSet.EMPTY, beyond)):
        batch = PageBatch(OBJECTS_FROM, data, zeros, payload[: data.bytes])
        with pytest.raises(PageStreamError, match="outside of object 0"):
            objects.write(batch)
