"""What a tree of processes is, in frozen records, and their bytes.

Five records travel. The outline, before the first page: everything that can be built
while the source still runs. A layout, whenever mappings have changed. One for each
process that joins the tree meanwhile. One for objects that several may share, whenever
one is new or has another size. The frozen tree, once: what no longer changes because
nothing runs, without what the outline already said. Memory itself goes in pages frames,
which precopy makes.

Ids are those that the processes see themselves. Paths are bytes. Everything here comes
from the peer at the destination: decoding is strict, and `judge` refuses what no source
would send.
"""

import signal
from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType, TypeVar

import msgspec

from migrate.descriptors import Descriptors
from migrate.kernel import user_state
from migrate.kernel.blocked_syscalls import TimedCall
from migrate.kernel.tracee import TaskState
from migrate.kinds.table import Dumped
from precopy.address_space import AddressSpace, AddressSpaceChange, Prot, Vma
from precopy.ids import PAGE_BYTES, USER_END
from precopy.page_set import PageSet

# An index into the tree; the root is 0.
Index = NewType("Index", int)

VMAS_MAX: Final = 65_530  # /proc/sys/vm/max_map_count of most hosts
TASKS_MAX: Final = 32_768
# The index under which a Layout message brings a process that has joined the tree.
JOINS: Final = 0xFFFF_FFFF
# The one under which it brings objects (Shared).
OBJECTS: Final = 0xFFFF_FFFE
OBJECTS_MAX: Final = 65_536
OBJECT_BYTES_MAX: Final = 1 << 46
ID_MAX: Final = 0xFFFF_FFFE  # of users and groups; (uid_t) -1 is none
PROCESSES_MAX: Final = 4096  # as many pids as OfferAccepted holds
_MMAP_MIN: Final = 65_536  # /proc/sys/vm/mmap_min_addr of most hosts
_VSYSCALL: Final = (0xFFFF_FFFF_FF60_0000, 0xFFFF_FFFF_FF60_1000)  # asm/vsyscall.h
# VmFlags (proc_pid_smaps(5)) of what is not made by mapping a file or nothing: huge
# pages of hugetlbfs, and memory of devices. No source has got so far with one.
_NOT_PAGES: Final = frozenset({"ht", "io", "pf"})
_FLAG_LETTERS: Final = 2
_PROTECTIONS: Final = int(Prot.READ | Prot.WRITE | Prot.EXEC)
_NAME_MAX: Final = 4200  # PATH_MAX, and what /proc puts around it


