"""Batches carry what must travel, and a receiver takes nothing else for one."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Buffer

from precopy.errors import PageStreamError
from precopy.ids import PAGE_BYTES, USER_END
from precopy.page_set import PageSet
from precopy.page_stream import (
    BATCH_BYTES_MAX,
    BATCH_PAGES_MAX,
    ZERO_RUNS_MAX,
    BatchLimits,
    PageBatch,
    batches,
)

LIMITS = BatchLimits(processes_max=3)
ZERO = bytes(PAGE_BYTES)
EVERYWHERE = PageSet.of([(0, USER_END)])


def pages(*numbers: int) -> PageSet:
    return PageSet.of((n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n in numbers)


def contents(number: int) -> bytes:
    return number.to_bytes(4, "little") * (PAGE_BYTES // 4)


class Memory:
    """Pages by number; those that are not there have vanished."""

    def __init__(self, content: dict[int, bytes]) -> None:
        self.content = content

    def read_runs(self, pages: PageSet, buffer: Buffer) -> PageSet:
        got = [n for n in numbers(pages) if n in self.content]
        joined = b"".join(self.content[n] for n in got)
        memoryview(buffer)[: len(joined)] = joined
        return PageSet.of((n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n in got)


def numbers(pages: PageSet) -> list[int]:
    return [at // PAGE_BYTES for at in pages.addresses()]


def encoded(batch: PageBatch) -> bytes:
    return b"".join(batch.encode())


def a_batch() -> PageBatch:
    payload = contents(2) + contents(3) + contents(9)
    return PageBatch(2, pages(2, 3, 9), pages(4, 5, 20), memoryview(payload))


def decode(body: bytes) -> PageBatch:
    return PageBatch.decode(memoryview(body), LIMITS)


PAGE_NUMBERS = st.sets(st.integers(0, 60), max_size=12)


@given(st.integers(0, 2), PAGE_NUMBERS, PAGE_NUMBERS)
def test_what_was_encoded_is_decoded(
    process: int, some: set[int], zero: set[int]
) -> None:
    """Page for page; all of it or an error."""
    data = pages(*some)
    payload = b"".join(contents(n) for n in sorted(some))
    batch = PageBatch(process, data, pages(*zero - some), memoryview(payload))
    if not some and not zero:
        with pytest.raises(PageStreamError):
            decode(encoded(batch))
    else:
        assert decode(encoded(batch)) == batch


def test_the_form_is_the_documented_one() -> None:
    """Byte by byte, for one page of data and one of zeros."""
    batch = PageBatch(1, pages(2), pages(7), memoryview(contents(5)))
    assert encoded(batch) == (
        struct.pack("<III", 1, 2, 2)
        + struct.pack("<QQ", 0x2000, 0x3000)
        + struct.pack("<QQ", 0x7000, 0x8000)
        + contents(5)
    )


def test_no_part_of_a_batch_is_a_batch() -> None:
    """Cut at every byte, or with one too many."""
    whole = encoded(a_batch())
    for length in range(len(whole)):
        with pytest.raises(PageStreamError):
            decode(whole[:length])
    with pytest.raises(PageStreamError):
        decode(whole + b"\0")


def forged(
    process: int, data: list[int], zeros: list[int], payload: bytes | None = None
) -> bytes:
    body = struct.pack("<III", process, len(data), len(zeros))
    body += struct.pack(f"<{len(data)}Q", *data) + struct.pack(
        f"<{len(zeros)}Q", *zeros
    )
    if payload is None:
        payload = bytes(sum(data[1::2]) - sum(data[::2]))
    return body + payload


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(forged(3, [0x1000, 0x2000], []), id="no such process"),
        pytest.param(forged(0, [], []), id="nothing"),
        pytest.param(forged(0, [0x1000], [], b""), id="odd boundaries"),
        pytest.param(forged(0, [], [0x1000]), id="odd zero boundaries"),
        pytest.param(forged(0, [0x1000, 0x1000], []), id="an empty run"),
        pytest.param(forged(0, [0x3000, 0x2000], [], ZERO), id="backwards"),
        pytest.param(forged(0, [0x1000, 0x2000, 0x2000, 0x3000], []), id="touching"),
        pytest.param(forged(0, [0x1000, 0x3000, 0x2000, 0x4000], []), id="overlapping"),
        pytest.param(forged(0, [0x1000, 0x2000], [0x1000, 0x2000]), id="both"),
        pytest.param(forged(0, [0x1001, 0x2001], []), id="not aligned"),
        pytest.param(forged(0, [], [0x1000, 0x1FFF]), id="zeros not aligned"),
        pytest.param(forged(0, [USER_END, USER_END + 0x1000], []), id="kernel memory"),
        pytest.param(forged(0, [], [0, 0xFFFF_FFFF_FFFF_F000]), id="the whole world"),
        pytest.param(forged(0, [0x1000, 0x2000], [], ZERO + ZERO), id="too much"),
        pytest.param(forged(0, [0x1000, 0x3000], [], ZERO), id="too little"),
        pytest.param(
            forged(0, [0, (BATCH_PAGES_MAX + 1) * PAGE_BYTES], []), id="too many pages"
        ),
        pytest.param(struct.pack("<III", 0, 0xFFFF_FFFE, 0), id="four billion runs"),
        pytest.param(struct.pack("<III", 0, 0, 0xFFFF_FFFE), id="as many zero runs"),
        pytest.param(
            forged(0, [], list(range(0, (4 * ZERO_RUNS_MAX + 8) * 4096, 2 * 4096))),
            id="too many zero runs",
        ),
    ],
)
def test_what_no_source_sends_is_refused(body: bytes) -> None:
    """With the error of a broken stream, and no other."""
    with pytest.raises(PageStreamError):
        decode(body)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_is_exactly_a_batch(noise: bytes) -> None:
    """What is taken comes out of encode() again."""
    try:
        batch = decode(noise)
    except PageStreamError:
        return
    assert encoded(batch) == noise


def test_the_largest_batch_is_taken() -> None:
    """Every page of data and of zeros in a run of its own."""
    data = pages(*range(0, 2 * BATCH_PAGES_MAX, 2))
    zeros = pages(*range(1000, 1000 + 2 * ZERO_RUNS_MAX, 2))
    payload = memoryview(os.urandom(data.bytes))
    whole = encoded(PageBatch(0, data, zeros, payload))
    assert len(whole) == BATCH_BYTES_MAX
    assert decode(whole).data == data


def read_all(
    content: dict[int, bytes],
    wanted: PageSet,
    *,
    sent: PageSet = PageSet.EMPTY,
    anonymous: PageSet = EVERYWHERE,
    zeros: PageSet = PageSet.EMPTY,
    batch_pages_max: int = 4,
) -> tuple[dict[int, bytes], set[int]]:
    """What a receiver has in the end: pages with contents, and pages of zeros."""
    data: dict[int, bytes] = {}
    zero: set[int] = set()
    for batch in batches(
        Memory(content),
        1,
        wanted,
        sent=sent,
        anonymous=anonymous,
        zeros=zeros,
        batch_pages_max=batch_pages_max,
    ):
        assert batch.data.pages <= batch_pages_max
        taken = PageBatch.decode(memoryview(encoded(batch)), LIMITS)
        assert taken == batch and taken.process == 1
        for i, n in enumerate(numbers(taken.data)):
            assert n not in data
            data[n] = bytes(taken.payload[i * PAGE_BYTES : (i + 1) * PAGE_BYTES])
        zero.update(numbers(taken.zeros))
    return data, zero


@given(
    st.dictionaries(st.integers(0, 40), st.booleans()),
    PAGE_NUMBERS,
    PAGE_NUMBERS,
    PAGE_NUMBERS,
    st.integers(1, 9),
)
def test_batches_hold_what_is_there(
    there: dict[int, bool],
    wanted: set[int],
    sent: set[int],
    of_files: set[int],
    batch_pages_max: int,
) -> None:
    """Zero pages are named only where they were sent, and sent only where files are."""
    content = {n: contents(n + 1) if full else ZERO for n, full in there.items()}
    data, zero = read_all(
        content,
        pages(*wanted),
        sent=pages(*sent),
        anonymous=EVERYWHERE - pages(*of_files),
        batch_pages_max=batch_pages_max,
    )
    read = wanted & content.keys()
    assert data == {n: content[n] for n in read if there[n] or n in of_files}
    assert zero == {n for n in read if not there[n] and n in sent and n not in of_files}


def test_dropped_pages_go_first_in_batches_of_bounded_size() -> None:
    """However many runs they are, and only in anonymous memory."""
    zeros = pages(*range(0, 5 * ZERO_RUNS_MAX, 2))
    data, zero = read_all({1: contents(1)}, pages(1), zeros=zeros)
    assert zero == set(numbers(zeros))
    assert data == {1: contents(1)}
    assert read_all({}, pages(), zeros=pages(3), anonymous=pages(4)) == ({}, set())


def test_last_bytes_of_a_page_count() -> None:
    """A page is zero only if all of it is."""
    for at in (0, 7, 8, 255, 256, 2048, PAGE_BYTES - 1):
        page = bytearray(PAGE_BYTES)
        page[at] = 1
        assert read_all({5: bytes(page)}, pages(5)) == ({5: bytes(page)}, set())
