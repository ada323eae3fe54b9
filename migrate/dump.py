"""What of a process travels: mappings as it runs, all else while it is stopped.

Twice: the outline before the first page, and the frozen records in the freeze. The
second time only what differs from the first is sent, and what is late: kinds that
change all the time, or that can only be restored into finished memory.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from migrate import descriptors
from migrate.errors import printable
from migrate.image import FrozenProcess, FrozenTask, MappedFile, Process, Task
from migrate.kernel import procfs
from migrate.kernel.asking import asked_together
from migrate.kernel.blocked_syscalls import TimedCall
from migrate.kernel.remote import Remote
from migrate.kernel.tracee import TaskState
from migrate.kinds import table
from migrate.kinds.kind import CannotCarry, ProcessKind, Record, Source, TaskKind
from migrate.kinds.table import Dumped
from migrate.mapped_files import MappingVanished, mapped_files
from precopy.address_space import Vma
from precopy.ids import Pid, Tid

_LOOKS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Mapped:
    """What was mapped at one moment, and the files behind it."""

    vmas: tuple[Vma, ...]
    files: tuple[MappedFile, ...]

    @classmethod
    def of(cls, pid: Pid) -> Self:
        """What is mapped now; nothing needs to stand still for it.

        Raises:
            CannotCarry: it changes faster than it can be looked at.
            TaskVanished: it ended.
        """
        for _ in range(_LOOKS_MAX):
            vmas = procfs.read_smaps(pid).vmas
            try:
                return cls(vmas, mapped_files(pid, vmas))
            except MappingVanished:
                procfs.stat(pid)
        raise CannotCarry(
            "mapping",
            f"pid {pid} maps and unmaps files faster than they can be looked at.",
            pid=pid,
        )


def outline(source: Source, mapped: Mapped, memory: descriptors.Memory) -> Process:
    """Everything that can be built before the freeze.

    ``memory`` makes the second look at the same descriptors cheap.

    Raises:
        CannotCarry: and why.
        TaskVanished: it ended.
    """
    pid = source.pid
    status = procfs.status(pid)
    stat = procfs.stat(pid)
    of_tasks = [m for m in table.task_kinds() if not m.KIND.late]
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
        tasks=tuple(
            Task(procfs.own_id(source.pid, tid), _task_kinds(source, tid, of_tasks))
            for tid in source.tracee.tids
        ),
        kinds=_process_kinds(
            source, [m for m in table.process_kinds() if not m.KIND.late]
        ),
        descriptors=descriptors.dump(source, memory),
    )


def _own(number: int, pid: int, own_pid: int) -> int:
    """A group or session as the process sees it; 0 if it lies outside of its sight."""
    return own_pid if number == pid else number


def frozen(
    source: Source,
    before: Process,
    states: Sequence[TaskState],
    timed: Mapping[Tid, TimedCall],
    memory: descriptors.Memory,
) -> FrozenProcess:
    """What the outline did not say, or says no longer.

    Raises:
        CannotCarry: something has come up that cannot go.
        TaskVanished: it ended.
    """
    known = {task.tid: task.kinds for task in before.tasks}
    tasks = []
    for tid, state in zip(source.tracee.tids, states, strict=True):
        own = procfs.own_id(source.pid, tid)
        kinds = _task_kinds(source, tid, table.task_kinds())
        tasks.append(
            FrozenTask(
                own,
                state,
                timed.get(tid),
                _news(kinds, known.get(own, ())),
            )
        )
    now = descriptors.dump(source, memory)
    return FrozenProcess(
        tasks=tuple(tasks),
        kinds=_news(_process_kinds(source, table.process_kinds()), before.kinds),
        descriptors=None if now == before.descriptors else now,
    )


def _news(now: tuple[Dumped, ...], then: tuple[Dumped, ...]) -> tuple[Dumped, ...]:
    """What is late, and of the rest what differs."""
    return tuple(d for d in now if table.kind(d.kind).late or d not in then)


def _process_kinds(
    source: Source, modules: Sequence[ProcessKind]
) -> tuple[Dumped, ...]:
    return _dumped(source.remote, modules, lambda module: module.dump(source))


def _task_kinds(
    source: Source, tid: Tid, modules: Sequence[TaskKind]
) -> tuple[Dumped, ...]:
    remote = source.remote.on(tid)
    return _dumped(remote, modules, lambda module: module.dump(source, tid))


_Module = TypeVar("_Module", ProcessKind, TaskKind)


def _dumped(
    remote: Remote, modules: Sequence[_Module], dump: Callable[[_Module], Record]
) -> tuple[Dumped, ...]:
    """The records of these kinds, in their order.

    Those that ask the task itself (they have an `ask`) do so together, in one stop.
    """
    asking = {m.KIND.name: m.ask for m in modules if hasattr(m, "ask")}
    answers = asked_together(remote, list(asking.values()))
    records = dict(zip(asking, answers, strict=True))
    for module in modules:
        if module.KIND.name not in asking:
            records[module.KIND.name] = dump(module)
    return tuple(
        table.pack(module.KIND, records[module.KIND.name])
        for module in modules
        if records[module.KIND.name] is not None
    )
