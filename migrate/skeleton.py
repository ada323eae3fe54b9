"""An empty tree of the right shape: ids, threads, mappings.

A skeleton is born with the ids that the process had, becomes its owner, executes the
same program and is stopped before the first instruction (so /proc/PID/exe is right
without any privilege). Then it is emptied: all that exec mapped goes, but for the
kernel's own block, which moves to where the source has it. The source's mappings
follow, at their addresses, empty; pages are written into them from outside.

Everything the skeleton does, it does through one Remote whose workbench stays mapped
until the process is complete. If we die before it is, it dies with us
(PTRACE_O_EXITKILL).
"""

import errno
import os
import select
import signal
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self

from migrate.image import Layout, MappedFile, Process, Task
from migrate.kernel import procfs, tracee
from migrate.kernel._native import ffi, lib
from migrate.kernel.remote import (
    WORKBENCH_BYTES,
    Batch,
    Remote,
    RemoteError,
    Workbench,
    cstr,
)
from migrate.kernel.syscalls import explain
from migrate.kernel.tracee import Tracee
from migrate.mapped_files import edges_of
from precopy.address_space import AddressSpace, Prot, Vma
from precopy.errors import TaskVanished
from precopy.ids import Pid, Tid
from precopy.page_set import PageSet
from transport.messages import PidPolicy

_MAP_SHARED: Final = 0x01
_MAP_PRIVATE: Final = 0x02
_MAP_FIXED: Final = 0x10
_MAP_ANONYMOUS: Final = 0x20
_MAP_GROWSDOWN: Final = 0x100
_MAP_NORESERVE: Final = 0x4000
_MAP_FIXED_NOREPLACE: Final = 0x100000
_MREMAP_MAYMOVE_FIXED: Final = 3
_NO_FD: Final = (1 << 64) - 1

# VmFlags (proc_pid_smaps(5)) and the madvise(2) that sets each.
_ADVICE: Final = {
    "sr": 2,  # MADV_SEQUENTIAL
    "rr": 1,  # MADV_RANDOM
    "dc": 10,  # MADV_DONTFORK
    "mg": 12,  # MADV_MERGEABLE
    "hg": 14,  # MADV_HUGEPAGE
    "nh": 15,  # MADV_NOHUGEPAGE
    "dd": 16,  # MADV_DONTDUMP
    "wf": 18,  # MADV_WIPEONFORK
}
_PR_SET_VMA: Final = 0x53564D41
_PR_SET_VMA_ANON_NAME: Final = 0

# CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM
_THREAD_FLAGS: Final = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000
_CLONE_ARGS: Final = struct.Struct("<11Q")
_THREAD_STACK_BYTES: Final = 256

# Where no process maps of its own accord: far above any heap, far below the stacks
# and libraries that mmap(2) places from the top (Documentation/arch/x86/x86_64/mm.rst).
_WORKBENCH_FROM: Final = 0x1000_0000_0000
_WORKBENCH_STEP: Final = 0x10_0000_0000

_STEPS: Final = {
    1: "open a pipe",
    2: "make a pid namespace",
    3: "start the init of a pid namespace",
    4: "make the session",
    5: "make the process group",
    6: "make the process",
}


