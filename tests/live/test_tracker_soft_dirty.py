"""The tracker by soft-dirty says what was written, and survives what forgets marks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from migrate.kernel import probes
from precopy.ids import PAGE_BYTES
from precopy.tracker import Written
from precopy.tracker.soft_dirty import SoftDirtyTracker
from tests.live.targets import compiled
from tests.live.targets.following import Followed
from tests.live.targets.obedient import (
    BASE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MREMAP,
    MUNMAP,
    Obedient,
    at,
    run,
)

HUGE: Final = 512  # pages
KSM: Final = Path("/sys/kernel/mm/ksm")
MAYMOVE, FIXED = 1, 2

pytestmark = pytest.mark.skipif(
    not probes.soft_dirty(), reason=f"no soft-dirty: {probes.soft_dirty().why_not}"
)


class Paused(Followed[SoftDirtyTracker]):
    """Counts the pauses that its tracker asks for."""

    def __init__(self, target: Obedient) -> None:
        super().__init__(target, SoftDirtyTracker(target.pid, self._pause))
        self.pauses = 0
        self.before_the_pause: Callable[[], object] = lambda: None

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self.before_the_pause()
        self.pauses += 1
        yield


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("obedient", tmp_path_factory.mktemp("targets"))


@pytest.fixture
def followed(program: Path) -> Iterator[Paused]:
    with Obedient(program) as target:
        followed = Paused(target)
        with followed.tracker:
            yield followed


def map_small(target: Obedient, start: int, pages: int) -> None:
    """Memory of small pages only: one mark on a huge page is 512 here."""
    target.map(start, pages)
    assert target.advise(start, pages, MADV_NOHUGEPAGE) == 0


def test_only_what_was_written_is_reported(followed: Paused) -> None:
    """Page for page, with a pause for each but the first look and the last."""
    map_small(followed.target, BASE, 1000)
    followed.target.write(BASE, 600)
    assert followed.data() == run(0, 600)
    assert followed.pauses == 0
    assert not followed.data()
    followed.target.write(at(17))
    followed.target.write(at(599), 3)
    assert followed.data() == run(17, 18) | run(599, 602)
    assert followed.pauses == 2
    followed.target.write(at(3))
    assert followed.data(final=True) == run(3, 4)
    assert followed.pauses == 2


def test_a_new_mapping_is_reported_where_it_was_touched(followed: Paused) -> None:
    """All of a mapping never cleared reads as written, there or not."""
    followed.take()
    map_small(followed.target, BASE, 100)
    followed.target.write(at(7), 2)
    assert followed.target.look(at(20)) == 0
    assert followed.data() == run(7, 9)
    assert not followed.data(final=True)


def test_what_was_given_back_is_dropped_at_once(followed: Paused) -> None:
    """And data again when it is written again; the zero page is nothing."""
    map_small(followed.target, BASE, 20)
    followed.target.write(BASE, 20)
    assert followed.data() == run(0, 20)
    assert followed.target.advise(at(5), 4, MADV_DONTNEED) == 0
    followed.target.write(at(6))
    assert followed.target.look(at(7)) == 0
    assert followed.take() == Written(data=run(6, 7), dropped=run(5, 6) | run(7, 9))
    assert followed.take() == Written()
    followed.target.write(at(7))
    assert followed.target.advise(at(0), 2, MADV_DONTNEED) == 0
    assert followed.take(final=True) == Written(data=run(7, 8), dropped=run(0, 2))


def test_own_pages_of_a_file_mapping_are_dropped_when_given_back(
    followed: Paused,
) -> None:
    """Read again, they are the file's, which are never ours."""
    followed.target.map(BASE, 20, fd=followed.target.file(20))
    assert followed.target.look(at(1)) == 0
    followed.target.write(at(4), 4)
    assert followed.data() == run(4, 8)
    assert followed.target.advise(at(5), 2, MADV_DONTNEED) == 0
    followed.target.look(at(5))
    assert followed.take() == Written(dropped=run(5, 7))


