"""A file on disk, opened by its name.

read from   /proc/PID/fd/FD (the name), fdinfo (flags, position)  proc_pid_fdinfo(5)
rebuilt by  openat(2) by the owner, then lseek(2)

The file itself does not travel, unless it is POSIX shared memory: it must be there
under the same name. What tells a stranger is compared: it must be a regular file, and
no shorter than it was.
"""

import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from migrate.errors import printable
from migrate.kernel import procfs
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target


@dataclass(frozen=True, slots=True)
class RegularFile:
    """What travels."""

    path: bytes
    flags: int  # access mode and status flags, as open(2) takes them
    position: int
    size: int  # bytes: the file must not be shorter


# Its size is not in view, but a file that has grown since is not shorter; and one that
# has lost its name is seen by its link.
KIND = Kind("regular_file", 1, Scope.DESCRIPTOR, RegularFile, in_view=True)

_AT_FDCWD: Final = -100
_DELETED: Final = " (deleted)"
_TMPFILE: Final = 0o20000000  # __O_TMPFILE: O_TMPFILE is this with O_DIRECTORY
# What open(2) obeys once must not happen again, and what is the descriptor's own
# is no part of the description.
_OPENING_FLAGS: Final = (
    os.O_CREAT
    | os.O_EXCL
    | os.O_TRUNC
    | os.O_NOCTTY
    | os.O_CLOEXEC
    | os.O_DIRECTORY
    | _TMPFILE
)
# What fcntl(F_SETFL) can change (fcntl(2)).
_SETTABLE_FLAGS: Final = os.O_APPEND | os.O_DIRECT | os.O_NOATIME | os.O_NONBLOCK
_PATH_BYTES_MAX: Final = 4096  # PATH_MAX, with the NUL
_POSITION_MAX: Final = 2**63 - 1


def claims(view: FdView) -> bool:
    """Whether it has a name on disk, or had one; nameless_file has what lost it."""
    return (
        stat.S_ISREG(view.mode)
        and view.link.startswith("/")
        and not view.link.startswith(("/memfd:", "/SYSV", "/dev/zero", "/secretmem"))
        and not procfs.has_lost_name(view)
    )


def refuse(view: FdView) -> str | None:
    """A file without a name, or whose name is another's now, cannot be opened by it."""
    name = printable(view.link)
    if view.info.flags & os.O_PATH:
        return f"is {name}, opened with O_PATH, which is not carried. Close it."
    try:
        # As the process resolves names: in its mount namespace.
        found = os.stat(os.fsencode(f"/proc/{view.pid}/root{view.link}"))
    except OSError as error:
        if view.link.endswith(_DELETED):
            return (
                f"is {name.removesuffix(_DELETED)}, which was deleted while it is "
                "open: no name is left to open it by. Close it."
            )
        return f"is {name}, which is not there: {error.strerror}. Close it."
    if (found.st_dev, found.st_ino) != (view.device, view.inode):
        return (
            f"was {name} when it was opened, and that is another file now. Close it, "
            "or have the program open it again (many do at SIGHUP)."
        )
    return None


def dump(process: Source, view: FdView) -> RegularFile:
    """Read everything from outside; nothing is touched."""
    if reason := refuse(view):
        raise CannotCarry.at(KIND, view, reason)
    if process.objects is not None:
        process.objects.meet(view)  # what lies in /dev/shm is there before it is opened
    return RegularFile(
        path=os.fsencode(view.link),
        flags=view.info.flags & ~_OPENING_FLAGS,
        position=view.info.position,
        size=os.stat(f"/proc/{view.pid}/fd/{view.number}").st_size,
    )


def restore(record: RegularFile, target: Target) -> RemoteFd:
    """Open it in ``target``, as the owner."""
    return restore_many([record], target)[0]


def restore_many(records: Sequence[RegularFile], target: Target) -> list[RemoteFd]:
    """Open all of them in one batch."""
    batch = target.remote.batch()
    for record in records:
        _check_record(record)
        # Until it is known to be a regular file: a FIFO must not block, a terminal
        # must not become the controlling one.
        flags = record.flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        batch.add("openat", _AT_FDCWD, record.path + b"\0", flags, 0)
    results = batch.run(check=False)
    for record, result in zip(records, results, strict=True):
        if result < 0:
            raise _mismatch(record, target, f"cannot be opened: {os.strerror(-result)}")
    fds = [RemoteFd(result) for result in results]
    batch = target.remote.batch()
    for record, fd in zip(records, fds, strict=True):
        _check_file(record, target, fd)
        if not record.flags & os.O_NONBLOCK:
            batch.add("fcntl", fd, fcntl.F_SETFL, record.flags)
        if record.position:
            batch.add("lseek", fd, record.position, os.SEEK_SET)
    batch.run()
    return fds


def update(old: RegularFile, new: RegularFile, target: Target, fd: RemoteFd) -> bool:
    """Move the position and set the status flags, if it is still the same file."""
    if old.path != new.path or (old.flags ^ new.flags) & ~_SETTABLE_FLAGS:
        return False
    _check_record(new)
    _check_file(new, target, fd)
    batch = target.remote.batch()
    if old.flags != new.flags:
        batch.add("fcntl", fd, fcntl.F_SETFL, new.flags)
    if old.position != new.position:
        batch.add("lseek", fd, new.position, os.SEEK_SET)
    batch.run()
    return True


def _check_record(record: RegularFile) -> None:
    """The peer's word is input: only what dump() can have written is obeyed."""
    path = record.path
    if not path.startswith(b"/") or b"\0" in path or len(path) >= _PATH_BYTES_MAX:
        raise CannotCarry(KIND.name, "The peer sent a file without a proper name.")
    if record.flags & (_OPENING_FLAGS | os.O_PATH) or not 0 <= record.flags < 1 << 31:
        raise CannotCarry(
            KIND.name,
            f"{_name(record)} came with flags {record.flags:#o}: not allowed.",
        )
    if not 0 <= record.position <= _POSITION_MAX:
        raise CannotCarry(
            KIND.name, f"{_name(record)} came with position {record.position}."
        )


def _check_file(record: RegularFile, target: Target, fd: RemoteFd) -> None:
    found = os.stat(f"/proc/{target.pid}/fd/{fd}")
    if not stat.S_ISREG(found.st_mode):
        raise _mismatch(record, target, "is not a regular file here")
    if found.st_size < record.size:
        raise _mismatch(
            record,
            target,
            f"has {found.st_size} bytes here and {record.size} at the source",
        )


def _mismatch(record: RegularFile, target: Target, what: str) -> CannotCarry:
    return CannotCarry(
        KIND.name,
        f"{_name(record)} {what}. The same file must be there under the same name, "
        "and the owner must be allowed to open it.",
        pid=target.pid,
    )


def _name(record: RegularFile) -> str:
    return printable(os.fsdecode(record.path))
