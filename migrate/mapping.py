"""Mappings made in a skeleton: the source's, at their addresses, empty.

Files are opened by the skeleton itself, which is the owner by then, and compared with
what the source says of them: pages that were only ever read are not sent, they come
from the file here. What has no name is there already (migrate.arriving_objects).
"""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from migrate.arriving_objects import ArrivingObjects
from migrate.image import MappedFile
from migrate.kernel.remote import Batch, Remote, RemoteError, RemoteFd, cstr
from migrate.kernel.syscalls import explain
from migrate.mapped_files import edges_of
from migrate.shared_objects import may_be_object
from precopy.address_space import Prot, Vma

_MAP_SHARED: Final = 0x01
_MAP_PRIVATE: Final = 0x02
_MAP_ANONYMOUS: Final = 0x20
_MAP_GROWSDOWN: Final = 0x100
_MAP_NORESERVE: Final = 0x4000
_MAP_FIXED_NOREPLACE: Final = 0x100000
_NO_FD: Final = (1 << 64) - 1
_AT_FDCWD: Final = -100

# VmFlags (proc_pid_smaps(5)): the madvise(2) that sets each, and the one that takes
# it back. Huge page advice can be exchanged and not taken back, there as here.
_ADVICE: Final = {
    "sr": (2, 0),  # MADV_SEQUENTIAL, MADV_NORMAL
    "rr": (1, 0),  # MADV_RANDOM, MADV_NORMAL
    "dc": (10, 11),  # MADV_DONTFORK, MADV_DOFORK
    "mg": (12, 13),  # MADV_MERGEABLE, MADV_UNMERGEABLE
    "hg": (14, None),  # MADV_HUGEPAGE
    "nh": (15, None),  # MADV_NOHUGEPAGE
    "dd": (16, 17),  # MADV_DONTDUMP, MADV_DODUMP
    "wf": (18, 19),  # MADV_WIPEONFORK, MADV_KEEPONFORK
}
_PR_SET_VMA: Final = 0x53564D41
_PR_SET_VMA_ANON_NAME: Final = 0


class CannotBuild(Exception):
    """The skeleton cannot be what the process was; ``message`` says why.

    It is of no use any more: whoever built it destroys it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


# What is mapped, and how it has to be open for that.
_Opened: TypeAlias = tuple[str, int, str, int]


def map_all(
    remote: Remote,
    vmas: Sequence[Vma],
    files: Sequence[MappedFile],
    objects: ArrivingObjects,
) -> None:
    """Map these, where nothing is mapped; the kernel's own are left out.

    Raises:
        CannotBuild: a file is missing or another, or the kernel would not map it.
    """
    own = [vma for vma in vmas if not vma.is_kernel]
    opened = _open_files(remote, own, files, objects)
    batch = remote.batch()
    for vma in own:
        batch.add(
            "mmap",
            vma.start,
            vma.length,
            int(vma.prot),
            _flags(vma) | _MAP_FIXED_NOREPLACE,
            opened[_opened(vma)] if vma.inode else _NO_FD,
            vma.offset if vma.inode else 0,
        )
    try:
        batch.run()
    except RemoteError as error:
        raise CannotBuild(
            "mapping", f"A mapping cannot be made: {explain(error.errno or 0)}."
        ) from error
    batch = remote.batch()
    for fd in sorted(set(opened.values())):
        batch.add("close", fd)
    for vma in own:
        _give_advice(vma, batch)
    batch.run()


def advise_anew(remote: Remote, vmas: Iterable[Vma]) -> None:
    """Give mappings that are there the flags and names that they have now."""
    batch = remote.batch()
    for vma in vmas:
        for flag, (_, undo) in _ADVICE.items():
            if undo is not None and flag not in vma.flags:
                batch.add("madvise", vma.start, vma.length, undo)
        if "lo" not in vma.flags:
            batch.add("munlock", vma.start, vma.length)
        _give_advice(vma, batch)
    batch.run(check=False)


def _give_advice(vma: Vma, batch: Batch) -> None:
    for flag, (advice, _) in _ADVICE.items():
        if flag in vma.flags:
            batch.add("madvise", vma.start, vma.length, advice)
    if "lo" in vma.flags:
        batch.add("mlock", vma.start, vma.length)
    if vma.name.startswith(("[anon:", "[anon_shmem:")):
        batch.add(
            "prctl",
            _PR_SET_VMA,
            _PR_SET_VMA_ANON_NAME,
            vma.start,
            vma.length,
            cstr(vma.name.partition(":")[2].removesuffix("]")),
        )


def _open_files(
    remote: Remote,
    vmas: Sequence[Vma],
    files: Sequence[MappedFile],
    objects: ArrivingObjects,
) -> dict[_Opened, RemoteFd]:
    """Open each mapped file, and each object that has no name."""
    shown = [vma for vma in vmas if vma.inode]
    opened: dict[_Opened, RemoteFd] = {}
    nameless = {
        _opened(vma): (number, _open_mode(vma))
        for vma in shown
        if (number := objects.find(vma)) is not None
    }
    if nameless:
        given = objects.give(remote, list(nameless.values()))
        opened.update(zip(nameless, given, strict=True))
    wanted = list(dict.fromkeys(_opened(v) for v in shown if _opened(v) not in opened))
    batch = remote.batch()
    for _, _, name, mode in wanted:
        # What is no file has to be found out without waiting for it (fifo(7)).
        flags = mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        batch.add("openat", _AT_FDCWD, cstr(name), flags, 0)
    results = batch.run(check=False)
    known = {os.fsdecode(file.path): file for file in files}
    for key, fd in zip(wanted, results, strict=True):
        name = key[2]
        if fd < 0:
            raise CannotBuild(
                "file", f"{name} is mapped and cannot be opened here: {explain(-fd)}."
            )
        opened[key] = RemoteFd(fd)
        _compare(remote, name, fd, known.get(name))
    return opened


def _compare(remote: Remote, name: str, fd: int, expected: MappedFile | None) -> None:
    if expected is None:
        raise CannotBuild("file", f"{name} is mapped, and the peer says no more.")
    path = Path(f"/proc/{remote.pid}/fd/{fd}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise CannotBuild("file", f"{name} is mapped, and here it is no regular file.")
    size, edges = edges_of(path)
    if (size, edges) != (expected.size_bytes, expected.edges):
        raise CannotBuild(
            "file",
            f"{name} is mapped and differs here: {expected.size_bytes} bytes there, "
            f"{size} here. Install the same version on both hosts.",
        )


def _opened(vma: Vma) -> _Opened:
    return vma.device, vma.inode, vma.name, _open_mode(vma)


def _open_mode(vma: Vma) -> int:
    """What mmap(2) demands of the descriptor.

    And for what has no name, what mprotect(2) may ask of it later ("mw"): what was
    mapped to be read can be sealed, and what may be written to cannot.
    """
    writes = vma.shared and Prot.WRITE in vma.prot
    may_write = vma.shared and "mw" in vma.flags and may_be_object(vma)
    return os.O_RDWR if writes or may_write else os.O_RDONLY


def _flags(vma: Vma) -> int:
    flags = _MAP_SHARED if vma.shared else _MAP_PRIVATE
    if not vma.inode:
        flags |= _MAP_ANONYMOUS
    if "gd" in vma.flags:
        flags |= _MAP_GROWSDOWN
    if "nr" in vma.flags:
        flags |= _MAP_NORESERVE
    return flags
