"""timerfd_create(2): a timer that is read from a descriptor.

read from   /proc/PID/fdinfo/FD: clockid, ticks, settime flags, it_value,
            it_interval                                    proc_pid_fdinfo(5)
rebuilt by  timerfd_create(2), timerfd_settime(2), ioctl(TFD_IOC_SET_TICKS)

A timer goes off when it would have: what fell due in the freeze counts as ticks.
One that was set to a date (an absolute time of a real-time clock) follows steps of
that clock, all others do not.
"""

import fcntl
import os
import struct
import time
from dataclasses import dataclass, replace
from typing import Final

from migrate.kernel import procfs
from migrate.kernel.procfs import FdView, TimerfdInfo
from migrate.kernel.remote import RemoteError, RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target


@dataclass(frozen=True, slots=True)
class Timerfd:
    """What travels."""

    clock: int  # CLOCK_*
    nonblocking: bool
    settime_flags: int  # TFD_TIMER_*, of the last timerfd_settime(2)
    # When it goes off, on CLOCK_BOOTTIME for a timer of that clock, on CLOCK_REALTIME
    # for a date, and on CLOCK_MONOTONIC for all others; 0: disarmed.
    expiry_ns: int
    interval_ns: int
    ticks: int  # went off so often since the last read(2)


KIND = Kind("timerfd", 1, Scope.DESCRIPTOR, Timerfd, exclusive=True)

_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2
_SETTIME_FLAGS: Final = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
_TFD_IOC_SET_TICKS: Final = 0x40085400  # _IOW('T', 0, __u64), linux/timerfd.h
_CLOCK_REALTIME_ALARM: Final = 8
_DATED_CLOCKS: Final = frozenset({time.CLOCK_REALTIME, _CLOCK_REALTIME_ALARM})
_BOOT_CLOCKS: Final = frozenset({time.CLOCK_BOOTTIME, 9})  # CLOCK_BOOTTIME_ALARM
_SOON_NS: Final = 1_000_000  # the process does not run again before that
_ITIMERSPEC: Final = struct.Struct("<qqqq")  # it_interval, it_value
_SECOND_NS: Final = 1_000_000_000
_TIME_MAX_NS: Final = 2**63 - 1
_LOOKS_MAX: Final = 8


def claims(view: FdView) -> bool:
    """Whether the link names a timerfd."""
    return view.link == "anon_inode:[timerfd]"


def refuse(view: FdView) -> str | None:
    """It can go if the kernel tells its state (CONFIG_PROC_FS does)."""
    if view.info.field("clockid") is None:
        return "is a timerfd whose state this kernel does not show. Close it."
    return None


def dump(process: Source, view: FdView) -> Timerfd:
    """Read the time left and the ticks; neither changes by that."""
    if reason := refuse(view):
        raise CannotCarry.at(KIND, view, reason)
    found, now_ns = _state(process, view)
    return Timerfd(
        clock=found.clock,
        nonblocking=bool(view.info.flags & os.O_NONBLOCK),
        settime_flags=found.settime_flags & _SETTIME_FLAGS,
        expiry_ns=now_ns + found.value_ns if found.value_ns else 0,
        interval_ns=found.interval_ns,
        ticks=found.ticks,
    )


def restore(record: Timerfd, target: Target) -> RemoteFd:
    """Recreate it in ``target``, running."""
    flags = os.O_CLOEXEC | (os.O_NONBLOCK if record.nonblocking else 0)
    try:
        number = target.remote.syscall("timerfd_create", record.clock, flags)
    except RemoteError as error:
        raise CannotCarry(
            KIND.name,
            f"A timerfd of clock {record.clock} cannot be made: {error.strerror} "
            "(an alarm clock needs CAP_WAKE_ALARM).",
            pid=target.pid,
        ) from error
    fd = RemoteFd(number)
    _set(record, target, fd)
    return fd