def test_huge_memory_given_back_and_read_is_dropped(followed: Paused) -> None:
    """The huge zero page, where there is one, is no page of its own."""
    followed.target.map(BASE, 2 * HUGE)
    assert followed.target.advise(BASE, 2 * HUGE, MADV_HUGEPAGE) == 0
    followed.target.write(BASE, 2 * HUGE)
    assert followed.data() == run(0, 2 * HUGE)
    assert followed.target.advise(BASE, HUGE, MADV_DONTNEED) == 0
    assert followed.target.look(at(3)) == 0
    assert followed.take() == Written(dropped=run(0, HUGE))
    followed.target.write(at(9))
    assert followed.data(final=True) & run(9, 10)


@pytest.mark.parametrize("in_the_end", [False, True])
@pytest.mark.parametrize("pages", [8, HUGE])
def test_a_mapping_moved_over_another_is_written(
    followed: Paused, pages: int, in_the_end: bool
) -> None:
    """Moving a whole page table moves the marks with it, and there were none.

    Afterwards all looks as before in the list of mappings.
    """
    map_small(followed.target, BASE, HUGE)
    map_small(followed.target, at(4 * HUGE), HUGE)
    followed.target.write(BASE, pages)
    followed.target.write(at(4 * HUGE), pages, value=2)
    assert followed.data() == run(0, pages) | run(4 * HUGE, 4 * HUGE + pages)
    length, flags = pages * PAGE_BYTES, MAYMOVE | FIXED
    moved = followed.target.call(MREMAP, at(4 * HUGE), length, length, flags, BASE)
    assert moved == BASE
    assert not run(0, pages) - followed.data(final=in_the_end)


def test_what_is_replaced_between_look_and_pause_is_noticed(
    followed: Paused,
) -> None:
    """The list of mappings is older than the marks, and these are cleared by then."""
    map_small(followed.target, BASE, 32)
    followed.target.write(BASE, 32)
    assert followed.data() == run(0, 32)

    def replace() -> None:
        assert followed.target.call(MUNMAP, BASE, 16 * PAGE_BYTES) == 0
        map_small(followed.target, BASE, 16)
        followed.target.write(at(4), value=9)
        map_small(followed.target, at(40), 8)
        followed.target.write(at(41), value=9)

    followed.before_the_pause = replace
    first = followed.take()
    followed.before_the_pause = lambda: None
    second = followed.take(final=True)
    # The kernel joins the new mapping with the old one, and marks all of it.
    assert first.data - run(16, 32) == run(4, 5)
    assert first.dropped == run(0, 4) | run(5, 16)
    assert second == Written(run(41, 42))


def test_a_page_that_was_merged_is_still_reported(followed: Paused) -> None:
    """KSM puts a page of its own in the place, without the mark."""
    if not (KSM / "run").exists():
        pytest.skip("this kernel has no KSM")
    before = {name: (KSM / name).read_text() for name in ("run", "pages_to_scan")}
    map_small(followed.target, BASE, 16)
    assert followed.target.advise(BASE, 16, MADV_MERGEABLE) == 0
    followed.target.write(BASE, 16)
    followed.take()
    try:
        (KSM / "pages_to_scan").write_text("10000")
        followed.target.write(BASE, 16, value=7)
        (KSM / "run").write_text("1")
        while int((KSM / "pages_sharing").read_text()) == 0:
            pass  # each reading takes a while, and the daemon works on the other CPU
        assert followed.data() == run(0, 16)
    finally:
        for name, text in before.items():
            (KSM / name).write_text(text)


def test_swapped_pages_keep_their_marks(followed: Paused) -> None:
    """What was written is reported, in swap or not; what went there or back is, too."""
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        pytest.skip("there is no swap here")
    map_small(followed.target, BASE, 16)
    followed.target.write(BASE, 16)
    assert followed.data() == run(0, 16)
    assert followed.target.advise(BASE, 8, MADV_PAGEOUT) == 0
    assert followed.data() == run(0, 8)
    assert not followed.data()
    followed.target.write(at(3), 2, value=5)
    assert followed.target.advise(BASE, 8, MADV_PAGEOUT) == 0
    assert not run(3, 5) - followed.data()
    assert not followed.data(final=True)
