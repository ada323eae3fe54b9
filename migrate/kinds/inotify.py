"""inotify(7): what is watched, under which numbers.

read from   /proc/PID/fdinfo/FD: a line for each watch, with a handle of its file
            (proc_pid_fdinfo(5)), which open_by_handle_at(2) finds a name for
rebuilt by  inotify_init1(2), inotify_add_watch(2)

What was told and not read yet cannot be put back: so it has to be read first. From the
freeze on, it is the destination that watches.
"""

import fcntl
import os
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from migrate.errors import printable
from migrate.kernel import fd_passing, file_handles
from migrate.kernel.procfs import FdInfo, FdView
from migrate.kernel.remote import RemoteFd
from migrate.kernel.syscalls import address_of, raw
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target
from precopy.errors import KernelError


@dataclass(frozen=True, slots=True)
class Watch:
    """One file, or a directory with what is in it."""

    number: int  # as inotify_add_watch(2) gave it
    path: bytes
    mask: int  # IN_*


@dataclass(frozen=True, slots=True)
class Inotify:
    """What travels."""

    watches: tuple[Watch, ...]  # by number
    nonblocking: bool


KIND = Kind("inotify", 1, Scope.DESCRIPTOR, Inotify, exclusive=True)

_LINES: Final = "inotify wd"
_DONT_FOLLOW: Final = 0x02000000
_NUMBER_MAX: Final = 1 << 14  # each below it is made once, to be left out
_READ_BYTES: Final = 1 << 16
_PATH_BYTES_MAX: Final = 4096  # PATH_MAX, with the NUL


class _Instance:
    """One in our hands, until its process goes on: what it tells till then is old."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fill(self) -> None:
        """Forget what it has told."""
        _drain(self._fd)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def claims(view: FdView) -> bool:
    """Whether the link names one."""
    return view.link == "anon_inode:inotify"


def refuse(view: FdView) -> str | None:
    """Every file must be found by a name."""
    try:
        _watches(view.info)
    except _Nameless as error:
        return str(error)
    return None


def dump(process: Source, view: FdView) -> Inotify:
    """Read what is watched.

    Raises:
        CannotCarry: it has told of something that was not read yet.
    """
    try:
        watches = _watches(view.info)
    except _Nameless as error:
        raise CannotCarry.at(KIND, view, str(error)) from error
    if process.last:
        fd = process.pidfd.getfd(view.number)
        try:
            waiting = bytearray(4)
            fcntl.ioctl(fd, termios.FIONREAD, waiting)
        finally:
            os.close(fd)
        if any(waiting):
            raise CannotCarry.at(
                KIND,
                view,
                "is an inotify instance that has told of something which was not read "
                "yet: that is not carried. Move the process when it has read it.",
            )
    return Inotify(watches, bool(view.info.flags & os.O_NONBLOCK))


def restore(record: Inotify, target: Target) -> RemoteFd:
    """Make it here, as the owner, and give it over."""
    return restore_many([record], target)[0]


def restore_many(records: Sequence[Inotify], target: Target) -> list[RemoteFd]:
    """The same for several."""
    ours = []
    for record in records:
        fd = raw("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
        target.joints[KIND.name, fd] = _Instance(fd)
        ours.append(fd)
        _watch_all(record, fd)
        os.set_blocking(fd, not record.nonblocking)
    return fd_passing.give(target.remote, target.pidfd, ours)


def update(old: Inotify, new: Inotify, target: Target, fd: RemoteFd) -> bool:
    """Change how it is read; with other watches it is made anew."""
    if old.watches != new.watches:
        return False
    ours = target.pidfd.getfd(fd)
    try:
        os.set_blocking(ours, not new.nonblocking)
    finally:
        os.close(ours)
    return True


class _Nameless(Exception):
    """A file that is watched cannot be found; it is the rest of a sentence."""


def _watches(info: FdInfo) -> tuple[Watch, ...]:
    found = []
    for line in info.fields.get(_LINES, ()):
        number, *words = line.split()
        fields = dict(word.split(":", 1) for word in words if ":" in word)
        found.append(
            Watch(int(number), _path(int(number), fields), int(fields["mask"], 16))
        )
    return tuple(sorted(found, key=lambda watch: watch.number))


def _path(number: int, fields: dict[str, str]) -> bytes:
    path = None
    with suppress(KeyError):
        try:
            path = file_handles.path_of(
                int(fields["sdev"], 16),
                int(fields["ino"], 16),
                int(fields["fhandle-type"], 16),
                bytes.fromhex(fields["f_handle"]),
            )
        except PermissionError:
            raise _Nameless(
                "is an inotify instance; what it watches may be looked up by root "
                "only (CAP_DAC_READ_SEARCH). Run as root."
            ) from None
    if path is None:
        raise _Nameless(
            f"is an inotify instance that watches a file (watch {number}) of which no "
            "name can be found. Remove the watch."
        )
    return path


def _watch_all(record: Inotify, fd: int) -> None:
    """Add each under its number; they are given out in order, from 1 on."""
    last = 0
    for watch in record.watches:
        _check(watch, last)
        for number in range(last + 1, watch.number):
            made = _add(fd, watch)
            raw("inotify_rm_watch", fd, made)
            if number % 1024 == 0:
                _drain(fd)
        if _add(fd, watch) != watch.number:
            raise CannotCarry(
                KIND.name,
                f"{printable(os.fsdecode(watch.path))} is watched twice here: two "
                "files of the source are one.",
            )
        last = watch.number


def _check(watch: Watch, last: int) -> None:
    """The peer's word is input."""
    path = watch.path
    if (
        not path.startswith(b"/")
        or b"\0" in path
        or len(path) >= _PATH_BYTES_MAX
        or not 0 < watch.mask < 1 << 32
        or not last < watch.number
    ):
        raise CannotCarry(KIND.name, "The peer sent an inotify watch that is none.")
    if watch.number > _NUMBER_MAX:
        raise CannotCarry(
            KIND.name,
            f"An inotify instance has a watch with number {watch.number}, after as "
            f"many others: more than {_NUMBER_MAX} are not made again. Close it.",
        )


def _add(fd: int, watch: Watch) -> int:
    name = bytearray(watch.path + b"\0")
    try:
        mask = watch.mask | _DONT_FOLLOW
        return raw("inotify_add_watch", fd, address_of(name), mask)
    except KernelError as error:
        raise CannotCarry(
            KIND.name,
            f"{printable(os.fsdecode(watch.path))} cannot be watched here: "
            f"{os.strerror(error.errno or 0)}. It must be there under the same name, "
            "and the owner must be allowed to read it.",
        ) from error


def _drain(fd: int) -> None:
    """Read all; the descriptor is ours or nobody's yet, so its flags may change."""
    blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        while os.read(fd, _READ_BYTES):
            pass
    os.set_blocking(fd, blocking)
