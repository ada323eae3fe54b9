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
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Self

from migrate.arriving_objects import ArrivingObjects
from migrate.image import Layout, Process, Task
from migrate.kernel import offspring, procfs, tracee
from migrate.kernel.birth import Birth, Ids, NotBorn, Owner, bear, taken
from migrate.kernel.offspring import Offspring
from migrate.kernel.remote import (
    WORKBENCH_BYTES,
    Remote,
    RemoteError,
    Workbench,
)
from migrate.kernel.syscalls import explain
from migrate.kernel.tracee import Tracee
from migrate.mapping import CannotBuild, advise_anew, map_all
from precopy.address_space import AddressSpace, Vma
from precopy.errors import TaskVanished
from precopy.ids import PAGE_BYTES, Pid, Tid
from precopy.page_set import PageSet
from precopy.page_stream import BATCH_PAGES_MAX
from precopy.pagemap import Pagemap
from transport.messages import PidPolicy

_MREMAP_MAYMOVE_FIXED: Final = 3

# CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM
_THREAD_FLAGS: Final = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000
_CLONE_ARGS: Final = struct.Struct("<11Q")
_THREAD_STACK_BYTES: Final = 256

# Where no process maps of its own accord: far above any heap, far below the stacks
# and libraries that mmap(2) places from the top (Documentation/arch/x86/x86_64/mm.rst).
_WORKBENCH_FROM: Final = 0x1000_0000_0000
_WORKBENCH_STEP: Final = 0x10_0000_0000


