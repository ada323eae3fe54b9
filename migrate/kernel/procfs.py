"""/proc, read: one function for each file, which answers in records.

The parsers are pure and live beside (maps, fdinfo, tasks, mounts); their names are
offered here too. The readers below add one thing: a process that goes away while it
is looked at is TaskVanished, whichever way the kernel puts it (ENOENT where the
directory is gone, ESRCH where it was open). Any other OSError, such as EACCES, passes
through with the name of the file in it.

What is read of a process that runs is true of no single moment. A descriptor or a
thread that ends during the look is left out; who needs the truth stops it first and
looks again.
"""

import functools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT, ENOSPC, ESRCH
from operator import attrgetter
from stat import S_ISREG
from typing import Final

from migrate.kernel._native import ffi, lib
from migrate.kernel.fdinfo import (
    EpollTarget,
    FdInfo,
    FdView,
    Lock,
    TimerfdInfo,
    epoll_targets,
    parse_fdinfo,
    timerfd_info,
)
from migrate.kernel.maps import MapsParser, parse_maps, parse_smaps
from migrate.kernel.mounts import (
    CgroupMembership,
    Mount,
    parse_cgroup,
    parse_mountinfo,
)
from migrate.kernel.proc_text import MalformedText, text
from migrate.kernel.tasks import (
    RLIMIT_INFINITY,
    Capabilities,
    Ids,
    Limit,
    PosixTimer,
    SignalSets,
    Stat,
    Status,
    parse_children,
    parse_limits,
    parse_stat,
    parse_status,
    parse_timers,
)
from precopy.address_space import AddressSpace, Vma
from precopy.errors import TaskVanished
from precopy.ids import Pid, Tid

__all__ = [
    "RLIMIT_INFINITY",
    "Capabilities",
    "CgroupMembership",
    "EpollTarget",
    "FdInfo",
    "FdView",
    "Ids",
    "Limit",
    "Lock",
    "MalformedText",
    "MapsParser",
    "Mount",
    "PosixTimer",
    "SignalSets",
    "Stat",
    "Status",
    "TimerfdInfo",
    "cgroups",
    "children",
    "epoll_targets",
    "fd",
    "fds",
    "limits",
    "link",
    "mapped_file",
    "mounts",
    "namespaces",
    "parse_cgroup",
    "parse_children",
    "parse_fdinfo",
    "parse_limits",
    "parse_maps",
    "parse_mountinfo",
    "parse_smaps",
    "parse_stat",
    "parse_status",
    "parse_timers",
    "personality",
    "pids",
    "read",
    "read_maps",
    "read_smaps",
    "stat",
    "status",
    "threads",
    "timerfd_info",
    "timers",
]

_CHUNK_BYTES: Final = 1 << 16
_ROW: Final = struct.Struct("<iIIIQQQ")  # struct descriptor_row
_ROW_ALIGNMENT: Final = 8
_ROWS_BYTES: Final = 1 << 17
_NUMBER: Final = attrgetter("number")


def read(pid: Pid, name: str) -> bytes:
    """The whole of /proc/PID/``name``.

    Raises:
        TaskVanished: there is no such process (any more).
        OSError: it is there, but this file may not be read.
    """
    # Without _vanishing(), which takes as long as a small file.
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = chunk = os.read(fd, _CHUNK_BYTES)
            while chunk:
                chunk = os.read(fd, _CHUNK_BYTES)
                content += chunk
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (ENOENT, ESRCH):
            raise TaskVanished(pid) from error
        raise
    return content


def link(pid: Pid, name: str) -> str:
    """What the symbolic link /proc/PID/``name`` says.

    Raises:
        TaskVanished: there is no such process, or it has no such link: a zombie or
            a kernel thread has no exe.
    """
    with _vanishing(pid):
        return text(os.readlink(f"/proc/{pid}/{name}".encode()))


def read_maps(pid: Pid, parser: MapsParser | None = None) -> AddressSpace:
    """The VMAs of ``pid``, without flags; none for a zombie or a kernel thread.

    ``parser`` remembers the last look and makes the next one cheap.
    """
    content = read(pid, "maps")
    return parser.parse(content) if parser else parse_maps(content)


def read_smaps(pid: Pid) -> AddressSpace:
    """The VMAs of ``pid`` with their flags. Walks the page tables: 1 ms a GiB."""
    return parse_smaps(read(pid, "smaps"))


def mapped_file(pid: Pid, vma: Vma) -> str:
    """The name of the file behind ``vma``, exact where maps is ambiguous.

    Needs CAP_CHECKPOINT_RESTORE in the first user namespace (proc_pid_map_files(5)).
    """
    return link(pid, f"map_files/{vma.start:x}-{vma.end:x}")


def stat(pid: Pid) -> Stat:
    """The stat of ``pid``."""
    return parse_stat(read(pid, "stat"))


def status(pid: Pid, tid: Tid | None = None) -> Status:
    """The status of ``pid``, or of its thread ``tid``."""
    return parse_status(read(pid, f"task/{tid}/status" if tid else "status"))


def own_id(pid: Pid, tid: Tid) -> int:
    """The number of a thread as the process itself sees it (NSpid, the innermost)."""
    content = read(pid, f"task/{tid}/status")
    _, found, rest = content.partition(b"\nNSpid:")
    if not found:
        # Without CONFIG_PID_NS every process sees what we see.
        return tid
    return int(rest.partition(b"\n")[0].split()[-1])