def update(old: Timerfd, new: Timerfd, target: Target, fd: RemoteFd) -> bool:
    """Set the same timer anew."""
    if old.clock != new.clock:
        return False
    if old.nonblocking != new.nonblocking:
        flags = os.O_NONBLOCK if new.nonblocking else 0
        target.remote.syscall("fcntl", fd, fcntl.F_SETFL, flags)
    _set(new, target, fd)
    return True


def _state(process: Source, view: FdView) -> tuple[TimerfdInfo, int]:
    """What the timer does now, and when that is on the clock of `expiry_ns`.

    Time goes on for it while its process is stopped. A periodic timer that went off
    shows no time left: the kernel begins the next period only when it is asked
    (fs/timerfd.c). timerfd_gettime(2) asks, and takes no tick away. No time left and
    no tick either is a timer at rest, or one at the very moment of going off: then a
    second look shows the tick.
    """
    remote = process.remote
    found, now_ns = _look(process, view)
    for _ in range(_LOOKS_MAX):
        before = found
        if found.value_ns or (found.ticks and not found.interval_ns):
            return found, now_ns
        if found.ticks:
            room = remote.space(_ITIMERSPEC.size)
            remote.syscall("timerfd_gettime", view.number, room)
            remote.reset()
        found, now_ns = _look(process, view)
        if found == before and not found.ticks:
            return found, now_ns
    # It goes off more often than we can look: it is as good as at its beginning.
    return replace(found, value_ns=found.interval_ns), now_ns


def _look(process: Source, view: FdView) -> tuple[TimerfdInfo, int]:
    found = procfs.timerfd_info(procfs.fd(process.pid, view.number).info)
    clock = _clock_of_expiry(found.clock, found.settime_flags)
    return found, time.clock_gettime_ns(clock)


def _set(record: Timerfd, target: Target, fd: RemoteFd) -> None:
    for name in ("expiry_ns", "interval_ns", "ticks"):
        if not 0 <= getattr(record, name) <= _TIME_MAX_NS:
            raise CannotCarry(KIND.name, f"The peer sent a timerfd of bad {name}.")
    flags, value_ns, ticks = _setting(record)
    setting = _ITIMERSPEC.pack(
        *divmod(record.interval_ns, _SECOND_NS), *divmod(value_ns, _SECOND_NS)
    )
    batch = target.remote.batch()
    # It forgets the ticks, so those come after.
    batch.add("timerfd_settime", fd, flags, setting, 0)
    if ticks:
        batch.add("ioctl", fd, _TFD_IOC_SET_TICKS, ticks.to_bytes(8, "little"))
    batch.run()


def _setting(record: Timerfd) -> tuple[int, int, int]:
    """Flags and time for timerfd_settime(2), and the ticks to be set after it."""
    flags = record.settime_flags & _SETTIME_FLAGS
    date = _is_date(record.clock, flags)
    value_ns, ticks, interval_ns = record.expiry_ns, record.ticks, record.interval_ns
    if not value_ns:
        return flags if date else 0, 0, ticks
    clock = _clock_of_expiry(record.clock, flags)
    now_ns = time.clock_gettime_ns(clock)
    absolute = date or record.clock not in _DATED_CLOCKS
    due_ns = now_ns + _SOON_NS
    if interval_ns and value_ns <= due_ns and (ticks or not absolute):
        # Set in the past it would go off now, and setting the ticks overwrite that.
        passed = (due_ns - value_ns) // interval_ns + 1
        ticks = min(ticks + passed, _TIME_MAX_NS)
        value_ns += passed * interval_ns
    if absolute:
        return flags if date else _TFD_TIMER_ABSTIME, value_ns, ticks
    return 0, max(value_ns - now_ns, 1), ticks


def _clock_of_expiry(clock: int, settime_flags: int) -> int:
    if clock in _BOOT_CLOCKS:
        return time.CLOCK_BOOTTIME
    if _is_date(clock, settime_flags):
        return time.CLOCK_REALTIME
    return time.CLOCK_MONOTONIC


def _is_date(clock: int, settime_flags: int) -> bool:
    return clock in _DATED_CLOCKS and bool(settime_flags & _TFD_TIMER_ABSTIME)
