"""What this kernel can do and lets us do: each feature is tried, once a process.

No version is compared: distributions carry features back, and a container takes them
away. What a probe makes, it takes away again; docs/kernel.md says since when each
feature is there.
"""

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EEXIST, ENODEV, ENOSYS
from functools import cache
from typing import Final

from migrate.kernel import cgroups, procfs
from migrate.kernel.cgroups import Leaf
from migrate.kernel.pidfds import PidFd
from migrate.kernel.syscalls import address_of, raw
from precopy.errors import KernelError
from precopy.ids import PAGE_BYTES, Pid

_CAP_SYS_PTRACE: Final = 19
_CAP_SYS_ADMIN: Final = 21
_CAP_CHECKPOINT_RESTORE: Final = 40

# linux/userfaultfd.h
_UFFD_USER_MODE_ONLY: Final = 1
_UFFD_API: Final = 0xAA
_UFFD_FEATURE_WP_ASYNC: Final = 1 << 15
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_REGISTER_MODE_WP: Final = 2

# linux/fs.h
_PAGEMAP_SCAN: Final = 0xC0606610
_PM_SCAN_ARG: Final = struct.Struct("<12Q")
_PAGE_IS_PRESENT: Final = 1 << 3
_PAGEMAP_SOFT_DIRTY: Final = 1 << 55  # Documentation/admin-guide/mm/soft-dirty.rst

