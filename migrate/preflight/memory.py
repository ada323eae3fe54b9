"""Mappings that cannot be made again over there.

What can: private memory, with or without a file, and shared mappings of files that
still have their name, or are nobody's but the tree's (see preflight.sharing).
"""

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final

from migrate.errors import Reason, printable
from migrate.kernel import procfs
from migrate.preflight.subject import Subject, same_file
from migrate.shared_objects import device_of, is_object, may_be_object
from precopy.address_space import AddressSpace, Vma
from precopy.errors import KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, USER_END, Pid
from precopy.pagemap import Pagemap

_DEV_ZERO: Final = os.makedev(1, 5)

# How the name in maps begins, the kind, what it is, and the way out.
_BY_NAME: Final = (
    ("[uprobes]", "uprobes", "a page of uprobes (perf probe)", "Remove the probes"),
    ("anon_inode:[io_uring]", "io_uring", "the rings of an io_uring", "Close it"),
    ("anon_inode:", "device", "memory of a kernel object", "Close it"),
    ("socket:", "socket", "the ring of a packet socket", "Close it"),
)
# The same for files of the kernel's own, which never had a name.
_NAMELESS: Final = (
    ("/[aio]", "aio", "the ring of an AIO context (io_setup(2))", "Close it"),
    ("/secretmem", "memfd_secret", "secret memory (memfd_secret(2))", "Unmap it"),
    ("/SYSV", "sysv_shm", "System V shared memory (shmat(2))", "Detach it"),
    ("/anon_hugepage", "hugetlb", "huge pages (MAP_HUGETLB)", "Unmap them"),
)
_BY_FLAG: Final = (
    ("ht", "hugetlb", "huge pages (hugetlbfs)", "Unmap them"),
    ("um", "userfaultfd", "memory under userfaultfd(2)", "Unregister it"),
    ("uw", "userfaultfd", "memory under userfaultfd(2)", "Unregister it"),
    ("ui", "userfaultfd", "memory under userfaultfd(2)", "Unregister it"),
    ("sl", "sealed", "sealed memory (mseal(2))", "Start the program without it"),
    ("io", "device", "memory of a device", "Close the device"),
    ("pf", "device", "memory of a device", "Close the device"),
    ("mm", "device", "memory of a device", "Close the device"),
)
_DELETED: Final = " (deleted)"


def reasons(subject: Subject) -> Iterator[Reason]:
    """What is in the way in the memory of the process."""
    yield from of_mappings(subject.pid, subject.space.vmas)
    yield from _guards(subject)
    yield from _kernel_block(subject)
    if subject.protection_keys:
        yield Reason(
            "protection_key",
            f"pid {subject.pid} has memory under protection keys (pkeys(7)), which "
            "cannot be carried (see docs/kinds.md).",
            subject.pid,
        )


def of_mappings(pid: Pid, vmas: Iterable[Vma]) -> Iterator[Reason]:
    """Which of these mappings of ``pid`` (with their flags) cannot be made again."""
    obstacles: dict[tuple[str, str, str], list[Vma]] = {}
    checked: dict[tuple[str, int, str], tuple[str, str, str] | None] = {}
    for vma in vmas:
        if vma.is_kernel:
            continue
        obstacle = _obvious(vma)
        if obstacle is None and (vma.name.startswith("/") or may_be_object(vma)):
            key = (vma.device, vma.inode, vma.name)
            if key not in checked:
                checked[key] = _file(pid, vma)
            obstacle = checked[key]
        if obstacle is not None:
            obstacles.setdefault(obstacle, []).append(vma)
    for (kind, what, way_out), those in obstacles.items():
        yield Reason(
            kind,
            f"pid {pid} has {what} mapped at {_places(those)}, which cannot be "
            f"carried. {way_out} (see docs/kinds.md).",
            pid,
        )


