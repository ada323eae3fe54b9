"""setitimer(2) and alarm(2): the three timers that every process has.

read from   getitimer(2), made by the process itself
rebuilt by  setitimer(2), with the time that is left then

ITIMER_REAL goes off when it would have; what fell due in the freeze fires at once, as
one signal. ITIMER_VIRTUAL and ITIMER_PROF run on processor time, of which only the
rest until the next expiry counts here.
"""

from __future__ import annotations

import signal
import struct
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.telling import all_must, told
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_TIMERS: Final = (0, 1, 2)  # ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
_ITIMERVAL: Final = struct.Struct("<qqqq")
_US: Final = 1_000_000
_NS_PER_US: Final = 1000
_SI_KERNEL: Final = 0x80
_FROM_KERNEL: Final = struct.pack("<iii116x", signal.SIGALRM, 0, _SI_KERNEL)


@dataclass(frozen=True, slots=True)
class IntervalTimer:
    """One of them; an expiry of 0 is a timer that does not run."""

    interval_us: int
    expiry_us: int  # of ITIMER_REAL when, on CLOCK_MONOTONIC; of the others the rest


@dataclass(frozen=True, slots=True)
class IntervalTimers:
    """What travels."""

    real: IntervalTimer
    virtual: IntervalTimer
    profiling: IntervalTimer


KIND = Kind("interval_timers", 1, Scope.PROCESS, IntervalTimers, late=True)


def refuse(pid: Pid) -> list[str]:
    """There is no interval timer that cannot be carried."""
    return []


def dump(source: Source) -> IntervalTimers:
    """Read all three in one stop."""
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[IntervalTimers]:
    """Ask together with others."""
    table = form.space(_ITIMERVAL.size * len(_TIMERS))
    places = [
        batch.add("getitimer", which, table + which * _ITIMERVAL.size)
        for which in _TIMERS
    ]

    def read(results: Sequence[int]) -> IntervalTimers:
        for at in places:
            must(form, "getitimer", results[at])
        data = form.read(table, _ITIMERVAL.size * len(_TIMERS))
        real, virtual, profiling = (
            IntervalTimer(row[0] * _US + row[1], row[2] * _US + row[3])
            for row in _ITIMERVAL.iter_unpack(data)
        )
        # Without an interval it does not run. With one it has gone off, and begins
        # the next when SIGALRM is taken from the queue (posixtimer_rearm_itimer()):
        # to go off at once adds nothing to that signal, or is that signal.
        if real.expiry_us or real.interval_us:
            now_us = time.monotonic_ns() // _NS_PER_US
            real = replace(real, expiry_us=now_us + real.expiry_us)
        return IntervalTimers(real, virtual, profiling)

    return read


def restore(record: IntervalTimers, target: Target) -> None:
    """Start those that ran, stop those that did not."""
    told(target.remote, lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: IntervalTimers, there: IntervalTimers | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    real = record.real
    if real.expiry_us:
        rest_us = real.expiry_us - time.monotonic_ns() // _NS_PER_US
        if rest_us <= 0 and real.interval_us:
            # The signal now and the next one in step: left to the kernel, the steps
            # would begin anew from here. Should it be queued already, this is none.
            own_pid, _ = remote.own_ids()
            batch.add("rt_sigqueueinfo", own_pid, signal.SIGALRM, _FROM_KERNEL)
            rest_us = rest_us % real.interval_us or real.interval_us
        real = replace(real, expiry_us=max(rest_us, 1))
    timers = (real, record.virtual, record.profiling)
    return all_must(
        remote,
        batch,
        "setitimer",
        [
            (
                which,
                _ITIMERVAL.pack(
                    *divmod(timer.interval_us, _US), *divmod(timer.expiry_us, _US)
                ),
                0,
            )
            for which, timer in zip(_TIMERS, timers, strict=True)
        ],
    )
