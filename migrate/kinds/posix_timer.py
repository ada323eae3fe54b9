"""timer_create(2): timers that a process makes for itself, with the ids they have.

read from   /proc/PID/timers, timer_gettime(2) made by the process itself; see
            migrate.kernel.posix_timers
rebuilt by  timer_create(2), timer_settime(2)

A timer of a wall clock goes off when it would have: what fell due in the freeze fires
at once, and the kernel counts how often (timer_getoverrun(2)). One of processor time
goes on with the rest that it had.

Not carried: timer_getoverrun(2) of a signal that was delivered before, and that an
armed one was set with TIMER_ABSTIME: a step of the wall clock no longer moves it.
"""

from __future__ import annotations

import functools
import struct
import time
from dataclasses import dataclass
from errno import EINVAL
from typing import TYPE_CHECKING, Final

from migrate.kernel import posix_timers, procfs, syscalls
from migrate.kernel.telling import all_must, nothing, told
from migrate.kinds.kind import CannotCarry, Kind, Scope
from precopy.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_ITIMERSPEC: Final = struct.Struct("<qqqq")
_SIGEVENT: Final = struct.Struct("<Qiii44x")  # value, signo, notify, tid; 64 bytes
_ID: Final = struct.Struct("<i")
_NS: Final = 1_000_000_000
_TIMER_ABSTIME: Final = 1
_SIGEV_NONE: Final = 1
_SIGEV_THREAD: Final = 2
_SIGEV_THREAD_ID: Final = 4
_NOTIFY: Final = {"signal": 0, "none": _SIGEV_NONE, "thread": _SIGEV_THREAD}

# Since Linux 6.15 timer_create() takes the id that it finds where it would write one.
_PR_TIMER_CREATE_RESTORE_IDS: Final = 77
_RESTORE_OFF: Final = 0
_RESTORE_ON: Final = 1

# Before that ids count up from 0, and one is reached by making all before it.
_ID_MAX: Final = 100_000
_INT_END: Final = 1 << 31
_CREATED_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class PosixTimer:
    """One timer."""

    id: int
    clock: int
    notify: int  # SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, or'ed SIGEV_THREAD_ID
    signal: int
    value: int  # what the handler is given (sigev_value)
    tid: int  # of SIGEV_THREAD_ID, as the process numbers it; else 0
    interval_ns: int
    # 0: not armed. Of processor time what is left; of other clocks when it expires,
    # on posix_timers.reference_clock().
    expiry_ns: int


@dataclass(frozen=True, slots=True)
class PosixTimers:
    """What travels, in the order of their ids."""

    timers: tuple[PosixTimer, ...]


KIND = Kind("posix_timer", 1, Scope.PROCESS, PosixTimers, late=True)


def refuse(pid: Pid) -> list[str]:
    """There is no timer that cannot be carried."""
    return []


def dump(source: Source) -> PosixTimers:
    """The timers, with the next expiry of each."""
    return PosixTimers(
        tuple(
            PosixTimer(
                id=timer.shown.id,
                clock=timer.shown.clock,
                notify=_NOTIFY[timer.shown.notify]
                | (_SIGEV_THREAD_ID if timer.shown.thread else 0),
                signal=timer.shown.signal,
                value=timer.shown.value,
                tid=_own_tid(source, timer.shown) if timer.shown.thread else 0,
                interval_ns=timer.interval_ns,
                expiry_ns=timer.until_ns
                if timer.shown.clock in posix_timers.WALL_CLOCKS
                else timer.rest_ns,
            )
            for timer in source.timers.timers
        )
    )


def restore(record: PosixTimers, target: Target) -> None:
    """Make the timers and arm them; those that are there already go first.

    Raises:
        CannotCarry: an id could not be had.
    """
    batch = target.remote.batch()
    for old in procfs.timers(target.pid):
        batch.add("timer_delete", old.id)
    batch.run()
    none = PosixTimers(())
    told(target.remote, lambda remote, batch: tell(record, none, remote, batch))


