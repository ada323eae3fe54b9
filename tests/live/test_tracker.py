"""What the destination was told to hold is what the frozen source holds.

A C program does to its memory whatever its seed says, while a tracker follows it. A
shadow stands for the destination: it does what a sink would do with the layout changes,
the dropped ranges and the batches. At the end every page of the stopped program equals
the shadow's. To replay one: pytest 'tests/live/test_tracker.py' -k 'SEED and …'.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from migrate.brake import Brake
from migrate.kernel import probes
from migrate.kernel.sleepers import Sleepers
from precopy.address_space import AddressSpace, AddressSpaceChange, Vma
from precopy.ids import PAGE_BYTES, Pid
from precopy.page_set import PageSet
from precopy.page_stream import PageBatch, batches
from precopy.rounds import split_dropped
from precopy.task_memory import TaskMemory
from precopy.tracker import DirtyTracker
from precopy.tracker.everything import EverythingTracker
from precopy.tracker.soft_dirty import SoftDirtyTracker
from tests.live.targets import Target, compiled
from tests.live.targets.following import follow

ZERO_PAGE: Final = bytes(PAGE_BYTES)

SEEDS: Final = 300
SEEDS_A_TEST: Final = 25
ROUNDS: Final = 5
OPERATIONS: Final = 40


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("churn", tmp_path_factory.mktemp("targets"))


class Shadow:
    """The destination, as far as memory goes: what it was told, by page."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}

    def relayout(self, change: AddressSpaceChange) -> None:
        self.forget(change.emptied)

    def forget(self, pages: PageSet) -> None:
        for at in [at for at in self.pages if at in pages]:
            del self.pages[at]

    def apply(self, batch: PageBatch) -> None:
        for at in batch.zeros.addresses():
            if at in self.pages:
                self.pages[at] = ZERO_PAGE
        for number, at in enumerate(batch.data.addresses()):
            offset = number * PAGE_BYTES
            self.pages[at] = bytes(batch.payload[offset : offset + PAGE_BYTES])

    def contents(self, vma: Vma, pid: Pid) -> bytearray:
        """What the destination would read in ``vma``."""
        contents = bytearray(vma.length)
        if vma.is_private_file:
            link = f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}"
            with Path(link).open("rb") as file:
                file.seek(vma.offset)
                found = file.read(vma.length)
            contents[: len(found)] = found
        for at in range(vma.start, vma.end, PAGE_BYTES):
            if at in self.pages:
                offset = at - vma.start
                contents[offset : offset + PAGE_BYTES] = self.pages[at]
        return contents


class Journey:
    """What a source does, with a shadow for a destination."""

    def __init__(self, target: Target, tracker: DirtyTracker) -> None:
        self.target = target
        self.tracker = tracker
        self.shadow = Shadow()
        self.space = AddressSpace()
        self.sent = PageSet.EMPTY
        self.pages_sent = 0

    def round(self, memory: TaskMemory, *, final: bool = False) -> None:
        space = self.target.space()
        self.shadow.relayout(self.space.changes_to(space))
        self.space = space
        written = self.tracker.take(space, final=final)
        assert not written.data & written.dropped
        dropped = split_dropped(written.dropped, space)
        self.shadow.forget(dropped.remapped)
        for batch in batches(
            memory,
            0,
            written.data,
            sent=self.sent,
            anonymous=space.anonymous_ranges(),
            zeros=dropped.zeros,
        ):
            self.shadow.apply(batch)
            self.pages_sent += batch.data.pages
        self.sent |= written.data

    def mismatches(self, memory: TaskMemory) -> list[str]:
        """Pages in which the frozen source is not what the shadow holds."""
        found = []
        for vma in self.space.vmas:
            if not vma.is_ours:
                continue
            theirs = memory.read(vma.start, vma.length)
            ours = self.shadow.contents(vma, self.target.pid)
            if theirs == ours:
                continue
            for offset in range(0, vma.length, PAGE_BYTES):
                page = slice(offset, offset + PAGE_BYTES)
                if theirs[page] != ours[page]:
                    found.append(f"{vma.start + offset:#x} in {vma}")
        return found


@contextmanager
def follow_with_uffd_wp(target: Target) -> Iterator[DirtyTracker]:
    require(probes.userfaultfd_wp_async())
    with follow(target) as tracker:
        yield tracker


@contextmanager
def follow_with_soft_dirty(target: Target) -> Iterator[DirtyTracker]:
    require(probes.soft_dirty())
    with Brake(target.pid, Sleepers(target.pid)) as brake:
        with SoftDirtyTracker(target.pid, brake.holding) as tracker:
            yield tracker


@contextmanager
def follow_with_everything(target: Target) -> Iterator[DirtyTracker]:
    with EverythingTracker(target.pid) as tracker:
        yield tracker


Follow = Callable[[Target], AbstractContextManager[DirtyTracker]]
FOLLOW: Final[dict[str, Follow]] = {
    "uffd_wp": follow_with_uffd_wp,
    "soft_dirty": follow_with_soft_dirty,
}


def require(finding: probes.Finding) -> None:
    """Skip where the kernel does not have it."""
    if not finding:
        pytest.skip(finding.why_not)


def journey(churn: Path, seed: int, follow: Follow) -> list[str]:
    """Follow one seed from its first operation to its last; what differs then."""
    dice = random.Random(seed)
    with Target(churn, str(seed), str(OPERATIONS)) as target:
        with follow(target) as tracker, TaskMemory(target.pid) as memory:
            target.tell()
            target.wait()
            travel = Journey(target, tracker)
            for _ in range(ROUNDS):
                travel.round(memory)
                # Beside us or before us; what the tracker sees may differ from run
                # to run only in the former.
                beside = dice.random() < 0.5
                target.tell()
                if beside:
                    travel.round(memory)
                target.wait()
            target.tell()
            if dice.random() < 0.5:
                target.wait()
            target.stop()
            travel.round(memory, final=True)
            return travel.mismatches(memory)


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
@pytest.mark.parametrize("tracker", FOLLOW)
def test_the_destination_equals_the_frozen_source(
    churn: Path, tracker: str, first: int
) -> None:
    """In every page of every private mapping."""
    for seed in range(first, first + SEEDS_A_TEST):
        assert journey(churn, seed, FOLLOW[tracker]) == [], f"seed {seed}"


def test_the_oracle_is_right_by_the_same_measure(churn: Path) -> None:
    """Followed by everything."""
    for seed in range(SEEDS_A_TEST):
        assert journey(churn, seed, follow_with_everything) == [], f"seed {seed}"
