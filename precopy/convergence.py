"""Another round, or stop and copy?

The downtime to be expected is that of sending what is dirty now, at the speed of late,
and of what does not depend on memory. While it is too long and rounds still shrink,
another round is worth it. They have stalled when less than a tenth of the dirty pages
went away in two rounds, or when there were as many rounds as allowed: one bad round is
no stall, because programs breathe.
"""

from collections import deque
from enum import Enum, auto
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
        self._recent: deque[RoundRecord] = deque(maxlen=SPEED_ROUNDS)
        self._dirty: deque[int] = deque(maxlen=STALL_ROUNDS + 1)

    def record(self, record: RoundRecord, dirty_pages: int) -> None:
        """A round was sent, and ``dirty_pages`` were written meanwhile."""
        self.rounds += 1
        self._recent.append(record)
        self._dirty.append(dirty_pages)

    @property
    def throughput_bytes_s(self) -> float:
        """Memory sent in a second, of late; 0.0 when nothing was sent."""
        sent = sum(record.pages for record in self._recent) * PAGE_BYTES
        spent_s = sum(record.duration_s for record in self._recent)
        return sent / spent_s if spent_s else 0.0

    @property
    def estimate_s(self) -> float:
        """The downtime if the process were stopped now; infinite when unknown."""
        if not self._dirty:
            return float("inf")
        if not self._dirty[-1]:
            return self.fixed_s
        speed = self.throughput_bytes_s
        if not speed:
            return float("inf")
        return self._dirty[-1] * PAGE_BYTES / speed + self.fixed_s

    def decide(self) -> Decision:
        if self.rounds and self.estimate_s <= self.downtime_limit_s:
            return Decision.STOP_AND_COPY
        if self.rounds and not self._dirty[-1]:
            return Decision.STOP_AND_COPY  # it cannot get any better than this
        if self.rounds >= self.rounds_max or self._has_stalled():
            return Decision.STALLED
        return Decision.ANOTHER

    def _has_stalled(self) -> bool:
        if len(self._dirty) <= STALL_ROUNDS:
            return False
        return self._dirty[-1] > (1 - SHRINK_MIN) * self._dirty[0]
