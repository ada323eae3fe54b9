"""The last steps of a skeleton: what came from the freeze, then registers, then rest.

The order matters. Threads first, for all else may speak of them. Then descriptors and
the kinds of process and tasks, whose calls need the workbench. Then the kernel makes
the restart blocks of interrupted sleeps, for which memory and descriptors must be
complete. Then the workbench goes, and with it the last trace of us. Registers, vector
state and signal masks come last: from there on the threads are what they were.

All that is downtime, so what can be known before is. `prepare` looks at what the late
kinds find in a skeleton, and has the calls ready that make of it what the outline says.
In `complete` only what is otherwise in the end is thought about; the calls themselves
are made by all threads one after the other, in a loop in C.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self, TypeAlias

from migrate import descriptors, image
from migrate.image import (
    FrozenProcess,
    FrozenTask,
    FrozenTree,
    Layout,
    Process,
    Task,
)
from migrate.kernel.asking import Form, Unsaid
from migrate.kernel.blocked_syscalls import (
    ERESTART_RESTARTBLOCK,
    remake_restart_blocks,
    shortened,
)
from migrate.kernel.remote import Remote, Workbench
from migrate.kernel.telling import Check, Tell, told_together
from migrate.kernel.tracee import Registers, TaskState
from migrate.kinds import table
from migrate.kinds.kind import CannotCarry, Record, Source, Target
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


@dataclass(frozen=True, slots=True)
class _Order:
    """All that one thread has to be told, ready to be told in one stop."""

    tid: Tid
    bench: Workbench
    rows: tuple[bytes, bytes]  # the calls, and what they point to
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, steps: Sequence[_Step], remote: Remote) -> Self | None:
        """None where not all of it can be told."""
        tells = [step.tell for step in steps if step.tell is not None]
        if len(tells) != len(steps):
            return None
        remote.reset()
        batch = remote.batch()
        checks = tuple(tell(remote, batch) for tell in tells)
        return cls(remote.tid, remote.bench, batch.rows(), checks)


def prepare(skeleton: Skeleton, target: Target, process: Process) -> None:
    """Restore what the outline says, while the source still runs.

    Raises:
        CannotCarry: something cannot be restored here.
    """
    _rehearse()
    descriptors.restore(process.descriptors, target)
    steps = list(_steps(_early(process.kinds), target, None))
    for task in process.tasks:
        tid = skeleton.tids[task.tid]
        steps += _steps(_early(task.kinds), target, tid)
        _take(steps, target.remote.on(tid))
        steps = []
    _look_at_process(target)
    _look_at_threads(target, list(skeleton.tids.values()))
    for task in process.tasks:
        tid = skeleton.tids[task.tid]
        late = list(_steps(_late(task.kinds), target, tid))
        order = _Order.of(late, target.remote.on(tid))
        if order is not None:
            target.ready[tid] = order


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
    if early := _early(frozen.kinds):
        _take(list(_steps(early, target, None)), target.remote)
        # One of them may have changed what a late one finds (headroom does).
        _look_at_process(target)
    late = _newest(_late(before.kinds), _late(frozen.kinds))
    _take(list(_steps(late, target, None)), target.remote)
    _tell_threads(skeleton, target, before, frozen)
    tids = [skeleton.tids[task.tid] for task in frozen.tasks]
    states = _resumable(skeleton, tids, frozen.tasks)
    skeleton.finish()
    skeleton.tracee.set_states(tids, states)


def _tell_threads(
    skeleton: Skeleton, target: Target, before: Process, frozen: FrozenProcess
) -> None:
    known = {tid for _, tid in target.standing}
    tids = [skeleton.tids[task.tid] for task in frozen.tasks]
    _look_at_threads(target, [tid for tid in tids if tid not in known])
    expected = {task.tid: task.kinds for task in before.tasks}
    orders: list[_Order] = []
    for task, tid in zip(frozen.tasks, tids, strict=True):
        order = target.ready.get(tid)
        if task.kinds or order is None or order.bench != target.remote.bench:
            remote = target.remote.on(tid)
            kinds = _newest(_late(expected.get(task.tid, ())), task.kinds)
            steps = list(_steps(kinds, target, tid))
            order = _Order.of(steps, remote)
            if order is None:
                _take(steps, remote)
                continue
        if order.rows[0]:
            orders.append(order)
    results = target.remote.run_orders([(o.tid, *o.rows) for o in orders])
    for order, answers in zip(orders, results, strict=True):
        for check in order.checks:
            check(answers)


def _early(kinds: Iterable[Dumped]) -> tuple[Dumped, ...]:
    return tuple(d for d in kinds if not table.kind(d.kind).late)


def _late(kinds: Iterable[Dumped]) -> tuple[Dumped, ...]:
    return tuple(d for d in kinds if table.kind(d.kind).late)


def _newest(then: Iterable[Dumped], now: Iterable[Dumped]) -> tuple[Dumped, ...]:
    """What is said now, and of the rest what was said then."""
    by_name = {dumped.kind: dumped for dumped in (*then, *now)}
    return tuple(by_name.values())


def _rehearse() -> None:
    """Have msgspec look at each record's class now: that takes it 100 µs a class."""
    table.warm()
    image.decode(image.encode(FrozenTree(())), FrozenTree)
    image.decode(image.encode(Layout((), (), (), (), (), (), ())), Layout)


