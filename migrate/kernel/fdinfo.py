"""/proc/PID/fdinfo/FD: what the kernel tells about an open description.

described   proc_pid_fdinfo(5); Documentation/filesystems/proc.rst, 3.8
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from migrate.kernel.proc_text import MalformedText, text
from precopy.ids import Pid

_LOCK: Final = re.compile(
    r"(?P<id>\d+): (?P<kind>\S+) +(?P<mode>\S+) +(?P<access>\S+) (?P<pid>-?\d+) "
    r"(?P<device>[0-9a-f]+:[0-9a-f]+):(?P<inode>\d+) (?P<start>\d+) (?P<end>\d+|EOF)"
)
_EPOLL: Final = re.compile(
    r"(?P<fd>\d+) events: *(?P<events>[0-9a-f]+) data: *(?P<data>[0-9a-f]+)"
    r"(?: +pos:(?P<position>-?\d+) ino:(?P<inode>[0-9a-f]+)"
    r" sdev:(?P<device>[0-9a-f]+))?"
)
_TIMESPEC: Final = re.compile(r"\((\d+), (\d+)\)")


@dataclass(frozen=True, slots=True)
class Lock:
    """A file lock held through this description (or, POSIX, by this process)."""

    kind: str  # "POSIX", "FLOCK", "OFDLCK", "LEASE", "DELEG"
    mode: str  # "ADVISORY", "MANDATORY"; of leases "ACTIVE", "BREAKING", …
    access: str  # "READ", "WRITE", "UNLCK"
    pid: int  # -1 where no process holds it (OFDLCK)
    device: str
    inode: int
    start: int
    end: int | None  # None: to the end of the file, wherever that moves


@dataclass(frozen=True, slots=True)
class FdInfo:
    """One description, as /proc/PID/fdinfo/FD shows it."""

    position: int
    flags: int  # as open(2) takes them; O_CLOEXEC is that of this descriptor
    mount_id: int
    inode: int | None  # absent before Linux 5.14
    fields: Mapping[str, tuple[str, ...]]  # every line by the text before its colon
    locks: tuple[Lock, ...]

    def field(self, name: str) -> str | None:
        """The value of the first line called ``name``."""
        values = self.fields.get(name)
        return values[0] if values else None


@dataclass(frozen=True, slots=True)
class FdView:
    """A descriptor of a process, seen from outside."""

    pid: Pid
    number: int
    link: str  # what readlink(/proc/PID/fd/FD) says
    info: FdInfo
    mode: int  # st_mode
    device: int  # st_dev
    inode: int  # st_ino
    rdev: int  # st_rdev


@dataclass(frozen=True, slots=True)
class EpollTarget:
    """One registration in an epoll set."""

    fd: int  # as it was numbered when registered; the number may have moved on
    events: int
    data: int  # u64
    position: int | None  # these three are None where the kernel prints none
    inode: int | None
    device: int | None  # st_dev in the kernel's own encoding


@dataclass(frozen=True, slots=True)
class TimerfdInfo:
    """A timerfd: what it has counted and when it goes off next."""

    clock: int
    ticks: int
    settime_flags: int
    value_ns: int  # time left; 0 = disarmed
    interval_ns: int


def parse_fdinfo(content: bytes) -> FdInfo:
    """What the text of /proc/PID/fdinfo/FD says.

    Raises:
        MalformedText: one of the lines that every description has is missing
            or is no number, or a lock cannot be read.
    """
    fields: dict[str, list[str]] = {}
    for line in text(content).split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name, []).append(value.strip())
    try:
        return FdInfo(
            int(fields["pos"][0]),
            int(fields["flags"][0], 8),
            int(fields["mnt_id"][0]),
            int(fields["ino"][0]) if "ino" in fields else None,
            {name: tuple(values) for name, values in fields.items()},
            tuple(_lock(value) for value in fields.get("lock", ())),
        )
    except (KeyError, ValueError):
        raise MalformedText("fdinfo", content) from None


def epoll_targets(info: FdInfo) -> tuple[EpollTarget, ...]:
    """What an epoll descriptor watches (its ``tfd:`` lines).

    Raises:
        MalformedText: a line cannot be read.
    """
    targets = []
    for line in info.fields.get("tfd", ()):
        match = _EPOLL.match(line)
        if match is None:
            raise MalformedText("fdinfo", line.encode("utf-8", "surrogateescape"))
        position, inode, device = match.group("position", "inode", "device")
        targets.append(
            EpollTarget(
                int(match["fd"]),
                int(match["events"], 16),
                int(match["data"], 16),
                int(position) if position else None,
                int(inode, 16) if inode else None,
                int(device, 16) if device else None,
            )
        )
    return tuple(targets)


def timerfd_info(info: FdInfo) -> TimerfdInfo:
    """The state of a timerfd.

    Raises:
        MalformedText: this is no timerfd, or a line cannot be read.
    """
    try:
        return TimerfdInfo(
            int(info.fields["clockid"][0]),
            int(info.fields["ticks"][0]),
            int(info.fields["settime flags"][0], 8),
            _nanoseconds(info.fields["it_value"][0]),
            _nanoseconds(info.fields["it_interval"][0]),
        )
    except (KeyError, ValueError):
        raise MalformedText("fdinfo", repr(dict(info.fields)).encode()) from None


def _lock(value: str) -> Lock:
    match = _LOCK.match(value)
    if match is None:
        raise ValueError(value)
    return Lock(
        match["kind"],
        match["mode"],
        match["access"],
        int(match["pid"]),
        match["device"],
        int(match["inode"]),
        int(match["start"]),
        None if match["end"] == "EOF" else int(match["end"]),
    )


def _nanoseconds(value: str) -> int:
    match = _TIMESPEC.fullmatch(value)
    if match is None:
        raise ValueError(value)
    return int(match[1]) * 1_000_000_000 + int(match[2])
