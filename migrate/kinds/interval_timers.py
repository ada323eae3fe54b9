"""setitimer(2) and alarm(2): the three timers that every process has.

read from   getitimer(2), made by the process itself
rebuilt by  setitimer(2), with the time that was left

ITIMER_VIRTUAL and ITIMER_PROF run on processor time, of which only the rest until
the next expiry counts here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_TIMERS: Final = (0, 1, 2)  # ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
_ITIMERVAL: Final = struct.Struct("<qqqq")
_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class IntervalTimer:
    """One of them; a value of 0 is a timer that does not run."""

    interval_us: int
    value_us: int


@dataclass(frozen=True, slots=True)
class IntervalTimers:
    """What travels: real, virtual, profiling."""

    timers: tuple[IntervalTimer, IntervalTimer, IntervalTimer]


KIND = Kind("interval_timers", 1, Scope.PROCESS, IntervalTimers, late=True)


def refuse(pid: Pid) -> list[str]:
    """There is no interval timer that cannot be carried."""
    return []


def dump(source: Source) -> IntervalTimers:
    """Read all three in one stop."""
    return asked(source.remote, ask)


def ask(remote: Remote, batch: Batch) -> Reader[IntervalTimers]:
    """Ask together with others."""
    table = remote.space(_ITIMERVAL.size * len(_TIMERS))
    places = [
        batch.add("getitimer", which, table + which * _ITIMERVAL.size)
        for which in _TIMERS
    ]

    def read(results: Sequence[int]) -> IntervalTimers:
        for at in places:
            must(remote, "getitimer", results[at])
        data = remote.read(table, _ITIMERVAL.size * len(_TIMERS))
        real, virtual, profiling = (
            IntervalTimer(row[0] * _US + row[1], row[2] * _US + row[3])
            for row in _ITIMERVAL.iter_unpack(data)
        )
        return IntervalTimers((real, virtual, profiling))

    return read


def restore(record: IntervalTimers, target: Target) -> None:
    """Start those that ran, stop those that did not."""
    batch = target.remote.batch()
    for which, timer in zip(_TIMERS, record.timers, strict=True):
        value = _ITIMERVAL.pack(
            *divmod(timer.interval_us, _US), *divmod(timer.value_us, _US)
        )
        batch.add("setitimer", which, value, 0)
    batch.run()
