"""What of a process travels: mappings as it runs, all else while it is stopped.

Twice: the outline before the first page, and the frozen records in the freeze. The
second time only what differs from the first is sent, and what is late and is not told
by an answer (migrate.answers): what can only be read, or restored, in the end.

The first look is short: in it everything is asked, and nothing is read. What was
answered is read when the process runs again.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from migrate import descriptors
from migrate.answers import Answers, packed
from migrate.descriptors import Descriptors
from migrate.errors import printable
from migrate.image import FrozenProcess, FrozenTask, MappedFile, Process, Task
from migrate.kernel import procfs
from migrate.kernel.asking import Answer
from migrate.kernel.blocked_syscalls import TimedCall
from migrate.kernel.tracee import TaskState
from migrate.kinds import table
from migrate.kinds.kind import CannotCarry, ProcessKind, Scope, Source
from migrate.kinds.table import Dumped
from migrate.mapped_files import MappingVanished, mapped_files
from migrate.shared_objects import SharedObjects
from precopy.address_space import Vma
from precopy.ids import Pid, Tid

_LOOKS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Mapped:
    """What was mapped at one moment, and the files behind it."""

    vmas: tuple[Vma, ...]
    files: tuple[MappedFile, ...]

    @classmethod
    def of(cls, pid: Pid, objects: SharedObjects) -> Self:
        """What is mapped now; nothing needs to stand still for it.

        What has no name goes to ``objects``.

        Raises:
            CannotCarry: it changes faster than it can be looked at.
            TaskVanished: it ended.
        """
        for _ in range(_LOOKS_MAX):
            vmas = procfs.read_smaps(pid).vmas
            try:
                return cls(vmas, mapped_files(pid, vmas, objects))
            except MappingVanished:
                procfs.stat(pid)
        raise CannotCarry(
            "mapping",
            f"pid {pid} maps and unmaps files faster than they can be looked at.",
            pid=pid,
        )


@dataclass(slots=True)
class Memory:
    """What was seen of one process, kept from one look to the next."""

    table: descriptors.Memory = field(default_factory=dict)
    process: Answers = field(default_factory=lambda: Answers(Scope.PROCESS))
    tasks: Answers = field(default_factory=lambda: Answers(Scope.TASK))


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What was asked of a process in its first stop, not read yet."""

    pid: Pid
    tids: tuple[Tid, ...]
    process: Answer
    tasks: tuple[Answer, ...]
    kinds: tuple[Dumped, ...]  # those that do not ask, and are not late
    descriptors: Descriptors


def look(source: Source, memory: Memory) -> FirstLook:
    """See what can be built before the freeze; the process stands still meanwhile.

    Raises:
        CannotCarry: and why.
        TaskVanished: it ended.
    """
    tids = source.tracee.tids
    (process,) = memory.process.ask(source.remote, tids[:1])
    return FirstLook(
        source.pid,
        tids,
        process,
        tuple(memory.tasks.ask(source.remote, tids)),
        _looked_for(source, [m for m in _do_not_ask() if not m.KIND.late]),
        descriptors.dump(source, memory.table),
    )


def outline(look: FirstLook, mapped: Mapped, memory: Memory) -> Process:
    """Everything that can be built before the freeze, and what late kinds expect.

    Raises:
        CannotCarry: and why.
        TaskVanished: it ended.
    """
    pid = look.pid
    status = procfs.status(pid)
    stat = procfs.stat(pid)
    tasks = []
    for tid, answer in zip(look.tids, look.tasks, strict=True):
        kinds = memory.tasks.read(tid, answer)
        tasks.append(Task(memory.tasks.own_tid(tid), kinds))
    return Process(
        pid=status.pids_in_namespaces[-1],
        process_group=_own(stat.process_group, pid, status.pids_in_namespaces[-1]),
        session=_own(stat.session, pid, status.pids_in_namespaces[-1]),
        executable=os.fsencode(os.readlink(f"/proc/{pid}/exe")),
        # For people; the kind `comm` carries the bytes, which need not be UTF-8.
        comm=printable(status.name),
        uids=(status.uids.real, status.uids.effective, status.uids.saved),
        gids=(status.gids.real, status.gids.effective, status.gids.saved),
        groups=status.groups,
        vmas=mapped.vmas,
        files=mapped.files,
        tasks=tuple(tasks),
        kinds=memory.process.read(look.tids[0], look.process) + look.kinds,
        descriptors=look.descriptors,
    )


def _own(number: int, pid: int, own_pid: int) -> int:
    """A group or session as the process sees it; 0 if it lies outside of its sight."""
    return own_pid if number == pid else number


def frozen(
    source: Source,
    before: Process,
    states: Sequence[TaskState],
    timed: Mapping[Tid, TimedCall],
    memory: Memory,
) -> FrozenProcess:
    """What the outline did not say, or says no longer.

    Raises:
        CannotCarry: something has come up that cannot go.
        TaskVanished: it ended.
    """
    tids = source.tracee.tids
    doubted = memory.process.doubted(source) | memory.tasks.doubted(source)
    (answer,) = memory.process.ask(source.remote, tids[:1])
    answers = memory.tasks.ask(source.remote, tids)
    tasks = []
    for tid, task_answer, state in zip(tids, answers, states, strict=True):
        kinds = memory.tasks.news(source, tid, task_answer, doubted)
        own_tid = memory.tasks.own_tid(tid)
        tasks.append(FrozenTask(own_tid, state, timed.get(tid), kinds))
    news = memory.process.news(source, tids[0], answer, doubted)
    now = descriptors.dump(source, memory.table)
    return FrozenProcess(
        tasks=tuple(tasks),
        kinds=news + _news(_looked_for(source, _do_not_ask()), before.kinds),
        descriptors=None if now == before.descriptors else now,
    )


def _news(now: tuple[Dumped, ...], then: tuple[Dumped, ...]) -> tuple[Dumped, ...]:
    """What is late, and of the rest what differs."""
    return tuple(d for d in now if table.kind(d.kind).late or d not in then)


def _do_not_ask() -> list[ProcessKind]:
    """The kinds that look from outside; those of tasks all ask."""
    return [m for m in table.process_kinds() if not hasattr(m, "ask")]


def _looked_for(source: Source, modules: Sequence[ProcessKind]) -> tuple[Dumped, ...]:
    found = (packed(module, module.dump(source)) for module in modules)
    return tuple(dumped for dumped in found if dumped is not None)
