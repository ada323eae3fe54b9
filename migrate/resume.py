"""The last steps of a skeleton: what came from the freeze, then registers, then rest.

The order matters. Threads first, for all else may speak of them. Then descriptors and
the kinds of process and tasks, whose calls need the workbench. Then the kernel makes
the restart blocks of interrupted sleeps, for which memory and descriptors must be
complete. Then the workbench goes, and with it the last trace of us. Registers, vector
state and signal masks come last: from there on the threads are what they were.
"""

from dataclasses import replace

from migrate import descriptors
from migrate.image import FrozenProcess, FrozenTask, Process, Task
from migrate.kernel.blocked_syscalls import remake_restart_block, shortened
from migrate.kernel.tracee import Registers, TaskState
from migrate.kinds import table
from migrate.kinds.kind import Target
from migrate.kinds.table import Dumped
from migrate.skeleton import Skeleton


def prepare(skeleton: Skeleton, target: Target, process: Process) -> None:
    """Restore what the outline says, while the source still runs.

    Raises:
        CannotCarry: something cannot be restored here.
    """
    descriptors.restore(process.descriptors, target)
    _restore_process(process.kinds, target)
    for task in process.tasks:
        _restore_task(task.kinds, skeleton, target, task.tid)


def follow_threads(skeleton: Skeleton, frozen: FrozenProcess) -> None:
    """Bear the threads that have come since the outline, end those that have gone."""
    wanted = [task.tid for task in frozen.tasks]
    skeleton.end_threads([own for own in skeleton.tids if own not in wanted])
    new = [task for task in frozen.tasks if task.tid not in skeleton.tids]
    skeleton.add_threads([Task(task.tid, ()) for task in new])


def complete(
    skeleton: Skeleton, target: Target, before: Process, frozen: FrozenProcess
) -> None:
    """Make the skeleton the process: all its memory is there.

    Afterwards every thread is ptrace-stopped, ready to run when it is let go.

    Raises:
        CannotCarry: something cannot be restored here.
    """
    if frozen.descriptors is not None:
        descriptors.restore(frozen.descriptors, target, before.descriptors)
    _restore_process(frozen.kinds, target)
    for task in frozen.tasks:
        _restore_task(task.kinds, skeleton, target, task.tid)
    states = [_resumable(skeleton, task) for task in frozen.tasks]
    skeleton.finish()
    tids = [skeleton.tids[task.tid] for task in frozen.tasks]
    skeleton.tracee.set_states(tids, states)


def _resumable(skeleton: Skeleton, task: FrozenTask) -> TaskState:
    registers = Registers.from_bytes(task.state.registers)
    remote = skeleton.remote.on(skeleton.tids[task.tid])
    resumed = remake_restart_block(remote, skeleton.tracee, registers, task.timed)
    if task.timed is not None:
        resumed = shortened(resumed, task.timed.remaining_ns)
    return replace(task.state, registers=resumed.to_bytes())


def _restore_process(kinds: tuple[Dumped, ...], target: Target) -> None:
    modules = {module.KIND.name: module for module in table.process_kinds()}
    for name in modules:
        for dumped in kinds:
            if dumped.kind == name:
                modules[name].restore(table.unpack(dumped), target)


def _restore_task(
    kinds: tuple[Dumped, ...], skeleton: Skeleton, target: Target, own_tid: int
) -> None:
    modules = {module.KIND.name: module for module in table.task_kinds()}
    tid = skeleton.tids[own_tid]
    for name in modules:
        for dumped in kinds:
            if dumped.kind == name:
                modules[name].restore(table.unpack(dumped), target, tid)
