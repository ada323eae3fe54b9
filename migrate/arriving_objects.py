"""Objects that several processes may share, as the destination makes them.

The first skeleton makes each, as its owner; we hold it by a descriptor of our own,
write its pages by offset, and open it anew for whoever maps it or has it open. Shared
anonymous memory has no call that gives a descriptor: it is mapped for a moment, and
/proc/PID/map_files leads to it. Seals come last: they may forbid what we do.

POSIX shared memory is made under its name. If it is there already, and is the very
object that the source speaks of (two hosts on one machine may share /dev/shm), it is
left as it is: it has the contents, and whoever runs meanwhile writes to them.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from migrate import image
from migrate.errors import printable
from migrate.image import ObjectSort, SharedObject
from migrate.kernel import fd_passing, procfs
from migrate.kernel.pidfds import PidFd
from migrate.kernel.remote import Remote, RemoteError, RemoteFd, cstr
from migrate.kernel.syscalls import explain
from migrate.kinds.kind import CannotCarry
from migrate.shared_objects import boot_id, device_of
from precopy.address_space import Vma
from precopy.errors import PageStreamError
from precopy.file_pages import FilePages, whole
from precopy.ids import PAGE_BYTES
from precopy.page_stream import OBJECTS_FROM, PageBatch

_MAP_SHARED_ANONYMOUS: Final = 0x21
_MAP_NORESERVE: Final = 0x4000
_NO_FD: Final = (1 << 64) - 1
_AT_FDCWD: Final = -100
_MFD_CLOEXEC_SEALABLE: Final = 3
_TMPFILE: Final = 0o20200000  # O_TMPFILE: fcntl-linux.h
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_KIND: Final = "shared_memory"
# What open(2) may be told by the peer: how, and what F_SETFL could change.
_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_DIRECT | os.O_NOATIME | os.O_NONBLOCK


class ArrivingObjects:
    """All objects that the source has told of, by their numbers."""

    def __init__(self) -> None:
        self._records: list[SharedObject] = []
        self._fds: list[int] = []  # as many as are made
        self._by_inode: dict[tuple[str, int], int] = {}
        self._common: set[int] = set()  # there already: never written to

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Undo all: of those that have a name, the name goes."""
        for number, fd in enumerate(self._fds):
            record = self._records[number]
            if record.sort is ObjectSort.POSIX and number not in self._common:
                with suppress(OSError):
                    if os.path.samestat(os.stat(record.name), os.fstat(fd)):
                        os.unlink(record.name)
            os.close(fd)
        self._fds.clear()

    def hear(self, objects: Iterable[SharedObject]) -> None:
        """There are these, or have another size, or other seals in the end.

        Raises:
            ImageError: no source would say that.
        """
        objects = tuple(objects)
        image.judge_objects(objects, len(self._records))
        for one in objects:
            if one.number == len(self._records):
                self._records.append(one)
                self._by_inode[one.device, one.inode] = one.number
                continue
            # What it is cannot change any more.
            before = self._records[one.number]
            after = replace(before, size_bytes=one.size_bytes, seals=one.seals)
            self._records[one.number] = after
            is_ours = one.number < len(self._fds) and one.number not in self._common
            if after.size_bytes != before.size_bytes and is_ours:
                os.ftruncate(self._fds[one.number], one.size_bytes)

    def make(self, remote: Remote) -> None:
        """Have all that are not there yet made by this process.

        Raises:
            CannotCarry: one cannot be had here.
        """
        for record in self._records[len(self._fds) :]:
            common = _find(record, remote)
            if common is not None:
                self._common.add(record.number)
            self._fds.append(_make(record, remote) if common is None else common)

    def find(self, vma: Vma) -> int | None:
        """The number of what ``vma`` maps; None if it is a file that has a name."""
        return self._by_inode.get((vma.device, vma.inode)) if vma.inode else None

    def give(self, remote: Remote, wanted: Sequence[tuple[int, int]]) -> list[RemoteFd]:
        """Objects by number, opened anew with these flags; FD_CLOEXEC is set.

        Raises:
            CannotCarry: there is no such object.
        """
        with ExitStack() as closing:
            ours = []
            for number, flags in wanted:
                if not 0 <= number < len(self._fds):
                    raise CannotCarry(_KIND, f"There is no shared object {number}.")
                if flags & ~_FLAGS:
                    raise CannotCarry(_KIND, f"Flags {flags:#o} are not allowed.")
                path = f"/proc/self/fd/{self._fds[number]}"
                fd = os.open(path, flags | os.O_CLOEXEC)
                closing.callback(os.close, fd)
                ours.append(fd)
            pidfd = closing.enter_context(PidFd.open(remote.pid))
            return fd_passing.give(remote, pidfd, ours)

    def write(self, batch: PageBatch) -> None:
        """Put the pages of ``batch`` where they belong.

        Raises:
            PageStreamError: they lie behind its end; nothing was written.
            OSError: there is no room for them.
        """
        number = batch.process - OBJECTS_FROM
        record = self._records[number]
        if stray := (batch.data | batch.zeros) - whole(record.size_bytes):
            raise PageStreamError(f"pages outside of object {number}: {stray!r}")
        if number in self._common:
            return
        pages = FilePages(self._fds[number])
        pages.write_runs(batch.data, batch.payload, record.size_bytes)
        pages.punch(batch.zeros)

    def resident_bytes(self) -> int:
        """What all of them take."""
        return sum(512 * os.fstat(fd).st_blocks for fd in self._fds)

    def seal(self) -> None:
        """They are complete: give them their seals.

        Raises:
            CannotCarry: the kernel does not let us.
        """
        for record, fd in zip(self._records, self._fds, strict=True):
            if record.sort is not ObjectSort.MEMFD:
                continue
            missing = record.seals & ~fcntl.fcntl(fd, _F_GET_SEALS)
            try:
                if missing:
                    fcntl.fcntl(fd, _F_ADD_SEALS, missing)
            except OSError as error:
                raise _cannot(record, "sealed", error.errno or 0) from error