class Skeleton:
    """One process of the tree at the destination, from birth to the last detach.

    ``space`` is what is mapped in it now, the workbench not counted.
    """

    def __init__(
        self,
        process: Process,
        pid: Pid,
        init: Pid | None = None,
        *,
        objects: ArrivingObjects,
        keep_tids: bool,
    ) -> None:
        self.process = process
        self._objects = objects
        self._keep_tids = keep_tids
        self.pid = pid  # as we see it
        self.namespace_init = init
        # By their own numbers. A leader out of sight shows as 0: then it leads its own.
        self.session = process.session or process.pid
        self.process_group = process.process_group or process.pid
        self.space = AddressSpace()
        self.tids: dict[int, Tid] = {}  # its own numbers → ours
        self.tracee: Tracee
        self.remote: Remote

    @classmethod
    def build(
        cls,
        process: Process,
        leaf: int,
        policy: PidPolicy,
        others: Sequence[Process],
        objects: ArrivingObjects,
    ) -> Self:
        """Bear it in the cgroup that ``leaf`` is a descriptor of, and map everything.

        The numbers of ``others`` must be free as well. ``objects`` stay the caller's,
        as long as it lives.

        Raises:
            CannotBuild: and why.
        """
        birth = _bear(process, leaf, policy, others)
        keep = policy is not PidPolicy.ANY
        skeleton = cls(process, birth.pid, birth.init, objects=objects, keep_tids=keep)
        try:
            skeleton._execute(birth)
            skeleton._furnish()
        except BaseException:
            skeleton.destroy()
            raise
        return skeleton

    @classmethod
    def of_child(
        cls,
        process: Process,
        child: Offspring,
        objects: ArrivingObjects,
        *,
        session: int,
        process_group: int,
    ) -> Self:
        """Make it of a child that a skeleton of the tree has borne.

        It has its session and its group, which may be another than it is to have.

        Raises:
            CannotBuild: and why; the child has ended.
        """
        skeleton = cls(process, child.pid, objects=objects, keep_tids=True)
        skeleton.tracee, skeleton.remote = child.tracee, child.remote
        skeleton.session, skeleton.process_group = session, process_group
        try:
            skeleton.execute(process)
        except BaseException:
            skeleton.destroy()
            raise
        return skeleton

    def execute(self, process: Process) -> None:
        """Turn it into ``process``, which runs a program of its own: from its memory
        on all is new.

        Raises:
            CannotBuild: and why.
        """
        self.process = process
        self.end_threads([own for own in self.tids if own != process.pid])
        try:
            offspring.execute(self.tracee, self.remote, process.executable)
        except RemoteError as error:
            raise _not_executed(process.executable, error.errno or 0) from error
        self.tids = {process.pid: self.tracee.tids[0]}
        self._furnish()

    def _furnish(self) -> None:
        """From the moment of its exec: mappings and threads."""
        process = self.process
        self._empty()
        self._objects.make(self.remote)
        map_all(self.remote, process.vmas, process.files, self._objects)
        self.space = AddressSpace(process.vmas)
        self.add_threads(process.tasks[1:])

    def _execute(self, birth: Birth) -> None:
        """Let it execute the program; it is stopped before its first instruction."""
        try:
            self.tracee = Tracee.seize(
                self.pid,
                options=tracee.OPTION_TRACE_EXEC
                | tracee.OPTION_TRACE_FORK
                | tracee.OPTION_TRACE_CLONE
                | tracee.OPTION_TRACE_SYSGOOD
                | tracee.OPTION_EXIT_KILL,
            )
            (leader,) = self.tracee.tids
            os.write(birth.go, b"x")
            self.tracee.resume(leader)
            status = self.tracee.wait(leader)
            # The clone that bore it and the read(2) of that byte may still pass by.
            while os.WIFSTOPPED(status) and status >> 16 != tracee.EVENT_EXEC:
                self.tracee.resume(leader)
                status = self.tracee.wait(leader)
            if not os.WIFSTOPPED(status):
                raise _not_executed(self.process.executable, _said(birth.error))
            # At this event the task is still inside execve(2), whose exit would
            # overwrite rax: one more stop, outside of it.
            self.tracee.interrupt(leader)
            self.tracee.resume(leader)
            self.tracee.wait(leader)
            self.tids[self.process.pid] = leader
        finally:
            os.close(birth.go)
            os.close(birth.error)

    def _empty(self) -> None:
        """Unmap what exec mapped; move the kernel's own block to its place."""
        self.tracee.reopen_memory()
        mapped = procfs.read_maps(self.pid)
        wanted = AddressSpace(self.process.vmas)
        self._unregister_rseq()
        self._open_workbench(_free(mapped, wanted))
        batch = self.remote.batch()
        for vma in mapped.vmas:
            if not vma.is_kernel:
                batch.add("munmap", vma.start, vma.end - vma.start)
        batch.run()
        self._move_kernel_block(_kernel_block(mapped), _kernel_block(wanted))

    def _open_workbench(self, address: int) -> None:
        leader = self.tracee.tids[0]
        self.remote = Remote(self.pid, leader, Workbench.at(address), dies_with_us=True)
        self.remote.open()

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
                replace(vma, start=start, end=start + vma.length)
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
        added = (*layout.added, *layout.renewed)
        map_all(self.remote, added, layout.files, self._objects)
        batch = self.remote.batch()
        for vma in layout.reprotected:
            batch.add("mprotect", vma.start, vma.length, int(vma.prot))
        batch.run()
        advise_anew(self.remote, layout.readvised)
        self._rejoin(layout.extents, new)
        self.space = new

    def _rejoin(self, extents: Iterable[tuple[int, int]], wanted: AddressSpace) -> None:
        """What is one mapping there is one here: mremap(2) takes no part of two.

        Two pieces that were written to before a third came between them stay apart
        (mm/vma.c: their anon_vma differ), where at the source it was one all the time.
        """
        have = procfs.read_maps(self.pid)
        starts = [vma.start for vma in have.vmas]
        for start, end in extents:
            inside = bisect_right(starts, start)
            if inside == len(starts) or starts[inside] >= end:
                continue
            vma = wanted.find(start)
            if vma is not None and vma.is_ours and vma.is_anonymous:
                whole = replace(vma, start=start, end=end)
                self._remake(whole, _free(have, wanted, length=whole.length))

    def _remake(self, vma: Vma, aside: int) -> None:
        """Map it in one piece, aside; copy its pages; put it in place."""
        whole = replace(vma, start=aside, end=aside + vma.length)
        map_all(self.remote, [whole], (), self._objects)
        memory = self.tracee.memory
        buffer = bytearray(BATCH_PAGES_MAX * PAGE_BYTES)
        with Pagemap(self.pid) as pagemap:
            pages = pagemap.own([(vma.start, vma.end)])
        by = aside - vma.start
        for cut in pages.cuts(BATCH_PAGES_MAX):
            read = memory.read_runs(cut, buffer)
            there = PageSet.of((start + by, end + by) for start, end in read)
            memory.write_runs(there, memoryview(buffer)[: read.bytes])
        batch = self.remote.batch()
        batch.add("munmap", vma.start, vma.length)
        batch.add(
            "mremap",
            aside,
            vma.length,
            vma.length,
            _MREMAP_MAYMOVE_FIXED,
            vma.start,
        )
        batch.run()

    def _make_way(self, new: AddressSpace) -> None:
        """Move the workbench if the source has come to map where it lies."""
        start = self.remote.bench.address
        bench = PageSet.of([(start, start + WORKBENCH_BYTES)])
        if not new.ranges() & bench:
            return
        address = _free(new, procfs.read_maps(self.pid))
        self.remote.close()
        self._open_workbench(address)

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
                        # A pointer without a size is EINVAL (kernel/fork.c).
                        ids + 8 * i if self._keep_tids else 0,
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
        destroy_all([self])

    def kill(self) -> None:
        """SIGKILL, and to the init of its pid namespace, if it has one."""
        for pid in self._pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def reap(self) -> None:
        """Wait, as its tracer, for the end of a killed one; its parent is told."""
        if hasattr(self, "tracee"):
            self.tracee.reap()

    def wait(self) -> None:
        """Wait for it, if it is a child of ours."""
        for pid in self._pids():
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue

    def _pids(self) -> list[Pid]:
        return [self.pid, *([self.namespace_init] if self.namespace_init else [])]


