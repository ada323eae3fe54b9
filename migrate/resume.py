"""The last steps of a skeleton: what came from the freeze, then registers, then rest.

The order matters. Threads first, for all else may speak of them. Then descriptors and
the kinds of process and tasks, whose calls need the workbench. Then the kernel makes
the restart blocks of interrupted sleeps, for which memory and descriptors must be
complete. Then the workbench goes, and with it the last trace of us. Registers, vector
state and signal masks come last: from there on the threads are what they were.

All that is downtime, so what can be known before is. `prepare` looks at what the late
kinds find in a skeleton, and `complete` leaves alone what is the same. What is not is
told to each thread in one stop, by all kinds that can (they have a `tell`).
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

from migrate import descriptors, image
from migrate.image import (
    FrozenProcess,
    FrozenTask,
    FrozenTree,
    Layout,
    Process,
    Task,
)
from migrate.kernel.asking import asked_together
from migrate.kernel.blocked_syscalls import (
    ERESTART_RESTARTBLOCK,
    remake_restart_block,
    shortened,
)
from migrate.kernel.remote import Remote
from migrate.kernel.telling import Tell, told_together
from migrate.kernel.tracee import Registers, TaskState
from migrate.kinds import table
from migrate.kinds.kind import CannotCarry, Source, Target
from migrate.kinds.table import Dumped
from migrate.skeleton import Skeleton
from precopy.ids import Tid

_RAX: Final = struct.Struct("<80xQ")  # offsetof(struct user_regs_struct, rax)
_SLEPT: Final = (1 << 64) - ERESTART_RESTARTBLOCK

# ProcessKind or TaskKind, with what a module may leave out.
_Module: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class _Step:
    """One record to be restored: told together with others, or done by itself."""

    tell: Tell | None
    restore: Callable[[], None]


def prepare(skeleton: Skeleton, target: Target, process: Process) -> None:
    """Restore what the outline says, while the source still runs.

    Raises:
        CannotCarry: something cannot be restored here.
    """
    _rehearse()
    descriptors.restore(process.descriptors, target)
    steps = list(_steps(process.kinds, target, None))
    for task in process.tasks:
        tid = skeleton.tids[task.tid]
        steps += _steps(task.kinds, target, tid)
        _take(steps, target.remote.on(tid))
        steps = []
    _look(target, None)
    for tid in skeleton.tids.values():
        _look(target, tid)


def follow_threads(skeleton: Skeleton, frozen: FrozenProcess) -> None:
    """Bear the threads that have come since the outline, end those that have gone."""
    wanted = {task.tid for task in frozen.tasks}
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
    early = tuple(d for d in frozen.kinds if not table.kind(d.kind).late)
    late = tuple(d for d in frozen.kinds if table.kind(d.kind).late)
    if early:
        _take(list(_steps(early, target, None)), target.remote)
        # One of them may have changed what a late one finds (headroom does).
        _look(target, None)
    steps = list(_steps(late, target, None))
    known = {tid for _, tid in target.standing}
    for task in frozen.tasks:
        tid = skeleton.tids[task.tid]
        if tid not in known:
            _look(target, tid)
        steps += _steps(task.kinds, target, tid)
        _take(steps, target.remote.on(tid))
        steps = []
    states = [_resumable(skeleton, task) for task in frozen.tasks]
    skeleton.finish()
    tids = [skeleton.tids[task.tid] for task in frozen.tasks]
    skeleton.tracee.set_states(tids, states)


def _rehearse() -> None:
    """Have msgspec look at each record's class now: that takes it 100 µs a class."""
    table.warm()
    image.decode(image.encode(FrozenTree(())), FrozenTree)
    image.decode(image.encode(Layout((), (), (), (), (), (), ())), Layout)


def _look(target: Target, tid: Tid | None) -> None:
    """See what late kinds find: those of a thread, or (None) of the process."""
    modules = [m for m in _modules(tid) if m.KIND.late]
    remote = target.remote if tid is None else target.remote.on(tid)
    asking = [m for m in modules if hasattr(m, "ask")]
    answers = asked_together(remote, [m.ask for m in asking])
    records = {m.KIND.name: a for m, a in zip(asking, answers, strict=True)}
    source = Source(target.pid, target.tracee, target.remote, target.pidfd)
    whose = () if tid is None else (tid,)
    for module in modules:
        name = module.KIND.name
        if name not in records:
            records[name] = module.dump(source, *whose)
        target.standing[name, tid] = records[name]


def _modules(tid: Tid | None) -> Sequence[_Module]:
    return table.process_kinds() if tid is None else table.task_kinds()


def _steps(kinds: Sequence[Dumped], target: Target, tid: Tid | None) -> Iterator[_Step]:
    """What is to be done for these records, in the order of their kinds."""
    by_name = {dumped.kind: dumped for dumped in kinds}
    whose = () if tid is None else (tid,)
    for module in _modules(tid):
        name = module.KIND.name
        dumped = by_name.pop(name, None)
        if dumped is None:
            continue
        record = table.unpack(dumped)
        there = target.standing.get((name, tid))
        if record == there:
            continue
        # A late one that nobody has looked for yet looks for itself.
        can_tell = hasattr(module, "tell") and (
            there is not None or not module.KIND.late
        )
        yield _Step(
            partial(module.tell, record, there) if can_tell else None,
            partial(module.restore, record, target, *whose),
        )
    for name in by_name:
        raise CannotCarry(name, f"The peer sent a {name!r} where none has a place.")


def _take(steps: Sequence[_Step], remote: Remote) -> None:
    """Do them in their order; those that can be told in as few stops as that allows."""
    waiting: list[Tell] = []
    for step in steps:
        if step.tell is not None:
            waiting.append(step.tell)
            continue
        told_together(remote, waiting)
        waiting = []
        step.restore()
    told_together(remote, waiting)


def _resumable(skeleton: Skeleton, task: FrozenTask) -> TaskState:
    (rax,) = _RAX.unpack_from(task.state.registers)
    if rax != _SLEPT and task.timed is None:
        return task.state
    registers = Registers.from_bytes(task.state.registers)
    if rax == _SLEPT:
        remote = skeleton.remote.on(skeleton.tids[task.tid])
        resumed = remake_restart_block(remote, skeleton.tracee, registers, task.timed)
    else:
        assert task.timed is not None
        resumed = shortened(registers, task.timed.remaining_ns)
    return replace(task.state, registers=resumed.to_bytes())
