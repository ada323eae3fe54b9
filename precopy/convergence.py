"""Another round, or stop and copy?

The downtime to be expected is that of sending what is dirty now, at the speed of late,
and of what does not depend on memory. While it is too long and rounds still shrink,
another round is worth it. They have stalled when less than a tenth of the dirty pages
went away in two rounds, or when there were as many rounds as allowed: one bad round is
no stall, because programs breathe.

Pages that are hot (see backlog.py) are not worth sending before the freeze. They are
held back where they fit into the downtime that is allowed: then nothing else matters.
Where they do not, the rounds without them still leave less for the freeze. But where
most of the dirty pages are hot, a round without them would be over before anything had
a chance to be written, and say that all of them had cooled down.
"""

from collections import deque
from enum import Enum, auto
from math import inf
from typing import Final

from precopy.ids import PAGE_BYTES
from precopy.rounds import RoundRecord

SHRINK_MIN: Final = 0.10
STALL_ROUNDS: Final = 2
# The speed is that of these rounds together: a round of a few pages is all latency.
SPEED_ROUNDS: Final = 3
FIXED_S: Final = 0.005


class Decision(Enum):
    """What to do after a round."""

    ANOTHER = auto()
    STOP_AND_COPY = auto()
    STALLED = auto()


class Convergence:
    """Looks at the rounds so far; has no clock and sends nothing."""

    def __init__(
        self, downtime_limit_s: float, rounds_max: int, *, fixed_s: float = FIXED_S
    ) -> None:
        """``fixed_s`` is the part of the downtime that does not grow with memory."""
        self.downtime_limit_s = downtime_limit_s
        self.rounds_max = rounds_max
        self.fixed_s = fixed_s
        self.rounds = 0
        self.written_bytes_s = 0.0  # in the last round, each page counted once
        self._recent: deque[RoundRecord] = deque(maxlen=SPEED_ROUNDS)
        self._dirty: deque[int] = deque(maxlen=STALL_ROUNDS + 1)

    def record(
        self, record: RoundRecord, dirty_pages: int, written_pages: int | None = None
    ) -> None:
        """A round was sent, and now ``dirty_pages`` are lacking at the destination.

        ``written_pages`` of them, or all, were written since the round began.
        """
        self.rounds += 1
        self._recent.append(record)
        self._dirty.append(dirty_pages)
        written = dirty_pages if written_pages is None else written_pages
        if record.duration_s:
            self.written_bytes_s = written * PAGE_BYTES / record.duration_s

    def slowed_down(self) -> None:
        """The process writes more slowly from here: what stalled may shrink now."""
        last = self._dirty[-1]
        self._dirty.clear()
        self._dirty.append(last)

    @property
    def throughput_bytes_s(self) -> float:
        """Memory sent in a second, of late; 0.0 when nothing was sent."""
        sent = sum(record.pages for record in self._recent) * PAGE_BYTES
        spent_s = sum(record.duration_s for record in self._recent)
        return sent / spent_s if spent_s else 0.0

    @property
    def estimate_s(self) -> float:
        """The downtime if the process were stopped now; infinite when unknown."""
        return self._downtime_s(self._dirty[-1]) if self._dirty else inf

    @property
    def is_out_of_rounds(self) -> bool:
        """Whether there were as many as are allowed."""
        return self.rounds >= self.rounds_max

    @property
    def is_beyond_memory(self) -> bool:
        """Whether the downtime would be too long with no dirty page at all."""
        return self.fixed_s > self.downtime_limit_s

    def holds_back(self, hot_pages: int, dirty_pages: int) -> bool:
        """Whether the next round should leave out the hot ones of the dirty pages."""
        fit = self._downtime_s(hot_pages) <= self.downtime_limit_s
        return fit or 2 * hot_pages <= dirty_pages

    def decide(self) -> Decision:
        if self.rounds and self.estimate_s <= self.downtime_limit_s:
            return Decision.STOP_AND_COPY
        if self.rounds and not self._dirty[-1]:
            return Decision.STOP_AND_COPY  # it cannot get any better than this
        if self.is_out_of_rounds or self._has_stalled():
            return Decision.STALLED
        return Decision.ANOTHER

    def _downtime_s(self, pages: int) -> float:
        if not pages:
            return self.fixed_s
        speed = self.throughput_bytes_s
        return pages * PAGE_BYTES / speed + self.fixed_s if speed else inf

    def _has_stalled(self) -> bool:
        if len(self._dirty) <= STALL_ROUNDS:
            return False
        return self._dirty[-1] > (1 - SHRINK_MIN) * self._dirty[0]