class CannotBuild(Exception):
    """The skeleton cannot be what the process was; ``message`` says why.

    Nothing of it is left.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Skeleton:
    """One process of the tree at the destination, from birth to the last detach.

    ``space`` is what is mapped in it now, the workbench not counted.
    """

    def __init__(
        self,
        process: Process,
        pid: Pid,
        namespace_init: Pid | None,
        *,
        keep_tids: bool,
    ) -> None:
        self.process = process
        self._keep_tids = keep_tids
        self.pid = pid  # as we see it
        self.namespace_init = namespace_init
        self.space = AddressSpace()
        self.tids: dict[int, Tid] = {}  # its own numbers → ours
        self.tracee: Tracee
        self.remote: Remote

    @classmethod
    def build(cls, process: Process, leaf: int, policy: PidPolicy) -> Self:
        """Bear it in the cgroup that ``leaf`` is a descriptor of, and map everything.

        Raises:
            CannotBuild: and why.
        """
        pid, init, go, error = _spawn(process, leaf, policy)
        skeleton = cls(process, pid, init, keep_tids=policy is not PidPolicy.ANY)
        try:
            skeleton._execute(go, error)
            skeleton._empty()
            skeleton._map_all(process.vmas, process.files)
            skeleton.space = AddressSpace(process.vmas)
            skeleton.add_threads(process.tasks[1:])
        except BaseException:
            skeleton.destroy()
            raise
        return skeleton

    def _execute(self, go: int, error: int) -> None:
        """Let it execute the program; it is stopped before its first instruction."""
        try:
            self.tracee = Tracee.seize(
                self.pid,
                options=tracee.OPTION_TRACE_EXEC
                | tracee.OPTION_TRACE_CLONE
                | tracee.OPTION_TRACE_SYSGOOD
                | tracee.OPTION_EXIT_KILL,
            )
            (leader,) = self.tracee.tids
            os.write(go, b"x")
            self.tracee.resume(leader)
            status = self.tracee.wait(leader)
            # The clone that bore it and the read(2) of that byte may still pass by.
            while os.WIFSTOPPED(status) and status >> 16 != tracee.EVENT_EXEC:
                self.tracee.resume(leader)
                status = self.tracee.wait(leader)
            if not os.WIFSTOPPED(status):
                raise _not_executed(self.process.executable, error)
            # At this event the task is still inside execve(2), whose exit would
            # overwrite rax: one more stop, outside of it.
            self.tracee.interrupt(leader)
            self.tracee.resume(leader)
            self.tracee.wait(leader)
            self.tids[self.process.pid] = leader
        finally:
            os.close(go)
            os.close(error)

    def _empty(self) -> None:
        """Unmap what exec mapped; move the kernel's own block to its place."""
        self.tracee.reopen_memory()
        mapped = procfs.read_maps(self.pid)
        wanted = AddressSpace(self.process.vmas)
        self._unregister_rseq()
        self.remote = Remote(
            self.pid, self.tracee.tids[0], Workbench.at(_free(mapped, wanted))
        )
        self.remote.open()
        batch = self.remote.batch()
        for vma in mapped.vmas:
            if not vma.is_kernel:
                batch.add("munmap", vma.start, vma.end - vma.start)
        batch.run()
        self._move_kernel_block(_kernel_block(mapped), _kernel_block(wanted))

    def _unregister_rseq(self) -> None:
        # An exec leaves none behind; should a kernel change that, its area would be
        # written to after it has been unmapped.
        if self.tracee.rseq(self.tracee.tids[0]) is not None:
            raise CannotBuild("rseq", "A process fresh from exec has rseq registered.")

    def _move_kernel_block(self, have: Sequence[Vma], want: Sequence[Vma]) -> None:
        if [(v.name, v.length) for v in have] != [(v.name, v.length) for v in want]:
            raise CannotBuild(
                "vdso",
                "The kernel's own mappings (vdso, vvar) differ between the two hosts. "
                "Move it to a host that runs the same kernel.",
            )
        if not have or have[0].start == want[0].start:
            return
        for place in self._stations(have, want):
            batch = self.remote.batch()
            for vma, start in zip(have, place, strict=True):
                batch.add(
                    "mremap",
                    vma.start,
                    vma.length,
                    vma.length,
                    _MREMAP_MAYMOVE_FIXED,
                    start,
                )
            batch.run()
            have = [
                Vma(
                    start,
                    start + vma.length,
                    vma.prot,
                    vma.shared,
                    vma.offset,
                    vma.device,
                    vma.inode,
                    vma.name,
                )
                for vma, start in zip(have, place, strict=True)
            ]

    def _stations(
        self, have: Sequence[Vma], want: Sequence[Vma]
    ) -> list[tuple[int, ...]]:
        """Start addresses of the block on its way: by a third place if it overlaps."""
        final = tuple(v.start for v in want)
        if have[-1].end <= want[0].start or want[-1].end <= have[0].start:
            return [final]
        away = self.remote.bench.address + 2 * WORKBENCH_BYTES
        return [tuple(away + v.start - have[0].start for v in have), final]

    def _map_all(self, vmas: Sequence[Vma], files: Sequence[MappedFile]) -> None:
        own = [v for v in vmas if not v.is_kernel]
        opened = self._open_files(own, files)
        batch = self.remote.batch()
        for vma in own:
            fd = opened[vma.name, _opened_for(vma)] if vma.inode else _NO_FD
            batch.add(
                "mmap",
                vma.start,
                vma.length,
                int(vma.prot),
                _map_flags(vma) | _MAP_FIXED_NOREPLACE,
                fd,
                vma.offset if vma.inode else 0,
            )
        try:
            batch.run()
        except RemoteError as error:
            raise CannotBuild(
                "mapping", f"A mapping cannot be made: {explain(error.errno or 0)}."
            ) from error
        batch = self.remote.batch()
        for fd in sorted(set(opened.values())):
            batch.add("close", fd)
        self._advise(own, batch)
        batch.run()

    def _advise(self, vmas: Iterable[Vma], batch: Batch) -> None:
        """Give mappings the flags that madvise(2), mlock(2) and prctl(2) set."""
        for vma in vmas:
            for flag, advice in _ADVICE.items():
                if flag in vma.flags:
                    batch.add("madvise", vma.start, vma.length, advice)
            if "lo" in vma.flags:
                batch.add("mlock", vma.start, vma.length)
            if vma.name.startswith("[anon:"):
                batch.add(
                    "prctl",
                    _PR_SET_VMA,
                    _PR_SET_VMA_ANON_NAME,
                    vma.start,
                    vma.length,
                    cstr(vma.name.removeprefix("[anon:").removesuffix("]")),
                )

    def _open_files(
        self, vmas: Sequence[Vma], files: Sequence[MappedFile]
    ) -> dict[tuple[str, int], int]:
        """Open each mapped file as the owner; by name and open mode."""
        wanted = list(dict.fromkeys((v.name, _opened_for(v)) for v in vmas if v.inode))
        batch = self.remote.batch()
        for name, mode in wanted:
            batch.add("openat", -100, cstr(name), mode | os.O_CLOEXEC, 0)  # AT_FDCWD
        results = batch.run(check=False)
        known = {os.fsdecode(f.path): f for f in files}
        opened: dict[tuple[str, int], int] = {}
        for (name, mode), fd in zip(wanted, results, strict=True):
            if fd < 0:
                raise CannotBuild(
                    "file",
                    f"{name} is mapped and cannot be opened here: {explain(-fd)}.",
                )
            opened[name, mode] = fd
            self._compare(name, fd, known.get(name))
        return opened

    def _compare(self, name: str, fd: int, expected: MappedFile | None) -> None:
        if expected is None:
            raise CannotBuild("file", f"{name} is mapped, and the peer says no more.")
        here = Path("/proc") / str(self.pid) / "fd" / str(fd)
        size, edges = edges_of(here)
        if (size, edges) != (expected.size_bytes, expected.edges):
            raise CannotBuild(
                "file",
                f"{name} is mapped and differs here: "
                f"{expected.size_bytes} bytes there, {size} here. "
                "Install the same version on both hosts.",
            )

    def change(self, layout: Layout, new: AddressSpace) -> None:
        """Follow a change of the source's mappings.

        Raises:
            CannotBuild: and why; the skeleton is of no use any more.
        """
        batch = self.remote.batch()
        for start, end in layout.removed:
            batch.add("munmap", start, end - start)
        for vma in layout.renewed:
            batch.add("munmap", vma.start, vma.length)
        batch.run()
        self._make_way(new)
        self._map_all((*layout.added, *layout.renewed), layout.files)
        batch = self.remote.batch()
        for vma in layout.reprotected:
            batch.add("mprotect", vma.start, vma.length, int(vma.prot))
        self._advise(layout.readvised, batch)
        batch.run()
        self.space = new

    def _make_way(self, new: AddressSpace) -> None:
        """Move the workbench if the source has come to map where it lies."""
        start = self.remote.bench.address
        bench = PageSet.of([(start, start + WORKBENCH_BYTES)])
        if not new.ranges() & bench:
            return
        address = _free(new, procfs.read_maps(self.pid))
        self.remote.close()
        self.remote = Remote(self.pid, self.tracee.tids[0], Workbench.at(address))
        self.remote.open()

    def add_threads(self, tasks: Sequence[Task]) -> None:
        """Bear these threads, with their numbers; they are stopped, not yet resumed."""
        if not tasks:
            return
        self.remote.reset()
        stack = self.remote.space(_THREAD_STACK_BYTES)
        for some in _chunks(tasks, 512):
            ids = self.remote.space(8 * len(some))
            self.remote.write(
                ids, b"".join(struct.pack("<Q", task.tid) for task in some)
            )
            batch = self.remote.batch()
            for i, _ in enumerate(some):
                batch.add(
                    "clone3",
                    _CLONE_ARGS.pack(
                        _THREAD_FLAGS,
                        0,
                        0,
                        0,
                        0,
                        stack,
                        _THREAD_STACK_BYTES,
                        0,
                        ids + 8 * i,
                        int(self._keep_tids),
                        0,
                    ),
                    _CLONE_ARGS.size,
                )
            born_before = len(self.remote.born)
            try:
                batch.run()
            except RemoteError as error:
                raise CannotBuild(
                    "thread",
                    f"A thread's number is taken: {explain(error.errno or 0)}.",
                ) from error
            for task, tid in zip(some, self.remote.born[born_before:], strict=True):
                self.tracee.adopt(tid)
                self.tids[task.tid] = tid
        self.remote.born.clear()
        self.remote.reset()

    def end_threads(self, tids: Iterable[int]) -> None:
        """Let these threads, by their own numbers, end."""
        for own in tids:
            tid = self.tids.pop(own)
            try:
                self.remote.on(tid).syscall("exit", 0)
            except TaskVanished:
                self.tracee.disown(tid)

    def finish(self) -> None:
        """Take the workbench away: the address space is the process's own."""
        self.remote.close()

    def destroy(self) -> None:
        """Kill it and wait for its end. Harmless when it has ended already."""
        for pid in (self.pid, self.namespace_init):
            if pid is None:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if hasattr(self, "tracee"):
            self.tracee.reap()
        for pid in (self.pid, self.namespace_init):
            if pid is None:
                continue
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def _spawn(
    process: Process, leaf: int, policy: PidPolicy
) -> tuple[Pid, Pid | None, int, int]:
    """Bear the process; gives its pid, its init's, and the two pipes to it."""
    if policy is PidPolicy.AUTO:
        taken = _taken(process)
        policy = PidPolicy.NEW_NAMESPACE if taken else PidPolicy.KEEP
    return _spawn_in(
        process,
        leaf,
        new_namespace=policy is PidPolicy.NEW_NAMESPACE,
        any_pid=policy is PidPolicy.ANY,
    )


