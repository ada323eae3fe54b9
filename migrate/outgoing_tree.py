"""The memory of a whole tree on its way: rounds in which each process has its part.

Processes come and go while rounds are sent. One that has ended, or executes another
program, is left out from then on; whoever follows the tree finds out which it was.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from migrate.image import Index
from migrate.outgoing_memory import OutgoingMemory, Taken
from migrate.outgoing_object import OutgoingObject
from migrate.page_sender import PageSender
from migrate.patience import patient
from precopy.errors import TaskVanished
from precopy.page_set import PageSet
from precopy.page_stream import PageBatch
from precopy.rounds import RoundRecord
from transport import messages as m
from transport.channel import Channel

# The destination has placed what came before; it catches up with what is on its way.
APPLY_S: Final = patient(120.0)
_REPORT_BATCHES: Final = 64
# In the freeze: up to so many pages a second thread costs more than it gives.
_AT_ONCE_PAGES_MAX: Final = 2048


class Remembered(Protocol):
    """Where the memories are: a tree whose processes come and go."""

    def follow(self) -> None:
        """Find who has come or gone; before each look but the last."""

    def memories(self) -> dict[Index, OutgoingMemory]:
        """Of all that live."""

    def objects(self) -> dict[Index, OutgoingObject]:
        """What they share, of which the destination is told; at each look."""

    def lost(self, index: Index) -> None:
        """This one has ended, or executed another program.

        Raises:
            TaskVanished: without it there is no move.
        """


@dataclass(frozen=True, slots=True)
class TakenTree:
    """What there is to do after a look at all processes."""

    parts: dict[Index, Taken]

    @property
    def data_pages(self) -> int:
        """All that the destination lacks."""
        return sum(taken.data.pages for taken in self.parts.values())

    @property
    def hot_pages(self) -> int:
        """Those of them that are written all the time."""
        return sum(taken.hot.pages for taken in self.parts.values())

    @property
    def written_pages(self) -> int:
        """Since the look before."""
        return sum(taken.written_pages for taken in self.parts.values())


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


class OutgoingTree:
    """The memories of a tree, from the first look to the last.

    ``sender`` stays the caller's. ``proceed`` is called between two batches; what it
    raises ends the sending.
    """

    def __init__(
        self,
        tree: Remembered,
        channel: Channel,
        sender: PageSender,
        proceed: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._channel = channel
        self._sender = sender
        self._proceed = proceed
        self._tally = _Tally()
        self._objects: dict[Index, OutgoingObject] = {}
        self.rounds: list[RoundRecord] = []

    @property
    def sent_bytes(self) -> int:
        """What the destination holds by now."""
        return sum(memory.sent.bytes for memory in self._all().values())

    def take(self, *, final: bool = False) -> TakenTree:
        """What was written since the last time; the destination follows the layouts.

        ``final``: nothing runs any more.

        Raises:
            CannotCarry: something is mapped now that cannot be made again.
            TaskVanished: a process ended that cannot be done without.
        """
        if not final:
            self._tree.follow()
        parts = {}
        for index, memory in self._tree.memories().items():
            try:
                parts[index] = memory.take(final=final)
            except TaskVanished:
                self._tree.lost(index)
        # After those who map them: now all are known.
        self._objects = self._tree.objects()
        for index, shared in self._objects.items():
            parts[index] = shared.take()
        return TakenTree(parts)

    def send_round(
        self,
        taken: TakenTree,
        *,
        hold_back_hot: bool = False,
        progress: Callable[[int, float], None] = lambda pages, rate: None,
    ) -> RoundRecord:
        """Send a pre-copy round, and wait until the destination has all of it.

        ``progress`` hears the pages sent so far and the bytes per second.
        """
        record = RoundRecord(len(self.rounds) + 1)
        began_s = time.monotonic()
        wire_before = self._channel.traffic.bytes_sent
        self._send(taken, hold_back_hot, record, progress)
        tally, self._tally = self._tally, _Tally()
        self._channel.send(
            m.RoundEnd(record.number, tally.batches, tally.pages, tally.bytes)
        )
        self._channel.expect(m.RoundDone, timeout_s=APPLY_S)
        record.bytes_wire = self._channel.traffic.bytes_sent - wire_before
        record.duration_s = time.monotonic() - began_s
        self.rounds.append(record)
        return record

    def send_last(self, taken: TakenTree) -> None:
        """Send the pages of the frozen tree, and the end mark."""
        self._send(taken, False, None, lambda pages, rate: None)
        tally = self._tally
        self._channel.send(m.End(tally.batches, tally.pages, tally.bytes))

    def _send(
        self,
        taken: TakenTree,
        hold_back_hot: bool,
        record: RoundRecord | None,
        progress: Callable[[int, float], None],
    ) -> None:
        """Send what was taken; without a ``record`` it is for the last time."""
        began_s = time.monotonic()
        # Nobody is served by keeping to a cap while the tree stands still.
        at_once = record is None and taken.data_pages <= _AT_ONCE_PAGES_MAX
        if not at_once:
            self._sender.begin(capped=record is not None)
        send = self._sender.send_at_once if at_once else self._sender.send
        record = record or RoundRecord(0)
        for batch in self._batches(taken, hold_back_hot, at_once=at_once):
            self._proceed()
            send(batch)
            self._tally.count(batch.pages, batch.data.bytes)
            record.pages += batch.data.pages
            record.zero_pages += batch.zeros.pages
            record.bytes_raw += batch.data.bytes
            if self._tally.batches % _REPORT_BATCHES == 0:
                spent_s = max(time.monotonic() - began_s, 1e-6)
                progress(record.pages, record.bytes_raw / spent_s)
        if not at_once:
            self._sender.drain()

    def _batches(
        self, taken: TakenTree, hold_back_hot: bool, *, at_once: bool
    ) -> Iterator[PageBatch]:
        memories = self._all()
        for index, part in taken.parts.items():
            try:
                yield from memories[index].batches(
                    part,
                    part.hot if hold_back_hot else PageSet.EMPTY,
                    self._sender.batch_pages_max,
                    None if at_once else self._sender.room,
                )
            except TaskVanished:
                self._tree.lost(index)

    def _all(self) -> dict[Index, OutgoingMemory | OutgoingObject]:
        return {**self._tree.memories(), **self._objects}
