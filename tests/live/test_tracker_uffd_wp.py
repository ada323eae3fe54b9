"""The tracker by userfaultfd says what was written, and costs what was touched."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.address_space import AddressSpace
from precopy.errors import GuardRegions, TaskVanished
from precopy.ids import PAGE_BYTES
from precopy.tracker import Written
from precopy.tracker.everything import EverythingTracker
from precopy.tracker.uffd_wp import UffdWpTracker
from tests.live.targets import compiled
from tests.live.targets.following import Followed, follow
from tests.live.targets.obedient import (
    BASE,
    CLOSE,
    EXECVE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MIB,
    MREMAP,
    MUNMAP,
    Obedient,
    at,
    run,
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("obedient", tmp_path_factory.mktemp("targets"))


@pytest.fixture
def target(program: Path) -> Iterator[Obedient]:
    with Obedient(program) as target:
        yield target


@pytest.fixture
def followed(target: Obedient) -> Iterator[Followed[UffdWpTracker]]:
    with follow(target) as tracker:
        assert target.call(CLOSE, target.uffd_number) == 0
        yield Followed(target, tracker)


def page_table_bytes(target: Obedient) -> int:
    for line in Path(f"/proc/{target.pid}/status").read_text().splitlines():
        if line.startswith("VmPTE:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmPTE")


def test_only_what_was_written_is_reported(followed: Followed[UffdWpTracker]) -> None:
    """Page for page, and nothing when nothing was."""
    followed.target.map(BASE, 1000)
    followed.target.write(BASE, 600)
    assert followed.data() == run(0, 600)
    assert not followed.data()
    followed.target.write(at(17))
    followed.target.write(at(599), 3)
    assert followed.data() == run(17, 18) | run(599, 602)
    followed.target.write(at(3))
    assert followed.data(final=True) == run(3, 4)


def test_a_reservation_costs_what_is_touched_of_it(
    followed: Followed[UffdWpTracker],
) -> None:
    """64 GiB with 100 MiB touched: 25,600 pages, and page tables for them alone."""
    target, reserved, touched = followed.target, 64 << 30, 25_600
    flags = MAP_PRIVATE | MAP_NORESERVE
    target.map(BASE, reserved // PAGE_BYTES, flags)
    half = BASE + reserved // 2
    target.write(BASE, touched // 2)
    target.write(half, touched // 2)
    before = page_table_bytes(target)
    assert followed.data().pages == touched
    assert not followed.data()
    target.write(half + 5 * PAGE_BYTES)
    assert followed.data().pages == 1
    assert not followed.data(final=True)
    assert page_table_bytes(target) - before < MIB


def test_what_was_given_back_is_dropped_at_once(
    followed: Followed[UffdWpTracker],
) -> None:
    """And data again when it is written again; the zero page is nothing."""
    followed.target.map(BASE, 20)
    followed.target.write(BASE, 20)
    assert followed.data() == run(0, 20)
    assert followed.target.advise(at(5), 4, MADV_DONTNEED) == 0
    followed.target.write(at(6))
    assert followed.target.look(at(7)) == 0  # now the zero page is there
    assert followed.take() == Written(data=run(6, 7), dropped=run(5, 6) | run(7, 9))
    assert followed.take() == Written()
    followed.target.write(at(7))
    assert followed.target.advise(at(0), 2, MADV_DONTNEED) == 0
    assert followed.take(final=True) == Written(data=run(7, 8), dropped=run(0, 2))


def test_own_pages_of_a_file_mapping_are_dropped_when_given_back(
    followed: Followed[UffdWpTracker],
) -> None:
    """At the latest two takes later; read pages are the file's and never ours."""
    followed.target.map(BASE, 20, fd=followed.target.file(20))
    assert followed.target.look(at(1)) == 0
    followed.target.write(at(4), 4)
    assert followed.data() == run(4, 8)
    assert followed.target.advise(at(5), 2, MADV_DONTNEED) == 0
    first = followed.take()
    # What is left behind cannot be told from a swapped page: read, it is the file's.
    assert not first.data - run(5, 7)
    for page in (5, 6):
        followed.target.look(at(page))
    assert first.dropped | followed.take().dropped == run(5, 7)


@pytest.mark.parametrize("in_the_end", [False, True])
def test_a_mapping_replaced_at_its_place_is_noticed(
    followed: Followed[UffdWpTracker], in_the_end: bool
) -> None:
    """What is there now is data, what was there is dropped; and it is followed on."""
    followed.target.map(BASE, 64)
    followed.target.write(BASE, 64)
    assert followed.data() == run(0, 64)
    assert followed.target.call(MUNMAP, at(16), 16 * PAGE_BYTES) == 0
    followed.target.map(at(16), 16)
    followed.target.write(at(20), 2)
    written = followed.take(final=in_the_end)
    assert written == Written(run(20, 22), run(16, 20) | run(22, 32))
    if not in_the_end:
        assert followed.take() == Written()
        followed.target.write(at(21))
        assert followed.take() == Written(run(21, 22))


def test_a_moved_mapping_is_written_where_it_went(
    followed: Followed[UffdWpTracker],
) -> None:
    """And what stays mapped where it was is empty (MREMAP_DONTUNMAP)."""
    followed.target.map(BASE, 8)
    followed.target.write(BASE, 8)
    assert followed.data() == run(0, 8)
    length, flags = 8 * PAGE_BYTES, 1 | 2 | 4  # MAYMOVE | FIXED | DONTUNMAP
    moved = followed.target.call(MREMAP, BASE, length, length, flags, at(100))
    assert moved == at(100)
    assert followed.take() == Written(run(100, 108), run(0, 8))


