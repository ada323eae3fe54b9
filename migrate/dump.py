"""What of a process travels, read from the source while its threads are stopped.

Twice: the outline before the first page, and the frozen records in the freeze. The
second time only what differs from the first is sent, and what is late: kinds that
change all the time, or that can only be restored into finished memory.
"""

import os
from collections.abc import Mapping, Sequence

from migrate import descriptors
from migrate.errors import printable
from migrate.image import FrozenProcess, FrozenTask, Process, Task
from migrate.kernel import procfs
from migrate.kernel.blocked_syscalls import TimedCall
from migrate.kernel.tracee import TaskState
from migrate.kinds import table
from migrate.kinds.kind import Source
from migrate.kinds.table import Dumped
from migrate.mapped_files import mapped_files
from precopy.ids import Tid


def outline(source: Source, memory: descriptors.Memory) -> Process:
    """Everything that can be built before the freeze.

    ``memory`` makes the second look at the same descriptors cheap.

    Raises:
        CannotCarry: and why.
        TaskVanished: it ended.
    """
    pid = source.pid
    status = procfs.status(pid)
    stat = procfs.stat(pid)
    space = procfs.read_smaps(pid)
    # The workbench, through which we look, is not the process's own.
    bench = source.remote.bench.address
    vmas = tuple(v for v in space.vmas if v.start != bench)
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
        vmas=vmas,
        files=mapped_files(pid, vmas),
        tasks=tuple(
            Task(own_tid(source, tid), _task_kinds(source, tid, late=False))
            for tid in source.tracee.tids
        ),
        kinds=_process_kinds(source, late=False),
        descriptors=descriptors.dump(source, memory),
    )


def _own(number: int, pid: int, own_pid: int) -> int:
    """A group or session as the process sees it; 0 if it lies outside of its sight."""
    return own_pid if number == pid else number


def own_tid(source: Source, tid: Tid) -> int:
    """The number of a thread as the process itself sees it."""
    return procfs.status(source.pid, tid).pids_in_namespaces[-1]


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
        own = own_tid(source, tid)
        early = _task_kinds(source, tid, late=False)
        late = _task_kinds(source, tid, late=True)
        tasks.append(
            FrozenTask(
                own,
                state,
                timed.get(tid),
                _changed(early, known.get(own, ())) + late,
            )
        )
    now = descriptors.dump(source, memory)
    return FrozenProcess(
        tasks=tuple(tasks),
        kinds=_changed(_process_kinds(source, late=False), before.kinds)
        + _process_kinds(source, late=True),
        descriptors=None if now == before.descriptors else now,
    )


def _changed(now: tuple[Dumped, ...], then: tuple[Dumped, ...]) -> tuple[Dumped, ...]:
    return tuple(dumped for dumped in now if dumped not in then)


def _process_kinds(source: Source, *, late: bool) -> tuple[Dumped, ...]:
    found = []
    for module in table.process_kinds():
        if module.KIND.late is not late:
            continue
        record = module.dump(source)
        if record is not None:
            found.append(table.pack(module.KIND, record))
    return tuple(found)


def _task_kinds(source: Source, tid: Tid, *, late: bool) -> tuple[Dumped, ...]:
    found = []
    for module in table.task_kinds():
        if module.KIND.late is not late:
            continue
        record = module.dump(source, tid)
        if record is not None:
            found.append(table.pack(module.KIND, record))
    return tuple(found)
