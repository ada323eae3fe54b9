"""The devices that are the same on every host: null, zero, full, random, urandom.

read from   stat(2) of /proc/PID/fd/FD (the device number), fdinfo (flags)
rebuilt by  openat(2) by the owner                             null(4), random(4)
"""

import fcntl
import os
import stat
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteError, RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target


@dataclass(frozen=True, slots=True)
class Device:
    """What travels."""

    minor: int  # of major 1, the memory devices
    flags: int  # access mode and status flags, as open(2) takes them


KIND = Kind("device", 1, Scope.DESCRIPTOR, Device, in_view=True)

# Documentation/admin-guide/devices.txt, major 1
_MAJOR: Final = 1
_PATHS: Final = MappingProxyType(
    {
        3: b"/dev/null",
        5: b"/dev/zero",
        7: b"/dev/full",
        8: b"/dev/random",
        9: b"/dev/urandom",
    }
)
_AT_FDCWD: Final = -100
_ACCESS: Final = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_SETTABLE_FLAGS: Final = os.O_APPEND | os.O_NONBLOCK
_KEPT_FLAGS: Final = _ACCESS | _SETTABLE_FLAGS


def claims(view: FdView) -> bool:
    """Whether it is one of the five, under whatever name."""
    return (
        stat.S_ISCHR(view.mode)
        and os.major(view.rdev) == _MAJOR
        and os.minor(view.rdev) in _PATHS
    )


def refuse(view: FdView) -> str | None:
    """They can go always, but for O_PATH."""
    if view.info.flags & os.O_PATH:
        return "was opened with O_PATH, which is not carried. Close it."
    return None


def dump(process: Source, view: FdView) -> Device:
    """They keep nothing between two calls."""
    if reason := refuse(view):
        raise CannotCarry.at(KIND, view, reason)
    return Device(os.minor(view.rdev), view.info.flags & _KEPT_FLAGS)


def restore(record: Device, target: Target) -> RemoteFd:
    """Open the device under its usual name, and see that it is the one."""
    path = _PATHS.get(record.minor)
    if path is None:
        raise CannotCarry(KIND.name, f"The peer sent device 1:{record.minor}.")
    flags = record.flags & _KEPT_FLAGS | os.O_CLOEXEC | os.O_NOCTTY
    try:
        # O_NONBLOCK: there might be a FIFO in its place.
        fd = RemoteFd(
            target.remote.syscall(
                "openat", _AT_FDCWD, path + b"\0", flags | os.O_NONBLOCK, 0
            )
        )
    except RemoteError as error:
        raise CannotCarry(
            KIND.name, f"{path.decode()} cannot be opened: {error.strerror}."
        ) from error
    found = os.stat(f"/proc/{target.pid}/fd/{fd}")
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(
        _MAJOR, record.minor
    ):
        raise CannotCarry(
            KIND.name, f"{path.decode()} is not device 1:{record.minor} here."
        )
    target.remote.syscall("fcntl", fd, fcntl.F_SETFL, record.flags & _SETTABLE_FLAGS)
    return fd


def update(old: Device, new: Device, target: Target, fd: RemoteFd) -> bool:
    """Set the status flags, if it is still the same device."""
    if old.minor != new.minor or (old.flags ^ new.flags) & _ACCESS:
        return False
    target.remote.syscall("fcntl", fd, fcntl.F_SETFL, new.flags & _SETTABLE_FLAGS)
    return True