def _make(record: SharedObject, remote: Remote) -> int:
    """One of them, empty and as long as it has to be; the caller owns what it gets."""
    try:
        if record.sort is ObjectSort.ANONYMOUS:
            return _map_for_a_moment(record, remote)
        fd = _taken_out(remote, _open(record, remote))
    except RemoteError as error:
        raise _cannot(record, "made", error.errno or 0) from error
    try:
        os.ftruncate(fd, record.size_bytes)
        os.fchmod(fd, record.mode)
    except OSError as error:
        os.close(fd)
        raise _cannot(record, "made", error.errno or 0) from error
    return fd


def _open(record: SharedObject, remote: Remote) -> RemoteFd:
    if record.sort is ObjectSort.MEMFD:
        name = record.name + b"\0"
        return RemoteFd(remote.syscall("memfd_create", name, _MFD_CLOEXEC_SEALABLE))
    if record.sort is ObjectSort.POSIX:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        path = record.name + b"\0"
        return RemoteFd(remote.syscall("openat", _AT_FDCWD, path, flags, 0o600))
    # O_EXCL: no name can be given to it, no more than to one that was deleted.
    flags = _TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC
    folder = cstr(str(PurePosixPath(os.fsdecode(record.name)).parent))
    return RemoteFd(remote.syscall("openat", _AT_FDCWD, folder, flags, 0o600))


def _find(record: SharedObject, remote: Remote) -> int | None:
    """The very object, where it is there already."""
    if record.sort is not ObjectSort.POSIX or record.boot_id != boot_id():
        return None
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        path = record.name + b"\0"
        fd = RemoteFd(remote.syscall("openat", _AT_FDCWD, path, flags, 0))
    except RemoteError:
        return None
    ours = _taken_out(remote, fd)
    found = os.fstat(ours)
    if (device_of(found), found.st_ino) == (record.device, record.inode):
        return ours
    os.close(ours)
    return None


def _taken_out(remote: Remote, fd: RemoteFd) -> int:
    with PidFd.open(remote.pid) as pidfd:
        ours = pidfd.getfd(fd)
    remote.syscall("close", fd)
    return ours


def _map_for_a_moment(record: SharedObject, remote: Remote) -> int:
    length = -(-record.size_bytes // PAGE_BYTES) * PAGE_BYTES
    how = _MAP_SHARED_ANONYMOUS | (0 if record.reserved else _MAP_NORESERVE)
    at = remote.syscall("mmap", 0, length, 0, how, _NO_FD, 0)
    try:
        (mapped,) = (v for v in procfs.read_maps(remote.pid).vmas if v.start == at)
        path = f"/proc/{remote.pid}/map_files/{mapped.start:x}-{mapped.end:x}"
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot(record, "opened", error.errno or errno.EPERM) from error
    finally:
        remote.syscall("munmap", at, length)


def _cannot(record: SharedObject, what: str, number: int) -> CannotCarry:
    name = printable(os.fsdecode(record.name))
    thing = {
        ObjectSort.ANONYMOUS: "Shared anonymous memory",
        ObjectSort.MEMFD: f"The memfd {name}",
        ObjectSort.DELETED: f"The deleted file {name}",
        ObjectSort.POSIX: f"The shared memory {name}",
    }[record.sort]
    way_out = " Remove it, if nobody needs it." if number == errno.EEXIST else ""
    why = f"{thing} cannot be {what} here: {explain(number)}.{way_out}"
    return CannotCarry(_KIND, why)
