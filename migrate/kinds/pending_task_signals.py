"""Signals sent to one thread and not yet delivered to it.

read from   PTRACE_PEEKSIGINFO, ptrace(2)
rebuilt by  rt_tgsigqueueinfo(2) by the thread to itself, while it blocks them all
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.kernel import procfs, signal_queue
from migrate.kernel.telling import all_must, nothing, told
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid


@dataclass(frozen=True, slots=True)
class PendingTaskSignals:
    """What travels: each siginfo_t, in the order of arrival."""

    infos: tuple[bytes, ...]


KIND = Kind(
    "pending_task_signals",
    1,
    Scope.TASK,
    PendingTaskSignals,
    late=True,
    in_answers=True,
)


def refuse(pid: Pid) -> list[str]:
    """There is no pending signal that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> PendingTaskSignals:
    """Look at the queue without taking anything from it."""
    # In this order: what comes while we look is a siginfo without a bit.
    timers = source.timers
    status = procfs.read(source.pid, f"task/{tid}/status")
    seen = source.tracee.peek_signals(tid, shared=False)
    infos = timers.settled(seen, tid)
    infos += signal_queue.bare(signal_queue.pending(status, "SigPnd"), seen)
    return PendingTaskSignals(tuple(infos))


def ask(form: Form, batch: Batch) -> Reader[PendingTaskSignals]:
    """Ask together with others; what is in the queue only dump() can tell."""
    empty = signal_queue.ask_whether_empty(form, batch)

    def read(results: Sequence[int]) -> PendingTaskSignals:
        empty(results)
        return PendingTaskSignals(())

    return read


def must_look(source: Source) -> bool:
    """With timers: what they have sent is told of the moment of which they are told."""
    return bool(source.timers.timers)


def restore(record: PendingTaskSignals, target: Target, tid: Tid) -> None:
    """Queue what is not queued yet. The thread blocks every signal meanwhile.

    Raises:
        CannotCarry: a siginfo is not one.
    """
    there = PendingTaskSignals(tuple(target.tracee.peek_signals(tid, shared=False)))
    told(
        target.remote.on(tid), lambda remote, batch: tell(record, there, remote, batch)
    )


def tell(
    record: PendingTaskSignals, there: PendingTaskSignals, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    if not record.infos:
        return nothing
    ids = remote.own_ids()
    try:
        lacking = signal_queue.lacking(record.infos, there.infos)
    except signal_queue.NotASiginfo as error:
        why = "A pending signal of the peer is not one."
        raise CannotCarry(KIND.name, why) from error
    calls = [(*ids, number, info) for number, info in lacking]
    return all_must(remote, batch, "rt_tgsigqueueinfo", calls)
