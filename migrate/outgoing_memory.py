"""The memory of a process on its way: what was written, to the destination.

Each look compares the mappings with those of the last look and asks the tracker what
was written since. The destination hears of changed mappings first (a Layout), so that
the pages that follow have a place. What it holds by now is `sent`: a page that has
become zero is named to it only if it was sent before. What it lacks is the backlog, of
which a round may hold some back; the last of them, sent while nothing runs, is all.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from migrate import image
from migrate.image import Index, Layout
from migrate.kernel import procfs
from migrate.kinds.kind import CannotCarry
from migrate.mapped_files import MappingVanished, mapped_files
from migrate.preflight import memory as memory_rules
from migrate.shared_objects import SharedObjects
from precopy.address_space import AddressSpace, AddressSpaceChange, Vma
from precopy.backlog import Backlog
from precopy.ids import Pid
from precopy.page_set import PageSet
from precopy.page_stream import PageBatch, batches
from precopy.rounds import Dropped, split_dropped
from precopy.task_memory import TaskMemory
from precopy.tracker import DirtyTracker
from transport import messages as m
from transport.channel import Channel

_LOOKS_MAX: Final = 10
# Flags that a registration with userfaultfd(2) leaves in smaps: our tracker's doing.
_TRACKED_FLAGS: Final = frozenset({"um", "uw"})


@dataclass(frozen=True, slots=True)
class Taken:
    """What there is to do after a look."""

    data: PageSet  # all that the destination lacks
    hot: PageSet  # those of them that are written all the time
    dropped: Dropped  # earlier ones to forget
    written_pages: int  # since the look before


class OutgoingMemory:
    """One process's memory, from the first look to the last.

    ``memory``, ``tracker`` and ``objects`` stay the caller's.
    """

    def __init__(
        self,
        index: Index,
        memory: TaskMemory,
        tracker: DirtyTracker,
        space: AddressSpace,
        objects: SharedObjects,
        channel: Channel,
    ) -> None:
        self._objects = objects
        self._index = index
        self._pid: Pid = memory.pid
        self._memory = memory
        self._tracker = tracker
        self._space = space  # as the destination has it
        self._channel = channel
        self._maps = procfs.MapsParser()
        self._plain = AddressSpace()
        self._backlog = Backlog()
        self.sent = PageSet.EMPTY

    def take(self, *, final: bool = False) -> Taken:
        """What was written since the last time; the destination follows the layout.

        ``final``: nothing runs any more.

        Raises:
            CannotCarry: something is mapped now that cannot be made again.
            TaskVanished: the process ended, or executed another program.
        """
        new, change = self._follow(final=final)
        written = self._tracker.take(new, final=final)
        dropped = split_dropped(written.dropped, new)
        self.sent -= dropped.remapped
        if dropped.remapped:
            renewed = _parts(new, dropped.remapped)
            nothing = AddressSpaceChange()
            files = mapped_files(self._pid, renewed, self._objects)
            self._announce(nothing, renewed, files, _extents(new, nothing, renewed))
        self.sent -= change.emptied
        self._backlog.note(written, new, change.emptied)
        return Taken(
            self._backlog.pages, self._backlog.hot, dropped, written.data.pages
        )

    def _follow(self, *, final: bool) -> tuple[AddressSpace, AddressSpaceChange]:
        """Tell the destination how the mappings have changed."""
        for _ in range(_LOOKS_MAX):
            new = self._look_at_mappings(final=final)
            change = self._space.changes_to(new)
            _require_carried(self._pid, change.added)
            try:
                files = mapped_files(self._pid, change.added, self._objects)
            except MappingVanished:
                continue
            extents = _extents(new, change) + _joined(self._space, new)
            if change or extents:
                self._announce(change, (), files, extents)
            self._space = new
            return new, change
        raise CannotCarry(
            "mapping",
            f"pid {self._pid} maps and unmaps files faster than they can be looked at.",
            pid=self._pid,
        )

    def _announce(
        self,
        change: AddressSpaceChange,
        renewed: tuple[Vma, ...],
        files: tuple[image.MappedFile, ...],
        extents: tuple[tuple[int, int], ...],
    ) -> None:
        self._objects.tell()
        layout = Layout.of(change, renewed, files, extents)
        self._channel.send(m.Layout(self._index, image.encode(layout)))

    def _look_at_mappings(self, *, final: bool) -> AddressSpace:
        """The mappings now, with their flags.

        /proc/PID/smaps, which has the flags, walks all page tables. In the freeze it
        is read only if the plain list has changed; advice (madvise(2)) given since
        the last round to a mapping that is otherwise the same is not seen then.
        """
        before = self._plain
        self._plain = procfs.read_maps(self._pid, self._maps)
        if final and self._plain is before:
            return self._space
        return AddressSpace(_without_our_mark(procfs.read_smaps(self._pid)))

    def batches(
        self,
        taken: Taken,
        hold_back: PageSet,
        batch_pages_max: int,
        room: Callable[[], bytearray] | None,
    ) -> Iterator[PageBatch]:
        """What was taken, in batches to be sent, each valid until the next is drawn.

        Pages to ``hold_back`` are found again in what is taken next.
        """
        data = self._backlog.hand_out(but=hold_back)
        found: list[PageSet] = []
        for batch in batches(
            self._memory,
            self._index,
            data,
            sent=self.sent,
            anonymous=self._space.anonymous_ranges(),
            zeros=taken.dropped.zeros & self.sent,
            batch_pages_max=batch_pages_max,
            room=room,
        ):
            yield batch
            found.append(batch.data)
        self.sent |= PageSet.of(run for pages in found for run in pages)


def _extents(
    new: AddressSpace, change: AddressSpaceChange, renewed: tuple[Vma, ...] = ()
) -> tuple[tuple[int, int], ...]:
    """From where to where the mappings go that something was done to."""
    touched = PageSet.of(
        (vma.start, vma.end) for vma in (*change.added, *change.reprotected, *renewed)
    )
    return tuple(
        (vma.start, vma.end)
        for vma in new.vmas
        if touched & PageSet.of([(vma.start, vma.end)])
    )


def _joined(old: AddressSpace, new: AddressSpace) -> tuple[tuple[int, int], ...]:
    """Those that are one now, and were several."""
    starts = [vma.start for vma in old.vmas]

    def inside(vma: Vma) -> bool:
        at = bisect_right(starts, vma.start)
        return at < len(starts) and starts[at] < vma.end

    return tuple((vma.start, vma.end) for vma in new.vmas if inside(vma))


def _require_carried(pid: Pid, added: tuple[Vma, ...]) -> None:
    """Mappings that have come since the preflight are held to the same rules."""
    for reason in memory_rules.of_mappings(pid, added):
        raise CannotCarry(reason.kind, reason.message, pid=pid)


def _without_our_mark(space: AddressSpace) -> Iterator[Vma]:
    for vma in space.vmas:
        yield replace(vma, flags=vma.flags - _TRACKED_FLAGS)


def _parts(space: AddressSpace, pages: PageSet) -> tuple[Vma, ...]:
    """The mappings cut to these pages."""
    return tuple(
        vma.part(start, end)
        for vma in space.vmas
        for start, end in pages & PageSet.of([(vma.start, vma.end)])
    )
