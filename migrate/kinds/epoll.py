"""epoll(7): a set of descriptors that are waited for together.

read from   /proc/PID/fdinfo/FD: a line for each registration  proc_pid_fdinfo(5)
rebuilt by  epoll_create1(2); epoll_ctl(2) once every descriptor has its number

A registration is of a file under the number that it had at the time. Nothing that is
ready is carried: epoll_ctl(2) looks, and reports what is ready now. So an
edge-triggered registration may report an edge once more (epoll(7) warns of that),
and none is lost.
"""

import fcntl
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from errno import EBADF, ENOENT
from typing import Final

from migrate.kernel import kcmp, procfs
from migrate.kernel.procfs import FdInfo, FdView
from migrate.kernel.remote import RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target
from precopy.errors import KernelError
from precopy.ids import Pid


@dataclass(frozen=True, slots=True)
class Watch:
    """One registration."""

    fd: int
    events: int  # EPOLL*, u32
    data: int  # u64, the program's own


@dataclass(frozen=True, slots=True)
class Epoll:
    """What travels."""

    watches: tuple[Watch, ...]  # by fd
    nonblocking: bool


KIND = Kind("epoll", 1, Scope.DESCRIPTOR, Epoll, exclusive=True)

_CTL_ADD: Final = 1
_CTL_DEL: Final = 2
_CTL_MOD: Final = 3
_EVENT: Final = struct.Struct("<IQ")  # struct epoll_event, packed on x86-64
_EPOLLONESHOT: Final = 1 << 30
# Exclusive, wake-up, one shot, edge: how to report, not what (fs/eventpoll.c).
_HOW_BITS: Final = 0xF << 28
_ANYTHING: Final = 0x3 | 0x4 | 0x2000  # in, priority, out, the peer's end closed
_DRAIN_EVENTS: Final = 1024


def claims(view: FdView) -> bool:
    """Whether the link names an epoll set."""
    return view.link == "anon_inode:[eventpoll]"


def refuse(view: FdView) -> str | None:
    """A registration must be of what its number stands for now.

    Looks twice: while the process runs, a number may be closed between two looks.
    """
    if _stale(view.pid, view.number, view.info) is None:
        return None
    number = _stale(view.pid, view.number, procfs.fd(view.pid, view.number).info)
    return None if number is None else _refusal(number)


def dump(process: Source, view: FdView) -> Epoll:
    """Read what is registered."""
    number = _stale(view.pid, view.number, view.info)
    if number is not None:
        raise CannotCarry.at(KIND, view, _refusal(number))
    watches = [
        Watch(found.fd, found.events, found.data)
        for found in procfs.epoll_targets(view.info)
    ]
    return Epoll(
        watches=tuple(sorted(watches, key=lambda watch: watch.fd)),
        nonblocking=bool(view.info.flags & os.O_NONBLOCK),
    )


def restore(record: Epoll, target: Target) -> RemoteFd:
    """Make an empty set; finish() fills it."""
    fd = RemoteFd(target.remote.syscall("epoll_create1", os.O_CLOEXEC))
    _set_nonblocking(record, target, fd)
    return fd


def update(old: Epoll, new: Epoll, target: Target, fd: RemoteFd) -> bool:
    """Keep the set, unless it is to forget what only a new one has never known.

    That is a file which left its number and lives on, and a one-shot registration
    which has reported since.
    """
    if any(watch.fd in target.vacated for watch in old.watches):
        return False
    if any(_is_spent(watch) for watch in set(new.watches) - set(old.watches)):
        return False
    _set_nonblocking(new, target, fd)
    return True


def finish(record: Epoll, target: Target, fd: RemoteFd) -> None:
    """Register what is to be, and nothing else."""
    if not all(
        0 <= watch.events < 1 << 32 and 0 <= watch.data < 1 << 64
        for watch in record.watches
    ):
        raise CannotCarry(KIND.name, "The peer sent an epoll set that is none.")
    info = procfs.fd(target.pid, fd).info
    standing = {
        found.fd: Watch(found.fd, found.events, found.data)
        for found in procfs.epoll_targets(info)
    }
    wanted = {watch.fd: watch for watch in record.watches}
    if standing == wanted:
        return
    _forget(standing, wanted, target, fd)
    missing = [watch for watch in record.watches if standing.get(watch.fd) != watch]
    _add_spent([watch for watch in missing if _is_spent(watch)], target, fd)
    batch = target.remote.batch()
    for watch in missing:
        if not _is_spent(watch):
            batch.add("epoll_ctl", fd, _CTL_ADD, watch.fd, _event(watch))
    batch.run()


def _forget(
    standing: Mapping[int, Watch],
    wanted: Mapping[int, Watch],
    target: Target,
    fd: RemoteFd,
) -> None:
    batch = target.remote.batch()
    for watch in standing.values():
        # Changed ones too: an exclusive registration cannot be modified.
        if wanted.get(watch.fd) != watch:
            batch.add("epoll_ctl", fd, _CTL_DEL, watch.fd, 0)
    batch.run()


def _add_spent(watches: list[Watch], target: Target, fd: RemoteFd) -> None:
    """Register one-shots that have reported and wait to be armed again.

    A registration is spent by reporting, and by nothing else: these are registered
    for anything, and what is ready is drawn from the set, which has no others yet.
    One that is ready for nothing stays armed, for errors and hang-ups only.
    """
    if not watches:
        return
    batch = target.remote.batch()
    for watch in watches:
        event = _EVENT.pack(watch.events | _ANYTHING, watch.data)
        batch.add("epoll_ctl", fd, _CTL_ADD, watch.fd, event)
    batch.run()
    events = target.remote.space(_EVENT.size * _DRAIN_EVENTS)
    while target.remote.syscall("epoll_wait", fd, events, _DRAIN_EVENTS, 0):
        pass
    target.remote.reset()
    info = procfs.fd(target.pid, fd).info
    spent = {found.fd for found in procfs.epoll_targets(info) if _spent(found.events)}
    batch = target.remote.batch()
    for watch in watches:
        if watch.fd not in spent:
            batch.add("epoll_ctl", fd, _CTL_MOD, watch.fd, _event(watch))
    batch.run()


def _stale(pid: Pid, number: int, info: FdInfo) -> int | None:
    """The number of a registration whose file is not at that number any more."""
    seen: Counter[int] = Counter()
    for found in procfs.epoll_targets(info):
        try:
            if not kcmp.watches(pid, number, found.fd, seen[found.fd]):
                return found.fd
        except KernelError as error:
            if error.errno not in (EBADF, ENOENT):
                raise
            return found.fd
        seen[found.fd] += 1
    return None


def _refusal(number: int) -> str:
    return (
        f"is an epoll set that watches a file as fd {number}, which is closed or "
        "another file now, while the file is open elsewhere. That is not carried: "
        f"the program should take fd {number} out of the set before it closes it."
    )


def _set_nonblocking(record: Epoll, target: Target, fd: RemoteFd) -> None:
    flags = os.O_NONBLOCK if record.nonblocking else 0
    target.remote.syscall("fcntl", fd, fcntl.F_SETFL, flags)


def _event(watch: Watch) -> bytes:
    return _EVENT.pack(watch.events, watch.data)


def _is_spent(watch: Watch) -> bool:
    return _spent(watch.events)


def _spent(events: int) -> bool:
    # The kernel adds errors and hang-ups to every registration, and takes all away
    # but the "how" when a one-shot has reported.
    return bool(events & _EPOLLONESHOT) and not events & ~_HOW_BITS
