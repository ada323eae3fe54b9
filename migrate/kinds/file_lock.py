"""Locks on files: fcntl(2) of a process, fcntl(2) of a description (OFD), flock(2).

read from   /proc/PID/fdinfo/FD: a line for each lock      proc_pid_fdinfo(5)
rebuilt by  fcntl(F_SETLK), fcntl(F_OFD_SETLK), flock(LOCK_NB)

Where both hosts see one file system, or are one, the frozen original still holds the
locks, and the copy cannot have them. So the original gives them up in the frozen
section (release), and takes them again if the move is called off (reacquire). In
between nobody holds them: somebody who waits for one may get it, and then the copy
is refused, and so may the original be.

Those of a description are given up from outside, through pidfd_getfd(2); those of a
process only itself can set.

A thread that waits for a lock needs nothing: its system call is made again.
"""

import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from errno import EACCES, EAGAIN
from typing import Final

from migrate.errors import printable
from migrate.kernel import procfs
from migrate.kernel.pidfds import PidFd
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import Remote
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target
from precopy.ids import Pid


class Holder(Enum):
    """What a lock belongs to; the value is the kernel's word in fdinfo."""

    PROCESS = "POSIX"
    DESCRIPTION = "OFDLCK"
    WHOLE_FILE = "FLOCK"  # of a description too, set with flock(2)


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock."""

    holder: Holder
    fd: int  # a descriptor through which it can be set
    path: bytes  # for people
    exclusive: bool  # a write lock
    start: int
    length: int  # bytes; 0 = to the end of the file, wherever that moves


@dataclass(frozen=True, slots=True)
class FileLocks:
    """What travels."""

    locks: tuple[Lock, ...]


# Late: closing any descriptor of a file drops a process's locks on it (fcntl(2)), so
# they come when the table of descriptors is as it will be.
KIND = Kind("file_lock", 1, Scope.PROCESS, FileLocks, late=True)

_F_OFD_SETLK: Final = 37  # linux/fcntl.h
# struct flock of x86-64: type, whence, start, length, pid
_FLOCK: Final = struct.Struct("<hhxxxxqqixxxx")
_OFFSET_MAX: Final = 2**63 - 1
_ACCESS: Final = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


def refuse(pid: Pid) -> list[str]:
    """Leases are promises of this host's kernel to this process."""
    return [
        f"fd {view.number} of pid {pid} ({printable(view.link)}) has a lease "
        "(fcntl F_SETLEASE), which is not carried. Give it up first."
        for view in procfs.fds(pid)
        if any(lock.kind in ("LEASE", "DELEG") for lock in view.info.locks)
    ]


def dump(source: Source) -> FileLocks | None:
    """Every lock that the process holds, through one descriptor each."""
    found: dict[tuple[object, ...], Lock] = {}
    for view in source.views:
        for seen in view.info.locks:
            lock = _lock(view, seen)
            # A process's lock shows at every descriptor of the file, a description's
            # at that only.
            key = (lock.holder, lock.exclusive, lock.start, lock.length) + (
                (seen.device, seen.inode)
                if lock.holder is Holder.PROCESS
                else (view.number,)
            )
            if key not in found or _suits(view, lock):
                found[key] = lock
    return FileLocks(tuple(found.values())) if found else None


def restore(record: FileLocks, target: Target) -> None:
    """Take every lock; none is waited for.

    Raises:
        CannotCarry: somebody holds one.
    """
    for lock in record.locks:
        if not 0 <= lock.start <= _OFFSET_MAX or not 0 <= lock.length <= _OFFSET_MAX:
            raise CannotCarry(KIND.name, f"{_name(lock)} came with a bad range.")
    if lost := _acquire(record.locks, target.remote):
        raise lost[0]


def release(source: Source, record: FileLocks) -> None:
    """Have the frozen original give up its locks, for the copy to take them.

    Afterwards the process must not run before they were taken again.
    """
    for lock in record.locks:
        if lock.holder is not Holder.PROCESS:
            _unlock(source.pidfd, lock)
    batch = source.remote.batch()
    for lock in record.locks:
        if lock.holder is Holder.PROCESS:
            batch.add("fcntl", lock.fd, _command(lock), _range(lock, fcntl.F_UNLCK))
    batch.run()


def reacquire(remote: Remote, record: FileLocks) -> list[CannotCarry]:
    """Have the original take its locks again: the move is called off.

    By itself, so that /proc/locks names it and not us. What could not be had, somebody
    was quicker to take: the process believes to hold a lock that it has lost.
    """
    return _acquire(record.locks, remote)


def _acquire(locks: Sequence[Lock], remote: Remote) -> list[CannotCarry]:
    batch = remote.batch()
    for lock in locks:
        if lock.holder is Holder.WHOLE_FILE:
            batch.add("flock", lock.fd, _mode(lock) | fcntl.LOCK_NB)
        else:
            batch.add("fcntl", lock.fd, _command(lock), _range(lock, _mode(lock)))
    return [
        _cannot_take(lock, -result, remote.pid)
        for lock, result in zip(locks, batch.run(check=False), strict=True)
        if result < 0
    ]


def _cannot_take(lock: Lock, number: int, pid: int) -> CannotCarry:
    held = number in (EAGAIN, EACCES)
    what = "is held by another process" if held else os.strerror(number)
    sentence = f"{_name(lock)} cannot be taken: {what}."
    return CannotCarry(KIND.name, sentence, pid=pid, fd=lock.fd)


def _unlock(pidfd: PidFd, lock: Lock) -> None:
    """Give up a lock of a description, through that description."""
    fd = pidfd.getfd(lock.fd)
    try:
        if lock.holder is Holder.WHOLE_FILE:
            fcntl.flock(fd, fcntl.LOCK_UN)
        else:
            fcntl.fcntl(fd, _F_OFD_SETLK, _range(lock, fcntl.F_UNLCK))
    finally:
        os.close(fd)


def _mode(lock: Lock) -> int:
    """What flock(2) takes, or the type that fcntl(2) does."""
    if lock.holder is Holder.WHOLE_FILE:
        return fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH
    return fcntl.F_WRLCK if lock.exclusive else fcntl.F_RDLCK


def _lock(view: FdView, seen: procfs.Lock) -> Lock:
    try:
        holder = Holder(seen.kind)
    except ValueError:
        raise CannotCarry.at(
            KIND,
            view,
            f"({printable(view.link)}) has a lock of type {seen.kind}, which is not "
            "carried. Give it up first.",
        ) from None
    return Lock(
        holder=holder,
        fd=view.number,
        path=os.fsencode(view.link),
        exclusive=seen.access == "WRITE",
        start=seen.start,
        length=0 if seen.end is None else seen.end - seen.start + 1,
    )


def _suits(view: FdView, lock: Lock) -> bool:
    """Whether the lock can be set through this descriptor (fcntl(2), EBADF)."""
    access = view.info.flags & _ACCESS
    return access != (os.O_RDONLY if lock.exclusive else os.O_WRONLY)


def _command(lock: Lock) -> int:
    return _F_OFD_SETLK if lock.holder is Holder.DESCRIPTION else fcntl.F_SETLK


def _range(lock: Lock, mode: int) -> bytes:
    return _FLOCK.pack(mode, os.SEEK_SET, lock.start, lock.length, 0)


def _name(lock: Lock) -> str:
    path = printable(os.fsdecode(lock.path))
    if lock.holder is Holder.WHOLE_FILE:
        return f"The lock on {path}"
    end = lock.start + lock.length - 1 if lock.length else "the end"
    return f"The lock on {path}, bytes {lock.start} to {end},"
