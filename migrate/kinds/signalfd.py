"""signalfd(2): signals of a set are read from a descriptor.

read from   /proc/PID/fdinfo/FD: sigmask (hex)             proc_pid_fdinfo(5)
rebuilt by  signalfd4(-1, mask, 8, flags)                  signalfd(2)

It holds no signal itself: what it reads is pending at the process.
"""

import fcntl
import os
from dataclasses import dataclass
from typing import Final

from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target


@dataclass(frozen=True, slots=True)
class Signalfd:
    """What travels."""

    mask: int  # bit n-1: signal n is read from it
    nonblocking: bool


KIND = Kind("signalfd", 1, Scope.DESCRIPTOR, Signalfd, exclusive=True, in_view=True)

_SIGSET_BYTES: Final = 8


def claims(view: FdView) -> bool:
    """Whether the link names a signalfd."""
    return view.link == "anon_inode:[signalfd]"


def refuse(view: FdView) -> str | None:
    """It can go if the kernel tells its mask (CONFIG_PROC_FS does)."""
    if view.info.field("sigmask") is None:
        return "is a signalfd whose mask this kernel does not show. Close it."
    return None


def dump(process: Source, view: FdView) -> Signalfd:
    """Read the mask."""
    if reason := refuse(view):
        raise CannotCarry.at(KIND, view, reason)
    return Signalfd(
        mask=int(view.info.fields["sigmask"][0], 16),
        nonblocking=bool(view.info.flags & os.O_NONBLOCK),
    )


def restore(record: Signalfd, target: Target) -> RemoteFd:
    """Recreate it in ``target``."""
    flags = os.O_CLOEXEC | (os.O_NONBLOCK if record.nonblocking else 0)
    return RemoteFd(_signalfd(-1, record, target, flags))


def update(old: Signalfd, new: Signalfd, target: Target, fd: RemoteFd) -> bool:
    """Give it another mask: signalfd4() of an existing one does that."""
    _signalfd(fd, new, target, 0)
    flags = os.O_NONBLOCK if new.nonblocking else 0
    target.remote.syscall("fcntl", fd, fcntl.F_SETFL, flags)
    return True


def _signalfd(fd: int, record: Signalfd, target: Target, flags: int) -> int:
    if not 0 <= record.mask < 1 << 64:
        raise CannotCarry(KIND.name, f"The peer sent a signal mask {record.mask:#x}.")
    mask = record.mask.to_bytes(_SIGSET_BYTES, "little")
    return target.remote.syscall("signalfd4", fd, mask, _SIGSET_BYTES, flags)