def _look_at_process(target: Target) -> None:
    """See what the late kinds of a process find."""
    source = Source(target.pid, target.tracee, target.remote, target.pidfd)
    modules = [m for m in table.process_kinds() if m.KIND.late]
    (found,) = _ask(target, modules, [target.tracee.tids[0]])
    for module in modules:
        name = module.KIND.name
        record = found[name] if name in found else module.dump(source)
        target.standing[name, None] = record


def _look_at_threads(target: Target, tids: Sequence[Tid]) -> None:
    """See what the late kinds of these threads find."""
    if not tids:
        return
    source = Source(target.pid, target.tracee, target.remote, target.pidfd)
    modules = [m for m in table.task_kinds() if m.KIND.late]
    for tid, found in zip(tids, _ask(target, modules, tids), strict=True):
        for module in modules:
            name = module.KIND.name
            record = found[name] if name in found else module.dump(source, tid)
            target.standing[name, tid] = record


def _ask(
    target: Target, modules: Sequence[_Module], tids: Sequence[Tid]
) -> list[dict[str, Record]]:
    """What each of these threads says, by the kinds to which it says something."""
    asking = [m for m in modules if hasattr(m, "ask")]
    target.remote.reset()
    form = Form(target.remote, [m.ask for m in asking])
    said: list[dict[str, Record]] = []
    for tid, answer in zip(tids, form.put(target.remote, tids), strict=True):
        said.append({})
        for place, module in enumerate(asking):
            try:
                said[-1][module.KIND.name] = form.says(tid, answer, place)
            except Unsaid:
                continue
    return said


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


def _resumable(
    skeleton: Skeleton, tids: Sequence[Tid], tasks: Sequence[FrozenTask]
) -> list[TaskState]:
    """What they are to go on with; those that slept have a restart block by now."""
    states = [task.state for task in tasks]
    slept = []
    for at, (tid, task) in enumerate(zip(tids, tasks, strict=True)):
        (rax,) = _RAX.unpack_from(task.state.registers)
        if rax == _SLEPT:
            slept.append((at, (tid, task.state.registers, task.timed)))
        elif task.timed is not None:
            registers = Registers.from_bytes(task.state.registers)
            rest = shortened(registers, task.timed.remaining_ns)
            states[at] = task.state.going_on(rest.to_bytes())
    skeleton.remote.reset()
    resumed = remake_restart_blocks(
        skeleton.remote, skeleton.tracee, [sleeper for _, sleeper in slept]
    )
    for (at, _), words in zip(slept, resumed, strict=True):
        states[at] = states[at].going_on(words)
    return states