def _taken(process: Process) -> bool:
    """Whether a number that the process needs is in use here, in whatever role."""
    wanted = {task.tid for task in process.tasks}
    wanted |= {process.process_group, process.session} - {0}
    for pid in procfs.pids():
        try:
            stat = procfs.stat(pid)
            if wanted & {pid, stat.process_group, stat.session, *procfs.threads(pid)}:
                return True
        except TaskVanished:
            continue
    return False


def _spawn_in(
    process: Process, leaf: int, *, new_namespace: bool, any_pid: bool
) -> tuple[Pid, Pid | None, int, int]:
    executable = ffi.new("char[]", process.executable)
    groups = ffi.new("uint32_t[]", list(process.groups))
    # A leader outside of its pid namespace shows as 0: then it leads its own session.
    session = process.session or process.pid
    group = process.process_group or process.pid
    ids = (0, 0, 0) if any_pid else (process.pid, group, session)
    plan = ffi.new(
        "struct skeleton_plan *",
        {
            "executable": executable,
            "cgroup": leaf,
            "new_pid_namespace": int(new_namespace),
            "pid": ids[0],
            "pgid": ids[1],
            "sid": ids[2],
            "uid": list(process.uids),
            "gid": list(process.gids),
            "groups": groups,
            "group_count": len(process.groups),
        },
    )
    birth = ffi.new("struct skeleton_birth *")
    result = lib.skeleton_spawn(plan, birth)
    _reap_leaders(birth.pid, birth.init)
    if result < 0:
        step = _STEPS.get(birth.step, "start")
        raise CannotBuild(
            "pid",
            f"A process with pid {process.pid} cannot be born here (failed to {step}: "
            f"{explain(-result)}). Try --pid new-namespace.",
        )
    init = Pid(birth.init) if birth.init else None
    pid = Pid(birth.pid) if birth.pid else _descendant(Pid(birth.init), process.pid)
    return pid, init, birth.go, birth.error