@pytest.mark.parametrize("of_a_file", [False, True])
@pytest.mark.parametrize("in_the_end", [False, True])
def test_a_mapping_that_lost_its_protection_is_followed_anew(
    followed: Followed[UffdWpTracker], of_a_file: bool, in_the_end: bool
) -> None:
    """Moving an untouched mapping between registered ones takes theirs, too.

    All become one, without a userfaultfd, but pages keep the mark of protection. The
    first write makes such a page writable and leaves the mark: registered again, it
    would look protected for ever.
    """
    fd = followed.target.file(48) if of_a_file else -1
    followed.target.map(BASE, 48, fd=fd)
    followed.target.write(at(40), 2)
    followed.target.map(at(100), 2, fd=fd, first=28)
    assert followed.data() == run(40, 42)
    flags = 1 | 2  # MAYMOVE | FIXED
    length = 2 * PAGE_BYTES
    moved = followed.target.call(MREMAP, at(100), length, length, flags, at(28))
    assert moved == at(28)
    followed.target.write(at(40))
    assert followed.data(final=in_the_end) & run(40, 41)
    if in_the_end:
        return
    followed.target.write(at(40))
    assert followed.data() == run(40, 41)
    followed.target.write(at(41))
    assert followed.data(final=True) == run(41, 42)


def test_huge_pages_are_followed_in_small_ones(
    followed: Followed[UffdWpTracker],
) -> None:
    """The first write splits what was huge."""
    followed.target.map(BASE, 1024)
    assert followed.target.advise(BASE, 1024, MADV_HUGEPAGE) == 0
    followed.target.write(BASE)
    followed.target.write(at(512))
    assert followed.data() in (run(0, 1024), run(0, 1) | run(512, 513))
    assert not followed.data()
    followed.target.write(at(700))
    assert followed.data() == run(700, 701)
    assert followed.target.advise(at(513), 7, MADV_DONTNEED) == 0
    assert not followed.take(final=True).data


def test_shared_memory_is_not_ours(followed: Followed[UffdWpTracker]) -> None:
    """Until private memory takes its place."""
    followed.target.map(BASE, 8, MAP_SHARED)
    followed.target.write(BASE, 8)
    assert not followed.data()
    followed.target.map(BASE, 8)
    followed.target.write(BASE, 3)
    assert followed.data() == run(0, 3)


def test_guard_pages_are_refused_by_address(followed: Followed[UffdWpTracker]) -> None:
    """Before any harm; without them it goes on."""
    followed.target.map(BASE, 8)
    followed.target.write(BASE, 2)
    if followed.target.advise(at(4), 2, MADV_GUARD_INSTALL) != 0:
        pytest.skip("this kernel has no MADV_GUARD_INSTALL")
    with pytest.raises(GuardRegions) as caught:
        followed.take()
    assert caught.value.regions == ((at(4), at(6)),)
    assert f"{at(4):#x}-{at(6):#x}" in str(caught.value)
    with EverythingTracker(followed.target.pid) as everything:
        with pytest.raises(GuardRegions):
            everything.take(followed.target.space())
    assert followed.target.advise(at(4), 2, MADV_GUARD_REMOVE) == 0
    followed.target.write(at(4))
    assert (followed.data() | run(0, 2)) & run(4, 6) == run(4, 5)


@pytest.mark.parametrize("end", ["exit", "exec"])
def test_a_process_that_ended_has_vanished(
    followed: Followed[UffdWpTracker], program: Path, tmp_path: Path, end: str
) -> None:
    """Exit and execve(2) alike, and not a process with nothing in it."""
    target = followed.target
    target.map(BASE, 8)
    target.write(BASE, 2)
    space: AddressSpace = target.space()
    with EverythingTracker(target.pid) as everything:
        everything.take(space)
        followed.take()
        if end == "exit":
            os.kill(target.pid, signal.SIGKILL)
            os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
        else:
            # argv and envp at the end of a page of zeros, the path at its beginning
            for offset, byte in enumerate(os.fsencode(program)):
                target.tell(f"w {at(5) + offset} 1 1 {byte}\n".encode())
                assert target.answer() == 0
            nothing = at(6) - 8
            path = [EXECVE, at(5), nothing, nothing, 0, 0, 0]
            target.tell(b"s " + " ".join(map(str, path)).encode() + b"\n")
            assert target.answer() >= 0  # the first word of the new program
        for final in (False, True):
            with pytest.raises(TaskVanished):
                followed.tracker.take(space, final=final)
            with pytest.raises(TaskVanished):
                everything.take(space, final=final)


def test_nothing_is_left_in_the_process(target: Obedient) -> None:
    """When the tracker closes, mappings are as they were: cut nowhere, not watched."""
    target.map(BASE, 8)
    before = target.space()
    with follow(target) as tracker:
        assert target.call(CLOSE, target.uffd_number) == 0
        target.write(BASE, 8)
        tracker.take(target.space())
        target.map(at(8), 8)
        tracker.take(target.space())
    joined = target.space()
    assert joined.find(BASE) == joined.find(at(15))
    assert len(joined.vmas) == len(before.vmas)
    smaps = Path(f"/proc/{target.pid}/smaps").read_text()
    flags = [line.split() for line in smaps.splitlines() if line.startswith("VmFlags:")]
    assert not any("uw" in words for words in flags)