def limits(pid: Pid) -> dict[int, Limit]:
    """The resource limits of ``pid`` by RLIMIT_ number; needs no right to set them."""
    return parse_limits(read(pid, "limits"))


def timers(pid: Pid) -> tuple[PosixTimer, ...]:
    """The timers that ``pid`` made with timer_create(2)."""
    return parse_timers(read(pid, "timers"))


def personality(pid: Pid) -> int:
    """The execution domain of ``pid``, personality(2)."""
    return int(read(pid, "personality"), 16)


def cgroups(pid: Pid) -> tuple[CgroupMembership, ...]:
    """The cgroups that ``pid`` is in, one a hierarchy."""
    return parse_cgroup(read(pid, "cgroup"))


def mounts(pid: Pid) -> tuple[Mount, ...]:
    """The mounts that ``pid`` sees."""
    return parse_mountinfo(read(pid, "mountinfo"))


def namespaces(pid: Pid, tid: Tid | None = None) -> dict[str, str]:
    """The namespaces of ``pid`` (or of its thread) by the name of their link."""
    with _vanishing(pid):
        directory = f"/proc/{pid}/task/{tid}/ns" if tid else f"/proc/{pid}/ns"
        found = {}
        for name in sorted(os.listdir(directory)):
            try:
                found[name] = os.readlink(f"{directory}/{name}")
            except FileNotFoundError:
                # pid_for_children leads nowhere before the first child is born.
                continue
        os.readlink(f"{directory}/user")
    return found


def threads(pid: Pid) -> tuple[Tid, ...]:
    """The threads of ``pid``, its leader first."""
    with _vanishing(pid):
        tids = [Tid(int(name)) for name in os.listdir(f"/proc/{pid}/task")]
    if not tids:
        raise TaskVanished(pid)
    return tuple(sorted(tids, key=lambda tid: (int(tid) != pid, tid)))


def children(pid: Pid) -> tuple[Pid, ...]:
    """The children of all threads of ``pid``, zombies included.

    Complete only while none of them is born or ends (proc_tid_children(5)).
    """
    found: list[Pid] = []
    for tid in threads(pid):
        try:
            found += parse_children(read(pid, f"task/{tid}/children"))
        except TaskVanished:
            continue  # that thread ended; its children went over to another one
    return tuple(sorted(found))


def fd(pid: Pid, number: int) -> FdView:
    """Descriptor ``number`` of ``pid``.

    Raises:
        TaskVanished: there is no such descriptor, or no such process.
    """
    path = f"/proc/{pid}/fd/{number}"
    try:
        name = text(os.readlink(path.encode()))
        info = parse_fdinfo(read(pid, f"fdinfo/{number}"))
        found = os.stat(path)
    except OSError as error:
        if error.errno in (ENOENT, ESRCH):
            raise TaskVanished(pid) from error
        raise
    return FdView(
        pid,
        number,
        name,
        info,
        found.st_mode,
        found.st_dev,
        found.st_ino,
        found.st_rdev,
    )


def fds(pid: Pid) -> tuple[FdView, ...]:
    """The descriptors of ``pid``, in their order; none for a zombie."""
    size = _ROWS_BYTES
    while True:
        rows = bytearray(size)
        used = lib.descriptors_read(pid, ffi.from_buffer(rows), size)
        if used != -ENOSPC:
            break
        size *= 4
    if used in (-ENOENT, -ESRCH):
        raise TaskVanished(pid)
    if used < 0:
        raise OSError(-used, os.strerror(-used), f"/proc/{pid}/fd")
    views = []
    data, at = bytes(rows[:used]), 0
    while at < used:
        number, mode, link_bytes, info_bytes, *where = _ROW.unpack_from(data, at)
        info_at = at + _ROW.size + link_bytes
        end = info_at + info_bytes
        views.append(
            _view(
                pid,
                number,
                data[at + _ROW.size : info_at],
                data[info_at:end],
                mode,
                *where,
            )
        )
        at = end + -end % _ROW_ALIGNMENT
    views.sort(key=_NUMBER)
    if not views:
        read(pid, "stat")  # raises if it is the process that is gone
    return tuple(views)


@functools.lru_cache(maxsize=1 << 15)
def _view(
    pid: Pid,
    number: int,
    name: bytes,
    info: bytes,
    mode: int,
    device: int,
    inode: int,
    special: int,
) -> FdView:
    """What looks the same is not parsed again."""
    return FdView(
        pid, number, text(name), parse_fdinfo(info), mode, device, inode, special
    )


def has_lost_name(view: FdView) -> bool:
    """Whether it is a regular file to which no name leads, or never did.

    The mark behind its link may be the end of a name, or a file may have others.
    """
    if not S_ISREG(view.mode) or not view.link.endswith(" (deleted)"):
        return False
    try:
        return os.stat(f"/proc/{view.pid}/fd/{view.number}").st_nlink == 0
    except OSError:
        return False


def pids() -> tuple[Pid, ...]:
    """Every process that /proc shows."""
    return tuple(Pid(int(name)) for name in os.listdir("/proc") if name.isdigit())


@contextmanager
def _vanishing(pid: Pid) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (ENOENT, ESRCH):
            raise TaskVanished(pid) from error
        raise