def destroy_all(skeletons: Sequence[Skeleton]) -> None:
    """Kill them, which are parents and children, and wait for their ends.

    First all are killed, then all are reaped by their tracer: a parent that has ended
    leaves its children to us, who wait last.
    """
    for skeleton in skeletons:
        skeleton.kill()
    for skeleton in skeletons:
        skeleton.reap()
    for skeleton in skeletons:
        skeleton.wait()


def _bear(
    process: Process, leaf: int, policy: PidPolicy, others: Sequence[Process]
) -> Birth:
    wanted = {task.tid for one in (process, *others) for task in one.tasks}
    for one in (process, *others):
        wanted |= {one.process_group, one.session} - {0}
    if policy is PidPolicy.AUTO:
        policy = PidPolicy.NEW_NAMESPACE if taken(wanted) else PidPolicy.KEEP
    # A leader outside of its pid namespace shows as 0: then it leads its own session.
    ids = Ids(
        process.pid,
        process.process_group or process.pid,
        process.session or process.pid,
    )
    try:
        return bear(
            process.executable,
            Ids(0, 0, 0) if policy is PidPolicy.ANY else ids,
            Owner(process.uids, process.gids, process.groups),
            leaf,
            new_namespace=policy is PidPolicy.NEW_NAMESPACE,
        )
    except NotBorn as error:
        raise CannotBuild("pid", f"{error} Try --pid new-namespace.") from error


def _said(error: int) -> int:
    """Why a process could not execute its program, as it told us."""
    ready, _, _ = select.select([error], [], [], 1.0)
    said = os.read(error, 4) if ready else b""
    return int.from_bytes(said, "little") if len(said) == 4 else errno.ECHILD


def _not_executed(executable: bytes, number: int) -> CannotBuild:
    return CannotBuild(
        "executable",
        f"{os.fsdecode(executable)} cannot be executed here: {explain(number)}.",
    )


def _kernel_block(space: AddressSpace) -> list[Vma]:
    return [v for v in space.vmas if v.is_kernel and v.name != "[vsyscall]"]


def _free(*spaces: AddressSpace, length: int = 0) -> int:
    """An address that is free in all, with room for ``length`` bytes.

    There is always room for a workbench and the kernel's own block behind it.
    """
    taken = PageSet.EMPTY
    for space in spaces:
        taken |= space.ranges()
    room = max(4 * WORKBENCH_BYTES, length)
    address = _WORKBENCH_FROM
    while taken & PageSet.of([(address, address + room)]):
        address += _WORKBENCH_STEP
    return address


def _chunks(tasks: Sequence[Task], size: int) -> Iterable[Sequence[Task]]:
    return (tasks[i : i + size] for i in range(0, len(tasks), size))
