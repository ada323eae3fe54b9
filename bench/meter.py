"""What a workload has metered (workloads/meter.c), read from its memory."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from precopy.ids import Pid
from precopy.task_memory import TaskMemory

ADDRESS: Final = 0x101_0000_0000
INTERVALS: Final = 4096
INTERVAL_NS: Final = 20_000_000
BUCKETS: Final = 252
_INTERVAL: Final = struct.Struct(f"<4Q{BUCKETS}I")


@dataclass(frozen=True, slots=True)
class Interval:
    """So much was done from ``start_ns`` on, for INTERVAL_NS of CLOCK_MONOTONIC."""

    start_ns: int
    count: int
    longest_ns: int
    buckets: tuple[int, ...]

    @property
    def end_ns(self) -> int:
        return self.start_ns + INTERVAL_NS


def read(pid: int) -> list[Interval]:
    """The intervals in which anything was done, oldest first."""
    with TaskMemory(Pid(pid)) as memory:
        ring = memory.read(ADDRESS, INTERVALS * _INTERVAL.size)
    found = [
        Interval(number * INTERVAL_NS, count, longest_ns, tuple(buckets))
        for number, count, longest_ns, _, *buckets in _INTERVAL.iter_unpack(ring)
        if count
    ]
    return sorted(found, key=lambda interval: interval.start_ns)


@dataclass(frozen=True, slots=True)
class Phase:
    """All that was done between two moments, in whole intervals."""

    duration_s: float
    count: int
    longest_s: float
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, intervals: Iterable[Interval], start_ns: int, end_ns: int) -> Self:
        """What lies wholly between; with gaps in it where nothing was done at all."""
        inside = [i for i in intervals if start_ns <= i.start_ns and i.end_ns <= end_ns]
        first = -(-start_ns // INTERVAL_NS)
        buckets = map(sum, zip(*(i.buckets for i in inside), strict=True))
        return cls(
            duration_s=max(0, end_ns // INTERVAL_NS - first) * INTERVAL_NS / 1e9,
            count=sum(i.count for i in inside),
            longest_s=max((i.longest_ns for i in inside), default=0) / 1e9,
            buckets=tuple(buckets),
        )

    @property
    def per_s(self) -> float | None:
        return self.count / self.duration_s if self.duration_s else None

    def percentile_s(self, percent: float) -> float | None:
        """The latency that ``percent`` of all do not exceed; exact to 12.5 %."""
        wanted = self.count * percent / 100
        for number, counted in enumerate(self.buckets):
            wanted -= counted
            if counted and wanted <= 0:
                return bucket_end_ns(number) / 1e9
        return None


def together(phases: Sequence[Phase]) -> Phase:
    """The same phase of several runs as one."""
    buckets = map(sum, zip(*(p.buckets for p in phases if p.buckets), strict=True))
    return Phase(
        duration_s=sum(phase.duration_s for phase in phases),
        count=sum(phase.count for phase in phases),
        longest_s=max((phase.longest_s for phase in phases), default=0.0),
        buckets=tuple(buckets),
    )


def bucket_end_ns(number: int) -> int:
    """What every latency in this bucket is below."""
    if number < 8:
        return number + 1
    power, part = divmod(number, 8)
    return (8 + part + 1) << (power - 1)
