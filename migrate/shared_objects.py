"""Objects that several processes may share, as the source knows them.

Shared anonymous memory, memfds, POSIX shared memory and files that have lost their
name are inodes: one inode is one object, however many processes have it mapped or open.
Each is opened by us when it is first met, through /proc/PID/map_files or /proc/PID/fd;
so its inode cannot pass to another while we look, and its pages are read by offset.

Any other file with a name is none of these: it is opened by its name over there. What
lies in /dev/shm (shm_overview(7)) is memory with a name, which goes along with it.
"""

import fcntl
import functools
import os
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from migrate import image
from migrate.image import ObjectSort, Shared, SharedObject
from migrate.kernel.procfs import FdView
from precopy.address_space import Vma
from precopy.file_pages import FilePages
from precopy.ids import Pid
from transport import messages as m
from transport.channel import Channel

_F_GET_SEALS: Final = 1034  # linux/fcntl.h
_DELETED: Final = " (deleted)"
_MEMFD: Final = "/memfd:"
_ZERO: Final = "/dev/zero"
_POSIX: Final = "/dev/shm/"
_NAMED_ANONYMOUS: Final = "[anon_shmem:"  # PR_SET_VMA_ANON_NAME(2const)


def may_be_object(vma: Vma) -> bool:
    """Whether it looks like a mapping of one; ask is_object() about the file."""
    return vma.inode != 0 and (
        vma.name.endswith(_DELETED) or vma.name.startswith((_NAMED_ANONYMOUS, _POSIX))
    )


def is_object(status: os.stat_result, name: str) -> bool:
    """Whether a file is one: it is regular, and has no name but one in /dev/shm."""
    if not stat.S_ISREG(status.st_mode):
        return False
    folder, _, _ = name.rpartition("/")
    return status.st_nlink == 0 or (status.st_nlink == 1 and f"{folder}/" == _POSIX)


def device_of(status: os.stat_result) -> str:
    """The device of a file, as maps prints it."""
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"


@functools.cache
def boot_id() -> bytes:
    """What tells this run of this machine from all others: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


class SharedObjects:
    """All objects of a tree, by their numbers.

    ``channel`` stays the caller's.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers: dict[tuple[int, int], int] = {}
        self._records: list[SharedObject] = []
        self._told: list[SharedObject] = []
        self._fds: list[int] = []

    def close(self) -> None:
        """Let go of them."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def __len__(self) -> int:
        return len(self._records)

    def of_mapping(self, pid: Pid, vma: Vma) -> int | None:
        """The number of what ``vma`` maps; None if it is a file that has a name.

        Raises:
            FileNotFoundError: it is not mapped there any more.
        """
        if not may_be_object(vma):
            return None
        path = f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}"
        return self._number(path, vma.name, reserved="nr" not in vma.flags)

    def number_of(self, view: FdView) -> int:
        """The number of what a descriptor is open on, which must be one.

        Raises:
            FileNotFoundError: it is not open any more.
        """
        number = self.meet(view)
        if number is None:
            raise FileNotFoundError(view.link)
        return number

    def meet(self, view: FdView) -> int | None:
        """The same; None if it is a file that has a name.

        Raises:
            FileNotFoundError: it is not open any more.
        """
        path = f"/proc/{view.pid}/fd/{view.number}"
        return self._number(path, view.link, reserved=True)

    def pages(self, number: int) -> FilePages:
        """The contents of one."""
        return FilePages(self._fds[number])

    def size(self, number: int) -> int:
        """How many bytes one has, as the destination was told."""
        return self._told[number].size_bytes

    def look(self) -> None:
        """See what has changed about them since they were told, and tell that."""
        for number, record in enumerate(self._records):
            fd = self._fds[number]
            self._records[number] = replace(
                record, size_bytes=os.fstat(fd).st_size, seals=_seals(fd)
            )
        self.tell()

    def untold(self) -> tuple[SharedObject, ...]:
        """What the destination does not know yet; it counts as told."""
        news = tuple(
            record
            for number, record in enumerate(self._records)
            if number >= len(self._told) or record != self._told[number]
        )
        self._told = list(self._records)
        return news

    def tell(self) -> None:
        """Tell the destination what it does not know yet."""
        if news := self.untold():
            self._channel.send(m.Layout(image.OBJECTS, image.encode(Shared(news))))

    def leave(self) -> None:
        """They live elsewhere: their names here go, where nobody has them open.

        Somebody has if both hosts are one machine with one /dev/shm.
        """
        for record, fd in zip(self._records, self._fds, strict=True):
            if record.sort is ObjectSort.POSIX:
                with suppress(OSError):
                    # Given only if no other description of it is open: fcntl(2).
                    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                    if os.path.samestat(os.stat(record.name), os.fstat(fd)):
                        os.unlink(record.name)

    def _number(self, path: str, name: str, *, reserved: bool) -> int | None:
        status = os.stat(path)
        key = status.st_dev, status.st_ino
        if key in self._numbers:
            return self._numbers[key]
        if not is_object(status, name):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        opened = os.fstat(fd)
        if (opened.st_dev, opened.st_ino) != key:
            os.close(fd)
            raise FileNotFoundError(path)
        self._fds.append(fd)
        self._numbers[key] = number = len(self._records)
        self._records.append(_record(number, fd, opened, reserved=reserved))
        return number


def _record(
    number: int, fd: int, status: os.stat_result, *, reserved: bool
) -> SharedObject:
    link = os.readlink(f"/proc/self/fd/{fd}").removesuffix(_DELETED)
    sort, name = ObjectSort.DELETED, link
    if link.startswith(_MEMFD):
        sort, name = ObjectSort.MEMFD, link.removeprefix(_MEMFD)
    elif link == _ZERO:
        sort, name = ObjectSort.ANONYMOUS, ""
    elif status.st_nlink:
        sort = ObjectSort.POSIX
    return SharedObject(
        number=number,
        device=device_of(status),
        inode=status.st_ino,
        sort=sort,
        name=os.fsencode(name),
        mode=stat.S_IMODE(status.st_mode),
        size_bytes=status.st_size,
        seals=_seals(fd),
        reserved=reserved,
        boot_id=boot_id() if sort is ObjectSort.POSIX else b"",
    )


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return 0  # a file system that has no seals