def _reap_leaders(pid: int, init: int) -> None:
    """Reap the leaders that ended on the way to the process, and nobody else."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in (pid, init):
            return
        os.waitpid(found.si_pid, 0)


def _descendant(init: Pid, own_pid: int) -> Pid:
    """The process that its namespace calls own_pid, as we see it."""
    for child in procfs.children(init):
        if procfs.status(child).pids_in_namespaces[-1] == own_pid:
            return child
    raise CannotBuild("pid", f"The process {own_pid} ended at its birth.")


def _not_executed(executable: bytes, error: int) -> CannotBuild:
    ready, _, _ = select.select([error], [], [], 1.0)
    said = os.read(error, 4) if ready else b""
    number = int.from_bytes(said, "little") if len(said) == 4 else errno.ECHILD
    return CannotBuild(
        "executable",
        f"{os.fsdecode(executable)} cannot be executed here: {explain(number)}.",
    )


def _kernel_block(space: AddressSpace) -> list[Vma]:
    return [v for v in space.vmas if v.is_kernel and v.name != "[vsyscall]"]


def _free(*spaces: AddressSpace) -> int:
    """An address where a workbench (and the kernel's block behind it) fits in all."""
    taken = PageSet.EMPTY
    for space in spaces:
        taken |= space.ranges()
    address = _WORKBENCH_FROM
    while taken & PageSet.of([(address, address + 4 * WORKBENCH_BYTES)]):
        address += _WORKBENCH_STEP
    return address


def _opened_for(vma: Vma) -> int:
    """The mode that mmap(2) demands of the descriptor."""
    writes = vma.shared and Prot.WRITE in vma.prot
    return os.O_RDWR if writes else os.O_RDONLY


def _map_flags(vma: Vma) -> int:
    flags = _MAP_SHARED if vma.shared else _MAP_PRIVATE
    if not vma.inode:
        flags |= _MAP_ANONYMOUS
    if "gd" in vma.flags:
        flags |= _MAP_GROWSDOWN
    if "nr" in vma.flags:
        flags |= _MAP_NORESERVE
    return flags


def _chunks(tasks: Sequence[Task], size: int) -> Iterable[Sequence[Task]]:
    return (tasks[i : i + size] for i in range(0, len(tasks), size))