_CLONE_ARGS: Final = struct.Struct("<11Q")  # linux/sched.h
_CLONE_NEWTIME: Final = 0x80
_PR_SET_VMA: Final = 0x53564D41  # linux/prctl.h
_PR_SET_VMA_ANON_NAME: Final = 0
_KCMP_VM: Final = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a feature works here; true in an ``if`` when it does."""

    works: bool
    why_not: str = ""  # for people: what was tried and what came back

    def __bool__(self) -> bool:
        return self.works


@cache
def cgroup_freezer() -> Finding:
    """A leaf of cgroup v2 can be made where we are, frozen and removed."""

    def attempt() -> None:
        leaf = Leaf.create(cgroups.current(_self()), f"probe-{os.getpid()}")
        try:
            leaf.freeze()
            _require(leaf.is_frozen(), "cgroup.events does not say frozen")
        finally:
            leaf.dissolve()

    return _finding(attempt)


@cache
def userfaultfd_wp_async() -> Finding:
    """Writes can be followed by an asynchronous, user-mode-only userfaultfd."""

    def attempt() -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY
        uffd = raw("userfaultfd", flags)
        try:
            api = struct.pack("<3Q", _UFFD_API, _UFFD_FEATURE_WP_ASYNC, 0)
            fcntl.ioctl(uffd, _UFFDIO_API, bytearray(api))
            with _page() as address:
                wanted = (address, PAGE_BYTES, _UFFDIO_REGISTER_MODE_WP, 0)
                register = bytearray(struct.pack("<4Q", *wanted))
                fcntl.ioctl(uffd, _UFFDIO_REGISTER, register)
        finally:
            os.close(uffd)

    return _finding(attempt)


@cache
def pagemap_scan() -> Finding:
    """PAGEMAP_SCAN finds a page that was just written."""

    def attempt() -> None:
        with _page() as address, open("/proc/self/pagemap", "rb") as pagemap:
            regions = bytearray(24)
            argument = _PM_SCAN_ARG.pack(
                _PM_SCAN_ARG.size,
                0,
                address,
                address + PAGE_BYTES,
                0,
                address_of(regions),
                1,
                0,
                0,
                _PAGE_IS_PRESENT,
                0,
                _PAGE_IS_PRESENT,
            )
            found = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, bytearray(argument))
            _require(found == 1, "PAGEMAP_SCAN overlooks a page that is there")

    return _finding(attempt)


@cache
def soft_dirty() -> Finding:
    """The kernel marks pages that were written (bit 55 of pagemap)."""

    def attempt() -> None:
        with _page() as address, open("/proc/self/pagemap", "rb", 0) as pagemap:
            pagemap.seek(address // PAGE_BYTES * 8)
            (entry,) = struct.unpack("<Q", pagemap.read(8))
            marked = bool(entry & _PAGEMAP_SOFT_DIRTY)
            _require(marked, "a page that was written is not marked in pagemap")

    return _finding(attempt)


@cache
def clone3_set_tid() -> Finding:
    """A process can be made under a pid of our choice."""

    def attempt() -> None:
        # Our own pid is taken: EEXIST comes after every check of rights (kernel/pid.c,
        # alloc_pid()), and no child is born.
        wanted = bytearray(struct.pack("<i", os.getpid()))
        arguments = bytearray(
            _CLONE_ARGS.pack(0, 0, 0, 0, 17, 0, 0, 0, address_of(wanted), 1, 0)
        )
        try:
            raw("clone3", address_of(arguments), len(arguments))
        except KernelError as error:
            if error.errno != EEXIST:
                raise

    return _finding(attempt)


@cache
def time_namespaces() -> Finding:
    """A time namespace can be made, whose clocks have offsets."""

    def attempt() -> None:
        # Of the calling thread only, and it ends at once.
        _in_a_thread(lambda: raw("unshare", _CLONE_NEWTIME))

    return _finding(attempt)


@cache
def anonymous_vma_names() -> Finding:
    """Anonymous memory can be given a name that maps shows."""

    def attempt() -> None:
        with _page() as address:
            name = bytearray(b"probe\0")
            raw(
                "prctl",
                _PR_SET_VMA,
                _PR_SET_VMA_ANON_NAME,
                address,
                PAGE_BYTES,
                address_of(name),
            )
            maps = procfs.read(_self(), "maps")
            _require(b"[anon:probe]" in maps, "the name is not in /proc/self/maps")

    return _finding(attempt)


@cache
def timer_list() -> Finding:
    """/proc/timer_list says when a sleeper will wake."""

    def attempt() -> None:
        with open("/proc/timer_list", "rb") as file:
            _require(bool(file.read(1)), "/proc/timer_list is empty")

    return _finding(attempt)


@cache
def map_files() -> Finding:
    """/proc/PID/map_files leads to the files that are mapped."""

    def attempt() -> None:
        for name in os.listdir("/proc/self/map_files"):
            try:
                os.stat(f"/proc/self/map_files/{name}")
                return
            except FileNotFoundError:
                continue  # unmapped meanwhile
        raise OSError(ENODEV, "/proc/self/map_files is empty")

    return _finding(attempt)


@cache
def kcmp() -> Finding:
    """The kernel compares what two processes hold."""

    def attempt() -> None:
        same = raw("kcmp", os.getpid(), os.getpid(), _KCMP_VM, 0, 0) == 0
        _require(same, "kcmp finds our memory different from itself")

    return _finding(attempt)


@cache
def pidfd_getfd() -> Finding:
    """Descriptors can be taken out of another process."""

    def attempt() -> None:
        with PidFd.open(_self()) as pidfd:
            os.close(pidfd.getfd(pidfd.fileno()))

    return _finding(attempt)


@cache
def may_ptrace() -> Finding:
    """We may trace processes of other users (CAP_SYS_PTRACE)."""
    return _capability("CAP_SYS_PTRACE", _CAP_SYS_PTRACE)


@cache
def may_checkpoint_restore() -> Finding:
    """We may choose pids and see map_files (CAP_CHECKPOINT_RESTORE)."""
    return _capability(
        "CAP_CHECKPOINT_RESTORE", _CAP_CHECKPOINT_RESTORE, _CAP_SYS_ADMIN
    )


def _capability(name: str, *numbers: int) -> Finding:
    effective = procfs.status(_self()).capabilities.effective
    if any(effective >> number & 1 for number in numbers):
        return Finding(True)
    return Finding(False, f"this process has no {name}")


def _finding(attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except OSError as error:
        return Finding(False, str(error))
    return Finding(True)


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise OSError(ENOSYS, otherwise)


@contextmanager
def _page() -> Iterator[int]:
    """The address of a page of ours that was just written."""
    with mmap.mmap(-1, PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1
        with memoryview(memory) as view:
            yield address_of(view)


def _in_a_thread(call: Callable[[], object]) -> None:
    failed: list[OSError] = []

    def run() -> None:
        try:
            call()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="probe")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _self() -> Pid:
    return Pid(os.getpid())