def tell(
    record: PosixTimers, there: PosixTimers, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    for old in there.timers:
        batch.add("timer_delete", old.id)
    if not record.timers:
        return nothing
    # The kernel would take the lower half of what is longer.
    if not all(-_INT_END <= timer.clock < _INT_END for timer in record.timers):
        raise CannotCarry(KIND.name, "A timer of the peer has a clock that is none.")
    if not takes_ids():

        def count(results: Sequence[int]) -> None:
            _create_by_counting(remote, record.timers)
            arming = remote.batch()
            _arm(remote, arming, record.timers)
            arming.run()

        return count
    batch.add("prctl", _PR_TIMER_CREATE_RESTORE_IDS, _RESTORE_ON, 0, 0, 0)
    created = all_must(
        remote,
        batch,
        "timer_create",
        [(timer.clock, _event(timer), _ID.pack(timer.id)) for timer in record.timers],
    )
    batch.add("prctl", _PR_TIMER_CREATE_RESTORE_IDS, _RESTORE_OFF, 0, 0, 0)
    armed = _arm(remote, batch, record.timers)

    def check(results: Sequence[int]) -> None:
        created(results)
        armed(results)

    return check


@functools.cache
def takes_ids() -> bool:
    """Whether this kernel makes timers with the ids that are asked for."""
    try:
        syscalls.raw("prctl", _PR_TIMER_CREATE_RESTORE_IDS, _RESTORE_OFF, 0, 0, 0)
    except KernelError as error:
        if error.errno != EINVAL:
            raise
        return False
    return True


def _arm(remote: Remote, batch: Batch, timers: Sequence[PosixTimer]) -> Check:
    return all_must(
        remote,
        batch,
        "timer_settime",
        [(timer.id, *_setting(timer), 0) for timer in timers],
    )


def _setting(timer: PosixTimer) -> tuple[int, bytes]:
    """Flags and time. Only an absolute time in the past counts how often it passed."""
    flags, value_ns = 0, timer.expiry_ns
    if value_ns and timer.clock in posix_timers.WALL_CLOCKS:
        if timer.clock in posix_timers.DATED_CLOCKS:
            rest_ns = value_ns - time.monotonic_ns()
            late = rest_ns <= 0
            flags = _TIMER_ABSTIME if late else 0
            value_ns = rest_ns + (time.clock_gettime_ns(timer.clock) if late else 0)
        else:
            flags = _TIMER_ABSTIME
    return flags, _ITIMERSPEC.pack(
        *divmod(timer.interval_ns, _NS), *divmod(value_ns, _NS)
    )


def _own_tid(source: Source, timer: procfs.PosixTimer) -> int:
    for tid in source.tracee.tids:
        if tid == timer.target:
            return procfs.status(source.pid, tid).pids_in_namespaces[-1]
    raise CannotCarry(
        KIND.name,
        f"Timer {timer.id} of pid {source.pid} notifies thread {timer.target}, which "
        "has ended. Delete the timer.",
        pid=source.pid,
    )


def _create_by_counting(remote: Remote, timers: Sequence[PosixTimer]) -> None:
    """Make and delete timers until the next one gets the id that is wanted."""
    for timer in timers:
        made = _create(remote, timer, 1)[0]
        while made < timer.id <= _ID_MAX:
            # The one that came, and as many more as are below the id.
            between = min(timer.id - made - 1, _CREATED_AT_ONCE)
            surplus = [made, *_create(remote, timer, between)]
            batch = remote.batch()
            for number in surplus:
                batch.add("timer_delete", number)
            batch.run()
            made = _create(remote, timer, 1)[0]
        if made != timer.id:
            raise CannotCarry(
                KIND.name,
                f"Timer id {timer.id} cannot be had at the destination, whose kernel "
                f"would give {made}. Linux 6.15 or newer there can give any.",
            )


def _create(remote: Remote, timer: PosixTimer, count: int) -> list[int]:
    remote.reset()
    ids = remote.space(_ID.size * max(count, 1))
    batch = remote.batch()
    for at in range(count):
        batch.add("timer_create", timer.clock, _event(timer), ids + at * _ID.size)
    batch.run()
    data = remote.read(ids, _ID.size * count)
    return [number for (number,) in _ID.iter_unpack(data)]


def _event(timer: PosixTimer) -> bytes:
    return _SIGEVENT.pack(timer.value, timer.signal, timer.notify, timer.tid)
