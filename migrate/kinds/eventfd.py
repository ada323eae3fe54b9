"""eventfd(2): a 64-bit counter behind a descriptor.

read from   /proc/PID/fdinfo/FD: eventfd-count (hex), and from Linux 6.5 on
            eventfd-semaphore (proc_pid_fdinfo(5); fs/eventfd.c); before, by counting
            down and up again while the process stands still
rebuilt by  eventfd2(0, flags), then one write(2)          eventfd(2)
"""

import fcntl
import os
from dataclasses import dataclass
from typing import Final

from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target


@dataclass(frozen=True, slots=True)
class Eventfd:
    """What travels."""

    count: int  # u64, below 2**64 - 1
    semaphore: bool
    nonblocking: bool


KIND = Kind("eventfd", 1, Scope.DESCRIPTOR, Eventfd, exclusive=True, in_view=True)

_EFD_SEMAPHORE: Final = 1
_EFD_NONBLOCK: Final = os.O_NONBLOCK
_COUNT_MAX: Final = 2**64 - 2


def claims(view: FdView) -> bool:
    """Whether the link names an eventfd."""
    return view.link == "anon_inode:[eventfd]"


def refuse(view: FdView) -> str | None:
    """Each can go."""
    return None


def dump(process: Source, view: FdView) -> Eventfd:
    """The counter without touching it, if the kernel tells all: read(2) changes it."""
    semaphore = view.info.field("eventfd-semaphore")
    count = int(view.info.fields["eventfd-count"][0], 16)
    return Eventfd(
        count=count,
        semaphore=_counts_down(process, view, count)
        if semaphore is None
        else semaphore == "1",
        nonblocking=bool(view.info.flags & os.O_NONBLOCK),
    )


def _counts_down(process: Source, view: FdView, count: int) -> bool:
    """Whether read(2) takes one and leaves the rest; the counter is as before.

    It takes a count of two to see that. Nobody reads meanwhile but somebody outside the
    process, and a pollable descriptor is only looked at again when its owner goes on.
    """
    fd = process.pidfd.getfd(view.number)
    try:
        added = max(0, 2 - count)
        if added:
            os.eventfd_write(fd, added)
        taken = os.eventfd_read(fd)
        is_semaphore = taken == 1
        if is_semaphore:
            for _ in range(added - 1):
                os.eventfd_read(fd)
        if back := (added == 0) if is_semaphore else count:
            os.eventfd_write(fd, int(back))
        return is_semaphore
    finally:
        os.close(fd)


def restore(record: Eventfd, target: Target) -> RemoteFd:
    """Recreate it in ``target`` and load the counter."""
    flags = os.O_CLOEXEC
    flags |= _EFD_SEMAPHORE if record.semaphore else 0
    flags |= _EFD_NONBLOCK if record.nonblocking else 0
    # eventfd2() takes the initial count as an unsigned int (fs/eventfd.c), so a
    # count above 2**32 - 1 would be cut short: start at zero and add it.
    fd = RemoteFd(target.remote.syscall("eventfd2", 0, flags))
    _add(record.count, target, fd)
    return fd


def update(old: Eventfd, new: Eventfd, target: Target, fd: RemoteFd) -> bool:
    """Count up. A counter that went down is made anew: read(2) may not be enough."""
    if old.semaphore != new.semaphore or new.count < old.count:
        return False
    flags = os.O_NONBLOCK if new.nonblocking else 0
    target.remote.syscall("fcntl", fd, fcntl.F_SETFL, flags)
    _add(new.count - old.count, target, fd)
    return True


def _add(count: int, target: Target, fd: RemoteFd) -> None:
    if not 0 <= count <= _COUNT_MAX:
        raise CannotCarry(KIND.name, f"The peer sent an eventfd that counts {count}.")
    if count:
        target.remote.syscall("write", fd, count.to_bytes(8, "little"), 8)
