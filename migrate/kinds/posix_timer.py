"""timer_create(2): timers that a process makes for itself, with the ids they have.

read from   /proc/PID/timers, and timer_gettime(2) made by the process itself
rebuilt by  timer_create(2) and timer_settime(2), with the time that was left

Not carried: how often a timer overran before its last signal (timer_getoverrun(2)),
and that an armed one was set with TIMER_ABSTIME: once armed only the time left
counts, except that a step of the wall clock no longer moves it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from errno import EINVAL
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.remote import Remote
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_ITIMERSPEC: Final = struct.Struct("<qqqq")
_SIGEVENT: Final = struct.Struct("<Qiii44x")  # value, signo, notify, tid; 64 bytes
_ID: Final = struct.Struct("<i")
_NS: Final = 1_000_000_000
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
_CREATED_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class PosixTimer:
    """One timer; a value of 0 is one that is not armed."""

    id: int
    clock: int
    notify: int  # SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, or'ed SIGEV_THREAD_ID
    signal: int
    value: int  # what the handler is given (sigev_value)
    tid: int  # of SIGEV_THREAD_ID, as the process numbers it; else 0
    interval_ns: int
    value_ns: int


@dataclass(frozen=True, slots=True)
class PosixTimers:
    """What travels, in the order of their ids."""

    timers: tuple[PosixTimer, ...]


KIND = Kind("posix_timer", 1, Scope.PROCESS, PosixTimers, late=True)


def refuse(pid: Pid) -> list[str]:
    """There is no timer that cannot be carried."""
    return []


def dump(source: Source) -> PosixTimers:
    """The timers, with the time that each has left."""
    shown = sorted(procfs.timers(source.pid), key=lambda timer: timer.id)
    if not shown:
        return PosixTimers(())
    remote = source.remote
    remote.reset()
    table = remote.space(_ITIMERSPEC.size * len(shown))
    batch = remote.batch()
    for at, timer in enumerate(shown):
        batch.add("timer_gettime", timer.id, table + at * _ITIMERSPEC.size)
    batch.run()
    rows = _ITIMERSPEC.iter_unpack(remote.read(table, _ITIMERSPEC.size * len(shown)))
    return PosixTimers(
        tuple(
            PosixTimer(
                id=timer.id,
                clock=timer.clock,
                notify=_NOTIFY[timer.notify]
                | (_SIGEV_THREAD_ID if timer.thread else 0),
                signal=timer.signal,
                value=timer.value,
                tid=_own_tid(source, timer) if timer.thread else 0,
                interval_ns=row[0] * _NS + row[1],
                value_ns=row[2] * _NS + row[3],
            )
            for timer, row in zip(shown, rows, strict=True)
        )
    )


def restore(record: PosixTimers, target: Target) -> None:
    """Make the timers and arm them; those that are there already go first.

    Raises:
        CannotCarry: an id could not be had.
    """
    remote = target.remote
    there = procfs.timers(target.pid)
    if there:
        batch = remote.batch()
        for old in there:
            batch.add("timer_delete", old.id)
        batch.run()
    if not record.timers:
        return
    if not _create_with_ids(remote, record.timers):
        _create_by_counting(remote, record.timers)
    batch = remote.batch()
    for timer in record.timers:
        value = _ITIMERSPEC.pack(
            *divmod(timer.interval_ns, _NS), *divmod(timer.value_ns, _NS)
        )
        batch.add("timer_settime", timer.id, 0, value, 0)
    batch.run()


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


def _create_with_ids(remote: Remote, timers: Sequence[PosixTimer]) -> bool:
    """Make the timers with the ids they had; False where the kernel cannot."""
    remote.reset()
    ids = remote.space(_ID.size * len(timers))
    remote.write(ids, b"".join(_ID.pack(timer.id) for timer in timers))
    batch = remote.batch()
    batch.add("prctl", _PR_TIMER_CREATE_RESTORE_IDS, _RESTORE_ON, 0, 0, 0)
    batch.add("prctl", _PR_TIMER_CREATE_RESTORE_IDS, _RESTORE_OFF, 0, 0, 0)
    if batch.run(check=False)[0] == -EINVAL:
        return False
    batch.add("prctl", _PR_TIMER_CREATE_RESTORE_IDS, _RESTORE_ON, 0, 0, 0)
    for at, timer in enumerate(timers):
        batch.add("timer_create", timer.clock, _event(timer), ids + at * _ID.size)
    batch.add("prctl", _PR_TIMER_CREATE_RESTORE_IDS, _RESTORE_OFF, 0, 0, 0)
    batch.run()
    return True


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
