"""A directory, opened by its name.

read from   /proc/PID/fd/FD (the name), fdinfo (flags, position)  proc_pid_fdinfo(5)
rebuilt by  openat(2) by the owner, then lseek(2)

The position of a directory that was read in part is a cookie of its file system
(ext4: a hash with a key of that file system): it means nothing in another one.
"""

import fcntl
import os
import stat
from dataclasses import dataclass
from typing import Final

from migrate.errors import printable
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteError, RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target


@dataclass(frozen=True, slots=True)
class Directory:
    """What travels."""

    path: bytes
    flags: int  # status flags, as open(2) takes them
    position: int
    inode: int  # tells whether it is the same file system, if the position matters


KIND = Kind("directory", 1, Scope.DESCRIPTOR, Directory, in_view=True)

_AT_FDCWD: Final = -100
_KEPT_FLAGS: Final = os.O_NONBLOCK | os.O_NOATIME
_PATH_BYTES_MAX: Final = 4096  # PATH_MAX, with the NUL


def claims(view: FdView) -> bool:
    """Whether it is a directory."""
    return stat.S_ISDIR(view.mode)


def refuse(view: FdView) -> str | None:
    """A directory whose name is gone, or is another's now, cannot be opened by it."""
    name = printable(view.link)
    if view.info.flags & os.O_PATH:
        return f"is {name}, opened with O_PATH, which is not carried. Close it."
    try:
        found = os.stat(os.fsencode(f"/proc/{view.pid}/root{view.link}"))
    except OSError as error:
        return f"is {name}, which is not there: {error.strerror}. Close it."
    if (found.st_dev, found.st_ino) != (view.device, view.inode):
        return f"was {name}, and that is another directory now. Close it."
    return None


def dump(process: Source, view: FdView) -> Directory:
    """Read everything from outside; nothing is touched."""
    if reason := refuse(view):
        raise CannotCarry.at(KIND, view, reason)
    return Directory(
        path=os.fsencode(view.link),
        flags=view.info.flags & _KEPT_FLAGS,
        position=view.info.position,
        inode=view.inode,
    )


def restore(record: Directory, target: Target) -> RemoteFd:
    """Open it in ``target``, as the owner."""
    path = record.path
    if not path.startswith(b"/") or b"\0" in path or len(path) >= _PATH_BYTES_MAX:
        raise CannotCarry(KIND.name, "The peer sent a directory without a proper name.")
    flags = os.O_DIRECTORY | os.O_CLOEXEC | record.flags & _KEPT_FLAGS
    try:
        fd = RemoteFd(target.remote.syscall("openat", _AT_FDCWD, path + b"\0", flags))
    except RemoteError as error:
        raise CannotCarry(
            KIND.name,
            f"{printable(os.fsdecode(path))} cannot be opened: {error.strerror}. The "
            "same directory must be there, and the owner must be allowed to open it.",
            pid=target.pid,
        ) from error
    _seek(record, target, fd)
    return fd


def update(old: Directory, new: Directory, target: Target, fd: RemoteFd) -> bool:
    """Move the position and set the status flags, if it is still the same one."""
    if (old.path, old.inode) != (new.path, new.inode):
        return False
    if old.flags != new.flags:
        target.remote.syscall("fcntl", fd, fcntl.F_SETFL, new.flags & _KEPT_FLAGS)
    if old.position != new.position:
        _seek(new, target, fd)
    return True


def _seek(record: Directory, target: Target, fd: RemoteFd) -> None:
    inode = os.stat(f"/proc/{target.pid}/fd/{fd}").st_ino
    if record.position and inode != record.inode:
        raise CannotCarry(
            KIND.name,
            f"{printable(os.fsdecode(record.path))} was being read, and how far cannot "
            "be told of a copy of it. Move the process when it has read it.",
            pid=target.pid,
        )
    target.remote.syscall("lseek", fd, record.position, os.SEEK_SET)
