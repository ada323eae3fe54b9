"""chdir(2), umask(2) and chroot(2): where a process stands in the file system.

read from   /proc/PID/cwd, /proc/PID/root, ``Umask`` in /proc/PID/status
rebuilt by  chdir(2) and umask(2), made by the process with its own rights
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
from migrate.kernel.remote import RemoteError, cstr
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_PATH_BYTES_MAX: Final = 4095  # PATH_MAX less the NUL
_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What travels."""

    cwd: bytes
    umask: int


KIND = Kind("filesystem", 1, Scope.PROCESS, FileSystem)


def refuse(pid: Pid) -> list[str]:
    """A root of its own, a directory that is gone, threads that stand elsewhere."""
    reasons = []
    root, cwd = procfs.link(pid, "root"), procfs.link(pid, "cwd")
    if root != "/":
        reasons.append(f"pid {pid} has {root} for its root (chroot), not /.")
    if _is_gone(pid, cwd):
        reasons.append(
            f"pid {pid} works in a directory that was removed ({cwd}). "
            "Let it change to another."
        )
    if not cwd.startswith("/"):
        reasons.append(f"pid {pid} works in a directory outside its root: {cwd}.")
    for tid in procfs.threads(pid):
        own = procfs.link(pid, f"task/{tid}/cwd")
        if own != cwd:
            reasons.append(
                f"thread {tid} of pid {pid} has a working directory of its own "
                f"(unshare(CLONE_FS)): {own}."
            )
    return reasons


def dump(source: Source) -> FileSystem:
    """Read /proc.

    Raises:
        CannotCarry: what refuse() would have said, had it been so then.
    """
    reasons = refuse(source.pid)
    if reasons:
        raise CannotCarry(KIND.name, reasons[0], pid=source.pid)
    umask = procfs.status(source.pid).umask
    return FileSystem(os.fsencode(procfs.link(source.pid, "cwd")), umask or 0)


def restore(record: FileSystem, target: Target) -> None:
    """Change to the same path; it must be reachable, and be called the same.

    Raises:
        CannotCarry: there is no such directory, or its owner may not enter it.
    """
    path = os.fsdecode(record.cwd)
    if len(record.cwd) > _PATH_BYTES_MAX or b"\0" in record.cwd:
        raise CannotCarry(KIND.name, "The peer's working directory is no path.")
    try:
        target.remote.syscall("chdir", cstr(path))
    except RemoteError as error:
        raise CannotCarry(
            KIND.name,
            f"Its working directory {path} cannot be entered at the destination: "
            f"{os.strerror(error.errno or 0)}. Make it, with the same rights.",
            pid=target.pid,
        ) from error
    target.remote.syscall("umask", record.umask)


def _is_gone(pid: Pid, link: str) -> bool:
    # A directory may really be called so: then the path leads to it.
    if not link.endswith(_DELETED):
        return False
    try:
        return not os.path.samefile(f"/proc/{pid}/cwd", link)
    except OSError:
        return True
