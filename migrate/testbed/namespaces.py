"""The few system calls on namespaces and mounts that Python 3.11 does not have."""

import ctypes
import os
import signal
from enum import IntFlag
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

_PR_SET_PDEATHSIG: Final = 1


class Namespace(IntFlag):
    """CLONE_NEW* of <linux/sched.h>."""

    MOUNT = 0x00020000
    UTS = 0x04000000
    IPC = 0x08000000
    PID = 0x20000000
    NETWORK = 0x40000000


class MountFlag(IntFlag):
    """MS_* of <linux/mount.h>."""

    NOSUID = 1 << 1
    NODEV = 1 << 2
    NOEXEC = 1 << 3
    BIND = 1 << 12
    RECURSIVE = 1 << 14
    PRIVATE = 1 << 18


def unshare(kinds: Namespace) -> None:
    """Leave the namespaces of these kinds for new ones: unshare(2)."""
    _check("unshare", _libc.unshare(int(kinds)))


def enter(namespace_fd: int, kind: Namespace) -> None:
    """Join a namespace: setns(2)."""
    _check("setns", _libc.setns(namespace_fd, int(kind)))


def mount(
    source: str, target: str, kind: str, flags: MountFlag, data: str = ""
) -> None:
    """Attach a file system: mount(2)."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode()
    )
    _check(f"mount({target})", result)


def die_with_parent() -> None:
    """Have the kernel kill us when the thread that created us ends: prctl(2).

    A parent that is gone already goes unnoticed; the caller has to look.
    """
    _check("prctl", _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def _check(call: str, result: int) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}: {os.strerror(errno)}")