def _obvious(vma: Vma) -> tuple[str, str, str] | None:
    """What can be told from its line and flags."""
    if not vma.name.isprintable() and not _is_text(vma.name):
        return (
            "name",
            f"a file whose name is no UTF-8 ({printable(vma.name)})",
            "Rename it",
        )
    names = _NAMELESS if vma.name.endswith(_DELETED) else _BY_NAME
    for begins, kind, what, way_out in names:
        if vma.name.startswith(begins):
            return kind, what, way_out
    if vma.shared and not vma.inode and not vma.name.startswith("/"):
        return "shared_memory", "shared memory of the kernel's", "Unmap it"
    for flag, kind, what, way_out in _BY_FLAG:
        if flag in vma.flags:
            name = f"{what} ({printable(vma.name)})" if vma.name else what
            return kind, name, way_out
    if vma.end > USER_END + PAGE_BYTES:
        return "address", "memory above the 47-bit addresses", "Unmap it"
    return None


def _is_text(name: str) -> bool:
    """Whether a name from /proc was UTF-8 (PEP 383)."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _file(pid: Pid, vma: Vma) -> tuple[str, str, str] | None:
    """What the file behind a mapping has against it."""
    name = printable(vma.name)
    try:
        mapped = os.stat(f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}")
    except FileNotFoundError:
        return None  # unmapped since; what came instead is looked at in the freeze
    except PermissionError:
        mapped = None  # needs CAP_CHECKPOINT_RESTORE: make do with the inode
    if mapped is not None and is_object(mapped, vma.name):
        if (vma.device, vma.inode) == (device_of(mapped), mapped.st_ino):
            return None
        what = f"the file {name}, of which its file system tells two numbers,"
        return "mapped_file", what, "Restart the program"
    if mapped is not None and not stat.S_ISREG(mapped.st_mode):
        if mapped.st_rdev == _DEV_ZERO and not vma.shared:
            return None  # the same everywhere, and what was written is private
        return "device", f"memory of the device {name}", "Close the device"
    try:
        named = os.stat(os.fsencode(f"/proc/{pid}/root{vma.name}"))
    except OSError:
        named = None
    if named is not None and (
        named.st_ino == vma.inode if mapped is None else same_file(named, mapped)
    ):
        return None
    what = f"the file {name}, which is no longer there under that name,"
    return "mapped_file", what, "Restart the program"


def _places(vmas: list[Vma]) -> str:
    first = f"{vmas[0].start:#x}-{vmas[0].end:#x}"
    if len(vmas) == 1:
        return first
    return f"{first} and {len(vmas) - 1} more place{'s' if len(vmas) > 2 else ''}"


def _guards(subject: Subject) -> Iterator[Reason]:
    ranges = [(v.start, v.end) for v in subject.space.vmas if not v.is_kernel]
    try:
        with Pagemap(subject.pid) as pagemap:
            guarded = pagemap.scan(ranges).guarded
    except KernelError:
        return  # no PAGEMAP_SCAN (before 6.7), so no guard pages either (6.13)
    except TaskVanished:
        procfs.stat(subject.pid)  # raises if it is gone; else it called execve(2)
        return
    if guarded:
        start, end = next(iter(guarded))
        yield Reason(
            "guard_pages",
            f"pid {subject.pid} has guard pages (madvise(2), MADV_GUARD_INSTALL) at "
            f"{start:#x}-{end:#x}, which cannot be carried yet (see docs/kinds.md).",
            subject.pid,
        )


def _kernel_block(subject: Subject) -> Iterator[Reason]:
    ours = _shape(procfs.read_maps(Pid(os.getpid())))
    if _shape(subject.space) != ours:
        yield Reason(
            "vdso",
            f"The kernel's own mappings in pid {subject.pid} (vdso, vvar) are not "
            "where and what they are in every process here: it moved or unmapped "
            "them, which is not carried.",
            subject.pid,
        )


def _shape(space: AddressSpace) -> list[tuple[str, int, int]]:
    """The kernel's block: names, lengths and how far each is from the first."""
    block = [vma for vma in space.vmas if vma.is_kernel and vma.name != "[vsyscall]"]
    return [(vma.name, vma.length, vma.start - block[0].start) for vma in block]
