"""A file without a name: a memfd, or one that was deleted while it is open.

read from   /proc/PID/fd/FD (what it is), fdinfo (flags, position)  proc_pid_fdinfo(5)
rebuilt by  opening anew what is there already, then lseek(2)

The file itself is an object that others may have mapped or open as well: it travels
as memory does, once for the whole tree. Here is only how it is open.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from migrate.errors import printable
from migrate.kernel import procfs
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteFd
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target
from precopy.ids import PAGE_BYTES


@dataclass(frozen=True, slots=True)
class NamelessFile:
    """What travels."""

    number: int  # the object's
    flags: int  # access mode and status flags, as open(2) takes them
    position: int


KIND = Kind("nameless_file", 1, Scope.DESCRIPTOR, NamelessFile, in_view=True)

_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_DIRECT | os.O_NOATIME | os.O_NONBLOCK
_POSITION_MAX: Final = 2**63 - 1
# Files of the kernel's own that are made in other ways, and refused.
_OTHERS: Final = ("/SYSV", "/dev/zero", "/secretmem", "/anon_hugepage", "/[aio]")
_MEMFD: Final = "/memfd:"


def claims(view: FdView) -> bool:
    """Whether no name leads to it; a memfd of huge pages is another thing."""
    if not procfs.has_lost_name(view) or view.link.startswith(_OTHERS):
        return False
    return not (view.link.startswith(_MEMFD) and _is_huge(view))


def refuse(view: FdView) -> str | None:
    """Who else has it, preflight looks for."""
    if view.info.flags & os.O_PATH:
        name = printable(view.link)
        return f"is {name}, opened with O_PATH, which is not carried. Close it."
    return None


def dump(process: Source, view: FdView) -> NamelessFile:
    """Read everything from outside; nothing is touched."""
    if reason := refuse(view):
        raise CannotCarry.at(KIND, view, reason)
    assert process.objects is not None
    return NamelessFile(
        number=process.objects.number_of(view),
        flags=view.info.flags & _FLAGS,
        position=view.info.position,
    )


def restore(record: NamelessFile, target: Target) -> RemoteFd:
    """Open it anew for ``target``."""
    return restore_many([record], target)[0]


def restore_many(records: Sequence[NamelessFile], target: Target) -> list[RemoteFd]:
    """Open all of them."""
    assert target.objects is not None
    for record in records:
        _check(record)
    wanted = [(record.number, record.flags) for record in records]
    fds = target.objects.give(target.remote, wanted)
    batch = target.remote.batch()
    for record, fd in zip(records, fds, strict=True):
        batch.add("lseek", fd, record.position, os.SEEK_SET)
    batch.run()
    return fds


def update(old: NamelessFile, new: NamelessFile, target: Target, fd: RemoteFd) -> bool:
    """Move the position, if that is all."""
    if (old.number, old.flags) != (new.number, new.flags):
        return False
    _check(new)
    target.remote.syscall("lseek", fd, new.position, os.SEEK_SET)
    return True


def _check(record: NamelessFile) -> None:
    """The peer's word is input; numbers and flags are looked at where they are used."""
    if not 0 <= record.position <= _POSITION_MAX:
        raise CannotCarry(
            KIND.name, f"A file without a name came with position {record.position}."
        )


def _is_huge(view: FdView) -> bool:
    try:
        found = os.statvfs(f"/proc/{view.pid}/fd/{view.number}")
    except OSError:
        return False
    return found.f_bsize > PAGE_BYTES  # hugetlbfs says the size of its pages
