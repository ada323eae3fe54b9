"""The memory of a process on its way: what was written, to the destination.

Each look compares the mappings with those of the last look and asks the tracker what
was written since. The destination hears of changed mappings first (a Layout), so that
the pages that follow have a place. What it holds by now is `sent`: a page that has
become zero is named to it only if it was sent before. What it lacks is the backlog, of
which a round may hold some back; the last of them, sent while nothing runs, is all.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from migrate import image
from migrate.image import Index, Layout
from migrate.kernel import procfs
from migrate.kinds.kind import CannotCarry
from migrate.mapped_files import MappingVanished, mapped_files
from migrate.page_sender import PageSender
from migrate.preflight import memory as memory_rules
from precopy.address_space import AddressSpace, AddressSpaceChange, Vma
from precopy.backlog import Backlog
from precopy.ids import Pid
from precopy.page_set import PageSet
from precopy.page_stream import batches
from precopy.rounds import Dropped, RoundRecord, split_dropped
from precopy.task_memory import TaskMemory
from precopy.tracker import DirtyTracker
from transport import messages as m
from transport.channel import Channel

APPLY_S: Final = 600.0  # the destination catches up with a round
_REPORT_BATCHES: Final = 64
# In the freeze: up to so many pages a second thread costs more than it gives.
_AT_ONCE_PAGES_MAX: Final = 2048
_LOOKS_MAX: Final = 10
_ROOT: Final = Index(0)
# Flags that a registration with userfaultfd(2) leaves in smaps: our tracker's doing.
_TRACKED_FLAGS: Final = frozenset({"um", "uw"})


@dataclass(frozen=True, slots=True)
class Taken:
    """What there is to do after a look."""

    data: PageSet  # all that the destination lacks
    hot: PageSet  # those of them that are written all the time
    dropped: Dropped  # earlier ones to forget
    written_pages: int  # since the look before


class _Tally:
    """What was sent since the last round ended."""

    def __init__(self) -> None:
        self.batches = 0
        self.pages = 0
        self.bytes = 0

    def count(self, pages: int, size_bytes: int) -> None:
        self.batches += 1
        self.pages += pages
        self.bytes += size_bytes


class OutgoingMemory:
    """One process's memory, from the first look to the last.

    ``memory``, ``tracker`` and ``sender`` stay the caller's. ``proceed`` is called
    between two batches; what it raises ends the sending.
    """

    def __init__(
        self,
        memory: TaskMemory,
        tracker: DirtyTracker,
        space: AddressSpace,
        channel: Channel,
        sender: PageSender,
        proceed: Callable[[], None],
    ) -> None:
        self._pid: Pid = memory.pid
        self._memory = memory
        self._tracker = tracker
        self._space = space  # as the destination has it
        self._channel = channel
        self._sender = sender
        self._proceed = proceed
        self._maps = procfs.MapsParser()
        self._plain = AddressSpace()
        self._tally = _Tally()
        self._backlog = Backlog()
        self.sent = PageSet.EMPTY
        self.rounds: list[RoundRecord] = []

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
            files = mapped_files(self._pid, renewed)
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
                files = mapped_files(self._pid, change.added)
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
        layout = Layout.of(change, renewed, files, extents)
        self._channel.send(m.Layout(_ROOT, image.encode(layout)))

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

    def send_round(
        self,
        taken: Taken,
        *,
        hold_back: PageSet = PageSet.EMPTY,
        progress: Callable[[int, float], None] = lambda pages, rate: None,
    ) -> RoundRecord:
        """Send a pre-copy round, and wait until the destination has all of it.

        Pages to ``hold_back`` are found again in what is taken next. ``progress``
        hears the pages sent so far and the bytes per second.
        """
        record = RoundRecord(len(self.rounds) + 1)
        began_s = time.monotonic()
        wire_before = self._channel.traffic.bytes_sent
        self._send(taken, hold_back, record, progress)
        tally, self._tally = self._tally, _Tally()
        self._channel.send(
            m.RoundEnd(record.number, tally.batches, tally.pages, tally.bytes)
        )
        self._channel.expect(m.RoundDone, timeout_s=APPLY_S)
        record.bytes_wire = self._channel.traffic.bytes_sent - wire_before
        record.duration_s = time.monotonic() - began_s
        self.rounds.append(record)
        return record

    def send_last(self, taken: Taken) -> None:
        """Send the pages of the frozen process, and the end mark."""
        self._send(taken, PageSet.EMPTY, None, lambda pages, rate: None)
        tally = self._tally
        self._channel.send(m.End(tally.batches, tally.pages, tally.bytes))

    def _send(
        self,
        taken: Taken,
        hold_back: PageSet,
        record: RoundRecord | None,
        progress: Callable[[int, float], None],
    ) -> None:
        """Send what was taken; without a ``record`` it is for the last time."""
        began_s = time.monotonic()
        data = self._backlog.hand_out(but=hold_back)
        # Nobody is served by keeping to a cap while the process stands still.
        at_once = record is None and data.pages <= _AT_ONCE_PAGES_MAX
        if not at_once:
            self._sender.begin(capped=record is not None)
        send = self._sender.send_at_once if at_once else self._sender.send
        record = record or RoundRecord(0)
        found: list[PageSet] = []
        for batch in batches(
            self._memory,
            _ROOT,
            data,
            sent=self.sent,
            anonymous=self._space.anonymous_ranges(),
            zeros=taken.dropped.zeros & self.sent,
            batch_pages_max=self._sender.batch_pages_max,
            room=None if at_once else self._sender.room,
        ):
            self._proceed()
            send(batch)
            found.append(batch.data)
            self._tally.count(batch.pages, batch.data.bytes)
            record.pages += batch.data.pages
            record.zero_pages += batch.zeros.pages
            record.bytes_raw += batch.data.bytes
            if self._tally.batches % _REPORT_BATCHES == 0:
                spent_s = max(time.monotonic() - began_s, 1e-6)
                progress(record.pages, record.bytes_raw / spent_s)
        if not at_once:
            self._sender.drain()
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