class ImageError(ValueError):
    """Bytes that are no image, or an image that no source would send."""


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file that is mapped: where, and what tells it from another of that name."""

    path: bytes
    size_bytes: int
    edges: bytes  # digest of its first and its last page


class ObjectSort(Enum):
    """How an object came to be, which is how it is made again."""

    ANONYMOUS = "anonymous"  # mmap(2), MAP_SHARED|MAP_ANONYMOUS
    MEMFD = "memfd"  # memfd_create(2)
    DELETED = "deleted"  # a file that has lost its name
    POSIX = "posix"  # shm_open(3), sem_open(3): a file in /dev/shm


@dataclass(frozen=True, slots=True)
class SharedObject:
    """Memory that has an inode, and no name on a disk: whoever maps it shares it.

    ``number`` counts from 0. ``device`` and ``inode`` are what mappings of it show.
    """

    number: int
    device: str
    inode: int
    sort: ObjectSort
    name: bytes  # a memfd's name, a deleted file's old path, a path in /dev/shm
    mode: int
    size_bytes: int
    seals: int  # F_GET_SEALS: fcntl(2)
    reserved: bool  # anonymous: not mapped with MAP_NORESERVE
    # With a name: the host's. Two that share /dev/shm may be one machine.
    boot_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Shared:
    """Objects that are new, or have another size or other seals."""

    objects: tuple[SharedObject, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A thread, before the freeze."""

    tid: int
    kinds: tuple[Dumped, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """A process, before the freeze."""

    pid: int
    process_group: int
    session: int
    executable: bytes
    comm: str
    uids: tuple[int, int, int]  # real, effective, saved
    gids: tuple[int, int, int]
    groups: tuple[int, ...]
    vmas: tuple[Vma, ...]
    files: tuple[MappedFile, ...]
    tasks: tuple[Task, ...]  # the leader first
    kinds: tuple[Dumped, ...]
    descriptors: Descriptors
    # Its place in the tree: -1, the root's, or one whose parent is not in it.
    parent: int = -1
    bearer: int = 0  # the thread of its parent that it is a child of; 0: the leader
    exit_signal: int = signal.SIGCHLD  # what its parent gets when it ends


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended, and was not waited for yet."""

    pid: int
    parent: int
    process_group: int
    session: int
    comm: str
    status: int  # as wait(2) gives it
    exit_signal: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A process that has come to the tree since the outline.

    ``index`` is the next that is free, or that of a process which has executed
    another program: then it is to be what ``process`` says from its memory on.
    """

    index: int
    process: Process


@dataclass(frozen=True, slots=True)
class Outline:
    """A tree, before the freeze: parents before their children."""

    processes: tuple[Process, ...]
    objects: tuple[SharedObject, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """How the mappings of one process have changed since the last look.

    ``renewed`` ranges are mapped anew in place: what was written there is gone, and
    what shows is the file's, or zero.
    """

    removed: tuple[tuple[int, int], ...]
    added: tuple[Vma, ...]
    reprotected: tuple[Vma, ...]
    readvised: tuple[Vma, ...]
    renewed: tuple[Vma, ...]
    files: tuple[MappedFile, ...]  # those that ``added`` and ``renewed`` map
    # From where to where the mappings go that these are now parts of: mremap(2) takes
    # a whole one and no part of two.
    extents: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        change: AddressSpaceChange,
        renewed: tuple[Vma, ...],
        files: tuple[MappedFile, ...],
        extents: tuple[tuple[int, int], ...],
    ) -> "Layout":
        """What the destination needs to know of a change."""
        return cls(
            tuple(change.removed),
            change.added,
            change.reprotected,
            change.readvised,
            renewed,
            files,
            extents,
        )


@dataclass(frozen=True, slots=True)
class FrozenTask:
    """A thread in the freeze."""

    tid: int
    state: TaskState
    timed: TimedCall | None  # the call that it sleeps in, if that has a timeout
    kinds: tuple[Dumped, ...]  # all late ones, and the others where they differ


@dataclass(frozen=True, slots=True)
class FrozenProcess:
    """A process in the freeze."""

    tasks: tuple[FrozenTask, ...]  # all that live now, the leader first
    kinds: tuple[Dumped, ...]
    descriptors: Descriptors | None  # None: as in the outline


@dataclass(frozen=True, slots=True)
class FrozenTree:
    """The tree in the freeze, in the order of the outline and of joining."""

    processes: tuple[FrozenProcess | None, ...]  # None: it has ended
    ended: tuple[Ended, ...] = ()  # in the order of their births


_encoder = msgspec.msgpack.Encoder()
_T = TypeVar("_T", Outline, Layout, Joined, Shared, FrozenTree)


def encode(record: Outline | Layout | Joined | Shared | FrozenTree) -> bytes:
    """The bytes that travel."""
    return _encoder.encode(record)


def decode(body: bytes, what: type[_T]) -> _T:
    """The inverse of encode().

    Raises:
        ImageError: it is not one.
    """
    try:
        return msgspec.msgpack.decode(body, type=what)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        name = what.__name__
        raise ImageError(f"The peer's {name} makes no sense: {error}.") from error


def judge(outline: Outline) -> None:
    """Refuse what no source would send.

    Raises:
        ImageError: and why.
    """
    if not 1 <= len(outline.processes) <= PROCESSES_MAX:
        raise ImageError(f"There are no trees of {len(outline.processes)} processes.")
    for index, process in enumerate(outline.processes):
        if index and process.parent < 0:
            raise ImageError("Only the root has its parent elsewhere.")
        judge_process(process, index)
    own = [task.tid for process in outline.processes for task in process.tasks]
    if len(set(own)) != len(own):
        raise ImageError("A number is that of two tasks.")


def judge_process(process: Process, index: int) -> None:
    """Refuse a process that cannot be at this place in a tree.

    Raises:
        ImageError: and why.
    """
    if not -1 <= process.parent < max(index, 1) or not 0 <= process.exit_signal <= 64:
        raise ImageError("Parents come before their children.")
    _judge_ids(process)
    judge_vmas(process.vmas)


def judge_objects(objects: tuple[SharedObject, ...], known: int) -> int:
    """Refuse objects that cannot follow ``known`` others; gives how many there are.

    Raises:
        ImageError: and why.
    """
    for one in objects:
        if not 0 <= one.number <= min(known, OBJECTS_MAX - 1):
            raise ImageError(f"There is no shared object {one.number}.")
        known = max(known, one.number + 1)
        if not 0 <= one.size_bytes <= OBJECT_BYTES_MAX:
            raise ImageError(f"No shared object has {one.size_bytes} bytes.")
        if not 0 <= one.mode <= 0o7777 or not 0 <= one.seals < 1 << 31:
            raise ImageError("A shared object has a mode or seals that there are not.")
        proper = b"\0" not in one.name
        if one.sort is ObjectSort.DELETED:
            proper &= one.name.startswith(b"/")
        elif one.sort is ObjectSort.POSIX:
            folder, _, name = one.name.rpartition(b"/")
            proper &= folder == b"/dev/shm" and name not in (b"", b".", b"..")
        if not proper:
            raise ImageError("A shared object has no proper name.")
    return known


def judge_frozen(frozen: FrozenTree, processes: int) -> None:
    """Refuse a frozen tree that is not that of so many processes.

    Raises:
        ImageError: and why.
    """
    tree = frozen.processes
    if len(tree) != processes or all(process is None for process in tree):
        raise ImageError("The frozen tree is not the one that was offered.")
    if any(process is not None and not process.tasks for process in tree):
        raise ImageError("A process without a thread is none.")
    for process in tree:
        for task in process.tasks if process is not None else ():
            if wrong := user_state.fault(task.state):
                raise ImageError(f"No thread of a user has {wrong}.")
    for ended in frozen.ended:
        if (
            not -1 <= ended.parent < processes
            or ended.pid <= 0
            or not 0 <= ended.exit_signal <= 64
            or not 0 <= ended.status <= 0xFFFF
        ):
            raise ImageError("A process cannot have ended like that.")


def _judge_ids(process: Process) -> None:
    tids = [task.tid for task in process.tasks]
    if not tids or tids[0] != process.pid:
        raise ImageError("The first thread of a process is its leader.")
    if len(set(tids)) != len(tids) or len(tids) > TASKS_MAX:
        raise ImageError("Threads are listed twice, or there are too many.")
    if min(tids) < 1 or process.process_group < 0 or process.session < 0:
        raise ImageError("Ids are positive.")
    # What is beyond is cut down to a number that is somebody's, and -1 is no number:
    # setresuid(2) keeps the id that is, and the one that builds is root's.
    if any(
        not 0 <= number <= ID_MAX
        for number in (*process.uids, *process.gids, *process.groups)
    ):
        raise ImageError("A user or a group has a number that there is not.")
    if b"\0" in process.executable or not process.executable.startswith(b"/"):
        raise ImageError("The executable has no absolute path.")


def judge_vmas(vmas: tuple[Vma, ...]) -> AddressSpace:
    """The address space that these make.

    Raises:
        ImageError: they overlap, or lie where no process maps.
    """
    if len(vmas) > VMAS_MAX:
        raise ImageError(f"{len(vmas)} mappings are more than {VMAS_MAX}.")
    for vma in vmas:
        if (vma.start | vma.end | vma.offset) % PAGE_BYTES or vma.offset < 0:
            raise ImageError(f"The mapping at {vma.start:#x} is not made of pages.")
        if not _MMAP_MIN <= vma.start < vma.end <= USER_END and not _is_vsyscall(vma):
            raise ImageError(f"The mapping at {vma.start:#x} is outside user memory.")
        _judge_nature(vma)
    try:
        return AddressSpace(vmas)
    except ValueError as error:
        raise ImageError(str(error)) from error


def _is_vsyscall(vma: Vma) -> bool:
    """The one mapping above user memory, which is not built here."""
    return vma.is_kernel and (vma.start, vma.end) == _VSYSCALL


def _judge_nature(vma: Vma) -> None:
    if not vma.is_kernel and vma.flags & _NOT_PAGES:
        raise ImageError(f"The mapping at {vma.start:#x} is not ours to make.")
    if any(len(flag) != _FLAG_LETTERS for flag in vma.flags):
        raise ImageError(f"The mapping at {vma.start:#x} has a flag that is none.")
    if not 0 <= int(vma.prot) <= _PROTECTIONS:
        raise ImageError(f"The mapping at {vma.start:#x} has a protection of its own.")
    if len(vma.name) > _NAME_MAX or "\0" in vma.name:
        raise ImageError(f"The mapping at {vma.start:#x} has a name that is none.")
    # Shared memory without a file can have been given a name: prctl(2).
    if vma.inode and not vma.name.startswith(("/", "[anon_shmem:")):
        raise ImageError(f"The mapping at {vma.start:#x} is of a file without a name.")


def apply_layout(space: AddressSpace, layout: Layout) -> AddressSpace:
    """The address space after a change, as the destination keeps it.

    Raises:
        ImageError: the change does not fit.
    """
    gone = PageSet.of(layout.removed)
    kept: list[Vma] = []
    for vma in space.vmas:
        kept += [
            vma.part(start, end)
            for start, end in PageSet.of([(vma.start, vma.end)]) - gone
        ]
    changed = list(_replaced(kept, (*layout.reprotected, *layout.readvised)))
    return judge_vmas((*changed, *layout.added))


def _replaced(vmas: list[Vma], newer: tuple[Vma, ...]) -> list[Vma]:
    """The mappings, with those parts exchanged that a newer one covers."""
    for new in newer:
        cover = PageSet.of([(new.start, new.end)])
        out: list[Vma] = []
        for vma in vmas:
            whole = PageSet.of([(vma.start, vma.end)])
            if not whole & cover:
                out.append(vma)
                continue
            out += [vma.part(start, end) for start, end in whole - cover]
            out += [new.part(start, end) for start, end in whole & cover]
        vmas = out
    return vmas
